"""Play what papers say of asynchronous strategies, and say whether it is so here; on a virtual clock.

    make papers                          # some: make papers ARGS="fedbuff fadas"

Each section of paper_scenes.py plays some settings of `fluffle simulate`, as `played.py` says. Then
docs/results/papers.md gets the new tables; the sections that are not played keep theirs.
"""

from collections.abc import Sequence

from benchmarks.paper_scenes import SECTIONS
from benchmarks.played import play_sections


def main(arguments: Sequence[str] | None = None) -> None:
    """Play, write the tables, print them, and end with 1 when something is not reached."""
    play_sections("papers", SECTIONS, about="Play what papers say.", arguments=arguments)


if __name__ == "__main__":
    main()
