"""Imports point one way: the table at the head of the design, enforced by reading every file.

| ring   | where                              | must not import or touch                                     |
|--------|------------------------------------|--------------------------------------------------------------|
| engine | medssl/ except scene/ and web/     | slicer, vtk, qt, ctk, trame, scene, web                      |
|        | medssl/ outside foundation/        | segment_anything, sam2, torchvision                          |
|        | medssl/ outside cli/               | cli                                                          |
| MRML   | medssl/scene/                      | qt, ctk, torch, trame, web, engine files that need torch,    |
|        |                                    | slicer.app, slicer.modules, slicer.mrmlScene, slicer.util    |
| web    | medssl/web/, medssl/cli/app.py     | qt, ctk, torch                                               |
| Qt     | MedSSLSegment.py, MedSSLSegmentLib | torch, trame, web, engine files that need torch              |
"""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

MODULE = Path(__file__).resolve().parents[1] / "MedSSLSegment"

MODELS = {"segment_anything", "sam2", "torchvision"}
HEAVY = MODELS | {"torch", "monai", "hydra", "safetensors"}
QT = {"qt", "ctk", "PySide6"}
TRAME = {"trame", "trame_slicer", "trame_client", "trame_server", "trame_vuetify"}
FRONT = {"medssl.scene", "medssl.web", "MedSSLSegment", "MedSSLSegmentLib"}
APPLICATION = {"slicer.app", "slicer.modules", "slicer.mrmlScene", "slicer.util", "slicer.cli"}
LIGHT = {
    "cases",
    "client",
    "errors",
    "events",
    "messages",
    "model_files",
    "prompts",
    "registry",
    "results",
    "segmentation",
    "suggest",
    "volume",
    "wire",
}
"""Engine files that the panel's process may import; a further test follows where they lead."""

ON_DEMAND = {"phantom"}
"""Engine files that a function of the panel may import: they bring scipy, which 3D Slicer has, and nothing heavier."""

FORBIDDEN = {
    "foundation": QT | TRAME | FRONT | {"medssl.cli", "slicer", "vtk", "vtkmodules"},
    "engine": QT | TRAME | FRONT | {"medssl.cli", "slicer", "vtk", "vtkmodules"} | MODELS,
    "cli": QT | TRAME | FRONT | {"slicer", "vtk", "vtkmodules"} | MODELS,
    "scene": QT | TRAME | HEAVY | APPLICATION | {"medssl.web", "MedSSLSegment", "MedSSLSegmentLib"},
    "web": QT | HEAVY | {"MedSSLSegment", "MedSSLSegmentLib"},
    "qt": TRAME | HEAVY | {"medssl.web"},
}
THROUGH_LIGHT_FILES_ONLY = ("scene", "qt")


def ring_of(path: Path, module: Path) -> str:
    """Ring of a file of the module."""
    first, *rest = path.relative_to(module).parts
    if rest == ["cli", "app.py"]:  # the command that starts the workstation
        return "web"
    if first != "medssl":
        return "qt"
    return rest[0] if rest[0] in ("scene", "web", "foundation", "cli") else "engine"


