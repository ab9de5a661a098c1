"""Translate the exceptions of pika and of the socket into Fluffle's errors.

RabbitMQ has one code for many reasons: 530 for a limit that may pass and for a virtual host that does not
exist, 406 for a message that was unacked for too long and for a quota. So its messages are matched, too, as
RabbitMQ 3.10 and 4.0 write them (tests/contract/test_refusals.py).
"""

import re

import pika.exceptions
from pika.adapters.utils.connection_workflow import AMQPConnectorException

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
from fluffle.message_size import HOW_TO_RAISE
from fluffle.topology import OTHER_ARGUMENTS

# What pika raises when a connection cannot be opened or breaks. A handshake that takes too long raises an
# AMQPConnectorException, which is no AMQPError.
PIKA_ERRORS = (pika.exceptions.AMQPError, AMQPConnectorException, OSError)

# How pika quotes RabbitMQ's reason for closing a connection that is being opened.
QUOTED_REFUSAL = re.compile(
    r"ClosedByBroker: \((?P<code>\d+)\) (?P<quote>['\"])(?P<reason>.*)(?P=quote)", re.DOTALL
)
# Limits of a user, a virtual host or a node; limits on the channels of a user, a node or a connection.
LIMIT_ON_CONNECTIONS = re.compile(r"connection limit \(\d+\) is reached")
LIMIT_ON_CHANNELS = re.compile(r"number of channels opened .*(maximum allowed|channel_max)")
LIMIT_ON_OBJECTS = re.compile(r"\b(queue|exchange) limit in \S+ .*is reached")
# The limit stands at the end, since RabbitMQ 3.8.
TOO_LARGE = re.compile(r"message size \d+ is larger than .*?(\d+)$")
# Each of these closes one channel; a new connection works again.
HELD_TOO_LONG = re.compile(r"unknown delivery tag|delivery acknowledgement on channel \d+ timed out")
ACCESS_REFUSED, NOT_FOUND, RESOURCE_LOCKED, PRECONDITION_FAILED = 403, 404, 405, 406
NOT_ALLOWED, NOT_IMPLEMENTED = 530, 540


def translate_error(error: Exception, *, where: str, user: str, what: str) -> BrokerError:
    """Return Fluffle's error for an exception of pika or the socket on an open connection.

    `where` and `user` describe the connection, and `what` is the thing that was requested.
    """
    code = getattr(error, "reply_code", None)
    reason = getattr(error, "reply_text", None) or root_cause(error)
    lost = ConnectionLost(f"the connection to RabbitMQ at {where} is lost: {reason}")
    if isinstance(error, pika.exceptions.NoFreeChannels):
        return _limit(where, "the connection's channels are all in use: channel_max is too small")
    if isinstance(error, pika.exceptions.NackError):
        return QueueFull(
            f"RabbitMQ refused a message for {what}: its queue is full, or lies on nodes that are down"
        )
    if isinstance(error, pika.exceptions.UnroutableError):
        return Unroutable(f"no queue is bound to {what}: run `fluffle broker setup`")
    if code == ACCESS_REFUSED:
        return AccessRefused(f"the user {user!r} has no right to {what}: {reason}")
    # RabbitMQ has the same code for a queue whose nodes are down.
    if code == NOT_FOUND and "NOT_FOUND - no " in reason:
        return TopologyMissing(f"{what} is not on RabbitMQ at {where} ({reason})")
    if code == RESOURCE_LOCKED:
        return _mismatch(what, reason)
    if code == PRECONDITION_FAILED:
        return lost if HELD_TOO_LONG.search(reason) else _failed_precondition(reason, where, user, what)
    if code == NOT_ALLOWED and LIMIT_ON_CHANNELS.search(reason):
        return _limit(where, reason)
    return _refused(reason, where, what) if code in {NOT_ALLOWED, NOT_IMPLEMENTED} else lost


def translate_refusal(error: Exception, *, where: str, user: str) -> BrokerError:
    """Return Fluffle's error for an exception of pika or the socket while a connection is being opened."""
    quoted = QUOTED_REFUSAL.search(str(error))
    if quoted is None:
        # pika reports a broker that stopped during the login as one that refused it.
        return ConnectionLost(
            f"no RabbitMQ answers at {where}: start it, or correct FLUFFLE_BROKER_URL ({root_cause(error)})"
        )
    code, reason = int(quoted["code"]), quoted["reason"]
    if LIMIT_ON_CONNECTIONS.search(reason):
        return _limit(where, reason)
    if code == ACCESS_REFUSED:
        return LoginRefused(f"RabbitMQ at {where} refused the user {user!r} or its password ({reason})")
    if code == NOT_ALLOWED:
        return LoginRefused(
            f"RabbitMQ at {where} refused the user {user!r}: the virtual host is missing, or the user has no "
            f"right to it ({reason})"
        )
    return ConnectionLost(f"RabbitMQ at {where} accepts no connection for now ({reason})")


def was_login_refused(error: Exception) -> bool:
    """Tell whether RabbitMQ refused the login of a connection that is being opened."""
    quoted = QUOTED_REFUSAL.search(str(error))
    return quoted is not None and int(quoted["code"]) == ACCESS_REFUSED


def root_cause(error: Exception) -> str:
    """Return the message of the innermost exception; pika wraps one in another."""
    inner = [each for each in (*error.args, getattr(error, "exception", None)) if isinstance(each, Exception)]
    if inner:
        return root_cause(inner[0])
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(getattr(error, "reply_text", "")) or str(error) or type(error).__name__


def _limit(where: str, reason: str) -> LimitReached:
    return LimitReached(
        f"RabbitMQ at {where} has reached a limit: raise it, or end what else is connected ({reason})"
    )


def _failed_precondition(reason: str, where: str, user: str, what: str) -> BrokerError:
    """Tell apart the reasons that have the code PRECONDITION_FAILED and that do not pass."""
    if "user_id" in reason:
        return AccessRefused(
            f"the user {user!r} may not speak for another: call this part {user!r} (--name), log in as the "
            f"user of its name, or give this user the tag impersonator ({reason})"
        )
    if "replica" in reason:
        return StreamUnreadable(f"{what} cannot be read on RabbitMQ at {where}: {reason}")
    if sizes := TOO_LARGE.search(reason):
        return MessageTooLarge(
            f"RabbitMQ at {where} takes no message as large as this ({reason}): {HOW_TO_RAISE}", int(sizes[1])
        )
    if "inequivalent" in reason:
        return _mismatch(what, reason)
    if LIMIT_ON_OBJECTS.search(reason):
        return RequestRefused(
            f"RabbitMQ at {where} cannot make {what}, since a limit is reached: raise it, or delete what is "
            f"not needed ({reason})"
        )
    return _refused(reason, where, what)


def _refused(reason: str, where: str, what: str) -> RequestRefused:
    about = f" about {what}" if what else ""
    return RequestRefused(f"RabbitMQ at {where} refused a request{about}, which will not pass: {reason}")


def _mismatch(what: str, reason: str) -> RequestRefused:
    return RequestRefused(f"{what} {OTHER_ARGUMENTS} ({reason})")
