"""What RabbitMQ's policies would break in a federation. Pure.

Whether a policy or the queue's own argument wins depends on the key. docs/reference/policies.md has the
table, and tests/contract/test_policy_facts.py compares it with real nodes.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fluffle.errors import RequestRefused
from fluffle.policies import BrokerPolicy, acting_on, clear_command, narrow_command
from fluffle.topology import (
    HEAD_LENGTH,
    RECORDS_MAX_BYTES,
    REJECTED_MAX_BYTES,
    STREAM_SEGMENT_BYTES,
    UPDATES_DELIVERY_LIMIT,
    Topology,
)

# Each takeover reads the head, and each `fluffle rejected` the refused messages: that counts as a delivery.
MOST_READS = 1000
# A leader holds updates for --buffer-timeout, which is 900 s at most; RabbitMQ looks once a minute.
LONGEST_HELD_MS = 1_000_000
# A federation may be idle for so long after a commit.
IDLE_S = 3600
SECONDS_OF_AGE = {"s": 1, "m": 60, "h": 3600, "D": 86_400, "M": 30 * 86_400, "Y": 365 * 86_400}


@dataclass(frozen=True, slots=True)
class PolicyFault:
    """What one key of a policy does to one queue of a federation.

    `is_fatal` if a confirmed message would be lost or no aggregator could work; otherwise a promise becomes
    weaker, which an operator may want. `is_certain` is False if only RabbitMQ knows whether this policy acts
    on the queue.
    """

    queue: str
    policy: BrokerPolicy
    key: str
    value: object
    effect: str
    remedy: str
    is_fatal: bool
    is_certain: bool = True

    def __str__(self) -> str:
        acts = "acts" if self.is_certain else "may act"
        policy = self.policy
        return (
            f"RabbitMQ's {policy.kind} {policy.name!r} (pattern {policy.pattern!r}) {acts} on the queue "
            f"{self.queue} with {self.key} {json.dumps(self.value)}: {self.effect}. {self.remedy}"
        )

    def as_json(self) -> dict[str, object]:
        """Return plain types under stable keys: the names of the fields, the policy's among them."""
        names = ("queue", "key", "value", "effect", "remedy", "is_fatal", "is_certain")
        policy = {"policy": self.policy.name, "kind": self.policy.kind, "pattern": self.policy.pattern}
        return policy | {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large the messages of a federation are, in bytes; 0 if not known yet."""

    version_bytes: int = 0
    moments_bytes: int = 0

    @property
    def head_needs(self) -> int:
        """Room for the newest version with its moments, and for the next one until it is confirmed."""
        return 2 * (self.version_bytes + self.moments_bytes)

    @property
    def stream_needs(self) -> int:
        """Room for two segments: RabbitMQ deletes whole segments, and begins a new one when one is full."""
        return 2 * (STREAM_SEGMENT_BYTES + self.version_bytes)


UNKNOWN_SIZES = Sizes()
IsHarmless = Callable[[object, Sizes], bool]


def _at_least(least: int) -> IsHarmless:
    # A negative value means no limit, and the queue's own argument stays in force.
    return lambda value, _: isinstance(value, int) and not 0 <= value < least


def _at_least_needed(needs: Callable[[Sizes], int]) -> IsHarmless:
    return lambda value, sizes: isinstance(value, int) and value >= max(1, needs(sizes))


def _is(wanted: str) -> IsHarmless:
    return lambda value, _: value == wanted


def _is_long_age(value: object, _: Sizes) -> bool:
    """Tell whether a stream's max-age, such as 7D, is longer than a federation is ever idle."""
    found = re.fullmatch(r"([0-9]+)([YMDhms])", value) if isinstance(value, str) else None
    return found is not None and int(found[1]) * SECONDS_OF_AGE[found[2]] >= IDLE_S


class _Rule(NamedTuple):
    """What a key does to a queue, unless its value is harmless."""

    effect: str
    is_fatal: bool
    is_harmless: IsHarmless = lambda _value, _sizes: False


_DELETED_UNUSED = "RabbitMQ deletes the queue and all its messages when nobody consumes it for {value} ms"
_DROPS_OLDEST = "RabbitMQ drops the oldest refused messages beyond that"
_DELETES_NEWEST = "RabbitMQ may delete the newest version, and workers that start then find none"
_DELETES_RECORDS = "RabbitMQ deletes old records, and `fluffle trace`, reports and the live page know less"
_LOST = "updates that wait for {value} ms are lost, because they expire in {rejected} too"

_UPDATES: Mapping[str, _Rule] = {
    "message-ttl": _Rule("an update that waits for {value} ms is moved to {rejected}", False),
    "expires": _Rule(_DELETED_UNUSED, True),
    "overflow": _Rule(
        "a full queue drops its oldest updates, where it should refuse new ones", True, _is("reject-publish")
    ),
    "delivery-limit": _Rule(
        "an update that was delivered more often is moved to {rejected}, and each takeover is a delivery",
        False,
        _at_least(UPDATES_DELIVERY_LIMIT),
    ),
    "consumer-timeout": _Rule(
        "RabbitMQ closes the channel of an aggregator that holds updates for {value} ms, and it must hold "
        "them until they are committed (--buffer-timeout)",
        False,
        _at_least(LONGEST_HELD_MS),
    ),
}
_HEAD: Mapping[str, _Rule] = {
    "message-ttl": _Rule(
        "the newest version, from which every aggregator starts, is gone after {value} ms", True
    ),
    "expires": _Rule(_DELETED_UNUSED, True),
    "max-length": _Rule(
        f"it has no room for the {HEAD_LENGTH} messages of a commit", True, _at_least(HEAD_LENGTH)
    ),
    "max-length-bytes": _Rule(
        "it has no room for two versions of the model, and RabbitMQ drops the newest one",
        True,
        _at_least_needed(lambda sizes: sizes.head_needs),
    ),
    "overflow": _Rule("a leader can publish no more versions once it is full", True, _is("drop-head")),
    "delivery-limit": _Rule(
        "RabbitMQ drops the newest version after {value} reads, and each takeover reads it",
        True,
        _at_least(MOST_READS),
    ),
}
_REJECTED: Mapping[str, _Rule] = {
    "message-ttl": _Rule("a refused message is gone after {value} ms", False),
    "expires": _Rule(_DELETED_UNUSED, True),
    "max-length": _Rule(_DROPS_OLDEST, False),
    "max-length-bytes": _Rule(_DROPS_OLDEST, False, _at_least(REJECTED_MAX_BYTES)),
    "overflow": _Rule(
        "once it is full, an aggregator cannot refuse messages, and waits", False, _is("drop-head")
    ),
    "delivery-limit": _Rule(
        "RabbitMQ drops a refused message after {value} runs of `fluffle rejected`",
        False,
        _at_least(MOST_READS),
    ),
}
_MODELS: Mapping[str, _Rule] = {
    "max-age": _Rule(_DELETES_NEWEST, True, _is_long_age),
    "max-length-bytes": _Rule(_DELETES_NEWEST, True, _at_least_needed(lambda sizes: sizes.stream_needs)),
}

_RECORDS: Mapping[str, _Rule] = {
    "max-age": _Rule(_DELETES_RECORDS, False, _is_long_age),
    "max-length-bytes": _Rule(_DELETES_RECORDS, False, _at_least(RECORDS_MAX_BYTES)),
}


def faults_of(
    policies: Iterable[BrokerPolicy], topology: Topology, *, virtual_host: str, sizes: Sizes = UNKNOWN_SIZES
) -> tuple[PolicyFault, ...]:
    """Return what a virtual host's policies would break in a federation, the fatal faults first."""
    known = tuple(policies)
    found = [
        (queue, policy, key, rule, is_certain)
        for queue, rules in (
            (topology.updates, _UPDATES),
            (topology.head, _HEAD),
            (topology.rejected, _REJECTED),
            (topology.models, _MODELS),
            (topology.records, _RECORDS),
        )
        for policy, key, rule, is_certain in _broken(acting_on(known, queue), rules, sizes)
    ]
    expiring = {queue.name for queue, _, key, *_ in found if key == "message-ttl"}
    are_lost = expiring >= {topology.updates.name, topology.rejected.name}
    faults = []
    for queue, policy, key, rule, is_certain in found:
        is_lost = are_lost and queue is topology.updates and key == "message-ttl"
        effect = _LOST if is_lost else rule.effect
        faults.append(
            PolicyFault(
                queue=queue.name,
                policy=policy,
                key=key,
                value=policy.definition[key],
                effect=effect.format(value=policy.definition[key], rejected=topology.rejected.name),
                remedy=f"Exclude the federation: {narrow_command(policy, topology, virtual_host)} - or "
                f"delete the policy: {clear_command(policy, virtual_host)}",
                is_fatal=is_lost or rule.is_fatal,
                is_certain=is_certain,
            )
        )
    return tuple(sorted(faults, key=lambda fault: not (fault.is_fatal and fault.is_certain)))


def require_none_fatal(faults: Sequence[PolicyFault]) -> None:
    """Raise RequestRefused, with the first fault, when there are faults that are fatal and certain."""
    fatal = [str(fault) for fault in faults if fault.is_fatal and fault.is_certain]
    if fatal:
        more = f" ({len(fatal) - 1} more of this kind: `fluffle status` lists them.)" if fatal[1:] else ""
        raise RequestRefused(fatal[0] + more)


def _broken(
    acting: tuple[tuple[BrokerPolicy, bool], ...], rules: Mapping[str, _Rule], sizes: Sizes
) -> Iterator[tuple[BrokerPolicy, str, _Rule, bool]]:
    for key, rule in rules.items():
        having = [(policy, sure) for policy, sure in acting if key in policy.definition]
        # RabbitMQ takes the lower of two limits: each is checked alone. Of two words it takes the operator's.
        if any(policy.is_operator and isinstance(policy.definition[key], str) for policy, _ in having):
            having = [(policy, sure) for policy, sure in having if policy.is_operator]
        for policy, is_certain in having:
            if not rule.is_harmless(policy.definition[key], sizes):
                yield policy, key, rule, is_certain
