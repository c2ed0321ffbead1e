"""DICOM SEG objects: segmentations that PACS and viewers read, to and from the grid of a volume (highdicom)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..errors import InputError
from ..segmentation import Segment, Segmentation, default_color
from ..storage import atomic_path
from ..volume import Volume, read_volume
from .dicom import choose_series

__all__ = ["read_dicom_seg", "write_dicom_seg"]

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_MAY_BE_EMPTY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
)
"""Tags that the SEG takes from the images, and that anonymisers delete."""
_UTF_8 = "ISO_IR 192"
_NAME_LENGTH = 64
"""Characters that DICOM gives the name of a segment."""
_OFF_GRID = 0.1
"""Part of a voxel by which a SEG's grid may miss the volume's; headers round to less."""


def read_dicom_seg(path: str | Path, like: Volume) -> Segmentation:
    """Read a DICOM SEG made on a volume.

    Args:
        path: a SEG file; binary, fractional or label map, with all slices or only those that are not empty.
        like: the volume it was made on; axes may be stored in another order or direction.

    Returns:
        Segments on the volume's grid, named and numbered as in the file.

    Raises:
        InputError: no SEG object, segments overlap, or its slices lie on another grid.
    """
    with _readable(Path(path)):
        import highdicom

        seg = highdicom.seg.segread(path)
        numbers = list(seg.segment_numbers)
        stored = seg.get_volume(segment_numbers=numbers, combine_segments=True)
    labels = np.zeros(like.shape_kji, np.uint8 if max(numbers) < 256 else np.uint16)
    values = np.asarray(stored.array)
    axes, places = _places(np.asarray(stored.affine, float), values.shape, like, Path(path).name)
    labels.transpose(axes)[np.ix_(*places)] = values
    segments = tuple(
        Segment(str(seg.get_segment_description(n).segment_label), int(n), default_color(int(n)))
        for n in numbers
    )
    return Segmentation(labels, like.ijk_to_ras, segments, Path(path).name)


def write_dicom_seg(
    segmentation: Segmentation, series: str | Path, path: str | Path, uid: str | None = None
) -> None:
    """Write a binary DICOM SEG that refers to the images it was drawn on.

    Args:
        segmentation: on the grid of the series. Names are cut to 64 characters, and a backslash becomes a slash.
        series: DICOM folder of the images.
        path: the file to write, .dcm.
        uid: which series of the folder, where there are several; the beginning of its UID is enough.

    Raises:
        InputError: nothing is segmented, the series lies on another grid, or it does not say which study or frame
            of reference it belongs to.
        StorageError: no space or no permission; nothing is left behind.
    """
    if not segmentation.labels_kji.any():
        raise InputError("There is nothing to write as DICOM SEG: every segment is empty.")
    import highdicom
    import pydicom

    found = choose_series(Path(series), uid)
    segmentation.require_grid_of(read_volume(series, found.uid))
    images = [pydicom.dcmread(file, stop_before_pixels=True) for file in found.files]
    _complete(images, segmentation.spacing_kji_mm[0], f"Series {found.uid} in {Path(series).name}")
    present = [s for s in segmentation.segments if (segmentation.labels_kji == s.label).any()]
    numbered = np.zeros(segmentation.shape_kji, np.uint16)
    for number, segment in enumerate(present, start=1):
        numbered[segmentation.labels_kji == segment.label] = number
    kji_to_lps = (_LPS_TO_RAS @ segmentation.ijk_to_ras)[:, [2, 1, 0, 3]]
    grid = highdicom.Volume(
        numbered,
        affine=kji_to_lps,
        coordinate_system="PATIENT",
        frame_of_reference_uid=images[0].FrameOfReferenceUID,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # highdicom warns of optional tags that the images lack
        seg = highdicom.seg.Segmentation(
            source_images=images,
            pixel_array=grid,
            segmentation_type="BINARY",
            segment_descriptions=[_description(n, name) for n, name in enumerate(_names(present), start=1)],
            series_instance_uid=highdicom.UID(),
            series_number=_next_series_number(images[0]),
            sop_instance_uid=highdicom.UID(),
            instance_number=1,
            manufacturer="MedSSLSegment",
            manufacturer_model_name="medssl",
            software_versions=__version__,
            device_serial_number="0",
        )
        seg.SpecificCharacterSet = _UTF_8  # that of the images need not have the letters of the names
        with atomic_path(path) as temporary:
            seg.save_as(temporary)


def _complete(images: Sequence[Any], step_mm: float, what: str) -> None:
    """Give the headers, as they are in memory, the tags that a SEG needs and anonymised images lack."""
    for image in images:
        for keyword in ("StudyInstanceUID", "FrameOfReferenceUID"):
            if not image.get(keyword):
                raise InputError(
                    f"{what} has no {keyword}, which a DICOM SEG must refer to; keep it when anonymising, or save as"
                    " .seg.nrrd."
                )
        for keyword in _MAY_BE_EMPTY:
            if keyword not in image:
                setattr(image, keyword, "")
        if not image.get("SliceThickness"):
            image.SliceThickness = step_mm


def _names(segments: Sequence[Segment]) -> list[str]:
    """The segments' names as DICOM can hold them, each only once."""
    names: list[str] = []
    for segment in segments:
        whole = segment.name.replace("\\", "/")  # a backslash would part it into two values
        whole = whole.strip() or f"segment {segment.label}"
        endings = ("", *(f" ({n})" for n in range(2, len(segments) + 1)))
        shortened = (whole[: _NAME_LENGTH - len(ending)] + ending for ending in endings)
        names.append(next(name for name in shortened if name not in names))
    return names


