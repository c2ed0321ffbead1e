"""Which axial slices of each scan show an organ: two numbers a scan, all that weakly supervised methods are told.

A table is a CSV file with the columns scan, first, last and, where it is known, id:

    scan,id,first,last
    case_01/ct.nii.gz,5d0c...,31,58
    case_02/ct.nii.gz,,,

`scan` is the file's path below the data folder. `first` and `last` are the file's own axial slices, counted from 0,
both included, in either order; where both are empty, the organ is not in the scan. `id` is the scan's SHA-256: where
it is given, the scan is recognised under any name.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import Cancelled, InputError, MedSSLError
from ..events import Eta, Log, Progress
from ..pipeline import annotated_slices
from ..storage import atomic_path
from ..volume import as_stack
from .data import Scan, UnlabelledVolumes
from .grid import scan_id
from .labelled import find_cases
from .volume_cache import some

__all__ = ["Presence", "presence_from_labels", "read_presence", "with_presence", "write_presence"]

_COLUMNS = ("scan", "id", "first", "last")


@dataclass(frozen=True)
class Presence:
    """A row of the table.

    Raises:
        InputError: only one of the two slices is given, or one is below 0.
    """

    scan: str
    """Path below the data folder."""
    slices: tuple[int, int] | None
    """First and last axial slice of the file that shows the organ; None if it does not."""
    id: str = ""
    """The scan's id, "" if unknown."""

    def __post_init__(self) -> None:
        if self.slices is not None and min(self.slices) < 0:
            raise InputError(f"Slices count from 0; {self.scan} has {self.slices[0]} and {self.slices[1]}.")


