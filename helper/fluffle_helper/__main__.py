"""`python -m fluffle_helper`, the same as `fluffle helper`."""

from fluffle.command_line import run_program, settings_command
from fluffle.stopping import stop_on_signals
from fluffle_helper.settings import HelperSettings


def run(settings: HelperSettings) -> None:
    """Run a helper until the federation has finished, or until SIGTERM or Ctrl-C."""
    # Only here: --help does not wait for the library of ciphers.
    from fluffle_helper.running import help_to_open

    help_to_open(settings, stop_on_signals())


command = settings_command(
    HelperSettings,
    run,
    about="Open the sums of a federation with secure aggregation: one of several helpers, and each should "
    "be run by somebody else.\n\n"
    "A helper never sees an update. It reads which updates a sum has, checks that no sum tells about a "
    "single one of them, and sends what takes the masks off the sum. It writes into its ledger what it has "
    "opened: never start it with an older copy of that file.",
)

if __name__ == "__main__":
    run_program("fluffle_helper", command)
