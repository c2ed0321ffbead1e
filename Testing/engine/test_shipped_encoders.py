"""The encoders that are shipped: what the registry says, whole, and without any held-out patient."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from medssl.backbones import build_backbone
from medssl.errors import ModelError
from medssl.learning.transfer import load_encoder, read_encoder
from medssl.methods import METHODS
from medssl.registry import bundled_folder, load_encoders, refresh_bundled, shipped_encoder, write_registry

HOLDOUT = Path(__file__).resolve().parents[1] / "benchmarks" / "holdout.json"
PAPERS = {"medssl-vit", "polycl-s", "polycl-o", "polycl-m", "anatomask", "amlp", "tcs-mae"}
SHIPPED = [entry.method for entry in load_encoders()]


def test_every_paper_has_its_encoder() -> None:
    assert set(SHIPPED) >= PAPERS
    assert set(SHIPPED) <= set(METHODS)


@pytest.mark.parametrize("method", SHIPPED)
def test_a_shipped_encoder_is_the_registrys_and_transfers_whole(method: str) -> None:
    encoder = read_encoder(method)
    assert encoder.method == method
    torch.manual_seed(0)
    backbone = build_backbone(encoder.backbone, encoder.contract.in_channels)
    report = load_encoder(backbone, encoder, min_fraction=1.0)
    assert report.fraction == pytest.approx(encoder.meta.get("share", 1.0))
    assert not report.mismatched
    for name, tensor in encoder.tensors.items():
        assert torch.equal(backbone.state_dict()[name], tensor.float())
    features = backbone.encoder(torch.zeros(2, encoder.contract.in_channels, *encoder.contract.size))
    assert all(torch.isfinite(feature).all() for feature in features)


@pytest.mark.parametrize("method", SHIPPED)
def test_no_held_out_patient_was_seen(method: str) -> None:
    lists = json.loads(HOLDOUT.read_text("utf-8"))
    held_out = {name for listed in lists.values() if isinstance(listed, list) for name in listed}
    assert held_out <= set(read_encoder(method).meta["excluded"])


def test_a_shipped_encoder_stays_small_enough_to_ship() -> None:
    for entry in load_encoders():
        path = bundled_folder() / entry.file
        assert path.stat().st_size == entry.size_bytes < 25_000_000


def test_an_encoder_that_is_not_shipped_is_named_with_those_that_are() -> None:
    with pytest.raises(ModelError, match="no shipped encoder 'dino'; shipped are"):
        read_encoder("dino")


def test_a_changed_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = load_encoders()[0]
    write_registry(tmp_path / "registry.json", (), [entry])
    (tmp_path / entry.file).write_bytes(b"other weights")
    monkeypatch.setattr("medssl.registry.bundled_folder", lambda: tmp_path)
    with pytest.raises(ModelError, match="is not the shipped encoder"):
        shipped_encoder(entry.method)
    refresh_bundled(tmp_path / "registry.json")
    assert shipped_encoder(entry.method) == tmp_path / entry.file
