"""Segmentations: named segments on a volume's grid, as label files and in 3D Slicer's own format.

A label file (.nii.gz, .nii, .nrrd, .mha) holds one whole number per voxel. The names lie beside it in
``<stem>.labels.json`` or, for all files of a folder, ``labels.json``: ``{"1": "liver"}`` or ``{"liver": 1}``.
3D Slicer's .seg.nrrd carries names and colours itself, and may be cropped to the segments.
"""

from __future__ import annotations

import colorsys
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .formats.imagefile import RawImage, read_image, write_image
from .formats.segnrrd import MAX_LABEL, has_segments, merge_layers, segment_fields
from .storage import atomic_path
from .volume import Volume, check_affine, spacing_of

__all__ = [
    "Segment",
    "Segmentation",
    "default_color",
    "names_file",
    "namesake",
    "read_segmentation",
    "renames",
    "write_segmentation",
]

_SAME_PLACE = 0.1
"""Two grids are the same if no corners differ by more than this part of a voxel; headers round to less."""
_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")


@dataclass(frozen=True)
class Segment:
    """One named structure of a segmentation."""

    name: str
    label: int
    """Its value in the label array, 1 .. 65535."""
    color_rgb: tuple[float, float, float]
    """Each 0 .. 1."""


@dataclass(frozen=True, eq=False)
class Segmentation:
    """Segments that do not overlap, on the grid of a volume.

    Raises:
        InputError: labels are not 3D whole numbers of 0 .. 65535, a label has no segment, or two segments share
            a name or a label.
    """

    labels_kji: NDArray[Any]
    """(K, J, I) uint8, or uint16 where a label needs it, read-only; 0 is background."""
    ijk_to_ras: NDArray[np.float64]
    """(4, 4) maps voxel (i, j, k, 1) to RAS millimetres, read-only."""
    segments: tuple[Segment, ...]
    name: str = ""
    """What to call the segmentation in a message, e.g. its file name."""

    def __post_init__(self) -> None:
        what = self.name or "The segmentation"
        if self.labels_kji.ndim != 3:
            raise InputError(
                f"{what} has {self.labels_kji.ndim} dimensions (shape {self.labels_kji.shape}), not 3;"
                " give one 3D image of labels."
            )
        labels = _as_labels(self.labels_kji, what)
        _check_segments(self.segments, _present(labels), what)
        object.__setattr__(self, "labels_kji", labels)
        object.__setattr__(self, "ijk_to_ras", check_affine(self.ijk_to_ras, what))
        object.__setattr__(self, "segments", tuple(self.segments))

    @property
    def shape_kji(self) -> tuple[int, int, int]:
        """Number of voxels along K, J, I."""
        k, j, i = self.labels_kji.shape
        return k, j, i

    @property
    def spacing_kji_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxels along K, J, I."""
        return spacing_of(self.ijk_to_ras)

    @property
    def names(self) -> tuple[str, ...]:
        """The segments' names, in their order."""
        return tuple(segment.name for segment in self.segments)

    def segment(self, name_or_label: str | int) -> Segment:
        """Find a segment by its name or label.

        Raises:
            InputError: there is none; the message lists those there are.
        """
        for segment in self.segments:
            if name_or_label in (segment.name, segment.label):
                return segment
        known = ", ".join(f"{s.label} = {s.name}" for s in self.segments) or "no segments"
        what = self.name or "The segmentation"
        raise InputError(f"{what} has no segment '{name_or_label}'; choose from those it has: {known}.")

    def mask(self, name_or_label: str | int) -> NDArray[np.bool_]:
        """Voxels of one segment, (K, J, I) bool."""
        inside: NDArray[np.bool_] = self.labels_kji == self.segment(name_or_label).label
        return inside

    def require_grid_of(self, other: Volume | Segmentation) -> None:
        """Raise InputError unless both have the same shape and place, to a tenth of a voxel."""
        if self.shape_kji != other.shape_kji:
            raise InputError(
                f"{self.name or 'The segmentation'} has shape {self.shape_kji}, but"
                f" {other.name or 'the volume'} has {other.shape_kji}; give one made on that image."
            )
        _require_same_place(self, other.ijk_to_ras, other)

    def turned_like(self, other: Volume | Segmentation) -> Segmentation:
        """The same voxels in the order and direction of another grid's axes; itself where the grids differ in more."""
        voxels_of_other = np.linalg.solve(other.ijk_to_ras, self.ijk_to_ras)
        steps = voxels_of_other[:3, :3]
        turns = np.rint(steps)
        is_turned = (np.abs(turns).sum(0) == 1).all() and (np.abs(turns).sum(1) == 1).all()
        if not is_turned or np.abs(steps - turns).max() > _SAME_PLACE or (turns == np.eye(3)).all():
            return self
        own_axes, backwards = np.abs(turns).argmax(1), turns.sum(1) < 0
        labels_ijk = np.flip(self.labels_kji.T.transpose(own_axes), tuple(np.flatnonzero(backwards).tolist()))
        to_own = np.zeros((4, 4))
        to_own[own_axes, range(3)] = np.where(backwards, -1.0, 1.0)
        to_own[own_axes, 3] = np.where(backwards, np.array(labels_ijk.shape) - 1.0, 0.0)
        to_own[3, 3] = 1.0
        labels = np.ascontiguousarray(labels_ijk.T)
        return replace(self, labels_kji=labels, ijk_to_ras=self.ijk_to_ras @ to_own)


