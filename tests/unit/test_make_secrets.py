"""`make secrets`: what it writes, who may read it, and what it lets each user do."""

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

from fluffle.rights import ROLES, permission_definition, rights_of
from fluffle.topology import Topology, topology_of

ROOT = Path(__file__).parents[2]
READ = ("scripts/make_secrets.py", "shared/fluffle/__init__.py", "shared/fluffle/rights.py")
WORKERS = ("worker-0", "worker-1", "worker-2", "worker-3")
HELPERS = ("helper-1", "helper-2", "helper-3")
USERS = {"aggregator", "evaluator", "monitor", "operator", *HELPERS, *WORKERS}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """All of a checkout that the script reads, so that it can need nothing else."""
    for name in READ:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def make_secrets(checkout: Path, *workers: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run it as any python3 would: isolated, and without site-packages."""
    return subprocess.run(
        [sys.executable, "-I", "-S", checkout / "scripts" / "make_secrets.py", *workers],
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def password_file(checkout: Path, user: str) -> Path:
    return checkout / ".secrets" / user


def passwords_in(checkout: Path) -> dict[str, str]:
    return {path.name: path.read_text().strip() for path in (checkout / ".secrets").glob("[!.]*")}


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
    passwords, users = passwords_in(checkout), by_user(checkout, "users", "name")
    assert users.keys() == passwords.keys() == USERS
    assert len(set(passwords.values())) == len(USERS)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{32,}", password) for password in passwords.values())
    assert all(lets_in(users[user]["password_hash"], passwords[user]) for user in USERS)
    assert {user["hashing_algorithm"] for user in users.values()} == {"rabbit_password_hashing_sha256"}
    assert {name: user["tags"] for name, user in users.items() if user["tags"]} == {
        "monitor": ["monitoring"],
        "operator": ["administrator", "impersonator"],
    }


def test_no_password_is_in_the_definitions_or_on_the_screen(checkout: Path) -> None:
    done = make_secrets(checkout)

    shown = done.stdout + done.stderr + definitions_file(checkout).read_text(encoding="utf-8")
    shown += (checkout / ".env").read_text(encoding="utf-8")
    assert not [user for user, password in passwords_in(checkout).items() if password in shown]


@pytest.mark.parametrize("mask", [0o077, 0o000])
def test_only_the_owner_reaches_the_passwords_and_a_container_reads_its_own_file(
    checkout: Path, mask: int
) -> None:
    before = os.umask(mask)
    try:
        make_secrets(checkout)
    finally:
        os.umask(before)

    definitions = definitions_file(checkout)
    paths = (password_file(checkout, "worker-0"), definitions, definitions.parent)
    assert [stat.S_IMODE(path.stat().st_mode) for path in paths] == [0o644, 0o644, 0o755]
    assert stat.S_IMODE((checkout / ".secrets").stat().st_mode) == 0o700


def test_a_second_run_changes_nothing_and_says_how_to_change_a_password(checkout: Path) -> None:
    make_secrets(checkout)
    before = passwords_in(checkout), definitions_file(checkout).read_bytes(), (checkout / ".env").read_bytes()

    again = make_secrets(checkout)

    after = passwords_in(checkout), definitions_file(checkout).read_bytes(), (checkout / ".env").read_bytes()
    assert after == before
    assert "To change a password: delete its file" in again.stdout


def test_a_password_whose_file_was_deleted_is_drawn_anew_and_the_others_stay(checkout: Path) -> None:
    make_secrets(checkout)
    before, hashes = passwords_in(checkout), by_user(checkout, "users", "name")
    password_file(checkout, "worker-2").unlink()

    make_secrets(checkout)

    after, users = passwords_in(checkout), by_user(checkout, "users", "name")
    assert {name for name in before if after[name] != before[name]} == {"worker-2"}
    assert {name for name in users if users[name] != hashes[name]} == {"worker-2"}
    assert lets_in(users["worker-2"]["password_hash"], after["worker-2"])


def test_more_workers_are_made_by_name_and_remembered(checkout: Path) -> None:
    make_secrets(checkout, "worker-4", "site-north")

    make_secrets(checkout)

    permissions = by_user(checkout, "permissions", "user")
    assert permissions.keys() == USERS | {"worker-4", "site-north"} == passwords_in(checkout).keys()
    for name in ("worker-0", "worker-4", "site-north"):
        assert permissions[name] == permission_definition(name, rights_of("worker", "digits", name), "/")


def test_other_lines_in_env_are_kept(checkout: Path) -> None:
    (checkout / ".env").write_text("FLUFFLE_TARGET=0.9")

    make_secrets(checkout)

    assert (checkout / ".env").read_text() == "FLUFFLE_TARGET=0.9\nFLUFFLE_FEDERATION=digits\n"


@pytest.mark.parametrize("federation", ["digits", "north-sea_2"])
def test_the_rights_are_those_that_the_permission_matrix_tries(checkout: Path, federation: str) -> None:
    make_secrets(checkout, FLUFFLE_FEDERATION=federation)

    permissions, users = by_user(checkout, "permissions", "user"), by_user(checkout, "users", "name")
    for name in USERS:
        role = name if name in ROLES else "worker"
        rights = rights_of("helper" if name in HELPERS else role, federation, name)
        found = permissions[name]
        assert found == {"user": name, "vhost": "/", **rights.patterns}
        assert users[name]["tags"] == sorted(rights.tags)


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
    others = [
        f"{federation}x.models",
        f"x{federation}.updates",
        f"{federation}_models",
        f"{federation}.records.x",
        "amq.default",
        "",
    ]
    names = names_in(topology) | {*others}
    for user, exchange in (("worker-3", topology.updates_in), ("evaluator", topology.evaluations_in)):
        rights = permissions[user]
        writes = {exchange.name, topology.member_events_in.name}
        assert {name for name in names if may(rights, "write", name)} == writes
        assert {name for name in names if may(rights, "read", name)} == {
            topology.models.name,
            topology.best.name,
            topology.records.name,
        }
        assert not [name for name in names if name and may(rights, "configure", name)]


def test_the_aggregator_may_do_everything_in_its_federation_and_nothing_in_another(checkout: Path) -> None:
    make_secrets(checkout, FLUFFLE_FEDERATION="digits")

    rights = by_user(checkout, "permissions", "user")["aggregator"]
    own, other = names_in(topology_of("digits")), names_in(topology_of("digits2"))
    for action in ("configure", "write", "read"):
        assert {name for name in own | other if may(rights, action, name)} == own
        assert not may(rights, action, "amq.default")  # it would be a right to every queue


@pytest.mark.parametrize(
    ("env", "workers", "environment", "said"),
    [
        ("", (), {"FLUFFLE_FEDERATION": "Digits!"}, "must be 1 to 48 of a-z"),
        ("FLUFFLE_FEDERATION=digits\n", (), {"FLUFFLE_FEDERATION": "faces"}, "'digits' in"),
        ("", ("../me",), {}, "a worker's name must be"),
    ],
)
def test_impossible_settings_are_one_sentence_and_nothing_is_written(
    checkout: Path, env: str, workers: tuple[str, ...], environment: dict[str, str], said: str
) -> None:
    (checkout / ".env").write_text(env)

    done = make_secrets(checkout, *workers, **environment)

    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
    assert (checkout / ".env").read_text() == env
    assert not definitions_file(checkout).exists()
    assert not (checkout / ".secrets").exists()


def test_an_empty_password_is_refused(checkout: Path) -> None:
    make_secrets(checkout)
    password_file(checkout, "operator").write_text("\n")

    done = make_secrets(checkout)

    assert done.returncode == 1
    assert "operator must hold one password" in done.stderr


def test_the_nodes_of_a_cluster_get_a_cookie_that_stays_and_is_nobodys_password(checkout: Path) -> None:
    cookie = checkout / ".secrets" / ".erlang.cookie"

    make_secrets(checkout)
    drawn = cookie.read_text()
    make_secrets(checkout)

    assert len(drawn) > 30
    assert cookie.read_text() == drawn
    assert by_user(checkout, "users", "name").keys() == USERS
