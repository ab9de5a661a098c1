#!/usr/bin/env python3
"""`make secrets`: write random passwords into .secrets/, and RabbitMQ's users and rights as definitions.

.secrets has one file per user with its password, which docker compose gives only to that user's container,
and the cookie of the cluster's nodes. broker_config/generated/definitions.json holds salted hashes of the
passwords, and RabbitMQ reads it at each start. Git ignores both, and .env, which names the federation.
Existing passwords are kept: run this as often as you like, with the names of more workers to add them. It
needs only Python's standard library.
"""

import base64
import hmac
import json
import os
import re
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "shared"))

from fluffle.rights import (
    FEDERATION_NAME,
    password_hash,
    permission_definition,
    rights_of,
    user_definition,
)

ROOT = Path(__file__).resolve().parents[1]
ENV_FILE = ROOT / ".env"
SECRETS = ROOT / ".secrets"
DEFINITIONS = ROOT / "broker_config" / "generated" / "definitions.json"

# Users with the names of their roles. Every other file in .secrets belongs to a helper of secure aggregation,
# or to a worker of that name.
PARTS = ("aggregator", "evaluator", "monitor", "operator")
HELPERS = ("helper-1", "helper-2", "helper-3")
HELPER = re.compile(r"helper-[1-7]")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
WORKERS = ("worker-0", "worker-1", "worker-2", "worker-3")
FEDERATION = "FLUFFLE_FEDERATION"
DEFAULT_FEDERATION = "digits"
VHOST = "/"
SALT_BYTES = 4

Definitions = dict[str, list[dict[str, object]]]


def is_hash_of(hashed: str, password: str) -> bool:
    """Tell whether this is a hash of the password."""
    try:
        salt = base64.b64decode(hashed)[:SALT_BYTES]
    except ValueError:
        return False
    return hmac.compare_digest(hashed, password_hash(password, salt))


def role_of(user: str) -> str:
    """Return the role of a user of this name."""
    if user in PARTS:
        return user
    return "helper" if HELPER.fullmatch(user) else "worker"


def definitions_of(federation: str, passwords: Mapping[str, str], old: Mapping[str, str]) -> Definitions:
    """Return RabbitMQ's users, their rights and its virtual host; there is no user guest.

    `old` has the hashes of the last run; a hash that still fits its password is kept.
    """
    definitions: Definitions = {"users": [], "vhosts": [{"name": VHOST}], "permissions": []}
    for user, password in passwords.items():
        rights = rights_of(role_of(user), federation, user)
        kept = user in old and is_hash_of(old[user], password)
        hashed = old[user] if kept else password_hash(password, secrets.token_bytes(SALT_BYTES))
        definitions["users"].append(user_definition(user, rights, hashed))
        definitions["permissions"].append(permission_definition(user, rights, VHOST))
    return definitions


def federation_of(path: Path) -> str:
    """Return the federation that the shell or an .env file names, and add it to the file if it is missing."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    written = re.search(rf"^{FEDERATION}=[\"']?([^\"'\n]+)", text, re.MULTILINE)
    federation = os.environ.get(FEDERATION) or (written[1].strip() if written else DEFAULT_FEDERATION)
    if not re.fullmatch(FEDERATION_NAME, federation):
        sys.exit(
            f"error: {FEDERATION} must be 1 to 48 of a-z, 0-9, _ and -, beginning with a letter, "
            f"not {federation!r}"
        )
    if written and written[1].strip() != federation:
        sys.exit(
            f"error: {FEDERATION} is {federation!r}, but {written[1]!r} in {path}: set both to the same name"
        )
    if not written:
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{'' if text.endswith(chr(10)) or not text else chr(10)}{FEDERATION}={federation}\n")
    return federation


def read_or_draw(path: Path) -> tuple[str, bool]:
    """Return the password in a file, and whether it is new because there was no file."""
    try:
        # Compose mounts the file as it is, and its container reads it as another user: so everybody may read
        # the file, but only its owner may open the folder around it.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        password = path.read_text(encoding="utf-8").rstrip("\r\n")
        if not password or "\n" in password:
            sys.exit(f"error: {path} must hold one password: delete it, and run `make secrets` to create one")
        return password, False
    password = secrets.token_urlsafe(24)
    with open(descriptor, "w", encoding="utf-8") as file:
        os.fchmod(descriptor, 0o644)
        file.write(f"{password}\n")
    return password, True


def read_hashes(path: Path) -> dict[str, str]:
    """Return the users' password hashes in the definitions of the last run."""
    try:
        users = json.loads(path.read_text(encoding="utf-8"))["users"]
        return {user["name"]: user["password_hash"] for user in users}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def write_definitions(path: Path, definitions: Definitions) -> None:
    """Write the definitions, which the container's user rabbitmq may read: they hold no password."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    path.parent.chmod(0o755)
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(definitions, indent=2) + "\n", encoding="utf-8")
    fresh.chmod(0o644)
    fresh.replace(path)


def main(more_workers: list[str]) -> str:
    """Create what is missing, and return a report."""
    for name in more_workers:
        if not NAME.fullmatch(name):
            sys.exit(f"error: a worker's name must be 1 to 100 letters, digits and _ . -, not {name!r}")
    federation = federation_of(ENV_FILE)
    SECRETS.mkdir(mode=0o700, exist_ok=True)
    SECRETS.chmod(0o700)
    there = [path.name for path in sorted(SECRETS.iterdir()) if NAME.fullmatch(path.name)]
    users = dict.fromkeys([*PARTS, *HELPERS, *WORKERS, *there, *more_workers])
    found = {user: read_or_draw(SECRETS / user) for user in users}
    # For the nodes of docker-compose.cluster.yml. A name with a dot in front is no worker.
    read_or_draw(SECRETS / ".erlang.cookie")
    passwords = {user: password for user, (password, _) in found.items()}
    write_definitions(DEFINITIONS, definitions_of(federation, passwords, read_hashes(DEFINITIONS)))

    made = ", ".join(user for user, (_, is_new) in found.items() if is_new)
    passwords_are = f"new passwords for {made}" if made else "every password already; nothing was changed"
    return f"""\
{SECRETS.name}/ has {passwords_are}
{DEFINITIONS.relative_to(ROOT)} has the users {", ".join(users)} of the federation {federation}
RabbitMQ's UI: user monitor to look, user operator to change things, passwords in {SECRETS.name}/
To change a password: delete its file, then run `make secrets` and `docker compose up --force-recreate`"""


if __name__ == "__main__":
    sys.stdout.write(main(sys.argv[1:]) + "\n")
