"""Is pre-training worth it? Every method against random weights under the same schedule, on real patients.

Patients are divided once: some train, a few validate (they choose learning rates and the best weights of a run), the
rest test. Encoders see the training patients' images only. Of a nested part of the training patients the labels are
used, the same ones by every arm of a seed, and every arm has its learning rate chosen in the same way. What is compared
is the difference on each test patient, measured on the scan's own grid. Read `study` first.
"""

from __future__ import annotations

import functools
import hashlib
import json
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..datasets.grid import scan_id
from ..datasets.input_contract import InputContract
from ..datasets.labelled import LabelledCase, find_cases
from ..datasets.sources import SamePatients, is_excluded
from ..errors import Cancelled, InputError, StorageError, WorkerError
from ..events import Eta, Log, Progress, duration, never
from ..few_labels.finetuning import FinetuneSettings
from ..learning.pretrain_config import PretrainConfig, choose_preset
from ..learning.recipe import require_seed
from ..learning.transfer import read_encoder
from ..methods import METHODS, Preset, find_method
from ..registry import sha256_of
from ..runs.run_folder import RunFolder
from ..segmentation import Segmentation
from ..storage import atomic_path
from .study_report import write_report
from .study_runs import Arm, Cost, StudyBench, StudyData, in_worker, runs_of, start_worker

__all__ = ["StudyConfig", "study"]

_POLL_S = 0.2
_VALIDATIONS = 2
_FEWEST_PATIENTS = 4
_FIXED = (
    "segment", "steps", "batch", "learning_rates", "tune_at", "test_share", "validation_share", "only", "exclude",
    "hidden", "preset", "pretrain_steps", "pretrain_minutes", "seed",
)  # fmt: skip
"""Settings that a study keeps to its end; methods, fractions and seeds may be added."""


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """What to compare, on what, and how thoroughly.

    Raises:
        InputError: a number is out of its range, or a method does not exist.
    """

    data: Path
    """Folder of cases with labels: ct.nii.gz and label.nii.gz in a folder each, or images and labels."""
    out: Path
    """Study folder; a study that is there goes on."""
    segment: tuple[str, ...]
    """Names of the segments to find."""
    methods: tuple[str, ...] = tuple(METHODS)
    """Methods to compare."""
    fractions: tuple[float, ...] = (0.05, 0.1, 0.2, 0.5, 1.0)
    """Shares of the training patients whose labels are used, above 0 and up to 1."""
    seeds: int = 3
    """Repetitions, each with other labelled patients and other random weights."""
    steps: int = 200
    """Fine-tuning steps of a run, the same for all."""
    batch: int | None = None
    """Samples a fine-tuning step; automatic: 12 slices or 2 blocks."""
    learning_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    """What every arm chooses from, by the validation patients."""
    tune_at: float | None = None
    """One of the fractions, where each arm chooses its learning rate for all of them; automatic: at every fraction."""
    test_share: float = 0.4
    """Share of the patients that is only measured on."""
    validation_share: float = 0.1
    """Share of the patients that chooses learning rates and best weights."""
    hidden: tuple[str, ...] = ()
    """Files or folders of the patients that validate and test, * stands for anything; all others train. For encoders
    that have seen every other patient. Without any, patients are drawn."""
    encoders: Path | None = None
    """Folder of <method>.safetensors or <method>/checkpoint.safetensors to use; others are pre-trained."""
    preset: str = "cpu"
    """Of the methods, where they are pre-trained; see `medssl pretrain`."""
    pretrain_steps: int | None = None
    """Steps of pre-training, in place of the preset's."""
    pretrain_minutes: float | None = None
    """Minutes of pre-training, in place of the preset's."""
    only: tuple[str, ...] = ()
    """Files or folders below the data folder to use, * stands for anything; all of them if none is given."""
    exclude: tuple[str, ...] = ()
    """Files or folders below the data folder to leave out; * stands for anything."""
    jobs: int = 1
    """Processes at once, each on one core."""
    seed: int = 0
    """Of the division of the patients."""

    def __post_init__(self) -> None:
        require_seed(self.seed)
        for method in self.methods:
            find_method(method)
        if not self.segment or not self.methods or not self.fractions or not self.learning_rates:
            raise InputError("A study needs a segment, a method, a fraction and a learning rate.")
        if any(not 0.0 < fraction <= 1.0 for fraction in self.fractions):
            raise InputError(f"Fractions lie above 0 and up to 1, not {self.fractions}.")
        if min(self.seeds, self.steps, self.jobs) < 1 or min(self.learning_rates) <= 0:
            raise InputError("Seeds, steps, jobs and learning rates must be above 0.")
        if self.tune_at is not None and self.tune_at not in self.fractions:
            raise InputError(f"The learning rate is chosen at one of the fractions, not at {self.tune_at:g}.")
        shares = self.test_share, self.validation_share
        if min(shares) <= 0 or sum(shares) >= 1:
            raise InputError(f"The shares for test and validation must leave some to train on, not {shares}.")


