"""DICOM SEG objects: segmentations that PACS and viewers read, to and from the grid of a volume (highdicom)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
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
    places = _places(np.asarray(stored.affine, float), values.shape, like, Path(path).name)
    labels[places] = values
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
        segmentation: on the grid of the series.
        series: DICOM folder of the images.
        path: the file to write, .dcm.
        uid: which series of the folder, where there are several; the beginning of its UID is enough.

    Raises:
        InputError: nothing is segmented, or the series lies on another grid.
        StorageError: no space or no permission; nothing is left behind.
    """
    if not segmentation.labels_kji.any():
        raise InputError("There is nothing to write as DICOM SEG: every segment is empty.")
    import highdicom
    import pydicom

    found = choose_series(Path(series), uid)
    segmentation.require_grid_of(read_volume(series, found.uid))
    images = [pydicom.dcmread(file, stop_before_pixels=True) for file in found.files]
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
            segment_descriptions=[_description(n, s) for n, s in enumerate(present, start=1)],
            series_instance_uid=highdicom.UID(),
            series_number=_next_series_number(images[0]),
            sop_instance_uid=highdicom.UID(),
            instance_number=1,
            manufacturer="MedSSLSegment",
            manufacturer_model_name="medssl",
            software_versions=__version__,
            device_serial_number="0",
        )
        with atomic_path(path) as temporary:
            seg.save_as(temporary)


def _description(number: int, segment: Segment) -> Any:
    import highdicom
    from pydicom.sr.codedict import codes

    return highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=segment.name[:64],
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
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """Index arrays into the volume, broadcast to the SEG's shape, for each of the SEG's voxels."""
    ras_to_kji = np.linalg.inv(like.ijk_to_ras[:, [2, 1, 0, 3]])
    there = ras_to_kji @ _LPS_TO_RAS @ kji_to_lps
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape], [1.0], indexing="ij")).reshape(4, -1)
    turn, shift = np.rint(there[:3, :3]), np.rint(there[:3, 3])
    exact = turn @ corners[:3] + shift[:, None]
    off = np.abs((there @ corners)[:3] - exact).max()
    inside = (exact >= 0).all() and (exact < np.array(like.shape_kji)[:, None]).all()
    if off > _OFF_GRID or not inside:
        raise InputError(
            f"{name} lies on another grid than {like.name or 'the volume'}; open the images it was made on."
        )
    indices = np.indices(shape).reshape(3, -1)
    k, j, i = (turn @ indices + shift[:, None]).astype(np.intp).reshape(3, *shape)
    return k, j, i


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
