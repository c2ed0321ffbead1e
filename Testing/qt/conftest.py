"""3D Slicer around the module: real Qt (PySide6 offscreen), real MRML (slicer-core), the rest stood in for.

PythonQt, Slicer's binding, spells Qt properties as attributes; PySide6 does the same for the modules named below.
"""

# ruff: noqa: N801, N802, N815 - the stand-ins have Slicer's names
from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
from fake_client import FakeClient
from medssl.results import SliceMask

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
if sys.version_info < (3, 12):
    # PySide6 6.12 takes a reference of None away with each property that is assigned; Python 3.12 counts none.
    ctypes.c_ssize_t.from_address(id(None)).value += 1 << 40
slicer_core = pytest.importorskip("slicer")
pytest.importorskip("PySide6.QtUiTools")

import vtk  # noqa: E402
from PySide6 import QtCore, QtGui, QtUiTools, QtWidgets  # noqa: E402
from shibokensupport import feature  # noqa: E402
from slicer_api import CALLABLES  # noqa: E402
from vtk.util import numpy_support  # noqa: E402

MODULE_FOLDER = Path(__file__).resolve().parents[2] / "MedSSLSegment"
PROPERTIES_AS_ATTRIBUTES = 2
TITLE_HEIGHT, QWIDGETSIZE_MAX = 24, 16777215

PYTHONQT_MODULES = (
    "MedSSLSegment",
    *(
        f"MedSSLSegmentLib.{path.stem}"
        for path in sorted((MODULE_FOLDER / "MedSSLSegmentLib").glob("[A-Z]*.py"))
    ),
)
# The feature looks into every loaded module; torch's registry of custom classes answers that with an error.
_torch_classes = sys.modules.pop("torch.classes", None)
feature.set_selection(PROPERTIES_AS_ATTRIBUTES, __name__)
if _torch_classes is not None:
    sys.modules["torch.classes"] = _torch_classes


class QTimer(QtCore.QTimer):
    """PythonQt has the property singleShot and its setter; Slicer's slicerqt.py calls the setter (583e9b3)."""

    def setSingleShot(self, on: bool) -> None:
        self.setProperty("singleShot", on)


class qMRMLNodeComboBox(QtWidgets.QComboBox):
    """The nodes of some classes of a scene."""

    currentNodeChanged = QtCore.Signal(object)

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self.scene = None
        self.node = None

    def setMRMLScene(self, scene: Any) -> None:
        self.scene = scene

    def currentNode(self) -> Any:
        return self.node

    def setCurrentNode(self, node: Any) -> None:
        if node is self.node:
            return
        self.node = node
        self.clear()
        self.addItem(node.GetName() if node else "None")
        self.currentNodeChanged.emit(node)


class qMRMLWidget(QtWidgets.QWidget):
    """Hands its scene on to its children, as the connections of the .ui file ask for."""

    def setMRMLScene(self, scene: Any) -> None:
        for child in self.findChildren(qMRMLNodeComboBox):
            child.setMRMLScene(scene)


