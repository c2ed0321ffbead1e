"""The workstation's server: trame's, on this machine only and behind a guard."""

from __future__ import annotations

import asyncio
import os
import secrets
import webbrowser
from collections.abc import Callable
from typing import Any

from trame_server.core import Server

from .guard import LOOPBACK, Guard

__all__ = ["serve"]


def serve(server: Server, *, port: int, announce: Callable[[str], None], open_browser: bool = True) -> None:
    """Serve until it is interrupted.

    Args:
        server: holds the page and its state.
        port: 0 takes a free one.
        announce: called with the address, the secret in it, once the server listens.
        open_browser: show the address in the user's browser.
    """
    secret = secrets.token_urlsafe(32)
    guard = Guard(secret)
    # trame reads the command line, which is ours, unless this variable is there: only what is said here counts.
    os.environ["TRAME_ARGS"] = "--server"
    # What is sent most are pictures, which are compressed already.
    server.cli.set_defaults(authKey=guard.key, nowscompress=True)

    def bind(wslink_server: Any) -> None:
        guard.attach(wslink_server.app)

    def ready(**_: Any) -> None:
        asyncio.get_running_loop().set_exception_handler(_on_loop_error)
        address = f"http://{LOOPBACK}:{server.port}/"
        announce(f"{address}?secret={secret}")
        if open_browser:
            webbrowser.open(f"{address}?ticket={guard.ticket()}")

    server.controller.on_server_bind.add(bind)
    server.controller.on_server_ready.add(ready)
    # No time-out: a closed tab must lose nothing, however long it stays closed.
    server.start(
        port=port,
        host=LOOPBACK,
        timeout=0,
        backend="aiohttp",
        open_browser=False,
        show_connection_info=False,
        follow_symlinks=False,
    )


def _on_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """A tab that is closed in the middle of a picture is nothing to report."""
    if not isinstance(context.get("exception"), ConnectionResetError):
        loop.default_exception_handler(context)
