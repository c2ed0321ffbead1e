"""AnatoMask: a teacher says what is hard, and that is masked more and more (methods.md, 3.3, 3.5 and 3.6)."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from medssl.backbones.stunet import stunet
from medssl.datasets.input_contract import InputContract
from medssl.errors import InputError
from medssl.methods.anatomask import AnatoMask, AnatoMaskOptions, harden_masks, rank_patches
from medssl.methods.base import Moment
from medssl.methods.block_masks import count_masked, random_masks
from medssl.methods.reconstruction import PatchTargets
from torch import Tensor

WIDTHS = (4, 4, 8, 8, 16, 16)
CONTRACT = InputContract(spatial_dims=3, size=(32, 32, 32))


def method(**options: Any) -> AnatoMask:
    torch.manual_seed(0)
    return AnatoMask(stunet(1, widths=WIDTHS, depth=1), CONTRACT, AnatoMaskOptions(**options))


def moment(step: int, steps: int = 1000) -> Moment:
    return Moment(step=step, steps=steps, epoch=step // 10, epochs=steps // 10)


def batch(count: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "image": torch.randn(count, 1, 32, 32, 32, generator=generator),
        "padded": torch.zeros(count, 2, 2, 2, dtype=torch.bool),
    }


def harden(part: float, samples: int = 4, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """First mask, rank, hard count and final mask of blocks of 8 x 7 x 7 patches, as the paper has."""
    generator = torch.Generator().manual_seed(seed)
    padded = torch.zeros(samples, 8, 7, 7, dtype=torch.bool)
    count = count_masked(padded, 0.6)
    first = random_masks(padded, count, generator)
    rank = torch.rand(padded.shape, generator=generator)
    hard = torch.floor(part * count).long()
    return first, rank, hard, harden_masks(first, rank, padded, count, hard, generator)


def test_at_first_masks_do_not_depend_on_the_teacher() -> None:
    # 3.6 (a)
    assert AnatoMaskOptions().hard_part(moment(0)) == 0.0
    generator = torch.Generator().manual_seed(3)
    samples = 10_000
    padded = torch.zeros(samples, 2, 2, 2, dtype=torch.bool)
    rank = torch.arange(8.0).reshape(1, 2, 2, 2).expand(samples, -1, -1, -1)
    count = count_masked(padded, 0.6)
    first = random_masks(padded, count, generator)
    masked = harden_masks(first, rank, padded, count, torch.zeros_like(count), generator)
    often = masked.sum(0).double()
    assert masked.flatten(1).sum(1).unique().tolist() == [5]
    assert (
        float(((often - often.mean()) ** 2 / often.mean()).sum()) < 24.3
    )  # chi squared, 7 degrees, p = 0.001


def test_at_last_half_of_what_is_masked_is_the_hardest() -> None:
    # 3.6 (b)
    assert AnatoMaskOptions().hard_part(moment(999)) == 0.5
    first, rank, hard, masked = harden(0.5)
    assert hard.tolist() == [117] * 4
    for n in range(4):
        hardest = torch.where(first[n], rank[n], -1.0).flatten().topk(117).indices
        assert masked[n].flatten()[hardest].all()
        assert int(masked[n].sum()) == 235
        others = masked[n].flatten().clone()
        others[hardest] = False
        assert int(others.sum()) == 118
        assert (others & ~first[n].flatten()).any()  # also of what the teacher saw


@pytest.mark.parametrize("part", [0.0, 0.1, 0.25, 0.5])
def test_the_number_of_masked_patches_never_changes(part: float) -> None:
    first, _, hard, masked = harden(part)
    assert hard.tolist() == [math.floor(part * 235)] * 4
    assert masked.flatten(1).sum(1).tolist() == first.flatten(1).sum(1).tolist()


def test_padding_stays_visible_however_hard_it_is() -> None:
    generator = torch.Generator().manual_seed(0)
    padded = torch.zeros(2, 3, 3, 3, dtype=torch.bool)
    padded[0, 2] = True
    count = count_masked(padded, 0.6)
    first = random_masks(padded, count, generator)
    rank = torch.where(padded, 100.0, torch.rand(padded.shape, generator=generator))
    masked = harden_masks(first, rank, padded, count, count // 2, generator)
    assert not (masked & padded).any()
    assert masked.flatten(1).sum(1).tolist() == count.tolist()


def test_the_teacher_is_the_closed_form_average_of_its_student() -> None:
    # 3.6 (c), parameters and norm statistics
    learner = method(decoder_norm="batch", ema_from=0.5, ema_to=0.9).train()
    wanted = {name: value.clone() for name, value in learner.student.state_dict().items()}
    optimiser = torch.optim.SGD([p for p in learner.parameters() if p.requires_grad], 0.05)
    for step in range(3):
        now = moment(step, steps=9)
        optimiser.zero_grad()
        learner(batch(), now)["loss"].backward()
        optimiser.step()
        learner.after_step(now)
        decay = 0.5 + 0.4 * min(step / 8 / 0.25, 1.0)
        for name, value in learner.student.state_dict().items():
            average = (
                wanted[name] * decay + value * (1 - decay) if value.is_floating_point() else value.clone()
            )
            wanted[name] = average
    assert any("running_var" in name for name in wanted)
    for name, value in learner.teacher.state_dict().items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-5, atol=1e-6)
    assert all(p.grad is None and not p.requires_grad for p in learner.teacher.parameters())
    assert not any(module.training for module in learner.teacher.modules())


def test_the_teacher_slows_down_over_the_first_quarter() -> None:
    options = AnatoMaskOptions()
    steps = 1001
    decays = [options.ema_decay(moment(step, steps)) for step in (0, 125, 250, 1000)]
    assert decays == pytest.approx([0.999, 0.99945, 0.9999, 0.9999])


@pytest.mark.parametrize(
    ("rule", "step", "hard", "count"),
    [("text", 999, 117, 235), ("alg1", 999, 196, 236), ("text", 500, 58, 235), ("code", 999, 118, 235)],
)
def test_hard_patches_are_counted_by_the_rule_asked_for(rule: Any, step: int, hard: int, count: int) -> None:
    learner = method(count_rule=rule)
    padded = torch.zeros(1, 8, 7, 7, dtype=torch.bool)
    first = random_masks(padded, count_masked(padded, 0.6), moment(step).generator())
    counted, hardest = learner._counts(first, padded, moment(step))
    assert (hardest.item(), counted.item()) == (hard, count)


def scene() -> Tensor:
    """Air, an edge of lung and liver, and noisy liver, in z-scores; one patch each."""
    air, edge = torch.full((16, 16, 16), -4.0), torch.full((16, 16, 16), -3.0)
    edge[:, :, 8:] = 0.6
    liver = 0.6 + 0.05 * torch.randn(16, 16, 16, generator=torch.Generator().manual_seed(0))
    return torch.cat([air, edge, liver])[None, None]


@pytest.mark.parametrize(("space", "hardest"), [("intensity", 1), ("official", 0)])
def test_edges_are_hard_in_intensities_and_air_in_the_official_ranking(space: Any, hardest: int) -> None:
    # 3.6 (g), and finding 1
    image = scene()
    for know in (0.0, 0.5):  # of what there is to know
        targets = PatchTargets.of(image)
        rank = rank_patches(know * targets.normalised, image, targets, space).flatten()
        assert int(rank.argmax()) == hardest


def test_a_constant_patch_is_never_hard_whatever_the_teacher_says() -> None:
    # 3.6 (g)
    image = scene()
    targets = PatchTargets.of(image)
    wild = targets.normalised.clone()
    wild[:, :, :16] = 1e3  # far off where there is air, perfect but for noise elsewhere
    wild[:, :, 16:] += 0.01
    air, edge, liver = rank_patches(wild, image, targets, "intensity").flatten().tolist()
    assert air < min(edge, liver)


def test_intensity_error_is_the_error_of_the_restored_patch() -> None:
    image = batch()["image"]
    targets = PatchTargets.of(image)
    guess = torch.randn(image.shape, generator=torch.Generator().manual_seed(5))
    slow = (targets.restore(guess) - image).square().reshape(2, 2, 16, 2, 16, 2, 16).mean((2, 4, 6))
    torch.testing.assert_close(rank_patches(guess, image, targets, "intensity"), slow, rtol=1e-4, atol=1e-4)


def test_a_step_repeats_and_another_step_masks_other_patches() -> None:
    learner, samples = method(), batch(8)
    targets = PatchTargets.of(samples["image"])
    first, again, later = (learner.choose_mask(samples, targets, moment(step))[0] for step in (700, 700, 701))
    assert torch.equal(first, again)
    assert not torch.equal(first, later)


def test_an_encoder_file_may_hold_the_teacher() -> None:
    student, teacher = method(), method(export="teacher")
    for learner in (student, teacher):
        with torch.no_grad():
            for weight in learner.teacher.parameters():
                weight.add_(1.0)
    ones, others = student.transferable(), teacher.transferable()
    assert ones.keys() == others.keys()
    for name, weight in ones.items():
        assert torch.equal(weight, student.backbone.state_dict()[name])
        assert torch.equal(others[name], teacher.teacher.state_dict()[name])
        assert torch.equal(others[name], weight + 1.0)


def test_weights_of_the_teacher_are_not_optimised_and_not_kept() -> None:
    learner = method()
    assert not any("teacher" in name for name, p in learner.named_parameters() if p.requires_grad)
    assert all(name.startswith("encoder.") for name in learner.transferable())
    assert any(name.startswith("teacher.") for name in learner.state_dict())


def test_a_saved_method_goes_on_as_if_never_stopped() -> None:
    learner, samples = method().train(), batch()
    learner.after_step(moment(0))
    with torch.no_grad():
        for p in learner.backbone.parameters():
            p.add_(0.01)
    other = method().train()
    other.load_state_dict(learner.state_dict())
    for now in (moment(500), moment(501)):
        assert torch.equal(learner(samples, now)["loss"], other(samples, now)["loss"])


@pytest.mark.parametrize(
    "options",
    [{"hard_to": 1.2}, {"hard_to": 0.7, "count_rule": "alg1"}, {"ema_from": 1.5}, {"mask_ratio": 1.0}],
)
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        AnatoMaskOptions(**options)
