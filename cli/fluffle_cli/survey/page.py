"""A survey as one HTML page, with a picture of each column."""

import math
from collections.abc import Iterable
from html import escape
from itertools import pairwise

from fluffle.survey.result import LEVELS, SurveyedColumn, SurveyResult
from fluffle_cli.drawn_page import drawn_page, facts, figure, section, table
from fluffle_cli.survey.terminal import COLUMN_HEADS, class_rows, column_row
from fluffle_cli.words import number

WIDTH, HEIGHT = 320, 90
# A page with more pictures is slow.
MOST_PICTURES = 200


def page(federation: str, result: SurveyResult) -> str:
    """Return the page."""
    said = "<p>Nothing here stands for fewer rows than the least count, and nothing for one site alone.</p>"
    if result.sites == 1:
        said = '<p class="reason">Only one site has answered: these are its statistics.</p>'
    return drawn_page(f"Survey of {federation}", said, _sections(result))


def _sections(result: SurveyResult) -> Iterable[str]:
    known = {
        "sites": f"{result.sites:,}",
        "rows": f"{result.rows:,}",
        "columns": f"{len(result.columns):,}",
        "least count": f"{result.min_count:,}",
    }
    yield section("Rows", facts(known.items()))
    if result.class_counts is not None:
        yield section("Classes", table(["class", "rows", "share"], class_rows(result), numbers=(1, 2)))
    rows = map(column_row, result.columns)
    yield section("Columns", table(COLUMN_HEADS, rows, numbers=range(1, len(COLUMN_HEADS))))
    pictures = "".join(map(_column, result.columns[:MOST_PICTURES]))
    left = len(result.columns) - MOST_PICTURES
    more = f"<p>{left} more columns are in the table alone.</p>" if left > 0 else ""
    yield section(
        "Distributions",
        "<p>Between two neighbours of the quantiles 1, 5, 10 … 95 and 99 %; the area of a bar is the "
        "share of values.</p>"
        f'<div class="charts">{pictures}</div>{more}',
    )


def _column(column: SurveyedColumn) -> str:
    name = escape(column.name)
    known = [
        (level, value)
        for level, value in zip(LEVELS, column.quantiles.tolist(), strict=True)
        if math.isfinite(value)
    ]
    bars = [
        (low, high, level_after - level)
        for (level, low), (level_after, high) in pairwise(known)
        if high > low
    ]
    if not bars:
        said = "always the same" if column.deviation == 0 else "too few values"
        return figure(f'{name}<span class="value">{said}</span>', f"distribution of {name}", (WIDTH, 4), "")
    start, end = bars[0][0], bars[-1][1]
    most = max(share / (high - low) for low, high, share in bars)
    drawn = []
    for low, high, share in bars:
        height = HEIGHT * share / (high - low) / most
        left, right = (WIDTH * (edge - start) / (end - start) for edge in (low, high))
        place = f'x="{left:.2f}" y="{HEIGHT - height:.2f}"'
        drawn.append(
            f'<rect {place} width="{max(0.3, right - left - 0.5):.2f}" height="{height:.2f}"></rect>'
        )
    drawn.append(f'<text x="0" y="{HEIGHT + 14}">{number(start)}</text>')
    drawn.append(f'<text x="{WIDTH}" y="{HEIGHT + 14}" text-anchor="end">{number(end)}</text>')
    caption = f'{name}<span class="value">mean {number(column.mean)}</span>'
    return figure(caption, f"distribution of {name}", (WIDTH, HEIGHT + 18), "".join(drawn))
