"""What each step costs of the way of an update through the aggregator's process.

    python -m benchmarks.steps

Microseconds of CPU, step by step, without a broker: what RabbitMQ sends is read from memory, once by the
product's connection and once by pika's own. What the kernel takes for sockets, and what it takes to wake
threads, is not in it; the rest of the CPU that `ingest` shows is that. `step_fedbuff` and `step_reuse` are
the fold of one update and the step that it makes (K = 1) with these strategies, `reuse` with four workers.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from itertools import cycle

import pika
from pika import frame, spec

from benchmarks.fold import model_of
from benchmarks.measuring import Cell, Report, Spread, in_turns, wide_console
from benchmarks.publishers import Base
from benchmarks.taking_in import WayIn
from fluffle.framing import record_digest
from fluffle.rabbit.large_bodies import READ_BYTES, LargeBodyConnection
from fluffle.record_wire import version_pieces
from fluffle.update import UpdateId, WeightUpdate
from fluffle.wire import decode_inbound, encode_update
from fluffle_aggregator.strategies.registry import StrategySettings

SIZES_MB = (0.1, 1.0, 10.0)
# pika's own, and the most that RabbitMQ puts into one frame.
PIKA_READ_BYTES = 4096
BODY_IN_A_FRAME = 131_064
LEAST_CPU_S = 0.1
# As many as `kept` has.
WORKERS = 4


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(prog="steps", description="Measure what each step of an update costs.")
    parser.add_argument("--sizes", type=float, nargs="+", default=SIZES_MB, help="MB of float32")
    parser.add_argument("--repeats", type=int, default=5, help="turns that count (default: 5)")
    arguments = parser.parse_args()
    report = Report("steps", "steps: CPU microseconds of one update in the aggregator")
    for size_mb in arguments.sizes:
        with report.row() as row:
            row.update({"size_mb": size_mb, **_measure(round(size_mb * 1e6 / 4), arguments.repeats)})
    report.show(wide_console())


def _measure(parameters: int, repeats: int) -> Mapping[str, Cell | Spread]:
    model = model_of(parameters)
    body = encode_update(Base.of(model.record).update(UpdateId("client-0", "r1", 1), 0))
    update, total = decode_inbound(body), model.vector.copy()
    if not isinstance(update, WeightUpdate):
        raise TypeError(f"an update came back as {type(update).__name__}")
    record, way_in = version_pieces(model.record), WayIn(model)
    steps: Mapping[str, Callable[[], object]] = {
        "pika_reads": _receiving(pika.SelectConnection, body, PIKA_READ_BYTES),
        "reads": _receiving(LargeBodyConnection, body, READ_BYTES),
        "decode": lambda: decode_inbound(body),
        "take_in": lambda: way_in.take_in_again(body, "client-0"),
        "fold": lambda: update.vector.add_to(total, 1.0),
        "encode_version": lambda: version_pieces(model.record),
        "digest": lambda: record_digest(record),
        "step_fedbuff": _stepping("fedbuff", parameters),
        "step_reuse": _stepping("reuse", parameters),
    }
    return dict(in_turns({name: _cpu_us(step) for name, step in steps.items()}, repeats))


def _stepping(strategy: str, parameters: int) -> Callable[[], None]:
    """Return the fold of an update and the step that it makes, of four workers in turn."""
    model = model_of(parameters, StrategySettings(strategy=strategy, buffer_size=1).make_strategy())
    base = Base.of(model.record)
    turns = cycle([base.update(UpdateId(f"client-{number}", "r1", 1), 0) for number in range(WORKERS)])

    def step() -> None:
        model.fold(next(turns), now=0.0)
        model.folded.clear()

    return step


def _receiving(kind: type[pika.SelectConnection], body: bytes, read_bytes: int) -> Callable[[], None]:
    """Return how a connection makes a delivery of the bytes that RabbitMQ sends for it."""
    delivery = spec.Basic.Deliver("c", 1, redelivered=False, exchange="e", routing_key="")
    parts = [body[start : start + BODY_IN_A_FRAME] for start in range(0, len(body), BODY_IN_A_FRAME)]
    frames = [
        frame.Method(1, delivery),
        frame.Header(1, len(body), pika.BasicProperties()),
        *(frame.Body(1, part) for part in parts),
    ]
    stream = memoryview(b"".join(each.marshal() for each in frames))
    connection = kind(pika.ConnectionParameters(), internal_connection_workflow=False)
    connection.ioloop.close()
    connection._channels[1] = connection._create_channel(1, None)
    connection._channels[1]._consumers["c"] = lambda *_: None

    def receive() -> None:
        for start in range(0, len(stream), read_bytes):
            connection._on_data_available(bytes(stream[start : start + read_bytes]))

    return receive


def _cpu_us(step: Callable[[], object]) -> Callable[[], float]:
    """Return a measurement of the CPU microseconds that a step takes."""

    def measure() -> float:
        began, times = time.process_time(), 0
        while time.process_time() - began < LEAST_CPU_S:
            step()
            times += 1
        return (time.process_time() - began) / times * 1e6

    return measure


if __name__ == "__main__":
    main()
