"""`medssl study`."""

from __future__ import annotations

import argparse
import sys

from .command import Command
from .terminal import ProgressBar

__all__ = ["COMMAND"]


def _configure(parser: argparse.ArgumentParser) -> None:
    from ..studies.study import StudyConfig
    from .arguments import add_fields

    add_fields(parser, StudyConfig)


def _run(options: argparse.Namespace) -> None:
    from ..events import Progress
    from ..studies.study import StudyConfig, study
    from .arguments import build

    config = build(StudyConfig, options)
    text = ""
    with ProgressBar(sys.stderr, "Studying") as bar:
        for event in study(config):
            if isinstance(event, Progress):
                bar(event)
            else:
                text = event.text
                bar.say(text)
    print(f"Written: {config.out / 'report.md'} and {config.out / 'report.png'}")


COMMAND = Command(
    summary="measure whether pre-training was worth it: every method against random weights on your labelled cases",
    configure=_configure,
    run=_run,
    examples="medssl study --data cases --segment mandible --out study --fractions 0.05 0.2 1 --seeds 3 --jobs 2\n"
    "medssl study --data cases --segment liver --out study --methods polycl-s mae --encoders runs",
)
