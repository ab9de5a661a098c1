"""A helper as a process on a real RabbitMQ; the test plays the leader: it closes sums and hears answers."""

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from brokers import A_WHILE_S
from federation import HEARTBEAT_S, Federation, Part, assert_refused
from helping import HELPERS, Keys, first_close, following
from rabbitmqctl import add_user

from fluffle.broker import Broker, Listener
from fluffle.errors import AccessRefused, BrokerError
from fluffle.rabbit import RabbitBroker
from fluffle.rights import rights_of
from fluffle.secure.closing import CloseRecord, NotOpened, Opening, decode_answer, encode_close
from fluffle.topology import MIB, Topology
from fluffle_cli.node import BrokerNode
from fluffle_helper.loop import HelperResult
from fluffle_helper.running import run_helper

SOON_S = 30.0
READY = "reading the close records"


@pytest.fixture(scope="module")
def urls(node: BrokerNode) -> dict[str, str]:
    """Where each user connects, with the rights of its role in the federations of these tests."""
    found = {}
    for name in ("leader", *HELPERS):
        role = "helper" if name in HELPERS else "aggregator"
        rights = rights_of(role, "federation-*", name)
        found[name] = add_user(node, name, configure=rights.configure, write=rights.write, read=rights.read)
    return found


@pytest.fixture
def keys(tmp_path: Path, federation: str) -> Keys:
    return Keys(tmp_path, federation)


@pytest.fixture
def running(urls: dict[str, str], keys: Keys, topology: Topology, federation: str) -> Iterator[Federation]:
    """The processes of a federation whose exchanges and queues exist."""
    with connect(urls["leader"]) as broker:
        broker.declare(topology)
    with Federation(federation, urls["helper-1"], keys.folder) as found:
        yield found


def connect(url: str) -> RabbitBroker:
    return RabbitBroker(url, name="leader", heartbeat_s=HEARTBEAT_S)


def start(running: Federation, keys: Keys, *flags: str, name: str = "helper-1") -> Part:
    """Start a helper as a user does."""
    files = [
        *("--secure-key", str(keys.key(name)), "--secure-registry", str(keys.registry)),
        *("--secure-operator", str(keys.operator)),
    ]
    return running.start(f"{name}-{len(running.parts)}", "fluffle_cli.start", "helper", *files, *flags)


class Leader:
    """Closes sums, and hears what the helpers answer."""

    def __init__(self, broker: Broker, topology: Topology, listener: Listener) -> None:
        self._broker, self._topology, self._listener = broker, topology, listener

    def close(self, *records: CloseRecord) -> None:
        for record in records:
            self._broker.publish(self._topology.closes_in.name, "", encode_close(record), {"kind": "close"})

    def answer(self, close: CloseRecord) -> Opening | NotOpened:
        found = self._listener.next_delivery(SOON_S)
        assert found is not None, "no helper has answered"
        answer = decode_answer(found.body, close)
        assert (found.user, found.exchange) == (answer.helper, self._topology.openings_in.name)
        return answer

    def groups(self, close: CloseRecord) -> list[int]:
        """Return the groups of the two openings that come next."""
        found = [self.answer(close) for _ in range(2)]
        return [each.group for each in found if isinstance(each, Opening)]

    def hears_nothing(self) -> bool:
        return self._listener.next_delivery(A_WHILE_S) is None


@contextmanager
def a_leader(url: str, topology: Topology) -> Iterator[Leader]:
    with (
        connect(url) as broker,
        broker.listen(topology.openings_in.name, name="leader", max_bytes=64 * MIB) as listener,
    ):
        yield Leader(broker, topology, listener)


@pytest.fixture
def leading(urls: dict[str, str], topology: Topology) -> Callable[[], AbstractContextManager[Leader]]:
    return lambda: a_leader(urls["leader"], topology)


Leading = Callable[[], AbstractContextManager[Leader]]


def test_a_helper_that_is_killed_between_two_records_goes_on_with_its_ledger(
    running: Federation, keys: Keys, leading: Leading
) -> None:
    first = first_close(running.name)
    second = following(first)
    twice = replace(following(second), updates=first.updates)
    with leading() as leader:
        helper = start(running, keys)
        leader.close(first)
        assert leader.groups(first) == [0, 1]
        helper.kill()
        leader.close(second)
        assert leader.hears_nothing()

        again = start(running, keys)
        assert leader.groups(second) == [0, 1]
        leader.close(second)
        assert leader.groups(second) == [0, 1]
        leader.close(twice)
        refused = leader.answer(twice)

    assert isinstance(refused, NotOpened)
    assert (refused.rule, refused.number) == ("opened-before", 3)
    again.ask_to_stop()
    assert again.wait_for_exit() == 0
    assert again.events("refused to open a sum")
    secrets = [each["private_key"] for each in _groups_in(keys)]
    log = helper.log.read_text() + again.log.read_text()
    assert not [secret for secret in secrets if secret in log]


def test_a_helper_without_its_ledger_refuses_to_start(running: Federation, keys: Keys) -> None:
    keys.ledger().unlink()

    assert_refused(start(running, keys), "helper-1.ledger is lost", "`fluffle keys rotate`")


