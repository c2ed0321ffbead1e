"""The masked methods of slices in the training loop: a resumed run is the uninterrupted one, labels included."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from medssl.datasets.data import UnlabelledVolumes
from medssl.errors import Cancelled
from medssl.learning.pretrain_config import PretrainConfig
from medssl.learning.transfer import read_encoder
from medssl.methods import METHODS, Preset
from medssl.runs.run_folder import RunFolder
from medssl.training import pretrain

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ("medssl-vit", "mae", "amlp", "tcs-mae")
STEPS = 5


def small(name: str) -> Preset:
    preset = METHODS[name].presets()["cpu"]
    backbone = preset.backbone if preset.backbone.startswith("vit") else "unet2d_4"
    options = replace(preset.options, levels=1) if name == "tcs-mae" else preset.options
    return replace(
        preset,
        backbone=backbone,
        contract=replace(preset.contract, size=(32, 32)),
        recipe=replace(preset.recipe, batch=2),
        options=options,
    )


def run(name: str, out: Path, volumes: UnlabelledVolumes, stop_at: int | None = None) -> None:
    config = PretrainConfig(method=name, data=out, out=out, device="cpu", steps=STEPS)
    asked = iter(range(10_000))
    try:
        for _ in pretrain(config, lambda: next(asked) == stop_at, volumes, small(name)):
            pass
    except Cancelled:
        assert stop_at is not None


def results(out: Path) -> tuple[dict[str, Any], list[dict[str, float]]]:
    folder = RunFolder.open(out)
    saved = folder.load_resume()
    assert saved is not None
    return saved["method"], [dict(metric.values) for metric in folder.metrics()]


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_is_the_uninterrupted_one(name: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    volumes = UnlabelledVolumes.from_arrays([rng.integers(-400, 500, (2, 36, 40)).astype(np.int16)] * 2)
    run(name, tmp_path / "whole", volumes)
    run(name, tmp_path / "parts", volumes, stop_at=3)  # in the middle of the second epoch
    run(name, tmp_path / "parts", volumes)
    (whole, expected), (parts, found) = results(tmp_path / "whole"), results(tmp_path / "parts")
    assert [values["loss"] for values in found] == [values["loss"] for values in expected]
    assert whole.keys() == parts.keys()
    for key, value in whole.items():
        pairs = (
            [(value[n], parts[key][n]) for n in value] if isinstance(value, dict) else [(value, parts[key])]
        )
        assert all(torch.equal(one, other) for one, other in pairs), key
    kept = read_encoder(tmp_path / "whole" / "checkpoint.safetensors").tensors
    assert {part.split(".")[0] for part in kept} == set(METHODS[name].transfers)
