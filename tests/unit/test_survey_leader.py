"""The leader and a survey: each answer counts once whoever dies, and one that does not fit stops nobody."""

import itertools
import struct
import threading
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import pytest
from builders import FEDERATION, a_config, a_strategy, a_version, an_update
from fake_broker import FakeBroker, FakeServer
from hypothesis import given
from hypothesis import strategies as st
from leading import (
    Clock,
    UntilQuiet,
    a_server,
    newest,
    rejected,
    take_the_lead,
    unacked,
    versions,
    work_off,
)
from leading import send as send_others
from messages import with_payload

from fluffle.broker import Broker
from fluffle.errors import ConnectionLost
from fluffle.model import Layout
from fluffle.pieces import Body
from fluffle.record import ModelVersion
from fluffle.record_wire import decode_record
from fluffle.survey import statistics_of
from fluffle.survey.messages import SiteStatistics, Survey
from fluffle.wire import encode_statistics
from fluffle_aggregator import surveying
from fluffle_aggregator.config import AggregatorConfig
from fluffle_aggregator.leading import Leading
from fluffle_aggregator.rules import parse_rule
from fluffle_aggregator.sections import Weight
from fluffle_aggregator.service import serve
from fluffle_aggregator.statistics import StatisticsBuffer
from fluffle_aggregator.survey import SurveyAim

WORKERS = ("a", "b", "c")
NAMES = ("age", "pulse")


def an_answer(
    worker: str, *, names: tuple[str, ...] = NAMES, rows: int = 40, of_size: float = 1.0
) -> SiteStatistics:
    place = WORKERS.index(worker)
    # Each has a scale of its own.
    x = np.random.default_rng(place).normal(10.0**place, 3.0, (rows, 2)) * [of_size, 1.0]
    labels = np.full(rows, place % 2)
    found = statistics_of(x[:, : len(names)], labels, names=names, classes=2)
    return SiteStatistics(FEDERATION, worker, found)


def a_survey_of(
    *workers: str, aim: SurveyAim | None = None, first: ModelVersion | None = None
) -> AggregatorConfig:
    aim = aim or SurveyAim(wanted=len(workers), min_count=5)
    opened = replace(first or a_version(), survey=Survey(aim.wanted))
    return a_config(a_strategy("fedasync"), first=opened, survey_aim=aim)


def send(server: FakeServer, config: AggregatorConfig, *answers: SiteStatistics, user: str = "") -> None:
    for answer in answers:
        with FakeBroker(server, user=user or answer.worker) as broker:
            broker.publish(config.topology.updates_in.name, "", encode_statistics(answer), {})


class Mortal(UntilQuiet):
    """A connection that is lost at one of its publishes or acks, before or after the broker heard of it."""

    def __init__(self, server: FakeServer, stop: threading.Event, *, dies_at: int, heard: bool) -> None:
        super().__init__(server, stop)
        self._calls = itertools.count()
        self._dies_at, self._heard = dies_at, heard
        self.died = False

    def publish(self, exchange: str, routing_key: str, body: Body, headers: Mapping[str, str]) -> None:
        """See Broker."""
        is_last = next(self._calls) == self._dies_at
        if self._heard or not is_last:
            super().publish(exchange, routing_key, body, headers)
        self._die(is_last)

    def ack(self, tags: Iterable[int]) -> None:
        """See Broker."""
        is_last = next(self._calls) == self._dies_at
        if self._heard or not is_last:
            super().ack(tags)
        self._die(is_last)

    def _die(self, is_last: bool) -> None:
        if is_last:
            self.died = True
            self.close()
            raise ConnectionLost("it died here")


def survey(config: AggregatorConfig, *, dies_at: int, heard: bool) -> tuple[FakeServer, bool]:
    """Let an aggregator take in all answers and one twice, die at one of its calls, and another one go on."""
    server, stop = a_server(config), threading.Event()
    send(server, config, *map(an_answer, WORKERS[:2]), an_answer(WORKERS[0]), an_answer(WORKERS[2]))
    mortal = Mortal(server, stop, dies_at=dies_at, heard=heard)
    lives: list[Broker] = [mortal, UntilQuiet(server, stop)]
    serve(config, lambda: lives.pop(0), stop)
    return server, mortal.died


