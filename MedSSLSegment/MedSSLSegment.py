"""One annotated slice of a CT becomes the organ in the whole volume: the 3D Slicer module."""

import importlib
import sys
import time

import numpy as np
import qt
import slicer
import vtk
from medssl.client import WorkerClient
from medssl.results import SliceMask
from medssl.scene import nodes, writing
from medssl.scene.background import Task
from medssl.scene.session import PropagateRequest, Session, State, Status
from MedSSLSegmentLib import EditorNode, WorkerPython
from MedSSLSegmentLib.Panel import GIVE_WAY_S, Panel
from MedSSLSegmentLib.ParameterNode import MedSSLSegmentParameterNode
from MedSSLSegmentLib.Samples import registerSamples
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin


class MedSSLSegment(ScriptedLoadableModule):
    """What Slicer shows about the module."""

    def __init__(self, parent) -> None:
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("MedSSLSegment")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        self.parent.dependencies = ["Segmentations"]
        self.parent.contributors = ["MedSSLSegment contributors"]
        self.parent.helpText = _(
            "Annotate an organ on one slice, or on a few, and propagate it through the whole volume. Correct any slice"
            " and propagate again; teach a model of your own from what you have accepted. Nothing leaves your machines."
            ' See the <a href="https://github.com/MedSSLSegment/SlicerMedSSLSegment/blob/main/Resources/Tutorial.md">'
            "tutorial</a>, which uses sample data that come with it."
        )
        self.parent.acknowledgementText = _(
            "Builds on Segment Anything and SAM 2 (Meta AI) and on the MedSAM and MedSAM2 models of the Wang lab."
            " For research; not cleared for clinical use."
        )
        slicer.app.connect("startupCompleted()", registerSamples)


class MedSSLSegmentWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The panel's life in Slicer."""

    def __init__(self, parent=None) -> None:
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = None
        self.panel = None
        self._parameterNode = None
        self._parameterNodeGuiTag = None
        self._parameterNodeTag = None
        self._observedSegmentation = None
        self._segmentationTags = []
        self._effects = None

    def setup(self) -> None:
        """Make the panel, when the module is opened for the first time."""
        ScriptedLoadableModuleWidget.setup(self)
        uiWidget = slicer.util.loadUI(self.resourcePath("UI/MedSSLSegment.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)
        self.logic = MedSSLSegmentLogic()
        self.selectSegmentEditorNode()
        self.ui.segmentEditor.setMRMLScene(slicer.mrmlScene)
        self._effects = slicer.qSlicerSegmentEditorEffectFactory.instance()
        self._effects.connect("effectRegistered(QString)", self.onEffectRegistered)
        self.panel = Panel(
            self.ui,
            self.logic.session,
            self.logic.requireWorker,
            self.logic.restartWorker,
            self.logic.checkWorker,
            self.logic.close,
            lambda: self.logic.isChecking,
        )
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self.onSceneEndClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartImportEvent, self.onSceneStartImport)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndImportEvent, self.onSceneEndImport)
        self.initializeParameterNode()

    def cleanup(self) -> None:
        """Leave nothing running, when the application closes or the module is reloaded."""
        self.setParameterNode(None)
        self.removeObservers()
        if self._effects:
            self._effects.disconnect("effectRegistered(QString)", self.onEffectRegistered)
            self._effects = None
        if self.panel:
            self.panel.close()
            self.logic.close()
            # A reload only hides this one: on its node it would hear strokes beside the new one.
            self.ui.segmentEditor.setMRMLSegmentEditorNode(None)

    def onEffectRegistered(self) -> None:
        """Offer effects of other extensions too, which come later where 3D Slicer starts with this module."""
        self.ui.segmentEditor.updateEffectList()

    def enter(self) -> None:
        """Follow the scene again, when the user comes to the module."""
        self.selectSegmentEditorNode()
        self.initializeParameterNode()
        EditorNode.takeRules(EditorNode.editorNode(slicer.mrmlScene))
        self.logic.prepareWorker()
        self.panel.enter(slicer.util.mainWindow())

    def exit(self) -> None:
        """Give back keys, mouse and parameter node, when the user goes to another module; what runs goes on."""
        self.panel.exit()
        EditorNode.handOver(EditorNode.editorNode(slicer.mrmlScene))
        self._stopFollowing()

    def _stopFollowing(self) -> None:
        if self._parameterNode and self._parameterNodeGuiTag is not None:
            self._parameterNode.disconnectGui(self._parameterNodeGuiTag)
            self._parameterNode.RemoveObserver(self._parameterNodeTag)
            self._parameterNodeGuiTag = None

    def onReload(self) -> None:
        """Load the module's Python packages anew, for developers."""
        for name in [n for n in sys.modules if n.split(".")[0] in ("medssl", "MedSSLSegmentLib")]:
            del sys.modules[name]
        importlib.invalidate_caches()
        ScriptedLoadableModuleWidget.onReload(self)

    def onSceneStartClose(self, caller, event) -> None:
        """Let go of the scene's nodes before they are removed."""
        self.setParameterNode(None)

    def onSceneEndClose(self, caller, event) -> None:
        """Start with the empty scene."""
        if self.parent.isEntered:
            self.selectSegmentEditorNode()
            self.initializeParameterNode()

    def onSceneStartImport(self, caller, event) -> None:
        """Look away while nodes come in: the parameter node may come before those that it names."""
        self._stopFollowing()

    def onSceneEndImport(self, caller, event) -> None:
        """Show what was opened, once every selector and the Segment Editor have got over the import."""
        qt.QTimer.singleShot(0, self.onSceneImported)

    def onSceneImported(self) -> None:
        """Show what the scene that was opened holds."""
        if self.parent.isEntered and self._parameterNode:
            self.selectSegmentEditorNode()
            self.initializeParameterNode()

    def selectSegmentEditorNode(self) -> None:
        """Give the embedded Segment Editor the scene's node for it."""
        self.ui.segmentEditor.setMRMLSegmentEditorNode(EditorNode.editorNode(slicer.mrmlScene))

    def initializeParameterNode(self) -> None:
        """Follow the scene's parameter node; choose the first volume when none was chosen."""
        self.setParameterNode(self.logic.getParameterNode())
        if not self._parameterNode.inputVolume:
            self._parameterNode.inputVolume = _firstVolume(slicer.mrmlScene)

    def setParameterNode(self, parameterNode) -> None:
        """Follow another parameter node, or none."""
        self._stopFollowing()
        self._parameterNode = parameterNode
        if parameterNode:
            self._parameterNodeGuiTag = parameterNode.connectGui(self.ui)
            self._parameterNodeTag = parameterNode.AddObserver(
                vtk.vtkCommand.ModifiedEvent, self.onParameterNodeModified
            )
        self.onParameterNodeModified()

    def onParameterNodeModified(self, caller=None, event=None) -> None:
        """Show the nodes the user chose."""
        if self.panel:
            self.panel.setParameterNode(self._parameterNode)
            self._observeSegmentation(self._parameterNode.segmentation if self._parameterNode else None)

    def _observeSegmentation(self, node) -> None:
        """Keep the list of segments up to date."""
        segmentation = node.GetSegmentation() if node else None
        if segmentation is self._observedSegmentation:
            return
        for tag in self._segmentationTags:
            self._observedSegmentation.RemoveObserver(tag)
        kind = slicer.vtkSegmentation
        listed = (kind.SegmentAdded, kind.SegmentRemoved, kind.SegmentModified, kind.SegmentsOrderModified)
        observed = [(event, self.onSegmentsModified) for event in listed]
        observed.append((kind.SourceRepresentationModified, self.onSegmentPainted))
        # Not through the mixin, which keeps what it has ever observed in memory.
        targets = [segmentation] if segmentation else []
        self._segmentationTags = [each.AddObserver(*what) for each in targets for what in observed]
        self._observedSegmentation = segmentation

    def onSegmentPainted(self, caller, event) -> None:
        """Look for reference slices again, once painting pauses."""
        self.panel.onPainted()

    def onSegmentsModified(self, caller, event) -> None:
        """Show added, removed and renamed segments."""
        self.panel.updateSegments()


def _firstVolume(scene):
    """The first volume that the selector offers; for the scene, label maps are volumes too."""
    kind = "vtkMRMLScalarVolumeNode"
    volumes = (scene.GetNthNodeByClass(n, kind) for n in range(scene.GetNumberOfNodesByClass(kind)))
    return next((node for node in volumes if node.GetClassName() == kind), None)


