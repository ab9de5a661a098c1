"""`federate`: a data frame's sites train one model together, each in a Spark task."""

import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
from py4j.protocol import Py4JError
from pyspark import SparkContext, StorageLevel, TaskContext
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame

from fluffle import logs
from fluffle.errors import ConfigError, FluffleError
from fluffle.management import ManagementSettings
from fluffle.settings import SharedSettings, load_arguments
from fluffle_spark.accumulators import counted
from fluffle_spark.beside import parts_beside
from fluffle_spark.columns import chosen_columns
from fluffle_spark.data_table import data_table
from fluffle_spark.driver_errors import in_one_sentence
from fluffle_spark.logins import NO_PASSWORD_FILE, own_url, urls_from_files, users_for_the_run
from fluffle_spark.order import Order, SiteReport
from fluffle_spark.preflight import look_at_broker
from fluffle_spark.site_task import SPARK_SCHEMA, run_site
from fluffle_spark.sites import Sites, by_column, evenly_divided, require_slots
from fluffle_spark.tables import TABULAR, table_settings
from fluffle_spark.task_code import code_of
from fluffle_spark.terminated import clean_up_on_sigterm
from fluffle_spark.watched import Watched
from fluffle_worker.settings import WorkerSettings

CANCEL_EVERY_S = 0.5
# Settings of a worker that say what the data frame says here.
OF_EACH_SITE = ("name", "site", "sites", "data", "label")


def federate(
    df: DataFrame,
    *,
    task: str,
    federation: str,
    broker_url: str,
    label: str,
    features: str | Sequence[str] | None = None,
    workers: int | None = None,
    site_column: str | None = None,
    password_folder: str | Path | None = None,
    make_users: bool = False,
    management_url: str | None = None,
    aggregator: bool | Mapping[str, object] = False,
    evaluator: bool | Mapping[str, object] = False,
    waves: int = 0,
    **settings: object,
) -> DataFrame:
    """Train a task on the rows of a data frame, asynchronously, in a worker for each site.

    Either the rows are divided evenly among `workers` sites, or each value of `site_column` is a site. A site
    is a Spark task, which runs until the federation has finished. Its rows are the training data of `task`
    ("module:name", or a ready task), whose own `train_data` is not called: x is float32 [rows, features], or
    what the one column of arrays in `features` holds, or a dictionary with an array for each column where
    there are both; y is the column `label`. Without `features` they are all other columns.

    All sites log in as `broker_url` says. With `password_folder` each logs in under its own name, with the
    password in FOLDER/SITE; with `make_users` RabbitMQ gets a user for each site for the time of the
    run, over its management interface (`management_url`), and `broker_url` is an administrator's.

    With `aggregator` and `evaluator`, True or their settings, these run beside the driver. With the task
    tabular the aggregator learns columns and classes from the data frame, and an evaluator needs rows of its
    own: {"data": URL}. With `waves` there
    may be more sites than Spark has slots: a site ends after so many confirmed updates and lets another one
    work. `settings` are those of `fluffle worker`.

    Returns a data frame with a row for each site, see `fluffle_spark.order.SiteReport`. Raises ConfigError
    and TaskError for what is wrong before anything starts, FluffleError when all sites failed or when Spark
    could not run them.
    """
    logs.show_to_people("driver")
    _require_rows_and_sites(df, workers, site_column, waves)
    _require_settings(aggregator=aggregator, evaluator=evaluator)
    if make_users and password_folder is not None:
        raise ConfigError("make_users and password_folder do not go together: give one of them")
    if own := [name for name in OF_EACH_SITE if name in settings]:
        raise ConfigError(f"{own[0]} is no argument of federate: each site gets it from the data frame")
    named = {"task": task, "federation": federation, "broker_url": broker_url}
    checked = load_arguments(WorkerSettings, {**settings, **named})
    shared_names = checked.model_fields_set & set(SharedSettings.model_fields)
    shared: dict[str, Any] = {name: getattr(checked, name) for name in shared_names}
    inputs = chosen_columns(df, features, label, site_column)
    code = code_of(task)
    sites = _sites(df, workers, site_column, [*inputs, label])
    spark = df.sparkSession
    require_slots(spark.sparkContext, len(sites.names), takes_turns=bool(waves))
    with ExitStack() as running:
        running.enter_context(clean_up_on_sigterm())
        urls: Mapping[str, str] = {}
        if make_users:
            given = shared if management_url is None else {**shared, "management_url": management_url}
            administrator = load_arguments(ManagementSettings, given)
            urls = running.enter_context(users_for_the_run(administrator, sites.names))
        elif password_folder is not None:
            urls = urls_from_files(broker_url, Path(password_folder), sites.names)
        orders = [
            Order(
                site=name,
                task=task,
                features=inputs,
                label=label,
                settings={
                    **_settings_of_sites(checked),
                    "name": name,
                    "site": at,
                    "sites": len(sites.names),
                    "broker_url": urls.get(name) or own_url(checked),
                    **NO_PASSWORD_FILE,
                    # FLUFFLE_LABEL is for the driver: the rows come with their labels.
                    "data": None,
                    "label": None,
                },
                data_table=data_table(checked.config),
                code=code,
                rounds_per_turn=waves,
            )
            for at, name in enumerate(sites.names)
        ]
        parts = {
            part: _settings_beside({**shared, "task": task}, given)
            for part, given in (("aggregator", aggregator), ("evaluator", evaluator))
            if given is not False
        }
        if task == TABULAR and "aggregator" in parts:
            described = table_settings(df, inputs, label, parts["aggregator"])
            parts["aggregator"] = running.enter_context(described)
        look_at_broker(checked, urls.get(sites.names[0]), expects_aggregator="aggregator" not in parts)
        job = _Job(spark.sparkContext, federation)
        running.enter_context(parts_beside(parts, job.cancel))
        running.callback(job.end)
        reports = job.run(sites, orders)
        # In here: parts beside the driver are not waited for where nothing was trained.
        _judge(reports)
    rows = [tuple(getattr(report, name) for name in SiteReport.__slots__) for report in reports]
    return spark.createDataFrame(rows, SPARK_SCHEMA)


