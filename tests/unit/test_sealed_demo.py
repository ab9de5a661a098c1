"""A sealed demo: who gets which file of the key, and what does not go together with it."""

from pathlib import Path

import pytest

from fluffle.errors import ConfigError
from fluffle_cli.demo import parts
from fluffle_cli.demo.sealed import DemoKey
from fluffle_cli.demo.settings import DemoSettings

URL = "amqp://fluffle:secret@127.0.0.1:1"


def test_in_a_sealed_demo_workers_and_evaluator_get_the_secret_file_and_aggregators_the_public_one() -> None:
    settings = DemoSettings(workers=2, sealed=True).checked()
    where, [setup] = {"federation": "digits", "broker_url": URL}, settings.setups
    key = DemoKey(Path("sealed"))

    sites = [
        *parts.workers(settings, setup, **where, folder=Path("runs"), table=None, keys=None, sealed=key),
        parts.evaluator(settings, **where, curves=Path("curves"), table=None, sealed=key),
    ]
    aggregators = parts.aggregators(
        settings, setup, **where, initial_model=Path("v0"), keys=None, secret=None, sealed=key
    )

    assert {each.environment["FLUFFLE_SEALED_SECRET"] for each in sites} == {"sealed/sealed.secret"}
    assert {each.environment["FLUFFLE_SEALED"] for each in aggregators} == {"sealed/sealed.public"}
    assert not [each for each in aggregators if "sealed.secret" in str(each.environment)]
    assert (setup.strategy, settings.buffer_size) == ("fedbuff", 1)
    assert not [each for each in aggregators if "FLUFFLE_STALENESS" in each.environment]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"sites": "uneven"}, "leave out --sites uneven"),
        ({"secure_aggregation": True}, "and --secure-aggregation"),
        ({"strategy": "fedasync"}, "sealed has no strategy fedasync"),
        ({"server_optimizer": "adam"}, "sealed has no server_optimizer adam"),
        ({"strategy": "fedbuff", "staleness": "hinge"}, "staleness does not go together with sealed"),
    ],
    ids=str,
)
def test_a_demo_cannot_be_sealed_together_with_what_needs_values(given: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        DemoSettings(sealed=True, **given).checked()
