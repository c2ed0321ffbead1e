"""The command line: `medssl COMMAND`.

Exit codes: 0 done; 1 failed, one sentence on stderr says why and nothing was written; 2 the command was spelled
wrong; 130 cancelled with Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import __version__
from .errors import Cancelled, InputError, MedSSLError, StorageError
from .registry import DEFAULT_MODEL
from .terminal import ProgressBar, duration, table

if TYPE_CHECKING:
    from .client import WorkerClient
    from .metrics import SegmentScore
    from .pipeline import PropagationResult, RefinementResult, SliceChoice
    from .segmentation import Segmentation
    from .volume import Volume, Window

__all__ = ["main"]

_CANCELLED = 130
"""What a shell reports for a program that ended on Ctrl-C."""
_DESCRIPTION = """\
One annotated slice of a CT becomes the organ in the whole volume.

Paint an organ on one slice (in 3D Slicer, ITK-SNAP, ...), save the label map, and
  medssl propagate ct.nii.gz --annotation slice.nii.gz -o organ.nii.gz
follows it through the volume. `medssl demo` shows it on a built-in phantom.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    options = _parser(arguments).parse_args(arguments)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # other packages' advice to programmers is not for the user
    try:
        COMMANDS[options.command].run(options)
        sys.stdout.flush()
    except (KeyboardInterrupt, Cancelled):
        print("medssl: cancelled", file=sys.stderr)
        return _CANCELLED
    except BrokenPipeError:  # the reader, e.g. `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except MedSSLError as error:
        return _fail(str(error))
    except Exception as error:
        if options.traceback:
            raise
        return _fail(_unexpected(error))
    return 0


def _fail(sentence: str) -> int:
    print(f"medssl: error: {sentence}", file=sys.stderr)
    return 1


def _unexpected(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("medssl"):
        return f"The package {error.name} is not installed; install it with: pip install 'medssl[engine]'"
    if isinstance(error, MemoryError):
        return "There is not enough memory for this volume; close other programs or give a smaller one."
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return f"The program failed ({text}); run medssl --traceback ... and report what it says."


# ---- commands


@dataclass(frozen=True)
class Command:
    """One word after `medssl`."""

    summary: str
    configure: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]
    examples: str


def _configure_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ct", metavar="FILE", help="your own CT instead of the built-in phantom")
    parser.add_argument(
        "--label", metavar="FILE", help="label map of whole organs on that CT, to compare with"
    )
    parser.add_argument("--out", metavar="FOLDER", default="demo_output", help="where to write [%(default)s]")
    parser.add_argument(
        "--segment", metavar="NAME", nargs="+", help="do only these segments [all of 5 or more slices]"
    )
    _add_model(parser)


def _demo(options: argparse.Namespace) -> None:
    from .demo import PHANTOM_ORGANS, run_demo, write_demo

    if (options.ct is None) != (options.label is None):
        raise InputError("A CT and its labels go together; give both --ct and --label, or neither.")
    segments = options.segment
    if options.ct is None:
        volume, truth = _phantom()
        segments = segments or PHANTOM_ORGANS
    else:
        volume, truth = _read_pair(options.ct, options.label)
    with ProgressBar(sys.stderr, "Propagating") as bar:
        demo = run_demo(
            volume, truth, segments=segments, model=options.model, device=options.device, on_progress=bar
        )
    shape = " x ".join(map(str, reversed(volume.shape_kji)))
    title = f"{volume.name}: one annotated slice per organ, {options.model}"
    paths = write_demo(demo, options.out, title)
    print(f"{volume.name}, {shape} voxels: the middle slice of each organ was annotated, the rest hidden.\n")
    print(_score_table(demo.scores, _slice_counts(demo.truth, demo.result.axis)))
    steps = len(demo.scores) * volume.shape_kji[demo.result.axis]
    seconds = demo.result.seconds
    print(
        f"\n{len(demo.scores)} segments in {duration(seconds)}: {1000 * seconds / steps:.0f} ms a slice and segment."
    )
    print("Written: " + ", ".join(map(str, paths)))
    _note_model(options.model)


