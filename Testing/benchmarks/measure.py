"""One measurement in a process of its own, so that its peak memory is its own; prints one line of JSON.

    python Testing/benchmarks/measure.py '{"kind": "accuracy", ...}'

`bench_propagation.py` starts it; the kinds are the functions in `_KINDS`.
"""

from __future__ import annotations

import json
import resource
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from medssl.demo import PHANTOM_ORGANS
from medssl.foundation.protocols import SliceTracker
from medssl.memory import used_bytes
from medssl.phantom import demo_case
from medssl.prompts import Reference, SlicePrompt
from medssl.propagate import PropagateOptions, propagate
from medssl.results import SliceMask
from medssl.volume import Volume, Window
from methods import methods_of, score_case
from numpy.typing import NDArray
from protocol import Case, object_tasks, phantom_case, read_case
from usual_way import propagate_usual_way

NANO = "medssl-nano"
_Masks = dict[str, tuple[int, NDArray[np.bool_]]]  # annotated slice of each segment and its mask there
_TINY = "configs/sam2.1/sam2.1_hiera_t.yaml"


def accuracy(spec: dict[str, Any]) -> dict[str, Any]:
    """Score the methods on the folders `cases` under `data`, or on phantoms with the seeds `phantoms`."""
    methods = methods_of(spec["model"])
    scores = []
    for case in _cases(spec):
        for score in score_case(case, object_tasks(case), methods):
            scores.append(asdict(score))
        print(f"  {case.name}", file=sys.stderr, flush=True)
    return {"scores": scores, "peak_bytes": peak_bytes()}


def job(spec: dict[str, Any]) -> dict[str, Any]:
    """Run one whole job: `way` ours or usual, `model`, `size`, `segments`, perhaps `feature_budget_bytes`.

    On `slices` slices tiled from the volume in `base`, all of them tracked; or on the demonstration's phantom, where
    ours ends each organ by its stop rule and the usual way has none.
    """
    volume, masks = _tiled(spec) if "base" in spec else _demonstration(spec)
    model, tracker = _model(spec)
    window = Window.auto(volume)
    with _module_seconds(model) as spent:
        before = used_bytes()
        _reset_peak()
        start = time.perf_counter()
        stages: dict[str, float] = {}
        if spec["way"] == "usual":
            stages = propagate_usual_way(model, volume, window, masks)
        else:
            _run_ours(tracker, volume, masks, stop="base" not in spec)
        seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "stages": stages,
        "modules": dict(spent),
        "slices": len(volume.voxels_kji),
        "growth_bytes": peak_bytes() - before,
        "peak_bytes": peak_bytes(),
    }


def correction(spec: dict[str, Any]) -> dict[str, Any]:
    """A full run, then one corrected slice half way to the end: only the stretches that touch it run again."""
    from medssl.serving.engine import SessionKeeper

    volume, masks = _tiled(spec)
    index = spec["slices"] // 2
    keeper = SessionKeeper(_model(spec)[1])
    start = time.perf_counter()
    slices = _run_ours(keeper, volume, masks)
    full = time.perf_counter() - start
    corrected = index + (len(volume.voxels_kji) - index) // 2
    start = time.perf_counter()
    again = _run_ours(keeper, volume, masks, corrected)
    return {
        "full_seconds": full,
        "full_slices": slices,
        "correction_seconds": time.perf_counter() - start,
        "correction_slices": again,
    }


def _run_ours(
    tracker: SliceTracker,
    volume: Volume,
    masks: _Masks,
    corrected: int | None = None,
    stop: bool = False,
) -> int:
    references = [
        Reference(name, SlicePrompt(0, at, mask=mask))
        for name, (index, mask) in masks.items()
        for at in ([index] if corrected is None else [index, corrected])
    ]
    options = PropagateOptions(stop=stop, changed=() if corrected is None else (corrected,))
    return sum(isinstance(event, SliceMask) for event in propagate(volume, references, tracker, options))


def _cases(spec: dict[str, Any]) -> Iterator[Case]:
    for name in spec.get("cases", ()):
        yield read_case(Path(spec["data"]) / name)
    for seed in spec.get("phantoms", ()):
        yield phantom_case(seed)


