"""`fluffle dashboard`: a page that shows a federation at work, and updates by itself."""

from fluffle.command_line import settings_command
from fluffle_cli.dashboard.program import run
from fluffle_cli.dashboard.settings import DashboardSettings

command = settings_command(
    DashboardSettings,
    run,
    about="Show a federation in the browser: accuracy, updates, staleness, workers, refusals, takeovers.\n\n"
    "It only reads, waits for a federation that is not there yet, and may be ended at any time. The role "
    "`monitor` (fluffle user add) is all that it needs.",
    # It waits for as long as it takes.
    without=("connect_timeout_s",),
)
