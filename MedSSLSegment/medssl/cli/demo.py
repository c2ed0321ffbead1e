"""`medssl demo`."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from ..errors import InputError
from ..events import duration
from .command import Command
from .files import read_pair
from .options import add_model
from .printed import note_model, score_table
from .terminal import ProgressBar

if TYPE_CHECKING:
    from ..segmentation import Segmentation
    from ..volume import Volume

__all__ = ["COMMAND"]


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ct", metavar="FILE", help="your own CT instead of the built-in phantom")
    parser.add_argument(
        "--label", metavar="FILE", help="label map of whole organs on that CT, to compare with"
    )
    parser.add_argument("--out", metavar="FOLDER", default="demo_output", help="where to write [%(default)s]")
    parser.add_argument(
        "--segment", metavar="NAME", nargs="+", help="do only these segments [all of 5 or more slices]"
    )
    add_model(parser)


def _run(options: argparse.Namespace) -> None:
    from ..demo import PHANTOM_ORGANS, run_demo, write_demo

    if (options.ct is None) != (options.label is None):
        raise InputError("A CT and its labels go together; give both --ct and --label, or neither.")
    segments = options.segment
    if options.ct is None:
        volume, truth = _phantom()
        segments = segments or PHANTOM_ORGANS
    else:
        volume, truth = read_pair(options.ct, options.label)
    with ProgressBar(sys.stderr, "Propagating") as bar:
        demo = run_demo(
            volume, truth, segments=segments, model=options.model, device=options.device, on_progress=bar
        )
    shape = " x ".join(map(str, reversed(volume.shape_kji)))
    title = f"{volume.name}: one annotated slice per organ, {options.model}"
    paths = write_demo(demo, options.out, title)
    print(f"{volume.name}, {shape} voxels: the middle slice of each organ was annotated, the rest hidden.\n")
    print(score_table(demo.scores, _slice_counts(demo.truth, demo.result.axis)))
    steps = len(demo.scores) * volume.shape_kji[demo.result.axis]
    seconds = demo.result.seconds
    print(
        f"\n{len(demo.scores)} segments in {duration(seconds)}: {1000 * seconds / steps:.0f} ms a slice and segment."
    )
    print("Written: " + ", ".join(map(str, paths)))
    note_model(options.model)


def _phantom() -> tuple[Volume, Segmentation]:
    from ..phantom import demo_case

    phantom = demo_case()
    return phantom.volume, phantom.segmentation


def _slice_counts(segmentation: Segmentation, axis: int) -> dict[str, int]:
    from ..pipeline import annotated_slices
    from ..volume import as_stack

    return {
        name: len(annotated_slices(as_stack(segmentation.mask(name), axis))) for name in segmentation.names
    }


COMMAND = Command(
    summary="show it: one annotated slice per organ of a phantom or of your CT",
    configure=_configure,
    run=_run,
    examples="medssl demo\nmedssl demo --ct ct.nii.gz --label organs.nii.gz --out my_demo",
)
