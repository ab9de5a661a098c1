"""Commands made of settings classes: their help, their flags, and how they end."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import typer
from pydantic import BaseModel, Field
from typer.testing import CliRunner, Result

from fluffle.command_line import clean_exit, new_app, plain_command, settings_command
from fluffle.errors import ConfigError, FluffleError
from fluffle.settings import SharedSettings


class BufferSettings(BaseModel):
    buffer_size: int = Field(10, ge=1, description="Updates in one version.")


class PartSettings(BufferSettings, SharedSettings):
    part: ClassVar[str] = "aggregator"

    strategy: Literal["fedasync", "fedbuff"] = Field("fedbuff", description="How updates become versions.")
    start: Path | None = Field(None, description="Model file to start from.")
    commit_after: float | None = Field(
        None, gt=0, description="Commit at the latest then.", json_schema_extra={"metavar": "SECONDS"}
    )
    leave_at_the_end: bool = Field(True, description="Leave when the federation ends.")


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    for name in PartSettings.model_fields:
        monkeypatch.delenv(f"FLUFFLE_{name.upper()}", raising=False)


@pytest.fixture(autouse=True)
def _no_logs_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fluffle.logs.configure", lambda *_, **__: None)


def invoke(*arguments: str, run: Callable[[PartSettings], None] = lambda _: None) -> Result:
    app = new_app()
    app.command("aggregator")(settings_command(PartSettings, run, about="Fold the updates into versions."))
    app.command("other")(lambda: None)
    return CliRunner().invoke(app, ["aggregator", *arguments])


def settings_of(*arguments: str) -> PartSettings:
    seen: list[PartSettings] = []
    result = invoke(*arguments, run=seen.append)
    assert result.exit_code == 0, result.output
    return seen[0]


def line_with(flag: str, text: str) -> str:
    return next(line for line in text.splitlines() if flag in line.split())


def test_help_shows_each_setting_with_its_meaning_its_variable_and_its_default() -> None:
    text = invoke("--help").output

    assert "Fold the updates into versions." in text
    assert "Updates in one version. [env: FLUFFLE_BUFFER_SIZE] [default: 10]" in line_with(
        "--buffer-size", text
    )
    assert "[env: FLUFFLE_START]" in line_with("--start", text)
    assert "[default" not in line_with("--start", text)
    for name in PartSettings.model_fields:
        assert f"[env: FLUFFLE_{name.upper()}]" in text


def test_help_shows_choices_kinds_and_units() -> None:
    text = invoke("--help").output

    assert "One of fedasync, fedbuff." in line_with("--strategy", text)
    assert "INTEGER" in line_with("--buffer-size", text)
    assert "PATH" in line_with("--start", text)
    assert "SECONDS" in line_with("--commit-after", text)
    assert "SECONDS" in line_with("--heartbeat-s", text)
    assert "FILE" in line_with("--config", text)


def test_help_puts_the_parts_own_settings_before_the_shared_ones() -> None:
    text = invoke("--help").output

    panels = [text.index(f"─ {title} ─") for title in ("Aggregator", "Buffer", "Shared")]
    assert panels == sorted(panels)
    assert text.index("--strategy") < text.index("--federation")


def test_flags_that_are_not_given_leave_the_defaults() -> None:
    assert settings_of() == PartSettings()


def test_flags_become_settings_of_their_types() -> None:
    settings = settings_of(
        *("--strategy", "fedasync", "--buffer-size", "3", "--start", "m.keras", "--commit-after", "1.5"),
        *("--no-leave-at-the-end", "--federation", "wine"),
    )

    assert settings.strategy == "fedasync"
    assert settings.buffer_size == 3
    assert settings.start == Path("m.keras")
    assert settings.commit_after == 1.5
    assert settings.leave_at_the_end is False
    assert settings.federation == "wine"


def test_a_flag_wins_over_the_environment_and_that_over_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("my.toml").write_text(
        "[aggregator]\nbuffer_size = 2\nstrategy = 'fedasync'\nleave_at_the_end = true", encoding="utf-8"
    )
    monkeypatch.setenv("FLUFFLE_BUFFER_SIZE", "3")
    monkeypatch.setenv("FLUFFLE_LEAVE_AT_THE_END", "true")

    settings = settings_of("--config", "my.toml", "--no-leave-at-the-end")

    assert settings.strategy == "fedasync"
    assert settings.buffer_size == 3
    assert settings.leave_at_the_end is False


def test_verbose_can_be_said_in_short() -> None:
    assert settings_of("-v").verbose is True
    assert settings_of("--verbose").verbose is True
    assert settings_of().verbose is False


def test_a_wrong_flag_is_one_sentence_and_exit_code_2() -> None:
    result = invoke("--buffer-size", "0")

    assert result.exit_code == 2
    assert result.stderr == "error: --buffer-size must be greater than or equal to 1, not 0\n"
    assert result.stdout == ""


def test_a_choice_that_does_not_exist_is_refused_with_the_ones_that_do() -> None:
    result = invoke("--strategy", "fedsgd")

    assert result.exit_code == 2
    assert result.stderr == "error: --strategy must be 'fedasync' or 'fedbuff', not 'fedsgd'\n"


def test_a_wrong_variable_is_named_as_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUFFLE_BUFFER_SIZE", "0")

    result = invoke()

    assert result.exit_code == 2
    assert result.stderr == "error: FLUFFLE_BUFFER_SIZE must be greater than or equal to 1, not 0\n"


def fail(_: PartSettings) -> None:
    raise FluffleError("the broker at amqp://rabbit is not there: start it")


def test_an_error_of_the_part_is_one_sentence_without_a_traceback() -> None:
    result = invoke(run=fail)

    assert result.exit_code == 2
    assert result.stderr == "error: the broker at amqp://rabbit is not there: start it\n"


def test_verbose_shows_the_traceback_above_the_sentence() -> None:
    result = invoke("-v", run=fail)

    assert result.exit_code == 2
    assert result.stderr.startswith("Traceback (most recent call last)")
    assert "in fail" in result.stderr
    assert result.stderr.endswith("\nerror: the broker at amqp://rabbit is not there: start it\n")


def test_verbose_shows_the_traceback_of_a_wrong_setting_without_the_password() -> None:
    result = invoke("-v", "--broker-url", "http://alice:secret@rabbit")

    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert "secret" not in result.stderr


def test_an_interrupt_ends_with_one_line_and_exit_code_130() -> None:
    def interrupted(_: PartSettings) -> None:
        raise KeyboardInterrupt

    result = invoke(run=interrupted)

    assert result.exit_code == 130
    assert result.stderr == "interrupted\n"


def test_a_bug_passes_through() -> None:
    def buggy(_: PartSettings) -> None:
        raise ZeroDivisionError("a bug")

    result = invoke(run=buggy)

    assert isinstance(result.exception, ZeroDivisionError)


def test_clean_exit_also_wraps_a_function(capsys: pytest.CaptureFixture[str]) -> None:
    @clean_exit()
    def refuse() -> None:
        raise ConfigError("no such thing")

    with pytest.raises(SystemExit) as caught:
        refuse()

    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: no such thing\n"


def test_logs_are_set_up_before_the_part_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[object] = []
    monkeypatch.setattr("fluffle.logs.configure", lambda *args, **named: happened.append((args, named)))

    invoke("--log-format", "json", "--federation", "wine", run=lambda _: happened.append("ran"))

    before_the_settings = (("json",), {"verbose": False, "part": "aggregator"})
    with_them = (("json",), {"verbose": False, "part": "aggregator", "fields": {"federation": "wine"}})
    assert happened == [before_the_settings, with_them, "ran"]


def test_an_unknown_flag_is_refused_with_exit_code_2() -> None:
    result = invoke("--bufer-size", "3")

    assert result.exit_code == 2
    assert "No such option" in result.stderr


class OneSettings(SharedSettings):
    item: str = Field(max_length=9, description="Which item.", json_schema_extra={"argument": True})


def test_a_setting_can_stand_behind_the_command_without_a_flag() -> None:
    seen: list[OneSettings] = []
    app = new_app()
    app.command("show")(settings_command(OneSettings, seen.append, about="Show one."))

    shown = CliRunner().invoke(app, ["item-7", "--federation", "ward-7"])
    missing = CliRunner().invoke(app, [])
    wrong = CliRunner().invoke(app, ["item-7-and-more"])

    assert shown.exit_code == 0, shown.output
    assert (seen[0].item, seen[0].federation) == ("item-7", "ward-7")
    assert (missing.exit_code, wrong.exit_code) == (2, 2)
    assert "ITEM" in missing.output
    assert "ITEM must" in wrong.output


def describe(_settings: SharedSettings) -> None:
    """Describe one thing.

    It is described in a paragraph that is
    written on two lines.
    """


@plain_command
def plain(folder: Path = Path("here")) -> None:
    """Describe one thing.

    It is described in a paragraph that is
    written on two lines.
    """
    raise ConfigError(f"there is no {folder}")


@pytest.mark.parametrize("command", [settings_command(SharedSettings, describe), plain])
def test_the_docstring_of_a_commands_function_is_its_help_with_a_line_for_each_paragraph(
    command: Callable[..., None],
) -> None:
    app = new_app()
    app.command("describe")(command)

    lines = [line.strip() for line in CliRunner().invoke(app, ["--help"]).output.splitlines()]

    assert "Describe one thing." in lines
    assert "It is described in a paragraph that is written on two lines." in lines


def test_a_plain_command_has_the_flags_of_its_function_and_its_error_is_one_sentence() -> None:
    app = new_app()
    app.command("describe")(plain)

    result = CliRunner().invoke(app, ["--folder", "there"])

    assert (result.exit_code, result.stderr) == (2, "error: there is no there\n")


def test_a_command_runs_as_a_program_of_its_own_and_imports_no_tensorflow() -> None:
    program = (
        "import sys\n"
        "from fluffle.command_line import run_program, settings_command\n"
        "from fluffle.settings import SharedSettings\n"
        "def run(settings): print('tensorflow' in sys.modules, settings.federation)\n"
        "run_program('fluffle-part', settings_command(SharedSettings, run, about='Do it.'))\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", program, "--federation", "wine"], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "False wine\n", "")


def test_two_commands_of_one_app_keep_their_own_flags() -> None:
    app: typer.Typer = new_app("All of it.")
    app.command("aggregator")(settings_command(PartSettings, lambda _: None, about="One."))
    app.command("status")(settings_command(SharedSettings, lambda _: None, about="Two."))

    help_of_all = CliRunner().invoke(app, ["--help"]).output
    help_of_status = CliRunner().invoke(app, ["status", "--help"]).output

    assert "One." in help_of_all
    assert "Two." in help_of_all
    assert "--buffer-size" not in help_of_status
