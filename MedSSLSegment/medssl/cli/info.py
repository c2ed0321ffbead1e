"""`medssl info`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from .command import Command
from .options import add_json, add_series
from .printed import print_json, ranges

if TYPE_CHECKING:
    from ..segmentation import Segmentation
    from ..volume import Volume

__all__ = ["COMMAND"]


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("volume", help="image file, or folder of DICOM files")
    parser.add_argument("--annotation", metavar="FILE", help="label map on the same grid to describe as well")
    add_series(parser)
    add_json(parser)


def _run(options: argparse.Namespace) -> None:
    from ..segmentation import read_segmentation
    from ..volume import read_volume

    volume = read_volume(options.volume, options.series)
    facts = _volume_facts(volume)
    if options.annotation:
        facts["annotation"] = _annotation_facts(volume, read_segmentation(options.annotation, volume))
    if options.json:
        print_json(facts)
        return
    print(f"name        {facts['name']}")
    print(f"size        {' x '.join(map(str, reversed(facts['shape_kji'])))} voxels (I x J x K)")
    print(f"spacing     {' x '.join(f'{s:.4g}' for s in reversed(facts['spacing_kji_mm']))} mm")
    print(f"slices      {', '.join(f'{view} across axis {axis}' for view, axis in facts['axes'].items())}")
    print(f"intensities {facts['intensity_range'][0]:g} to {facts['intensity_range'][1]:g}")
    print(f"window      level {facts['window']['level']:g}, width {facts['window']['width']:g}")
    if options.annotation:
        found = facts["annotation"]
        print(f"annotation  drawn across axis {found['axis']} ({volume.view_of(found['axis'])})")
        for segment in found["segments"]:
            print(f"  {segment['label']:>3} {segment['name']}: {ranges(segment['slices'])}")


def _volume_facts(volume: Volume) -> dict[str, Any]:
    from ..volume import VIEWS, Window

    window = Window.auto(volume)
    return {
        "name": volume.name,
        "shape_kji": volume.shape_kji,
        "spacing_kji_mm": volume.spacing_kji_mm,
        "ijk_to_ras": volume.ijk_to_ras.tolist(),
        "axes": {view: volume.axis_of(view) for view in VIEWS},
        "intensity_range": (float(volume.voxels_kji.min()), float(volume.voxels_kji.max())),
        "window": {"level": window.level, "width": window.width},
        "content_hash": volume.content_hash,
    }


def _annotation_facts(volume: Volume, annotation: Segmentation) -> dict[str, Any]:
    from ..pipeline import annotated_slices, choose_axis
    from ..volume import as_stack

    axis = choose_axis(volume, annotation)
    return {
        "axis": axis,
        "segments": [
            {
                "name": s.name,
                "label": s.label,
                "slices": annotated_slices(as_stack(annotation.mask(s.name), axis)),
            }
            for s in annotation.segments
        ],
    }


COMMAND = Command(
    summary="say what a file holds, and which slices of an annotation would be used",
    configure=_configure,
    run=_run,
    examples="medssl info ct.nii.gz\nmedssl info dicom_folder\nmedssl info ct.nii.gz --annotation slice.nii.gz",
)
