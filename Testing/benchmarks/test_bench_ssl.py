"""The ways that are timed against each other compute the same, and the table says what was timed."""

from __future__ import annotations

import pytest
import torch
from bench_ssl import Timing, report, take_turns
from medssl.backbones import build_backbone
from medssl.backbones.stunet import PATCH
from published_steps import TCSMAEStep, _harder, _patches, with_torch_layers


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def test_the_published_network_gives_what_ours_gives() -> None:
    ours = build_backbone("unet2d_4").eval()
    x = torch.rand(2, 1, 32, 48)
    torch.testing.assert_close(with_torch_layers(ours)(x), ours(x), rtol=1e-4, atol=1e-4)


def test_the_published_mask_hides_the_worst_patches_and_as_many_as_it_must() -> None:
    errors = torch.rand(3, 27)
    visible = _harder(errors, kept=11, hard=0.5)
    assert visible.sum(1).tolist() == [11, 11, 11]
    assert not visible.gather(1, errors.topk(8).indices).any()


def test_patches_are_cubes_of_the_volume() -> None:
    volume = torch.rand(2, 1, 32, 16, 48)
    patches = _patches(volume)
    assert patches.shape == (2, 6, PATCH**3)
    assert torch.equal(patches[1, 4].view(PATCH, PATCH, PATCH), volume[1, 0, 16:, :, 16:32])


def test_a_published_step_of_tcs_mae_learns() -> None:
    step = TCSMAEStep(build_backbone("unet2d_4", 3), 3, 7, 8, 0.75)
    image = torch.rand(2, 3, 32, 32)
    losses = [step(image) for _ in range(12)]
    assert losses[-1] < losses[0]


def test_both_ways_are_run_as_often_and_the_row_gives_the_ratio() -> None:
    runs = {"published": 0, "ours": 0}

    def count(way: str) -> None:
        runs[way] += 1

    timing = take_turns("what", "how", lambda: count("published"), lambda: count("ours"), rounds=4)
    assert runs == {"published": 5, "ours": 5}  # one of each warms up
    assert len(timing.published_s) == len(timing.ours_s) == 4
    row = Timing("what", "how", [0.3, 0.6], [0.2, 0.3]).row()
    assert "| what | how | 450.0 | 250.0 | 1.75" in row
    assert row in report([Timing("what", "how", [0.3, 0.6], [0.2, 0.3])], 2)
