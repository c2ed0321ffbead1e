"""Every message a client and the worker exchange: one frozen dataclass each, and one dict that names them.

Requests go to the worker, replies come back under the request's id. Streamed replies (`Progress`, `Log`,
`SliceMask`, `UncertaintyMap`) may come any number of times; every request ends with exactly one of the others. No
field names a patient, but the name a user gives a case: a volume is known by its content hash.

Requests on folders (cases, runs, models) say what they want to know or to do; the answer is a `Finished` whose summary
holds plain facts, as `medssl.serving.facts` makes them. All paths are the worker's; an empty folder stands for the
usual one of `medssl.home`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from . import errors
from .cases import Vouched
from .errors import MedSSLError, ProtocolError, WorkerError
from .events import Log, Progress
from .prompts import Reference, SlicePrompt
from .results import SliceMask, UncertaintyMap
from .segmentation import Segment
from .wire.codec import PackedLabels, from_plain, to_plain
from .wire.framing import Frame

__all__ = [
    "MESSAGES",
    "STREAMED",
    "VOLUME_NOT_HELD",
    "AddCase",
    "AdoptRun",
    "Cancel",
    "DeleteModel",
    "EstimateRun",
    "Expect",
    "ExportModel",
    "Failed",
    "Finished",
    "Forget",
    "Hello",
    "ImportModel",
    "Info",
    "ListCases",
    "ListEncoders",
    "ListMethods",
    "ListModels",
    "ListRuns",
    "Message",
    "Predict",
    "PredictVolume",
    "Propagate",
    "PutVolume",
    "ReadRun",
    "Refine",
    "RemoveCase",
    "RestoreCase",
    "ResumeRun",
    "SegmentVolume",
    "Shutdown",
    "StartRun",
    "StopRun",
    "Streamed",
    "UpdateCase",
    "UseModel",
    "VolumePart",
    "Welcome",
    "WorkerInfo",
    "from_frame",
    "to_frame",
]

VOLUME_NOT_HELD = "VolumeNotHeld"
"""Kind of the failure that asks the client to send a volume again: it was forgotten or had to make room."""


@dataclass(frozen=True)
class Hello:
    """Ask who the worker is. Answered by `Welcome`, which it also sends unasked, as id 0, when it starts."""


@dataclass(frozen=True)
class Info:
    """Ask how the worker is. Answered by `WorkerInfo`, which it also sends unasked, as id 0, after work."""


@dataclass(frozen=True, eq=False)
class PutVolume:
    """Announce a volume; its voxels follow in `VolumePart` messages. No reply unless it fails."""

    content_hash: str
    """`Volume.content_hash`: the volume's name from here on."""
    shape_kji: tuple[int, int, int]
    dtype: Literal["int16", "float32"]
    ijk_to_ras: NDArray[np.float64]
    """(4, 4) maps voxel (i, j, k, 1) to RAS millimetres."""


@dataclass(frozen=True, eq=False)
class VolumePart:
    """The next slices of an announced volume, which is held once its last slice is there. No reply."""

    content_hash: str
    first: int
    """K index of the first slice of this part."""
    slices_kji: NDArray[Any]
    """(n, J, I) voxels."""


@dataclass(frozen=True)
class Forget:
    """Drop a volume and all that was computed from it. Answered by `Finished`, also when it was not there."""

    content_hash: str


@dataclass(frozen=True, eq=False)
class Propagate:
    """Carry the references through the volume. Answered by `SliceMask`s and `Progress`, then `Finished`.

    The summary's "suggestions" are the slices worth annotating next.
    """

    volume: str
    """Content hash."""
    references: tuple[Reference, ...]
    options: dict[str, Any] = field(default_factory=dict)
    """Fields of `PropagateOptions`; what is missing keeps its default."""
    model: str = ""
    """Model id of the registry."""
    device: str = "auto"
    """"auto", "cpu", "cuda", "cuda:N" or "mps"."""


