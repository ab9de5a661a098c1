"""The data of simulated devices: a ready task's data set is loaded once, however many sites share it."""

from dataclasses import replace

from fluffle.logs import get_logger
from fluffle.task import DATA_SETS, Site, Task
from fluffle_cli.simulate.settings import SimulateSettings
from fluffle_worker.keras_task import KerasTask
from fluffle_worker.splits import MIN_EXAMPLES, split_indices

log = get_logger(__name__)


class Sites:
    """The parts of a task's data, dealt out to the devices in turn.

    `task` is the given one. A ready task is replaced by one that cuts its data set out of memory, into the
    same parts as its workers would get. Where a ready task has too few examples for so many devices, several
    of them share a part.
    """

    def __init__(self, settings: SimulateSettings, task: Task) -> None:
        self._settings, self.count, self.task = settings, settings.clients, task
        if settings.task in DATA_SETS and isinstance(task, KerasTask):
            self.task = self._from_memory(task)

    def of(self, device: int) -> Site:
        """Return the part of a device."""
        return replace(self._settings.site(device % self.count), count=self.count)

    def _from_memory(self, task: KerasTask) -> KerasTask:
        whole = task.train_data(Site(split="iid"))
        if not isinstance(whole, tuple):
            return task
        examples, wanted = len(whole[1]), self._settings.clients
        self.count = min(wanted, max(1, examples // MIN_EXAMPLES))
        if self.count < wanted:
            log.warning(
                "the data set is too small for a part of its own for each client, so several share one",
                clients=wanted,
                examples=examples,
                parts=self.count,
            )
        site = self.of(0)
        parts = split_indices(whole[1], split=site.split, sites=site.count, seed=site.seed)
        return task.with_train_data(lambda at: tuple(each[parts[at.index]] for each in whole))
