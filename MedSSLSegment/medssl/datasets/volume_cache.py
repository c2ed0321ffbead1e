"""Unlabelled volumes from a folder: every scan is read once, prepared on the contract's grid, and kept compressed.

The cache holds, for each scan, its voxels (.b2nd) and facts (.json) in a folder named after everything that shaped
them: spacings, orientation, body box, version of this code. Window, scale and channels are applied when a slice is
drawn, so they do not count. What a source file held when it was last read is noted under ``sources``, so nothing is
read twice unless it changed. Every file is written whole or not at all: a build that was interrupted goes on where it
stopped, and two builds may share a cache.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import Cancelled, InputError, StorageError
from ..events import Eta, Log, Progress
from ..storage import atomic_path
from ..volume import Volume, looks_like_ct, shift_problem
from .data import Scan, UnlabelledVolumes, intensity_stats
from .grid import PreparedGrid, prepare_image, scan_id
from .input_contract import InputContract, IntensityStats
from .packed import PackedArray, pack
from .sources import Found, Patients, ReadScan, SamePatients, Source, find_sources

__all__ = ["PreparedScan", "VolumeCache", "left_out", "prepare_volumes"]

_FORMAT = 2
"""Raised whenever what is stored for the same scan changes."""
_SHOWN = 3


def prepare_volumes(
    data: Path,
    contract: InputContract,
    cache: Path,
    *,
    exclude: Sequence[str] = (),
    mixed_modalities: bool = False,
    on_event: Callable[[Progress | Log], None] = lambda event: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> UnlabelledVolumes:
    """Read a folder tree of scans, or take them from the cache. Holds one scan in memory at a time.

    Args:
        data: NIfTI, NRRD, MetaImage and DICOM in any mix; what counts as a scan and whose it is says `sources`.
        contract: grid and modality of the network's input.
        cache: folder for the prepared scans; made if missing.
        exclude: names of files or folders below `data` to leave out; * and ? stand for anything.
        mixed_modalities: take scans of any modality.
        on_event: told how far it is, and what was left out and why.
        cancelled: asked between scans and slices.

    Returns:
        The scans in the order of their names, each once, whatever number of names it has.

    Raises:
        InputError: no scan was found, none can be read, or one is of another modality than the contract's.
        StorageError: the cache cannot be written.
        Cancelled: `cancelled` said so; what is prepared by then is kept.
    """
    found = find_sources(data, exclude)
    if not found.sources:
        raise InputError(
            f"The folder {data} holds no scans; give one with .nii.gz, .nii, .nrrd, .mha, .mhd or DICOM files in it"
            " or below it."
        )
    for note in left_out(found):
        on_event(note)
    builder = _Builder(data, contract, VolumeCache(cache, contract), mixed_modalities, on_event, cancelled)
    eta = Eta(len(found.sources))
    on_event(eta.step(0))
    for done, source in enumerate(found.sources, start=1):
        builder.take(source)
        on_event(eta.step(done, source.name))
    return builder.volumes(Patients(data, [source.name for source in found.sources]))


@dataclass(frozen=True)
class PreparedScan:
    """A scan in the cache."""

    id: str
    voxels: PackedArray
    """(K, J, I) int16."""
    grid: PreparedGrid
    stats: IntensityStats

    def facts(self, name: str, patient: str) -> Scan:
        """The scan under a name."""
        return Scan(
            self.id, name, patient, self.grid.shape_kji, self.grid.spacing_kji_mm, self.stats, self.grid
        )


class VolumeCache:
    """Prepared scans in a folder, by what they show and how they were prepared.

    Args:
        folder: made if missing.
        contract: of which only the spacings count.

    Raises:
        StorageError: the folder cannot be made.
    """

    def __init__(self, folder: Path, contract: InputContract) -> None:
        settings = json.dumps([_FORMAT, "RAS", "body", contract.spacing_kji_mm])
        self.contract = contract
        self.scans = folder / hashlib.sha256(settings.encode()).hexdigest()[:16]
        self.sources = folder / "sources"
        try:
            for made in (self.scans, self.sources):
                made.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"The cache folder {folder} cannot be made ({error.strerror}); choose another one."
            ) from error

    def find(self, volume: Volume, scan: str) -> PreparedScan | None:
        """The scan that a volume shows, by its `scan_id`; None if it is not here, whole."""
        return self.find_noted(scan, source_facts(PreparedGrid.of(volume, self.contract)))

    def find_noted(self, scan: str, source: Mapping[str, Any]) -> PreparedScan | None:
        """A scan by its id and the `source_facts` of the file it is wanted for; None if it is not here, whole."""
        facts = _read_json(self._facts(scan))
        path = self.scans / f"{scan}.b2nd"
        if facts is None or not path.is_file() or path.stat().st_size != facts["bytes"]:
            return None
        prepared = PreparedGrid.from_json({**facts["grid"], **source})
        return PreparedScan(
            scan, PackedArray(path, prepared.shape_kji), prepared, IntensityStats(**facts["stats"])
        )

    def add(self, volume: Volume, scan: str, cancelled: Callable[[], bool] = lambda: False) -> PreparedScan:
        """Prepare a volume and keep it.

        Args:
            volume: the source.
            scan: its `scan_id`.
            cancelled: asked between slices.

        Raises:
            StorageError: no space, no permission; nothing is left behind.
            Cancelled: `cancelled` said so.
        """
        voxels, grid = prepare_image(volume, self.contract, cancelled)
        stats = intensity_stats(voxels)
        path = self.scans / f"{scan}.b2nd"
        size = pack(voxels, path)
        _write_json(self._facts(scan), {"bytes": size, "grid": grid.to_json(), "stats": asdict(stats)})
        return PreparedScan(scan, PackedArray(path, grid.shape_kji), grid, stats)

    def noted(self, fingerprint: str) -> list[dict[str, Any]] | None:
        """What `note` said about a source; None if nothing."""
        values = _read_json(self.sources / f"{fingerprint}.json")
        return None if values is None else list(values["scans"])

    def note(self, fingerprint: str, scans: list[dict[str, Any]]) -> None:
        """Remember what a source holds."""
        _write_json(self.sources / f"{fingerprint}.json", {"scans": scans})

    def _facts(self, scan: str) -> Path:
        return self.scans / f"{scan}.json"


def source_facts(grid: PreparedGrid) -> dict[str, Any]:
    """The part of a prepared grid that belongs to the source, not to what the scan shows."""
    values = grid.to_json()
    return {name: values[name] for name in ("source_shape_kji", "source_ijk_to_ras", "axes", "flipped")}


class _Builder:
    """Takes sources into a cache one after another and remembers what they gave."""

    def __init__(
        self,
        data: Path,
        contract: InputContract,
        cache: VolumeCache,
        mixed_modalities: bool,
        on_event: Callable[[Progress | Log], None],
        cancelled: Callable[[], bool],
    ) -> None:
        self._data = data
        self._contract = contract
        self._cache = cache
        self._mixed = mixed_modalities
        self._on_event = on_event
        self._cancelled = cancelled
        self._taken: list[tuple[str, str, bool, PreparedScan]] = []
        self._problems: list[str] = []

    def take(self, source: Source) -> None:
        """Take in the scans of a source, from the cache if it is known."""
        if self._cancelled():
            raise Cancelled("The preparation was cancelled.")
        fingerprint = source.fingerprint
        notes = self._cache.noted(fingerprint) or []
        known = [self._cache.find_noted(note["id"], note["grid"]) for note in notes]
        if not notes or None in known:
            notes, known = self._read(source, fingerprint)
        for note, prepared in zip(notes, known, strict=True):
            if prepared is not None:
                name, shift = source.name + note["suffix"], note.get("shift", "")  # the oldest notes lack it
                self._check_modality(name, note["modality"], note["stated"], shift)
                if shift and note["modality"] == "CT":
                    self._on_event(Log(f"{name} {shift}, or it is seen far too bright."))
                self._taken.append((name, note["patient"], source.path.is_dir(), prepared))

    def volumes(self, patients: Patients) -> UnlabelledVolumes:
        """All scans taken in, each once; scans with the same content share a patient."""
        if not self._taken:
            raise InputError(
                f"None of the images in {self._data} can be read; the first problem: {self._problems[0]}"
            )
        first: dict[str, str] = {}
        same = SamePatients()
        for name, dicom_patient, is_folder, prepared in self._taken:
            patient = patients.of(name, dicom_patient, is_folder)
            if prepared.id in first:
                self._on_event(Log(f"{name} holds the same voxels as {first[prepared.id]}; it is kept once."))
            first.setdefault(prepared.id, name)
            same.join(prepared.id, patient)
        kept = [entry for entry in self._taken if first[entry[3].id] == entry[0]]
        owners = [same.of(prepared.id) for *_, prepared in kept]
        self._on_event(Log(f"Scans: {len(kept)}, patients: {len(set(owners))}."))
        return UnlabelledVolumes(
            [prepared.facts(name, owner) for (name, _, _, prepared), owner in zip(kept, owners, strict=True)],
            [prepared.voxels for *_, prepared in kept],
        )

    def _read(
        self, source: Source, fingerprint: str
    ) -> tuple[list[dict[str, Any]], list[PreparedScan | None]]:
        notes: list[dict[str, Any]] = []
        known: list[PreparedScan | None] = []
        whole = True
        for read in source.read():
            if isinstance(read, ReadScan):
                prepared = self._prepared(source.name + read.suffix, read)
                notes.append(_note(read, prepared))
                known.append(prepared)
            else:
                whole = False
                problem = str(read).replace(f"{self._data}/", "")
                self._problems.append(problem)
                self._on_event(Log(f"{source.name} was left out: {problem}"))
        if whole:
            self._cache.note(fingerprint, notes)
        return notes, known

    def _prepared(self, name: str, read: ReadScan) -> PreparedScan:
        modality = read.modality or guessed_modality(read.volume)
        self._check_modality(name, modality, bool(read.modality), shift_problem(read.volume))
        scan = scan_id(read.volume)
        return self._cache.find(read.volume, scan) or self._cache.add(read.volume, scan, self._cancelled)

    def _check_modality(self, name: str, modality: str, stated: bool, shift: str) -> None:
        if not self._mixed:
            require_modality(name, modality, stated, self._contract, shift)


def _note(read: ReadScan, prepared: PreparedScan) -> dict[str, Any]:
    return {
        "id": prepared.id,
        "suffix": read.suffix,
        "patient": read.patient,
        "modality": read.modality or guessed_modality(read.volume),
        "stated": bool(read.modality),
        "shift": shift_problem(read.volume),
        "grid": source_facts(prepared.grid),
    }


def require_modality(
    name: str, modality: str, stated: bool, contract: InputContract, shift: str = ""
) -> None:
    """Check that a scan is of the contract's modality; a guess only tells CT from the rest.

    Args:
        name: of the scan.
        modality: stated or guessed.
        stated: it is not a guess.
        contract: of the network's input.
        shift: `shift_problem` of the volume.

    Raises:
        InputError: it is not.
    """
    wanted = contract.modality.upper()
    if modality != wanted if stated else (modality == "CT") != (wanted == "CT"):
        if shift and not stated and wanted == "CT":
            raise InputError(f"{name} {shift}, or leave it out.")
        says = "is" if stated else "looks like"
        raise InputError(
            f"{name} {says} {modality}, but this input is made for {wanted}; leave it out, or state its modality"
            " in a meta.json beside it."
        )


def guessed_modality(volume: Volume) -> str:
    """CT where there is air or fat in Hounsfield units, else MR."""
    return "CT" if looks_like_ct(volume) else "MR"


def left_out(found: Found) -> list[Log]:
    """Say which files and folders below a data folder are passed over."""
    notes = []
    if found.labels:
        notes.append(Log(f"Left out as label maps: {some(found.labels)}."))
    if found.closed:
        notes.append(Log(f"Left out, as these folders may not be read: {some(found.closed)}."))
    return notes


def some(names: Sequence[str]) -> str:
    """The first few of many names, for a message."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _read_json(path: Path) -> dict[str, Any] | None:
    """A file of the cache; None if it is missing or not whole."""
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(values), encoding="utf-8")
