"""The look at the broker's policies: what is refused at the start, and what is said when."""

import pytest

from fluffle.errors import AccessRefused, FluffleError, RequestRefused
from fluffle.policies import BrokerPolicy
from fluffle.policy_faults import Sizes
from fluffle.policy_watch import PolicyWatch
from fluffle.topology import topology_of

TTL = BrokerPolicy("ttl", ".*", {"message-ttl": 5000})
LIMIT = BrokerPolicy("limit", "head$", {"max-length-bytes": 1000})
ON_REFUSED = BrokerPolicy("a-day", "rejected$", {"message-ttl": 86_400_000})
LOSES, WEAKER = "a policy loses messages", "a policy weakens a promise"


class Broker:
    """Answers with what a test says."""

    def __init__(self, *policies: BrokerPolicy) -> None:
        self.answer: tuple[BrokerPolicy, ...] | FluffleError = policies

    def __call__(self) -> tuple[BrokerPolicy, ...]:
        if isinstance(self.answer, FluffleError):
            raise self.answer
        return self.answer


def watch(broker: Broker) -> PolicyWatch:
    return PolicyWatch(broker, topology_of("digits"), virtual_host="/")


def test_a_start_is_refused_if_a_policy_loses_messages_and_nothing_else_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(RequestRefused, match=r"'ttl'.*1 more of this kind"):
        watch(Broker(TTL)).require_safe_start()

    assert caplog.text == ""


def test_a_policy_that_comes_later_causes_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    broker = Broker()
    policies = watch(broker)
    policies.require_safe_start()

    broker.answer = (TTL,)
    for _ in range(3):
        policies.look()
    policies.require_safe_start()
    policies.require_safe(Sizes(1000))

    assert caplog.text.count(LOSES) == 2
    assert caplog.text.count(WEAKER) == 1


def test_a_log_line_says_when_the_last_harmful_policy_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    broker = Broker(ON_REFUSED)
    policies = watch(broker)
    with caplog.at_level("INFO"):
        policies.require_safe_start()
        broker.answer = ()
        policies.look()
        policies.look()

    assert caplog.text.count(WEAKER) == 1
    assert caplog.text.count("no policy of RabbitMQ loses messages") == 1


def test_a_limit_that_is_too_small_is_refused_as_soon_as_the_models_size_is_known() -> None:
    policies = watch(Broker(LIMIT))
    policies.require_safe_start()

    policies.require_safe(Sizes(500))
    with pytest.raises(RequestRefused, match="max-length-bytes 1000"):
        policies.require_safe(Sizes(501))


def test_without_the_right_to_read_policies_one_line_is_logged_and_nothing_is_refused(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = Broker()
    broker.answer = AccessRefused("not this user")
    policies = watch(broker)

    with caplog.at_level("INFO"):
        policies.require_safe_start()
        policies.look()
        policies.require_safe(Sizes(10**9, 10**9))

    assert policies.faults is None
    assert caplog.text.count("RabbitMQ's policies cannot be checked") == 1
    assert "WARNING" not in caplog.text


def test_known_policies_are_kept_while_there_is_no_answer() -> None:
    broker = Broker(ON_REFUSED)
    policies = watch(broker)
    policies.look()
    broker.answer = AccessRefused("the plugin is being restarted")

    policies.look()

    assert [fault.policy for fault in policies.faults or ()] == [ON_REFUSED]
