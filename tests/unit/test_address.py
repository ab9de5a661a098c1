"""Where the broker is and who logs in there: addresses out of settings."""

from pathlib import Path

import pytest

from fluffle.address import in_a_url, parse_address
from fluffle.errors import ConfigError
from fluffle.settings import SharedSettings, load_settings
from fluffle.tls import TlsFiles
from fluffle_cli.certificates import make_certificates


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in SharedSettings.model_fields:
        monkeypatch.delenv(f"FLUFFLE_{name.upper()}", raising=False)


def sentence_for(given: dict[str, object]) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings(SharedSettings, given)
    return str(caught.value)


def test_without_a_password_the_certificate_is_the_login_and_the_url_may_name_its_user() -> None:
    make_certificates(Path("certs"), users=["alice"])
    files = {"broker_cert_file": "certs/users/alice.pem", "broker_key_file": "certs/users/alice.key"}

    def login(url: str) -> tuple[str, str | None]:
        return load_settings(SharedSettings, files | {"broker_url": url}).broker_address().login()

    assert login("amqps://rabbit") == ("alice", None)
    assert login("amqps://al@rabbit") == ("al", None)
    assert login("amqps://bob:secret@rabbit") == ("bob", "secret")


def test_a_user_without_password_and_certificate_is_told_what_is_missing() -> None:
    address = load_settings(SharedSettings, {"broker_url": "amqps://alice@rabbit"}).broker_address()

    with pytest.raises(ConfigError, match="has the user 'alice' but no password: add it there or in"):
        address.login()


def test_files_of_tls_that_nothing_would_use_are_refused() -> None:
    plain = sentence_for({"broker_url": "amqp://a:secret@rabbit", "broker_ca_file": "ca.pem"})
    no_key = sentence_for({"broker_url": "amqps://rabbit", "broker_cert_file": "alice.pem"})
    no_certificate = sentence_for({"broker_url": "amqps://rabbit", "broker_key_file": "alice.key"})

    assert plain == ("broker_ca_file is set, but broker_url does not start with amqps://, as TLS needs")
    assert no_key == "broker_cert_file is set but not broker_key_file: one needs the other"
    assert no_certificate == "broker_key_file is set but not broker_cert_file: one needs the other"


def test_a_cluster_is_all_its_nodes_each_with_a_port_of_its_own() -> None:
    plain = parse_address("amqp://u:p@a,b:1,[::1]:2/home")
    secure = parse_address("amqps://a,b:1")

    assert plain.hosts == (("a", 5672), ("b", 1), ("::1", 2))
    assert (plain.virtual_host, plain.tls) == ("home", None)
    assert secure.hosts == (("a", 5671), ("b", 1))
    assert (secure.virtual_host, secure.tls) == ("/", TlsFiles())


def test_a_password_stays_hidden_when_an_address_is_printed() -> None:
    assert "secret" not in repr(parse_address("amqp://u:secret@rabbit"))


def test_in_a_url_an_ipv6_address_has_brackets_and_every_address_is_this_machine() -> None:
    hosts = ("0.0.0.0", "::", "::1", "192.0.2.7", "host")

    shown = [in_a_url(host) for host in hosts]

    assert shown == ["127.0.0.1", "127.0.0.1", "[::1]", "192.0.2.7", "host"]
