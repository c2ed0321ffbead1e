from __future__ import annotations

import numpy as np
import pytest
import torch
from medssl.errors import InputError
from medssl.tracker.clips import (
    ClipSampler,
    LabelledVolume,
    ObjectChooser,
    _choose_slices,
    _known_slices,
    pseudo_clip,
    synthesise_ct,
)
from scipy import ndimage

SHAPE_KJI = (20, 40, 44)
SPACING_KJI_MM = (3.0, 2.0, 2.0)
SIZE = 64


def labels() -> np.ndarray:
    """A ball, a rod that leaves the volume at both ends, and a speck too small to follow."""
    k, j, i = np.ogrid[:20, :40, :44]
    drawn = np.zeros(SHAPE_KJI, np.uint8)
    drawn[((k - 9) * 3) ** 2 + ((j - 14) * 2) ** 2 + ((i - 14) * 2) ** 2 <= 20**2] = 1
    drawn[np.broadcast_to(((j - 28) * 2) ** 2 + ((i - 32) * 2) ** 2 <= 10**2, SHAPE_KJI)] = 2
    drawn[3, 3, 40] = 3
    return drawn


def a_volume(labelled: bool = True, seed: int = 0) -> LabelledVolume:
    noise = np.random.default_rng(seed).normal(0, 120 if labelled else 1500, SHAPE_KJI)
    image = 90 * labels() + ndimage.gaussian_filter(noise, 1.5)
    return LabelledVolume(image.astype(np.int16), labels() if labelled else None, SPACING_KJI_MM)


def a_sampler(pseudo_share: float = 0.3) -> ClipSampler:
    return ClipSampler(ObjectChooser([(1.0, [a_volume()])]), [a_volume(labelled=False)], pseudo_share, SIZE)


def test_only_objects_that_can_be_followed_are_drawn() -> None:
    objects = a_volume().objects

    assert sorted(objects) == [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]
    for (label, axis), areas in objects.items():
        others = tuple(a for a in range(3) if a != axis)
        assert areas.tolist() == (labels() == label).sum(others).tolist()


def only(drawn: np.ndarray, axis: int, indices: list[int]) -> np.ndarray:
    """Labels on some slices only."""
    kept = np.zeros_like(drawn)
    where = (slice(None),) * axis + (indices,)
    kept[where] = drawn[where]
    return kept


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_single_slices_that_somebody_drew_teach_prompts_across_their_own_axis_and_no_tracking(
    axis: int,
) -> None:
    drawn = [9] if axis == 0 else [10, 14, 18]
    sparse = LabelledVolume(a_volume().image, only(labels(), axis, drawn), SPACING_KJI_MM)
    assert sparse.objects == {}
    assert {key[1] for key in sparse.outlines} == {axis}
    known = sparse.outlines[1, axis]
    assert np.flatnonzero(known >= 0).tolist() == drawn
    assert np.all(known[drawn] == a_volume().objects[1, axis][drawn])


def test_slices_that_are_vouched_for_are_all_that_is_taken_for_known() -> None:
    vouched = LabelledVolume(a_volume().image, labels(), SPACING_KJI_MM, {0: [2, 7, 8, 9, 10, 11, 15]})
    assert sorted(vouched.objects) == sorted(vouched.outlines) == [(1, 0), (2, 0)]
    rng = np.random.default_rng(0)
    for _ in range(50):
        indices, valid = _choose_slices(vouched.objects[2, 0], rng, 5)
        assert valid[0], "a clip begins where the object is known"
        assert set(indices[valid]) <= {2, 7, 8, 9, 10, 11, 15}
        assert not set(indices[~valid]) & ({7, 8, 9, 10, 11} - {0, 19})


def test_a_clip_begins_where_a_later_slice_is_known_too() -> None:
    vouched = LabelledVolume(a_volume().image, labels(), SPACING_KJI_MM, {0: [0, 1, 2, 3, 4, 5, 6, 10, 14]})
    rng = np.random.default_rng(0)
    assert all(_known_slices(vouched.objects[2, 0], rng, 4)[1][1:].any() for _ in range(300))


def test_a_dense_label_map_is_known_everywhere() -> None:
    volume = a_volume()
    assert all(areas.min() >= 0 for areas in volume.objects.values())
    assert list(volume.outlines) == list(volume.objects)


def test_the_same_seed_and_step_draw_the_same_clips() -> None:
    def drawn(step: int) -> tuple[torch.Tensor, ...]:
        return a_sampler().batch(np.random.default_rng([5, step]), 4, 5)

    for once, again in zip(drawn(7), drawn(7), strict=True):
        assert torch.equal(once, again)
    assert not torch.equal(drawn(7)[0], drawn(8)[0])


