"""Trained models through the real worker: kept, used for whole volumes, and the pipeline that starts from them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from medssl.client import LocalCommand, WorkerClient
from medssl.datasets.input_contract import InputContract
from medssl.errors import InputError, ModelError
from medssl.events import Progress
from medssl.few_labels.model_store import ModelStore
from medssl.few_labels.segmenter import ModelInfo, SegmentationModel, read_model, write_model
from medssl.inference import predict_volume
from medssl.phantom import Phantom, phantom_ct
from medssl.registry import load_encoders
from medssl.results import SliceMask, UncertaintyMap
from medssl.segmentation import Segment
from medssl.serving.trained import TrainedModels
from medssl.volume import Volume, put_slice

INTENSITY_WORKER = Path(__file__).with_name("intensity_worker.py")
PATIENCE_S = 240.0
SEGMENTS = (Segment("liver", 1, (0.5, 0.25, 0.0)), Segment("bone", 3, (1.0, 1.0, 0.5)))


@dataclass(frozen=True, kw_only=True)
class IntensityCommand(LocalCommand):
    """Starts the real worker and engine with promptable models that need no weights."""

    def argv(self) -> list[str]:
        return [sys.executable, str(INTENSITY_WORKER)]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerClient]:
    with WorkerClient(IntensityCommand()) as running:
        yield running


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return phantom_ct(seed=3, shape_kji=(10, 40, 40), spacing_kji_mm=(25.0, 10.0, 10.0))


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with random weights that nevertheless finds both segments somewhere."""
    torch.manual_seed(5)
    contract = InputContract(size=(32, 32), spacing_kji_mm=(None, 12.0, 12.0))
    model = SegmentationModel.build(
        ModelInfo(backbone="unet2d_4", contract=contract, segments=SEGMENTS, dice={"liver": 0.5})
    )
    with torch.no_grad():
        model.network.head.weight *= 20.0
    path = tmp_path_factory.mktemp("trained") / "tiny.safetensors"
    write_model(path, model)
    return path


def labels_of(volume: Volume, events: list[object]) -> np.ndarray:
    """The label map that the streamed masks make, and a check that each came once."""
    labels = np.zeros(volume.shape_kji, np.uint8)
    seen = [(e.segment, e.index) for e in events if isinstance(e, SliceMask)]
    assert len(seen) == len(set(seen))
    for event in events:
        if isinstance(event, SliceMask):
            (label,) = (s.label for s in SEGMENTS if s.name == event.segment)
            at = np.take(labels, event.index, event.axis)
            put_slice(labels, event.axis, event.index, np.where(event.mask, label, at))
    return labels


def test_a_volume_is_predicted_from_the_slice_looked_at_outwards(
    client: WorkerClient, phantom: Phantom, model_path: Path
) -> None:
    volume = phantom.volume
    ticket = client.predict_volume(volume, str(model_path), start=7, maps=True, device="cpu")
    events = list(ticket.events())
    expected = predict_volume(read_model(model_path), volume, device="cpu")
    np.testing.assert_array_equal(labels_of(volume, events), expected.segmentation.labels_kji)
    assert expected.segmentation.mask("bone").any()

    masks = [event for event in events if isinstance(event, SliceMask)]
    assert len(masks) == 2 * volume.shape_kji[0]
    assert masks[0].index == 7
    assert any(isinstance(event, Progress) and event.seconds_left is not None for event in events)
    for event in events:
        if isinstance(event, UncertaintyMap):
            np.testing.assert_allclose(
                event.whole(),
                255 * np.take(expected.uncertainty, event.index, event.axis),
                rtol=0,
                atol=0.501,
            )
    assert [segment["name"] for segment in ticket.result().summary["segments"]] == ["liver", "bone"]
    assert str(model_path) in client.info().result(PATIENCE_S).models


def test_memory_is_told_for_the_volume_the_network_and_the_stages(model_path: Path, phantom: Phantom) -> None:
    """Twice the slices hold twice the voxels; a volume of whatever size is shown to the network in parts."""
    models, (k, j, i) = TrainedModels(), (100, 300, 300)
    small = Volume(
        np.pad(phantom.volume.voxels_kji, ((0, k - 10), (0, j - 40), (0, i - 40))), np.diag([12, 12, 3, 1.0])
    )
    large = Volume(np.concatenate([small.voxels_kji] * 2), small.ijk_to_ras)

    def need(volume: Volume, **more: bool) -> int:
        return models.bytes_needed(str(model_path), "", volume, **more)

    values = len(SEGMENTS) + 1 + 2  # probabilities, and the image
    assert need(large) - need(small) == 4 * values * k * j * i
    assert need(small, stages=True) - need(small) == 30 * k * j * i
    weights = model_path.stat().st_size
    at_work = (1 << 23) * 310 * (weights / 1e6) ** 0.5
    assert need(large, on_gpu=True) == pytest.approx(2 * weights + at_work, rel=1e-6)


