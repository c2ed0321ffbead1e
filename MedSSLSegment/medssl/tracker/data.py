"""The volumes of the default model's trainings: labelled, unlabelled and drawn, all in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..cases import CaseStore
from ..datasets.labelled import LabelledCase, pair_up
from ..datasets.sources import Found, ReadScan, find_sources, is_excluded, stated_modality
from ..datasets.volume_cache import guessed_modality, some
from ..errors import InputError
from ..phantom import phantom_ct
from ..segmentation import Segmentation, read_segmentation
from ..volume import Volume
from .clips import ClipSampler, LabelledVolume, ObjectChooser, synthesise_ct
from .prompt_samples import PromptSampler

__all__ = ["TrackerData", "read_data"]

_COARSE_PX = 12_000
_DRAWINGS_PER_LABEL_MAP = 4
_FIRST_PHANTOM = 1000


@dataclass(frozen=True, eq=False)
class TrackerData:
    """All volumes of a run."""

    coarse: list[LabelledVolume] = field(default_factory=list)
    """Labelled, of few pixels a slice: many small cases."""
    fine: list[LabelledVolume] = field(default_factory=list)
    """Labelled, of full size: few large cases."""
    unlabelled: list[LabelledVolume] = field(default_factory=list)
    drawn: list[LabelledVolume] = field(default_factory=list)
    """Images drawn for real or phantom labels."""
    no_ct: list[str] = field(default_factory=list)
    """Names of the scans that were left out because they are no CT."""
    damaged: list[str] = field(default_factory=list)
    """What is wrong with the cases of a store that were left out because they cannot be read, a sentence each."""

    def __len__(self) -> int:
        """How many volumes there are."""
        return len(self.coarse) + len(self.fine) + len(self.unlabelled) + len(self.drawn)

    @property
    def description(self) -> str:
        """One line for a person."""
        return (
            f"{len(self.coarse) + len(self.fine)} labelled and {len(self.unlabelled)} unlabelled CTs,"
            f" {len(self.drawn)} drawn volumes.{self.left_out}"
        )

    @property
    def left_out(self) -> str:
        """What was left out and why, each sentence behind a space; empty for nothing."""
        said = ""
        if self.no_ct:
            said += f" Left out, no CT: {some(self.no_ct)} (a meta.json beside it may say otherwise)."
        if self.damaged:
            said += f" Left out, damaged: {' '.join(self.damaged)}"
        return said

    def clips(self, pseudo_share: float, size: int) -> ClipSampler:
        """Draws clips from all of them; pseudo-objects from real CT where there is any."""
        groups = [(0.6, self.coarse), (0.12, self.fine), (0.28, self.drawn)]
        return ClipSampler(ObjectChooser(groups), self._real or self.drawn, pseudo_share, size)

    def prompts(self, pseudo_share: float, size: int) -> PromptSampler:
        """Draws prompts, more of them on drawn volumes: few others show large organs."""
        groups = [(0.45, self.coarse), (0.15, self.fine), (0.4, self.drawn)]
        chooser = ObjectChooser(groups, on_single_slices=True)
        return PromptSampler(chooser, self._real or self.drawn, pseudo_share, size)

    @property
    def _real(self) -> list[LabelledVolume]:
        return self.coarse + self.fine + self.unlabelled


def read_data(folder: Path, exclude: Sequence[str], phantoms: int, seed: int) -> TrackerData:
    """Read every CT of a data folder, with its labels where it has any, and draw CTs for label maps without one.

    Args:
        folder: cases in the layouts of `datasets.labelled`, and images without labels; or a case store, of which only
            the slices that are vouched for are learnt.
        exclude: names of files or folders below it to leave out; * and ? stand for anything.
        phantoms: how many phantoms to add.
        seed: of the drawn volumes.

    Raises:
        InputError: there is no such folder, a file in it cannot be read, or it holds no CT and no label map.
    """
    data = TrackerData()
    if CaseStore.is_at(folder):
        _take_store(CaseStore(folder), exclude, data)
    else:
        _take_folder(folder, exclude, seed, data)
    if not len(data):
        raise InputError(
            f"The folder {folder} holds no CT to train on; give case folders with ct.nii.gz, and label.nii.gz where"
            f" there are labels.{data.left_out}"
        )
    data.drawn.extend(_phantoms(phantoms))
    return data


def _take_store(store: CaseStore, exclude: Sequence[str], data: TrackerData) -> None:
    """Every segment of a case is known on slices of its own."""
    for case in store.cases(lambda log: data.damaged.append(log.text)):
        if is_excluded(case.id, exclude) or is_excluded(case.name, exclude):
            continue
        volume, truth = case.volume(), case.segmentation()
        if not _is_ct(volume, case.modality, case.name, data):
            continue
        for segment in truth.segments:
            vouched: dict[int, list[int]] = {}
            for one in case.vouched:
                if one.segment == segment.name:
                    vouched.setdefault(one.axis, []).extend(one.indices)
            labels = (truth.labels_kji == segment.label).astype(np.uint8)
            _take(LabelledVolume(volume.voxels_kji, labels, volume.spacing_kji_mm, vouched), data)


def _take_folder(folder: Path, exclude: Sequence[str], seed: int, data: TrackerData) -> None:
    found = find_sources(folder, exclude)
    cases = pair_up(found, folder)
    for case in cases:
        _take_labelled(case, data)
    _take_unlabelled(found, {case.image for case in cases if isinstance(case.image, Path)}, data)
    taken = {case.labels for case in cases}
    rng = np.random.default_rng(seed)
    for name in found.labels:
        if folder / name not in taken and not Path(name).name.startswith("auto_"):
            data.drawn.extend(_drawings(folder / name, rng))


def _take(volume: LabelledVolume, data: TrackerData) -> None:
    (data.coarse if volume.image[0].size < _COARSE_PX else data.fine).append(volume)


def _take_labelled(case: LabelledCase, data: TrackerData) -> None:
    try:
        volume, truth, unknown = case.read_with_unknown()
    except InputError as error:
        raise InputError(f"The case {case.name} cannot be used: {error}") from error
    stated = stated_modality(case.image) if isinstance(case.image, Path) else ""
    if not _is_ct(volume, stated, case.name, data):
        return
    if unknown is None:
        _take(_labelled(volume, truth), data)
    elif known := {axis: slices for axis in range(3) if (slices := _without(unknown, axis))}:
        _take(LabelledVolume(volume.voxels_kji, truth.labels_kji, volume.spacing_kji_mm, known), data)
    else:
        data.unlabelled.append(LabelledVolume(volume.voxels_kji, None, volume.spacing_kji_mm))


def _without(unknown: NDArray[np.bool_], axis: int) -> list[int]:
    """Slices across an axis with nothing unknown on them."""
    others = tuple(other for other in range(3) if other != axis)
    slices: list[int] = np.flatnonzero(~unknown.any(axis=others)).tolist()
    return slices


def _take_unlabelled(found: Found, labelled: set[Path], data: TrackerData) -> None:
    for source in found.sources:
        for scan in source.read() if source.path not in labelled else ():
            if not isinstance(scan, ReadScan):
                raise InputError(f"The scan {source.name} cannot be used: {scan}") from scan
            if _is_ct(scan.volume, scan.modality, source.name, data):
                volume = scan.volume
                data.unlabelled.append(LabelledVolume(volume.voxels_kji, None, volume.spacing_kji_mm))


def _is_ct(volume: Volume, stated: str, name: str, data: TrackerData) -> bool:
    """Whether to train on it; takes down the name of what is something else."""
    if (stated or guessed_modality(volume)) == "CT":
        return True
    data.no_ct.append(name)
    return False


def _labelled(volume: Volume, truth: Segmentation) -> LabelledVolume:
    return LabelledVolume(volume.voxels_kji, truth.labels_kji, volume.spacing_kji_mm)


def _drawings(labels: Path, rng: np.random.Generator) -> Iterator[LabelledVolume]:
    """CTs as they might be that a label map belongs to."""
    truth = read_segmentation(labels)
    for _ in range(_DRAWINGS_PER_LABEL_MAP):
        image = synthesise_ct(truth.labels_kji, truth.spacing_kji_mm, rng)
        yield LabelledVolume(image, truth.labels_kji, truth.spacing_kji_mm)


def _phantoms(count: int) -> Iterator[LabelledVolume]:
    for number in range(count):
        phantom = phantom_ct(seed=_FIRST_PHANTOM + number)
        yield _labelled(phantom.volume, phantom.segmentation)
