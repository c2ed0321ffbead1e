"""Time one pre-training step of ours against the published code's way of computing it.

    bench_ssl.py                     PolyCL, AnatoMask and TCS-MAE on one thread, as RESULTS_SSL.md states
    bench_ssl.py --rounds 5 --only anatomask

Both ways have the same backbone, batch and input, and take turns in one process, so that what else the machine does
meets both. A ratio above 1 says how many of our steps fit into the time of one published step; each round gives one
ratio. Data are timed apart: what it takes to come by one sample.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from machine import processor
from medssl.backbones import build_backbone
from medssl.backbones.stunet import STUNetEncoder
from medssl.datasets.data import UnlabelledVolumes
from medssl.datasets.input_contract import InputContract
from medssl.datasets.volume_cache import prepare_volumes
from medssl.formats.nifti import write_nifti
from medssl.methods.anatomask import AnatoMask, AnatoMaskOptions
from medssl.methods.base import Method, Moment
from medssl.methods.polycl import PolyCLOptions, PolyCLS
from medssl.methods.tcs_mae import TCSMAE, TCSMAEOptions
from medssl.phantom import phantom_ct
from published_steps import AnatoMaskStep, PolyCLStep, TCSMAEStep, polycl_triplet
from torch import Tensor

_HERE = Path(__file__).resolve().parent
_MOMENT = Moment(step=50, steps=101, epoch=5, epochs=10)
_PUBLISHED_EPOCHS = 100  # over which PolyCL's published code spreads the cost of drawing its triplets once


@dataclass(frozen=True)
class Timing:
    """One comparison: seconds of each round."""

    title: str
    setting: str
    published_s: list[float]
    ours_s: list[float]

    def ratios(self) -> np.ndarray:
        """Of each round, published over ours."""
        return np.array(self.published_s) / np.array(self.ours_s)

    def row(self) -> str:
        """A line of the table."""
        low, middle, high = np.percentile(self.ratios(), (10, 50, 90))
        published, ours = (1e3 * float(np.median(times)) for times in (self.published_s, self.ours_s))
        return (
            f"| {self.title} | {self.setting} | {published:.1f} | {ours:.1f} | {middle:.2f} "
            f"[{low:.2f}, {high:.2f}] |"
        )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=["polycl", "anatomask", "tcs-mae"], help="one method")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each way")
    parser.add_argument("--output", type=Path, default=_HERE / "RESULTS_SSL.md", help="file to write")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    measured = {"anatomask": anatomask, "tcs-mae": tcs_mae, "polycl": polycl}
    timings: list[Timing] = []
    for name, measure in measured.items():
        if options.only in (None, name):
            for timing in measure(options.rounds):
                print(timing.row(), flush=True)
                timings.append(timing)
    options.output.write_text(report(timings, options.rounds))


def report(timings: Sequence[Timing], rounds: int) -> str:
    """The results as markdown."""
    lines = [
        "# Speed of self-supervised pre-training",
        "",
        "Written by `python Testing/benchmarks/bench_ssl.py`; do not edit. One training step (forward, backward,"
        " optimiser, teacher) of ours and of the published code's way of computing it (`published_steps.py`), with"
        " the same backbone, batch and input, taking turns in one process on one thread. A step's data are in memory"
        " on both sides; coming by them is a line of its own, in which the published way reads scan and mask whole for"
        " each slice drawn and ours reads slices from the cache. What the published code computes and does not use is"
        " part of its step. Milliseconds are medians of the processor's time;"
        f" the ratio is the median of {rounds} rounds, in brackets their 10th and 90th percentile.",
        "",
        f"{processor()}, 1 thread, Python {platform.python_version()}, torch {torch.__version__};"
        f" {datetime.date.today().isoformat()}.",
        "",
        "| what | setting | published, ms | ours, ms | published / ours |",
        "|---|---|---|---|---|",
        *(timing.row() for timing in timings),
        "",
        "AnatoMask misses the 1.5 that the other two reach. Of its step (stunet_tiny; 1.14 s of the"
        " processor's time on a busy machine) the teacher's encoder takes 0.10 s and its decoder 0.19 s, all"
        " of whose patches the ranking needs; the rest is the student's convolutions and norms forward and"
        " backward. Norms gone through in parts that fit into the cache, as in the 2D U-Nets, gave the same"
        " numbers 3 % slower, and were left out.",
        "",
    ]
    return "\n".join(lines)


def take_turns(
    title: str, setting: str, published: Callable[[], object], ours: Callable[[], object], rounds: int
) -> Timing:
    """Time two ways of doing the same, in turns, the first to go changing every round.

    Seconds are the processor's, which other programs on the machine change less than those of the clock.
    """
    ways, times = (published, ours), ([], [])
    for way in ways:  # warm caches and memory
        way()
    for turn in range(rounds):
        for which in (0, 1) if turn % 2 == 0 else (1, 0):
            start = time.process_time()
            ways[which]()
            times[which].append(time.process_time() - start)
    return Timing(title, setting, *times)


def step_of(
    method: Method, optimiser: torch.optim.Optimizer, clip: float | None = None
) -> Callable[..., float]:
    """One step as the training loop makes it."""
    trained = [p for p in method.parameters() if p.requires_grad]

    def step(batch: dict[str, Tensor]) -> float:
        method.before_step(_MOMENT)
        loss = method(batch, _MOMENT)["loss"]
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(trained, clip)
        optimiser.step()
        method.after_step(_MOMENT)
        return float(loss.detach())

    return step


def anatomask(rounds: int) -> list[Timing]:
    """STU-Net at two widths; the five stages that the published code trains."""
    timings = []
    for name, width, batch in (("stunet_tiny", 128, 2), ("stunet_s", 256, 2)):
        backbone = build_backbone(name)
        encoder = backbone.encoder
        assert isinstance(encoder, STUNetEncoder)
        published = AnatoMaskStep(encoder, width)
        contract = InputContract(spatial_dims=3, size=(48, 48, 48))
        method = AnatoMask(backbone, contract, AnatoMaskOptions(stages=5, decoder_width=width)).train()
        ours = step_of(method, torch.optim.AdamW(_trained(method), 1e-4, weight_decay=1e-5), clip=12.0)
        images = torch.randn(batch, 1, 48, 48, 48)
        samples = {"image": images, "padded": torch.zeros(batch, 3, 3, 3, dtype=torch.bool)}
        timings.append(
            take_turns(
                "AnatoMask, step",
                f"{name}, 48^3, batch {batch}, decoder {width}",
                lambda step=published, x=images: step(x, 0.25),
                lambda step=ours, x=samples: step(x),
                rounds,
            )
        )
    return timings


def tcs_mae(rounds: int) -> list[Timing]:
    """SegFormer's smallest and a plain U-Net."""
    timings = []
    for name, side, batch, window in (("mit_tiny_unet", 128, 6, 15), ("unet2d_16", 128, 6, 15)):
        published = TCSMAEStep(build_backbone(name, 3), 3, window, 8, 0.75)
        contract = InputContract(size=(side, side), channels="chest", fit="resize")
        method = TCSMAE(build_backbone(name, 3), contract, TCSMAEOptions(ssim_window=window)).train()
        ours = step_of(method, torch.optim.AdamW(_trained(method), 1e-4))
        images = torch.rand(batch, 3, side, side)
        samples = {
            "image": images,
            "tissue": images[:, :1],
            "range": torch.tensor([[0.0, 1.0]]).expand(batch, -1),
        }
        timings.append(
            take_turns(
                "TCS-MAE, step",
                f"{name}, {side}^2, batch {batch}",
                lambda step=published, x=images: step(x),
                lambda step=ours, x=samples: step(x),
                rounds,
            )
        )
    return timings