@pytest.mark.parametrize("pseudo_share", [0.0, 1.0])
def test_a_batch_has_images_masks_and_valid_flags(pseudo_share: float) -> None:
    image, mask, valid = a_sampler(pseudo_share).batch(np.random.default_rng(0), 6, 4)

    assert image.shape == mask.shape == (6, 4, 1, SIZE, SIZE)
    assert image.dtype == mask.dtype == torch.float32
    assert valid.shape == (6, 4)
    assert valid.dtype == torch.bool
    assert bool(image.isfinite().all())
    assert 0.0 <= float(mask.min()) <= float(mask.max()) <= 1.0
    assert bool((mask[:, 0].sum((1, 2, 3)) >= 12).all())
    assert bool(valid[:, 0].all())


def test_masks_lie_on_the_grid_of_their_images() -> None:
    marked = LabelledVolume(
        (labels() == 1).astype(np.int16) * 2000, (labels() == 1).astype(np.uint8), SPACING_KJI_MM
    )
    sampler = ClipSampler(ObjectChooser([(1.0, [marked])]), [], 0.0, SIZE)
    rng = np.random.default_rng(0)

    for _ in range(20):
        clip = sampler.draw(rng, 3)
        for image, mask in zip(clip.image_hu, clip.mask, strict=True):
            if 20 < mask.sum() < 0.9 * mask.numel():
                likeness = torch.corrcoef(torch.stack([image.flatten(), mask.flatten()]))[0, 1]
                assert abs(float(likeness)) > 0.95  # below 0 where the clip was inverted


def test_slices_beyond_the_end_of_the_volume_are_marked() -> None:
    rng = np.random.default_rng(0)
    seen_end = False

    for _ in range(50):
        indices, valid = _choose_slices(np.full(6, 100), rng, 5)
        steps = np.diff(indices[valid])
        assert valid[0]
        assert (np.diff(valid.astype(int)) <= 0).all()
        assert indices.min() >= 0
        assert indices.max() <= 5
        assert len(np.unique(steps)) <= 1
        assert set(np.abs(steps)) <= {1, 2}
        assert set(indices[~valid]) <= {0, 5}
        seen_end |= not valid.all()
    assert seen_end


def test_many_clips_run_past_the_end_of_the_object() -> None:
    areas = np.array([0] * 20 + [50] * 20 + [0] * 20)
    rng = np.random.default_rng(0)

    chosen = [_choose_slices(areas, rng, 5)[0] for _ in range(300)]

    past = np.mean([areas[indices[-1]] == 0 for indices in chosen])
    assert all(areas[indices[0]] > 0 for indices in chosen)
    assert 0.3 < past < 0.7


def test_a_pseudo_object_is_in_one_piece_and_of_one_intensity() -> None:
    volume = a_volume(labelled=False)
    rng = np.random.default_rng(0)

    clips = [raw for _ in range(60) if (raw := pseudo_clip(volume, rng, 5)) is not None]

    eight = np.ones((3, 3), bool)
    assert len(clips) > 10
    for raw in clips:
        assert ndimage.label(raw.mask[0], eight)[1] == 1
        assert ndimage.label(raw.mask, np.ones((3, 3, 3), bool))[1] == 1
        assert raw.image.shape == raw.mask.shape == (5, *raw.image.shape[1:])
        inside = raw.mask[0] > 0
        assert raw.image[0][inside].std() < raw.image[0].std()


def test_volumes_without_labels_give_pseudo_objects_only() -> None:
    sampler = ClipSampler(
        ObjectChooser([(1.0, [a_volume(labelled=False)])]), [a_volume(labelled=False)], 0.0, SIZE
    )

    assert sampler.draw(np.random.default_rng(0), 4).mask.shape == (4, 1, SIZE, SIZE)


def test_volumes_too_small_for_a_clip_are_one_clear_error() -> None:
    tiny = LabelledVolume(np.zeros((3, 3, 3), np.int16), None, SPACING_KJI_MM)

    with pytest.raises(InputError, match="larger CTs"):
        ClipSampler(ObjectChooser([]), [tiny], 1.0, SIZE).draw(np.random.default_rng(0), 5)


def test_drawn_cts_show_the_outlines_of_their_labels() -> None:
    inside_step, outline_step = [], []
    for seed in range(8):
        image = synthesise_ct(labels(), SPACING_KJI_MM, np.random.default_rng(seed))
        steepness = ndimage.gaussian_gradient_magnitude(image.astype(np.float32), 1.0)
        ball = labels() == 1
        core = ndimage.binary_erosion(ball, iterations=3)
        outline_step.append(steepness[ball & ~ndimage.binary_erosion(ball)].mean())
        inside_step.append(steepness[core].mean())

    assert np.median(np.array(outline_step) / inside_step) > 2.0


def test_drawn_cts_are_hounsfield_units_and_repeat_with_their_seed() -> None:
    once, again, other = (
        synthesise_ct(labels(), SPACING_KJI_MM, np.random.default_rng(s)) for s in (3, 3, 4)
    )

    assert once.dtype == np.int16
    assert once.shape == SHAPE_KJI
    assert once.min() >= -1024
    assert once.max() <= 3071
    assert np.array_equal(once, again)
    assert not np.array_equal(once, other)
