"""Automatic circuit discovery by exact ablation (Conmy et al. 2023, "Towards Automated Circuit Discovery", ACDC).

The walk goes from the logits back: over destinations, the last first, and for each over its sources, the last first.
Each edge is left out of the circuit as it is by then; if the metric moves by less than a tolerance, it stays out. The
order within a destination is the paper's (later layers first, and in a layer heads of higher number first).

Three things make it fast without changing what comes out:

- It may start from the best edges of an attribution, all others ablated from the beginning, instead of from all edges.
- Runs are made ahead. For the next edges it is guessed which will stay, and all of them are measured in one pass, each
  in the circuit that the guesses in front of it leave. Up to the first wrong guess these are the runs that the walk
  needs; behind it they are thrown away. Guesses come from the scores and from what was decided lately.

- What is written in front of the layer that the walk has come to is the same as in the first circuit. It is computed
  once, and every run begins at that layer.

Edges into a node from which nothing leads on cannot move the metric; they are dropped without a run, as ACDC does, when
the walk comes to them. A norm behind attention, or over all heads' queries or keys, couples the heads of a layer: there
such edges can move it as long as anything reads that layer's attention, and they are run like others.

At the end edges that are not `connected` are dropped. What is left is measured once more: `AcdcResult.value` is that of
the circuit that comes out. Only in layers with such a norm it can differ from what the walk ended with.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from interp_toolkit.circuits.graph import checked, connected, path_of, top_edges
from interp_toolkit.circuits.graph_shape import Graph
from interp_toolkit.circuits.judging import used_prompts
from interp_toolkit.circuits.resumed import ResumedRuns
from interp_toolkit.circuits.scores import EdgeScores
from interp_toolkit.circuits.subgraph import CircuitRuns
from interp_toolkit.errors import CircuitError, InterpWarning
from interp_toolkit.provenance import provenance_of

Harmful = Literal["keep", "drop"]
"""What happens to an edge whose removal makes the metric better by the tolerance or more."""

_MOST = 64  # edges that are run ahead
_LEAST = 4
_RECENT = 100  # decisions that guesses are made from


@dataclass(frozen=True, kw_only=True, eq=False)
class AcdcResult:
    """What the walk found.

    Attributes:
        graph: of the model.
        mask: the edges of the circuit.
        start: the edges that it began with.
        edges: source and destination of each edge, in the order of the walk.
        kept: whether it stayed; what is not connected at the end stayed, but is not in the mask.
        effects: what leaving it out took from the metric when its turn came, the mean over prompts; positive helps the
            clean answer. 0 for edges into nodes from which nothing led on, which were not run.
        tolerance: in the metric's unit.
        harmful: what happened to edges whose removal makes the metric better.
        value: the metric of the circuit, of a run of `mask` itself.
        full: the metric of all edges.
        empty: the metric of none.
        measured: circuits that were run, those for nothing included.
        scores: the effects as scores of edges, with 0 for edges that were not candidates.
    """

    graph: Graph
    mask: Bool[Tensor, "source dest"]
    start: Bool[Tensor, "source dest"]
    edges: Int[Tensor, "edge 2"]
    kept: Bool[Tensor, " edge"]
    effects: Float[Tensor, " edge"]
    tolerance: float
    harmful: Harmful
    value: float
    full: float
    empty: float
    measured: int
    scores: EdgeScores

    @property
    def faithfulness(self) -> float:
        """What the circuit keeps of the difference between all edges and none, on the prompts of the search."""
        gap = self.full - self.empty
        return (self.value - self.empty) / gap if gap else math.nan

    def summary(self) -> str:
        """The walk in words."""
        free, loose = int((self.effects == 0).sum()), int(self.kept.sum()) - int(self.mask.sum())
        left = f" {loose:,} edges that stayed are not connected and were left out at the end." if loose else ""
        return (
            f"ACDC kept {int(self.mask.sum()):,} of {int(self.start.sum()):,} edges at tolerance {self.tolerance:.4g}: "
            f"metric {self.value:.4g} beside {self.full:.4g} with all edges and {self.empty:.4g} with none "
            f"(faithfulness {self.faithfulness:.3f} on the prompts of the search). {self.measured:,} circuits were "
            f"run; {free:,} edges needed no run or moved nothing.{left}"
        )


def acdc(
    runs: CircuitRuns,
    candidates: EdgeScores | Bool[Tensor, "source dest"] | None = None,
    *,
    tolerance: float,
    unit: Literal["metric", "gap"] = "metric",
    largest: int | None = 500,
    harmful: Harmful | None = None,
    pairs: Sequence[int] | None = None,
    at_once: int | None = None,
    progress: bool = True,
) -> AcdcResult:
    """Find a circuit by leaving out edges one by one, from the logits back, wherever the metric hardly moves.

    What comes out is the same as without running ahead, up to the rounding of runs of other batch sizes.

    Args:
        runs: the pairs, the metric and the model.
        candidates: scores, of which the best edges by |score| are the first circuit; or the mask of that circuit; or
            nothing, for all edges.
        tolerance: an edge is dropped if the metric's mean over prompts moves by less.
        unit: of the tolerance: the metric's, or a share of the metric's difference between all edges and none.
        largest: with how many edges of the scores to begin; all edges of the graph if it is None.
        harmful: `"keep"` keeps edges whose removal makes the metric better by the tolerance or more, `"drop"` drops
            them. If it is not given they are dropped for metrics that measure a distance from the clean run, as in the
            paper, and kept for others.
        pairs: numbers of the pairs; all if it is not given.
        at_once: edges that are run ahead at most.
        progress: whether to show a progress bar.

    Raises:
        CircuitError: for a tolerance that is out of range, and candidates that do not fit or lie on no path
            from `embed` to `logits`.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> from interp_toolkit.circuits.dataset import prepare_pairs
        >>> from interp_toolkit.circuits.metrics import metric_of
        >>> model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=11)).eval()
        >>> runs = CircuitRuns(model, prepare_pairs(model, [[1, 2]], [[1, 4]], [(5, 6)]), metric_of("logit_diff"))
        >>> found = acdc(runs, tolerance=0.05, unit="gap")
        >>> 0 < int(found.mask.sum()) < runs.graph.num_edges
        True
    """
    graph = runs.graph
    numbers = runs.numbers(pairs)
    start, values = _start(runs, candidates, largest)
    begin = start, graph.valid, torch.zeros_like(start)
    at_start, full, empty = runs.measure(torch.stack(begin), pairs=numbers).double().mean(1).tolist()
    tau = _tolerance(tolerance, unit, full, empty, runs.metric.name)
    rule = harmful or ("keep" if runs.metric.larger_is_cleaner else "drop")
    if rule not in ("keep", "drop"):
        raise CircuitError(f"harmful edges are for 'keep' or 'drop', not {rule!r}")
    guess = _Guess(values, tau, _MOST if at_once is None else at_once)
    walk = _Walk(ResumedRuns(runs, numbers, start), start, at_start, tau, rule, guess)
    walk.run(progress=progress)
    mask = connected(graph, walk.mask, ablation=runs.ablation.kind)
    if not bool(mask.any()):
        warnings.warn(
            f"no circuit is left: no edge moved {runs.metric.name} by {tau:.4g}, where all edges and none are "
            f"{abs(full - empty):.4g} apart; try a smaller tolerance",
            InterpWarning,
            stacklevel=2,
        )
    effects = torch.tensor(walk.effects, dtype=torch.float64)
    return AcdcResult(
        graph=graph,
        mask=mask,
        start=start,
        edges=torch.tensor(walk.edges),
        kept=torch.tensor(walk.kept),
        effects=effects,
        tolerance=tau,
        harmful=rule,
        value=float(runs.measure(mask[None], pairs=numbers).double().mean()),
        full=full,
        empty=empty,
        measured=walk.measured + len(begin) + 1,
        scores=_scores(runs, walk, effects, numbers),
    )


def _start(
    runs: CircuitRuns, candidates: EdgeScores | Tensor | None, largest: int | None
) -> tuple[Bool[Tensor, "source dest"], Float[Tensor, "source dest"] | None]:
    """The circuit to begin with, of which every edge lies on a path, and scores to guess from."""
    graph, kind, values = runs.graph, runs.ablation.kind, None
    if isinstance(candidates, EdgeScores):
        if candidates.graph != graph:
            raise CircuitError(f"the scores are of another model: of {candidates.graph}, not of {graph}")
        values = candidates.values.abs().cpu()
        mask = graph.valid if largest is None else top_edges(graph, values, min(largest, graph.num_edges))
    else:
        mask = graph.valid if candidates is None else checked(graph, candidates.cpu())
    found = connected(graph, mask, ablation=kind)
    if not bool(found.any()):
        raise CircuitError(f"the walk needs candidates on {path_of(kind)}, but of {int(mask.sum()):,} edges none is")
    return found, values


def _tolerance(tolerance: float, unit: str, full: float, empty: float, name: str) -> float:
    gap = abs(full - empty)
    if unit not in ("metric", "gap"):
        raise CircuitError(f"the tolerance is in units of 'metric' or 'gap', not {unit!r}")
    most = 1.0 if unit == "gap" else math.inf
    if not 0 < tolerance < most:
        wanted = "between 0 and 1, as a share of the gap" if unit == "gap" else "above 0"
        raise CircuitError(
            f"a tolerance of {tolerance:g} drops {'everything' if tolerance > 0 else 'nothing'}: it must be {wanted}; "
            f"{name} goes from {full:.4g} with all edges to {empty:.4g} with none, a gap of {gap:.4g}"
        )
    if unit == "gap" and not gap:
        raise CircuitError(f"{name} is {full:.4g} with all edges and with none: there is no gap to take a share of")
    return tolerance * gap if unit == "gap" else float(tolerance)


def _scores(runs: CircuitRuns, walk: _Walk, effects: Tensor, numbers: Sequence[int]) -> EdgeScores:
    values = torch.zeros(runs.graph.valid.shape)
    places = torch.tensor(walk.edges)
    values[places[:, 0], places[:, 1]] = effects.float()
    notes: dict[str, Any] = {
        "prompts": len(numbers),
        **used_prompts(runs.pairs, numbers),
        "ablation": runs.ablation.kind,
        "tolerance": walk.tolerance,
        "harmful": walk.harmful,
        "candidates": len(walk.edges),
    }
    if runs.stream.frozen:
        notes["frozen"] = list(runs.stream.frozen)
    return EdgeScores(
        graph=runs.graph,
        values=values,
        method="acdc",
        metric=runs.metric.name,
        unit=runs.metric.unit,
        notes=notes,
        provenance=provenance_of(runs.model, runs.wiring.layout),
    )


# --- the walk ---------------------------------------------------------------------------------------------------


class _Guess:
    """Guesses whether an edge will stay: if its score is at least what parted recent decisions best."""

    def __init__(self, values: Tensor | None, tolerance: float, most: int) -> None:
        if most < 1:
            raise CircuitError(f"{most} edges cannot be run ahead: 1 can, or more")
        self._values, self._most = values, most
        self._seen: list[tuple[float, bool]] = []
        self._recent: list[bool] = []
        self._least = math.inf if values is None else tolerance

    def stays(self, edge: tuple[int, int]) -> bool:
        """Whether it will stay."""
        return self._score(edge) >= self._least

    def learn(self, edge: tuple[int, int], stayed: bool, right: bool) -> None:
        """Take note of a decision, and whether it was guessed."""
        self._seen = [*self._seen[1 - _RECENT :], (self._score(edge), stayed)]
        self._recent = [*self._recent[1 - _RECENT :], right]

    def adapt(self) -> None:
        """Move the boundary to where the fewest recent decisions were on the wrong side."""
        if len(self._seen) < 2 * _LEAST:
            return
        ordered = sorted(self._seen)
        wrong = sum(not stayed for _, stayed in ordered)  # with all guessed to stay
        best = wrong, ordered[0][0]
        for n, (score, stayed) in enumerate(ordered):
            wrong += 1 if stayed else -1
            above = ordered[n + 1][0] if n + 1 < len(ordered) else math.inf
            if above > score and wrong < best[0]:
                best = wrong, above
        self._least = best[1]

    @property
    def ahead(self) -> int:
        """How many edges to run ahead: about as many as are guessed right in a row."""
        wrong = sum(not right for right in self._recent)
        return min(self._most, max(_LEAST, round((len(self._recent) + 2 * _LEAST) / (wrong + 1))))

    def _score(self, edge: tuple[int, int]) -> float:
        return 0.0 if self._values is None else float(self._values[edge])


@dataclass(frozen=True, kw_only=True)
class _Step:
    """An edge of a chain: whether it is guessed to stay, and the number of the run without it, if one is needed."""

    edge: tuple[int, int]
    stays: bool
    row: int | None


class _Walk:
    """The walk from the logits back.

    Args:
        resumed: runs of circuits.
        start: the first circuit.
        value: its metric.
        tolerance: an edge is dropped if the metric moves by less.
        harmful: what happens to harmful edges.
        guess: which edges will stay.
    """

    def __init__(
        self,
        resumed: ResumedRuns,
        start: Bool[Tensor, "source dest"],
        value: float,
        tolerance: float,
        harmful: Harmful,
        guess: _Guess,
    ) -> None:
        self.resumed, self.graph = resumed, resumed.graph
        self.mask, self.value = start.clone(), value
        self.tolerance, self.harmful = tolerance, harmful
        self.edges: list[tuple[int, int]] = []
        self.kept: list[bool] = []
        self.effects: list[float] = []
        self.measured = 0
        self._sign = resumed.runs.sign
        self._coupled = bool(resumed.runs.stream.frozen)
        self._guess = guess

    def run(self, *, progress: bool) -> None:
        """Decide about every edge."""
        order = list(_backwards(self.mask))
        with tqdm(total=len(order), disable=None if progress else True, unit=" edges", leave=False) as bar:
            while len(self.edges) < len(order):
                before = len(self.edges)
                self._advance(order[before:])
                bar.update(len(self.edges) - before)

    def _advance(self, order: Sequence[tuple[int, int]]) -> None:
        """Decide about some of the next edges, one at least."""
        steps, masks = self._chain(order)
        layers = [int(self.graph.dest_layer[step.edge[1]]) for step in steps if step.row is not None]
        values = self.resumed.means(masks, layers)
        self.measured += len(masks)
        for step in steps:
            if not self._decide(step, values):
                break
        self._guess.adapt()

    def _chain(self, order: Sequence[tuple[int, int]]) -> tuple[list[_Step], list[Tensor]]:
        """The next edges with their guesses, and the circuits to be run for them."""
        most, mask = self._guess.ahead, self.mask.clone()
        steps: list[_Step] = []
        masks: list[Tensor] = []
        for edge in order:
            leads_on = self._leads_on(edge[1], mask)
            if leads_on and len(masks) == most:
                break
            stays = leads_on and self._guess.stays(edge)
            mask[edge] = False
            if leads_on:
                masks.append(mask.clone())
            steps.append(_Step(edge=edge, stays=stays, row=len(masks) - 1 if leads_on else None))
            mask[edge] = stays
        return steps, masks

    def _leads_on(self, dest: int, mask: Tensor) -> bool:
        """Whether anything reads the nodes of which this is an input, or nodes that these are coupled with."""
        nodes = self.graph.sources_of_dest(dest)
        if not nodes:
            return True
        first, last = min(nodes), max(nodes) + 1
        if self._coupled and not self.graph.dest_names[dest].endswith("MLP"):
            first -= (first - 1) % self.graph.sources_per_layer
            last = first + self.graph.num_heads
        return bool(mask[first:last].any())

    def _decide(self, step: _Step, values: Sequence[float]) -> bool:
        """Keep an edge or drop it; whether that was guessed."""
        after = self.value if step.row is None else values[step.row]
        effect = (self.value - after) * self._sign
        size = effect if self.harmful == "drop" else abs(effect)
        stays = not size < self.tolerance
        self.edges.append(step.edge)
        self.kept.append(stays)
        self.effects.append(effect)
        if not stays:
            self.mask[step.edge] = False
            self.value = after
        if step.row is not None:
            self._guess.learn(step.edge, stays, stays == step.stays)
        return stays == step.stays


def _backwards(mask: Bool[Tensor, "source dest"]) -> Iterator[tuple[int, int]]:
    """Source and destination of each edge: the last destination first, for each of them the last source first."""
    for dest, source in mask.T.nonzero().flip(0).tolist():
        yield source, dest


__all__ = ["AcdcResult", "Harmful", "acdc"]
