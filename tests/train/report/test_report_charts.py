"""The drawings of a report, from numbers to corners."""

import html
import json
import re

import numpy as np
import pytest

from wv_train.report_bars import class_chart, histogram, sparkline
from wv_train.report_charts import MAX_POINTS, Line, Strip, line_chart


def corners(svg: str) -> list[tuple[float, float]]:
    points = re.search(r'<polyline[^>]*points="([^"]+)"', svg)
    assert points
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in points[1].split())]


def test_a_line_spans_the_plot_and_higher_values_stand_higher() -> None:
    x = np.array([0.0, 50.0, 100.0])
    svg = line_chart("t", [Line(label="l", colour=0, x=x, y=np.array([1.0, 3.0, 2.0]))])
    (x0, y0), (x1, y1), (x2, y2) = corners(svg)
    assert (x0, x1, x2) == (50.0, 299.0, 548.0)
    assert y0 > y2 > y1
    assert y2 == pytest.approx((y0 + y1) / 2, abs=0.1)


def test_a_log_axis_spaces_decades_evenly_and_names_them() -> None:
    line = Line(label="l", colour=0, x=np.arange(3.0), y=np.array([0.001, 0.01, 0.1]))
    svg = line_chart("t", [line], log_y=True)
    ys = [y for _, y in corners(svg)]
    assert ys[0] - ys[1] == pytest.approx(ys[1] - ys[2], abs=0.2)
    assert {">0.001<", ">0.01<", ">0.1<"} <= set(re.findall(r">[\d.]+<", svg))


def test_long_lines_are_averaged_and_gaps_left_out() -> None:
    y = np.where(np.arange(10_000) % 2, 1.0, 3.0)
    line = Line(label="l", colour=0, x=np.arange(10_000.0), y=y)
    assert len(corners(line_chart("t", [line]))) == MAX_POINTS
    assert all(
        value == pytest.approx(2.0, abs=0.2)
        for value in json.loads(html.unescape(line_chart("t", [line]).split('data-chart="')[1].split('"')[0]))["lines"][
            0
        ]["y"]
    )
    gaps = Line(label="l", colour=0, x=np.arange(4.0), y=np.array([1.0, np.nan, np.inf, 2.0]))
    assert len(corners(line_chart("t", [gaps]))) == 2
    assert line_chart("t", [Line(label="l", colour=0, x=np.arange(1.0), y=np.array([np.nan]))]) == ""


def test_a_single_point_and_equal_values_have_a_chart() -> None:
    strip = Strip(colour=0, spans=(("base", 5.0, 5.0),))
    for values in ([2.0], [0.0]):
        assert "nan" not in line_chart(
            "t", [Line(label="l", colour=0, x=np.array([5.0]), y=np.array(values))], strips=[strip]
        )


def test_many_classes_are_one_outline_and_few_are_bars() -> None:
    for classes, bars in ((16, 16), (5000, 0)):
        counts = np.arange(classes, dtype=float)  # one class is empty
        svg = class_chart("t", [f"c{c}" for c in range(classes)], counts, [("shown", np.full(classes, 7.0))])
        assert svg.count("<g><title>") == bars
        assert ("<polygon" in svg) == (bars == 0)
        assert "nan" not in svg
        assert len(svg) < 400_000


def test_histogram_bars_stack_to_the_sum() -> None:
    svg = histogram("t", "x", [("right", np.array([2, 0])), ("wrong", np.array([1, 4]))])
    heights = [float(h) for h in re.findall(r'class="bar c\d" x="[^"]+" y="[^"]+" width="[^"]+" height="([^"]+)"', svg)]
    assert len(heights) == 3
    assert heights[0] == pytest.approx(2 * heights[1], abs=0.2)
    assert heights[2] == pytest.approx(4 * heights[1], abs=0.3)


def test_a_small_line_rises_with_the_values_and_ends_in_a_dot() -> None:
    svg = sparkline([0.0, 1.0, 0.5])
    (x0, y0), (x1, y1), (x2, y2) = corners(svg)
    assert x0 < x1 < x2
    assert (y0 - y1, y2) == (pytest.approx(2 * (y0 - y2)), pytest.approx((y0 + y1) / 2))
    assert f'cx="{x2}" cy="{y2}"' in svg
    assert sparkline([]) == ""
    assert len(corners(sparkline([0.3]))) == 1


def test_a_diagonal_goes_from_corner_to_corner_and_strips_make_room_for_themselves() -> None:
    line = Line(label="l", colour=0, x=np.array([0.0, 1.0]), y=np.array([0.0, 1.0]))
    svg = line_chart("t", [line], x_name="confidence", x_range=(0.0, 1.0), y_range=(0.0, 1.0), diagonal=True)
    polylines = re.findall(r'<polyline[^>]*points="([^"]+)"', svg)
    assert polylines[0] == polylines[1]
    strips = [Strip(colour=n, spans=((f"phase{n}", 0.0, 1.0),)) for n in range(12)]
    high = line_chart("t", [line], strips=strips)
    tops = [float(y) for y in re.findall(r'class="phase even c\d" x="[^"]+" y="([^"]+)"', high)]
    assert len(tops) == 12
    assert min(y for _, y in corners(high)) > max(tops) + 10, "no line runs through a strip"
    rise = [first[1] - last[1] for first, last in (corners(high), corners(line_chart("t", [line])))]
    assert rise[0] == pytest.approx(rise[1], abs=0.2), "and none is squeezed"
