"""The RabbitMQ users of a federation, as an administrator adds, changes, removes and lists them."""

import os
import re
import secrets
import stat
from pathlib import Path

from fluffle.errors import ConfigError
from fluffle.management import Account, Management
from fluffle.rights import NOTHING, Membership, Rights, Scope, membership_of, password_hash, rights_of
from fluffle.topology import topology_of

SALT_BYTES = 4
# RabbitMQ refuses every password of a user whose hash is empty.
NO_PASSWORD = ""
USER_COLUMNS = "user", "role", "federations", "connections"


def needs_user(management: Management, federations: str, name: str, role: str) -> bool:
    """Tell whether a user must be created; False if one with these rights, or more, exists already.

    `federations` is a list of names and patterns for `Scope.parse`. Raises ConfigError when a user of this
    name has other rights, which are never changed.
    """
    found = management.account(name)
    # A user without any rights was left behind by an interrupted run.
    if found is None or not (found.patterns or found.tags - rights_of(role, federations, name).tags):
        return True
    has = _sole_membership(found, management.vhost)
    if has is None or has.role != role:
        raise ConfigError(
            f"the user {name!r} exists already with other rights ({_described(found)}), which were not "
            "changed: a user has one role. Choose another name, or remove that user first"
        )
    if not has.scope.includes(Scope.parse(federations)):
        raise ConfigError(
            f"the user {name!r} is a {role} of {has.scope}, not of {federations}: to let it work there "
            f"too, run `fluffle user change {name} --federation '{has.scope},{federations}'`"
        )
    return False


def create_user(management: Management, federations: str, name: str, role: str, password: str | None) -> None:
    """Create a user for a role in federations; a user without a password logs in with a certificate."""
    management.put_user(name, rights_of(role, federations, name), hash_of(password))


def change_user(management: Management, federations: str, name: str) -> Membership:
    """Give a user its role in other federations, and return its membership of before; its password stays.

    Raises ConfigError when there is no such user, and for a user without a role and for an operator.
    """
    found = management.account(name)
    if found is None:
        raise ConfigError(f"there is no user {name!r}: create it with `fluffle user add {name} --role ROLE`")
    before = _sole_membership(found, management.vhost)
    if before is None:
        raise ConfigError(
            f"the user {name!r} has rights of its own and no role ({_described(found)}), so Fluffle does not "
            "change them: use rabbitmqctl, or choose another name"
        )
    if before.role == "operator":
        raise ConfigError(f"{name!r} is an operator and may already do everything in every federation")
    management.put_rights(name, rights_of(before.role, federations, name))
    return before


def remove_user(management: Management, federations: str, name: str) -> bool:
    """Remove a user of federations, whose connections RabbitMQ closes; False if there is no such user.

    Raises ConfigError for a user of other federations too, and for the user that is logged in here.
    """
    found = management.account(name)
    if found is None:
        return False
    if name == management.user:
        raise ConfigError(f"you are logged in as {name!r}: another operator must remove this user")
    given, has = Scope.parse(federations), _sole_membership(found, management.vhost)
    if has is not None and has.role != "operator" and not given.includes(has.scope):
        raise ConfigError(
            f"the user {name!r} is not of the federation {federations!r} alone: it is a {has.role} of "
            f"{has.scope}. To remove it, add --federation '{has.scope}'; to keep it in some of them, use "
            f"`fluffle user change {name} --federation ...`"
        )
    is_reached = any(_reaches(found, each, management.vhost) for each in given.names)
    if found.patterns.keys() - {management.vhost} or not is_reached:
        raise ConfigError(
            f"the user {name!r} is not of the federation {federations!r} alone ({_described(found)}), so it "
            "was not removed: correct --federation, or use rabbitmqctl"
        )
    management.delete_user(name)
    return True


def user_rows(management: Management, federation: str) -> list[tuple[str, str, str, str]]:
    """Return USER_COLUMNS for each user that can reach a federation, whoever created it; sorted by name."""
    rows = []
    for account in sorted(management.accounts(), key=lambda each: each.name):
        if not _reaches(account, federation, management.vhost):
            continue
        rights = account.rights_on(management.vhost) or Rights(tags=account.tags)
        membership = membership_of(rights, account.name)
        if membership is None:
            role, scope = f"none: {_patterns(*rights.patterns.values())}", ""
        else:
            role = membership.role
            scope = "all" if role == "operator" else str(membership.scope)
        rows.append((account.name, role, scope, str(management.connections_of(account.name))))
    return rows


def hash_of(password: str | None) -> str:
    """Return what RabbitMQ stores for a password, with a new salt; for None, a hash that fits no password."""
    return NO_PASSWORD if password is None else password_hash(password, secrets.token_bytes(SALT_BYTES))


def new_password() -> str:
    """Return a random password that needs no escaping in a URL."""
    return secrets.token_urlsafe(24)


def password_in(path: Path) -> str:
    """Return the password in a file that only its owner can read; a missing file gets a new password."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return _read_private(path)
    except OSError as error:
        raise ConfigError(f"cannot create the password file {path}: {error.strerror}") from error
    password = new_password()
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(f"{password}\n")
    return password


def _read_private(path: Path) -> str:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        password = path.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the password file {path}: {error}") from error
    if mode & 0o077:
        raise ConfigError(
            f"the password file {path} can be read by others (mode {mode:o}): run `chmod 600 {path}`"
        )
    if not password:
        raise ConfigError(f"the password file {path} is empty: delete it, and Fluffle creates a password")
    return password


def _reaches(account: Account, federation: str, vhost: str) -> bool:
    """Tell whether a user has any right in a federation, or could give itself one."""
    if "administrator" in account.tags:
        return True
    rights = account.rights_on(vhost)
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
        return True  # RabbitMQ knows more kinds of patterns: better one user too many than one too few


def _described(account: Account) -> str:
    tags = [f"tags {', '.join(sorted(account.tags))}"] if account.tags else []
    rights = [f"on virtual host {vhost}: {_patterns(*each)}" for vhost, each in account.patterns.items()]
    return "; ".join([*tags, *rights]) or "none"


def _patterns(configure: str, write: str, read: str) -> str:
    return f"configure {configure}, write {write}, read {read}"
