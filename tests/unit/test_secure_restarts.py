"""What changes between two lives of an aggregator costs secure aggregation nothing that was sent."""

from dataclasses import replace

import pytest
from builders import FEDERATION, a_config, a_strategy, a_version, an_update
from fake_broker import FakeBroker, FakeServer
from leading import Clock, a_server, newest, rejected, send, take_the_lead
from secure_surveys import SITES, a_survey, an_answer, statistics
from securing import PLAN, WITHOUT_W4, a_masked, a_secure_config, go_on, helpers

from fluffle.errors import ConfigError
from fluffle.record import ModelVersion
from fluffle.survey.messages import SiteStatistics, Survey
from fluffle.update import WeightUpdate
from fluffle_aggregator.config import AggregatorConfig
from fluffle_aggregator.global_model import GlobalModel
from fluffle_aggregator.goal import Goal
from fluffle_aggregator.head import Head
from fluffle_aggregator.secure.state import require_newest_epoch
from fluffle_aggregator.survey import NO_AIM, SurveyAim

AIM = SurveyAim(wanted=3, min_count=5)
SURVEYED = replace(a_version(), survey=Survey(3))


def a_plain_config(*, first: ModelVersion | None = None, survey_aim: SurveyAim = NO_AIM) -> AggregatorConfig:
    """Return what an aggregator without secure aggregation is told, with the same strategy."""
    strategy = a_strategy("fedbuff", buffer_size=3)

    def continue_from(head: Head) -> GlobalModel:
        return GlobalModel(
            head.record,
            head.moments,
            strategy=strategy,
            plan=replace(head.record.plan, secure=None, codec="float32"),
            goal=Goal(),
            term=head.term + 1,
            survey_aim=survey_aim,
        )

    config = replace(a_config(strategy), continue_from=continue_from)
    return replace(config, first_version=lambda: first) if first else config


def an_update_of(worker: str, sequence: int, newest: ModelVersion) -> WeightUpdate:
    return a_masked(worker, sequence, base_version=newest.version, base_term=newest.term)


def reasons(server: FakeServer, config: AggregatorConfig) -> list[object]:
    return [each["reason"] for each in rejected(server, config)]


def test_answers_to_a_survey_fit_an_aggregator_with_another_clip() -> None:
    before = a_secure_config(first=SURVEYED, survey_aim=AIM)
    after = a_secure_config(first=SURVEYED, survey_aim=AIM, secure=replace(PLAN, clip=1.0).numbered())
    server = a_server(before, *map(an_answer, SITES[:2]))
    with FakeBroker(server) as broker:
        go_on(take_the_lead(broker, before, Clock()), broker)

    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, after, Clock())
        send(server, after, an_answer(SITES[2]))
        go_on(leader, broker, helpers(server, after))

    found = newest(server, after).survey
    assert found is not None
    assert found.result is not None
    assert reasons(server, after) == []


def test_a_survey_that_is_closed_is_opened_though_nobody_asks_for_it_any_more() -> None:
    config = a_survey()
    server = a_server(config, *map(an_answer, SITES))
    known = helpers(server, config)
    with FakeBroker(server) as broker:
        go_on(take_the_lead(broker, config, Clock()), broker)
    for each in known:
        # They have seen the record, and nobody hears them.
        each.answer()
    without = a_secure_config()

    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, without, Clock())
        go_on(leader, broker, known)
        base = newest(server, without)
        send(server, without, *(an_update_of(name, 2, base) for name in SITES))
        go_on(leader, broker, known)

    last = newest(server, without)
    assert last.survey is not None
    assert last.survey.result is not None
    assert len(last.folded) == 3
    assert reasons(server, without) == []


def test_an_answer_is_never_too_stale_though_rounds_are_synchronous() -> None:
    config = a_secure_config(name="fedavg", first=SURVEYED, survey_aim=AIM)
    clock, server = Clock(), a_server(config, an_update("w4"))
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, clock)
        for _ in range(3):
            clock.seconds += 70
            go_on(leader, broker)
        # The next version tells w4 that its update was refused.
        assert newest(server, config).version > 0
        send(server, config, *map(an_answer, SITES))
        go_on(leader, broker, helpers(server, config))

    found = newest(server, config).survey
    assert found is not None
    assert found.answered == SITES


