"""Steering vectors: directions with what must be known to use them again.

A direction belongs to a model, a site and a layer, and its length means little by itself. So a vector carries all of
these, how long the model's own activations are there, and a digest of the data that it was made from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp_toolkit.activations.files import load_tensors, save_tensors
from interp_toolkit.errors import FileFormatError, SteeringError
from interp_toolkit.model.layout import Layout
from interp_toolkit.model.verify import verified
from interp_toolkit.provenance import Provenance, provenance_of, same_name

SITES = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
"""Where one can steer: what has a vector of the residual stream's width in every block."""

_KIND = "interp_toolkit.steering_vector/1"
_TENSORS = ("directions", "norms", "low", "high")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SteeringVector:
    """A direction for one layer, or one for each of several layers. Made by `steering_vector` and its kin.

    Lengths count in sums and for `scale="raw"`; where coefficients are in units of the activations' length, only the
    direction does.

    Attributes:
        directions: one for each of the layers, of any length but zero.
        layers: their numbers.
        site: a component of the residual stream's width, such as `"resid_post"`.
        norms: for **every** layer of the model the median length of activations at that site; NaN where not known.
        low: how far the mean of the negative examples lies along each direction; NaN where not known.
        high: the same of the positive examples.
        method: how it was found.
        digest: of the data that it was made from.
        notes: what its maker wrote down.
        provenance: model, layout and versions.
    """

    directions: Float[Tensor, "layer d_model"]
    layers: tuple[int, ...]
    site: str
    norms: Float[Tensor, " depth"]
    low: Float[Tensor, " layer"]
    high: Float[Tensor, " layer"]
    method: str
    digest: str = ""
    notes: str = ""
    provenance: Provenance = field(repr=False)

    def __post_init__(self) -> None:
        """Check that the parts fit together, and that every direction is one."""
        number, depth = len(self.layers), len(self.norms)
        if self.site not in SITES:
            raise SteeringError(f"one steers at {', '.join(SITES)}, not at {self.site!r}")
        if not number or list(self.layers) != sorted(set(self.layers)) or not 0 <= self.layers[0] <= self.layers[-1]:
            raise SteeringError(f"layers are different numbers from 0 on, in order, at least one; not {self.layers}")
        if self.layers[-1] >= depth:
            raise SteeringError(
                f"there is a direction for layer {self.layers[-1]}, but the model has {depth}: 0 to {depth - 1}"
            )
        if not len(self.directions) == len(self.low) == len(self.high) == number:
            found = (len(self.directions), len(self.low), len(self.high))
            raise SteeringError(f"there are {number} layers, but {found} directions, low and high ends")
        if not bool(self.directions.isfinite().all()):
            raise SteeringError("a direction is not finite")
        empty = [layer for layer, v in zip(self.layers, self.directions, strict=True) if not bool(v.any())]
        if empty:
            raise SteeringError(f"the direction of layer {empty[0]} is zero: it points nowhere")

    # --- what it is ------------------------------------------------------------------------------------------

    @property
    def num_layers(self) -> int:
        """How many layers the model has."""
        return len(self.norms)

    @property
    def d_model(self) -> int:
        """The width of the residual stream."""
        return int(self.directions.shape[1])

    @property
    def units(self) -> Float[Tensor, "layer d_model"]:
        """The directions with length 1."""
        wide = self.directions.double()
        unit: Tensor = (wide / wide.norm(dim=-1, keepdim=True)).float()
        return unit

    @property
    def direction(self) -> Float[Tensor, " d_model"]:
        """The direction, where there is only one.

        Raises:
            SteeringError: where there are several.
        """
        if len(self.layers) > 1:
            raise SteeringError(
                f"there is a direction for each of the layers {self.layers}: choose one, as vector.at(3)"
            )
        return self.directions[0]

    def at(self, *layers: int) -> SteeringVector:
        """The directions of some of the layers.

        Raises:
            SteeringError: for a layer that it has no direction for.
        """
        wanted = sorted({self._counted(layer) for layer in layers})
        if missing := [layer for layer in wanted if layer not in self.layers]:
            raise SteeringError(f"there is no direction for layer {missing[0]}: there are those of {self.layers}")
        index = [self.layers.index(layer) for layer in wanted]
        return replace(
            self,
            directions=self.directions[index],
            layers=tuple(wanted),
            low=self.low[index],
            high=self.high[index],
        )

    def normalised(self) -> SteeringVector:
        """The same directions with length 1."""
        return replace(self, directions=self.units)

    def cosine(self, other: SteeringVector) -> Float[Tensor, " layer"]:
        """The cosine of the angle to another vector's direction, layer by layer.

        Raises:
            SteeringError: when the other is of another model, site or layers.
        """
        self._check_same(other)
        found: Tensor = (self.units.double() * other.units.double()).sum(-1).float()
        return found

    def summary(self) -> str:
        """What it is, in words."""
        where = f"{self.site} of layer{'s' * (len(self.layers) > 1)} {_ranges(self.layers)}"
        known = self.norms[list(self.layers)]
        lengths = [f"{float(v.norm()):.3g}" for v in self.directions]
        shares = [f"{float(v.norm() / n):.1%}" for v, n in zip(self.directions, known, strict=True) if n.isfinite()]
        lines = [
            f"A direction by {self.method} for {where} of {self.provenance.model}, {self.d_model} wide.",
            f"Length {', '.join(lengths)}" + (f" ({', '.join(shares)} of activations there)." if shares else "."),
        ]
        if self.digest:
            lines.append(f"Data {self.digest}.")
        return "\n".join([*lines, *([self.notes] if self.notes else [])])

    def __repr__(self) -> str:
        """What it is, in a line."""
        return f"SteeringVector({self.method}, {self.site} {_ranges(self.layers)}, d_model={self.d_model})"

    # --- arithmetic ------------------------------------------------------------------------------------------

    def __add__(self, other: SteeringVector) -> SteeringVector:
        """The sum of both directions, as long as they are."""
        return self._joined(other, 1.0)

    def __sub__(self, other: SteeringVector) -> SteeringVector:
        """The difference of both directions, as long as they are."""
        return self._joined(other, -1.0)

    def __mul__(self, factor: int | float) -> SteeringVector:
        """The direction, so many times as long; a negative factor turns it round."""
        flipped = factor < 0
        # Ends are measured along the direction, and turn round with it.
        return replace(
            self,
            directions=self.directions * float(factor),
            low=-self.low if flipped else self.low,
            high=-self.high if flipped else self.high,
        )

    __rmul__ = __mul__

    def __neg__(self) -> SteeringVector:
        """The opposite direction."""
        return self * -1.0

    def _joined(self, other: SteeringVector, sign: float) -> SteeringVector:
        self._check_same(other)
        # A length that only one of them knows is kept; where both know it, it is in between.
        norms = torch.stack([self.norms, other.norms]).nanmean(0)
        nothing = torch.full_like(self.low, torch.nan)
        return replace(
            self,
            directions=self.directions + sign * other.directions,
            norms=norms,
            low=nothing,
            high=nothing,
            method=f"({self.method}) {'+' if sign > 0 else '-'} ({other.method})",
            digest=f"{self.digest} {other.digest}".strip(),
            notes="; ".join(dict.fromkeys(note for note in (self.notes, other.notes) if note)),
        )

    def _check_same(self, other: SteeringVector) -> None:
        check_same_model(self.provenance, other.provenance, self.d_model, other.d_model)
        if (self.site, self.layers) != (other.site, other.layers):
            raise SteeringError(
                f"one vector is for {self.site} {_ranges(self.layers)}, the other for {other.site} "
                f"{_ranges(other.layers)}: cut them to the same layers with vector.at(...)"
            )

    def _counted(self, layer: int) -> int:
        if not -self.num_layers <= layer < self.num_layers:
            raise SteeringError(f"layer {layer} was asked for, but the model has {self.num_layers} layers")
        return layer % self.num_layers

    # --- the model it is for ---------------------------------------------------------------------------------

    def check(self, model: nn.Module, layout: Layout | None = None) -> None:
        """Refuse a model that this vector was not made for.

        Raises:
            SteeringError: when the model has another name, family, width or number of layers.
        """
        wiring = verified(model, layout)
        found = provenance_of(model, wiring.layout)
        if wiring.layout.num_layers != self.num_layers:
            raise SteeringError(
                f"this vector was made for {self.provenance.model} with {self.num_layers} layers, but this model, "
                f"{found.model}, has {wiring.layout.num_layers}"
            )
        check_same_model(self.provenance, found, self.d_model, wiring.layout.d_model)

    def for_model(self, model: nn.Module, layout: Layout | None = None) -> SteeringVector:
        """The same directions for another model of the same width and number of layers, such as a finetuned one.

        Raises:
            SteeringError: when they do not fit.
        """
        wiring = verified(model, layout)
        shape = (wiring.layout.num_layers, wiring.layout.d_model)
        if shape != (self.num_layers, self.d_model):
            raise SteeringError(
                f"this vector is for {self.num_layers} layers of width {self.d_model}, but the model has {shape[0]} of "
                f"width {shape[1]}"
            )
        return replace(self, provenance=provenance_of(model, wiring.layout))

    # --- on disk ---------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write everything to one safetensors file."""
        about = {"layers": list(self.layers), "site": self.site, "method": self.method}
        about |= {"digest": self.digest, "notes": self.notes}
        tensors = {name: getattr(self, name).contiguous().clone() for name in _TENSORS}
        return save_tensors(path, tensors, kind=_KIND, about=about, provenance=self.provenance)

    @classmethod
    def load(cls, path: str | Path) -> SteeringVector:
        """Read what `save` wrote.

        Raises:
            FileFormatError: when it is something else, or damaged.
        """
        tensors, about, provenance = load_tensors(path, kind=_KIND, what="a steering vector")
        shapes = {name: tuple(x.shape) for name, x in tensors.items()}
        ranks = {name: len(shape) for name, shape in shapes.items()}
        if ranks != {"directions": 2, "norms": 1, "low": 1, "high": 1}:
            raise FileFormatError(f"{path} is damaged: it holds tensors of shapes {shapes}")
        if any(not x.is_floating_point() for x in tensors.values()):
            raise FileFormatError(f"{path} is damaged: it holds numbers that are not floating-point")
        texts = _texts(path, about)
        layers = about.get("layers")
        if not isinstance(layers, list) or any(type(n) is not int for n in layers):
            raise FileFormatError(f"{path} is damaged: its layers are {layers!r}")
        try:
            return cls(
                directions=tensors["directions"],
                layers=tuple(layers),
                site=texts["site"],
                norms=tensors["norms"],
                low=tensors["low"],
                high=tensors["high"],
                method=texts["method"],
                digest=texts["digest"],
                notes=texts["notes"],
                provenance=provenance,
            )
        except SteeringError as error:
            raise FileFormatError(f"{path} is damaged: {error}") from error


