"""How well a ranking of edges holds: over prompts drawn again, and against a circuit that is known."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp_toolkit.circuits.circuit import Circuit, circuit_of
from interp_toolkit.circuits.edges import Edge
from interp_toolkit.circuits.graph import By, checked, connected, greedy_edges, ranked, top_edges
from interp_toolkit.circuits.graph_shape import Graph
from interp_toolkit.circuits.judging import FEW, warn
from interp_toolkit.circuits.scores import EdgeScores
from interp_toolkit.errors import CircuitError

if TYPE_CHECKING:
    from interp_toolkit.visualization.lines import LineChart

_WHOLE, _EVEN = 1.0, 0.5
_CORE = 0.9  # of the draws


@dataclass(frozen=True, kw_only=True, eq=False)
class Stability:
    """How alike circuits from prompts drawn again are.

    Attributes:
        graph: of the model.
        edges: how many were chosen for each circuit.
        jaccard: edges of both over edges of either, for each two draws.
        to_circuit: the same of each draw and the circuit of all prompts.
        frequency: in what share of the draws each edge was chosen.
        noise: the same as `jaccard` with the sign of each score of each prompt drawn at random: what two draws share
            where no edge has an effect that prompts agree on, but scores are as large as these.
        noise_frequency: in what share of such draws each edge was chosen.
        prompts: how many prompts were drawn each time.
    """

    graph: Graph
    edges: int
    jaccard: Float[Tensor, " pair"]
    to_circuit: Float[Tensor, " draw"]
    frequency: Float[Tensor, "source dest"]
    noise: Float[Tensor, " pair"]
    noise_frequency: Float[Tensor, "source dest"]
    prompts: int

    @property
    def mean(self) -> float:
        """The mean Jaccard index of two draws: 1 if every draw of prompts gives the same circuit."""
        return float(self.jaccard.mean())

    @property
    def null(self) -> float:
        """The mean Jaccard index of two draws where no edge has an effect: what `mean` is to be seen beside."""
        return float(self.noise.mean())

    def core(self, share: float = _CORE) -> Bool[Tensor, "source dest"]:
        """The edges that were chosen in at least a share of the draws."""
        return (self.frequency >= share) & self.graph.valid

    def summary(self) -> str:
        """Stability in words."""
        low, high = (float(self.jaccard.quantile(q)) for q in (0.05, 0.95))
        core, by_noise = (int((x >= _CORE)[self.graph.valid].sum()) for x in (self.frequency, self.noise_frequency))
        return (
            f"Circuits of {self.edges:,} edges from {self.prompts} prompts drawn again, {len(self.to_circuit)} times: "
            f"two share {self.mean:.1%} of their edges (Jaccard; 90% of pairs from {low:.1%} to {high:.1%}); with "
            f"scores of random sign, so that no edge has an effect, {self.null:.1%}. {core:,} edges are in at least "
            f"{_CORE:.0%} of them; with random signs {by_noise:,}."
        )

    def plot(self) -> LineChart:
        """How many edges were chosen in at least so many of the draws."""
        from interp_toolkit.circuits.pictures import stability_chart

        return stability_chart(self)

    def _repr_html_(self) -> str:
        from interp_toolkit.circuits.pictures import with_words

        return with_words(self.summary(), self.plot())


def stability(
    scores: EdgeScores,
    size: int | float,
    *,
    draws: int = 50,
    by: By = "absolute",
    greedy: bool = False,
    prune: bool = True,
    seed: int = 0,
) -> Stability:
    """How much a circuit depends on which prompts the scores are from, without running the model.

    Prompts are drawn again with replacement, scores are meaned over them, and circuits chosen; see Stability. Draws
    share prompts, and edges differ in the size of their scores, so that draws share edges also where there is nothing
    to find. What that gives is shown beside it: the same draws, with the sign of each score of each prompt at random.

    Args:
        scores: with the scores of each prompt (`EdgeScores.prompts`).
        size: number of edges, or as a float their share of all.
        draws: how many circuits are chosen.
        by: `"absolute"` or `"signed"` scores.
        greedy: grow circuits from the logits.
        prune: leave out edges that cannot carry anything: see `connected`.
        seed: of the drawing.

    Raises:
        CircuitError: without scores of two prompts or more, for fewer than two draws, and sizes out of range.

    Example:
        >>> from interp_toolkit.provenance import Provenance
        >>> graph = Graph(num_layers=1, num_heads=1, num_groups=1, parallel=False)
        >>> prompts = torch.rand(9, *graph.valid.shape) * graph.valid
        >>> origin = Provenance(model="", revision=None, model_type="", layout="", dtype="", versions={})
        >>> scores = EdgeScores(
        ...     graph=graph, values=prompts.mean(0), prompts=prompts, method="eap", metric="prob", provenance=origin
        ... )
        >>> stability(scores, 1.0).mean
        1.0
    """
    graph = scores.graph
    n = edges_of_size(graph, size)
    if scores.prompts is None or len(scores.prompts) < 2 or draws < 2:
        kept = "none" if scores.prompts is None else len(scores.prompts)
        raise CircuitError(
            f"stability needs the scores of two prompts or more and two draws, but scores of {kept} were kept and "
            f"{draws} draws asked for"
        )
    prompts = len(scores.prompts)
    if prompts < FEW:
        warn(f"{prompts} prompts only: draws of them are much alike; give {FEW} or more")
    generator = torch.Generator().manual_seed(seed)
    each = scores.prompts.cpu()[:, graph.valid]
    drawn = [torch.randint(prompts, (prompts,), generator=generator) for _ in range(draws)]
    counts = torch.stack([torch.bincount(some, minlength=prompts) for some in drawn]).to(each)
    choose = _Choice(scores, n, by=by, greedy=greedy, prune=prune)
    masks = choose(counts @ each / prompts)
    pairs = torch.triu_indices(draws, draws, 1)
    signs = torch.randint(2, each.shape, generator=generator).to(each) * 2 - 1
    noise = choose(counts @ (each * signs) / prompts)
    return Stability(
        graph=graph,
        edges=n,
        jaccard=_jaccard(masks, masks)[*pairs],
        to_circuit=_jaccard(masks, choose(scores.values.cpu()[None, graph.valid]))[:, 0],
        frequency=choose.placed(masks.float().mean(0)),
        noise=_jaccard(noise, noise)[*pairs],
        noise_frequency=choose.placed(noise.float().mean(0)),
        prompts=prompts,
    )


class _Choice:
    """How edges are chosen by scores; see `stability`."""

    def __init__(self, scores: EdgeScores, n: int, *, by: By, greedy: bool, prune: bool) -> None:
        self.graph, self.n, self.by = scores.graph, n, by
        self.greedy, self.prune = greedy, prune
        self.ablation = str(scores.notes.get("ablation", ""))

    def __call__(self, values: Float[Tensor, "draw edge"]) -> Bool[Tensor, "draw edge"]:
        found = []
        for row in values:
            mask = (greedy_edges if self.greedy else top_edges)(self.graph, self.placed(row), self.n, by=self.by)
            mask = connected(self.graph, mask, ablation=self.ablation) if self.prune else mask
            found.append(mask[self.graph.valid])
        return torch.stack(found)

    def placed(self, values: Float[Tensor, " edge"]) -> Float[Tensor, "source dest"]:
        """Values of edges where these stand."""
        full = torch.zeros(self.graph.valid.shape, dtype=values.dtype)
        full[self.graph.valid] = values
        return full


def edges_of_size(graph: Graph, size: int | float) -> int:
    """The number of edges that is meant by a number, or as a float by a share of all.

    Raises:
        CircuitError: for sizes that the graph does not have.
    """
    n = size if isinstance(size, int) else int(size * graph.num_edges + 1e-9) if math.isfinite(size) else -1
    if not 0 <= n <= graph.num_edges:
        raise CircuitError(
            f"a size is a number of edges up to {graph.num_edges:,}, or as a float a share from 0 to 1, not {size}"
        )
    return n


def _jaccard(first: Bool[Tensor, "a edge"], second: Bool[Tensor, "b edge"]) -> Float[Tensor, "a b"]:
    a, b = first.float(), second.float()
    both = a @ b.T
    either = a.sum(1)[:, None] + b.sum(1) - both
    return torch.where(either > 0, both / either.clamp(min=1), _WHOLE)


# --- against a known circuit -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RankQuality:
    """How well scores put the edges of a known circuit in front of all others.

    Attributes:
        auroc: the chance that a true edge is ranked before another one, ties counting half.
        auprc: average precision: the mean over true edges of the share of true ones among the edges ranked as high.
        true_edges: how many there are.
        edges: of the whole graph; `true_edges / edges` is the AUPRC of chance.

    Example:
        >>> print(RankQuality(auroc=0.98, auprc=0.75, true_edges=5, edges=500))
        AUROC 0.980, AUPRC 0.750 (5 true edges of 500)
    """

    auroc: float
    auprc: float
    true_edges: int
    edges: int

    def __str__(self) -> str:
        return f"AUROC {self.auroc:.3f}, AUPRC {self.auprc:.3f} ({self.true_edges:,} true edges of {self.edges:,})"


def rank_quality(
    scores: EdgeScores,
    true_edges: Circuit | Bool[Tensor, "source dest"] | Iterable[str | Edge],
    *,
    by: By = "absolute",
) -> RankQuality:
    """AUROC and AUPRC of scores where the circuit is known, over all edges and with ties as ties.

    Args:
        scores: of every edge.
        true_edges: the known circuit: as a `Circuit`, a mask, or names of edges.
        by: rank by `"absolute"` or `"signed"` scores.

    Raises:
        CircuitError: when no edge is true, or every one, and for a circuit of another model.

    Example:
        >>> from interp_toolkit.provenance import Provenance
        >>> graph = Graph(num_layers=1, num_heads=1, num_groups=1, parallel=False)
        >>> values = torch.zeros(graph.valid.shape)
        >>> values[graph.edge_of("embed->logits")] = -2.0
        >>> origin = Provenance(model="", revision=None, model_type="", layout="", dtype="", versions={})
        >>> scores = EdgeScores(graph=graph, values=values, method="eap", metric="prob", provenance=origin)
        >>> rank_quality(scores, ["embed->logits"]).auroc, rank_quality(scores, ["embed->logits"], by="signed").auroc
        (1.0, 0.0)
    """
    graph = scores.graph
    if isinstance(true_edges, Tensor):
        mask = checked(graph, true_edges).cpu()
    else:
        known = true_edges if isinstance(true_edges, Circuit) else circuit_of(graph, true_edges)
        if known.graph != graph:
            raise CircuitError(f"the true edges are of {known.graph}, but the scores of {graph}")
        mask = known.mask
    keys, labels = ranked(graph, scores.values, by).cpu()[graph.valid].double(), mask[graph.valid]
    positives, n = int(labels.sum()), len(labels)
    if not 0 < positives < n:
        raise CircuitError(
            f"{positives:,} of {n:,} edges are true: a ranking can only be judged if some are, and some not"
        )
    values, place = torch.unique(keys, return_inverse=True)
    true = torch.bincount(place, weights=labels.double(), minlength=len(values))
    false = torch.bincount(place, minlength=len(values)) - true
    below = false.cumsum(0) - false
    auroc = float((true * (below + _EVEN * false)).sum() / (positives * (n - positives)))
    found, taken = true.flip(0).cumsum(0), (true + false).flip(0).cumsum(0)
    auprc = float((true.flip(0) * found / taken).sum() / positives)
    return RankQuality(auroc=auroc, auprc=auprc, true_edges=positives, edges=n)


__all__ = ["RankQuality", "Stability", "edges_of_size", "rank_quality", "stability"]
