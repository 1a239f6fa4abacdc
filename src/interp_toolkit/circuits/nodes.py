"""Nodes of the computational graph, as the steps of a path: by what they are entered, and what they give.

A head is entered by its queries, its keys, its values, or all three; an MLP by its residual stream. With grouped-query
attention several heads read one key/value group, which stays one thing: `k.8.0` is the keys of group 0 and of all its
heads, `L8H2.k` is head 2 alone reading the keys of its group.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from interp_toolkit.errors import RunError, SiteError, UnknownSiteError
from interp_toolkit.model.positions import Positions, PositionsLike, positions
from interp_toolkit.model.sites import COMPONENTS, Site
from interp_toolkit.model.wiring import Wiring

_INPUTS = ("q", "k", "v")
_ENTERED = re.compile(r"L(?P<layer>-?\d+)(?P<kind>H|KV)(?P<index>\d+)\.(?P<name>q|k|v)")
_KNOWN = "'embed', 'L5H1', 'L5H1.q', 'q.5.1', 'L5KV0.k', 'k.5.0', 'L5MLP', 'attn_out.5' or 'logits'"


@dataclass(frozen=True)
class Node:
    """A step of a path at some positions only.

    Args:
        name: `"L5H1"`, `"L5H1.q"`, `"k.8.0"`, `"L9MLP"`, `"attn_out.5"`, `"embed"`, or a site.
        positions: where. At the begin of a path: the positions of its output that are the source run's. Behind it: the
            positions at which it is entered; for a whole head and an MLP, those of its output that change.

    Example:
        >>> Node("L9H2.q", positions=-1)
        Node(name='L9H2.q', positions=-1)
    """

    name: str | Site
    positions: PositionsLike = field(default=None, kw_only=True)


Step = str | Site | Node
"""One node of a path."""
Steps = Step | Sequence[Step]
"""One node, or several that are taken together."""


Recompute = Literal["nothing", "mlps", "heads", "everything"] | Steps
"""What happens between the steps of a path: which heads and MLPs are recomputed, while all others are frozen."""


@dataclass(frozen=True, kw_only=True)
class Recomputed:
    """The nodes between steps of a path that are not frozen.

    Attributes:
        heads: pairs of layer and head.
        mlps: layers.
    """

    heads: frozenset[tuple[int, int]] = frozenset()
    mlps: frozenset[int] = frozenset()

    @property
    def nothing(self) -> bool:
        """Whether everything is frozen."""
        return not (self.heads or self.mlps)


@dataclass(frozen=True, kw_only=True)
class Port:
    """A node of a model at hand, and the site by which it is entered.

    Attributes:
        site: `q`, `k` or `v` of a head or group; `z` of whole heads, `mlp_out`, `embed`, `logits`.
        heads: the heads that read it, or whose output it is.
        positions: where; None if nothing was said.
    """

    site: Site
    heads: tuple[int, ...] = ()
    positions: Positions | None = None

    @property
    def name(self) -> str:
        """What circuit papers call it."""
        layer, index = self.site.layer, self.site.index
        match self.site.component:
            case "mlp_out":
                return f"L{layer}MLP"
            case "z":
                return f"attn_out.{layer}" if index is None else f"L{layer}H{index}"
            case "k" | "v" if index is not None and len(self.heads) > 1:
                return f"L{layer}KV{index}.{self.site.component}"
            case "q" | "k" | "v" if len(self.heads) == 1:
                return f"L{layer}H{self.heads[0]}.{self.site.component}"
        return str(self.site)

    @property
    def inside(self) -> bool:
        """Whether it is queries, keys or values, so that the head's output is still to be computed."""
        return self.site.component in _INPUTS


