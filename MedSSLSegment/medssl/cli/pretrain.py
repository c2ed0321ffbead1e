"""`medssl pretrain`."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from .command import Command
from .options import add_detach
from .terminal import ProgressBar
from .watching import run_detached, show, stopped_by_signals

if TYPE_CHECKING:
    from ..methods import Method

__all__ = ["COMMAND"]

_COMMON_PRESETS = ("paper", "gpu", "cpu")


def _configure(parser: argparse.ArgumentParser) -> None:
    from ..learning.pretrain_config import PretrainConfig
    from ..methods import METHODS
    from .arguments import add_fields

    add_fields(parser, PretrainConfig)
    add_detach(parser)
    parser.add_argument("--estimate", action="store_true", help="only say how long it would take")
    methods = "\n".join(f"  {name:<12}{_advice(method)}" for name, method in METHODS.items())
    parser.epilog = (
        f"methods, and when to choose one:\n{methods}\n\n{parser.epilog or ''}\n"
        "several GPUs or machines:\n  torchrun --nproc-per-node 4 -m medssl.cli pretrain --method ..."
    )


def _advice(method: type[Method]) -> str:
    """When to choose it, and which presets it has beside the common ones."""
    own = [name for name in method.presets() if name not in _COMMON_PRESETS]
    return method.info.advice + (f" Presets of its own: {', '.join(own)}." if own else "")


def _run(options: argparse.Namespace) -> None:
    from ..learning.pretrain_config import PretrainConfig, choose_preset
    from .arguments import build

    config = build(PretrainConfig, options)
    if options.detach:
        choose_preset(config, config.device)  # what is wrong with the settings is said here, not in a log
        run_detached("pretrain", config)
        return
    from ..training import estimate, pretrain

    if options.estimate:
        print(estimate(config))
        return
    with ProgressBar(sys.stderr, "Training") as bar, stopped_by_signals() as asked:
        show(pretrain(config, asked), bar)
    if int(os.environ.get("RANK", "0")) == 0:
        print(f"Written: {config.out / 'checkpoint.safetensors'}")


COMMAND = Command(
    summary="train an encoder on unlabelled scans; the same command goes on where it was stopped",
    configure=_configure,
    run=_run,
    examples="medssl pretrain --method polycl-s --data scans --out runs/polycl\n"
    "medssl pretrain --method anatomask --data scans --out runs/anatomask --minutes 30 --detach\n"
    "medssl pretrain --method polycl-m --data scans --presence liver.csv --out runs/liver --estimate",
)
