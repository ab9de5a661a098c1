"""Devices that are off, crash, send twice or join late, and updates that the leader refuses."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy_task
import pytest
from numpy_task import SoftmaxRegression

from fluffle.errors import ConfigError, FluffleError
from fluffle.model import Weights
from fluffle.plan import Plan
from fluffle.record import ModelVersion
from fluffle.settings import load_arguments
from fluffle.task import Progress, Site, Task, Trained
from fluffle_cli.simulate.federation import SimulatedFederation
from fluffle_cli.simulate.settings import SimulateSettings
from fluffle_cli.watching.state import REJECTED

ALL_AT_ONCE: dict[str, Any] = {
    "clients": 6,
    "buffer_size": 2,
    "device_seconds": "lognormal",
    "availability": "on-off:5:2",
    "crashes": 0.2,
    "duplicates": 0.2,
    "late": "0.5:3",
    "max_staleness": 2,
}


class Played(SimulatedFederation):
    """A simulation that has been played, with its versions."""

    def __init__(self, task: Task = numpy_task.task, **given: Any) -> None:
        self.versions: list[ModelVersion] = []
        defaults = {"federation": "digits", "task": "numpy_task:task", "max_updates": 24}
        settings = load_arguments(SimulateSettings, defaults | given)
        super().__init__(settings, task, self.versions.append)
        self.run()

    @property
    def last(self) -> ModelVersion:
        return self.versions[-1]


@pytest.mark.parametrize("redraw", [False, True])
def test_the_same_seed_gives_the_same_bits_whatever_goes_wrong(redraw: bool) -> None:
    one, same, other = (Played(**ALL_AT_ONCE, redraw=redraw, seed=seed) for seed in (1, 1, 2))

    assert one.seconds == same.seconds != other.seconds
    assert one.refused == same.refused
    assert one.crashes == same.crashes > 0
    for left, right in zip(one.versions, same.versions, strict=True):
        assert left.folded == right.folded
        np.testing.assert_array_equal(left.vector, right.vector)


def test_an_update_that_comes_twice_counts_once_and_is_refused_as_a_duplicate() -> None:
    played = Played(duplicates=1.0, buffer_size=2)

    folded = [one.id for version in played.versions for one in version.folded]
    assert len(folded) == len(set(folded)) == 24
    # What comes after the last update is refused because the federation has ended.
    assert played.refused["duplicate"] == 23
    assert played.refused["finished"] == 2 * played.duplicates - 24 - 23
    assert {each.what for each in played.leader.happened} == {REJECTED}
    assert played.leader.happened[0].detail.endswith("already")
    assert played.last.rejected == 23


def test_a_crash_loses_the_time_of_a_round_and_no_number() -> None:
    played = Played(clients=1, buffer_size=1, device_seconds="constant:1", max_updates=200, crashes=0.25)

    folded = [one.id.sequence for version in played.versions for one in version.folded]
    assert folded == list(range(1, 201))
    # One third of a crash for each round that ends, each half a round long in the mean.
    assert played.crashes == pytest.approx(200 / 3, abs=25)
    assert played.seconds == pytest.approx(200 + played.crashes / 2, rel=0.05)


def test_a_device_that_is_off_begins_no_round_and_its_running_round_waits(tmp_path: Path) -> None:
    (tmp_path / "on.csv").write_text("device,from_s,to_s\n0,0,4\n1,1,2.5\n1,3,4\n")
    trace = f"trace:{tmp_path / 'on.csv'}"

    played = Played(clients=2, buffer_size=1, device_seconds="constant:1", max_seconds=7, availability=trace)

    arrived = {
        name: [
            each.committed_at - played.versions[0].committed_at
            for each in played.versions
            for one in each.folded
            if one.id.worker == name
        ]
        for name in ("worker-0", "worker-1")
    }
    assert arrived["worker-0"] == [1, 2, 3, 4, 5, 6, 7]
    # On from 1 to 2.5, from 3 to 4, and so again 4 seconds later.
    assert arrived["worker-1"] == [2, 3.5, 5.5, 7]


def test_a_device_that_joins_late_begins_from_the_version_of_that_time() -> None:
    played = Played(late="0.5:10.2", device_seconds="constant:1", buffer_size=1, clients=2, max_updates=40)

    first: dict[str, tuple[int, float]] = {}
    for version in played.versions:
        for one in version.folded:
            first.setdefault(one.id.worker, (one.base_version, version.committed_at))
    [early, late] = sorted(first.values(), key=lambda each: each[1])
    assert early[0] == 0
    assert late[0] == 10
    assert late[1] == pytest.approx(played.versions[0].committed_at + 11.2)


def test_a_refused_update_is_counted_with_its_reason_and_its_device_goes_on() -> None:
    # A round that lasts too long is aborted; what becomes too old on a slow line is refused.
    played = Played(
        clients=4,
        buffer_size=1,
        device_seconds="spread:1:16",
        bandwidth=0.0003,
        max_staleness=3,
        max_updates=200,
    )

    contributors = played.last.contributors
    assert played.refused["too-stale"] == sum(one.rejected for one in contributors.values())
    assert contributors["worker-3"].updates > 5
    assert contributors["worker-3"].rejected > 5
    reasons = Counter(each.reason for each in played.leader.happened if each.name == "worker-3")
    assert reasons["too-stale"] == contributors["worker-3"].rejected
    assert " versions ago; at most 3 are allowed" in played.leader.happened[0].detail


def test_a_worker_whose_updates_are_all_refused_hears_of_it_though_nobody_else_trains() -> None:
    played = Played(clients=1, buffer_size=1, limit_examples=1, max_updates=None, max_versions=3)

    assert set(played.refused) == {"bad-examples"}
    assert [version.rejected for version in played.versions[:4]] == sorted(
        version.rejected for version in played.versions[:4]
    )
    assert played.last.finished == "3 versions were made"
    assert played.last.contributors["worker-0"].refusal.startswith("bad-examples")


@pytest.mark.parametrize(
    ("end", "clients"), [({"max_updates": 20}, 3), ({"max_updates": None, "max_seconds": 5.0}, 1)]
)
def test_a_simulation_whose_updates_are_all_refused_ends_and_says_why(
    end: dict[str, Any], clients: int
) -> None:
    # SymbioticLab/FedScale#148: the simulated clients go on for ever, and the aggregator waits for updates.
    # The seconds of max_seconds count from the first update that is taken, here and on a broker.
    with pytest.raises(FluffleError, match=r"would never end: .* bad-examples: the update claims"):
        Played(clients=clients, min_examples=100_000, **end)


class NanAt(SoftmaxRegression):
    """A task whose training gives NaN at some sites."""

    def __init__(self, *sites: int) -> None:
        super().__init__()
        self._sites, self._site = sites, 0

    def prepare(self, site: Site) -> int:
        """See SoftmaxRegression."""
        self._site = site.index
        return super().prepare(site)

    def train(self, weights: Weights, plan: Plan, *, seed: int, progress: Progress) -> Trained:
        """See SoftmaxRegression."""
        found = super().train(weights, plan, seed=seed, progress=progress)
        if self._site not in self._sites:
            return found
        broken = {name: np.full_like(array, np.nan) for name, array in found.weights.items()}
        return replace(found, weights=broken)


def test_a_device_whose_rounds_give_nan_waits_longer_and_longer_and_stops_nobody() -> None:
    task = NanAt(1)
    played = Played(
        task, clients=3, buffer_size=1, device_seconds="constant:1", max_updates=None, max_seconds=30
    )

    contributors = played.last.contributors
    assert set(contributors) == {"worker-0", "worker-2"}
    # It waits for 1, 2, 4, 8 and 16 s after rounds of one second.
    assert sum(played.unusable.values()) == 5
    assert "training gave NaN or infinite values in" in next(iter(played.unusable))
    assert contributors["worker-0"].updates == 30


def test_a_simulation_of_rounds_that_all_give_nan_ends_and_says_why() -> None:
    with pytest.raises(
        FluffleError, match="would never end: the last 10 rounds of each client gave no update"
    ):
        Played(NanAt(0, 1), clients=2)


def test_rounds_without_end_are_refused_when_they_are_drawn() -> None:
    with pytest.raises(ConfigError, match=r"a round of device .* would never end"):
        Played(clients=10, max_updates=1000, device_seconds="lognormal:1:400", redraw=True)


def test_updates_that_are_refused_for_now_end_no_simulation() -> None:
    played = Played(clients=1, buffer_size=1, device_seconds="constant:0.1", limit_messages=1, max_updates=3)

    # In two minutes: more than ten in a row.
    assert played.refused["too-many"] > 20
    assert played.last.updates == 3


def test_a_partial_buffer_is_used_when_it_has_waited_long_enough() -> None:
    played = Played(clients=2, buffer_size=8, device_seconds="constant:1", buffer_timeout=30, max_versions=2)

    began_at = played.versions[0].committed_at
    # Each device sends what it may have under way, and waits for a version that does not come.
    assert played.versions[1].committed_at - began_at <= 31
    assert played.last.finished


def test_a_version_is_committed_when_its_seconds_have_passed_though_no_update_comes() -> None:
    played = Played(clients=1, device_seconds="constant:10", buffer_size=1, commit_after=3, max_versions=4)

    began_at = played.versions[0].committed_at
    times = [version.committed_at - began_at for version in played.versions if version.folded]
    assert times[0] == pytest.approx(10)
    assert times[1] == pytest.approx(20)


def test_a_federation_ends_at_its_second_though_no_update_comes() -> None:
    played = Played(clients=2, buffer_size=1, device_seconds="spread:1:100", max_updates=None, max_seconds=20)

    assert played.seconds == pytest.approx(21)
    assert played.last.finished == "20 seconds have passed"