def _require_rows_and_sites(df: object, workers: object, site_column: object, waves: object) -> None:
    """Raise ConfigError for data that is no data frame to train on, and unless it is clear what a site is."""
    if not isinstance(df, DataFrame):
        raise ConfigError(f"federate takes a data frame of Spark, not {type(df).__name__}")
    if df.isStreaming:
        raise ConfigError("federate takes no stream: write it to a table, and read that")
    spark = df.sparkSession
    if not hasattr(spark, "sparkContext") or not hasattr(spark, "_jsparkSession"):
        raise ConfigError(
            "federate needs a classic Spark session: Spark Connect has no broadcasts and accumulators"
        )
    if (workers is None) == (site_column is None):
        raise ConfigError("say what a site is: give either workers=N, or site_column=COLUMN")
    for name, number, least in (("workers", workers, 1), ("waves", waves, 0)):
        if number is not None and (not isinstance(number, int) or number < least):
            raise ConfigError(f"{name} must be a whole number from {least} on, not {number!r}")


def _require_settings(**parts: object) -> None:
    """Raise ConfigError for a part beside the driver that is neither wanted nor described."""
    for part, given in parts.items():
        if not isinstance(given, bool | Mapping):
            raise ConfigError(f"{part} must be True, False or a dictionary of its settings, not {given!r}")


def _sites(df: DataFrame, workers: int | None, site_column: str | None, columns: Sequence[str]) -> Sites:
    with in_one_sentence():
        if site_column is not None:
            return by_column(df, site_column, columns)
        return evenly_divided(df, workers or 0, columns)


def _settings_of_sites(checked: WorkerSettings) -> dict[str, Any]:
    """Return what is set for the workers: here, in the environment or in the file."""
    given = checked.model_fields_set - {"task", "config", "broker_password_file"}
    values = {name: getattr(checked, name) for name in given}
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


def _settings_beside(shared: Mapping[str, Any], given: bool | Mapping[str, object]) -> dict[str, Any]:
    """Return the settings of a part beside the driver: its own ones before the shared ones."""
    own = given if isinstance(given, Mapping) else {}
    # The password file belongs to the URL that it was given with.
    login = NO_PASSWORD_FILE if "broker_url" in own else {}
    # FLUFFLE_LABEL is for the driver, and only the task tabular takes one.
    return {**shared, "label": None, **login, **own}