def ports_of(steps: Steps, wiring: Wiring) -> tuple[Port, ...]:
    """The nodes that are meant, checked against the model.

    Raises:
        UnknownSiteError: for names that are no node.
        SiteError: for layers and heads that are not there, or cannot be used in this model.
        RunError: when nothing is named, or something twice.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> from interp_toolkit.model.verify import verified
        >>> wiring = verified(GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=11)).eval())
        >>> [port.name for port in ports_of(["L0H1", "q.1.0", "m1"], wiring)]
        ['L0H1', 'L1H0.q', 'L1MLP']
    """
    items = [steps] if isinstance(steps, str | Site | Node) else list(steps)
    if not items:
        raise RunError("a step of a path names at least one node")
    return joined([_port(item, wiring) for item in items])


def joined(ports: Sequence[Port]) -> tuple[Port, ...]:
    """The nodes of one step: those with one site as one port.

    Raises:
        RunError: when something is named twice, or `logits` beside other nodes.
    """
    found: dict[Site, Port] = {}
    for port in ports:
        before = found.get(port.site)
        if before is not None and (before.positions != port.positions or set(before.heads) & set(port.heads)):
            raise RunError(f"{port.name} is named twice in one step of a path")
        heads = port.heads if before is None else tuple(sorted({*before.heads, *port.heads}))
        found[port.site] = replace(port, heads=heads)
    wholes = {
        (port.site.layer, head): port for port in found.values() if port.site.component == "z" for head in port.heads
    }
    for port in found.values():
        other = next((wholes[at] for head in port.heads if (at := (port.site.layer, head)) in wholes), port)
        if other is not port:
            raise RunError(f"{other.name} has {port.name} in it: name it once in a step of a path")
        if port.site.index is not None and port.site.whole in found:
            raise RunError(f"{port.site.whole} has {port.name} in it: name it once in a step of a path")
    if len(found) > 1 and any(site.component == "logits" for site in found):
        raise RunError("'logits' is a step of its own: the end of a path")
    return tuple(found.values())


def covers(ports: Collection[Port], port: Port, wiring: Wiring) -> bool:
    """Whether every head that reads a port's site is among some ports, so that the site itself can be changed."""
    whole = {
        head
        for other in ports
        if other.site == port.site or (other.site.component == "z" and other.site.layer == port.site.layer)
        for head in other.heads
    }
    return not port.inside or set(_readers(port.site, wiring)) <= whole


def written_at(site: Site, layers: int) -> tuple[int, int]:
    """When a node's output reaches the residual stream: a key that sorts as `Site.depth` does."""
    return (Site("attn_out", site.layer) if site.component == "z" else site).depth(layers)


def stream_of(port: Port, wiring: Wiring) -> Site:
    """The residual stream that a node reads."""
    layout = wiring.layout
    match port.site.component:
        case "logits":
            return Site("resid_post", layout.num_layers - 1)
        case "mlp_out" if not layout.parallel:
            return Site("resid_mid", port.site.layer)
    return Site("resid_pre", port.site.layer)


def behind(port: Port, sender: Port, wiring: Wiring) -> bool:
    """Whether a node reads what another one writes."""
    layers = wiring.layout.num_layers
    return port.site.component != "embed" and written_at(sender.site, layers) < stream_of(port, wiring).depth(layers)


def recomputed_of(spec: Recompute, wiring: Wiring) -> Recomputed:
    """What is recomputed between the steps of a path.

    Args:
        spec: `"nothing"`, `"mlps"`, `"heads"`, `"everything"`, or some nodes (and `"mlps"`, `"heads"` among them).
        wiring: the model.

    Raises:
        UnknownSiteError, SiteError: for what is no node of this model.
        RunError: for nodes that cannot be recomputed.
    """
    layers, heads, mlps = range(wiring.layout.num_layers), set[tuple[int, int]](), set[int]()
    for item in [spec] if isinstance(spec, str) or not isinstance(spec, Sequence) else spec:
        if item in ("mlps", "everything"):
            mlps |= set(layers)
        if item in ("heads", "everything"):
            heads |= {(layer, head) for layer in layers for head in range(wiring.layout.num_heads)}
        if item in ("nothing", "mlps", "heads", "everything"):
            continue
        (port,) = ports_of(item, wiring)
        if port.site.component not in ("z", "mlp_out") or port.positions is not None:
            raise RunError(
                f"recompute= names whole heads, MLPs or attention layers ('L5H1', 'L5MLP', 'attn_out.5'), or is "
                f"'nothing', 'mlps', 'heads' or 'everything', but {port.name} was given"
            )
        if port.heads:
            heads |= {(port.site.layer or 0, head) for head in port.heads}
        else:
            mlps.add(port.site.layer or 0)
    return Recomputed(heads=frozenset(heads), mlps=frozenset(mlps))


