"""What goes wrong beside a driver or inside a site is said by the driver, in the words of who knows it."""

from pathlib import Path

import pytest

pytest.importorskip("pyspark", reason="there is no Spark here: run scripts/setup.sh spark")

from federation import Federation
from on_spark import digits, training
from pyspark.sql import SparkSession

from fluffle.errors import FluffleError, LoginRefused
from fluffle_cli.node import BrokerNode

BROKEN = """
from numpy_task import SoftmaxRegression

class Task(SoftmaxRegression):
    def with_train_data(self, train_data):
        return {"no such": "key"}["thing"]

task = Task()
"""


def test_why_an_aggregator_beside_the_driver_ended_is_in_the_error(
    spark: SparkSession,
    node: BrokerNode,
    federation: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    started = Federation(federation, node.amqp_url, tmp_path)

    with training(started, digits(spark), aggregator={"strategy": "fedbuf"}) as run:
        run.wait()

    why = "FLUFFLE_STRATEGY must be one of fedbuff"
    assert isinstance(run.error, FluffleError)
    assert f"the aggregator beside the driver has ended: {why}" in str(run.error)
    assert why in capsys.readouterr().err


def test_a_login_that_all_sites_share_is_tried_at_the_driver(
    spark: SparkSession, node: BrokerNode, federation: str, tmp_path: Path
) -> None:
    url = node.amqp_url.replace("://", "://nobody:wrong@").replace("guest:guest@", "")
    started = Federation(federation, node.amqp_url, tmp_path)

    with training(started, digits(spark), broker_url=url) as run:
        run.wait()

    assert isinstance(run.error, LoginRefused)


@pytest.mark.long
def test_an_error_in_the_code_of_a_task_is_named_by_the_driver(
    spark: SparkSession,
    node: BrokerNode,
    federation: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "broken_task_of_rows.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    started = Federation(federation, node.amqp_url, tmp_path)

    with training(started, digits(spark), task="broken_task_of_rows:task") as run:
        run.wait()

    assert isinstance(run.error, FluffleError)
    assert "ended with 1 (see the executor's stderr): KeyError: 'thing'" in str(run.error)
    assert "\n" not in str(run.error)
