"""`fluffle task check`: tries a task on this machine, without a broker."""

import math
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
from fluffle.data_source import reading_from
from fluffle.errors import LayoutError, NoHeldOutData, TaskError
from fluffle.message_size import codecs_that_fit, require_version_fits
from fluffle.model import Weights, some_of
from fluffle.plan import Plan
from fluffle.safetensors_file import ModelFile
from fluffle.sites import SiteMetric
from fluffle.table_model import named
from fluffle.task import DATA_SETS, Progress, load_task
from fluffle.update import UpdateId
from fluffle_aggregator.goal import usual_yardstick
from fluffle_aggregator.initial_model import first_version
from fluffle_worker.data.table import with_data_table
from fluffle_worker.progress import show_bar
from fluffle_worker.round import TrainedUpdate, train_round, weights_after
from fluffle_worker.settings import SiteSettings

app = new_app("Try a task of your own before you run it in a federation.")


class CheckSettings(SiteSettings):
    """Flags of `fluffle task check`."""

    part: ClassVar[str] = "check"

    seed: int = Field(0, ge=0, description="Random seed of the weights and of the minibatches.")
    local_steps: int = Field(20, ge=1, description="Minibatches of the round that is trained.")
    batch_size: int = Field(32, ge=1, description="Examples in a minibatch, where the data is arrays.")


def check(settings: CheckSettings) -> None:
    """Do once what a worker and an evaluator do repeatedly, and show the results."""
    with _step("task", "importing it") as said:
        loaded = reading_from(load_task(settings.task), settings.source("train"))
        task = CheckedTask(with_data_table(loaded, settings.config))
        said.append("imported")
    with _step("model", "building it") as said:
        model = _build_twice(task, settings.seed)
        said.append("built twice from one seed with the same weights")
    with _step("data", "loading it") as said:
        site = settings.make_site()
        examples = task.prepare(site)
        said.append(f"{examples:,} examples at site {site.index} of {site.count}")
    plan = Plan(local_steps=settings.local_steps, batch_size=settings.batch_size, keep_optimizer=True)
    with _step("round") as said, show_bar("training") as progress:
        trained = train_once(task, model, plan, seed=settings.seed, progress=progress)
        said.append(f"{settings.local_steps} minibatches: {_in_words(trained.metrics)}")
    before = {**model.weights, **model.local}
    after = weights_after(model.layout, model.layout.flatten(model.weights), trained)
    with _step("evaluation", "evaluating on held-out data") as said:
        metrics: Mapping[str, float] = {}
        try:
            said.append(f"held out: {_in_words(task.evaluate(before))} before the round")
            metrics = task.evaluate(after)
            said.append(f"{_in_words(metrics)} after it")
        except NoHeldOutData:
            said.append("the task has no held-out data (an evaluator needs it, a worker does not)")
        _require_finite(metrics)
    if found := task.validate(before):
        with _step("site", "evaluating on what this site holds out") as said:
            said.append(f"{found[0]:,} examples held out: {_at_site(found)} before the round")
            said.append(f"{_at_site(task.validate(after) or found)} after it")
    with _step("file", "saving and loading") as said, tempfile.TemporaryDirectory() as folder:
        size_bytes = _save_and_load(task, model, after, Path(folder) / "model.keras")
        said.append(f"saved and loaded with the same weights, {decimal(size_bytes)}")
    require_version_fits(model.layout, settings.max_message_bytes)
    _console().print("", _table(model), "", sep="\n")
    sizes = codecs_that_fit(model.layout, settings.max_message_bytes)
    _say(
        "an update takes at most "
        + ", ".join(f"{decimal(size_bytes)} with --codec {codec}" for codec, size_bytes in sizes.items())
    )
    trained_names = {spec.name for spec in model.layout.tensors if spec.group == "trained"}
    if unmoved := sorted(trained_names - set(_changed(before, after))):
        _say(
            f"the round did not change {some_of(unmoved)}: does the model's output depend on it? "
            "Freeze weights that are not to be trained, and they are not sent"
        )
    if table := model.layout.table:
        _say(f"the model takes {named(table.columns)}, and tells {table.label!r}: {table.outputs}")
        _say(f"{settings.task} works with this data. docs/how-to/tabular.md has the commands of a federation")
        return
    _say(
        f"{settings.task} works. Watch it in a federation: "
        f"fluffle demo --task {settings.task}{_target_for(settings.task, metrics)}"
    )


