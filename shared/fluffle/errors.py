"""All exceptions that Fluffle raises on purpose, in one tree.

    FluffleError
    ├── ConfigError: SpoolInUse
    ├── LayoutError
    ├── TaskError: NoHeldOutData, OutOfMemory
    ├── StorageError
    ├── WireError: ProtocolMismatch
    └── BrokerError: ConnectionLost, LimitReached, LoginRefused, AccessRefused, NameTaken,
        TopologyMissing, RequestRefused, StreamUnreadable, QueueFull, Unroutable, MessageTooLarge

An expected event (an update that is too stale, a duplicate) is a return value, not an exception.
"""


class FluffleError(Exception):
    """An error with a message for people: what was found, what was expected, and what to do."""


class ConfigError(FluffleError):
    """A setting is wrong or unknown, or contradicts another one: correct it and start again."""


class SpoolInUse(ConfigError):
    """Another process works with the same spool: give this worker another name or folder, or stop one."""


class LayoutError(FluffleError):
    """The names, shapes or dtypes of a model's tensors are not those of the federation's model."""


class TaskError(FluffleError):
    """The task cannot be imported, is not a task, or its data is missing."""


class NoHeldOutData(TaskError):
    """The task has no held-out data, which only an evaluator needs: evaluate at another site."""


class OutOfMemory(TaskError):
    """A task's code asked for more memory than there is: smaller minibatches may help."""


class StorageError(FluffleError):
    """A file, folder or object store cannot be read or written; the text says why, and what to do."""


class WireError(FluffleError):
    """The bytes of a message do not follow the protocol; the text names the field."""


class ProtocolMismatch(WireError):
    """A message uses another protocol: run the same version of Fluffle at every site."""


class BrokerError(FluffleError):
    """A problem with RabbitMQ or the connection to it."""


class ConnectionLost(BrokerError):
    """The connection or its channel is gone; a message that was not confirmed may have arrived or not."""


class LimitReached(BrokerError):
    """The broker accepts no more connections or channels for now, because of a limit that somebody set."""


class LoginRefused(BrokerError):
    """The broker does not let this user in: correct user, password, certificate or virtual host.

    Also when one side does not accept the other's certificate, or only one of them uses TLS.
    """


class AccessRefused(BrokerError):
    """The RabbitMQ user lacks a right: ask who runs the broker."""


class NameTaken(BrokerError):
    """Another running process is connected under the same worker name: stop one of the two."""


class TopologyMissing(BrokerError):
    """A queue or exchange that the federation needs is not on the broker: start the aggregator."""


class RequestRefused(BrokerError):
    """A request is refused permanently, or a policy would lose messages; the text says what to change."""


class StreamUnreadable(BrokerError):
    """The broker node has no readable copy of a stream: the next leader makes it again from the head."""


class QueueFull(BrokerError):
    """The broker refused a message for now, since its queue is full: keep it, and send it again later."""


class Unroutable(BrokerError):
    """No queue is bound to the exchange for this message: run `fluffle broker setup`."""


class MessageTooLarge(BrokerError):
    """The message is larger than `limit_bytes`, the limit of the protocol or the broker."""

    def __init__(self, text: str, limit_bytes: int) -> None:
        super().__init__(text)
        self.limit_bytes = limit_bytes
