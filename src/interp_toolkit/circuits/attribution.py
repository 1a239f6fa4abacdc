"""Attribution: the score of every edge of a model from a few forward and backward passes.

Every score is what an edge carries (what its source writes in the clean run beside the ablated one) times the slope of
the metric at its end. Methods differ in where the slope is taken, and so in passes (F forward, B backward, m steps, L
layers; two F are for the two runs):

- `eap`, 2F + B: at the clean run (Syed et al. 2023, "Attribution patching outperforms automated circuit discovery").
- `clean-corrupt`, 2F + 2(F + B): the mean of the clean and the ablated run's (Hanna et al. 2024).
- `eap-ig`, 2F + m(F + B): the mean along the line from the ablated to the clean embedding, at Gauss-Legendre nodes
  (Hanna et al. 2024, "Have faith in faithfulness", EAP-IG inputs).
- `eap-ig-activations`, 2F + m(2L + 1)(F + B) / 2: for each sublayer the mean along the line between what it writes in
  the two runs.
- `conductance`, 2F + (m + 1)(F + B): at steps along the embedding line, times what the source writes more from step to
  step (Dhamdhere et al. 2019).
- `relp`, 2F + B: at the clean run, with rules of relevance propagation in place of the gradient (Jafari et al. 2025).

The sign is that of everything here: a positive score helps the clean answer. With `ablation="corrupt"`, scores by
`conductance` sum to the metric's clean − ablated along every cut of the graph, and those by `eap-ig` do so for the
edges out of `embed`, both up to the error of few steps. With other ablations they need not: the line of embeddings ends
at a mean, or at zero, where heads and MLPs still write something, and not in the ablated run.

With `ablation="zero"` that line ends where norms have no slope that means anything (1/√ε, or none): `clean-corrupt` and
`conductance`, which take the slope there, are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp_toolkit.circuits.ablated import Ablated, AblationKind
from interp_toolkit.circuits.dataset import Answers, prepare_pairs
from interp_toolkit.circuits.judging import used_prompts
from interp_toolkit.circuits.metrics import MetricLike, metric_of
from interp_toolkit.circuits.reference import Reference
from interp_toolkit.circuits.scores import EdgeScores
from interp_toolkit.circuits.slopes import GradientRun, Point, Source, edge_scores, quadrature
from interp_toolkit.circuits.subgraph import CircuitRuns
from interp_toolkit.errors import CircuitError
from interp_toolkit.model.layout import Layout
from interp_toolkit.model.relevance import RULES
from interp_toolkit.model.tokens import Inputs
from interp_toolkit.provenance import provenance_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

AttributionMethod = Literal["eap", "clean-corrupt", "eap-ig", "eap-ig-activations", "conductance", "relp"]
ATTRIBUTIONS: tuple[str, ...] = get_args(AttributionMethod)
_AT_THE_END = ("clean-corrupt", "conductance")  # methods that take a slope at the ablated embedding
_PROMPTS_KEPT = 2**28  # scores that are kept prompt by prompt: 1 GB in float32


def attribute_edges(
    model: nn.Module,
    clean_inputs: Inputs,
    corrupt_inputs: Inputs,
    answers: Answers = None,
    *,
    metric: MetricLike = "logit_diff",
    method: str = "eap-ig",
    steps: int = 5,
    ablation: AblationKind = "corrupt",
    reference: Reference | None = None,
    by_position: bool = False,
    tokenizer: PreTrainedTokenizerBase | None = None,
    memory: int | None = None,
    layout: Layout | None = None,
) -> EdgeScores:
    """Score every edge of a model by attribution.

    Args:
        model: a causal language model, as it is.
        clean_inputs: prompts that show a behaviour: texts or token ids.
        corrupt_inputs: matched prompts that do not, each with as many tokens as its clean one.
        answers: what a metric compares: a list of (target, foil), one tuple for all, or None for metrics of whole runs.
        metric: a name, a `Metric`, or a function of logits; it needs a gradient.
        method: one of the list above.
        steps: points along the line, for methods that have one.
        ablation: what stands for an edge that is left out.
        reference: for means.
        by_position: keep positions apart too; all prompts then need one length.
        tokenizer: for text, when the model does not say where it comes from.
        memory: bytes that runs may take.
        layout: for a model class of your own.

    Raises:
        CircuitError: for a method that does not exist, has no such steps, or does not go with the ablation.
        AlignmentError, TokenError: for prompts and answers that do not fit.
        MetricError: for a metric without a gradient.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=11)).eval()
        >>> scores = attribute_edges(model, [[1, 2, 3]], [[1, 4, 3]], [(5, 6)], method="eap")
        >>> scores.graph.num_edges
        46
    """
    check_method(method, steps)
    check_ablation(method, ablation)
    pairs = prepare_pairs(model, clean_inputs, corrupt_inputs, answers, tokenizer=tokenizer, layout=layout)
    runs = CircuitRuns(
        model, pairs, metric_of(metric), ablation=ablation, reference=reference, memory=memory, layout=layout
    )
    return attribute(runs, method, steps=steps, by_position=by_position)


def check_method(method: str, steps: int) -> None:
    """Refuse what cannot be done.

    Raises:
        CircuitError: naming the choices.
    """
    if method not in ATTRIBUTIONS:
        raise CircuitError(f"attribution is by one of {', '.join(ATTRIBUTIONS)}, not {method!r}")
    if steps < 1:
        raise CircuitError(f"a line between two runs needs at least one step, not {steps}")


def check_ablation(method: str, ablation: str) -> None:
    """Refuse methods that take the slope where the embedding is zero.

    Raises:
        CircuitError: saying what works.
    """
    if ablation == "zero" and method in _AT_THE_END:
        raise CircuitError(
            f"{method} takes a slope where the whole embedding is ablated, but with ablation='zero' that is zero, and "
            "norms have no usable slope there: take 'eap', 'eap-ig' or 'relp', or another ablation"
        )


def attribute(
    runs: CircuitRuns,
    method: str,
    *,
    steps: int = 5,
    by_position: bool = False,
    pairs: Sequence[int] | None = None,
) -> EdgeScores:
    """Score every edge over pairs of prompts that are ready; see `attribute_edges`.

    Args:
        runs: the pairs, the metric and the model.
        method: how.
        steps: points along the line.
        by_position: keep positions apart too.
        pairs: numbers of the pairs; all if it is not given.

    Raises:
        CircuitError: for a method that does not exist or does not go with the ablation, and pairs named twice.
    """
    check_method(method, steps)
    check_ablation(method, runs.ablation.kind)
    numbers = runs.numbers(pairs)
    lengths = sorted({runs.pairs.lengths[n] for n in numbers})
    if by_position and len(lengths) > 1:
        raise CircuitError(f"scores by position need prompts of one length, but these have {lengths} tokens")
    graph = runs.graph
    total = torch.zeros(graph.num_sources, graph.num_dests, dtype=torch.float64)
    places = torch.zeros(lengths[0], *total.shape) if by_position else None
    keep = len(numbers) * total.numel() <= _PROMPTS_KEPT
    apart = torch.zeros(len(numbers) if keep else 0, *total.shape)
    for batch in runs.batches(numbers):
        found = _scores(runs, runs.ablated(batch), method, steps, by_position)
        if places is not None:
            begin = found.shape[1]
            places[lengths[0] - begin :] += found.sum(0).to(places) / len(numbers)
            found = found.sum(1)
        total += found.sum(0).double().cpu() / len(numbers)
        if keep:
            apart[[numbers.index(n) for n in batch]] = found.to(apart)
    names = tuple(map(str, range(lengths[0]))) if by_position else None
    return EdgeScores(
        graph=graph,
        values=total.float(),
        prompts=apart if keep else None,
        positions=names,
        by_position=places,
        method=method,
        metric=runs.metric.name,
        unit=runs.metric.unit,
        notes=_notes(runs, numbers, method, steps),
        provenance=provenance_of(runs.model, runs.wiring.layout),
    )


def _notes(runs: CircuitRuns, numbers: Sequence[int], method: str, steps: int) -> dict[str, Any]:
    notes: dict[str, Any] = {
        "prompts": len(numbers),
        **used_prompts(runs.pairs, numbers),
        "ablation": runs.ablation.kind,
    }
    if method in ("eap-ig", "eap-ig-activations", "conductance"):
        notes["steps"] = steps
    if runs.stream.frozen:
        notes["frozen"] = list(runs.stream.frozen)
    return notes


# --- methods ---------------------------------------------------------------------------------------------------


def _scores(
    runs: CircuitRuns, ablated: Ablated, method: str, steps: int, by_position: bool
) -> Float[Tensor, "pair *pos source dest"]:
    """The scores of one batch of pairs."""
    if method == "eap-ig-activations":
        return _along_activations(runs, ablated, steps, by_position)
    if method == "conductance":
        return _conductance(runs, ablated, steps, by_position)
    rules = RULES["relevance" if method == "relp" else "gradient"]
    gradient = GradientRun(runs, ablated, rules)
    here, there = ablated.clean_embed, ablated.clean_embed - ablated.embed
    if method in ("eap", "relp"):
        points = [gradient.at(here)]
        clean = points[0]
    elif method == "clean-corrupt":
        points = [gradient.at(here, weight=0.5), gradient.at(there, weight=0.5)]
        clean = points[0]
    else:
        points = [gradient.at(torch.lerp(there, here, share), weight=weight) for share, weight in quadrature(steps)]
        clean = gradient.clean_run()
    return edge_scores(runs.stream, points, difference(ablated, clean), rules=rules, by_position=by_position)


def difference(ablated: Ablated, clean: Point) -> Source:
    """What sources write in the clean run beside the ablated one."""
    return Source(
        embed=ablated.embed,
        z={layer: (z, ablated.z[layer]) for layer, z in clean.z.items()},
        mlp={layer: x - ablated.mlp[layer] for layer, x in clean.written.items()},
    )


def _conductance(
    runs: CircuitRuns, ablated: Ablated, steps: int, by_position: bool
) -> Float[Tensor, "pair *pos source dest"]:
    """Σ_k g(α_k) · [u(α_{k+1}) − u(α_{k−1})] / 2, one-sided at the ends: the trapezoid rule of ∫ g du."""
    gradient = GradientRun(runs, ablated)
    here, there = ablated.clean_embed, ablated.clean_embed - ablated.embed
    recent: list[tuple[float, Point]] = []
    total: Tensor | None = None
    for k in range(steps + 2):
        if k <= steps:
            recent.append((k / steps, gradient.at(torch.lerp(there, here, k / steps))))
        if k == 0:
            continue
        middle = recent[-2] if k <= steps else recent[-1]
        first = recent[-3] if k <= steps and len(recent) > 2 else (recent[-2] if k > steps else middle)
        last = recent[-1]
        found = edge_scores(runs.stream, [middle[1]], _between(first, last, ablated), by_position=by_position)
        total = found / 2 if total is None else total + found / 2
        recent = recent[-2:]
    return torch.empty(0) if total is None else total


def _between(first: tuple[float, Point], last: tuple[float, Point], ablated: Ablated) -> Source:
    """What sources write more at one point of the line than at an earlier one."""
    (a, before), (b, after) = first, last
    return Source(
        embed=ablated.embed * (b - a),
        z={layer: (z, before.z[layer]) for layer, z in after.z.items()},
        mlp={layer: x - before.written[layer] for layer, x in after.written.items()},
    )


def _along_activations(
    runs: CircuitRuns, ablated: Ablated, steps: int, by_position: bool
) -> Float[Tensor, "pair *pos source dest"]:
    """For each sublayer the line between what it writes in the clean and in the ablated run, all before it clean."""
    gradient = GradientRun(runs, ablated)
    clean = gradient.clean_run()
    whole = difference(ablated, clean)
    total: Tensor | None = None
    for source, begin, set_to in _sublayers(runs, ablated, clean, whole):
        points = []
        for share, weight in quadrature(steps):
            values = {key: torch.lerp(there, here, share) for key, (there, here) in set_to.items()}
            embed = ablated.clean_embed if set_to else ablated.clean_embed - ablated.embed * (1 - share)
            enter = (begin, clean.before[begin]) if begin else None
            points.append(gradient.at(embed, weight=weight, set_to=values, enter=enter))
        found = edge_scores(runs.stream, points, source, by_position=by_position)
        total = found if total is None else total + found
    return torch.empty(0) if total is None else total


def _sublayers(
    runs: CircuitRuns, ablated: Ablated, clean: Point, whole: Source
) -> Iterator[tuple[Source, int, dict[tuple[str, int | None], tuple[Tensor, Tensor]]]]:
    """The sources of each sublayer, the layer to begin at, and what is set between which two values."""
    yield Source(embed=whole.embed, z={}, mlp={}), 0, {}
    for layer in range(runs.graph.num_layers):
        both = (ablated.z[layer], clean.z[layer])
        yield Source(embed=None, z={layer: whole.z[layer]}, mlp={}), layer, {("z", layer): both}
        ends = (ablated.mlp[layer], clean.written[layer])
        yield Source(embed=None, z={}, mlp={layer: whole.mlp[layer]}), layer, {("mlp_out", layer): ends}


__all__ = [
    "ATTRIBUTIONS",
    "AttributionMethod",
    "attribute",
    "attribute_edges",
    "check_ablation",
    "check_method",
    "difference",
]
