"""Which columns of a data frame are the inputs and which is the label, checked before anything starts."""

from collections.abc import Sequence

from pyspark.sql import DataFrame
from pyspark.sql.types import DataType

from fluffle.errors import ConfigError

NUMBERS = ("tinyint", "smallint", "int", "bigint", "float", "double", "boolean", "decimal")
SHOWN = 20


def chosen_columns(
    df: DataFrame, features: str | Sequence[str] | None, label: str, site_column: str | None
) -> tuple[str, ...]:
    """Return the names of the inputs: those given, or all columns but the label and the sites.

    Raises ConfigError for a column that is missing, named twice, or holds no numbers.
    """
    known = df.columns
    given = [features] if isinstance(features, str) else features
    inputs = [name for name in known if name not in (label, site_column)] if given is None else list(given)
    named = [("label", label), *(("features", name) for name in inputs)]
    if site_column is not None:
        named.append(("site_column", site_column))
    for what, name in named:
        if name not in known:
            shown = ", ".join(known[:SHOWN]) + (", ..." if len(known) > SHOWN else "")
            raise ConfigError(f"the data has no column {name!r}, which {what} names: its columns are {shown}")
        if known.count(name) > 1:
            raise ConfigError(f"the data has {known.count(name)} columns {name!r}: rename all but one")
    if not inputs:
        raise ConfigError(f"the data has no column besides {label!r} to train on: give it features")
    if label == site_column:
        raise ConfigError(f"label and site_column both name {label!r}: each site would have one label alone")
    if label in inputs or len(set(inputs)) < len(inputs):
        twice = label if label in inputs else next(name for name in inputs if inputs.count(name) > 1)
        raise ConfigError(
            f"the column {twice!r} is named twice: the label is no feature, and each feature is one"
        )
    kinds = {field.name: field.dataType for field in df.schema.fields}
    if wrong := [name for name in inputs if not _is_numeric(kinds[name])]:
        others = f" (and {len(wrong) - 1} more)" if wrong[1:] else ""
        raise ConfigError(
            f"the column {wrong[0]!r} holds {kinds[wrong[0]].simpleString()} where numbers are "
            f"expected{others}: {_advice(kinds[wrong[0]])}, or name the columns to use in features"
        )
    if not (_is_numeric(kinds[label]) or kinds[label].simpleString() == "string"):
        raise ConfigError(
            f"the label {label!r} holds {kinds[label].simpleString()}: numbers, texts or arrays of numbers "
            "are expected"
        )
    return tuple(inputs)


def quoted(name: str) -> str:
    """Return a column's name as Spark's functions take it, where a dot would mean a field of a struct."""
    return f"`{name.replace('`', '``')}`"


def _is_numeric(kind: DataType) -> bool:
    element = getattr(kind, "elementType", None)
    return _is_numeric(element) if element is not None else kind.simpleString().partition("(")[0] in NUMBERS


def _advice(kind: DataType) -> str:
    match kind.simpleString():
        case "string":
            return "turn it into numbers, such as with StringIndexer"
        case "vector":
            return "turn it into an array with pyspark.ml.functions.vector_to_array"
        case "binary":
            return "decode it into an array of numbers first"
    return "turn it into numbers"
