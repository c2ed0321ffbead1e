"""Slices are encoded once, ahead of the click where there is time, and never while something else is wanted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from medssl.foundation.protocols import EncodedImage, Prediction
from medssl.messages import Expect, Hello, Message, Predict
from medssl.prompts import SlicePrompt
from medssl.serving.engine import EngineBackend
from medssl.serving.images import ImageKeeper, OwnImage, Spot, spots_ahead
from medssl.volume import Volume, Window

WINDOW = Window(40, 400)
LAYERS = 4
BOX = SlicePrompt(0, 0, box_xyxy_px=np.array([1, 1, 3, 3], np.float32))


class CountingPredictor:
    """Knows only how often it had to encode a slice."""

    def __init__(self) -> None:
        self.encoded_count = 0
        self.shape: tuple[int, ...] = ()

    def set_image(self, slice_hu: np.ndarray, window: Window, spacing_rc_mm: tuple[float, float]) -> None:
        self.encoded_count += 1
        self.shape = slice_hu.shape

    def predict(self, prompt: SlicePrompt) -> Prediction:
        return Prediction(np.ones(self.shape, bool), 0.9, np.zeros((4, 4), np.float32))

    def predict_boxes(self, boxes_xyxy_px: np.ndarray, hint: np.ndarray | None = None) -> list[Prediction]:
        return [self.predict(SlicePrompt(0, 0, box_xyxy_px=box)) for box in boxes_xyxy_px]


class KeepingPredictor(CountingPredictor):
    """One whose encoded slices, of 100 bytes, can be kept; it encodes in a few layers."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = torch.nn.Sequential(*(torch.nn.Identity() for _ in range(LAYERS)))
        self.seen: list[int] = []

    def set_image(self, slice_hu: np.ndarray, window: Window, spacing_rc_mm: tuple[float, float]) -> None:
        self.encoder(torch.zeros(1))
        super().set_image(slice_hu, window, spacing_rc_mm)
        self.seen.append(int(slice_hu[0, 0]))

    def encoded(self) -> EncodedImage:
        return EncodedImage(self.shape, 100)

    def show(self, image: EncodedImage) -> None:
        self.shape = image.state


def never() -> bool:
    return False


def numbered(slices: int = 30) -> Volume:
    """Every slice holds its own number."""
    voxels = np.repeat(np.arange(slices, dtype=np.int16), 24 * 32).reshape(slices, 24, 32)
    return Volume(voxels, np.diag([2.0, 2.5, 3.0, 1.0]))


def spot(volume: Volume, index: int) -> Spot:
    return Spot(volume.content_hash, 0, index, WINDOW)


def test_a_slice_is_encoded_for_its_first_click_only(volume: Volume) -> None:
    predictor = CountingPredictor()
    keeper = ImageKeeper(predictor)
    keeper.show(volume, 0, 4, WINDOW)
    keeper.show(volume, 0, 4, WINDOW)
    assert predictor.encoded_count == 1
    for axis, index, window in ((0, 5, WINDOW), (1, 5, WINDOW), (1, 5, Window(0, 1))):
        keeper.show(volume, axis, index, window)
    assert predictor.encoded_count == 4


def test_a_slice_is_encoded_anew_after_other_work_or_after_its_volume_was_forgotten(volume: Volume) -> None:
    predictor = CountingPredictor()
    keeper = ImageKeeper(predictor)
    keeper.show(volume, 0, 4, WINDOW)
    keeper.set_image(volume.voxels_kji[7], WINDOW, (1.0, 1.0))
    keeper.show(volume, 0, 4, WINDOW)
    assert predictor.encoded_count == 3
    keeper.forget("another volume")
    keeper.show(volume, 0, 4, WINDOW)
    assert predictor.encoded_count == 3
    keeper.forget(volume.content_hash)
    keeper.show(volume, 0, 4, WINDOW)
    assert predictor.encoded_count == 4


def test_long_work_finds_its_slice_shown_again_after_a_click_on_another(volume: Volume) -> None:
    predictor = CountingPredictor()
    keeper = ImageKeeper(predictor)
    own = OwnImage(keeper)
    box = np.array([[1, 1, 3, 3]], np.float32)
    own.set_image(volume.voxels_kji[7], WINDOW, (1.0, 1.0))
    own.predict_boxes(box)
    own.predict_boxes(box)
    assert predictor.encoded_count == 1
    keeper.show(volume, 1, 4, WINDOW)
    assert own.predict_boxes(box)[0].mask.shape == volume.voxels_kji[7].shape
    assert predictor.encoded_count == 3


