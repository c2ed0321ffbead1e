from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from medssl.errors import ModelError
from medssl.foundation.nano_inputs import CHANNELS
from medssl.foundation.nano_model import Decoded, NanoConfig, NanoModel
from torch import Tensor
from torch.nn import functional as F

TINY = NanoConfig(image_size=64, embed_dim=8, model_dim=64, memory_dim=32, memories=3, edge_width=4)
SHIPPED_LIMIT_BYTES = 25_000_000


@pytest.fixture(scope="module")
def model() -> NanoModel:
    torch.manual_seed(0)
    return NanoModel(TINY).eval()


def channels(rows: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, CHANNELS, 64, 64, generator=torch.Generator().manual_seed(seed))


def masks(rows: int) -> Tensor:
    mask = torch.zeros(rows, 1, 64, 64)
    for row in range(rows):
        mask[row, :, 16 : 40 + row, 20 - row : 44] = 1.0
    return mask


def tracked(model: NanoModel, reference: Tensor, slices: list[Tensor], mask: Tensor) -> list[Decoded]:
    """A reference slice and the slices after it, as the trackers do it."""
    encoded = model.encode(reference)
    prompted = model.decode(model.alone(encoded), encoded, mask=mask)
    memory = model.remember(encoded, mask, torch.full((len(mask), 1), 10.0), prompted.pointer)
    recent: dict[int, dict[str, Any]] = {}
    answers = [prompted]
    for step, image in enumerate(slices, 1):
        encoded = model.encode(image)
        answer = model.decode(model.recall(encoded, step, memory, recent), encoded)
        recent[step] = model.remember(encoded, answer.logits.sigmoid(), answer.presence_logit, answer.pointer)
        recent.pop(step - model.config.memories, None)
        answers.append(answer)
    return answers


@torch.no_grad()
def test_every_answer_has_the_shape_its_docstring_says(model: NanoModel) -> None:
    encoded = model.encode(channels(2))
    answer = tracked(model, channels(2), [channels(2, 1)], masks(2))[-1]

    assert encoded.tokens.shape == encoded.position.shape == (4 * 4, 2, 64)
    assert [tuple(level.shape) for level in encoded.fine] == [(2, 8, 16, 16), (2, 16, 8, 8)]
    assert model.alone(encoded).shape == (2, 64, 4, 4)
    assert answer.logits.shape == (2, 1, 64, 64)
    assert answer.coarse_logits.shape == (2, 1, 16, 16)
    assert answer.presence_logit.shape == answer.quality.shape == (2, 1)
    assert answer.pointer.shape == (2, 64)


@torch.no_grad()
def test_features_are_the_packages_own(model: NanoModel) -> None:
    encoded = model.encode(channels(2))

    backbone = model.sam.forward_image(channels(2))
    _, tokens, positions, sizes = model.sam._prepare_backbone_features(backbone)
    torch.testing.assert_close(encoded.tokens, tokens[-1])
    torch.testing.assert_close(encoded.position, positions[-1])
    for level, flat, size in zip(encoded.fine, tokens[:-1], sizes[:-1], strict=True):
        torch.testing.assert_close(level.flatten(2), flat.permute(1, 2, 0), atol=1e-4, rtol=1e-4)
        assert level.shape[-2:] == size


@torch.no_grad()
def test_no_prompt_is_a_point_that_is_none(model: NanoModel) -> None:
    encoded = model.encode(channels(2))
    none = (torch.zeros(2, 1, 2), -torch.ones(2, 1, dtype=torch.int32))

    without, padded = (model.decode(model.alone(encoded), encoded, points) for points in (None, none))

    torch.testing.assert_close(without.logits, padded.logits)
    torch.testing.assert_close(without.presence_logit, padded.presence_logit)


@torch.no_grad()
def test_the_edge_head_begins_as_plain_upsampling(model: NanoModel) -> None:
    answer = tracked(model, channels(1), [], masks(1))[0]

    half = F.interpolate(answer.coarse_logits, scale_factor=2, mode="bilinear")
    torch.testing.assert_close(answer.logits, F.interpolate(half, scale_factor=2, mode="bilinear"))


