"""One run of a study: fine-tune on some patients, measure on the test patients on their own grids.

Runs happen in processes of their own, each on one thread. A process reads the data once and keeps them; a finished run
is one JSON file, written whole or not at all, so a study can be killed at any moment and goes on where it was.
"""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from ..backbones import build_backbone
from ..datasets.data import IGNORE, UnlabelledVolumes
from ..datasets.input_contract import InputContract
from ..datasets.labelled import LabelledCase, LabelledScan, LabelledScans
from ..errors import InputError, ModelError
from ..events import never
from ..few_labels.annotated_samples import AnnotatedCase
from ..few_labels.finetuning import FinetuneSettings, Fitted, automatic, fit, predictor_of, step_seconds
from ..few_labels.segmenter import Segmenter
from ..learning.pretrain_config import PretrainConfig
from ..learning.transfer import load_encoder, read_encoder
from ..methods import Preset, find_method
from ..metrics import evaluate
from ..segmentation import Segment, Segmentation, default_color
from ..storage import atomic_path
from ..training import estimate, pretrain

__all__ = ["Arm", "Cost", "RunResult", "StudyBench", "StudyData", "in_worker", "runs_of", "start_worker"]

_PARENT_CHECK_S = 2.0
_PATIENTS_TO_MEASURE = 3
_VALIDATION_STRIDE = 3
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Arm:
    """What a fine-tuning starts from."""

    name: str
    """Of the method, or "scratch ..."."""
    backbone: str
    contract: InputContract
    control: str
    """Name of the arm it is compared with; of the control itself its own."""
    encoder: Path | None = None
    """Pre-trained weights; None for random ones."""


@dataclass(frozen=True, eq=False)
class StudyData:
    """Cases of a study, by patient."""

    cases: tuple[LabelledCase, ...]
    segments: tuple[str, ...]
    ids: Mapping[str, str]
    """`scan_id` by the case's name."""
    train: tuple[str, ...]
    """Patients; the labels of some of them are used."""
    validation: tuple[str, ...]
    test: tuple[str, ...]

    def labelled(self, seed: int, fraction: float) -> tuple[str, ...]:
        """Training patients whose labels are used; a smaller fraction's lie within a larger one's."""
        order = np.random.default_rng([0x57D7, seed]).permutation(len(self.train))
        count = max(1, round(fraction * len(self.train)))
        return tuple(sorted(self.train[n] for n in order[:count]))

    def names_of(self, patients: Sequence[str]) -> list[str]:
        """Names of these patients' cases."""
        return [case.name for case in self.cases if case.patient in patients]


@dataclass(frozen=True)
class RunResult:
    """A finished run."""

    arm: str
    fraction: float
    seed: int
    learning_rate: float
    patients: tuple[str, ...]
    """Whose labels were used."""
    validation_dice: float = 0.0
    """Mean over segments and validation patients; chooses the learning rate."""
    seconds: float = 0.0
    scores: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    """Patient -> segment -> dice, nsd, hd95_mm on the scan's own grid; empty where it only chose a learning rate."""

    @property
    def file(self) -> str:
        """Name of its result file."""
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", self.arm)
        return f"{name}-f{self.fraction:g}-s{self.seed}-lr{self.learning_rate:g}.json"


@dataclass(frozen=True)
class Cost:
    """Measured seconds of the parts of a run."""

    step: float
    """A training step."""
    scan: float
    """Prediction and measurement of a scan."""

    def run(self, steps: int, scans: int) -> float:
        """Seconds of so many training steps and predicted scans."""
        return steps * self.step + scans * self.scan


