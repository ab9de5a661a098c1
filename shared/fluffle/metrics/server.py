"""Serves a registry over HTTP from one thread: who holds that up holds up other scrapes, and nothing else."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from socketserver import TCPServer

from prometheus_client import CollectorRegistry, MetricsHandler

from fluffle.address import in_a_url
from fluffle.errors import ConfigError
from fluffle.logs import get_logger

log = get_logger(__name__)

# A client that says nothing for so long is sent away.
PATIENCE_S = 5.0
POLL_S = 0.1


class _Handler(MetricsHandler):
    timeout = PATIENCE_S


class _Server(TCPServer):
    allow_reuse_address = True

    def __init__(self, host: str, port: int, registry: CollectorRegistry) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler.factory(registry))

    def handle_error(self, *_request: object) -> None:
        """Say in one line what would be a traceback."""
        log.debug("a scrape broke off", exc_info=True)


@contextmanager
def serving(registry: CollectorRegistry, host: str, port: int) -> Iterator[None]:
    """Serve a registry while the block lasts; ConfigError when that port cannot be opened."""
    try:
        server = _Server(host, port, registry)
    except OSError as error:
        raise ConfigError(
            f"--metrics-port {port} cannot be opened on --metrics-host {host}: {error.strerror}; each "
            "process needs a port of its own, and an address of this machine"
        ) from error
    thread = threading.Thread(target=server.serve_forever, args=(POLL_S,), name="metrics", daemon=True)
    thread.start()
    log.info("serving metrics", url=f"http://{in_a_url(host)}:{port}/metrics")
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
