"""A folder of volumes in, a folder of segmentations out; resumable, and a bad file does not stop the others.

    out/batch.json        what was asked for; another request needs another folder
    out/summary.csv       a line for every volume and segment: what was found, or what went wrong, and which DICOM
                          series "[series 1]" is; file names tell nothing of it, a description may name the patient
    out/<name>.seg.nrrd   the result of a volume, in the folders the volumes lie in; <name> has no suffix unless
                          another volume's result has that name already: a.nii.gz and a.nrrd, or a DICOM folder a

A volume whose result is there is not done again; one that failed is tried again.
"""

from __future__ import annotations

import csv
import glob
import itertools
import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from .datasets.sources import ReadScan, Source, find_sources, image_stem
from .datasets.volume_cache import left_out
from .errors import Cancelled, InputError, MedSSLError, StorageError
from .events import Eta, Log, Progress
from .segmentation import Segmentation, write_segmentation
from .storage import atomic_path, make_folder, one_at_a_time
from .volume import Volume

__all__ = ["BatchItem", "run_batch"]

_ENCODING, _NO_TEXT = "utf-8", "surrogateescape"
"""How names are written down, and those of files that are no text."""
_COLUMNS = ("volume", "state", "segment", "volume_ml", "seconds", "output", "problem", "series")


@dataclass(frozen=True)
class BatchItem:
    """What became of a volume."""

    name: str
    """Path below the folder."""
    state: Literal["done", "failed"]
    output: str = ""
    """Path below the result folder."""
    volumes_ml: Mapping[str, float] = field(default_factory=dict)
    """Size of each segment."""
    seconds: float = 0.0
    problem: str = ""
    """One sentence, where it failed."""
    series: str = ""
    """Which DICOM series it is, for a person; empty for an image file."""