def test_a_slice_that_was_encoded_is_shown_again_at_once(volume: Volume) -> None:
    predictor = KeepingPredictor()
    keeper = ImageKeeper(predictor)
    for axis, index in ((0, 4), (1, 5), (0, 4), (1, 5)):
        keeper.show(volume, axis, index, WINDOW)
        assert keeper.predict(BOX).mask.shape == volume.voxels_kji.take(index, axis).shape
    assert predictor.encoded_count == 2
    keeper.forget(volume.content_hash)
    assert not keeper.holds(spot(volume, 4))
    keeper.show(volume, 0, 4, WINDOW)
    assert predictor.encoded_count == 3


def test_encoded_slices_stay_within_their_budget_and_the_ones_used_last_are_kept(volume: Volume) -> None:
    keeper = ImageKeeper(KeepingPredictor(), budget_bytes=350)
    for index in (1, 2, 3, 1, 4, 5):
        keeper.show(volume, 0, index, WINDOW)
    assert [index for index in range(8) if keeper.holds(spot(volume, index))] == [1, 4, 5]


def test_long_work_goes_on_after_a_click_without_encoding_its_slice_again(volume: Volume) -> None:
    predictor = KeepingPredictor()
    keeper = ImageKeeper(predictor)
    own = OwnImage(keeper)
    own.set_image(volume.voxels_kji[7], WINDOW, (1.0, 1.0))
    keeper.show(volume, 1, 4, WINDOW)
    box = np.array([[1, 1, 3, 3]], np.float32)
    assert own.predict_boxes(box)[0].mask.shape == volume.voxels_kji[7].shape
    assert predictor.encoded_count == 2


def test_what_comes_in_stops_encoding_between_two_layers(volume: Volume) -> None:
    predictor = KeepingPredictor()
    keeper = ImageKeeper(predictor)
    keeper.show(volume, 0, 3, WINDOW)
    answers = iter([False, False, True])
    assert not keeper.encode_ahead(volume, spot(volume, 4), lambda: next(answers))
    assert not keeper.holds(spot(volume, 4))
    assert keeper.encode_ahead(volume, spot(volume, 4), never)
    keeper.show(volume, 0, 3, WINDOW)
    assert predictor.encoded_count == 2


@pytest.mark.parametrize(
    ("index", "step", "indices"),
    [
        (10, 1, [10, 11, 12, 9, 13, 14, 8, 15, 16, 7]),
        (10, -1, [10, 9, 8, 11, 7, 6, 12, 5, 4, 13]),
        (1, -1, [1, 0, 2, 3, 4]),
        (18, 1, [18, 19, 17, 16, 15]),
    ],
)
def test_the_slices_a_person_scrolls_to_come_first(
    volume: Volume, index: int, step: int, indices: list[int]
) -> None:
    assert [near.index for near in spots_ahead(spot(volume, index), 20, step)] == indices


def an_engine(predictor: CountingPredictor) -> EngineBackend:
    return EngineBackend(load_image_predictor=lambda model, device: predictor)


def expect(volume: Volume, index: int) -> Expect:
    return Expect(volume.content_hash, 0, index, (40, 400), "sam-vit-b", "cpu")


def test_neighbours_are_encoded_on_the_side_the_person_scrolls_to() -> None:
    predictor, volume = KeepingPredictor(), numbered()
    engine = an_engine(predictor)
    list(engine.encode_ahead(volume, expect(volume, 20), list))
    predictor.seen.clear()
    list(engine.encode_ahead(volume, expect(volume, 10), list))
    assert predictor.seen == [10, 9, 8, 11, 7, 6, 12, 5, 4, 13]
    predictor.seen.clear()
    list(engine.encode_ahead(volume, expect(volume, 9), list))
    assert predictor.seen == [3]


def test_a_click_says_whether_its_slice_was_encoded_before(click: SlicePrompt) -> None:
    volume = numbered()
    engine = an_engine(KeepingPredictor())
    request = Predict(volume.content_hash, "", click, (40, 400), "sam-vit-b", "cpu")
    assert [engine.predict(volume, request)[1]["encoded"] for _ in range(2)] == [False, True]


def test_whatever_is_asked_stops_encoding_ahead_unless_it_is_about_the_same_slice(click: SlicePrompt) -> None:
    volume = numbered()

    def first_encoded(asked: Message) -> list[int]:
        predictor = KeepingPredictor()
        next(an_engine(predictor).encode_ahead(volume, expect(volume, click.index), lambda: [asked]))
        return predictor.seen

    same = Predict(volume.content_hash, "", click, None, "sam-vit-b", "cpu")
    assert first_encoded(same) == [click.index]
    assert first_encoded(expect(volume, click.index)) == [click.index]
    for other in (Hello(), expect(volume, click.index + 1), Predict("another", "", click, None, "sam-vit-b")):
        assert first_encoded(other) == []


