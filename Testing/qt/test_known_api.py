"""The panel uses no Qt, CTK or 3D Slicer that is not in `slicer_api`, and each as it is meant to be used.

What the reader cannot see (the class behind a variable) is held to the names alone; the widgets of the .ui file, calls
of `slicer.util`, enums and MRML classes are held to their class.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import pathlib
import subprocess
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("slicer")
pytest.importorskip("PySide6.QtUiTools")

import slicer as slicer_core
import vtk
from PySide6 import QtCore, QtGui, QtWidgets
from slicer_api import CALLABLES, CLASSES, ENUMS, ONE_QT_ONLY, QT_CLASSES, members_of

MODULE = pathlib.Path(__file__).resolve().parents[2] / "MedSSLSegment"
FILES = (MODULE / "MedSSLSegment.py", *sorted((MODULE / "MedSSLSegmentLib").glob("*.py")))
TREES = {path.name: ast.parse(path.read_text("utf-8")) for path in FILES}
APPLICATIONS = ("qt", "slicer", "vtk", "ctk")
KINDS = ("properties", "methods", "signals", "virtuals")
PYTHON_TYPES = (
    str,
    bytes,
    int,
    float,
    list,
    tuple,
    dict,
    set,
    frozenset,
    pathlib.Path,
    BaseException,
    threading.Event,
    threading.Thread,
    subprocess.Popen,
    np.ndarray,
    property,
)
MRML_CLASSES = (
    "vtkMRMLScene",
    "vtkMRMLScalarVolumeNode",
    "vtkMRMLSegmentationNode",
    "vtkSegmentation",
    "vtkSegment",
    "vtkMRMLSegmentEditorNode",
    "vtkMRMLMarkupsFiducialNode",
    "vtkMRMLMarkupsFiducialDisplayNode",
    "vtkMRMLInteractionNode",
    "vtkMRMLSelectionNode",
    "vtkMRMLCrosshairNode",
    "vtkMRMLSliceNode",
)


def chain(node: ast.AST) -> list[str]:
    """["self", "ui", "okButton", "clicked"] of self.ui.okButton.clicked; "" stands for what is no name."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return [*reversed([*names, node.id if isinstance(node, ast.Name) else ""])]


def attributes() -> Iterator[tuple[str, ast.Attribute, list[str]]]:
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                yield name, node, chain(node)


def calls() -> Iterator[tuple[str, ast.Call, list[str]]]:
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                yield name, node, chain(node.func)


