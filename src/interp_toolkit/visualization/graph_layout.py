"""Where the nodes of a layered graph stand, and which way its edges go round them: the same graph, the same picture.

Nodes stand in bands, one for each layer that is there, the first at the bottom. Within a band they are ordered so that
few edges cross: each takes the mean place of its neighbours, in sweeps up and down (the barycentre heuristic of
Sugiyama, Tagawa and Toda 1981), and the sweep with the fewest crossings is kept. Then each moves as near to that mean
as the order and the room between boxes allow, which is an isotonic regression.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_SWEEPS = 10
_DAMPING = 0.4  # of the old place in the new one; without it everything gathers in the middle
_MOST_COUNTED = 500  # strongest edges whose crossings are counted
_MOST_ROUTED = 900  # strongest edges that go round boxes
_FULL = 5  # with fewer in a band, boxes do not stand further apart than with so many
_MARGIN = 14.0
_SAMPLES = np.linspace(0.04, 0.96, 19)
_BENDS = (0.0, 24.0, -24.0, 48.0, -48.0, 80.0, -80.0, 120.0, -120.0, 170.0, -170.0)

Link = tuple[int, int, float]
"""An edge: the number of its source, that of its target, and its weight."""

_Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Spot:
    """What is known of a node before it has a place.

    Attributes:
        band: its layer; a larger one stands higher.
        lift: 1 for what stands a bit higher in its band, such as an MLP, which reads the heads of its layer.
        hint: where in its band it would stand, from 0 to 1, if there were no edges.
        column: the column that it must stay in, if there are columns.
        spine: whether it stands to the right of all that are not on the spine.
    """

    band: int
    lift: int = 0
    hint: float = 0.5
    column: int | None = None
    spine: bool = False


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Lengths in pixels.

    Attributes:
        width: of a box.
        height: of a box.
        gap: between boxes side by side, at least.
        rise: from one band to the next.
        room: for a band, at least.
        left: free on the left, for names of bands.
    """

    width: float | int
    height: float | int
    gap: float | int
    rise: float | int
    room: float | int
    left: float | int = 60


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where everything is, in pixels from the upper left corner.

    Attributes:
        x: middle of each node.
        y: middle of each node.
        bands: the height of each band.
        columns: middle of each column.
        curves: for each edge where it begins and ends, and how far it is bent sideways: x, y, x, y, bend.
        width: of the whole.
        height: of the whole.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]
    bands: dict[int, float]
    columns: dict[int, float]
    curves: tuple[tuple[float, float, float, float, float], ...]
    width: float
    height: float


