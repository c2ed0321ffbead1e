"""What a run takes is told before it begins, and a budget in minutes holds for all of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from medssl.datasets.data import Scan, intensity_stats
from medssl.datasets.input_contract import InputContract
from medssl.few_labels.annotated_samples import AnnotatedCase
from medssl.few_labels.finetuning import FinetuneSettings, automatic
from medssl.few_labels.segmenter import ModelInfo, SegmentationModel
from medssl.few_labels.time_budget import Pace, measured_pace
from medssl.segmentation import Segment

CONTRACT = InputContract(size=(32, 32), spacing_kji_mm=(None, 1.0, 1.0))


def test_steps_and_validations_share_a_time() -> None:
    pace = Pace(step_seconds=0.5, validation_seconds=2.0)
    settings = pace.within(FinetuneSettings(validations=8, closing=0.0), 120.0)
    assert (settings.steps, settings.validations) == (208, 8)
    assert pace.seconds(settings) == 120.0
    closing = pace.within(FinetuneSettings(validations=8, closing=0.3), 120.0)
    assert (closing.steps, closing.closing_steps) == (160, 48)
    assert pace.seconds(closing) == 120.0


@pytest.mark.parametrize(("seconds", "validations"), [(300.0, 7), (40.0, 1), (1.0, 1)])
def test_slow_validations_become_fewer_and_a_few_steps_are_done_in_any_case(
    seconds: float, validations: int
) -> None:
    pace = Pace(step_seconds=1.0, validation_seconds=10.0)
    settings = pace.within(FinetuneSettings(validations=8, closing=0.0), seconds)
    assert settings.validations == validations
    assert settings.steps == max(10, seconds - 10.0 * validations)


@pytest.mark.parametrize("held_out", [(), (3, 4, 5, 11)])
def test_the_pace_is_measured_and_the_network_left_as_it_was(held_out: tuple[int, ...]) -> None:
    labels = np.zeros((12, 20, 20), np.uint8)
    labels[:, 5:12, 5:12] = 1
    image = np.where(labels, 100, 0).astype(np.int16)
    scan = Scan("s", "s", "p", labels.shape, (1.0, 1.0, 1.0), intensity_stats(image))
    case = AnnotatedCase(scan, image, labels, np.array([True, True]))
    segment = Segment("rod", 1, (1.0, 0.0, 0.0))
    network = SegmentationModel.build(
        ModelInfo(backbone="unet2d_4", contract=CONTRACT, segments=(segment,))
    ).network
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    settings = automatic(FinetuneSettings(batch=2), network, 1, pretrained=False)
    measure_on = [case.only_slices(list(held_out))] if held_out else []
    pace = measured_pace(network, [case], measure_on, CONTRACT, ["rod"], settings)
    assert pace.step_seconds > 0
    assert (pace.validation_seconds > 0) is bool(held_out)
    assert network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
