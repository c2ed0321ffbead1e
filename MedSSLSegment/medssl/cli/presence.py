"""`medssl presence`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .command import Command
from .terminal import ProgressBar

if TYPE_CHECKING:
    from ..events import Log, Progress

__all__ = ["COMMAND"]


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", metavar="DIR", type=Path, required=True, help="folder of images with label maps"
    )
    parser.add_argument(
        "--segment", metavar="NAME", nargs="+", required=True,
        help="the organ; of several names a slice shows any",
    )  # fmt: skip
    parser.add_argument("--out", metavar="CSV", type=Path, required=True, help="table to write")
    parser.add_argument(
        "--exclude", metavar="NAME", nargs="+", default=[],
        help="files or folders below the data folder to leave out; * stands for anything",
    )  # fmt: skip
    parser.add_argument(
        "--missing-is-absent",
        action="store_true",
        help="a label map that does not name the organ says that the scan does not show it",
    )


def _run(options: argparse.Namespace) -> None:
    from ..datasets.presence import presence_from_labels, write_presence
    from ..events import Log

    with ProgressBar(sys.stderr, "Looking") as bar:

        def show(event: Progress | Log) -> None:
            if isinstance(event, Log):
                bar.say(event.text)
            else:
                bar(event)

        rows = presence_from_labels(
            options.data,
            options.segment,
            missing_is_absent=options.missing_is_absent,
            exclude=options.exclude,
            on_event=show,
        )
    write_presence(rows, options.out)
    shown = sum(row.slices is not None for row in rows)
    print(f"{options.out} written: {shown} of {len(rows)} scans show {' or '.join(options.segment)}.")


COMMAND = Command(
    summary="list the first and last slice of an organ in each scan, for the methods polycl-o and polycl-m",
    configure=_configure,
    run=_run,
    examples="medssl presence --data cases --segment liver --out presence.csv\n"
    "medssl pretrain --method polycl-o --data cases --presence presence.csv --out runs/polycl",
)