def layered(
    spots: Sequence[Spot], links: Sequence[Link], sizes: Sizes, ports: Sequence[float | int] | None = None
) -> Layout:
    """Place the nodes of a graph.

    Args:
        spots: one for each node.
        links: edges; each leads to a higher band, or to a higher lift in its own.
        sizes: of boxes and of the room around them.
        ports: where each edge arrives at its target, from −1 for the left end of the box to 1 for the right; in the
            middle if left out.

    Raises:
        ValueError: for an edge that does not lead upwards.

    Example:
        >>> sizes = Sizes(width=40, height=20, gap=10, rise=60, room=100)
        >>> places = layered([Spot(band=0), Spot(band=1), Spot(band=1)], [(0, 1, 1.0), (0, 2, 0.5)], sizes)
        >>> places.y[0] > places.y[1] == places.y[2], abs(places.x[1] - places.x[2]) >= 50
        (True, True)
    """
    for source, target, _ in links:
        if (spots[source].band, spots[source].lift) >= (spots[target].band, spots[target].lift):
            raise ValueError(f"the edge from node {source} to node {target} does not lead to a higher layer")
    if not spots:
        return Layout(x=(), y=(), bands={}, columns={}, curves=(), width=sizes.left + sizes.room, height=sizes.rise)
    used = sorted({spot.band for spot in spots})
    top = _MARGIN + sizes.height / 2 + (0.32 * sizes.rise if any(s.lift for s in spots if s.band == used[-1]) else 0)
    bands = {band: top + sizes.rise * n for n, band in enumerate(reversed(used))}
    y = np.array([bands[spot.band] - 0.32 * sizes.rise * spot.lift for spot in spots])
    x, columns = (
        _columns(spots, links, sizes) if any(s.column is not None for s in spots) else _free(spots, links, sizes, y)
    )
    middles = [0.0] * len(links) if ports is None else ports
    curves = _routes(x, y, spots, links, middles, sizes)
    sideways = curves[:, 0:4:2] + 0.75 * curves[:, 4:5] if len(curves) else np.zeros((0, 2))
    left = min(float(x.min()) - sizes.width / 2, float(sideways.min(initial=np.inf)))
    right = max(float(x.max()) + sizes.width / 2, float(sideways.max(initial=-np.inf)))
    shift = sizes.left - left
    curves[:, 0:4:2] += shift
    return Layout(
        x=_rounded(x + shift),
        y=_rounded(y),
        bands=bands,
        columns={column: at + shift for column, at in columns.items()},
        curves=tuple(tuple(row) for row in curves.round(1).tolist()),
        width=round(right + shift + _MARGIN, 1),
        height=round(float(y.max()) + sizes.height / 2 + _MARGIN, 1),
    )


def crossings(x: _Floats, y: _Floats, links: Sequence[Link]) -> float:
    """How often straight edges cross, each crossing by the weight of the weaker edge.

    Example:
        >>> crossings(np.array([0.0, 1.0, 0.0, 1.0]), np.array([1.0, 1.0, 0.0, 0.0]), [(0, 3, 1.0), (1, 2, 0.5)])
        0.5
    """
    if not links:
        return 0.0
    counted = sorted(links, key=lambda link: -abs(link[2]))[:_MOST_COUNTED]
    ends = np.array([(source, target) for source, target, _ in counted])
    weight = np.abs(np.array([w for _, _, w in counted]))
    begin, end = (np.stack([x[ends[:, n]], y[ends[:, n]]], axis=1) for n in (0, 1))

    def side(a: _Floats, b: _Floats, c: _Floats) -> _Floats:
        """On which side of the line from a to b each c is: [edge, other]."""
        along, to = (b - a)[:, None], c[None] - a[:, None]
        turn: _Floats = np.sign(along[..., 0] * to[..., 1] - along[..., 1] * to[..., 0])
        return turn

    apart = side(begin, end, begin) * side(begin, end, end) < 0
    both = np.triu(apart & apart.T, 1)
    return float((np.minimum(weight[:, None], weight[None]) * both).sum())


def spread(wanted: _Floats, step: float) -> _Floats:
    """Places in the order given, at least a step apart and otherwise as near as can be to those that are wanted.

    Example:
        >>> spread(np.array([0.0, 0.0, 9.0]), 2.0).tolist()
        [-1.0, 1.0, 9.0]
    """
    blocks: list[list[float]] = []  # sum and number of those that have been pushed together
    for value in (wanted - step * np.arange(len(wanted))).tolist():
        blocks.append([value, 1.0])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            total, number = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += number
    level = np.concatenate([np.full(int(number), total / number) for total, number in blocks])
    placed: _Floats = level + step * np.arange(len(wanted))
    return placed


# --- places ------------------------------------------------------------------------------------------------------