def test_models_are_kept_by_version_used_and_written_out(
    client: WorkerClient, phantom: Phantom, model_path: Path, tmp_path: Path
) -> None:
    store, out = str(tmp_path / "models"), tmp_path / "out.safetensors"
    for _ in range(2):
        client.import_model(str(model_path), "tiny", store=store).result(PATIENCE_S)
    (model,) = client.list_models(store).result(PATIENCE_S).summary["models"]
    assert (model["name"], model["in_use"], len(model["versions"])) == ("tiny", 2, 2)
    assert model["versions"][0]["dice"] == {"liver": 0.5}

    used = client.use_model("tiny:1", store=store).result(PATIENCE_S).summary["version"]
    assert used["id"] == "tiny:1"
    client.export_model("tiny", str(out), store=store).result(PATIENCE_S)
    assert out.read_bytes() == model_path.read_bytes()
    client.delete_model("tiny:1", store=store).result(PATIENCE_S)
    assert ModelStore(store).find("tiny").number == 2
    with pytest.raises(InputError, match="no version 1"):
        client.predict_volume(phantom.volume, "tiny:1", store=store).result(PATIENCE_S)
    out.write_bytes(b"not a model")
    with pytest.raises(ModelError, match="damaged"):
        client.predict_volume(phantom.volume, str(out)).result(PATIENCE_S)


def test_the_pipeline_streams_every_stage_and_says_what_to_annotate_next(
    client: WorkerClient, phantom: Phantom, model_path: Path
) -> None:
    options = {"references": 1, "segments": ["bone"], "uncertainty": "off", "sharpen": False}
    ticket = client.segment_volume(phantom.volume, str(model_path), options, device="cpu")
    events = list(ticket.events())
    stages = {event.stage for event in events if isinstance(event, SliceMask)}
    assert stages == {"coarse", "refined", "propagated", "final"}
    summary = ticket.result().summary
    assert summary["prompt"] == "prediction"
    assert len(summary["references"]["bone"]) == 1
    assert summary["confidence"]["bone"].shape == (phantom.volume.shape_kji[summary["axis"]],)
    assert {s["segment"] for s in summary["suggestions"]} == {"bone"}
    assert all(s["reason"] for s in summary["suggestions"])


def test_a_slice_known_to_be_without_a_segment_ends_up_empty_and_is_not_suggested(
    client: WorkerClient, phantom: Phantom, model_path: Path
) -> None:
    options = {"references": 1, "segments": ["bone"], "uncertainty": "off"}

    def finals(**known: dict[str, list[int]]) -> tuple[set[int], set[int]]:
        ticket = client.segment_volume(phantom.volume, str(model_path), options, device="cpu", **known)
        events = [event for event in ticket.events() if isinstance(event, SliceMask)]
        suggested = ticket.result(PATIENCE_S).summary["suggestions"]
        return {e.index for e in events if e.stage == "final"}, {s["index"] for s in suggested}

    before, suggested = finals()
    gone = [min(suggested & before)]
    after, then = finals(vouched={"bone": gone}, absent={"bone": gone})
    assert after == before - set(gone)
    assert not then & set(gone)


def test_methods_and_networks_are_listed_as_the_program_knows_them(client: WorkerClient) -> None:
    from medssl.backbones import BACKBONES
    from medssl.methods import METHODS

    listed = client.list_methods().result(PATIENCE_S).summary
    assert [method["name"] for method in listed["methods"]] == list(METHODS)
    assert [backbone["name"] for backbone in listed["backbones"]] == list(BACKBONES)
    assert all(method["advice"] and method["presets"]["cpu"]["backbone"] for method in listed["methods"])
    encoders = client.list_encoders().result(PATIENCE_S).summary
    assert encoders["problems"] == []
    shipped = [entry.method for entry in load_encoders()]
    assert [encoder["method"] for encoder in encoders["encoders"]][: len(shipped)] == shipped
