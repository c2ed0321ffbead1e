"""Fit the six numbers of `medssl.sharpening` on what networks that learnt from few labels say of further patients.

    fit_sharpening.py --data FOLDER --out DIR            several networks, for an hour; what is in DIR is used again

Networks are fine-tuned on a few training patients, in the ways that `bench_few_labels.py` compares, and predict others.
No patient of `holdout.json` takes part. The numbers minimise 1 - Dice, object by object and weakly regularised; how
much they gain is judged on patients they were not fitted to, four folds. The last line goes into `sharpening.WEIGHTS`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import bench_few_labels as few
import numpy as np
import torch
from bench_few_labels import Run, Work
from medssl.few_labels.segmenter import SegmentationModel
from medssl.inference import predict_volume
from medssl.learning.transfer import read_encoder
from medssl.segmentation import Segment, Segmentation, default_color
from medssl.segmenting import SegmentOptions, drop_small_parts
from medssl.sharpening import FEATURES, Surroundings, features
from medssl.volume import Volume
from numpy.typing import NDArray

_HEAD = ("mandible", "parotid_left", "parotid_right")
_NECK = ("brainstem", "spinal_cord", "larynx")
_RUNS = (
    (_HEAD, "", 3, "carried", 0),
    (_NECK, "", 3, "carried", 3),
    (_HEAD, "amlp", 3, "carried", 1),
    (_HEAD, "", 5, "all", 4),
)
"""Segments, encoder, cases, slices and seed of each network."""
_AMONG = slice(20, 36)
"""Of the training patients in a run's own order: those that teach come before."""
_VOXELS = 6000
"""Of an object, drawn at random, are fitted to."""
_FOLDS, _STEPS, _RATE, _DECAY = 4, 200, 0.1, 1e-3


@dataclass(frozen=True, eq=False)
class Object:
    """One segment of one patient, as a network found it."""

    run: str
    patient: str
    segment: str
    features: NDArray[np.float32]
    """(6, n)"""
    truth: NDArray[np.bool_]
    """(n,)"""
    missed: int
    """Voxels of the truth that are not among the n."""
    coarse: float
    """Dice of the coarse mask."""

    def dice(self, weights: NDArray[np.float64]) -> float:
        """Of the sharpened mask."""
        found = weights @ self.features > 0
        size = int(found.sum()) + int(self.truth.sum()) + self.missed
        return 2.0 * int((found & self.truth).sum()) / size if size else 1.0


def main(argv: Sequence[str] | None = None) -> None:
    options = _arguments(argv)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    objects = [found for each in _RUNS for found in _objects(each, options)]
    judged: dict[str, list[tuple[float, float]]] = {}
    patients = sorted({found.patient for found in objects})
    for fold in range(_FOLDS):
        out = set(patients[fold::_FOLDS])
        weights = fit([found for found in objects if found.patient not in out])
        for found in objects:
            if found.patient in out:
                judged.setdefault(found.run, []).append((found.coarse, found.dice(weights)))
    for run, pairs in judged.items():
        coarse, sharpened = np.array(pairs).T
        gain = sharpened - coarse
        print(
            f"{run}: {len(gain)} objects, coarse {coarse.mean():.3f}, sharpened {sharpened.mean():.3f},"
            f" worse by > {few.WORSE:g}: {np.mean(gain < -few.WORSE):.0%}"
        )
    print(dict(zip(FEATURES, np.round(fit(objects), 2).tolist(), strict=True)))


