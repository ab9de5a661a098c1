"""`fluffle user add|change|remove|list`: one RabbitMQ user for each worker and each other part."""

from pathlib import Path
from typing import Literal

import typer
from pydantic import Field, field_validator, model_validator

from fluffle.command_line import new_app, settings_command
from fluffle.consoles import print_table
from fluffle.management import AMQP_SETTINGS, ManagementSettings
from fluffle.rights import Scope
from fluffle.settings import PartName
from fluffle_cli.rights_table import help_text
from fluffle_cli.users import (
    USER_COLUMNS,
    change_user,
    create_user,
    needs_user,
    new_password,
    password_in,
    remove_user,
    user_rows,
)

Role = Literal["worker", "evaluator", "aggregator", "monitor", "operator"]

app = new_app(
    "Add, change, remove and list the RabbitMQ users of federations.\n\n"
    "These commands need the login of an administrator of RabbitMQ (role operator), in FLUFFLE_BROKER_URL."
)


class UserSettings(ManagementSettings):
    """Flags of `fluffle user change` and `remove`."""

    federation: str = Field(
        "digits",
        description="The user's federations: names, and patterns in which * stands for any part of a name.",
        json_schema_extra={"metavar": "NAME,PATTERN,..."},
    )
    name: str = Field(description="Name of the user.", json_schema_extra={"argument": True})

    @field_validator("federation")
    @classmethod
    def _is_a_scope(cls, federations: str) -> str:
        return str(Scope.parse(federations))


class AddSettings(UserSettings):
    """Flags of `fluffle user add`."""

    name: PartName = Field(
        description="Name of the user; a worker or an evaluator uses the same name.",
        json_schema_extra={"argument": True},
    )
    role: Role = Field(description="Role, which decides what the user may do.")
    password_file: Path | None = Field(
        None,
        description="File for the new password (mode 600); without it the password is printed. If the file "
        "exists, the user gets the password in it.",
    )
    password: bool = Field(
        True, description="Create a password; --no-password for a user that logs in with a certificate."
    )

    @model_validator(mode="after")
    def _has_a_use_for_the_file(self) -> "AddSettings":
        if self.password_file is not None and not self.password:
            raise ValueError("--password-file and --no-password exclude each other")
        return self


def _add(settings: AddSettings) -> None:
    user = f"{settings.name} ({settings.role} of {_federations(settings.federation)})"
    with settings.management() as management:
        if not needs_user(management, settings.federation, settings.name, settings.role):
            typer.echo(f"The user {user} exists already with these rights or more; nothing was changed.")
            return
        password = None
        if settings.password:
            password = password_in(settings.password_file) if settings.password_file else new_password()
        create_user(management, settings.federation, settings.name, settings.role, password)
    typer.echo(f"Added the user {user}.")
    if settings.password_file:
        typer.echo(f"  for the part  FLUFFLE_BROKER_PASSWORD_FILE={settings.password_file}")
    elif password:
        typer.echo(f"  password      {password}   (it is not shown again)")
    else:
        typer.echo(f"  logs in with  a certificate whose common name is {settings.name}")


def _change(settings: UserSettings) -> None:
    with settings.management() as management:
        before = change_user(management, settings.federation, settings.name)
    typer.echo(
        f"The user {settings.name} is now a {before.role} of {_federations(settings.federation)}; before, it "
        f"belonged to {_federations(str(before.scope))}. RabbitMQ may apply the old rights to open channels "
        "for another minute."
    )


def _remove(settings: UserSettings) -> None:
    with settings.management() as management:
        was_there = remove_user(management, settings.federation, settings.name)
    if was_there:
        typer.echo(f"Removed the user {settings.name}; RabbitMQ has closed its connections.")
    else:
        typer.echo(f"There is no user {settings.name}.")


def _list(settings: ManagementSettings) -> None:
    with settings.management() as management:
        print_table(USER_COLUMNS, user_rows(management, settings.federation))


def _federations(scope: str) -> str:
    return f"the federation{'s' if set('*,') & set(scope) else ''} {scope}"


app.command("add")(
    settings_command(
        AddSettings,
        _add,
        about="Add a user with the least rights that its role needs, and say how it logs in.\n\n"
        "Example: `fluffle user add site-a --role worker --password-file site-a.password`. Then copy the "
        "file to the site, and set FLUFFLE_BROKER_PASSWORD_FILE there.\n\n"
        "RabbitMQ grants rights by the names of exchanges and queues. F is the federation, NAME the user:\n\n"
        f"{help_text()}\n\n"
        "A user may work in several federations: `--federation 'digits,gym-*'` is for digits and for every "
        "federation whose name begins with gym-, later ones too. It has the same role in all of them. If the "
        "user exists with other rights, the command changes nothing and fails.",
        without=AMQP_SETTINGS,
    )
)
app.command("change")(
    settings_command(
        UserSettings,
        _change,
        about="Let a user work in other federations: the ones that you give replace the ones it has now.\n\n"
        "Example: `fluffle user change site-a --federation 'digits,gym-*'`. The role, the password and open "
        "connections stay.",
        without=AMQP_SETTINGS,
    )
)
app.command("remove")(
    settings_command(
        UserSettings,
        _remove,
        about="Remove a user; RabbitMQ closes its connections at once.\n\n"
        "Example: `fluffle user remove site-a`. To remove a user of several federations, give all of them "
        "with --federation.",
        without=AMQP_SETTINGS,
    )
)
app.command("list")(
    settings_command(
        ManagementSettings,
        _list,
        about="List every user that can reach the federation, with its role and its open connections.\n\n"
        "Example: `fluffle user list --federation digits`.",
        without=AMQP_SETTINGS,
    )
)
