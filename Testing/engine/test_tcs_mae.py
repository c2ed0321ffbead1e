"""TCS-MAE: masks of tissues, two reconstructions, one contrast."""

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
from medssl.methods.contrastive import nt_xent
from medssl.methods.ssim import ssim
from medssl.methods.tcs_mae import TCSMAE, TCSMAEOptions, interval_mask
from torch import Tensor
from torch.nn import functional as F

MOMENT = Moment(step=0, steps=10, epoch=0, epochs=2)
CONTRACT = InputContract(size=(32, 32), channels="chest")
OPTIONS = TCSMAEOptions(ssim_window=7, embedding=16)


def _method(options: TCSMAEOptions = OPTIONS, contract: InputContract = CONTRACT) -> TCSMAE:
    torch.manual_seed(0)
    return TCSMAE(build_backbone("unet2d_64_small", contract.in_channels), contract, options)


def _volumes() -> UnlabelledVolumes:
    rng = np.random.default_rng(0)
    return UnlabelledVolumes.from_arrays([rng.integers(-1200, 700, (4, 28, 40)).astype(np.int16)])


def _batch(method: TCSMAE) -> dict[str, Tensor]:
    samples = [method.draw(_volumes(), Anchor(0, k), np.random.default_rng(k)) for k in range(3)]
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


@pytest.mark.parametrize("ratio", [0.15, 0.35, 0.55, 0.75])
@pytest.mark.parametrize("intervals", [4, 6, 8])
def test_the_masked_pixels_are_those_of_the_drawn_intervals(intervals: int, ratio: float) -> None:  # 5.6 (a)
    count = int(intervals * ratio + 1e-9)
    values = torch.rand(20, 1, 16, 16)
    values[:, :, 0, 0], values[:, :, 0, 1] = 0.0, 1.0
    mask = interval_mask(values, intervals, count, MOMENT.generator())
    place = (values * intervals).floor().clamp(max=intervals - 1)
    for n in range(20):
        masked = place[n][mask[n]].unique()
        assert len(masked) == count
        assert not torch.isin(place[n][~mask[n]], masked).any()
    last = place[:, :, 0, 1]
    assert (last == intervals - 1).all()


def test_intervals_are_drawn_without_replacement_unless_asked() -> None:
    values = ((torch.arange(8) + 0.5) / 8).expand(3000, 1, 1, 8)
    exact = interval_mask(values, 8, 6, MOMENT.generator())
    assert (exact.sum(3) == 6).all()
    assert (exact.float().mean(0) - 0.75).abs().max() < 0.04
    twice = interval_mask(values, 8, 6, MOMENT.generator(), with_replacement=True)
    assert twice.sum(3).float().mean().item() == pytest.approx(8 * (1 - (7 / 8) ** 6), abs=0.1)  # 4.41


def test_masking_commutes_with_flips_and_is_the_same_in_all_channels() -> None:  # 5.6 (b)
    values = torch.rand(2, 1, 8, 8)
    mask = interval_mask(values, 8, 6, MOMENT.generator())
    assert torch.equal(interval_mask(values.flip(3), 8, 6, MOMENT.generator()), mask.flip(3))
    method = _method()
    image = torch.rand(2, 3, 8, 8)
    blank = method._blanked(image, mask)
    assert torch.equal(blank, torch.where(mask, torch.zeros(()), image))
    assert mask.shape[1] == 1


def test_nothing_masked_is_warned_about() -> None:  # 5.6 (a)
    with pytest.warns(UserWarning, match="nothing is masked"):
        _method(replace(OPTIONS, intervals=4, ratio=0.15))


