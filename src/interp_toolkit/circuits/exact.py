"""Exact scores of edges: for each edge one run of the model without it.

The score of an edge is the metric of the clean run less that of the clean run in which only this edge is ablated. It
is what attribution estimates. One run for each edge and prompt is dear, so most use is for a random sample of edges, or
for candidates that a cheaper method found; `exact_cost` says beforehand what it takes.
"""

from __future__ import annotations

import base64
import binascii
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm

from interp_toolkit.circuits.graph import checked, random_edges
from interp_toolkit.circuits.graph_shape import Graph
from interp_toolkit.circuits.judging import used_prompts
from interp_toolkit.circuits.scores import EdgeScores
from interp_toolkit.circuits.subgraph import CircuitRuns
from interp_toolkit.errors import CircuitError
from interp_toolkit.provenance import provenance_of

_LONG = 3600.0  # seconds that nobody is made to wait who did not say which edges are wanted
_TRIAL = 24  # edges of a trial: enough for layers at all depths
_MASKS = 2**27  # bytes of the circuits that are held at once
_PROMPTS_KEPT = 2**28  # scores that are kept prompt by prompt: 1 GB in float32


@dataclass(frozen=True, kw_only=True)
class ExactCost:
    """What exact scores take.

    Attributes:
        edges: how many are measured.
        prompts: on how many pairs of prompts.
        seconds: estimated from a trial on this machine.

    Example:
        >>> print(ExactCost(edges=500, prompts=8, seconds=240.0))
        500 edges on 8 prompts: 4,000 runs of a part of the model, about 4 minutes here
    """

    edges: int
    prompts: int
    seconds: float

    @property
    def runs(self) -> int:
        """One for each edge and prompt; each begins at the layer that the edge leads into."""
        return self.edges * self.prompts

    def __str__(self) -> str:
        return (
            f"{self.edges:,} edges on {self.prompts:,} prompts: {self.runs:,} runs of a part of the model, about "
            f"{_duration(self.seconds)} here"
        )


def exact_cost(runs: CircuitRuns, n: int, *, pairs: Sequence[int] | None = None, seed: int = 0) -> ExactCost:
    """What exact scores of some edges would take, estimated from a short trial: about 25 edges on one prompt.

    Args:
        runs: the pairs, the metric and the model.
        n: how many edges, drawn at random.
        pairs: numbers of the pairs; all if it is not given.
        seed: of the edges of the trial.

    Raises:
        CircuitError: for a number of edges that the graph does not have.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> from interp_toolkit.circuits.dataset import prepare_pairs
        >>> from interp_toolkit.circuits.metrics import metric_of
        >>> model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=11)).eval()
        >>> runs = CircuitRuns(model, prepare_pairs(model, [[1, 2]], [[1, 4]], [(5, 6)]), metric_of("logit_diff"))
        >>> exact_cost(runs, 45).runs
        45
    """
    numbers = runs.numbers(pairs)
    random_edges(runs.graph, n, seed=seed)  # refuses numbers that the graph does not have
    trial = random_edges(runs.graph, min(_TRIAL, runs.graph.num_edges), seed=seed)
    runs.measure(runs.graph.valid[None], pairs=numbers[:1])  # what is done once: the ablated run, the first metric
    begin = time.perf_counter()
    for _ in _measured(runs, trial, numbers[:1]):
        pass
    each = (time.perf_counter() - begin) / int(trial.sum())
    return ExactCost(edges=n, prompts=len(numbers), seconds=each * n * len(numbers))


def exact_scores(
    runs: CircuitRuns,
    *,
    edges: Bool[Tensor, "source dest"] | None = None,
    sample: int | None = None,
    seed: int = 0,
    pairs: Sequence[int] | None = None,
    progress: bool = True,
) -> EdgeScores:
    """Score edges by leaving each out of the clean run.

    Args:
        runs: the pairs, the metric and the model.
        edges: candidates; all edges if it is not given.
        sample: how many of them are measured, drawn at random; all if it is not given.
        seed: of the drawing.
        pairs: numbers of the pairs; all if it is not given.
        progress: whether to show a progress bar.

    Returns:
        Scores, 0 for edges that were not measured. `measured_edges` says which were.

    Raises:
        CircuitError: for a mask that does not fit or is empty, a sample of more edges than there are, and for all
            edges of a model for which they take hours: a mask of all edges says that this is meant.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> from interp_toolkit.circuits.dataset import prepare_pairs
        >>> from interp_toolkit.circuits.metrics import metric_of
        >>> model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=11)).eval()
        >>> runs = CircuitRuns(model, prepare_pairs(model, [[1, 2]], [[1, 4]], [(5, 6)]), metric_of("logit_diff"))
        >>> scores = exact_scores(runs, sample=10)
        >>> int(measured_edges(scores).sum())
        10
    """
    graph, numbers = runs.graph, runs.numbers(pairs)
    chosen = _chosen(graph, edges, sample, seed)
    if edges is None and sample is None:
        _check_time(runs, numbers)
    kept = len(numbers) * graph.valid.numel() <= _PROMPTS_KEPT
    found = torch.zeros(len(numbers) if kept else 1, *graph.valid.shape)
    mean = torch.zeros(graph.valid.shape, dtype=torch.float64)
    with tqdm(total=int(chosen.sum()), disable=None if progress else True, unit=" edges", leave=False) as bar:
        for part, values in _measured(runs, chosen, numbers):
            mean[part] = values.double().mean(0)
            if kept:
                found[:, part] = values.to(found)
            bar.update(values.shape[1])
    return EdgeScores(
        graph=graph,
        values=mean.float(),
        prompts=found if kept else None,
        method="exact",
        metric=runs.metric.name,
        unit=runs.metric.unit,
        notes={
            "prompts": len(numbers),
            **used_prompts(runs.pairs, numbers),
            "ablation": runs.ablation.kind,
            "measured": int(chosen.sum()),
            "measured_edges": _packed(graph, chosen),
        }
        | ({} if sample is None else {"seed": seed}),
        provenance=provenance_of(runs.model, runs.wiring.layout),
    )


