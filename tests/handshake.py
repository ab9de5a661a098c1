"""A TLS handshake in memory: two contexts, and whether they trust each other."""

import ssl
from contextlib import suppress


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, *, host: str) -> str | None:
    """Let a client meet the server of a host; return the TLS version, and raise what either objects to."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    here = client.wrap_bio(to_client, to_server, server_hostname=host)
    there = server.wrap_bio(to_server, to_client, server_side=True)
    # Each turn takes what the other has said; TLS 1.3 needs three.
    for _ in range(4):
        for side in (here, there):
            with suppress(ssl.SSLWantReadError):
                side.do_handshake()
    with suppress(ssl.SSLWantReadError):
        here.read(1)
    return here.version()
