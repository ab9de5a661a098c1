"""RabbitMQ's management interface: the only module that knows httpx."""

from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, TypeVar
from urllib.parse import quote

import httpx

from fluffle.address import BrokerAddress
from fluffle.errors import (
    AccessRefused,
    BrokerError,
    ConfigError,
    ConnectionLost,
    LoginRefused,
    RequestRefused,
    TopologyMissing,
)
from fluffle.policies import BrokerPolicy
from fluffle.rights import Rights, user_definition
from fluffle.settings import ManagementUrl, SharedSettings
from fluffle.tls import TlsFiles
from fluffle.topology import OTHER_ARGUMENTS

TIMEOUT_S = 10.0
# For a process that has other work to do.
SHORT_TIMEOUT_S = 3.0
UNAUTHORIZED, NOT_FOUND, SERVER_ERROR = 401, 404, 500
ADMINISTRATOR, MONITORING, MANAGEMENT = "administrator", "monitoring", "management"
# Each tag of a RabbitMQ user, and the tags that include it.
INCLUDED_IN = {
    ADMINISTRATOR: {ADMINISTRATOR},
    MONITORING: {MONITORING, ADMINISTRATOR},
    MANAGEMENT: {MANAGEMENT, "policymaker", MONITORING, ADMINISTRATOR},
}
# Settings that have no meaning for a command that uses the management interface only.
AMQP_SETTINGS = ("heartbeat_s", "connect_timeout_s", "login_patience")

T = TypeVar("T")


class ManagementSettings(SharedSettings):
    """Settings of a command that uses the management interface."""

    part: ClassVar[str] = "broker"

    management_url: ManagementUrl = None

    def management(self, *, tag: str = ADMINISTRATOR) -> "Management":
        """Log in, and require that the user has this tag or one that includes it."""
        return Management(self.broker_address(), self.management_url, tag=tag)


@dataclass(frozen=True, slots=True)
class QueueRow:
    """A queue, its messages (ready and unacknowledged), and their bytes; None for a stream.

    An exclusive queue ends with the connection that declared it, and nobody else may delete it.
    """

    name: str
    messages: int
    size_bytes: int | None
    is_exclusive: bool


@dataclass(frozen=True, slots=True)
class Account:
    """A RabbitMQ user: its tags, and its rights by virtual host; it may not connect to any other one."""

    name: str
    tags: frozenset[str]
    rights: dict[str, Rights]


