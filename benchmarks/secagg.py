"""The time from the last client's masked vector to the new model, beside Flower's SecAgg+.

    make secagg

Ten clients with given vectors, nobody trains. Rounds of Fluffle with three helpers are played in turns with
rounds of Flower, with the same clip, rounding and modulus: first of Flower's simulation, then of a SuperLink
with ten SuperNodes. Fluffle's rounds have a real aggregator, real helpers and a RabbitMQ. This process is the
ten workers: one after the other reads the newest version, masks its vector and publishes it. `from_client_ms`
is what is compared; to reach: a fifth of Flower's. `flower_rounds.Round` says what else is measured.
"""

import argparse
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.flower_rounds import Round, flower
from benchmarks.measuring import Cell, OtherWork, Report, Spread, in_turns, random_floats, wide_console
from benchmarks.page import PAGES, fill
from benchmarks.peers import PEERS
from benchmarks.publishers import HEARTBEAT_S
from benchmarks.secure import WORKERS, Side, a_side
from benchmarks.sides import private_broker
from benchmarks.verdicts import Verdict, exit_code
from fluffle.codecs.floats import Float32Vector
from fluffle.model import Vector
from fluffle.model_stream import newest_version
from fluffle.rabbit import RabbitBroker
from fluffle.record import ModelVersion
from fluffle.secure.masking import whole_numbers
from fluffle.update import UpdateId, WeightUpdate
from fluffle.wire import encode_update
from fluffle_cli.node import BrokerNode

