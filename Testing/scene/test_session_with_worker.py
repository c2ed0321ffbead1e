"""A session with the real client and a real worker process, whose engine calls bright voxels the segment."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("slicer")

from fake_worker_command import FakeCommand
from medssl.client import WorkerClient
from medssl.scene import nodes, writing
from medssl.scene.session import PropagateRequest, Session, State, Status

SHAPE_KJI = (60, 12, 15)
PATIENCE_S = 60.0


class Desk:
    """A session on a volume of noise whose liver is drawn on slice 3."""

    def __init__(self, a_scene: Any, client: WorkerClient) -> None:
        self.client = client
        volume_node = a_scene.add_volume(a_scene.grids["oblique and left-handed"], SHAPE_KJI)
        self.volume = nodes.read_volume_node(volume_node)
        self.node, (self.liver,) = a_scene.add_segmentation(volume_node, "liver")
        drawn = np.zeros(SHAPE_KJI[1:], bool)
        drawn[3:8, 4:9] = True
        writing.write_slices(self.node, self.liver, self.volume, 0, {3: drawn})
        self.drawn = self.mask()
        self.session = Session(a_scene.scene, a_scene.logic, client)
        self.session.choose(volume_node, self.node)

    def mask(self) -> np.ndarray:
        return nodes.read_segment(self.node, self.liver, self.volume)

    def expected(self) -> np.ndarray:
        """Bright voxels everywhere but on the drawn slice."""
        mask = self.volume.voxels_kji > 0
        mask[3] = self.drawn[3]
        return mask

    def poll_until(self, is_enough: Any) -> Status:
        deadline_s = time.monotonic() + PATIENCE_S
        while not is_enough(self.session.poll()):
            assert time.monotonic() < deadline_s
            time.sleep(0.005)
        return self.session.status

    def finish(self) -> Status:
        return self.poll_until(lambda status: status.state is not State.RUNNING)


@pytest.fixture
def a_desk(a_scene: Any) -> Iterator[Desk]:
    with WorkerClient(FakeCommand()) as client:
        yield Desk(a_scene, client)


def test_every_slice_the_worker_sends_is_in_the_segment_and_one_undo_takes_them_back(a_desk: Desk) -> None:
    a_desk.session.start(PropagateRequest(model="steady"))
    assert a_desk.finish().state is State.DONE
    np.testing.assert_array_equal(a_desk.mask(), a_desk.expected())
    a_desk.session.undo()
    np.testing.assert_array_equal(a_desk.mask(), a_desk.drawn)


def test_after_kill_9_what_had_arrived_stays_undo_works_and_the_next_run_works(a_desk: Desk) -> None:
    a_desk.session.start(PropagateRequest(model="steady"))
    a_desk.poll_until(lambda status: a_desk.mask().sum() > a_desk.drawn.sum())
    os.kill(a_desk.client.status.pid, signal.SIGKILL)
    status = a_desk.finish()
    assert status.state is State.FAILED
    assert "SIGKILL" in status.text
    assert "the next request starts it again" in status.text

    arrived = a_desk.mask().any(axis=(1, 2))
    assert 1 < arrived.sum() < SHAPE_KJI[0]
    np.testing.assert_array_equal(a_desk.mask()[arrived], a_desk.expected()[arrived])
    a_desk.session.undo()
    np.testing.assert_array_equal(a_desk.mask(), a_desk.drawn)

    a_desk.session.start(PropagateRequest(model="steady"))
    assert a_desk.finish().state is State.DONE
    np.testing.assert_array_equal(a_desk.mask(), a_desk.expected())


def test_a_cancelled_run_stops_at_once_and_the_worker_goes_on_serving(a_desk: Desk) -> None:
    a_desk.session.start(PropagateRequest(model="steady"))
    a_desk.poll_until(lambda status: a_desk.mask().sum() > a_desk.drawn.sum())
    pid = a_desk.client.status.pid
    a_desk.session.cancel()
    before = a_desk.mask()
    assert a_desk.session.poll().state is State.CANCELLED
    np.testing.assert_array_equal(a_desk.mask(), before)
    a_desk.session.start(PropagateRequest(model="steady"))
    assert a_desk.finish().state is State.DONE
    assert a_desk.client.status.pid == pid


def test_what_the_engine_refuses_is_said_in_its_own_words(a_desk: Desk) -> None:
    a_desk.session.start(PropagateRequest(model="refusing"))
    status = a_desk.finish()
    assert (status.state, status.text) == (
        State.FAILED,
        "The annotation is empty; draw the organ on one slice.",
    )
