"""Every part of Qt, CTK and 3D Slicer that the panel may use: looked up in their sources, not remembered.

The panel never runs against anything else here, so this table is what keeps the stand-ins honest. Each class says where
its members were read. Slicer: 5.10.0 (66f3d12) and 5.13 (583e9b3); what differs between the two is not in the table.
CTK: 868d56c. Qt 5: PythonQt's wrappers of Qt 5.11 (commontk/PythonQt 0580304, generated_cpp_511), which list the
methods that Python sees, and Qt's own headers for properties, signals and slots. Qt 6: PySide6, looked at by the test.

Kinds, as PythonQt shows them to Python: a property is an attribute that is read and assigned, a method and a slot are
called, a signal has `connect`. A virtual is a method that a Python subclass overrides.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CALLABLES", "CLASSES", "ENUMS", "ONE_QT_ONLY", "QT_CLASSES", "Known", "members_of"]

_UTIL = "Slicer Base/Python/slicer/util.py"


@dataclass(frozen=True)
class Known:
    """What Python sees of a class."""

    source: str
    """File it was read in."""
    properties: str = ""
    methods: str = ""
    """Methods, slots and what is Q_INVOKABLE."""
    signals: str = ""
    virtuals: str = ""
    bases: tuple[str, ...] = ()

    def names(self, kind: str) -> set[str]:
        """The members of one kind, without those of the bases."""
        return set(getattr(self, kind).split())


QT_CLASSES = {
    "QObject": Known("qobject.h", methods="blockSignals deleteLater inherits property setProperty"),
    "QWidget": Known(
        "qwidget.h",
        properties="enabled minimumHeight toolTip visible width height",
        methods="focusWidget update",
        virtuals="mousePressEvent paintEvent",
        bases=("QObject",),
    ),
    "QFrame": Known("qframe.h", bases=("QWidget",)),
    "QBoxLayout": Known("qboxlayout.h", methods="addWidget", bases=("QObject",)),
    "QVBoxLayout": Known("qboxlayout.h", bases=("QBoxLayout",)),
    "QHBoxLayout": Known("qboxlayout.h", bases=("QBoxLayout",)),
    "QFormLayout": Known("qformlayout.h", bases=("QObject",)),
    "QAbstractButton": Known(
        "qabstractbutton.h", properties="checked text", signals="clicked toggled", bases=("QWidget",)
    ),
    "QPushButton": Known("qpushbutton.h", bases=("QAbstractButton",)),
    "QToolButton": Known("qtoolbutton.h", bases=("QAbstractButton",)),
    "QCheckBox": Known("qcheckbox.h", bases=("QAbstractButton",)),
    "QLabel": Known("qlabel.h", properties="pixmap text", bases=("QWidget",)),
    "QLineEdit": Known(
        "qlineedit.h",
        properties="placeholderText text",
        signals="editingFinished textChanged",
        bases=("QWidget",),
    ),
    "QSpinBox": Known("qspinbox.h", properties="value", signals="valueChanged", bases=("QWidget",)),
    "QProgressBar": Known("qprogressbar.h", properties="format value", bases=("QWidget",)),
    "QComboBox": Known(
        "qcombobox.h",
        properties="count currentIndex",
        methods="addItem clear findData itemData itemText setItemData setItemText",
        signals="currentIndexChanged",
        bases=("QWidget",),
    ),
    "QListWidget": Known(
        "qlistwidget.h",
        properties="count currentRow",
        methods="addItem clear item row",
        signals="currentRowChanged itemChanged itemClicked",
        bases=("QWidget",),
    ),
    "QListWidgetItem": Known(
        "qlistwidget.h", methods="checkState data setCheckState setData setFlags setToolTip text"
    ),
    "QProgressDialog": Known(
        "qprogressdialog.h", properties="value wasCanceled", methods="close", bases=("QWidget",)
    ),
    "QTimer": Known(
        "qtimer.h",
        properties="interval",
        methods="setSingleShot singleShot start stop",
        signals="timeout",
        bases=("QObject",),
    ),
    "QShortcut": Known(
        "qshortcut.h", properties="autoRepeat enabled", signals="activated", bases=("QObject",)
    ),
    "QPainter": Known("qpainter.h", methods="drawLine drawText end fillRect setPen"),
    "QMouseEvent": Known("qevent.h", methods="position x"),
    "QPointF": Known("qpoint.h", methods="x"),
    "QPixmap": Known("qpixmap.h", methods="fill loadFromData scaledToWidth"),
    "QColor": Known("qcolor.h", methods="fromRgbF"),
    "QIcon": Known("qicon.h"),
    "QKeySequence": Known("qkeysequence.h"),
    "QSettings": Known("qsettings.h", methods="setValue"),
    "QFileDialog": Known("qfiledialog.h", methods="getExistingDirectory"),
}
"""Classes that PySide6 has too, so that the test looks at them."""

CLASSES = {
    **QT_CLASSES,
    "ctkCollapsibleButton": Known(
        "CTK Libs/Widgets/ctkCollapsibleButton.h",
        properties="collapsed",
        signals="contentsCollapsed",
        bases=("QAbstractButton",),
    ),
    "qMRMLWidget": Known(
        "Slicer Libs/MRML/Widgets/qMRMLWidget.h",
        methods="setMRMLScene",
        signals="mrmlSceneChanged",
        bases=("QWidget",),
    ),
    "qMRMLNodeComboBox": Known(
        "Slicer Libs/MRML/Widgets/qMRMLNodeComboBox.h",
        properties="nodeTypes showChildNodeTypes addEnabled removeEnabled renameEnabled noneEnabled",
        methods="currentNode setCurrentNode setMRMLScene",
        signals="currentNodeChanged",
        bases=("QWidget",),
    ),
    "qMRMLSegmentEditorWidget": Known(
        "Slicer Modules/Loadable/Segmentations/Widgets/qMRMLSegmentEditorWidget.h",
        properties="segmentationNodeSelectorVisible sourceVolumeNodeSelectorVisible maximumNumberOfUndoStates",
        methods="activeEffect currentSegmentID mrmlSegmentEditorNode redo removeViewObservations saveStateForUndo"
        " segmentationNode setActiveEffect setCurrentSegmentID setMRMLScene setMRMLSegmentEditorNode"
        " setSegmentationNode setSourceVolumeNode setupViewObservations undo updateEffectList",
        bases=("QWidget",),
    ),
    "qSlicerSegmentEditorEffectFactory": Known(
        "Slicer Modules/Loadable/Segmentations/EditorEffects/qSlicerSegmentEditorEffectFactory.h",
        methods="connect disconnect instance",
        signals="effectRegistered",
        bases=("QObject",),
    ),
    "qSlicerApplication": Known(
        "Slicer Base/QTGUI/qSlicerApplication.h",
        methods="connect processEvents",
        signals="startupCompleted",
        bases=("QObject",),
    ),
    "qSlicerScriptedLoadableModule": Known(
        "Slicer Base/QTGUI/qSlicerScriptedLoadableModule.h",
        properties="acknowledgementText categories contributors dependencies helpText title",
    ),
    "qSlicerAbstractModuleWidget": Known(
        "Slicer Base/QTGUI/qSlicerAbstractModuleWidget.h", properties="isEntered", methods="layout"
    ),
    "ScriptedLoadableModuleWidget": Known(
        "Slicer Base/Python/slicer/ScriptedLoadableModule.py",
        properties="layout parent",
        methods="cleanup onReload resourcePath setup",
    ),
    "ScriptedLoadableModuleLogic": Known(
        "Slicer Base/Python/slicer/ScriptedLoadableModule.py", methods="getParameterNode"
    ),
    "ScriptedLoadableModuleTest": Known(
        "Slicer Base/Python/slicer/ScriptedLoadableModule.py", methods="runTest setUp"
    ),
    "parameterNodeWrapper": Known(
        "Slicer Base/Python/slicer/parameterNodeWrapper/wrapper.py",
        methods="AddObserver RemoveObserver connectGui disconnectGui",
    ),
    "VTKObservationMixin": Known(_UTIL, methods="addObserver removeObserver removeObservers"),
    "SampleDataLogic": Known(
        "Slicer Modules/Scripted/SampleData/SampleData.py", methods="registerCustomSampleDataSource"
    ),
    "module attributes": Known(
        "Slicer Base/Python/slicer/__init__.py, slicerqt.py", properties="app modules mrmlScene util"
    ),
}

CALLABLES = {
    "slicer.util.childWidgetVariables": "(widget)",
    "slicer.util.confirmOkCancelDisplay": "(text, windowTitle=None, parent=None, **kwargs)",
    "slicer.util.createProgressDialog": (
        "(parent=None, value=0, maximum=100, labelText='', windowTitle='Processing...', **kwargs)"
    ),
    "slicer.util.errorDisplay": "(text, windowTitle=None, parent=None, standardButtons=None, **kwargs)",
    "slicer.util.findChildren": "(widget=None, name='', text='', title='', className='')",
    "slicer.util.loadUI": "(path)",
    "slicer.util.mainWindow": "()",
    "slicer.util.setSliceViewerLayers": (
        "(background='keep-current', foreground='keep-current', label='keep-current', foregroundOpacity=None,"
        " labelOpacity=None, fit=False, rotateToVolumePlane=False)"
    ),
    "slicer.util.settingsValue": "(key, default, converter=None, settings=None)",
    "slicer.util.startupEnvironment": "()",
    "slicer.util.tryWithErrorDisplay": "(message=None, show=True, waitCursor=False)",
    "slicer.util.updateVolumeFromArray": "(volumeNode, narray)",
    "slicer.app.connect": "(signal, receiver)",
    "slicer.app.disconnect": "(signal, receiver)",
    "slicer.app.processEvents": "(flags=None, maxtime=None)",
    "slicer.modules.segmentations.logic": "()",
    "slicer.qSlicerSegmentEditorEffectFactory.instance": "()",
    "SampleData.SampleDataLogic.registerCustomSampleDataSource": (
        "(category='Custom', sampleName=None, uris=None, fileNames=None, nodeNames=None, customDownloader=None,"
        " thumbnailFileName=None, loadFileTypes=None, loadFiles=None, loadFileProperties={}, checksums=None,"
        " loadFileType=None)"
    ),
}
"""Functions and their parameters, the same in 5.10.0 and 5.13: util.py, SampleData.py, PythonQt for the application."""

ENUMS = {
    "QEventLoop": {"AllEvents"},
    "Qt": {
        "ApplicationModal",
        "Checked",
        "ItemIsEditable",
        "ItemIsEnabled",
        "ItemIsUserCheckable",
        "ToolTipRole",
        "Unchecked",
        "UserRole",
    },
}

ONE_QT_ONLY = {"position": "Qt 6", "x": "Qt 5"}
"""Members of QMouseEvent that only one of the two has: used behind a `hasattr`, in one function."""


def members_of(name: str, kind: str) -> set[str]:
    """The members of one kind of a class and its bases."""
    known = CLASSES[name]
    return known.names(kind).union(*(members_of(base, kind) for base in known.bases))
