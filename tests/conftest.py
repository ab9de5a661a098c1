"""What tests of every kind share: one private RabbitMQ node, and a federation of each test's own."""

import itertools
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from fluffle.task import set_keras_environment
from fluffle.topology import Topology, topology_of
from fluffle_cli.node import BrokerNode

_numbers = itertools.count(1)

# A shell's background jobs ignore Ctrl-C, and so would all processes that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# As `fluffle worker` does. Some test modules import Keras at their top, and TensorFlow would then sum in
# another order here than in the processes that tests start.
set_keras_environment()

# On a machine with much to do an example may take long; that says nothing about the code. Where CI is set,
# hypothesis would try the same examples each time.
settings.register_profile("fluffle", settings.get_profile("default"), deadline=None)
settings.load_profile("fluffle")


@pytest.fixture(scope="session")
def node() -> Iterator[BrokerNode]:
    """One real broker for all tests that do it no harm. Where there is no RabbitMQ they fail, never skip."""
    with (
        tempfile.TemporaryDirectory(prefix="fluffle-tests-") as folder,
        BrokerNode.start(Path(folder), management=False) as started,
    ):
        yield started


@pytest.fixture
def federation() -> str:
    """A name that no other test uses on the same broker."""
    return f"federation-{next(_numbers)}"


@pytest.fixture
def topology(federation: str) -> Topology:
    """The queues of a federation that no other test uses."""
    return topology_of(federation)
