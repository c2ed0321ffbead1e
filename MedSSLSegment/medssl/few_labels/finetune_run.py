"""A fine-tuning job: cases on disk, or given, to a model file in a run folder; resumable."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from ..backbones import BACKBONES
from ..cases import Case, CaseStore
from ..datasets.input_contract import InputContract
from ..datasets.labelled import LabelledCase, LabelledScans, find_cases
from ..errors import InputError, MedSSLError, ModelError
from ..events import Log, Progress, duration, never
from ..foundation.protocols import SliceTracker
from ..foundation.runtime import pick_device
from ..home import models_folder
from ..registry import DEFAULT_MODEL
from ..runs.run_folder import RunFolder, TrainingMetric, plain
from ..segmentation import Segment, default_color
from ..storage import require_writable
from ..volume import Volume, looks_like_ct
from .annotated_samples import AnnotatedCase, by_scan, hold_out
from .carried_labels import with_carried_labels
from .finetuning import FinetuneMetric, FinetuneSettings, Fitted, Preview, automatic, fit
from .footprint import memory_explained, require_memory, training_bytes
from .model_store import ModelStore, require_model_name
from .segmenter import ModelInfo, SegmentationModel, write_model
from .starting import Start, lineage
from .suitability import spacing_range
from .teaching import labelled_cases, taught_segments, teaching_cases, unchanged_cases
from .time_budget import CARRYING_SHARE, Pace, measured_pace

__all__ = ["FinetuneConfig", "finetune"]

_MAY_CHANGE = ("out", "data", "cases", "name", "models", "device", "save_every_minutes")
_DEFAULT_BACKBONE = "unet2d_16"
_SIZE = {2: (96, 96), 3: (64, 64, 64)}
_SPACING_MM = 2.0
_BRIGHT = 255.0
_Event = TypeVar("_Event")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(FinetuneSettings):
    """What to fine-tune on what; how, says `FinetuneSettings`."""

    out: Path
    """Run folder; a run that is there already goes on. The model is its checkpoint.safetensors."""
    data: Path | None = None
    """Folder of cases with labels: ct.nii.gz and label.nii.gz in a folder each, or images and labels."""
    cases: Path | None = None
    """Case store to learn from, in place of a data folder; see `medssl cases`."""
    segments: tuple[str, ...] = ()
    """Names of the segments to find; with a case store, automatic: all that are vouched for."""
    name: str = ""
    """Keep the model under this name in the model store when it is done, as its next version where the name is taken;
    see `medssl models`."""
    models: Path | None = None
    """Model store for `name` and `from_model`; automatic: the usual one."""
    encoder: str | None = None
    """Pre-trained encoder to start from: a file, the run folder of `medssl pretrain`, or a method whose encoder is
    shipped; random weights without one."""
    from_model: str | None = None
    """Earlier model of your own to start from (--from): its name, NAME:VERSION, a file or a run folder. Segments that
    are not taught any more are no longer found."""
    backbone: str | None = None
    """Network; automatic: the encoder's or the earlier model's, or unet2d_16."""
    slices: Literal["all", "annotated"] = "all"
    """Whether all slices of a case are vouched for, or only those with something annotated."""
    carry: bool = True
    """Carry annotated slices to those nobody vouches for, with the small tracker, and learn from these as well."""
    validation: tuple[str, ...] = ()
    """Cases to measure on and never to learn from, by id, name or patient, or by file or folder in a data folder;
    automatic: one patient in five, or some slices where there are fewer than three, which teach too in the closing
    steps."""
    size: tuple[int, ...] = ()
    """Rows and columns of a sample, or slices, rows and columns in 3D; automatic: the encoder's, or 96 (3D: 64)."""
    spacing: tuple[float, ...] = ()
    """Grid in mm along K, J, I, 0 for a scan's own; automatic: the encoder's, or 2 mm in the plane (3D: all ways)."""
    neighbours: int | None = None
    """2D: slices above and below that join as channels (2.5D); automatic: the encoder's, or 0."""
    exclude: tuple[str, ...] = ()
    """Files or folders below the data folder to leave out; * stands for anything."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    save_every_minutes: float = 5.0
    """Between two saves; so much is lost at most when the machine goes down."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.save_every_minutes > 0:
            raise InputError(f"The minutes between saves must be above 0, not {self.save_every_minutes:g}.")
        if (self.data is None) == (self.cases is None):
            raise InputError("Give either a data folder or a case store to learn from.")
        if self.data is not None and not self.segments:
            raise InputError("Name the segments to find in the data folder.")
        if self.encoder is not None and self.from_model is not None:
            raise InputError("Start from an encoder or from an earlier model, not from both.")
        if self.name:
            require_model_name(self.name)
        for field in ("encoder", "from_model"):
            start = getattr(self, field)
            if start is not None and _is_path(Path(start)):  # the run may go on from another folder
                object.__setattr__(self, field, str(Path(start).absolute()))

    @property
    def budget_s(self) -> float | None:
        """Seconds that the whole run may take; None without a budget, or where the number of steps is given."""
        return None if self.minutes is None or self.steps is not None else 60.0 * self.minutes

    @property
    def settings(self) -> FinetuneSettings:
        """The part that says how."""
        return FinetuneSettings(**{f.name: getattr(self, f.name) for f in fields(FinetuneSettings)})


