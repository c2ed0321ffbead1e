"""Labelled scans on the grid a network works on, for fine-tuning and for measuring, with the way back.

A data folder holds cases in any mix of two layouts:
- case folders: one image (``ct.nii.gz``, ``mr.nii.gz``, ... or a DICOM series) and ``label.nii.gz`` or another label
  file, with ``labels.json`` that names the labels, or a .seg.nrrd, which names them itself;
- pairs: ``images/x.nii.gz`` and ``labels/x.nii.gz``, also nnU-Net's ``imagesTr/x_0000.nii.gz`` and
  ``labelsTr/x.nii.gz`` (of several channels the first counts), with ``labels.json`` in the folder of the labels or
  above it, or nnU-Net's ``dataset.json``.

What nobody vouches for is `IGNORE`: everything outside the vouched slices. A segment that a case does not know at all
is not background there either; `LabelledScan.known` says so.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import Cancelled, InputError, MedSSLError
from ..events import Eta, Log, Progress
from ..pipeline import annotated_slices, choose_axis
from ..segmentation import Segment, Segmentation, default_color, read_segmentation
from ..volume import Volume, as_stack, read_volume, shift_problem
from .data import IGNORE, Scan, SliceArray, intensity_stats
from .grid import PreparedGrid, prepare_image, scan_id
from .input_contract import InputContract, IntensityStats
from .packed import PackedArray, pack
from .sources import Found, Patients, SamePatients, dicom_patient, find_sources, image_stem, stated_modality
from .volume_cache import VolumeCache, guessed_modality, require_modality, some

__all__ = ["LabelledCase", "LabelledScan", "LabelledScans", "find_cases", "pair_up"]

_LABEL_NAMES = ("label.", "labels.", "segmentation.", "mask.", "seg.")
_PAIR_ENDINGS = ("label", "labels", "seg", "mask", "segmentation", "gt", "groundtruth")
_IGNORED = "ignore"
"""nnU-Net's name for the label of voxels that do not count."""
_MOST_SEGMENTS = 254


@dataclass(frozen=True, eq=False)
class LabelledCase:
    """An image and its labels: files, or already in memory."""

    name: str
    """Of the image, below the data folder."""
    patient: str
    """Cases of one patient share it."""
    image: Path | Volume | Callable[[], Volume]
    """A file, in memory, or read when it is asked for."""
    labels: Path | Segmentation | Callable[[], Segmentation]
    names: Mapping[int, str] | None = None
    """All labels of the data set, where the file does not name its own; a case knows every one of them."""
    vouched: Mapping[int, Sequence[int]] | None = None
    """Slices somebody vouches for, by axis of the source (0 = K, 1 = J, 2 = I); None for the whole volume."""
    ignored: int | None = None
    """Label of the voxels that nobody vouches for, as nnU-Net's "ignore"; it is no segment."""
    unknown: NDArray[np.bool_] | None = None
    """(K, J, I) those voxels, where the labels are in memory."""
    colors: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    """RGB, 0 .. 1, that somebody chose for segments, by name."""

    def read(self) -> tuple[Volume, Segmentation]:
        """The image and its labels on the source's own grid.

        Raises:
            InputError: a file cannot be read, or the two do not lie on the same grid.
        """
        volume, segmentation, _ = self.read_with_unknown()
        return volume, segmentation

    def read_with_unknown(self) -> tuple[Volume, Segmentation, NDArray[np.bool_] | None]:
        """As `read`, and the (K, J, I) voxels that nobody vouches for, if there are any."""
        volume = self._volume()
        if not isinstance(self.labels, Path):
            segmentation = self.labels if isinstance(self.labels, Segmentation) else self.labels()
            segmentation.require_grid_of(volume)
            return volume, segmentation, self.unknown
        segmentation = read_segmentation(self.labels, volume)
        unknown = segmentation.labels_kji == (-1 if self.ignored is None else self.ignored)
        if unknown.any():
            segments = tuple(s for s in segmentation.segments if s.label != self.ignored)
            labels = np.where(unknown, 0, segmentation.labels_kji)
            segmentation = replace(segmentation, labels_kji=labels, segments=segments)
        if self.names is not None:
            segmentation = _renamed(segmentation, self.names)
        return volume, segmentation, unknown if unknown.any() else None

    def _volume(self) -> Volume:
        if isinstance(self.image, Path):
            return read_volume(self.image)
        return self.image if isinstance(self.image, Volume) else self.image()

    def in_memory(self) -> LabelledCase:
        """The same case without its files."""
        volume, segmentation, unknown = self.read_with_unknown()
        return replace(self, image=volume, labels=segmentation, unknown=unknown)