class Management:
    """A login to the management interface, for one virtual host.

    Every method may raise a BrokerError with RabbitMQ's own reason: ConnectionLost if RabbitMQ does not
    answer, LoginRefused for a wrong login or virtual host, AccessRefused if the user lacks a tag or a right,
    TopologyMissing for what is not there, and RequestRefused for everything else.
    """

    def __init__(
        self, address: BrokerAddress, url: str | None, *, tag: str, timeout_s: float = TIMEOUT_S
    ) -> None:
        """Log in at `url`, by default on the broker's host, and require a tag that includes `tag`."""
        self.user, password = address.login()
        if password is None:
            raise ConfigError(
                "RabbitMQ's management interface needs a password: put an operator's user and password into "
                "FLUFFLE_BROKER_URL, or the password into FLUFFLE_BROKER_PASSWORD_FILE"
            )
        self.vhost = address.virtual_host
        self._tag = tag
        self._url = url or address.management_urls[0]
        self._client = httpx.Client(
            base_url=f"{self._url.rstrip('/')}/api/",
            auth=httpx.BasicAuth(self.user, password),
            timeout=timeout_s,
            verify=(address.tls or TlsFiles()).context(),
            # No proxy from the environment: it would see the login.
            trust_env=False,
        )
        with ExitStack() as closing:
            closing.callback(self._client.close)
            if not INCLUDED_IN[tag] & set(self._get("whoami", dict).get("tags", ())):
                raise self._missing_tag()
            closing.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def policies(self) -> tuple[BrokerPolicy, ...]:
        """Return the policies and operator policies of the virtual host."""
        return tuple(
            BrokerPolicy(
                row["name"], row["pattern"], row["definition"], row["apply-to"], row["priority"], is_operator
            )
            for kind, is_operator in (("policies", False), ("operator-policies", True))
            for row in self._get(_path(kind, self.vhost), list)
        )

    def accounts(self) -> list[Account]:
        """Return every user of the broker."""
        users = [Account(row["name"], frozenset(row["tags"]), {}) for row in self._get("users", list)]
        by_name = {user.name: user for user in users}
        for row in self._get("permissions", list):
            if user := by_name.get(row["user"]):
                patterns = (row["configure"], row["write"], row["read"])
                user.rights[row["vhost"]] = Rights(*patterns, user.tags)
        return users

    def account(self, name: str) -> Account | None:
        """Return one user; None if there is no user of this name."""
        return next((each for each in self.accounts() if each.name == name), None)

    def put_user(self, name: str, rights: Rights, hashed: str) -> None:
        """Create a user and grant it rights on the virtual host."""
        self._send("PUT", _path("users", name), f"the user {name!r}", user_definition(name, rights, hashed))
        # Last, because a user that has rights counts as complete.
        self.put_rights(name, rights)

    def put_rights(self, name: str, rights: Rights) -> None:
        """Grant a user rights on the virtual host; its tags and its password stay."""
        what = f"rights for {name!r} on the virtual host {self.vhost!r}"
        self._send("PUT", _path("permissions", self.vhost, name), what, rights.patterns)

    def delete_user(self, name: str) -> None:
        """Remove a user; RabbitMQ closes its connections."""
        self._send("DELETE", _path("users", name), f"the user {name!r}")

    def connections_of(self, name: str) -> int:
        """Count a user's open connections."""
        return len(self._get(_path("connections", "username", name), list))

    def connection_names(self) -> list[str]:
        """Return the names that clients gave the open connections of the virtual host; "" for no name."""
        path = f"{_path('vhosts', self.vhost, 'connections')}?columns=user_provided_name"
        return [row.get("user_provided_name", "") for row in self._get(path, list)]

    def queues(self) -> list[QueueRow]:
        """Return every queue of the virtual host; the counts are some seconds old."""
        columns = "name,messages,message_bytes,exclusive"
        rows = self._get(f"{_path('queues', self.vhost)}?columns={columns}", list)
        return [
            QueueRow(
                row["name"],
                row.get("messages", 0),
                row.get("message_bytes"),
                is_exclusive=row.get("exclusive", False),
            )
            for row in rows
        ]

    def exchanges(self) -> list[str]:
        """Return the name of every exchange of the virtual host."""
        return [row["name"] for row in self._get(f"{_path('exchanges', self.vhost)}?columns=name", list)]

    def consumers_of(self, queue: str) -> dict[str, bool]:
        """Return by tag whether each consumer of a queue is active; some seconds old."""
        consumers = self._get(_path("queues", self.vhost, queue), dict).get("consumer_details")
        if not isinstance(consumers, list):
            raise self._no_answer("something else answers")
        return {str(each["consumer_tag"]): each.get("active") is True for each in consumers}

    def put(self, kind: str, definition: Mapping[str, object]) -> None:
        """Create one of the exchanges, queues or bindings, given as in RabbitMQ's definitions.

        One that exists already stays as it is; RequestRefused if its arguments differ.
        """
        if kind == "bindings":
            source, target = str(definition["source"]), str(definition["destination"])
            path = _path(kind, self.vhost, "e", source, str(definition["destination_type"])[0], target)
            body = {"routing_key": definition["routing_key"], "arguments": {}}
            self._send("POST", path, f"the binding of {target} to {source}", body)
        else:
            name = str(definition["name"])
            self._send("PUT", _path(kind, self.vhost, name), f"{kind.removesuffix('s')} {name}", definition)

    def delete(self, kind: Literal["exchanges", "queues"], name: str) -> bool:
        """Delete an exchange with its bindings, or a queue with its messages; False if it does not exist."""
        try:
            self._send("DELETE", _path(kind, self.vhost, name), f"{kind.removesuffix('s')} {name}")
        except TopologyMissing:
            return False
        return True

    def _get(self, path: str, kind: type[T]) -> T:
        """Return the JSON that RabbitMQ answers, which must be of this type."""
        try:
            found = self._send("GET", path, path).json()
        except ValueError:
            found = None
        if not isinstance(found, kind):
            raise self._no_answer("something else answers")
        return found

    def _send(
        self, method: str, path: str, what: str, body: Mapping[str, object] | None = None
    ) -> httpx.Response:
        try:
            try:
                response = self._client.request(method, path, json=body)
            except httpx.RemoteProtocolError:
                # RabbitMQ has closed an idle connection. Each of these requests may be sent twice.
                response = self._client.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise self._no_answer(str(error) or type(error).__name__) from error
        if response.is_success:
            return response
        if response.status_code == NOT_FOUND and path == "whoami":
            raise self._no_answer("something else answers")
        raise self._refusal(response.status_code, _reason(response), what)

    def _refusal(self, code: int, reason: str, what: str) -> BrokerError:
        """Translate a refusal of RabbitMQ into the error that says what to do."""
        if code == UNAUTHORIZED and "user" in reason:  # "Not management user"
            return self._missing_tag()
        if code == UNAUTHORIZED and "Access" in reason:  # "Access refused."
            return AccessRefused(f"{self._url}: the user {self.user!r} has no right to {what} ({reason})")
        if code == UNAUTHORIZED:
            return LoginRefused(f"{self._url} refused the user {self.user!r} or its password ({reason})")
        if "vhost" in reason and "not_found" in reason:
            return LoginRefused(
                f"{self._url} has no virtual host {self.vhost!r} for {what}: create it first ({reason})"
            )
        if code == NOT_FOUND:
            return TopologyMissing(f"{self._url} does not have {what} ({reason})")
        if "inequivalent" in reason:
            return RequestRefused(f"{what} {OTHER_ARGUMENTS} ({reason})")
        if "limit" in reason and "is reached" in reason:
            return RequestRefused(
                f"{self._url} cannot create {what}, because a limit is reached: raise the limit, or delete "
                f"what you do not need ({reason})"
            )
        if code >= SERVER_ERROR:
            return ConnectionLost(f"{self._url} cannot answer about {what} now: {code} {reason}")
        return RequestRefused(f"{self._url} refused {what}, and would refuse it again: {code} {reason}")

    def _no_answer(self, reason: str) -> ConnectionLost:
        return ConnectionLost(
            f"RabbitMQ's management interface does not answer at {self._url} ({reason}): enable it there "
            "(rabbitmq-plugins enable rabbitmq_management), or set FLUFFLE_MANAGEMENT_URL to its address"
        )

    def _missing_tag(self) -> AccessRefused:
        return AccessRefused(
            f"the user {self.user!r} needs the tag {self._tag} (rabbitmqctl set_user_tags {self.user} "
            f"{self._tag}); or put the login of an operator, who has it, into FLUFFLE_BROKER_URL"
        )


