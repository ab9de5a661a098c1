"""Which answers to try when helpers open a group differently."""

from hypothesis import given
from hypothesis import strategies as st

from fluffle.secure.committee import Committee
from fluffle_aggregator.secure.alternatives import MOST_TRIED, Alternatives, Choice


def tried(alternatives: Alternatives) -> list[Choice]:
    found = []
    while choice := alternatives.next_choice():
        found.append(choice)
    return found


@st.composite
def committees(draw: st.DrawFn) -> Committee:
    """Committees in which most helpers are honest."""
    colluding = draw(st.integers(1, 3))
    count = draw(st.integers(2 * colluding + 1, 7))
    return Committee(tuple(f"h{number}" for number in range(count)), colluding)


@given(committees(), st.data())
def test_what_honest_helpers_answer_is_tried_whatever_as_many_as_may_collude_send(
    committee: Committee, data: st.DataObject
) -> None:
    liars = data.draw(st.sets(st.sampled_from(committee.helpers), max_size=committee.colluding))
    alternatives = Alternatives(committee)
    answers = [(group, helper) for group, members in enumerate(committee.groups) for helper in members]
    for group, helper in data.draw(st.permutations(answers)):
        lie = data.draw(st.sampled_from([b"right", b"lie", helper.encode()])) if helper in liars else b"right"
        alternatives.add(group, helper, lie, memoryview(lie))

    found = tried(alternatives)

    honest = (b"right",) * len(committee.groups)
    assert honest in found
    assert len(found) == len(set(found)) <= MOST_TRIED
    assert alternatives.masks(honest) == [memoryview(b"right")] * len(committee.groups)


@given(committees(), st.data())
def test_what_comes_later_is_tried_then(committee: Committee, data: st.DataObject) -> None:
    alternatives = Alternatives(committee)
    late = data.draw(st.sampled_from(committee.helpers))
    answers = [(group, helper) for group, members in enumerate(committee.groups) for helper in members]
    for group, helper in answers:
        if helper != late:
            alternatives.add(group, helper, b"right", memoryview(b"right"))
    assert tried(alternatives) == [(b"right",) * len(committee.groups)]

    for group, helper in answers:
        if helper == late:
            alternatives.add(group, helper, b"other", memoryview(b"other"))

    assert tried(alternatives) == []


def test_of_a_helper_that_changes_its_mind_the_first_answer_counts() -> None:
    alternatives = Alternatives(Committee(("h0", "h1"), 1))
    for answer in (b"right", b"another"):
        for group, helper in enumerate(("h0", "h1")):
            alternatives.add(group, helper, answer, memoryview(answer))

    assert tried(alternatives) == [(b"right", b"right")]
