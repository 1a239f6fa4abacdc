"""Pictures of coloured boxes, shapes and labels, laid out once and drawn two ways: as SVG and by matplotlib.

Matplotlib draws them for PNG and PDF, which are light; an SVG has a light and a dark form. Blue is positive and orange
negative, which people with any of the common colour blindnesses tell apart.
"""

from __future__ import annotations

import html
import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from interp_toolkit.visualization.document import shown, text_width
from interp_toolkit.visualization.shapes import Shape, draw_shapes, shape_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_POSITIVE, _NEGATIVE = (33, 102, 172), (199, 92, 18)
_LIGHT, _DARK = (247, 247, 247), (38, 44, 52)
_BRIGHT_POSITIVE, _BRIGHT_NEGATIVE = (100, 170, 235), (240, 145, 70)
_INK, _SOFT, _CROSS = "#1b1f24", "#59636e", "#8c959f"
# Cells are not crisp: in a picture that is shown smaller, some of the lines between them would be lost.
_STYLE = f"""
.ink {{ fill: {_INK}; font: 12px system-ui, sans-serif; }} .soft {{ fill: {_SOFT}; font: 11px system-ui, sans-serif; }}
.title {{ fill: {_INK}; font: 600 14px system-ui, sans-serif; }} text {{ unicode-bidi: isolate; white-space: pre; }}
.deep {{ fill: #fff; font: 12px system-ui, sans-serif; }} .warm {{ fill: {_INK}; font: 12px system-ui, sans-serif; }}
svg text {{ pointer-events: none; }} svg text.whole {{ pointer-events: auto; }}
.missing {{ stroke: {_CROSS}; stroke-width: 1; fill: none; }} .dark {{ display: none; }}
rect {{ shape-rendering: crispEdges; }} .mark {{ stroke: {_INK}; stroke-width: 2; fill: none; pointer-events: none; }}
g.cell rect {{ shape-rendering: auto; }} g.cell:hover rect {{ stroke: {_INK}; stroke-width: 1.5; }}
@media (prefers-color-scheme: dark) {{
.light {{ display: none; }} .dark {{ display: inline; }} .ink, .title {{ fill: #e6edf3; }} .soft {{ fill: #9198a1; }}
.deep, .warm {{ fill: #0d1117; }} .mark, g.cell:hover rect {{ stroke: #e6edf3; }} }}
"""
# Of those that are installed, these lend the characters that matplotlib's own font does not have.
_MORE_FONTS = (
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "WenQuanYi Zen Hei",
    "Hiragino Sans",
    "Microsoft YaHei",
    "Arial Unicode MS",
    "Noto Sans Arabic",
    "Noto Sans Devanagari",
    "Noto Emoji",
    "Symbola",
)
_UNKNOWN = "□"
_SIZES = {"title": 14.0, "ink": 12.0, "soft": 11.0, "deep": 12.0, "warm": 12.0}
_COLOURS = {"title": _INK, "ink": _INK, "soft": _SOFT, "deep": "#ffffff", "warm": _INK}
_Pixels = int | float
_Point = tuple[_Pixels, _Pixels]


@dataclass(frozen=True, kw_only=True)
class Label:
    """A text in a picture.

    Attributes:
        x: where it is anchored, in pixels from the left.
        y: its baseline, in pixels from the top.
        text: what is written.
        whole: what is shown on hover, if the text was cut.
        anchor: the part of the text that is at `x`.
        style: `"title"`, `"ink"`, `"soft"`, or `"deep"` and `"warm"` on boxes of deep blue and orange.
    """

    x: _Pixels
    y: _Pixels
    text: str
    whole: str | None = None
    anchor: Literal["start", "middle", "end"] = "start"
    style: Literal["title", "ink", "soft", "deep", "warm"] = "soft"

    @property
    def right(self) -> float:
        """Where the text ends, rather too far than too near."""
        width = text_width(self.text, _SIZES[self.style] + 0.5)
        return self.x + width * {"start": 1.0, "middle": 0.5, "end": 0.0}[self.anchor]

    def to_svg(self) -> str:
        """The text as SVG."""
        hover = "" if self.whole is None else f"<title>{shown(self.whole)}</title>"
        anchor = "" if self.anchor == "start" else f' text-anchor="{self.anchor}"'
        kind = f"{self.style} whole" if hover else self.style
        return f'<text class="{kind}" x="{self.x:g}" y="{self.y:g}"{anchor}>{shown(self.text)}{hover}</text>'


