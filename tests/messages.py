"""Messages taken apart and put together again, each with one thing that is wrong."""

from collections.abc import Mapping

import msgpack
import xxhash

Header = dict[str, object]


def taken_apart(body: bytes) -> tuple[Header, bytes]:
    """Return the header and the payload."""
    unpacker = msgpack.Unpacker()
    unpacker.feed(body)
    header, payload = unpacker
    return header, payload


def put_together(header: Mapping[str, object], payload: bytes) -> bytes:
    """Return a message of these two, whatever they say of each other."""
    return bytes(msgpack.packb(header)) + b"\xc6" + len(payload).to_bytes(4, "big") + payload


def rewritten(body: bytes, **changed: object) -> bytes:
    """Return the message with other fields, and otherwise sound."""
    header, payload = taken_apart(body)
    return put_together({**header, **changed}, payload)


def with_payload(body: bytes, payload: bytes) -> bytes:
    """Return the message with another payload, and a checksum that fits."""
    header, _ = taken_apart(body)
    return put_together({**header, "checksum": xxhash.xxh3_64(payload).intdigest()}, payload)


def without(body: bytes, field: str) -> bytes:
    """Return the message with one field less."""
    header, payload = taken_apart(body)
    del header[field]
    return put_together(header, payload)


def with_raw(body: bytes, field: str, value: bytes) -> bytes:
    """Return the message with one more field, last, whose value is these bytes of msgpack."""
    header, payload = taken_apart(body)
    fields = [(name, bytes(msgpack.packb(each))) for name, each in header.items() if name != field]
    packer = msgpack.Packer()
    packed = packer.pack_map_header(len(fields) + 1) + b"".join(
        packer.pack(name) + each for name, each in [*fields, (field, value)]
    )
    return bytes(packed) + b"\xc6" + len(payload).to_bytes(4, "big") + payload
