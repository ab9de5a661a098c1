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
LIMIT = "RabbitMQ at {where} has reached a limit: raise it, or end what else is connected ({reason})"
LOST = "the connection to RabbitMQ at {where} is lost: {reason}"
REFUSED = "RabbitMQ at {where} refused a request about {what}, which will not pass: {reason}"
MISMATCH = "{what} " + OTHER_ARGUMENTS + " ({reason})"
NO_LOGIN = "RabbitMQ at {where} refused the user {user!r} or its password ({reason})"
NO_VHOST = (
    "RabbitMQ at {where} refused the user {user!r}: the virtual host is missing, or the user has no right to "
    "it ({reason})"
)
NOT_NOW = "RabbitMQ at {where} accepts no connection for now ({reason})"
NO_RIGHT = "the user {user!r} has no right to {what}: {reason}"
OTHER_USER = (
    "the user {user!r} may not speak for another: call this part {user!r} (--name), log in as the user of "
    "its name, or give this user the tag impersonator ({reason})"
)
MISSING = "{what} is not on RabbitMQ at {where} ({reason})"
UNREADABLE = "{what} cannot be read on RabbitMQ at {where}: {reason}"
QUOTA = (
    "RabbitMQ at {where} cannot make {what}, since a limit is reached: raise it, or delete what is not "
    "needed ({reason})"
)
HELD_TOO_LONG = r"unknown delivery tag|delivery acknowledgement on channel \d+ timed out"
TOO_MANY_CHANNELS = r"number of channels opened .*(maximum allowed|channel_max)"

# A code of RabbitMQ's (None: any), a pattern of its reason, our error and its text. The first match counts.
Rule = tuple[int | None, str, type[BrokerError], str]
OPENING: tuple[Rule, ...] = (
    # A limit of a user, a virtual host or a node.
    (None, r"connection limit \(\d+\) is reached", LimitReached, LIMIT),
    (403, "", LoginRefused, NO_LOGIN),
    (530, "", LoginRefused, NO_VHOST),
    (None, "", ConnectionLost, NOT_NOW),
)
OPEN: tuple[Rule, ...] = (
    (403, "", AccessRefused, NO_RIGHT),
    # The same code, with other words, is for a queue whose nodes are down.
    (404, "NOT_FOUND - no ", TopologyMissing, MISSING),
    (405, "", RequestRefused, MISMATCH),
    # This closes one channel; a new connection works again.
    (406, HELD_TOO_LONG, ConnectionLost, LOST),
    (406, "user_id", AccessRefused, OTHER_USER),
    (406, "replica", StreamUnreadable, UNREADABLE),
    (406, "inequivalent", RequestRefused, MISMATCH),
    (406, r"\b(queue|exchange) limit in \S+ .*is reached", RequestRefused, QUOTA),
    (406, "", RequestRefused, REFUSED),
    # A limit of a user, a node or a connection.
    (530, TOO_MANY_CHANNELS, LimitReached, LIMIT),
    (530, "", RequestRefused, REFUSED),
    (540, "", RequestRefused, REFUSED),
    (None, "", ConnectionLost, LOST),
)
# The limit stands at the end, since RabbitMQ 3.8.
TOO_LARGE = re.compile(r"message size \d+ is larger than .*?(\d+)$")


def translate_error(error: Exception, *, where: str, user: str, what: str) -> BrokerError:
    """Return Fluffle's error for an exception of pika or the socket on an open connection.

    `where` and `user` describe the connection, and `what` is the thing that was requested.
    """
    reason = getattr(error, "reply_text", None) or root_cause(error)
    if isinstance(error, pika.exceptions.NoFreeChannels):
        reason = "the connection's channels are all in use: channel_max is too small"
        return LimitReached(LIMIT.format(where=where, reason=reason))
    if isinstance(error, pika.exceptions.NackError):
        return QueueFull(
            f"RabbitMQ refused a message for {what}: its queue is full, or lies on nodes that are down"
        )
    if isinstance(error, pika.exceptions.UnroutableError):
        return Unroutable(f"no queue is bound to {what}: run `fluffle broker setup`")
    if sizes := TOO_LARGE.search(reason):
        return MessageTooLarge(
            f"RabbitMQ at {where} takes no message as large as this ({reason}): {HOW_TO_RAISE}", int(sizes[1])
        )
    code = getattr(error, "reply_code", None)
    return _by_rule(OPEN, code, reason, where=where, user=user, what=what)


def translate_refusal(error: Exception, *, where: str, user: str, has_password: bool = True) -> BrokerError:
    """Return Fluffle's error for an exception of pika or the socket while a connection is being opened."""
    if isinstance(error, pika.exceptions.AuthenticationError):
        if has_password:
            return LoginRefused(
                f"RabbitMQ at {where} takes no passwords: for a login by certificate set broker_cert_file "
                "and broker_key_file, and no password"
            )
        return LoginRefused(
            f"RabbitMQ at {where} offers no login by certificate: it needs the plugin "
            "rabbitmq_auth_mechanism_ssl and auth_mechanisms.1 = EXTERNAL, or give a password"
        )
    quoted = QUOTED_REFUSAL.search(str(error))
    if quoted is None:
        # pika reports a broker that stopped during the login as one that refused it.
        return ConnectionLost(
            f"no RabbitMQ answers at {where}: start it, or correct FLUFFLE_BROKER_URL ({root_cause(error)})"
        )
    code = int(quoted["code"])
    if code == 403 and not has_password:
        return LoginRefused(
            f"RabbitMQ at {where} refused the login by certificate: it has no user {user!r} (any more), "
            "or takes another name from the certificate (ssl_cert_login_from)"
        )
    return _by_rule(OPENING, code, quoted["reason"], where=where, user=user)


def root_cause(error: Exception) -> str:
    """Return the message of the innermost exception; pika wraps one in another."""
    inner = [each for each in (*error.args, getattr(error, "exception", None)) if isinstance(each, Exception)]
    if inner:
        return root_cause(inner[0])
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(getattr(error, "reply_text", "")) or str(error) or type(error).__name__


def _by_rule(rules: tuple[Rule, ...], code: int | None, reason: str, **words: str) -> BrokerError:
    for its_code, pattern, error, text in rules:
        if its_code in {None, code} and re.search(pattern, reason):
            return error(text.format(reason=reason, **words))
    raise ValueError("the last rule fits everything")
