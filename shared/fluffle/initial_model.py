"""Version 0 of a federation's model: the seeded weights of a task, written to a file.

The aggregator runs this as a child, `python -m fluffle.initial_model --task T --seed S --out FILE`, and so
never loads the task's framework, which may take half a gigabyte of memory, into its own process.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from fluffle.checked_task import CheckedTask
from fluffle.data_source import DataSource, reading_from
from fluffle.errors import FluffleError
from fluffle.safetensors_file import write_model
from fluffle.stderr_relay import relayed_stderr
from fluffle.task import load_task


def write_initial_model(
    task_name: str, *, seed: int, out: Path, begin: Path | None = None, source: DataSource | None = None
) -> None:
    """Write a task's initial weights to `out` (.safetensors), or those that the task reads from `begin`.

    `source` is where the rows of a task of tables are. Raises TaskError, LayoutError or ConfigError when the
    task, a file or the place for the new one is wrong.
    """
    task = CheckedTask(reading_from(load_task(task_name), source or DataSource()))
    model = task.model(seed) if begin is None else task.load(begin)
    origin = f"seed {seed}" if begin is None else begin.name
    about = {"fluffle.task": task_name, "fluffle.origin": origin}
    write_model(out, model.weights, about, layout=model.layout)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; what is wrong becomes one sentence on stderr and exit code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m fluffle.initial_model",
        description="Write a task's seeded initial weights, or those of a model file, as .safetensors.",
    )
    parser.add_argument("--task", required=True, help="a ready task, or package.module:name")
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights (default: 0)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.safetensors")
    parser.add_argument("--from", type=Path, metavar="FILE.keras", dest="begin", help="instead of the seed")
    parser.add_argument("--data", help="rows of a table, for the task tabular")
    parser.add_argument("--label", help="column of these rows that the model learns to tell")
    parser.add_argument("--config", type=Path, metavar="FILE.toml", help="settings of the task tabular")
    parser.add_argument("--without-survey", action="store_true", help="no layer of it scales the columns")
    given = parser.parse_args(arguments)
    source = DataSource(given.data, given.label, given.config, surveyed=not given.without_survey)
    try:
        write_initial_model(given.task, seed=given.seed, out=given.out, begin=given.begin, source=source)
    except FluffleError as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    with relayed_stderr(as_json=False, verbose=False, fields={}):
        main()
