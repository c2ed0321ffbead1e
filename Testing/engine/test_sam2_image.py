"""SAM 2 models are built as the package builds them, and answer as its own image predictor."""

from __future__ import annotations

import importlib.resources
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine.official_answer import official_answer
from medssl import registry
from medssl.errors import ModelError
from medssl.foundation import load_image_predictor
from medssl.foundation.image_prompts import mask_logits
from medssl.foundation.runtime import Interrupted, interruptible
from medssl.foundation.sam2_build import build_sam2_model
from medssl.foundation.sam2_image import Sam2ImagePredictor
from medssl.metrics import dice
from medssl.prompts import SlicePrompt
from medssl.volume import WINDOWS

TINY = "configs/sam2.1/sam2.1_hiera_t.yaml"
WINDOW = WINDOWS["soft-tissue"]
SIDE = 128
SMALL = (
    "++model.image_encoder.trunk.embed_dim=16",
    "++model.image_encoder.trunk.stages=[1,1,2,1]",
    "++model.image_encoder.trunk.global_att_blocks=[3]",
    "++model.image_encoder.neck.backbone_channel_list=[128,64,32,16]",
    "++model.memory_attention.num_layers=1",
    "++model.memory_attention.layer.dim_feedforward=64",
)


def small_sam2(seed: int = 0, weights: dict[str, torch.Tensor] | None = None) -> Any:
    torch.manual_seed(seed)
    return build_sam2_model(TINY, SIDE, weights, SMALL)


@pytest.fixture(scope="module")
def model() -> Any:
    return small_sam2()


@pytest.fixture
def slice_hu() -> np.ndarray:
    rows, cols = np.mgrid[:90, :120]
    disc = np.hypot(rows - 40, cols - 70) < 22
    return (disc * 150.0 - 60.0 + np.random.default_rng(0).normal(0, 20, (90, 120))).astype(np.int16)


def disc_mask() -> np.ndarray:
    rows, cols = np.mgrid[:90, :120]
    return np.asarray(np.hypot(rows - 40, cols - 70) < 20)


def official_predictor(model: Any, slice_hu: np.ndarray) -> Any:
    """Set the package's own predictor up by hand for an input that is not 1024 pixels wide."""
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        predictor = SAM2ImagePredictor(model)
    predictor._bb_feat_sizes = [(32, 32), (16, 16), (8, 8)]
    predictor.set_image(np.repeat(WINDOW.to_uint8(slice_hu)[..., None], 3, axis=-1))
    return predictor


def our_predictor(model: Any, slice_hu: np.ndarray) -> Sam2ImagePredictor:
    predictor = Sam2ImagePredictor(model)
    predictor.set_image(slice_hu, WINDOW, (1.0, 1.0))
    return predictor


