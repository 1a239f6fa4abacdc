"""Sweeps: patch every cell of a grid, over one pair of prompts or many."""

from __future__ import annotations

import functools
import operator
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp_toolkit.circuits.dataset import Answers, Pairs, prepare_pairs
from interp_toolkit.circuits.effects import Effects
from interp_toolkit.circuits.gradients import estimate
from interp_toolkit.circuits.grid import Grid, Where, available, make_grid
from interp_toolkit.circuits.measuring import Measured, chunks, measure, plan_pairs
from interp_toolkit.circuits.metrics import Metric, MetricLike, metric_of
from interp_toolkit.circuits.results import Direction
from interp_toolkit.errors import InterpWarning, RunError
from interp_toolkit.model.cells import Cell, Swap
from interp_toolkit.model.layout import Layout
from interp_toolkit.model.schedule import Cost
from interp_toolkit.model.tokens import Inputs
from interp_toolkit.model.verify import verified
from interp_toolkit.model.wiring import Wiring
from interp_toolkit.provenance import provenance_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Order = Literal["exact", "gradient"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Sweep:
    """A sweep that is ready to be run, one way or another. Make it with `prepare_sweep`.

    Attributes:
        model: the model.
        wiring: what is known of it.
        pairs: the prompts and their answers.
        grid: the cells.
        metric: what is measured.
        direction: which run is patched.
        memory: bytes that passes may take, or None.
    """

    model: nn.Module
    wiring: Wiring
    pairs: Pairs
    grid: Grid
    metric: Metric
    direction: Direction
    memory: int | None = None

    def run(self, order: Order = "exact") -> Effects:
        """The effects of all cells: from a run each, or estimated from a gradient."""
        if order not in ("exact", "gradient"):
            raise RunError(
                f"order is 'exact' (a run for each cell) or 'gradient' (a first-order estimate), not {order!r}"
            )
        chunks = self._chunks()
        parts = [self._estimated(numbers) if order == "gradient" else self._measured(numbers) for numbers in chunks]
        effects = self._effects(parts, approximate=order == "gradient")
        warn_without_behaviour(effects)
        return effects

    def explain(self) -> str:
        """What running every cell costs, in words, before anything is run."""
        costs = [
            plan_pairs(self.model, self.pairs, n, self._cells(n)[0], self.metric, **self._how()).cost
            for n in self._chunks()
        ]
        total: Cost = functools.reduce(operator.add, costs)
        return total.summary()

    def agreement(self, estimates: Effects, *, top: int = 20) -> Agreement:
        """Run the cells with the largest estimates, and compare.

        Args:
            estimates: what `run("gradient")` gave.
            top: how many cells to run for each prompt: those with the largest mean estimates.
        """
        order = estimates.mean.flatten().abs().nan_to_num(-1.0).argsort(descending=True, stable=True)
        chosen = sorted(int(n) for n in order[:top])
        parts = [self._measured(numbers, chosen) for numbers in self._chunks()]
        exact = torch.cat([part.cells.view(-1, self._number)[:, chosen] for part in parts])
        guess = estimates.values.flatten(1)[:, chosen]
        base = estimates.base[:, None]
        return Agreement(
            labels=tuple(estimates.label(n) for n in chosen),
            estimated=((guess - base) * estimates.sign).mean(0),
            exact=((exact - base) * estimates.sign).mean(0),
        )

    @property
    def _number(self) -> int:
        return functools.reduce(operator.mul, self.grid.shape, 1)

    def _how(self) -> dict[str, Any]:
        return {"memory": self.memory, "layout": self.wiring.layout}

    def _chunks(self) -> list[list[int]]:
        """Pairs that are worked on together."""
        return chunks(self.wiring, self.pairs.lengths, [2] * len(self.pairs), self.grid.component, self.memory)

    def _cells(self, numbers: Sequence[int], chosen: Sequence[int] | None = None) -> tuple[list[Cell], list[int]]:
        """The cells over some pairs, and where each goes in the flattened values of those pairs."""
        cells, places = [], []
        for at, pair in enumerate(numbers):
            base, source = (2 * at + 1, 2 * at) if self.direction == "denoise" else (2 * at, 2 * at + 1)
            grid = self.grid.cells(pair)
            for n in range(len(grid)) if chosen is None else chosen:
                sites, where = grid[n]
                if available(sites, self.wiring):
                    swaps = tuple(Swap(site=site, source=source, positions=where) for site in sites)
                    cells.append(Cell(base=base, swaps=swaps))
                    places.append(at * self._number + n)
        return cells, places

    def _measured(self, numbers: Sequence[int], chosen: Sequence[int] | None = None) -> Measured:
        cells, places = self._cells(numbers, chosen)
        found = measure(
            plan_pairs(self.model, self.pairs, numbers, cells, self.metric, **self._how()),
            self.pairs,
            numbers,
            self.metric,
        )
        return found.placed(places, len(numbers) * self._number)

    def _estimated(self, numbers: Sequence[int]) -> Measured:
        cells, places = self._cells(numbers)
        found = estimate(self.wiring, self.pairs, numbers, cells, self.metric, self.direction)
        return found.placed(places, len(numbers) * self._number)

    def _effects(self, parts: Sequence[Measured], *, approximate: bool) -> Effects:
        clean, corrupt = (torch.cat([getattr(part, side) for part in parts]) for side in ("clean", "corrupt"))
        source, base = ("clean", "corrupt") if self.direction == "denoise" else ("corrupt", "clean")
        costs = [part.cost for part in parts if part.cost is not None]
        return Effects(
            title=f"Patching {self.grid.component} of the {source} run into the {base} run",
            axes=self.grid.axes,
            labels=self.grid.labels,
            values=torch.cat([part.cells for part in parts]).view(len(self.pairs), *self.grid.shape),
            base=corrupt if self.direction == "denoise" else clean,
            clean=clean,
            corrupt=corrupt,
            metric=self.metric.name,
            unit=self.metric.unit,
            larger_is_cleaner=self.metric.larger_is_cleaner,
            direction=self.direction,
            approximate=approximate,
            notes=notes_of(self.pairs) | ({"cost": functools.reduce(operator.add, costs).summary()} if costs else {}),
            provenance=provenance_of(self.model, self.wiring.layout),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Agreement:
    """Estimated and exact effects of the same cells, in the metric's unit, mean over prompts.

    Attributes:
        labels: of the cells.
        estimated: from the gradient.
        exact: from runs.
    """

    labels: tuple[tuple[str, ...], ...]
    estimated: Float[Tensor, " cell"]
    exact: Float[Tensor, " cell"]

    @property
    def correlation(self) -> float:
        """Pearson's correlation of the two; NaN for fewer than two cells."""
        if len(self.exact) < 2:
            return float("nan")
        return float(torch.corrcoef(torch.stack([self.estimated, self.exact]).double())[0, 1])

    @property
    def same_sign(self) -> float:
        """Share of the cells whose estimate has the sign of the exact effect."""
        return float((self.estimated.sign() == self.exact.sign()).double().mean())

    def summary(self) -> str:
        """The comparison in words."""
        ratio = float((self.estimated * self.exact).sum() / (self.exact * self.exact).sum().clamp_min(1e-30))
        worst = int((self.estimated - self.exact).abs().argmax())
        return (
            f"On the {len(self.exact)} cells with the largest estimates: correlation {self.correlation:.2f}, "
            f"{self.same_sign:.0%} of the right sign, estimates {ratio:.2f} times the exact effects; the worst is "
            f"{', '.join(self.labels[worst])}: {float(self.estimated[worst]):+.3f} for {float(self.exact[worst]):+.3f}."
        )


def prepare_sweep(
    model: nn.Module,
    clean: Inputs,
    corrupt: Inputs,
    *,
    answers: Answers = None,
    component: str = "resid",
    over: Sequence[str] = ("layer", "pos"),
    metric: MetricLike = "logit_diff",
    direction: Direction = "denoise",
    positions: Where = None,
    layers: Sequence[int] | None = None,
    indices: Sequence[int] | None = None,
    memory: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    layout: Layout | None = None,
) -> Sweep:
    """Check everything that a sweep needs, without running a cell; see `patch_sweep`.

    Returns:
        The sweep: `.explain()` says what it costs, `.run()` runs it, `.agreement()` checks estimates.
    """
    if direction not in ("denoise", "noise"):
        raise RunError(
            f"direction is 'denoise' (clean into corrupt) or 'noise' (corrupt into clean), not {direction!r}"
        )
    wiring, measured = verified(model, layout), metric_of(metric)
    pairs = prepare_pairs(model, clean, corrupt, answers, tokenizer=tokenizer, layout=layout)
    grid = make_grid(wiring, pairs, component, over, layers=layers, indices=indices, where=positions)
    return Sweep(
        model=model, wiring=wiring, pairs=pairs, grid=grid, metric=measured, direction=direction, memory=memory
    )


def notes_of(pairs: Pairs) -> dict[str, Any]:
    """What should be known of the prompts with a result."""
    answers = {pairs.answer_names(n) for n in range(len(pairs)) if pairs.targets[n]}
    target, foil = next(iter(answers), ("", ""))
    facts: dict[str, Any] = {
        "clean": [tokens.texts[0] if tokens.texts else tokens.row() for tokens in pairs.clean],
        "corrupt": [tokens.texts[0] if tokens.texts else tokens.row() for tokens in pairs.corrupt],
    }
    if answers:
        facts["answers"] = (
            f"{len(answers)} kinds of answers" if len(answers) > 1 else f"{target} − {foil}" if foil else target
        )
    return facts


def warn_without_behaviour(effects: Effects) -> None:
    """Warn when the clean prompts are not answered better than the corrupt ones."""
    worse = int((effects.gap <= 0).sum())
    if not worse:
        return
    many = len(effects.base)
    which = "the clean prompt is" if many == 1 else f"{worse} of {many} clean prompts are"
    warnings.warn(
        f"{which} not answered better than its corrupt one ({effects.metric}: clean {float(effects.clean.mean()):.2f}, "
        f"corrupt {float(effects.corrupt.mean()):.2f} on average): the model does not show the behaviour there, and "
        "effects mean little; leave such prompts out, or swap clean and corrupt",
        InterpWarning,
        stacklevel=4,
    )


__all__ = ["Agreement", "Order", "Sweep", "notes_of", "prepare_sweep", "warn_without_behaviour"]