def own_names() -> set[str]:
    """What the program itself calls something: functions, classes, fields."""
    names: set[str] = set()
    for path in (*FILES, *MODULE.glob("medssl/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            elif (
                isinstance(node, ast.Attribute)
                and isinstance(node.ctx, ast.Store)
                and chain(node)[0] == "self"
            ):
                names.update(chain(node)[1:2])
            elif isinstance(node, ast.AnnAssign | ast.Assign):
                targets = [node.target] if isinstance(node, ast.AnnAssign) else node.targets
                names.update(target.id for target in targets if isinstance(target, ast.Name))
    return names


def imported_modules() -> set[str]:
    """Names that stand for other packages: their members are those packages' business."""
    found: set[str] = set()
    for tree in TREES.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found.update((alias.asname or alias.name).split(".")[0] for alias in node.names)
    return found.difference(APPLICATIONS)


def widgets() -> dict[str, str]:
    """{name: class} of the .ui file."""
    root = ElementTree.parse(MODULE / "Resources/UI/MedSSLSegment.ui").getroot()
    return {
        each.get("name", ""): each.get("class", "")
        for each in root.iter()
        if each.tag in ("widget", "layout")
    }


def on_widgets() -> Iterator[tuple[str, str, ast.Attribute]]:
    """(widget, member, where) of every ui.widget.member."""
    for _, node, names in attributes():
        if "ui" in names[:2] and len(names) == names.index("ui") + 3:
            yield names[-2], names[-1], node


def test_every_name_that_is_not_our_own_is_known() -> None:
    known = {m for name in CLASSES for kind in KINDS for m in members_of(name, kind)}
    known |= own_names() | set(widgets()) | set(dir(builtins))
    known |= {m for each in PYTHON_TYPES for m in dir(each)} | {"ui", "connect", "parent", "returncode"}
    known |= {m for name in MRML_CLASSES for m in dir(getattr(slicer_core, name))} | set(
        dir(vtk.vtkMatrix4x4)
    )
    others = imported_modules()
    unknown = {
        f"{file}: {'.'.join(names)}"
        for file, node, names in attributes()
        if names[0] not in (*APPLICATIONS, *others) and node.attr not in known
    }
    assert unknown == set()


def test_every_member_of_a_widget_is_one_of_its_class_and_properties_are_not_called() -> None:
    classes, wrong = widgets(), []
    called = {id(node.func) for _, node, _ in calls()}
    for widget, member, node in on_widgets():
        name = classes.get(widget)
        kinds = [kind for kind in KINDS if name and member in members_of(name, kind)]
        is_call = id(node) in called
        if not kinds or (kinds == ["properties"] and is_call) or (kinds == ["methods"] and not is_call):
            wrong.append(f"{widget}.{member}{'()' if is_call else ''} of {name}")
    assert wrong == []


def test_every_widget_that_is_used_is_in_the_ui_file_and_the_other_way_round() -> None:
    used = {
        names[names.index("ui") + 1]
        for _, _, names in attributes()
        if "ui" in names[:2] and names[-1] != "ui"
    }
    assert used - set(widgets()) == set()
    idle = {"Label", "Layout", "Frame", "Holder", "MedSSLSegment", "CollapsibleButton"}
    forgotten = {name for name in widgets() if not any(part in name for part in idle)} - used
    assert forgotten - {"viewComboBox", "directionComboBox"} == set()  # bound by SlicerParameterName


def test_the_names_of_qt_exist_in_qt_and_are_of_the_kind_the_table_says() -> None:
    wrong = []
    for name, known in QT_CLASSES.items():
        cls = next(getattr(m, name) for m in (QtCore, QtGui, QtWidgets) if hasattr(m, name))
        meta = getattr(cls, "staticMetaObject", None)
        for kind in KINDS:
            for member in known.names(kind):
                is_property = meta is not None and meta.indexOfProperty(member) >= 0
                # PySide6 hides setters in modules that have properties as attributes; PythonQt has both.
                setter = member.removeprefix("set")
                sets = meta is not None and meta.indexOfProperty(setter[:1].lower() + setter[1:]) >= 0
                is_signal = isinstance(getattr(cls, member, None), QtCore.Signal)
                ok = {"properties": is_property, "signals": is_signal}.get(
                    kind, (sets or hasattr(cls, member)) and not is_signal
                )
                wrong += [] if ok or member in ONE_QT_ONLY else [f"{kind}: {name}.{member}"]
    assert wrong == []


def test_what_is_taken_from_the_module_qt_is_known() -> None:
    wrong = set()
    for _, _, names in attributes():
        if names[0] == "qt" and len(names) == 3:
            known = ENUMS.get(names[1]) or {m for kind in KINDS for m in members_of(names[1], kind)} | {
                "__init__"
            }
            wrong |= {".".join(names)} if names[2] not in known else set()
        elif names[0] == "qt" and names[1] not in {**CLASSES, **ENUMS}:
            wrong.add(".".join(names))
    assert wrong == set()


def test_enums_exist_in_qt() -> None:
    for name, members in ENUMS.items():
        owner = getattr(QtCore, name)
        assert [m for m in members if not hasattr(owner, m)] == []


def test_classes_of_vtk_and_mrml_have_what_is_taken_from_them() -> None:
    wrong = set()
    for _, _, names in attributes():
        if names[0] not in ("slicer", "vtk") or not names[1].startswith("vtk"):
            continue
        owner: Any = slicer_core if names[0] == "slicer" else vtk
        for name in names[1:]:
            if not hasattr(owner, name):
                wrong.add(".".join(names))
                break
            owner = getattr(owner, name)
    assert wrong == set()


def test_functions_of_slicer_are_called_with_the_parameters_they_have() -> None:
    checked = set()
    for file, call, names in calls():
        function = ".".join(names)
        if names[0] not in ("slicer", "SampleData") or names[1].startswith(("vtk", "mrmlScene")):
            continue
        assert function in CALLABLES, f"{file}: {function}"
        scope: dict[str, Any] = {}
        exec(f"def function{CALLABLES[function]}: pass", scope)
        plain = [a for a in call.args if not isinstance(a, ast.Starred)]
        inspect.signature(scope["function"]).bind(*plain, **{k.arg: k for k in call.keywords if k.arg})
        checked.add(function)
    assert checked == set(CALLABLES)


def test_members_that_only_one_qt_has_stand_behind_a_question() -> None:
    asked = 0
    for tree in TREES.values():
        for function in ast.walk(tree):
            if not isinstance(function, ast.FunctionDef):
                continue
            used = {n.attr for n in ast.walk(function) if isinstance(n, ast.Attribute)} & set(ONE_QT_ONLY)
            if used:
                assert any(isinstance(n, ast.Name) and n.id == "hasattr" for n in ast.walk(function)), (
                    function.name
                )
                asked += 1
    assert asked == 1


def test_the_ui_file_sets_known_properties_and_connects_known_signals() -> None:
    root = ElementTree.parse(MODULE / "Resources/UI/MedSSLSegment.ui").getroot()
    for widget in root.iter("widget"):
        name = widget.get("class", "")
        for each in widget.findall("property") if name.startswith(("qMRML", "ctk")) else ():
            plain = {"toolTip", "geometry", "SlicerParameterName", "text"}
            assert each.get("name") in members_of(name, "properties") | plain, each.get("name")
    classes = widgets()
    for each in root.iter("connection"):
        sender, receiver = (classes[each.findtext(tag, "")] for tag in ("sender", "receiver"))
        assert each.findtext("signal", "").split("(")[0] in members_of(sender, "signals")
        assert each.findtext("slot", "").split("(")[0] in members_of(receiver, "methods")


def test_the_stand_ins_have_nothing_that_the_real_ones_lack(stand_ins: tuple[type, ...]) -> None:
    extra = set()
    for stand_in in stand_ins:
        known = {m for kind in KINDS for m in members_of(stand_in.__name__, kind)}
        qt_own = {"staticMetaObject", "showEvent"}
        own = {m for m in vars(stand_in) if not m.startswith("_") and m not in qt_own}
        extra |= {f"{stand_in.__name__}.{m}" for m in own - known}
    assert extra == set()


def test_the_stand_ins_for_functions_take_the_same_parameters(an_application: Any) -> None:
    modules = an_application.modules()
    for name, parameters in CALLABLES.items():
        parts = name.split(".")
        owner: Any = modules.get("slicer") if parts[0] == "slicer" else modules["SampleData"]
        for part in parts[1:]:
            owner = getattr(owner, part)
        scope: dict[str, Any] = {}
        exec(f"def function{parameters}: pass", scope)
        wanted = [(p.name, p.kind) for p in inspect.signature(scope["function"]).parameters.values()]
        assert [(p.name, p.kind) for p in inspect.signature(owner).parameters.values()] == wanted, name


def test_what_a_person_reads_can_be_translated() -> None:
    shown = {"text", "toolTip", "format", "windowTitle", "title", "helpText", "acknowledgementText"}
    plain = []
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
                said = node.value
                is_text = isinstance(said, ast.JoinedStr) or (isinstance(said, ast.Constant) and said.value)
                if node.targets[0].attr in shown and is_text and isinstance(getattr(said, "value", ""), str):
                    plain.append(f"{file}:{node.lineno}")
            if isinstance(node, ast.Call) and chain(node.func)[-1] in (
                "errorDisplay",
                "confirmOkCancelDisplay",
            ):
                plain += [
                    f"{file}:{a.lineno}" for a in node.args if isinstance(a, ast.Constant | ast.JoinedStr)
                ]
    assert plain == []
