"""Line charts: round numbers on axes, labels that keep clear of each other, intervals and gaps where they belong."""

from __future__ import annotations

import itertools
import json
import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import torch

from interp_toolkit.visualization.document import text_width
from interp_toolkit.visualization.lines import LineChart, Series
from interp_toolkit.visualization.pictures import Label
from interp_toolkit.visualization.shapes import Area, Dot, Line
from interp_toolkit.visualization.sweeps import plot_accuracy_by_layer, plot_steering
from interp_toolkit.visualization.ticks import log_ticks, nice_ticks, spread

NAN = math.nan
SVG = "{http://www.w3.org/2000/svg}"


def chart(*series: Series, **more: Any) -> LineChart:
    lines = series or (Series(name="a", y=[0.5, 0.75, 1.0], low=[0.4, 0.7, 0.9], high=[0.6, 0.8, 1.0]),)
    about: dict[str, Any] = {"x": list(range(len(lines[0].y))), "title": "t", "x_name": "layer", "y_name": "accuracy"}
    return LineChart(series=lines, **(about | more))


# --- axes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high"),
    [(0, 1), (0.13, 0.87), (-3, 17), (1e-9, 2e-9), (-1e8, 1e8), (5, 5), (0, 0), (-0.3, -0.1), (0.999, 1)],
)
def test_ticks_are_round_even_few_and_hold_the_range(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert 3 <= len(ticks) <= 12
    assert ticks[0] <= low <= high <= ticks[-1]
    steps = np.diff(ticks)
    assert steps == pytest.approx([steps[0]] * len(steps))
    mantissa = steps[0] / 10 ** math.floor(math.log10(steps[0]) + 1e-9)
    assert round(mantissa, 6) in (1, 2, 5, 10)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.001, 1.0, [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0]),
        (1, 100, [1, 2, 5, 10, 20, 50, 100]),
        (1e-6, 1.0, [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0]),
        (3, 4, [3, 4]),
    ],
)
def test_logarithmic_ticks_are_one_two_five_or_powers(low: float, high: float, ticks: list[float]) -> None:
    assert log_ticks(low, high) == pytest.approx(ticks)


def test_labels_are_moved_apart_and_stay_between_the_ends() -> None:
    for heights in ([0.0] * 5, [100.0] * 5, [0.0, 1.0, 50.0, 51.0, 99.0], [50.0]):
        found = spread(heights, 15, 0, 100)
        assert all(b - a >= 15 - 1e-9 for a, b in itertools.pairwise(found))
        assert min(found) >= 0
        assert max(found) <= 100
    assert spread([10.0, 40.0, 80.0], 15, 0, 100) == [10.0, 40.0, 80.0]


@pytest.mark.parametrize("kind", ["numbers", "tokens", "sizes", "long names", "many"])
def test_no_label_of_a_chart_covers_another_or_is_cut_off(kind: str) -> None:
    n = 40 if kind == "many" else 10
    lines = [
        Series(name=f"series {k} {'W' * 40 if kind == 'long names' else ''}", y=[0.5 + k / 1000] * n) for k in range(12)
    ]
    more: dict[str, Any] = {}
    if kind == "tokens":
        more["x"] = [("<|im_start|>", " Mary", "東京都庁", "W" * 30, "")[k % 5] for k in range(n)]
    if kind == "sizes":
        more |= {"x": [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0], "log": True, "percent": True}
    picture = chart(*lines, references=[("chance", 0.5)], **more).picture()
    frames = [_frame(label) for label in picture.labels if label.text]
    for left, right, top, bottom in frames:
        assert 0 <= left <= right <= picture.width
        assert 0 <= top <= bottom <= picture.height
    for k, (left, right, top, bottom) in enumerate(frames):
        for other in frames[k + 1 :]:
            assert right <= other[0] or other[1] <= left or bottom <= other[2] or other[3] <= top


def _frame(label: Label) -> tuple[float, float, float, float]:
    size = {"title": 14.0, "ink": 12.0, "soft": 11.0}[label.style]
    width = text_width(label.text, size)
    left = label.x - {"start": 0.0, "middle": width / 2, "end": width}[label.anchor]
    return left, left + width, label.y - 0.75 * size, label.y + 0.2 * size


# --- lines ----------------------------------------------------------------------------------------------------------


def shapes(found: LineChart, kind: type) -> list[Any]:
    return [shape for shape in found.picture().shapes if isinstance(shape, kind)]


def test_points_lie_where_their_numbers_say() -> None:
    found = chart(Series(name="a", y=[0.0, 0.5, 1.0]))
    dots = shapes(found, Dot)
    assert np.diff([dot.x for dot in dots]) == pytest.approx([320, 320])
    assert np.diff([dot.y for dot in dots]) == pytest.approx([-160, -160])
    log = chart(Series(name="a", y=[0, 0, 0]), x=[0.01, 0.1, 1.0], log=True)
    assert np.diff([dot.x for dot in shapes(log, Dot)]) == pytest.approx([320, 320])
    uneven = chart(Series(name="a", y=[0, 0, 0]), x=[0, 1, 4])
    assert np.diff([dot.x for dot in shapes(uneven, Dot)]) == pytest.approx([160, 480])


def test_a_missing_point_parts_the_line_and_its_band() -> None:
    found = chart(Series(name="a", y=[0.1, 0.2, NAN, 0.3, 0.4], low=[0.0] * 5, high=[1.0] * 5))
    assert [len(line.points) for line in shapes(found, Line) if line.colour == 0 and line.width == 2][:2] == [2, 2]
    assert [len(area.points) for area in shapes(found, Area)] == [4, 4]
    assert len(shapes(found, Dot)) == 4
    assert found.table().rows[2] == ["2", "–"]
    assert found.data()["series"][0]["y"] == [0.1, 0.2, None, 0.3, 0.4]


