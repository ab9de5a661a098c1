"""Sites on Spark log in over TLS, with the authority's certificate at the same path on all machines."""

from pathlib import Path

import pytest

pytest.importorskip("pyspark", reason="there is no Spark here: run scripts/setup.sh spark")

from federation import Federation
from on_spark import digits, training
from pyspark.sql import SparkSession

from fluffle_cli.certificates import make_certificates, pair_at
from fluffle_cli.node import BrokerNode


@pytest.mark.long
def test_sites_and_the_aggregator_beside_the_driver_use_tls(
    spark: SparkSession, federation: str, tmp_path: Path
) -> None:
    certificates = tmp_path / "certificates"
    make_certificates(certificates, users=[])
    own = {"broker_ca_file": pair_at(certificates / "ca").certificate}
    beside = {"aggregator": {"strategy": "fedavg", "buffer_size": 2, "max_versions": 3}}

    with BrokerNode.start(tmp_path / "node", management=False, certificates=certificates) as node:
        started = Federation(federation, node.amqp_url, tmp_path)
        with training(started, digits(spark), delay=0.0, **own, **beside) as run:
            run.wait()

    assert run.error is None
    assert node.amqp_url.startswith("amqps://")
    assert [row.updates for row in run.rows.values()] == [3, 3]
