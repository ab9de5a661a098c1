"""What a command that administers the broker does through RabbitMQ's management interface."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from fluffle.errors import TopologyMissing
from fluffle.management import ADMINISTRATOR, ManagementClient, quoted
from fluffle.rights import Rights, user_definition
from fluffle.settings import ManagementUrl, SharedSettings

# Settings that say nothing to a command that speaks HTTP alone.
OF_AMQP_ALONE = ("heartbeat_s", "connect_timeout_s", "login_patience")


class ManagementSettings(SharedSettings):
    """What a command that administers the broker, or looks at it, needs to know."""

    part: ClassVar[str] = "broker"

    management_url: ManagementUrl = None


Kind = Literal["exchanges", "queues"]


@dataclass(frozen=True, slots=True)
class QueueRow:
    """A queue, the messages in it, also those that a consumer holds, and their bytes; None for a stream."""

    name: str
    messages: int
    size_bytes: int | None


@dataclass(frozen=True, slots=True)
class Account:
    """A RabbitMQ user: its tags, and its patterns (configure, write, read) by virtual host."""

    name: str
    tags: frozenset[str]
    patterns: Mapping[str, tuple[str, str, str]]

    def rights_on(self, vhost: str) -> Rights | None:
        """Return what it may do on a virtual host, or None when it may not even connect there."""
        return Rights(*self.patterns[vhost], self.tags) if vhost in self.patterns else None


class Management(ManagementClient):
    """A login to the management interface, an administrator's if nothing else is said."""

    def __init__(self, settings: ManagementSettings, *, tag: str = ADMINISTRATOR) -> None:
        """Log in, and see that the user has a tag that includes `tag`."""
        super().__init__(settings.broker_address(), settings.management_url, tag=tag)

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
        return len(self._get(f"connections/username/{quoted(name)}"))

    def queues(self) -> list[QueueRow]:
        """Return every queue of the virtual host; the counts are seconds behind."""
        columns = "columns=name,messages,message_bytes"
        return [
            QueueRow(row["name"], row.get("messages", 0), row.get("message_bytes"))
            for row in self._get(f"queues/{quoted(self.vhost)}?{columns}")
        ]

    def exchanges(self) -> list[str]:
        """Return the name of every exchange of the virtual host."""
        return [row["name"] for row in self._get(f"exchanges/{quoted(self.vhost)}?columns=name")]

    def connection_names(self) -> list[str]:
        """Return what the open connections of the virtual host call themselves; "" if nothing."""
        columns = "columns=user_provided_name"
        rows = self._get(f"vhosts/{quoted(self.vhost)}/connections?{columns}")
        return [row.get("user_provided_name", "") for row in rows]

    def delete(self, kind: Kind, name: str) -> bool:
        """Delete an exchange with its bindings, or a queue with its messages; False when it is not there."""
        try:
            self._do(
                "DELETE", f"{kind}/{quoted(self.vhost)}/{quoted(name)}", f"{kind.removesuffix('s')} {name}"
            )
        except TopologyMissing:
            return False
        return True

    def consumers_of(self, queue: str) -> dict[str, bool]:
        """Tell of each of a queue's consumers, by its tag, whether it is active; it is seconds behind."""
        found = self._get(f"queues/{quoted(self.vhost)}/{quoted(queue)}")
        consumers = found.get("consumer_details") if isinstance(found, dict) else None
        if not isinstance(consumers, list):
            raise self._nothing_there("something else answers")
        return {str(each["consumer_tag"]): each.get("active") is True for each in consumers}

    def put_user(self, name: str, rights: Rights, hashed: str) -> None:
        """Make a user, and let it do on the virtual host what `rights` say."""
        self._do("PUT", f"users/{quoted(name)}", f"the user {name!r}", user_definition(name, rights, hashed))
        # Last, since a user with rights counts as done.
        self.put_rights(name, rights)

    def put_rights(self, name: str, rights: Rights) -> None:
        """Let a user do on the virtual host what `rights` say; its tags and its password stay."""
        path = f"permissions/{quoted(self.vhost)}/{quoted(name)}"
        self._do("PUT", path, f"rights for {name!r} on the virtual host {self.vhost!r}", rights.patterns)

    def delete_user(self, name: str) -> None:
        """Remove a user; RabbitMQ closes its connections."""
        self._do("DELETE", f"users/{quoted(name)}", f"the user {name!r}")

    def put(self, kind: str, definition: Mapping[str, object]) -> None:
        """Make what RabbitMQ's definitions have under `kind`: one of the exchanges, queues or bindings.

        What is there already stays as it is; TopologyMismatch when it is not the same.
        """
        vhost = quoted(self.vhost)
        if kind == "bindings":
            source, target = definition["source"], definition["destination"]
            kind_of_target = str(definition["destination_type"])[0]
            path = f"bindings/{vhost}/e/{quoted(str(source))}/{kind_of_target}/{quoted(str(target))}"
            said = {"routing_key": definition["routing_key"], "arguments": {}}
            self._do("POST", path, f"the binding of {target} to {source}", said)
        else:
            name = str(definition["name"])
            self._do("PUT", f"{kind}/{vhost}/{quoted(name)}", f"{kind.removesuffix('s')} {name}", definition)


def _patterns(row: Mapping[str, str]) -> tuple[str, str, str]:
    return row["configure"], row["write"], row["read"]
