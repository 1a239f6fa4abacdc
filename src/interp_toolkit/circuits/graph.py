"""The computational graph of a model, which of its edges lie on a path, and how edges are chosen by their scores."""

from __future__ import annotations

import heapq
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from interp_toolkit.circuits.graph_shape import Graph, short
from interp_toolkit.errors import CircuitError
from interp_toolkit.model.entrances import entrances_of
from interp_toolkit.model.layout import Layout
from interp_toolkit.model.sites import Site
from interp_toolkit.model.verify import verified

By = Literal["absolute", "signed"]
"""How edges are ranked: by the size of their scores, or by the scores themselves (harmful edges last)."""
_SELF_MADE = ("mean", "positional", "zero")  # ablations that are no run of the model


def graph_of(model: nn.Module, layout: Layout | None = None) -> Graph:
    """The computational graph of a model.

    Args:
        model: a causal language model.
        layout: for a model class of your own.

    Raises:
        UnsupportedModelError: when the model is not a decoder that this library can look into.
        UnavailableSiteError: when heads cannot be told apart by what they read.
        CircuitError: when its layers are not alike, or their keys cannot be read.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=11)).eval()
        >>> graph_of(model)
        Graph(num_layers=2, num_heads=2, num_groups=2, parallel=False)
    """
    wiring = verified(model, layout)
    known = wiring.layout
    for layer in range(known.num_layers):
        for component in ("z", "q", "k", "v"):
            reason = wiring.refused.get(Site(component, layer))
            if reason is not None:
                raise CircuitError(
                    f"this {known.model_type} model has no graph of heads: {component}.{layer} is not available: "
                    f"{reason}"
                )
    made = [columns for entrance in entrances_of(wiring) for part in entrance.projections for columns in [part.columns]]
    groups = sorted({len(columns[name]) for columns in made for name in ("k", "v") if name in columns})
    if len(groups) > 1:
        raise CircuitError(
            f"the layers of this {known.model_type} model, or their keys and values, have different numbers of "
            f"key/value groups, {groups}: a graph needs layers that are alike"
        )
    return Graph(num_layers=known.num_layers, num_heads=known.num_heads, num_groups=groups[0], parallel=known.parallel)


# --- masks ------------------------------------------------------------------------------------------------------


def checked(graph: Graph, mask: Bool[Tensor, "source dest"]) -> Bool[Tensor, "source dest"]:
    """A mask, if it fits the graph.

    Raises:
        CircuitError: when it has another shape, or holds what is no edge.
    """
    wanted = (graph.num_sources, graph.num_dests)
    if tuple(mask.shape) != wanted or mask.dtype != torch.bool:
        raise CircuitError(
            f"a mask of this graph is boolean and of shape {wanted} (source, destination), not {mask.dtype} and "
            f"{tuple(mask.shape)}"
        )
    wrong = mask & ~graph.valid.to(mask.device)
    if bool(wrong.any()):
        source, dest = (int(n) for n in wrong.nonzero()[0])
        raise CircuitError(
            f"the mask holds {int(wrong.sum()):,} places where there is no edge, such as "
            f"{graph.edge_name(source, dest)}: take it & graph.valid"
        )
    return mask


def connected(
    graph: Graph, mask: Bool[Tensor, "source dest"], *, ablation: str = "corrupt"
) -> Bool[Tensor, "source dest"]:
    """The edges of a mask that lie on some path from `embed` to `logits`; for means and zeros, on one to `logits`.

    A node is reached if one of its inputs is, and matters if one of its outgoing edges does; the keys and values of a
    group are inputs of all its heads.

    A node that nothing reaches reads the ablated run. If that is the corrupt run, it writes there what stands for it
    anyway, and edges out of it carry nothing. If sources are set to means or zeros, it computes something from these
    that is not its own mean, or zero: edges out of it carry the difference, and stay.

    Args:
        graph: of the model.
        mask: which edges there are.
        ablation: what edges outside carry: `"corrupt"` (also for what is not known), `"mean"`, `"positional"` or
            `"zero"`.

    Returns:
        A new mask.

    Raises:
        CircuitError: when the mask does not fit.

    Example:
        >>> graph = Graph(num_layers=2, num_heads=2, num_groups=2, parallel=False)
        >>> mask = torch.zeros_like(graph.valid)
        >>> for name in ("embed->L0H1.q", "L0H1->L1MLP", "L1MLP->logits", "L0H0->logits", "embed->L1H0.v"):
        ...     mask[graph.edge_of(name)] = True
        >>> [graph.edge_name(int(s), int(d)) for s, d in connected(graph, mask).nonzero()]
        ['embed->L0H1.q', 'L0H1->L1MLP', 'L1MLP->logits']
    """
    checked(graph, mask)
    reached = torch.ones(graph.num_sources, dtype=torch.bool, device=mask.device)
    if ablation not in _SELF_MADE:
        reached = _reached(graph, mask)
    matters = torch.zeros(graph.num_dests, dtype=torch.bool, device=mask.device)
    matters[-1] = True
    for layer in reversed(range(graph.num_layers)):
        heads, mlp, dests, own = _places(graph, layer)
        matters[own] = (mask[mlp] & matters).any()
        used = (mask[heads] & matters).any(1)
        shared = used.view(graph.num_groups, -1).any(1)
        matters[dests] = torch.cat([used, shared, shared])
    return mask & reached[:, None] & matters


