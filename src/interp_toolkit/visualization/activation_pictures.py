"""Still pictures of activations, one panel below the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from interp_toolkit.visualization.activation_words import short
from interp_toolkit.visualization.bitmaps import Bitmap
from interp_toolkit.visualization.document import shortened, text_width
from interp_toolkit.visualization.measuring import LIMITS, MEDIAN, SUMMARY, Measured, Spread, standing_out
from interp_toolkit.visualization.pictures import Label, Picture
from interp_toolkit.visualization.shapes import Area, Dot, Line, Shape

WIDTH = 680
_Pixels = int | float
_Point = tuple[_Pixels, _Pixels]
_MARGIN, _LEFT, _RIGHT = 12, 86, 100
_RIDGE, _MOST_RIDGES = 34, 16
_MOST_DOTS = 1000
_SIDES = {2: 4, 3: 4, 4: 3, 5: 6}  # corners of the marks of the classes


@dataclass
class _Sheet:
    """What has been drawn so far, and how far down."""

    y: _Pixels = 0
    labels: list[Label] = field(default_factory=list)
    shapes: list[Shape] = field(default_factory=list)
    pixels: list[Bitmap] = field(default_factory=list)

    def text(
        self,
        x: _Pixels,
        y: _Pixels,
        text: str,
        style: Literal["title", "ink", "soft"] = "soft",
        anchor: Literal["start", "middle", "end"] = "start",
        room: int = 90,
    ) -> None:
        cut = shortened(text, room)
        self.labels.append(Label(x=x, y=y, text=cut, whole=text if cut != text else None, anchor=anchor, style=style))


def drawn_panels(measured: Measured, kinds: Sequence[str], *, title: str, titled: bool, layer: int) -> Picture:
    """The panels below each other; `layer` is that of the scatter plot."""
    sheet = _Sheet()
    if titled:
        sheet.text(_MARGIN, 22, title, "title", room=70)
        sheet.y = 34
    if len(measured.sample.classes) > 1:
        _legend(sheet, measured.sample.classes)
    for kind in kinds:
        sheet.y += 10
        match kind:
            case "distribution":
                _distributions(sheet, measured)
            case "norms":
                _norms(sheet, measured)
            case "outliers":
                _outliers(sheet, measured)
            case "projection":
                _projected(sheet, measured)
            case _:
                _scatter(sheet, measured, layer)
    return Picture(
        title=title,
        width=WIDTH,
        height=math.ceil(sheet.y) + _MARGIN,
        labels=sheet.labels,
        shapes=sheet.shapes,
        pixels=sheet.pixels,
    )


def _legend(sheet: _Sheet, classes: Sequence[str]) -> None:
    x, y = float(_MARGIN), sheet.y + 16
    for number, name in enumerate(classes):
        cut = shortened(name, 24)
        width = 22 + text_width(cut, 12.0) + 14
        if x + width > WIDTH - _MARGIN and x > _MARGIN:
            x, y = float(_MARGIN), y + 20
        sheet.shapes.append(mark(number, x + 7, y - 4, 5))
        sheet.text(x + 18, y, name, "ink", room=24)
        x += width
    sheet.y = y + 8


def mark(number: int, x: _Pixels, y: _Pixels, radius: _Pixels, *, opacity: float = 0.85) -> Shape:
    """The mark of a class: a shape of its own beside the colour."""
    if number == 0:
        return Dot(x=x, y=y, radius=radius * 0.85, colour=0, opacity=opacity)
    if number in (6, 7):
        return Dot(x=x, y=y, radius=radius * 0.85, colour=number, filled=False, opacity=opacity)
    turn = {1: -90.0, 2: 45.0, 3: 0.0, 4: 90.0, 5: 0.0}[number]
    sides = 3 if number == 1 else _SIDES[number]
    angles = [math.radians(turn + 360 * n / sides) for n in range(sides)]
    return Area(
        points=[(x + radius * 1.1 * math.cos(a), y + radius * 1.1 * math.sin(a)) for a in angles],
        colour=number,
        opacity=opacity,
    )


def _heading(sheet: _Sheet, text: str, note: str = "") -> None:
    sheet.text(_MARGIN, sheet.y + 16, text, "title")
    sheet.y += 22
    if note:
        sheet.text(_MARGIN, sheet.y + 13, note, room=110)
        sheet.y += 18


def _chosen(number: int, most: int) -> list[int]:
    """Evenly spread numbers, the first and the last among them."""
    return sorted({round(n) for n in np.linspace(0, number - 1, min(number, most))})


# --- distributions -----------------------------------------------------------------------------------------------


def _distributions(sheet: _Sheet, measured: Measured) -> None:
    layers = _chosen(len(measured.sample.layers), _MOST_RIDGES)
    some = (
        f", {len(layers)} of {len(measured.sample.layers)} layers" if len(layers) < len(measured.sample.layers) else ""
    )
    _heading(sheet, "Distribution", f"Share of each class per bin; each layer has its own axis{some}.")
    middle, top = (WIDTH + _LEFT) / 2, sheet.y
    scale = " (log axis)" if measured.norms.log else ""
    for spread, left, right, name in (
        (measured.values, float(_LEFT), middle - 14, "activation values"),
        (measured.norms, middle + 14, WIDTH - _MARGIN, f"norms of rows{scale}"),
    ):
        sheet.y = top
        sheet.text((left + right) / 2, top + 12, name, anchor="middle")
        sheet.y += 18
        _ridges(sheet, measured, spread, layers, (left, right), named=left == _LEFT)


def _ridges(
    sheet: _Sheet,
    measured: Measured,
    spread: Spread,
    layers: Sequence[int],
    sides: _Point,
    *,
    named: bool = True,
) -> None:
    """One ridge for each layer, with the ends of its axis below it and the classes' medians as marks."""
    left, right = sides
    for layer in layers:
        low, high = (float(edge) for edge in spread.edges[layer])
        counts, base = spread.counts[layer], sheet.y + _RIDGE
        totals = np.maximum(counts.sum(axis=1) + spread.outside[layer].sum(axis=1), 1)
        shares = counts / totals[:, None]
        full = float(shares.max()) or 1.0
        for number, row in enumerate(shares):
            outline = _outline(row / full, (left, right), base)
            sheet.shapes.append(Area(points=outline, colour=number, opacity=0.28))
            sheet.shapes.append(Line(points=outline[1:-1], colour=number, width=1.2))
        sheet.shapes.append(Line(points=[(left, base), (right, base)], colour="line", width=1))
        for number, median in enumerate(spread.summary[layer, :, MEDIAN]):
            place = _place(float(median), spread.log, low, high)
            if len(shares) > 1 and 0 <= place <= 1:
                sheet.shapes.append(mark(number, left + place * (right - left), base, 4))
        if named:
            sheet.text(left - 8, base - 6, f"layer {measured.sample.layers[layer]}", "ink", "end", room=11)
        ends = [10.0**low, 10.0**high] if spread.log else [low, high]
        sheet.text(left, base + 12, short(ends[0]))
        sheet.text(right, base + 12, short(ends[1]), anchor="end")
        sheet.y = base + 16
    sheet.y += 4


