"""Time a click as a person meets it: from the prompt in the scene, through the worker, to the preview in the scene.

    bench_click.py                     the shipped model, and SAM 2.1 Hiera-T with random weights, on one trace
    bench_click.py --stops 10          a quick look

A trace stands for a person: scroll some slices, a notch of the wheel at a time, stop, look, click on an organ, click
again to mend it, go on. It is made from a seed, and replayed in its own time on a 512 x 512 phantom, through the same
session, client and worker as in 3D Slicer. The panel's part is played by a loop that calls `Session.poll` every 10 ms.
Writes RESULTS_CLICK.md beside this file.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import processor
from medssl.client import LocalCommand, Ticket, WorkerClient
from medssl.phantom import Phantom, phantom_ct
from medssl.registry import DEFAULT_MODEL, find_entry, is_available

_HERE = Path(__file__).resolve().parent
_SAM2 = "sam2.1-hiera-tiny"
_SHAPE_KJI, _SPACING_KJI_MM = (64, 512, 512), (4.0, 0.75, 0.75)
_POLL_S = 0.01
_NOTCH_S = (0.06, 0.15)
"""Between two notches of the wheel."""
_NOTCHES = (3, 15)
_LOOKING_S, _LOOKING_SPREAD = 1.4, 0.35
"""From the last notch to the click: median, and spread of its logarithm."""
_AGAIN_S = (0.8, 2.0)
"""From one click to the next on the same slice."""
_RESTS_S = (0.1, 0.4)
"""How long the mouse rests where it is clicked, before that: an assumption."""
_NOTICED_S = 0.03
"""The panel takes a mouse for resting after so long."""
_BAR_MS, _BAR_HITS = 60.0, 0.95


@dataclass(frozen=True)
class Step:
    """One thing the person does."""

    at_s: float
    """Since the beginning."""
    index: int
    """The axial slice in view."""
    click_xy_px: tuple[float, float] | None = None
    """(column, row) of a click; None = the slice has only come into view."""
    positive: bool = True
    rests_s: float = 0.0
    """So long before the click the mouse has come to rest there."""
    is_last: bool = False
    """The last click on this slice; what it found is accepted."""


@dataclass(frozen=True)
class Click:
    """How one click went."""

    seconds: float
    """From the prompt to its preview."""
    worker_seconds: float
    """Of these, inside the worker."""
    encoded: bool
    """Whether the worker had encoded the slice before."""
    showing_seconds: float
    """Of these, in the scene: placing the prompt, and writing the preview."""
    foreseen: bool = False
    """Whether it was answered before it came."""
    is_first: bool = True
    """On its slice since it came into view."""


def make_trace(labels_kji: np.ndarray, stops: int, seed: int = 0) -> list[Step]:
    """A person who scrolls through a labelled volume and clicks on what is there.

    Args:
        labels_kji: (K, J, I), 0 = nothing to click on.
        stops: slices to click on.
        seed: another person.
    """
    random = np.random.default_rng(seed)
    present = np.flatnonzero(labels_kji.any(axis=(1, 2)))
    now_s, index, steps = 0.0, int(present[len(present) // 2]), []
    for _ in range(stops):
        direction = int(random.choice((-1, 1)))
        for _ in range(int(random.integers(*_NOTCHES))):
            if not present[0] <= index + direction <= present[-1]:
                direction = -direction
            index += direction
            now_s += float(random.uniform(*_NOTCH_S))
            steps.append(Step(now_s, index))
        now_s += float(random.lognormal(np.log(_LOOKING_S), _LOOKING_SPREAD))
        clicks = int(random.integers(1, 4))
        for number in range(clicks):
            positive = number == 0 or bool(random.random() < 0.5)
            xy = _somewhere(labels_kji[index], positive, random)
            rests_s = float(random.uniform(*_RESTS_S))
            steps.append(Step(now_s, index, xy, positive, rests_s, number == clicks - 1))
            now_s += float(random.uniform(*_AGAIN_S))
    return steps


def _somewhere(labels_hw: np.ndarray, positive: bool, random: np.random.Generator) -> tuple[float, float]:
    """A pixel of one of the organs, or beside them all."""
    present = np.unique(labels_hw[labels_hw > 0])
    wanted = labels_hw == random.choice(present) if positive and present.size else labels_hw == 0
    rows, cols = np.nonzero(wanted)
    at = int(random.integers(len(rows)))
    return float(cols[at]), float(rows[at])


@dataclass(frozen=True, kw_only=True)
class RandomCommand(LocalCommand):
    """Starts the worker with random weights."""

    def argv(self) -> list[str]:
        """Program and arguments."""
        return [self.python, str(_HERE / "random_worker.py"), str(self.threads)]

    def environment(self) -> dict[str, str]:
        """As the real worker arranges it for itself."""
        return {**super().environment(), "GOMP_SPINCOUNT": "20000"}


@dataclass(eq=False)
class TimedClient(WorkerClient):
    """Remembers the last click's ticket."""

    command: LocalCommand
    ticket: Ticket[Any] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        super().__init__(self.command)

    def predict(self, *arguments: Any, **options: Any) -> Ticket[Any]:
        """As `WorkerClient.predict`."""
        self.ticket = super().predict(*arguments, **options)
        return self.ticket