def fit(objects: Sequence[Object]) -> NDArray[np.float64]:
    """(6,) weights with the highest mean soft Dice."""
    everything = np.concatenate([found.features for found in objects], axis=1)
    middle, spread = everything.mean(axis=1), everything.std(axis=1) + 1e-6
    middle[0], spread[0] = 0.0, 1.0
    parts = [_part(found, middle, spread) for found in objects]
    weights = torch.zeros(len(FEATURES), requires_grad=True)
    optimiser = torch.optim.Adam([weights], lr=_RATE)
    for _ in range(_STEPS):
        loss = _DECAY * weights[1:].square().sum()
        for x, true, missed in parts:
            found = torch.sigmoid(weights @ x)
            loss = loss - 2.0 * (found * true).sum() / (found.sum() + true.sum() + missed) / len(parts)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
    plain: NDArray[np.float64] = weights.detach().numpy().astype(float) / spread
    plain[0] -= (plain * middle)[1:].sum()
    return plain


def _part(
    found: Object, middle: NDArray[np.float32], spread: NDArray[np.float32]
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Some of an object's voxels, scaled."""
    count = found.truth.size
    drawn = np.random.default_rng(0).permutation(count)[:_VOXELS]
    x = (found.features[:, drawn] - middle[:, None]) / spread[:, None]
    true = torch.from_numpy(found.truth[drawn].astype(np.float32))
    return torch.from_numpy(x), true, found.missed * len(drawn) / max(count, 1)


def _objects(
    which: tuple[tuple[str, ...], str, int, few.Slices, int], options: argparse.Namespace
) -> Iterator[Object]:
    """What one network says of further patients."""
    segments, arm, cases, slices, seed = which
    encoder = str(options.encoders / f"encoder-{arm}.safetensors") if arm else ""
    backbone = read_encoder(encoder).backbone if encoder else few.SCRATCH_BACKBONE
    run = Run(arm or "scratch", backbone, encoder, cases, slices, seed)
    folder = options.out / f"{run.arm}-{slices}-{cases}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    work = few.work_of(few.arguments(["--data", options.data, "--segments", *segments, "--out", str(folder)]))
    model = few.fine_tuned(run, work)
    order = np.random.default_rng([0xFE3, seed]).permutation(len(work.train))
    names = sorted(
        (work.train[n] for n in order[_AMONG]),
        key=lambda name: (Path(work.root) / name / "ct.nii.gz").stat().st_size,
    )
    for name in names[: options.patients]:
        yield from _objects_of(folder, model, name, work)


def _objects_of(folder: Path, model: SegmentationModel, name: str, work: Work) -> Iterator[Object]:
    volume, truth = few.labelled_case(Path(work.root), name).read()
    found, probability = _prediction(folder / f"{name}.npz", model, volume)
    large = drop_small_parts(found, SegmentOptions().least_part)
    for segment in (s for s in found.segments if s.name in truth.names):
        true = truth.mask(segment.name)
        mask = large.mask(segment.name)
        around = Surroundings.of(volume, mask, probability)
        if not true.any() or around is None:
            continue
        inside = true[around.box][around.near]
        coarse = found.mask(segment.name)
        yield Object(
            folder.name,
            name,
            segment.name,
            features(around),
            inside,
            int(true.sum()) - int(inside.sum()),
            2.0 * int((coarse & true).sum()) / (int(coarse.sum()) + int(true.sum())),
        )


def _prediction(
    path: Path, model: SegmentationModel, volume: Volume
) -> tuple[Segmentation, NDArray[np.float32]]:
    """Coarse mask and probability of a patient, kept in a file."""
    if not path.exists():
        predicted = predict_volume(model, volume, device="cpu")
        np.savez(path, labels=predicted.segmentation.labels_kji, probability=predicted.probability)
    kept = np.load(path)
    segments = tuple(Segment(s.name, s.label, default_color(s.label)) for s in model.info.segments)
    return Segmentation(kept["labels"], volume.ijk_to_ras, segments), kept["probability"]


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="folder of labelled CTs")
    parser.add_argument("--encoders", type=Path, default=Path("pretrained"), help="folder of encoder files")
    parser.add_argument(
        "--out", type=Path, default=Path("bench_output/sharpening"), help="networks and what they say"
    )
    parser.add_argument("--patients", type=int, default=8, help="for each network (default: %(default)s)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