def default_color(label: int) -> tuple[float, float, float]:
    """A colour (r, g, b), each 0 .. 1, that differs clearly from those of nearby labels."""
    hue = label * 0.618034 % 1.0  # the golden ratio spreads the hues of any run of labels evenly
    return colorsys.hsv_to_rgb(hue, 0.65 if label % 2 else 0.85, 0.95 if label % 3 else 0.75)


def read_segmentation(path: str | Path, like: Volume | Segmentation | None = None) -> Segmentation:
    """Read a label file or a .seg.nrrd of 3D Slicer.

    Args:
        path: .nii.gz, .nii, .nrrd, .nhdr, .mha, .mhd or .seg.nrrd. Labels that nobody named are called
            segment_<label>; a ``labels.json`` shared by a folder only names the labels that this file uses.
        like: what it must lie on, usually its volume. Voxels that another program wrote in another order of axes are
            put into this one's, and a .seg.nrrd that 3D Slicer cropped is put back on this grid.

    Raises:
        InputError: the file is missing or damaged, does not hold labels, does not lie on the grid of `like`, or
            has segments that overlap.
    """
    path = Path(path)
    raw = read_image(path)
    if has_segments(raw.fields):
        segmentation = _from_slicer(raw, path.name)
        return segmentation if like is None else _placed(segmentation.turned_like(like), like)
    if raw.voxels.ndim == 3:
        labels = _as_labels(raw.voxels, path.name)
        segmentation = Segmentation(labels, raw.ijk_to_ras, _named(path, _present(labels)), path.name)
    else:
        segmentation = Segmentation(raw.voxels, raw.ijk_to_ras, (), path.name)
    if like is None:
        return segmentation
    segmentation = segmentation.turned_like(like)
    segmentation.require_grid_of(like)
    return replace(segmentation, ijk_to_ras=like.ijk_to_ras)


