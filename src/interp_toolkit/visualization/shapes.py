"""Lines, areas, dots and curves of pictures, drawn as SVG and by matplotlib, and the colours that they take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from interp_toolkit.visualization.document import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Named = Literal["ink", "soft", "line", "positive", "negative", "mark", "paper"]
_Pixels = int | float
_Point = tuple[_Pixels, _Pixels]

# After Okabe and Ito's palette, in which all kinds of colour vision tell the colours apart; made darker for white paper
# and brighter for black, so that each keeps a contrast of at least 3 : 1.
SERIES = (
    ("#0072b2", "#4ca8e8"),
    ("#d55e00", "#f08a4b"),
    ("#00896a", "#2dc29a"),
    ("#b4508f", "#e392c4"),
    ("#a86f00", "#e6a817"),
    ("#2f8fc9", "#8fd3fa"),
    ("#7d7400", "#d9d04a"),
    ("#59636e", "#a4adb8"),
)
_NAMED: dict[str, tuple[str, str]] = {
    "ink": ("#1b1f24", "#e6edf3"),
    "soft": ("#59636e", "#9198a1"),
    "line": ("#d1d9e0", "#3d444d"),
    "positive": ("#2166ac", "#64aaeb"),
    "negative": ("#c75c12", "#f09146"),
    "mark": ("#8a3ffc", "#be95ff"),
    "paper": ("#ffffff", "#0d1117"),
}


def tint(colour: str | int, *, dark: bool = False) -> str:
    """The colour of a name, or of a series by its number; numbers beyond the palette begin anew.

    Raises:
        ValueError: for a name that is none of ink, soft, line, positive, negative, mark and paper.

    Example:
        >>> tint(0), tint(8), tint("mark", dark=True)
        ('#0072b2', '#0072b2', '#be95ff')
    """
    if isinstance(colour, int):
        return SERIES[colour % len(SERIES)][dark]
    if colour not in _NAMED:
        raise ValueError(f"no colour is called {colour!r}: name one of {', '.join(_NAMED)}, or a series by its number")
    return _NAMED[colour][dark]


@dataclass(frozen=True, kw_only=True)
class Line:
    """Straight strokes from point to point.

    Attributes:
        points: at least two, each as (x, y) in pixels.
        colour: a name such as `"ink"`, or the number of a series.
        width: in pixels.
        dash: lengths of strokes and gaps, in pixels; none for a line without gaps.
        words: lines that are shown on hover.
    """

    points: Sequence[_Point]
    colour: Named | int = "ink"
    width: _Pixels = 1.5
    dash: tuple[_Pixels, ...] = ()
    words: tuple[str, ...] = ()

    def to_svg(self) -> str:
        """The line as SVG."""
        return _path(_polygon(self.points), f"stroke-{_slug(self.colour)}", _stroke(self.width, self.dash), self.words)

    def draw(self, axes: Axes, order: int) -> None:
        """Draw it with matplotlib."""
        _draw(axes, self.points, order, edge=tint(self.colour), width=self.width, dash=self.dash)


@dataclass(frozen=True, kw_only=True)
class Area:
    """A filled polygon, such as the band between two lines.

    Attributes:
        points: its corners in order, each as (x, y) in pixels.
        colour: a name, or the number of a series.
        opacity: from 0 to 1.
        words: lines that are shown on hover.
    """

    points: Sequence[_Point]
    colour: Named | int = 0
    opacity: int | float = 0.2
    words: tuple[str, ...] = ()

    def to_svg(self) -> str:
        """The area as SVG."""
        opacity = f'fill-opacity="{self.opacity:g}"'
        return _path(_polygon(self.points) + "Z", f"fill-{_slug(self.colour)}", opacity, self.words)

    def draw(self, axes: Axes, order: int) -> None:
        """Draw it with matplotlib."""
        _draw(axes, [*self.points, self.points[0]], order, face=tint(self.colour), opacity=self.opacity)


@dataclass(frozen=True, kw_only=True)
class Dot:
    """A small disc.

    Attributes:
        x: of its middle, in pixels.
        y: of its middle.
        radius: in pixels.
        colour: a name, or the number of a series.
        words: lines that are shown on hover.
        filled: whether it is a disc; otherwise it is a ring.
        opacity: from 0 to 1.
    """

    x: _Pixels
    y: _Pixels
    radius: _Pixels = 3
    colour: Named | int = 0
    words: tuple[str, ...] = ()
    filled: bool = True
    opacity: int | float = 1.0

    def to_svg(self) -> str:
        """The dot as SVG."""
        slug = _slug(self.colour)
        kind = f"fill-{slug}" if self.filled else f"stroke-{slug} fill-paper"
        opacity = "" if self.opacity == 1 else f' opacity="{self.opacity:g}"'
        place = f'class="{kind}" cx="{_short(self.x)}" cy="{_short(self.y)}" r="{_short(self.radius)}"{opacity}'
        return f"<circle {place}>{_title(self.words)}</circle>" if self.words else f"<circle {place}/>"

    def draw(self, axes: Axes, order: int) -> None:
        """Draw it with matplotlib."""
        from matplotlib.patches import Circle

        colour = tint(self.colour)
        face, edge = (colour, "none") if self.filled else (tint("paper"), colour)
        place = (self.x, self.y)
        axes.add_patch(
            Circle(place, self.radius, facecolor=face, edgecolor=edge, linewidth=1.5, alpha=self.opacity, zorder=order)
        )


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A bowed line that leaves and arrives vertically, such as an edge of a graph.

    Attributes:
        start: where it begins, as (x, y) in pixels.
        end: where it ends.
        share: from −1, full orange, to 1, full blue; small ones are pale.
        width: in pixels.
        dash: lengths of strokes and gaps, in pixels.
        words: lines that are shown on hover.
        bend: how far its control points are moved to the right, in pixels.
    """

    start: _Point
    end: _Point
    share: int | float = 1.0
    width: _Pixels = 1.5
    dash: tuple[_Pixels, ...] = ()
    words: tuple[str, ...] = ()
    bend: _Pixels = 0

    @property
    def points(self) -> list[_Point]:
        """Its beginning, its two control points and its end."""
        middle = (self.start[1] + self.end[1]) / 2
        return [self.start, (self.start[0] + self.bend, middle), (self.end[0] + self.bend, middle), self.end]

    @property
    def opacity(self) -> float:
        """How much it covers."""
        return round(0.15 + 0.85 * min(1.0, abs(self.share)), 3)

    @property
    def colour(self) -> Named:
        """By its sign."""
        return "positive" if self.share >= 0 else "negative"

    def to_svg(self) -> str:
        """The curve as SVG."""
        start, *others = (f"{_short(x)} {_short(y)}" for x, y in self.points)
        more = f'{_stroke(self.width, self.dash)} stroke-opacity="{self.opacity:g}"'
        return _path(f"M{start}C{' '.join(others)}", f"stroke-{self.colour}", more, self.words)

    def draw(self, axes: Axes, order: int) -> None:
        """Draw it with matplotlib."""
        edge, opacity = tint(self.colour), self.opacity
        _draw(axes, self.points, order, edge=edge, width=self.width, dash=self.dash, opacity=opacity, bowed=True)