@dataclass(frozen=True, eq=False)
class Predict:
    """One prompt on one slice; goes ahead of long requests. Answered by one `SliceMask`, then `Finished`."""

    volume: str
    segment: str
    prompt: SlicePrompt
    window_level_width: tuple[float, float] | None = None
    """Window of the whole volume; None = chosen from its intensities."""
    model: str = ""
    device: str = "auto"


@dataclass(frozen=True, eq=False)
class Expect:
    """Say which slice is being looked at: prompts may follow. Answered by `Finished` at once.

    While nothing is asked the worker then loads the model, encodes that slice, answers the prompt that would come next,
    and encodes the slices around.
    """

    volume: str
    axis: int
    index: int
    window_level_width: tuple[float, float] | None = None
    """As for `Predict`."""
    model: str = ""
    device: str = "auto"
    prompt: SlicePrompt | None = None
    """What a click would ask where the mouse rests; on that slice."""


@dataclass(frozen=True, eq=False)
class Refine:
    """Sharpen a coarse mask slice by slice. Answered by `SliceMask`s and `Progress`, then `Finished`."""

    volume: str
    segment: str
    coarse_kji: NDArray[np.bool_]
    """(K, J, I) on the volume's grid."""
    options: dict[str, Any] = field(default_factory=dict)
    """Fields of `RefineOptions`; what is missing keeps its default."""
    model: str = ""
    device: str = "auto"


@dataclass(frozen=True)
class PredictVolume:
    """Find a trained model's segments. Answered by `SliceMask`s, `UncertaintyMap`s and `Progress`, then `Finished`.

    Every segment comes once on every axial slice, empty masks too, from the slice being looked at outwards.
    """

    volume: str
    model: str
    """"liver", "liver:3", a model file, or a run folder, which stands for what the run keeps."""
    store: str = ""
    """Model store."""
    start: int | None = None
    """Axial slice to begin with; None = the middle."""
    uncertainty: Literal["off", "flip-average", "dropout"] = "off"
    """How often the network answers; see `medssl.inference.predict`."""
    maps: bool = False
    """Send an `UncertaintyMap` of every slice."""
    device: str = "auto"
    anyway: bool = False
    """Only warn where the volume is of another modality than the model has learnt from."""


@dataclass(frozen=True, eq=False)
class SegmentVolume:
    """Find a trained model's segments, sharpen them and carry them through: `medssl.segmenting`.

    Answered by `SliceMask`s that say their stage ("coarse", "sharpened", "refined", "propagated", "final"),
    `UncertaintyMap`s,
    `Progress` and `Log`, then `Finished`.
    """

    volume: str
    model: str
    """As for `PredictVolume`."""
    store: str = ""
    """Model store."""
    options: dict[str, Any] = field(default_factory=dict)
    """Fields of `SegmentOptions`; what is missing keeps its default."""
    annotation: PackedLabels | None = None
    """(K, J, I) slices somebody has drawn, for the prompt mode annotation."""
    segments: tuple[Segment, ...] = ()
    """What the annotation's labels mean."""
    vouched: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Slices, across the axis of the options, that a person vouches for, by segment; they are not suggested."""
    refiner: str = ""
    """Model id of the registry that answers boxes."""
    tracker: str = ""
    """Model id of the registry that follows masks."""
    device: str = "auto"
    absent: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Those of the slices in `vouched` on which the segment is not: they end up empty, and nothing is suggested beyond
    them."""


@dataclass(frozen=True)
class ListCases:
    """Ask for the cases of a store."""

    store: str = ""


@dataclass(frozen=True, eq=False)
class AddCase:
    """Put a volume the worker holds, and its annotation, into a store."""

    volume: str
    labels: PackedLabels
    """(K, J, I) on the volume's grid."""
    segments: tuple[Segment, ...]
    vouched: tuple[Vouched, ...]
    store: str = ""
    name: str = ""
    """For a person."""
    patient: str = ""
    """Key that keeps a patient's cases together; empty takes the volume itself."""
    codes: dict[str, str] = field(default_factory=dict)
    """Terminology codes by segment name."""


