"""How long a federation is without a leader when its aggregator is killed, or freezes.

    python -m benchmarks.failover

A private RabbitMQ, a leader and a standby of a small model. In each run an update is sent at the moment of
the strike; the time ends when the standby logs that it leads, and when it has committed that update.
"""

import argparse
import signal
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from itertools import count
from pathlib import Path
from statistics import median

import numpy as np
from rich.table import Table

from fluffle.consoles import PlainConsole
from fluffle.safetensors_file import write_model
from fluffle.wire import encode_update
from fluffle_cli.node import BrokerNode
from harness.federation import Federation, Part
from harness.sending import an_update_for, send

PARAMETERS = 10_000
HEARTBEAT_S = 2
# What docs/reliability.md promises.
KILL_S, FREEZE_S = 1.0, 3.0 * HEARTBEAT_S + 2.0


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="failover", description="Measure how long nobody leads.")
    parser.add_argument("--kills", type=int, default=10, help="runs with SIGKILL (default: 10)")
    parser.add_argument("--freezes", type=int, default=5, help="runs with SIGSTOP (default: 5)")
    arguments = parser.parse_args()
    console = PlainConsole()
    with tempfile.TemporaryDirectory(prefix="fluffle-failover-") as place:
        folder = Path(place)
        write_model(folder / "initial.safetensors", {"kernel": np.zeros(PARAMETERS, np.float32)})
        with (
            BrokerNode.start(folder / "broker", management=False) as node,
            Federation("failover", node.amqp_url, folder) as federation,
            console.status("one run after the other"),
        ):
            runs = Runs(federation)
            killed = [runs.strike(Part.kill) for _ in range(arguments.kills)]
            frozen = [runs.strike(freeze) for _ in range(arguments.freezes)]
    table = Table("the leader", "until the standby", "runs", "min", "median", "max", "promised")
    for what, times, promised in (
        ("is killed", killed, f"< {KILL_S:.0f} s"),
        (f"freezes, heartbeat {HEARTBEAT_S} s", frozen, f"<= {FREEZE_S:.0f} s"),
    ):
        for until, column in (("leads", 0), ("has committed", 1)):
            measured = [each[column] for each in times]
            if measured:
                numbers = (f"{number:.2f} s" for number in (min(measured), median(measured), max(measured)))
                table.add_row(what, until, str(len(measured)), *numbers, promised)
    console.print(table)


def freeze(leader: Part) -> None:
    """Stop a process where it is."""
    leader.process.send_signal(signal.SIGSTOP)


class Runs:
    """A federation whose leader is struck again and again; after each strike a new standby comes."""

    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        self._numbers = count()
        self._sequences = count(1)
        self._leader = self._aggregator("leading")
        self._standby = self._aggregator("standing by")

    def strike(self, how: Callable[[Part], None]) -> tuple[float, float]:
        """Strike the leader; return the seconds until the standby leads, and until it has committed."""
        update = an_update_for(self._federation.newest(), next(self._sequences))
        successor, leader = self._standby, self._leader
        began = time.time()
        how(leader)
        send(self._federation, [encode_update(update)])
        successor.wait_for("version committed")
        times = _at(successor, "leading") - began, _at(successor, "version committed") - began
        if leader.process.poll() is None:
            leader.kill()
        self._leader, self._standby = successor, self._aggregator("standing by")
        return times

    def _aggregator(self, state: str) -> Part:
        flags = ("--strategy", "fedbuff", "--buffer-size", "1", "--initial-model", "initial.safetensors")
        part = self._federation.aggregator(
            f"aggregator-{next(self._numbers)}", *flags, "--heartbeat-s", str(HEARTBEAT_S)
        )
        part.wait_for(state)
        return part


def _at(part: Part, event: str) -> float:
    return datetime.fromisoformat(str(part.events(event)[0]["time"])).timestamp()


if __name__ == "__main__":
    main()
