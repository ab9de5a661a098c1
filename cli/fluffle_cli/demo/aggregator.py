"""`python -m fluffle_cli.demo.aggregator`: an aggregator whose target holds for seconds.

So it is in a simulation, too. Three evaluations in a row, which `fluffle aggregator` counts, are half a
second for one strategy and six seconds for another, and a demo compares strategies.
"""

from typing import Final

from fluffle.command_line import run_program, settings_command
from fluffle_aggregator.__main__ import run
from fluffle_aggregator.goal import Goal
from fluffle_aggregator.settings import AggregatorSettings
from fluffle_cli.held import HOLD_S, GoalByTime

# The evaluation of a version comes at most so long after it.
EVALUATION_S: Final = 0.5


class DemoAggregatorSettings(AggregatorSettings):
    """The settings of an aggregator; `target_hold` is not used."""

    def make_goal(self) -> Goal:
        """Return what ends the federation: its target counts once it has held for 3 seconds."""
        return GoalByTime.of(super().make_goal(), hold_s=HOLD_S, patience_s=EVALUATION_S)


if __name__ == "__main__":
    run_program("fluffle_cli.demo.aggregator", settings_command(DemoAggregatorSettings, run))