def study(config: StudyConfig, cancelled: Callable[[], bool] = never) -> Iterator[Progress | Log]:
    """Run a study, or go on with the one in `config.out`; at the end `report.md` and `report.png` lie there.

    Args:
        config: what to compare.
        cancelled: asked several times a second.

    Yields:
        Log and Progress: first what it will take in all, at the end what was found.

    Raises:
        InputError: too few patients, a segment nobody knows, an encoder that has seen patients it is tested on, or
            the folder holds a study with other settings.
        WorkerError: one of its processes was killed.
        Cancelled: `cancelled` said so; the same call goes on.
    """
    results = config.out / "runs"
    try:
        results.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"The study folder {config.out} cannot be made ({error.strerror}).") from error
    data = _division(config)
    yield Log(
        f"{len(data.train)} patients to train, {len(data.validation)} to choose learning rates,"
        f" {len(data.test)} to test; labels of"
        f" {', '.join(str(len(data.labelled(0, f))) for f in config.fractions)} of them are used."
    )
    if left_out := len(_chosen_cases(config)) - len(data.cases):
        yield Log(
            f"{left_out} of the labelled scans are left out: they have no label of {' or of '.join(config.segment)},"
            " or the voxels of another one."
        )
    arms = _arms(config, data)
    _require_same_encoders(config, arms)
    settings = FinetuneSettings(steps=config.steps, batch=config.batch, validations=_VALIDATIONS, patience=0)
    try:
        with _Pool(config.jobs, data) as pool:
            yield from _work(config, data, arms, settings, pool, cancelled)
    except BrokenProcessPool as error:
        raise WorkerError(
            f"A process of the study was ended from outside, often because memory ran out with {config.jobs} at once;"
            " the same command goes on, if need be with fewer --jobs."
        ) from error
    yield Log(write_report(config.out, runs_of(results), arms, data, config.fractions, config.steps))


# ------------------------------------------------------------------------------------------------------------ the work


class _Pool:
    """Processes that hold the study's data; they end with the block, after the step they are at."""

    def __init__(self, jobs: int, data: StudyData) -> None:
        context = multiprocessing.get_context("spawn")
        self._stop = context.Event()
        self._pool = ProcessPoolExecutor(jobs, context, start_worker, (data, self._stop))

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)

    def submit(self, task: Callable[[StudyBench], Any]) -> Future[Any]:
        """Do a task in the next free process."""
        return self._pool.submit(in_worker, task)


@dataclass(frozen=True)
class _Task:
    """A part of the study."""

    text: str
    do: Callable[[StudyBench], Any]
    seconds: float
    makes: Path | None = None
    """Encoder that it makes."""
    needs: Path | None = None
    """Encoder that must be there first."""