def presence_from_labels(
    data: Path,
    segments: Sequence[str],
    *,
    missing_is_absent: bool = False,
    exclude: Sequence[str] = (),
    on_event: Callable[[Progress | Log], None] = lambda event: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> tuple[Presence, ...]:
    """Make the table from label maps.

    Args:
        data: images with labels, as `labelled` finds them.
        segments: names; a slice counts if it shows any of them.
        missing_is_absent: what a label map does not name is not in the scan. Otherwise nobody has looked for it, and
            the scan is left out of the table.
        exclude: names of files or folders below `data` to leave out; * and ? stand for anything.
        on_event: told how far it is, and what was left out and why.
        cancelled: asked between scans.

    Raises:
        InputError: there are no cases, or none shows the organ.
        Cancelled: `cancelled` said so.
    """
    cases = find_cases(data, exclude)
    wanted = ", ".join(segments)
    eta = Eta(len(cases))
    rows: list[Presence] = []
    unknown: list[str] = []
    names: set[str] = set()
    name_of: dict[str, str] = {}
    for done, case in enumerate(cases, start=1):
        if cancelled():
            raise Cancelled("The table was not written: cancelled.")
        try:
            volume, truth, unlabelled = case.read_with_unknown()
        except MedSSLError as error:
            on_event(Log(f"{case.name} was left out: {error}"))
            continue
        if unlabelled is not None:
            on_event(Log(f"{case.name} was left out: on parts of it nobody has said where {wanted} is."))
            continue
        names.update(truth.names)
        if missing_is_absent or not set(segments).isdisjoint(truth.names):
            shown = np.isin(truth.labels_kji, [s.label for s in truth.segments if s.name in segments])
            found = annotated_slices(as_stack(shown, volume.axis_of("axial")))
            row = Presence(case.name, (found[0], found[-1]) if found else None, scan_id(volume))
            if row.id in name_of:
                on_event(Log(f"{case.name} was left out: it holds the voxels of {name_of[row.id]}."))
                continue
            name_of[row.id] = case.name
            rows.append(row)
        else:
            unknown.append(case.name)
        on_event(eta.step(done, case.name))
    if all(row.slices is None for row in rows):
        raise InputError(
            f"No scan in {data} shows {wanted}; the labels there are: {', '.join(sorted(names))}."
        )
    if unknown:
        on_event(Log(f"Left out, as {wanted} is not among the labels: {some(unknown)}."))
    return tuple(rows)


def read_presence(path: Path) -> tuple[Presence, ...]:
    """Read a table.

    Raises:
        InputError: the file is missing, or a row is not as it must be; the message says which.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"The presence table {path} cannot be read; give a CSV file.") from error
    rows = [_row(line, f"Line {number} of {path.name}") for number, line in enumerate(lines, start=2)]
    if not rows:
        raise InputError(f"The presence table {path} has no rows; make it with 'medssl presence'.")
    for keys in ([row.scan for row in rows if row.scan], [row.id for row in rows if row.id]):
        twice = [key for key in set(keys) if keys.count(key) > 1]
        if twice:
            raise InputError(f"{path.name} names {min(twice)} in several lines; keep one of them.")
    return tuple(rows)


def write_presence(rows: Iterable[Presence], path: Path) -> None:
    """Write a table, whole or not at all.

    Raises:
        StorageError: no space, no permission.
    """
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        for row in rows:
            writer.writerow([row.scan, row.id, *(row.slices or ("", ""))])


def with_presence(
    volumes: UnlabelledVolumes,
    rows: Sequence[Presence],
    on_event: Callable[[Log], None] = lambda event: None,
) -> UnlabelledVolumes:
    """The volumes that a table knows, weakly supervised by it.

    Args:
        volumes: unlabelled.
        rows: a scan is looked up by its id, then by its name.
        on_event: told which scans are left out because the table does not know them.

    Raises:
        InputError: the table knows none of the scans, none of them shows the organ, or a slice does not exist.
    """
    by_id = {row.id: row for row in rows if row.id}
    by_name = {row.scan: row for row in rows if row.scan}
    found = [by_id.get(scan.id) or by_name.get(scan.name) for scan in volumes.scans]
    unknown = [scan.name for scan, row in zip(volumes.scans, found, strict=True) if row is None]
    kept = [n for n, row in enumerate(found) if row is not None]
    if not kept:
        raise InputError(
            f"The presence table knows none of the scans, e.g. not {unknown[0]}; its first line is for"
            f" {rows[0].scan or rows[0].id}."
        )
    if unknown:
        on_event(Log(f"Left out, as the presence table does not name them: {some(unknown)}."))
    tables = [_on_grid(volumes.scans[n], row) for n, row in enumerate(found) if row is not None]
    if not any(table.any() for table in tables):
        raise InputError("By the presence table no scan shows the organ; correct the table.")
    return volumes.only(kept).with_presence(tables)


def _on_grid(scan: Scan, row: Presence) -> NDArray[np.bool_]:
    """(K,) table on the scan's prepared grid."""
    count = scan.shape_kji[0] if scan.grid is None else scan.grid.source_shape_kji[scan.grid.axes[0]]
    source = np.zeros(count, np.bool_)
    if row.slices is not None:
        if max(row.slices) >= count:
            raise InputError(
                f"The presence table says slices {row.slices[0]} to {row.slices[1]} of {scan.name}, which has"
                f" {count}, counted from 0."
            )
        source[min(row.slices) : max(row.slices) + 1] = True
    return source if scan.grid is None else scan.grid.slices(0, source)


def _row(line: dict[str, str | None], where: str) -> Presence:
    scan, scan_sha, first, last = ((line.get(name) or "").strip() for name in _COLUMNS)
    if not (scan or scan_sha) or bool(first) != bool(last):
        raise InputError(f"{where} must name a scan (or its id) and give first and last, or neither.")
    try:
        slices = (int(first), int(last)) if first else None
    except ValueError as error:
        raise InputError(f"{where} has {first} and {last} for slices; give whole numbers.") from error
    return Presence(scan.replace("\\", "/"), slices, scan_sha.lower())
