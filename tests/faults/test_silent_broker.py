"""A broker that takes questions and gives no answers, as one does whose queue has lost its members."""

import os
import signal
from pathlib import Path

import pytest
from brokers import send

from fluffle.errors import ConnectionLost
from fluffle.rabbit import RabbitBroker, connection
from fluffle.topology import topology_of
from fluffle_cli.node import BrokerNode

pytestmark = pytest.mark.long


def test_a_broker_that_does_not_answer_is_named_in_the_log_and_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connection, "SILENCE_S", 1.0)
    monkeypatch.setattr(connection, "ANSWER_TIMEOUT_S", 4.0)
    topology = topology_of("silence")
    with (
        BrokerNode.start(tmp_path, management=False) as node,
        RabbitBroker(node.amqp_url, name="silence", heartbeat_s=600) as broker,
    ):
        broker.declare(topology)
        os.kill(node.pid, signal.SIGSTOP)
        try:
            with pytest.raises(ConnectionLost, match=r"no answer about exchange silence\.updates for \d+ s"):
                send(broker, topology, b"a question")
        finally:
            os.kill(node.pid, signal.SIGCONT)

    assert "RabbitMQ does not answer yet" in caplog.text
