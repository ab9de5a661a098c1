"""The program for spark-submit; `spark-submit fluffle-spark.py --help` lists its flags."""

from fluffle_spark.command import run

run()
