"""What a few labels are worth: coarse, refined and propagated masks of hidden patients, from each encoder and without.

    bench_few_labels.py --data FOLDER --encoders DIR --out DIR            everything; --jobs 2 for two at once
    bench_few_labels.py --data FOLDER --out DIR --cases 3 --test 4        a quick look, from random weights

For 1, 3, 5 and 10 training patients, with one annotated slice each ("one"), with that slice carried to the others by
the tracker as `medssl finetune` does ("carried"), and with all slices annotated ("all"), a network is fine-tuned from
random weights and from every encoder in DIR (<method>.safetensors), and the full pipeline segments hidden patients. Of
each stage the Dice and the 95 % Hausdorff distance are kept: the network's own coarse mask, its largest connected part,
the mask refined by the promptable model, the propagated one, and the pipeline's final one. No patient of `holdout.json`
is trained on, and no encoder that has seen one may take part.

It says first how long it will take. Every run is one JSON file in --out, so a run that was stopped goes on; --done
reports what there is.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from medssl.datasets.grid import scan_id
from medssl.datasets.input_contract import InputContract
from medssl.datasets.labelled import LabelledCase, LabelledScans
from medssl.few_labels.annotated_samples import AnnotatedCase
from medssl.few_labels.carried_labels import with_carried_labels
from medssl.few_labels.finetuning import FinetuneSettings, automatic, fit, step_seconds
from medssl.few_labels.segmenter import ModelInfo, SegmentationModel, read_model, write_model
from medssl.foundation.protocols import ImagePredictor, SliceTracker
from medssl.learning.transfer import load_encoder, read_encoder
from medssl.registry import DEFAULT_MODEL
from medssl.segmentation import Segment, default_color
from medssl.segmenting import STAGES, SegmentOptions, Stage, segment_volume
from protocol import Interval, bootstrap_mean, data_root, held_out_cases

_HERE = Path(__file__).resolve().parent
SEGMENTS = ("mandible", "parotid_left", "parotid_right")
WORSE = 0.02
"""Dice that a case may lose without counting as worse."""
_SCRATCH = InputContract(
    size=(96, 96), spacing_kji_mm=(None, 2.0, 2.0), window_hu=(-200.0, 400.0), mean_hu=100.0, std_hu=200.0
)
SCRATCH_BACKBONE = "unet2d_16"

Slices = Literal["one", "carried", "all"]


@dataclass(frozen=True)
class Run:
    """One fine-tuning and what came of it."""

    arm: str
    """Name of the encoder file, or "scratch <backbone>"."""
    backbone: str
    encoder: str
    """Path; empty for random weights."""
    cases: int
    slices: Slices
    seed: int

    @property
    def file(self) -> str:
        """Name of its result file."""
        return f"{self.arm.replace(' ', '-')}-{self.cases}-{self.slices}-s{self.seed}.json"


@dataclass(frozen=True)
class Work:
    """What every process needs to know."""

    root: str
    out: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    steps: int | None
    model: str
    segments: tuple[str, ...] = SEGMENTS


@dataclass(frozen=True)
class Score:
    """One stage on one segment of one patient."""

    patient: str
    segment: str
    stage: Stage
    dice: float
    hd95_mm: float


# ------------------------------------------------------------------------------------------------------------ one run


def carry_out(run: Run, work: Work) -> list[Score]:
    """Fine-tune and test, unless that has been done."""
    path = Path(work.out) / run.file
    if not path.exists():
        torch.set_num_threads(1)
        torch.set_flush_denormal(True)
        model = fine_tuned(run, work)
        scores = [score for name in work.test for score in tested(model, name, work)]
        part = path.with_suffix(".part")
        part.write_text(json.dumps({"run": asdict(run), "scores": [asdict(score) for score in scores]}))
        part.replace(path)
    return [Score(**values) for values in json.loads(path.read_text())["scores"]]


def fine_tuned(run: Run, work: Work) -> SegmentationModel:
    """A model of the run's encoder, taught with the run's labels; kept in a file beside its scores."""
    path = (Path(work.out) / run.file).with_suffix(".safetensors")
    if path.exists():
        return read_model(path)
    model = _untaught(run, work.segments)
    learn_from = _teachers(run, work, model.info.contract)
    wanted = FinetuneSettings(steps=work.steps, seed=run.seed)
    settings = automatic(wanted, model.network, run.cases, bool(run.encoder))
    for _ in fit(model.network, learn_from, (), model.info.contract, work.segments, settings):
        pass
    write_model(path, model)
    return model


def tested(model: SegmentationModel, name: str, work: Work) -> list[Score]:
    """Every stage of the pipeline on a hidden patient."""
    volume, truth = labelled_case(Path(work.root), name).read()
    result = segment_volume(
        volume, model, predictor=_predictor(work.model), tracker=_tracker(work.model),
        options=SegmentOptions(), device="cpu",
    )  # fmt: skip
    return [
        Score(name, score.segment, stage, score.dice, score.hd95_mm)
        for stage, scores in result.scores(truth).items()
        for score in scores
        if score.true_ml > 0
    ]


def vouched_slice(case: AnnotatedCase) -> int:
    """The slice that shows most of the segments: their areas there, each in shares of its largest."""
    shown = np.zeros(len(case.labels))
    for label in range(1, len(case.known)):
        area = (case.labels == label).sum(axis=(1, 2))
        shown += area / max(1, area.max())
    return int(shown.argmax())


def _teachers(run: Run, work: Work, contract: InputContract) -> list[AnnotatedCase]:
    order = np.random.default_rng([0xFE3, run.seed]).permutation(len(work.train))
    names = [work.train[n] for n in order[: run.cases]]  # fewer cases lie within more
    scans = LabelledScans.from_cases(
        [labelled_case(Path(work.root), name) for name in names], contract, work.segments
    )
    cases = [AnnotatedCase.of(scan) for scan in scans]
    if run.slices == "all":
        return cases
    sparse = [case.only_slices([vouched_slice(case)]) for case in cases]
    if run.slices == "one":
        return sparse
    *_, taught = with_carried_labels(sparse, (), lambda: _tracker(work.model))
    assert isinstance(taught, list)
    return taught


def _untaught(run: Run, names: Sequence[str]) -> SegmentationModel:
    encoder = read_encoder(run.encoder) if run.encoder else None
    segments = tuple(Segment(name, n, default_color(n)) for n, name in enumerate(names, 1))
    contract = _SCRATCH if encoder is None else encoder.contract
    info = ModelInfo(backbone=run.backbone, contract=contract, segments=segments)
    torch.manual_seed(run.seed)
    model = SegmentationModel.build(info)
    if encoder is not None:
        load_encoder(model.network.backbone, encoder)
    return model


def labelled_case(root: Path, name: str) -> LabelledCase:
    return LabelledCase(name, name, root / name / "ct.nii.gz", root / name / "label.nii.gz")


@lru_cache(maxsize=1)
def _predictor(model: str) -> ImagePredictor:
    from medssl.foundation import load_image_predictor

    return load_image_predictor(model, "cpu")


@lru_cache(maxsize=1)
def _tracker(model: str) -> SliceTracker:
    from medssl.foundation import load_tracker

    return load_tracker(model, "cpu")


# ------------------------------------------------------------------------------------------------------------ the study


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    work = work_of(options)
    _refuse_encoders_that_saw(work.test, options)
    runs = planned(options.encoders, options.cases, options.slices, options.seeds, len(work.train))
    left = [run for run in runs if not (options.out / run.file).exists()]
    if options.done:
        runs, left = [run for run in runs if run not in left], []
    if left:
        seconds = sum(estimated_seconds(left, work)) / options.jobs
        print(
            f"{len(left)} of {len(runs)} runs are left; they take about {seconds / 60:.0f} min.",
            file=sys.stderr,
        )
    started, done = time.perf_counter(), 0
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        futures = {pool.submit(carry_out, run, work): run for run in left}
        for future in as_completed(futures):
            future.result()
            done += 1
            minutes = (time.perf_counter() - started) / done * (len(left) - done) / 60
            print(f"{futures[future].file}; about {minutes:.0f} min left", file=sys.stderr, flush=True)
    if not runs:
        raise SystemExit(f"No such run is done in {options.out}.")
    found = [(run, carry_out(run, work)) for run in runs]
    text = report(found, work)
    print(text)
    options.results.write_text(text)


def planned(
    encoders: Path | None, cases: Sequence[int], slices: Sequence[Slices], seeds: int, most: int
) -> list[Run]:
    """Every run: each encoder, and random weights for each backbone among them, on every number of cases."""
    arms = [(path.stem, read_encoder(path).backbone, str(path)) for path in _files(encoders)]
    scratch = dict.fromkeys([backbone for _, backbone, _ in arms] or [SCRATCH_BACKBONE])
    arms = [*((f"scratch {backbone}", backbone, "") for backbone in scratch), *arms]
    return [
        Run(arm, backbone, encoder, count, kind, seed)
        for seed in range(seeds)
        for count in sorted({min(count, most) for count in cases})
        for kind in slices
        for arm, backbone, encoder in arms
    ]


def estimated_seconds(runs: Sequence[Run], work: Work) -> list[float]:
    """What each run will take: from measured steps and the pipeline on one hidden patient, per backbone, and from the
    labels of one case, carried or not.
    """
    step: dict[str, float] = {}
    test: dict[str, float] = {}
    teach: dict[str, float] = {}
    seconds = []
    for run in runs:
        model = _untaught(run, work.segments)
        settings = automatic(FinetuneSettings(steps=work.steps), model.network, run.cases, bool(run.encoder))
        if run.slices not in teach:
            started = time.perf_counter()
            _teachers(replace(run, cases=1), work, model.info.contract)
            teach[run.slices] = time.perf_counter() - started
        if run.backbone not in step:
            one = replace(run, cases=1, slices="one")
            learn_from = _teachers(one, work, model.info.contract)
            step[run.backbone] = step_seconds(
                model.network, learn_from, model.info.contract, work.segments, settings
            )
            started = time.perf_counter()
            tested(model, work.test[0], work)
            test[run.backbone] = time.perf_counter() - started
        taught = run.cases * teach[run.slices] + (settings.steps or 1) * step[run.backbone]
        seconds.append(taught + len(work.test) * test[run.backbone])
    return seconds


def _files(encoders: Path | None) -> list[Path]:
    if encoders is None:
        return []
    files = sorted(encoders.glob("*.safetensors"))
    if not files:
        raise SystemExit(f"{encoders} has no <method>.safetensors.")
    return files


def _refuse_encoders_that_saw(test: Sequence[str], options: argparse.Namespace) -> None:
    files = _files(options.encoders)
    seen = {scan: path.name for path in files for scan in read_encoder(path).data}
    for name in test if files else ():
        volume, _ = labelled_case(data_root(options.data) or Path(), name).read()
        if scan_id(volume) in seen:
            raise SystemExit(
                f"{seen[scan_id(volume)]} was pre-trained on {name}, which is to be hidden from it."
            )


def work_of(options: argparse.Namespace) -> Work:
    root = data_root(options.data)
    if root is None:
        raise SystemExit("Give the folder of labelled CTs with --data, or in MEDSSL_DATA.")
    never = {name for group in held_out_cases().values() for name in group}
    hidden = [name for name in held_out_cases()["head_neck"] if (root / name).is_dir()]
    known = sorted(folder.name for folder in root.glob("ct_hn*") if folder.name not in never)
    complete = [name for name in known if set(options.segments) <= _labels(root / name)]
    tests = [name for name in hidden if _labels(root / name) & set(options.segments)][: options.test]
    return Work(
        str(root),
        str(options.out),
        tuple(complete),
        tuple(tests),
        options.steps,
        options.model,
        tuple(options.segments),
    )


def _labels(folder: Path) -> set[str]:
    path = folder / "labels.json"
    return set(json.loads(path.read_text()).values()) if path.exists() else set()


# ----------------------------------------------------------------------------------------------------------- the report


def report(found: Sequence[tuple[Run, list[Score]]], work: Work) -> str:
    """The results as markdown."""
    seeds = len({run.seed for run, _ in found})
    lines = [
        "# What a few labels are worth",
        "",
        "Written by `python Testing/benchmarks/bench_few_labels.py`; do not edit. Networks fine-tuned on a few training"
        f" patients ({', '.join(work.segments)}), tested on {len(work.test)} hidden patients, {seeds} run(s) of"
        " each kind with other training patients. Stages of the pipeline side by side: the network's coarse mask, its"
        " largest connected part, sharpened by the volume's own intensities, then refined by the promptable model,"
        " propagated from reference slices chosen among the refined ones, and final. Hausdorff distances are medians,"
        " because a mask that is not there has none.",
        "",
        f"{datetime.date.today().isoformat()}.",
        "",
        "## Dice",
        "",
        *_stages(found, "dice"),
        "## 95 % Hausdorff distance, mm",
        "",
        *_stages(found, "hd95_mm"),
        "## Against the coarse mask",
        "",
        *_gains(found),
    ]
    return "\n".join(lines)


def gain(scores: Sequence[Score], stage: Stage) -> tuple[Interval, float]:
    """Mean gain in Dice over the coarse mask, paired, and the share of masks that lose more than `WORSE`."""
    coarse = {(s.patient, s.segment): s.dice for s in scores if s.stage == "coarse"}
    gains = {
        (s.patient, s.segment): s.dice - coarse[s.patient, s.segment] for s in scores if s.stage == stage
    }
    interval = bootstrap_mean(list(gains.values()), [patient for patient, _ in gains])
    return interval, float(np.mean([value < -WORSE for value in gains.values()]))


def _stages(found: Sequence[tuple[Run, list[Score]]], figure: Literal["dice", "hd95_mm"]) -> list[str]:
    lines = [
        "| encoder | cases | slices | " + " | ".join(STAGES) + " |",
        "|---|---|---|" + "---|" * len(STAGES),
    ]
    for group in _groups(found):
        cells = []
        for stage in STAGES:
            values = [getattr(s, figure) for _, scores in group for s in scores if s.stage == stage]
            cells.append(f"{np.mean(values):.3f}" if figure == "dice" else f"{np.median(values):.1f}")
        run = group[0][0]
        lines.append(f"| {run.arm} | {run.cases} | {run.slices} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _gains(found: Sequence[tuple[Run, list[Score]]]) -> list[str]:
    lines = [
        f"| encoder | cases | slices | stage | gain in Dice | worse by > {WORSE:g} | distance, share of coarse |",
        "|---|---|---|---|---|---|---|",
    ]
    for group in _groups(found):
        run, scores = group[0][0], [score for _, scores in group for score in scores]
        coarse_mm = np.median([s.hd95_mm for s in scores if s.stage == "coarse"])
        for stage in STAGES[1:]:
            interval, worse = gain(scores, stage)
            share = np.median([s.hd95_mm for s in scores if s.stage == stage]) / max(coarse_mm, 1e-9)
            lines.append(
                f"| {run.arm} | {run.cases} | {run.slices} | {stage} | {interval.mean:+.3f}"
                f" [{interval.low:+.3f}, {interval.high:+.3f}] | {worse:.0%} | {share:.2f} |"
            )
    return [*lines, ""]


def _groups(found: Sequence[tuple[Run, list[Score]]]) -> list[list[tuple[Run, list[Score]]]]:
    """Runs that differ in nothing but the seed."""
    groups: dict[tuple[str, int, str], list[tuple[Run, list[Score]]]] = {}
    for run, scores in found:
        groups.setdefault((run.arm, run.cases, run.slices), []).append((run, scores))
    return [
        groups[key]
        for key in sorted(groups, key=lambda key: (key[1], get_args(Slices).index(key[2]), key[0]))
    ]


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="folder of labelled CTs (or the environment variable MEDSSL_DATA)")
    parser.add_argument(
        "--encoders", type=Path, help="folder of <method>.safetensors; none: random weights only"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("bench_output/few_labels"), help="folder for the runs"
    )
    parser.add_argument("--cases", type=int, nargs="+", default=[1, 3, 5, 10], help="training patients")
    parser.add_argument(
        "--slices", nargs="+", choices=get_args(Slices), default=list(get_args(Slices)), help="annotated"
    )
    parser.add_argument("--segments", nargs="+", default=SEGMENTS, help="names (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each kind, with other patients")
    parser.add_argument("--test", type=int, default=12, help="hidden patients (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="of fine-tuning; automatic: from the number of cases")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="promptable model that refines and propagates")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, one thread each")
    parser.add_argument(
        "--done", action="store_true", help="report the runs that are done, and begin no others"
    )
    parser.add_argument("--results", type=Path, default=_HERE / "RESULTS_FEW_LABELS.md", help="markdown file")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
