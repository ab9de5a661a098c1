"""Which sites a data frame has, which rows are theirs, and whether they can all run at once."""

import hashlib
import re
import time
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pyspark import SparkContext
from pyspark.sql import DataFrame, functions
from pyspark.sql.types import IntegerType, StructField, StructType

from fluffle.errors import ConfigError
from fluffle.fields import MAX_NAME_LENGTH
from fluffle_spark.columns import quoted

# With fewer rows for each site than these, a row more or less counts.
FEW_ROWS = 1000
# More values than these in the column of the sites is hardly what was meant.
MOST_SITES = 1000
# A cluster that has not grown for so long has all its executors.
EXECUTORS_WAIT_S = 5.0
POLL_S = 0.2
# The columns with the value and the number of a row's site.
VALUE = "__fluffle_value"
NUMBER = "__fluffle_site"


@dataclass(frozen=True, slots=True, eq=False)
class Sites:
    """The names of the sites' workers in the order of their numbers, and the rows, one partition for each."""

    names: tuple[str, ...]
    rows: DataFrame


def evenly_divided(df: DataFrame, workers: int, columns: Sequence[str]) -> Sites:
    """Divide the rows among so many sites; raises ConfigError when there are fewer rows than sites."""
    chosen = df.select(*map(quoted, columns))
    rows = chosen.limit(workers * FEW_ROWS).count()
    if rows < workers:
        raise ConfigError(
            f"the data has {rows} rows for {workers} workers, so that some would have none: give fewer "
            "workers, or more data"
        )
    if rows < workers * FEW_ROWS:
        # Spark deals each partition out by itself, so that of many small ones a site might get nothing.
        chosen = chosen.coalesce(1)
    return Sites(tuple(f"site-{number}" for number in range(workers)), chosen.repartition(workers))


def by_column(df: DataFrame, column: str, columns: Sequence[str]) -> Sites:
    """Make each value of a column a site. Raises ConfigError for nulls, and for too many values."""
    # One more than allowed is enough to refuse, however many there are.
    found = (
        df.select(functions.col(quoted(column)).alias(VALUE))
        .groupBy(VALUE)
        .count()
        .limit(MOST_SITES + 1)
        .collect()
    )
    if len(found) > MOST_SITES:
        different = df.select(functions.approx_count_distinct(quoted(column))).collect()[0][0]
        raise ConfigError(
            f"site_column {column!r} has about {different:,} different values, and there may be "
            f"{MOST_SITES:,} sites at most: name a column that says whose the data is, or use workers=N"
        )
    if nulls := [row["count"] for row in found if row[VALUE] is None]:
        raise ConfigError(
            f"site_column {column!r} is null in {nulls[0]} rows, which belong to no site: fill or drop them"
        )
    values = sorted(row[VALUE] for row in found)
    if not values:
        raise ConfigError("the data has no rows: nothing could be trained")
    names = [name_of(value) for value in values]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        alike = [str(value) for value, name in zip(values, names, strict=True) if name == twice[0]]
        raise ConfigError(
            f"site_column {column!r} has the values {alike[0]!r} and {alike[1]!r}, which both give the "
            f"worker's name {twice[0]!r}: rename one"
        )
    kind = df.schema[column].dataType
    schema = StructType([StructField(VALUE, kind), StructField(NUMBER, IntegerType())])
    numbers = df.sparkSession.createDataFrame([(value, at) for at, value in enumerate(values)], schema)
    chosen = df.select(functions.col(quoted(column)).alias(VALUE), *map(quoted, columns))
    numbered = chosen.join(functions.broadcast(numbers), VALUE)
    rows = numbered.repartitionById(len(values), functions.col(NUMBER)).select(*map(quoted, columns))
    return Sites(tuple(names), rows)


def name_of(value: object) -> str:
    """Return the name of the worker of a site: its value with letters, digits, "_", "." and "-" only."""
    plain = unicodedata.normalize("NFKD", str(value)).encode("ascii", "ignore").decode()
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", plain).strip("-.")[:MAX_NAME_LENGTH]
    if not name:
        # Nothing of it can be written in such letters.
        name = hashlib.sha256(str(value).encode()).hexdigest()[:8]
        return f"site-{name}"
    # A number alone is a name too, but says little in RabbitMQ's UI.
    return f"site-{name}" if name.isdigit() else name


def require_slots(sc: SparkContext, sites: int, *, takes_turns: bool) -> None:
    """Raise ConfigError when fewer tasks can run at once than there are sites, unless they take turns."""
    if takes_turns or (slots := _slots(sc, sites)) >= sites:
        return
    raise ConfigError(
        f"{sites} sites need {sites} slots for their tasks at once, and this Spark cluster has {slots}: give "
        "it more executors or cores, use fewer sites, or let the sites take turns with waves=ROUNDS (--waves)"
    )


def _slots(sc: SparkContext, wanted: int) -> int:
    """Return how many tasks can run at once; executors that start are waited for."""
    conf = sc.getConf()
    cpus = int(conf.get("spark.task.cpus", "1") or 1)
    if conf.get("spark.dynamicAllocation.enabled", "false") == "true":
        most = int(conf.get("spark.dynamicAllocation.maxExecutors", "") or wanted)
        return most * max(1, int(conf.get("spark.executor.cores", "1") or 1) // cpus)
    context = sc._jsc.sc()
    profile = context.resourceProfileManager().defaultResourceProfile()
    found, since = -1, time.monotonic()
    while found < wanted and time.monotonic() - since < EXECUTORS_WAIT_S:
        if (now := int(context.maxNumConcurrentTasks(profile))) != found:
            found, since = now, time.monotonic()
        else:
            time.sleep(POLL_S)
    return found
