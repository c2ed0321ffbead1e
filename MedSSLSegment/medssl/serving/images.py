"""Slices as an image predictor has encoded them: kept for the next click, and worked out ahead of it.

Encoding takes far longer than answering a prompt. So what was worked out about a slice is kept, within a budget, and
while nothing is asked the slice being looked at and its neighbours are encoded. Anything that is asked meanwhile stops
that between two layers of the network. Nothing here imports torch before there is something to encode.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..prompts import SlicePrompt
from ..volume import Volume, Window, take_slice

if TYPE_CHECKING:
    from ..foundation.protocols import EncodedImage, EncodingPredictor, ImagePredictor, Prediction

__all__ = ["ImageKeeper", "OwnImage", "Spot", "spots_ahead"]

_KEPT_BYTES = 384 << 20
"""Encoded slices that are kept, in memory: 90 of SAM, 22 of SAM 2.1 at its largest input."""
_AHEAD, _BEHIND = 6, 3
"""Neighbours that are encoded on the side the person scrolls to, and on the other."""


@dataclass(frozen=True)
class Spot:
    """A slice of a volume, seen through a window."""

    content_hash: str
    axis: int
    index: int
    window: Window


def spots_ahead(spot: Spot, count: int, step: int) -> list[Spot]:
    """A slice and those a person is likely to look at next, the likeliest first.

    Args:
        spot: what is looked at now.
        count: slices across its axis.
        step: +1 or -1, where the person came from lies on the other side.
    """
    offsets = [0]
    for distance in range(1, _AHEAD + 1):
        offsets.append(distance * step)
        if distance % 2 == 0 and distance // 2 <= _BEHIND:
            offsets.append(-distance // 2 * step)
    near = (spot.index + offset for offset in offsets)
    return [replace(spot, index=index) for index in near if 0 <= index < count]


class ImageKeeper:
    """An image predictor that keeps the slices it has encoded.

    Args:
        predictor: what encodes and answers; one whose `set_image` costs nothing has nothing to keep.
        budget_bytes: memory for encoded slices; those used longest ago go first.
    """

    def __init__(self, predictor: ImagePredictor, budget_bytes: int = _KEPT_BYTES) -> None:
        self.changes = 0
        """How often another slice was shown; another number says that another one is."""
        self._predictor = predictor
        self._budget = budget_bytes
        self._shown: Spot | None = None
        self._kept: OrderedDict[Spot, EncodedImage] = OrderedDict()

    @property
    def encoder(self) -> EncodingPredictor | None:
        """The predictor, if its slices are worth keeping."""
        from ..foundation.protocols import EncodingPredictor

        return self._predictor if isinstance(self._predictor, EncodingPredictor) else None

    def holds(self, spot: Spot) -> bool:
        """Whether a prompt on this slice is answered without encoding it."""
        return self.encoder is None or spot in self._kept

    def show(self, volume: Volume, axis: int, index: int, window: Window) -> None:
        """Have the predictor look at a slice, which is encoded unless it was before."""
        spot = Spot(volume.content_hash, axis, index, window)
        if spot in self._kept:
            self._kept.move_to_end(spot)
        if spot == self._shown:
            return
        self._begin_showing()
        if (encoder := self.encoder) is not None and spot in self._kept:
            encoder.show(self._kept[spot])
        else:
            self._encode(volume, spot)
        self._shown = spot

    def encode_ahead(self, volume: Volume, spot: Spot, interrupted: Callable[[], bool]) -> bool:
        """Encode a slice that may be asked about.

        Args:
            volume: the spot's.
            spot: which slice.
            interrupted: asked before every layer; True gives the slice up.

        Returns:
            Whether it is encoded now.
        """
        if (encoder := self.encoder) is None or self.holds(spot):
            return True
        from ..foundation.runtime import Interrupted, interruptible

        self._begin_showing()
        try:
            with interruptible(encoder.encoder, interrupted):
                self._encode(volume, spot)
        except Interrupted:
            return False
        self._shown = spot
        return True

    def set_image(
        self, slice_hu: NDArray[np.generic], window: Window, spacing_rc_mm: tuple[float, float]
    ) -> None:
        """Encode one slice, of whatever volume; it is not kept."""
        self._begin_showing()
        self._predictor.set_image(slice_hu, window, spacing_rc_mm)

    def encoded(self) -> EncodedImage | None:
        """The slice that is shown, for `show_again`; None where there is nothing worth keeping."""
        return None if (encoder := self.encoder) is None else encoder.encoded()

    def show_again(self, image: EncodedImage) -> None:
        """Go back to a slice that was encoded."""
        encoder = self.encoder
        assert encoder is not None
        self._begin_showing()
        encoder.show(image)

    def predict(self, prompt: SlicePrompt) -> Prediction:
        """Answer one prompt on the slice shown last."""
        return self._predictor.predict(prompt)

    def predict_ahead(self, prompt: SlicePrompt, interrupted: Callable[[], bool]) -> Prediction | None:
        """Answer a prompt that may be asked, on the slice shown last.

        Args:
            prompt: what may be asked.
            interrupted: asked before every layer of a predictor that answers slowly; True gives the answer up.

        Returns:
            The answer; None where it was given up.
        """
        from ..foundation.protocols import AnsweringPredictor

        if not isinstance(self._predictor, AnsweringPredictor):
            return None if interrupted() else self._predictor.predict(prompt)
        from ..foundation.runtime import Interrupted, interruptible

        try:
            with interruptible(self._predictor.network, interrupted):
                return self._predictor.predict(prompt)
        except Interrupted:
            return None

    def predict_boxes(
        self, boxes_xyxy_px: NDArray[np.float32], hint: NDArray[np.bool_] | None = None
    ) -> list[Prediction]:
        """Answer (B, 4) boxes on the slice shown last."""
        return self._predictor.predict_boxes(boxes_xyxy_px, hint)

    def forget(self, content_hash: str) -> None:
        """Encode the slices of this volume anew when they are asked for again."""
        if self._shown is not None and self._shown.content_hash == content_hash:
            self._shown = None
        for spot in [spot for spot in self._kept if spot.content_hash == content_hash]:
            del self._kept[spot]

    def _begin_showing(self) -> None:
        self._shown = None  # stays so if the predictor is stopped half-way
        self.changes += 1

    def _encode(self, volume: Volume, spot: Spot) -> None:
        slice_hu = take_slice(volume.voxels_kji, spot.axis, spot.index)
        self._predictor.set_image(slice_hu, spot.window, volume.slice_spacing_mm(spot.axis))
        if (encoder := self.encoder) is not None:
            self._kept[spot] = encoder.encoded()
            self._make_room()

    def _make_room(self) -> None:
        while len(self._kept) > 1 and sum(image.nbytes for image in self._kept.values()) > self._budget:
            self._kept.popitem(last=False)


class OwnImage:
    """An image predictor for long work, which finds its slice shown again after a click on another one.

    Args:
        keeper: shared with the clicks.
    """

    def __init__(self, keeper: ImageKeeper) -> None:
        self._keeper = keeper
        self._image: tuple[NDArray[np.generic], Window, tuple[float, float]] | None = None
        self._encoded: EncodedImage | None = None
        self._changes = 0

    def set_image(
        self, slice_hu: NDArray[np.generic], window: Window, spacing_rc_mm: tuple[float, float]
    ) -> None:
        """Encode one slice."""
        self._image = (slice_hu, window, spacing_rc_mm)
        self._keeper.set_image(*self._image)
        self._encoded = self._keeper.encoded()
        self._changes = self._keeper.changes

    def predict(self, prompt: SlicePrompt) -> Prediction:
        """Answer one prompt on the slice encoded last."""
        self._show_again()
        return self._keeper.predict(prompt)

    def predict_boxes(
        self, boxes_xyxy_px: NDArray[np.float32], hint: NDArray[np.bool_] | None = None
    ) -> list[Prediction]:
        """Answer (B, 4) boxes on the slice encoded last."""
        self._show_again()
        return self._keeper.predict_boxes(boxes_xyxy_px, hint)

    def _show_again(self) -> None:
        if self._image is None or self._changes == self._keeper.changes:
            return
        if self._encoded is None:
            self.set_image(*self._image)
            return
        self._keeper.show_again(self._encoded)
        self._changes = self._keeper.changes
