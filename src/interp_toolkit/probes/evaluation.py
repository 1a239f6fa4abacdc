"""How good a probe's answers are, and how sure that is: metrics for many probes at once, and intervals over groups.

Leading axes, `*cells`, are probes that answer for the same rows: one for each layer, say. All metrics are in float64
(float32 on Apple's GPUs, which know no other).

Rows that belong together, such as the tokens of one prompt or the two sides of a contrast pair, are not independent: an
interval that draws rows again is too narrow then. The intervals here draw whole groups again (the cluster bootstrap:
Davison and Hinkley 1997, Bootstrap Methods and their Application, section 3.8; Field and Welsh 2007).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from interp_toolkit.errors import ProbeError
from interp_toolkit.probes.splits import number_groups
from interp_toolkit.statistics import Estimate, bootstrap_ratio

_AT_ONCE = 2**22  # draws times cells times rows that are held together: 32 MB in float64
_LOST = 0.05  # share of draws without a positive or a negative from which on there is no interval


def accuracy(predictions: Int[Tensor, "*cells row"], labels: Int[Tensor, " row"]) -> Float[Tensor, "*cells"]:
    """The share of rows whose class is predicted.

    Args:
        predictions: the class that each probe gives each row.
        labels: the class that each row has.

    Returns:
        A share from 0 to 1 for each cell.

    Raises:
        ProbeError: without rows, or when predictions and labels are not of the same rows.

    Example:
        >>> accuracy(torch.tensor([[0, 1, 1, 1], [0, 1, 0, 1]]), torch.tensor([0, 1, 0, 1])).tolist()
        [0.75, 1.0]
    """
    return wide(predictions == matching(labels, predictions)).mean(-1)


def balanced_accuracy(predictions: Int[Tensor, "*cells row"], labels: Int[Tensor, " row"]) -> Float[Tensor, "*cells"]:
    """The mean over classes, of those with rows, of the share that is predicted; one constant answer gives 1/classes.

    Args:
        predictions: the class that each probe gives each row.
        labels: the class that each row has.

    Returns:
        A share from 0 to 1 for each cell.

    Raises:
        ProbeError: without rows, or when predictions and labels are not of the same rows.

    Example:
        >>> float(balanced_accuracy(torch.tensor([0, 0, 0, 0]), torch.tensor([0, 0, 0, 1])))
        0.5
    """
    labels = matching(labels, predictions)
    _, classes, sizes = labels.unique(return_inverse=True, return_counts=True)
    return wide(predictions == labels) @ (1 / (len(sizes) * wide(sizes)))[classes]


def log_loss(
    log_probabilities: Float[Tensor, "*cells row class"], labels: Int[Tensor, " row"]
) -> Float[Tensor, "*cells"]:
    """The mean negative log probability of the true class, in nats.

    Args:
        log_probabilities: natural logarithms of each class's probability; the probabilities of a row sum to one.
        labels: the class of each row.

    Returns:
        Nats per row for each cell; infinite where a true class was given the probability zero.

    Raises:
        ProbeError: without rows, for a label that has no column, or when probabilities do not sum to one.

    Example:
        >>> even = torch.tensor([[0.5, 0.5], [0.5, 0.5]]).log()
        >>> round(float(log_loss(even, torch.tensor([0, 1]))), 4)
        0.6931
    """
    values = wide(log_probabilities)
    labels = matching_classes(labels, values, values.shape[-1])
    totals = values.exp().sum(-1)
    if bool(((totals - 1).abs() > 0.01).any()):  # more than bfloat16 rounds away
        ends = f"{float(totals.min()):.4g} to {float(totals.max()):.4g}"
        raise ProbeError(f"probabilities of a row sum to one, not to {ends}: are these logits without log_softmax?")
    return -values.gather(-1, labels[:, None].expand(*values.shape[:-1], 1)).squeeze(-1).mean(-1)


def auroc(
    scores: Float[Tensor, "*cells row"], positive: Bool[Tensor, " row"], *, weights: Float[Tensor, " row"] | None = None
) -> Float[Tensor, "*cells"]:
    """The area under the ROC curve: how often a positive row scores higher than a negative one.

    Equal scores count half (Mann and Whitney 1947; Hanley and McNeil 1982).

    Args:
        scores: higher means more likely positive; the unit does not matter. A cell with NaN gives NaN.
        positive: which rows are positive.
        weights: how much each row counts, from 0 on; 1 if not given.

    Returns:
        An area from 0 to 1 for each cell; 0.5 is chance.

    Raises:
        ProbeError: for scores, positives or weights of other rows, a weight below 0, or when no positive or no negative
            row counts.

    Example:
        >>> scores = torch.tensor([[0.1, 0.4, 0.35, 0.8], [0.0, 0.0, 0.0, 0.0]])
        >>> auroc(scores, torch.tensor([False, False, True, True])).tolist()
        [0.75, 0.5]
    """
    positive = matching(positive, scores)
    weights = wide(torch.ones_like(positive) if weights is None else matching(weights, scores))
    if not bool((weights >= 0).all()):
        raise ProbeError(f"a row counts 0 or more, but the smallest weight is {float(weights.min())}")
    _need_both(positive & (weights > 0), ~positive & (weights > 0))
    cells = wide(scores).reshape(-1, scores.shape[-1])
    at_once = max(1, _AT_ONCE // scores.shape[-1])
    found = [_areas(_Ranked(some, positive), weights[None])[:, 0] for some in cells.split(at_once)]
    return torch.cat(found).reshape(scores.shape[:-1])


def macro_auroc(scores: Float[Tensor, "*cells row class"], labels: Int[Tensor, " row"]) -> Float[Tensor, "*cells"]:
    """The mean over classes of the area under the ROC curve of one class against all others.

    Args:
        scores: for each class; a column is only compared with itself.
        labels: the class of each row.

    Returns:
        An area from 0 to 1 for each cell.

    Raises:
        ProbeError: when scores and labels are not of the same rows, or a class has no row, or a row no class.

    Example:
        >>> scores = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.5, 0.3], [0.1, 0.3, 0.6]])
        >>> float(macro_auroc(scores, torch.tensor([0, 1, 2])))
        1.0
    """
    labels = matching(labels, scores[..., 0])
    classes = scores.shape[-1]
    found = labels.unique().tolist()
    if found != list(range(classes)):
        raise ProbeError(f"each of the classes 0 to {classes - 1} of the scores needs a row, but labels are {found}")
    return torch.stack([auroc(scores[..., c], labels == c) for c in range(classes)]).mean(0)


def recall_at_fpr(
    scores: Float[Tensor, "*cells row"], positive: Bool[Tensor, " row"], *, rate: float = 0.01
) -> Float[Tensor, "*cells"]:
    """The share of positives found by the lowest threshold that at most this share of the negatives passes.

    A row passes when its score is at least the threshold, so equal scores pass together or not at all. Of n negatives
    `floor(rate · n)` may pass. With fewer than 1/rate of them none may: the number is then the recall without any false
    positive, which hangs on the highest negative alone. The threshold is chosen on these rows, a little optimistically.

    Args:
        scores: higher means more likely positive. A cell with NaN gives NaN.
        positive: which rows are positive.
        rate: the share of negatives that may pass, from 0 to 1.

    Returns:
        A share of the positives for each cell.

    Raises:
        ProbeError: for scores and positives of other rows, without a positive or a negative row, or for a rate that is
            not from 0 to 1.

    Example:
        >>> scores = torch.tensor([0.9, 0.7, 0.2, 0.8, 0.1, 0.0])
        >>> positive = torch.tensor([True, True, True, False, False, False])
        >>> [round(float(recall_at_fpr(scores, positive, rate=rate)), 3) for rate in (0.01, 0.34)]
        [0.333, 1.0]
    """
    positive = matching(positive, scores)
    _need_both(positive, ~positive)
    if not 0 <= rate <= 1:
        raise ProbeError(f"a false positive rate is from 0 to 1, not {rate}")
    wrong, right = wide(scores)[..., ~positive], wide(scores)[..., positive]
    allowed = math.floor(rate * wrong.shape[-1] * (1 + 1e-12))
    first_barred = F.pad(wrong, (0, 1), value=-math.inf).topk(allowed + 1, dim=-1).values[..., -1:]
    found = wide((right > first_barred) | (allowed == wrong.shape[-1]))
    return torch.where(scores.isnan().any(-1), math.nan, found.mean(-1))


def r2(predictions: Float[Tensor, "*cells row"], targets: Float[Tensor, " row"]) -> Float[Tensor, "*cells"]:
    """The share of the variance of the targets that is predicted.

    Args:
        predictions: of each probe for each row.
        targets: what they should be, in the same unit.

    Returns:
        1 minus squared errors over squared deviations from the mean: 1 is perfect, 0 no better than the mean of these
        targets, below 0 worse.

    Raises:
        ProbeError: when predictions and targets are not of the same rows, or all targets are equal.

    Example:
        >>> float(r2(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 2.0, 3.0])))
        0.5
    """
    wanted = wide(matching(targets, predictions))
    if bool((wanted == wanted[0]).all()):
        raise ProbeError(f"all {len(wanted)} targets are {float(wanted[0])}: there is nothing to predict")
    return 1 - (wide(predictions) - wanted).square().sum(-1) / (wanted - wanted.mean()).square().sum()


def bootstrap_groups(
    values: Float[Tensor, "*cells row"] | Bool[Tensor, "*cells row"],
    *,
    groups: Sequence[Hashable] | Int[Tensor, " row"] | None = None,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Estimate:
    """The mean over rows, with a percentile interval from groups of rows drawn again.

    The mean of each draw is over its rows, so large groups count more. With few groups the interval is too narrow: see
    `interp_toolkit.statistics`.

    Args:
        values: one number for each row, such as whether the prediction is right, or its loss.
        groups: which group each row is of; without them each row is its own.
        level: of the interval.
        draws: how often groups are drawn again.
        seed: the same seed and number of groups give the same draws, here and in `bootstrap_auroc`.

    Returns:
        Mean, standard error and interval (NaN for a single group) for each cell; `n` is the number of groups.

    Raises:
        ProbeError: without rows, for groups of other rows, fewer than two draws, or a level not between 0 and 1.

    Example:
        >>> right = torch.tensor([True, True, False, True, True, False])
        >>> found = bootstrap_groups(right, groups=["a", "a", "b", "b", "c", "c"])
        >>> round(float(found.mean), 3), found.n, bool(found.low < found.mean < found.high)
        (0.667, 3, True)
    """
    numbers = _groups_of(values, groups, level, draws)
    cells = wide(values).movedim(-1, 0)
    sizes = numbers.bincount()
    sums = cells.new_zeros(len(sizes), *cells.shape[1:]).index_add_(0, numbers, cells)
    return bootstrap_ratio(sums, sizes.to(sums), level=level, draws=draws, seed=seed)


def paired_difference(
    first: Float[Tensor, "*cells row"] | Bool[Tensor, "*cells row"],
    second: Float[Tensor, "*cells row"] | Bool[Tensor, "*cells row"],
    *,
    groups: Sequence[Hashable] | Int[Tensor, " row"] | None = None,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Estimate:
    """How much better one probe is than another on the same rows, with an interval from groups drawn again.

    A group is drawn with the answers of both. What makes rows hard for both then cancels, and the interval is narrower
    than those of the two means would suggest.

    Args:
        first: one number for each row: whether the first probe is right, or its loss.
        second: the same for the second probe.
        groups: which group each row is of; without them each row is its own.
        level: of the interval.
        draws: how often groups are drawn again.
        seed: of the draws.

    Returns:
        The mean of first minus second, with standard error and interval.

    Raises:
        ProbeError: when the two are not of the same rows, and as for `bootstrap_groups`.

    Example:
        >>> labels = torch.tensor([0, 1, 0, 1])
        >>> found = paired_difference(torch.tensor([0, 1, 0, 1]) == labels, torch.tensor([0, 1, 1, 1]) == labels)
        >>> float(found.mean), float(found.low)
        (0.25, 0.0)
    """
    if first.shape != second.shape:
        shapes = f"{tuple(first.shape)} and {tuple(second.shape)}"
        raise ProbeError(f"two probes are compared on the same rows, but the shapes are {shapes}")
    change = wide(first) - wide(second).to(first.device)
    return bootstrap_groups(change, groups=groups, level=level, draws=draws, seed=seed)


def bootstrap_auroc(
    scores: Float[Tensor, "*cells row"],
    positive: Bool[Tensor, " row"],
    *,
    groups: Sequence[Hashable] | Int[Tensor, " row"] | None = None,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Estimate:
    """The area under the ROC curve, with a percentile interval from groups of rows drawn again.

    Draws without a positive or a negative row are left out; when they are more than 5%, standard error and interval are
    NaN. Where all positives score above all negatives, the interval has no width, which says nothing about other rows.

    Args:
        scores: higher means more likely positive. A cell with NaN gives NaN.
        positive: which rows are positive.
        groups: which group each row is of; without them each row is its own.
        level: of the interval.
        draws: how often groups are drawn again.
        seed: the same seed and number of groups give the same draws, here and in `bootstrap_groups`.

    Returns:
        Area, standard error and interval (NaN for a single group) for each cell; `n` is the number of groups.

    Raises:
        ProbeError: as for `auroc` and `bootstrap_groups`.

    Example:
        >>> scores, positive = torch.arange(20.0), torch.arange(20) % 3 > 0
        >>> found = bootstrap_auroc(scores, positive, groups=torch.arange(20) // 2)
        >>> round(float(found.mean), 3), found.n, bool(found.low < found.mean < found.high)
        (0.538, 10, True)
    """
    mean, positive = auroc(scores, positive), matching(positive, scores)
    numbers = _groups_of(scores, groups, level, draws)
    n, rows = int(numbers.max()) + 1, scores.shape[-1]
    ends = torch.full((3, *mean.shape), math.nan, dtype=mean.dtype, device=mean.device)
    if n > 1 and mean.numel():
        found = []
        for some in wide(scores).reshape(-1, rows).split(max(1, _AT_ONCE // (8 * rows))):
            ranked, at_once = _Ranked(some, positive), max(1, _AT_ONCE // (len(some) * max(n, rows)))
            found.append(torch.cat([_areas(ranked, w) for w in _draws(numbers, draws, seed, at_once)], dim=-1))
        ends = _spread(torch.cat(found), (1 - level) / 2).reshape(3, *mean.shape)
        ends = torch.where(mean.isnan(), math.nan, ends)
    error, low, high = ends
    return Estimate(mean=mean, standard_error=error, low=low, high=high, n=n, level=level)


class _Ranked:
    """Where positive scores lie among the negative ones, sorted once for many weightings."""

    def __init__(self, scores: Float[Tensor, "cell row"], positive: Bool[Tensor, " row"]) -> None:
        self.positive = positive
        self.unknown = scores.isnan().any(-1)
        negatives, self.order = scores[:, ~positive].sort(dim=-1)
        rest = scores[:, positive]
        self.below = torch.searchsorted(negatives, rest)
        self.up_to = torch.searchsorted(negatives, rest, right=True)


def _areas(ranked: _Ranked, weights: Float[Tensor, "draw row"]) -> Float[Tensor, "cell draw"]:
    """The area for each weighting; NaN where no positive or no negative row counts."""
    right, wrong = weights[:, ranked.positive], weights[:, ~ranked.positive]
    # What lies below each place in the order of the negatives: 0, w₁, w₁ + w₂, ...
    under = F.pad(wrong[:, ranked.order].cumsum(-1), (1, 0))
    shape = (len(weights), *ranked.below.shape)
    beaten = under.gather(-1, ranked.below.expand(shape)).add_(under.gather(-1, ranked.up_to.expand(shape)))
    found = torch.einsum("dcp,dp->cd", beaten, right) / (2 * right.sum(-1) * wrong.sum(-1))
    return torch.where(ranked.unknown[:, None], math.nan, found)


def _draws(groups: Int[Tensor, " row"], draws: int, seed: int, at_once: int) -> Iterator[Float[Tensor, "draw row"]]:
    """How often each row is in each draw of groups, some draws at a time."""
    n = int(groups.max()) + 1
    generator = torch.Generator().manual_seed(seed)
    for first in range(0, draws, at_once):
        drawn = torch.randint(n, (min(at_once, draws - first), n), generator=generator).to(groups.device)
        counts = wide(torch.zeros_like(drawn))
        yield counts.scatter_add_(1, drawn, counts.new_ones(()).expand(drawn.shape))[:, groups]


def _spread(drawn: Float[Tensor, "cell draw"], tail: float) -> Float[Tensor, "3 cell"]:
    """Standard error and both ends of the interval, from the draws that have a number."""
    known = ~drawn.isnan()
    kept = known.any(0) if bool(known.any()) else known[0]  # labels decide: it is the same draws in all cells
    if int(kept.sum()) < max(2, (1 - _LOST) * len(kept)):
        return drawn.new_full((3, len(drawn)), math.nan)
    ordered = drawn[:, kept].sort(dim=-1).values
    places = drawn.new_tensor([tail, 1 - tail]) * (ordered.shape[1] - 1)
    first = places.floor().long()
    ends = ordered[:, first].lerp(ordered[:, (first + 1).clamp(max=ordered.shape[1] - 1)], places - first)
    return torch.stack([ordered.std(-1), *ends.T])


def wide(values: Tensor) -> Tensor:
    """In a precision in which sums over rows lose nothing."""
    return values.detach().to(torch.float32 if values.device.type == "mps" else torch.float64)


def matching(labels: Tensor, values: Tensor) -> Tensor:
    """The labels, where the values are, if there is one for each row."""
    if labels.ndim != 1 or labels.shape != values.shape[-1:] or not len(labels):
        raise ProbeError(
            f"each row needs one label, and there must be a row, but there are labels of shape {tuple(labels.shape)} "
            f"for rows of shape {tuple(values.shape)}"
        )
    return labels.to(values.device)


def matching_classes(labels: Tensor, values: Tensor, classes: int) -> Tensor:
    """The labels, where the values are, if there is one for each row, and they are numbers of classes."""
    labels = matching(labels, values[..., 0])
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise ProbeError(f"there are {classes} classes, but labels go from {int(labels.min())} to {int(labels.max())}")
    return labels


def _need_both(positive: Bool[Tensor, " row"], negative: Bool[Tensor, " row"]) -> None:
    counts = int(positive.sum()), int(negative.sum())
    if 0 in counts:
        raise ProbeError(f"positives are compared with negatives, but there are {counts[0]} and {counts[1]} that count")


def _groups_of(values: Tensor, groups: Sequence[Hashable] | Tensor | None, level: float, draws: int) -> Tensor:
    """The number of each row's group."""
    if draws < 2 or not 0 < level < 1:
        raise ProbeError(f"a bootstrap needs two draws and a level between 0 and 1, not {draws} and {level}")
    rows = values.shape[-1] if values.ndim else 0
    if rows == 0:
        raise ProbeError(f"there must be a row, but the values have shape {tuple(values.shape)}")
    return (
        torch.arange(rows, device=values.device) if groups is None else number_groups(groups, rows)[0].to(values.device)
    )


__all__ = [
    "accuracy",
    "auroc",
    "balanced_accuracy",
    "bootstrap_auroc",
    "bootstrap_groups",
    "log_loss",
    "macro_auroc",
    "paired_difference",
    "r2",
    "recall_at_fpr",
]
