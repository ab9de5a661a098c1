"""What the demo needs the task's framework for once the federation is over, in one child process.

`python -m fluffle_cli.demo.afterwards OUT ARGUMENTS` writes each final model in the framework's own format,
and trains the same architecture in one place, to compare.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from fluffle.checked_task import CheckedTask
from fluffle.errors import FluffleError
from fluffle.plan import Plan
from fluffle.safetensors_file import read_model
from fluffle.stderr_relay import relayed_stderr
from fluffle.task import load_task
from fluffle_worker.round import train_centrally


def save_and_train(
    *,
    task: str,
    seed: int,
    epochs: int,
    max_seconds: float,
    learning_rate: float | None,
    models: Sequence[str],
) -> Mapping[str, float]:
    """Save each model beside its file as `.keras`, and return the metrics of one trained in one place."""
    loaded = load_task(task)
    checked = CheckedTask(loaded)
    local = checked.model(seed).local
    for path in map(Path, models):
        checked.save({**read_model(path), **local}, path.with_suffix(".keras"))
    plan = Plan(learning_rate=learning_rate)
    return train_centrally(loaded, epochs=epochs, plan=plan, seed=seed, max_seconds=max_seconds)


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
