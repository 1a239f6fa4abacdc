"""Ablated runs: what stands in for the edges that a circuit leaves out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp_toolkit.circuits.dataset import Pairs
from interp_toolkit.circuits.reference import Reference
from interp_toolkit.circuits.stream import Stream
from interp_toolkit.errors import CircuitError
from interp_toolkit.model.base_runs import KeysValues
from interp_toolkit.model.forward import execute
from interp_toolkit.model.prefix import keeping_cache, kept_in
from interp_toolkit.model.run import expand, run
from interp_toolkit.model.sites import Site
from interp_toolkit.model.tokens import Tokens, encode
from interp_toolkit.model.trial import shortcuts_of
from interp_toolkit.model.wish import Wish

AblationKind = Literal["corrupt", "mean", "positional", "zero"]
"""What stands in for an edge that is left out: the source's activation in the corrupt run, its mean over prompts (at
each position), or nothing."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Ablated:
    """The ablated runs of some pairs of one length.

    Attributes:
        numbers: which pairs.
        clean: their clean prompts.
        first: the first position at which a circuit run can differ from the ablated run. What follows begins there.
        z: what heads give in the ablated run, for each layer.
        mlp: what MLPs write in the ablated run, for each layer.
        before: the residual stream of the ablated run in front of each block, and behind the last.
        middle: the same between attention and MLP; in parallel blocks it is that in front of them.
        embed: what the embedding writes in the clean run beside the ablated one.
        clean_embed: what it writes in the clean run.
        prefix: for each layer the keys and values of the ablated run; None if all positions are run.
    """

    numbers: tuple[int, ...]
    clean: Int[Tensor, "pair whole_pos"]
    first: int
    z: Sequence[Float[Tensor, "pair pos head d_head"]]
    mlp: Sequence[Float[Tensor, "pair pos d_model"]]
    before: Sequence[Float[Tensor, "pair pos d_model"]]
    middle: Sequence[Float[Tensor, "pair pos d_model"]]
    embed: Float[Tensor, "pair pos d_model"]
    clean_embed: Float[Tensor, "pair pos d_model"]
    prefix: Sequence[KeysValues | None] | None = None

    @property
    def size(self) -> int:
        """Bytes that it takes."""
        parts = [*self.z, *self.mlp, *self.before, *self.middle, self.embed, self.clean_embed]
        caches = [x for known in self.prefix or () if known is not None for x in (known.keys, known.values)]
        return sum(x.numel() * x.element_size() for x in [*parts, *caches])


