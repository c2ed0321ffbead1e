"""PolyCL: contrastive pre-training by choosing which slices are alike (Ward, Moseley, Imran 2025).

An anchor slice s, one positive and one negative slice; T(s) says whether s shows the organ.

    PolyCL-S  positive: the anchor's scan             negative: another scan                    (equation 2)
    PolyCL-O  positive: any scan, equal T             negative: any scan, opposite T            (equation 1)
    PolyCL-M  positive: the anchor's scan, equal T    negative: another scan, opposite T        (published code)
                                                      or the anchor's scan, opposite T          (equation 3)

O and M are weakly supervised: they must be told T.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..datasets.input_contract import InputContract
from ..errors import InputError
from .augment import input_range, random_view
from .base import Anchor, MethodInfo, Moment, Preset
from .contrastive import (
    CPU_CONTRACT,
    CPU_RECIPE,
    PUBLISHED_RECIPE,
    WHOLE_SLICE,
    Contrastive,
    ContrastiveOptions,
    cosine,
    spread,
    triplet_loss,
)

if TYPE_CHECKING:
    from ..datasets.data import UnlabelledVolumes

__all__ = ["PolyCLM", "PolyCLO", "PolyCLOptions", "PolyCLS", "legacy_norm"]

_CITATION = (
    "Ward, Moseley, Imran: Domain and Task-Focused Example Selection for Data-Efficient Contrastive Medical Image"
    " Segmentation, MELBA 2025"
)


@dataclass(frozen=True, kw_only=True)
class PolyCLOptions(ContrastiveOptions):
    """Options of PolyCL; the published method changes no slice, so the view options are off unless set."""

    smallest_area: float = 1.0
    angle_deg: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    noise: float = 0.0
    blur_px: float = 0.0
    temperature: float = 0.05
    """Of the loss; the paper's 1 / batch at its batch of 20, kept when the batch differs."""
    negatives: Literal["code", "eq3"] = "code"
    """PolyCL-M: where negatives come from, another scan (published code) or the anchor's (equation 3)."""
    fixed_triplets: bool = False
    """Every epoch of a run sees the same partners, as in the published code; otherwise they are drawn anew."""
    slice_fraction: float = 1.0
    """Middle part of each scan's slices that is used; the paper uses 0.3."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.slice_fraction <= 1.0:
            raise InputError(f"slice_fraction must lie in 0 .. 1, above 0, not {self.slice_fraction}.")


def legacy_norm(contract: InputContract) -> InputContract:
    """The published code's input: the window scaled by the extrema of the whole data set (LiTS), not its own.

    The input then spans 0.327 .. 0.372 only.
    """
    return replace(contract, mean_hu=-3055.0, std_hu=8866.0)


@dataclass(frozen=True)
class _Slices:
    """Slices that can be drawn, in order of scan and k; a slice's number is its place here."""

    anchors: tuple[Anchor, ...]
    start: NDArray[np.int64]
    """(scans + 1,) numbers of the scans' first slices."""
    first_k: NDArray[np.int64]
    """(scans,) k of the scans' first slices."""
    present: NDArray[np.bool_] | None
    """Whether each slice shows the organ; None when that is not known."""
    absent_or_present: tuple[NDArray[np.int64], ...]
    """Numbers of the slices that do not show the organ, and of those that do."""

    def number(self, anchor: Anchor) -> int:
        return int(self.start[anchor.scan] + anchor.k - self.first_k[anchor.scan])

    def of_scan(self, anchor: Anchor) -> tuple[int, int]:
        """Numbers of a scan's slices, from .. to below."""
        return int(self.start[anchor.scan]), int(self.start[anchor.scan + 1])

    @property
    def everywhere(self) -> tuple[int, int]:
        return 0, len(self.anchors)

    def alike(self, number: int, alike: bool = True) -> NDArray[np.int64]:
        """Numbers of all slices whose T equals, or does not equal, that of a slice."""
        if self.present is None:
            raise InputError("Which slices show the organ is not known.")
        return self.absent_or_present[int(self.present[number]) if alike else 1 - int(self.present[number])]


_POOLS: WeakKeyDictionary[UnlabelledVolumes, dict[tuple[float, bool], _Slices]] = WeakKeyDictionary()
"""Made once for each set of volumes; kept here, as a method is copied and sent to the loader's processes."""


@dataclass(frozen=True)
class _Partners:
    positive: int
    negative: int
    fallbacks: int = 0
    """How many of the two had to come from a wider choice than the method's rule."""


