"""`fluffle simulate --no-train`: who sends how much, and how late it comes, without any training."""

from array import array
from collections import Counter
from collections.abc import Sequence

from fluffle_cli.simulate.counting import CountedUpdate, CountedWorker, CountingLeader
from fluffle_cli.simulate.settings import SimulateSettings
from fluffle_cli.simulate.timeline import Timeline


class QueueFederation(Timeline[CountedWorker]):
    """A federation whose updates are counted only; `duplicates` counts the updates that came twice.

    `committed_at` has the seconds at which each version was published.
    """

    def __init__(self, settings: SimulateSettings) -> None:
        """Make the workers."""
        super().__init__(settings.make_population())
        self.duplicates = 0
        self.committed_at = array("d")
        self._leader = CountingLeader(settings, self._committed)
        plan = self._leader.plan
        self._round_examples = plan.examples_of_round(0)
        self._is_paced = plan.round_seconds is not None
        self.workers = [CountedWorker(index, plan) for index in range(settings.clients)]

    @property
    def leader(self) -> CountingLeader:
        """The leader, which only counts."""
        return self._leader

    @property
    def refused(self) -> Counter[str]:
        """How many updates the leader has refused, by reason."""
        return self._leader.refused

    def run(self) -> None:
        """Play the federation to its end."""
        self._play(self.workers)

    def _has_read(self, worker: CountedWorker) -> bool:
        leader = self._leader
        if not leader.finished:
            worker.read(leader.version)
        return not leader.finished

    def _must_wait(self, worker: CountedWorker) -> bool:
        return self._leader.must_wait(worker)

    def _examples(self, worker: CountedWorker) -> int:
        return worker.round_plan.examples_of_round(0) if self._is_paced else self._round_examples

    def _begin_training(self, worker: CountedWorker, ends_s: float) -> None:
        self._at(ends_s, self._finish_round, worker, worker.begun)

    def _abort_training(self, _worker: CountedWorker) -> None:
        """Do nothing: nothing is trained."""

    def _finish_round(self, worker: CountedWorker, number: int) -> None:
        if worker.trains(number):
            worker.is_training = False
            if self._is_paced:
                self._note_speed(worker, worker.round_plan)
            worker.send()
            self._at(self.seconds, self._arrive, worker)

    def _arrive(self, worker: CountedWorker) -> None:
        self._leader.take_in(worker, worker.sent, self.seconds)
        self._tick()
        if self._population.comes_twice(worker.index, worker.sent):
            self.duplicates += 1
            self._leader.take_in(worker, worker.sent, self.seconds)
            self._tick()
        self._go_on(worker)

    def _committed(self, at_s: float, _updates: Sequence[CountedUpdate]) -> None:
        self.committed_at.append(at_s)
        self._note_version(self._leader.version, self._leader.plan.max_staleness)
