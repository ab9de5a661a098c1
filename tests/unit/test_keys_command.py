"""`fluffle keys`: who makes which keys, what the operator signs, and what is refused."""

import json
import shutil
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fluffle.errors import ConfigError
from fluffle.secure.key_files import HelperKey, WorkerKey, read_operator, read_private
from fluffle.secure.masks import Masked, mask_key
from fluffle.secure.registry import Registry, read_registry
from fluffle.update import UpdateId
from fluffle_cli.main import app

HELPERS = ("helper-1", "helper-2", "helper-3")


@pytest.fixture(autouse=True)
def _in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def keys(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["keys", *arguments])


def made(*workers: str) -> Registry:
    """Make all keys, and return the registry that the operator signs."""
    commands = [("init",), ("helpers", *HELPERS), *(("worker", name) for name in workers)]
    for command in [*commands, ("registry", *(f"{name}.pub" for name in workers))]:
        done = keys(*command)
        assert done.exit_code == 0, done.stderr
    return registry()


def registry() -> Registry:
    return read_registry(Path("keys/registry.json").read_text(), read_operator(Path("keys/operator.pub")))


def test_a_worker_and_the_helpers_of_a_group_agree_on_a_mask_and_others_do_not() -> None:
    found = made("hospital-1", "hospital-2")
    worker = read_private(Path("hospital-1.key"), WorkerKey)
    masked = Masked("digits", 1, UpdateId("hospital-1", "run", 1), 1, 0)
    helpers = {name: read_private(Path(f"keys/epoch-1/{name}.key"), HelperKey) for name in HELPERS}

    for number, members in enumerate(found.committee.groups):
        key = mask_key(worker.private, found.public_group_keys[number], masked, number)
        for name, helper in helpers.items():
            own = [each for each in helper.groups if each.members == members]
            assert len(own) == (name in members)
            for each in own:
                assert mask_key(each.private, found.worker_key("hospital-1"), masked, number) == key
    assert sorted(found.workers) == ["hospital-1", "hospital-2"]


def test_only_the_owner_can_read_private_keys_and_none_is_overwritten_or_shown() -> None:
    made("hospital-1")
    private = [*Path().rglob("*.key")]
    before = {path: path.read_bytes() for path in private}

    again = [keys("init"), keys("worker", "hospital-1")]

    assert len(private) == 5
    assert {stat.S_IMODE(path.stat().st_mode) for path in private} == {0o600}
    assert [done.exit_code for done in again] == [2, 2]
    assert all("exists, and secrets are never overwritten" in done.stderr for done in again)
    assert {path: path.read_bytes() for path in private} == before
    key = read_private(Path("hospital-1.key"), WorkerKey)
    assert key.private_key not in repr(key)


def test_a_key_that_others_may_read_is_refused_with_what_to_do() -> None:
    made("hospital-1")
    Path("hospital-1.key").chmod(0o644)

    with pytest.raises(ConfigError, match=r"others may read the secret in hospital-1\.key: chmod 600"):
        read_private(Path("hospital-1.key"), WorkerKey)


def test_a_registry_keeps_its_workers_and_who_is_revoked_stays_so() -> None:
    made("hospital-1", "hospital-2")
    keys("worker", "hospital-3")

    added = keys("registry", "hospital-3.pub", "--revoke", "hospital-1")
    back = keys("registry", "hospital-1.pub")
    unknown = keys("registry", "--revoke", "hospital-9")

    assert added.exit_code == 0, added.stderr
    found = registry()
    assert sorted(found.workers) == ["hospital-2", "hospital-3"]
    with pytest.raises(ConfigError, match="the worker 'hospital-1' is revoked"):
        found.worker_key("hospital-1")
    with pytest.raises(
        ConfigError, match="the worker 'hospital-9' is not in the registry of digits, epoch 1"
    ):
        found.worker_key("hospital-9")
    assert back.exit_code == unknown.exit_code == 2
    assert "the worker hospital-1 is revoked: let it take another name" in back.stderr
    assert "no worker 'hospital-9' to revoke: registered are hospital-2, hospital-3" in unknown.stderr


def test_it_is_said_of_each_worker_what_has_become_of_it() -> None:
    made("hospital-1", "hospital-2", "hospital-3")
    keys("worker", "hospital-4")

    done = keys("registry", "hospital-1.pub", "hospital-4.pub", "--revoke", "hospital-2")
    again = keys("registry")

    assert done.stdout.splitlines()[1:] == [
        "hospital-1: unchanged",
        "hospital-3: unchanged",
        "hospital-4: added",
        "hospital-2: revoked",
    ]
    assert again.stdout.splitlines()[-1] == "hospital-2: revoked before"