def _work(
    config: StudyConfig,
    data: StudyData,
    arms: Sequence[Arm],
    settings: FinetuneSettings,
    pool: _Pool,
    cancelled: Callable[[], bool],
) -> Iterator[Progress | Log]:
    """Do what is not done yet, encoders first."""
    open_cells = [(arm, fraction) for arm in arms for fraction in config.fractions
                  if not _is_done(config, arm, fraction)]  # fmt: skip
    needed = {arm for arm, _ in open_cells}
    if not needed:
        return
    yield Log("Measuring what a run costs ...")
    kinds = {(arm.backbone, arm.contract): arm for arm in needed}
    asked = {kind: pool.submit(functools.partial(StudyBench.cost_of, arm=arm, settings=settings))
             for kind, arm in kinds.items()}  # fmt: skip
    pretraining = [_pretraining(config, arm) for arm in arms if arm in needed and _is_to_be_made(config, arm)]
    estimates = [
        pool.submit(functools.partial(StudyBench.pretraining_seconds, **options)) for options in pretraining
    ]
    _wait([*asked.values(), *estimates], cancelled)
    costs: dict[tuple[str, InputContract], Cost] = {kind: future.result() for kind, future in asked.items()}
    tasks = [
        _Task(
            f"pre-training {options['config'].method}",
            functools.partial(StudyBench.pretrain, **options),
            future.result(),
            makes=options["config"].out / "checkpoint.safetensors",
        )
        for options, future in zip(pretraining, estimates, strict=True)
    ]
    for arm in arms:
        fractions = [fraction for other, fraction in open_cells if other is arm]
        tasks += _fine_tuning(config, data, arm, fractions, settings, costs.get((arm.backbone, arm.contract)))
    seconds = sum(task.seconds for task in tasks)
    pretrain_seconds = sum(task.seconds for task in tasks if task.makes)
    yield Log(
        f"{len(tasks)} parts will take about {duration(seconds / config.jobs)} with {config.jobs} at once:"
        f" {duration(pretrain_seconds)} of pre-training, {duration(seconds - pretrain_seconds)} of fine-tuning and"
        " testing."
    )
    yield from _run_all(tasks, pool, cancelled)


def _fine_tuning(
    config: StudyConfig,
    data: StudyData,
    arm: Arm,
    fractions: Sequence[float],
    settings: FinetuneSettings,
    cost: Cost | None,
) -> list[_Task]:
    """One task per fraction, or one for the arm if it chooses its learning rate once."""
    if not fractions or cost is None:
        return []
    run = cost.run(config.steps, _VALIDATIONS * len(data.validation)), len(data.test) * cost.scan
    common: dict[str, Any] = {
        "folder": config.out / "runs",
        "arm": arm,
        "seeds": config.seeds,
        "settings": settings,
        "learning_rates": config.learning_rates,
    }
    extra = (len(config.learning_rates) - 1) * run[0]
    if config.tune_at is not None:
        order = sorted(config.fractions, key=lambda fraction: fraction != config.tune_at)
        do = functools.partial(StudyBench.run_arm, fractions=order, **common)
        return [_Task(arm.name, do, len(order) * config.seeds * sum(run) + extra, needs=arm.encoder)]
    return [
        _Task(
            f"{arm.name} at {fraction:.0%}",
            functools.partial(StudyBench.run_cell, fraction=fraction, **common),
            config.seeds * sum(run) + extra,
            needs=arm.encoder,
        )
        for fraction in fractions
    ]


def _run_all(tasks: Sequence[_Task], pool: _Pool, cancelled: Callable[[], bool]) -> Iterator[Progress | Log]:
    missing = {task.makes for task in tasks if task.makes}
    waiting = [task for task in tasks if task.needs in missing]
    running = {pool.submit(task.do): task for task in tasks if task.needs not in missing}
    eta, finished = Eta(max(1, round(sum(task.seconds for task in tasks)))), 0.0
    yield eta.step(0, "studying")
    while running:
        for future in _wait(running, cancelled, FIRST_COMPLETED):
            task = running.pop(future)
            future.result()
            finished += task.seconds
            yield eta.step(round(finished), task.text)
            ready = [other for other in waiting if task.makes and other.needs == task.makes]
            waiting = [other for other in waiting if other not in ready]
            running.update({pool.submit(other.do): other for other in ready})


def _wait(
    futures: Iterable[Future[Any]], cancelled: Callable[[], bool], until: str = ALL_COMPLETED
) -> list[Future[Any]]:
    """Wait for all, or the first, to end, and look every moment whether to go on."""
    futures = list(futures)
    while True:
        done, rest = wait(futures, _POLL_S, until)
        if cancelled():
            raise Cancelled("The study was stopped; the same command goes on.")
        if not rest or (done and until == FIRST_COMPLETED):
            return list(done)


def _is_done(config: StudyConfig, arm: Arm, fraction: float) -> bool:
    runs = [
        r for r in runs_of(config.out / "runs") if r.arm == arm.name and r.fraction == fraction and r.scores
    ]
    return {run.seed for run in runs} >= set(range(config.seeds))


