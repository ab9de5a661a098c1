"""The live page over HTTP, which only reads. The only module that knows Starlette and uvicorn.

Import it where it is used: the two take a moment to load, and most commands do without.
"""

import asyncio
import ipaddress
import secrets
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import cast
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from fluffle.address import in_a_url
from fluffle.errors import ConfigError
from fluffle_cli.dashboard.table import page_of
from fluffle_cli.plain_json import as_text
from fluffle_cli.watching.as_json import as_json
from fluffle_cli.watching.view import FederationView

HEADERS = {
    # Nothing from other servers, nothing inline, and no other page may show this one in a frame.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    # One request per connection, so that the life of a connection bounds a slow sender and a slow reader.
    "Connection": "close",
}
WRONG_HOST = (
    "this server has no such host name: ask for 127.0.0.1. A proxy in front of it must send "
    "`Host: 127.0.0.1`; or serve the page with --dashboard-host 0.0.0.0, which requires a token\n"
)
LET_IN_BY_ADDRESS = "open the address that `fluffle dashboard` has printed: the token in it lets you in\n"
# Of text that somebody types to search for.
MOST_LETTERS = 200
CONNECTION_LIFE_S = 60.0
# A browser opens six. Beyond this many at a time, a request is answered with 503.
MAX_CONNECTIONS = 64


class PageServer:
    """An ASGI application with its socket: on loopback for everybody, elsewhere for whoever has the token."""

    def __init__(self, view: Callable[[], FederationView], host: str, port: int) -> None:
        """Listen on a port, 0 for any that is free, and serve what `view` returns, from any thread.

        Raises ConfigError when it cannot listen there.
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self.socket = socket.create_server((host, port), family=family)
        except OSError as error:
            raise ConfigError(
                f"the live page cannot listen on {host}, port {port}: {error.strerror or error}; choose "
                "another one with --dashboard-port or --dashboard-host"
            ) from error
        self.port = int(self.socket.getsockname()[1])
        # Servers on two ports of one host share their cookies.
        self.cookie = f"fluffle-{self.port}"
        self.token = token_for(host)
        self._host = host
        self._view = view
        self._routes = Starlette(
            routes=[
                Route("/api/state", lambda _: _json(as_json(view()))),
                Route("/api/workers", self._workers),
                Mount("/", StaticFiles(packages=[("fluffle_cli.dashboard", "assets")], html=True)),
            ]
        )

    @property
    def url(self) -> str:
        """Where a browser on this machine finds the page, with the token if it needs one."""
        query = f"?token={self.token}" if self.token else ""
        return f"http://{in_a_url(self._host)}:{self.port}/{query}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        answer = self._refusal(Request(scope)) or self._routes
        await answer(scope, receive, send)

    def _refusal(self, request: Request) -> Response | None:
        """Return the answer to a request that may not see the page, None for one that may.

        Without a token, the browser must have asked for a loopback name: somebody else's name may lead here,
        too, and then a page of theirs would read this one (DNS rebinding). With a token, the browser sends
        the cookie to no other host name than the one that set it.
        """
        if not request.scope["path"].startswith("/"):
            return PlainTextResponse("this is not the path of a page\n", 400)
        if self.token is None:
            return None if _names_loopback(request) else PlainTextResponse(WRONG_HOST, 421)
        if _is_equal(request.query_params.get("token", ""), self.token):
            # Exchanged for a cookie, so that it stays in no history and no bookmark.
            answer = RedirectResponse("/", 303)
            answer.set_cookie(self.cookie, self.token, httponly=True, samesite="lax")
            return answer
        has_token = _is_equal(request.cookies.get(self.cookie, ""), self.token)
        return None if has_token else PlainTextResponse(LET_IN_BY_ADDRESS, 403)

    def _workers(self, request: Request) -> Response:
        query = request.query_params
        try:
            page = page_of(
                self._view(),
                sort=query.get("sort", "name"),
                descending=query.get("order") == "descending",
                search=query.get("search", "")[:MOST_LETTERS],
                page=int(query.get("page", "0")),
            )
        except (KeyError, ValueError):
            return PlainTextResponse("there is no such column or page\n", 400)
        return _json(page)


class _Connection(H11Protocol):
    """uvicorn's connection to a browser, with an end to it: uvicorn alone waits for a request for ever."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast("asyncio.Transport", transport))
        self.loop.call_later(CONNECTION_LIFE_S, self.transport.abort)


@contextmanager
def serving(server: PageServer) -> Iterator[PageServer]:
    """Serve from a thread of its own while the block lasts."""
    config = uvicorn.Config(
        server,
        http=_Connection,
        headers=list(HEADERS.items()),
        ws="none",
        lifespan="off",
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=1,
        # No request is logged: a token may stand in it.
        access_log=False,
        log_config=None,
        log_level="error",
        proxy_headers=False,
        server_header=False,
    )
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, args=([server.socket],), name="live page", daemon=True)
    thread.start()
    try:
        yield server
    finally:
        running.should_exit = True
        thread.join()


def token_for(host: str) -> str | None:
    """Draw a token for a page that others can reach; None for one that only this machine can."""
    return None if is_loopback(host) else secrets.token_urlsafe(32)


def is_loopback(host: str) -> bool:
    """Tell whether a host's name or address can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _names_loopback(request: Request) -> bool:
    try:
        return is_loopback(urlsplit(f"//{request.headers.get('host', '')}").hostname or "")
    except ValueError:
        return False


def _is_equal(given: str, token: str) -> bool:
    """Compare in a time that does not tell how much of it is right."""
    return secrets.compare_digest(given.encode(), token.encode())


def _json(body: Mapping[str, object]) -> Response:
    return Response(as_text(body, is_short=True), media_type="application/json")
