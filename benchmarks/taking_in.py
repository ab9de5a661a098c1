"""The aggregator's own way in, for benchmarks that play a federation in one process."""

from fluffle.broker import Delivery
from fluffle.topology import topology_of
from fluffle_aggregator.gates.limits import Limits, gates_of
from fluffle_aggregator.global_model import GlobalModel
from fluffle_aggregator.intake import TakenIn, take_in


class WayIn:
    """Takes updates into a model, each from its own worker, through gates without limits."""

    def __init__(self, model: GlobalModel) -> None:
        topology = topology_of(model.record.federation)
        self._model = model
        self._gates = gates_of(Limits(), model.strategy, topology)
        self._exchange = topology.updates_in.name

    def take_in(self, body: bytes, worker: str, *, now: float = 0.0) -> None:
        """Fold an update; TypeError when it is refused: then the benchmark is wrong."""
        delivery = Delivery(1, body, user=worker, exchange=self._exchange)
        taken = take_in(delivery, self._model, self._gates, now=now)
        if not isinstance(taken, TakenIn):
            raise TypeError(f"the update was not taken in: {taken}")

    def take_in_again(self, body: bytes, worker: str) -> None:
        """Fold an update, and forget that the model contains it."""
        before = self._model.applied
        self.take_in(body, worker)
        self._model.applied = before
        self._model.folded.clear()