def names_used(path: Path, module: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of all a file imports, lazily or for types alone too, and of what it takes from `slicer`."""
    package = path.relative_to(module).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            origin = ".".join((*above, *([node.module] if node.module else [])))
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)
        elif (
            isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "slicer"
        ):
            yield node.lineno, f"slicer.{node.attr}"


def breaches(module: Path) -> list[str]:
    """Every import that points the wrong way, as "file:line imports name"."""
    found = []
    for path in sorted(module.rglob("*.py")):
        ring = ring_of(path, module)
        for line, name in names_used(path, module):
            if _is_under(name, FORBIDDEN[ring]) or (ring in THROUGH_LIGHT_FILES_ONLY and _is_heavy(name)):
                found.append(f"{path.relative_to(module)}:{line} imports {name}")
    return found


def _is_under(name: str, prefixes: set[str]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def _is_heavy(name: str) -> bool:
    parts = name.split(".")
    return (
        parts[0] == "medssl"
        and len(parts) > 1
        and parts[1] not in LIGHT | ON_DEMAND | {"scene", "__version__"}
    )


def test_every_import_points_the_right_way() -> None:
    assert breaches(MODULE) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("medssl/volume.py", "import vtk"),
        ("medssl/volume.py", "from slicer import vtkMRMLNode"),
        ("medssl/volume.py", "def f():\n    import slicer.util"),
        ("medssl/volume.py", "from .scene import nodes"),
        ("medssl/volume.py", "from .cli.terminal import ProgressBar"),
        ("medssl/pipeline.py", "from segment_anything import sam_model_registry"),
        ("medssl/pipeline.py", "import sam2.build_sam"),
        ("medssl/pipeline.py", "from trame.app import get_server"),
        ("medssl/foundation/sam.py", "import qt"),
        ("medssl/scene/nodes.py", "import torch"),
        ("medssl/scene/nodes.py", "import slicer\nslicer.app.processEvents()"),
        ("medssl/scene/nodes.py", "import slicer\nslicer.mrmlScene"),
        ("medssl/scene/nodes.py", "from slicer.util import arrayFromVolume"),
        ("medssl/scene/nodes.py", "from ..foundation import load_tracker"),
        ("medssl/scene/nodes.py", "from ..pipeline import propagate_volume"),
        ("medssl/scene/session.py", "import ctk"),
        ("medssl/web/app.py", "import qt"),
        ("MedSSLSegment.py", "import torch"),
        ("MedSSLSegmentLib/Panel.py", "from medssl.foundation import load_tracker"),
    ],
)
def test_a_planted_breach_is_found(tmp_path: Path, file: str, line: str) -> None:
    planted = tmp_path / file
    planted.parent.mkdir(parents=True, exist_ok=True)
    planted.write_text(line + "\n", "utf-8")
    assert [found.split(":")[0] for found in breaches(tmp_path)] == [file]


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("medssl/foundation/sam.py", "from segment_anything import SamPredictor\nimport torch"),
        ("medssl/training.py", "import torch\nfrom .volume import Volume"),
        ("medssl/scene/nodes.py", "import slicer\nfrom ..volume import Volume\nslicer.vtkSegmentation"),
        ("MedSSLSegment.py", "import qt, slicer\nfrom medssl.client import WorkerClient\nslicer.app"),
    ],
)
def test_what_the_table_allows_is_not_a_breach(tmp_path: Path, file: str, line: str) -> None:
    allowed = tmp_path / file
    allowed.parent.mkdir(parents=True, exist_ok=True)
    allowed.write_text(line + "\n", "utf-8")
    assert breaches(tmp_path) == []


def test_the_files_the_panel_imports_load_nothing_heavy() -> None:
    """Follows every import for real: what the table calls light must stay light."""
    modules = ", ".join(f"medssl.{name}" for name in sorted(LIGHT))
    heavy = sorted(HEAVY | QT | TRAME | {"slicer", "vtk", "SimpleITK", "scipy"})
    code = f"import sys, {modules}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_the_panel_imports_on_demand_loads_nothing_heavier_than_scipy() -> None:
    modules = ", ".join(f"medssl.{name}" for name in sorted(ON_DEMAND))
    heavy = sorted(HEAVY | QT | TRAME | {"slicer", "vtk", "SimpleITK"})
    code = f"import sys, {modules}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_copy_of_the_module_with_one_breach_fails(tmp_path: Path) -> None:
    copy = tmp_path / "MedSSLSegment"
    shutil.copytree(MODULE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    with (copy / "medssl" / "volume.py").open("a", encoding="utf-8") as file:
        file.write("\nimport qt\n")
    assert len(breaches(copy)) == len(breaches(MODULE)) + 1