def _configure_info(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("volume", help="image file, or folder of DICOM files")
    parser.add_argument("--annotation", metavar="FILE", help="label map on the same grid to describe as well")
    _add_series(parser)
    _add_json(parser)


def _info(options: argparse.Namespace) -> None:
    from .segmentation import read_segmentation
    from .volume import read_volume

    volume = read_volume(options.volume, options.series)
    facts = _volume_facts(volume)
    if options.annotation:
        facts["annotation"] = _annotation_facts(volume, read_segmentation(options.annotation, volume))
    if options.json:
        _print_json(facts)
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
            print(f"  {segment['label']:>3} {segment['name']}: {_ranges(segment['slices'])}")


def _configure_propagate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("volume", help="image file, or folder of DICOM files")
    parser.add_argument(
        "-a", "--annotation", metavar="FILE", required=True,
        help="label map on the volume's grid; its non-empty slices are the reference slices",
    )  # fmt: skip
    _add_output(parser)
    parser.add_argument(
        "--reference-slices", metavar="SLICES", nargs="+",
        help="use only these slices of the annotation: 40,52 for every segment, liver:40,52 for one, or 'all';"
        " needed when the annotation fills more than 20 slices in a row, as a finished segmentation does",
    )  # fmt: skip
    parser.add_argument(
        "--segment", metavar="NAME", nargs="+", help="do only these segments [all that are annotated]"
    )
    _add_axis(parser)
    parser.add_argument(
        "--range", metavar="FIRST:LAST", type=_range, default=(None, None),
        help="propagate only to these slices, both included; 20: and :60 leave one end open",
    )  # fmt: skip
    parser.add_argument(
        "--no-stop",
        action="store_true",
        help="go on to the end of the range even where the organ seems to end",
    )
    _add_window(parser)
    _add_model(parser)
    parser.add_argument(
        "--host",
        metavar="HOST",
        help="compute on another machine through ssh; `medssl` must be installed there",
    )
    _add_series(parser)
    _add_json(parser)


def _propagate(options: argparse.Namespace) -> None:
    from .pipeline import propagate_volume
    from .propagate import PropagateOptions
    from .segmentation import write_segmentation

    _check_output(options.output, [options.volume, options.annotation])
    volume, annotation = _read_pair(options.volume, options.annotation, options.series)
    first, last = options.range
    with ProgressBar(sys.stderr, "Propagating") as bar, _worker_on(options.host) as worker:
        result = propagate_volume(
            volume,
            annotation,
            model=options.model,
            device=options.device,
            worker=worker,
            axis=_axis(volume, options.axis),
            slices=_slice_choice(options.reference_slices),
            segments=options.segment,
            options=PropagateOptions(first=first, last=last, stop=not options.no_stop, window=options.window),
            on_progress=bar,
        )
    write_segmentation(result.segmentation, options.output)
    _note_model(options.model)
    if options.json:
        _print_json({"output": options.output, **_result_facts(volume, result)})
        return
    left_out = [name for name in annotation.names if name not in result.references]
    if left_out:
        print(f"medssl: note: no reference slice was chosen for {', '.join(left_out)}", file=sys.stderr)
    print(_result_table(volume, result))
    print(f"\n{options.output} written after {duration(result.seconds)}.")


def _configure_refine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("volume", help="image file, or folder of DICOM files")
    parser.add_argument(
        "-c", "--coarse", metavar="FILE", required=True, help="label map to sharpen, on the volume's grid"
    )
    _add_output(parser)
    parser.add_argument(
        "--truth", metavar="FILE", help="label map of the truth: score coarse and refined against it"
    )
    parser.add_argument("--segment", metavar="NAME", nargs="+", help="do only these segments [all]")
    parser.add_argument(
        "--axis", choices=["axial", "coronal", "sagittal", "0", "1", "2"], default="axial",
        help="slices to go along: a view, or an axis of the file (0 = K, 1 = J, 2 = I) [%(default)s]",
    )  # fmt: skip
    parser.add_argument(
        "--margin-mm",
        metavar="MM",
        type=float,
        default=5.0,
        help="margin of the boxes around the mask [%(default)s]",
    )
    parser.add_argument("--per-component", action="store_true", help="one box per connected part of a slice")
    parser.add_argument(
        "--guard-dice", metavar="DICE", type=float, default=0.5,
        help="a slice keeps its coarse mask if the refined one agrees with it less than this [%(default)s]",
    )  # fmt: skip
    _add_window(parser)
    _add_model(parser)
    _add_series(parser)
    _add_json(parser)


def _refine(options: argparse.Namespace) -> None:
    from .pipeline import refine_volume
    from .refine import RefineOptions
    from .segmentation import read_segmentation, write_segmentation

    _check_output(options.output, [options.volume, options.coarse])
    volume, coarse = _read_pair(options.volume, options.coarse, options.series)
    truth = read_segmentation(options.truth, volume) if options.truth else None
    with ProgressBar(sys.stderr, "Refining") as bar:
        result = refine_volume(
            volume,
            coarse,
            model=options.model,
            device=options.device,
            segments=options.segment,
            options=RefineOptions(
                axis=_axis(volume, options.axis) or 0,
                margin_mm=options.margin_mm,
                per_component=options.per_component,
                guard_dice=options.guard_dice,
                window=options.window,
            ),
            on_progress=bar,
        )
    write_segmentation(result.segmentation, options.output)
    _note_model(options.model)
    if options.json:
        facts = _refinement_facts(volume, result, truth)
        _print_json({"output": options.output, "seconds": result.seconds, "segments": facts})
        return
    print(_refinement_table(_refinement_facts(volume, result, truth)))
    for name, report in result.reports.items():
        print(f"{name}: {report.summary}")
    print(f"\n{options.output} written after {duration(result.seconds)}.")


def _configure_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prediction", help="label map to judge")
    parser.add_argument(
        "truth", help="label map to compare it with, on the same grid; segments are matched by name"
    )
    parser.add_argument(
        "--tolerance-mm", metavar="MM", type=float, default=2.0,
        help="surface distance that the normalised surface Dice forgives [%(default)s]",
    )  # fmt: skip
    _add_json(parser)


def _evaluate(options: argparse.Namespace) -> None:
    from .metrics import evaluate
    from .segmentation import read_segmentation

    scores = evaluate(
        read_segmentation(options.prediction), read_segmentation(options.truth), options.tolerance_mm
    )
    if options.json:
        _print_json({"tolerance_mm": options.tolerance_mm, "segments": [vars(score) for score in scores]})
    else:
        print(_score_table(scores))


def _configure_models(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser(
        "list", help="every model, its size and licence, and whether it is on this machine"
    )
    _add_json(listing)
    download = actions.add_parser("download", help="get a model; goes on where an earlier try stopped")
    download.add_argument("model", help="model id, e.g. sam2.1-hiera-tiny")
    importing = actions.add_parser(
        "import", help="take models from a folder, for a machine without a network"
    )
    importing.add_argument("folder", help="folder that holds the original weight files")
    for action in (download, importing):
        action.add_argument(
            "--accept-license",
            action="store_true",
            help="you know the terms of a model that restricts its use",
        )


def _models(options: argparse.Namespace) -> None:
    actions = {"list": _list_models, "download": _download_model, "import": _import_models}
    actions[options.action](options)


def _list_models(options: argparse.Namespace) -> None:
    from .registry import is_available, load_registry, model_path

    entries = load_registry()
    if options.json:
        places = [{"available": is_available(entry), "path": str(model_path(entry))} for entry in entries]
        _print_json([{**vars(entry), **place} for entry, place in zip(entries, places, strict=True)])
        return
    for entry in entries:
        here = "here" if is_available(entry) else "not here"
        print(
            f"{entry.id:<24}{entry.size_bytes / 1e6:5.0f} MB  {here:<10}{entry.license}\n    {entry.purpose}"
        )


def _download_model(options: argparse.Namespace) -> None:
    from .registry import download, find_entry

    with ProgressBar(sys.stderr, f"Downloading {options.model}") as bar:
        path = download(find_entry(options.model), bar, acknowledged=options.accept_license)
    print(f"{options.model} is ready: {path}")


def _import_models(options: argparse.Namespace) -> None:
    from .registry import import_from_folder

    with ProgressBar(sys.stderr, "Importing") as bar:
        entries = import_from_folder(options.folder, bar, acknowledged=options.accept_license)
    print("Ready: " + ", ".join(entry.id for entry in entries))


def _configure_train(parser: argparse.ArgumentParser) -> None:
    from .arguments import add_fields
    from .tracker_training import TrackerTrainConfig

    what = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    tracker = what.add_parser("tracker", help="the small model that carries masks from slice to slice")
    add_fields(tracker, TrackerTrainConfig)


def _train(options: argparse.Namespace) -> None:
    from .arguments import build
    from .events import Log, Progress
    from .tracker_training import TrackerTrainConfig, train_tracker

    config = build(TrackerTrainConfig, options)
    with ProgressBar(sys.stderr, "Training") as bar:
        for event in train_tracker(config):
            if isinstance(event, Progress):
                bar(event)
            elif isinstance(event, Log):
                bar.say(event.text)
            else:
                bar.say(f"step {event.step}: loss {event.loss:.3f}, Dice {event.dice:.3f}")
    print(f"Written: {config.out / 'checkpoint.safetensors'}")


def _configure_worker(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", metavar="N", type=int, help="CPU threads to compute with [all cores]")


def _worker(options: argparse.Namespace) -> None:
    from .worker import main as serve

    status = serve([] if options.threads is None else ["--threads", str(options.threads)])
    if status:
        raise SystemExit(status)


# ---- arguments that several commands share


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", metavar="ID", default=DEFAULT_MODEL, help="see `medssl models list` [%(default)s]"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps [%(default)s]")


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o", "--output", metavar="FILE", required=True, help="result: .nii.gz, or .seg.nrrd for 3D Slicer"
    )


def _add_axis(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--axis", choices=["auto", "axial", "coronal", "sagittal", "0", "1", "2"], default="auto",
        help="slices were drawn in this view, or across this axis of the file (0 = K, 1 = J, 2 = I); auto takes"
        " the one with the fewest annotated slices [%(default)s]",
    )  # fmt: skip


def _add_window(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--window", type=_window, metavar="NAME|LEVEL/WIDTH",
        help="intensities the model sees: soft-tissue, lung, bone, brain, ... or e.g. 40/400 [from the image]",
    )  # fmt: skip


def _add_series(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--series", metavar="UID", help="series to take from a DICOM folder that holds several"
    )


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of text")


def _window(text: str) -> Window:
    from .volume import WINDOWS, Window

    if text in WINDOWS:
        return WINDOWS[text]
    try:
        level, width = (float(part) for part in text.split("/"))
        return Window(level, width)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"'{text}' is neither LEVEL/WIDTH with a width above 0 nor one of {', '.join(WINDOWS)}"
        ) from error


