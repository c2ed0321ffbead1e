"""What a study found: paired differences with confidence intervals, as a table and a picture.

The unit is the test patient: scores are averaged over the segments and the seeds of a patient first, so three seeds are
not taken for three patients. Intervals are percentiles of bootstrap samples of the patients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..events import duration
from ..methods import METHODS
from ..storage import atomic_path
from .study_runs import Arm, RunResult, StudyData

__all__ = ["Difference", "Finding", "findings", "paired_difference", "write_report"]

_RESAMPLES = 10_000
_CONFIDENCE = 95.0
_SEED = 0xC1


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences and its confidence interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Finding:
    """How an arm did at a fraction."""

    arm: Arm
    fraction: float
    learning_rate: float
    dice: dict[str, float]
    """Mean over segments and seeds, by test patient."""
    dice_of_seed: dict[int, dict[str, float]]
    """The same for each seed by itself."""
    nsd: dict[str, float]
    hd95_mm: float
    """Median over all predictions; infinite where more than half of them are empty."""
    seeds: int
    seconds: float
    """Of all its runs, those that chose the learning rate included."""

    @property
    def mean_dice(self) -> float:
        """Over the patients."""
        return float(np.mean(list(self.dice.values())))

    @property
    def sd_dice(self) -> float:
        """Between the patients."""
        return float(np.std(list(self.dice.values()), ddof=1)) if len(self.dice) > 1 else 0.0


def paired_difference(
    treated: NDArray[np.float64], control: NDArray[np.float64], resamples: int = _RESAMPLES
) -> Difference:
    """Mean of treated - control, patient by patient, with a 95 % bootstrap interval over the patients.

    Args:
        treated: (patients,).
        control: (patients,), the same patients.
        resamples: bootstrap samples.
    """
    differences = np.asarray(treated, np.float64) - np.asarray(control, np.float64)
    draws = np.random.default_rng(_SEED).integers(len(differences), size=(resamples, len(differences)))
    means = differences[draws].mean(1)
    tail = (100.0 - _CONFIDENCE) / 2
    low, high = np.percentile(means, (tail, 100.0 - tail))
    return Difference(float(differences.mean()), float(low), float(high))


def findings(runs: Sequence[RunResult], arms: Sequence[Arm]) -> list[Finding]:
    """Gather the runs of each arm and fraction; those without test scores only count as cost."""
    found = []
    for fraction in sorted({run.fraction for run in runs}):
        for arm in arms:
            own = [run for run in runs if run.arm == arm.name and run.fraction == fraction]
            tested = [run for run in own if run.scores]
            if tested:
                found.append(_finding(arm, fraction, own, tested))
    return found


def write_report(
    folder: Path,
    runs: Sequence[RunResult],
    arms: Sequence[Arm],
    data: StudyData,
    fractions: Sequence[float],
    steps: int,
) -> str:
    """Write report.md and report.png.

    Args:
        folder: of the study.
        runs: finished ones.
        arms: controls among them.
        data: who was in which part.
        fractions: shares of the training patients, for the report's order.
        steps: of fine-tuning, for the report's text.

    Returns:
        The markdown.

    Raises:
        StorageError: the folder cannot be written.
    """
    found = [finding for finding in findings(runs, arms) if finding.fraction in fractions]
    lines = [
        f"# Segmentation of {', '.join(data.segments)}: pre-trained against random weights",
        "",
        f"{len(data.train)} patients to train (their images pre-train the encoders), {len(data.validation)} to choose"
        f" learning rates and the best weights of a run, {len(data.test)} to test; {steps} fine-tuning steps for every"
        " arm. Scores on each scan's own grid; Dice and NSD (2 mm) are means over the test patients of the mean over"
        " segments and seeds, HD95 the median over all predictions. Differences are per patient to random weights of"
        f" the same network under the same schedule and with the same seeds, with {_CONFIDENCE:g} %"
        " bootstrap intervals over the patients.",
    ]
    for fraction in sorted(fractions):
        part = [finding for finding in found if finding.fraction == fraction]
        if part:
            lines += ["", *_table(part, len(data.labelled(0, fraction)))]
    weak = [arm.name for arm in arms if _is_weak(arm)]
    if weak:
        lines += ["", f"Weakly supervised (told which training slices show a segment): {', '.join(weak)}."]
    text = "\n".join(lines) + "\n"
    with atomic_path(folder / "report.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    if found:
        _draw(folder / "report.png", found, data)
    return text


def _finding(arm: Arm, fraction: float, own: Sequence[RunResult], tested: Sequence[RunResult]) -> Finding:
    return Finding(
        arm=arm,
        fraction=fraction,
        learning_rate=tested[0].learning_rate,
        dice=_by_patient(tested, "dice"),
        dice_of_seed={run.seed: _by_patient([run], "dice") for run in tested},
        nsd=_by_patient(tested, "nsd"),
        hd95_mm=float(
            np.median([s["hd95_mm"] for r in tested for p in r.scores.values() for s in p.values()])
        ),
        seeds=len({run.seed for run in tested}),
        seconds=sum(run.seconds for run in own),
    )


def _by_patient(runs: Sequence[RunResult], score: str) -> dict[str, float]:
    patients = sorted(set.intersection(*(set(run.scores) for run in runs)))
    return {
        patient: float(np.mean([s[score] for run in runs for s in run.scores[patient].values()]))
        for patient in patients
    }


def _against_control(finding: Finding, part: Sequence[Finding]) -> Difference | None:
    """Difference to its control at the same fraction; None for a control, or where that is missing.

    Only seeds that both have count: each has labels of other patients, so another seed would not be a fair comparison.
    """
    control = next((f for f in part if f.arm.name == finding.arm.control), None)
    if control is None or control is finding:
        return None
    seeds = sorted(set(finding.dice_of_seed) & set(control.dice_of_seed))
    if not seeds:
        return None
    patients = sorted(set(finding.dice) & set(control.dice))
    treated, scratch = (
        np.array([[side.dice_of_seed[seed][patient] for seed in seeds] for patient in patients]).mean(axis=1)
        for side in (finding, control)
    )
    return paired_difference(treated, scratch)


def _table(part: Sequence[Finding], patients: int) -> list[str]:
    rows = [
        f"## {part[0].fraction:.0%} of the labels ({patients} patient{'s' if patients > 1 else ''})",
        "",
        "| arm | network | Dice % (sd) | difference (95 % interval) | NSD % | HD95 mm | learning rate | seeds | time |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for finding in sorted(part, key=lambda f: (f.arm.backbone, f.arm.control, f.arm.encoder is not None)):
        difference = _against_control(finding, part)
        shown = (
            "" if difference is None
            else f"{100 * difference.mean:+.1f} ({100 * difference.low:+.1f} to {100 * difference.high:+.1f})"
        )  # fmt: skip
        nsd = float(np.mean(list(finding.nsd.values())))
        rows.append(
            f"| {finding.arm.name} | {finding.arm.backbone} | {100 * finding.mean_dice:.1f}"
            f" ({100 * finding.sd_dice:.1f}) | {shown} | {100 * nsd:.1f} | {finding.hd95_mm:.1f} |"
            f" {finding.learning_rate:g} | {finding.seeds} | {duration(finding.seconds)} |"
        )
    return rows


def _is_weak(arm: Arm) -> bool:
    return arm.name in METHODS and METHODS[arm.name].info.supervision == "presence"


def _draw(path: Path, found: Sequence[Finding], data: StudyData) -> None:
    """Differences with their intervals, a column per fraction; and Dice over the number of labelled patients."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    fractions = sorted({finding.fraction for finding in found})
    names = list(dict.fromkeys(f.arm.name for f in found if f.arm.control != f.arm.name))
    figure, axes = plt.subplots(
        1, len(fractions) + 1, figsize=(3.2 * (len(fractions) + 1) + 2, 0.34 * len(names) + 2.4),
        layout="constrained", squeeze=False,
    )  # fmt: skip
    for column, fraction in enumerate(fractions):
        axis, part = axes[0, column], [f for f in found if f.fraction == fraction]
        axis.axvline(0.0, color="0.6", linewidth=1)
        for finding in part:
            difference = _against_control(finding, part)
            if difference is not None:
                row, mean = names.index(finding.arm.name), 100 * difference.mean
                reach = [[mean - 100 * difference.low], [100 * difference.high - mean]]
                color = "tab:green" if difference.low > 0 else "tab:red" if difference.high < 0 else "0.35"
                axis.errorbar(mean, row, xerr=reach, fmt="o", color=color, capsize=3)
        count = len(data.labelled(0, fraction))
        axis.set_title(f"{fraction:.0%} of the labels ({count})", fontsize=10)
        axis.set_yticks(range(len(names)), names if column == 0 else [""] * len(names))
        axis.set_ylim(len(names) - 0.5, -0.5)
        axis.set_xlabel("Dice points above random weights")
    last = axes[0, -1]
    for name in dict.fromkeys(finding.arm.name for finding in found):
        own = [f for f in found if f.arm.name == name]
        counts = [len(data.labelled(0, f.fraction)) for f in own]
        dashed = own[0].arm.encoder is None
        last.plot(counts, [100 * f.mean_dice for f in own], "--" if dashed else "-", marker=".", label=name)
    last.set_xscale("log")
    last.set_xlabel("labelled patients")
    last.set_ylabel("Dice %")
    last.legend(fontsize=6, loc="center left", bbox_to_anchor=(1.0, 0.5))
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130)
    plt.close(figure)
