"""Line charts as inline SVG. Colours come from the page's style sheet: line 0 has class `line0`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 14, 46
MOST_POINTS = 400


@dataclass(frozen=True)
class Line:
    """One named curve; `low` and `high`, when there, bound a band around it."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True)
class _Axes:
    """Data ranges, and where they lie on the picture."""

    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: float, y: float) -> str:
        right = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        place_x = LEFT + right * (WIDTH - LEFT - RIGHT)
        return f"{place_x:.1f},{HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM):.1f}"


def line_chart(lines: Sequence[Line], *, title: str, x_label: str, y_label: str) -> str:
    """The SVG of a chart with axes; the legend stands above it, as HTML."""
    lines = [_thinned(line) for line in lines]
    values = [v for line in lines for v in (*line.y, *line.low, *line.high) if math.isfinite(v)]
    places = [x for line in lines for x in line.x]
    axes = _Axes(_range(places), _range(values, margin=0.05))
    drawn = [_grid(axes), *(_band(line, i, axes) for i, line in enumerate(lines))]
    drawn += [_curve(line, i, axes) for i, line in enumerate(lines)]
    middle_x, middle_y = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    drawn.append(
        f'<text class="label" x="{middle_x:.0f}" y="{HEIGHT - 8}" text-anchor="middle">'
        f"{escape(x_label)}</text>"
        f'<text class="label" transform="translate(14 {middle_y:.0f}) rotate(-90)" '
        f'text-anchor="middle">{escape(y_label)}</text>'
    )
    keys = "".join(
        f'<span class="key"><svg viewBox="0 0 26 8" aria-hidden="true">'
        f'<path class="line line{i}" d="M0,4 H26"/></svg>{escape(line.name)}</span>'
        for i, line in enumerate(lines)
    )
    legend = f'<div class="legend">{keys}</div>' if len(lines) > 1 else ""
    return (
        f'{legend}<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}">{"".join(drawn)}</svg>'
    )


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from `low` to `high`."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _range(values: Sequence[float], margin: float = 0.0) -> tuple[float, float]:
    low, high = min(values), max(values)
    if low == high:
        return low - 0.5, high + 0.5
    room = margin * (high - low)
    return low - room, high + room


def _thinned(line: Line) -> Line:
    """At most MOST_POINTS points: the means of equal groups of neighbours."""
    size = -(-len(line.x) // MOST_POINTS)
    if size <= 1:
        return line

    def means(values: Sequence[float]) -> list[float]:
        groups = [values[i : i + size] for i in range(0, len(values), size)]
        return [sum(group) / len(group) for group in groups]

    return Line(line.name, means(line.x), means(line.y), means(line.low), means(line.high))


def _grid(axes: _Axes) -> str:
    parts = []
    for y in ticks(*axes.y):
        start, end = axes.at(axes.x[0], y), axes.at(axes.x[1], y)
        height = float(start.split(",")[1])
        parts.append(
            f'<path class="grid" d="M{start} L{end}"/>'
            f'<text class="tick" x="{LEFT - 8}" y="{height + 4:.1f}" text-anchor="end">{y:g}</text>'
        )
    for x in ticks(*axes.x, most=9):
        place = axes.at(x, axes.y[0]).split(",")[0]
        parts.append(
            f'<text class="tick" x="{place}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">'
            f"{x:g}</text>"
        )
    start, end = axes.at(axes.x[0], axes.y[0]), axes.at(axes.x[1], axes.y[0])
    return "".join([*parts, f'<path class="axis" d="M{start} L{end}"/>'])


def _band(line: Line, number: int, axes: _Axes) -> str:
    edges = [e for e in (line.low, line.high) if e and all(map(math.isfinite, e))]
    if len(edges) < 2:
        return ""
    there = [axes.at(x, y) for x, y in zip(line.x, line.high, strict=True)]
    back = [axes.at(x, y) for x, y in zip(line.x, line.low, strict=True)]
    return f'<path class="band band{number}" d="M{" L".join([*there, *back[::-1]])} Z"/>'


def _curve(line: Line, number: int, axes: _Axes) -> str:
    points = " L".join(axes.at(x, y) for x, y in zip(line.x, line.y, strict=True))
    if len(line.x) == 1:  # a path of one point shows nothing
        x, y = points.split(",")
        return f'<circle class="dot{number}" cx="{x}" cy="{y}" r="3"/>'
    return f'<path class="line line{number}" d="M{points}"/>'
