"""The volumes a worker holds, by content hash; the ones used longest ago make room for new ones."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import memory
from ..errors import NotEnoughMemory, ProtocolError, WorkerError
from ..messages import PutVolume, VolumePart
from ..volume import Volume

__all__ = ["VolumeNotHeld", "VolumeStore"]

_SMALLEST_BUDGET_BYTES = 1 << 30


class VolumeNotHeld(WorkerError):  # noqa: N818 - reads as a sentence where it is raised
    """The worker does not hold the volume; the client sends it and asks again."""


@dataclass(eq=False)
class _Arriving:
    """A volume whose slices are still coming in."""

    announced: PutVolume
    voxels_kji: NDArray[Any]
    next_slice: int = 0


class VolumeStore:
    """Volumes by content hash; the least recently used go when a new one would pass the budget. Thread-safe.

    Args:
        budget_bytes: room for voxels; by default half of the memory available now, and 1 GiB at the least.
            The newest volume is always kept.
    """

    def __init__(self, budget_bytes: int | None = None) -> None:
        if budget_bytes is None:
            budget_bytes = max((memory.available_bytes() or 0) // 2, _SMALLEST_BUDGET_BYTES)
        self._budget_bytes = budget_bytes
        self._volumes: OrderedDict[str, Volume] = OrderedDict()
        self._arriving: dict[str, _Arriving] = {}
        self._lock = threading.Lock()

    @property
    def hashes(self) -> tuple[str, ...]:
        """Content hashes of the volumes held, the one used longest ago first."""
        with self._lock:
            return tuple(self._volumes)

    def get(self, content_hash: str) -> Volume:
        """The volume of this hash, which becomes the one used last.

        Raises:
            VolumeNotHeld: it was never put here, was dropped, or made room for another.
        """
        with self._lock:
            if content_hash not in self._volumes:
                raise VolumeNotHeld(f"The worker does not hold volume {content_hash[:8]}; send it first.")
            self._volumes.move_to_end(content_hash)
            return self._volumes[content_hash]

    def announce(self, message: PutVolume) -> tuple[str, ...]:
        """Make room for a volume whose slices follow.

        Returns:
            Hashes of the volumes that had to go.

        Raises:
            NotEnoughMemory: it does not fit, even without the other volumes.
        """
        size = math.prod(message.shape_kji) * np.dtype(message.dtype).itemsize
        dropped = self._make_room(size)
        available = memory.available_bytes()
        if available is not None and size > available:
            raise NotEnoughMemory(
                f"The volume needs {memory.gigabytes(size)} of memory and {memory.gigabytes(available)} is"
                " free; close other programs or crop the volume."
            )
        voxels = np.empty(message.shape_kji, message.dtype)
        with self._lock:
            self._arriving[message.content_hash] = _Arriving(message, voxels)
        return dropped

    def add_part(self, part: VolumePart) -> None:
        """Take in the next slices of an announced volume; the last ones make it available.

        Slices of a volume that was refused or dropped meanwhile are ignored.

        Raises:
            ProtocolError: the slices do not go on where the last ones ended, or the volume is not what was
                announced.
            InputError: the complete volume is not one the engine can use.
        """
        with self._lock:
            arriving = self._arriving.get(part.content_hash)
        if arriving is None:
            return
        first, stop = part.first, part.first + len(part.slices_kji)
        target = arriving.voxels_kji[first:stop]
        if first != arriving.next_slice or target.shape != part.slices_kji.shape:
            self.discard(part.content_hash)
            raise ProtocolError(
                f"Slices {first} .. {stop - 1} of volume {part.content_hash[:8]} do not fit in."
            )
        target[...] = part.slices_kji
        arriving.next_slice = stop
        if stop == len(arriving.voxels_kji):
            self._complete(arriving)

    def discard(self, content_hash: str) -> None:
        """Drop a volume, whole or still arriving; nothing happens when it is not here."""
        with self._lock:
            self._volumes.pop(content_hash, None)
            self._arriving.pop(content_hash, None)

    def _complete(self, arriving: _Arriving) -> None:
        content_hash = arriving.announced.content_hash
        self.discard(content_hash)
        volume = Volume(arriving.voxels_kji, arriving.announced.ijk_to_ras)
        if volume.content_hash != content_hash:
            raise ProtocolError(f"Volume {content_hash[:8]} arrived as {volume.content_hash[:8]}.")
        with self._lock:
            self._volumes[content_hash] = volume

    def _make_room(self, size: int) -> tuple[str, ...]:
        dropped = []
        with self._lock:
            held = sum(volume.voxels_kji.nbytes for volume in self._volumes.values())
            while self._volumes and held + size > self._budget_bytes:
                content_hash, volume = self._volumes.popitem(last=False)
                held -= volume.voxels_kji.nbytes
                dropped.append(content_hash)
        return tuple(dropped)