class qMRMLSegmentEditorWidget(QtWidgets.QFrame):
    """What the panel asks of it (Slicer 583e9b3, qMRMLSegmentEditorWidget.h); undo is Slicer's own history.

    Its undo and redo button have the names of Resources/UI/qMRMLSegmentEditorWidget.ui.
    """

    segmentationNodeSelectorVisible = QtCore.Property(bool, lambda self: False, lambda self, on: None)
    sourceVolumeNodeSelectorVisible = QtCore.Property(bool, lambda self: False, lambda self, on: None)
    maximumNumberOfUndoStates = QtCore.Property(int, lambda self: 30, lambda self, count: None)

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self.scene = self.editor_node = self.node = self.volume = self.effect = None
        self.segment = ""
        self.observes_views = False
        self.effect_lists = 1
        self.history = slicer_core.vtkSegmentationHistory()
        self.history.SetMaximumNumberOfStates(30)
        self.history.AddObserver(vtk.vtkCommand.ModifiedEvent, self._show_history)
        self.minimumHeight = 60
        layout = QtWidgets.QVBoxLayout(self)
        for name in ("UndoButton", "RedoButton"):
            button = QtWidgets.QToolButton(self)
            button.objectName = button.toolTip = name
            button.hide()
        self._show_history()
        layout.addWidget(QtWidgets.QLabel("(3D Slicer's Segment Editor is embedded here)"))

    def setMRMLScene(self, scene: Any) -> None:
        self.scene = scene

    def setMRMLSegmentEditorNode(self, node: Any) -> None:
        self.editor_node = node

    def mrmlSegmentEditorNode(self) -> Any:
        return self.editor_node

    def setSegmentationNode(self, node: Any) -> None:
        if node is not self.node:
            self.node = node
            self.history.RemoveAllStates()
            self.history.SetSegmentation(node.GetSegmentation() if node else None)
            self.editor_node.SetAndObserveSegmentationNode(node)

    def segmentationNode(self) -> Any:
        return self.node

    def setSourceVolumeNode(self, node: Any) -> None:
        assert self.node is not None, (
            "vtkSlicerSegmentEditorLogic.cxx reports an error (583e9b3, SetSourceVolumeNode)"
        )
        self.volume = node

    def currentSegmentID(self) -> str:
        return self.segment

    def setCurrentSegmentID(self, segment: str) -> None:
        self.segment = segment

    def activeEffect(self) -> Any:
        return self.effect

    def setActiveEffect(self, effect: Any) -> None:
        self.effect = effect

    def updateEffectList(self) -> None:
        self.effect_lists += 1

    def setupViewObservations(self) -> None:
        self.observes_views = True

    def removeViewObservations(self) -> None:
        self.observes_views = False

    def _show_history(self, *_: Any) -> None:
        undo, redo = (self.findChild(QtWidgets.QToolButton, name) for name in ("UndoButton", "RedoButton"))
        undo.enabled = self.history.IsRestorePreviousStateAvailable()
        redo.enabled = self.history.IsRestoreNextStateAvailable()

    def saveStateForUndo(self) -> None:
        self.history.SaveState()

    def undo(self) -> None:
        self.history.RestorePreviousState()

    def redo(self) -> None:
        self.history.RestoreNextState()


class ctkCollapsibleButton(QtWidgets.QGroupBox):
    """A titled section."""

    contentsCollapsed = QtCore.Signal(bool)

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._collapsed = False

    def _set_title(self, title: str) -> None:
        self.title = title

    def _set_collapsed(self, on: bool) -> None:
        if on != self._collapsed:
            self._collapsed = on
            self._hide_or_show()
            self.contentsCollapsed.emit(on)

    def _hide_or_show(self) -> None:
        for child in self.findChildren(QtWidgets.QWidget, options=QtCore.Qt.FindDirectChildrenOnly):
            child.visible = not self._collapsed
        self.maximumHeight = TITLE_HEIGHT if self._collapsed else QWIDGETSIZE_MAX

    def showEvent(self, event: Any) -> None:
        """The .ui file says whether it is collapsed before it has children."""
        self._hide_or_show()
        super().showEvent(event)

    text = QtCore.Property(str, lambda self: self.title, _set_title)
    collapsed = QtCore.Property(bool, lambda self: self._collapsed, _set_collapsed)


STAND_INS = (qMRMLWidget, qMRMLNodeComboBox, qMRMLSegmentEditorWidget, ctkCollapsibleButton)


@pytest.fixture
def stand_ins() -> tuple[type, ...]:
    """The widgets that only 3D Slicer and CTK have."""
    return STAND_INS


class Observing:
    """VTKObservationMixin (583e9b3, util.py): what was observed once stays in memory."""

    def __init__(self) -> None:
        self._tags: dict[Any, Any] = {}
        self._observed: set[Any] = set()

    def addObserver(self, thing: Any, event: Any, method: Any) -> None:
        self._observed.add(thing)
        self._tags[thing, event, method] = thing.AddObserver(event, method)

    def removeObserver(self, thing: Any, event: Any, method: Any) -> None:
        thing.RemoveObserver(self._tags.pop((thing, event, method)))

    def removeObservers(self) -> None:
        for thing, event, method in list(self._tags):
            self.removeObserver(thing, event, method)


