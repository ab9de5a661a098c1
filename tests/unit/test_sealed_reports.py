"""What people have reported of encrypted federated learning elsewhere, tried on sealed federations."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from builders import a_version
from sealed_sites import KEY, LAYOUT, OTHER_KEY, PLAN, decrypted
from sealed_sites import version as sealed_version
from working import TOPOLOGY, CountingTask, Scripted, a_federation, publish_versions, sent_updates

from fluffle.checked_task import CheckedTask
from fluffle.errors import ConfigError
from fluffle.model import Weights
from fluffle.plan import Plan
from fluffle.record import ModelVersion
from fluffle.sealed.plan import MOST_ERROR, SEALED, SealedState
from fluffle.sealed.residues import add_weighted, pack
from fluffle.task import Progress, Trained
from fluffle.topology import MIB
from fluffle_worker.loop import Worker
from fluffle_worker.running import run_evaluator, run_worker
from fluffle_worker.sealing import SealedSite
from fluffle_worker.spool import open_spool


class MixedTask(CountingTask):
    """What a converted language model has: scalars, half precision, counters, and one very large kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.started: list[Weights] = []

    def initial_weights(self, seed: int) -> Weights:
        """See Task."""
        return {
            "temperature": np.full((), 0.5, np.float32),
            "half": np.zeros((3, 5), np.float16),
            "brain": np.zeros(7, ml_dtypes.bfloat16),
            "kernel": np.zeros((3, 3, 64, 64), np.float32),
            "position_ids": np.arange(512, dtype=np.int64)[None],
            "is_tied": np.array(True),
        }

    def train(self, weights: Weights, plan: Plan, *, seed: int, progress: Progress) -> Trained:
        """See Task."""
        self.started.append(weights)
        changed = {
            name: (values.astype(np.float32) + np.float32(0.25)).astype(values.dtype)
            for name, values in weights.items()
            if name not in ("position_ids", "is_tied")
        }
        kept = {name: weights[name] for name in ("position_ids", "is_tied")}
        return Trained({**changed, **kept}, examples=10, metrics={})


def test_a_model_of_scalars_integers_half_precision_and_a_large_kernel_is_sealed(tmp_path: Path) -> None:
    """NVIDIA/NVFlare issue 1970: a BERT model fails. OpenMined/TenSEAL 387: no memory for this kernel."""
    task = MixedTask()
    model = CheckedTask(task).model()
    flat = model.layout.flatten(model.weights)

    def version(number: int, finished: str = "") -> ModelVersion:
        plan = Plan(sealed=PLAN, codec=SEALED, updates_per_version=100)
        record = a_version(
            number, values=flat.vector.tolist(), layout=model.layout, plan=plan, finished=finished
        )
        return replace(record, integers=flat.integers, sealed=SealedState())

    server = a_federation(version(0))
    with open_spool(tmp_path / "spool", worker="w1", max_bytes=64 * MIB) as spool:
        worker = Worker(name="w1", task=task, topology=TOPOLOGY, spool=spool, sealed_key=KEY)
        worker.work(lambda: Scripted(server, lambda *_: publish_versions(server, version(9, "enough"))))

    [update] = sent_updates(server)
    np.testing.assert_allclose(decrypted(update), 0.25, rtol=0, atol=MOST_ERROR)
    assert decrypted(update).size == 1 + 15 + 7 + 9 * 64 * 64
    assert (update.integers, update.statistics.size) == (b"", 0)
    assert task.started[0]["half"].dtype == np.float16


def test_ciphertexts_of_two_keys_add_up_to_what_every_worker_refuses() -> None:
    """OpenMined/TenSEAL issue 453: the sum of ciphertexts of two contexts decrypts to wrong values."""
    values = np.full(LAYOUT.size, 0.25)
    total = KEY.encrypt(values)
    add_weighted(total, OTHER_KEY.encrypt(values), 64)

    record = replace(sealed_version(3, total=values), sealed_sum=pack(total))
    with pytest.raises(ConfigError, match="another worker has another key, or has spoiled the sum"):
        SealedSite(key=KEY).opened(record)


@pytest.mark.parametrize("run", [run_worker, run_evaluator], ids=["worker", "evaluator"])
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot read .*: No such file"),
        (b"\x80\x04 a pickle", "is no secret file"),
    ],
    ids=["missing", "another file"],
)
def test_a_notebook_learns_of_a_wrong_key_file_before_anything_is_prepared(
    run: Callable[..., object], content: bytes | None, says: str, tmp_path: Path
) -> None:
    """NVIDIA/NVFlare issue 1959: that the context is missing shows only when training runs."""
    file = tmp_path / "sealed.secret"
    if content is not None:
        file.touch(mode=0o600)
        file.write_bytes(content)

    with pytest.raises(ConfigError, match=says):
        run(CountingTask(), sealed_secret=file, broker_url="amqp://127.0.0.1:1", connect_timeout_s=0.1)
