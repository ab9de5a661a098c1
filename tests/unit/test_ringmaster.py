"""`--max-staleness` with a buffer of 1 and no discount is Ringmaster ASGD, against the paper's pseudocode.

Source: Maranjyan, Tyurin and Richtarik, "Ringmaster ASGD: The First Asynchronous SGD with Optimal Time
Complexity" (ICML 2025, arXiv 2501.16168): Algorithm 4 without, and Algorithm 5 with calculation stops.
"""

import heapq

import numpy as np
import numpy_task
import pytest
from builders import SIZE, a_model, a_strategy, a_version, an_update
from numpy.typing import NDArray

from fluffle.broker import Delivery
from fluffle.model import Vector
from fluffle.record import ModelVersion
from fluffle.settings import load_arguments
from fluffle.topology import topology_of
from fluffle.wire import encode_update
from fluffle_aggregator.gates.history import TOO_STALE
from fluffle_aggregator.gates.limits import Limits, gates_of
from fluffle_aggregator.intake import TakenIn, TurnedDown, take_in
from fluffle_cli.simulate.federation import SimulatedFederation
from fluffle_cli.simulate.settings import SimulateSettings

Point = NDArray[np.float64]
GAMMA = 0.05
WORKERS, ARRIVALS = 5, 400
TOPOLOGY = topology_of("digits")


def gradient(x: Point, noise: Point) -> Point:
    """A stochastic gradient of a quadratic function whose curvatures differ 30 times."""
    return np.linspace(0.1, 3.0, SIZE) * (x - 1.0) + noise


def arrivals(seed: int) -> list[tuple[int, Point]]:
    """Which worker's gradient arrives, in order, and the noise in it; the last workers are very slow."""
    random = np.random.default_rng(seed)
    chances = np.array([8.0, 4.0, 2.0, 0.2, 0.1])
    order = random.choice(WORKERS, size=ARRIVALS, p=chances / chances.sum())
    return [(int(worker), random.normal(size=SIZE)) for worker in order]


def algorithm_4(seed: int, threshold: int) -> tuple[list[Point], list[int]]:
    """The iterates of the pseudocode, and which arrivals it ignores."""
    x, k, iterates, ignored = np.zeros(SIZE), 0, [np.zeros(SIZE)], []
    started = dict.fromkeys(range(WORKERS), (0, x))
    for arrival, (worker, noise) in enumerate(arrivals(seed)):
        began, point = started[worker]
        if k - began < threshold:
            x, k = x - GAMMA * gradient(point, noise), k + 1
            iterates.append(x)
        else:
            ignored.append(arrival)
        started[worker] = k, x
    return iterates, ignored


@pytest.mark.parametrize("threshold", [1, 2, 5, 20])
@pytest.mark.parametrize("seed", range(3))
def test_the_same_arrivals_give_the_iterates_of_the_paper(seed: int, threshold: int) -> None:
    strategy = a_strategy("fedbuff", buffer_size=1, staleness="constant", weigh_by="none")
    model = a_model(strategy, record=a_version(values=[0.0] * SIZE))
    gates = gates_of(Limits(max_staleness=threshold - 1), strategy, TOPOLOGY)
    iterates: list[Vector] = [model.vector.copy()]
    refused: list[int] = []
    started = dict.fromkeys(range(WORKERS), 0)

    for arrival, (worker, noise) in enumerate(arrivals(seed)):
        base = started[worker]
        delta = -GAMMA * gradient(iterates[base].astype(np.float64), noise)
        update = an_update(f"w{worker}", arrival + 1, base_version=base, base_term=1, values=delta.tolist())
        delivery = Delivery(1, encode_update(update), user=f"w{worker}", exchange=TOPOLOGY.updates_in.name)
        match take_in(delivery, model, gates, now=0.0):
            case TakenIn():
                iterates.append(model.vector.copy())
            case TurnedDown(refusal, _):
                assert refusal.reason == TOO_STALE
                refused.append(arrival)
        started[worker] = model.version

    expected, ignored = algorithm_4(seed, threshold)
    assert refused == ignored != []
    np.testing.assert_allclose(np.array(iterates), np.array(expected), atol=1e-5)


def algorithm_5(seconds: list[float], threshold: int, steps: int) -> list[tuple[int, int]]:
    """The worker of each step, and the iterate that its gradient is of; stale calculations are stopped."""
    k, order, rounds = 0, 0, list[tuple[float, int, int, int]]()
    began, current = [0] * len(seconds), [0] * len(seconds)

    def begin(worker: int, now: float) -> None:
        nonlocal order
        order += 1
        began[worker], current[worker] = k, order
        heapq.heappush(rounds, (now + seconds[worker], order, worker, order))

    for worker in range(len(seconds)):
        begin(worker, 0.0)
    taken: list[tuple[int, int]] = []
    while len(taken) < steps:
        now, _, worker, number = heapq.heappop(rounds)
        if number != current[worker]:
            continue  # it was stopped
        taken.append((worker, began[worker]))
        k += 1
        for other in range(len(seconds)):
            if other != worker and k - began[other] >= threshold:
                begin(other, now)
        begin(worker, now)
    return taken


@pytest.mark.parametrize("threshold", [2, 4, 9])
def test_a_simulation_stops_the_calculations_that_the_paper_stops(threshold: int) -> None:
    given = {
        "federation": "digits",
        "task": "numpy_task:task",
        "buffer_size": 1,
        "strategy": "fedbuff",
        "staleness": "constant",
        "weigh_by": "none",
        "clients": 6,
        "device_seconds": "lognormal:1:1.2",
        "max_updates": 60,
        "max_staleness": threshold - 1,
        "seed": 3,
    }
    settings, versions = load_arguments(SimulateSettings, given), list[ModelVersion]()
    federation = SimulatedFederation(settings, numpy_task.task, versions.append)
    federation.run()

    folded = [one for version in versions for one in version.folded]
    found = [(int(one.id.worker.removeprefix("worker-")), one.base_version) for one in folded]
    population = settings.make_population()
    seconds = [population.round_s(device, 0) for device in range(6)]
    assert found == algorithm_5(seconds, threshold, 60)
    assert federation.aborted > 0
    assert versions[-1].rejected == 0
    assert [one.id.sequence for one in folded if one.id.worker == "worker-0"] == [
        *range(1, 1 + sum(1 for worker, _ in found if worker == 0))
    ]