@dataclass(frozen=True, eq=False)
class UpdateCase:
    """Replace some segments of a case, and what is vouched for of them; its other segments stay."""

    case: str
    """Its id."""
    labels: PackedLabels
    segments: tuple[Segment, ...]
    vouched: tuple[Vouched, ...]
    store: str = ""
    what: str = ""
    """What happened, for the case's history; empty = said from `vouched`."""


@dataclass(frozen=True)
class RemoveCase:
    """Take a case out of a store; it is kept, under the name that comes back as "removed"."""

    case: str
    store: str = ""


@dataclass(frozen=True)
class RestoreCase:
    """Bring a removed case back."""

    removed: str
    store: str = ""


@dataclass(frozen=True)
class StartRun:
    """Begin training in a process of its own, which goes on whatever becomes of the worker."""

    kind: Literal["finetune", "pretrain"]
    """The command that trains."""
    settings: dict[str, Any]
    """Its options, with _ for -. Without "out" the run gets a new folder; fine-tuning without "data" or "cases"
    learns from the usual case store."""


@dataclass(frozen=True)
class EstimateRun:
    """Ask what pre-training would cost; a few steps are measured, so it takes as long as reading the scans does."""

    settings: dict[str, Any]
    """As for `StartRun`."""


@dataclass(frozen=True)
class ListRuns:
    """Ask for the runs in a folder and those below it."""

    folder: str = ""


@dataclass(frozen=True)
class ReadRun:
    """Ask how a run stands, and for what is new in it."""

    run: str
    after_event: int = 0
    """How many of its events are known already."""
    after_picture: int = -1
    """Step of the newest picture that is known already."""


@dataclass(frozen=True)
class StopRun:
    """Ask a run to save and stop at the end of its step; it can be resumed."""

    run: str


@dataclass(frozen=True)
class ResumeRun:
    """Go on with a run that stopped, failed or was lost."""

    run: str


@dataclass(frozen=True)
class AdoptRun:
    """Keep what a fine-tuning run has made as the next version of a model."""

    run: str
    name: str
    """Of the model."""
    store: str = ""


@dataclass(frozen=True)
class ListModels:
    """Ask for the trained models of a store, with all their versions, and for the promptable ones."""

    store: str = ""


@dataclass(frozen=True)
class UseModel:
    """Go back, or forward, to a version."""

    model: str
    """"liver:2"."""
    store: str = ""


@dataclass(frozen=True)
class DeleteModel:
    """Take out a version ("liver:2") or a whole model ("liver"); the files are kept in the store's ``removed``."""

    model: str
    store: str = ""


@dataclass(frozen=True)
class ExportModel:
    """Write a version as one file."""

    model: str
    path: str
    """Ends in .safetensors."""
    store: str = ""


@dataclass(frozen=True)
class ImportModel:
    """Keep a file as the next version of a model."""

    path: str
    name: str
    store: str = ""


@dataclass(frozen=True)
class ListEncoders:
    """Ask for the pre-trained encoders: shipped (the best first), in a folder, and those that runs have made."""

    folder: str = ""
    runs: str = ""
    """Folder of run folders."""


@dataclass(frozen=True)
class ListMethods:
    """Ask for the self-supervised methods and the networks there are."""


@dataclass(frozen=True)
class Cancel:
    """Stop a request, queued or running; that one then ends with `Failed` of kind "Cancelled".

    A `Welcome`, as id 0, comes at once, also while the worker computes: it is alive.
    """

    request_id: int


@dataclass(frozen=True)
class Shutdown:
    """End the worker at once, as closing its input does."""


@dataclass(frozen=True)
class Welcome:
    """Who the worker is."""

    version: str
    """Of medssl."""
    pid: int
    volumes: tuple[str, ...] = ()
    """Content hashes of the volumes it holds."""


