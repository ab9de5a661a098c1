"""A fake broker one of whose streams is broken, as a power cut leaves it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from fake_broker import FakeBroker, FakeServer

from fluffle.broker import StreamReader
from fluffle.pieces import Body
from fluffle.topology import Queue


class BrokenStream(FakeBroker):
    """A broker that cannot read one stream, nor write to it unconfirmed, until that is recreated."""

    def __init__(self, server: FakeServer, stream: Queue, error: Exception) -> None:
        super().__init__(server)
        self._stream, self._error = stream, error
        self.is_damaged = True

    @contextmanager
    def read_stream(self, queue: str, *, offset: str, prefetch: int = 1) -> Iterator[StreamReader]:
        """See Broker."""
        if self.is_damaged and queue == self._stream.name:
            raise self._error
        with super().read_stream(queue, offset=offset, prefetch=prefetch) as reader:
            yield reader

    def publish(self, exchange: str, routing_key: str, body: Body, headers: Mapping[str, str]) -> None:
        """See Broker."""
        feeds_it_alone = [exchange] == [each.name for each in self._stream.exchanges]
        assert not (self.is_damaged and feeds_it_alone), "RabbitMQ would never confirm it"
        super().publish(exchange, routing_key, body, headers)

    def publish_unconfirmed(
        self, exchange: str, routing_key: str, body: bytes, *, kind: str = "events"
    ) -> None:
        """See Broker."""
        is_lost = self.is_damaged and exchange in {each.name for each in self._stream.exchanges}
        if not is_lost:
            super().publish_unconfirmed(exchange, routing_key, body, kind=kind)

    def recreate_stream(self, stream: Queue) -> None:
        """See Broker."""
        assert stream == self._stream
        self.is_damaged = False
        super().recreate_stream(stream)
