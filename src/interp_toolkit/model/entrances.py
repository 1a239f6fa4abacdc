"""Entrances: how a block's heads and its MLP read the residual stream.

Work on edges sets what every head's queries, keys and values, and every MLP, read. For that it must be known which norm
stands in front of attention and MLP, which modules project the normed stream, and which of their columns become the
queries, keys and values of which head. All of this is found out on the model itself: modules by what they are given,
columns by gradients from what attention uses. Fused and interleaved projections need no entry in any table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp_toolkit.errors import UnavailableSiteError
from interp_toolkit.model.forward import execute
from interp_toolkit.model.proof import REFUSALS, Proof
from interp_toolkit.model.sites import Site
from interp_toolkit.model.wiring import Wiring
from interp_toolkit.model.wish import Read, StandIn, Wish

INPUTS = ("q", "k", "v")
_DOMINANT = 3.0
"""By how much a head's own columns must outweigh the others where a norm over all heads mixes them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Projection:
    """A module that reads the normed residual stream for attention.

    Attributes:
        path: inside the block.
        columns: for `"q"`, `"k"`, `"v"` the columns of its output that belong to each head or group; those that it
            does not make are left out.
    """

    path: str
    columns: dict[str, Int[Tensor, "index width"]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Entrance:
    """How one block reads the residual stream.

    Attributes:
        norm: the norm in front of attention, inside the block; None where the stream is read as it is.
        projections: the modules that make queries, keys and values.
        mlp_norm: the norm in front of the MLP.
        mlp: the modules that read its output.
        mixed: inputs of heads that a norm over all heads mixes afterwards.
    """

    norm: str | None
    projections: tuple[Projection, ...]
    mlp_norm: str | None
    mlp: tuple[str, ...]
    mixed: tuple[str, ...] = ()


def entrances_of(wiring: Wiring) -> tuple[Entrance, ...]:
    """How each block of a verified model reads the residual stream, found out when it is first asked for.

    Raises:
        UnavailableSiteError: where queries, keys or values of a head cannot be told apart, with the reason.
    """
    with wiring.lock:
        if wiring.entrances is None:
            wiring.entrances = _found(wiring)
        if isinstance(wiring.entrances, str):
            raise UnavailableSiteError(wiring.entrances)
        found: tuple[Entrance, ...] = wiring.entrances  # type: ignore[assignment]
        return found


def linear_map(module: nn.Module, width: int, like: Tensor) -> tuple[Float[Tensor, "out d_model"], Tensor | None]:
    """The matrix and the bias of a module that is linear, whatever its class.

    Args:
        module: a linear layer, quantised or adapted or not.
        width: of its input.
        like: a tensor of the device and precision to work in.
    """
    from transformers.pytorch_utils import Conv1D

    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if type(module) in (nn.Linear, Conv1D) and isinstance(weight, Tensor) and not weight.is_meta:
        matrix: Tensor = weight.detach() if type(module) is nn.Linear else weight.detach().T
        return matrix, None if bias is None else bias.detach()
    with torch.no_grad():
        zero: Tensor = module(like.new_zeros(1, 1, width))[0, 0]
        rows = module(torch.eye(width, dtype=like.dtype, device=like.device)[None])[0] - zero
    return rows.T, zero


@dataclass(frozen=True, kw_only=True, eq=False)
class _Call:
    """What a module was given and gave."""

    path: str
    given: Tensor
    gave: Tensor


class _Watch:
    """Sees every module of the blocks that is called with one tensor."""

    def __init__(self, wiring: Wiring) -> None:
        self.calls: dict[int, list[_Call]] = {n: [] for n in range(wiring.layout.num_layers)}
        self.stand_ins: dict[tuple[int, str], StandIn] = {}
        self.inputs: dict[tuple[int, str], Read] = {}
        for layer, block in enumerate(wiring.blocks):
            for path in _watched(block, wiring):
                self.stand_ins[layer, path] = self._seen(layer, path)
            for path in {wiring.layout.mlp, *_behind(wiring)}:
                if wiring.has(layer, path):
                    self.inputs[layer, path] = self._read(layer, path)

    def _seen(self, layer: int, path: str) -> StandIn:
        def stand_in(x: Tensor, inner: object) -> Tensor:
            gave: Tensor = inner(x)  # type: ignore[operator]
            if gave.is_floating_point():
                self.calls[layer].append(_Call(path=path, given=x.detach(), gave=gave))
            return gave

        return stand_in

    def _read(self, layer: int, path: str) -> Read:
        def read(x: Tensor) -> Tensor:
            self.calls[layer].append(_Call(path=path, given=x.detach(), gave=x.detach()))
            return x

        return read


def _behind(wiring: Wiring) -> tuple[str, ...]:
    """Linear layers that stand in the block itself, as the first of OPT's MLP."""
    return tuple(name for name, module in wiring.blocks[0].named_children() if isinstance(module, nn.Linear))


def _watched(block: nn.Module, wiring: Wiring) -> list[str]:
    """Norms of the block, and what could project inside attention; adapters are seen as a whole."""
    layout = wiring.layout
    found: list[str] = []
    for path, module in block.named_modules():
        inside = path.startswith(layout.attention + ".")
        if not path or path == layout.projection or path.startswith(layout.projection + "."):
            continue
        if any(path.startswith(other + ".") for other in found):
            continue
        outer = path == layout.attention or layout.attention.startswith(path + ".")
        if outer or path == layout.mlp or path.startswith(layout.mlp + ".") or path in _behind(wiring):
            continue
        leaf = not any(True for _ in module.children())
        weighted = getattr(module, "weight", None) is not None or any(True for _ in module.parameters())
        if leaf or (inside and weighted):
            found.append(path)
    return found


def _found(wiring: Wiring) -> tuple[Entrance, ...] | str:
    try:
        return _look(wiring)
    except UnavailableSiteError as error:
        return str(error)
    except REFUSALS as error:
        return (
            f"what heads read cannot be found in this {wiring.layout.model_type} model: {type(error).__name__}: {error}"
        )


def _look(wiring: Wiring) -> tuple[Entrance, ...]:
    layers = range(wiring.layout.num_layers)
    names = [*INPUTS, "resid_pre", *([] if wiring.layout.parallel else ["resid_mid"])]
    reads = frozenset(wiring.check(Site(name, layer)) for name in names for layer in layers)
    proof = Proof(wiring)
    watch = _Watch(wiring)
    with proof.evaluating():
        wish = Wish(reads=reads, grad=True, inputs=watch.inputs, stand_ins=watch.stand_ins)
        session, _ = execute(wiring, proof.tokens, wish)
        readings = {key: parts[0] for key, parts in session.readings.items()}
        return tuple(
            _entrance(
                wiring,
                layer,
                watch.calls[layer],
                {name: readings[name, layer] for name in names},
            )
            for layer in layers
        )


def _entrance(wiring: Wiring, layer: int, calls: Sequence[_Call], at: dict[str, Tensor]) -> Entrance:
    layout = wiring.layout
    attention = layout.attention + "."
    outer = [c for c in calls if not c.path.startswith(attention)]
    inner = [c for c in calls if c.path.startswith(attention) and c.gave.requires_grad]
    before, middle = at["resid_pre"].detach(), at["resid_pre" if layout.parallel else "resid_mid"].detach()
    norm, projecting = _readers(outer, inner, before)
    mlp_calls = [c for c in outer if c.path == layout.mlp or c.path in _behind(wiring)]
    mlp_norm, readers = _readers([c for c in outer if c not in mlp_calls], mlp_calls, middle)
    if not projecting or not readers:
        what = "attention" if not projecting else "MLP"
        raise UnavailableSiteError(
            f"in block {layer} of this {layout.model_type} model no module was found by which its {what} reads the "
            "residual stream, directly or behind one norm"
        )
    columns: dict[str, dict[str, Tensor]] = {c.path: {} for c in projecting}
    mixed = []
    for name in INPUTS:
        path, found, mixes = _columns(name, at[name], projecting, layer, layout.model_type)
        columns[path][name] = found
        mixed += [name] if mixes else []
    for call in projecting:
        known = sum(x.numel() for x in columns[call.path].values())
        if columns[call.path] and known != call.gave.shape[-1]:
            raise UnavailableSiteError(
                f"in block {layer} of this {layout.model_type} model {call.path} makes {call.gave.shape[-1]} columns, "
                f"but only {known} of them are queries, keys or values: what the others do is not known"
            )
    return Entrance(
        norm=norm,
        projections=tuple(Projection(path=path, columns=found) for path, found in columns.items() if found),
        mlp_norm=mlp_norm,
        mlp=tuple(dict.fromkeys(c.path for c in readers)),
        mixed=tuple(mixed),
    )


def _readers(norms: Sequence[_Call], calls: Sequence[_Call], stream: Tensor) -> tuple[str | None, list[_Call]]:
    """The norm that is given the stream and gives what some modules are given, and these modules."""
    for norm in norms:
        if _same(norm.given, stream):
            readers = [c for c in calls if _same(c.given, norm.gave.detach())]
            if readers:
                return norm.path, readers
    return None, [c for c in calls if _same(c.given, stream)]


def _same(first: Tensor, second: Tensor) -> bool:
    return first.numel() == second.numel() and torch.equal(first.flatten(), second.flatten())


def _columns(
    name: str, used: Float[Tensor, "batch pos index width"], calls: Sequence[_Call], layer: int, family: str
) -> tuple[str, Int[Tensor, "group own"], bool]:
    """Which module makes queries, keys or values, which columns are whose, and whether a norm mixes them."""
    number = used.shape[2]
    generator = torch.Generator().manual_seed(layer)
    weights = torch.randn(used.shape, generator=generator).to(used)
    sizes: dict[str, list[Tensor]] = {c.path: [] for c in calls}
    for index in range(number):
        loss = (used[:, :, index].float() * weights[:, :, index].float()).sum()
        slopes: Sequence[Tensor | None] = torch.autograd.grad(
            loss, [c.gave for c in calls], retain_graph=True, allow_unused=True
        )
        for call, slope in zip(calls, slopes, strict=True):
            flat: Tensor = torch.zeros_like(call.gave) if slope is None else slope
            sizes[call.path].append(flat.float().abs().flatten(0, -2).sum(0))
    made = {path: torch.stack(rows) for path, rows in sizes.items() if any(bool(row.any()) for row in rows)}
    if len(made) == 1:
        ((path, size),) = made.items()
        found = _own_columns(size, used.shape[3])
        if found is not None and (name != "q" or len(found[0]) == number):
            return path, *found
    raise UnavailableSiteError(
        f"circuits need to know what each head reads, but in block {layer} of this {family} model {name} of the heads "
        f"cannot be told apart (made by {', '.join(made) or 'no module that reads the stream'}; heads may share a "
        "latent space)"
    )


def _own_columns(size: Float[Tensor, "index columns"], width: int) -> tuple[Int[Tensor, "group own"], bool] | None:
    """The columns of each head or group, and whether others matter to it too, through a norm over all of them.

    Heads whose keys were repeated before attention share their columns, and become one group. None if columns are not
    a head's own.
    """
    number, total = size.shape
    used = size > 0
    own = [row.nonzero()[:, 0] for row in used]
    groups = list({tuple(row.tolist()): None for row in own})
    disjoint = len({column for group in groups for column in group}) == sum(map(len, groups))
    if disjoint and all(len(group) == width for group in groups) and number % len(groups) == 0:
        shared = number // len(groups)
        if all(tuple(own[n].tolist()) == groups[n // shared] for n in range(number)):
            return torch.tensor(groups), False
    if total != number * width:
        return None
    blocks = size.view(number, number, width).mean(-1)
    mine = blocks.diagonal()
    others = (blocks.sum(1) - mine) / max(1, number - 1)
    if number == 1 or bool((mine > _DOMINANT * others).all()):
        return torch.arange(total).view(number, width), True
    return None


__all__ = ["INPUTS", "Entrance", "Projection", "entrances_of", "linear_map"]
