"""A pre-training run that dies as by kill -9, for a process of its own to run."""

from __future__ import annotations

import os
import signal

import torch
import torch._dynamo  # The first step of an optimiser imports it, which takes a second in every process.
from medssl.datasets.data import UnlabelledVolumes
from medssl.events import Progress
from medssl.learning.pretrain_config import PretrainConfig
from medssl.methods import Preset
from medssl.training import pretrain

__all__ = ["train_and_die"]


def train_and_die(config: PretrainConfig, volumes: UnlabelledVolumes, preset: Preset, step: int) -> None:
    """Train on one thread; after so many steps the process is killed."""
    torch.set_num_threads(1)
    for event in pretrain(config, volumes=volumes, preset=preset):
        if isinstance(event, Progress) and event.done == step:
            os.kill(os.getpid(), signal.SIGKILL)