def _is_path(start: Path) -> bool:
    """Whether it is a file or a run folder; a name may have a dot in it, and any folder beside it may be called so."""
    return start.suffix == ".safetensors" or start.is_file() or (start / "run.json").is_file()


def finetune(
    config: FinetuneConfig,
    cancelled: Callable[[], bool] = never,
    cases: Sequence[LabelledCase] | None = None,
) -> Iterator[Progress | Log | TrainingMetric | Preview]:
    """Train a model, or go on where the run in `config.out` was left.

    Args:
        config: cases, run folder and settings.
        cancelled: asked before each step.
        cases: in place of those in `config.data`, e.g. of a case store.

    Yields:
        Progress, Log, TrainingMetric and Preview as they come.

    Raises:
        InputError: no case, nothing annotated, an unknown backbone, segment or model, a case that has changed since
            the run began, or the run is another's.
        ModelError: the encoder or earlier model does not fit, or the run's state is damaged.
        NotEnoughMemory: it does not fit; the message has the figures.
        StorageError: the models' folder cannot be written, at once; no space, and what was saved last stays.
        Cancelled: `cancelled` or `medssl runs stop` said so; the run can be resumed.
    """
    damaged: list[Log] = []
    stored = [] if config.cases is None else CaseStore(config.cases).cases(damaged.append)
    if not (
        config.out / "run.json"
    ).is_file():  # one that goes on needs all it began with, and says which is missing
        stored = _with_volumes(stored, damaged.append)
    damaged = [Log(f"Left out: {log.text}") for log in damaged]
    yield from damaged  # before anything is refused because they are missing
    config = _with_segments(config, stored)
    if config.name:
        require_writable(_model_store(config).folder)
    with ExitStack() as until_the_end:
        run = RunFolder.create_or_open(config.out, "finetune", plain(config), _MAY_CHANGE)
        until_the_end.enter_context(run.occupied())
        for log in damaged:
            run.record(log)
        for event in _train(config, run, lambda: cancelled() or run.stop_asked, cases, stored):
            if not isinstance(event, Preview):
                run.record(event)
            yield event
        if config.name:
            kept = Log(_keep_model(config, run))
            run.append_event(kept)
            yield kept


def _with_volumes(stored: Sequence[Case], on_problem: Callable[[Log], None]) -> list[Case]:
    """The cases whose volumes are where they were."""
    there = []
    for case in stored:
        try:
            case.require_volume()
        except InputError as error:
            on_problem(Log(str(error)))
        else:
            there.append(case)
    return there


def _with_segments(config: FinetuneConfig, stored: Sequence[Case]) -> FinetuneConfig:
    """Take all segments that the cases of a store teach, where none are named; a run that goes on keeps its own."""
    if config.cases is None or config.segments:
        return config
    begun = RunFolder.open(config.out).config if (config.out / "run.json").is_file() else {}
    return replace(config, segments=tuple(begun.get("segments") or taught_segments(stored)))


def _start(config: FinetuneConfig) -> Start:
    return Start.read(config.encoder, config.from_model, _model_store(config).folder)


def _keep_model(config: FinetuneConfig, run: RunFolder) -> str:
    """Put the model into the store, unless that was done before the run was killed or given again."""
    store = _model_store(config)
    kept = store.twin(run.checkpoint, config.name)
    if kept is not None:
        return f"It is kept as {kept.id} already."
    version = store.add(run.checkpoint, config.name)
    return f"Kept as {version.id}, which '{version.name}' now stands for."


