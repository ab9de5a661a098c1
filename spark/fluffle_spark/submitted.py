"""What `fluffle-spark.py` does in the driver."""

from pyspark.sql import DataFrame, SparkSession

from fluffle.consoles import print_table
from fluffle.errors import FluffleError
from fluffle.settings import SharedSettings
from fluffle_spark.driver_errors import in_one_sentence
from fluffle_spark.federating import federate
from fluffle_spark.settings import SparkSettings

COLUMNS = ("site", "rows", "rounds", "updates", "refused", "ran on", "ended")


def train(settings: SparkSettings) -> None:
    """Read the data, train, and print a row for each site. Raises FluffleError when a site failed."""
    spark = SparkSession.builder.appName(f"Fluffle {settings.federation}").getOrCreate()
    try:
        _train(spark, settings)
    finally:
        spark.stop()


def _train(spark: SparkSession, settings: SparkSettings) -> None:
    shared = settings.model_fields_set & set(SharedSettings.model_fields) - {"log_format", "verbose"}
    result = federate(
        read(spark, settings.data_url),
        task=settings.task,
        label=settings.label,
        features=settings.feature_names,
        workers=settings.workers,
        site_column=settings.site_column,
        password_folder=settings.password_folder,
        make_users=settings.make_users,
        management_url=settings.management_url,
        aggregator=settings.with_aggregator,
        evaluator=settings.with_evaluator,
        waves=settings.waves,
        **{name: getattr(settings, name) for name in shared | {"federation", "broker_url"}},
    )
    rows = result.collect()
    print_table(
        COLUMNS,
        [
            [row.site, *(f"{row[name]:,}" for name in COLUMNS[1:5]), row.ran_on, row.ended or row.error]
            for row in rows
        ],
    )
    if settings.out:
        with in_one_sentence():
            result.write.mode("overwrite").parquet(settings.out)
    if failed := [row for row in rows if row.error]:
        raise FluffleError(
            f"{len(failed)} of {len(rows)} sites failed: site {failed[0].site}: {failed[0].error}"
        )


def read(spark: SparkSession, data: str) -> DataFrame:
    """Return the data that a URL names, by its ending; raises FluffleError for what Spark cannot read."""
    with in_one_sentence():
        if data.endswith(".csv"):
            return spark.read.csv(data, header=True, inferSchema=True)
        return spark.read.json(data) if data.endswith(".json") else spark.read.parquet(data)
