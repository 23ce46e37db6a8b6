"""Line charts and bars as inline SVG. Colours come from the style sheet: look 0 is `line0`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape

from cosmos_wds.train.interval import Interval

WIDTH, HEIGHT = 720, 300
LEFT, RIGHT, TOP, BOTTOM = 72, 14, 14, 46
MOST_POINTS = 400


@dataclass(frozen=True)
class Line:
    """One named curve; `low` and `high`, when there, bound a band around it."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    look: int = 0
    """Number of its colour and dashes in the style sheet."""
    is_shown: bool = True
    """Where lines have switches: whether it is on at first."""


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


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str,
    y_label: str,
    has_switches: bool = False,
    has_zero: bool = False,
) -> str:
    """A chart with axes as SVG, below a legend in HTML.

    has_switches   the legend's entries are boxes that hide and show their lines, without a script
    has_zero       zero belongs to the picture, drawn as a line

    Points that are not finite are left out.
    """
    lines = [_thinned(_finite(line)) for line in lines]
    values = [v for line in lines for v in (*line.y, *line.low, *line.high) if math.isfinite(v)]
    places = [x for line in lines for x in line.x]
    axes = _Axes(_range(places), _range(values, margin=0.05))
    if has_zero:  # without room beyond zero where no value is
        low, high = axes.y
        if min(values, default=0) >= 0:
            low = 0.0
        elif max(values) <= 0:
            high = 0.0
        axes = replace(axes, y=(low, high))
    zero = f'<path class="axis" d="M{axes.at(axes.x[0], 0)} L{axes.at(axes.x[1], 0)}"/>'
    drawn = [_grid(axes), zero if has_zero else ""]
    drawn += [f'<g class="part{line.look}">{_band(line, axes)}</g>' for line in lines]
    drawn += [f'<g class="part{line.look}">{_curve(line, axes)}</g>' for line in lines]
    middle_x, middle_y = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    drawn.append(
        f'<text class="label" x="{middle_x:.0f}" y="{HEIGHT - 8}" text-anchor="middle">'
        f"{escape(x_label)}</text>"
        f'<text class="label" transform="translate(14 {middle_y:.0f}) rotate(-90)" '
        f'text-anchor="middle">{escape(y_label)}</text>'
    )
    legend = _legend(lines, title, has_switches) if len(lines) > 1 else ""
    return (
        f'<div class="plot">{legend}<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}">{"".join(drawn)}</svg></div>'
    )


def bar(value: Interval, low: float, high: float) -> str:
    """A mean and its interval on a scale from `low` to `high` with marks at 0 and 1, stretchable.

    It says nothing that does not stand beside it in words, so it is hidden from screen readers.
    """

    def at(x: float) -> str:
        return f"{100 * (min(max(x, low), high) - low) / (high - low):.2f}"

    if math.isnan(value.mean):
        value = Interval(0.0, math.nan, math.nan)
    marks = "".join(f'<path class="mark" d="M{at(x)},0 V20"/>' for x in (0, 1))
    from_zero = sorted((float(at(0)), float(at(value.mean))))
    width = from_zero[1] - from_zero[0]
    spread = ""
    if math.isfinite(value.low) and math.isfinite(value.high):
        ends = f"M{at(value.low)},6 V14 M{at(value.high)},6 V14"
        spread = f'<path class="spread" d="M{at(value.low)},10 H{at(value.high)} {ends}"/>'
    return (
        '<svg class="bar" viewBox="0 0 100 20" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="fill" x="{from_zero[0]:.2f}" y="4" width="{width:.2f}" height="12"/>'
        f"{marks}{spread}</svg>"
    )


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from `low` to `high`."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _range(values: Sequence[float], margin: float = 0.0) -> tuple[float, float]:
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    if low == high:
        return low - 0.5, high + 0.5
    room = margin * (high - low)
    return low - room, high + room


def _finite(line: Line) -> Line:
    """Without the points whose value is not finite."""
    kept = [i for i, y in enumerate(line.y) if math.isfinite(y)]
    if len(kept) == len(line.y):
        return line
    columns = (line.x, line.y, line.low, line.high)
    x, y, low, high = ([column[i] for i in kept] if column else () for column in columns)
    return replace(line, x=x, y=y, low=low, high=high)


def _thinned(line: Line) -> Line:
    """At most MOST_POINTS points: the means of equal groups of neighbours."""
    size = -(-len(line.x) // MOST_POINTS)
    if size <= 1:
        return line

    def means(values: Sequence[float]) -> list[float]:
        groups = [values[i : i + size] for i in range(0, len(values), size)]
        return [sum(group) / len(group) for group in groups]

    x, y, low, high = map(means, (line.x, line.y, line.low, line.high))
    return replace(line, x=x, y=y, low=low, high=high)


def _legend(lines: Sequence[Line], title: str, has_switches: bool) -> str:
    keys = []
    for line in lines:
        dash = (
            '<svg viewBox="0 0 26 8" aria-hidden="true">'
            f'<path class="line line{line.look}" d="M0,4 H26"/></svg>{escape(line.name)}'
        )
        if has_switches:
            checked = " checked" if line.is_shown else ""
            box = f'<input type="checkbox" class="switch{line.look}"{checked}>'
            keys.append(f'<label class="key">{box}{dash}</label>')
        else:
            keys.append(f'<span class="key">{dash}</span>')
    if has_switches:
        name = f"Curves of {title}"
        return f'<div class="legend" role="group" aria-label="{escape(name)}">{"".join(keys)}</div>'
    return f'<div class="legend">{"".join(keys)}</div>'


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


def _band(line: Line, axes: _Axes) -> str:
    edges = [e for e in (line.low, line.high) if e and all(map(math.isfinite, e))]
    if len(edges) < 2:
        return ""
    there = [axes.at(x, y) for x, y in zip(line.x, line.high, strict=True)]
    back = [axes.at(x, y) for x, y in zip(line.x, line.low, strict=True)]
    return f'<path class="band band{line.look}" d="M{" L".join([*there, *back[::-1]])} Z"/>'


def _curve(line: Line, axes: _Axes) -> str:
    points = " L".join(axes.at(x, y) for x, y in zip(line.x, line.y, strict=True))
    if not points:
        return ""
    if len(line.x) == 1:  # a path of one point shows nothing
        x, y = points.split(",")
        return f'<circle class="dot{line.look}" cx="{x}" cy="{y}" r="3"/>'
    return f'<path class="line line{line.look}" d="M{points}"/>'
