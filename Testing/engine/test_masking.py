"""Patches, masks, crops, pictures and remembered labels: what the masked methods share."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from medssl.datasets.data import UnlabelledVolumes
from medssl.methods.crops import Crop, random_crop
from medssl.methods.masking import (
    masked_mean,
    normalised_patches,
    patch_scale,
    patchify,
    patchwise,
    random_mask,
    unpatchify,
    visible_indices,
)
from medssl.methods.patch_labels import PatchLabels, slice_key
from medssl.methods.pictures import looking, reconstruction_picture
from torch import nn


def test_patches_are_numbered_row_by_row_and_come_back() -> None:
    images = torch.randn(2, 3, 8, 12)
    patches = patchify(images, 4)
    assert patches.shape == (2, 6, 48)
    assert torch.equal(patches[1, 4], images[1, :, 4:8, 4:8].permute(1, 2, 0).flatten())
    assert torch.equal(unpatchify(patches, 4, (8, 12)), images)


@pytest.mark.parametrize(("patches", "ratio", "visible"), [(196, 0.75, 49), (64, 0.75, 16), (10, 0.66, 3)])
def test_every_sample_shows_the_same_number_of_patches(patches: int, ratio: float, visible: int) -> None:
    mask = random_mask(5, patches, ratio, torch.Generator().manual_seed(0))
    assert (~mask).sum(1).tolist() == [visible] * 5
    kept = visible_indices(mask)
    assert kept.shape == (5, visible)
    assert not mask.gather(1, kept).any()
    assert (kept.diff(dim=1) > 0).all()


def test_masks_follow_the_generator_and_favour_no_patch() -> None:
    first, second = (random_mask(4000, 9, 2 / 3, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, second)
    assert (first.float().mean(0) - 2 / 3).abs().max() < 0.04  # 5 standard deviations


def test_a_patch_mask_covers_its_pixels() -> None:
    mask = torch.tensor([[True, False, False, False, False, True]])
    pixels = patchwise(mask, 2, (4, 6))
    assert pixels.shape == (1, 1, 4, 6)
    expected = torch.zeros(4, 6, dtype=torch.bool)
    expected[:2, :2] = expected[2:, 4:] = True
    assert torch.equal(pixels[0, 0], expected)


def test_targets_have_mean_0_and_deviation_1_and_constant_patches_are_0() -> None:
    patches = torch.randn(1, 3, 64) * 5 + 2
    patches[0, 1] = 7.0
    targets = normalised_patches(patches)
    torch.testing.assert_close(targets[0, [0, 2]].mean(1), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(targets[0, [0, 2]].std(1), torch.ones(2), atol=1e-4, rtol=0)
    assert torch.equal(targets[0, 1], torch.zeros(64))
    mean, deviation = patch_scale(patches)
    torch.testing.assert_close(targets * deviation + mean, patches)


def test_a_masked_mean_of_nothing_is_0() -> None:
    values = torch.tensor([[1.0, 5.0]])
    assert masked_mean(values, torch.tensor([[False, True]])) == 5.0
    assert masked_mean(values, torch.tensor([[False, False]])) == 0.0


def test_crops_stay_inside_and_span_the_areas_asked_for() -> None:
    rng = np.random.default_rng(0)
    crops = [random_crop(40, 60, 0.2, rng) for _ in range(300)]
    areas = np.array([crop.height * crop.width for crop in crops]) / 2400
    assert 0.19 < areas.min() < 0.25
    assert 0.8 < areas.max() <= 8 / 9  # no wider than 4 : 3
    for crop in crops:
        top, left, bottom, right = crop.box(40, 60)
        assert 0 <= top < bottom <= 1
        assert 0 <= left < right <= 1
    assert random_crop(3, 300, 1.0, rng) == Crop(0, 0, 3, 300)


def test_a_crop_of_the_input_size_is_taken_as_it_is() -> None:
    image = torch.randn(2, 10, 12)
    torch.testing.assert_close(Crop(2, 3, 6, 8).taken(image, (6, 8)), image[:, 2:8, 3:11])


def test_a_picture_has_three_columns_and_is_turned_for_radiologists() -> None:
    image = torch.zeros(2, 1, 6, 5)
    image[:, :, -1, -1] = 1.0  # anterior, right: shown at the top left
    picture = reconstruction_picture(image, torch.full_like(image, float("nan")), image, count=1)
    assert picture.shape == (8, 21, 3)
    assert picture.dtype == np.uint8
    assert picture[0, 0].tolist() == [255, 255, 255]
    assert picture[5, 4].tolist() == [0, 0, 0]
    assert picture[0, 7, 2] > picture[0, 7, 0] > 0  # dark blue where nothing is seen


def test_looking_leaves_no_trace() -> None:
    network = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5)).train()
    before = network[0].running_mean.clone()
    with looking(network):
        assert not network(torch.ones(4, 3)).requires_grad
    assert network.training
    assert torch.equal(network[0].running_mean, before)


def test_slice_keys_tell_slices_apart_and_depend_on_the_content_only() -> None:
    volumes = UnlabelledVolumes.from_arrays([np.zeros((3, 4, 4), np.int16)] * 2)
    keys = {slice_key(scan, k) for scan in volumes.scans for k in range(3)}
    assert len(keys) == 6
    assert max(keys) < 2**63
    renamed = volumes.renamed(1, name="elsewhere", patient="someone")
    assert slice_key(renamed.scans[1], 2) == slice_key(volumes.scans[1], 2)


def test_labels_change_at_the_end_of_an_epoch_only_and_the_later_note_counts() -> None:
    labels = PatchLabels()
    keys, first = torch.tensor([5, 2]), torch.tensor([[0, 1], [1, 0]])
    otherwise = torch.zeros(2, 2, dtype=torch.int64)
    labels.note(keys, first)
    assert torch.equal(labels.recall(keys, otherwise), otherwise)
    labels.take_over()
    assert torch.equal(labels.recall(keys, otherwise), first)
    assert torch.equal(labels.recall(keys.flip(0), otherwise), first.flip(0))
    assert torch.equal(labels.recall(torch.tensor([9, 5]), otherwise), torch.tensor([[0, 0], [0, 1]]))
    labels.note(torch.tensor([5]), torch.tensor([[1, 1]]))
    labels.note(torch.tensor([5, 9]), torch.tensor([[0, 0], [1, 0]]))
    labels.take_over()
    labels.take_over()
    found = labels.recall(torch.tensor([5, 2, 9]), torch.full((3, 2), 7))
    assert found.tolist() == [[0, 0], [1, 0], [1, 0]]


def test_labels_survive_a_state_dict_in_the_middle_of_an_epoch() -> None:  # 4.6 (f)
    labels, restored = PatchLabels(), PatchLabels()
    keys, otherwise = torch.tensor([3, 1]), torch.zeros(2, 2, dtype=torch.int64)
    labels.note(keys, torch.tensor([[1, 1], [0, 1]]))
    labels.take_over()
    labels.note(keys[:1], torch.tensor([[1, 0]]))
    restored.load_state_dict(labels.state_dict())
    assert torch.equal(restored.recall(keys, otherwise), labels.recall(keys, otherwise))
    for one in (labels, restored):
        one.take_over()
    assert restored.recall(keys, otherwise).tolist() == [[1, 0], [0, 1]]
    assert torch.equal(restored.recall(keys, otherwise), labels.recall(keys, otherwise))