def family_of(name: str, wiring: Wiring) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...], tuple[Port, ...]]:
    """Every node of a kind: `"heads"`, `"mlps"`, `"attn"`, `"q"`, `"k"` or `"v"`.

    Returns:
        Names of the axes, labels along each, and the nodes in their order.
    """
    layers = range(wiring.layout.num_layers)
    component = {"heads": "z", "mlps": "mlp_out", "attn": "z"}.get(name, name)
    if name in ("mlps", "attn"):
        found = [ports_of(Site(component, layer), wiring)[0] for layer in layers]
        return ("layer",), (tuple(map(str, layers)),), tuple(found)
    number = _number(component, wiring)
    axis = COMPONENTS[component].index_axis or "head"
    every = [ports_of(Site(component, layer, index), wiring)[0] for layer in layers for index in range(number)]
    return ("layer", axis), (tuple(map(str, layers)), tuple(map(str, range(number)))), tuple(every)


FAMILIES = ("heads", "mlps", "attn", "q", "k", "v")
"""What can be named all at once."""


def _port(step: Step, wiring: Wiring) -> Port:
    where = None
    if isinstance(step, Node):
        where = None if step.positions is None else positions(step.positions)
        step = step.name
    entered = _ENTERED.fullmatch(step.strip()) if isinstance(step, str) else None
    if entered is not None:
        return replace(_entered(entered, wiring), positions=where)
    try:
        site = wiring.check(Site.parse(step))
    except UnknownSiteError as error:
        raise UnknownSiteError(f"{step!r} is no node of a path: write {_KNOWN}") from error
    if site.component == "attn_out":
        site = wiring.check(Site("z", site.layer))
    match site.component:
        case "embed" | "mlp_out" | "logits":
            return Port(site=site, positions=where)
        case "z" | "q" | "k" | "v":
            return Port(site=site, heads=_readers(site, wiring), positions=where)
    raise SiteError(f"{site} is no node of a path, which goes from components to components: write {_KNOWN}")


def _entered(found: re.Match[str], wiring: Wiring) -> Port:
    """`L8H2.k`: one head, by one of its inputs; `L8KV0.k`: a key/value group."""
    name, layer, index = found["name"], int(found["layer"]), int(found["index"])
    if found["kind"] == "KV":
        if name == "q":
            raise SiteError(f"{found[0]}: a key/value group has no queries; write L{layer}H{index}.q for a head's")
        site = wiring.check(Site(name, layer, index))
        return Port(site=site, heads=_readers(site, wiring))
    head = wiring.check(Site("z", layer, index))
    site = wiring.check(Site(name, layer, index if name == "q" else index // _shared(name, wiring)))
    return Port(site=site, heads=(int(head.index or 0),))


def _number(component: str, wiring: Wiring) -> int:
    wiring.check(Site(component, 0))
    return wiring.shapes[component][2]


def _shared(component: str, wiring: Wiring) -> int:
    """How many heads read one entry of a site."""
    return 1 if component in ("q", "z") else wiring.layout.num_heads // _number(component, wiring)


def _readers(site: Site, wiring: Wiring) -> tuple[int, ...]:
    if site.index is None:
        return tuple(range(wiring.layout.num_heads))
    shared = _shared(site.component, wiring)
    return tuple(range(site.index * shared, (site.index + 1) * shared))


__all__ = [
    "FAMILIES",
    "Node",
    "Port",
    "Recompute",
    "Recomputed",
    "Step",
    "Steps",
    "behind",
    "covers",
    "family_of",
    "joined",
    "ports_of",
    "recomputed_of",
    "stream_of",
    "written_at",
]