def test_a_sample_is_the_image_and_its_tissue_at_the_same_place() -> None:
    method = _method()
    sample = method.draw(_volumes(), Anchor(0, 2), np.random.default_rng(0))
    assert sample["image"].shape == (3, 32, 32)
    assert sample["tissue"].shape == (1, 32, 32)
    assert sample["range"].tolist() == [0.0, 1.0]
    hu = sample["tissue"][0] * 1500 - 1000
    inside = (hu > -1000) & (hu < 500)
    lung = ((hu + 1100) / 1200).clamp(0, 1)
    torch.testing.assert_close(sample["image"][0][inside], lung[inside], atol=1e-4, rtol=0)
    beside = sample["tissue"][0].sum(1) == 0
    assert beside.sum() == 4  # the slice has 28 rows
    assert not sample["image"][:, beside].any()


def test_chest_channels_are_windows_of_0_to_1_and_edges() -> None:  # 5.6 (f)
    hu = np.array([[-1100, 100, -120, 180, -3000, 3000]], np.float32).repeat(3, 0)
    lung, mediastinum, _ = CONTRACT.apply(hu)
    assert lung[0, [0, 1, 4, 5]].tolist() == [0.0, 1.0, 0.0, 1.0]
    assert mediastinum[0, [2, 3, 4, 5]].tolist() == [0.0, 1.0, 0.0, 1.0]
    assert not CONTRACT.apply(np.full((5, 5), -300.0))[2].any()


@pytest.mark.parametrize("scale", ["fixed", "volume"])
def test_other_inputs_are_compared_in_0_to_1_too(scale: str) -> None:
    contract = InputContract(
        size=(32, 32), scale=scale, window_hu=(-200.0, 400.0), mean_hu=100.0, std_hu=200.0
    )
    method = _method(contract=contract)
    sample = method.draw(_volumes(), Anchor(0, 1), np.random.default_rng(0))
    low, high = sample["range"].tolist()
    assert sample["image"].min().item() == pytest.approx(low, abs=1e-5)
    assert sample["image"].max().item() == pytest.approx(high, abs=1e-5)
    if scale == "volume":  # intervals are cut on what the network sees, air beside the slice included
        scaled = (sample["image"] - low) / (high - low)
        torch.testing.assert_close(sample["tissue"], scaled, atol=1e-5, rtol=0)
    assert torch.isfinite(method(_batch(method), MOMENT)["loss"])


def test_luma_weighs_the_three_channels() -> None:
    method = _method(replace(OPTIONS, mask_on="luma"))
    sample = method.draw(_volumes(), Anchor(0, 1), np.random.default_rng(0))
    red, green, blue = sample["image"]
    torch.testing.assert_close(sample["tissue"][0], 0.2989 * red + 0.5870 * green + 0.1140 * blue)


def test_one_pass_gives_the_loss_of_two() -> None:  # eqs 13 and 18
    method = _method().eval()
    batch = _batch(method)
    result = method(batch, MOMENT)
    image = batch["image"]
    hidden = interval_mask(batch["tissue"], 8, 6, MOMENT.generator())
    loss, pooled = torch.zeros(()), []
    for branch in (image.masked_fill(hidden, 0.0), image):
        maps = method.backbone.encoder(branch)
        made = torch.sigmoid(method.head(method.backbone.decoder(maps)))
        loss = loss + 1 - ssim(made, image, window=7).mean()
        pooled.append([level.amax((2, 3)) for level in maps])
    for n, projection in enumerate(method.projections, start=len(pooled[0]) - 2):
        loss = loss + nt_xent(projection(pooled[0][n]), projection(pooled[1][n]), 0.07)
    torch.testing.assert_close(result["loss"], loss)
    assert result["temperature"].item() == pytest.approx(0.07)


def test_both_branches_train_the_same_weights() -> None:  # 5.6 (d)
    method = _method(replace(OPTIONS, contrast_weight=0.0))
    for part in ("masked", "whole"):
        method.zero_grad()
        method(_batch(method), MOMENT)[part].backward()
        assert all(p.grad is not None and p.grad.any() for p in method.head.parameters())
        assert all(p.grad is not None for p in method.backbone.parameters())


