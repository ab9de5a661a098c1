"""The RabbitMQ users of a federation: made, removed and listed by whoever administers the broker."""

from __future__ import annotations

import os
import re
import secrets
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fluffle.errors import ConfigError
from fluffle.rights import NOTHING, Membership, Rights, Scope, membership_of, password_hash, rights_of
from fluffle.topology import topology_of
from fluffle_cli.management import Account, Management

SALT_BYTES = 4
# RabbitMQ lets nobody in by password whose hash is empty.
NO_PASSWORD = ""


@dataclass(frozen=True, slots=True)
class FederationUser:
    """A user who can reach a federation; `membership` is None for rights that no role has."""

    name: str
    membership: Membership | None
    rights: Rights
    connections: int


def add_user(
    management: Management, federations: str, name: str, role: str, *, password: Callable[[], str | None]
) -> bool:
    """Make a user for a role in federations; False when there is one with these rights, or more, already.

    `federations` are written as `Scope.parse` reads them. `password` is asked for only when the user is made;
    None is for one that logs in with a certificate. Raises ConfigError when a user of this name has other
    rights, which are never touched.
    """
    wanted, found = rights_of(role, federations, name), management.account(name)
    # One without any rights is what an interrupted run left behind.
    if found is not None and (found.patterns or found.tags - wanted.tags):
        has = _sole_membership(found, management.vhost)
        if has is not None and has.role == role:
            if has.scope.includes(Scope.parse(federations)):
                return False
            raise ConfigError(
                f"the user {name!r} is a {role} of {has.scope}, not of {federations}: to let it work there "
                f"too, `fluffle user change {name} --federation '{has.scope},{federations}'`"
            )
        raise ConfigError(
            f"there is a user {name!r} with other rights ({_described(found)}), which stay as they are: "
            "a user has one role. Choose another name, or remove that user first"
        )
    management.put_user(name, wanted, hash_of(password()))
    return True


def change_user(management: Management, federations: str, name: str) -> Membership:
    """Give a user its role in other federations, and return what it was before; its password stays.

    Raises ConfigError when there is no such user, and for one whose rights are those of no role, or of an
    operator.
    """
    found = management.account(name)
    if found is None:
        raise ConfigError(f"there is no user {name!r}: make it with `fluffle user add {name} --role ROLE`")
    before = _sole_membership(found, management.vhost)
    if before is None:
        raise ConfigError(
            f"the rights of the user {name!r} are those of no role ({_described(found)}), and stay as they "
            "are. Use rabbitmqctl, or choose another name"
        )
    if before.role == "operator":
        raise ConfigError(f"{name!r} is an operator, who may do everything in every federation")
    management.put_rights(name, rights_of(before.role, federations, name))
    return before


def remove_user(management: Management, federations: str, name: str) -> bool:
    """Remove a user of federations, whose connections RabbitMQ closes; False when there is none.

    Raises ConfigError for a user who is of other federations too, and for who is logged in here.
    """
    found = management.account(name)
    if found is None:
        return False
    if name == management.user:
        raise ConfigError(f"{name!r} is the user that you are logged in as: remove it as another operator")
    given, has = Scope.parse(federations), _sole_membership(found, management.vhost)
    if has is not None and has.role != "operator" and not given.includes(has.scope):
        raise ConfigError(
            f"the user {name!r} is not of the federation {federations!r} alone: it is a {has.role} of "
            f"{has.scope}. To remove it from all of them, give --federation '{has.scope}'; to leave it in "
            f"some, `fluffle user change {name} --federation` with those"
        )
    is_reached = any(_reaches(found, each, management.vhost) for each in given.names)
    if found.patterns.keys() - {management.vhost} or not is_reached:
        raise ConfigError(
            f"the user {name!r} is not of the federation {federations!r} alone ({_described(found)}): it "
            "stays as it is. Give the right --federation, or use rabbitmqctl"
        )
    management.delete_user(name)
    return True


def federation_users(management: Management, federation: str) -> list[FederationUser]:
    """Return everybody who can reach a federation, by whomever they were made, sorted by name."""
    reaching = [each for each in management.accounts() if _reaches(each, federation, management.vhost)]
    return [
        FederationUser(
            each.name,
            membership_of(rights, each.name),
            rights,
            connections=management.connections_of(each.name),
        )
        for each in sorted(reaching, key=lambda account: account.name)
        for rights in [each.rights_on(management.vhost) or Rights(tags=each.tags)]
    ]


def hash_of(password: str | None) -> str:
    """Return what RabbitMQ stores of a password, salted anew; of None, what lets nobody in."""
    return NO_PASSWORD if password is None else password_hash(password, secrets.token_bytes(SALT_BYTES))


def new_password() -> str:
    """Draw a password that may stand in a URL as it is."""
    return secrets.token_urlsafe(24)


def password_in(path: Path) -> str:
    """Return the password in a file that only its owner can read; without a file one is drawn into it."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return _read_private(path)
    except OSError as error:
        raise ConfigError(f"the password file {path} cannot be made: {error.strerror}") from error
    password = new_password()
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(f"{password}\n")
    return password


def _read_private(path: Path) -> str:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        password = path.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the password file {path} cannot be read: {error}") from error
    if mode & 0o077:
        raise ConfigError(f"the password file {path} can be read by others (mode {mode:o}): chmod 600 it")
    if not password:
        raise ConfigError(f"the password file {path} is empty: delete it, and a password is drawn")
    return password


def _reaches(account: Account, federation: str, vhost: str) -> bool:
    """Tell whether a user has any right on what a federation is made of, or could give itself one."""
    rights = account.rights_on(vhost)
    if "administrator" in account.tags:
        return True
    if rights is None:
        return False
    membership = membership_of(rights, account.name)
    if membership is not None:
        return federation in membership.scope
    topology = topology_of(federation)
    names = [each.name for each in topology.exchanges] + [each.name for each in topology.queues]
    return any(_matches(pattern, name) for pattern in rights.patterns.values() for name in names)


def _sole_membership(account: Account, vhost: str) -> Membership | None:
    """Return a user's role on this virtual host, if it has rights on no other one."""
    rights = account.rights_on(vhost)
    if rights is None or account.patterns.keys() != {vhost}:
        return None
    return membership_of(rights, account.name)


def _matches(pattern: str, name: str) -> bool:
    try:
        return re.search(pattern or NOTHING, name) is not None
    except re.error:
        return True  # RabbitMQ knows more kinds of patterns: rather one too many than one too few


def _described(account: Account) -> str:
    tags = [f"tags {', '.join(sorted(account.tags))}"] if account.tags else []
    rights = [
        f"on virtual host {vhost}: configure {configure}, write {write}, read {read}"
        for vhost, (configure, write, read) in account.patterns.items()
    ]
    return "; ".join([*tags, *rights]) or "none"
