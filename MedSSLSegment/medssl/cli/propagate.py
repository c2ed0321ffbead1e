"""`medssl propagate`."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from ..events import duration
from .command import Command
from .files import check_output, read_pair
from .options import add_axis, add_json, add_model, add_output, add_series, add_window, chosen_axis
from .printed import note, note_model, print_json, ranges
from .terminal import ProgressBar, table

if TYPE_CHECKING:
    from ..client import WorkerClient
    from ..pipeline import PropagationResult, SliceChoice
    from ..volume import Volume

__all__ = ["COMMAND"]


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("volume", help="image file, or folder of DICOM files")
    parser.add_argument(
        "-a", "--annotation", metavar="FILE", required=True,
        help="label map on the volume's grid; its non-empty slices are the reference slices",
    )  # fmt: skip
    add_output(parser)
    parser.add_argument(
        "--reference-slices", metavar="SLICES", nargs="+",
        help="use only these slices of the annotation: 40,52 for every segment, liver:40,52 for one, or 'all';"
        " needed when the annotation fills more than 20 slices without a gap, as a finished segmentation does; other"
        " finished segments than the named ones are left out",
    )  # fmt: skip
    parser.add_argument(
        "--segment", metavar="NAME", nargs="+", help="do only these segments [all that are annotated]"
    )
    add_axis(parser)
    parser.add_argument(
        "--range", metavar="FIRST:LAST", type=_range, default=(None, None),
        help="propagate only to these slices, both included; 20: and :60 leave one end open",
    )  # fmt: skip
    parser.add_argument(
        "--no-stop",
        action="store_true",
        help="go on to the end of the range even where the organ seems to end",
    )
    add_window(parser)
    add_model(parser)
    parser.add_argument(
        "--host",
        metavar="HOST",
        help="compute on another machine through ssh; `medssl` must be installed there",
    )
    add_series(parser)
    add_json(parser)


def _run(options: argparse.Namespace) -> None:
    from ..pipeline import propagate_volume
    from ..propagate import PropagateOptions
    from ..segmentation import write_segmentation

    check_output(options.output, options.volume, [options.annotation])
    volume, annotation = read_pair(options.volume, options.annotation, options.series)
    first, last = options.range
    with ProgressBar(sys.stderr, "Propagating") as bar, _worker_on(options.host) as worker:
        result = propagate_volume(
            volume,
            annotation,
            model=options.model,
            device=options.device,
            worker=worker,
            axis=chosen_axis(volume, options.axis),
            slices=_slice_choice(options.reference_slices),
            segments=options.segment,
            options=PropagateOptions(first=first, last=last, stop=not options.no_stop, window=options.window),
            on_progress=bar,
        )
    write_segmentation(result.segmentation, options.output)
    note_model(options.model)
    left_out = [name for name in annotation.names if name not in result.references]
    if left_out:
        note(f"no reference slice was chosen for {', '.join(left_out)}")
    if options.json:
        print_json({"output": options.output, **_result_facts(volume, result)})
        return
    print(_result_table(volume, result))
    print(f"\n{options.output} written after {duration(result.seconds)}.")


def _range(text: str) -> tuple[int | None, int | None]:
    try:
        first, last = (int(part) if part else None for part in text.split(":"))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{text}' is not FIRST:LAST, e.g. 20:60") from error
    return first, last


def _slice_choice(words: Sequence[str] | None) -> SliceChoice:
    """Read `40,52`, `liver:40,52 spleen:33` or `all`."""
    if words is None or list(words) == ["all"]:
        return "all" if words else None
    named: dict[str, list[int]] = {}
    for word in words:
        name, _, numbers = word.rpartition(":")
        try:
            named.setdefault(name, []).extend(int(number) for number in numbers.split(","))
        except ValueError as error:
            raise InputError(
                f"The reference slices '{word}' cannot be read; give e.g. 40,52 or liver:40,52 or all."
            ) from error
    if "" not in named:
        return named
    if len(named) > 1:
        raise InputError(
            "Give reference slices either for every segment (40,52) or by name (liver:40,52), not both."
        )
    return named[""]


@contextmanager
def _worker_on(host: str | None) -> Iterator[WorkerClient | None]:
    """Worker on another machine for as long as the block lasts; None without a host."""
    if host is None:
        yield None
        return
    from ..client import WorkerClient
    from ..wire.launch import SshCommand

    with WorkerClient(SshCommand(host=host)) as worker:
        yield worker


def _result_facts(volume: Volume, result: PropagationResult) -> dict[str, Any]:
    from ..pipeline import annotated_slices
    from ..volume import as_stack

    voxel_ml = math.prod(volume.spacing_kji_mm) / 1000
    facts = []
    for segment in result.segmentation.segments:
        mask = result.segmentation.mask(segment.name)
        facts.append(
            {
                "name": segment.name,
                "label": segment.label,
                "reference_slices": list(result.references[segment.name]),
                "slices": annotated_slices(as_stack(mask, result.axis)),
                "volume_ml": float(np.count_nonzero(mask)) * voxel_ml,
                "confidence": result.confidence[segment.name].tolist(),
            }
        )
    return {"axis": result.axis, "seconds": result.seconds, "segments": facts}


def _result_table(volume: Volume, result: PropagationResult) -> str:
    rows = []
    for facts in _result_facts(volume, result)["segments"]:
        known = [c for c in facts["confidence"] if not math.isnan(c)]
        rows.append([
            facts["name"],
            ranges(facts["reference_slices"]),
            ranges(facts["slices"]),
            f"{facts['volume_ml']:.1f}",
            f"{np.mean(known):.2f}" if known else "-",
        ])  # fmt: skip
    return table(["segment", "from slice", "found on slices", "ml", "confidence"], rows)


COMMAND = Command(
    summary="make whole organs out of annotated slices",
    configure=_configure,
    run=_run,
    examples="medssl propagate ct.nii.gz -a slice.nii.gz -o organ.nii.gz\n"
    "medssl propagate dicom_folder -a slice.nii.gz -o organ.seg.nrrd --range 20:80\n"
    "medssl propagate ct.nii.gz -a all.nii.gz -o out.nii.gz --reference-slices liver:40,52 spleen:33",
)
