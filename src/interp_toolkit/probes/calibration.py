"""Whether a probe's probabilities can be believed, and the one number that makes them more believable.

A probe is calibrated when of the answers given with a confidence of 80% about 80% are right. It is measured in bins of
equally many rows (Nixon et al. 2019). Bins of equal width (Guo et al. 2017, On Calibration of Modern Neural Networks)
mostly hold next to nothing when a probe is sure. With few rows in a bin, chance alone makes some error: a
perfectly calibrated probe of 80% accuracy shows about `0.4 · 0.8 · sqrt(bins / rows)`. Compare probes on equally many
rows only.

Leading axes, `*cells`, are probes that answer for the same rows. The last axis is the classes; with a single column, it
is about class 1 against class 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from interp_toolkit.errors import ProbeError
from interp_toolkit.probes.evaluation import matching_classes, wide

_WIDEST = 1000.0  # a fitted temperature is within this factor of the scale of the logits
_STEPS = 200


@dataclass(frozen=True, kw_only=True, eq=False)
class Reliability:
    """How confident and how right a probe is, in bins of equally many rows, from the least confident on.

    Rows of equal confidence share a bin, so bins need not be equally full, and some may be empty.

    Attributes:
        confidence: mean probability in the bin; NaN in an empty one.
        frequency: share of the bin that is right; NaN in an empty one.
        counts: number of rows in the bin.
    """

    confidence: Float[Tensor, "*cells bin"]
    frequency: Float[Tensor, "*cells bin"]
    counts: Int[Tensor, "*cells bin"]


def reliability(
    probabilities: Float[Tensor, "*cells row class"], labels: Int[Tensor, " row"], *, bins: int = 15
) -> Reliability:
    """What a reliability diagram shows: confidence against how often it is right.

    With two columns or more, what is judged is the probability of the predicted class, and whether that is the true
    one. With one column it is the probability of class 1, and how often that is the true one.

    Args:
        probabilities: from 0 to 1, of each class or of class 1 alone.
        labels: the class of each row.
        bins: how many bins of equally many rows.

    Returns:
        Confidence, frequency and size of each bin.

    Raises:
        ProbeError: without rows or bins, for labels of other rows or without a column, or for probabilities that are
            not from 0 to 1 or do not sum to one.

    Example:
        >>> found = reliability(torch.tensor([[0.1], [0.3], [0.8], [1.0]]), torch.tensor([0, 1, 1, 1]), bins=2)
        >>> [round(x, 3) for x in found.confidence.tolist()], found.frequency.tolist(), found.counts.tolist()
        ([0.2, 0.9], [0.5, 1.0], [2, 2])
    """
    labels = matching_classes(labels, probabilities, max(2, probabilities.shape[-1]))
    values = wide(probabilities)
    whole = values.shape[-1] == 1 or bool(((values.sum(-1) - 1).abs() <= 0.01).all())  # as bfloat16 rounds
    if bins < 1 or not whole or not bool(((values >= 0) & (values <= 1)).all()):
        raise ProbeError(
            f"calibration needs a bin and probabilities that sum to one, but there are {bins} bins for values from "
            f"{float(values.min()):.4g} to {float(values.max()):.4g}: logits need softmax(-1) or sigmoid()"
        )
    if values.shape[-1] == 1:
        confidence, right = values[..., 0], (labels == 1).expand(values.shape[:-1])
    else:
        confidence, predicted = values.max(-1)
        right = predicted == labels
    places = _equal_mass(confidence, bins)
    counts = _sums(torch.ones_like(confidence), places, bins)
    return Reliability(
        confidence=_sums(confidence, places, bins) / counts,
        frequency=_sums(right.to(values), places, bins) / counts,
        counts=counts.long(),
    )


def calibration_error(
    probabilities: Float[Tensor, "*cells row class"], labels: Int[Tensor, " row"], *, bins: int = 15
) -> Float[Tensor, "*cells"]:
    """The expected calibration error: how far confidence is from how often it is right, on average over rows.

    See `reliability` for what is compared with one column and with more, and this module for what chance alone gives.

    Args:
        probabilities: from 0 to 1, of each class or of class 1 alone.
        labels: the class of each row.
        bins: how many bins of equally many rows.

    Returns:
        A difference of shares from 0 to 1 for each cell.

    Raises:
        ProbeError: as for `reliability`.

    Example:
        >>> sure = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
        >>> float(calibration_error(sure, torch.tensor([0, 1])))
        0.5
    """
    found = reliability(probabilities, labels, bins=bins)
    return (found.counts * (found.confidence - found.frequency).abs()).nansum(-1) / len(labels)


def fit_temperature(logits: Float[Tensor, "*cells row output"], labels: Int[Tensor, " row"]) -> Float[Tensor, "*cells"]:
    """The temperature that logits are best divided by: it minimises the log loss on these rows (Guo et al. 2017).

    The loss is convex in the inverse temperature; its minimum is found by Newton's method, kept within bounds. Use rows
    that the probe was not trained on. Multiplying logits by a constant multiplies the temperature by it.

    The temperature is finite and positive in every case:

    - Where each true class has the highest logit of its row, the loss falls for ever as the temperature goes to zero.
      The temperature is then such that the mean probability of the true class is (n + 1) / (n + 2) for n rows, which is
      what n right answers of n make one expect of the next (Laplace's rule of succession).
    - Where logits are no better than chance, the loss is least at infinity. The temperature is then 1000 times the
      scale of the logits: their root mean square, after subtracting each row's mean. It is never below a thousandth
      of that either.
    - Where all logits of every row are equal, no temperature changes anything, and it is 1.

    Args:
        logits: of each class; with a single column, of class 1 against class 0. A cell with NaN or infinity gives NaN.
        labels: the class of each row.

    Returns:
        A temperature for each cell, in the unit of the logits.

    Raises:
        ProbeError: without rows, or for labels of other rows or without a column.

    Example:
        >>> too_sure = torch.tensor([[8.0], [8.0], [8.0], [-8.0]])
        >>> temperature = fit_temperature(too_sure, torch.tensor([1, 1, 0, 0]))
        >>> calmer = apply_temperature(too_sure, temperature).sigmoid()[:, 0]
        >>> [round(p, 3) for p in calmer.tolist()]  # three of four are right
        [0.75, 0.75, 0.75, 0.25]
    """
    values = wide(logits)
    if values.shape[-1] == 1:
        values = F.pad(values, (1, 0))
    labels = matching_classes(labels, logits, values.shape[-1])
    scale = (values - values.mean(-1, keepdim=True)).square().mean((-2, -1)).sqrt()
    own = labels[:, None].expand(*values.shape[:-1], 1)
    lead = (values - values.gather(-1, own)) / torch.where(scale > 0, scale, 1)[..., None, None]
    inverse = _root(_Slope(lead, own), torch.ones_like(scale))
    return torch.where(scale == 0, 1, scale / inverse)


def apply_temperature(
    logits: Float[Tensor, "*cells row output"], temperature: Float[Tensor, "*cells"]
) -> Float[Tensor, "*cells row output"]:
    """Logits divided by the temperature of their cell: what is predicted stays, how surely changes.

    Args:
        logits: of each class, or of class 1 alone.
        temperature: above zero, as from `fit_temperature`.

    Returns:
        Logits in their own precision.

    Raises:
        ProbeError: for a temperature that is not above zero, or not one for each cell.

    Example:
        >>> apply_temperature(torch.tensor([[2.0, -2.0]]), torch.tensor(4.0)).tolist()
        [[0.5, -0.5]]
    """
    if temperature.shape != logits.shape[:-2] or bool((temperature <= 0).any()):
        raise ProbeError(
            f"logits of shape {tuple(logits.shape)} need temperatures above zero of shape {tuple(logits.shape[:-2])}, "
            f"not {tuple(temperature.shape)}"
        )
    return (logits / temperature[..., None, None].to(logits.device)).to(logits.dtype)


@dataclass(frozen=True)
class _Slope:
    """What is zero at the wanted inverse temperature, and grows with it.

    `lead` is by how much each logit leads that of the true class, `own` the number of that class.
    """

    lead: Float[Tensor, "*cells row class"]
    own: Int[Tensor, "*cells row 1"]

    @property
    def separated(self) -> Bool[Tensor, "*cells"]:
        """Whether no class leads the true one in any row."""
        return (self.lead <= 0).all(-1).all(-1)

    def __call__(self, inverse: Float[Tensor, "*cells"]) -> tuple[Float[Tensor, "*cells"], Float[Tensor, "*cells"]]:
        """Value and derivative."""
        shares = (inverse[..., None, None] * self.lead).softmax(-1)
        mean = (shares * self.lead).sum(-1, keepdim=True)
        variance = (shares * (self.lead - mean).square()).sum(-1)
        true = shares.gather(-1, self.own)
        rows = self.lead.shape[-2]
        missing = true.mean((-2, -1)) - (rows + 1) / (rows + 2)
        value = torch.where(self.separated, missing, mean.mean((-2, -1)))
        return value, torch.where(self.separated, -(true * mean).mean((-2, -1)), variance.mean(-1))


def _root(
    function: Callable[[Tensor], tuple[Tensor, Tensor]], start: Float[Tensor, "*cells"]
) -> Float[Tensor, "*cells"]:
    """Where a growing function is zero, or the end of the range that is nearest to it.

    Newton's method; a step that leaves the bracket, or is not half as long as the one before, halves the bracket
    instead, in the logarithm.
    """
    low, high = start / _WIDEST, start * _WIDEST
    here, last = start, torch.full_like(start, math.inf)
    enough = 16 * torch.finfo(start.dtype).eps
    for _ in range(_STEPS):
        value, slope = function(here)
        low, high = torch.where(value < 0, here, low), torch.where(value > 0, here, high)
        newton = here - value / slope
        trusted = (newton >= low) & (newton <= high) & ((newton - here).abs() <= last / 2)
        following = torch.where(trusted, newton, (low * high).sqrt())
        last = (following - here).abs()
        here = following
        if not bool((last > enough * here).any()):
            break
    return here


def _equal_mass(confidence: Float[Tensor, "*cells row"], bins: int) -> Int[Tensor, "*cells row"]:
    """The bin of each row: that of its rank, the middle one for rows of equal confidence."""
    ordered, confidence = confidence.sort(dim=-1).values, confidence.contiguous()
    doubled = torch.searchsorted(ordered, confidence) + torch.searchsorted(ordered, confidence, right=True)
    return doubled * bins // (2 * confidence.shape[-1])


def _sums(
    values: Float[Tensor, "*cells row"], places: Int[Tensor, "*cells row"], bins: int
) -> Float[Tensor, "*cells bin"]:
    return values.new_zeros(*values.shape[:-1], bins).scatter_add_(-1, places, values)


__all__ = ["Reliability", "apply_temperature", "calibration_error", "fit_temperature", "reliability"]