def _range(text: str) -> tuple[int | None, int | None]:
    try:
        first, last = (int(part) if part else None for part in text.split(":"))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{text}' is not FIRST:LAST, e.g. 20:60") from error
    return first, last


def _axis(volume: Volume, text: str) -> int | None:
    """Slice axis for a choice of `--axis`; None leaves it to the annotation."""
    if text == "auto":
        return None
    return int(text) if text.isdigit() else volume.axis_of(text)  # type: ignore[arg-type]


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


# ---- reading and checking


def _read_pair(volume_path: str, labels_path: str, series: str | None = None) -> tuple[Volume, Segmentation]:
    from .segmentation import read_segmentation
    from .volume import read_volume

    volume = read_volume(volume_path, series)
    return volume, read_segmentation(labels_path, volume)


@contextmanager
def _worker_on(host: str | None) -> Iterator[WorkerClient | None]:
    """Worker on another machine for as long as the block lasts; None without a host."""
    if host is None:
        yield None
        return
    from .client import WorkerClient
    from .launch import SshCommand

    with WorkerClient(SshCommand(host=host)) as worker:
        yield worker


def _phantom() -> tuple[Volume, Segmentation]:
    from .phantom import demo_case

    phantom = demo_case()
    return phantom.volume, phantom.segmentation


