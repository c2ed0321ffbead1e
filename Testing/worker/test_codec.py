from __future__ import annotations

import io
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

import numpy as np
import pytest
from medssl.cases import Vouched
from medssl.errors import InputError, ProtocolError
from medssl.events import Log, Progress
from medssl.messages import (
    MESSAGES,
    AddCase,
    AdoptRun,
    Cancel,
    DeleteModel,
    EstimateRun,
    Expect,
    ExportModel,
    Failed,
    Finished,
    Forget,
    Hello,
    ImportModel,
    Info,
    ListCases,
    ListEncoders,
    ListMethods,
    ListModels,
    ListRuns,
    Predict,
    PredictVolume,
    Propagate,
    PutVolume,
    ReadRun,
    Refine,
    RemoveCase,
    RestoreCase,
    ResumeRun,
    SegmentVolume,
    Shutdown,
    StartRun,
    StopRun,
    UpdateCase,
    UseModel,
    VolumePart,
    Welcome,
    WorkerInfo,
    from_frame,
    to_frame,
)
from medssl.prompts import Reference, SlicePrompt
from medssl.results import SliceMask, UncertaintyMap
from medssl.segmentation import Segment
from medssl.wire.codec import (
    PackedLabels,
    PackedMask,
    decode_labels,
    decode_mask,
    encode_labels,
    encode_mask,
    from_plain,
    to_plain,
)
from medssl.wire.framing import Frame, read_frame, write_frame

MASK = np.zeros((6, 9), bool)
MASK[2:4, 3:8] = True
CLICKS = SlicePrompt(
    1, 2, np.array([[1.5, 2.0], [4.0, 5.0]], np.float32), np.array([1, 0], np.int32), mask=MASK, choice=2
)
BOX = SlicePrompt(2, 0, box_xyxy_px=np.array([1, 2, 3, 4], np.float32))
LABELS = encode_labels(np.pad(np.array([[[1, 0], [2, 1]]], np.uint8), 1))
LIVER = (Segment("liver", 1, (0.5, 0.25, 0.0)),)
VOUCHED = (Vouched("liver", 0, (1,)), Vouched("liver", 2, (3, 1), "propagated"))
EXAMPLES = [
    Hello(),
    Info(),
    PutVolume("abc", (2, 3, 4), "int16", np.eye(4)),
    VolumePart("abc", 1, np.arange(12, dtype=np.int16).reshape(1, 3, 4)),
    Forget("abc"),
    Propagate("abc", (Reference("liver", CLICKS), Reference("spleen", BOX)), {"axis": 1}, "nano", "cpu"),
    Predict("abc", "liver", CLICKS, (40.0, 400.0), "nano"),
    Predict("abc", "liver", BOX),
    Expect("abc", 1, 7, (40.0, 400.0), "nano", "cpu"),
    Expect("abc", 1, 2, None, "nano", "cpu", CLICKS),
    Refine("abc", "liver", np.stack([MASK, ~MASK])),
    PredictVolume("abc", "liver:3", "models", 7, "dropout", True, "cpu"),
    SegmentVolume("abc", "liver", "", {"references": 2}, LABELS, LIVER, {"liver": (1, 2)}, "nano", "nano"),
    SegmentVolume("abc", "liver"),
    ListCases("store"),
    AddCase("abc", LABELS, LIVER, VOUCHED, "store", "Case 1", "p1", {"liver": "SCT^10200004^Liver"}),
    UpdateCase("case-1", LABELS, LIVER, VOUCHED),
    RemoveCase("case-1"),
    RestoreCase("case-1-123"),
    StartRun("finetune", {"segments": ["liver"], "minutes": 2.0, "encoder": None}),
    ListRuns(),
    ReadRun("runs/a", 4, 100),
    EstimateRun({"method": "mae", "data": "scans", "minutes": 60.0}),
    StopRun("runs/a"),
    ResumeRun("runs/a"),
    AdoptRun("runs/a", "liver"),
    ListModels(),
    UseModel("liver:1"),
    DeleteModel("liver:1"),
    ExportModel("liver", "liver.safetensors"),
    ImportModel("liver.safetensors", "liver"),
    ListEncoders(),
    ListMethods(),
    Cancel(4),
    Shutdown(),
    Welcome("0.1.0", 99, ("abc",)),
    WorkerInfo(99, "cpu", ("nano",), (), 10**9, None, False),
    Progress(1, 2, None, "Loading"),
    Progress(1, 2, 3.5),
    Log("Stopped at slice 4."),
    SliceMask("liver", 0, 5, MASK, 0.75, True, "refined"),
    UncertaintyMap.of(0, 5, np.pad(np.array([[0.5, 0.0], [0.25, 1.0]], np.float32), 2)),
    Finished(1.5, {"dice": [0.5, 1], "note": None, "masks": [{"largest": MASK}], "hist": np.arange(3)}),
    Failed("InputError", "The annotation is empty."),
]


