"""Measuring cells: planned runs, and the metric of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp_toolkit.circuits.dataset import Pairs
from interp_toolkit.circuits.metrics import Metric, Question
from interp_toolkit.model.cells import Base, Cell
from interp_toolkit.model.layout import Layout
from interp_toolkit.model.machine import free_memory
from interp_toolkit.model.plan import Plan, make_plan
from interp_toolkit.model.schedule import Cost
from interp_toolkit.model.verify import verified
from interp_toolkit.model.wiring import Wiring


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """What the cells of some pairs gave.

    Attributes:
        cells: the metric of each cell.
        clean: of each pair's clean run.
        corrupt: of each pair's corrupt run.
        cost: what it took, where cells were run.
    """

    cells: Float[Tensor, " cell"]
    clean: Float[Tensor, " pair"]
    corrupt: Float[Tensor, " pair"]
    cost: Cost | None = None

    def placed(self, places: Sequence[int], number: int) -> Measured:
        """The cells put where they belong among `number`; the others are NaN."""
        cells = torch.full((number,), torch.nan, dtype=self.cells.dtype)
        cells[list(places)] = self.cells
        return replace(self, cells=cells)


def chunks(
    wiring: Wiring, lengths: Sequence[int], runs: Sequence[int], component: str, memory: int | None
) -> list[list[int]]:
    """Prompts that are worked on together, so that what is kept of their runs takes a quarter of the memory at most.

    Args:
        wiring: the model.
        lengths: tokens of each prompt.
        runs: how many base runs each has.
        component: what is read in them.
        memory: bytes that may be taken; half of what is free if it is not given.
    """
    layout, shapes = wiring.layout, wiring.shapes
    first = next(wiring.base.parameters())
    allowed = (free_memory(first.device) // 2 if memory is None else memory) // 4
    found: list[list[int]] = [[]]
    kept = 0
    for number, (length, several) in enumerate(zip(lengths, runs, strict=True)):
        squares = component in ("scores", "pattern")
        width = layout.num_heads * length if squares else math.prod(shapes.get(component, (1, 1, layout.d_model))[2:])
        stream = length * layout.num_layers * (3 * layout.d_model + width) * first.element_size()
        cost = several * (stream + 4 * shapes["logits"][-1])
        if found[-1] and kept + cost > allowed:
            found.append([])
            kept = 0
        found[-1].append(number)
        kept += cost
    return found


def plan_pairs(
    model: nn.Module,
    pairs: Pairs,
    numbers: Sequence[int],
    cells: Sequence[Cell],
    metric: Metric,
    *,
    memory: int | None = None,
    layout: Layout | None = None,
) -> Plan:
    """Plan cells over some pairs, to be measured at the last position.

    Args:
        model: a causal language model.
        pairs: pairs of prompts.
        numbers: which of them. The clean run of the `n`-th of these is base run `2n`, the corrupt one `2n + 1`.
        cells: edited runs over these base runs.
        metric: what will be measured.
        memory: bytes that passes may take.
        layout: for a model class of your own.
    """
    bases = [Base(tokens=side[n]) for n in numbers for side in (pairs.clean, pairs.corrupt)]
    empty = torch.zeros(1).expand(verified(model, layout).shapes["logits"][-1])
    needed = [metric.needs(question_of(pairs, n, empty, empty)) for n in numbers for _ in (0, 1)]
    vocab = [ids for ids in needed if ids is not None]
    return make_plan(
        model, bases, cells, vocab=vocab if len(vocab) == len(bases) else None, memory=memory, layout=layout
    )


def measure(plan: Plan, pairs: Pairs, numbers: Sequence[int], metric: Metric) -> Measured:
    """Carry out what `plan_pairs` planned.

    Raises:
        MetricError: when the metric gives no number.
    """
    runs = plan.run(progress=True)
    questions, sides = [], []
    for at, number in enumerate(numbers):
        clean, corrupt = (in_float32(runs.base_logits(2 * at + side)[-1]) for side in (0, 1))
        question = question_of(pairs, number, clean, corrupt)
        questions.append(question)
        ids = metric.needs(question)
        both = torch.stack([runs.base_logits(2 * at + side, ids)[-1] for side in (0, 1)])
        sides.append(metric.measure(both, question).cpu())
    clean, corrupt = torch.stack(sides).unbind(1)
    cells = torch.full((len(plan.schedule.cells),), torch.nan, dtype=clean.dtype)
    for answer in runs:
        found = metric.measure(answer.logits[:, -1], questions[answer.base // 2])
        cells[list(answer.cells)] = found.to(cells)
    return Measured(cells=cells, clean=clean, corrupt=corrupt, cost=plan.cost)


def in_float32(logits: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    """Logits in float32 at least."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def question_of(pairs: Pairs, number: int, clean: Tensor, corrupt: Tensor) -> Question:
    """What the metric must know about a pair."""
    return Question(
        targets=pairs.targets[number], foils=pairs.foils[number], clean_logits=clean, corrupt_logits=corrupt
    )


__all__ = ["Measured", "chunks", "in_float32", "measure", "plan_pairs", "question_of"]
