"""A suspicious message is tried in a process of its own, beside the record that the leader would publish."""

from dataclasses import replace

import numpy as np
import pytest
from builders import SIZE, a_model, a_strategy, a_version, an_update

from fluffle.broker import Delivery
from fluffle.survey import statistics_of
from fluffle.survey.messages import SiteStatistics, Survey
from fluffle.topology import topology_of
from fluffle.wire import encode_statistics, encode_update
from fluffle_aggregator import trial
from fluffle_aggregator.settings import AggregatorSettings
from fluffle_aggregator.trial import try_out

UPDATES_IN = topology_of("digits").updates_in.name


def a_delivery(body: bytes) -> Delivery:
    return Delivery(1, body, redeliveries=2, user="w1", exchange=UPDATES_IN)


@pytest.mark.parametrize("rule", ["mean", "median"])
def test_a_process_that_takes_in_an_update_lives(rule: str) -> None:
    settings = AggregatorSettings(
        federation="digits", strategy="fedbuff", buffer_size=3, rule=rule, limit_norm=10
    )
    model = a_model(a_strategy(buffer_size=3, rule=rule), record=a_version(3, values=[1.0] * SIZE))

    assert try_out(settings, model, a_delivery(encode_update(an_update(base_version=3, base_term=1)))) == ""


def test_a_process_that_merges_the_answer_to_a_survey_lives() -> None:
    settings = AggregatorSettings(federation="digits", survey=3)
    record = replace(a_version(), survey=Survey(3, ("w2",)))
    answer = SiteStatistics("digits", "w1", statistics_of(np.ones((4, 2))))

    assert try_out(settings, a_model(record=record), a_delivery(encode_statistics(answer))) == ""


def test_a_process_that_refuses_a_message_lives() -> None:
    settings = AggregatorSettings(federation="digits")

    assert try_out(settings, a_model(), a_delivery(b"no message")) == ""


def test_how_a_process_ended_is_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    settings, delivery = AggregatorSettings(federation="digits"), a_delivery(encode_update(an_update()))
    # What the child is given as its record is none.
    monkeypatch.setattr(trial, "without_weights", lambda _: b"")

    assert try_out(settings, a_model(), delivery).startswith("ended with fluffle.errors.WireError: ")
