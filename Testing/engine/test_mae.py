"""MAE on the small vision transformer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from medssl.backbones import build_backbone
from medssl.backbones.vit import VitEncoder
from medssl.datasets.data import UnlabelledVolumes
from medssl.datasets.input_contract import InputContract
from medssl.errors import InputError
from medssl.methods.base import Anchor, Moment
from medssl.methods.mae import MAE, MAEOptions, MaskedAutoencoder
from medssl.methods.masking import normalised_patches, patchify, visible_indices

MOMENT = Moment(step=0, steps=10, epoch=0, epochs=2)
CONTRACT = InputContract(size=(32, 32), window_hu=(-200.0, 400.0), mean_hu=100.0, std_hu=200.0)
OPTIONS = MAEOptions(decoder_width=16, decoder_depth=1, decoder_heads=2)


@pytest.fixture
def method() -> MAE:
    torch.manual_seed(0)
    return MAE(build_backbone("vit_tiny"), CONTRACT, OPTIONS)


def _parts(method: MAE) -> tuple[MaskedAutoencoder, VitEncoder]:
    encoder = method.backbone.encoder
    assert isinstance(encoder, VitEncoder)
    return method.autoencoder, encoder


def test_the_encoder_sees_a_quarter_of_the_patches(method: MAE) -> None:  # 1.4 (a)
    autoencoder, encoder = _parts(method)
    images = torch.randn(3, 1, 32, 32)
    mask = autoencoder.draw_mask(images, MOMENT.generator())
    assert encoder.tokens(images, visible_indices(mask)).shape[:2] == (3, 4)
    assert autoencoder(encoder, images, mask).shape == (3, 16, 64)


def test_masked_pixels_cannot_reach_the_encoder(method: MAE) -> None:  # 1.4 (b)
    autoencoder, encoder = _parts(method)
    images = torch.randn(2, 1, 32, 32)
    mask = autoencoder.draw_mask(images, MOMENT.generator())
    hidden = mask.view(2, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    changed = torch.where(hidden, torch.full_like(images, 100.0), images)
    kept = visible_indices(mask)
    assert torch.equal(encoder.tokens(images, kept), encoder.tokens(changed, kept))
    assert torch.equal(autoencoder(encoder, images, mask), autoencoder(encoder, changed, mask))


def test_visible_patches_do_not_count(method: MAE) -> None:  # 1.4 (c)
    autoencoder, encoder = _parts(method)
    images = torch.randn(2, 1, 32, 32)
    mask = autoencoder.draw_mask(images, MOMENT.generator())
    made = autoencoder(encoder, images, mask).detach().requires_grad_()
    loss = autoencoder.loss(made, images, mask)
    hidden = mask.view(2, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    elsewhere = torch.where(hidden, images, torch.randn_like(images))
    assert torch.equal(autoencoder.loss(made, elsewhere, mask), loss)
    loss.backward()
    assert not made.grad[~mask].any()
    assert made.grad[mask].any()


@pytest.mark.parametrize("normalise", [True, False])
def test_the_loss_is_the_mean_over_masked_patches(method: MAE, normalise: bool) -> None:
    autoencoder, _ = _parts(method)
    autoencoder.options = replace(OPTIONS, normalise=normalise)
    images, made = torch.randn(2, 1, 32, 32), torch.randn(2, 16, 64)
    mask = autoencoder.draw_mask(images, MOMENT.generator())
    targets = patchify(images, 8)
    targets = normalised_patches(targets) if normalise else targets
    errors = [
        float(((made[b, n] - targets[b, n]) ** 2).mean()) for b in range(2) for n in range(16) if mask[b, n]
    ]
    assert autoencoder.loss(made, images, mask).item() == pytest.approx(np.mean(errors), rel=1e-5)


def test_masked_tokens_know_their_place(method: MAE) -> None:
    autoencoder, encoder = _parts(method)
    images = torch.zeros(1, 1, 32, 32)
    mask = torch.ones(1, 16, dtype=torch.bool)
    mask[0, 5] = False
    made = autoencoder(encoder, images, mask)
    assert (made[0, 0] - made[0, 15]).abs().max() > 1e-3


def test_samples_are_reproducible_and_of_the_contracts_size(method: MAE) -> None:
    rng = np.random.default_rng(0)
    volumes = UnlabelledVolumes.from_arrays([rng.integers(-500, 500, (3, 40, 50)).astype(np.int16)])
    first, second = (method.draw(volumes, Anchor(0, 1), np.random.default_rng(4)) for _ in range(2))
    assert first["image"].shape == (1, 32, 32)
    assert torch.equal(first["image"], second["image"])
    assert not torch.equal(first["image"], method.draw(volumes, Anchor(0, 1), rng)["image"])


def test_masks_change_from_step_to_step_and_repeat_when_resumed(method: MAE) -> None:
    images = {"image": torch.randn(2, 1, 32, 32)}
    losses = [method(images, replace(MOMENT, step=step))["loss"].item() for step in (0, 1, 0)]
    assert losses[0] == losses[2] != losses[1]


def test_only_the_encoder_is_kept_and_the_decoder_takes_no_gradient(method: MAE) -> None:  # 1.4 (f)
    method(({"image": torch.randn(2, 1, 32, 32)}), MOMENT)["loss"].backward()
    kept = method.transferable()
    assert {name.split(".")[0] for name in kept} == {"encoder"}
    build_backbone("vit_tiny").encoder.load_state_dict({name[8:]: part for name, part in kept.items()})
    assert all(parameter.grad is not None for parameter in method.backbone.encoder.parameters())
    assert not any(parameter.requires_grad for parameter in method.backbone.decoder.parameters())


def test_a_picture_shows_what_was_made_and_leaves_the_method_training(method: MAE) -> None:
    method.train()
    picture = method.picture({"image": torch.randn(6, 1, 32, 32)}, MOMENT)
    assert picture.shape == (4 * 34, 3 * 34, 3)
    assert method.training


@pytest.mark.parametrize("name", ["unet2d_4", "vit_tiny"])
def test_it_refuses_other_networks_and_sizes_that_do_not_fit(name: str) -> None:
    with pytest.raises(InputError, match=r"vision transformer|multiple of the patch"):
        MAE(build_backbone(name), replace(CONTRACT, size=(32, 36)), OPTIONS)
