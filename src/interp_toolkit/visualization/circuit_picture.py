"""The still picture of a circuit: boxes in layers, edges signed by colour and dash."""

from __future__ import annotations

import math
from collections.abc import Sequence

from interp_toolkit.visualization.circuit_graph import CircuitGraph, GraphEdge, GraphNode
from interp_toolkit.visualization.document import shortened, text_width, visible
from interp_toolkit.visualization.graph_layout import Layout, Sizes, Spot, layered
from interp_toolkit.visualization.pictures import Label, Picture
from interp_toolkit.visualization.shapes import Area, Curve, Line, Named, Shape

FEW, SOME = 14, 110
"""Up to so many nodes, boxes are large; up to so many more, of middle size."""

ROLE_SERIES = (2, 4, 3, 6, 5, 7)
"""Colours of roles: those of the palette that are no sign of an edge."""

_PORTS = {"q": -1.0, "k": 0.0, "v": 1.0}
_DASH = (5, 3)
_HOVERED = 600  # with more edges no words stand behind them: they could hardly be hit
_LETTERS = 7.4  # a character of a large box, in pixels


def sizes_of(graph: CircuitGraph) -> Sizes:
    """How large boxes are, by how many there are."""
    count, bands = len(graph.nodes), len({node.layer for node in graph.nodes})
    if count <= FEW:
        longest = max([10, *(len(text) for node in graph.nodes for text in (node.name, node.role))])
        width = min(190.0, max(104.0, 26 + _LETTERS * longest))
        return Sizes(width=width, height=46.0, gap=34.0, rise=_between(600 / max(1, bands), 92, 124), room=3.2 * width)
    if count <= SOME:
        return Sizes(width=54.0, height=20.0, gap=18.0, rise=_between(760 / bands, 33, 80), room=560.0)
    return Sizes(width=44.0, height=16.0, gap=8.0, rise=_between(760 / bands, 27, 70), room=820.0)


def layout_of(graph: CircuitGraph) -> Layout:
    """Where nodes and edges are; an edge into keys or values that heads share has a curve for each of these heads."""
    heads = {layer: [n.head for n in graph.nodes if n.layer == layer] for layer in {n.layer for n in graph.nodes}}
    most = 1 + max((node.head for node in graph.nodes if node.head is not None), default=0)
    by_column = any(node.position is not None for node in graph.nodes)
    many = len(graph.nodes) > FEW
    spots = []
    for node in graph.nodes:
        beside = heads[node.layer]
        hint = 0.5 if len(beside) == 1 or node.head is None else (node.head + 0.5) / most
        mlp = node.kind == "mlp"
        spine = mlp and many and not by_column
        lift = int(mlp and (spine or any(head is not None for head in beside)))
        spots.append(Spot(band=node.layer, lift=lift, hint=hint, column=node.position, spine=spine))
    largest = strongest(graph)
    links = [
        (edge.source, target, 1.0 if edge.score is None else edge.score / largest)
        for edge in graph.edges
        for target in edge.targets
    ]
    ports = [_PORTS.get(edge.port, 0.0) for edge in graph.edges for _ in edge.targets]
    return layered(spots, links, sizes_of(graph), ports)


def strongest(graph: CircuitGraph) -> float:
    """The largest |score|; 1 where there is none."""
    return max([abs(edge.score) for edge in graph.edges if edge.score], default=1.0)


def roles_of(graph: CircuitGraph) -> list[str]:
    """The roles that there are, the most frequent first."""
    found = [node.role for node in graph.nodes if node.role]
    return sorted(set(found), key=lambda role: (-found.count(role), role))


def band_name(graph: CircuitGraph, layer: int) -> str:
    """What stands on the left of a band."""
    inside = {node.kind for node in graph.nodes if node.layer == layer}
    if inside in ({"embed"}, {"logits"}):
        return inside.pop()
    return f"layer {layer}" if graph.layers else f"step {layer}"