def path_of(ablation: str) -> str:
    """On what path an edge has to lie to be `connected`, in words.

    Example:
        >>> path_of("mean"), path_of("corrupt")
        ('a path to logits', 'a path from embed to logits')
    """
    return "a path to logits" if ablation in _SELF_MADE else "a path from embed to logits"


def _reached(graph: Graph, mask: Bool[Tensor, "source dest"]) -> Bool[Tensor, " source"]:
    """The sources to which a path leads from `embed`."""
    reached = torch.zeros(graph.num_sources, dtype=torch.bool, device=mask.device)
    reached[0] = True
    for layer in range(graph.num_layers):
        heads, mlp, dests, own = _places(graph, layer)
        reached[heads] = _head_inputs(graph, (mask[: heads.start, dests] & reached[: heads.start, None]).any(0))
        reached[mlp] = (mask[:mlp, own] & reached[:mlp]).any()
    return reached


def _places(graph: Graph, layer: int) -> tuple[slice, int, slice, int]:
    """Of a layer: its heads' and its MLP's rows, its attention inputs' and its MLP's columns."""
    row, column = 1 + layer * graph.sources_per_layer, layer * graph.dests_per_layer
    last = column + graph.dests_per_layer - 1
    return slice(row, row + graph.num_heads), row + graph.num_heads, slice(column, last), last


def _head_inputs(graph: Graph, inputs: Bool[Tensor, " dest"]) -> Bool[Tensor, " head"]:
    """Which heads have one of these inputs of their layer: queries of heads, keys and values of groups."""
    queries, keys, values = inputs.split([graph.num_heads, graph.num_groups, graph.num_groups])
    found: Tensor = queries | (keys | values).repeat_interleave(graph.heads_per_group)
    return found


# --- choosing edges ---------------------------------------------------------------------------------------------


def top_edges(
    graph: Graph, scores: Float[Tensor, "source dest"], n: int, *, by: By = "absolute"
) -> Bool[Tensor, "source dest"]:
    """The n best edges of all, whether they are connected or not.

    Args:
        graph: of the model.
        scores: of every edge; what stands where there is none is not looked at.
        n: how many.
        by: `"absolute"` takes the largest |score|, `"signed"` the largest score. Of edges with one score, the one from
            the earlier source goes first, then the one to the earlier destination.

    Raises:
        CircuitError: for a number of edges that the graph does not have, or scores that are not numbers.

    Example:
        >>> graph = Graph(num_layers=1, num_heads=1, num_groups=1, parallel=False)
        >>> scores = torch.zeros_like(graph.valid, dtype=torch.float)
        >>> scores[graph.edge_of("embed->logits")], scores[graph.edge_of("L0MLP->logits")] = -3.0, 1.0
        >>> [graph.edge_name(int(s), int(d)) for s, d in top_edges(graph, scores, 1).nonzero()]
        ['embed->logits']
        >>> [graph.edge_name(int(s), int(d)) for s, d in top_edges(graph, scores, 1, by="signed").nonzero()]
        ['L0MLP->logits']
    """
    keys = ranked(graph, scores, by)
    _check_number(graph, n)
    valid = graph.valid.to(keys.device)
    chosen = torch.zeros(graph.num_edges, dtype=torch.bool, device=keys.device)
    chosen[keys[valid].argsort(descending=True, stable=True)[:n]] = True
    mask = torch.zeros_like(valid)
    mask[valid] = chosen
    return mask


