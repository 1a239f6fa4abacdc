"""The spectrum of features: what makes the descent of a probe quick for every penalty at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

_EXACT = 1024
"""So many rows or features are decomposed wholly; of more, the directions of largest variance are found."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Spectrum:
    """Principal directions of features.

    Attributes:
        axes: orthonormal columns.
        variances: along each of them.
        rest: mean variance along all other directions; 0 where features have no part in these.
    """

    axes: Float[Tensor, "layer d axis"]
    variances: Float[Tensor, "layer axis"]
    rest: Float[Tensor, " layer"]

    @classmethod
    def of(cls, x: Float[Tensor, "layer row d"], *, center: bool = True) -> Spectrum:
        """The spectrum of rows.

        Args:
            x: features, not necessarily centred.
            center: whether variance is about their mean, as an intercept has it, or about zero.
        """
        _, rows, width = x.shape
        centered = x - x.mean(1, keepdim=True) if center else x
        if width <= min(rows, _EXACT):
            # In double precision: an error of variances is multiplied by up to C times the number of rows
            wide = centered.double() if x.device.type != "mps" else centered
            variances, axes = (found.to(x) for found in torch.linalg.eigh(wide.mT @ wide / rows))
        elif rows <= _EXACT:
            variances, axes = _by_rows(centered)
        else:
            generator = torch.Generator(x.device).manual_seed(0)
            start = torch.randn(len(x), width, _EXACT // 2, generator=generator, dtype=x.dtype, device=x.device)
            for _ in range(3):  # subspace iteration (Halko et al. 2011, algorithm 4.4)
                start = torch.linalg.qr(centered.mT @ (centered @ start)).Q
            variances, turned = torch.linalg.eigh((centered @ start).mT @ (centered @ start) / rows)
            axes = start @ turned
        total = centered.square().sum((1, 2)) / rows
        left = (total - variances.sum(-1)).clamp_min(0) / max(1, width - axes.shape[-1])
        complete = axes.shape[-1] >= min(rows, width)
        return cls(axes=axes, variances=variances.clamp_min(0), rest=torch.zeros_like(left) if complete else left)

    def inverse(
        self, curvature: Float[Tensor, "layer problem output output"], mean: Float[Tensor, "layer problem d"] | None
    ) -> Callable[[Tensor], Tensor]:
        """A function that multiplies by the inverse of `1 + s ⊗ covariance`, with `s` the sum of curvatures over rows.

        Args:
            curvature: that sum, for each problem.
            mean: of the rows, by which the intercept, the last entry of a vector, goes with the weights; None where
                there is no intercept.

        Returns:
            A function of `[layer, problem, output, d + 1]`.
        """
        strengths, turns = torch.linalg.eigh(curvature)
        number = torch.finfo(strengths.dtype)
        strengths = strengths.clamp_min(number.tiny).maximum(number.eps * strengths[..., -1:])
        strength = strengths.flatten(1)[..., None]
        # Nothing that is multiplied lies outside of the axes where these are all. What rounding leaves there must not
        # grow: it would be larger than the rest, which is divided by up to C times the number of rows
        missing = (self.rest > 0)[:, None, None]
        other = torch.where(missing, 1 / (1 + strength * self.rest[:, None, None]), 0.0)
        along = 1 / (1 + strength * self.variances[:, None]) - other

        def inverted(vectors: Tensor) -> Tensor:
            turned = turns.mT @ vectors
            weights, last = turned[..., :-1], turned[..., -1:]
            if mean is not None:
                weights = weights - last * mean[:, :, None]
            flat = weights.flatten(1, 2)
            found = (flat * other + ((flat @ self.axes) * along) @ self.axes.mT).reshape(weights.shape)
            if mean is None:
                shift = torch.zeros_like(last)
            else:
                shift = last / strengths[..., None] - (found * mean[:, :, None]).sum(-1, keepdim=True)
            back: Tensor = turns @ torch.cat([found, shift], -1)
            return back

        return inverted


def sharpened(
    inverted: Callable[[Tensor], Tensor],
    axes: Float[Tensor, "layer d axis"],
    hessian: Float[Tensor, "layer chosen size size"],
    mean: Float[Tensor, "layer problem d"] | None,
    those: Int[Tensor, " chosen"],
) -> Callable[[Tensor], Tensor]:
    """An inverse of `Spectrum` that is exact along some axes, for some problems.

    Args:
        inverted: what `Spectrum.inverse` gave.
        axes: some of that spectrum's.
        hessian: along them, for rows without their mean, with outputs outside of axes, without the penalty.
        mean: as it was given to `Spectrum.inverse`.
        those: the problems.
    """
    factor, failed = torch.linalg.cholesky_ex(hessian + torch.eye(hessian.shape[-1]).to(hessian))
    sound = (failed == 0)[..., None, None]
    factor = torch.where(sound, factor, torch.eye(hessian.shape[-1]).to(hessian))
    axes = axes[:, None]
    centre = None if mean is None else mean[:, those, None]

    def sharp(vectors: Tensor) -> Tensor:
        found = inverted(vectors)
        given, some = vectors[:, those], found[:, those]
        weights = given[..., :-1] if centre is None else given[..., :-1] - given[..., -1:] * centre
        along = weights @ axes
        exact = torch.cholesky_solve(along.flatten(2)[..., None], factor).reshape(along.shape)
        change = torch.where(sound, exact - some[..., :-1] @ axes, 0.0) @ axes.mT
        last = torch.zeros_like(some[..., -1:]) if centre is None else (change * centre).sum(-1, keepdim=True)
        found[:, those] += torch.cat([change, -last], -1)
        return found

    return sharp


def _by_rows(centered: Float[Tensor, "layer row d"]) -> tuple[Tensor, Tensor]:
    """Variances and axes by the products of rows, of which there are fewer than features."""
    wide = centered.double() if centered.device.type != "mps" else centered
    rows = centered.shape[1]
    squares, sides = torch.linalg.eigh(wide @ wide.mT / rows)
    # Directions without variance are no directions: the penalty alone acts there, and gives them the weight zero
    sound = squares > 4 * rows * torch.finfo(wide.dtype).eps * squares.amax(-1, keepdim=True)
    lengths = (squares * rows).clamp_min(torch.finfo(wide.dtype).tiny).rsqrt()
    axes = wide.mT @ (sides * torch.where(sound, lengths, 0.0)[:, None])
    return torch.where(sound, squares, 0.0).to(centered), axes.to(centered)


__all__ = ["Spectrum"]
