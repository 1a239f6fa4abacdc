"""Metrics: one number for how a run answers, made of its logits at the measured position.

A metric is asked for many *cells* at once: runs of the same pair of prompts, each with another edit. It says which
logits it needs, so that only these rows of the unembedding have to be computed, and gives one number for each cell or
an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from interp_toolkit.errors import MetricError

_AT_ONCE = 2**22  # logits that are worked on together: 16 MB in float32, whatever the vocabulary


@dataclass(frozen=True, kw_only=True, eq=False)
class Question:
    """What a metric must know about one pair of prompts.

    Attributes:
        targets: ids of the tokens that answer the clean prompt; may be empty for metrics that compare whole runs.
        foils: ids of the tokens they are compared with; may be empty.
        clean_logits: of the clean run at the measured position.
        corrupt_logits: of the corrupt run there.

    Raises:
        MetricError: for a token that is not in the vocabulary, is named twice, or is both target and foil, and for
            logits of two vocabularies.
    """

    targets: tuple[int, ...]
    foils: tuple[int, ...]
    clean_logits: Float[Tensor, " vocab"]
    corrupt_logits: Float[Tensor, " vocab"]

    def __post_init__(self) -> None:
        """Check that the answers are different tokens of one vocabulary."""
        shapes = tuple(self.clean_logits.shape), tuple(self.corrupt_logits.shape)
        if shapes[0] != shapes[1] or len(shapes[0]) != 1:
            raise MetricError(
                f"clean and corrupt logits are one number per token of one vocabulary, but have shapes {shapes[0]} "
                f"and {shapes[1]}"
            )
        if outside := [token for token in self.answers if not 0 <= token < self.vocab]:
            raise MetricError(f"token ids go from 0 to {self.vocab - 1}, but an answer is {outside[0]}")
        if len(set(self.answers)) < len(self.answers):
            raise MetricError(
                f"every answer counts once, as target or as foil, but targets are {self.targets} and foils {self.foils}"
            )

    @property
    def answers(self) -> tuple[int, ...]:
        """Targets, then foils."""
        return self.targets + self.foils

    @property
    def vocab(self) -> int:
        """How many tokens there are."""
        return self.clean_logits.shape[0]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Cells:
    """Logits as a formula sees them: at least float32, answers taken out."""

    logits: Float[Tensor, "cells columns"]
    targets: Float[Tensor, "cells targets"]
    foils: Float[Tensor, "cells foils"]
    clean: Float[Tensor, " vocab"]


_Formula = Callable[[_Cells], Tensor]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number for how a run answers; get one with `metric_of`.

    Attributes:
        name: what users call it.
        larger_is_cleaner: whether the clean run has the larger number: true of a logit difference, false of a distance
            from the clean run. Effects are counted towards the clean answer, so this is their sign.
        unit: of the number, such as `"nats"`; empty for a function of a user's own.
    """

    name: str
    larger_is_cleaner: bool
    unit: str
    _formula: _Formula = field(repr=False)
    _wants: tuple[Literal["targets", "foils"], ...] = field(default=(), repr=False)
    _everything: Literal["always", "without foils", "never"] = field(default="always", repr=False)
    _infinite: bool = field(default=False, repr=False)
    _whole: bool = field(default=False, repr=False)

    @property
    def needs_answers(self) -> bool:
        """Whether there is nothing to measure without answers."""
        return bool(self._wants)

    def needs(self, question: Question) -> tuple[int, ...] | None:
        """Ids of the tokens whose logits are enough, in the order that `measure` wants; None means all of them.

        Raises:
            MetricError: when the question has no answers of a kind that the metric cannot do without.
        """
        for kind in self._wants:
            if not getattr(question, kind):
                without = ", ".join(m.name for m in METRICS.values() if kind not in m._wants)
                raise MetricError(f"{self.name} needs {kind}, but none are given; without them there are: {without}")
        everything = self._everything == "always" or (self._everything == "without foils" and not question.foils)
        return None if everything else question.answers

    def measure(self, logits: Float[Tensor, "cells columns"], question: Question) -> Float[Tensor, " cells"]:
        """One number for each cell, in float32, or float64 for float64 logits; gradients pass through.

        A logit of −inf is a token that the model rules out. Then `log_prob` can be −inf and `kl` inf: that is their
        true value. Every other number is finite.

        Args:
            logits: at the measured position, one row per cell: all of them, or the columns that `needs` names.
            question: the pair of prompts that the cells are runs of.

        Raises:
            MetricError: for logits of another shape, logits that are NaN or inf, and results that are no number or not
                one per cell.
        """
        needed = self.needs(question)
        columns = question.vocab if needed is None else len(needed)
        if logits.ndim != 2 or logits.shape[1] != columns:
            raise MetricError(
                f"{self.name} needs logits of shape (cells, {columns}), {'all' if needed is None else f'for {needed}'} "
                f"of them, but got {tuple(logits.shape)}"
            )
        best = logits.detach().amax(-1)
        if not bool(best.isfinite().all()):
            raise MetricError(
                f"{self.name}: the largest logit is {_first(best, best.isfinite())}. In half precision this is often "
                "an overflow: load the model in bfloat16 or float32"
            )
        rows = len(logits) if self._whole else _AT_ONCE // columns
        parts = [self._measure(part, question, needed) for part in logits.split(max(1, rows))]
        values = torch.cat(parts)
        sound = ~values.isnan() if self._infinite else values.isfinite()
        if not bool(sound.all()):
            raise MetricError(f"{self.name} is {_first(values, sound)}, which is no number to compare")
        return values

    def _measure(self, logits: Tensor, question: Question, needed: tuple[int, ...] | None) -> Tensor:
        dtype = torch.promote_types(logits.dtype, torch.float32)
        logits = logits.to(dtype)
        first = len(question.targets)
        places = list(question.answers if needed is None else range(len(needed)))
        cells = _Cells(
            logits=logits,
            targets=logits[:, places[:first]],
            foils=logits[:, places[first:]],
            clean=question.clean_logits.to(logits),
        )
        values = self._formula(cells)
        _check_shape(values, len(logits), self.name)
        return values.to(dtype)


