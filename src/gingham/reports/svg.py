"""Charts as SVG text. Colours come from the page, so that charts suit a light and a dark one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 420, 260
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 40


@dataclass(frozen=True)
class Line:
    """One line of a chart: its name, its CSS class, and its points (x, y)."""

    name: str
    style: str
    points: Sequence[tuple[float, float]]
    dots: bool = False


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return round numbers from `low` to `high`, at most `most` of them.

    >>> ticks(0.13, 2.1)
    [0.5, 1.0, 1.5, 2.0]
    """
    span = high - low
    if not span > 0:
        return [low]
    power = 10 ** math.floor(math.log10(span / most))
    step = next(factor * power for factor in (1, 2, 5, 10, 20) if span / (factor * power) < most)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 10) for index in range(first, math.floor(high / step + 1e-9) + 1)]


class _Frame:
    """Axes with ticks, and the way from values to places."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float], x_label: str, y_label: str, x_most: int = 5) -> None:
        self.x, self.y = x, y
        self.parts = []
        for value in ticks(*y):
            place = self.down(value)
            self.parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{place:.1f}" y2="{place:.1f}"/>')
            self.parts.append(f'<text class="tick" x="{LEFT - 7}" y="{place + 4:.1f}" text-anchor="end">{value:g}</text>')
        for value in ticks(*x, x_most):
            place = self.across(value)
            self.parts.append(
                f'<text class="tick" x="{place:.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{value:g}</text>'
            )
        self.parts.append(
            f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"/>'
        )
        middle = (LEFT + WIDTH - RIGHT) / 2
        self.parts.append(f'<text class="label" x="{middle}" y="{HEIGHT - 5}" text-anchor="middle">{escape(x_label)}</text>')
        centre = (TOP + HEIGHT - BOTTOM) / 2
        self.parts.append(
            f'<text class="label" transform="translate(12 {centre}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
        )

    def across(self, value: float) -> float:
        low, high = self.x
        return LEFT + (value - low) / ((high - low) or 1) * (WIDTH - LEFT - RIGHT)

    def down(self, value: float) -> float:
        low, high = self.y
        return HEIGHT - BOTTOM - (value - low) / ((high - low) or 1) * (HEIGHT - TOP - BOTTOM)

    def svg(self, description: str) -> str:
        return (
            f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(description)}">'
            + "".join(self.parts)
            + "</svg>"
        )


def line_chart(lines: Sequence[Line], x_label: str, y_label: str, description: str) -> str:
    """Return an SVG of lines over one x axis that starts at 0; `description` is what a screen reader says."""
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    low, high = min(ys), max(ys)
    margin = 0.04 * (high - low or abs(high) or 1)
    frame = _Frame((0, max(xs)), (low - margin, high + margin), x_label, y_label)
    for line in lines:
        places = [(frame.across(x), frame.down(y)) for x, y in line.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        frame.parts.append(f'<polyline class="{line.style}" points="{path}"/>')
        if line.dots or len(places) == 1:
            frame.parts += [f'<circle class="{line.style}" cx="{x:.1f}" cy="{y:.1f}" r="3.2"/>' for x, y in places]
    return frame.svg(description)


def reliability_chart(rows: Sequence[dict[str, float]], style: str, description: str) -> str:
    """Return an SVG of how often the model is right (bars) against how sure it is, with the diagonal where both are equal.

    `rows` is what `metrics.reliability` gives. Bars of fewer than 20 pictures are pale: they say little.
    """
    frame = _Frame((0, 1), (0, 1), "how sure", "how often right")
    for row in rows:
        left, right, top = frame.across(row["low"]), frame.across(row["high"]), frame.down(row["accuracy"])
        title = f"{row['count']:.0f} pictures, {row['confidence']:.1%} sure, {row['accuracy']:.1%} right"
        frame.parts.append(
            f'<rect class="{style}{" few" if row["count"] < 20 else ""}" x="{left + 1:.1f}" y="{top:.1f}" width="{right - left - 2:.1f}" '
            f'height="{frame.down(0) - top:.1f}"><title>{title}</title></rect>'
        )
    frame.parts.append(
        f'<line class="diagonal" x1="{frame.across(0)}" y1="{frame.down(0)}" x2="{frame.across(1)}" y2="{frame.down(1)}"/>'
    )
    return frame.svg(description)
