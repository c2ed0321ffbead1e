"""Left and right in the names of segments, so that a mirrored image neither teaches nor averages the wrong side."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["is_lateral", "mirrored"]

_LEFT = "left l lt links linke linker linkes gauche izquierdo izquierda sinistro sinistra sinister sin sx"
_RIGHT = "right r rt rechts rechte rechter rechtes droit droite derecho derecha destro destra dexter dex dx"
_SIDES = dict.fromkeys(_LEFT.split(), "left") | dict.fromkeys(_RIGHT.split(), "right")
_OTHER = {"left": "right", "right": "left"}
_WORD = re.compile(r"[A-Z]?[^\W\d_A-Z]+\d*|[A-Z]+(?![^\W\d_A-Z])\d*|\d+")
"""Of ``KidneyLeft`` Kidney and Left, of ``lung_L`` lung and L; the vertebra L1 is one word, and so says no side."""


def is_lateral(names: Sequence[str]) -> bool:
    """Whether any segment's name says left or right, as a word, in one of five European languages or as L or R."""
    return any(word in _OTHER for name in names for word in _words(name))


def mirrored(name: str, names: Sequence[str]) -> str | None:
    """What a segment is in a mirror: itself, or of `names` that of the other side; None where it is not among them."""
    words = _words(name)
    if not set(words) & set(_OTHER):
        return name
    other = sorted(_OTHER.get(word, word) for word in words)
    return next((each for each in names if sorted(_words(each)) == other), None)


def _words(name: str) -> list[str]:
    """In small letters; those that say a side as "left" and "right"."""
    words = (word.lower() for word in _WORD.findall(name))
    return [_SIDES.get(word, word) for word in words]
