"""Importing a library that comes with an extra of Fluffle, when it is first needed."""

import importlib
from types import ModuleType

from fluffle.errors import TaskError


def import_for(step: str, module: str, *, extra: str) -> ModuleType:
    """Import a module for a data step. Raises TaskError, which names the extra, when it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise TaskError(
            f"the data step {step} needs {module.partition('.')[0]}, which is not installed: pip install "
            f"'fluffle[{extra}]' ({error})"
        ) from error
