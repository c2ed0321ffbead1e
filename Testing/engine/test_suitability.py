"""A model says when a volume is unlike those it has learnt from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from medssl.datasets.grid import PreparedGrid
from medssl.datasets.input_contract import InputContract
from medssl.errors import InputError
from medssl.few_labels.segmenter import ModelInfo
from medssl.few_labels.suitability import check_volume, spacing_range
from medssl.segmentation import Segment
from medssl.volume import Volume

INFO = ModelInfo(
    backbone="unet2d_4",
    contract=InputContract(size=(32, 32), spacing_kji_mm=(None, 2.0, 2.0)),
    segments=(Segment("liver", 1, (1.0, 0.0, 0.0)),),
    spacing_kji_mm=((2.0, 3.0), (0.8, 1.0), (0.8, 1.0)),
)
SOLID = replace(INFO, contract=InputContract(spatial_dims=3, size=(8, 8, 8)))
MR_MODEL = replace(INFO, contract=replace(INFO.contract, modality="MR", scale="volume"))


def volume(darkest: float = -1000.0, spacing_kji_mm: tuple[float, float, float] = (3.0, 1.0, 1.0)) -> Volume:
    voxels = np.random.default_rng(0).integers(0, 200, (6, 20, 22)).astype(np.int16)
    voxels[:, :4] = darkest
    return Volume(voxels, np.diag([*reversed(spacing_kji_mm), 1.0]), "scan")


@pytest.mark.parametrize("darkest", [-1000.0, -100.0])
def test_a_ct_suits_a_model_of_ct_with_air_or_with_fat_alone(darkest: float) -> None:
    assert check_volume(INFO, volume(darkest)) == []


@pytest.mark.parametrize(
    ("info", "darkest", "sentence"),
    [
        (
            INFO,
            0.0,
            r"scan does not look like CT \(its darkest voxels have 0, .*has learnt from CT; use a model",
        ),
        (MR_MODEL, -1000.0, "scan looks like CT, but the model has learnt from MR; use a model"),
    ],
)
def test_another_modality_is_refused_and_can_be_asked_for_anyway(
    info: ModelInfo, darkest: float, sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        check_volume(info, volume(darkest))
    (warning,) = check_volume(info, volume(darkest), anyway=True)
    assert warning.text.endswith("do not trust the result.")


@pytest.mark.parametrize(
    ("info", "spacing", "told"),
    [
        (INFO, (3.0, 1.9, 1.0), []),
        (INFO, (3.0, 2.1, 1.0), ["2.1 mm from front to back, but the model has learnt from 0.8 to 1 mm"]),
        (INFO, (9.0, 1.0, 1.0), []),  # each slice is seen by itself
        (INFO, (3.0, 0.1, 1.0), []),  # it is made coarser
        (SOLID, (9.0, 1.0, 0.3), ["9 mm between slices", "0.3 mm from left to right"]),
        (replace(SOLID, spacing_kji_mm=()), (9.0, 9.0, 9.0), []),  # an older file does not say it
    ],
)
def test_far_off_voxel_sizes_are_told_where_they_matter(
    info: ModelInfo, spacing: tuple[float, float, float], told: list[str]
) -> None:
    warnings = [warning.text for warning in check_volume(info, volume(spacing_kji_mm=spacing))]
    assert len(warnings) == len(told)
    assert all(part in text for part, text in zip(told, warnings, strict=True))


def test_the_range_of_voxel_sizes_is_along_the_bodys_axes() -> None:
    upright = Volume(volume().voxels_kji, np.diag([1.0, 2.0, 3.0, 1.0]))
    lying = np.zeros((4, 4))
    lying[0, 0], lying[2, 1], lying[1, 2], lying[3, 3] = (
        1.5,
        4.0,
        2.5,
        1.0,
    )  # rows run upwards: K is front to back
    grids = [PreparedGrid.of(v, InputContract()) for v in (upright, Volume(volume().voxels_kji, lying))]
    assert spacing_range(grids) == ((3.0, 4.0), (2.0, 2.5), (1.0, 1.5))
    assert spacing_range([]) == ()
