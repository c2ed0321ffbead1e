"""Fifty interruptions of every kind during requests of every kind: nothing is lost and nothing is left behind."""

from __future__ import annotations

import gc
import itertools
import logging
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("slicer")
vtk = pytest.importorskip("vtk")

from fake_worker_command import FakeCommand  # noqa: E402
from medssl.client import WorkerClient  # noqa: E402
from medssl.errors import MedSSLError  # noqa: E402
from medssl.scene import nodes, writing  # noqa: E402
from medssl.scene.predicting import PredictDesk  # noqa: E402
from medssl.scene.session import PropagateRequest, Session, State  # noqa: E402

SHAPE_KJI = (12, 20, 24)
PATIENCE_S = 60.0
ALLOWANCE_MB = 8.0
"""How much more each process may hold after 200 requests; a volume or a map kept by mistake each time would be more."""


@dataclass(frozen=True, kw_only=True)
class QuickCommand(FakeCommand):
    """Starts the fake worker, whose engine calls bright voxels the segment, at a chosen speed."""

    slice_seconds: float = 0.003

    def environment(self) -> Mapping[str, str]:
        return {**super().environment(), "FAKE_WORKER_SLICE_SECONDS": str(self.slice_seconds)}


class Case:
    """A volume, and a segmentation with one slice of the liver drawn in it."""

    def __init__(self, a_scene: Any) -> None:
        self.volume_node = a_scene.add_volume(a_scene.grids["oblique"], SHAPE_KJI)
        self.volume = nodes.read_volume_node(self.volume_node)
        self.node, (self.liver,) = a_scene.add_segmentation(self.volume_node, "liver")
        self.drawn: dict[int, np.ndarray] = {}
        self.strokes = 0
        self.draw(3)

    def draw(self, index: int) -> None:
        mask = np.zeros(SHAPE_KJI[1:], bool)
        mask[3:9, index : index + 5 + self.strokes % 9] = True
        self.strokes += 1
        writing.write_slices(self.node, self.liver, self.volume, 0, {index: mask})
        self.drawn[index] = mask

    def mask(self) -> np.ndarray:
        return nodes.read_segment(self.node, self.liver, self.volume)

    def drawn_only(self) -> np.ndarray:
        mask = np.zeros(SHAPE_KJI, bool)
        for index, drawn in self.drawn.items():
            mask[index] = drawn
        return mask

    def expected(self) -> np.ndarray:
        """Bright voxels everywhere but on the drawn slices."""
        mask = self.volume.voxels_kji > 0
        for index, drawn in self.drawn.items():
            mask[index] = drawn
        return mask


