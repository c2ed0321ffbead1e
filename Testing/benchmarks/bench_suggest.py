"""How many slices a user must annotate: those that `suggest_slices` names, evenly spaced ones, or random ones.

    bench_suggest.py --data FOLDER                        hidden patients, written to RESULTS_SUGGEST.md
    bench_suggest.py --data FOLDER --patients training --limit 12       for development
    bench_suggest.py                                      phantoms

A simulated user annotates the middle slice of an object, the tracker carries it through the whole volume, and the user
annotates further slices with the truth, one at a time; after each, everything is tracked again. Nobody tells the
program where the object ends. Who asks the program gets its suggestion; a suggested slice without the object counts as
a slice too, and ends the propagation there. The others know the object's true extent: evenly spaced slices are the
best division of it for each number, as if that number had been known from the start.

A way needs as many slices as it takes to 0.9 of the best reachable Dice: the highest with up to ten evenly spaced
slices. One that does not come there within `--most` slices counts as one more. Each object is one JSON file in
`--out`, so a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from medssl.foundation.protocols import SliceTracker, TrackedSlice, TrackingSession, TrackJob
from medssl.phantom import phantom_ct
from medssl.prompts import Reference, SlicePrompt
from medssl.propagate import PropagateOptions, propagate
from medssl.registry import DEFAULT_MODEL
from medssl.results import SliceMask
from medssl.suggest import Evidence, embed_slices, suggest_slices
from medssl.volume import Volume, Window
from numpy.typing import NDArray
from protocol import (
    EARLY_ENDING,
    Case,
    Interval,
    ObjectTask,
    bootstrap_mean,
    data_root,
    held_out_cases,
    held_out_folders,
    mean_dice,
    object_tasks,
    read_case,
)

_HERE = Path(__file__).resolve().parent
SHARE = 0.9
"""Of the best reachable Dice: good enough."""
DENSE = 10
"""Up to so many evenly spaced slices reach the best Dice."""
_PHANTOM_SEEDS = (9001, 9002)

Way = Callable[["User", int], list[int]]
"""Names the first n slices to annotate."""


@dataclass(frozen=True)
class Outcome:
    """What one way came to on one object."""

    case: str
    patient: str
    organ: str
    extent: int
    """Slices of the object, first to last."""
    way: str
    slices: list[list[int]]
    """Annotated after 1, 2, ... slices."""
    dice: list[float]
    """Of the whole volume after 1, 2, ... slices."""
    best: float
    """With up to ten evenly spaced slices."""

    @property
    def needed(self) -> int:
        """Slices to reach 0.9 of the best; one more than were tried if it never did."""
        reached = (n for n, dice in enumerate(self.dice, 1) if dice >= SHARE * self.best)
        return next(reached, len(self.dice) + 1)


class RememberedTracker:
    """Tracks from each reference slice once, however often and however far it is asked.

    Args:
        tracker: one whose tracks depend on nothing but their own reference slice.
    """

    def __init__(self, tracker: SliceTracker) -> None:
        self._tracker = tracker
        self._tracks: dict[tuple[bytes, int, int], _Track] = {}

    def open(self, volume: Volume, axis: int, window: Window) -> TrackingSession:
        """Begin again on the one volume this tracker is for."""
        return _RememberedSession(
            partial(self._tracker.open, volume, axis, window), len(volume.voxels_kji), self._tracks
        )


class _RememberedSession:
    def __init__(
        self,
        open_session: Callable[[], TrackingSession],
        count: int,
        tracks: dict[tuple[bytes, int, int], _Track],
    ) -> None:
        self._open, self._count, self._tracks = open_session, count, tracks
        self._prompts: dict[tuple[int, int], SlicePrompt] = {}
        self._dropped: set[TrackJob] = set()

    def add_reference(self, object_id: int, prompt: SlicePrompt) -> TrackedSlice:
        assert prompt.mask is not None
        self._prompts[object_id, prompt.index] = prompt
        return TrackedSlice(object_id, prompt.index, prompt.mask, None, 1.0)

    def remove_reference(self, object_id: int, index: int) -> None:
        self._prompts.pop((object_id, index), None)

    def drop(self, job: TrackJob) -> None:
        self._dropped.add(job)

    def run(self, jobs: Sequence[TrackJob]) -> Iterator[list[tuple[TrackJob, TrackedSlice]]]:
        self._dropped.clear()
        tracks = {job: self._track(job) for job in jobs}
        for n in itertools.count():
            going = [job for job in jobs if n < abs(job.stop - job.start) and job not in self._dropped]
            if not going:
                return
            yield [(job, tracks[job].answer(n)) for job in going]

    def _track(self, job: TrackJob) -> _Track:
        prompt = self._prompts[job.object_id, job.start]
        assert prompt.mask is not None
        key = (np.packbits(prompt.mask).tobytes(), job.start, job.step)
        if key not in self._tracks:
            session = self._open()
            session.add_reference(job.object_id, prompt)
            end = self._count - 1 if job.step > 0 else 0
            self._tracks[key] = _Track(session.run([TrackJob(job.object_id, job.start, end)]))
        return self._tracks[key]


class _Track:
    """Answers of one job, computed as they are asked for."""

    def __init__(self, run: Iterator[list[tuple[TrackJob, TrackedSlice]]]) -> None:
        self._run, self._answers = run, list[TrackedSlice]()

    def answer(self, n: int) -> TrackedSlice:
        while len(self._answers) <= n:
            ((_, answer),) = next(self._run)
            self._answers.append(answer)
        return self._answers[n]


class User:
    """Annotates slices of one object with the truth."""

    def __init__(
        self, task: ObjectTask, volume: Volume, tracker: SliceTracker, embeddings: NDArray[np.float32]
    ) -> None:
        self.task, self._volume, self._embeddings = task, volume, embeddings
        self._tracker = RememberedTracker(tracker)
        self.present = np.flatnonzero(task.truth_kji.any(axis=(1, 2)))

    def result(self, slices: Sequence[int]) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        """(K, J, I) mask and (K,) confidence after propagating all annotated slices."""
        task = self.task
        shown = sorted(set(slices) & set(self.present.tolist()))
        absent = sorted(set(slices) - set(shown))
        low = max((z for z in absent if z < shown[0]), default=-1)
        high = min((z for z in absent if z > shown[-1]), default=len(task.truth_kji))
        references = [Reference(task.organ, SlicePrompt(0, z, mask=task.truth_kji[z])) for z in shown]
        options = PropagateOptions(first=low + 1, last=high - 1)
        answer, confidence = np.zeros_like(task.truth_kji), np.full(len(task.truth_kji), np.nan)
        for event in propagate(self._volume, references, self._tracker, options):
            if isinstance(event, SliceMask):
                answer[event.index], confidence[event.index] = event.mask, event.confidence
        answer[absent] = False
        return answer, confidence

    def dice(self, slices: Sequence[int]) -> float:
        """Of the whole volume."""
        return mean_dice(self.result(slices)[0], self.task.truth_kji)

    def suggested(self, slices: Sequence[int]) -> int | None:
        """The next slice that the program asks for; None when it has nothing to ask."""
        answer, confidence = self.result(slices)
        present = set(self.present.tolist())
        evidence = Evidence(
            segment=self.task.organ,
            axis=0,
            step_mm=self._volume.step_mm(0),
            area_px=answer.sum(axis=(1, 2)).astype(float),
            references=tuple(z for z in slices if z in present),
            absent=tuple(z for z in slices if z not in present),
            confidence=confidence,
            embeddings=self._embeddings,
        )
        return next((suggestion.index for suggestion in suggest_slices([evidence], count=1)), None)


def evenly_spaced(user: User, count: int) -> list[int]:
    """The true extent in equal parts, each annotated in its middle, or next to it where the object is not there."""
    task = user.task
    if count == 1:
        return [task.index]
    part = (task.last - task.first + 1) / count
    places = task.first - 0.5 + part * (np.arange(count) + 0.5)
    return sorted({int(user.present[np.abs(user.present - place).argmin()]) for place in places})


def random_slices(user: User, count: int, draw: int) -> list[int]:
    """The middle slice and then any that show the object."""
    others = user.present[user.present != user.task.index]
    return [user.task.index, *np.random.default_rng([draw, user.task.first]).permutation(others).tolist()][
        :count
    ]


def ways(draws: int) -> dict[str, Way]:
    """Every way by name; random ones once per draw."""
    drawn = {f"random {draw}": partial(random_slices, draw=draw) for draw in range(draws)}
    return {"suggested": _suggested_so_far(), "evenly spaced": evenly_spaced, **drawn}


def _suggested_so_far() -> Way:
    """The middle slice and then what the program asks for; each suggestion is asked for once."""
    known: dict[int, list[int]] = {}

    def way(user: User, count: int) -> list[int]:
        slices = known.setdefault(id(user), [user.task.index])
        while len(slices) < count and (index := user.suggested(slices)) is not None:
            slices.append(index)
        return slices[:count]

    return way


def measure(user: User, most: int, draws: int) -> list[Outcome]:
    """All ways on one object; a way ends once it is good enough."""
    task = user.task
    best = max(user.dice(evenly_spaced(user, n)) for n in range(1, min(DENSE, len(user.present)) + 1))
    outcomes = []
    for name, way in ways(draws).items():
        slices: list[list[int]] = []
        dice: list[float] = []
        while len(dice) < most and not (dice and dice[-1] >= SHARE * best):
            slices.append([int(z) for z in way(user, len(dice) + 1)])
            dice.append(user.dice(slices[-1]))
        extent = task.last - task.first + 1
        outcomes.append(Outcome(task.case, task.patient, task.organ, extent, name, slices, dice, best))
    return outcomes


# ------------------------------------------------------------------------------------------------------------- the run


def main(argv: Sequence[str] | None = None) -> None:
    options = _arguments(argv)
    started = time.perf_counter()
    options.out.mkdir(parents=True, exist_ok=True)
    root = data_root(options.data)
    names = _case_names(root, options.patients, options.limit)
    work = partial(
        run_case, root=root, out=options.out, model=options.model, most=options.most, draws=options.draws
    )
    outcomes: list[Outcome] = []
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        for done, found in enumerate(pool.map(work, names), 1):
            outcomes += found
            left = (time.perf_counter() - started) / done * (len(names) - done) / 60
            print(f"{done} of {len(names)}, about {left:.0f} min left", file=sys.stderr, flush=True)
    text = report(outcomes, options)
    print(text)
    if options.patients == "hidden":
        options.results.write_text(text)


def run_case(name: str, root: Path | None, out: Path, model: str, most: int, draws: int) -> list[Outcome]:
    """All objects of a case, from their files where they are there."""
    torch.set_num_threads(1)
    case = _case(name, root)
    embeddings = embed_slices(case.volume, 0)
    outcomes = []
    for task in object_tasks(case):
        path = out / f"{task.case}-{task.organ}-{most}-{draws}.json"
        if not path.exists():
            found = measure(User(task, case.volume, _tracker(model), embeddings), most, draws)
            path.with_suffix(".part").write_text(json.dumps([asdict(outcome) for outcome in found]))
            path.with_suffix(".part").replace(path)
        outcomes += [Outcome(**values) for values in json.loads(path.read_text())]
    return outcomes


@lru_cache(maxsize=1)
def _tracker(model: str) -> SliceTracker:
    from medssl.foundation import load_tracker
    from medssl.foundation.intensity import IntensityTracker

    return IntensityTracker() if model == "intensity" else load_tracker(model, "cpu")


def _case_names(root: Path | None, patients: str, limit: int | None) -> list[str]:
    if root is None:
        return [str(seed) for seed in _PHANTOM_SEEDS[:limit]]
    if patients == "hidden":
        names = held_out_folders(root, "head_neck", "abdomen")
    else:
        never = {name for group in held_out_cases().values() for name in group}
        names = sorted(f.name for f in root.glob("ct_hn*") if f.name not in never)
        names = [str(name) for name in np.random.default_rng(1).permutation(names)]
    return names[:limit]


def _case(name: str, root: Path | None) -> Case:
    if root is not None:
        return read_case(root / name)
    phantom = phantom_ct(int(name))
    organs = {segment.label: segment.name for segment in phantom.segmentation.segments}
    return Case(f"phantom {name}", phantom.volume, phantom.segmentation.labels_kji, organs)


# ---------------------------------------------------------------------------------------------------------- the report


def report(outcomes: Sequence[Outcome], options: argparse.Namespace) -> str:
    """The results as markdown."""
    lasting = [outcome for outcome in outcomes if outcome.organ not in EARLY_ENDING]
    objects = {(outcome.case, outcome.organ) for outcome in outcomes}
    command = f"bench_suggest.py --model {options.model} --most {options.most} --draws {options.draws}"
    lines = [
        "# Which slice to annotate next",
        "",
        "Written by `python Testing/benchmarks/bench_suggest.py`; do not edit. A simulated user annotates the middle"
        " slice of every object and then, one at a time, the slice that is suggested, evenly spaced ones (the best"
        " division of the true extent for each number) or random ones of the true extent; after each, everything is"
        f" tracked again through the whole volume. Needed: slices to {SHARE:g} of the whole-volume Dice that"
        f" up to {DENSE} evenly spaced slices reach, {options.most + 1} where {options.most} were not enough. Brackets:"
        " 95 % bootstrap interval, patients resampled.",
        "",
        f"`{command}`; {len(objects)} objects of {len({o.patient for o in outcomes})} patients;"
        f" {datetime.date.today().isoformat()}.",
        "",
        *_table("All objects", outcomes),
        *_table("Without " + ", ".join(organ.replace("_", " ") for organ in EARLY_ENDING), lasting),
        *_organs(outcomes),
    ]
    return "\n".join(lines)


def needed_by_object(outcomes: Sequence[Outcome]) -> dict[str, dict[tuple[str, str], float]]:
    """Way -> object -> slices needed; the draws of random slices are averaged."""
    values: dict[str, dict[tuple[str, str], list[int]]] = {}
    for outcome in outcomes:
        way = outcome.way.rstrip("0123456789 ")
        values.setdefault(way, {}).setdefault((outcome.case, outcome.organ), []).append(outcome.needed)
    return {way: {key: float(np.mean(n)) for key, n in objects.items()} for way, objects in values.items()}


def _table(title: str, outcomes: Sequence[Outcome]) -> list[str]:
    if not outcomes:
        return []
    needed = needed_by_object(outcomes)
    patients = {(outcome.case, outcome.organ): outcome.patient for outcome in outcomes}
    lines = [
        f"## {title}",
        "",
        "| way | slices needed | fewer than this, suggested | never, share |",
        "|---|---|---|---|",
    ]
    for way, objects in needed.items():
        fewer = "-"
        if way != "suggested":
            share = 1 - np.mean([needed["suggested"][key] for key in objects]) / np.mean(
                list(objects.values())
            )
            fewer = f"**{share:.0%}**, {_fewer(objects, needed['suggested'], patients)}"
        tries = [o for o in outcomes if o.way.rstrip("0123456789 ") == way]
        never = np.mean([o.needed > len(o.dice) for o in tries])
        lines.append(f"| {way} | {_interval(objects, patients)} | {fewer} | {never:.0%} |")
    return [*lines, ""]


def _interval(objects: dict[tuple[str, str], float], patients: dict[tuple[str, str], str]) -> str:
    interval = bootstrap_mean(list(objects.values()), [patients[key] for key in objects])
    return f"{interval.mean:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def _fewer(
    theirs: dict[tuple[str, str], float],
    mine: dict[tuple[str, str], float],
    patients: dict[tuple[str, str], str],
) -> str:
    gain: Interval = bootstrap_mean(
        [n - mine[key] for key, n in theirs.items()], [patients[key] for key in theirs]
    )
    return f"{gain.mean:.2f} slices [{gain.low:.2f}, {gain.high:.2f}]"


def _organs(outcomes: Sequence[Outcome]) -> list[str]:
    needed = needed_by_object(outcomes)
    lines = [
        "## By organ",
        "",
        "| organ | objects | " + " | ".join(needed) + " |",
        "|---|---|" + "---|" * len(needed),
    ]
    for organ in sorted({outcome.organ for outcome in outcomes}):
        keys = [key for key in needed["suggested"] if key[1] == organ]
        cells = [f"{np.mean([objects[key] for key in keys]):.2f}" for objects in needed.values()]
        lines.append(f"| {organ} | {len(keys)} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="folder of labelled CTs (or the environment variable MEDSSL_DATA)")
    parser.add_argument("--patients", choices=["hidden", "training"], default="hidden")
    parser.add_argument("--limit", type=int, help="only so many patients")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="tracker; `intensity` needs no weights")
    parser.add_argument(
        "--most", type=int, default=10, help="slices to annotate at most (default: %(default)s)"
    )
    parser.add_argument("--draws", type=int, default=5, help="of random slices (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("bench_output/suggest"), help="folder for the results"
    )
    parser.add_argument("--results", type=Path, default=_HERE / "RESULTS_SUGGEST.md", help="markdown file")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
