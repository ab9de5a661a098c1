"""Client rounds a second of a simulation, beside those of Flower and of pfl-research with the same work.

    make peers

FedAvg of all clients on digits: the same parts of the data, the same network of one hidden layer of 64 units,
one local epoch of SGD in minibatches of 32, and an evaluation after each round. With more than 71 clients
several share a part of 20 examples. The peers train in PyTorch. Each has the settings that its documentation
recommends for a machine without a GPU: Flower one actor for each core, with one CPU and one thread each;
pfl-research one process, and one for each core, since it depends on the machine which is faster.

What is measured is the time from the end of the first round to the end of the last one: nobody's imports,
compilation or start counts. `whole_s` is the time of the whole command with all of that. All are measured in
turns.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.measuring import Cell, OtherWork, Report, Spread, wide_console
from benchmarks.page import PAGES, fill
from benchmarks.verdicts import Verdict, exit_code
from fluffle.task import Site
from fluffle_worker.splits import MIN_EXAMPLES, split_indices
from fluffle_worker.tasks import digits

ROUND_S: Final = 1
REQUIRED: Final = 3.0
HERE: Final = Path(__file__).parent
PEERS: Final = HERE.parent / ".venvs" / "peers" / "bin"
# Nobody's small matrices gain from threads, and nobody is told of the runs.
ENVIRONMENT: Final = {
    "OMP_NUM_THREADS": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray's workers would yield to all other processes.
    "RAY_worker_niceness": "0",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
PACKAGES: Final = {"flower": ("flwr", "ray", "torch"), "pfl": ("pfl", "torch")}


@dataclass(frozen=True, slots=True)
class Timing:
    """Client rounds a second, the seconds of the whole command, and the accuracy after the last round."""

    rate: float
    whole_s: float
    accuracy: float


def told(at: Sequence[float], accuracy: float) -> None:
    """Print when each round ended, in seconds, and the accuracy after the last, as the last line."""
    sys.stdout.write(json.dumps({"at": list(at), "accuracy": accuracy}) + "\n")


def commands(clients: int, rounds: int, data: Path) -> Mapping[str, list[str]]:
    """Return what plays so many rounds of so many clients, by name."""
    cores, python = os.cpu_count() or 1, str(PEERS / "python")
    given = [str(data), str(rounds)]
    pfl = str(HERE / "beside" / "peer_pfl.py")
    return {
        "fluffle": [sys.executable, "-m", "benchmarks.peer_fluffle", str(clients), str(rounds)],
        "flower": [python, str(HERE / "beside" / "peer_flower.py"), *given],
        "pfl": [python, pfl, *given],
        f"pfl, {cores} processes": [
            *(python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(cores)),
            *(pfl, *given),
        ],
    }


def play(command: Sequence[str], clients: int, timeout_s: float) -> Timing:
    """Play a command, and read its last line. Raises RuntimeError with what it said when it fails."""
    began = time.perf_counter()
    ended = subprocess.run(
        command,
        # Ray's actors import the modules beside the script.
        env={
            **os.environ,
            **ENVIRONMENT,
            "PYTHONPATH": f"{HERE / 'beside'}:{os.environ.get('PYTHONPATH', '')}",
        },
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    whole_s = time.perf_counter() - began
    lines = [line for line in ended.stdout.splitlines() if line.startswith('{"at"')]
    # PyTorch's processes may abort at their exit, after all that is measured.
    if not lines:
        raise RuntimeError(f"{' '.join(command)} has failed:\n{ended.stdout[-2000:]}\n{ended.stderr[-4000:]}")
    said = json.loads(lines[-1])
    at = said["at"]
    return Timing(clients * (len(at) - 2) / (at[-1] - at[1]), whole_s, said["accuracy"])


def write_data(path: Path, clients: int) -> None:
    """Write the parts that `fluffle simulate --split iid --seed 0` has, and first weights."""
    x, y = digits.train_data(Site(split="iid"))
    sites = min(clients, len(y) // MIN_EXAMPLES)
    parts = split_indices(y, split="iid", sites=sites, seed=0)
    order = np.concatenate(parts)
    test_x, test_y = digits.eval_data()
    kernel, bias, last_kernel, last_bias = digits.task.initial_weights(0).values()
    np.savez(
        path,
        clients=clients,
        x=x[order],
        y=y[order],
        ends=np.cumsum([part.size for part in parts]),
        test_x=test_x,
        test_y=test_y,
        # PyTorch has them the other way round.
        k1=kernel.T,
        b1=bias,
        k2=last_kernel.T,
        b2=last_bias,
    )


def _versions(name: str) -> str:
    """Return the versions of what a peer consists of."""
    packages = PACKAGES.get(name.partition(",")[0], ())
    if not packages:
        return f"keras {version('keras')}, tensorflow {version('tensorflow')}"
    code = "import sys\nfrom importlib.metadata import version\nfor n in sys.argv[1:]: print(n, version(n))"
    found = subprocess.run(
        [PEERS / "python", "-c", code, *packages], capture_output=True, text=True, check=True
    )
    return ", ".join(found.stdout.splitlines())


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure in turns, write, print, and end with 1 when 3 times as many a second are not reached."""
    parser = argparse.ArgumentParser(prog="peers", description="Client rounds a second beside peers.")
    parser.add_argument("--clients", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--without", nargs="+", default=[], help="peers to leave out")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds for one run")
    given = parser.parse_args(arguments)
    if not (PEERS / "python").exists():
        raise SystemExit("the peers are not installed: make peers does that")
    console, verdicts = wide_console(), []
    report = Report("peers", "client rounds a second: FedAvg on digits, one local epoch")
    for clients in given.clients:
        others = OtherWork()
        found = _measured(clients, given)
        rates = {name: Spread(tuple(each.rate for each in runs)) for name, runs in found.items()}
        best = max((name for name in rates if name != "fluffle"), key=lambda name: rates[name].median)
        for name, runs in found.items():
            row: dict[str, Cell | Spread] = {"clients": clients, "what": name, "versions": _versions(name)}
            row |= {
                "client_rounds_a_second": rates[name],
                "fluffle_to_it": rates["fluffle"].over(rates[name]),
            }
            row |= {"whole_s": Spread(tuple(each.whole_s for each in runs)), "accuracy": runs[0].accuracy}
            report.add(row, others=others.share)
        what = f"{clients} clients, against {best}"
        ratio = rates["fluffle"].over(rates[best]).median
        verdicts.append(Verdict(what, "at least", REQUIRED, ratio, " times"))
    report.show(console)
    for verdict in verdicts:
        console.print(f"{verdict.what}: {verdict.measured:.1f} times, {verdict}", markup=False)
    fill([PAGES / "peers.md"])
    raise SystemExit(exit_code(verdicts))


def _measured(clients: int, given: argparse.Namespace) -> Mapping[str, list[Timing]]:
    """Play everybody in turns."""
    found: dict[str, list[Timing]] = {}
    with tempfile.TemporaryDirectory(prefix="fluffle-peers-") as folder:
        data = Path(folder) / "data.npz"
        write_data(data, clients)
        for turn in range(given.repeats):
            for name, command in commands(clients, given.rounds, data).items():
                if name.partition(",")[0] not in given.without:
                    with wide_console().status(f"{clients} clients, turn {turn + 1}: {name}"):
                        found.setdefault(name, []).append(play(command, clients, given.timeout))
    return found


if __name__ == "__main__":
    main()
