"""Step 2: smart prompts in the slice views, with a preview that Enter accepts and Esc drops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from medssl.errors import InputError
from medssl.registry import DEFAULT_MODEL, known_models
from medssl.scene.marks import PromptMarks
from medssl.scene.prompting import Place, axis_of_normal, slice_at
from medssl.scene.session import Session
from slicer.i18n import tr as _

from .Errors import errorsShown
from .ModelChoice import ModelChoice
from .ModelDownload import ensureModel, isHere
from .ParameterNode import MedSSLSegmentParameterNode
from .SliceViews import SliceViews

__all__ = ["AnnotateSection"]

TOLERANCE = 1e-3
"""Of view normals, and of distances in mm from the slice that a view shows."""


class AnnotateSection:
    """Connects the prompt tools with the session's prompts.

    Args:
        ui: the named child widgets.
        session: answers prompts.
        scene: whose slice views are clicked in.
        requireWorker: raises WorkerError when the worker cannot run.
        onChanged: called when there is something new to show or to wait for.
        onTold: called when the worker was told which slice is in view.
    """

    def __init__(
        self,
        ui: Any,
        session: Session,
        scene: Any,
        requireWorker: Callable[[], None],
        onChanged: Callable[[], None],
        onTold: Callable[[], None],
    ) -> None:
        self.ui = ui
        self.session = session
        self.requireWorker = requireWorker
        self.onChanged = onChanged
        self.onTold = onTold
        self.views = SliceViews(scene, self.onPlaced, self.onStopped, self.onMoved, self.onRested)
        session.prompts.accepted = onChanged
        self.parameterNode: MedSSLSegmentParameterNode | None = None
        self.models = ModelChoice(
            ui.promptModelComboBox, lambda entry: entry.answers_prompts, self.onModelChosen
        )
        self.marks = PromptMarks(session)
        self._way: list[list[float]] = []
        self._wayStart: tuple[str, list[float]] = "", []
        """Segment and view normal of the way's first click."""
        self._scribbled: Place | None = None
        """The slice of the scribble that grows."""
        self._missingModel = ""
        """The scene's model, where it is not on this computer and that has been said."""
        self._told: tuple[object, ...] = ()
        """Volume, axis and index that the worker was told of last: panning and zooming are no news."""
        self.tools = {
            "positive": ui.positiveButton,
            "negative": ui.negativeButton,
            "box": ui.boxButton,
            "scribble": ui.scribbleButton,
        }
        for name, button in self.tools.items():
            button.toggled.connect(lambda on, name=name: self.onTool(name, on))
        ui.acceptButton.clicked.connect(self.onAccept)
        ui.dropButton.clicked.connect(self.onDrop)
        ui.anotherButton.clicked.connect(self.onAnother)
        ui.takeBackButton.clicked.connect(self.onTakeBack)

    def setParameterNode(self, parameterNode: MedSSLSegmentParameterNode | None) -> None:
        """Follow a parameter node.

        The model of a scene from another computer may be missing here: nothing is asked, the shipped one answers, and
        the scene keeps its own.
        """
        self.parameterNode = parameterNode
        if parameterNode is None:
            return
        if parameterNode.promptModel == self.session.prompts.model:
            self._missingModel = ""
            return
        wanted = parameterNode.promptModel
        isThere = wanted in {entry.id for entry in known_models() if isHere(entry)}
        self._answerWith(wanted if isThere else DEFAULT_MODEL)
        if not isThere and wanted != self._missingModel:
            self.session.prompts.message = _(
                "{wanted}, which this scene was made with, is not on this computer; {model} answers."
            ).format(wanted=wanted, model=DEFAULT_MODEL)
        self._missingModel = "" if isThere else wanted

    def onModelChosen(self, modelId: str) -> None:
        isReady = False
        with errorsShown():
            isReady = ensureModel(modelId)
        self.models.show()
        self._answerWith(modelId if isReady else self.session.prompts.model)
        if isReady and self.parameterNode is not None:
            self.parameterNode.promptModel = self.models.modelId

    def _answerWith(self, modelId: str) -> None:
        self.models.choose(modelId)
        if self.session.prompts.model != self.models.modelId:
            self.session.prompts.model = self.models.modelId
            self._told = ()  # the new model has not encoded the slice in view

    @property
    def tool(self) -> str:
        """The tool in hand; empty for none."""
        return next((name for name, button in self.tools.items() if button.checked), "")

    def pick(self, name: str) -> None:
        """Take a tool, or lay it down if it is in hand."""
        self.tools[name].checked = not self.tools[name].checked

    def onTool(self, name: str, on: bool) -> None:
        self._way.clear()
        self._told = ()
        if on:
            for other, button in self.tools.items():
                if other != name:
                    button.checked = False
            self.ui.segmentEditor.setActiveEffect(None)
            with errorsShown():
                self.requireWorker()
            self.views.startPlacing()
        elif not self.tool:
            self.views.stopPlacing()

    def onStopped(self) -> None:
        """Another tool of 3D Slicer was taken."""
        for button in self.tools.values():
            button.checked = False

    def onMoved(self, positionRas: list[float], normalRas: list[float]) -> None:
        """A slice view shows another slice: the worker gets ready for it."""
        volume = self.session.ready_volume
        if volume is None:
            return
        axis = axis_of_normal(volume, normalRas)
        index = slice_at(volume, positionRas, axis)
        seen = volume, axis, index
        if 0 <= index < volume.shape_kji[axis] and seen != self._told:
            self._told = seen
            self.session.prompts.look_at(axis, index)
            self.onTold()

    def onRested(self, positionRas: list[float], normalRas: list[float]) -> None:
        """The mouse rests in a slice view: the worker answers ahead what a click would ask there."""
        volume, segments = self.session.ready_volume, self.session.segments()
        if self.tool not in ("positive", "negative") or volume is None or not segments:
            return
        axis = axis_of_normal(volume, normalRas)
        self.session.prompts.foresee(self._segment(), positionRas, axis, self.tool == "positive")
        self.onTold()

    def onPlaced(self, positionRas: list[float], normalRas: list[float]) -> None:
        """A click in a slice view."""
        with errorsShown():
            segment = self._segment()
            axis = axis_of_normal(self.session.volume(), normalRas)
            if self.tool in ("positive", "negative"):
                self.session.prompts.add_point(segment, positionRas, axis, self.tool == "positive")
            else:
                self._goOn(segment, positionRas, normalRas)
            if self.tool == "box" and len(self._way) == 2:
                way, self._way = self._way, []
                self.session.prompts.add_box(segment, *way, axis)
            elif self.tool == "scribble" and len(self._way) >= 2:
                self._replaceScribble(segment, axis)
        self.show()
        self.onChanged()

    def _replaceScribble(self, segment: str, axis: int) -> None:
        """A scribble grows with every click: the shorter one makes way."""
        prompts = self.session.prompts
        if len(self._way) > 2 and prompts.place == self._scribbled:
            prompts.take_back()
        self._scribbled = prompts.add_scribble(segment, self._way, axis, True)

    def _goOn(self, segment: str, positionRas: list[float], normalRas: list[float]) -> None:
        """Add a click to a box or scribble; in another view, on another slice or for another segment it begins anew."""
        if self._way and not self._isInReach(segment, positionRas, normalRas):
            self._way.clear()
        if not self._way:
            self._wayStart = segment, normalRas
        self._way.append(positionRas)

    def _isInReach(self, segment: str, positionRas: list[float], normalRas: list[float]) -> bool:
        startSegment, startNormal = self._wayStart
        steps = zip(normalRas, positionRas, self._way[0], strict=True)
        beyondMm = abs(sum(n * (here - there) for n, here, there in steps))
        isSameView = max(abs(a - b) for a, b in zip(normalRas, startNormal, strict=True)) < TOLERANCE
        return segment == startSegment and isSameView and beyondMm < TOLERANCE

    def onAccept(self) -> None:
        self._decide(self.session.prompts.accept)

    def onDrop(self) -> None:
        self._way.clear()
        with errorsShown():
            self.session.prompts.drop()
        self.show()

    def onAnother(self) -> None:
        self._decide(self.session.prompts.show_another)

    def onTakeBack(self) -> None:
        self._decide(self.session.prompts.take_back)

    def _decide(self, act: Callable[[], object]) -> None:
        self._way.clear()
        with errorsShown():
            act()
        self.show()
        self.onChanged()

    @property
    def hasPrompts(self) -> bool:
        """Whether there is something to accept, drop or take back."""
        prompts = self.session.prompts
        return prompts.place is not None and bool(prompts.marks(prompts.place))

    def show(self) -> None:
        """Show the prompts, and what there is to accept."""
        prompts = self.session.prompts
        self.marks.show()
        canGoOn = prompts.place in prompts.previews or (prompts.place in prompts.pending())
        self.ui.acceptButton.enabled = canGoOn and not prompts.is_waiting
        self.ui.anotherButton.enabled = prompts.has_another
        self.ui.takeBackButton.enabled = self.ui.dropButton.enabled = self.hasPrompts
        hint = _("Paint with the Segment Editor below, or prompt in a slice view.")
        self.ui.promptLabel.text = prompts.message or hint

    def close(self) -> None:
        """Lay the tool down."""
        for button in self.tools.values():
            button.checked = False
        self.views.close()

    def _segment(self) -> str:
        chosen = self.ui.segmentEditor.currentSegmentID()
        ids = [segment.id for segment in self.session.segments()]
        if chosen in ids:
            return str(chosen)
        if ids:
            return ids[0]
        raise InputError(_("There is no segment yet; press Add segment in step 1."))
