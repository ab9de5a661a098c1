"""The program for spark-submit: `spark-submit ... fluffle-spark.py --task hospital:task --data hdfs://...`."""

import importlib

from fluffle.command_line import run_program, settings_command
from fluffle_spark.settings import SparkSettings


def train(settings: SparkSettings) -> None:
    """Train a task on data that Spark reads, in a worker for each site."""
    # It needs pyspark, without which --help works.
    importlib.import_module("fluffle_spark.submitted").train(settings)


command = settings_command(
    SparkSettings,
    train,
    about="Train a task on data that Spark reads: each site is a Spark task with a worker.\n\n"
    "Workers have the settings of the table [worker]. Keep the broker's password off the command line, which "
    "Spark shows: put the URL into FLUFFLE_BROKER_URL, or use --broker-password-file.",
)


def run() -> None:
    """Run the program."""
    run_program("fluffle-spark.py", command)
