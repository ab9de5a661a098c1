"""Columns of Arrow as rows of numpy: which columns can be features or labels, and how they become numbers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fluffle.errors import TaskError

Kind = Literal["number", "text", "other"]
# The length of a list whose type does not tell it.
UNKNOWN = -1


@dataclass(frozen=True, slots=True)
class Column:
    """What a column holds: `shape` of its value in one row, () for a number.

    `is_whole` says that its numbers are integers or booleans, and `name` is its name in the file. `is_null`
    says that no value has been found, so that it agrees with whatever the column holds elsewhere.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...] = ()
    is_whole: bool = False
    said: str = ""
    is_null: bool = False


def column_of(field: pa.Field) -> Column:
    """Return what a column of this type holds."""
    kind, shape, is_whole = _described(field.type)
    return Column(field.name, kind, shape, is_whole, str(field.type), pa.types.is_null(field.type))


def _described(given: Any) -> tuple[Kind, tuple[int, ...], bool]:
    types = pa.types
    if isinstance(given, pa.FixedShapeTensorType):
        kind, _, is_whole = _described(given.value_type)
        return kind, tuple(given.shape), is_whole
    if types.is_dictionary(given):
        return _described(given.value_type)
    if types.is_fixed_size_list(given) or types.is_list(given) or types.is_large_list(given):
        kind, shape, is_whole = _described(given.value_type)
        length = given.list_size if types.is_fixed_size_list(given) else UNKNOWN
        return kind, (length, *shape), is_whole
    if types.is_integer(given) or types.is_boolean(given):
        return "number", (), True
    if types.is_floating(given) or types.is_decimal(given) or types.is_null(given):
        return "number", (), False
    if types.is_string(given) or types.is_large_string(given) or types.is_string_view(given):
        return "text", (), False
    return "other", (), False


def with_length(column: Column, values: Any, file: str) -> Column:
    """Return a column of lists with the lengths that they have in these values, where its type has none."""
    shape, at = list(column.shape), _storage(values)
    for axis in range(len(shape)):
        at = at.drop_null()
        if shape[axis] == UNKNOWN:
            if not len(at) or pa.types.is_null(at.type):
                raise TaskError(
                    f"the column {column.name!r} of {file} begins with rows without any list, so nobody "
                    "knows how long its lists are: leave it out, or put a row with a whole list first"
                )
            shape[axis] = int(pc.list_value_length(at.slice(0, 1))[0].as_py())
        at = at.flatten()
    return replace(column, shape=tuple(shape))


def dense(values: Any, column: Column, file: str) -> NDArray[np.floating[Any]]:
    """Return the numbers of a column [rows, *shape] as floats, NaN for nulls, perhaps as a view."""
    shape = column.shape
    values = _storage(values)
    if pa.types.is_null(values.type):
        return np.broadcast_to(np.float32(np.nan), (len(values), *shape))
    if not shape:
        return _floats(values)
    found = _flat(values, shape, column, file)
    return found.reshape(len(values), *shape)


def _flat(values: Any, shape: tuple[int, ...], column: Column, file: str) -> NDArray[np.floating[Any]]:
    """Return the numbers of lists, one after the other; a null is as many NaN as a list has numbers."""
    if not shape:
        return _floats(values)
    lengths = pc.list_value_length(values)
    if not pc.all(pc.equal(lengths, shape[0])).as_py() and len(values) > values.null_count:
        other = next(each for each in lengths.to_pylist() if each not in (shape[0], None))
        raise TaskError(
            f"the column {column.name!r} of {file} holds lists of {shape[0]} and of {other} values: all must "
            "be of one length, so cut or fill them first, or leave the column out"
        )
    inner = _flat(values.flatten(), shape[1:], column, file)
    if not values.null_count:
        return inner
    width = prod(shape)
    whole = np.full((len(values), width), np.nan, inner.dtype if inner.dtype.kind == "f" else np.float32)
    whole[values.is_valid().to_numpy(zero_copy_only=False)] = inner.reshape(-1, width)
    return whole.reshape(-1)


def _floats(values: Any) -> NDArray[Any]:
    """Return numbers without copying them where that is possible; nulls become NaN.

    None of them loses its size: pyarrow's cast to float32 would make infinity of what is too large.
    """
    given = values.type
    if pa.types.is_dictionary(given):
        return _floats(values.dictionary_decode())
    if pa.types.is_integer(given) and not values.null_count:
        array: NDArray[Any] = values.to_numpy()
        return array
    if pa.types.is_decimal(given):
        values = values.cast(pa.float64())
    elif not pa.types.is_floating(given):
        values = values.cast(pa.float32(), safe=False)
    numbers: NDArray[Any] = values.to_numpy(zero_copy_only=False)
    return numbers


def _storage(values: Any) -> Any:
    return values.storage if isinstance(values, pa.ExtensionArray) else values


def in_words(names: Sequence[str], most: int = 8) -> str:
    """Return names for a sentence, at most so many."""
    shown = ", ".join(map(repr, names[:most]))
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
