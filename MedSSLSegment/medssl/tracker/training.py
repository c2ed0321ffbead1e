"""Trains the small default model on labelled, unlabelled and drawn CT; resumable, on the CPU or a GPU.

It has weights of its own for each of its two jobs. `train_tracker` teaches to carry a mask from slice to slice: the
tracker runs on its own answers, as it will in use, and each slice sees the mask it found on the slice before.
`train_prompts` teaches to answer clicks, boxes and coarse masks on one slice, beginning with what the tracker knows.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..checkpoints import load_into, read_checkpoint, read_weights, write_checkpoint
from ..datasets.sources import exclusions
from ..errors import Cancelled, InputError, ModelError
from ..events import Eta, Log, Progress
from ..foundation.nano_model import PROMPTS, NanoConfig, NanoModel, prompt_tensors, prompted_model
from ..foundation.runtime import pick_device
from ..learning.recipe import require_seed
from ..registry import DEFAULT_MODEL, find_entry, verified_path
from ..runs.run_folder import RunFolder, TrainingMetric
from .clips import ClipSampler
from .data import TrackerData, read_data
from .lessons import prompt_loss, tracking_loss
from .prompt_samples import PromptSampler

__all__ = [
    "PROMPTS_RUN",
    "TRACKER_RUN",
    "PromptTrainConfig",
    "TrackerTrainConfig",
    "TrainConfig",
    "train_prompts",
    "train_tracker",
]

TRACKER_RUN, PROMPTS_RUN = "train tracker", "train prompts"
"""The kinds of run folders: the words of the commands that go on with them."""

_LEAST = {"steps": 1, "batch": 1, "slices": 2, "save_every": 1, "phantoms": 0}
_LOCAL = ("data", "out", "start_from", "exclude", "device", "save_every")
"""Settings that say where, not how; the weights' metadata has none of them."""
_MAY_CHANGE = ("data", "out", "device", "save_every", "start_share")
"""Settings that a resumed run may be given anew."""
_REPORT_EVERY = 25
"""Steps between two reports."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What both trainings are told.

    Raises:
        InputError: a number is out of its range.
    """

    data: Path
    """Folder of CTs with labels where there are any: case folders with ct.nii.gz and label.nii.gz, or nnU-Net's
    folders."""
    out: Path
    """Run folder; a run that is there already goes on."""
    steps: int
    """Optimiser steps in all; the learning rate falls over the last quarter."""
    batch: int
    """Samples a step."""
    learning_rate: float
    """Peak of AdamW's learning rate."""
    pseudo_share: float
    """Share of label-free pseudo-objects among the samples, 0 .. 1."""
    phantoms: int
    """Phantoms to add."""
    seed: int = 0
    """Seed of everything random."""
    exclude: tuple[str, ...] = ()
    """Files or folders below the data folder never to be read, e.g. held-out patients; * stands for anything."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    start_from: Path | None = None
    """Weights to start from."""
    save_every: int = 100
    """Steps between two saves."""

    def __post_init__(self) -> None:
        require_seed(self.seed)
        for name, least in _LEAST.items():
            if getattr(self, name, least) < least:
                raise InputError(f"Training needs {name} of at least {least}, not {getattr(self, name)}.")
        if not 0.0 <= self.pseudo_share <= 1.0:
            raise InputError(f"The share of pseudo-objects must lie in 0 .. 1, not {self.pseudo_share:g}.")


@dataclass(frozen=True, kw_only=True)
class TrackerTrainConfig(TrainConfig):
    """How to teach the default model to carry masks."""

    steps: int = 4000
    batch: int = 16
    """Clips a step."""
    slices: int = 5
    """Slices of a clip, the reference slice included; 1.6 times as many in the last third."""
    learning_rate: float = 8e-4
    pseudo_share: float = 0.25
    """Share of label-free pseudo-objects among the clips, 0 .. 1."""
    phantoms: int = 6
    start_from: Path | None = None
    """Weights of a tracker of the same size to adapt, e.g. to a clinic's own cases. What they answer prompts with is
    kept."""


@dataclass(frozen=True, kw_only=True)
class PromptTrainConfig(TrainConfig):
    """How to teach the default model to answer clicks, boxes and coarse masks."""

    steps: int = 3000
    batch: int = 32
    """Prompts a step."""
    learning_rate: float = 6e-4
    pseudo_share: float = 0.15
    """Share of label-free pseudo-objects among what is asked for, 0 .. 1."""
    phantoms: int = 16
    start_from: Path | None = None
    """Model to teach, as `medssl train tracker` writes it, or taught before; None for the one that is shipped. Its
    weights for carrying masks are kept."""
    start_share: float = 0.0
    """Share of the weights that it began with in the mean that is written, 0 .. 1: some of them keep what was known
    before (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models"). May be changed when the run has ended."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.start_share <= 1.0:
            raise InputError(
                f"The share of the weights that it began with lies in 0 .. 1; got {self.start_share:g}."
            )


def train_tracker(
    config: TrackerTrainConfig,
    cancelled: Callable[[], bool] = lambda: False,
    model_config: NanoConfig | None = None,
) -> Iterator[Progress | Log | TrainingMetric]:
    """Teach to carry masks, or go on where the run in `config.out` was left.

    Args:
        config: data, run folder and recipe.
        cancelled: asked before each step.
        model_config: size of the model; None for the size that is shipped.

    Yields:
        Log, Progress and TrainingMetric ("loss", "dice" of the training clips, "presence": how often the model was
        right about whether the object is there) as they come. An epoch is as many clips as there are volumes.

    Raises:
        InputError: the folder holds no usable CT, the run is another's, or the loss is no longer a number.
        ModelError: the run's state or the weights to start from are damaged or of another model.
        StorageError: no space; what was saved last stays.
        Cancelled: `cancelled` or `medssl runs stop` said so; the run can be resumed.
    """
    device = pick_device(config.device)
    data = read_data(config.data, config.exclude, config.phantoms, config.seed)
    size = model_config or NanoConfig()
    course = _Tracking(config, data.clips(config.pseudo_share, size.image_size), *_kept(config.start_from))
    yield from _run(
        TRACKER_RUN, config, course, data, lambda: new_model(size, config.start_from), device, cancelled
    )


def train_prompts(
    config: PromptTrainConfig, cancelled: Callable[[], bool] = lambda: False
) -> Iterator[Progress | Log | TrainingMetric]:
    """Teach to answer prompts, or go on where the run in `config.out` was left.

    Args:
        config: data, run folder and recipe.
        cancelled: asked before each step.

    Yields:
        As `train_tracker`, but TrainingMetric of "loss", "dice" of the first answers, and "second": the Dice after
        a second look, half of them with a correcting point.

    Raises:
        As `train_tracker`.
    """
    device = pick_device(config.device)
    source = config.start_from or verified_path(find_entry(DEFAULT_MODEL))
    if source.suffix != ".safetensors":
        raise ModelError(f"{source} is no small model to teach; give the checkpoint.safetensors of a run.")
    tensors, meta = read_checkpoint(source)
    model = prompted_model(tensors, meta)
    data = read_data(config.data, config.exclude, config.phantoms, config.seed)
    sampler = data.prompts(config.pseudo_share, model.config.image_size)
    course = _Prompting(config, sampler, tensors, meta)
    yield from _run(PROMPTS_RUN, config, course, data, lambda: model, device, cancelled)


def _run(
    kind: str,
    config: TrainConfig,
    course: _Course,
    data: TrackerData,
    begin: Callable[[], NanoModel],
    device: torch.device,
    cancelled: Callable[[], bool],
) -> Iterator[Progress | Log | TrainingMetric]:
    """Train in the run's folder, and keep there what is said."""
    run = RunFolder.create_or_open(config.out, kind, config, _MAY_CHANGE)
    with run.occupied():
        learner = _Learner.new(begin, config, device)
        for event in _train(config, run, learner, course, data, lambda: cancelled() or run.stop_asked):
            run.record(event)
            yield event


def _train(
    config: TrainConfig,
    run: RunFolder,
    learner: _Learner,
    course: _Course,
    data: TrackerData,
    cancelled: Callable[[], bool],
) -> Iterator[Progress | Log | TrainingMetric]:
    yield Log(data.description)
    first = _restore(run, learner, data)
    if first:
        yield Log(f"Going on after step {first} of {config.steps}.")
    if first == config.steps:  # it may have been ended between the last state and the weights
        _save(run, learner, course, data, first)
    eta, pace = Eta(config.steps - first), time.monotonic()
    pending: list[tuple[float, float, float]] = []
    samples = 0
    for step in range(first, config.steps):
        if cancelled():
            _save(run, learner, course, data, step)
            raise Cancelled(
                f"Stopped after step {step} of {config.steps}; go on with: medssl runs resume {run.path}"
            )
        rng = np.random.default_rng([config.seed, step])
        torch.manual_seed(config.seed * 1_000_003 + step)
        learning_rate = config.learning_rate * _schedule(step, config.steps)
        lesson = course.lesson(rng, step, learner.device)
        pending.append(learner.descend(lesson, step, learning_rate))
        samples += lesson.samples
        done = step + 1
        if done % _REPORT_EVERY == 0 or done == config.steps:
            values = _means(("loss", *course.scores), pending)
            now = time.monotonic()
            epoch = done * config.batch / len(data)
            yield TrainingMetric(done, epoch, values, learning_rate, samples / max(now - pace, 1e-9))
            pending, samples, pace = [], 0, now
        yield replace(eta.step(done - first, f"step {done} of {config.steps}"), done=done, total=config.steps)
        if done % config.save_every == 0 or done == config.steps:
            _save(run, learner, course, data, done)


@dataclass(frozen=True, eq=False)
class _Lesson:
    """What one step teaches."""

    samples: int
    loss_of: Callable[[NanoModel], tuple[Tensor, tuple[float, float]]]
    """Loss and two scores of a network."""


class _Course(Protocol):
    """What is taught, and what is written of it."""

    scores: ClassVar[tuple[str, str]]
    """Names of the scores of a lesson."""

    def lesson(self, rng: np.random.Generator, step: int, device: torch.device) -> _Lesson:
        """Draw what a step teaches."""

    def checkpoint(self, average: NanoModel, step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and metadata of the weights for use."""


@dataclass(frozen=True, eq=False)
class _Tracking:
    """Follow an object through a clip."""

    config: TrackerTrainConfig
    sampler: ClipSampler
    kept_tensors: Mapping[str, Tensor]
    kept_meta: Mapping[str, Any]
    """Of the weights that are adapted, as they are."""
    scores: ClassVar[tuple[str, str]] = ("dice", "presence")

    def lesson(self, rng: np.random.Generator, step: int, device: torch.device) -> _Lesson:
        count, slices = _clips_at(step, self.config)
        image, mask, valid = (part.to(device) for part in self.sampler.batch(rng, count, slices))
        return _Lesson(count, lambda model: tracking_loss(model, image, mask, valid, rng))

    def checkpoint(self, average: NanoModel, step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        meta = {
            "kind": "nano",
            "config": average.config.to_meta(),
            **_account(self.config, step),
            **self.kept_meta,
        }
        return {**average.state_dict(), **self.kept_tensors}, meta


@dataclass(frozen=True, eq=False)
class _Prompting:
    """Answer prompts on one slice."""

    config: PromptTrainConfig
    sampler: PromptSampler
    tensors: Mapping[str, Tensor]
    meta: Mapping[str, Any]
    """Of the model that is taught; what tracks in it is kept."""
    scores: ClassVar[tuple[str, str]] = ("dice", "second")

    def lesson(self, rng: np.random.Generator, step: int, device: torch.device) -> _Lesson:
        batch = self.sampler.batch(rng, self.config.batch).to(device)
        return _Lesson(self.config.batch, lambda model: prompt_loss(model, batch, rng))

    def checkpoint(self, average: NanoModel, step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tracker = {name: tensor for name, tensor in self.tensors.items() if not name.startswith(PROMPTS)}
        start, share = prompted_model(self.tensors, self.meta).state_dict(), self.config.start_share
        taught = {
            name: tensor.cpu().lerp(start[name], share) if tensor.is_floating_point() else tensor
            for name, tensor in average.state_dict().items()
        }
        own = prompt_tensors(tracker, taught)
        return {**tracker, **own}, {**self.meta, "prompts": _account(self.config, step)}


@dataclass(frozen=True, eq=False)
class _Learner:
    """The network, its running average, which is what is kept for use, and the optimiser."""

    model: NanoModel
    average: NanoModel
    optimiser: torch.optim.Optimizer
    device: torch.device

    @classmethod
    def new(cls, begin: Callable[[], NanoModel], config: TrainConfig, device: torch.device) -> _Learner:
        torch.set_flush_denormal(True)
        torch.manual_seed(config.seed)
        model = begin().to(device)
        optimiser = torch.optim.AdamW(_parameter_groups(model), lr=config.learning_rate, betas=(0.9, 0.98))
        return cls(model, copy.deepcopy(model).eval(), optimiser, device)

    def descend(self, lesson: _Lesson, step: int, learning_rate: float) -> tuple[float, float, float]:
        """One optimiser step; the loss and the two scores.

        Raises:
            InputError: the loss is no number.
        """
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate
        self.model.train()
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):
            loss, scores = lesson.loss_of(self.model)
            if not math.isfinite(float(loss.detach())):
                raise InputError(
                    f"The loss is no longer a number at step {step + 1}; what was saved last stays. Start again in"
                    " another folder with a lower --learning-rate."
                )
            self.optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        decay = min(0.998, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1.0 - decay)
        return float(loss.detach()), *scores

    def state(self) -> dict[str, Any]:
        """Everything that going on needs."""
        return {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])


def new_model(size: NanoConfig, start_from: Path | None) -> NanoModel:
    """Random weights that begin by believing that the object is there, or weights to adapt."""
    model = NanoModel(size)
    nn.init.constant_(model.sam.sam_mask_decoder.pred_obj_score_head.layers[-1].bias, 1.0)
    if start_from is not None:
        load_into(model, read_weights(start_from), min_fraction=1.0)
    return model


def _kept(start_from: Path | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What adapting a tracker leaves alone: how it is settled with the intensity tracker, and what answers prompts."""
    if start_from is None or start_from.suffix != ".safetensors":
        return {}, {}
    tensors, meta = read_checkpoint(start_from)
    prompts = {name: tensor for name, tensor in tensors.items() if name.startswith(PROMPTS)}
    return prompts, {name: meta[name] for name in ("fusion", "prompts") if name in meta}


def _account(config: TrainConfig, step: int) -> dict[str, Any]:
    """How weights were made, for their metadata."""
    recipe = {name: value for name, value in asdict(config).items() if name not in _LOCAL}
    return {"step": step, "recipe": recipe, "excluded": exclusions(config.exclude)}


def _means(names: Sequence[str], rows: Sequence[Sequence[float]]) -> dict[str, float]:
    """Mean of each column, over the rows that have a number in it; what has none is left out."""
    columns = ([value for value in column if math.isfinite(value)] for column in zip(*rows, strict=True))
    return {name: float(np.mean(column)) for name, column in zip(names, columns, strict=True) if column}


def _clips_at(step: int, config: TrackerTrainConfig) -> tuple[int, int]:
    """Clips and slices of a step: in the last third fewer and longer clips, about the same number of slices."""
    if step < 0.67 * config.steps:
        return config.batch, config.slices
    slices = round(1.6 * config.slices)
    return max(config.batch * config.slices // slices, 4), slices


def _schedule(step: int, steps: int) -> float:
    """Warm up over 100 steps, stay, fall to 2 % over the last quarter."""
    warm = min(1.0, (step + 1) / 100)
    fall = min(1.0, max((steps - step) / max(0.25 * steps, 1.0), 0.0))
    return warm * (0.02 + 0.98 * fall)


def _parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.05},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


# ------------------------------------------------------------------------------------------------------- run folder


def _restore(run: RunFolder, learner: _Learner, data: TrackerData) -> int:
    """Put a saved state back; the number of steps it had done, 0 where nothing was saved."""
    saved = run.load_resume()
    if saved is None:
        return 0
    try:
        learner.restore(saved)
        step, trained_on = int(saved["step"]), str(saved["data"])
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise ModelError(
            f"The training state in {run.path} is damaged or of another model; start again in another folder."
        ) from error
    run.require_same({"data": trained_on}, {"data": data.description})
    run.forget_after(step)
    return step


def _save(run: RunFolder, learner: _Learner, course: _Course, data: TrackerData, step: int) -> None:
    """Write resume.pt, then the weights for use."""
    run.save_resume({**learner.state(), "step": step, "data": data.description})
    write_checkpoint(run.checkpoint, *course.checkpoint(learner.average, step))