def test_a_frozen_helper_answers_when_it_wakes_up_and_one_that_is_idle_stops_at_once(
    running: Federation, keys: Keys, leading: Leading
) -> None:
    first = first_close(running.name)
    with leading() as leader:
        helper = start(running, keys)
        helper.wait_for(READY)
        os.kill(helper.process.pid, signal.SIGSTOP)
        leader.close(first)
        assert leader.hears_nothing()
        os.kill(helper.process.pid, signal.SIGCONT)
        assert sorted(leader.groups(first)) == [0, 1]

    os.kill(helper.process.pid, signal.SIGINT)
    assert helper.wait_for_exit() == 0
    assert "Traceback" not in helper.log.read_text()


def test_two_helpers_of_one_name_are_refused_on_one_machine_and_on_two(
    running: Federation, keys: Keys, leading: Leading
) -> None:
    first = start(running, keys)
    first.wait_for(READY)

    assert_refused(start(running, keys), "another process uses", "helper-1.ledger")

    elsewhere = keys.folder / "elsewhere"
    elsewhere.mkdir()
    for path in (keys.key(), keys.ledger()):
        (elsewhere / path.name).write_bytes(path.read_bytes())
        (elsewhere / path.name).chmod(0o600)
    second = start(running, keys, "--secure-key", str(elsewhere / "helper-1.key"))
    assert_refused(second, "another process works under the name 'helper-1'", f"{first.process.pid} on ")
    first.wait_for("another process wanted this helper's name and was refused: stop it")
    with leading() as leader:
        close = first_close(running.name)
        leader.close(close)
        assert leader.groups(close) == [0, 1]


def test_the_user_of_another_helper_is_refused(running: Federation, keys: Keys, urls: dict[str, str]) -> None:
    running.broker_url = urls["helper-2"]

    assert_refused(start(running, keys), "helper-1")


def test_a_helper_waits_until_a_deleted_federation_is_there_again(
    running: Federation, keys: Keys, leading: Leading, urls: dict[str, str], topology: Topology
) -> None:
    helper = start(running, keys)
    helper.wait_for(READY)
    with connect(urls["leader"]) as broker:
        broker.recreate_stream(topology.closes)
    helper.wait_for("lost the broker; connecting again")

    close = first_close(running.name)
    with leading() as leader:
        leader.close(close)
        assert leader.groups(close) == [0, 1]


def test_an_opening_of_a_large_model_arrives_whole(running: Federation, keys: Keys, leading: Leading) -> None:
    close = first_close(running.name, size=6 * MIB)
    with leading() as leader:
        start(running, keys)
        leader.close(close)
        found = [leader.answer(close) for _ in range(2)]

    assert [len(each.masks) for each in found if isinstance(each, Opening)] == [24 * MIB] * 2


def test_three_helpers_that_compare_open_a_sum_together_and_two_of_them_do_not(
    running: Federation, keys: Keys, leading: Leading, urls: dict[str, str]
) -> None:
    first = first_close(running.name)
    second = following(first)
    helpers = []
    for name in HELPERS:
        running.broker_url = urls[name]
        helpers.append(start(running, keys, "--helpers-compare", name=name))
    with leading() as leader:
        for helper in helpers:
            helper.wait_for(READY)
        leader.close(first)
        found = sorted(leader.answer(first).helper for _ in range(3))
        assert leader.hears_nothing()
        helpers[1].kill()
        leader.close(second)
        assert leader.hears_nothing()
        running.broker_url = urls["helper-2"]
        start(running, keys, "--helpers-compare", name="helper-2").wait_for(READY)
        leader.close(second)
        again: set[str] = set()
        while again != set(HELPERS):
            again.add(leader.answer(second).helper)

    assert found == ["helper-1", "helper-1", "helper-2"]


@pytest.mark.parametrize("queue", ["models", "updates", "records", "head", "best", "rejected"])
def test_a_helper_can_read_neither_models_nor_updates(
    running: Federation, urls: dict[str, str], topology: Topology, queue: str
) -> None:
    name = getattr(topology, queue).name
    is_stream = queue in {"models", "records", "best"}
    with connect(urls["helper-1"]) as broker:
        take = (
            broker.read_stream(name, offset="first").__enter__
            if is_stream
            else partial(broker.consume, name, prefetch=1)
        )
        with pytest.raises(AccessRefused):
            take()


def test_a_helper_can_publish_neither_updates_nor_close_records(
    running: Federation, urls: dict[str, str], topology: Topology
) -> None:
    may = set()
    for exchange in topology.exchanges:
        with connect(urls["helper-1"]) as broker:
            try:
                broker.publish(exchange.name, "", b"", {})
            except AccessRefused:
                continue
            except BrokerError:
                # Nobody listens.
                may.add(exchange.name)

    assert may == {topology.openings_in.name, topology.member_events_in.name, topology.digests_in.name}


def test_a_helper_runs_in_a_thread_of_another_program(
    running: Federation, keys: Keys, leading: Leading, urls: dict[str, str]
) -> None:
    stop, results, close = threading.Event(), [], first_close(running.name)

    def run() -> None:
        results.append(
            run_helper(
                stop=stop,
                federation=running.name,
                broker_url=urls["helper-1"],
                secure_key=keys.key(),
                secure_registry=keys.registry,
                secure_operator=keys.operator,
            )
        )

    thread = threading.Thread(target=run)
    with leading() as leader:
        thread.start()
        leader.close(close)
        assert leader.groups(close) == [0, 1]
        stop.set()
        thread.join(SOON_S)

    assert results == [HelperResult(opened=1, refused=0)]


def _groups_in(keys: Keys) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(keys.key().read_text())["groups"]
    return found
