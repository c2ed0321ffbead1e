"""AMLP: which patches are masked, its losses, and labels that change from epoch to epoch."""

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
from medssl.methods.amlp import AMLP, AMLPOptions, foremost, mask_ratio, oriented, relative_loss
from medssl.methods.base import Anchor, Moment
from medssl.methods.kmeans import TwoMeans, two_means
from medssl.methods.masking import patchify
from torch import Tensor

MOMENT = Moment(step=0, steps=10, epoch=0, epochs=5)
CONTRACT = InputContract(size=(32, 32), window_hu=(-200.0, 400.0), mean_hu=100.0, std_hu=200.0)
OPTIONS = AMLPOptions(patch=8)


def _method(options: AMLPOptions = OPTIONS) -> AMLP:
    torch.manual_seed(0)
    return AMLP(build_backbone("unet2d_64_small"), CONTRACT, options)


def _blob() -> tuple[Tensor, Tensor]:
    """(2, 1, 32, 32) images with three bright patches each, and which they are: (2, 16)."""
    image = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 0.05
    which = torch.zeros(2, 16, dtype=torch.bool)
    for n, patches in enumerate(([5, 6, 10], [0, 3, 15])):
        for patch in patches:
            row, column = divmod(patch, 4)
            image[n, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] += 2.0
            which[n, patch] = True
    return image, which


def _batch() -> dict[str, Tensor]:
    return {"image": _blob()[0], "slice": torch.tensor([40, 7])}


def test_the_masked_share_rises_with_the_logarithm_of_the_epoch() -> None:  # 4.6 (a)
    assert mask_ratio(0, 800) == pytest.approx(0.25, abs=1e-9)
    assert mask_ratio(799, 800) == pytest.approx(0.80, abs=1e-9)
    tau = math.log(800) / 0.55
    printed = [0.25 + math.log(e) / tau for e in range(1, 801)]  # eq. 5
    assert [mask_ratio(e, 800) for e in range(800)] == pytest.approx(printed)
    assert printed == sorted(printed)
    assert mask_ratio(9, 800) == pytest.approx(0.439, abs=1e-3)
    assert mask_ratio(0, 1) == 0.25


@pytest.mark.parametrize(("epoch", "count"), [(0, 4), (4, 12)])
def test_every_sample_has_the_scheduled_number_of_masked_patches(epoch: int, count: int) -> None:
    result = _method()(_batch(), replace(MOMENT, epoch=epoch))
    assert result["masked"].item() * 16 == count


def test_all_of_a_planted_lesion_is_masked_before_any_background() -> None:  # 4.6 (b)
    image, which = _blob()
    categories, mask = _method()._masked(image, torch.tensor([40, 7]), MOMENT)
    assert torch.equal(categories.labels.bool(), which)
    assert mask[which].all()
    assert (mask.sum(1) == 4).all()


@pytest.mark.parametrize("foreground", ["smaller", "larger", "brighter"])
def test_the_foreground_is_the_cluster_asked_for(foreground: str) -> None:
    image, which = _blob()
    for sign in (1.0, -1.0):
        patches = patchify(sign * image, 8)
        found = oriented(two_means(patches, torch.tensor([1, 2])), foreground)
        bright = which if sign > 0 else ~which
        expected = {"smaller": which, "larger": ~which, "brighter": bright}[foreground]
        assert torch.equal(found.labels.bool(), expected)
        inside = torch.stack([p[e].mean(0) for p, e in zip(patches, expected, strict=True)])
        torch.testing.assert_close(found.centres[:, 1], inside)


def test_of_two_clusters_as_large_the_brighter_is_the_foreground() -> None:
    labels = torch.tensor([[0, 0, 1, 1]])
    for centres, expected in (([[2.0], [1.0]], [[1, 1, 0, 0]]), ([[1.0], [2.0]], [[0, 0, 1, 1]])):
        clusters = TwoMeans(labels, torch.tensor([centres]), torch.tensor([False]))
        assert oriented(clusters, "smaller").labels.tolist() == expected


def test_labels_come_before_ranks() -> None:
    labels, rank = torch.tensor([[0, 1, 0, 1]]), torch.tensor([[9.0, 1.0, 8.0, 2.0]])
    assert foremost(labels, rank, 1).tolist() == [[False, False, False, True]]
    assert foremost(labels, rank, 3).tolist() == [[True, True, False, True]]