# ------------------------------------------------------------------------------------------------------------ the arms


def _arms(config: StudyConfig, data: StudyData) -> list[Arm]:
    """One per method, and a control for each backbone and input among them."""
    controls: dict[tuple[str, InputContract], Arm] = {}
    arms = []
    for method in config.methods:
        given = _given_encoder(config, method)
        if given is None:
            preset = _preset(config, method)
            backbone, contract = preset.backbone, preset.contract
            encoder = config.out / "encoders" / method / "checkpoint.safetensors"
        else:
            file = read_encoder(given)
            if seen := set(file.data) & {
                data.ids[name] for name in data.names_of((*data.test, *data.validation))
            }:
                raise InputError(
                    f"The encoder {given} has seen {len(seen)} of the scans it would be measured on;"
                    " give one that was trained on other patients, or let the study train it."
                )
            backbone, contract, encoder = file.backbone, file.contract, given
        same = [arm for arm in controls.values() if arm.backbone == backbone]
        name = f"scratch {backbone}" + (f" {len(same) + 1}" if same else "")
        control = controls.setdefault((backbone, contract), Arm(name, backbone, contract, name))
        arms.append(Arm(method, backbone, contract, control.name, encoder))
    return [*controls.values(), *arms]


def _require_same_encoders(config: StudyConfig, arms: Sequence[Arm]) -> None:
    """Note which encoders were given, and refuse to mix results of two under one name."""
    given = {
        arm.name: sha256_of(arm.encoder) for arm in arms if arm.encoder and not _is_own(config, arm.encoder)
    }
    path = config.out / "encoders.json"
    known: dict[str, str] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    for name, digest in given.items():
        if known.get(name, digest) != digest:
            raise InputError(
                f"The results of {name} in {config.out} are those of another encoder; give the same one, or another"
                " folder."
            )
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps({**known, **given}, indent=1), encoding="utf-8")


def _is_own(config: StudyConfig, encoder: Path) -> bool:
    """Whether the study trains this encoder itself."""
    return encoder.is_relative_to(config.out / "encoders")


def _given_encoder(config: StudyConfig, method: str) -> Path | None:
    if config.encoders is None:
        return None
    candidates = (
        config.encoders / f"{method}.safetensors",
        config.encoders / method / "checkpoint.safetensors",
    )
    found = next((path for path in candidates if path.is_file()), None)
    if found and (found.parent / "run.json").is_file() and not _is_done_run(found.parent):
        raise InputError(
            f"The run {found.parent} is not finished; resume it first, or give a copy of its {found.name} as"
            f" {method}.safetensors."
        )
    return found


def _is_to_be_made(config: StudyConfig, arm: Arm) -> bool:
    """Whether the study's own pre-training is not finished; the weights of a run under way lie at the same place."""
    return arm.encoder is not None and _is_own(config, arm.encoder) and not _is_done_run(arm.encoder.parent)


def _is_done_run(folder: Path) -> bool:
    return (folder / "run.json").is_file() and RunFolder.open(folder).status.state == "done"


def _pretraining(config: StudyConfig, arm: Arm) -> dict[str, Any]:
    if arm.encoder is None:
        raise ValueError("Random weights need no pre-training.")
    return {
        "config": _pretrain_config(config, arm.name, arm.encoder.parent),
        "preset": _preset(config, arm.name),
    }


def _pretrain_config(config: StudyConfig, method: str, out: Path) -> PretrainConfig:
    return PretrainConfig(
        method=method, data=config.data, out=out, preset=config.preset, steps=config.pretrain_steps,
        minutes=config.pretrain_minutes, device="cpu", seed=config.seed,
    )  # fmt: skip


def _preset(config: StudyConfig, method: str) -> Preset:
    return choose_preset(_pretrain_config(config, method, config.out), "cpu")


# -------------------------------------------------------------------------------------------------------- the patients


