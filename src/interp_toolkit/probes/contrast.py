"""Contrast-consistent search: a direction that tells a statement from its opposite, found without labels."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def contrast_consistent(
    first: Float[Tensor, "layer pair d"],
    second: Float[Tensor, "layer pair d"],
    *,
    tries: int = 10,
    steps: int = 1000,
    learning_rate: float = 0.01,
    weight_decay: float = 0.01,
    seed: int = 0,
) -> tuple[Float[Tensor, "layer d"], Float[Tensor, " layer"], Float[Tensor, " layer"]]:
    """Search for consistent probabilities: of two opposite statements one is true (Burns et al. 2022, eq. 1-2).

    Both sides are standardised on their own, so that what all first statements share says nothing. The loss is
    `(p₁ − (1 − p₂))² + min(p₁, p₂)²`, minimised with AdamW from several random beginnings for all layers together; the
    best one is kept. Which end of the direction means "true" cannot be known from this.

    Args:
        first: activations of one statement of each pair.
        second: of its opposite.
        tries: random beginnings.
        steps: of the descent.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        seed: decides the beginnings.

    Returns:
        Weights and intercept for activations as they are, by the mean of both sides' statistics, and the loss.

    Example:
        >>> truth = torch.tensor([1.0, -1.0, 1.0, -1.0, -1.0, 1.0])
        >>> noise = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)) * 0.1
        >>> first = torch.cat([truth[:, None], noise], 1)[None]
        >>> second = torch.cat([-truth[:, None], noise.flip(0)], 1)[None]
        >>> weights, bias, loss = contrast_consistent(first, second, steps=300)
        >>> bool(((first[0] @ weights[0] + bias[0]).sign() * truth).abs().sum() == 6), bool(loss < 0.1)
        (True, True)
    """
    a, b = (_standard(x.float()) for x in (first, second))
    layers, _, width = a[0].shape
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(layers, tries, width, generator=generator) / width**0.5
    with torch.enable_grad():
        # What does not vary on either side has no part: its weight would stay as random as it began
        varies = (a[0] != 0).any(1) | (b[0] != 0).any(1)
        weights = (start.to(a[0].device) * varies[:, None]).requires_grad_()
        bias = torch.zeros(layers, tries, device=a[0].device, requires_grad=True)
        optimizer = torch.optim.AdamW([weights, bias], lr=learning_rate, weight_decay=weight_decay)
        for _ in range(steps):
            optimizer.zero_grad()
            _loss(a[0], b[0], weights, bias).sum().backward()
            optimizer.step()
        losses = _loss(a[0], b[0], weights, bias).detach()
    best = losses.argmin(-1)
    place = torch.arange(layers, device=best.device)
    chosen, shift = weights.detach()[place, best], bias.detach()[place, best]
    # A new statement is of no side, so that it is standardised by the mean of both
    mean, scale = (a[1] + b[1]) / 2, (a[2] + b[2]) / 2
    raw = chosen / scale
    return raw, shift - (raw * mean).sum(-1), losses[place, best]


def _standard(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mean, scale = x.mean(1), x.std(1, correction=0)
    varies = scale > 1e-6 * mean.abs()
    scale = torch.where(varies, scale, 1.0)
    return torch.where(varies[:, None], (x - mean[:, None]) / scale[:, None], 0.0), mean, scale


def _loss(first: Tensor, second: Tensor, weights: Tensor, bias: Tensor) -> Float[Tensor, "layer try"]:
    p, q = (torch.sigmoid(x @ weights.mT + bias[:, None]) for x in (first, second))
    return ((p + q - 1).square() + torch.minimum(p, q).square()).mean(1)


__all__ = ["contrast_consistent"]
