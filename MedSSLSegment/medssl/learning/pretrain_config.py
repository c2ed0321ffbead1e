"""What a pre-training run can be asked for, and the complete settings that follow from it."""

from __future__ import annotations

import ast
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from ..errors import InputError
from .recipe import Recipe, require_seed

if TYPE_CHECKING:
    from ..datasets.input_contract import InputContract
    from ..methods import Preset

__all__ = ["PretrainConfig", "choose_preset", "lasting"]


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """How to pre-train. What is not given is taken from the method's preset.

    Raises:
        InputError: a number is out of its range.
    """

    method: str
    """One of the methods listed below."""
    data: Path
    """Folder of unlabelled scans: NIfTI, NRRD, MetaImage and DICOM, in any mix and depth."""
    out: Path
    """Run folder; a run that is there already goes on."""
    preset: str = "auto"
    """paper: as published; gpu: one GPU of 24 GB; cpu: two cores, minutes; auto: gpu or cpu, by the device; or another
    one of the method's."""
    backbone: str | None = None
    """Another network than the preset's."""
    epochs: float | None = None
    """Passes over the data."""
    steps: int | None = None
    """Optimiser steps, in place of epochs."""
    minutes: float | None = None
    """About how long the whole run may take, in place of epochs; a measured step says how many fit."""
    batch: int | None = None
    """Samples a step."""
    accumulate: int | None = None
    """Parts a batch is computed in, where memory is short."""
    learning_rate: float | None = None
    """Peak."""
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    """Of the forward pass on a GPU."""
    size: tuple[int, ...] = ()
    """Rows and columns of a sample, or slices, rows and columns in 3D."""
    spacing: tuple[float, ...] = ()
    """Grid that scans are resampled to, in mm along K, J, I; 0 keeps a scan's own."""
    options: tuple[str, ...] = ()
    """Settings of the method as NAME=VALUE, e.g. temperature=0.1."""
    presence: Path | None = None
    """Table of the slices that show the organ, from medssl presence; for weakly supervised methods."""
    exclude: tuple[str, ...] = ()
    """Files or folders below the data folder never to be read, e.g. held-out patients; * stands for anything."""
    mixed_modalities: bool = False
    """Take scans of any modality, e.g. CT and MR together."""
    cache: Path | None = None
    """Where prepared scans are kept; by default in ~/.medssl/cache, for all runs together."""
    workers: int = 0
    """Processes that draw samples ahead; 0 for none."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    seed: int = 0
    """Seed of everything random."""
    save_every_minutes: float = 5.0
    """Between two saves; so much is lost at most when the machine goes down."""
    save_every_steps: int | None = None
    """Save at these steps as well."""

    def __post_init__(self) -> None:
        given = [name for name in ("epochs", "steps", "minutes") if getattr(self, name) is not None]
        if len(given) > 1:
            raise InputError(f"Give only one of {' and '.join(given)}; each says how long to train.")
        for name in (
            "epochs",
            "steps",
            "minutes",
            "batch",
            "accumulate",
            "learning_rate",
            "save_every_steps",
        ):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"Pre-training needs {name} above 0, not {value:g}.")
        require_seed(self.seed)
        if self.workers < 0 or not self.save_every_minutes > 0:
            raise InputError("The workers must be 0 or more, the minutes between saves above 0.")
        if self.spacing and len(self.spacing) != 3:
            raise InputError(f"The spacing needs three numbers, K J I in mm, not {len(self.spacing)}.")


def choose_preset(config: PretrainConfig, device: str) -> Preset:
    """Complete settings: the method's preset with what the configuration changes.

    Args:
        config: what was asked for.
        device: "cpu", "cuda" ...; decides what "auto" stands for.

    Raises:
        InputError: the method, backbone, an option or its value does not exist, or they do not go together.
    """
    from ..backbones import BACKBONES
    from ..methods import find_method

    name = ("cpu" if device == "cpu" else "gpu") if config.preset == "auto" else config.preset
    presets = find_method(config.method).presets()
    if name not in presets:
        raise InputError(f"{config.method} has no preset '{name}'; choose one of auto, {', '.join(presets)}.")
    preset = presets[name]
    backbone = config.backbone or preset.backbone
    if backbone not in BACKBONES:
        raise InputError(f"There is no backbone '{backbone}'; choose one of {', '.join(BACKBONES)}.")
    contract = _changed_contract(preset.contract, config)
    dims = BACKBONES[backbone].spatial_dims
    if dims != contract.spatial_dims:
        raise InputError(
            f"The backbone {backbone} is for {dims}D input and {config.method} works in"
            f" {contract.spatial_dims}D; choose another backbone."
        )
    return replace(
        preset,
        backbone=backbone,
        contract=contract,
        recipe=_changed_recipe(preset.recipe, config),
        options=_changed_options(preset.options, config.options),
    )


def lasting(recipe: Recipe, epochs: float) -> Recipe:
    """The recipe with another length; its warm-up keeps its share."""
    return replace(recipe, epochs=epochs, warmup_epochs=recipe.warmup_epochs * epochs / recipe.epochs)


def _changed_contract(contract: InputContract, config: PretrainConfig) -> InputContract:
    changes: dict[str, Any] = {}
    if config.size:
        changes["size"] = config.size
    if config.spacing:
        changes["spacing_kji_mm"] = tuple(step or None for step in config.spacing)
    return replace(contract, **changes)


def _changed_recipe(recipe: Recipe, config: PretrainConfig) -> Recipe:
    names = ("batch", "accumulate", "learning_rate", "precision")
    changes = {name: getattr(config, name) for name in names if getattr(config, name) is not None}
    recipe = replace(recipe, **changes)
    return recipe if config.epochs is None else lasting(recipe, config.epochs)


def _changed_options(options: Any, words: Sequence[str]) -> Any:
    kinds = get_type_hints(type(options)) if dataclasses.is_dataclass(options) else {}
    changes = {}
    for word in words:
        name, _, text = word.partition("=")
        if name not in kinds or not text:
            raise InputError(
                f"The option '{word}' cannot be used; give NAME=VALUE with one of the names {', '.join(kinds)}."
            )
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        if not _is_of(value, kinds[name]):
            raise InputError(
                f"The option {name}={text} cannot be used: it should be {_described(kinds[name])},"
                f" e.g. {name}={getattr(options, name)}."
            )
        changes[name] = float(value) if kinds[name] is float else value
    return replace(options, **changes) if changes else options


def _is_of(value: Any, kind: Any) -> bool:
    """Whether a value is of the kind an option is declared with; whole numbers are numbers, endless ones are not."""
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is UnionType:
        return any(_is_of(value, one) for one in get_args(kind))
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        return (
            isinstance(value, tuple)
            and len(value) == len(kinds)
            and all(_is_of(one, of) for one, of in zip(value, kinds, strict=True))
        )
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is kind


def _described(kind: Any) -> str:
    """A kind in a sentence: "a number", "one of code, eq3"."""
    words = {bool: "True or False", int: "a whole number", float: "a number", NoneType: "None"}
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    if get_origin(kind) is UnionType:
        return " or ".join(_described(one) for one in get_args(kind))
    if get_origin(kind) is tuple:
        return f"{len(get_args(kind))} numbers"
    return words[kind]
