"""Machines whose seconds per step differ 16 times: rounds of one length against rounds of fixed epochs.

    python -m benchmarks.uneven_pace     # some: python -m benchmarks.uneven_pace fedavg

Each section plays some settings of `fluffle simulate`, as `played.py` says. Then docs/results/pace.md gets
the new tables; the sections that are not played keep theirs.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, Final

from benchmarks.played import play_sections
from benchmarks.sections import Demand, Given, Section, held_s, held_updates, times

# A pass over a site's 180 pictures takes the fastest machine a quarter of a second, and the slowest 4 s.
EPOCH_S: Final = 0.25
EXAMPLES: Final = 180
TIMES: Final = 16
# As many seconds for all sides: every machine is there from the start to the end.
SCENE: Final[Given] = {
    "task": "digits",
    "clients": 8,
    "split": "dirichlet:0.5",
    "device_seconds": "constant:0.01",
    "example_seconds": f"spread:{EPOCH_S / EXAMPLES:.4g}:{TIMES}",
    "target": "0.95",
    "max_seconds": 300,
}
FIXED: Final = "fixed epochs"
PACED: Final = "round_seconds"
PLAIN: Final = "round_seconds, not normalised"
RATES: Final = (0.2, 0.5)


def _grid(**choices: Sequence[Any]) -> list[Given]:
    """Return a setting for each combination."""
    return [dict(zip(choices, each, strict=True)) for each in product(*choices.values())]


def _section(title: str, strategy: str, demands: Sequence[Demand], **others: Any) -> Section:
    lengths = {"round_seconds": (0.5, 1.0), "min_steps": (1, 3), "learning_rate": RATES}
    return Section(
        title,
        {**SCENE, "strategy": strategy, **others},
        {
            FIXED: _grid(local_epochs=(1, 3), learning_rate=RATES),
            PACED: _grid(**lengths),
            PLAIN: _grid(**lengths, normalize_steps=(False,)),
        },
        {"seconds to 95 %": held_s, "updates to 95 %": held_updates},
        demands,
        better=held_s,
    )


SOONER: Final = Demand("times sooner than with fixed epochs", times(held_s, FIXED, PACED), "at least", 1.5)

SECTIONS: Final[Mapping[str, Section]] = {
    "fedavg": _section("16 times slower: synchronous rounds (fedavg)", "fedavg", [SOONER]),
    "fedbuff": _section("16 times slower: buffers of 4 updates (fedbuff)", "fedbuff", [SOONER]),
    "reuse": _section("16 times slower: each worker's last update (reuse)", "reuse", []),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Play, write the tables, print them, and end with 1 when something is not reached."""
    play_sections("pace", SECTIONS, about="Play machines of different speed.", arguments=arguments)


if __name__ == "__main__":
    main()
