"""What judging circuits needs: numbers with intervals, and what must be so before a share can be taken."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp_toolkit.circuits.dataset import Pairs
from interp_toolkit.circuits.graph_shape import Graph
from interp_toolkit.circuits.subgraph import CircuitRuns
from interp_toolkit.errors import CircuitError, InterpWarning, MetricError
from interp_toolkit.statistics import Estimate, bootstrap_mean, bootstrap_ratio

FEW = 8
"""With fewer prompts an interval means little."""

DRAWS = 2000
_DIGESTS = ("prompt_digests", "corrupt_digests")
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

    A circuit's `notes["prompt_digests"]` lists those of the clean prompts that it was found on, its
    `notes["corrupt_digests"]` those of the corrupt ones.

    Args:
        ids: its token ids.

    Returns:
        The first 16 hexadecimal digits of a SHA-256.

    Example:
        >>> prompt_digest([1, 2, 3])
        'dfd5726d86ed2c8b'
    """
    return hashlib.sha256(repr(tuple(int(n) for n in ids)).encode()).hexdigest()[:16]


def used_prompts(pairs: Pairs, numbers: Sequence[int]) -> dict[str, list[str]]:
    """What is noted of pairs that something was found on: the digests of their clean and of their corrupt prompts."""
    sides = (("prompt_digests", pairs.clean), ("corrupt_digests", pairs.corrupt))
    return {name: [prompt_digest(side[n].row()) for n in numbers] for name, side in sides}


def check_apart(notes: Mapping[str, Any], pairs: Pairs, numbers: Sequence[int], what: str) -> tuple[int, int]:
    """Warn when prompts were used for finding a circuit too: as clean prompts there and here.

    Args:
        notes: of the circuit, or of scores.
        pairs: of prompts.
        numbers: of those that it is judged on.
        what: it is, in words.

    Returns:
        How many of the pairs have a clean prompt that was; and how many others share a prompt all the same: a corrupt
        one, or one that was the other side of a pair there. These are not warned of.
    """
    here, known = used_prompts(pairs, numbers), {name: set(notes.get(name) or ()) for name in _DIGESTS}
    every = set[str]().union(*known.values())
    used = [digest in known["prompt_digests"] for digest in here["prompt_digests"]]
    touched = [bool(every & set(both)) for both in zip(*here.values(), strict=True)]
    shared = sum(used)
    if shared:
        warn(
            f"{shared} of {len(numbers)} prompts were also used to find {what}, so it looks better on them than it is: "
            "judge it on others"
        )
    return shared, sum(touched) - shared


def overlap(touched: int, prompts: int, what: str) -> str:
    """That pairs share prompts with those that something was found on, in words."""
    return (
        f"{touched} of {prompts} pairs share a prompt with pairs that were used to find {what}: a corrupt one, or one "
        "that was clean there and is corrupt here, or the other way"
    )


def measured(
    runs: CircuitRuns, masks: Sequence[Bool[Tensor, "source dest"]], numbers: Sequence[int]
) -> Float[Tensor, "circuit prompt"]:
    """The metric of circuits, each of which is run once however often it is there."""
    places: dict[bytes, int] = {}
    order = [places.setdefault(mask.numpy().tobytes(), len(places)) for mask in masks]
    different = [masks[order.index(n)] for n in range(len(places))]
    return runs.measure(torch.stack(different), pairs=numbers)[order]


def check_graph(runs: CircuitRuns, graph: Graph, what: str) -> None:
    """Refuse what is of another model.

    Raises:
        CircuitError: showing both.
    """
    if graph != runs.graph:
        raise CircuitError(f"{what} of {graph} cannot be judged on a model of {runs.graph}")


__all__ = [
    "DRAWS",
    "FEW",
    "Interval",
    "check_apart",
    "check_behaviour",
    "check_graph",
    "intervals",
    "measured",
    "overlap",
    "prompt_digest",
    "shares",
    "used_prompts",
    "warn",
]