Shape = Line | Area | Dot | Curve


def shape_style(shapes: Sequence[Shape]) -> str:
    """The style sheet for the colours of these shapes, light and dark."""
    used = sorted({_slug(shape.colour) for shape in shapes} | ({"paper"} if shapes else set()))

    def rules(*, dark: bool) -> str:
        colours = {slug: tint(int(slug) if slug.isdigit() else slug, dark=dark) for slug in used}
        return "".join(f".stroke-{s} {{ stroke: {c}; }} .fill-{s} {{ fill: {c}; }}\n" for s, c in colours.items())

    if not used:
        return ""
    plain = '[class^="stroke-"] { fill: none; stroke-linejoin: round; } circle { stroke-width: 1.5; }\n'
    return f"{plain}{rules(dark=False)}@media (prefers-color-scheme: dark) {{\n{rules(dark=True)}}}\n"


def draw_shapes(axes: Axes, shapes: Sequence[Shape]) -> None:
    """Draw shapes with matplotlib, later ones over earlier ones."""
    import matplotlib as mpl

    with mpl.rc_context({"lines.scale_dashes": False}):
        for number, shape in enumerate(shapes):
            shape.draw(axes, 3 + number)


def _short(length: _Pixels) -> str:
    """A length to a tenth of a pixel."""
    return f"{round(length, 1):g}"


def _slug(colour: str | int) -> str:
    """What a colour is called in a style sheet."""
    return str(colour % len(SERIES)) if isinstance(colour, int) else colour


def _polygon(points: Sequence[_Point]) -> str:
    return "M" + "L".join(f"{_short(x)} {_short(y)}" for x, y in points)


def _stroke(width: _Pixels, dash: tuple[_Pixels, ...]) -> str:
    dashes = f' stroke-dasharray="{" ".join(map(_short, dash))}"' if dash else ""
    return f'stroke-width="{width:g}"{dashes}'


def _title(words: tuple[str, ...]) -> str:
    return "<title>" + "\n".join(shown(line) for line in words) + "</title>" if words else ""


def _path(line: str, kind: str, more: str, words: tuple[str, ...]) -> str:
    opening = f'<path class="{kind}" d="{line}" {more}'
    return f"{opening}>{_title(words)}</path>" if words else f"{opening}/>"


def _draw(
    axes: Axes,
    points: Sequence[_Point],
    order: int,
    *,
    edge: str = "none",
    face: str = "none",
    width: _Pixels = 0,
    dash: tuple[_Pixels, ...] = (),
    opacity: int | float = 1.0,
    bowed: bool = False,
) -> None:
    """A path of matplotlib; bowed ones have two control points between their ends."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    following = Path.CURVE4 if bowed else Path.LINETO
    path = Path([(float(x), float(y)) for x, y in points], [Path.MOVETO, *[following] * (len(points) - 1)])
    patch = PathPatch(path, facecolor=face, edgecolor=edge, linewidth=width, alpha=opacity, zorder=order)
    patch.set_joinstyle("round")
    patch.set_capstyle("butt")
    if dash:
        patch.set_linestyle((0, tuple(float(length) for length in dash)))
    axes.add_patch(patch)


__all__ = ["SERIES", "Area", "Curve", "Dot", "Line", "Named", "Shape", "draw_shapes", "shape_style", "tint"]
