"""Clicks and boxes on one slice with Segment Anything (ViT-B, ViT-L, ViT-H) and MedSAM.

B boxes, C answers, H x W slice, S side of the model's input, s = S / 4 side of its mask logits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ..checkpoints import load_into, read_weights
from ..errors import InputError, ModelError
from ..prompts import SlicePrompt
from ..registry import ModelEntry, verified_path
from ..volume import Window
from .correcting import Corrections, chosen
from .image_prompts import answers_of, arrays_of, mask_logits, rgb_of
from .protocols import EncodedImage, Prediction
from .runtime import ensure_torchvision_operators

__all__ = ["MedSamImagePredictor", "SamImagePredictor", "build_sam", "load_sam"]

_MEDSAM = "medsam_"
_STATE = (
    "features",
    "original_size",
    "input_size",
    "is_image_set",
)  # all that ``SamPredictor`` keeps of a slice
_BOXES_AT_ONCE = 16  # every box is upsampled to the model's input size: 4 MB each at 1024
_LOGITS_PER_PIXEL = 4  # the mask decoder works at a quarter of the input's resolution


def build_sam(layout: str) -> Any:
    """Build ``segment_anything.modeling.Sam`` with random weights, in eval mode.

    Args:
        layout: ``vit_b``, ``vit_l`` or ``vit_h``.

    Raises:
        ModelError: the package is missing or does not know the layout.
    """
    ensure_torchvision_operators()
    try:
        from segment_anything import sam_model_registry
    except ModuleNotFoundError as error:
        raise ModelError(
            f"SAM needs the package {error.name}; install it with: pip install segment-anything."
        ) from error
    if layout not in sam_model_registry:
        raise ModelError(f"SAM has no layout {layout!r}; it has {', '.join(sorted(sam_model_registry))}.")
    return sam_model_registry[layout]()


def load_sam(entry: ModelEntry, device: torch.device | str) -> SamImagePredictor | MedSamImagePredictor:
    """Load a model of kind ``sam`` from the registry; its config is a layout, with ``medsam_`` before
    MedSAM's.

    Raises:
        ModelError: the file is missing, is not the registry's, or does not fit the layout.
    """
    model = build_sam(entry.config.removeprefix(_MEDSAM))
    load_into(model, read_weights(verified_path(entry)))
    model = model.to(device)
    return MedSamImagePredictor(model) if entry.config.startswith(_MEDSAM) else SamImagePredictor(model)


class SamImagePredictor:
    """The package's own ``SamPredictor`` behind the engine's face; same results.

    The logits of a prediction are the model's own (s, s): the slice lies in their upper left corner, what is
    below or to the right of it is padding.
    """

    def __init__(self, model: Any) -> None:
        """Wrap a ``segment_anything.modeling.Sam`` in eval mode, on its device."""
        ensure_torchvision_operators()
        from segment_anything import SamPredictor

        self._predictor = SamPredictor(model)
        self._corrections = Corrections()

    def set_image(
        self, slice_hu: NDArray[np.generic], window: Window, spacing_rc_mm: tuple[float, float]
    ) -> None:
        """Encode one slice (H, W); see `ImagePredictor`. Pixel size makes no difference to SAM."""
        self._predictor.set_image(rgb_of(slice_hu, window))
        self._corrections.forget()

    @property
    def encoder(self) -> Any:
        """The network that `set_image` runs."""
        return self._predictor.model.image_encoder

    def encoded(self) -> EncodedImage:
        """What the last `set_image` worked out."""
        state = {name: getattr(self._predictor, name) for name in _STATE}
        return EncodedImage(state, state["features"].nbytes)

    def show(self, image: EncodedImage) -> None:
        """Go back to a slice that was encoded before."""
        for name, value in image.state.items():
            setattr(self._predictor, name, value)
        self._corrections.forget()

    def predict(self, prompt: SlicePrompt) -> Prediction:
        """Answer one prompt on the slice that was set.

        There are several answers to a single click or box, the likeliest first (`answers_of`); what it has found goes
        with all further points.
        """
        return self._corrections.answer(prompt, self._answer)

    def _answer(self, prompt: SlicePrompt, found: Prediction | None) -> Prediction:
        arrays = arrays_of(prompt, self._predictor.original_size)
        mask_input = None if found is None else found.logits[None]
        if arrays.mask is not None:
            mask_input = self._padded_logits(arrays.mask)
        return chosen(answers_of(self._predictor, arrays, mask_input), prompt.choice)

    def predict_boxes(
        self, boxes_xyxy_px: NDArray[np.float32], hint: NDArray[np.bool_] | None = None
    ) -> list[Prediction]:
        """Answer (B, 4) boxes on the slice that was set, one answer each, from the box alone (PolyCL, section 3.5)."""
        predictions: list[Prediction] = []
        for start in range(0, len(boxes_xyxy_px), _BOXES_AT_ONCE):
            boxes = torch.as_tensor(
                boxes_xyxy_px[start : start + _BOXES_AT_ONCE],
                dtype=torch.float32,
                device=self._predictor.device,
            )
            boxes = self._predictor.transform.apply_boxes_torch(boxes, self._predictor.original_size)
            masks, scores, logits = self._predictor.predict_torch(
                point_coords=None, point_labels=None, boxes=boxes, multimask_output=False
            )  # (B, 1, H, W), (B, 1), (B, 1, s, s)
            predictions += _unbatch(masks, scores, logits)
        return predictions

    def _padded_logits(self, mask: NDArray[np.bool_]) -> NDArray[np.float32]:
        """A mask (H, W) as the mask prompt (1, s, s): scaled and padded as the picture is."""
        side = self._predictor.model.image_encoder.img_size // _LOGITS_PER_PIXEL
        scale = side / max(mask.shape)
        height, width = (max(1, round(n * scale)) for n in mask.shape)
        padded = np.full((1, side, side), -10.0, np.float32)
        padded[:, :height, :width] = mask_logits(mask, (height, width))
        return padded


class MedSamImagePredictor:
    """MedSAM: SAM's ViT-B trained on medical images, boxes only, with its own way of preparing them.

    As in MedSAM's published inference: the picture is stretched to a square without keeping its aspect
    (cubic), scaled to 0 .. 1 by its own darkest and brightest pixel instead of SAM's mean and deviation, and
    the mask is where the probability, not the logit, passes 0.5 after it was brought to the slice's grid. The
    per-slice scaling is part of how the weights were trained; within one window it changes little.
    """

    def __init__(self, model: Any) -> None:
        """Wrap a ``segment_anything.modeling.Sam`` in eval mode with MedSAM's weights, on its device."""
        self._model = model
        self._side: int = model.image_encoder.img_size
        self._embedding: Tensor | None = None  # (1, 256, S / 16, S / 16)
        self._shape_hw = (0, 0)

    @torch.no_grad()
    def set_image(
        self, slice_hu: NDArray[np.generic], window: Window, spacing_rc_mm: tuple[float, float]
    ) -> None:
        """Encode one slice (H, W); see `ImagePredictor`. Pixel size makes no difference to MedSAM."""
        picture = _medsam_picture(rgb_of(slice_hu, window)[..., 0], self._side)
        batch = torch.from_numpy(picture).to(self._model.device).expand(1, 3, -1, -1)
        self._embedding = self._model.image_encoder(batch)
        height, width = slice_hu.shape
        self._shape_hw = (height, width)

    @property
    def encoder(self) -> Any:
        """The network that `set_image` runs."""
        return self._model.image_encoder

    def encoded(self) -> EncodedImage:
        """What the last `set_image` worked out."""
        if self._embedding is None:
            raise InputError("Set a slice before asking about it.")
        return EncodedImage((self._embedding, self._shape_hw), self._embedding.nbytes)

    def show(self, image: EncodedImage) -> None:
        """Go back to a slice that was encoded before."""
        self._embedding, self._shape_hw = image.state

    def predict(self, prompt: SlicePrompt) -> Prediction:
        """Answer a box, or the box of a mask, on the slice that was set.

        Raises:
            InputError: the prompt has points.
        """
        arrays = arrays_of(prompt, self._shape_hw)
        if arrays.points_xy_px is not None or arrays.box_xyxy_px is None:
            raise InputError(
                "MedSAM was trained on boxes and takes no points; draw a box, or choose another model."
            )
        return self.predict_boxes(arrays.box_xyxy_px[None])[0]

    def predict_boxes(
        self, boxes_xyxy_px: NDArray[np.float32], hint: NDArray[np.bool_] | None = None
    ) -> list[Prediction]:
        """Answer (B, 4) boxes on the slice that was set, one answer each, from the box alone (PolyCL, section 3.5)."""
        predictions: list[Prediction] = []
        for start in range(0, len(boxes_xyxy_px), _BOXES_AT_ONCE):
            predictions += self._predict_batch(boxes_xyxy_px[start : start + _BOXES_AT_ONCE])
        return predictions

    @torch.no_grad()
    def _predict_batch(self, boxes_xyxy_px: NDArray[np.float32]) -> list[Prediction]:
        height, width = self._shape_hw
        boxes = boxes_xyxy_px / np.array([width, height, width, height], np.float64) * self._side
        sparse, dense = self._model.prompt_encoder(
            points=None,
            boxes=torch.as_tensor(boxes, dtype=torch.float32, device=self._model.device),
            masks=None,
        )
        logits, scores = self._model.mask_decoder(
            image_embeddings=self._embedding,
            image_pe=self._model.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )  # (B, 1, s, s), (B, 1)
        probability = F.interpolate(
            logits.sigmoid(), size=self._shape_hw, mode="bilinear", align_corners=False
        )  # (B, 1, H, W)
        return _unbatch(probability > 0.5, scores, logits)


