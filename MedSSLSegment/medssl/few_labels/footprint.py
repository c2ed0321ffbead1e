"""What fine-tuning takes of memory, told before it is taken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from .. import memory
from ..errors import NotEnoughMemory
from ..home import runs_folder
from ..runs.run_folder import list_runs
from .finetuning import FinetuneSettings
from .segmenter import Segmenter

__all__ = ["memory_explained", "require_memory", "training_bytes"]

_COPIES_OF_WEIGHTS = 8
"""Weights, gradients and AdamW's two averages; the state that is saved has three of these, the best network one."""
_WORKING_FACTOR = {2: 1.4, 3: 2.7}
"""What activations, their gradients and the convolutions' buffers take, in activations: measured on the CPU for six
backbones, where the whole estimate is 1.05 to 1.5 times the peak; a GPU in half precision takes less."""
_FIXED_BYTES = {"cpu": 130 << 20, "cuda": 700 << 20}
"""Threads, kernels and samples, whatever the network."""


def training_bytes(
    network: Segmenter, settings: FinetuneSettings, size: Sequence[int], channels: int, device: torch.device
) -> int:
    """Estimate of the memory that training takes beyond what is held now.

    Args:
        network: on the CPU; one sample goes through it.
        settings: without None, as `automatic` gives them.
        size: sides of a sample, before they are rounded up to what the network divides by.
        channels: of a sample.
        device: to train on.

    Raises:
        InputError: the network cannot take samples of this size.
    """
    encoder = network.backbone.encoder
    size = tuple(-(-side // encoder.divisor) * encoder.divisor for side in size)
    encoder.require_size(size)
    weights = sum(p.numel() * p.element_size() for p in network.parameters())
    sample = _bytes_kept(network, size, channels)
    fixed = _FIXED_BYTES.get(device.type, _FIXED_BYTES["cpu"])
    working = _WORKING_FACTOR[len(size)] * (settings.batch or 1) * sample
    return int(fixed + _COPIES_OF_WEIGHTS * weights + working)


def require_memory(need_bytes: int, settings: FinetuneSettings, device: torch.device) -> None:
    """Refuse training that does not fit.

    Raises:
        NotEnoughMemory: it does not; the message has the figures, and names the runs that are under way.
    """
    available = memory.available_on(str(device))
    if available is None or need_bytes <= available:
        return
    others = [run.path for run in list_runs(runs_folder()) if run.status.state == "running"]
    also = f"; under way already: {', '.join(map(str, others[:3]))}" if others else ""
    smaller = f"a smaller --batch than {settings.batch}" if (settings.batch or 1) > 1 else "a smaller --size"
    raise NotEnoughMemory(
        f"This training needs about {memory.gigabytes(need_bytes)} of memory and {memory.gigabytes(available)} is free"
        f" on {device}; wait for other runs to end, close other programs, or give {smaller}{also}."
    )


@contextmanager
def memory_explained(settings: FinetuneSettings) -> Iterator[None]:
    """Turn PyTorch's pages on memory into one sentence."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise NotEnoughMemory(
            f"A step of {settings.batch} samples does not fit in the GPU's memory; begin again in another folder with a"
            " smaller --batch or --size."
        ) from error


def _bytes_kept(network: Segmenter, size: Sequence[int], channels: int) -> int:
    """What a forward pass of one sample keeps for the backward pass."""
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    mode = network.training
    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.random.fork_rng(devices=[]),
    ):
        network.train()(torch.zeros(1, channels, *size))
    network.train(mode)
    return sum(kept.values())
