"""RabbitMQ's management interface, for who administers it or looks on: the only module that knows httpx."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, ClassVar, Self
from urllib.parse import quote, urlsplit

import httpx
from pydantic import Field, field_validator

from fluffle.address import BrokerAddress, in_a_url
from fluffle.errors import AccessRefused, BrokerError, ConfigError, ConnectionLost, TopologyMismatch
from fluffle.rights import Rights, user_definition
from fluffle.settings import SharedSettings
from fluffle.tls import TlsFiles

TIMEOUT_S = 10.0
# Settings that say nothing to a command that speaks HTTP alone.
OF_AMQP_ALONE = ("heartbeat_s", "connect_timeout_s")
PORTS = {"http": 15672, "https": 15671}
NOT_LET_IN, NOT_FOUND = 401, 404
ADMINISTRATOR, MONITORING = "administrator", "monitoring"


class ManagementSettings(SharedSettings):
    """What a command that administers the broker, or looks at it, needs to know."""

    part: ClassVar[str] = "broker"

    management_url: str | None = Field(
        None,
        description="RabbitMQ's management interface; the login is the broker URL's. By default "
        "http://HOST:15672 on the broker's host, or https://HOST:15671 for amqps://.",
    )

    @field_validator("management_url")
    @classmethod
    def _is_an_http_url(cls, url: str | None) -> str | None:
        if url is None:
            return None
        try:
            parts = urlsplit(url)
            is_whole = parts.scheme in PORTS and bool(parts.hostname) and parts.port != 0
        except ValueError:
            is_whole = False
        if "@" in url:  # not to be shown: it has a password
            raise ValueError("must have no user and password: it is the broker URL's login that counts")
        if not is_whole or parts.query or parts.fragment:
            raise ValueError(f"must look like http://host:15672, not {url!r}")
        return url.rstrip("/")


@dataclass(frozen=True, slots=True)
class Account:
    """A RabbitMQ user: its tags, and its patterns (configure, write, read) by virtual host."""

    name: str
    tags: frozenset[str]
    patterns: Mapping[str, tuple[str, str, str]]

    def rights_on(self, vhost: str) -> Rights | None:
        """Return what it may do on a virtual host, or None when it may not even connect there."""
        return Rights(*self.patterns[vhost], self.tags) if vhost in self.patterns else None


class Management:
    """A login to the management interface, an administrator's if nothing else is said, and one virtual host.

    What goes wrong is a BrokerError: ConnectionLost when nothing or something else answers, AccessRefused for
    a wrong login or one without the tag that it needs, TopologyMismatch for a queue that exists with other
    arguments.
    """

    def __init__(self, settings: ManagementSettings, *, tag: str = ADMINISTRATOR) -> None:
        """Log in, and see that the user has a tag, or is an administrator."""
        self._tag = tag
        address = settings.broker_address()
        self.user, password = address.login()
        if password is None:
            raise ConfigError(
                "RabbitMQ's management interface wants a password: put an operator's user and password into "
                "FLUFFLE_BROKER_URL, or the password into FLUFFLE_BROKER_PASSWORD_FILE"
            )
        self.vhost = address.virtual_host
        self._url = settings.management_url or _usual_url(address)
        self._client = httpx.Client(
            base_url=f"{self._url}/api/",
            auth=httpx.BasicAuth(self.user, password),
            timeout=TIMEOUT_S,
            verify=(address.tls or TlsFiles()).context(),
            # No proxy of the environment: it would see the login.
            trust_env=False,
        )
        try:
            self._require_tag()
        except BaseException:
            self._client.close()
            raise

    def accounts(self) -> list[Account]:
        """Return every user of the broker."""
        patterns: dict[str, dict[str, tuple[str, str, str]]] = {}
        for row in self._get("permissions"):
            patterns.setdefault(row["user"], {})[row["vhost"]] = _patterns(row)
        return [
            Account(row["name"], frozenset(row["tags"]), patterns.get(row["name"], {}))
            for row in self._get("users")
        ]

    def account(self, name: str) -> Account | None:
        """Return one user, or None when there is none of this name."""
        return next((each for each in self.accounts() if each.name == name), None)

    def connections_of(self, name: str) -> int:
        """Count a user's open connections."""
        return len(self._get(f"connections/username/{_quoted(name)}"))

    def consumers_of(self, queue: str) -> dict[str, bool]:
        """Tell of each of a queue's consumers, by its tag, whether it is active; it is seconds behind."""
        found = self._get(f"queues/{_quoted(self.vhost)}/{_quoted(queue)}")
        consumers = found.get("consumer_details") if isinstance(found, dict) else None
        if not isinstance(consumers, list):
            raise self._nothing_there("something else answers")
        return {str(each["consumer_tag"]): each.get("active") is True for each in consumers}

    def put_user(self, name: str, rights: Rights, hashed: str) -> None:
        """Make a user, and let it do on the virtual host what `rights` say."""
        self._do("PUT", f"users/{_quoted(name)}", f"the user {name!r}", user_definition(name, rights, hashed))
        # Last, since a user with rights counts as done.
        path = f"permissions/{_quoted(self.vhost)}/{_quoted(name)}"
        self._do("PUT", path, f"rights for {name!r} on the virtual host {self.vhost!r}", rights.patterns)

    def delete_user(self, name: str) -> None:
        """Remove a user; RabbitMQ closes its connections."""
        self._do("DELETE", f"users/{_quoted(name)}", f"the user {name!r}")

    def put(self, kind: str, definition: Mapping[str, object]) -> None:
        """Make what RabbitMQ's definitions have under `kind`: one of the exchanges, queues or bindings.

        What is there already stays as it is; TopologyMismatch when it is not the same.
        """
        vhost = _quoted(self.vhost)
        if kind == "bindings":
            source, target = definition["source"], definition["destination"]
            kind_of_target = str(definition["destination_type"])[0]
            path = f"bindings/{vhost}/e/{_quoted(str(source))}/{kind_of_target}/{_quoted(str(target))}"
            said = {"routing_key": definition["routing_key"], "arguments": {}}
            self._do("POST", path, f"the binding of {target} to {source}", said)
        else:
            name = str(definition["name"])
            self._do("PUT", f"{kind}/{vhost}/{_quoted(name)}", f"{kind.removesuffix('s')} {name}", definition)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def _require_tag(self) -> None:
        account = self._get("whoami")
        if not isinstance(account, dict) or "tags" not in account:
            raise self._nothing_there("something else answers")
        if not {self._tag, ADMINISTRATOR} & set(account["tags"]):
            raise self._has_no_tag()

    def _get(self, path: str) -> Any:
        response = self._do("GET", path, path)
        try:
            return response.json()
        except ValueError as error:
            raise self._nothing_there("something else answers") from error

    def _do(
        self, method: str, path: str, what: str, body: Mapping[str, object] | None = None
    ) -> httpx.Response:
        try:
            response = self._client.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise self._nothing_there(str(error) or type(error).__name__) from error
        if response.is_success:
            return response
        reason = _reason(response)
        if response.status_code == NOT_LET_IN and "user" in reason:  # "Not management user"
            raise self._has_no_tag()
        if response.status_code == NOT_LET_IN:
            raise AccessRefused(f"{self._url} refused the user {self.user!r} or its password")
        if response.status_code == NOT_FOUND and path == "whoami":
            raise self._nothing_there("something else answers")
        if "inequivalent" in reason:
            raise TopologyMismatch(
                f"{what} exists with other arguments: delete it, or choose another federation name ({reason})"
            )
        if "vhost" in reason or response.status_code == NOT_FOUND:
            raise AccessRefused(f"{self._url} has no virtual host {self.vhost!r} for {what}: make it first")
        raise BrokerError(f"{self._url} refused {what}: {response.status_code} {reason}")

    def _nothing_there(self, reason: str) -> ConnectionLost:
        return ConnectionLost(
            f"no management interface of RabbitMQ answers at {self._url} ({reason}): switch it on there "
            "(rabbitmq-plugins enable rabbitmq_management), or say where it is with FLUFFLE_MANAGEMENT_URL"
        )

    def _has_no_tag(self) -> AccessRefused:
        if self._tag != ADMINISTRATOR:
            return AccessRefused(
                f"the user {self.user!r} has not the tag {self._tag} in RabbitMQ, as its role monitor has"
            )
        return AccessRefused(
            f"the user {self.user!r} is no administrator of RabbitMQ: put an operator's login into "
            "FLUFFLE_BROKER_URL"
        )


def _usual_url(address: BrokerAddress) -> str:
    host = address.hosts[0][0]
    scheme = "http" if address.tls is None else "https"
    return f"{scheme}://{in_a_url(host)}:{PORTS[scheme]}"


def _patterns(row: Mapping[str, str]) -> tuple[str, str, str]:
    return row["configure"], row["write"], row["read"]


def _quoted(name: str) -> str:
    return quote(name, safe="")


def _reason(response: httpx.Response) -> str:
    try:
        said = response.json()
    except ValueError:
        return response.reason_phrase
    return str(said.get("reason", said)) if isinstance(said, dict) else str(said)
