"""The address of the broker and the login there, read from its URL; and hosts in other URLs."""

import ipaddress
import re
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from fluffle.errors import ConfigError
from fluffle.tls import TlsFiles, user_of

DEFAULT_PORTS = {"amqp": 5672, "amqps": 5671}
MANAGEMENT_PORTS = {"http": 15672, "https": 15671}


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """One broker, or the nodes of one cluster, and the login."""

    hosts: tuple[tuple[str, int], ...]
    virtual_host: str
    user: str | None
    password: str | None = field(repr=False)
    # None means plain text.
    tls: TlsFiles | None

    @property
    def management_urls(self) -> tuple[str, ...]:
        """The default URL of each node's management interface."""
        scheme = "http" if self.tls is None else "https"
        return tuple(f"{scheme}://{in_a_url(host)}:{MANAGEMENT_PORTS[scheme]}" for host, _ in self.hosts)

    @property
    def has_usual_ports(self) -> bool:
        """Whether every node listens on RabbitMQ's default port."""
        usual = DEFAULT_PORTS["amqp" if self.tls is None else "amqps"]
        return all(port == usual for _, port in self.hosts)

    def login(self) -> tuple[str, str | None]:
        """Return the RabbitMQ user and the password, which is None when a certificate is the login.

        The user of a certificate is the one in the URL, else the certificate's common name. Without user and
        certificate it is RabbitMQ's guest. Raises ConfigError when the certificate cannot be read, and for a
        user with neither password nor certificate.
        """
        if self.user is not None and self.password is not None:
            return self.user, self.password
        if self.tls is not None and self.tls.certificate is not None:
            return self.user or user_of(self.tls.certificate), None
        if self.user is not None:
            raise ConfigError(
                f"broker_url has the user {self.user!r} but no password: add it there or in "
                "broker_password_file, or present a certificate (broker_cert_file)"
            )
        return "guest", "guest"


def parse_address(url: str, *, password: str | None = None, files: TlsFiles | None = None) -> BrokerAddress:
    """Parse amqp[s]://user:password@host:port,host:port/virtual-host.

    `password` is used if the URL has none; `files` are for amqps. Raises ValueError, which says what is wrong
    ("has no host") without any part of the URL.
    """
    # pika would read options after a ?, even one that switches the verification of certificates off.
    if re.search(r"[?#\s]", url):
        raise ValueError("contains a ?, a # or a space")
    # Not with urlsplit: newer versions of Python refuse a host in brackets next to other hosts.
    scheme, separator, rest = url.partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in DEFAULT_PORTS:
        raise ValueError("does not begin with amqp:// or amqps://")
    authority, _, virtual_host = rest.partition("/")
    if "/" in virtual_host:
        raise ValueError("has a / in the virtual host (write %2F)")
    login, _, places = authority.rpartition("@")
    user, _, in_url = login.partition(":")
    return BrokerAddress(
        hosts=tuple(_host_and_port(place, DEFAULT_PORTS[scheme]) for place in places.split(",")),
        virtual_host=unquote(virtual_host) or "/",
        user=unquote(user) or None,
        password=unquote(in_url) if ":" in login else password,
        tls=None if scheme == "amqp" else files or TlsFiles(),
    )


def require_broker_url(url: str) -> str:
    """Return the URL of a broker, for a validator; raise ValueError, which does not show it, for others."""
    try:
        parse_address(url)
    except ValueError as error:
        raise ValueError(
            "must look like amqp://user:password@host:5672/%2F (percent-encode special characters), but it "
            f"{error}"
        ) from error
    return url


def require_management_url(url: str | None) -> str | None:
    """Return the URL of a management interface, for a validator; raise ValueError for any other text."""
    if url is None:
        return None
    try:
        parts = urlsplit(url)
        is_whole = parts.scheme in MANAGEMENT_PORTS and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_whole = False
    if "@" in url:  # it may have a password, so the error does not show it
        raise ValueError("must have no user and password: the login is the one in the broker URL")
    if not is_whole or parts.query or parts.fragment:
        raise ValueError(f"must look like http://host:15672, not {url!r}")
    return url.rstrip("/")


def in_a_url(host: str) -> str:
    """Return a host as a URL writes it; for an address that means every interface, the loopback address."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.is_unspecified:
        return "127.0.0.1"
    return f"[{host}]" if address.version == 6 else host


def _host_and_port(place: str, default_port: int) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{place}")
        host, port = parts.hostname, parts.port
    except ValueError:  # its message may quote the password
        host = port = None
    if not host or port == 0:
        raise ValueError("has no host, or a port that is not a number from 1 to 65535")
    return host, port or default_port
