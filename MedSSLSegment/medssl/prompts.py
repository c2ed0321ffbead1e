"""What a user can say about one slice: points, a box, or a mask.

A prompt lives on the 2D array that `medssl.volume.take_slice` returns for its axis and index. Pixel
coordinates are (x, y) = (column, row) with pixel centres at integers, as in SAM.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .errors import InputError

__all__ = [
    "Reference",
    "SlicePrompt",
    "box_of_mask",
    "boxes_of_components",
    "label_components",
    "margin_px",
    "points_from_scribble",
    "prompt_from_scribbles",
]


def _no_points() -> NDArray[np.float32]:
    return np.zeros((0, 2), np.float32)


def _no_labels() -> NDArray[np.int32]:
    return np.zeros((0,), np.int32)


@dataclass(frozen=True, eq=False)
class SlicePrompt:
    """Points, a box or a mask on one slice.

    Raises:
        InputError: nothing is given, or shapes and labels do not fit together.
    """

    axis: int
    """Slice axis of the voxel grid: 0 = K, 1 = J, 2 = I."""
    index: int
    """Slice index along `axis`."""
    points_xy_px: NDArray[np.float32] = field(default_factory=_no_points)
    """(N, 2) points as (column, row)."""
    point_labels: NDArray[np.int32] = field(default_factory=_no_labels)
    """(N,) 1 = on the object, 0 = off it."""
    box_xyxy_px: NDArray[np.float32] | None = None
    """(4,) first column, first row, last column, last row."""
    mask: NDArray[np.bool_] | None = None
    """(H, W) the object's pixels."""
    choice: int = 0
    """Which answer to the first click, or to the box, is meant where it has several: 0 the likeliest, 1 the next, and
    so on; behind the last one it begins anew."""

    def __post_init__(self) -> None:
        if self.choice < 0:
            raise InputError(
                f"Answers to a click or a box are counted from 0; {self.choice} is none of them."
            )
        if self.axis not in (0, 1, 2):
            raise InputError(f"A prompt's slice axis must be 0, 1 or 2, not {self.axis}.")
        if self.points_xy_px.ndim != 2 or self.points_xy_px.shape[1] != 2:
            raise InputError(f"Points must be an (N, 2) array of x, y; got shape {self.points_xy_px.shape}.")
        if len(self.point_labels) != len(self.points_xy_px):
            raise InputError(
                f"{len(self.points_xy_px)} points came with {len(self.point_labels)} labels; give one each."
            )
        if not np.isin(self.point_labels, (0, 1)).all():
            raise InputError("A point's label must be 1 (on the object) or 0 (off it).")
        if self.box_xyxy_px is not None:
            x0, y0, x1, y1 = (float(v) for v in self.box_xyxy_px)
            if not (x1 > x0 and y1 > y0):
                raise InputError(
                    f"The box {x0:g}, {y0:g}, {x1:g}, {y1:g} is empty; give first and last corner in that order."
                )
        if self.mask is not None and self.mask.ndim != 2:
            raise InputError(f"A mask prompt must be one 2D slice; got shape {self.mask.shape}.")
        if self.mask is None and self.box_xyxy_px is None and len(self.points_xy_px) == 0:
            raise InputError("The prompt is empty: give a point, a box or a mask.")

    def is_like(self, other: SlicePrompt) -> bool:
        """Whether it asks the same as another prompt, to a thousandth of a pixel; never one with a mask."""
        if self.mask is not None or other.mask is not None:
            return False
        here, there = (
            (
                prompt.points_xy_px,
                _no_points() if prompt.box_xyxy_px is None else prompt.box_xyxy_px.reshape(2, 2),
            )
            for prompt in (self, other)
        )
        return (
            (self.axis, self.index, self.choice, self.point_labels.tolist())
            == (other.axis, other.index, other.choice, other.point_labels.tolist())
            and here[1].shape == there[1].shape
            and all(np.allclose(a, b, rtol=0.0, atol=1e-3) for a, b in zip(here, there, strict=True))
        )


@dataclass(frozen=True, eq=False)
class Reference:
    """A prompt the user vouches for, on behalf of one segment."""

    segment: str
    """Name of the segment."""
    prompt: SlicePrompt


def box_of_mask(
    mask: NDArray[np.bool_], margin_px: tuple[float, float] = (0.0, 0.0)
) -> NDArray[np.float32] | None:
    """Smallest box around a mask, grown by a margin and clipped to the slice.

    Args:
        mask: (H, W) bool.
        margin_px: growth in rows and columns, pixels.

    Returns:
        (4,) x0, y0, x1, y1 in pixels, or None for an empty mask.
    """
    rows = np.flatnonzero(mask.any(axis=1))
    cols = np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        return None
    height, width = mask.shape
    return np.array(
        [
            max(cols[0] - margin_px[1], 0),
            max(rows[0] - margin_px[0], 0),
            min(cols[-1] + margin_px[1], width - 1),
            min(rows[-1] + margin_px[0], height - 1),
        ],
        np.float32,
    )


def margin_px(margin_mm: float, spacing_rc_mm: tuple[float, float]) -> tuple[float, float]:
    """A margin in millimetres as pixels along rows and columns, for `box_of_mask`."""
    return margin_mm / spacing_rc_mm[0], margin_mm / spacing_rc_mm[1]


