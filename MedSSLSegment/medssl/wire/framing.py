"""Frames: how a message becomes bytes on a pipe and comes back.

A frame is a fixed prefix (magic, protocol version, header length, payload length), a JSON header (type, id of
the request, fields, and name, shape, dtype and size of every array) and the arrays' raw bytes, one after the
other. Arrays are written from and read into their own memory: 1 GB needs no second gigabyte on either side.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import NotEnoughMemory, ProtocolError

__all__ = [
    "MAX_HEADER_BYTES",
    "MAX_PAYLOAD_BYTES",
    "PROTOCOL_VERSION",
    "Frame",
    "Sink",
    "read_frame",
    "write_frame",
]

PROTOCOL_VERSION = 1
MAX_HEADER_BYTES = 16 << 20
MAX_PAYLOAD_BYTES = 8 << 30
MAX_DIMENSIONS = 8
DTYPES = frozenset({"|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8"})
"""What may travel; above all no object arrays, which would have to be unpickled."""

_MAGIC = b"\x93MSSL\n"  # not text, so nothing a program prints by accident can pass for it
_COPY_BYTES = 4 << 20
_PREFIX = struct.Struct("<6sHIQ")


@dataclass(frozen=True, eq=False)
class Frame:
    """One message as it travels, not yet given its meaning."""

    type: str
    request_id: int
    """The request this frame makes or answers; 0 where it belongs to none."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Plain JSON values."""
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """Arrays by name, of a dtype in `DTYPES`."""


class Sink(Protocol):
    """What a frame can be written to."""

    def write(self, data: bytes | memoryview, /) -> int:
        """Write all of it."""

    def flush(self) -> None:
        """Pass on what is held back."""


def write_frame(stream: Sink, frame: Frame) -> None:
    """Write one frame and flush.

    Raises:
        ProtocolError: an array's dtype may not travel, or the frame is larger than any reader accepts.
        OSError: the other end is gone.
    """
    specs = [_describe(name, array) for name, array in frame.arrays.items()]
    payload_bytes = sum(spec["nbytes"] for spec in specs)
    header = {"type": frame.type, "id": frame.request_id, "fields": frame.fields, "arrays": specs}
    header_bytes = json.dumps(header, separators=(",", ":")).encode()
    _check_lengths(len(header_bytes), payload_bytes)
    stream.write(_PREFIX.pack(_MAGIC, PROTOCOL_VERSION, len(header_bytes), payload_bytes) + header_bytes)
    for array in frame.arrays.values():
        _write_array(stream, array)
    stream.flush()


def read_frame(stream: IO[bytes]) -> Frame | None:
    """Read one frame; None when the stream ends between two frames.

    Raises:
        ProtocolError: the bytes are not a frame, are of another protocol version, were cut short, or announce
            something absurd.
        NotEnoughMemory: the arrays announced do not fit in memory.
    """
    prefix = bytearray(_PREFIX.size)
    received = _fill(stream, memoryview(prefix))
    if received == 0:
        return None
    _check_complete(received, _PREFIX.size)
    magic, version, header_bytes, payload_bytes = _PREFIX.unpack(prefix)
    if magic != _MAGIC:
        raise ProtocolError(f"What arrived is not a message; it begins with {bytes(prefix)!r}.")
    if version != PROTOCOL_VERSION:
        raise ProtocolError(
            f"The other end speaks protocol version {version} and this one {PROTOCOL_VERSION};"
            " install the same version of medssl on both."
        )
    _check_lengths(header_bytes, payload_bytes)
    header = bytearray(header_bytes)
    _check_complete(_fill(stream, memoryview(header)), header_bytes)
    frame = _parse_header(bytes(header), payload_bytes)
    for array in frame.arrays.values():
        _check_complete(_fill(stream, array.reshape(-1).view(np.uint8).data), array.nbytes)
    return frame


