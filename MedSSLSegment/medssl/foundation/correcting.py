"""Points that correct an answer, and several answers to one click or box, whichever image predictor gave them.

What a box, or else the first click on the object, has found is shown to the model again with all the points. That is
how the models were taught (SAM, section 3 of Kirillov et al. 2023, "Segment Anything": each further point comes with
the mask found before), and a correction changes what is wrong instead of beginning anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from ..metrics import dice
from ..prompts import SlicePrompt
from .protocols import Prediction

__all__ = ["Corrections", "chosen", "is_corrected"]

_LOOKS_THE_SAME = 0.9
"""Dice from which on two answers are one for a person."""


class Corrections:
    """Answers the prompts on one slice in two steps where there is something to correct."""

    def __init__(self) -> None:
        self._first: tuple[SlicePrompt, Prediction] | None = None

    def forget(self) -> None:
        """Another slice is looked at."""
        self._first = None

    def answer(
        self, prompt: SlicePrompt, ask: Callable[[SlicePrompt, Prediction | None], Prediction]
    ) -> Prediction:
        """Answer a prompt; what was found before the corrections is remembered for the next ones.

        Args:
            prompt: what is asked.
            ask: answers a prompt, given what was found before its corrections; None where there are none.
        """
        first = _without_corrections(prompt)
        if first is None:
            return ask(prompt, None)
        if self._first is None or not self._first[0].is_like(first):
            self._first = first, ask(first, None)
        found = self._first[1]
        return ask(prompt, found) if is_corrected(prompt) else found


def is_corrected(prompt: SlicePrompt) -> bool:
    """Whether points say more than where the object is: it is known from a box, a mask or the first click."""
    is_known = prompt.box_xyxy_px is not None or prompt.mask is not None
    return len(prompt.points_xy_px) > (0 if is_known else 1)


def _without_corrections(prompt: SlicePrompt) -> SlicePrompt | None:
    """The box alone, or else the first point on the object; None where a mask says it, or nothing does."""
    if prompt.mask is not None:
        return None
    if prompt.box_xyxy_px is not None:
        return SlicePrompt(prompt.axis, prompt.index, box_xyxy_px=prompt.box_xyxy_px, choice=prompt.choice)
    on = np.flatnonzero(prompt.point_labels == 1)[:1]
    return (
        SlicePrompt(
            prompt.axis, prompt.index, prompt.points_xy_px[on], prompt.point_labels[on], choice=prompt.choice
        )
        if len(on)
        else None
    )


def chosen(answers: Iterable[Prediction], choice: int) -> Prediction:
    """One of the answers to a click or a box that a person can tell apart.

    Args:
        answers: at least one, the likeliest first; no more of them are looked at than are needed.
        choice: 0 for the first, and so on; behind the last one it begins anew.
    """
    distinct: list[Prediction] = []
    for answer in answers:
        if all(dice(answer.mask, other.mask) < _LOOKS_THE_SAME for other in distinct):
            distinct.append(answer)
        if len(distinct) > choice:
            break
    return distinct[choice % len(distinct)]
