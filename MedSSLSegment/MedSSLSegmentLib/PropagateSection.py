"""Step 3: reference slices, range and direction, propagation, correction, suggestions, and the confidence strip."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from medssl.errors import InputError
from medssl.scene.nodes import create_segmentation_node
from medssl.scene.prompting import Place, position_ras_mm
from medssl.scene.session import PropagateRequest, Session
from medssl.scene.survey import ReferenceSlice
from slicer.i18n import tr as _

from .ConfidenceStrip import ConfidenceStrip
from .Errors import errorsShown
from .ModelChoice import ModelChoice
from .ModelDownload import ensureModel
from .ParameterNode import WHOLE_RANGE, MedSSLSegmentParameterNode
from .ReferenceList import ReferenceList
from .SegmentList import SegmentList

__all__ = ["PropagateSection"]


class PropagateSection:
    """Connects the widgets of step 3.

    Args:
        ui: the named child widgets.
        session: propagates.
        jumpTo: shows a world position in the slice views.
        requireWorker: raises WorkerError when the worker cannot run.
        onChanged: called when there is something new to show or to wait for.
    """

    def __init__(
        self,
        ui: Any,
        session: Session,
        jumpTo: Callable[[Any], None],
        requireWorker: Callable[[], None],
        onChanged: Callable[[], None],
    ) -> None:
        self.ui = ui
        self.session = session
        self.jumpTo = jumpTo
        self.requireWorker = requireWorker
        self.onChanged = onChanged
        self.parameterNode: MedSSLSegmentParameterNode | None = None
        self._volume: Any = None
        self.segments = SegmentList(ui.segmentList, session, onChanged)
        self.references = ReferenceList(ui.referenceList, session, self.goTo, self.onReferenceTicked)
        self.strip = ConfidenceStrip(self.goTo)
        self.strip.toolTip = _(
            "One column a slice: as tall as what was found there, green where the program is sure and red where not,"
            " grey where it found nothing by itself. Blue: reference slices; amber: worth annotating next; white: in"
            " view. Click to go to a slice."
        )
        ui.stripLayout.addWidget(self.strip)
        self.models = ModelChoice(ui.modelComboBox, lambda entry: entry.propagates, self.onModelChosen)
        ui.propagateButton.clicked.connect(lambda: self.onPropagate(onlyChanged=False))
        ui.correctButton.clicked.connect(lambda: self.onPropagate(onlyChanged=True))
        ui.suggestButton.clicked.connect(self.onSuggest)
        ui.addSegmentButton.clicked.connect(self.onAddSegment)

    # From the scene to the widgets

    def setParameterNode(self, parameterNode: MedSSLSegmentParameterNode | None) -> None:
        """Follow a parameter node."""
        isAnother, self.parameterNode = parameterNode is not self.parameterNode, parameterNode
        volume, before = parameterNode.inputVolume if parameterNode else None, self._volume
        self._volume = volume
        if parameterNode and volume is not before and not isAnother:
            # The range that was chosen is one of slices of the volume before.
            parameterNode.firstSlice = parameterNode.lastSlice = WHOLE_RANGE
        if parameterNode:
            self.models.choose(parameterNode.model)
            self.onModelChosen(self.models.modelId)

    def showSegments(self) -> None:
        """Show the segments of the segmentation."""
        self.segments.show()

    def showSurvey(self) -> None:
        """Show the reference slices and the strip, as they were last looked at."""
        self.references.show()
        survey, shown = self.session.survey, self._shownSegment()
        if survey is None:
            self.strip.display([], [], ())
        elif shown in survey.segments:
            segment = survey.segments[shown]
            self.strip.display(segment.area_px, segment.confidence, segment.drawn)

    def showEnabled(self, isBusy: bool) -> None:
        """Enable what can be done now.

        Args:
            isBusy: whether a propagation or a prediction runs: there is one at a time.
        """
        survey = self.session.survey
        canStart = not isBusy and not self.hint()
        hasChanged = survey is None or survey.has_changed(self.segments.checked())
        self.ui.propagateButton.enabled = canStart
        self.ui.correctButton.enabled = canStart and hasChanged
        self.ui.suggestButton.enabled = survey is not None and bool(survey.drawn)
        self.ui.addSegmentButton.enabled = self._hasVolume and not isBusy
        for widget in (self.ui.volumeSelector, self.ui.segmentationSelector, self.ui.segmentList):
            widget.enabled = not isBusy

    @property
    def _hasVolume(self) -> bool:
        return bool(self.parameterNode and self.parameterNode.inputVolume)

    def hint(self) -> str:
        """What the user has to do before propagating; empty when nothing is missing."""
        if not self._hasVolume:
            return _("Choose a volume.")
        if not self.parameterNode.segmentation:
            return _("Choose a segmentation, or press Add segment in step 1.")
        if not self.session.segments():
            return _("Press Add segment in step 1, then annotate the object on one slice in step 2.")
        if not self.segments.checked():
            return _("Check at least one segment.")
        survey = self.session.survey
        if survey is not None and not survey.references:
            return _("Annotate one slice: paint the object, or place a prompt in a slice view.")
        return ""

    # From the widgets to the session

    def request(self, onlyChanged: bool = False) -> PropagateRequest:
        """What the user asks for."""
        view = self.parameterNode.view.value
        first, last = self.ui.firstSpinBox.value, self.ui.lastSpinBox.value
        return PropagateRequest(
            segment_ids=tuple(self.segments.checked()),
            axis=None if view is None else self.session.axis_of(view),
            first=None if first < 0 else first,
            last=None if last < 0 else last,
            direction=self.parameterNode.direction.value,
            stop=bool(self.ui.stopCheckBox.checked),
            model=self.parameterNode.model,
            only_changed=onlyChanged,
        )

    def axis(self) -> int | None:
        """The slice axis the person asked for; None = as painted."""
        view = self.parameterNode.view.value if self.parameterNode else None
        try:
            return None if view is None else self.session.axis_of(view)
        except InputError:  # there is no volume yet, or it is still being read
            return None

    def onPropagate(self, onlyChanged: bool) -> None:
        isHere = False
        with errorsShown():
            isHere = ensureModel(self.parameterNode.model)
        self.models.show()
        if isHere:
            with errorsShown():
                self.requireWorker()
                self.session.start(self.request(onlyChanged))
                self.ui.suggestionLabel.text = ""
                self.strip.mark(self.strip.current, ())
        self.onChanged()

    def goTo(self, index: int) -> None:
        """Show a slice in the slice views."""
        survey = self.session.survey
        if survey is None:
            return
        with errorsShown():
            volume = self.session.volume()
            middle = [n / 2 for a, n in enumerate(volume.shape_kji) if a != survey.axis]
            place = Place("", survey.axis, index)
            self.jumpTo(position_ras_mm(volume, place, (middle[1], middle[0])))
            self.strip.mark(index, self.strip.suggestions)

    def onReferenceTicked(self, reference: ReferenceSlice, used: bool) -> None:
        with errorsShown():
            self.session.use_reference(reference.segment, reference.axis, reference.index, used)
        self.showSurvey()
        self.onChanged()

    def onAddSegment(self) -> None:
        """Add a segment to the segmentation, and a segmentation where there is none; undo takes it away."""
        self.requireSegmentation()
        node = self.parameterNode.segmentation
        self.session.history.save(node)
        self.ui.segmentEditor.setCurrentSegmentID(node.GetSegmentation().AddEmptySegment())
        self.onChanged()

    def requireSegmentation(self) -> None:
        """Make a segmentation for the chosen volume where none is chosen; nothing happens without a volume."""
        if self._hasVolume and not self.parameterNode.segmentation:
            volume = self.parameterNode.inputVolume
            self.parameterNode.segmentation = create_segmentation_node(self.session.scene, volume)

    def onSuggest(self) -> None:
        with errorsShown():
            best = self.session.suggestions()
            self.strip.mark(best[0].index if best else -1, [each.index for each in best])
            if best:
                self.goTo(best[0].index)
            text = (
                _("Slice {index}: {reason}.").format(index=best[0].index, reason=best[0].reason)
                if best
                else ""
            )
            self.ui.suggestionLabel.text = text or _("Every slice is near a reference slice.")

    def onModelChosen(self, modelId: str) -> None:
        self.session.tracker = modelId
        if self.parameterNode:
            self.parameterNode.model = modelId

    def _shownSegment(self) -> str:
        chosen = self.ui.segmentEditor.currentSegmentID()
        ids = [segment.id for segment in self.session.segments()]
        return chosen if chosen in ids else (ids[0] if ids else "")
