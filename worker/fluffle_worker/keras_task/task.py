"""KerasTask: a task made of two or three functions."""

import inspect
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fluffle.errors import NoHeldOutData, TaskError
from fluffle.model import Group, Weights
from fluffle.plan import Plan
from fluffle.survey.result import SurveyResult
from fluffle.survey.statistics import DataStatistics
from fluffle.task import Progress, Site, Trained, Validated
from fluffle.task_errors import blamed_on
from fluffle_worker.data import DataSteps
from fluffle_worker.data.rows import Rows
from fluffle_worker.keras_task.backend import KerasModel
from fluffle_worker.keras_task.data import ArrayData, BatchedData
from fluffle_worker.keras_task.data_fit import axes_of_losses, require_augmentable, require_data_fits
from fluffle_worker.keras_task.model import BuiltModel
from fluffle_worker.keras_task.shrinking import Shrinking, Shrunk, shrink
from fluffle_worker.keras_task.site_data import (
    HELD_OUT,
    SiteData,
    log_steps,
    raw_rows,
    read_eval_data,
    read_site,
)
from fluffle_worker.keras_task.stacked import NotStackable, StackedModel
from fluffle_worker.keras_task.steps import EVALUATION_BATCH_SIZE, Metrics, evaluation_of, train_epochs
from fluffle_worker.keras_task.surveyed import classes_of, require_fit, statistics_of_site, warn_if_unset
from fluffle_worker.keras_task.validation import validated


