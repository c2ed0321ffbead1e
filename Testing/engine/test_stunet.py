"""STU-Net: its published sizes, and one encoder that reads whole and masked volumes alike (methods.md, 3.2 and 3.6)."""

from __future__ import annotations

import pytest
import torch
from medssl.backbones import BACKBONES, build_backbone
from medssl.backbones.sparse import normalise, visible_at
from medssl.backbones.stunet import STUNetEncoder, stunet
from medssl.errors import InputError
from torch import Tensor, nn

WIDTHS = (4, 8, 8, 8, 16, 16)


@pytest.fixture
def encoder() -> STUNetEncoder:
    torch.manual_seed(0)
    built = stunet(1, widths=WIDTHS, depth=2).encoder
    for name, value in built.named_parameters():  # norms with weights of their own, as after training
        if "norm" in name:
            nn.init.normal_(value, mean=1.0 if name.endswith("weight") else 0.0, std=0.3)
    return built


def volume(seed: int = 1, batch: int = 2) -> Tensor:
    return torch.randn(batch, 1, 48, 32, 32, generator=torch.Generator().manual_seed(seed))


def mask(seed: int = 2, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, 2, 2, generator=torch.Generator().manual_seed(seed)) < 0.6


@pytest.mark.parametrize(
    ("name", "millions"),
    [("stunet_s", 14.60), ("stunet_b", 58.26), ("stunet_l", 440.30), ("stunet_h", 1457.33)],
)
def test_a_size_has_the_published_number_of_parameters(name: str, millions: float) -> None:
    with torch.device("meta"):
        backbone = build_backbone(name)
    heads = sum(105 * (width + 1) for width in backbone.encoder.widths[:5])  # deep supervision, 105 classes
    count = sum(parameter.numel() for parameter in backbone.parameters()) + heads
    assert round(count / 1e6, 2) == millions


def test_the_backbone_gives_a_map_at_full_resolution() -> None:
    backbone = build_backbone("stunet_tiny", in_channels=2)
    x = torch.randn(1, 2, 32, 16, 16)
    maps = backbone.encoder(x)
    assert [tuple(m.shape[2:]) for m in maps] == [
        tuple(side // stride for side in (32, 16, 16)) for stride in backbone.encoder.strides
    ]
    assert tuple(m.shape[1] for m in maps) == backbone.encoder.widths
    assert backbone(x).shape == (1, backbone.decoder.width, 32, 16, 16)
    assert BACKBONES["stunet_tiny"].small


def test_the_stem_is_every_weight_that_sees_the_input() -> None:
    one, three = (dict(stunet(n, widths=WIDTHS, depth=1).encoder.named_parameters()) for n in (1, 3))
    changed = {name for name in one if one[name].shape != three[name].shape}
    assert changed == set(STUNetEncoder.stem)


def test_with_nothing_masked_the_sparse_encoder_is_the_dense_one(encoder: STUNetEncoder) -> None:
    # 3.6 (e)
    encoder, x = encoder.double(), volume().double()
    for whole, part in zip(encoder(x), encoder(x, torch.zeros(2, 3, 2, 2, dtype=torch.bool)), strict=True):
        torch.testing.assert_close(part, whole, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("garbage", [1e6, float("nan"), float("inf")])
def test_masked_voxels_are_never_read_and_stay_zero(encoder: STUNetEncoder, garbage: float) -> None:
    # 3.6 (d)
    x, masked = volume(), mask()
    hidden = visible_at(masked, x.shape[2:], x.dtype).voxels == 0
    maps = encoder(x, masked)
    for n, (here, there) in enumerate(
        zip(maps, encoder(x.masked_fill(hidden, garbage), masked), strict=True)
    ):
        assert torch.equal(here, there)
        covered = visible_at(masked, here.shape[2:], here.dtype).voxels == 0
        assert covered.any()
        assert (here.masked_select(covered) == 0).all(), f"stage {n}"


@pytest.mark.parametrize("pooled", [False, True])
def test_a_sample_depends_on_the_others_only_with_pooled_statistics(
    encoder: STUNetEncoder, pooled: bool
) -> None:
    # 3.6 (h)
    masked = mask()
    x = volume()
    other = torch.cat([x[:1], 3.0 * volume(seed=7)[1:]])
    here, there = (encoder(batch, masked, pooled_statistics=pooled)[-1][0] for batch in (x, other))
    assert torch.equal(here, there) is not pooled


def test_the_sparse_norm_is_the_norm_of_the_gathered_voxels() -> None:
    torch.manual_seed(0)
    norm = nn.InstanceNorm3d(3, affine=True)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x, masked = torch.randn(2, 3, 4, 4, 4), torch.rand(2, 2, 2, 2) < 0.5
    for pooled in (False, True):
        visible = visible_at(masked, (4, 4, 4), x.dtype, pooled=pooled)
        y = normalise(x, norm, visible, fill=torch.full((1, 3, 1, 1, 1), 9.0))
        seen = visible.voxels[:, 0].bool()
        groups = [(slice(None), seen)] if pooled else [(slice(n, n + 1), seen[n : n + 1]) for n in range(2)]
        for rows, where in groups:
            values = x[rows].movedim(1, -1)[where]  # (voxels, C)
            wanted = (values - values.mean(0)) / (values.var(0, unbiased=False) + norm.eps).sqrt()
            wanted = wanted * norm.weight + norm.bias
            torch.testing.assert_close(y[rows].movedim(1, -1)[where], wanted, rtol=1e-5, atol=1e-5)
        assert (y.movedim(1, -1)[~seen] == 9.0).all()


@pytest.mark.parametrize("kind", ["dense", "masked", "pooled"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_the_norm_has_the_gradient_of_its_formula(kind: str, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    norm = nn.InstanceNorm3d(2, affine=True).double()
    x = torch.randn(2, 2, 2, 4, 2, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    masked = torch.tensor([[[[False], [True]]], [[[False], [False]]]])
    visible = None if kind == "dense" else visible_at(masked, (2, 4, 2), x.dtype, pooled=kind == "pooled")

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(_Norm(norm, visible), {"norm.weight": weight, "norm.bias": bias}, x)

    assert torch.autograd.gradcheck(run, (x, norm.weight, norm.bias))


class _Norm(nn.Module):
    def __init__(self, norm: nn.InstanceNorm3d, visible: object) -> None:
        super().__init__()
        self.norm, self.visible = norm, visible

    def forward(self, x: Tensor) -> Tensor:
        return normalise(x, self.norm, self.visible)


def test_a_sample_with_everything_masked_is_zero_and_finite(encoder: STUNetEncoder) -> None:
    maps = encoder(volume(batch=1), torch.ones(1, 3, 2, 2, dtype=torch.bool))
    assert all((m == 0).all() for m in maps)


def test_a_grid_that_does_not_divide_the_volume_is_refused(encoder: STUNetEncoder) -> None:
    with pytest.raises(InputError, match="cannot be cut"):
        encoder(volume(), torch.zeros(2, 5, 2, 2, dtype=torch.bool))