def test_nothing_is_encoded_ahead_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    volume, predictor = numbered(), KeepingPredictor()
    engine = an_engine(predictor)
    left = iter([10**11, 10**11, 10**11, 10**6])
    monkeypatch.setattr(engine, "bytes_available", lambda device: next(left))
    list(engine.encode_ahead(volume, expect(volume, 5), list))
    assert predictor.seen == [5, 6]


def test_no_model_is_loaded_ahead_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, volume = an_engine(KeepingPredictor()), numbered()
    monkeypatch.setattr(engine, "bytes_available", lambda device: 10**6)
    assert list(engine.encode_ahead(volume, expect(volume, 5), list)) == []
    assert engine.models == ()


def test_a_model_that_encodes_nothing_has_nothing_to_do_ahead() -> None:
    volume, predictor = numbered(), CountingPredictor()
    assert list(an_engine(predictor).encode_ahead(volume, expect(volume, 5), list)) == []
    assert predictor.encoded_count == 0


class AnsweringPredictor(CountingPredictor):
    """One that answers in a few layers, which takes it long."""

    def __init__(self) -> None:
        super().__init__()
        self.network = torch.nn.Sequential(*(torch.nn.Identity() for _ in range(LAYERS)))
        self.answered: list[SlicePrompt] = []

    def predict(self, prompt: SlicePrompt) -> Prediction:
        self.network(torch.zeros(1))
        self.answered.append(prompt)
        return super().predict(prompt)


def point(column: float, index: int = 5) -> SlicePrompt:
    return SlicePrompt(0, index, np.array([[column, 7.0]], np.float32), np.array([1], np.int32))


def hover(volume: Volume, prompt: SlicePrompt) -> Expect:
    return replace(expect(volume, prompt.index), prompt=prompt)


def click_at(volume: Volume, prompt: SlicePrompt, model: str = "sam-vit-b") -> Predict:
    return Predict(volume.content_hash, "liver", prompt, (40, 400), model, "cpu")


@pytest.mark.parametrize("kind", [CountingPredictor, KeepingPredictor, AnsweringPredictor])
def test_a_click_where_the_mouse_has_rested_was_answered_before(kind: type[CountingPredictor]) -> None:
    predictor, volume = kind(), numbered()
    engine = an_engine(predictor)
    list(engine.encode_ahead(volume, hover(volume, point(4.0)), list))
    expected = predictor.predict(point(4.0))
    mask, facts = engine.predict(volume, click_at(volume, point(4.0001)))
    assert facts == {"encoded": True, "foreseen": True}
    np.testing.assert_array_equal(mask.mask, expected.mask)
    assert (mask.segment, mask.axis, mask.index, mask.confidence) == ("liver", 0, 5, 0.9)


def test_any_other_click_is_answered_for_itself() -> None:
    predictor, volume = AnsweringPredictor(), numbered()
    engine = an_engine(predictor)
    list(engine.encode_ahead(volume, hover(volume, point(4.0)), list))
    off = replace(point(4.0), point_labels=np.array([0], np.int32))
    boxed = replace(point(4.0), box_xyxy_px=np.array([1, 1, 9, 9], np.float32))
    another = replace(point(4.0), choice=1)
    others = [
        click_at(volume, prompt) for prompt in (point(4.5), point(4.0, index=6), off, boxed, another)
    ] + [click_at(volume, point(4.0), "sam-vit-l")]
    for number, asked in enumerate(others):
        assert not engine.predict(volume, asked)[1]["foreseen"]
        assert len(predictor.answered) == 2 + number
    engine.forget(volume.content_hash)
    assert not engine.predict(volume, click_at(volume, point(4.0)))[1]["foreseen"]


def test_the_click_that_is_being_answered_ahead_waits_for_that_and_anything_else_stops_it() -> None:
    volume = numbered()

    def answered(asked: Message) -> int:
        predictor = AnsweringPredictor()
        next(an_engine(predictor).encode_ahead(volume, hover(volume, point(4.0)), lambda: [asked]))
        return len(predictor.answered)

    assert answered(click_at(volume, point(4.0))) == 1
    for other in (Hello(), hover(volume, point(4.0)), expect(volume, 5), click_at(volume, point(9.0))):
        assert answered(other) == 0
