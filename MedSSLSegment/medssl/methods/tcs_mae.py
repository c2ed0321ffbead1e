"""TCS-MAE: tissue contrastive semi-masked autoencoder (Zheng, Wen et al.).

Intervals of intensity are masked, so whole tissues vanish rather than squares. The same U-Net reconstructs the masked
and the whole slice (SSIM), and the two are to agree at the deepest levels of the encoder. Encoder and decoder are kept.

The presets' networks have no map finer than a quarter of the image, as the paper's; in a U-Net, which has one, it
gained nothing (RESULTS_STUDY.md).

B batch, C channels, H rows, W columns, K intervals, E numbers in an embedding.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones.base import Backbone
from ..datasets.data import AIR_HU, Scan, fit_slice
from ..datasets.input_contract import InputContract
from ..errors import InputError
from ..learning.recipe import Recipe
from .base import Anchor, Method, MethodInfo, Moment, Preset, without_dropout
from .contrastive import cosine, nt_xent
from .pictures import looking, reconstruction_picture
from .ssim import ssim

if TYPE_CHECKING:
    from ..datasets.data import UnlabelledVolumes

__all__ = ["TCSMAE", "TCSMAEOptions", "interval_mask"]

_LUMA = (0.2989, 0.5870, 0.1140)
_FIRST_SCALE, _LARGEST_SCALE = 1.0 / 0.07, 100.0  # of CLIP
_COSINE_WEIGHT = 1000.0  # of the authors' code


@dataclass(frozen=True, kw_only=True)
class TCSMAEOptions:
    """What can be set of TCS-MAE.

    Raises:
        InputError: a number is out of its range.
    """

    intervals: int = 8
    """K: equal intervals the intensities are cut into."""
    ratio: float = 0.75
    """Share of the intervals that is masked; rounded down."""
    with_replacement: bool = False
    """Draw intervals as the authors' code does: the same one may come twice, so fewer are masked."""
    mask_on: Literal["hu", "luma"] = "hu"
    """Intensities that are cut: those of the scan, or the brightness of the three-channel image."""
    mask_range_hu: tuple[float, float] = (-1000.0, 500.0)
    """Intensities beyond it join the outermost intervals; a scan's own percentiles where the input uses those."""
    fill: Literal["black", "mean", "learned"] = "black"
    """What stands in masked pixels: the darkest value there is, the image's mean, or a learned number."""
    contrast_weight: float = 1.0
    """lambda of eq. 18; 0 leaves the reconstruction alone."""
    levels: int = 2
    """How many of the encoder's deepest maps are compared."""
    consistency: Literal["contrast", "cosine"] = "contrast"
    """Contrast against the batch's other slices (NT-Xent), or 1000 (1 - cosine) as in the authors' code."""
    embedding: int = 128
    """E: numbers in an embedding."""
    ssim_window: int = 15
    """Side of the Gaussian window (sigma 1.5) in pixels."""
    ssim_reflect: bool = False
    """Mirror the images at their border instead of surrounding them with zeros."""
    dropout: bool = True
    """Keep the backbone's dropout while pre-training, where it has any; see `ViewOptions.dropout`."""

    def __post_init__(self) -> None:
        if not 0.0 < self.ratio < 1.0:
            raise InputError(f"The masked share must lie between 0 and 1, not {self.ratio:g}.")
        if self.mask_range_hu[0] >= self.mask_range_hu[1]:
            low, high = self.mask_range_hu
            raise InputError(f"The masked range must rise, not go from {low:g} to {high:g}.")
        if min(self.intervals, self.embedding, self.ssim_window) < 1 or self.contrast_weight < 0:
            raise InputError(
                "intervals, embedding and ssim_window must be 1 or more, contrast_weight 0 or more."
            )

    @property
    def masked_intervals(self) -> int:
        """How many intervals are masked in a slice."""
        return int(self.intervals * self.ratio + 1e-9)


