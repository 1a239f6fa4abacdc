"""What each head writes: `z @ W_O` head by head.

The heads' outputs and the projection's bias sum to `attn_out`. Where a norm stands between the projection and the
residual stream (Gemma 2, OLMo 2), heads are not linear in it; the norm's own scale in this run is then taken as a
constant, so that the sum still holds.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp_toolkit.model.wiring import Wiring


def head_outputs(
    wiring: Wiring, layer: int, z: Float[Tensor, "batch pos head d_head"]
) -> Float[Tensor, "batch pos head d_model"]:
    """What each head adds to the residual stream.

    Costs one projection a head where weights can be cut (`torch.nn.Linear`, `Conv1D`); quantised and adapted
    projections are run once for each head.
    """
    layout = wiring.layout
    projection = wiring.at(layer, layout.projection)
    heads: Tensor = _by_head(projection, z)
    if layout.attn_norm is not None:
        heads = heads * norm_scale(wiring.at(layer, layout.attn_norm), projection(z.flatten(-2)))[..., None, :]
    return heads if layout.multiplier == 1.0 else heads * layout.multiplier


def projection_bias(
    wiring: Wiring, layer: int, z: Float[Tensor, "batch pos head d_head"]
) -> Float[Tensor, "batch pos d_model"]:
    """What the output projection adds beside the heads: its bias, through norm and multiplier."""
    layout = wiring.layout
    projection = wiring.at(layer, layout.projection)
    bias: Tensor = projection(torch.zeros_like(z[:, :, 0].flatten(-1)).repeat_interleave(z.shape[2], dim=-1))
    if layout.attn_norm is not None:
        bias = bias * norm_scale(wiring.at(layer, layout.attn_norm), projection(z.flatten(-2)))
    return bias * layout.multiplier


def weight_by_head(projection: nn.Module, heads: int) -> Float[Tensor, "head d_head d_model"] | None:
    """`W_O` cut into heads, or None where the weights cannot be read as a matrix."""
    from transformers.pytorch_utils import Conv1D

    # Subclasses quantise, adapt or parametrise their weights; offloaded weights are not here.
    weight = getattr(projection, "weight", None)
    if type(projection) not in (nn.Linear, Conv1D) or not isinstance(weight, Tensor) or weight.is_meta:
        return None
    inputs_first: Tensor = weight.T if type(projection) is nn.Linear else weight
    by_head: Tensor = inputs_first.unflatten(0, (heads, -1))
    return by_head


def _by_head(projection: nn.Module, z: Tensor) -> Tensor:
    weight = weight_by_head(projection, z.shape[2])
    if weight is not None:
        return torch.einsum("bphi,hid->bphd", z, weight)
    nothing = projection(torch.zeros_like(z).flatten(-2))
    alone = []
    for head in range(z.shape[2]):
        only = torch.zeros_like(z)
        only[:, :, head] = z[:, :, head]
        alone.append(projection(only.flatten(-2)) - nothing)
    return torch.stack(alone, dim=2)


def norm_scale(norm: nn.Module, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
    """By what a root-mean-square norm multiplies each entry of `x`.

    It is a gain per channel times one number per position. The gain shows on a vector of ones, up to a factor; that
    factor and the number follow by least squares, so neither the norm's epsilon nor the form of its weight need be
    known.
    """
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    gain: Tensor = norm(torch.ones_like(x[:1, :1])).to(wide)
    raw, normed = x.to(wide) * gain, norm(x).to(wide)
    per_position: Tensor = (raw * normed).sum(-1, keepdim=True) / (raw * raw).sum(-1, keepdim=True).clamp_min(1e-30)
    return (gain * per_position).to(x.dtype)


__all__ = ["head_outputs", "norm_scale", "projection_bias", "weight_by_head"]
