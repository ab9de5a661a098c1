"""The leader dies or freezes at the worst moments: one linear history, each update once, the same bits."""

import signal
import time
from pathlib import Path

import pytest
from brokers import all_versions
from federation import Federation, Part, applied_ids
from injection import inject, inject_death
from real_history import assert_history_is_one_line, send, some_updates, write_initial_model

from fluffle.model_stream import all_records
from fluffle.record import ModelVersion, Rank
from fluffle.update import UpdateId, WeightUpdate
from fluffle_cli.node import BrokerNode

UPDATES = 6
BUFFER_SIZE = 2
FLAGS = [
    *("--strategy", "ca2fl", "--initial-model", "initial.safetensors", "--buffer-size", str(BUFFER_SIZE)),
    *("--max-updates", str(UPDATES), "--server-optimizer", "adam", "--server-learning-rate", "0.1"),
]


def history(federation: Federation) -> list[ModelVersion]:
    """Return every version that readers get to see."""
    with federation.connect() as broker:
        return list(all_versions(broker, federation.topology))


def records(federation: Federation) -> list[tuple[Rank, str]]:
    """Return rank and parent of each version as those see it who may not read models."""
    with federation.connect() as broker:
        return [(record.rank, record.parent) for record in all_records(broker, federation.topology)]


@pytest.fixture(scope="module")
def undisturbed(node: BrokerNode, tmp_path_factory: pytest.TempPathFactory) -> ModelVersion:
    """The final version of a run in which nobody dies."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_initial_model(folder)
    with Federation("undisturbed", node.amqp_url, folder) as federation:
        aggregator = federation.aggregator("first", *FLAGS)
        aggregator.wait_for("leading")
        send(federation, some_updates(federation, UPDATES))
        assert aggregator.wait_for_exit() == 0
        return assert_history_is_one_line(federation)[-1]


# With Adam's moments and CA2FL's kept updates before each record: the second of them and the third record
# are in mid-run.
MOMENTS = {
    "before the moments": 'kind == "moments" and count == 2 and before',
    "between moments and record": 'kind == "moments" and count == 2 and not before',
    "before the record": 'kind == "version" and count == 3 and before',
    # The first is version 0's.
    "between head and records": 'kind == "record" and count == 3 and before',
    "after the confirm and before the acks": 'kind == "version" and count == 3 and not before',
    # The first ack is the hello's, then come two for each record.
    "between the acks of one batch": 'kind == "ack" and count == 4',
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_wherever_the_aggregator_is_killed_each_update_counts_once_and_the_bits_are_the_same(
    node: BrokerNode, tmp_path: Path, federation: str, undisturbed: ModelVersion, moment: str
) -> None:
    write_initial_model(tmp_path)
    inject_death(tmp_path, MOMENTS[moment])
    with Federation(federation, node.amqp_url, tmp_path) as running:
        first = running.aggregator("first", *FLAGS)
        first.wait_for("leading")
        send(running, some_updates(running, UPDATES))
        assert first.wait_for_exit() == -signal.SIGKILL

        assert running.aggregator("second", *FLAGS).wait_for_exit() == 0

        versions = assert_history_is_one_line(running)
        final = versions[-1]
        assert records(running) == [(version.rank, version.parent) for version in versions]
        assert final.vector.tobytes() == undisturbed.vector.tobytes()
        assert final.applied == undisturbed.applied
        assert applied_ids(final) == {update.id for update in some_updates(running, UPDATES)}
        assert running.waiting_in(running.topology.rejected.name) == set()
        assert running.waiting_in(running.topology.updates.name) == set()


def start_two(federation: Federation, *flags: str) -> tuple[Part, Part]:
    """Start a leader and a standby whose heartbeat is 2 s, so that a frozen one is given up soon."""
    common = ["--initial-model", "initial.safetensors", "--buffer-size", "1", "--heartbeat-s", "2", *flags]
    leader = federation.aggregator("first", *common)
    leader.wait_for("leading")
    standby = federation.aggregator("second", *common)
    standby.wait_for("standing by")
    return leader, standby


def test_a_standby_leads_soon_after_the_leader_is_killed(
    node: BrokerNode, tmp_path: Path, federation: str
) -> None:
    write_initial_model(tmp_path)
    with Federation(federation, node.amqp_url, tmp_path) as running:
        leader, standby = start_two(running)
        # Something to take over: without a message nobody learns that it is the active one.
        send(running, some_updates(running, 2))
        leader.wait_for("version committed", 2)
        leader.kill()
        killed_at = time.monotonic()
        send(running, some_updates(running, 3)[2:])

        standby.wait_for("version committed")

        # Loosely, since the machine may be busy; benchmarks/failover.py measures it.
        assert time.monotonic() - killed_at < 10
        assert [version.term for version in assert_history_is_one_line(running)] == [1, 1, 1, 2]


@pytest.mark.parametrize(
    "moment", [pytest.param("between two updates", marks=pytest.mark.long), "on the way to a publish"]
)
def test_a_leader_that_freezes_and_wakes_up_publishes_nothing_more(
    node: BrokerNode, tmp_path: Path, federation: str, moment: str
) -> None:
    write_initial_model(tmp_path)
    if moment == "on the way to a publish":
        code = f"""