class Workplace:
    """A front end at work: a session and a prediction desk on one case after the other."""

    def __init__(self, a_scene: Any, client: WorkerClient) -> None:
        self._a_scene, self.client = a_scene, client
        self.session = Session(a_scene.scene, a_scene.logic, client, wait_s=0)
        self.desk = PredictDesk(self.session)
        self.ticket: Any = None
        self.other: Case | None = None
        self.pids: set[int] = set()
        self.case = self.new_case()

    def new_case(self) -> Case:
        self.case = Case(self._a_scene)
        self.session.choose(self.case.volume_node, self.case.node)
        self.until_idle()
        return self.case

    def is_whole(self) -> bool:
        """Whether the case is still in the scene and chosen."""
        chosen = self.session.volume_node, self.session.segmentation_node
        return chosen == (self.case.volume_node, self.case.node)

    def poll(self) -> None:
        self.session.poll()
        self.desk.poll()
        if self.client.status.pid is not None:
            self.pids.add(self.client.status.pid)

    def until_idle(self) -> None:
        self.until(
            lambda: (
                self.session.status.state is not State.RUNNING
                and not self.session.is_looking
                and not self.session.prompts.is_waiting
                and not self.desk.is_running
                and (self.ticket is None or self.ticket.done)
            )
        )

    def until(self, is_enough: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        self.poll()
        while not is_enough():
            assert time.monotonic() < deadline_s
            time.sleep(0.002)
            self.poll()

    def retry(self, act: Callable[[], object]) -> None:
        """Begin something as soon as the volume has been read."""
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            try:
                act()
                return
            except MedSSLError as error:
                if "still being read" not in str(error) or time.monotonic() > deadline_s:
                    raise
                time.sleep(0.002)

    # Requests

    def propagate(self, **options: Any) -> None:
        self.session.start(PropagateRequest(model="steady", **options))

    def correct(self) -> None:
        self.propagate()
        self.until_idle()
        self.case.draw(8)
        self.propagate(only_changed=True)

    def prompt(self) -> None:
        position = (self.case.volume.ijk_to_ras @ [7, 5, 6, 1.0])[:3].tolist()
        self.retry(lambda: self.session.prompts.add_point(self.case.liver, position, 0, True))

    def refine(self) -> None:
        self.ticket = self.client.refine(self.case.volume, self.case.expected(), model="steady")

    def predict(self) -> None:
        self.retry(lambda: self.desk.predict("steady"))

    def segment(self) -> None:
        self.retry(lambda: self.desk.segment_everything("steady"))

    def survey(self) -> None:
        self.session.look()

    # Interruptions

    def kill(self) -> None:
        pid = self.client.status.pid
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            self.until(lambda: self.client.status.pid != pid)

    def cancel(self) -> None:
        self.session.cancel()
        self.desk.cancel()
        self.session.prompts.drop()
        if self.ticket is not None:
            self.ticket.cancel()

    def close_scene(self) -> None:
        self._a_scene.scene.Clear(False)

    def delete_volume(self) -> None:
        self._a_scene.scene.RemoveNode(self.case.volume_node)

    def delete_segmentation(self) -> None:
        self._a_scene.scene.RemoveNode(self.case.node)

    def switch(self) -> None:
        self.other = Case(self._a_scene)
        self.session.choose(self.other.volume_node, self.other.node)

    def rename(self) -> None:
        self.case.node.GetSegmentation().GetSegment(self.case.liver).SetName("hepar")


REQUESTS = ("propagate", "correct", "prompt", "refine", "predict", "segment", "survey")
INTERRUPTIONS = (
    "kill",
    "cancel",
    "close_scene",
    "delete_volume",
    "delete_segmentation",
    "switch",
    "rename",
)


@pytest.fixture
def a_workplace(a_scene: Any) -> Iterator[Workplace]:
    with WorkerClient(QuickCommand()) as client:
        yield Workplace(a_scene, client)


@pytest.fixture
def vtk_log(tmp_path: Path) -> Iterator[Path]:
    """Where VTK writes its errors."""
    path = tmp_path / "vtk.log"
    before, window = vtk.vtkOutputWindow.GetInstance(), vtk.vtkFileOutputWindow()
    window.SetFileName(str(path))
    window.SetFlush(True)
    vtk.vtkOutputWindow.SetInstance(window)
    yield path
    vtk.vtkOutputWindow.SetInstance(before)


def the_fifty(seed: int) -> list[tuple[str, str]]:
    """Every interruption of every request once, and one more, in any order."""
    draw = random.Random(seed)
    pairs = list(itertools.product(REQUESTS, INTERRUPTIONS))
    pairs.append(draw.choice(pairs))
    draw.shuffle(pairs)
    return pairs


def zombies() -> list[str]:
    """Ended children that nobody has taken leave of."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:  # has gone meanwhile
            continue
        if int(parent) == os.getpid() and state == "Z":
            found.append(stat.parent.name)
    return found


def check_what_is_there(place: Workplace, before: np.ndarray) -> None:
    """Every slice of the segment is as it was before or as it was found, and one undo takes it back."""
    case = place.case
    mask, found = case.mask(), case.volume.voxels_kji > 0
    for index in range(SHAPE_KJI[0]):
        is_found = np.array_equal(mask[index], found[index])
        assert is_found or np.array_equal(mask[index], before[index])
    assert len(nodes.list_segments(case.node)) == 1
    if place.session.segmentation_node is case.node and not np.array_equal(mask, before):
        place.session.undo()
        np.testing.assert_array_equal(case.mask(), before)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for zombies in /proc")
def test_fifty_interruptions_lose_nothing_and_leave_nothing_behind(
    a_workplace: Workplace, vtk_log: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place, draw = a_workplace, random.Random(7)
    for number, (request, interruption) in enumerate(the_fifty(seed=7)):
        if not place.is_whole() or nodes.list_segments(place.case.node)[0].name != "liver":
            place.new_case()
        getattr(place, request)()
        before = place.case.mask()
        for _ in range(draw.randrange(25)):
            place.poll()
            time.sleep(0.002)
        getattr(place, interruption)()
        place.until_idle()
        what = f"{number}: {interruption} during {request}"
        if place.case.node.GetScene() is not None and place.case.volume_node.GetScene() is not None:
            check_what_is_there(place, before)
        if place.other is not None:
            np.testing.assert_array_equal(place.other.mask(), place.other.drawn_only(), err_msg=what)
            place.other = None
        if not place.is_whole():
            place.new_case()
        place.ticket = None
        drawn = place.case.mask()
        place.propagate()
        place.until_idle()
        assert place.session.status.state is State.DONE, what
        np.testing.assert_array_equal(place.case.mask(), place.case.expected(), err_msg=what)
        place.session.undo()
        np.testing.assert_array_equal(place.case.mask(), drawn, err_msg=what)
    assert zombies() == []
    place.client.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in place.pids)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert not vtk_log.exists() or "ERROR" not in vtk_log.read_text()


def test_a_segment_renamed_under_a_prediction_gets_the_rest_of_its_slices(a_workplace: Workplace) -> None:
    place = a_workplace
    place.predict()
    place.rename()
    place.until_idle()
    assert [segment.name for segment in nodes.list_segments(place.case.node)] == ["hepar"]
    np.testing.assert_array_equal(place.case.mask(), place.case.expected())
    assert place.desk.message == "Found 1 segment. 1 drawn slice stays as it is."


def test_a_prediction_never_goes_into_a_case_that_was_chosen_later(a_workplace: Workplace) -> None:
    place = a_workplace
    place.predict()
    place.until(lambda: place.case.mask().sum() > place.case.drawn_only().sum())
    place.switch()
    place.until_idle()
    assert place.other is not None
    np.testing.assert_array_equal(place.other.mask(), place.other.drawn_only())
    assert "another volume or segmentation was chosen" in place.desk.message


def test_removing_a_segment_under_a_prediction_ends_it(a_workplace: Workplace) -> None:
    place = a_workplace
    place.predict()
    place.until(lambda: place.case.mask().sum() > place.case.drawn_only().sum())
    place.case.node.GetSegmentation().RemoveSegment(place.case.liver)
    place.until_idle()
    assert nodes.list_segments(place.case.node) == ()
    assert "a segment was removed" in place.desk.message


def test_a_reference_slice_that_is_drawn_anew_is_tracked_again(a_workplace: Workplace) -> None:
    place = a_workplace
    for _ in range(2):
        place.correct()
        place.until_idle()
        assert place.session.status.state is State.DONE
    place.session.wait_s = None
    with pytest.raises(MedSSLError, match="No slice was drawn or corrected"):
        place.propagate(only_changed=True)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the resident memory in /proc")
def test_two_hundred_requests_leave_the_memory_of_both_ends_as_it_was(a_scene: Any) -> None:
    with WorkerClient(QuickCommand(slice_seconds=0.0)) as client:
        check_memory(Workplace(a_scene, client))


def check_memory(place: Workplace) -> None:
    draw = random.Random(3)

    def work(count: int) -> None:
        for _ in range(count):
            place.case.draw(3)
            getattr(place, draw.choice(("propagate", "prompt", "refine", "predict", "segment", "survey")))()
            place.until_idle()
            place.ticket = None

    def resident_mb() -> np.ndarray:
        gc.collect()
        pids = (os.getpid(), place.client.status.pid)
        pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids]
        return np.array(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20

    work(45)  # fills the history's levels of undo and the allocators' pools
    before = resident_mb()
    work(200)
    assert (resident_mb() - before < ALLOWANCE_MB).all()
