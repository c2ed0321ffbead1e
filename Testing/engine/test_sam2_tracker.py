"""Our slice tracker answers exactly as the package's own video predictor does on the same frames."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from medssl.errors import InputError
from medssl.foundation.protocols import TrackJob
from medssl.foundation.sam2_build import build_sam2_model
from medssl.foundation.sam2_tracker import Sam2Session, Sam2SliceTracker
from medssl.prompts import SlicePrompt
from medssl.volume import Volume, Window

SIZE = 96
SLICES = 9
START = 4
WINDOW = Window(40.0, 400.0)


@pytest.fixture(scope="module")
def model() -> Any:
    """A SAM 2.1 Hiera-T layout with random weights."""
    torch.manual_seed(0)
    built = build_sam2_model("configs/sam2.1/sam2.1_hiera_t.yaml", SIZE)
    # Random object scores hover at zero and would blank most slices; lift them so that masks are compared too.
    torch.nn.init.constant_(built.sam_mask_decoder.pred_obj_score_head.layers[-1].bias, 5.0)
    return built


@pytest.fixture(scope="module")
def volume() -> Volume:
    rng = np.random.default_rng(0)
    voxels = rng.normal(40.0, 80.0, (SLICES, SIZE, SIZE)).astype(np.int16)
    return Volume(voxels, np.diag([1.0, 1.0, 2.0, 1.0]))


def disc(row: int, col: int, radius: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    rows, cols = np.ogrid[:SIZE, :SIZE]
    return (rows - row) ** 2 + (cols - col) ** 2 <= radius**2


def official_state(model: Any, session: Sam2Session) -> dict[str, Any]:
    """A video predictor's state over the frames our session makes, without a folder of JPEG files."""
    frames = torch.cat([session._frame(index) for index in range(SLICES)])
    empty = (
        "cached_features constants output_dict_per_obj temp_output_dict_per_obj frames_tracked_per_obj "
        "point_inputs_per_obj mask_inputs_per_obj"
    )
    return {
        "images": frames,
        "num_frames": SLICES,
        "offload_video_to_cpu": False,
        "offload_state_to_cpu": False,
        "video_height": SIZE,
        "video_width": SIZE,
        "device": torch.device("cpu"),
        "storage_device": torch.device("cpu"),
        "obj_id_to_idx": OrderedDict(),
        "obj_idx_to_id": OrderedDict(),
        "obj_ids": [],
        **{name: {} for name in empty.split()},
    }


def official_answers(
    model: Any, session: Sam2Session, prompts: dict[int, list[SlicePrompt]], start: int, reverse: bool
) -> dict[tuple[int, int], np.ndarray[Any, np.dtype[np.float32]]]:
    state = official_state(model, session)
    for object_id, given in prompts.items():
        for prompt in given:
            if prompt.mask is not None:
                model.add_new_mask(state, prompt.index, object_id, prompt.mask)
            else:
                model.add_new_points_or_box(
                    state,
                    prompt.index,
                    object_id,
                    points=prompt.points_xy_px if len(prompt.points_xy_px) else None,
                    labels=prompt.point_labels if len(prompt.points_xy_px) else None,
                    box=prompt.box_xyxy_px,
                )
    answers = {}
    for index, ids, logits in model.propagate_in_video(state, start_frame_idx=start, reverse=reverse):
        for row, object_id in enumerate(ids):
            answers[object_id, index] = logits[row, 0].sigmoid().numpy()
    return answers


PROMPTS = {
    "a mask": SlicePrompt(0, START, mask=disc(40, 50, 18)),
    "a box": SlicePrompt(0, START, box_xyxy_px=np.array([20, 25, 60, 70], np.float32)),
    "a click": SlicePrompt(
        0, START, points_xy_px=np.array([[50, 40]], np.float32), point_labels=np.array([1], np.int32)
    ),
    "a box and clicks": SlicePrompt(
        0,
        START,
        points_xy_px=np.array([[50, 40], [5, 5]], np.float32),
        point_labels=np.array([1, 0], np.int32),
        box_xyxy_px=np.array([20, 25, 60, 70], np.float32),
    ),
}


