"""Command-line options that come from a configuration dataclass: names, types, defaults and help are said once."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import itertools
import textwrap
import types
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

__all__ = ["add_fields", "build", "field_help"]

_Config = TypeVar("_Config")


def add_fields(parser: argparse.ArgumentParser, config: type[Any]) -> None:
    """Give a parser one option per field of a dataclass, `--learning-rate` for `learning_rate`.

    A field without a default is required. Understood are bool, int, float, str, Path, Literal, any of these or None,
    and a tuple of any length of one of these.
    """
    hints, texts = get_type_hints(config), field_help(config)
    for field in dataclasses.fields(config):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        default = "" if required or field.default in (None, ()) else f" [{field.default}]"
        parser.add_argument(
            "--" + field.name.replace("_", "-"),
            dest=field.name,
            required=required,
            default=argparse.SUPPRESS,
            help=(texts.get(field.name, "").rstrip(".") + default).replace("%", "%%"),
            **_how(hints[field.name]),
        )


def build(config: type[_Config], options: argparse.Namespace) -> _Config:
    """Make the dataclass from parsed options; what was not given keeps its default."""
    names = [field.name for field in dataclasses.fields(config)]  # type: ignore[arg-type]
    return config(**{name: _frozen(getattr(options, name)) for name in names if hasattr(options, name)})


def field_help(config: type[Any]) -> dict[str, str]:
    """Read the docstring under each field of a dataclass and of those it extends."""
    texts: dict[str, str] = {}
    for base in reversed(config.__mro__):
        if dataclasses.is_dataclass(base):
            texts.update(_own_help(base))
    return texts


def _own_help(config: type[Any]) -> dict[str, str]:
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(config))).body
    texts: dict[str, str] = {}
    for field, text in itertools.pairwise(body.body if isinstance(body, ast.ClassDef) else []):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
        ):
            texts[field.target.id] = inspect.cleandoc(str(text.value.value))
    return texts


def _how(hint: Any) -> dict[str, Any]:
    """Arguments of `add_argument` for a type."""
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = (part for part in get_args(hint) if part is not types.NoneType)
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(hint) is Literal:
        return {"choices": get_args(hint)}
    if get_origin(hint) is tuple:
        kind = get_args(hint)[0]
        return {"type": kind, "nargs": "*", "metavar": kind.__name__.upper()}
    return {"type": hint, "metavar": hint.__name__.upper()}


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
