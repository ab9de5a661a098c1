"""Settings: where they come from, who wins, and what is said when one is wrong."""

from pathlib import Path
from typing import ClassVar, Literal

import pytest
from pydantic import Field, ValidationError

from fluffle.errors import ConfigError
from fluffle.settings import SharedSettings, load_settings


class PartSettings(SharedSettings):
    part: ClassVar[str] = "aggregator"

    buffer_size: int = Field(10, ge=1, le=1000, description="Updates in one version.")
    server_learning_rate: float = Field(1.0, gt=0, description="How far a version steps.")
    strategy: Literal["fedasync", "fedbuff"] = Field("fedbuff", description="How updates become versions.")
    start: Path | None = Field(None, description="Model file to start from.")


class NeedySettings(SharedSettings):
    part: ClassVar[str] = "worker"

    task: str = Field(description="What to train.")


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (*PartSettings.model_fields, "task"):
        monkeypatch.delenv(f"FLUFFLE_{name.upper()}", raising=False)


def write_config(text: str, path: str = "fluffle.toml") -> Path:
    Path(path).write_text(text, encoding="utf-8")
    return Path(path)


def sentence_for(given: dict[str, object] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings(PartSettings, given or {})
    return str(caught.value)


def test_without_anything_said_the_defaults_hold() -> None:
    settings = load_settings(PartSettings, {})

    assert settings.federation == "digits"
    assert settings.broker_url == "amqp://127.0.0.1:5672/%2F"
    assert settings.buffer_size == 10


def test_a_flag_wins_over_the_environment_over_the_table_over_the_top_level_over_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heartbeats = []

    heartbeats.append(load_settings(PartSettings, {}).heartbeat_s)
    write_config("heartbeat_s = 31")
    heartbeats.append(load_settings(PartSettings, {}).heartbeat_s)
    write_config("heartbeat_s = 31\n[aggregator]\nheartbeat_s = 32")
    heartbeats.append(load_settings(PartSettings, {}).heartbeat_s)
    monkeypatch.setenv("FLUFFLE_HEARTBEAT_S", "33")
    heartbeats.append(load_settings(PartSettings, {}).heartbeat_s)
    heartbeats.append(load_settings(PartSettings, {"heartbeat_s": "34"}).heartbeat_s)

    assert heartbeats == [20, 31, 32, 33, 34]


def test_an_empty_environment_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    write_config("[aggregator]\nbuffer_size = 3")
    monkeypatch.setenv("FLUFFLE_BUFFER_SIZE", "")

    settings = load_settings(PartSettings, {})

    assert settings.buffer_size == 3


def test_variables_and_tables_of_other_parts_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUFFLE_LOCAL_EPOCHS", "5")
    write_config("[worker]\ntask = 'digits'")

    settings = load_settings(PartSettings, {})

    assert settings == PartSettings()


def test_the_file_named_by_the_variable_is_read_and_one_named_by_the_flag_instead_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_config("federation = 'here'")
    write_config("federation = 'by-variable'", "variable.toml")
    by_flag = write_config("federation = 'by-flag'", "flag.toml")
    monkeypatch.setenv("FLUFFLE_CONFIG", "variable.toml")

    assert load_settings(PartSettings, {}).federation == "by-variable"
    assert load_settings(PartSettings, {"config": by_flag}).federation == "by-flag"


def test_settings_cannot_be_changed_afterwards() -> None:
    settings = load_settings(PartSettings, {})

    with pytest.raises(ValidationError):
        settings.__setattr__("buffer_size", 3)


def test_a_wrong_value_is_named_by_where_it_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    write_config("[aggregator]\nbuffer_size = 0")
    in_file = sentence_for()
    monkeypatch.setenv("FLUFFLE_BUFFER_SIZE", "0")
    in_environment = sentence_for()
    by_flag = sentence_for({"buffer_size": "0"})

    assert in_file == "buffer_size in [aggregator] of fluffle.toml must be greater than or equal to 1, not 0"
    assert in_environment == "FLUFFLE_BUFFER_SIZE must be greater than or equal to 1, not 0"
    assert by_flag == "--buffer-size must be greater than or equal to 1, not 0"


def test_a_wrong_value_at_the_top_level_is_named_without_a_table() -> None:
    write_config("heartbeat_s = 0")

    assert sentence_for() == "heartbeat_s in fluffle.toml must be greater than or equal to 1, not 0"


@pytest.mark.parametrize(
    ("name", "value", "demand"),
    [
        ("buffer_size", "many", "--buffer-size must be a valid integer, not 'many'"),
        ("buffer_size", "2.5", "--buffer-size must be a valid integer, not 2.5"),
        ("buffer_size", "1001", "--buffer-size must be less than or equal to 1000, not 1001"),
        ("server_learning_rate", "0", "--server-learning-rate must be greater than 0, not 0"),
        ("server_learning_rate", "nan", "--server-learning-rate must be a finite number, not 'nan'"),
        ("server_learning_rate", "fast", "--server-learning-rate must be a valid number, not 'fast'"),
        ("connect_timeout_s", "0", "--connect-timeout-s must be greater than 0, not 0"),
        ("strategy", "fedsgd", "--strategy must be 'fedasync' or 'fedbuff', not 'fedsgd'"),
        ("log_format", "xml", "--log-format must be 'auto', 'pretty' or 'json', not 'xml'"),
        ("verbose", "perhaps", "--verbose must be a valid boolean, not 'perhaps'"),
    ],
)
def test_a_wrong_value_is_refused_with_what_was_expected_and_found(
    name: str, value: str, demand: str
) -> None:
    assert sentence_for({name: value}) == demand


def test_a_value_of_the_wrong_kind_in_the_file_is_refused() -> None:
    write_config("federation = 5")

    as_text = sentence_for()
    write_config("[aggregator]\nstart = 5")
    as_path = sentence_for()

    assert as_text == "federation in fluffle.toml must be text, not 5"
    assert as_path == "start in [aggregator] of fluffle.toml must be a valid path, not 5"


def test_all_wrong_values_are_named_at_once() -> None:
    sentence = sentence_for({"buffer_size": "0", "heartbeat_s": "x"})

    assert "--buffer-size must be greater than or equal to 1, not 0" in sentence
    assert "--heartbeat-s must be a valid integer, not 'x'" in sentence
    assert "\n" not in sentence


def test_a_setting_that_has_no_default_is_asked_for_by_all_its_names() -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(NeedySettings, {})

    assert str(caught.value) == (
        "task is not set: give --task, FLUFFLE_TASK or task in [worker] of the TOML file"
    )


@pytest.mark.parametrize("name", ["digits.eu", "Digits", "1digits", "", "a" * 49, "digits\n"])
def test_a_federation_name_that_no_queue_can_bear_is_refused(name: str) -> None:
    sentence = sentence_for({"federation": name})

    assert sentence.startswith("--federation must be 1 to 48 of a-z, 0-9, _ and -")
    assert sentence.endswith(f"not {name!r}")


@pytest.mark.parametrize("name", ["d", "digits", "site_a-2", "a" * 48])
def test_a_plain_federation_name_is_taken(name: str) -> None:
    assert load_settings(PartSettings, {"federation": name}).federation == name


def test_an_unknown_key_is_named_with_its_file_the_known_ones_and_the_closest() -> None:
    write_config("broker-url = 'amqp://h'")

    sentence = sentence_for()

    assert sentence.startswith("unknown setting 'broker-url' in fluffle.toml (did you mean broker_url?)")
    assert "known are broker_ca_file, broker_cert_file, broker_key_file, broker_password_file" in sentence
    assert "and the tables aggregator" in sentence


def test_an_unknown_key_in_the_parts_table_is_named_with_the_table() -> None:
    write_config("[aggregator]\nbufer_size = 3")

    sentence = sentence_for()

    assert sentence.startswith(
        "unknown setting 'bufer_size' in [aggregator] of fluffle.toml (did you mean buffer_size?)"
    )
    assert "server_learning_rate" in sentence


def test_a_misspelt_table_is_refused() -> None:
    write_config("[agregator]\nbuffer_size = 3")

    assert "(did you mean aggregator?)" in sentence_for()


def test_a_parts_setting_at_the_top_level_is_sent_to_its_table() -> None:
    write_config("buffer_size = 3")

    assert sentence_for() == (
        "buffer_size in fluffle.toml must stand in the table [aggregator], not at the top level"
    )


def test_a_value_where_the_parts_table_should_be_is_refused() -> None:
    write_config("aggregator = 5")

    assert sentence_for() == "aggregator in fluffle.toml must be a table, written [aggregator], not 5"


def test_a_configuration_file_that_is_not_there_is_named_with_who_asked_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    by_flag = sentence_for({"config": Path("gone.toml")})
    monkeypatch.setenv("FLUFFLE_CONFIG", "lost.toml")
    by_variable = sentence_for()

    assert by_flag == "--config gone.toml cannot be read: No such file or directory"
    assert by_variable == "FLUFFLE_CONFIG lost.toml cannot be read: No such file or directory"


def test_a_configuration_that_cannot_be_read_is_refused_with_the_reason() -> None:
    write_config("federation = ")
    Path("latin.toml").write_bytes(b"federation = '\xe9'")
    Path("folder.toml").mkdir()

    assert sentence_for().startswith("the configuration fluffle.toml is not valid TOML: ")
    assert sentence_for({"config": Path("latin.toml")}) == (
        "--config latin.toml cannot be read: it is not UTF-8 text"
    )
    assert sentence_for({"config": Path("folder.toml")}) == (
        "--config folder.toml cannot be read: Is a directory"
    )


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("http://rabbit", "does not begin with amqp:// or amqps://"),
        ("rabbit:5672", "does not begin with amqp:// or amqps://"),
        ("amqp://", "has no host"),
        ("amqp://rabbit:0", "has no host, or a port that is not a number from 1 to 65535"),
        ("amqp://rabbit:99999", "has no host, or a port that is not a number from 1 to 65535"),
        ("amqp://rabbit/a/b", "has a / in the virtual host (write %2F)"),
        ("amqp://rabbit /", "contains a ?, a # or a space"),
        ("amqp://rabbit\n", "contains a ?, a # or a space"),
        ("amqp://rabbit?heartbeat=5", "contains a ?, a # or a space"),
        ("amqp://alice@[::1", "has no host"),
        ("amqp://a:1,,b", "has no host"),
        ("amqp://a,b:0", "has no host, or a port that is not a number from 1 to 65535"),
    ],
)
def test_a_wrong_broker_url_is_refused_with_its_fault_and_what_was_expected(url: str, fault: str) -> None:
    sentence = sentence_for({"broker_url": url})

    assert sentence.startswith("--broker-url must look like amqp://user:password@host:5672/%2F")
    assert f"but it {fault}" in sentence


