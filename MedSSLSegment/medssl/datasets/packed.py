"""Arrays compressed on disk and read by slice or block without unpacking the rest."""

from __future__ import annotations

import functools
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import StorageError
from ..storage import atomic_path

__all__ = ["PackedArray", "pack"]

_SLAB, _TILE = 4, 128
"""A chunk holds 4 slices, and a piece that is unpacked by itself 1 x 128 x 128 voxels: fast for slices and blocks."""
_OPEN_AT_ONCE = 512


class PackedArray:
    """A (K, J, I) array that `pack` wrote.

    The file is mapped into memory when it is first read, once per process and thread, so the object may be pickled,
    sent to loader processes, and used after a fork.
    """

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self.path = path
        self.shape = shape

    def __getitem__(self, key: Any, /) -> NDArray[Any]:
        """Part of the array.

        Raises:
            StorageError: the file is gone or damaged.
        """
        try:
            opened = _opened(str(self.path), os.getpid(), threading.get_ident())
            part: NDArray[Any] = opened[key]
        except (OSError, RuntimeError) as error:
            raise StorageError(
                f"The prepared scan {self.path} is missing or damaged; delete it and prepare the data again."
            ) from error
        return part


def pack(array_kji: NDArray[Any], path: Path) -> int:
    """Write an array, whole or not at all; returns the bytes it takes.

    Raises:
        StorageError: no space, no permission.
    """
    import blosc2  # heavy, and only those who train need it

    k, j, i = array_kji.shape
    packed = blosc2.asarray(
        np.ascontiguousarray(array_kji),
        chunks=(min(_SLAB, k), j, i),
        blocks=(1, min(_TILE, j), min(_TILE, i)),
        cparams={
            "codec": blosc2.Codec.ZSTD,
            "clevel": 1,
            "filters": [blosc2.Filter.BITSHUFFLE],
            "nthreads": 1,
        },
    )
    content: bytes = packed.to_cframe()
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return len(content)


@functools.lru_cache(_OPEN_AT_ONCE)
def _opened(path: str, process: int, thread: int) -> Any:
    """The file of one process and thread: neither may share a decoder with another."""
    import blosc2

    return blosc2.open(path, mmap_mode="r", dparams={"nthreads": 1})
