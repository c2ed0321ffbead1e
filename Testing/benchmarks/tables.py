"""The benchmark's results as markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from methods import COPY, PARENTS
from protocol import EARLY_ENDING, Interval, ObjectScore, bootstrap_mean, paired_gain

__all__ = ["accuracy_tables", "memory_tables", "render", "speed_tables"]

_CONFIDENCE_BANDS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.001)
_INTRODUCTION = """# Benchmark results

Written by `make bench DATA=folder` (`Testing/benchmarks/bench_propagation.py`); do not edit. Protocol: every labelled
object of at least 5 slices along axis 0, its middle slice annotated, the method not told where the object ends (only
`copy`, which repeats the annotated mask, is told the true extent). The annotated slice counts in no figure.
*Own extent*: slices where the object exists. *Whole volume*: all slices. Brackets: 95 % bootstrap interval, patients
resampled (objects, where there is only one patient).
"""


def render(sections: dict[str, dict[str, Any]]) -> str:
    """The whole file from the sections measured so far."""
    writers: dict[str, Callable[[dict[str, Any]], str]] = {
        "accuracy": accuracy_tables,
        "speed": speed_tables,
        "memory": memory_tables,
    }
    parts = [_INTRODUCTION]
    for name, write in writers.items():
        if name in sections:
            section = sections[name]
            parts.append(f"## {name.capitalize()}\n\n{_provenance(section)}\n\n{write(section)}")
    return "\n".join(parts)


def accuracy_tables(section: dict[str, Any]) -> str:
    """Means, gains over the better parent, and organs, for each group of cases."""
    parts = []
    for group in section["groups"]:
        scores = [ObjectScore(**score) for score in group["scores"]]
        methods = list(dict.fromkeys(score.method for score in scores))
        parts.append(f"### {group['title']}\n\n{_count(scores)}\n")
        parts.append(_means(scores, methods))
        for method in methods:
            if method not in PARENTS:
                parts += [_gains(scores, method), _confidence(scores, method)]
        parts.append(_organs(scores, methods))
    parts.append(f"Peak memory of the accuracy runs: {section['peak_bytes'] / 1e9:.2f} GB.\n")
    return "\n".join(parts)


def speed_tables(section: dict[str, Any]) -> str:
    """The whole job against the usual way, where its time goes, and correcting one slice."""
    parts = [section["note"] + "\n"]
    rows = []
    for pair in section["pairs"]:
        ours, usual = pair["ours"], pair["usual"]
        rows.append(
            [
                pair["title"],
                str(pair["segments"]),
                f"{usual['seconds']:.1f}",
                f"{ours['seconds']:.1f}",
                f"**{usual['seconds'] / ours['seconds']:.2f} x**",
                f"{1e3 * ours['seconds'] / (pair['slices'] - 1) / pair['segments']:.0f}",
            ]
        )
    head = ["model", "segments", "usual way, s", "ours, s", "faster by", "ours, ms per slice and segment"]
    parts.append(_table(head, rows))
    parts.append("Where the time goes, seconds inside each part:\n")
    parts.append(_breakdown(section["pairs"]))
    parts.append("Correcting one slice, half way between the annotated slice and the end:\n")
    corrections = [
        [
            item["title"],
            f"{item['full_seconds']:.2f}",
            f"{item['correction_seconds']:.2f}",
            f"**{item['correction_seconds'] / item['full_seconds']:.2f}**",
        ]
        for item in section["corrections"]
    ]
    parts.append(_table(["model", "full run, s", "correction, s", "share"], corrections))
    return "\n".join(parts)


def memory_tables(section: dict[str, Any]) -> str:
    """Memory against the number of slices, and the peak on a large volume."""
    parts = [
        "Growth: memory a job takes on top of the loaded model and volume; masks are handed on, not kept. The slope is"
        " that of a straight line through the points. Ours keeps SAM 2's features of encoded slices up to a budget,"
        f" here of {section['budget_bytes'] / 2**20:.0f} MB, which the shortest volume fills; 768 MB unless told.\n"
    ]
    rows = []
    for series in section["series"]:
        points = ", ".join(
            f"{n}: {b / 1e6:.0f}" for n, b in zip(series["slices"], series["growth_bytes"], strict=True)
        )
        rows.append([series["title"], series["way"], points, f"{_slope_mb(series):.3f}"])
    parts.append(_table(["model", "way", "slices: growth, MB", "MB per slice"], rows))
    large = section["large"]
    parts.append(
        f"Synthetic volume of {large['slices']} slices of 512 x 512, {large['title']}, one segment over every slice:"
        f" peak memory of the whole process **{large['peak_bytes'] / 1e9:.2f} GB** (volume included),"
        f" {large['seconds']:.0f} s.\n"
    )
    return "\n".join(parts)


def _provenance(section: dict[str, Any]) -> str:
    return f"`{section['command']}`\n\n{section['machine']}; {section['date']}."


def _count(scores: Sequence[ObjectScore]) -> str:
    objects = {(score.case, score.organ) for score in scores}
    return f"{len(objects)} objects of {len({score.patient for score in scores})} patients."


def _means(scores: Sequence[ObjectScore], methods: Sequence[str]) -> str:
    rows = []
    for method in methods:
        mine = [score for score in scores if score.method == method]
        lasting = [score for score in mine if score.organ not in EARLY_ENDING]
        rows.append(
            [
                method,
                str(_interval(mine, _own)),
                str(_interval(mine, _whole)),
                str(_interval(lasting, _whole)) if lasting else "-",
                f"{np.mean([score.overrun for score in mine]):.1f}",
                _milliseconds(mine),
            ]
        )
    without = "whole volume without " + ", ".join(organ.replace("_", " ") for organ in EARLY_ENDING)
    return _table(
        ["method", "own extent", "whole volume", without, "overrun, slices", "median ms per slice"], rows
    )


def _gains(scores: Sequence[ObjectScore], method: str) -> str:
    rows = []
    for title, figure in (("own extent", _own), ("whole volume", _whole)):
        for parent in PARENTS:
            gain = paired_gain(scores, method, parent, figure)
            rows.append([title, parent, f"{gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"])
    return f"Gain of {method}, paired by object:\n\n" + _table(["Dice", "over", "gain"], rows)


def _confidence(scores: Sequence[ObjectScore], method: str) -> str:
    """How the confidence that a user sees goes with the Dice of the slice, beyond the object's end too."""
    told = np.array([pair for score in scores if score.method == method for pair in score.told])
    if len(told) < 2:
        return ""
    said, true = told.T
    rows = []
    for low, high in pairwise(_CONFIDENCE_BANDS):
        band = (said >= low) & (said < high)
        dice = f"{true[band].mean():.2f}" if band.any() else "-"
        rows.append([f"{low:g} to {min(high, 1.0):g}", f"{band.mean():.0%}", dice])
    return (
        f"Confidence of {method} against the Dice of the slice it fills, beyond the object's end too; correlation"
        f" {np.corrcoef(said, true)[0, 1]:.2f}:\n\n" + _table(["confidence", "of the slices", "Dice"], rows)
    )


