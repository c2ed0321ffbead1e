"""What a network expects of its input: grid, window, channels and size; stored in every checkpoint.

Pre-training, fine-tuning and prediction all read the same contract, so they cannot disagree about it. Arrays are
(K, J, I) in canonical orientation: k rises to superior, j to anterior, i to right (RAS).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, ModelError, ProtocolError
from ..wire.codec import from_plain

__all__ = ["InputContract", "IntensityStats"]

_LUNG_HU = (-1100.0, 100.0)  # level -500, width 1200
_MEDIASTINUM_HU = (-120.0, 180.0)  # level 30, width 300
_SMALLEST_STD = 1e-3


@dataclass(frozen=True)
class IntensityStats:
    """Of one scan, over its voxels that are not zero: what `scale="volume"` normalises by."""

    low: float
    """1st percentile."""
    high: float
    """99th percentile."""
    mean: float
    """Mean after clipping to low .. high."""
    std: float
    """Standard deviation after clipping."""


@dataclass(frozen=True, kw_only=True)
class InputContract:
    """How a scan becomes the network's input.

    Raises:
        InputError: a size, spacing, window or number of neighbours that cannot be.
    """

    spatial_dims: Literal[2, 3] = 2
    """2: axial slices, 3: blocks of voxels."""
    size: tuple[int, ...] = (256, 256)
    """Rows and columns (2D) or slices, rows and columns (3D) of a training sample."""
    spacing_kji_mm: tuple[float | None, float | None, float | None] = (None, None, None)
    """Grid that scans are resampled to, along K, J, I; None keeps the scan's own spacing along that axis."""
    fit: Literal["crop", "resize"] = "crop"
    """How a slice comes to `size`: a part of it (air around a smaller one), or the whole of it, scaled."""
    channels: Literal["window", "chest"] = "window"
    """One windowed channel, or three: lung window, mediastinal window, edges of both (TCS-MAE, section III-A)."""
    neighbours: int = 0
    """2D: slices above and below that join as channels (2.5D); 0 for none."""
    scale: Literal["fixed", "volume"] = "fixed"
    """Fixed numbers for every scan (CT), or each scan's own percentiles, mean and deviation (MR; AMLP)."""
    window_hu: tuple[float, float] = (-160.0, 240.0)
    """Lowest and highest intensity kept; the rest is clipped. Used when `scale` is fixed."""
    mean_hu: float = -160.0
    """Subtracted after clipping. Used when `scale` is fixed."""
    std_hu: float = 400.0
    """Divided by after that; with mean_hu = lowest and std_hu = width, the input lies in 0 .. 1."""
    modality: str = "CT"
    """What the weights have seen."""

    def __post_init__(self) -> None:
        if self.spatial_dims not in (2, 3) or len(self.size) != self.spatial_dims or min(self.size) < 1:
            raise InputError(
                f"A {self.spatial_dims}D input needs {self.spatial_dims} sizes, not {self.size}."
            )
        if len(self.spacing_kji_mm) != 3 or any(
            step is not None and not step > 0 for step in self.spacing_kji_mm
        ):
            raise InputError(f"Spacings must be three numbers above 0 mm, K J I, not {self.spacing_kji_mm}.")
        if self.window_hu[0] >= self.window_hu[1] or not self.std_hu > 0:
            raise InputError(f"The window must rise and the deviation be above 0, not {self.window_hu}.")
        if self.neighbours < 0 or (self.neighbours and self.spatial_dims == 3):
            raise InputError("Neighbouring slices are channels of a 2D input only, 0 or more on each side.")

    @property
    def in_channels(self) -> int:
        """Channels of the network's input."""
        return (3 if self.channels == "chest" else 1) * (2 * self.neighbours + 1)

    def apply(self, intensities: NDArray[Any], stats: IntensityStats | None = None) -> NDArray[np.float32]:
        """Turn intensities on the contract's grid into channels.

        Args:
            intensities: (K, J, I) block in 3D; in 2D (J, I), or (2 n + 1, J, I) with n neighbours on each side.
            stats: of the scan; needed when `scale` is "volume".

        Returns:
            (C, *spatial) float32.
        """
        values = np.asarray(intensities, dtype=np.float32)
        slabs = values[None] if self.spatial_dims == 3 else values.reshape(-1, *values.shape[-2:])
        if self.channels == "chest":
            return np.concatenate([_chest_channels(slab) for slab in slabs])
        return self._normalise(slabs, stats)

    def background(self, stats: IntensityStats | None = None) -> float:
        """Value of the input where there is air, or nothing at all: what padding is filled with."""
        return (
            0.0
            if self.channels == "chest"
            else float(self._normalise(np.full(1, -1024.0, np.float32), stats)[0])
        )

    def _normalise(self, values: NDArray[np.float32], stats: IntensityStats | None) -> NDArray[np.float32]:
        low, high, mean, std = *self.window_hu, self.mean_hu, self.std_hu
        if self.scale == "volume":
            if stats is None:
                raise InputError("This input is normalised by the scan's own statistics, which are missing.")
            low, high, mean, std = stats.low, stats.high, stats.mean, max(stats.std, _SMALLEST_STD)
        return ((np.clip(values, low, high) - mean) / std).astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        """Plain values for a checkpoint's header; `from_json` is the inverse."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> InputContract:
        """Read what `to_json` gave.

        Raises:
            ModelError: a field is missing, unknown or not as it must be.
        """
        try:
            return from_plain(cls, values, "contract")
        except (ProtocolError, InputError) as error:
            raise ModelError(f"The checkpoint's input contract cannot be used ({error}).") from error


def _chest_channels(hu: NDArray[np.float32]) -> NDArray[np.float32]:
    """(3, ...) lung window, mediastinal window and the larger of their Sobel magnitudes, each 0 .. 1."""
    lung, mediastinum = (
        np.clip((hu - low) / (high - low), 0.0, 1.0) for low, high in (_LUNG_HU, _MEDIASTINUM_HU)
    )
    edges = np.maximum(_sobel_magnitude(lung), _sobel_magnitude(mediastinum))
    return np.stack([lung, mediastinum, np.minimum(edges, 1.0)]).astype(np.float32)


def _sobel_magnitude(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Magnitude of the 3 x 3 Sobel gradient of the last two axes; 0 on a constant image."""
    from scipy import ndimage  # not needed by those who only read a contract

    magnitude: NDArray[np.float32] = np.hypot(
        ndimage.sobel(image, axis=-1, mode="nearest"), ndimage.sobel(image, axis=-2, mode="nearest")
    )
    return magnitude
