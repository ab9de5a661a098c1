"""Fluffle's workers inside the executors of a Spark cluster.

    from fluffle_spark import federate

    result = federate(df, task="hospital:task", federation="hospital", broker_url="amqp://...",
                      site_column="hospital", label="outcome")

Each site is one Spark task, which gives its rows to a worker process of its own and waits for it.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fluffle_spark.federating import federate

__all__ = ["federate"]


def __getattr__(name: str) -> object:
    """Return `federate`, which needs pyspark: the worker processes do without."""
    if name == "federate":
        return importlib.import_module("fluffle_spark.federating").federate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
