"""`fluffle simulate --dp central`: the deployed leader adds the noise, and devices keep to their turns."""

from collections import Counter
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy_task
import pytest
from privately import made_again

from fluffle.errors import ConfigError
from fluffle.privacy.noise import NoiseSecret
from fluffle.record import ModelVersion
from fluffle.settings import load_arguments
from fluffle.topology import topology_of
from fluffle.update import UpdateId, WeightUpdate
from fluffle.wire import decode_inbound
from fluffle_cli.simulate.federation import SimulatedFederation
from fluffle_cli.simulate.program import run
from fluffle_cli.simulate.settings import SimulateSettings

GIVEN: dict[str, Any] = {
    "federation": "digits",
    "task": "numpy_task:task",
    "clients": 6,
    "buffer_size": 2,
    "device_seconds": "lognormal:1:1",
    "dp": "central",
    "dp_epsilon": 8.0,
    "dp_clip": "0.5",
    "dp_max_updates": 4,
    "dp_separation": 3,
}
BUDGET = "all workers have sent the 4 updates that the privacy budget allows"


def settings_of(**given: Any) -> SimulateSettings:
    found = {name: value for name, value in (GIVEN | given).items() if value is not None}
    return load_arguments(SimulateSettings, found)


class Played(SimulatedFederation):
    """A simulation that has been played, with its versions and the updates that came."""

    def __init__(self, **given: Any) -> None:
        self.versions: list[ModelVersion] = []
        self.came: dict[UpdateId, WeightUpdate] = {}
        super().__init__(settings_of(**given), numpy_task.task, self.versions.append)
        self.run()

    def _deliver(self, body: bytes, user: str, exchange: str) -> None:
        if exchange == topology_of("digits").updates_in.name:
            update = decode_inbound(body)
            assert isinstance(update, WeightUpdate)
            self.came[update.id] = update
        super()._deliver(body, user, exchange)

    @property
    def last(self) -> ModelVersion:
        return self.versions[-1]

    @property
    def updates_of_each(self) -> Counter[str]:
        return Counter(one.id.worker for version in self.versions for one in version.folded)

    @property
    def sums_of_each(self) -> dict[str, list[int]]:
        """The numbers of the sums that have an update of each worker."""
        found: dict[str, list[int]] = {}
        for version in self.versions:
            for one in version.folded:
                assert version.privacy is not None
                found.setdefault(one.id.worker, []).append(version.privacy.steps)
        return found


@pytest.mark.parametrize("noise", ["correlated", "plain"])
def test_a_run_ends_when_all_devices_have_sent_what_they_may_and_nothing_is_refused(noise: str) -> None:
    played = Played(dp_noise=noise)

    assert played.last.finished == BUDGET
    assert set(played.updates_of_each.values()) == {4}
    assert len(played.updates_of_each) == 6
    assert not played.refused
    assert all(later - one >= 3 for sums in played.sums_of_each.values() for one, later in pairwise(sums))


def test_each_version_has_the_noise_that_the_plan_says() -> None:
    played = Played(staleness="constant")

    sums = [[(played.came[one.id], 1.0) for one in version.folded] for version in played.versions[1:]]
    secret = NoiseSecret(sha256(b"fluffle simulate 0").digest())
    for version, vector in zip(
        played.versions, made_again(played.versions, sums, secret=secret), strict=True
    ):
        np.testing.assert_allclose(version.vector, vector, rtol=1e-5, atol=1e-6)


def test_the_noise_follows_from_the_seed_whatever_goes_wrong() -> None:
    faults: dict[str, Any] = {"crashes": 0.2, "late": "0.5:3", "availability": "on-off:5:2"}
    one, same, other = (Played(**faults, seed=seed) for seed in (1, 1, 2))

    assert one.crashes > 0
    assert not one.refused
    assert set(one.updates_of_each.values()) == {4}
    np.testing.assert_array_equal(one.last.vector, same.last.vector)
    assert not np.array_equal(one.last.vector, other.last.vector)


def test_an_update_that_comes_twice_spends_no_more_than_the_budget() -> None:
    played = Played(duplicates=0.5)

    assert played.duplicates > 0
    assert max(played.updates_of_each.values()) == 4
    assert played.last.finished == BUDGET
    assert all(later - one >= 3 for sums in played.sums_of_each.values() for one, later in pairwise(sums))


def test_too_few_devices_for_the_separation_leave_sums_out_after_the_timeout() -> None:
    played = Played(clients=2, buffer_timeout=50.0)

    assert played.last.finished == BUDGET
    assert set(played.updates_of_each.values()) == {4}
    # Two sums are left out between two of the four that have both workers' updates.
    assert played.last.privacy is not None
    assert played.last.privacy.steps == 10
    assert played.seconds > 6 * 50.0


def test_an_adaptive_clip_follows_the_norms_as_that_of_a_real_leader_does() -> None:
    played = Played(dp_noise="plain", dp_clip="adaptive:0.1")

    clips = [version.privacy.clip for version in played.versions if version.privacy]
    assert played.last.finished == BUDGET
    assert len(set(clips)) > 5


def test_an_update_of_a_private_simulation_says_nothing_of_its_site() -> None:
    for update in Played().came.values():
        assert (update.loss, update.train_s, update.examples, update.steps) == (None, 0.0, 1, 1)


def test_the_command_says_what_is_promised_and_what_is_spent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(settings_of(out=tmp_path / "run"))

    said = capsys.readouterr().out
    assert "(epsilon 8, delta 1e-05, at most 4 updates)" in said
    assert "privacy: epsilon 8 of 8 spent (delta 1e-05), at most 4 of 4 updates of a worker" in said
    assert f"finished because             {BUDGET}" in said
    assert (tmp_path / "run" / "report.html").exists()


def test_workers_that_add_all_the_noise_count_what_they_send_and_leave() -> None:
    given = {"dp": "local", "dp_separation": None, "strategy": "reuse", "dp_epsilon": 200.0}

    played, again = Played(**given), Played(**given)

    assert played.versions[-1].finished == BUDGET
    by_worker: dict[str, list[int]] = {}
    for update in played.came.values():
        by_worker.setdefault(update.id.worker, []).append(update.released)
    assert {name: sorted(counts) for name, counts in by_worker.items()} == {
        name: [1, 2, 3, 4] for name in by_worker
    }
    assert len(by_worker) == 6
    assert played.versions[-1].vector.tolist() == again.versions[-1].vector.tolist()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"dp_secret": Path("noise.secret")}, "the noise of a simulation follows from its seed"),
        ({"local_validation": 0.2}, "no site reports what it measures"),
        ({"train": False, "local_steps": 3}, "dp looks at what they contain"),
        ({"weigh_by": "examples"}, "leave weigh_by out"),
        ({"strategy": "fadas"}, "choose fedbuff or fedavg"),
        ({"dp_epsilon": -1.0}, "epsilon must be above 0"),
        ({"dp": "distributed"}, "give dp central or dp local"),
    ],
)
def test_what_privacy_does_not_go_together_with_is_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        settings_of(**given).check()


def test_without_privacy_a_simulation_still_needs_an_end() -> None:
    settings = load_arguments(SimulateSettings, {"task": "numpy_task:task"})

    with pytest.raises(ConfigError, match="a simulation needs an end"):
        settings.check()
