"""What the remedies for uneven sites bring, on a virtual clock: rare classes and dirty data.

    python -m benchmarks.uneven          # some: python -m benchmarks.uneven long-tail dirt

Each section plays some settings of `fluffle simulate`, as `played.py` says; a module of its own has those of
each kind. Then docs/results/uneven.md gets the new tables; the sections that are not played keep theirs.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from benchmarks import uneven_data
from benchmarks.played import play_sections
from benchmarks.sections import Section

SECTIONS: Final[Mapping[str, Section]] = {**uneven_data.SECTIONS}


def main(arguments: Sequence[str] | None = None) -> None:
    """Play, write the tables, print them, and end with 1 when something is not reached."""
    play_sections("uneven", SECTIONS, about="Play sites with rare classes or dirt.", arguments=arguments)


if __name__ == "__main__":
    main()
