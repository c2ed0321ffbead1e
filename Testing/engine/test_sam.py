"""SAM and MedSAM behind the engine's face give what the packages themselves give."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine.official_answer import official_answer
from medssl import registry
from medssl.errors import InputError, ModelError
from medssl.foundation import load_image_predictor, load_tracker
from medssl.foundation.image_prompts import mask_logits
from medssl.foundation.runtime import ensure_torchvision_operators, interruptible, pick_device
from medssl.foundation.sam import MedSamImagePredictor, SamImagePredictor, build_sam
from medssl.metrics import dice
from medssl.prompts import SlicePrompt
from medssl.volume import WINDOWS
from torch.nn import functional as F

WINDOW = WINDOWS["soft-tissue"]
SIDE = 128


def small_sam(seed: int = 0) -> Any:
    """Build the package's own classes, a hundred times smaller than ViT-B."""
    ensure_torchvision_operators()
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    torch.manual_seed(seed)
    width, grid = 32, SIDE // 16
    return Sam(
        ImageEncoderViT(
            img_size=SIDE,
            embed_dim=width,
            depth=2,
            num_heads=2,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=4,
            global_attn_indexes=(1,),
            out_chans=width,
        ),
        PromptEncoder(
            embed_dim=width, image_embedding_size=(grid, grid), input_image_size=(SIDE, SIDE), mask_in_chans=4
        ),
        MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=1, embedding_dim=width, mlp_dim=32, num_heads=2),
            transformer_dim=width,
        ),
    ).eval()


@pytest.fixture
def slice_hu() -> np.ndarray:
    rows, cols = np.mgrid[:90, :120]
    disc = np.hypot(rows - 40, cols - 70) < 22
    return (disc * 150.0 - 60.0 + np.random.default_rng(0).normal(0, 20, (90, 120))).astype(np.int16)


def disc_mask() -> np.ndarray:
    rows, cols = np.mgrid[:90, :120]
    return np.asarray(np.hypot(rows - 40, cols - 70) < 20)


def picture(slice_hu: np.ndarray) -> np.ndarray:
    return np.repeat(WINDOW.to_uint8(slice_hu)[..., None], 3, axis=-1)


def official_predictor(model: Any, slice_hu: np.ndarray) -> Any:
    from segment_anything import SamPredictor

    predictor = SamPredictor(model)
    predictor.set_image(picture(slice_hu))
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
def test_sam_answers_a_prompt_exactly_as_its_own_predictor(slice_hu: np.ndarray, name: str) -> None:
    model, prompt = small_sam(), PROMPTS[name]
    mask, score, logits = official_answer(official_predictor(model, slice_hu), prompt)
    ours = SamImagePredictor(model)
    ours.set_image(slice_hu, WINDOW, (1.0, 1.0))
    answer = ours.predict(prompt)
    assert answer.mask.shape == slice_hu.shape
    np.testing.assert_array_equal(answer.mask, mask)
    np.testing.assert_allclose(answer.logits, logits, rtol=1e-5, atol=1e-5)
    assert answer.score == pytest.approx(min(max(score, 0.0), 1.0))


def test_the_other_answers_of_sam_to_a_click_come_in_the_order_of_their_scores(slice_hu: np.ndarray) -> None:
    click = PROMPTS["one click"]
    model = small_sam()
    masks, scores, _ = official_predictor(model, slice_hu).predict(
        point_coords=click.points_xy_px, point_labels=click.point_labels, multimask_output=True
    )
    ours = SamImagePredictor(model)
    ours.set_image(slice_hu, WINDOW, (1.0, 1.0))
    answers = [ours.predict(replace(click, choice=choice)) for choice in range(3)]
    distinct: list[np.ndarray] = []
    for mask in masks.astype(bool)[np.argsort(-scores)]:
        if all(dice(mask, other) < 0.9 for other in distinct):
            distinct.append(mask)
    for choice, answer in enumerate(answers):
        np.testing.assert_array_equal(answer.mask, distinct[choice % len(distinct)])


def test_a_box_has_sams_one_answer_first_and_then_its_three(slice_hu: np.ndarray) -> None:
    box = SlicePrompt(0, 3, box_xyxy_px=np.array([50, 20, 90, 60], np.float32))
    model = small_sam()
    theirs = official_predictor(model, slice_hu)
    (one,), *_ = theirs.predict(box=box.box_xyxy_px, multimask_output=False)
    three, scores, _ = theirs.predict(box=box.box_xyxy_px, multimask_output=True)
    distinct: list[np.ndarray] = []
    for mask in (one, *three[np.argsort(-scores)]):
        if all(dice(mask, other) < 0.9 for other in distinct):
            distinct.append(mask)
    ours = SamImagePredictor(model)
    ours.set_image(slice_hu, WINDOW, (1.0, 1.0))

    answers = [ours.predict(replace(box, choice=choice)).mask for choice in range(4)]

    assert len(distinct) > 1
    for choice, answer in enumerate(answers):
        np.testing.assert_array_equal(answer, distinct[choice % len(distinct)])


