"""A leader and the evaluations of its sites: what counts once, what ends the federation, what survives."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from builders import a_config, a_site_evaluation, a_strategy, an_evaluation, an_update
from fake_broker import FakeBroker
from leading import Clock, Message, a_server, newest, rejected, send, take_the_lead, unacked, work_off

from fluffle.record import ModelVersion
from fluffle.sites import SiteEvaluation, SiteMetric
from fluffle.wire import encode_site_evaluation
from fluffle_aggregator.goal import Goal, Target, Yardstick
from fluffle_aggregator.reports import PATIENCE_S, SILENT_S, UPDATES_WITHOUT_REPORT
from fluffle_aggregator.site_reports import MOST_COUNTED

WORST = Goal(target=Target("worst.accuracy", ">=", 0.8), target_hold=2)
MEAN = Goal(target=Target("sites.accuracy", ">=", 0.8), target_hold=1)


class Federation:
    """A leader on a fake server, to which messages are sent one after the other."""

    def __init__(self, goal: Goal) -> None:
        self.config = a_config(a_strategy(buffer_size=1), goal=goal)
        self.server = a_server(self.config)
        self.clock = Clock()
        self._updates = 0
        self.broker = FakeBroker(self.server)
        self.leader = take_the_lead(self.broker, self.config, self.clock)

    def take_over(self) -> None:
        """Let another leader take the place of this one, which dies."""
        self.broker.__exit__(None, None, None)
        self.broker = FakeBroker(self.server)
        self.leader = take_the_lead(self.broker, self.config, self.clock)
        work_off(self.leader, self.broker)

    def send(self, *messages: Message) -> None:
        """Send messages, and let the leader take them in."""
        for message in messages:
            send(self.server, self.config, message)
            work_off(self.leader, self.broker)

    def train(self, worker: str = "w1") -> ModelVersion:
        """Make one more version by an update of a worker, and return it."""
        base = self.newest.version
        self._updates += 1
        self.send(an_update(worker, self._updates, base_version=base, base_term=2 if base else 1))
        return self.newest

    @contextmanager
    def at_work(self, worker: str) -> Iterator[None]:
        """Let a process work under a worker's name."""
        with FakeBroker(self.server, user=worker) as broker:
            broker.take_name(self.config.topology, worker, label=worker, on_rival=lambda _: None)
            yield

    def pass_time(self, seconds: float) -> None:
        """Let time pass."""
        self.clock.seconds += seconds
        work_off(self.leader, self.broker)

    @property
    def newest(self) -> ModelVersion:
        """The newest version in the stream."""
        return newest(self.server, self.config)

    @property
    def refused(self) -> list[object]:
        """Why messages were refused."""
        return [line["reason"] for line in rejected(self.server, self.config)]


def test_the_worst_site_ends_the_federation_without_an_evaluator() -> None:
    running = Federation(WORST)
    for version, worst in enumerate((0.5, 0.5, 0.8, 0.9)):
        running.send(a_site_evaluation("w1", version, 0.95), a_site_evaluation("w2", version, worst))
        if version < 3:
            running.train()
    closing = running.newest
    assert closing.closing == "worst.accuracy>=0.8 held for 2 evaluations"
    running.send(
        a_site_evaluation("w1", closing.version, 0.9), a_site_evaluation("w2", closing.version, 0.85)
    )

    last = running.newest
    assert last.finished == "worst.accuracy>=0.8 held for 2 evaluations"
    assert last.best is not None
    assert (last.best.version, last.best_by) == (3, "worst.accuracy:max")
    assert last.site_evaluation is not None
    assert last.site_evaluation.version == closing.version
    assert last.site_evaluation.metrics["worst.accuracy"] == pytest.approx(0.85)
    assert last.site_evaluation.metrics["sites.accuracy"] == pytest.approx(0.875)
    assert unacked(running.server, running.config) == []


def test_what_nobody_has_trained_reaches_no_target() -> None:
    running = Federation(MEAN)

    running.send(a_site_evaluation("first", 0, 1.0))

    assert running.train().target_held == 0
    assert running.newest.site_evaluation is None


