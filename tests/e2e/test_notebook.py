"""The example notebook, run from its first cell to its last, as somebody would who opens it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from federation import ROOT

from fluffle_cli.node import BrokerNode

EXECUTE = Path(sys.executable).with_name("jupyter-execute")


def test_the_example_notebook_trains_a_model_in_one_process(
    node: BrokerNode, federation: str, tmp_path: Path
) -> None:
    notebook = tmp_path / "one_process.ipynb"
    shutil.copy(ROOT / "examples" / notebook.name, notebook)
    environment = os.environ | {
        "FLUFFLE_BROKER_URL": node.amqp_url,
        "FLUFFLE_FEDERATION": federation,
        "IPYTHONDIR": str(tmp_path / "ipython"),
    }

    run = subprocess.run(
        [EXECUTE, "--inplace", notebook.name],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )

    assert run.returncode == 0, run.stderr
    cells = json.loads(notebook.read_text())["cells"]
    results = [
        "".join(output["data"]["text/plain"])
        for cell in cells
        for output in cell.get("outputs", [])
        if output["output_type"] == "execute_result"
    ]
    trained, metrics = results[-2:]
    assert trained.count("WorkerResult(ended_by='accuracy>=0.95") == 3
    assert "accuracy" in metrics
    assert (tmp_path / "trained.keras").stat().st_size > 1000
