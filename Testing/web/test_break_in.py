"""Somebody on the same machine tries to get into a running workstation, from below what a browser would send."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("trame_slicer")

import msgpack
from aiohttp import ClientSession, ClientWebSocketResponse, CookieJar, WSMsgType, WSServerHandshakeError
from wslink.chunking import UnChunker, generate_chunks

from .conftest import Running, run_async

ANSWERS_S = 10.0
UNAUTHORIZED = -32000
CALL = {"wslink": "1.0", "id": "rpc:1", "method": "trame.state.get", "args": [], "kwargs": {}}


def answer(running: Running, *lines: bytes) -> int:
    """Status of the answer to a request that is sent as it is."""
    with socket.create_connection(("127.0.0.1", running.port), timeout=ANSWERS_S) as connection:
        connection.sendall(b"\r\n".join([*lines, b"", b""]))
        first = connection.makefile("rb").readline()
    return int(first.split()[1])


def cookie_of(running: Running) -> bytes:
    """What a browser that opened the address sends from then on."""
    query = urlsplit(running.address).query
    with socket.create_connection(("127.0.0.1", running.port), timeout=ANSWERS_S) as connection:
        connection.sendall(f"GET /?{query} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        said = connection.makefile("rb").read()
    found = re.search(rb"Set-Cookie: ([^;]+)", said)
    assert found
    return b"Cookie: " + found.group(1)


def test_it_listens_on_the_loopback_address_and_nowhere_else(workstation: Running) -> None:
    process = Path(f"/proc/{workstation.process.pid}")
    if not (process / "net/tcp").is_file():
        pytest.skip("this system does not tell what a process listens on")
    own = {link for file in (process / "fd").iterdir() if "socket" in (link := _target(file))}
    listening = []
    for table in ("tcp", "tcp6"):
        for line in (process / "net" / table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in own:
                listening.append(fields[1])
    assert listening == [f"0100007F:{workstation.port:04X}"]


def _target(file: Path) -> str:
    try:
        return str(file.readlink())
    except FileNotFoundError:  # closed while the folder was listed
        return ""


@pytest.mark.parametrize(
    "lines",
    [
        [b"GET /index.html HTTP/1.1", b"Host: evil.example"],
        [b"GET /index.html HTTP/1.1", b"Host: 127.0.0.1.evil.example"],
        [b"GET /index.html HTTP/1.1", b"Host: localhost.evil.example"],
        [b"GET /index.html HTTP/1.1", b"Host: evil.example@127.0.0.1"],
        [b"GET /index.html HTTP/1.1", b"Host: 127.0.0.1#.evil.example"],
        [b"GET /index.html HTTP/1.1", b"Host: 127.0.0.1", b"Host: evil.example"],
        [b"GET http://evil.example/index.html HTTP/1.1", b"Host: 127.0.0.1"],
        [b"GET http://127.0.0.1/index.html HTTP/1.1", b"Host: evil.example"],
        [b"GET /index.html HTTP/1.1", b"Host: [::1"],
        [b"GET /index.html HTTP/1.1", b"Host: "],
        [b"GET /index.html HTTP/1.0"],
        [
            b"GET /ws HTTP/1.1",
            b"Host: 127.0.0.1",
            b"Origin: http://127.0.0.1",
            b"Origin: http://evil.example",
        ],
        [b"POST /paraview/ HTTP/1.1", b"Host: 127.0.0.1", b"Origin: http://evil.example"],
        [b"PUT /index.html HTTP/1.1", b"Host: 127.0.0.1", b"Content-Length: 99999999999"],
        [b"GET /../../../../etc/passwd HTTP/1.1", b"Host: 127.0.0.1"],
        [b"GET /assets/..%252f..%252fetc/passwd HTTP/1.1", b"Host: 127.0.0.1"],
        [b"GET //etc/passwd HTTP/1.1", b"Host: 127.0.0.1"],
        [b"GET /assets/ HTTP/1.1", b"Host: 127.0.0.1"],
    ],
    ids=lambda lines: b" ".join(lines).decode(),
)
def test_even_with_the_cookie_a_forged_request_is_refused(workstation: Running, lines: list[bytes]) -> None:
    assert answer(workstation, *lines, cookie_of(workstation)) in (400, 403, 404, 405)
    assert not [line for line in workstation.lines if "Traceback" in line and "ValueError" in line]


def test_a_cookie_of_garbage_is_refused_and_not_stumbled_over(workstation: Running) -> None:
    name = cookie_of(workstation).split(b"=")[0]
    assert answer(workstation, b"GET /ws HTTP/1.1", b"Host: 127.0.0.1", name + b"=\xff\xfe") == 403


def test_the_secret_as_the_cookie_is_refused(workstation: Running) -> None:
    name = cookie_of(workstation).split(b"=")[0]
    secret = urlsplit(workstation.address).query.removeprefix("secret=").encode()
    assert answer(workstation, b"GET /index.html HTTP/1.1", b"Host: 127.0.0.1", name + b"=" + secret) == 403


def test_a_request_that_promises_a_huge_body_is_answered_without_it(workstation: Running) -> None:
    request = (b"POST /paraview/ HTTP/1.1", b"Host: 127.0.0.1", b"Content-Length: 99999999999")
    assert answer(workstation, *request) == 403


def over_websocket(
    running: Running, ask: Callable[[ClientWebSocketResponse], Awaitable[Any]], **headers: str
) -> Any:
    """What somebody with the cookie is told on a websocket."""

    async def run() -> Any:
        async with ClientSession(cookie_jar=CookieJar(unsafe=True)) as session:
            await session.get(running.address)
            async with session.ws_connect(f"http://127.0.0.1:{running.port}/ws", headers=headers) as opened:
                return await ask(opened)

    return run_async(asyncio.wait_for(run(), 3 * ANSWERS_S))


async def _send(connection: ClientWebSocketResponse, message: dict[str, Any]) -> Any:
    try:
        for chunk in generate_chunks(msgpack.packb(message), 1 << 20):
            await connection.send_bytes(chunk)
    except ConnectionError:  # it was closed before all was sent
        return "closed"
    unchunker = UnChunker()
    unchunker.set_max_message_size(1 << 24)
    while (heard := await connection.receive(ANSWERS_S)).type is WSMsgType.BINARY:
        if (whole := unchunker.process_chunk(heard.data)) is not None:
            return whole
    return "closed"


def test_a_websocket_without_the_cookie_is_not_opened(workstation: Running) -> None:
    async def run() -> int:
        async with ClientSession() as session:
            with pytest.raises(WSServerHandshakeError) as refused:
                await session.ws_connect(f"http://127.0.0.1:{workstation.port}/ws")
            return int(refused.value.status)

    assert run_async(run()) == 403


def test_a_websocket_of_another_page_is_not_opened_even_with_the_cookie(workstation: Running) -> None:
    async def nothing(connection: ClientWebSocketResponse) -> None:
        raise AssertionError("it was opened")

    with pytest.raises(WSServerHandshakeError):
        over_websocket(workstation, nothing, Origin="http://127.0.0.1:1")


def test_a_websocket_that_does_not_say_the_key_first_is_told_nothing(workstation: Running) -> None:
    async def ask(connection: ClientWebSocketResponse) -> list[int]:
        secret = urlsplit(workstation.address).query.removeprefix("secret=")
        said = [
            {**CALL, "id": "system:1", "method": "wslink.hello", "args": [{"secret": guess}]}
            for guess in ("wslink-secret", secret, "")
        ]
        return [(await _send(connection, message))["error"]["code"] for message in (CALL, *said, CALL)]

    assert over_websocket(workstation, ask) == [UNAUTHORIZED] * 5


def test_who_has_not_said_the_key_cannot_fill_the_memory(workstation: Running) -> None:
    async def ask(connection: ClientWebSocketResponse) -> Any:
        return await _send(connection, {**CALL, "args": ["x" * (3 << 20)]})

    assert over_websocket(workstation, ask) == "closed"
