"""Backbones are the published networks, and keep the contract that methods and fine-tuning build on."""

from __future__ import annotations

import math

import pytest
import torch
from medssl.backbones import BACKBONES, build_backbone
from medssl.backbones.vit import VitEncoder, sincos_positions
from medssl.errors import InputError
from torch import Tensor, nn
from torch.nn import functional as F

SMALL = [name for name, spec in BACKBONES.items() if spec.small and spec.spatial_dims == 2]


def numbers(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("in_channels", [1, 3])
def test_maps_have_the_promised_widths_and_strides_and_the_result_is_as_large_as_the_image(
    name: str, in_channels: int
) -> None:
    backbone = build_backbone(name, in_channels).eval()
    x = torch.randn(2, in_channels, 64, 96)
    maps = backbone.encoder(x)
    promised = zip(backbone.encoder.widths, backbone.encoder.strides, strict=True)
    assert [tuple(m.shape) for m in maps] == [(2, c, 64 // s, 96 // s) for c, s in promised]
    assert backbone(x).shape == (2, backbone.decoder.width, 64, 96)
    assert torch.equal(backbone.decoder(maps), backbone(x))  # usable apart from the encoder
    state = backbone.encoder.state_dict()
    assert all(state[stem].shape[1] == in_channels for stem in backbone.encoder.stem)
    assert backbone.encoder.in_channels == in_channels
    assert backbone.spatial_dims == BACKBONES[name].spatial_dims


@pytest.mark.parametrize("name", SMALL)
def test_sides_may_be_any_multiple_of_the_divisor(name: str) -> None:
    backbone = build_backbone(name)
    size = (backbone.encoder.divisor, 3 * backbone.encoder.divisor)
    backbone.encoder.require_size(size)
    assert backbone(torch.randn(2, 1, *size)).shape[2:] == size
    with pytest.raises(InputError, match=f"multiples of {backbone.encoder.divisor}"):
        backbone.encoder.require_size((size[0], size[1] + 1))
    with pytest.raises(InputError, match="at least"):
        backbone.encoder.require_size((size[0], size[0]))


@pytest.mark.parametrize("name", SMALL)
def test_every_weight_learns_and_a_disc_is_soon_told_from_its_surroundings(name: str) -> None:
    backbone = build_backbone(name)
    network = nn.Sequential(backbone, nn.Conv2d(backbone.decoder.width, 1, 1))
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    centres = torch.tensor([[20, 24], [40, 30]])
    distance = (rows - centres[:, :1, None]) ** 2 + (columns - centres[:, 1:, None]) ** 2
    target = (distance < 12**2).float()[:, None]
    image = target + 0.1 * torch.randn_like(target)
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    losses = []
    for _ in range(25):
        loss = F.binary_cross_entropy_with_logits(network(image), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert min(losses[-5:]) < 0.75 * losses[0]
    assert [n for n, p in network.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", SMALL)
def test_weights_are_drawn_from_torchs_generator_and_evaluation_repeats(name: str) -> None:
    torch.manual_seed(1)
    first = build_backbone(name).eval()
    torch.manual_seed(1)
    second = build_backbone(name).eval()
    x = torch.randn(1, 1, 64, 64)
    assert torch.equal(first(x), first(x))
    assert torch.equal(first(x), second(x))
    assert not torch.equal(first(x), build_backbone(name).eval()(x))


def test_a_name_that_is_none_of_them_is_refused_with_the_list() -> None:
    with pytest.raises(InputError, match=r"no backbone 'unet'.*unet2d_16.*vit_b16"):
        build_backbone("unet")


def test_polycl_unet_has_the_numbers_of_its_code() -> None:
    """methods.md 2.2; the decoder's are counted with the 1 x 1 convolution to one class behind it."""
    backbone = build_backbone("unet2d_16")
    head = nn.Conv2d(backbone.decoder.width, 1, 1)
    assert numbers(backbone.encoder) == 1_178_480
    assert numbers(backbone.decoder) + numbers(head) == 783_857
    assert numbers(backbone) + numbers(head) == 1_962_337


def test_amlp_unet_has_31_million_numbers() -> None:
    """methods.md 4.1; 31,037,698 is what the common implementation counts for RGB and two classes."""
    assert round(numbers(build_backbone("unet2d_64")) / 1e6, 2) == 31.04
    backbone = build_backbone("unet2d_64", 3)
    assert numbers(backbone) + numbers(nn.Conv2d(backbone.decoder.width, 2, 1)) == 31_037_698


def test_resunet_is_a_resnet18_but_for_its_stem() -> None:
    resnet18 = 11_689_512 - 513_000  # as published, without its classifier
    narrow_stem = -64 * 3 * 49 + 32 * 49 - 2 * 32
    first_block = -(64 - 32) * 64 * 9 + 32 * 64 + 2 * 64  # fewer inputs, and now a shortcut with weights
    encoder = build_backbone("resunet18_32_bn").encoder
    assert numbers(encoder) == resnet18 + narrow_stem + first_block
    norms = sum(p.numel() for m in encoder.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters())
    assert numbers(build_backbone("resunet18_32").encoder) == numbers(encoder) - norms


@pytest.mark.parametrize(
    ("name", "published", "width"), [("vit_b16", 85_798_656, 768), ("vit_s16", 21_665_664, 384)]
)
def test_vits_have_the_published_numbers_without_class_token_and_learnt_positions(
    name: str, published: int, width: int
) -> None:
    encoder = build_backbone(name, 3).encoder
    assert numbers(encoder) == published - width - 197 * width
    assert isinstance(encoder, VitEncoder)
    assert encoder.taps == (3, 6, 9, 12)
    assert encoder.strides == (1, 16, 16, 16, 16)


def test_transunet_has_the_published_numbers() -> None:
    """105 M: 105,277,081 for RGB and nine classes, with a 3 x 3 head and learnt positions of a 14 x 14 grid."""
    backbone = build_backbone("transunet_r50_b16", 3)
    head = nn.Conv2d(backbone.decoder.width, 9, 3)
    assert numbers(backbone) + numbers(head) + 14 * 14 * 768 == 105_277_081


@pytest.mark.parametrize(
    ("name", "width", "published"),
    [("mit_b0_unet", 256, 3.8), ("mit_b1_unet", 256, 13.7), ("mit_b2_unet", 768, 27.5)],
)
def test_mix_transformers_have_the_numbers_published_for_segformer(
    name: str, width: int, published: float
) -> None:
    """Millions, with SegFormer's own decoder: a linear layer a level, one over all, 150 classes."""
    backbone = build_backbone(name, 3)
    levels = sum((channels + 1) * width for channels in backbone.encoder.widths[1:])
    over_all = 4 * width * width + 2 * width
    total = numbers(backbone.encoder) + levels + over_all + (width + 1) * 150
    assert round(total / 1e6, 1) == published
    assert backbone.encoder.widths[0] == 0  # nothing at half the resolution
    assert [b.conv1[0].out_channels for b in backbone.decoder.unet.blocks] == [512, 256, 128, 128, 128]


class LiteralUNet(nn.Module):
    """PolyCL's U-Net written out level by level from methods.md 2.2, without dropout."""

    def __init__(self, c: int) -> None:
        super().__init__()
        pairs = [(1, c), (c, 2 * c), (2 * c, 4 * c), (4 * c, 8 * c), (8 * c, 16 * c)]
        pairs += [(24 * c, 8 * c), (12 * c, 4 * c), (6 * c, 2 * c), (3 * c, c)]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(inputs, b, 3, padding=1) for a, b in pairs for inputs in (a, b)
        )

    def stage(self, n: int, x: Tensor) -> Tensor:
        for convolution in self.convolutions[2 * n : 2 * n + 2]:
            x = convolution(x)
            mean, variance = x.mean((2, 3), keepdim=True), x.var((2, 3), unbiased=False, keepdim=True)
            x = F.leaky_relu((x - mean) / (variance + 1e-5).sqrt(), 0.2)
        return x

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.stage(0, x)]
        for n in range(1, 5):
            maps.append(self.stage(n, F.max_pool2d(maps[-1], 2)))
        x = maps[4]
        for n in range(4):
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
            x = self.stage(5 + n, torch.cat([x, maps[3 - n]], 1))
        return x


def test_polycl_unet_computes_what_a_literal_one_does() -> None:
    backbone, literal = build_backbone("unet2d_4").eval().double(), LiteralUNet(4).double()
    for theirs, ours in zip(literal.parameters(), backbone.parameters(), strict=True):
        theirs.data.copy_(ours.data)
    x = torch.randn(2, 1, 48, 64, dtype=torch.float64)
    torch.testing.assert_close(backbone(x), literal(x))


def test_dropout_of_the_polycl_unet_is_on_in_training_only() -> None:
    backbone = build_backbone("unet2d_4")
    x = torch.randn(2, 1, 32, 32)
    assert 0.15 < (backbone.encoder(x)[0] == 0).float().mean() < 0.35
    assert (backbone.eval().encoder(x)[0] == 0).float().mean() < 0.01


def test_positions_are_those_of_the_formula_whatever_the_grid() -> None:
    width = 16
    found = sincos_positions(3, 5, width).unflatten(0, (3, 5))
    for row in range(3):
        for column in range(5):
            rates = [10000.0 ** (-n / (width // 4)) for n in range(width // 4)]
            expected = [
                wave(place * rate)
                for place in (row, column)
                for wave in (math.sin, math.cos)
                for rate in rates
            ]
            torch.testing.assert_close(found[row, column], torch.tensor(expected), rtol=1e-5, atol=1e-6)
    larger = sincos_positions(7, 9, width).unflatten(0, (7, 9))
    assert torch.equal(
        larger[:3, :5], found
    )  # methods.md 1.4 (g): another grid leaves the shared places alone


def vit() -> VitEncoder:
    encoder = build_backbone("vit_tiny").encoder.eval()
    assert isinstance(encoder, VitEncoder)
    return encoder


def test_all_tokens_are_the_deepest_map_row_by_row() -> None:
    encoder, x = vit(), torch.randn(2, 1, 32, 48)
    assert torch.equal(encoder.tokens(x), encoder(x)[-1].flatten(2).transpose(1, 2))
    everything = torch.arange(24).expand(2, -1)
    assert torch.equal(encoder.tokens(x, everything), encoder.tokens(x))


def test_tokens_follow_the_order_in_which_patches_are_kept() -> None:
    encoder, x = vit(), torch.randn(1, 1, 32, 48)
    one, other = torch.tensor([[3, 17, 8]]), torch.tensor([[8, 3, 17]])
    torch.testing.assert_close(encoder.tokens(x, one)[:, [2, 0, 1]], encoder.tokens(x, other))


def test_pixels_of_patches_that_are_not_kept_change_nothing() -> None:
    """methods.md 1.4 (b), bit for bit."""
    encoder, x = vit(), torch.randn(2, 1, 32, 48)
    kept = torch.tensor([[0, 7, 23], [2, 11, 12]])
    masked = torch.ones(2, 24).scatter_(1, kept, 0.0).reshape(2, 1, 4, 6)
    changed = x + 100.0 * F.interpolate(masked, scale_factor=8.0)
    assert not torch.equal(x, changed)
    assert torch.equal(encoder.tokens(x, kept), encoder.tokens(changed, kept))


def test_taps_are_evenly_spaced_one_for_each_doubling() -> None:
    assert vit().taps == (1, 3, 4)
    assert vit().strides == (1, 8, 8, 8)
