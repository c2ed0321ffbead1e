"""Where a user's own things are kept where no other folder is named: below ``$MEDSSL_HOME``, else ``~/.medssl``."""

from __future__ import annotations

from pathlib import Path

from .registry import user_folder

__all__ = ["cache_folder", "cases_folder", "encoders_folder", "home_folder", "models_folder", "runs_folder"]


def home_folder() -> Path:
    """The folder above all others."""
    return user_folder().parent


def cache_folder() -> Path:
    """Prepared scans, for all runs together."""
    return home_folder() / "cache"


def cases_folder() -> Path:
    """The case store."""
    return home_folder() / "cases"


def models_folder() -> Path:
    """The model store; weights that were downloaded lie in it too, as single files."""
    return user_folder()


def encoders_folder() -> Path:
    """Encoder files a user was given."""
    return home_folder() / "encoders"


def runs_folder() -> Path:
    """Run folders."""
    return home_folder() / "runs"