def test_a_mask_goes_to_sam_with_its_box_as_logits_on_the_padded_grid(slice_hu: np.ndarray) -> None:
    model, mask = small_sam(), disc_mask()
    theirs = official_predictor(model, slice_hu)
    logits = np.full((1, 32, 32), -10.0, np.float32)  # 90 x 120 scaled to 24 x 32, then padded to a square
    logits[:, :24] = mask_logits(mask, (24, 32))
    masks, _, _ = theirs.predict(box=np.array([51, 21, 89, 59]), mask_input=logits, multimask_output=False)
    ours = SamImagePredictor(model)
    ours.set_image(slice_hu, WINDOW, (1.0, 1.0))
    np.testing.assert_array_equal(ours.predict(SlicePrompt(0, 3, mask=mask)).mask, masks[0])


def test_mask_logits_are_ten_inside_and_minus_ten_outside() -> None:
    logits = mask_logits(disc_mask(), (45, 60))
    assert logits.shape == (1, 45, 60)
    assert logits[0, 20, 35] == pytest.approx(10.0)
    assert logits[0, 2, 2] == pytest.approx(-10.0)


@pytest.mark.parametrize("predictor", [SamImagePredictor, MedSamImagePredictor])
def test_boxes_in_one_batch_are_answered_as_one_by_one(slice_hu: np.ndarray, predictor: Any) -> None:
    ours = predictor(small_sam())
    ours.set_image(slice_hu, WINDOW, (1.0, 1.0))
    boxes = np.random.default_rng(1).uniform(0, 40, (19, 4)).astype(np.float32)  # more than one batch
    boxes[:, 2:] += 45
    answers = ours.predict_boxes(boxes)
    assert len(answers) == 19
    for box, answer in zip(boxes[::6], answers[::6], strict=True):
        alone = ours.predict(SlicePrompt(0, 3, box_xyxy_px=box))
        np.testing.assert_allclose(answer.logits, alone.logits, rtol=1e-4, atol=1e-4)
        assert (answer.mask != alone.mask).mean() < 0.001
    assert ours.predict_boxes(np.zeros((0, 4), np.float32)) == []


def test_medsam_answers_a_box_as_its_published_inference(slice_hu: np.ndarray) -> None:
    model, box = small_sam(), np.array([[48, 18, 92, 62]])
    image = picture(slice_hu)[..., 0]
    ours = MedSamImagePredictor(model)
    ours.set_image(slice_hu, WINDOW, (1.0, 1.0))
    answer = ours.predict(SlicePrompt(0, 3, box_xyxy_px=box[0].astype(np.float32)))

    tensor = torch.from_numpy(stretched(image))[None].expand(1, 3, -1, -1)
    with torch.no_grad():
        embedding = model.image_encoder(tensor)
        box_side = torch.as_tensor(box / np.array([120, 90, 120, 90]) * SIDE, dtype=torch.float)[:, None, :]
        sparse, dense = model.prompt_encoder(points=None, boxes=box_side, masks=None)
        low, _ = model.mask_decoder(embedding, model.prompt_encoder.get_dense_pe(), sparse, dense, False)
        expected = F.interpolate(torch.sigmoid(low), size=(90, 120), mode="bilinear", align_corners=False)
    np.testing.assert_array_equal(answer.mask, expected[0, 0].numpy() > 0.5)


def stretched(image: np.ndarray) -> np.ndarray:
    """MedSAM's picture, from spline values at the pixel centres instead of a zoom."""
    from scipy import ndimage

    height, width = image.shape
    rows = (np.arange(SIDE) + 0.5) * height / SIDE - 0.5
    cols = (np.arange(SIDE) + 0.5) * width / SIDE - 0.5
    grid = np.meshgrid(rows, cols, indexing="ij")
    values = ndimage.map_coordinates(image.astype(np.float64), grid, order=3, mode="mirror")
    whole = np.clip(values, image.min(), image.max()).astype(np.uint8).astype(np.float32)
    return (whole - whole.min()) / (whole.max() - whole.min())


def test_medsam_takes_the_box_of_a_mask_and_refuses_points(slice_hu: np.ndarray) -> None:
    ours = MedSamImagePredictor(small_sam())
    ours.set_image(slice_hu, WINDOW, (1.0, 1.0))
    of_mask = ours.predict(SlicePrompt(0, 3, mask=disc_mask()))
    of_box = ours.predict(SlicePrompt(0, 3, box_xyxy_px=np.array([51, 21, 89, 59], np.float32)))
    np.testing.assert_array_equal(of_mask.mask, of_box.mask)
    with pytest.raises(InputError, match="takes no points"):
        ours.predict(PROMPTS["one click"])


