"""Options that come from a configuration dataclass."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from medssl.cli.arguments import add_fields, build, field_help


@dataclass(frozen=True, kw_only=True)
class Config:
    """One of each kind."""

    data: Path
    """Folder of cases."""
    steps: int = 10
    """Steps in all, 100 % of them."""
    rate: float = 0.5
    """Rate."""
    fast: bool = False
    """Skip the checks."""
    order: Literal["up", "down"] = "up"
    """Which way."""
    start_from: Path | None = None
    """Where to
    begin."""
    exclude: tuple[str, ...] = ()
    """Cases to leave out."""


def _parse(*words: str) -> Config:
    parser = argparse.ArgumentParser()
    add_fields(parser, Config)
    return build(Config, parser.parse_args(words))


def test_what_is_not_given_keeps_its_default() -> None:
    assert _parse("--data", "cases") == Config(data=Path("cases"))


def test_every_kind_of_field_is_read() -> None:
    words = [
        "--data",
        "d",
        "--steps",
        "3",
        "--rate",
        "1e-3",
        "--fast",
        "--order",
        "down",
        "--start-from",
        "w.pt",
        "--exclude",
        "a",
        "b",
    ]
    assert _parse(*words) == Config(
        data=Path("d"),
        steps=3,
        rate=1e-3,
        fast=True,
        order="down",
        start_from=Path("w.pt"),
        exclude=("a", "b"),
    )


@pytest.mark.parametrize(
    "words", [[], ["--data", "d", "--order", "left"], ["--data", "d", "--steps", "many"]]
)
def test_what_does_not_fit_is_a_usage_error(words: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        _parse(*words)


def test_help_is_the_docstring_under_the_field_and_the_default() -> None:
    assert field_help(Config)["start_from"] == "Where to\nbegin."
    parser = argparse.ArgumentParser()
    add_fields(parser, Config)
    assert "Steps in all, 100 % of them [10]" in parser.format_help()
