"""`medssl worker`."""

from __future__ import annotations

import argparse

from .command import Command

__all__ = ["COMMAND"]


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", metavar="N", type=int, help="CPU threads to compute with [all cores]")


def _run(options: argparse.Namespace) -> None:
    from ..worker import main as serve

    status = serve([] if options.threads is None else ["--threads", str(options.threads)])
    if status:
        raise SystemExit(status)


COMMAND = Command(
    summary="serve one client over standard input and output; 3D Slicer starts it, here or through ssh",
    configure=_configure,
    run=_run,
    examples="ssh gpu-server medssl worker",
)