def _check_shape(values: object, cells: int, name: str) -> None:
    """A user's function may give anything."""
    shape = tuple(values.shape) if isinstance(values, Tensor) else None
    if shape != (cells,):
        found = type(values).__name__ if shape is None else f"shape {shape}"
        raise MetricError(f"{name} must give a number for each cell, a tensor of shape ({cells},), but gave {found}")


def _first(values: Tensor, sound: Tensor) -> str:
    """The first value that is not sound, where it is, and how many there are."""
    bad = (~sound).nonzero()[:, 0].tolist()
    more = f" and in {len(bad) - 1} more" if len(bad) > 1 else ""
    return f"{values[bad[0]].item()} in cell {bad[0]}{more} of {len(sound)} cells"


MetricLike = str | Metric | Callable[[Tensor], Tensor]
"""A metric by name, a metric, or a function of logits `[cells, vocab]` that gives `[cells]`."""


def metric_of(spec: MetricLike) -> Metric:
    """The metric that is meant.

    By name:

    | name | number |
    |---|---|
    | `logit_diff` | mean logit of the targets minus mean logit of the foils |
    | `log_prob` | log of the targets' summed probability |
    | `prob` | the targets' summed probability |
    | `prob_diff` | the targets' summed probability minus the foils' (Hanna et al. 2023, greater-than) |
    | `kl` | KL(clean run ‖ this run); smaller is cleaner |
    | `rank` | how many tokens are strictly better than the best target, 0 is best; smaller is cleaner |
    | `accuracy` | 1 if the best target is strictly better than every foil; without foils: than every other token |

    Args:
        spec: a name, a metric, or a function of logits `[cells, vocab]` that gives `[cells]`, larger for a cleaner
            answer. The function sees all cells of a batch at once and is named by its `__name__`.

    Raises:
        MetricError: for anything else; the message names the choices.

    Example:
        >>> question = Question(targets=(0,), foils=(2,), clean_logits=torch.tensor([2.0, 0.0, -1.0]),
        ...                     corrupt_logits=torch.tensor([-1.0, 0.0, 2.0]))
        >>> metric = metric_of("logit_diff")
        >>> metric.needs(question)
        (0, 2)
        >>> metric.measure(torch.tensor([[1.0, 0.5], [0.0, 2.0]]), question)
        tensor([ 0.5000, -2.0000])
    """
    if isinstance(spec, Metric):
        return spec
    if isinstance(spec, str) and spec in METRICS:
        return METRICS[spec]
    if isinstance(spec, str) or not callable(spec):
        raise MetricError(
            f"a metric is one of {', '.join(METRICS)}, or a function of logits [cells, vocab] that gives [cells], "
            f"not {spec!r}"
        )
    name = str(getattr(spec, "__name__", type(spec).__name__))
    return Metric(name=name, larger_is_cleaner=True, unit="", _formula=partial(_own, spec), _whole=True)


