"""Weights on disk: safetensors, or PyTorch files read in the mode that runs no code.

A checkpoint of ours is one safetensors file whose header also carries what is needed to use the weights
(method, config, input contract, step, version), so nothing else has to be kept beside it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import pickle
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .errors import ModelError, StorageError
from .storage import atomic_path

__all__ = [
    "TransferReport",
    "load_into",
    "read_checkpoint",
    "read_header",
    "read_weights",
    "write_checkpoint",
]

_META_KEY, _DIGEST_KEY = "medssl", "content_sha256"
_DIGEST_AT_THE_END = re.compile(rf'(, )?"{_DIGEST_KEY}": "([0-9a-f]{{64}})"}}$')
_NESTED_KEYS = ("model", "state_dict", "model_state_dict")  # where official files put the state dict
_NOT_ALLOWED = re.compile(r"global|reduce", re.IGNORECASE)  # what PyTorch says of a pickle that names code
_NAMED_IN_A_MESSAGE = 3


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict to the CPU, whatever it was saved on.

    Args:
        path: ``.safetensors``, or a PyTorch file that holds a state dict by itself or under ``model`` /
            ``state_dict``.

    Raises:
        ModelError: the file is missing, damaged, holds no weights, or is a pickle that wants to run code (it
            is not run).
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return read_checkpoint(path)[0]
    if not path.is_file():
        raise ModelError(f"The weights file {path} does not exist.")
    try:
        if _is_plain_pickle(path):
            raise pickle.UnpicklingError("A plain pickle may name any global.")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        if isinstance(error, pickle.UnpicklingError) and _NOT_ALLOWED.search(str(error)):
            raise ModelError(
                f"The weights file {path} wants to run program code, so it was not opened;"
                " ask for it as safetensors."
            ) from error
        raise ModelError(
            f"The weights file {path} is damaged or not a PyTorch file; get it again."
        ) from error
    return _state_dict_in(content, path)


def _is_plain_pickle(path: Path) -> bool:
    """PyTorch writes zip archives, and once wrote pickles of protocol 2: a newer pickle is not its file."""
    with path.open("rb") as file:
        head = file.read(2)
    return head[:1] == b"\x80" and head[1:] > b"\x02"


def _state_dict_in(content: object, path: Path) -> dict[str, Tensor]:
    if isinstance(content, Mapping):
        nested = (content[key] for key in _NESTED_KEYS if isinstance(content.get(key), Mapping))
        state: Mapping[object, object] = next(nested, content)
        tensors = {name: t for name, t in state.items() if isinstance(name, str) and isinstance(t, Tensor)}
        if tensors:
            return tensors
    raise ModelError(f"The file {path} holds no weights; give a state dict of tensors.")


def read_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a safetensors file to the CPU.

    Returns:
        The tensors by name, and the metadata `write_checkpoint` stored (empty for a file from elsewhere).

    Raises:
        ModelError: the file is missing or damaged; a file of ours also where a single number has changed since it was
            written.
    """
    with _opened(Path(path)) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        text, header = _header_text(file), _header(file)
    stated = _DIGEST_AT_THE_END.search(text)  # none in files from elsewhere, and in the oldest of ours
    if stated is not None and stated[2] != _digest(tensors, text[: stated.start()] + "}"):
        raise ModelError(
            f"The weights file {path} is damaged: it no longer holds what was written; get it again from a copy, or"
            " take another version of the model (medssl models list)."
        )
    return tensors, header


def read_header(path: str | Path) -> dict[str, Any]:
    """Read only the metadata of a safetensors file; see `read_checkpoint`."""
    with _opened(Path(path)) as file:
        return _header(file)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise ModelError(f"The weights file {path} does not exist.")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(
            f"The weights file {path} is damaged or not a safetensors file; get it again."
        ) from error


def _header(file: Any) -> dict[str, Any]:
    header: Any = json.loads(_header_text(file))
    if not isinstance(header, dict):
        raise ValueError("the header is no table")
    header.pop(_DIGEST_KEY, None)
    return header


