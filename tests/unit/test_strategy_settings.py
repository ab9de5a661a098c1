"""Which strategy the settings make, what it asks of the workers, and what is refused."""

import pytest
from builders import a_strategy
from pydantic import ValidationError

from fluffle.errors import ConfigError
from fluffle_aggregator.strategies.registry import STRATEGIES, StrategySettings


@pytest.mark.parametrize(
    ("name", "sends", "one_update_per_version", "buffer_size"),
    [
        ("fedasync", "weights", False, 1),
        ("fedbuff", "delta", False, 3),
        ("fedavg", "delta", True, 3),
        ("fadas", "delta", False, 3),
    ],
)
def test_a_strategy_says_what_it_asks_of_the_workers(
    name: str, sends: str, one_update_per_version: bool, buffer_size: int
) -> None:
    strategy = a_strategy(name, buffer_size=3)

    assert (strategy.name, strategy.sends) == (name, sends)
    assert strategy.one_update_per_version == one_update_per_version
    assert strategy.buffer_size == buffer_size


def test_a_strategy_shows_its_parameters_in_few_characters() -> None:
    shown = [str(a_strategy(name, buffer_size=3, mixing=0.6)) for name in sorted(STRATEGIES)]

    assert shown == [
        "ace(buffer_size=3, discount=constant, weigh_by=none, cache=int8, forget_after=100, "
        "sgd(learning_rate=1))",
        "ca2fl(buffer_size=3, discount=constant, weigh_by=none, cache=int8, forget_after=100, "
        "calibration=1, sgd(learning_rate=1))",
        "fadas(buffer_size=3, discount=constant, weigh_by=none, rule=mean, amsgrad(learning_rate=1, "
        "beta1=0.9, beta2=0.99, epsilon=1e-08, delay_threshold=1))",
        "fedac(buffer_size=3, agreement, weigh_by=none, rule=mean, prospective(learning_rate=1, beta1=0.6, "
        "beta2=0.9, epsilon=1e-08))",
        "fedasync(buffer_size=1, mixing=0.6, discount=polynomial:0.5, weigh_by=none, rule=mean)",
        "fedavg(buffer_size=3, rule=mean, sgd(learning_rate=1))",
        "fedbuff(buffer_size=3, discount=polynomial:0.5, weigh_by=none, rule=mean, sgd(learning_rate=1))",
        "reuse(buffer_size=3, discount=constant, weigh_by=none, cache=int8, forget_after=100, "
        "calibration=0.5, reuse_limit=1, sgd(learning_rate=1))",
        "ringleader(buffer_size=1, discount=constant, weigh_by=none, cache=int8, forget_after=100, "
        "sgd(learning_rate=1))",
    ]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"strategy": "fedprox"},
            "must be one of fedbuff, fedavg, fadas, fedac, fedasync, reuse, ace, ca2fl, ringleader, "
            "not 'fedprox'",
        ),
        ({"buffer_size": 0}, "buffer_size"),
        ({"strategy": "fedasync", "mixing": 0.0}, "mixing"),
        ({"strategy": "fedasync", "mixing": 1.1}, "mixing"),
        ({"rule": "krum"}, r"must be one of mean, trimmed-mean\[:share\], median, not 'krum'"),
        ({"rule": "trimmed-mean:0.5"}, "a share above 0 and below 0.5 at each end, not 0.5"),
        # A setting that would have no effect is refused, with the strategies that read it.
        ({"mixing": 0.3}, "mixing is a setting of fedasync, not of reuse: leave it out"),
        (
            {"strategy": "fedasync", "buffer_size": 8},
            "buffer_size is a setting of fedbuff, fedavg, fadas, fedac, reuse, ace, ca2fl, not of fedasync",
        ),
        ({"strategy": "fedasync", "server_optimizer": "adam"}, "server_optimizer is a setting of fedbuff"),
        (
            {"strategy": "fedavg", "weigh_by": "sqrt"},
            "weigh_by is a setting of fedbuff, fadas, fedac, fedasync, reuse, ace, ca2fl, ringleader, "
            "not of fedavg",
        ),
        (
            {"strategy": "fadas", "server_optimizer": "adam"},
            "server_optimizer is a setting of fedbuff, fedavg, reuse, ace",
        ),
        (
            {"strategy": "fadas", "staleness": "constant"},
            "staleness is a setting of fedbuff, fedasync, not of fadas",
        ),
        ({"delay_threshold": 3}, "delay_threshold is a setting of fadas, not of reuse"),
        ({"strategy": "fadas", "delay_threshold": 0}, "delay_threshold"),
        ({"strategy": "ca2fl", "calibration": 0.0}, "calibration"),
        ({"strategy": "ca2fl", "calibration": 2.1}, "calibration"),
        (
            {"strategy": "ringleader", "server_momentum": 0.5},
            "server_momentum is a setting of fedbuff, fedavg, fadas, fedac, reuse, ace, ca2fl, "
            "not of ringleader",
        ),
        ({"strategy": "ace", "calibration": 0.5}, "calibration is a setting of reuse, ca2fl, not of ace"),
    ],
)
def test_a_wrong_setting_of_a_strategy_is_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        StrategySettings.model_validate(given)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"strategy": "fedbuff", "rule": "median", "buffer_size": 2},
            "rule median needs buffer_size 3 or more, not 2",
        ),
        (
            {"strategy": "fedbuff", "rule": "median", "weigh_by": "sqrt"},
            "weigh_by sqrt has no effect with rule median",
        ),
    ],
)
def test_settings_that_do_not_go_together_make_no_strategy(given: dict[str, object], said: str) -> None:
    settings = StrategySettings.model_validate(given)

    with pytest.raises(ConfigError, match=said):
        settings.make_strategy()


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_defaults_make_every_strategy(name: str) -> None:
    assert StrategySettings(strategy=name).make_strategy().name == name
