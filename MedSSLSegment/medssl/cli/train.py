"""`medssl train`."""

from __future__ import annotations

import argparse
import sys

from .command import Command
from .terminal import ProgressBar

__all__ = ["COMMAND"]


def _configure(parser: argparse.ArgumentParser) -> None:
    from ..tracker_training import TrackerTrainConfig
    from .arguments import add_fields

    what = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    tracker = what.add_parser("tracker", help="the small model that carries masks from slice to slice")
    add_fields(tracker, TrackerTrainConfig)


def _run(options: argparse.Namespace) -> None:
    from ..events import Log, Progress
    from ..tracker_training import TrackerTrainConfig, train_tracker
    from .arguments import build

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


COMMAND = Command(
    summary="train or adapt the small tracker on labelled CTs; the same command goes on where it was stopped",
    configure=_configure,
    run=_run,
    examples="medssl train tracker --data cases --out runs/tracker\n"
    "medssl train tracker --data my_cases --out runs/mine --start-from pretrained/medssl-nano.safetensors",
)