@pytest.mark.parametrize("kind", PROMPTS)
@pytest.mark.parametrize("reverse", [False, True])
def test_each_direction_equals_the_official_predictor(
    model: Any, volume: Volume, kind: str, reverse: bool
) -> None:
    session = Sam2SliceTracker(model).open(volume, 0, WINDOW)
    expected = official_answers(model, session, {0: [PROMPTS[kind]]}, START, reverse)
    session.add_reference(0, PROMPTS[kind])
    job = TrackJob(0, START, 0 if reverse else SLICES - 1)
    answers = [answer for item in session.run([job]) for _, answer in item]
    assert [answer.index for answer in answers] == list(
        range(START - 1, -1, -1) if reverse else range(START + 1, SLICES)
    )
    for answer in answers:
        assert answer.probability is not None
        np.testing.assert_allclose(answer.probability, expected[0, answer.index], atol=2e-3)


def test_several_segments_in_one_batch_equal_one_at_a_time(model: Any, volume: Volume) -> None:
    session = Sam2SliceTracker(model).open(volume, 0, WINDOW)
    prompts = {n: [SlicePrompt(0, START, mask=disc(30 + 9 * n, 50, 8 + 3 * n))] for n in range(3)}
    expected = official_answers(model, session, prompts, START, False)
    for object_id, given in prompts.items():
        session.add_reference(object_id, given[0])
    jobs = [TrackJob(object_id, START, SLICES - 1) for object_id in prompts]
    for item in session.run(jobs):
        assert len(item) == 3
        for job, answer in item:
            assert answer.probability is not None
            np.testing.assert_allclose(answer.probability, expected[job.object_id, answer.index], atol=2e-3)


def test_two_reference_slices_equal_the_official_predictor(model: Any, volume: Volume) -> None:
    session = Sam2SliceTracker(model).open(volume, 0, WINDOW)
    prompts = [SlicePrompt(0, 1, mask=disc(40, 40, 15)), SlicePrompt(0, 7, mask=disc(50, 50, 12))]
    expected = official_answers(model, session, {0: prompts}, 1, False)
    for prompt in prompts:
        session.add_reference(0, prompt)
    answers = [answer for item in session.run([TrackJob(0, 1, 6)]) for _, answer in item]
    for answer in answers:
        assert answer.probability is not None
        np.testing.assert_allclose(answer.probability, expected[0, answer.index], atol=2e-3)


def test_both_directions_and_all_segments_share_one_encoding_of_each_slice(
    model: Any, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    forward = model.forward_image
    monkeypatch.setattr(model, "forward_image", lambda frames: encoded.append(len(frames)) or forward(frames))
    session = Sam2SliceTracker(model).open(volume, 0, WINDOW)
    for object_id in range(2):
        session.add_reference(object_id, SlicePrompt(0, START, mask=disc(40, 40, 10 + object_id)))
    jobs = [TrackJob(n, START, stop) for n in range(2) for stop in (0, SLICES - 1)]
    first = [answer.mask for item in session.run(jobs) for _, answer in item]
    assert sum(encoded) == SLICES
    again = [answer.mask for item in session.run(jobs) for _, answer in item]
    assert sum(encoded) == SLICES
    assert all((a == b).all() for a, b in zip(first, again, strict=True))


def test_a_dropped_job_is_not_computed_any_more(model: Any, volume: Volume) -> None:
    session = Sam2SliceTracker(model).open(volume, 0, WINDOW)
    for object_id in range(2):
        session.add_reference(object_id, SlicePrompt(0, 0, mask=disc(40, 40, 10 + object_id)))
    jobs = [TrackJob(0, 0, SLICES - 1), TrackJob(1, 0, SLICES - 1)]
    seen: list[int] = []
    for item in session.run(jobs):
        seen += [job.object_id for job, _ in item]
        session.drop(jobs[0])
    assert seen == [0] + [1] * (SLICES - 1)


def test_features_stay_within_their_budget(model: Any, volume: Volume) -> None:
    levels = Sam2SliceTracker(model).open(volume, 0, WINDOW)._encode(0, 1)
    one_slice = sum(level.nbytes for level in levels)
    session = Sam2SliceTracker(model, feature_budget_bytes=3 * one_slice).open(volume, 0, WINDOW)
    session.add_reference(0, PROMPTS["a mask"])
    for _ in session.run([TrackJob(0, START, SLICES - 1), TrackJob(0, START, 0)]):
        assert session._features._used <= 3 * one_slice


def test_a_job_without_a_reference_slice_is_refused(model: Any, volume: Volume) -> None:
    session = Sam2SliceTracker(model).open(volume, 0, WINDOW)
    with pytest.raises(InputError, match="no reference slice of object 0"):
        list(session.run([TrackJob(0, 2, 5)]))
