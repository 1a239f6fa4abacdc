"""Slopes pulled back through what heads and neurons write: how much one unit of `z` or of a neuron matters.

What a head adds to the residual stream is a linear map of its `z`; with a slope of the residual stream at hand, its
effect is a product in the head's own small space, so nothing of the size `[pos, head, d_model]` is ever made.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from interp_toolkit.model.entrances import linear_map
from interp_toolkit.model.heads import norm_scale
from interp_toolkit.model.wiring import Wiring


@dataclass(frozen=True, kw_only=True, eq=False)
class Pulled:
    """A slope in front of a linear map.

    Attributes:
        slopes: by what each entry of the input is multiplied.
        bias: what the map's bias gives.
    """

    slopes: Float[Tensor, "pos *entries"]
    bias: Float[Tensor, " pos"]


@torch.no_grad()
def to_heads(
    wiring: Wiring, layer: int, z: Float[Tensor, "pos head d_head"], slopes: Float[Tensor, "pos d_model"]
) -> Pulled:
    """Slopes of the residual stream, pulled back to the heads of a layer: `[pos, head, d_head]`.

    A norm behind the output projection keeps the scale that it has in this run.
    """
    layout = wiring.layout
    pulled = _through(wiring, layer, layout.projection, layout.attn_norm, z.flatten(-2), slopes)
    return Pulled(slopes=pulled.slopes.unflatten(-1, z.shape[1:]), bias=pulled.bias)


@torch.no_grad()
def to_neurons(
    wiring: Wiring, layer: int, post: Float[Tensor, "pos d_mlp"], slopes: Float[Tensor, "pos d_model"]
) -> Pulled:
    """Slopes of the residual stream, pulled back to the neurons of a layer: `[pos, d_mlp]`; see `to_heads`."""
    layout = wiring.layout
    norm = None if layout.mlp_out in (layout.mlp, layout.down) else layout.mlp_out
    return _through(wiring, layer, str(layout.down), norm, post, slopes)


def _through(
    wiring: Wiring,
    layer: int,
    path: str,
    norm: str | None,
    given: Float[Tensor, "pos width"],
    slopes: Float[Tensor, "pos d_model"],
) -> Pulled:
    projection = wiring.at(layer, path)
    wide = slopes.to(given.device) * wiring.layout.multiplier
    if norm is not None:
        scale = norm_scale(wiring.at(layer, norm), projection(given[None]))[0]
        wide = wide * scale.to(wide.dtype)
    matrix, bias = linear_map(projection, given.shape[-1], given)
    pulled = wide @ matrix.to(wide)
    added = wide.new_zeros(len(wide)) if bias is None else wide @ bias.to(wide)
    return Pulled(slopes=pulled, bias=added)


__all__ = ["Pulled", "to_heads", "to_neurons"]
