#!/usr/bin/env python3
"""`make secrets`: random passwords into .secrets/, and RabbitMQ's users and rights into its definitions.

.secrets has a file for each user, with its password, which docker compose gives to that user's container
alone, and the cookie of the cluster's nodes. broker_config/generated/definitions.json holds salted hashes of
them, and RabbitMQ reads it each time it starts. Git ignores both, and .env, which names the federation. A
password that is there is kept: run this as often as you like, with the names of more workers if there are to
be more. Needs Python's standard library only.
"""

from __future__ import annotations

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

# Users named as their roles. Whoever else has a file in .secrets is a worker, under its own name.
PARTS = ("aggregator", "evaluator", "monitor", "operator")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
WORKERS = ("worker-0", "worker-1", "worker-2", "worker-3")
FEDERATION = "FLUFFLE_FEDERATION"
DEFAULT_FEDERATION = "digits"
VHOST = "/"
SALT_BYTES = 4

Definitions = dict[str, list[dict[str, object]]]


def is_hash_of(hashed: str, password: str) -> bool:
    """Tell whether RabbitMQ would let in whoever gives this password."""
    try:
        salt = base64.b64decode(hashed)[:SALT_BYTES]
    except ValueError:
        return False
    return hmac.compare_digest(hashed, password_hash(password, salt))


def definitions_of(federation: str, passwords: Mapping[str, str], old: Mapping[str, str]) -> Definitions:
    """Return RabbitMQ's users, their rights and its virtual host; there is no guest.

    `old` has the hashes that were made before; one that still fits is kept.
    """
    definitions: Definitions = {"users": [], "vhosts": [{"name": VHOST}], "permissions": []}
    for user, password in passwords.items():
        rights = rights_of(user if user in PARTS else "worker", federation, user)
        kept = user in old and is_hash_of(old[user], password)
        hashed = old[user] if kept else password_hash(password, secrets.token_bytes(SALT_BYTES))
        definitions["users"].append(user_definition(user, rights, hashed))
        definitions["permissions"].append(permission_definition(user, rights, VHOST))
    return definitions


def federation_of(path: Path) -> str:
    """Return the federation that the shell or an .env file names, and write it there if it is not."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    written = re.search(rf"^{FEDERATION}=[\"']?([^\"'\n]+)", text, re.MULTILINE)
    federation = os.environ.get(FEDERATION) or (written[1].strip() if written else DEFAULT_FEDERATION)
    if not re.fullmatch(FEDERATION_NAME, federation):
        sys.exit(
            f"error: {FEDERATION} must be 1 to 48 of a-z, 0-9, _ and -, beginning with a letter, "
            f"not {federation!r}"
        )
    if written and written[1].strip() != federation:
        sys.exit(f"error: {FEDERATION} is {federation!r}, but {written[1]!r} in {path}: change it there")
    if not written:
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{'' if text.endswith(chr(10)) or not text else chr(10)}{FEDERATION}={federation}\n")
    return federation


def read_or_draw(path: Path) -> tuple[str, bool]:
    """Return the password in a file, and whether it was drawn now because there was none."""
    try:
        # Compose mounts the file as it is, and its container reads it as another user: so the file is open to
        # all, and the folder around it to its owner alone.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        password = path.read_text(encoding="utf-8").rstrip("\r\n")
        if not password or "\n" in password:
            sys.exit(f"error: {path} must hold one password: delete it, and a new one is drawn")
        return password, False
    password = secrets.token_urlsafe(24)
    with open(descriptor, "w", encoding="utf-8") as file:
        os.fchmod(descriptor, 0o644)
        file.write(f"{password}\n")
    return password, True


def read_hashes(path: Path) -> dict[str, str]:
    """Return the users' hashes of definitions that were made before."""
    try:
        users = json.loads(path.read_text(encoding="utf-8"))["users"]
        return {user["name"]: user["password_hash"] for user in users}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def write_definitions(path: Path, definitions: Definitions) -> None:
    """Write definitions that the container's rabbitmq user may read: they hold no password."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    path.parent.chmod(0o755)
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(definitions, indent=2) + "\n", encoding="utf-8")
    fresh.chmod(0o644)
    fresh.replace(path)


def main(more_workers: list[str]) -> str:
    """Make what is missing, and return what is to be said about it."""
    for name in more_workers:
        if not NAME.fullmatch(name):
            sys.exit(f"error: a worker's name must be 1 to 100 letters, digits and _ . -, not {name!r}")
    federation = federation_of(ENV_FILE)
    SECRETS.mkdir(mode=0o700, exist_ok=True)
    SECRETS.chmod(0o700)
    there = [path.name for path in sorted(SECRETS.iterdir()) if NAME.fullmatch(path.name)]
    users = dict.fromkeys([*PARTS, *WORKERS, *there, *more_workers])
    found = {user: read_or_draw(SECRETS / user) for user in users}
    # By which the nodes of docker-compose.cluster.yml know each other. Its dot keeps it from being a worker.
    read_or_draw(SECRETS / ".erlang.cookie")
    passwords = {user: password for user, (password, _) in found.items()}
    write_definitions(DEFINITIONS, definitions_of(federation, passwords, read_hashes(DEFINITIONS)))

    made = ", ".join(user for user, (_, is_new) in found.items() if is_new)
    passwords_are = f"new passwords for {made}" if made else "every password already, and is as it was"
    return f"""\
{SECRETS.name}/ has {passwords_are}
{DEFINITIONS.relative_to(ROOT)} has the users {", ".join(users)} of the federation {federation}
RabbitMQ's UI: user monitor to look, user operator to mend, passwords in {SECRETS.name}/
To change a password: delete its file, `make secrets`, `docker compose up --force-recreate`"""


if __name__ == "__main__":
    sys.stdout.write(main(sys.argv[1:]) + "\n")
