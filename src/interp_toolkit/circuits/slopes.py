"""Gradients at everything that reads the residual stream, and what they say about edges.

A gradient run keeps the slopes at the outputs of the query, key and value projections and at what MLPs read. For a
destination v the slope at its residual stream is `J_normᵀ W[v]ᵀ g_v`, made for a few tokens at a time; with what each
source writes it gives the score of every edge at once. Storage is that of the residual stream, not of all heads' shares
in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp_toolkit.circuits.ablated import Ablated
from interp_toolkit.circuits.norms import through_norm
from interp_toolkit.circuits.stream import Stream
from interp_toolkit.circuits.subgraph import CircuitRuns
from interp_toolkit.errors import MetricError
from interp_toolkit.model.forward import execute
from interp_toolkit.model.prefix import prefix_cache
from interp_toolkit.model.relevance import RULES, Rules
from interp_toolkit.model.session import logits_of
from interp_toolkit.model.tokens import Tokens
from interp_toolkit.model.wish import Change, Key, Place, Read, StandIn, Wish

_TOKENS = 64  # whose shares of every source and destination are held at once


@dataclass(kw_only=True, eq=False)
class Point:
    """A gradient run: slopes of the metric at what is read, and what was written.

    Attributes:
        weight: of this run in an average.
        values: the metric of each pair, larger for cleaner.
        projections: for each layer and projection the slope at its output.
        before: the residual stream in front of each block.
        mlp: for each layer the slope at the normed stream that its MLP reads.
        middle: the residual stream that it is normed from.
        last: the slope at the residual stream behind the last block.
        z: what heads gave.
        written: what MLPs wrote.
        begin: the first layer that was run; lists have nothing in front of it.
    """

    weight: float = 1.0
    values: Tensor = field(default_factory=lambda: torch.empty(0))
    projections: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    before: dict[int, Tensor] = field(default_factory=dict)
    mlp: dict[int, Tensor] = field(default_factory=dict)
    middle: dict[int, Tensor] = field(default_factory=dict)
    last: Tensor = field(default_factory=lambda: torch.empty(0))
    z: dict[int, Tensor] = field(default_factory=dict)
    written: dict[int, Tensor] = field(default_factory=dict)
    begin: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """What some sources write in one run beside another: what edges carry.

    Attributes:
        embed: of the embedding, or None where it does not matter.
        z: of heads, before the output projection: in the one run and in the other.
        mlp: of MLPs, the difference itself.
    """

    embed: Float[Tensor, "pair pos d_model"] | None
    z: Mapping[int, tuple[Tensor, Tensor]]
    mlp: Mapping[int, Tensor]


class GradientRun:
    """One forward and one backward pass over some pairs.

    Args:
        runs: the pairs, their metric and the model.
        ablated: the ablated runs of these pairs.
        rules: how gradients are made.
    """

    def __init__(self, runs: CircuitRuns, ablated: Ablated, rules: Rules = RULES["gradient"]) -> None:
        self.runs, self.ablated, self.rules = runs, ablated, rules
        self.stream: Stream = runs.stream
        self.point = Point()
        self._graph: dict[tuple[str, int, str], Tensor] = {}

    def at(
        self,
        embed: Float[Tensor, "pair pos d_model"],
        *,
        weight: float = 1.0,
        set_to: Mapping[Key, Tensor] | None = None,
        enter: tuple[int, Tensor] | None = None,
    ) -> Point:
        """Run with an embedding of one's own.

        Args:
            embed: what enters the first block, from the first position that differs on.
            weight: kept with the point.
            set_to: activations of heads or MLPs that are set.
            enter: a layer and the residual stream in front of it, to begin there.

        Raises:
            MetricError: for a metric without a gradient.
        """
        self.point = Point(weight=weight, begin=0 if enter is None else enter[0])
        entering = {} if enter is None or not enter[0] else {enter[0]: enter[1]}
        with self.rules.live(self.stream.wiring):
            values = self._values(self._forward(embed, set_to or {}, entering, grad=True))
            self._backward(values)
        self.point.values = values.detach()
        return self.point

    def clean_run(self) -> Point:
        """The clean run, without slopes: what was written, and the residual stream."""
        self.point = Point()
        self.point.values = self._values(self._forward(self.ablated.clean_embed, {}, {}, grad=False))
        self._graph = {}
        return self.point

    def _forward(
        self, embed: Tensor, set_to: Mapping[Key, Tensor], enter: Mapping[int, Tensor], *, grad: bool
    ) -> Float[Tensor, "pair vocab"]:
        """The last logits."""
        start = 0 if self.ablated.prefix is None else self.ablated.first
        ids = self.ablated.clean[:, start:]
        cache = None
        if self.ablated.prefix is not None:
            cache = prefix_cache(self.ablated.prefix, torch.arange(len(ids), device=embed.device), start)
        wish = Wish(
            reads=frozenset(),
            grad=grad,
            changes=self._changes(embed, set_to),
            inputs=self._inputs() if grad else {},
            stand_ins=self._stand_ins() if grad else {},
            enter=enter,
            logits_at=torch.full((1, 1), ids.shape[1] - 1),
        )
        _, output = execute(self.stream.wiring, Tokens(ids=ids, mask=torch.ones_like(ids)), wish, cache=cache)
        return logits_of(output)[:, -1]

    def _values(self, logits: Float[Tensor, "pair vocab"]) -> Float[Tensor, " pair"]:
        found = []
        metric = self.runs.metric
        for row, number in enumerate(self.ablated.numbers):
            question = self.runs.questions[number]
            needed = metric.needs(question)
            part = logits[row : row + 1] if needed is None else logits[row : row + 1, list(needed)]
            found.append(metric.measure(part, question)[0])
        return torch.stack(found) * (1.0 if metric.larger_is_cleaner else -1.0)

    def _gradients(self, values: Tensor, where: Sequence[Tensor]) -> Sequence[Tensor | None]:
        """The slopes of the metric at some tensors of its graph, each pair's own."""
        if not values.requires_grad:
            raise MetricError(
                f"{self.runs.metric.name} has no gradient: use a metric such as 'logit_diff', or method='exact'"
            )
        found: Sequence[Tensor | None] = torch.autograd.grad(values.sum(), where, allow_unused=True)
        return found

    def _backward(self, values: Tensor) -> None:
        keys = list(self._graph)
        slopes = self._gradients(values, [self._graph[key] for key in keys])
        for key, found in zip(keys, slopes, strict=True):
            kind, layer, path = key
            slope: Tensor = torch.zeros_like(self._graph[key]) if found is None else found
            if kind == "projection":
                self.point.projections.setdefault(layer, {})[path] = slope
            elif kind == "mlp":
                known = self.point.mlp.get(layer)
                self.point.mlp[layer] = slope if known is None else known + slope
            else:
                self.point.last = slope
        self._graph = {}

    # --- what a session asks for -------------------------------------------------------------------------------

    def _changes(self, embed: Tensor, set_to: Mapping[Key, Tensor]) -> dict[Key, Change]:
        point, last = self.point, self.stream.layers - 1

        def enter(x: Tensor, columns: slice) -> Tensor:
            del columns
            return embed.to(x.dtype).detach().requires_grad_()

        def to_logits(x: Tensor, columns: slice) -> Tensor:
            del columns
            self._graph["last", last, ""] = seen = x.view_as(x)
            return seen

        found: dict[Key, Change] = {("resid_post", last): to_logits}
        if point.begin == 0:
            found["embed", None] = enter
        for layer in range(point.begin, self.stream.layers):
            found["resid_pre", layer] = _keep(point.before, layer)
            if not self.stream.graph.parallel:
                found["resid_mid", layer] = _keep(point.middle, layer)
            found["z", layer] = _keep(point.z, layer, set_to.get(("z", layer)))
            found["mlp_out", layer] = _keep(point.written, layer, set_to.get(("mlp_out", layer)))
        if self.stream.graph.parallel:
            point.middle = point.before
        return found

    def _inputs(self) -> dict[Place, Read]:
        return {
            (layer, path): self._mlp(layer, path)
            for layer in range(self.point.begin, self.stream.layers)
            for path in self.stream.entrances[layer].mlp
        }

    def _mlp(self, layer: int, path: str) -> Read:
        def read(raw: Tensor) -> Tensor:
            seen = raw.view_as(raw)
            self._graph["mlp", layer, path] = seen
            return seen

        return read

    def _stand_ins(self) -> dict[Place, StandIn]:
        return {
            (layer, projection.path): self._projection(layer, projection.path)
            for layer in range(self.point.begin, self.stream.layers)
            for projection in self.stream.entrances[layer].projections
        }

    def _projection(self, layer: int, path: str) -> StandIn:
        def stand_in(x: Tensor, inner: object) -> Tensor:
            out: Tensor = inner(x)  # type: ignore[operator]
            self._graph["projection", layer, path] = out
            return out

        return stand_in


