"""Blocks of voxels for 3D methods: where they lie, and how one is drawn."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..backbones.stunet import PATCH
from ..datasets.data import UnlabelledVolumes
from ..datasets.input_contract import InputContract
from .base import Anchor

__all__ = ["block_anchors", "draw_block"]

_MOST_PADDING = 0.95


def block_anchors(volumes: UnlabelledVolumes, slices: int, per_scan: int | None) -> list[Anchor]:
    """Where one epoch's blocks lie: the middles of equal segments of each scan.

    Args:
        volumes: the scans.
        slices: of a block.
        per_scan: blocks of each scan; None takes as many as cover it.
    """
    anchors = []
    for scan, facts in enumerate(volumes.scans):
        length = facts.shape_kji[0]
        segments = per_scan or max(1, round(length / slices))
        anchors += [Anchor(scan, int((n + 0.5) * length / segments)) for n in range(segments)]
    return anchors


def draw_block(
    volumes: UnlabelledVolumes,
    contract: InputContract,
    anchor: Anchor,
    rng: np.random.Generator,
    *,
    per_scan: int | None,
    flips: bool,
) -> dict[str, Tensor]:
    """Draw a block of voxels around a slice, flipped at random along each axis.

    Returns:
        "image": (C, *S) float32; "padded": (*G) bool, patches of which more than 95 % lies outside the scan.
    """
    facts, size = volumes.scans[anchor.scan], contract.size
    segments = per_scan or max(1, round(facts.shape_kji[0] / size[0]))
    middle = anchor.k + int(rng.uniform(-0.5, 0.5) * facts.shape_kji[0] / segments)
    starts, inside = [], []
    for axis, (have, want) in enumerate(zip(facts.shape_kji, size, strict=True)):
        low, high = min(0, have - want), max(0, have - want)
        start = int(rng.integers(low, high + 1))
        if axis == 0 and have > want:
            start = min(max(middle - want // 2, low), high)
        positions = np.arange(start, start + want)
        starts.append(start)
        inside.append(((positions >= 0) & (positions < have)).reshape(-1, PATCH).mean(axis=1))
    image = contract.apply(volumes.block(anchor.scan, starts, size), facts.stats)
    padded = np.einsum("i,j,k->ijk", *inside) < 1.0 - _MOST_PADDING
    axes = [axis for axis in range(3) if flips and rng.random() < 0.5]
    return {
        "image": torch.from_numpy(image).flip([axis + 1 for axis in axes]),
        "padded": torch.from_numpy(padded).flip(axes),
    }
