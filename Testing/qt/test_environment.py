"""Setting up the worker's own environment: told beforehand, made in the background, cancelled, repaired and removed."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
from medssl.errors import Cancelled, StorageError, WorkerError
from medssl.runs.processes import is_alive


@pytest.fixture
def environment(the_module: Any) -> Any:
    return importlib.import_module("MedSSLSegmentLib.Environment")


def a_wheel(folder: Path, version: str = "1.0", name: str = "lungfish") -> None:
    """A package of one line, as pip takes it from a folder."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": "breathes = True\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for name, text in {**files, f"{info}/RECORD": record}.items():
            wheel.writestr(name, text)


def a_plan(environment: Any, tmp_path: Path, *requirements: str) -> Any:
    """An environment of this Python with nothing to download."""
    needs = tmp_path / "requirements.txt"
    needs.write_text("\n".join(["# nothing", *requirements]))
    wheels = tmp_path / "wheels"
    wheels.mkdir(exist_ok=True)
    folder = tmp_path / "environment"
    return environment.EnvironmentPlan(folder, None, "cpu", wheels, requirements=needs)


def test_the_plan_says_what_where_and_how_large_before_anything_is_done(
    environment: Any, tmp_path: Path
) -> None:
    plan = environment.EnvironmentPlan(tmp_path / "new", None, "cu130")
    text = plan.text()
    for told in (str(tmp_path / "new"), "8.0 GB", "torch>=", "CUDA", "Memory"):
        assert told in text
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("build", ["cpu", "cu130"])
def test_torch_comes_first_from_its_own_index_alone_and_the_rest_is_built_with_it(
    environment: Any, tmp_path: Path, build: str
) -> None:
    plan = environment.EnvironmentPlan(tmp_path, None, build)
    tools, torch, rest = plan.commands()
    index = f"https://download.pytorch.org/whl/{build}"
    assert tools[-2:] == ["setuptools", "wheel"]
    assert [p.split(">")[0] for p in torch[-4:]] == ["--index-url", index, "torch", "torchvision"]
    assert "--extra-index-url" not in torch
    assert rest[rest.index("--extra-index-url") + 1] == index
    assert rest[-5:] == [
        "--no-build-isolation",
        "-r",
        str(environment.REQUIREMENTS),
        "-c",
        str(tmp_path / "torch.txt"),
    ]
    assert plan.environment()["SAM2_BUILD_CUDA"] == "0"
    assert str(tmp_path / "packages") in plan.environment()["PYTHONPATH"]


def test_the_torch_that_was_taken_first_stays_when_there_is_a_newer_one_for_the_rest(
    environment: Any, tmp_path: Path
) -> None:
    plan = a_plan(environment, tmp_path, "torch>=1.0", "lungfish>=1.0")
    for name in ("setuptools", "wheel", "lungfish"):
        a_wheel(plan.wheels, name=name)
    a_wheel(plan.wheels, "1.5+cpu", name="torch")

    def run(command: Any, variables: Any, hear: Any, cancelled: threading.Event) -> int:
        if "-r" in command:
            a_wheel(plan.wheels, "2.0", name="torch")
        return int(environment._runProcess(command, variables, hear, cancelled))

    work = environment.SetUp(plan, run)
    work.start()
    work.result()
    described = sorted(path.name for path in (plan.folder / "packages").glob("[lt]*.dist-info"))
    assert described == ["lungfish-1.0.dist-info", "torch-1.5+cpu.dist-info"]


def test_what_pip_has_replaced_is_forgotten_and_the_torch_of_now_is_kept(
    environment: Any, tmp_path: Path
) -> None:
    plan = a_plan(environment, tmp_path)
    for age, name in enumerate(("torch-2.0+cpu", "torch-1.9", "lungfish-1.0", "lungfish-0.9")):
        described = plan.folder / "packages" / f"{name}.dist-info"
        described.mkdir(parents=True)
        os.utime(described, (1e9 - age, 1e9 - age))
    plan.tidy()
    assert sorted(path.stem for path in described.parent.iterdir()) == ["lungfish-1.0", "torch-2.0+cpu"]
    assert (plan.folder / "torch.txt").read_text() == "torch==2.0+cpu\n"