def test_once_a_worker_with_other_data_is_revoked_the_others_are_asked_again() -> None:
    before = a_secure_config(first=SURVEYED, survey_aim=AIM)
    after = a_secure_config(first=SURVEYED, survey_aim=AIM, registry=WITHOUT_W4)
    other, clock = an_answer("w4", found=statistics("w4", "x", "y")), Clock()
    server = a_server(before, other, *map(an_answer, SITES))
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, before, clock)
        go_on(leader, broker)
        clock.seconds += 30
        go_on(leader, broker)

    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, after, clock)
        asked = newest(server, after).survey
        assert asked is not None
        assert asked.attempt == 2
        send(server, after, *(an_answer(name, 2) for name in SITES))
        go_on(leader, broker, helpers(server, after))

    found = newest(server, after).survey
    assert found is not None
    assert found.answered == SITES


def test_a_survey_that_began_in_the_clear_begins_anew_under_masks() -> None:
    plain, clock = a_plain_config(first=SURVEYED, survey_aim=AIM), Clock()
    server = a_server(plain, *(SiteStatistics(FEDERATION, name, statistics(name)) for name in SITES[:2]))
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, plain, clock)
        go_on(leader, broker)
        clock.seconds += 20
        go_on(leader, broker)
    before = newest(server, plain).survey
    assert before is not None
    assert before.answered == SITES[:2]
    secure = a_secure_config(first=SURVEYED, survey_aim=AIM)

    with FakeBroker(server) as broker:
        go_on(take_the_lead(broker, secure, clock), broker)

    found = newest(server, secure).survey
    assert found is not None
    assert (found.attempt, found.answered) == (2, ())


def test_a_leader_without_secure_aggregation_in_between_costs_no_buffer() -> None:
    config, plain = a_secure_config(), a_plain_config()
    server = a_server(config, *(a_masked(name) for name in SITES))
    answering = helpers(server, config)
    with FakeBroker(server) as broker:
        go_on(take_the_lead(broker, config, Clock()), broker, answering)
    with FakeBroker(server) as broker:
        go_on(take_the_lead(broker, plain, Clock()), broker)
    assert newest(server, config).plan.secure is None

    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, Clock())
        send(server, config, *(an_update_of(name, 2, newest(server, config)) for name in SITES))
        go_on(leader, broker, answering)

    assert len(newest(server, config).folded) == 3
    assert reasons(server, config) == []


@pytest.mark.parametrize("is_surveyed", [False, True])
def test_as_many_updates_may_wait_for_the_next_buffer_after_a_survey_as_without_one(
    is_surveyed: bool,
) -> None:
    first, aim = (SURVEYED, AIM) if is_surveyed else (None, NO_AIM)
    config = a_secure_config(buffer_size=12, first=first, survey_aim=aim)
    server = a_server(config)
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, Clock())
        answering = helpers(server, config)
        if is_surveyed:
            send(server, config, *map(an_answer, SITES))
            go_on(leader, broker, answering)
        base = newest(server, config)
        # Of a buffer of 12 one worker has 4 places; four more may wait for the next one.
        send(server, config, *(an_update_of("w1", number, base) for number in range(2, 8)))
        go_on(leader, broker, answering)

    assert reasons(server, config) == []


def test_an_aggregator_with_an_older_registry_than_the_federation_does_not_lead() -> None:
    with pytest.raises(ConfigError, match=r"of epoch 1, and the federation is in epoch 2: ask the operator"):
        require_newest_epoch(PLAN, replace(PLAN, epoch=2))

    require_newest_epoch(replace(PLAN, epoch=2), PLAN)
    require_newest_epoch(PLAN, None)


def test_an_aggregator_with_other_keys_of_the_helpers_than_the_federation_does_not_lead() -> None:
    mine, others = PLAN.of_keys("a" * 64), PLAN.of_keys("b" * 64)

    with pytest.raises(
        ConfigError, match=r"other keys of the helpers for epoch 1.*`fluffle federation reset`"
    ):
        require_newest_epoch(mine, others)

    require_newest_epoch(mine, mine)
    # Of before plans had a digest, and of the epoch before.
    require_newest_epoch(mine, PLAN)
    require_newest_epoch(replace(mine, epoch=2), others)
