"""What is sent for acks is, to RabbitMQ, the same as an ack for each."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluffle.rabbit.acked_tags import AckedTags


def settled(unacked: list[int], tag: int, *, multiple: bool) -> list[int]:
    """Return the deliveries that RabbitMQ lets go of."""
    assert tag in unacked
    return unacked[: unacked.index(tag) + 1] if multiple else [tag]


@given(st.data())
def test_whoever_acks_in_whatever_order_never_acks_another_tag(data: st.DataObject) -> None:
    unacked = list(range(1, data.draw(st.integers(1, 30)) + 1))
    acked = AckedTags()

    while unacked:
        tags = data.draw(st.lists(st.sampled_from(unacked), min_size=1, unique=True))
        for tag, multiple in acked.adding(tags):
            for each in settled(unacked, tag, multiple=multiple):
                unacked.remove(each)
                tags.remove(each)
        assert tags == []


@pytest.mark.parametrize(
    ("tags", "sent"),
    [
        ([1, 2, 3], [(3, True)]),
        ([1], [(1, False)]),
        ([2, 3], [(2, False), (3, False)]),
        ([1, 2, 4], [(2, True), (4, False)]),
    ],
)
def test_tags_in_one_piece_are_one_ack(tags: list[int], sent: list[tuple[int, bool]]) -> None:
    assert AckedTags().adding(tags) == sent


def test_what_was_held_back_is_acked_alone_and_then_many_are_one_again() -> None:
    acked = AckedTags()
    acked.adding([1, 3])

    assert acked.adding([2]) == [(2, False)]
    assert acked.adding([4, 5]) == [(5, True)]


def test_a_second_ack_of_a_tag_is_sent_as_it_is() -> None:
    acked = AckedTags()
    acked.adding([1, 2])

    assert acked.adding([1, 3, 4]) == [(4, True), (1, False)]