class _PolyCL(Contrastive):
    """The three variants differ in `partners` only."""

    needs_presence: ClassVar[bool] = False
    options: PolyCLOptions

    @staticmethod
    def presets() -> Mapping[str, Preset]:
        """As published; its code's input scaling ("paper-code"); one GPU; two cores."""
        as_published = PolyCLOptions(fixed_triplets=True, slice_fraction=0.3)
        return {
            "paper": Preset("unet2d_16", WHOLE_SLICE, PUBLISHED_RECIPE, as_published),
            "paper-code": Preset("unet2d_16", legacy_norm(WHOLE_SLICE), PUBLISHED_RECIPE, as_published),
            "gpu": Preset(
                "unet2d_16", WHOLE_SLICE, replace(PUBLISHED_RECIPE, precision="fp16"), PolyCLOptions()
            ),
            "cpu": Preset(
                "unet2d_16", CPU_CONTRACT, replace(CPU_RECIPE, batch=8), PolyCLOptions(dropout=False)
            ),
        }

    def anchors(self, volumes: UnlabelledVolumes) -> Sequence[Anchor]:
        """Every slice of the middle part of every scan once."""
        slices = self._slices(volumes)
        self.check(volumes, slices)
        return slices.anchors

    @abstractmethod
    def check(self, volumes: UnlabelledVolumes, slices: _Slices) -> None:
        """Raise InputError when partners cannot be found for every slice."""

    @abstractmethod
    def partners(self, slices: _Slices, anchor: Anchor, rng: np.random.Generator) -> _Partners:
        """Choose a positive and a negative slice."""

    def draw(self, volumes: UnlabelledVolumes, anchor: Anchor, rng: np.random.Generator) -> dict[str, Tensor]:
        """{"anchor", "positive", "negative"}: (C, H, W), {"fallbacks"}: how many partners broke the rule."""
        slices = self._slices(volumes)
        place = [self.seed, anchor.scan, anchor.k]
        chooser = np.random.default_rng(place) if self.options.fixed_triplets else rng
        partners = self.partners(slices, anchor, chooser)
        chosen = (anchor, slices.anchors[partners.positive], slices.anchors[partners.negative])
        limits = input_range(self.contract)
        images = [random_view(self.slice_image(volumes, one), self.options, limits, rng) for one in chosen]
        return {
            **dict(zip(("anchor", "positive", "negative"), images, strict=True)),
            "fallbacks": torch.tensor(float(partners.fallbacks)),
        }

    def forward(self, batch: Mapping[str, Tensor], moment: Moment) -> dict[str, Tensor]:
        """Loss of equation 4."""
        # A pass each: maps of three times the size are slower on a CPU, and batch norms see one role at a time.
        anchor, positive, negative = (self.embed(batch[role]) for role in ("anchor", "positive", "negative"))
        return {
            "loss": triplet_loss(anchor, positive, negative, self.options.temperature),
            "positive_cosine": cosine(anchor, positive).mean().detach(),
            "negative_cosine": cosine(anchor, negative).mean().detach(),
            "spread": spread(anchor),
            "fallbacks": batch["fallbacks"].mean(),
        }

    def pictured(self, batch: Mapping[str, Tensor]) -> Tensor:
        """(3B, C, H, W) anchors, positives, negatives."""
        return torch.cat([batch["anchor"], batch["positive"], batch["negative"]])

    def _slices(self, volumes: UnlabelledVolumes) -> _Slices:
        key = (self.options.slice_fraction, self.needs_presence)
        pools = _POOLS.setdefault(volumes, {})
        if key not in pools:
            pools[key] = _pool(volumes, *key)
        return pools[key]


class PolyCLS(_PolyCL):
    """Scan-based: slices of one scan are alike."""

    info = MethodInfo(
        title="PolyCL-S",
        advice="When nothing is known of the scans: learns what the slices of one patient have in common.",
        citation=_CITATION,
    )

    def check(self, volumes: UnlabelledVolumes, slices: _Slices) -> None:
        """Two scans, of two slices each."""
        _need_two_scans(self.info.title, volumes)
        for scan, count in zip(volumes.scans, np.diff(slices.start), strict=True):
            if count < 2:
                raise InputError(
                    f"{self.info.title} needs two slices of each scan and {scan.name} offers one;"
                    " leave it out, or raise slice_fraction."
                )

    def partners(self, slices: _Slices, anchor: Anchor, rng: np.random.Generator) -> _Partners:
        """Positive from the anchor's scan, negative from another."""
        number, scan = slices.number(anchor), slices.of_scan(anchor)
        every = np.arange(len(slices.anchors))
        return _Partners(
            _found(_pick(every, rng, scan, (number, number + 1))),
            _found(_pick(every, rng, slices.everywhere, scan)),
        )