def assert_same(left: Any, right: Any) -> None:
    assert type(left) is type(right)
    if is_dataclass(left):
        for field in fields(left):
            assert_same(getattr(left, field.name), getattr(right, field.name))
    elif isinstance(left, np.ndarray):
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)
    elif isinstance(left, dict):
        assert list(left) == list(right)
        assert_same(tuple(left.values()), tuple(right.values()))
    elif isinstance(left, (tuple, list)):
        assert len(left) == len(right)
        for a, b in zip(left, right, strict=True):
            assert_same(a, b)
    else:
        assert left == right


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: type(m).__name__)
def test_every_message_comes_back_from_the_pipe_as_it_was(message: Any) -> None:
    stream = io.BytesIO()
    write_frame(stream, to_frame(3, message))
    stream.seek(0)
    frame = read_frame(stream)
    assert frame is not None
    assert frame.request_id == 3
    assert_same(from_frame(frame), message)


def test_there_is_an_example_of_every_message() -> None:
    assert {type(message) for message in EXAMPLES} == set(MESSAGES.values())


def test_a_slice_mask_costs_the_bits_of_its_box_and_no_more() -> None:
    mask = np.zeros((512, 512), bool)
    mask[100:180, 200:264] = True
    (bits,) = to_frame(1, SliceMask("liver", 0, 5, mask, 1.0)).arrays.values()
    assert bits.nbytes == 80 * 64 / 8


@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5), (16, 16), (4, 5, 6)])
@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 1.0])
def test_masks_survive_packing(shape: tuple[int, ...], density: float) -> None:
    mask = np.random.default_rng(1).random(shape) < density
    np.testing.assert_array_equal(decode_mask(encode_mask(mask)), mask)


@pytest.mark.parametrize("shape", [(7,), (3, 5), (4, 5, 6)])
@pytest.mark.parametrize("density", [0.0, 0.02, 1.0])
def test_label_maps_survive_packing(shape: tuple[int, ...], density: float) -> None:
    labels = (np.random.default_rng(1).random(shape) < density).astype(np.uint16) * 300
    back = decode_labels(encode_labels(labels))
    assert back.dtype == np.uint16
    np.testing.assert_array_equal(back, labels)


def test_a_label_map_costs_the_box_of_what_is_drawn_and_no_more() -> None:
    labels = np.zeros((60, 512, 512), np.uint8)
    labels[30, 100:180, 200:264] = 1
    assert encode_labels(labels).box.nbytes == 80 * 64


@pytest.mark.parametrize(
    "packed",
    [
        PackedLabels((4, 4), (0, 0), np.zeros((5, 4), np.uint8)),
        PackedLabels((4, 4), (-1, 0), np.zeros((2, 2), np.uint8)),
        PackedLabels((4, 4), (3, 0), np.zeros((2, 2), np.uint8)),
        PackedLabels((4, 4), (0,), np.zeros((2, 2), np.uint8)),
        PackedLabels((10**6, 10**6), (0, 0), np.zeros((0, 0), np.uint8)),
    ],
)
def test_a_label_map_whose_box_does_not_fit_is_refused(packed: PackedLabels) -> None:
    with pytest.raises(ProtocolError, match="A label map of shape"):
        decode_labels(packed)


def test_an_uncertainty_map_is_its_slice_in_255_steps_and_costs_its_box() -> None:
    uncertainty = np.zeros((40, 50), np.float32)
    uncertainty[3:6, 8:10] = 0.5
    found = UncertaintyMap.of(0, 5, uncertainty)
    assert found.levels.nbytes == 6
    np.testing.assert_array_equal(found.whole(), np.rint(255 * uncertainty))
    assert not UncertaintyMap.of(0, 5, 0 * uncertainty).whole().any()


