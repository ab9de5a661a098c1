"""The program for spark-submit; see `spark-submit fluffle-spark.py --help` and docs/spark.md."""

from fluffle_spark.command import run

run()
