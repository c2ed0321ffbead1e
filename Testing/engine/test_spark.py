"""SparK on STU-Net: what is masked, what is learnt from it, what is kept (methods.md, 3.2 to 3.6)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from medssl.backbones.stunet import stunet
from medssl.datasets.data import UnlabelledVolumes
from medssl.datasets.input_contract import InputContract
from medssl.errors import InputError
from medssl.methods import METHODS
from medssl.methods.base import Moment
from medssl.methods.block_masks import count_masked, random_masks
from medssl.methods.reconstruction import PatchTargets, patch_errors
from medssl.methods.spark import SparK, SparKOptions
from medssl.phantom import phantom_ct
from torch import Tensor

WIDTHS = (4, 4, 8, 8, 16, 16)
CONTRACT = InputContract(spatial_dims=3, size=(32, 32, 32), window_hu=(-200, 400), mean_hu=100, std_hu=200)
START = Moment(step=0, steps=100, epoch=0, epochs=10)


def method(**options: object) -> SparK:
    torch.manual_seed(0)
    return SparK(stunet(1, widths=WIDTHS, depth=1), CONTRACT, SparKOptions(**options))


def batch(count: int = 2, seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "image": torch.randn(count, 1, 32, 32, 32, generator=generator),
        "padded": torch.zeros(count, 2, 2, 2, dtype=torch.bool),
    }


def phantoms(count: int = 2) -> UnlabelledVolumes:
    scans = [phantom_ct(seed, (40, 48, 48), (6.0, 6.0, 6.0)).volume.voxels_kji for seed in range(count)]
    return UnlabelledVolumes.from_arrays(scans, (6.0, 6.0, 6.0))


def test_each_sample_masks_the_same_number_of_patches() -> None:
    padded = torch.zeros(3, 8, 7, 7, dtype=torch.bool)
    count = count_masked(padded, 0.6)
    assert count.tolist() == [235, 235, 235]  # of 392, as the paper's crop has
    masked = random_masks(padded, count, START.generator())
    assert masked.flatten(1).sum(1).tolist() == [235, 235, 235]
    assert not torch.equal(masked[0], masked[1])


def test_padding_is_never_masked_and_does_not_count() -> None:
    padded = torch.zeros(2, 3, 3, 3, dtype=torch.bool)
    padded[1, 0] = True
    count = count_masked(padded, 0.6)
    assert count.tolist() == [27 - 11, 18 - 7]
    masked = random_masks(padded, count, START.generator())
    assert not (masked & padded).any()
    assert masked.flatten(1).sum(1).tolist() == count.tolist()


def test_every_patch_is_masked_equally_often() -> None:
    padded = torch.zeros(10_000, 2, 2, 2, dtype=torch.bool)
    often = random_masks(padded, count_masked(padded, 0.6), START.generator()).sum(0).double()
    wanted = often.sum() / 8
    assert float(((often - wanted) ** 2 / wanted).sum()) < 24.3  # chi squared, 7 degrees, p = 0.001


def test_a_block_lies_in_the_scan_and_says_what_is_padding() -> None:
    ramp = np.arange(20 * 64 * 40, dtype=np.int16).reshape(20, 64, 40) % 300 - 100
    volumes = UnlabelledVolumes.from_arrays([ramp + 1])  # 0 stays for no voxel; nothing clips
    for seed in range(20):
        sample = method(flips=False).draw(volumes, method().anchors(volumes)[0], np.random.default_rng(seed))
        hu = sample["image"][0] * CONTRACT.std_hu + CONTRACT.mean_hu
        inside = hu > -199.0  # air is clipped to -200
        share = inside.float().reshape(2, 16, 2, 16, 2, 16).mean((1, 3, 5))
        assert torch.equal(sample["padded"], share < 0.05)
        assert int(inside.sum()) == 20 * 32 * 32


def test_blocks_of_an_epoch_cover_the_scan() -> None:
    volumes = phantoms(1)
    anchors = method().anchors(volumes)
    assert [anchor.k for anchor in anchors] == [20]
    tall = UnlabelledVolumes.from_arrays([np.zeros((320, 32, 32)) + np.arange(320)[:, None, None]])
    ten = method().anchors(tall)
    assert [anchor.k for anchor in ten] == list(range(16, 320, 32))
    spark, seen = method(flips=False), np.zeros(320, bool)
    for seed in range(8):
        for anchor in ten:
            image = spark.draw(tall, anchor, np.random.default_rng([seed, anchor.k]))["image"]
            seen[np.rint(image[0, :, 0, 0].numpy() * 200 + 100).astype(int)] = True
    assert seen.all()
    assert len(method(blocks_per_scan=1).anchors(tall)) == 1


def test_drawing_repeats_with_its_generator() -> None:
    volumes, spark = phantoms(1), method()
    first, again, other = (
        spark.draw(volumes, spark.anchors(volumes)[0], np.random.default_rng(seed)) for seed in (3, 3, 4)
    )
    assert torch.equal(first["image"], again["image"])
    assert not torch.equal(first["image"], other["image"])


def test_patches_are_normalised_and_brought_back() -> None:
    image = batch()["image"] * 3.0 + 1.0
    targets = PatchTargets.of(image)
    patch = targets.normalised[0, 0, 16:, :16, :16]
    assert float(patch.mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(patch.std()) == pytest.approx(1.0, abs=1e-4)
    torch.testing.assert_close(targets.restore(targets.normalised), image, rtol=1e-4, atol=1e-4)


def test_a_constant_patch_has_the_target_zero() -> None:
    targets = PatchTargets.of(torch.full((1, 1, 16, 16, 16), -5.62))
    torch.testing.assert_close(targets.normalised, torch.zeros(1, 1, 16, 16, 16), atol=1e-3, rtol=0)


def test_the_error_of_a_patch_is_its_own_mean_square() -> None:
    a, b = batch(seed=1)["image"], batch(seed=2)["image"]
    errors = patch_errors(a, b)
    assert float(errors[1, 0, 1, 0, 1]) == pytest.approx(
        float((a - b)[1, 0, 16:, :16, 16:].square().mean()), rel=1e-5
    )


def test_visible_patches_have_no_part_in_the_loss() -> None:
    # 3.6 (f): by the gradient of the reconstruction, which is the only thing that the loss sees of the network
    spark, samples = method(), batch()
    kept: list[Tensor] = []
    spark.head.to_voxels.register_full_backward_hook(lambda module, before, after: kept.append(after[0]))
    loss = spark(samples, START)["loss"]
    loss.backward()
    masked, _ = spark.choose_mask(samples, PatchTargets.of(samples["image"]), START)
    size = kept[0].reshape(2, 2, 16, 2, 16, 2, 16).abs().amax((2, 4, 6))
    assert (size[~masked] == 0).all()
    assert (size[masked] > 0).all()


def test_the_loss_is_the_mean_error_of_the_masked_patches() -> None:
    spark, samples = method(), batch()
    targets = PatchTargets.of(samples["image"])
    masked, _ = spark.choose_mask(samples, targets, START)
    y = spark.student(samples["image"], masked).detach()
    slow = [
        float((y - targets.normalised)[n, 0, 16 * i :, 16 * j :, 16 * k :][:16, :16, :16].square().mean())
        for n, i, j, k in masked.nonzero().tolist()
    ]
    assert float(spark(samples, START)["loss"].detach()) == pytest.approx(np.mean(slow), rel=1e-5)


def test_the_reconstruction_knows_nothing_of_what_is_masked() -> None:
    # 3.6 (d), to the end of the decoder
    spark, samples = method(), batch()
    masked, _ = spark.choose_mask(samples, PatchTargets.of(samples["image"]), START)
    hidden = masked[:, None].repeat_interleave(16, 2).repeat_interleave(16, 3).repeat_interleave(16, 4)
    clean = spark.student(samples["image"], masked)
    assert torch.equal(clean, spark.student(samples["image"].masked_fill(hidden, 1e4), masked))


@pytest.mark.parametrize("official", [False, True])
def test_samples_are_reconstructed_apart_unless_official(official: bool) -> None:
    # 3.6 (h)
    spark, samples = method(official_norm=official), batch()
    masked, _ = spark.choose_mask(samples, PatchTargets.of(samples["image"]), START)
    other = torch.cat([samples["image"][:1], samples["image"][1:] * 4.0])
    same = torch.equal(spark.student(samples["image"], masked)[0], spark.student(other, masked)[0])
    assert same is not official


@pytest.mark.parametrize("stages", [5, 6])
def test_only_the_stages_that_were_trained_are_kept(stages: int) -> None:
    spark = method(stages=stages)
    spark(batch(), START)["loss"].backward()
    trained = {
        name
        for name, value in spark.backbone.named_parameters()
        if value.grad is not None and bool(value.grad.abs().sum() > 0)
    }
    kept = spark.transferable()
    assert trained <= set(kept)
    assert {int(name.split(".")[2]) for name in kept} == set(range(stages))
    fresh = stunet(1, widths=WIDTHS, depth=1)
    report = fresh.load_state_dict(kept, strict=False)
    assert not report.unexpected_keys
    assert set(report.missing_keys) == set(fresh.state_dict()) - set(kept)


def test_the_map_at_full_resolution_needs_nothing_of_the_head() -> None:
    # 3.2: the official code builds it and throws it away
    spark = method()
    assert min(spark.head.levels) == 1
    assert [tuple(up.conv2.weight.shape[:2]) for up in spark.head.ups] == [(8, 16), (4, 8), (2, 4), (1, 2)]


def test_a_picture_shows_each_block_three_times() -> None:
    picture = method().picture(batch(count=3), START)
    assert picture.dtype == np.uint8
    assert picture.shape[0] >= 3 * 32
    assert picture.shape[1] >= 3 * 32
    assert picture.shape[2] == 3


@pytest.mark.parametrize("name", ["spark", "anatomask"])
def test_every_preset_can_be_built(name: str) -> None:
    presets = METHODS[name].presets()
    assert set(presets) == {"paper", "gpu", "cpu"}
    for preset in presets.values():
        with torch.device("meta"):
            METHODS[name].build(preset)


@pytest.mark.parametrize("size", [(32, 32, 40), (24, 32, 32)])
def test_a_size_that_patches_do_not_fill_is_refused(size: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="multiple of 16"):
        SparK(stunet(1, widths=WIDTHS, depth=1), replace(CONTRACT, size=size), SparKOptions())


@pytest.mark.parametrize("options", [{"mask_ratio": 0.0}, {"blocks_per_scan": 0}])
def test_impossible_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(InputError):
        SparKOptions(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"stages": 4}, {"decoder_width": 24}])
def test_a_decoder_that_does_not_fit_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(InputError):
        method(**options)


def test_the_fused_convolutions_differ_at_the_border_only() -> None:
    torch.manual_seed(0)
    up = method().head.ups[2]
    torch.nn.init.zeros_(up.scale.bias)  # a constant, which the norm takes away
    x = torch.randn(2, 4, 5, 4, 6)
    fused, apart = up._fused(x), up.conv1(up.scale(x))
    inside = (..., slice(1, -1), slice(1, -1), slice(1, -1))
    torch.testing.assert_close(fused[inside], apart[inside], rtol=1e-5, atol=1e-6)
    assert fused.shape == apart.shape
