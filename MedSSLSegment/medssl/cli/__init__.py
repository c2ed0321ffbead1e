"""The command line: `medssl COMMAND`; the commands are in `program`.

Exit codes: 0 done; 1 failed, one sentence on stderr says why and nothing was written; 2 the command was spelled
wrong; 130 cancelled with Ctrl-C.
"""

from __future__ import annotations

import sys

__all__ = ["main"]

_CANCELLED = 130
"""What a shell reports for a program that ended on Ctrl-C."""


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    try:
        from .program import run  # takes a moment, and Ctrl-C may come in it

        return run(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:
        print("medssl: cancelled", file=sys.stderr)
        return _CANCELLED
