"""Which policies act on a federation's queues, and what they would break there."""

import re
import shlex
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluffle.errors import RequestRefused
from fluffle.policies import BrokerPolicy, acting_on, clear_command, narrow_command
from fluffle.policy_faults import UNKNOWN_SIZES, PolicyFault, Sizes, faults_of, require_none_fatal
from fluffle.topology import MIB, topology_of

TOPOLOGY = topology_of("ward-7")
PATTERNS = ["", ".*", "^", "^ward", "rejected$", "^ward-7\\.head$|other", "a", "^(amq|lab)\\."]
NAMES = st.sampled_from(
    [queue.name for queue in TOPOLOGY.queues]
    + ["ward-77.head", "ward-7", "lab.head", "amq.gen-x", "other", "a", "", "xward-7.head", "b.rejected"]
)


def a_policy(key: str = "message-ttl", value: object = 5000, *, pattern: str = ".*") -> BrokerPolicy:
    return BrokerPolicy("ttl", pattern, {key: value})


def faults(*policies: BrokerPolicy, sizes: Sizes = UNKNOWN_SIZES) -> tuple[PolicyFault, ...]:
    return faults_of(policies, TOPOLOGY, virtual_host="/", sizes=sizes)


def short(*policies: BrokerPolicy, sizes: Sizes = UNKNOWN_SIZES) -> set[str]:
    """Return the queues with a fault, the fatal ones with a mark."""
    return {
        fault.queue.removeprefix("ward-7.") + ("!" if fault.is_fatal else "")
        for fault in faults(*policies, sizes=sizes)
    }


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("message-ttl", 5000, {"updates!", "head!", "rejected"}),
        ("expires", 1_800_000, {"updates!", "head!", "rejected!"}),
        ("max-length", 3, {"head!", "rejected"}),
        ("max-length", 1000, {"rejected"}),
        ("max-length-bytes", 2 * 64 * MIB - 1, {"rejected", "models!", "best", "records"}),
        ("max-length-bytes", 2 * 64 * MIB, {"rejected", "records"}),
        ("max-length-bytes", 1024 * MIB, set()),
        ("overflow", "drop-head", {"updates!"}),
        ("overflow", "reject-publish", {"head!", "rejected"}),
        ("overflow", "reject-publish-dlx", {"updates!", "head!", "rejected"}),
        ("delivery-limit", 5, {"updates", "head!", "rejected"}),
        ("delivery-limit", 20, {"head!", "rejected"}),
        ("delivery-limit", 1000, set()),
        ("delivery-limit", -1, set()),
        ("max-age", "59m", {"models!", "best", "records"}),
        ("max-age", "7D", set()),
        ("consumer-timeout", 60_000, {"updates"}),
        ("dead-letter-exchange", "trash", set()),
        ("dead-letter-strategy", "at-most-once", set()),
        ("alternate-exchange", "trash", set()),
        ("queue-mode", "lazy", set()),
    ],
)
def test_each_policy_key_breaks_exactly_these_queues(key: str, value: object, expected: set[str]) -> None:
    assert short(a_policy(key, value)) == expected
    assert short(replace(a_policy(key, value), is_operator=True)) == expected


def test_expired_updates_are_lost_only_if_refused_messages_expire_too() -> None:
    assert short(a_policy(pattern="updates$")) == {"updates"}
    assert short(a_policy(pattern="rejected$")) == {"rejected"}
    assert short(a_policy(pattern="(updates|rejected)$")) == {"updates!", "rejected"}


def test_limits_in_bytes_are_compared_with_the_size_of_the_model() -> None:
    limit = a_policy("max-length-bytes", 300 * MIB)

    assert "head!" not in short(limit)
    assert "head!" not in short(limit, sizes=Sizes(50 * MIB, 100 * MIB))
    assert "head!" in short(limit, sizes=Sizes(51 * MIB, 100 * MIB))
    assert "models!" not in short(limit, sizes=Sizes(86 * MIB))
    assert "models!" in short(limit, sizes=Sizes(87 * MIB))


def test_the_lower_limit_and_the_operators_word_win() -> None:
    strict = replace(a_policy("max-length", 1), is_operator=True)
    assert "head!" in short(a_policy("max-length", 100), strict)
    assert "head!" in short(a_policy("max-length", 1), replace(strict, definition={"max-length": 100}))
    word = replace(a_policy("overflow", "reject-publish", pattern="updates$"), is_operator=True)
    assert "updates!" not in short(a_policy("overflow", "drop-head"), word)


def test_only_the_policy_of_the_highest_priority_acts() -> None:
    harmless = replace(a_policy("max-length-bytes", 2048 * MIB, pattern=r"^ward-7\."), priority=5)

    assert short(a_policy(), harmless) == set()
    assert short(a_policy(), replace(harmless, priority=-1)) == {"updates!", "head!", "rejected"}
    # What RabbitMQ does not apply to quorum queues leaves the next one in force.
    assert short(a_policy(), replace(harmless, definition={"max-age": "7D"})) != set()


