"""What steering does to activations, as edits that any run takes.

All operations are computed in float32 at least, cast back, and leave the tensor that they are given as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from interp_toolkit.errors import SteeringError
from interp_toolkit.model.edits import Edit
from interp_toolkit.model.layout import Layout
from interp_toolkit.model.positions import Positions, PositionsLike
from interp_toolkit.model.positions import positions as as_positions
from interp_toolkit.model.sites import Site
from interp_toolkit.model.verify import verified
from interp_toolkit.model.wiring import Wiring
from interp_toolkit.steering.vector import SteeringVector

Operation = Literal["add", "ablate", "affine", "clamp", "rotate"]
Scale = Literal["norm", "raw"]
LayersLike = int | Sequence[int] | Literal["all", "writers"] | None
"""Layers to steer at: those of the vector if None, every layer, or everything that writes to the residual stream."""

OPERATIONS = ("add", "ablate", "affine", "clamp", "rotate")
Change = Callable[[Tensor], Tensor]
"""What is added to activations, from activations in full precision."""


@dataclass(frozen=True)
class Predicting(Positions):
    """The tokens behind which the model says what is generated: the prompt's last one and all that follow."""

    def select(self, index: Int[Tensor, "batch pos"], length: Int[Tensor, " batch"]) -> Bool[Tensor, "batch pos"]:
        """See `Positions.select`."""
        return index >= length[:, None] - 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Gate:
    """Steer only tokens whose activations lie on one side of a threshold.

    Attributes:
        direction: along which activations are read.
        threshold: at which `activation @ direction` opens the gate.
        above: whether it opens above the threshold or below it.
        site: where activations are read, with its layer; the site that is steered, before it is, if not given.

    Example:
        >>> gate = Gate(direction=torch.tensor([1.0, 0.0]), threshold=0.5)
        >>> gate.opens(torch.tensor([[[0.4, 9.0], [0.6, 9.0]]]))
        tensor([[False,  True]])
    """

    direction: Float[Tensor, " d_model"]
    threshold: int | float = 0.0
    above: bool = True
    site: str | None = None

    def __post_init__(self) -> None:
        """Check that there is a direction."""
        if not bool(self.direction.isfinite().all()) or not bool(self.direction.any()):
            raise SteeringError("a gate needs a direction that is finite and not zero")
        if not math.isfinite(self.threshold):
            raise SteeringError(f"a gate's threshold is a number, not {self.threshold}")

    @classmethod
    def of_probe(cls, coefficients: Tensor, intercept: int | float, *, site: str | None = None) -> Gate:
        """The gate that opens where a linear probe says yes: `coefficients @ activation + intercept > 0`.

        Args:
            coefficients: such as `torch.from_numpy(probe.coef_[0])`.
            intercept: such as `float(probe.intercept_[0])`.
            site: what the probe reads; see `Gate`.
        """
        return cls(direction=coefficients.detach().float(), threshold=-float(intercept), site=site)

    def opens(self, x: Float[Tensor, "batch pos d_model"]) -> Bool[Tensor, "batch pos"]:
        """For which tokens it opens."""
        wide = _wide(x)
        read = wide @ self.direction.to(wide)
        return read > self.threshold if self.above else read < self.threshold


