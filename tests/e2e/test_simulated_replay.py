"""A simulation makes the same model, bit for bit, as a real run whose updates came in the same order."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy_task
import pytest
from brokers import all_versions
from federation import Federation

from fluffle.checked_task import CheckedTask
from fluffle.compression import compress
from fluffle.model import Weights
from fluffle.record import Folded, ModelVersion
from fluffle.safetensors_file import ModelFile
from fluffle.settings import load_arguments
from fluffle.wire import encode_update
from fluffle_cli.node import BrokerNode
from fluffle_cli.simulate.in_memory import LeaderInMemory
from fluffle_cli.simulate.settings import SimulateSettings
from fluffle_cli.simulate.sites import Sites
from fluffle_cli.simulate.training import OneByOne, Round

UPDATES, SITES = 18, 3
AGGREGATOR = {
    "strategy": "fedbuff",
    "buffer_size": 2,
    "codec": "int8",
    "max_updates": UPDATES,
    "local_steps": 5,
}


class Replay:
    """Trains the rounds of a real run again, in the order in which it folded them."""

    def __init__(self, settings: SimulateSettings) -> None:
        self.versions: dict[int, ModelVersion] = {}
        task = CheckedTask(numpy_task.task)
        model = task.model(settings.seed)
        self._local: Weights = model.local
        self.leader = LeaderInMemory(settings, ModelFile(model.layout, model.weights), self._note)
        self._note(self.leader.newest)
        self._trainer = OneByOne(task, Sites(settings, numpy_task.task))
        self._seed = settings.seed

    def _note(self, version: ModelVersion) -> None:
        self.versions[version.version] = version

    def take_in(self, one: Folded, at_s: float) -> None:
        """Train the round of an update from the base that its worker had, and deliver it."""
        base, site = self.versions[one.base_version], int(one.id.worker.removeprefix("site-"))
        # Each worker adds its site to its seed.
        seed = self._seed + site
        trained = self._trainer.trained(Round(site, base, self._local, one.id, seed, at_s))
        random = np.random.default_rng([seed, one.id.sequence, 1])
        update = replace(trained.update, vector=compress(base.plan.codec, trained.vector, random))
        way_in = self.leader.topology.updates_in.name
        self.leader.deliver(encode_update(update), one.id.worker, way_in, at_s)
        self.leader.tick(at_s)


@pytest.mark.parametrize(
    "given",
    [{}, pytest.param({"strategy": "fedasync", "codec": "float32", "mixing": 0.4}, marks=pytest.mark.long)],
)
def test_the_updates_of_a_real_run_in_their_order_make_the_same_versions_in_a_simulation(
    node: BrokerNode, tmp_path: Path, federation: str, given: dict[str, str | float]
) -> None:
    chosen = {
        name: each for name, each in (AGGREGATOR | given).items() if given == {} or name != "buffer_size"
    }
    flags = [text for name, each in chosen.items() for text in (f"--{name.replace('_', '-')}", str(each))]
    with Federation(federation, node.amqp_url, tmp_path, task="numpy_task:task") as running:
        leader = running.aggregator("leader", *flags)
        workers = [running.worker(site, "--delay", str(0.02 * 3**site), sites=SITES) for site in range(SITES)]
        assert [part.wait_for_exit() for part in (leader, *workers)] == [0] * (1 + SITES)
        with running.connect() as broker:
            history = list(all_versions(broker, running.topology))

    replay = Replay(load_arguments(SimulateSettings, {"federation": federation, "clients": SITES, **chosen}))
    for version in history:
        for one in version.folded:
            replay.take_in(one, version.elapsed_s)

    assert {one.id.worker for version in history for one in version.folded} == {"site-0", "site-1", "site-2"}
    assert replay.leader.finished == history[-1].finished
    assert replay.leader.newest.updates == history[-1].updates >= UPDATES
    for version in history:
        again = replay.versions[version.version]
        np.testing.assert_array_equal(again.vector, version.vector)
        assert [(one.id, one.staleness, one.weight) for one in again.folded] == [
            (one.id, one.staleness, one.weight) for one in version.folded
        ]
