"""AMQP properties that no client library would send: the bytes of a content header, made by hand."""

import struct

import pika

HEADERS_FLAG = pika.BasicProperties.FLAG_HEADERS
MESSAGE_ID_FLAG = pika.BasicProperties.FLAG_MESSAGE_ID


def raw(encoded: bytes) -> pika.BasicProperties:
    """Return properties that go out as these bytes, flags first."""
    properties = pika.BasicProperties()
    properties.encode = lambda: [encoded]
    return properties


def with_headers(*entries: bytes) -> pika.BasicProperties:
    """Return properties with a header table of these entries."""
    return raw(struct.pack(">H", HEADERS_FLAG) + table(*entries))


def with_message_id(name: bytes) -> pika.BasicProperties:
    """Return properties with a message id of any bytes."""
    return raw(struct.pack(">HB", MESSAGE_ID_FLAG, len(name)) + name)


def table(*entries: bytes) -> bytes:
    """Return a table: its size, and its entries."""
    return struct.pack(">I", sum(map(len, entries))) + b"".join(entries)


def entry(key: bytes, kind: bytes, value: bytes) -> bytes:
    """Return one entry of a table."""
    return struct.pack(">B", len(key)) + key + kind + value


def nested(depth: int) -> bytes:
    """Return an entry with tables in tables."""
    inside = b""
    for _ in range(depth):
        inside = entry(b"a", b"F", struct.pack(">I", len(inside)) + inside)
    return inside


def nested_lists(depth: int) -> bytes:
    """Return an entry with lists in lists."""
    inside = b""
    for _ in range(depth):
        inside = b"A" + struct.pack(">I", len(inside)) + inside
    return entry(b"a", inside[:1], inside[1:])
