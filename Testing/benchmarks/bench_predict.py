"""Time `predict_volume` against MONAI's sliding window with the same network, and score both.

    bench_predict.py --data FOLDER --model flat.safetensors solid.safetensors
    bench_predict.py --data FOLDER                 trains a 2D and a 3D network first, for a few minutes
    bench_predict.py                               phantoms and untrained networks: times only

Both ways begin with the volume in memory and end with labels on its own grid; they share the preparation of the image
and the way back. MONAI's goes over the prepared image as its users do: `SliceInferer` with the network's training size
in 2D, `sliding_window_inference` in 3D, with its default overlap of a quarter and with the half that many take. In 2D
the third way is ours again, but on every slice and over the whole body, which shows what looking at every other slice
first saves, and what it loses. The ways take turns on every volume, the first to go changing each time, and the time
is the processor's, so that what else the machine does counts for little.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import processor
from medssl.datasets.data import intensity_stats
from medssl.datasets.grid import PreparedGrid, prepare_image
from medssl.few_labels.finetune_run import FinetuneConfig, finetune
from medssl.few_labels.finetuning import predictor_of
from medssl.few_labels.segmenter import SegmentationModel, read_model
from medssl.inference import predict_volume
from medssl.metrics import dice
from medssl.phantom import phantom_ct
from medssl.volume import Volume
from monai.inferers import Inferer, SliceInferer, SlidingWindowInferer
from numpy.typing import NDArray
from protocol import Case, data_root, held_out_cases, read_case

_HERE = Path(__file__).resolve().parent
_ORGANS = ("mandible", "parotid_left", "parotid_right", "brainstem", "spinal_cord")
_TRAINING: dict[int, dict[str, Any]] = {
    2: {"backbone": "unet2d_16", "segments": _ORGANS, "steps": 400, "validations": 1},
    3: {
        "backbone": "stunet_tiny",
        "segments": _ORGANS[:3],
        "steps": 250,
        "validations": 5,
        "size": (48, 48, 48),
        "learning_rate": 0.003,
    },
}
_TEACHERS = 6
_OVERLAPS = (0.25, 0.5)
_WINDOWS_AT_ONCE = 4

Way = Callable[[SegmentationModel, Volume], NDArray[np.uint8]]


@dataclass
class Turns:
    """Processor seconds and Dice of one way, a value per volume."""

    seconds: list[float] = field(default_factory=list)
    dice: dict[str, list[float]] = field(default_factory=dict)
    """By organ."""

    @property
    def mean_dice(self) -> str:
        """Over organs and volumes."""
        return _mean([value for values in self.dice.values() for value in values])


def main(argv: Sequence[str] | None = None) -> None:
    options = _arguments(argv)
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    root = data_root(options.data)
    models = options.model or _trained(root, options.out)
    rows, organs = [], []
    for title, model in _named(models, trained=root is not None):
        measured = take_turns(model, list(_cases(root, options.limit)), options.rounds)
        rows += table_rows(title, model, measured)
        organs += organ_rows(title, measured)
        print("\n".join(rows + organs), flush=True)
    options.results.write_text(report(rows, organs, options))


def ours(model: SegmentationModel, volume: Volume) -> NDArray[np.uint8]:
    """(K, J, I) labels, as the program predicts them."""
    return predict_volume(model, volume, device="cpu").segmentation.labels_kji.astype(np.uint8)


def monai_way(overlap: float) -> Way:
    """The same from MONAI's inferers."""

    @torch.inference_mode()
    def predict(model: SegmentationModel, volume: Volume) -> NDArray[np.uint8]:
        contract, network = model.info.contract, model.network.eval()
        image, grid = prepare_image(volume, contract)
        windows = {"roi_size": contract.size, "sw_batch_size": _WINDOWS_AT_ONCE, "overlap": overlap}
        flat = contract.spatial_dims == 2
        inferer: Inferer = SliceInferer(spatial_dim=0, **windows) if flat else SlidingWindowInferer(**windows)
        stats = intensity_stats(image)
        shown = (
            np.stack([contract.apply(part, stats) for part in image], 1)
            if flat
            else contract.apply(image, stats)
        )
        logits = inferer(torch.from_numpy(shown)[None], network)
        return _labels(model, grid, logits.softmax(1)[0].numpy())

    return predict


