"""What pika and the socket raise, in Fluffle's words."""

from __future__ import annotations

import re

import pika.exceptions

from fluffle.errors import (
    AccessRefused,
    BrokerError,
    ConnectionLost,
    MessageTooLarge,
    QueueFull,
    StreamUnreadable,
    TopologyMismatch,
    TopologyMissing,
    Unroutable,
)
from fluffle.message_size import HOW_TO_RAISE
from fluffle.topology import OTHER_ARGUMENTS

# How pika quotes RabbitMQ's refusal of a login.
REFUSAL = re.compile(r"ClosedByBroker: \((403|530)\)")
# Since 3.8 it says its limit last.
TOO_LARGE = re.compile(r"message size \d+ is larger than .*?(\d+)$")
ACCESS_REFUSED, NOT_FOUND, RESOURCE_LOCKED, PRECONDITION_FAILED, NOT_ALLOWED = 403, 404, 405, 406, 530


def in_fluffles_words(error: Exception, *, where: str, user: str, what: str) -> BrokerError:
    """Return what pika or the socket raised as the exception that says what the operator does about it.

    `where` and `user` describe the connection, `what` the thing that was asked for.
    """
    code = getattr(error, "reply_code", None)
    said = getattr(error, "reply_text", None) or root_cause(error)
    lost = ConnectionLost(f"the connection to RabbitMQ at {where} is lost: {said}")
    if was_cut_off(error):
        return lost
    if isinstance(error, pika.exceptions.ProbableAccessDeniedError) or code == NOT_ALLOWED:
        return AccessRefused(
            f"RabbitMQ at {where} refused the user {user!r}: the virtual host is missing, or the user has no "
            f"right to it ({said})"
        )
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
    if code == PRECONDITION_FAILED:
        return _failed_precondition(said, where=where, user=user, what=what) or lost
    return _mismatch(what, said) if code == RESOURCE_LOCKED else lost


def _failed_precondition(said: str, *, where: str, user: str, what: str) -> BrokerError | None:
    """Tell what one code is for; None for a message held too long, or acked that was never there."""
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
    return _mismatch(what, said) if "inequivalent" in said else None


def _mismatch(what: str, said: str) -> TopologyMismatch:
    return TopologyMismatch(f"{what} {OTHER_ARGUMENTS} ({said})")


def was_cut_off(error: Exception) -> bool:
    """Tell whether a broker ended in the middle of a login, which pika takes for a refusal.

    A refusal has its code.
    """
    guesses = pika.exceptions.ProbableAuthenticationError | pika.exceptions.ProbableAccessDeniedError
    return isinstance(error, guesses) and not REFUSAL.search(str(error))


def root_cause(error: Exception) -> str:
    """Return what is at the bottom of an exception, in words; pika wraps one in the other."""
    inner = [each for each in (*error.args, getattr(error, "exception", None)) if isinstance(each, Exception)]
    if inner:
        return root_cause(inner[0])
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(getattr(error, "reply_text", "")) or str(error) or type(error).__name__