def test_an_evaluation_by_the_sites_is_of_the_version_that_half_of_the_examples_are_at() -> None:
    running = Federation(Goal())
    running.send(*(a_site_evaluation(name, 0, 0.5) for name in ("w1", "w2", "w3")))
    running.train()
    running.send(a_site_evaluation("w1", 1, 0.9))
    still = running.train()
    running.send(a_site_evaluation("w1", 2, 0.9), a_site_evaluation("w2", 2, 0.9))
    after = running.train()

    assert still.site_evaluation is None
    assert after.site_evaluation is not None
    assert after.site_evaluation.version == 2
    assert after.site_evaluation.metrics["sites.accuracy"] == pytest.approx((0.9 + 0.9 + 0.5) / 3)
    assert (after.site_reports, after.sites["w3"].counted) == (0, 1)


def test_a_report_that_comes_twice_or_late_counts_once() -> None:
    running = Federation(Goal())
    running.send(a_site_evaluation("w1", 0, 0.1))
    running.train()
    newer, older = a_site_evaluation("w1", 1, 0.7), a_site_evaluation("w1", 0, 0.1)
    running.send(newer, newer, older, replace(newer, metrics=older.metrics))
    after = running.train()

    assert after.sites["w1"].metrics == newer.metrics
    assert after.sites["w1"].version == 1
    assert running.refused == []
    assert unacked(running.server, running.config) == []


def test_a_successor_knows_what_the_sites_have_reported() -> None:
    running = Federation(WORST)
    running.train()
    running.send(a_site_evaluation("w1", 1, 0.9), a_site_evaluation("w2", 1, 0.9))
    before = running.train()
    running.send(a_site_evaluation("w1", 2, 0.9))
    # No record has this one: RabbitMQ delivers it again.
    running.take_over()
    running.send(a_site_evaluation("w2", 2, 0.9))

    assert before.target_held == 1
    assert running.newest.closing == "worst.accuracy>=0.8 held for 2 evaluations"


@pytest.mark.parametrize(
    ("report", "reason"),
    [
        (a_site_evaluation("w1", 0, federation="other"), "wrong-federation"),
        (a_site_evaluation("w1", 5), "future-version"),
        (a_site_evaluation("w1", 0, term=7), "unknown-base"),
        (a_site_evaluation("w1", 0, examples=2_000_000_000), "bad-examples"),
        (a_site_evaluation("w1", 0, 1e200), "too-large"),
    ],
)
def test_a_report_that_cannot_count_is_refused_with_a_reason(report: SiteEvaluation, reason: str) -> None:
    running = Federation(Goal())

    running.send(report)

    assert running.refused == [reason]
    assert running.train().sites == {}


def test_nobody_reports_for_another_site_or_through_the_exchange_of_evaluators() -> None:
    running = Federation(Goal())
    topology = running.config.topology
    for user, exchange in (("w2", topology.updates_in), ("w1", topology.evaluations_in)):
        with FakeBroker(running.server, user=user) as sender:
            sender.publish(exchange.name, "", encode_site_evaluation(a_site_evaluation("w1")), {})
    work_off(running.leader, running.broker)

    assert running.refused == ["foreign-sender", "foreign-sender"]


def test_a_site_whose_metric_is_not_finite_misses_the_target_and_is_in_no_mean() -> None:
    running = Federation(MEAN)
    running.send(a_site_evaluation("w1", 0), a_site_evaluation("w2", 0))
    running.train()
    running.send(a_site_evaluation("w1", 1, 0.9), a_site_evaluation("w2", 1, math.nan))
    missed = running.train()
    running.send(a_site_evaluation("w1", 2, 0.9), a_site_evaluation("w2", 2, 0.9))

    assert missed.target_held == 0
    assert missed.site_evaluation is not None
    assert missed.site_evaluation.metrics["sites.accuracy"] == pytest.approx(0.9)
    assert math.isnan(missed.site_evaluation.metrics["worst.accuracy"])
    assert missed.not_finite_held == 0
    assert running.newest.closing == "sites.accuracy>=0.8 held for an evaluation"


