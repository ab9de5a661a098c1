"""`python -m fluffle_helper`, the same as `fluffle helper`."""

from fluffle.command_line import run_program, settings_command
from fluffle.stopping import stop_on_signals
from fluffle_helper.settings import HelperSettings


def run(settings: HelperSettings) -> None:
    """Run a helper until SIGTERM or Ctrl-C."""
    # Only here: --help does not wait for the library of ciphers.
    from fluffle_helper.running import help_out

    help_out(settings, stop_on_signals())


command = settings_command(
    HelperSettings,
    run,
    about="Open the sums of secure aggregation, so that the aggregator learns the sum of each buffer and no "
    "single update.\n\n"
    "A helper never sees an update. It checks each close record of the aggregator, writes to its ledger that "
    "it has opened these updates, and answers with the sum of their masks. Run it where the aggregator's "
    "operator has no access; any of the helpers but one may be away.",
)

if __name__ == "__main__":
    run_program("fluffle_helper", command)