def still(graph: CircuitGraph, layout: Layout, title: str, tokens: Sequence[str] | None, *, titled: bool) -> Picture:
    """The picture of a circuit that has been laid out."""
    top = 34.0 if titled else 0.0
    labels = [Label(x=14.0, y=22.0, text=title, style="title")] if titled else []
    if not graph.nodes:
        words = Label(x=14.0, y=top + 26.0, text="This circuit is empty: it has no edges.", style="ink")
        return Picture(title=title, width=max(360.0, labels[0].right + 14 if titled else 0.0), height=top + 46.0,
                       labels=[*labels, words])  # fmt: skip
    size = sizes_of(graph)
    shapes = _curves(graph, layout, size, top)
    roles = roles_of(graph)
    for n, node in enumerate(graph.nodes):
        shapes += _box(node, layout.x[n], layout.y[n] + top, size, roles)
        labels += _names(node, layout.x[n], layout.y[n] + top, size)
    labels += [Label(x=8.0, y=top + y + 4, text=band_name(graph, band)) for band, y in layout.bands.items()]
    bottom = top + layout.height
    if layout.columns:
        labels += [
            Label(x=x, y=bottom + 12.0, text=shortened(visible(_position(tokens, n)), 14), anchor="middle")
            for n, x in layout.columns.items()
        ]
        bottom += 22
    key, marks, bottom, right = _legend(graph, roles, bottom, max(layout.width, 420.0))
    width = max([layout.width, 360.0, right, *(label.right + 12 for label in labels)])
    return Picture(title=title, width=width, height=bottom, labels=[*labels, *key], shapes=[*shapes, *marks])


def told(graph: CircuitGraph, edge: GraphEdge) -> str:
    """An edge by name with its score."""
    score = "" if edge.score is None else f" {edge.score:+.4g}".replace("-", "−")
    return f"{graph.nodes[edge.source].name} → {edge.dest}{score}"


def _position(tokens: Sequence[str] | None, n: int) -> str:
    return tokens[n] if tokens is not None else f"position {n}"


def _curves(graph: CircuitGraph, layout: Layout, size: Sizes, top: float) -> list[Shape]:
    """Edges, the strongest last and so on top."""
    shapes: list[Shape] = []
    largest, n, few = strongest(graph), 0, len(layout.curves) <= _HOVERED
    thin, thick = (0.9, 5.5) if size.height > 40 else (0.6, 3.6) if size.height > 16 else (0.4, 2.4)
    for edge in graph.edges:
        for _ in edge.targets:
            x1, y1, x2, y2, bend = layout.curves[n]
            start, end = (x1, y1 + top), (x2, y2 + top)
            words = (visible(told(graph, edge)),) if few else ()
            n += 1
            if edge.score is None:
                shapes.append(Line(points=_sampled(start, end, bend), colour="soft", width=thin + 0.5, words=words))
                continue
            share = abs(edge.score) / largest
            shapes.append(
                Curve(
                    start=start,
                    end=end,
                    share=math.copysign(0.2 + 0.8 * math.sqrt(share), edge.score),
                    width=round(thin + (thick - thin) * math.sqrt(share), 2),
                    dash=_DASH if edge.score < 0 else (),
                    words=words,
                    bend=bend,
                )
            )
    return shapes[::-1]


def _sampled(start: tuple[float, float], end: tuple[float, float], bend: float) -> list[tuple[float, float]]:
    """A curve as a line of short strokes."""
    points = []
    for step in range(17):
        t = step / 16
        u = 1 - t
        x = start[0] * u * u * (1 + 2 * t) + end[0] * t * t * (3 - 2 * t) + 3 * bend * t * u
        y = start[1] * u**3 + 1.5 * t * u * (start[1] + end[1]) + end[1] * t**3
        points.append((round(x, 1), round(y, 1)))
    return points


def _box(node: GraphNode, x: float, y: float, size: Sizes, roles: Sequence[str]) -> list[Shape]:
    """A head as a pill, everything else as a box with corners that are less round; filled by its role."""
    radius = size.height / 2 if node.kind == "head" else 3.0
    outline = _rounded(x, y, size.width, size.height, radius, steps=2 if radius < 4 else 6 if size.height > 16 else 4)
    series = ROLE_SERIES[roles.index(node.role) % len(ROLE_SERIES)] if node.role else None
    words = tuple(visible(line) for line in (node.name, node.role, node.words) if line)
    tinted = series is not None or node.kind in ("embed", "logits")
    shapes: list[Shape] = [Area(points=outline, colour="paper", opacity=1.0, words=() if tinted else words)]
    if tinted:
        fill: Named | int = "line" if series is None else series
        shapes.append(Area(points=outline, colour=fill, opacity=0.55 if series is None else 0.22, words=words))
    edge: Named | int = "soft" if series is None else series
    width = 1.6 if size.height > 16 else 1.0
    shapes.append(Line(points=[*outline, outline[0]], colour=edge, width=width))
    return shapes