def _check_output(output: str, inputs: Sequence[str]) -> None:
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


def _note_model(model: str) -> None:
    if model == DEFAULT_MODEL:
        print(
            f"medssl: note: {model} is a small model trained by this project; stronger ones are one download away:"
            " medssl models download sam2.1-hiera-tiny, then --model sam2.1-hiera-tiny",
            file=sys.stderr,
        )


# ---- what is printed


def _volume_facts(volume: Volume) -> dict[str, Any]:
    from .volume import VIEWS, Window

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
    from .pipeline import annotated_slices, choose_axis
    from .volume import as_stack

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


def _result_facts(volume: Volume, result: PropagationResult) -> dict[str, Any]:
    from .pipeline import annotated_slices
    from .volume import as_stack

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
            _ranges(facts["reference_slices"]),
            _ranges(facts["slices"]),
            f"{facts['volume_ml']:.1f}",
            f"{np.mean(known):.2f}" if known else "-",
        ])  # fmt: skip
    return table(["segment", "from slice", "found on slices", "ml", "confidence"], rows)


def _refinement_facts(
    volume: Volume, result: RefinementResult, truth: Segmentation | None
) -> list[dict[str, Any]]:
    voxel_ml = math.prod(volume.spacing_kji_mm) / 1000
    facts = []
    for name, report in result.reports.items():
        masks = {"coarse": report.coarse_kji, "largest": report.largest_kji, "refined": report.refined_kji}
        entry: dict[str, Any] = {
            "name": name,
            "volume_ml": {key: float(np.count_nonzero(mask)) * voxel_ml for key, mask in masks.items()},
            "slices": [vars(one) for one in report.slices],
        }
        if truth is not None and name in truth.names:
            scores = report.scores(truth.mask(name), volume.spacing_kji_mm)
            entry["dice"] = {key: score.dice for key, score in zip(masks, scores, strict=True)}
            entry["hd95_mm"] = {key: score.hd95_mm for key, score in zip(masks, scores, strict=True)}
        facts.append(entry)
    return facts


