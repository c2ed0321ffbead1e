"""What `medssl COMMAND` does. A new command is a new file here and its line in `COMMANDS`."""

from __future__ import annotations

import argparse
import io
import os
import sys
import warnings
from collections.abc import Sequence

from .. import __version__
from ..errors import Cancelled, MedSSLError
from . import (
    app,
    batch,
    cases,
    demo,
    evaluate,
    finetune,
    info,
    models,
    predict,
    presence,
    pretrain,
    propagate,
    refine,
    runs,
    segment,
    study,
    suggest,
    train,
    worker,
)
from .command import Command

__all__ = ["COMMANDS", "run"]

COMMANDS: dict[str, Command] = {
    "demo": demo.COMMAND,
    "app": app.COMMAND,
    "info": info.COMMAND,
    "propagate": propagate.COMMAND,
    "refine": refine.COMMAND,
    "evaluate": evaluate.COMMAND,
    "models": models.COMMAND,
    "presence": presence.COMMAND,
    "pretrain": pretrain.COMMAND,
    "cases": cases.COMMAND,
    "finetune": finetune.COMMAND,
    "predict": predict.COMMAND,
    "segment": segment.COMMAND,
    "suggest": suggest.COMMAND,
    "batch": batch.COMMAND,
    "runs": runs.COMMAND,
    "study": study.COMMAND,
    "train": train.COMMAND,
    "worker": worker.COMMAND,
}
"""Every command, in the order of the help; their files import heavy packages only when they run."""

_DESCRIPTION = """\
One annotated slice of a CT becomes the organ in the whole volume.

Paint an organ on one slice (in 3D Slicer, ITK-SNAP, ...), save the label map, and
  medssl propagate ct.nii.gz --annotation slice.nii.gz -o organ.nii.gz
follows it through the volume. `medssl demo` shows it on a built-in phantom.
"""


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit code.

    Raises:
        KeyboardInterrupt: Ctrl-C, or the command was cancelled in another way.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name the terminal has no letters for is no reason to fail.
        sys.stdout.reconfigure(errors="backslashreplace")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # other packages' advice to programmers is not for the user
    try:
        options = _parser(arguments).parse_args(arguments)  # of some commands, only after seconds of imports
        COMMANDS[options.command].run(options)
        sys.stdout.flush()
    except Cancelled as end:
        if str(end):  # what became of the work, and how it goes on
            print(f"medssl: {end}", file=sys.stderr)
        raise KeyboardInterrupt from end
    except BrokenPipeError:  # the reader, e.g. `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except MedSSLError as error:
        return _fail(str(error))
    except Exception as error:
        if "--traceback" in arguments:
            raise
        return _fail(_unexpected(error))
    return 0


def _fail(sentence: str) -> int:
    print(f"medssl: error: {sentence}", file=sys.stderr)
    return 1


def _unexpected(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("medssl"):
        return f"The package {error.name} is not installed; install it with: pip install 'medssl[engine]'"
    if isinstance(error, MemoryError):
        return "There is not enough memory for this volume; close other programs or give a smaller one."
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return f"The program failed ({text}); run medssl --traceback ... and report what it says."


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """Build the parser; only the command that is asked for gets its options: some need imports to know them."""
    parser = argparse.ArgumentParser(
        prog="medssl", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"medssl {__version__}")
    parser.add_argument(
        "--traceback", action="store_true", help="show where in the program an unexpected error came up"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    for name, command in COMMANDS.items():
        examples = "\n".join("  " + line for line in command.examples.splitlines())
        child = commands.add_parser(
            name,
            help=command.summary,
            description=command.summary[0].upper() + command.summary[1:] + ".",
            epilog=f"examples:\n{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name in arguments:
            command.configure(child)
    return parser
