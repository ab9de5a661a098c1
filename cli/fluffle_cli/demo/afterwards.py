"""What the demo needs the task's framework for once the federation is over, in one child process.

`python -m fluffle_cli.demo.afterwards OUT ARGUMENTS` evaluates final models, writes each in the framework's
own format, and trains the same architecture in one place, to compare.
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
from fluffle_worker.central import train_centrally


def measure(
    *,
    task: str,
    seed: int,
    epochs: int,
    max_seconds: float,
    learning_rate: float | None,
    models: Sequence[str],
) -> Mapping[str, object]:
    """Evaluate each model, save it beside its file as `.keras`, and train the same one in one place.

    Returns the metrics: of each model in `finals`, and of the one that was trained in one place in `central`.
    """
    loaded = load_task(task)
    checked = CheckedTask(loaded)
    local = checked.model(seed).local
    finals = []
    for path in map(Path, models):
        weights = {**read_model(path), **local}
        finals.append(checked.evaluate(weights))
        checked.save(weights, path.with_suffix(".keras"))
    plan = Plan(learning_rate=learning_rate)
    central = train_centrally(loaded, epochs=epochs, plan=plan, seed=seed, max_seconds=max_seconds)
    return {"finals": finals, "central": central}


def main(out: str, arguments: str) -> int:
    """Write what `measure` finds for these arguments, which are JSON; an error is one sentence on stderr."""
    try:
        found = measure(**json.loads(arguments))
    except FluffleError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    Path(out).write_text(json.dumps(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    with relayed_stderr(as_json=False, verbose=False, fields={}):
        code = main(*sys.argv[1:])
    sys.exit(code)
