"""The cells of a sweep: which sites and positions each of them patches, and what its axes are called."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from interp_toolkit.circuits.dataset import Pairs
from interp_toolkit.errors import PositionError, RunError, SiteError
from interp_toolkit.model.positions import PerRow, PositionsLike, Span, positions
from interp_toolkit.model.sites import COMPONENTS, SHORT_NAMES, Site
from interp_toolkit.model.tokens import Tokens
from interp_toolkit.model.wiring import Wiring

Where = PositionsLike | Mapping[str, PositionsLike]
"""Positions of a sweep: each on its own, or named groups that are patched together."""

_HEAD_AXES = ("head", "kv_head", "neuron")


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What a sweep goes over.

    Attributes:
        component: what is patched.
        axes: names of its axes.
        layers: the layers, or None in place of one for all at once.
        indices: heads or neurons, or None for all of them at once.
        groups: names of the positions that are patched together.
        places: for each pair of prompts and group its positions, counted from 0.
    """

    component: str
    axes: tuple[str, ...]
    layers: tuple[int, ...]
    indices: tuple[int, ...] | None
    groups: tuple[str, ...]
    places: tuple[tuple[tuple[int, ...], ...], ...]

    def entries(self, axis: str) -> Sequence[int]:
        """What an axis goes over: layers, heads or neurons, or numbers of groups of positions."""
        if axis == "layer":
            return self.layers
        if axis == "pos":
            return range(len(self.groups))
        return self.indices or ()

    @property
    def labels(self) -> tuple[tuple[str, ...], ...]:
        """Names of the entries of each axis."""
        return tuple(self.groups if axis == "pos" else tuple(map(str, self.entries(axis))) for axis in self.axes)

    @property
    def shape(self) -> tuple[int, ...]:
        """How many entries each axis has."""
        return tuple(len(self.entries(axis)) for axis in self.axes)

    def cells(self, pair: int) -> list[tuple[tuple[Site, ...], tuple[int, ...]]]:
        """For each cell, in order, the sites and positions that it patches in one pair of prompts."""
        found = []
        for chosen in itertools.product(*map(self.entries, self.axes)):
            at = dict(zip(self.axes, chosen, strict=True))
            layers = [at["layer"]] if "layer" in at else self.layers
            numbers = [at[axis] for axis in _HEAD_AXES if axis in at]
            indices: Sequence[int | None] = numbers or self.indices or [None]
            groups = [at["pos"]] if "pos" in at else range(len(self.groups))
            where = sorted({p for group in groups for p in self.places[pair][group]})
            sites = tuple(Site(self.component, layer, index) for layer in layers for index in indices)
            found.append((sites, tuple(where)))
        return found


def make_grid(
    wiring: Wiring,
    pairs: Pairs,
    component: str,
    over: Sequence[str],
    *,
    layers: Sequence[int] | None = None,
    indices: Sequence[int] | None = None,
    where: Where = None,
) -> Grid:
    """The grid of a sweep, checked against model and prompts.

    Raises:
        SiteError: for a component, layer, head or neuron that is not there.
        PositionError: for positions outside of a prompt, or that differ in number between prompts.
        RunError: for axes that the component does not have.
    """
    name = SHORT_NAMES.get(component, component)
    if name not in COMPONENTS:
        Site.parse(component)  # says what is near it, if it is no site at all
    if name not in COMPONENTS or not COMPONENTS[name].per_layer:
        raise SiteError(
            f"a sweep is over layers of a component such as 'resid', 'attn', 'mlp' or 'head', not {component!r}"
        )
    axes = _axes(name, over)
    chosen = _layers(name, layers, wiring)
    asked = any(axis in _HEAD_AXES for axis in axes)
    groups, places = _places(pairs, where, apart="pos" in axes)
    return Grid(
        component=name,
        axes=axes,
        layers=chosen,
        indices=_indices(name, indices, wiring, chosen, asked=asked),
        groups=groups,
        places=places,
    )


def _axes(component: str, over: Sequence[str]) -> tuple[str, ...]:
    given = (over,) if isinstance(over, str) else tuple(over)
    kind = COMPONENTS[component]
    own = {"d_mlp": "neuron"}.get(kind.index_axis or "", kind.index_axis)
    allowed = ["layer", "pos", *([own] if own else [])]
    # People say head for the key/value heads of k and v too.
    axes = tuple(own if own == "kv_head" and axis == "head" else axis for axis in given)
    wrong = [axis for axis in axes if axis not in allowed]
    if wrong or not axes or len(set(axes)) < len(axes):
        raise RunError(
            f"a sweep of {component} goes over some of {', '.join(map(repr, allowed))}, each once; over={given!r} was "
            "given"
        )
    return axes


