"""Trains the small default tracker on labelled, unlabelled and drawn CT; resumable, on the CPU or a GPU.

The tracker runs on its own answers during training, as it will in use: each slice sees the mask it found on the slice
before. A share of the steps teaches prompts on one slice instead: clicks, boxes, and coarse masks to be sharpened. Read
`train_tracker` first.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..checkpoints import load_into, read_header, read_weights, write_checkpoint
from ..datasets.sources import exclusions
from ..errors import Cancelled, InputError, ModelError
from ..events import Eta, Log, Progress
from ..foundation.nano_model import NanoConfig, NanoModel
from ..foundation.runtime import pick_device
from ..runs.run_folder import RunFolder, TrainingMetric
from .data import TrackerData, read_data
from .lessons import prompt_loss, tracking_loss

__all__ = ["TRACKER_RUN", "TrackerTrainConfig", "train_tracker"]

TRACKER_RUN = "train tracker"
"""The kind of a tracker's run folder: the words of the command that goes on with it."""

_LEAST = {"steps": 1, "batch": 1, "slices": 2, "save_every": 1, "phantoms": 0}
_LOCAL = ("data", "out", "start_from", "exclude", "device", "save_every")
"""Settings that say where, not how; the weights' metadata has none of them."""
_MAY_CHANGE = ("data", "out", "device", "save_every")
"""Settings that a resumed run may be given anew."""
_REPORT_EVERY = 25
"""Steps between two reports."""


@dataclass(frozen=True, kw_only=True)
class TrackerTrainConfig:
    """How to train the default tracker.

    Raises:
        InputError: a number is out of its range.
    """

    data: Path
    """Folder of CTs with labels where there are any: case folders with ct.nii.gz and label.nii.gz, or nnU-Net's
    folders."""
    out: Path
    """Run folder; a run that is there already goes on."""
    steps: int = 4000
    """Optimiser steps in all; the learning rate falls over the last quarter."""
    batch: int = 16
    """Clips a step."""
    slices: int = 5
    """Slices of a clip, the reference slice included; 1.6 times as many in the last third."""
    learning_rate: float = 8e-4
    """Peak of AdamW's learning rate."""
    seed: int = 0
    """Seed of everything random."""
    exclude: tuple[str, ...] = ()
    """Files or folders below the data folder never to be read, e.g. held-out patients; * stands for anything."""
    pseudo_share: float = 0.25
    """Share of label-free pseudo-objects among the clips, 0 .. 1."""
    prompt_share: float = 0.2
    """Share of the steps that teach prompts on one slice, 0 .. 1; 1 for weights that only answer prompts."""
    phantoms: int = 6
    """Phantoms to add."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    start_from: Path | None = None
    """Weights of a tracker of the same size to adapt, e.g. to a clinic's own cases."""
    save_every: int = 100
    """Steps between two saves."""

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise InputError(f"Training needs {name} of at least {least}, not {getattr(self, name)}.")
        for share in (self.pseudo_share, self.prompt_share):
            if not 0.0 <= share <= 1.0:
                raise InputError(f"A share of pseudo-objects or prompts must lie in 0 .. 1, not {share:g}.")


