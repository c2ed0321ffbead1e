"""What a scene holds from other hands, or from another version of the program, is read as far as it can be."""

from __future__ import annotations

import json
from typing import Any

import pytest

slicer = pytest.importorskip("slicer")

from medssl.scene import tags  # noqa: E402
from medssl.scene.prompting import Mark, Place, PromptBook  # noqa: E402

NONSENSE = (
    "x",
    "3",
    "null",
    "[3]",
    "{}",
    "[{}]",
    '[{"what": 1}]',
    "0/3",
    "7/3/ff",
    "a/b/c",
    "0/3/zz",
    "[[1], 2]",
)


@pytest.fixture
def a_segment(a_scene: Any) -> tuple[Any, str]:
    node, (segment,) = a_scene.add_segmentation(a_scene.add_volume(a_scene.grids["oblique"]), "liver")
    return node, segment


@pytest.mark.parametrize("text", NONSENSE)
def test_tags_that_mean_nothing_say_nothing_and_can_be_written_over(
    a_segment: tuple[Any, str], text: str
) -> None:
    node, segment = a_segment
    for tag in ("Predicted", "Confidence", "Provenance"):
        node.GetSegmentation().GetSegment(segment).SetTag(f"MedSSLSegment.{tag}", text)
    assert tags.predicted_slices(node, segment) == {}
    assert tags.confidences(node, segment) == {}
    assert tags.steps(node, segment) == ()
    tags.add_step(node, segment, tags.Step("prompt", "medssl-nano"))
    tags.note_confidences(node, segment, {(0, 2): 0.5})
    assert [step.what for step in tags.steps(node, segment)] == ["prompt"]
    assert tags.confidences(node, segment) == {(0, 2): 0.5}


def test_what_can_be_read_beside_nonsense_is_kept(a_segment: tuple[Any, str]) -> None:
    node, segment = a_segment
    for tag, text in (
        ("Predicted", "0/3/ff x 0/4 2/5/0a"),
        ("LeftOut", "0/3 9/9 1/2"),
        ("Confidence", "0/3/50 0/4/101"),
    ):
        node.GetSegmentation().GetSegment(segment).SetTag(f"MedSSLSegment.{tag}", text)
    assert tags.predicted_slices(node, segment) == {(0, 3): 255, (2, 5): 10}
    assert tags.left_out(node, segment) == {(0, 3), (1, 2)}
    assert tags.confidences(node, segment) == {(0, 3): 0.5}


def test_a_step_that_a_later_version_tells_more_about_is_understood(a_segment: tuple[Any, str]) -> None:
    node, segment = a_segment
    later = [
        {"what": "propagate", "model": "m", "references": [3], "missed": [[1, 2]], "mood": "good"},
        {"mood": 1},
    ]
    node.GetSegmentation().GetSegment(segment).SetTag("MedSSLSegment.Provenance", json.dumps(later))
    assert tags.steps(node, segment) == (tags.Step("propagate", "m", references=(3,), missed=((1, 2),)),)


@pytest.mark.parametrize(
    "entries",
    [3, {}, [3], [["point", True]], [["point", True, []]], [["box", True, [[1, 2]]]], [["scribble", True, []]],
     [["spell", True, [[1, 2]]]], [["point", "yes", [[1, 2]]]]],
)  # fmt: skip
def test_prompts_that_nobody_could_have_placed_are_passed_over(
    a_segment: tuple[Any, str], entries: object
) -> None:
    node, segment = a_segment
    place, other = Place(segment, 0, 3), Place(segment, 0, 4)
    good = [["point", True, [[1, 2]]]]
    node.SetAttribute(
        "MedSSLSegment.Prompts", json.dumps({segment: {"0/3": entries, "0/4": good, "9": good}})
    )
    node.SetAttribute(
        "MedSSLSegment.PendingPrompts", json.dumps([[segment, 0, 3], 3, [segment, 0, 4], [[], 1]])
    )
    book = PromptBook(node)
    assert book.marks(place) == ()
    assert book.marks(other) == (Mark("point", ((1.0, 2.0),)),)
    assert book.pending() == (other,)
    book.add(place, Mark("point", ((5.0, 6.0),)))
    assert book.marks(place) == (Mark("point", ((5.0, 6.0),)),)
    assert book.marks(other) == (Mark("point", ((1.0, 2.0),)),)


@pytest.mark.parametrize("text", NONSENSE)
def test_a_book_of_prompts_that_means_nothing_is_empty(a_segment: tuple[Any, str], text: str) -> None:
    node, segment = a_segment
    for attribute in ("Prompts", "PendingPrompts"):
        node.SetAttribute(f"MedSSLSegment.{attribute}", text)
    book = PromptBook(node)
    assert (book.places(), book.pending()) == ((), ())
    book.note_pending(Place(segment, 0, 3), True)
    book.add(Place(segment, 0, 3), Mark("point", ((5.0, 6.0),)))
    assert book.places() == (Place(segment, 0, 3),)