PROMPTS = {
    "one click": SlicePrompt(0, 3, np.array([[70, 40]], np.float32), np.array([1], np.int32)),
    "two clicks": SlicePrompt(0, 3, np.array([[70, 40], [5, 5]], np.float32), np.array([1, 0], np.int32)),
    "box": SlicePrompt(0, 3, box_xyxy_px=np.array([48, 18, 92, 62], np.float32)),
    "box and click": SlicePrompt(
        0,
        3,
        np.array([[70, 40]], np.float32),
        np.array([1], np.int32),
        np.array([48, 18, 92, 62], np.float32),
    ),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_sam2_answers_a_prompt_exactly_as_its_own_predictor(
    model: Any, slice_hu: np.ndarray, name: str
) -> None:
    mask, score, logits = official_answer(official_predictor(model, slice_hu), PROMPTS[name])
    answer = our_predictor(model, slice_hu).predict(PROMPTS[name])
    assert answer.mask.shape == slice_hu.shape
    np.testing.assert_array_equal(answer.mask, mask)
    np.testing.assert_allclose(answer.logits, logits, rtol=1e-5, atol=1e-5)
    assert answer.score == pytest.approx(score)


def test_the_other_answers_of_sam2_to_a_click_come_in_the_order_of_their_scores(
    model: Any, slice_hu: np.ndarray
) -> None:
    click = PROMPTS["one click"]
    masks, scores, _ = official_predictor(model, slice_hu).predict(
        point_coords=click.points_xy_px, point_labels=click.point_labels, multimask_output=True
    )
    ours = our_predictor(model, slice_hu)
    answers = [ours.predict(replace(click, choice=choice)) for choice in range(3)]
    distinct: list[np.ndarray] = []
    for mask in masks.astype(bool)[np.argsort(-scores)]:
        if all(dice(mask, other) < 0.9 for other in distinct):
            distinct.append(mask)
    for choice, answer in enumerate(answers):
        np.testing.assert_array_equal(answer.mask, distinct[choice % len(distinct)])


def test_a_mask_goes_to_sam2_with_its_box_as_logits_on_the_square_grid(
    model: Any, slice_hu: np.ndarray
) -> None:
    mask = disc_mask()
    masks, _, _ = official_predictor(model, slice_hu).predict(
        box=np.array([51, 21, 89, 59]), mask_input=mask_logits(mask, (32, 32)), multimask_output=False
    )
    answer = our_predictor(model, slice_hu).predict(SlicePrompt(0, 3, mask=mask))
    np.testing.assert_array_equal(answer.mask, masks[0].astype(bool))


@pytest.mark.parametrize("count", [0, 1, 19])
def test_boxes_in_one_batch_are_answered_as_one_by_one(model: Any, slice_hu: np.ndarray, count: int) -> None:
    ours = our_predictor(model, slice_hu)
    boxes = np.random.default_rng(1).uniform(0, 40, (count, 4)).astype(np.float32)
    boxes[:, 2:] += 45
    answers = ours.predict_boxes(boxes)
    assert len(answers) == count
    for box, answer in zip(boxes[::6], answers[::6], strict=True):
        alone = ours.predict(SlicePrompt(0, 3, box_xyxy_px=box))
        np.testing.assert_allclose(answer.logits, alone.logits, rtol=1e-4, atol=1e-4)
        assert (answer.mask != alone.mask).mean() < 0.001


def test_a_model_is_the_one_the_package_builds(model: Any) -> None:
    from sam2.build_sam import build_sam2_video_predictor

    overrides = [f"++model.image_size={SIDE}", *SMALL]
    theirs = build_sam2_video_predictor(
        TINY, device="cpu", hydra_overrides_extra=overrides, apply_postprocessing=False
    )
    assert type(model) is type(theirs)
    assert {n: t.shape for n, t in model.state_dict().items()} == {
        n: t.shape for n, t in theirs.state_dict().items()
    }
    assert not model.training
    assert model.fill_hole_area == 0
    assert model.image_size == SIDE


def test_building_leaves_hydra_as_it_was() -> None:
    from hydra.core.global_hydra import GlobalHydra

    before = GlobalHydra.instance().hydra
    small_sam2()
    small_sam2()
    assert GlobalHydra.instance().hydra is before


def test_weights_go_in_whole_or_not_at_all(model: Any) -> None:
    state = dict(model.state_dict())
    copy = small_sam2(seed=5, weights=state)
    assert all(torch.equal(t, state[n]) for n, t in copy.state_dict().items())
    state.pop("memory_encoder.out_proj.weight")
    with pytest.raises(ModelError, match=r"1 missing \(memory_encoder\.out_proj\.weight\)"):
        small_sam2(weights=state)


@pytest.mark.parametrize(
    ("config", "size", "message"),
    [("configs/none.yaml", 128, "no configuration"), (TINY, 100, "multiple of 32, not 100")],
)
def test_a_model_that_cannot_be_built_is_refused(config: str, size: int, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build_sam2_model(config, size)


def test_an_official_checkpoint_is_loaded_through_the_registry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slice_hu: np.ndarray
) -> None:
    """The official files hold {"model": state dict}; this one is saved from a small model of theirs."""
    monkeypatch.setenv("MEDSSL_HOME", str(tmp_path))
    monkeypatch.setattr(
        "medssl.foundation.sam2_image.build_sam2_model",
        lambda config, size, weights, device: small_sam2(seed=1, weights=weights),
    )
    entry = registry.find_entry("sam2.1-hiera-tiny")
    path = tmp_path / "models" / entry.file
    path.parent.mkdir()
    torch.save({"model": small_sam2(seed=2).state_dict()}, path)
    small = replace(entry, size_bytes=path.stat().st_size, sha256=registry.sha256_of(path))
    monkeypatch.setattr(registry, "load_registry", lambda path=None: (small,))

    loaded = load_image_predictor("sam2.1-hiera-tiny", "cpu")
    loaded.set_image(slice_hu, WINDOW, (1.0, 1.0))
    expected = our_predictor(small_sam2(seed=2), slice_hu).predict(PROMPTS["box"])
    np.testing.assert_array_equal(loaded.predict(PROMPTS["box"]).logits, expected.logits)


def test_nothing_is_printed_and_no_warning_leaks() -> None:
    code = (
        "from medssl.foundation.sam2_build import build_sam2_model\n"
        "from medssl.foundation.sam2_image import Sam2ImagePredictor\n"
        f"Sam2ImagePredictor(build_sam2_model({TINY!r}, {SIDE}, None, {SMALL!r}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_sam2_model_of_the_registry_names_a_configuration_of_the_package() -> None:
    folder = Path(str(importlib.resources.files("sam2")))
    entries = [e for e in registry.load_registry() if e.kind == "sam2"]
    assert len(entries) == 5
    for entry in entries:
        assert (folder / entry.config).is_file()
        assert entry.image_size % 32 == 0


def test_a_slice_is_shown_again_without_being_encoded(model: Any, slice_hu: np.ndarray) -> None:
    box = SlicePrompt(0, 3, box_xyxy_px=np.array([48, 18, 92, 62], np.float32))
    predictor = our_predictor(model, slice_hu)
    first, kept = predictor.predict(box), predictor.encoded()
    predictor.set_image(slice_hu[::-1, :100], WINDOW, (1.0, 1.0))
    with interruptible(predictor.encoder, lambda: True):  # any layer of the encoder would raise
        predictor.show(kept)
        again = predictor.predict(box)
    np.testing.assert_array_equal(again.logits, first.logits)
    assert again.mask.shape == slice_hu.shape
    assert kept.nbytes == 4 * (256 * 8 * 8 + 64 * 16 * 16 + 32 * 32 * 32)


def test_encoding_stops_between_two_layers_and_can_be_done_anew(model: Any, slice_hu: np.ndarray) -> None:
    predictor, whole = Sam2ImagePredictor(model), our_predictor(model, slice_hu)
    asked: list[int] = []

    def interrupted() -> bool:
        asked.append(1)
        return len(asked) == 20

    with pytest.raises(Interrupted), interruptible(predictor.encoder, interrupted):
        predictor.set_image(slice_hu, WINDOW, (1.0, 1.0))
    assert len(asked) == 20
    predictor.set_image(slice_hu, WINDOW, (1.0, 1.0))
    assert len(asked) == 20  # nothing is left in the network
    box = SlicePrompt(0, 3, box_xyxy_px=np.array([48, 18, 92, 62], np.float32))
    np.testing.assert_array_equal(predictor.predict(box).logits, whole.predict(box).logits)
