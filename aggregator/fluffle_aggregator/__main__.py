"""`python -m fluffle_aggregator`, the same as `fluffle aggregator`."""

import sys

from fluffle.command_line import run_program, settings_command
from fluffle.stopping import stop_on_signals
from fluffle_aggregator.running import aggregate
from fluffle_aggregator.settings import AggregatorSettings

# With Python's default of 5 ms, the thread of the connection would wait for arithmetic at each switch.
SWITCH_S = 0.0002


def run(settings: AggregatorSettings) -> None:
    """Run an aggregator until the federation has finished, or until SIGTERM or Ctrl-C."""
    sys.setswitchinterval(SWITCH_S)
    aggregate(settings, stop_on_signals())


command = settings_command(
    AggregatorSettings,
    run,
    about="Weigh updates by their staleness and publish new versions of the model.\n\n"
    "Start a second one as a standby: RabbitMQ lets one of them lead, and the other takes over within a "
    "second if that one dies. The aggregator keeps nothing on disk. It needs TensorFlow only to build "
    "version 0 of a task.",
)

if __name__ == "__main__":
    run_program("fluffle_aggregator", command)