class MedSSLSegmentLogic(ScriptedLoadableModuleLogic):
    """Propagation without a panel; computes in a process of its own.

    Args:
        client: sends the work to the worker; None = a worker in the Python the user chose.
    """

    def __init__(self, client=None) -> None:
        ScriptedLoadableModuleLogic.__init__(self)
        WorkerPython.useChosenHome()
        self._ownsClient = client is None
        self._check: Task[None] | None = None
        self._ending: Task[None] | None = None
        self.session = Session(
            slicer.mrmlScene,
            slicer.modules.segmentations.logic(),
            client or self._newClient(),
            wait_s=None if client else 0.0,
        )

    def getParameterNode(self) -> MedSSLSegmentParameterNode:
        """The module's parameter node, with typed fields."""
        return MedSSLSegmentParameterNode(super().getParameterNode())

    def process(self, volumeNode, segmentationNode, request: PropagateRequest | None = None) -> Status:
        """Propagate the painted slices and wait for the end; for scripts.

        Raises:
            InputError: a node is missing or nothing is painted.
            WorkerError: the worker cannot run here.
        """
        self.prepareWorker()
        self.requireWorker(wait=True)
        self.session.choose(volumeNode, segmentationNode)
        self.session.start(request or PropagateRequest())
        while self.session.poll().state is State.RUNNING:
            slicer.app.processEvents(qt.QEventLoop.AllEvents, 50)
            time.sleep(GIVE_WAY_S)
        return self.session.status

    def prepareWorker(self) -> None:
        """Begin to look, in the background and once, whether the chosen Python has what the worker needs."""
        if self._ownsClient and self._check is None:
            self.checkWorker()

    def checkWorker(self) -> Task[None]:
        """Look, in the background, whether the chosen Python has what the worker needs now; its result says so."""
        command = WorkerPython.workerCommand()
        self._check = Task(lambda: WorkerPython.requirePackages(command))
        return self._check

    @property
    def isChecking(self) -> bool:
        """Whether it is still being looked at what the chosen Python has, or a worker is still ending."""
        return any(task is not None and not task.done for task in (self._check, self._ending))

    def requireWorker(self, wait: bool = False) -> None:
        """Raise WorkerError when the chosen Python is known to lack what the worker needs.

        Args:
            wait: until it is known; a panel does not, and the worker itself says so when it cannot start.
        """
        if self._check is not None and (wait or self._check.done):
            self._check.result()

    def restartWorker(self) -> None:
        """Use the Python that is chosen now."""
        self.close()
        self._check = None
        self.session.client = self._newClient()
        self.prepareWorker()

    def close(self) -> Task[None]:
        """End the worker's process in the background: what it is putting away, such as a case, takes its time."""
        client, before = self.session.client, self._ending

        def end() -> None:
            if before is not None:
                before.result()
            if self._ownsClient:
                client.close()

        self._ending = Task(end, is_awaited=True)
        return self._ending

    def _newClient(self) -> WorkerClient:
        return WorkerClient(WorkerPython.workerCommand())


class _CopyingRun:
    """Answers at once: every slice of the volume gets the mask of the first reference."""

    done = True

    def __init__(self, volume, references) -> None:
        prompt, segment = references[0].prompt, references[0].segment
        count = volume.shape_kji[prompt.axis]
        self._events = [SliceMask(segment, prompt.axis, n, prompt.mask, 1.0) for n in range(count)]

    def poll(self) -> list:
        events, self._events = self._events, []
        return events

    def cancel(self) -> None:
        self._events = []

    def result(self) -> None:
        return None


class _CopyingClient:
    """Stands in for the worker, so that the self-test needs no torch and no network."""

    def propagate(self, volume, references, options, *, model, device) -> _CopyingRun:
        return _CopyingRun(volume, references)


class MedSSLSegmentTest(ScriptedLoadableModuleTest):
    """Run by Slicer's self-test button and by ctest."""

    def setUp(self) -> None:
        """Start with an empty scene."""
        slicer.mrmlScene.Clear()

    def runTest(self) -> None:
        """Run every test."""
        self.setUp()
        self.test_propagateAndUndo()

    def test_propagateAndUndo(self) -> None:
        """A painted slice fills the volume, keeps its place, and one undo takes all of it back."""
        volumeNode = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "CT")
        voxels = np.arange(6 * 8 * 10, dtype=np.int16).reshape(6, 8, 10)
        slicer.util.updateVolumeFromArray(volumeNode, voxels)
        volumeNode.SetSpacing(0.7, 0.7, 3.0)
        segmentationNode = nodes.create_segmentation_node(slicer.mrmlScene, volumeNode)
        segmentId = segmentationNode.GetSegmentation().AddEmptySegment("", "liver")
        volume = nodes.read_volume_node(volumeNode)
        painted = np.zeros((8, 10), bool)
        painted[2:5, 3:8] = True
        writing.write_slices(segmentationNode, segmentId, volume, 0, {2: painted})

        logic = MedSSLSegmentLogic(_CopyingClient())
        status = logic.process(volumeNode, segmentationNode)

        assert status.state is State.DONE
        filled = nodes.read_segment(segmentationNode, segmentId, volume)
        assert np.array_equal(filled, np.broadcast_to(painted, filled.shape))
        logic.session.undo()
        assert nodes.read_segment(segmentationNode, segmentId, volume).sum() == painted.sum()
