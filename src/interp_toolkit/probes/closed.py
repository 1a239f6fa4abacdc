"""Linear probes with a closed form: ridge regression, differences of means, and linear discriminant analysis.

All layers, and for ridge regression all penalties, are solved together. Features are centred.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp_toolkit.probes.features import Features


def ridge(
    features: Features,
    wanted: Float[Tensor, "row output"],
    penalties: Float[Tensor, " penalty"],
    weights: Float[Tensor, " row"],
    *,
    intercept: bool = True,
) -> tuple[Float[Tensor, "layer penalty output d"], Float[Tensor, "layer penalty output"]]:
    """Least squares with a penalty: the minimum of `C · ½ Σ wᵢ (yᵢ − xᵢ·W − b)² + ½ ‖W‖²`.

    That is scikit-learn's `Ridge` with `alpha = 1 / C`. The spectrum of the smaller of the two matrices of products, of
    features or of rows, serves all penalties.

    Args:
        features: the rows of each layer, centred by the same weights where there is an intercept.
        wanted: what is to be predicted.
        penalties: the strengths C.
        weights: how much each row counts.
        intercept: whether there is one.

    Example:
        >>> x = Features.of(torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64))
        >>> y = torch.tensor([[0.0], [1.0], [2.0]], dtype=torch.float64)
        >>> found, bias = ridge(x, y, torch.tensor([2.0]), torch.ones(3))
        >>> round(float(found), 3), float(bias)  # 2 / (2 + 1 / C)
        (0.8, 1.0)
    """
    layers, rows, width = features.shape
    # In double precision: products have the square of the features' condition
    wide = torch.float64 if features.device.type != "mps" else torch.float32
    y = wanted.to(device=features.device, dtype=wide)
    share = weights.to(y)
    mean = (share @ y) / share.sum() if intercept else y.new_zeros(y.shape[1])
    root = share.sqrt()[:, None]
    right = (y - mean) * root
    added = 1 / penalties.to(y)
    if rows < width:
        x = torch.cat([block for _, block in features.blocks()], 1).to(wide) * root
        values, sides = torch.linalg.eigh(x @ x.mT)
        turned = sides.mT @ right
        found = x.mT[:, None] @ (sides[:, None] @ _divided(turned, values, added))
    else:
        square = torch.zeros(layers, width, width, dtype=wide, device=y.device)
        moved = torch.zeros(layers, width, y.shape[1], dtype=wide, device=y.device)
        for at, block in features.blocks():
            x = block.to(wide) * root[at]
            square += x.mT @ x
            moved += x.mT @ right[at]
        values, axes = torch.linalg.eigh(square)
        found = axes[:, None] @ _divided(axes.mT @ moved, values, added)
    found = found.mT.to(features.dtype)
    return found, mean.to(found).expand(found.shape[:-1]).clone()


def _divided(turned: Tensor, values: Tensor, added: Tensor) -> Float[Tensor, "layer penalty axis output"]:
    return turned[:, None] / (values.clamp_min(0)[:, None, :, None] + added[None, :, None, None])


def class_means(
    features: Features, index: Int[Tensor, " row"], classes: int, weights: Float[Tensor, " row"]
) -> tuple[Float[Tensor, "layer class d"], Float[Tensor, " class"]]:
    """The mean of each class, and its share of the weight."""
    share = torch.nn.functional.one_hot(index, classes).to(weights.dtype) * weights[:, None]
    share = share.to(device=features.device, dtype=features.dtype)
    total = share.sum(0)
    sums = torch.zeros(features.shape[0], classes, features.shape[2], dtype=features.dtype, device=features.device)
    for at, block in features.blocks():
        sums += share[at].mT @ block
    return sums / total[:, None], total / total.sum()


def mean_difference(
    features: Features,
    index: Int[Tensor, " row"],
    classes: int,
    weights: Float[Tensor, " row"],
    *,
    whiten: bool = False,
    priors: bool = False,
    shrinkage: float | None = None,
) -> tuple[Float[Tensor, "layer output d"], Float[Tensor, "layer output"]]:
    """The nearest class mean: for two classes the difference of their means, with the threshold in the middle.

    With `whiten`, distance is measured by the inverse of the covariance within classes, which gives "mass-mean" probes
    for independent data (Marks & Tegmark 2023, arXiv:2310.06824, section 5.2); with `priors` too, linear discriminant
    analysis.

    Args:
        features: the rows of each layer.
        index: the class of each row.
        classes: how many there are.
        weights: how much each row counts.
        whiten: whether covariance counts.
        priors: whether the shares of the classes count.
        shrinkage: how far the covariance is drawn towards a sphere, from 0 to 1; by Ledoit and Wolf (2004) if None.

    Returns:
        Weights and intercepts: one output for two classes, else one for each.

    Example:
        >>> x = Features.of(torch.tensor([[-1.0, 0.0], [-1.0, 1.0], [3.0, 0.0], [3.0, 1.0]]))
        >>> w, b = mean_difference(x, torch.tensor([0, 0, 1, 1]), 2, torch.ones(4))
        >>> w.tolist(), b.tolist()
        ([[[4.0, 0.0]]], [[-4.0]])
    """
    means, shares = class_means(features, index, classes, weights)
    directions = means
    if whiten:
        directions = _whitened(_within(features, index, means, weights, shrinkage), means)
    bias = -0.5 * (means * directions).sum(-1)
    if priors:
        bias = bias + shares.log()
    if classes == 2:
        return directions[:, 1:] - directions[:, :1], bias[:, 1:] - bias[:, :1]
    return directions, bias


def _whitened(covariance: Tensor, means: Tensor) -> Float[Tensor, "layer class d"]:
    """Means times the inverse of the covariance; the shortest where it has none, on every device."""
    values, axes = torch.linalg.eigh(covariance)
    sound = values > values.shape[-1] * torch.finfo(values.dtype).eps * values[..., -1:]
    inverse = torch.where(sound, 1 / torch.where(sound, values, 1.0), 0.0)
    found: Tensor = ((means @ axes) * inverse[:, None]) @ axes.mT
    return found


def _within(
    features: Features, index: Tensor, means: Tensor, weights: Tensor, shrinkage: float | None
) -> Float[Tensor, "layer d d"]:
    """The covariance within classes, drawn towards a sphere."""
    layers, _, width = features.shape
    share = (weights / weights.sum()).to(means)
    places = index.to(means.device)
    square = torch.zeros(layers, width, width, dtype=means.dtype, device=means.device)
    fourth = torch.zeros(layers, dtype=means.dtype, device=means.device)
    for at, block in features.blocks():
        x = block - means[:, places[at]]
        square += (x * share[at, None]).mT @ x
        fourth += x.square().sum(-1).square() @ share[at]
    size = square.diagonal(dim1=-2, dim2=-1).mean(-1)
    sphere = size[:, None, None] * torch.eye(width, dtype=means.dtype, device=means.device)
    if shrinkage is None:
        # How far the sample's covariance is expected to be from the true one, over how far it is from the sphere
        error = (fourth - square.square().sum((1, 2))) / (width * float(weights.sum()))
        spread = (square - sphere).square().sum((1, 2)) / width
        drawn = (error.clamp_min(0) / spread.clamp_min(torch.finfo(means.dtype).tiny)).clamp_max(1)
    else:
        drawn = torch.full_like(size, shrinkage)
    return torch.lerp(square, sphere, drawn[:, None, None])


__all__ = ["class_means", "mean_difference", "ridge"]
