"""What every method must do, read from METHODS: train, go on after a kill -9, transfer, learn.

Each is given its "cpu" preset on the smallest network and input that it takes.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from killed_run import train_and_die
from medssl.backbones import build_backbone
from medssl.datasets.data import UnlabelledVolumes
from medssl.errors import Cancelled
from medssl.learning.pretrain_config import PretrainConfig
from medssl.learning.transfer import load_encoder, read_encoder
from medssl.methods import METHODS, Preset
from medssl.phantom import phantom_ct
from medssl.runs.run_folder import RunFolder, TrainingMetric
from medssl.training import pretrain

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 200
COMPARED, SAVED, KILLED = 6, 3, 5
"""Steps after which runs are compared; one is saved after 3 and killed after its 5th."""
CONTRASTIVE = ("polycl-s", "polycl-o", "polycl-m", "simclr", "supcon", "moco", "byol")
SMALLER = {"unet2d_16": "unet2d_4"}


@pytest.fixture(scope="module")
def volumes() -> UnlabelledVolumes:
    """Four phantoms from scanners of different noise, and which slices show the liver."""
    arrays, shown = [], []
    for seed, noise_hu in enumerate((0.0, 30.0, 90.0, 200.0)):
        phantom = phantom_ct(seed=seed, shape_kji=(12, 64, 64), spacing_kji_mm=(30.0, 6.0, 6.0))
        noise = np.random.default_rng(seed).normal(0.0, noise_hu, phantom.volume.shape_kji)
        arrays.append(np.clip(phantom.volume.voxels_kji + noise, -1024, 2000))
        shown.append(phantom.segmentation.mask("liver").any(axis=(1, 2)))
    return UnlabelledVolumes.from_arrays(arrays, (30.0, 6.0, 6.0), shown)


def shrunk(name: str) -> Preset:
    """The "cpu" preset on less, with a learning rate for a short run.

    Contrast is made among few slices: the loss of many cannot fall by much, and needs more than minutes to.
    """
    preset = METHODS[name].presets()["cpu"]
    contract, recipe = preset.contract, replace(preset.recipe, learning_rate=3e-3)
    if contract.spatial_dims == 3:
        recipe = preset.recipe
    elif name not in CONTRASTIVE:
        contract = replace(contract, size=(32, 32))
    else:
        recipe = replace(recipe, batch=4)
    backbone = SMALLER.get(preset.backbone, preset.backbone)
    return replace(preset, backbone=backbone, contract=contract, recipe=recipe)


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


def compared(metrics: list[TrainingMetric]) -> bool:
    return bool(metrics) and metrics[-1].step >= COMPARED


def killed(name: str, out: Path, volumes: UnlabelledVolumes) -> None:
    """Train in another process that dies after a step."""
    arguments = (a_config(name, out), volumes, shrunk(name), KILLED)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["killed_run"])
    process = context.Process(target=train_and_die, args=arguments)
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
def test_a_method_goes_on_after_a_kill_as_if_nothing_had_been(
    name: str, volumes: UnlabelledVolumes, tmp_path: Path
) -> None:
    """Methods 6: resume equals uninterrupted, bit for bit; and the encoder enters a fresh backbone whole."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(name, whole, volumes, compared)
    killed(name, broken, volumes)
    assert state(broken)["step"] == SAVED
    train(name, broken, volumes, compared)
    assert differing(state(whole), state(broken)) == []

    file = read_encoder(whole / "checkpoint.safetensors")
    backbone = build_backbone(file.backbone, file.contract.in_channels)
    report = load_encoder(backbone, file)
    assert (report.fraction, report.missing, report.mismatched, report.unexpected) == (1.0, (), (), ())
    loaded = backbone.state_dict()
    assert all(torch.equal(loaded[tensor], kept) for tensor, kept in file.tensors.items())
