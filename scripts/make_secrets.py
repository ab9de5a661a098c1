#!/usr/bin/env python3
"""`make secrets`: random passwords into .env, and RabbitMQ's users with their rights into its definitions.

.env holds the passwords, for docker compose alone. broker_config/generated/definitions.json holds salted
hashes of them, and RabbitMQ reads it each time it starts. Git ignores both. What .env says already is kept:
run this as often as you like. Needs Python's standard library only.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import re
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENV_FILE = ROOT / ".env"
DEFINITIONS = ROOT / "broker_config" / "generated" / "definitions.json"

OPERATOR = "operator"
USERS = ("aggregator", "worker", "evaluator", OPERATOR)
FEDERATION = "FLUFFLE_FEDERATION"
DEFAULT_FEDERATION = "digits"

SALT_BYTES = 4
NOTHING, EVERYTHING = "^$", ".*"

AGAIN = "`make secrets`, `docker compose up --force-recreate`"
HEADER = f"""\
# Made by `make secrets`; docker compose reads it. Never commit it.
# To change a password: delete its line, {AGAIN}.
"""

Definitions = dict[str, list[dict[str, object]]]


def variable_of(user: str) -> str:
    """Return the name of the variable that holds a user's password."""
    return f"FLUFFLE_{user.upper()}_PASSWORD"


def rights_of(user: str, federation: str) -> tuple[str, str, str]:
    """Return what a user may configure, write to and read from, as regular expressions over names."""
    name = re.escape(federation)
    if user == OPERATOR:
        return EVERYTHING, EVERYTHING, EVERYTHING
    if user == "aggregator":
        # Through the default exchange it publishes to the head queue alone.
        return rf"^{name}\.", rf"^({name}\..*|amq\.default)$", rf"^{name}\."
    target = "evaluations" if user == "evaluator" else "updates"
    return NOTHING, rf"^{name}\.{target}$", rf"^{name}\.models$"


def password_hash(password: str, salt: bytes) -> str:
    """Hash as rabbit_password_hashing_sha256 does: base64 of the salt and then sha256(salt + password)."""
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode("ascii")


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
    users: list[dict[str, object]] = []
    permissions: list[dict[str, object]] = []
    for user, password in passwords.items():
        kept = user in old and is_hash_of(old[user], password)
        hashed = old[user] if kept else password_hash(password, secrets.token_bytes(SALT_BYTES))
        users.append(
            {
                "name": user,
                "password_hash": hashed,
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": ["administrator"] if user == OPERATOR else [],
            }
        )
        configure, write, read = rights_of(user, federation)
        permissions.append({"user": user, "vhost": "/", "configure": configure, "write": write, "read": read})
    return {"users": users, "vhosts": [{"name": "/"}], "permissions": permissions}


def read_env(path: Path) -> dict[str, str]:
    """Return the variables that an .env file sets; an empty one counts as not set."""
    if not path.exists():
        return {}
    lines = (line.partition("=") for line in path.read_text(encoding="utf-8").splitlines())
    values = {
        name.strip(): value.strip().strip("\"'") for name, _, value in lines if not name.startswith("#")
    }
    return {name: value for name, value in values.items() if value}


def append_env(path: Path, values: Mapping[str, str]) -> None:
    """Add variables to an .env file, which only its owner may read; make it when there is none."""
    is_new = not path.exists()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with open(descriptor, "a", encoding="utf-8") as file:
        os.fchmod(descriptor, 0o600)
        if is_new:
            file.write(HEADER)
        elif values and not path.read_text(encoding="utf-8").endswith("\n"):
            file.write("\n")
        file.writelines(f"{name}={value}\n" for name, value in values.items())


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


def main() -> str:
    """Make what is missing, and return what is to be said about it."""
    env = read_env(ENV_FILE)
    federation = os.environ.get(FEDERATION) or env.get(FEDERATION) or DEFAULT_FEDERATION
    if not re.fullmatch(r"[a-z][a-z0-9_-]{0,47}", federation):
        sys.exit(
            f"error: {FEDERATION} must be 1 to 48 of a-z, 0-9, _ and -, beginning with a letter, "
            f"not {federation!r}"
        )
    if env.get(FEDERATION, federation) != federation:
        sys.exit(
            f"error: {FEDERATION} is {federation!r}, but {env[FEDERATION]!r} in {ENV_FILE}: change it there"
        )
    for variable in map(variable_of, USERS):
        if variable in env and not re.fullmatch(r"[A-Za-z0-9._~-]+", env[variable]):
            sys.exit(
                f"error: {variable} in {ENV_FILE} may have A-Z, a-z, 0-9 and ._~- only: it goes into a URL"
            )

    wanted = {FEDERATION: federation} | {variable_of(user): secrets.token_urlsafe(24) for user in USERS}
    missing = {name: value for name, value in wanted.items() if name not in env}
    append_env(ENV_FILE, missing)
    known = wanted | env
    passwords = {user: known[variable_of(user)] for user in USERS}
    write_definitions(DEFINITIONS, definitions_of(federation, passwords, read_hashes(DEFINITIONS)))

    made = f"made {', '.join(missing)}" if missing else "has every password already, and is as it was"
    return f"""\
{ENV_FILE.name} {made}
{DEFINITIONS.relative_to(ROOT)} has the users {", ".join(USERS)} for the federation {federation}
RabbitMQ's UI: user {OPERATOR}, password {variable_of(OPERATOR)} in {ENV_FILE.name}
To change a password: delete its line in {ENV_FILE.name}, {AGAIN}"""


if __name__ == "__main__":
    sys.stdout.write(main() + "\n")
