"""Which versions of everything are in use here, for whoever wants to have a run again."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("fluffle", "numpy", "pika", "tensorflow", "keras", "scikit-learn", "matplotlib")


def versions_in_use(server: str) -> dict[str, str]:
    """Return the versions of the packages here and of what is below them; `server` names the broker."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return {**found, "Python": platform.python_version(), "system": platform.platform(), "broker": server}
