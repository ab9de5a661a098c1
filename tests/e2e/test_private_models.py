"""Differential privacy with models that were not made for it: scikit-learn's, and an LSTM in Keras."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from federation import Federation

from fluffle.privacy.secret_file import write_new_secret
from fluffle_cli.node import BrokerNode

TESTS, ROOT = Path(__file__).parent.parent, Path(__file__).parent.parent.parent
SITES, UPDATES = 2, 3


@pytest.mark.long
@pytest.mark.parametrize(
    "case",
    [
        ("sklearn_task:task", ("--dp", "central", "--dp-clip", "5", "--dp-secret", "noise.secret")),
        ("tasks.small_device_task:lstm", ("--dp", "local", "--dp-clip", "0.5", "--strategy", "reuse")),
    ],
)
def test_each_site_sends_its_updates_leaves_and_nothing_is_refused(
    node: BrokerNode,
    tmp_path: Path,
    federation: str,
    monkeypatch: pytest.MonkeyPatch,
    case: tuple[str, tuple[str, ...]],
) -> None:
    task, flags = case
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, [TESTS, ROOT / "examples", ROOT, *sys.path])))
    write_new_secret(tmp_path / "noise.secret")
    with Federation(federation, node.amqp_url, tmp_path, task=task) as running:
        promise = ("--dp-epsilon", "200", "--dp-max-updates", str(UPDATES), *flags)
        leader = running.aggregator(
            "leader", *promise, "--buffer-size", str(SITES), "--buffer-timeout", "3", "--local-steps", "5"
        )
        workers = [running.worker(site, "--dp-epsilon", "200", sites=SITES) for site in range(SITES)]

        assert [part.wait_for_exit() for part in (leader, *workers)] == [0] * (1 + SITES)

        final = running.newest()
        assert final.finished == f"all workers have sent the {UPDATES} updates that the privacy budget allows"
        assert final.rejected == 0
        assert final.privacy is not None
        assert {each.updates for each in final.privacy.participations.values()} == {UPDATES}
        assert np.isfinite(final.vector).all()
        assert "epsilon 200 of 200 spent" in running.fluffle("privacy", "status").stdout
