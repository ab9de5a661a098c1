"""`fluffle broker setup`: a federation's exchanges and queues, and its users if wanted, on any broker."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from pydantic import Field, field_validator, model_validator
from rich.table import Table

from fluffle.address import parse_address
from fluffle.command_line import settings_command
from fluffle.consoles import PlainConsole
from fluffle.errors import ConfigError
from fluffle.policy_faults import faults_of, require_none_fatal
from fluffle.rights import ROLES, rights_of
from fluffle.settings import require_name
from fluffle.topology import Topology, topology_of
from fluffle_cli.definitions import topology_definitions, user_definitions
from fluffle_cli.management import OF_AMQP_ALONE, Management, ManagementSettings
from fluffle_cli.users import add_user, hash_of, password_in


class SetupSettings(ManagementSettings):
    """Flags of `fluffle broker setup`."""

    users: str = Field(
        "",
        description="Users to make too, as in site-a=worker,site-b=worker,lead=aggregator.",
        json_schema_extra={"metavar": "NAME=ROLE,..."},
    )
    password_folder: Path | None = Field(
        None, description="Folder for their passwords: one file for each, which only its owner can read."
    )
    print_only: bool = Field(
        False,
        description="Change nothing: print RabbitMQ's definitions as JSON, for whoever imports them.",
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
    def _has_a_place_for_passwords(self) -> SetupSettings:
        if bool(self.users) != (self.password_folder is not None):
            raise ValueError("--users and --password-folder need each other")
        return self

    @property
    def wanted(self) -> dict[str, str]:
        """The role of each user by name."""
        return dict(each.split("=", 1) for each in self.users.split(",") if each)


def run(settings: SetupSettings) -> None:
    """Make what is missing and show it, or print what would be made."""
    topology = topology_of(settings.federation)
    if settings.print_only:
        _print(settings, topology)
        return
    console = PlainConsole(highlight=False)
    with Management(settings) as management:
        # Before anything is made: on a broker with such a policy a federation cannot live.
        faults = faults_of(management.policies(), topology, virtual_host=management.vhost)
        require_none_fatal(faults)
        for kind, definitions in topology_definitions(topology, management.vhost).items():
            for definition in definitions:
                management.put(kind, definition)
        made = [
            add_user(management, settings.federation, name, role, password=partial(_password, settings, name))
            for name, role in settings.wanted.items()
        ]
    table = Table("queue", "bound to", "kind", title=f"The federation {settings.federation}")
    for queue in topology.queues:
        table.add_row(
            queue.name, ", ".join(each.name for each in queue.exchanges), str(queue.arguments["x-queue-type"])
        )
    console.print(table)
    for fault in faults:
        console.print(f"warning: {fault}", markup=False, soft_wrap=True)
    for (name, role), is_new in zip(settings.wanted.items(), made, strict=True):
        where = f"password in {settings.password_folder}/{name}" if is_new else "there already, unchanged"
        console.print(f"{role} {name}: {where}", markup=False)


def _print(settings: SetupSettings, topology: Topology) -> None:
    vhost = parse_address(settings.broker_url).virtual_host
    users = {
        name: (rights_of(role, settings.federation, name), hash_of(_password(settings, name)))
        for name, role in settings.wanted.items()
    }
    definitions = topology_definitions(topology, vhost) | (user_definitions(users, vhost) if users else {})
    PlainConsole(soft_wrap=True, highlight=False, markup=False).print(json.dumps(definitions, indent=2))


def _password(settings: SetupSettings, name: str) -> str:
    if settings.password_folder is None:
        raise ConfigError("--users needs --password-folder")
    try:
        settings.password_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--password-folder {settings.password_folder} cannot be made: {error.strerror}"
        ) from error
    return password_in(settings.password_folder / name)


command = settings_command(
    SetupSettings,
    run,
    about="Make the exchanges and queues of a federation, and users for its parts; what is there already "
    "stays as it is.\n\n"
    "An aggregator makes exchanges and queues itself when it starts: this is for a broker on which it may "
    "not, and for whoever wants everything there before. `fluffle user add` makes a user later.\n\n"
    "It makes nothing, and ends with 2, when a policy of the broker would lose the federation's messages.",
    without=OF_AMQP_ALONE,
)
