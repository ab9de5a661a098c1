"""`fluffle user add|change|remove|list`: one RabbitMQ user for each worker and each other part."""

from inspect import cleandoc
from pathlib import Path
from typing import Literal

import typer
from pydantic import Field, field_validator, model_validator

from fluffle.command_line import new_app, settings_command
from fluffle.consoles import print_table
from fluffle.errors import ConfigError
from fluffle.management import AMQP_SETTINGS, ManagementSettings
from fluffle.rights import Scope, rights_of
from fluffle.settings import PartName
from fluffle_cli.users import (
    USER_COLUMNS,
    can_reach,
    create_user,
    needs_user,
    new_password,
    password_in,
    rights_by_role,
    rights_in_words,
    sole_membership,
    user_rows,
)

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
    role: Literal["worker", "evaluator", "helper", "aggregator", "monitor", "operator"] = Field(
        description="Role, which decides what the user may do."
    )
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
    """Add a user with the least rights that its role needs, and say how it logs in.

    Example: `fluffle user add site-a --role worker --password-file site-a.password`. Then copy the file to
    the site, and set FLUFFLE_BROKER_PASSWORD_FILE there.

    A user may work in several federations: `--federation 'digits,gym-*'` is for digits and for every
    federation whose name begins with gym-, later ones too. It has the same role in all of them. If the user
    exists with other rights, the command changes nothing and fails.

    RabbitMQ grants rights by the names of exchanges and queues. F is the federation, NAME the user:
    """
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
    """Let a user work in other federations: the ones that you give replace the ones it has now.

    Example: `fluffle user change site-a --federation 'digits,gym-*'`. The role, the password and open
    connections stay.
    """
    name = settings.name
    with settings.management() as management:
        found = management.account(name)
        if found is None:
            raise ConfigError(
                f"there is no user {name!r}: create it with `fluffle user add {name} --role ROLE`"
            )
        before = sole_membership(found, management.vhost)
        if before is None:
            raise ConfigError(
                f"the user {name!r} has rights of its own and no role ({rights_in_words(found)}): use "
                "rabbitmqctl to change them, or choose another name"
            )
        if before.role == "operator":
            raise ConfigError(f"{name!r} is an operator and may already do everything in every federation")
        management.put_rights(name, rights_of(before.role, settings.federation, name))
    typer.echo(
        f"The user {name} is now a {before.role} of {_federations(settings.federation)}; before, it "
        f"belonged to {_federations(str(before.scope))}. RabbitMQ may apply the old rights to open channels "
        "for another minute."
    )


def _remove(settings: UserSettings) -> None:
    """Remove a user; RabbitMQ closes its connections at once.

    Example: `fluffle user remove site-a`. To remove a user of several federations, give all of them with
    --federation.
    """
    name, given = settings.name, Scope.parse(settings.federation)
    with settings.management() as management:
        found = management.account(name)
        if found is None:
            typer.echo(f"There is no user {name}.")
            return
        if name == management.user:
            raise ConfigError(f"you are logged in as {name!r}: another operator must remove this user")
        membership = sole_membership(found, management.vhost)
        if membership and membership.role != "operator" and not given.includes(membership.scope):
            role, scope = membership.role, membership.scope
            raise ConfigError(
                f"the user {name!r} is not of the federation {str(given)!r} alone: it is a {role} of "
                f"{scope}. To remove it, add --federation '{scope}'; or change it (`fluffle user change`)"
            )
        is_reached = any(can_reach(found, each, management.vhost) for each in given.names)
        if found.rights.keys() - {management.vhost} or not is_reached:
            raise ConfigError(
                f"the user {name!r} is not of the federation {str(given)!r} alone: {rights_in_words(found)}. "
                "Correct --federation, or use rabbitmqctl"
            )
        management.delete_user(name)
    typer.echo(f"Removed the user {name}; RabbitMQ has closed its connections.")


def _list(settings: ManagementSettings) -> None:
    """List every user that can reach the federation, with its role and its open connections.

    Example: `fluffle user list --federation digits`.
    """
    with settings.management() as management:
        print_table(USER_COLUMNS, user_rows(management, settings.federation))


def _roles_in_words() -> str:
    """Return a paragraph for each role."""
    paragraphs = []
    for role, names_by_kind in rights_by_role():
        said = [f"{kind} {', '.join(names)}" for kind, names in names_by_kind.items() if names]
        paragraphs.append(f"{role}: {'; '.join(said)}")
    return "\n\n".join(paragraphs)


def _federations(scope: str) -> str:
    return f"the federation{'s' if set('*,') & set(scope) else ''} {scope}"


add_help = f"{cleandoc(_add.__doc__ or '')}\n\n{_roles_in_words()}"
app.command("add")(settings_command(AddSettings, _add, about=add_help, without=AMQP_SETTINGS))
app.command("change")(settings_command(UserSettings, _change, without=AMQP_SETTINGS))
app.command("remove")(settings_command(UserSettings, _remove, without=AMQP_SETTINGS))
app.command("list")(settings_command(ManagementSettings, _list, without=AMQP_SETTINGS))
