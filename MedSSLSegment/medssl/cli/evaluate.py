"""`medssl evaluate`."""

from __future__ import annotations

import argparse
from dataclasses import replace

from .command import Command
from .options import add_json
from .printed import print_json, score_table

__all__ = ["COMMAND"]


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prediction", help="label map to judge")
    parser.add_argument(
        "truth", help="label map to compare it with, on the same grid; segments are matched by name"
    )
    parser.add_argument(
        "--tolerance-mm", metavar="MM", type=float, default=2.0,
        help="surface distance that the normalised surface Dice forgives [%(default)s]",
    )  # fmt: skip
    add_json(parser)


def _run(options: argparse.Namespace) -> None:
    from ..metrics import evaluate
    from ..segmentation import read_segmentation

    prediction, truth = (  # named as they were given: often both files are called label.nii.gz
        replace(read_segmentation(path), name=path) for path in (options.prediction, options.truth)
    )
    scores = evaluate(prediction.turned_like(truth), truth, options.tolerance_mm)
    if options.json:
        print_json({"tolerance_mm": options.tolerance_mm, "segments": [vars(score) for score in scores]})
    else:
        print(score_table(scores))


COMMAND = Command(
    summary="compare a result with the truth: Dice, HD95, surface Dice, volume",
    configure=_configure,
    run=_run,
    examples="medssl evaluate organ.nii.gz truth.nii.gz\nmedssl evaluate organ.nii.gz truth.nii.gz --json",
)
