"""`medssl finetune`."""

from __future__ import annotations

import argparse
import sys

from .command import Command
from .terminal import ProgressBar
from .watching import show, stopped_by_signals

__all__ = ["COMMAND"]


def _configure(parser: argparse.ArgumentParser) -> None:
    from ..few_labels.finetune_run import FinetuneConfig
    from .arguments import add_fields

    add_fields(parser, FinetuneConfig)
    parser.add_argument(
        "--detach",
        action="store_true",
        help="train in the background, also after you log out; see `medssl runs`",
    )


def _run(options: argparse.Namespace) -> None:
    from ..few_labels.finetune_run import FinetuneConfig, finetune
    from ..few_labels.finetuning import Preview
    from ..runs.run_folder import plain
    from .arguments import build

    config = build(FinetuneConfig, options)
    if options.detach:
        from ..runs.detached import start_detached

        run = start_detached("finetune", plain(config))
        print(f"{run.path} is running as process {run.status.pid}; watch it: medssl runs follow {run.path}")
        return
    with ProgressBar(sys.stderr, "Fine-tuning") as bar, stopped_by_signals() as asked:
        show((event for event in finetune(config, asked) if not isinstance(event, Preview)), bar)
    print(f"Written: {config.out / 'checkpoint.safetensors'}")


COMMAND = Command(
    summary="train a model on your annotated cases, from an encoder or from nothing; the same command goes on",
    configure=_configure,
    run=_run,
    examples="medssl finetune --cases ~/.medssl/cases --segments liver --minutes 10 --name liver --out runs/liver\n"
    "medssl finetune --data cases --segments liver spleen --out runs/liver --minutes 10\n"
    "medssl finetune --data cases --segments mandible --encoder encoder.safetensors --out runs/mandible\n"
    "medssl finetune --cases ~/.medssl/cases --from liver --name liver --out runs/liver2   (the next version of liver)",
)
