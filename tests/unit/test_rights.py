"""Whom a list or a pattern of federations lets in, and that rights tell which list it was."""

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluffle.rights import ROLES, Membership, Rights, Scope, membership_of, rights_of
from fluffle.topology import topology_of

NAMES = st.from_regex(r"[a-z][a-z0-9_-]{0,8}", fullmatch=True)
PATTERNS = st.from_regex(r"[a-z*][a-z0-9_*-]{0,8}", fullmatch=True)
SCOPES = st.lists(PATTERNS, min_size=1, max_size=4, unique=True).map(",".join)
IN_FEDERATIONS = st.sampled_from(sorted(set(ROLES) - {"operator"}))


def role_of(rights: Rights, federation: str, name: str) -> str | None:
    """Return the role that a user of this name has in a federation, if its rights are exactly a role's."""
    membership = membership_of(rights, name)
    return membership.role if membership and federation in membership.scope else None


def may(pattern: str, name: str) -> bool:
    """Tell as RabbitMQ does: the expression is searched for in the name."""
    return re.search(pattern, name) is not None


@given(IN_FEDERATIONS, SCOPES, st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.@:-]{0,9}", fullmatch=True))
def test_the_rights_of_a_role_tell_the_role_and_the_federations(role: str, scope: str, name: str) -> None:
    assert membership_of(rights_of(role, scope, name), name) == Membership(role, Scope.parse(scope))


@given(SCOPES, NAMES)
def test_a_worker_may_write_to_the_federations_of_its_scope_and_to_no_other(scope: str, name: str) -> None:
    rights = rights_of("worker", scope, "site")

    assert may(rights.write, topology_of(name).updates_in.name) == (name in Scope.parse(scope))


@given(SCOPES, SCOPES, NAMES)
def test_what_is_in_an_included_scope_is_in_the_one_that_includes_it(one: str, two: str, name: str) -> None:
    outer, inner = Scope.parse(one), Scope.parse(two)

    assert outer.includes(outer)
    assert not (outer.includes(inner) and name in inner) or name in outer


@pytest.mark.parametrize(
    ("scope", "inside", "outside"),
    [
        ("digits", ["digits"], ["digits-2", "xdigits", "digit"]),
        ("gym-*", ["gym-1", "gym-a_b", "gym-"], ["gym", "a-gym-1", "gyms-1"]),
        ("gym-*,digits", ["gym-1", "digits"], ["faces", "digits-1"]),
        ("*", ["digits", "gym-1"], []),
        ("a*z", ["az", "a-to-z"], ["a", "az1"]),
    ],
)
@pytest.mark.parametrize("role", ["worker", "evaluator", "aggregator", "monitor"])
def test_a_list_or_a_pattern_lets_in_what_it_says(
    role: str, scope: str, inside: list[str], outside: list[str]
) -> None:
    rights = rights_of(role, scope, "one")

    for federation in inside:
        assert role_of(rights, federation, "one") == role
        assert may(rights.read, topology_of(federation).records.name)
        assert may(rights.read, topology_of(federation).models.name) is (role != "monitor")
    for federation in outside:
        assert role_of(rights, federation, "one") is None
        assert not may(rights.read, topology_of(federation).models.name)
        assert not may(rights.read, topology_of(federation).records.name)
    # Through the default exchange one may write to every queue.
    for pattern in rights.patterns.values():
        assert not may(pattern, "amq.default")


def test_the_rights_of_one_federation_are_those_that_they_were() -> None:
    assert rights_of("worker", "gym-1", "site-1").patterns == {
        "configure": r"^gym\-1\.worker\.site\-1(/bell)?$",
        "write": r"^gym\-1\.(updates|member-events)$",
        "read": r"^gym\-1\.(models|best|records|worker\.site\-1(/bell)?)$",
    }


@pytest.mark.parametrize("read", ["", "^$", ".*", r"^(a|b)\.", r"^a\.models", r"^A\.models$", "(", r"^(\."])
def test_rights_that_no_role_has_are_no_membership(read: str) -> None:
    assert membership_of(Rights(read=read), "site") is None


def test_an_operator_is_one_in_every_federation() -> None:
    rights = rights_of("operator", "digits", "me")

    assert role_of(rights, "faces", "me") == "operator"
    assert membership_of(replace(rights, tags=frozenset()), "me") is None


@pytest.mark.parametrize("text", ["", "a,", "Gym-*", "a b", "a.b", "1a", "-*", "a" * 49, "a,b c", "amq"])
def test_what_is_no_federation_and_no_pattern_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be federations such as digits,gym-\*"):
        Scope.parse(text)
