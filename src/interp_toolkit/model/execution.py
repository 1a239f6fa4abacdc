"""Carrying out a plan: base runs first, then its passes, each answered for base by base.

A pass that runs out of memory is cut in two and tried again, down to a single row; the answers do not change.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from interp_toolkit.errors import EditError, RunError
from interp_toolkit.model.base_runs import BaseGroup, Kept, KeysValues, base_groups
from interp_toolkit.model.cells import RowEdit, RowSwap, Work, entering_stream
from interp_toolkit.model.forward import execute
from interp_toolkit.model.machine import out_of_memory
from interp_toolkit.model.packing import Pass
from interp_toolkit.model.schedule import Answer, Schedule
from interp_toolkit.model.session import logits_of
from interp_toolkit.model.shortcuts import rows_of_unembedding
from interp_toolkit.model.sites import Site
from interp_toolkit.model.tokens import Tokens
from interp_toolkit.model.wiring import Wiring
from interp_toolkit.model.wish import Change, Key, Wish

_NORMED: Key = ("final_norm", None)


class RowChanges:
    """The changes of a packed pass at one site."""

    def __init__(self, sources: dict[int, Kept]) -> None:
        self.sources = sources
        self.items: list[tuple[int, RowEdit | RowSwap]] = []

    def __call__(self, x: Tensor, window: slice) -> Tensor:
        """The site with every row's changes, in a new tensor."""
        new = x.clone()
        for row, change in self.items:
            if isinstance(change, RowSwap):
                kept = self.sources[change.swap.source]
                where = kept.row[change.swap.source]
                value = kept.readings[(change.site.component, change.site.layer)][where : where + 1]
                change.write(new, row, window, value, kept.begin)
            else:
                change.write(new, row, window)
        self.items = []
        return new