def run_batch(
    data: Path,
    out: Path,
    settings: Mapping[str, Any],
    segment: Callable[[Volume], Segmentation],
    *,
    exclude: tuple[str, ...] = (),
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[BatchItem | Log | Progress]:
    """Segment every volume of a folder.

    Args:
        data: folder of images and DICOM folders, at any depth.
        out: folder of results, new or of an earlier run with the same settings.
        settings: plain values that say what is asked for: model, options.
        segment: does the work for one volume.
        exclude: names below `data` to leave out; * and ? stand for anything.
        cancelled: asked before each volume; what was written stays.

    Yields:
        What was left out and why, an item for each volume, those of an earlier run first, and progress.

    Raises:
        InputError: no volumes, or the folder of results belongs to another request, or another program fills it.
        StorageError: the folder of results cannot be written, or is full; the same command goes on.
        Cancelled: `cancelled` said so.
    """
    found = find_sources(data, (*exclude, *_results_within(data, out)))
    sources = found.sources
    if not sources:
        raise InputError(
            f"The folder {data} holds no image; give one with .nii.gz, .nrrd, .mha or DICOM files."
        )
    make_folder(out)
    busy = InputError(f"Another batch is filling {out} now; wait for its end, or choose another folder.")
    with one_at_a_time(out / ".lock", busy):  # each would write a summary of its own volumes only
        _require_same(out / "batch.json", settings)
        yield from left_out(found)
        yield from _results(sources, out, segment, cancelled)


def _results(
    sources: Sequence[Source],
    out: Path,
    segment: Callable[[Volume], Segmentation],
    cancelled: Callable[[], bool],
) -> Iterator[BatchItem | Progress]:
    items = {item.name: item for item in _read_summary(out / "summary.csv") if (out / item.output).is_file()}
    items = {name: item for name, item in items.items() if item.state == "done"}
    yield from items.values()
    eta = Eta(len(sources))
    for done, source in enumerate(sources, start=1):
        for item in _items(source, out, items, segment, cancelled):
            items[item.name] = item
            _write_summary(out / "summary.csv", items)
            yield item
        yield eta.step(done, source.name)


def _items(
    source: Source,
    out: Path,
    known: Mapping[str, BatchItem],
    segment: Callable[[Volume], Segmentation],
    cancelled: Callable[[], bool],
) -> Iterator[BatchItem]:
    if source.name in known and not source.path.is_dir():
        return
    for read in source.read():
        if cancelled():
            raise Cancelled("The batch was cancelled; the same command goes on.")
        if not isinstance(read, ReadScan):
            yield BatchItem(source.name, "failed", problem=str(read))
        elif (name := source.name + read.suffix) not in known:
            taken = {item.output.casefold() for item in known.values() if item.name != name}
            item = _item(name, read.volume, out, _output_name(source, read.suffix, taken), segment)
            yield replace(item, series=read.series)


def _output_name(source: Source, suffix: str, taken: Collection[str]) -> Path:
    """File name of a result, below the folder of results: without the image's own suffix where that is free.

    Args:
        source: an image, or a DICOM folder, which may be the folder of images itself.
        suffix: of the series.
        taken: results of other volumes, case-folded, as some systems take no notice of case.
    """
    path = PurePosixPath(source.name if source.name != "." else source.path.resolve().name)
    stems = itertools.chain(
        [image_stem(path.name), path.name], (f"{path.name} {n}" for n in itertools.count(2))
    )
    outputs = (path.with_name(f"{stem}{suffix}.seg.nrrd") for stem in stems)
    return Path(next(output for output in outputs if str(output).casefold() not in taken))


def _item(
    name: str, volume: Volume, out: Path, output: Path, segment: Callable[[Volume], Segmentation]
) -> BatchItem:
    started = time.monotonic()
    try:
        found = segment(volume)
        make_folder((out / output).parent)
        write_segmentation(found, out / output)
    except (Cancelled, StorageError):
        raise
    except (MedSSLError, MemoryError) as error:
        return BatchItem(name, "failed", problem=str(error) or "There is not enough memory for this volume.")
    except Exception as error:  # whatever it is about this volume, the others are still to be done
        problem = f"The program failed on it ({type(error).__name__}: {' '.join(str(error).split())})."
        return BatchItem(name, "failed", problem=problem)
    voxel_ml = float(np.prod(found.spacing_kji_mm)) / 1000.0
    sizes = {part: float(np.count_nonzero(found.mask(part))) * voxel_ml for part in found.names}
    return BatchItem(name, "done", output.as_posix(), sizes, time.monotonic() - started)


def _results_within(data: Path, out: Path) -> tuple[str, ...]:
    """The folder of results as something to leave out, where it lies in the folder of images."""
    below, above = out.resolve(), data.resolve()
    if below == above or not below.is_relative_to(above):
        return ()
    return (glob.escape(below.relative_to(above).as_posix()),)


def _require_same(path: Path, settings: Mapping[str, Any]) -> None:
    wanted = json.dumps(dict(settings), indent=1, sort_keys=True, default=str)
    if not path.exists():
        if any(not entry.name.startswith(".") for entry in path.parent.iterdir()):
            raise InputError(f"The folder {path.parent} holds other files; choose a new one for the results.")
        with atomic_path(path) as temporary:
            temporary.write_text(wanted, "utf-8")
    elif path.read_text("utf-8") != wanted:
        raise InputError(
            f"The folder {path.parent} holds results of another model or other settings; choose a new one."
        )


def _write_summary(path: Path, items: Mapping[str, BatchItem]) -> None:
    with (
        atomic_path(path) as temporary,
        temporary.open("w", encoding=_ENCODING, errors=_NO_TEXT, newline="") as file,
    ):
        rows = csv.writer(file)
        rows.writerow(_COLUMNS)
        for item in items.values():
            for part, size in item.volumes_ml.items() or (("", None),):
                size_text = "" if size is None else f"{size:.3f}"
                facts = (item.name, item.state, part, size_text, f"{item.seconds:.2f}", item.output)
                rows.writerow([*facts, item.problem, item.series])


def _read_summary(path: Path) -> list[BatchItem]:
    """Items of an earlier run, with their segments together again."""
    if not path.is_file():
        return []
    items: dict[str, BatchItem] = {}
    with path.open(encoding=_ENCODING, errors=_NO_TEXT, newline="") as file:
        for row in csv.DictReader(file):
            before = items.get(row["volume"])
            sizes = {} if before is None else dict(before.volumes_ml)
            if row["segment"]:
                sizes[row["segment"]] = float(row["volume_ml"])
            state: Literal["done", "failed"] = "done" if row["state"] == "done" else "failed"
            series = row.get("series") or ""  # the oldest summaries lack it
            items[row["volume"]] = BatchItem(
                row["volume"], state, row["output"], sizes, float(row["seconds"]), row["problem"], series
            )
    return list(items.values())