class KerasTask:
    """A `fluffle.task.Task` from a compiled Keras model and data that `Model.fit` can read again and again.

    `build_model()` returns a compiled and built `keras.Model`. It runs in its own thread, so that variables
    have the same names in every process; set there what is global to Keras, such as a dtype policy.
    `train_data(site)` returns (x, y) or (x, y, sample_weight): arrays, data frames, sparse matrices, or
    tuples or dictionaries of them, with the examples along the first axis. Or it returns a finite
    `tf.data.Dataset` or `PyDataset` of such minibatches: then the plan's batch size is not used, and a
    `tf.data.Dataset` keeps its own order. `eval_data()` returns held-out data in the same forms, for an
    evaluator; if it has a parameter, it gets the result of the federation's survey there, or None.
    `validation_data(site)` returns those that a site holds out itself, where it has such apart
    from its training data (see `docs/how-to/evaluate-at-sites.md`). `local` are patterns of weights that stay
    at their site, such as ["head/*"] (see `docs/models.md`). `data` are steps that each site's training data
    goes through (see `docs/how-to/data.md`).

    Every round starts from the given weights, with a fresh optimizer unless the plan says keep_optimizer. The
    model is built once for each process, and its training step is compiled in the first round.
    """

    def __init__(
        self,
        build_model: Callable[[], KerasModel],
        train_data: Callable[[Site], object],
        eval_data: Callable[..., object] | None = None,
        *,
        validation_data: Callable[[Site], object] | None = None,
        local: Sequence[str] = (),
        data: DataSteps | None = None,
    ) -> None:
        if isinstance(local, str):
            raise TaskError(f"KerasTask(local=...) must be a list of patterns, such as [{local!r}], not text")
        functions = {
            "build_model()": build_model,
            "train_data(site)": train_data,
            "eval_data()": eval_data,
            "validation_data(site)": validation_data,
        }
        for call, given in functions.items():
            # A Keras model can be called too.
            if given is not None and (not callable(given) or hasattr(given, "train_step")):
                raise TaskError(
                    f"KerasTask needs a function as {call.partition('(')[0]}, not {type(given).__name__}: it "
                    f"calls {call} itself, so name the function without calling it"
                )
        self._build_model = build_model
        self._train_data = train_data
        self._eval_data = eval_data
        self._validation_data = validation_data
        self._local = tuple(local)
        self._dtype_policy = ""
        self._built: BuiltModel | None = None
        self._share = 1.0
        self._data_steps = data
        self._site: SiteData | None = None
        self._which = Site()
        self._evaluate: Callable[[KerasModel], Metrics] | None = None
        self._validate: Callable[[KerasModel], Metrics] | None = None

    def initial_weights(self, seed: int) -> dict[str, NDArray[np.generic]]:
        """Build the model from the seed, and return its weights, with the frozen and local ones."""
        self._built = self._build(seed)
        return self._built.all_weights()

    def train_last(self, share: float) -> str:
        """Train the last layers alone from now on, all of them for 1; see `fluffle.task.PartialTask`.

        Raises TaskError, which names the smallest share that would do, when the last layer is larger.
        """
        # Built again, so that the frozen layers have no gradients and no moments.
        self._share, self._built = share, None
        return self._model().first_trained

    def tensor_groups(self) -> Mapping[str, Group]:
        """Return the group of each weight."""
        return self._model().groups

    def prepare(self, site: Site) -> int:
        """Load this site's training data and return its number of examples."""
        self._which, self._site, self._validate = site, self._read(site), None
        log_steps(self._site.reports)
        return self._site.training.counted

    def require_trainable(self, site: Site) -> None:
        """Raise TaskError for data, or a data step, that a worker at this site would refuse.

        A model is built only for steps that change its loss, or inputs that may be tokens.
        """
        found = self._read(site)
        if found.remedy is not None:
            self._model().loss.require_fits(found.remedy)
        if found.augmentation is not None and found.augmentation.is_of_integers:
            require_augmentable(self._model(), found.augmentation)

    def statistics(self) -> DataStatistics:
        """Return the statistics of the training data after the cleaning steps, which reads it again.

        Raises TaskError for data that cannot be surveyed, or that a SurveyNormalization does not fit.
        """
        model = self._model().model
        found = statistics_of_site(
            lambda: self._train_data(self._which),
            self._data_steps,
            site=self._which,
            classes=classes_of(model),
        )
        require_fit(model, found)
        return found

    def use_statistics(self, statistics: SurveyResult) -> None:
        """Give the result of the survey to the next call of `eval_data(statistics)`."""
        self._which = replace(self._which, statistics=statistics)
        self._evaluate = None

    def train(self, weights: Weights, plan: Plan, *, seed: int, progress: Progress) -> Trained:
        """Train from `weights` as the plan says, in an order of the examples drawn from `seed`.

        `local_steps` may need several passes over the data. The result counts each example once. Its metrics
        are those of the last epoch, or of all local steps; the proximal term is not in the loss.

        Raises TaskError when `prepare` has not been called, and LayoutError for weights of another model.
        """
        if self._site is None:
            raise TaskError("there is no data to train on: call prepare(site) first")
        built, rng, training = self._model(), np.random.default_rng(seed), self._site.training
        if self._which.statistics is None:
            warn_if_unset(built.model)
        require_data_fits(built, "train_data", training, self._data_steps)
        batch_size = built.batch_size or plan.batch_size
        if self._site.augmentation is not None:
            require_augmentable(built, self._site.augmentation)
        built.start_round(weights, plan, rng, self._site.remedy)
        examples, metrics = train_epochs(
            built.model,
            self._site.minibatches(batch_size, rng, weight_axes=axes_of_losses(built)),
            epochs=1 if plan.local_steps else plan.local_epochs,
            steps_per_epoch=plan.local_steps or training.per_epoch(batch_size),
            progress=progress,
        )
        return Trained(built.end_round(), min(examples, training.counted), metrics)

    def learning_rate_power(self) -> float | None:
        """Return 1 for SGD, 0.5 for other optimizers, and 0 where the plan does not set the learning rate.

        None where the data comes in minibatches, or the model takes minibatches of one size only.
        """
        built = self._model()
        is_fixed = self._site is None or isinstance(self._site.training, BatchedData) or built.batch_size
        return None if is_fixed else built.learning_rate_power

    def train_data(self, site: Site) -> object:
        """Return what the function `train_data` returns for a site."""
        with blamed_on("train_data"):
            return self._train_data(site)

    def raw_rows(self, site: Site) -> Rows:
        """Return a site's training data before any data step; it has no rows where there are none."""
        return raw_rows(lambda: self._train_data(site))

    def with_train_data(self, train_data: Callable[[Site], object]) -> "KerasTask":
        """Return a task with this one's model and held-out data that gets its training data elsewhere."""
        other = copy(self)
        other._train_data, other._site = train_data, None
        return other

    def reading_once(self, site: Site) -> "KerasTask":
        """Return a task that asks for this site's training data once: to read it may take minutes."""
        other, read = copy(self), cache(lambda: self.train_data(site))
        other._train_data, other._site = lambda _: read(), None
        return other

    def with_data_steps(self, steps: DataSteps) -> "KerasTask":
        """Return a task with this one's model and data that takes these data steps."""
        other = copy(self)
        other._data_steps, other._site = steps, None
        return other

    def with_dtype_policy(self, policy: str) -> "KerasTask":
        """Return a task with this one's data whose model is built under a dtype policy of Keras."""
        other = copy(self)
        other._dtype_policy, other._built, other._evaluate = policy, None, None
        return other

    @property
    def data_steps(self) -> DataSteps | None:
        """The steps that the training data of each site goes through."""
        return self._data_steps

    def stacked(self, sites: Sequence["KerasTask"]) -> StackedModel:
        """Return what trains rounds of several sites in one step; `sites` share this model and are prepared.

        Raises NotStackable, which says why, where that is not possible, and TaskError for data of a site that
        the model cannot take.
        """
        prepared = [each._site for each in sites if each._site is not None]
        for reason in filter(None, (each.not_stackable() for each in prepared)):
            raise NotStackable(reason)
        arrays = [each.training for each in prepared if isinstance(each.training, ArrayData)]
        if len(arrays) < len(sites):
            raise NotStackable("the training data is not in arrays")
        for each in arrays:
            require_data_fits(self._model(), "train_data", each, self._data_steps)
        return StackedModel(self._model(), arrays, [each.remedy for each in prepared])

    def optimizer_state(self) -> dict[str, NDArray[np.generic]]:
        """Return copies of the optimizer's variables, numbered in their order."""
        return self._model().optimizer_state()

    def restore_optimizer(self, state: Weights) -> None:
        """Go on from an earlier state; raises LayoutError for that of another optimizer or model."""
        self._model().restore_optimizer(state)

    def evaluate(self, weights: Weights) -> Metrics:
        """Return the loss and the compiled metrics on held-out data; the only accuracy is "accuracy"."""
        built = self._model()
        if self._evaluate is None:
            self._evaluate = self._evaluation()
        built.assign(weights)
        return self._evaluate(built.model)

    def validate(self, weights: Weights) -> Validated | None:
        """Return the same metrics on the data that this site holds out, or None if it holds out none."""
        if self._site is None or self._site.held_out is None:
            return None
        built, held_out = self._model(), self._site.held_out
        if self._validate is None:
            function = "validation_data" if self._validation_data else HELD_OUT
            require_data_fits(built, function, held_out, self._data_steps)
            self._validate = evaluation_of(held_out, built.batch_size or EVALUATION_BATCH_SIZE)
        built.assign(weights)
        return validated(built.model, self._validate(built.model), held_out.examples)

    def _evaluation(self) -> Callable[[KerasModel], Metrics]:
        """Return what evaluates a model on `eval_data`. Raises NoHeldOutData for a task without it."""
        eval_data = self._eval_data
        if eval_data is None:
            raise NoHeldOutData("this task has no held-out data: give its KerasTask an eval_data function")

        def call() -> object:
            takes_statistics = bool(inspect.signature(eval_data).parameters)
            return eval_data(self._which.statistics) if takes_statistics else eval_data()

        built, held_out = self._model(), read_eval_data(call, self._data_steps)
        require_data_fits(built, "eval_data", held_out, self._data_steps)
        return evaluation_of(held_out, built.batch_size or EVALUATION_BATCH_SIZE)

    def save(self, weights: Weights, path: Path) -> None:
        """Write the model with a fresh optimizer. Raises TaskError unless `path` ends in `.keras`."""
        if path.suffix != ".keras":
            raise TaskError(f"Keras writes files that end in .keras, not {path.name}")
        self._model().save(weights, path)

    def save_small(self, weights: Weights, path: Path, shrinking: Shrinking) -> Shrunk:
        """Write a pruned or quantized model, for devices that only infer, and return what that has changed.

        There are no metrics without held-out data. Raises TaskError when the model cannot be shrunk.
        """
        evaluate = None
        with suppress(NoHeldOutData):
            evaluate = self._evaluation()
        with tempfile.TemporaryDirectory() as folder:
            whole = Path(folder) / "whole.keras"
            self.save(weights, whole)
            return shrink(whole, path, shrinking, evaluate)

    def load(self, path: Path) -> dict[str, NDArray[np.generic]]:
        """Read the weights of a `.keras` file; no code or class in it is used.

        Raises TaskError when there is no such file, LayoutError when it holds another model.
        """
        built = self._model()
        built.load(path)
        return built.all_weights()

    def _read(self, site: Site) -> SiteData:
        validation_data = self._validation_data
        return read_site(
            lambda: self._train_data(site),
            self._data_steps,
            site=site,
            validation_data=None if validation_data is None else lambda: validation_data(site),
        )

    def _build(self, seed: int) -> BuiltModel:
        return BuiltModel(
            self._build_model, seed, self._local, share=self._share, dtype_policy=self._dtype_policy
        )

    def _model(self) -> BuiltModel:
        if self._built is None:
            self._built = self._build(0)
        return self._built
