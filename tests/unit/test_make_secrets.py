"""`make secrets`: what it writes, who may read it, and what it lets each user do."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fluffle.topology import Topology, topology_of

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_secrets.py"
USERS = {"aggregator", "worker", "evaluator", "operator"}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPT, tmp_path / "scripts")
    return tmp_path


def make_secrets(checkout: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run it as any python3 would: isolated, and without site-packages."""
    return subprocess.run(
        [sys.executable, "-I", "-S", checkout / "scripts" / "make_secrets.py"],
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def env_of(checkout: Path) -> dict[str, str]:
    lines = (checkout / ".env").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if not line.startswith("#"))


def definitions_file(checkout: Path) -> Path:
    return checkout / "broker_config" / "generated" / "definitions.json"


def by_user(checkout: Path, kind: str, key: str) -> dict[str, dict[str, Any]]:
    entries = json.loads(definitions_file(checkout).read_text(encoding="utf-8"))[kind]
    return {entry[key]: entry for entry in entries}


def lets_in(hashed: str, password: str) -> bool:
    """Check a password as RabbitMQ does: four bytes of salt, then sha256 of the salt and the password."""
    decoded = base64.b64decode(hashed, validate=True)
    return decoded[4:] == hashlib.sha256(decoded[:4] + password.encode()).digest()


def test_the_check_in_this_file_agrees_with_the_example_of_rabbitmqs_manual() -> None:
    assert lets_in("kI3GCqW5JLMJa4iX1lo7X4D6XbYqlLgxIs30+P6tENUV2POR", "test12")
    assert not lets_in("kI3GCqW5JLMJa4iX1lo7X4D6XbYqlLgxIs30+P6tENUV2POR", "test13")


def test_each_user_has_a_long_password_that_rabbitmq_will_take(checkout: Path) -> None:
    done = make_secrets(checkout)

    assert done.returncode == 0, done.stderr
    env, users = env_of(checkout), by_user(checkout, "users", "name")
    assert users.keys() == USERS
    passwords = {user: env[f"FLUFFLE_{user.upper()}_PASSWORD"] for user in USERS}
    assert len(set(passwords.values())) == len(USERS)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{32,}", password) for password in passwords.values())
    assert all(lets_in(users[user]["password_hash"], passwords[user]) for user in USERS)
    assert {user["hashing_algorithm"] for user in users.values()} == {"rabbit_password_hashing_sha256"}
    assert {name: user["tags"] for name, user in users.items() if user["tags"]} == {
        "operator": ["administrator"]
    }


def test_no_password_stands_in_the_definitions_or_on_the_screen(checkout: Path) -> None:
    done = make_secrets(checkout)

    shown = done.stdout + done.stderr + definitions_file(checkout).read_text(encoding="utf-8")
    assert not [name for name, value in env_of(checkout).items() if "PASSWORD" in name and value in shown]


def test_only_the_owner_reads_the_passwords_and_the_container_reads_the_definitions(checkout: Path) -> None:
    before = os.umask(0o077)
    try:
        make_secrets(checkout)
    finally:
        os.umask(before)

    modes = {
        path.name: stat.S_IMODE(path.stat().st_mode)
        for path in (checkout / ".env", definitions_file(checkout), definitions_file(checkout).parent)
    }
    assert modes == {".env": 0o600, "definitions.json": 0o644, "generated": 0o755}


def test_a_second_run_changes_nothing_and_says_how_to_change_a_password(checkout: Path) -> None:
    make_secrets(checkout)
    before = (checkout / ".env").read_bytes(), definitions_file(checkout).read_bytes()

    again = make_secrets(checkout)

    assert ((checkout / ".env").read_bytes(), definitions_file(checkout).read_bytes()) == before
    assert "To change a password: delete its line" in again.stdout


def test_a_password_whose_line_was_deleted_is_drawn_anew_and_the_others_stay(checkout: Path) -> None:
    make_secrets(checkout)
    before, hashes = env_of(checkout), by_user(checkout, "users", "name")
    kept = [line for line in (checkout / ".env").read_text().splitlines() if "WORKER" not in line]
    (checkout / ".env").write_text("\n".join(kept))

    make_secrets(checkout)

    after, users = env_of(checkout), by_user(checkout, "users", "name")
    assert {name for name in before if after[name] != before[name]} == {"FLUFFLE_WORKER_PASSWORD"}
    assert {name for name in users if users[name] != hashes[name]} == {"worker"}
    assert lets_in(users["worker"]["password_hash"], after["FLUFFLE_WORKER_PASSWORD"])


def test_what_else_stands_in_env_is_kept(checkout: Path) -> None:
    (checkout / ".env").write_text("FLUFFLE_TARGET=0.9\n")

    make_secrets(checkout)

    assert env_of(checkout)["FLUFFLE_TARGET"] == "0.9"
    assert stat.S_IMODE((checkout / ".env").stat().st_mode) == 0o600


def names_in(topology: Topology) -> set[str]:
    return {each.name for each in topology.exchanges} | {each.name for each in topology.queues}


def may(permissions: Mapping[str, str], action: str, name: str) -> bool:
    """Tell as RabbitMQ does: the expression is searched for in the name."""
    return re.search(permissions[action], name) is not None


@pytest.mark.parametrize("federation", ["digits", "north-sea_2"])
def test_workers_and_evaluators_publish_updates_and_read_models_and_nothing_else(
    checkout: Path, federation: str
) -> None:
    make_secrets(checkout, FLUFFLE_FEDERATION=federation)

    topology = topology_of(federation)
    permissions = by_user(checkout, "permissions", "user")
    others = [f"{federation}x.models", f"x{federation}.updates", f"{federation}_models", "amq.default", ""]
    names = names_in(topology) | {*others}
    for user, exchange in (("worker", topology.updates_in), ("evaluator", topology.evaluations_in)):
        rights = permissions[user]
        assert {name for name in names if may(rights, "write", name)} == {exchange.name}
        assert {name for name in names if may(rights, "read", name)} == {topology.models.name}
        assert not [name for name in names if name and may(rights, "configure", name)]


def test_the_aggregator_may_do_everything_in_its_federation_and_nothing_in_another(checkout: Path) -> None:
    make_secrets(checkout, FLUFFLE_FEDERATION="digits")

    rights = by_user(checkout, "permissions", "user")["aggregator"]
    own, other = names_in(topology_of("digits")), names_in(topology_of("digits2"))
    for action in ("configure", "write", "read"):
        assert {name for name in own | other if may(rights, action, name)} == own
    assert may(rights, "write", "amq.default")  # the moments go to the head queue alone


@pytest.mark.parametrize(
    ("env", "environment", "said"),
    [
        ("", {"FLUFFLE_FEDERATION": "Digits!"}, "must be 1 to 48 of a-z"),
        ("FLUFFLE_FEDERATION=digits\n", {"FLUFFLE_FEDERATION": "faces"}, "'digits' in"),
        ("FLUFFLE_WORKER_PASSWORD=a/b@c\n", {}, "FLUFFLE_WORKER_PASSWORD in"),
    ],
)
def test_what_cannot_work_is_one_sentence_and_nothing_is_written(
    checkout: Path, env: str, environment: dict[str, str], said: str
) -> None:
    (checkout / ".env").write_text(env)

    done = make_secrets(checkout, **environment)

    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
    assert (checkout / ".env").read_text() == env
    assert not definitions_file(checkout).exists()
