"""RabbitMQ's policies, and which of them act on a queue. Pure.

A policy sets options of every queue whose name matches its pattern. On each queue at most one policy and one
operator policy act: those with the highest priority among all that match the queue and have no key that its
type does not know. tests/contract/test_policy_choice.py compares this with real nodes.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from shlex import quote

from fluffle.topology import Queue, Topology

# The values of apply-to that include a queue, by its type. RabbitMQ before 3.12 knows the first two only.
APPLIES_TO = {"quorum": ("all", "queues", "quorum_queues"), "stream": ("all", "queues", "streams")}
# A policy with one of these keys does not act on a queue of that type at all, not even with its other keys.
ON_NO_QUEUE = frozenset(
    {"queue-mode", "queue-master-locator"}
    | {"ha-mode", "ha-params", "ha-sync-mode", "ha-sync-batch-size"}
    | {"ha-promote-on-shutdown", "ha-promote-on-failure"}
)
NOT_ON: Mapping[str, frozenset[str]] = {
    "quorum": ON_NO_QUEUE | {"max-age", "stream-max-segment-size-bytes", "initial-cluster-size"},
    "stream": ON_NO_QUEUE
    | {"message-ttl", "expires", "max-length", "overflow", "delivery-limit", "target-group-size"}
    | {"dead-letter-exchange", "dead-letter-routing-key", "dead-letter-strategy"}
    | {"max-in-memory-length", "max-in-memory-bytes"},
}
# RabbitMQ reads [[:alpha:]] in another way than Python.
POSIX_CLASS = re.compile(r"\[:\^?[a-z]+:\]")


@dataclass(frozen=True, slots=True)
class BrokerPolicy:
    """One policy, or operator policy, of a virtual host."""

    name: str
    pattern: str
    definition: Mapping[str, object]
    applies_to: str = "all"
    priority: int = 0
    is_operator: bool = False

    @property
    def kind(self) -> str:
        """RabbitMQ's word for it."""
        return "operator policy" if self.is_operator else "policy"

    @property
    def noun(self) -> str:
        """The same as rabbitmqctl writes it."""
        return self.kind.replace(" ", "_")

    def matches(self, queue: Queue) -> bool | None:
        """Tell whether it matches a queue; None if Python cannot read its pattern as RabbitMQ does."""
        kind = str(queue.arguments["x-queue-type"])
        if self.applies_to not in APPLIES_TO[kind] or NOT_ON[kind] & self.definition.keys():
            return False
        if POSIX_CLASS.search(self.pattern):
            return None
        try:
            return re.search(self.pattern, queue.name) is not None
        except re.error:
            return None


def acting_on(policies: Iterable[BrokerPolicy], queue: Queue) -> tuple[tuple[BrokerPolicy, bool], ...]:
    """Return the policies that act on a queue, each with True, and those that may act on it, with False.

    If several have the highest priority, RabbitMQ chooses one of them, and does not say which.
    """
    matching = [(policy, matches) for policy in policies if (matches := policy.matches(queue)) is not False]
    acting: list[tuple[BrokerPolicy, bool]] = []
    for is_operator in (False, True):
        rivals = [(policy, sure) for policy, sure in matching if policy.is_operator == is_operator]
        least = max((policy.priority for policy, sure in rivals if sure), default=-math.inf)
        left = [(policy, sure) for policy, sure in rivals if policy.priority >= least]
        acting += [(policy, sure is True and len(left) == 1) for policy, sure in left]
    return tuple(acting)


def narrow_command(policy: BrokerPolicy, topology: Topology, virtual_host: str) -> str:
    """Return the command that excludes a federation's queues from a policy."""
    others = rf"^(?!{re.escape(topology.federation)}\.)"
    if policy.pattern not in ("", ".*", "^", "^.*", "^.*$", ".*$"):
        others += f".*(?:{policy.pattern})"
    definition = json.dumps(dict(policy.definition))
    return (
        f"rabbitmqctl set_{policy.noun} -p {quote(virtual_host)} {quote(policy.name)} {quote(others)} "
        f"{quote(definition)} --priority {policy.priority} --apply-to {policy.applies_to}"
    )


def clear_command(policy: BrokerPolicy, virtual_host: str) -> str:
    """Return the command that deletes a policy."""
    return f"rabbitmqctl clear_{policy.noun} -p {quote(virtual_host)} {quote(policy.name)}"
