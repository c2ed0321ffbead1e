"""Who may talk to the workstation: whoever knows the secret, on this machine, from the workstation's own page.

The server listens on the loopback address only, but every program and web page on this machine can reach that. So:

- the address that is printed carries a secret; who opens it gets a session, known by a cookie that no script can read
  and no other site can send; without it every other request, a websocket too, is answered 403 with an empty page;
- sessions are random, live in this process's memory alone, and do not tell the secret;
- a websocket that got through has to say a key, which only the page of a session learns, before anything else is
  listened to;
- the Host must be this machine by name or number (a name of somebody else that leads here is refused), and the Origin,
  where there is one, the page's own;
- the page may load, and send to, nothing but this server (Content-Security-Policy).
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

__all__ = ["LOOPBACK", "Guard"]

LOOPBACK = "127.0.0.1"
"""The address the server listens on."""
_OURS = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)
"""What a Host may say: behind an ssh tunnel the port is another one than here."""
_PAGE = "/index.html"
_LAUNCHER = "/paraview/"
"""Where trame's page asks which websocket to use, and what to say to it."""
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline';"
        " img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:;"
        " object-src 'none'; base-uri 'self'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Inline scripts and `eval` are how trame's page and Vue's templates work; what they may reach is this server alone."""
_LANDING = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>MedSSLSegment</title>
<link rel="icon" href="data:,"><meta http-equiv="refresh" content="0; url={_PAGE}"></head>
<body style="background: #121212"><a href="{_PAGE}" style="color: #9e9e9e">MedSSLSegment</a></body></html>
"""
"""A page of our own that goes on by itself. A redirect would not do: where another site's page leads here, the browser
holds a redirect against that site, and keeps the cookie back."""

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Guard:
    """Stands before every request of a server.

    Args:
        secret: what the address carries; long and random.
    """

    def __init__(self, secret: str) -> None:
        self._secret = secret
        self._sessions: set[str] = set()
        self.key = secrets.token_urlsafe(32)
        """What a websocket says first."""
        # Cookies do not keep the ports of one machine apart: the name does.
        self._cookie = f"medssl-{hashlib.sha256(secret.encode()).hexdigest()[:12]}"
        self._tickets: set[str] = set()

    def ticket(self) -> str:
        """What lets one browser in, once.

        It is for the address that another program is started with: everybody on this machine can read that.
        """
        ticket = secrets.token_urlsafe(32)
        self._tickets.add(ticket)
        return ticket

    def attach(self, application: web.Application) -> None:
        """Stand before an application that has not started yet."""
        application.middlewares.append(self._middleware())
        application.on_response_prepare.append(self._add_headers)

    def refusal(self, request: web.Request) -> int | None:
        """The status a request is refused with; None for one that is let through."""
        if not self._is_from_here(request) or not (self._has_session(request) or self._is_let_in(request)):
            return 403
        if request.method not in ("GET", "HEAD") and (request.method, request.path) != ("POST", _LAUNCHER):
            return 405
        # The page would take the address of another server, among other things, from its query.
        allowed = {"secret", "ticket"} if request.path == "/" else set() if request.path == _PAGE else {"v"}
        return 404 if _is_crooked(request.rel_url.raw_path) or set(request.query) - allowed else None

    def _middleware(self) -> Any:
        @web.middleware
        async def stand_guard(request: web.Request, handler: _Handler) -> web.StreamResponse:
            status = self.refusal(request)
            if status is not None:
                return web.Response(status=status)
            if request.path == "/":
                landing = web.Response(text=_LANDING, content_type="text/html")
                return landing if self._has_session(request) else self._begin_session(landing)
            if request.path == _LAUNCHER:
                return web.json_response({"sessionURL": f"ws://{request.host}/ws", "secret": self.key})
            return await handler(request)

        return stand_guard

    async def _add_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(_HEADERS)
        if request.path in ("/", _PAGE, _LAUNCHER):
            response.headers["Cache-Control"] = "no-store"

    def _begin_session(self, response: web.StreamResponse) -> web.StreamResponse:
        """Give the browser the cookie that its next requests are known by."""
        session = secrets.token_urlsafe(32)
        self._sessions.add(session)
        response.set_cookie(self._cookie, session, httponly=True, samesite="Strict", path="/")
        return response

    def _is_from_here(self, request: web.Request) -> bool:
        """Whether the request names this machine, and comes from the workstation's own page or from none."""
        named = {request.host, request.headers.get("Host", "")}  # the request line can name a host as well
        if len(named) > 1 or not _OURS.fullmatch(request.host):
            return False
        if any(origin != f"http://{request.host}" for origin in request.headers.getall("Origin", ())):
            return False
        is_page = request.method == "GET" and request.headers.get("Sec-Fetch-Mode") == "navigate"
        return is_page or request.headers.get("Sec-Fetch-Site", "none") in ("same-origin", "none")

    def _has_session(self, request: web.Request) -> bool:
        return request.cookies.get(self._cookie) in self._sessions

    def _is_let_in(self, request: web.Request) -> bool:
        """Whether a request is for the landing address, and knows what opens it."""
        if request.path != "/":
            return False
        ticket = request.query.get("ticket", "")
        if ticket in self._tickets:
            self._tickets.remove(ticket)
            return True
        given = request.query.get("secret", "")
        return hmac.compare_digest(given.encode(errors="surrogateescape"), self._secret.encode())


def _is_crooked(raw_path: str) -> bool:
    """Whether a path tries to leave the folder that is served; no file of the page needs any of this."""
    lowered = raw_path.lower()
    return any(part in lowered for part in ("..", "//", "\\", "%2e", "%2f", "%5c", "%00"))
