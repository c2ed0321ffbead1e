"""Reading what a command was given, and refusing early what it could not write."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError, StorageError

if TYPE_CHECKING:
    from ..segmentation import Segmentation
    from ..volume import Volume

__all__ = ["check_output", "read_pair"]


def read_pair(volume_path: str, labels_path: str, series: str | None = None) -> tuple[Volume, Segmentation]:
    """Read a volume and a label map on its grid."""
    from ..segmentation import read_segmentation
    from ..volume import read_volume

    volume = read_volume(volume_path, series)
    return volume, read_segmentation(labels_path, volume)


def check_output(output: str, inputs: Sequence[str]) -> None:
    """Refuse, before any work is done, an output that could not be written or would replace an input."""
    path = Path(output)
    if not output.lower().endswith((".nii.gz", ".nii", ".nrrd")):
        raise InputError(
            f"The output {output} has an unknown type; use a name ending in .nii.gz or .seg.nrrd."
        )
    if any(path.exists() and Path(given).exists() and path.samefile(given) for given in inputs):
        raise InputError(f"The output {output} is also an input; choose another name.")
    if not path.parent.is_dir():
        raise StorageError(
            f"The folder {path.parent} does not exist; make it first, or choose another output."
        )
    if path.is_dir():
        raise StorageError(f"The output {output} is a folder; give a file name.")
    if not os.access(path.parent, os.W_OK):
        raise StorageError(f"The folder {path.parent} does not allow writing; choose another output.")