def everywhere(model: SegmentationModel, volume: Volume) -> NDArray[np.uint8]:
    """(K, J, I) labels as ours, of a network that looks at every slice and the whole body."""
    image, grid = prepare_image(volume, model.info.contract)
    predictor = predictor_of(model.network.eval(), model.info.contract)
    probabilities = np.zeros((len(model.info.segments) + 1, *grid.shape_kji), np.float32)
    for slab in predictor.slabs(image, intensity_stats(image)):
        probabilities[:, slab.first : slab.stop] = slab.probabilities
    return _labels(model, grid, probabilities)


def _labels(
    model: SegmentationModel, grid: PreparedGrid, probabilities: NDArray[np.float32]
) -> NDArray[np.uint8]:
    """The likeliest label of each voxel of the volume, from (N, K, J, I) on the prepared grid."""
    native = grid.to_native(probabilities[1:])
    chosen = np.concatenate([1.0 - native.sum(0, keepdims=True), native]).argmax(0)
    values = np.array([0, *(segment.label for segment in model.info.segments)], np.uint8)
    return values[chosen]


def take_turns(model: SegmentationModel, cases: Sequence[Case], rounds: int) -> dict[str, Turns]:
    """Time every way on every case, in turns, and score what it found."""
    ways: dict[str, Way] = {"ours": ours, **{f"MONAI, overlap {o:g}": monai_way(o) for o in _OVERLAPS}}
    if model.info.contract.spatial_dims == 2:
        ways["ours, everywhere"] = everywhere
    measured = {name: Turns() for name in ways}
    for way in ways.values():  # warm caches and memory
        way(model, cases[0].volume)
    for turn in range(rounds):
        for number, case in enumerate(cases):
            order = list(ways) if (turn + number) % 2 == 0 else list(reversed(ways))
            for name in order:
                start = time.process_time()
                labels = ways[name](model, case.volume)
                measured[name].seconds.append(time.process_time() - start)
                if turn == 0:
                    for organ, value in _scores(model, case, labels).items():
                        measured[name].dice.setdefault(organ, []).append(value)
    return measured


def _scores(model: SegmentationModel, case: Case, labels: NDArray[np.uint8]) -> dict[str, float]:
    """Dice of the segments that the case knows."""
    truth = {name: case.labels_kji == value for value, name in case.organs.items()}
    return {s.name: dice(labels == s.label, truth[s.name]) for s in model.info.segments if s.name in truth}


def table_rows(title: str, model: SegmentationModel, measured: dict[str, Turns]) -> list[str]:
    """Lines of the table: ours against MONAI at each overlap."""
    mine = measured["ours"]
    rows = []
    for name, theirs in measured.items():
        if name == "ours":
            continue
        ratios = np.array(theirs.seconds) / np.array(mine.seconds)
        low, middle, high = np.percentile(ratios, (10, 50, 90))
        size = " x ".join(map(str, model.info.contract.size))
        rows.append(
            f"| {title} | {size} | {name} | {np.median(theirs.seconds):.2f} | {np.median(mine.seconds):.2f} |"
            f" **{middle:.2f}** [{low:.2f}, {high:.2f}] | {theirs.mean_dice} | {mine.mean_dice} |"
        )
    return rows


def organ_rows(title: str, measured: dict[str, Turns]) -> list[str]:
    """Lines of the table of organs: the Dice of every way."""
    return [
        f"| {title} | {organ} | "
        + " | ".join(
            _mean(measured[name].dice[organ]) if name in measured else "-"
            for name in (f"MONAI, overlap {_OVERLAPS[0]:g}", "ours, everywhere", "ours")
        )
        + " |"
        for organ in measured["ours"].dice
    ]


