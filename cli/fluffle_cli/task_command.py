"""`fluffle task check`: tries a task on this machine, without a broker."""

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import ClassVar

from pydantic import Field
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from fluffle import logs
from fluffle.checked_task import CheckedTask, TaskModel
from fluffle.command_line import new_app, settings_command
from fluffle.consoles import table_console
from fluffle.errors import TaskError
from fluffle.message_size import codecs_that_fit, require_version_fits
from fluffle.model import some_of
from fluffle.plan import Plan
from fluffle.settings import SharedSettings
from fluffle.task import READY_TASKS, Site, load_task
from fluffle_aggregator.goal import usual_yardstick
from fluffle_worker import task_check
from fluffle_worker.progress import RoundDisplay
from fluffle_worker.settings import TASK

app = new_app("Try a task of your own before you run it in a federation.")


class CheckSettings(SharedSettings):
    """Flags of `fluffle task check`."""

    part: ClassVar[str] = "check"

    task: str = Field(description=f"What to try: {TASK}")
    site: int = Field(0, ge=0, description="Which of the sites this is, from 0.")
    sites: int = Field(4, ge=1, description="Sites that a ready task's data is split among.")
    split: str = Field(
        "dirichlet:0.5", description="How it is split: iid, dirichlet:ALPHA or shards:LABELS_PER_SITE."
    )
    split_seed: int = Field(0, ge=0, description="Seed of the split.")
    seed: int = Field(0, ge=0, description="Seed of the weights and of the minibatches.")
    local_steps: int = Field(20, ge=1, description="Minibatches of the round that is trained.")
    batch_size: int = Field(32, ge=1, description="Examples in a minibatch, where the data is arrays.")


def check(settings: CheckSettings) -> None:
    """Do once what a worker and an evaluator do repeatedly, and show the results."""
    with _step("task", "importing it") as said:
        task = CheckedTask(load_task(settings.task))
        said.append("imported")
    with _step("model", "building it") as said:
        model = task_check.build_twice(task, settings.seed)
        said.append("built twice from one seed with the same weights")
    with _step("data", "loading it") as said:
        site = _site(settings)
        examples = task.prepare(site)
        said.append(f"{examples:,} examples at site {site.index} of {site.count}")
    plan = Plan(local_steps=settings.local_steps, batch_size=settings.batch_size, keep_optimizer=True)
    with _step("round") as said, RoundDisplay(logs.console()).show("training") as progress:
        trained = task_check.train_once(task, model, plan, seed=settings.seed, progress=progress)
        said.append(f"{settings.local_steps} minibatches: {_in_words(trained.metrics)}")
    result = task_check.weights_after(model, trained)
    with _step("evaluation", "evaluating on held-out data") as said:
        before = task_check.evaluate_if_possible(task, task_check.all_weights(model))
        after = before and task_check.evaluate_if_possible(task, result)
        task_check.require_finite(after)
        said.append(_evaluation_in_words(before, after))
    with _step("file", "saving and loading") as said, tempfile.TemporaryDirectory() as folder:
        size_bytes = task_check.save_and_load(task, model, result, Path(folder) / "model.keras")
        said.append(f"saved and loaded with the same weights, {decimal(size_bytes)}")
    require_version_fits(model.layout, settings.max_message_bytes)
    _console().print()
    _console().print(_table(model))
    _console().print()
    _say(f"an update takes at most {_sizes(model, settings.max_message_bytes)}")
    if unmoved := task_check.unmoved_tensors(model, result):
        _say(
            f"the round did not change {some_of(unmoved)}: does the model's output depend on it? "
            "Freeze weights that are not to be trained, and they are not sent"
        )
    _say(
        f"{settings.task} works. Watch it in a federation: "
        f"fluffle demo --task {settings.task}{_target_for(settings.task, after)}"
    )


def _site(settings: CheckSettings) -> Site:
    if settings.site >= settings.sites:
        raise TaskError(
            f"there is no site {settings.site} of {settings.sites} (0 to {settings.sites - 1}): set "
            "--site or --sites"
        )
    return Site(index=settings.site, count=settings.sites, split=settings.split, seed=settings.split_seed)


@contextmanager
def _step(name: str, meanwhile: str = "") -> Iterator[list[str]]:
    """Show on a terminal what is being tried, then print one line with the result and the time."""
    said: list[str] = []
    started = time.monotonic()
    with logs.console().status(meanwhile) if meanwhile else nullcontext():
        yield said
    _say(f"{name:<11} {', '.join(said)} ({time.monotonic() - started:.1f} s)")


def _table(model: TaskModel) -> Table:
    table = Table("group", "tensors", "parameters", "bytes sent", "", show_edge=False)
    for column in table.columns[1:4]:
        column.justify = "right"
    for size in task_check.sizes_of(model):
        table.add_row(
            size.group,
            f"{size.tensors:,}",
            f"{size.parameters:,}",
            f"{size.size_bytes:,}",
            MEANING[size.group],
        )
    return table


MEANING: Mapping[str, str] = {
    "trained": "changed by the optimizer",
    "statistic": "computed from data, sent as values",
    "frozen": "never changes; every site must have the same",
    "local": "stays in the worker's folder",
}


def _sizes(model: TaskModel, limit_bytes: int) -> str:
    sizes = codecs_that_fit(model.layout, limit_bytes)
    return ", ".join(f"{decimal(size_bytes)} with --codec {codec}" for codec, size_bytes in sizes.items())


def _evaluation_in_words(before: Mapping[str, float] | None, after: Mapping[str, float] | None) -> str:
    if before is None or after is None:
        return "the task has no held-out data (an evaluator needs it, a worker does not)"
    return f"held out: {_in_words(before)} before the round, {_in_words(after)} after it"


def _target_for(task: str, metrics: Mapping[str, float] | None) -> str:
    """Return the flag that a demo of this task needs: a bound for one of its metrics."""
    if task in READY_TASKS or not metrics:
        return ""
    yardstick = usual_yardstick(metrics)
    if yardstick is None:
        return f' --target "{next(iter(metrics))}>=BOUND"'
    if yardstick.higher_is_better:
        return f' --target "{yardstick.metric}>=0.9"'
    return f' --target "{yardstick.metric}<={metrics[yardstick.metric] / 2:.2g}"'


def _in_words(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()) or "no metrics"


def _console() -> Console:
    # A row of the table per line, also where no terminal says how wide it is.
    return table_console(120, highlight=False)


def _say(line: str) -> None:
    _console().print(line, markup=False, soft_wrap=True)


app.command("check")(
    settings_command(
        CheckSettings,
        check,
        about="Try a task on this machine: one short round of training, evaluation, saving and loading.\n\n"
        "Nothing is sent, and no RabbitMQ is needed. It calls every function of the task, and takes seconds "
        "after the framework and the data are loaded. Run it before anything else, and at each site, since "
        "it reads this site's data. If something is wrong, one sentence names the function of the task and "
        "what to do, and the exit code is 2; -v shows the traceback.\n\n"
        "At the end a table shows which tensors are sent: trained ones, and statistics of the data, such as "
        "those of BatchNormalization. Frozen and local ones are not sent (docs/models.md).",
        without=(
            *("federation", "broker_url", "broker_password_file", "heartbeat_s", "connect_timeout_s"),
            *("broker_ca_file", "broker_cert_file", "broker_key_file", "log_format"),
        ),
    )
)
