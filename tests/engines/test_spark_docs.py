"""docs/spark.md is true: its commands run in one shell, with its files, on a Spark with its own executors."""

import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("pyspark", reason="there is no Spark here: run scripts/setup.sh spark")

from federation import ROOT
from sklearn.datasets import load_breast_cancer

from fluffle.storage import write_to
from fluffle_cli.node import BrokerNode
from harness.hdfs import Hdfs
from harness.spark import SparkCluster

PAGE = (ROOT / "docs" / "spark.md").read_text()
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
WHEEL = "fluffle-0.1.0-py3-none-any.whl"
# What the environment of the page gets without a network: this checkout as a wheel, and all else from here.
INSTALL = f"""\
pip install -q --no-deps --no-index '{WHEEL}'
echo '{sysconfig.get_path("purelib")}' > "$(echo fluffle-env/lib/python*/site-packages)/all.pth"
"""
HELD_OUT = 100
DEADLINE_S = 400


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerNode]:
    """A broker with the management interface, over which users are made."""
    with BrokerNode.start(tmp_path_factory.mktemp("broker")) as started:
        yield started


@pytest.mark.long
def test_all_that_the_page_shows_trains_both_hospitals_and_writes_no_password(
    hdfs: Hdfs, broker: BrokerNode, tmp_path: Path
) -> None:
    write_patients(f"{hdfs.url}/patients", tmp_path / "held-out.npz")
    build_wheel(tmp_path)
    cluster = SparkCluster.prepare(tmp_path / "spark", settings=settings_of_the_page(tmp_path / "local"))
    commands = written(tmp_path, hdfs, broker)
    kept = {"PYTHONPATH": "", "PATH": os.pathsep.join([str(cluster.folder / "bin"), os.environ["PATH"]])}
    named = {
        name: cluster.environment[name] for name in ("SPARK_HOME", "SPARK_LOCAL_IP", "SPARK_LOCAL_HOSTNAME")
    }

    ran = subprocess.run(
        ["bash", "-exuo", "pipefail", "-c", commands],
        cwd=tmp_path,
        env=os.environ | kept | named | {"FLUFFLE_MANAGEMENT_URL": str(broker.management_url)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )

    assert ran.returncode == 0, ran.stdout + ran.stderr
    ended = re.findall(r"^\W*(north|south)\b.*accuracy>=0\.93 he", ran.stdout, re.MULTILINE)
    assert sorted(ended) == ["north", "north", "south", "south"], ran.stdout
    passwords = [file.read_text().strip() for file in (tmp_path / "passwords").iterdir()]
    assert len(passwords) == 2
    assert_written_nowhere([*passwords, broker.password], tmp_path / "spark", tmp_path / "local")


def blocks(kind: str) -> list[str]:
    """Return the fenced blocks of the page of one kind, with their content."""
    return [content for name, content in BLOCK.findall(PAGE) if name == kind]


def written(place: Path, hdfs: Hdfs, broker: BrokerNode) -> str:
    """Write the files of the page, and return its commands, with what is here in the place of examples."""
    here = {
        "hdfs://namenode:8020": hdfs.url,
        "amqp://operator:PASSWORD@broker.example:5672/%2F": broker.amqp_url,
        "--master yarn ": "",
        # Elsewhere its port is the usual one.
        "make_users=True": f'make_users=True, management_url="{broker.management_url}"',
        f"pip install '{WHEEL}[spark,worker]'\n": INSTALL,
    }

    def changed(text: str) -> str:
        for example, real in here.items():
            text = text.replace(example, real)
        return text

    assert not [example for example in here if example not in PAGE]
    for content in blocks("python"):
        (place / content.split()[1]).write_text(changed(content))
    return changed("".join(blocks("bash")))


def settings_of_the_page(local: Path) -> dict[str, str]:
    """Return the settings that encrypt, the secret that they need here, and the event log."""
    [content] = blocks("properties")
    return {
        **dict(line.split() for line in content.splitlines()),
        "spark.authenticate.secret": "known to this test alone",
        "spark.local.dir": str(local),
        "spark.eventLog.enabled": "true",
        "spark.eventLog.compress": "false",
    }


def write_patients(folder_url: str, held_out: Path) -> None:
    """Write what two hospitals have measured to HDFS, and what both hold out to a file here."""
    x, y = load_breast_cancer(return_X_y=True)
    x = ((x - x.mean(axis=0)) / x.std(axis=0)).astype(np.float32)
    np.savez(held_out, x=x[:HELD_OUT], y=y[:HELD_OUT])
    columns = {f"measured_{number}": x[HELD_OUT:, number] for number in range(x.shape[1])}
    names = ["north" if number % 3 else "south" for number in range(len(x) - HELD_OUT)]
    file = pa.BufferOutputStream()
    pq.write_table(pa.table({"hospital": names, **columns, "outcome": y[HELD_OUT:]}), file)
    write_to(f"{folder_url}/all.parquet", [file.getvalue()])


def build_wheel(into: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(into)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert (into / WHEEL).exists()


def assert_written_nowhere(secrets: list[str], *folders: Path) -> None:
    """Search all that Spark has written: event logs, executors' logs and folders, and its configuration."""
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    own = [file for file in files if not file.resolve().is_relative_to(sysconfig.get_path("purelib"))]
    assert any("events" in file.parts for file in own)
    assert any(file.name == "stderr" for file in own)
    for file in own:
        content = file.read_bytes()
        assert not [file for secret in secrets if secret.encode() in content]
