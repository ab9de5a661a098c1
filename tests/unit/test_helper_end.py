"""A helper learns of the end of its federation in the stream of close records, and leaves."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from brokers import SOON_S
from fake_broker import FakeBroker, FakeServer
from helping import Keys, first_close

from fluffle.event_sink import Sinks
from fluffle.events import Event, Opened
from fluffle.secure.closing import Finished, encode_close, encode_finished
from fluffle.secure.key_files import HelperKey, read_private
from fluffle.secure.ledger_file import read_ledger
from fluffle.topology import topology_of
from fluffle_helper import loop
from fluffle_helper.loop import Helper, HelperResult
from fluffle_helper.own_files import HelperFiles

TOPOLOGY = topology_of("digits")
CLOSE, END = encode_close(first_close()), encode_finished(Finished(because="accuracy>=0.9 held"))


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path)


class StopOnceOpened(Sinks):
    """Asks a helper to stop when it has opened a sum."""

    def __init__(self, stop: threading.Event) -> None:
        super().__init__()
        self._stop = stop

    def __call__(self, event: Event) -> None:
        """See EventSink."""
        if isinstance(event, Opened):
            self._stop.set()


@pytest.fixture
def stop() -> Iterator[threading.Event]:
    """An event that is set after a while at the latest."""
    found = threading.Event()
    watchdog = threading.Timer(SOON_S, found.set)
    watchdog.start()
    yield found
    watchdog.cancel()


def work(
    keys: Keys, stop: threading.Event, sink: Sinks, monkeypatch: pytest.MonkeyPatch, *closes: bytes
) -> HelperResult:
    """Let helper-1 read these messages, until it leaves or is asked to stop."""
    monkeypatch.setattr(loop, "POLL_S", 0.02)
    monkeypatch.setattr(loop, "CATCH_UP_S", 0.1)
    server = FakeServer()
    with FakeBroker(server) as broker:
        broker.declare(TOPOLOGY)
        for body in closes:
            broker.publish(TOPOLOGY.closes_in.name, "", body, {})
    files = HelperFiles(key=keys.key(), registry=keys.registry, operator=keys.operator, federation="digits")
    helper = Helper(
        name="helper-1", topology=TOPOLOGY, files=files, fewest_workers=3, stop=stop, event_sink=sink
    )
    return helper.work(lambda: FakeBroker(server, user="helper-1"))


def test_a_helper_leaves_once_the_federation_has_finished(
    keys: Keys, stop: threading.Event, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        result = work(keys, stop, Sinks(), monkeypatch, CLOSE, END, END)

    assert result == HelperResult(opened=1, ended_by="accuracy>=0.9 held")
    assert not stop.is_set()
    assert "the federation has finished" in caplog.text
    # Its ledger is on the disk, whatever comes of the federation.
    assert read_ledger(keys.ledger(), read_private(keys.key(), HelperKey)).number == 1


def test_a_helper_stays_when_a_close_record_follows_the_end(
    keys: Keys, stop: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody has put an earlier version back into the head."""
    result = work(keys, stop, StopOnceOpened(stop), monkeypatch, END, CLOSE)

    assert result == HelperResult(opened=1)