@dataclass(frozen=True, kw_only=True, eq=False)
class Ablation:
    """How edges are left out.

    Attributes:
        stream: the model.
        pairs: pairs of prompts.
        kind: what stands in for an edge that is left out.
        reference: for means.
    """

    stream: Stream
    pairs: Pairs
    kind: AblationKind
    reference: Reference | None = None

    @torch.no_grad()
    def ablated(self, numbers: tuple[int, ...]) -> Ablated:
        """The ablated runs of some pairs of one length."""
        clean = torch.cat([self.pairs.clean[n].ids for n in numbers])
        if self.kind == "corrupt":
            corrupt = torch.cat([self.pairs.corrupt[n].ids for n in numbers])
            first = int((clean != corrupt).any(0).nonzero()[0])
            return self._interchanged(numbers, clean, corrupt, first if shortcuts_of(self.stream.wiring).prefix else 0)
        here, _ = self._read(clean, keep=False)
        parts = self._parts(here)
        embed = here[Site("embed")]
        gone = self._mean(Site("embed"), embed)
        before, middle, z, mlp = self._replaced(*parts, gone - embed)
        moved = embed.to(self.stream.dtype) - gone.to(self.stream.dtype)
        return Ablated(
            numbers=numbers,
            clean=clean,
            first=0,
            z=z,
            mlp=mlp,
            before=before,
            middle=middle,
            embed=moved,
            clean_embed=embed.to(self.stream.dtype),
        )

    def _interchanged(self, numbers: tuple[int, ...], clean: Tensor, corrupt: Tensor, first: int) -> Ablated:
        """The corrupt runs. In front of the first other token circuit runs are the same as these."""
        there, prefix = self._read(corrupt, keep=first > 0)
        embed = run(self.stream.wiring.model, encode(clean), read="embed", layout=self.stream.wiring.layout)["embed"]
        wide = self.stream.dtype
        before, middle, z, mlp = ([x[:, first:].contiguous() for x in part] for part in self._parts(there))
        return Ablated(
            numbers=numbers,
            clean=clean,
            first=first,
            z=z,
            mlp=mlp,
            before=[x.to(wide) for x in before],
            middle=[x.to(wide) for x in middle],
            embed=embed[:, first:].to(wide) - there[Site("embed")][:, first:].to(wide),
            clean_embed=embed[:, first:].to(wide),
            prefix=prefix,
        )

    def _read(
        self, ids: Int[Tensor, "pair pos"], *, keep: bool
    ) -> tuple[dict[Site, Tensor], Sequence[KeysValues | None] | None]:
        """What sources write in a run and what the residual stream is; keys and values if they are to be kept."""
        last = self.stream.graph.num_layers - 1
        names = ["embed", "resid_pre", "z", "mlp_out", f"resid_post.{last}"]
        if not self.stream.graph.parallel:
            names.append("resid_mid")
        sites = expand(names, self.stream.wiring)
        cache = keeping_cache(self.stream.graph.num_layers) if keep else None
        tokens = Tokens(ids=ids, mask=torch.ones_like(ids))
        session, _ = execute(self.stream.wiring, tokens, Wish(reads=frozenset(sites), stop=not keep), cache=cache)
        found = {site: session.readings[site.component, site.layer][0] for site in sites}
        return found, None if cache is None else kept_in(cache)

    def _parts(self, found: dict[Site, Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        """The residual stream in front of each block and behind the last, between the sublayers, and what they give."""
        layers = range(self.stream.graph.num_layers)
        before = [found[Site("resid_pre", n)] for n in layers]
        before.append(found[Site("resid_post", self.stream.graph.num_layers - 1)])
        middle = [found[Site("resid_pre" if self.stream.graph.parallel else "resid_mid", n)] for n in layers]
        return before, middle, [found[Site("z", n)] for n in layers], [found[Site("mlp_out", n)] for n in layers]

    def _mean(self, site: Site, like: Float[Tensor, "pair pos *feature"]) -> Tensor:
        """What stands in for a site: its mean, or zero."""
        if self.kind == "zero" or self.reference is None:
            return torch.zeros_like(like)
        positional = self.kind == "positional"
        mean = self.reference.positional_mean(site, like.shape[1]) if positional else self.reference.mean(site)
        return mean.to(like).expand_as(like)

    def _replaced(
        self,
        before: Sequence[Tensor],
        middle: Sequence[Tensor],
        z: Sequence[Tensor],
        mlp: Sequence[Tensor],
        moved: Tensor,
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        """The residual stream of a run in which every source writes its mean, or nothing; biases stay."""
        moved = moved.to(self.stream.dtype)
        streams, middles, heads, mlps = [], [], [], []
        for layer in range(self.stream.graph.num_layers):
            streams.append(before[layer] + moved)
            heads.append(self._mean(Site("z", layer), z[layer]))
            mlps.append(self._mean(Site("mlp_out", layer), mlp[layer]))
            attention = self.stream.write(layer, heads[layer], z[layer]).sum(1)
            middles.append(middle[layer] + moved + (0 if self.stream.graph.parallel else attention))
            moved = moved + attention + (mlps[layer] - mlp[layer])
        return [*streams, before[-1] + moved], middles, heads, mlps


def ablation_of(stream: Stream, pairs: Pairs, kind: AblationKind, reference: Reference | None = None) -> Ablation:
    """How edges are left out.

    Args:
        stream: the model.
        pairs: pairs of prompts.
        kind: what stands in for an edge that is left out.
        reference: for means; over the corrupt prompts if it is not given.

    Raises:
        CircuitError: for an ablation that does not exist, and for means in models whose heads write through a norm.
        RunError: for a reference of another model.
    """
    if kind not in get_args(AblationKind):
        raise CircuitError(f"ablation is one of {', '.join(get_args(AblationKind))}, not {kind!r}")
    wiring = stream.wiring
    if kind in ("mean", "positional") and wiring.layout.attn_norm is not None:
        raise CircuitError(
            f"this {wiring.layout.model_type} model has a norm behind attention: the mean of what a head writes is not "
            "what its mean writes. Use ablation='corrupt' or 'zero'"
        )
    if reference is not None:
        reference.check(wiring)
    elif kind in ("mean", "positional"):
        prompts = [tokens.row() for tokens in pairs.corrupt]
        sites, positional = ["embed", "z", "mlp_out"], kind == "positional"
        reference = Reference.gather(wiring.model, prompts, sites=sites, positional=positional, layout=wiring.layout)
    return Ablation(stream=stream, pairs=pairs, kind=kind, reference=reference)


__all__ = ["Ablated", "Ablation", "AblationKind", "ablation_of"]