def test_sites_that_are_all_not_finite_end_the_federation() -> None:
    running = Federation(Goal())
    for version in (1, 2, 3):
        running.train()
        running.send(a_site_evaluation("w1", version, math.nan))

    assert running.newest.closing.startswith("3 evaluations in a row were not finite")


def test_a_site_without_the_metric_of_the_target_misses_it() -> None:
    running = Federation(MEAN)
    running.send(a_site_evaluation("w1", 0), a_site_evaluation("w2", 0, metric="auc"))
    running.train()
    running.send(a_site_evaluation("w1", 1, 0.9), a_site_evaluation("w2", 1, 0.9, metric="auc"))
    after = running.train()

    assert after.site_evaluation is not None
    assert after.site_evaluation.metrics["sites.accuracy"] == pytest.approx(0.9)
    assert after.target_held == 0


def test_a_site_that_has_left_no_longer_counts() -> None:
    running = Federation(WORST)
    running.send(a_site_evaluation("w1", 0, 0.9), a_site_evaluation("left", 0, 0.1))
    with running.at_work("w1"):
        running.pass_time(SILENT_S)
        for version in (1, 2):
            running.train()
            running.send(a_site_evaluation("w1", version, 0.9))

    assert set(running.newest.sites) == {"w1"}
    assert running.newest.closing == "worst.accuracy>=0.8 held for 2 evaluations"


def test_a_site_that_has_left_comes_back_with_nothing_older_than_what_it_had_reported() -> None:
    running = Federation(Goal())
    running.send(a_site_evaluation("w1", 0))
    running.train()
    running.send(a_site_evaluation("back", 1, 0.9))
    with running.at_work("w1"):
        running.pass_time(SILENT_S)
    running.send(a_site_evaluation("back", 0, 0.1))
    without = running.train()
    running.send(a_site_evaluation("back", 1, 0.8))
    again = running.train()

    assert set(without.sites) == {"w1"}
    assert again.sites["back"].version == 1
    assert again.sites["back"].metrics[0].value == 0.8


def test_a_site_that_is_there_and_silent_counts_for_a_bounded_number_of_evaluations() -> None:
    running = Federation(Goal())
    running.send(a_site_evaluation("w1", 0, 0.9, examples=100), a_site_evaluation("hung", 0, 0.1))
    for version in range(1, 2 * MOST_COUNTED):
        running.train()
        running.send(a_site_evaluation("w1", version, 0.9, examples=100))

    assert set(running.train().sites) == {"w1"}


def test_the_end_waits_for_the_sites_for_a_while_only_and_names_those_that_do_not_come(
    caplog: pytest.LogCaptureFixture,
) -> None:
    running = Federation(Goal(max_updates=1))
    running.send(a_site_evaluation("w1", 0), a_site_evaluation("slow", 0))
    closing = running.train()
    running.send(a_site_evaluation("w1", closing.version, 0.75))
    with running.at_work("slow"):
        running.pass_time(PATIENCE_S - 1)
        assert not running.newest.finished
        running.pass_time(1)

    last = running.newest
    assert last.finished == "1 updates were applied"
    assert last.site_evaluation is not None
    assert last.site_evaluation.version == closing.version
    assert last.site_evaluation.metrics["sites.accuracy"] == pytest.approx(0.75)
    assert "the last model is not evaluated at some sites" in caplog.text
    assert "slow" in caplog.text