class ModuleWidget:
    """ScriptedLoadableModuleWidget."""

    def __init__(self, parent: Any = None) -> None:
        self.parent = parent
        self.layout = parent.layout()

    def setup(self) -> None:
        pass

    def resourcePath(self, name: str) -> str:
        return str(MODULE_FOLDER / "Resources" / name)


class ModuleLogic:
    """ScriptedLoadableModuleLogic: one parameter node in the scene."""

    def getParameterNode(self) -> Any:
        scene = sys.modules["slicer"].mrmlScene
        node = scene.GetSingletonNode("MedSSLSegment", "vtkMRMLScriptedModuleNode")
        if node is None:
            node = scene.AddNewNodeByClass("vtkMRMLScriptedModuleNode", "MedSSLSegment")
            node.SetSingletonTag("MedSSLSegment")
        return node


class WrappedParameterNode:
    """What parameterNodeWrapper makes: typed fields kept in a node, bound to widgets by SlicerParameterName."""

    hints: dict[str, Any]

    def __init__(self, node: Any) -> None:
        self.__dict__["node"] = node
        self.__dict__["bound"] = []

    def __getattr__(self, name: str) -> Any:
        hint = self.hints[name]
        if hint.__name__.startswith("vtkMRML"):
            return self.node.GetNodeReference(name)
        text = self.node.GetParameter(name)
        if not text:
            return self.defaults[name]
        if hint is bool:
            return text == "True"
        return hint(text) if hint in (str, int) else hint[text]

    def __setattr__(self, name: str, value: Any) -> None:
        if self.hints[name].__name__.startswith("vtkMRML"):
            self.node.SetNodeReferenceID(name, value.GetID() if value else None)
        else:
            self.node.SetParameter(name, str(getattr(value, "name", value)))

    def AddObserver(self, event: Any, method: Any) -> int:
        return self.node.AddObserver(event, method)

    def RemoveObserver(self, tag: int) -> None:
        self.node.RemoveObserver(tag)

    def connectGui(self, ui: Any) -> int:
        for widget in vars(ui).values():
            if name := widget.property("SlicerParameterName"):
                self._bind(widget, name)
        self.bound.append(
            (self.node, self.node.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: self._show(ui)))
        )
        return 1

    def disconnectGui(self, tag: int) -> None:
        for thing, connection in self.bound:
            if isinstance(thing, vtk.vtkObject):
                thing.RemoveObserver(connection)
            else:
                thing.disconnect(connection)
        self.bound.clear()

    def _bind(self, widget: Any, name: str) -> None:
        if isinstance(widget, qMRMLNodeComboBox):
            signal, read = widget.currentNodeChanged, widget.currentNode
            widget.setCurrentNode(getattr(self, name))
        elif isinstance(widget, QtWidgets.QSpinBox):
            widget.value = getattr(self, name)
            signal, read = widget.valueChanged, lambda: widget.value
        elif isinstance(widget, QtWidgets.QCheckBox):
            widget.checked = getattr(self, name)
            signal, read = widget.toggled, lambda: widget.checked
        else:
            values = list(self.hints[name])
            widget.clear()
            widget.addItems([value.label() for value in values])
            widget.currentIndex = values.index(getattr(self, name))
            signal, read = widget.currentIndexChanged, lambda: values[widget.currentIndex]
        self.bound.append((signal, signal.connect(lambda *_: setattr(self, name, read()))))

    def _show(self, ui: Any) -> None:
        for widget in vars(ui).values():
            name = widget.property("SlicerParameterName")
            if isinstance(widget, qMRMLNodeComboBox):
                widget.setCurrentNode(getattr(self, name))
            elif name and isinstance(widget, QtWidgets.QSpinBox):
                widget.value = getattr(self, name)
            elif name and isinstance(widget, QtWidgets.QCheckBox):
                widget.checked = getattr(self, name)


