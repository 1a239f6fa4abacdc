"""How sure an average over prompts is: bootstrap intervals of many cells at once, and an interval for a share.

Besides, two ways to compare: distributions of the next token, and orders.

Prompts are what is drawn again, as it is from prompts to other prompts that a finding should carry over. Every cell
sees the same draws.

Intervals are percentile intervals (Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13): with level
95% from the 2.5% to the 97.5% quantile of the draws. They need no form of distribution, but are too narrow for few
prompts: 95% intervals of means of normal data hold the truth in about 90% of cases with 10 prompts and 93% with 20.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch
from jaxtyping import Float
from torch import Tensor

from interp_toolkit.errors import MetricError

_AT_ONCE = 2**22  # draws times cells that are held together: 16 MB in float32


@dataclass(frozen=True, kw_only=True, eq=False)
class Estimate:
    """An average over prompts, cell by cell, and how sure it is.

    With one prompt nothing is known about others: standard error and interval are NaN.

    Attributes:
        mean: the average, or the ratio of averages.
        standard_error: standard deviation of the draws.
        low: lower end of the interval.
        high: upper end of the interval.
        n: number of prompts.
        level: share of cases in which such an interval should hold the truth.
    """

    mean: Float[Tensor, "*cells"]
    standard_error: Float[Tensor, "*cells"]
    low: Float[Tensor, "*cells"]
    high: Float[Tensor, "*cells"]
    n: int
    level: float

    def at(self, *index: int) -> Estimate:
        """Some of the cells, or one.

        Example:
            >>> bootstrap_mean(torch.tensor([[1.0, 2.0], [3.0, 4.0]])).at(1).mean
            tensor(3.)
        """
        mean, error, low, high = (x[index] for x in (self.mean, self.standard_error, self.low, self.high))
        return Estimate(mean=mean, standard_error=error, low=low, high=high, n=self.n, level=self.level)


def bootstrap_mean(
    values: Float[Tensor, "prompt *cells"], *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> Estimate:
    """The mean over prompts, with a percentile interval from prompts drawn again.

    Args:
        values: one number for each prompt and cell. A cell with NaN gives NaN.
        level: of the interval.
        draws: how often prompts are drawn again.
        seed: the same seed gives the same draws; no other random numbers are touched.

    Returns:
        Mean, standard error and interval, in float32 at least.

    Raises:
        MetricError: without a prompt, for fewer than two draws, or for a level that is not between 0 and 1.

    Example:
        >>> estimate = bootstrap_mean(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        >>> float(estimate.mean), bool(estimate.low < 2.5 < estimate.high)
        (2.5, True)
    """
    return bootstrap_ratio(values, values.new_ones(values.shape[:1]), level=level, draws=draws, seed=seed)


def bootstrap_ratio(
    numerators: Float[Tensor, "prompt *cells"],
    denominators: Float[Tensor, " prompt"],
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Estimate:
    """The mean of the numerators divided by the mean of the denominators, with a percentile interval.

    Effects are normalised like this: mean change over mean gap between clean and corrupt. The mean of each prompt's own
    ratio would be another number, ruled by the prompts with the smallest gaps. A prompt is drawn with both its numbers.

    Where the mean of the denominators is zero, everything is NaN. Where it is so unsure that more draws than the
    interval leaves out at one end have a mean of zero or of the other sign, the ratio has no bounded interval (Fieller
    1954): standard error and interval are NaN. A single draw with a mean of zero leaves the standard error NaN.

    Args:
        numerators: one number for each prompt and cell. A cell with NaN gives NaN.
        denominators: one number for each prompt.
        level: of the interval.
        draws: how often prompts are drawn again.
        seed: the same seed gives the same draws; no other random numbers are touched.

    Returns:
        Ratio, standard error and interval, in float32 at least.

    Raises:
        MetricError: without a prompt, for numerators and denominators of different prompts, for fewer than two draws,
            or for a level that is not between 0 and 1.

    Example:
        >>> change, gap = torch.tensor([1.0, 4.0]), torch.tensor([2.0, 8.0])
        >>> estimate = bootstrap_ratio(change, gap)
        >>> float(estimate.mean), float(estimate.low), float(estimate.high)
        (0.5, 0.5, 0.5)
    """
    n = denominators.shape[0] if denominators.ndim == 1 else 0
    if n == 0 or numerators.shape[:1] != denominators.shape:
        raise MetricError(
            "an average needs at least one prompt, and as many numerators as denominators, but their shapes are "
            f"{tuple(numerators.shape)} and {tuple(denominators.shape)}"
        )
    if draws < 2 or not 0 < level < 1:
        raise MetricError(f"a bootstrap needs two draws and a level between 0 and 1, not {draws} and {level}")
    dtype = torch.promote_types(torch.promote_types(numerators.dtype, denominators.dtype), torch.float32)
    cells = numerators.detach().to(dtype).reshape(n, math.prod(numerators.shape[1:]))
    below = denominators.detach().to(cells)
    mean = cells.mean(0) / _or_nan(below)
    spread = mean.new_full((3, len(mean)), math.nan)
    if n > 1 and len(mean):
        weights = _weights(n, draws, seed).to(cells) / n
        tail = (1 - level) / 2
        parts = zip(*(x.split(max(1, _AT_ONCE // draws), dim=-1) for x in (cells, mean)), strict=True)
        spread = torch.cat([_spread(some, ratio, below, weights, tail) for some, ratio in parts], dim=1)
    mean, error, low, high = (x.reshape(numerators.shape[1:]) for x in (mean, *spread))
    return Estimate(mean=mean, standard_error=error, low=low, high=high, n=n, level=level)


def _or_nan(below: Float[Tensor, " prompt"]) -> Float[Tensor, ""]:
    """The mean, or NaN where it is zero up to rounding."""
    mean = below.mean()
    return torch.where(mean.abs() <= 4 * torch.finfo(below.dtype).eps * below.abs().mean(), math.nan, mean)


def _weights(n: int, draws: int, seed: int) -> Float[Tensor, "draws prompt"]:
    """How often each draw has each prompt."""
    drawn = torch.randint(n, (draws, n), generator=torch.Generator().manual_seed(seed))
    counts = torch.zeros(draws, n, dtype=torch.float32)
    return counts.scatter_add_(1, drawn, torch.ones((), dtype=torch.float32).expand(draws, n))


def _spread(
    cells: Float[Tensor, "prompt cells"],
    ratio: Float[Tensor, " cells"],
    below: Float[Tensor, " prompt"],
    weights: Float[Tensor, "draws prompt"],
    tail: float,
) -> Float[Tensor, "3 cells"]:
    """Standard error, lower and upper end of some cells."""
    under = weights @ below
    # The ratio of a draw is r + Σ w·(a − r·b) / Σ w·b. What is summed has mean zero, so nothing is lost by cancellation
    # where values are large and differ little.
    above = (cells - ratio * below[:, None]).T @ weights.T
    drawn = above / under
    low, high = _quantile(drawn, tail), -_quantile(-drawn, tail)
    bounded = (under * below.mean() <= 0).sum() <= tail * len(under)
    return torch.where(bounded, torch.stack([drawn.std(-1), ratio + low, ratio + high]), math.nan)


def _quantile(drawn: Float[Tensor, "cells draws"], share: float) -> Float[Tensor, " cells"]:
    """A quantile below the middle, interpolated; only the tail is sorted."""
    place = share * (drawn.shape[1] - 1)
    first = math.floor(place)
    tail = drawn.topk(first + 2, dim=-1, largest=False).values
    return tail[:, first].lerp(tail[:, first + 1], place - first)


def wilson(successes: int | float, n: int, level: float = 0.95) -> tuple[float, float]:
    """The Wilson score interval for a share: usable with few cases and at 0% and 100% (Wilson 1927).

    Args:
        successes: how many of the cases; no whole number where several of them are averaged to one, which is careful.
        n: number of cases; with none, nothing is known and the interval is from 0 to 1.
        level: of the interval.

    Returns:
        Lower and upper end.

    Raises:
        MetricError: for counts that cannot be, or a level that is not between 0 and 1.

    Example:
        >>> [round(end, 3) for end in wilson(9, 10)]
        [0.596, 0.982]
    """
    if not 0 <= successes <= n or not 0 < level < 1:
        raise MetricError(f"a share is of 0 to n cases at a level between 0 and 1, not {successes} of {n} at {level}")
    if n == 0:
        return 0.0, 1.0
    z2 = NormalDist().inv_cdf((1 + level) / 2) ** 2
    middle = (successes + z2 / 2) / (n + z2)
    half = math.sqrt(z2 * (successes * (n - successes) / n + z2 / 4)) / (n + z2)
    return (0.0 if successes == 0 else middle - half), (1.0 if successes == n else middle + half)


def kl_divergence(
    before: Float[Tensor, "*#axes vocab"], after: Float[Tensor, "*#axes vocab"]
) -> Float[Tensor, "*#axes"]:
    """KL(before ‖ after), in nats: how far a distribution over tokens is moved.

    A token that was ruled out before adds nothing; one that is ruled out only afterwards makes it infinite.

    Args:
        before: log-probabilities.
        after: those of the same tokens after a change.

    Example:
        >>> before = torch.tensor([0.5, 0.5, 0.0]).log()
        >>> kl_divergence(before, torch.tensor([0.25, 0.5, 0.25]).log())
        tensor(0.3466)
    """
    return torch.where(before == -torch.inf, 0.0, before.exp() * (before - after)).sum(-1)


def spearman(first: Float[Tensor, "*rows n"], second: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows"]:
    """Spearman's rank correlation, row by row; equal numbers share their mean rank.

    NaN where all numbers of a row are the same.

    Example:
        >>> round(float(spearman(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 10.0, 100.0]))), 3)
        1.0
    """
    ranks = [_centred_ranks(x) for x in (first, second)]
    lengths = [x.norm(dim=-1) for x in ranks]
    found: Tensor = (ranks[0] * ranks[1]).sum(-1) / (lengths[0] * lengths[1])
    return found


def _centred_ranks(x: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows n"]:
    """Twice the rank of each number in its row, less the mean."""
    ordered = x.sort(-1).values.contiguous()
    ranks = torch.searchsorted(ordered, x.contiguous()) + torch.searchsorted(ordered, x.contiguous(), right=True)
    wide = ranks.to(torch.promote_types(x.dtype, torch.float32))
    return wide - wide.mean(-1, keepdim=True)


__all__ = ["Estimate", "bootstrap_mean", "bootstrap_ratio", "kl_divergence", "spearman", "wilson"]
