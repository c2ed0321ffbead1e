"""Nothing gets through to the server without the secret, or from anywhere but its own page."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

pytest.importorskip("trame_slicer")

from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from medssl.web.guard import Guard

SECRET = "a-long-secret"
KNOWN = {"secret": SECRET}


async def _inside(request: web.Request) -> web.Response:
    return web.Response(text="inside")


def asked(ask: Callable[[TestClient], object]) -> list[object]:
    """What a guarded server says to some requests."""

    async def run() -> list[object]:
        application = web.Application()
        application.add_routes([web.get("/{any:.*}", _inside)])
        Guard(SECRET).attach(application)
        async with TestClient(TestServer(application)) as client:
            return await ask(client)  # type: ignore[misc, no-any-return]

    return asyncio.run(run())


def status_of(path: str, **headers: str) -> int:
    async def ask(client: TestClient) -> list[object]:
        await client.get("/", params=KNOWN, allow_redirects=False)
        response = await client.get(path, headers=headers, allow_redirects=False)
        return [response.status]

    (status,) = asked(ask)
    assert isinstance(status, int)
    return status


def test_without_the_secret_every_request_gets_an_empty_403() -> None:
    async def ask(client: TestClient) -> list[object]:
        said: list[object] = []
        for path in ("/", "/index.html", "/ws", "/assets/page.js", "/?secret=wrong"):
            response = await client.get(path)
            said.append((response.status, await response.text()))
        said.append((await client.post("/paraview/")).status)
        return said

    assert asked(ask) == [(403, "")] * 5 + [403]


def test_the_secret_is_exchanged_for_a_cookie_that_no_script_reads() -> None:
    async def ask(client: TestClient) -> list[object]:
        first = await client.get("/", params=KNOWN, allow_redirects=False)
        page = await client.get("/index.html")
        return [first.status, first.headers["Location"], first.headers["Set-Cookie"], await page.text()]

    status, location, cookie, page = asked(ask)
    assert (status, location, page) == (302, "/index.html", "inside")
    assert "HttpOnly" in str(cookie)
    assert "SameSite=Strict" in str(cookie)


def test_a_ticket_lets_one_browser_in_once() -> None:
    async def run() -> list[int]:
        application = web.Application()
        application.add_routes([web.get("/{any:.*}", _inside)])
        guard = Guard(SECRET)
        guard.attach(application)
        said, tickets = [], (guard.ticket(), guard.ticket())
        server = TestServer(application)
        async with TestClient(server) as first, TestClient(server) as second:
            for client, path in (
                (second, f"/index.html?ticket={tickets[0]}"),
                (first, f"/?ticket={tickets[0]}"),
                (first, "/index.html"),
                (second, f"/?ticket={tickets[0]}"),
                (second, "/?ticket="),
                (second, f"/?ticket={tickets[1]}"),
            ):
                said.append((await client.get(path, allow_redirects=False)).status)
        return said

    assert asyncio.run(run()) == [403, 302, 200, 403, 403, 302]


def test_the_page_learns_the_websocket_and_its_key_from_its_own_server_only() -> None:
    async def ask(client: TestClient) -> list[object]:
        await client.get("/", params=KNOWN, allow_redirects=False)
        said = await (await client.post("/paraview/")).json()
        return [said["secret"], said["sessionURL"] == f"ws://{client.host}:{client.port}/ws"]

    assert asked(ask) == [SECRET, True]


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/index.html", {"Host": "evil.example:8080"}),
        ("/index.html", {"Origin": "http://evil.example"}),
        ("/index.html", {"Origin": "null"}),
        ("/ws", {"Origin": "http://127.0.0.1:1"}),
        ("/assets/page.js", {"Sec-Fetch-Site": "cross-site"}),
        ("/assets/page.js", {"Sec-Fetch-Site": "same-site"}),
    ],
)
def test_who_knows_the_secret_but_comes_from_elsewhere_is_refused(path: str, headers: dict[str, str]) -> None:
    assert status_of(path, **headers) == 403


@pytest.mark.parametrize(
    "path",
    [
        "/index.html?sessionURL=ws://evil.example/ws",
        "/assets/%2e%2e/%2e%2e/etc/passwd",
        "/assets/..%2f..%2fetc/passwd",
        "/assets/%5c..%5cwindows",
        "/page%00.html",
    ],
)
def test_crooked_addresses_lead_nowhere(path: str) -> None:
    from yarl import URL

    async def ask(client: TestClient) -> list[object]:
        await client.get("/", params=KNOWN, allow_redirects=False)
        url = URL(f"http://{client.host}:{client.port}{path}", encoded=True)
        return [(await client.session.get(url, cookies=None)).status]

    assert asked(ask)[0] in (403, 404)


def test_everything_says_that_the_page_may_reach_this_server_alone() -> None:
    async def ask(client: TestClient) -> list[object]:
        refused, let_in = await client.get("/ws"), await client.get("/", params=KNOWN, allow_redirects=False)
        return [response.headers["Content-Security-Policy"] for response in (refused, let_in)]

    for policy in asked(ask):
        assert "default-src 'self'" in str(policy)
        assert "connect-src 'self'" in str(policy)
        assert "frame-ancestors 'none'" in str(policy)
