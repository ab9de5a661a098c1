"""The report as one HTML page, with pictures drawn in SVG: no script, no other file, no network."""

from collections.abc import Iterable, Sequence
from html import escape

from fluffle_cli.data_check.drift import Drift, drift_rows
from fluffle_cli.data_check.looking import DataCheck
from fluffle_cli.drawn_page import drawn_page, facts, figure, section, table
from fluffle_cli.words import number
from fluffle_worker.data.profile import ColumnProfile

# Columns with the most findings come first; a page with more pictures than this is slow.
MOST_PICTURES = 60
# Whole numbers that are the targets of a regression may look like thousands of classes.
MOST_CLASSES = 100
WIDTH, HEIGHT = 320, 90
ENDS = "<p>Outliers are in the first and the last bar.</p>"


def page(check: DataCheck) -> str:
    """Return the page."""
    return drawn_page(f"Data of {check.task}, {check.site}", _verdict(check), _sections(check))


def _verdict(check: DataCheck) -> str:
    if check.reason:
        return f'<p class="reason">Training would be senseless or refused here: {escape(check.reason)}</p>'
    if check.warnings:
        return "".join(f'<p class="reason">Warning: {escape(each)}.</p>' for each in check.warnings)
    return "<p>Nothing speaks against training on this data. Nothing of it has left this machine.</p>"


def _sections(check: DataCheck) -> Iterable[str]:
    profile = check.profile
    known = {
        "rows": f"{profile.rows:,}",
        "inputs of a row": profile.row_shape or "none",
        "rows without a label": f"{profile.unlabelled:,}",
        "rows with missing values": f"{profile.incomplete:,}",
        "equal to an earlier row": "unknown" if profile.duplicates is None else f"{profile.duplicates:,}",
    }
    yield section("Rows", f"{facts(known.items())}<p>Labels: {escape(check.suspicious)}.</p>")
    yield section("Steps", _steps(check))
    if check.drift is not None:
        yield section("Drift", _drift(check.drift))
    if profile.classes:
        after = next((each.classes_after for each in reversed(check.reports)), ())
        bars = _class_bars(profile.classes[:MOST_CLASSES], after[:MOST_CLASSES])
        left = len(profile.classes) - MOST_CLASSES
        yield section("Classes", bars + (f"<p>{left:,} more classes are not shown.</p>" if left > 0 else ""))
    if profile.columns:
        worst = sorted(profile.columns, key=lambda each: -each.findings)[:MOST_PICTURES]
        left = len(profile.columns) - len(worst)
        more = f"<p>{left} more columns, with fewer findings, are not shown.</p>" if left else ""
        pictures = "".join(map(_column, worst))
        yield section("Columns", f'{ENDS}<div class="charts">{pictures}</div>{more}')


def _steps(check: DataCheck) -> str:
    whose = "The steps of the task" if check.has_own_steps else "The task has no data steps; the defaults"
    rows = [[each.step, f"{each.before:,}", f"{each.after:,}", each.detail] for each in check.reports]
    shown = table(["step", "rows before", "after", ""], rows, numbers=(1, 2)) if rows else ""
    did = "would do this" if rows else "were not taken" if check.reason else "would change nothing"
    return f"<p>{whose} {did}.</p>{shown}"


def _drift(drift: Drift) -> str:
    shown = table(["", "total variation distance"], drift_rows(drift)[:MOST_PICTURES], numbers=(1,))
    return f"<p>{escape(drift.says)}</p>{shown}"


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
    return figure(caption, caption, (360, 26 * len(before) + 4), "".join(rows))


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
    return figure(caption, f"distribution of {name}", (WIDTH, HEIGHT + 18), "".join(bars) + ends)
