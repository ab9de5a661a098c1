"""What RabbitMQ's policies would break in a federation. Pure.

Whether a policy or the queue's own argument wins depends on the key. docs/reference/policies.md has the
table, and tests/contract/test_policy_facts.py compares it with real nodes.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
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
        policy = {"policy": self.policy.name, "kind": self.policy.kind, "pattern": self.policy.pattern}
        return asdict(self) | policy


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


def _is(wanted: str) -> IsHarmless:
    return lambda value, _: value == wanted


def _at_least(least: int = 1, needs: Callable[[Sizes], int] = lambda _: 0) -> IsHarmless:
    # A negative value means no limit, and the queue's own argument stays in force.
    return lambda value, sizes: isinstance(value, int) and not 0 <= value < max(least, needs(sizes))


def _is_long_age(value: object, _: Sizes) -> bool:
    """Tell whether a stream's max-age, such as 7D, is longer than a federation is ever idle."""
    found = re.fullmatch(r"([0-9]+)([YMDhms])", value) if isinstance(value, str) else None
    return found is not None and int(found[1]) * SECONDS_OF_AGE[found[2]] >= IDLE_S


class _Rule(NamedTuple):
    """What a key does to a queue, unless its value is harmless."""

    is_fatal: bool
    effect: str
    is_harmless: IsHarmless = lambda _value, _sizes: False


_FATAL, _WEAKER = True, False
_UNUSED = _Rule(_FATAL, "RabbitMQ deletes the queue and its messages when nobody consumes it for {value} ms")
_DROPS_OLDEST = "RabbitMQ drops the oldest refused messages beyond that"
_DELETES_NEWEST = "RabbitMQ may delete the newest version, and workers that start then find none"
_DELETES_BEST = "RabbitMQ may delete the best version, which only this stream has after a while"
_DELETES_RECORDS = "RabbitMQ deletes old records, and `fluffle trace`, reports and the live page know less"
# An update that expires is lost only if it expires in F.rejected too.
_TTL = _Rule(_WEAKER, "an update that waits for {value} ms is moved to {rejected}")
_TTL_TWICE = _Rule(_FATAL, "updates that wait for {value} ms are lost, because they expire in {rejected} too")
# By the queue's name in the federation, and then by the policy's key.
_RULES: Mapping[str, Mapping[str, _Rule]] = {
    "updates": {
        "message-ttl": _TTL,
        "expires": _UNUSED,
        "overflow": _Rule(_FATAL, "a full queue drops its oldest updates", _is("reject-publish")),
        "delivery-limit": _Rule(
            _WEAKER, "an update goes to {rejected} after {value} takeovers", _at_least(UPDATES_DELIVERY_LIMIT)
        ),
        "consumer-timeout": _Rule(
            _WEAKER,
            "RabbitMQ closes the channel of an aggregator that holds updates for {value} ms, and it holds "
            "them until they are committed (--buffer-timeout)",
            _at_least(LONGEST_HELD_MS),
        ),
    },
    "head": {
        "message-ttl": _Rule(_FATAL, "the newest version, where leaders start, is gone after {value} ms"),
        "expires": _UNUSED,
        "max-length": _Rule(_FATAL, "it has no room for all messages of a commit", _at_least(HEAD_LENGTH)),
        "max-length-bytes": _Rule(
            _FATAL,
            "it has no room for two versions of the model, and RabbitMQ drops the newest one",
            _at_least(needs=lambda sizes: sizes.head_needs),
        ),
        "overflow": _Rule(_FATAL, "a leader can publish no more versions once it is full", _is("drop-head")),
        "delivery-limit": _Rule(
            _FATAL, "RabbitMQ drops the newest version after {value} takeovers", _at_least(MOST_READS)
        ),
    },
    "rejected": {
        "message-ttl": _Rule(_WEAKER, "a refused message is gone after {value} ms"),
        "expires": _UNUSED,
        "max-length": _Rule(_WEAKER, _DROPS_OLDEST),
        "max-length-bytes": _Rule(_WEAKER, _DROPS_OLDEST, _at_least(REJECTED_MAX_BYTES)),
        "overflow": _Rule(
            _WEAKER, "once it is full, an aggregator cannot refuse messages, and waits", _is("drop-head")
        ),
        "delivery-limit": _Rule(
            _WEAKER, "a message is gone after {value} runs of `fluffle rejected`", _at_least(MOST_READS)
        ),
    },
    "models": {
        "max-age": _Rule(_FATAL, _DELETES_NEWEST, _is_long_age),
        "max-length-bytes": _Rule(_FATAL, _DELETES_NEWEST, _at_least(needs=lambda sizes: sizes.stream_needs)),
    },
    "best": {
        "max-age": _Rule(_WEAKER, _DELETES_BEST, _is_long_age),
        "max-length-bytes": _Rule(_WEAKER, _DELETES_BEST, _at_least(needs=lambda sizes: sizes.stream_needs)),
    },
    "records": {
        "max-age": _Rule(_WEAKER, _DELETES_RECORDS, _is_long_age),
        "max-length-bytes": _Rule(_WEAKER, _DELETES_RECORDS, _at_least(RECORDS_MAX_BYTES)),
    },
}


def faults_of(
    policies: Iterable[BrokerPolicy], topology: Topology, *, virtual_host: str, sizes: Sizes = UNKNOWN_SIZES
) -> tuple[PolicyFault, ...]:
    """Return what a virtual host's policies would break in a federation, the fatal faults first."""
    known, found = tuple(policies), []
    queues = {queue.name.removeprefix(f"{topology.federation}."): queue for queue in topology.queues}
    for name, rules in _RULES.items():
        acting = acting_on(known, queues[name])
        for policy, is_certain in acting:
            # RabbitMQ takes the lower of two limits, so each is checked, but the operator's of two words.
            stronger = [each.definition for each, _ in acting if each.is_operator and not policy.is_operator]
            for key, value in policy.definition.items():
                rule, is_beaten = rules.get(key), any(isinstance(each.get(key), str) for each in stronger)
                if rule and not is_beaten and not rule.is_harmless(value, sizes):
                    found.append((queues[name].name, policy, key, rule, is_certain))
    expire = {queue for queue, _, key, *_ in found if key == "message-ttl"}
    faults = []
    for queue, policy, key, each, is_certain in found:
        rule = _TTL_TWICE if each is _TTL and topology.rejected.name in expire else each
        value = policy.definition[key]
        effect = rule.effect.format(value=value, rejected=topology.rejected.name)
        remedy = (
            f"Exclude the federation: {narrow_command(policy, topology, virtual_host)} - or delete the "
            f"policy: {clear_command(policy, virtual_host)}"
        )
        faults.append(PolicyFault(queue, policy, key, value, effect, remedy, rule.is_fatal, is_certain))
    return tuple(sorted(faults, key=lambda fault: not (fault.is_fatal and fault.is_certain)))


def require_none_fatal(faults: Sequence[PolicyFault]) -> None:
    """Raise RequestRefused, with the first fault, when there are faults that are fatal and certain."""
    fatal = [str(fault) for fault in faults if fault.is_fatal and fault.is_certain]
    if fatal:
        more = f" ({len(fatal) - 1} more of this kind: `fluffle status` lists them.)" if fatal[1:] else ""
        raise RequestRefused(fatal[0] + more)