def _model_store(config: FinetuneConfig) -> ModelStore:
    return ModelStore(config.models or models_folder())


def _material(
    config: FinetuneConfig,
    given: Sequence[LabelledCase] | None,
    stored: Sequence[Case],
    saved: Mapping[str, Any] | None,
) -> tuple[Sequence[LabelledCase], dict[str, str]]:
    """Cases to learn from and, from a case store, the fingerprint of each by its id.

    A run that goes on learns from the cases it began with; those that have joined the store since wait.
    """
    if given is not None:
        return given, {}
    if config.data is not None:
        return find_cases(config.data, config.exclude), {}
    chosen = teaching_cases(stored, config.segments)
    if saved is not None:
        chosen = unchanged_cases(chosen, saved["cases"])
    return labelled_cases(chosen, config.segments), {case.id: case.fingerprint for case in chosen}


def _train(
    config: FinetuneConfig,
    run: RunFolder,
    cancelled: Callable[[], bool],
    cases: Sequence[LabelledCase] | None,
    stored: Sequence[Case],
) -> Iterator[Progress | Log | TrainingMetric | Preview]:
    begun, device = time.monotonic(), pick_device(config.device)
    saved = run.load_resume()
    cases, fingerprints = _material(config, cases, stored, saved)
    start = Start() if saved else _start(config)  # a run that goes on has its own weights
    info = _saved_info(run, saved) if saved else _model_info(config, start, cases)
    said: list[Log] = []
    with run.stopped_while("preparing the cases"):
        scans = LabelledScans.from_cases(
            cases, info.contract, config.segments, slices=config.slices, cancelled=cancelled,
            on_event=lambda event: said.append(event) if isinstance(event, Log) else None,
        )  # fmt: skip
    yield from said
    annotated = [AnnotatedCase.of(scan) for scan in scans]
    content = _content(annotated)
    patient_of = {case.id: case.patient for case in stored}
    validation = [patient_of.get(word, word) for word in config.validation]
    learn_from, measure_on, words = hold_out(annotated, config.seed, validation)
    learnt = by_scan(learn_from)
    # A case that a person names to measure on is kept apart for good.
    joins = bool(measure_on) and not config.validation and config.closing > 0
    at_last = ", and learnt from too in the last steps" * joins
    yield Log(f"{len(learnt)} case{'s' * (len(learnt) > 1)} to learn from; {words}{at_last}.")
    torch.manual_seed(config.seed)
    model, pace = SegmentationModel.build(info), Pace()
    if saved is None:
        yield from start.put_into(model)
        yield from lineage(info, start, measure_on)
        quick = replace(config.settings, steps=3)
        quick = automatic(quick, model.network, len(learnt), start.is_trained)
        _require_memory(model, quick, device)
        with memory_explained(quick):
            pace = measured_pace(
                model.network, learn_from, measure_on, info.contract, info.names, quick, device
            )
    elif saved["content"] != content:
        raise InputError(
            f"The cases have changed since the run {run.path} began; put them back to go on, or give another"
            " folder to start again."
        )
    wanted = replace(config.settings, closing=config.closing if joins else 0.0)
    wanted = automatic(wanted, model.network, len(learnt), start.is_trained)
    carried = saved.get("carried") if saved else None
    join: list[AnnotatedCase] = [*learn_from, *measure_on] if joins else []
    teachers = [*learn_from, *(case for case in join if case.scan.id not in learnt)]
    with run.stopped_while("carrying annotated slices"):
        for told in _with_carried(config, teachers, measure_on, carried, begun, cancelled):
            if isinstance(told, list):
                new = told[len(teachers) :]
                carried = [case.scan.id for case in new]
                learn_from = [*learn_from, *(case for case in new if case.scan.id in learnt)]
                join += new if joins else []
                continue
            yield told
            if saved is None and isinstance(told, Progress) and told.done == 1 < told.total:
                yield Log(_forecast(config, told.seconds_left or 0.0, pace.seconds(wanted)))

    if saved is None:
        settings, state = wanted, Fitted()
        if config.budget_s is not None:
            settings = pace.within(wanted, config.budget_s - (time.monotonic() - begun))
        info = replace(
            info,
            cases=tuple(sorted(fingerprints.values() or learnt)),
            scans=tuple(sorted(by_scan(join) if joins else learnt)),
            spacing_kji_mm=spacing_range(case.scan.grid for case in learn_from if case.scan.grid),
            settings=asdict(settings),
        )
        yield Log(f"{settings.steps} steps will take about {duration(pace.seconds(settings))}.")
    else:
        settings = FinetuneSettings(**{"closing": 0.0, **saved["settings"]})  # of an earlier version: none
        state = Fitted(**saved["state"])
        run.forget_after(state.step)
        yield Log(f"Going on after step {state.step} of {settings.steps}.")
        _require_memory(model, settings, device)

    def keep(state: Fitted) -> None:
        shallow = {f.name: getattr(state, f.name) for f in fields(Fitted)}
        run.save_resume(
            {
                "settings": asdict(settings),
                "state": shallow,
                "cases": fingerprints,
                "content": content,
                "carried": carried,
                "info": json.dumps(info.to_json()),
            }
        )

    def write_best() -> None:
        measured = replace(info, dice=state.best_dice or {})
        write_model(run.checkpoint, SegmentationModel(model.network, measured))

    measured_from, steps, measured_at = time.monotonic(), 0, state.step
    fitting = fit(
        model.network, learn_from, measure_on, info.contract, info.names, settings,
        join=join, state=state, device=device, on_checkpoint=keep, save_every_s=60.0 * config.save_every_minutes,
        cancelled=cancelled,
    )  # fmt: skip
    for event in _explained(fitting, settings):
        if isinstance(event, FinetuneMetric):
            if event.best:  # so that it can be looked at, and kept if the run is stopped
                write_best()
            samples = (settings.batch or 1) * steps
            yield _metric(event, settings, samples / max(time.monotonic() - measured_from, 1e-9))
            measured_at, measured_from, steps = event.step, time.monotonic(), 0
            continue
        if isinstance(event, Preview):
            run.save_picture(measured_at, _picture(event, measure_on, info))
        else:
            steps += 1
        yield event
    write_best()  # the network is the best one again
    yield Log(_result(state))