def test_the_papers_rank_masks_outliers_of_the_foreground_first() -> None:
    image, which = _blob()
    image[0, :, 8:16, 8:16] += 1.0  # patch 5 is the brightest of its three
    options = replace(OPTIONS, first_ratio=1.01 / 16)
    _, literal = _method(replace(options, rank="paper"))._masked(image, torch.tensor([1, 2]), MOMENT)
    assert literal[0].nonzero().flatten().tolist() == [5]
    _, margin = _method(options)._masked(image, torch.tensor([1, 2]), MOMENT)
    assert which[margin].all()


def test_a_constant_image_is_masked_at_random_by_its_slice() -> None:
    method, images = _method(), torch.full((50, 1, 32, 32), -1.5)
    keys = torch.arange(50)
    _, mask = method._masked(images, keys, MOMENT)
    assert (mask.sum(1) == 4).all()
    assert (mask.float().mean(0) > 0).all()
    _, alone = method._masked(images[:1], keys[20:21], MOMENT)
    assert torch.equal(alone[0], mask[20])
    result = method({"image": images, "slice": keys}, MOMENT)
    assert result["relabelled"] == 0.0
    assert torch.isfinite(result["loss"])


def _errors() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    errors = torch.rand(2, 16, generator=generator) + 0.1
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[0, :5] = mask[1, 3:8] = True
    return errors.requires_grad_(), mask


def test_the_printed_relative_loss_is_1_and_teaches_nothing() -> None:  # 4.6 (c)
    errors, mask = _errors()
    loss = relative_loss(errors, mask, "paper")
    loss.backward()
    assert loss.item() == pytest.approx(1.0, abs=1e-6)
    assert errors.grad.abs().max() < 1e-6


def test_the_weighted_relative_loss_favours_hard_patches() -> None:  # 4.6 (c)
    errors, mask = _errors()
    relative_loss(errors, mask, "weight").backward()
    values = errors.detach()
    mean = torch.stack([row[chosen].mean() for row, chosen in zip(values, mask, strict=True)])[:, None]
    torch.testing.assert_close(errors.grad, torch.where(mask, values / mean / 10, 0.0))


def test_the_detached_relative_loss_only_rescales() -> None:
    errors, mask = _errors()
    relative_loss(errors, mask, "detached").backward()
    values = errors.detach()
    mean = torch.stack([row[chosen].mean() for row, chosen in zip(values, mask, strict=True)])[:, None]
    torch.testing.assert_close(errors.grad, torch.where(mask, 0.1 / mean, 0.0))


def test_the_printed_consistency_counts_changes() -> None:  # 4.6 (d)
    method = _method(replace(OPTIONS, ccl="paper"))
    noise = {"image": torch.randn(8, 1, 32, 32), "slice": torch.arange(8)}
    result = method(noise, MOMENT)
    assert result["relabelled"] > 0
    assert result["consistency"].item() == pytest.approx(
        -math.log(0.1) * result["relabelled"].item(), rel=1e-4
    )
    assert result["consistency"].grad_fn is None


def test_the_soft_consistency_is_the_cross_entropy_of_nearness_and_teaches() -> None:  # 4.6 (d)
    method = _method()
    image, _ = _blob()
    keys = torch.tensor([40, 7])
    categories, mask = method._masked(image, keys, MOMENT)
    made = torch.randn(2, 16, 64, requires_grad=True)
    new = torch.where(mask, 1 - categories.labels, categories.labels)
    new[0] = categories.labels[0]
    changed = (new != categories.labels) & mask
    loss = method._consistency(made, categories, new, changed, mask)
    terms = []
    for b, n in changed.nonzero().tolist():
        distance = [float(((made[b, n].detach() - centre) ** 2).sum()) for centre in categories.centres[b]]
        odds = [math.exp(-d / (0.1 * 64)) for d in distance]
        terms.append(-math.log(odds[int(new[b, n])] / sum(odds)))
    assert loss.item() == pytest.approx(sum(terms) / int(mask.sum()), rel=1e-4)
    loss.backward()
    assert made.grad[changed].any(dim=1).all()
    assert not made.grad[~changed].any()