def test_an_empty_mask_is_packed_into_nothing() -> None:
    packed = encode_mask(np.zeros((40, 50), bool))
    assert packed.bits.size == 0
    assert not decode_mask(packed).any()


@pytest.mark.parametrize(
    "packed",
    [
        PackedMask((4, 4), (0, 0), (5, 4), np.zeros(3, np.uint8)),
        PackedMask((4, 4), (-1, 0), (2, 4), np.zeros(2, np.uint8)),
        PackedMask((4, 4), (3, 0), (2, 4), np.zeros(0, np.uint8)),
        PackedMask((4, 4), (0,), (4,), np.zeros(2, np.uint8)),
        PackedMask((4, 4), (0, 0), (4, 4), np.zeros(3, np.uint8)),
        PackedMask((10**6, 10**6), (0, 0), (0, 0), np.zeros(0, np.uint8)),
    ],
)
def test_a_mask_whose_box_or_bits_do_not_fit_is_refused(packed: PackedMask) -> None:
    with pytest.raises(ProtocolError, match="A mask of"):
        decode_mask(packed)


@pytest.mark.parametrize(
    ("frame", "complaint"),
    [
        (Frame("dance", 1), "no message 'dance'"),
        (Frame("cancel", 1), "came without its field 'request_id'"),
        (Frame("cancel", 1, {"request_id": 1, "force": True}), "no field 'force'"),
        (Frame("cancel", 1, {"request_id": "1"}), "'cancel.request_id' should be of type int"),
        (Frame("cancel", 1, {"request_id": True}), "should be of type int"),
        (Frame("progress", 1, {"done": 1, "total": 2, "seconds_left": "soon"}), "seconds_left"),
        (Frame("welcome", 1, {"version": "1", "pid": 1, "volumes": [1]}), r"welcome\.volumes\.0"),
        (
            Frame("volume_part", 1, {"content_hash": "a", "first": 0, "slices_kji": {"$array": "x"}}),
            "slices_kji",
        ),
        (Frame("put_volume", 1, {"content_hash": "a", "shape_kji": [1, 2]}), "shape_kji"),
        (Frame("put_volume", 1, {"content_hash": "a", "dtype": "object"}), "dtype"),
    ],
)
def test_a_message_of_the_wrong_form_is_refused_and_says_where(frame: Frame, complaint: str) -> None:
    with pytest.raises(ProtocolError, match=complaint):
        from_frame(frame)


def test_an_impossible_prompt_keeps_its_own_error() -> None:
    plain, arrays = to_plain(Predict("abc", "liver", BOX))
    arrays["prompt.box_xyxy_px"] = np.array([3, 4, 1, 2], np.float32)
    with pytest.raises(InputError, match="is empty; give first and last corner"):
        from_frame(Frame("predict", 1, plain, arrays))


def test_what_is_not_a_message_cannot_be_sent() -> None:
    with pytest.raises(TypeError, match="int is not a message"):
        to_frame(1, 5)
    with pytest.raises(TypeError, match=r"summary\.x holds a set"):
        to_frame(1, Finished(0.0, {"x": {1, 2}}))


@dataclass(frozen=True)
class Inner:
    level: float


@dataclass(frozen=True)
class Options:
    window: Inner | None = None
    direction: Literal["both", "higher"] = "both"
    slices: tuple[int, ...] | str = "all"


def test_options_are_made_from_plain_values_with_their_nested_types() -> None:
    made = from_plain(Options, to_plain(Options(Inner(3.0), "higher", (1, 2)))[0], "Options")
    assert made == Options(Inner(3.0), "higher", (1, 2))
    assert from_plain(Options, {"slices": "all"}, "Options") == Options()
    with pytest.raises(ProtocolError, match=r"'Options\.direction'"):
        from_plain(Options, {"direction": "up"}, "Options")
    with pytest.raises(ProtocolError, match="'Options' has no field 'windows'; it knows window, direction"):
        from_plain(Options, {"windows": None}, "Options")