class Execution:
    """A schedule being carried out: iterate over it for the answers, as passes end.

    Args:
        schedule: what to do.
        progress: whether to show a progress bar.
    """

    def __init__(self, schedule: Schedule, *, progress: bool = False) -> None:
        self.schedule, self.task, self.wiring = schedule, schedule.task, schedule.wiring
        self.progress = progress
        self.kept: dict[int, Kept] = {}
        self.ready = False
        self.joins = schedule.shortcuts.join and schedule.shortcuts.resume
        self.by_rows = self.task.vocab is not None and schedule.shortcuts.readout is not None

    def __iter__(self) -> Iterator[Answer]:
        """The answers, in no particular order of cells."""
        from tqdm import tqdm

        self._run_bases()
        yield from self._known()
        number = sum(len(made.jobs) for made in self.schedule.passes)
        with tqdm(total=number, disable=None if self.progress else True, unit=" cells", leave=False) as bar:
            for made in self.schedule.passes:
                for answer in self._fitting(made):
                    bar.update(len(answer.cells))
                    yield answer

    def base_logits(self, base: int, tokens: Sequence[int] | None = None) -> Float[Tensor, "pos vocab"]:
        """The logits of a base run at the readout positions.

        Args:
            base: number of the base run.
            tokens: those whose logits are wanted; all if it is not given.

        Raises:
            RunError: when no logits were asked for.
        """
        self._run_bases()
        kept = self.kept[base]
        if kept.outputs is None:
            raise RunError("no logits were asked for")
        row = kept.row[base]
        return self._logits(kept.outputs[row : row + 1], tokens)[0]

    # --- base runs -------------------------------------------------------------------------------------------

    def _run_bases(self) -> None:
        """Run every base once, and keep what the cells will need of it."""
        if self.ready:
            return
        for group in base_groups(self.schedule):
            self._base_pass(group)
        self.ready = True

    def _base_pass(self, group: BaseGroup) -> None:
        from interp_toolkit.model.prefix import keeping_cache, kept_in

        numbers, start = group.numbers, group.start
        ids = torch.cat([self.schedule.bases[number].tokens.ids[:, start:] for number in numbers])
        changes = self._changes([(row, change) for row, n in enumerate(numbers) for change in self.schedule.own[n]])
        keeping = keeping_cache(self.wiring.layout.num_layers) if group.keep else None
        behind = [(self.kept[partner], self.kept[partner].row[partner]) for partner in group.partners]
        cache = self._prefix(behind, start) if start else keeping
        columns = [[column - start for column in self.task.readout[number]] for number in numbers]
        try:
            # The base's own edits may lie behind what is read.
            through = bool(changes)
            outputs, readings = self._pass(ids, {}, changes, group.reads, columns, cache=cache, through=through)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            if len(numbers) == 1:
                raise _too_large(ids.shape[1]) from error
            outputs, readings = None, None
        if readings is None:
            # Behind the handler, whose error holds on to what the pass had in memory.
            _empty_cache()
            middle = len(numbers) // 2
            for half in (slice(None, middle), slice(middle, None)):
                self._base_pass(replace(group, numbers=numbers[half], partners=group.partners[half]))
            return
        kept = Kept(
            row={number: row for row, number in enumerate(numbers)},
            readings=readings,
            outputs=outputs,
            begin=start,
            caches=None if keeping is None else kept_in(keeping),
        )
        self.kept |= dict.fromkeys(numbers, kept)

    # --- passes ----------------------------------------------------------------------------------------------

    def _fitting(self, made: Pass[Work]) -> Iterator[Answer]:
        """The answers of one pass, cut in two as often as memory asks for."""
        try:
            found = self._cells_pass(made)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            if len(made.jobs) == 1:
                raise _too_large(made.width) from error
            found = None
        if found is not None:
            yield from found
            return
        _empty_cache()
        middle = len(made.jobs) // 2
        for half in (made.jobs[:middle], made.jobs[middle:]):
            yield from self._fitting(Pass(length=made.length, start=made.start, jobs=half))

    def _cells_pass(self, made: Pass[Work]) -> list[Answer]:
        jobs, start = made.jobs, made.start
        kept_rows = [(self.kept[job.base], self.kept[job.base].row[job.base]) for job in jobs]
        changes = self._changes([(row, change) for row, job in enumerate(jobs) for change in job.changes])
        ids = torch.cat([self.schedule.bases[job.base].tokens.ids[:, start:] for job in jobs])
        cache = self._prefix(kept_rows, start) if start else None
        enter = self._entering(jobs, kept_rows, start) if self.schedule.shortcuts.resume else {}
        shared = ids[:1] if self.joins else ids
        columns = [[max(0, c - start) for c in self.task.readout[job.base]] for job in jobs]
        outputs, readings = self._pass(shared, enter, changes, frozenset(self.task.reads), columns, cache=cache)
        return self._answers(jobs, start, outputs, readings)

    def _pass(
        self,
        ids: Tensor,
        enter: dict[int, Tensor],
        changes: dict[Key, Change],
        reads: frozenset[Site],
        columns: Sequence[Sequence[int]],
        cache: object = None,
        through: bool = False,
    ) -> tuple[Tensor | None, dict[Key, Tensor]]:
        """One forward pass: what the readout needs, and the readings."""
        normed = self.task.logits and self.by_rows
        index = torch.tensor(columns) if self.task.logits or through else None
        wish = Wish(
            reads=reads | ({Site("final_norm")} if normed else set()),
            enter=enter,
            changes=changes,
            stop=normed or not (self.task.logits or through),
            logits_at=None if normed else index,
        )
        if not (wish.reads or self.task.logits or through):
            return None, {}
        session, output = execute(self.wiring, Tokens(ids=ids, mask=torch.ones_like(ids)), wish, cache=cache)
        silent = [str(Site(*key)) for key, change in changes.items() if isinstance(change, RowChanges) and change.items]
        if silent:
            raise EditError(f"changes at {', '.join(silent)} never fired: does the model use these modules?")
        readings = {key: parts[0] for key, parts in session.readings.items()}
        if normed:
            whole = readings[_NORMED] if Site("final_norm") in reads else readings.pop(_NORMED)
            at = torch.tensor(columns, device=whole.device)
            return whole.gather(1, at[:, :, None].expand(-1, -1, whole.shape[-1])), readings
        return (logits_of(output).detach() if self.task.logits else None), readings

    def _changes(self, items: Sequence[tuple[int, RowEdit | RowSwap]]) -> dict[Key, Change]:
        made: dict[Key, RowChanges] = {}
        for row, change in items:
            key = (change.site.component, change.site.layer)
            made.setdefault(key, RowChanges(self.kept)).items.append((row, change))
        return dict(made)

    def _entering(self, jobs: Sequence[Work], kept_rows: Sequence[tuple[Kept, int]], start: int) -> dict[int, Tensor]:
        """For each layer the rows that enter there, in order."""
        if self.joins or len({job.entry for job in jobs}) == 1:
            enter: dict[int, list[tuple[Kept, int]]] = {}
            for job, kept in zip(jobs, kept_rows, strict=True):
                enter.setdefault(job.entry, []).append(kept)
            return {
                layer: _gathered([(kept.readings[_stream(layer, self.wiring)], row) for kept, row in rows])[:, start:]
                for layer, rows in enter.items()
            }
        raise RunError("rows that enter at different layers were packed into one pass, but this model cannot join them")

    def _prefix(self, kept_rows: Sequence[tuple[Kept, int]], start: int) -> object:
        from interp_toolkit.model.prefix import prefix_cache

        stores = list({id(kept): kept for kept, _ in kept_rows}.values())
        offsets, total = {}, 0
        for kept in stores:
            offsets[id(kept)] = total
            total += len(kept.row)
        layers = zip(*(kept.caches for kept in stores if kept.caches is not None), strict=True)
        known = [_beside(layer, start) for layer in layers]
        device = next((layer.keys.device for layer in known if layer is not None), None)
        rows = torch.tensor([offsets[id(kept)] + row for kept, row in kept_rows], device=device)
        return prefix_cache(known, rows, start)

    # --- answers ---------------------------------------------------------------------------------------------

    def _known(self) -> Iterator[Answer]:
        """The answers for cells that equal their base."""
        by_base: dict[int, list[int]] = {}
        for number in self.schedule.known:
            by_base.setdefault(self.schedule.cells[number].base, []).append(number)
        for base, numbers in by_base.items():
            logits = self.base_logits(base, None if self.task.vocab is None else self.task.vocab[base])
            yield Answer(base=base, cells=tuple(numbers), asked_logits=logits.expand(len(numbers), -1, -1))

    def _answers(
        self, jobs: Sequence[Work], start: int, outputs: Tensor | None, readings: dict[Key, Tensor]
    ) -> list[Answer]:
        by_base: dict[int, list[int]] = {}
        for row, job in enumerate(jobs):
            by_base.setdefault(job.base, []).append(row)
        found = []
        for base, rows in by_base.items():
            logits = None
            if outputs is not None:
                part = self._with_earlier(outputs if len(by_base) == 1 else outputs[rows], base, start)
                logits = self._logits(part, None if self.task.vocab is None else self.task.vocab[base])
            parts = {Site(*key): x if len(by_base) == 1 else x[rows] for key, x in readings.items()}
            cells = tuple(jobs[row].cell for row in rows)
            found.append(Answer(base=base, cells=cells, asked_logits=logits, readings=parts, begin=start))
        return found

    def _with_earlier(self, outputs: Tensor, base: int, start: int) -> Tensor:
        """Positions in front of the pass are those of the base run."""
        earlier = [n for n, column in enumerate(self.task.readout[base]) if column < start]
        kept = self.kept[base]
        if not earlier or kept.outputs is None:
            return outputs
        outputs = outputs.clone()
        outputs[:, earlier] = kept.outputs[kept.row[base], earlier].to(outputs.dtype)
        return outputs

    def _logits(self, outputs: Tensor, tokens: Sequence[int] | None) -> Tensor:
        if not self.by_rows:
            return outputs if tokens is None else outputs[..., list(tokens)]
        return rows_of_unembedding(self.wiring, outputs, tokens, self.schedule.shortcuts.readout)


def _beside(parts: Sequence[KeysValues | None], length: int) -> KeysValues | None:
    """Keys and values of several groups of base runs as one."""
    found = [part for part in parts if part is not None]
    if len(found) < len(parts):
        return None
    if len(found) == 1:
        return found[0]
    keys = torch.cat([part.keys[:, :, :length] for part in found])
    return KeysValues(keys=keys, values=torch.cat([part.values[:, :, :length] for part in found]))


def _stream(layer: int, wiring: Wiring) -> Key:
    site = entering_stream(layer, wiring)
    return site.component, site.layer


def _gathered(parts: Sequence[tuple[Tensor, int]]) -> Tensor:
    """Rows of several tensors, in order."""
    if len({id(x) for x, _ in parts}) == 1:
        return parts[0][0][[row for _, row in parts]]
    return torch.stack([x[row] for x, row in parts])


def _too_large(width: int) -> RunError:
    return RunError(
        f"one run over {width} tokens does not fit into memory: use a shorter prompt, a smaller precision or fewer "
        "readings"
    )


def _empty_cache() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


__all__ = ["Execution", "RowChanges"]
