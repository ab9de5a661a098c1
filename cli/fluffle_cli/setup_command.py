"""`fluffle broker setup`: a federation's exchanges and queues, and its users if wanted, on any broker."""

import json
from pathlib import Path

import typer
from pydantic import Field, field_validator

from fluffle.address import parse_address
from fluffle.command_line import settings_command
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
    password_folder: Path = Field(
        Path("passwords"),
        description="Folder for their passwords: one file per user, which only its owner can read.",
    )
    print_only: bool = Field(
        False,
        description="Change nothing; print RabbitMQ's definitions as JSON, for an administrator to import.",
        json_schema_extra={"flag": "--print"},
    )

    @field_validator("users")
    @classmethod
    def _has_names_and_roles(cls, users: str) -> str:
        for name, role in _roles(users).items():
            if role not in ROLES:
                raise ValueError(
                    f"must be NAME=ROLE,... with the roles {', '.join(ROLES)}, not {f'{name}={role}'!r}"
                )
            require_name(name)
        return users


def topology_definitions(topology: Topology, vhost: str) -> Definitions:
    """Return a federation's exchanges, queues and bindings as RabbitMQ's definitions, in creation order."""
    exchanges, queues = topology.exchanges, topology.queues
    shared = {"vhost": vhost, "durable": True, "auto_delete": False}
    bindings = [(source.name, each.name, "queue", "") for each in queues for source in each.exchanges]
    bindings += [(source.name, each.name, "exchange", "#") for each in exchanges for source in each.sources]
    return {
        "exchanges": [
            shared | {"name": each.name, "type": each.kind, "internal": False, "arguments": each.arguments}
            for each in exchanges
        ],
        "queues": [shared | {"name": each.name, "arguments": each.arguments} for each in queues],
        "bindings": [
            {"source": source, "vhost": vhost, "destination": target, "destination_type": kind}
            | {"routing_key": routing_key, "arguments": {}}
            for source, target, kind, routing_key in bindings
        ],
    }


def _roles(users: str) -> dict[str, str]:
    """Return the role of each user by name."""
    return {name: role for name, _, role in (each.partition("=") for each in users.split(",") if each)}


def _run(settings: SetupSettings) -> None:
    topology, roles = topology_of(settings.federation), _roles(settings.users)
    if settings.print_only:
        _print_definitions(settings, topology, roles)
        return
    added = set()
    with settings.management() as management:
        # First of all: with such a policy on the broker, the federation would lose messages.
        faults = faults_of(management.policies(), topology, virtual_host=management.vhost)
        require_none_fatal(faults)
        for kind, definitions in topology_definitions(topology, management.vhost).items():
            for definition in definitions:
                management.put(kind, definition)
        for name, role in roles.items():
            if needs_user(management, settings.federation, name, role):
                password = password_in(settings.password_folder / name)
                create_user(management, settings.federation, name, role, password)
                added.add(name)
    queues = ", ".join(queue.name for queue in topology.queues)
    typer.echo(f"The federation {settings.federation} has its exchanges and its queues: {queues}")
    for fault in faults:
        typer.echo(f"warning: {fault}")
    for name, role in roles.items():
        done = f"password in {settings.password_folder / name}" if name in added else "exists, unchanged"
        typer.echo(f"{role} {name}: {done}")


def _print_definitions(settings: SetupSettings, topology: Topology, roles: dict[str, str]) -> None:
    vhost = parse_address(settings.broker_url).virtual_host
    definitions = topology_definitions(topology, vhost)
    for name, role in roles.items():
        rights = rights_of(role, settings.federation, name)
        hashed = hash_of(password_in(settings.password_folder / name))
        definitions.setdefault("users", []).append(user_definition(name, rights, hashed))
        definitions.setdefault("permissions", []).append(permission_definition(name, rights, vhost))
    typer.echo(json.dumps(definitions, indent=2))


command = settings_command(
    SetupSettings,
    _run,
    about="Create the exchanges and queues of a federation, and users for its parts. What exists already is "
    "not changed.\n\n"
    "Example: `fluffle broker setup --federation digits --users lead=aggregator,site-a=worker`. Then copy "
    "each password file to its machine.\n\n"
    "You need this command only on a broker where the aggregator may not create exchanges and queues, or to "
    "have everything ready before the first start: otherwise the aggregator creates them itself. `fluffle "
    "user add` adds users later.\n\n"
    "If a policy of the broker would lose the federation's messages, the command creates nothing and ends "
    "with exit code 2.",
    without=AMQP_SETTINGS,
)