def test_another_key_for_a_registered_worker_is_refused_until_the_keys_are_rotated() -> None:
    before = made("hospital-1", "hospital-2")
    other = keys("worker", "hospital-1", "--folder", "elsewhere")
    assert other.exit_code == 0, other.stderr

    refused = keys("registry", "elsewhere/hospital-1.pub")
    both = keys("registry", "hospital-2.pub", "elsewhere/hospital-1.pub", "hospital-1.pub")
    assert refused.exit_code == both.exit_code == 2
    says = "the worker hospital-1 has another key in epoch 1. If it has lost that key, rotate the keys"
    assert says in refused.stderr
    assert says in both.stderr
    assert registry() == before

    rotated = keys("rotate", "elsewhere/hospital-1.pub")
    assert rotated.exit_code == 0, rotated.stderr
    assert "hospital-1: has a new key" in rotated.stdout
    assert registry().workers["hospital-1"] != before.workers["hospital-1"]
    assert registry().workers["hospital-2"] == before.workers["hospital-2"]


def test_one_worker_with_two_different_keys_and_one_key_with_two_names_are_refused() -> None:
    made("hospital-1")
    keys("worker", "hospital-2")
    keys("worker", "hospital-2", "--folder", "elsewhere")
    Path("hospital-3.pub").write_text(Path("hospital-1.pub").read_text().replace("hospital-1", "hospital-3"))

    twice = keys("registry", "hospital-2.pub", "elsewhere/hospital-2.pub")
    copied = keys("registry", "hospital-3.pub")

    assert (twice.exit_code, copied.exit_code) == (2, 2)
    assert "the worker hospital-2 has another key in epoch 1" in twice.stderr
    assert "one key stands there twice: hospital-1, hospital-3" in copied.stderr


@pytest.mark.parametrize("names", [("a",), ("a", "b"), ("a", "b", "c")])
def test_a_registry_with_too_few_workers_for_any_sum_is_signed_with_a_warning(names: tuple[str, ...]) -> None:
    made(*names)

    done = keys("registry")

    warning = "warning: no sum is opened before 3 workers are registered, and there"
    assert (warning in done.stdout) == (len(names) < 3)
    if len(names) < 3:
        assert done.stdout.rstrip().endswith(f"and there {'is 1' if len(names) == 1 else 'are 2'}")
    assert registry().workers.keys() == set(names)


def test_workers_of_another_federation_are_not_carried_over() -> None:
    made("hospital-1")
    Path("hospital-1.key").unlink()
    foreign = Path("keys/registry.json").read_bytes()
    Path("wards").mkdir()
    Path("keys/operator.key").rename("wards/operator.key")
    for command in (("helpers", *HELPERS), ("worker", "hospital-1")):
        done = keys(*command, "--federation", "wards", "--folder", "wards")
        assert done.exit_code == 0, done.stderr
    Path("wards/registry.json").write_bytes(foreign)

    signed = keys("registry", "wards/hospital-1.pub", "--folder", "wards")
    rotated = keys("rotate", "--folder", "wards")
    helpers = keys("helpers", *HELPERS, "--federation", "clinics", "--folder", "wards")

    says = (
        "wards/registry.json is for the federation digits, and the helpers in wards are for wards: give each "
        "federation a folder of its own (--folder)"
    )
    assert {done.exit_code for done in (signed, rotated, helpers)} == {2}
    assert says in signed.stderr
    assert says in rotated.stderr
    assert "these helpers are for the federation clinics, and the helpers in wards" in helpers.stderr
    assert Path("wards/registry.json").read_bytes() == foreign
    assert not Path("wards/epoch-2").exists()


def test_the_federation_comes_from_the_environment_or_the_file_unless_a_flag_names_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path("fluffle.toml").write_text('federation = "wards"\n')
    keys("worker", "a")
    monkeypatch.setenv("FLUFFLE_FEDERATION", "clinics")
    keys("worker", "b")
    keys("helpers", *HELPERS)
    keys("worker", "c", "--federation", "digits")

    found = [read_private(Path(f"{name}.key"), WorkerKey).federation for name in "abc"]
    assert found == ["wards", "clinics", "digits"]
    assert read_private(Path("keys/epoch-1/helper-1.key"), HelperKey).federation == "clinics"


def test_a_registry_is_not_signed_for_an_older_epoch() -> None:
    made("hospital-1")
    keys("rotate")
    shutil.rmtree("keys/epoch-2")

    done = keys("registry")

    assert done.exit_code == 2
    assert "keys/registry.json is of epoch 2, and the newest groups.json in keys of epoch 1" in done.stderr
    assert registry().epoch == 2


def test_rotated_keys_are_of_the_next_epoch_and_all_workers_stay() -> None:
    first = made("hospital-1")

    done = keys("rotate")

    assert done.exit_code == 0, done.stderr
    second = registry()
    assert second.epoch == 2
    assert second.workers == first.workers
    assert not set(second.group_keys) & set(first.group_keys)
    key = read_private(Path("keys/epoch-2/helper-3.key"), HelperKey)
    assert (key.epoch, len(key.groups)) == (2, 2)
    # The old ones, which were not moved to the helpers, could read old updates.
    assert [*Path("keys/epoch-1").glob("*.key")] == []
    assert "deleted keys/epoch-1/helper-1.key" in done.stdout


