"""The case store: a folder of volumes in which somebody vouches for some slices.

    store/store.json                     format of the store
    store/cases/<id>/case.json           what the case is, and the name of its current labels file
    store/cases/<id>/volume.nii.gz       the volume, where it was copied
    store/cases/<id>/labels-<n>.seg.nrrd the label map of revision n
    store/removed/<id>-<time>/           what was taken out; `CaseStore.restore` brings it back

Every write ends with one rename, so a half-written case or revision never appears; what a killed program leaves behind
nobody reads, and a later program clears it away. Two programs may use a store at once: writers take the case's lock;
readers need none, because the labels before the current ones are kept too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .errors import InputError, MedSSLError, StorageError
from .events import Log
from .segmentation import Segment, Segmentation, read_segmentation, write_segmentation
from .storage import atomic_path, is_leftover, make_folder, move, one_at_a_time
from .volume import Volume, looks_like_ct, read_volume, take_slice, write_volume
from .wire.codec import from_plain

__all__ = ["Case", "CaseStore", "HistoryEntry", "Origin", "Vouched", "vouch_for_all", "vouched_voxels"]

Origin = Literal["drawn", "propagated", "predicted", "imported"]
"""Who made a slice: the user by hand, propagation or a model (and the user accepted it), or another program."""

_MARKER = "store.json"
_FORMAT = 1
_PATIENCE_S = 20.0
_DRAFT_SECONDS = 24 * 3600.0
"""A case that has been half-written for so long is nobody's work any more."""
_LABELS_FILE = re.compile(r"labels-\d+\.seg\.nrrd")


@dataclass(frozen=True)
class Vouched:
    """Slices on which somebody says: here this segment is exactly so, inside and outside.

    Raises:
        InputError: an axis or origin that does not exist, or no slices.
    """

    segment: str
    axis: int
    """Slice axis of the volume's own grid: 0 = K, 1 = J, 2 = I."""
    indices: tuple[int, ...]
    """Slice indices, rising."""
    origin: Origin = "drawn"

    def __post_init__(self) -> None:
        if self.axis not in (0, 1, 2):
            raise InputError(f"The slice axis must be 0, 1 or 2, not {self.axis}.")
        if self.origin not in ("drawn", "propagated", "predicted", "imported"):
            raise InputError(f"There is no origin '{self.origin}'.")
        if not self.indices:
            raise InputError(f"No slice of {self.segment} is vouched for; name at least one.")
        object.__setattr__(self, "indices", tuple(sorted({int(index) for index in self.indices})))


@dataclass(frozen=True)
class HistoryEntry:
    """What happened to a case."""

    time: float
    """Seconds since 1970."""
    what: str
    """For a person, e.g. "2 slices of liver vouched for"."""


@dataclass(frozen=True)
class Case:
    """A volume with some annotated slices; the arrays are read when they are asked for."""

    id: str
    name: str
    """For a person."""
    folder: Path
    volume_path: Path
    """The copy in the store, or the file that was referred to."""
    volume_hash: str
    """`Volume.content_hash` of the volume that was added."""
    stored_hash: str
    """The same of the file the case reads; a copy's grid may be rounded."""
    shape_kji: tuple[int, int, int]
    spacing_kji_mm: tuple[float, float, float]
    modality: str
    """"CT" or "MR"."""
    patient: str
    """Cases of one patient share it."""
    segments: tuple[Segment, ...]
    codes: Mapping[str, str]
    """Terminology code of a segment by its name, where one is known."""
    vouched: tuple[Vouched, ...]
    revision: int
    """Rises with every change."""
    fingerprint: str
    """SHA-256 (hex) over volume, labels and what is vouched for: equal for equal teaching material."""
    history: tuple[HistoryEntry, ...]

    def volume(self) -> Volume:
        """Read the volume.

        Raises:
            InputError: it is gone or no longer the one that was annotated.
        """
        self.require_volume()
        volume = read_volume(self.volume_path)
        if volume.content_hash != self.stored_hash:
            raise InputError(
                f"{self.volume_path} is no longer the volume that case {self.name} was annotated on;"
                " put the old file back or remove the case."
            )
        return volume

    def require_volume(self) -> None:
        """Refuse a case whose volume was moved away; quick, as nothing is read.

        Raises:
            InputError: it is gone.
        """
        if not self.volume_path.exists():
            raise InputError(
                f"The volume of case {self.name} is gone from {self.volume_path}; put it back or remove the case."
            )

    def segmentation(self) -> Segmentation:
        """Read the label map; it means something only where a segment is vouched for."""
        labels = read_segmentation(self.folder / _labels_name(self.revision))
        return Segmentation(labels.labels_kji, labels.ijk_to_ras, self.segments, self.name)

    def vouched_slices(self, segment: str) -> int:
        """Number of slices vouched for, over all axes."""
        return len({(v.axis, index) for v in self.vouched if v.segment == segment for index in v.indices})

    def summary(self) -> str:
        """One line for a person."""
        counts = {segment.name: self.vouched_slices(segment.name) for segment in self.segments}
        parts = [f"{name} on {count} slice{'s' * (count != 1)}" for name, count in counts.items()]
        return f"{self.name}: {', '.join(parts)}"


