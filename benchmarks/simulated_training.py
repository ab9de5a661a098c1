"""Client rounds a second of a simulation: many in one step, against one after the other with Keras.

    python -m benchmarks.simulated_training

The digits' network with one hidden layer, SGD, one local epoch, minibatches of 32. The clients have 71 parts
of the data among them, of about 20 examples, or as many parts as there are clients if that is fewer.
`together` trains a round of every client in one step, as `fluffle simulate` does when all have begun one.
`one by one` is the training of `fluffle worker`, and `fit` is Keras's own loop with the weights set before
and read after it; both are measured on some of the clients, since each round takes about as long. TensorFlow
has compiled everything before it is measured.
"""

import argparse
from collections.abc import Sequence
from statistics import mean

from benchmarks.measuring import Report, in_turns, seconds, wide_console
from benchmarks.verdicts import Verdict, exit_code
from fluffle.checked_task import CheckedTask
from fluffle.model import Weights
from fluffle.plan import Plan
from fluffle.settings import load_arguments
from fluffle.task import load_task
from fluffle_cli.simulate.settings import SimulateSettings
from fluffle_cli.simulate.sites import Sites
from fluffle_worker.keras_task import KerasTask, RoundAtSite
from fluffle_worker.round import ignore_progress
from fluffle_worker.tasks import digits

CLIENTS = 16, 100, 1000
PLAN = Plan()
# So many rounds are trained one by one: all would take minutes.
SLOW_ROUNDS = 16
REQUIRED = 20.0


class Measured:
    """The three ways to train a round of each of so many clients."""

    def __init__(self, clients: int) -> None:
        task = load_task("digits")
        if not isinstance(task, KerasTask):
            raise TypeError("the digits are not a KerasTask")
        settings = load_arguments(SimulateSettings, {"task": "digits", "clients": clients, "split": "iid"})
        sites = Sites(settings, task)
        checked = CheckedTask(sites.task)
        model = checked.model(0)
        self._weights: Weights = {**model.weights, **model.local}
        self._prepared = [checked.with_the_same_model() for _ in range(sites.count)]
        self.examples = [each.prepare(sites.of(at)) for at, each in enumerate(self._prepared)]
        self._rounds = [RoundAtSite(self._weights, at % sites.count, at) for at in range(clients)]
        tasks = [each.task for each in self._prepared if isinstance(each.task, KerasTask)]
        self._stacked = tasks[0].stacked(tasks)
        self._model = digits.build_model()
        some = [at % sites.count for at in range(SLOW_ROUNDS)]
        self._some = [(self._prepared[at], tasks[at].train_data(sites.of(at))) for at in some]

    def together(self) -> float:
        """Return the seconds for each client's round, trained in one step."""
        return seconds(lambda: self._stacked.train(self._rounds, PLAN)) / len(self._rounds)

    def one_by_one(self) -> float:
        """Return the seconds for each round as a worker trains it."""

        def train_all() -> None:
            for seed, (task, _) in enumerate(self._some):
                task.train(self._weights, PLAN, seed=seed, progress=ignore_progress)

        return seconds(train_all) / len(self._some)

    def fit(self) -> float:
        """Return the seconds for each round of Keras's `fit`."""

        def fit_all() -> None:
            for _, data in self._some:
                x, y = data if isinstance(data, tuple) else (data, None)
                self._model.set_weights(list(self._weights.values()))
                self._model.fit(x, y, batch_size=PLAN.batch_size, epochs=1, verbose=0)
                self._model.get_weights()

        return seconds(fit_all) / len(self._some)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure in turns, write, print, and end with 1 when 20 times as many a second are not reached."""
    parser = argparse.ArgumentParser(prog="simulated_training", description="Client rounds a second.")
    parser.add_argument("--clients", type=int, nargs="+", default=CLIENTS)
    parser.add_argument("--repeats", type=int, default=4)
    given = parser.parse_args(arguments)
    console = wide_console()
    report = Report("simulated_training", "client rounds a second: the digits' network, one epoch")
    verdicts = []
    for clients in given.clients:
        measured = Measured(clients)
        ways = {"fit": measured.fit, "one_by_one": measured.one_by_one, "together": measured.together}
        with report.row() as row:
            found = in_turns(ways, given.repeats)
            row |= {"clients": clients, "examples_each": round(mean(measured.examples))}
            row |= {name: spread.rates(1) for name, spread in found.items()}
            over_fit = found["fit"].over(found["together"])
            row |= {"times_one_by_one": found["one_by_one"].over(found["together"]), "times_fit": over_fit}
        what = f"{clients} clients together against Keras one after the other"
        verdicts.append(Verdict(what, "at least", REQUIRED, over_fit.median, " times"))
    report.show(console)
    for verdict in verdicts:
        console.print(f"{verdict.what}: {verdict.measured:.0f} times, {verdict}", markup=False)
    raise SystemExit(exit_code(verdicts))


if __name__ == "__main__":
    main()
