"""Random circuits of a given size in which every edge lies on a path from `embed` to `logits`: what chance gives."""

from __future__ import annotations

from random import Random

import torch
from jaxtyping import Bool
from torch import Tensor

from interp_toolkit.circuits.graph import checked, connected
from interp_toolkit.circuits.graph_shape import Graph
from interp_toolkit.errors import CircuitError

_TRIES = 200
_AGAIN = 20


def random_circuit(graph: Graph, n: int, *, seed: int | Random = 0) -> Bool[Tensor, "source dest"]:
    """A random circuit of n edges, connected as far as that can be.

    Random paths through edges drawn with equal chances are added until the next one does not fit or every node is on
    one; then single edges between nodes on these paths, with equal chances. Only where a few edges make no path are
    some left that are not connected.

    Not all connected circuits are equally likely, and neither are all edges: those that many paths share, as from the
    last MLP to the logits, are in more of these circuits than of all.

    Args:
        graph: of the model.
        n: how many edges.
        seed: of the drawing, or a generator, which moves on.

    Raises:
        CircuitError: for a number of edges that the graph does not have.

    Example:
        >>> graph = Graph(num_layers=3, num_heads=2, num_groups=1, parallel=False)
        >>> mask = random_circuit(graph, 12, seed=3)
        >>> int(mask.sum()), int(connected(graph, mask).sum())
        (12, 12)
    """
    if not 0 <= n <= graph.num_edges:
        raise CircuitError(f"{n:,} edges cannot be chosen: the graph has {graph.num_edges:,}")
    generator = Random(seed) if isinstance(seed, int) else seed
    mask = _drawn(graph, n, generator)
    for _ in range(_AGAIN):
        if bool((connected(graph, mask) == mask).all()):
            break
        mask = _drawn(graph, n, generator)  # an edge to fill up with led nowhere
    return mask


def _drawn(graph: Graph, n: int, generator: Random) -> Bool[Tensor, "source dest"]:
    """A random circuit that may have an edge that is not connected."""
    places = graph.valid.nonzero()
    chosen: set[tuple[int, int]] = set()
    nodes = {0}
    failed = 0
    while len(chosen) < n and failed < _TRIES and len(nodes) < graph.num_sources:
        source, dest = places[generator.randrange(len(places))].tolist()
        path = random_path(graph, generator, through=(source, dest))
        if len(chosen | path) > n:
            failed += 1
            # A longer path that does not fit says little of a larger circuit: what is left is filled edge by edge.
            if chosen and n - len(chosen) < len(path):
                break
            continue
        chosen |= path
        nodes |= {row for row, _ in path}
    mask = torch.zeros_like(graph.valid)
    if chosen:
        rows, columns = zip(*chosen, strict=True)
        mask[list(rows), list(columns)] = True
    mask = _filled(graph, mask, _between(graph, nodes), n, generator)
    return _filled(graph, mask, graph.valid, n, generator)


def random_path(graph: Graph, generator: Random, *, through: tuple[int, int] | None = None) -> set[tuple[int, int]]:
    """The edges of a random path from `embed` to `logits`.

    Each step goes along one of the edges out of (back from the start: into) the node, with equal chances.

    Args:
        graph: of the model.
        generator: draws the steps.
        through: an edge that lies on it; from `embed` on if it is not given.
    """
    if through is None:
        through = (0, generator.randrange(graph.num_dests))
    path = {through}
    source, dest = through
    while source != 0:
        inner = generator.choice(graph.dests_of_source(source))
        source = generator.randrange(int(graph.incoming[inner]))
        path.add((source, inner))
    while dest != graph.num_dests - 1:
        node = generator.choice(graph.sources_of_dest(dest))
        first = int(torch.searchsorted(graph.incoming, node, right=True))
        dest = generator.randrange(first, graph.num_dests)
        path.add((node, dest))
    return path


def inflated(
    graph: Graph, mask: Bool[Tensor, "source dest"], generator: Random
) -> tuple[Bool[Tensor, "source dest"], Bool[Tensor, "source dest"]] | None:
    """A circuit with a random path more, and the same without one random edge of what was added.

    None where every edge is in the circuit already.
    """
    outside = (graph.valid & ~checked(graph, mask)).nonzero()
    if not len(outside):
        return None
    path: set[tuple[int, int]] = set()
    for _ in range(_TRIES):
        path = {(s, d) for s, d in random_path(graph, generator) if not bool(mask[s, d])}
        if path:
            break
    if not path:
        source, dest = outside[generator.randrange(len(outside))].tolist()
        path = {edge for edge in random_path(graph, generator, through=(source, dest)) if not bool(mask[edge])}
    larger = mask.clone()
    for edge in path:
        larger[edge] = True
    fewer = larger.clone()
    fewer[generator.choice(sorted(path))] = False
    return larger, fewer


def _between(graph: Graph, nodes: set[int]) -> Bool[Tensor, "source dest"]:
    """All edges between some nodes, and to the logits."""
    rows = torch.zeros(graph.num_sources, dtype=torch.bool)
    columns = torch.zeros(graph.num_dests, dtype=torch.bool)
    columns[-1] = True
    for node in nodes:
        rows[node] = True
        columns[list(graph.dests_of_source(node))] = True
    return graph.valid & rows[:, None] & columns


def _filled(
    graph: Graph, mask: Bool[Tensor, "source dest"], allowed: Bool[Tensor, "source dest"], n: int, generator: Random
) -> Bool[Tensor, "source dest"]:
    """The mask with random edges of the allowed ones, up to n in all."""
    missing = n - int(mask.sum())
    if missing <= 0:
        return mask
    places = (allowed & ~mask).nonzero()
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(generator.getrandbits(63)))
    rows, columns = places[order[:missing]].unbind(1)
    found = mask.clone()
    found[rows, columns] = True
    return found


__all__ = ["connected", "inflated", "random_circuit", "random_path"]
