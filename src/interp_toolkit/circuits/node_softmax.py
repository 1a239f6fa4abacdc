"""Queries and keys of heads that attend sharply: the softmax is computed again instead of differentiated.

Where attention is saturated its slope is nearly zero, and a gradient says that queries and keys do not matter. The
effect of an ablated query or key on the pattern is cheap to compute exactly, and everything behind the pattern is
taken by its slope (Kramár et al. 2024, "AtP*: An efficient and scalable method for localizing LLM behaviour to
components"; their second correction, GradDrop, is not made). For keys each position is ablated on its own, as there:
with the share `p_t` of key `t` becoming `p_t'`, the others keep their proportions, so that the effect is
`(p_t − p_t') (g_t − ḡ)`, with `ḡ` the others' mean slope; no pattern is made for each key.

Two more forward passes give the scores: in one the queries (and values) of all heads are ablated, in the other the
keys. In both each pattern and each head's output is put back before anything else reads it, so that every layer is met
as in the clean run. The model's own attention makes the scores, with its windows, caps and biases.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from interp_toolkit.circuits.ablated import Ablated
from interp_toolkit.circuits.node_runs import NodeRun, ablated_values, forward
from interp_toolkit.circuits.subgraph import CircuitRuns
from interp_toolkit.errors import CircuitError
from interp_toolkit.model.wish import Change, Key, Wish

_MASKED = -5e3
"""Attention scores at or below this are masked."""
_MISSING = {torch.float64: 1e-3, torch.float32: 1e-3}
"""By how much a row of a pattern may miss one; in half precision by more."""


def softmax_scores(runs: CircuitRuns, ablated: Ablated, component: str) -> dict[int, Float[Tensor, "pair pos index"]]:
    """For each layer the scores of its queries (`"q"`), keys (`"k"`) or heads (`"z"`).

    A head's score is that of its query, its keys and its values, each ablated on its own, at the position of the query.

    Raises:
        CircuitError: for keys of a model with attention sinks, whose scores are not known up to a constant.
    """
    return _Softmax(runs, ablated, component).scores()


class _Softmax:
    """The passes over one batch of pairs."""

    def __init__(self, runs: CircuitRuns, ablated: Ablated, component: str) -> None:
        self.runs, self.ablated, self.component = runs, ablated, component
        self.wide = runs.stream.dtype
        self.slopes: dict[Key, Tensor] = {}
        self.clean: dict[Key, Tensor] = {}
        self.other: Mapping[Key, Tensor] = {}
        self.found: dict[int, Tensor] = {}
        self._old: dict[int, Tensor] = {}

    def scores(self) -> dict[int, Tensor]:
        names = {"q": ["q"], "k": ["k"], "z": ["q", "k", "v"]}[self.component]
        slopes = ["pattern", *(["z"] if "v" in names else [])]
        reads = [*slopes, *(["scores"] if "k" in names else [])]
        self.other = ablated_values(self.runs, self.ablated, self._keys(names))
        run = NodeRun(self.runs, self.ablated, self._keys(slopes), self.slopes.__setitem__, reads=self._keys(reads))
        run.at(self.ablated.clean_embed)
        self.clean = run.values
        layers = range(self.runs.graph.num_layers)
        if "k" in names:
            self._refuse_sinks()
            changes: dict[Key, Change] = {("k", n): self._set("k", n) for n in layers}
            changes |= {("scores", n): self._keys_part(n) for n in layers}
            changes |= {("pattern", n): self._restore(n) for n in layers}
            self._pass(changes)
        if "q" in names:
            changes = {("q", n): self._set("q", n) for n in layers}
            changes |= {("pattern", n): self._queries_part(n) for n in layers}
            if "v" in names:
                changes |= {("v", n): self._set("v", n) for n in layers}
                changes |= {("z", n): self._values_part(n) for n in layers}
            self._pass(changes)
        return self.found

    def _keys(self, names: list[str]) -> set[Key]:
        return {(name, layer) for name in names for layer in range(self.runs.graph.num_layers)}

    def _pass(self, changes: Mapping[Key, Change]) -> None:
        """A clean run with changes, for what these see."""
        wish = Wish(reads=frozenset(), changes=changes, logits_at=torch.zeros(1, 1, dtype=torch.long))
        forward(self.runs, self.ablated, self.ablated.clean, wish)

    def _add(self, layer: int, part: Float[Tensor, "pair pos index"]) -> None:
        self.found[layer] = self.found[layer] + part if layer in self.found else part

    # --- what happens on the way -------------------------------------------------------------------------------

    def _set(self, component: str, layer: int) -> Change:
        """Ablate queries, keys or values; those in front of what is run are the same."""

        def change(x: Tensor, columns: slice) -> Tensor:
            del columns
            value = self.other[component, layer].to(x.dtype)
            return torch.cat([x[:, : x.shape[1] - value.shape[1]], value], dim=1)

        return change

    def _restore(self, layer: int) -> Change:
        def change(x: Tensor, columns: slice) -> Tensor:
            del columns
            return self.clean["pattern", layer].to(x.dtype)

        return change

    def _queries_part(self, layer: int) -> Change:
        def change(x: Tensor, columns: slice) -> Tensor:
            del columns
            clean, slope = self.clean["pattern", layer], self.slopes.get(("pattern", layer))
            if slope is not None:
                part = ((clean.to(self.wide) - x.to(self.wide)) * slope.to(self.wide)).sum(-1)
                self._add(layer, part.transpose(1, 2))
            return clean.to(x.dtype)

        return change

    def _values_part(self, layer: int) -> Change:
        def change(x: Tensor, columns: slice) -> Tensor:
            del columns
            clean, slope = self.clean["z", layer], self.slopes.get(("z", layer))
            if slope is not None:
                self._add(layer, ((clean.to(self.wide) - x.to(self.wide)) * slope.to(self.wide)).sum(-1))
            return clean.to(x.dtype)

        return change

    def _keys_part(self, layer: int) -> Change:
        def change(x: Tensor, columns: slice) -> Tensor:
            del columns
            slope = self.slopes.get(("pattern", layer))
            if slope is not None:
                clean = self.clean["scores", layer]
                part = one_key_ablated(*(y.to(self.wide) for y in (clean, x, slope)))
                self._add(layer, self._by_node(part))
            return x

        return change

    def _by_node(self, part: Float[Tensor, "pair head pos key_pos"]) -> Float[Tensor, "pair pos index"]:
        """Of keys by group and position of the key, of heads by position of the query."""
        if self.component == "z":
            return part.sum(-1).transpose(1, 2)
        own = part.sum(2)[..., -self.ablated.embed.shape[1] :]
        by_group: Tensor = own.unflatten(1, (self.runs.wiring.shapes["k"][2], -1)).sum(2)
        return by_group.transpose(1, 2)

    def _refuse_sinks(self) -> None:
        for (component, layer), x in self.clean.items():
            if component != "pattern":
                continue
            missing = float((1 - x.to(self.wide).sum(-1)).abs().max())
            if missing > _MISSING.get(x.dtype, 5e-2):
                raise CircuitError(
                    f"atp* cannot compute the softmax of layer {layer} again for other keys: {missing:.1%} of some "
                    "token's attention go to a sink that is no token. Use kind='q', or method='eap-ig'"
                )


def one_key_ablated(
    scores: Float[Tensor, "*rows key_pos"],
    changed: Float[Tensor, "*rows key_pos"],
    slope: Float[Tensor, "*rows key_pos"],
) -> Float[Tensor, "*rows key_pos"]:
    """Σ_j (p_j − p_j') g_j for each key whose score alone is changed.

    Args:
        scores: what goes into the softmax.
        changed: what would go into it with the key changed.
        slope: at the pattern.

    Example:
        >>> scores, slope = torch.tensor([2.0, 0.0]), torch.tensor([1.0, 0.0])
        >>> one_key_ablated(scores, torch.tensor([0.0, 2.0]), slope)
        tensor([0.3808, 0.3808])
    """
    nothing = torch.full_like(scores, float("-inf"))
    masked = scores <= _MASKED
    scores, changed = torch.where(masked, nothing, scores), torch.where(masked, nothing, changed)
    pattern = scores.softmax(-1)
    total = scores.logsumexp(-1, keepdim=True)
    # What all other keys have together is 1 − p_t; for the largest share that would be the difference of two numbers
    # that are nearly the same, so its others are summed for themselves.
    best = scores.argmax(-1, keepdim=True)
    without = scores.scatter(-1, best, float("-inf"))
    at_best = torch.zeros_like(masked).scatter(-1, best, value=True)
    share = pattern.masked_fill(at_best, 0.0)
    others = torch.where(at_best, without.logsumexp(-1, keepdim=True), total + torch.log1p(-share))
    mean = (pattern * slope).sum(-1, keepdim=True)
    mean_without = (without.softmax(-1).nan_to_num(0.0) * slope).sum(-1, keepdim=True)
    other_slope = torch.where(at_best, mean_without, (mean - share * slope) / (1 - share))
    moved = (scores - others).sigmoid() - (changed - others).sigmoid()
    return (moved * (slope - other_slope)).masked_fill(masked, 0.0)


__all__ = ["one_key_ablated", "softmax_scores"]
