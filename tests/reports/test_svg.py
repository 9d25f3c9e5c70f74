import re

import pytest

from gingham.reports.svg import Line, line_chart, reliability_chart, ticks


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.13, 2.1), (80, 93.6), (1e-4, 3e-4), (5, 5)])
def test_ticks_are_few_and_within_the_range(low, high):
    values = ticks(low, high)
    assert 1 <= len(values) <= 6
    assert all(low - 1e-9 <= value <= high + 1e-9 for value in values)


def test_charts_stay_within_their_frame_and_escape_labels():
    lines = [Line("a", "training", [(0, 1), (5, 3)]), Line("b", "validation", [(5, 2)], dots=True)]
    chart = line_chart(lines, "x", "y <", "description")
    xs = [float(x) for x in re.findall(r'c?x[12]?="([\d.]+)"', chart)]
    assert min(xs) >= 0
    assert max(xs) <= 420
    assert "y &lt;" in chart
    rows = [{"low": 0.8, "high": 1.0, "count": 4, "confidence": 0.9, "accuracy": 0.75}]
    assert "4 pictures, 90.0% sure, 75.0% right" in reliability_chart(rows, "after", "description")