def _judge(reports: Sequence[SiteReport]) -> None:
    failed = [report for report in reports if report.error]
    if failed and len(failed) == len(reports):
        raise FluffleError(f"no site could train: site {failed[0].site}: {failed[0].error}")


class _Job:
    """The Spark jobs of one federation, which `cancel` ends."""

    def __init__(self, sc: SparkContext, federation: str) -> None:
        self._sc, self._federation = sc, federation
        self._tag = f"fluffle-{uuid.uuid4().hex}"
        self._because = ""
        self._is_over = threading.Event()

    def cancel(self, because: str) -> None:
        """End the sites, and return after `end`; `run` raises FluffleError with this sentence."""
        self._because = because
        # Spark cancels the jobs of this moment only, and another one may be about to begin.
        with suppress(PySparkException, Py4JError):
            self._sc.cancelJobsWithTag(self._tag)
            while not self._is_over.wait(CANCEL_EVERY_S):
                self._sc.cancelJobsWithTag(self._tag)

    def end(self) -> None:
        """Tell `cancel` that no more jobs will come."""
        self._is_over.set()

    def run(self, sites: Sites, orders: Sequence[Order]) -> list[SiteReport]:
        """Run all sites to their end, turn after turn where they take turns."""
        takes_turns = orders[0].rounds_per_turn > 0
        # On two executors, if there are two: if one is lost, the other still has the rows. Without them Spark
        # starts every site once more (see fluffle_spark.stages).
        sites.rows.persist(StorageLevel.DISK_ONLY_2)
        try:
            with self._described("the rows go to their sites"), in_one_sentence(self._why):
                sites.rows.count()
            reports = self._turn(sites, orders)
            while takes_turns and any(not report.ended and not report.error for report in reports):
                later = self._turn(sites, orders)
                reports = [one.then(two) for one, two in zip(reports, later, strict=True)]
        finally:
            with suppress(PySparkException, Py4JError):
                sites.rows.unpersist()
        return reports

    def _turn(self, sites: Sites, orders: Sequence[Order]) -> list[SiteReport]:
        # Not logged, not in the configuration and not in the plan, unlike what a job's description holds.
        shared = self._sc.broadcast(tuple(orders))
        try:
            what = f"{len(orders)} sites train {orders[0].task}"
            with (
                Watched(self._sc, len(orders), self._tag) as watched,
                self._described(what),
                in_one_sentence(self._why),
            ):
                tasks = partial(_run_partition, shared, watched.accumulator)
                ended = sites.rows.mapInArrow(tasks, SPARK_SCHEMA)
                rows = counted(ended, ("rounds", "updates")).collect()
        except BaseException:
            # Ctrl-C too: PySpark's own handler cannot cancel a job while its thread waits for Java.
            with suppress(PySparkException, Py4JError):
                self._sc.cancelJobsWithTag(self._tag)
            raise
        finally:
            # Where the session has been stopped, it is gone already.
            with suppress(PySparkException, Py4JError):
                shared.destroy()
        found = {row["site"]: SiteReport(**row.asDict()) for row in rows}
        return [found[order.site] for order in orders]

    def _why(self) -> str:
        return self._because

    @contextmanager
    def _described(self, what: str) -> Iterator[None]:
        before = self._sc.getLocalProperty("spark.job.description")
        self._sc.addJobTag(self._tag)
        self._sc.setJobDescription(f"Fluffle {self._federation}: {what}")
        try:
            yield
        finally:
            self._sc.removeJobTag(self._tag)
            # None removes it.
            self._sc.setLocalProperty("spark.job.description", cast("str", before))


def _run_partition(
    orders: Any, accumulator: Any, batches: Iterator[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    """Be the site whose number is that of the partition."""
    context = TaskContext.get()
    if context is None:
        raise RuntimeError("a site runs in a Spark task only")
    order = orders.value[context.partitionId()]
    yield from run_site(batches, order, lambda report: accumulator.add((report.encode(),)))
