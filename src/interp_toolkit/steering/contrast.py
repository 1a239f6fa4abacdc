"""Steering vectors from contrasting prompts, from probes, and from given tensors."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp_toolkit.errors import PositionError, SteeringError
from interp_toolkit.model.layout import Layout
from interp_toolkit.model.positions import PositionsLike
from interp_toolkit.model.positions import positions as as_positions
from interp_toolkit.model.run import run
from interp_toolkit.model.sites import COMPONENTS, SHORT_NAMES, Site
from interp_toolkit.model.tokens import Inputs, Tokens, encode, is_text, tokenizer_for
from interp_toolkit.model.verify import verified
from interp_toolkit.model.wiring import Wiring
from interp_toolkit.provenance import provenance_of
from interp_toolkit.steering.vector import SITES, SteeringVector

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Method = Literal["mean-difference", "paired-pca"]

_CHUNK = 16  # prompts that are run together
_NONE = 1e-6  # a direction shorter than this share of activations is rounding


@runtime_checkable
class Directed(Protocol):
    """What has a direction, such as `LinearProbe`."""

    @property
    def direction(self) -> Tensor:
        """The direction."""


def steering_vector(
    model: nn.Module,
    positive: Inputs | Tokens,
    negative: Inputs | Tokens,
    *,
    method: Method = "mean-difference",
    layers: int | Sequence[int] | None = None,
    site: str = "resid_post",
    positions: PositionsLike = "last",
    tokenizer: PreTrainedTokenizerBase | None = None,
    notes: str = "",
    layout: Layout | None = None,
) -> SteeringVector:
    """The direction from one set of prompts to another, at each layer.

    Args:
        model: a causal language model.
        positive: prompts that show what is wanted; text, texts or token ids.
        negative: prompts that do not.
        method: `"mean-difference"` (Marks and Tegmark 2023; Rimsky et al. 2023): the mean of the positive minus that
            of the negative. `"paired-pca"` (Zou et al. 2023): the first principal direction of the differences within
            pairs, about zero, with the sign and length of their mean's part along it; the sets then belong together
            one by one.
        layers: for which; all if not given.
        site: a component of the residual stream's width, such as `"resid_post"` or `"mlp_out"`; one with a layer, such
            as `"resid_post.6"`, names that layer.
        positions: which tokens are read; a prompt with several of them counts with their mean.
        tokenizer: needed for text when the model does not say where it comes from.
        notes: kept with the vector.
        layout: for a model class of your own.

    Raises:
        SteeringError: for empty or one-sided sets, sets that are not pairs, or a difference of zero.
        SiteError: for layers that are not there.
        PositionError: for positions that a prompt does not have.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=11)).eval()
        >>> vector = steering_vector(model, [[1, 2], [1, 3]], [[1, 4], [1, 5]], layers=1)
        >>> vector
        SteeringVector(mean-difference, resid_post 1, d_model=8)
    """
    if method not in ("mean-difference", "paired-pca"):
        raise SteeringError(f"a method is 'mean-difference' or 'paired-pca', not {method!r}")
    wiring = verified(model, layout)
    component, chosen = where_to_steer(wiring, site, layers)
    sides = []
    for name, given in (("positive", positive), ("negative", negative)):
        if not isinstance(given, str | Tokens) and len(given) == 0:
            raise SteeringError(f"there are no {name} prompts: a contrast needs both sides")
        sides.append(encode(given, tokenizer=tokenizer_for(model, tokenizer) if is_text(given) else tokenizer))
    if method == "paired-pca" and (len(sides[0]) != len(sides[1]) or len(sides[0]) < 2):
        raise SteeringError(
            f"paired-pca needs two pairs or more, but there are {len(sides[0])} positive and {len(sides[1])} negative "
            "prompts: give as many of both, in the same order, or use method='mean-difference'"
        )
    read = [_read(model, wiring, tokens, positions, component) for tokens in sides]
    norms = torch.cat([found.lengths for found in read]).nanmedian(0).values
    means = [found.means[:, list(chosen)] for found in read]
    find = _mean_difference if method == "mean-difference" else _paired_pca
    directions = torch.stack([find(means[0][:, n], means[1][:, n]) for n in range(len(chosen))])
    _check_lengths(directions, norms, chosen, component)
    units = directions / directions.norm(dim=-1, keepdim=True)
    low, high = ((units * side.mean(0)).sum(-1).float() for side in reversed(means))
    return SteeringVector(
        directions=directions.float(),
        layers=chosen,
        site=component,
        norms=norms.float(),
        low=low,
        high=high,
        method=method,
        digest=_digest(sides, positions),
        notes=notes,
        provenance=provenance_of(model, wiring.layout),
    )


def given_vector(
    model: nn.Module,
    directions: Float[Tensor, "*layer d_model"],
    *,
    layers: int | Sequence[int] | None = None,
    site: str = "resid_post",
    prompts: Inputs | Tokens | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    method: str = "given",
    digest: str = "",
    notes: str = "",
    layout: Layout | None = None,
) -> SteeringVector:
    """A steering vector from a tensor.

    Args:
        model: the model that it is for.
        directions: one direction, or one for each of the layers.
        layers: for which; one where there is one direction.
        site: a component of the residual stream's width; `"resid_post.6"` names the layer too.
        prompts: on which the length of the model's activations is measured, so that coefficients can be in units of
            it; without any, only `scale="raw"` is there.
        tokenizer: needed for text when the model does not say where it comes from.
        method: how it was found, in words.
        digest: of the data that it was made from.
        notes: kept with the vector.
        layout: for a model class of your own.

    Raises:
        SteeringError: for a direction that is zero, not finite or does not fit the model.
        SiteError: for layers that are not there.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=11)).eval()
        >>> given_vector(model, torch.ones(8), site="mlp_out.-1").layers
        (1,)
    """
    wiring = verified(model, layout)
    component, chosen = where_to_steer(wiring, site, layers)
    table = directions.detach().cpu().float()
    table = table[None] if table.ndim == 1 else table
    if table.shape != (len(chosen), wiring.layout.d_model):
        raise SteeringError(
            f"directions of shape {tuple(directions.shape)} do not fit {len(chosen)} layers of width "
            f"{wiring.layout.d_model}: give [d_model] and layers= of one number, or [layer, d_model]"
        )
    norms = torch.full((wiring.layout.num_layers,), torch.nan)
    if prompts is not None:
        norms = activation_norms(model, prompts, component, tokenizer=tokenizer, layout=layout)
    nothing = torch.full((len(chosen),), torch.nan)
    return SteeringVector(
        directions=table,
        layers=chosen,
        site=component,
        norms=norms,
        low=nothing,
        high=nothing,
        method=method,
        digest=digest,
        notes=notes,
        provenance=provenance_of(model, wiring.layout),
    )


def probe_vector(
    model: nn.Module,
    probe: Directed,
    site: str,
    *,
    pattern: bool = False,
    prompts: Inputs | Tokens | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    notes: str = "",
    layout: Layout | None = None,
) -> SteeringVector:
    """A steering vector from a probe's direction.

    Args:
        model: the model whose activations the probe reads.
        probe: such as a `LinearProbe` of two classes.
        site: what it reads, with its layer: `"resid_post.6"`.
        pattern: take the probe's `pattern`, that which the concept adds to activations, in place of its `direction`,
            along which the probe reads.
        prompts: see `given_vector`.
        tokenizer: needed for text when the model does not say where it comes from.
        notes: kept with the vector.
        layout: for a model class of your own.

    Raises:
        SteeringError: for a probe of several directions, or one that does not fit the model.

    Example:
        >>> from types import SimpleNamespace
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=11)).eval()
        >>> probe = SimpleNamespace(direction=torch.ones(8))
        >>> probe_vector(model, probe, "resid_post.0")
        SteeringVector(probe's direction, resid_post 0, d_model=8)
    """
    name = "pattern" if pattern else "direction"
    direction: Tensor = getattr(probe, name)
    if direction.ndim != 1:
        raise SteeringError(
            f"the probe has {len(direction)} directions, one for each class: take one, as "
            f"given_vector(model, probe.{name}[n], site={site!r})"
        )
    return given_vector(
        model,
        direction,
        site=site,
        prompts=prompts,
        tokenizer=tokenizer,
        method=f"probe's {name}",
        digest=str(getattr(probe, "digest_", "")),
        notes=notes,
        layout=layout,
    )


def activation_norms(
    model: nn.Module,
    prompts: Inputs | Tokens,
    site: str = "resid_post",
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    layout: Layout | None = None,
) -> Float[Tensor, " depth"]:
    """The median length of activations at a site, for every layer; NaN for layers that do not have it.

    Of all tokens, and not the mean: the first token's activations are many times longer in most models.

    Raises:
        SteeringError: without prompts.
    """
    wiring = verified(model, layout)
    if not isinstance(prompts, str | Tokens) and len(prompts) == 0:
        raise SteeringError("there are no prompts to measure the length of activations on")
    tokens = encode(prompts, tokenizer=tokenizer_for(model, tokenizer) if is_text(prompts) else tokenizer)
    return _read(model, wiring, tokens, "all", site).lengths.nanmedian(0).values.float()


def where_to_steer(wiring: Wiring, site: str, layers: int | Sequence[int] | None) -> tuple[str, tuple[int, ...]]:
    """The component and the layers that are meant, counted from 0.

    Raises:
        SteeringError: for a site without a vector of the residual stream's width, or a layer that is said twice.
        SiteError: for layers that are not there.
    """
    has_layer = SHORT_NAMES.get(site, site) not in COMPONENTS
    named = Site.parse(site) if has_layer else Site(site, 0)
    if named.component not in SITES or named.index is not None:
        raise SteeringError(f"one steers at {', '.join(SITES)}, not at {site!r}")
    if has_layer and layers is not None:
        raise SteeringError(f"the layer is said twice: by the site {site!r} and by layers={layers!r}")
    if has_layer:
        asked: Sequence[int] = (int(named.layer or 0),)
    elif layers is None:
        asked = range(wiring.layout.num_layers)
    else:
        asked = (layers,) if isinstance(layers, int) else tuple(layers)
    if not asked:
        raise SteeringError("no layer was asked for: give at least one")
    found = [int(wiring.check(Site(named.component, int(layer))).layer or 0) for layer in asked]
    return named.component, tuple(sorted(set(found)))


# --- reading activations ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class _Reading:
    """The mean activation of each prompt, and the length of every token's."""

    means: Float[Tensor, "prompt depth d_model"]
    lengths: Float[Tensor, "token depth"]


def same_lengths(tokens: Tokens, most: int = _CHUNK) -> Iterator[tuple[list[int], Tokens]]:
    """Prompts of one length together, so that nothing is padded; the numbers of the rows, and their tokens."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for number, length in enumerate(tokens.lengths.tolist()):
        by_length[int(length)].append(number)
    for numbers in by_length.values():
        for begin in range(0, len(numbers), most):
            some = numbers[begin : begin + most]
            ids = torch.tensor([tokens.row(number) for number in some])
            yield some, Tokens(ids=ids, mask=torch.ones_like(ids))


def _read(model: nn.Module, wiring: Wiring, tokens: Tokens, where: PositionsLike, component: str) -> _Reading:
    index = torch.where(tokens.mask.bool(), tokens.mask.cumsum(-1) - 1, -1)
    selected = as_positions(where).bind(tokens).select(index, tokens.lengths)
    if empty := [n for n, row in enumerate(selected) if not row.any()]:
        raise PositionError(f"no token of prompt {empty[0]} is at the positions {where!r}")
    depth, sites = wiring.layout.num_layers, wiring.available(component)
    if not sites:
        wiring.check(Site(component, 0))  # says why there is none
    means = torch.full((len(tokens), depth, wiring.layout.d_model), torch.nan, dtype=torch.float64)
    lengths = []
    for numbers, part in same_lengths(tokens):
        readings = run(model, part, read=sites, layout=wiring.layout)
        weights = torch.stack([selected[n][tokens.mask[n].bool()] for n in numbers]).double()
        weights /= weights.sum(-1, keepdim=True)
        some = torch.full((part.ids.numel(), depth), torch.nan, dtype=torch.float64)
        for site in sites:
            x = readings[site].cpu().double()
            means[numbers, int(site.layer or 0)] = torch.einsum("bp,bpd->bd", weights, x)
            some[:, int(site.layer or 0)] = x.norm(dim=-1).flatten()
        lengths.append(some)
    return _Reading(means=means, lengths=torch.cat(lengths))


def _mean_difference(positive: Tensor, negative: Tensor) -> Tensor:
    return positive.mean(0) - negative.mean(0)


def _paired_pca(positive: Tensor, negative: Tensor) -> Tensor:
    """Where differences of both signs spread most; the mean difference gives its sign and length."""
    differences = positive - negative
    first: Tensor = torch.linalg.svd(differences, full_matrices=False)[2][0]
    return first * (first @ differences.mean(0))


def _check_lengths(directions: Tensor, norms: Tensor, layers: Sequence[int], component: str) -> None:
    for direction, layer in zip(directions, layers, strict=True):
        if not bool(direction.isfinite().all()):
            raise SteeringError(f"activations at {component}.{layer} are not finite")
        if float(direction.norm()) <= _NONE * float(norms[layer]):
            raise SteeringError(
                f"positive and negative prompts do not differ at {component}.{layer}, so that the direction is zero: "
                "they end in the same token there, or are the same. Use another layer or other positions"
            )


def _digest(sides: Sequence[Tokens], where: Any) -> str:
    rows = [[tokens.row(n) for n in range(len(tokens))] for tokens in sides]
    return hashlib.sha256(json.dumps([rows, repr(where)]).encode()).hexdigest()[:16]


__all__ = [
    "Directed",
    "Method",
    "activation_norms",
    "given_vector",
    "probe_vector",
    "same_lengths",
    "steering_vector",
    "where_to_steer",
]
