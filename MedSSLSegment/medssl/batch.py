"""A folder of volumes in, a folder of segmentations out; resumable, and a bad file does not stop the others.

    out/batch.json        what was asked for; another request needs another folder
    out/summary.csv       a line for every volume and segment: what was found, or what went wrong
    out/<name>.seg.nrrd   the result of a volume, in the folders the volumes lie in

A volume whose result is there is not done again; one that failed is tried again.
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .datasets.sources import ReadScan, Source, find_sources, image_stem
from .errors import Cancelled, InputError, MedSSLError
from .events import Eta, Progress
from .segmentation import Segmentation, write_segmentation
from .storage import atomic_path, make_folder
from .volume import Volume

__all__ = ["BatchItem", "run_batch"]

_COLUMNS = ("volume", "state", "segment", "volume_ml", "seconds", "output", "problem")


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


def run_batch(
    data: Path,
    out: Path,
    settings: Mapping[str, Any],
    segment: Callable[[Volume], Segmentation],
    *,
    exclude: tuple[str, ...] = (),
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[BatchItem | Progress]:
    """Segment every volume of a folder.

    Args:
        data: folder of images and DICOM folders, at any depth.
        out: folder of results, new or of an earlier run with the same settings.
        settings: plain values that say what is asked for: model, options.
        segment: does the work for one volume.
        exclude: names below `data` to leave out; * and ? stand for anything.
        cancelled: asked before each volume; what was written stays.

    Yields:
        An item for each volume, those of an earlier run first, and progress.

    Raises:
        InputError: no volumes, or the folder of results belongs to another request.
        StorageError: the folder of results cannot be written.
        Cancelled: `cancelled` said so.
    """
    sources = find_sources(data, exclude).sources
    if not sources:
        raise InputError(
            f"The folder {data} holds no image; give one with .nii.gz, .nrrd, .mha or DICOM files."
        )
    make_folder(out)
    _require_same(out / "batch.json", settings)
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
        elif source.name + read.suffix not in known:
            yield _item(source, read, out, segment)


def _item(source: Source, read: ReadScan, out: Path, segment: Callable[[Volume], Segmentation]) -> BatchItem:
    name, started = source.name + read.suffix, time.monotonic()
    output = Path(source.name).with_name(image_stem(Path(source.name).name) + read.suffix + ".seg.nrrd")
    try:
        found = segment(read.volume)
        make_folder((out / output).parent)
        write_segmentation(found, out / output)
    except Cancelled:
        raise
    except (MedSSLError, MemoryError) as error:
        return BatchItem(name, "failed", problem=str(error) or "There is not enough memory for this volume.")
    voxel_ml = float(np.prod(found.spacing_kji_mm)) / 1000.0
    sizes = {part: float(np.count_nonzero(found.mask(part))) * voxel_ml for part in found.names}
    return BatchItem(name, "done", output.as_posix(), sizes, time.monotonic() - started)


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
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(_COLUMNS)
        for item in items.values():
            for part, size in item.volumes_ml.items() or (("", None),):
                size_text = "" if size is None else f"{size:.3f}"
                rows.writerow(
                    [item.name, item.state, part, size_text, f"{item.seconds:.2f}", item.output, item.problem]
                )


def _read_summary(path: Path) -> list[BatchItem]:
    """Items of an earlier run, with their segments together again."""
    if not path.is_file():
        return []
    items: dict[str, BatchItem] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            before = items.get(row["volume"])
            sizes = {} if before is None else dict(before.volumes_ml)
            if row["segment"]:
                sizes[row["segment"]] = float(row["volume_ml"])
            state: Literal["done", "failed"] = "done" if row["state"] == "done" else "failed"
            items[row["volume"]] = BatchItem(
                row["volume"], state, row["output"], sizes, float(row["seconds"]), row["problem"]
            )
    return list(items.values())
