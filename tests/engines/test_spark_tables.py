"""The task tabular on data frames: the sites of a cluster learn a table without any code."""

import json
import tomllib
from pathlib import Path

import pytest

pytest.importorskip("pyspark", reason="there is no Spark here: run scripts/setup.sh spark")

from pyspark.sql import DataFrame, SparkSession
from tables import HELD_OUT, LABEL, table_of, write_tables

from fluffle.errors import ConfigError
from fluffle_cli.node import BrokerNode
from fluffle_spark import federate
from fluffle_spark.tables import table_settings


def frame_of(spark: SparkSession, name: str) -> DataFrame:
    """The rows of a table that are not held out, each with its hospital, and with gaps."""
    whole = table_of(name)
    rows = whole[len(whole) // 4 :]
    rows = rows.assign(hospital=[f"ward-{at % 2}" for at in range(len(rows))])
    values = rows.astype(object).where(rows.notna(), None).to_numpy().tolist()
    values[5][0] = None
    return spark.createDataFrame(values, list(rows.columns))


def test_a_data_frame_is_learnt_without_any_code(
    spark: SparkSession, node: BrokerNode, federation: str, tmp_path: Path
) -> None:
    write_tables("wines", tmp_path)
    target = "accuracy>=0.9"
    # As its columns happen to lie: the evaluator finds them by their names.
    frame = frame_of(spark, "wines")
    reversed_frame = frame.select(*reversed(frame.columns))

    found = federate(
        reversed_frame,
        task="tabular",
        federation=federation,
        broker_url=node.amqp_url,
        label=LABEL,
        site_column="hospital",
        spool=str(tmp_path / "spool"),
        aggregator={"target": target, "survey": 2, "max_seconds": 120},
        evaluator={"data": str(tmp_path / HELD_OUT)},
    ).collect()

    assert {row.site: row.error for row in found} == {"ward-0": "", "ward-1": ""}
    assert all(target in row.ended for row in found)
    assert sum(row.updates for row in found) > 0


def test_what_the_drivers_file_says_of_the_table_stays_and_the_rest_is_that_of_the_data_frame(
    spark: SparkSession, tmp_path: Path
) -> None:
    frame = frame_of(spark, "wines").select("hue", "ash", LABEL)
    file = tmp_path / "own.toml"
    file.write_text('[tabular] # of us\nhidden = [3]\n[data]\nimpute = "mean"\n')

    with table_settings(frame, ["hue", "ash"], LABEL, {"config": file, "target": "accuracy>=0.9"}) as given:
        text = Path(given["config"]).read_text()

    assert given["label"] == LABEL
    assert given["target"] == "accuracy>=0.9"
    assert tomllib.loads(text) == {
        "tabular": {"columns": ["hue", "ash"], "classes": ["class_0", "class_1", "class_2"], "hidden": [3]},
        "data": {"impute": "mean"},
    }


def test_a_number_of_a_data_frame_is_described_by_its_mean_and_deviation(spark: SparkSession) -> None:
    values = [float(each) for each in range(100)]
    frame = spark.createDataFrame([(each, each) for each in values], ["x", "months"])

    with table_settings(frame, ["x"], "months", {}) as given:
        said = tomllib.loads(Path(given["config"]).read_text())["tabular"]

    assert said["center"] == pytest.approx(49.5)
    assert said["scale"] == pytest.approx(28.866, abs=0.001)


def test_an_aggregator_with_rows_of_its_own_learns_the_columns_there(spark: SparkSession) -> None:
    frame = spark.createDataFrame([(1.0, 0)], ["x", "y"])

    with table_settings(frame, ["x"], "y", {"data": "held-out.parquet"}) as given:
        assert given == {"data": "held-out.parquet"}


def test_columns_of_the_file_that_the_data_frame_does_not_train_on_are_refused(
    spark: SparkSession, tmp_path: Path
) -> None:
    frame = spark.createDataFrame([(1.0, 0)], ["x", "y"])
    file = tmp_path / "own.toml"
    for line in ('leave_out = ["x"]', f"columns = {json.dumps(['x', 'z'])}"):
        file.write_text(f"[tabular]\n{line}\n")

        with (
            pytest.raises(ConfigError, match="do not choose columns of a data frame"),
            table_settings(frame, ["x"], "y", {"config": file}),
        ):
            pass