def _rounded(
    x: float, y: float, width: float, height: float, radius: float, *, steps: int = 6
) -> list[tuple[float, float]]:
    """The outline of a box with round corners, clockwise."""
    across, down = width / 2 - radius, height / 2 - radius
    points = []
    for quarter, (dx, dy) in enumerate([(1, -1), (1, 1), (-1, 1), (-1, -1)]):
        for step in range(steps + 1):
            angle = math.pi / 2 * (quarter - 1 + step / steps)
            corner = x + dx * across + radius * math.cos(angle), y + dy * down + radius * math.sin(angle)
            points.append((round(corner[0], 1), round(corner[1], 1)))
    return points


def _names(node: GraphNode, x: float, y: float, size: Sizes) -> list[Label]:
    """What stands in a box."""
    if size.height <= 16:
        return [Label(x=x, y=y + 4, text=_fitting(visible(node.name), size.width - 6, 9.0), anchor="middle")]
    name = _fitting(visible(node.name), size.width - 6, 11.0)
    if size.height < 40 or not node.role:
        return [Label(x=x, y=y + 4, text=name, anchor="middle", style="ink")]
    role = _fitting(visible(node.role), size.width - 8, 10.0)
    return [
        Label(x=x, y=y - 3, text=name, anchor="middle", style="ink"),
        Label(x=x, y=y + 13, text=role, anchor="middle"),
    ]


def _fitting(text: str, room: float, size: float) -> str:
    """A text cut to the room that there is."""
    for length in range(min(len(text), 40), 1, -1):
        cut = shortened(text, length)
        if text_width(cut, size) <= room + 8:
            return cut
    return shortened(text, 2)


def _legend(
    graph: CircuitGraph, roles: Sequence[str], top: float, room: float
) -> tuple[list[Label], list[Shape], float, float]:
    """What colours, dashes and forms mean; with the height and the width that it ends at."""
    entries: list[tuple[str, int | str]] = []
    scores = [edge.score for edge in graph.edges if edge.score is not None]
    entries += [("helps", "positive")] if any(score >= 0 for score in scores) else []
    entries += [("works against", "negative")] if any(score < 0 for score in scores) else []
    entries += [(visible(role), ROLE_SERIES[n % len(ROLE_SERIES)]) for n, role in enumerate(roles)]
    labels: list[Label] = []
    shapes: list[Shape] = []
    x, y, right = 14.0, top + 14.0, 0.0
    for text, colour in entries:
        label = Label(x=x + 30, y=y + 4, text=shortened(text, 40))
        if label.right > room and x > 14:
            x, y = 14.0, y + 20
            label = Label(x=x + 30, y=y + 4, text=label.text)
        if isinstance(colour, str):
            ends = [(x, y), (x + 24, y)]
            negative = colour == "negative"
            shapes.append(Line(points=ends, colour="negative" if negative else "positive", width=3,
                               dash=_DASH if negative else ()))  # fmt: skip
        else:
            outline = _rounded(x + 12, y, 22.0, 12.0, 6.0)
            shapes += [
                Area(points=outline, colour=colour, opacity=0.22),
                Line(points=[*outline, outline[0]], colour=colour),
            ]
        labels.append(label)
        x, right = label.right + 18, max(right, label.right + 14)
    return labels, shapes, y + 20 if entries else top + 4, right


def _between(value: float, low: float | int, high: float | int) -> float:
    return float(min(high, max(low, value)))


__all__ = ["FEW", "ROLE_SERIES", "SOME", "band_name", "layout_of", "roles_of", "sizes_of", "still", "strongest", "told"]
