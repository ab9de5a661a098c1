"""The data of one site, ready for its rounds: read, and taken through the task's data steps."""

from collections.abc import Callable
from dataclasses import dataclass

from fluffle_worker.data.pipeline import PreparedRows, StepReport, take_steps
from fluffle_worker.data.rows import Rows, read_rows
from fluffle_worker.data.settings import DataSteps
from fluffle_worker.data.weights import LossRemedy
from fluffle_worker.keras_task.data import ArrayData, Minibatch, Minibatches, read_data


@dataclass(frozen=True, slots=True, eq=False)
class SiteData:
    """What a site trains on, the rows that it holds out, and what changes its training step."""

    training: Minibatches
    held_out: ArrayData | None = None
    remedy: LossRemedy | None = None
    reports: tuple[StepReport, ...] = ()


def read_site(call: Callable[[], object], steps: DataSteps | None, *, site: int) -> SiteData:
    """Call `train_data`, and take its data through the steps; None is no steps at all.

    Raises TaskError for data that cannot be used, and for a step that cannot work with it.
    """
    if steps is None:
        return SiteData(read_data("train_data", call))
    found: list[PreparedRows] = []

    def change(parts: Minibatch) -> Minibatch:
        found.append(take_steps(read_rows(parts), steps, site=site))
        return _parts(found[0].train)

    training = read_data("train_data", call, change)
    [prepared] = found
    training.counted = prepared.real
    held_out = prepared.held_out
    return SiteData(
        training,
        held_out=None if held_out is None else ArrayData("the split of train_data", _parts(held_out)),
        remedy=prepared.remedy,
        reports=prepared.reports,
    )


def _parts(rows: Rows) -> Minibatch:
    parts: Minibatch = (rows.x,) if rows.y is None else (rows.x, rows.y)
    return parts if rows.weights is None else (*parts, rows.weights)
