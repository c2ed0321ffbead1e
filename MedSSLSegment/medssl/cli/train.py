"""`medssl train`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from .command import Command
from .options import add_detach
from .terminal import ProgressBar
from .watching import run_detached, show, stopped_by_signals

if TYPE_CHECKING:
    from ..tracker.training import TrainConfig

__all__ = ["COMMAND"]


def _configure(parser: argparse.ArgumentParser) -> None:
    from ..tracker.training import PromptTrainConfig, TrackerTrainConfig
    from .arguments import add_fields

    what = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    tracker = what.add_parser("tracker", help="what carries masks from slice to slice")
    add_fields(tracker, TrackerTrainConfig)
    prompts = what.add_parser("prompts", help="what answers clicks, boxes and coarse masks on one slice")
    add_fields(prompts, PromptTrainConfig)
    for each in (tracker, prompts):
        add_detach(each)


def _run(options: argparse.Namespace) -> None:
    from ..tracker import training
    from .arguments import build

    if options.what == "tracker":
        tracker = build(training.TrackerTrainConfig, options)
        _go(training.TRACKER_RUN, tracker, partial(training.train_tracker, tracker), options.detach)
    else:
        prompts = build(training.PromptTrainConfig, options)
        _go(training.PROMPTS_RUN, prompts, partial(training.train_prompts, prompts), options.detach)


def _go(
    kind: str, config: TrainConfig, train: Callable[[Callable[[], bool]], Iterator[Any]], detach: bool
) -> None:
    if detach:
        run_detached(kind, config)
        return
    with ProgressBar(sys.stderr, "Training") as bar, stopped_by_signals() as asked:
        show(train(asked), bar)
    print(
        f"Written: {config.out / 'checkpoint.safetensors'}\n"
        f"Use it as a model of your own: medssl models import {config.out} --name NAME"
    )


COMMAND = Command(
    summary="train or adapt the small default model on labelled CTs; the same command goes on where it was stopped",
    configure=_configure,
    run=_run,
    examples="medssl train tracker --data cases --out runs/tracker\n"
    "medssl train prompts --data cases --out runs/prompts --start-from runs/tracker/checkpoint.safetensors\n"
    "medssl train tracker --data my_cases --out runs/mine --start-from pretrained/medssl-nano.safetensors --detach",
)
