"""Ablation: take components out of a model and see what it costs.

What stands in their place decides what is asked: zero (which the model never sees in training), the mean over a
dataset, the mean there at the same position, or the activation of another prompt. Results depend on the choice, so
every result states it.

Sign convention, here and everywhere: a positive effect is **towards the clean answer**. An ablation that hurts is
negative, in a logit difference as in a loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from interp_toolkit.circuits.dataset import Answers
from interp_toolkit.circuits.effects import Effects
from interp_toolkit.circuits.grid import Where, available, make_grid
from interp_toolkit.circuits.knockout import Ablation, Cells, Setting, setting_of
from interp_toolkit.circuits.knockout_nodes import NodesLike, Place, nodes_of
from interp_toolkit.circuits.metrics import MetricLike
from interp_toolkit.circuits.reference import Reference
from interp_toolkit.circuits.replacing import MethodLike, replacement_of
from interp_toolkit.errors import RunError
from interp_toolkit.model.layout import Layout
from interp_toolkit.model.positions import PositionsLike
from interp_toolkit.model.sites import Site
from interp_toolkit.model.tokens import Inputs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Mode = Literal["single", "leave_one_out", "cumulative"]
Order = Literal["given", "effect", "absolute"]


def ablate(
    model: nn.Module,
    prompts: Inputs,
    nodes: NodesLike,
    *,
    method: MethodLike = "mean",
    mode: Mode = "single",
    order: Order = "given",
    answers: Answers = None,
    metric: MetricLike | None = None,
    reference: Reference | None = None,
    positions: PositionsLike = None,
    draws: int = 1,
    seed: int = 0,
    memory: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    layout: Layout | None = None,
) -> Effects:
    """Ablate nodes of a model, and measure what it costs for each prompt.

    Every run is one of its own, with the numbers of a full forward pass; they are packed into few and short passes.

    Args:
        model: a causal language model, as it is.
        prompts: texts or token ids; they may differ in length.
        nodes: `"L5H1"`, `"mlp_out.8"`, `"mlp_post.5.17"`, `"resid_pre.3"`, `"layer 5"`, a `Knockout`, or a list of
            these. A list inside the list is a set that is ablated together; `{"movers": ["L5H1", "L7H3"]}` names sets.
            `"head"` means every head, `"mlp"` or another component every layer of it.
        method: what is put in place: `"zero"`, `"mean"`, `"positional_mean"` (mean at the same position, counted from
            the start), `"resample"` (another prompt's activation at the same position), a number, a tensor that
            broadcasts against the site, or a mapping from sites to these.
        mode: `"single"`: each node on its own. `"leave_one_out"`: all nodes but one; the first entry leaves none out.
            `"cumulative"`: the first node, the first two, and so on.
        order: of `"cumulative"`: `"given"`, `"effect"` (the node whose own ablation hurts most first) or `"absolute"`
            (by the size of the effect).
        answers: the target that continues each prompt, `(target, foil)`, or `(targets, foils)`; for a list of prompts a
            list of these, or one tuple for all. Without a foil the best other token of the unedited run stands in.
        metric: a metric of `metric_of` at the last position (`"kl"` is to the unedited run), or over the whole prompt
            `"loss"` or `"mean_kl"`. By default `"logit_diff"` with answers, and `"loss"` without.
        reference: statistics of a dataset; by default the prompts' own.
        positions: where; all by default. A `Knockout` may have its own.
        draws: for `"resample"`, from how many other prompts, over which the metric is averaged.
        seed: of the draws.
        memory: bytes that passes may take beside the model; half of what is free by default.
        tokenizer: needed when the model does not say where it comes from.
        layout: for a model class of your own.

    Returns:
        The metric of every run for each prompt. `base` and `clean` are the unedited runs; `corrupt` is NaN.

    Raises:
        SiteError: for nodes that this model does not have, none at all, and sites that the reference lacks.
        TokenError: without prompts, and for answers that are not one token.
        PositionError: for positions outside of a prompt, and prompts that are longer than those of the reference.
        EditError: for values of the wrong shape.
        MetricError: for a metric without the answers that it needs, or that gives no number.
        RunError: when there is no other prompt to resample from.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=11)).eval()
        >>> effects = ablate(model, [[1, 2, 3], [4, 5, 6]], ["L0H1", "mlp_out.1", "layer 0"], metric="kl")
        >>> effects.axes, effects.labels, bool((effects.mean <= 0).all())
        (('node',), (('L0H1', 'mlp_out.1', 'layer 0'),), True)
    """
    study = prepare_ablation(
        model,
        prompts,
        nodes,
        method=method,
        mode=mode,
        order=order,
        answers=answers,
        metric=metric,
        reference=reference,
        positions=positions,
        draws=draws,
        seed=seed,
        memory=memory,
        tokenizer=tokenizer,
        layout=layout,
    )
    return study.run()


def prepare_ablation(
    model: nn.Module,
    prompts: Inputs,
    nodes: NodesLike,
    *,
    method: MethodLike = "mean",
    mode: Mode = "single",
    order: Order = "given",
    answers: Answers = None,
    metric: MetricLike | list[Any] | tuple[Any, ...] | None = None,
    reference: Reference | None = None,
    positions: PositionsLike = None,
    draws: int = 1,
    seed: int = 0,
    memory: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    layout: Layout | None = None,
) -> Ablation:
    """Check everything that an ablation needs, without ablating; see `ablate`.

    Args:
        model: a causal language model.
        prompts: texts or token ids.
        nodes: what to ablate.
        method: what is put in place.
        mode: which nodes together. `"cumulative"` by effect runs each node on its own to find the order.
        order: of `"cumulative"`.
        answers: of each prompt.
        metric: one, or a list of several, which are measured in the same runs.
        reference: statistics of a dataset.
        positions: where.
        draws: for `"resample"`.
        seed: of the draws.
        memory: bytes that passes may take.
        tokenizer: for text.
        layout: for a model class of your own.

    Returns:
        The ablation: `.explain()` says what it costs, `.run()` runs it, `.run_all()` gives every metric, and
        `.run(keep_draws=True)` keeps draws apart.
    """
    setting = setting_of(
        model, prompts, answers=answers, metric=metric, memory=memory, tokenizer=tokenizer, layout=layout
    )
    if mode not in ("single", "leave_one_out", "cumulative"):
        raise RunError(f"mode is 'single', 'leave_one_out' or 'cumulative', not {mode!r}")
    if order not in ("given", "effect", "absolute"):
        raise RunError(f"order is 'given', 'effect' or 'absolute', not {order!r}")
    found = nodes_of(nodes, setting.wiring)
    sites = [site for node in found for site in node.sites]
    single = Ablation(
        setting=setting,
        replacement=replacement_of(
            method, setting.wiring, setting.prompts.clean, sites, reference=reference, draws=draws, seed=seed
        ),
        axes=("node",),
        labels=(tuple(node.name for node in found),),
        cells=tuple(tuple(node.places(tokens, positions) for node in found) for tokens in setting.prompts.clean),
        what="each node on its own",
        notes={"seed": seed} if method == "resample" else {},
    )
    if mode == "single":
        return single
    return _leave_one_out(single) if mode == "leave_one_out" else _cumulative(single, order)


def ablation_sweep(  # noqa: PLR0913 - what patch_sweep takes, and what ablation needs besides
    model: nn.Module,
    prompts: Inputs,
    *,
    component: str = "head",
    over: Sequence[str] = ("layer", "head"),
    method: MethodLike = "mean",
    answers: Answers = None,
    metric: MetricLike | None = None,
    reference: Reference | None = None,
    positions: Where = None,
    layers: Sequence[int] | None = None,
    indices: Sequence[int] | None = None,
    draws: int = 1,
    seed: int = 0,
    memory: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    layout: Layout | None = None,
) -> Effects:
    """Ablate every cell of a grid on its own: all heads, all layers, all positions.

    Args:
        model: a causal language model, as it is.
        prompts: texts or token ids; with `"pos"` in `over` their positions must correspond.
        component: `"head"` (= `z`), `"attn"`, `"mlp"`, `"resid"`, `"neuron"`, or another component with layers.
        over: the axes, of `"layer"`, `"pos"`, and `"head"` or `"neuron"`. What is left out is ablated together.
        method: what is put in place; see `ablate`.
        answers: of each prompt; see `ablate`.
        metric: see `ablate`.
        reference: statistics of a dataset; by default the prompts' own.
        positions: where; with `"pos"` in `over` each on its own, or named groups.
        layers: which layers; all by default.
        indices: which heads or neurons; all by default.
        draws: for `"resample"`.
        seed: of the draws.
        memory: bytes that passes may take beside the model.
        tokenizer: needed when the model does not say where it comes from.
        layout: for a model class of your own.

    Returns:
        The metric of every cell for each prompt; NaN where a layer has no such site.

    Raises:
        InterpError: as `ablate`.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=11)).eval()
        >>> effects = ablation_sweep(model, [[1, 2, 3], [4, 5, 6]], method="zero", metric="loss")
        >>> effects.axes, tuple(effects.values.shape)
        (('layer', 'head'), (2, 2, 2))
    """
    setting = setting_of(
        model, prompts, answers=answers, metric=metric, memory=memory, tokenizer=tokenizer, layout=layout
    )
    grid = make_grid(setting.wiring, setting.prompts, component, over, layers=layers, indices=indices, where=positions)
    cells = tuple(_grid_cells(setting, grid.cells(n)) for n in range(len(setting.prompts)))
    sites = [site for cell in cells[0] if cell is not None for site, _ in cell]
    study = Ablation(
        setting=setting,
        replacement=replacement_of(
            method, setting.wiring, setting.prompts.clean, sites, reference=reference, draws=draws, seed=seed
        ),
        axes=grid.axes,
        labels=grid.labels,
        cells=cells,
        what=grid.component,
        notes={"seed": seed} if method == "resample" else {},
    )
    return study.run()


def _grid_cells(setting: Setting, cells: Sequence[tuple[Sequence[Site], tuple[int, ...]]]) -> Cells:
    found: list[tuple[Place, ...] | None] = []
    for sites, where in cells:
        usable = available(sites, setting.wiring)
        found.append(tuple((site, where) for site in sites) if usable else None)
    return tuple(found)


def _leave_one_out(single: Ablation) -> Ablation:
    """All nodes, and all but each."""
    (names,) = single.labels
    cells = tuple(
        tuple(_union(own[:n] + own[n + 1 :]) if n < len(own) else _union(own) for n in [len(own), *range(len(own))])
        for own in single.cells
    )
    return single.with_cells(cells, axes=("kept",), labels=(("none", *names),), what="all nodes but one")


def _cumulative(single: Ablation, order: Order) -> Ablation:
    """The first node, the first two, and so on."""
    (names,) = single.labels
    numbers = list(range(len(names)))
    notes: Mapping[str, object] = {}
    if order != "given":
        mean = single.run().mean
        numbers = (mean if order == "effect" else -mean.abs()).argsort(stable=True).tolist()
        notes = {"single effects": {names[n]: float(mean[n]) for n in numbers}}
    cells = tuple(
        tuple(_union([own[n] for n in numbers[: k + 1]]) for k in range(len(numbers))) for own in single.cells
    )
    labels = (tuple(f"{k} +{names[n]}" for k, n in enumerate(numbers, start=1)),)
    return single.with_cells(cells, axes=("k",), labels=labels, what=f"cumulative, in {order} order", notes=notes)


def _union(parts: Sequence[tuple[Place, ...] | None]) -> tuple[Place, ...]:
    return tuple(dict.fromkeys(place for part in parts if part is not None for place in part))


__all__ = ["Mode", "Order", "ablate", "ablation_sweep", "prepare_ablation"]