def _description(number: int, name: str) -> Any:
    import highdicom
    from pydicom.sr.codedict import codes

    return highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=name,
        segmented_property_category=codes.SCT.AnatomicalStructure,
        segmented_property_type=codes.SCT.Organ,
        algorithm_type="SEMIAUTOMATIC",
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name="medssl", version=__version__, family=codes.DCM.ArtificialIntelligence
        ),
    )


def _next_series_number(image: Any) -> int:
    """A number no image series is likely to have, as viewers sort by it."""
    return 9000 + int(getattr(image, "SeriesNumber", None) or 0) % 1000


def _places(
    kji_to_lps: NDArray[np.float64], shape: tuple[int, ...], like: Volume, name: str
) -> tuple[list[int], list[NDArray[np.intp]]]:
    """For each axis of the SEG the axis of the volume it runs along, and the volume's indices there."""
    ras_to_kji = np.linalg.inv(like.ijk_to_ras[:, [2, 1, 0, 3]])
    there = ras_to_kji @ _LPS_TO_RAS @ kji_to_lps
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape], [1.0], indexing="ij")).reshape(4, -1)
    turn, shift = np.rint(there[:3, :3]), np.rint(there[:3, 3])
    turn[:, np.equal(shape, 1)] = 0  # an axis of one voxel leads nowhere
    exact = turn @ corners[:3] + shift[:, None]
    off = np.abs((there @ corners)[:3] - exact).max()
    inside = (exact >= 0).all() and (exact < np.array(like.shape_kji)[:, None]).all()
    is_along_axes = ((turn != 0).sum(0) <= 1).all() and ((turn != 0).sum(1) <= 1).all()
    if off > _OFF_GRID or not inside or not is_along_axes:
        raise InputError(
            f"{name} lies on another grid than {like.name or 'the volume'}; open the images it was made on."
        )
    spare = iter(np.flatnonzero(~turn.any(1)).tolist())
    axes = [int(np.abs(column).argmax()) if column.any() else next(spare) for column in turn.T]
    steps = [turn[axis, n] for n, axis in enumerate(axes)]
    return axes, [
        (shift[axis] + step * np.arange(count)).astype(np.intp)
        for axis, step, count in zip(axes, steps, shape, strict=True)
    ]


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn whatever a damaged or foreign file makes the packages say into one sentence."""
    if not path.is_file():
        raise InputError(f"The file {path} does not exist; check its name and folder.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # a foreign file can raise anything
        if "overlap" in str(error):
            raise InputError(
                f"The segments of {path.name} overlap; a label map holds one per voxel."
            ) from error
        raise InputError(f"{path.name} is not a DICOM segmentation that can be read ({error}).") from error
