from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from medssl.errors import ProtocolError
from medssl.wire.framing import (
    DTYPES,
    MAX_HEADER_BYTES,
    MAX_PAYLOAD_BYTES,
    PROTOCOL_VERSION,
    Frame,
    read_frame,
    write_frame,
)

PREFIX = struct.Struct("<6sHIQ")
MAGIC = b"\x93MSSL\n"


def written(frame: Frame) -> bytes:
    stream = io.BytesIO()
    write_frame(stream, frame)
    return stream.getvalue()


def raw_frame(header: object, payload: bytes = b"") -> io.BytesIO:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return io.BytesIO(PREFIX.pack(MAGIC, PROTOCOL_VERSION, len(text), len(payload)) + text + payload)


def header_with(**spec: object) -> dict[str, object]:
    layout = {"name": "a", "shape": [2], "dtype": "<i2", "nbytes": 4, **spec}
    return {"type": "hello", "id": 1, "fields": {}, "arrays": [layout]}


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3), (4, 0, 2), (2, 3, 4)])
def test_a_frame_comes_back_as_it_was_sent(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    frame = Frame("hello", 7, {"text": "Größe", "deep": {"list": [1, None, 2.5]}}, {"a": array, "b": array})
    back = read_frame(io.BytesIO(written(frame)))
    assert back is not None
    assert (back.type, back.request_id, back.fields) == ("hello", 7, frame.fields)
    assert back.arrays["a"].dtype == array.dtype
    np.testing.assert_array_equal(back.arrays["b"], array)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype=np.int16).reshape(2, 3, 4).transpose(2, 0, 1),
        np.arange(24, dtype=np.int16)[::3],
        np.asfortranarray(np.arange(24.0).reshape(4, 6)),
        np.arange(6, dtype=">f4").reshape(2, 3),
        np.arange(10 << 20, dtype=np.uint8).reshape(5 << 20, 2).T,
    ],
)
def test_arrays_of_any_memory_layout_travel(array: np.ndarray) -> None:
    back = read_frame(io.BytesIO(written(Frame("hello", 1, {}, {"a": array}))))
    assert back is not None
    np.testing.assert_array_equal(back.arrays["a"], array)


def test_frames_follow_each_other_and_the_stream_ends_between_two() -> None:
    stream = io.BytesIO(written(Frame("hello", 1)) + written(Frame("info", 2)))
    assert [frame.type for frame in iter(lambda: read_frame(stream), None)] == ["hello", "info"]


def test_a_frame_cut_at_any_byte_is_reported() -> None:
    whole = written(Frame("hello", 1, {"x": 1}, {"a": np.arange(5, dtype=np.int16)}))
    for length in range(1, len(whole)):
        with pytest.raises(ProtocolError, match="cut short"):
            read_frame(io.BytesIO(whole[:length]))


def test_a_stream_that_delivers_single_bytes_is_read_to_the_end() -> None:
    class Trickle(io.BytesIO):
        def readinto(self, buffer: memoryview) -> int:
            return super().readinto(memoryview(buffer)[:1])

    back = read_frame(Trickle(written(Frame("hello", 1, {}, {"a": np.arange(3, dtype=np.int32)}))))
    assert back is not None
    assert back.arrays["a"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("noise", [b"Last login: Mon Sep  1 on ttys000\n", bytes(64), b"\xff" * 64])
def test_noise_is_not_taken_for_a_frame(noise: bytes) -> None:
    with pytest.raises(ProtocolError, match="not a message"):
        read_frame(io.BytesIO(noise))


def test_another_protocol_version_is_named() -> None:
    with pytest.raises(ProtocolError, match=r"version 99 .* same version of medssl"):
        read_frame(io.BytesIO(PREFIX.pack(MAGIC, 99, 2, 0) + b"{}"))


@pytest.mark.parametrize("lengths", [(MAX_HEADER_BYTES + 1, 0), (2, MAX_PAYLOAD_BYTES + 1), (2, 2**64 - 1)])
def test_absurd_lengths_are_refused_before_anything_is_allocated(lengths: tuple[int, int]) -> None:
    with pytest.raises(ProtocolError, match="over the limit"):
        read_frame(io.BytesIO(PREFIX.pack(MAGIC, PROTOCOL_VERSION, *lengths)))


@pytest.mark.parametrize(
    "header",
    [
        b"{not json",
        b"[" * 100_000,
        b"\xff\xfe",
        [],
        {},
        {"type": 1, "id": 1, "fields": {}, "arrays": []},
        {"type": "hello", "id": "1", "fields": {}, "arrays": []},
        {"type": "hello", "id": 1, "fields": [], "arrays": []},
        {"type": "hello", "id": 1, "fields": {}, "arrays": ["a"]},
        header_with(dtype="|O"),
        header_with(dtype="<U1"),
        header_with(shape=[-2]),
        header_with(shape=[1.0, 2]),
        header_with(shape=[1] * 9 + [2]),
        header_with(nbytes=5),
        header_with(shape=[2**40, 2**40], nbytes=2**81),
    ],
)
def test_a_malformed_header_is_refused(header: object) -> None:
    with pytest.raises(ProtocolError):
        read_frame(raw_frame(header, b"1234"))


def test_arrays_that_do_not_fill_the_payload_are_refused() -> None:
    with pytest.raises(ProtocolError, match="lists arrays of 4 bytes"):
        read_frame(raw_frame(header_with(), b"123456"))


@pytest.mark.parametrize("dtype", [object, complex, "U3", "datetime64[s]", bool])
def test_only_plain_numbers_can_be_sent(dtype: object) -> None:
    with pytest.raises(ProtocolError, match="cannot be sent"):
        written(Frame("hello", 1, {}, {"a": np.zeros(2, dtype)}))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="measures through /proc")
def test_a_large_array_travels_without_being_held_twice() -> None:
    script = """
import os, resource, sys, threading
import numpy as np
from medssl.wire.framing import Frame, read_frame, write_frame
size = 64 << 20
array = np.ones((size >> 20, 512, 1024), np.int16)
back, front = os.pipe()
with os.fdopen(back, "rb") as incoming, os.fdopen(front, "wb") as outgoing:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    frame = Frame("hello", 1, {}, {"a": array.transpose(0, 2, 1)})
    sender = threading.Thread(target=write_frame, args=(outgoing, frame))
    sender.start()
    received = read_frame(incoming)
    sender.join()
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
assert received.arrays["a"].all()
print(grown / size)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 1.3  # the received array itself, and nothing of its size beside it
