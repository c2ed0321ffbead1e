"""From a model and a volume to segments on the volume's own grid, streamed from a given slice outwards.

Probabilities are computed on the model's grid and brought back slice by slice, so each slice can be shown as soon as it
is known; what is streamed is, voxel for voxel, what the whole volume at once would give.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .datasets.data import intensity_stats
from .datasets.grid import prepare_image
from .errors import InputError
from .events import Eta, Log, Progress, never
from .few_labels.finetuning import predictor_of
from .few_labels.segmenter import SegmentationModel
from .few_labels.sides import mirrored
from .few_labels.suitability import check_volume
from .few_labels.tiling import ScanPredictor
from .foundation.runtime import pick_device
from .segmentation import Segmentation
from .volume import Volume

__all__ = ["PredictedSlices", "Prediction", "predict", "predict_volume"]

Uncertainty = Literal["off", "flip-average", "dropout"]

_DROPOUT_PASSES = 8
_DROPOUTS = (nn.Dropout, nn.Dropout2d, nn.Dropout3d)


@dataclass(frozen=True, eq=False)
class PredictedSlices:
    """Slices that are final, on the volume's own grid."""

    axis: int
    """Slice axis of the volume (0 = K, 1 = J, 2 = I)."""
    indices: tuple[int, ...]
    labels: NDArray[np.uint8]
    """(n, H, W) labels of the model's segments, 0 for background; rows and columns as in `take_slice`."""
    probability: NDArray[np.float32]
    """(n, H, W) of the label that was chosen, 0 .. 1."""
    uncertainty: NDArray[np.float32]
    """(n, H, W) entropy of the class probabilities, 0 (sure) .. 1 (all classes alike)."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """A whole volume."""

    segmentation: Segmentation
    probability: NDArray[np.float32]
    """(K, J, I) of the label that was chosen, 0 .. 1."""
    uncertainty: NDArray[np.float32]
    """(K, J, I), 0 .. 1."""


def predict(
    model: SegmentationModel,
    volume: Volume,
    *,
    start: int | None = None,
    uncertainty: Uncertainty = "off",
    anyway: bool = False,
    device: str = "auto",
    cancelled: Callable[[], bool] = never,
) -> Iterator[Progress | Log | PredictedSlices]:
    """Segment a volume.

    Args:
        model: of `read_model`.
        volume: any orientation and spacing.
        start: axial slice of the volume to begin with; None for the middle.
        uncertainty: "off" gives the entropy of one answer; "flip-average" averages it with that on the mirrored
            image (twice the time), unless a left segment is without its right one or the other way round; "dropout"
            averages 8 answers of a network with dropout (8 times).
        anyway: only warn where the volume is of another modality than the model has learnt from.
        device: auto, cpu, cuda, cuda:N or mps.
        cancelled: asked before every batch.

    Yields:
        A warning where the volume is unlike those the model has learnt from or a mirrored image is of no use, Progress,
        and every axial slice of the volume once, nearest to `start` first.

    Raises:
        InputError: `start` is not a slice, the volume is of another modality, or the model has no dropout.
        Cancelled: `cancelled` said so.
    """
    contract, info = model.info.contract, model.info
    where = pick_device(device)
    axis = volume.axis_of("axial")
    count = volume.shape_kji[axis]
    start = count // 2 if start is None else start
    if not 0 <= start < count:
        raise InputError(f"Slice {start} does not exist; the axial slices run from 0 to {count - 1}.")
    yield from check_volume(info, volume, anyway=anyway)
    alone = [name for name in info.names if mirrored(name, info.names) is None]
    if uncertainty == "flip-average" and alone:
        uncertainty = "off"
        yield Log(
            f"The model does not find the other side of {', '.join(alone)}, so a mirrored image is of no use: the"
            " uncertainty is that of one answer."
        )
    predictor = _predictor(model, uncertainty, where)
    image, grid = prepare_image(volume, contract, cancelled)
    prepared_start = grid.prepared_slice(axis, start)
    prepared = np.zeros((len(info.segments) + 1, *grid.shape_kji), np.float32)
    done, sent = np.zeros(grid.shape_kji[0], bool), np.zeros(count, bool)
    values = np.array([0, *(segment.label for segment in info.segments)], np.uint8)
    eta = Eta(len(done))
    yield eta.step(0, "predicting")
    for slab in predictor.slabs(
        image,
        intensity_stats(image),
        prepared_start,
        spacing_kji_mm=grid.spacing_kji_mm,
        cancelled=cancelled,
    ):
        prepared[:, slab.first : slab.stop] = slab.probabilities
        done[slab.first : slab.stop] = True
        ready = np.flatnonzero(grid.final_slices(done) & ~sent)
        for indices in _nearest_first(ready, start):
            native = grid.slices_to_native(prepared, indices)
            native[0] = 1.0 - native[1:].sum(0)  # cropped away is background
            yield _decided(axis, indices, native, values)
        sent[ready] = True
        yield eta.step(int(done.sum()), "predicting")


def predict_volume(
    model: SegmentationModel,
    volume: Volume,
    *,
    uncertainty: Uncertainty = "off",
    anyway: bool = False,
    device: str = "auto",
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_warning: Callable[[Log], None] = lambda warning: None,
    cancelled: Callable[[], bool] = never,
) -> Prediction:
    """Segment a volume; as `predict`, but all at once."""
    labels = np.zeros(volume.shape_kji, np.uint8)
    probability, entropy = np.zeros(volume.shape_kji, np.float32), np.zeros(volume.shape_kji, np.float32)
    for event in predict(
        model, volume, uncertainty=uncertainty, anyway=anyway, device=device, cancelled=cancelled
    ):
        if isinstance(event, Progress):
            on_progress(event)
            continue
        if isinstance(event, Log):
            on_warning(event)
            continue
        for whole, part in (
            (labels, event.labels),
            (probability, event.probability),
            (entropy, event.uncertainty),
        ):
            np.moveaxis(whole, event.axis, 0)[list(event.indices)] = part
    segmentation = Segmentation(labels, volume.ijk_to_ras, model.info.segments, volume.name)
    return Prediction(segmentation, probability, entropy)


def _decided(
    axis: int, indices: Sequence[int], probabilities: NDArray[np.float32], values: NDArray[np.uint8]
) -> PredictedSlices:
    chosen = probabilities.argmax(0)
    p = np.clip(probabilities, 1e-7, 1.0)
    entropy = -(p * np.log(p)).sum(0) / math.log(len(p))
    return PredictedSlices(
        axis, tuple(int(n) for n in indices), values[chosen], probabilities.max(0), np.clip(entropy, 0.0, 1.0)
    )


def _nearest_first(indices: NDArray[np.intp], start: int, at_once: int = 16) -> list[list[int]]:
    order = sorted(indices.tolist(), key=lambda n: abs(n - start))
    return [order[first : first + at_once] for first in range(0, len(order), at_once)]


def _predictor(model: SegmentationModel, uncertainty: Uncertainty, device: torch.device) -> ScanPredictor:
    network, contract = model.network.to(device).eval(), model.info.contract
    once = predictor_of(network, contract, device)
    if uncertainty == "off":
        return once
    if uncertainty == "dropout":
        layers = [m for m in network.modules() if isinstance(m, _DROPOUTS) and m.p > 0]
        if not layers:
            raise InputError(f"The backbone {model.info.backbone} has no dropout; use flip-average or off.")
        answer = _with_dropout(once.answer, layers)
    else:
        answer = _with_mirror(once.answer, model.info.names)
    return ScanPredictor(
        answer=answer,
        contract=contract,
        classes=once.classes,
        divisor=once.divisor,
        fixed_size=once.fixed_size,
        device=device,
    )


def _with_dropout(
    answer: Callable[[Tensor], Tensor], layers: Sequence[nn.Module]
) -> Callable[[Tensor], Tensor]:
    """Mean over passes that each drop other numbers, the same ones for every batch."""

    def averaged(images: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
            torch.manual_seed(0)
            for layer in layers:
                layer.train()
            try:
                passes = [answer(images) for _ in range(_DROPOUT_PASSES)]
            finally:
                for layer in layers:
                    layer.eval()
        return torch.stack(passes).mean(0)

    return averaged


def _with_mirror(answer: Callable[[Tensor], Tensor], names: Sequence[str]) -> Callable[[Tensor], Tensor]:
    """Mean of the answers on the image and on its mirror image, left and right exchanged."""
    channels = [0, *(names.index(mirrored(name, names) or name) + 1 for name in names)]

    def averaged(images: Tensor) -> Tensor:
        return (answer(images) + answer(images.flip(-1)).flip(-1)[:, channels]) / 2

    return averaged