@pytest.mark.parametrize(
    ("said", "build"),
    [
        ("580.65.06, 8.6\n", "cu130"),
        ("595.10, 12.0\n595.10, 8.9\n", "cu130"),
        ("580.65.06, 6.1\n", "cu126"),
        ("550.54.15, 8.0\n", "cu126"),
        ("570.86, 12.0\n", "cu128"),
        ("470.10, [N/A]\n", "cu126"),
        ("", "cpu"),
    ],
)
def test_the_build_of_torch_is_the_one_for_the_driver_and_the_gpu(
    environment: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, build: str
) -> None:
    builds = importlib.import_module("MedSSLSegmentLib.TorchBuild")
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat <<END\n{said}END\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert builds.torchBuild() == build


def test_a_driver_that_does_not_run_means_no_gpu(
    environment: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builds = importlib.import_module("MedSSLSegmentLib.TorchBuild")
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho No devices were found\nexit 6\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert builds.torchBuild() == "cpu"
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert builds.torchBuild() == "cpu"


def test_uv_makes_an_environment_with_a_python_of_its_own(environment: Any, tmp_path: Path) -> None:
    plan = environment.EnvironmentPlan(tmp_path, "/bin/uv", "cu126")
    make, torch, rest = plan.commands()
    assert make == ["/bin/uv", "venv", "--allow-existing", "--python", ">=3.11,<3.14", str(tmp_path)]
    for command in (torch, rest):
        assert command[:4] == ["/bin/uv", "pip", "install", "--python"]
        assert Path(command[4]).is_relative_to(tmp_path)
        assert command[5:7] == ["--torch-backend", "auto"]
    assert "packages" not in plan.environment().get("PYTHONPATH", "")


def test_without_a_network_nothing_but_the_folder_is_asked(environment: Any, tmp_path: Path) -> None:
    for uv in (None, "/bin/uv"):
        for command in environment.EnvironmentPlan(tmp_path, uv, "cu130", tmp_path / "wheels").commands()[
            -2:
        ]:
            assert command[command.index("--find-links") + 1] == str(tmp_path / "wheels")
            assert "--no-index" in command
            assert not {"--torch-backend", "--extra-index-url"} & set(command)


def test_an_environment_of_uv_is_not_mixed_with_packages_of_pip(environment: Any, tmp_path: Path) -> None:
    plan = a_plan(environment, tmp_path)
    python = environment._venvPython(plan.folder)
    python.parent.mkdir(parents=True)
    python.touch()
    work = environment.SetUp(plan)
    work.start()
    with pytest.raises(StorageError, match="press Remove first"):
        work.result()


@pytest.mark.parametrize("names", [("PythonSlicer", "python-real"), ("PythonSlicer",)])
def test_slicers_python_is_the_interpreter_itself_where_there_is_one_and_its_own_packages_stay_as_they_are(
    environment: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    for name in names:
        (tmp_path / name).touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    python = str(tmp_path / names[-1])
    for command in environment.EnvironmentPlan(tmp_path / "new", None, "cpu").commands():
        assert command[:4] == [python, "-m", "pip", "install"]
        assert command[command.index("--target") + 1] == str(tmp_path / "new" / "packages")
    started = environment.environmentCommand(tmp_path / "new")
    assert started.argv()[:3] == [python, "-m", "medssl.worker"]


def test_packages_of_the_environment_come_before_those_of_slicer(
    environment: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/slicer/site-packages")
    for variables in (
        environment.environmentCommand(tmp_path).environment(),
        environment.EnvironmentPlan(tmp_path, None, "cpu").environment(),
    ):
        folders = variables["PYTHONPATH"].split(os.pathsep)
        assert folders[1:] == [str(tmp_path / "packages"), "/slicer/site-packages"]


def test_uv_is_found_where_its_installer_puts_it(
    environment: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uv = tmp_path / ".local/bin/uv"
    uv.parent.mkdir(parents=True)
    uv.touch(0o755)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "/nowhere")
    assert environment.findUv() == str(uv)


def test_a_slicer_for_which_there_is_no_torch_says_so_before_anything_is_asked(
    environment: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment.sys, "platform", "darwin")
    monkeypatch.setattr(environment.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(environment, "findUv", lambda: None)
    with pytest.raises(WorkerError, match="install uv"):
        environment.EnvironmentPlan.forThisComputer()
    monkeypatch.setattr(environment, "findUv", lambda: "/bin/uv")
    assert environment.EnvironmentPlan.forThisComputer().uv == "/bin/uv"


def test_an_environment_is_made_verified_broken_repaired_and_removed_for_real(
    environment: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = a_plan(environment, tmp_path, "lungfish>=1.0")
    a_wheel(plan.wheels)
    python = importlib.import_module("MedSSLSegmentLib.WorkerPython")
    monkeypatch.setattr(python, "REQUIREMENTS", plan.requirements)

    def setUp() -> Any:
        work = environment.SetUp(plan)
        work.start()
        return work.result()

    command = setUp()
    assert environment.isReady(plan.folder)
    assert python.missingPackages(command) == []
    for path in (plan.folder / "packages").iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert python.missingPackages(command) == ["lungfish"]
    monkeypatch.setattr(environment, "environmentFolder", lambda: plan.folder)
    with pytest.raises(
        WorkerError, match="environment lacks lungfish; press Set up in the settings, which mends"
    ):
        python.requirePackages(command)
    assert python.missingPackages(setUp()) == []
    with monkeypatch.context() as newer:
        newer.setattr(environment.sys.implementation, "cache_tag", "cpython-399")
        assert not environment.isReady(plan.folder)
    assert environment.isReady(plan.folder)
    environment.removeEnvironment(plan.folder)
    assert not plan.folder.exists()
    assert not environment.isReady(plan.folder)


def test_a_package_that_cannot_be_had_fails_in_one_sentence(environment: Any, tmp_path: Path) -> None:
    def run(command: Any, variables: Any, hear: Any, cancelled: threading.Event) -> int:
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

    def run(command: Any, variables: Any, hear: Any, cancelled: threading.Event) -> int:
        (plan.folder / "packages").mkdir(parents=True, exist_ok=True)
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


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="asks for groups of processes")
def test_cancelling_ends_the_installer_and_what_it_has_started(environment: Any) -> None:
    script = "import subprocess; c = subprocess.Popen(['sleep', '60']); print(c.pid, flush=True); c.wait()"
    cancelled, said = threading.Event(), []

    def hear(line: str) -> None:
        said.append(line)
        cancelled.set()

    status = environment._runProcess([sys.executable, "-c", script], os.environ, hear, cancelled)
    assert status < 0
    deadline = time.monotonic() + 30
    while (
        is_alive(int(said[0])) and time.monotonic() < deadline
    ):  # the system takes it away when it comes to it
        time.sleep(0.01)
    assert not is_alive(int(said[0]))


def test_a_folder_that_set_up_did_not_make_is_never_deleted(environment: Any, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("three years")
    with pytest.raises(StorageError, match="not made by Set up"):
        environment.removeEnvironment(tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_a_removal_that_is_cut_off_leaves_nothing_that_could_be_used_and_is_finished_the_next_time(
    environment: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "environment"
    for name in ("packages/torch", "share"):
        (folder / name).mkdir(parents=True)
    (folder / environment.MARKER).write_text(json.dumps({"python": environment._thisPython()}))
    (folder / environment.PINS).write_text("torch==2")
    assert environment.isReady(folder)
    remove = shutil.rmtree

    def cut_off(path: Path) -> None:
        remove(path)
        raise OSError("the computer was switched off")

    with monkeypatch.context() as patch:
        patch.setattr(environment.shutil, "rmtree", cut_off)
        with pytest.raises(StorageError, match="switched off"):
            environment.removeEnvironment(folder)
    assert not environment.isReady(folder)
    remove(folder / "packages", ignore_errors=True)
    environment.removeEnvironment(folder)
    assert not folder.exists()


def test_programs_that_are_not_slicers_do_not_see_slicers_libraries(
    environment: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = importlib.import_module("MedSSLSegmentLib.WorkerPython")
    monkeypatch.setattr(environment.slicer.util, "startupEnvironment", lambda: {"HOME": "/home/me"})
    python.setChosenHost("me@gpu-server")
    monkeypatch.delenv("MEDSSL_HOME")
    assert python.workerCommand().environment() == {"HOME": "/home/me"}
    python.setChosenHost("")
    python.setChosenPython("/usr/bin/python3")
    assert set(python.workerCommand().environment()) == {"HOME", "PYTHONPATH", "PYTHONSAFEPATH"}
