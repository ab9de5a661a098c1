"""Which strategy the settings make, what it asks of the workers, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from fluffle.errors import ConfigError
from fluffle_aggregator.server_optimizers import make_server_optimizer
from fluffle_aggregator.staleness import parse_discount
from fluffle_aggregator.strategies import STRATEGIES, Buffer, Strategy, make_strategy


def a_strategy(
    name: str,
    *,
    buffer_size: int = 1,
    mixing: float = 0.6,
    optimizer: str = "sgd",
    learning_rate: float = 1.0,
) -> Strategy:
    return make_strategy(
        name,
        buffer_size=buffer_size,
        mixing=mixing,
        discount=parse_discount("polynomial"),
        optimizer=make_server_optimizer(optimizer, learning_rate=learning_rate),
    )


@pytest.mark.parametrize(
    ("name", "sends", "one_update_per_version", "buffer_size"),
    [("fedasync", "weights", False, 1), ("fedbuff", "delta", False, 3), ("fedavg", "delta", True, 3)],
)
def test_a_strategy_says_what_it_asks_of_the_workers(
    name: str, sends: str, one_update_per_version: bool, buffer_size: int
) -> None:
    strategy = a_strategy(name, buffer_size=3)

    counts = [n for n in range(5) if strategy.is_full(Buffer(np.zeros(1, np.float32), count=n))]

    assert (strategy.name, strategy.sends) == (name, sends)
    assert strategy.one_update_per_version == one_update_per_version
    assert strategy.buffer_size == buffer_size == counts[0]


def test_a_strategy_shows_its_parameters_in_few_characters() -> None:
    shown = [str(a_strategy(name, buffer_size=3)) for name in STRATEGIES]

    assert shown == [
        "fedasync(mixing=0.6, discount=polynomial:0.5, weigh_by=none)",
        "fedbuff(buffer_size=3, discount=polynomial:0.5, optimizer=sgd(learning_rate=1), weigh_by=none)",
        "fedavg(buffer_size=3, optimizer=sgd(learning_rate=1))",
    ]


def test_an_unknown_strategy_is_refused_with_the_list_of_the_known_ones() -> None:
    known = "fedasync, fedbuff, fedavg"

    with pytest.raises(ConfigError, match=f"FLUFFLE_STRATEGY must be one of {known}, not 'fedprox'"):
        a_strategy("fedprox")


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_buffer_of_no_update_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="FLUFFLE_BUFFER_SIZE must be at least 1, not 0"):
        a_strategy(name, buffer_size=0)


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("mixing", [0.0, -0.1, 1.1, float("nan")])
def test_a_mixing_weight_outside_0_to_1_is_refused(name: str, mixing: float) -> None:
    with pytest.raises(ConfigError, match=f"FLUFFLE_MIXING must be more than 0 and at most 1, not {mixing}"):
        a_strategy(name, mixing=mixing)


@pytest.mark.parametrize(("optimizer", "learning_rate"), [("sgd", 0.5), ("momentum", 1.0), ("adam", 1.0)])
def test_fedasync_takes_no_server_optimizer(optimizer: str, learning_rate: float) -> None:
    with pytest.raises(ConfigError, match=rf"must be sgd .* with fedasync, not {optimizer}\("):
        a_strategy("fedasync", optimizer=optimizer, learning_rate=learning_rate)
