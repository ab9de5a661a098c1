"""What an aggregator beside the driver is told of a data frame for the task tabular."""

import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from pyspark.sql import DataFrame
from pyspark.sql import functions as of

from fluffle.data_source import TABLE
from fluffle.errors import ConfigError
from fluffle.settings import DEFAULT_CONFIG, with_table
from fluffle.table_model import MAX_TABLE_CLASSES
from fluffle_spark.columns import quoted
from fluffle_spark.driver_errors import in_one_sentence
from fluffle_worker.tabular.labels import LabelSurvey
from fluffle_worker.tabular.settings import TabularSettings

# The ready task.
TABULAR = "tabular"
HEAD = re.compile(rf"^\[{TABLE}\][ \t]*(#.*)?$", re.MULTILINE)


@contextmanager
def table_settings(
    df: DataFrame, features: Sequence[str], label: str, given: Mapping[str, object]
) -> Iterator[dict[str, Any]]:
    """Give the settings with which an aggregator beside the driver begins a model of a data frame's columns.

    That is a TOML file which says in its table [tabular] what the driver's own file leaves open: the columns,
    and the classes of the label, or its mean and standard deviation. `given` are the aggregator's own
    settings: with `data` or `initial_model` it learns the columns there. Raises ConfigError for columns of
    the file that are not those of the data frame.
    """
    if given.get("data") or given.get("initial_model"):
        yield {**given}
        return
    config = given.get("config")
    file = Path(str(config)) if config else DEFAULT_CONFIG
    text = file.read_text(encoding="utf-8") if config or file.exists() else ""
    said = with_table(TabularSettings(), file if text else None) or TabularSettings()
    lines = "".join(
        f"{key} = {json.dumps(value, ensure_ascii=False)}\n"
        for key, value in _left_open(df, features, label, said).items()
    )
    begin = HEAD.search(text)
    text = (
        f"{text}\n[{TABLE}]\n{lines}"
        if begin is None
        else f"{text[: begin.end()]}\n{lines}{text[begin.end() :]}"
    )
    with tempfile.TemporaryDirectory(prefix="fluffle-") as folder:
        path = Path(folder) / "fluffle.toml"
        path.write_text(text, encoding="utf-8")
        yield {**given, "config": path, "label": label}


def _left_open(
    df: DataFrame, features: Sequence[str], label: str, said: TabularSettings
) -> Mapping[str, Any]:
    if said.leave_out or (said.columns is not None and set(said.columns) != set(features)):
        raise ConfigError(
            f"columns and leave_out in [{TABLE}] do not choose columns of a data frame: name those that the "
            "model takes in features, and leave them out of the table"
        )
    found: dict[str, Any] = {} if said.columns is not None else {"columns": list(features)}
    if said.classes is not None:
        return found
    with in_one_sentence():
        labels = df.select(quoted(label)).where(of.col(quoted(label)).isNotNull())
        different = [row[0] for row in labels.distinct().limit(MAX_TABLE_CLASSES + 1).collect()]
        survey = LabelSurvey(label)
        survey.add(np.array(different, object))
        if not said.says_number and (said.target == "classes" or survey.are_classes):
            return {**found, "classes": list(survey.classes())}
        number = of.col(quoted(label)).cast("double")
        center, scale = labels.select(of.mean(number), of.stddev_pop(number)).first() or (0.0, 1.0)
    if said.center is None:
        found["center"] = float(center)
    if said.scale is None:
        found["scale"] = float(scale) or 1.0
    return found
