"""A model as a layout and flat arrays; Fluffle's formulas run over the vector of trained tensors. Pure.

Each tensor belongs to a group. *Trained* tensors are changed by an optimizer: they go through compression,
the strategy and the server optimizer. *Statistics* are computed from data, such as the moving mean and
variance of BatchNormalization: they are sent and averaged as values. *Frozen* tensors never change and are
not sent; the layout holds their digest. *Local* tensors stay with their worker, and are not in the layout.
Of a model of a table the layout says, too, which columns it takes.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Literal, get_args

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from fluffle.errors import LayoutError
from fluffle.fields import Count, FieldError, Positive, ShortText, at_most, integer, one_of, text
from fluffle.table_model import TableModel
from fluffle.topology import MAX_MESSAGE_BYTES

Vector = NDArray[np.float32]
Weights = Mapping[str, NDArray[np.generic]]

FLOATS: Mapping[str, np.dtype[np.generic]] = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}
INTEGERS: Mapping[str, np.dtype[np.generic]] = {
    name: np.dtype(name).newbyteorder("<")
    for name in ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
}

# A version's record carries its vector as float32, so a longer one could belong to no model.
MAX_PARAMETERS = MAX_MESSAGE_BYTES // 4
# numpy has no more dimensions.
MAX_DIMENSIONS = 64
MAX_TENSOR_NAME_LENGTH = 1024

# The groups that a message carries, and all groups.
SharedGroup = Literal["trained", "statistic"]
Group = Literal["trained", "statistic", "frozen", "local"]
SHARED_GROUPS: tuple[SharedGroup, ...] = get_args(SharedGroup)
GROUPS: tuple[Group, ...] = get_args(Group)


def _require_fits(shape: tuple[int, ...]) -> None:
    # A dimension of 0 counts as 1: numpy multiplies the others even then.
    if math.prod(dimension or 1 for dimension in shape) > MAX_MESSAGE_BYTES:
        raise FieldError(f"a tensor of shape {list(shape)} is larger than any message")


Dimension = Annotated[int, integer(0, MAX_MESSAGE_BYTES)]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor that is sent: its name, shape (empty for a scalar), name of the dtype, and group.

    An integer or boolean tensor is always a statistic.
    """

    name: Annotated[str, text(MAX_TENSOR_NAME_LENGTH)]
    shape: Annotated[tuple[Dimension, ...], at_most(MAX_DIMENSIONS), _require_fits]
    dtype: Annotated[str, one_of((*FLOATS, *INTEGERS))]
    group: SharedGroup = "trained"

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def is_float(self) -> bool:
        """Whether the tensor is averaged; the others take the newest update's value."""
        return self.dtype in FLOATS

    def __str__(self) -> str:
        group = "" if self.group == "trained" else f" ({self.group})"
        return f"{self.name} {self.dtype}{list(self.shape)}{group}"


@dataclass(frozen=True, slots=True)
class FrozenPart:
    """The tensors that no site changes: their number, their elements, and the digest of their values."""

    tensors: Positive
    parameters: Count
    digest: ShortText

    @classmethod
    def of(cls, weights: Weights) -> "FrozenPart | None":
        """Describe frozen tensors in their order; None when there are none."""
        if not weights:
            return None
        digest = hashlib.sha256()
        for name, array in weights.items():
            digest.update(json.dumps([name, list(array.shape), array.dtype.name]).encode())
            # As bytes, since memoryview does not know bfloat16.
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return cls(len(weights), sum(array.size for array in weights.values()), digest.hexdigest()[:32])

    def __str__(self) -> str:
        return f"{self.tensors} frozen tensors of {self.parameters:,} parameters (digest {self.digest[:8]})"


@dataclass(frozen=True, slots=True, eq=False)
class FlatWeights:
    """The values of all tensors of a layout.

    `vector` is float32 [layout.size], the trained tensors; `statistics` is float32 [layout.statistics_size];
    `integers` are the bytes of the integer and boolean tensors, little-endian.
    """

    vector: Vector
    statistics: Vector
    integers: bytes


