"""The data of one site, ready for its rounds: read, and taken through the task's data steps."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fluffle.errors import TaskError
from fluffle.logs import get_logger
from fluffle.task import Site
from fluffle_worker.data.augment import Spread, spread_of
from fluffle_worker.data.holding_out import held_out_rows
from fluffle_worker.data.pipeline import PreparedRows, StepReport, clean_eval_data, take_steps
from fluffle_worker.data.rows import Rows, names_of, read_rows
from fluffle_worker.data.settings import DataSteps
from fluffle_worker.data.streams import look_through, require_same_columns, require_streamable, with_weights
from fluffle_worker.data.weights import LossRemedy
from fluffle_worker.keras_task.augment import Augmentation
from fluffle_worker.keras_task.data import ArrayData, BatchedData, Minibatch, Minibatches, endless, read_data

log = get_logger(__name__)

HELD_OUT = "the part of train_data that is held out"


@dataclass(frozen=True, slots=True, eq=False)
class SiteData:
    """What a site trains on, the rows that it holds out, and what changes its training step.

    `class_weights` [classes] multiply the weights of a data set's rows; those of arrays have theirs already.
    """

    training: Minibatches
    held_out: Minibatches | None = None
    remedy: LossRemedy | None = None
    augmentation: Augmentation | None = None
    class_weights: np.ndarray[tuple[int], np.dtype[np.float64]] | None = None
    reports: tuple[StepReport, ...] = ()

    def minibatches(
        self, batch_size: int, rng: np.random.Generator, *, weight_axes: int = 1
    ) -> Iterator[Minibatch]:
        """Yield minibatches to train on, without end, weighted and augmented; see `Augmentation.apply`."""
        plain = endless(self.training, batch_size, rng)
        of_class = self.class_weights
        weighted = plain if of_class is None else (with_weights(each, of_class) for each in plain)
        if self.augmentation is None:
            return weighted
        return self.augmentation.apply(weighted, rng, weight_axes=weight_axes)

    def not_stackable(self) -> str:
        """Return why rounds of several sites cannot be trained in one step; empty where they can."""
        return "the minibatches are augmented" if self.augmentation else ""


def read_site(
    call: Callable[[], object],
    steps: DataSteps | None,
    *,
    site: Site,
    validation_data: Callable[[], object] | None = None,
) -> SiteData:
    """Call `train_data`, and take its data through the steps; None is no steps at all.

    What is held out is a share of it, as the site says, or what `validation_data` returns. Raises TaskError
    for data that cannot be used, and for a step that cannot work with it.
    """
    if validation_data is not None and site.validation:
        raise TaskError(
            f"local_validation {site.validation:g} holds out a part of train_data, and the task has "
            "validation_data: leave one of them out"
        )
    own = None if validation_data is None else read_data("validation_data", validation_data)
    if steps is None:
        return _as_it_is(read_data("train_data", call), site, own)
    found: list[PreparedRows] = []
    prior = site.statistics.class_prior if site.statistics else None

    def change(parts: Minibatch) -> Minibatch:
        found.append(
            take_steps(
                read_rows(parts),
                steps,
                site=site.index,
                share=site.validation,
                split_seed=site.seed,
                held_out=read_rows(own.parts, "validation_data") if isinstance(own, ArrayData) else None,
                prior=prior,
            )
        )
        return _parts(found[0].train)

    training = read_data("train_data", call, change)
    if isinstance(training, BatchedData):
        _require_arrays(site)
        return replace(_of_stream(training, steps, prior), held_out=own)
    [prepared] = found
    training.counted = prepared.real
    held_out, rows = prepared.held_out, prepared.train
    return SiteData(
        training,
        held_out=own if held_out is None else ArrayData(HELD_OUT, _parts(held_out)),
        remedy=prepared.remedy,
        augmentation=_augmentation(steps, rows.x.ndim if rows.is_table else 0, lambda: _spread(rows, steps)),
        reports=prepared.reports,
    )


def _as_it_is(training: Minibatches, site: Site, own: Minibatches | None) -> SiteData:
    """Return data that goes through no steps; a share of it is held out if the site says so."""
    if not site.validation:
        return SiteData(training, held_out=own)
    if isinstance(training, BatchedData):
        _require_arrays(site)
        return SiteData(training)
    y = training.parts[1] if len(training.parts) > 1 else None
    held = held_out_rows(y, training.examples, site.validation, split_seed=site.seed, site=site.index)
    log.debug("data held out", rows=int(held.sum()), rows_to_train_on=int((~held).sum()))
    return SiteData(training.taken("train_data", ~held), held_out=training.taken(HELD_OUT, held))


def _require_arrays(site: Site) -> None:
    """Raise TaskError when a share of a data set that comes in minibatches is to be held out."""
    if site.validation:
        raise TaskError(
            f"local_validation {site.validation:g} needs all rows at once, and train_data returned a data "
            "set that is read minibatch by minibatch: return arrays, or give the task validation_data"
        )


def read_eval_data(call: Callable[[], object], steps: DataSteps | None) -> Minibatches:
    """Call `eval_data`, and return its data with the steps that change columns; None is no steps at all.

    Raises TaskError for data that cannot be used, and for a step that cannot work with it.
    """
    if steps is None:
        return read_data("eval_data", call)

    def change(parts: Minibatch) -> Minibatch:
        cleaned, reports = clean_eval_data(read_rows(parts, "eval_data"), steps)
        log_steps(reports)
        return _parts(cleaned)

    held_out = read_data("eval_data", call, change)
    if isinstance(held_out, BatchedData):
        require_same_columns(held_out.one_pass(0, None), steps)
    return held_out


def _spread(rows: Rows, steps: DataSteps) -> Spread:
    if rows.categories:
        names = names_of(rows, rows.categories)
        raise TaskError(
            f"augment {steps.augment[0]} changes numbers, and there are categories in the columns {names}: "
            "leave it out"
        )
    return spread_of(np.asarray(rows.x))


def log_steps(reports: Sequence[StepReport]) -> None:
    """Log one line for each step, and a warning for one that left hardly any rows."""
    for each in reports:
        log.info(
            "data step", step=each.step, rows_before=each.before, rows_after=each.after, detail=each.detail
        )
        if each.warning:
            log.warning(
                "a data step left less than a tenth of the rows: look at them with `fluffle data check`, or "
                "choose another step",
                step=each.step,
                rows_before=each.before,
                rows_after=each.after,
            )


def raw_rows(call: Callable[[], object]) -> Rows:
    """Call `train_data`, and return its rows before any step; the minibatches of a data set become arrays.

    Also where there is none. Raises TaskError for data that cannot be used.
    """
    found: list[Rows] = []

    def note(parts: Minibatch) -> Minibatch:
        found.append(read_rows(parts))
        return _parts(found[0])

    try:
        training = read_data("train_data", call, note)
    except TaskError:
        if found and not len(found[0]):
            return found[0]
        raise
    if found:
        return found[0]
    batches = list(training.one_pass(0, None))
    return read_rows(
        tuple(np.concatenate([np.asarray(each) for each in part]) for part in zip(*batches, strict=True))
    )


def _of_stream(training: BatchedData, steps: DataSteps, prior: NDArray[np.float64] | None) -> SiteData:
    require_streamable(steps)
    prepared = look_through(training.one_pass(0, None), steps, prior)

    def spread() -> Spread:
        if prepared.spread is None:
            raise TaskError("augment works on inputs that are numbers: leave it out")
        return prepared.spread

    return SiteData(
        training,
        remedy=prepared.remedy,
        augmentation=_augmentation(steps, prepared.axes, spread),
        class_weights=prepared.weights,
    )


def _augmentation(steps: DataSteps, axes: int, spread: Callable[[], Spread]) -> Augmentation | None:
    if not steps.augment:
        return None
    if not axes:
        raise TaskError(
            f"augment {steps.augment[0]} needs x as one array of numbers, and train_data returned something "
            "else: leave augment out"
        )
    return Augmentation(steps.augmentations, axes, spread())


def _parts(rows: Rows) -> Minibatch:
    parts: Minibatch = (rows.x,) if rows.y is None else (rows.x, rows.y)
    return parts if rows.weights is None else (*parts, rows.weights)
