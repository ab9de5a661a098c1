"""Frames arrive and leave as pika's own connection would read and write them, byte for byte."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager

import pika
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika import frame, spec
from pika.exceptions import BodyTooLongError, InvalidFrameError

from fluffle.pieces import Body, Pieces
from fluffle.rabbit.large_bodies import READ_BYTES, LargeBodyConnection
from fluffle.topology import MAX_MESSAGE_BYTES

Message = tuple[int, int, dict[str, str], bytes]
"""The channel, the delivery tag, the headers and the body."""

BODY_IN_A_FRAME = 131_064
CHANNELS = (1, 2)
HEARTBEAT = frame.Heartbeat().marshal()


@contextmanager
def unconnected(kind: type[pika.SelectConnection]) -> Iterator[pika.SelectConnection]:
    connection = kind(pika.ConnectionParameters(), internal_connection_workflow=False)
    with closing(connection.ioloop):
        yield connection


def received(kind: type[pika.SelectConnection], pieces: Iterable[bytes]) -> list[Message]:
    """Return the messages that a connection makes of what comes from the socket."""
    messages: list[Message] = []
    with unconnected(kind) as connection:
        for number in CHANNELS:
            channel = connection._channels[number] = connection._create_channel(number, None)
            channel._consumers["c"] = lambda channel, method, properties, body: messages.append(
                (channel.channel_number, method.delivery_tag, properties.headers, body)
            )
        for piece in pieces:
            connection._on_data_available(piece)
    return messages


def sent(kind: type[pika.SelectConnection], body: Body) -> bytes:
    """Return what a connection hands to the socket when it publishes a body."""
    pieces: list[bytes] = []
    with unconnected(kind) as connection:
        connection._body_max_length = BODY_IN_A_FRAME
        connection._adapter_emit_data = pieces.append
        connection._send_method(1, spec.Basic.Publish(exchange="e"), (pika.BasicProperties(type="t"), body))
        assert connection.bytes_sent == sum(map(len, pieces))
    return b"".join(pieces)


def delivery(channel: int, tag: int, headers: dict[str, str], parts: Sequence[bytes]) -> list[bytes]:
    """Return the frames of a message whose body lies in so many of them."""
    method = spec.Basic.Deliver("c", tag, redelivered=False, exchange="e", routing_key="")
    header = frame.Header(channel, sum(map(len, parts)), pika.BasicProperties(headers=headers))
    return [
        frame.Method(channel, method).marshal(),
        header.marshal(),
        *(frame.Body(channel, part).marshal() for part in parts),
    ]


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    """Draw what a socket brings: messages on two channels whose frames take turns, heartbeats between."""
    waiting: dict[int, list[bytes]] = {}
    for channel in CHANNELS:
        texts = st.dictionaries(st.text(max_size=9), st.text(max_size=9), max_size=2)
        # RabbitMQ never sends an empty body frame, and pika reads none that ends a message.
        parts = st.lists(st.binary(min_size=1, max_size=300), max_size=4)
        messages = draw(st.lists(st.tuples(texts, parts), max_size=3))
        waiting[channel] = [
            each for tag, message in enumerate(messages) for each in delivery(channel, tag, *message)
        ]
    turns = [channel for channel in CHANNELS for _ in waiting[channel]] + [0] * draw(st.integers(0, 2))
    return b"".join(waiting[turn].pop(0) if turn else HEARTBEAT for turn in draw(st.permutations(turns)))


@given(frames(), st.data())
def test_however_the_bytes_are_split_they_are_the_messages_that_pika_reads(
    stream: bytes, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(stream)))))
    pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]

    messages = received(LargeBodyConnection, filter(None, pieces))

    assert messages == received(pika.SelectConnection, [stream])
    assert all(type(body) is bytes for *_, body in messages)


@pytest.mark.parametrize("size", [1, BODY_IN_A_FRAME, BODY_IN_A_FRAME + 1, 1_000_000])
def test_a_body_of_many_frames_arrives_whole_in_reads_of_any_size(size: int) -> None:
    body = bytes(range(256)) * (size // 256 + 1)
    parts = [body[start : start + BODY_IN_A_FRAME] for start in range(0, size, BODY_IN_A_FRAME)]
    parts[-1] = parts[-1][: size - (len(parts) - 1) * BODY_IN_A_FRAME]
    stream = b"".join(delivery(1, 7, {}, parts))

    for read in (4096, READ_BYTES, len(stream)):
        reads = [stream[start : start + read] for start in range(0, len(stream), read)]

        assert received(LargeBodyConnection, reads) == [(1, 7, {}, body[:size])]


@pytest.mark.parametrize("size", [0, 1, BODY_IN_A_FRAME - 1, BODY_IN_A_FRAME, BODY_IN_A_FRAME + 1, 500_000])
def test_a_body_leaves_in_the_same_bytes_as_from_pika(size: int) -> None:
    body = bytes(range(250)) * (size // 250) + bytes(size % 250)

    expected = sent(pika.SelectConnection, body)
    assert sent(LargeBodyConnection, body) == expected
    in_pieces = Pieces(body[:100], (memoryview(body)[100:200], memoryview(body)[200:]))
    assert sent(LargeBodyConnection, in_pieces) == expected


def test_nothing_is_set_aside_for_a_body_larger_than_any_message() -> None:
    header = frame.Header(1, MAX_MESSAGE_BYTES + 1, pika.BasicProperties()).marshal()

    with pytest.raises(InvalidFrameError, match="a body of 536870913 bytes is announced"):
        received(LargeBodyConnection, [delivery(1, 1, {}, [])[0] + header])


def test_a_body_longer_than_announced_ends_the_connection() -> None:
    method, header, _ = delivery(1, 1, {}, [b"four"])

    with pytest.raises(BodyTooLongError):
        received(LargeBodyConnection, [method, header, frame.Body(1, b"five!").marshal()])


def test_a_frame_without_its_end_ends_the_connection() -> None:
    stream = b"".join(delivery(1, 1, {}, [b"body"]))

    with pytest.raises(InvalidFrameError):
        received(LargeBodyConnection, [stream[:-1] + b"\0"])
