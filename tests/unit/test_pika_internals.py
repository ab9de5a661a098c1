"""What Fluffle uses of pika that is not public: a new pika fails here first, and says where each is used."""

import ast
import inspect
import tomllib
from importlib.metadata import version
from pathlib import Path
from types import FunctionType, ModuleType
from typing import NamedTuple

import pika
import pika.adapters.blocking_connection
import pika.adapters.utils.connection_workflow
import pika.adapters.utils.io_services_utils
import pika.adapters.utils.nbio_interface
import pika.channel
import pytest
from packaging.requirements import Requirement
from pika.adapters.blocking_connection import BlockingChannel, BlockingConnection

from fluffle.rabbit import connection

FOLDER = Path(connection.__file__).parent
Transport = pika.adapters.utils.io_services_utils._AsyncTransportBase


class Internal(NamedTuple):
    """Something that pika may change without notice."""

    owner: type | ModuleType
    name: str
    used_in: str
    # For a function: its parameters after self, which we give or take in this order.
    parameters: str | None = None


INTERNALS = [
    # How BlockingConnection is given another connection underneath.
    Internal(BlockingConnection, "_impl_class", "opening.py"),
    # The connection underneath, and how to end and to wake it.
    Internal(BlockingConnection, "_impl", "connection.py"),
    Internal(BlockingConnection, "_closed_result", "connection.py"),
    Internal(BlockingConnection, "_flush_output", "connection.py", "waiters"),
    Internal(BlockingConnection, "_request_channel_dispatch", "connection.py", "channel_number"),
    Internal(pika.SelectConnection, "_adapter_add_callback_threadsafe", "connection.py", "callback"),
    Internal(pika.SelectConnection, "_terminate_stream", "connection.py", "error"),
    # How deliveries get to the inbox.
    Internal(
        BlockingChannel, "_on_consumer_message_delivery", "broker.py", "_channel method properties body"
    ),
    # What is looked at from other threads.
    Internal(pika.SelectConnection, "_blocked_conn_timer", "connection.py"),
    Internal(pika.SelectConnection, "_transport", "connection.py"),
    Internal(pika.SelectConnection, "bytes_received", "connection.py"),
    Internal(pika.SelectConnection, "server_properties", "connection.py"),
    Internal(Transport, "get_write_buffer_size", "connection.py", ""),
    # The channel underneath.
    Internal(BlockingChannel, "_closing_reason", "connection.py"),
    Internal(BlockingChannel, "_impl", "connection.py"),
    Internal(BlockingChannel, "_impl", "readers.py"),
    Internal(BlockingChannel, "_flush_output", "readers.py", "waiters"),
    Internal(pika.channel.Channel, "_content_assembler", "connection.py"),
    # What is overridden to receive and send large bodies.
    Internal(pika.SelectConnection, "_proto_connection_made", "large_bodies.py", "transport"),
    Internal(pika.SelectConnection, "_create_channel", "large_bodies.py", "channel_number on_open_callback"),
    Internal(pika.SelectConnection, "_on_data_available", "large_bodies.py", "data_in"),
    Internal(
        pika.SelectConnection, "_send_message", "large_bodies.py", "channel_number method_frame content"
    ),
    Internal(pika.channel.Channel, "_content_assembler", "large_bodies.py"),
    Internal(
        pika.channel.Channel,
        "basic_publish",
        "large_bodies.py",
        "exchange routing_key body properties mandatory",
    ),
    Internal(pika.channel.ContentFrameAssembler, "process", "large_bodies.py", "frame_value"),
    # What is called there.
    Internal(Transport, "_MAX_RECV_BYTES", "large_bodies.py"),
    Internal(Transport, "_MAX_CONSUME_BYTES", "large_bodies.py"),
    Internal(pika.SelectConnection, "_process_frame", "large_bodies.py", "frame_value"),
    Internal(pika.SelectConnection, "_output_marshaled_frames", "large_bodies.py", "marshaled_frames"),
    Internal(pika.SelectConnection, "_body_max_length", "large_bodies.py"),
    Internal(pika.channel.Channel, "_raise_if_not_open", "large_bodies.py", ""),
    Internal(pika.channel.Channel, "_send_method", "large_bodies.py", "method content"),
    Internal(
        pika.channel.Channel, "__init__", "large_bodies.py", "connection channel_number on_open_callback"
    ),
    # Modules that pika does not document.
    Internal(pika.frame, "decode_frame", "large_bodies.py", "data_in"),
    Internal(pika.frame, "Header", "large_bodies.py", "channel_number body_size props"),
    Internal(pika.frame, "Body", "large_bodies.py", "channel_number fragment"),
    Internal(pika.frame, "Method", "large_bodies.py", "channel_number method"),
    Internal(pika.spec, "FRAME_BODY", "large_bodies.py"),
    Internal(pika.spec, "FRAME_END", "large_bodies.py"),
    Internal(pika.spec, "has_content", "large_bodies.py", "methodNumber"),
    Internal(pika.spec, "props", "opening.py"),
    Internal(pika.BasicProperties, "decode", "large_bodies.py", "encoded offset"),
    Internal(pika.adapters.utils.connection_workflow, "AMQPConnectorException", "faults.py"),
    Internal(pika.adapters.utils.nbio_interface, "AbstractStreamTransport", "large_bodies.py"),
]


@pytest.mark.parametrize("internal", INTERNALS, ids=lambda each: f"{each.owner.__name__}.{each.name}")
def test_pika_still_has_what_we_use_of_its_internals(internal: Internal) -> None:
    owner, name, used_in, parameters = internal
    where = f"pika {version('pika')}: {owner.__name__}.{name}, which fluffle/rabbit/{used_in} uses,"

    assert name in names_in(owner), f"{where} is gone"
    if parameters is not None:
        now = " ".join(each for each in inspect.signature(getattr(owner, name)).parameters if each != "self")
        assert now == parameters, f"{where} takes other parameters"


def test_the_list_has_every_private_attribute_of_pika_that_is_used() -> None:
    listed = {(internal.used_in, internal.name) for internal in INTERNALS}

    used = {(path.name, name) for path in FOLDER.glob("*.py") for name in private_names(path)}

    assert {(file, name) for file, name in listed if name.startswith("_") and name != "__init__"} == used


def test_pika_is_pinned_below_its_next_minor_version() -> None:
    major, minor = map(int, version("pika").split(".")[:2])
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    [pinned] = [each for each in map(Requirement, project["dependencies"]) if each.name == "pika"]

    assert version("pika") in pinned.specifier
    assert f"{major}.{minor + 1}" not in pinned.specifier


def names_in(owner: type | ModuleType) -> set[str]:
    """Every name that a module or a class has, and each attribute and argument in the code of the class."""
    found = set(dir(owner))
    for each in inspect.getmro(owner) if isinstance(owner, type) else ():
        for function in vars(each).values():
            if isinstance(function, FunctionType):
                found |= {*function.__code__.co_names, *function.__code__.co_varnames}
    return found


def private_names(path: Path) -> set[str]:
    """The names with an underscore that a module uses of others: not of self, unless its class is pika's."""
    found = set()
    of_pika = names_in(pika.SelectConnection) | names_in(pika.channel.Channel)
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Attribute(value=ast.Name(id="self"), attr=name) | ast.FunctionDef(name=name):
                if path.name == "large_bodies.py" and name in of_pika:
                    found.add(name)
            case ast.Attribute(attr=name) | ast.keyword(arg=str(name)):
                found.add(name)
    return {name for name in found if name.startswith("_") and not name.startswith("__")}
