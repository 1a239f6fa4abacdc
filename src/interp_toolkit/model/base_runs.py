"""Which base runs share a forward pass, what is read in each, and from which column it has to be run.

A run from which cells only take activations is the same as its cells' own base run up to the first different token: it
is run from there on, behind that run's keys and values. Few short prompts share one pass instead, since entering the
blocks twice would cost more than the tokens that are saved.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from interp_toolkit.model.cells import RowSwap, Work, entering_stream
from interp_toolkit.model.schedule import OVERHEAD, Schedule
from interp_toolkit.model.sites import Site
from interp_toolkit.model.wish import Key


@dataclass(frozen=True, kw_only=True)
class BaseGroup:
    """Base runs of one length that share a pass.

    Attributes:
        numbers: the base runs.
        reads: what is read in each.
        keep: whether keys and values are kept.
        start: the first column that is run.
        partners: for each run the base run whose keys and values lie before that column.
    """

    numbers: tuple[int, ...]
    reads: frozenset[Site]
    keep: bool
    start: int = 0
    partners: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class KeysValues:
    """What one layer's attention has cached, `[base, kv_head, pos, d_head]` each."""

    keys: Tensor
    values: Tensor


@dataclass(kw_only=True)
class Kept:
    """What is known of base runs of one length: one row each.

    Attributes:
        row: for each base run its row here.
        readings: by site, `[row, pos, ...]`.
        outputs: at the readout columns: normed residual streams or logits, `[row, readout, ...]`.
        begin: the first column that the readings hold.
        caches: for each layer keys and values, as far as the run went; None where they are not needed.
    """

    row: dict[int, int]
    readings: dict[Key, Tensor] = field(default_factory=dict)
    outputs: Tensor | None = None
    begin: int = 0
    caches: list[KeysValues | None] | None = None


@dataclass(kw_only=True)
class _Need:
    """What is needed of one base run.

    `cells` says whether cells enter from it, `start` from which column it differs from the run it is swapped into.
    """

    length: int
    cells: bool
    reads: frozenset[Site]
    start: int = 0
    partner: int = -1


def base_groups(schedule: Schedule) -> Iterator[BaseGroup]:
    """The passes over base runs, in an order in which partners come first."""
    needs = _needs(schedule)
    prefix = schedule.shortcuts.prefix and any(w.first for made in schedule.passes for w in made.jobs)
    by_length: dict[int, list[int]] = {}
    for number, need in enumerate(needs):
        by_length.setdefault(need.length, []).append(number)
    for length, numbers in by_length.items():
        saved = sum(needs[n].start for n in numbers)
        if length * len(numbers) <= schedule.limit and saved <= OVERHEAD:
            reads = frozenset(site for n in numbers for site in needs[n].reads)
            yield BaseGroup(numbers=tuple(numbers), reads=reads, keep=prefix)
            continue
        alike: dict[tuple[bool, frozenset[Site], int], list[int]] = {}
        for n in numbers:
            alike.setdefault((not needs[n].cells, needs[n].reads, needs[n].start), []).append(n)
        for (only_source, reads, start), group in sorted(alike.items(), key=lambda item: (item[0][0], item[0][2])):
            rows = max(1, schedule.limit // (length - start))
            for begin in range(0, len(group), rows):
                part = tuple(group[begin : begin + rows])
                yield BaseGroup(
                    numbers=part,
                    reads=reads,
                    keep=prefix and not only_source,
                    start=start,
                    partners=tuple(needs[n].partner for n in part) if start else (),
                )


def _needs(schedule: Schedule) -> list[_Need]:
    works = [work for made in schedule.passes for work in made.jobs]
    entered = {work.base for work in works}
    entries = {work.entry for work in works} if schedule.shortcuts.resume else set()
    streams = frozenset(entering_stream(entry, schedule.wiring) for entry in entries)
    read: dict[int, set[Site]] = {}
    partners: dict[int, set[int]] = {}
    least: dict[int, int] = {}
    for work, change in _swaps(works):
        least[change.swap.source] = min(change.columns[0], least.get(change.swap.source, change.columns[0]))
        read.setdefault(change.swap.source, set()).add(change.site.whole)
        partners.setdefault(change.swap.source, set()).add(work.base)
    found = []
    for number, base in enumerate(schedule.bases):
        cells = number in entered
        # Passes over cells end behind their deepest reading: their base runs go as far.
        reads = frozenset(read.get(number, ())) | (streams | frozenset(schedule.task.reads) if cells else frozenset())
        need = _Need(length=len(base), cells=cells, reads=reads)
        with_whom = partners.get(number, set())
        if schedule.shortcuts.prefix and not cells and len(with_whom) == 1:
            (partner,) = with_whom
            # What is taken and the readout have to be computed too.
            needed = (*schedule.task.readout[number], least[number])
            need.start = min(schedule.reducer.differ(partner, number), *needed)
            need.partner = partner
        found.append(need)
    return found


def _swaps(works: Sequence[Work]) -> Iterator[tuple[Work, RowSwap]]:
    for work in works:
        for change in work.changes:
            if isinstance(change, RowSwap):
                yield work, change


__all__ = ["BaseGroup", "Kept", "KeysValues", "base_groups"]
