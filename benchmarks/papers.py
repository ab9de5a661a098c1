"""Play what papers say of asynchronous strategies, and say whether it is so here; on a virtual clock.

    make papers                          # some: make papers ARGS="fedbuff fadas"

Each section of paper_scenes.py plays some settings of `fluffle simulate`: the deployed leader, and real
training of a small network. Where a side has several settings, the one that does best with the tuning seed
is played with the seeds that are reported. Then docs/results/papers.md gets the new tables; the sections
that are not played keep theirs.
"""

import argparse
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.measuring import Cell, OtherWork, Report, Spread, in_processes, short, wide_console
from benchmarks.page import PAGES, fill
from benchmarks.paper_scenes import SECTIONS, Found, Given, Outcome, Section
from benchmarks.verdicts import Verdict, exit_code
from fluffle.record import ModelVersion
from fluffle.settings import load_arguments
from fluffle.task import load_task
from fluffle_cli.held import held_from
from fluffle_cli.simulate.federation import SimulatedFederation
from fluffle_cli.simulate.pool import ONE_THREAD
from fluffle_cli.simulate.settings import SimulateSettings

TUNING_SEED: Final = 10
NEVER: Final = math.inf
LONGEST_S: Final = 1e6


@dataclass(frozen=True, slots=True)
class Case:
    """One run: a setting of a side of a section, with a seed."""

    section: str
    side: str
    choice: int
    seed: int

    @property
    def given(self) -> Given:
        """The settings."""
        section = SECTIONS[self.section]
        return {**section.scene, **section.sides[self.side][self.choice]}


def a_setting(case: Case) -> SimulateSettings:
    """Return the settings of a run."""
    ends = {"max_seconds": LONGEST_S, "federation": "papers", "seed": case.seed}
    return load_arguments(SimulateSettings, {**ends, **case.given})


def play(case: Case) -> Outcome:
    """Play a run."""
    settings = a_setting(case)
    course: dict[int, tuple[float, int]] = {}
    values: dict[int, float] = {}
    staleness: list[int] = []

    def note(version: ModelVersion) -> None:
        staleness.extend(one.staleness for one in version.folded)
        course[version.version] = federation.seconds, len(staleness)
        if version.evaluation:
            values[version.evaluation.version] = version.evaluation.metrics[metric]

    goal = settings.make_goal()
    metric = goal.best.metric if goal.best else "accuracy"
    federation = SimulatedFederation(settings, load_task(settings.task), note)
    federation.run()
    held = None
    if goal.target:
        curve = [(course[version][0], value) for version, value in values.items()]
        held = held_from(curve, goal.target, hold_s=settings.held_seconds, until_s=federation.seconds)
    return Outcome(
        values=tuple(values.values()),
        held_s=NEVER if held is None else held,
        held_updates=next((course[each][1] for each in values if course[each][0] == held), NEVER),
        end_s=federation.seconds,
        staleness=sum(staleness) / len(staleness),
        most_staleness=max(staleness),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Play, write the tables, print them, and end with 1 when something is not reached."""
    parser = argparse.ArgumentParser(prog="papers", description="Play what papers say.")
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"some of {', '.join(SECTIONS)}")
    parser.add_argument("--seeds", type=int, default=5, help="seeds that are reported, from 0 on")
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args(arguments)
    if unknown := set(given.sections) - set(SECTIONS):
        parser.error(f"no section is called {', '.join(unknown)}: say some of {', '.join(SECTIONS)}")
    for name, value in ONE_THREAD.items():
        os.environ.setdefault(name, value)
    console = wide_console()
    verdicts: list[Verdict] = []
    for name in given.sections or SECTIONS:
        section, others = SECTIONS[name], OtherWork()
        chosen, found = _played(name, section, given.seeds, given.processes)
        sides = Report(f"papers-{name}", section.title)
        for side, outcomes in found.items():
            measured = {
                what: Spread(tuple(map(measure, outcomes))) for what, measure in section.measures.items()
            }
            sides.add({"side": side, "setting": chosen[side], **measured}, others=others.share)
        sides.show(console)
        checks = Report(f"papers-{name}-checks", section.title)
        for demand in section.demands:
            spread = demand.compare(found)
            verdict = Verdict(demand.what, demand.sense, demand.required, spread.median, tolerance=0.0)
            verdicts.append(verdict)
            required = f"{demand.sense} {short(demand.required)}"
            row: dict[str, Cell | Spread] = {
                "what": demand.what,
                "required": required,
                "measured": spread,
                "verdict": _word(verdict),
            }
            checks.add(row, others=others.share)
        checks.show(console)
    fill([PAGES / "papers.md"])
    raise SystemExit(exit_code(verdicts))


def _word(verdict: Verdict) -> str:
    return f"not reached, {verdict}" if verdict.fails else "reached"


def _played(name: str, section: Section, seeds: int, processes: int) -> tuple[dict[str, str], Found]:
    """Choose each side's setting, and play it with each seed."""
    trials = [
        Case(name, side, choice, TUNING_SEED)
        for side, choices in section.sides.items()
        for choice in range(len(choices))
        if len(choices) > 1
    ]
    tried = in_processes(play, trials, processes) if trials else {}
    best = {
        side: min(
            (case for case in trials if case.side == side),
            key=lambda case: section.better(tried[case]),
            default=Case(name, side, 0, TUNING_SEED),
        ).choice
        for side in section.sides
    }
    cases = {side: [Case(name, side, best[side], seed) for seed in range(seeds)] for side in best}
    outcomes = in_processes(play, [each for of_side in cases.values() for each in of_side], processes)
    settings = {
        side: ", ".join(f"{key} {value}" for key, value in section.sides[side][choice].items())
        for side, choice in best.items()
    }
    return settings, {side: [outcomes[each] for each in of_side] for side, of_side in cases.items()}


if __name__ == "__main__":
    main()
