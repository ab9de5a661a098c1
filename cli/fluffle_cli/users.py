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
from fluffle.rights import NOTHING, Rights, password_hash, rights_of, role_of
from fluffle.topology import topology_of
from fluffle_cli.management import Account, Management

SALT_BYTES = 4
# RabbitMQ lets nobody in by password whose hash is empty.
NO_PASSWORD = ""


@dataclass(frozen=True, slots=True)
class FederationUser:
    """A user who can reach a federation; `role` is None for rights that no role has."""

    name: str
    role: str | None
    rights: Rights
    connections: int


def add_user(
    management: Management, federation: str, name: str, role: str, *, password: Callable[[], str | None]
) -> bool:
    """Make a user for a role of a federation; False when there is one with these rights already.

    `password` is asked for only when the user is made; None is for one that logs in with a certificate.
    Raises ConfigError when a user of this name has other rights, which are never touched.
    """
    wanted, found = rights_of(role, federation, name), management.account(name)
    # One without any rights is what an interrupted run left behind.
    if found is not None and (found.patterns or found.tags - wanted.tags):
        rights = found.rights_on(management.vhost)
        if (
            found.patterns.keys() == {management.vhost}
            and rights
            and role_of(rights, federation, name) == role
        ):
            return False
        raise ConfigError(
            f"there is a user {name!r} with other rights ({_described(found)}), which stay as they are: "
            "a user has one role in one federation. Choose another name, or remove that user first"
        )
    management.put_user(name, wanted, hash_of(password()))
    return True


def remove_user(management: Management, federation: str, name: str) -> bool:
    """Remove a user of a federation, whose connections RabbitMQ closes; False when there is none.

    Raises ConfigError for a user who is not of this federation alone, and for who is logged in here.
    """
    found = management.account(name)
    if found is None:
        return False
    if name == management.user:
        raise ConfigError(f"{name!r} is the user that you are logged in as: remove it as another operator")
    if not _reaches(found, federation, management.vhost) or found.patterns.keys() - {management.vhost}:
        raise ConfigError(
            f"the user {name!r} is not of the federation {federation!r} alone ({_described(found)}): it "
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
            role_of(rights, federation, each.name),
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
    if role_of(rights, federation, account.name):
        return True
    topology = topology_of(federation)
    names = [each.name for each in topology.exchanges] + [each.name for each in topology.queues]
    return any(_matches(pattern, name) for pattern in rights.patterns.values() for name in names)


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
