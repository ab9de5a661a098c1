"""Curves on logarithmic axes, drawn in SVG. Pure."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

WIDTH: Final = 420
HEIGHT: Final = 240
LEFT: Final = 50
RIGHT: Final = WIDTH - 10
BOTTOM: Final = HEIGHT - 34
LEGEND: Final = 16
MOST_TICKS: Final = 7
# Of the styles in fluffle_cli.drawn_page.
CLASSES: Final = ("one", "two", "mark")

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Picture:
    """Curves, each with a name, of numbers above 0; the `dot` marks a point of the first one."""

    caption: str
    across: str
    curves: tuple[tuple[str, Points], ...]
    dot: tuple[float, float] | None = None

    def drawn(self) -> str:
        """Return the picture as what is inside of an SVG of WIDTH and HEIGHT."""
        points = [point for _, curve in self.curves for point in curve]
        top = LEGEND * len(self.curves)
        x = _Axis.over([each for each, _ in points], LEFT, RIGHT)
        y = _Axis.over([each for _, each in points], BOTTOM, top)
        parts = [
            *_grid(x, y, top),
            f'<text class="end" x="{RIGHT}" y="{HEIGHT - 4}">{escape(self.across)}</text>',
        ]
        for at, (name, curve) in enumerate(self.curves):
            path = " ".join(f"{x.place(a):.1f},{y.place(b):.1f}" for a, b in curve)
            height = LEGEND * at + 8
            parts += [
                f'<polyline class="{CLASSES[at]}" points="{path}"></polyline>',
                f'<polyline class="{CLASSES[at]}" points="{LEFT},{height} {LEFT + 20},{height}"></polyline>',
                f'<text x="{LEFT + 26}" y="{height + 4}">{escape(name)}</text>',
            ]
        if self.dot is not None:
            parts.append(
                f'<circle cx="{x.place(self.dot[0]):.1f}" cy="{y.place(self.dot[1]):.1f}" r="5"></circle>'
            )
        return "".join(parts)


@dataclass(frozen=True, slots=True)
class _Axis:
    """From `low` at the place `start` to `high` at the place `end`."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float) -> "_Axis":
        low, high = min(values), max(values)
        return cls(low, high if high > low else 10 * low, start, end)

    def place(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Return round numbers, as many as there is room for."""
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for factors in ((1, 2, 5), (1,)):
            found = [factor * 10.0**power for power in powers for factor in factors]
            shown = [
                each for each in found if self.low <= each * (1 + 1e-9) and each <= self.high * (1 + 1e-9)
            ]
            if len(shown) <= MOST_TICKS:
                return shown
        return shown[:: -(-len(shown) // MOST_TICKS)]


def _grid(x: _Axis, y: _Axis, top: float) -> Iterator[str]:
    for tick in x.ticks():
        place = f"{x.place(tick):.1f}"
        yield f'<line x1="{place}" x2="{place}" y1="{top}" y2="{BOTTOM}"></line>'
        yield f'<text class="middle" x="{place}" y="{BOTTOM + 14}">{tick:g}</text>'
    for tick in y.ticks():
        height = y.place(tick)
        yield f'<line x1="{LEFT}" x2="{RIGHT}" y1="{height:.1f}" y2="{height:.1f}"></line>'
        yield f'<text class="end" x="{LEFT - 6}" y="{height + 4:.1f}">{tick:g}</text>'
