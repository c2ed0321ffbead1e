"""What every method must do, read from METHODS: learn, go on after a kill -9, transfer.

Each is given its "cpu" preset on smaller slices or blocks, and on the smallest U-Net where that is quicker.
"""

from __future__ import annotations

import contextlib
import multiprocessing.context
import multiprocessing.forkserver
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import killed_run
import numpy as np
import pytest
import torch
from medssl.backbones import build_backbone
from medssl.datasets.data import UnlabelledVolumes
from medssl.errors import Cancelled
from medssl.learning.optimisation import seed_step
from medssl.learning.pretrain_config import PretrainConfig
from medssl.learning.sampling import Samples, StepPlan, load_parts
from medssl.learning.transfer import load_encoder, read_encoder
from medssl.methods import METHODS, Moment, Preset
from medssl.phantom import phantom_ct
from medssl.runs.run_folder import RunFolder, TrainingMetric
from medssl.training import pretrain

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 200
LOOKED_AT, LOOKED_AT_IN_3D = (50, 100, STEPS), (25, 50)
FALL = 0.3
SPACING_MM = (12.0, 12.0, 12.0)
HELD_SEED, HELD_BATCHES = 1000, 4
COMPARED, SAVED, KILLED = 6, 3, 5
"""Steps after which runs are compared; one is saved after 3 and killed after its 5th."""
SMALLER = {"unet2d_16": "unet2d_4", "mit_tiny_unet": "unet2d_4"}
OF_SLICES = [name for name, kind in METHODS.items() if kind.presets()["cpu"].contract.spatial_dims == 2]


@pytest.fixture(scope="module")
def volumes() -> UnlabelledVolumes:
    """Four phantoms, from lungs to kidneys, and which slices show the liver."""
    phantoms = [phantom_ct(seed=seed, shape_kji=(32, 32, 32), spacing_kji_mm=SPACING_MM) for seed in range(4)]
    arrays = [phantom.volume.voxels_kji for phantom in phantoms]
    shown = [phantom.segmentation.mask("liver").any(axis=(1, 2)) for phantom in phantoms]
    return UnlabelledVolumes.from_arrays(arrays, SPACING_MM, shown)


def shrunk(name: str) -> Preset:
    """The "cpu" preset on a smaller network and smaller slices or blocks."""
    preset = METHODS[name].presets()["cpu"]
    contract = replace(preset.contract, size=(32,) * preset.contract.spatial_dims)
    backbone = SMALLER.get(preset.backbone, preset.backbone)
    preset = replace(preset, backbone=backbone, contract=contract)
    if name == "amlp":
        preset = replace(preset, options=replace(preset.options, patch=4))
        preset = replace(preset, recipe=replace(preset.recipe, learning_rate=3e-3))
    if name == "moco":
        preset = replace(preset, options=replace(preset.options, queue=32))
    if name in ("simclr", "moco"):
        preset = replace(preset, options=replace(preset.options, smallest_area=0.6))
    if name in ("simclr", "supcon", "moco"):
        preset = replace(preset, recipe=replace(preset.recipe, batch=8, learning_rate=2e-3))
    return preset


def a_config(name: str, out: Path) -> PretrainConfig:
    return PretrainConfig(
        method=name,
        data=out,
        out=out,
        device="cpu",
        steps=STEPS,
        save_every_steps=SAVED,
        save_every_minutes=60,
    )


def train(
    name: str, out: Path, volumes: UnlabelledVolumes, enough: Callable[[list[TrainingMetric]], bool]
) -> list[TrainingMetric]:
    """Train, or go on, until it is enough; the state is saved then."""
    run: list[TrainingMetric] = RunFolder.open(out).metrics() if out.exists() else []
    config = replace(a_config(name, out), save_every_steps=None)
    with contextlib.suppress(Cancelled):
        for event in pretrain(config, lambda: enough(run), volumes, shrunk(name)):
            if isinstance(event, TrainingMetric):
                run.append(event)
    return run


def held_loss(name: str, out: Path, volumes: UnlabelledVolumes) -> float:
    """Mean loss, less the least it can be, of batches that are the same at every call and were not trained on.

    Their slices were, but not with these partners, views and masks. The moment is the same at every call too, and
    AMLP's labels are those of the first epoch, so that no schedule and no harder mask has a part in what changes. Norms
    go by the batch, as in training: their running statistics mean nothing after the first steps.

    The least that any network can reach is 0, but for SupCon. For a view with positives P among all other views A and
    shares p of the softmax over A, Jensen's inequality gives

        -1/|P| sum over P of log p  >=  -log (1/|P| sum over P of p)  >=  log |P|

    as the shares of P are at most 1 together. It is the loss of embeddings that agree within a label and are infinitely
    far apart between the two. Of 16 views with 8 a label it leaves log 15 - log 7, 28 % of what the loss begins with.
    """
    preset = shrunk(name)
    method = METHODS[name].build(preset)
    weights = {key: value for key, value in state(out)["method"].items() if isinstance(value, torch.Tensor)}
    method.load_state_dict(weights, strict=False)
    samples = Samples(method, volumes, HELD_SEED)
    plan = StepPlan(len(samples), preset.recipe.batch, HELD_SEED, last=HELD_BATCHES)
    losses = []
    for step, batch in enumerate(load_parts(samples, plan, 0, torch.device("cpu"))):
        seed_step(HELD_SEED, step)
        with torch.no_grad():
            loss = float(method(batch, Moment(step + 1, STEPS, 0, 1, HELD_SEED))["loss"])
        losses.append(loss - (sup_con_floor(batch["present"]) if name == "supcon" else 0.0))
    return float(np.mean(losses))


