"""Write what is generated from the settings classes: `make reference`.

docs/reference/settings.md is for readers; shared/fluffle/known_settings.toml tells each process the names of
the settings that it does not import.
"""

from collections.abc import Callable, Iterator, Mapping
from inspect import unwrap
from pathlib import Path
from typing import Any

import typer
from pydantic.fields import FieldInfo

from fluffle.command_line import choices_of, default_of, metavar_of
from fluffle.settings import (
    KNOWN_SETTINGS,
    SharedSettings,
    TableSettings,
    env_name,
    field_extra,
    flag_name,
    panel_of,
)
from fluffle_cli.main import app
from fluffle_spark.settings import SparkSettings
from fluffle_worker.data import DataSteps
from fluffle_worker.tabular.settings import TabularSettings

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/reference/settings.md"
# Variables that are no settings: where RabbitMQ is and where `fluffle broker` keeps its data, what
# docker-compose.yml reads, and what the tests and benchmarks read.
OTHER_VARIABLES = (
    *("FLUFFLE_RABBITMQ_BIN", "FLUFFLE_BROKER_FOLDER"),
    *("FLUFFLE_TASK_FOLDER", "FLUFFLE_UI_PORT", "FLUFFLE_PROMETHEUS_PORT", "FLUFFLE_GRAFANA_PORT"),
    *("FLUFFLE_TLS_ADDRESS", "FLUFFLE_HELPER_FOLDER", "FLUFFLE_HELPER_USER"),
    *("FLUFFLE_SIMULATION_SEEDS", "FLUFFLE_TEST_MODEL_MB", "FLUFFLE_TEST_SEED", "FLUFFLE_LIGHT_PARAMETERS"),
)
INTRODUCTION = """\
# Settings

<!-- Written by `make reference` from the settings classes. Do not edit. -->

The names of a setting follow one pattern: the flag `--buffer-size` is the environment variable
`FLUFFLE_BUFFER_SIZE` and the key `buffer_size` in the TOML file. Three flags are shorter than their setting:
`--json` (`as_json`), `--print` (`print_only`) and `--compare` of the report (`compare_with`).

A flag wins over the environment. The environment wins over the command's own table in the file, which wins
over the top level of the file. A setting that is set nowhere has its default. The file is `fluffle.toml` in
the current folder, or the one that `--config` or `FLUFFLE_CONFIG` names. An unknown key in the file is an
error; an unknown variable that begins with `FLUFFLE_` is a warning.

```toml
# Shared settings stand at the top level.
federation = "digits"
broker_url = "amqp://aggregator@rabbit.example.org:5672/%2F"

[aggregator]
broker_password_file = "/run/secrets/aggregator"
strategy = "fedbuff"    # the default is reuse
buffer_size = 4
```
"""


SHARED = """\
## Shared settings

The parts of a federation have all of these. Other commands leave out those that they do not use; `--help`
shows what a command takes. `fluffle broker up`, `down`, `status` and `certs` have flags only.
"""

DATA = """\
## Data steps

Table `[data]` of a worker, of `fluffle task check`, `fluffle simulate` and `fluffle data check`. Its keys
have no flags and no variables: in Python they are the arguments of `DataSteps`
([how to use them](../how-to/data.md)).
"""

TABULAR = """\

## Tables

Table `[tabular]` of an aggregator with the task `tabular`. Its keys have no flags and no variables
([how to use them](../how-to/tabular.md)).
"""


def settings_by_command() -> Iterator[tuple[str, type[SharedSettings]]]:
    """Yield every command that has settings, in the order of `fluffle --help`, with its settings class."""
    for name, command in _commands("fluffle", app):
        settings_class = getattr(unwrap(command), "settings_class", None)
        if settings_class is not None:
            yield name, settings_class
    # It is no command of `fluffle`, since Spark starts it.
    yield "fluffle-spark.py", SparkSettings


def page() -> str:
    """Return docs/reference/settings.md."""
    commands: dict[type[SharedSettings], list[str]] = {}
    for name, settings_class in settings_by_command():
        commands.setdefault(settings_class, []).append(name)
    parts = [INTRODUCTION, SHARED, _table(SharedSettings, SharedSettings.model_fields)]
    for settings_class, names in commands.items():
        own = {
            name: field
            for name, field in settings_class.model_fields.items()
            if _row(name, field) != _row(name, SharedSettings.model_fields.get(name, field))
            or name not in SharedSettings.model_fields
        }
        parts += [
            f"## {' and '.join(f'`{name}`' for name in names)}\n",
            f"Table `[{settings_class.part}]`.\n",
        ]
        parts += [_table(settings_class, own)] if own else ["It has only shared settings.\n"]
    return "\n".join([*parts, DATA, _keys(DataSteps), TABULAR, _keys(TabularSettings)])


def known_settings() -> str:
    """Return shared/fluffle/known_settings.toml."""
    classes: list[type[SharedSettings]] = [each for _, each in settings_by_command()]
    variables = {*OTHER_VARIABLES} | {
        env_name(name)
        for fields in (SharedSettings.model_fields, *(each.model_fields for each in classes))
        for name, field in fields.items()
        if not field_extra(field).get("argument")
    }
    lines = ["# Written by `make reference` from the settings classes. Do not edit."]
    for key, names in (
        ("tables", {DataSteps.part, TabularSettings.part, *(each.part for each in classes)}),
        ("variables", variables),
    ):
        lines += [f"{key} = [", *(f'    "{name}",' for name in sorted(names)), "]"]
    return "\n".join(lines) + "\n"


def _commands(prefix: str, group: typer.Typer) -> Iterator[tuple[str, Callable[..., Any]]]:
    for command in group.registered_commands:
        if command.callback is not None:
            yield f"{prefix} {command.name}", command.callback
    for each in group.registered_groups:
        if each.typer_instance is not None:
            yield from _commands(f"{prefix} {each.name}", each.typer_instance)


def _table(settings_class: type[SharedSettings], fields: Mapping[str, FieldInfo]) -> str:
    head = ["| flag | variable | value | default | meaning |", "|---|---|---|---|---|"]
    # As in --help: what has a heading of its own comes last.
    order = sorted(fields, key=lambda name: panel_of(settings_class, name) != "")
    return "\n".join([*head, *(_row(name, fields[name]) for name in order)]) + "\n"


def _keys(table: type[TableSettings]) -> str:
    head = ["| key | value | default | meaning |", "|---|---|---|---|"]
    rows = [
        f"| `{name}` | {_value(name, field)} | `{field.default}` | {field.description} |"
        for name, field in table.model_fields.items()
    ]
    return "\n".join([*head, *rows]) + "\n"


def _row(name: str, field: FieldInfo) -> str:
    is_argument = bool(field_extra(field).get("argument"))
    default = default_of(field)
    cells = [
        f"`{flag_name(name, field)}`",
        "" if is_argument else f"`{env_name(name)}`",
        _value(name, field),
        "required" if field.is_required() else f"`{default}`" if default else "",
        field.description or "",
    ]
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


def _value(name: str, field: FieldInfo) -> str:
    choices = choices_of(field)
    if choices:
        return ", ".join(f"`{choice}`" for choice in choices)
    bounds = [
        f"{sign} {getattr(bound, kind)}"
        for bound in field.metadata
        for kind, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))
        if hasattr(bound, kind)
    ]
    return ", ".join([metavar_of(name, field) or "on or off", *bounds])


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
    KNOWN_SETTINGS.write_text(known_settings(), encoding="utf-8")
