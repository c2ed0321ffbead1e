"""What the views say about what they show."""

from __future__ import annotations

import pytest

pytest.importorskip("trame_slicer")

from medssl.web.logic.views_logic import side_of


@pytest.mark.parametrize(
    ("direction_ras", "side"),
    [
        ((1.0, 0.0, 0.0), "R"),
        ((-1.0, 0.0, 0.0), "L"),
        ((0.3, 0.9, 0.1), "A"),
        ((0.3, -0.9, 0.1), "P"),
        ((0.0, 0.6, 0.8), "S"),
        ((0.6, 0.0, -0.8), "I"),
    ],
)
def test_an_edge_of_a_view_bears_the_side_of_the_patient_it_is_nearest_to(
    direction_ras: tuple[float, float, float], side: str
) -> None:
    assert side_of(direction_ras) == side