def write_segmentation(segmentation: Segmentation, path: str | Path) -> None:
    """Write a segmentation, whole or not at all.

    Args:
        segmentation: what to write; names and labels are kept, colours only in a .seg.nrrd.
        path: .seg.nrrd for 3D Slicer; .nii.gz, .nii, .nrrd or .mha for labels with the names in
            ``<stem>.labels.json`` beside it.

    Raises:
        InputError: the suffix is none of these, or the file of names is that of another label file with other names.
        StorageError: no space, no permission; nothing is left behind.
    """
    path = Path(path)
    if path.name.lower().endswith(".seg.nrrd"):
        fields = segment_fields(segmentation.segments, segmentation.shape_kji)
        write_image(path, segmentation.labels_kji, segmentation.ijk_to_ras, fields)
        return
    names = {str(segment.label): segment.name for segment in segmentation.segments}
    _require_own_names(path, names)
    with atomic_path(names_file(path)) as temporary:
        temporary.write_text(json.dumps(names, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        write_image(path, segmentation.labels_kji, segmentation.ijk_to_ras)


def _require_own_names(path: Path, names: Mapping[str, str]) -> None:
    twin = namesake(path)
    if twin and {str(label): name for label, name in _read_names(names_file(path)).items()} != names:
        raise InputError(renames(path, twin))


def namesake(path: Path) -> Path | None:
    """The label file whose names a new one would replace: organ.nii.gz has the same file of names as organ.nrrd."""
    listed = names_file(path)
    if path.exists() or not listed.is_file():
        return None
    twins = (listed.with_name(listed.name.removesuffix(".labels.json") + suffix) for suffix in _SUFFIXES)
    return next((twin for twin in twins if twin.is_file()), None)


def renames(path: Path, twin: Path) -> str:
    """Why a file is not written."""
    return (
        f"{path.name} would rename the labels of {twin.name}, as both are named in {names_file(path).name};"
        " choose another name."
    )


def _as_labels(values: NDArray[Any], what: str) -> NDArray[Any]:
    """Whole numbers as uint8 if they fit, else uint16; read-only."""
    if values.size == 0:
        raise InputError(
            f"{what} has no voxels (shape {values.shape}); give an image with at least one slice."
        )
    low, high = values.min(), values.max()
    whole = values.dtype.kind in "biu" or (
        np.isfinite(low) and np.isfinite(high) and all((slab == np.rint(slab)).all() for slab in values)
    )
    if not whole:
        raise InputError(f"{what} holds values that are not whole numbers; give a label file.")
    if low < 0 or high > MAX_LABEL:
        raise InputError(
            f"{what} holds values from {low:g} to {high:g}, but labels are 0 .. {MAX_LABEL}; give a label file."
        )
    labels = values.astype(np.uint8 if high <= 255 else np.uint16, copy=False).view()
    labels.flags.writeable = False
    return labels


def _present(labels: NDArray[Any]) -> list[int]:
    """The labels above 0 that occur, rising; slab by slab, because np.unique would sort a copy of it all."""
    seen = np.zeros(MAX_LABEL + 1, bool)
    for slab in labels:
        seen[slab] = True
    return [int(label) for label in np.flatnonzero(seen) if label > 0]


def _check_segments(segments: Sequence[Segment], present: Sequence[int], what: str) -> None:
    for segment in segments:
        if not 1 <= segment.label <= MAX_LABEL or not segment.name.strip():
            raise InputError(
                f"{what} has a segment '{segment.name}' with label {segment.label}; give it a name and a label"
                f" of 1 .. {MAX_LABEL}."
            )
    uses = Counter(value for segment in segments for value in (segment.name, segment.label))
    for value, count in uses.items():
        if count > 1:
            raise InputError(f"{what} has {count} segments '{value}'; give each its own name and label.")
    unnamed = [label for label in present if label not in uses]
    if unnamed:
        shown = ", ".join(map(str, unnamed[:8])) + (", ..." if len(unnamed) > 8 else "")
        raise InputError(f"{what} uses labels that belong to no segment ({shown}); name or erase them.")


def _named(path: Path, present: Sequence[int]) -> tuple[Segment, ...]:
    """Segments for the labels of a file, by the names beside it."""
    own, shared = names_file(path), path.with_name("labels.json")
    labels: Iterable[int] = present
    names: dict[int, str] = {}
    if own.is_file():
        names = _read_names(own)
        labels = sorted({*names, *present})
    elif shared.is_file():
        names = _read_names(shared)
    return tuple(
        Segment(names.get(label, f"segment_{label}"), label, default_color(label)) for label in labels
    )


def names_file(path: Path) -> Path:
    """The file beside a label file in which its labels are named: ``<stem>.labels.json``."""
    suffix = next((s for s in _SUFFIXES if path.name.lower().endswith(s)), "")
    return path.with_name(f"{path.name[: len(path.name) - len(suffix)]}.labels.json")


def _read_names(path: Path) -> dict[int, str]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        pairs = [(key, value) if isinstance(value, str) else (value, key) for key, value in entries.items()]
        names = {int(label): str(name) for label, name in pairs}
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f'{path.name} does not name labels; write them as {{"1": "liver"}}.') from error
    names.pop(0, None)  # background
    return names


def _from_slicer(raw: RawImage, what: str) -> Segmentation:
    labels, stored = merge_layers(_as_labels(raw.voxels, what), raw.fields, what)
    segments = tuple(Segment(s.name, s.value, s.color_rgb or default_color(s.value)) for s in stored)
    return Segmentation(labels, raw.ijk_to_ras, segments, what)


def _placed(cropped: Segmentation, like: Volume | Segmentation) -> Segmentation:
    """Put a cropped segmentation back on a larger grid; exact, because they share their voxel centres."""
    start_ijk = np.rint(np.linalg.solve(like.ijk_to_ras, cropped.ijk_to_ras[:, 3])[:3]).astype(int)
    shifted = like.ijk_to_ras.copy()
    shifted[:, 3] = like.ijk_to_ras @ (*start_ijk, 1.0)
    _require_same_place(cropped, shifted, like)
    start = start_ijk[::-1]
    first = np.clip(start, 0, like.shape_kji)
    stop = np.clip(start + cropped.shape_kji, 0, like.shape_kji)
    target = tuple(slice(a, b) for a, b in zip(first, stop, strict=True))
    source = tuple(slice(max(a, 0), max(b, 0)) for a, b in zip(first - start, stop - start, strict=True))
    placed = np.zeros(like.shape_kji, cropped.labels_kji.dtype)
    placed[target] = cropped.labels_kji[source]
    outside = np.count_nonzero(cropped.labels_kji) - np.count_nonzero(placed)
    if outside:
        raise InputError(
            f"{cropped.name} has {outside} voxels outside {like.name or 'the volume'};"
            " give the volume it was made on."
        )
    return replace(cropped, labels_kji=placed, ijk_to_ras=like.ijk_to_ras)


def _require_same_place(
    one: Segmentation, expected_ijk_to_ras: NDArray[np.float64], like: Volume | Segmentation
) -> None:
    """Compare where the corners of `one` lie with where they would lie on the grid of `like`."""
    k, j, i = one.shape_kji
    corners = np.array([(x, y, z, 1) for x in (0, i - 1) for y in (0, j - 1) for z in (0, k - 1)])
    off_mm = np.linalg.norm(((one.ijk_to_ras - expected_ijk_to_ras) @ corners.T)[:3], axis=0).max()
    if off_mm > _SAME_PLACE * min(like.spacing_kji_mm):
        raise InputError(
            f"{one.name or 'The segmentation'} lies up to {off_mm:.3g} mm off the voxels of"
            f" {like.name or 'the volume'}; give one made on that image."
        )