def _with_carried(
    config: FinetuneConfig,
    learn_from: Sequence[AnnotatedCase],
    measure_on: Sequence[AnnotatedCase],
    carried: Sequence[str] | None,
    begun: float,
    cancelled: Callable[[], bool],
) -> Iterator[Progress | Log | list[AnnotatedCase]]:
    """Carry labels where that is wanted: in a run that goes on, in the same scans as when it began."""
    if not config.carry:
        return
    seconds = math.inf
    if carried is None and config.budget_s is not None:
        seconds = CARRYING_SHARE * (config.budget_s - (time.monotonic() - begun))
    yield from with_carried_labels(
        learn_from, measure_on, lambda: _tracker(config), cancelled, only=carried, seconds=seconds
    )


def _forecast(config: FinetuneConfig, carrying: float, training: float) -> str:
    """What is ahead once the pace of carrying is known."""
    if config.budget_s is not None:
        return f"Carrying annotated slices will take about {duration(carrying)} more of the {config.minutes:g} min."
    return (
        f"Carrying annotated slices will take about {duration(carrying)} more, and the training then about"
        f" {duration(training)}."
    )


def _tracker(config: FinetuneConfig) -> SliceTracker:
    from ..foundation import load_tracker

    return load_tracker(DEFAULT_MODEL, config.device)


def _saved_info(run: RunFolder, saved: Mapping[str, Any]) -> ModelInfo:
    try:
        return ModelInfo.from_json(json.loads(saved["info"]))
    except KeyError as error:
        raise ModelError(
            f"The training state in {run.path} is of an earlier version of the program; start again in another folder."
        ) from error


def _require_memory(model: SegmentationModel, settings: FinetuneSettings, device: torch.device) -> None:
    contract = model.info.contract
    need = training_bytes(model.network, settings, contract.size, contract.in_channels, device)
    require_memory(need, settings, device)


def _explained(events: Iterator[_Event], settings: FinetuneSettings) -> Iterator[_Event]:
    with memory_explained(settings):
        yield from events


