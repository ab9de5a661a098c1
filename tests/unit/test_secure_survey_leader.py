"""The leader and a survey under secure aggregation: it learns of the data of all sites together alone."""

from dataclasses import replace

import numpy as np
import pytest
from builders import FEDERATION, a_vector, a_version
from fake_broker import FakeBroker
from leading import Clock, a_server, newest, rejected, send, take_the_lead, unacked, versions
from secure_surveys import SITES, a_survey, an_answer, statistics
from securing import (
    NAMES,
    Helper,
    a_masked,
    a_secure_config,
    go_on,
    helpers,
)

from fluffle.model import Layout, TensorSpec
from fluffle.secure.closing import CloseRecord, Opening, encode_not_opened
from fluffle.secure.helping import Ledger, Refused, not_opened
from fluffle.survey import DataStatistics
from fluffle.survey.messages import SiteStatistics
from fluffle.survey.result import result_of
from fluffle.update import WeightUpdate


def in_the_clear(*workers: str) -> DataStatistics:
    first, *others = map(statistics, workers)
    for each in others:
        first = first.merged(each)
    return first


def test_the_result_is_that_of_the_survey_in_the_clear_and_training_follows() -> None:
    layout = Layout(
        (TensorSpec("kernel", (4,), "float32"), TensorSpec("survey_mean", (2,), "float32", "statistic"))
    )
    first = replace(a_version(layout=layout), statistics=a_vector(0.0, 0.0))
    config = a_survey(first=first)
    server = a_server(config, *(an_answer(name, layout=layout) for name in SITES))
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, Clock())
        answering = helpers(server, config)
        go_on(leader, broker, answering)

        surveyed = newest(server, config)
        assert surveyed.survey is not None
        assert surveyed.survey.answered == SITES
        found, expected = surveyed.survey.result, result_of(in_the_clear(*SITES), sites=3, min_count=5)
        assert found is not None
        assert (found.rows, found.names, found.class_counts) == (120, ("age", "pulse"), expected.class_counts)
        np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-12)
        np.testing.assert_allclose(found.deviation, expected.deviation, rtol=1e-9)
        np.testing.assert_allclose(surveyed.statistics, expected.mean, rtol=1e-6)
        assert surveyed.folded == ()

        for name in SITES:
            update = a_masked(name, 2, base_version=1, layout=layout, statistics=(1.0, 2.0))
            send(server, config, update)
        go_on(leader, broker, answering)

    assert [len(each.folded) for each in versions(server, config)] == [0, 0, 3]
    assert rejected(server, config) == []
    assert unacked(server, config) == []


def test_the_next_leader_opens_the_survey_that_was_closed() -> None:
    config = a_survey()
    server = a_server(config, *map(an_answer, SITES))
    with FakeBroker(server) as broker:
        go_on(take_the_lead(broker, config, Clock()), broker)
    assert newest(server, config).version == 0

    with FakeBroker(server) as broker:
        go_on(take_the_lead(broker, config, Clock()), broker, helpers(server, config))

    found = newest(server, config).survey
    assert found is not None
    assert found.result is not None
    assert found.result.rows == 120
    assert rejected(server, config) == []
    assert unacked(server, config) == []


def test_after_its_time_a_survey_ends_with_those_that_have_answered_if_they_are_enough() -> None:
    config, clock = a_survey(5, seconds=30.0), Clock()
    server = a_server(config, *map(an_answer, ("w1", "w2")))
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, clock)
        clock.seconds += 60
        go_on(leader, broker, helpers(server, config))
        assert newest(server, config).version == 0
        send(server, config, an_answer("w3"))
        go_on(leader, broker, helpers(server, config))

    found = newest(server, config).survey
    assert found is not None
    assert found.answered == SITES


@pytest.mark.parametrize(
    ("sent", "reason", "says"),
    [
        (an_answer("w1", 2), "duplicate", "w1 has answered this survey already"),
        (an_answer("w2", found=statistics("w2", "age", "weight")), "other-data", "its column 1 is 'weight'"),
        (an_answer("w2", found=statistics("w2", classes=3)), "other-data", "it has 3 classes"),
        (a_masked("w2"), "survey-open", "workers train when it has ended"),
        (SiteStatistics(FEDERATION, "w2", statistics("w2")), "wrong-content", "the answer is not masked"),
        (
            replace(an_answer("w2"), revision=7),
            "wrong-content",
            "masked by revision 7 of the plan",
        ),
    ],
)
def test_an_answer_that_does_not_fit_is_refused(
    sent: WeightUpdate | SiteStatistics, reason: str, says: str
) -> None:
    config = a_survey()
    server = a_server(config, an_answer("w1"), sent)
    with FakeBroker(server) as broker:
        go_on(take_the_lead(broker, config, Clock()), broker)

    [found] = rejected(server, config)
    assert found["reason"] == reason
    assert says in str(found["detail"])


def test_an_answer_without_a_survey_is_refused() -> None:
    config = a_secure_config()
    server = a_server(config, an_answer("w1"))
    with FakeBroker(server) as broker:
        go_on(take_the_lead(broker, config, Clock()), broker)

    assert [each["reason"] for each in rejected(server, config)] == ["no-survey"]


def refusing(close: CloseRecord, opening: Opening) -> bytes:
    said = Refused("opened-before", "for this test")
    ledger = Ledger(1, close.number, opening.digest)
    return encode_not_opened(not_opened(close, opening.helper, said, ledger))


def test_a_survey_whose_sum_is_given_up_is_asked_again() -> None:
    config = a_survey()
    server = a_server(config, *map(an_answer, SITES))
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, Clock())
        go_on(leader, broker, [Helper(name, server, config, changed=refusing) for name in NAMES])
        again = newest(server, config)
        assert again.survey is not None
        assert (again.survey.attempt, again.survey.is_open) == (2, True)
        assert [each["reason"] for each in rejected(server, config)] == ["not-opened"] * 3


def test_without_the_survey_at_a_restart_the_answers_go_back_and_training_begins() -> None:
    config = a_survey()
    server = a_server(config, *map(an_answer, ("w1", "w2")))
    with FakeBroker(server) as broker:
        go_on(take_the_lead(broker, config, Clock()), broker)
    without = a_secure_config()

    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, without, Clock())
        go_on(leader, broker)
        assert newest(server, without).survey is None
        base = newest(server, without).version
        send(server, without, *(a_masked(name, 2, base_version=base) for name in SITES))
        go_on(leader, broker, helpers(server, without))

    assert len(newest(server, without).folded) == 3
    assert {each["reason"] for each in rejected(server, without)} == {"no-survey"}
    assert unacked(server, without) == []


def test_what_a_survey_waits_for_is_said_in_words_of_a_survey(caplog: pytest.LogCaptureFixture) -> None:
    config, clock = a_survey(4), Clock()
    server = a_server(config, *map(an_answer, SITES))
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, clock)
        go_on(leader, broker)
        clock.seconds += 100
        go_on(leader, broker)

    [said] = [each for each in caplog.messages if "waits" in each]
    assert "the survey waits" in said
    assert "more answers" in said
