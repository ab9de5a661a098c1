"""What the demo needs the task's framework for once the federation is over, in one child process.

`python -m fluffle_cli.demo.afterwards OUT ARGUMENTS` writes each final model in the framework's own format,
and trains the same architecture in one place with each of the seeds, to compare.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from fluffle.checked_task import CheckedTask
from fluffle.errors import FluffleError
from fluffle.plan import Plan
from fluffle.safetensors_file import read_model
from fluffle.stderr_relay import relayed_stderr
from fluffle.task import load_task
from fluffle_worker.data.table import with_data_table
from fluffle_worker.round import train_centrally


def save_and_train(
    *,
    task: str,
    epochs: int,
    max_seconds: float,
    learning_rate: float | None,
    config: str,
    models: Mapping[str, Sequence[str]],
) -> Mapping[str, float]:
    """Save the models of each seed beside their files as `.keras`, and train one in one place with each seed.

    `config` is a TOML file whose table [data] has the data steps. Returns the medians of the metrics of those
    that were trained in one place.
    """
    loaded, plan = with_data_table(load_task(task), Path(config)), Plan(learning_rate=learning_rate)
    checked = CheckedTask(loaded)
    found = []
    for seed, paths in models.items():
        local = checked.model(int(seed)).local
        for path in map(Path, paths):
            checked.save({**read_model(path), **local}, path.with_suffix(".keras"))
        found.append(
            train_centrally(loaded, epochs=epochs, plan=plan, seed=int(seed), max_seconds=max_seconds)
        )
    return {name: median(each[name] for each in found) for name in found[0]}


def main(out: str, arguments: str) -> int:
    """Write the metrics for these arguments, which are JSON; an error is one sentence on stderr."""
    try:
        found = save_and_train(**json.loads(arguments))
    except FluffleError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    Path(out).write_text(json.dumps(dict(found)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    with relayed_stderr(as_json=False, verbose=False, fields={}):
        code = main(*sys.argv[1:])
    sys.exit(code)