@pytest.mark.parametrize(
    ("goal", "says"),
    [
        (WORST, ("no site evaluates", "--local-validation")),
        (
            Goal(patience=3),
            ("nobody evaluates, so that the goal cannot be reached: start fluffle evaluator", "patience 3"),
        ),
    ],
    ids=["a target at the sites", "patience"],
)
def test_a_goal_that_nobody_evaluates_is_warned_of(
    goal: Goal, says: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    running = Federation(goal)
    for _ in range(UPDATES_WITHOUT_REPORT):
        running.train()

    assert all(each in caplog.text for each in says)


def test_the_log_shows_the_means_over_all_sites_and_the_metric_that_the_goal_is_about(
    caplog: pytest.LogCaptureFixture,
) -> None:
    running = Federation(WORST)
    running.send(a_site_evaluation("w1", 0), a_site_evaluation("w2", 0))
    running.train()
    with caplog.at_level("INFO"):
        running.send(a_site_evaluation("w1", 1, 0.9), a_site_evaluation("w2", 1, 0.7))

    [said] = [each for each in caplog.messages if "evaluated by the sites" in each]
    assert "'sites.accuracy': 0.8" in said
    assert "'worst.accuracy': 0.7" in said
    assert "spread.accuracy" not in said


def test_more_reports_than_the_window_holds_do_not_stop_the_leader() -> None:
    running = Federation(Goal())
    running.send(*(a_site_evaluation(f"w{number}", 0) for number in range(50)))
    after = running.train()

    assert len(after.sites) == 50
    assert unacked(running.server, running.config) == []


def test_an_evaluator_and_sites_are_told_apart() -> None:
    running = Federation(Goal(target=Target("accuracy", ">=", 0.8), target_hold=2))
    running.train()
    running.send(an_evaluation(1, {"accuracy": 0.9}), a_site_evaluation("w1", 1, 0.1))
    after = running.train()

    assert after.target_held == 1
    assert after.evaluation == an_evaluation(1, {"accuracy": 0.9})
    assert after.best == after.evaluation
    assert after.site_evaluation is not None
    assert after.site_evaluation.metrics["sites.accuracy"] == pytest.approx(0.1)


def test_the_gain_of_a_sites_own_round_is_kept_beside_newer_reports() -> None:
    running = Federation(Goal())
    running.send(a_site_evaluation("w1", 0, 0.5), a_site_evaluation("w1", 0, 0.5, tuned=0.8))
    running.train()
    running.send(a_site_evaluation("w1", 1, 0.6))
    report = running.train().sites["w1"]

    assert report.version == 1
    assert report.gains_version == 0
    [gain] = report.gains
    assert gain.name == "accuracy"
    assert [gain.before, gain.after] == pytest.approx([0.5, 0.8])


def test_patience_ends_a_federation_that_gets_no_better_and_the_best_version_is_named() -> None:
    goal = Goal(best=Yardstick("sites.accuracy", True), patience=2, min_delta=0.01)
    running = Federation(goal)
    for version, value in enumerate((0.5, 0.7, 0.705, 0.69), start=1):
        running.train()
        running.send(a_site_evaluation("w1", version, value))

    said = "sites.accuracy did not improve by more than 0.01 in 2 evaluations"
    assert running.newest.closing == said
    assert running.newest.best is not None
    assert running.newest.best.version == 3


def test_versions_are_compared_over_the_sites_that_have_evaluated_both() -> None:
    running = Federation(Goal(best=Yardstick("sites.accuracy", True)))
    running.send(a_site_evaluation("easy", 0), a_site_evaluation("left", 0))
    running.train()
    running.send(a_site_evaluation("easy", 1, 0.9), a_site_evaluation("left", 1, 1.0))
    with running.at_work("easy"):
        running.pass_time(SILENT_S)
    bests = []
    for version, value in ((2, 0.9), (3, 0.9), (4, 0.85), (5, 0.91)):
        running.train()
        running.send(a_site_evaluation("easy", version, value), a_site_evaluation("hard", version, 0.1))
        bests.append(running.train().best)

    # A site that left, or came, makes no version better or worse.
    assert [best.version for best in bests if best] == [1, 1, 1, 5]


def test_the_recall_of_a_class_that_no_site_has_is_no_metric_of_all_sites() -> None:
    running = Federation(Goal())
    empty = (SiteMetric("recall/0", "mean", 0, 0), SiteMetric("accuracy", "mean", 9, 10))
    running.train()
    running.send(replace(a_site_evaluation("w1", 1), metrics=empty))
    after = running.train()

    assert after.site_evaluation is not None
    assert after.site_evaluation.metrics["worst.accuracy"] == 0.9
    assert "sites.recall/0" not in after.site_evaluation.metrics
    assert after.not_finite_held == 0
