"""What the demo needs the task's framework for once the federation is over, in one child process.

`python -m fluffle_cli.demo.afterwards` evaluates final models, writes each in the framework's own format,
and trains the same architecture in one place, to compare.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fluffle.checked_task import CheckedTask
from fluffle.errors import FluffleError
from fluffle.plan import Plan
from fluffle.safetensors_file import read_model
from fluffle.stderr_relay import relayed_stderr
from fluffle.task import load_task
from fluffle_cli.demo.final_metrics import FinalMetrics, write_final_metrics
from fluffle_worker.central import train_centrally


def find(
    task_name: str, *, seed: int, epochs: int, max_seconds: float, plan: Plan, models: Sequence[Path]
) -> FinalMetrics:
    """Evaluate each model, save it beside its file as `.keras`, and train centrally."""
    task = load_task(task_name)
    checked = CheckedTask(task)
    local = checked.model(seed).local
    finals = []
    for path in models:
        weights = {**read_model(path), **local}
        finals.append(checked.evaluate(weights))
        checked.save(weights, path.with_suffix(".keras"))
    central = train_centrally(task, epochs=epochs, plan=plan, seed=seed, max_seconds=max_seconds)
    return FinalMetrics(finals=finals, central=central)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; what is wrong becomes one sentence on stderr and exit code 2."""
    parser = argparse.ArgumentParser(prog=f"python -m {__name__}", description=__doc__)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--task", required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--max-seconds", type=float, required=True)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    plan = Plan(learning_rate=given.learning_rate)
    try:
        found = find(
            given.task,
            seed=given.seed,
            epochs=given.epochs,
            max_seconds=given.max_seconds,
            plan=plan,
            models=given.models,
        )
    except FluffleError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    write_final_metrics(given.out, found)
    return 0


if __name__ == "__main__":
    with relayed_stderr(as_json=False, verbose=False, fields={}):
        code = main()
    sys.exit(code)