class Desk:
    """A scene with a volume, an empty segment, and a session on them."""

    def __init__(self, phantom: Phantom, client: TimedClient, model: str) -> None:
        import slicer
        from medssl.scene import nodes
        from medssl.scene.session import Session

        self.scene = slicer.vtkMRMLScene()
        logic = slicer.vtkSlicerSegmentationsModuleLogic()
        logic.SetMRMLScene(self.scene)
        self._logic, self._client, self._volume = logic, client, phantom.volume
        volume_node = nodes.add_volume_node(self.scene, phantom.volume)
        segmentation_node = nodes.create_segmentation_node(self.scene, volume_node)
        self.segment = segmentation_node.GetSegmentation().AddEmptySegment("", "organ")
        self.session = Session(self.scene, logic, client)
        self.session.choose(volume_node, segmentation_node)
        self.session.prompts.model = model

    def replay(self, trace: Sequence[Step]) -> list[Click]:
        """Do what the person does when they do it; a click waits for its answer."""
        clicks, late_s, began_s, is_first = [], 0.0, time.perf_counter(), True
        for step in trace:
            noticed_s = step.at_s - step.rests_s + _NOTICED_S
            has_foreseen = step.click_xy_px is None or step.rests_s <= _NOTICED_S
            while (now_s := time.perf_counter() - began_s - late_s) < step.at_s:
                if not has_foreseen and now_s >= noticed_s:
                    has_foreseen = True
                    self.session.prompts.foresee(self.segment, self._position(step), 0, step.positive)
                time.sleep(_POLL_S)
                self.session.poll()
            if step.click_xy_px is None:
                self.session.prompts.look_at(0, step.index)
                is_first = True
                continue
            asked_s = time.perf_counter()
            clicks.append(replace(self._click(step), is_first=is_first))
            is_first = False
            late_s += time.perf_counter() - asked_s  # the person waits for the preview
            if step.is_last and self.session.prompts.previews:
                self.session.prompts.accept()
        return clicks

    def _click(self, step: Step) -> Click:
        position = self._position(step)
        prompts, began_s = self.session.prompts, time.perf_counter()
        prompts.add_point(self.segment, position, 0, step.positive)
        showing_s = time.perf_counter() - began_s
        while prompts.is_waiting:
            time.sleep(_POLL_S)
            polled_s = time.perf_counter()
            self.session.poll()
        ended_s = time.perf_counter()
        assert self._client.ticket is not None
        outcome = self._client.ticket.result()
        return Click(
            ended_s - began_s,
            outcome.seconds,
            outcome.summary["encoded"],
            showing_s + ended_s - polled_s,
            outcome.summary["foreseen"],
        )

    def _position(self, step: Step) -> list[float]:
        assert step.click_xy_px is not None
        column, row = step.click_xy_px
        position: list[float] = (self._volume.ijk_to_ras @ [column, row, step.index, 1.0])[:3].tolist()
        return position


def measure(phantom: Phantom, trace: Sequence[Step], command: LocalCommand, model: str) -> list[Click]:
    """Replay a trace with a model, after one click that loads it."""
    with TimedClient(command) as client:
        desk = Desk(phantom, client, model)
        desk.replay([Step(0.0, trace[0].index, (256.0, 256.0), is_last=True)])
        return desk.replay(trace)


def in_flight(trace: Sequence[Step]) -> list[Step]:
    """The same trace, of a person whose mouse never rests before a click."""
    return [replace(step, rests_s=0.0) for step in trace]