def report(rows: Sequence[str], organs: Sequence[str], options: argparse.Namespace) -> str:
    """The results as markdown."""
    return "\n".join(
        [
            "# Speed of prediction",
            "",
            "Written by `python Testing/benchmarks/bench_predict.py`; do not edit. From a volume in memory to labels on"
            " its own grid, ours and through MONAI's sliding window with the same network, taking turns on every"
            f" volume, {options.rounds} round(s). Seconds are the processor's, medians over volumes; the ratio is the"
            " median of their seconds over ours in the same turn, in brackets its 10th and 90th percentile. Dice is"
            " the mean over organs and volumes of patients that no network has seen.",
            "",
            f"{processor()}, {options.threads} thread(s), Python {platform.python_version()},"
            f" torch {torch.__version__}; {datetime.date.today().isoformat()}.",
            "",
            "| network | training size | against | its s | ours, s | its / ours | its Dice | Dice ours |",
            "|---|---|---|---|---|---|---|---|",
            *rows,
            "",
            "2D networks look at a slice every 6 mm, or at every other one where slices are thick, and at those"
            ' between only around what their neighbours show; "everywhere" is ours without that. What is thinner'
            " than 6 mm, or on one slice only, may be overlooked; so may the part of a thin structure that runs on"
            " in the plane for more than 8 mm between two slices that are looked at first. 3D networks look"
            " everywhere but at the air.",
            "",
            "| network | organ | Dice MONAI, overlap 0.25 | ours, everywhere | ours |",
            "|---|---|---|---|---|",
            *organs,
            "",
        ]
    )


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="folder of labelled CTs (or the environment variable MEDSSL_DATA)")
    parser.add_argument("--model", type=Path, nargs="+", default=[], help="models of `medssl finetune`")
    parser.add_argument("--limit", type=int, default=6, help="volumes (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=1, help="turns on every volume (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("bench_output/predict"), help="folder for trained networks"
    )
    parser.add_argument("--results", type=Path, default=_HERE / "RESULTS_PREDICT.md", help="markdown file")
    return parser.parse_args(argv)


def _trained(root: Path | None, out: Path) -> list[Path]:
    """Networks fine-tuned on a few patients that are not held out; those that are there are used again."""
    if root is None:
        return []
    hidden = {case for cases in held_out_cases().values() for case in cases}
    known = sorted(folder.name for folder in root.glob("ct_hn*") if folder.name not in hidden)
    teachers = [name for name in known if set(_ORGANS) <= set(read_case(root / name).organs.values())]
    left_out = tuple(sorted({f.name for f in root.iterdir()} - set(teachers[:_TEACHERS])))
    models = []
    for dims, training in _TRAINING.items():
        config = FinetuneConfig(out=out / f"{dims}d", data=root, exclude=left_out, device="cpu", **training)
        models.append(config.out / "checkpoint.safetensors")
        if not models[-1].exists():
            for _ in finetune(config):
                pass
    return models


def _named(models: Sequence[Path], trained: bool) -> Iterator[tuple[str, SegmentationModel]]:
    for path in models:
        model = read_model(path)
        yield model.info.backbone, model
    if not models and not trained:
        yield from _untrained()


def _untrained() -> Iterator[tuple[str, SegmentationModel]]:
    """Random weights: enough to time."""
    from medssl.datasets.input_contract import InputContract
    from medssl.few_labels.segmenter import ModelInfo
    from medssl.segmentation import Segment, default_color

    segments = tuple(Segment(name, n, default_color(n)) for n, name in enumerate(("liver", "spleen"), 1))
    for dims, training in _TRAINING.items():
        backbone = training["backbone"]
        contract = InputContract(
            spatial_dims=2 if dims == 2 else 3,
            size=(96, 96) if dims == 2 else (64, 64, 64),
            spacing_kji_mm=(None if dims == 2 else 3.0, 2.5, 2.5),
        )
        info = ModelInfo(backbone=backbone, contract=contract, segments=segments)
        yield f"{backbone}, untrained", SegmentationModel.build(info)


def _cases(root: Path | None, limit: int) -> Iterator[Case]:
    if root is None:
        for seed in range(min(limit, 2)):
            phantom = phantom_ct(9001 + seed)
            organs = {s.label: s.name for s in phantom.segmentation.segments}
            yield Case(f"phantom {seed}", phantom.volume, phantom.segmentation.labels_kji, organs)
        return
    present = [name for name in held_out_cases()["head_neck"] if (root / name).is_dir()]
    for name in present[:limit]:
        yield read_case(root / name)


def _mean(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f}" if values else "-"


if __name__ == "__main__":
    main()
