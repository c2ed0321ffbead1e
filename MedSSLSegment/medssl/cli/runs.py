"""`medssl runs`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import InputError, MedSSLError
from ..events import duration
from ..runs.run_folder import RunFolder, list_runs
from .command import Command
from .options import add_json
from .printed import print_json
from .terminal import table
from .watching import follow, state_in_words

__all__ = ["COMMAND"]


def _configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="every run in a folder: state, progress, time left")
    listing.add_argument("folder", nargs="?", default="runs", help="folder of run folders [%(default)s]")
    add_json(listing)
    for action, text in (
        ("follow", "watch a run until it ends; Ctrl-C ends the watching, not the run"),
        ("stop", "ask a run to save and stop after the step it is at"),
        ("resume", "go on with a run in the background"),
    ):
        actions.add_parser(action, help=text).add_argument("run", help="run folder")


def _run(options: argparse.Namespace) -> None:
    {"list": _list, "follow": _follow, "stop": _stop, "resume": _resume}[options.action](options)


def _list(options: argparse.Namespace) -> None:
    if not Path(options.folder).is_dir():
        raise InputError(
            f"The folder {options.folder} does not exist; give the one that holds the run folders."
        )
    runs = list_runs(options.folder)
    if options.json:
        print_json([_facts(run) for run in runs])
    elif not runs:
        print(f"There are no runs in {options.folder}.")
    else:
        header = ["run", "kind", "method", "state", "done", "loss", "time left"]
        print(table(header, [_row(run) for run in runs], left=(0, 1, 2, 3)))


def _follow(options: argparse.Namespace) -> None:
    run = RunFolder.open(options.run)
    if follow(run).state in ("failed", "lost"):
        raise MedSSLError(state_in_words(run))
    print(state_in_words(run))


def _stop(options: argparse.Namespace) -> None:
    from ..runs.detached import stop_and_wait

    run = RunFolder.open(options.run)
    if stop_and_wait(run):
        print(state_in_words(run))
    else:
        print(f"{run.path} was asked to stop and will at the end of its step.")


def _resume(options: argparse.Namespace) -> None:
    from ..runs.detached import resume_detached

    print(state_in_words(resume_detached(options.run)))


def _facts(run: RunFolder) -> dict[str, object]:
    status, metrics = run.status, run.metrics()
    return {
        "path": str(run.path),
        "kind": run.kind,
        "method": run.config.get("method"),
        "created": run.created,
        "state": status.state,
        "message": status.message,
        "pid": status.pid,
        "host": status.host,
        "progress": status.progress and vars(status.progress),
        "metric": vars(metrics[-1]) if metrics else None,
    }


def _row(run: RunFolder) -> list[str]:
    status, metrics = run.status, run.metrics()
    done, left = "-", "-"
    if status.progress is not None and status.progress.total:
        done = f"{100 * status.progress.done // status.progress.total} %"
        if status.state == "running" and status.progress.seconds_left is not None:
            left = duration(status.progress.seconds_left)
    loss = f"{metrics[-1].values['loss']:.4g}" if metrics and "loss" in metrics[-1].values else "-"
    return [str(run.path), run.kind, str(run.config.get("method", "-")), status.state, done, loss, left]


COMMAND = Command(
    summary="list, follow, stop and resume training runs",
    configure=_configure,
    run=_run,
    examples="medssl runs list\nmedssl runs follow runs/polycl\nmedssl runs stop runs/polycl\n"
    "medssl runs resume runs/polycl",
)