def measured_edges(scores: EdgeScores) -> Bool[Tensor, "source dest"]:
    """Which edges have an exact score: the others have 0 because they were left out.

    Raises:
        CircuitError: for scores of another method, or notes that were changed.
    """
    packed = scores.notes.get("measured_edges")
    if not isinstance(packed, str):
        raise CircuitError(
            f"which edges were measured is noted by exact_scores, but these are scores by {scores.method}, and their "
            f"notes are {', '.join(scores.notes) or 'empty'}"
        )
    return _unpacked(scores.graph, packed)


# --- which edges ------------------------------------------------------------------------------------------------


def _chosen(graph: Graph, edges: Tensor | None, sample: int | None, seed: int) -> Bool[Tensor, "source dest"]:
    candidates = graph.valid if edges is None else checked(graph, edges.cpu())
    total = int(candidates.sum())
    if total == 0:
        raise CircuitError("the mask of candidates holds no edge")
    if sample is None:
        return candidates
    if not 1 <= sample <= total:
        raise CircuitError(f"a sample of {sample:,} edges cannot be drawn from {total:,}: 1 to {total:,} can")
    drawn = torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:sample]
    places = candidates.nonzero()[drawn]
    mask = torch.zeros_like(candidates)
    mask[places[:, 0], places[:, 1]] = True
    return mask


def _check_time(runs: CircuitRuns, numbers: Sequence[int]) -> None:
    cost = exact_cost(runs, runs.graph.num_edges, pairs=numbers)
    if cost.seconds > _LONG:
        raise CircuitError(
            f"exact scores of all {cost}: measure a random sample of them with sample=500, or candidates that "
            "attribution found with edges=mask; edges=graph.valid does them all"
        )


def _duration(seconds: float) -> str:
    for size, unit in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(1, round(seconds))} s"


# --- measuring --------------------------------------------------------------------------------------------------


def _measured(
    runs: CircuitRuns, chosen: Bool[Tensor, "source dest"], numbers: Sequence[int]
) -> Iterator[tuple[Bool[Tensor, "source dest"], Float[Tensor, "pair edge"]]]:
    """Edges in parts, those into neighbouring layers together, and their scores on each prompt.

    The edges of a part stand in the order in which its mask counts them.
    """
    graph = runs.graph
    places = chosen.nonzero()
    places = places[places[:, 1].argsort(stable=True)]
    most = max(16, min(1024, _MASKS // graph.valid.numel()))
    # The full circuit is measured as the others are, so that rounding is the same.
    full = runs.measure(graph.valid[None], pairs=numbers)[0]
    for part in places.split(most):
        mask = torch.zeros_like(chosen)
        mask[part[:, 0], part[:, 1]] = True
        ordered = mask.nonzero()
        without = graph.valid.repeat(len(ordered), 1, 1)
        without[torch.arange(len(ordered)), ordered[:, 0], ordered[:, 1]] = False
        left = runs.measure(without, pairs=numbers, base=graph.valid)
        yield mask, ((full - left) * runs.sign).T


# --- which edges, as a note --------------------------------------------------------------------------------------


def _packed(graph: Graph, chosen: Bool[Tensor, "source dest"]) -> str:
    """A mask as text: one bit for each edge, by sources, compressed."""
    bits = np.packbits(chosen[graph.valid].numpy())
    return base64.b64encode(zlib.compress(bits.tobytes(), 9)).decode("ascii")


def _unpacked(graph: Graph, text: str) -> Bool[Tensor, "source dest"]:
    try:
        unzip = zlib.decompressobj()
        raw = unzip.decompress(base64.b64decode(text, validate=True), -(-graph.num_edges // 8) + 1)
        bits = np.unpackbits(np.frombuffer(raw, dtype=np.uint8))
    except (binascii.Error, zlib.error, ValueError) as error:
        raise CircuitError(f"the note of which edges were measured cannot be read: {error}") from error
    if len(bits) != -(-graph.num_edges // 8) * 8:
        raise CircuitError(f"the note of which edges were measured is not of a graph of {graph.num_edges:,} edges")
    mask = torch.zeros_like(graph.valid)
    mask[graph.valid] = torch.from_numpy(bits[: graph.num_edges].astype(bool))
    return mask


__all__ = ["ExactCost", "exact_cost", "exact_scores", "measured_edges"]