class StudyBench:
    """Runs the parts of a study on data that are read once.

    Args:
        data: who is in which part.
        cancelled: asked before every step.
    """

    def __init__(self, data: StudyData, cancelled: Callable[[], bool] = never) -> None:
        self.data = data
        self._cancelled = cancelled
        self._cases: tuple[LabelledCase, ...] | None = None
        self._prepared: dict[InputContract, LabelledScans] = {}

    def pretrain(self, config: PretrainConfig, preset: Preset) -> Path:
        """Pre-train on the training patients alone, or go on with it.

        Returns:
            The encoder file.
        """
        for _ in pretrain(config, self._cancelled, self._unlabelled(config, preset), preset):
            pass
        return config.out / "checkpoint.safetensors"

    def pretraining_seconds(self, config: PretrainConfig, preset: Preset) -> float:
        """What pre-training will take, from a measured step."""
        return estimate(config, self._unlabelled(config, preset), preset).seconds

    def run_cell(
        self,
        folder: Path,
        arm: Arm,
        fraction: float,
        seeds: int,
        settings: FinetuneSettings,
        learning_rates: Sequence[float],
    ) -> float:
        """All runs of an arm at a fraction; the first seed chooses the learning rate, by the validation patients.

        Args:
            folder: for the result files; runs that are there are not repeated.
            arm: what training starts from.
            fraction: of the training patients.
            seeds: number of them.
            settings: of fine-tuning; seed and learning rate are set here.
            learning_rates: to choose from.

        Returns:
            The one chosen.
        """
        tried, networks = {}, {}
        for rate in learning_rates:
            run = RunResult(arm.name, fraction, 0, rate, self.data.labelled(0, fraction))
            tried[rate], networks[rate] = self._fine_tuned(folder, arm, run, settings)
        best = max(tried, key=lambda rate: tried[rate].validation_dice)
        for seed in range(seeds):
            run, network = tried[best], networks[best]
            if seed > 0 or (not run.scores and network is None):
                run = RunResult(arm.name, fraction, seed, best, self.data.labelled(seed, fraction))
                run, network = self._fine_tuned(folder, arm, run, settings, again=seed == 0)
            if not run.scores and network is not None:
                self._test(folder, arm, run, network)
        return best

    def run_arm(
        self,
        folder: Path,
        arm: Arm,
        fractions: Sequence[float],
        seeds: int,
        settings: FinetuneSettings,
        learning_rates: Sequence[float],
    ) -> None:
        """All runs of an arm; it chooses its learning rate at the first fraction and keeps it. As `run_cell`."""
        best = self.run_cell(folder, arm, fractions[0], seeds, settings, learning_rates)
        for fraction in fractions[1:]:
            self.run_cell(folder, arm, fraction, seeds, settings, (best,))

    def cost_of(self, arm: Arm, settings: FinetuneSettings) -> Cost:
        """Measure a few training steps and the prediction of one scan.

        Raises:
            InputError: no validation patient shows a segment: nothing could choose a learning rate.
        """
        if not any(_sparse(scan).shown for scan in self._scans_of(arm.contract, self.data.validation)):
            raise InputError(
                f"No validation patient shows {' or '.join(self.data.segments)}, so that nothing can choose a learning"
                " rate; name others, or give more with --validation-share."
            )
        torch.manual_seed(0)
        network = Segmenter(build_backbone(arm.backbone, arm.contract.in_channels), len(self.data.segments))
        scans = self._scans_of(arm.contract, self.data.train[:_PATIENTS_TO_MEASURE])
        cases = [AnnotatedCase.of(scan) for scan in scans]
        full = automatic(settings, network, len(cases), pretrained=False)
        step = step_seconds(network, cases, arm.contract, self.data.segments, full)
        started = time.perf_counter()
        _score(network, scans[0], arm.contract, self.data.segments)
        return Cost(step, time.perf_counter() - started)

    def _fine_tuned(
        self, folder: Path, arm: Arm, run: RunResult, settings: FinetuneSettings, again: bool = False
    ) -> tuple[RunResult, Segmenter | None]:
        """Fine-tune, unless that is done and `again` is False; then there is no network."""
        path = folder / run.file
        if path.exists() and not again:
            found = _read(path)
            if found.scores or run.seed == 0:
                return found, None
        started = time.perf_counter()
        learn_from = [AnnotatedCase.of(scan) for scan in self._scans_of(arm.contract, run.patients)]
        measure_on = [_sparse(scan) for scan in self._scans_of(arm.contract, self.data.validation)]
        network, segments = _network(arm, len(self.data.segments), run.seed), self.data.segments
        chosen = replace(settings, seed=run.seed, learning_rate=run.learning_rate)
        full = automatic(chosen, network, len(learn_from), pretrained=arm.encoder is not None)
        state = Fitted()
        try:
            run_events = fit(
                network, learn_from, measure_on, arm.contract, segments, full,
                state=state, cancelled=self._cancelled,
            )  # fmt: skip
            for _ in run_events:
                pass
            dice = max(state.best_mean, 0.0)
        except ModelError:  # the loss diverged: that learning rate is the worst one
            dice = 0.0
        run = replace(run, validation_dice=dice, seconds=time.perf_counter() - started)
        _write(path, run)
        return run, network

    def _test(self, folder: Path, arm: Arm, run: RunResult, network: Segmenter) -> None:
        """Measure on the test patients and write the run with their scores."""
        started = time.perf_counter()
        of_patient: dict[str, list[dict[str, dict[str, float]]]] = {}
        for scan in self._scans_of(arm.contract, self.data.test):
            score = _score(network, scan, arm.contract, self.data.segments)
            of_patient.setdefault(scan.scan.patient, []).append(score)
        scores = {patient: _mean_scores(several) for patient, several in of_patient.items()}
        _write(
            folder / run.file,
            replace(run, scores=scores, seconds=run.seconds + time.perf_counter() - started),
        )

    def _unlabelled(self, config: PretrainConfig, preset: Preset) -> UnlabelledVolumes:
        """Images of the training patients; for a weakly supervised method also which slices show a segment."""
        scans = self._scans_of(preset.contract, self.data.train)
        volumes = UnlabelledVolumes([scan.scan for scan in scans], [scan.image for scan in scans])
        if find_method(config.method).info.supervision == "none":
            return volumes
        labels = [np.asarray(scan.labels[:]) for scan in scans]
        return volumes.with_presence([((v > 0) & (v != IGNORE)).any(axis=(1, 2)) for v in labels])

    def _scans_of(self, contract: InputContract, patients: Sequence[str]) -> list[LabelledScan]:
        """Scans of these patients on a contract's grid."""
        if self._cases is None:
            self._cases = tuple(case.in_memory() for case in self.data.cases)
        if contract not in self._prepared:
            self._prepared[contract] = LabelledScans.from_cases(self._cases, contract, self.data.segments)
        return [scan for scan in self._prepared[contract] if scan.scan.patient in patients]