@dataclass(frozen=True, kw_only=True)
class Box:
    """A coloured box in a picture.

    Attributes:
        x: left edge, in pixels.
        y: upper edge.
        width: in pixels.
        height: in pixels.
        share: from −1, full orange, to 1, full blue; NaN is drawn as missing.
        words: lines that are shown on hover.
        marked: whether it has an outline.
    """

    x: _Pixels
    y: _Pixels
    width: _Pixels
    height: _Pixels
    share: float
    words: tuple[str, ...] = ()
    marked: bool = False

    @property
    def corners(self) -> list[_Point]:
        """From the upper left one, clockwise."""
        right, bottom = self.x + self.width, self.y + self.height
        return [(self.x, self.y), (right, self.y), (right, bottom), (self.x, bottom)]

    @property
    def cross(self) -> list[list[_Point]]:
        """The two strokes that are the sign of a missing value."""
        inset = min(4.0, self.width / 4, self.height / 4)
        left, top = self.x + inset, self.y + inset
        right, bottom = self.x + self.width - inset, self.y + self.height - inset
        return [[(left, top), (right, bottom)], [(left, bottom), (right, top)]]

    def to_svg(self) -> str:
        """The box as SVG, in both forms."""
        place = f'x="{self.x:g}" y="{self.y:g}" width="{self.width:g}" height="{self.height:g}"'
        boxes = "".join(
            f'<rect class="{name}" {place} fill="{colour(self.share, dark=name == "dark")}"/>'
            for name in ("light", "dark")
        )
        if not self.words:
            return boxes
        strokes = "".join(f"M{a:g} {b:g}L{c:g} {d:g}" for (a, b), (c, d) in self.cross)
        missing = f'<path class="missing" d="{strokes}"/>' if math.isnan(self.share) else ""
        words = "\n".join(shown(line) for line in self.words)
        return f'<g class="cell"><title>{words}</title>{boxes}{missing}</g>'


