"""Schedules: what of many edited runs has to be computed, packed into passes, and what that costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from interp_toolkit.errors import RunError, TokenError
from interp_toolkit.model.cells import Base, Cell, Reducer, Work
from interp_toolkit.model.machine import token_bytes, token_limit
from interp_toolkit.model.packing import Shape, pack
from interp_toolkit.model.positions import PositionsLike, positions
from interp_toolkit.model.shortcuts import Shortcuts
from interp_toolkit.model.sites import Site
from interp_toolkit.model.wiring import Wiring

OVERHEAD = 48
"""What entering a block costs, in tokens; see `packing`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """What some cells of one base run gave.

    Attributes:
        base: number of the base run.
        cells: numbers of the cells, in the order of the rows.
        asked_logits: at the asked positions, of the asked tokens or of all; None where no logits were asked for.
        readings: what was read, from column `begin` on.
        begin: the first column of the readings; before it a cell equals its base.
    """

    base: int
    cells: tuple[int, ...]
    asked_logits: Float[Tensor, "cell pos vocab"] | None
    readings: Mapping[Site, Tensor] = field(default_factory=dict)
    begin: int = 0

    @property
    def logits(self) -> Float[Tensor, "cell pos vocab"]:
        """The logits at the asked positions.

        Raises:
            RunError: when none were asked for.
        """
        if self.asked_logits is None:
            raise RunError("no logits were asked for")
        return self.asked_logits


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a plan costs, against one full forward pass per cell.

    Attributes:
        cells: edited runs asked for.
        known: of them, those that are certain to equal their base run.
        bases: base runs.
        passes: forward passes over cells; base runs come besides.
        layer_tokens: positions times blocks that these go through.
        base_layer_tokens: the same for the base runs.
        naive_layer_tokens: of one full pass per cell, and the base runs.
        memory: bytes that the largest pass needs, and what is kept of the base runs.
        shortcuts: those that are used.
        off: those that are not, with the reason.
    """

    cells: int
    known: int
    bases: int
    passes: int
    layer_tokens: int
    base_layer_tokens: int
    naive_layer_tokens: int
    memory: int
    shortcuts: tuple[str, ...]
    off: dict[str, str]

    def __add__(self, other: Cost) -> Cost:
        """The cost of doing one after the other."""
        return Cost(
            cells=self.cells + other.cells,
            known=self.known + other.known,
            bases=self.bases + other.bases,
            passes=self.passes + other.passes,
            layer_tokens=self.layer_tokens + other.layer_tokens,
            base_layer_tokens=self.base_layer_tokens + other.base_layer_tokens,
            naive_layer_tokens=self.naive_layer_tokens + other.naive_layer_tokens,
            memory=max(self.memory, other.memory),
            shortcuts=self.shortcuts,
            off=self.off,
        )

    def summary(self) -> str:
        """The numbers in words."""
        run = self.layer_tokens + self.base_layer_tokens
        fewer = f"{self.naive_layer_tokens / max(run, 1):.1f} times fewer"
        lines = [
            f"cells: {self.cells:,} over {self.bases:,} base runs, {self.known:,} of them known without a run",
            f"forward passes: {self.passes:,} besides the base runs",
            f"layer-tokens: {run:,} ({self.base_layer_tokens:,} of them for the base runs)",
            f"one full pass per cell would take {self.naive_layer_tokens:,}: {fewer}",
            f"memory: about {self.memory / 2**20:,.0f} MiB beside the model",
            f"shortcuts: {', '.join(self.shortcuts) or 'none'}",
        ]
        return "\n".join([*lines, *(f"  without {name}: {reason}" for name, reason in self.off.items())])


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """What a plan is for.

    Attributes:
        bases: the base runs.
        cells: the edited runs.
        readout: for each base the columns whose logits are wanted.
        logits: whether any are.
        vocab: for each base the tokens whose logits are wanted; None for all.
        reads: sites read in every cell.
    """

    bases: tuple[Base, ...]
    cells: tuple[Cell, ...]
    readout: tuple[tuple[int, ...], ...]
    logits: bool
    vocab: tuple[tuple[int, ...], ...] | None
    reads: tuple[Site, ...]


def task_of(
    bases: Sequence[Base],
    cells: Sequence[Cell],
    *,
    logits: PositionsLike = "last",
    vocab: Sequence[Sequence[int]] | None = None,
    reads: Sequence[Site] = (),
) -> Task:
    """A task, checked: see `make_plan`.

    Raises:
        RunError: when there is nothing to do, or tokens are named for another number of base runs.
        PositionError: for positions that are not in a prompt.
    """
    if not bases:
        raise RunError("a plan needs at least one base run")
    wanted = not (isinstance(logits, Sequence) and not isinstance(logits, str) and not logits)
    if not wanted and not reads:
        raise RunError("a plan without logits and without readings has nothing to give")
    if vocab is not None and len(vocab) != len(bases):
        raise RunError(f"vocab names tokens for {len(vocab)} base runs, but there are {len(bases)}")
    return Task(
        bases=tuple(bases),
        cells=tuple(cells),
        readout=_readout(logits, bases) if wanted else tuple((len(base) - 1,) for base in bases),
        logits=wanted,
        vocab=None if vocab is None else tuple(tuple(ids) for ids in vocab),
        reads=tuple(reads),
    )


def _readout(logits: PositionsLike, bases: Sequence[Base]) -> tuple[tuple[int, ...], ...]:
    found = []
    for base in bases:
        where = positions(logits).bind(base.tokens)
        columns = where.columns(torch.arange(len(base))[None], torch.tensor([len(base)]))[0]
        if not columns:
            raise RunError(f"no token of the prompt {base.tokens.strings()} is at the positions {logits!r}")
        found.append(tuple(columns))
    return tuple(found)


def _depth(site: Site, layers: int) -> int:
    """How many blocks run before it is reached."""
    if site.layer is None:
        return 0 if site.component == "embed" else layers
    return site.layer + (site.component != "resid_pre")


class Schedule:
    """Cells over base runs, packed into passes.

    Args:
        wiring: the model.
        task: what is wanted.
        shortcuts: which of them to use.
        memory: bytes that passes may take; half of what is free if it is not given.
    """

    def __init__(self, wiring: Wiring, task: Task, shortcuts: Shortcuts, memory: int | None) -> None:
        self.wiring, self.task, self.shortcuts = wiring, task, shortcuts
        self.bases, self.cells = task.bases, task.cells
        self._check_vocab()
        reducer = Reducer(wiring, task.bases, task.readout, task.reads, resume=shortcuts.resume, logits=task.logits)
        self.reducer, self.own = reducer, reducer.own
        found = [reducer.work(number, cell) for number, cell in enumerate(task.cells)]
        self.known = tuple(n for n, work in enumerate(found) if work is None)
        if self.known and task.reads:
            raise RunError(f"cell {self.known[0]} changes nothing, so there is nothing to read in it")
        works = [work for work in found if work is not None]
        self.limit = token_limit(wiring, max(len(base) for base in task.bases), memory, self._logit_bytes())
        shape = Shape(
            layers=wiring.layout.num_layers,
            join=shortcuts.join and shortcuts.resume,
            prefix=shortcuts.prefix,
            overhead=OVERHEAD,
            limit=self.limit,
        )
        alike: dict[tuple[int, bool], list[Work]] = {}
        for work in works:
            # Where patterns change, the model's eager attention runs; it rounds otherwise, so other rows stay apart.
            squares = any(change.site.component in ("scores", "pattern") for change in work.changes)
            alike.setdefault((len(task.bases[work.base]), squares), []).append(work)
        self.passes = [made for (length, _), group in alike.items() for made in pack(group, length, shape)]

    def _logit_bytes(self) -> int:
        """What whole logits take for each token of a pass: themselves, and in float32 for a metric."""
        few = self.task.vocab is not None and self.shortcuts.readout is not None
        if not self.task.logits or few:
            return 0
        size = next(self.wiring.base.parameters()).element_size() + 8
        share = max(len(r) / len(b) for r, b in zip(self.task.readout, self.bases, strict=True))
        return int(share * self.wiring.shapes.get("logits", (0,))[-1] * size)

    def _check_vocab(self) -> None:
        size = self.wiring.shapes.get("logits", (0,))[-1]
        wrong = [i for ids in self.task.vocab or () for i in ids if not 0 <= i < size]
        if wrong and size:
            raise TokenError(f"token id {wrong[0]} is outside of the model's vocabulary: 0 to {size - 1}")
        if any(site.component == "logits" for site in self.task.reads):
            raise RunError("logits of cells are asked for with logits=, not read")

    @property
    def cost(self) -> Cost:
        """What it costs."""
        layers = self.wiring.layout.num_layers
        lengths = [len(base) for base in self.bases]
        depths = [_depth(site, layers) for site in self.task.reads]
        deepest = layers if self.task.logits else max(depths, default=layers)
        largest = max((len(p.jobs) * p.width for p in self.passes), default=0)
        used, off = self.shortcuts.described()
        return Cost(
            cells=len(self.cells),
            known=len(self.known),
            bases=len(self.bases),
            passes=len(self.passes),
            layer_tokens=sum(p.layer_tokens(deepest) for p in self.passes),
            base_layer_tokens=sum(lengths) * layers,
            naive_layer_tokens=(sum(lengths) + sum(lengths[cell.base] for cell in self.cells)) * layers,
            memory=(largest + sum(lengths)) * token_bytes(self.wiring, max(lengths)) + self._kept_bytes(),
            shortcuts=used,
            off=off,
        )

    def _kept_bytes(self) -> int:
        """What is kept of the base runs: the residual stream, keys and values."""
        size = next(self.wiring.base.parameters()).element_size()
        kept = self.wiring.layout.num_layers * 3 * self.wiring.layout.d_model
        return sum(len(base) for base in self.bases) * kept * size


__all__ = ["Answer", "Cost", "Schedule", "Task", "task_of"]
