"""Simulations without training: they decide as those with the deployed leader do."""

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from working import CountingTask

from fluffle.errors import ConfigError
from fluffle.model import Weights
from fluffle.plan import Plan
from fluffle.record import ModelVersion
from fluffle.settings import load_arguments
from fluffle.task import Progress, Site
from fluffle.task import Trained as Outcome
from fluffle_cli.simulate.counting import CountedUpdate
from fluffle_cli.simulate.federation import SimulatedFederation
from fluffle_cli.simulate.in_memory import BEGINS_AT
from fluffle_cli.simulate.program import run
from fluffle_cli.simulate.queueing import QueueFederation
from fluffle_cli.simulate.settings import SimulateSettings

# An update in a version: device, number, base, staleness, weight.
Row = tuple[int, int, int, int, float]


def settings_of(**given: Any) -> SimulateSettings:
    return load_arguments(SimulateSettings, {"federation": "digits", "max_updates": 60} | given)


def device_of(worker: str) -> int:
    return int(worker.removeprefix("worker-"))


class Counted(QueueFederation):
    """A simulation without training that keeps what each version contains."""

    def __init__(self, **given: Any) -> None:
        self.versions: list[tuple[int, float, list[Row]]] = []
        super().__init__(settings_of(**given))
        self.run()

    def _committed(self, at_s: float, updates: Sequence[CountedUpdate]) -> None:
        rows = [(each.worker.index, *each[1:]) for each in updates]
        self.versions.append((self.leader.version, at_s, rows))
        super()._committed(at_s, updates)


class OneExample(CountingTask):
    """A task with as few examples as are counted without training."""

    def prepare(self, site: Site) -> int:
        return 1

    def train(self, weights: Weights, plan: Plan, *, seed: int, progress: Progress) -> Outcome:
        return replace(super().train(weights, plan, seed=seed, progress=progress), examples=1)


class Trained(SimulatedFederation):
    """The same with the deployed leader, real messages, and a task that adds one; nobody evaluates."""

    def __init__(self, **given: Any) -> None:
        self.versions: list[tuple[int, float, list[Row]]] = []
        super().__init__(settings_of(**given, evaluate_every=10**9), OneExample(), self._note)
        self.run()

    def _note(self, version: ModelVersion) -> None:
        if version.version:
            rows = [
                (device_of(one.id.worker), one.id.sequence, one.base_version, one.staleness, one.weight)
                for one in version.folded
            ]
            self.versions.append((version.version, version.committed_at - BEGINS_AT, rows))


def assert_same(given: dict[str, Any]) -> None:
    counted, trained = Counted(**given), Trained(**given)

    assert [(each[0], each[2]) for each in counted.versions] == [
        (each[0], each[2]) for each in trained.versions
    ]
    times = [each[1] for each in trained.versions]
    assert [each[1] for each in counted.versions] == pytest.approx(times, abs=1e-6)
    assert counted.leader.finished == trained.leader.finished
    assert counted.refused == trained.refused
    assert (counted.crashes, counted.duplicates, counted.aborted) == (
        trained.crashes,
        trained.duplicates,
        trained.aborted,
    )
    assert counted.seconds == pytest.approx(trained.seconds, abs=1e-6)


STRATEGIES = st.sampled_from(
    [
        {"strategy": "fedasync", "weigh_by": "none"},
        {"strategy": "fedasync", "weigh_by": "none", "commit_every": 3},
        {"strategy": "fedbuff", "weigh_by": "none"},
        {"strategy": "fedbuff", "weigh_by": "none", "commit_after": 2.6},
        {"strategy": "fedbuff", "weigh_by": "none", "staleness": "hinge:1:1", "max_staleness": 2},
        {"strategy": "fedbuff", "weigh_by": "none", "staleness": "adaptive:2"},
        {"strategy": "ca2fl", "weigh_by": "none", "max_staleness": 3},
        {"strategy": "ace", "weigh_by": "none", "forget_after": 2.0},
        {"strategy": "fadas", "weigh_by": "none"},
        {"strategy": "fedavg"},
    ]
)


# No limit in seconds falls together with the end of a round: which of two is first, rounding would decide.
@given(
    strategy=STRATEGIES,
    clients=st.integers(1, 7),
    buffer_size=st.integers(1, 9),
    device_seconds=st.sampled_from(["spread:0.5:16", "tiers", "lognormal", "constant", "zipf:0.5"]),
    availability=st.sampled_from(["always", "on-off:5:2"]),
    crashes=st.sampled_from([0.0, 0.3]),
    duplicates=st.sampled_from([0.0, 0.3]),
    late=st.sampled_from([None, "0.5:6"]),
    buffer_timeout=st.sampled_from([3.1, 60.0]),
    end=st.sampled_from([{"max_updates": 30}, {"max_seconds": 20.3}, {"max_versions": 9}]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
def test_a_simulation_without_training_decides_as_one_with_the_deployed_leader(
    strategy: dict[str, Any], end: dict[str, Any], buffer_size: int, **given: Any
) -> None:
    if strategy["strategy"] != "fedasync":
        given["buffer_size"] = buffer_size

    assert_same({"max_updates": None, **strategy, **end, **given})


def test_refused_updates_alone_make_a_version_that_tells_of_them() -> None:
    given = {
        "clients": 2,
        "buffer_size": 1,
        "device_seconds": "spread:1:40",
        "duplicates": 1.0,
        "max_updates": None,
        "max_seconds": 100.0,
        "availability": "on-off:5:30",
        "weigh_by": "none",
        "seed": 3,
    }

    assert_same(given)
    assert [] in [rows for _, _, rows in Counted(**given).versions[:-1]]


def test_the_same_seed_gives_the_same_counts() -> None:
    given = {
        "clients": 300,
        "device_seconds": "exponential",
        "redraw": True,
        "crashes": 0.1,
        "max_updates": 3000,
    }

    one, same, other = (Counted(**given, seed=seed) for seed in (0, 0, 1))

    assert one.versions == same.versions != other.versions


def test_a_run_without_training_writes_what_it_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"

    run(settings_of(train=False, clients=20, out=folder, max_updates=1000, duplicates=0.1))

    summary = json.loads((folder / "queueing.json").read_text())
    rows = list(csv.DictReader((folder / "devices.csv").read_text().splitlines()))
    said = capsys.readouterr().out
    assert summary["finished"] == "1000 updates were applied"
    assert sum(count for _, count in summary["staleness"]) == summary["updates"] == 1000
    assert sum(int(row["updates"]) for row in rows) == 1000
    assert [int(row["device"]) for row in rows] == list(range(20))
    assert summary["refused"]["duplicate"] == sum(int(row["rejected"]) for row in rows) > 50
    assert "refused: duplicate" in said
    assert "events a second" in said


def test_more_workers_than_a_real_federation_remembers_are_counted_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(settings_of(train=False, clients=12_001, out=tmp_path / "run", max_updates=12_001, late="0.5:3"))

    assert "remembers 12000 workers" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"limit_share": 0.5}, "only counts updates, and limit_share looks at what they contain"),
        ({"target": "0.9"}, "and target looks"),
        ({"bandwidth": 1.0}, "and bandwidth looks"),
        ({"example_seconds": "constant:1"}, "give local_steps too, or give device_seconds"),
        ({"from_run": Path("runs/one")}, "give local_steps too, or give device_seconds"),
        ({"max_updates": None}, "needs an end"),
        ({"sweep": "buffer_size=1,2"}, "plays one run, without sweep"),
    ],
)
def test_what_cannot_be_counted_is_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        settings_of(train=False, **given).check()