def _texts(path: str | Path, about: Mapping[str, Any]) -> dict[str, str]:
    found = {name: about.get(name) for name in ("site", "method", "digest", "notes")}
    if wrong := [name for name, text in found.items() if not isinstance(text, str)]:
        raise FileFormatError(f"{path} is damaged: it does not say its {', '.join(wrong)}")
    return {name: str(text) for name, text in found.items()}


def check_same_model(made: Provenance, found: Provenance, made_width: int, found_width: int) -> None:
    """Refuse to bring together what belongs to two models.

    A folder with a model goes by its own name wherever it lies, and as the hub's model of that name.

    Raises:
        SteeringError: when names, widths or layouts differ.
    """
    way_out = "if it fits nevertheless, say so with vector.for_model(model)"
    if made_width != found_width:
        raise SteeringError(
            f"the vector is for {made.model} with width {made_width}, but {found.model} has width {found_width}"
        )
    if not same_name(made.model, found.model):
        raise SteeringError(f"this vector was made for the model {made.model}, not for {found.model}; {way_out}")
    if made.layout != found.layout:
        raise SteeringError(
            f"this vector was made for a {made.model_type} model with layout {made.layout}, but {found.model} is a "
            f"{found.model_type} model with layout {found.layout}; {way_out}"
        )


