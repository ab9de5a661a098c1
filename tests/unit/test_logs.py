"""Log lines: JSON for machines, a sentence for people, and nothing in between."""

import io
import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from rich.console import Console

from fluffle import logs

log = logs.get_logger("fluffle_aggregator.service")


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root, names = (
        logging.getLogger(),
        ("", "pika", "httpx", "fluffle", "fluffle_aggregator", "fluffle_worker", "fluffle_cli"),
    )
    before = {name: logging.getLogger(name).level for name in names}
    yield
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)
    for handler in [handler for handler in root.handlers if handler.name == "fluffle"]:
        root.removeHandler(handler)


def configured(
    log_format: Literal["auto", "pretty", "json"] = "json",
    *,
    verbose: bool = False,
    stream: io.StringIO | None = None,
) -> io.StringIO:
    stream = stream or io.StringIO()
    logs.configure(
        log_format,
        verbose=verbose,
        part="aggregator",
        fields={"federation": "digits", "worker": "w1"},
        console=Console(file=stream, width=80),
    )
    return stream


def json_lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_json_line_carries_time_level_part_federation_sentence_and_fields() -> None:
    stream = configured("json")

    log.info("version committed", version=3, updates=4)

    (line,) = json_lines(stream)
    time = datetime.fromisoformat(str(line.pop("time")))
    assert time.tzinfo == UTC
    assert abs((datetime.now(UTC) - time).total_seconds()) < 60
    assert line == {
        "level": "info",
        "part": "aggregator",
        "federation": "digits",
        "worker": "w1",
        "event": "version committed",
        "logger": "fluffle_aggregator.service",
        "version": 3,
        "updates": 4,
    }


def test_a_long_event_and_one_with_line_breaks_stay_one_json_line() -> None:
    stream = configured("json")

    log.info("long", text="word " * 200)
    log.info("broken", text="a\nb\u2028c\x1b[31m[bold]:smile:")

    assert [line["text"] for line in json_lines(stream)] == [
        "word " * 200,
        "a\nb\u2028c\x1b[31m[bold]:smile:",
    ]


def test_json_lines_are_valid_whatever_the_fields_hold() -> None:
    stream = configured("json")

    log.info(
        "evaluated",
        loss=float("nan"),
        metrics={"accuracy": np.float32(0.5), "loss": np.float64("inf")},
        version=np.int64(7),
        rate=np.float32("nan"),
        norms=np.ones(2),
        sites=(1, 2),
        path=Path("runs/a"),
        nothing=None,
        good=True,
    )

    (line,) = json_lines(stream)
    assert line["loss"] is None
    assert line["metrics"] == {"accuracy": 0.5, "loss": None}
    assert (line["version"], line["sites"], line["path"]) == (7, [1, 2], "runs/a")
    assert (line["nothing"], line["good"]) == (None, True)
    assert (line["rate"], line["norms"]) == (None, "[1. 1.]")


def test_a_lines_own_field_wins_over_the_process_wide_one() -> None:
    stream = configured("json")

    log.info("update refused", worker="w7")

    assert json_lines(stream)[0]["worker"] == "w7"


def test_a_bound_logger_repeats_its_fields() -> None:
    stream = configured("json")

    log.bind(term=2).info("version committed", version=3)

    assert (json_lines(stream)[0]["term"], json_lines(stream)[0]["version"]) == (2, 3)


def test_lines_of_the_standard_logging_look_the_same() -> None:
    stream = configured("json")

    logging.getLogger("my_task").warning("read %d rows", 5)

    (line,) = json_lines(stream)
    assert (line["event"], line["level"], line["logger"]) == ("read 5 rows", "warning", "my_task")
    assert line["federation"] == "digits"


def test_a_pretty_line_has_time_part_sentence_and_fields() -> None:
    stream = configured("pretty")

    log.info("version committed", version=3, accuracy=0.123456, note="two words")

    time, _, rest = stream.getvalue().partition(" ")
    assert len(time.split(":")) == 3
    assert rest == "aggregator  version committed  version=3  accuracy=0.1235  note='two words'\n"


def test_a_pretty_line_shows_a_field_that_is_a_map_without_line_breaks() -> None:
    stream = configured("pretty")

    log.info("evaluated", version=3, metrics={"loss": 0.5, "event\n": 0.25})

    assert stream.getvalue().endswith("evaluated  version=3  metrics={loss: 0.5, event\\n: 0.25}\n")


def test_a_pretty_warning_says_that_it_is_one() -> None:
    stream = configured("pretty")

    log.warning("update refused", reason="stale")

    assert "aggregator  warning: update refused  reason=stale\n" in stream.getvalue()


