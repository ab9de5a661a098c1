"""What a buffer of masked updates takes in: no more than a sum holds, and enough for it to be opened."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from securing import PLAN, WORKERS, a_masked

from fluffle_aggregator.secure.masked_buffer import MaskedBuffer

FACTORS = (64, 45, 37, 32, 23, 16, 11, 8)
arrivals = st.lists(st.tuples(st.sampled_from(list(WORKERS)), st.sampled_from(FACTORS)), max_size=60)
sizes = st.integers(2, 12).flatmap(lambda size: st.tuples(st.just(size), st.integers(2, size)))


def a_buffer(buffer_size: int, fewest_workers: int = 3) -> MaskedBuffer:
    return MaskedBuffer(PLAN, buffer_size, fewest_workers)


def fill(buffer: MaskedBuffer, arrivals: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Add what there is room for until the helpers would open the full buffer; return what was left out."""
    left_out = []
    for worker, factor in arrivals:
        if is_full(buffer):
            break
        if buffer.has_room_for(worker, factor):
            buffer.add(a_masked(worker, len(buffer) + 1), factor, now=0.0, published_at=0.0)
        else:
            left_out.append((worker, factor))
    return left_out


def is_full(buffer: MaskedBuffer) -> bool:
    return len(buffer) >= buffer.buffer_size and not buffer.why_not()


def weights_of(buffer: MaskedBuffer) -> Counter[str]:
    weights: Counter[str] = Counter()
    for each in buffer.updates:
        weights[each.id.worker] += each.factor
    return weights


@given(sizes, arrivals)
def test_no_buffer_ever_holds_more_than_a_sum_does(
    size: tuple[int, int], arrivals: list[tuple[str, int]]
) -> None:
    buffer_size, fewest = size
    buffer = a_buffer(buffer_size, fewest)

    fill(buffer, arrivals)

    assert sum(each.factor for each in buffer.updates) <= buffer_size * PLAN.greatest


@given(sizes, arrivals)
def test_a_buffer_of_its_size_has_enough_workers(
    size: tuple[int, int], arrivals: list[tuple[str, int]]
) -> None:
    buffer_size, fewest = size
    buffer = a_buffer(buffer_size, fewest)

    fill(buffer, arrivals)

    if len(buffer) >= buffer_size:
        assert len(weights_of(buffer)) >= fewest


@given(sizes, st.lists(st.sampled_from(list(WORKERS)), max_size=60))
def test_a_full_buffer_of_fresh_updates_is_opened(size: tuple[int, int], workers: list[str]) -> None:
    buffer_size, fewest = size
    buffer = a_buffer(buffer_size, fewest)

    fill(buffer, [(worker, PLAN.greatest) for worker in workers])

    assert len(buffer) < buffer_size or not buffer.why_not()
    assert len(buffer) <= buffer_size


def test_three_workers_fill_a_buffer_of_four_updates() -> None:
    buffer = a_buffer(4)

    left_out = fill(buffer, [(worker, 64) for worker in ("w1", "w1", "w2", "w2", "w3", "w1")])

    assert left_out == [("w1", 64), ("w2", 64)]
    assert is_full(buffer)
    assert weights_of(buffer) == {"w1": 128, "w2": 64, "w3": 64}


@given(sizes, arrivals)
def test_while_one_worker_is_too_heavy_another_one_may_give_more_than_its_share(
    size: tuple[int, int], arrivals: list[tuple[str, int]]
) -> None:
    buffer_size, fewest = size
    buffer = a_buffer(buffer_size, fewest)
    fill(buffer, arrivals)
    if len(buffer) < buffer_size or not buffer.why_not():
        return
    weights = weights_of(buffer)
    heaviest = max(weights, key=weights.__getitem__)

    lightest = min(FACTORS)

    assert not buffer.has_room_for(heaviest, lightest)
    if weights.total() + lightest <= buffer_size * PLAN.greatest:
        others = [worker for worker in WORKERS if worker != heaviest]
        assert any(buffer.has_room_for(worker, lightest) for worker in others)


def test_a_worker_with_more_than_half_of_the_weight_is_outweighed_by_further_updates_of_the_others() -> None:
    buffer = a_buffer(3)

    left_out = fill(buffer, [("w2", 23), ("w2", 23), ("w3", 23), ("w1", 64), ("w1", 64), ("w2", 23)])

    assert left_out == [("w2", 23), ("w1", 64)]
    assert is_full(buffer)
    assert weights_of(buffer) == {"w1": 64, "w2": 46, "w3": 23}