class PolyCLO(_PolyCL):
    """Organ-based: slices that show the organ are alike, and so are those that do not."""

    info = MethodInfo(
        title="PolyCL-O",
        advice="When the organ is known beforehand and two clicks a scan say where it begins and ends.",
        citation=_CITATION,
        supervision="presence",
    )
    needs_presence = True

    def check(self, volumes: UnlabelledVolumes, slices: _Slices) -> None:
        """Two slices with the organ, two without."""
        _need_both(self.info.title, slices)

    def partners(self, slices: _Slices, anchor: Anchor, rng: np.random.Generator) -> _Partners:
        """Both from any scan, by whether they show the organ."""
        number = slices.number(anchor)
        return _Partners(_alike_anywhere(slices, number, rng), _unlike_anywhere(slices, number, rng))


class PolyCLM(_PolyCL):
    """Mixed: alike are slices of one scan that agree in whether they show the organ."""

    info = MethodInfo(
        title="PolyCL-M",
        advice="As PolyCL-O, when scans differ much from each other; best of the three at few labels in the paper.",
        citation=_CITATION,
        supervision="presence",
    )
    needs_presence = True

    def check(self, volumes: UnlabelledVolumes, slices: _Slices) -> None:
        """Two slices with the organ, two without; two scans where negatives come from another."""
        if self.options.negatives == "code":
            _need_two_scans(self.info.title, volumes)
        _need_both(self.info.title, slices)

    def partners(self, slices: _Slices, anchor: Anchor, rng: np.random.Generator) -> _Partners:
        """By the rule where it can be met; otherwise from any scan, by whether they show the organ."""
        number, scan = slices.number(anchor), slices.of_scan(anchor)
        positive = _pick(slices.alike(number), rng, scan, (number, number + 1))
        unlike = slices.alike(number, False)
        if self.options.negatives == "eq3":
            negative = _pick(unlike, rng, scan)
        else:
            negative = _pick(unlike, rng, slices.everywhere, scan)
        return _Partners(
            _alike_anywhere(slices, number, rng) if positive is None else positive,
            _unlike_anywhere(slices, number, rng) if negative is None else negative,
            fallbacks=(positive is None) + (negative is None),
        )


def _pool(volumes: UnlabelledVolumes, fraction: float, with_presence: bool) -> _Slices:
    anchors: list[Anchor] = []
    start, first_k, present = [0], [], []
    for n, scan in enumerate(volumes.scans):
        depth = scan.shape_kji[0]
        count = max(1, round(fraction * depth))
        first = (depth - count) // 2
        anchors += [Anchor(n, k) for k in range(first, first + count)]
        first_k.append(first)
        start.append(len(anchors))
        if with_presence:
            present.append(volumes.presence(n)[first : first + count])
    table = np.concatenate(present) if with_presence else None
    return _Slices(
        tuple(anchors),
        np.array(start),
        np.array(first_k),
        table,
        () if table is None else (np.flatnonzero(~table), np.flatnonzero(table)),
    )


def _pick(
    candidates: NDArray[np.int64],
    rng: np.random.Generator,
    within: tuple[int, int],
    without: tuple[int, int] = (0, 0),
) -> int | None:
    """Draw one of the rising `candidates` that lies in `within` and not in `without` (from .. to below each)."""
    low, high = (int(n) for n in np.searchsorted(candidates, within))
    hole, after = (min(max(int(n), low), high) for n in np.searchsorted(candidates, without))
    count = (hole - low) + (high - after)
    if count == 0:
        return None
    place = low + int(rng.integers(count))
    return int(candidates[place if place < hole else place + after - hole])


def _alike_anywhere(slices: _Slices, number: int, rng: np.random.Generator) -> int:
    return _found(_pick(slices.alike(number), rng, slices.everywhere, (number, number + 1)))


def _unlike_anywhere(slices: _Slices, number: int, rng: np.random.Generator) -> int:
    return _found(_pick(slices.alike(number, False), rng, slices.everywhere))


def _found(number: int | None) -> int:
    if number is None:
        raise InputError("A slice has no partner; take the anchors from anchors(), which says why.")
    return number


def _need_two_scans(title: str, volumes: UnlabelledVolumes) -> None:
    if len(volumes.scans) < 2:
        raise InputError(
            f"{title} tells scans apart and needs two or more; there is one, {volumes.scans[0].name}."
        )


def _need_both(title: str, slices: _Slices) -> None:
    absent, present = (len(numbers) for numbers in slices.absent_or_present)
    if absent < 2 or present < 2:
        raise InputError(
            f"{title} compares slices with and without the organ and needs two of each; of the slices used,"
            f" {present} show it and {absent} do not. Use whole scans (slice_fraction 1), or PolyCL-S."
        )
