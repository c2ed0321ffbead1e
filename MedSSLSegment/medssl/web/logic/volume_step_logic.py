"""Step 1: nodes of the scene in lists, and the chosen ones in the session."""

from __future__ import annotations

from typing import Any

from trame_server import Server
from trame_server.utils.typed_state import TypedState
from trame_slicer.app.ui import SegmentEditState

from ...errors import InputError
from ...scene import nodes
from ...segmentation import default_color
from ..documents import Documents, Opened
from ..ui.parts import Choice
from ..ui.volume_step_ui import VolumeStepState, VolumeStepUI
from ..work import Work
from .section import SectionLogic

__all__ = ["VolumeStepLogic"]


class VolumeStepLogic(SectionLogic[VolumeStepState]):
    """Chooses what is worked on.

    Args:
        server: holds the page's state.
        work: what is worked on.
        documents: know what there is.
    """

    def __init__(self, server: Server, work: Work, documents: Documents) -> None:
        super().__init__(server, work, VolumeStepState)
        self._documents = documents
        self._edited = TypedState(server.state, SegmentEditState)
        self._shown_name = ("", "")
        """Id and name of the segment in hand."""
        work.editor.segmentation_modified.connect(self._show_name)
        work.editor.active_segment_id_changed.connect(self._show_name)
        self.bind_changes({self.name.volume: self._on_chosen, self.name.segmentation: self._on_chosen})

    def set_ui(self, ui: VolumeStepUI) -> None:
        """Listen to the widgets."""
        ui.new_segmentation_clicked.connect(lambda: self.work.attempt(self.begin_segmentation))
        ui.add_segment_clicked.connect(self.add_segment)

    def choose(self, opened: Opened) -> None:
        """Work on what was opened; what it lacks stays as it is, or is made."""
        volume = opened.volume_node or self.session.volume_node
        segmentation = opened.segmentation_node
        if segmentation is None and opened.volume_node is None:
            segmentation = self.session.segmentation_node
        if volume is not None and segmentation is None:
            segmentation = self._new_segmentation(volume)
        self._work_on(volume, segmentation)

    def begin_segmentation(self) -> None:
        """Begin another segmentation of the chosen volume."""
        volume = self.session.volume_node
        if volume is None:
            raise InputError("Open a volume first.")
        self._work_on(volume, self._new_segmentation(volume))

    def add_segment(self) -> None:
        """Add a segment, and take it in hand; its colour is told apart from those of the others."""
        known = {segment.name for segment in self.session.segments()}
        number = next(n for n in range(1, len(known) + 2) if f"Segment {n}" not in known)
        color = list(default_color(len(known) + 1))
        self.work.editor.add_empty_segment(segment_name=f"Segment {number}", segment_color=color)

    def show(self) -> None:
        """Show what there is to choose from."""
        self.data.volumes = [_choice(node) for node in self._documents.volumes()]
        self.data.segmentations = [_choice(node) for node in self._documents.segmentations()]
        self.data.volume = _id(self.session.volume_node)
        self.data.segmentation = _id(self.session.segmentation_node)
        self.data.is_locked = self.work.is_running

    def _show_name(self, *_: Any) -> None:
        """Show a name that has changed, by an undo for example; what somebody is typing stays as long as it has not."""
        segment = self.work.editor.get_segment_properties(self.work.segment)
        latest = (self.work.segment, segment.name if segment else "")
        if latest != self._shown_name:
            self._shown_name = latest
            self._edited.data.segment_state.name = latest[1]

    def _on_chosen(self, *_: Any) -> None:
        volume = self.scene.GetNodeByID(self.data.volume)
        segmentation = self.scene.GetNodeByID(self.data.segmentation)
        if (volume, segmentation) != (self.session.volume_node, self.session.segmentation_node):
            self.work.attempt(lambda: self._switch(volume, segmentation))

    def _switch(self, volume: Any, segmentation: Any) -> None:
        """Work on what was chosen; a volume brings its own segmentation, that of another one would lie over it."""
        is_other_volume = volume is not None and volume is not self.session.volume_node
        if is_other_volume and segmentation is self.session.segmentation_node:
            own = self._documents.segmentations_of(volume)
            segmentation = own[-1] if own else self._new_segmentation(volume)
        self._work_on(volume, segmentation)

    def _new_segmentation(self, volume: Any) -> Any:
        name = self.scene.GenerateUniqueName(f"{volume.GetName()} segmentation")
        return nodes.create_segmentation_node(self.scene, volume, name)

    def _work_on(self, volume: Any, segmentation: Any) -> None:
        if self.work.is_running:
            raise InputError(
                "Wait for what runs, or cancel it, before you choose another volume or segmentation."
            )
        self._documents.remember(Opened(volume, segmentation))
        for node in self._documents.segmentations():
            node.SetDisplayVisibility(node is segmentation)
        self.work.choose(volume, segmentation)
        self.show()


def _choice(node: Any) -> Choice:
    return Choice(node.GetName(), node.GetID())


def _id(node: Any) -> str:
    return "" if node is None else str(node.GetID())