def train_once(
    task: CheckedTask, model: TaskModel, plan: Plan, *, seed: int, progress: Progress
) -> TrainedUpdate:
    """Train one round as a worker does; raises TaskError when its update could not be sent."""
    start = ModelFile(model.layout, model.weights)
    version = first_version(start, federation="check", plan=plan, strategy="")
    update_id = UpdateId("check", "check", 1)
    trained = train_round(task, version, model.local, update_id=update_id, seed=seed, progress=progress)
    if trained.unusable:
        raise TaskError(trained.unusable)
    return trained


def _build_twice(task: CheckedTask, seed: int) -> TaskModel:
    first, again = task.model(seed), task.model(seed)
    if difference := first.layout.difference(again.layout, whose="the first one"):
        raise TaskError(f"initial_weights gave two models from one seed: {difference}")
    if changed := _changed({**first.weights, **first.local}, {**again.weights, **again.local}):
        raise TaskError(
            f"initial_weights gave other values for {some_of(changed)} when it was called again "
            f"with the seed {seed}: draw random numbers from the seed only"
        )
    return again


def _require_finite(metrics: Mapping[str, float]) -> None:
    """Raise TaskError for metrics on held-out data that are NaN or infinite: they would end a federation."""
    if bad := [f"{name} {value}" for name, value in metrics.items() if not math.isfinite(value)]:
        raise TaskError(
            f"evaluate returned {some_of(bad)} after the round, "
            "and the training gave finite weights: the held-out data may hold missing values"
        )


def _save_and_load(task: CheckedTask, model: TaskModel, weights: Weights, path: Path) -> int:
    """Write the model to a file and read it again; return the size of the file in bytes."""
    task.save(weights, path)
    if not path.is_file():
        raise TaskError(f"save wrote no file to its path, {path.name}")
    loaded = task.load(path)
    try:
        model.layout.require(loaded.layout, whose="the saved one")
    except LayoutError as error:
        raise TaskError(f"load reads another model than save wrote: {error}") from error
    if changed := _changed(weights, {**loaded.weights, **loaded.local}):
        raise TaskError(f"load reads other values than save wrote in {some_of(changed)}")
    return path.stat().st_size


def _changed(before: Weights, after: Weights) -> list[str]:
    """Return the names of the tensors whose bytes differ."""
    return [name for name in before if before[name].tobytes() != after[name].tobytes()]


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
    layout, frozen = model.layout, model.layout.frozen
    trained, statistics = (
        [spec.size for spec in layout.tensors if spec.group == group] for group in ("trained", "statistic")
    )
    local = [array.size for array in model.local.values()]
    parts = (frozen.tensors, frozen.parameters) if frozen else (0, 0)
    beside = layout.beside_vector_size_bytes
    for group, tensors, parameters, size_bytes, meaning in (
        ("trained", len(trained), sum(trained), 4 * layout.size, "changed by the optimizer"),
        ("statistic", len(statistics), sum(statistics), beside, "computed from data, sent as values"),
        ("frozen", *parts, 0, "never changes; every site must have the same"),
        ("local", len(local), sum(local), 0, "stays in the worker's folder"),
    ):
        if tensors:
            table.add_row(group, f"{tensors:,}", f"{parameters:,}", f"{size_bytes:,}", meaning)
    return table


def _target_for(task: str, metrics: Mapping[str, float]) -> str:
    """Return the flag that a demo of this task needs: a bound for one of its metrics."""
    if task in DATA_SETS or not metrics:
        return ""
    yardstick = usual_yardstick(metrics)
    if yardstick is None:
        return f' --target "{next(iter(metrics))}>=BOUND"'
    if yardstick.higher_is_better:
        return f' --target "{yardstick.metric}>=0.9"'
    return f' --target "{yardstick.metric}<={metrics[yardstick.metric] / 2:.2g}"'


def _in_words(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()) or "no metrics"


def _at_site(found: tuple[int, tuple[SiteMetric, ...]]) -> str:
    """Return what was measured at a site; what cannot be summed up over sites is marked."""
    return ", ".join(
        f"{each.name} {each.value:.4g}{' (not summed up)' if each.pooling == 'site_mean' else ''}"
        for each in found[1]
        if each.count
    )


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