def test_points_that_are_not_joined_have_strokes_for_intervals() -> None:
    found = chart(Series(name="a", y=[0.2, 0.4], low=[0.1, 0.3], high=[0.3, 0.6], joined=False), x=["one", "two"])
    strokes = [line for line in shapes(found, Line) if line.colour == 0 and len(line.points) == 2]
    assert len(shapes(found, Area)) == 0
    assert [line.points[0][0] == line.points[1][0] for line in strokes[-2:]] == [True, True]


def test_words_and_table_give_numbers_with_intervals() -> None:
    found = chart(marked=[(0, 2)])
    assert found.table().headers == ["layer", "a"]
    assert found.table().rows[0] == ["0", "0.500 [0.400, 0.600]"]
    assert found.data()["series"][0]["words"][0] == "0.500 [0.400, 0.600]"
    assert shapes(found, Dot)[0].words == ("a", "layer 0: 0.500 [0.400, 0.600]")
    assert [dot.filled for dot in shapes(found, Dot)] == [True, True, False, True]


def test_more_series_than_colours_differ_in_dashes_and_grey_is_kept_for_baselines() -> None:
    lines = [Series(name=str(n), y=[0.0, float(n)]) for n in range(16)]
    greys = [Series(name=name, y=[0, 0], grey=True) for name in ("random", "shuffled", "control")]
    found = chart(*lines, *greys)
    looks = [(found.colour(n), found.dash(n)) for n in range(19)]
    assert len(set(looks)) == 19
    assert [colour for colour, _ in looks[-3:]] == [7, 7, 7]
    assert 7 not in [colour for colour, _ in looks[:-3]]


def test_arrays_and_tensors_are_numbers_too() -> None:
    tensor = torch.tensor([0.5, 0.25], dtype=torch.bfloat16, requires_grad=True)
    assert Series(name="a", y=tensor).y == [0.5, 0.25]
    assert Series(name="a", y=np.array([1, 2])).y == [1.0, 2.0]
    found = plot_accuracy_by_layer(
        {"probe": tensor}, intervals={"probe": (tensor - 0.1, tensor + 0.1)}, baselines={"chance": 0.5}
    )
    assert found.series[0].ends(0) == pytest.approx((0.4, 0.6), abs=0.01)
    steering = plot_steering([-1, 0, 1], {"a": [0, 1, 2], "random": np.zeros(3)}, baselines=["random"])
    assert [line.grey for line in steering.series] == [False, True]
    assert json.dumps(found.data(), allow_nan=False)
    assert json.dumps(steering.data(), allow_nan=False)


@pytest.mark.parametrize(
    "token", ["</script><img src=x onerror=alert(1)>", "\u202eabc", "nul\x00", "\ud83d", "]]>", ""]
)
def test_any_name_is_text(token: str, tmp_path: Path) -> None:
    found = chart(
        Series(name=token, y=[1.0, 2.0]),
        x=[token, "b"],
        x_name=token,
        y_name=token,
        title=token,
        references=[(token, 1.5)],
    )
    svg = ET.fromstring(found.to_svg())
    assert {e.tag.removeprefix(SVG) for e in svg.iter()} <= {"svg", "style", "text", "title", "path", "circle"}
    page = found.page().to_html()
    assert "<img" not in page
    assert len(re.findall("<script", page)) == 2
    if "\ud83d" not in token:
        found.save(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": []}, "needs a point and a line, but has 0 and 1"),
        ({"x": [1, 2]}, "series 'a' has 3 y for 2 x"),
        ({"x": [1, 3, 2]}, "finite and increasing"),
        ({"x": [1, 2, NAN]}, "finite and increasing"),
        ({"x": ["a", 2, 3]}, "numbers or names, not both"),
        ({"x": [0, 1, 2], "log": True}, "needs numbers above zero, but x begins with 0"),
        ({"x": ["a", "b", "c"], "log": True}, "needs numbers above zero"),
        ({"marked": [(1, 0)]}, "point 0 of series 1 is marked, but there are 1 series of 3 points"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        chart(**changes)


def test_half_an_interval_is_refused() -> None:
    with pytest.raises(ValueError, match="series 'a' has one end of its intervals"):
        Series(name="a", y=[1.0], low=[0.5])


def test_one_point_and_nothing_known_can_be_drawn() -> None:
    for found in (chart(Series(name="a", y=[0.5])), chart(Series(name="a", y=[NAN, NAN]))):
        assert found.to_svg().startswith("<svg")
        assert json.dumps(found.data(), allow_nan=False)


def test_points_of_one_name_lie_side_by_side() -> None:
    series = [Series(name=f"s{n}", y=[0.5, 0.5], low=[0.4, 0.4], high=[0.6, 0.6], joined=False) for n in range(4)]
    chart = LineChart(x=["a rather long name", "b"], series=series, title="", x_name="", y_name="")
    dots = [shape for shape in chart.picture().shapes if isinstance(shape, Dot)]
    places = [dot.x for dot in dots]
    assert len(set(places)) == 8
    assert {
        round(after - before, 6) for before, after in zip(sorted(places)[:4], sorted(places)[1:4], strict=False)
    } == {12.0}
    strokes = [shape.points[0][0] for shape in chart.picture().shapes if isinstance(shape, Line) and shape.width == 2]
    assert set(places) <= set(strokes)
    assert "a rather long name" in [label.text for label in chart.picture().labels]
    one = LineChart(x=["a", "b"], series=series[:1], title="", x_name="", y_name="")
    assert not one.beside
