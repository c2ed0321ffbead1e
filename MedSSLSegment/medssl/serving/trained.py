"""Models a user has trained, at work in the worker: the ones used last stay in memory. Loads torch when it must."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..events import Progress
from ..messages import PredictVolume, SegmentVolume, Streamed
from ..results import SliceMask, UncertaintyMap
from ..segmentation import Segment, Segmentation
from ..streamed_evidence import suggestions
from ..volume import VIEWS, Volume
from ..wire.codec import decode_labels

if TYPE_CHECKING:
    from ..few_labels.segmenter import ModelInfo, SegmentationModel
    from ..foundation.protocols import ImagePredictor, SliceTracker
    from ..inference import PredictedSlices
    from ..segmenting import SegmentOptions, SegmentResult

__all__ = ["TrainedModels", "predict_volume", "segment_volume"]

_KEPT = 2
_AT_WORK_BYTES = {2: 310, 3: 105}
"""Of a network's activations, per voxel it is shown at once and square root of its weights in MB: activations grow with
the width, weights with its square. Measured on the CPU for seven backbones, of which none takes more."""
_SHOWN_AT_ONCE = {2: 1 << 18, 3: 1 << 21}
"""Voxels; `medssl.few_labels.tiling` chooses no more on the CPU."""
_SHOWN_AT_ONCE_GPU = 1 << 23
_SLICES_AT_ONCE = 16
_COPIES_OF_SLICES = 2
_STAGES_BYTES = 30
"""Per voxel of the volume: the coarse answer with its probabilities, six label maps, what makes and compares them."""
_LOADING_FACTOR = 2


class TrainedModels:
    """Loads trained models and keeps those used last; a file that has changed since is loaded again."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[Path, int, str], tuple[str, SegmentationModel]] = OrderedDict()

    @property
    def names(self) -> tuple[str, ...]:
        """What the models in memory were asked for as."""
        return tuple(name for name, _ in self._kept.values())

    def get(self, model: str, store: str, device: str) -> SegmentationModel:
        """The model a request means, on a device.

        Raises:
            InputError: there is none.
            ModelError: the file is damaged or holds no model.
        """
        from ..few_labels.model_store import model_file
        from ..few_labels.segmenter import read_model

        path = model_file(model, store)
        key = (path, path.stat().st_mtime_ns, device)
        if key not in self._kept:
            while len(self._kept) >= _KEPT:
                self._kept.popitem(last=False)
            self._kept[key] = (model, read_model(path, device))
        self._kept.move_to_end(key)
        return self._kept[key][1]

    def bytes_needed(
        self, model: str, store: str, volume: Volume, *, stages: bool = False, on_gpu: bool = False
    ) -> int:
        """Estimate of the memory a whole volume takes on the device.

        Args:
            model: as `get` takes it.
            store: model store.
            volume: to be predicted.
            stages: also for the stages of the full pipeline.
            on_gpu: count what the GPU holds, which is the network alone.

        Raises:
            InputError, ModelError: as `get`.
        """
        from ..checkpoints import read_header
        from ..few_labels.model_store import model_file
        from ..few_labels.segmenter import ModelInfo

        path = model_file(model, store)
        info, weights = ModelInfo.from_json(read_header(path)), path.stat().st_size
        loading = 0 if model in self.names else _LOADING_FACTOR * weights
        at_work = _bytes_at_work(info, volume, weights, on_gpu)
        if on_gpu:
            return loading + at_work
        kept = _STAGES_BYTES * math.prod(volume.shape_kji) if stages else 0
        return loading + at_work + _bytes_of_volume(info, volume) + kept


def predict_volume(
    volume: Volume,
    request: PredictVolume,
    model: SegmentationModel,
    device: str,
    cancelled: Callable[[], bool],
) -> Generator[Streamed, None, dict[str, Any]]:
    """Find a model's segments in a volume; the summary says which they are.

    Raises:
        InputError: the model or the kind of uncertainty does not suit the volume.
        Cancelled: `cancelled` said so.
    """
    from ..inference import PredictedSlices, predict

    for event in predict(
        model,
        volume,
        start=request.start,
        uncertainty=request.uncertainty,
        anyway=request.anyway,
        device=device,
        cancelled=cancelled,
    ):
        if isinstance(event, PredictedSlices):
            yield from _slices(event, model.info.segments, request.maps)
        else:
            yield event
    return {"segments": [asdict(segment) for segment in model.info.segments]}


