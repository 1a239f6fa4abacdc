"""Line charts with intervals: accuracy by layer, faithfulness against size, effect against strength."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from interp_toolkit.visualization.document import Table, shortened, text_width, visible
from interp_toolkit.visualization.patterns import array
from interp_toolkit.visualization.pictures import Label, Picture
from interp_toolkit.visualization.shapes import Area, Dot, Line, Named, Shape
from interp_toolkit.visualization.ticks import MANY, log_ticks, nice_ticks, spread
from interp_toolkit.visualization.view import View

_WIDTH, _HEIGHT = 640, 320
_MARGIN, _TITLE, _HEAD, _FOOT = 8, 26, 26, 44
_APART = 15  # labels of series need this much height
_BESIDE = 12  # pixels from point to point of one name, at most
_NAME = 32
_DASHES: tuple[tuple[int, ...], ...] = ((), (7, 3), (2, 3), (9, 3, 2, 3))


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of a chart.

    Attributes:
        name: what it is.
        y: a number at each x; NaN leaves a gap.
        low: lower ends of intervals, as many as there are numbers.
        high: their upper ends.
        dashed: whether the line has gaps, as for baselines.
        grey: whether it stays in the background.
        joined: whether a line goes from point to point; otherwise each stands alone, with its interval as a stroke.
            Where x are names and no series is joined, points of one name lie side by side.
    """

    name: str
    y: Any
    low: Any = None
    high: Any = None
    dashed: bool = False
    grey: bool = False
    joined: bool = True

    def __post_init__(self) -> None:
        """Make lists of the numbers, and check that every interval has both ends."""
        for name in ("y", "low", "high"):
            values = getattr(self, name)
            if values is not None and not isinstance(values, list | tuple):
                object.__setattr__(self, name, array(values).tolist())
        if (self.low is None) != (self.high is None):
            raise ValueError(f"series {self.name!r} has one end of its intervals; give low and high, or neither")

    def ends(self, n: int) -> tuple[float, float] | None:
        """The interval of a point, if it has one."""
        if self.low is None or not all(map(math.isfinite, (self.y[n], self.low[n], self.high[n]))):
            return None
        return float(self.low[n]), float(self.high[n])

    def words(self, n: int) -> str:
        """A point in words: the number and its interval."""
        ends = self.ends(n)
        return _exact(self.y[n]) + (f" [{_exact(ends[0])}, {_exact(ends[1])}]" if ends else "")


