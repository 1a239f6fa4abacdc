"""Judging circuits: faithfulness, completeness, minimality, chance, and curves over sizes.

Everything is measured by exact runs of the circuit: see `interp_toolkit.circuits.subgraph`. Results depend on what
stands in for the edges outside of it, so every result names its ablation. Judge a circuit on other prompts than those
that it was found on: where it knows these (`notes["prompt_digests"]`), shared ones are warned of.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict
from random import Random
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from interp_toolkit.circuits.ablated import AblationKind
from interp_toolkit.circuits.circuit import Circuit
from interp_toolkit.circuits.curves import SIZES, FaithfulnessCurve, Selection, area, curve
from interp_toolkit.circuits.dataset import Answers, prepare_pairs
from interp_toolkit.circuits.evaluation import CircuitEvaluation, Parts
from interp_toolkit.circuits.graph import connected
from interp_toolkit.circuits.graph_shape import Graph
from interp_toolkit.circuits.hypothesis_tests import (
    TestResult,
    distance,
    equivalence_and_independence,
    minimality_test,
    sufficiency_test,
)
from interp_toolkit.circuits.judging import (
    Interval,
    check_apart,
    check_behaviour,
    check_graph,
    measured,
    overlap,
    prompt_digest,
    shares,
)
from interp_toolkit.circuits.metrics import MetricLike, metric_of
from interp_toolkit.circuits.random_circuits import inflated, random_circuit
from interp_toolkit.circuits.reference import Reference
from interp_toolkit.circuits.scores import EdgeScores
from interp_toolkit.circuits.stability import RankQuality, Stability, rank_quality, stability
from interp_toolkit.circuits.subgraph import CircuitRuns
from interp_toolkit.errors import CircuitError
from interp_toolkit.model.layout import Layout
from interp_toolkit.model.tokens import Inputs
from interp_toolkit.provenance import provenance_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_AT_ONCE = 2**27  # places of masks that are held together: 128 MB


def evaluate_circuit(
    model: nn.Module,
    circuit: Circuit,
    clean_inputs: Inputs,
    corrupt_inputs: Inputs,
    answers: Answers = None,
    *,
    metric: MetricLike = "logit_diff",
    ablation: AblationKind = "corrupt",
    reference: Reference | None = None,
    random: int = 10,
    minimality: bool | Parts = False,
    level: float = 0.95,
    seed: int = 0,
    tokenizer: PreTrainedTokenizerBase | None = None,
    memory: int | None = None,
    layout: Layout | None = None,
) -> CircuitEvaluation:
    """Judge a circuit: is it faithful, complete, minimal, and better than chance?

    Args:
        model: a causal language model, as it is.
        circuit: of that model.
        clean_inputs: prompts that show the behaviour, other ones than the circuit was found on.
        corrupt_inputs: matched prompts that do not, each with as many tokens as its clean one.
        answers: what a metric compares: a list of (target, foil), one tuple for all, or None for metrics of whole runs.
        metric: a name, a `Metric`, or a function of logits.
        ablation: what stands for an edge outside the circuit: `"corrupt"`, `"mean"`, `"positional"` or `"zero"`.
        reference: for means.
        random: how many random circuits of the same size are run beside it. The tests against them need 29 at least
            to be able to reject anything.
        minimality: run the circuit without each of its edges (True or `"edges"`), or without each head and MLP
            (`"nodes"`).
        level: of the intervals, and 1 − the p-value below which hypotheses are rejected.
        seed: of random circuits and intervals.
        tokenizer: for text, when the model does not say where it comes from.
        memory: bytes that runs may take.
        layout: for a model class of your own.

    Raises:
        CircuitError: for a circuit of another model, and when model and empty circuit do not differ in the metric.
        AlignmentError, TokenError, MetricError: for prompts, answers and metrics that do not fit.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> from interp_toolkit.circuits.graph import graph_of
        >>> model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=30)).eval()
        >>> whole = Circuit(graph=graph_of(model), mask=graph_of(model).valid)
        >>> clean, corrupt = [[n, n + 1, 3] for n in range(4, 16)], [[n, n + 9, 3] for n in range(4, 16)]
        >>> import warnings; warnings.simplefilter("ignore")  # a random model has no behaviour
        >>> found = evaluate_circuit(model, whole, clean, corrupt, (5, 6), random=2)
        >>> round(found.faithfulness.value, 3), abs(round(found.completeness.value, 3))
        (1.0, 0.0)
    """
    check_options(circuit, random, minimality)
    pairs = prepare_pairs(model, clean_inputs, corrupt_inputs, answers, tokenizer=tokenizer, layout=layout)
    runs = CircuitRuns(
        model, pairs, metric_of(metric), ablation=ablation, reference=reference, memory=memory, layout=layout
    )
    return judge(runs, circuit, random=random, minimality=minimality, level=level, seed=seed)


def faithfulness_curve(
    model: nn.Module,
    scores: EdgeScores,
    clean_inputs: Inputs,
    corrupt_inputs: Inputs,
    answers: Answers = None,
    *,
    sizes: Sequence[int | float] = SIZES,
    metric: MetricLike = "logit_diff",
    ablation: AblationKind = "corrupt",
    reference: Reference | None = None,
    selection: Selection = "top",
    random: int = 1,
    level: float = 0.95,
    seed: int = 0,
    tokenizer: PreTrainedTokenizerBase | None = None,
    layout: Layout | None = None,
) -> FaithfulnessCurve:
    """Faithfulness against size: circuits of the best edges by some scores, run exactly at each size.

    Args:
        model: a causal language model, as it is.
        scores: of every edge of that model.
        clean_inputs: prompts that show the behaviour, other ones than the scores are from.
        corrupt_inputs: matched prompts that do not, each with as many tokens as its clean one.
        answers: what a metric compares.
        sizes: shares of all edges; those of the MIB benchmark if not given.
        metric: a name, a `Metric`, or a function of logits.
        ablation: what stands for an edge outside the circuit.
        reference: for means.
        selection: take the best edges of all (`"top"`), or grow the circuit from the logits (`"greedy"`).
        random: how many random circuits of each size are run beside it.
        level: of the intervals.
        seed: of random circuits and intervals.
        tokenizer: for text, when the model does not say where it comes from.
        layout: for a model class of your own.

    Raises:
        CircuitError: for scores of another model, sizes out of range, and when model and empty circuit do not differ.
        AlignmentError, TokenError, MetricError: for prompts, answers and metrics that do not fit.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> from interp_toolkit.circuits.attribution import attribute_edges
        >>> model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=30)).eval()
        >>> clean, corrupt = [[n, n + 1, 3] for n in range(4, 16)], [[n, n + 9, 3] for n in range(4, 16)]
        >>> scores = attribute_edges(model, clean, corrupt, (5, 6))
        >>> import warnings; warnings.simplefilter("ignore")  # a random model has no behaviour
        >>> found = faithfulness_curve(model, scores, clean, corrupt, (5, 6), sizes=[0.1, 0.5, 1])
        >>> found.edges, round(found.at(1).value, 3)
        ((4, 23, 46), 1.0)
    """
    pairs = prepare_pairs(model, clean_inputs, corrupt_inputs, answers, tokenizer=tokenizer, layout=layout)
    runs = CircuitRuns(model, pairs, metric_of(metric), ablation=ablation, reference=reference, layout=layout)
    return curve(runs, scores, sizes=sizes, selection=selection, random=random, level=level, seed=seed)


# --- one circuit -------------------------------------------------------------------------------------------------


def judge(
    runs: CircuitRuns,
    circuit: Circuit,
    *,
    random: int = 10,
    minimality: bool | Parts = False,
    pairs: Sequence[int] | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> CircuitEvaluation:
    """Judge a circuit over runs that are ready; see `evaluate_circuit`.

    Args:
        runs: the model, the pairs, the metric and the ablation.
        circuit: of that model.
        random: how many random circuits of the same size are run.
        minimality: run the circuit without each of its edges, or `"nodes"`.
        pairs: numbers of the pairs; all if it is not given.
        level: of the intervals.
        seed: of random circuits and intervals.

    Raises:
        CircuitError: for a circuit of another model, and when model and empty circuit do not differ in the metric.
    """
    removed = check_options(circuit, random, minimality)
    check_graph(runs, circuit.graph, "a circuit")
    numbers = runs.numbers(pairs)
    shared = check_apart(circuit.notes, runs.pairs, numbers, "the circuit")
    graph, mask, generator = runs.graph, circuit.mask, Random(seed)
    chance = [random_circuit(graph, circuit.num_edges, seed=generator) for _ in range(random)]
    values = measured(runs, [torch.zeros_like(mask), mask, graph.valid & ~mask, *chance], numbers)
    model = runs.clean[numbers]
    check_behaviour(model, values[0], runs.metric.name, runs.sign, level)
    names, without = _without_each(runs, mask, removed, numbers)
    tests = equivalence_and_independence(values[1], values[2], model, values[0], level=level)
    if chance:
        tests.append(sufficiency_test(float(distance(values[1], model)), distance(values[3:], model), level=level))
    if removed == "edges" and names:
        added = _added(runs, mask, random, numbers, generator)
        if len(added):
            tests.append(minimality_test(distance(without, values[1]), added, names=names, level=level))
    return CircuitEvaluation(
        edges=circuit.num_edges,
        connected=int(connected(graph, mask, ablation=runs.ablation.kind).sum()),
        total=graph.num_edges,
        model=model,
        ablated=values[0],
        circuit=values[1],
        complement=values[2],
        random=values[3:],
        prefers=_prefers(runs, mask, torch.stack([model, values[1]]), numbers),
        removed=removed,
        parts=names,
        without=without,
        tests=tuple(tests),
        method=circuit.method,
        metric=runs.metric.name,
        unit=runs.metric.unit,
        larger_is_cleaner=runs.metric.larger_is_cleaner,
        ablation=runs.ablation.kind,
        level=level,
        seed=seed,
        notes=_notes(runs, circuit, shared, len(numbers)),
        provenance=provenance_of(runs.model, runs.wiring.layout),
    )


def check_options(circuit: Circuit, random: int, minimality: bool | str) -> Parts | None:
    """What is taken out of the circuit; refuses what cannot be done.

    Raises:
        CircuitError: naming the choices.
    """
    if random < 0:
        raise CircuitError(f"the number of random circuits is at least 0, not {random}")
    if not circuit.num_edges:
        raise CircuitError("an empty circuit does what the ablated run does: there is nothing to judge")
    if minimality is False:
        return None
    if minimality is True or minimality == "edges":
        return "edges"
    if minimality == "nodes":
        return "nodes"
    raise CircuitError(f"minimality is False, True, 'edges' or 'nodes', not {minimality!r}")


def _notes(runs: CircuitRuns, circuit: Circuit, shared: tuple[int, int], prompts: int) -> dict[str, Any]:
    caveats = []
    for name, here in (("ablation", runs.ablation.kind), ("metric", runs.metric.name)):
        found = getattr(circuit, name)
        if found and found != here:
            caveats.append(f"the circuit was found with the {name} {found}, but is judged with {here}")
    if shared[0]:
        caveats.append(f"{shared[0]} of {prompts} prompts were also used to find the circuit")
    if shared[1]:
        caveats.append(overlap(shared[1], prompts, "the circuit"))
    return {"graph": asdict(runs.graph)} | ({"caveats": caveats} if caveats else {})


def _prefers(
    runs: CircuitRuns,
    mask: Bool[Tensor, "source dest"],
    values: Float[Tensor, "2 prompt"],
    numbers: Sequence[int],
) -> Float[Tensor, "2 prompt"] | None:
    """Whether model and circuit prefer the answer, if every pair has one.

    A difference of two logits, which `values` then are, says it already; for everything else the circuit is run again.
    """
    targets, foils = ([len(side[n]) for n in numbers] for side in (runs.pairs.targets, runs.pairs.foils))
    if not all(targets):
        return None
    if runs.metric.name == "logit_diff" and set(targets) == set(foils) == {1}:
        return (values > 0).to(values)
    other = copy.copy(runs)  # the same ablated runs, another metric
    other.metric = metric_of("accuracy")
    return measured(other, [runs.graph.valid, mask], numbers)


# --- parts of a circuit ------------------------------------------------------------------------------------------


def _without_each(
    runs: CircuitRuns, mask: Bool[Tensor, "source dest"], removed: Parts | None, numbers: Sequence[int]
) -> tuple[tuple[str, ...], Float[Tensor, "part prompt"]]:
    """The metric of the circuit without each of its parts, in the order of the layers that read them."""
    graph = runs.graph
    if removed is None:
        return (), torch.zeros(0, len(numbers))
    if removed == "edges":
        places = [(int(source), int(dest)) for dest, source in mask.T.nonzero()]
        names = [graph.edge_name(*place) for place in places]
        outs = [[place] for place in places]
    else:
        inside = [n for n in range(1, graph.num_sources) if len(_edges_of_node(graph, mask, n))]
        names = [graph.source_names[n] for n in inside]
        outs = [_edges_of_node(graph, mask, n) for n in inside]
    at_once = max(1, _AT_ONCE // mask.numel())
    found = [torch.zeros(0, len(numbers), dtype=runs.clean.dtype)]
    for begin in range(0, len(outs), at_once):
        masks = mask.expand(len(outs[begin : begin + at_once]), -1, -1).clone()
        for fewer, out in zip(masks, outs[begin:], strict=False):
            rows, columns = zip(*out, strict=True)
            fewer[list(rows), list(columns)] = False
        found.append(runs.measure(masks, pairs=numbers, base=mask))
    return tuple(names), torch.cat(found)


def _edges_of_node(graph: Graph, mask: Bool[Tensor, "source dest"], node: int) -> list[tuple[int, int]]:
    """A node's edges in the circuit: those out of it, and those into it that no other node of the circuit shares."""
    found = [(node, int(dest)) for dest in mask[node].nonzero()]
    for dest in graph.dests_of_source(node):
        shared = any(bool(mask[other].any()) for other in graph.sources_of_dest(dest) if other != node)
        if not shared:
            found += [(int(source), dest) for source in mask[:, dest].nonzero()]
    return found


def _added(
    runs: CircuitRuns, mask: Bool[Tensor, "source dest"], draws: int, numbers: Sequence[int], generator: Random
) -> Float[Tensor, " draw"]:
    """How much the circuit with a random path more changes without one edge of that path."""
    drawn = [both for _ in range(draws) if (both := inflated(runs.graph, mask, generator)) is not None]
    if not drawn:
        return torch.zeros(0, dtype=torch.float64)
    larger, fewer = (torch.stack(masks) for masks in zip(*drawn, strict=True))
    values = runs.measure(torch.cat([larger, fewer]), pairs=numbers, base=mask)
    return distance(values[: len(drawn)], values[len(drawn) :])


__all__ = [
    "SIZES",
    "CircuitEvaluation",
    "FaithfulnessCurve",
    "Interval",
    "RankQuality",
    "Stability",
    "TestResult",
    "area",
    "curve",
    "evaluate_circuit",
    "faithfulness_curve",
    "judge",
    "prompt_digest",
    "rank_quality",
    "shares",
    "stability",
]
