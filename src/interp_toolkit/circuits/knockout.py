"""Ablations that are ready to be run: cells over prompts, in chunks that fit into memory."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp_toolkit.circuits.dataset import (
    Answers,
    Pairs,
    has_text,
    is_single,
    prepare_answers,
    prepare_prompts,
)
from interp_toolkit.circuits.effects import Effects
from interp_toolkit.circuits.knockout_nodes import Place
from interp_toolkit.circuits.metrics import MetricLike
from interp_toolkit.circuits.outcomes import Graded, Outcome, grade, outcome_of, plan_prompts, warn_of
from interp_toolkit.circuits.replacing import Replacement
from interp_toolkit.errors import RunError
from interp_toolkit.model.cells import Base, Cell, differ_from
from interp_toolkit.model.layout import Layout
from interp_toolkit.model.machine import free_memory
from interp_toolkit.model.schedule import Cost
from interp_toolkit.model.tokens import Inputs, Tokens, tokenizer_for
from interp_toolkit.model.verify import verified
from interp_toolkit.model.wiring import Wiring
from interp_toolkit.provenance import provenance_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Cells = tuple[tuple[Place, ...] | None, ...]
"""What each cell of one prompt ablates; None where the model has no such site."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Setting:
    """A model, prompts and what is measured.

    Attributes:
        wiring: the model.
        prompts: the prompts, as pairs with themselves, and their answers.
        outcomes: what is measured.
        memory: bytes that passes may take, or None.
    """

    wiring: Wiring
    prompts: Pairs
    outcomes: tuple[Outcome, ...]
    memory: int | None

    @property
    def allowed(self) -> int:
        """Bytes that may be taken."""
        return free_memory(torch.device("cpu")) // 2 if self.memory is None else self.memory


def setting_of(
    model: nn.Module,
    prompts: Inputs,
    *,
    answers: Answers,
    metric: MetricLike | list[Any] | tuple[Any, ...] | None,
    memory: int | None,
    tokenizer: PreTrainedTokenizerBase | None,
    layout: Layout | None,
) -> Setting:
    """Check prompts, answers and metrics.

    Raises:
        TokenError: without prompts, and for answers that are not one token.
        MetricError: for unknown metrics.
        RunError: without a metric.
    """
    wiring = verified(model, layout)
    if metric is None:
        metric = "loss" if answers is None else "logit_diff"
    specs: list[MetricLike] = [*metric] if isinstance(metric, list | tuple) else [metric]
    outcomes = tuple(outcome_of(spec) for spec in specs)
    if not outcomes or len({outcome.name for outcome in outcomes}) < len(outcomes):
        raise RunError(f"metrics are named once each, and at least one, not {[o.name for o in outcomes]}")
    found = _prompts(model, prompts, answers, tokenizer, layout)
    return Setting(wiring=wiring, prompts=found, outcomes=outcomes, memory=memory)


def _prompts(
    model: nn.Module,
    prompts: Inputs,
    answers: Answers,
    tokenizer: PreTrainedTokenizerBase | None,
    layout: Layout | None,
) -> Pairs:
    """Prompts with their answers; without a foil, the best other token of the prompt itself stands in."""
    rows = prepare_prompts(prompts, model, tokenizer)
    if has_text(answers):
        tokenizer = tokenizer_for(model, tokenizer)
    tokenizer = tokenizer or rows[0].tokenizer
    single = is_single(prompts)
    targets, foils = prepare_answers(model, rows, rows, answers, single=single, tokenizer=tokenizer, layout=layout)
    return Pairs(clean=rows, corrupt=rows, targets=targets, foils=foils, single=single, tokenizer=tokenizer)


