"""The prediction benchmark compares the same thing: where one window covers all, every way gives the same labels."""

from __future__ import annotations

import numpy as np
import torch
from bench_predict import Turns, everywhere, monai_way, organ_rows, ours, table_rows
from medssl.datasets.input_contract import InputContract
from medssl.few_labels.segmenter import ModelInfo, SegmentationModel
from medssl.segmentation import Segment
from medssl.volume import Volume


def a_model(contract: InputContract) -> SegmentationModel:
    torch.manual_seed(0)
    info = ModelInfo(backbone="unet2d_4", contract=contract, segments=(Segment("liver", 3, (1.0, 0.0, 0.0)),))
    model = SegmentationModel.build(info)
    with torch.no_grad():
        model.network.head.weight.mul_(20.0)  # random weights that decide
    return model


def test_all_ways_give_the_same_labels_where_one_window_covers_a_slice() -> None:
    voxels = np.random.default_rng(0).integers(-100, 200, (3, 32, 32)).astype(np.int16)
    volume = Volume(voxels, np.diag([2.0, 2.0, 4.0, 1.0]))
    model = a_model(InputContract(size=(32, 32), window_hu=(-200.0, 400.0)))
    mine = ours(model, volume)
    assert set(np.unique(mine)) == {0, 3}
    assert (mine == monai_way(0.25)(model, volume)).mean() > 0.999
    assert (mine == everywhere(model, volume)).mean() > 0.999


def test_ratios_are_taken_turn_by_turn() -> None:
    model = a_model(InputContract(size=(32, 32)))
    turns = {"ours": Turns([1.0, 10.0], {"liver": [0.8]})}
    turns["MONAI, overlap 0.25"] = Turns([3.0, 20.0], {"liver": [0.7]})
    (row,) = table_rows("net", model, turns)
    assert "**2.50**" in row
    assert row.endswith("| 0.700 | 0.800 |")
    assert organ_rows("net", turns) == ["| net | liver | 0.700 | - | 0.800 |"]