def greedy_edges(
    graph: Graph, scores: Float[Tensor, "source dest"], n: int, *, by: By = "absolute"
) -> Bool[Tensor, "source dest"]:
    """A circuit of n edges grown from the logits: always the best edge into a node that is already there.

    Every edge has a path to the logits, but not all need have one from `embed`: see `connected`.

    Args:
        graph: of the model.
        scores: of every edge.
        n: how many edges.
        by: as for `top_edges`, also among equals.

    Raises:
        CircuitError: for a number of edges that the graph does not have, or scores that are not numbers.

    Example:
        >>> graph = Graph(num_layers=1, num_heads=1, num_groups=1, parallel=False)
        >>> scores = torch.zeros_like(graph.valid, dtype=torch.float)
        >>> for name, score in (("embed->L0MLP", 9.0), ("embed->logits", 1.0), ("L0MLP->logits", 2.0)):
        ...     scores[graph.edge_of(name)] = score
        >>> [graph.edge_name(int(s), int(d)) for s, d in greedy_edges(graph, scores, 2).nonzero()]
        ['embed->L0MLP', 'L0MLP->logits']
    """
    keys = ranked(graph, scores, by)
    _check_number(graph, n)
    keys = keys.T.contiguous().cpu()
    # Each open destination has its sources from best to worst, and in the heap only the best that is left.
    columns: dict[int, tuple[list[int], list[float]]] = {}
    heap: list[tuple[float, int, int, int]] = []
    chosen: list[tuple[int, int]] = []

    def push(dest: int, place: int) -> None:
        sources, costs = columns[dest]
        if place < len(sources):
            heapq.heappush(heap, (costs[place], sources[place], dest, place))

    def enter(dest: int) -> None:
        if dest not in columns:
            order = keys[dest, : int(graph.incoming[dest])].sort(descending=True, stable=True)
            columns[dest] = order.indices.tolist(), (-order.values).tolist()
            push(dest, 0)

    enter(graph.num_dests - 1)
    while len(chosen) < n:
        _, source, dest, place = heapq.heappop(heap)
        chosen.append((source, dest))
        push(dest, place + 1)
        for other in graph.dests_of_source(source):
            enter(other)
    mask = torch.zeros_like(graph.valid)
    if chosen:
        rows, places = torch.tensor(chosen).unbind(1)
        mask[rows, places] = True
    return mask.to(scores.device)


def random_edges(graph: Graph, n: int, *, seed: int | torch.Generator = 0) -> Bool[Tensor, "source dest"]:
    """A number of edges, drawn from all with equal chances.

    Args:
        graph: of the model.
        n: how many.
        seed: of the drawing, or a generator of the CPU, which moves on.

    Raises:
        CircuitError: for a number of edges that the graph does not have.

    Example:
        >>> graph = Graph(num_layers=2, num_heads=2, num_groups=1, parallel=True)
        >>> int(random_edges(graph, 5, seed=1).sum())
        5
    """
    _check_number(graph, n)
    generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
    chosen = torch.zeros(graph.num_edges, dtype=torch.bool)
    chosen[torch.randperm(graph.num_edges, generator=generator)[:n]] = True
    mask = torch.zeros_like(graph.valid)
    mask[graph.valid] = chosen
    return mask


def ranked(graph: Graph, scores: Float[Tensor, "source dest"], by: By) -> Float[Tensor, "source dest"]:
    """By what edges are ranked, larger first.

    Raises:
        CircuitError: for scores that do not fit or are not finite, and another way to rank.
    """
    wanted = (graph.num_sources, graph.num_dests)
    if tuple(scores.shape) != wanted:
        raise CircuitError(f"scores of this graph have shape {wanted} (source, destination), not {tuple(scores.shape)}")
    if by not in ("absolute", "signed"):
        raise CircuitError(f"edges are ranked by 'absolute' or 'signed' scores, not by {short(str(by))}")
    wrong = ~scores.isfinite() & graph.valid.to(scores.device)
    if bool(wrong.any()):
        source, dest = (int(n) for n in wrong.nonzero()[0])
        raise CircuitError(
            f"{int(wrong.sum()):,} of {graph.num_edges:,} edges have a score that is not a finite number, such as "
            f"{graph.edge_name(source, dest)} with {float(scores[source, dest])}"
        )
    return scores.detach().abs() if by == "absolute" else scores.detach()


def _check_number(graph: Graph, n: int) -> None:
    if not 0 <= n <= graph.num_edges:
        raise CircuitError(f"{n:,} edges cannot be chosen: the graph has {graph.num_edges:,}")


__all__ = [
    "By",
    "Graph",
    "checked",
    "connected",
    "graph_of",
    "greedy_edges",
    "path_of",
    "random_edges",
    "ranked",
    "top_edges",
]
