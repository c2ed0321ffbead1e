"""Labels of patches that outlive a step: kept by slice, taken over at the end of an epoch, saved with the run.

B batch, N patches, S slices seen so far.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..datasets.data import Scan
from ..learning.distributed import gather

__all__ = ["PatchLabels", "slice_key"]

_SLICE_BITS = 19
_SCAN_DIGITS = 11  # hexadecimal: 44 bits, 63 with the slice


def slice_key(scan: Scan, k: int) -> int:
    """Whole number that names a slice by its scan's content, whatever folder or order the scan is found in."""
    return (int(scan.id[-_SCAN_DIGITS:], 16) << _SLICE_BITS) + k


class PatchLabels(nn.Module):
    """Memory of every slice's patch labels; its state travels in the state dict of the method that owns it."""

    def __init__(self) -> None:
        super().__init__()
        self._keys = torch.empty(0, dtype=torch.int64)  # (S,) rising
        self._labels = torch.empty(0, 0, dtype=torch.uint8)  # (S, N)
        self._noted: list[tuple[Tensor, Tensor]] = []

    def recall(self, keys: Tensor, otherwise: Tensor) -> Tensor:
        """Look slices up.

        Args:
            keys: (B,) int64 from `slice_key`.
            otherwise: (B, N) int64 labels for slices not met before.

        Returns:
            (B, N) int64.
        """
        if not len(self._keys):
            return otherwise
        wanted = keys.to(self._keys.device)
        place = torch.searchsorted(self._keys, wanted).clamp(max=len(self._keys) - 1)
        known = (self._keys[place] == wanted).to(keys.device)
        kept = self._labels[place].to(otherwise.device, otherwise.dtype)
        return torch.where(known[:, None], kept, otherwise)

    def note(self, keys: Tensor, labels: Tensor) -> None:
        """Put new labels aside until `take_over`; every process notes what all of them found.

        Args:
            keys: (B,) int64.
            labels: (B, N) of 0 and 1.
        """
        rows = gather(torch.cat([keys[:, None], labels.to(keys.dtype)], dim=1)).cpu()  # (B, 1 + N)
        self._noted.append((rows[:, 0], rows[:, 1:].to(torch.uint8)))

    def take_over(self) -> None:
        """Let the labels noted since the last time replace the ones remembered; of two, the later counts."""
        if not self._noted:
            return
        keys, labels = self._noted_tensors()
        if len(self._keys):
            keys, labels = torch.cat([self._keys, keys]), torch.cat([self._labels, labels])
        order = keys.argsort(stable=True)
        keys, labels = keys[order], labels[order]
        last = torch.cat([keys[1:] != keys[:-1], torch.ones(1, dtype=torch.bool)])
        self._keys, self._labels, self._noted = keys[last], labels[last], []

    def get_extra_state(self) -> dict[str, Tensor]:
        """Everything remembered and noted, as tensors."""
        noted_keys, noted_labels = self._noted_tensors()
        return {
            "keys": self._keys,
            "labels": self._labels,
            "noted_keys": noted_keys,
            "noted_labels": noted_labels,
        }

    def set_extra_state(self, state: Any) -> None:
        """Take back what `get_extra_state` gave."""
        self._keys, self._labels = state["keys"].cpu(), state["labels"].cpu()
        noted = (state["noted_keys"].cpu(), state["noted_labels"].cpu())
        self._noted = [noted] if len(noted[0]) else []

    def _noted_tensors(self) -> tuple[Tensor, Tensor]:
        if not self._noted:
            return torch.empty(0, dtype=torch.int64), torch.empty(0, 0, dtype=torch.uint8)
        keys, labels = zip(*self._noted, strict=True)
        return torch.cat(keys), torch.cat(labels)
