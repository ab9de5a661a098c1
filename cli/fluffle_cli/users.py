"""The RabbitMQ users of a federation, as an administrator adds, changes, removes and lists them."""

import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from fluffle.errors import ConfigError
from fluffle.management import Account, Management
from fluffle.rights import NOTHING, ROLES, Membership, Rights, Scope, membership_of, password_hash, rights_of
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
    if found is None or not (found.rights or found.tags - rights_of(role, federations, name).tags):
        return True
    membership = sole_membership(found, management.vhost)
    if membership is None or membership.role != role:
        raise ConfigError(
            f"the user {name!r} exists already with other rights ({rights_in_words(found)}), which were not "
            "changed: a user has one role. Choose another name, or remove that user first"
        )
    if not membership.scope.includes(Scope.parse(federations)):
        raise ConfigError(
            f"the user {name!r} is a {role} of {membership.scope}, not of {federations}: to let it work "
            f"there too, run `fluffle user change {name} --federation '{membership.scope},{federations}'`"
        )
    return False


def create_user(management: Management, federations: str, name: str, role: str, password: str | None) -> None:
    """Create a user for a role in federations; a user without a password logs in with a certificate."""
    management.put_user(name, rights_of(role, federations, name), hash_of(password))


def user_rows(management: Management, federation: str) -> list[tuple[str, str, str, str]]:
    """Return USER_COLUMNS for each user that can reach a federation, whoever created it; sorted by name."""
    rows = []
    for account in sorted(management.accounts(), key=lambda each: each.name):
        if can_reach(account, federation, management.vhost):
            rights = account.rights.get(management.vhost, Rights(tags=account.tags))
            membership = membership_of(rights, account.name)
            role = membership.role if membership else f"none: {_shown(rights)}"
            scope = "" if membership is None else "all" if role == "operator" else str(membership.scope)
            rows.append((account.name, role, scope, str(management.connections_of(account.name))))
    return rows


def rights_by_role() -> Iterator[tuple[str, dict[str, list[str]]]]:
    """Yield each role with the names that it may configure, write and read, for people, and with its tags.

    F stands for the federation, and NAME for the user's own name, which a worker, an evaluator or a helper
    works under.
    """
    own, other = topology_of("f"), topology_of("other").updates.name
    its_own = {own.worker_lock("NAME"), own.worker_bell("NAME"), f"{own.digests_in.name}.NAME"}
    names = sorted(own.names | its_own | {f"{own.events.name}.ANYTHING"})

    def names_in(pattern: str) -> list[str]:
        if re.search(pattern, other):
            return ["everything"]
        found = [name for name in names if re.search(pattern, name)]
        return ["F.*"] if found == names else [name.replace("f.", "F.", 1) for name in found]

    for role in ROLES:
        rights = rights_of(role, own.federation, "NAME")
        names_by_kind = {kind: names_in(pattern) for kind, pattern in rights.patterns.items()}
        yield role, names_by_kind | {"tags": sorted(rights.tags)}


def hash_of(password: str | None) -> str:
    """Return what RabbitMQ stores for a password, with a new salt; for None, a hash that fits no password."""
    return NO_PASSWORD if password is None else password_hash(password, secrets.token_bytes(SALT_BYTES))


def new_password() -> str:
    """Return a random password that needs no escaping in a URL."""
    return secrets.token_urlsafe(24)


def password_in(path: Path) -> str:
    """Return the password in a file that only its owner can read; a missing file gets a new password."""

    def open_private(name: str, flags: int) -> int:
        return os.open(name, flags, 0o600)

    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError), open(path, "x", encoding="utf-8", opener=open_private) as file:
            file.write(f"{new_password()}\n")
        mode = stat.S_IMODE(path.stat().st_mode)
        password = path.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot create or read the password file {path}: {error}") from error
    if mode & 0o077:
        raise ConfigError(
            f"the password file {path} can be read by others (mode {mode:o}): run `chmod 600 {path}`"
        )
    if not password:
        raise ConfigError(f"the password file {path} is empty: delete it, and Fluffle creates a password")
    return password


def sole_membership(account: Account, vhost: str) -> Membership | None:
    """Return a user's role on this virtual host, if it has rights on no other one."""
    return membership_of(account.rights[vhost], account.name) if account.rights.keys() == {vhost} else None


def can_reach(account: Account, federation: str, vhost: str) -> bool:
    """Tell whether a user has any right in a federation, or could give itself one."""
    if "administrator" in account.tags:
        return True
    rights = account.rights.get(vhost)
    if rights is None:
        return False
    if membership := membership_of(rights, account.name):
        return federation in membership.scope
    names = topology_of(federation).names
    return any(_matches(pattern, name) for pattern in rights.patterns.values() for name in names)


def rights_in_words(account: Account) -> str:
    """Return the tags and rights of a user, for an error."""
    tags = [f"tags {', '.join(sorted(account.tags))}"] if account.tags else []
    rights = [f"on virtual host {vhost}: {_shown(rights)}" for vhost, rights in account.rights.items()]
    return "; ".join([*tags, *rights]) or "none"


def _matches(pattern: str, name: str) -> bool:
    try:
        return re.search(pattern or NOTHING, name) is not None
    except re.error:
        return True  # RabbitMQ knows more kinds of patterns: better one user too many than one too few


def _shown(rights: Rights) -> str:
    return ", ".join(f"{what} {pattern}" for what, pattern in rights.patterns.items())
