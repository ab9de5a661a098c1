"""What came out of a sweep: each run, and of each combination the median over its seeds with the range.

A run that never holds its target counts with an infinite time, so that it is never missing: the median of
three runs of which two do not hold the target is that they do not.
"""

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Final

from fluffle.whole_file import write_whole
from fluffle_cli.over_seeds import Spread
from fluffle_cli.plain_json import as_text
from fluffle_cli.simulate.grid import Grid
from fluffle_cli.simulate.one_run import RunResult
from fluffle_cli.simulate.recommend import Times, ranked
from fluffle_cli.words import number

CSV: Final = "results.csv"
JSON: Final = "results.json"


@dataclass(frozen=True, slots=True)
class Failure:
    """A run that did not come to its end, and why."""

    place: int
    seed: int
    error: str


@dataclass(frozen=True)
class SweepResults:
    """The runs of a sweep that have ended: results by the combination's place in the grid, and failures."""

    grid: Grid
    target: str
    hold_s: float
    max_seconds: float | None
    results: Mapping[int, Sequence[RunResult]]
    failures: Sequence[Failure] = field(default_factory=tuple)

    @property
    def left(self) -> int:
        """The number of runs that were not played."""
        return self.grid.size - len(self.failures) - sum(map(len, self.results.values()))

    @property
    def metric(self) -> str:
        """The metric that is shown."""
        return next((each.metric for one in self.results.values() for each in one), "accuracy")

    @property
    def limit_s(self) -> float:
        """For how many seconds a run was watched that did not hold the target."""
        watched = (each.seconds for one in self.results.values() for each in one)
        return max(self.max_seconds or 0.0, *watched, 0.0)

    def times(self, place: int) -> Times:
        """Return the seconds to the target of a combination's runs by their seeds."""
        return {each.seed: each.target_s for each in self.results.get(place, ())}

    @cached_property
    def order(self) -> list[int]:
        """The places of the combinations that have a result: with a target, the fastest first."""
        places = [place for place in range(len(self.grid.combinations)) if self.results.get(place)]
        if not self.target:
            return places
        return [places[at] for at in ranked([self.times(each) for each in places], limit_s=self.limit_s)]

    def spread(self, place: int, name: str) -> Spread | None:
        """Return the spread of a field of RunResult over the seeds of a combination."""
        return Spread.of([getattr(each, name) for each in self.results.get(place, ())])

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return the heads and the rows of what a person reads: one row for each combination, best first."""
        rows = [self._row(place) for place in self.order]
        heads = list(rows[0]) if rows else ["settings"]
        # What is known of no combination has no column.
        heads = [head for head in heads if any(row[head] for row in rows)]
        return heads, [[row[head] for head in heads] for row in rows]

    def _row(self, place: int) -> dict[str, str]:
        runs = self.results[place]
        row = {"settings": self.grid.combinations[place].label}
        if self.target:
            held = sum(1 for each in runs if math.isfinite(each.target_s))
            row |= {
                f"{self.target} held from": self._said(
                    place, "target_s", lambda value: f"{value:.1f} s", never=self.never
                ),
                "updates": self._said(place, "target_updates", lambda value: f"{value:.0f}"),
                "MB": self._said(place, "target_bytes", lambda value: f"{value / 1e6:.3g}"),
                "held": f"{held} of {len(runs)}",
            }
        else:
            row |= {
                "seconds": self._said(place, "seconds", lambda value: f"{value:.1f}"),
                "updates": self._said(place, "updates", lambda value: f"{value:.0f}"),
                "MB": self._said(place, "sent_bytes", lambda value: f"{value / 1e6:.3g}"),
                "runs": str(len(runs)),
            }
        return row | {
            f"final {self.metric}": self._said(place, "final", number),
            f"worst {self.metric}": self._said(place, "worst", number),
            "staleness": self._said(place, "mean_staleness", lambda value: f"{value:.1f}"),
        }

    def _said(self, place: int, name: str, say: Callable[[float], str], **words: str) -> str:
        spread = self.spread(place, name)
        return spread.in_words(say, **words) if spread else ""

    @property
    def never(self) -> str:
        """What is said of a run that never held the target."""
        return f"not within {self.max_seconds or self.limit_s:g} s"

    def write(self, folder: Path) -> None:
        """Write `results.csv` with a row for each run, and `results.json` with the combinations too."""
        write_whole(folder / CSV, [self._as_csv().encode()])
        write_whole(folder / JSON, [as_text(self._as_dict(), indent=2).encode(), b"\n"])

    def _as_csv(self) -> str:
        swept = list(dict.fromkeys(name for one in self.grid.combinations for name in one.values))
        names = [each.name for each in fields(RunResult)]
        lines = csv.writer(text := io.StringIO(), lineterminator="\n")
        lines.writerow([*swept, *names[:1], "held", *names[1:], "error"])
        for place, one in enumerate(self.grid.combinations):
            values = [one.values.get(name, "") for name in swept]
            for each in self.results.get(place, ()):
                held = "yes" if math.isfinite(each.target_s) else "no"
                of_run = [getattr(each, name) for name in names]
                lines.writerow([*values, *of_run[:1], held, *of_run[1:], ""])
            for failure in self.failures:
                if failure.place == place:
                    lines.writerow([*values, failure.seed, *[""] * len(names), failure.error])
        return text.getvalue()

    def _as_dict(self) -> dict[str, object]:
        shown = [each.name for each in fields(RunResult) if each.type not in ("str", str)]
        combinations = [
            {
                "settings": dict(self.grid.combinations[place].values),
                "held": sum(1 for each in self.results[place] if math.isfinite(each.target_s)),
                "runs": [asdict(each) for each in self.results[place]],
                "over seeds": {
                    name: asdict(spread)
                    for name in shown
                    if name != "seed" and (spread := self.spread(place, name))
                },
            }
            for place in self.order
        ]
        return {
            "target": self.target,
            "held_seconds": self.hold_s,
            "max_seconds": self.max_seconds,
            "seeds": list(self.grid.seeds),
            "left_out": self.grid.left_out,
            "combinations": combinations,
            "failed": [
                {"settings": dict(self.grid.combinations[each.place].values), "seed": each.seed}
                | {"error": each.error}
                for each in self.failures
            ],
            "not_played": self.left,
        }
