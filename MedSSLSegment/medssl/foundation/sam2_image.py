"""Clicks and boxes on one slice with SAM 2.1 and MedSAM2.

B boxes, C answers, H x W slice, S side of the model's input, s = S / 4 side of its mask logits.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..checkpoints import read_weights
from ..prompts import SlicePrompt
from ..registry import ModelEntry, verified_path
from ..volume import Window
from .correcting import Corrections, chosen
from .image_prompts import answers_of, arrays_of, mask_logits, rgb_of
from .protocols import EncodedImage, Prediction
from .runtime import ensure_torchvision_operators
from .sam2_build import build_sam2_model

__all__ = ["Sam2ImagePredictor"]

_BOXES_AT_ONCE = 16
_STRIDES = (4, 8, 16)  # of the three feature maps the mask decoder uses


class Sam2ImagePredictor:
    """The package's own ``SAM2ImagePredictor`` behind the engine's face, at any input size; same results."""

    def __init__(self, model: Any) -> None:
        """Wrap a model of `build_sam2_model`."""
        ensure_torchvision_operators()
        from sam2.sam2_image_predictor import SAM2ImagePredictor

        with (
            warnings.catch_warnings()
        ):  # its transforms are compiled with torch.jit, which newer torch deprecates
            warnings.simplefilter("ignore", DeprecationWarning)
            self._predictor = SAM2ImagePredictor(model)
        self._side: int = model.image_size
        # The package writes down the feature sizes of a 1024 pixel input; the model itself works at any size.
        self._predictor._bb_feat_sizes = [(self._side // stride, self._side // stride) for stride in _STRIDES]
        self._shape_hw = (0, 0)
        self._corrections = Corrections()

    @classmethod
    def from_entry(cls, entry: ModelEntry, device: torch.device | str) -> Sam2ImagePredictor:
        """Load a model of kind ``sam2`` from the registry.

        Raises:
            ModelError: the file is missing, is not the registry's, or does not fit its configuration.
        """
        weights = read_weights(verified_path(entry))
        return cls(build_sam2_model(entry.config, entry.image_size, weights, device=device))

    def set_image(
        self, slice_hu: NDArray[np.generic], window: Window, spacing_rc_mm: tuple[float, float]
    ) -> None:
        """Encode one slice (H, W); see `ImagePredictor`. Pixel size makes no difference to SAM 2."""
        picture = rgb_of(slice_hu, window)
        self._predictor.set_image(picture)
        height, width = slice_hu.shape
        self._shape_hw = (height, width)
        self._corrections.forget()

    @property
    def encoder(self) -> Any:
        """The network that `set_image` runs."""
        return self._predictor.model.image_encoder

    def encoded(self) -> EncodedImage:
        """What the last `set_image` worked out."""
        features = self._predictor._features
        tensors = (features["image_embed"], *features["high_res_feats"])
        return EncodedImage((features, self._shape_hw), sum(tensor.nbytes for tensor in tensors))

    def show(self, image: EncodedImage) -> None:
        """Go back to a slice that was encoded before."""
        features, self._shape_hw = image.state
        self._predictor._features, self._predictor._orig_hw = features, [self._shape_hw]
        self._predictor._is_image_set, self._predictor._is_batch = True, False
        self._corrections.forget()

    def predict(self, prompt: SlicePrompt) -> Prediction:
        """Answer one prompt on the slice that was set.

        There are several answers to a single click or box, the likeliest first (`answers_of`); what it has found goes
        with all further points.
        """
        return self._corrections.answer(prompt, self._answer)

    def _answer(self, prompt: SlicePrompt, found: Prediction | None) -> Prediction:
        arrays = arrays_of(prompt, self._shape_hw)
        mask_input = None if found is None else found.logits[None]
        if arrays.mask is not None:
            side = self._side // _STRIDES[0]
            mask_input = mask_logits(arrays.mask, (side, side))
        return chosen(answers_of(self._predictor, arrays, mask_input), prompt.choice)

    def predict_boxes(
        self, boxes_xyxy_px: NDArray[np.float32], hint: NDArray[np.bool_] | None = None
    ) -> list[Prediction]:
        """Answer (B, 4) boxes on the slice that was set, one answer each."""
        predictions: list[Prediction] = []
        for start in range(0, len(boxes_xyxy_px), _BOXES_AT_ONCE):
            masks, scores, logits = self._predictor.predict(
                box=boxes_xyxy_px[start : start + _BOXES_AT_ONCE], multimask_output=False
            )  # (B, 1, H, W), (B, 1), (B, 1, s, s); for one box without its first axis
            predictions += [
                Prediction(mask > 0.5, float(score), logit)
                for mask, score, logit in zip(
                    masks.reshape(-1, *self._shape_hw),
                    scores.reshape(-1),
                    logits.reshape(-1, *logits.shape[-2:]),
                    strict=True,
                )
            ]
        return predictions
