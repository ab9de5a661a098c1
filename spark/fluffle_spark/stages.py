"""What Spark does with the tasks of the sites, and an end to those that keep the slots of new ones.

When the rows of a lost executor are nowhere else, Spark starts every site again, also those that are still at
work. Their new tasks wait for them, and a lost site waits too where no slot is left for it. Then the old
tasks are killed: their workers publish what they have finished, and the new ones go on.
"""

from typing import TYPE_CHECKING

from pyspark import SparkContext

from fluffle.logs import get_logger

if TYPE_CHECKING:
    from py4j.java_gateway import JavaObject

log = get_logger(__name__)

MOST_TASKS = 10_000


class Stages:
    """The stages of the jobs with a tag that run now."""

    def __init__(self, sc: SparkContext, tag: str) -> None:
        self._context, self._tag = sc._jsc.sc(), tag
        self._waited_before = False

    def tasks(self) -> tuple[int, int]:
        """Return how many tasks run, and how many wait for a slot."""
        newest = [self._context.statusStore().lastStageAttempt(stage) for stage in self._last_ones()]
        at_work = sum(stage.numActiveTasks() for stage in newest)
        left = sum(stage.numTasks() - stage.numCompleteTasks() for stage in newest)
        return at_work, max(0, left - at_work)

    def end_superseded(self) -> None:
        """Kill old tasks where new ones have waited for a slot since the last call."""
        for stage in self._last_ones():
            newest = self._context.statusStore().lastStageAttempt(stage)
            done = newest.numActiveTasks() + newest.numCompleteTasks()
            if newest.attemptId() == 0 or done >= newest.numTasks():
                continue
            if not self._waited_before:
                self._waited_before = True
                return
            for attempt in range(newest.attemptId()):
                self._kill_running(stage, attempt)
        self._waited_before = False

    def _last_ones(self) -> list[int]:
        """Return the last stage of each job that runs."""
        tracker = self._context.statusTracker()
        infos = [tracker.getJobInfo(job) for job in tracker.getJobIdsForTag(self._tag)]
        stages = [list(info.get().stageIds()) for info in infos if info.isDefined()]
        return [max(each) for each in stages if each]

    def _kill_running(self, stage: int, attempt: int) -> None:
        tasks: JavaObject = self._context.statusStore().taskList(stage, attempt, MOST_TASKS)
        for at in range(tasks.length()):
            task = tasks.apply(at)
            if task.status() == "RUNNING":
                log.warning(
                    "Spark started this site again: its first task gives its slot up", task=task.taskId()
                )
                self._context.killTaskAttempt(task.taskId(), False, "Spark has started this site again")
