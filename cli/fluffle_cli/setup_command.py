"""`fluffle broker setup`: a federation's exchanges and queues, and its users if wanted, on any broker."""

import json
from pathlib import Path

import typer
from pydantic import Field, field_validator, model_validator
from rich.table import Table

from fluffle.address import parse_address
from fluffle.command_line import settings_command
from fluffle.consoles import PlainConsole
from fluffle.errors import ConfigError
from fluffle.management import AMQP_SETTINGS, ManagementSettings
from fluffle.policy_faults import faults_of, require_none_fatal
from fluffle.rights import ROLES, permission_definition, rights_of, user_definition
from fluffle.settings import require_name
from fluffle.topology import Topology, topology_of
from fluffle_cli.users import create_user, hash_of, needs_user, password_in

Definitions = dict[str, list[dict[str, object]]]


class SetupSettings(ManagementSettings):
    """Flags of `fluffle broker setup`."""

    users: str = Field(
        "",
        description="Users to add too, for example site-a=worker,site-b=worker,lead=aggregator.",
        json_schema_extra={"metavar": "NAME=ROLE,..."},
    )
    password_folder: Path | None = Field(
        None, description="Folder for their passwords: one file per user, which only its owner can read."
    )
    print_only: bool = Field(
        False,
        description="Change nothing; print RabbitMQ's definitions as JSON, for an administrator to import.",
        json_schema_extra={"flag": "--print"},
    )

    @field_validator("users")
    @classmethod
    def _has_names_and_roles(cls, users: str) -> str:
        for each in filter(None, users.split(",")):
            name, _, role = each.partition("=")
            if role not in ROLES:
                raise ValueError(f"must be NAME=ROLE,... with the roles {', '.join(ROLES)}, not {each!r}")
            require_name(name)
        return users

    @model_validator(mode="after")
    def _has_a_place_for_passwords(self) -> "SetupSettings":
        if bool(self.users) != (self.password_folder is not None):
            raise ValueError("--users and --password-folder need each other")
        return self

    @property
    def roles(self) -> dict[str, str]:
        """The role of each wanted user by name."""
        return dict(each.split("=", 1) for each in self.users.split(",") if each)


def topology_definitions(topology: Topology, vhost: str) -> Definitions:
    """Return a federation's exchanges, queues and bindings as RabbitMQ's definitions, in creation order."""

    def binding(source: str, target: str, kind: str, routing_key: str) -> dict[str, object]:
        names = {"source": source, "vhost": vhost, "destination": target, "destination_type": kind}
        return names | {"routing_key": routing_key, "arguments": {}}

    shared = {"vhost": vhost, "durable": True, "auto_delete": False}
    return {
        "exchanges": [
            shared
            | {"name": each.name, "type": each.kind, "internal": False, "arguments": dict(each.arguments)}
            for each in topology.exchanges
        ],
        "queues": [
            shared | {"name": each.name, "arguments": dict(each.arguments)} for each in topology.queues
        ],
        "bindings": [
            *(binding(each.name, q.name, "queue", "") for q in topology.queues for each in q.exchanges),
            *(binding(each.name, e.name, "exchange", "#") for e in topology.exchanges for each in e.sources),
        ],
    }


def _run(settings: SetupSettings) -> None:
    topology = topology_of(settings.federation)
    if settings.print_only:
        _print_definitions(settings, topology)
        return
    with settings.management() as management:
        # First of all: with such a policy on the broker, the federation would lose messages.
        faults = faults_of(management.policies(), topology, virtual_host=management.vhost)
        require_none_fatal(faults)
        for kind, definitions in topology_definitions(topology, management.vhost).items():
            for definition in definitions:
                management.put(kind, definition)
        added = set()
        for name, role in settings.roles.items():
            if needs_user(management, settings.federation, name, role):
                create_user(management, settings.federation, name, role, _password(settings, name))
                added.add(name)
    table = Table("queue", "bound to", "kind", title=f"The federation {settings.federation}")
    for queue in topology.queues:
        exchanges = ", ".join(each.name for each in queue.exchanges)
        table.add_row(queue.name, exchanges, str(queue.arguments["x-queue-type"]))
    PlainConsole(highlight=False).print(table)
    for fault in faults:
        typer.echo(f"warning: {fault}")
    for name, role in settings.roles.items():
        done = f"password in {settings.password_folder}/{name}" if name in added else "exists, unchanged"
        typer.echo(f"{role} {name}: {done}")


def _print_definitions(settings: SetupSettings, topology: Topology) -> None:
    vhost = parse_address(settings.broker_url).virtual_host
    definitions = topology_definitions(topology, vhost)
    for name, role in settings.roles.items():
        rights = rights_of(role, settings.federation, name)
        user = user_definition(name, rights, hash_of(_password(settings, name)))
        definitions.setdefault("users", []).append(user)
        definitions.setdefault("permissions", []).append(permission_definition(name, rights, vhost))
    typer.echo(json.dumps(definitions, indent=2))


def _password(settings: SetupSettings, name: str) -> str:
    folder = settings.password_folder
    if folder is None:
        raise ConfigError("--users needs --password-folder")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot create --password-folder {folder}: {error.strerror}") from error
    return password_in(folder / name)


command = settings_command(
    SetupSettings,
    _run,
    about="Create the exchanges and queues of a federation, and users for its parts. What exists already is "
    "not changed.\n\n"
    "Example: `fluffle broker setup --federation digits --users lead=aggregator,site-a=worker "
    "--password-folder passwords`. Then copy each password file to its machine.\n\n"
    "You need this command only on a broker where the aggregator may not create exchanges and queues, or to "
    "have everything ready before the first start: otherwise the aggregator creates them itself. `fluffle "
    "user add` adds users later.\n\n"
    "If a policy of the broker would lose the federation's messages, the command creates nothing and ends "
    "with exit code 2.",
    without=AMQP_SETTINGS,
)