def _layers(component: str, layers: Sequence[int] | None, wiring: Wiring) -> tuple[int, ...]:
    number = wiring.layout.num_layers
    if layers is None:
        if not wiring.available(component):
            wiring.check(Site(component, 0))
        return tuple(range(number))
    found = tuple(Site(component, layer).at_depth(number).layer or 0 for layer in layers)
    if not found or len(set(found)) < len(found):
        raise SiteError(f"layers= names each layer once, and at least one, not {list(layers)}")
    for layer in found:
        wiring.check(Site(component, layer))
    return found


def _indices(
    component: str, indices: Sequence[int] | None, wiring: Wiring, layers: Sequence[int], *, asked: bool
) -> tuple[int, ...] | None:
    dim = COMPONENTS[component].index_dim
    if indices is None:
        if not asked or dim is None:
            return None
        return tuple(range(wiring.shapes[component][dim]))
    if dim is None:
        raise SiteError(f"{component} has no heads or neurons, but indices={list(indices)} was given")
    for index in indices:
        wiring.check(Site(component, layers[0], index))
    return tuple(indices)


def _places(
    pairs: Pairs, where: Where, *, apart: bool
) -> tuple[tuple[str, ...], tuple[tuple[tuple[int, ...], ...], ...]]:
    """Names of groups of positions, and for each pair the positions of each."""
    if isinstance(where, Mapping):
        if not where:
            raise PositionError("positions= names no group")
        groups = tuple(where)
        return groups, tuple(
            tuple(_columns(spec, pairs, pair) for spec in where.values()) for pair in range(len(pairs))
        )
    columns = [_columns(where, pairs, pair) for pair in range(len(pairs))]
    if not apart:
        return ("all",), tuple((found,) for found in columns)
    counts = sorted({len(found) for found in columns})
    if len(counts) > 1:
        raise PositionError(
            f"the prompts have {counts[0]} to {counts[-1]} positions, which do not correspond: use prompts of one "
            "length, positions from the end such as [-3, -2, -1], or named groups such as {'subject': Span('France')}"
        )
    names = tuple(_name(pairs, [found[n] for found in columns]) for n in range(counts[0]))
    return names, tuple(tuple((column,) for column in found) for found in columns)


def _columns(where: PositionsLike, pairs: Pairs, pair: int) -> tuple[int, ...]:
    """Positions in one pair; a substring is looked up in either prompt."""
    spec = positions(where)
    clean, corrupt = pairs.clean[pair], pairs.corrupt[pair]
    if isinstance(spec, Span):
        found = _span(spec, clean, corrupt)
    else:
        length = int(clean.ids.shape[1])
        found = tuple(spec.bind(clean).columns(torch.arange(length)[None], torch.tensor([length]))[0])
    if not found:
        raise PositionError(f"no token of {clean.strings()} is at the positions {where!r}")
    return found


def _span(spec: Span, clean: Tokens, corrupt: Tokens) -> tuple[int, ...]:
    for tokens in (clean, corrupt):
        try:
            bound = spec.bind(tokens)
        except PositionError:
            continue
        if isinstance(bound, PerRow):
            return bound.rows[0]
    raise PositionError(
        f"{spec.text!r} is neither in {''.join(clean.strings())!r} nor in {''.join(corrupt.strings())!r}"
    )


def _name(pairs: Pairs, columns: Sequence[int]) -> str:
    """What to call a position: its number and its token, where all prompts have the same one."""
    first, last = [], []
    for pair, column in enumerate(columns):
        first.append(_bare(pairs.clean[pair].strings()[column]))
        last.append(_bare(pairs.corrupt[pair].strings()[column]))
    number = str(columns[0]) if len(set(columns)) == 1 else str(columns[0] - pairs.lengths[0])
    if len(set(first)) > 1 or len(set(last)) > 1:
        return f"{number} …"
    return f"{number} {first[0]}" if first[0] == last[0] else f"{number} {first[0]} / {last[0]}"


def _bare(token: str) -> str:
    """A token without the spaces around it, unless there is nothing else."""
    return token.strip() or repr(token)


def available(sites: Sequence[Site], wiring: Wiring) -> bool:
    """Whether all of these sites may be used."""
    return not any(site.whole in wiring.refused for site in sites)


__all__ = ["Grid", "Where", "available", "make_grid"]