def _refinement_table(facts: Sequence[Mapping[str, Any]]) -> str:
    """Coarse, coarse + largest component and refined side by side: volumes, and Dice where the truth is known."""
    kinds = {"coarse": "coarse", "largest": "largest part", "refined": "refined"}
    rows = []
    for entry in facts:
        dice = [f"{entry['dice'][kind]:.3f}" if "dice" in entry else "-" for kind in kinds]
        rows.append([entry["name"], *(f"{entry['volume_ml'][kind]:.1f}" for kind in kinds), *dice])
    header = [*(f"{words} ml" for words in kinds.values()), *(f"{words} Dice" for words in kinds.values())]
    return table(["segment", *header], rows)


def _score_table(scores: Sequence[SegmentScore], slices: Mapping[str, int] | None = None) -> str:
    rows = []
    for score in scores:
        row = [score.segment, f"{score.dice:.3f}", f"{score.hd95_mm:.1f}", f"{score.nsd:.3f}"]
        rows.append(row + ([str(slices[score.segment])] if slices else []))
    return table(["segment", "Dice", "HD95 mm", "NSD"] + (["slices"] if slices else []), rows)


def _slice_counts(segmentation: Segmentation, axis: int) -> dict[str, int]:
    from .pipeline import annotated_slices
    from .volume import as_stack

    return {
        name: len(annotated_slices(as_stack(segmentation.mask(name), axis))) for name in segmentation.names
    }


