"""The worker seen from the other end of the pipe: requests go in, tickets come out, and nothing blocks.

    with WorkerClient() as client:
        ticket = client.propagate(volume, references)
        for event in ticket.events():  # or ticket.poll() from a timer
            ...

Standard library and numpy only: this runs inside 3D Slicer, where torch must never be loaded. The first
request starts the worker, and so does the next one after it died. A volume is sent once in a worker's life,
by a thread of its own, so that neither a large volume nor a slow line holds up the caller.

Requests on cases, runs and models are answered within seconds, also while the worker computes; what came of them is in
`ticket.result().summary`, a dict of plain facts (`medssl.serving.facts` says which). All their folders and files are
those of the worker's machine; "" stands for the usual folder below its MEDSSL_HOME (cases, models, runs, encoders).
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

from .errors import MedSSLError, WorkerDied
from .messages import (
    AddCase,
    AdoptRun,
    DeleteModel,
    EstimateRun,
    Expect,
    ExportModel,
    Failed,
    Finished,
    Hello,
    ImportModel,
    Info,
    ListCases,
    ListEncoders,
    ListMethods,
    ListModels,
    ListRuns,
    Message,
    Predict,
    PredictVolume,
    Propagate,
    ReadRun,
    Refine,
    RemoveCase,
    RestoreCase,
    ResumeRun,
    SegmentVolume,
    StartRun,
    StopRun,
    UpdateCase,
    UseModel,
    Welcome,
    WorkerInfo,
)
from .registry import DEFAULT_MODEL
from .runs.run_folder import plain
from .wire.codec import encode_labels, to_plain
from .wire.connection import SILENCE_SECONDS, Connection, WorkerStatus
from .wire.launch import LocalCommand, SshCommand, WorkerCommand
from .wire.ticket import Ticket

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .cases import Vouched
    from .prompts import Reference, SlicePrompt
    from .propagate import PropagateOptions
    from .refine import RefineOptions
    from .segmentation import Segment
    from .segmenting import SegmentOptions
    from .volume import Volume, Window

__all__ = ["LocalCommand", "SshCommand", "Ticket", "WorkerClient", "WorkerCommand", "WorkerStatus"]

_KEEPING = (
    AddCase,
    UpdateCase,
    RemoveCase,
    RestoreCase,
    AdoptRun,
    UseModel,
    DeleteModel,
    ExportModel,
    ImportModel,
)
"""Requests that put something away; the worker is not ended before they are done."""
_KEEPING_SECONDS = 60.0
"""How long the end of the worker waits for all of them."""


class WorkerClient:
    """Sends requests to one worker, which it starts, starts again after a death, and ends.

    Args:
        command: how to start the worker; by default on this machine, with this Python.
        silence_seconds: how long a worker may say nothing after it was asked to stop something, before it is ended.
    """

    def __init__(
        self, command: WorkerCommand | None = None, silence_seconds: float = SILENCE_SECONDS
    ) -> None:
        self._command = command or LocalCommand()
        self._silence_seconds = silence_seconds
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._keeping: list[Ticket[Any]] = []

    def __enter__(self) -> WorkerClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def status(self) -> WorkerStatus:
        """How the worker is, from what it said last; asks nothing and never waits."""
        connection = self._connection
        return connection.status if connection else WorkerStatus("stopped")

    def hello(self) -> Ticket[Welcome]:
        """Ask who the worker is, which starts it."""
        return self._submit(Hello())

    def info(self) -> Ticket[WorkerInfo]:
        """Ask for the worker's memory, device, models and volumes."""
        return self._submit(Info())

    def propagate(
        self,
        volume: Volume,
        references: Sequence[Reference],
        options: PropagateOptions | Mapping[str, Any] | None = None,
        *,
        model: str = DEFAULT_MODEL,
        device: str = "auto",
    ) -> Ticket[Finished]:
        """Carry references through a volume; the ticket yields `Progress`, `Log` and `SliceMask`.

        The outcome's "suggestions" are the slices worth annotating next, the best first: {"segment", "axis", "index",
        "gain", "reason" (a clause for a person)}.

        Args:
            volume: sent if the worker does not hold it.
            references: at least one.
            options: `PropagateOptions`, or some of its fields by name.
            model: id from the registry.
            device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        """
        request = Propagate("", tuple(references), _fields(options), model, device)
        return self._submit(request, volume)

    def predict(
        self,
        volume: Volume,
        prompt: SlicePrompt,
        *,
        segment: str = "",
        window: Window | None = None,
        model: str = DEFAULT_MODEL,
        device: str = "auto",
    ) -> Ticket[Finished]:
        """Answer one prompt on one slice, ahead of long requests; the ticket yields one `SliceMask`.

        Args:
            volume: sent if the worker does not hold it.
            prompt: points, box or mask.
            segment: name that comes back with the mask.
            window: for the whole volume; None = chosen from its intensities.
            model: id from the registry.
            device: as for `propagate`.
        """
        level_width = None if window is None else (window.level, window.width)
        return self._submit(Predict("", segment, prompt, level_width, model, device), volume)

    def expect(
        self,
        volume: Volume,
        axis: int,
        index: int,
        *,
        window: Window | None = None,
        model: str = DEFAULT_MODEL,
        device: str = "auto",
        prompt: SlicePrompt | None = None,
    ) -> Ticket[Finished]:
        """Tell which slice is being looked at, so that it is encoded, and its neighbours, before a prompt comes.

        The newest word counts. The worker does it while nothing is asked, and stops at once when something is.

        Args:
            volume: sent if the worker does not hold it.
            axis: slice axis, 0 = K, 1 = J, 2 = I.
            index: slice index along it.
            window: as the prompts will have it.
            model: id from the registry.
            device: as for `propagate`.
            prompt: on that slice, what a click would ask where the mouse rests: it is answered ahead.
        """
        level_width = None if window is None else (window.level, window.width)
        return self._submit(Expect("", axis, index, level_width, model, device, prompt), volume)

    def refine(
        self,
        volume: Volume,
        coarse_kji: NDArray[np.bool_],
        options: RefineOptions | Mapping[str, Any] | None = None,
        *,
        segment: str = "",
        model: str = DEFAULT_MODEL,
        device: str = "auto",
    ) -> Ticket[Finished]:
        """Sharpen a coarse mask; the ticket yields `Progress` and `SliceMask`, its outcome holds the report.

        Args:
            volume: sent if the worker does not hold it.
            coarse_kji: (K, J, I) bool on the volume's grid.
            options: `RefineOptions`, or some of its fields by name.
            segment: name that comes back with the masks.
            model: id from the registry.
            device: as for `propagate`.
        """
        request = Refine("", segment, coarse_kji, _fields(options), model, device)
        return self._submit(request, volume)

    # Trained models at work.

    def predict_volume(
        self,
        volume: Volume,
        model: str,
        *,
        start: int | None = None,
        uncertainty: Literal["off", "flip-average", "dropout"] = "off",
        maps: bool = False,
        anyway: bool = False,
        store: str = "",
        device: str = "auto",
    ) -> Ticket[Finished]:
        """Find a trained model's segments; the ticket yields `Progress`, `SliceMask`, and `UncertaintyMap` with `maps`.

        Every segment comes once on every axial slice, empty masks too, the slices nearest to `start` first. The
        outcome's "segments" are their names, labels and colours.

        Args:
            volume: sent if the worker does not hold it.
            model: "liver", "liver:3", a model file, or a run folder.
            start: axial slice to begin with, e.g. the one being looked at; None = the middle.
            uncertainty: "off" takes one answer, "flip-average" averages two, "dropout" eight.
            maps: also send, slice by slice, how unsure the model is.
            anyway: only warn, in a `Log`, where the volume is of another modality than the model has learnt from.
            store: model store.
            device: as for `propagate`.
        """
        request = PredictVolume("", model, store, start, uncertainty, maps, device, anyway)
        return self._submit(request, volume)

    def segment_volume(
        self,
        volume: Volume,
        model: str,
        options: SegmentOptions | Mapping[str, Any] | None = None,
        *,
        annotation_kji: NDArray[Any] | None = None,
        segments: Sequence[Segment] = (),
        vouched: Mapping[str, Sequence[int]] | None = None,
        absent: Mapping[str, Sequence[int]] | None = None,
        refiner: str = DEFAULT_MODEL,
        tracker: str = DEFAULT_MODEL,
        store: str = "",
        device: str = "auto",
    ) -> Ticket[Finished]:
        """Find a trained model's segments, sharpen them and carry them through, stage by stage.

        The ticket yields `Progress`, `Log`, `UncertaintyMap` and `SliceMask`, whose `stage` is "coarse", "sharpened",
        "refined", "propagated" or "final"; slices where nothing was found are not sent. The outcome holds "segments"
        (name, label, color_rgb), "prompt", "axis", "references" (per segment, slice indices), and per segment one
        number a slice: "confidence" (the tracker's, NaN where it did not come) and "agreement" (lowest Dice between
        the stages); and "suggestions" as for `propagate`.

        Args:
            volume: sent if the worker does not hold it.
            model: as for `predict_volume`.
            options: `SegmentOptions`, or some of its fields by name.
            annotation_kji: (K, J, I) labels of slices somebody has drawn; with the option prompt="annotation" only.
            segments: what those labels mean.
            vouched: slices a person vouches for already, by segment; they are not suggested.
            absent: those of them on which the segment is not: the final mask is empty there, and nothing is suggested
                beyond them.
            refiner: id from the registry, of a model that answers boxes.
            tracker: id from the registry, of a model that follows masks.
            store: model store.
            device: as for `propagate`.
        """
        labels = None if annotation_kji is None else encode_labels(annotation_kji)
        known, gone = (
            {name: tuple(indices) for name, indices in (slices or {}).items()} for slices in (vouched, absent)
        )
        request = SegmentVolume(
            "", model, store, _fields(options), labels, tuple(segments), known, refiner, tracker, device, gone
        )
        return self._submit(request, volume)

    # Cases.

    def list_cases(self, store: str = "") -> Ticket[Finished]:
        """Ask for a store's cases; the outcome holds "store", "cases" (see `case_facts`) and "problems" (sentences)."""
        return self._submit(ListCases(store))

    def add_case(
        self,
        volume: Volume,
        labels_kji: NDArray[Any],
        segments: Sequence[Segment],
        vouched: Sequence[Vouched],
        *,
        name: str = "",
        patient: str = "",
        codes: Mapping[str, str] | None = None,
        store: str = "",
    ) -> Ticket[Finished]:
        """Put a volume and its annotation into a store; the outcome holds the "case" (see `case_facts`).

        Args:
            volume: sent if the worker does not hold it.
            labels_kji: (K, J, I) uint8 or uint16 on the volume's grid; counts only where vouched for.
            segments: what the labels mean.
            vouched: which slices of which segments count.
            name: of the case, for a person; empty takes the volume's.
            patient: key that keeps a patient's cases together; empty takes the volume itself.
            codes: terminology codes by segment name.
            store: case store.
        """
        labels = encode_labels(labels_kji)
        name = name or volume.name
        request = AddCase(
            "", labels, tuple(segments), tuple(vouched), store, name, patient, dict(codes or {})
        )
        return self._submit(request, volume)

    def update_case(
        self,
        case: str,
        labels_kji: NDArray[Any],
        segments: Sequence[Segment],
        vouched: Sequence[Vouched],
        *,
        what: str = "",
        store: str = "",
    ) -> Ticket[Finished]:
        """Replace some segments of a case, and what is vouched for of them; the outcome holds the "case".

        Segments of the case that are not named stay as they are.

        Args:
            case: its id.
            labels_kji: as for `add_case`.
            segments: as for `add_case`.
            vouched: as for `add_case`.
            what: what happened, for the case's history; empty = said from `vouched`.
            store: case store.
        """
        labels = encode_labels(labels_kji)
        return self._submit(UpdateCase(case, labels, tuple(segments), tuple(vouched), store, what))

    def remove_case(self, case: str, *, store: str = "") -> Ticket[Finished]:
        """Take a case out of a store; the outcome holds "removed", which `restore_case` takes."""
        return self._submit(RemoveCase(case, store))

    def restore_case(self, removed: str, *, store: str = "") -> Ticket[Finished]:
        """Bring a removed case back; the outcome holds the "case"."""
        return self._submit(RestoreCase(removed, store))

    # Training runs, which go on whatever becomes of the worker and this client.

    def start_finetune(self, settings: Any) -> Ticket[Finished]:
        """Begin to fine-tune in the background; the outcome holds the "run" (see `run_facts`) once it has begun.

        How long it takes is known after a few measured steps: `read_run` then tells "progress"."seconds_left".

        Args:
            settings: `FinetuneConfig`, or some of its fields by name: segments, cases (a store), encoder, minutes,
                steps, ... Without "data" and "cases" it learns from the usual store, without "out" the run gets a
                new folder.
        """
        return self._submit(StartRun("finetune", plain(settings)))

    def start_pretrain(self, settings: Any) -> Ticket[Finished]:
        """Begin to pre-train in the background; the outcome holds the "run", as for `start_finetune`.

        Args:
            settings: `PretrainConfig`, or some of its fields by name: method and data, preset, minutes, ... Without
                "out" the run gets a new folder.
        """
        return self._submit(StartRun("pretrain", plain(settings)))

    def estimate_pretrain(self, settings: Any) -> Ticket[Finished]:
        """Ask what pre-training would cost before it begins; the outcome holds "estimate", one line for a person.

        A few steps are measured in a process of its own: it takes as long as reading the scans does, and can be
        cancelled. Other requests on cases, runs and models wait meanwhile.

        Args:
            settings: as for `start_pretrain`.
        """
        return self._submit(EstimateRun(plain(settings)))

    def list_runs(self, folder: str = "") -> Ticket[Finished]:
        """Ask for all runs in a folder; the outcome holds "folder" and "runs" (see `run_facts`), the newest first."""
        return self._submit(ListRuns(folder))

    def read_run(self, run: str, *, after_event: int = 0, after_picture: int = -1) -> Ticket[Finished]:
        """Ask how a run stands and for what is new; call it every second or so.

        The outcome holds "run" (see `run_facts`), "events" ({"type": "metric" or "log", ...}) of which the first is
        number "first_event" (lower than `after_event` where a resumed run took some back: forget those), "picture"
        ((H, W, 3) uint8, or None where none is newer) and "picture_step".

        Args:
            run: its folder.
            after_event: how many events are known already.
            after_picture: "picture_step" of the newest picture that is known.
        """
        return self._submit(ReadRun(run, after_event, after_picture))

    def stop_run(self, run: str) -> Ticket[Finished]:
        """Ask a run to save and stop after its step; the outcome holds the "run", which may still be running."""
        return self._submit(StopRun(run))

    def resume_run(self, run: str) -> Ticket[Finished]:
        """Go on with a run that was stopped, failed or was lost; the outcome holds the "run"."""
        return self._submit(ResumeRun(run))

    def adopt_run(self, run: str, name: str, *, store: str = "") -> Ticket[Finished]:
        """Keep a fine-tuning run's model as the next version of model `name`; the outcome holds the "version"."""
        return self._submit(AdoptRun(run, name, store))

    # Models.

    def list_models(self, store: str = "") -> Ticket[Finished]:
        """Ask for the models there are.

        The outcome holds "store", "models" (trained: name, in_use, versions; see `model_facts`), "promptable" (the
        registry's; see `entry_facts`) and "problems" (sentences).
        """
        return self._submit(ListModels(store))

    def use_model(self, model: str, *, store: str = "") -> Ticket[Finished]:
        """Go back, or forward, to a version, e.g. "liver:2"; the outcome holds the "version"."""
        return self._submit(UseModel(model, store))

    def delete_model(self, model: str, *, store: str = "") -> Ticket[Finished]:
        """Take out a version ("liver:2") or a model ("liver"); the store keeps the files in ``removed``."""
        return self._submit(DeleteModel(model, store))

    def export_model(self, model: str, path: str, *, store: str = "") -> Ticket[Finished]:
        """Write a version to a .safetensors file on the worker's machine; the outcome holds its "path"."""
        return self._submit(ExportModel(model, path, store))

    def import_model(self, path: str, name: str, *, store: str = "") -> Ticket[Finished]:
        """Keep a model file as the next version of model `name`; the outcome holds the "version"."""
        return self._submit(ImportModel(path, name, store))

    def list_encoders(self, folder: str = "", *, runs: str = "") -> Ticket[Finished]:
        """Ask for pre-trained encoders; the outcome holds "encoders" (see `encoder_facts`) and "problems".

        Args:
            folder: of encoder files, beside the shipped ones.
            runs: of run folders, whose encoders count too.
        """
        return self._submit(ListEncoders(folder, runs))

    def list_methods(self) -> Ticket[Finished]:
        """Ask for the self-supervised "methods" (see `method_facts`) and the "backbones" there are."""
        return self._submit(ListMethods())

    # The worker.

    def forget(self, volume: Volume) -> None:
        """Have the worker drop a volume and what it computed from it; a later request sends it again."""
        connection = self._connection
        if connection is not None and connection.alive:
            connection.forget(volume.content_hash)

    def close(self) -> None:
        """End the worker and leave no process behind; open tickets end with `WorkerDied`.

        What is being put away, such as a case, is waited for, up to a minute: a front end calls this in a thread.
        Training runs go on.
        """
        with self._lock:
            connection, self._connection = self._connection, None
            keeping, self._keeping = self._keeping, []
        end_s = time.monotonic() + _KEEPING_SECONDS
        for ticket in keeping:
            with suppress(MedSSLError, TimeoutError):  # whoever asked sees it in the ticket
                ticket.result(max(end_s - time.monotonic(), 0.0))
        if connection is not None:
            connection.close()

    def _submit(self, request: Message, volume: Volume | None = None) -> Ticket[Any]:
        request_id = next(self._ids)
        try:
            with self._lock:
                if self._connection is None or not self._connection.alive:
                    self._connection = Connection(self._command, self._silence_seconds)
                connection = self._connection
        except WorkerDied as error:
            ticket: Ticket[Any] = Ticket(request_id, request, volume, lambda _: None)
            ticket.add(Failed.from_error(error))
            return ticket
        ticket = Ticket(request_id, request, volume, connection.cancel)
        if isinstance(request, _KEEPING):
            with self._lock:
                self._keeping = [kept for kept in self._keeping if not kept.done] + [ticket]
        connection.submit(ticket)
        return ticket


def _fields(options: Any) -> dict[str, Any]:
    """The fields of an options dataclass as plain values."""
    if options is None:
        return {}
    return dict(options) if isinstance(options, Mapping) else to_plain(options)[0]
