"""What fine-tuning takes, told before it begins, and how much of it fits into a budget."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ..datasets.input_contract import InputContract
from .annotated_samples import AnnotatedCase, by_scan, vouched_slices
from .finetuning import FinetuneSettings, predictor_of, step_seconds
from .segmenter import Segmenter

__all__ = ["CARRYING_SHARE", "Pace", "measured_pace"]

CARRYING_SHARE = 0.5
"""Of a budget: what carrying labels may take at most; the steps need the rest."""
_VALIDATING_SHARE = 0.25
"""Of the time of training: what validations may take at most where there is a budget."""
_LEAST_STEPS = 10


@dataclass(frozen=True)
class Pace:
    """How fast a network learns on this machine."""

    step_seconds: float = 0.0
    """Of one optimiser step."""
    validation_seconds: float = 0.0
    """Of measuring what is held out once; 0 where nothing is."""

    def seconds(self, settings: FinetuneSettings) -> float:
        """What training takes with settings that say the number of steps, if it does not stop early."""
        steps = (settings.steps or 0) + settings.closing_steps
        return steps * self.step_seconds + settings.validations * self.validation_seconds

    def within(self, settings: FinetuneSettings, seconds: float) -> FinetuneSettings:
        """The settings with as many steps as a time allows, and no more validations than a quarter of it does.

        Args:
            settings: without None; their number of steps does not count.
            seconds: for training; ten steps are done in any case.
        """
        validations = settings.validations
        if validations * self.validation_seconds > _VALIDATING_SHARE * seconds:
            validations = max(1, int(_VALIDATING_SHARE * seconds / self.validation_seconds))
        left = seconds - validations * self.validation_seconds
        steps = max(_LEAST_STEPS, int(left / (self.step_seconds * (1.0 + settings.closing))))
        return replace(settings, steps=steps, validations=validations)


def measured_pace(
    network: Segmenter,
    learn_from: Sequence[AnnotatedCase],
    measure_on: Sequence[AnnotatedCase],
    contract: InputContract,
    segments: Sequence[str],
    settings: FinetuneSettings,
    device: torch.device | str = "cpu",
) -> Pace:
    """Take a few steps on a copy of a network, and predict some slices of what is held out.

    Args:
        network: only read.
        learn_from: cases to draw samples from.
        measure_on: held out; may be empty.
        contract: the network's input.
        segments: names, in the order of the network's channels.
        settings: without None, as `automatic` gives them.
        device: to train on.

    Raises:
        InputError: nothing is annotated.
    """
    step = step_seconds(network, learn_from, contract, segments, settings, device)
    return Pace(step, _validation_seconds(network.to(device), measure_on, contract, device))


def _validation_seconds(
    network: Segmenter,
    measure_on: Sequence[AnnotatedCase],
    contract: InputContract,
    device: torch.device | str,
) -> float:
    """From the first slices that are ready of the first scan; all scans count by their slices."""
    scans = [(parts[0], vouched_slices(parts)) for parts in by_scan(measure_on).values()]
    if not scans:
        return 0.0
    (first, wanted), was_training = scans[0], network.training
    begun = time.perf_counter()
    slabs = predictor_of(network.eval(), contract, device).slabs(first.image, first.scan.stats, wanted=wanted)
    slab = next(slabs)
    seconds = time.perf_counter() - begun
    network.train(was_training)
    return seconds * sum(len(slices) for _, slices in scans) / (slab.stop - slab.first)