def _own(function: Callable[[Tensor], Tensor], cells: _Cells) -> Tensor:
    return function(cells.logits)


def _logit_diff(cells: _Cells) -> Tensor:
    return cells.targets.mean(-1) - cells.foils.mean(-1)


def _log_prob(cells: _Cells) -> Tensor:
    return cells.targets.logsumexp(-1) - cells.logits.logsumexp(-1)


def _prob(cells: _Cells) -> Tensor:
    return _log_prob(cells).exp()


def _prob_diff(cells: _Cells) -> Tensor:
    total = cells.logits.logsumexp(-1, keepdim=True)
    return (cells.targets - total).exp().sum(-1) - (cells.foils - total).exp().sum(-1)


def _kl(cells: _Cells) -> Tensor:
    """Σ p·(e^d − 1 − d) with p the clean run's probabilities and d = log q − log p.

    This equals Σ p·(−d), as p and q both sum to 1. Every term is at least 0, and an error ε of d costs d·ε instead of
    ε: the naive sum in float32 has errors of 1e-6, as large as the effect of many a component.
    """
    log_p, log_q = cells.clean.log_softmax(-1), cells.logits.log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    possible = p > 0
    d = torch.where(possible, log_q - log_p, 0.0)
    near = d.clamp(max=1.0)
    # e^d can be too large for its type where p is small, but p·e^d is q.
    return torch.where(possible & (d < 1), p * (near.expm1() - near), q - p * (1 + d)).sum(-1)


def _rank(cells: _Cells) -> Tensor:
    return (cells.logits > cells.targets.amax(-1, keepdim=True)).sum(-1)


def _accuracy(cells: _Cells) -> Tensor:
    best = cells.targets.amax(-1)
    if cells.foils.shape[1]:
        return best > cells.foils.amax(-1)
    # Without foils: as many tokens reach the best target as targets do, so no other token does.
    reach = (cells.logits >= best[:, None]).sum(-1)
    return reach == (cells.targets >= best[:, None]).sum(-1)


_BUILT_IN = (
    Metric(
        name="logit_diff",
        larger_is_cleaner=True,
        unit="nats",
        _formula=_logit_diff,
        _wants=("targets", "foils"),
        _everything="never",
    ),
    Metric(
        name="log_prob", larger_is_cleaner=True, unit="nats", _formula=_log_prob, _wants=("targets",), _infinite=True
    ),
    Metric(name="prob", larger_is_cleaner=True, unit="probability", _formula=_prob, _wants=("targets",)),
    Metric(
        name="prob_diff", larger_is_cleaner=True, unit="probability", _formula=_prob_diff, _wants=("targets", "foils")
    ),
    Metric(name="kl", larger_is_cleaner=False, unit="nats", _formula=_kl, _infinite=True),
    Metric(name="rank", larger_is_cleaner=False, unit="rank", _formula=_rank, _wants=("targets",)),
    Metric(
        name="accuracy",
        larger_is_cleaner=True,
        unit="share",
        _formula=_accuracy,
        _wants=("targets",),
        _everything="without foils",
    ),
)
METRICS: Mapping[str, Metric] = MappingProxyType({metric.name: metric for metric in _BUILT_IN})
"""The metrics that have a name."""

__all__ = ["METRICS", "Metric", "MetricLike", "Question", "metric_of"]
