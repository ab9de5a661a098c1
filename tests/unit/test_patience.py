"""What is worth waiting for, and for how long."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluffle.connector import Patience
from fluffle.errors import (
    AccessRefused,
    BrokerError,
    ConfigError,
    ConnectionLost,
    LimitReached,
    LoginRefused,
    NameTaken,
    QuotaReached,
    RequestRefused,
    TlsRefused,
    TopologyMismatch,
    TopologyMissing,
)

CONNECT_S, LOGIN_S = 300.0, 120.0
PASSING = [ConnectionLost("gone"), LimitReached("full"), TopologyMissing("no queue")]
NOT_LET_IN = [
    LoginRefused("password"),
    TlsRefused("certificate"),
    ConfigError("the file is empty"),
    AccessRefused("no right yet"),
]
LASTING = [
    NameTaken("another process"),
    QuotaReached("queue limit"),
    RequestRefused("no"),
    TopologyMismatch("other arguments"),
]


def patience(*, was_let_in: bool = False) -> Patience:
    made = Patience(connect_timeout_s=CONNECT_S, login_patience_s=LOGIN_S)
    made.begin(0.0)
    if was_let_in:
        made.let_in()
    return made


@pytest.mark.parametrize("error", PASSING, ids=repr)
@pytest.mark.parametrize("was_let_in", [False, True])
def test_what_may_pass_is_waited_for_until_the_connect_timeout(error: BrokerError, was_let_in: bool) -> None:
    waits = patience(was_let_in=was_let_in)

    assert waits.allows(error, CONNECT_S - 1)
    assert not waits.allows(error, CONNECT_S)


@pytest.mark.parametrize("error", LASTING, ids=repr)
def test_what_lasts_is_not_waited_for(error: BrokerError) -> None:
    assert not patience().allows(error, 0.0)
    assert not patience(was_let_in=True).allows(error, 0.0)


@pytest.mark.parametrize("error", NOT_LET_IN, ids=repr)
def test_a_wrong_login_ends_a_part_at_its_first_start_and_later_when_the_patience_is_over(
    error: BrokerError | ConfigError,
) -> None:
    assert not patience().allows(error, 0.0)

    waits = patience(was_let_in=True)
    assert waits.allows(error, 1000.0)
    assert waits.allows(error, 1000.0 + LOGIN_S - 1)
    assert not waits.allows(error, 1000.0 + LOGIN_S)


def test_the_patience_with_a_login_begins_anew_when_it_was_accepted_or_the_broker_was_away() -> None:
    waits = patience(was_let_in=True)

    assert waits.allows(LoginRefused("old"), 10.0)
    assert waits.allows(ConnectionLost("it starts again"), 100.0)
    assert waits.allows(LoginRefused("old"), 200.0)
    assert waits.allows(LoginRefused("old"), 319.0)
    waits.let_in()
    waits.begin(400.0)
    assert waits.allows(LoginRefused("older still"), 401.0)
    assert waits.allows(LoginRefused("older still"), 520.0)


@given(st.lists(st.tuples(st.sampled_from([*PASSING, *NOT_LET_IN]), st.floats(0, 100)), max_size=40))
def test_no_row_of_refusals_is_waited_for_longer_than_both_patiences_together(
    row: list[tuple[BrokerError | ConfigError, float]],
) -> None:
    waits, now = patience(was_let_in=True), 0.0

    for error, after_s in row:
        now += after_s
        if not waits.allows(error, now):
            return

    assert now < CONNECT_S + LOGIN_S + 100


def test_whoever_watches_waits_without_end_for_all_but_a_login() -> None:
    waits = Patience(connect_timeout_s=math.inf, login_patience_s=LOGIN_S)
    waits.begin(0.0)

    assert all(waits.allows(error, 1e9) for error in PASSING)
    assert not waits.allows(LoginRefused("password"), 0.0)
