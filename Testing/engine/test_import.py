"""Importing the package is cheap and needs no torch: the panel does it inside 3D Slicer."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "torchvision", "SimpleITK", "scipy", "monai", "matplotlib", "sam2", "segment_anything")

BLOCK_AND_TIME = f"""
import sys, time
for name in {HEAVY!r}:
    sys.modules[name] = None  # importing it now fails
started = time.process_time()
import medssl
spent = time.process_time() - started
print(spent, [name for name in {HEAVY!r} if sys.modules.get(name)])
"""


def test_import_medssl_without_torch_takes_less_than_a_fifth_of_a_second() -> None:
    seconds = []
    for _ in range(5):
        done = subprocess.run(
            [sys.executable, "-c", BLOCK_AND_TIME], capture_output=True, text=True, check=True
        )
        spent, loaded = done.stdout.split(maxsplit=1)
        assert loaded.strip() == "[]"
        seconds.append(float(spent))
    assert statistics.median(seconds) < 0.2


def test_the_version_is_the_distributions() -> None:
    import medssl

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert medssl.__version__ == project["version"]


def test_the_engine_extra_holds_all_that_the_worker_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    lines = (ROOT / "MedSSLSegment" / "Resources" / "requirements.txt").read_text("utf-8").splitlines()
    needed = {line.strip() for line in lines if line.strip() and not line.startswith("#")}
    assert needed <= set(project["optional-dependencies"]["engine"])


def test_every_package_that_is_asked_for_is_pinned() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    asked = {_bare(line) for lines in extras.values() for line in lines}
    asked.discard("medssl")  # an extra that takes in another one
    pinned = {_bare(line) for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines()}
    assert asked - pinned == set()


def _bare(requirement: str) -> str:
    name = requirement.replace(">", "=").split("=")[0].split("[")[0]
    return name.strip().lower().replace("_", "-")
