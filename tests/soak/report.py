"""The soak's report: what happened, the ledger, and each part's memory, as tables."""

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table
from soak.ledger import Balance
from soak.memory import MemoryOfPart


def show(
    console: Console,
    *,
    seed: int,
    minutes: float,
    happened: Mapping[str, int],
    ledger: Balance,
    memory: Mapping[str, MemoryOfPart],
) -> None:
    """Print the tables."""
    console.print(f"\n[bold]Soak of {minutes:.1f} minutes, seed {seed}[/bold]")
    console.print(_events(happened))
    console.print(_ledger(ledger))
    console.print(_memory(memory))


def _events(happened: Mapping[str, int]) -> Table:
    table = Table("what happened", "times")
    for event, times in sorted(happened.items()):
        table.add_row(event, str(times))
    return table


def _ledger(ledger: Balance) -> Table:
    table = Table("ledger", "updates")
    table.add_row("confirmed to the workers", str(ledger.confirmed))
    table.add_row("= applied", str(ledger.applied))
    table.add_row("+ rejected", str(ledger.rejected))
    table.add_row("+ queued", str(ledger.queued))
    table.add_row("+ lost", str(len(ledger.lost)))
    table.add_row(
        "applied twice", str(len(ledger.twice) + abs(ledger.updates_counted - ledger.updates_named))
    )
    table.add_row("applied in all, also those that nobody told a worker of", str(ledger.updates_named))
    for reason, count in sorted(ledger.reasons.items()):
        table.add_row(f"messages in F.rejected: {reason}", str(count))
    table.add_section()
    table.add_row("versions", str(ledger.versions))
    table.add_row("take-overs", str(ledger.takeovers))
    table.add_row("versions of the history that the reader has not seen", str(ledger.unseen_versions))
    table.add_row("versions beside the history, of leaders that had lost it", str(ledger.versions_aside))
    return table


def _memory(memory: Mapping[str, MemoryOfPart]) -> Table:
    table = Table("memory in MB", "first", "last", "peak", "slope a minute", "verdict")
    for name, part in memory.items():
        verdict = "flat" if part.is_flat else "GROWS"
        numbers = (part.first_mb, part.last_mb, part.peak_mb)
        slope = f"{part.slope_mb_per_minute:+.2f}"
        table.add_row(name, *(f"{number:.0f}" for number in numbers), slope, verdict)
    return table
