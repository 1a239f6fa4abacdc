"""Runs that show the activations of nodes and the slopes of the metric there, and what nodes are when ablated."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp_toolkit.circuits.ablated import Ablated
from interp_toolkit.circuits.slopes import GradientRun
from interp_toolkit.circuits.subgraph import CircuitRuns
from interp_toolkit.model.forward import execute
from interp_toolkit.model.prefix import prefix_cache
from interp_toolkit.model.relevance import RULES, Rules
from interp_toolkit.model.session import Session
from interp_toolkit.model.sites import Site
from interp_toolkit.model.tokens import Tokens
from interp_toolkit.model.wish import Change, Key, Wish

Seen = Callable[[Key, Tensor], None]
"""Is told a site and the slope there."""


class NodeRun(GradientRun):
    """A gradient run that shows the slopes at nodes, one after another on the way back, and keeps none of them.

    Args:
        runs: the pairs, their metric and the model.
        ablated: the ablated runs of these pairs.
        slopes: sites whose slopes are shown.
        seen: is given each slope; of keys and values those of the positions that are run.
        reads: sites whose activations are kept; those of `slopes` if they are not given.
        rules: how gradients are made.

    Attributes:
        values: the activations of the first run.
    """

    def __init__(
        self,
        runs: CircuitRuns,
        ablated: Ablated,
        slopes: Collection[Key],
        seen: Seen,
        *,
        reads: Collection[Key] | None = None,
        rules: Rules = RULES["gradient"],
    ) -> None:
        super().__init__(runs, ablated, rules)
        self.values: dict[Key, Tensor] = {}
        self._slopes, self._reads, self._seen = slopes, slopes if reads is None else reads, seen
        self._entered = torch.empty(0)

    def _changes(self, embed: Tensor, set_to: Mapping[Key, Tensor]) -> dict[Key, Change]:
        del set_to

        def enter(x: Tensor, columns: slice) -> Tensor:
            del columns
            self._entered = embed.to(x.dtype).detach().requires_grad_()
            return self._entered

        watched = {key: self._watch(key) for key in sorted({*self._slopes, *self._reads}, key=str)}
        return {("embed", None): enter, **watched}

    def _watch(self, key: Key) -> Change:
        def watch(x: Tensor, columns: slice) -> Tensor:
            del columns
            # A copy lies out of reach of operations in place.
            own = x.clone()
            if key in self._reads and key not in self.values:
                self.values[key] = self._fresh(key, own.detach())
            if key in self._slopes and own.requires_grad:
                own.register_hook(lambda slope: self._seen(key, self._fresh(key, slope)))
            return own.clone() if key[0] in ("attn_out", "mlp_out") else own

        return watch

    def _fresh(self, key: Key, x: Tensor) -> Tensor:
        """The positions that are run: keys and values have those in front of them too."""
        return x[:, -self.ablated.embed.shape[1] :] if key[0] in ("k", "v") else x

    def _inputs(self) -> dict[tuple[int, str], Callable[[Tensor], Tensor]]:
        return {}

    def _stand_ins(self) -> dict[tuple[int, str], Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor]]:
        return {}

    def _backward(self, values: Tensor) -> None:
        self._gradients(values, [self._entered])
        self._entered = torch.empty(0)


def ablated_values(
    runs: CircuitRuns, ablated: Ablated, keys: Collection[Key]
) -> dict[Key, Float[Tensor, "pair pos *feature"]]:
    """What nodes are when they are ablated, at the positions that are run.

    The residual stream is that of a run in which everything in front is ablated.

    Raises:
        SiteError: for means that were not gathered.
    """
    kept = {"z": ablated.z, "mlp_out": ablated.mlp, "resid_pre": ablated.before}
    found = {key: kept[key[0]][key[1]] for key in keys if key[0] in kept and key[1] is not None}
    rest = {Site(*key) for key in keys if key not in found}
    if not rest:
        return found
    side = runs.pairs.corrupt if runs.ablation.kind == "corrupt" else runs.pairs.clean
    whole = torch.cat([side[n].ids for n in ablated.numbers])
    session = forward(runs, ablated, whole, Wish(reads=frozenset(rest), stop=True))
    for site in rest:
        key = (site.component, site.layer)
        here = session.readings[key][0]
        found[key] = here if runs.ablation.kind == "corrupt" else _mean(runs, site, here)
    return found


def _mean(runs: CircuitRuns, site: Site, like: Tensor) -> Tensor:
    """The mean of a site, or zero."""
    reference = runs.ablation.reference
    if runs.ablation.kind == "zero" or reference is None:
        return torch.zeros_like(like)
    positional = runs.ablation.kind == "positional"
    mean = reference.positional_mean(site, like.shape[1]) if positional else reference.mean(site)
    return mean.to(like).expand_as(like)


def forward(runs: CircuitRuns, ablated: Ablated, ids: Int[Tensor, "pair whole_pos"], wish: Wish) -> Session:
    """Run prompts behind the positions at which those of a pair are the same."""
    start = 0 if ablated.prefix is None else ablated.first
    new = ids[:, start:]
    cache = None
    if ablated.prefix is not None:
        cache = prefix_cache(ablated.prefix, torch.arange(len(new), device=ablated.embed.device), start)
    session, _ = execute(runs.wiring, Tokens(ids=new, mask=torch.ones_like(new)), wish, cache=cache)
    return session


__all__ = ["NodeRun", "Seen", "ablated_values", "forward"]
