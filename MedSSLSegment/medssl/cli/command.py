"""What a command of the command line is."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Command"]


@dataclass(frozen=True, kw_only=True)
class Command:
    """One word after `medssl`."""

    summary: str
    """One line for `medssl --help`."""
    configure: Callable[[argparse.ArgumentParser], None]
    """Adds the command's options; it may import what it needs to know them, for it is called only when asked for."""
    run: Callable[[argparse.Namespace], None]
    """Does the work; whatever goes wrong is a `MedSSLError`."""
    examples: str
    """Command lines to copy, one a line."""
