"""What the browser works on: one scene, one session and its desks, kept going whether or not a page is open."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from trame_server.state import State as PageState
from trame_slicer.core import SlicerApp
from undo_stack import Signal

from ..client import WorkerClient
from ..errors import MedSSLError
from ..scene.nodes import SegmentInfo
from ..scene.predicting import PredictDesk
from ..scene.session import Session, State
from ..scene.teaching import TeachDesk
from ..volume import View
from .undo import EditorHistory

__all__ = ["Work"]

_log = logging.getLogger(__name__)

_BUSY_S = 0.03
"""Between two looks at what has arrived, while something is under way."""
_IDLE_S = 0.5
_PROMPT_S = 0.005
"""Between two looks for the answer to a prompt."""
_RUN_S = 2.0
"""Between two questions to a training run."""
_PAINTING_PAUSES_S = 0.3


class Work:
    """One person's work on trame-slicer's scene.

    Args:
        slicer_app: scene, views and segment editor.
        client: the worker.
        cases: case store, None = the usual one.
    """

    said = Signal(str, bool)
    """A sentence for the person, and whether it tells of something that went wrong."""
    chosen = Signal()
    """Another volume or segmentation was chosen."""
    polled = Signal()
    """Something may have changed: show it."""

    def __init__(self, slicer_app: SlicerApp, client: WorkerClient, cases: Path | None = None) -> None:
        self.slicer_app = slicer_app
        self.client = client
        self.editor = slicer_app.segmentation_editor
        self.session = Session(
            slicer_app.scene,
            slicer_app.segmentations_logic,
            client,
            wait_s=0.0,
        )
        self.session.editor_node = self.editor.editor_node
        self.predict = PredictDesk(self.session)
        self.teach = TeachDesk(self.session, "" if cases is None else str(cases))
        self.follows_run = False
        """Whether the training run that is followed is asked for news: the person looks at it."""
        self.view: View | Literal[""] = ""
        """The view whose slices are looked through; empty = the one the person painted in."""
        self._look_at_s: float | None = None
        self._news_at_s = 0.0
        self._wake = asyncio.Event()
        self._listed: tuple[SegmentInfo, ...] = ()
        """The segments the editor has heard of."""
        self._place = 0
        """Of the segment in hand, in the list of segments."""
        self.editor.segmentation_modified.connect(self.look_soon)
        self.editor.segmentation_modified.connect(self._keep_in_hand)
        self.editor.active_segment_id_changed.connect(self._keep_in_hand)

    def share_undo(self) -> None:
        """Make painting and the program's steps one history; called once the segment editor has its logic."""
        self.session.history = EditorHistory(self.editor)

    def choose(self, volume_node: Any, segmentation_node: Any) -> None:
        """Work on these nodes; either may be None."""
        self.session.choose(volume_node, segmentation_node)
        if volume_node is not None and segmentation_node is not None:
            self._edit(segmentation_node, volume_node)
        self.look_soon()
        self.chosen()

    def _edit(self, segmentation_node: Any, volume_node: Any) -> None:
        """Have the segment editor work on a segmentation.

        The wrapper of the one before must stop listening to its node: the node lives on in the scene, and the next
        event would call what Python has thrown away.
        """
        before = self.editor.active_segmentation
        self.editor.set_active_segmentation(segmentation_node, volume_node)
        if before is not None:
            before.segmentation_node.RemoveObserver(before._node_obs)

    @property
    def segment(self) -> str:
        """Id of the segment in hand; empty without one."""
        return str(self.editor.get_active_segment_id() or "")

    def _keep_in_hand(self, *_: Any) -> None:
        """Have a segment in hand as long as there is one: where the one in hand was removed, its neighbour.

        The editor drops one that an undo takes away, or that was the first, and still lists another as chosen.
        """
        ids = self.editor.get_segment_ids()
        if self.segment in ids:
            self._place = ids.index(self.segment)
        elif ids:
            self.editor.set_active_segment_id(ids[min(self._place, len(ids) - 1)])

    @property
    def is_running(self) -> bool:
        """Whether a propagation or a prediction is under way."""
        return self.session.status.state is State.RUNNING or self.predict.is_running

    def attempt(self, action: Callable[[], object]) -> None:
        """Do what the person asked for; what cannot be done is said in one sentence."""
        with self.errors_said():
            action()
        self._wake.set()

    def look_soon(self, *_: Any) -> None:
        """Look through the segments again, once painting has paused."""
        self._look_at_s = time.monotonic() + _PAINTING_PAUSES_S

    async def run(self, page: PageState) -> None:
        """Take what has arrived, for ever: often while something is under way, seldom else.

        Args:
            page: sent to the browsers after every look.
        """
        while True:
            await self._pause(_BUSY_S if self._is_busy else _IDLE_S)
            with page, self.errors_said():  # whatever becomes of one look, the next one follows
                self.poll()

    async def _pause(self, seconds: float) -> None:
        """Wait so long, or until something is asked for, or until a prompt is answered: for that a person waits."""
        end_s = time.monotonic() + seconds
        prompts = self.session.prompts
        while (left_s := end_s - time.monotonic()) > 0 and not self._wake.is_set():
            is_asked = prompts.is_waiting
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), min(left_s, _PROMPT_S) if is_asked else left_s)
            if is_asked and self._is_answered():
                break
        self._wake.clear()

    def _is_answered(self) -> bool:
        """Take the answer to a prompt, if it is there."""
        with self.errors_said():
            self.session.prompts.poll()
        return not self.session.prompts.is_waiting

    def poll(self) -> None:
        """Take what has arrived, and have it shown."""
        was_running = self.is_running
        with self.errors_said():
            self.session.poll()
            self.predict.poll()
            self.teach.poll()
            self._ask_for_news()
        if was_running and not self.is_running:
            self._say_what_failed()
            self.look_soon()
        self._tell_editor()
        self._look_if_due()
        self.polled()

    def _tell_editor(self) -> None:
        """Have the editor list the segments that a prediction has made: it hears of those it makes itself only."""
        if (segments := self.session.segments()) != self._listed:
            self._listed = segments
            self.editor.segmentation_modified()

    @property
    def _is_busy(self) -> bool:
        return (
            self.is_running
            or self.session.is_looking
            or self.session.prompts.is_waiting
            or self.teach.is_waiting
            or self._look_at_s is not None
        )

    def _look_if_due(self) -> None:
        if self._look_at_s is None or self.is_running:
            return
        if time.monotonic() >= self._look_at_s:
            self._look_at_s = None
            self._look()

    def _look(self) -> None:
        volume = self.session.ready_volume if self.view else None
        if self.view and volume is None and self.session.volume_node is not None:
            self.look_soon()  # which axis a view is, the volume says once it has been read
        else:
            self.session.look(volume.axis_of(self.view) if self.view and volume else None)

    def _ask_for_news(self) -> None:
        now_s = time.monotonic()
        if self.follows_run and now_s >= self._news_at_s:
            self._news_at_s = now_s + _RUN_S
            self.teach.look()

    def _say_what_failed(self) -> None:
        status = self.session.status
        if status.state is State.FAILED:
            self.said(status.text, True)

    @contextmanager
    def errors_said(self) -> Iterator[None]:
        """What cannot be done in the block is said in one sentence, and what was not foreseen is logged too."""
        try:
            yield
        except MedSSLError as error:
            self.said(str(error), True)
        except Exception:
            _log.exception("The workstation failed unexpectedly.")
            self.said("MedSSLSegment failed unexpectedly; the terminal it was started from says where.", True)
