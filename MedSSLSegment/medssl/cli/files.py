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

__all__ = ["check_output", "check_place", "read_pair"]


def read_pair(volume_path: str, labels_path: str, series: str | None = None) -> tuple[Volume, Segmentation]:
    """Read a volume and a label map on its grid."""
    from ..segmentation import read_segmentation
    from ..volume import read_volume

    volume = read_volume(volume_path, series)
    return volume, read_segmentation(labels_path, volume)


def check_output(output: str, volume: str, labels: Sequence[str | None] = ()) -> None:
    """Refuse, before any work is done, an output that could not be written or would replace an input.

    Args:
        output: label file to write.
        volume: image file or DICOM folder that is read.
        labels: label files that are read, and the files that name their labels; None for one that was not given.
    """
    given = [path for path in labels if path]
    check_place(output, [volume, *given])
    _check_names(output, given)


def check_place(output: str, inputs: Sequence[str]) -> None:
    """Refuse an image file that could not be written, or is one of the inputs."""
    path = Path(output)
    if not output.lower().endswith((".nii.gz", ".nii", ".nrrd")):
        raise InputError(
            f"The output {output} has an unknown type; use a name ending in .nii.gz or .seg.nrrd."
        )
    if any(_same_file(path, Path(given)) for given in inputs):
        raise InputError(f"The output {output} is also an input; choose another name.")
    if not path.parent.is_dir():
        raise StorageError(
            f"The folder {path.parent} does not exist; make it first, or choose another output."
        )
    if path.is_dir():
        raise StorageError(f"The output {output} is a folder; give a file name.")
    if not os.access(path.parent, os.W_OK):
        raise StorageError(f"The folder {path.parent} does not allow writing; choose another output.")


def _check_names(output: str, labels: Sequence[str]) -> None:
    """Refuse an output whose file of label names is that of another file: slice.nii beside slice.nii.gz."""
    from ..segmentation import names_file, namesake, renames

    if output.lower().endswith(".seg.nrrd"):
        return
    own = names_file(Path(output))
    for given in labels:
        if _same_file(own, names_file(Path(given))):
            raise InputError(
                f"The output {output} would write {own.name}, which is there to name the labels of {given};"
                " choose another name."
            )
    if twin := namesake(Path(output)):
        raise InputError(renames(Path(output), twin))


def _same_file(one: Path, other: Path) -> bool:
    if one.exists() and other.exists():
        return one.samefile(other)
    return one.absolute() == other.absolute()
