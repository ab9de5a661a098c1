"""Faults that users of other frameworks have reported of evaluations at sites, tried here."""

import pytest
from builders import a_config, a_site_evaluation, a_strategy, an_update
from fake_broker import FakeBroker
from leading import Clock, a_server, newest, send, take_the_lead, work_off

from fluffle.record import ModelVersion
from fluffle.sites import over_sites
from fluffle_aggregator.goal import Goal, Target, Yardstick
from fluffle_cli.watching.as_json import as_json
from fluffle_cli.watching.state import FederationState
from fluffle_cli.watching.view import Version


class Federation:
    """Two sites that evaluate each version, and a leader that makes one of each update."""

    def __init__(self, goal: Goal, *, metric: str = "accuracy") -> None:
        self.config = a_config(a_strategy(buffer_size=1), goal=goal)
        self.server = a_server(self.config)
        self.broker = FakeBroker(self.server)
        self.leader = take_the_lead(self.broker, self.config, Clock())
        self._metric = metric
        self._updates = 0

    def evaluate(self, first: float, second: float) -> ModelVersion:
        """Let both sites, with 10 and 30 examples, evaluate the newest version."""
        version = newest(self.server, self.config).version
        for worker, value, examples in (("w1", first, 10), ("w2", second, 30)):
            found = a_site_evaluation(worker, version, value, examples=examples, metric=self._metric)
            send(self.server, self.config, found)
        work_off(self.leader, self.broker)
        return newest(self.server, self.config)

    def train(self) -> ModelVersion:
        """Make one more version."""
        base = newest(self.server, self.config).version
        self._updates += 1
        update = an_update("w1", self._updates, base_version=base, base_term=2 if base else 1)
        send(self.server, self.config, update)
        work_off(self.leader, self.broker)
        return newest(self.server, self.config)


def test_every_metric_of_the_sites_is_aggregated_without_a_function_of_the_users_own() -> None:
    """flwrlabs/flower #983 and #1348: the aggregated metrics of distributed evaluation stay empty."""
    running = Federation(Goal(), metric="f1/2")
    running.evaluate(0.1, 0.1)
    running.train()
    running.evaluate(0.5, 0.9)
    state = FederationState("digits", 0.0)
    state.read(Version.of(running.train()))

    found = as_json(state.view(0.0))

    assert found["evaluation"] is not None
    assert "sites.f1/2" in str(found["evaluation"])
    assert found["best_by"] == "sites.f1/2:max"


def test_the_mean_is_the_one_that_the_sites_own_values_and_examples_give() -> None:
    """TsingZ0/PFLlib #115: the averaged accuracy is none that the clients' accuracies give."""
    running = Federation(Goal())
    running.train()
    running.evaluate(0.5, 0.9)
    version = running.train()

    mean = over_sites(version.sites)["accuracy"].mean
    values = [(each.metrics[0].value, each.examples) for each in version.sites.values()]

    assert mean == pytest.approx(0.8)
    assert mean == pytest.approx(sum(value * count for value, count in values) / 40)


def test_the_last_model_is_evaluated_too_and_may_be_the_best() -> None:
    """NVIDIA/NVFlare #790: the best model is chosen from all rounds but the last."""
    running = Federation(Goal(best=Yardstick("sites.accuracy", True), max_updates=2))
    running.evaluate(0.1, 0.1)
    running.train()
    running.evaluate(0.5, 0.5)
    running.train()

    last = running.evaluate(0.7, 0.7)

    assert last.finished == "2 updates were applied"
    assert last.best is not None
    assert last.best.version == last.version - 1
    assert last.best.metrics["sites.accuracy"] == pytest.approx(0.7)


def test_a_federation_of_one_version_has_a_best_one() -> None:
    """londonaicentre/FLIP #811: a run of one round ends without a best model, and says nothing."""
    running = Federation(Goal(best=Yardstick("sites.accuracy", True), max_versions=1))
    running.evaluate(0.1, 0.1)
    running.train()

    last = running.evaluate(0.5, 0.5)

    assert last.finished == "1 versions were made"
    assert last.best is not None
    assert last.best.version == last.version - 1


def test_a_goal_that_no_site_measures_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """londonaicentre/FLIP #718: the metric that chooses the best model is one that no client sends."""
    running = Federation(Goal(target=Target("sites.f1", ">=", 0.9)))
    running.train()
    running.evaluate(0.5, 0.5)

    assert "no evaluation has the metric that counts" in caplog.text
    assert "'wanted': 'sites.f1', 'there': 'accuracy'" in caplog.text


@pytest.mark.parametrize("metric", ["sites.accuracy", "worst.accuracy"])
def test_training_stops_early_and_leaves_a_federation_that_has_finished_as_usual(metric: str) -> None:
    """OpenFL #1616 and FederatedAI/FATE #1106: stop after rounds without improvement, as if regularly."""
    running = Federation(Goal(best=Yardstick(metric, True), patience=2))
    running.evaluate(0.1, 0.1)
    for value in (0.5, 0.7, 0.7, 0.6):
        running.train()
        running.evaluate(value, value)

    last = running.evaluate(0.65, 0.65)

    assert last.finished == f"{metric} did not improve in 2 evaluations"
    assert last.best is not None
    assert last.best.metrics[metric] == pytest.approx(0.7)
    assert last.closing == last.finished
