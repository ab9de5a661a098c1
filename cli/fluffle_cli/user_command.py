"""`fluffle user add|change|remove|list`: one RabbitMQ user for each worker and each other part."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator
from rich.table import Table

from fluffle.command_line import new_app, settings_command
from fluffle.consoles import PlainConsole
from fluffle.rights import Membership, Scope
from fluffle.settings import require_name
from fluffle_cli.management import OF_AMQP_ALONE, Management, ManagementSettings
from fluffle_cli.rights_table import help_text
from fluffle_cli.users import (
    add_user,
    change_user,
    federation_users,
    new_password,
    password_in,
    remove_user,
)

Role = Literal["worker", "evaluator", "aggregator", "monitor", "operator"]

app = new_app("Make, change, remove and list users of federations (needs an administrator's login).")


class UserSettings(ManagementSettings):
    """Flags of `fluffle user list`."""

    part: ClassVar[str] = "broker"


class OneUserSettings(ManagementSettings):
    """Flags of what is done to one user, who may be of several federations."""

    federation: str = Field(
        "digits",
        description="The user's federations: names, and patterns in which * stands for any part of a name.",
        json_schema_extra={"metavar": "NAME,PATTERN,..."},
    )
    name: str = Field(description="The user.", json_schema_extra={"argument": True})

    @field_validator("federation")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        return str(Scope.parse(name))


class RemoveSettings(OneUserSettings):
    """Flags of `fluffle user remove`."""


class ChangeSettings(OneUserSettings):
    """Flags of `fluffle user change`."""


class AddSettings(OneUserSettings):
    """Flags of `fluffle user add`."""

    name: str = Field(
        description="The user; a worker and an evaluator work under this name.",
        json_schema_extra={"argument": True},
    )
    role: Role = Field(description="What the user may do.")
    password_file: Path | None = Field(
        None,
        description="File for the password (mode 600), instead of showing it. One that is there already is "
        "not overwritten: its password is taken.",
    )
    password: bool = Field(
        True, description="Draw a password; --no-password for a user that logs in with a certificate."
    )

    @field_validator("name")
    @classmethod
    def _is_a_users_name(cls, name: str) -> str:
        return require_name(name)

    @model_validator(mode="after")
    def _has_a_use_for_the_file(self) -> AddSettings:
        if self.password_file is not None and not self.password:
            raise ValueError("--password-file and --no-password do not go together")
        return self


def add(settings: AddSettings) -> None:
    """Make a user, and tell how it logs in."""
    drawn: list[str] = []

    def password() -> str | None:
        if not settings.password:
            return None
        drawn.append(password_in(settings.password_file) if settings.password_file else new_password())
        return drawn[0]

    with Management(settings) as management:
        is_new = add_user(management, settings.federation, settings.name, settings.role, password=password)
    who = f"{settings.name} ({settings.role} of {_federations(settings.federation)})"
    if not is_new:
        _say(f"There is the user {who} already, with these rights or more; nothing was changed.")
        return
    _say(f"Made the user {who}.")
    if settings.password_file:
        _say(f"  for the part  FLUFFLE_BROKER_PASSWORD_FILE={settings.password_file}")
    elif drawn:
        _say(f"  password      {drawn[0]}   (it is not shown again)")
    elif not settings.password:
        _say(f"  logs in with  a certificate whose common name is {settings.name}")


def change(settings: ChangeSettings) -> None:
    """Give a user other federations."""
    with Management(settings) as management:
        before = change_user(management, settings.federation, settings.name)
    _say(
        f"The user {settings.name} is a {before.role} of {_federations(settings.federation)} now; before, of "
        f"{_federations(str(before.scope))}. RabbitMQ may keep an open channel's old rights for a minute."
    )


def remove(settings: RemoveSettings) -> None:
    """Remove a user."""
    with Management(settings) as management:
        was_there = remove_user(management, settings.federation, settings.name)
    _say(
        f"Removed the user {settings.name}; RabbitMQ has closed its connections."
        if was_there
        else f"There is no user {settings.name}."
    )


def show(settings: UserSettings) -> None:
    """Print a table of everybody who can reach the federation."""
    with Management(settings) as management:
        users = federation_users(management, settings.federation)
    table = Table("user", "role", "federations", "connections", show_edge=False)
    for user in users:
        others = ", ".join(f"{action} {pattern}" for action, pattern in user.rights.patterns.items())
        role, scope = shown_membership(user.membership) or (f"none: {others}", "")
        table.add_row(user.name, role, scope, str(user.connections))
    PlainConsole().print(table)


def shown_membership(membership: Membership | None) -> tuple[str, str] | None:
    """Return a role and where it counts, in words."""
    if membership is None:
        return None
    return membership.role, "all" if membership.role == "operator" else str(membership.scope)


def _federations(scope: str) -> str:
    return f"the federation{'s' if set('*,') & set(scope) else ''} {scope}"


def _say(line: str) -> None:
    PlainConsole(highlight=False, markup=False, soft_wrap=True).print(line)


app.command("add")(
    settings_command(
        AddSettings,
        add,
        about="Make a user with the least rights that its role needs.\n\n"
        "RabbitMQ's rights go by the names of exchanges and queues. F is the federation, NAME the user:\n\n"
        f"{help_text()}\n\n"
        "A user may work in several federations: `--federation 'digits,gym-*'` is for digits and for each "
        "that begins with gym-, also those that come later. It has one role in all of them. A user that "
        "exists with other rights is left as it is, with an error.",
        without=OF_AMQP_ALONE,
    )
)
app.command("change")(
    settings_command(
        ChangeSettings,
        change,
        about="Let a user work in other federations: those that are given take the place of those before.\n\n"
        "Its role and its password stay, and so do its connections.",
        without=OF_AMQP_ALONE,
    )
)
app.command("remove")(
    settings_command(
        RemoveSettings,
        remove,
        about="Remove a user; its connections are closed at once. One who works in several federations is "
        "removed only if all of them are given.",
        without=OF_AMQP_ALONE,
    )
)
app.command("list")(
    settings_command(
        UserSettings,
        show,
        about="List everybody who can reach the federation, with role and number of connections.",
        without=OF_AMQP_ALONE,
    )
)