def _parameter_node_wrapper(cls: type) -> type:
    hints = get_type_hints(cls)
    return type(cls.__name__, (WrappedParameterNode,), {"hints": hints, "defaults": vars(cls)})


class Application:
    """What the module asks of the running Slicer, and what the user got to see."""

    def __init__(self) -> None:
        self.scene = slicer_core.vtkMRMLScene()
        self.segmentations_logic = slicer_core.vtkSlicerSegmentationsModuleLogic()
        self.segmentations_logic.SetMRMLScene(self.scene)
        for name in ("Selection", "Interaction"):
            node = getattr(slicer_core, f"vtkMRML{name}Node")()
            node.SetSingletonTag("Singleton")
            self.scene.AddNode(node)
        self.markups_logic = (
            slicer_core.vtkSlicerMarkupsLogic()
        )  # takes every new markups node for the one to place
        self.markups_logic.SetMRMLScene(self.scene)
        self.window = QtWidgets.QMainWindow()
        self.settings: dict[str, str] = {}
        self.errors_shown: list[str] = []
        self.questions_asked: list[str] = []
        self.says_yes = False
        self.progress_dialogs: list[QtWidgets.QProgressDialog] = []
        self.connections: dict[str, Any] = {}
        self.samples: dict[tuple[str, str | None], Any] = {}
        self.background: Any = None

    # Functions of slicer.util and others, with the parameters that slicer_api.py says.

    def childWidgetVariables(self, widget: Any) -> Any:
        children = (c for c in widget.findChildren(QtCore.QObject) if c.objectName)
        return types.SimpleNamespace(**{child.objectName: child for child in children})

    def confirmOkCancelDisplay(
        self, text: str, windowTitle: str | None = None, parent: Any = None, **kwargs: Any
    ) -> bool:
        self.questions_asked.append(text)
        return self.says_yes

    def createProgressDialog(
        self,
        parent: Any = None,
        value: int = 0,
        maximum: int = 100,
        labelText: str = "",
        windowTitle: str = "Processing...",
        **kwargs: Any,
    ) -> QtWidgets.QProgressDialog:
        dialog = QtWidgets.QProgressDialog(labelText, "Cancel", 0, maximum)
        for name, argument in {"value": value, "windowTitle": windowTitle, **kwargs}.items():
            setattr(dialog, name, argument)
        self.progress_dialogs.append(dialog)
        return dialog

    def errorDisplay(
        self,
        text: str,
        windowTitle: str | None = None,
        parent: Any = None,
        standardButtons: Any = None,
        **kwargs: Any,
    ) -> None:
        self.errors_shown.append(text)

    def findChildren(
        self, widget: Any = None, name: str = "", text: str = "", title: str = "", className: str = ""
    ) -> list[Any]:
        return [child for child in widget.findChildren(QtCore.QObject) if child.objectName == name]

    def loadUI(self, path: str) -> Any:
        loader = QtUiTools.QUiLoader()
        for stand_in in STAND_INS:
            loader.registerCustomWidget(stand_in)
        return loader.load(str(path))

    def mainWindow(self) -> QtWidgets.QMainWindow:
        return self.window

    def setSliceViewerLayers(
        self,
        background: Any = "keep-current",
        foreground: Any = "keep-current",
        label: Any = "keep-current",
        foregroundOpacity: float | None = None,
        labelOpacity: float | None = None,
        fit: bool = False,
        rotateToVolumePlane: bool = False,
    ) -> None:
        self.background = background

    def settingsValue(self, key: str, default: Any, converter: Any = None, settings: Any = None) -> Any:
        return self.settings.get(key, default)

    def startupEnvironment(self) -> dict[str, str]:
        return dict(os.environ)

    @contextlib.contextmanager
    def tryWithErrorDisplay(
        self, message: str | None = None, show: bool = True, waitCursor: bool = False
    ) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.errors_shown.append(f"{message}\n\n{error}")
            raise

    def updateVolumeFromArray(self, volumeNode: Any, narray: np.ndarray) -> None:
        image = vtk.vtkImageData()
        image.SetDimensions(*narray.shape[::-1])
        image.GetPointData().SetScalars(numpy_support.numpy_to_vtk(narray.ravel(), deep=True))
        volumeNode.SetAndObserveImageData(image)

    def connect(self, signal: str, receiver: Any) -> None:
        self.connections[signal] = receiver

    def processEvents(self, flags: Any = None, maxtime: int | None = None) -> None:
        pass

    def disconnect(self, signal: str, receiver: Any) -> None:
        assert self.connections.pop(signal) == receiver

    def logic(self) -> Any:
        return self.segmentations_logic

    def instance(self) -> Any:
        """The factory of the Segment Editor's effects, as far as its signal goes."""
        return types.SimpleNamespace(connect=self.connect, disconnect=self.disconnect)

    def registerCustomSampleDataSource(
        self,
        category: str = "Custom",
        sampleName: str | None = None,
        uris: Any = None,
        fileNames: Any = None,
        nodeNames: Any = None,
        customDownloader: Any = None,
        thumbnailFileName: str | None = None,
        loadFileTypes: Any = None,
        loadFiles: Any = None,
        loadFileProperties: Any = None,
        checksums: Any = None,
        loadFileType: Any = None,
    ) -> None:
        self.samples[category, sampleName] = types.SimpleNamespace(
            uris=uris, thumbnailFileName=thumbnailFileName, customDownloader=customDownloader
        )

    def _qt(self) -> types.ModuleType:
        def find(name: str) -> Any:
            for module in (QtCore, QtGui, QtWidgets):
                if hasattr(module, name):
                    return getattr(module, name)
            raise AttributeError(f"Qt has no {name}")

        qt = types.ModuleType("qt")
        qt.__getattr__ = find
        qt.QSettings = lambda: types.SimpleNamespace(setValue=self.settings.__setitem__)
        qt.QTimer = QTimer
        qt.QEventLoop = QtCore.QEventLoop.ProcessEventsFlag
        return qt

    def modules(self) -> dict[str, types.ModuleType]:
        """Everything the module imports that only Slicer has."""

        def module(name: str, **contents: Any) -> types.ModuleType:
            made = types.ModuleType(name)
            vars(made).update(contents)
            return made

        names = [name.split(".")[2] for name in CALLABLES if name.startswith("slicer.util.")]
        functions = {name: getattr(self, name) for name in names}
        util = module("slicer.util", VTKObservationMixin=Observing, **functions)
        core = {name: value for name, value in vars(slicer_core).items() if name.startswith("vtk")}
        slicer = module(
            "slicer",
            **core,
            util=util,
            mrmlScene=self.scene,
            modules=types.SimpleNamespace(segmentations=types.SimpleNamespace(logic=self.logic)),
            app=types.SimpleNamespace(
                connect=self.connect, disconnect=self.disconnect, processEvents=self.processEvents
            ),
            qSlicerSegmentEditorEffectFactory=types.SimpleNamespace(instance=self.instance),
        )
        identity = module("slicer.i18n", tr=lambda text: text, translate=lambda context, text: text)
        bases = module(
            "slicer.ScriptedLoadableModule",
            ScriptedLoadableModule=type("ScriptedLoadableModule", (), {"__init__": _set_parent}),
            ScriptedLoadableModuleWidget=ModuleWidget,
            ScriptedLoadableModuleLogic=ModuleLogic,
            ScriptedLoadableModuleTest=type("ScriptedLoadableModuleTest", (), {}),
        )
        wrapper = module(
            "slicer.parameterNodeWrapper",
            parameterNodeWrapper=_parameter_node_wrapper,
            WithinRange=lambda low, high: (low, high),
        )
        samples = types.SimpleNamespace(registerCustomSampleDataSource=self.registerCustomSampleDataSource)
        sample_data = module("SampleData", SampleDataLogic=samples)
        made = (slicer, util, identity, bases, wrapper, sample_data, self._qt())
        return {m.__name__: m for m in made}


