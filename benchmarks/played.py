"""Play sections of a page of results on the simulator, write their tables, and say what is reached.

The runs are those of `fluffle simulate`: the deployed leader, and real training of a small network. Where a
side has several settings, the one that does best with the tuning seed is played with the seeds that are
reported.
"""

import argparse
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any, Final

from benchmarks.measuring import Cell, OtherWork, Report, Spread, in_processes, short, wide_console
from benchmarks.page import PAGES, fill
from benchmarks.sections import Found, Given, Outcome, Section, points
from benchmarks.verdicts import Verdict, exit_code
from fluffle.record import ModelVersion
from fluffle.settings import load_arguments
from fluffle.task import Task, load_task
from fluffle_cli.held import held_from
from fluffle_cli.simulate.federation import SimulatedFederation
from fluffle_cli.simulate.pool import ONE_THREAD
from fluffle_cli.simulate.settings import SimulateSettings
from fluffle_worker.data import DataSteps
from fluffle_worker.keras_task import KerasTask

TUNING_SEED: Final = 10
NEVER: Final = math.inf
LONGEST_S: Final = 1e6
# The key of a side's data steps among its settings.
DATA: Final = "data"


@dataclass(frozen=True, slots=True)
class Case:
    """One run: settings of `fluffle simulate` with the data steps of its task, and a seed."""

    given: tuple[tuple[str, Any], ...]
    steps: DataSteps | None
    seed: int

    @classmethod
    def of(cls, section: Section, side: str, choice: int, seed: int) -> "Case":
        """Return the run of a setting of a side of a section."""
        given = {**section.scene, **section.sides[side][choice]}
        steps = given.pop(DATA, None)
        return cls(tuple(given.items()), None if steps is None else DataSteps(**steps), seed)

    @property
    def settings(self) -> SimulateSettings:
        """The settings."""
        ends = {"max_seconds": LONGEST_S, "federation": "benchmark", "seed": self.seed}
        return load_arguments(SimulateSettings, {**ends, **dict(self.given)})

    def task(self) -> Task:
        """Return the task, with its data steps."""
        task = load_task(self.settings.task)
        if self.steps is None:
            return task
        if not isinstance(task, KerasTask):
            raise TypeError(f"{self.settings.task} is no KerasTask, and takes no data steps")
        return task.with_data_steps(self.steps)


def play(case: Case) -> Outcome:
    """Play a run."""
    settings = case.settings
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
    federation = SimulatedFederation(settings, case.task(), note)
    federation.run()
    held = None
    if goal.target:
        curve = [(course[version][0], value) for version, value in values.items()]
        held = held_from(curve, goal.target, hold_s=settings.held_seconds, until_s=federation.seconds)
    return Outcome(
        values=tuple(values.values()),
        updates=tuple(course[version][1] for version in values),
        held_s=NEVER if held is None else held,
        held_updates=next((course[each][1] for each in values if course[each][0] == held), NEVER),
        end_s=federation.seconds,
        staleness=sum(staleness) / len(staleness),
        most_staleness=max(staleness),
    )


def play_sections(
    page: str, sections: Mapping[str, Section], *, about: str, arguments: Sequence[str] | None = None
) -> None:
    """Play the sections that the arguments name, fill the page, and exit with 1 if one falls short."""
    parser = argparse.ArgumentParser(prog=page, description=about)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"some of {', '.join(sections)}")
    parser.add_argument("--seeds", type=int, default=5, help="seeds that are reported, from 0 on")
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args(arguments)
    if unknown := set(given.sections) - set(sections):
        parser.error(f"no section is called {', '.join(unknown)}: say some of {', '.join(sections)}")
    for name, value in ONE_THREAD.items():
        os.environ.setdefault(name, value)
    console = wide_console()
    verdicts: list[Verdict] = []
    for name in given.sections or sections:
        section, others = sections[name], OtherWork()
        chosen, found = _played(section, given.seeds, given.processes)
        sides = Report(f"{page}-{name}", section.title)
        for side, row in _rows(section, chosen, found).items():
            sides.add({"side": side, **row}, others=others.share)
        sides.show(console)
        checks = Report(f"{page}-{name}-checks", section.title)
        for demand in section.demands:
            spread = demand.compare(found)
            verdict = Verdict(demand.what, demand.sense, demand.required, spread.median, tolerance=0.0)
            verdicts.append(verdict)
            required = f"{demand.sense} {short(demand.required)}"
            row = {
                "what": demand.what,
                "required": required,
                "measured": spread,
                "verdict": _word(verdict),
            }
            checks.add(row, others=others.share)
        checks.show(console)
    fill([PAGES / f"{page}.md"])
    raise SystemExit(exit_code(verdicts))


def _rows(section: Section, chosen: Mapping[str, str], found: Found) -> dict[str, dict[str, Cell | Spread]]:
    """Return the cells of each side's row."""
    rows: dict[str, dict[str, Cell | Spread]] = {}
    for side, outcomes in found.items():
        cells: dict[str, Cell | Spread] = {"setting": chosen[side]} if any(chosen.values()) else {}
        for what, measure in section.measures.items():
            cells[what] = Spread(tuple(map(measure, outcomes)))
            if section.against and measure is next(iter(section.measures.values())):
                above = points(measure, side, section.against)(found)
                cells[f"above {section.against}"] = "" if side == section.against else above
        cells |= _course(outcomes)
        rows[side] = cells
    return rows


def _course(outcomes: Sequence[Outcome]) -> dict[str, Cell]:
    """Return the updates and the mean, the least and the greatest value over the seeds, for a plot."""
    by_version = list(zip(*(zip(one.updates, one.values, strict=True) for one in outcomes), strict=False))
    values = [[value for _, value in each] for each in by_version]
    return {
        "course_updates_values": [mean(updates for updates, _ in each) for each in by_version],
        "course_mean_values": [mean(each) for each in values],
        "course_least_values": [min(each) for each in values],
        "course_greatest_values": [max(each) for each in values],
    }


def _word(verdict: Verdict) -> str:
    return f"not reached, {verdict}" if verdict.fails else "reached"


def _played(section: Section, seeds: int, processes: int) -> tuple[dict[str, str], Found]:
    """Choose each side's setting, and play it with each seed."""
    trials = {
        (side, choice): Case.of(section, side, choice, TUNING_SEED)
        for side, choices in section.sides.items()
        for choice in range(len(choices))
        if len(choices) > 1
    }
    tried = in_processes(play, list(trials.values()), processes) if trials else {}
    costs = {each: section.better(tried[case]) for each, case in trials.items()}
    best = dict.fromkeys(section.sides, 0)
    for (side, choice), cost in costs.items():
        if cost < costs[side, best[side]]:
            best[side] = choice
    cases = {
        side: [Case.of(section, side, best[side], seed) for seed in range(seeds)] for side in section.sides
    }
    outcomes = in_processes(play, [each for of_side in cases.values() for each in of_side], processes)
    settings = {side: _in_words(section.sides[side][choice]) for side, choice in best.items()}
    return settings, {side: [outcomes[each] for each in of_side] for side, of_side in cases.items()}


def _in_words(given: Given) -> str:
    """Return a side's settings, those of its data steps among the others."""
    flat = {**{name: value for name, value in given.items() if name != DATA}, **given.get(DATA, {})}
    return ", ".join(f"{name} {_value_in_words(value)}" for name, value in flat.items())


def _value_in_words(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
