"""Self-supervised methods by name. A new method is a new file here and its line below."""

from __future__ import annotations

from ..errors import InputError
from .amlp import AMLP
from .anatomask import AnatoMask
from .base import Anchor, Method, MethodInfo, Moment, Preset
from .byol import BYOL
from .mae import MAE
from .medssl_vit import MedSSLViT
from .moco import MoCo
from .polycl import PolyCLM, PolyCLO, PolyCLS
from .simclr import SimCLR
from .spark import SparK
from .supcon import SupCon
from .tcs_mae import TCSMAE

__all__ = ["METHODS", "Anchor", "Method", "MethodInfo", "Moment", "Preset", "find_method"]

METHODS: dict[str, type[Method]] = {
    "polycl-s": PolyCLS,
    "polycl-o": PolyCLO,
    "polycl-m": PolyCLM,
    "simclr": SimCLR,
    "supcon": SupCon,
    "moco": MoCo,
    "byol": BYOL,
    "medssl-vit": MedSSLViT,
    "mae": MAE,
    "amlp": AMLP,
    "tcs-mae": TCSMAE,
    "spark": SparK,
    "anatomask": AnatoMask,
}
"""Every method by name; the panel, the browser, the command line, tests and benchmarks all read this."""


def find_method(name: str) -> type[Method]:
    """Look a method up.

    Raises:
        InputError: there is none of that name; the message lists them.
    """
    if name not in METHODS:
        raise InputError(f"There is no method '{name}'; choose one of {', '.join(METHODS)}.")
    return METHODS[name]
