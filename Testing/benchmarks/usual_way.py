"""The usual way to propagate with SAM 2: the official video predictor over a folder of JPEG frames."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from medssl.volume import Volume, Window
from numpy.typing import NDArray
from PIL import Image

__all__ = ["propagate_usual_way", "write_frames"]


def write_frames(volume: Volume, window: Window, folder: Path) -> None:
    """Write every slice across axis 0 as the JPEG that the official predictor reads."""
    for index, slice_hu in enumerate(volume.voxels_kji):
        gray = window.to_uint8(slice_hu)
        Image.fromarray(np.repeat(gray[..., None], 3, axis=2)).save(folder / f"{index:05d}.jpg", quality=95)


def propagate_usual_way(
    model: Any, volume: Volume, window: Window, masks: Mapping[str, tuple[int, NDArray[np.bool_]]]
) -> dict[str, float]:
    """Propagate segments one after the other, forwards and then backwards, over the whole volume.

    Args:
        model: a `SAM2VideoPredictor`.
        volume: the image.
        window: what the frames show of it.
        masks: annotated slice of each segment and its (J, I) mask there.

    Returns:
        Seconds spent on writing frames, on reading them, and on tracking.
    """
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        write_frames(volume, window, Path(name))
        written = time.perf_counter()
        state = model.init_state(name)
        read = time.perf_counter()
        for index, mask in masks.values():
            model.reset_state(state)
            model.add_new_mask(state, index, 1, mask)
            for reverse in (False, True):
                for _, _, logits in model.propagate_in_video(state, start_frame_idx=index, reverse=reverse):
                    (logits[0, 0] > 0).numpy()  # the mask on the slice's own grid
    return {"write": written - start, "read": read - written, "track": time.perf_counter() - read}