def _division(config: StudyConfig) -> StudyData:
    """Divide the patients, or read how they were divided.

    Raises:
        InputError: the folder holds a study with other settings, a case of it has changed or is gone, or there are too
            few patients.
    """
    path = config.out / "study.json"
    fixed = {name: _plain(getattr(config, name)) for name in _FIXED}
    cases = {case.name: case for case in _chosen_cases(config)}
    if path.is_file():
        stored = json.loads(path.read_text(encoding="utf-8"))
        for name, value in fixed.items():
            if (before := stored["settings"].get(name, value)) != value:
                raise InputError(
                    f"The study in {config.out} was begun with {name} = {before}, not {value};"
                    " give the same, or another folder."
                )
        return _as_divided(stored, cases, config)
    data = _divide(list(cases.values()), config)
    with atomic_path(path) as temporary:
        parts = {part: getattr(data, part) for part in ("train", "validation", "test")}
        temporary.write_text(
            json.dumps({"settings": fixed, **_facts(data), **parts}, indent=1), encoding="utf-8"
        )
    return data


def _facts(data: StudyData) -> dict[str, dict[str, str]]:
    """By the case's name: what it shows, what is drawn on it, and whose it is."""
    return {
        "ids": dict(data.ids),
        "labels": {case.name: _labels_hash(case.read()[1], data.segments) for case in data.cases},
        "patients": {case.name: case.patient for case in data.cases},
    }


def _as_divided(
    stored: Mapping[str, Any], cases: Mapping[str, LabelledCase], config: StudyConfig
) -> StudyData:
    """The cases of a study that was begun; none of them may have changed since."""
    patients, labels = stored.get("patients", {}), stored.get("labels", {})
    kept = []
    for name, identity in stored["ids"].items():
        if name not in cases:
            raise InputError(f"{name} belongs to the study in {config.out} but is no longer there.")
        volume, truth = cases[name].read()
        drawn = _labels_hash(truth, config.segment)
        if scan_id(volume) != identity or labels.get(name, drawn) != drawn:
            raise InputError(
                f"{name} has changed since the study in {config.out} was begun; give another folder with --out."
            )
        kept.append(replace(cases[name], patient=patients.get(name, cases[name].patient)))
    parts = {part: tuple(stored[part]) for part in ("train", "validation", "test")}
    return StudyData(tuple(kept), config.segment, stored["ids"], **parts)


def _labels_hash(truth: Segmentation, segments: Sequence[str]) -> str:
    """SHA-256 (hex) of the wanted segments' voxels."""
    digest = hashlib.sha256()
    for name in segments:
        digest.update(np.packbits(truth.mask(name)).tobytes())
    return digest.hexdigest()


def _chosen_cases(config: StudyConfig) -> list[LabelledCase]:
    cases = find_cases(config.data, config.exclude)
    chosen = [case for case in cases if not config.only or is_excluded(case.name, config.only)]
    if not chosen:
        raise InputError(f"No case in {config.data} is called {' or '.join(config.only)}.")
    return chosen


def _divide(cases: Sequence[LabelledCase], config: StudyConfig) -> StudyData:
    """Patients in a random order: test first, then validation, the rest trains. The same voxels are taken once."""
    ids: dict[str, str] = {}
    kept = []
    same = SamePatients()
    for case in cases:
        volume, truth = case.read()
        identity = scan_id(volume)
        same.join(identity, case.patient)
        if set(config.segment) <= set(truth.names) and identity not in ids.values():
            ids[case.name] = identity
            kept.append(case)
    kept = [replace(case, patient=same.of(ids[case.name])) for case in kept]
    patients = sorted({case.patient for case in kept})
    if len(patients) < _FEWEST_PATIENTS:
        raise InputError(
            f"A study needs at least {_FEWEST_PATIENTS} patients with labels of {', '.join(config.segment)};"
            f" {config.data} has {len(patients)}."
        )
    hidden = {case.patient for case in kept if is_excluded(case.name, config.hidden)}
    if config.hidden and not hidden:
        raise InputError(f"No labelled case in {config.data} is called {' or '.join(config.hidden)}.")
    shares = config.test_share + config.validation_share
    order = [patients[n] for n in np.random.default_rng(config.seed).permutation(len(patients))]
    order.sort(key=lambda patient: patient not in hidden)
    measured = len(hidden) or round(shares * len(order))
    test = max(1, round(config.test_share / shares * measured))
    train = max(test + 1, measured)
    if train >= len(order):
        raise InputError(f"Validation and test would leave none of {len(order)} patients to train on.")
    parts = order[train:], order[test:train], order[:test]
    return StudyData(tuple(kept), config.segment, ids, *(tuple(sorted(part)) for part in parts))


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
