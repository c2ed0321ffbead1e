"""One training step of PolyCL, AnatoMask and TCS-MAE as their published code computes it, to be timed against.

Written from descriptions of the methods, to do the same work in the same way: passes that are made one after
another, gathers and scatters of sparse norms, maps that are built and not used, loops over samples. The networks have
our weights' shapes; the U-Net is made of PyTorch's own layers in PyTorch's own layout, as the published one is.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from medssl.backbones.base import Backbone
from medssl.backbones.cpu import Dropout, LeakyInstanceNorm
from medssl.backbones.stunet import PATCH, ResidualBlock, STUNetEncoder
from medssl.backbones.unet2d import UNetEncoder
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["AnatoMaskStep", "PolyCLStep", "TCSMAEStep", "polycl_triplet", "with_torch_layers"]


def with_torch_layers(backbone: Backbone) -> Backbone:
    """A copy of a backbone in which a U-Net's norms, activations and dropout are PyTorch's; others stay as they are."""
    plain = copy.deepcopy(backbone)
    if not isinstance(plain.encoder, UNetEncoder):
        return plain
    for module in list(plain.modules()):
        width = 0
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d):
                width = child.out_channels
            elif isinstance(child, LeakyInstanceNorm):
                layers = nn.InstanceNorm2d(width), nn.LeakyReLU(child.slope, inplace=True)
                setattr(module, name, nn.Sequential(*layers))
            elif isinstance(child, Dropout):
                setattr(module, name, nn.Dropout(child.p).train(child.training))
    plain.encoder.forward = functools.partial(_stages, plain.encoder)  # type: ignore[method-assign]
    return plain


def _stages(encoder: UNetEncoder, x: Tensor) -> list[Tensor]:
    maps: list[Tensor] = []
    for stage in encoder.stages:
        maps.append(stage(F.max_pool2d(maps[-1], 2) if maps else x))
    return maps


class PolyCLStep:
    """Three passes, one for each of anchor, positive and negative; the loss with exponentials; Adam."""

    def __init__(self, backbone: Backbone, temperature: float) -> None:
        self.encoder, self.temperature = with_torch_layers(backbone).encoder.train(), temperature
        self.head = nn.Linear(backbone.encoder.widths[-1], 256)
        self.optimiser = torch.optim.Adam([*self.encoder.parameters(), *self.head.parameters()], 1e-4)

    def __call__(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> float:
        self.optimiser.zero_grad()
        main, against, alike = (self._embed(images) for images in (anchor, negative, positive))
        near = torch.exp(F.cosine_similarity(main, alike) / self.temperature)
        far = torch.exp(F.cosine_similarity(main, against) / self.temperature)
        loss = torch.mean(-torch.log(near / (near + far)))
        loss.backward()
        self.optimiser.step()
        return float(loss.detach())

    def _embed(self, images: Tensor) -> Tensor:
        return self.head(F.adaptive_avg_pool2d(F.max_pool2d(self.encoder(images)[-1], 2), 1).flatten(1))


def polycl_triplet(
    scans: Sequence[Path], masks: Sequence[Path], scan: int, size: int, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Draw a positive and a negative of PolyCL-S: each time image and mask of a scan are read whole, as float64."""
    partner = int(rng.integers(len(scans) - 1))
    drawn = []
    for which in (scan, partner + (partner >= scan)):
        sitk.GetArrayFromImage(sitk.ReadImage(str(masks[which]))).astype(np.float64)
        voxels = sitk.GetArrayFromImage(sitk.ReadImage(str(scans[which]))).astype(np.float64)
        windowed = np.clip(voxels, -160.0, 240.0)
        plane = windowed[int(rng.integers(len(windowed)))]
        picture = Image.fromarray(plane.astype(np.float32)).resize((size, size), Image.Resampling.BILINEAR)
        drawn.append((np.asarray(picture) + 3055.0) / 8866.0)
    return drawn[0].astype(np.float32), drawn[1].astype(np.float32)


