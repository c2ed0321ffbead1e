"""The MRML ring can be imported as early as 3D Slicer imports it.

3D Slicer imports the file of a scripted module when its turn comes among all modules, by name
(qSlicerAbstractModuleFactoryManager::instantiateModules goes through a QMap), and the classes of a loadable module
become attributes of `slicer` when that one is instantiated (qSlicerLoadableModuleFactoryItem::instanciator); both in
Base/QTCore of Slicer 5.10.0. "MedSSLSegment" comes before "Segmentations".
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("slicer")

SCENE = Path(__file__).resolve().parents[2] / "MedSSLSegment" / "medssl" / "scene"
IMPORT = """
import importlib, sys
import slicer
later = [name for name, value in vars(slicer).items() if "Module" in getattr(value, "__module__", "").split(".")[-1]]
assert "vtkMRMLSegmentEditorNode" in later and "vtkMRMLSegmentationNode" not in later
for name in later:
    delattr(slicer, name)
for name in sys.argv[1:]:
    importlib.import_module(f"medssl.scene.{name}")
"""


def test_no_class_of_a_loadable_module_is_needed_to_import_it() -> None:
    names = sorted(path.stem for path in SCENE.glob("[a-z]*.py"))
    done = subprocess.run(
        [sys.executable, "-c", IMPORT, *names],
        capture_output=True,
        text=True,
        cwd=SCENE.parents[1],
        check=False,
    )
    assert done.returncode == 0, done.stderr