class TCSMAE(Method):
    """Reconstruct tissues that were taken out of the slice."""

    info: ClassVar[MethodInfo] = MethodInfo(
        title="TCS-MAE",
        advice="CT of the chest and neighbouring regions; keeps the decoder too, so it needs few labels.",
        citation="Zheng, Wen et al., Tissue-Contrastive Semi-Masked Autoencoders for Segmentation"
        " Pretraining on Chest CT, https://github.com/zhengjjjjie/TCS-MAE",
    )
    transfers: ClassVar[tuple[str, ...]] = ("encoder", "decoder")

    def __init__(self, backbone: Backbone, contract: InputContract, options: TCSMAEOptions) -> None:
        super().__init__(backbone, contract, options)
        self.options: TCSMAEOptions = options
        _check(backbone, contract, options)
        if not options.dropout:
            without_dropout(backbone)
        channels = contract.in_channels
        self.head = nn.Conv2d(backbone.decoder.width, channels, kernel_size=3, padding=1)
        self.fill = nn.Parameter(torch.full((channels,), 0.5), requires_grad=options.fill == "learned")
        contrasted = options.levels if options.contrast_weight else 0
        widths = backbone.encoder.widths[len(backbone.encoder.widths) - contrasted :]
        self.projections = nn.ModuleList(nn.Linear(width, options.embedding) for width in widths)
        self.log_scale = nn.Parameter(
            torch.tensor(math.log(_FIRST_SCALE)),
            requires_grad=bool(contrasted) and options.consistency == "contrast",
        )

    @staticmethod
    def presets() -> Mapping[str, Preset]:
        """By name: "paper", "gpu", "cpu", and the latter two without contrast."""
        options = TCSMAEOptions()
        whole = InputContract(size=(256, 256), fit="resize", channels="chest")
        published = Recipe(epochs=60, batch=30, optimiser="adam", schedule="step-decay")
        shorter = Recipe(epochs=20, batch=30, optimiser="adam", schedule="step-decay", precision="bf16")
        gpu = Preset("mit_b2_unet", whole, shorter, options)
        cpu = Preset(
            "mit_tiny_unet",
            InputContract(size=(64, 64), spacing_kji_mm=(None, 4.0, 4.0), channels="chest"),
            Recipe(epochs=20, batch=6, learning_rate=1e-3, warmup_epochs=1),
            replace(options, ssim_window=7, dropout=False),
        )
        return {
            "paper": Preset("mit_b2_unet", whole, published, options),
            "gpu": gpu,
            "gpu-plain": replace(gpu, options=replace(gpu.options, contrast_weight=0.0)),
            "cpu": cpu,
            "cpu-plain": replace(cpu, options=replace(cpu.options, contrast_weight=0.0)),
        }

    def draw(self, volumes: UnlabelledVolumes, anchor: Anchor, rng: np.random.Generator) -> dict[str, Tensor]:
        """A slice, its intensities as parts of the range that is cut, and the range of its input."""
        scan = volumes.scans[anchor.scan]
        image = volumes.image(self.contract, anchor.scan, anchor.k)
        tissue = self._tissue(volumes.slice(anchor.scan, anchor.k), image, scan)[None]
        air = np.full((len(image), 1, 1), self.contract.background(scan.stats), np.float32)
        fill = np.concatenate([air, self._tissue(np.full((1, 1), AIR_HU, np.int16), air, scan)[None]])
        fitted = fit_slice(
            np.concatenate([image, tissue]), self.contract.size, self.contract.fit, rng, fill=fill
        )
        return {
            "image": torch.from_numpy(fitted[:-1]),
            "tissue": torch.from_numpy(fitted[-1:]),
            "range": torch.tensor(self._range(scan), dtype=torch.float32),
        }

    def forward(self, batch: Mapping[str, Tensor], moment: Moment) -> dict[str, Tensor]:
        """Dissimilarity of both reconstructions and contrast of the two branches."""
        image, low, width = _scaled(batch)
        hidden = self._hidden(batch["tissue"], moment)
        both = torch.cat([self._blanked(image, hidden), image]) * width.repeat(2, 1, 1, 1)
        maps = self.backbone.encoder(both + low.repeat(2, 1, 1, 1))
        made = self._image_from(maps)  # (2 B, C, H, W)
        similar = ssim(
            made, image.repeat(2, 1, 1, 1), self.options.ssim_window, 1.5, self.options.ssim_reflect
        )
        of_masked, of_whole = (1.0 - part.mean() for part in similar.chunk(2))
        result = {"masked": of_masked, "whole": of_whole, "hidden": hidden.float().mean()}
        loss = of_masked + of_whole
        if len(self.projections):
            contrast = self._contrast(maps)
            loss = loss + self.options.contrast_weight * contrast
            result |= {"contrast": contrast.detach(), "temperature": self._temperature().detach()}
        return {"loss": loss, **result}

    def picture(self, batch: Mapping[str, Tensor], moment: Moment) -> NDArray[np.uint8]:
        """Rows of image, masked image, reconstruction."""
        few = {name: part[:4] for name, part in batch.items()}
        image, low, width = _scaled(few)
        hidden = self._hidden(few["tissue"], moment)
        with looking(self):
            made = self._image_from(self.backbone.encoder(self._blanked(image, hidden) * width + low))
        return reconstruction_picture(image, image.masked_fill(hidden, float("nan")), made)

    def _tissue(
        self, pixels: NDArray[np.int16], image: NDArray[np.float32], scan: Scan
    ) -> NDArray[np.float32]:
        """(J, I) in 0 .. 1: what the intervals are cut on."""
        if self.options.mask_on == "luma":
            weights = np.array(_LUMA, np.float32)
            return np.asarray(np.tensordot(weights, image, axes=1), np.float32)
        low, high = self.options.mask_range_hu
        if self.contract.scale == "volume":
            low, high = scan.stats.low, scan.stats.high
        return np.asarray(np.clip((pixels - low) / max(high - low, 1e-3), 0.0, 1.0), np.float32)

    def _range(self, scan: Scan) -> NDArray[np.float32]:
        """Lowest and highest value of the scan's input."""
        if self.contract.channels == "chest":
            return np.array([0.0, 1.0], np.float32)
        limits = (
            (scan.stats.low, scan.stats.high) if self.contract.scale == "volume" else self.contract.window_hu
        )
        slab = np.repeat(np.array([limits], np.float32), 2 * self.contract.neighbours + 1, axis=0)
        return np.asarray(self.contract.apply(slab[:, None], scan.stats)[0, 0])

    def _hidden(self, tissue: Tensor, moment: Moment) -> Tensor:
        return interval_mask(
            tissue,
            self.options.intervals,
            self.options.masked_intervals,
            moment.generator(tissue.device),
            self.options.with_replacement,
        )

    def _blanked(self, image: Tensor, hidden: Tensor) -> Tensor:
        """Image in 0 .. 1 with something else where it is hidden."""
        if self.options.fill == "black":
            return image.masked_fill(hidden, 0.0)
        if self.options.fill == "mean":
            return torch.where(hidden, image.mean((2, 3), keepdim=True), image)
        return torch.where(hidden, self.fill.to(image.dtype).view(1, -1, 1, 1), image)

    def _image_from(self, maps: Sequence[Tensor]) -> Tensor:
        result: Tensor = torch.sigmoid(self.head(self.backbone.decoder(maps)).float())
        return result

    def _contrast(self, maps: Sequence[Tensor]) -> Tensor:
        """Sum over the compared levels."""
        total = maps[-1].new_zeros((), dtype=torch.float32)
        for projection, level in zip(self.projections, maps[-len(self.projections) :], strict=True):
            masked, whole = projection(F.adaptive_max_pool2d(level, 1).flatten(1)).float().chunk(2)
            if self.options.consistency == "contrast":
                total = total + nt_xent(masked, whole, self._temperature())
            else:
                total = total + _COSINE_WEIGHT * (1.0 - cosine(masked, whole)).mean()
        return total

    def _temperature(self) -> Tensor:
        """Learnt, at least 0.01."""
        return torch.exp(-self.log_scale.float().clamp(max=math.log(_LARGEST_SCALE)))