def test_a_policy_for_exchanges_or_other_queue_types_does_not_act() -> None:
    for applies_to in ("exchanges", "classic_queues", "streams"):
        assert short(replace(a_policy(), applies_to=applies_to)) == set()
    for applies_to in ("queues", "quorum_queues"):
        assert "head!" in short(replace(a_policy(), applies_to=applies_to))


def test_a_policy_that_may_act_is_reported_and_not_refused() -> None:
    unreadable = [a_policy(pattern="^[[:lower:]-]+7"), a_policy(pattern="(?&word)")]
    rivals = [a_policy(), replace(a_policy(), name="another")]
    for policies in ([unreadable[0]], [unreadable[1]], rivals):
        found = faults(*policies)

        assert found
        assert not any(fault.is_certain for fault in found)
        assert "may act on the queue ward-7.head" in "".join(map(str, found))
        require_none_fatal(found)


def test_a_refusal_names_the_policy_the_key_its_value_the_queue_and_what_to_do() -> None:
    policy = replace(a_policy(), name="short lived", applies_to="queues", is_operator=True)

    with pytest.raises(RequestRefused) as raised:
        require_none_fatal(faults(policy))

    said = str(raised.value)
    assert "operator policy 'short lived' (pattern '.*') acts on the queue ward-7.updates" in said
    assert "with message-ttl 5000: updates that wait for 5000 ms are lost" in said
    assert clear_command(policy, "/") in said
    assert narrow_command(policy, TOPOLOGY, "/") in said
    assert "1 more" in said
    assert "\n" not in said


PUBLISHED = {
    # Policies as operators have published them: definitions of products, issues, and RabbitMQ's own guides.
    "a time to live for everything": (
        BrokerPolicy("ttl", ".*", {"message-ttl": 1_500_000}),
        {"updates!", "head!", "rejected"},
    ),
    "mirrors of classic queues": (
        BrokerPolicy("ha-all", ".*", {"ha-mode": "all", "message-ttl": 60_000}),
        set(),
    ),
    "retention of streams": (
        BrokerPolicy(
            "retention",
            "^.*$",
            {"max-length-bytes": 536_870_912, "stream-max-segment-size-bytes": 52_428_800},
            applies_to="streams",
        ),
        set(),
    ),
    "a week of streams": (BrokerPolicy("week", ".*", {"max-age": "7D"}), set()),
    "dead letters to one place": (
        BrokerPolicy("dlx", ".*", {"dead-letter-exchange": "dlx"}, "queues"),
        set(),
    ),
    "queues of clients that are gone": (
        BrokerPolicy("expiry", "", {"expires": 1_800_000}, "queues"),
        {"updates!", "head!", "rejected!"},
    ),
    "poison messages": (
        BrokerPolicy("poison", ".*", {"delivery-limit": 20}, "quorum_queues"),
        {"head!", "rejected"},
    ),
    "an operator's limits": (
        BrokerPolicy("limits", ".*", {"max-length": 100_000, "max-length-bytes": 10**9}, is_operator=True),
        {"rejected"},
    ),
    "RabbitMQ's own queues": (BrokerPolicy("amq", "^amq\\.", {"expires": 1000}), set()),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_common_policies_of_operators_are_judged_correctly(name: str) -> None:
    policy, expected = PUBLISHED[name]

    assert short(policy, sizes=Sizes(100 * MIB)) == expected


@given(pattern=st.sampled_from(PATTERNS), name=NAMES)
def test_a_narrowed_policy_acts_everywhere_but_on_the_federations_queues(pattern: str, name: str) -> None:
    policy = replace(a_policy(pattern=pattern), name="it's a policy", priority=3)

    words = shlex.split(narrow_command(policy, TOPOLOGY, "my host"))

    assert words[:5] == ["rabbitmqctl", "set_policy", "-p", "my host", "it's a policy"]
    assert words[6:] == ['{"message-ttl": 5000}', "--priority", "3", "--apply-to", "all"]
    acted = re.search(pattern, name) is not None
    assert (re.search(words[5], name) is not None) == (acted and not name.startswith("ward-7."))


@given(
    st.lists(
        st.builds(
            BrokerPolicy,
            name=st.sampled_from("abc"),
            pattern=st.sampled_from([*PATTERNS, "(", "[[:alpha:]]"]),
            definition=st.sampled_from([{"max-length": 1}, {"max-age": "1h"}, {"queue-mode": "lazy"}]),
            applies_to=st.sampled_from(["all", "queues", "exchanges", "streams"]),
            priority=st.integers(0, 2),
            is_operator=st.booleans(),
        )
    )
)
def test_at_most_one_policy_and_one_operator_policy_certainly_act(policies: list[BrokerPolicy]) -> None:
    for queue in TOPOLOGY.queues:
        acting = acting_on(policies, queue)

        for is_operator in (False, True):
            of_kind = [(policy, sure) for policy, sure in acting if policy.is_operator == is_operator]
            certain = [policy for policy, sure in of_kind if sure]
            assert len(certain) in (0, 1)
            assert not certain or len(of_kind) == 1
        assert all(policy.matches(queue) is not False for policy, _ in acting)
