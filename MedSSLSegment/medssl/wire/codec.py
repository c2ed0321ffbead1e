"""Dataclasses to JSON values and arrays, and back; masks as bounding box and packed bits.

What comes back came through a pipe or from a file, so it is checked field by field against the dataclass's own
annotations.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union

import numpy as np
from numpy.typing import NDArray

from ..errors import MedSSLError, ProtocolError

__all__ = [
    "PackedLabels",
    "PackedMask",
    "decode_labels",
    "decode_mask",
    "encode_labels",
    "encode_mask",
    "from_plain",
    "to_plain",
]

MAX_MASK_PIXELS = 1 << 32

_ARRAY, _MASK = "$array", "$mask"  # the only key of a dict that stands for an array
_T = TypeVar("_T")


def to_plain(value: Any) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Take a dataclass apart.

    Args:
        value: a dataclass; its fields may be numbers, strings, None, tuples, dicts, dataclasses and arrays.

    Returns:
        The fields as plain JSON values, and the arrays they refer to by name.

    Raises:
        TypeError: a field holds something else.
    """
    arrays: dict[str, NDArray[Any]] = {}
    return _pack_fields(value, "", arrays), arrays


def from_plain(
    cls: type[_T], fields: Mapping[str, Any], what: str, arrays: Mapping[str, NDArray[Any]] | None = None
) -> _T:
    """Make a dataclass from plain JSON values, each checked against its field's type; undoes `to_plain`.

    Args:
        cls: a dataclass.
        fields: its fields by name; what is missing keeps its default.
        what: how to call it in an error's message.
        arrays: the arrays that the fields refer to.

    Raises:
        ProtocolError: a field is unknown, missing, or of another type.
        InputError: the fields are well formed but the dataclass itself refuses them.
    """
    return typing.cast(_T, _unpack(cls, fields, what, arrays or {}))


@dataclass(frozen=True, eq=False)
class PackedMask:
    """A mask as its bounding box and one bit per pixel inside it."""

    shape: tuple[int, ...]
    """Of the whole mask."""
    start: tuple[int, ...]
    """First row, column, ... of the box."""
    stop: tuple[int, ...]
    """One past the last row, column, ...; equal to `start` for an empty mask."""
    bits: NDArray[np.uint8]
    """The box's pixels, last axis fastest, eight to a byte, the first in the highest bit."""


def encode_mask(mask: NDArray[np.bool_]) -> PackedMask:
    """Pack a bool array of any dimensions."""
    extents = [_extent(mask, axis) for axis in range(mask.ndim)]
    box = tuple(slice(start, stop) for start, stop in extents)
    start, stop = tuple(e[0] for e in extents), tuple(e[1] for e in extents)
    return PackedMask(mask.shape, start, stop, np.packbits(mask[box]))


