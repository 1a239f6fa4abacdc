"""What judging circuits needs: numbers with intervals, and what must be so before a share can be taken."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp_toolkit.circuits.dataset import Pairs
from interp_toolkit.circuits.graph_shape import Graph
from interp_toolkit.circuits.subgraph import CircuitRuns
from interp_toolkit.errors import CircuitError, InterpWarning, MetricError
from interp_toolkit.statistics import Estimate, bootstrap_mean, bootstrap_ratio

FEW = 8
"""With fewer prompts an interval means little."""

DRAWS = 2000
_ROUNDING = 1e-6  # as a share of the metric: what differs by less does not differ


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A number and how sure it is.

    Attributes:
        value: the number.
        low: lower end of its interval; NaN where none can be given.
        high: upper end.
        level: share of cases in which such an interval should hold the truth.
        prompts: how many prompts it is from.

    Example:
        >>> print(Interval(value=0.875, low=0.8, high=0.925, level=0.95, prompts=20))
        0.875 (95% interval 0.800 to 0.925)
    """

    value: float
    low: float
    high: float
    level: float
    prompts: int

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{self.value:z.3f}"
        return f"{self.value:z.3f} ({self.level:.0%} interval {self.low:z.3f} to {self.high:z.3f})"

    def as_note(self) -> dict[str, float | int | None]:
        """As the notes of a `Circuit` have it; None for ends that are not known."""
        ends = {name: None if math.isnan(end) else end for name, end in (("low", self.low), ("high", self.high))}
        return {"value": self.value, **ends, "level": self.level, "prompts": self.prompts}


def intervals(estimate: Estimate) -> tuple[Interval, ...]:
    """The cells of an estimate, one by one."""
    ends = zip(*(x.flatten().tolist() for x in (estimate.mean, estimate.low, estimate.high)), strict=True)
    return tuple(
        Interval(value=value, low=low, high=high, level=estimate.level, prompts=estimate.n) for value, low, high in ends
    )


def shares(
    values: Float[Tensor, "prompt *cells"],
    model: Float[Tensor, " prompt"],
    ablated: Float[Tensor, " prompt"],
    *,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Faithfulness: (mean of the values − mean of the ablated runs) / (mean of the model − mean of the ablated runs).

    Args:
        values: the metric of each prompt and circuit.
        model: of the whole model.
        ablated: of the empty circuit.
        level: of the intervals.
        seed: of the bootstrap.

    Example:
        >>> values = torch.tensor([[2.0], [4.0]])
        >>> shares(values, torch.tensor([4.0, 6.0]), torch.tensor([0.0, 2.0])).mean.tolist()
        [0.5]
    """
    base = ablated.view(-1, *[1] * (values.ndim - 1))
    return bootstrap_ratio(values - base, model - ablated, level=level, draws=DRAWS, seed=seed)


def check_behaviour(
    model: Float[Tensor, " prompt"],
    ablated: Float[Tensor, " prompt"],
    metric: str,
    sign: float,
    level: float,
) -> None:
    """Warn of a behaviour that is not there and of few prompts.

    Args:
        model: the metric of the whole model.
        ablated: of the empty circuit.
        metric: its name.
        sign: 1 where a larger metric is cleaner, else −1.
        level: of intervals.

    Raises:
        CircuitError: when the whole model and the empty circuit do not differ, so that there is nothing to share out.
        MetricError: for a metric that is infinite.
    """
    infinite = ~(model.isfinite() & ablated.isfinite())
    if bool(infinite.any()):
        raise MetricError(
            f"{metric} is not finite for {int(infinite.sum())} of {len(model)} prompts, so no share of it can be "
            "taken: leave them out, or use logit_diff or prob"
        )
    ends = (
        f"{metric} is {float(model.mean()):.4g} in the whole model and {float(ablated.mean()):.4g} in the ablated run"
    )
    gap = (model - ablated) * sign
    size = float(torch.stack([model, ablated]).abs().mean())
    if abs(float(gap.mean())) <= _ROUNDING * max(size, torch.finfo(model.dtype).tiny):
        raise CircuitError(
            f"{ends}, the same over {len(gap)} prompts: there is no behaviour to explain. Choose prompts whose "
            "corrupt versions change the answer, or another metric or ablation"
        )
    if len(gap) < FEW:
        kind = "no interval can be given" if len(gap) == 1 else "intervals are rough"
        warn(f"{len(gap)} prompt{'' if len(gap) == 1 else 's'} only: {kind}; give {FEW} or more")
    found = bootstrap_mean(gap, level=level, draws=DRAWS)
    if float(found.low) <= 0 <= float(found.high):
        warn(
            f"{ends}: over {len(gap)} prompts this difference is not beyond chance, so faithfulness, a share of it, "
            "means little"
        )
    elif float(gap.mean()) < 0:
        warn(f"{ends}: the ablated run answers better, so these prompts do not show the behaviour")


def warn(text: str) -> None:
    """A warning that the result may not mean what it seems to."""
    warnings.warn(text, InterpWarning, stacklevel=2)


# --- prompts that were used before --------------------------------------------------------------------------------


def prompt_digest(ids: Sequence[int]) -> str:
    """A short name of a prompt, by which prompts used twice are found.

    A circuit's `notes["prompt_digests"]` lists those of the clean prompts that it was found on.

    Args:
        ids: its token ids.

    Returns:
        The first 16 hexadecimal digits of a SHA-256.

    Example:
        >>> prompt_digest([1, 2, 3])
        'dfd5726d86ed2c8b'
    """
    return hashlib.sha256(repr(tuple(int(n) for n in ids)).encode()).hexdigest()[:16]


def digests_of(pairs: Pairs, numbers: Sequence[int] | None = None) -> list[str]:
    """The digests of the clean prompts of some pairs, or of all."""
    chosen = range(len(pairs)) if numbers is None else numbers
    return [prompt_digest(pairs.clean[n].row()) for n in chosen]


def check_apart(notes: Mapping[str, Any], digests: Sequence[str], what: str) -> int:
    """Warn when prompts were used for finding a circuit too.

    Args:
        notes: of the circuit, or of scores.
        digests: of the prompts that it is judged on.
        what: it is, in words.

    Returns:
        How many of the prompts were.
    """
    known = notes.get("prompt_digests") or ()
    shared = sum(digest in set(known) for digest in digests)
    if shared:
        warn(
            f"{shared} of {len(digests)} prompts were also used to find {what}, so it looks better on them than it is: "
            "judge it on others"
        )
    return shared


def check_graph(runs: CircuitRuns, graph: Graph, what: str) -> None:
    """Refuse what is of another model.

    Raises:
        CircuitError: showing both.
    """
    if graph != runs.graph:
        raise CircuitError(f"{what} of {graph} cannot be judged on a model of {runs.graph}")


def chosen_pairs(runs: CircuitRuns, pairs: Sequence[int] | None) -> list[int]:
    """The numbers of the pairs that are meant.

    Raises:
        CircuitError: for none, or numbers that there are not.
    """
    numbers = list(range(len(runs.pairs)) if pairs is None else pairs)
    if not numbers or not all(0 <= n < len(runs.pairs) for n in numbers) or len(set(numbers)) < len(numbers):
        raise CircuitError(f"pairs are different numbers from 0 to {len(runs.pairs) - 1}, at least one, not {numbers}")
    return numbers


__all__ = [
    "DRAWS",
    "FEW",
    "Interval",
    "check_apart",
    "check_behaviour",
    "check_graph",
    "chosen_pairs",
    "digests_of",
    "intervals",
    "prompt_digest",
    "shares",
    "warn",
]