def _free(spots: Sequence[Spot], links: Sequence[Link], sizes: Sizes, y: _Floats) -> tuple[_Floats, dict[int, float]]:
    """Places that only edges decide on; the spine stands on the right."""
    step = float(sizes.width + sizes.gap)
    rows: dict[int, list[int]] = defaultdict(list)
    for n, spot in enumerate(spots):
        if not spot.spine:
            rows[spot.band].append(n)
    most = max((len(row) for row in rows.values()), default=1)
    room = max(float(sizes.room), step * most)
    step = max(step, 0.9 * room / max(most, _FULL))
    x = np.array([spot.hint * room for spot in spots])
    x[[n for n, spot in enumerate(spots) if spot.spine]] = room + 1.5 * (sizes.width + sizes.gap)
    moving = [rows[band] for band in sorted(rows)]
    for row in moving:
        _settle(x, row, x[row], step, room)
    below, above = _neighbours(spots, links)
    best, fewest = x.copy(), crossings(x, y, links)
    for sweep in range(_SWEEPS):
        order, beside = (moving, below) if sweep % 2 == 0 else (moving[::-1], above)
        for row in order:
            _settle(x, row, _means(x, row, beside), step, room)
        found = crossings(x, y, links)
        if found < fewest:
            best, fewest = x.copy(), found
    both = [low + high for low, high in zip(below, above, strict=True)]
    for row in moving:  # straighter, in the order that was best
        row.sort(key=lambda n: (best[n], n))
        best[row] = _within(spread(_means(best, row, both), _loose(step, room, len(row))), room)
    return best, {}


def _settle(x: _Floats, row: list[int], wanted: _Floats, step: float, room: float) -> None:
    """Order a band by the places that its nodes want, and give them places."""
    order = sorted(range(len(row)), key=lambda n: (wanted[n], row[n]))
    x[[row[n] for n in order]] = _within(spread(wanted[order], _loose(step, room, len(row))), room)


def _loose(step: float, room: float, count: int) -> float:
    """The distance of boxes in a band: more than is needed where there are few."""
    return max(step, min(1.6 * step, room / count))


def _within(places: _Floats, room: float) -> _Floats:
    """A band moved into the room that there is; its order and distances stay unless it is too wide."""
    low, high = min(0.0, room - (places[-1] - places[0])), room
    moved: _Floats = places + max(0.0, low - places[0]) - max(0.0, places[-1] - high)
    return moved


def _neighbours(spots: Sequence[Spot], links: Sequence[Link]) -> tuple[list[list[Link]], list[list[Link]]]:
    """For each node its edges from below, and those to what is above; the spine pulls at nothing."""
    below: list[list[Link]] = [[] for _ in spots]
    above: list[list[Link]] = [[] for _ in spots]
    for source, target, weight in links:
        strength = abs(weight) ** 0.5 + 1e-9
        if not spots[source].spine:
            below[target].append((target, source, strength))
        if not spots[target].spine:
            above[source].append((source, target, strength))
    return below, above


def _means(x: _Floats, row: Sequence[int], beside: Sequence[Sequence[Link]]) -> _Floats:
    """Where each node of a band wants to be: between its own place and the mean of its neighbours."""
    wanted = []
    for node in row:
        weight = sum(strength for _, _, strength in beside[node])
        mean = sum(strength * x[other] for _, other, strength in beside[node]) / weight if weight else x[node]
        wanted.append(_DAMPING * x[node] + (1 - _DAMPING) * mean)
    return np.array(wanted)


def _columns(spots: Sequence[Spot], links: Sequence[Link], sizes: Sizes) -> tuple[_Floats, dict[int, float]]:
    """Places in columns, in which nodes of one band stand side by side; those without a column come last."""
    step = float(sizes.width + sizes.gap)
    cells: dict[tuple[int, int], list[int]] = defaultdict(list)
    last = 1 + max(spot.column for spot in spots if spot.column is not None)
    for n, spot in enumerate(spots):
        cells[last if spot.column is None else spot.column, spot.band].append(n)
    middles, at = {}, 0.0
    for column in sorted({column for column, _ in cells}):
        widest = step * max(len(nodes) for (found, _), nodes in cells.items() if found == column) + sizes.gap
        middles[column] = at + widest / 2
        at += widest
    x = np.zeros(len(spots))
    for (column, _), nodes in cells.items():
        x[nodes] = middles[column]
    below, above = _neighbours(spots, links)
    both = [low + high for low, high in zip(below, above, strict=True)]
    for (column, _), nodes in sorted(cells.items()):
        wanted = _means(x, nodes, both)
        order = sorted(range(len(nodes)), key=lambda n: (wanted[n], spots[nodes[n]].hint, nodes[n]))
        for place, n in enumerate(order):
            x[nodes[n]] = middles[column] + step * (place - (len(nodes) - 1) / 2)
    return x, {column: middle for column, middle in middles.items() if column != last}


