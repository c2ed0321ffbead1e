"""Slices written, undone and redone in any order, under any rules: plain arrays say what each segment should hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")

from medssl.scene import nodes, writing  # noqa: E402
from medssl.scene.history import SegmentationHistories  # noqa: E402
from medssl.scene.layers import Layer  # noqa: E402
from medssl.scene.rules import EditingRules  # noqa: E402
from medssl.volume import Volume, as_stack, take_slice  # noqa: E402

State = dict[str, np.ndarray]
STEPS = 25


class Reference:
    """What the segments should hold: one array each, and a list of all states."""

    def __init__(self, ids: list[str], volume: Volume) -> None:
        self.volume = volume
        self.visible = dict.fromkeys(ids, True)
        self.states: list[State] = [{i: np.zeros(volume.shape_kji, bool) for i in ids}]
        self.at = 0

    @property
    def now(self) -> State:
        return self.states[self.at]

    def after(self, segment: str, axis: int, masks: dict[int, np.ndarray], rules: EditingRules) -> State:
        new = {i: mask.copy() for i, mask in self.now.items()}
        for index, wanted in masks.items():
            allowed = self._allowed(segment, axis, index, rules)
            final = np.where(allowed, wanted, as_stack(self.now[segment], axis)[index])
            as_stack(new[segment], axis)[index] = final
            for other in new:
                if other != segment and self._makes_way(other, rules):
                    as_stack(new[other], axis)[index] &= ~final
        return new

    def take(self, new: State) -> None:
        del self.states[self.at + 1 :]
        self.states.append(new)
        self.at += 1

    def _makes_way(self, other: str, rules: EditingRules) -> bool:
        return rules.overwrite == "all" or (rules.overwrite == "visible" and self.visible[other])

    def _allowed(self, segment: str, axis: int, index: int, rules: EditingRules) -> np.ndarray:
        pixels = take_slice(self.volume.voxels_kji, axis, index)
        allowed = np.ones(pixels.shape, bool)
        if rules.area != "everywhere":
            of = [rules.area_segment] if rules.area_of == "one" else list(self.now)
            if rules.area_of != "one":
                of = [i for i in of if rules.area_of == "all" or self.visible[i]]
                of = [i for i in of if rules.area == "inside" or i != segment]
            inside = np.zeros(pixels.shape, bool)
            for i in of:
                inside |= as_stack(self.now[i], axis)[index]
            allowed &= inside if rules.area == "inside" else ~inside
        if rules.intensities is not None:
            allowed &= (pixels >= rules.intensities[0]) & (pixels <= rules.intensities[1])
        return allowed


def some_slices(rng: np.random.Generator, volume: Volume, axis: int) -> dict[int, np.ndarray]:
    """Up to three masks, each a rectangle with holes or nothing."""
    masks = {}
    for index in rng.choice(volume.shape_kji[axis], size=rng.integers(1, 4), replace=False):
        mask = np.zeros(take_slice(volume.voxels_kji, axis, int(index)).shape, bool)
        row, col = rng.integers(0, mask.shape)
        mask[row : row + rng.integers(1, 8), col : col + rng.integers(1, 8)] = rng.random() < 0.7
        masks[int(index)] = mask & (rng.random(mask.shape) < 0.8)
    return masks


def some_rules(rng: np.random.Generator, ids: list[str]) -> EditingRules:
    area_of = str(rng.choice(["all", "visible", "one"]))
    return EditingRules(
        area=str(rng.choice(["everywhere", "everywhere", "inside", "outside"])),  # type: ignore[arg-type]
        area_of=area_of,  # type: ignore[arg-type]
        area_segment=str(rng.choice(ids)) if area_of == "one" else "",
        intensities=(-400.0, 600.0) if rng.random() < 0.3 else None,
        overwrite=str(rng.choice(["all", "visible", "none"])),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("seed", range(60))
def test_whatever_is_written_undone_and_redone_every_segment_is_what_the_rules_make_of_it(
    a_scene: Any, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    volume_node = a_scene.add_volume(list(a_scene.grids.values())[seed % len(a_scene.grids)])
    volume = nodes.read_volume_node(volume_node)
    node, ids = a_scene.add_segmentation(volume_node, *(f"organ {n}" for n in range(rng.integers(2, 6))))
    history, right = SegmentationHistories(), Reference(ids, volume)
    for step in range(STEPS):
        act = str(rng.choice(["write"] * 6 + ["undo", "redo", "hide"]))
        if act == "write":
            segment, axis, rules = str(rng.choice(ids)), int(rng.integers(3)), some_rules(rng, ids)
            masks = some_slices(rng, volume, axis)
            new = right.after(segment, axis, masks, rules)
            if all(np.array_equal(new[i], right.now[i]) for i in ids):
                continue
            history.save(node)
            writing.write_slices(node, segment, volume, axis, masks, rules)
            right.take(new)
        elif act == "undo" and history.can_undo(node):
            history.undo(node)
            right.at -= 1
        elif act == "redo" and history.can_redo(node):
            history.redo(node)
            right.at += 1
        elif act == "hide":
            hidden = str(rng.choice(ids))
            right.visible[hidden] = not right.visible[hidden]
            node.GetDisplayNode().SetSegmentVisibility(hidden, right.visible[hidden])
        for i in ids:
            found = Layer.of(node, i, volume).mask_in((0, 0, 0), volume.shape_kji)
            assert np.array_equal(found, right.now[i]), f"{act} in step {step}: {i}"
