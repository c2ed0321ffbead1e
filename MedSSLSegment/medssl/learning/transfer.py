"""Encoder files: what pre-training keeps, and how it enters another network.

An encoder file is one safetensors file. Its header says how the weights came about and what they expect of their input
(method, backbone, input contract, data, step), so nothing has to be kept beside it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from .. import __version__
from ..backbones import Backbone
from ..checkpoints import TransferReport, load_into, read_checkpoint, write_checkpoint
from ..datasets.input_contract import InputContract
from ..errors import InputError, ModelError
from ..registry import shipped_encoder

if TYPE_CHECKING:
    from ..methods import Method

__all__ = ["EncoderFile", "EncoderTransfer", "adapt_stem", "load_encoder", "read_encoder", "write_encoder"]

_FORMAT = "medssl-encoder"
_FORMAT_VERSION = 1
_PARTS = ("encoder", "decoder")
_REQUIRED = ("method", "backbone", "data", "step")


@dataclass(frozen=True, eq=False)
class EncoderFile:
    """Weights of a pre-trained backbone, and all that is known of them."""

    tensors: Mapping[str, Tensor]
    """On the CPU, by their names in the backbone ("encoder. ...")."""
    method: str
    """Key of METHODS."""
    backbone: str
    """Key of BACKBONES."""
    contract: InputContract
    """What the weights expect of their input."""
    transfers: tuple[str, ...]
    """Parts of the backbone that are kept: "encoder", and "decoder" where the method keeps it."""
    data: tuple[str, ...]
    """Ids (SHA-256) of the scans they were trained on, to keep those out of a test."""
    step: int
    """Optimiser steps done."""
    meta: Mapping[str, Any]
    """The whole header: also seed, recipe, citation and what else the writer added."""


@dataclass(frozen=True)
class EncoderTransfer(TransferReport):
    """What became of every tensor when an encoder file went into a backbone; names as in the backbone.

    `fraction` is of the encoder's numbers alone. A part that the file does not hold is not reported.
    """

    whole: ClassVar[str] = "encoder"
    stem: str = "as it was"
    """How the first layer was fitted to the number of input channels."""

    def __str__(self) -> str:
        """One line for a person."""
        return f"{super().__str__()}; first layer {self.stem}"


def write_encoder(path: str | Path, method: Method, meta: Mapping[str, Any]) -> None:
    """Write what a method's pre-training is worth keeping, in one step.

    Args:
        path: ends in ``.safetensors``.
        method: its `transferable()` weights are written.
        meta: "method" (key of METHODS), "backbone" (key of BACKBONES), "data" (ids of the scans), "step", and
            anything else JSON can hold, e.g. seed and recipe.

    Raises:
        InputError: one of the four is missing.
        StorageError: no space or no permission; nothing is left behind.
    """
    missing = [name for name in _REQUIRED if name not in meta]
    if missing:
        raise InputError(f"An encoder file must say its {', '.join(missing)}.")
    encoder = method.backbone.encoder
    header = {
        "format": _FORMAT,
        "format_version": _FORMAT_VERSION,
        "version": __version__,
        "contract": method.contract.to_json(),
        "transfers": list(method.transfers),
        "in_channels": encoder.in_channels,
        "stem": [f"encoder.{name}" for name in encoder.stem],
        "divisor": encoder.divisor,
        "share": _size(method.transferable(), "encoder.") / max(1, _size(encoder.state_dict(), "")),
        "citation": method.info.citation,
        "supervision": method.info.supervision,
        **meta,
    }
    write_checkpoint(path, method.transferable(), json.loads(json.dumps(header)))


def read_encoder(path: str | Path) -> EncoderFile:
    """Read an encoder file to the CPU.

    Args:
        path: a file, the run folder of `medssl pretrain`, or the name of a method whose encoder is shipped.

    Raises:
        ModelError: the file is missing, damaged, of a newer version, or holds no encoder.
    """
    of_run = Path(path) / "checkpoint.safetensors"
    path = of_run if of_run.is_file() else path
    if not Path(path).is_file() and not Path(path).suffix:
        path = shipped_encoder(str(path))
    if Path(path).is_file() and Path(path).suffix != ".safetensors":
        raise ModelError(
            f"The file {path} is no encoder: an encoder is a .safetensors file; give the folder of the run, or the"
            " checkpoint.safetensors in it."
        )
    tensors, meta = read_checkpoint(path)
    if meta.get("format") != _FORMAT:
        raise ModelError(f"The file {path} is not a pre-trained encoder; make one with 'medssl pretrain'.")
    if meta.get("format_version") != _FORMAT_VERSION:
        raise ModelError(
            f"The encoder file {path} has the format version {meta.get('format_version')}, and this program reads"
            f" {_FORMAT_VERSION}; update the program."
        )
    try:
        return EncoderFile(
            tensors=tensors,
            method=str(meta["method"]),
            backbone=str(meta["backbone"]),
            contract=InputContract.from_json(meta["contract"]),
            transfers=tuple(part for part in _PARTS if part in meta["transfers"]),
            data=tuple(meta["data"]),
            step=int(meta["step"]),
            meta=meta,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"The header of the encoder file {path} is incomplete ({error}); get the file again."
        ) from error


def load_encoder(backbone: Backbone, file: EncoderFile, min_fraction: float = 0.9) -> EncoderTransfer:
    """Put pre-trained weights into a backbone, or leave it untouched when too few of them fit.

    The first layer is fitted where the number of input channels differs. A part that the file does not hold, such as
    the decoder after most methods, stays as it is.

    Args:
        backbone: takes the weights; keeps its device and types.
        file: from `read_encoder`.
        min_fraction: least share that must be covered, 0 .. 1, of the encoder's numbers that the method trains.

    Raises:
        ModelError: less than `min_fraction` would transfer; the message names what did not fit.
    """
    tensors, stem = _fit_stem(backbone, file.tensors)
    least = min_fraction * float(file.meta.get("share", 1.0))
    try:
        reports = {"encoder": load_into(backbone.encoder, _part(tensors, "encoder"), least)}
    except ModelError as error:
        raise ModelError(
            f"The encoder file belongs to the backbone '{file.backbone}'; build that one. {error}"
        ) from error
    if "decoder" in file.transfers:
        reports["decoder"] = load_into(backbone.decoder, _part(tensors, "decoder"), 0.0)
    return EncoderTransfer(
        transferred=_full_names((part, report.transferred) for part, report in reports.items()),
        missing=_full_names((part, report.missing) for part, report in reports.items()),
        unexpected=_full_names((part, report.unexpected) for part, report in reports.items()),
        mismatched=_full_names((part, report.mismatched) for part, report in reports.items()),
        fraction=reports["encoder"].fraction,
        stem=stem,
    )


def _size(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """Numbers in the tensors whose names begin with `prefix`."""
    return sum(tensor.numel() for name, tensor in tensors.items() if name.startswith(prefix))


def _part(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{part}."): t for name, t in tensors.items() if name.startswith(f"{part}.")}


def _full_names(parts: Iterable[tuple[str, tuple[str, ...]]]) -> tuple[str, ...]:
    return tuple(f"{part}.{name}" for part, names in parts for name in names)


def _fit_stem(backbone: Backbone, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """The file's tensors with the first layer fitted to the backbone's channels, and what was done in words."""
    fitted, done = dict(tensors), "as it was"
    for name in (f"encoder.{stem}" for stem in backbone.encoder.stem):
        wanted = backbone.encoder.in_channels
        if name in tensors and tensors[name].shape[1] != wanted:
            fitted[name], done = adapt_stem(tensors[name], wanted)
    return fitted, done


def adapt_stem(weight: Tensor, in_channels: int) -> tuple[Tensor, str]:
    """Fit a first layer to another number of channels, so that equal channels give the response they gave before.

    C channels become N = m C by repetition, each weight divided by m: channel n takes the place of channel n mod C, as
    when neighbouring slices join. Any other N, such as 1, gives each channel the sum over the C, divided by N.
    (Standardised filters, as TransUNet's, have no scale of their own, so there it holds up to a factor per filter.)

    Args:
        weight: (out, C, ...) of a convolution.
        in_channels: N.

    Returns:
        (out, N, ...), and what was done in words.
    """
    had = weight.shape[1]
    if in_channels % had == 0:
        times = in_channels // had
        repeated = weight.repeat(1, times, *[1] * (weight.ndim - 2)) / times
        return repeated, f"repeated from {had} to {in_channels} channels and scaled by 1/{times}"
    summed = weight.sum(dim=1, keepdim=True).repeat(1, in_channels, *[1] * (weight.ndim - 2)) / in_channels
    return summed, f"summed over {had} channels and shared among {in_channels}"
