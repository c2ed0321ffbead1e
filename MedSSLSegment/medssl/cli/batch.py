"""`medssl batch`."""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import MedSSLError
from .command import Command
from .options import add_trained
from .segment import add_pipeline, pipeline_options
from .terminal import ProgressBar
from .watching import stopped_by_signals

if TYPE_CHECKING:
    from ..segmentation import Segmentation
    from ..volume import Volume

__all__ = ["COMMAND"]

_NOT_SETTINGS = ("command", "traceback", "data", "out", "exclude", "models", "device")


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DIR", help="folder of images and DICOM folders, at any depth")
    parser.add_argument(
        "-o", "--out", metavar="DIR", required=True, help="folder of results; the same command goes on there"
    )
    add_trained(parser)
    parser.add_argument(
        "--coarse-only", action="store_true", help="the model's own mask, without refining and propagating"
    )
    parser.add_argument(
        "--exclude",
        metavar="NAME",
        nargs="+",
        default=(),
        help="files or folders to leave out; * stands for anything",
    )
    add_pipeline(parser)


def _run(options: argparse.Namespace) -> None:
    from ..batch import BatchItem, run_batch
    from ..events import Log
    from ..few_labels.model_store import model_file

    weights = model_file(options.model, str(options.models))
    settings = {name: value for name, value in vars(options).items() if name not in _NOT_SETTINGS}
    settings["weights"] = hashlib.sha256(
        weights.read_bytes()
    ).hexdigest()  # a name may come to stand for others
    failed, done = [], 0
    with ProgressBar(sys.stderr, "Segmenting") as bar, stopped_by_signals() as asked:
        work = _coarse(weights, options) if options.coarse_only else _whole(weights, options, asked)
        for event in run_batch(
            Path(options.data),
            Path(options.out),
            settings,
            work,
            exclude=tuple(options.exclude),
            cancelled=asked,
        ):
            if isinstance(event, Log):
                bar.say(event.text)
            elif not isinstance(event, BatchItem):
                bar(event)
            elif event.state == "failed":
                failed.append(event.name)
                bar.say(f"{event.name} failed: {event.problem}")
            else:
                done += 1
    summary = Path(options.out) / "summary.csv"
    print(f"{done} volumes segmented; see {summary}")
    if failed:
        raise MedSSLError(f"{len(failed)} of {done + len(failed)} volumes failed; {summary} says why.")


def _coarse(weights: Path, options: argparse.Namespace) -> Callable[[Volume], Segmentation]:
    from ..few_labels.segmenter import read_model
    from ..inference import predict_volume

    model = read_model(weights)

    def segment(volume: Volume) -> Segmentation:
        return predict_volume(
            model, volume, uncertainty=options.uncertainty, anyway=options.anyway, device=options.device
        ).segmentation

    return segment


def _whole(
    weights: Path, options: argparse.Namespace, cancelled: Callable[[], bool]
) -> Callable[[Volume], Segmentation]:
    from ..few_labels.segmenter import read_model
    from ..foundation import load_image_predictor, load_tracker
    from ..segmenting import segment_volume

    model = read_model(weights)
    predictor = load_image_predictor(options.refiner, options.device)
    tracker = load_tracker(options.tracker, options.device)

    def segment(volume: Volume) -> Segmentation:
        return segment_volume(
            volume,
            model,
            predictor=predictor,
            tracker=tracker,
            options=pipeline_options(volume, options),
            device=options.device,
            cancelled=cancelled,
        ).segmentation

    return segment


COMMAND = Command(
    summary="segment every volume of a folder; the same command goes on where it was stopped",
    configure=_configure,
    run=_run,
    examples="medssl batch scans --model liver --out results\n"
    "medssl batch scans --model liver:2 --out coarse --coarse-only",
)
