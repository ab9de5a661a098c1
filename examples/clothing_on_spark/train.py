"""Train one model on the data of all shops, as a notebook on your cluster would."""

from pyspark.sql import DataFrame, SparkSession

from fluffle_spark import federate

FEDERATION = "clothing"
TARGET = "accuracy>=0.86"


def train(spark: SparkSession, data_url: str, broker_url: str) -> DataFrame:
    """Return a row for each shop once the model has reached the target."""
    return federate(
        spark.read.parquet(data_url),
        task="clothing_on_spark.task:task",
        federation=FEDERATION,
        broker_url=broker_url,
        # One column of arrays: the inputs of the model.
        features="pixels",
        label="kind",
        # Each shop is a site: a Spark task with a worker, which sees the rows of this shop alone.
        site_column="shop",
        # Both run beside the driver, as processes of their own.
        aggregator={"target": TARGET, "max_seconds": 120},
        evaluator=True,
    )