def _wire_dtype(array: NDArray[Any]) -> np.dtype[Any]:
    dtype = array.dtype.newbyteorder("<")
    if dtype.str not in DTYPES:
        raise ProtocolError(
            f"An array of type {array.dtype} cannot be sent; convert it to one of {sorted(DTYPES)}."
        )
    return dtype


def _describe(name: str, array: NDArray[Any]) -> dict[str, Any]:
    return {"name": name, "shape": list(array.shape), "dtype": _wire_dtype(array).str, "nbytes": array.nbytes}


def _write_array(stream: Sink, array: NDArray[Any]) -> None:
    dtype = _wire_dtype(array)
    ready = array.flags.c_contiguous and array.dtype == dtype
    if ready or array.nbytes <= _COPY_BYTES:
        stream.write(np.ascontiguousarray(array, dtype).reshape(-1).view(np.uint8).data)
        return
    rows = max(_COPY_BYTES // array[0].nbytes, 1)
    for first in range(0, len(array), rows):  # piece by piece: a whole copy would double the memory
        _write_array(stream, array[first : first + rows] if rows > 1 else array[first])


def _fill(stream: IO[bytes], view: memoryview) -> int:
    """Fill `view` from the stream; fewer bytes than asked for only where the stream ends."""
    received = 0
    while received < len(view):
        count = stream.readinto(view[received:])  # type: ignore[attr-defined]
        if not count:
            break
        received += count
    return received


def _check_complete(received: int, expected: int) -> None:
    if received < expected:
        raise ProtocolError(
            f"A message was cut short: {received} of {expected} bytes arrived before the end."
        )


def _check_lengths(header_bytes: int, payload_bytes: int) -> None:
    if header_bytes > MAX_HEADER_BYTES:
        raise ProtocolError(
            f"A message header of {header_bytes} bytes is over the limit of {MAX_HEADER_BYTES}."
        )
    if payload_bytes > MAX_PAYLOAD_BYTES:
        raise ProtocolError(f"A message of {payload_bytes} bytes is over the limit of {MAX_PAYLOAD_BYTES}.")


def _parse_header(header_bytes: bytes, payload_bytes: int) -> Frame:
    try:
        header = json.loads(header_bytes)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"A message header is not valid JSON ({error}).") from error
    match header:
        case {"type": str(kind), "id": int(request_id), "fields": dict(fields), "arrays": list(specs)}:
            layouts = [_parse_spec(spec) for spec in specs]
        case _:
            raise ProtocolError("A message header lacks its type, id, fields or arrays.")
    announced = sum(math.prod(shape) * dtype.itemsize for _, shape, dtype in layouts)
    if announced != payload_bytes:
        raise ProtocolError(f"A message of {payload_bytes} bytes lists arrays of {announced} bytes.")
    try:
        arrays = {name: np.empty(shape, dtype) for name, shape, dtype in layouts}
    except MemoryError as error:
        raise NotEnoughMemory(f"A message of {payload_bytes / 1e9:.1f} GB does not fit in memory.") from error
    if len(arrays) != len(layouts):
        raise ProtocolError("A message lists two arrays of the same name.")
    return Frame(kind, request_id, fields, arrays)


def _parse_spec(spec: object) -> tuple[str, tuple[int, ...], np.dtype[Any]]:
    match spec:
        case {"name": str(name), "shape": list(shape), "dtype": str(code), "nbytes": int(nbytes)}:
            pass
        case _:
            raise ProtocolError(
                f"A message lists an array without its name, shape, dtype or size: {spec!r:.80}."
            )
    if code not in DTYPES:
        raise ProtocolError(
            f"A message lists an array of type {code!r:.20}; only {sorted(DTYPES)} may travel."
        )
    if len(shape) > MAX_DIMENSIONS or not all(type(size) is int and size >= 0 for size in shape):
        raise ProtocolError(f"A message lists an array of shape {shape!r:.80}.")
    if nbytes != math.prod(shape) * np.dtype(code).itemsize:
        raise ProtocolError(f"A message lists an array of shape {shape} and type {code} as {nbytes} bytes.")
    return name, tuple(shape), np.dtype(code)