def _set_parent(self: Any, parent: Any) -> None:
    self.parent = parent


@pytest.fixture(scope="session")
def qt_application() -> Any:
    return QtWidgets.QApplication.instance() or QtWidgets.QApplication([])


@pytest.fixture
def an_application(qt_application: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Application:
    """A Slicer with an empty scene in which the module can be imported, on a computer without other models."""
    application = Application()
    monkeypatch.setenv("MEDSSL_HOME", str(tmp_path))
    monkeypatch.syspath_prepend(str(MODULE_FOLDER))
    for name in [n for n in sys.modules if n.split(".")[0] in ("MedSSLSegment", "MedSSLSegmentLib")]:
        monkeypatch.delitem(sys.modules, name)
    for name, module in application.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    return application


@pytest.fixture
def the_module(an_application: Application) -> Any:
    """MedSSLSegment.py, imported as Slicer does."""
    module = importlib.import_module("MedSSLSegment")
    for name in PYTHONQT_MODULES:
        feature.set_selection(PROPERTIES_AS_ATTRIBUTES, name)
    return module


class Desk:
    """The module's panel on a scene with a CT whose liver is painted on slice 2."""

    def __init__(self, application: Any, module: Any) -> None:
        self.application = application
        self.module = module
        self.nodes = sys.modules["medssl.scene.nodes"]
        self.writing = sys.modules["medssl.scene.writing"]
        self.volume_node = application.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "CT chest")
        sys.modules["slicer"].util.updateVolumeFromArray(
            self.volume_node, np.arange(480, dtype=np.int16).reshape(6, 8, 10)
        )
        self.segmentation_node = self.nodes.create_segmentation_node(application.scene, self.volume_node)
        self.segmentation = self.segmentation_node.GetSegmentation()
        self.liver = self.segmentation.AddEmptySegment("", "liver")
        self.volume = self.nodes.read_volume_node(self.volume_node)
        self.painted = np.zeros((8, 10), bool)
        self.painted[2:5, 3:8] = True
        self.writing.write_slices(self.segmentation_node, self.liver, self.volume, 0, {2: self.painted})

        parent = QtWidgets.QWidget()
        QtWidgets.QVBoxLayout(parent)
        parent.isEntered = True
        self.widget = module.MedSSLSegmentWidget(parent)
        self.widget.setup()
        self.parent, self.ui, self.panel = parent, self.widget.ui, self.widget.panel
        self.client = FakeClient()
        self.panel.session.client = self.client
        self.panel.session.wait_s = None
        self.panel.requireWorker = lambda: None

    def choose_nodes(self) -> None:
        self.ui.volumeSelector.setCurrentNode(self.volume_node)
        self.ui.segmentationSelector.setCurrentNode(self.segmentation_node)

    def finish_errand(self) -> None:
        """Let what the settings have begun in the background end, and the panel take it."""
        while self.panel.settings._errand is not None:
            self.panel.onTimer()

    def is_running(self) -> bool:
        return self.panel.session.status.state.value == "running"

    def masks(self) -> np.ndarray:
        return self.nodes.read_segment(self.segmentation_node, self.liver, self.volume)

    def choose_model(self, model_id: str) -> None:
        self.ui.modelComboBox.currentIndex = self.ui.modelComboBox.findData(model_id)

    def model_title(self, model_id: str) -> str:
        return self.ui.modelComboBox.itemText(self.ui.modelComboBox.findData(model_id))

    def arrive(self, *indices: int) -> None:
        self.client.run.say(*(SliceMask(self.liver, 0, n, self.painted, 0.9) for n in indices))


@pytest.fixture
def a_desk(an_application: Application, the_module: Any) -> Iterator[Desk]:
    """The panel, open, with a CT and a painted slice in the scene."""
    desk = Desk(an_application, the_module)
    yield desk
    desk.widget.cleanup()
