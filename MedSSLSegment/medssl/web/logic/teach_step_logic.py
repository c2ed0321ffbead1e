"""Step 5: cases, runs, models and encoders of the worker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trame_server import Server

from ...scene.teaching import Curve, Proposal
from ..folders import Folders
from ..ui.parts import Choice
from ..ui.teach_step_ui import TeachStepState, TeachStepUI
from ..work import Work
from .section import SectionLogic, kept
from .status_logic import time_left_text

__all__ = ["TeachStepLogic"]

_ENDED = {
    "done": "Done. Keep model makes it a version that step 4 can use.",
    "encoder": "Done. Its encoder can be chosen under Start from.",
    "stopped": "Stopped. Resume goes on where it was.",
    "lost": "The run has ended without a word. Resume goes on from what it had saved.",
}
"""By the state of a run; a pre-training that is done has made an encoder."""
_PRESETS = ("auto", "cpu", "gpu", "paper")


class TeachStepLogic(SectionLogic[TeachStepState]):
    """Teaching.

    Args:
        server: trame's.
        work: session and desks.
        folders: where scans to pre-train on may lie.
    """

    def __init__(self, server: Server, work: Work, folders: Folders) -> None:
        super().__init__(server, work, TeachStepState)
        self._folders = folders
        self._desk = work.teach
        self._proposal: Proposal | None = None
        self.data.presets = [Choice(preset, preset) for preset in _PRESETS]
        self.bind_changes({self.name.run: self._on_run})

    def set_ui(self, ui: TeachStepUI) -> None:
        """Listen to the widgets."""
        ui.use_as_case_clicked.connect(self.propose)
        ui.case_confirmed.connect(self.keep_case)
        ui.remove_case_clicked.connect(lambda case: self._do(lambda: self._desk.remove_case(case)))
        ui.finetune_clicked.connect(self.finetune)
        ui.stop_clicked.connect(lambda: self._do(self._desk.stop))
        ui.resume_clicked.connect(lambda: self._do(self._desk.resume))
        ui.adopt_clicked.connect(lambda: self._do(lambda: self._desk.adopt(self.data.model_name.strip())))
        ui.use_version_clicked.connect(lambda: self._do(lambda: self._desk.use(self.data.version)))
        ui.estimate_clicked.connect(lambda: self._do(lambda: self._desk.ask_estimate(self._pretraining())))
        ui.pretrain_clicked.connect(lambda: self._do(lambda: self._desk.pretrain(self._pretraining())))

    def refresh(self) -> None:
        """Ask the worker what there is."""
        self.work.attempt(self._desk.refresh)

    def propose(self) -> None:
        """Show what would be vouched for."""
        self.work.attempt(self._propose)

    def keep_case(self) -> None:
        """Put the volume into the case store."""
        self.data.is_proposal_shown = False
        proposal = self._proposal
        if proposal is not None:
            self._do(lambda: self._desk.add_case(proposal))

    def finetune(self) -> None:
        """Begin to fine-tune on the cases."""
        settings = {"minutes": self.data.minutes, "encoder": self.data.encoder}
        self._do(lambda: self._desk.finetune({name: value for name, value in settings.items() if value}))

    def _pretraining(self) -> dict[str, Any]:
        return {
            "method": self.data.method,
            "data": str(self._folders.resolve_folder(self.data.data_folder)),
            "preset": self.data.preset,
            "minutes": self.data.pretrain_minutes,
        }

    def show(self) -> None:
        """Show what the desk knows."""
        data, desk = self.data, self._desk
        data.cases = [Choice(case["summary"], case["id"]) for case in desk.cases]
        encoders = [Choice(f"{e['name']} ({e['method']})", e["path"]) for e in desk.encoders]
        if encoders and len(data.encoders) < 2:  # they have just been listed: begin with one, as advised
            data.encoder = desk.best_encoder
        data.encoders = [*encoders, Choice("Random weights", "")]
        followed = [] if desk.run is None else [desk.run]
        runs = {run["path"]: run for run in [*desk.runs, *followed]}
        data.runs = [Choice(f"{run['name']}: {run['state']}", path) for path, run in runs.items()]
        data.versions = [Choice(v["id"], v["id"]) for model in desk.models for v in model["versions"]]
        data.version = kept(data.version, data.versions)
        data.methods = [Choice(method["title"], method["name"]) for method in desk.methods]
        data.method = kept(data.method, data.methods)
        data.advice = next((m["advice"] for m in desk.methods if m["name"] == data.method), "")
        data.message = _message(desk.run, desk.message)
        data.estimate, data.is_estimating = desk.estimate, desk.is_estimating
        self._show_run()

    def _show_run(self) -> None:
        data, run = self.data, self._desk.run
        data.run = "" if run is None else run["path"]
        curve = self._desk.curve("loss" if run is not None and run["kind"] == "pretrain" else "dice")
        data.curve.points, data.curve.label = _points(curve), _label(curve)
        data.can_stop = run is not None and run["state"] == "running"
        data.can_resume = run is not None and run["state"] in ("stopped", "failed", "lost")
        data.can_adopt = run is not None and run["kind"] == "finetune" and run["has_result"]

    def _propose(self) -> None:
        self._proposal = self._desk.propose()
        self.data.model_name = self.data.model_name or self._proposal.segments[0].name
        self.data.proposal = self._proposal.text()
        self.data.is_proposal_shown = True

    def _on_run(self, path: str) -> None:
        if path and (self._desk.run is None or self._desk.run["path"] != path):
            self._do(lambda: self._desk.follow(path))

    def _do(self, act: Callable[[], Any]) -> None:
        self.work.attempt(act)
        self.show()


def _message(run: dict[str, Any] | None, said: str) -> str:
    """How far a run is, and what was said last; that a run has ended is said as long as nothing else is."""
    is_running = run is not None and run["state"] == "running"
    progress = _progress_text(run)
    return " ".join(filter(None, (progress, said))) if is_running else said or progress


def _progress_text(run: dict[str, Any] | None) -> str:
    """How far a run is; empty where there is none, or where it says more itself."""
    if run is None:
        return ""
    if run["state"] != "running":
        has_encoder = run["state"] == "done" and run["kind"] == "pretrain"
        return _ENDED.get("encoder" if has_encoder else run["state"], "") if not run["message"] else ""
    progress = run["progress"] or {}
    if not progress:
        return "Running."
    count, text = f"{progress['done']} of {progress['total']}", progress.get("text") or ""
    what = text if count in text else f"{text}, {count}" if text else f"step {count}"
    return f"Running: {what}. {time_left_text(progress.get('seconds_left'))}".rstrip()


def _points(curve: Curve) -> list[list[float]]:
    """Shares of the width and of the height; a Dice ends at 1, a loss at its largest."""
    last = max(curve.steps[-1], 1e-9) if curve.steps else 1.0
    top = 1.0 if curve.name == "dice" else max([1e-9, *curve.values])
    return [
        [round(x / last, 4), round(min(max(y / top, 0.0), 1.0), 4)]
        for x, y in zip(curve.steps, curve.values, strict=True)
    ]


def _label(curve: Curve) -> str:
    name = curve.name.capitalize()
    return (
        f"{name} {curve.values[-1]:.3f} after {curve.steps[-1]:.0f} steps"
        if curve.values
        else f"{name}: none yet"
    )
