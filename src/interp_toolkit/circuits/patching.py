"""Activation patching: put an activation of one run into another and see what the answer makes of it.

Sign convention, here and everywhere: a positive effect is **towards the clean answer**, in both directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from interp_toolkit.circuits.dataset import Answers
from interp_toolkit.circuits.effects import Effects
from interp_toolkit.circuits.grid import Where
from interp_toolkit.circuits.metrics import MetricLike
from interp_toolkit.circuits.pairs import Align, Pair, last_logits, prepare_pair
from interp_toolkit.circuits.results import Direction, PatchResult
from interp_toolkit.circuits.sweeps import Order, prepare_sweep
from interp_toolkit.errors import AlignmentError, PositionError, RunError, SiteError
from interp_toolkit.model.edits import Edit
from interp_toolkit.model.layout import Layout
from interp_toolkit.model.positions import PerRow, PositionsLike, Span, positions
from interp_toolkit.model.run import run
from interp_toolkit.model.sites import COMPONENTS, SHORT_NAMES, Site
from interp_toolkit.model.tokens import Inputs, Tokens, token_string
from interp_toolkit.model.verify import verified
from interp_toolkit.provenance import provenance_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def activation_patch(
    model: nn.Module,
    clean_input: Inputs,
    corrupt_input: Inputs,
    target_token: str | int | None = None,
    *,
    patch_component: str | Site = "resid",
    patch_layer: int | None = None,
    head: int | None = None,
    neuron: int | None = None,
    positions: PositionsLike = None,
    direction: Direction = "denoise",
    answers: Sequence[str | int] | None = None,
    align: Align = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    layout: Layout | None = None,
) -> PatchResult:
    """Patch one site of one run into another, and measure what it does to the answer.

    Args:
        model: a causal language model, as it is.
        clean_input: the prompt that shows the behaviour.
        corrupt_input: the matched prompt that does not.
        target_token: the clean answer: the token that continues the prompt, usually with its leading space.
        patch_component: `"resid"` (= `resid_pre`), `"attn"`, `"mlp"`, `"head"` (= `z`), `"q"`, `"k"`, `"v"`,
            `"pattern"`, `"neuron"`, any component of `COMPONENTS`, or a whole site such as `"L5H1"`.
        patch_layer: the layer, unless the component says it.
        head: one head (key/value head for `k` and `v`) instead of all.
        neuron: one neuron of the MLP instead of all.
        positions: where, in the prompt that is patched into; all by default. A `Span` is looked up in either prompt.
        direction: `"denoise"` puts clean into corrupt, `"noise"` corrupt into clean.
        answers: `(target, foil)`, in place of `target_token`. Without a foil the corrupt prompt's own best token
            stands in, and the result says so.
        align: for prompts of different lengths: `"left"`, `"right"` (position by position from that end), or a map from
            clean to corrupt positions. Only positions that correspond are patched.
        tokenizer: needed when the model does not say where it comes from.
        layout: for a model class of your own.

    Returns:
        Logit differences of the clean, the corrupt and the patched run, and what the patch changed.

    Raises:
        AlignmentError: when prompts of different lengths do not say how they line up.
        TokenError: for answers that are not one token.
        SiteError: for sites that this model does not have.
        PositionError: for positions outside of the prompt.

    Example:
        >>> import interp_toolkit
        >>> model, tokenizer = interp_toolkit.load_model("demo")
        >>> result = activation_patch(model, "The Eiffel Tower is in", "The Colosseum is in", "Paris",
        ...                           patch_layer=8, patch_component="mlp")
        >>> result.logit_diff_change > 0, result.foil
        (True, ' Rome')
    """
    if direction not in ("denoise", "noise"):
        raise RunError(
            f"direction is 'denoise' (clean into corrupt) or 'noise' (corrupt into clean), not {direction!r}"
        )
    site = verified(model, layout).check(_site(patch_component, patch_layer, head, neuron))
    pair = prepare_pair(
        model,
        clean_input,
        corrupt_input,
        target_token=target_token,
        answers=answers,
        align=align,
        tokenizer=tokenizer,
        layout=layout,
    )
    tokenizer = pair.clean.tokenizer
    source, base = (pair.clean, pair.corrupt) if direction == "denoise" else (pair.corrupt, pair.clean)
    chosen = _chosen(positions, pair, direction, site)
    value = run(model, source, read=[site.whole], layout=layout)[site]
    edit = Edit.set(site, _moved(value, site, chosen, len(base.row())), positions=[p for _, p in chosen])
    patched = last_logits(model, base, layout, edit)
    before = pair.corrupt_logits if direction == "denoise" else pair.clean_logits
    return PatchResult(
        site=str(site),
        positions=tuple(p for _, p in chosen),
        direction=direction,
        target=token_string(tokenizer, pair.target),
        foil=token_string(tokenizer, pair.foil),
        foil_from=pair.foil_from,
        clean_logit_diff=float(pair.logit_diff(pair.clean_logits)),
        corrupt_logit_diff=float(pair.logit_diff(pair.corrupt_logits)),
        patched_logit_diff=float(pair.logit_diff(patched)),
        probability_before=float(before.softmax(-1)[pair.target]),
        probability_after=float(patched.softmax(-1)[pair.target]),
        top_before=_top(before, tokenizer),
        top_after=_top(patched, tokenizer),
        clean_tokens=tuple(pair.clean.strings()),
        corrupt_tokens=tuple(pair.corrupt.strings()),
        provenance=provenance_of(model, verified(model, layout).layout),
    )


def patch_sweep(
    model: nn.Module,
    clean: Inputs,
    corrupt: Inputs,
    *,
    answers: Answers = None,
    component: str = "resid",
    over: Sequence[str] = ("layer", "pos"),
    metric: MetricLike = "logit_diff",
    direction: Direction = "denoise",
    positions: Where = None,
    layers: Sequence[int] | None = None,
    indices: Sequence[int] | None = None,
    order: Order = "exact",
    memory: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    layout: Layout | None = None,
) -> Effects:
    """Patch every cell of a grid, and measure what each does to the answer.

    Each cell is an edited run of its own, with the numbers of one full forward pass per cell; they are packed into few
    and short passes.

    Args:
        model: a causal language model, as it is.
        clean: the prompt that shows the behaviour, or a list of prompts.
        corrupt: the matched prompts, each with as many tokens as its clean one.
        answers: the target that continues the clean prompt, `(target, foil)`, or `(targets, foils)`; for a list of
            prompts a list of these, or one tuple for all. Without a foil the corrupt prompt's own best token stands in.
        component: `"resid"` (= `resid_pre`), `"attn"`, `"mlp"`, `"head"` (= `z`), `"q"`, `"k"`, `"v"`, `"pattern"`,
            `"head_out"`, `"neuron"`, or any other component with layers.
        over: the axes of the sweep, of `"layer"`, `"pos"`, and `"head"` or `"neuron"`. What is left out is patched
            together: `over=("layer",)` patches all positions of a layer, `over=("pos",)` all layers at a position.
        metric: see `metric_of`.
        direction: `"denoise"` puts clean into corrupt, `"noise"` corrupt into clean.
        positions: where; all by default. With `"pos"` in `over` each on its own, or named groups that are patched
            together: `{"subject": Span("France"), "last": -1}`.
        layers: which layers; all by default.
        indices: which heads, key/value heads or neurons; all by default.
        order: `"exact"` runs every cell; `"gradient"` estimates them all to first order from one backward pass
            (attribution patching, Nanda 2023).
        memory: bytes that passes may take beside the model; half of what is free by default.
        tokenizer: needed when the model does not say where it comes from.
        layout: for a model class of your own.

    Returns:
        The metric of every cell for each prompt, with labels, error bars over prompts and a heat map.

    Raises:
        AlignmentError: when the two prompts of a pair have different numbers of tokens.
        TokenError: for empty or identical prompts and answers that are not one token.
        SiteError: for components, layers, heads or neurons that this model does not have.
        PositionError: for positions outside of a prompt, or that do not correspond between prompts.
        MetricError: when the metric gives no number.

    Example:
        >>> import interp_toolkit
        >>> model, tokenizer = interp_toolkit.load_model("demo")
        >>> effects = patch_sweep(
        ...     model, "The capital of France is", "The capital of Italy is", answers=("Paris", "Rome"))
        >>> effects.axes, tuple(effects.values.shape)
        (('layer', 'pos'), (1, 30, 5))
        >>> effects.labels[1][3], round(float(effects.effect[0, 3]), 2)  # there everything starts
        ('3 France / Italy', 1.0)
    """
    sweep = prepare_sweep(
        model,
        clean,
        corrupt,
        answers=answers,
        component=component,
        over=over,
        metric=metric,
        direction=direction,
        positions=positions,
        layers=layers,
        indices=indices,
        memory=memory,
        tokenizer=tokenizer,
        layout=layout,
    )
    return sweep.run(order)


def _site(component: str | Site, layer: int | None, head: int | None, neuron: int | None) -> Site:
    if isinstance(component, str) and SHORT_NAMES.get(component, component) in COMPONENTS and layer is not None:
        site = Site(component, layer)
    else:
        site = Site.parse(component)
    if layer is not None and site.layer != layer:
        raise SiteError(f"{site} names layer {site.layer}, but patch_layer={layer} was given too")
    if head is not None and neuron is not None:
        raise SiteError("a patch is of a head or of a neuron, not of both")
    for name, index, axes in (("head", head, ("head", "kv_head")), ("neuron", neuron, ("d_mlp",))):
        if index is None:
            continue
        if site.kind.index_axis not in axes:
            raise SiteError(f"{site.component} has no {name}s, but {name}={index} was given")
        if site.index not in (None, index):
            raise SiteError(f"{site} names number {site.index}, but {name}={index} was given too")
        site = Site(site.component, site.layer, index)
    return site


def _chosen(where: PositionsLike, pair: Pair, direction: Direction, site: Site) -> list[tuple[int, int]]:
    """Pairs of positions (in the source, in the base) that are patched."""
    base = pair.corrupt if direction == "denoise" else pair.clean
    matched = [(a, b) if direction == "denoise" else (b, a) for a, b in pair.matched]
    if site.component in ("scores", "pattern") and len(pair.clean.row()) != len(pair.corrupt.row()):
        raise AlignmentError(
            f"{site.component} of prompts of different lengths have different keys and cannot be patched"
        )
    asked = _asked(where, pair, base)
    chosen = [(a, b) for a, b in matched if b in asked]
    if not chosen:
        raise PositionError(f"none of the positions {sorted(asked)} corresponds to a position of the other prompt")
    return chosen


def _asked(where: PositionsLike, pair: Pair, base: Tokens) -> set[int]:
    spec = positions(where)
    if isinstance(spec, Span):
        source = pair.clean if base is pair.corrupt else pair.corrupt
        try:
            bound = spec.bind(base)
        except PositionError:
            try:
                found = spec.bind(source)
            except PositionError as error:
                raise PositionError(f"{spec.text!r} is neither in {_text(base)} nor in {_text(source)}") from error
            there = set(found.rows[0]) if isinstance(found, PerRow) else set()
            pairs = [(a, b) if source is pair.clean else (b, a) for a, b in pair.matched]
            return {b for a, b in pairs if a in there}
    else:
        bound = spec.bind(base)
    length = len(base.row())
    selected = bound.select(torch.arange(length)[None], torch.tensor([length]))[0]
    return {int(n) for n in selected.nonzero()[:, 0]}


def _text(tokens: Tokens) -> str:
    return repr(tokens.texts[0] if tokens.texts else "".join(tokens.strings()))


def _moved(value: Tensor, site: Site, chosen: Sequence[tuple[int, int]], length: int) -> Tensor:
    """The source's activations, put where the base prompt has the corresponding positions."""
    dim = site.axes.index("pos")
    shape = list(value.shape)
    shape[dim] = length
    moved = value.new_zeros(shape)
    source, base = (torch.tensor(side, device=value.device) for side in zip(*chosen, strict=True))
    return moved.index_copy(dim, base, value.index_select(dim, source))


def _top(logits: Tensor, tokenizer: PreTrainedTokenizerBase | None, number: int = 5) -> tuple[tuple[str, float], ...]:
    best = logits.softmax(-1).topk(min(number, logits.shape[-1]))
    return tuple((token_string(tokenizer, int(i)), float(p)) for p, i in zip(best.values, best.indices, strict=True))


__all__ = ["activation_patch", "patch_sweep"]
