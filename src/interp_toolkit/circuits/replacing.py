"""What stands in for an ablated activation: a fixed value, a mean, or the activation of another prompt."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from interp_toolkit.circuits.knockout_nodes import Place
from interp_toolkit.circuits.reference import Reference
from interp_toolkit.errors import EditError, InterpWarning, RunError, SiteError
from interp_toolkit.model.cells import Swap
from interp_toolkit.model.edits import Edit
from interp_toolkit.model.positions import At, Everywhere, Positions
from interp_toolkit.model.sites import Site
from interp_toolkit.model.tokens import Tokens, encode
from interp_toolkit.model.wiring import Wiring

MethodName = Literal["zero", "mean", "positional_mean", "resample"]
MethodLike = str | float | Tensor | Mapping[Any, Any]
"""How to ablate: `"zero"`, `"mean"`, `"positional_mean"`, `"resample"`, a value, or a value for each site."""

Changes = tuple[tuple[Swap, ...], tuple[Edit, ...]]
_NAMES = ("zero", "mean", "positional_mean", "resample")


@dataclass(frozen=True, kw_only=True, eq=False)
class Replacement:
    """What is put in place of ablated activations. Make it with `replacement_of`.

    Attributes:
        name: of the method.
        reference: where means come from.
        values: for given values: a number, a tensor, or one of these for each site.
        donors: for resampling: for each prompt the prompts whose activations it gets, one for each draw.
    """

    name: str
    reference: Reference | None = None
    values: Float[Tensor, "..."] | float | Mapping[Site, Float[Tensor, "..."] | float] | None = None
    donors: tuple[tuple[Tokens, ...], ...] = ()

    @property
    def draws(self) -> int:
        """How many runs there are of each node and prompt."""
        return len(self.donors[0]) if self.donors else 1

    def changes(self, places: Sequence[Place], tokens: Tokens, source: int | None, begin: int) -> Changes:
        """What a run changes.

        Args:
            places: what is ablated.
            tokens: the prompt.
            source: for resampling, the number of the base run that activations come from.
            begin: for resampling, the first position at which that run differs.

        Raises:
            EditError: for a given value that does not fit its site.
            SiteError: when there is no value for a site.
            PositionError: for a prompt that is longer than those of the reference.
        """
        if source is not None:
            some = [(site, where) for site, where in places if where is None or where[-1] >= begin]
            return tuple(Swap(site=site, source=source, positions=where) for site, where in some), ()
        together: dict[tuple[Site, tuple[int, ...] | None], list[int]] = {}
        edits = []
        for site, where in places:
            if site.index is None or not self._same_for_all:
                edits.append(Edit.set(site, self._value(site, tokens), positions=_positions(where)))
            else:
                together.setdefault((site.whole, where), []).append(site.index)
        for (whole, where), indices in together.items():
            if len(indices) == 1:
                site = Site(whole.component, whole.layer, indices[0])
                edits.append(Edit.set(site, self._value(site, tokens), positions=_positions(where)))
            else:
                # One edit for all heads of a layer: with hundreds of nodes in a set, single ones would take long.
                put = _several(whole, indices, self._value(whole, tokens))
                edits.append(Edit.apply(whole, put, positions=_positions(where)))
        return (), tuple(edits)

    @property
    def _same_for_all(self) -> bool:
        return self.reference is not None or isinstance(self.values, float)

    def _value(self, site: Site, tokens: Tokens) -> Tensor | float:
        length = int(tokens.ids.shape[1])
        if self.reference is not None:
            positional = self.name == "positional_mean"
            return self.reference.positional_mean(site, length) if positional else self.reference.mean(site)
        value = self.values
        if isinstance(value, Mapping):
            if site not in value:
                raise SiteError(f"no value is given for {site}, but for {', '.join(map(str, value)) or 'nothing'}")
            value = value[site]
        return 0.0 if value is None else value


def replacement_of(
    method: MethodLike,
    wiring: Wiring,
    prompts: Sequence[Tokens],
    sites: Sequence[Site],
    *,
    reference: Reference | None = None,
    draws: int = 1,
    seed: int = 0,
) -> Replacement:
    """What stands in for some sites, checked.

    Args:
        method: a name, a number, a tensor, or a mapping from sites to these.
        wiring: the model.
        prompts: those that are ablated.
        sites: all that will be ablated.
        reference: for means and resampling; by default the prompts themselves.
        draws: for resampling, how many other prompts each prompt gets activations from.
        seed: of the draws.

    Raises:
        RunError: for an unknown method, several draws of what is not drawn, a reference of another model, and when
            there are too few other prompts to resample from.
        SiteError: for sites that the reference lacks.
        PositionError: for a prompt that is longer than those of the reference.
        EditError: for values that do not fit.
    """
    if reference is not None:
        reference.check(wiring)
    if draws < 1 or (draws > 1 and method != "resample"):
        raise RunError(f"draws={draws}: only 'resample' draws, once or more often; {_named(method)!r} does not")
    if isinstance(method, str):
        if method not in _NAMES:
            raise RunError(f"method is {', '.join(map(repr, _NAMES))}, a number, a tensor or a mapping, not {method!r}")
        if method == "zero":
            return Replacement(name="zero", values=0.0)
        if method == "resample":
            bank = [tokens.row() for tokens in prompts] if reference is None else list(reference.bank)
            return Replacement(name="resample", donors=donors_for(prompts, bank, draws=draws, seed=seed))
        return _mean(method, wiring, prompts, sites, reference)
    values = _values(method, wiring)
    found = Replacement(name=_named(method), values=values)
    for site in dict.fromkeys(sites):
        value = found._value(site, prompts[0])
        if isinstance(value, Tensor):
            _check_shape(site, value, wiring, prompts)
    return found


def _mean(
    name: str, wiring: Wiring, prompts: Sequence[Tokens], sites: Sequence[Site], reference: Reference | None
) -> Replacement:
    """Mean or positional mean; every site and length is looked up before anything is run."""
    positional = name == "positional_mean"
    if reference is None:
        whole = list(dict.fromkeys(site.whole for site in sites))
        rows = [tokens.row() for tokens in prompts]
        reference = Reference.gather(wiring.model, rows, sites=whole, positional=positional, layout=wiring.layout)
    found = Replacement(name=name, reference=reference)
    longest = max(prompts, key=lambda tokens: int(tokens.ids.shape[1]))
    for site in dict.fromkeys(sites):
        found._value(site, longest)
    length = int(longest.ids.shape[1])
    if positional and (few := int((reference.counts[:length] < 2).sum())):
        warnings.warn(
            f"at {few} of {length} positions the positional mean is over one prompt only, so it may be that prompt's "
            "own activation: gather over more prompts of that length",
            InterpWarning,
            stacklevel=5,
        )
    return found


def donors_for(
    prompts: Sequence[Tokens], bank: Sequence[Sequence[int]], *, draws: int, seed: int
) -> tuple[tuple[Tokens, ...], ...]:
    """For each prompt other prompts to take activations from, drawn without replacement.

    They are of the same length where there are enough of them; otherwise longer ones are cut to it, which changes
    nothing at the positions that are kept, as no token sees later ones.

    Args:
        prompts: those that are ablated.
        bank: token ids of those that may be drawn; a prompt never gets its own tokens.
        draws: how many for each prompt.
        seed: of the draw.

    Raises:
        RunError: when there are fewer.
    """
    generator = torch.Generator().manual_seed(seed)
    found = []
    for number, tokens in enumerate(prompts):
        own, length = tuple(tokens.row()), int(tokens.ids.shape[1])
        same = dict.fromkeys(tuple(row) for row in bank if len(row) == length)
        longer = dict.fromkeys(tuple(row[:length]) for row in bank if len(row) > length)
        pool = [row for row in same if row != own]
        if len(pool) < draws:
            pool += [row for row in longer if row != own and row not in same]
        if len(pool) < draws:
            raise RunError(
                f"resampling needs {draws} other prompt{'s' if draws > 1 else ''} of at least {length} tokens for "
                f"prompt {number} ({''.join(tokens.strings())[:60]!r}), but there {'is' if len(pool) == 1 else 'are'} "
                f"{len(pool)}: give more prompts, a reference gathered with samples=, or fewer draws"
            )
        order = torch.randperm(len(pool), generator=generator)[:draws].tolist()
        found.append(tuple(encode([list(pool[n])], tokenizer=tokens.tokenizer) for n in order))
    return tuple(found)


def _named(method: MethodLike) -> str:
    return method if isinstance(method, str) else "given values"


def _values(method: Any, wiring: Wiring) -> Tensor | float | dict[Site, Tensor | float]:
    if isinstance(method, Mapping):
        return {wiring.check(Site.parse(site)): _one(value) for site, value in method.items()}
    return _one(method)


def _one(value: Any) -> Tensor | float:
    if isinstance(value, bool) or not isinstance(value, int | float | Tensor):
        raise EditError(f"a value to put in is a number or a tensor, not {type(value).__name__}")
    found = value.detach() if isinstance(value, Tensor) else float(value)
    if not bool(torch.isfinite(torch.as_tensor(found)).all()):
        raise EditError("a value to put in holds NaN or infinity")
    return found


def _check_shape(site: Site, value: Tensor, wiring: Wiring, prompts: Sequence[Tokens]) -> None:
    """Refuse a value that fits no prompt, before anything is run."""
    axes = site.axes[1:]
    if "key_pos" in axes or site.component not in wiring.shapes:
        return
    shape = list(wiring.shapes[site.component])
    if site.index is not None and site.kind.index_dim is not None:
        del shape[site.kind.index_dim]
    lengths = sorted({int(tokens.ids.shape[1]) for tokens in prompts})
    for length in lengths:
        wanted = [length, *shape[2:]]
        ending = wanted[len(wanted) - value.ndim :] if value.ndim <= len(wanted) else []
        if value.ndim > len(wanted) or any(a not in (1, b) for a, b in zip(value.shape, ending, strict=True)):
            shown = f"{lengths[0]} to {lengths[-1]}" if len(lengths) > 1 else str(lengths[0])
            raise EditError(
                f"the value for {site} has shape {tuple(value.shape)}, but the site has {tuple(shape[2:])} "
                f"({', '.join(axes[1:])}) at each of {shown} positions"
            )


def _positions(where: tuple[int, ...] | None) -> Positions:
    return Everywhere() if where is None else At(where)


def _several(whole: Site, indices: Sequence[int], value: Tensor | float) -> Callable[[Tensor], Tensor]:
    """Put a value into several heads or neurons of a site."""
    dim, inner = whole.kind.index_dim or 0, len(whole.axes) - 2

    def put(x: Tensor) -> Tensor:
        index = torch.tensor(list(indices), device=x.device)
        if not isinstance(value, Tensor):
            return x.index_fill(dim, index, value)
        # A pass over the last positions sees the last positions of the value.
        here = value[-x.shape[1] :] if value.ndim > inner else value
        return x.index_copy(dim, index, here.to(x).expand_as(x).index_select(dim, index))

    return put


__all__ = ["Changes", "MethodLike", "MethodName", "Replacement", "donors_for", "replacement_of"]
