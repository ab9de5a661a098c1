"""pika's connection, made to move large bodies with few copies.

pika reads 4 KiB at a time, and for each read copies what it has of a frame; it marshals all frames of a body
before it sends the first. For a body of 100 MB that is gigabytes to copy, and twice the body in memory on
either side. Here a body is received into its own memory, piece by piece, and sent as views of itself.
docs/performance.md says what that gives.

RabbitMQ announces the size of what it holds, never one that a publisher claims, and nothing is set aside for
more than it carries.
"""

from __future__ import annotations

import struct
from io import BytesIO

import pika
from pika import frame, spec
from pika.adapters.utils.nbio_interface import AbstractStreamTransport
from pika.channel import Channel
from pika.exceptions import BodyTooLongError, InvalidFrameError, UnexpectedFrameError

from fluffle.pieces import Body, Pieces
from fluffle.topology import MAX_MESSAGE_BYTES

# About a frame of the largest size that RabbitMQ uses by itself.
READ_BYTES = 256 * 1024
# Read at a time, before timers and commands have their turn.
TURN_BYTES = 4 * READ_BYTES
FRAME_START = struct.Struct(">BHL")
FRAME_END = bytes([spec.FRAME_END])


class LargeBodyConnection(pika.SelectConnection):
    """Takes the place of pika's own connection underneath a BlockingConnection."""

    # The beginning of a frame whose rest has not arrived.
    _rest = b""
    # Of the body frame that is being received: its channel, and the bytes of it that are missing.
    _body_channel = 0
    _missing: int | None = None

    def _proto_connection_made(self, transport: AbstractStreamTransport) -> None:
        transport._MAX_RECV_BYTES = READ_BYTES
        transport._MAX_CONSUME_BYTES = TURN_BYTES
        super()._proto_connection_made(transport)

    def _create_channel(self, *arguments: object) -> LargeBodyChannel:
        return LargeBodyChannel(self, *arguments)

    def _on_data_available(self, data_in: bytes) -> None:
        """Take in what has come from the socket, frame by frame; a body frame in pieces, as they come."""
        self.bytes_received += len(data_in)
        data = memoryview(self._rest + data_in if self._rest else data_in)
        self._rest = b""
        while data:
            if self._missing is None:
                taken = self._begin_frame(data)
            elif self._missing:
                taken = min(self._missing, len(data))
                self._missing -= taken
                # To the channel, a piece of a frame is as good as a frame.
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
        """Take in a whole frame, or the start of a body frame; return its bytes, or 0 when more must come."""
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
        """Send a message whose body is not copied, unless it fits into one frame."""
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
    """Takes the place of pika's own channel underneath a BlockingChannel."""

    def __init__(self, *arguments: object) -> None:
        """Open a channel; the arguments are those of pika's."""
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
        """Publish a body as it lies; pika's own takes what is not bytes for text."""
        self._raise_if_not_open()
        method = spec.Basic.Publish(exchange=exchange, routing_key=routing_key, mandatory=mandatory)
        self._send_method(method, (properties, body))


class BodyAssembler:
    """Takes the place of the one in pika's channel, and makes messages of frames, each body in one piece."""

    def __init__(self) -> None:
        self._method: frame.Method | None = None
        self._header: frame.Header | None = None
        self._missing = 0
        self._body = BytesIO()

    @property
    def progress(self) -> tuple[int, int]:
        """The bytes that have come of the body that is on its way, and its size; zeros when none is."""
        if self._header is None or not self._missing:
            return 0, 0
        return self._header.body_size - self._missing, self._header.body_size

    def process(self, part: frame.Frame) -> tuple[frame.Method, frame.Header, bytes] | None:
        """Take the next part of a message, and return the message when that was the last one."""
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
        # Written full, so that it gives its memory away and copies nothing.
        body, self._body = self._body.getvalue(), BytesIO()
        return self._method, self._header, body


def _room(size: int) -> BytesIO:
    """Return so many bytes to write over; they take memory as they are written."""
    if size > MAX_MESSAGE_BYTES:
        raise InvalidFrameError(f"a body of {size} bytes is announced, more than {MAX_MESSAGE_BYTES}")
    return BytesIO(bytes(size))
