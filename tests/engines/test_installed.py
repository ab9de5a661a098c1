"""CI skips no test of an engine: whatever is missing fails here."""

import importlib
import os

import pytest

from harness.hdfs import find_jars
from harness.java import find_java

pytestmark = pytest.mark.skipif(not os.environ.get("CI"), reason="only CI must have every engine")


def test_ci_has_java_spark_and_hdfs() -> None:
    assert find_java()
    assert find_jars()
    assert importlib.import_module("pyspark")