@torch.no_grad()
def test_rows_of_a_batch_answer_as_they_do_alone(model: NanoModel) -> None:
    reference, slices, mask = channels(3), [channels(3, seed) for seed in (1, 2, 3, 4)], masks(3)

    together = tracked(model, reference, slices, mask)

    for row in range(3):
        rows = slice(row, row + 1)
        alone = tracked(model, reference[rows], [image[rows] for image in slices], mask[rows])
        for one, all_rows in zip(alone, together, strict=True):
            torch.testing.assert_close(one.logits, all_rows.logits[rows], atol=1e-3, rtol=1e-3)
            torch.testing.assert_close(
                one.presence_logit, all_rows.presence_logit[rows], atol=1e-3, rtol=1e-3
            )


@torch.no_grad()
def test_points_a_mask_and_memories_change_the_answer(model: NanoModel) -> None:
    encoded = model.encode(channels(1))
    alone = model.alone(encoded)
    click = (torch.tensor([[[20.0, 30.0]]]), torch.ones(1, 1, dtype=torch.int32))

    answers = [
        model.decode(alone, encoded).logits,
        model.decode(alone, encoded, points=click).logits,
        model.decode(alone, encoded, mask=masks(1)).logits,
        tracked(model, channels(1), [channels(1)], masks(1))[-1].logits,
    ]

    for number, answer in enumerate(answers):
        for other in answers[number + 1 :]:
            assert not torch.allclose(answer, other, atol=1e-4)


def test_what_is_found_on_a_late_slice_teaches_every_part_of_the_model(model: NanoModel) -> None:
    model.zero_grad()
    answers = tracked(model, channels(1), [channels(1, 1), channels(1, 2)], masks(1))

    last = answers[-1]
    torch.autograd.backward(last.logits.square().mean() + last.presence_logit.mean() + last.quality.mean())

    sam = model.sam
    taught = {
        "trunk": sam.image_encoder.trunk.patch_embed.proj.weight,
        "neck": next(sam.image_encoder.neck.parameters()),
        "memory encoder": next(sam.memory_encoder.parameters()),
        "memory attention": next(sam.memory_attention.parameters()),
        "mask decoder": sam.sam_mask_decoder.mask_tokens.weight,
        "edge head": model.edge.last.weight,
    }
    silent = [
        name for name, weight in taught.items() if weight.grad is None or not weight.grad.abs().sum() > 0
    ]
    assert silent == []
    model.zero_grad()


def test_the_shipped_size_fits_into_its_file() -> None:
    weights = NanoModel(NanoConfig()).state_dict().values()

    numbers = sum(weight.numel() for weight in weights)
    assert numbers < 6_500_000
    assert sum(weight.numel() * weight.element_size() for weight in weights) < SHIPPED_LIMIT_BYTES


def test_a_size_comes_back_from_a_checkpoints_header() -> None:
    header = json.loads(json.dumps(TINY.to_meta()))

    assert NanoConfig.from_meta(header) == TINY


@pytest.mark.parametrize("change", [{"surprise": 1}, {"memories": None}])
def test_a_size_with_unknown_or_missing_fields_is_refused(change: dict[str, Any]) -> None:
    header = TINY.to_meta() | change
    header = {name: value for name, value in header.items() if value is not None}

    with pytest.raises(ModelError, match="made by another version"):
        NanoConfig.from_meta(header)


@pytest.mark.parametrize("stages", [(1, 2, 2, 1), (1, 2, 3), (1, 0, 3, 1)])
def test_a_size_that_cannot_be_built_is_refused(stages: tuple[int, int, int, int]) -> None:
    with pytest.raises(ModelError, match="four stages"):
        NanoConfig(stages=stages)


def test_an_image_size_off_the_grid_is_refused() -> None:
    with pytest.raises(ModelError, match="multiple of 32"):
        NanoModel(NanoConfig(image_size=100))
