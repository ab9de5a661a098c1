"""Sites that measure in different units are surveyed, and learn although nobody scaled a column for them."""

import numpy as np
from brokers import all_versions

from benchmarks.uneven_survey import SITES, Case, federate, parts_of
from fluffle.rabbit import RabbitBroker
from fluffle.topology import topology_of
from fluffle_cli.node import BrokerNode

LAYER = "survey_normalization/survey_"


def test_tumours_in_two_units_are_scaled_by_what_the_survey_of_all_sites_found(node: BrokerNode) -> None:
    case = Case("tumours", "survey", 3)

    led, evaluated = federate(case, node.amqp_url)

    assert evaluated.newest is not None
    assert evaluated.newest.metrics["accuracy"] > 0.85
    assert led.version is not None
    assert led.version.survey is not None
    assert led.version.survey.result is not None
    assert led.version.survey.result.sites == SITES
    rows = np.concatenate([x for x, _ in parts_of(case)[1]])
    found = led.version.weights
    # The layer's statistics are those of all rows, and no round has changed a bit of them.
    for name, wanted in {"mean": rows.mean(axis=0), "deviation": rows.std(axis=0)}.items():
        np.testing.assert_allclose(found[f"{LAYER}{name}"].astype(float), wanted, rtol=1e-6)
    topology = topology_of("tumours-survey-3")
    with RabbitBroker(node.amqp_url, name="test", heartbeat_s=20) as broker:
        history = list(all_versions(broker, topology))
    published = [each for each in history if each.survey and each.survey.result]
    assert len({each.weights[f"{LAYER}mean"].tobytes() for each in published}) == 1
    assert len(published) > 10