def test_contrast_in_closed_form() -> None:  # 5.6 (e)
    gamma = torch.tensor(0.5)
    assert nt_xent(torch.randn(1, 6), torch.randn(1, 6), gamma).item() == 0.0
    aligned = torch.eye(5)
    expected = math.log(1 + 8 * math.exp(-1 / 0.5))
    assert nt_xent(aligned, aligned, gamma).item() == pytest.approx(expected, rel=1e-5)
    first, second, order = torch.randn(5, 6), torch.randn(5, 6), torch.randperm(5)
    torch.testing.assert_close(nt_xent(first[order], second[order], gamma), nt_xent(first, second, gamma))


def test_the_temperature_is_learnt_and_bounded() -> None:
    method = _method()
    method(_batch(method), MOMENT)["loss"].backward()
    assert method.log_scale.grad.abs() > 0
    with torch.no_grad():
        method.log_scale.fill_(20.0)
    assert method(_batch(method), MOMENT)["temperature"].item() == pytest.approx(0.01)


def test_the_codes_consistency_is_1000_times_the_distance_of_cosines() -> None:
    method = _method(replace(OPTIONS, consistency="cosine", levels=3)).eval()
    maps = method.backbone.encoder(torch.rand(4, 3, 32, 32))
    expected = 0.0
    for projection, level in zip(method.projections, maps[-3:], strict=True):
        masked, whole = projection(level.amax((2, 3))).chunk(2)
        expected += 1000 * (1 - F.cosine_similarity(masked, whole)).mean().item()
    assert method._contrast(maps).item() == pytest.approx(expected, rel=1e-4)
    assert not method.log_scale.requires_grad


@pytest.mark.parametrize("options", [{"contrast_weight": 0.0}, {"levels": 0}])
def test_reconstruction_alone_leaves_no_weight_without_use(options: dict[str, float]) -> None:
    method = _method(replace(OPTIONS, **options))
    result = method(_batch(method), MOMENT)
    assert "contrast" not in result
    result["loss"].backward()
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)


@pytest.mark.parametrize("fill", ["black", "mean", "learned"])
def test_masked_pixels_are_filled_as_asked(fill: str) -> None:
    method = _method(replace(OPTIONS, fill=fill))
    image, hidden = torch.rand(2, 3, 8, 8), torch.rand(2, 1, 8, 8) > 0.5
    blank = method._blanked(image, hidden)
    value = {"black": 0.0, "mean": image[1, 2].mean().item(), "learned": 0.5}[fill]
    torch.testing.assert_close(blank[1, 2][hidden[1, 0]], torch.full((int(hidden[1].sum()),), value))
    assert torch.equal(blank[1, 2][~hidden[1, 0]], image[1, 2][~hidden[1, 0]])
    assert method.fill.requires_grad == (fill == "learned")


def test_encoder_and_decoder_are_kept() -> None:  # 5.6 (g)
    method = _method()
    kept = method.transferable()
    build_backbone("unet2d_64_small", 3).load_state_dict(kept)
    assert {name.split(".")[0] for name in kept} == {"encoder", "decoder"}


def test_a_picture_shows_three_slices() -> None:
    method = _method().train()
    assert method.picture(_batch(method), MOMENT).shape == (3 * 34, 3 * 34, 3)
    assert method.training


def test_settings_that_cannot_be_are_refused() -> None:
    plain = InputContract(size=(32, 32))
    with pytest.raises(InputError, match="three chest channels"):
        _method(replace(OPTIONS, mask_on="luma"), plain)
    with pytest.raises(InputError, match="levels"):
        _method(replace(OPTIONS, levels=6))
    with pytest.raises(InputError, match="without channels"):
        TCSMAE(build_backbone("mit_tiny_unet", 3), CONTRACT, replace(OPTIONS, levels=5))
    with pytest.raises(InputError, match="odd"):
        _method(replace(OPTIONS, ssim_window=8))
