"""What an aggregator makes of its settings."""

from __future__ import annotations

import pytest

from fluffle.errors import ConfigError
from fluffle_aggregator.__main__ import charge_of
from fluffle_aggregator.settings import AggregatorSettings


def settings(**given: object) -> AggregatorSettings:
    return AggregatorSettings.model_validate({"name": "a1", **given})


@pytest.mark.parametrize(
    ("given", "held"),
    [
        ({"strategy": "fedasync", "commit_every": 5}, 5),
        ({"strategy": "fedbuff", "buffer_size": 4, "commit_every": 3}, 12),
        ({"strategy": "fedavg", "buffer_size": 8}, 8),
    ],
)
def test_the_prefetch_has_room_for_a_whole_commit_an_evaluation_and_one_more(
    given: dict[str, object], held: int
) -> None:
    assert charge_of(settings(**given)).prefetch == held + 2


def test_rounds_that_workers_wait_for_are_published_one_by_one() -> None:
    with pytest.raises(ConfigError, match="FLUFFLE_COMMIT_EVERY must be 1 with fedavg, not 2"):
        charge_of(settings(strategy="fedavg", commit_every=2))

    charge_of(settings(strategy="fedavg"))