@dataclass(frozen=True, kw_only=True, eq=False)
class Ablation:
    """An ablation that is ready to be run. Make it with `prepare_ablation`.

    Attributes:
        setting: model, prompts and metrics.
        replacement: what stands in for ablated activations.
        axes: of the result.
        labels: for each axis the names of its entries.
        cells: for each prompt what each cell ablates.
        what: is ablated together, in words.
        notes: what else the result should say.
    """

    setting: Setting
    replacement: Replacement
    axes: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]
    cells: tuple[Cells, ...]
    what: str
    notes: Mapping[str, object] = field(default_factory=dict)

    def with_cells(
        self,
        cells: tuple[Cells, ...],
        *,
        axes: tuple[str, ...],
        labels: tuple[tuple[str, ...], ...],
        what: str,
        notes: Mapping[str, object] | None = None,
    ) -> Ablation:
        """The same with other cells."""
        together = {**self.notes, **(notes or {})}
        return replace(self, cells=cells, axes=axes, labels=labels, what=what, notes=together)

    def run(self, *, keep_draws: bool = False) -> Effects:
        """The effects of all cells on the (first) metric.

        Args:
            keep_draws: whether the draws of resampling are an axis of their own, instead of being averaged over.
        """
        return next(iter(self.run_all(keep_draws=keep_draws).values()))

    def run_all(self, *, keep_draws: bool = False) -> dict[str, Effects]:
        """The effects of all cells on every metric, by its name, from the same runs.

        Args:
            keep_draws: whether the draws of resampling are an axis of their own, instead of being averaged over.
        """
        parts, costs = [], []
        for numbers in self.chunks():
            graded, cost = self._graded(numbers)
            parts.append(graded)
            costs.append(cost)
        warn_of([n for part in parts for n in part.wrong], stacklevel=6)
        values = torch.cat([p.cells.view(len(p.cells), -1, self.number, self.replacement.draws) for p in parts], dim=1)
        clean = torch.cat([part.clean for part in parts], dim=1)
        cost = functools.reduce(operator.add, costs)
        return {
            outcome.name: self.effects(outcome, values[n], clean[n], keep_draws=keep_draws, cost=cost)
            for n, outcome in enumerate(self.setting.outcomes)
        }

    def explain(self) -> str:
        """What running every cell costs, in words, before anything is run."""
        costs = []
        for numbers in self.chunks():
            bases, cells, _ = self.planned(numbers)
            costs.append(self._plan_cost(numbers, bases, cells))
        total: Cost = functools.reduce(operator.add, costs)
        return total.summary()

    # --- inside ----------------------------------------------------------------------------------------------

    @property
    def number(self) -> int:
        """How many cells there are for each prompt."""
        return math.prod(map(len, self.labels))

    def chunks(self) -> list[list[int]]:
        """Prompts that are worked on together, so that what is kept of their runs fits into memory."""
        setting, layout = self.setting, self.setting.wiring.layout
        size = next(setting.wiring.base.parameters()).element_size()
        components = {site.component for cells in self.cells[:1] for cell in cells or () for site, _ in cell or ()}
        sources = self.replacement.draws if self.replacement.donors else 0
        logits = setting.wiring.shapes["logits"][-1] * any(outcome.everywhere for outcome in setting.outcomes)
        found: list[list[int]] = [[]]
        kept = 0
        for number, length in enumerate(setting.prompts.lengths):
            widths = [self._width(component, length) for component in components]
            values = layout.num_layers * (3 * layout.d_model * (1 + sources) + sum(widths) * sources)
            cost = length * (values * size + 8 * logits)
            if found[-1] and kept + cost > setting.allowed // 4:
                found.append([])
                kept = 0
            found[-1].append(number)
            kept += cost
        return found

    def _width(self, component: str, length: int) -> int:
        if component in ("scores", "pattern"):
            return self.setting.wiring.layout.num_heads * length
        return math.prod(self.setting.wiring.shapes[component][2:])

    def planned(self, numbers: Sequence[int]) -> tuple[list[Base], list[Cell], list[int]]:
        """Base runs beside the prompts, cells, and where each goes among `[prompt, cell, draw]`."""
        others: list[Base] = []
        known = {tuple(self.setting.prompts.clean[n].row()): at for at, n in enumerate(numbers)}
        cells, places = [], []
        for at, number in enumerate(numbers):
            sources = self._sources(number, known, others, len(numbers))
            for n, ablated in enumerate(self.cells[number]):
                if ablated is None:
                    continue
                for draw, (source, begin) in enumerate(sources):
                    swaps, edits = self.replacement.changes(ablated, self._tokens(number), source, begin)
                    cells.append(Cell(base=at, swaps=swaps, edits=edits))
                    places.append((at * self.number + n) * self.replacement.draws + draw)
        return others, cells, places

    def _tokens(self, number: int) -> Tokens:
        return self.setting.prompts.clean[number]

    def _sources(
        self, number: int, known: dict[tuple[int, ...], int], others: list[Base], first: int
    ) -> list[tuple[int | None, int]]:
        """For each draw the base run that activations come from, and where it begins to differ from the prompt."""
        if not self.replacement.donors:
            return [(None, 0)]
        found: list[tuple[int | None, int]] = []
        for donor in self.replacement.donors[number]:
            base = Base(tokens=donor)
            row = tuple(donor.row())
            if row not in known:
                known[row] = first + len(others)
                others.append(base)
            found.append((known[row], differ_from(Base(tokens=self._tokens(number)), base)))
        return found

    def _plan_cost(self, numbers: Sequence[int], others: Sequence[Base], cells: Sequence[Cell]) -> Cost:
        setting = self.setting
        return plan_prompts(
            setting.wiring, setting.prompts, numbers, others, cells, setting.outcomes, setting.memory
        ).cost

    def _graded(self, numbers: Sequence[int]) -> tuple[Graded, Cost]:
        others, cells, places = self.planned(numbers)
        return self.graded(numbers, others, cells, places)

    def graded(
        self, numbers: Sequence[int], others: Sequence[Base], cells: Sequence[Cell], places: Sequence[int]
    ) -> tuple[Graded, Cost]:
        """Run cells, and put what they give in its place among `[prompt, cell, draw]`."""
        setting = self.setting
        plan = plan_prompts(setting.wiring, setting.prompts, numbers, others, cells, setting.outcomes, setting.memory)
        found = grade(plan, setting.prompts, numbers, setting.outcomes)
        whole = found.cells.new_full((len(found.cells), len(numbers) * self.number * self.replacement.draws), math.nan)
        whole[:, list(places)] = found.cells
        return replace(found, cells=whole), plan.cost

    def effects(
        self,
        outcome: Outcome,
        values: Float[Tensor, "prompt cell draw"],
        clean: Float[Tensor, " prompt"],
        *,
        keep_draws: bool,
        cost: Cost,
    ) -> Effects:
        """One metric as a result."""
        draws = self.replacement.draws
        axes, labels = self.axes, self.labels
        shaped = values.view(len(values), *map(len, labels), draws)
        if keep_draws:
            axes, labels = (*axes, "draw"), (*labels, tuple(map(str, range(draws))))
        else:
            shaped = shaped.mean(-1)
        return Effects(
            title=f"{_title(self.replacement.name)} ablation, {self.what}",
            axes=axes,
            labels=labels,
            values=shaped,
            base=clean,
            clean=clean,
            corrupt=torch.full_like(clean, math.nan),
            metric=outcome.name,
            unit=outcome.unit,
            larger_is_cleaner=outcome.larger_is_cleaner,
            direction="noise",
            notes=self._notes(outcome) | {"cost": cost.summary()},
            provenance=provenance_of(self.setting.wiring.model, self.setting.wiring.layout),
        )

    def _notes(self, outcome: Outcome) -> dict[str, Any]:
        prompts, replacement = self.setting.prompts, self.replacement
        facts: dict[str, Any] = {
            "prompts": [tokens.texts[0] if tokens.texts else tokens.row() for tokens in prompts.clean],
            "method": replacement.name,
            **self.notes,
        }
        if replacement.reference is not None:
            facts["reference"] = replacement.reference.summary()
        if replacement.donors:
            facts["draws"] = replacement.draws
        answers = {prompts.answer_names(n) for n in range(len(prompts)) if prompts.targets[n]}
        if answers and not outcome.everywhere and outcome.name != "kl":
            target, foil = next(iter(answers))
            facts["answers"] = f"{len(answers)} kinds of answers" if len(answers) > 1 else f"{target} − {foil}"
        return facts


def _title(method: str) -> str:
    return method.replace("_", " ").capitalize()


__all__ = ["Ablation", "Cells", "Setting", "setting_of"]
