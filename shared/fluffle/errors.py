"""All exceptions that Fluffle raises on purpose, in one tree.

    FluffleError
    ├── ConfigError           a setting is wrong: correct it and start again
    ├── TaskError             the task cannot be imported, or its data is not there
    │   └── NoHeldOutData     the task has no held-out data, as at a site that only trains: evaluate elsewhere
    ├── LayoutError           the tensors of a model are not those of the federation's model
    ├── WireError             a message cannot be read; the operator finds it in F.rejected
    │   └── ProtocolMismatch  it uses another protocol: run the same version of Fluffle at every site
    └── BrokerError
        ├── ConnectionLost    the connection or channel is gone: start again from the head; waits and retries
        ├── LimitReached      a limit on connections or channels is reached: raise it; waits and retries
        ├── LoginRefused      user, password, certificate or virtual host are wrong: correct them
        ├── TlsRefused        one side does not trust the other, or only one speaks TLS: see broker_ca_file
        ├── NameTaken         another process uses this worker's name: stop one of the two
        ├── StreamUnreadable  the stream is damaged: the next leader rebuilds it from the head; readers wait
        ├── AccessRefused     the user lacks a right: ask who runs the broker
        ├── TopologyMissing   a queue or exchange of the federation is not there: start the aggregator
        ├── TopologyMismatch  one exists with other arguments: delete it or choose another federation name
        ├── UnsafePolicy      a policy of the broker would lose messages: narrow its pattern, or delete it
        ├── QuotaReached      the virtual host may have no more queues: raise its limit, or delete queues
        ├── RequestRefused    RabbitMQ refuses a request permanently: its own reason says what to change
        ├── QueueFull         the broker refused the message for now: back off, keep it, send it again
        ├── Unroutable        no queue takes the message: run `fluffle broker setup`
        └── MessageTooLarge   larger than the broker may carry: raise its limit, or another codec

An expected event (an update that is too stale, a duplicate) is a return value, not an exception.
"""


class FluffleError(Exception):
    """An error with a message for people: what was found, what was expected, and what to do."""


class ConfigError(FluffleError):
    """A setting is wrong or unknown, or contradicts another one."""


class TaskError(FluffleError):
    """The task cannot be imported, is not a task, or its data is missing."""


class NoHeldOutData(TaskError):
    """The task has no held-out data, which only an evaluator needs."""


class LayoutError(FluffleError):
    """The names, shapes or dtypes of a model's tensors are not the expected ones."""


class WireError(FluffleError):
    """The bytes of a message do not follow the protocol; the text names the field."""


class ProtocolMismatch(WireError):
    """A message uses another protocol than this version of Fluffle; the text names both."""


class BrokerError(FluffleError):
    """A problem with RabbitMQ or the connection to it."""


class ConnectionLost(BrokerError):
    """The connection or its channel is gone; a message that was not confirmed may have arrived or not."""


class LimitReached(BrokerError):
    """The broker accepts no more connections or channels for now, because of a limit that somebody set."""


class LoginRefused(BrokerError):
    """The broker does not let this user in: user, password, certificate or virtual host are wrong."""


class TlsRefused(BrokerError):
    """One side does not accept the other's certificate, or one speaks TLS and the other plain text."""


class NameTaken(BrokerError):
    """Another running process is connected under the same worker name."""


class StreamUnreadable(BrokerError):
    """The broker node has no readable copy of a stream."""


class AccessRefused(BrokerError):
    """The RabbitMQ user lacks a right."""


class TopologyMissing(BrokerError):
    """A queue or exchange that the federation needs is not on the broker."""


class TopologyMismatch(BrokerError):
    """A queue or exchange exists with other arguments than the federation's."""


class UnsafePolicy(BrokerError):
    """A policy on a queue of the federation would lose messages, or stop every aggregator."""


class QuotaReached(BrokerError):
    """The broker creates no more queues, because of a limit that somebody set."""


class RequestRefused(BrokerError):
    """The broker refuses a request permanently, for a reason that no other error covers."""


class QueueFull(BrokerError):
    """The broker refused a message because its queue is full."""


class Unroutable(BrokerError):
    """No queue is bound to the exchange for this message."""


class MessageTooLarge(BrokerError):
    """The message is larger than `limit_bytes`, the limit of the protocol or the broker."""

    def __init__(self, text: str, limit_bytes: int) -> None:
        super().__init__(text)
        self.limit_bytes = limit_bytes
