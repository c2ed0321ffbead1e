"""Options that several commands share."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..home import cases_folder, models_folder
from ..registry import DEFAULT_MODEL

if TYPE_CHECKING:
    from ..volume import Volume, Window

__all__ = [
    "add_anyway",
    "add_axis",
    "add_detach",
    "add_json",
    "add_model",
    "add_models",
    "add_output",
    "add_promptable",
    "add_refinement",
    "add_series",
    "add_store",
    "add_trained",
    "add_window",
    "chosen_axis",
]


def add_model(parser: argparse.ArgumentParser) -> None:
    """Which model, on which device."""
    parser.add_argument(
        "--model", metavar="ID", default=DEFAULT_MODEL, help="see `medssl models list` [%(default)s]"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps [%(default)s]")


def add_trained(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Which model of one's own, from which store."""
    parser.add_argument(
        "-m", "--model", metavar="MODEL", required=required,
        help="model of your own: its name, NAME:VERSION, a file, or the run folder of `medssl finetune`",
    )  # fmt: skip
    add_models(parser)


def add_anyway(parser: argparse.ArgumentParser) -> None:
    """Whether a model is used on volumes it was not made for."""
    parser.add_argument(
        "--anyway", action="store_true",
        help="use the model though the volume is of another modality than it has learnt from",
    )  # fmt: skip


def add_models(parser: argparse.ArgumentParser) -> None:
    """Which model store."""
    parser.add_argument(
        "--models", metavar="FOLDER", default=models_folder(), help="model store [%(default)s]"
    )


def add_store(parser: argparse.ArgumentParser) -> None:
    """Which case store."""
    parser.add_argument("--store", metavar="FOLDER", default=cases_folder(), help="case store [%(default)s]")


def add_promptable(parser: argparse.ArgumentParser) -> None:
    """Which promptable models refine and propagate, on which device."""
    for option, what in (("--refiner", "answers boxes"), ("--tracker", "propagates")):
        parser.add_argument(
            option, metavar="ID", default=DEFAULT_MODEL, help=f"promptable model that {what} [%(default)s]"
        )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps [%(default)s]")


def add_refinement(parser: argparse.ArgumentParser) -> None:
    """How a coarse mask is refined, and along which slices."""
    parser.add_argument(
        "--axis", choices=["axial", "coronal", "sagittal", "0", "1", "2"], default="axial",
        help="slices to go along: a view, or an axis of the file (0 = K, 1 = J, 2 = I) [%(default)s]",
    )  # fmt: skip
    parser.add_argument(
        "--margin-mm",
        metavar="MM",
        type=float,
        default=5.0,
        help="margin of the boxes around the coarse mask [%(default)s]",
    )
    parser.add_argument("--per-component", action="store_true", help="one box per connected part of a slice")
    parser.add_argument(
        "--guard-dice", metavar="DICE", type=float, default=0.5,
        help="a slice keeps its coarse mask if the refined one agrees with it less than this [%(default)s]",
    )  # fmt: skip


def add_output(parser: argparse.ArgumentParser) -> None:
    """The segmentation to write."""
    parser.add_argument(
        "-o", "--output", metavar="FILE", required=True, help="result: .nii.gz, or .seg.nrrd for 3D Slicer"
    )


def add_axis(parser: argparse.ArgumentParser) -> None:
    """Across which axis the annotation was drawn."""
    parser.add_argument(
        "--axis", choices=["auto", "axial", "coronal", "sagittal", "0", "1", "2"], default="auto",
        help="slices were drawn in this view, or across this axis of the file (0 = K, 1 = J, 2 = I); auto takes"
        " the one with the fewest annotated slices [%(default)s]",
    )  # fmt: skip


def add_window(parser: argparse.ArgumentParser) -> None:
    """Which intensities the model sees."""
    parser.add_argument(
        "--window", type=_window, metavar="NAME|LEVEL/WIDTH",
        help="intensities the model sees: soft-tissue, lung, bone, brain, ... or e.g. 40/400 [from the image]",
    )  # fmt: skip


def add_series(parser: argparse.ArgumentParser) -> None:
    """Which series of a DICOM folder."""
    parser.add_argument(
        "--series", metavar="UID", help="series to take from a DICOM folder that holds several"
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """JSON in place of text."""
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of text")


def add_detach(parser: argparse.ArgumentParser) -> None:
    """Training that outlives the terminal; see `watching.run_detached`."""
    parser.add_argument(
        "--detach",
        action="store_true",
        help="train in the background, also after you log out; see `medssl runs`",
    )


def chosen_axis(volume: Volume, text: str) -> int | None:
    """Slice axis for a choice of `--axis`; None leaves it to the annotation."""
    if text == "auto":
        return None
    return int(text) if text.isdigit() else volume.axis_of(text)  # type: ignore[arg-type]


def _window(text: str) -> Window:
    from ..volume import WINDOWS, Window

    if text in WINDOWS:
        return WINDOWS[text]
    try:
        level, width = (float(part) for part in text.split("/"))
        return Window(level, width)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"'{text}' is neither LEVEL/WIDTH with a width above 0 nor one of {', '.join(WINDOWS)}"
        ) from error
