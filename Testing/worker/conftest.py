"""Volumes, prompts and workers that the tests of this ring share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from fake_worker_command import FakeCommand
from medssl.client import LocalCommand, WorkerClient
from medssl.prompts import Reference, SlicePrompt
from medssl.volume import Volume


def _noise(slices: int = 50, seed: int = 0, shape_hw: tuple[int, int] = (24, 32)) -> Volume:
    """Noise around zero, int16."""
    voxels = np.random.default_rng(seed).integers(-500, 500, (slices, *shape_hw), np.int16)
    return Volume(voxels, np.diag([2.0, 2.5, 3.0, 1.0]), "patient_name.nii.gz")


@pytest.fixture
def make_volume() -> Callable[..., Volume]:
    """Makes a volume of noise: `make_volume(slices=50, seed=0, shape_hw=(24, 32))`."""
    return _noise


@pytest.fixture
def volume() -> Volume:
    return _noise()


@pytest.fixture
def reference() -> Reference:
    mask = np.zeros((24, 32), bool)
    mask[5:9, 7:20] = True
    return Reference("liver", SlicePrompt(axis=0, index=3, mask=mask))


@pytest.fixture
def click() -> SlicePrompt:
    return SlicePrompt(0, 4, np.array([[3.0, 5.0]], np.float32), np.array([1], np.int32))


@pytest.fixture(scope="session")
def client() -> Iterator[WorkerClient]:
    """A client that tests share, to start fewer processes; killing its worker is fine, it starts another."""
    with WorkerClient(FakeCommand()) as running:
        yield running


@pytest.fixture
def fresh_client() -> Iterator[WorkerClient]:
    """A client whose worker has seen nothing yet."""
    with WorkerClient(FakeCommand()) as running:
        yield running


@dataclass(frozen=True, kw_only=True)
class SlowLineCommand(FakeCommand):
    """Starts the fake worker behind a line that carries 20 MB/s."""

    def argv(self) -> list[str]:
        return [sys.executable, str(Path(__file__).with_name("slow_line.py")), *super().argv()]


@pytest.fixture
def fake_command() -> LocalCommand:
    return FakeCommand()


@pytest.fixture
def slow_line_command() -> LocalCommand:
    return SlowLineCommand()
