"""`medssl segment`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from ..events import duration
from .command import Command
from .files import check_output, check_place
from .options import (
    add_anyway,
    add_json,
    add_output,
    add_promptable,
    add_refinement,
    add_series,
    add_store,
    add_trained,
    add_window,
    chosen_axis,
)
from .printed import note_model, print_json, ranges
from .terminal import ProgressBar, table

if TYPE_CHECKING:
    from ..known_slices import KnownSlices
    from ..segmentation import Segmentation
    from ..segmenting import SegmentEvent, SegmentOptions, SegmentResult
    from ..volume import Volume

__all__ = ["COMMAND", "add_pipeline", "known_slices", "pipeline_options", "show_events"]


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("volume", help="image file, or folder of DICOM files")
    add_output(parser)
    add_trained(parser, required=False)
    parser.add_argument(
        "-c", "--coarse", metavar="FILE", help="in place of a model: a coarse label map of any program"
    )
    parser.add_argument(
        "-a", "--annotation", metavar="FILE",
        help="slices that you have drawn; needed, and only allowed, with --prompt annotation",
    )  # fmt: skip
    parser.add_argument(
        "--prompt", choices=["prediction", "annotation"], default="prediction",
        help="where reference slices come from: chosen among the refined ones, or drawn by you [%(default)s]",
    )  # fmt: skip
    parser.add_argument(
        "--stages",
        metavar="FOLDER",
        help="also write coarse, largest, sharpened, refined, propagated and final masks",
    )
    parser.add_argument(
        "--truth", metavar="FILE", help="label map of the truth: score every stage against it"
    )
    add_store(parser)
    add_pipeline(parser)
    add_series(parser)
    add_json(parser)


def known_slices(volume: Volume, store: Path, axis: int | None) -> KnownSlices:
    """What the volume's case in a store vouches for across an axis; nothing where it has none.

    Args:
        store: folder of the case store.
        axis: None is the axial one.
    """
    from ..cases import CaseStore
    from ..known_slices import KnownSlices

    case = CaseStore(store).find(volume.content_hash) if store.is_dir() else None
    return KnownSlices.of_case(case, volume.axis_of("axial") if axis is None else axis)


def add_pipeline(parser: argparse.ArgumentParser) -> None:
    """Options of the pipeline, for every command that runs it."""
    parser.add_argument(
        "--segment", metavar="NAME", nargs="+", default=(), help="find only these segments [all]"
    )
    parser.add_argument(
        "--references",
        metavar="N",
        type=int,
        default=3,
        help="reference slices to choose for each segment [%(default)s]",
    )
    parser.add_argument(
        "--least-part", metavar="SHARE", type=float, default=0.5,
        help="drop parts of the coarse mask smaller than this share of its largest; 1 keeps that alone [%(default)s]",
    )  # fmt: skip
    parser.add_argument(
        "--no-sharpen", action="store_true",
        help="do not weigh the coarse mask of a CT against its intensities; better for thin objects like the spinal"
        " cord",
    )  # fmt: skip
    add_refinement(parser)
    parser.add_argument(
        "--crop",
        choices=["auto", "off"],
        default="off",
        help="auto propagates on a crop, for small structures [%(default)s]",
    )
    parser.add_argument(
        "--uncertainty", choices=["off", "flip-average", "dropout"], default="off",
        help="average coarse answers: with the mirror image (2 x the time) or under dropout (8 x) [%(default)s]",
    )  # fmt: skip
    add_anyway(parser)
    add_window(parser)
    add_promptable(parser)


def pipeline_options(
    volume: Volume, options: argparse.Namespace, prompt: Any = "prediction"
) -> SegmentOptions:
    """What the options of `add_pipeline` say, for a volume."""
    from ..segmenting import SegmentOptions

    return SegmentOptions(
        prompt=prompt,
        segments=tuple(options.segment),
        axis=chosen_axis(volume, options.axis),
        references=options.references,
        least_part=options.least_part,
        sharpen=not options.no_sharpen,
        margin_mm=options.margin_mm,
        per_component=options.per_component,
        guard_dice=options.guard_dice,
        crop=options.crop,
        window=options.window,
        uncertainty=options.uncertainty,
        anyway=options.anyway,
    )


def show_events(bar: ProgressBar, event: SegmentEvent) -> None:
    """Show how far the pipeline is."""
    from ..events import Log, Progress

    if isinstance(event, Progress):
        bar(event)
    elif isinstance(event, Log):
        bar.say(event.text)


def _run(options: argparse.Namespace) -> None:
    from ..few_labels.model_store import model_file
    from ..few_labels.segmenter import read_model
    from ..foundation import load_image_predictor, load_tracker
    from ..segmentation import read_segmentation, write_segmentation
    from ..segmenting import segment_volume
    from ..volume import read_volume

    labels = [options.coarse, options.annotation, options.truth]
    check_output(options.output, options.volume, labels)
    if options.stages:
        _check_stages(Path(options.stages), [options.volume, *(path for path in labels if path)])
    if (options.model is None) == (options.coarse is None):
        raise InputError("Give either a model of your own with --model, or a coarse label map with --coarse.")
    volume = read_volume(options.volume, options.series)
    truth, annotation, coarse = (
        read_segmentation(path, volume) if path else None
        for path in (options.truth, options.annotation, options.coarse)
    )
    model = coarse or read_model(model_file(options.model, str(options.models)))
    pipeline = pipeline_options(volume, options, options.prompt)
    known = known_slices(volume, Path(options.store), pipeline.axis)
    with ProgressBar(sys.stderr, "Segmenting") as bar:
        result = segment_volume(
            volume,
            model,
            predictor=load_image_predictor(options.refiner, options.device),
            tracker=load_tracker(options.tracker, options.device),
            annotation=annotation,
            known=known,
            options=pipeline,
            device=options.device,
            on_event=lambda event: show_events(bar, event),
        )
    write_segmentation(result.segmentation, options.output)
    if options.stages:
        result.write(Path(options.stages))
    note_model(options.tracker, "--tracker")
    facts = _facts(volume, result, truth)
    if options.json:
        print_json({"output": options.output, **facts})
        return
    print(_table(facts["segments"]))
    if count := known.count(result.segmentation.names):
        print(f"\n{count} slice{'s' * (count > 1)} that the case store vouches for stayed as they are.")
    print(f"\n{options.output} written after {duration(result.seconds)}.")


def _check_stages(folder: Path, inputs: Sequence[str]) -> None:
    """Refuse a folder whose masks of the stages would replace an input."""
    from ..segmenting import STAGES

    if folder.is_dir():
        for stage in STAGES:
            check_place(str(folder / f"{stage}.seg.nrrd"), inputs)


def _facts(volume: Volume, result: SegmentResult, truth: Segmentation | None) -> dict[str, Any]:
    voxel_ml = float(np.prod(volume.spacing_kji_mm)) / 1000
    scores = {} if truth is None else result.scores(truth)
    segments = []
    for name in result.segmentation.names:
        known = result.confidence[name][~np.isnan(result.confidence[name])]
        entry: dict[str, Any] = {
            "name": name,
            "reference_slices": list(result.references[name]),
            "volume_ml": {
                stage: float(np.count_nonzero(found.mask(name))) * voxel_ml
                for stage, found in result.stages.items()
            },
            "confidence": float(known.mean()) if known.size else None,
            "kept_coarse": [what.index for what in result.refined_slices[name] if what.kept_coarse],
        }
        for key in ("dice", "hd95_mm") if truth is not None and name in truth.names else ():
            entry[key] = {
                stage: getattr(score, key)
                for stage, each in scores.items()
                for score in each
                if score.segment == name
            }
        segments.append(entry)
    return {"prompt": result.prompt, "axis": result.axis, "seconds": result.seconds, "segments": segments}


def _table(facts: list[dict[str, Any]]) -> str:
    """One line per segment; with the truth, the Dice of every stage side by side."""
    from ..segmenting import STAGES

    scored = any("dice" in entry for entry in facts)
    rows = []
    for entry in facts:
        sure = entry["confidence"]
        row = [entry["name"], ranges(entry["reference_slices"]), f"{entry['volume_ml']['final']:.1f}"]
        row.append("-" if sure is None else f"{sure:.2f}")
        if scored:
            row += [f"{entry['dice'][stage]:.3f}" if "dice" in entry else "-" for stage in STAGES]
        rows.append(row)
    header = ["segment", "from slice", "ml", "confidence"]
    return table(header + ([f"{stage} Dice" for stage in STAGES] if scored else []), rows)


COMMAND = Command(
    summary="segment a volume with a model of your own, refined and propagated by promptable models",
    configure=_configure,
    run=_run,
    examples="medssl segment ct.nii.gz --model liver -o liver.nii.gz\n"
    "medssl segment ct.nii.gz --model liver -o liver.seg.nrrd --stages stages --refiner sam-vit-b\n"
    "medssl segment ct.nii.gz --coarse nnunet.nii.gz -o better.nii.gz --truth truth.nii.gz\n"
    "medssl segment ct.nii.gz --model liver --prompt annotation -a slice.nii.gz -o liver.nii.gz",
)
