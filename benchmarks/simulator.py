"""Events a second of a simulation without training, and the memory of a client.

    python -m benchmarks.simulator

An event is one pop of the heap: a device begins, its round ends, or its update arrives. Devices draw
lognormal seconds once, FedBuff makes a version of 10 updates, and nothing is trained. `counting` is the
leader of `fluffle simulate --no-train`, which counts; `deployed` is the aggregator's own leader with a model
of one number, with every message and record encoded and read. `bytes_a_client` is all that Python holds at
the end of a run, over the number of clients. `cpu_events_s` divides by the CPU seconds of the process, which
other work on the machine moves less.

Ends with 1 when the counting leader falls short of 100,000 events a second, or a client takes more memory
with ten times as many clients.
"""

import argparse
import gc
import time
import tracemalloc
from collections.abc import Mapping

from benchmarks.light_task import LightTask
from benchmarks.measuring import Cell, Report, Spread, wide_console
from benchmarks.verdicts import Verdict, exit_code
from fluffle.settings import load_arguments
from fluffle_cli.simulate.federation import SimulatedFederation
from fluffle_cli.simulate.queueing import QueueFederation
from fluffle_cli.simulate.settings import SimulateSettings

# For each number of clients, the updates of a turn.
COUNTED = {10_000: 200_000, 100_000: 300_000}
DEPLOYED = {10: 1000, 100: 1000, 1000: 1000}
BUFFER_SIZE = 10
REQUIRED = 100_000.0
# A client may take so many times as much memory with ten times as many clients.
ALLOWED_GROWTH = 1.1


def main() -> None:
    """Measure, write and print; end with 1 when something falls short."""
    parser = argparse.ArgumentParser(prog="simulator", description="Measure a simulation without training.")
    parser.add_argument("--repeats", type=int, default=3, help="default: 3")
    repeats = parser.parse_args().repeats
    console = wide_console()
    report = Report("simulator", "simulator: events a second without training, and bytes a client")
    cpu_events_s: list[float] = []
    held_bytes: list[float] = []
    for clients, updates in COUNTED.items():
        with report.row() as row:
            cells, spread = measured("counting", clients, updates, repeats)
            held = bytes_a_client(clients)
            row.update({**cells, "bytes_a_client": held})
        cpu_events_s.append(spread.median)
        held_bytes.append(held)
    for clients, updates in DEPLOYED.items():
        with report.row() as row:
            row.update(measured("deployed", clients, updates, repeats)[0])
    report.show(console)
    verdicts = [
        *(
            Verdict(f"events a second of CPU, {clients} clients", "at least", REQUIRED, found)
            for clients, found in zip(COUNTED, cpu_events_s, strict=True)
        ),
        Verdict(
            "bytes a client with 100,000 against 10,000",
            "at most",
            ALLOWED_GROWTH,
            held_bytes[1] / held_bytes[0],
            " times",
        ),
    ]
    for each in verdicts:
        console.print(f"{each.what}: {each.measured:,.2f} ({each})", markup=False)
    raise SystemExit(exit_code(verdicts))


def measured(
    leader: str, clients: int, updates: int, repeats: int
) -> tuple[Mapping[str, Cell | Spread], Spread]:
    """Play a federation again and again; return a row, and the events a second of CPU."""
    walls, cpus = [], []
    events = 0
    for _ in range(repeats + 1):
        federation = a_federation(leader, clients, updates)
        gc.collect()
        wall, cpu = time.perf_counter(), time.process_time()
        federation.run()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
        events = federation.events
    # The first turn warms up.
    wall_s, cpu_s = Spread(tuple(walls[1:])), Spread(tuple(cpus[1:]))
    row: Mapping[str, Cell | Spread] = {
        "clients": clients,
        "leader": leader,
        "updates": updates,
        "events": events,
        "events_s": wall_s.rates(events),
        "cpu_events_s": cpu_s.rates(events),
        "updates_s": wall_s.rates(updates),
    }
    return row, cpu_s.rates(events)


def bytes_a_client(clients: int) -> float:
    """Return what a counted federation holds after each client has sent once or twice, for each client."""
    tracemalloc.start()
    federation = a_federation("counting", clients, 2 * clients)
    federation.run()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return held / clients


def a_federation(leader: str, clients: int, updates: int) -> QueueFederation | SimulatedFederation:
    """Return a federation that ends after so many updates."""
    settings = load_arguments(
        SimulateSettings,
        {
            "federation": "simulator",
            "clients": clients,
            "strategy": "fedbuff",
            "buffer_size": BUFFER_SIZE,
            "device_seconds": "lognormal",
            "max_updates": updates,
            "evaluate_every": 10**9,
        },
    )
    if leader == "counting":
        return QueueFederation(settings)
    return SimulatedFederation(settings, LightTask(1), lambda _: None)


if __name__ == "__main__":
    main()
