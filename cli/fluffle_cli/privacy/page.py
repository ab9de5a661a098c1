"""The numbers of differential privacy as one HTML page, and its pictures as an SVG file."""

import re
from collections.abc import Iterable
from html import escape
from typing import Final

from fluffle.errors import ConfigError
from fluffle.privacy.promise import NoiseKind
from fluffle_cli.drawn_page import STYLE, drawn_page, figure, section, table
from fluffle_cli.privacy.pictures import HEIGHT, WIDTH, Picture, Points
from fluffle_cli.privacy.planning import PrivacyNumbers
from fluffle_cli.privacy.terminal import (
    EXPLAINED,
    MULTIPLIER,
    buffer_rows,
    compared_rows,
    course,
    epsilon_rows,
    head,
)
from fluffle_cli.report.page import asset

TITLE: Final = "Differential privacy in numbers"
# From 0.1 to 100.
EPSILONS: Final = tuple(10 ** (power / 10) for power in range(-10, 21))
CAPTION_HEIGHT: Final = 24


def page(found: PrivacyNumbers) -> str:
    """Return the page."""
    warned = "".join(f'<p class="reason">{escape(each)}</p>' for each in found.warnings)
    header = f"<p>{escape(found.promise)}</p><p>{escape(course(found))}</p>{warned}"
    return drawn_page(TITLE, header, _sections(found))


def picture_file(found: PrivacyNumbers) -> str:
    """Return the pictures as an SVG file that needs no other one."""
    # Not every program that shows SVG knows variables, so colours are those of the page in daylight.
    colours = dict(re.findall(r"(--\w+): (#\w+)", asset("style.css").partition("@media")[0]))
    style = re.sub(r"var\((--\w+)\)", lambda named: colours[named[1]], STYLE)
    pictures = _pictures(found)
    drawn = "".join(
        f'<g transform="translate({at * WIDTH} {CAPTION_HEIGHT})">'
        f'<text x="8" y="-8">{escape(each.caption)}</text>{each.drawn()}</g>'
        for at, each in enumerate(pictures)
    )
    width, height = len(pictures) * WIDTH, HEIGHT + CAPTION_HEIGHT
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">'
        f"<title>{TITLE}</title><style>{style}svg {{ max-width: none; }}</style>"
        f'<rect class="paper" width="{width}" height="{height}"></rect>{drawn}</svg>\n'
    )


def _sections(found: PrivacyNumbers) -> Iterable[str]:
    for name, (columns, rows) in (
        ("Noise", compared_rows(found)),
        ("Other epsilons", epsilon_rows(found)),
        ("Other buffer sizes", buffer_rows(found)),
    ):
        shown = table(columns, rows, numbers=range(1, len(columns)))
        yield section(name, f'<div class="wide">{shown}</div>')
    drawn = "".join(
        figure(escape(each.caption), escape(each.caption), (WIDTH, HEIGHT), each.drawn())
        for each in _pictures(found)
    )
    yield section("Pictures", f'<p>{EXPLAINED}</p><div class="charts">{drawn}</div>')


def _pictures(found: PrivacyNumbers) -> tuple[Picture, Picture]:
    kinds, steps = found.asked.kinds, found.asked.versions
    so_far = [(float(version), version / steps) for version in sorted({1, steps})]
    return (
        Picture(
            f"{MULTIPLIER} and epsilon",
            "epsilon",
            tuple((head(kind), _multipliers(found, kind)) for kind in kinds),
            dot=(found.epsilon, found.chosen.multiplier),
        ),
        Picture(
            "noise and updates after each version",
            "version",
            (*((head(kind), found.by_kind[kind].after_versions()) for kind in kinds), ("updates", so_far)),
        ),
    )


def _multipliers(found: PrivacyNumbers, kind: NoiseKind) -> Points:
    """Return epsilons, also that which was asked for, each with the noise multiplier that it needs."""
    points = []
    for epsilon in sorted({*EPSILONS, found.epsilon}):
        try:
            noise = found.asked.noise_for(epsilon, kind)
        except ConfigError:
            continue
        points.append((epsilon, found.asked.multiplier(noise)))
    return points
