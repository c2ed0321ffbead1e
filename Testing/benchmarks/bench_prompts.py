"""What one click, and one box, find on a slice.

    bench_prompts.py --data FOLDER       the held-out patients of holdout.json, or every case of another folder
    bench_prompts.py --data FOLDER --development       those of development.json and two phantoms, to make choices on
    bench_prompts.py --phantoms 2        without data

Of every labelled object two axial slices are drawn from a seed. A click lies somewhere in the inner half of the object,
a box is drawn tightly around it, and another as loosely as people do; each is the only thing that the model is told.
Scored are the Dice with the truth, and how well the model's score goes with it (Pearson's correlation): the score
chooses between answers, and tells which refined slices to trust. There are other answers, which a person can look
through: the best of them is scored too.
Then the first answer is corrected as a person would: up to three more points, each in the middle of
the largest mistake that is left. Writes RESULTS_PROMPTS.md beside this file, or where --results says.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from machine import processor
from medssl.foundation import load_image_predictor
from medssl.foundation.protocols import ImagePredictor
from medssl.metrics import dice
from medssl.prompts import SlicePrompt, box_of_mask
from medssl.registry import DEFAULT_MODEL
from medssl.volume import WINDOWS
from numpy.typing import NDArray
from protocol import (
    Case,
    bootstrap_mean,
    data_root,
    development_cases,
    held_out_folders,
    patient_of,
    phantom_case,
    read_case,
)
from scipy import ndimage

_HERE = Path(__file__).resolve().parent
_LEAST_PX = 12
_SLICES = 2
_CORRECTIONS = 3
_ANSWERS = 3
"""To one prompt, at most."""
_KINDS = ("click", "box", "loose box")
_LOOSE, _LOOSE_PX = 0.08, 1.5
"""How far the sides of a loose box lie off the object at most: in shares of its own, and in pixels beside."""
_FIRST_PHANTOM, _FIRST_DEVELOPMENT_PHANTOM = 9001, 9101


@dataclass(frozen=True)
class Answer:
    """One prompt, answered."""

    patient: str
    organ: str
    kind: str
    """One of `_KINDS`."""
    dice: float
    score: float
    """The model's."""
    best: float
    """Dice of the best of up to `_ANSWERS` answers."""
    corrected: tuple[float, ...] = ()
    """Dice after each of up to `_CORRECTIONS` correcting points; fewer where nothing was left to correct."""
    heeded: int = 0
    """Correcting points that lie on the side of the answer's edge that they name."""

    def dice_after(self, points: int) -> float:
        """Dice after so many correcting points, or after the last one that was needed."""
        return (self.dice, *self.corrected)[: points + 1][-1]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="folder of labelled CTs (or the environment variable MEDSSL_DATA)")
    parser.add_argument("--phantoms", type=int, default=0, help="phantoms in place of data")
    parser.add_argument("--development", action="store_true", help="development.json and two phantoms")
    parser.add_argument("--limit", type=int, help="cases at most")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--results", type=Path, default=_HERE / "RESULTS_PROMPTS.md")
    options = parser.parse_args(argv)
    predictor = load_image_predictor(options.model, "cpu")
    rng = np.random.default_rng(0)
    answers: list[Answer] = []
    for case in _cases(options):
        answers += ask(predictor, case, rng)
        print(f"  {case.name}", file=sys.stderr, flush=True)
    words = " ".join(argv if argv is not None else sys.argv[1:]).replace(str(options.data), "FOLDER")
    options.results.write_text(render(answers, options.model, words), encoding="utf-8")
    print(options.results.read_text("utf-8"))


def ask(predictor: ImagePredictor, case: Case, rng: np.random.Generator) -> Iterator[Answer]:
    """A click and a box on some slices of every object."""
    for label, organ in case.organs.items():
        truth = case.labels_kji == label
        large_enough = np.flatnonzero(truth.sum(axis=(1, 2)) >= _LEAST_PX)
        for index in rng.choice(large_enough, min(_SLICES, len(large_enough)), replace=False):
            predictor.set_image(
                case.volume.voxels_kji[index], WINDOWS["soft-tissue"], case.volume.slice_spacing_mm(0)
            )
            for kind, prompt in _prompts(truth[index], int(index), rng):
                found = predictor.predict(prompt)
                first = dice(found.mask, truth[index])
                looked_through = [
                    predictor.predict(replace(prompt, choice=choice)).mask for choice in range(1, _ANSWERS)
                ]
                best = max([first, *(dice(mask, truth[index]) for mask in looked_through)])
                corrected, heeded = _correct(predictor, prompt, found.mask, truth[index])
                yield Answer(patient_of(case.name), organ, kind, first, found.score, best, corrected, heeded)


def _correct(
    predictor: ImagePredictor, prompt: SlicePrompt, mask: NDArray[np.bool_], truth: NDArray[np.bool_]
) -> tuple[tuple[float, ...], int]:
    """Dice after each correcting point, and how many of the points were heeded."""
    after: list[float] = []
    heeded = 0
    while len(after) < _CORRECTIONS and (mistake := _largest_part(mask != truth)).any():
        row, column = _middle(mistake)
        on = bool(truth[row, column])
        prompt = replace(
            prompt,
            points_xy_px=np.concatenate([prompt.points_xy_px, np.array([[column, row]], np.float32)]),
            point_labels=np.append(prompt.point_labels, np.int32(on)),
        )
        mask = predictor.predict(prompt).mask
        after.append(dice(mask, truth))
        heeded += bool(mask[row, column]) == on
    return tuple(after), heeded


