"""Attribution of nodes: the score of every head, MLP or neuron of a model from a few forward and backward passes.

The score of a node is (what it is in the clean run − what it is when ablated) times the slope of the metric there, as
in `attribution`, whose methods these are. It estimates what ablating that node alone in the clean run takes away. F
is a forward pass, B a backward pass, m the number of steps; another F reads nodes that circuits do not keep.

- `eap`, 2F + B: the slope of the clean run (Nanda 2023, "Attribution patching").
- `clean-corrupt`, 2F + 2(F + B): the mean of the clean and the ablated run's.
- `eap-ig`, 2F + m(F + B): the mean along the line from the ablated to the clean embedding, at Gauss-Legendre nodes.
- `conductance`, 2F + (m + 1)(F + B): slopes times what the node changes by along that line (Dhamdhere et al. 2019).
- `relp`, 2F + B: rules of relevance propagation in place of the gradient.
- `atp*`, 5F + B: for queries, keys and heads the softmax is computed again (see `node_softmax`); for other nodes it is
  `eap`. GradDrop, the other half of AtP*, is not made.

What sums to what: scores of neurons sum to that of their MLP, and scores of heads to that of their attention, where
what follows them is linear (no norm behind). A head's or MLP's score by `eap`, `clean-corrupt`, `eap-ig` or `relp` is
the sum of those of the edges out of it. By `conductance`, with `ablation="corrupt"`, the residual stream has clean −
ablated in front of every layer, and so has every set of nodes that everything passes through; heads of several layers
are none. With means or zeros the line ends in no run of the model, and nothing sums like that. `clean-corrupt` and
`conductance` are refused with zeros: norms have no usable slope there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp_toolkit.circuits.ablated import Ablated, AblationKind
from interp_toolkit.circuits.attribution import check_ablation
from interp_toolkit.circuits.dataset import Answers, Pairs, prepare_pairs
from interp_toolkit.circuits.effects import Effects
from interp_toolkit.circuits.grid import Grid, make_grid
from interp_toolkit.circuits.judging import used_prompts
from interp_toolkit.circuits.metrics import MetricLike, metric_of
from interp_toolkit.circuits.node_runs import NodeRun, ablated_values
from interp_toolkit.circuits.node_softmax import softmax_scores
from interp_toolkit.circuits.reference import Reference
from interp_toolkit.circuits.slopes import quadrature
from interp_toolkit.circuits.subgraph import CircuitRuns
from interp_toolkit.circuits.sweeps import notes_of, warn_without_behaviour
from interp_toolkit.errors import CircuitError
from interp_toolkit.model.layout import Layout
from interp_toolkit.model.relevance import RULES
from interp_toolkit.model.sites import COMPONENTS
from interp_toolkit.model.tokens import Inputs
from interp_toolkit.model.verify import verified
from interp_toolkit.model.wish import Key
from interp_toolkit.provenance import provenance_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NodeKind = Literal["heads", "mlps", "neurons", "q", "k", "v", "attn", "resid"]
NodeMethod = Literal["eap", "clean-corrupt", "eap-ig", "conductance", "relp", "atp*"]
NODE_METHODS: tuple[str, ...] = get_args(NodeMethod)
NODE_KINDS: dict[str, str] = {
    "heads": "z",
    "mlps": "mlp_out",
    "neurons": "mlp_post",
    "q": "q",
    "k": "k",
    "v": "v",
    "attn": "attn_out",
    "resid": "resid_pre",
}
"""Kinds of nodes, and the sites that they are."""
_SHARP = ("q", "k", "z")
_ALONG = ("eap-ig", "conductance")


def attribute_nodes(
    model: nn.Module,
    clean_inputs: Inputs,
    corrupt_inputs: Inputs,
    answers: Answers = None,
    *,
    kind: str = "heads",
    metric: MetricLike = "logit_diff",
    method: str = "eap",
    steps: int = 5,
    ablation: AblationKind = "corrupt",
    reference: Reference | None = None,
    by_position: bool = False,
    tokenizer: PreTrainedTokenizerBase | None = None,
    memory: int | None = None,
    layout: Layout | None = None,
) -> Effects:
    """Score every node of a kind by attribution: what ablating it in the clean run would do.

    Args:
        model: a causal language model, as it is.
        clean_inputs: prompts that show a behaviour: texts or token ids. They may differ in length.
        corrupt_inputs: matched prompts that do not, each with as many tokens as its clean one.
        answers: what a metric compares: a list of (target, foil), one tuple for all, or None for metrics of whole runs.
        kind: `"heads"` (what heads give), `"q"` (queries of heads), `"k"` or `"v"` (of groups that share them),
            `"attn"` (what attention adds), `"mlps"`, `"neurons"`, or `"resid"` (the stream in front of each layer).
        metric: a name, a `Metric`, or a function of logits; it needs a gradient.
        method: one of the list above.
        steps: points along the line, for methods that have one.
        ablation: what stands for a node that is ablated.
        reference: for means: of the embedding, heads, MLPs and these nodes.
        by_position: keep positions apart; all prompts then need one length.
        tokenizer: for text, when the model does not say where it comes from.
        memory: bytes that runs may take.
        layout: for a model class of your own.

    Returns:
        For each prompt the estimated metric of a clean run with each node ablated (`direction="noise"`). Its `change`
        is minus the score: **negative where the node helps the clean answer**, as ablating it takes that away. NaN
        where a layer has no such node.

    Raises:
        CircuitError: for a kind or method that does not exist, and what a method cannot do in this model.
        AlignmentError, TokenError: for prompts and answers that do not fit.
        MetricError: for a metric without a gradient.
        PositionError: for positions of prompts of several lengths.
        SiteError: for nodes that the model does not have.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=11)).eval()
        >>> effects = attribute_nodes(model, [[1, 2, 3]], [[1, 4, 3]], metric="kl", method="eap-ig")
        >>> effects.axes, effects.labels, effects.direction
        (('layer', 'head'), (('0', '1'), ('0', '1')), 'noise')
    """
    check_nodes(kind, method, steps)
    check_ablation(method, ablation)
    pairs = prepare_pairs(model, clean_inputs, corrupt_inputs, answers, tokenizer=tokenizer, layout=layout)
    if reference is None and ablation in ("mean", "positional"):
        reference = _means(model, pairs, kind, method, layout, positional=ablation == "positional")
    runs = CircuitRuns(
        model, pairs, metric_of(metric), ablation=ablation, reference=reference, memory=memory, layout=layout
    )
    return node_scores(runs, kind, method, steps=steps, by_position=by_position)


def check_nodes(kind: str, method: str, steps: int) -> None:
    """Refuse what cannot be done.

    Raises:
        CircuitError: naming the choices.
    """
    if kind not in NODE_KINDS:
        raise CircuitError(f"nodes are one of {', '.join(NODE_KINDS)}, not {kind!r}")
    if method not in NODE_METHODS:
        raise CircuitError(f"attribution of nodes is by one of {', '.join(NODE_METHODS)}, not {method!r}")
    if steps < 1:
        raise CircuitError(f"a line between two runs needs at least one step, not {steps}")


def _means(
    model: nn.Module, pairs: Pairs, kind: str, method: str, layout: Layout | None, *, positional: bool
) -> Reference:
    """The means that stand for nodes, over the corrupt prompts."""
    parts = {"q", "k", "v"} if method == "atp*" and kind == "heads" else {NODE_KINDS[kind]}
    prompts = [tokens.row() for tokens in pairs.corrupt]
    sites = sorted({"embed", "z", "mlp_out", *parts} - {"resid_pre"})
    return Reference.gather(model, prompts, sites=sites, positional=positional, layout=verified(model, layout).layout)


def node_scores(
    runs: CircuitRuns,
    kind: str,
    method: str,
    *,
    steps: int = 5,
    by_position: bool = False,
    pairs: Sequence[int] | None = None,
) -> Effects:
    """Score every node of a kind over pairs of prompts that are ready; see `attribute_nodes`.

    Args:
        runs: the pairs, the metric and the model.
        kind: of nodes.
        method: how.
        steps: points along the line.
        by_position: keep positions apart.
        pairs: numbers of the pairs; all if it is not given.
    """
    check_nodes(kind, method, steps)
    check_ablation(method, runs.ablation.kind)
    numbers = runs.numbers(pairs)
    chosen = _subset(runs.pairs, numbers)
    own = COMPONENTS[NODE_KINDS[kind]].index_axis
    over = ["layer", *(["pos"] if by_position else []), *([{"d_mlp": "neuron"}.get(own, own)] if own else [])]
    grid = make_grid(runs.wiring, chosen, NODE_KINDS[kind], over)
    scores = torch.full((len(numbers), *grid.shape), torch.nan, dtype=runs.clean.dtype)
    for batch in runs.batches(numbers):
        tally = _Tally(runs, runs.ablated(batch), grid, by_position=by_position)
        _score(tally, method, steps)
        scores[[numbers.index(n) for n in batch]] = tally.total.to(scores)
    effects = _effects(runs, chosen, grid, scores, kind, method, numbers)
    if method in _ALONG:
        effects.notes["steps"] = steps
    warn_without_behaviour(effects)
    return effects


def _subset(pairs: Pairs, numbers: Sequence[int]) -> Pairs:
    def those(every: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(every[n] for n in numbers)

    return replace(
        pairs,
        clean=those(pairs.clean),
        corrupt=those(pairs.corrupt),
        targets=those(pairs.targets),
        foils=those(pairs.foils),
    )


def _effects(
    runs: CircuitRuns, pairs: Pairs, grid: Grid, scores: Tensor, kind: str, method: str, numbers: Sequence[int]
) -> Effects:
    clean, corrupt = runs.clean[numbers], runs.corrupt[numbers]
    notes: dict[str, Any] = notes_of(pairs) | {
        "kind": kind,
        "method": method,
        "ablation": runs.ablation.kind,
        **used_prompts(runs.pairs, numbers),
    }
    return Effects(
        title=f"Ablating each of {kind} in the clean run, by {method}",
        axes=grid.axes,
        labels=grid.labels,
        values=clean.view(-1, *[1] * len(grid.axes)) - scores * runs.sign,
        base=clean,
        clean=clean,
        corrupt=corrupt,
        metric=runs.metric.name,
        unit=runs.metric.unit,
        larger_is_cleaner=runs.metric.larger_is_cleaner,
        direction="noise",
        approximate=True,
        notes=notes,
        provenance=provenance_of(runs.model, runs.wiring.layout),
    )


# --- methods ---------------------------------------------------------------------------------------------------


class _Tally:
    """Scores of one batch of pairs as they come in, layer by layer.

    Args:
        runs: the pairs, the metric and the model.
        ablated: the ablated runs.
        grid: the nodes.
        by_position: keep positions apart.
    """

    def __init__(self, runs: CircuitRuns, ablated: Ablated, grid: Grid, *, by_position: bool) -> None:
        self.runs, self.ablated, self.by_position = runs, ablated, by_position
        self.component = grid.component
        self.keys: list[Key] = [(s.component, s.layer) for s in runs.wiring.available(self.component)]
        self.total = torch.full(
            (len(ablated.numbers), *grid.shape), torch.nan, dtype=runs.stream.dtype, device=ablated.embed.device
        )
        self.total[:, [layer for _, layer in self.keys if layer is not None]] = 0.0

    def add(self, key: Key, carried: Tensor, slope: Tensor, weight: float = 1.0) -> None:
        """Add what nodes carry times the slope there."""
        wide = self.total.dtype
        product = carried.to(wide) * slope.to(wide)
        # Neurons are numbers, everything else is vectors.
        self.put(key, (product if self.component == "mlp_post" else product.sum(-1)) * weight)

    def put(self, key: Key, scores: Float[Tensor, "pair pos *index"]) -> None:
        """Add scores."""
        if self.by_position:
            self.total[:, key[1], self.total.shape[2] - scores.shape[1] :] += scores.to(self.total)
        else:
            self.total[:, key[1]] += scores.sum(1).to(self.total)


def _score(tally: _Tally, method: str, steps: int) -> None:
    runs, ablated = tally.runs, tally.ablated
    if method == "conductance":
        _conductance(tally, steps)
        return
    if method == "atp*" and tally.component in _SHARP:
        for layer, scores in softmax_scores(runs, ablated, tally.component).items():
            tally.put((tally.component, layer), scores)
        return
    here, there = ablated.clean_embed, ablated.clean_embed - ablated.embed
    points = [(here, 1.0)]
    if method == "clean-corrupt":
        points = [(here, 0.5), (there, 0.5)]
    elif method == "eap-ig":
        points = [(torch.lerp(there, here, share), weight) for share, weight in quadrature(steps)]
    other = ablated_values(runs, ablated, tally.keys)

    def seen(key: Key, slope: Tensor) -> None:
        tally.add(key, run.values[key] - other[key], slope, run.point.weight)

    run = NodeRun(runs, ablated, tally.keys, seen, rules=RULES["relevance" if method == "relp" else "gradient"])
    if method == "eap-ig":
        run.clean_run()
    for embed, weight in points:
        run.at(embed, weight=weight)


def _conductance(tally: _Tally, steps: int) -> None:
    """The trapezoid rule of ∫ g dx: between two points of the line, the mean slope times what nodes change by."""
    ablated = tally.ablated
    here, there = ablated.clean_embed, ablated.clean_embed - ablated.embed
    before: tuple[dict[Key, Tensor], dict[Key, Tensor]] | None = None
    for k in range(steps + 1):
        slopes: dict[Key, Tensor] = {}
        run = NodeRun(tally.runs, ablated, tally.keys, slopes.__setitem__)
        run.at(torch.lerp(there, here, k / steps))
        if before is not None:
            values, slopes_before = before
            for key, slope in slopes.items():
                tally.add(key, run.values[key] - values[key], slope + slopes_before[key], 0.5)
        before = run.values, slopes


__all__ = ["NODE_KINDS", "NODE_METHODS", "NodeKind", "NodeMethod", "attribute_nodes", "check_nodes", "node_scores"]
