"""`medssl train`."""

from __future__ import annotations

import argparse
import sys

from .command import Command
from .terminal import ProgressBar
from .watching import show, stopped_by_signals

__all__ = ["COMMAND"]


def _configure(parser: argparse.ArgumentParser) -> None:
    from ..tracker.training import TrackerTrainConfig
    from .arguments import add_fields

    what = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    tracker = what.add_parser("tracker", help="the small model that carries masks from slice to slice")
    add_fields(tracker, TrackerTrainConfig)
    tracker.add_argument(
        "--detach",
        action="store_true",
        help="train in the background, also after you log out; see `medssl runs`",
    )


def _run(options: argparse.Namespace) -> None:
    from ..tracker.training import TRACKER_RUN, TrackerTrainConfig, train_tracker
    from .arguments import build

    config = build(TrackerTrainConfig, options)
    if options.detach:
        from ..runs.detached import start_detached
        from ..runs.run_folder import plain

        run = start_detached(TRACKER_RUN, plain(config))
        print(
            f"{run.path} is running as process {run.status.pid}; watch it with: medssl runs follow {run.path}"
        )
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
