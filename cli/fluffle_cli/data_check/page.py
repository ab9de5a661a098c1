"""The report as one HTML page, with pictures drawn in SVG: no script, no other file, no network."""

from base64 import b64encode
from collections.abc import Iterable, Sequence
from hashlib import sha256
from html import escape

from fluffle_cli.data_check.looking import DataCheck
from fluffle_cli.report.page import asset
from fluffle_cli.words import number
from fluffle_worker.data.profile import ColumnProfile

# Columns with the most findings come first; a page with more pictures than this is slow.
MOST_PICTURES = 60
WIDTH, HEIGHT = 320, 90
ENDS = "<p>Outliers are in the first and the last bar.</p>"
OWN_STYLE = """
svg { width: 100%; max-width: 32rem; height: auto; }
svg rect { fill: var(--one); } svg rect.after { fill: var(--two); }
svg text { fill: var(--faint); font-size: 11px; } .reason { color: var(--bad); font-weight: 600; }
"""


def page(check: DataCheck) -> str:
    """Return the page."""
    style = asset("style.css") + OWN_STYLE
    hashed = b64encode(sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{hashed}'"
    title = f"Data of {check.task}, {check.site}"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style></head>\n"
        f"<body><header><h1>{escape(title)}</h1>\n"
        f"{_verdict(check)}</header>\n{''.join(_sections(check))}</body></html>\n"
    )


def _verdict(check: DataCheck) -> str:
    if check.reason:
        return f'<p class="reason">Training would be senseless here: {escape(check.reason)}</p>'
    return "<p>Nothing speaks against training on this data. Nothing of it has left this machine.</p>"


def _sections(check: DataCheck) -> Iterable[str]:
    profile = check.profile
    facts = {
        "rows": f"{profile.rows:,}",
        "inputs of a row": profile.row_shape or "none",
        "rows without a label": f"{profile.unlabelled:,}",
        "rows with missing values": f"{profile.incomplete:,}",
        "equal to an earlier row": "unknown" if profile.duplicates is None else f"{profile.duplicates:,}",
    }
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    yield f"<section><h2>Rows</h2><dl>{listed}</dl><p>Labels: {escape(check.suspicious)}.</p></section>\n"
    yield _steps(check)
    if profile.classes:
        after = next((each.classes_after for each in reversed(check.reports)), ())
        yield f"<section><h2>Classes</h2>{_class_bars(profile.classes, after)}</section>\n"
    if profile.columns:
        worst = sorted(profile.columns, key=lambda each: -each.findings)[:MOST_PICTURES]
        left = len(profile.columns) - len(worst)
        more = f"<p>{left} more columns, with fewer findings, are not shown.</p>" if left else ""
        pictures = "".join(map(_column, worst))
        yield f'<section><h2>Columns</h2>{ENDS}<div class="charts">{pictures}</div>{more}</section>\n'


def _steps(check: DataCheck) -> str:
    whose = "The steps of the task" if check.has_own_steps else "The task has no data steps; the defaults"
    rows = "".join(
        f'<tr><td>{escape(each.step)}</td><td class="number">{each.before:,}</td>'
        f'<td class="number">{each.after:,}</td><td>{escape(each.detail)}</td></tr>'
        for each in check.reports
    )
    head = '<tr><th>step</th><th class="number">rows before</th><th class="number">after</th><th></th></tr>'
    table = f"<table>{head}{rows}</table>" if rows else "<p>They would change nothing.</p>"
    return f"<section><h2>Steps</h2><p>{whose} would do this.</p>{table}</section>\n"


def _class_bars(before: Sequence[int], after: Sequence[int]) -> str:
    most = max([1, *before, *after])
    rows = []
    for at, count in enumerate(before):
        last = after[at] if at < len(after) else None
        width = 260 * count / most
        rows.append(
            f'<rect x="30" y="{at * 26}" width="{width:.1f}" height="10"></rect>'
            f'<text x="26" y="{at * 26 + 14}" text-anchor="end">{at}</text>'
            f'<text x="{width + 34:.1f}" y="{at * 26 + 9}">{count:,}</text>'
        )
        if last is not None:
            width = 260 * last / most
            rows.append(
                f'<rect class="after" x="30" y="{at * 26 + 11}" width="{width:.1f}" height="10"></rect>'
                f'<text x="{width + 34:.1f}" y="{at * 26 + 20}">{last:,}</text>'
            )
    caption = "Rows of each class before the steps (above) and after them (below)"
    return _figure(caption, caption, (360, 26 * len(before) + 4), "".join(rows))


def _figure(caption: str, label: str, size: tuple[int, int], drawn: str) -> str:
    return (
        f'<figure><figcaption>{caption}</figcaption><svg viewBox="0 0 {size[0]} {size[1]}" role="img" '
        f'aria-label="{label}">{drawn}</svg></figure>'
    )


def _column(column: ColumnProfile) -> str:
    said = [
        f"{count:,} {what}"
        for count, what in (
            (column.missing, "missing"),
            (column.infinite, "infinite"),
            (column.outliers, "outliers"),
        )
        if count
    ]
    if column.is_constant:
        said.append("never changes")
    bars, most = [], max([1, *column.bins])
    step = WIDTH / max(1, len(column.bins))
    for at, count in enumerate(column.bins):
        height = HEIGHT * count / most
        place = f'x="{at * step:.1f}" y="{HEIGHT - height:.1f}"'
        bars.append(f'<rect {place} width="{step - 1:.1f}" height="{height:.1f}"></rect>')
    ends = (
        f'<text x="0" y="{HEIGHT + 14}">{number(column.shown[0])}</text>'
        f'<text x="{WIDTH}" y="{HEIGHT + 14}" text-anchor="end">{number(column.shown[1])}</text>'
    )
    name = escape(column.name)
    caption = f'{name}<span class="value">{", ".join(said) or "nothing unusual"}</span>'
    return _figure(caption, f"distribution of {name}", (WIDTH, HEIGHT + 18), "".join(bars) + ends)
