"""Many penalised logistic regressions at once: layers, penalties and labellings in one descent.

The objective is that of scikit-learn: `C · Σ wᵢ · loss(yᵢ, xᵢ·W + b) + ½ ‖W‖²`, with an intercept that is not
penalised. It is minimised by Newton's method with conjugate gradients (Nocedal & Wright 2006, algorithm 7.1). All
problems of a layer share the pass over its rows, and share a preconditioner: the Hessian with one mean curvature in
place of each row's own, which the spectrum of the features inverts for every penalty. A few such steps do what takes
L-BFGS hundreds of passes where features are nearly collinear, as those of a residual stream usually are.

What stops the descent is the Newton decrement, which estimates how far the loss is above its minimum; where the loss
changes little, a small gradient alone would not say that.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp_toolkit.probes.features import Features
from interp_toolkit.probes.spectrum import Spectrum, sharpened

_ARMIJO = 1e-4
_MOST_INNER = 64
"""Conjugate gradients in one Newton step at most."""
_PLAIN = 10
"""So many of them by the shared preconditioner; problems that need more get one of their own."""
_LEADING = 256
"""Directions times outputs in which that is exact."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Solution:
    """The minima.

    Attributes:
        weights: for each layer, penalty and labelling; one output where there are two classes.
        bias: the intercepts.
        losses: of each problem, with its penalty.
        excess: how far each loss is above its minimum, as a share of it, estimated by the Newton decrement before the
            last step, which makes it far smaller.
        converged: whether that is within the tolerance.
        steps: how many Newton steps were taken, of the problem that took most.
        passes: how often the rows were gone through, forth or back.
    """

    weights: Float[Tensor, "layer penalty task output d"]
    bias: Float[Tensor, "layer penalty task output"]
    losses: Float[Tensor, "layer penalty task"]
    excess: Float[Tensor, "layer penalty task"]
    converged: Bool[Tensor, "layer penalty task"]
    steps: int
    passes: int


def logistic(
    features: Features,
    targets: Int[Tensor, "row task"],
    penalties: Float[Tensor, " penalty"],
    *,
    classes: int = 2,
    row_weights: Float[Tensor, "row task"] | None = None,
    intercept: bool = True,
    tolerance: float | None = None,
    max_steps: int = 100,
) -> Solution:
    """Logistic regressions for every layer, penalty and labelling.

    Args:
        features: the rows of each layer; computed in their precision and on their device.
        targets: the class of each row, from 0, in each labelling.
        penalties: the strengths C of scikit-learn: large ones penalise little.
        classes: how many there are: two have one output with a sigmoid, more a softmax.
        row_weights: how much each row counts in each labelling; 1 if not given. Those with 0 are left out.
        intercept: whether there is one.
        tolerance: of the loss, as a share of it; 1e-6 in float32 and 1e-12 in float64 if not given.
        max_steps: Newton steps at most.

    Returns:
        Weights and intercepts in the coordinates of `features`.

    Example:
        >>> x = Features.of(torch.tensor([[-2.0], [-1.0], [1.0], [2.0]], dtype=torch.float64))
        >>> found = logistic(x, torch.tensor([[0], [0], [1], [1]]), torch.tensor([1.0]))
        >>> round(float(found.weights), 3), abs(round(float(found.bias), 3))
        (1.007, 0.0)
    """
    if tolerance is None:
        tolerance = 1e-6 if features.dtype == torch.float32 else 1e-12
    parts = []
    for some in features.parts:
        problem = _Problem.of(some, targets, penalties, classes, row_weights, intercept)
        parts.append(_descend(problem, (len(penalties), targets.shape[1]), tolerance, max_steps))
    return Solution(
        weights=torch.cat([part.weights for part in parts]),
        bias=torch.cat([part.bias for part in parts]),
        losses=torch.cat([part.losses for part in parts]),
        excess=torch.cat([part.excess for part in parts]),
        converged=torch.cat([part.converged for part in parts]),
        steps=max(part.steps for part in parts),
        passes=sum(part.passes for part in parts),
    )


