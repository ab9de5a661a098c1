"""What each role may do, in words: for `fluffle user add --help` and broker_config/README.md. Pure."""

import re
from collections.abc import Iterator

from fluffle.rights import ROLES, rights_of
from fluffle.topology import topology_of

OWN, ELSEWHERE = topology_of("f"), topology_of("elsewhere")
# NAME is the user's own name, which a worker or an evaluator works under.
NAMES = sorted(
    {each.name for each in OWN.exchanges}
    | {each.name for each in OWN.queues}
    | {OWN.worker_lock("NAME"), OWN.worker_bell("NAME"), f"{OWN.events.name}.ANYTHING"}
)
EVERYTHING = "everything"
COLUMNS = "configure", "write", "read", "tags"


def markdown_table() -> str:
    """Return the table for a Markdown file."""
    lines = [("role", *COLUMNS), ("---",) * (1 + len(COLUMNS))]
    for role, cells in _rows():
        quoted = [[each if each == EVERYTHING else f"`{each}`" for each in cell] for cell in cells]
        lines.append((role, *map(", ".join, quoted)))
    return "".join(f"| {' | '.join(line)} |\n".replace("|  |", "| |") for line in lines)


def help_text() -> str:
    """Return a paragraph for each role."""
    paragraphs = []
    for role, cells in _rows():
        said = [f"{column} {', '.join(cell)}" for column, cell in zip(COLUMNS, cells, strict=True) if cell]
        paragraphs.append(f"{role}: {'; '.join(said)}")
    return "\n\n".join(paragraphs)


def _rows() -> Iterator[tuple[str, list[list[str]]]]:
    """Yield each role with its COLUMNS: the names that its patterns match, with F for the federation."""
    for role in ROLES:
        rights = rights_of(role, OWN.federation, "NAME")
        yield role, [*map(_names_in, rights.patterns.values()), sorted(rights.tags)]


def _names_in(pattern: str) -> list[str]:
    if re.search(pattern, ELSEWHERE.updates.name):
        return [EVERYTHING]
    found = [name for name in NAMES if re.search(pattern, name)]
    return ["F.*"] if found == NAMES else [name.replace("f.", "F.", 1) for name in found]