@pytest.mark.parametrize(
    "url",
    ["amqp://rabbit", "amqps://u:p%40ss@rabbit:5671/%2F", "amqp://[::1]:5672/home", "amqp://a:1,b,[::1]:2/x"],
)
def test_a_right_broker_url_is_taken_as_it_is(url: str) -> None:
    assert load_settings(PartSettings, {"broker_url": url}).broker_url == url


@pytest.mark.parametrize(
    "url",
    [
        "http://alice:secret@rabbit",
        "alice:secret@rabbit",
        "amqp://alice:x@secret@rabbit:port",
        "amqp://alice:x/secret@rabbit/a/b",
        "amqp://alice:x://secret@rabbit/a/b",
        "amqp://alice:x?secret@rabbit",
        "amqp://alice:x#secret@rabbit",
        "amqp://alice:secret",
        "amqp://alice:12,secret:word",
        "amqps://rabbit/%2F?ssl_options=secret",
    ],
)
def test_no_error_and_no_traceback_shows_the_password(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(PartSettings, {"broker_url": url})

    assert "secret" not in str(caught.value)
    assert "secret" not in str(caught.value.__cause__)


def test_settings_that_are_printed_or_dumped_show_no_password() -> None:
    settings = load_settings(PartSettings, {"broker_url": "amqp://alice:secret@rabbit"})

    for text in (repr(settings), str(settings), str(settings.model_dump()), settings.model_dump_json()):
        assert "secret" not in text


def test_the_password_comes_from_its_file() -> None:
    Path("password").write_text("p@ss/word\n", encoding="utf-8")
    given = {"broker_url": "amqp://alice@rabbit:5672/%2F", "broker_password_file": "password"}

    settings = load_settings(PartSettings, given)

    assert settings.broker_address().login() == ("alice", "p@ss/word")


def test_without_a_password_file_the_password_is_the_urls() -> None:
    settings = load_settings(PartSettings, {"broker_url": "amqp://alice:secret@rabbit"})

    assert settings.broker_address().login() == ("alice", "secret")


def test_a_password_file_that_is_missing_or_empty_is_refused() -> None:
    Path("empty").write_text("\n", encoding="utf-8")
    alice = {"broker_url": "amqp://alice@rabbit"}
    missing = load_settings(PartSettings, alice | {"broker_password_file": "gone"})
    empty = load_settings(PartSettings, alice | {"broker_password_file": "empty"})

    with pytest.raises(ConfigError, match=r"^broker_password_file gone cannot be read: No such file"):
        missing.broker_address()
    with pytest.raises(ConfigError, match=r"^broker_password_file empty is empty: it must hold"):
        empty.broker_address()


def test_two_passwords_are_refused_and_so_is_a_password_without_a_user() -> None:
    two = sentence_for({"broker_url": "amqp://a:secret@rabbit", "broker_password_file": "password"})
    nobody = sentence_for({"broker_url": "amqp://rabbit:5672", "broker_password_file": "password"})

    assert two == "broker_url has a password and broker_password_file is set too: give only one"
    assert nobody == "broker_password_file needs a user in broker_url, as in amqp://user@host:5672"


def test_the_file_cannot_name_another_file() -> None:
    write_config("config = 'other.toml'")

    assert sentence_for().startswith("unknown setting 'config' in fluffle.toml")


def test_every_shared_setting_says_what_it_means() -> None:
    for name, field in SharedSettings.model_fields.items():
        assert field.description, name