@dataclass(frozen=True, kw_only=True)
class LineChart(View):
    """Lines over layers, sizes or strengths, with their intervals.

    Attributes:
        x: where the points are: increasing numbers, or names, which stand evenly.
        series: the lines.
        title: above the chart.
        caption: what it shows, in a sentence or two.
        x_name: what x is, such as `"layer"`.
        y_name: what y is, such as `"accuracy"`.
        log: whether the axis of x is logarithmic.
        percent: whether x is written in per cent.
        references: horizontal lines, each as a name and a number, such as `("chance", 0.5)`.
        marked: points with a ring, as (series, point); the caption should say why.

    Raises:
        ValueError: when lines do not match x, or x does not fit its axis.
    """

    x: Sequence[int | float | str]
    series: Sequence[Series]
    title: str
    caption: str = ""
    x_name: str = ""
    y_name: str = ""
    log: bool = False
    percent: bool = False
    references: Sequence[tuple[str, int | float]] = ()
    marked: Sequence[tuple[int, int]] = ()

    def __post_init__(self) -> None:
        """Check that there is something to show, and that all of it matches."""
        if not len(self.x) or not self.series:
            raise ValueError(f"a chart needs a point and a line, but has {len(self.x)} and {len(self.series)}")
        for line in self.series:
            for name in ("y", "low", "high"):
                values = getattr(line, name)
                if values is not None and len(values) != len(self.x):
                    raise ValueError(f"series {line.name!r} has {len(values)} {name} for {len(self.x)} x")
        for number, point in self.marked:
            if not (0 <= number < len(self.series) and 0 <= point < len(self.x)):
                sizes = f"{len(self.series)} series of {len(self.x)} points"
                raise ValueError(f"point {point} of series {number} is marked, but there are {sizes}")
        self._check_x()

    def _check_x(self) -> None:
        names = [isinstance(x, str) for x in self.x]
        if any(names) and not all(names):
            raise ValueError("x are numbers or names, not both")
        if not any(names):
            numbers = [float(x) for x in self.x]
            if not all(map(math.isfinite, numbers)) or any(b <= a for a, b in itertools.pairwise(numbers)):
                raise ValueError(f"x must be finite and increasing, but is {numbers[:12]}")
        if self.log and (any(names) or float(self.x[0]) <= 0):
            raise ValueError(f"a logarithmic axis needs numbers above zero, but x begins with {self.x[0]!r}")

    # --- axes ------------------------------------------------------------------------------------------------

    @cached_property
    def y_ticks(self) -> list[float]:
        """Where the axis of y has its numbers; the first and last are its ends."""
        known = [float(v) for s in self.series for part in (s.y, s.low, s.high) if part is not None for v in part]
        known += [float(y) for _, y in self.references]
        known = [v for v in known if math.isfinite(v)] or [0.0, 1.0]
        return nice_ticks(min(known), max(known))

    @cached_property
    def categories(self) -> list[str] | None:
        """The names along x, if it has names."""
        return [str(x) for x in self.x] if isinstance(self.x[0], str) else None

    @cached_property
    def places(self) -> list[float]:
        """Where the points are, as numbers."""
        return [float(n) if self.categories else float(x) for n, x in enumerate(self.x)]

    def x_ticks(self, *, log: bool) -> list[tuple[float, str]]:
        """Where the axis of x has labels, and which."""
        if self.categories:
            return [(float(n), name) for n, name in enumerate(self.categories)]
        first, last = self.places[0], self.places[-1]
        if log:
            ticks = log_ticks(first, last)
        elif len(self.places) <= MANY and all(x == round(x) for x in self.places):
            ticks = self.places
        else:
            ticks = [t for t in nice_ticks(first, last, 7) if first <= t <= last]
        return [(t, _axis(t, ticks, percent=self.percent)) for t in ticks]

    def share(self, x: float) -> float:
        """Where a number is along the axis of x, from 0 to 1."""
        first, last = self.places[0], self.places[-1]
        if first == last:
            return 0.5
        if self.beside:
            return (x - first + 0.5) / len(self.places)
        if self.log:
            return math.log(x / first) / math.log(last / first)
        return (x - first) / (last - first)

    # --- the picture -----------------------------------------------------------------------------------------

    def picture(self, *, titled: bool = True) -> Picture:
        """The chart laid out; see `View.picture`."""
        ticks = [_axis(y, self.y_ticks) for y in self.y_ticks]
        left = round(2 * _MARGIN + max(text_width(tick, 11.0) for tick in ticks))
        top = (_TITLE if titled else 0) + _HEAD
        frame = _Frame(left=left, top=top, low=self.y_ticks[0], high=self.y_ticks[-1])
        labels = [Label(x=_MARGIN, y=16, text=self.title, style="title")] if titled else []
        labels += [Label(x=_MARGIN, y=top - 11, text=self.y_name), *self._axis_labels(frame, ticks)]
        names, leaders = self._names(frame)
        labels += names
        return Picture(
            title=self.title,
            width=math.ceil(max(label.right for label in labels)) + _MARGIN,
            height=top + _HEIGHT + _FOOT,
            labels=labels,
            shapes=[*self._grid(frame), *leaders, *self._bands(frame), *self._lines(frame), *self._dots(frame)],
        )

    def _axis_labels(self, frame: _Frame, ticks: Sequence[str]) -> list[Label]:
        bottom = frame.top + _HEIGHT
        found = [
            Label(x=frame.left - 8, y=frame.y(y) + 4, text=tick, anchor="end")
            for y, tick in zip(self.y_ticks, ticks, strict=True)
        ]
        room = _WIDTH / len(self.places) - 8
        ticks_x = [(x, _cut(text, room), text) for x, text in self.x_ticks(log=self.log)]
        all_fit = bool(self.categories) and all(_across(cut) <= room for _, cut, _ in ticks_x)
        end = -math.inf
        for x, cut, text in ticks_x:
            label = Label(x=frame.x(self.share(x)), y=bottom + 18, text=cut, whole=text, anchor="middle")
            half = label.right - label.x
            if all_fit or label.x - half > end + 6:  # labels that would cover their neighbour are left out
                found.append(label)
                end = label.right
        return [*found, Label(x=frame.left + _WIDTH / 2, y=bottom + 38, text=self.x_name, anchor="middle")]

    def _grid(self, frame: _Frame) -> list[Shape]:
        right = frame.left + _WIDTH
        lines: list[Shape] = [
            Line(points=[(frame.left, frame.y(y)), (right, frame.y(y))], colour="line", width=1) for y in self.y_ticks
        ]
        for name, y in self.references:
            ends = [(frame.left, frame.y(y)), (right, frame.y(y))]
            lines.append(Line(points=ends, colour="soft", width=1.5, dash=(4, 4), words=(f"{name}: {_exact(y)}",)))
        return lines

    def _names(self, frame: _Frame) -> tuple[list[Label], list[Shape]]:
        """Names of lines and references at their right ends, moved apart where they would cover each other."""
        ends: list[tuple[float, str, int | None]] = [(frame.y(y), name, None) for name, y in self.references]
        for n, series in enumerate(self.series):
            known = [y for y in series.y if math.isfinite(y)]
            if known:
                ends.append((frame.y(known[-1]), series.name, n))
        ends.sort(key=lambda end: end[0])
        heights = spread([end[0] for end in ends], _APART, frame.top - 4, frame.top + _HEIGHT)
        right = frame.left + _WIDTH
        labels: list[Label] = []
        shapes: list[Shape] = []
        for (from_y, name, number), y in zip(ends, heights, strict=True):
            text = shortened(name, _NAME)
            style: Literal["soft", "ink"] = "soft" if number is None else "ink"
            labels.append(Label(x=right + 34, y=y + 4, text=text, whole=name, style=style))
            colour: Named | int = "soft" if number is None else self.colour(number)
            dash = (4, 4) if number is None else self.dash(number)
            shapes.append(Line(points=[(right + 3, from_y), (right + 10, y)], colour="line", width=1))
            shapes.append(Line(points=[(right + 11, y), (right + 29, y)], colour=colour, width=2, dash=dash))
        return labels, shapes

    def colour(self, number: int) -> int:
        """The colour of a series: the grey of the palette, or the next of the others."""
        if self.series[number].grey:
            return 7
        return sum(not s.grey for s in self.series[:number]) % 7

    def dash(self, number: int) -> tuple[int, ...]:
        """The dashes of a series: lines of one colour differ in them."""
        if self.series[number].grey:
            return _DASHES[1 + sum(s.grey for s in self.series[:number]) % (len(_DASHES) - 1)]
        if self.series[number].dashed:
            return _DASHES[1]
        return _DASHES[sum(not s.grey for s in self.series[:number]) // 7 % len(_DASHES)]

    def _bands(self, frame: _Frame) -> list[Shape]:
        bands: list[Shape] = []
        for number, series in enumerate(self.series):
            for run in _runs([series.ends(n) is not None for n in range(len(self.x))]):
                known = [(self._x(frame, n, number), series.ends(n) or (0.0, 0.0)) for n in run]
                upper = [(x, frame.y(high)) for x, (_, high) in known]
                lower = [(x, frame.y(low)) for x, (low, _) in reversed(known)]
                if len(run) == 1 or not series.joined:
                    strokes = zip(upper, reversed(lower), strict=True)
                    bands += [Line(points=ends, colour=self.colour(number), width=2) for ends in strokes]
                else:
                    bands.append(Area(points=[*upper, *lower], colour=self.colour(number), opacity=0.16))
        return bands

    def _lines(self, frame: _Frame) -> list[Shape]:
        return [
            Line(
                points=[(self._x(frame, n, number), frame.y(series.y[n])) for n in run],
                colour=self.colour(number),
                width=2,
                dash=self.dash(number),
            )
            for number, series in enumerate(self.series)
            for run in _runs([math.isfinite(y) for y in series.y])
            if len(run) > 1 and series.joined
        ]

    def _dots(self, frame: _Frame) -> list[Shape]:
        radius = 3 if len(self.x) <= 60 else 1.5
        dots: list[Shape] = []
        for number, series in enumerate(self.series):
            for n, y in enumerate(series.y):
                if math.isfinite(y):
                    words = (series.name, f"{self.x_name} {self.x_text(n)}: {series.words(n)}".lstrip())
                    x = self._x(frame, n, number)
                    if (number, n) in self.marked:
                        dots.append(Dot(x=x, y=frame.y(y), radius=7, colour="ink", filled=False))
                    dots.append(Dot(x=x, y=frame.y(y), radius=radius, colour=self.colour(number), words=words))
        return dots

    @property
    def beside(self) -> bool:
        """Whether points of one name lie side by side, each series at a place of its own."""
        return bool(self.categories) and len(self.series) > 1 and not any(series.joined for series in self.series)

    def _x(self, frame: _Frame, n: int, number: int) -> float:
        x = frame.x(self.share(self.places[n]))
        if not self.beside:
            return x
        apart = min(_BESIDE, 0.7 * _WIDTH / len(self.places) / len(self.series))
        return x + apart * (number - (len(self.series) - 1) / 2)

    def x_text(self, n: int) -> str:
        """What a point is called."""
        if self.categories:
            return self.categories[n]
        return _axis(self.places[n], [self.places[n]], percent=self.percent)

    # --- for the page ----------------------------------------------------------------------------------------

    @property
    def modules(self) -> Sequence[str]:
        """See `View.modules`."""
        return ("lines.js",)

    def data(self) -> dict[str, Any]:
        """See `View.data`."""
        loggable = not self.categories and self.places[0] > 0 and len(self.places) > 1
        return {
            "title": visible(self.title),
            "x": self.places,
            "xTexts": [visible(self.x_text(n)) for n in range(len(self.x))],
            "xName": visible(self.x_name),
            "yName": visible(self.y_name),
            "log": self.log,
            "beside": self.beside,
            "xTicks": {
                "linear": [[t, visible(text)] for t, text in self.x_ticks(log=False)],
                "log": [[t, visible(text)] for t, text in self.x_ticks(log=True)] if loggable else None,
            },
            "yTicks": [[y, _axis(y, self.y_ticks)] for y in self.y_ticks],
            "references": [[visible(name), float(y)] for name, y in self.references],
            "marked": [list(place) for place in self.marked],
            "series": [
                {
                    "name": visible(series.name),
                    "y": _finite(series.y),
                    "low": None if series.low is None else _finite(series.low),
                    "high": None if series.high is None else _finite(series.high),
                    "words": [series.words(n) for n in range(len(self.x))],
                    "colour": self.colour(number),
                    "dash": list(self.dash(number)),
                    "joined": series.joined,
                }
                for number, series in enumerate(self.series)
            ],
        }

    def table(self) -> Table:
        """All numbers with their intervals."""
        return Table(
            title=self.title,
            headers=[self.x_name, *(series.name for series in self.series)],
            rows=[[self.x_text(n), *(series.words(n) for series in self.series)] for n in range(len(self.x))],
        )


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """Where the axes are."""

    left: int
    top: int
    low: float
    high: float

    def x(self, share: float) -> float:
        return self.left + _WIDTH * share

    def y(self, value: int | float) -> float:
        clipped = min(max(value, self.low), self.high)
        return self.top + _HEIGHT * (1 - (clipped - self.low) / (self.high - self.low))


def _runs(known: Sequence[bool]) -> list[list[int]]:
    """Numbers of neighbours that are all there."""
    runs: list[list[int]] = []
    for n, there in enumerate(known):
        if there and n and known[n - 1]:
            runs[-1].append(n)
        elif there:
            runs.append([n])
    return runs


def _cut(text: str, room: float) -> str:
    """A name as it fits in its room; ten characters stay in any case."""
    lengths = range(max(len(text), 10), 9, -1)
    return next((cut for n in lengths if _across(cut := shortened(text, n)) <= room), shortened(text, 10))


def _across(text: str) -> float:
    """How many pixels a name takes, without the reserve that `text_width` keeps."""
    return 0.87 * text_width(text, 11.0)


def _finite(values: Sequence[int | float]) -> list[float | None]:
    return [float(v) if math.isfinite(v) else None for v in values]


def _axis(value: float, ticks: Sequence[float], *, percent: bool = False) -> str:
    """A number of an axis, as short as its neighbours allow."""
    if percent:
        return f"{100 * value:.10g}%".replace("-", "−")
    largest = max(map(abs, ticks))
    if largest >= 1e5 or 0 < largest < 1e-3:
        return f"{value:.2g}".replace("-", "−")
    return f"{value:.6g}".replace("-", "−")


def _exact(value: int | float) -> str:
    """A number to three digits."""
    if math.isnan(value):
        return "–"
    text = f"{value:.3f}" if 0.0995 <= abs(value) < 10 else f"{value:.3g}"
    return text.replace("inf", "∞").replace("-", "−")


__all__ = ["LineChart", "Series"]
