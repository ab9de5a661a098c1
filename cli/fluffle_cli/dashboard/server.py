"""The live page over HTTP: reads, and nothing else. The only module that knows http.server."""

from __future__ import annotations

import ipaddress
import secrets
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Final, Protocol
from urllib.parse import parse_qs, urlsplit

from fluffle.address import in_a_url
from fluffle.errors import ConfigError
from fluffle.logs import get_logger
from fluffle_cli.dashboard.table import MOST_LETTERS, Wanted
from fluffle_cli.plain_json import as_text

log = get_logger(__name__)

# Nothing from elsewhere, nothing inline, in nobody's frame.
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
ASSETS: Final[Mapping[str, tuple[str, str]]] = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
    **{
        f"/{name}.js": (f"{name}.js", "text/javascript; charset=utf-8")
        for name in ("app", "charts", "page", "text", "workers")
    },
    "/vendor/uPlot.js": ("vendor/uPlot.iife.min.js", "text/javascript; charset=utf-8"),
    "/vendor/uPlot.css": ("vendor/uPlot.min.css", "text/css; charset=utf-8"),
}
NOT_OURS: Final = (
    "this host name is not ours: ask for 127.0.0.1. A proxy in front of it sends `Host: 127.0.0.1`, or the "
    "page is served with --dashboard-host 0.0.0.0, to who has its token\n"
)
JSON: Final = "application/json"
IDLE_S: Final = 20.0
Request = socket.socket | tuple[bytes, socket.socket]
# At a time; a browser opens six. Who comes when there are more waits in the system's queue.
MOST_CONNECTIONS: Final = 64


class Watched(Protocol):
    """What is served."""

    def picture(self) -> dict[str, object]:
        """Return all but the workers."""

    def page(self, wanted: Wanted) -> dict[str, object]:
        """Return one page of the workers. Raises KeyError for an unknown column."""


class PageServer(ThreadingHTTPServer):
    """Serves one page, to whoever is let in: on loopback everybody, and elsewhere who has the token."""

    daemon_threads = True
    # Python's own would let two servers share a port.
    allow_reuse_port = False

    def __init__(self, watched: Watched, host: str, port: int) -> None:
        """Listen on a port, 0 for any that is free. Raises ConfigError when it is taken or not ours."""
        self.watched = watched
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._room = threading.BoundedSemaphore(MOST_CONNECTIONS)
        self.token = token_for(host)
        try:
            super().__init__((host, port), _Request)
        except OSError as error:
            raise ConfigError(
                f"the live page cannot listen on {host}, port {port}: {error.strerror or error}; choose "
                "another one with --dashboard-port or --dashboard-host"
            ) from error
        self._host = host

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self.server_address[1])

    @property
    def cookie(self) -> str:
        """The cookie's name. Cookies of one host are the same on each port, so that the port stands in it."""
        return f"fluffle-{self.port}"

    @property
    def url(self) -> str:
        """Where a browser on this machine finds the page, with the token if it needs one."""
        query = f"?token={self.token}" if self.token else ""
        return f"http://{in_a_url(self._host)}:{self.port}/{query}"

    def process_request(self, request: Request, client_address: object) -> None:
        """See ThreadingHTTPServer; waits while there are too many connections."""
        self._room.acquire()
        super().process_request(request, client_address)

    def process_request_thread(self, request: Request, client_address: object) -> None:
        """See ThreadingHTTPServer."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, _request: Request, client_address: object) -> None:
        """See ThreadingHTTPServer; a browser that goes away in the middle is no news."""
        log.debug("a request for the live page was not answered", client=str(client_address), exc_info=True)


class _Request(BaseHTTPRequestHandler):
    """Answers one browser."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "fluffle", ""
    timeout = IDLE_S
    server: PageServer

    def do_GET(self) -> None:
        """Answer a read."""
        try:
            parts = urlsplit(self.path)
        except ValueError:
            self._answer(HTTPStatus.BAD_REQUEST, "this is not the path of a page\n")
            return
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        if not self._is_meant():
            self._answer(HTTPStatus.MISDIRECTED_REQUEST, NOT_OURS)
        elif (
            self.server.token and "token" in query and constant_time_equal(query["token"], self.server.token)
        ):
            self._let_in(self.server.token)
        elif not self._is_let_in():
            self._answer(
                HTTPStatus.FORBIDDEN,
                "open the address that `fluffle dashboard` has printed: the token in it lets you in\n",
            )
        elif parts.path == "/api/state":
            self._answer_json(self.server.watched.picture())
        elif parts.path == "/api/workers":
            self._answer_workers(query)
        elif parts.path in ASSETS:
            name, kind = ASSETS[parts.path]
            self._answer(HTTPStatus.OK, asset(name), kind)
        else:
            self._answer(HTTPStatus.NOT_FOUND, "there is no such page\n")

    def do_HEAD(self) -> None:
        """Answer as to GET, without the body."""
        self.do_GET()

    def log_message(self, _format: str, *_values: object) -> None:
        """Log no request: a token may stand in it."""

    def _is_meant(self) -> bool:
        """Tell whether the browser means us, and not a name of somebody's that leads here (DNS rebinding).

        Where there is a token, its cookie belongs to the host name that it was given to.
        """
        if self.server.token:
            return True
        try:
            host = urlsplit(f"//{self.headers.get('Host', '')}").hostname
        except ValueError:
            return False
        return host is not None and is_loopback(host)

    def _is_let_in(self) -> bool:
        if self.server.token is None:
            return True
        try:
            given = SimpleCookie(self.headers.get("Cookie", "")).get(self.server.cookie)
        except CookieError:
            return False
        return given is not None and constant_time_equal(given.value, self.server.token)

    def _let_in(self, token: str) -> None:
        """Exchange the token for a cookie, so that it stays in no history and no bookmark."""
        self._begin(HTTPStatus.SEE_OTHER, 0, "text/plain")
        self.send_header("Location", "/")
        self.send_header("Set-Cookie", f"{self.server.cookie}={token}; Path=/; HttpOnly; SameSite=Lax")
        self.end_headers()

    def _answer_workers(self, query: Mapping[str, str]) -> None:
        try:
            wanted = Wanted(
                sort=query.get("sort", "name"),
                descending=query.get("order") == "descending",
                search=query.get("search", "")[:MOST_LETTERS],
                page=int(query.get("page", "0")),
            )
            page = self.server.watched.page(wanted)
        except (KeyError, ValueError):
            self._answer(HTTPStatus.BAD_REQUEST, "there is no such column or page\n")
        else:
            self._answer_json(page)

    def _answer_json(self, body: Mapping[str, object]) -> None:
        self._answer(HTTPStatus.OK, as_text(body, is_short=True), JSON)

    def _answer(self, status: HTTPStatus, body: str | bytes, kind: str = "text/plain; charset=utf-8") -> None:
        content = body.encode() if isinstance(body, str) else body
        self._begin(status, len(content), kind)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _begin(self, status: HTTPStatus, length: int, kind: str) -> None:
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))


@cache
def asset(name: str) -> bytes:
    """Return a file of the page."""
    return files("fluffle_cli.dashboard").joinpath("assets", name).read_bytes()


def constant_time_equal(given: str, token: str) -> bool:
    """Compare in a time that does not tell how much of it is right."""
    return secrets.compare_digest(given.encode(), token.encode())


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


@contextmanager
def serving(server: PageServer) -> Iterator[PageServer]:
    """Serve from a thread of its own while the block lasts."""
    with server:
        thread = threading.Thread(target=server.serve_forever, name="live page", daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
