"""JSON that every program can read, whatever numbers stand in it: JSON itself knows no NaN. Pure."""

import json
import math
from collections.abc import Mapping, Sequence


def finite(value: object) -> object:
    """Replace numbers that are not finite, however deep, by the texts "NaN", "Infinity" and "-Infinity".

    Python's and JavaScript's own conversions from text to a number read them back.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {name: finite(each) for name, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [finite(each) for each in value]
    return value


def as_text(value: object, *, indent: int | None = None, is_short: bool = False) -> str:
    """Return a value as JSON, without spaces if it `is_short`."""
    separators = (",", ":") if is_short else None
    return json.dumps(finite(value), indent=indent, separators=separators, allow_nan=False)