def policies_at(address: BrokerAddress, url: str | None) -> tuple[BrokerPolicy, ...]:
    """Return the policies of the broker's virtual host, for a part that can work without them.

    Without a `url` it asks each node of the cluster until one answers. Raises BrokerError or ConfigError,
    which say why nothing is known: no management interface answers, or it refuses this user.
    """
    if url is None and not address.has_usual_ports:
        raise ConfigError(
            "the broker does not use RabbitMQ's usual port, so Fluffle cannot guess where its management "
            "interface is: set FLUFFLE_MANAGEMENT_URL"
        )
    *others, last = (url,) if url else address.management_urls
    for each in others:
        with suppress(ConnectionLost):
            return _policies_at(address, each)
    return _policies_at(address, last)


def _policies_at(address: BrokerAddress, url: str) -> tuple[BrokerPolicy, ...]:
    with Management(address, url, tag=MANAGEMENT, timeout_s=SHORT_TIMEOUT_S) as management:
        return management.policies()


def _path(*parts: str) -> str:
    return "/".join(quote(part, safe="") for part in parts)


def _reason(response: httpx.Response) -> str:
    try:
        body: Any = response.json()
    except ValueError:
        return response.reason_phrase
    return str(body.get("reason", body)) if isinstance(body, dict) else str(body)
