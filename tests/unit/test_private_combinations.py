"""What goes together with differential privacy: each cell of the table in docs/privacy.md is tried."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from fluffle.errors import ConfigError
from fluffle.privacy.promise import Mechanism
from fluffle.settings import load_settings
from fluffle.topology import topology_of
from fluffle_aggregator.gates.limits import gates_of
from fluffle_aggregator.private.combinations import REFUSED, REFUSED_FOR
from fluffle_aggregator.settings import AggregatorSettings

PAGE = Path(__file__).parents[2] / "docs/privacy.md"
HEADING = "## What goes together with it"
PROMISED = {"dp_epsilon": 8, "dp_clip": 1, "dp_max_updates": 10}
GIVEN: Mapping[Mechanism, Mapping[str, object]] = {
    "central": {**PROMISED, "dp_secret": "noise.secret"},
    "distributed": {
        **PROMISED,
        "secure_aggregation": True,
        "secure_registry": "registry.json",
        "secure_operator": "operator.pub",
    },
    "local": PROMISED,
}
# What is given, by the words of the table. Where it matters, more settings make it one that is allowed.
ROWS: Mapping[str, Mapping[str, object]] = {
    "`--strategy fedbuff`": {"strategy": "fedbuff"},
    "`--strategy fedavg`": {"strategy": "fedavg", "buffer_size": 4},
    "`--strategy reuse`": {"strategy": "reuse"},
    "`--strategy ace`": {"strategy": "ace"},
    "`--strategy ca2fl`": {"strategy": "ca2fl"},
    "`--strategy fadas`": {"strategy": "fadas"},
    "`--strategy fedac`": {"strategy": "fedac"},
    "`--strategy ringleader`": {"strategy": "ringleader"},
    "`--strategy fedasync`": {"strategy": "fedasync"},
    "`--server-optimizer adam`": {"server_optimizer": "adam"},
    "`--average-versions`": {"average_versions": 0.9},
    "`--rule median`": {"rule": "median", "buffer_size": 4},
    "`--weigh-by`": {"weigh_by": "sqrt"},
    "`--throttle`": {"throttle": True},
    "`--normalize-steps`": {"normalize_steps": True},
    "`--round-seconds`": {"round_seconds": 2},
    "`--batch-size auto`": {"batch_size": "auto"},
    "`--limit-norm`": {"limit_norm": 2},
    "`--on-large-norm`": {"on_large_norm": "clip", "limit_norm": 2},
    "`--limit-share`": {"limit_share": 0.5},
    "`--min-examples`": {"min_examples": 2},
    "`--limit-examples`": {"limit_examples": 2},
    "`--commit-every`": {"commit_every": 2},
    "`--commit-after`": {"commit_after": 2},
    "`--evaluate-every`": {"evaluate_every": 2},
    "`--survey`": {"survey": 2},
    "`--survey-seconds`": {"survey_seconds": 2, "survey": 2},
    "`--target sites.…`, `--best worst.…`": {"target": "sites.accuracy>=0.9"},
    "`--codec int8`": {"codec": "int8"},
    "`--codec …+zstd`": {"codec": "int8+zstd"},
    "`--secure-aggregation`": {"secure_aggregation": True},
    "`--secure-clip`": {"secure_clip": "1"},
    "`--secure-bits`": {"secure_bits": 12},
    "`--dp-secret`": {"dp_secret": "noise.secret"},
    "`--dp-separation`": {"dp_separation": 3},
    "`--dp-noise plain`": {"dp_noise": "plain"},
    "`--dp-clip adaptive`": {"dp_clip": "adaptive", "dp_noise": "plain"},
    "`--sealed`": {"sealed": "sealed.public"},
}


def goes(mechanism: Mechanism, given: Mapping[str, object]) -> bool:
    """Tell whether an aggregator would start with these settings, as far as they say."""
    try:
        settings = load_settings(AggregatorSettings, {"dp": mechanism, **GIVEN[mechanism], **given})
        settings.privacy_target()
        strategy = settings.make_strategy()
        settings.make_plan(strategy, size=0)
        settings.make_commit_schedule(strategy)
        gates_of(settings, strategy, topology_of("digits"))
    except ConfigError:
        return False
    return True


def table() -> list[list[str]]:
    lines = PAGE.read_text().partition(HEADING)[2].partition("\n## ")[0].splitlines()
    rows = [line for line in lines if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in rows[2:]]


def test_the_table_in_the_documentation_says_what_is_allowed() -> None:
    found = [row[:4] for row in table()]

    expected = [
        [words, *("yes" if goes(mechanism, given) else "no" for mechanism in GIVEN)]
        for words, given in ROWS.items()
    ]
    assert found == expected


def test_each_setting_that_is_refused_stands_in_the_table() -> None:
    refused = {*REFUSED, *(name for names in REFUSED_FOR.values() for name in names)}

    assert {f"--{name.replace('_', '-')}" for name in refused} <= {
        word.strip("`") for words in ROWS for word in words.split()
    }


@pytest.mark.parametrize(
    ("mechanism", "name"),
    [(mechanism, name) for mechanism, own in REFUSED_FOR.items() for name in {**REFUSED, **own}],
)
def test_what_is_refused_is_refused_in_a_sentence_that_names_it(mechanism: Mechanism, name: str) -> None:
    values = {word: value for given in ROWS.values() for word, value in given.items()}
    given = {"dp": mechanism, **GIVEN[mechanism], name: values[name]}

    with pytest.raises(ConfigError, match=f"{name} does not go together with dp"):
        load_settings(AggregatorSettings, given).make_strategy()


@pytest.mark.parametrize("mechanism", GIVEN)
def test_each_mechanism_goes_by_itself(mechanism: Mechanism) -> None:
    assert goes(mechanism, {})
