"""`medssl predict`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .command import Command
from .files import check_output, check_place
from .options import add_anyway, add_series, add_trained
from .terminal import ProgressBar

__all__ = ["COMMAND"]


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("volume", help="image file, or folder of DICOM files")
    add_trained(parser)
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help=".nii.gz or .seg.nrrd to write")
    add_series(parser)
    parser.add_argument(
        "--uncertainty", choices=["off", "flip-average", "dropout"], default="off",
        help="average several answers: with the mirror image (2 x the time) or under dropout (8 x) [%(default)s]",
    )  # fmt: skip
    parser.add_argument(
        "--uncertainty-map", metavar="FILE", help="also write the uncertainty, 0 .. 1, as an image"
    )
    add_anyway(parser)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps [%(default)s]")


def _run(options: argparse.Namespace) -> None:
    from ..few_labels.model_store import model_file
    from ..few_labels.segmenter import read_model
    from ..formats.imagefile import write_image
    from ..inference import predict_volume
    from ..segmentation import write_segmentation
    from ..volume import read_volume

    check_output(options.output, options.volume)
    if options.uncertainty_map:
        check_place(options.uncertainty_map, [options.volume, options.output])
    model, volume = (
        read_model(model_file(options.model, str(options.models))),
        read_volume(options.volume, options.series),
    )
    with ProgressBar(sys.stderr, "Predicting") as bar:
        found = predict_volume(
            model,
            volume,
            uncertainty=options.uncertainty,
            anyway=options.anyway,
            device=options.device,
            on_progress=bar,
            on_warning=lambda warning: bar.say(f"medssl: note: {warning.text}"),
        )
    write_segmentation(found.segmentation, options.output)
    if options.uncertainty_map:
        write_image(Path(options.uncertainty_map), found.uncertainty, volume.ijk_to_ras)
    print(f"Written: {options.output} with {', '.join(model.info.names)}")


COMMAND = Command(
    summary="segment a volume with a model of your own",
    configure=_configure,
    run=_run,
    examples="medssl predict ct.nii.gz --model liver -o liver.nii.gz\n"
    "medssl predict ct.nii.gz --model runs/liver/checkpoint.safetensors -o liver.nii.gz",
)
