"""Where the broker is and how to log in there: its URL, taken apart once for all. And hosts in other URLs."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from fluffle.errors import ConfigError
from fluffle.tls import TlsFiles

DEFAULT_PORTS = {"amqp": 5672, "amqps": 5671}
MANAGEMENT_PORTS = {"http": 15672, "https": 15671}
# Hosts and ports of a URL without a login. What stands where a port should, but is none, may be a password.
_PLACE = r"(\[[^\]/]*\]|[^:/\[,]*)(:[0-9]*)?"
_PLACES = re.compile(rf"{_PLACE}(,{_PLACE})*(/.*)?")


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """One broker, or the nodes of one cluster, and the login there."""

    hosts: tuple[tuple[str, int], ...]
    virtual_host: str
    user: str | None
    password: str | None = field(repr=False)
    # None is plain text.
    tls: TlsFiles | None

    @property
    def management_urls(self) -> tuple[str, ...]:
        """Where the management interface of each node is, unless somebody has moved it."""
        scheme = "http" if self.tls is None else "https"
        return tuple(f"{scheme}://{in_a_url(host)}:{MANAGEMENT_PORTS[scheme]}" for host, _ in self.hosts)

    @property
    def has_usual_ports(self) -> bool:
        """Whether every node listens where RabbitMQ does unless told otherwise."""
        usual = DEFAULT_PORTS["amqp" if self.tls is None else "amqps"]
        return all(port == usual for _, port in self.hosts)

    def login(self) -> tuple[str, str | None]:
        """Return the RabbitMQ user and the password; no password where our certificate is the login.

        The user whom a certificate stands for is the URL's, else the certificate's common name. Without user
        and certificate it is RabbitMQ's guest. Raises ConfigError when the certificate cannot be read, and
        for a user with neither password nor certificate.
        """
        if self.user is not None and self.password is not None:
            return self.user, self.password
        if self.tls is not None and self.tls.certificate is not None:
            return self.user or self.tls.certificate.user(), None
        if self.user is not None:
            raise ConfigError(
                f"broker_url has the user {self.user!r} but no password: give it there or in "
                "broker_password_file, or show a certificate (broker_cert_file)"
            )
        return "guest", "guest"


def parse_address(url: str, *, password: str | None = None, files: TlsFiles | None = None) -> BrokerAddress:
    """Take apart amqp[s]://user:password@host:port,host:port/virtual-host.

    `password` is one that does not stand in the URL, `files` what amqps needs. Raises ValueError with what is
    wrong, to be put behind the URL: "has no amqp://".
    """
    if "#" in url or any(character.isspace() for character in url):
        raise ValueError("holds a # or a space")
    if "://" not in url:
        raise ValueError("has no amqp://")
    # Not by urlsplit: newer versions of Python refuse a host in brackets beside others.
    scheme, _, rest = url.partition("://")
    scheme = scheme.lower()
    if scheme not in DEFAULT_PORTS:
        raise ValueError(f"begins with {scheme}://")
    rest, _, options = rest.partition("?")
    authority, _, virtual_host = rest.partition("/")
    login, _, places = authority.rpartition("@")
    user, _, in_url = login.partition(":")
    hosts = tuple(_host_and_port(place, scheme) for place in places.split(","))
    if "/" in virtual_host:
        raise ValueError("has a / in the virtual host (write %2F)")
    if options:
        # pika would take from there what is set elsewhere, and worse: verification could be switched off.
        raise ValueError("has a ? and options, which are settings of their own")
    return BrokerAddress(
        hosts=hosts,
        virtual_host=unquote(virtual_host) or "/",
        user=unquote(user) or None,
        password=unquote(in_url) if ":" in login else password,
        tls=None if scheme == "amqp" else files or TlsFiles(),
    )


def without_password(url: str) -> str:
    """Return a broker's URL, right or wrong, with *** instead of whatever may be a password."""
    # Everything up to the last @ counts as credentials, and what stands where a port should, but is none,
    # too: a password that should have been percent-encoded makes a wrong URL, and must not be shown either.
    scheme, slashes, rest = url.partition("://") if "://" in url else ("", "", url)
    login, at, place = rest.rpartition("@")
    if ":" in login:
        login = login.partition(":")[0] + ":***"
    place, question, _ = place.partition("?")
    if not at and not _PLACES.fullmatch(place):
        place = re.sub(r"^([^:]*):.*", r"\1:***", place, flags=re.DOTALL)
    return f"{scheme}{slashes}{login}{at}{place}{question and '?...'}"


def require_management_url(url: str | None) -> str | None:
    """Return the URL of a management interface, for a validator; raise ValueError for any other text."""
    if url is None:
        return None
    try:
        parts = urlsplit(url)
        is_whole = parts.scheme in MANAGEMENT_PORTS and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_whole = False
    if "@" in url:  # not to be shown: it has a password
        raise ValueError("must have no user and password: it is the broker URL's login that counts")
    if not is_whole or parts.query or parts.fragment:
        raise ValueError(f"must look like http://host:15672, not {url!r}")
    return url.rstrip("/")


def in_a_url(host: str) -> str:
    """Return how a host stands in a URL; if that is every address of this machine, the loopback one."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.is_unspecified:
        return "127.0.0.1"
    return f"[{host}]" if address.version == 6 else host


def _host_and_port(place: str, scheme: str) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{place}")
    except ValueError:
        # Python's own words may quote the password.
        raise ValueError("has a broken host") from None
    try:
        port = parts.port
    except ValueError:
        raise ValueError("has a port that is no number from 1 to 65535") from None
    if not parts.hostname:
        raise ValueError("names no host")
    if port == 0:
        raise ValueError("has port 0")
    return parts.hostname, port or DEFAULT_PORTS[scheme]