def interval_mask(
    values: Tensor, intervals: int, count: int, generator: torch.Generator, with_replacement: bool = False
) -> Tensor:
    """Mask the pixels whose value lies in one of some randomly drawn intervals (eqs 1 to 3).

    Args:
        values: (B, 1, H, W) in 0 .. 1.
        intervals: K equal intervals, closed below, the last one closed at 1 too.
        count: intervals drawn per sample.
        generator: on the device of the values.
        with_replacement: an interval may be drawn twice, so fewer are masked.

    Returns:
        (B, 1, H, W) bool.
    """
    B = len(values)
    if with_replacement:
        drawn = torch.randint(intervals, (B, count), generator=generator, device=values.device)
        chosen = torch.zeros(B, intervals, dtype=torch.bool, device=values.device).scatter(1, drawn, True)
    else:
        noise = torch.rand(B, intervals, generator=generator, device=values.device)
        chosen = noise.argsort(1).argsort(1) < count  # (B, K)
    place = (values * intervals).long().clamp(0, intervals - 1)
    return chosen.gather(1, place.flatten(1)).view_as(place)


def _check(backbone: Backbone, contract: InputContract, options: TCSMAEOptions) -> None:
    if options.mask_on == "luma" and (contract.channels != "chest" or contract.neighbours):
        raise InputError("Masking on brightness needs the three chest channels; mask on 'hu' instead.")
    if not 0 <= options.levels <= len(backbone.encoder.widths):
        raise InputError(f"The encoder has {len(backbone.encoder.widths)} levels, not {options.levels}.")
    if options.levels and 0 in backbone.encoder.widths[-options.levels :]:
        raise InputError(f"A level without channels cannot be compared; choose fewer than {options.levels}.")
    if not options.ssim_window % 2 or options.ssim_window > min(contract.size):
        raise InputError(f"The SSIM window must be odd and fit the image, not {options.ssim_window}.")
    if options.masked_intervals < 1:
        warnings.warn(
            f"{options.ratio:.0%} of {options.intervals} intervals is less than one: nothing is masked.",
            stacklevel=3,
        )


def _scaled(batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Image in 0 .. 1, and the lowest value and the width of its range, (B, 1, 1, 1)."""
    low, high = batch["range"].view(-1, 2, 1, 1, 1).unbind(1)
    width = (high - low).clamp(min=1e-6)
    return ((batch["image"] - low) / width).clamp(0.0, 1.0), low, width
