"""`fluffle model export --quantize` and `--prune`: a smaller model, and what it costs as a table."""

from pathlib import Path

import typer
from rich.filesize import decimal

from fluffle.checked_task import CheckedTask, checked_metrics
from fluffle.consoles import print_table
from fluffle.errors import ConfigError, TaskError
from fluffle.model import Weights
from fluffle.task_errors import blamed_on
from fluffle_cli.words import number, percent
from fluffle_worker.keras_task import KerasTask
from fluffle_worker.keras_task.shrinking import Shrinking, Shrunk


def export_small(
    task: CheckedTask, weights: Weights, out: Path, *, quantize: bool, prune: float | None
) -> None:
    """Write a pruned or quantized model, and print what that has changed.

    Raises TaskError when the task or its model cannot be shrunk.
    """
    if not isinstance(task.task, KerasTask):
        raise TaskError(
            f"--quantize and --prune shrink models of Keras, and the task is a {type(task.task).__name__}: "
            "leave them out, and shrink the exported model with the task's own framework"
        )
    if not out.parent.is_dir():
        raise ConfigError(f"--out: there is no folder {out.parent}")
    with blamed_on("shrinking the model"):
        shrunk = task.task.save_small(weights, out, Shrinking(prune=prune, quantize=quantize))
    _print(shrunk)


def _print(shrunk: Shrunk) -> None:
    before, after = shrunk.before, shrunk.after
    rows = [["file", decimal(before.size_bytes), decimal(after.size_bytes)]]
    rows.append(["weights that are zero", percent(before.zeros), percent(after.zeros)])
    were, are = (checked_metrics("evaluate", each.metrics) for each in (before, after))
    rows += [[name, number(were[name]), number(are[name])] for name in were]
    print_table(["", "before", "after"], rows)
    if not were:
        typer.echo("The task has no held-out data here, so the model was not evaluated.", err=True)
    if shrunk.quantized:
        typer.echo(f"int8: {', '.join(shrunk.quantized)}")
    if shrunk.not_quantized:
        typer.echo(
            f"not quantized, since Keras cannot, or could not read them again: "
            f"{', '.join(shrunk.not_quantized)}"
        )
