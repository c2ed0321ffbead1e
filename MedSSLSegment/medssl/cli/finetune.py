"""`medssl finetune`."""

from __future__ import annotations

import argparse
import sys

from .command import Command
from .options import add_detach
from .terminal import ProgressBar
from .watching import run_detached, show, stopped_by_signals

__all__ = ["COMMAND"]


def _configure(parser: argparse.ArgumentParser) -> None:
    from ..few_labels.finetune_run import FinetuneConfig
    from .arguments import add_fields

    add_fields(parser, FinetuneConfig)
    add_detach(parser)


def _run(options: argparse.Namespace) -> None:
    from ..few_labels.finetune_run import FinetuneConfig, finetune
    from ..few_labels.finetuning import Preview
    from .arguments import build

    config = build(FinetuneConfig, options)
    if options.detach:
        run_detached("finetune", config)
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
