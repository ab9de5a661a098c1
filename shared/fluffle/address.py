"""The address of the broker and the login there, read from its URL; and hosts in other URLs."""

import ipaddress
import re
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from fluffle.errors import ConfigError
from fluffle.tls import TlsFiles

DEFAULT_PORTS = {"amqp": 5672, "amqps": 5671}
MANAGEMENT_PORTS = {"http": 15672, "https": 15671}
# Hosts and ports of a URL without a login. Text in the place of a port that is no number may be a password.
_PLACE = r"(\[[^\]/]*\]|[^:/\[,]*)(:[0-9]*)?"
_PLACES = re.compile(rf"{_PLACE}(,{_PLACE})*(/.*)?")


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
            return self.user or self.tls.certificate.user(), None
        if self.user is not None:
            raise ConfigError(
                f"broker_url has the user {self.user!r} but no password: add it there or in "
                "broker_password_file, or present a certificate (broker_cert_file)"
            )
        return "guest", "guest"


def parse_address(url: str, *, password: str | None = None, files: TlsFiles | None = None) -> BrokerAddress:
    """Parse amqp[s]://user:password@host:port,host:port/virtual-host.

    `password` is used if the URL has none; `files` are for amqps. Raises ValueError with what is wrong, to be
    written after the URL: "has no amqp://".
    """
    if "#" in url or any(character.isspace() for character in url):
        raise ValueError("contains a # or a space")
    if "://" not in url:
        raise ValueError("has no amqp://")
    # Not with urlsplit: newer versions of Python refuse a host in brackets next to other hosts.
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
        # pika would read options from there, even one that switches certificate verification off.
        raise ValueError("has a ? with options: use Fluffle's settings instead")
    return BrokerAddress(
        hosts=hosts,
        virtual_host=unquote(virtual_host) or "/",
        user=unquote(user) or None,
        password=unquote(in_url) if ":" in login else password,
        tls=None if scheme == "amqp" else files or TlsFiles(),
    )


def without_password(url: str) -> str:
    """Return a broker's URL, valid or not, with *** in place of everything that may be a password."""
    # Everything up to the last @ counts as credentials, and so does text in the place of a port that is no
    # number: a password that is not percent-encoded makes a wrong URL, and must not be shown either.
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


def _host_and_port(place: str, scheme: str) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{place}")
    except ValueError:
        # Python's own message may quote the password.
        raise ValueError("has an invalid host") from None
    try:
        port = parts.port
    except ValueError:
        raise ValueError("has a port that is not a number from 1 to 65535") from None
    if not parts.hostname:
        raise ValueError("has no host")
    if port == 0:
        raise ValueError("has port 0")
    return parts.hostname, port or DEFAULT_PORTS[scheme]