def _largest_part(mistake: NDArray[np.bool_]) -> NDArray[np.bool_]:
    parts, count = ndimage.label(mistake)
    return parts == 1 + np.argmax(np.bincount(parts.ravel())[1:]) if count else mistake


def _middle(part: NDArray[np.bool_]) -> tuple[int, int]:
    """Row and column of the pixel farthest from the part's edge."""
    depth = ndimage.distance_transform_edt(np.pad(part, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    return int(row), int(column)


def _prompts(
    truth: NDArray[np.bool_], index: int, rng: np.random.Generator
) -> Iterator[tuple[str, SlicePrompt]]:
    depth = ndimage.distance_transform_edt(truth)
    row, column = rng.choice(np.argwhere(depth >= 0.5 * depth.max()))
    xy, on = np.array([[column, row]], np.float32), np.ones(1, np.int32)
    yield "click", SlicePrompt(0, index, points_xy_px=xy, point_labels=on)
    box = box_of_mask(truth)
    assert box is not None
    yield "box", SlicePrompt(0, index, box_xyxy_px=box)
    size = box[2:] - box[:2] + 1
    beyond = rng.spawn(1)[0].uniform(0.0, 1.0, (2, 2)) * (_LOOSE * size + _LOOSE_PX)
    loose = box + np.concatenate([-beyond[0], beyond[1]]).astype(np.float32)
    yield "loose box", SlicePrompt(0, index, box_xyxy_px=loose)


def render(answers: Sequence[Answer], model: str, words: str) -> str:
    """The results as markdown."""
    lines = [
        "# One click, one box",
        "",
        f"Written by `python Testing/benchmarks/bench_prompts.py {words}`; do not edit. {model},"
        f" {len({answer.patient for answer in answers})} patients that it has not seen, {_SLICES} axial slices of every"
        " labelled object, on each one click in the inner half of the object, one tight box, and one"
        f" whose sides lie up to {_LOOSE:.0%} of its own and {_LOOSE_PX} pixels off the object. Brackets: 95 %"
        " bootstrap interval, patients resampled. *Best*: of up to three answers, which a person can look"
        " through. *Score*: correlation of the model's own score with the Dice.",
        "",
        f"{processor()}; {datetime.date.today()}.",
        "",
        "| prompt | prompts | Dice | best | below 0.3 | score |",
        "|---|---|---|---|---|---|",
    ]
    for kind in _KINDS:
        of_kind = [answer for answer in answers if answer.kind == kind]
        values = np.array([[answer.dice, answer.score] for answer in of_kind])
        best = f"{np.mean([answer.best for answer in of_kind]):.3f}"
        mean = bootstrap_mean(values[:, 0], [answer.patient for answer in of_kind])
        lines.append(
            f"| {kind} | {len(values)} | {mean} | {best} | {np.mean(values[:, 0] < 0.3):.0%} |"
            f" {np.corrcoef(values.T)[0, 1]:.2f} |"
        )
    lines += [
        "",
        "Corrected point by point, each in the middle of the largest mistake; *heeded*: points that lie on the right"
        " side of the next answer's edge.",
        "",
        "| prompt | Dice | 1 point more | 2 more | 3 more | heeded |",
        "|---|---|---|---|---|---|",
    ]
    for kind in _KINDS:
        of_kind = [answer for answer in answers if answer.kind == kind]
        means = [np.mean([answer.dice_after(n) for answer in of_kind]) for n in range(_CORRECTIONS + 1)]
        points = sum(len(answer.corrected) for answer in of_kind)
        heeded = sum(answer.heeded for answer in of_kind) / max(points, 1)
        lines.append(f"| {kind} | {' | '.join(f'{mean:.3f}' for mean in means)} | {heeded:.0%} |")
    lines += ["", f"| organ | slices | {' | '.join(_KINDS)} |", "|---|---|---|---|---|"]
    for organ in sorted({answer.organ for answer in answers}):
        of_organ = [
            [answer.dice for answer in answers if (answer.organ, answer.kind) == (organ, kind)]
            for kind in _KINDS
        ]
        means = " | ".join(f"{np.mean(values):.2f}" for values in of_organ)
        lines.append(f"| {organ} | {len(of_organ[0])} | {means} |")
    return "\n".join([*lines, ""])


def _cases(options: argparse.Namespace) -> Iterator[Case]:
    root = data_root(options.data)
    if options.phantoms or root is None:
        for number in range(options.phantoms or 2):
            yield phantom_case(_FIRST_PHANTOM + number)
        return
    if options.development:
        yield from (phantom_case(_FIRST_DEVELOPMENT_PHANTOM + number) for number in range(2))
        names = [name for name in development_cases() if (root / name / "ct.nii.gz").is_file()]
    else:
        names = held_out_folders(root, "head_neck", "abdomen")
    names = names or sorted(path.name for path in root.iterdir() if (path / "ct.nii.gz").is_file())
    for name in names[: options.limit]:
        yield read_case(root / name)


if __name__ == "__main__":
    main()