def test_an_old_key_that_cannot_be_deleted_is_named_once_the_new_registry_is_signed() -> None:
    made("hospital-1")
    Path("keys/epoch-1/helper-9.key").mkdir()

    done = keys("rotate")

    assert done.exit_code == 2
    assert "the registry of epoch 2 is signed, but keys/epoch-1/helper-9.key cannot be deleted" in done.stderr
    assert registry().epoch == 2


def test_what_was_changed_after_it_was_signed_is_refused() -> None:
    made("hospital-1", "hospital-2")
    path = Path("keys/registry.json")
    text, content = path.read_text(), json.loads(path.read_text())
    operator = read_operator(Path("keys/operator.pub"))
    first, second = (content["registry"]["workers"][name] for name in ("hospital-1", "hospital-2"))
    swapped = text.replace(first, "X").replace(second, first).replace("X", second)

    for changed in (text.replace('"epoch": 1', '"epoch": 2'), swapped):
        with pytest.raises(ConfigError, match="not signed with this operator's key, or was changed"):
            read_registry(changed, operator)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"workers": {"w": "00"}}, "registry.workers.w: Value error, must be 64 hexadecimal digits"),
        ({"workers": {"../w": "ab" * 32}}, "must be 1 to 100 letters"),
        ({"group_keys": ["ab" * 32]}, "3 groups of helpers have 1 keys"),
        ({"workers": {"w": "ab" * 32, "v": "ab" * 32}}, "one key stands there twice: w, v"),
        ({"workers": {"w": "ab" * 32}, "revoked": ["w"]}, "registered and revoked: w"),
        ({"colluding": 3}, "of 3 helpers 1 to 2 may collude, not 3"),
        ({"epoch": 0}, "registry.epoch"),
        ({"helper": 1}, "Extra inputs"),
    ],
)
def test_a_registry_that_cannot_be_is_refused_with_what_is_wrong(
    change: dict[str, object], says: str
) -> None:
    made("hospital-1")
    content = json.loads(Path("keys/registry.json").read_text())
    content["registry"] |= change

    with pytest.raises(ConfigError, match="this is no registry") as refused:
        read_registry(json.dumps(content), read_operator(Path("keys/operator.pub")))

    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("helpers", "a"), "these helpers cannot be: must be 2 to 7 helpers, not 1"),
        (("helpers", "a", "b", "a"), "each helper needs a name of its own"),
        (("helpers", "a", "b c"), "these helpers cannot be: must be 1 to 100 letters"),
        (("helpers", "a", "b", "--colluding", "2"), "of 2 helpers 1 to 1 may collude, not 2"),
        (("worker", "a/b"), "this worker cannot be"),
        (("worker", "a", "--federation", "A"), "--federation must be 1 to 48 of a-z"),
        (("registry",), "cannot read keys/operator.key"),
        (("rotate",), "cannot read keys/operator.key"),
        (("show", "registry.json"), "cannot read registry.json"),
    ],
)
def test_bad_input_is_one_sentence(arguments: tuple[str, ...], says: str) -> None:
    done = keys(*arguments)

    assert done.exit_code == 2, done.stdout
    assert says in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("text", ["", "{", "no registry"])
def test_a_file_that_is_no_json_is_refused_with_what_is_wrong(text: str) -> None:
    made("hospital-1")

    with pytest.raises(ConfigError, match=r"this is no registry: Invalid JSON: \w"):
        read_registry(text, read_operator(Path("keys/operator.pub")))


def test_files_of_another_kind_are_refused_by_name() -> None:
    made("hospital-1")
    keys("worker", "clinic-1", "--federation", "wards")

    wrong = keys("registry", "hospital-1.key")
    foreign = keys("registry", "clinic-1.pub")
    Path("keys/operator.pub").write_text("nobody\n")
    unsigned = keys("show", "keys/registry.json")

    assert "hospital-1.key is no public worker key" in wrong.stderr
    assert read_private(Path("hospital-1.key"), WorkerKey).private_key not in wrong.stderr
    assert "clinic-1's key is for the federation wards, and the helpers are for digits" in foreign.stderr
    assert "does not hold the operator's public key, 64 hexadecimal digits" in unsigned.stderr


def test_a_registry_is_shown_to_whoever_has_the_operators_public_key() -> None:
    made("hospital-1")

    done = keys("show", "keys/registry.json")

    assert done.exit_code == 0, done.stderr
    Path("keys/operator.pub").rename("operator.pub")
    assert keys("show", "keys/registry.json", "--operator", "operator.pub").stdout == done.stdout
    assert "digits, epoch 1: 1 worker, 3 helpers; the operator has signed it" in done.stdout
    assert "hospital-1" in done.stdout
    assert "helper-1, helper-3" in done.stdout
