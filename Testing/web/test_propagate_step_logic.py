"""What step 3 asks for, on the real scene of trame-slicer; the worker answers nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("trame_slicer")

from fake_client import FakeClient
from medssl.scene import nodes, writing
from medssl.volume import Volume
from medssl.web.logic.propagate_step_logic import PropagateStepLogic
from medssl.web.work import Work
from trame_server import Server
from trame_slicer.core import SlicerApp


def test_the_range_that_was_chosen_for_one_patient_is_not_asked_of_the_next() -> None:
    app = SlicerApp()
    client: Any = FakeClient()
    work = Work(app, client)
    work.session.wait_s = None
    work.share_undo()
    logic = PropagateStepLogic(Server("propagation"), work)

    def begin_patient(name: str) -> None:
        voxels = np.random.default_rng(len(name)).integers(-1000, 1000, (7, 12, 15)).astype(np.int16)
        volume_node = nodes.add_volume_node(app.scene, Volume(voxels, np.eye(4), name))
        work.choose(volume_node, nodes.create_segmentation_node(app.scene, volume_node))
        liver = work.editor.add_empty_segment(segment_name="liver")
        drawn = {3: np.ones((12, 15), bool)}
        writing.write_slices(work.session.segmentation_node, liver, work.session.volume(), 0, drawn)

    def look() -> None:
        work.session.look()
        while work.session.is_looking:
            work.session.poll()
        logic.show()

    try:
        begin_patient("one")
        look()
        logic.data.span = [2, 4]
        assert (logic.request().first, logic.request().last) == (2, 4)
        begin_patient("another one")
        for _ in range(2):  # before its slices have been looked through, and after
            assert (logic.request().first, logic.request().last) == (None, None)
            look()
    finally:
        work.session.close()
        app.io_manager.cache_dir.cleanup()