def _sparse(scan: LabelledScan) -> AnnotatedCase:
    """A validation case on every third slice: enough to choose by."""
    case = AnnotatedCase.of(scan)
    return case.only_slices(case.vouched_slices[::_VALIDATION_STRIDE])


def runs_of(folder: Path) -> list[RunResult]:
    """Finished runs.

    Raises:
        ModelError: a file is not one of a study.
    """
    return [_read(path) for path in sorted(folder.glob("*.json"))]


def start_worker(data: StudyData, stop: Event) -> None:
    """Make this process one that works for a study: one thread, and it ends when the study's process does."""
    global _bench
    _bench = StudyBench(data, stop.is_set)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the study's own sets `stop`
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_CHECK_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


_bench: StudyBench | None = None
"""Of a process made by `start_worker`."""


def in_worker(task: Callable[[StudyBench], _Result]) -> _Result:
    """Do a part of the study in the process that `start_worker` made ready."""
    if _bench is None:
        raise RuntimeError("The process was not started by `start_worker`.")
    return task(_bench)


def _write(path: Path, run: RunResult) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(asdict(run)), encoding="utf-8")


def _read(path: Path) -> RunResult:
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return RunResult(**{**values, "patients": tuple(values["patients"])})
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"The study's result {path} is damaged; delete it and go on.") from error


def _network(arm: Arm, segments: int, seed: int) -> Segmenter:
    """Random weights of the seed, the same for every arm of a backbone; then the encoder's on top."""
    torch.manual_seed(seed)
    network = Segmenter(build_backbone(arm.backbone, arm.contract.in_channels), segments)
    if arm.encoder is not None:
        load_encoder(network.backbone, read_encoder(arm.encoder))
    return network


def _mean_scores(several: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Scores by segment of a patient with several scans; each scan that knows a segment counts once."""
    found: dict[str, dict[str, float]] = {}
    for segment in dict.fromkeys(name for scores in several for name in scores):
        own = [scores[segment] for scores in several if segment in scores]
        found[segment] = {name: float(np.mean([score[name] for score in own])) for name in own[0]}
    return found


def _score(
    network: Segmenter, scan: LabelledScan, contract: InputContract, segments: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Scores by segment on the scan's own grid, of the segments and voxels that the case knows."""
    _, truth, unknown = scan.case.read_with_unknown()
    found = np.zeros((network.head.out_channels, *scan.scan.shape_kji), np.float32)
    found[0] = 1.0
    image = np.asarray(scan.image[:])
    for slab in predictor_of(network.eval(), contract).slabs(image, scan.scan.stats):
        found[:, slab.first : slab.stop] = slab.probabilities
    native = scan.native.to_native(found[1:])
    background = 1.0 - native.sum(0)
    labels = np.concatenate([background[None], native]).argmax(0).astype(np.uint8)
    if unknown is not None:
        labels[unknown] = 0  # as in the truth
    named = tuple(Segment(name, n, default_color(n)) for n, name in enumerate(segments, start=1))
    predicted = Segmentation(labels, truth.ijk_to_ras, named, scan.scan.name)
    known = [name for name, knows in zip(segments, scan.known, strict=True) if knows]
    scores = evaluate(predicted, truth, segments=known)
    return {s.segment: {"dice": s.dice, "nsd": s.nsd, "hd95_mm": s.hd95_mm} for s in scores}