def steering_edits(
    model: nn.Module,
    vector: SteeringVector,
    coefficient: int | float = 1.0,
    *,
    operation: Operation = "add",
    layers: LayersLike = None,
    positions: PositionsLike = "all",
    scale: Scale = "norm",
    plane: SteeringVector | None = None,
    when: Gate | None = None,
    rows: Sequence[int] | None = None,
    layout: Layout | None = None,
) -> list[Edit]:
    """The edits that steer, for `run`, `editing` and everything else that takes edits.

    Args:
        model: the model that the vector is for.
        vector: the direction `v`, of which only the way counts but for `scale="raw"`; below it has length 1.
        coefficient: how much, by operation.
        operation: what is done to an activation `x`:

            - `"add"`: `x + coefficient * unit * v`; by `"norm"`, a few tenths of either sign are much at one layer, and
              from about 1 on any direction upsets most models;
            - `"ablate"`: `x - coefficient * (x @ v) * v`; with 1, nothing is left along `v` (Arditi et al. 2024);
            - `"affine"`: the part along `v` becomes that of the negative examples' mean for a coefficient of 0, of the
              positive examples' for 1, and so on along the line (Marshall et al. 2024);
            - `"clamp"`: the part along `v` becomes `coefficient * unit`;
            - `"rotate"`: the part of `x` in the plane of `plane` and `v` is turned by `coefficient` degrees from the
              first towards the second, which keeps the length of `x` (Vu and Nguyen 2025).
        layers: where; a vector of one direction can go to any layer. `"writers"`, for ablation by one direction, is
            all that writes to the residual stream: what enters the first block, and every attention and MLP.
        positions: for which tokens, as for any edit; besides `"predicting"`: the prompt's last token and all behind
            it, which is what decides every generated token (`"generated"` leaves the first one alone).
        scale: the `unit` of lengths: `"norm"` is the median length of activations at that layer, `"raw"` the length
            of the vector as it is (1 for clamp).
        plane: for rotation the direction to turn from.
        when: only tokens for which this gate opens.
        rows: for which rows of the batch.
        layout: for a model class of your own.

    Raises:
        SteeringError: for a vector of another model, layers that it has no direction for, a unit that is not known.
        SiteError: for layers that are not there.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> from interp_toolkit.steering import given_vector
        >>> model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=11)).eval()
        >>> vector = given_vector(model, torch.ones(8), site="resid_post.1")
        >>> steering_edits(model, vector, 4, scale="raw", positions="generated")
        [Edit(add resid_post.1 at Generated())]
    """
    wiring = verified(model, layout)
    vector.check(model, layout)
    if operation not in OPERATIONS:
        raise SteeringError(f"an operation is {', '.join(OPERATIONS)}, not {operation!r}")
    if scale not in ("norm", "raw"):
        raise SteeringError(f"scale is 'norm' or 'raw', not {scale!r}")
    if not math.isfinite(coefficient):
        raise SteeringError(f"a coefficient is a number, not {coefficient}")
    if (operation == "rotate") != (plane is not None):
        raise SteeringError("rotation, and nothing else, needs plane=, the direction to turn from")
    where = Predicting() if isinstance(positions, str) and positions == "predicting" else as_positions(positions)
    if layers == "writers":
        ablated = _Ablated(_taken_everywhere(vector, operation), coefficient)
        sited: list[tuple[Site, Change]] = [(site, ablated) for site in writers(wiring)]
    else:
        sited = []
        for layer, each in directions_at(wiring, vector, layers):
            other = None if plane is None else _only(directions_at(wiring, plane, layer))
            sited.append((Site(vector.site, layer), _change(each, other, layer, coefficient, operation, scale)))
    gated = [edit for site, change in sited for edit in _edits(wiring, site, change, when)]
    return [replace(e, positions=where if _steers(e) else e.positions, rows=_tuple(rows)) for e in gated]


def directions_at(wiring: Wiring, vector: SteeringVector, layers: LayersLike) -> list[tuple[int, SteeringVector]]:
    """For each layer that is meant the direction there, as a vector of one layer.

    Raises:
        SteeringError: for layers without a direction, or none at all.
        SiteError: for layers that are not there.
    """
    if layers is None:
        asked: Sequence[int] = vector.layers
    elif isinstance(layers, str):
        if layers != "all":
            raise SteeringError(f"layers are numbers, 'all' or 'writers', not {layers!r}")
        asked = [int(site.layer or 0) for site in wiring.available(vector.site)]
    else:
        asked = (layers,) if isinstance(layers, int) else tuple(layers)
    if not asked:
        raise SteeringError("no layer was asked for: give at least one")
    found = []
    for number in dict.fromkeys(int(wiring.check(Site(vector.site, layer)).layer or 0) for layer in asked):
        if len(vector.layers) == 1:
            found.append((number, vector))
        else:
            found.append((number, vector.at(number)))
    return found


def unit_at(vector: SteeringVector, layer: int, scale: Scale) -> float:
    """The length that a coefficient of 1 stands for.

    Raises:
        SteeringError: when the length of activations there is not known.
    """
    if scale == "raw":
        return float(vector.direction.double().norm())
    unit = float(vector.norms[layer])
    if not unit > 0:
        raise SteeringError(
            f"the length of activations at {vector.site}.{layer} is not known, so that a coefficient has no unit: give "
            "prompts= when the vector is made, or use scale='raw'"
        )
    return unit


# --- operations ---------------------------------------------------------------------------------------------------


class _Added:
    """Adds the same to every activation."""

    def __init__(self, value: Tensor) -> None:
        self.value = value

    def __call__(self, x: Tensor) -> Tensor:
        return self.value.to(x).expand_as(x)


class _Ablated:
    """Takes a share of what lies along a direction."""

    def __init__(self, v: Tensor, share: int | float) -> None:
        self.v, self.share = v, float(share)

    def __call__(self, x: Tensor) -> Tensor:
        v = self.v.to(x)
        return -self.share * (x @ v)[..., None] * v