def _place(value: float, log: bool, low: float, high: float) -> float:
    if math.isnan(value):
        return -1.0
    return ((math.log10(value) if log else value) - low) / (high - low)


def _outline(heights: NDArray[Any], sides: _Point, base: _Pixels) -> list[_Point]:
    """The steps of a histogram as a closed line, from the lower left corner to the lower right one."""
    left, right = sides
    step = (right - left) / len(heights)
    points: list[_Point] = [(left, base)]
    for n, height in enumerate(heights):
        y = base - float(height) * (_RIDGE - 4)
        points += [(left + step * n, y), (left + step * (n + 1), y)]
    return [*points, (right, base)]


def _projected(sheet: _Sheet, measured: Measured) -> None:
    found = measured.projection
    assert found is not None
    layers = _chosen(len(measured.sample.layers), _MOST_RIDGES)
    pair = " over ".join(reversed(found.against[0])) if len(found.against) == 1 else ""
    _heading(sheet, "Projection on the direction", f"Right: ROC AUC{' of ' + pair if pair else ''} and overlap.")
    for layer in layers:
        _ridges(sheet, measured, found.spread, [layer], (_LEFT, WIDTH - _RIGHT))
        sheet.y -= 4
        best = [s for s in found.separations[layer] if s is not None]
        if len(best) == 1:
            sheet.text(WIDTH - _RIGHT + 10, sheet.y - 24, f"{best[0].auc:.3f}", "ink")
            sheet.text(WIDTH - _RIGHT + 10, sheet.y - 10, f"overlap {best[0].overlap:.2f}")
        elif best:
            low, high = min(s.auc for s in best), max(s.auc for s in best)
            sheet.text(WIDTH - _RIGHT + 10, sheet.y - 24, f"{low:.2f}–{high:.2f}", "ink")
    sheet.y += 4


