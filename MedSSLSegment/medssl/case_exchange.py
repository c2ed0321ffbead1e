"""Cases in and out of a store: DICOM SEG and image/label pairs come in, nnU-Net and MONAI data sets go out."""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cases import Case, CaseStore, Vouched, vouch_for_all, vouched_voxels
from .datasets.labelled import LabelledCase
from .datasets.sources import image_stem
from .errors import InputError, MedSSLError
from .events import Eta, Log, Progress
from .formats.dicom import choose_series, patient_of
from .formats.imagefile import write_image
from .segmentation import Segmentation
from .storage import atomic_path, make_folder, move
from .volume import Volume, as_stack, read_volume, shift_problem, write_volume

__all__ = ["Pair", "export_monai", "export_nnunet", "import_dicom_seg", "import_pairs"]

_MONAI_FOLDERS = {"image": "images", "label": "labels", "vouched": "vouched"}


@dataclass(frozen=True)
class Pair:
    """An image and its labels, as they lie somewhere."""

    image: Path
    labels: Path
    name: str
    patient: str = ""
    names: Mapping[int, str] | None = None
    """Names of the labels, where the file does not say them."""
    ignored: int | None = None
    """Label of the voxels that nobody vouches for."""


def import_pairs(
    store: CaseStore,
    pairs: Sequence[Pair],
    *,
    copy: bool = True,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[Case | Log | Progress]:
    """Add finished segmentations; every slice of every segment without voxels to ignore is vouched for.

    A pair that cannot be used (another grid, damaged, in the store already) is named in a `Log` and skipped.

    Args:
        store: takes the cases.
        pairs: what to add.
        copy: keep a copy of each image in the store; otherwise it is referred to where it lies.
        cancelled: asked before each pair; what was added stays.
    """
    eta = Eta(len(pairs))
    for done, pair in enumerate(pairs, start=1):
        if cancelled():
            return
        try:
            volume, segmentation, vouched = _read(pair)
            yield store.add(
                volume,
                segmentation,
                vouched,
                name=image_stem(pair.name),
                reference=None if copy else pair.image,
                patient=pair.patient,
            )
            if shift := shift_problem(volume):
                yield Log(f"{pair.name} is kept as MR, but {shift} and import it again.")
        except MedSSLError as error:
            yield Log(f"{pair.name} was skipped: {error}")
        yield eta.step(done, pair.name)


def _read(pair: Pair) -> tuple[Volume, Segmentation, list[Vouched]]:
    """Volume, labels, and the slices on which nothing is unknown, across the axis where most are.

    Raises:
        InputError: a file cannot be read, or there is no such slice.
    """
    case = LabelledCase(pair.name, pair.patient, pair.image, pair.labels, pair.names, ignored=pair.ignored)
    volume, segmentation, unknown = case.read_with_unknown()
    if unknown is None:
        return volume, segmentation, vouch_for_all(segmentation)
    whole = [np.flatnonzero(~as_stack(unknown, axis).any(axis=(1, 2))).tolist() for axis in range(3)]
    axis = max(range(3), key=lambda n: len(whole[n]))
    if not whole[axis]:
        raise InputError("there is no slice without voxels to ignore; annotate at least one slice wholly.")
    return (
        volume,
        segmentation,
        [Vouched(name, axis, tuple(whole[axis]), "imported") for name in segmentation.names],
    )


def import_dicom_seg(
    store: CaseStore, seg: Path, series: Path, uid: str | None = None, name: str = ""
) -> Case:
    """Add a DICOM SEG and the series it was drawn on; every slice of every segment is vouched for.

    Raises:
        InputError: no SEG, another grid, or the volume is in the store already.
    """
    from .formats.dicom_seg import read_dicom_seg

    volume = read_volume(series, uid)
    segmentation = read_dicom_seg(seg, volume)
    patient = patient_of(choose_series(series, uid)) if series.is_dir() else ""
    return store.add(
        volume, segmentation, vouch_for_all(segmentation), name=name or seg.stem, patient=patient
    )


def export_nnunet(
    store: CaseStore, folder: Path, segments: Sequence[str] | None = None
) -> Iterator[Progress | Log]:
    """Write the store as a raw nnU-Net v2 data set: imagesTr, labelsTr, dataset.json.

    Voxels on slices that are not vouched for carry nnU-Net's ignore label, so its partial-label training works.

    Args:
        store: at least one case.
        folder: a new folder, e.g. Dataset501_Liver; it appears when all is written.
        segments: which segments, in this order; None takes all.

    Raises:
        InputError: no case or segment, no slice that is vouched for of all of them, or the folder exists.
        StorageError: no space or no permission.
    """
    cases, names = yield from _chosen(store, folder, segments)
    with _whole(folder) as draft:
        yield from _write_nnunet(cases, names, draft)


def _write_nnunet(cases: Sequence[Case], names: Sequence[str], folder: Path) -> Iterator[Progress]:
    for part in ("imagesTr", "labelsTr"):
        make_folder(folder / part)
    ignore = len(names) + 1
    eta = Eta(len(cases))
    some_ignored = False
    for done, case in enumerate(cases, start=1):
        write_volume(case.volume(), folder / "imagesTr" / f"{case.id}_0000.nii.gz")
        segmentation = case.segmentation()
        labels, known = _label_map(case, segmentation, names)
        some_ignored |= not known.all()
        vouched = np.where(known, labels, ignore).astype(np.uint8)
        write_image(folder / "labelsTr" / f"{case.id}.nii.gz", vouched, segmentation.ijk_to_ras)
        yield eta.step(done, case.name)
    values = {"background": 0, **{name: n for n, name in enumerate(names, start=1)}}
    if some_ignored:
        values["ignore"] = ignore
    _write_json(
        folder / "dataset.json",
        {
            "channel_names": {"0": cases[0].modality},
            "labels": values,
            "numTraining": len(cases),
            "file_ending": ".nii.gz",
        },
    )


def export_monai(
    store: CaseStore, folder: Path, segments: Sequence[str] | None = None
) -> Iterator[Progress | Log]:
    """Write the store as a MONAI datalist: images, labels, vouched masks and datalist.json.

    Every entry has "image", "label" and "vouched": 1 where the labels count. Patients are spread over five folds.

    Raises:
        InputError: no case or segment, no slice that is vouched for of all of them, or the folder exists.
        StorageError: no space or no permission.
    """
    cases, names = yield from _chosen(store, folder, segments)
    with _whole(folder) as draft:
        yield from _write_monai(cases, names, draft)


def _write_monai(cases: Sequence[Case], names: Sequence[str], folder: Path) -> Iterator[Progress]:
    for below in _MONAI_FOLDERS.values():
        make_folder(folder / below)
    patients = sorted({case.patient for case in cases})
    entries = []
    eta = Eta(len(cases))
    for done, case in enumerate(cases, start=1):
        entry = {part: f"{below}/{case.id}.nii.gz" for part, below in _MONAI_FOLDERS.items()}
        segmentation = case.segmentation()
        labels, known = _label_map(case, segmentation, names)
        write_volume(case.volume(), folder / entry["image"])
        write_image(folder / entry["label"], labels, segmentation.ijk_to_ras)
        write_image(folder / entry["vouched"], known.astype(np.uint8), segmentation.ijk_to_ras)
        entries.append({**entry, "fold": patients.index(case.patient) % 5})
        yield eta.step(done, case.name)
    labels_by_value = {"0": "background", **{str(n): name for n, name in enumerate(names, start=1)}}
    _write_json(folder / "datalist.json", {"labels": labels_by_value, "training": entries, "testing": []})


@contextlib.contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """Give a folder to write to beside a new one; it takes its name once the block ends without an error."""
    draft = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    try:
        make_folder(draft)
        yield draft
        move(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _chosen(
    store: CaseStore, folder: Path, segments: Sequence[str] | None
) -> Generator[Log, None, tuple[list[Case], list[str]]]:
    """Cases and segments to export; says which cases are damaged and will be missing."""
    if folder.exists():
        raise InputError(f"{folder} exists already; choose a new folder.")
    damaged: list[Log] = []
    cases = store.cases(damaged.append)
    yield from (Log(f"Left out: {log.text}") for log in damaged)
    known = list(dict.fromkeys(segment.name for case in cases for segment in case.segments))
    names = known if segments is None else list(segments)
    for name in names:
        if name not in known:
            raise InputError(f"No case has a segment '{name}'; the store knows {', '.join(known) or 'none'}.")
    cases = [case for case in cases if any(v.segment in names for v in case.vouched)]
    if not cases:
        raise InputError(f"The case store {store.folder} holds nothing to export.")
    useful = [case for case in cases if _known(case, names).any()]
    if not useful:
        raise InputError(
            f"No case has a slice that is vouched for of all of {', '.join(names)}; name fewer with --segments."
        )
    for case in cases:
        if case not in useful:
            yield Log(f"Left out: {case.name} has no slice that is vouched for of all of {', '.join(names)}.")
    return useful, names


def _label_map(
    case: Case, segmentation: Segmentation, names: Sequence[str]
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """(K, J, I) labels 1 .. n in the order of `names`, and where somebody vouches for all of them."""
    labels = np.zeros(case.shape_kji, np.uint8)
    for n, name in enumerate(names, start=1):
        if name in segmentation.names:
            labels[segmentation.mask(name)] = n
    return labels, _known(case, names)


def _known(case: Case, names: Sequence[str]) -> NDArray[np.bool_]:
    """(K, J, I) where somebody vouches for all of these segments."""
    known = np.ones(case.shape_kji, bool)
    for name in names:
        known &= vouched_voxels(case.shape_kji, case.vouched, name)
    return known


def _write_json(path: Path, value: dict[str, Any]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False), "utf-8")
