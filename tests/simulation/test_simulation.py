"""Thousands of short lives of a federation in which everything goes wrong, each a pure function of its seed.

More of them, or one again: FLUFFLE_SIMULATION_SEEDS=5000-9999 or =1234 before `pytest tests/simulation`.
"""

import os
from collections.abc import Callable
from dataclasses import replace

import pytest
from simulation.world import World

from fluffle.sites import SiteEvaluation
from fluffle.update import AppliedUpdates
from fluffle_aggregator.config import AggregatorConfig
from fluffle_aggregator.effects import Ack, Effect, Now
from fluffle_aggregator.global_model import GlobalModel
from fluffle_aggregator.head import Head
from fluffle_aggregator.leader import Leader
from fluffle_aggregator.site_reports import SiteReports

SEEDS = os.environ.get("FLUFFLE_SIMULATION_SEEDS", "0-1499")
AT_ONCE = 250


def blocks(seeds: str) -> list[range]:
    """Return the seeds of "FIRST-LAST" or of a single number, in blocks of one test each."""
    first, _, last = seeds.partition("-")
    end = int(last or first) + 1
    return [range(start, min(start + AT_ONCE, end)) for start in range(int(first), end, AT_ONCE)]


def live_through(
    seed: int,
    *,
    make_leader: type[Leader] = Leader,
    told: Callable[[AggregatorConfig], AggregatorConfig] = lambda config: config,
) -> None:
    """Run one simulation; what it finds is an AssertionError with the seed and all that happened."""
    world = World(seed, make_leader=make_leader, told=told)
    try:
        world.run()
    except Exception as error:
        happened = "\n".join(world.log)
        raise AssertionError(
            f"{happened}\n{type(error).__name__}: {error}\n"
            f"again: FLUFFLE_SIMULATION_SEEDS={seed} .venv/bin/pytest tests/simulation"
        ) from error


@pytest.mark.parametrize("seeds", blocks(SEEDS), ids=lambda seeds: f"{seeds[0]}-{seeds[-1]}")
def test_whatever_dies_freezes_or_comes_late_every_promise_holds_after_each_step(seeds: range) -> None:
    for seed in seeds:
        live_through(seed)


def with_a_lossy_downlink(config: AggregatorConfig) -> AggregatorConfig:
    """Return the config of aggregators whose versions travel in int8."""
    return replace(config, downlink_codec="int8")


@pytest.mark.parametrize("seeds", blocks(SEEDS)[::4], ids=lambda seeds: f"{seeds[0]}-{seeds[-1]}")
def test_so_they_do_where_the_versions_that_workers_read_are_rounded(seeds: range) -> None:
    for seed in seeds:
        live_through(seed, told=with_a_lossy_downlink)


def test_a_seed_gives_the_same_simulation_again() -> None:
    lives = [World(7), World(7), World(8)]
    for life in lives:
        life.run()

    once, again, another = (life.log for life in lives)
    assert once == again != another


class AcksFirst(Leader):
    """Acks what it holds before the version that contains it is confirmed."""

    def tick(self, now: Now) -> list[Effect]:
        """See Leader."""
        held, self.held = self.held, []
        return [Ack(tuple(held)), *super().tick(now)]


def keeps_the_term(config: AggregatorConfig) -> AggregatorConfig:
    """Return the config of aggregators that go on under the term that they find."""
    return replace(
        config, continue_from=lambda head: config.continue_from(replace(head, term=max(head.term - 1, 0)))
    )


def forgets_what_is_applied(config: AggregatorConfig) -> AggregatorConfig:
    """Return the config of aggregators that do not know which updates the model contains."""

    def continue_from(head: Head) -> GlobalModel:
        model = config.continue_from(head)
        model.applied = AppliedUpdates()
        return model

    return replace(config, continue_from=continue_from)


class TakesTheLastForTheNewest(SiteReports):
    """Keeps the evaluation of a site that came last, even if it is of an older version."""

    def take_in(self, found: SiteEvaluation, *, elapsed_s: float) -> bool:
        """See SiteReports."""
        self.reports.pop(found.worker, None)
        self._last.pop(found.worker, None)
        return super().take_in(found, elapsed_s=elapsed_s)


def takes_older_evaluations(config: AggregatorConfig) -> AggregatorConfig:
    """Return the config of aggregators that put up with a site's older evaluation."""

    def continue_from(head: Head) -> GlobalModel:
        model = config.continue_from(head)
        model.sites = TakesTheLastForTheNewest(model.record)
        return model

    return replace(config, continue_from=continue_from)


def forgets_who_has_answered(config: AggregatorConfig) -> AggregatorConfig:
    """Return the config of aggregators that go on with a survey's sums, but not with whose they are."""

    def continue_from(head: Head) -> GlobalModel:
        model = config.continue_from(head)
        if model.survey:
            model.survey.state = replace(model.survey.state, answered=())
        return model

    return replace(config, continue_from=continue_from)


class AcksAnswersFirst(Leader):
    """Acks a survey's answer before the version that contains it is confirmed."""

    def tick(self, now: Now) -> list[Effect]:
        """See Leader."""
        held, self._surveying.held = self._surveying.held, []
        return [Ack(tuple(held)), *super().tick(now)]


@pytest.mark.parametrize(
    ("make_leader", "told", "says"),
    [
        (AcksFirst, lambda config: config, "is lost"),
        (Leader, keeps_the_term, "goes on from|is there twice"),
        (Leader, forgets_what_is_applied, "folds what was folded before|has forgotten"),
        (Leader, takes_older_evaluations, "has an older one of"),
        (Leader, forgets_who_has_answered, "has forgotten the answers|has another result"),
        (AcksAnswersFirst, lambda config: config, "answer .* is lost"),
    ],
    ids=[
        *("acks first", "keeps the term", "forgets what is applied", "takes older evaluations"),
        *("forgets who has answered", "acks answers first"),
    ],
)
def test_an_aggregator_that_breaks_a_promise_is_found_out_soon(
    make_leader: type[Leader], told: Callable[[AggregatorConfig], AggregatorConfig], says: str
) -> None:
    def live_on() -> None:
        for seed in range(500):
            live_through(seed, make_leader=make_leader, told=told)

    with pytest.raises(AssertionError, match=says):
        live_on()
