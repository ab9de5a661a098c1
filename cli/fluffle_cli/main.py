"""The `fluffle` command line: it starts the parts, and does none of their work."""

from importlib.metadata import version
from typing import Annotated

import typer

from fluffle.command_line import clean_exit, new_app
from fluffle_aggregator.__main__ import command as aggregator
from fluffle_cli.broker_command import app as broker
from fluffle_cli.certificates import command as certs
from fluffle_cli.dashboard.program import command as dashboard
from fluffle_cli.data_check.command import app as data
from fluffle_cli.demo.program import command as demo
from fluffle_cli.federation_command import app as federation
from fluffle_cli.keys_command import app as keys
from fluffle_cli.model_command import app as model
from fluffle_cli.privacy.command import app as privacy
from fluffle_cli.rejected_command import app as rejected
from fluffle_cli.report.command import command as report
from fluffle_cli.setup_command import command as setup
from fluffle_cli.simulate.program import command as simulate
from fluffle_cli.status_command import command as status
from fluffle_cli.survey.command import command as survey
from fluffle_cli.task_command import app as task
from fluffle_cli.trace_command import command as trace
from fluffle_cli.user_command import app as user
from fluffle_helper.__main__ import command as helper
from fluffle_worker.__main__ import command as worker
from fluffle_worker.__main__ import evaluator_command as evaluator

app = new_app(
    "Asynchronous federated learning over RabbitMQ.\n\n"
    "Workers train a model where their data is, and publish a weight update whenever they finish. An "
    "aggregator weighs each update by its staleness and publishes new versions of the model. Start with "
    "`fluffle demo`; try a task of your own with `fluffle task check`."
)
broker.command("setup")(setup)
broker.command("certs")(certs)
app.command("demo")(demo)
app.command("simulate")(simulate)
app.add_typer(task, name="task")
app.add_typer(data, name="data")
app.add_typer(broker, name="broker")
app.add_typer(user, name="user")
app.add_typer(federation, name="federation")
app.add_typer(keys, name="keys")
app.add_typer(privacy, name="privacy")
app.command("aggregator")(aggregator)
app.command("worker")(worker)
app.command("evaluator")(evaluator)
app.command("helper")(helper)
app.command("survey")(survey)
app.command("status")(status)
app.command("trace")(trace)
app.command("dashboard")(dashboard)
app.command("report")(report)
app.add_typer(model, name="model")
app.add_typer(rejected, name="rejected")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fluffle {version('fluffle')}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Define the options before the command."""


def run() -> None:
    """Run the command line; a FluffleError becomes one sentence on stderr."""
    with clean_exit():
        app(prog_name="fluffle")


if __name__ == "__main__":
    run()
