"""Nothing gets through to the server without the secret, or from anywhere but its own page."""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytest.importorskip("trame_slicer")

from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from medssl.web.guard import Guard

from .conftest import run_async

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

    return run_async(run())


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


def test_the_secret_is_exchanged_for_a_cookie_that_no_script_reads_and_that_does_not_tell_it() -> None:
    async def ask(client: TestClient) -> list[object]:
        first = await client.get("/", params=KNOWN, allow_redirects=False)
        page = await client.get("/index.html")
        again = await client.get("/", allow_redirects=False)
        key = await (await client.post("/paraview/")).text()
        said = [str(first.headers), await first.text(), key]
        cookies = (first.headers["Set-Cookie"], again.headers.get("Set-Cookie"))
        return [(first.status, again.status, await page.text()), cookies, "".join(said)]

    statuses, cookies, said = asked(ask)
    assert statuses == (200, 200, "inside")
    assert SECRET not in str(said)
    assert "url=/index.html" in str(said)
    cookie, second = cookies  # type: ignore[misc]
    assert second is None
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert "Expires" not in cookie
    assert "Max-Age" not in cookie


def test_a_link_in_another_page_gets_a_page_of_our_own_that_goes_on_by_itself() -> None:
    elsewhere = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}

    async def ask(client: TestClient) -> list[object]:
        without = await client.get("/", headers=elsewhere)
        landing = await client.get("/", params=KNOWN, headers=elsewhere, allow_redirects=False)
        return [without.status, landing.status, landing.headers["Cache-Control"]]

    assert asked(ask) == [403, 200, "no-store"]


def test_neither_the_secret_nor_a_session_of_an_earlier_run_will_do_as_the_cookie() -> None:
    sessions: list[str] = []

    async def ask(client: TestClient) -> list[object]:
        first = await client.get("/", params=KNOWN, allow_redirects=False)
        name, session = first.headers["Set-Cookie"].split(";")[0].split("=", 1)
        sessions.append(session)
        client.session.cookie_jar.clear()
        tried = [SECRET, sessions[0], ""]
        return [
            (await client.get("/index.html", headers={"Cookie": f"{name}={value}"})).status for value in tried
        ]

    assert asked(ask) == [403, 200, 403]
    assert asked(ask) == [403, 403, 403]
    assert len(set(sessions)) == 2


def test_the_secret_opens_the_landing_address_and_no_other() -> None:
    async def ask(client: TestClient) -> list[object]:
        paths = ("/index.html", "/ws", "/assets/page.js")
        return [(await client.get(path, params=KNOWN)).status for path in paths]

    assert asked(ask) == [403, 403, 403]


def test_a_form_of_another_page_is_refused_even_by_a_browser_that_sends_the_cookie_along() -> None:
    async def ask(client: TestClient) -> list[object]:
        await client.get("/", params=KNOWN)
        form = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
        return [
            (await client.post("/paraview/", headers=headers)).status
            for headers in (form, {"Origin": "null"}, {"Origin": "http://localhost:1"}, {})
        ]

    assert asked(ask) == [403, 403, 403, 200]


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

    assert run_async(run()) == [403, 200, 200, 403, 403, 200]


def test_the_page_learns_the_websocket_and_its_key_from_its_own_server_only() -> None:
    async def ask(client: TestClient) -> list[object]:
        await client.get("/", params=KNOWN, allow_redirects=False)
        said = await (await client.post("/paraview/")).json()
        return [len(said["secret"]) > 40, said["sessionURL"] == f"ws://{client.host}:{client.port}/ws"]

    assert asked(ask) == [True, True]


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
