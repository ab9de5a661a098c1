"""How far a large message is: a bar on a terminal, log lines elsewhere, nothing for small ones."""

import io
import logging
from collections.abc import Iterator
from contextlib import closing

import pytest
from rich.console import Console

from fluffle import logs, transfers
from fluffle.topology import MIB
from fluffle.transfers import Transfer


@pytest.fixture(params=[True, False], ids=["terminal", "file"])
def console(request: pytest.FixtureRequest) -> Iterator[Console]:
    console = Console(file=io.StringIO(), force_terminal=request.param, width=100)
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    logs.configure("pretty", verbose=False, part="worker", console=console)
    yield console
    root.handlers[:] = before
    root.setLevel(level)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_large_message_has_a_bar_on_a_terminal_and_a_line_now_and_then_elsewhere(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfers, "SAY_EVERY_S", 0.0)

    with closing(Transfer("sending")) as transfer:
        transfer.show(10 * MIB, 100 * MIB)
        transfer.show(60 * MIB, 100 * MIB)

    shown = written(console)
    if console.is_terminal:
        assert "60.0/100.0 MiB" in shown
        # The cursor is there again, and the bar is not.
        assert shown.rindex("\x1b[?25h") > shown.rindex("MiB")
    else:
        assert shown.count("sending a large message") == 2
        assert "done_mib=60  size_mib=100" in shown


def test_a_line_comes_not_more_often_than_that(console: Console) -> None:
    with closing(Transfer("receiving")) as transfer:
        for done in range(100):
            transfer.show(done * MIB, 100 * MIB)

    assert "a large message" not in written(console)


def test_nothing_is_shown_of_small_messages_and_of_none(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfers, "SAY_EVERY_S", 0.0)

    with closing(Transfer("sending")) as transfer:
        transfer.show(0, 0)
        transfer.show(MIB, 2 * MIB)

    assert written(console) == ""


def test_one_message_after_the_other_has_a_bar_of_its_own_also_while_another_one_is_sent(
    console: Console,
) -> None:
    with closing(Transfer("receiving")) as arriving:
        arriving.show(30 * MIB, 40 * MIB)
        with closing(Transfer("sending")) as leaving:
            leaving.show(5 * MIB, 50 * MIB)
        arriving.show(1 * MIB, 60 * MIB)
        arriving.show(0, 0)

    if console.is_terminal:
        assert all(part in written(console) for part in ("30.0/40.0", "1.0/60.0"))