@pytest.mark.parametrize("heard", [False, True], ids=["before the broker heard", "after the broker heard"])
@pytest.mark.parametrize("committed_after_s", [0.0, 10.0], ids=["each in a version", "all in one version"])
def test_wherever_an_aggregator_dies_the_survey_has_the_same_bits_and_each_worker_once(
    committed_after_s: float, heard: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surveying, "COMMITTED_AFTER_S", committed_after_s)
    config = a_survey_of(*WORKERS)
    undisturbed, _ = survey(config, dies_at=1000, heard=heard)
    expected = newest(undisturbed, config)
    assert expected.survey is not None
    assert expected.survey.result is not None
    assert expected.survey.result.rows == 120
    # Where each answer is in a version of its own, the second one of a worker may be refused before or after.
    assert [each["reason"] for each in rejected(undisturbed, config)] == ["duplicate"]

    for dies_at in itertools.count():
        server, died = survey(config, dies_at=dies_at, heard=heard)
        found = newest(server, config)
        assert found.survey == expected.survey
        assert found.vector.tobytes() == expected.vector.tobytes()
        assert unacked(server, config) == []
        assert len(rejected(server, config)) <= 2
        if not died:
            break
    assert dies_at > 4


def lead(server: FakeServer, broker: Broker, config: AggregatorConfig, clock: Clock) -> Leading:
    leader = take_the_lead(broker, config, clock)
    work_off(leader, broker)
    return leader


def test_answers_wait_unacked_for_a_version_of_their_own_and_their_sums_lie_beside_it() -> None:
    config, clock = a_survey_of(*WORKERS), Clock()
    server = a_server(config)
    send(server, config, an_answer("a"))
    with FakeBroker(server) as broker:
        leader = lead(server, broker, config, clock)
        assert newest(server, config).version == 0
        clock.seconds = 11
        leader.tick()
        published = newest(server, config)
        assert (published.version, published.survey) == (1, Survey(3, ("a",)))
    assert unacked(server, config) == []
    beside = [decode_record(body) for body in server.bodies(config.topology.head.name)]
    assert [bool(getattr(each, "survey", b"")) for each in beside] == [True, True, True]
    # The record that all read has none of the sums.
    assert b"pulse" not in server.bodies(config.topology.models.name)[-1]

    send(server, config, an_answer("b"), an_answer("c"))
    with FakeBroker(server) as broker:
        lead(server, broker, config, clock)

    found = newest(server, config)
    assert found.survey is not None
    assert found.survey.answered == WORKERS
    merged = an_answer("a").statistics.merged(an_answer("b").statistics).merged(an_answer("c").statistics)
    assert found.survey.result is not None
    assert found.survey.result["pulse"].mean == merged.columns[1].mean
    # From then on it is in every record.
    assert found.version == 2
    assert found.moments_checksum is None


def test_sums_that_are_gone_from_the_head_let_everybody_answer_again() -> None:
    config, clock = a_survey_of(*WORKERS), Clock()
    first = replace(config.first_version(), survey=Survey(3, ("a", "b")))
    config = replace(config, first_version=lambda: first)
    server = a_server(config)
    with FakeBroker(server) as broker:
        leader = lead(server, broker, config, clock)
        assert newest(server, config).survey == Survey(3, (), attempt=2)
        send(server, config, *map(an_answer, WORKERS))
        work_off(leader, broker)

    assert leader.record.survey is not None
    assert leader.record.survey.answered == WORKERS


def lying(answer: SiteStatistics, rows: int) -> SiteStatistics:
    columns = [replace(each, missing=rows - each.count) for each in answer.statistics.columns]
    return replace(answer, statistics=replace(answer.statistics, rows=rows, columns=tuple(columns)))


