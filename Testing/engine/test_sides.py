"""A mirrored image never teaches or averages the wrong side, however the sides are written."""

from __future__ import annotations

import pytest
from medssl.few_labels.sides import is_lateral, mirrored

PAIRS = [
    ("kidney_left", "kidney_right"),
    ("left kidney", "right kidney"),
    ("Left kidney", "Right kidney"),
    ("KidneyLeft", "KidneyRight"),
    ("LeftKidney", "RightKidney"),
    ("kidney-left", "kidney-right"),
    ("kidneyL", "kidneyR"),
    ("Parotid_L", "Parotid_R"),
    ("lung_l", "lung_r"),
    ("LUNG L", "LUNG R"),
    ("Lung_Lt", "Lung_Rt"),
    ("Niere links", "Niere rechts"),
    ("rein gauche", "rein droit"),
    ("glande surrénale gauche", "glande surrénale droite"),
    ("riñón izquierdo", "riñón derecho"),
    ("rene sinistro", "rene destro"),
    ("Lower lobe of left lung", "Lower lobe of right lung"),
    ("left rib 1", "right rib 1"),
]


@pytest.mark.parametrize(("left", "right"), PAIRS)
def test_each_side_is_the_other_one_in_a_mirror(left: str, right: str) -> None:
    names = ["spleen", right, left, "left thumb"]
    assert (mirrored(left, names), mirrored(right, names)) == (right, left)
    assert is_lateral(["spleen", left])
    assert is_lateral([right])


@pytest.mark.parametrize(
    "name", ["liver", "bright spot", "aorta", "vertebra L1", "vertebrae_L5", "Nerve R2D2", "cleft"]
)
def test_what_says_no_side_is_itself_in_a_mirror(name: str) -> None:
    assert mirrored(name, [name]) == name
    assert not is_lateral([name])


def test_a_side_without_its_other_is_nothing_in_a_mirror() -> None:
    assert mirrored("left kidney", ["left kidney", "right lung"]) is None
    assert mirrored("left rib 1", ["left rib 1", "right rib 2"]) is None
