"""Where an update could be found: in the aggregator's memory, and on the broker's disk."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from federation import Federation
from searched_memory import files_below, memory_of
from secured import PARAMETERS, PLAN, Secured

from fluffle_cli.demo.keys import HELPERS
from fluffle_cli.node import BrokerNode

# As many numbers as nobody meets by chance.
BLOCK = 16


@pytest.fixture
def own_node(tmp_path: Path) -> Iterator[BrokerNode]:
    """A node whose disk nobody else writes to."""
    with BrokerNode.start(tmp_path / "broker", management=False) as started:
        yield started


def forms_of(secured: Secured, number: int) -> dict[str, bytes]:
    """Return a block of an update's numbers in the forms in which they could lie somewhere."""
    part = slice(PARAMETERS // 2, PARAMETERS // 2 + BLOCK)
    whole = secured.numbers(number)[part]
    return {
        "whole numbers": whole.tobytes(),
        "packed": PLAN.modulus.pack(whole),
        "float32": secured.delta(number)[part].tobytes(),
        "float64": secured.delta(number)[part].astype(np.float64).tobytes(),
    }


def test_neither_the_aggregators_memory_nor_the_brokers_disk_holds_an_update(
    own_node: BrokerNode, tmp_path: Path
) -> None:
    with Federation("unseen", own_node.amqp_url, tmp_path) as federation:
        secured = Secured(federation)
        for name in HELPERS:
            secured.helper(name)
        aggregator = secured.aggregator("first", updates=100)
        aggregator.wait_for("leading")
        secured.send(range(5))
        aggregator.wait_for("version committed")
        newest = federation.newest()

        # Two wait in the buffer: the others are in version 1. What is searched for can be found: the model.
        part = slice(PARAMETERS // 2, PARAMETERS // 2 + BLOCK)
        model = newest.vector[part].tobytes()
        in_memory = list(memory_of(aggregator))
        assert any(model in each for each in in_memory)
        on_disk = list(files_below(own_node.folder))
        assert any(model in each for each in on_disk)
        for number in range(5):
            for form, block in forms_of(secured, number).items():
                assert not any(block in each for each in in_memory), f"{form} of {number} in the memory"
                assert not any(block in each for each in on_disk), f"{form} of {number} on the disk"