# --- maps --------------------------------------------------------------------------------------------------------


def _norms(sheet: _Sheet, measured: Measured) -> None:
    if measured.by_position is None:
        _norm_lines(sheet, measured)
        return
    by = measured.by_position
    _heading(sheet, "Norms by position", "Median over rows; logarithmic colours.")
    logs = np.log10(np.maximum(by.medians, by.medians[by.medians > 0].min(initial=1.0) * 0.1))
    low, high = float(logs.min()), float(logs.max())
    names = by.tokens or by.columns
    _map(sheet, (logs - low) / (high - low or 1.0), [f"layer {n}" for n in measured.sample.layers], names)
    _scale(sheet, short(10**low), short(10**high))


def _outliers(sheet: _Sheet, measured: Measured) -> None:
    top = standing_out(measured, "typical")
    ratios = measured.magnitudes["typical"][:, top].T.astype(np.float64)
    high = max(float(ratios.max()), LIMITS["typical"])
    _heading(
        sheet, "Outlier dimensions", "Magnitude of the median row, times the median of the layer; logarithmic colours."
    )
    shares = np.clip(np.log10(np.maximum(ratios, 1.0)) / math.log10(high), 0, 1)
    times = [f"{int(n)} of {ratios.shape[1]}" for n in (ratios >= LIMITS["typical"]).sum(axis=1)]
    sheet.text(WIDTH - _RIGHT + 10, sheet.y + 10, f"≥ {LIMITS['typical']:g}×")
    sheet.y += 14
    _map(sheet, shares, [f"dim {d}" for d in top], measured.sample.layers, beside=times)
    _scale(sheet, "≤ 1×", f"{short(high)}×")


