"""Slopes through norms: products with the transpose of a norm's Jacobian, for many destinations of one stream.

For root-mean-square and layer norms the Jacobian is known: with `a` the gain over the root, and `x̂` the (centred) input
over its length, `Jᵀp = q − x̂ (x̂ · q)` with `q = a ⊙ p`, less its mean where the norm centres. That form is tried on
each norm when it is first met; a norm that is another function is differentiated by autograd.
"""

from __future__ import annotations

import weakref
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp_toolkit.model.relevance import Rules

Form = Literal["root mean square", "layer", "other"]
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
_forms: weakref.WeakKeyDictionary[nn.Module, Form] = weakref.WeakKeyDictionary()


def through_norm(
    norm: nn.Module | None,
    x: Float[Tensor, "pair pos d_model"],
    slopes: Float[Tensor, "dest pair pos d_model"],
    rules: Rules,
) -> Float[Tensor, "dest pair pos d_model"]:
    """Slopes behind a norm, pulled back to what it is given. The slopes may be changed in place.

    Args:
        norm: the norm, or None for none.
        x: what it is given.
        slopes: behind it, for each destination.
        rules: with those of relevance propagation, its scale is a constant.
    """
    if norm is None:
        return slopes
    form = _form(norm, x)
    if form == "other":
        return _by_autograd(norm, x, slopes, rules)
    return _known(norm, x, slopes, form, constant=rules.relevance)


def _known(
    norm: nn.Module, x: Tensor, slopes: Tensor, form: Form, *, constant: bool
) -> Float[Tensor, "dest pair pos d_model"]:
    gain, shift = _gain(norm, x, form)
    centred = x - x.mean(-1, keepdim=True) if form == "layer" else x
    with torch.no_grad():
        gave = (norm(x) if shift is None else norm(x) - shift).to(slopes.dtype)
    raw = (centred * gain).to(slopes.dtype)
    scale = (raw * gave).sum(-1, keepdim=True) / (raw * raw).sum(-1, keepdim=True).clamp_min(1e-30)
    slopes *= scale * gain.to(slopes.dtype)
    if not constant:
        unit = centred.to(slopes.dtype) * (scale / x.shape[-1] ** 0.5)
        along = torch.einsum("vptd,ptd->vpt", slopes, unit)
        slopes -= along[..., None] * unit
    if form == "layer":
        slopes -= slopes.mean(-1, keepdim=True)
    return slopes


def _gain(norm: nn.Module, x: Tensor, form: Form) -> tuple[Tensor, Tensor | None]:
    """The gain of each entry, whatever form the weight has, and what is added."""
    with torch.no_grad():
        if form == "root mean square":
            return norm(torch.full_like(x[:1, :1], 1e3))[0, 0], None
        shift = norm(torch.zeros_like(x[:1, :1]))[0, 0]
        weight = getattr(norm, "weight", None)
    return torch.ones_like(shift) if weight is None else weight.detach(), shift


def _form(norm: nn.Module, x: Tensor) -> Form:
    """Which kind of norm this is, found out on what it is given."""
    if norm not in _forms:
        part = x[:1, :4]
        slopes = torch.randn(2, *part.shape, generator=torch.Generator().manual_seed(0)).to(part)
        truth = _by_autograd(norm, part, slopes, Rules())
        allowed = _TOLERANCE.get(x.dtype, 1e-2) * float(truth.norm())
        _forms[norm] = "other"
        forms: tuple[Form, ...] = ("root mean square", "layer")
        for form in forms:
            found = _known(norm, part, slopes.clone(), form, constant=False)
            if float((found - truth).norm()) <= allowed:
                _forms[norm] = form
                break
    return _forms[norm]


def _by_autograd(norm: nn.Module, x: Tensor, slopes: Tensor, rules: Rules) -> Tensor:
    with torch.enable_grad(), rules.in_norm():
        given = x.detach().expand(slopes.shape).reshape(1, -1, x.shape[-1]).requires_grad_()
        gave = norm(given)
        (found,) = torch.autograd.grad(gave, given, slopes.reshape(gave.shape).to(gave.dtype))
    return found.view(slopes.shape).to(slopes.dtype)


__all__ = ["through_norm"]
