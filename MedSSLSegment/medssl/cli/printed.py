"""What several commands print: score tables, slice numbers, JSON."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..registry import DEFAULT_MODEL
from .terminal import table

if TYPE_CHECKING:
    from ..events import Log
    from ..metrics import SegmentScore

__all__ = ["note", "note_model", "print_json", "ranges", "score_table"]


def score_table(scores: Sequence[SegmentScore], slices: Mapping[str, int] | None = None) -> str:
    """Lay out scores, with each segment's number of slices where they are given."""
    rows = []
    for score in scores:
        row = [score.segment, f"{score.dice:.3f}", f"{score.hd95_mm:.1f}", f"{score.nsd:.3f}"]
        rows.append(row + ([str(slices[score.segment])] if slices else []))
    return table(["segment", "Dice", "HD95 mm", "NSD"] + (["slices"] if slices else []), rows)


def ranges(numbers: Sequence[int]) -> str:
    """Write slice numbers for a person: `3, 10-24`; `none` when there are none."""
    from ..volume import rows_of_neighbours  # brings the readers of images: not for every command

    rows = rows_of_neighbours(numbers)
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in rows) or "none"


def print_json(value: object) -> None:
    """Print one JSON document; infinite and unknown numbers become null."""
    print(json.dumps(_jsonable(value), indent=2))


def _jsonable(value: Any) -> Any:
    """Turn infinite and unknown numbers, which JSON does not have, into null."""
    if isinstance(value, Mapping):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value


def note(log: Log | str) -> None:
    """Say something on stderr that a person should know, though the work goes on."""
    print(f"medssl: note: {log if isinstance(log, str) else log.text}", file=sys.stderr)


def note_model(model: str, option: str = "--model") -> None:
    """Say that the default model is small, and where stronger ones are and how this command takes them."""
    if model == DEFAULT_MODEL:
        note(
            f"{model} is a small model trained by this project; stronger ones are one download away:"
            f" medssl models download sam2.1-hiera-tiny, then {option} sam2.1-hiera-tiny"
        )