@runtime_checkable
class Pixels(Protocol):
    """An image in a picture, of many cells."""

    def to_svg(self) -> str:
        """The image as SVG, in both forms."""

    def draw(self, axes: Axes) -> None:
        """Draw it with matplotlib, in pixels of the picture."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Boxes, shapes and labels, laid out.

    Attributes:
        title: what is read out in its place.
        width: in pixels.
        height: in pixels.
        labels: its texts.
        boxes: its boxes.
        shapes: lines, areas, dots and curves over the boxes and below the labels, later ones over earlier ones.
        pixels: images below all others, such as a `Bitmap`.
    """

    title: str
    width: _Pixels
    height: _Pixels
    labels: Sequence[Label]
    boxes: Sequence[Box] = ()
    shapes: Sequence[Shape] = ()
    pixels: Sequence[Pixels] = ()

    def moved(self, right: _Pixels, down: _Pixels) -> Picture:
        """Its labels, boxes and images further to the right and further down, for a picture of several.

        Raises:
            ValueError: for a picture with shapes, which cannot be moved.
        """
        if self.shapes:
            raise ValueError("a picture with shapes cannot be moved")

        def there(part: Any) -> Any:
            return replace(part, x=part.x + right, y=part.y + down)

        labels, boxes, pixels = ([there(p) for p in parts] for parts in (self.labels, self.boxes, self.pixels))
        return replace(self, labels=labels, boxes=boxes, pixels=pixels)

    def to_svg(self) -> str:
        """The picture as SVG, complete in itself."""
        size = f"{self.width:g} {self.height:g}"
        style = _STYLE + shape_style(self.shapes)
        opening = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" width="{self.width:g}" '
            f'height="{self.height:g}" role="img" aria-label="{shown(self.title)}"><style>{style}</style>'
        )
        # Outlines come after all boxes: the next box would cover half of them.
        outlines = [
            f'<rect class="mark" x="{box.x:g}" y="{box.y:g}" width="{box.width:g}" height="{box.height:g}"/>'
            for box in self.boxes
            if box.marked
        ]
        boxes, shapes, labels = ([p.to_svg() for p in parts] for parts in (self.boxes, self.shapes, self.labels))
        return "".join(
            [opening, *(image.to_svg() for image in self.pixels), *boxes, *outlines, *shapes, *labels, "</svg>"]
        )

    def save(self, path: Path, dots: float = 144.0) -> None:
        """Write it with matplotlib, as the kind of file that the name says.

        No text is read as a formula, and characters that no installed font has are drawn as `□`.

        Args:
            path: of a `.png` or `.pdf` file.
            dots: of a PNG, per inch of 72 pixels.

        Raises:
            ImportError: when matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError(
                f'a {path.suffix} picture needs matplotlib: pip install "interpretability-toolkit[viz]"'
            ) from error

        # Not pyplot: it would keep the figure and choose a backend for the whole process.
        figure = Figure(figsize=(self.width / 72, self.height / 72), facecolor="white")
        figure.set_layout_engine("none")
        axes = _canvas(figure, self.width, self.height)
        for image in self.pixels:
            image.draw(axes)
        self._draw_boxes(axes)
        draw_shapes(axes, self.shapes)
        self._draw_labels(figure)
        kind = path.suffix[1:].lower()
        undated = {"CreationDate": None} if kind == "pdf" else {}  # the same data gives the same file
        whole = figure.bbox_inches  # without it, and with transparency unsaid, a user's settings would decide
        figure.savefig(path, format=kind, dpi=dots, metadata=undated, bbox_inches=whole, transparent=False)

    def _draw_boxes(self, axes: Axes) -> None:
        from matplotlib.collections import LineCollection, PolyCollection

        known = [box for box in self.boxes if not math.isnan(box.share)]
        crosses = [stroke for box in self.boxes if math.isnan(box.share) for stroke in box.cross]
        colours = [colour(box.share) for box in known]
        axes.add_collection(
            PolyCollection(_corners(known), facecolors=colours, edgecolors="none", antialiased=False), autolim=False
        )
        axes.add_collection(LineCollection(crosses, colors=_CROSS, linewidths=1), autolim=False)
        marked = _corners(box for box in self.boxes if box.marked)
        axes.add_collection(
            PolyCollection(marked, facecolors="none", edgecolors=_INK, linewidths=2, joinstyle="miter"), autolim=False
        )

    def _draw_labels(self, figure: Figure) -> None:
        sides: dict[str, Literal["left", "center", "right"]] = {"start": "left", "middle": "center", "end": "right"}
        fonts = _fonts()
        known = {weight: _characters(fonts, weight) for weight in ("bold", "normal")}
        for label in self.labels:
            weight = "bold" if label.style == "title" else "normal"
            figure.text(
                label.x / self.width,
                1 - label.y / self.height,
                _drawable(label.text, known[weight]),
                parse_math=False,
                usetex=False,
                family=fonts,
                weight=weight,
                size=_SIZES[label.style],
                color=_COLOURS[label.style],
                ha=sides[label.anchor],
                va="baseline",
            )


def colour(share: float, *, dark: bool = False) -> str:
    """The colour of a share from −1 to 1, beyond which it stays full; `"none"` for NaN.

    Example:
        >>> colour(1.0), colour(0.0), colour(-1.0)
        ('#2166ac', '#f7f7f7', '#c75c12')
    """
    if math.isnan(share):
        return "none"
    ends = (_BRIGHT_POSITIVE, _BRIGHT_NEGATIVE) if dark else (_POSITIVE, _NEGATIVE)
    middle, end = (_DARK if dark else _LIGHT), ends[0] if share >= 0 else ends[1]
    depth = min(1.0, abs(share))
    return "#" + "".join(f"{round(a + (b - a) * depth):02x}" for a, b in zip(middle, end, strict=True))


def _canvas(figure: Figure, width: _Pixels, height: _Pixels) -> Axes:
    """Axes over the whole figure, in pixels from the upper left corner."""
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    return axes


def _corners(boxes: Iterable[Box]) -> list[list[_Point]]:
    return [box.corners for box in boxes]


def _fonts() -> list[str]:
    """Families to take characters from, in order: matplotlib's own first."""
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in _MORE_FONTS if name in installed)]


def _characters(fonts: Sequence[str], weight: str) -> set[int]:
    """All characters that these fonts can draw."""
    from matplotlib import font_manager

    files = [font_manager.findfont(font_manager.FontProperties(family=[name], weight=weight)) for name in fonts]
    return set().union(*(font_manager.get_font(file).get_charmap() for file in files))


def _drawable(text: str, known: set[int]) -> str:
    """Text as it shows on a page, without characters that no font has; joiners and accents are left out."""
    visible = html.unescape(shown(text))  # undoes the escaping alone: a user's "&amp;" was escaped too
    return "".join(
        c if ord(c) in known else "" if unicodedata.category(c) in ("Cf", "Me", "Mn") else _UNKNOWN for c in visible
    )


__all__ = ["Box", "Label", "Picture", "Pixels", "colour"]
