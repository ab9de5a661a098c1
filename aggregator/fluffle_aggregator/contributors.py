"""What each worker has sent so far, and what is summed up over all workers. Pure."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from fluffle.fields import is_name
from fluffle.record import MAX_REFUSAL_LENGTH, Contributor, Folded
from fluffle.update import MAX_RUNS, WeightUpdate
from fluffle_aggregator.local_steps import UsualSteps


class Contributors(Mapping[str, Contributor]):
    """The workers by their name.

    With `keeps_last` a worker's weight is that of its last update alone. With `tells_each` a worker is told
    of each refusal, since it sends nothing before it knows what became of its last update. `most_examples`
    are the most that any worker's last update came from. `untold_refusals` are the workers whose refusals the
    next record tells of, though nothing else may be new in it.
    """

    def __init__(
        self, known: Mapping[str, Contributor], *, keeps_last: bool, tells_each: bool = False
    ) -> None:
        """Go on from what a record knows."""
        self._known = dict(known)
        self._keeps_last, self._tells_each = keeps_last, tells_each
        self._examples_sum = sum(one.examples for one in known.values())
        self._contributing = sum(1 for one in known.values() if one.updates)
        self.most_examples = self._count_most_examples()
        self.usual_steps = UsualSteps(one.local_work for one in known.values())
        self.untold_refusals: set[str] = set()

    def __getitem__(self, worker: str) -> Contributor:
        return self._known[worker]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)

    @property
    def mean_examples(self) -> float:
        """The mean over the workers' last updates, 0 without any."""
        return self._examples_sum / max(1, self._contributing)

    def count_with(self, worker: str) -> int:
        """Return how many workers have an update in the model, with one of this worker."""
        known = self._known.get(worker)
        return self._contributing + (known is None or not known.updates)

    def note_update(self, update: WeightUpdate, folded: Folded) -> None:
        """Count an update that is folded."""
        before = self._known.get(update.id.worker, Contributor())
        self._known[update.id.worker] = Contributor(
            before.updates + 1,
            update.examples,
            before.staleness_sum + folded.staleness,
            folded.weight + (0.0 if self._keeps_last else before.weight_sum),
            before.rejected,
            folded.received_at,
            folded.loss,
            before.refusal,
            update.local_work,
            folded.share,
            before.suspected,
        )
        self.usual_steps.replace(before.local_work, update.local_work)
        self._examples_sum += update.examples - before.examples
        self._contributing += not before.updates
        if update.examples >= self.most_examples:
            self.most_examples = update.examples
        elif before.examples == self.most_examples:
            self.most_examples = self._count_most_examples()

    def note_refusal(self, worker: str | None, why: str) -> None:
        """Count a refused message for its sender, if RabbitMQ has verified who that is.

        A RabbitMQ user whose name no worker may have is not counted. At its first refusal, and then at powers
        of two, a worker is to be told.
        """
        if worker is None or not is_name(worker):
            return
        if worker not in self._known and len(self._known) >= MAX_RUNS:
            return
        before = self._known.get(worker, Contributor())
        rejected = before.rejected + 1
        self._known[worker] = replace(before, rejected=rejected, refusal=why[:MAX_REFUSAL_LENGTH])
        if rejected.bit_count() == 1 or self._tells_each:
            self.untold_refusals.add(worker)

    def note_suspected(self, workers: Iterable[str]) -> None:
        """Count an unsound sum for each of its workers: one of them, at least, is not honest."""
        for worker in workers:
            before = self._known.get(worker, Contributor())
            self._known[worker] = replace(before, suspected=before.suspected + 1)

    def forget_weight(self, worker: str) -> None:
        """Note that a worker's last update no longer counts."""
        self._known[worker] = replace(self._known[worker], weight_sum=0.0)

    def _count_most_examples(self) -> int:
        return max((one.examples for one in self._known.values()), default=0)