REQUIRED: Final = 5.0
MODULUS: Final = 24


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write, print, and end with 1 when five times less is not reached."""
    parser = argparse.ArgumentParser(prog="secagg", description="Measure beside Flower's SecAgg+.")
    parser.add_argument("--parameters", type=int, nargs="+", default=(10_000, 1_000_000))
    parser.add_argument("--simulated", type=int, default=20, help="rounds beside Flower's simulation")
    parser.add_argument("--deployed", type=int, default=6, help="rounds beside a SuperLink and SuperNodes")
    given = parser.parse_args(arguments)
    if not (PEERS / "python").exists():
        raise SystemExit("the peers are not installed: make secagg does that")
    console, verdicts = wide_console(), []
    report = Report("secagg", "secagg: from the last client's masked vector to the new model, ten clients")
    with private_broker(report) as (folder, node):
        for parameters in given.parameters:
            for name, rounds in (("simulated", given.simulated), ("deployed", given.deployed)):
                others, place = OtherWork(), folder / f"{name}-{parameters}"
                ours, theirs = measured(place, node, parameters, rounds, is_deployed=name == "deployed")
                busy = others.share
                report.add({"parameters": parameters, "what": "Fluffle", **row_of(ours, ours)}, others=busy)
                what = f"Flower, {name}"
                report.add({"parameters": parameters, "what": what, **row_of(theirs, ours)}, others=busy)
                verdicts.append(demand(f"{what}, {parameters} parameters", ours, theirs))
    report.show(console)
    for verdict in verdicts:
        console.print(f"{verdict.what}: {verdict.measured:.1f} times Fluffle's, {verdict}", markup=False)
    fill([PAGES / "secagg.md"])
    raise SystemExit(exit_code(verdicts))


def measured(
    place: Path, node: BrokerNode, parameters: int, repeats: int, *, is_deployed: bool
) -> tuple[Sequence[Round], Sequence[Round]]:
    """Play rounds of Fluffle and Flower in turns, and return those that count."""
    vectors = np.stack([5 * random_floats(parameters, seed) for seed, _ in enumerate(WORKERS)])
    with ExitStack() as stack:
        side = stack.enter_context(a_side(place, node, parameters, MODULUS))
        url = side.federation.broker_url
        broker = stack.enter_context(RabbitBroker(url, name="workers", heartbeat_s=HEARTBEAT_S))
        fluffle = Fluffle(side, broker, vectors)
        most = repeats + repeats % 2 + 1
        started = flower(place / "flower", vectors, fluffle.plan, most, is_deployed=is_deployed)
        plays = {"Fluffle": fluffle.play, "Flower": stack.enter_context(started)}
        found: dict[str, list[Round]] = {name: [] for name in plays}

        def one_round(name: str) -> float:
            with wide_console().status(f"{parameters} parameters, round {len(found[name]) + 1}: {name}"):
                found[name].append(plays[name]())
            return found[name][-1].from_client_s

        in_turns({name: partial(one_round, name) for name in plays}, repeats)
    step = fluffle.plan.clip / fluffle.plan.fixed_point.levels
    for name, rounds in found.items():
        worst = max(one.error for one in rounds)
        if worst > step:
            raise RuntimeError(f"{name} is {worst:.2g} away from the mean, with steps of {step:.2g}")
    return found["Fluffle"][1:], found["Flower"][1:]


class Fluffle:
    """Ten workers of a federation with secure aggregation; they are this process."""

    def __init__(self, side: Side, broker: RabbitBroker, vectors: NDArray[np.float32]) -> None:
        """Begin without a round. Raises ValueError if the federation has no secure aggregation."""
        if side.version.plan.secure is None:
            raise ValueError("this federation has no secure aggregation")
        self.plan = side.version.plan.secure
        self._side, self._broker, self._vectors = side, broker, vectors
        self._random = np.random.default_rng(0)
        self._rounds = 0

    def play(self) -> Round:
        """Play a round: each worker publishes one update, and a version is committed."""
        self._rounds += 1
        before, sent_bytes = self._newest(), 0
        began = masked = time.time()
        for worker, vector in zip(WORKERS, self._vectors, strict=True):
            body = self._masked_update(worker, vector)
            masked = time.time()
            exchange = self._side.federation.topology.updates_in.name
            self._broker.publish_as(worker, exchange, "", body, {"kind": "update"})
            sent_bytes += len(body)
        ended = self._side.aggregator.wait_until_acked(len(WORKERS) * self._rounds)
        openings_ms, commits_ms = self._side.waits_ms()
        moved = self._newest().vector.astype(np.float64) - before.vector
        return Round(
            from_client_s=ended - masked,
            from_server_s=commits_ms[-1] / 1000,
            waited_s=openings_ms[-1] / 1000,
            whole_s=ended - began,
            client_sends_bytes=sent_bytes / len(WORKERS),
            client_receives_bytes=before.vector.nbytes,
            error=float(np.abs(moved - self._vectors.mean(axis=0, dtype=np.float64)).max()),
        )

    def _masked_update(self, worker: str, vector: Vector) -> bytes:
        """Return the message of a worker that starts from the newest version."""
        base = self._newest()
        update = WeightUpdate(
            federation=base.federation,
            id=UpdateId(worker, "run", self._rounds),
            base_term=base.term,
            base_version=base.version,
            layout_digest=base.layout.digest,
            sends="delta",
            codec="float32",
            vector=Float32Vector.of(vector),
            examples=32,
        )
        numbers = whole_numbers(vector, np.zeros(self.plan.measured_size), self.plan, self._random)
        return encode_update(self._side.masks[worker].masked(update, numbers, self.plan))

    def _newest(self) -> ModelVersion:
        found = newest_version(self._broker, self._side.federation.topology, stop=threading.Event())
        if found is None:
            raise RuntimeError("the federation has no version")
        return found


def row_of(rounds: Sequence[Round], ours: Sequence[Round]) -> Mapping[str, Cell | Spread]:
    """Return what is told of some rounds, and how many times as long as Fluffle's they took."""
    return {
        "from_client_ms": from_client(rounds).times(1000),
        "to_fluffle": from_client(rounds).over(from_client(ours)),
        "from_server_ms": Spread(tuple(1000 * one.from_server_s for one in rounds)),
        "waited_ms": Spread(tuple(1000 * one.waited_s for one in rounds)),
        "whole_round_s": Spread(tuple(one.whole_s for one in rounds)),
        "client_sends_mb": rounds[-1].client_sends_bytes / 1e6,
        "client_receives_mb": rounds[-1].client_receives_bytes / 1e6,
        "largest_error": f"{max(one.error for one in rounds):.1e}",
    }


def demand(what: str, ours: Sequence[Round], theirs: Sequence[Round]) -> Verdict:
    """Return the verdict on how many times as long as Fluffle Flower takes."""
    ratio = from_client(theirs).over(from_client(ours)).median
    return Verdict(what, "at least", REQUIRED, ratio, " times")


def from_client(rounds: Sequence[Round]) -> Spread:
    """Return the seconds from the last client's masked vector to the new model."""
    return Spread(tuple(one.from_client_s for one in rounds))


if __name__ == "__main__":
    main()