def report(measured: dict[str, list[Click]], options: argparse.Namespace) -> str:
    """The markdown page."""
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    command = "python Testing/benchmarks/bench_click.py" + (
        f" --stops {options.stops}" if options.stops != 40 else ""
    )
    return "\n".join(
        [
            "# A click, from the prompt to the preview",
            "",
            f"Written by `{command}`; do not edit.",
            "",
            f"{processor()}, {os.cpu_count()} cores, {options.threads} threads for the worker, {versions};"
            f" {datetime.date.today().isoformat()}. Programs that wanted a core at the end, on average over 15 minutes:"
            f" {os.getloadavg()[2]:.1f}, of which the benchmark is about one.",
            "",
            f"A phantom of {_SHAPE_KJI[0]} slices of 512 x 512. A trace of {options.stops} stops (seed {options.seed}):"
            f" scrolling at {_NOTCH_S[0]:g} to {_NOTCH_S[1]:g} s a slice, {_LOOKING_S:g} s (median) from the last slice"
            " to the first click on it, up to three clicks, then the preview is accepted. Session, client, worker and"
            f" scene are those of the panel; a loop that polls every {1e3 * _POLL_S:.0f} ms stands for its timer:"
            f" that wait counts. Bars: p95 at most {_BAR_MS:.0f} ms once the slice is encoded, with the shipped model;"
            f" {_BAR_HITS:.0%} of the first clicks on a slice find it encoded. The mouse rests for {_RESTS_S[0]:g} to"
            f" {_RESTS_S[1]:g} s where it is clicked, which is an assumption; after {1e3 * _NOTICED_S:.0f} ms of that"
            " the worker is told, and answers ahead (*foreseen*: the answer was there before the click). *In flight*:"
            " the mouse never rests.",
            "",
            "| model | clicks | first ones that found their slice encoded | foreseen | p50, ms | p95, ms"
            " | in the worker, p50 | in the scene, p50 |",
            "|---|---|---|---|---|---|---|---|",
            *(_row(name, clicks) for name, clicks in measured.items()),
            "",
            f"{DEFAULT_MODEL} looks at a few crops around each click and has nothing to encode ahead of it: every slice"
            f" counts as encoded. {_SAM2} encodes whole slices, at 512 px, here with random weights, which serve for"
            " timing: its figures count the clicks that found their slice encoded. What remains between the worker's"
            " time and the whole is the pipe and the wait for the next poll.",
            "",
        ]
    )


def _row(name: str, clicks: Sequence[Click]) -> str:
    ready = [click for click in clicks if click.encoded]
    total = 1e3 * np.array([click.seconds for click in ready])
    worker = 1e3 * np.median([click.worker_seconds for click in ready])
    scene = 1e3 * np.median([click.showing_seconds for click in ready])
    share = np.mean([click.encoded for click in clicks if click.is_first])
    foreseen = np.mean([click.foreseen for click in ready])
    return (
        f"| {name} | {len(clicks)} | {share:.1%} | {foreseen:.0%} | {np.median(total):.0f} |"
        f" **{np.percentile(total, 95):.0f}** | {worker:.0f} | {scene:.1f} |"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Measure both models and write the page."""
    options = _arguments(argv)
    phantom = phantom_ct(9001, _SHAPE_KJI, _SPACING_KJI_MM)
    trace = make_trace(phantom.segmentation.labels_kji, options.stops, options.seed)
    measured = {}
    if is_available(find_entry(DEFAULT_MODEL)):
        measured[DEFAULT_MODEL] = measure(
            phantom, trace, LocalCommand(threads=options.threads), DEFAULT_MODEL
        )
        print(_row(DEFAULT_MODEL, measured[DEFAULT_MODEL]), file=sys.stderr, flush=True)
        measured[f"{DEFAULT_MODEL}, in flight"] = measure(
            phantom, in_flight(trace), LocalCommand(threads=options.threads), DEFAULT_MODEL
        )
    measured[_SAM2] = measure(phantom, trace, RandomCommand(threads=options.threads), _SAM2)
    options.results.write_text(report(measured, options))


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stops", type=int, default=40, help="slices to click on (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the trace (default: %(default)s)")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, help="of the worker (default: all)"
    )
    parser.add_argument("--results", type=Path, default=_HERE / "RESULTS_CLICK.md", help="markdown file")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
