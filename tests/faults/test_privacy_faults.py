"""Differential privacy with real processes: the same noise and the same budgets, whoever dies."""

import signal
import struct
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest
from federation import Federation, assert_refused, wait_until
from injection import inject_death
from privately import made_again
from real_history import assert_history_is_one_line, send, some_updates, write_initial_model

from fluffle.broker import Delivery, Listener
from fluffle.model_stream import all_stored
from fluffle.privacy.secret_file import read_secret, write_new_secret
from fluffle.record import ModelVersion
from fluffle.update import WeightUpdate
from fluffle_cli.node import BrokerNode

UPDATES_OF_EACH = 3
PRIVATE = [
    *("--dp", "central", "--dp-epsilon", "8", "--dp-clip", "2", "--dp-secret", "noise.secret"),
    *("--dp-max-updates", str(UPDATES_OF_EACH), "--dp-separation", "1", "--buffer-timeout", "2"),
]
FLAGS = [*PRIVATE, "--buffer-size", "2", "--initial-model", "initial.safetensors"]
ADAPTIVE = ["--dp-noise", "plain", "--dp-clip", "adaptive:0.5"]
# Version 0 is published to the head, and then to the stream.
MOMENTS = {
    "before the head": 'kind == "version" and count == 5 and before',
    "between head and stream": 'kind == "version" and count == 5 and not before',
    "between stream and records": 'kind == "record" and count == 3 and before',
    "between the acks of one batch": 'kind == "ack" and count == 4',
}

TELLING_TASK = """
import numpy as np
from fluffle.task import MeanOf, Trained, Validated


class Telling:
    def initial_weights(self, seed):
        return {"w": np.zeros(4, np.float32), "count": np.zeros((), np.int64)}

    def prepare(self, site):
        return 31337

    def train(self, weights, plan, *, seed, progress):
        for done in range(1, 78):
            progress(done, 77)
        new = {"w": weights["w"] + np.float32(0.1), "count": np.array(4242)}
        return Trained(new, examples=31337, metrics={"loss": 0.734251})

    def validate(self, weights):
        return Validated(31337, {"accuracy": MeanOf(0.618034, 1)})

    def evaluate(self, weights):
        return {}

    def save(self, weights, path):
        pass

    def load(self, path):
        return self.initial_weights(0)


task = Telling()
"""


def all_heard(listener: Listener) -> Iterator[Delivery]:
    """Yield what a listener has heard so far."""
    while delivery := listener.next_delivery(1.0):
        yield delivery


def begin(folder: Path) -> None:
    write_initial_model(folder)
    write_new_secret(folder / "noise.secret")


def assert_made_of(versions: list[ModelVersion], updates: list[WeightUpdate], folder: Path) -> None:
    """The versions have the bits of the clipped sums of these updates, with the noise of the secret."""
    by_id = {update.id: update for update in updates}
    sums = [[(by_id[one.id], one.weight) for one in version.folded] for version in versions[1:]]
    secret = read_secret(folder / "noise.secret")
    expected = made_again(versions, sums, secret=secret)
    assert [each.vector.tobytes() for each in versions] == [each.tobytes() for each in expected]


@pytest.mark.parametrize(
    ("moment", "more"),
    [
        ("between head and stream", ADAPTIVE),
        ("between stream and records", []),
        *(pytest.param(each, [], marks=pytest.mark.long) for each in MOMENTS if "records" not in each),
    ],
)
def test_wherever_the_aggregator_is_killed_the_next_one_goes_on_with_the_same_noise(
    node: BrokerNode, tmp_path: Path, federation: str, moment: str, more: list[str]
) -> None:
    begin(tmp_path)
    inject_death(tmp_path, MOMENTS[moment])
    with Federation(federation, node.amqp_url, tmp_path) as running:
        first = running.aggregator("first", *FLAGS, *more)
        first.wait_for("leading")
        updates = some_updates(running, 2 * UPDATES_OF_EACH)
        send(running, updates)
        assert first.wait_for_exit() == -signal.SIGKILL

        second = running.aggregator("second", *FLAGS, *more)
        assert second.wait_for_exit() == 0

        versions = assert_history_is_one_line(running)
        final = versions[-1]
        assert final.finished == "all workers have sent the 3 updates that the privacy budget allows"
        assert_made_of(versions, updates, tmp_path)
        assert final.privacy is not None
        assert final.privacy.steps == UPDATES_OF_EACH
        assert {each.updates for each in final.privacy.participations.values()} == {UPDATES_OF_EACH}
        assert running.waiting_in(running.topology.rejected.name) == set()


