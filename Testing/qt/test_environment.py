"""Setting up the worker's own environment: told beforehand, made in the background, cancelled, repaired and removed."""

from __future__ import annotations

import importlib
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from medssl.errors import Cancelled, StorageError, WorkerError


@pytest.fixture
def environment(the_module: Any) -> Any:
    return importlib.import_module("MedSSLSegmentLib.Environment")


def a_plan(environment: Any, tmp_path: Path, *requirements: str) -> Any:
    """An environment of this Python with nothing to download."""
    needs = tmp_path / "requirements.txt"
    needs.write_text("\n".join(["# nothing", *requirements]))
    wheels = tmp_path / "wheels"
    wheels.mkdir(exist_ok=True)
    folder = tmp_path / "environment"
    return environment.EnvironmentPlan(folder, sys.executable, False, wheels, requirements=needs)


def test_the_plan_says_what_where_and_how_large_before_anything_is_done(
    environment: Any, tmp_path: Path
) -> None:
    plan = environment.EnvironmentPlan(tmp_path / "new", sys.executable, True)
    text = plan.text()
    for told in (str(tmp_path / "new"), "8.0 GB", "torch>=", "CUDA", "Memory"):
        assert told in text
    assert not (tmp_path / "new").exists()


def test_torch_is_installed_before_the_rest_and_from_the_build_for_processors(
    environment: Any, tmp_path: Path
) -> None:
    make, torch, rest = environment.EnvironmentPlan(tmp_path, sys.executable, False).commands()
    assert "venv" in make
    assert environment.CPU_INDEX in torch
    assert [p.split(">")[0] for p in torch[-2:]] == ["torch", "torchvision"]
    assert rest[-2:] == ["-r", str(environment.REQUIREMENTS)]


def test_an_environment_is_made_verified_and_removed_for_real(environment: Any, tmp_path: Path) -> None:
    plan = a_plan(environment, tmp_path)
    work = environment.SetUp(plan)
    work.start()
    python = work.result()
    assert python.exists()
    assert environment.isReady(plan.folder)
    python.unlink()
    assert not environment.isReady(plan.folder)
    environment.removeEnvironment(plan.folder)
    assert not plan.folder.exists()


def test_a_package_that_cannot_be_had_fails_in_one_sentence(environment: Any, tmp_path: Path) -> None:
    def run(command: Any, hear: Any, cancelled: threading.Event) -> int:
        (tmp_path / "environment").mkdir(exist_ok=True)
        hear("No matching distribution found for nothing-of-this-name\n")
        return int("install" in command)

    work = environment.SetUp(a_plan(environment, tmp_path, "nothing-of-this-name"), run)
    work.start()
    with pytest.raises(WorkerError, match="No matching distribution"):
        work.result()
    assert not environment.isReady(tmp_path / "environment")


def test_cancelling_stops_and_starting_again_goes_on(environment: Any, tmp_path: Path) -> None:
    plan = a_plan(environment, tmp_path)

    def run(command: Any, hear: Any, cancelled: threading.Event) -> int:
        plan.folder.mkdir(exist_ok=True)
        environment.environmentPython(plan.folder).parent.mkdir(exist_ok=True)
        environment.environmentPython(plan.folder).touch()
        return 0

    work = environment.SetUp(plan, run)
    work.cancel()
    work.start()
    with pytest.raises(Cancelled):
        work.result()
    assert not environment.isReady(plan.folder)
    again = environment.SetUp(plan, run)
    again.start()
    again.result()
    assert environment.isReady(plan.folder)


def test_a_folder_that_set_up_did_not_make_is_never_deleted(environment: Any, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("three years")
    with pytest.raises(StorageError, match="not made by Set up"):
        environment.removeEnvironment(tmp_path)
    assert (tmp_path / "thesis.txt").exists()
