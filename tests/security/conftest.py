"""A RabbitMQ node with its management interface, for tests of users and rights."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fluffle_command import Fluffle
from typer.testing import CliRunner, Result

from fluffle.management import Management, ManagementSettings
from fluffle_cli.main import app
from fluffle_cli.node import BrokerNode


@pytest.fixture(scope="session")
def managed_node() -> Iterator[BrokerNode]:
    """One node for all of them; its one user is the administrator."""
    with (
        tempfile.TemporaryDirectory(prefix="fluffle-tests-") as folder,
        BrokerNode.start(Path(folder)) as started,
    ):
        yield started


@pytest.fixture(scope="session")
def management(managed_node: BrokerNode) -> Iterator[Management]:
    """The administrator's login."""
    settings = ManagementSettings(
        broker_url=managed_node.amqp_url, management_url=managed_node.management_url
    )
    with settings.management() as management:
        yield management


@pytest.fixture
def fluffle(managed_node: BrokerNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fluffle:
    """Run a command as the node's administrator, unless `environment` says otherwise."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fluffle.logs.configure", lambda *_, **__: None)
    usual = {
        "FLUFFLE_BROKER_URL": managed_node.amqp_url,
        "FLUFFLE_MANAGEMENT_URL": managed_node.management_url,
        "COLUMNS": "200",
    }

    def run(*arguments: str, **environment: str) -> Result:
        return CliRunner().invoke(app, [*arguments], env=usual | environment)

    return run
