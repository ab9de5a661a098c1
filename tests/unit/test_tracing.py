"""What the records of versions say of one update."""

from dataclasses import replace

import pytest
from builders import a_version

from fluffle.errors import ConfigError
from fluffle.plan import Plan
from fluffle.record import Folded, ModelVersion, Rank
from fluffle.secure.plan import SecurePlan
from fluffle.update import AppliedUpdates, UpdateId
from fluffle_cli.tracing import Story, parse_update_id, read_records, story_lines

FIRST, SECOND, THIRD = (UpdateId("w1", "r1", sequence) for sequence in (1, 2, 3))


def a_chain(*contents: tuple[UpdateId, ...], term: int = 1) -> list[ModelVersion]:
    """Return versions 0, 1, 2 ..., each with the updates that it folds."""
    applied, chain = AppliedUpdates(), []
    for number, folded in enumerate(contents):
        applied = applied.adding(folded)
        record = replace(
            a_version(number, term=term),
            applied=applied,
            folded=tuple(Folded(each, 0, number - 1, 0.5, 99.0, 99.5) for each in folded),
            committed_at=100.0 + number,
            parent=f"digest of {number - 1}" if number else "",
            copy_of=f"digest of {number}",
        )
        chain.append(record)
    return chain


def a_story(update: UpdateId, versions: list[ModelVersion], *, updates_waiting: int = 0) -> Story:
    return Story(
        federation="digits",
        update=update,
        records=read_records(update, versions),
        refused=[],
        not_looked="",
        updates_waiting=updates_waiting,
    )


def text_of(story: Story) -> str:
    return "\n".join(f"{what} {said}" for what, said in story_lines(story))


@pytest.mark.parametrize(
    "text", ["", "w1", "w1/r1", "w1/r1/0", "w1/r1/x", "w1/r1/1/2", "w 1/r1/1", "w1/r1/²"]
)
def test_the_error_of_a_wrong_update_id_shows_a_right_one(text: str) -> None:
    with pytest.raises(ConfigError, match="worker/run/sequence, as in site-1/4f3a/12"):
        parse_update_id(text)


def test_an_update_id_is_read_as_it_is_written() -> None:
    assert str(parse_update_id("site-1/4f3a/12")) == "site-1/4f3a/12"


def test_the_story_of_a_folded_update_has_version_staleness_weight_and_times() -> None:
    story = a_story(SECOND, a_chain((), (FIRST,), (SECOND, THIRD), ()))

    facts = story.as_json()
    assert facts["outcome"] == "applied"
    assert (facts["version"], facts["term"], facts["committed_at"]) == (2, 1, 102.0)
    assert (facts["base_version"], facts["staleness"], facts["weight"]) == (0, 1, 0.5)
    assert (facts["published_at"], facts["received_at"]) == (99.0, 99.5)
    assert "in version 2 (term 1), one of 2 updates, 2.500 s later" in text_of(story)


def test_an_update_in_the_oldest_record_may_have_been_applied_before_it() -> None:
    story = a_story(FIRST, a_chain((), (FIRST,), (SECOND,))[2:])

    assert story.outcome == "applied-earlier"
    assert story.as_json()["version"] is None
    assert "before version 2 (term 1), the oldest record that is still there" in text_of(story)


def test_an_update_after_a_gap_was_applied_in_a_version_whose_record_is_missing() -> None:
    complete = a_chain((), (FIRST,), (SECOND,), (THIRD,))
    story = a_story(SECOND, [one for one in complete if one.version != 2])

    assert story.outcome == "applied-earlier"
    assert story.as_json()["version"] is None
    assert "before version 3 (term 1), in one whose record is missing" in text_of(story)


def test_an_update_whose_place_a_later_one_took_is_absorbed() -> None:
    chain = a_chain((), (), (THIRD,))
    chain[2] = replace(chain[2], applied=chain[2].applied.adding([FIRST]))

    story = a_story(FIRST, chain)

    assert story.outcome == "absorbed"
    assert story.as_json()["absorbed_by"] == ["w1/r1/3"]
    assert "a later update of its run took its place (w1/r1/3)" in text_of(story)


def test_a_version_of_an_aggregator_that_had_lost_the_lead_does_not_count() -> None:
    old = a_chain((), (FIRST,), (SECOND,))
    new = a_chain((), (FIRST,), (), (SECOND,), term=2)[2:]
    terms = (Rank(1, 0), Rank(2, 1))

    story = a_story(SECOND, [replace(each, terms=terms) for each in [*old, *new]])

    assert (story.as_json()["version"], story.as_json()["term"]) == (3, 2)


def test_the_story_of_an_unknown_update_says_where_it_may_be() -> None:
    chain = a_chain((), (FIRST,))

    waits = text_of(a_story(SECOND, chain, updates_waiting=3))
    stranger = text_of(a_story(UpdateId("w9", "r1", 1), chain))
    nothing = text_of(a_story(FIRST, []))

    assert "in no version from 0 (term 1) to 1 (term 1)" in waits
    assert "3 messages wait in digits.updates" in waits
    assert "no version contains anything of worker w9" in stranger
    assert "is forgotten" not in stranger
    secure = SecurePlan(epoch=2, clip=4.0, bits=16, modulus_bits=32, greatest=64)
    masked = [replace(each, plan=Plan(secure=secure)) for each in chain]
    assert "what was masked before epoch 2 is forgotten" in text_of(a_story(UpdateId("w9", "r1", 1), masked))
    assert "nothing waits in digits.updates; the leader may hold it until its next commit" in stranger
    assert "there is no version yet" in nothing
