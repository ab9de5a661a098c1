"""What happens in many steps, and of which the log tells a few times. Pure."""

from fluffle_aggregator.accumulators import Stack
from fluffle_aggregator.contributors import Contributors
from fluffle_aggregator.update_cache import UpdateCache


class LeftOut:
    """How many elements a robust rule does not move, since too few updates have them."""

    def __init__(self) -> None:
        self._steps, self._untold = 0, 0

    def note(self, accumulator: object) -> None:
        """Note what a step is about to be made of."""
        if isinstance(accumulator, Stack) and accumulator.left_out:
            self._steps += 1
            self._untold = accumulator.left_out

    def take(self) -> int:
        """Return how many elements the last step has not moved; mostly 0.

        Each step's are returned once, and only after 1, 2, 4, 8 such steps and so on.
        """
        found, self._untold = self._untold, 0
        return found if self._steps.bit_count() == 1 else 0


class Forgotten:
    """Which workers a cache has forgotten, and why; each pair is told once.

    Where one message holds fewer updates than there are workers, each update makes it forget another one.
    """

    def __init__(self) -> None:
        self._told: set[tuple[str, str]] = set()

    def take(self, cache: UpdateCache | None, contributors: Contributors) -> list[tuple[str, str]]:
        """Return those that were forgotten since the last call, and let them weigh nothing any more."""
        if cache is None:
            return []
        found, cache.forgotten = cache.forgotten, []
        for worker, _ in found:
            contributors.forget_weight(worker)
        untold = [each for each in dict.fromkeys(found) if each not in self._told]
        self._told.update(untold)
        return untold
