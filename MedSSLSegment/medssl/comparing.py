"""Versions of a model, measured on the same case."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from .cases import Vouched, vouched_voxels
from .errors import InputError
from .events import Progress
from .few_labels.segmenter import read_model
from .inference import predict_volume
from .metrics import dice
from .segmentation import Segmentation
from .volume import Volume

__all__ = ["compare_models"]


def compare_models(
    files: Mapping[str, Path],
    volume: Volume,
    truth: Segmentation,
    vouched: Sequence[Vouched],
    *,
    device: str = "auto",
    on_progress: Callable[[Progress], None] = lambda progress: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> dict[str, dict[str, float]]:
    """Dice per model and segment, on the slices that somebody vouches for.

    Args:
        files: weights by what to call them.
        volume: the case's image.
        truth: its annotation, on the same grid.
        vouched: where the annotation counts.
        device: auto, cpu, cuda, cuda:N or mps.
        on_progress: called as each model predicts.
        cancelled: asked between batches.

    Raises:
        InputError: another grid, a model of another modality, or one that finds nothing that is vouched for.
        Cancelled: `cancelled` said so.
    """
    truth.require_grid_of(volume)
    known = {name: vouched_voxels(truth.shape_kji, vouched, name) for name in truth.names}
    scores = {}
    for model, path in files.items():
        trained = read_model(path)
        names = [name for name in trained.info.names if np.any(known.get(name, False))]
        if not names:
            raise InputError(
                f"The model {model} finds {', '.join(trained.info.names)}, and none of these is vouched for in"
                f" {truth.name or 'the case'}."
            )
        found = predict_volume(trained, volume, device=device, on_progress=on_progress, cancelled=cancelled)
        scores[model] = {
            name: dice(found.segmentation.mask(name) & known[name], truth.mask(name) & known[name])
            for name in names
        }
    return scores
