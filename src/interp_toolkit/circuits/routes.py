"""Routes: many paths through a model, patched together over many prompts."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from interp_toolkit.circuits.dataset import Pairs
from interp_toolkit.circuits.effects import Effects
from interp_toolkit.circuits.hops import Hops, Message, Received, Recorded, Sent, adds, record
from interp_toolkit.circuits.measuring import Measured, measure, plan_pairs
from interp_toolkit.circuits.metrics import Metric
from interp_toolkit.circuits.nodes import Port, Recomputed, behind, covers
from interp_toolkit.circuits.results import Direction
from interp_toolkit.circuits.sweeps import notes_of, warn_without_behaviour
from interp_toolkit.errors import RunError
from interp_toolkit.model.cells import Cell
from interp_toolkit.model.edits import Edit
from interp_toolkit.model.machine import free_memory
from interp_toolkit.model.positions import Positions
from interp_toolkit.model.sites import Site
from interp_toolkit.model.wiring import Wiring
from interp_toolkit.provenance import provenance_of

Stop = tuple[Port, ...]
"""The nodes of one step."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Routes:
    """Paths that are ready to be patched; see `path_patch` and `path_sweep`.

    Attributes:
        model: the model.
        wiring: what is known of it.
        pairs: the prompts and their answers.
        metric: what is measured.
        direction: which run is the base.
        recomputed: what is not frozen between steps.
        senders: where paths begin.
        groups: for each pair and group of positions the positions at which senders are changed.
        where: for all other positions that are named the columns in each pair.
        receivers: the second step of each path.
        then: the steps behind the second, of all paths.
        axes: names of the axes of senders, positions and receivers.
        labels: along each axis.
        title: what is done.
        notes: what should be known of it.
        memory: bytes that passes may take, or None.
    """

    model: nn.Module
    wiring: Wiring
    pairs: Pairs
    metric: Metric
    direction: Direction
    recomputed: Recomputed
    senders: tuple[Stop, ...]
    groups: tuple[tuple[tuple[int, ...], ...], ...]
    where: dict[Positions, tuple[tuple[int, ...], ...]]
    receivers: tuple[Stop, ...]
    then: tuple[Stop, ...]
    axes: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]
    title: str
    notes: dict[str, Any]
    memory: int | None = None

    def run(self) -> Effects:
        """The effect of every path; NaN where the receivers do not lie behind the senders."""
        number = len(self.senders) * len(self.groups[0])
        values = torch.full((len(self.pairs), number, len(self.receivers)), torch.nan)
        sides = torch.full((2, len(self.pairs)), torch.nan)
        costs = []
        for numbers, starts in self._units():
            found = self._measured(numbers, starts)
            values, sides = values.to(found.cells.dtype), sides.to(found.cells.dtype)
            values[numbers, starts[0] : starts[-1] + 1] = found.cells.view(len(numbers), len(starts), -1)
            sides[:, numbers] = torch.stack([found.clean, found.corrupt])
            costs += [] if found.cost is None else [found.cost]
        effects = Effects(
            title=self.title,
            axes=self.axes,
            labels=self.labels,
            values=values.view(len(self.pairs), *map(len, self.labels)),
            base=sides[1 if self.direction == "denoise" else 0],
            clean=sides[0],
            corrupt=sides[1],
            metric=self.metric.name,
            unit=self.metric.unit,
            larger_is_cleaner=self.metric.larger_is_cleaner,
            direction=self.direction,
            notes=notes_of(self.pairs) | self.notes | {"cost": functools.reduce(operator.add, costs).summary()},
            provenance=provenance_of(self.model, self.wiring.layout),
        )
        warn_without_behaviour(effects)
        return effects

    # --- what is worked on together --------------------------------------------------------------------------------

    def _units(self) -> list[tuple[list[int], list[int]]]:
        """Pairs and starts that are worked on together, so that what is kept of their runs fits into memory."""
        layout = self.wiring.layout
        allowed = (free_memory(torch.device("cpu")) // 2 if self.memory is None else self.memory) // 4
        wide = 4 * layout.d_model * max(4, next(self.wiring.base.parameters()).element_size())
        starts = list(range(len(self.senders) * len(self.groups[0])))
        most = max(self.pairs.lengths) * wide
        at_once = max(1, min(len(starts), allowed // most - 2 * layout.num_layers))
        together = max(1, allowed // (most * (2 * layout.num_layers + at_once)))
        chunks = [list(range(len(self.pairs)))[n : n + together] for n in range(0, len(self.pairs), together)]
        slices = [starts[n : n + at_once] for n in range(0, len(starts), at_once)]
        return list(itertools.product(chunks, slices))

    def _measured(self, numbers: list[int], starts: list[int]) -> Measured:
        hops = Hops(
            model=self.model,
            wiring=self.wiring,
            records=[self._record(number) for number in numbers],
            recomputed=self.recomputed,
            memory=self.memory,
        )
        messages = [(at, self._start(hops, at, number, n)) for at, number in enumerate(numbers) for n in starts]
        edits = self._ends(hops, numbers, messages)
        base = 1 if self.direction == "denoise" else 0
        # A path along which nothing changes is its base run; one that cannot be gone is left out.
        cells, places = [], []
        for n, (at, _) in enumerate(messages):
            senders = self.senders[starts[n % len(starts)] // len(self.groups[0])]
            for r, receivers in enumerate(self.receivers):
                if passable([senders, receivers, *self.then], self.wiring):
                    cells.append(Cell(base=2 * at + base, edits=edits[n][r]))
                    places.append(n * len(self.receivers) + r)
        plan = plan_pairs(
            self.model, self.pairs, numbers, cells, self.metric, memory=self.memory, layout=self.wiring.layout
        )
        found = measure(plan, self.pairs, numbers, self.metric).placed(places, len(messages) * len(self.receivers))
        cost = functools.reduce(operator.add, [plan.cost, *hops.costs])
        return Measured(cells=found.cells, clean=found.clean, corrupt=found.corrupt, cost=cost)

    def _record(self, number: int) -> Recorded:
        """The base run and the source run of a pair, as far as they are needed."""
        layers = range(self.wiring.layout.num_layers)
        sent = {port.site.whole for senders in self.senders for port in senders}
        passing = [*self.receivers, *self.then[:-1]] if self.then else []
        passed = {_output(port) for stop in passing for port in stop}
        everything = {Site(name, layer) for name in ("z", "mlp_out") for layer in layers}
        sites = sent | (passed if adds(self.recomputed, self.wiring) else everything)
        clean, corrupt = self.pairs.clean[number], self.pairs.corrupt[number]
        base, source = (corrupt, clean) if self.direction == "denoise" else (clean, corrupt)
        return record(self.wiring, base, source, sorted(sites, key=lambda site: site.depth(len(layers))))

    def _start(self, hops: Hops, at: int, number: int, start: int) -> Message:
        """What the senders of one start write in the source run."""
        senders, group = divmod(start, len(self.groups[0]))
        found = []
        for port in self.senders[senders]:
            columns = self.groups[number][group] if port.positions is None else self.where[port.positions][number]
            sent = hops.records[at].sent(port, columns)
            found += [] if sent is None else [sent]
        return tuple(found)

    # --- along the paths -------------------------------------------------------------------------------------------

    def _ends(
        self, hops: Hops, numbers: Sequence[int], messages: Sequence[tuple[int, Message]]
    ) -> list[list[tuple[Edit, ...]]]:
        """For each start and receivers the changes of the base run at the end of the path."""
        ports = {port: None for receivers in self.receivers for port in receivers if not _is_logits(receivers)}
        received = hops.receive(messages, list(ports))
        found: list[list[tuple[Edit, ...]]] = [[() for _ in self.receivers] for _ in messages]
        waiting: list[tuple[int, int, int, Received]] = []
        for n, (at, message) in enumerate(messages):
            for r, receivers in enumerate(self.receivers):
                if _is_logits(receivers):
                    found[n][r] = hops.to_logits(at, message)
                    continue
                parts = self._entered(receivers, received[n], numbers[at])
                if self.then:
                    waiting.append((n, r, at, parts))
                else:
                    found[n][r] = tuple(sent.edit for sent in parts.values())
        for stop, last in ((stop, stop is self.then[-1]) for stop in self.then):
            written = hops.pass_on([(at, parts) for _, _, at, parts in waiting])
            carried = [(at, message) for (_, _, at, _), message in zip(waiting, written, strict=True)]
            if _is_logits(stop):
                for (n, r, _, _), (at, message) in zip(waiting, carried, strict=True):
                    found[n][r] = hops.to_logits(at, message)
                break
            after = hops.receive(carried, stop)
            waiting = [
                (n, r, at, self._entered(stop, parts, numbers[at]))
                for (n, r, at, _), parts in zip(waiting, after, strict=True)
            ]
            if last:
                for n, r, _, parts in waiting:
                    found[n][r] = tuple(sent.edit for sent in parts.values())
        return found

    def _entered(self, stop: Stop, received: Received, number: int) -> Received:
        """What some nodes received, at the positions at which they are entered."""
        found = {}
        for port in stop:
            sent = received.get(port)
            if sent is None:
                continue
            where = sent.columns
            if port.positions is not None:
                where = tuple(c for c in self.where[port.positions][number] if c >= where[0])
            if where:
                found[port] = Sent(site=sent.site, value=sent.value, columns=where)
        return found


def passable(stops: Sequence[Stop], wiring: Wiring) -> bool:
    """Whether at each step some node reads what one of the step before writes."""
    return all(
        any(behind(port, sender, wiring) for sender in before for port in stop)
        for before, stop in itertools.pairwise(stops)
    )


def check_senders(stop: Stop) -> None:
    """Refuse what cannot begin a path.

    Raises:
        RunError: for inputs of heads, and the logits.
    """
    for port in stop:
        if port.inside:
            heads = ", ".join(f"'L{port.site.layer}H{head}'" for head in port.heads)
            raise RunError(f"a path begins with what a component writes: write {heads} in place of {port.name!r}")
        if port.site.component == "logits":
            raise RunError("'logits' is the end of a path, not its begin")


def check_receivers(stop: Stop, wiring: Wiring, *, last: bool) -> None:
    """Refuse what cannot be entered.

    Raises:
        RunError: for `embed`, for `logits` on the way, and for a part of a key/value group at the end.
    """
    for port in stop:
        if port.site.component == "embed":
            raise RunError("'embed' lies in front of everything: it can only begin a path")
        if port.site.component == "logits" and not last:
            raise RunError("'logits' is the end of a path: no step lies behind it")
        if last and not covers(stop, port, wiring):
            raise RunError(
                f"{port.name} at the end of a path would change the other heads of its key/value group too: name the "
                f"group ({str(port.site)!r}, all its heads), the whole head ('L{port.site.layer}H{port.heads[0]}'), or "
                "go on to 'logits'"
            )


def check_order(stops: Sequence[Stop], wiring: Wiring) -> None:
    """Refuse a path on which a node lies behind none of the step before, or in front of none of the next.

    Raises:
        RunError: naming the nodes.
    """
    for before, stop in itertools.pairwise(stops):
        for port in stop:
            if not any(behind(port, sender, wiring) for sender in before):
                names = " or ".join(sender.name for sender in before)
                raise RunError(f"{port.name} does not lie behind {names}, so that no path leads there")
        for sender in before:
            if not any(behind(port, sender, wiring) for port in stop):
                names = " or ".join(port.name for port in stop)
                raise RunError(f"{sender.name} does not lie in front of {names}, so that no path leads there")


def _is_logits(stop: Stop) -> bool:
    return stop[0].site.component == "logits"


def _output(port: Port) -> Site:
    """The whole site that a node writes."""
    return Site("z", port.site.layer) if port.inside else port.site.whole


__all__ = ["Routes", "Stop", "check_order", "check_receivers", "check_senders", "passable"]
