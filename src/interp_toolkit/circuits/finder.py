"""Finding circuits: from pairs of prompts to a circuit that is as small as asked, judged on prompts of its own."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from interp_toolkit.circuits.ablated import AblationKind
from interp_toolkit.circuits.acdc import acdc
from interp_toolkit.circuits.attribution import ATTRIBUTIONS, attribute, check_ablation, check_method
from interp_toolkit.circuits.circuit import Circuit
from interp_toolkit.circuits.contrast import contrasted
from interp_toolkit.circuits.dataset import Answers, Pairs, prepare_pairs
from interp_toolkit.circuits.evaluation import CircuitEvaluation
from interp_toolkit.circuits.exact import exact_scores
from interp_toolkit.circuits.faithfulness import judge
from interp_toolkit.circuits.graph import connected, greedy_edges, path_of, top_edges
from interp_toolkit.circuits.judging import check_behaviour
from interp_toolkit.circuits.metrics import MetricLike, metric_of
from interp_toolkit.circuits.pruning import prune_edges
from interp_toolkit.circuits.reference import Reference
from interp_toolkit.circuits.roles import head_roles
from interp_toolkit.circuits.scores import EdgeScores
from interp_toolkit.circuits.splitting import split, words_of_split
from interp_toolkit.circuits.subgraph import CircuitRuns
from interp_toolkit.errors import CircuitError, InterpWarning
from interp_toolkit.model.layout import Layout
from interp_toolkit.model.tokens import Inputs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Selection = Literal["top", "greedy"]
SEARCHES = ("exact", "combine", "acdc", "edge-pruning")
METHODS: tuple[str, ...] = (*ATTRIBUTIONS, *SEARCHES)
"""Every method of `CircuitFinder`."""
_COMBINED = ("eap-ig", "clean-corrupt", "relp")
_SIZES = 18  # of the first search, from 16 edges to all
_REFINED = 5  # further sizes between two neighbours, twice
_STEP = 1e-3  # tolerance of acdc, as a share of the metric's difference


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """What a search went through.

    Attributes:
        runs: the pairs, the metric and the model.
        scores: of every edge.
        discovery: numbers of the pairs that the circuit was found on.
        evaluation: numbers of the pairs that it was judged on.
        tried: sizes that were tried, with the faithfulness on the discovery prompts.
        verdict: the judgement.
    """

    runs: CircuitRuns
    scores: EdgeScores
    discovery: tuple[int, ...]
    evaluation: tuple[int, ...]
    tried: tuple[tuple[int, float], ...]
    verdict: CircuitEvaluation


class CircuitFinder:
    """Finds the circuit of a behaviour.

    Args:
        model: a causal language model, as it is.
        threshold: how far faithfulness may be from 1 on the discovery prompts: of about thirty sizes that are tried,
            the smallest one within it is kept.
        method: how edges are scored: `eap`, `clean-corrupt`, `eap-ig`, `eap-ig-activations`, `conductance`, `relp`
            (see `interp_toolkit.circuits.attribution`), `exact` (each edge left out, for small models), `combine` (mean
            of three attributions), `edge-pruning` (learned), or `acdc` (the best edges by `eap-ig`, dropped one by
            one).
        edges: how many edges to choose, in place of the threshold. For `acdc` with how many to begin, for
            `edge-pruning` the size that is learned.
        selection: `"top"` takes the best edges, `"greedy"` grows the circuit from the logits.
        steps: points along the line, for methods that have one.
        ablation: what stands for an edge that is left out.
        reference: for means.
        evaluation: share of the pairs that are kept for judging; see `interp_toolkit.circuits.splitting`.
        random: how many random circuits of the same size are run beside it.
        roles: whether heads and MLPs are tested for roles.
        seed: of the split and the random circuits.
        tokenizer: for text, when the model does not say where it comes from.
        memory: bytes that runs may take.
        layout: for a model class of your own.

    Attributes:
        found_: after `find_circuit`, the scores, the search and the judgement.

    Raises:
        CircuitError: for a threshold, method or share that cannot be.

    Example:
        >>> from interp_toolkit import load_model, tasks
        >>> model, tokenizer = load_model("demo")
        >>> ioi = tasks.ioi(tokenizer, n=16)
        >>> finder = CircuitFinder(model, edges=50, method="eap", random=0, roles=False)
        >>> circuit = finder.find_circuit(ioi.clean, ioi.corrupt, answers=ioi.answers)
        >>> circuit.method, circuit.num_edges <= 50
        ('eap', True)
    """

    def __init__(
        self,
        model: nn.Module,
        threshold: float = 0.01,
        method: str = "eap-ig",
        *,
        edges: int | None = None,
        selection: Selection = "top",
        steps: int = 5,
        ablation: AblationKind = "corrupt",
        reference: Reference | None = None,
        evaluation: float = 0.5,
        random: int = 10,
        roles: bool = True,
        seed: int = 0,
        tokenizer: PreTrainedTokenizerBase | None = None,
        memory: int | None = None,
        layout: Layout | None = None,
    ) -> None:
        if not 0 < threshold < 1:
            raise CircuitError(
                f"threshold is how far faithfulness may be from 1, between 0 and 1 such as 0.1, not {threshold!r}"
            )
        if method not in METHODS:
            raise CircuitError(f"a method is one of {', '.join(METHODS)}, not {method!r}")
        for name in _COMBINED if method == "combine" else (method,) if method in ATTRIBUTIONS else ():
            check_method(name, steps)
            check_ablation(name, ablation)
        if selection not in get_args(Selection):
            raise CircuitError(f"selection is 'top' or 'greedy', not {selection!r}")
        if not 0 <= evaluation < 1:
            raise CircuitError(
                f"evaluation is the share of pairs for judging, at least 0 and below 1, not {evaluation}"
            )
        given: Any = edges  # users are not typed
        if given is not None and (not isinstance(given, Integral) or given < 1):
            raise CircuitError(f"edges is a whole number from 1 on, or None for a search, not {edges!r}")
        if ablation not in get_args(AblationKind):
            raise CircuitError(f"an ablation is one of {', '.join(get_args(AblationKind))}, not {ablation!r}")
        self.model, self.threshold, self.method, self.edges = model, threshold, method, edges
        self.selection, self.steps, self.ablation, self.reference = selection, steps, ablation, reference
        self.evaluation, self.random, self.roles, self.seed = evaluation, random, roles, seed
        self.tokenizer, self.memory, self.layout = tokenizer, memory, layout
        self.found_: Found | None = None

    def find_circuit(
        self,
        clean_inputs: Inputs,
        corrupt_inputs: Inputs,
        target_metric: MetricLike = "logit_diff",
        answers: Answers = None,
        *,
        progress: bool = True,
    ) -> Circuit:
        """The circuit of the behaviour that clean prompts show and corrupt ones do not.

        Args:
            clean_inputs: prompts that show the behaviour: texts or token ids.
            corrupt_inputs: matched prompts, each with as many tokens as its clean one.
            target_metric: a name, a `Metric`, or a function of logits.
            answers: a list of (target, foil) or (targets, foils), one tuple for all pairs, or None: the tokens whose
                log-probabilities rise and fall most from corrupt to clean, for each pair its own.
            progress: whether to show progress bars.

        Returns:
            The circuit with scores, roles, and in its notes faithfulness on the evaluation prompts, with its interval.

        Raises:
            AlignmentError, TokenError: for prompts and answers that do not fit, showing them.
            CircuitError: when the prompts differ in nothing that the metric measures, and for numbers of edges that
                the model does not have.

        Warns:
            InterpWarning: when the model does not prefer the clean answers, and for too few prompts.
        """
        pairs = prepare_pairs(
            self.model, clean_inputs, corrupt_inputs, answers, tokenizer=self.tokenizer, layout=self.layout
        )
        caveats = []
        if answers is None and metric_of(target_metric).needs_answers and not any(pairs.targets):
            pairs = contrasted(self.model, pairs, layout=self.layout)
            first = pairs.answer_names()
            caveats.append(
                f"answers are the tokens that move most between the prompts, such as {first[0]} and {first[1]}"
            )
        runs = CircuitRuns(
            self.model,
            pairs,
            metric_of(target_metric),
            ablation=self.ablation,
            reference=self.reference,
            memory=self.memory,
            layout=self.layout,
        )
        discovery, evaluation = split(pairs, self.evaluation, self.seed)
        caveats += words_of_split(pairs, discovery, evaluation)
        empty = runs.measure(torch.zeros_like(runs.graph.valid)[None], pairs=discovery)[0]
        self._check(runs, discovery, empty)
        scores = self._scores(runs, discovery, progress)
        mask, tried, words = self._selected(runs, scores, discovery, empty, progress)
        circuit = self._circuit(scores, mask, words, [*caveats, *runs.stream.frozen])
        verdict = self._judged(runs, circuit, evaluation)
        self.found_ = Found(
            runs=runs,
            scores=scores,
            discovery=tuple(discovery),
            evaluation=tuple(evaluation),
            tried=tuple(tried),
            verdict=verdict,
        )
        return replace(
            circuit,
            roles=self._roles(circuit, pairs) if self.roles else (),
            notes=circuit.notes
            | {
                "faithfulness": verdict.faithfulness.as_note(),
                "completeness": verdict.completeness.as_note(),
                "prompts": {"discovery": len(discovery), "evaluation": len(evaluation)},
                "search": [list(pair) for pair in tried],
                "seed": self.seed,
            }
            | ({"random": verdict.random_faithfulness.as_note()} if self.random else {}),
        )

    # --- steps -----------------------------------------------------------------------------------------------

    def _check(self, runs: CircuitRuns, discovery: Sequence[int], empty: Tensor) -> None:
        """That there is a behaviour to explain."""
        clean = runs.clean[list(discovery)]
        check_behaviour(clean, empty, runs.metric.name, runs.sign, 0.95)
        if runs.metric.name in ("logit_diff", "prob_diff") and float(clean.mean()) <= 0:
            warnings.warn(
                f"the model does not prefer the clean answers: {runs.metric.name} is {float(clean.mean()):.3f} on the "
                "clean prompts. What is found explains why the prompts differ, not a behaviour that the model has",
                InterpWarning,
                stacklevel=3,
            )

    def _scores(self, runs: CircuitRuns, discovery: Sequence[int], progress: bool) -> EdgeScores:
        if self.method == "exact":
            return exact_scores(runs, pairs=discovery, progress=progress)
        if self.method == "combine":
            return _combined([attribute(runs, name, steps=self.steps, pairs=discovery) for name in _COMBINED])
        base = attribute(
            runs, self.method if self.method in ATTRIBUTIONS else "eap-ig", steps=self.steps, pairs=discovery
        )
        if self.method == "edge-pruning":
            wanted = self.edges or max(16, runs.graph.num_edges // 100)
            return prune_edges(runs, base, wanted, pairs=discovery, progress=progress)
        return base

    def _selected(
        self, runs: CircuitRuns, scores: EdgeScores, discovery: Sequence[int], empty: Tensor, progress: bool
    ) -> tuple[Bool[Tensor, "source dest"], list[tuple[int, float]], str]:
        """The edges of the circuit, the sizes that were tried, and how it was chosen."""
        if self.method == "acdc":
            largest = self.edges or min(500, runs.graph.num_edges)
            found = acdc(runs, scores, tolerance=_STEP, unit="gap", largest=largest, pairs=discovery, progress=progress)
            words = f"of the best {largest:,} edges, those whose removal moves the metric by {_STEP:.1%} or more"
            return found.mask, [], words
        if self.edges is not None:
            mask = self._best(scores, self.edges)
            return mask, [], f"the best {self.edges:,} edges by |score|"
        gap = float((runs.clean[list(discovery)] - empty).mean())

        def faithfulness(masks: Sequence[Tensor]) -> list[float]:
            values = runs.measure(torch.stack(list(masks)), pairs=discovery)
            return [float((value - empty).mean()) / gap for value in values]

        size, tried = smallest(
            lambda n: self._best(scores, n), faithfulness, runs.graph.num_edges, threshold=self.threshold
        )
        near = dict(tried)[size]
        words = (
            f"the smallest of {len(tried)} sizes within {self.threshold:g} of the model: the best {size:,} edges by "
            f"|score|, faithfulness {near:.3f} on the discovery prompts"
        )
        return self._best(scores, size), tried, words

    def _best(self, scores: EdgeScores, n: int) -> Bool[Tensor, "source dest"]:
        choose = greedy_edges if self.selection == "greedy" else top_edges
        return connected(scores.graph, choose(scores.graph, scores.values, n, by="absolute"), ablation=self.ablation)

    def _circuit(self, scores: EdgeScores, mask: Tensor, words: str, caveats: Sequence[str]) -> Circuit:
        if not bool(mask.any()):
            raise CircuitError(
                f"no edge of those chosen lies on {path_of(self.ablation)} ({words}): choose more edges, or "
                "selection='greedy'"
            )
        circuit = scores.circuit(mask, words)
        notes: dict[str, Any] = {"caveats": list(caveats)} if caveats else {}
        if self.edges is None and self.method != "acdc":
            notes["threshold"] = self.threshold
        return replace(circuit, method=self.method, ablation=self.ablation, notes=circuit.notes | notes)

    def _judged(self, runs: CircuitRuns, circuit: Circuit, evaluation: Sequence[int]) -> CircuitEvaluation:
        with warnings.catch_warnings():
            # That prompts are shared is among the caveats.
            warnings.filterwarnings("ignore", message=".*were also used to find", category=InterpWarning)
            return judge(runs, circuit, random=self.random, pairs=evaluation, seed=self.seed)

    def _roles(self, circuit: Circuit, pairs: Pairs) -> tuple[Any, ...]:
        table = head_roles(
            self.model,
            list(circuit.heads),
            mlps=list(circuit.mlps),
            pairs=pairs if any(pairs.targets) else None,
            tokenizer=self.tokenizer,
            seed=self.seed,
            layout=self.layout,
        )
        return table.roles


def smallest(
    best: Callable[[int], Tensor],
    faithfulness: Callable[[Sequence[Tensor]], list[float]],
    most: int,
    *,
    threshold: float,
) -> tuple[int, list[tuple[int, float]]]:
    """The smallest size at which faithfulness is within a threshold of 1, of those that are tried.

    Faithfulness need not grow with size. Sizes from few edges to all are tried, then some between the smallest that is
    within and the one before it.

    Args:
        best: the circuit of a size.
        faithfulness: of some circuits.
        most: the largest size, at which it is 1.
        threshold: how far it may be from 1.

    Returns:
        The size, and all sizes with what was found, in order.
    """
    tried: dict[int, float] = {}

    def measure(sizes: Sequence[int]) -> None:
        new = sorted({size for size in sizes if size not in tried})
        if new:
            tried.update(zip(new, faithfulness([best(size) for size in new]), strict=True))

    first = min(16, most)
    measure(_between(first, most, _SIZES))
    for _ in range(2):
        within = min(size for size, value in tried.items() if abs(1 - value) <= threshold or size == most)
        before = max((size for size in tried if size < within), default=1)
        measure(_between(before, within, _REFINED + 2))
    within = min(size for size, value in tried.items() if abs(1 - value) <= threshold or size == most)
    return within, sorted(tried.items())


def _between(low: int, high: int, number: int) -> list[int]:
    """Sizes from low to high, evenly on a log scale."""
    return sorted({round(math.exp(x)) for x in torch.linspace(math.log(low), math.log(high), number).tolist()} | {high})


def _combined(parts: Sequence[EdgeScores]) -> EdgeScores:
    """The mean of several scores, each divided by the sum of its sizes."""
    scale = float(parts[0].values.abs().sum())
    scaled = [part.values * (scale / float(part.values.abs().sum()) / len(parts)) for part in parts]
    names = [part.method for part in parts]
    return replace(
        parts[0],
        values=torch.stack(scaled).sum(0),
        prompts=None,
        method="combine",
        notes=parts[0].notes | {"combined": names},
    )


__all__ = ["METHODS", "CircuitFinder", "Found", "smallest"]