def _content(cases: Sequence[AnnotatedCase]) -> str:
    """SHA-256 (hex) of what there is to learn from: images, labels and whose they are."""
    digest = sha256()
    for case in cases:
        digest.update(f"{case.scan.id} {case.scan.patient} {case.known.tolist()}".encode())
        digest.update(np.ascontiguousarray(case.labels).data)
    return digest.hexdigest()


def _model_info(config: FinetuneConfig, start: Start, cases: Sequence[LabelledCase]) -> ModelInfo:
    backbone = config.backbone or start.backbone or _DEFAULT_BACKBONE
    if backbone not in BACKBONES:
        raise InputError(f"There is no backbone '{backbone}'; choose one of {', '.join(BACKBONES)}.")
    contract = start.contract or _default_contract(BACKBONES[backbone].spatial_dims, cases)
    changes: dict[str, Any] = {}
    if config.size:
        changes["size"] = config.size
    if config.spacing:
        changes["spacing_kji_mm"] = tuple(step or None for step in config.spacing)
    if config.neighbours is not None:
        changes["neighbours"] = config.neighbours
    colors = {name: color for case in cases for name, color in case.colors.items()}
    segments = [
        Segment(name, n, colors.get(name, default_color(n)))
        for n, name in enumerate(config.segments, start=1)
    ]
    encoder, base = start.encoder, start.base
    return ModelInfo(
        backbone=backbone,
        contract=replace(contract, **changes),
        segments=tuple(segments),
        encoder={"method": encoder.method, "step": encoder.step, "data": list(encoder.data)}
        if encoder
        else {},
        base={"model": base.name, "scans": list(base.scans)} if base else {},
        follows=_model_store(config).in_use(config.name) if config.name else "",
    )


def _default_contract(dims: Literal[2, 3], cases: Sequence[LabelledCase]) -> InputContract:
    """For random weights: a CT window that shows soft tissue and bone, or an MR's own statistics."""
    volume = _first_volume(cases)
    spacing = (_SPACING_MM if dims == 3 else None, _SPACING_MM, _SPACING_MM)
    common: dict[str, Any] = {"spatial_dims": dims, "size": _SIZE[dims], "spacing_kji_mm": spacing}
    if not looks_like_ct(volume):
        return InputContract(**common, scale="volume", modality="MR")
    return InputContract(**common, window_hu=(-200.0, 400.0), mean_hu=100.0, std_hu=200.0)


def _first_volume(cases: Sequence[LabelledCase]) -> Volume:
    """Of the first case that can be read."""
    problems: list[MedSSLError] = []
    for case in cases:
        try:
            return case.read()[0]
        except MedSSLError as error:  # preparing the cases says which are left out
            problems.append(error)
    raise problems[0] if problems else InputError("There is no case to learn from.")


def _metric(event: FinetuneMetric, settings: FinetuneSettings, samples_per_second: float) -> TrainingMetric:
    values = {"loss": event.loss, **{f"dice {name}": value for name, value in event.dice.items()}}
    if event.dice:
        values["dice"] = event.mean_dice
    return TrainingMetric(event.step, event.step, values, settings.learning_rate or 0.0, samples_per_second)


def _picture(preview: Preview, measure_on: Sequence[AnnotatedCase], info: ModelInfo) -> NDArray[np.uint8]:
    """(J, I, 3) the slice, front up, with the segments' colours over it."""
    case = next(case for case in measure_on if case.scan.name == preview.scan)
    image = case.image[preview.k].astype(np.float32)
    low, high = np.percentile(image, (2.0, 99.0))
    grey = np.clip((image - low) / max(high - low, 1.0), 0.0, 1.0)
    picture = np.repeat(grey[..., None], 3, axis=-1)
    for label, segment in enumerate(info.segments, start=1):
        found = preview.labels == label
        picture[found] = 0.5 * picture[found] + 0.5 * np.array(segment.color_rgb, np.float32)
    return np.ascontiguousarray((picture[::-1, ::-1] * _BRIGHT).astype(np.uint8))


def _result(state: Fitted) -> str:
    if not state.best_dice:
        return f"Done after {state.step} steps; nothing was held out to measure on."
    scores = ", ".join(f"{name} {100 * value:.1f} %" for name, value in state.best_dice.items())
    everything = f" {state.closing_step} more steps were learnt from everything." * (state.closing_step > 0)
    return f"Best after {state.best_step} of {state.step} steps: Dice {scores}.{everything}"
