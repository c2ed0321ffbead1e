"""`medssl train`."""

from __future__ import annotations

import argparse
import sys

from .command import Command
from .options import add_detach
from .terminal import ProgressBar
from .watching import run_detached, show, stopped_by_signals

__all__ = ["COMMAND"]


def _configure(parser: argparse.ArgumentParser) -> None:
    from ..tracker.training import TrackerTrainConfig
    from .arguments import add_fields

    what = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    tracker = what.add_parser("tracker", help="the small model that carries masks from slice to slice")
    add_fields(tracker, TrackerTrainConfig)
    add_detach(tracker)


def _run(options: argparse.Namespace) -> None:
    from ..tracker.training import TRACKER_RUN, TrackerTrainConfig, train_tracker
    from .arguments import build

    config = build(TrackerTrainConfig, options)
    if options.detach:
        run_detached(TRACKER_RUN, config)
        return
    with ProgressBar(sys.stderr, "Training") as bar, stopped_by_signals() as asked:
        show(train_tracker(config, asked), bar)
    print(f"Written: {config.out / 'checkpoint.safetensors'}")


COMMAND = Command(
    summary="train or adapt the small tracker on labelled CTs; the same command goes on where it was stopped",
    configure=_configure,
    run=_run,
    examples="medssl train tracker --data cases --out runs/tracker\n"
    "medssl train tracker --data my_cases --out runs/mine --start-from pretrained/medssl-nano.safetensors --detach",
)
