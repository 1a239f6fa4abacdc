"""Edited runs the plain way, one full forward pass for each, to compare plans with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from interp_toolkit.model import Edit, Site, encode, run
from interp_toolkit.model.plan import Base, Cell, Plan, Swap, make_plan
from interp_toolkit.model.verify import verified
from tiny import tokens

LENGTH, SHARED = 11, 3


def prompts(number: int = 2, length: int = LENGTH, *, shared: int = SHARED, seed: int = 0) -> list[Base]:
    """Random prompts of one length that begin with the same tokens."""
    ids = tokens(number, length, seed)
    ids[:, :shared] = ids[:1, :shared]
    return [Base(tokens=encode(row[None])) for row in ids]


def swap(site: str | Site, *positions: int, source: int = 1) -> Swap:
    """A swap by the text of its site; of all positions if none is given."""
    return Swap(site=Site.parse(site), source=source, positions=positions or None)


def swaps_of(base: int, sites: Sequence[str | Site], positions: Sequence[int | None], source: int = 1) -> list[Cell]:
    """A cell for each site and position."""
    return [
        Cell(base=base, swaps=(swap(site, *([] if p is None else [p]), source=source),))
        for site in sites
        for p in positions
    ]


class Brute:
    """One full forward pass for each cell.

    Args:
        model: a causal language model.
        bases: what the cells count on.
        layout: for a model class of one's own.
    """

    def __init__(self, model: Any, bases: Sequence[Base], layout: Any = None) -> None:
        self.model, self.bases, self.layout = model, bases, layout
        self.known: dict[int, Any] = {}

    def source(self, base: int, site: Site) -> Tensor:
        """An activation of a base run."""
        if base not in self.known:
            asked, every = self.bases[base], verified(self.model, self.layout).available()
            reads = [site for site in every if site.component != "logits"]
            self.known[base] = run(
                self.model, asked.tokens, read=reads, edits=asked.edits, logits="last", layout=self.layout
            )
        found: Tensor = self.known[base][site]
        return found

    def edits(self, cell: Cell) -> list[Edit]:
        """Everything that changes in a cell's run: its base's edits, its swaps, its edits."""
        swaps = [
            Edit.set(
                s.site, self.source(s.source, s.site), positions=None if s.positions is None else list(s.positions)
            )
            for s in cell.swaps
        ]
        return [*self.bases[cell.base].edits, *swaps, *cell.edits]

    def run(self, cell: Cell, **wish: Any) -> Any:
        """The run of a cell."""
        return run(self.model, self.bases[cell.base].tokens, edits=self.edits(cell), layout=self.layout, **wish)

    def logits(self, cells: Sequence[Cell], where: Any = "last") -> list[Tensor]:
        """The logits of each cell."""
        return [self.run(cell, logits=where).logits[0] for cell in cells]


def answers(plan: Plan) -> dict[int, Tensor]:
    """What a plan gives for each cell, each exactly once."""
    found: dict[int, Tensor] = {}
    for answer in plan.run():
        assert len(answer.logits) == len(answer.cells)
        for row, number in enumerate(answer.cells):
            assert number not in found
            assert plan.schedule.cells[number].base == answer.base
            found[number] = answer.logits[row]
    assert sorted(found) == list(range(len(plan.schedule.cells)))
    return found


def off(found: Mapping[int, Tensor], expected: Sequence[Tensor]) -> list[float]:
    """By how much each cell is off, in units of the spread of all expected logits."""
    spread = torch.cat([x.flatten() for x in expected]).std()
    return [float((found[n] - x).abs().max() / spread) for n, x in enumerate(expected)]


def check(
    model: Any, bases: Sequence[Base], cells: Sequence[Cell], *, tolerance: float = 1e-4, **settings: Any
) -> Plan:
    """Plan, run, and compare with brute force, cell by cell; the plan that was run."""
    plan = make_plan(model, bases, cells, **settings)
    layout, where = settings.get("layout"), settings.get("logits", "last")
    expected = Brute(model, bases, layout).logits(cells, where)
    errors = off(answers(plan), expected)
    wrong = [f"{_words(cell)}: {e:.1e}" for cell, e in zip(cells, errors, strict=True) if not e <= tolerance]
    assert not wrong, "; ".join(wrong)
    return plan


def _words(cell: Cell) -> str:
    swaps = [f"{s.site} at {s.positions} from {s.source}" for s in cell.swaps]
    return f"base {cell.base}: {', '.join([*swaps, *map(repr, cell.edits)])}"


def usable(model: Any, components: Sequence[str], layer: int) -> list[Site]:
    """Sites of a layer that the model has, whole and, where it has heads or neurons, one of them."""
    wiring = verified(model)
    whole = [Site(name, layer) for name in components]
    found = [site for site in whole if site not in wiring.refused]
    return [*found, *(Site(s.component, s.layer, _one(wiring.shapes[s.component], s)) for s in found if _many(s))]


def _many(site: Site) -> bool:
    return site.kind.index_axis is not None


def _one(shape: Sequence[int], site: Site) -> int:
    return min(1, shape[site.kind.index_dim or 0] - 1)


__all__ = ["LENGTH", "SHARED", "Brute", "answers", "check", "off", "prompts", "swap", "swaps_of", "usable"]
