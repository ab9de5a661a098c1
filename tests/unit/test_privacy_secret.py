"""The file with the secret of the noise is made once, for its owner alone, and read whole or not at all."""

import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fluffle.errors import ConfigError
from fluffle.privacy.secret_file import read_secret
from fluffle_cli.main import app


def make_secret(path: Path) -> Result:
    return CliRunner().invoke(app, ["privacy", "secret", str(path)])


def test_the_file_has_one_line_that_only_its_owner_may_read_and_that_is_not_printed(tmp_path: Path) -> None:
    path = tmp_path / "secrets" / "noise.secret"

    done = make_secret(path)

    assert done.exit_code == 0, done.stderr
    content = path.read_text()
    assert len(content) == 65
    assert content.endswith("\n")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert f"made {path}: give it to each aggregator" in done.stdout
    assert content.strip() not in done.output
    secret = read_secret(path)
    assert secret.secret.hex() == content.strip()
    assert content.strip() not in repr(secret)


def test_two_secrets_differ_and_none_is_overwritten(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    make_secret(one)
    make_secret(other)
    before = one.read_bytes()

    again = make_secret(one)

    assert again.exit_code == 2
    assert "exists, and secrets are never overwritten: move it away first" in again.stderr
    assert one.read_bytes() == before
    assert read_secret(one).commitment != read_secret(other).commitment


def test_a_secret_in_a_file_of_windows_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "noise.secret"
    make_secret(path)
    before = read_secret(path)

    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))

    assert read_secret(path) == before


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"0" * 63,
        b"0" * 65,
        b"G" * 64,
        b"0" * 64 + b"\n\n",
        b"00 " * 32,
        b"\n" + b"0" * 64,
        b"\xff" * 32,
        b"ab" * 32 + b"\n" + b"ab" * 32,
    ],
)
def test_what_is_no_secret_is_refused_without_what_is_in_the_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "noise.secret"
    path.touch(mode=0o600)
    path.write_bytes(content)

    with pytest.raises(ConfigError, match="does not hold the secret of the noise, one line of 64") as raised:
        read_secret(path)

    assert "abab" not in str(raised.value)


def test_a_secret_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "noise.secret"
    make_secret(path)
    path.chmod(0o640)

    with pytest.raises(ConfigError, match=r"others may read the secret in .*: chmod 600"):
        read_secret(path)


def test_a_file_that_is_not_there_or_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*: No such file or directory"):
        read_secret(tmp_path / "missing")

    (tmp_path / "file").touch()
    done = make_secret(tmp_path / "file" / "noise.secret")

    assert done.exit_code == 2
    assert "error: cannot write" in done.stderr