def _tiled(spec: dict[str, Any]) -> tuple[Volume, _Masks]:
    """The volume in the file `base`, mirrored up and down to `slices`; the largest organs of its middle slice."""
    base = np.load(spec["base"])
    top, index = len(base["voxels_kji"]) - 1, spec["slices"] // 2
    position = np.arange(spec["slices"]) - index + top // 2
    mirrored = top - np.abs(position % (2 * top) - top)
    labels = base["labels_kji"][mirrored[index]]
    values, counts = np.unique(labels[labels > 0], return_counts=True)
    largest = values[np.argsort(-counts)][: spec["segments"]]
    volume = Volume(base["voxels_kji"][mirrored], base["ijk_to_ras"], "synthetic")
    return volume, {f"organ {value}": (index, labels == value) for value in largest}


def _demonstration(spec: dict[str, Any]) -> tuple[Volume, _Masks]:
    """The demonstration's phantom and the middle slices of the first organs it looks for."""
    phantom = demo_case()
    masks: _Masks = {}
    for name in PHANTOM_ORGANS[: spec["segments"]]:
        organ = phantom.segmentation.mask(name)
        filled = np.flatnonzero(organ.any(axis=(1, 2)))
        index = int(filled[len(filled) // 2])
        masks[name] = (index, organ[index])
    return phantom.volume, masks


def _model(spec: dict[str, Any]) -> tuple[Any, SliceTracker]:
    """The network and our tracker on it; for the usual way of the shipped model, its stand-in."""
    torch.manual_seed(0)
    if spec["model"] == NANO:
        return _nano(stand_in=spec.get("way") == "usual")
    from medssl.foundation.sam2_build import build_sam2_model
    from medssl.foundation.sam2_tracker import Sam2SliceTracker

    model = build_sam2_model(_TINY, spec["size"])
    budget = {"feature_budget_bytes": spec["feature_budget_bytes"]} if "feature_budget_bytes" in spec else {}
    return model, Sam2SliceTracker(model, **budget)


def _nano(stand_in: bool) -> tuple[Any, SliceTracker]:
    from medssl.foundation.nano import NanoTracker
    from medssl.foundation.nano_model import NanoConfig, NanoModel, load_nano
    from medssl.registry import find_entry, is_available, model_path

    entry = find_entry(NANO)
    config = NanoConfig(image_size=entry.image_size)
    trained = is_available(entry)
    cpu = torch.device("cpu")
    model, fusion = load_nano(model_path(entry), cpu) if trained else (NanoModel(config).eval(), None)
    network = model.sam
    if stand_in:  # the official predictor feeds three channels; everything behind the first layer is the same
        first = network.image_encoder.trunk.patch_embed
        first.proj = torch.nn.Conv2d(3, first.proj.out_channels, 7, stride=4, padding=3)
    return network, NanoTracker(model, fusion)


@contextmanager
def _module_seconds(network: Any) -> Iterator[dict[str, float]]:
    """Collect the wall time spent inside the network's parts; parts that run side by side share it."""
    clock = _SharedClock()
    handles = []
    for name, part in (
        ("image_encoder", network.image_encoder.trunk),
        ("memory_attention", network.memory_attention),
        ("memory_encoder", network.memory_encoder),
        ("sam_mask_decoder", network.sam_mask_decoder),
    ):
        handles.append(part.register_forward_pre_hook(lambda *_, name=name: clock.enter(name)))
        handles.append(part.register_forward_hook(lambda *_, name=name: clock.leave(name)))
    yield clock.spent
    for handle in handles:
        handle.remove()


class _SharedClock:
    """Divides each moment evenly among the parts that are at work in it, on whichever threads."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self._at_work: list[str] = []
        self._since = 0.0
        self._lock = threading.Lock()

    def enter(self, name: str) -> None:
        with self._lock:
            self._share_out()
            self._at_work.append(name)

    def leave(self, name: str) -> None:
        with self._lock:
            self._share_out()
            self._at_work.remove(name)

    def _share_out(self) -> None:
        now = time.perf_counter()
        for name in self._at_work:
            self.spent[name] = self.spent.get(name, 0.0) + (now - self._since) / len(self._at_work)
        self._since = now


def peak_bytes() -> int:
    """Most memory this process held since `_reset_peak`, or ever where the system cannot start anew."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _reset_peak() -> None:
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")


_KINDS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "accuracy": accuracy,
    "job": job,
    "correction": correction,
}


def main() -> None:
    spec = json.loads(sys.argv[1])
    torch.set_num_threads(spec["threads"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = _KINDS[spec["kind"]](spec)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
