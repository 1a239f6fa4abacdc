"""The kinds of linear probes, fitted to all layers and penalties together."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp_toolkit.errors import InterpWarning, ProbeError
from interp_toolkit.probes.closed import mean_difference, ridge
from interp_toolkit.probes.contrast import contrast_consistent
from interp_toolkit.probes.features import Features
from interp_toolkit.probes.inputs import Targets
from interp_toolkit.probes.solver import logistic

Kind = Literal["logistic", "ridge", "mean_difference", "whitened_mean_difference", "lda", "contrast"]
"""How the direction is found: by logistic regression, least squares, the difference of the class means (as it is, or
whitened), linear discriminant analysis, or contrast-consistent search."""

KINDS: tuple[Kind, ...] = ("logistic", "ridge", "mean_difference", "whitened_mean_difference", "lda", "contrast")

PENALIZED: tuple[Kind, ...] = ("logistic", "ridge")
"""The kinds for which a penalty is to be chosen."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearFit:
    """Linear probes of several layers, for activations as they are.

    Attributes:
        weights: for each layer and penalty; kinds without a penalty have one entry there.
        bias: the intercepts.
        converged: whether the minimum was reached.
        steps: how many steps that took at most.
    """

    weights: Float[Tensor, "layer penalty output d"]
    bias: Float[Tensor, "layer penalty output"]
    converged: Bool[Tensor, "layer penalty"]
    steps: int = 1


def standardizes(kind: str) -> bool:
    """Whether a kind standardises features unless told otherwise: where scales decide what is penalised."""
    return kind in PENALIZED


def fit_linear(
    features: Features,
    targets: Targets,
    kind: str = "logistic",
    *,
    penalties: Float[Tensor, " penalty"],
    weights: Float[Tensor, " row"] | None = None,
    intercept: bool = True,
    shrinkage: float | None = None,
    pairs: Int[Tensor, "pair side"] | None = None,
    max_steps: int = 100,
    tolerance: float | None = None,
    seed: int = 0,
) -> LinearFit:
    """Fit one kind of linear probe to every layer, with every penalty.

    Args:
        features: the rows of each layer.
        targets: what is to be predicted.
        kind: how.
        penalties: the strengths C, for the kinds that have one.
        weights: how much each row counts; 1 if not given.
        intercept: whether there is one.
        shrinkage: of the covariance, for the kinds that whiten.
        pairs: for contrast-consistent search the rows of the two sides of each pair.
        max_steps: at most so many.
        tolerance: of the loss; see `logistic`.
        seed: for contrast-consistent search.

    Returns:
        Weights and intercepts for activations as they are, not standardised.

    Raises:
        ProbeError: when the kind cannot predict such targets.
    """
    if kind not in KINDS:
        raise ProbeError(f"a linear probe is of kind {', '.join(map(repr, KINDS))}, not {kind!r}")
    if targets.kind == "regression" and kind != "ridge":
        raise ProbeError(f"numbers are predicted by kind='ridge', not by {kind!r}")
    share = torch.ones(len(targets)) if weights is None else weights
    if kind == "logistic":
        return _logistic(features, targets, penalties, share, intercept, max_steps, tolerance)
    if kind == "ridge":
        found, bias = ridge(features, _wanted(targets), penalties, share, intercept=intercept)
    elif kind == "contrast":
        found, bias = _contrast(features, targets, pairs, seed)
    else:
        found, bias = _means(features, targets, kind, share, shrinkage)
    return _raw(features, found, bias, torch.ones(found.shape[:2], dtype=torch.bool), 1)


def _raw(features: Features, weights: Tensor, bias: Tensor, converged: Tensor, steps: int) -> LinearFit:
    if features.scaler is not None:
        weights, bias = features.scaler.back(weights, bias)
    return LinearFit(weights=weights, bias=bias, converged=converged, steps=steps)


def _logistic(
    features: Features,
    targets: Targets,
    penalties: Tensor,
    weights: Tensor,
    intercept: bool,
    max_steps: int,
    tolerance: float | None,
) -> LinearFit:
    classes = len(targets.classes) if targets.index is not None else 2
    solution = logistic(
        features,
        targets.tasks,
        penalties,
        classes=classes,
        row_weights=weights[:, None].expand(targets.tasks.shape),
        intercept=intercept,
        tolerance=tolerance,
        max_steps=max_steps,
    )
    converged = solution.converged.all(-1)
    if not bool(converged.all()):
        worst = float(solution.excess.max())
        warnings.warn(
            f"{int((~converged).sum())} of {converged.numel()} logistic regressions did not reach their minimum in "
            f"{solution.steps} steps (their loss is about {worst:.1e} above it, as a share): allow more, or penalise "
            "more (a smaller C)",
            InterpWarning,
            stacklevel=4,
        )
    return _raw(features, solution.weights.flatten(2, 3), solution.bias.flatten(2, 3), converged, solution.steps)


def _wanted(targets: Targets) -> Float[Tensor, "row output"]:
    """What least squares aims at: numbers as they are, classes and labels as −1 and 1."""
    if targets.kind == "regression":
        assert targets.table is not None
        return targets.table
    if targets.table is not None:
        return 2 * targets.table - 1
    assert targets.index is not None
    one_hot = torch.nn.functional.one_hot(targets.index, len(targets.classes)).double()
    return 2 * (one_hot[:, 1:] if len(targets.classes) == 2 else one_hot) - 1


def _means(
    features: Features, targets: Targets, kind: str, weights: Tensor, shrinkage: float | None
) -> tuple[Tensor, Tensor]:
    number = len(targets.classes) if targets.index is not None else 2
    found = [
        mean_difference(
            features, task, number, weights, whiten=kind != "mean_difference", priors=kind == "lda", shrinkage=shrinkage
        )
        for task in targets.tasks.unbind(1)
    ]
    weight, bias = (torch.cat([part[n] for part in found], 1)[:, None] for n in (0, 1))
    return weight, bias


def _contrast(features: Features, targets: Targets, pairs: Tensor | None, seed: int) -> tuple[Tensor, Tensor]:
    """Contrast-consistent search; labels decide only which end of the direction is the second class."""
    if pairs is None or len(targets.classes) != 2 or targets.index is None:
        raise ProbeError(
            "contrast-consistent search needs pairs of rows, each a statement and its opposite, and two classes: "
            "pass pairs= with the same name for the two rows of a pair"
        )
    x = torch.cat([block for _, block in features.blocks()], 1)
    weights, bias, _ = contrast_consistent(x[:, pairs[:, 0]], x[:, pairs[:, 1]], seed=seed)
    hits = ((x.float() @ weights[..., None])[..., 0] + bias[:, None] > 0) == targets.index.bool().to(x.device)
    sign = torch.where(hits.float().mean(-1) < 0.5, -1.0, 1.0)[:, None]
    return (weights * sign)[:, None, None].to(x), (bias[:, None] * sign)[:, None].to(x)


__all__ = ["KINDS", "PENALIZED", "Kind", "LinearFit", "fit_linear", "standardizes"]
