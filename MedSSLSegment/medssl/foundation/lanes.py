"""Works on independent things side by side, one CPU core each.

A small network does not fill two cores with one matrix product, but it fills them with two of its batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

import torch

__all__ = ["Lanes"]

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Lanes:
    """As many threads as torch may use CPU cores; one on any other device. Use it in a ``with`` statement."""

    def __init__(self, device: torch.device) -> None:
        self.count = torch.get_num_threads() if device.type == "cpu" else 1
        """How many things are worked on at a time."""
        self._pool = ThreadPoolExecutor(self.count, "lane") if self.count > 1 else None

    def __enter__(self) -> Lanes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def map(self, work: Callable[[_Item], _Result], items: Sequence[_Item]) -> list[_Result]:
        """`work` done on every item, without gradients, in the items' order.

        Meanwhile each lane has one of torch's threads; a single item has them all.
        """
        if self._pool is None or len(items) < 2:
            with torch.no_grad():
                return [work(item) for item in items]
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return list(self._pool.map(torch.no_grad()(work), items))
        finally:
            torch.set_num_threads(threads)