def sup_con_floor(labels: torch.Tensor) -> float:
    """Mean over both views of each slice of log |P|."""
    positives = [2 * int((labels == label).sum()) - 1 for label in labels]
    return float(np.mean(np.log(positives)))


def compared(metrics: list[TrainingMetric]) -> bool:
    return bool(metrics) and metrics[-1].step >= COMPARED


@pytest.fixture(scope="module")
def processes() -> multiprocessing.context.ForkServerContext:
    """Where processes begin with torch and what trains imported: for each of them anew it takes seconds.

    The server that they are forked from looks for what it is to import on PYTHONPATH only, and passes over in silence
    what it does not find.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([killed_run.__name__])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        multiprocessing.forkserver.ensure_running()
    return context


def killed(
    name: str, out: Path, volumes: UnlabelledVolumes, processes: multiprocessing.context.ForkServerContext
) -> None:
    """Train in another process that dies after a step."""
    arguments = (a_config(name, out), volumes, shrunk(name), KILLED)
    process = processes.Process(target=killed_run.train_and_die, args=arguments)
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL


def state(out: Path) -> dict[str, Any]:
    loaded = RunFolder.open(out).load_resume()
    assert loaded is not None
    return loaded


def differing(one: Any, other: Any, name: str = "state") -> list[str]:
    """Where two states differ, to the last bit."""
    if isinstance(one, torch.Tensor):
        return [] if one.dtype == other.dtype and torch.equal(one, other) else [name]
    if isinstance(one, Mapping):
        assert one.keys() == other.keys()
        return [place for key in one for place in differing(one[key], other[key], f"{name}.{key}")]
    if isinstance(one, list | tuple):
        assert len(one) == len(other)
        return [
            place
            for n, pair in enumerate(zip(one, other, strict=True))
            for place in differing(*pair, f"{name}.{n}")
        ]
    return [] if one == other else [name]


@pytest.mark.parametrize("name", METHODS)
def test_small_inputs_are_pre_trained_without_dropout(name: str) -> None:
    """Its noise hides from PolyCL-S, SupCon and TCS-MAE what they are to find, and their losses do not move."""
    method = METHODS[name].build(shrunk(name))
    parts = [part for part in method.modules() if isinstance(part, torch.nn.Dropout)]
    assert all(part.p == 0.0 for part in parts)


@pytest.mark.parametrize("name", METHODS)
def test_the_loss_of_a_method_falls_by_a_third_in_200_steps(
    name: str, volumes: UnlabelledVolumes, tmp_path: Path
) -> None:
    """Methods 6: on the same batches after the first report, of step 2, and later; in 3D a quarter of them will do."""
    out = tmp_path / name
    train(name, out, volumes, lambda metrics: bool(metrics))
    first = last = held_loss(name, out, volumes)
    for steps in LOOKED_AT if name in OF_SLICES else LOOKED_AT_IN_3D:
        train(name, out, volumes, lambda metrics, steps=steps: metrics[-1].step >= steps)
        last = held_loss(name, out, volumes)
        if last <= (1.0 - FALL) * first:
            break
    assert last <= (1.0 - FALL) * first


@pytest.mark.parametrize("name", METHODS)
def test_a_method_goes_on_after_a_kill_as_if_nothing_had_been(
    name: str,
    volumes: UnlabelledVolumes,
    tmp_path: Path,
    processes: multiprocessing.context.ForkServerContext,
) -> None:
    """Methods 6: resume equals uninterrupted, bit for bit; and the encoder enters a fresh backbone whole."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(name, whole, volumes, compared)
    killed(name, broken, volumes, processes)
    assert state(broken)["step"] == SAVED
    train(name, broken, volumes, compared)
    assert differing(state(whole), state(broken)) == []

    file = read_encoder(whole / "checkpoint.safetensors")
    backbone = build_backbone(file.backbone, file.contract.in_channels)
    report = load_encoder(backbone, file)
    assert (report.fraction, report.missing, report.mismatched, report.unexpected) == (1.0, (), (), ())
    loaded = backbone.state_dict()
    assert all(torch.equal(loaded[tensor], kept) for tensor, kept in file.tensors.items())
