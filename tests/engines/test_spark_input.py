"""Data that cannot be trained on ends `federate` with one sentence, before a federation is touched."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyspark", reason="there is no Spark here: run scripts/setup.sh spark")

from federation import Federation
from on_spark import TASK, digits, training
from pyspark.ml.feature import VectorAssembler
from pyspark.sql import DataFrame, SparkSession, functions
from pyspark.sql.types import IntegerType, StructField, StructType

from fluffle.errors import ConfigError, FluffleError, TaskError
from fluffle_cli.node import BrokerNode
from fluffle_spark import federate
from fluffle_spark.sites import by_column, evenly_divided

NOWHERE = "amqp://127.0.0.1:9/%2F"

Change = Callable[[SparkSession], DataFrame]


def patients(spark: SparkSession) -> DataFrame:
    rows = [(float(age), 20.0 + age, "north" if age % 2 else "south", age % 3) for age in range(40)]
    return spark.createDataFrame(rows, "age double, bmi double, ward string, outcome int")


def with_text(spark: SparkSession) -> DataFrame:
    return patients(spark).withColumn("sex", functions.lit("f"))


def with_vector(spark: SparkSession) -> DataFrame:
    return VectorAssembler(inputCols=["age", "bmi"], outputCol="both").transform(patients(spark))


def without_rows(spark: SparkSession) -> DataFrame:
    return patients(spark).limit(0)


def with_many_wards(spark: SparkSession) -> DataFrame:
    return spark.range(10_000).selectExpr("double(id) as age", "string(id) as ward", "1 as outcome")


def with_null_wards(spark: SparkSession) -> DataFrame:
    ward = functions.when(functions.col("age") > 5, functions.col("ward"))
    return patients(spark).withColumn("ward", ward)


def with_wards_alike(spark: SparkSession) -> DataFrame:
    ward = functions.when(functions.col("age") > 5, "ward 1").otherwise("ward-1")
    return patients(spark).withColumn("ward", ward)


def as_stream(spark: SparkSession) -> DataFrame:
    return spark.readStream.format("rate").load().selectExpr("value as age", "'a' as ward", "1 as outcome")


def twice_the_age(spark: SparkSession) -> DataFrame:
    return patients(spark).select("age", functions.col("bmi").alias("age"), "ward", "outcome")


@pytest.mark.parametrize(
    ("data", "arguments", "sentence"),
    [
        (
            patients,
            {"label": "died"},
            "the data has no column 'died', which label names: its columns are age, bmi",
        ),
        (patients, {"features": "weight"}, "the data has no column 'weight', which features names"),
        (patients, {"site_column": "clinic"}, "the data has no column 'clinic', which site_column names"),
        (patients, {"features": ["age", "outcome"]}, "the column 'outcome' is named twice"),
        (patients, {"label": "ward"}, "label and site_column both name 'ward'"),
        (with_text, {}, "the column 'sex' holds string where numbers are expected"),
        (with_vector, {}, "vector_to_array"),
        (twice_the_age, {}, "the data has 2 columns 'age': rename all but one"),
        (without_rows, {}, "the data has no rows"),
        (
            without_rows,
            {"site_column": None, "features": ["age"], "workers": 2},
            "the data has 0 rows for 2 workers",
        ),
        (with_many_wards, {}, "different values, and there may be 1,000 sites at most"),
        (with_null_wards, {}, "site_column 'ward' is null in 6 rows"),
        (with_wards_alike, {}, "both give the worker's name 'ward-1'"),
        (patients, {"site_column": None}, "give either workers=N, or site_column=COLUMN"),
        (patients, {"workers": 2}, "give either workers=N, or site_column=COLUMN"),
        (
            patients,
            {"site_column": None, "features": ["age"], "workers": 0},
            "workers must be a whole number from 1 on, not 0",
        ),
        (
            patients,
            {"site_column": None, "features": ["age"], "workers": 9},
            "9 sites need 9 slots for their tasks at once",
        ),
        (patients, {"name": "north"}, "name is no argument of federate"),
        (patients, {"waves": -1}, "waves must be a whole number from 0 on, not -1"),
        (as_stream, {}, "federate takes no stream"),
        (patients, {"federation": "No Name"}, "federation"),
        (patients, {"delai": 1}, "did you mean delay?"),
        (
            patients,
            {"aggregator": "fedavg"},
            "aggregator must be True, False or a dictionary of its settings",
        ),
        (patients, {"aggregator": {"targett": "x"}}, "unknown setting 'targett' of the aggregator"),
        (patients, {"password_folder": "nowhere"}, "nowhere has no password of north, south"),
        (patients, {"password_folder": "nowhere", "make_users": True}, "do not go together"),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(
    spark: SparkSession, data: Change, arguments: dict[str, Any], sentence: str
) -> None:
    given: dict[str, Any] = {
        "task": TASK,
        "federation": "wards",
        "broker_url": NOWHERE,
        "site_column": "ward",
        "label": "outcome",
    } | arguments

    with pytest.raises(ConfigError) as raised:
        federate(data(spark), **given)

    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


def test_columns_with_dots_in_their_names_and_a_label_that_is_the_site_divide_the_rows(
    spark: SparkSession,
) -> None:
    data = patients(spark).withColumnsRenamed({"age": "a.ge", "ward": "the.ward"})

    sites = by_column(data, "the.ward", ["a.ge", "the.ward"])
    evenly = evenly_divided(data, 2, ["a.ge"])

    assert sites.names == ("north", "south")
    assert sites.rows.columns == ["a.ge", "the.ward"]
    assert [{row["the.ward"] for row in part} for part in sites.rows.rdd.glom().collect()] == [
        {"north"},
        {"south"},
    ]
    assert evenly.rows.count() == 40


def test_a_task_that_is_nowhere_is_refused_by_the_driver(spark: SparkSession) -> None:
    with pytest.raises(TaskError, match="the module 'no_such_module' of the task"):
        federate(
            patients(spark),
            task="no_such_module:task",
            federation="wards",
            broker_url=NOWHERE,
            site_column="ward",
            label="outcome",
        )


def test_files_of_different_schemas_and_missing_ones_are_named(spark: SparkSession, tmp_path: Path) -> None:
    data = patients(spark).write
    data.parquet(str(tmp_path / "whole"))
    empty = StructType([StructField("outcome", IntegerType())])
    spark.createDataFrame([(1,)], empty).selectExpr("string(outcome) as age").write.parquet(
        str(tmp_path / "odd")
    )
    both = spark.read.schema(patients(spark).schema).parquet(str(tmp_path / "whole"), str(tmp_path / "odd"))

    with pytest.raises(FluffleError) as raised:
        federate(both, task=TASK, federation="wards", broker_url=NOWHERE, site_column="ward", label="outcome")

    assert "age" in str(raised.value) or "null" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_site_whose_rows_the_task_refuses_is_named_and_the_others_train_on(
    spark: SparkSession, node: BrokerNode, federation: str, tmp_path: Path
) -> None:
    missing = functions.when(
        (functions.col("ward") == "ward-0") & (functions.col("digit") == 3), None
    ).otherwise(functions.col("digit"))
    data = digits(spark).withColumn("digit", missing)
    started = Federation(federation, node.amqp_url, tmp_path)
    beside = {"aggregator": {"target": "accuracy>=0.7", "strategy": "fedasync"}, "evaluator": True}

    with training(started, data, delay=0.01, **beside) as run:
        run.wait()

    assert run.error is None
    assert "the label 'digit' is null in" in run.rows["ward-0"].error
    assert run.rows["ward-0"].updates == 0
    assert run.rows["ward-1"].error == ""
    assert "accuracy>=0.7" in run.rows["ward-1"].ended


def test_when_no_site_can_train_the_driver_says_why(
    spark: SparkSession, node: BrokerNode, federation: str, tmp_path: Path
) -> None:
    data = digits(spark).withColumn("digit", functions.lit(None).cast("int"))
    started = Federation(federation, node.amqp_url, tmp_path)

    with training(started, data) as run:
        run.wait()

    assert isinstance(run.error, FluffleError)
    assert "no site could train: site ward-0: the label 'digit' is null in" in str(run.error)


def test_few_rows_in_many_partitions_are_divided_evenly(spark: SparkSession) -> None:
    rows = spark.range(9).repartition(6).selectExpr("double(id) as age", "1 as outcome")

    divided = evenly_divided(rows, 4, ["age", "outcome"])

    found = divided.rows.groupBy(functions.spark_partition_id().alias("site")).count().collect()
    assert sorted(row["count"] for row in found) == [2, 2, 2, 3]