def label_components(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Number the connected components of a mask; pixels that touch at a corner belong together.

    Args:
        mask: (H, W) bool.

    Returns:
        (H, W) int32: 0 off the mask, 1 .. n on it, in the order of each component's first pixel.
    """
    rows, starts, stops = _runs(mask)
    parents = list(range(len(rows)))
    for first, second in _touching_runs(rows, starts, stops):
        a, b = _root(parents, first), _root(parents, second)
        parents[max(a, b)] = min(a, b)
    roots = np.array([_root(parents, run) for run in range(len(rows))], np.int64)
    _, numbers = np.unique(roots, return_inverse=True)
    labels = np.zeros(mask.shape, np.int32)
    for row, start, stop, number in zip(rows, starts, stops, numbers, strict=True):
        labels[row, start:stop] = number + 1
    return labels


def _runs(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Row, first column and column behind the last of every run of mask pixels, row by row."""
    edges = np.diff(np.pad(mask.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    rows, starts = np.nonzero(edges == 1)
    _, stops = np.nonzero(edges == -1)
    return rows, starts, stops


def _touching_runs(
    rows: NDArray[np.int64], starts: NDArray[np.int64], stops: NDArray[np.int64]
) -> list[tuple[int, int]]:
    """Pairs of runs in neighbouring rows that touch, corners included."""
    pairs = []
    above = 0  # the first run that can still touch the current one
    for run, (row, start, stop) in enumerate(zip(rows, starts, stops, strict=True)):
        while rows[above] < row - 1 or (rows[above] == row - 1 and stops[above] < start):
            above += 1
        other = above
        while rows[other] == row - 1 and starts[other] <= stop:
            pairs.append((other, run))
            other += 1
    return pairs


def _root(parents: list[int], run: int) -> int:
    while parents[run] != run:
        parents[run] = parents[parents[run]]
        run = parents[run]
    return run


def boxes_of_components(
    mask: NDArray[np.bool_], min_pixels: int = 1, margin: tuple[float, float] = (0.0, 0.0)
) -> NDArray[np.float32]:
    """One box for each connected component of a mask, the largest component first.

    Args:
        mask: (H, W) bool.
        min_pixels: smaller components get no box.
        margin: growth of each box in rows and columns, pixels.

    Returns:
        (B, 4) x0, y0, x1, y1 in pixels; B is 0 for an empty mask.
    """
    labels = label_components(mask)
    sizes = np.bincount(labels.ravel())[1:]
    order = [n for n in np.argsort(-sizes, kind="stable") if sizes[n] >= min_pixels]
    boxes = [box_of_mask(labels == n + 1, margin) for n in order]
    return np.array(boxes, np.float32).reshape(-1, 4)


def points_from_scribble(
    scribble: NDArray[np.bool_], count: int, method: Literal["even", "random"] = "even", seed: int = 0
) -> NDArray[np.float32]:
    """Stand points on a scribble, for models that take points.

    Args:
        scribble: (H, W) bool, a stroke of any thickness; several strokes and branches are fine.
        count: how many points; fewer come back when the stroke has fewer pixels.
        method: ``even`` spreads them along the middle line, each as far as can be from those before;
            ``random`` draws from all pixels.
        seed: of ``random``; equal seeds give equal points.

    Returns:
        (N, 2) x, y in pixels, all on the scribble.

    Raises:
        InputError: `count` is below 1 or the scribble is not one 2D slice.
    """
    if count < 1:
        raise InputError(f"At least 1 point must be taken from a scribble, not {count}.")
    if scribble.ndim != 2:
        raise InputError(f"A scribble must be one 2D slice; got shape {scribble.shape}.")
    if method == "random":
        pixels = np.argwhere(scribble)
        chosen = np.random.default_rng(seed).choice(len(pixels), min(count, len(pixels)), replace=False)
        return pixels[chosen][:, ::-1].astype(np.float32)
    line = np.argwhere(_middle_line(scribble))
    return _spread(line, count)[:, ::-1].astype(np.float32)


def _middle_line(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels at least as far from the mask's edge, in steps, as each of their eight neighbours."""
    depth = np.zeros(np.add(mask.shape, 2), np.int32)
    layer = np.pad(mask, 1)
    while layer.any():
        depth += layer
        layer[1:-1, 1:-1] &= layer[:-2, 1:-1] & layer[2:, 1:-1] & layer[1:-1, :-2] & layer[1:-1, 2:]
    height, width = mask.shape
    around = np.max([depth[r : r + height, c : c + width] for r in range(3) for c in range(3)], axis=0)
    ridge: NDArray[np.bool_] = mask & (depth[1:-1, 1:-1] == around)
    return ridge


def _spread(points: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Choose points one after the other, each the farthest from those before; the first is nearest the middle."""
    if len(points) == 0:
        return points
    chosen = [int(np.argmin(((points - points.mean(axis=0)) ** 2).sum(axis=1)))]
    nearest = ((points - points[chosen[0]]) ** 2).sum(axis=1)
    while len(chosen) < count and nearest.max() > 0:
        chosen.append(int(np.argmax(nearest)))
        nearest = np.minimum(nearest, ((points - points[chosen[-1]]) ** 2).sum(axis=1))
    return points[chosen]


def prompt_from_scribbles(
    axis: int,
    index: int,
    positive: NDArray[np.bool_],
    negative: NDArray[np.bool_] | None = None,
    points_each: int = 5,
) -> SlicePrompt:
    """A prompt of points from a scribble on the object and, if there is one, a scribble off it.

    Args:
        axis: slice axis of the voxel grid.
        index: slice index along `axis`.
        positive: (H, W) bool, drawn on the object.
        negative: (H, W) bool, drawn off it.
        points_each: how many points stand for each scribble.

    Raises:
        InputError: both scribbles are empty.
    """
    on = points_from_scribble(positive, points_each)
    off = _no_points() if negative is None else points_from_scribble(negative, points_each)
    labels = np.array([1] * len(on) + [0] * len(off), np.int32)
    return SlicePrompt(axis, index, np.concatenate([on, off]), labels)
