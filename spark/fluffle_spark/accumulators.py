"""What tasks return, counted in Spark's UI by accumulators of the JVM: decision 0039 says why by these."""

import threading
import uuid
import zipfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from py4j.protocol import Py4JError
from pyspark import SparkContext, SparkFiles
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, functions

from fluffle.logs import get_logger

log = get_logger(__name__)

_CLASS = "fluffle.Counting"
_SOURCE = """
package fluffle;

import org.apache.spark.sql.api.java.UDF1;
import org.apache.spark.util.LongAccumulator;

public class Counting implements UDF1 {
    private final LongAccumulator total;

    public Counting(LongAccumulator total) {
        this.total = total;
    }

    public Object call(Object number) {
        total.add(((Number) number).longValue());
        return number;
    }
}
"""
# The executors need the class before the first task that counts.
_shipping = threading.Lock()


def counted(df: DataFrame, columns: Sequence[str]) -> DataFrame:
    """Return the same rows, whose tasks add these columns of int64 to accumulators of the same names.

    Spark's UI shows them on the page of the stage: for each task that has ended, and in total.
    """
    try:
        counting = _class_for_executors(df.sparkSession.sparkContext)
        for column in columns:
            df = _with_accumulator(df, column, counting)
    except (Py4JError, PySparkException, OSError) as error:
        log.warning("Spark's UI does not show some counts", counts=", ".join(columns), because=str(error))
    return df


@cache
def _class_for_executors(sc: SparkContext) -> Any:
    """Compile the class with the compiler that Spark compiles queries with, and ship it."""
    compiler = sc._jvm.org.codehaus.janino.SimpleCompiler()
    compiler.setParentClassLoader(sc._jvm.java.lang.Thread.currentThread().getContextClassLoader())
    compiler.cook(_SOURCE)
    # In Spark's own folder, which stays until the session stops: executors that come later fetch it, too.
    jar = Path(SparkFiles.getRootDirectory()) / "fluffle" / "fluffle-counting.jar"
    with _shipping:
        if not jar.exists():
            jar.parent.mkdir()
            with zipfile.ZipFile(jar, "w") as file:
                file.writestr(_CLASS.replace(".", "/") + ".class", bytes(compiler.getBytecodes()[_CLASS]))
            sc._jsc.addJar(str(jar))
    return compiler.getClassLoader().loadClass(_CLASS)


def _with_accumulator(df: DataFrame, column: str, counting: Any) -> DataFrame:
    session, name = df.sparkSession, f"fluffle_{uuid.uuid4().hex}"
    jvm, java = session._jvm, session._jsparkSession
    arguments = session.sparkContext._gateway.new_array(jvm.java.lang.Object, 1)
    arguments[0] = session.sparkContext._jsc.sc().longAccumulator(column)
    add = counting.getConstructors()[0].newInstance(arguments)
    java.udf().register(name, add, jvm.org.apache.spark.sql.types.DataTypes.LongType)
    try:
        return df.withColumn(column, functions.call_function(name, functions.col(column)))
    finally:
        java.sessionState().catalog().dropTempFunction(name, True)
