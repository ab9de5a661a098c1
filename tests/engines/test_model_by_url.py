"""`fluffle model export` and `restore` by URL: HDFS by both protocols, S3, and file://.

A URL that was once a path has lost a slash (scikit-hep/uproot5#670); here it never is one.
"""

import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy_task
import pika
import pytest
from brokers import commit
from builders import a_version
from places import SCHEMES, Place, place_of
from pyarrow.fs import FileSelector
from typer.testing import CliRunner, Result

from fluffle.model import Layout
from fluffle.model_stream import version_at_hand
from fluffle.rabbit import RabbitBroker
from fluffle.record import ModelVersion
from fluffle.safetensors_file import read_model
from fluffle.storage import content_of, locate
from fluffle.topology import Topology
from fluffle_cli.main import app
from fluffle_cli.node import BrokerNode
from fluffle_cli.restoring import TERMS_AHEAD
from harness.federation import ROOT
from harness.hdfs import Hdfs
from harness.s3 import S3Server

Fluffle = Callable[..., Result]


@pytest.fixture(params=SCHEMES)
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A folder at each kind of URL, and a login for it."""
    found = place_of(request.param, request)
    found.log_in(monkeypatch)
    return found


@pytest.fixture
def broker(node: BrokerNode, topology: Topology) -> Iterator[RabbitBroker]:
    """A broker with version 3 of a federation."""
    with RabbitBroker(node.amqp_url, name="test", heartbeat_s=20) as connected:
        connected.declare(topology)
        publish(connected, topology, 3, [1.0, 2.0, 3.0, 4.0])
        yield connected


@pytest.fixture
def fluffle(node: BrokerNode, topology: Topology, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fluffle:
    """Run a command for the federation; what it prints becomes one line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fluffle.logs.configure", lambda *_, **__: None)
    usual = {"FLUFFLE_BROKER_URL": node.amqp_url, "FLUFFLE_FEDERATION": topology.federation}
    return lambda *arguments: CliRunner().invoke(app, arguments, env=usual)


def publish(broker: RabbitBroker, topology: Topology, version: int, values: Sequence[float]) -> None:
    commit(broker, topology, replace(a_version(version, values=values), federation=topology.federation))


def newest(broker: RabbitBroker, topology: Topology) -> ModelVersion:
    found = version_at_hand(broker, topology)
    assert found is not None
    return found


def lose_all_queues(node: BrokerNode, topology: Topology) -> None:
    connection = pika.BlockingConnection(pika.URLParameters(node.amqp_url))
    channel = connection.channel()
    for queue in topology.queues:
        channel.queue_delete(queue.name)
    connection.close()


def names_in(url: str) -> list[str]:
    """Return what is in a folder, hidden files too."""
    location = locate(url)
    found = location.filesystem.get_file_info(FileSelector(location.path, recursive=True))
    return [each.base_name for each in found]


def test_a_backup_is_replaced_by_the_next_one_which_brings_the_federation_back(
    node: BrokerNode, broker: RabbitBroker, topology: Topology, fluffle: Fluffle, place: Place
) -> None:
    url = f"{place.url}/backup/ward-7.fluffle"
    first = fluffle("model", "export", "--out", url)
    publish(broker, topology, 4, [5.0, 6.0, 7.0, 8.0])
    second = fluffle("model", "export", "--out", url)
    lose_all_queues(node, topology)

    restored = fluffle("model", "restore", url)

    assert [each.exit_code for each in (first, second, restored)] == [0, 0, 0], restored.output
    assert f"version 4 (term 1) of {topology.federation} is in {url}" in second.output
    found = newest(broker, topology)
    assert (found.version, found.term, found.vector.tolist()) == (4, 1 + TERMS_AHEAD, [5.0, 6.0, 7.0, 8.0])
    assert names_in(f"{place.url}/backup") == ["ward-7.fluffle"]


@pytest.mark.usefixtures("broker")
def test_a_model_at_a_url_is_the_model_that_a_path_would_have(
    fluffle: Fluffle, place: Place, tmp_path: Path
) -> None:
    ended = fluffle("model", "export", "--out", f"{place.url}/model.safetensors")

    assert ended.exit_code == 0, ended.output
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(content_of(f"{place.url}/model.safetensors"))
    [(name, values)] = read_model(copy).items()
    assert (name, values.tolist()) == ("dense/kernel", [1.0, 2.0, 3.0, 4.0])


def test_what_a_task_writes_is_copied_to_the_url(
    broker: RabbitBroker, topology: Topology, fluffle: Fluffle, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    Place(s3.url, s3.environment).log_in(monkeypatch)
    weights = numpy_task.task.initial_weights(0)
    layout = Layout.of(weights)
    version = a_version(4, values=np.concatenate([each.ravel() for each in weights.values()]).tolist())
    commit(broker, topology, replace(version, federation=topology.federation, layout=layout))

    ended = fluffle("model", "export", "--task", "numpy_task:task", "--out", f"{s3.url}/task/model.keras")

    assert ended.exit_code == 0, ended.output
    stored = s3.client().get_object(Bucket=s3.bucket, Key="task/model.keras")["Body"].read()
    Path("model.keras").write_bytes(stored)
    assert read_model(Path("model.keras"))["kernel"].tolist() == weights["kernel"].tolist()


@pytest.mark.usefixtures("broker")
def test_the_commands_of_the_docs_write_a_model_and_a_backup(
    fluffle: Fluffle, hdfs: Hdfs, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    Place(s3.url, s3.environment).log_in(monkeypatch)
    page = (ROOT / "docs" / "data.md").read_text()
    page = page.replace("hdfs://namenode:8020", hdfs.url).replace("s3://hospital", s3.url)
    commands = [shlex.split(line)[1:] for line in page.splitlines() if line.startswith("fluffle model ")]
    *exports, restore = commands
    assert [each[:2] for each in commands] == [["model", "export"]] * 2 + [["model", "restore"]]

    for export in exports:
        ended = fluffle(*export)
        assert ended.exit_code == 0, ended.output
    # Nothing is lost here, and the command has read the file when it says so.
    assert "there is nothing to restore, start an aggregator" in " ".join(fluffle(*restore).output.split())


def test_a_place_that_does_not_answer_is_said_before_any_model_is_read(fluffle: Fluffle) -> None:
    # There is no federation yet, and no HDFS.
    ended = fluffle("model", "export", "--out", "webhdfs://127.0.0.1:1/backup/ward-7.fluffle")

    assert ended.exit_code == 2
    said = " ".join(ended.output.split())
    assert said.startswith(
        "error: cannot write webhdfs://127.0.0.1:1/backup/ward-7.fluffle: nothing answers there"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["export", "--out", "s3://bucket/model"], "--out must end in .safetensors, .keras or .fluffle, not"),
        (["export", "--out", "s3://me:geheim@bucket/x.fluffle"], "has a user or a password before the @"),
        (
            ["export", "--out", "gs://bucket/x.fluffle"],
            "unknown kind of URL gs://bucket/x.fluffle: known",
        ),
        (["restore", "hdfs:///x.fluffle"], "hdfs:///x.fluffle names no host"),
        (["restore", "file:///no/such.fluffle"], "file:///no/such.fluffle: there is no such file or folder"),
        (["restore", "no/such.fluffle"], "there is no file no/such.fluffle"),
    ],
)
def test_a_url_that_cannot_be_meant_ends_the_command_with_one_sentence(
    fluffle: Fluffle, arguments: list[str], said: str
) -> None:
    ended = fluffle("model", *arguments)

    assert ended.exit_code == 2
    assert said in " ".join(ended.output.split())
    assert "geheim" not in ended.output
