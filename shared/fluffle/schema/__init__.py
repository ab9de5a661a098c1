"""What stands in each kind of message: values to header maps, and header maps and payloads to values. Pure.

docs/protocol.md has the same as tables. What is read is checked field by field; every fault is a WireError.
"""

from fluffle.schema.common import MAX_PARAMETERS, Header
from fluffle.schema.inbound import (
    evaluation_header,
    hello_header,
    read_evaluation,
    read_hello,
    read_update,
    update_header,
)
from fluffle.schema.record import (
    copy_header,
    moments_header,
    read_copy,
    read_moments,
    read_version,
    version_header,
)

__all__ = [
    "MAX_PARAMETERS",
    "Header",
    "copy_header",
    "evaluation_header",
    "hello_header",
    "moments_header",
    "read_copy",
    "read_evaluation",
    "read_hello",
    "read_moments",
    "read_update",
    "read_version",
    "update_header",
    "version_header",
]