def _change(
    vector: SteeringVector,
    plane: SteeringVector | None,
    layer: int,
    coefficient: int | float,
    operation: Operation,
    scale: Scale,
) -> Change:
    v = vector.direction.double() / vector.direction.double().norm()
    match operation:
        case "add":
            return _Added(v * (coefficient * unit_at(vector, layer, scale)))
        case "ablate":
            return _Ablated(v, coefficient)
        case "affine":
            low, high = float(vector.low[0]), float(vector.high[0])
            if not math.isfinite(low + high):
                raise SteeringError(
                    "affine steering needs to know where the positive and negative examples lie along the direction: "
                    f"steering_vector measures that, but this vector is by {vector.method}. Use operation='clamp'"
                )
            return _moved_to(v, low + coefficient * (high - low))
        case "clamp":
            return _moved_to(v, coefficient * (1.0 if scale == "raw" else unit_at(vector, layer, scale)))
        case "rotate":
            assert plane is not None
            return _turned(plane.direction.double(), v, math.radians(coefficient))


def _moved_to(v: Tensor, target: float) -> Change:
    return lambda x: (target - x @ v.to(x))[..., None] * v.to(x)


def _turned(start: Tensor, v: Tensor, angle: float) -> Change:
    """Turns what lies in a plane, from the first axis towards the second."""
    first = start / start.norm()
    second = v - (v @ first) * first
    if float(second.norm()) < 1e-6:
        raise SteeringError("both directions of the plane to rotate in are the same, so that there is no plane")
    axes = torch.stack([first, second / second.norm()])
    turn = torch.tensor([[math.cos(angle) - 1, -math.sin(angle)], [math.sin(angle), math.cos(angle) - 1]])
    return lambda x: x @ axes.mT.to(x) @ turn.mT.to(x) @ axes.to(x)


def writers(wiring: Wiring) -> list[Site]:
    """Everything that writes to the residual stream.

    Raises:
        SiteError: when one of them is not available in this model.
    """
    layers = range(wiring.layout.num_layers)
    sites = [Site("embed"), *(Site(name, layer) for layer in layers for name in ("attn_out", "mlp_out"))]
    return [wiring.check(site) for site in sites]


def _taken_everywhere(vector: SteeringVector, operation: Operation) -> Tensor:
    if operation != "ablate" or len(vector.layers) > 1:
        raise SteeringError(
            "layers='writers' is for operation='ablate' with one direction: what writes to the residual stream has no "
            "length of its own to add in, and one direction is taken from all of it; choose it with vector.at(3)"
        )
    v = vector.direction.double()
    unit: Tensor = v / v.norm()
    return unit


# --- edits --------------------------------------------------------------------------------------------------------


class _Look:
    """Reads at one site for which tokens a gate opens, and keeps it for another site of the same pass."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.open: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        self.open = self.gate.opens(x)
        return x


class _Steered:
    """An activation with what a change adds to it, where a gate opens."""

    def __init__(self, change: Change, gate: Gate | _Look | None) -> None:
        self.change, self.gate = change, gate

    def __call__(self, x: Tensor) -> Tensor:
        wide = _wide(x)
        new = (wide + self.change(wide)).to(x.dtype)
        if self.gate is None:
            return new
        opened = self.gate.open if isinstance(self.gate, _Look) else self.gate.opens(x)
        assert opened is not None
        return torch.where(opened.to(x.device)[..., None], new, x)


def _edits(wiring: Wiring, site: Site, change: Change, gate: Gate | None) -> list[Edit]:
    if gate is None and isinstance(change, _Added):
        return [Edit.add(site, change.value)]
    if gate is None and isinstance(change, _Ablated) and change.share == 1.0:
        return [Edit.project_out(site, change.v)]
    if gate is None:
        return [Edit.apply(site, _Steered(change, None))]
    width = wiring.layout.d_model
    if len(gate.direction) != width:
        raise SteeringError(f"the gate's direction has {len(gate.direction)} entries, but activations have {width}")
    if gate.site is None:
        return [Edit.apply(site, _Steered(change, gate))]
    read, number = wiring.check(Site.parse(gate.site)), wiring.layout.num_layers
    if read.axes != site.axes:
        raise SteeringError(f"a gate reads a vector for each token, which {read} does not have")
    if read == site:
        return [Edit.apply(site, _Steered(change, gate))]
    if read.depth(number) > site.depth(number):
        raise SteeringError(f"the gate reads {read}, which comes behind {site}, where it should decide what is done")
    look = _Look(gate)
    return [Edit.apply(read, look), Edit.apply(site, _Steered(change, look))]


def _steers(edit: Edit) -> bool:
    """Whether an edit steers, or only looks."""
    return not isinstance(edit.function, _Look)


def _only(found: list[tuple[int, SteeringVector]]) -> SteeringVector:
    [(_, vector)] = found
    return vector


def _tuple(rows: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if rows is None else tuple(rows)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


__all__ = [
    "OPERATIONS",
    "Gate",
    "LayersLike",
    "Operation",
    "Predicting",
    "Scale",
    "directions_at",
    "steering_edits",
    "unit_at",
    "writers",
]