def _ranges(layers: Sequence[int]) -> str:
    """Numbers as people write them: 3-5, 9."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def random_vectors(vector: SteeringVector, number: int, *, seed: int = 0) -> list[SteeringVector]:
    """Vectors of the same lengths, at the same layers, that point anywhere: what any push of that size would do.

    Args:
        vector: the one to compare with.
        number: how many.
        seed: the same seed gives the same; no other random numbers are touched.

    Raises:
        SteeringError: for less than none.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> from interp_toolkit.steering import given_vector
        >>> model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=11)).eval()
        >>> vector = given_vector(model, 3 * torch.eye(8)[0], layers=1)
        >>> [round(float(one.direction.norm()), 3) for one in random_vectors(vector, 2)]
        [3.0, 3.0]
    """
    if number < 0:
        raise SteeringError(f"0 random directions or more can be drawn, not {number}")
    generator, sizes = torch.Generator().manual_seed(seed), vector.directions.norm(dim=-1, keepdim=True)
    drawn = [torch.randn(vector.directions.shape, generator=generator) for _ in range(number)]
    return [replace(vector, directions=x / x.norm(dim=-1, keepdim=True) * sizes, method="random") for x in drawn]


__all__ = ["SITES", "SteeringVector", "check_same_model", "random_vectors"]