@dataclass(frozen=True)
class WorkerInfo:
    """How the worker is."""

    pid: int
    device: str
    """Device of the model used last, for a person; empty before the first one."""
    models: tuple[str, ...]
    """Models in memory."""
    volumes: tuple[str, ...]
    """Content hashes of the volumes it holds."""
    memory_used_bytes: int
    """Of the worker's process."""
    memory_available_bytes: int | None
    """What this process could still take on its machine; None where the system does not tell."""
    torch_loaded: bool
    """False until a request needed a model."""


@dataclass(frozen=True)
class Finished:
    """A request has done what was asked."""

    seconds: float
    """How long the worker took."""
    summary: dict[str, Any] = field(default_factory=dict)
    """What a request has to say at its end, e.g. the cases of a store: JSON values and arrays."""


@dataclass(frozen=True)
class Failed:
    """A request ended without doing what was asked."""

    kind: str
    """Name of the error's class, e.g. "InputError"; "InternalError" for what nobody foresaw."""
    message: str
    """One sentence for the user."""

    @classmethod
    def from_error(cls, error: MedSSLError) -> Failed:
        """The reply that carries an error to the other end."""
        return cls(type(error).__name__, str(error))

    def error(self) -> MedSSLError:
        """The error as an exception of `medssl.errors`; `WorkerError` where the kind is not one of them."""
        error_class = getattr(errors, self.kind, WorkerError) if self.kind in errors.__all__ else WorkerError
        return cast(MedSSLError, error_class(self.message))


Message: TypeAlias = Any
"""An instance of one of the classes in `MESSAGES`."""
Streamed: TypeAlias = Progress | Log | SliceMask | UncertaintyMap
STREAMED = (Progress, Log, SliceMask, UncertaintyMap)
"""Replies that do not end their request."""

MESSAGES: dict[str, type[Any]] = {
    "hello": Hello,
    "info": Info,
    "put_volume": PutVolume,
    "volume_part": VolumePart,
    "forget": Forget,
    "propagate": Propagate,
    "predict": Predict,
    "expect": Expect,
    "refine": Refine,
    "predict_volume": PredictVolume,
    "segment_volume": SegmentVolume,
    "list_cases": ListCases,
    "add_case": AddCase,
    "update_case": UpdateCase,
    "remove_case": RemoveCase,
    "restore_case": RestoreCase,
    "start_run": StartRun,
    "estimate_run": EstimateRun,
    "list_runs": ListRuns,
    "read_run": ReadRun,
    "stop_run": StopRun,
    "resume_run": ResumeRun,
    "adopt_run": AdoptRun,
    "list_models": ListModels,
    "use_model": UseModel,
    "delete_model": DeleteModel,
    "export_model": ExportModel,
    "import_model": ImportModel,
    "list_encoders": ListEncoders,
    "list_methods": ListMethods,
    "cancel": Cancel,
    "shutdown": Shutdown,
    "welcome": Welcome,
    "worker_info": WorkerInfo,
    "progress": Progress,
    "log": Log,
    "slice_mask": SliceMask,
    "uncertainty_map": UncertaintyMap,
    "finished": Finished,
    "failed": Failed,
}
_TYPE_OF_CLASS = {cls: name for name, cls in MESSAGES.items()}


def to_frame(request_id: int, message: Message) -> Frame:
    """The frame that carries a message.

    Raises:
        TypeError: the message, or a value in it, is of a type that does not travel.
    """
    kind = _TYPE_OF_CLASS.get(type(message))
    if kind is None:
        raise TypeError(f"{type(message).__name__} is not a message.")
    fields, arrays = to_plain(message)
    return Frame(kind, request_id, fields, arrays)


def from_frame(frame: Frame) -> Message:
    """The message a frame carries, every field checked against its type.

    Raises:
        ProtocolError: unknown message type, or a field that is missing, unknown or of another type.
        InputError: the fields are well formed but say something impossible, e.g. an empty box.
    """
    cls = MESSAGES.get(frame.type)
    if cls is None:
        raise ProtocolError(
            f"There is no message {frame.type!r:.40}; install the same version of medssl on both ends."
        )
    return from_plain(cls, frame.fields, frame.type, frame.arrays)
