"""An HTML page with pictures drawn in SVG: no script, no other file, no network."""

from base64 import b64encode
from collections.abc import Iterable, Sequence
from hashlib import sha256
from html import escape

from fluffle_cli.report.page import asset

STYLE = """
svg { width: 100%; max-width: 32rem; height: auto; }
svg rect { fill: var(--one); } svg rect.after { fill: var(--two); }
svg text { fill: var(--faint); font-size: 11px; }
svg text.middle { text-anchor: middle; } svg text.end { text-anchor: end; }
svg line { stroke: var(--line); } svg polyline { fill: none; stroke-width: 2; }
svg .one { stroke: var(--one); } svg .two { stroke: var(--two); } svg .mark { stroke: var(--mark); }
svg circle { fill: var(--one); } svg rect.paper { fill: var(--paper); }
.reason { color: var(--bad); font-weight: 600; }
"""


def drawn_page(title: str, header: str, sections: Iterable[str]) -> str:
    """Return a page; header and sections are HTML, the title is text."""
    style = asset("style.css") + STYLE
    hashed = b64encode(sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{hashed}'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style></head>\n"
        f"<body><header><h1>{escape(title)}</h1>\n"
        f"{header}</header>\n{''.join(sections)}</body></html>\n"
    )


def section(heading: str, content: str) -> str:
    """Return a section of HTML."""
    return f"<section><h2>{escape(heading)}</h2>{content}</section>\n"


def facts(named: Iterable[tuple[str, str]]) -> str:
    """Return facts as a list of names and values."""
    listed = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in named)
    return f"<dl>{listed}</dl>"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Iterable[int] = ()) -> str:
    """Return a table; `numbers` are the columns that are aligned as numbers."""
    marks = dict.fromkeys(numbers, ' class="number"')

    def cells(row: Sequence[str], tag: str) -> str:
        return "".join(f"<{tag}{marks.get(at, '')}>{escape(cell)}</{tag}>" for at, cell in enumerate(row))

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f"<table><tr>{cells(heads, 'th')}</tr>{body}</table>"


def figure(caption: str, label: str, size: tuple[int, int], drawn: str) -> str:
    """Return a picture: the caption and what is drawn are HTML."""
    return (
        f'<figure><figcaption>{caption}</figcaption><svg viewBox="0 0 {size[0]} {size[1]}" role="img" '
        f'aria-label="{label}">{drawn}</svg></figure>'
    )
