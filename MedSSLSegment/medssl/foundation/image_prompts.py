"""What the image predictors of both packages are fed: a slice as an RGB picture, a prompt as plain arrays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from ..errors import InputError
from ..prompts import SlicePrompt, box_of_mask
from ..volume import Window
from .protocols import Prediction

__all__ = ["PromptArrays", "answers_of", "arrays_of", "mask_logits", "rgb_of"]

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

    @property
    def is_one_click(self) -> bool:
        """Whether one click is all there is: it can mean a part or the whole, and is asked for three answers."""
        return self._counts == (1, False)

    @property
    def is_one_box(self) -> bool:
        """Whether one box is all there is."""
        return self._counts == (0, True)

    @property
    def _counts(self) -> tuple[int, bool] | None:
        """Points, and whether there is a box; none where there is a mask."""
        points = 0 if self.points_xy_px is None else len(self.points_xy_px)
        return None if self.mask is not None else (points, self.box_xyxy_px is not None)


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
    )


def answers_of(
    predictor: Any, arrays: PromptArrays, mask_input: NDArray[np.float32] | None
) -> Iterator[Prediction]:
    """What ``SamPredictor`` or ``SAM2ImagePredictor`` answers on the slice that it was shown, the likeliest first.

    To a click three answers, by their scores; to a box the packages' one, and then three more; one to all else.

    Args:
        predictor: of either package.
        arrays: the prompt.
        mask_input: (1, s, s) logits that go with it, of a mask prompt or of what was found before.
    """
    is_one_box = arrays.is_one_box and mask_input is None
    for several in (False, True) if is_one_box else (arrays.is_one_click and mask_input is None,):
        masks, scores, logits = predictor.predict(
            point_coords=arrays.points_xy_px,
            point_labels=arrays.point_labels,
            box=arrays.box_xyxy_px,
            mask_input=mask_input,
            multimask_output=several,
        )  # (C, H, W), (C,), (C, s, s)
        for n in np.argsort(-scores, kind="stable"):
            yield Prediction(masks[n] > 0.5, min(max(float(scores[n]), 0.0), 1.0), logits[n])


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
