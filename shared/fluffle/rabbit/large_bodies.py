"""pika's connection, changed so that large bodies are hardly copied.

pika reads 4 KiB at a time, and at each read copies what it has of a frame; it marshals all frames of a body
before it sends the first. For a body of 100 MB, gigabytes are copied, and either side needs memory for two
bodies. Here a body is received piece by piece into its own memory, and sent as views of itself.
docs/performance.md has the figures.

The announced size of a body is the size that RabbitMQ holds, not one that a publisher claims.
tests/unit/test_pika_internals.py lists all that this module uses of pika's internals.
"""

import struct
from io import BytesIO

import pika
from pika import frame, spec
from pika.adapters.utils.nbio_interface import AbstractStreamTransport
from pika.channel import Channel
from pika.exceptions import BodyTooLongError, InvalidFrameError, UnexpectedFrameError

from fluffle.pieces import Body, Pieces
from fluffle.topology import MAX_MESSAGE_BYTES

# More than a frame of the largest size, which is 128 KiB by default.
READ_BYTES = 256 * 1024
# After so many bytes, timers and commands are looked at.
TURN_BYTES = 4 * READ_BYTES
FRAME_START = struct.Struct(">BHL")
FRAME_END = bytes([spec.FRAME_END])


class LargeBodyConnection(pika.SelectConnection):
    """Replaces pika's own connection underneath a BlockingConnection."""

    # The beginning of a frame whose rest has not arrived.
    _rest = b""
    # Of the body frame that is being received: its channel, and the bytes of it that are missing.
    _body_channel = 0
    _missing: int | None = None

    def _proto_connection_made(self, transport: AbstractStreamTransport) -> None:
        transport._MAX_RECV_BYTES = READ_BYTES
        transport._MAX_CONSUME_BYTES = TURN_BYTES
        super()._proto_connection_made(transport)

    def _create_channel(self, *arguments: object) -> "LargeBodyChannel":
        return LargeBodyChannel(self, *arguments)

    def _on_data_available(self, data_in: bytes) -> None:
        """Process what came from the socket: whole frames, but each piece of a body frame as it comes."""
        self.bytes_received += len(data_in)
        data = memoryview(self._rest + data_in if self._rest else data_in)
        self._rest = b""
        while data:
            if self._missing is None:
                taken = self._begin_frame(data)
            elif self._missing:
                taken = min(self._missing, len(data))
                self._missing -= taken
                # The channel processes a piece of a frame as if it were a frame.
                self._process_frame(frame.Body(self._body_channel, data[:taken]))
            else:
                taken = 1
                self._missing = None
                if data[:1] != FRAME_END:
                    raise InvalidFrameError("Invalid FRAME_END marker")
            if not taken:
                self._rest = bytes(data)
                return
            data = data[taken:]

    def _begin_frame(self, data: memoryview) -> int:
        """Process a whole frame, or the header of a body frame; return its size, or 0 when more must come."""
        if len(data) < FRAME_START.size:
            return 0
        kind, channel, size = FRAME_START.unpack_from(data)
        if kind == spec.FRAME_BODY:
            self._body_channel, self._missing = channel, size
            return FRAME_START.size
        taken, whole = frame.decode_frame(bytes(data[: FRAME_START.size + size + 1]))
        if whole:
            self._process_frame(whole)
        return int(taken)

    def _send_message(
        self,
        channel_number: int,
        method: pika.amqp_object.Method,
        content: tuple[pika.BasicProperties, Body],
    ) -> None:
        """Send a message; its body is copied only when it fits into one frame."""
        properties, body = content
        whole = body if isinstance(body, Pieces) else Pieces(body)
        header = frame.Header(channel_number, len(body), properties)
        between = frame.Method(channel_number, method).marshal() + header.marshal()
        pieces: list[bytes | memoryview] = []
        for payload in whole.cut(self._body_max_length):
            size = sum(map(len, payload))
            pieces += [between + FRAME_START.pack(spec.FRAME_BODY, channel_number, size), *payload]
            between = FRAME_END
        pieces.append(between)
        self._output_marshaled_frames([b"".join(pieces)] if len(body) <= self._body_max_length else pieces)


class LargeBodyChannel(Channel):
    """Replaces pika's own channel underneath a BlockingChannel."""

    def __init__(self, *arguments: object) -> None:
        """Open a channel, with the arguments of pika's."""
        super().__init__(*arguments)
        self._content_assembler = BodyAssembler()

    def basic_publish(
        self,
        exchange: str,
        routing_key: str,
        body: Body,
        properties: pika.BasicProperties,
        mandatory: bool = False,
    ) -> None:
        """Publish a body without copying it; pika's own method would encode it as text unless it is bytes."""
        self._raise_if_not_open()
        method = spec.Basic.Publish(exchange=exchange, routing_key=routing_key, mandatory=mandatory)
        self._send_method(method, (properties, body))


class TolerantProperties(pika.BasicProperties):
    """Properties that are empty when they cannot be decoded, and so have no verified sender.

    A sender can write properties that RabbitMQ passes on and that make pika raise: a timestamp beyond the
    year 9999, tables in tables. The connection would be lost, and after the redelivery the next one's, too.
    """

    def decode(self, encoded: bytes, offset: int = 0) -> pika.BasicProperties:
        """Read the properties, as pika does, or none at all."""
        try:
            return super().decode(encoded, offset)
        except Exception:  # struct, datetime, decimal and deep recursion raise many kinds
            for name, nothing in vars(pika.BasicProperties()).items():
                setattr(self, name, nothing)
            return self


class BodyAssembler:
    """Replaces pika's ContentFrameAssembler: makes messages of frames, each body in one piece."""

    def __init__(self) -> None:
        self._method: frame.Method | None = None
        self._header: frame.Header | None = None
        self._missing = 0
        self._body = BytesIO()

    @property
    def progress(self) -> tuple[int, int]:
        """The bytes received of the incoming body, and its size; zeros when none is coming."""
        if self._header is None or not self._missing:
            return 0, 0
        return self._header.body_size - self._missing, self._header.body_size

    def process(self, part: frame.Frame) -> tuple[frame.Method, frame.Header, bytes] | None:
        """Take the next part of a message; return the message when it is complete."""
        if isinstance(part, frame.Method) and spec.has_content(part.method.INDEX):
            self._method = part
            return None
        if isinstance(part, frame.Header):
            self._header, self._missing, self._body = part, part.body_size, _room(part.body_size)
        elif isinstance(part, frame.Body):
            self._missing -= len(part.fragment)
            if self._missing < 0:
                raise BodyTooLongError(len(part.fragment), len(part.fragment) + self._missing)
            self._body.write(part.fragment)
        else:
            raise UnexpectedFrameError(part)
        if self._missing:
            return None
        # When all of it was written, getvalue copies nothing.
        body, self._body = self._body.getvalue(), BytesIO()
        return self._method, self._header, body


def _room(size: int) -> BytesIO:
    """Return a buffer of zeros, which takes memory as it is written."""
    if size > MAX_MESSAGE_BYTES:
        raise InvalidFrameError(f"a body of {size} bytes is announced, more than {MAX_MESSAGE_BYTES}")
    return BytesIO(bytes(size))
