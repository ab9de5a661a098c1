"""What one worker may not do to the rest: rates, share of a buffer, norm of an update."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from builders import SIZE, a_model, a_strategy, a_vector, a_version, an_update, float32s, passed, values_of
from hypothesis import given
from hypothesis import strategies as st

from fluffle.broker import Delivery
from fluffle.errors import WireError
from fluffle.record import MAX_NORMS
from fluffle.record_wire import decode_version, encode_version
from fluffle.vector_math import BLOCK_SIZE
from fluffle_aggregator.gates.gate import Incoming, Refusal
from fluffle_aggregator.gates.limits import Limits
from fluffle_aggregator.gates.norm import norm_bound, shortened
from fluffle_aggregator.gates.rates import MIB, Rates, TokenBuckets
from fluffle_aggregator.global_model import GlobalModel
from fluffle_aggregator.norms import norm_of, quick_norm_of

CLIP = Limits(limit_norm=2.0, on_large_norm="clip")


def with_norms(*norms: float, strategy: str = "fedbuff") -> GlobalModel:
    record = replace(a_version(values=(3.0, 0.0, 0.0, 0.0)), norms=norms)
    return a_model(a_strategy(strategy, buffer_size=4), record=record)


def reason_of(found: Incoming | Refusal) -> str | None:
    return found.reason if isinstance(found, Refusal) else None


@given(
    per_minute=st.integers(1, 100),
    waits=st.lists(st.floats(0, 90), max_size=60),
    amount=st.floats(0.1, 10),
)
def test_in_no_span_of_time_does_a_sender_take_more_than_its_rate_and_one_minutes_worth(
    per_minute: int, waits: list[float], amount: float
) -> None:
    buckets = TokenBuckets(per_minute)
    now, taken = 0.0, []
    for wait in waits:
        now += wait
        if buckets.take("w1", amount, now=now):
            taken.append(now)

    for first, start in enumerate(taken):
        for count, end in enumerate(taken[first:], 1):
            assert count * amount <= per_minute * (1 + (end - start) / 60) + 1e-6


def test_who_asks_for_too_much_loses_nothing_and_each_sender_has_a_bucket_of_its_own() -> None:
    buckets = TokenBuckets(2)

    found = [buckets.take(*asked, now=0.0) for asked in [("a", 3), ("a", 2), ("a", 1), ("b", 2), (None, 1)]]

    assert found == [False, True, False, True, True]
    assert buckets.take("a", 1, now=30.0)
    assert not buckets.take("a", 1, now=59.0)


def test_full_buckets_are_forgotten_so_memory_holds_one_minute_of_senders() -> None:
    buckets = TokenBuckets(5)
    for second in range(10_000):
        buckets.take(f"user-{second}", 1, now=float(second))

    assert len(buckets) <= 60


@pytest.mark.parametrize(
    ("limits", "reason", "says"),
    [
        (
            Limits(limit_messages=2),
            "too-many",
            "'w1' has sent more than 2 messages .* .limit_messages",
        ),
        (Limits(limit_mib=2.5), "too-much", "these 1 MiB, .* more than 2.5 MiB .* .limit_mib"),
    ],
)
def test_a_flood_is_refused_by_its_user_whatever_stands_in_it_and_what_is_redelivered_is_not_counted(
    limits: Limits, reason: str, says: str
) -> None:
    rates = Rates(limits)
    message = Delivery(0, bytes(MIB), 0, "w1")
    again = replace(message, redeliveries=1)

    found = [rates.refusal(one, now=0.0) for one in [again] * 5 + [message] * 3 + [again]]

    assert found[:7] == [None] * 7
    assert found[7] is not None
    assert found[7].reason == reason
    assert re.search(says, found[7].detail)
    assert found[8] is None
    assert rates.refusal(replace(message, user="w2"), now=0.0) is None
    assert rates.refusal(message, now=30.0) is None


@given(
    share=st.floats(0.01, 1), size=st.integers(1, 8), senders=st.lists(st.sampled_from("abc"), max_size=40)
)
def test_no_worker_weighs_more_than_its_share_of_a_buffer_but_one_update_is_let_in(
    share: float, size: int, senders: list[str]
) -> None:
    model = a_model(a_strategy(buffer_size=size))
    for number, worker in enumerate(senders, 1):
        before = dict(model.in_buffer)
        update = an_update(worker, number, base_term=1, base_version=model.version)
        found = passed(update, model, Limits(limit_share=share))
        if isinstance(found, Refusal):
            assert found.reason == "over-share"
            assert "limit_share" in found.detail
            assert before[worker] + 1 > share * size
            continue
        assert worker not in before or before[worker] + 1 <= share * size + 1e-6
        model.fold(found.update, now=0.0)


def test_a_share_of_twenty_nine_hundredths_is_29_of_100() -> None:
    model = a_model(a_strategy(buffer_size=100))
    for number in range(1, 30):
        assert reason_of(passed(an_update("a", number), model, Limits(limit_share=0.29))) is None
        model.fold(an_update("a", number), now=0.0)

    assert reason_of(passed(an_update("a", 30), model, Limits(limit_share=0.29))) == "over-share"
    assert reason_of(passed(an_update("b", 1), model, Limits(limit_share=0.29))) is None


def test_norms_are_summed_up_in_float64_over_all_blocks() -> None:
    plain = np.full(3 * BLOCK_SIZE + 5, 2.0**50, np.float32)
    vector = float32s(plain)

    assert norm_of(vector) == pytest.approx(2.0**50 * math.sqrt(vector.size), rel=1e-12)
    assert norm_of(vector, plain) == 0.0
    assert norm_of(float32s(a_vector(3e38, 3e38)), a_vector(-3e38, -3e38)) == pytest.approx(
        6e38 * math.sqrt(2)
    )
    assert shortened(vector, 0.5)[-1] == 2.0**49
    assert shortened(float32s(a_vector(5.0, 1.0)), 0.5, a_vector(1.0, 1.0)).tolist() == [3.0, 1.0]


def test_a_bound_needs_ten_norms_of_which_most_are_not_zero() -> None:
    assert norm_bound((1.0,) * 9, 2.0) == math.inf
    assert norm_bound((0.0,) * 9 + (1.0,), 2.0) == math.inf
    assert norm_bound((1.0,) * 9 + (1e9,), 2.0) == 2.0


def test_an_update_with_a_large_norm_is_refused_with_the_limit_that_it_broke() -> None:
    model = with_norms(*[1.0] * 10)

    large = passed(an_update(values=[1.01] * SIZE), model, Limits(limit_norm=2.0))

    assert large == Refusal(
        "large-norm",
        "the update would move the model by a norm of 2.02; at most 2 is allowed, 2 times the median of the "
        "last 10 (limit_norm)",
    )
    within = passed(an_update(), model, Limits(limit_norm=2.0))
    assert isinstance(within, Incoming)
    assert (within.norm, within.norm_before) == (2.0, None)


@pytest.mark.parametrize(
    ("strategy", "sent", "applied"),
    [("fedbuff", [3, 0, 0, 4], [1.2, 0, 0, 1.6]), ("fedasync", [6, 0, 0, 4], [4.2, 0, 0, 1.6])],
)
def test_a_clipped_update_keeps_its_direction_and_moves_the_model_by_the_limit(
    strategy: str, sent: list[float], applied: list[float]
) -> None:
    model = with_norms(*[1.0] * 10, strategy=strategy)
    update = an_update(values=sent, sends=model.strategy.sends)

    found = passed(update, model, CLIP)

    assert isinstance(found, Incoming)
    assert (found.norm, found.norm_before) == (2.0, 5.0)
    np.testing.assert_allclose(values_of(found.update.vector), applied, rtol=1e-6)
    assert values_of(update.vector) == sent


def test_the_model_remembers_the_last_101_norms_and_forgets_them_when_nobody_measures() -> None:
    model = with_norms(*map(float, range(MAX_NORMS)))

    model.fold(an_update("w1", 1), now=0.0, norm=7.0)
    assert model.norms == (*map(float, range(1, MAX_NORMS)), 7.0)

    model.fold(an_update("w1", 2), now=0.0)
    assert model.norms == ()


@pytest.mark.parametrize("norms", [(-1.0,), (math.nan,), (math.inf,), (1.0,) * (MAX_NORMS + 1)])
def test_a_record_with_impossible_norms_is_unreadable(norms: tuple[float, ...]) -> None:
    with pytest.raises(WireError, match="field norms"):
        decode_version(encode_version(replace(a_version(), norms=norms)))


@given(
    st.integers(1, 3 * BLOCK_SIZE),
    st.floats(-40, 12),
    st.sampled_from(["normal", "alike", "one", "heavy"]),
    st.integers(0, 2**32 - 1),
)
def test_the_quick_norm_is_next_to_the_exact_one(size: int, power: float, shape: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    elements = {
        "normal": random.standard_normal(size),
        # All rounded in the same direction.
        "alike": np.full(size, random.uniform(1, 2)),
        "one": np.eye(1, size).ravel(),
        "heavy": random.standard_cauchy(size),
    }[shape]
    vector = (np.clip(elements, -1e3, 1e3) * 10.0**power).astype(np.float32)

    exact = math.sqrt(math.fsum(np.square(vector, dtype=np.float64)))

    assert quick_norm_of(float32s(vector)) == pytest.approx(exact, rel=2.0**-18, abs=0)