def segment_volume(
    volume: Volume,
    request: SegmentVolume,
    options: SegmentOptions,
    model: SegmentationModel,
    predictor: ImagePredictor,
    tracker: SliceTracker,
    cancelled: Callable[[], bool],
) -> Generator[Streamed, None, dict[str, Any]]:
    """Find, sharpen and carry through; the summary says what is known of each slice.

    Raises:
        InputError: the model, an option or the annotation does not suit the volume.
        Cancelled: `cancelled` said so.
    """
    from ..known_slices import KnownSlices
    from ..segmenting import segment

    axis = volume.axis_of("axial") if options.axis is None else options.axis
    annotation = None
    if request.annotation is not None:
        labels = decode_labels(request.annotation)
        annotation = Segmentation(labels, volume.ijk_to_ras, request.segments)
    result = yield from segment(
        volume,
        model,
        predictor=predictor,
        tracker=tracker,
        annotation=annotation,
        known=KnownSlices(axis=axis, absent=request.absent),
        options=options,
        device=request.device,
        cancelled=cancelled,
    )
    return (yield from _summary(volume, result, request))


def _summary(
    volume: Volume, result: SegmentResult, request: SegmentVolume
) -> Generator[Streamed, None, dict[str, Any]]:
    """What is known of each slice, weighed segment by segment, so that clicks are answered in between."""
    from ..evidence import of_segmentation

    absent = {name: set(indices) for name, indices in request.absent.items()}
    shown = {name: sorted({*indices} - absent.get(name, set())) for name, indices in request.vouched.items()}
    drawn = result.references if result.prompt == "annotation" else shown
    evidence = []
    for found in of_segmentation(volume, result, drawn, request.absent):
        evidence.append(found)
        yield Progress(len(evidence), len(result.segmentation.segments), None, "what to annotate next")
    return {
        "segments": [asdict(segment) for segment in result.segmentation.segments],
        "prompt": result.prompt,
        "axis": result.axis,
        "references": {name: list(indices) for name, indices in result.references.items()},
        "confidence": dict(result.confidence),
        "agreement": dict(result.agreement),
        "suggestions": suggestions(evidence),
    }


def _slices(
    found: PredictedSlices, segments: Sequence[Segment], maps: bool
) -> Iterator[SliceMask | UncertaintyMap]:
    """One mask per segment and slice, empty ones too: they say that nothing is there."""
    for n, index in enumerate(found.indices):
        probability = found.probability[n]
        for segment in segments:
            mask = found.labels[n] == segment.label
            sure = probability[mask] if mask.any() else probability
            yield SliceMask(segment.name, found.axis, index, mask, float(sure.mean()))
        if maps:
            yield UncertaintyMap.of(found.axis, index, found.uncertainty[n])


def _bytes_at_work(info: ModelInfo, volume: Volume, weights: int, on_gpu: bool) -> int:
    """The network's activations, for as many voxels as it is shown at once."""
    dims = info.contract.spatial_dims
    k, j, i = _prepared_shape(info, volume)
    at_once = _SHOWN_AT_ONCE_GPU if on_gpu else _SHOWN_AT_ONCE[dims]
    shown = max(j * i, min(k * j * i, at_once), math.prod(info.contract.size))
    return int(shown * _AT_WORK_BYTES[dims] * math.sqrt(weights / 1e6))


def _bytes_of_volume(info: ModelInfo, volume: Volume) -> int:
    """Probabilities on the model's grid, those of the slices on their way back, and the image itself."""
    contract, classes = info.contract, len(info.segments) + 1
    copies = 2 if contract.spatial_dims == 3 else 1  # blocks are summed up before they are final
    axial = volume.axis_of("axial")
    slice_px = math.prod(volume.shape_kji) // volume.shape_kji[axial]
    values = math.prod(_prepared_shape(info, volume)) * (classes * copies + 2)
    return int(4 * (values + _COPIES_OF_SLICES * _SLICES_AT_ONCE * classes * slice_px))


def _prepared_shape(info: ModelInfo, volume: Volume) -> tuple[float, ...]:
    """Voxels along the axes of the model's grid, if nothing is cropped away."""
    axes = [volume.axis_of(view) for view in VIEWS]
    steps = zip(axes, info.contract.spacing_kji_mm, strict=True)
    return tuple(
        volume.shape_kji[axis] * (volume.spacing_kji_mm[axis] / wanted if wanted else 1.0)
        for axis, wanted in steps
    )
