"""`medssl refine`."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..events import duration
from .command import Command
from .files import check_output, read_pair
from .options import add_json, add_model, add_output, add_refinement, add_series, add_window, chosen_axis
from .printed import note_model, print_json
from .terminal import ProgressBar, table

if TYPE_CHECKING:
    from ..pipeline import RefinementResult
    from ..segmentation import Segmentation
    from ..volume import Volume

__all__ = ["COMMAND"]


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("volume", help="image file, or folder of DICOM files")
    parser.add_argument(
        "-c", "--coarse", metavar="FILE", required=True, help="label map to sharpen, on the volume's grid"
    )
    add_output(parser)
    parser.add_argument(
        "--truth", metavar="FILE", help="label map of the truth: score coarse and refined against it"
    )
    parser.add_argument("--segment", metavar="NAME", nargs="+", help="do only these segments [all]")
    add_refinement(parser)
    add_window(parser)
    add_model(parser)
    add_series(parser)
    add_json(parser)


def _run(options: argparse.Namespace) -> None:
    from ..pipeline import refine_volume
    from ..refine import RefineOptions
    from ..segmentation import read_segmentation, write_segmentation

    check_output(options.output, options.volume, [options.coarse, options.truth])
    volume, coarse = read_pair(options.volume, options.coarse, options.series)
    truth = read_segmentation(options.truth, volume) if options.truth else None
    with ProgressBar(sys.stderr, "Refining") as bar:
        result = refine_volume(
            volume,
            coarse,
            model=options.model,
            device=options.device,
            segments=options.segment,
            options=RefineOptions(
                axis=chosen_axis(volume, options.axis) or 0,
                margin_mm=options.margin_mm,
                per_component=options.per_component,
                guard_dice=options.guard_dice,
                window=options.window,
            ),
            on_progress=bar,
        )
    write_segmentation(result.segmentation, options.output)
    note_model(options.model)
    if options.json:
        facts = _refinement_facts(volume, result, truth)
        print_json({"output": options.output, "seconds": result.seconds, "segments": facts})
        return
    print(_refinement_table(_refinement_facts(volume, result, truth)))
    for name, report in result.reports.items():
        print(f"{name}: {report.summary}")
    print(f"\n{options.output} written after {duration(result.seconds)}.")


def _refinement_facts(
    volume: Volume, result: RefinementResult, truth: Segmentation | None
) -> list[dict[str, Any]]:
    voxel_ml = math.prod(volume.spacing_kji_mm) / 1000
    facts = []
    for name, report in result.reports.items():
        masks = {"coarse": report.coarse_kji, "largest": report.largest_kji, "refined": report.refined_kji}
        entry: dict[str, Any] = {
            "name": name,
            "volume_ml": {key: float(np.count_nonzero(mask)) * voxel_ml for key, mask in masks.items()},
            "slices": [vars(one) for one in report.slices],
        }
        if truth is not None and name in truth.names:
            scores = report.scores(truth.mask(name), volume.spacing_kji_mm)
            entry["dice"] = {key: score.dice for key, score in zip(masks, scores, strict=True)}
            entry["hd95_mm"] = {key: score.hd95_mm for key, score in zip(masks, scores, strict=True)}
        facts.append(entry)
    return facts


def _refinement_table(facts: Sequence[Mapping[str, Any]]) -> str:
    """Coarse, coarse + largest component and refined side by side: volumes, and Dice where the truth is known."""
    kinds = {"coarse": "coarse", "largest": "largest part", "refined": "refined"}
    rows = []
    for entry in facts:
        dice = [f"{entry['dice'][kind]:.3f}" if "dice" in entry else "-" for kind in kinds]
        rows.append([entry["name"], *(f"{entry['volume_ml'][kind]:.1f}" for kind in kinds), *dice])
    header = [*(f"{words} ml" for words in kinds.values()), *(f"{words} Dice" for words in kinds.values())]
    return table(["segment", *header], rows)


COMMAND = Command(
    summary="sharpen a coarse segmentation with boxes around it",
    configure=_configure,
    run=_run,
    examples="medssl refine ct.nii.gz -c coarse.nii.gz -o fine.nii.gz --model sam-vit-b\n"
    "medssl refine ct.nii.gz -c coarse.nii.gz -o fine.nii.gz --truth truth.nii.gz",
)
