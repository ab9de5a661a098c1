"""What a private node needs to speak TLS: lines of configuration, and a look whether it answers."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

AMQP_HEADER = b"AMQP\x00\x00\x09\x01"
METHOD_FRAME = b"\x01"


@dataclass(frozen=True, slots=True)
class NodeTls:
    """How a node speaks TLS: with the server's certificate of a folder as `fluffle broker certs` makes it.

    Clients may log in with a password, too, unless `passwords` is off: then all must show a certificate, as
    broker_config/tls.conf has it.
    """

    certificates: Path
    passwords: bool = True

    @property
    def authority(self) -> Path:
        """What clients have to trust."""
        return self.certificates / "ca.pem"


def tls_configuration(recommended: str, tls: NodeTls, *, listener: str) -> str:
    """Return the recommended configuration with this node's address and files; later lines win."""
    lines = [
        recommended,
        f"listeners.ssl.1 = {listener}",
        f"ssl_options.cacertfile = {tls.authority}",
        f"ssl_options.certfile = {tls.certificates / 'server.pem'}",
        f"ssl_options.keyfile = {tls.certificates / 'server.key'}",
    ]
    if tls.passwords:
        lines += ["ssl_options.fail_if_no_peer_cert = false", "auth_mechanisms.2 = PLAIN"]
    return "\n".join(lines) + "\n"


def serves_amqps(host: str, port: int, authority: Path) -> bool:
    """Tell whether a broker answers over TLS; to ask for a certificate is an answer, too."""
    try:
        context = ssl.create_default_context(cafile=authority)
        with (
            socket.create_connection((host, port), timeout=5) as plain,
            context.wrap_socket(plain, server_hostname=host) as secure,
        ):
            secure.sendall(AMQP_HEADER)
            return secure.recv(1) == METHOD_FRAME
    except ssl.SSLError as error:
        # Whether clients will trust it is theirs to find out.
        return isinstance(error, ssl.SSLCertVerificationError) or "ALERT" in (error.reason or "")
    except OSError:
        return False