def vouch_for_all(segmentation: Segmentation, origin: Origin = "imported") -> list[Vouched]:
    """Vouch for every axial voxel slice of every segment: a finished segmentation."""
    slices = tuple(range(segmentation.shape_kji[0]))
    return [Vouched(name, 0, slices, origin) for name in segmentation.names]


def vouched_voxels(
    shape_kji: tuple[int, int, int], vouched: Iterable[Vouched], segment: str
) -> NDArray[np.bool_]:
    """(K, J, I) voxels on slices that are vouched for, for one segment."""
    known = np.zeros(shape_kji, bool)
    for v in vouched:
        if v.segment == segment:
            for index in v.indices:
                take_slice(known, v.axis, index)[:] = True
    return known


@dataclass(frozen=True)
class _Facts:
    """What case.json holds."""

    name: str
    volume: str
    """File name inside the case's folder, or an absolute path."""
    volume_hash: str
    stored_hash: str
    shape_kji: tuple[int, int, int]
    spacing_kji_mm: tuple[float, float, float]
    modality: str
    patient: str
    segments: tuple[Segment, ...]
    vouched: tuple[Vouched, ...]
    revision: int
    fingerprint: str
    codes: Mapping[str, str] = field(default_factory=dict)
    history: tuple[HistoryEntry, ...] = ()

    def to_json(self) -> str:
        return json.dumps({"format": _FORMAT, **dataclasses.asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> _Facts:
        values: dict[str, Any] = json.loads(text)
        if values.pop("format") != _FORMAT:
            raise ValueError("made by another version of the program")
        return from_plain(cls, values, "case")


class CaseStore:
    """A folder of cases.

    Args:
        folder: made with the first case.

    Raises:
        InputError: the folder holds other things, or a store of another version.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).resolve()
        self._cases = self.folder / "cases"
        self._marker = self.folder / _MARKER
        try:
            is_store = self._marker.is_file()
            names = (
                [path.name for path in self.folder.iterdir()] if self.folder.is_dir() and not is_store else []
            )
        except OSError as error:
            raise InputError(
                f"The case store {self.folder} cannot be reached ({error.strerror}); ask its owner for permission."
            ) from error
        if not is_store:
            if any(not is_leftover(name) for name in names):
                raise InputError(f"{self.folder} is not a case store; choose an empty or a new folder.")
        elif _read_json(self._marker).get("format") != _FORMAT:
            raise InputError(f"The case store {self.folder} was made by another version of the program.")

    @staticmethod
    def is_at(folder: str | Path) -> bool:
        """Whether a folder is a store."""
        return (Path(folder) / _MARKER).is_file()

    def cases(self, on_problem: Callable[[Log], None] = lambda log: None) -> list[Case]:
        """All cases, by name. A damaged one is left out and named to `on_problem`."""
        found = []
        for name in _folders_in(self._cases):
            try:
                found.append(self.case(name))
            except InputError as error:
                on_problem(Log(str(error)))
        return sorted(found, key=lambda case: (case.name, case.id))

    def case(self, case_id: str) -> Case:
        """Look a case up.

        Raises:
            InputError: there is none, or its file is damaged.
        """
        folder = self._folder(case_id)
        facts = _read_facts(folder)
        fields = {f.name: getattr(facts, f.name) for f in dataclasses.fields(facts) if f.name != "volume"}
        return Case(id=case_id, folder=folder, volume_path=folder / facts.volume, **fields)

    def find(self, volume_hash: str) -> Case | None:
        """The case of a volume, by `Volume.content_hash`; its folder is called after it, so no other file is read."""
        for name in _folders_in(self._cases):
            with contextlib.suppress(InputError):  # a damaged case is not found, as in `cases`
                if name.endswith(f"-{volume_hash[:8]}") and self.case(name).volume_hash == volume_hash:
                    return self.case(name)
        return None

    def add(
        self,
        volume: Volume,
        segmentation: Segmentation,
        vouched: Sequence[Vouched],
        *,
        name: str = "",
        reference: str | Path | None = None,
        patient: str = "",
        codes: Mapping[str, str] | None = None,
    ) -> Case:
        """Put a volume and its annotation into the store.

        Args:
            volume: the image.
            segmentation: labels on its grid; they count only where vouched for.
            vouched: which slices of which segments count.
            name: for a person; empty takes the volume's.
            reference: file to refer to in place of a copy; it must stay where it is.
            patient: key that keeps a patient's cases together; empty takes the volume itself.
            codes: terminology codes by segment name.

        Raises:
            InputError: another grid, nothing vouched for, a slice or segment that does not exist, the volume is in the
                store already, or the file referred to holds another one.
            StorageError: no space or no permission; nothing is left behind.
        """
        _check(volume, segmentation, vouched)
        self._require_new(volume)
        name = name or volume.name or "case"
        case_id = f"{_slug(name)}-{volume.content_hash[:8]}"
        self._begin()
        draft = self._cases / f".{case_id}.{secrets.token_hex(4)}"
        make_folder(draft)
        try:
            if reference is None:
                write_volume(volume, draft / "volume.nii.gz")
                stored = read_volume(draft / "volume.nii.gz")  # the copy is what will be read from now on
            else:
                stored = read_volume(reference)
                if stored.content_hash != volume.content_hash:
                    raise InputError(
                        f"The file {reference} does not hold the volume of the case; give its own."
                    )
            facts = _Facts(
                name=name,
                volume="volume.nii.gz" if reference is None else str(Path(reference).resolve()),
                volume_hash=volume.content_hash,
                stored_hash=stored.content_hash,
                shape_kji=volume.shape_kji,
                spacing_kji_mm=volume.spacing_kji_mm,
                modality="CT" if looks_like_ct(volume) else "MR",
                patient=patient or volume.content_hash[:16],
                segments=segmentation.segments,
                vouched=tuple(vouched),
                revision=1,
                fingerprint=_fingerprint(volume.content_hash, segmentation, vouched),
                codes=dict(codes or {}),
                history=(HistoryEntry(time.time(), f"added: {_what(vouched)}"),),
            )
            _write_labels(draft, 1, segmentation)
            _write_text(draft / "case.json", facts.to_json())
            with self._lock("new-cases"):
                self._require_new(volume)  # another program may have added it in the meantime
                move(draft, self._cases / case_id)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return self.case(case_id)

    def update(
        self,
        case_id: str,
        segmentation: Segmentation,
        vouched: Sequence[Vouched],
        what: str = "",
        *,
        keep_others: bool = False,
    ) -> Case:
        """Replace a case's labels and what is vouched for, in one step; the volume stays.

        Args:
            case_id: of the case.
            segmentation: as for `add`.
            vouched: as for `add`.
            what: for the history; empty = said from `vouched`.
            keep_others: segments of the case that `segmentation` does not name stay, with what is vouched for of them;
                where one of them meets one that is named, the one that is named has the voxel, unless only the other
                one is vouched for there.

        Raises:
            InputError: as `add`; the case is gone.
            StorageError: as `add`; the case stays as it was.
        """
        with self._lock(case_id):
            folder = self._folder(case_id)
            old = _read_facts(folder)
            if segmentation.shape_kji != old.shape_kji:
                raise InputError(
                    f"The annotation has the shape {segmentation.shape_kji}, but the case {old.shape_kji}."
                )
            _check_vouched(segmentation, vouched)
            what = what or f"updated: {_what(vouched)}"
            if keep_others:
                standing = [v for v in old.vouched if v.segment not in segmentation.names]
                segmentation = _over(segmentation, vouched, self.case(case_id).segmentation(), standing)
                vouched = [*vouched, *standing]
            revision = old.revision + 1
            _write_labels(folder, revision, segmentation)
            facts = replace(
                old,
                segments=segmentation.segments,
                vouched=tuple(vouched),
                revision=revision,
                fingerprint=_fingerprint(old.volume_hash, segmentation, vouched),
                history=(*old.history, HistoryEntry(time.time(), what)),
            )
            _write_text(folder / "case.json", facts.to_json())
            _drop_older_labels(folder, keep=(revision, revision - 1))
        return self.case(case_id)

    def remove(self, case_id: str) -> Path:
        """Take a case out of the store; it is kept in ``removed/`` and can be restored."""
        with self._lock(case_id):
            folder = self._folder(case_id)
            make_folder(self.folder / "removed")
            target = self.folder / "removed" / f"{case_id}-{int(time.time())}-{secrets.token_hex(2)}"
            move(folder, target)
        return target

    def restore(self, removed: str | Path) -> Case:
        """Bring a removed case back.

        Raises:
            InputError: there is no such folder, or the volume has been added again since.
        """
        source = self.folder / "removed" / Path(removed).name
        if not source.is_dir():
            known = ", ".join(_folders_in(source.parent))
            raise InputError(f"There is no removed case '{source.name}'; those there are: {known or 'none'}.")
        facts = _read_facts(source)
        twin = self.find(facts.volume_hash)
        if twin is not None:
            raise InputError(f"The volume is in the store again, as case {twin.name}; remove that one first.")
        case_id = source.name.rsplit("-", 2)[0]
        move(source, self._cases / case_id)
        return self.case(case_id)

    def _require_new(self, volume: Volume) -> None:
        twin = self.find(volume.content_hash)
        if twin is not None:
            raise InputError(f"This volume is already in the store as case {twin.name}; update that one.")

    def _begin(self) -> None:
        """Make the store's folders, its marker first: a folder that holds anything else is not taken for a store."""
        make_folder(self.folder)
        if not self._marker.is_file():
            _write_text(self._marker, json.dumps({"format": _FORMAT}))
        make_folder(self._cases)
        for draft in self._cases.glob(".*"):
            with contextlib.suppress(OSError):  # another program cleared it away
                if time.time() - draft.stat().st_mtime > _DRAFT_SECONDS:
                    shutil.rmtree(draft)

    def _folder(self, case_id: str) -> Path:
        folder = self._cases / case_id
        if Path(case_id).name != case_id or case_id.startswith(".") or not folder.is_dir():
            known = ", ".join(_folders_in(self._cases))
            raise InputError(f"There is no case '{case_id}'; the store holds {known or 'none'}.")
        return folder

    @contextlib.contextmanager
    def _lock(self, case_id: str) -> Iterator[None]:
        make_folder(self.folder / "locks")
        busy = StorageError(f"Another program has been writing {case_id} for {_PATIENCE_S:.0f} s; try again.")
        with one_at_a_time(self.folder / "locks" / f"{_slug(case_id)}.lock", busy, _PATIENCE_S):
            yield


def _folders_in(folder: Path) -> list[str]:
    """Names of the folders in one that may not be there; what is still being written begins with a dot."""
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _check(volume: Volume, segmentation: Segmentation, vouched: Sequence[Vouched]) -> None:
    segmentation.require_grid_of(volume)
    _check_vouched(segmentation, vouched)


def _check_vouched(segmentation: Segmentation, vouched: Sequence[Vouched]) -> None:
    if not vouched:
        raise InputError("No slice is vouched for; say which annotated slices are right.")
    for v in vouched:
        segmentation.segment(v.segment)
        count = segmentation.shape_kji[v.axis]
        if not 0 <= v.indices[0] <= v.indices[-1] < count:
            wrong = v.indices[0] if v.indices[0] < 0 else v.indices[-1]
            raise InputError(f"Slice {wrong} of {v.segment} does not exist; there are 0 to {count - 1}.")


def _over(
    segmentation: Segmentation,
    vouched: Sequence[Vouched],
    older: Segmentation,
    older_vouched: Sequence[Vouched],
) -> Segmentation:
    """A segmentation with the segments of another one that it does not name; they get the labels after its own.

    Where two meet, what is vouched for stays as it is, and otherwise the one that is named has the voxel.
    """
    shape = segmentation.shape_kji
    others = [segment for segment in older.segments if segment.name not in segmentation.names]
    highest = max((segment.label for segment in segmentation.segments), default=0)
    labels = segmentation.labels_kji.astype(np.uint16)
    free = labels == 0
    open_to_others = ~free
    for name in segmentation.names:
        open_to_others &= ~(segmentation.mask(name) & vouched_voxels(shape, vouched, name))
    kept = []
    for label, segment in enumerate(others, start=highest + 1):
        known = vouched_voxels(shape, older_vouched, segment.name)
        labels[older.mask(segment.name) & (free | (known & open_to_others))] = label
        kept.append(replace(segment, label=label))
    return replace(segmentation, labels_kji=labels, segments=(*segmentation.segments, *kept))


def _fingerprint(volume_hash: str, segmentation: Segmentation, vouched: Sequence[Vouched]) -> str:
    """Hash of what can be learnt from a case: labels elsewhere than on vouched slices do not count."""
    digest = hashlib.sha256(volume_hash.encode())
    for name in sorted({v.segment for v in vouched}):
        known = vouched_voxels(segmentation.shape_kji, vouched, name)
        digest.update(name.encode() + np.packbits(known).tobytes())
        digest.update(np.packbits(segmentation.mask(name) & known).tobytes())
    return digest.hexdigest()


def _what(vouched: Sequence[Vouched]) -> str:
    """E.g. "1 slice of liver drawn, 40 slices of liver propagated"."""
    return ", ".join(
        f"{len(v.indices)} slice{'s' * (len(v.indices) > 1)} of {v.segment} {v.origin}" for v in vouched
    )


def _labels_name(revision: int) -> str:
    return f"labels-{revision}.seg.nrrd"


def _write_labels(folder: Path, revision: int, segmentation: Segmentation) -> None:
    write_segmentation(segmentation, folder / _labels_name(revision))


def _drop_older_labels(folder: Path, keep: tuple[int, int]) -> None:
    kept = {_labels_name(revision) for revision in keep}
    for path in folder.iterdir():
        if _LABELS_FILE.fullmatch(path.name) and path.name not in kept:
            with contextlib.suppress(OSError):  # a reader on Windows may hold it; the next update tries again
                path.unlink()


def _slug(name: str) -> str:
    """Letters, digits, dots and dashes of a name: safe in any file system."""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-.")[:60] or "case"


def _read_facts(folder: Path) -> _Facts:
    path = folder / "case.json"
    try:
        return _Facts.from_json(path.read_text("utf-8"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, MedSSLError) as error:
        raise InputError(
            f"The case file {path} cannot be read ({error}); restore it or remove the case."
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}).") from error
    return values if isinstance(values, dict) else {}


def _write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, "utf-8")
