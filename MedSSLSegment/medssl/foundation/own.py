"""Promptable weights of the user's own: adapted with `medssl train`, or a SAM or SAM 2 fine-tuned elsewhere."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import torch

from ..checkpoints import read_header
from ..errors import ModelError
from ..model_files import keep_own
from ..registry import DEFAULT_MODEL, Kind, ModelEntry, find_entry, verified_path
from . import open_image_predictor
from .nano_model import NanoConfig, load_nano, load_prompted

__all__ = ["add_own", "is_small_model"]

_ABILITIES: dict[Kind, str] = {
    "nano": "Clicks, boxes and propagation",
    "sam2": "Propagation, clicks and boxes",
    "sam": "Clicks and boxes on one slice",
}


def is_small_model(path: str | Path) -> bool:
    """Whether a file holds a small model as ``medssl train`` writes it.

    Raises:
        ModelError: a safetensors file is missing or damaged.
    """
    return Path(path).suffix == ".safetensors" and "config" in read_header(path)


def add_own(path: str | Path, name: str, like: str = "") -> ModelEntry:
    """Keep promptable weights under a name, which `load_tracker` and `load_image_predictor` then take.

    Args:
        path: ``checkpoint.safetensors`` of a `medssl train` run, or the weights of a fine-tuned SAM or SAM 2.
        name: what to call it.
        like: id of the model that it is a fine-tuned version of; "" for a small model, which says so itself.

    Raises:
        ModelError: the weights are missing, damaged or do not fit, it cannot be told what they are, or the name is
            taken.
        StorageError: no space or no permission.
    """
    path = Path(path)
    entry = _small_entry(path) if is_small_model(path) else _entry_like(path, like)
    if like not in ("", entry.id):
        raise ModelError(
            f"{path.name} is a small model of this program, not one like {like}; leave --like out."
        )
    came = f"from {path.parent.name}/{path.name}, {datetime.now(UTC):%Y-%m-%d}"
    described = replace(
        entry,
        id=name,
        title=f"{name} (your own)",
        purpose=f"{_ABILITIES[entry.kind] if entry.answers_prompts else 'Propagation only'}: your own, {came}.",
        license=f"yours, and that of {entry.id}: {entry.license}",
    )
    return keep_own(path, described, _check_weights)


def _small_entry(path: Path) -> ModelEntry:
    header = read_header(path)
    config = NanoConfig.from_meta(header["config"])
    entry = find_entry(DEFAULT_MODEL)
    return replace(entry, image_size=config.image_size, answers_prompts="prompts" in header)


def _entry_like(path: Path, like: str) -> ModelEntry:
    if not like:
        raise ModelError(
            f"{path.name} is no model of this program; if it is a fine-tuned SAM or SAM 2, say of which model,"
            " for example: --like sam2.1-hiera-tiny"
        )
    entry = find_entry(like)
    if entry.kind == "nano":
        raise ModelError(
            f"{path.name} is no small model as medssl train writes it, so it cannot be like {like}."
        )
    return entry


def _check_weights(entry: ModelEntry) -> None:
    """Load them as they will be loaded.

    Raises:
        ModelError: they are damaged or do not fit.
    """
    place = torch.device("cpu")
    if entry.kind == "nano":
        path = verified_path(entry)
        load_nano(path, place)
        if entry.answers_prompts:
            load_prompted(path, place)
    else:
        open_image_predictor(entry, place)
