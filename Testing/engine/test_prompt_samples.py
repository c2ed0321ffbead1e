from __future__ import annotations

import numpy as np
import pytest
import torch
from medssl.errors import InputError
from medssl.tracker.clips import LabelledVolume, ObjectChooser
from medssl.tracker.prompt_samples import PromptBatch, PromptSampler

SHAPE_KJI = (6, 300, 300)
SPACING_KJI_MM = (2.0, 1.0, 1.0)
SIZE = 64
DISC, PAIR = 1, 2


def labels() -> np.ndarray:
    """A disc of 60 mm across, and a pair of small discs 80 mm apart."""
    _, j, i = np.ogrid[:6, :300, :300]
    drawn = np.zeros(SHAPE_KJI, np.uint8)
    drawn[np.broadcast_to((j - 110) ** 2 + (i - 120) ** 2 <= 30**2, SHAPE_KJI)] = DISC
    for column in (140, 220):
        drawn[np.broadcast_to((j - 220) ** 2 + (i - column) ** 2 <= 12**2, SHAPE_KJI)] = PAIR
    return drawn


def a_sampler(label: int = DISC) -> PromptSampler:
    truth = (labels() == label).astype(np.uint8)
    volume = LabelledVolume(truth.astype(np.int16) * 1000, truth, SPACING_KJI_MM)
    for key in [key for key in volume.outlines if key[1] != 0]:
        del volume.outlines[key]
    return PromptSampler(ObjectChooser([(1.0, [volume])], on_single_slices=True), [], 0.0, SIZE)


def draw(count: int, label: int = DISC) -> PromptBatch:
    return a_sampler(label).batch(np.random.default_rng(0), count)


def clicked(batch: PromptBatch) -> torch.Tensor:
    return (batch.labels[:, 0] == 1) & ~batch.hinted


def boxed(batch: PromptBatch) -> torch.Tensor:
    return (batch.labels[:, 0] == 2) & ~batch.hinted


def test_the_same_seed_draws_the_same_samples() -> None:
    for name in ("image_hu", "mask", "area", "points_xy_px", "labels", "hinted"):
        assert torch.equal(getattr(draw(6), name), getattr(draw(6), name))


def test_masks_lie_on_the_grid_of_their_images() -> None:
    batch = draw(40)

    for image, mask in zip(batch.image_hu, batch.mask, strict=True):
        inside, outside = image[mask > 0.9], image[mask < 0.1]
        assert outside.numel() == 0 or abs(float(inside.mean() - outside.mean())) > 700


def test_a_click_is_in_the_middle_of_its_crop_and_on_its_object() -> None:
    batch = draw(60)

    rows = torch.flatten(clicked(batch).nonzero()).tolist()
    assert len(rows) > 20
    for row in rows:
        assert batch.points_xy_px[row, 0].tolist() == [SIZE / 2, SIZE / 2]
        assert batch.labels[row].tolist() == [1, -1, -1]
        middle = batch.mask[row, 0, SIZE // 2 - 2 : SIZE // 2 + 2, SIZE // 2 - 2 : SIZE // 2 + 2]
        assert float(middle.max()) > 0.5


def test_clicks_are_learned_on_crops_from_small_to_large() -> None:
    batch = draw(200)
    diameter_px = 2 * (batch.area[clicked(batch)] / np.pi).sqrt()  # of the whole disc, 60 mm across
    side_mm = 60.0 / diameter_px * SIZE

    for side in (50.0, 100.0, 200.0, 400.0):
        near = (side_mm / side).log().abs() < np.log(1.4)
        assert int(near.sum()) > 5, side


def test_an_area_counts_what_lies_outside_the_crop_too() -> None:
    batch = draw(120)
    seen = batch.mask.sum((1, 2, 3))

    cut_off = clicked(batch) & (batch.area > 1.5 * seen)
    whole = boxed(batch)
    assert int(cut_off.sum()) > 3, "in a crop of 50 mm"
    assert torch.allclose(batch.area[whole], seen[whole], rtol=0.1)


def test_a_box_goes_round_all_parts_of_its_object() -> None:
    batch = draw(80, PAIR)

    assert int(boxed(batch).sum()) > 5
    for row in torch.flatten(boxed(batch).nonzero()).tolist():
        (left, top), (right, bottom) = batch.points_xy_px[row, :2].tolist()
        across = (batch.mask[row, 0] > 0.5).any(0).nonzero().flatten()
        down = (batch.mask[row, 0] > 0.5).any(1).nonzero().flatten()
        slack = 0.2 * max(right - left, bottom - top)
        assert abs(left - int(across[0])) < slack
        assert abs(right - 1 - int(across[-1])) < slack
        assert abs(top - int(down[0])) < slack
        assert abs(bottom - 1 - int(down[-1])) < slack


def test_boxes_are_learned_tight_and_as_loose_as_people_draw_them() -> None:
    batch = draw(120)

    wider, crops = [], []
    for row in torch.flatten(boxed(batch).nonzero()).tolist():
        left, right = batch.points_xy_px[row, :2, 0].tolist()
        across = (batch.mask[row, 0] > 0.5).any(0).nonzero().flatten()
        wider.append((right - left) / float(across[-1] + 1 - across[0]) - 1.0)
        crops.append(SIZE / (right - left))
    loose = np.array(wider) > 0.12
    assert 0.2 < max(wider) < 0.35
    assert 0.2 < loose.mean() < 0.6
    for of_kind in (np.array(crops)[loose], np.array(crops)[~loose]):
        assert np.mean(of_kind) == pytest.approx(2.0, rel=0.1), (
            "a crop is twice as large as its box, loose or not"
        )


def test_a_slice_of_a_few_thin_rows_is_no_obstacle() -> None:
    truth = np.zeros((6, 2, 300), np.uint8)
    truth[:, :, 100:160] = 1
    volume = LabelledVolume(truth.astype(np.int16) * 1000, truth, SPACING_KJI_MM)
    sampler = PromptSampler(ObjectChooser([(1.0, [volume])], on_single_slices=True), [], 0.0, SIZE)

    batch = sampler.batch(np.random.default_rng(0), 20)

    assert bool(batch.image_hu.isfinite().all())


def test_pseudo_objects_are_asked_for_where_there_are_no_labels() -> None:
    image = np.zeros((6, 80, 80), np.int16)
    image[:, 20:60, 20:60] = 100
    unlabelled = LabelledVolume(image, None, SPACING_KJI_MM)
    sampler = PromptSampler(ObjectChooser([]), [unlabelled], 0.15, SIZE)

    batch = sampler.batch(np.random.default_rng(0), 8)

    assert batch.image_hu.shape == batch.mask.shape == (8, 1, SIZE, SIZE)
    assert bool((batch.mask.sum((1, 2, 3)) >= 12).all())


def test_volumes_that_hold_nothing_to_ask_for_are_one_clear_error() -> None:
    tiny = LabelledVolume(np.zeros((1, 3, 3), np.int16), None, SPACING_KJI_MM)

    with pytest.raises(InputError, match="No object was found"):
        PromptSampler(ObjectChooser([]), [tiny], 1.0, SIZE).draw(np.random.default_rng(0))
