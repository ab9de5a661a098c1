"""The files of a helper: what it refuses to start with, and what is said about it."""

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helping import Keys, first_close

from fluffle.errors import ConfigError
from fluffle.secure.helping import Ledger
from fluffle.secure.key_files import HelperKey, read_private
from fluffle.secure.ledger_file import write_ledger
from fluffle_helper.own_files import HelperFiles
from fluffle_helper.running import run_helper


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path)


def files_of(keys: Keys, helper: str = "helper-1", federation: str = "digits") -> HelperFiles:
    return HelperFiles(
        key=keys.key(helper), registry=keys.registry, operator=keys.operator, federation=federation
    )


def refusal(keys: Keys, **settings: Any) -> str:
    """Return why a helper does not start; it is refused before it connects."""
    given: dict[str, Any] = {
        "secure_key": keys.key(),
        "secure_registry": keys.registry,
        "secure_operator": keys.operator,
        **settings,
    }
    with pytest.raises(ConfigError) as refused:
        run_helper(stop=None, broker_url="amqp://127.0.0.1:1", connect_timeout_s=0.1, **given)
    return str(refused.value)


def test_keys_come_with_an_empty_ledger_that_only_its_owner_can_read(keys: Keys) -> None:
    own = files_of(keys).read()

    assert own.ledger == Ledger(1)
    assert (own.key.name, own.registry.epoch) == ("helper-1", 1)
    assert stat.S_IMODE(keys.ledger().stat().st_mode) == 0o600


def test_a_saved_ledger_is_read_again_and_counts_as_no_change(keys: Keys) -> None:
    files = files_of(keys)
    own = files.read()
    ledger, _ = own.ledger.checked(first_close(), own.registry)

    files.save(ledger, own.key)

    assert not files.have_changed()
    assert files.read().ledger == ledger
    assert stat.S_IMODE(keys.ledger().stat().st_mode) == 0o600
    keys.sign()
    assert files.have_changed()


def lose(keys: Keys) -> None:
    keys.ledger().unlink()


def damage(keys: Keys) -> None:
    body = bytearray(keys.ledger().read_bytes())
    body[20] ^= 1
    keys.ledger().write_bytes(body)


def truncate(keys: Keys) -> None:
    keys.ledger().write_bytes(keys.ledger().read_bytes()[:-9])


def empty(keys: Keys) -> None:
    keys.ledger().write_bytes(b"")


def swap_ledger(keys: Keys) -> None:
    keys.ledger("helper-2").replace(keys.ledger())


def lose_key(keys: Keys) -> None:
    keys.key().unlink()


def swap_key(keys: Keys) -> None:
    keys.key("helper-2").replace(keys.key())


def rotate(keys: Keys) -> None:
    keys.rotate()


def rotate_key_alone(keys: Keys) -> None:
    ledger = keys.ledger().read_bytes()
    keys.rotate()
    keys.hand_over("helper-1", 2)
    keys.ledger().write_bytes(ledger)


def forge(keys: Keys) -> None:
    keys.registry.write_text(keys.registry.read_text().replace('"w4"', '"w5"'))


def open_key(keys: Keys) -> None:
    keys.key().chmod(0o640)


def lose_registry(keys: Keys) -> None:
    keys.registry.unlink()


def other_operator(keys: Keys) -> None:
    keys.operator.write_text("ab" * 32)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lose, "helper-1.ledger is lost: without it a helper cannot know which updates it has opened"),
        (lose, "rotate the keys (`fluffle keys rotate`)"),
        (damage, "helper-1.ledger is damaged, or not that of helper-1"),
        (truncate, "helper-1.ledger is damaged"),
        (empty, "helper-1.ledger is damaged"),
        (swap_ledger, "helper-1.ledger is damaged, or not that of helper-1"),
        (lose_key, "helper-1.key: No such file or directory"),
        (swap_key, "helper-1.ledger is damaged, or not that of helper-2"),
        (rotate, "registry.json is of digits, epoch 2, and "),
        (rotate_key_alone, "helper-1.ledger is of epoch 1, and "),
        (forge, "the registry is not signed with this operator's key, or was changed afterwards"),
        (open_key, "others may read the secret"),
        (lose_registry, "cannot read the registry"),
        (other_operator, "registry.json: "),
    ],
)
def test_with_wrong_files_a_helper_does_not_start(
    keys: Keys, spoil: Callable[[Keys], None], says: str
) -> None:
    spoil(keys)

    assert says in refusal(keys)


def test_a_key_of_another_federation_or_of_another_set_of_keys_is_refused(keys: Keys, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Keys(tmp_path / "other")

    assert "is a key for the federation digits, and this helper is started for wards" in refusal(
        keys, federation="wards"
    )
    assert "has other keys than" in refusal(keys, secure_key=other.key())


def test_fewer_than_two_workers_would_open_a_single_update(keys: Keys) -> None:
    assert "secure_min_workers must be greater than or equal to 2, not 1" in refusal(
        keys, secure_min_workers=1
    )


def test_a_second_process_of_one_machine_is_refused(keys: Keys) -> None:
    with files_of(keys).locked():
        assert "another process uses" in refusal(keys)
    with files_of(keys).locked():
        pass


def test_a_folder_in_which_nothing_can_be_written_is_named(keys: Keys) -> None:
    files = files_of(keys)
    keys.key().with_suffix(".lock").mkdir()

    with pytest.raises(ConfigError, match="must lie where it may write"), files.locked():
        pass


def test_a_ledger_that_cannot_be_written_says_so(keys: Keys, tmp_path: Path) -> None:
    key = read_private(keys.key(), HelperKey)

    with pytest.raises(ConfigError, match="cannot write"):
        write_ledger(tmp_path / "nowhere" / "helper-1.ledger", Ledger(1), key)
