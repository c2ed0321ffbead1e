"""The ground the promptable models stand on: torchvision's operators and the compute device."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from ..errors import ModelError

__all__ = ["Interrupted", "ensure_torchvision_operators", "interruptible", "one_thread", "pick_device"]

_OPERATOR_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_kept_alive: list[torch.library.Library] = []  # a library that is collected takes its schemas with it
_lock = threading.Lock()


def ensure_torchvision_operators() -> None:
    """Make ``import torchvision`` work beside a build of torch its compiled part does not match.

    torchvision's wheel from the package index is linked against CUDA torch. Beside CPU torch its compiled
    part does not load, the operators it registers are missing, and the import stops at the first one. Nothing
    that the promptable models use is compiled, so declaring the schemas is enough. Does nothing where
    torchvision imports.

    Raises:
        ModelError: torchvision is not installed.
    """
    with _lock:
        try:
            _import_torchvision()
        except RuntimeError as error:
            if "torchvision::" not in str(error):
                raise
            _define_missing_operators()
            _import_torchvision()


def _import_torchvision() -> None:
    try:
        importlib.import_module("torchvision")
    except ModuleNotFoundError as error:
        if error.name != "torchvision":
            raise
        raise ModelError(
            "The package torchvision is missing; install it with: pip install torchvision."
        ) from error
    except RuntimeError:
        for name in [n for n in sys.modules if n == "torchvision" or n.startswith("torchvision.")]:
            del sys.modules[name]  # a half-imported package would hide the schemas' effect
        raise


def _define_missing_operators() -> None:
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name, schema in _OPERATOR_SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(schema)  # type: ignore[no-untyped-call]
    _kept_alive.append(library)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute in inference mode on one of torch's threads; serves as a decorator too.

    For networks so small that two threads spend longer on meeting than on working, and by far longer where another
    program has one of the cores.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(threads)


class Interrupted(Exception):  # noqa: N818 - no error: what was computed is simply not wanted now
    """A network was stopped half-way because something more urgent came."""


@contextmanager
def interruptible(network: torch.nn.Module, interrupted: Callable[[], bool]) -> Iterator[None]:
    """Ask before every layer of a network whether to go on; `Interrupted` is raised from within it where not."""

    def ask(*_: object) -> None:
        if interrupted():
            raise Interrupted

    handles = [layer.register_forward_pre_hook(ask) for layer in network.modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def pick_device(name: str = "auto") -> torch.device:
    """Turn a device name into a device that is really there.

    Args:
        name: ``auto`` (CUDA, else Apple's MPS, else the CPU), ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises:
        ModelError: the name is unknown or this machine has no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"Unknown device {name!r}; use auto, cpu, cuda, cuda:N or mps.") from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise ModelError(
                f"This machine has {count} CUDA devices, so {name} is not available; use auto or cpu."
            )
    elif device.type == "mps":
        if not torch.backends.mps.is_available():
            raise ModelError("The device mps is not available on this machine; use auto or cpu.")
    elif device.type != "cpu":
        raise ModelError(f"Unknown device {name!r}; use auto, cpu, cuda, cuda:N or mps.")
    return device
