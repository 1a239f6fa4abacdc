"""Margins of probes, and from them scores with intervals: all layers together."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp_toolkit.errors import ProbeError
from interp_toolkit.probes.calibration import apply_temperature, calibration_error, fit_temperature
from interp_toolkit.probes.evaluation import (
    accuracy,
    auroc,
    bootstrap_auroc,
    log_loss,
    macro_auroc,
    r2,
    recall_at_fpr,
)
from interp_toolkit.probes.features import Readable
from interp_toolkit.probes.inputs import Targets
from interp_toolkit.statistics import Estimate, bootstrap_ratio, wilson

_BLOCK = 1 << 14
"""Rows whose margins are computed at once."""


@dataclass(frozen=True, kw_only=True)
class Draws:
    """How intervals are made.

    Attributes:
        level: share of cases in which an interval should hold the truth.
        number: how often groups are drawn again.
        seed: decides the draws.
    """

    level: float = 0.95
    number: int = 2000
    seed: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """Scores of probes on some rows.

    Attributes:
        accuracy: the share of rows that is right; for numbers R².
        auroc: area under the ROC curve; where there are more than two classes the mean over them, each by its
            probability against all others; NaN for numbers.
        recall_1: of the second class, at 1% false positives; NaN but for two classes.
        recall_5: the same at 5%.
        calibration: expected calibration error of the probabilities, as a share.
        log_loss: in nats per row; for numbers the mean squared error.
        errors: how wrong each row is: 0 or 1, for numbers the squared error over the variance.
        spread: how wrong the mean would be there, for numbers; else 1. Accuracy and R² are `1 − Σ errors / Σ spread`.
    """

    accuracy: Estimate
    auroc: Estimate
    recall_1: Float[Tensor, " cell"]
    recall_5: Float[Tensor, " cell"]
    calibration: Float[Tensor, " cell"]
    log_loss: Float[Tensor, " cell"]
    errors: Float[Tensor, "cell row"]
    spread: Float[Tensor, " row"]


def margins_of(
    sources: tuple[Readable, ...],
    rows: Int[Tensor, " row"],
    weights: Float[Tensor, "layer penalty output d"],
    bias: Float[Tensor, "layer penalty output"],
) -> Float[Tensor, "layer penalty row output"]:
    """Margins of some rows; in the precision of the weights, so that large means cost nothing."""
    layers, penalties, outputs, width = weights.shape
    found = weights.new_empty(layers, len(rows), penalties * outputs)
    for layer, source in enumerate(sources):
        flat = weights[layer].reshape(-1, width).mT
        for begin in range(0, len(rows), _BLOCK):
            block = source[rows[begin : begin + _BLOCK]].flatten(1).to(weights)
            found[layer, begin : begin + len(block)] = block @ flat + bias[layer].reshape(-1)
    return found.reshape(layers, len(rows), penalties, outputs).transpose(1, 2).cpu()


def log_probabilities(margins: Float[Tensor, "*cells row output"]) -> Float[Tensor, "*cells row class"]:
    """Natural logarithms of the probabilities of classes."""
    if margins.shape[-1] > 1:
        return margins.log_softmax(-1)
    return torch.cat([torch.nn.functional.logsigmoid(-margins), torch.nn.functional.logsigmoid(margins)], -1)


def predicted(margins: Float[Tensor, "*cells row output"]) -> Int[Tensor, "*cells row"]:
    """The class with the largest margin."""
    return margins.argmax(-1) if margins.shape[-1] > 1 else (margins[..., 0] > 0).long()


def selection_score(margins: Float[Tensor, "*cells row output"], targets: Targets) -> Float[Tensor, "*cells"]:
    """What layers are chosen by: AUROC for two classes, accuracy for more, R² for numbers."""
    if targets.index is None:
        return _r2(margins, targets)
    if len(targets.classes) == 2:
        return auroc(margins[..., 0], targets.index == 1)
    return accuracy(predicted(margins), targets.index)


def association(margins: Float[Tensor, "row output"], targets: Targets) -> float:
    """How far margins go with labels: AUROC (the mean over classes of more than two), for numbers the correlation.

    Choosing a penalty by the real labels leaves its chance distribution alone. Accuracy and R² also depend on how large
    margins are, which is chosen with the penalty.
    """
    if targets.index is None:
        both = [x.double() - x.double().mean(0) for x in (margins, _table(targets))]
        sizes = both[0].norm(dim=0) * both[1].norm(dim=0)
        return float(((both[0] * both[1]).sum(0) / sizes).nan_to_num(0.0).mean())
    if len(targets.classes) == 2:
        return float(auroc(margins[:, 0], targets.index == 1))
    return float(macro_auroc(log_probabilities(margins), targets.index))


def plain_score(margins: Float[Tensor, "cell row output"], targets: Targets) -> Float[Tensor, " cell"]:
    """Accuracy, or R²."""
    return selection_score(margins, targets) if targets.index is None else accuracy(predicted(margins), targets.index)


def loss(margins: Float[Tensor, "*cells row output"], targets: Targets) -> Float[Tensor, "*cells"]:
    """What penalties are chosen by: log loss, for numbers the squared error."""
    if targets.index is None:
        return (margins - _table(targets)).square().mean((-1, -2))
    return log_loss(log_probabilities(margins), targets.index)


def scores_of(
    margins: Float[Tensor, "cell row output"],
    targets: Targets,
    groups: Int[Tensor, " row"],
    *,
    draws: Draws,
) -> Scores:
    """Scores of every cell, with intervals from groups drawn again.

    Args:
        margins: of each row.
        targets: what is right.
        groups: rows of a group are drawn together.
        draws: how intervals are made.
    """
    errors, spread = _errors(margins, targets)
    nothing = torch.full_like(errors[:, 0], math.nan)
    right = _share(spread - errors, spread, groups, draws)
    area, recalls, calibration = _unknown(nothing, draws), [nothing, nothing], nothing
    if targets.index is not None:
        right = _not_too_sure(right)
        chances = log_probabilities(margins)
        calibration = calibration_error(chances.exp(), targets.index)
        if len(targets.classes) == 2:
            second = targets.index == 1
            area = bootstrap_auroc(
                margins[..., 0], second, groups=groups, level=draws.level, draws=draws.number, seed=draws.seed
            )
            recalls = [recall_at_fpr(margins[..., 0], second, rate=rate) for rate in (0.01, 0.05)]
        else:
            area = _unknown(macro_auroc(chances, targets.index), draws)
    return Scores(
        accuracy=right,
        auroc=area,
        recall_1=recalls[0],
        recall_5=recalls[1],
        calibration=calibration,
        log_loss=loss(margins, targets),
        errors=errors,
        spread=spread,
    )


def gain(first: Scores, cell: int, second: Scores, groups: Int[Tensor, " row"], draws: Draws) -> Estimate:
    """How much more accurate one cell of the first is than the second, on the same rows."""
    return _share(second.errors - first.errors[cell : cell + 1], first.spread, groups, draws)


def tempered(
    margins: Float[Tensor, "cell row output"], validation: Float[Tensor, "cell val_row output"], targets: Targets
) -> Float[Tensor, "cell row output"]:
    """Margins whose probabilities fit the validation rows best: divided by a temperature (Guo et al. 2017)."""
    if targets.index is None:
        return margins
    return apply_temperature(margins, fit_temperature(validation, targets.index))


def _unknown(value: Tensor, draws: Draws) -> Estimate:
    nothing = torch.full_like(value, math.nan)
    return Estimate(mean=value, standard_error=nothing, low=nothing, high=nothing, n=0, level=draws.level)


def _table(targets: Targets) -> Float[Tensor, "row output"]:
    if targets.table is None:
        raise ProbeError("these targets are classes, not numbers")
    return targets.table


def _r2(margins: Tensor, targets: Targets) -> Tensor:
    found = torch.stack([r2(margins[..., n], column) for n, column in enumerate(_table(targets).unbind(1))])
    return found.mean(0)


def _errors(
    margins: Float[Tensor, "cell row output"], targets: Targets
) -> tuple[Float[Tensor, "cell row"], Float[Tensor, " row"]]:
    """How wrong each row is, and how wrong it would be to answer with the mean."""
    if targets.index is not None:
        wrong = (predicted(margins) != targets.index).double()
        return wrong, torch.ones_like(wrong[0])
    table = _table(targets).double()
    variance = table.var(0, correction=0)
    errors = (margins.double() - table).square() / variance
    return errors.mean(-1), ((table - table.mean(0)).square() / variance).mean(-1)


def _share(above: Float[Tensor, "cell row"], below: Float[Tensor, " row"], groups: Tensor, draws: Draws) -> Estimate:
    """A ratio of sums over rows, with an interval from groups drawn again."""
    names, inverse = groups.unique(return_inverse=True)
    numerators = above.new_zeros(len(names), len(above)).index_add_(0, inverse, above.mT)
    denominators = below.new_zeros(len(names)).index_add_(0, inverse, below)
    return bootstrap_ratio(numerators, denominators, level=draws.level, draws=draws.number, seed=draws.seed)


def _not_too_sure(found: Estimate) -> Estimate:
    """Where nothing or all is wrong, every draw is the same: the interval is that of Wilson for as many groups."""
    if found.n < 2:
        return found
    low, high = wilson(found.n, found.n, found.level)[0], wilson(0, found.n, found.level)[1]
    return replace(
        found,
        low=torch.where(found.mean == 1, low, found.low),
        high=torch.where(found.mean == 0, high, found.high),
    )


__all__ = [
    "Draws",
    "Scores",
    "association",
    "gain",
    "log_probabilities",
    "loss",
    "margins_of",
    "plain_score",
    "predicted",
    "scores_of",
    "selection_score",
    "tempered",
]