def polycl(rounds: int) -> list[Timing]:
    """The step; coming by a sample; and both together, as in the published 100 epochs and drawn anew in each."""
    side, batch = 256, 4
    published = PolyCLStep(build_backbone("unet2d_16"), 0.05)
    method = PolyCLS(build_backbone("unet2d_16"), InputContract(size=(side, side)), PolyCLOptions()).train()
    ours = step_of(method, torch.optim.Adam(_trained(method), 1e-4))
    images = torch.rand(3, batch, 1, side, side)
    samples = dict(zip(("anchor", "positive", "negative"), images, strict=True))
    samples["fallbacks"] = torch.zeros(batch)
    setting = f"unet2d_16, {side}^2, batch {batch}"
    step = take_turns("PolyCL, step", setting, lambda: published(*images), lambda: ours(samples), rounds)
    drawing = _polycl_drawing(method, batch, side, rounds)
    return [step, drawing, *_together(step, drawing)]


def _polycl_drawing(method: PolyCLS, batch: int, side: int, rounds: int) -> Timing:
    with tempfile.TemporaryDirectory() as folder:
        scans, masks = _scans(Path(folder))
        contract = replace(method.contract, fit="resize")
        method.contract = contract
        volumes: UnlabelledVolumes = prepare_volumes(Path(folder) / "ct", contract, Path(folder) / "cache")
        rng, anchors = np.random.default_rng(0), method.anchors(volumes)

        def published() -> None:
            for n in range(batch):
                polycl_triplet(scans, masks, n % len(scans), side, rng)

        def ours() -> None:
            for place in rng.integers(len(anchors), size=batch):
                method.draw(volumes, anchors[place], rng)

        setting = f"phantoms of 96 x 256 x 256, batch {batch}"
        return take_turns("PolyCL, drawing triplets", setting, published, ours, rounds)


def _together(step: Timing, drawing: Timing) -> list[Timing]:
    """Steps with their data: published triplets drawn once for all epochs, and drawn anew as ours always are."""
    return [
        Timing(
            f"PolyCL, {title}",
            f"{step.setting}; {drawing.setting}",
            [s + d / epochs for s, d in zip(step.published_s, drawing.published_s, strict=True)],
            [s + d for s, d in zip(step.ours_s, drawing.ours_s, strict=True)],
        )
        for title, epochs in (
            (f"step and data, published triplets kept for {_PUBLISHED_EPOCHS} epochs", _PUBLISHED_EPOCHS),
            ("step and data, triplets drawn anew in every epoch", 1),
        )
    ]


def _scans(folder: Path) -> tuple[list[Path], list[Path]]:
    """Three phantoms and their masks as uncompressed NIfTI, as LiTS comes."""
    scans, masks = [], []
    for kind in ("ct", "mask"):
        (folder / kind).mkdir()
    for seed in range(3):
        phantom = phantom_ct(seed, (96, 256, 256), (3.0, 1.4, 1.4))
        scans.append(folder / "ct" / f"{seed}.nii")
        masks.append(folder / "mask" / f"{seed}.nii")
        write_nifti(scans[-1], phantom.volume.voxels_kji, phantom.volume.ijk_to_ras)
        write_nifti(masks[-1], phantom.segmentation.labels_kji, phantom.volume.ijk_to_ras)
    return scans, masks


def _trained(method: Method) -> list[torch.nn.Parameter]:
    return [p for p in method.parameters() if p.requires_grad]


if __name__ == "__main__":
    main()
