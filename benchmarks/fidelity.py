"""How far the timeline of a simulation is from that of a real run of 16 workers.

    python -m benchmarks.fidelity

A real RabbitMQ, an aggregator and 16 workers, with FedBuff and a version of 4 updates. Each worker sleeps in
each round, between 0.5 and 4 s, and trains for a millisecond with a numpy task. Between two rounds it
publishes its update, waits for the confirm, and reads the newest version: `between_s` in the median.

`from_delays` is a simulation that is given what each worker sleeps; `from_cycles` one that is given the
median of the times between two updates of each worker, as the records say. Times count from version 0, which
is made when all workers wait for it. `last` is the time of the last version over the real one, and `worst`
the version that is furthest away, of those after the first tenth. It ends with 1 when `from_cycles` is more
than 5 % away.
"""

import argparse
import csv
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median

from benchmarks import small_networks
from benchmarks.measuring import Report, wide_console
from benchmarks.sides import private_broker
from benchmarks.verdicts import Verdict, exit_code
from fluffle.record import ModelVersion
from fluffle.record_wire import decode_version
from fluffle.safetensors_file import write_model
from fluffle.settings import load_arguments
from fluffle_cli.node import BrokerNode
from fluffle_cli.simulate.federation import SimulatedFederation
from fluffle_cli.simulate.settings import SimulateSettings
from harness.federation import Federation, wait_until

WORKERS, FASTEST_S, TIMES = 16, 0.5, 8.0
DELAYS_S = [round(FASTEST_S * TIMES ** (site / (WORKERS - 1)), 3) for site in range(WORKERS)]
BUFFER_SIZE = 4
ALLOWED = 0.05


def main() -> None:
    """Measure, write and print; end with 1 when the simulation is further away than is allowed."""
    parser = argparse.ArgumentParser(prog="fidelity", description="Compare a simulation with a real run.")
    parser.add_argument("--updates", type=int, default=320, help="default: 320")
    parser.add_argument("--repeats", type=int, default=3, help="default: 3")
    given = parser.parse_args()
    console = wide_console()
    report = Report("fidelity", "fidelity: seconds of a simulation over those of the same real run")
    far: list[float] = []
    with private_broker(report) as (folder, node):
        for repeat in range(given.repeats):
            with report.row() as row:
                history = real_run(node, folder / f"fidelity-{repeat}", given.updates)
                cycles_s = medians_s(history)
                between_s = median(each - delay_s for each, delay_s in zip(cycles_s, DELAYS_S, strict=True))
                real_s = _times(history)[history[-1].version]
                row.update({"updates": history[-1].updates, "real_s": real_s, "between_s": between_s})
                for name, seconds in (("from_delays", DELAYS_S), ("from_cycles", cycles_s)):
                    compared = compare(history, simulated(seconds, given.updates))
                    row.update({f"{name}_{what}": cell for what, cell in compared.items()})
                far.append(abs(compared["last"] - 1))
    report.show(console)
    verdict = Verdict("the last version, from_cycles", "at most", ALLOWED, median(far))
    console.print(f"{verdict.what}: {verdict.measured:.1%} away in the median ({verdict})", markup=False)
    raise SystemExit(exit_code([verdict]))


def real_run(node: BrokerNode, folder: Path, updates: int) -> Sequence[ModelVersion]:
    """Run a federation to its end, and return its versions, from version 0 on."""
    folder.mkdir()
    write_model(folder / "initial.safetensors", small_networks.digits.initial_weights(0))
    task = "benchmarks.small_networks:digits"
    with Federation(folder.name, node.amqp_url, folder, task) as federation, federation.connect() as broker:
        topology = federation.topology
        broker.declare(topology)
        workers = [
            federation.worker(site, "--delay", str(delay_s), sites=WORKERS)
            for site, delay_s in enumerate(DELAYS_S)
        ]
        # Each says hello before it waits for version 0.
        wait_until(lambda: broker.state(topology.updates.name).messages == WORKERS, "the workers")
        flags = ["--strategy", "fedbuff", "--buffer-size", str(BUFFER_SIZE), "--max-updates", str(updates)]
        leader = federation.aggregator("aggregator", "--initial-model", "initial.safetensors", *flags)
        for part in (leader, *workers):
            part.wait_for_exit()
        history: list[ModelVersion] = []
        with broker.read_stream(topology.models.name, offset="first") as reader:
            while not history or not history[-1].finished:
                if (body := reader.next_body(1.0)) is not None:
                    history.append(decode_version(body))
    return history


def medians_s(history: Sequence[ModelVersion]) -> list[float]:
    """Return the median of the times between two updates of each worker, by its site."""
    published: dict[str, list[float]] = defaultdict(list)
    for version in history:
        for one in version.folded:
            published[one.id.worker].append(one.published_at)
    times = [published[f"site-{site}"] for site in range(WORKERS)]
    return [median(later - one for one, later in pairwise(each)) for each in times]


def simulated(seconds: Sequence[float], updates: int) -> Sequence[ModelVersion]:
    """Play the same federation with devices that take these seconds for a round."""
    versions: list[ModelVersion] = []
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "devices.csv"
        with trace.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["device", "seconds_per_round"])
            rows.writerows(enumerate(seconds))
        settings = load_arguments(
            SimulateSettings,
            {
                "federation": "fidelity",
                "task": "benchmarks.small_networks:digits",
                "clients": WORKERS,
                "strategy": "fedbuff",
                "buffer_size": BUFFER_SIZE,
                "max_updates": updates,
                "device_seconds": f"trace:{trace}",
                "evaluate_every": 10**9,
            },
        )
        SimulatedFederation(settings, small_networks.digits, versions.append).run()
    return versions


def compare(real: Sequence[ModelVersion], played: Sequence[ModelVersion]) -> Mapping[str, float]:
    """Return the times of the simulation over the real ones: of the last version, and of the worst one."""
    truth, found = _times(real), _times(played)
    last = max(truth)
    ratios = {each: found[each] / truth[each] for each in truth if each in found and truth[each] > 0}
    late = [ratio for each, ratio in ratios.items() if each >= last / 10]
    return {"last": ratios[last], "worst": max(late, key=lambda ratio: abs(ratio - 1))}


def _times(versions: Sequence[ModelVersion]) -> Mapping[int, float]:
    """Return when each version was committed, in seconds from version 0."""
    return {each.version: each.committed_at - versions[0].committed_at for each in versions}


if __name__ == "__main__":
    main()
