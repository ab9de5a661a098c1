"""The data steps in the driver's TOML file, which each site takes; see `fluffle_worker.data.table`."""

import json
import tomllib
from pathlib import Path

from fluffle.settings import DEFAULT_CONFIG, with_table
from fluffle_worker.data import DataSteps


def data_table(config: Path | None) -> str:
    """Return a TOML text with the table [data] of the driver's file; empty where it has none.

    `config` is the setting of that name. Raises ConfigError for a wrong setting in it.
    """
    if with_table(DataSteps(), config) is None:
        return ""
    table = tomllib.loads((config or DEFAULT_CONFIG).read_text(encoding="utf-8"))[DataSteps.part]
    # Its values are texts, numbers, booleans and lists of them, which JSON writes as TOML does.
    lines = [f"{key} = {json.dumps(value)}" for key, value in table.items()]
    return "\n".join([f"[{DataSteps.part}]", *lines]) + "\n"