@pytest.mark.parametrize(
    "strategy",
    [
        ["--buffer-size", "1"],
        # Each second round has no worker that may take part, and is left out.
        pytest.param(["--buffer-size", "3", "--strategy", "fedavg"], marks=pytest.mark.long),
    ],
    ids=["fedbuff", "fedavg"],
)
def test_workers_spend_their_budgets_and_leave_and_nothing_is_refused_though_the_leader_is_killed(
    node: BrokerNode, tmp_path: Path, federation: str, strategy: list[str]
) -> None:
    write_new_secret(tmp_path / "noise.secret")
    (tmp_path / "rounds").write_text("1000")
    flags = [*PRIVATE, "--dp-separation", "2", *strategy]
    with Federation(federation, node.amqp_url, tmp_path, task="tasks.gated_sum_task:task") as running:
        leader = running.aggregator("first", *flags)
        leader.wait_for("leading")
        standby = running.aggregator("second", *flags)
        standby.wait_for("standing by")
        workers = [running.worker(site, sites=3) for site in range(3)]
        leader.wait_for("version committed", 2)
        leader.kill()

        assert [worker.wait_for_exit() for worker in workers] == [0, 0, 0]
        assert standby.wait_for_exit() == 0

        for worker in workers:
            [left] = worker.events("leaving")
            assert str(left["because"]).startswith("this worker's privacy budget of 3 updates is spent")
        final = running.newest()
        assert final.finished == "all workers have sent the 3 updates that the privacy budget allows"
        assert final.privacy is not None
        steps = final.privacy.participations
        assert {name: each.updates for name, each in steps.items()} == dict.fromkeys(
            ("site-0", "site-1", "site-2"), UPDATES_OF_EACH
        )
        assert running.waiting_in(running.topology.rejected.name) == set()
        shown = running.fluffle("privacy", "status")
        assert shown.returncode == 0, shown.stderr
        assert "epsilon 8 of 8 spent" in shown.stdout
        assert all(worker in shown.stdout for worker in ("site-0", "site-1", "site-2"))
        [promise] = leader.events("differential privacy")
        assert "epsilon 8, delta 1e-05, at most 3 updates" in str(promise["promise"])


def test_an_update_beyond_the_budget_is_refused_also_when_an_operator_sends_it_again(
    node: BrokerNode, tmp_path: Path, federation: str
) -> None:
    begin(tmp_path)
    with Federation(federation, node.amqp_url, tmp_path) as running:
        aggregator = running.aggregator("first", *FLAGS, "--buffer-timeout", "900")
        aggregator.wait_for("leading")
        updates = some_updates(running, 2 * UPDATES_OF_EACH + 1)
        send(running, updates)
        rejected = running.topology.rejected.name
        wait_until(lambda: bool(running.waiting_in(rejected)), "the refused update to be in F.rejected")
        aggregator.kill()
        another = running.aggregator("second", *FLAGS, "--buffer-timeout", "900")
        another.wait_for("leading")

        assert running.fluffle("rejected", "requeue", "all", "--yes").returncode == 0
        another.wait_for("refused")

        wait_until(lambda: bool(running.waiting_in(rejected)), "it to be refused again")
        # More than once if the first one died before its ack.
        assert {each["reason"] for each in another.events("refused")} == {"budget-spent"}
        assert running.newest().updates == 2 * UPDATES_OF_EACH


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--dp-epsilon", "20"], ("dp_epsilon is 20.0", "begun with 8.0")),
        (["--dp-secret", "other.secret"], ("other.secret", "another secret")),
    ],
)
def test_no_aggregator_leads_with_another_promise_or_another_secret(
    node: BrokerNode, tmp_path: Path, federation: str, flags: list[str], words: tuple[str, ...]
) -> None:
    begin(tmp_path)
    write_new_secret(tmp_path / "other.secret")
    with Federation(federation, node.amqp_url, tmp_path) as running:
        first = running.aggregator("first", *FLAGS)
        first.wait_for("leading")
        # A standby leaves while the leader is at work, not only when it is needed.
        assert_refused(running.aggregator("standby", *FLAGS, *flags), *words)
        first.kill()

        assert_refused(running.aggregator("second", *FLAGS, *flags), *words)


def test_privacy_neither_begins_nor_ends_in_a_federation_that_runs(
    node: BrokerNode, tmp_path: Path, federation: str
) -> None:
    begin(tmp_path)
    plain = ["--initial-model", "initial.safetensors", "--strategy", "fedbuff"]
    with Federation(federation, node.amqp_url, tmp_path) as running:
        first = running.aggregator("first", *plain)
        first.wait_for("leading")
        first.kill()
        assert_refused(running.aggregator("second", *FLAGS), "dp cannot begin in a federation that runs")
    with Federation(f"{federation}-private", node.amqp_url, tmp_path) as running:
        third = running.aggregator("third", *FLAGS)
        third.wait_for("leading")
        third.kill()
        assert_refused(running.aggregator("fourth", *plain), "cannot be taken back")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (PRIVATE, set()),
        # So that the test is able to find them.
        (["--strategy", "fedbuff", "--max-updates", "6"], {"loss", "metric", "examples", "integers"}),
    ],
    ids=["private", "plain"],
)
def test_no_record_and_no_event_has_what_a_site_knows_of_its_data(
    node: BrokerNode, tmp_path: Path, federation: str, flags: list[str], expected: set[str]
) -> None:
    write_new_secret(tmp_path / "noise.secret")
    (tmp_path / "telling_task.py").write_text(TELLING_TASK)
    with Federation(federation, node.amqp_url, tmp_path, task="telling_task:task") as running:
        aggregator = running.aggregator("first", *flags, "--buffer-size", "2")
        aggregator.wait_for("leading")
        with running.connect() as broker:
            topology = running.topology
            with broker.listen(topology.events.name, name="test", max_bytes=2**26) as listener:
                workers = [running.worker(site, sites=2) for site in range(2)]
                assert [worker.wait_for_exit() for worker in workers] == [0, 0]
                assert aggregator.wait_for_exit() == 0
                heard = [each.body for each in all_heard(listener)]
            stored = [each.body for each in all_stored(broker, topology)]

        assert len(stored) > UPDATES_OF_EACH
        assert any(b"trained" in body for body in heard)
        secrets = {
            "loss": struct.pack(">d", 0.734251),
            "metric": struct.pack(">d", 0.618034),
            "examples": msgpack.packb(31337),
            "integers": (4242).to_bytes(8, "little"),
        }
        told = {name for name, each in secrets.items() for body in (*heard, *stored) if each in body}
        assert told == expected