@pytest.mark.parametrize(
    ("answer", "user", "reason", "says"),
    [
        (
            an_answer("b", names=("age",)),
            "",
            "other-data",
            "data of b is not like that of a: it has 1 ",
        ),
        (
            an_answer("b", names=("age", "size")),
            "",
            "other-data",
            "column 1 is 'size', and that of",
        ),
        (lying(an_answer("b"), 10**9 + 1), "", "bad-examples", "b claims 1000000001 rows"),
        (an_answer("b", of_size=1e300), "", "bad-examples", "b claims values in the column 'age' that"),
        (an_answer("b"), "mallory", "foreign-sender", "comes from the RabbitMQ user 'mallory'"),
        (replace(an_answer("b"), federation="other"), "", "wrong-federation", "'other'"),
        (an_answer("a"), "", "duplicate", "a has answered this survey already"),
    ],
)
def test_an_answer_that_does_not_fit_is_refused_with_a_sentence_and_the_survey_goes_on(
    answer: SiteStatistics, user: str, reason: str, says: str
) -> None:
    config, clock = a_survey_of("a", "c"), Clock()
    server = a_server(config)
    send(server, config, an_answer("a"))
    send(server, config, answer, user=user)
    send(server, config, an_answer("c"))
    with FakeBroker(server) as broker:
        lead(server, broker, config, clock)

    [refused] = rejected(server, config)
    assert refused["reason"] == reason
    assert says in str(refused["detail"])
    found = newest(server, config)
    assert found.survey is not None
    assert found.survey.answered == ("a", "c")
    sender = user or answer.worker
    assert found.contributors[sender].refusal.startswith(reason)