class TCSMAEStep:
    """Two passes, a loop over samples to mask tissues, SSIM by 15 x 15 convolutions, heads on three levels."""

    def __init__(self, backbone: Backbone, channels: int, window: int, intervals: int, ratio: float) -> None:
        self.backbone = with_torch_layers(backbone).train()
        self.head = nn.Conv2d(backbone.decoder.width, channels, 3, padding=1)
        self.projections = nn.ModuleList(nn.Linear(width, 128) for width in backbone.encoder.widths[-3:])
        self.intervals, self.drawn, self.window = intervals, int(intervals * ratio), window
        parts = [self.backbone, self.head, self.projections]
        self.optimiser = torch.optim.AdamW([p for part in parts for p in part.parameters()], 1e-4)

    def __call__(self, images: Tensor) -> float:
        made, embedded = self._network(self._mask_tissues(images))
        whole, others = self._network(images)
        loss = self._dissimilar(made, images) + self._dissimilar(whole, images)
        for a, b in zip(embedded, others, strict=True):
            loss = loss + F.cosine_embedding_loss(a, b, torch.ones(len(a))) * 1000
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        return float(loss.detach())

    def _network(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        maps = self.backbone.encoder(images)
        pooled = [F.adaptive_max_pool2d(level, 1).flatten(1) for level in maps[-3:]]
        embedded = [head(values) for head, values in zip(self.projections, pooled, strict=True)]
        return torch.sigmoid(self.head(self.backbone.decoder(maps))), embedded

    def _mask_tissues(self, images: Tensor) -> Tensor:
        last = images.permute(0, 2, 3, 1)
        result = torch.zeros_like(last)
        for n, image in enumerate(last):
            grey = 0.2989 * image[..., 0] + 0.5870 * image[..., 1] + 0.1140 * image[..., 2]
            masked = image.clone()
            for place in torch.randint(0, self.intervals, (self.drawn,)):
                low, high = place / self.intervals, (place + 1) / self.intervals
                masked[(grey >= low) & (grey < high)] = torch.zeros(3)
            result[n] = masked
        return result.permute(0, 3, 1, 2)

    def _dissimilar(self, made: Tensor, images: Tensor) -> Tensor:
        channels, side = images.shape[1], self.window
        line = torch.exp(-((torch.arange(side) - side // 2) ** 2) / (2 * 1.5**2))
        line = line / line.sum()
        kernel = torch.outer(line, line).expand(channels, 1, side, side).contiguous()

        def blur(x: Tensor) -> Tensor:
            return F.conv2d(x, kernel, padding=side // 2, groups=channels)

        a, b = blur(made), blur(images)
        aa, bb, ab = (
            blur(made * made) - a * a,
            blur(images * images) - b * b,
            blur(made * images) - a * b,
        )
        similar = (2 * a * b + 1e-4) * (2 * ab + 9e-4) / ((a * a + b * b + 1e-4) * (aa + bb + 9e-4))
        return torch.mean(1 - similar.mean((1, 2, 3)))


class AnatoMaskStep:
    """Teacher and student on SparK's sparse emulation: masks are expanded after every convolution, norms gather and
    scatter, all five maps are filled and projected, final masks are made sample by sample on the CPU."""

    def __init__(self, encoder: STUNetEncoder, width: int) -> None:
        self.student = _SparK(encoder, width).train()
        self.teacher = copy.deepcopy(self.student).eval().requires_grad_(False)
        self.optimiser = torch.optim.AdamW(self.student.parameters(), 1e-4, weight_decay=1e-5)

    def __call__(self, images: Tensor, hard: float) -> float:
        grid = [side // PATCH for side in images.shape[2:]]
        patches, kept = int(np.prod(grid)), round(0.4 * int(np.prod(grid)))
        chosen = torch.rand(len(images), patches).argsort(1)[:, :kept]
        active = torch.zeros(len(images), patches, dtype=torch.bool).scatter_(1, chosen, True)
        active = active.view(-1, 1, *grid)
        with torch.no_grad():
            raw, made = self.teacher(images, active)
            ranked = _squared_error(made, raw, active)[1]
            active = _harder(ranked, kept, hard).view(-1, 1, *grid)
        raw, made = self.student(images, active)
        target = (raw - raw.mean(-1, keepdim=True)) / (raw.var(-1, keepdim=True) + 1e-6) ** 0.5
        loss = _squared_error(made, target, active)[0]
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.student.parameters(), 12.0)
        self.optimiser.step()
        with torch.no_grad():
            ours = self.student.state_dict()
            for name, value in self.teacher.state_dict().items():
                value.copy_(value * 0.999 + ours[name] * 0.001)
        return float(loss.detach())


def _squared_error(made: Tensor, target: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over the masked patches, and that of each patch, 0 where visible."""
    masked = active.logical_not().flatten(1)
    errors = (made - target).square().mean(2) * masked
    return errors.sum() / masked.sum(), errors


def _harder(errors: Tensor, kept: int, hard: float) -> Tensor:
    """What the student sees: all but the worst patches and as many others as are left to mask, sample by sample."""
    hidden = errors.shape[1] - kept
    worst = int(hard * hidden)
    generator = np.random.default_rng()
    visible = torch.ones_like(errors, dtype=torch.bool)
    for sample, order in zip(visible, errors.argsort(1, descending=True), strict=True):
        others = generator.choice(order[worst:].numpy(), hidden - worst, replace=False)
        sample[order[:worst]] = False
        sample[torch.from_numpy(others)] = False
    return visible


class _SparK(nn.Module):
    """Encoder of five stages, five filled maps, decoder with batch norm."""

    def __init__(self, encoder: STUNetEncoder, width: int) -> None:
        super().__init__()
        self.stages = copy.deepcopy(encoder.stages[:5])
        channels = encoder.widths[4::-1]
        self.norms = nn.ModuleList(nn.InstanceNorm1d(c, affine=True) for c in channels)
        self.tokens = nn.ParameterList(0.02 * torch.randn(1, c, 1, 1, 1) for c in channels)
        kernels = (1, 3, 3, 3, 3)
        self.projections = nn.ModuleList(
            nn.Conv3d(c, width >> n, k, padding=k // 2)
            for n, (c, k) in enumerate(zip(channels, kernels, strict=True))
        )
        self.ups = nn.ModuleList(_up(width >> n) for n in range(4))
        self.out = nn.Conv3d(width >> 4, 1, 1)

    def forward(self, images: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
        x = images * _expanded(active, images)
        maps = []
        for stage in self.stages:
            for block in stage.blocks:
                x = _sparse_block(block, x, active)
            maps.append(x)
        filled = []
        for n, feature in enumerate(reversed(maps)):
            normed = _sparse_norm(feature, self.norms[n].weight, self.norms[n].bias, active)
            seen = _expanded(active, feature).expand_as(feature)
            filled.append(self.projections[n](torch.where(seen, normed, self.tokens[n].expand_as(feature))))
        y: Tensor | float = 0.0
        for up, beside in zip(self.ups, filled[:4], strict=True):  # the fifth is never used
            y = up(y + beside)
        return _patches(images), _patches(self.out(y))


def _up(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose3d(channels, channels, 4, 2, 1),
        nn.Conv3d(channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm3d(channels),
        nn.ReLU6(inplace=True),
        nn.Conv3d(channels, channels // 2, 3, padding=1, bias=False),
        nn.BatchNorm3d(channels // 2),
    )


def _expanded(active: Tensor, x: Tensor) -> Tensor:
    for axis in (2, 3, 4):
        active = active.repeat_interleave(x.shape[axis] // active.shape[axis], axis)
    return active


def _sparse_conv(conv: Callable[[Tensor], Tensor], x: Tensor, active: Tensor) -> Tensor:
    y = conv(x)
    return y * _expanded(active, y)


def _sparse_norm(x: Tensor, weight: Tensor, bias: Tensor, active: Tensor) -> Tensor:
    n, i, j, k = _expanded(active, x).squeeze(1).nonzero(as_tuple=True)
    gathered = x[n, :, i, j, k].transpose(0, 1)  # (C, visible voxels of the whole batch)
    normed = F.instance_norm(gathered[None], weight=weight, bias=bias, eps=1e-5)[0]
    result = torch.zeros_like(x)
    result[n, :, i, j, k] = normed.t()
    return result


def _sparse_block(block: ResidualBlock, x: Tensor, active: Tensor) -> Tensor:
    y = _sparse_conv(block.conv1, x, active)
    y = F.leaky_relu(_sparse_norm(y, block.norm1.weight, block.norm1.bias, active), 0.01)
    y = _sparse_conv(block.conv2, y, active)
    y = _sparse_norm(y, block.norm2.weight, block.norm2.bias, active)
    if isinstance(block.shortcut, nn.Conv3d):
        x = _sparse_conv(block.shortcut, x, active)
    return F.leaky_relu(y + x, 0.01)


def _patches(volume: Tensor) -> Tensor:
    """(B, C, *S) to (B, patches, numbers of a patch)."""
    cut = volume
    for axis in (2, 3, 4):
        cut = cut.unfold(axis, PATCH, PATCH)
    return cut.movedim(1, -1).flatten(4).flatten(1, 3)
