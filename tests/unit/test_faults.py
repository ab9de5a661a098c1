"""RabbitMQ's words, as 3.10 and 4.0 say them, and the error that each becomes."""

from collections.abc import Mapping

import pika.exceptions
import pytest
from pika.adapters.utils.connection_workflow import AMQPConnectorStackTimeout

from fluffle.errors import (
    AccessRefused,
    BrokerError,
    ConnectionLost,
    LimitReached,
    LoginRefused,
    MessageTooLarge,
    QueueFull,
    RequestRefused,
    StreamUnreadable,
    TopologyMissing,
    Unroutable,
)
from fluffle.rabbit.faults import translate_error, translate_refusal

# The code, and RabbitMQ's words.
WHILE_OPENING: Mapping[type[BrokerError], tuple[str, ...]] = {
    LimitReached: (
        "530 NOT_ALLOWED - connection refused for user 'u': user connection limit (1) is reached",
        "530 NOT_ALLOWED - access to vhost '/' refused for user 'u': connection limit (0) is reached",
        "530 NOT_ALLOWED - connection refused: node connection limit (2) is reached",
    ),
    ConnectionLost: (
        "541 INTERNAL_ERROR - access to vhost 'v' refused for user 'u': vhost 'v' is down",
        "320 CONNECTION_FORCED - broker forced connection closure with reason 'shutdown'",
    ),
    LoginRefused: (
        "530 NOT_ALLOWED - vhost nowhere not found",
        "530 NOT_ALLOWED - access to vhost '/' refused for user 'u'",
        "403 ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN.",
    ),
}
WHEN_OPEN: Mapping[type[BrokerError], tuple[str, ...]] = {
    AccessRefused: (
        "403 ACCESS_REFUSED - access to exchange 'e' in vhost '/' refused for user 'u'",
        "406 PRECONDITION_FAILED - user_id property set to 'a' but authenticated user was 'u'",
    ),
    TopologyMissing: ("404 NOT_FOUND - no queue 'q' in vhost '/'",),
    RequestRefused: (
        "405 RESOURCE_LOCKED - cannot obtain exclusive access to locked queue 'q' in vhost '/'.",
        "406 PRECONDITION_FAILED - inequivalent arg 'x-max-length' for queue 'q' in vhost '/'",
        "406 PRECONDITION_FAILED - cannot declare queue 'q': queue limit in vhost '/' (1) is reached",
        "406 PRECONDITION_FAILED - cannot declare queue 'q': queue limit in cluster (9) is reached",
        "406 PRECONDITION_FAILED - invalid arg 'x-overflow' for queue 'q' in vhost '/': unknown",
        "530 NOT_ALLOWED - attempt to reuse consumer tag 't'",
        "540 NOT_IMPLEMENTED - basic.get not supported by stream queues",
    ),
    MessageTooLarge: ("406 PRECONDITION_FAILED - message size 9 is larger than configured max size 8",),
    StreamUnreadable: (
        "406 PRECONDITION_FAILED - stream q does not have a running replica on the local node",
    ),
    LimitReached: (
        "530 NOT_ALLOWED - number of channels opened for user 'u' has reached the maximum allowed user "
        "limit of (1)",
        "530 NOT_ALLOWED - number of channels opened on node 'n' has reached the maximum allowed limit of 1",
    ),
    ConnectionLost: (
        "404 NOT_FOUND - home node 'n' of durable queue 'q' in vhost '/' is down or inaccessible",
        "406 PRECONDITION_FAILED - unknown delivery tag 7",
        "406 PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out. Timeout",
        "541 INTERNAL_ERROR - ",
        "320 CONNECTION_FORCED - Node was put into maintenance mode",
        "320 CONNECTION_FORCED - user 'u' is deleted",
        "320 CONNECTION_FORCED - vhost 'v' is down",
    ),
}


def rows(table: Mapping[type[BrokerError], tuple[str, ...]]) -> list[tuple[type[BrokerError], int, str]]:
    """Return the kind, the code and the words of each line."""
    return [(kind, int(line[:3]), line[4:]) for kind, lines in table.items() for line in lines]


@pytest.mark.parametrize(("kind", "code", "said"), rows(WHILE_OPENING))
def test_a_connection_that_is_refused_waits_or_ends_by_what_rabbitmq_says(
    kind: type[BrokerError], code: int, said: str
) -> None:
    quoted = repr(pika.exceptions.ConnectionClosedByBroker(code, said))

    for guess in (pika.exceptions.ProbableAuthenticationError, pika.exceptions.ProbableAccessDeniedError):
        error = translate_refusal(guess(quoted), where="here", user="u")

        assert type(error) is kind
        assert said in str(error)


@pytest.mark.parametrize(
    "error",
    [
        pika.exceptions.ProbableAuthenticationError("StreamLostError: ('Transport indicated EOF',)"),
        pika.exceptions.IncompatibleProtocolError("StreamLostError: ('Transport indicated EOF',)"),
        AMQPConnectorStackTimeout("Timeout during AMQP handshake"),
        ConnectionRefusedError(111, "Connection refused"),
    ],
)
def test_a_connection_that_nobody_answers_may_be_answered_later(error: Exception) -> None:
    found = translate_refusal(error, where="here", user="u")

    assert type(found) is ConnectionLost
    assert str(found).startswith("no RabbitMQ answers at here")


@pytest.mark.parametrize(("kind", "code", "said"), rows(WHEN_OPEN))
def test_what_is_refused_on_an_open_connection_lasts_or_passes_by_what_rabbitmq_says(
    kind: type[BrokerError], code: int, said: str
) -> None:
    for closed in (pika.exceptions.ChannelClosedByBroker, pika.exceptions.ConnectionClosedByBroker):
        error = translate_error(closed(code, said), where="here", user="u", what="queue q")

        assert type(error) is kind
        assert said in str(error)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (pika.exceptions.NoFreeChannels(), LimitReached),
        (pika.exceptions.NackError([]), QueueFull),
        (pika.exceptions.UnroutableError([]), Unroutable),
        (pika.exceptions.StreamLostError("Transport indicated EOF"), ConnectionLost),
        (pika.exceptions.AMQPHeartbeatTimeout("No activity"), ConnectionLost),
        (BrokenPipeError(32, "Broken pipe"), ConnectionLost),
    ],
)
def test_what_has_no_code_says_what_to_do_by_its_kind(error: Exception, kind: type[BrokerError]) -> None:
    assert type(translate_error(error, where="here", user="u", what="queue q")) is kind
