from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from medssl.errors import InputError, ModelError
from medssl.foundation.protocols import TrackedSlice, TrackJob
from medssl.messages import Predict, Propagate
from medssl.prompts import Reference, SlicePrompt
from medssl.registry import DEFAULT_MODEL
from medssl.serving.engine import EngineBackend, SessionKeeper
from medssl.volume import Volume, Window

WINDOW = Window(40, 400)


class CountingTracker:
    """Knows only the references of the sessions it opened."""

    def __init__(self) -> None:
        self.sessions: list[CountingSession] = []

    def open(self, volume: Volume, axis: int, window: Window) -> CountingSession:
        self.sessions.append(CountingSession())
        return self.sessions[-1]


class CountingSession:
    def __init__(self) -> None:
        self.references: set[tuple[int, int]] = set()

    def add_reference(self, object_id: int, prompt: SlicePrompt) -> TrackedSlice:
        self.references.add((object_id, prompt.index))
        return TrackedSlice(object_id, prompt.index, np.ones((2, 2), bool), None, 1.0)

    def remove_reference(self, object_id: int, index: int) -> None:
        self.references.remove((object_id, index))

    def run(self, jobs: Sequence[TrackJob]) -> Iterator[list[tuple[TrackJob, TrackedSlice]]]:
        yield from ()

    def drop(self, job: TrackJob) -> None: ...


def test_a_second_run_on_a_volume_finds_its_session_without_the_old_references(
    volume: Volume, reference: Reference
) -> None:
    tracker = CountingTracker()
    keeper = SessionKeeper(tracker)
    session = keeper.open(volume, 0, WINDOW)
    session.add_reference(0, reference.prompt)
    session.add_reference(1, reference.prompt)
    session.remove_reference(1, 3)
    again = keeper.open(volume, 0, WINDOW)
    assert again is session
    assert len(tracker.sessions) == 1
    assert tracker.sessions[0].references == set()


def test_only_the_sessions_used_last_are_kept(make_volume: Callable[..., Volume]) -> None:
    tracker = CountingTracker()
    keeper = SessionKeeper(tracker)
    first, second, third = (make_volume(seed=seed) for seed in range(3))
    for volume in (first, second, first, third, first):
        keeper.open(volume, 0, WINDOW)
    assert len(tracker.sessions) == 3
    keeper.open(second, 0, WINDOW)
    assert len(tracker.sessions) == 4


def test_forgetting_a_volume_drops_the_sessions_on_it_and_on_its_crops(
    make_volume: Callable[..., Volume],
) -> None:
    whole, crop = make_volume(seed=1), make_volume(seed=2)
    tracker = CountingTracker()
    keeper = SessionKeeper(tracker)
    keeper.working_for = whole.content_hash
    keeper.open(crop, 0, WINDOW)
    keeper.forget(crop.content_hash)
    keeper.open(crop, 0, WINDOW)
    assert len(tracker.sessions) == 1
    keeper.forget(whole.content_hash)
    keeper.open(crop, 0, WINDOW)
    assert len(tracker.sessions) == 2


def test_the_memory_a_request_needs_is_told_without_loading_torch() -> None:
    script = """
import sys
import numpy as np
from medssl.serving.engine import EngineBackend
from medssl.messages import Predict
from medssl.prompts import SlicePrompt
from medssl.volume import Volume
volume = Volume(np.arange(8, dtype=np.int16).reshape(2, 2, 2), np.eye(4))
box = SlicePrompt(0, 0, box_xyxy_px=np.array([1, 2, 3, 4], np.float32))
needs = [EngineBackend().bytes_needed(Predict("", "", box, None, m), volume) for m in ("sam-vit-b", "sam-vit-h")]
assert 1e9 < needs[0] < needs[1] < 20e9, needs
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_an_unknown_model_is_named_before_anything_is_loaded(volume: Volume, click: SlicePrompt) -> None:
    with pytest.raises(ModelError, match="There is no model 'magic'"):
        EngineBackend().bytes_needed(Predict("", "", click, None, "magic"), volume)


@pytest.mark.parametrize(
    "options", [{"axes": 1}, {"direction": "up"}, {"window": {"level": "high", "width": 1}}]
)
def test_an_option_the_engine_does_not_know_is_an_input_error(
    volume: Volume, reference: Reference, options: dict[str, object]
) -> None:
    request = Propagate(volume.content_hash, (reference,), options, DEFAULT_MODEL, "cpu")
    with pytest.raises(InputError, match="PropagateOptions"):
        next(EngineBackend().compute(volume, request, lambda: False))