def _keep(where: dict[int, Tensor], layer: int, value: Tensor | None = None) -> Change:
    """Keep what comes by, or set it first."""

    def see(x: Tensor, columns: slice) -> Tensor:
        del columns
        new = x if value is None else value.to(x.dtype).detach().requires_grad_()
        where[layer] = new.detach().clone()
        return new

    return see


def quadrature(steps: int) -> list[tuple[float, float]]:
    """Nodes and weights of Gauss-Legendre quadrature on the line from 0 to 1.

    Example:
        >>> [(round(share, 3), round(weight, 3)) for share, weight in quadrature(2)]
        [(0.211, 0.5), (0.789, 0.5)]
    """
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    return [(float(x + 1) / 2, float(w) / 2) for x, w in zip(nodes, weights, strict=True)]


# --- edges -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def edge_scores(
    stream: Stream,
    points: Sequence[Point],
    source: Source,
    *,
    rules: Rules = RULES["gradient"],
    by_position: bool = False,
) -> Float[Tensor, "pair *pos source dest"]:
    """What each edge carries times the slope at its end, the slopes averaged over some points.

    Args:
        stream: the model.
        points: gradient runs, with their weights.
        source: what sources write.
        rules: how the norms are differentiated.
        by_position: keep positions apart instead of summing over them.
    """
    pairs, length = points[0].last.shape[:2]
    graph = stream.graph
    shape = (pairs, *((length,) if by_position else ()), graph.num_sources, graph.num_dests)
    found = torch.zeros(shape, dtype=stream.dtype)
    together = max(1, _TOKENS // length)
    for begin in range(0, pairs, together):
        rows = slice(begin, min(pairs, begin + together))
        for at in range(0, length, _TOKENS):
            columns = slice(at, min(length, at + _TOKENS))
            carried = _carried(stream, source, rows, columns, points[0].last)
            for block in _blocks(stream, points[0].begin):
                places, read = _read(stream, points, block, rows, columns, rules)
                sources = int(graph.incoming[places.stop - 1])
                part = carried[:, :sources]
                if by_position:
                    product = torch.einsum("pstd,pvtd->ptsv", part, read)
                    found[rows, columns, :sources, places] += product.to(found)
                else:
                    product = torch.bmm(part.flatten(2), read.flatten(2).transpose(1, 2))
                    found[rows, :sources, places] += product.to(found)
    return found * graph.valid


def _carried(
    stream: Stream, source: Source, rows: slice, columns: slice, like: Tensor
) -> Float[Tensor, "pair source pos d_model"]:
    """What each source writes in the one run beside the other."""
    graph = stream.graph
    pairs, length, width = like[rows, columns].shape
    found = torch.zeros(pairs, graph.num_sources, length, width, dtype=stream.dtype, device=like.device)
    if source.embed is not None:
        found[:, 0] = source.embed[rows, columns]
    for layer, (here, there) in source.z.items():
        first = 1 + layer * (graph.num_heads + 1)
        found[:, first : first + graph.num_heads] = stream.write(layer, here[rows, columns], there[rows, columns])
    for layer, difference in source.mlp.items():
        found[:, (layer + 1) * (graph.num_heads + 1)] = difference[rows, columns]
    return found


def _blocks(stream: Stream, begin: int) -> list[range]:
    """Layers whose destinations are worked on together; the logits come with the last ones."""
    return [range(n, min(n + 6, stream.layers)) for n in range(begin, stream.layers, 6)]


def _read(
    stream: Stream, points: Sequence[Point], layers: range, rows: slice, columns: slice, rules: Rules
) -> tuple[slice, Float[Tensor, "pair dest pos d_model"]]:
    """The slopes at the residual stream that each destination of some layers reads, and which these are."""
    each = stream.graph.dests_per_layer
    parts = []
    for layer in layers:
        heads, mlp = (_summed(points, f, stream, layer, rows, columns, rules) for f in (_heads_slope, _mlp_slope))
        parts += [heads, mlp]
    last = stream.layers - 1
    if last in layers:
        parts.append(torch.stack([p.last[rows, columns].to(stream.dtype) * p.weight for p in points]).sum(0)[None])
    stop = layers.stop * each + (1 if last in layers else 0)
    return slice(layers.start * each, stop), torch.cat(parts).transpose(0, 1)


def _summed(
    points: Sequence[Point],
    slope_of: Callable[[Stream, Point, int, slice, slice, Rules], Tensor],
    stream: Stream,
    layer: int,
    rows: slice,
    columns: slice,
    rules: Rules,
) -> Float[Tensor, "dest pair pos d_model"]:
    total = slope_of(stream, points[0], layer, rows, columns, rules)
    for point in points[1:]:
        total += slope_of(stream, point, layer, rows, columns, rules)
    return total


def _heads_slope(
    stream: Stream, point: Point, layer: int, rows: slice, columns: slice, rules: Rules
) -> Float[Tensor, "dest pair pos d_model"]:
    slopes = {
        path: slope[rows, columns].to(stream.dtype) * point.weight for path, slope in point.projections[layer].items()
    }
    pairs, length = next(iter(slopes.values())).shape[:2]
    pulled = stream.pull(layer, {path: slope.flatten(0, 1) for path, slope in slopes.items()})
    x = point.before[layer][rows, columns]
    return through_norm(stream.attention_norm(layer), x, pulled.unflatten(1, (pairs, length)), rules)


def _mlp_slope(
    stream: Stream, point: Point, layer: int, rows: slice, columns: slice, rules: Rules
) -> Float[Tensor, "one pair pos d_model"]:
    slope = point.mlp[layer].view_as(point.middle[layer])[rows, columns].to(stream.dtype) * point.weight
    return through_norm(stream.mlp_norm(layer), point.middle[layer][rows, columns], slope[None], rules)


__all__ = ["GradientRun", "Point", "Source", "edge_scores", "quadrature"]