@dataclass(frozen=True, eq=False)
class LabelledScan:
    """A case on the prepared grid."""

    scan: Scan
    image: SliceArray
    """(K, J, I) int16."""
    labels: SliceArray
    """(K, J, I) uint8: 0 none of the segments, n + 1 the n-th segment, `IGNORE` unknown."""
    known: tuple[bool, ...]
    """Per segment, whether the case knows it; where it does not, a 0 in `labels` may be that segment."""
    native: PreparedGrid
    """`native.to_native` puts a prediction back onto the source's own grid."""
    case: LabelledCase
    """`case.read()` gives image and truth on that grid, for measuring."""


class LabelledScans:
    """Labelled scans of the same segments. Make them with `from_folder` or `from_cases`.

    Args:
        segments: names; class n + 1 is the n-th.
        scans: all of which know at least one of them.
    """

    def __init__(self, segments: Sequence[str], scans: Sequence[LabelledScan]) -> None:
        if not scans:
            raise InputError(f"There are no scans with labels of {', '.join(segments)}.")
        self.segments = tuple(segments)
        self._scans = tuple(scans)

    def __len__(self) -> int:
        return len(self._scans)

    def __getitem__(self, index: int) -> LabelledScan:
        return self._scans[index]

    def __iter__(self) -> Iterator[LabelledScan]:
        return iter(self._scans)

    @property
    def scans(self) -> tuple[Scan, ...]:
        """Facts of each, e.g. for a split."""
        return tuple(labelled.scan for labelled in self._scans)

    def only(self, indices: Sequence[int]) -> LabelledScans:
        """Some of the scans, e.g. one side of a split."""
        return LabelledScans(self.segments, [self._scans[n] for n in indices])

    @classmethod
    def from_folder(
        cls,
        data: Path,
        contract: InputContract,
        segments: Sequence[str],
        cache: Path | None = None,
        *,
        slices: Literal["all", "annotated"] = "all",
        exclude: Sequence[str] = (),
        mixed_modalities: bool = False,
        on_event: Callable[[Progress | Log], None] = lambda event: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> LabelledScans:
        """Prepare the cases of a folder; see the top of this file. Arguments are those of `from_cases`.

        Args:
            data: the folder.
            exclude: names of files or folders below `data` to leave out; * and ? stand for anything.

        Raises:
            InputError: there are no cases, or none knows any of the segments.
        """
        return cls.from_cases(
            find_cases(data, exclude), contract, segments, cache,
            slices=slices, mixed_modalities=mixed_modalities, on_event=on_event, cancelled=cancelled,
        )  # fmt: skip

    @classmethod
    def from_cases(
        cls,
        cases: Sequence[LabelledCase],
        contract: InputContract,
        segments: Sequence[str],
        cache: Path | None = None,
        *,
        slices: Literal["all", "annotated"] = "all",
        mixed_modalities: bool = False,
        on_event: Callable[[Progress | Log], None] = lambda event: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> LabelledScans:
        """Prepare cases: images linearly, labels by the nearest voxel, both canonical and cropped to the body.

        Args:
            cases: of `find_cases`, or made of a `Volume` and a `Segmentation`.
            contract: grid of the network's input.
            segments: names of those wanted; others count as background.
            cache: folder for the prepared images; None keeps them in memory.
            slices: "all" slices are vouched for, or only the "annotated" ones of the axis they were drawn across,
                where a case does not say it itself.
            mixed_modalities: take cases of any modality.
            on_event: told how far it is, and what was left out and why.
            cancelled: asked between scans and slices.

        Raises:
            InputError: no case can be read, none knows any of the segments, or one is of another modality than the
                contract's.
            StorageError: the cache cannot be written.
            Cancelled: `cancelled` said so.
        """
        _check_segments(segments)
        prepared = _Preparation(contract, None if cache is None else VolumeCache(cache, contract), cancelled)
        eta = Eta(len(cases))
        on_event(eta.step(0))
        scans: list[LabelledScan] = []
        problems: list[str] = []
        unlabelled: list[str] = []
        known: set[str] = set()
        for done, case in enumerate(cases, start=1):
            if cancelled():
                raise Cancelled("The preparation was cancelled.")
            on_event(eta.step(done - 1, case.name))
            try:
                volume, truth, unknown = case.read_with_unknown()
            except MedSSLError as error:
                problems.append(f"{case.name} was left out: {error}")
                on_event(Log(problems[-1]))
                continue
            known.update(truth.names)
            complete = replace(case, vouched=_vouched(case, volume, truth, slices, segments))
            if set(segments).isdisjoint(truth.names) or complete.vouched == {}:
                unlabelled.append(case.name)
                continue
            if not mixed_modalities:
                _require_modality(case, volume, contract)
            classes = _classes(truth, segments, complete.vouched, unknown)
            scans.append(_labelled(complete, truth, segments, classes, prepared.of(volume), prepared.store))
        on_event(eta.step(len(cases)))
        wanted = ", ".join(segments)
        if not scans:
            raise InputError(_nothing(wanted, known, problems))
        if unlabelled:
            on_event(Log(f"Left out, not labelled with {wanted}: {some(unlabelled)}."))
        return cls(segments, _of_one_patient_where_alike(scans))


def _of_one_patient_where_alike(labelled: Sequence[LabelledScan]) -> list[LabelledScan]:
    same = SamePatients()
    for each in labelled:
        same.join(each.scan.id, each.scan.patient)
    return [replace(each, scan=replace(each.scan, patient=same.of(each.scan.id))) for each in labelled]


def find_cases(data: Path, exclude: Sequence[str] = ()) -> tuple[LabelledCase, ...]:
    """Find images with labels in a folder and those below it, by name; see the top of this file.

    Args:
        data: the folder.
        exclude: names of files or folders below `data` to leave out; * and ? stand for anything.

    Raises:
        InputError: there is no such folder, or it holds no image with labels.
    """
    cases = pair_up(find_sources(data, exclude), data)
    if not cases:
        raise InputError(
            f"The folder {data} holds no image with labels; give case folders with an image and label.nii.gz, or"
            " folders images and labels with files of the same names."
        )
    return cases


def pair_up(found: Found, data: Path) -> tuple[LabelledCase, ...]:
    """The images among the sources of a data folder that have labels, with them; by name."""
    patients = Patients(data, [source.name for source in found.sources])
    labels = _paired([source.path for source in found.sources], [data / name for name in found.labels])
    cases = []
    for source in found.sources:
        if label := labels.get(source.path):
            patient = patients.of(source.name, dicom_patient(source), source.path.is_dir())
            names, ignored = _names_for(label, data)
            cases.append(LabelledCase(source.name, patient, source.path, label, names, ignored=ignored))
    return tuple(cases)


def _paired(images: Sequence[Path], labels: Sequence[Path]) -> dict[Path, Path]:
    """The label map of each image that has one: of its name, or else the only one beside the only image of a folder."""
    labels_in: dict[Path, list[Path]] = defaultdict(list)
    for label in labels:
        labels_in[label.parent].append(label)
    found: dict[Path, Path] = {}
    taken: set[Path] = set()
    for image in images:
        for label in [p for p in _of_its_name(image, labels_in) if p not in taken][:1]:
            found[image] = label
            taken.add(label)
    alone = Counter(_folder_of(image) for image in images)
    for image in images:
        folder = _folder_of(image)
        near = [p for p in labels_in.get(folder, ()) if p not in taken and not p.name.startswith("auto_")]
        chosen = [p for p in near if p.name.lower().startswith(_LABEL_NAMES)] or near
        if image not in found and alone[folder] == 1 and chosen and (len(chosen) == 1 or chosen is not near):
            found[image] = chosen[0]
    return found


def _folder_of(image: Path) -> Path:
    return image if image.is_dir() else image.parent


def _of_its_name(image: Path, labels_in: Mapping[Path, Sequence[Path]]) -> list[Path]:
    """Label maps of the same stem in the folder of labels, then those beside the image that are called after it."""
    stems = {image_stem(image.name), image_stem(image.name).removesuffix("_0000")}
    folder = _folder_of(image)
    beside = []
    if folder.name.lower().startswith("image"):
        opposite = folder.with_name("label" + folder.name[len("image") :])
        beside = [p for p in labels_in.get(opposite, ()) if image_stem(p.name) in stems]
    near = [p for p in labels_in.get(folder, ()) if not p.name.startswith("auto_")]
    return beside + [p for p in near if any(_is_pair(stem, image_stem(p.name)) for stem in stems)]


def _is_pair(image: str, label: str) -> bool:
    """x and x_label, x-seg, x.seg, ..."""
    return label.startswith(image) and label[len(image) :].lstrip("_-.").lower() in _PAIR_ENDINGS


def _names_for(label: Path, data: Path) -> tuple[dict[int, str] | None, int | None]:
    """What is said of all label maps of a data set: names, and the label to ignore.

    By a ``labels.json`` in a folder of labels or above it, or nnU-Net's ``dataset.json``. In a case folder it speaks of
    one case, which may not know what it does not show.
    """
    own, beside = label.with_name(f"{image_stem(label.name)}.labels.json"), label.with_name("labels.json")
    is_pool = label.parent.name.lower().startswith("label")
    if own.is_file() or label.name.lower().endswith(".seg.nrrd") or (beside.is_file() and not is_pool):
        return None, None  # read_segmentation finds them
    above = label.parent.parent
    for listed in (beside, above / "dataset.json", above / "labels.json"):
        if listed.is_file() and listed.is_relative_to(data):
            names = _read_names(listed)
            ignored = [
                n for n, called in names.items() if called == _IGNORED and listed.name == "dataset.json"
            ]
            return {n: called for n, called in names.items() if n not in ignored}, next(iter(ignored), None)
    return None, None


def _read_names(path: Path) -> dict[int, str]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        values = values.get("labels", values)
        pairs = [(key, value) if isinstance(value, str) else (value, key) for key, value in values.items()]
        return {int(label): str(name) for label, name in pairs if int(label) > 0}
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f'{path.name} does not name labels; write them as {{"1": "liver"}}.') from error


def _renamed(segmentation: Segmentation, names: Mapping[int, str]) -> Segmentation:
    own = {segment.label: segment.name for segment in segmentation.segments}
    segments = [
        Segment(name, label, default_color(label)) for label, name in sorted({**own, **names}.items())
    ]
    return replace(segmentation, segments=tuple(segments))


def _check_segments(segments: Sequence[str]) -> None:
    if not 0 < len(segments) <= _MOST_SEGMENTS or len(set(segments)) < len(segments):
        raise InputError(
            f"Give 1 to {_MOST_SEGMENTS} different segments, not {', '.join(segments) or 'none'}."
        )


def _require_modality(case: LabelledCase, volume: Volume, contract: InputContract) -> None:
    stated = stated_modality(case.image) if isinstance(case.image, Path) else ""
    modality, shift = stated or guessed_modality(volume), shift_problem(volume)
    require_modality(case.name, modality, bool(stated), contract, shift)


def _vouched(
    case: LabelledCase,
    volume: Volume,
    truth: Segmentation,
    slices: Literal["all", "annotated"],
    segments: Sequence[str],
) -> Mapping[int, Sequence[int]] | None:
    if case.vouched is not None or slices == "all":
        return case.vouched
    axis = choose_axis(volume, truth)
    wanted = np.isin(truth.labels_kji, [s.label for s in truth.segments if s.name in segments])
    indices = annotated_slices(as_stack(wanted, axis))
    return {axis: indices} if indices else {}


@dataclass(frozen=True, eq=False)
class _PreparedImage:
    """A volume on the contract's grid."""

    identity: str
    voxels: SliceArray
    grid: PreparedGrid
    stats: IntensityStats


class _Preparation:
    """Prepares volumes; one that comes several times in a row, with other labels each time, only once.

    Args:
        contract: grid of the network's input.
        store: where prepared images are kept; None keeps them in memory.
        cancelled: asked between slices.
    """

    def __init__(
        self, contract: InputContract, store: VolumeCache | None, cancelled: Callable[[], bool]
    ) -> None:
        self.store = store
        self._contract, self._cancelled = contract, cancelled
        self._last: tuple[Volume, _PreparedImage] | None = None

    def of(self, volume: Volume) -> _PreparedImage:
        """The volume on the contract's grid."""
        if self._last is None or self._last[0] is not volume:
            self._last = volume, self._prepare(volume)
        return self._last[1]

    def _prepare(self, volume: Volume) -> _PreparedImage:
        identity = scan_id(volume)
        if self.store is None:
            image, grid = prepare_image(volume, self._contract, self._cancelled)
            return _PreparedImage(identity, image, grid, intensity_stats(image))
        kept = self.store.find(volume, identity) or self.store.add(volume, identity, self._cancelled)
        return _PreparedImage(identity, kept.voxels, kept.grid, kept.stats)


def _labelled(
    case: LabelledCase,
    truth: Segmentation,
    segments: Sequence[str],
    classes: NDArray[np.uint8],
    image: _PreparedImage,
    store: VolumeCache | None,
) -> LabelledScan:
    grid = image.grid
    scan = Scan(
        image.identity, case.name, case.patient, grid.shape_kji, grid.spacing_kji_mm, image.stats, grid
    )
    labels: SliceArray = grid.labels(classes, case.vouched)
    if store is not None:
        labels = _packed(np.asarray(labels), store.scans, image.identity)
    known = tuple(name in truth.names for name in segments)
    return LabelledScan(scan, image.voxels, labels, known, grid, case)


def _packed(labels: NDArray[np.uint8], folder: Path, scan: str) -> PackedArray:
    path = folder / f"{scan}-labels-{hashlib.sha256(labels.data).hexdigest()[:16]}.b2nd"
    if not path.is_file():
        pack(labels, path)
    return PackedArray(path, labels.shape)


def _classes(
    truth: Segmentation,
    segments: Sequence[str],
    vouched: Mapping[int, Sequence[int]] | None,
    unknown: NDArray[np.bool_] | None,
) -> NDArray[np.uint8]:
    """(K, J, I) class of each source voxel, `IGNORE` outside the vouched slices and where it is unknown."""
    class_of = np.zeros(max([0, *(s.label for s in truth.segments)]) + 1, np.uint8)
    for segment in truth.segments:
        if segment.name in segments:
            class_of[segment.label] = segments.index(segment.name) + 1
    classes: NDArray[np.uint8] = class_of[truth.labels_kji]
    if unknown is not None:
        classes[unknown] = IGNORE
    if vouched is None:
        return classes
    result = np.full_like(classes, IGNORE)
    for axis, indices in vouched.items():
        as_stack(result, axis)[list(indices)] = as_stack(classes, axis)[list(indices)]
    return result


def _nothing(wanted: str, known: Iterable[str], problems: Sequence[str]) -> str:
    if known:
        return f"No case is labelled with {wanted}; the labels there are: {', '.join(sorted(known))}."
    if not problems:
        return f"The label maps are empty; draw {wanted} in at least one."
    return f"No case can be used; the first problem: {problems[0]}"
