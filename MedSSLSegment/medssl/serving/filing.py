"""What the worker does with folders: case stores, training runs, models. Needs no device, and waits for none.

Each request is answered by plain facts for display, as `medssl.serving.facts` makes them. Nothing here imports torch
before a request needs it: for the headers of models, and the lists of methods and networks.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..cases import CaseStore
from ..errors import InputError, ModelError
from ..events import Log
from ..home import cases_folder, encoders_folder, models_folder, runs_folder
from ..messages import (
    AddCase,
    AdoptRun,
    DeleteModel,
    EstimateRun,
    ExportModel,
    ImportModel,
    ListCases,
    ListEncoders,
    ListMethods,
    ListModels,
    ListRuns,
    ReadRun,
    RemoveCase,
    RestoreCase,
    ResumeRun,
    StartRun,
    StopRun,
    UpdateCase,
    UseModel,
)
from ..registry import bundled_folder, known_models, load_encoders
from ..runs.run_folder import RunFolder, list_runs
from ..segmentation import Segment, Segmentation
from ..volume import Volume
from ..wire.codec import PackedLabels, decode_labels
from .facts import (
    case_facts,
    encoder_facts,
    entry_facts,
    method_facts,
    model_facts,
    run_facts,
    version_facts,
)

if TYPE_CHECKING:
    from ..few_labels.model_store import ModelStore

__all__ = ["FILING_REQUESTS", "WAITING_REQUESTS", "Desk", "Facts", "file_request"]

Facts = dict[str, Any]
"""Plain values by name, and now and then an array."""

_PICTURE_PREFIX = "step-"
_ENCODER_FORMAT = "medssl-encoder"


@dataclass(frozen=True)
class Desk:
    """What filing needs of the worker."""

    volume_of: Callable[[str], Volume]
    """Gives the volume of a content hash."""
    cancelled: Callable[[], bool] = lambda: False
    """Asked where something is waited for."""


def file_request(request: Any, desk: Desk) -> Facts:
    """Do what one of `FILING_REQUESTS` asks, and say what came of it.

    Raises:
        MedSSLError: it could not be done; nothing is left half done.
    """
    return _ANSWERS[type(request)](request, desk)


# ------------------------------------------------------------------------------------------------------------- cases


def _list_cases(request: ListCases, desk: Desk) -> Facts:
    problems: list[Log] = []
    store = _case_store(request.store)
    cases = [case_facts(case) for case in store.cases(problems.append)]
    return {"store": str(store.folder), "cases": cases, "problems": [log.text for log in problems]}


def _add_case(request: AddCase, desk: Desk) -> Facts:
    volume = desk.volume_of(request.volume)
    annotation = _annotation(request.labels, request.segments, volume.ijk_to_ras)
    case = _case_store(request.store).add(
        volume, annotation, request.vouched, name=request.name, patient=request.patient, codes=request.codes
    )
    return {"case": case_facts(case)}


def _update_case(request: UpdateCase, desk: Desk) -> Facts:
    store = _case_store(request.store)
    affine = store.case(request.case).segmentation().ijk_to_ras
    annotation = _annotation(request.labels, request.segments, affine)
    case = store.update(request.case, annotation, request.vouched, request.what, keep_others=True)
    return {"case": case_facts(case)}


def _remove_case(request: RemoveCase, desk: Desk) -> Facts:
    return {"removed": _case_store(request.store).remove(request.case).name}


def _restore_case(request: RestoreCase, desk: Desk) -> Facts:
    return {"case": case_facts(_case_store(request.store).restore(request.removed))}


def _case_store(folder: str) -> CaseStore:
    return CaseStore(folder or cases_folder())


def _annotation(
    labels: PackedLabels, segments: Iterable[Segment], ijk_to_ras: NDArray[np.float64]
) -> Segmentation:
    return Segmentation(decode_labels(labels), ijk_to_ras, tuple(segments))


# -------------------------------------------------------------------------------------------------------------- runs


def _start_run(request: StartRun, desk: Desk) -> Facts:
    from ..runs.detached import start_detached

    settings = dict(request.settings)
    if request.kind == "finetune" and not (settings.get("data") or settings.get("cases")):
        settings["cases"] = str(cases_folder())
    settings["out"] = str(settings.get("out") or _new_run(request.kind))
    return {"run": run_facts(start_detached(request.kind, settings, cancelled=desk.cancelled))}


def _estimate_run(request: EstimateRun, desk: Desk) -> Facts:
    from ..runs.estimating import estimate_apart

    return {"estimate": estimate_apart(request.settings, cancelled=desk.cancelled)}


def _new_run(kind: str) -> Path:
    """A folder that does not exist: the day and time, and two letters in case of two in a second."""
    return runs_folder() / f"{kind}-{time.strftime('%Y-%m-%d-%H%M%S')}-{secrets.token_hex(1)}"


def _list_runs(request: ListRuns, desk: Desk) -> Facts:
    folder = Path(request.folder or runs_folder())
    runs = sorted(list_runs(folder), key=lambda run: run.created, reverse=True)
    return {"folder": str(folder), "runs": [run_facts(run) for run in runs]}


def _read_run(request: ReadRun, desk: Desk) -> Facts:
    run = RunFolder.open(request.run)
    facts = run_facts(run)  # before the events, so that none is missed at the end
    events = run.events()
    first = request.after_event if request.after_event <= len(events) else 0  # a resumed run takes some back
    new = [{"type": "log" if isinstance(e, Log) else "metric", **asdict(e)} for e in events[first:]]
    return {"run": facts, "first_event": first, "events": new, **_new_picture(run, request.after_picture)}


def _new_picture(run: RunFolder, after_step: int) -> Facts:
    """The newest picture, if it is of a later step."""
    from PIL import Image

    pictures = run.pictures()
    step = int(pictures[-1].stem.removeprefix(_PICTURE_PREFIX)) if pictures else -1
    if step <= after_step:
        return {"picture": None, "picture_step": after_step}
    with Image.open(pictures[-1]) as picture:
        return {"picture": np.asarray(picture.convert("RGB")), "picture_step": step}


def _stop_run(request: StopRun, desk: Desk) -> Facts:
    run = RunFolder.open(request.run)
    if run.status.state != "running":
        raise InputError(f"The run {run.path} is not running; its state is '{run.status.state}'.")
    run.ask_to_stop()
    return {"run": run_facts(run)}


def _resume_run(request: ResumeRun, desk: Desk) -> Facts:
    from ..runs.detached import resume_detached

    return {"run": run_facts(resume_detached(request.run, cancelled=desk.cancelled))}


def _adopt_run(request: AdoptRun, desk: Desk) -> Facts:
    run = RunFolder.open(request.run)
    if not run.checkpoint.is_file():
        raise InputError(f"The run {run.path} has not made a model yet; wait until it is done, or resume it.")
    return {"version": version_facts(_model_store(request.store).add(run.checkpoint, request.name))}


# ------------------------------------------------------------------------------------------------------------ models


def _list_models(request: ListModels, desk: Desk) -> Facts:
    problems: list[Log] = []
    store = _model_store(request.store)
    return {
        "store": str(store.folder),
        "models": [model_facts(model) for model in store.models(problems.append)],
        "promptable": [entry_facts(entry) for entry in known_models()],
        "problems": [log.text for log in problems],
    }


def _use_model(request: UseModel, desk: Desk) -> Facts:
    return {"version": version_facts(_model_store(request.store).use(request.model))}


def _delete_model(request: DeleteModel, desk: Desk) -> Facts:
    _model_store(request.store).delete(request.model)
    return {}


def _export_model(request: ExportModel, desk: Desk) -> Facts:
    _model_store(request.store).export(request.model, request.path)
    return {"path": str(Path(request.path).absolute())}


def _import_model(request: ImportModel, desk: Desk) -> Facts:
    return {"version": version_facts(_model_store(request.store).add(request.path, request.name))}


def _model_store(folder: str) -> ModelStore:
    from ..few_labels.model_store import ModelStore

    return ModelStore(folder or models_folder())


# ----------------------------------------------------------------------------------------------- encoders and methods


def _list_encoders(request: ListEncoders, desk: Desk) -> Facts:
    from ..checkpoints import read_header

    shipped = [bundled_folder() / entry.file for entry in load_encoders()]
    own = sorted(Path(request.folder or encoders_folder()).glob("*.safetensors"))
    files = [*(path for path in shipped if path.is_file()), *own]
    runs = list_runs(request.runs or runs_folder())
    files += [run.checkpoint for run in runs if run.kind == "pretrain" and run.checkpoint.is_file()]
    problems: list[str] = []
    encoders = []
    for path in files:
        try:
            header = read_header(path)
            if header.get("format") == _ENCODER_FORMAT:
                encoders.append(encoder_facts(path, header))
        except ModelError as error:
            problems.append(str(error))
        except KeyError as error:
            problems.append(f"The header of the encoder file {path} is incomplete ({error}); get it again.")
    return {"encoders": encoders, "problems": problems}


def _list_methods(request: ListMethods, desk: Desk) -> Facts:
    from ..backbones import BACKBONES
    from ..methods import METHODS

    backbones = [
        {"name": name, "title": spec.title, "spatial_dims": spec.spatial_dims}
        for name, spec in BACKBONES.items()
    ]
    return {
        "methods": [method_facts(name, method) for name, method in METHODS.items()],
        "backbones": backbones,
    }


_ANSWERS: dict[type, Callable[[Any, Desk], Facts]] = {
    ListCases: _list_cases,
    AddCase: _add_case,
    UpdateCase: _update_case,
    RemoveCase: _remove_case,
    RestoreCase: _restore_case,
    StartRun: _start_run,
    EstimateRun: _estimate_run,
    ListRuns: _list_runs,
    ReadRun: _read_run,
    StopRun: _stop_run,
    ResumeRun: _resume_run,
    AdoptRun: _adopt_run,
    ListModels: _list_models,
    UseModel: _use_model,
    DeleteModel: _delete_model,
    ExportModel: _export_model,
    ImportModel: _import_model,
    ListEncoders: _list_encoders,
    ListMethods: _list_methods,
}
FILING_REQUESTS = tuple(_ANSWERS)
"""Types of the requests that are answered here."""

WAITING_REQUESTS = (StartRun, ResumeRun, EstimateRun)
"""Those of them that wait for another program, for seconds or minutes: whoever serves them keeps others waiting."""