def _map(
    sheet: _Sheet, shares: NDArray[np.float64], rows: Sequence[str], columns: Sequence[str], beside: Sequence[str] = ()
) -> None:
    """A matrix of shares from 0 to 1, with labels where there is room."""
    width, height = WIDTH - _LEFT - _RIGHT, max(5, min(20, 440 // len(rows))) * len(rows)
    sheet.pixels.append(Bitmap(x=_LEFT, y=sheet.y, width=width, height=height, shares=shares.astype(np.float32)))
    step = height / len(rows)
    for n in range(0, len(rows), max(1, math.ceil(14 / step))):
        sheet.text(_LEFT - 8, sheet.y + step * (n + 0.5) + 4, rows[n], "ink", "end", room=12)
        if beside:
            sheet.text(WIDTH - _RIGHT + 10, sheet.y + step * (n + 0.5) + 4, beside[n])
    place = width / len(columns)
    needed = 6 + max(text_width(shortened(name, 8), 11.0) for name in columns)
    sheet.y += height
    for n in range(0, len(columns), max(1, math.ceil(needed / place))):
        sheet.text(_LEFT + place * (n + 0.5), sheet.y + 14, columns[n], anchor="middle", room=8)
    sheet.y += 20


def _scale(sheet: _Sheet, low: str, high: str) -> None:
    steps = np.linspace(0, 1, 64, dtype=np.float32)[None]
    left = _LEFT + text_width(low, 11.0) + 8
    sheet.text(_LEFT, sheet.y + 14, low)
    sheet.pixels.append(Bitmap(x=left, y=sheet.y + 4, width=128, height=12, shares=steps))
    sheet.text(left + 136, sheet.y + 14, high)
    sheet.y += 22


def _norm_lines(sheet: _Sheet, measured: Measured) -> None:
    """Median and middle half of the norms, by layer and class."""
    spread, height = measured.norms, 180
    _heading(sheet, "Norms by layer", f"Median and middle half of each class{'; log axis' if spread.log else ''}.")
    wanted = spread.summary[..., [SUMMARY.index("25%"), MEDIAN, SUMMARY.index("75%")]]
    values = np.log10(wanted) if spread.log else wanted
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    low, high = (low, high) if high > low else (low - 0.5 * (abs(low) + 1), high + 0.5 * (abs(high) + 1))
    layers, top = len(values), sheet.y + 6
    width = WIDTH - _LEFT - _MARGIN
    xs = [_LEFT + width * (n + 0.5) / layers for n in range(layers)]
    for end, y in ((high, top), (low, top + height)):
        sheet.shapes.append(Line(points=[(_LEFT, y), (_LEFT + width, y)], colour="line", width=1))
        sheet.text(_LEFT - 8, y + 4, short(10**end if spread.log else end), anchor="end")
    for number in range(values.shape[1]):
        lower, middle, upper = (
            [(x, top + height * (1 - (float(v) - low) / (high - low))) for x, v in zip(xs, row, strict=True)]
            for row in values[:, number].T
        )
        if layers > 1:
            sheet.shapes.append(Area(points=[*lower, *reversed(upper)], colour=number, opacity=0.2))
            sheet.shapes.append(Line(points=middle, colour=number, width=1.8))
        sheet.shapes.extend(mark(number, x, y, 3.5) for x, y in middle)
    for n in _chosen(layers, 12):
        sheet.text(xs[n], top + height + 16, measured.sample.layers[n], anchor="middle", room=8)
    sheet.text(_LEFT + width / 2, top + height + 32, "layer", anchor="middle")
    sheet.y = top + height + 36


# --- scatter -----------------------------------------------------------------------------------------------------


def _scatter(sheet: _Sheet, measured: Measured, layer: int) -> None:
    """Rows on the first two components at one layer; rows left out of the fit are hollow, at the edge."""
    found, labels = measured.scatter, measured.sample.labels[measured.drawn]
    some = _chosen(len(labels), _MOST_DOTS)
    said = f"; {len(some):,} of {measured.sample.rows:,} rows" if len(some) < measured.sample.rows else ""
    _heading(sheet, f"Principal components, layer {measured.sample.layers[layer]}{said}")
    scores, apart = found.scores[layer, :, :2], found.apart[layer]
    left, right, top, height = _LEFT, WIDTH - _MARGIN, sheet.y + 4, 360
    inner = scores[~apart] if not apart.all() else scores
    low, high = inner.min(axis=0), inner.max(axis=0)
    reach = np.where(high > low, high - low, 1.0)
    places = np.clip((scores - low) / reach, 0, 1) * 0.94 + 0.03
    frame = [(left, top), (right, top), (right, top + height), (left, top + height), (left, top)]
    sheet.shapes.append(Line(points=frame, colour="line", width=1))
    for n in some:
        x, y = left + float(places[n, 0]) * (right - left), top + (1 - float(places[n, 1])) * height
        if apart[n]:
            sheet.shapes.append(Dot(x=x, y=y, radius=4, colour=int(labels[n]), filled=False))
        else:
            sheet.shapes.append(mark(int(labels[n]), x, y, 4, opacity=0.7))
    names = [f"PC {n + 1} ({found.shares[layer, n]:.1%} of variance)" for n in range(2)]
    sheet.text((left + right) / 2, top + height + 30, names[0], anchor="middle")
    sheet.text(_MARGIN, top - 2 + 14, "PC 2", "ink")
    sheet.text(_MARGIN, top - 2 + 28, f"{found.shares[layer, 1]:.1%}")
    for anchor, x, value in (("start", left, low[0]), ("end", right, high[0])):
        sheet.labels.append(_tick(x, top + height + 14, float(value), "end" if anchor == "end" else "start"))
    for y, value in ((top + 42, high[1]), (top + height, low[1])):
        sheet.labels.append(_tick(left - 8, y, float(value), "end"))
    sheet.y = top + height + 36


def _tick(x: _Pixels, y: _Pixels, value: float, anchor: Literal["start", "end"]) -> Label:
    return Label(x=x, y=y, text=short(value), anchor=anchor)


__all__ = ["WIDTH", "drawn_panels", "mark"]