# --- the problems -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class _Problem:
    """Problems side by side: a layer's `problem` axis runs over penalties and labellings.

    Points, gradients and directions are `[layer, problem, output, d + 1]`, with the intercept last; margins are
    `[layer, row, problem, output]`.
    """

    features: Features
    spectrum: Spectrum
    wanted: Bool[Tensor, "row problem output"]
    scale: Float[Tensor, "row problem"]  # C times the row's weight
    softmax: bool
    intercept: bool
    leading: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)  # shared by parts of the problem

    @classmethod
    def of(
        cls,
        features: Features,
        targets: Tensor,
        penalties: Tensor,
        classes: int,
        row_weights: Tensor | None,
        intercept: bool,
    ) -> _Problem:
        one_hot = torch.nn.functional.one_hot(targets.to(features.device), classes).bool()
        wanted = one_hot[..., 1:] if classes == 2 else one_hot
        weights = torch.ones(targets.shape) if row_weights is None else row_weights
        share, strength = (x.to(device=features.device, dtype=features.dtype) for x in (weights, penalties))
        scale = strength[None, :, None] * share[:, None]
        return cls(
            features=features,
            spectrum=features.spectrum(intercept),
            wanted=wanted.repeat(1, len(penalties), 1),
            scale=scale.flatten(1),
            softmax=classes > 2,
            intercept=intercept,
        )

    def only(self, problems: Int[Tensor, " chosen"]) -> _Problem:
        """Some of the problems."""
        if len(problems) == self.scale.shape[1]:
            return self
        return replace(self, wanted=self.wanted[:, problems], scale=self.scale[:, problems])

    def losses(self, margins: Float[Tensor, "layer row problem output"]) -> Float[Tensor, "layer problem"]:
        """The losses without the penalty."""
        if self.softmax:
            others = self._beyond(margins).masked_fill(self.wanted, -torch.inf).logsumexp(-1)
        else:
            others = torch.where(self.wanted, -margins, margins)[..., 0]
        # Not the logarithm of all minus the one that is wanted, of which nothing is left where the row is well told
        return torch.einsum("lrp,rp->lp", torch.nn.functional.softplus(others), self.scale)

    def slopes(self, margins: Float[Tensor, "layer row problem output"]) -> Float[Tensor, "layer row problem output"]:
        """Of a row's loss by its margins: probabilities minus what is wanted, with all digits where they are equal."""
        if not self.softmax:
            return torch.where(self.wanted, -(-margins).sigmoid(), margins.sigmoid())
        others = margins.softmax(-1).masked_fill(self.wanted, 0)
        return torch.where(self.wanted, -others.sum(-1, keepdim=True), others)

    def bend(self, margins: Tensor, slopes: Tensor, rows: slice) -> Tensor:
        """The second derivative of the rows' losses, times a change of their margins."""
        if self.softmax:
            beyond = self._beyond(margins, rows)
            turned = slopes * beyond - (slopes + self.wanted[rows]) * (slopes * beyond).sum(-1, keepdim=True)
        else:
            turned = _bent(slopes) * margins
        return turned * self.scale[rows, :, None]

    def curvature(self, slopes: Tensor) -> Float[Tensor, "layer problem output output"]:
        """The second derivative, summed over rows."""
        if not self.softmax:
            return torch.einsum("lrpo,rp->lpo", _bent(slopes), self.scale)[..., None]
        p = slopes + self.wanted
        mixed = torch.einsum("lrpa,lrpb->lpab", p * self.scale[..., None], -p)
        mixed.diagonal(dim1=-2, dim2=-1).zero_()
        # The same for all classes changes nothing, so that any curvature serves there; 0 would let rounding grow
        return mixed - torch.diag_embed(mixed.sum(-1)) - mixed.mean((-1, -2), keepdim=True)

    def curved(self, direction: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
        """Hessian times a direction, and the margins of the direction."""
        pulled, margins = self.features.push_and_pull(
            direction, lambda margins, rows: self.bend(margins, slopes[:, rows], rows), self.intercept
        )
        return self.with_penalty(pulled, direction), margins

    def with_penalty(self, pulled: Tensor, point: Tensor) -> Tensor:
        """Add what the penalty pulls; that of the rows sums to zero over classes but for rounding."""
        if self.softmax:
            pulled = pulled - pulled.mean(2, keepdim=True)
        pulled[..., :-1] += point[..., :-1]
        return pulled

    @property
    def sharpens(self) -> bool:
        """Whether a preconditioner of its own is affordable for a problem."""
        return self.features.held and self.wanted.shape[-1] ** 2 <= _LEADING

    def sharpened(
        self,
        inverted: Callable[[Tensor], Tensor],
        slopes: Tensor,
        mean: Float[Tensor, "layer problem d"] | None,
        those: Int[Tensor, " chosen"],
    ) -> Callable[[Tensor], Tensor]:
        """A preconditioner that knows each row's curvature in the leading directions, for problems that need it."""
        outputs = slopes.shape[-1]
        if not self.leading:
            self.leading[0] = self.features.leading(_LEADING // outputs, self.intercept)
        axes, rows = self.leading[0]
        centre = rows.new_zeros(len(rows), len(those), rows.shape[-1]) if mean is None else mean[:, those] @ axes
        size = rows.shape[-1]
        found = rows.new_zeros(len(rows), len(those), outputs, size, outputs, size)
        for n, problem in enumerate(those.tolist()):
            x = rows - centre[:, n, None]
            slope, wanted = slopes[:, :, problem], self.wanted[:, problem]
            for a, b in itertools.combinations_with_replacement(range(outputs), 2):
                p, q = (slope[..., k] + (wanted[:, k] if outputs > 1 else 0) for k in (a, b))
                weight = (_bent(slope[..., a]) if a == b else -p * q) * self.scale[:, problem]
                found[:, n, a, :, b] = (x * weight[..., None]).mT @ x
                found[:, n, b, :, a] = found[:, n, a, :, b]
        hessian = found.flatten(4).flatten(2, 3)
        return sharpened(inverted, axes, hessian, mean, those)

    def _beyond(self, margins: Tensor, rows: slice = slice(None)) -> Tensor:
        """Margins beyond that of the class that is wanted."""
        return margins - margins.masked_fill(~self.wanted[rows], 0).sum(-1, keepdim=True)


def _bent(slopes: Tensor) -> Tensor:
    """`p (1 - p)`, where the slope is p or p - 1."""
    size = slopes.abs()
    return size * (1 - size)


# --- the descent --------------------------------------------------------------------------------------------------


def _descend(problem: _Problem, shape: tuple[int, int], tolerance: float, max_steps: int) -> Solution:
    """Newton's method for all problems; each has its own step length and stops on its own."""
    layers, rows, width = problem.features.shape
    number, outputs = problem.wanted.shape[1:]
    point = problem.scale.new_zeros(layers, number, outputs, width + 1)
    margins = problem.scale.new_zeros(layers, rows, number, outputs)
    value = problem.losses(margins)
    excess = torch.full_like(value, torch.inf)
    active = torch.ones_like(value, dtype=torch.bool)
    before, step = problem.features.passes, 0
    while bool(active.any()) and step < max_steps:
        step += 1
        those = active.any(0).nonzero()[:, 0]
        some, here = problem.only(those), active[:, those]
        now, at, loss = point[:, those], margins[:, :, those], value[:, those]
        direction, moved, slope, decrement = _direction(some, now, at, loss, here)
        length, new = _length(some, now, at, loss, direction, moved, slope, here)
        point[:, those] = now + length[..., None, None] * direction
        margins[:, :, those] = at + length[:, None, :, None] * moved
        # A loss that no longer falls is at the bottom, as far as its digits tell: the rest of a residual is rounding
        stuck = (length == 0) | (loss - new <= 4 * torch.finfo(loss.dtype).eps * loss)
        share = torch.where(stuck, -slope, decrement).abs() / 2 / loss.clamp_min(torch.finfo(loss.dtype).tiny)
        excess[:, those] = torch.where(here, share, excess[:, those])
        value[:, those] = torch.where(here, new, loss)
        active[:, those] = here & (share > tolerance) & ~stuck
    if problem.softmax:  # adding a number to all intercepts changes nothing
        point[..., -1] -= point[..., -1].mean(-1, keepdim=True)
    unflat = (layers, *shape)
    return Solution(
        weights=point[..., :-1].reshape(*unflat, outputs, width),
        bias=point[..., -1].reshape(*unflat, outputs),
        losses=value.reshape(unflat),
        excess=excess.reshape(unflat),
        converged=(excess <= max(tolerance, 1e-4)).reshape(unflat),
        steps=step,
        passes=problem.features.passes - before,
    )


def _direction(
    problem: _Problem,
    point: Tensor,
    margins: Tensor,
    value: Float[Tensor, "layer problem"],
    active: Bool[Tensor, "layer problem"],
) -> tuple[Tensor, Tensor, Float[Tensor, "layer problem"], Float[Tensor, "layer problem"]]:
    """Newton's direction by conjugate gradients, its margins, the slope along it, and the squared Newton decrement."""
    slopes = problem.slopes(margins)
    # Where the rows are that count: the intercept goes with the weights as these rows' mean does
    pulls = torch.cat([slopes, _bent(slopes)], -1) * problem.scale[..., None]
    gradient, centre = problem.features.pull(pulls, problem.intercept).chunk(2, 2)
    gradient = problem.with_penalty(gradient, point)
    mean = _mean(centre.sum(2)) if problem.intercept else None
    inverted = problem.spectrum.inverse(problem.curvature(slopes), mean)
    left = -gradient
    direction, moved = torch.zeros_like(gradient), torch.zeros_like(margins)
    search, size, goal = _begun(inverted, gradient, left, value)
    busy = active & (size > 0)
    for n in range(_MOST_INNER):
        if not bool(busy.any()):
            break
        if n == _PLAIN and problem.sharpens:
            inverted = problem.sharpened(inverted, slopes, mean, busy.any(0).nonzero()[:, 0])
            search, size, goal = _begun(inverted, gradient, left, value)
        bent, pushed = problem.curved(search, slopes)
        along = _dot(search, bent)
        stride = torch.where(busy & (along > 0), size / along, 0.0)
        direction += stride[..., None, None] * search
        moved += stride[:, None, :, None] * pushed
        left -= stride[..., None, None] * bent
        turned = inverted(left)
        new = _dot(left, turned)
        search = turned + torch.where(busy, new / size, 0.0)[..., None, None] * search
        size = torch.where(busy, new, size)
        busy = busy & (size > goal)
    # What is left of the residual counts too: else a direction that was cut short would look like convergence
    slope = _dot(gradient, direction)
    return direction, moved, slope, size - slope


def _begun(
    inverted: Callable[[Tensor], Tensor], gradient: Tensor, left: Tensor, value: Float[Tensor, "layer problem"]
) -> tuple[Tensor, Float[Tensor, "layer problem"], Float[Tensor, "layer problem"]]:
    """The first search direction of conjugate gradients, the size of the residual, and how small it should become."""
    search = inverted(left)
    whole = _dot(gradient, inverted(gradient))
    # Loose at first, tight near the minimum, so that the last steps converge faster than linearly
    share = (whole / value.clamp_min(torch.finfo(value.dtype).tiny)).clamp(1e-6, 0.04)
    return search, _dot(left, search), whole * share


def _length(
    problem: _Problem,
    point: Tensor,
    margins: Tensor,
    value: Float[Tensor, "layer problem"],
    direction: Tensor,
    moved: Tensor,
    slope: Float[Tensor, "layer problem"],
    active: Bool[Tensor, "layer problem"],
) -> tuple[Float[Tensor, "layer problem"], Float[Tensor, "layer problem"]]:
    """How far to go along the direction, and the loss there; 0 where nothing is gained."""
    noise = 8 * torch.finfo(value.dtype).eps * value.abs()
    weights, change = point[..., :-1], direction[..., :-1]
    parts = [(a * b).sum((-1, -2)) for a, b in ((weights, weights), (weights, change), (change, change))]
    length = active.to(value)
    found, searching = value, active
    for _ in range(40):
        penalty = 0.5 * (parts[0] + 2 * length * parts[1] + length.square() * parts[2])
        reached = problem.losses(margins + length[:, None, :, None] * moved) + penalty
        found = torch.where(searching, reached, found)
        searching = searching & ~(reached <= value + _ARMIJO * length * slope + noise)
        if not bool(searching.any()):
            break
        length = torch.where(searching, length / 2, length)
    return torch.where(searching, 0.0, length), torch.where(searching, value, found)


def _mean(total: Float[Tensor, "layer problem d1"]) -> Float[Tensor, "layer problem d"]:
    """The mean of rows from their sum, where the last entry is that of their weights."""
    least = torch.finfo(total.dtype).tiny
    return torch.where(total[..., -1:] > least, total[..., :-1] / total[..., -1:].clamp_min(least), 0.0)


def _dot(a: Tensor, b: Tensor) -> Float[Tensor, "layer problem"]:
    return (a * b).sum((-1, -2))


__all__ = ["Solution", "logistic"]
