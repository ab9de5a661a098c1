"""What is worth waiting for, and for how long."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluffle.connection import Patience
from fluffle.errors import (
    AccessRefused,
    BrokerError,
    ConfigError,
    ConnectionLost,
    LimitReached,
    LoginRefused,
    NameTaken,
    RequestRefused,
    TopologyMissing,
)

CONNECT_S, LOGIN_S = 300.0, 120.0
PASSING = [ConnectionLost("gone"), LimitReached("full"), TopologyMissing("no queue")]
REFUSED = [
    LoginRefused("password"),
    ConfigError("the file is empty"),
    AccessRefused("no right yet"),
]
LASTING = [
    NameTaken("another process"),
    RequestRefused("queue limit"),
]


def patience(*, was_accepted: bool = False) -> Patience:
    made = Patience(connect_timeout_s=CONNECT_S, login_patience_s=LOGIN_S)
    made.begin(0.0)
    if was_accepted:
        made.accepted()
    return made


@pytest.mark.parametrize("error", PASSING, ids=repr)
@pytest.mark.parametrize("was_accepted", [False, True])
def test_what_may_pass_is_waited_for_until_the_connect_timeout(
    error: BrokerError, was_accepted: bool
) -> None:
    waits = patience(was_accepted=was_accepted)

    assert waits.allows_retry(error, CONNECT_S - 1)
    assert not waits.allows_retry(error, CONNECT_S)


@pytest.mark.parametrize("error", LASTING, ids=repr)
def test_what_lasts_is_not_waited_for(error: BrokerError) -> None:
    assert not patience().allows_retry(error, 0.0)
    assert not patience(was_accepted=True).allows_retry(error, 0.0)


@pytest.mark.parametrize("error", REFUSED, ids=repr)
def test_a_wrong_login_ends_a_part_at_its_first_start_and_later_when_the_patience_is_over(
    error: BrokerError | ConfigError,
) -> None:
    assert not patience().allows_retry(error, 0.0)

    waits = patience(was_accepted=True)
    assert waits.allows_retry(error, 1000.0)
    assert waits.allows_retry(error, 1000.0 + LOGIN_S - 1)
    assert not waits.allows_retry(error, 1000.0 + LOGIN_S)


def test_the_patience_with_a_login_begins_anew_when_it_was_accepted_or_the_broker_was_away() -> None:
    waits = patience(was_accepted=True)

    assert waits.allows_retry(LoginRefused("old"), 10.0)
    assert waits.allows_retry(ConnectionLost("it starts again"), 100.0)
    assert waits.allows_retry(LoginRefused("old"), 200.0)
    assert waits.allows_retry(LoginRefused("old"), 319.0)
    waits.accepted()
    waits.begin(400.0)
    assert waits.allows_retry(LoginRefused("older still"), 401.0)
    assert waits.allows_retry(LoginRefused("older still"), 520.0)


@given(st.lists(st.tuples(st.sampled_from([*PASSING, *REFUSED]), st.floats(0, 100)), max_size=40))
def test_no_row_of_refusals_is_waited_for_longer_than_both_patiences_together(
    row: list[tuple[BrokerError | ConfigError, float]],
) -> None:
    waits, now = patience(was_accepted=True), 0.0

    for error, after_s in row:
        now += after_s
        if not waits.allows_retry(error, now):
            return

    assert now < CONNECT_S + LOGIN_S + 100


def test_whoever_watches_waits_without_end_for_all_but_a_login() -> None:
    waits = Patience(connect_timeout_s=math.inf, login_patience_s=LOGIN_S)
    waits.begin(0.0)

    assert all(waits.allows_retry(error, 1e9) for error in PASSING)
    assert not waits.allows_retry(LoginRefused("password"), 0.0)
