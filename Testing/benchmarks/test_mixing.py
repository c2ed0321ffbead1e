"""The weight of the network against the intensity tracker is learnt from what every weight would have come to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from medssl.foundation.nano_fusion import MIXING_FEATURES, Fusion, LogitNet
from medssl.foundation.nano_model import NanoConfig, NanoModel
from medssl.phantom import phantom_ct
from mixing import _SHARES, MixedSlice, mixed_slices, train_mixing
from nets import train_net
from protocol import Case, object_tasks

SURE = MIXING_FEATURES.index("mean probability inside the network's mask")


def a_slice(sure: float, gain: float, organ: str = "liver") -> MixedSlice:
    """A slice on which the network's mask is better by `gain` where it is sure, and else worse."""
    features = np.zeros(len(MIXING_FEATURES))
    features[[0, SURE]] = 1.0, sure
    slope = gain if sure > 0.75 else -gain
    return MixedSlice("ct_hn_1", ("ct_hn_1", organ), features, 0.7 + slope * (_SHARES - 0.5), 100)


def test_the_network_has_its_say_where_it_is_right() -> None:
    slices = [a_slice(sure, 0.2) for sure in np.linspace(0.5, 1.0, 60)]
    net = train_mixing(slices)
    even = LogitNet(linear=(0.0,) * len(MIXING_FEATURES))
    assert np.mean([each.dice_of(even) for each in slices]) == pytest.approx(0.7)
    assert np.mean([each.dice_of(net) for each in slices]) > 0.78


def test_a_gain_too_small_to_matter_leaves_the_weights_in_the_middle() -> None:
    slices = [a_slice(sure, 0.005) for sure in np.linspace(0.5, 1.0, 60)]
    net = train_mixing(slices)
    shares = 1 / (1 + np.exp(-np.array([net.logit(each.features) for each in slices])))
    assert np.abs(shares - 0.5).max() < 0.15


def test_the_net_finds_the_logits_of_a_weighted_sum() -> None:
    rng = np.random.default_rng(0)
    features = np.column_stack([np.ones(4000), rng.normal(5.0, 3.0, 4000)])
    truth = features @ [-2.0, 0.5]
    wanted = torch.from_numpy(1 / (1 + np.exp(-truth)))
    net = train_net(
        features,
        lambda logits, rows: torch.nn.functional.binary_cross_entropy_with_logits(logits, wanted[rows]),
    )
    assert np.abs(net.logit(features) - truth).mean() < 0.15


def test_every_slice_of_an_object_is_tried_with_every_weight() -> None:
    torch.manual_seed(0)
    model = NanoModel(
        NanoConfig(image_size=64, embed_dim=8, model_dim=64, memory_dim=32, memories=3, edge_width=4)
    ).eval()
    phantom = phantom_ct(1, (16, 48, 64), (8.0, 7.0, 7.0))
    organs = {each.label: each.name for each in phantom.segmentation.segments if each.name == "liver"}
    case = Case("phantom_1", phantom.volume, phantom.segmentation.labels_kji, organs)
    (task,) = object_tasks(case)

    tried = list(mixed_slices(model, Fusion(), case))

    assert len(tried) == task.last - task.first
    assert {each.target for each in tried} == {("phantom_1", "liver")}
    truth = sum(int(task.truth_kji[k].sum()) for k in range(task.first, task.last + 1) if k != task.index)
    assert sum(each.true for each in tried) == truth
    for each in tried:
        assert each.dice.shape == _SHARES.shape
        assert ((each.dice >= 0) & (each.dice <= 1)).all()
    assert max(each.dice[0] for each in tried) > 0.5  # the intensity tracker alone, on a phantom