def _ranges(numbers: Sequence[int]) -> str:
    """Write slice numbers for a person: `3, 10-24`; `none` when there are none."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs) or "none"


def _print_json(value: object) -> None:
    print(json.dumps(_jsonable(value), indent=2))


def _jsonable(value: Any) -> Any:
    """Turn infinite and unknown numbers, which JSON does not have, into null."""
    if isinstance(value, Mapping):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value


# ---- the parser

COMMANDS: dict[str, Command] = {
    "demo": Command(
        "show it: one annotated slice per organ of a phantom or of your CT",
        _configure_demo, _demo,
        "medssl demo\nmedssl demo --ct ct.nii.gz --label organs.nii.gz --out my_demo",
    ),
    "info": Command(
        "say what a file holds, and which slices of an annotation would be used",
        _configure_info, _info,
        "medssl info ct.nii.gz\nmedssl info dicom_folder\nmedssl info ct.nii.gz --annotation slice.nii.gz",
    ),
    "propagate": Command(
        "make whole organs out of annotated slices",
        _configure_propagate, _propagate,
        "medssl propagate ct.nii.gz -a slice.nii.gz -o organ.nii.gz\n"
        "medssl propagate dicom_folder -a slice.nii.gz -o organ.seg.nrrd --range 20:80\n"
        "medssl propagate ct.nii.gz -a all.nii.gz -o out.nii.gz --reference-slices liver:40,52 spleen:33",
    ),
    "refine": Command(
        "sharpen a coarse segmentation with boxes around it",
        _configure_refine, _refine,
        "medssl refine ct.nii.gz -c coarse.nii.gz -o fine.nii.gz --model sam-vit-b\n"
        "medssl refine ct.nii.gz -c coarse.nii.gz -o fine.nii.gz --truth truth.nii.gz",
    ),
    "evaluate": Command(
        "compare a result with the truth: Dice, HD95, surface Dice, volume",
        _configure_evaluate, _evaluate,
        "medssl evaluate organ.nii.gz truth.nii.gz\nmedssl evaluate organ.nii.gz truth.nii.gz --json",
    ),
    "models": Command(
        "list, download or import models",
        _configure_models, _models,
        "medssl models list\nmedssl models download sam2.1-hiera-tiny\nmedssl models import weights_folder",
    ),
    "train": Command(
        "train or adapt the small tracker on labelled CTs; the same command goes on where it was stopped",
        _configure_train, _train,
        "medssl train tracker --data cases --out runs/tracker\n"
        "medssl train tracker --data my_cases --out runs/mine --start-from pretrained/medssl-nano.safetensors",
    ),
    "worker": Command(
        "serve one client over standard input and output; 3D Slicer starts it, here or through ssh",
        _configure_worker, _worker,
        "ssh gpu-server medssl worker",
    ),
}  # fmt: skip


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """Build the parser; only the command that is asked for gets its options: some need imports to know them."""
    parser = argparse.ArgumentParser(
        prog="medssl", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"medssl {__version__}")
    parser.add_argument(
        "--traceback", action="store_true", help="show where in the program an unexpected error came up"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    for name, command in COMMANDS.items():
        examples = "\n".join("  " + line for line in command.examples.splitlines())
        child = commands.add_parser(
            name,
            help=command.summary,
            description=command.summary[0].upper() + command.summary[1:] + ".",
            epilog=f"examples:\n{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name in arguments:
            command.configure(child)
    return parser


if __name__ == "__main__":
    sys.exit(main())