# --- edges -------------------------------------------------------------------------------------------------------


def _routes(
    x: _Floats, y: _Floats, spots: Sequence[Spot], links: Sequence[Link], ports: Sequence[float | int], sizes: Sizes
) -> _Floats:
    """Both ends of each edge and its bend, so that strong edges pass few boxes of others: [edge, 5]."""
    curves = np.zeros((len(links), 5))
    for n, ((source, target, _), port) in enumerate(zip(links, ports, strict=True)):
        if spots[source].band == spots[target].band:  # from side to side
            out = (1 if x[source] <= x[target] else -1) * sizes.width / 2
            curves[n, :4] = x[source] + out, y[source], x[target] - out, y[target]
        else:
            up = sizes.height / 2
            curves[n, :4] = x[source], y[source] - up, x[target] + 0.3 * port * sizes.width, y[target] + up
    if not links:
        return curves
    spine = np.array([spots[s].spine and spots[t].spine for s, t, _ in links])
    tall = np.abs(curves[:, 1] - curves[:, 3]) / sizes.rise
    curves[spine, 4] = np.minimum(sizes.width * 0.8 + 7 * tall[spine], 3.2 * sizes.width)
    between = np.array([spots[s].band != spots[t].band for s, t, _ in links]) & ~spine
    strong = sorted(np.flatnonzero(between).tolist(), key=lambda n: (-abs(links[n][2]), n))[:_MOST_ROUTED]
    fewest = np.full(len(links), len(spots) + 1)
    for bend in _BENDS:
        left = [n for n in strong if fewest[n] > 0]
        if not left:
            break
        passed = _passed(curves[left], bend, x, y, [links[n] for n in left], sizes)
        better = [(n, hits) for n, hits in zip(left, passed.tolist(), strict=True) if hits < fewest[n]]
        for n, hits in better:
            fewest[n], curves[n, 4] = hits, bend
    return curves


def _passed(
    curves: _Floats, bend: float, x: _Floats, y: _Floats, links: Sequence[Link], sizes: Sizes
) -> NDArray[np.int64]:
    """How many boxes, other than those at its ends, each edge passes through."""
    t = _SAMPLES
    # Of a Bézier curve whose inner points are above its ends
    begin, end = (1 - t) ** 2 * (1 + 2 * t), t**2 * (3 - 2 * t)
    across = curves[:, 0:1] * begin + curves[:, 2:3] * end + bend * 3 * t * (1 - t)
    half = 3 * t * (1 - t) * (curves[:, 1:2] + curves[:, 3:4]) / 2
    down = curves[:, 1:2] * (1 - t) ** 3 + half + curves[:, 3:4] * t**3
    beside, level = np.abs(across[..., None] - x), np.abs(down[..., None] - y)
    inside = (beside < sizes.width / 2 + 2) & (level < sizes.height / 2 + 1)
    boxes: NDArray[np.bool_] = np.any(inside, axis=1)
    rows = np.arange(len(links))
    boxes[rows, [source for source, _, _ in links]] = False
    boxes[rows, [target for _, target, _ in links]] = False
    passed: NDArray[np.int64] = boxes.sum(1)
    return passed


def _rounded(values: _Floats) -> tuple[float, ...]:
    return tuple(values.round(1).tolist())


__all__ = ["Layout", "Link", "Sizes", "Spot", "crossings", "layered", "spread"]
