"""How fast an update becomes part of the buffer, codec by codec, beside what the memory gives.

    python -m benchmarks.fold

In GB of float32 a second on one core: `fold` decompresses and adds with a weight, in one go; `take_in` does
all that the aggregator does with a message (reads it, verifies its checksum, admits it, folds it); `encode`
is the worker's part, from the vector to the message. In turns with them, a copy and an in-place saxpy of as
many float32.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from benchmarks.bandwidth import moves, timed
from benchmarks.measuring import Cell, Report, Spread, in_turns, random_floats, wide_console
from benchmarks.publishers import Base
from benchmarks.taking_in import WayIn
from fluffle.compression import compress
from fluffle.model import Layout
from fluffle.plan import Plan
from fluffle.safetensors_file import ModelFile
from fluffle.update import UpdateId, WeightUpdate
from fluffle.wire import decode_inbound, encode_update
from fluffle_aggregator.global_model import GlobalModel
from fluffle_aggregator.goal import Goal
from fluffle_aggregator.initial_model import first_version
from fluffle_aggregator.strategies.fedbuff import FedBuffSettings
from fluffle_aggregator.strategies.strategy import Strategy

CODECS = ("float32", "bfloat16", "int8", "topk", "float32+zstd", "bfloat16+zstd", "int8+zstd", "topk+zstd")
SIZES_MB = (1.0, 10.0, 100.0)
REPEATS = 5
WEIGHT = 0.5


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(prog="fold", description="Measure how fast an update is folded.")
    parser.add_argument("--sizes", type=float, nargs="+", default=SIZES_MB, help="MB of float32")
    parser.add_argument("--codecs", nargs="+", default=CODECS)
    parser.add_argument("--repeats", type=int, default=REPEATS, help=f"default: {REPEATS}")
    arguments = parser.parse_args()
    report = Report("fold", "fold: GB of float32 a second on one core, beside copy and saxpy")
    for size_mb in arguments.sizes:
        measure(size_mb, arguments.codecs, report, arguments.repeats)
    report.show(wide_console())


def measure(size_mb: float, codecs: Sequence[str], report: Report, repeats: int) -> None:
    """Take a row for each codec into the report."""
    parameters = round(size_mb * 1e6 / 4)
    model = model_of(parameters)
    for codec in codecs:
        with report.row() as row:
            row.update({"size_mb": size_mb, "codec": codec, **_measure(codec, model, repeats)})


def _measure(codec: str, model: GlobalModel, repeats: int) -> Mapping[str, Cell | Spread]:
    size_bytes, actions = _actions(codec, model)
    gb_s = _rates(actions, model, repeats)
    return {
        "bytes_of_float32": round(size_bytes / (4 * model.vector.size), 4),
        "copy": gb_s["copy"],
        "saxpy": gb_s["saxpy"],
        "fold": gb_s["fold"],
        "fold_to_saxpy": gb_s["fold"].over(gb_s["saxpy"]),
        "take_in": gb_s["take_in"],
        "encode": gb_s["encode"],
    }


def _rates(
    actions: Mapping[str, Callable[[], object]], model: GlobalModel, repeats: int
) -> dict[str, Spread]:
    parameters = model.vector.size
    times = in_turns({name: timed(action, parameters) for name, action in actions.items()}, repeats)
    return {name: spread.rates(4e-9 * parameters) for name, spread in times.items()}


def _actions(codec: str, model: GlobalModel) -> tuple[int, Mapping[str, Callable[[], object]]]:
    """Return the size of a message in bytes, and what is done with one, by name."""
    parameters = model.vector.size
    update = replace(Base.of(model.record), codec=codec).update(UpdateId("client-0", "r1", 1), 0)
    body, total, delta = encode_update(update), random_floats(parameters, 1), random_floats(parameters, 2)
    received = decode_inbound(body)
    if not isinstance(received, WeightUpdate):
        raise TypeError(f"an update came back as {type(received).__name__}")
    random, way_in = np.random.default_rng(0), WayIn(model)
    return len(body), {
        **moves(parameters),
        "fold": partial(received.vector.add_to, total, WEIGHT),
        "take_in": lambda: way_in.take_in_again(body, "client-0"),
        "encode": lambda: encode_update(replace(update, vector=compress(codec, delta, random))),
    }


def model_of(parameters: int, strategy: Strategy | None = None) -> GlobalModel:
    """Return a global model of so many random float32, at version 0; by default no update makes it step."""
    if strategy is None:
        strategy = FedBuffSettings(buffer_size=10**9, staleness="constant", weigh_by="none").make()
    weights = {"kernel": random_floats(parameters)}
    file = ModelFile(Layout.of(weights), weights)
    record = first_version(file, federation="fold", plan=Plan(sends="delta"), strategy=str(strategy))
    return GlobalModel(record, strategy=strategy, plan=record.plan, goal=Goal(), term=1)


if __name__ == "__main__":
    main()
