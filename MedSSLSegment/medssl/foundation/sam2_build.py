"""Builds SAM 2 models from the configurations the ``sam2`` package ships."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import nn

from ..checkpoints import load_into
from ..errors import ModelError
from .runtime import ensure_torchvision_operators

__all__ = ["build_sam2_model"]

_VIDEO_PREDICTOR = "++model._target_=sam2.sam2_video_predictor.SAM2VideoPredictor"
_hydra_lock = threading.Lock()  # hydra keeps its state in one process-wide singleton


def build_sam2_model(
    config: str,
    image_size: int,
    weights: Mapping[str, torch.Tensor] | None = None,
    overrides: Sequence[str] = (),
    device: torch.device | str = "cpu",
) -> Any:
    """Build a ``SAM2VideoPredictor`` (which is also the model ``SAM2ImagePredictor`` takes), in eval mode.

    Nothing is post-processed inside the model: no hole filling, no switch to another mask by stability. It is
    what ``sam2.build_sam.build_sam2_video_predictor(..., apply_postprocessing=False)`` returns.

    Args:
        config: a configuration of the sam2 package, e.g. ``configs/sam2.1/sam2.1_hiera_t.yaml``.
        image_size: side of the square the model sees, pixels; a multiple of 32 (official weights: 1024).
        weights: state dict; every tensor must be there and fit. None leaves random weights.
        overrides: further hydra overrides, e.g. ``++model.num_maskmem=4``.
        device: where the model is put.

    Raises:
        ModelError: the package or the configuration is missing, or the weights do not fit.
    """
    if image_size <= 0 or image_size % 32:
        raise ModelError(f"SAM 2 needs an image size that is a multiple of 32, not {image_size}.")
    model = _instantiate(config, (_VIDEO_PREDICTOR, f"++model.image_size={image_size}", *overrides))
    if weights is not None:
        load_into(model, weights)
    return model.to(device).eval()


def _instantiate(config: str, overrides: tuple[str, ...]) -> nn.Module:
    ensure_torchvision_operators()
    try:
        import sam2  # noqa: F401 - initialises hydra when first imported: not between our clear and restore
        from hydra.utils import instantiate
    except ModuleNotFoundError as error:
        raise ModelError(
            f"SAM 2 needs the package {error.name}; install it with: pip install sam2."
        ) from error
    model: nn.Module = instantiate(_composed(config, overrides), _recursive_=True)
    return model


@cache
def _composed(config: str, overrides: tuple[str, ...]) -> Any:
    """The model's part of a configuration, resolved. Composing it takes longer than building a small model from it."""
    from hydra import compose, initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import MissingConfigException
    from omegaconf import OmegaConf

    with _hydra_lock:
        shared = GlobalHydra.instance()
        before = shared.hydra
        shared.clear()
        try:
            with initialize_config_module("sam2", version_base="1.2"):
                tree = compose(config_name=config, overrides=list(overrides))
        except MissingConfigException as error:
            raise ModelError(f"The sam2 package has no configuration {config!r}.") from error
        finally:
            GlobalHydra.instance().hydra = before
    OmegaConf.resolve(tree)
    return tree.model