def decode_mask(packed: PackedMask) -> NDArray[np.bool_]:
    """The exact inverse of `encode_mask`.

    Raises:
        ProtocolError: the box is not inside the mask, the bits do not fill it, or the mask is absurdly large.
    """
    shape, start, stop = packed.shape, packed.start, packed.stop
    lies_inside = len(shape) == len(start) == len(stop) and all(
        0 <= a <= b <= n for a, b, n in zip(start, stop, shape, strict=True)
    )
    if not lies_inside or math.prod(shape) > MAX_MASK_PIXELS:
        raise ProtocolError(f"A mask of shape {shape} came with the box {start} .. {stop}.")
    box_shape = tuple(b - a for a, b in zip(start, stop, strict=True))
    pixels = math.prod(box_shape)
    if packed.bits.dtype != np.uint8 or packed.bits.shape != ((pixels + 7) // 8,):
        raise ProtocolError(f"A mask of {pixels} pixels came with {packed.bits.nbytes} bytes of bits.")
    mask = np.zeros(shape, bool)
    box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
    mask[box] = np.unpackbits(packed.bits, count=pixels).reshape(box_shape).view(bool)
    return mask


@dataclass(frozen=True, eq=False)
class PackedLabels:
    """A label map as the box that holds everything in it."""

    shape: tuple[int, ...]
    """Of the whole map."""
    start: tuple[int, ...]
    """First row, column, ... of the box."""
    box: NDArray[Any]
    """Labels inside the box; everything outside is 0."""


def encode_labels(labels: NDArray[Any]) -> PackedLabels:
    """Shorten a label map of any dimensions to the box that holds everything in it."""
    filled = labels != 0
    extents = [_extent(filled, axis) for axis in range(labels.ndim)]
    box = tuple(slice(start, stop) for start, stop in extents)
    return PackedLabels(labels.shape, tuple(start for start, _ in extents), labels[box])


def decode_labels(packed: PackedLabels) -> NDArray[Any]:
    """The exact inverse of `encode_labels`.

    Raises:
        ProtocolError: the box is not inside the map, or the map is absurdly large.
    """
    shape, start = packed.shape, packed.start
    lies_inside = len(shape) == len(start) == packed.box.ndim and all(
        0 <= a <= a + size <= n for a, size, n in zip(start, packed.box.shape, shape, strict=True)
    )
    if not lies_inside or math.prod(shape) > MAX_MASK_PIXELS:
        raise ProtocolError(f"A label map of shape {shape} came with a box {packed.box.shape} at {start}.")
    labels = np.zeros(shape, packed.box.dtype)
    labels[tuple(slice(a, a + size) for a, size in zip(start, packed.box.shape, strict=True))] = packed.box
    return labels


def _extent(mask: NDArray[np.bool_], axis: int) -> tuple[int, int]:
    others = tuple(a for a in range(mask.ndim) if a != axis)
    filled = np.flatnonzero(mask.any(axis=others))
    return (int(filled[0]), int(filled[-1]) + 1) if filled.size else (0, 0)


def _pack_fields(message: Any, path: str, arrays: dict[str, NDArray[Any]]) -> dict[str, Any]:
    return {
        f.name: _pack(getattr(message, f.name), f"{path}{f.name}", arrays)
        for f in dataclasses.fields(message)
    }


def _pack(value: Any, path: str, arrays: dict[str, NDArray[Any]]) -> Any:
    """JSON value for `value`; arrays in it are added to `arrays` under their path."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        if value.dtype == np.bool_:
            return {_MASK: _pack_fields(encode_mask(value), f"{path}.", arrays)}
        arrays[path] = value
        return {_ARRAY: path}
    if dataclasses.is_dataclass(value):
        return _pack_fields(value, f"{path}.", arrays)
    if isinstance(value, Mapping):
        return {str(key): _pack(item, f"{path}.{key}", arrays) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_pack(item, f"{path}.{n}", arrays) for n, item in enumerate(value)]
    raise TypeError(f"The message field {path} holds a {type(value).__name__}, which does not travel.")


def _unpack(hint: Any, value: Any, path: str, arrays: Mapping[str, NDArray[Any]]) -> Any:
    """The value of type `hint` that `_pack` made `value` from."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return _unpack_anything(value, path, arrays)
    if origin in (Union, types.UnionType):
        return _unpack_union(args, value, path, arrays)
    if origin is Literal and value in args:
        return value
    if origin is np.ndarray:
        (dtype_hint,) = typing.get_args(args[1])
        return _unpack_array(dtype_hint, value, path, arrays)
    if origin is tuple and isinstance(value, list):
        hints = [args[0]] * len(value) if args[-1] is Ellipsis else args
        if len(hints) == len(value):
            return tuple(
                _unpack(h, v, f"{path}.{n}", arrays)
                for n, (h, v) in enumerate(zip(hints, value, strict=True))
            )
    if origin in (dict, Mapping) and isinstance(value, dict):
        return {key: _unpack(args[1], item, f"{path}.{key}", arrays) for key, item in value.items()}
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return _unpack_dataclass(hint, value, path, arrays)
    if hint is float and type(value) in (int, float):
        return float(value)
    if hint in (bool, int, str, type(None)) and type(value) is hint:
        return value
    raise ProtocolError(f"'{path}' should be of type {_type_name(hint)}, not {value!r:.60}.")


def _unpack_anything(value: Any, path: str, arrays: Mapping[str, NDArray[Any]]) -> Any:
    """JSON values as they are, the arrays in them found."""
    if isinstance(value, dict):
        if value.keys() in ({_ARRAY}, {_MASK}):
            return _unpack_array(Any, value, path, arrays)
        return {key: _unpack_anything(item, f"{path}.{key}", arrays) for key, item in value.items()}
    if isinstance(value, list):
        return [_unpack_anything(item, f"{path}.{n}", arrays) for n, item in enumerate(value)]
    return value


def _unpack_union(hints: tuple[Any, ...], value: Any, path: str, arrays: Mapping[str, NDArray[Any]]) -> Any:
    if value is None and type(None) in hints:
        return None
    choices = [hint for hint in hints if hint is not type(None)]
    if len(choices) == 1:
        return _unpack(choices[0], value, path, arrays)
    for hint in choices:
        try:
            return _unpack(hint, value, path, arrays)
        except ProtocolError:
            continue
    raise ProtocolError(f"'{path}' should be {' or '.join(map(_type_name, hints))}, not {value!r:.60}.")


def _unpack_array(dtype_hint: Any, value: Any, path: str, arrays: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    match value:
        case {"$mask": dict(packed)} if dtype_hint in (np.bool_, Any):
            return decode_mask(_unpack_dataclass(PackedMask, packed, path, arrays))
        case {"$array": str(name)} if name in arrays and dtype_hint is not np.bool_:
            array = arrays[name]
        case _:
            raise ProtocolError(
                f"'{path}' should be an array of {_type_name(dtype_hint)}, not {value!r:.60}."
            )
    if dtype_hint is Any or array.dtype == dtype_hint:
        return array
    if not np.can_cast(array.dtype, dtype_hint, casting="same_kind"):
        raise ProtocolError(f"'{path}' should be an array of {_type_name(dtype_hint)}, not of {array.dtype}.")
    return array.astype(dtype_hint)


def _unpack_dataclass(
    cls: Any, value: Mapping[str, Any], path: str, arrays: Mapping[str, NDArray[Any]]
) -> Any:
    hints = _field_types(cls)
    unknown = sorted(set(value) - set(hints))
    if unknown:
        raise ProtocolError(f"'{path}' has no field '{unknown[0]}'; it knows {', '.join(hints)}.")
    fields = {name: _unpack(hints[name], item, f"{path}.{name}", arrays) for name, item in value.items()}
    required = [
        f.name
        for f in dataclasses.fields(cls)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    missing = [name for name in required if name not in fields]
    if missing:
        raise ProtocolError(f"'{path}' came without its field '{missing[0]}'.")
    try:
        return cls(**fields)
    except MedSSLError:
        raise
    except (TypeError, ValueError) as error:
        raise ProtocolError(f"'{path}' cannot be made from its fields: {error}.") from error


@cache
def _field_types(cls: type[Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def _type_name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
