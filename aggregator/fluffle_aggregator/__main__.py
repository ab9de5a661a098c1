"""`python -m fluffle_aggregator`, the same as `fluffle aggregator`."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial

from fluffle.broker import Broker
from fluffle.command_line import run_program, settings_command
from fluffle.connector import Connector
from fluffle.message_size import require_moments_fit, require_update_fits, require_version_fits
from fluffle.metrics import metered
from fluffle.model import Layout
from fluffle.policy_faults import Sizes
from fluffle.policy_watch import PolicyWatch, policy_watch_of
from fluffle.record import ModelVersion
from fluffle.stopping import stop_on_signals
from fluffle.telling import ReportingTeller
from fluffle.topology import topology_of
from fluffle_aggregator.charge import Charge
from fluffle_aggregator.first_version import first_version
from fluffle_aggregator.global_model import GlobalModel
from fluffle_aggregator.head import Head
from fluffle_aggregator.kernels import machine_code
from fluffle_aggregator.schedules import parse_schedule
from fluffle_aggregator.service import serve
from fluffle_aggregator.settings import AggregatorSettings
from fluffle_aggregator.trial import try_out

# With Python's own 5 ms the connection's thread, and RabbitMQ, would wait for arithmetic at each turn.
SWITCH_S = 0.0002


def charge_of(settings: AggregatorSettings, policies: PolicyWatch) -> Charge:
    """Return what the settings ask of an aggregator; ConfigError when they do not go together."""
    strategy, goal, rhythm = settings.make_strategy(), settings.make_goal(), settings.make_rhythm()
    plan, limit_bytes = settings.make_plan(strategy), settings.max_message_bytes

    def require_room(layout: Layout) -> None:
        optimizer = strategy.optimizer
        require_version_fits(layout, limit_bytes)
        require_moments_fit(layout, len(optimizer.starts), optimizer.name, limit_bytes)
        require_update_fits(layout, plan.codec, limit_bytes)
        version_bytes = 4 * layout.size + layout.beside_vector_size_bytes
        policies.require_safe(Sizes(version_bytes, 4 * layout.size * len(optimizer.starts)))

    def begin() -> ModelVersion:
        first = first_version(settings, strategy)
        require_room(first.layout)
        return first

    def continue_from(head: Head) -> GlobalModel:
        require_room(head.record.layout)
        return GlobalModel(
            head.record,
            head.moments,
            strategy=strategy,
            plan=plan,
            goal=goal,
            term=head.term + 1,
            schedule=parse_schedule(settings.learning_rate_schedule),
        )

    topology = topology_of(settings.federation)
    return Charge(
        name=settings.name,
        topology=topology,
        policy=settings.make_policy(),
        rhythm=rhythm,
        # All that one commit holds, one evaluation, and one message on its way.
        prefetch=strategy.buffer_size * rhythm.every + 2,
        downlink_codec=settings.downlink_codec,
        first_version=begin,
        continue_from=continue_from,
        try_out=partial(try_out, settings),
        teller=ReportingTeller(topology, role="aggregator", name=settings.name),
    )


def run(settings: AggregatorSettings) -> None:
    """Be an aggregator until the federation has finished, or until SIGTERM or Ctrl-C."""
    policies = policy_watch_of(settings, settings.management_url)
    charge = charge_of(settings, policies)
    # Compiled now: no update waits for it.
    machine_code()
    sys.setswitchinterval(SWITCH_S)
    stop = stop_on_signals()
    name = f"{settings.federation}/aggregator/{settings.name}"

    def prepare(_: Broker) -> None:
        # Now that RabbitMQ is there; with a policy that loses messages no aggregator starts.
        policies.require_safe_start()

    connector = Connector(settings, name=name, stop=stop, prepare=prepare)
    with (
        metered(
            charge.teller,
            host=settings.metrics_host,
            port=settings.metrics_port,
            federation=settings.federation,
            role="aggregator",
            name=settings.name,
        ) as teller,
        policies.watching(),
    ):
        serve(
            replace(charge, teller=teller),
            connector.connect,
            stop,
            patience_s=settings.connect_timeout_s,
        )


command = settings_command(
    AggregatorSettings,
    run,
    about="Weigh updates by their staleness and publish new versions of the model.\n\n"
    "Start a second one as a standby: RabbitMQ lets one of them lead, and the other takes over within a "
    "second when it dies. The aggregator keeps nothing on disk, and needs no TensorFlow but to build "
    "version 0 of a task.",
)

if __name__ == "__main__":
    run_program("fluffle_aggregator", command)
