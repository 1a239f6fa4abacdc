"""Edge pruning: how far each edge is open is learned by gradient descent through exact circuit runs.

Every candidate edge has a gate that is closed, open or in between, drawn anew in each run from a distribution whose one
parameter is learned (hard-concrete gates: Louizos et al. 2018, "Learning Sparse Neural Networks through L0
Regularization"). The loss is how far the run with these gates is from the full model; a Lagrangian term moves the
expected number of open edges to the wanted one (Bhaskar et al. 2024, "Finding Transformer Circuits With Edge Pruning").

Unlike there the gates do not begin alike: those of edges that attribution ranks high begin open, those around the
wanted size undecided, and edges far behind it have no gate and stay ablated. So a hundred steps do instead of
thousands.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from interp_toolkit.circuits.circuit_pass import GatedPass, values_of
from interp_toolkit.circuits.graph import top_edges
from interp_toolkit.circuits.judging import used_prompts
from interp_toolkit.circuits.metrics import METRICS
from interp_toolkit.circuits.scores import EdgeScores
from interp_toolkit.circuits.subgraph import CircuitRuns
from interp_toolkit.errors import CircuitError, MetricError
from interp_toolkit.provenance import provenance_of

Objective = Literal["metric", "kl"]
"""What the circuit is to keep: the metric, or the whole distribution over the next token."""

TEMPERATURE = 2 / 3
"""β of a gate: how sharp it is (Louizos et al. 2018, section 4)."""
STRETCH = (-0.1, 1.1)
"""γ and ζ: a gate is a concrete variable stretched to this interval and cut to 0 and 1 (the same)."""

_CLOSED = TEMPERATURE * math.log(-STRETCH[0] / STRETCH[1])  # P(z > 0) = σ(log α − β log(−γ/ζ))
_EDGE_OF_U = 1e-6
_CANDIDATES = 10.0  # gates for each wanted edge
_MOST_OPEN = 4.0  # the log α with which gates begin at most
_BEND = 0.1  # share of the gap below which the loss is quadratic
_SETTLED = 0.7  # share of the steps after which the number of edges is the wanted one


@dataclass(frozen=True, kw_only=True)
class PruningSettings:
    """How gates are learned.

    Attributes:
        steps: of gradient descent.
        objective: what the circuit is to keep.
        learning_rate: of the gates' log α, with Adam.
        pressure: learning rate of the two multipliers of the Lagrangian.
        prompts: in each step, at most.
        candidates: how many edges have gates, for each wanted one; the others stay ablated.
        nodes: whether sources have gates too, which close all their edges together.
        seed: of the gates drawn and of the order of the prompts.

    Raises:
        CircuitError: for numbers that are out of range.
    """

    steps: int = 100
    objective: Objective = "metric"
    learning_rate: float = 0.15
    pressure: float = 0.2
    prompts: int = 16
    candidates: float = _CANDIDATES
    nodes: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name, least in (("steps", 1), ("prompts", 1), ("candidates", 1.0)):
            if getattr(self, name) < least:
                raise CircuitError(f"edge pruning needs {name} of at least {least}, not {getattr(self, name)}")
        for name in ("learning_rate", "pressure"):
            if not 0 < getattr(self, name) < math.inf:
                raise CircuitError(f"edge pruning needs a {name} above 0, not {getattr(self, name)}")
        if self.objective not in ("metric", "kl"):
            raise CircuitError(f"edge pruning keeps 'metric' or 'kl', not {self.objective!r}")


def prune_edges(
    runs: CircuitRuns,
    scores: EdgeScores,
    edges: int,
    *,
    settings: PruningSettings | None = None,
    pairs: Sequence[int] | None = None,
    progress: bool = True,
) -> EdgeScores:
    """Learn which edges make the best circuit of some size.

    Args:
        runs: the pairs, the metric and the model.
        scores: of an attribution: where to begin, and the sign of what comes out.
        edges: the size. Circuits of other sizes can be chosen too, but are worse the farther they are from it.
        settings: how.
        pairs: numbers of the pairs; all if it is not given.
        progress: whether to show a progress bar.

    Returns:
        For each edge the probability that it is open, with the sign of the given score: `top(edges)` of it is the
        circuit. Edges without a gate come behind all others, in the order of the given scores.

    Raises:
        CircuitError: for a size that is no circuit, and scores of another model or without any edge.
        MetricError: for a metric without a gradient.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> from interp_toolkit.circuits.attribution import attribute
        >>> from interp_toolkit.circuits.dataset import prepare_pairs
        >>> from interp_toolkit.circuits.metrics import metric_of
        >>> model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=11)).eval()
        >>> runs = CircuitRuns(model, prepare_pairs(model, [[1, 2]], [[1, 4]], [(5, 6)]), metric_of("logit_diff"))
        >>> settings = PruningSettings(steps=2)
        >>> found = prune_edges(runs, attribute(runs, "eap"), 12, settings=settings, progress=False)
        >>> found.top(12, prune=False).num_edges
        12
    """
    settings = settings or PruningSettings()
    numbers = runs.numbers(pairs)
    _check(runs, scores, edges)
    with torch.random.fork_rng(devices=[]):
        learner = _Learner(runs, scores, edges, settings, numbers)
        losses = learner.learn(progress=progress)
    return EdgeScores(
        graph=runs.graph,
        values=learner.result(scores),
        method="edge-pruning",
        metric=runs.metric.name,
        unit="probability",
        notes=_notes(runs, scores, edges, settings, numbers) | losses,
        provenance=provenance_of(runs.model, runs.wiring.layout),
    )


def _check(runs: CircuitRuns, scores: EdgeScores, edges: int) -> None:
    graph = runs.graph
    if scores.graph != graph:
        raise CircuitError(f"the scores are of another model: of {scores.graph}, not of {graph}")
    if not 1 <= edges < graph.num_edges:
        raise CircuitError(f"edge pruning looks for a circuit of 1 to {graph.num_edges - 1:,} edges, not of {edges:,}")
    if not bool(scores.values.any()):
        raise CircuitError("all scores are 0: there is no edge to begin with")


def _notes(
    runs: CircuitRuns, scores: EdgeScores, edges: int, settings: PruningSettings, numbers: Sequence[int]
) -> dict[str, Any]:
    return {
        "prompts": len(numbers),
        **used_prompts(runs.pairs, numbers),
        "ablation": runs.ablation.kind,
        "warm_start": scores.method,
        "wanted_edges": edges,
        "steps": settings.steps,
        "objective": settings.objective,
        "node_gates": settings.nodes,
        "seed": settings.seed,
    }


# --- gates ------------------------------------------------------------------------------------------------------


def drawn(log_alpha: Float[Tensor, "*gates"], uniform: Float[Tensor, "*rows_and_gates"]) -> Tensor:
    """Hard-concrete gates (Louizos et al. 2018, equations 10 to 12).

    Args:
        log_alpha: of each gate.
        uniform: numbers between 0 and 1, one for each draw.

    Example:
        >>> drawn(torch.tensor([-9.0, 0.0, 9.0]), torch.tensor([0.5, 0.5, 0.5]))
        tensor([0.0000, 0.5000, 1.0000])
    """
    low, high = STRETCH
    inner = torch.sigmoid((torch.logit(uniform, eps=_EDGE_OF_U) + log_alpha) / TEMPERATURE)
    return (inner * (high - low) + low).clamp(0, 1)


def open_share(log_alpha: Float[Tensor, "*gates"]) -> Float[Tensor, "*gates"]:
    """The probability that a gate is not closed (Louizos et al. 2018, equation 12).

    Example:
        >>> [round(float(p), 3) for p in open_share(torch.tensor([-5.0, 0.0, 5.0]))]
        [0.032, 0.832, 0.999]
    """
    return torch.sigmoid(log_alpha - _CLOSED)


class _Learner:
    """Gates of the candidates, and how they are learned.

    Args:
        runs: the pairs, the metric and the model.
        scores: where to begin.
        edges: how many are wanted.
        settings: how.
        numbers: of the pairs.
    """

    def __init__(
        self, runs: CircuitRuns, scores: EdgeScores, edges: int, settings: PruningSettings, numbers: Sequence[int]
    ) -> None:
        self.runs, self.graph, self.edges, self.settings = runs, runs.graph, edges, settings
        self.numbers, self.device = numbers, runs.ablated(runs.batches(numbers)[0]).embed.device
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.mask = self._candidates(scores)
        self.log_alpha = self._begin(scores).to(self.device).requires_grad_()
        nodes = torch.full((self.graph.num_sources,), _MOST_OPEN, device=self.device)
        self.node_alpha = nodes.requires_grad_() if settings.nodes else None
        self.sources = self.mask.nonzero()[:, 0].to(self.device)
        self.multipliers = torch.zeros(2, device=self.device, requires_grad=True)
        self.gap = self._gap()

    # --- where it begins -----------------------------------------------------------------------------------------

    def _candidates(self, scores: EdgeScores) -> Bool[Tensor, "source dest"]:
        number = min(self.graph.num_edges, math.ceil(self.edges * self.settings.candidates))
        scored = (scores.values != 0).cpu() & self.graph.valid
        return top_edges(self.graph, scores.values.cpu(), number) & scored

    def _begin(self, scores: EdgeScores) -> Float[Tensor, " gate"]:
        """Log α from ranks: 0 at the wanted size, one more for every e-th part of it, one less for every e-fold."""
        sizes = scores.values.cpu()[self.mask].abs()
        ranks = torch.empty(len(sizes))
        ranks[sizes.argsort(descending=True, stable=True)] = torch.arange(1, len(sizes) + 1).float()
        return (self.edges / ranks).log().clamp(-_MOST_OPEN, _MOST_OPEN)

    def _gap(self) -> float:
        """What the loss is a share of."""
        if self.settings.objective == "kl":
            return 1.0
        empty = self.runs.measure(torch.zeros_like(self.graph.valid)[None], pairs=self.numbers)[0]
        gap = float((self.runs.clean[list(self.numbers)] - empty).abs().mean())
        if not gap:
            raise CircuitError(f"{self.runs.metric.name} is the same with all edges and with none: nothing to keep")
        return gap

    # --- learning ------------------------------------------------------------------------------------------------

    def learn(self, *, progress: bool) -> dict[str, float]:
        """All steps; the mean loss of the first and of the last ones."""
        settings = self.settings
        gates = [self.log_alpha, *([] if self.node_alpha is None else [self.node_alpha])]
        descent = torch.optim.Adam(gates, lr=settings.learning_rate)
        ascent = torch.optim.Adam([self.multipliers], lr=settings.pressure, maximize=True)
        chunks, losses = self._chunks(), []
        begin = float(self._expected().detach())
        bar = tqdm(range(settings.steps), disable=None if progress else True, unit=" steps", leave=False)
        for step in bar:
            share = min(1.0, step / (_SETTLED * settings.steps))
            wanted = begin * (self.edges / begin) ** share
            loss = self._loss(next(chunks))
            excess = self._expected() / wanted - 1
            total = loss + self.multipliers[0] * excess + self.multipliers[1] * excess.square()
            slopes = torch.autograd.grad(total, [*gates, self.multipliers])
            for parameter, slope in zip([*gates, self.multipliers], slopes, strict=True):
                parameter.grad = slope
            descent.step()
            ascent.step()
            losses.append(float(loss.detach()))
            bar.set_postfix(loss=f"{losses[-1]:.3f}", edges=f"{(float(excess.detach()) + 1) * wanted:.0f}")
        few = max(1, len(losses) // 10)
        return {"first_loss": sum(losses[:few]) / few, "last_loss": sum(losses[-few:]) / few}

    def _chunks(self) -> Iterator[list[int]]:
        """Pairs of each step: all of them in turn, in another order each time."""
        most = self.settings.prompts
        while True:
            found = []
            for batch in self.runs.batches(self.numbers):
                found += [batch[n : n + most] for n in range(0, len(batch), most)]
            for n in torch.randperm(len(found), generator=self.generator).tolist():
                yield found[n]

    def _expected(self) -> Tensor:
        """How many edges are open, in the mean."""
        return self._open().sum()

    def _open(self) -> Float[Tensor, " gate"]:
        edges = open_share(self.log_alpha)
        return edges if self.node_alpha is None else edges * open_share(self.node_alpha)[self.sources]

    def _loss(self, chunk: Sequence[int]) -> Tensor:
        """How far runs with gates drawn anew are from the full model."""
        ablated = self.runs.ablated(chunk)
        masks = self._drawn(len(chunk))
        run = GatedPass(self.runs.stream, ablated, masks, torch.arange(len(chunk)))
        kl = self.settings.objective == "kl"
        metric = METRICS["kl"] if kl else self.runs.metric
        values = values_of(metric, self.runs.questions, run.logits(), list(chunk))
        if not values.requires_grad:
            raise MetricError(
                f"{metric.name} has no gradient: edge pruning needs a metric such as 'logit_diff', or objective='kl'"
            )
        if kl:
            return values.mean()
        off = (values - self.runs.clean[list(chunk)].to(values)) / self.gap
        return torch.nn.functional.smooth_l1_loss(off, torch.zeros_like(off), beta=_BEND)

    def _drawn(self, rows: int) -> Float[Tensor, "row source dest"]:
        """Gates of every row, drawn anew: other edges in each."""
        gates = drawn(self.log_alpha, self._uniform(rows, len(self.log_alpha)))
        if self.node_alpha is not None:
            gates = gates * drawn(self.node_alpha, self._uniform(rows, len(self.node_alpha)))[:, self.sources]
        masks = gates.new_zeros(rows, self.mask.numel())
        return masks.index_copy(1, self._places(), gates).view(rows, *self.mask.shape)

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator).to(self.device)

    def _places(self) -> Int[Tensor, " gate"]:
        return self.mask.flatten().nonzero()[:, 0].to(self.device)

    # --- what comes out ------------------------------------------------------------------------------------------

    def result(self, scores: EdgeScores) -> Float[Tensor, "source dest"]:
        """Probabilities of being open, with signs; edges without a gate behind all others."""
        given = scores.values.detach().cpu().float()
        found = torch.zeros_like(given)
        shares = self._open().detach().float().cpu()
        found[self.mask] = shares
        rest = self.graph.valid & ~self.mask
        most = float(given[rest].abs().max()) if bool(rest.any()) else 0.0
        if most:
            found[rest] = given[rest].abs() / most * (float(shares.min()) / 2)
        return torch.where(given < 0, -found, found)


__all__ = ["STRETCH", "TEMPERATURE", "Objective", "PruningSettings", "drawn", "open_share", "prune_edges"]
