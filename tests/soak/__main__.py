"""Random kills and freezes of everything, and a ledger kept outside: python -m soak --minutes 30.

A private RabbitMQ, two aggregators, four workers and an evaluator; a seed decides who is killed, and when. It
exits with 1 when a promise does not hold, and then leaves the logs.
"""

import argparse
import random
import shutil
import sys
import tempfile
import threading
from pathlib import Path

from federation import Federation, applied_ids, wait_until
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from soak.chaos import Chaos
from soak.ledger import Balance, Witness, balance
from soak.report import show

from fluffle.consoles import PlainConsole
from fluffle_cli.node import BrokerNode

INTERRUPTED = 130
DRAIN_S = 180.0


def main() -> None:
    """Soak, print the report, and exit with 1 when a promise does not hold."""
    parser = argparse.ArgumentParser(prog="soak", description="Kill everything at random, and count.")
    parser.add_argument("--minutes", type=float, default=30.0, help="how long things happen (default: 30)")
    parser.add_argument("--seed", type=int, help="who is struck, and when; by default drawn, and printed")
    arguments = parser.parse_args()
    minutes: float = arguments.minutes
    seed: int = random.SystemRandom().randrange(10**6) if arguments.seed is None else arguments.seed
    console = PlainConsole()
    folder = Path(tempfile.mkdtemp(prefix="fluffle-soak-"))
    console.print(f"seed {seed}, {minutes:g} minutes; logs in {folder}")
    try:
        faults = soak(console, folder, minutes=minutes, seed=seed)
    except KeyboardInterrupt:
        console.print("interrupted: no report")
        shutil.rmtree(folder, ignore_errors=True)
        sys.exit(INTERRUPTED)
    if faults:
        for fault in faults:
            console.print(f"[red]broken:[/red] {fault}", highlight=False)
        sys.exit(f"not everything held; see the logs in {folder}, and try again with --seed {seed}")
    console.print("[green]every promise held[/green]")
    shutil.rmtree(folder, ignore_errors=True)


def soak(console: Console, folder: Path, *, minutes: float, seed: int) -> list[str]:
    """Run one soak and print its report; return what did not hold."""
    with (
        BrokerNode.start(folder / "broker", management=False) as node,
        Federation("soak", node.amqp_url, folder, task="numpy_task:task") as federation,
        _progress(console) as progress,
    ):
        bar = progress.add_task("", total=60 * minutes)
        witness = Witness(federation)
        watching = threading.Thread(target=witness.watch, daemon=True)
        chaos = Chaos(
            node,
            federation,
            random.Random(seed),
            say=lambda event: progress.console.print(f"{chaos.now_s:6.0f} s  {event}", highlight=False),
        )

        def look() -> None:
            done = f"version {witness.newest or 'none yet'}, {sum(chaos.happened.values())} strikes"
            progress.update(bar, completed=chaos.now_s, description=done)

        chaos.tend()
        watching.start()
        chaos.rage(60 * minutes, look=look)
        ledger, codes = end(chaos, federation, witness)
        watching.join()
    show(
        console,
        seed=seed,
        minutes=chaos.now_s / 60,
        happened=chaos.happened,
        ledger=ledger,
        memory=chaos.memory,
    )
    leaks = [f"the memory of {name} grows" for name, memory in chaos.memory.items() if not memory.is_flat]
    wrong = [f"{name} ended with {code} when asked to stop" for name, code in codes.items() if code]
    ended = [f"ended by itself: {each}" for each in chaos.died_by_itself]
    return [*ledger.faults, *ended, *wrong, *leaks]


def end(chaos: Chaos, federation: Federation, witness: Witness) -> tuple[Balance, dict[str, int]]:
    """Let the storm pass, drain the queue, end everybody and balance the ledger."""
    chaos.calm_down()
    workers, aggregators = chaos.parts("worker"), chaos.parts("aggregator")
    for worker in workers:
        worker.wait_for("update published")
    for part in [*workers, *chaos.parts("evaluator")]:
        part.ask_to_stop()
    codes = {part.name: part.wait_for_exit() for part in [*workers, *chaos.parts("evaluator")]}
    confirmed = federation.confirmed()

    def is_drained() -> bool:
        newest = federation.newest()
        # What an aggregator holds for the next version counts as waiting too.
        missing = confirmed - applied_ids(newest)
        is_settled = not missing or missing <= federation.waiting_in(federation.topology.rejected.name)
        return is_settled and witness.newest == newest.rank

    wait_until(is_drained, "the aggregators to work off the queue", deadline_s=DRAIN_S)
    for part in aggregators:
        part.ask_to_stop()
    codes |= {part.name: part.wait_for_exit() for part in aggregators}
    witness.stop.set()
    return balance(federation, witness), codes


def _progress(console: Console) -> Progress:
    return Progress(
        TimeElapsedColumn(), BarColumn(), TextColumn("{task.description}"), console=console, transient=True
    )


if __name__ == "__main__":
    main()
