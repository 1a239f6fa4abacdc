"""What several methods say of each head and MLP of a model, and how far they agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp_toolkit.statistics import spearman

DRAWS = 200  # of prompts, for intervals of rank correlations


@dataclass(frozen=True, kw_only=True)
class Components:
    """The heads and MLPs of a model, layer by layer, the MLP behind the heads."""

    names: Sequence[str]
    num_layers: int

    def of_kind(self, *, mlps: bool) -> list[int]:
        """The numbers of all MLPs, or of all heads."""
        return [n for n, name in enumerate(self.names) if name.endswith("MLP") == mlps]

    def by_layer(self, sizes: Float[Tensor, " component"]) -> Float[Tensor, "layer part"]:
        """Sizes of heads and, at the end, of the MLP, a row for each layer."""
        return sizes.view(self.num_layers, -1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Account:
    """What one method says of each head and MLP on each prompt, in nats: `[prompt, component, part]`.

    Where importance is a sum of sizes, as that of a circuit's node over its edges, it has parts. NaN is for what the
    method cannot say anything of.
    """

    name: str
    values: Float[Tensor, "prompt component part"]

    @property
    def effect(self) -> Float[Tensor, " component"]:
        """Of each component, with its sign: above 0 is towards the right answer."""
        return self.values.mean(0).sum(-1)

    def sizes(self, weights: Float[Tensor, "draw prompt"]) -> Float[Tensor, "draw component"]:
        """How strong each component is, for several weights of the prompts."""
        flat = self.values.flatten(1)
        return torch.stack([(weight @ flat).view(self.values.shape[1:]).abs().sum(-1) for weight in weights])

    @property
    def size(self) -> Float[Tensor, " component"]:
        """How strong each component is over all prompts."""
        return self.values.mean(0).abs().sum(-1)

    @property
    def order(self) -> list[int]:
        """The components of which it says something, the strongest first."""
        order = (-self.size).argsort(stable=True).tolist()
        return [n for n in order if bool(self.size[n].isfinite())]

    def of(self, components: Int[Tensor, " some"]) -> Account:
        """What it says of some components."""
        return replace(self, values=self.values[:, components])


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far two accounts agree.

    Attributes:
        names: of both.
        rho: Spearman's rank correlation over all components.
        low: lower end of its interval, by prompts that are drawn again for both alike.
        high: upper end.
        shared: how many components are among the strongest of both.
        same_sign: on how many of these both have one sign.
        farthest: the component over which they part most, of those that are among the strongest of one.
        places: where each of them has it, from 1.
    """

    names: tuple[str, str]
    rho: float
    low: float
    high: float
    shared: int
    same_sign: int
    farthest: int
    places: tuple[int, int]


def agreement(first: Account, second: Account, strongest: int, seed: int) -> Agreement:
    """Rank correlation and overlap of two accounts, over the components of which both say something."""
    both_say = (first.size + second.size).isfinite().nonzero()[:, 0]
    first, second, n = first.of(both_say), second.of(both_say), len(first.values)
    drawn = torch.randint(n, (DRAWS, n), generator=torch.Generator().manual_seed(seed))
    weights = torch.nn.functional.one_hot(drawn, n).float().mean(1)
    low, high = spearman(first.sizes(weights), second.sizes(weights)).quantile(torch.tensor([0.025, 0.975])).tolist()
    places = torch.stack([torch.tensor(account.order).argsort() for account in (first, second)])
    both, either = (places < strongest).all(0), (places < strongest).any(0)
    farthest = int(((places[0] - places[1]).abs() * either).argmax())
    return Agreement(
        names=(first.name, second.name),
        rho=float(spearman(first.size, second.size)),
        low=low,
        high=high,
        shared=int(both.sum()),
        same_sign=int((both & (first.effect * second.effect > 0)).sum()),
        farthest=int(both_say[farthest]),
        places=(int(places[0, farthest]) + 1, int(places[1, farthest]) + 1),
    )


def with_itself(account: Account) -> float:
    """The rank correlation of an account on every other prompt with itself on those between."""
    account = account.of(torch.tensor(sorted(account.order)))
    even = (torch.arange(len(account.values)) % 2 == 0).float()
    first, second = account.sizes(torch.stack([even / even.sum(), (1 - even) / (1 - even).sum()]))
    return float(spearman(first, second))
