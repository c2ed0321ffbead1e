"""Promptable models. The only package that touches ``segment_anything`` and ``sam2``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ModelError
from ..registry import ModelEntry, find_entry, known_models

if TYPE_CHECKING:
    import torch

    from .protocols import ImagePredictor, SliceTracker

__all__ = ["load_image_predictor", "load_tracker", "open_image_predictor"]


def load_image_predictor(model_id: str, device: str = "auto") -> ImagePredictor:
    """Load a model of the registry for clicks and boxes on one slice.

    Args:
        model_id: e.g. ``medssl-nano``, ``sam2.1-hiera-tiny``, ``sam-vit-b``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises:
        ModelError: the model is unknown, not on this machine or damaged, or there is no such device.
    """
    entry = find_entry(model_id)
    from .runtime import pick_device

    return open_image_predictor(entry, pick_device(device))


def open_image_predictor(entry: ModelEntry, place: torch.device) -> ImagePredictor:
    """What `load_image_predictor` does, of a model that has been looked up.

    Raises:
        ModelError: it is not on this machine, damaged, or does not fit.
    """
    if entry.kind == "sam":
        from .sam import load_sam

        return load_sam(entry, place)
    if entry.kind == "sam2":
        from .sam2_image import Sam2ImagePredictor

        return Sam2ImagePredictor.from_entry(entry, place)
    from .nano_image import NanoImagePredictor

    return NanoImagePredictor.from_entry(entry, place)


def load_tracker(model_id: str, device: str = "auto") -> SliceTracker:
    """Load a model of the registry that carries masks from slice to slice.

    Args:
        model_id: e.g. ``medssl-nano``, ``sam2.1-hiera-tiny``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises:
        ModelError: the model is unknown, cannot propagate, is not on this machine or damaged, or there is no
            such device.
    """
    entry = find_entry(model_id)
    if not entry.propagates:
        able = ", ".join(e.id for e in known_models() if e.propagates)
        raise ModelError(
            f"The model {model_id} works on single slices and cannot propagate; choose one of {able}."
        )
    from .runtime import pick_device

    place = pick_device(device)
    if entry.kind == "sam2":
        from .sam2_tracker import Sam2SliceTracker

        return Sam2SliceTracker.from_entry(entry, place)
    from .nano import NanoTracker

    return NanoTracker.from_entry(entry, place)
