"""No dataclass compares arrays with ==, which Python 3.13 does field by field and numpy refuses to answer."""

import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from typing import get_args, get_origin, get_type_hints

import numpy as np
import pytest

# A class of a large library, which the code names for the type checker alone; none of them is an array.
LAZY = {"FileSystem": object}
PACKAGES = ("fluffle", "fluffle_aggregator", "fluffle_worker", "fluffle_cli")


def dataclasses_of(package: str) -> Iterator[type]:
    """Every dataclass of a package; its programs and ready tasks, which do something when imported, aside."""
    paths = importlib.import_module(package).__path__
    for module in pkgutil.walk_packages(paths, f"{package}."):
        if module.name.endswith("__main__") or ".tasks." in module.name:
            continue
        for _, found in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if dataclasses.is_dataclass(found) and found.__module__ == module.name:
                yield found


def holds_arrays(kind: object, within: frozenset[object] = frozenset()) -> bool:
    """Tell whether a value of this type is, or holds, a numpy array; a type may hold itself."""
    origin = get_origin(kind)
    if origin is Callable or kind in within:
        return False
    if origin is not None:
        return origin is np.ndarray or any(holds_arrays(each, within) for each in get_args(kind))
    return inspect.isclass(kind) and dataclasses.is_dataclass(kind) and compares_arrays(kind, within)


def compares_arrays(kind: type, within: frozenset[object] = frozenset()) -> bool:
    """Tell whether == of a dataclass would look into an array, or into what holds one."""
    hints = get_type_hints(kind, localns=LAZY)
    compared = [hints[field.name] for field in dataclasses.fields(kind) if field.compare]
    return any(holds_arrays(each, within | {kind}) for each in compared)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_dataclass_that_holds_arrays_has_no_equality_of_its_fields(package: str) -> None:
    found = [
        f"{each.__module__}.{each.__name__} needs eq=False"
        for each in dataclasses_of(package)
        if compares_arrays(each) and "__eq__" in vars(each)
    ]

    assert found == []
