"""Write the newest results into the pages of docs/results: their tables and their plots.

    make performance

The table of a benchmark's newest run in benchmarks/results, and the machine that it ran on, replace what is
between `<!-- results: NAME -->` and `<!-- end -->` in a page. The text around them stays.
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measuring import RESULTS, cell_text, columns_of
from benchmarks.plots import draw
from fluffle.consoles import PlainConsole

DOCS = Path(__file__).parent.parent / "docs"
PAGES = DOCS / "results"
# One line of a file of results, as Report writes it.
Line = dict[str, Any]
PLACE = re.compile(r"(<!-- results: ([a-z0-9-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    """Write all pages."""
    fill(sorted(PAGES.glob("*.md")))


def fill(pages: Sequence[Path]) -> None:
    """Read the results, and write these pages and their plots."""
    console = PlainConsole()
    lines = {path.stem: _newest_run(path) for path in sorted(RESULTS.glob("*.jsonl"))}

    def filled(place: re.Match[str]) -> str:
        begin, name, end = place[1], place[2], place[3]
        if name not in lines:
            console.print(f"no results of {name}: its table stays as it is")
            return place[0]
        drawn = draw(DOCS / "images", name, [line["row"] for line in lines[name]])
        images = [f"![{title}](../images/{path.name})" for path, title in drawn]
        table = _table(lines[name], place[0])
        return "\n\n".join([begin.rstrip(), table, _machine(lines[name][-1]), *images, end])

    for page in pages:
        page.write_text(PLACE.sub(filled, page.read_text()))


def _newest_run(path: Path) -> list[Line]:
    """Return the lines of the newest run; of a benchmark of several scenes, those of the newest of each."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    newest = {line["row"].get("scene"): line["run"] for line in lines}
    return [line for line in lines if line["run"] == newest[line["row"].get("scene")]]


def _table(lines: Sequence[Line], before: str) -> str:
    """Return the table; of scenes that were not played it has the rows that the page had `before`."""
    rows = [line["row"] for line in lines]
    columns = lines[-1].get("shown") or columns_of(rows)
    head = _cells(column.replace("_", " ") for column in columns)
    body = [_cells(cell_text(row, column) for column in columns) for row in rows]
    if "scene" in columns and head in before:
        played = {line.partition(" | ")[0] for line in body}
        old = [line for line in before.partition(head)[2].splitlines() if line.startswith("| ")]
        body = [*(line for line in old[1:] if line.partition(" | ")[0] not in played), *body]
    return "\n".join((head, _cells("---" for _ in columns), *body))


def _cells(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _machine(line: Line) -> str:
    on = line["machine"]
    broker = f", RabbitMQ {on['rabbitmq']}" if on["rabbitmq"] else ""
    hardware = f"{on['cpu']}, {on['cores']} cores, {on['memory_gib']} GiB, Linux {on['kernel']}"
    software = f"Python {on['python']}, numpy {on['numpy']}, pika {on['pika']}{broker}"
    return f"*{hardware}; {software}; {line['run']}.*"


if __name__ == "__main__":
    main()
