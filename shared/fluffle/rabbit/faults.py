"""What pika and the socket raise, as Fluffle's errors.

RabbitMQ gives one code for many reasons: 530 for a limit that may pass and for a virtual host that does not
exist, 406 for a message that was held too long and for a quota. So its words are read, too; those here are
the ones of 3.10 and 4.0 (tests/contract/test_refusals.py).
"""

from __future__ import annotations

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
    QuotaReached,
    RequestRefused,
    StreamUnreadable,
    TopologyMismatch,
    TopologyMissing,
    Unroutable,
)
from fluffle.message_size import HOW_TO_RAISE
from fluffle.topology import OTHER_ARGUMENTS

# What pika raises when a connection cannot be opened or breaks. A handshake that takes too long is no
# AMQPError of its.
PIKA_ERRORS = (pika.exceptions.AMQPError, AMQPConnectorException, OSError)

# How pika quotes the end of a connection by RabbitMQ while it is being opened.
QUOTED_REFUSAL = re.compile(
    r"ClosedByBroker: \((?P<code>\d+)\) (?P<quote>['\"])(?P<said>.*)(?P=quote)", re.DOTALL
)
# Of a user, a virtual host or a node, and of a user's, a node's or a connection's channels.
LIMIT_ON_CONNECTIONS = re.compile(r"connection limit \(\d+\) is reached")
LIMIT_ON_CHANNELS = re.compile(r"number of channels opened .*(maximum allowed|channel_max)")
LIMIT_ON_OBJECTS = re.compile(r"\b(queue|exchange) limit in \S+ .*is reached")
# Since 3.8 it says its limit last.
TOO_LARGE = re.compile(r"message size \d+ is larger than .*?(\d+)$")
# Both end a channel on which something went wrong before; on a new one nothing is wrong.
HELD_TOO_LONG = re.compile(r"unknown delivery tag|delivery acknowledgement on channel \d+ timed out")
ACCESS_REFUSED, NOT_FOUND, RESOURCE_LOCKED, PRECONDITION_FAILED = 403, 404, 405, 406
NOT_ALLOWED, NOT_IMPLEMENTED = 530, 540


def translate_error(error: Exception, *, where: str, user: str, what: str) -> BrokerError:
    """Return what pika or the socket raised on an open connection as the error that says what to do.

    `where` and `user` describe the connection, `what` the thing that was asked for.
    """
    code = getattr(error, "reply_code", None)
    said = getattr(error, "reply_text", None) or root_cause(error)
    lost = ConnectionLost(f"the connection to RabbitMQ at {where} is lost: {said}")
    if isinstance(error, pika.exceptions.NoFreeChannels):
        return _limit(where, "the connection's channels are all in use: channel_max is too small")
    if isinstance(error, pika.exceptions.NackError):
        return QueueFull(
            f"RabbitMQ refused a message for {what}: its queue is full, or lies on nodes that are down"
        )
    if isinstance(error, pika.exceptions.UnroutableError):
        return Unroutable(f"no queue is bound to {what}: run `fluffle broker setup`")
    if code == ACCESS_REFUSED:
        return AccessRefused(f"the user {user!r} has no right to {what}: {said}")
    # The same code is given for a queue that is there, but on nodes of a cluster that are down.
    if code == NOT_FOUND and "NOT_FOUND - no " in said:
        return TopologyMissing(f"{what} is not on RabbitMQ at {where} ({said})")
    if code == RESOURCE_LOCKED:
        return _mismatch(what, said)
    if code == PRECONDITION_FAILED:
        return lost if HELD_TOO_LONG.search(said) else _failed_precondition(said, where, user, what)
    if code == NOT_ALLOWED and LIMIT_ON_CHANNELS.search(said):
        return _limit(where, said)
    return _refused(said, where, what) if code in {NOT_ALLOWED, NOT_IMPLEMENTED} else lost


def translate_refusal(error: Exception, *, where: str, user: str) -> BrokerError:
    """Return what pika or the socket raised while a connection was being opened, likewise."""
    quoted = QUOTED_REFUSAL.search(str(error))
    if quoted is None:
        # pika takes a broker that ended in the middle of a login for one that refused it.
        return ConnectionLost(
            f"no RabbitMQ answers at {where}: start it, or correct FLUFFLE_BROKER_URL ({root_cause(error)})"
        )
    code, said = int(quoted["code"]), quoted["said"]
    if LIMIT_ON_CONNECTIONS.search(said):
        return _limit(where, said)
    if code == ACCESS_REFUSED:
        return LoginRefused(f"RabbitMQ at {where} refused the user {user!r} or its password ({said})")
    if code == NOT_ALLOWED:
        return LoginRefused(
            f"RabbitMQ at {where} refused the user {user!r}: the virtual host is missing, or the user has no "
            f"right to it ({said})"
        )
    return ConnectionLost(f"RabbitMQ at {where} accepts no connection for now ({said})")


def was_login_refused(error: Exception) -> bool:
    """Tell whether RabbitMQ refused user and password, or certificate; while opening a connection."""
    quoted = QUOTED_REFUSAL.search(str(error))
    return quoted is not None and int(quoted["code"]) == ACCESS_REFUSED


def root_cause(error: Exception) -> str:
    """Return what is at the bottom of an exception, in words; pika wraps one in the other."""
    inner = [each for each in (*error.args, getattr(error, "exception", None)) if isinstance(each, Exception)]
    if inner:
        return root_cause(inner[0])
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(getattr(error, "reply_text", "")) or str(error) or type(error).__name__


def _limit(where: str, said: str) -> LimitReached:
    return LimitReached(
        f"RabbitMQ at {where} has reached a limit: raise it, or end what else is connected ({said})"
    )


def _failed_precondition(said: str, where: str, user: str, what: str) -> BrokerError:
    """Tell the reasons apart for which one code is given, and which last."""
    if "user_id" in said:
        return AccessRefused(
            f"the user {user!r} may not speak for another: call this part {user!r} (--name), log in as the "
            f"user of its name, or give this user the tag impersonator ({said})"
        )
    if "replica" in said:
        return StreamUnreadable(f"{what} cannot be read on RabbitMQ at {where}: {said}")
    if sizes := TOO_LARGE.search(said):
        return MessageTooLarge(
            f"RabbitMQ at {where} takes no message as large as this ({said}): {HOW_TO_RAISE}", int(sizes[1])
        )
    if "inequivalent" in said:
        return _mismatch(what, said)
    if LIMIT_ON_OBJECTS.search(said):
        return QuotaReached(
            f"RabbitMQ at {where} makes no more of them, and {what} is not there: raise the limit, or delete "
            f"what is not needed ({said})"
        )
    return _refused(said, where, what)


def _refused(said: str, where: str, what: str) -> RequestRefused:
    about = f" about {what}" if what else ""
    return RequestRefused(f"RabbitMQ at {where} refused a request{about}, and would again: {said}")


def _mismatch(what: str, said: str) -> TopologyMismatch:
    return TopologyMismatch(f"{what} {OTHER_ARGUMENTS} ({said})")