@dataclass(frozen=True)
class Layout:
    """The tensors of a model in their order: how named arrays become flat ones, and back.

    Float tensors of any width become float32, one after the other in C order: trained ones in the vector,
    statistics in a second one. Integer and boolean tensors are bytes. `frozen` describes what is not sent.
    `table` says what the inputs and outputs of a model of a table are, None for any other model.
    """

    tensors: tuple[TensorSpec, ...]
    frozen: FrozenPart | None = None
    table: TableModel | None = None

    def __post_init__(self) -> None:
        names = [spec.name for spec in self.tensors]
        if len(set(names)) != len(names):
            twice = sorted(name for name, count in Counter(names).items() if count > 1)
            raise LayoutError(f"tensor names must be unique, but these occur twice: {', '.join(twice[:5])}")
        for spec in self.tensors:
            if spec.dtype not in FLOATS and spec.dtype not in INTEGERS:
                known = ", ".join([*FLOATS, *INTEGERS])
                raise LayoutError(f"tensor {spec.name} has the dtype {spec.dtype}; known are {known}")
            if not spec.is_float and spec.group == "trained":
                raise LayoutError(
                    f"tensor {spec.name} is {spec.dtype}: integers are statistics, never trained"
                )

    @classmethod
    def of(
        cls, weights: Weights, groups: Mapping[str, Group] = {}, table: TableModel | None = None
    ) -> "Layout":
        """Describe named arrays, in their order; those that `groups` does not name are trained.

        Local tensors are left out.
        """
        specs: list[TensorSpec] = []
        frozen: dict[str, NDArray[np.generic]] = {}
        for name, array in weights.items():
            match groups.get(name, "trained"):
                case "frozen":
                    frozen[name] = array
                case "local":
                    pass
                case "trained" if array.dtype.name not in INTEGERS:
                    specs.append(TensorSpec(name, array.shape, array.dtype.name))
                case _:
                    specs.append(TensorSpec(name, array.shape, array.dtype.name, "statistic"))
        return cls(tuple(specs), FrozenPart.of(frozen), table)

    @cached_property
    def size(self) -> int:
        """The number of elements of the vector: of the trained tensors."""
        return sum(spec.size for spec in self._of_group("trained"))

    @cached_property
    def statistics_size(self) -> int:
        """The number of elements of all float statistics."""
        return sum(spec.size for spec in self._of_group("statistic"))

    @cached_property
    def integers_size_bytes(self) -> int:
        """The number of bytes of the integer and boolean tensors."""
        return sum(spec.size * INTEGERS[spec.dtype].itemsize for spec in self.tensors if not spec.is_float)

    @cached_property
    def beside_vector_size_bytes(self) -> int:
        """The number of bytes that a payload holds beside the vector, whatever its codec."""
        return 4 * self.statistics_size + self.integers_size_bytes

    @cached_property
    def digest(self) -> str:
        """Sixteen hexadecimal characters that differ between different layouts."""
        tensors = [[spec.name, list(spec.shape), spec.dtype, spec.group] for spec in self.tensors]
        frozen = self.frozen and [self.frozen.tensors, self.frozen.parameters, self.frozen.digest]
        # As before there were models of tables, where this is none.
        table = [] if self.table is None else [self.table.as_list()]
        return hashlib.sha256(json.dumps([tensors, frozen, *table]).encode()).hexdigest()[:16]

    def flatten(self, weights: Weights) -> FlatWeights:
        """Return the values of named arrays, which are this layout's tensors in any order.

        Raises LayoutError when one is missing or has another shape or dtype, or when there is one more.
        """
        self.require_weights(weights)
        integers = bytearray()
        for spec in self.tensors:
            if not spec.is_float:
                integers += weights[spec.name].astype(INTEGERS[spec.dtype]).tobytes()
        return FlatWeights(
            self._flat(weights, "trained", self.size),
            self._flat(weights, "statistic", self.statistics_size),
            bytes(integers),
        )

    def restore(self, flat: FlatWeights) -> dict[str, NDArray[np.generic]]:
        """Return named arrays in their own shapes and dtypes; float32 tensors are views of the flat arrays.

        Raises LayoutError when the flat arrays have other sizes.
        """
        expected = (self.size,), (self.statistics_size,), self.integers_size_bytes
        if (flat.vector.shape, flat.statistics.shape, len(flat.integers)) != expected:
            raise LayoutError(
                f"expected {self.size} trained values, {self.statistics_size} statistics and "
                f"{self.integers_size_bytes} bytes of integers, found {flat.vector.size}, "
                f"{flat.statistics.size} and {len(flat.integers)}"
            )
        values = {"trained": flat.vector, "statistic": flat.statistics}
        offsets = {"trained": 0, "statistic": 0}
        weights: dict[str, NDArray[np.generic]] = {}
        taken = 0
        for spec in self.tensors:
            if spec.is_float:
                start = offsets[spec.group]
                offsets[spec.group] += spec.size
                part = values[spec.group][start : offsets[spec.group]]
                weights[spec.name] = part.reshape(spec.shape).astype(FLOATS[spec.dtype], copy=False)
            else:
                dtype = INTEGERS[spec.dtype]
                flat_integers = np.frombuffer(flat.integers, dtype, count=spec.size, offset=taken)
                weights[spec.name] = flat_integers.reshape(spec.shape).astype(dtype.newbyteorder("="))
                taken += spec.size * dtype.itemsize
        return weights

    def tail(self, first: int) -> "Layout":
        """Return the layout of the tensors from number `first` on, counted from 0.

        Raises LayoutError when there are none, or none of them is trained.
        """
        if not first:
            return self
        tail = replace(self, tensors=self.tensors[first:])
        if not tail.size:
            raise LayoutError(
                f"no tensor from number {first} on is trained: the model has {len(self.tensors)} tensors"
            )
        return tail

    def tensors_not_finite(self, vector: Vector, statistics: Vector) -> list[str]:
        """Return the names of the tensors that hold a NaN or an infinity."""
        found = []
        for group, values in (("trained", vector), ("statistic", statistics)):
            start = 0
            for spec in self._of_group(group):
                if not np.isfinite(values[start : start + spec.size]).all():
                    found.append(spec.name)
                start += spec.size
        return found

    def require(self, other: "Layout", *, whose: str = "the federation's model") -> None:
        """Raise LayoutError that names the first difference, unless `other` is equal to this layout."""
        difference = self.difference(other, whose=whose)
        if difference:
            raise LayoutError(difference)

    def difference(self, other: "Layout", *, whose: str = "the federation's model") -> str | None:
        """Return the first difference between this layout and another in words, or None.

        `whose` says what this layout belongs to.
        """
        if self.table != other.table and (difference := self._table_difference(other, whose)):
            return difference
        for expected, found in zip(self.tensors, other.tensors, strict=False):
            if expected != found:
                return f"{whose} has {expected} where this one has {found}"
        if len(self.tensors) != len(other.tensors):
            return f"{whose} has {len(self.tensors)} tensors, this one {len(other.tensors)}"
        return self._frozen_difference(other, whose)

    def _frozen_difference(self, other: "Layout", whose: str) -> str | None:
        if self.frozen == other.frozen:
            return None
        here, there = (layout.frozen or "no frozen tensors" for layout in (other, self))
        sizes = {part and (part.tensors, part.parameters) for part in (self.frozen, other.frozen)}
        remedy = (
            "their values differ, so load the same pretrained weights in build_model at every site"
            if len(sizes) == 1
            else "freeze the same layers at every site"
        )
        return f"{whose} has {there}, this one has {here}: {remedy}"

    def _table_difference(self, other: "Layout", whose: str) -> str | None:
        if self.table and other.table:
            return self.table.difference(other.table, whose)
        here, there = ("of a table" if each.table else "of no table" for each in (other, self))
        return f"{whose} is {there}, this one is {here}"

    def _of_group(self, group: str) -> Iterator[TensorSpec]:
        return (spec for spec in self.tensors if spec.is_float and spec.group == group)

    def _flat(self, weights: Weights, group: SharedGroup, size: int) -> Vector:
        flat = np.empty(size, np.float32)
        start = 0
        for spec in self._of_group(group):
            flat[start : start + spec.size] = weights[spec.name].reshape(-1)
            start += spec.size
        return flat

    def require_weights(self, weights: Weights) -> None:
        """Raise LayoutError unless named arrays, in any order, are this layout's tensors."""
        expected = {spec.name: spec for spec in self.tensors}
        if missing := expected.keys() - weights.keys():
            raise LayoutError(f"the weights lack {some_of(missing)}")
        if unknown := weights.keys() - expected.keys():
            raise LayoutError(f"the model has no {some_of(unknown)}")
        for name, spec in expected.items():
            array = weights[name]
            if array.shape != spec.shape or array.dtype.name != spec.dtype:
                found = TensorSpec(name, array.shape, array.dtype.name, spec.group)
                raise LayoutError(f"the model has {spec} where these weights have {found}")


def no_values() -> Vector:
    """Return a vector of no elements."""
    return np.empty(0, np.float32)


def some_of(names: Iterable[str]) -> str:
    """Return the first three names in words, and how many more there are."""
    ordered = sorted(names)
    more = f" and {len(ordered) - 3} more" if len(ordered) > 3 else ""
    return ", ".join(ordered[:3]) + more