def test_what_a_stranger_wrote_cannot_break_the_line_or_paint_the_terminal() -> None:
    stream = configured("pretty", stream=Terminal())

    log.info("update refused", worker="w\n12:00:00 aggregator  all is well\x1b[2J", reason="[bold]x")

    assert stream.getvalue().count("\n") == 1
    assert "\x1b[2J" not in stream.getvalue()
    assert "[bold]x" in stream.getvalue()


@pytest.mark.parametrize(("stream", "of_a_service"), [(Terminal(), "pretty"), (io.StringIO(), "json")])
def test_auto_means_json_for_a_service_without_a_terminal(
    stream: io.StringIO, of_a_service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr", stream)

    assert logs.resolved("auto", is_service=True) == of_a_service
    assert logs.resolved("auto", is_service=False) == "pretty"
    assert logs.resolved("json", is_service=False) == "json"
    assert logs.resolved("pretty", is_service=True) == "pretty"


def test_a_call_in_a_notebook_shows_its_lines_unless_logging_is_set_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])

    logs.show_to_people("driver")
    log.info("sites at work", sites=2)
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.NullHandler()])
    logs.show_to_people("driver")
    log.info("nobody reads this")

    assert capsys.readouterr().err.endswith("driver  sites at work  sites=2\n")


def test_colours_show_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")

    terminal = configured("pretty", stream=Terminal())
    log.error("it broke")
    elsewhere = configured("pretty")
    log.error("it broke")

    assert "\x1b[31m" in terminal.getvalue()
    assert "\x1b" not in elsewhere.getvalue()


def test_debug_lines_show_only_when_verbose() -> None:
    quiet = configured("json")
    log.debug("frame seen")
    verbose = configured("json", verbose=True)
    log.debug("frame seen")

    assert json_lines(quiet) == []
    assert [line["event"] for line in json_lines(verbose)] == ["frame seen"]


def broken() -> None:
    try:
        int("no number")
    except ValueError:
        log.exception("connection lost", update="u1")


@pytest.mark.parametrize("log_format", ["json", "pretty"])
def test_an_exception_is_named_and_its_traceback_is_shown_only_when_verbose(
    log_format: Literal["json", "pretty"],
) -> None:
    quiet = configured(log_format)
    broken()
    verbose = configured(log_format, verbose=True)
    broken()

    assert quiet.getvalue().count("\n") == 1
    assert "ValueError: invalid literal for int()" in quiet.getvalue()
    assert "Traceback" not in quiet.getvalue()
    assert "Traceback (most recent call last)" in verbose.getvalue()
    assert "in broken" in verbose.getvalue()


def test_an_exception_may_be_handed_over_by_name() -> None:
    stream = configured("json")

    log.warning("connection lost", exc_info=ConnectionError("reset"))

    assert json_lines(stream)[0]["error"] == "ConnectionError: reset"


def test_pika_is_quiet_about_failed_connections_unless_verbose() -> None:
    pika = logging.getLogger("pika.adapters.blocking_connection")

    quiet = configured("json")
    pika.error("Connection workflow failed")
    verbose = configured("json", verbose=True)
    pika.error("Connection workflow failed")
    pika.debug("a frame")

    assert json_lines(quiet) == []
    assert [line["event"] for line in json_lines(verbose)] == ["Connection workflow failed"]


def test_each_request_to_the_management_interface_is_logged_only_when_verbose() -> None:
    httpx = logging.getLogger("httpx")

    quiet = configured("json")
    httpx.info("HTTP Request: GET /api/whoami")
    verbose = configured("json", verbose=True)
    httpx.info("HTTP Request: GET /api/whoami")

    assert json_lines(quiet) == []
    assert len(json_lines(verbose)) == 1


def test_configured_again_each_line_is_written_once() -> None:
    first = configured("json")
    second = configured("json")

    log.info("started")

    assert first.getvalue() == ""
    assert len(json_lines(second)) == 1


def test_lines_go_to_stderr_and_leave_stdout_to_results(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json", verbose=False, part="worker", fields={"federation": "digits"})

    log.info("started")

    written = capsys.readouterr()
    assert written.out == ""
    assert json.loads(written.err)["part"] == "worker"


def test_before_anything_is_configured_a_library_user_sees_no_info_lines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.get_logger("fluffle.unconfigured").info("started")

    written = capsys.readouterr()
    assert (written.out, written.err) == ("", "")


def test_a_line_during_a_progress_display_is_written_whole_above_it() -> None:
    stream = Terminal()
    console = Console(file=stream, width=80, force_terminal=True)
    logs.configure("pretty", verbose=False, part="demo", console=console)

    with console.status("waiting"):
        log.info("version committed", version=3)

    lines = [
        line for line in stream.getvalue().replace("\r", "\n").splitlines() if "version committed" in line
    ]
    assert len(lines) == 1
    assert "waiting" not in lines[0]
