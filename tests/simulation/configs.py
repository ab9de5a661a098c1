"""Random settings for the aggregators of the simulation: every strategy, optimizer and commit schedule."""

from dataclasses import replace
from random import Random

from builders import a_config, a_strategy, a_version
from simulation.senders import POISON

from fluffle.broker import Delivery
from fluffle.survey.messages import Survey
from fluffle.topology import Topology
from fluffle_aggregator.commit_schedule import CommitSchedule
from fluffle_aggregator.config import AggregatorConfig
from fluffle_aggregator.gates.limits import Limits
from fluffle_aggregator.global_model import GlobalModel
from fluffle_aggregator.goal import Goal
from fluffle_aggregator.strategies.strategy import Strategy
from fluffle_aggregator.survey import NO_AIM, SurveyAim
from fluffle_aggregator.surveying import MOST_HELD

# Nothing of so few rows is published.
FEWEST_ROWS = 1


def some_strategy(chance: Random) -> Strategy:
    """Return one of the strategies."""
    name = chance.choice(["fedasync", "fedbuff", "fedbuff", "fedavg"])
    rule = chance.choice(["mean", "mean", "median", "trimmed-mean:0.3"])
    return a_strategy(
        name,
        buffer_size=chance.randint(1, 3) if rule == "mean" else 3,
        rule=rule,
        mixing=chance.choice([0.3, 1.0]),
        staleness=chance.choice(["constant", "polynomial", "polynomial:2", "hinge:10:1"]),
        optimizer="sgd"
        if name == "fedasync"
        else chance.choice(["sgd", "momentum", "adam", "yogi", "adagrad"]),
    )


def some_survey(chance: Random) -> SurveyAim:
    """Return when the survey that the federation begins with ends; most have none."""
    wanted, seconds = chance.choice([(0, None)] * 7 + [(chance.randint(1, 4), None), (0, 5.0), (2, 30.0)])
    return SurveyAim(wanted=wanted, seconds=seconds, min_count=FEWEST_ROWS)


def some_config(
    chance: Random, strategy: Strategy, topology: Topology, survey_aim: SurveyAim
) -> AggregatorConfig:
    """Return a config for a strategy; not everybody who starts an aggregator asks for the survey."""
    commit_schedule = CommitSchedule(
        every=1 if strategy.one_update_per_version else chance.choice([1, 1, 2, 3]),
        after_s=None if strategy.one_update_per_version else chance.choice([None, 5.0]),
        buffer_timeout_s=chance.choice([20.0, 900.0]),
    )
    goals = [Goal()] * 4 + [Goal(max_versions=chance.randint(1, 6)), Goal(max_updates=chance.randint(1, 12))]
    aim = chance.choice([survey_aim] * 4 + [replace(NO_AIM, min_count=FEWEST_ROWS)])
    config = a_config(
        strategy,
        first=replace(a_version(), survey=Survey(aim.wanted) if aim.is_asked else None),
        survey_aim=aim,
        commit_schedule=commit_schedule,
        limits=Limits(max_staleness=chance.choice([None, None, 1])),
        goal=chance.choice(goals),
        average_decay=chance.choice([0.0, 0.0, 0.9]),
        try_out=try_out,
    )
    prefetch = max(config.prefetch, MOST_HELD + 2 if aim.is_asked else 0)
    return replace(config, topology=topology, prefetch=prefetch)


def some_topology(chance: Random, topology: Topology) -> Topology:
    """Return the federation's queues, of which the one for updates may soon be full."""
    updates = topology.updates
    few = {**updates.arguments, "x-delivery-limit": chance.choice([3, 20])}
    if chance.random() < 0.15:
        few["x-max-length-bytes"] = 2_000
    return replace(topology, updates=replace(updates, arguments=few))


def try_out(_: GlobalModel, delivery: Delivery) -> str:
    """Say what becomes of a process that takes in a message."""
    return "was killed" if delivery.body.startswith(POISON) else ""
