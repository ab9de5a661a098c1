"""What each worker has given to a federation, as the page, `fluffle status` and the report show it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fluffle.record import Contributor


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerFacts:
    """One worker's part in the newest version.

    `weight_share` is its part of the weight that all applied updates were given, and `example_share` its part
    of the examples of all workers that have given an update; both are from 0 to 1. `loss` is the training
    loss of its last update, None where it reports none. A worker whose messages were all refused has no
    updates, and `refusal` says why the last one was refused.
    """

    updates: int
    examples: int
    mean_staleness: float
    weight_share: float
    example_share: float = 0.0
    rejected: int = 0
    refusal: str = ""
    loss: float | None = None
    seconds_since_update: float | None = None

    @property
    def is_only_refused(self) -> bool:
        """Whether it has sent something, and all of it was refused."""
        return not self.updates and self.rejected > 0

    @property
    def times_its_share(self) -> float:
        """How many times as much weight it has as its examples would give it; 0 when nobody can tell."""
        return self.weight_share / self.example_share if self.example_share else 0.0


def facts_of(contributors: Mapping[str, Contributor], *, now: float) -> dict[str, WorkerFacts]:
    """Return the facts of all workers, by name; `now` is Unix time in seconds."""
    given = contributors.values()
    weight = sum(each.weight_sum for each in given)
    examples = sum(each.examples for each in given if each.updates)
    return {
        name: WorkerFacts(
            updates=each.updates,
            examples=each.examples,
            mean_staleness=each.mean_staleness,
            weight_share=each.weight_sum / weight if weight else 0.0,
            example_share=each.examples / examples if each.updates and examples else 0.0,
            rejected=each.rejected,
            refusal=each.refusal,
            loss=each.loss,
            # Two machines' clocks need not agree.
            seconds_since_update=max(0.0, now - each.last_update_at) if each.updates else None,
        )
        for name, each in sorted(contributors.items())
    }
