"""One picture of a propagation: three planes through the volume, and the confidence of every slice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .segmentation import Segment, Segmentation
from .storage import atomic_path
from .volume import VIEWS, View, Volume, Window, as_stack, from_stack, take_slice

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .pipeline import PropagationResult

__all__ = ["report_figure", "write_report"]

_BACKGROUND = "#14171a"
_TEXT = "#e6e6e6"
_FAINT = "#8b9299"
_TRUTH = "#ffffff"
_WIDTH_IN = 15.0
_TALLEST_PANEL_IN = 6.0
_HEADING_IN = 0.95
_GAP_IN = 0.35
_ROW_IN = 0.36
_FOOT_IN = 0.75
_MOST_ROWS = 16
"""Segments shown with a confidence curve; the picture names how many more there are."""
_FILL = 0.45
_RIGHT_OF_IMAGE: dict[View, str] = {"axial": "L", "coronal": "L", "sagittal": "P"}
_TOP_OF_IMAGE: dict[View, str] = {"axial": "A", "coronal": "S", "sagittal": "S"}
_OPPOSITE = {"R": "L", "L": "R", "A": "P", "P": "A", "S": "I", "I": "S"}


def write_report(
    path: str | Path,
    volume: Volume,
    result: PropagationResult,
    truth: Segmentation | None = None,
    remarks: Mapping[str, str] | None = None,
    title: str = "",
    window: Window | None = None,
) -> None:
    """Write the picture of a propagation as a PNG file.

    Args:
        path: the file to create or replace.
        volume: the image.
        result: what was propagated.
        truth: the whole organs, drawn as outlines; None leaves them out.
        remarks: a few words per segment at the end of its row, e.g. its score.
        title: heading of the picture.
        window: how intensities become grey; None takes `Window.auto`.

    Raises:
        StorageError: no space or no permission.
    """
    figure = report_figure(volume, result, truth, remarks, title, window)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, facecolor=_BACKGROUND)


def report_figure(
    volume: Volume,
    result: PropagationResult,
    truth: Segmentation | None = None,
    remarks: Mapping[str, str] | None = None,
    title: str = "",
    window: Window | None = None,
) -> Figure:
    """Draw what `write_report` writes; takes the same arguments."""
    from matplotlib.figure import Figure

    shown = _largest_segments(result)
    planes = [_Plane.best(volume, result, view) for view in VIEWS]
    widths = [plane.width_mm / plane.height_mm for plane in planes]
    panel_in = min(0.94 * _WIDTH_IN / sum(widths), _TALLEST_PANEL_IN)
    curves_in = _ROW_IN * len(shown)
    height_in = _HEADING_IN + panel_in + _GAP_IN + curves_in + _FOOT_IN
    figure = Figure(figsize=(_WIDTH_IN, height_in), facecolor=_BACKGROUND)

    left = (1 - panel_in * sum(widths) / _WIDTH_IN) / 2
    for plane, width in zip(planes, widths, strict=True):
        share = panel_in * width / _WIDTH_IN
        bottom = (_FOOT_IN + curves_in + _GAP_IN) / height_in
        axes = figure.add_axes((left, bottom, 0.98 * share, panel_in / height_in))
        _draw_plane(axes, plane, volume, result, truth, window or Window.auto(volume))
        left += share
    axes = figure.add_axes((0.14, _FOOT_IN / height_in, 0.62 if remarks else 0.83, curves_in / height_in))
    _draw_confidence(axes, result, truth, shown, remarks or {}, volume.view_of(result.axis))

    top = 1 - 0.3 / height_in
    outline = "   white outline: truth" if truth else ""
    legend = f"colour: result{outline}   line and diamond: reference slice"
    figure.text(0.03, top, title, color=_TEXT, fontsize=14, weight="bold", va="center")
    figure.text(0.97, top, legend, color=_FAINT, fontsize=10, va="center", ha="right")
    return figure


@dataclass(frozen=True)
class _Plane:
    """One slice, and how to turn its array the way radiologists look at it."""

    view: View
    axis: int
    index: int
    transpose: bool
    flip_rows: bool
    flip_columns: bool
    height_mm: float
    width_mm: float

    @classmethod
    def best(cls, volume: Volume, result: PropagationResult, view: View) -> _Plane:
        """Take the slice that shows most of the segments, where possible one that was not annotated."""
        axis = volume.axis_of(view)
        row_axis, column_axis = (a for a in range(3) if a != axis)
        transpose = _world_axis(volume, row_axis) != "RAS".index(_plus(_TOP_OF_IMAGE[view]))
        if transpose:
            row_axis, column_axis = column_axis, row_axis
        return cls(
            view,
            axis,
            _richest_slice(result, axis),
            transpose,
            _direction(volume, row_axis) == _TOP_OF_IMAGE[view],
            _direction(volume, column_axis) != _RIGHT_OF_IMAGE[view],
            volume.shape_kji[row_axis] * volume.spacing_kji_mm[row_axis],
            volume.shape_kji[column_axis] * volume.spacing_kji_mm[column_axis],
        )

    def image(self, array_kji: NDArray[Any]) -> NDArray[Any]:
        """Return the slice as an image (rows from the top), e.g. of the voxels or of a mask."""
        image = take_slice(array_kji, self.axis, self.index)
        image = image.T if self.transpose else image
        return image[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]

    def indices(self, volume: Volume, axis: int) -> NDArray[Any]:
        """Return the image of the slice numbers across another axis."""
        numbers = np.arange(volume.shape_kji[axis])
        return self.image(
            from_stack(np.broadcast_to(numbers[:, None, None], _stack_shape(volume, axis)), axis)
        )


def _draw_plane(
    axes: Axes,
    plane: _Plane,
    volume: Volume,
    result: PropagationResult,
    truth: Segmentation | None,
    window: Window,
) -> None:
    image = plane.image(volume.voxels_kji)
    extent = (0.0, plane.width_mm, plane.height_mm, 0.0)
    axes.imshow(window.apply(image), cmap="gray", vmin=0, vmax=1, extent=extent, interpolation="bilinear")
    labels = plane.image(result.segmentation.labels_kji)
    axes.imshow(_tinted(labels, result.segmentation.segments), extent=extent, interpolation="nearest")
    rows, columns = image.shape
    row_mm = (np.arange(rows) + 0.5) * plane.height_mm / rows
    column_mm = (np.arange(columns) + 0.5) * plane.width_mm / columns
    if truth is not None:
        for segment in truth.segments:
            outline = plane.image(truth.labels_kji == segment.label)
            if outline.any():
                axes.contour(column_mm, row_mm, outline, levels=[0.5], colors=_TRUTH, linewidths=0.8)
    if plane.axis != result.axis:
        numbers = plane.indices(volume, result.axis)
        for segment in result.segmentation.segments:
            organ = labels == segment.label
            for index in result.references[segment.name]:
                on_line = np.argwhere(organ & (numbers == index))
                if on_line.size:
                    first, last = on_line.min(axis=0), on_line.max(axis=0)
                    ends = (column_mm[[first[1], last[1]]], row_mm[[first[0], last[0]]])
                    axes.plot(*ends, color=_BACKGROUND, linewidth=4, solid_capstyle="butt")
                    axes.plot(*ends, color=segment.color_rgb, linewidth=2, solid_capstyle="butt")
    axes.set_title(f"{plane.view}, slice {plane.index}", color=_TEXT, fontsize=11)
    _mark_sides(axes, plane.view)
    axes.set_axis_off()


def _mark_sides(axes: Axes, view: View) -> None:
    from matplotlib.patheffects import withStroke

    right, top = _RIGHT_OF_IMAGE[view], _TOP_OF_IMAGE[view]
    for x, y, letter in (
        (0.02, 0.5, _OPPOSITE[right]),
        (0.98, 0.5, right),
        (0.5, 0.97, top),
        (0.5, 0.03, _OPPOSITE[top]),
    ):
        axes.text(
            x,
            y,
            letter,
            transform=axes.transAxes,
            color=_TEXT,
            fontsize=9,
            ha="center",
            va="center",
            path_effects=[withStroke(linewidth=2.5, foreground=_BACKGROUND)],
        )


def _draw_confidence(
    axes: Axes,
    result: PropagationResult,
    truth: Segmentation | None,
    shown: Sequence[Segment],
    remarks: Mapping[str, str],
    view: View,
) -> None:
    slices = as_stack(result.segmentation.labels_kji, result.axis).shape[0]
    x = np.arange(slices)
    for row, segment in enumerate(shown):
        base = len(shown) - 1 - row
        confidence = result.confidence[segment.name]
        height = base + 0.82 * np.nan_to_num(confidence)
        known = np.isfinite(confidence)
        axes.axhline(base, color="#2b3035", linewidth=0.8)
        axes.fill_between(
            x, base, height, where=known, color=segment.color_rgb, alpha=_FILL, step="mid", linewidth=0
        )
        axes.step(x, np.where(known, height, np.nan), where="mid", color=segment.color_rgb, linewidth=1.1)
        if truth is not None and segment.name in truth.names:
            inside = np.flatnonzero(as_stack(truth.mask(segment.name), result.axis).any(axis=(1, 2)))
            axes.plot([inside[0] - 0.5, inside[-1] + 0.5], [base, base], color=_TRUTH, linewidth=1.6)
        marks = result.references[segment.name]
        axes.plot(
            marks,
            [base + 0.41] * len(marks),
            "D",
            color=segment.color_rgb,
            markeredgecolor="white",
            markersize=6.5,
        )
        axes.text(1.01, base + 0.36, remarks.get(segment.name, ""), transform=axes.get_yaxis_transform(), color=_TEXT,
                  fontsize=9.5, va="center", family="monospace")  # fmt: skip
    axes.set_yticks([len(shown) - 1 - row + 0.36 for row in range(len(shown))], [s.name for s in shown])
    axes.set_xlim(-0.5, slices - 0.5)
    axes.set_ylim(-0.12, len(shown))
    hidden = len(result.segmentation.segments) - len(shown)
    more = f"; the {len(shown)} largest segments, {hidden} more not shown" if hidden else ""
    extent = "; white line: where the organ truly is" if truth is not None else ""
    axes.set_xlabel(f"{view} slice: confidence 0 to 1 in each row{extent}{more}", color=_FAINT, fontsize=10)
    axes.set_facecolor(_BACKGROUND)
    axes.tick_params(colors=_TEXT, length=0, labelsize=9.5)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _largest_segments(result: PropagationResult) -> list[Segment]:
    sizes = np.bincount(result.segmentation.labels_kji.ravel())
    by_size = sorted(
        result.segmentation.segments, key=lambda s: -int(sizes[s.label]) if s.label < len(sizes) else 0
    )
    kept = {segment.name for segment in by_size[:_MOST_ROWS]}
    return [segment for segment in result.segmentation.segments if segment.name in kept]


def _richest_slice(result: PropagationResult, axis: int) -> int:
    """Index of the slice with most segments; the root of the area keeps a large organ from deciding alone."""
    stack = as_stack(result.segmentation.labels_kji, axis)
    richness = np.zeros(len(stack))
    for segment in result.segmentation.segments:
        richness += np.sqrt((stack == segment.label).sum(axis=(1, 2)))
    if axis == result.axis:
        annotated = [index for indices in result.references.values() for index in indices]
        richness[annotated] *= 0.5
    return int(richness.argmax())


def _tinted(labels: NDArray[Any], segments: Sequence[Segment]) -> NDArray[np.float32]:
    rgba = np.zeros((*labels.shape, 4), np.float32)
    for segment in segments:
        rgba[labels == segment.label] = (*segment.color_rgb, _FILL)
    return rgba


def _world_axis(volume: Volume, axis: int) -> int:
    """World axis (0 = right, 1 = anterior, 2 = superior) that a voxel axis follows most closely."""
    return {"sagittal": 0, "coronal": 1, "axial": 2}[volume.view_of(axis)]


def _direction(volume: Volume, axis: int) -> str:
    """Letter of the side of the patient that growing indices go to."""
    world = _world_axis(volume, axis)
    positive = volume.ijk_to_ras[world, 2 - axis] > 0
    return "RAS"[world] if positive else _OPPOSITE["RAS"[world]]


def _plus(letter: str) -> str:
    """Letter of the positive direction of a side's world axis."""
    return letter if letter in "RAS" else _OPPOSITE[letter]


def _stack_shape(volume: Volume, axis: int) -> tuple[int, ...]:
    return as_stack(volume.voxels_kji, axis).shape
