"""`fluffle simulate`: the same settings give the same bits, and a leader on a broker makes the same model."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy_task
import pytest
from builders import a_config
from fake_broker import FakeBroker
from leading import Clock, a_server, newest, take_the_lead, work_off
from working import CountingTask

from fluffle.errors import ConfigError, TaskError
from fluffle.record import ModelVersion
from fluffle.settings import load_arguments
from fluffle.task import Site
from fluffle.topology import topology_of
from fluffle_aggregator.global_model import GlobalModel
from fluffle_aggregator.head import Head
from fluffle_cli.simulate.federation import SimulatedFederation
from fluffle_cli.simulate.program import run
from fluffle_cli.simulate.settings import SimulateSettings
from fluffle_worker.round import minibatch_seed


def settings_of(**given: Any) -> SimulateSettings:
    defaults = {"federation": "digits", "task": "numpy_task:task", "max_updates": 24}
    return load_arguments(SimulateSettings, defaults | given)


class EmptySite(CountingTask):
    """A task whose third site has no data."""

    def prepare(self, site: Site) -> int:
        return 0 if site.index == 2 else 10


class Recorded(SimulatedFederation):
    """A simulation that keeps its versions, and the updates as they arrived."""

    def __init__(self, **given: Any) -> None:
        self.versions: list[ModelVersion] = []
        self.arrived: list[tuple[str, bytes]] = []
        super().__init__(settings_of(**given), numpy_task.task, self.versions.append)
        self.run()

    def _deliver(self, body: bytes, user: str, exchange: str) -> None:
        if exchange == topology_of("digits").updates_in.name:
            self.arrived.append((user, body))
        super()._deliver(body, user, exchange)


def test_the_same_settings_give_the_same_bits_at_the_same_virtual_times() -> None:
    one, other = Recorded(buffer_size=2), Recorded(buffer_size=2)

    assert [each.committed_at for each in one.versions] == [each.committed_at for each in other.versions]
    for left, right in zip(one.versions, other.versions, strict=True):
        np.testing.assert_array_equal(left.vector, right.vector)


@pytest.mark.parametrize("given", [{"buffer_size": 2, "codec": "int8"}, {"strategy": "fedasync"}])
def test_a_leader_that_gets_the_same_updates_in_the_same_order_makes_the_same_model(
    given: dict[str, Any],
) -> None:
    simulated = Recorded(**given)
    settings = settings_of(**given)
    strategy, first = settings.make_strategy(), simulated.versions[0]

    def continue_from(head: Head) -> GlobalModel:
        plan, goal = settings.make_plan(strategy), settings.make_goal()
        return GlobalModel(head.record, strategy=strategy, plan=plan, goal=goal, term=1)

    config = replace(a_config(strategy), first_version=lambda: first, continue_from=continue_from)
    server = a_server(config)
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, Clock())
        for user, body in simulated.arrived:
            with FakeBroker(server, user=user) as sender:
                sender.publish(config.topology.updates_in.name, "", body, {})
            work_off(leader, broker)

    final, last = newest(server, config), simulated.versions[-1]
    assert final.updates == last.updates == 24
    np.testing.assert_array_equal(final.vector, last.vector)


def test_each_device_has_the_seed_of_a_worker_at_its_site() -> None:
    task = CountingTask()
    settings = settings_of(clients=3, buffer_size=3, strategy="fedavg", max_versions=1, seed=5)

    SimulatedFederation(settings, task, lambda _: None).run()

    assert sorted(task.seeds) == sorted(minibatch_seed(5 + site, 1) for site in range(3))


def test_synchronous_rounds_take_as_long_as_the_slowest_device() -> None:
    federation = Recorded(strategy="fedavg", buffer_size=4, device_seconds="spread:0.5:4", max_updates=12)

    assert [version.updates for version in federation.versions if version.folded] == [4, 8, 12]
    assert {one.staleness for version in federation.versions for one in version.folded} == {0}
    assert federation.seconds == pytest.approx(3 * 2.0)


def test_rounds_that_end_without_the_slowest_device_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"strategy": "fedavg", "device_seconds": "spread:1:100", "max_updates": None, "max_seconds": 150}

    run(settings_of(**given, clients=2, buffer_timeout=10, out=tmp_path / "run"))

    said = " ".join(capsys.readouterr().out.split())
    assert re.search(r"\d+ of \d+ rounds ended without all workers: .* --buffer-timeout \(10 s\)", said)


def test_devices_too_slow_for_the_seconds_of_a_round_are_warned_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    given = {"strategy": "fedbuff", "round_seconds": 0.02, "example_seconds": "spread:0.0001:100"}

    Recorded(**given, buffer_size=1, max_updates=30)

    line = "a round of min_steps minibatches takes longer than round_seconds on some devices"
    assert caplog.text.count(line) == 1


def test_a_faster_device_sends_as_many_times_more_updates() -> None:
    federation = Recorded(buffer_size=1, clients=2, device_seconds="spread:1:4", max_updates=40)

    given = {name: one.updates for name, one in federation.versions[-1].contributors.items()}
    assert given == {"worker-0": 32, "worker-1": 8}
    assert federation.seconds == 32.0


def test_a_slow_line_lengthens_each_round_by_what_the_update_weighs() -> None:
    free, slow = (
        Recorded(clients=1, buffer_size=1, device_seconds="constant:1", max_updates=5, bandwidth=each)
        for each in (None, 0.1)
    )

    bits = 8 * sum(len(body) for _, body in slow.arrived)
    assert free.seconds == 5.0
    assert slow.seconds == pytest.approx(5.0 + bits / 1e5)


def test_the_target_ends_a_simulation_once_it_has_held() -> None:
    federation = Recorded(buffer_size=2, target="0.8", max_updates=400, max_seconds=1000)

    last = federation.versions[-1]
    assert last.finished == "accuracy>=0.8 held for 3 s"
    assert last.evaluation is not None
    assert last.evaluation.metrics["accuracy"] >= 0.8


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"max_updates": None}, "needs an end"),
        ({"codec": "topk:0.1"}, "not simulated yet"),
        # TL-System/plato#195: the first round waits for more clients than there are.
        ({"strategy": "fedavg", "buffer_size": 5}, "waits for updates of 5 workers, and there are 4: give a"),
    ],
)
def test_what_cannot_be_simulated_is_refused_before_anything_starts(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        settings_of(**given).check()


def test_a_target_that_no_evaluation_has_is_told_with_what_there_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(settings_of(target="f1>=0.9", out=tmp_path / "run"))

    said = capsys.readouterr().out
    assert re.search(r"finished because +24 updates were applied\n", said)
    assert "no evaluation has the target's f1: there is accuracy, loss\n" in said


def test_a_run_without_target_says_nothing_of_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(settings_of(out=tmp_path / "run"))

    assert "held from" not in capsys.readouterr().out


def test_a_client_without_data_is_named() -> None:
    # flwrlabs/flower#7645: a client with no examples of its own.
    with pytest.raises(TaskError, match="client 2: prepare found 0 examples"):
        SimulatedFederation(settings_of(), EmptySite(), lambda _: None)


def test_a_run_leaves_a_folder_like_that_of_a_real_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(settings_of(buffer_size=2, out=tmp_path / "run"))

    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert json.loads(lines[-1])["updates"] == summary["runs"][0]["updates"] == 24
    # Of these, only the last ones are read.
    assert [bool(json.loads(line)["contributors"]) for line in lines] == [False] * (len(lines) - 1) + [True]
    assert sorted(json.loads(lines[-1])["contributors"]) == sorted(summary["runs"][0]["workers"])
    assert "<html" in (tmp_path / "run" / "report.html").read_text()
    assert "virtual seconds took" in capsys.readouterr().out
