"""Draw charts as SVG text. Colours come from the page's CSS, which has a light and a dark scheme."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 420, 260
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 40


@dataclass(frozen=True)
class Line:
    """One line of a chart: its name, its CSS class `style`, its points (x, y), and whether to mark them with dots."""

    name: str
    style: str
    points: Sequence[tuple[float, float]]
    dots: bool = False


def ticks(low: float, high: float, max_ticks: int = 5) -> list[float]:
    """Return round numbers from `low` to `high`, at most `max_ticks` of them.

    >>> ticks(0.13, 2.1)
    [0.5, 1.0, 1.5, 2.0]
    """
    span = high - low
    if not span > 0:
        return [low]
    power = 10 ** math.floor(math.log10(span / max_ticks))
    step = next(factor * power for factor in (1, 2, 5, 10, 20) if span / (factor * power) < max_ticks)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 10) for index in range(first, math.floor(high / step + 1e-9) + 1)]


class _Frame:
    """The axes of a chart with their ticks, and the conversion of values to SVG coordinates."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float], x_label: str, y_label: str) -> None:
        self.x, self.y = x, y
        self.elements = []
        for value in ticks(*y):
            svg_y = self.svg_y(value)
            self.elements.append(
                f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{svg_y:.1f}" y2="{svg_y:.1f}"/>'
            )
            self.elements.append(
                f'<text class="tick" x="{LEFT - 7}" y="{svg_y + 4:.1f}" text-anchor="end">{value:g}</text>'
            )
        for value in ticks(*x):
            svg_x = self.svg_x(value)
            self.elements.append(
                f'<text class="tick" x="{svg_x:.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{value:g}</text>'
            )
        self.elements.append(
            f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"/>'
        )
        middle = (LEFT + WIDTH - RIGHT) / 2
        self.elements.append(
            f'<text class="label" x="{middle}" y="{HEIGHT - 5}" text-anchor="middle">{escape(x_label)}</text>'
        )
        centre = (TOP + HEIGHT - BOTTOM) / 2
        self.elements.append(
            f'<text class="label" transform="translate(12 {centre}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
        )

    def svg_x(self, value: float) -> float:
        low, high = self.x
        return LEFT + (value - low) / ((high - low) or 1) * (WIDTH - LEFT - RIGHT)

    def svg_y(self, value: float) -> float:
        low, high = self.y
        return HEIGHT - BOTTOM - (value - low) / ((high - low) or 1) * (HEIGHT - TOP - BOTTOM)

    def svg(self, description: str) -> str:
        return (
            f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(description)}">'
            + "".join(self.elements)
            + "</svg>"
        )


def line_chart(lines: Sequence[Line], x_label: str, y_label: str, description: str) -> str:
    """Return an SVG of lines over an x axis that starts at 0; `description` is its text for screen readers."""
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    low, high = min(ys), max(ys)
    margin = 0.04 * (high - low or abs(high) or 1)
    frame = _Frame((0, max(xs)), (low - margin, high + margin), x_label, y_label)
    for line in lines:
        points = [(frame.svg_x(x), frame.svg_y(y)) for x, y in line.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        frame.elements.append(f'<polyline class="{line.style}" points="{path}"/>')
        if line.dots or len(points) == 1:
            frame.elements += [f'<circle class="{line.style}" cx="{x:.1f}" cy="{y:.1f}" r="3.2"/>' for x, y in points]
    return frame.svg(description)


def reliability_chart(rows: Sequence[dict[str, float]], style: str, description: str) -> str:
    """Return a reliability diagram as SVG: accuracy against confidence, with the diagonal of perfect calibration.

    `rows` are returned by `metrics.reliability`. Bars of fewer than 20 images are drawn pale.
    """
    frame = _Frame((0, 1), (0, 1), "how sure", "how often right")
    for row in rows:
        left, right, top = frame.svg_x(row["low"]), frame.svg_x(row["high"]), frame.svg_y(row["accuracy"])
        title = f"{row['count']:.0f} pictures, {row['confidence']:.1%} sure, {row['accuracy']:.1%} right"
        frame.elements.append(
            f'<rect class="{style}{" few" if row["count"] < 20 else ""}" x="{left + 1:.1f}" y="{top:.1f}" width="{right - left - 2:.1f}" '
            f'height="{frame.svg_y(0) - top:.1f}"><title>{title}</title></rect>'
        )
    frame.elements.append(
        f'<line class="diagonal" x1="{frame.svg_x(0)}" y1="{frame.svg_y(0)}" x2="{frame.svg_x(1)}" y2="{frame.svg_y(1)}"/>'
    )
    return frame.svg(description)
