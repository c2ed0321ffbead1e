"""A prompt answered on the spot: the mask appears on the slice, and becomes the segment's when it is accepted.

The preview is a segmentation node of its own that no list shows and no file keeps, so that every view, in a panel or a
browser, draws it as it draws any segment.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import Cancelled, InputError, MedSSLError
from ..prompts import SlicePrompt
from ..registry import DEFAULT_MODEL
from ..results import SliceMask
from . import nodes, tags, writing
from .layers import slice_fingerprint
from .prompting import Mark, Place, PromptBook, as_prompt, place_of

if TYPE_CHECKING:
    from .session import Run, Session

__all__ = ["PromptDesk"]

_PREVIEW_COLOR = (1.0, 0.85, 0.2)
_FILL, _OUTLINE_PX = 0.15, 2
"""Of the preview: what lies under it has to be seen to be judged."""


class PromptDesk:
    """Prompts on the chosen segmentation, and previews of what they come to.

    Args:
        session: knows the chosen nodes, writes what is accepted.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._run: tuple[Place, Run] | None = None
        self._masks: dict[Place, tuple[NDArray[np.bool_], float]] = {}
        self._node: Any = None
        self._undone: dict[Place, tuple[Mark, ...]] = {}
        """Prompts of answers that were taken back, and of those brought back since."""
        self.place: Place | None = None
        """The slice in hand: the one prompted last, or the one with prompts that was looked at since."""
        self.message = ""
        """One sentence: what to do next, or what went wrong."""
        self.model = DEFAULT_MODEL
        """Model id of the registry that answers."""
        self._image: tuple[object, ...] = ()
        """What the volume's image was, and where, when a prompt was last answered."""
        self._looked_at: tuple[int, int, SlicePrompt | None] | None = None
        """Axis and index of the slice in view, and what a click would ask there; None where the worker knows."""
        self._telling: Run | None = None
        self._accepts_answer = False
        self._asks_another = False
        """Whether the answer under way was asked for in place of the one that is shown."""
        self.accepted: Callable[[], None] = lambda: None
        """Called when an answer that was accepted before it was here has become the segment's."""

    # Looking

    def look_at(self, axis: int, index: int) -> None:
        """Tell the worker which slice is in view, so that it is encoded by the time a prompt is placed.

        Call it whenever the view moves while a prompt tool is in hand; it costs nothing. While one word is under way,
        only the newest of the next ones is kept.

        Args:
            axis: slice axis of the view; see `axis_of_normal` for oblique ones.
            index: slice index along it.
        """
        self.return_to(axis, index)
        self._looked_at = axis, index, None
        self._tell()

    def foresee(self, segment: str, position_ras_mm: Sequence[float], axis: int, positive: bool) -> None:
        """Have the worker answer ahead what a click would ask where the mouse rests.

        Call it whenever the mouse has come to rest with a point tool in hand. A click at that very place is answered
        from it; nothing is shown before.

        Args:
            segment: id of the segment.
            position_ras_mm: (3,) in the world; beside the volume nothing happens.
            axis: slice axis of the view.
            positive: on the object, or off it.
        """
        volume = self._session.ready_volume
        if volume is None or self._session.segmentation_node is None or self.is_waiting:
            return
        try:
            place, point = place_of(volume, segment, position_ras_mm, axis)
        except InputError:  # there is nothing to be asked there
            return
        prompt = as_prompt(place, (*self._book().marks(place), Mark("point", (point,), positive)))
        if prompt is not None:
            self._looked_at = place.axis, place.index, prompt
            self._tell()

    def return_to(self, axis: int, index: int) -> None:
        """Take a slice in hand that is looked at again, if prompts wait on it: what can be seen can be decided about.

        Args:
            axis: slice axis of the view.
            index: slice index along it.
        """
        waiting = [place for place in self.pending() if (place.axis, place.index) == (axis, index)]
        if not waiting or self.place in waiting or self._run is not None:
            return
        self.place = waiting[-1]
        if self.place in self._masks:
            self.message = self._sureness(self.place)
        else:
            self.message = "This slice has prompts; Enter asks for the preview again, Esc drops it."

    def _tell(self) -> None:
        if self._looked_at is None or self.is_telling:
            return
        try:
            volume = self._session.volume()
        except InputError:  # not there, or still being read: whoever needs it says so
            return
        (axis, index, prompt), self._looked_at = self._looked_at, None
        self._telling = self._session.client.expect(
            volume, axis, index, model=self.model, device=self._session.device, prompt=prompt
        )

    @property
    def is_telling(self) -> bool:
        """Whether the worker is being told which slice is in view; `poll` follows it up."""
        return self._telling is not None and not self._telling.done

    # Placing

    def add_point(self, segment: str, position_ras_mm: Sequence[float], axis: int, positive: bool) -> Place:
        """Place a point; the preview of its slice follows.

        Args:
            segment: id of the segment.
            position_ras_mm: (3,) in the world.
            axis: slice axis of the view it was placed in; see `axis_of_normal` for oblique ones.
            positive: on the object, or off it.

        Raises:
            InputError: outside of the volume, or the volume is still being read.
        """
        return self._add("point", segment, [position_ras_mm], axis, positive)

    def add_box(
        self,
        segment: str,
        corner_ras_mm: Sequence[float],
        opposite_ras_mm: Sequence[float],
        axis: int,
    ) -> Place:
        """Place a box by two opposite corners; of several on a slice the last one counts."""
        return self._add("box", segment, [corner_ras_mm, opposite_ras_mm], axis, True)

    def add_scribble(
        self, segment: str, way_ras_mm: Sequence[Sequence[float]], axis: int, positive: bool
    ) -> Place:
        """Place a scribble, given by the positions it went through."""
        return self._add("scribble", segment, way_ras_mm, axis, positive)

    def _add(
        self, kind: Any, segment: str, positions: Sequence[Sequence[float]], axis: int, positive: bool
    ) -> Place:
        volume = self._session.volume()
        # All of a prompt belongs to the slice through its middle: on an oblique view it may cross several.
        place, _ = place_of(volume, segment, positions[len(positions) // 2], axis)
        points = tuple(place_of(volume, segment, position, axis)[1] for position in positions)
        if kind == "box":
            place, _ = place_of(volume, segment, np.mean(np.asarray(positions, float), axis=0).tolist(), axis)
            (x0, y0), (x1, y1) = points
            if x0 == x1 or y0 == y1:
                raise InputError("The box is empty; draw it from one corner to the opposite one.")
        self._undone.pop(place, None)
        self._book().add(place, Mark(kind, points, positive))
        self._book().note_pending(place, True)
        self._session.move_on()
        self.ask(place)
        return place

    def marks(self, place: Place) -> tuple[Mark, ...]:
        """What was placed on a slice."""
        return self._book().marks(place) if self._session.segmentation_node else ()

    def places(self) -> tuple[Place, ...]:
        """Every slice with prompts on it, accepted or not."""
        return self._book().places() if self._session.segmentation_node else ()

    def pending(self) -> tuple[Place, ...]:
        """Slices whose prompts were neither accepted nor dropped, the one prompted last at the end."""
        if not self._session.segmentation_node:
            return ()
        ids = {segment.id for segment in self._session.segments()}
        return tuple(place for place in self._book().pending() if place.segment in ids)

    # Asking and deciding

    def restore(self) -> None:
        """Take up what a saved scene holds: the slice prompted last is in hand again, its preview not asked for yet.

        The worker starts when the person goes on: `accept` then asks for the preview first.
        """
        waiting = self.pending()
        if self.place is None and waiting:
            self.place = waiting[-1]
            what = "1 slice has" if len(waiting) == 1 else f"{len(waiting)} slices have"
            self.message = f"{what} prompts from before; Enter asks for the preview again, Esc drops it."

    def ask(self, place: Place) -> None:
        """Have the prompts of a slice answered again, e.g. when it is looked at after a scene was opened."""
        self._stop()
        self.place = place
        prompt = as_prompt(place, self._book().marks(place))
        if prompt is None:
            self._masks.pop(place, None)
            self._show(place, None)
            self.message = "Put a point or a box on the object."
            return
        volume = self._session.volume()
        self.message = "Looking at the slice..."
        run = self._session.client.predict(
            volume, prompt, segment=place.segment, model=self.model, device=self._session.device
        )
        self._run = place, run
        self._image = nodes.image_stamp(self._session.volume_node)

    @property
    def is_waiting(self) -> bool:
        """Whether an answer is under way."""
        return self._run is not None

    @property
    def previews(self) -> dict[Place, float]:
        """Slices whose preview waits to be accepted, with how sure the model is."""
        return {place: confidence for place, (_, confidence) in self._masks.items()}

    def poll(self) -> None:
        """Take an answer that has arrived."""
        self._tell()
        self._forget_previews_of_another_image()
        self._forget_previews_of_removed_segments()
        if self._run is None:
            return
        if self._session.volume_node is None or self._session.segmentation_node is None:
            self.leave()
            self.message = "The prompt was not answered because its volume or segmentation was removed."
            return
        place, run = self._run
        is_done = run.done
        try:
            for event in run.poll():
                if isinstance(event, SliceMask):
                    self._take(place, event)
            if is_done:
                self._run = None
                run.result()
                self._accept_answer()
        except Cancelled:
            self._run = None
        except MedSSLError as error:
            self._run = None
            self.message = str(error)

    def _take(self, place: Place, answer: SliceMask) -> None:
        before = self._masks.get(place)
        self._masks[place] = answer.mask, answer.confidence
        self._show(place, answer.mask)
        is_as_before = before is not None and np.array_equal(before[0], answer.mask)
        if self._asks_another and is_as_before:
            self._book().take_back(place)
            self.message = "There is no other answer; add points to correct this one, or accept it."
        else:
            self.message = self._sureness(place)

    def _sureness(self, place: Place) -> str:
        """How sure the model is of a preview, and what can be done with it."""
        another = " A shows another answer." if self._is_lone(place) else ""
        return f"{self._masks[place][1]:.0%} sure. Enter accepts, Esc drops.{another}"

    def _forget_previews_of_another_image(self) -> None:
        """A preview holds for the image it was made from; its prompts stay and can be answered again."""
        volume_node = self._session.volume_node
        if volume_node is None or not (self._masks or self._run):
            return
        if nodes.image_stamp(volume_node) != self._image:
            self._forget_previews()
            self.message = "The volume was moved or has got another image; Enter asks for the preview again."

    def _forget_previews_of_removed_segments(self) -> None:
        """There is nothing to accept any more; the prompts come back with a segment that an undo brings back."""
        session = self._session
        if self.place is None and not self._masks:
            return
        if session.segmentation_node is None:
            if self._run is None:  # else `poll` says what has become of it
                self.leave()
            return
        if session.ready_volume is None:
            return
        ids = {segment.id for segment in session.segments()}
        if self.place is not None and self.place.segment not in ids:
            self._stop()
            self.place, self.message = None, ""
        for place in [place for place in self._masks if place.segment not in ids]:
            del self._masks[place]
            self._show(place, None)

    def _accept_answer(self) -> None:
        if self._accepts_answer:
            self._accepts_answer = False
            self.accept()
            self.accepted()

    def accept(self) -> Place:
        """Make the preview of the slice prompted last the segment's: one step of undo, and a reference slice.

        While the answer to its prompts is under way, that answer is what is accepted, once it is here. Where its
        prompts are from a saved scene, the preview is asked for first, and accepted the next time.

        Raises:
            InputError: there is no preview yet, or its segment was removed.
        """
        self._forget_previews_of_another_image()
        place = self.place
        if place is not None and self._run is not None:
            self._accepts_answer = True
            self.message = "Looking at the slice; what is found there will be accepted..."
            return place
        if place is not None and place not in self._masks and place in self.pending():
            self.ask(place)
            return place
        if place is None or place not in self._masks:
            raise InputError("There is nothing to accept yet; put a point or a box on the object first.")
        if place.segment not in {s.id for s in self._session.segments()}:
            self.drop()
            raise InputError("The segment was removed; choose another one.")
        mask, confidence = self._masks[place]
        replaces_drawing = self._replaces_drawing(place, mask)
        step = tags.Step(
            "prompt",
            self.model,
            axis=place.axis,
            references=(place.index,),
            slices=1,
            options={"prompts": len(self.marks(place))},
        )
        losers = self._session.write_slice(place.segment, place.axis, place.index, mask, step)
        del self._masks[place]
        node = self._session.segmentation_node
        tags.note_confidences(node, place.segment, {(place.axis, place.index): confidence})
        self._book().note_pending(place, False)
        self._show(place, None)
        waiting = sorted({other.index for other in self._masks})
        more = f" There is another preview on slice {', '.join(map(str, waiting))}." if waiting else ""
        gave_way = f" {', '.join(losers)} gave way; undo brings it back." if losers else ""
        replaced = (
            " What was drawn on the slice was replaced; undo brings it back." if replaces_drawing else ""
        )
        self.message = f"Accepted.{replaced}{gave_way}{more}"
        return place

    def _replaces_drawing(self, place: Place, mask: NDArray[np.bool_]) -> bool:
        """Whether a mask takes away some of what a person has drawn on a slice, by hand and not by an answer."""
        node, volume = self._session.segmentation_node, self._session.volume()
        before = nodes.read_slice(node, place.segment, volume, place.axis, place.index)
        if not (before & ~mask).any():
            return False
        mark, slice_ = slice_fingerprint(before), (place.axis, place.index)
        answers = {each for step in self._accepted_on(place) for each in step.marks}
        return mark not in answers and tags.predicted_slices(node, place.segment).get(slice_) != mark

    def drop(self) -> None:
        """Forget the prompts and the preview of the slice prompted last."""
        self._stop()
        if self.place is not None and self._session.segmentation_node:
            self._book().replace(self.place, ())
            self._book().note_pending(self.place, False)
            self._masks.pop(self.place, None)
            self._show(self.place, None)
        self.message = ""

    def note_history(self) -> None:
        """Forget what was said of an accepted preview: it may have been undone, or brought back, as may a segment.

        Prompts go, and come back, with the answer that was accepted to them.
        """
        self._forget_previews_of_removed_segments()
        if self._session.segmentation_node is not None:
            self._take_prompts_along()
        if self._run is None and self.place not in self.pending():
            self.message = ""
        self.restore()

    def _take_prompts_along(self) -> None:
        book, pending = self._book(), self.pending()
        for place in {*book.places(), *self._undone}.difference(pending):
            count = self._accepted_prompts(place)
            known = max(book.marks(place), self._undone.get(place, ()), key=len)
            if count is not None and count <= len(known):
                self._undone[place] = known
                book.replace(place, known[:count])

    def _accepted_prompts(self, place: Place) -> int | None:
        """How many prompts on a slice the last answer accepted there was given to; None where that is not known."""
        if answers := self._accepted_on(place):
            return answers[-1].options.get("prompts")
        is_there = place.segment in {s.id for s in self._session.segments()}
        done = tags.steps(self._session.segmentation_node, place.segment)
        return 0 if is_there and len(done) < tags.STEPS_KEPT else None

    def _accepted_on(self, place: Place) -> list[tags.Step]:
        """The answers that were accepted on a slice, oldest first."""
        return [
            step
            for step in tags.steps(self._session.segmentation_node, place.segment)
            if step.what == "prompt" and (step.axis, *step.references) == (place.axis, place.index)
        ]

    def take_back(self) -> None:
        """Take back the last prompt of the slice prompted last; the preview follows."""
        if self.place is None or not self._book().take_back(self.place):
            raise InputError("There is no prompt on this slice to take back.")
        self.ask(self.place)

    def show_another(self) -> None:
        """Show the next answer to the click or the box on the slice prompted last; `take_back` shows the one before.

        While an answer is under way nothing happens.

        Raises:
            InputError: no preview of a single click or box is shown.
        """
        if self.is_waiting:
            return
        if self.place is None or not self.has_another:
            raise InputError(
                "Only the preview of a single click or box has other answers; add points to correct this one."
            )
        self._book().add(self.place, Mark("another"))
        self.ask(self.place)
        self._asks_another = True

    @property
    def has_another(self) -> bool:
        """Whether another answer can be asked for: one to a single click or box is shown."""
        place = self.place
        return place is not None and place in self._masks and not self.is_waiting and self._is_lone(place)

    def _is_lone(self, place: Place) -> bool:
        """Whether one click on the object, or one box, and nothing else, waits to be decided on a slice."""
        if place not in self.pending():
            return False
        prompt = as_prompt(place, self._book().marks(place))
        return prompt is not None and len(prompt.points_xy_px) == (1 if prompt.box_xyxy_px is None else 0)

    def leave(self) -> None:
        """Stop and show nothing; the prompts stay with their segmentation."""
        self._looked_at = None
        self.place, self.message = None, ""
        self._undone.clear()
        self._forget_previews()

    def _forget_previews(self) -> None:
        self._stop()
        self._masks.clear()
        self._image = ()  # it would keep the volume's memory
        if self._node is not None and self._session.scene.IsNodePresent(self._node):
            self._session.scene.RemoveNode(self._node)
        self._node = None

    def _book(self) -> PromptBook:
        node = self._session.segmentation_node
        if node is None:
            raise InputError("No segmentation is chosen; choose one, or make one, and add a segment.")
        return PromptBook(node)

    def _stop(self) -> None:
        self._accepts_answer = self._asks_another = False
        if self._run is not None:
            self._run[1].cancel()
            self._run = None

    # Showing

    def _show(self, place: Place, mask: NDArray[np.bool_] | None) -> None:
        if mask is None and self._node is None:
            return
        if self._session.volume_node is None:
            return
        volume, node = self._session.volume(), self._preview_node()
        empty = np.zeros([n for a, n in enumerate(volume.shape_kji) if a != place.axis], bool)
        slices = {place.index: empty if mask is None else mask}
        segmentation = node.GetSegmentation()
        if segmentation.GetSegment(place.segment) is None:
            segmentation.AddEmptySegment(place.segment, "preview", _PREVIEW_COLOR)
        writing.write_slices(node, place.segment, volume, place.axis, slices)

    def _preview_node(self) -> Any:
        scene = self._session.scene
        if self._node is None or not scene.IsNodePresent(self._node):
            self._node = nodes.create_segmentation_node(
                scene, self._session.volume_node, "MedSSLSegment preview", for_views_only=True
            )
            display = self._node.GetDisplayNode()
            display.SetOpacity2DFill(_FILL)
            display.SetOpacity2DOutline(1.0)
            display.SetSliceIntersectionThickness(_OUTLINE_PX)
        return self._node