def _organs(scores: Sequence[ObjectScore], methods: Sequence[str]) -> str:
    rows = []
    for organ in sorted({score.organ for score in scores}):
        cells = []
        for figure in (_own, _whole):
            for method in methods:
                if figure is _whole and method == COPY:
                    continue  # told the extent, so it has nothing to run past
                mine = [figure(s) for s in scores if s.method == method and s.organ == organ]
                cells.append(f"{np.mean(mine):.2f}")
        count = sum(score.organ == organ and score.method == methods[0] for score in scores)
        rows.append([organ, str(count), *cells])
    head = [f"{method}, own" for method in methods] + [
        f"{method}, whole" for method in methods if method != COPY
    ]
    return _table(["organ", "objects", *head], rows)


def _breakdown(pairs: Iterable[dict[str, Any]]) -> str:
    parts = ["image_encoder", "memory_attention", "memory_encoder", "sam_mask_decoder"]
    rows = []
    for pair in pairs:
        for way in ("usual", "ours"):
            measured = pair[way]
            inside = [measured["modules"].get(part, 0.0) for part in parts]
            files = measured["stages"].get("write", 0.0) + measured["stages"].get("read", 0.0)
            other = measured["seconds"] - sum(inside) - files
            label = f"{pair['title']}, {pair['segments']} segments"
            rows.append([label, way, *(f"{value:.1f}" for value in (*inside, files, other))])
    return _table(
        ["model", "way", *(part.replace("_", " ") for part in parts), "JPEG files", "everything else"], rows
    )


def _slope_mb(series: dict[str, Any]) -> float:
    return float(np.polyfit(series["slices"], np.array(series["growth_bytes"]) / 1e6, 1)[0])


def _milliseconds(scores: Sequence[ObjectScore]) -> str:
    timed = [1e3 * score.seconds / score.slices for score in scores if score.slices]
    return f"{np.median(timed):.1f}" if timed else "-"


def _interval(scores: Sequence[ObjectScore], figure: Callable[[ObjectScore], float]) -> Interval:
    return bootstrap_mean([figure(score) for score in scores], [score.patient for score in scores])


def _own(score: ObjectScore) -> float:
    return score.own_dice


def _whole(score: ObjectScore) -> float:
    return score.whole_dice


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"
