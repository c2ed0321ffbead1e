"""What the image predictors of both packages are fed: a slice as an RGB picture, a prompt as plain arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from ..errors import InputError
from ..prompts import SlicePrompt, box_of_mask
from ..volume import Window

__all__ = ["PromptArrays", "arrays_of", "mask_logits", "rgb_of"]

_LOGIT_SCALE = 20.0  # a mask as logits of -10 and +10, as SAM 2 writes the masks it is given
_LOGIT_BIAS = -10.0


def rgb_of(slice_hu: NDArray[np.generic], window: Window) -> NDArray[np.uint8]:
    """Show a slice (H, W) through a window as the picture (H, W, 3) that the models were trained on."""
    if slice_hu.ndim != 2:
        raise InputError(f"A slice has two dimensions; got shape {slice_hu.shape}.")
    return np.repeat(window.to_uint8(slice_hu)[..., None], 3, axis=-1)


@dataclass(frozen=True, eq=False)
class PromptArrays:
    """A prompt as the arguments of ``SamPredictor.predict`` and ``SAM2ImagePredictor.predict``."""

    points_xy_px: NDArray[np.float32] | None
    point_labels: NDArray[np.int32] | None
    box_xyxy_px: NDArray[np.float32] | None
    mask: NDArray[np.bool_] | None
    several: bool
    """Whether to ask for three answers: one click alone can mean a part or the whole."""


def arrays_of(prompt: SlicePrompt, shape_hw: tuple[int, int]) -> PromptArrays:
    """Check a prompt against the slice that was set and take it apart.

    A mask alone is sent with its box: the models never saw a mask without a point or a box.

    Raises:
        InputError: the mask is empty or has another shape than the slice.
    """
    has_points = len(prompt.points_xy_px) > 0
    box = prompt.box_xyxy_px
    if prompt.mask is not None:
        if prompt.mask.shape != shape_hw:
            raise InputError(f"The mask prompt has shape {prompt.mask.shape}, but the slice has {shape_hw}.")
        if not prompt.mask.any():
            raise InputError("The mask prompt is empty; mark at least one pixel of the object.")
        if box is None and not has_points:
            box = box_of_mask(prompt.mask)
    return PromptArrays(
        points_xy_px=prompt.points_xy_px if has_points else None,
        point_labels=prompt.point_labels if has_points else None,
        box_xyxy_px=box,
        mask=prompt.mask,
        several=len(prompt.points_xy_px) == 1 and box is None and prompt.mask is None,
    )


def mask_logits(mask: NDArray[np.bool_], size_hw: tuple[int, int]) -> NDArray[np.float32]:
    """Bring a mask (H, W) to the grid of a model's mask prompt as logits: -10 off the object, +10 on it.

    Returns:
        (1, h, w) float32; pixels cut by the object's edge lie in between.
    """
    soft = F.interpolate(
        torch.from_numpy(mask.astype(np.float32))[None, None],
        size=size_hw,
        mode="bilinear",
        align_corners=False,
        antialias=True,
    )
    logits: NDArray[np.float32] = (soft[0] * _LOGIT_SCALE + _LOGIT_BIAS).numpy()
    return logits