@pytest.mark.parametrize(("of_size", "warns"), [(1.0, False), (1e-4, True), (1e4, True)])
def test_a_site_whose_values_are_far_larger_or_smaller_is_named_with_the_column(
    of_size: float, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    config, clock = a_survey_of("a", "b"), Clock()
    server = a_server(config)
    send(server, config, an_answer("a"), an_answer("b", of_size=of_size))

    with FakeBroker(server) as broker:
        lead(server, broker, config, clock)

    said = [line for line in caplog.text.splitlines() if "far larger or smaller" in line]
    assert len(said) == warns
    assert all("'worker': 'b'" in line and "age (" in line and "pulse" not in line for line in said)


def test_an_answer_after_the_end_or_without_a_survey_and_an_update_before_the_end_are_refused() -> None:
    config, clock = a_survey_of("a"), Clock()
    server = a_server(config)
    send_others(server, config, an_update("a"))
    send(server, config, an_answer("a"), an_answer("b"))
    with FakeBroker(server) as broker:
        lead(server, broker, config, clock)
    plain = a_config()
    without = a_server(plain)
    send(without, plain, an_answer("a"))
    with FakeBroker(without) as broker:
        lead(without, broker, plain, clock)

    assert [each["reason"] for each in rejected(server, config)] == ["survey-open", "survey-over"]
    assert [each["reason"] for each in rejected(without, plain)] == ["no-survey"]


def test_a_survey_of_some_seconds_ends_with_those_that_have_answered() -> None:
    config, clock = a_survey_of(aim=SurveyAim(seconds=30, min_count=5)), Clock()
    server = a_server(config)
    with FakeBroker(server) as broker:
        leader = lead(server, broker, config, clock)
        clock.seconds = 31
        leader.tick()
        # Nobody has answered yet.
        assert newest(server, config).survey == Survey(0)
        send(server, config, an_answer("a"))
        work_off(leader, broker)

    found = newest(server, config)
    assert found.survey is not None
    assert found.survey.result is not None
    assert found.survey.result.sites == 1


def test_an_aggregator_without_survey_ends_one_that_is_open(caplog: pytest.LogCaptureFixture) -> None:
    config, clock = a_survey_of(*WORKERS), Clock()
    server = a_server(config)
    with FakeBroker(server) as broker:
        leader = lead(server, broker, a_config(a_strategy("fedasync")), clock)
        leader.tick()
        send_others(server, config, an_update("a", base_version=1, sends="weights"))
        work_off(leader, broker)

    found = newest(server, config)
    assert found.survey is None
    assert found.updates == 1
    assert "the survey is ended without an answer" in caplog.text


def test_a_survey_that_is_asked_for_after_the_beginning_has_no_effect_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = a_config(a_strategy("fedasync"), survey_aim=SurveyAim(wanted=2))
    server = a_server(config)
    with FakeBroker(server) as broker:
        lead(server, broker, config, Clock())

    assert newest(server, config).survey is None
    assert "--survey has no effect" in caplog.text


def test_the_version_with_the_result_sets_the_layers_that_scale_by_it_and_no_other_weight() -> None:
    weights = {
        "dense/kernel": np.ones((2, 3), np.float32),
        "norm/survey_mean": np.zeros(2, np.float32),
        "norm/survey_deviation": np.ones(2, np.float32),
        "norm_1/survey_mean.pulse": np.zeros(1, np.float32),
        "other/survey_mean": np.zeros(5, np.float32),
        "batch/moving_mean": np.full(2, 7, np.float32),
    }
    layout = Layout.of(weights, dict.fromkeys(list(weights)[1:], "statistic"))
    flat = layout.flatten(weights)
    first = replace(a_version(layout=layout, values=flat.vector.tolist()), statistics=flat.statistics)
    config, clock = a_survey_of("a", first=first), Clock()
    server = a_server(config)
    answer = an_answer("a")
    constant = statistics_of(np.c_[np.full(40, 3.0), np.arange(40)], names=NAMES, classes=0)
    send(server, config, replace(answer, statistics=constant))
    with FakeBroker(server) as broker:
        lead(server, broker, config, clock)

    found = newest(server, config).weights
    assert found["norm/survey_mean"].tolist() == [3.0, 19.5]
    # The first column is constant.
    assert found["norm/survey_deviation"].tolist() == [1.0, pytest.approx(np.arange(40).std())]
    assert found["norm_1/survey_mean.pulse"].tolist() == [19.5]
    assert found["other/survey_mean"].tolist() == [0.0] * 5
    assert found["batch/moving_mean"].tolist() == [7.0, 7.0]
    assert found["dense/kernel"].tolist() == [[1.0] * 3] * 2
    assert len({version.rank for version in versions(server, config)}) == len(versions(server, config))


@pytest.mark.parametrize("rule", ["mean", "median", "trimmed-mean:0.2"])
@given(
    values=st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1, max_size=5),
    weights=st.lists(st.tuples(st.floats(1e-3, 1e9), st.floats(1e-6, 1.0)), min_size=1, max_size=40),
)
def test_statistics_that_no_worker_changes_keep_their_bits_whatever_the_updates_weigh(
    rule: str, values: list[float], weights: list[tuple[float, float]]
) -> None:
    statistics = np.array(values, np.float32)
    buffer = StatisticsBuffer(statistics.size, parse_rule(rule).reduce)

    for factor, mixing in weights:
        buffer = buffer.adding(statistics, Weight(factor, factor, 1.0, mixing))

    # +0 for -0, which are the same number.
    assert (buffer.merged_into(statistics) + 0.0).tobytes() == (statistics + 0.0).tobytes()


@given(st.data())
def test_whatever_the_bytes_of_an_answer_say_the_survey_ends_with_the_honest_ones(
    data: st.DataObject,
) -> None:
    config, clock = a_survey_of("a", "c"), Clock()
    body = bytearray(encode_statistics(an_answer("b")))
    start = body.rindex(b"age\npulse") - struct.calcsize("<QHIi")
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(start, len(body) - 1))] = data.draw(st.integers(0, 255))
    server = a_server(config)
    send(server, config, an_answer("a"))
    with FakeBroker(server, user="b") as broker:
        sealed = with_payload(bytes(body), bytes(body[start:]))
        broker.publish(config.topology.updates_in.name, "", sealed, {})
    send(server, config, an_answer("c"))
    with FakeBroker(server) as broker:
        lead(server, broker, config, clock)

    found = newest(server, config).survey
    assert found is not None
    assert found.result is not None
    assert found.answered in {("a", "b"), ("a", "c")}
    assert len(rejected(server, config)) == 1
    assert unacked(server, config) == []