def moment(kind, count, before):
    if kind == "version" and count == 3 and before and once({str(tmp_path / "froze")!r}):
        freeze()
"""
        inject(tmp_path, code, at_each_call=True)
    updates = 6
    with Federation(federation, node.amqp_url, tmp_path) as running:
        leader, standby = start_two(running, "--max-updates", str(updates))
        send(running, some_updates(running, 1))
        leader.wait_for("version committed")
        if moment == "between two updates":
            leader.process.send_signal(signal.SIGSTOP)
        frozen_at = time.monotonic()
        send(running, some_updates(running, 4)[1:])

        standby.wait_for("version committed", 3)
        assert time.monotonic() - frozen_at < 30  # loosely; benchmarks/failover.py measures it
        leader.process.send_signal(signal.SIGCONT)
        leader.wait_for("standing by", 2)
        send(running, some_updates(running, updates)[4:])

        assert [part.wait_for_exit() for part in (leader, standby)] == [0, 0]
        assert leader.events("lost the broker; connecting again")
        versions = assert_history_is_one_line(running)
        assert [version.term for version in versions[:5]] == [1, 1, 2, 2, 2]
        assert [version.rank for version in versions] == [version.rank for version in history(running)]
        assert versions[-1].updates == updates


def test_a_message_that_kills_every_aggregator_is_refused_alone_and_its_neighbours_are_applied(
    node: BrokerNode, tmp_path: Path, federation: str
) -> None:
    write_initial_model(tmp_path)
    inject(
        tmp_path,
        """
from fluffle_aggregator.global_model import GlobalModel

fold = GlobalModel.fold

def folding(self, update, **rest):
    if update.id.worker == "poison":
        die()
    return fold(self, update, **rest)

GlobalModel.fold = folding
""",
    )
    with Federation(federation, node.amqp_url, tmp_path) as running:
        good = some_updates(running, 4)
        poison = WeightUpdate(
            **{name: getattr(good[0], name) for name in WeightUpdate.__slots__}
            | {"id": UpdateId("poison", "run", 1)}
        )
        flags = ["--initial-model", "initial.safetensors", "--buffer-size", "4", "--max-updates", "4"]
        aggregators = [running.aggregator("first", *flags)]
        aggregators[0].wait_for("leading")
        send(running, [*good[:2], poison, *good[2:]])

        while aggregators[-1].wait_for_exit() == -signal.SIGKILL:
            aggregators.append(running.aggregator(f"aggregator-{len(aggregators)}", *flags))

        assert aggregators[-1].wait_for_exit() == 0
        assert len(aggregators) == 3  # two deaths, and then the message is tried first
        assert applied_ids(running.newest()) == {update.id for update in good}
        assert running.waiting_in(running.topology.rejected.name) == {poison.id}
        [refused] = aggregators[-1].events("refused")
        assert refused["reason"] == "crashes"
        assert "SIGKILL" in str(refused["detail"])
