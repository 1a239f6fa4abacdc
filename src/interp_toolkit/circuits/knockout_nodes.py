"""What is ablated together, at which positions, and what people call it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from interp_toolkit.errors import PositionError, SiteError
from interp_toolkit.model.positions import Everywhere, Positions, PositionsLike
from interp_toolkit.model.positions import positions as positions_of
from interp_toolkit.model.run import expand
from interp_toolkit.model.sites import COMPONENTS, SHORT_NAMES, Site
from interp_toolkit.model.tokens import Tokens
from interp_toolkit.model.wiring import Wiring

Place = tuple[Site, tuple[int, ...] | None]
"""A site and positions of one prompt, counted from 0; None for all."""


@dataclass(frozen=True, kw_only=True)
class Knockout:
    """Sites that are ablated together. Make it with `Knockout.of`, where a name such as `"L5H1"` is not enough.

    Attributes:
        name: what it is called in results.
        parts: its sites, each with the positions at which it is ablated; None for those that the call names.
    """

    name: str
    parts: tuple[tuple[Site, Positions | None], ...]

    @classmethod
    def of(
        cls, sites: str | Site | Sequence[str | Site], *, positions: PositionsLike = None, name: str | None = None
    ) -> Knockout:
        """Given sites, at given positions.

        Args:
            sites: one site or several.
            positions: at which tokens; those that the call names if it is not given.
            name: what to call it.

        Raises:
            SiteError: for names that mean nothing.

        Example:
            >>> Knockout.of("resid_pre.3", positions="last", name="end of the prompt").name
            'end of the prompt'
        """
        every = [sites] if isinstance(sites, str | Site) else list(sites)
        where = None if positions is None else positions_of(positions)
        parts = tuple((site, where) for item in every for site in _sites(item))
        return cls(name=name or "+".join(map(_shown, every)), parts=parts)

    @property
    def sites(self) -> tuple[Site, ...]:
        """Its sites."""
        return tuple(site for site, _ in self.parts)

    def places(self, tokens: Tokens, default: PositionsLike = None) -> tuple[Place, ...]:
        """Its sites and positions in one prompt.

        Raises:
            PositionError: when the prompt has no such position.
        """
        return tuple((site, columns_in(tokens, default if where is None else where)) for site, where in self.parts)


NodeLike = Knockout | Site | str | Sequence[Any]
NodesLike = NodeLike | Mapping[str, Any]
"""One node or a list of them; a list inside the list is a set that is ablated together, and a mapping names its sets.

A node is a head (`"L5H1"`), a site (`"mlp_out.8"`, `"mlp_post.5.17"`, `"resid_pre.3"`), a layer (`"layer 5"`: what its
attention and its MLP add), a `Knockout`; `"head"` means every head, `"mlp"` or another component every layer of it.
"""


def columns_in(tokens: Tokens, where: PositionsLike) -> tuple[int, ...] | None:
    """Positions in one prompt, counted from 0; None for all.

    Raises:
        PositionError: when the prompt has no such position.
    """
    spec = positions_of(where)
    if isinstance(spec, Everywhere):
        return None
    length = int(tokens.ids.shape[1])
    found = spec.bind(tokens).columns(torch.arange(length)[None], torch.tensor([length]))[0]
    if not found:
        raise PositionError(f"no token of {tokens.strings()} is at the positions {where!r}")
    return tuple(sorted(set(found)))


def nodes_of(given: NodesLike, wiring: Wiring) -> tuple[Knockout, ...]:
    """The nodes that are meant, checked against the model.

    Raises:
        SiteError: for none at all, one that is named twice, and sites that this model does not have.
    """
    found: list[Knockout] = []
    if isinstance(given, Mapping):
        found = [_united(_node(item, wiring), str(name)) for name, item in given.items()]
    else:
        for item in [given] if isinstance(given, Knockout | Site | str) else list(given):
            made = _node(item, wiring)
            found += made if isinstance(item, Knockout | Site | str) else [_united(made, None)]
    if not found or any(not node.parts for node in found):
        raise SiteError("no node to ablate was given: name heads ('L5H1'), sites ('mlp_out.8') or layers ('layer 5')")
    checked = tuple(_checked(node, wiring) for node in found)
    names, parts = [node.name for node in checked], [frozenset(node.parts) for node in checked]
    twice = [node.name for node in checked if names.count(node.name) + parts.count(frozenset(node.parts)) > 2]
    if twice:
        raise SiteError(f"{' and '.join(dict.fromkeys(twice))}: every node counts once, but one is given twice")
    return checked


def _node(item: NodeLike, wiring: Wiring) -> list[Knockout]:
    if isinstance(item, Knockout):
        return [item]
    if isinstance(item, str):
        name = SHORT_NAMES.get(item, item)
        if name in COMPONENTS and COMPONENTS[name].per_layer:
            whole = expand(name, wiring)
            heads = wiring.shapes["z"][2] if item == "head" else 0
            sites = [Site(s.component, s.layer, h) for s in whole for h in range(heads)] if heads else whole
            return [Knockout.of(site) for site in sites]
    if isinstance(item, str | Site):
        return [Knockout.of(item)]
    if not isinstance(item, Sequence):
        raise SiteError(f"a node is a site, its name, a list of these or a Knockout, not {item!r}")
    return [node for part in item for node in _node(part, wiring)]


def _united(nodes: Sequence[Knockout], name: str | None) -> Knockout:
    parts = tuple(dict.fromkeys(part for node in nodes for part in node.parts))
    return Knockout(name=name or "+".join(node.name for node in nodes), parts=parts)


def _sites(item: str | Site) -> tuple[Site, ...]:
    if isinstance(item, str) and (layer := re.fullmatch(r"(?:layer[ ._]?|L)(-?\d+)", item.strip())):
        return Site("attn_out", int(layer[1])), Site("mlp_out", int(layer[1]))
    return (Site.parse(item),)


def _shown(item: str | Site) -> str:
    """Heads as papers write them, the rest as it is."""
    sites = _sites(item)
    if len(sites) > 1:
        return f"layer {sites[0].layer}"
    site = sites[0]
    return f"L{site.layer}H{site.index}" if site.component == "z" and site.index is not None else str(site)


def _checked(node: Knockout, wiring: Wiring) -> Knockout:
    if any(site.component == "logits" for site in node.sites):
        raise SiteError("logits cannot be ablated: change them when you have them")
    return Knockout(name=node.name, parts=tuple((wiring.check(site), where) for site, where in node.parts))


__all__ = ["Knockout", "NodeLike", "NodesLike", "Place", "columns_in", "nodes_of"]