def _medsam_picture(gray: NDArray[np.uint8], side: int) -> NDArray[np.float32]:
    """Stretch (H, W) to (side, side), 0 .. 1, like scikit-image's ``resize(order=3, anti_aliasing=True)``."""
    from scipy import ndimage

    image = gray.astype(np.float64)
    factors = np.array(image.shape) / side
    blurred = ndimage.gaussian_filter(image, np.maximum(0.0, (factors - 1.0) / 2.0), mode="mirror")
    zoomed = ndimage.zoom(blurred, 1.0 / factors, order=3, mode="mirror", grid_mode=True)
    whole = np.clip(zoomed, image.min(), image.max()).astype(np.uint8)
    span = max(int(whole.max()) - int(whole.min()), 1e-8)
    picture: NDArray[np.float32] = ((whole - whole.min()) / span).astype(np.float32)
    return picture


def _unbatch(masks: Tensor, scores: Tensor, logits: Tensor) -> list[Prediction]:
    """Take (B, 1, H, W) masks, (B, 1) scores and (B, 1, s, s) logits apart."""
    return [
        Prediction(mask[0], _in_unit_range(score[0]), logit[0])
        for mask, score, logit in zip(
            masks.cpu().numpy(), scores.float().cpu().numpy(), logits.float().cpu().numpy(), strict=True
        )
    ]


def _in_unit_range(score: float) -> float:
    return min(max(float(score), 0.0), 1.0)