@pytest.mark.parametrize(
    ("mask", "message"),
    [(np.ones((5, 5), bool), r"shape \(5, 5\), but the slice has"), (np.zeros((90, 120), bool), "is empty")],
)
def test_a_mask_that_does_not_fit_the_slice_is_refused(
    slice_hu: np.ndarray, mask: np.ndarray, message: str
) -> None:
    ours = SamImagePredictor(small_sam())
    ours.set_image(slice_hu, WINDOW, (1.0, 1.0))
    with pytest.raises(InputError, match=message):
        ours.predict(SlicePrompt(0, 3, mask=mask))


def test_the_official_layouts_are_those_of_the_published_checkpoints() -> None:
    """Key counts and a few shapes of sam_vit_b/l/h, known from the files; nothing is allocated."""
    sizes = {"vit_b": (768, 12, 314), "vit_l": (1024, 24, 482), "vit_h": (1280, 32, 594)}
    for layout, (width, depth, tensors) in sizes.items():
        with torch.device("meta"):
            state = build_sam(layout).state_dict()
        assert len(state) == tensors
        assert state["image_encoder.pos_embed"].shape == (1, 64, 64, width)
        assert f"image_encoder.blocks.{depth - 1}.attn.rel_pos_h" in state
        assert state["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"].shape == (2, 128)


def test_an_unknown_layout_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ModelError, match="vit_b, vit_h, vit_l"):
        build_sam("vit_z")


@pytest.fixture
def registry_with_small_sam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a checkpoint in SAM's layout, saved from the package's own model, into the user's model folder."""
    monkeypatch.setenv("MEDSSL_HOME", str(tmp_path))
    monkeypatch.setattr("medssl.foundation.sam.build_sam", lambda layout: small_sam(seed=1))
    entry = registry.find_entry("sam-vit-b")
    path = tmp_path / "models" / entry.file
    path.parent.mkdir()
    torch.save(small_sam(seed=2).state_dict(), path)
    small = replace(entry, size_bytes=path.stat().st_size, sha256=registry.sha256_of(path))
    entries = [small if e.id == small.id else e for e in registry.load_registry()]
    monkeypatch.setattr(registry, "load_registry", lambda path=None: tuple(entries))
    return path


def test_a_checkpoint_in_sams_layout_is_loaded_through_the_registry(
    registry_with_small_sam: Path, slice_hu: np.ndarray
) -> None:
    loaded = load_image_predictor("sam-vit-b", "cpu")
    loaded.set_image(slice_hu, WINDOW, (1.0, 1.0))
    expected = SamImagePredictor(small_sam(seed=2))
    expected.set_image(slice_hu, WINDOW, (1.0, 1.0))
    np.testing.assert_array_equal(
        loaded.predict(PROMPTS["box"]).logits, expected.predict(PROMPTS["box"]).logits
    )


def test_a_checkpoint_changed_after_the_download_is_refused(registry_with_small_sam: Path) -> None:
    torch.save(small_sam(seed=3).state_dict(), registry_with_small_sam)
    with pytest.raises(ModelError, match="wrong SHA-256"):
        load_image_predictor("sam-vit-b", "cpu")


def test_a_model_of_single_slices_cannot_propagate_and_names_those_that_can() -> None:
    with pytest.raises(ModelError, match=r"cannot propagate.*medssl-nano.*sam2.1-hiera-tiny"):
        load_tracker("sam-vit-b")


@pytest.mark.parametrize("name", ["cuda:99", "vulkan", "nonsense"])
def test_a_device_that_is_not_there_is_refused_with_what_to_use(name: str) -> None:
    with pytest.raises(ModelError, match=r"use auto"):
        pick_device(name)


def test_auto_is_always_a_device_that_works() -> None:
    assert float(torch.ones(2, device=pick_device("auto")).sum()) == 2.0


@pytest.mark.parametrize("kind", [SamImagePredictor, MedSamImagePredictor])
def test_a_slice_is_shown_again_without_being_encoded(kind: Any, slice_hu: np.ndarray) -> None:
    box = SlicePrompt(0, 3, box_xyxy_px=np.array([48, 18, 92, 62], np.float32))
    predictor = kind(small_sam())
    predictor.set_image(slice_hu, WINDOW, (1.0, 1.0))
    first, kept = predictor.predict(box), predictor.encoded()
    predictor.set_image(slice_hu[::-1, :100], WINDOW, (1.0, 1.0))
    with interruptible(predictor.encoder, lambda: True):  # any layer of the encoder would raise
        predictor.show(kept)
        again = predictor.predict(box)
    np.testing.assert_array_equal(again.logits, first.logits)
    assert again.mask.shape == slice_hu.shape
    assert kept.nbytes == 4 * 32 * 8 * 8