def _header_text(file: Any) -> str:
    return str((file.metadata() or {}).get(_META_KEY, "{}"))


def write_checkpoint(path: str | Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write a safetensors file in one step: readers see the old file or the whole new one, never a part.

    Args:
        path: ends in ``.safetensors``.
        tensors: state dict, on any device.
        meta: anything JSON can hold; `read_checkpoint` gives it back.

    Raises:
        StorageError: no space or no permission; nothing is left behind.
    """
    path = Path(path)
    separate, text = _separate(tensors), json.dumps(dict(meta), sort_keys=True)
    stated = f'{", " if meta else ""}"{_DIGEST_KEY}": "{_digest(separate, text)}"}}'
    header = {_META_KEY: text[:-1] + stated}  # one entry: the order of several would differ from file to file
    with atomic_path(path) as temporary:
        try:
            save_file(separate, temporary, metadata=header)
        except SafetensorError as error:  # safetensors wraps the system's own error
            raise StorageError(
                f"The checkpoint {path} could not be written ({error}); free some space."
            ) from error


def _digest(tensors: Mapping[str, Tensor], meta: str) -> str:
    """SHA-256 (hex) of metadata and contiguous CPU tensors, whatever their order."""
    digest = hashlib.sha256(meta.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"|{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors, none sharing memory with another: safetensors takes no others."""
    seen: set[int] = set()
    separate = {}
    for name, tensor in tensors.items():
        kept = tensor.detach().cpu().contiguous()
        if kept.untyped_storage().data_ptr() in seen:
            kept = kept.clone()
        seen.add(kept.untyped_storage().data_ptr())
        separate[name] = kept
    return separate


@dataclass(frozen=True)
class TransferReport:
    """What happened to every tensor when weights went into a model."""

    whole: ClassVar[str] = "model"
    """What `fraction` is a share of, for a person."""
    transferred: tuple[str, ...]
    """In both, same shape: copied."""
    missing: tuple[str, ...]
    """The model has it, the weights do not: kept as it was."""
    unexpected: tuple[str, ...]
    """The weights have it, the model does not: left out."""
    mismatched: tuple[str, ...]
    """In both with different shapes: kept as it was."""
    fraction: float
    """Share of the model's numbers that were copied, 0 .. 1."""

    def __str__(self) -> str:
        """One line for a person."""
        line = f"{len(self.transferred)} tensors ({self.fraction:.1%} of the {self.whole}) transferred"
        for what in ("missing", "mismatched", "unexpected"):
            names: tuple[str, ...] = getattr(self, what)
            if names:
                rest = ", ..." if len(names) > _NAMED_IN_A_MESSAGE else ""
                line += f"; {len(names)} {what} ({', '.join(names[:_NAMED_IN_A_MESSAGE])}{rest})"
        return line


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], min_fraction: float = 1.0) -> TransferReport:
    """Copy weights into a model, or leave it untouched when too few of them fit.

    Args:
        module: takes the weights; keeps its device and types.
        tensors: state dict.
        min_fraction: least share of the model's numbers that must be covered, 0 .. 1.

    Raises:
        ModelError: less than `min_fraction` would transfer; the message names what did not fit.
    """
    own = module.state_dict()
    mismatched = tuple(n for n in own if n in tensors and own[n].shape != tensors[n].shape)
    fitting = {n: tensors[n] for n in own if n in tensors and own[n].shape == tensors[n].shape}
    total = sum(t.numel() for t in own.values())
    report = TransferReport(
        transferred=tuple(fitting),
        missing=tuple(n for n in own if n not in tensors),
        unexpected=tuple(n for n in tensors if n not in own),
        mismatched=mismatched,
        fraction=sum(t.numel() for t in fitting.values()) / total if total else 1.0,
    )
    if report.fraction < min_fraction:
        raise ModelError(f"The weights do not belong to this model, {min_fraction:.0%} must fit: {report}.")
    module.load_state_dict(fitting, strict=False)
    return report
