"""Each strategy gives the bits that it gave before updates of a part of the model existed.

The digests were made with the code of that time, but for those of fedac and reuse: inner products were summed
up by numpy then, whose order differs from version to version. A change that is meant to change a strategy's
numbers writes new ones here, and says why in its commit.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from builders import a_version

from fluffle.compression import compress
from fluffle.model import Layout, TensorSpec
from fluffle.plan import Plan
from fluffle.update import UpdateId, WeightUpdate
from fluffle_aggregator.global_model import GlobalModel
from fluffle_aggregator.goal import Goal
from fluffle_aggregator.strategies.registry import STRATEGIES, StrategySettings

LAYOUT = Layout(
    (
        TensorSpec("conv/kernel", (66_000,), "float32"),
        TensorSpec("norm/mean", (5,), "float32", "statistic"),
        TensorSpec("norm/count", (), "int64", "statistic"),
        TensorSpec("dense/kernel", (4_000,), "float32"),
        TensorSpec("last/mean", (3,), "float32", "statistic"),
    )
)
WORKERS = ("a", "b", "c", "a", "d", "b", "a", "c")
CASES: Mapping[str, tuple[dict[str, object], str, str]] = {
    "fedbuff": ({"strategy": "fedbuff"}, "float32", "e150d4d41b4c447f"),
    "fedavg": ({"strategy": "fedavg"}, "float32", "5154450b1f1c4d45"),
    "fadas": ({"strategy": "fadas"}, "float32", "e643b5dd2e829ea1"),
    "fedac": ({"strategy": "fedac"}, "float32", "d85cf1a8175a684a"),
    "fedasync": ({"strategy": "fedasync"}, "float32", "17b467d003f15048"),
    "reuse": ({"strategy": "reuse"}, "float32", "9061712a6e4304af"),
    "ace": ({"strategy": "ace"}, "float32", "60623d2f431f30d0"),
    "ca2fl": ({"strategy": "ca2fl"}, "float32", "aed1a92081f00268"),
    "ringleader": ({"strategy": "ringleader"}, "float32", "9a6609b73c929cbf"),
    "fedbuff of 3, int8": ({"strategy": "fedbuff", "buffer_size": 3}, "int8", "2e6c22f9ab6cd8b0"),
    "fedavg of 3, int8": ({"strategy": "fedavg", "buffer_size": 3}, "int8", "53abd9f4e39e6c28"),
    "fadas of 3, int8": ({"strategy": "fadas", "buffer_size": 3}, "int8", "19e083033fba0504"),
    "fedac of 3, int8": ({"strategy": "fedac", "buffer_size": 3}, "int8", "10a66321a5f8d601"),
    "reuse of 3, int8": ({"strategy": "reuse", "buffer_size": 3}, "int8", "e491d49936b19ac5"),
    "ace of 3, int8": ({"strategy": "ace", "buffer_size": 3}, "int8", "0df49c8c78a70071"),
    "ca2fl of 3, int8": ({"strategy": "ca2fl", "buffer_size": 3}, "int8", "9cf7ea89744f64e9"),
    "fedbuff momentum": (
        {"strategy": "fedbuff", "server_optimizer": "momentum", "server_learning_rate": 0.1},
        "float32",
        "47ef71d0e715b7da",
    ),
    "fedbuff adam": (
        {"strategy": "fedbuff", "server_optimizer": "adam", "server_learning_rate": 0.1},
        "float32",
        "af28fceeaaae2172",
    ),
    "fedbuff yogi": (
        {"strategy": "fedbuff", "server_optimizer": "yogi", "server_learning_rate": 0.1},
        "float32",
        "be5b7d2b6513387a",
    ),
    "fedbuff adagrad": (
        {"strategy": "fedbuff", "server_optimizer": "adagrad", "server_learning_rate": 0.1},
        "float32",
        "ee24ac208a1bd50f",
    ),
    "fedbuff median": (
        {"strategy": "fedbuff", "rule": "median", "buffer_size": 5},
        "float32",
        "8719aa336c53e927",
    ),
    "fedavg median": (
        {"strategy": "fedavg", "rule": "median", "buffer_size": 5},
        "float32",
        "c1a96dbaefe3b03a",
    ),
    "fadas median": (
        {"strategy": "fadas", "rule": "median", "buffer_size": 5},
        "float32",
        "c73908d1a7482e10",
    ),
    "fedbuff trimmed-mean:0.2": (
        {"strategy": "fedbuff", "rule": "trimmed-mean:0.2", "buffer_size": 5},
        "float32",
        "7d1bd17d47ec93c7",
    ),
    "fedavg trimmed-mean:0.2": (
        {"strategy": "fedavg", "rule": "trimmed-mean:0.2", "buffer_size": 5},
        "float32",
        "7f6b09980536bedc",
    ),
    "fadas trimmed-mean:0.2": (
        {"strategy": "fadas", "rule": "trimmed-mean:0.2", "buffer_size": 5},
        "float32",
        "96711fe802683061",
    ),
    "fedbuff normalize_steps": (
        {"strategy": "fedbuff", "normalize_steps": True},
        "float32",
        "8de54c6fdd5e3cbc",
    ),
    "fedavg normalize_steps": (
        {"strategy": "fedavg", "normalize_steps": True},
        "float32",
        "451f00f28d3fd7c3",
    ),
    "fadas normalize_steps": ({"strategy": "fadas", "normalize_steps": True}, "float32", "74460172f4843db8"),
    "fedbuff median normalize_steps": (
        {"strategy": "fedbuff", "rule": "median", "normalize_steps": True},
        "float32",
        "50b3d224820e29a1",
    ),
    "reuse normalize_steps": (
        {"strategy": "reuse", "buffer_size": 2, "normalize_steps": True},
        "float32",
        "3493c1e0bffaeaa3",
    ),
    "fedbuff throttled": (
        {"strategy": "fedbuff", "throttle": 1.3, "staleness": "hinge"},
        "float32",
        "e35235d053574468",
    ),
    "fedbuff topk": ({"strategy": "fedbuff"}, "topk:0.1", "d6cbec9d1b9b8e54"),
    "ace, float32 cache, adam": (
        {"strategy": "ace", "cache_codec": "float32", "server_optimizer": "adam"},
        "float32",
        "e7a18009e2938119",
    ),
    "ca2fl, float32 cache": (
        {"strategy": "ca2fl", "cache_codec": "float32", "calibration": 0.7},
        "float32",
        "e91c9df2a52a5027",
    ),
    "reuse of 4, momentum": (
        {"strategy": "reuse", "buffer_size": 4, "server_optimizer": "momentum"},
        "float32",
        "09cdab8b6425fd94",
    ),
    "fedasync bfloat16": ({"strategy": "fedasync", "weigh_by": "sqrt"}, "bfloat16", "7cab8c548703079d"),
}


def digest_of(settings: Mapping[str, object], codec: str = "float32") -> str:
    """Return a digest of the model and the moments after some updates of four workers."""
    strategy = StrategySettings.model_validate(settings).make_strategy()
    rng = np.random.default_rng(14)
    record = replace(
        a_version(layout=LAYOUT),
        vector=rng.random(LAYOUT.size, np.float32),
        statistics=rng.random(LAYOUT.statistics_size, np.float32),
        integers=bytes(LAYOUT.integers_size_bytes),
    )
    model = GlobalModel(
        record, strategy=strategy, plan=Plan(codec=codec), goal=Goal(), term=1, average_decay=0.9
    )
    for sequence in range(1, 25):
        late = 0 if strategy.one_update_per_version else int(rng.integers(0, 3))
        worker = f"w{sequence % 4}" if strategy.one_update_per_version else WORKERS[sequence % 8]
        update = WeightUpdate(
            federation=record.federation,
            id=UpdateId(worker, "r", sequence),
            base_term=1,
            base_version=max(0, model.version - late),
            layout_digest=LAYOUT.digest,
            sends=strategy.sends,
            codec=codec,
            vector=compress(codec, rng.random(LAYOUT.size, np.float32) - np.float32(0.4), rng),
            statistics=rng.random(LAYOUT.statistics_size, np.float32),
            integers=rng.bytes(LAYOUT.integers_size_bytes),
            examples=int(rng.integers(1, 100)),
            steps=int(rng.integers(1, 9)),
        )
        model.fold(update, now=0.0)
    model.step()
    assert np.isfinite(model.vector).all()
    hashed = hashlib.sha256()
    moments = [model.moments[name] for name in sorted(model.moments)]
    for vector in (model.vector, model.average, model.statistics, *moments):
        hashed.update(vector.tobytes())
    hashed.update(model.integers)
    return hashed.hexdigest()[:16]


@pytest.mark.parametrize("name", CASES)
def test_a_strategy_gives_the_same_bits_as_before_updates_of_a_part(name: str) -> None:
    settings, codec, expected = CASES[name]

    assert digest_of(settings, codec) == expected


def test_every_strategy_has_a_digest() -> None:
    assert {settings["strategy"] for settings, _, _ in CASES.values()} == set(STRATEGIES)
