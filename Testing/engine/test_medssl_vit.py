"""MedSSL-ViT: regions in two crops, and what they are contrasted with."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from medssl.backbones import build_backbone
from medssl.datasets.data import UnlabelledVolumes
from medssl.datasets.input_contract import InputContract
from medssl.errors import InputError
from medssl.methods.base import Anchor, Moment
from medssl.methods.medssl_vit import (
    MedSSLViT,
    MedSSLViTOptions,
    region_averages,
    region_contrast,
    regions_in_view,
)
from torch import Tensor

MOMENT = Moment(step=0, steps=10, epoch=0, epochs=2)
CONTRACT = InputContract(size=(32, 32), window_hu=(-200.0, 400.0), mean_hu=100.0, std_hu=200.0)
OPTIONS = MedSSLViTOptions(decoder_width=16, decoder_depth=1, decoder_heads=2, embedding=8)


def _method(options: MedSSLViTOptions = OPTIONS) -> MedSSLViT:
    torch.manual_seed(0)
    return MedSSLViT(build_backbone("vit_tiny"), CONTRACT, options)


def _volumes() -> UnlabelledVolumes:
    rng = np.random.default_rng(0)
    return UnlabelledVolumes.from_arrays([rng.integers(-500, 500, (20, 40, 48)).astype(np.int16)] * 2)


def _batch(method: MedSSLViT, count: int = 3) -> dict[str, Tensor]:
    rng, volumes = np.random.default_rng(1), _volumes()
    samples = [method.draw(volumes, Anchor(n % 2, 5 * n), rng) for n in range(count)]
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


def _unit(*shape: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape), dim=-1)


def test_whole_slices_show_every_cell_where_it_is() -> None:
    cells, inside = regions_in_view(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), grid=2)
    assert torch.equal(inside, torch.ones(1, 4))
    assert cells[0].tolist() == [[0, 0, 0.5, 0.5], [0, 0.5, 0.5, 1], [0.5, 0, 1, 0.5], [0.5, 0.5, 1, 1]]


def test_cells_outside_a_crop_are_cut_off() -> None:
    cells, inside = regions_in_view(torch.tensor([[0.25, 0.0, 0.75, 0.5]]), grid=2)
    assert inside.tolist() == [[0.5, 0.0, 0.5, 0.0]]
    assert cells[0, 0].tolist() == [0.0, 0.0, 0.5, 1.0]
    assert cells[0, 2].tolist() == [0.5, 0.0, 1.0, 1.0]


def test_mirrored_crops_show_cells_on_the_other_side() -> None:
    cells, inside = regions_in_view(torch.tensor([[0.0, 1.0, 1.0, 0.0]]), grid=2)
    assert torch.equal(inside, torch.ones(1, 4))
    assert cells[0, 0].tolist() == [0.0, 0.5, 0.5, 1.0]


def test_region_averages_are_exact() -> None:
    maps = torch.randn(2, 3, 4, 6)
    cells = torch.tensor([[[0.25, 0.5, 0.75, 1.0], [0.1, 0.2, 0.9, 0.35]]]).expand(2, -1, -1)
    found = region_averages(maps, cells)
    fine = maps.repeat_interleave(50, 2).repeat_interleave(
        50, 3
    )  # every 1 / 200 of a row, 1 / 300 of a column
    torch.testing.assert_close(found[:, 0], fine[:, :, 50:150, 150:300].mean((2, 3)))
    torch.testing.assert_close(found[:, 1], fine[:, :, 20:180, 60:105].mean((2, 3)), atol=1e-5, rtol=1e-4)
    empty = region_averages(maps, torch.zeros(2, 1, 4))
    assert torch.equal(empty, torch.zeros(2, 1, 3))


def test_two_crops_of_a_slice_find_the_same_content_in_a_common_cell() -> None:
    image = (
        torch.randn(1, 1, 8, 8).repeat_interleave(8, 2).repeat_interleave(8, 3)
    )  # 64 x 64, constant patches
    boxes = torch.tensor([[0.0, 0.0, 0.5, 0.75], [0.25, 0.25, 1.0, 0.75]])
    views = [image[:, :, :32, :48], image[:, :, 16:, 16:48]]
    pooled = []
    for view, box in zip(views, boxes, strict=True):
        cells, inside = regions_in_view(box[None], grid=4)
        pooled.append(torch.where(inside[..., None] == 1, region_averages(view, cells), torch.nan))
    common = ~(pooled[0] + pooled[1]).isnan()
    assert common.sum() == 2
    torch.testing.assert_close(pooled[0][common], pooled[1][common])


def test_the_contrast_is_what_plain_loops_compute() -> None:
    first, second = _unit(12, 5), _unit(12, 5)
    keys, valid = torch.randint(4, (12,)), torch.rand(12) > 0.3
    total, tau = [], 0.2
    for r in range(12):
        for one, other in ((first, second), (second, first)):
            if valid[r]:
                own = math.exp(float(one[r] @ other[r]) / tau)
                rest = sum(
                    math.exp(float(one[r] @ other[s]) / tau)
                    for s in range(12)
                    if valid[s] and keys[s] != keys[r]
                )
                total.append(-math.log(own / (own + rest)))
    found = region_contrast(first, second, keys, valid, tau)
    assert found.item() == pytest.approx(np.mean(total), rel=1e-4)


def test_identical_crops_leave_only_the_negatives() -> None:  # 1.4 (d)
    z, tau = _unit(6, 4), 0.2
    likeness = z @ z.T
    expected = torch.stack(
        [torch.log1p(((likeness[r][torch.arange(6) != r] - 1) / tau).exp().sum()) for r in range(6)]
    ).mean()
    found = region_contrast(z, z, torch.arange(6), torch.ones(6, dtype=torch.bool), tau)
    torch.testing.assert_close(found, expected)


def test_the_same_place_in_another_patient_neither_attracts_nor_repels() -> None:  # 1.4 (e)
    first, second = _unit(2, 3).requires_grad_(), _unit(2, 3).requires_grad_()
    loss = region_contrast(first, second, torch.tensor([7, 7]), torch.ones(2, dtype=torch.bool), 0.2)
    loss.backward()
    torch.testing.assert_close(first.grad, torch.zeros(2, 3))
    torch.testing.assert_close(second.grad, torch.zeros(2, 3))
    apart = region_contrast(first, second, torch.tensor([7, 8]), torch.ones(2, dtype=torch.bool), 0.2)
    assert apart > 0


def test_crops_without_a_common_region_cost_nothing() -> None:
    first = _unit(3, 4).requires_grad_()
    loss = region_contrast(first, _unit(3, 4), torch.arange(3), torch.zeros(3, dtype=torch.bool), 0.2)
    loss.backward()
    assert loss.item() == 0.0
    assert not first.grad.any()


def test_a_sample_says_where_its_crops_lie() -> None:
    method = _method(replace(OPTIONS, jitter=0.0, flip=1.0))
    volumes = _volumes()
    sample = method.draw(volumes, Anchor(1, 13), np.random.default_rng(0))
    assert sample["image"].shape == (2, 1, 32, 32)
    assert sample["decile"].item() == 6  # slice 13 of 20
    whole = torch.from_numpy(volumes.image(CONTRACT, 1, 13))
    for view, box in zip(sample["image"], sample["boxes"], strict=True):
        top, bottom = (round(float(side) * 40) for side in (box[0], box[2]))
        right, left = (round(float(side) * 48) for side in (box[1], box[3]))  # mirrored
        part = whole[None, :, top:bottom, left:right].flip(-1)
        expected = torch.nn.functional.interpolate(part, (32, 32), mode="bilinear", antialias=True)[0]
        torch.testing.assert_close(view, expected)


def test_both_losses_reach_the_encoder_and_identical_views_agree() -> None:
    method = _method().eval()
    batch = _batch(method)
    result = method(batch, MOMENT)
    assert result["loss"].item() == pytest.approx((result["pixels"] + result["contrast"]).item(), rel=1e-6)
    result["contrast"].backward()
    assert method.backbone.encoder.get_parameter("patch_embed.weight").grad.abs().sum() > 0
    batch["image"] = batch["image"][:, :1].repeat(1, 2, 1, 1, 1)
    batch["boxes"] = batch["boxes"][:, :1].repeat(1, 2, 1)
    assert method(batch, MOMENT)["contrast"] < result["contrast"]


def test_without_contrast_it_is_mae() -> None:
    method = _method(replace(OPTIONS, contrast_weight=0.0))
    assert set(method(_batch(method), MOMENT)) == {"loss"}
    assert not any(parameter.requires_grad for parameter in method.projection.parameters())


def test_only_the_encoder_is_kept() -> None:  # 1.4 (f)
    method = _method()
    kept = method.transferable()
    fresh = build_backbone("vit_tiny").encoder
    fresh.load_state_dict({name.removeprefix("encoder."): part for name, part in kept.items()})


def test_a_picture_shows_the_first_views() -> None:
    method = _method()
    assert method.picture(_batch(method), MOMENT).shape == (3 * 34, 3 * 34, 3)


def test_settings_that_cannot_be_are_refused() -> None:
    for wrong in ({"grid": 0}, {"temperature": 0.0}, {"ratio": 1.0}):
        with pytest.raises(InputError):
            replace(OPTIONS, **wrong)