def train_tracker(
    config: TrackerTrainConfig,
    cancelled: Callable[[], bool] = lambda: False,
    model_config: NanoConfig | None = None,
) -> Iterator[Progress | Log | TrainingMetric]:
    """Train, or go on where the run in `config.out` was left.

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
    run = RunFolder.create_or_open(config.out, TRACKER_RUN, config, _MAY_CHANGE)
    with run.occupied():
        learner = _Learner.new(model_config or NanoConfig(), config, device)
        for event in _train(config, run, learner, data, lambda: cancelled() or run.stop_asked):
            run.record(event)
            yield event


def _train(
    config: TrackerTrainConfig,
    run: RunFolder,
    learner: _Learner,
    data: TrackerData,
    cancelled: Callable[[], bool],
) -> Iterator[Progress | Log | TrainingMetric]:
    yield Log(data.description)
    first = _restore(run, learner, data)
    if first:
        yield Log(f"Going on after step {first} of {config.steps}.")
    if first == config.steps:  # it may have been ended between the last state and the weights
        _save(config, run, learner, data, first)
    sampler = data.sampler(config.pseudo_share, learner.model.config.image_size)
    eta, pace = Eta(config.steps - first), time.monotonic()
    pending: list[tuple[float, float, float]] = []
    clips = 0
    for step in range(first, config.steps):
        if cancelled():
            _save(config, run, learner, data, step)
            raise Cancelled(
                f"Stopped after step {step} of {config.steps}; go on with: medssl runs resume {run.path}"
            )
        rng = np.random.default_rng([config.seed, step])
        torch.manual_seed(config.seed * 1_000_003 + step)
        learning_rate = config.learning_rate * _schedule(step, config.steps)
        batch, slices = _clips_at(step, config)
        clip = [part.to(learner.device) for part in sampler.batch(rng, batch, slices)]
        pending.append(learner.descend(clip, rng, step, learning_rate, config.prompt_share))
        clips += batch
        done = step + 1
        if done % _REPORT_EVERY == 0 or done == config.steps:
            means = (float(np.mean(part)) for part in zip(*pending, strict=True))
            values = dict(zip(("loss", "dice", "presence"), means, strict=True))
            now = time.monotonic()
            epoch = done * config.batch / len(data)
            yield TrainingMetric(done, epoch, values, learning_rate, clips / max(now - pace, 1e-9))
            pending, clips, pace = [], 0, now
        yield replace(eta.step(done - first, f"step {done} of {config.steps}"), done=done, total=config.steps)
        if done % config.save_every == 0 or done == config.steps:
            _save(config, run, learner, data, done)


@dataclass(frozen=True, eq=False)
class _Learner:
    """The network, its running average, which is what is kept for use, and the optimiser."""

    model: NanoModel
    average: NanoModel
    optimiser: torch.optim.Optimizer
    device: torch.device
    fusion: Mapping[str, Any] | None
    """How the weights that are adapted are settled with the intensity tracker; None for weights from scratch."""

    @classmethod
    def new(cls, size: NanoConfig, config: TrackerTrainConfig, device: torch.device) -> _Learner:
        torch.set_flush_denormal(True)
        torch.manual_seed(config.seed)
        model = new_model(size, config.start_from).to(device)
        optimiser = torch.optim.AdamW(_parameter_groups(model), lr=config.learning_rate, betas=(0.9, 0.98))
        return cls(model, copy.deepcopy(model).eval(), optimiser, device, _fusion_of(config.start_from))

    def descend(
        self,
        clip: Sequence[torch.Tensor],
        rng: np.random.Generator,
        step: int,
        learning_rate: float,
        prompt_share: float,
    ) -> tuple[float, float, float]:
        """One optimiser step on the images, masks and valid flags of a batch; loss, Dice and presence accuracy.

        Raises:
            InputError: the loss is no number.
        """
        image, mask, valid = clip
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate
        self.model.train()
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):
            if rng.random() < prompt_share:
                loss, scores = prompt_loss(self.model, image, mask, rng)
            else:
                loss, scores = tracking_loss(self.model, image, mask, valid, rng)
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


def _fusion_of(start_from: Path | None) -> Mapping[str, Any] | None:
    """How weights are settled with the intensity tracker; None where they say nothing of it."""
    if start_from is None or start_from.suffix != ".safetensors":
        return None
    fusion: Mapping[str, Any] | None = read_header(start_from).get("fusion")
    return fusion


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


def _save(
    config: TrackerTrainConfig, run: RunFolder, learner: _Learner, data: TrackerData, step: int
) -> None:
    """Write resume.pt, then the weights for use."""
    run.save_resume({**learner.state(), "step": step, "data": data.description})
    meta = {
        "kind": "nano",
        "config": learner.average.config.to_meta(),
        "step": step,
        "recipe": {name: value for name, value in asdict(config).items() if name not in _LOCAL},
        "excluded": exclusions(config.exclude),
        **({} if learner.fusion is None else {"fusion": learner.fusion}),
    }
    write_checkpoint(run.checkpoint, learner.average.state_dict(), meta)
