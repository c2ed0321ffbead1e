"""`medssl suggest`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from .command import Command
from .options import add_json, add_series, add_store, add_trained
from .printed import note, print_json
from .segment import add_pipeline, known_slices, pipeline_options, show_events
from .terminal import ProgressBar, table

if TYPE_CHECKING:
    from ..few_labels.segmenter import SegmentationModel
    from ..segmentation import Segmentation
    from ..suggest import Evidence, VolumeSuggestion
    from ..volume import Volume

__all__ = ["COMMAND"]

_VIEWS = ("axial", "coronal", "sagittal")


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("volume", help="image, to rank its slices; or folder of images, to rank these")
    add_trained(parser, required=False)
    parser.add_argument(
        "-a", "--annotation", metavar="FILE", help="slices of the volume that you have drawn already"
    )
    parser.add_argument(
        "--count", metavar="N", type=int, default=5, help="how many to suggest at most [%(default)s]"
    )
    add_store(parser)
    add_pipeline(parser)
    add_series(parser)
    add_json(parser)


def _run(options: argparse.Namespace) -> None:
    from ..datasets.sources import find_sources

    if options.model is None and options.annotation is None:
        raise InputError("Give a model of your own with --model, or slices you have drawn with --annotation.")
    if options.count < 1:
        raise InputError(f"At least 1 suggestion must be asked for, not {options.count}.")
    folder = Path(options.volume)
    sources = find_sources(folder).sources if folder.is_dir() else ()
    if sources and not (len(sources) == 1 and sources[0].path == folder):
        _suggest_volumes(options)
    else:
        _suggest_slices(options)


def _suggest_slices(options: argparse.Namespace) -> None:
    from ..suggest import suggest_slices
    from ..volume import read_volume

    volume = read_volume(options.volume, options.series)
    suggestions = suggest_slices(_evidence(volume, options), options.count)
    if options.json:
        print_json([asdict(suggestion) for suggestion in suggestions])
        return
    if not suggestions:
        print("Nothing is left to gain: every slice of what was found is vouched for.")
        return
    rows = [
        [str(n), s.segment, _view(volume, s.axis), str(s.index), s.reason]
        for n, s in enumerate(suggestions, start=1)
    ]
    print(table(["", "segment", "view", "slice", "why"], rows, left=(0, 1, 2, 4)))


def _evidence(volume: Volume, options: argparse.Namespace) -> list[Evidence]:
    """From the full pipeline with a model, else from propagating what was drawn."""
    from .. import evidence
    from ..foundation import load_image_predictor, load_tracker
    from ..pipeline import propagate_volume
    from ..segmentation import read_segmentation
    from ..segmenting import segment_volume

    annotation = read_segmentation(options.annotation, volume) if options.annotation else None
    tracker = load_tracker(options.tracker, options.device)
    if options.model is None and annotation is not None:
        with ProgressBar(sys.stderr, "Propagating") as bar:
            found = propagate_volume(volume, annotation, tracker=tracker, on_progress=bar)
        known = known_slices(volume, Path(options.store), found.axis).without(found.references)
        return evidence.of_propagation(volume, found, known.absent)
    pipeline = pipeline_options(volume, options, "prediction" if annotation is None else "annotation")
    known = known_slices(volume, Path(options.store), pipeline.axis)
    with ProgressBar(sys.stderr, "Segmenting") as bar:
        result = segment_volume(
            volume,
            _model(options),
            predictor=load_image_predictor(options.refiner, options.device),
            tracker=tracker,
            annotation=annotation,
            known=known,
            options=pipeline,
            device=options.device,
            on_event=lambda event: show_events(bar, event),
        )
    drawn = _with_drawn(known.shown, annotation, result.axis)
    return list(evidence.of_segmentation(volume, result, drawn, known.absent))


def _with_drawn(
    vouched: Mapping[str, Sequence[int]], annotation: Segmentation | None, axis: int
) -> dict[str, list[int]]:
    """Slices that show a segment and need no annotation any more: vouched for in the store, or drawn here."""
    from ..pipeline import annotated_slices
    from ..volume import as_stack

    drawn = {name: list(indices) for name, indices in vouched.items()}
    for name in annotation.names if annotation is not None else ():
        indices = annotated_slices(as_stack(annotation.mask(name), axis))  # type: ignore[union-attr]
        drawn[name] = sorted({*drawn.get(name, ()), *indices})
    return drawn


def _suggest_volumes(options: argparse.Namespace) -> None:
    if options.model is None:
        raise InputError("To rank the volumes of a folder, give a model of your own with --model.")
    ranked = _ranked(options)[: options.count]
    if options.json:
        print_json([asdict(volume) for volume in ranked])
        return
    rows = [[str(n), v.name, f"{v.score:.2f}", v.reason] for n, v in enumerate(ranked, start=1)]
    print(table(["", "volume", "score", "why"], rows, left=(0, 1, 3)))


def _ranked(options: argparse.Namespace) -> list[VolumeSuggestion]:
    """Predict every volume of the folder that is not in the store, and rank them."""
    from ..cases import CaseStore
    from ..datasets.sources import ReadScan, find_sources
    from ..events import Eta
    from ..evidence import of_prediction
    from ..inference import predict_volume
    from ..suggest import embed_slices, suggest_volumes

    model, store = _model(options), Path(options.store)
    cases = CaseStore(store).cases(note) if store.is_dir() else []
    taught = {case.volume_hash for case in cases}
    sources = find_sources(Path(options.volume)).sources
    evidence, embeddings = {}, {}
    eta = Eta(len(sources))
    with ProgressBar(sys.stderr, "Predicting") as bar:
        for done, source in enumerate(sources, start=1):
            for read in source.read():
                if not isinstance(read, ReadScan):
                    bar.say(f"{source.name} was left out: {read}")
                elif read.volume.content_hash not in taught:
                    name, axis = source.name + read.suffix, read.volume.axis_of("axial")
                    try:
                        found = predict_volume(
                            model, read.volume, anyway=options.anyway, device=options.device
                        )
                    except InputError as error:
                        bar.say(f"{name} was left out: {error}")
                        continue
                    evidence[name] = of_prediction(read.volume, found, axis, {})
                    embeddings[name] = embed_slices(read.volume, axis).mean(axis=0)
            bar(eta.step(done, source.name))
    known = []
    for case in cases:
        try:
            volume = case.volume()
        except InputError as error:  # it is known all the same; only what it looks like is not
            note(str(error))
            continue
        known.append(embed_slices(volume, volume.axis_of("axial")).mean(axis=0))
    return suggest_volumes(evidence, embeddings, known)


def _model(options: argparse.Namespace) -> SegmentationModel:
    from ..few_labels.model_store import model_file
    from ..few_labels.segmenter import read_model

    return read_model(model_file(options.model, str(options.models)))


def _view(volume: Volume, axis: int) -> str:
    names: Sequence[str] = [view for view in _VIEWS if volume.axis_of(view) == axis]  # type: ignore[arg-type]
    return names[0] if names else f"axis {axis}"


COMMAND = Command(
    summary="say which slice, or which volume, is worth annotating next, and why",
    configure=_configure,
    run=_run,
    examples="medssl suggest ct.nii.gz --annotation slices.nii.gz\n"
    "medssl suggest ct.nii.gz --model liver --count 3\n"
    "medssl suggest folder_of_scans --model liver",
)
