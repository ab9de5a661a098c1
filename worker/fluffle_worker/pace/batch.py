"""How large a worker's minibatches are, by what was measured, and the learning rate that suits it. Pure."""

from dataclasses import dataclass, replace

from fluffle.plan import Plan

# Twice as many examples in a minibatch must train so many times as many in a second.
GROWTH = 1.1
# So many rounds of one size are compared by their fastest.
ROUNDS_PER_SIZE = 2
# The learning rate grows at most so many times from one round to the next.
WARM_UP = 1.5


@dataclass(frozen=True, slots=True)
class Memory:
    """The bytes that a process has taken at most so far, and those that it may take; None is unknown."""

    most: int | None = None
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class BatchSize:
    """The search for the best size, from `first` on; each round gives the next state of it.

    `size` is that of the next round. `rate_scale` is what the plan's learning rate is multiplied by in it.
    `examples_per_s` is what the size before gave, 0 for the first, and `fastest` what this one has given in
    `rounds` rounds. `most` is what a process had taken with the size before. Once `is_settled`, the size
    stays, unless a round runs out of memory.
    """

    first: int
    size: int
    is_settled: bool = False
    rate_scale: float = 1.0
    examples_per_s: float = 0.0
    fastest: float = 0.0
    rounds: int = 0
    most: int | None = None
    why: str = ""

    def after(self, step_s: float | None, bound: int, memory: Memory) -> "BatchSize":
        """Return the state after a round of this size whose minibatches took so many seconds each.

        `bound` is the largest size. None, NaN and whatever else is no duration is no measurement.
        """
        if self.is_settled or step_s is None or not 0 < step_s < float("inf"):
            return self
        fastest, rounds = max(self.fastest, self.size / step_s), self.rounds + 1
        measured = replace(self, fastest=fastest, rounds=rounds)
        if rounds < ROUNDS_PER_SIZE:
            return measured
        if fastest < GROWTH * self.examples_per_s:
            return replace(
                self,
                size=self.size // 2,
                is_settled=True,
                why=f"minibatches of {self.size} trained {_rate(fastest)} examples in a second, and those of "
                f"half the size {_rate(self.examples_per_s)}",
            )
        if 2 * self.size > bound:
            return replace(
                measured, is_settled=True, why=f"{bound} is the most, by max_batch_size or the site's rows"
            )
        if memory.most is not None and memory.limit is not None:
            # What this size took more than the one before, the next one takes twice.
            before = memory.most if self.most is None else self.most
            needed = memory.most + 2 * (memory.most - before)
            if needed >= memory.limit:
                return replace(
                    measured,
                    is_settled=True,
                    why=f"twice as many examples would need some {needed >> 20} MiB of memory, and "
                    f"{memory.limit >> 20} may be taken",
                )
        return BatchSize(
            self.first, 2 * self.size, rate_scale=self.rate_scale, examples_per_s=fastest, most=memory.most
        )

    def out_of_memory(self) -> "BatchSize | None":
        """Return the state after a round that ran out of memory: half the size; None where it is 1."""
        if self.size == 1:
            return None
        return replace(
            self, size=self.size // 2, is_settled=True, why=f"minibatches of {self.size} ran out of memory"
        )

    def next_rate_scale(self, power: float) -> "BatchSize":
        """Return the state with the scale of the next round's learning rate: (size / first) ** power.

        It grows step by step, since a high rate harms most at first; and falls at once.

        Source: power 1, and the warm-up: Goyal et al., "Accurate, Large Minibatch SGD" (2017, arXiv
        1706.02677). Power 1/2 for Adam and the like: Malladi, Lyu, Panigrahi and Arora, "On the SDEs and
        Scaling Rules for Adaptive Gradient Algorithms" (2022, arXiv 2205.10287).
        """
        wanted = (self.size / self.first) ** power
        return replace(self, rate_scale=min(wanted, max(1.0, self.rate_scale) * WARM_UP))


def _rate(examples_per_s: float) -> str:
    return f"{examples_per_s:,.0f}" if examples_per_s >= 100 else f"{examples_per_s:.3g}"


def with_batch_size(plan: Plan, batch: BatchSize) -> Plan:
    """Return the plan of a round with this size of minibatches, and the learning rate that suits it."""
    rate_scale = plan.learning_rate_scale * batch.rate_scale
    return replace(plan, batch_size=batch.size, learning_rate_scale=rate_scale)
