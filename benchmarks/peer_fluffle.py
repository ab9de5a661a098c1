"""FedAvg in `fluffle simulate`, for `python -m benchmarks.peers`.

python -m benchmarks.peer_fluffle CLIENTS ROUNDS
"""

import sys
import tempfile
import time
from pathlib import Path

from benchmarks.peers import ROUND_S, told
from fluffle.settings import load_arguments
from fluffle_cli.simulate.one_run import play
from fluffle_cli.simulate.settings import SimulateSettings
from fluffle_cli.watching.view import Version


def main() -> None:
    """Play the rounds, and print when each was evaluated."""
    clients, rounds = int(sys.argv[1]), int(sys.argv[2])
    given = {"clients": clients, "max_versions": rounds, "device_seconds": f"constant:{ROUND_S}"}
    settings = load_arguments(
        SimulateSettings, {**given, "federation": "peers", "split": "iid", "strategy": "fedavg"}
    )
    at: list[float] = []

    def note(_version: Version) -> None:
        at.append(time.perf_counter())

    with tempfile.TemporaryDirectory(prefix="fluffle-peers-") as folder:
        played = play(settings, Path(folder) / "run", note)
    told(at[: rounds + 1], played.result.final)


if __name__ == "__main__":
    main()