def test_only_doubtful_masked_patches_change_and_half_of_them_do() -> None:  # 4.6 (e)
    method, count = _method().eval(), 400
    image = torch.randn(count, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    keys = torch.arange(count)
    categories, mask = method._masked(image, keys, MOMENT)
    patches = patchify(image, 8)
    errors = (patchify(method._reconstructed(image, mask).detach(), 8) - patches).square().mean(2)
    mean = torch.stack([row[chosen].mean() for row, chosen in zip(errors, mask, strict=True)])[:, None]
    doubtful = mask & (categories.labels.bool() != (errors >= mean))
    method.training = True  # labels are noted; batch norm still goes by its running statistics
    with torch.no_grad():
        method({"image": image, "slice": keys}, MOMENT)
    method.after_epoch(MOMENT)
    new = method.labels.recall(keys, torch.full((count, 16), -1))
    changed = new != categories.labels
    assert not changed[~doubtful].any()
    flips, total = int(changed.sum()), int(doubtful.sum())
    assert total > 300
    assert abs(flips - total / 2) < 4 * math.sqrt(total / 4)


def test_labels_belong_to_slices_whatever_their_order_and_survive_a_resume() -> None:  # 4.6 (f)
    batch = _batch()
    swapped = {name: part.flip(0) for name, part in batch.items()}
    first, second, resumed = (_method().eval() for _ in range(3))
    later = replace(MOMENT, epoch=1)
    for method, samples in ((first, batch), (second, swapped)):
        method.training = True  # labels are noted, statistics and weights stay
        method(samples, MOMENT)
        method.after_epoch(MOMENT)
    resumed.load_state_dict(first.state_dict())
    expected = first(batch, later)["loss"]
    assert torch.equal(resumed(batch, later)["loss"], expected)
    torch.testing.assert_close(second(swapped, later)["loss"], expected)
    otherwise = torch.full((2, 16), -1)
    assert torch.equal(
        first.labels.recall(batch["slice"], otherwise), second.labels.recall(batch["slice"], otherwise)
    )


def test_looking_at_a_loss_or_a_picture_notes_no_labels() -> None:
    method = _method().eval()
    method(_batch(), MOMENT)
    picture = method.train().picture(_batch(), MOMENT)
    method.after_epoch(MOMENT)
    assert picture.shape == (2 * 34, 3 * 34, 3)
    assert not len(method.labels.get_extra_state()["keys"])


def test_new_labels_decide_what_is_masked_next() -> None:
    method, batch = _method(), _batch()
    chosen = torch.zeros(2, 16, dtype=torch.int64)
    chosen[:, 12:] = 1
    method.labels.note(batch["slice"], chosen)
    method.labels.take_over()
    _, mask = method._masked(batch["image"], batch["slice"], MOMENT)
    assert torch.equal(mask, chosen.bool())


@pytest.mark.parametrize("fill", ["zero", "learned"])
def test_what_is_masked_cannot_be_seen(fill: str) -> None:
    method = _method(replace(OPTIONS, fill=fill)).eval()
    image, _ = _blob()
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[:, :4] = True
    other = image.clone()
    other[:, :, :8] = 50.0
    assert torch.equal(method._reconstructed(image, mask), method._reconstructed(other, mask))
    method._reconstructed(image, mask).sum().backward()
    assert (method.fill.grad is not None) == (fill == "learned")


def test_draws_are_the_slice_itself_and_slices_of_air_are_left_out() -> None:
    voxels = np.full((4, 40, 40), -1000, np.int16)
    voxels[1:3, 5:35, 5:35] = 50
    volumes = UnlabelledVolumes.from_arrays([voxels])
    method = _method()
    assert [anchor.k for anchor in method.anchors(volumes)] == [1, 2]
    first, second = (method.draw(volumes, Anchor(0, 1), np.random.default_rng(n)) for n in range(2))
    assert torch.equal(first["image"], second["image"])
    assert (
        first["slice"]
        == second["slice"]
        != method.draw(volumes, Anchor(0, 2), np.random.default_rng(0))["slice"]
    )
    with pytest.raises(InputError, match="air"):
        method.anchors(UnlabelledVolumes.from_arrays([voxels[:1].repeat(2, 0) + np.eye(40, dtype=np.int16)]))


def test_only_the_encoder_is_kept() -> None:  # 4.6 (g)
    method = _method()
    kept = method.transferable()
    assert {name.split(".")[0] for name in kept} == {"encoder"}
    torch.manual_seed(1)
    fresh = build_backbone("unet2d_64_small")
    fresh.load_state_dict(kept, strict=False)
    mine, other = method.backbone.decoder.state_dict(), fresh.decoder.state_dict()
    assert any(not torch.equal(mine[name], other[name]) for name in mine)


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(InputError, match="multiple of the patch"):
        _method(replace(OPTIONS, patch=12))
    with pytest.raises(InputError, match="less than one"):
        _method(replace(OPTIONS, patch=32))
