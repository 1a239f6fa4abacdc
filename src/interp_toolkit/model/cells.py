"""Cells: edited runs over base runs, and what of them has to be computed.

A `Base` is a run of one prompt, perhaps edited. A `Cell` is the same run with more changes: edits, or activations
swapped in from another base. `work_of` finds the layer and the position at which a cell begins to differ from its base,
and which of its changes can have no effect at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from interp_toolkit.errors import EditError, PositionError, RunError
from interp_toolkit.model.edits import Edit, apply_edit
from interp_toolkit.model.positions import PositionsLike, positions
from interp_toolkit.model.run import bind
from interp_toolkit.model.sites import COMPONENTS, Site
from interp_toolkit.model.tokens import Tokens, encode
from interp_toolkit.model.wiring import Wiring


@dataclass(frozen=True, kw_only=True, eq=False)
class Base:
    """A run of one prompt, from which cells differ.

    Attributes:
        tokens: the prompt, one row without padding.
        edits: what is changed in this run itself, and in all its cells.
    """

    tokens: Tokens
    edits: tuple[Edit, ...] = ()

    def __post_init__(self) -> None:
        """Take padding away."""
        if len(self.tokens) != 1:
            raise RunError(f"a base run is of one prompt, but {len(self.tokens)} were given")
        if self.tokens.padded:
            object.__setattr__(self, "tokens", encode([self.tokens.row()], tokenizer=self.tokens.tokenizer))

    def __len__(self) -> int:
        """How many tokens it has."""
        return int(self.tokens.ids.shape[1])


@dataclass(frozen=True, kw_only=True)
class Swap:
    """An activation of another base run, put in the same place of this one.

    Attributes:
        site: where.
        source: number of the base run that it is taken from, which has as many tokens.
        positions: for which tokens, counted from 0; None for all.
    """

    site: Site
    source: int
    positions: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Cell:
    """One edited run.

    Attributes:
        base: number of the base run that it changes.
        swaps: activations of other base runs to put into it.
        edits: other changes. Values broadcast against the site with one row: `[1, pos, ...]`.
    """

    base: int
    swaps: tuple[Swap, ...] = ()
    edits: tuple[Edit, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class RowEdit:
    """An edit of one row, its positions known as columns."""

    edit: Edit
    columns: tuple[int, ...]

    @property
    def site(self) -> Site:
        """Where it acts."""
        return self.edit.site

    def write(self, x: Tensor, row: int, window: slice) -> bool:
        """Change a row in place; whether any of its positions lies in the window."""
        selected = torch.zeros(1, window.stop, dtype=torch.bool)
        selected[0, list(self.columns)] = True
        selected = selected[:, window]
        if not selected.any():
            return False
        part = x[row : row + 1]
        part.copy_(apply_edit(self.edit, part, selected, window))
        return True


@dataclass(frozen=True, kw_only=True, eq=False)
class RowSwap:
    """A swap in one row, its positions known as columns."""

    swap: Swap
    columns: tuple[int, ...]

    @property
    def site(self) -> Site:
        """Where it acts."""
        return self.swap.site

    def write(self, x: Tensor, row: int, window: slice, value: Tensor, begin: int) -> bool:
        """Put an activation into a row, in place.

        Args:
            x: the site's tensor of the whole batch.
            row: which row of it.
            window: the columns that it holds.
            value: the source's activation, one row.
            begin: the first column that this holds.

        Returns:
            Whether any of its positions lies in the window.
        """
        columns = [c for c in self.columns if window.start <= c < window.stop]
        if not columns:
            return False
        part, source, site = x[row : row + 1], value.to(x.device), self.site
        if site.index is not None and site.kind.index_dim is not None:
            part, source = (t.select(site.kind.index_dim, site.index) for t in (part, source))
        dim = site.axes.index("pos")
        if columns[-1] - columns[0] + 1 == len(columns):
            taken = source.narrow(dim, columns[0] - begin, len(columns))
            part.narrow(dim, columns[0] - window.start, len(columns)).copy_(taken)
        else:
            index = torch.tensor(columns, device=x.device)
            taken = source.index_select(dim, index - begin).to(x.dtype)
            part.index_copy_(dim, index - window.start, taken)
        return True


@dataclass(frozen=True, kw_only=True, eq=False)
class Work:
    """What is left to compute of a cell.

    Attributes:
        cell: its number.
        base: its base run.
        entry: the layer in front of which its row enters.
        first: the first column at which it differs from its base.
        changes: in the order of the forward pass.
    """

    cell: int
    base: int
    entry: int
    first: int
    changes: tuple[RowEdit | RowSwap, ...] = field(repr=False)


class Reducer:
    """Finds what of cells has to be computed.

    Args:
        wiring: the model.
        bases: all base runs.
        readout: for each base the columns whose logits are wanted.
        reads: sites that are read in every cell.
        resume: whether rows may enter at a layer.
        logits: whether any logits are wanted; otherwise runs end behind the deepest reading.

    Raises:
        SiteError, PositionError, EditError: for edits of the bases that do not fit.
    """

    def __init__(
        self,
        wiring: Wiring,
        bases: Sequence[Base],
        readout: Sequence[Sequence[int]],
        reads: Sequence[Site],
        *,
        resume: bool,
        logits: bool,
    ) -> None:
        self.wiring, self.bases, self.readout, self.reads, self.resume = wiring, bases, readout, reads, resume
        self.layers = wiring.layout.num_layers
        depths = [site.depth(self.layers) for site in reads]
        self.deepest = (self.layers + 1, 0) if logits else max(depths)
        self.own = [self._edits(base.edits, base) for base in bases]
        self._begins: dict[tuple[int, int], int] = {}
        self._unequal: dict[tuple[int, int], frozenset[int]] = {}

    def work(self, number: int, cell: Cell) -> Work | None:
        """What of a cell has to be computed, or None when it is certain to equal its base.

        Raises:
            SiteError, PositionError, EditError, RunError: for changes that do not fit.
        """
        if not 0 <= cell.base < len(self.bases):
            raise RunError(f"cell {number} names base run {cell.base}, but there are {len(self.bases)}")
        edits = self._edits(cell.edits, self.bases[cell.base])
        swaps = self._live_swaps(cell, edits)
        changes: list[RowEdit | RowSwap] = [*swaps, *edits]
        late = [str(change.site) for change in changes if change.site.depth(self.layers) > self.deepest]
        if late:
            raise RunError(
                f"cell {number} changes {', '.join(late)}, behind its deepest reading: read further, or ask for logits"
            )
        mixing = any(map(self._mixes, [*self.own[cell.base], *changes]))
        if not self.reads and not mixing:
            wanted = self.readout[cell.base]
            changes = [c for c in changes if _reaches(c.site, c.columns, wanted, self.layers)]
        if not changes:
            return None
        places = [_layer(site, self.layers) for site in [*(c.site for c in changes), *self.reads]]
        entry = _entered(min(places), self.wiring) if self.resume else 0
        every = [*self._again(cell.base, entry), *changes]
        return Work(
            cell=number,
            base=cell.base,
            entry=entry,
            first=0 if mixing else min(change.columns[0] for change in changes),
            changes=tuple(sorted(every, key=lambda change: change.site.depth(self.layers))),
        )

    def _mixes(self, change: RowEdit | RowSwap) -> bool:
        """Whether a change may carry something to earlier tokens, or has to see all of them."""
        if isinstance(change, RowEdit):
            return mixes(change.edit)
        return change.site.component == "pattern" and any(map(self._mixes, self.own[change.swap.source]))

    def _live_swaps(self, cell: Cell, edits: Sequence[RowEdit]) -> list[RowSwap]:
        """The swaps of a cell, at the positions where they can matter.

        Where the two runs are the same, a swap keeps the base's value: that matters only behind other changes.
        """
        asked = [self._swap(cell.base, swap) for swap in cell.swaps]
        differing = [self._differing(cell.base, swap) for swap in asked]
        live = [(edit.columns[0], edit.site.depth(self.layers)) for edit in edits]
        live += [(cs[0], swap.site.depth(self.layers)) for swap, cs in zip(asked, differing, strict=True) if cs]
        if not live:
            return []
        every: list[RowEdit | RowSwap] = [*self.own[cell.base], *edits, *asked]
        mixing = any(map(self._mixes, every))
        first = 0 if mixing else min(column for column, _ in live)
        depth = min(depth for _, depth in live)
        edited = {edit.site for edit in edits}
        between = edited | {e.site for e in self.own[cell.base]} | {swap.site for swap in asked}
        found = []
        for swap, apart in zip(asked, differing, strict=True):
            behind = swap.site.depth(self.layers) >= depth
            columns = tuple(c for c in swap.columns if c in apart or (behind and c >= first))
            if columns:
                site = swap.site if swap.site in edited else self._same_stream(swap, between)
                found.append(RowSwap(swap=Swap(site=site, source=swap.swap.source, positions=columns), columns=columns))
        return found

    def _differing(self, base: int, swap: RowSwap) -> tuple[int, ...]:
        """The columns of a swap at which the two runs can differ there."""
        source = swap.swap.source
        begin = self.differ(base, source)
        unequal = self.unequal(base, source) if _before_mixing(swap.site) else None
        return tuple(c for c in swap.columns if c >= begin and (unequal is None or c in unequal))

    def _same_stream(self, swap: RowSwap, between: set[Site]) -> Site:
        """Behind a block is in front of the next, unless something happens there: one block less to run."""
        site = swap.site
        if site.component != "resid_post" or site.layer == self.layers - 1:
            return site
        following = Site("resid_pre", (site.layer or 0) + 1)
        there = between | {edit.site for edit in self.own[swap.swap.source]}
        return site if following in self.wiring.refused or following in there else following

    def _swap(self, base: int, swap: Swap) -> RowSwap:
        """A swap at all of its positions."""
        if not 0 <= swap.source < len(self.bases):
            raise RunError(f"a swap names base run {swap.source}, but there are {len(self.bases)}")
        length, other = len(self.bases[base]), len(self.bases[swap.source])
        if length != other:
            raise RunError(f"a swap between prompts of {length} and {other} tokens: they must have as many")
        wanted = tuple(range(length)) if swap.positions is None else tuple(sorted(set(swap.positions)))
        if wanted and not 0 <= wanted[0] <= wanted[-1] < length:
            raise PositionError(f"positions {list(wanted)} are outside of a prompt of {length} tokens")
        site = self.wiring.check(swap.site)
        if site.component == "logits":
            raise EditError("a planned run cannot swap its logits: change them when you have them")
        return RowSwap(swap=Swap(site=site, source=swap.source, positions=wanted), columns=wanted)

    def differ(self, base: int, source: int) -> int:
        """The first column at which two base runs can differ."""
        key = (base, source)
        if key not in self._begins:
            self._begins[key] = differ_from(self.bases[base], self.bases[source])
        return self._begins[key]

    def unequal(self, base: int, source: int) -> frozenset[int]:
        """The columns at which two base runs can differ before any attention."""
        key = (base, source)
        if key not in self._unequal:
            first, second = self.bases[base], self.bases[source]
            columns = (first.tokens.ids != second.tokens.ids)[0].nonzero()[:, 0].tolist()
            edited = first.edits or second.edits
            self._unequal[key] = frozenset(range(len(first)) if edited else columns)
        return self._unequal[key]

    def _edits(self, edits: Sequence[Edit], base: Base) -> list[RowEdit]:
        found = []
        for edit in edits:
            bound = bind(edit, self.wiring, base.tokens)
            if bound.site.component == "logits":
                raise EditError("a planned run cannot edit its logits: change them when you have them")
            if bound.rows is not None:
                raise EditError(f"{edit!r} names rows, but a base run is one prompt")
            columns = _columns(bound.positions, base)
            if not columns:
                raise EditError(f"{edit!r} never fires: no token of the prompt is at its positions")
            found.append(RowEdit(edit=bound, columns=columns))
        return found

    def _again(self, base: int, entry: int) -> list[RowEdit]:
        """The base's own edits that its cells go through again; the residual they enter with has the others."""
        own = [change for change in self.own[base] if change.site.depth(self.layers) <= self.deepest]
        if not self.resume:
            return own
        entered = entering_stream(entry, self.wiring).depth(self.layers)
        return [change for change in own if change.site.depth(self.layers) > entered]


def entering_stream(layer: int, wiring: Wiring) -> Site:
    """The residual stream with which a row enters: in front of block 0 the one before any edit of `resid_pre.0`."""
    embed = Site("embed")
    return embed if layer == 0 and embed not in wiring.refused else Site("resid_pre", layer)


def mixes(edit: Edit) -> bool:
    """Whether an edit may carry something from a token to earlier ones, or has to see all tokens.

    Functions do: they see the whole site. So do patterns that look at later tokens.
    """
    if edit.operation == "apply":
        return True
    if edit.site.component != "pattern" or edit.operation == "scale":
        return False
    value = torch.as_tensor(edit.value)
    later = value.triu(1) if value.ndim > 1 else value
    return edit.operation == "project_out" or bool(later.any())


def _before_mixing(site: Site) -> bool:
    """Whether a site holds nothing but what its own token brings along."""
    return site.component == "embed" or (site.layer == 0 and site.kind.order <= COMPONENTS["v"].order)


def differ_from(first: Base, second: Base) -> int:
    """The first column at which two runs of one length can differ."""
    unequal = (first.tokens.ids != second.tokens.ids)[0].nonzero()
    begin = int(unequal[0]) if len(unequal) else len(first)
    places = [[_columns(edit.positions, base) for edit in base.edits] for base in (first, second)]
    same = first.edits == second.edits and places[0] == places[1]
    if same and begin == len(first):
        return begin
    if any(map(mixes, (*first.edits, *second.edits))):
        return 0
    return begin if same else min([begin, *(columns[0] for part in places for columns in part if columns)])


def _columns(where: PositionsLike, base: Base) -> tuple[int, ...]:
    index = torch.arange(len(base))[None]
    selected = positions(where).bind(base.tokens).select(index, torch.tensor([len(base)]))[0]
    return tuple(int(c) for c in selected.nonzero()[:, 0])


def _layer(site: Site, layers: int) -> int:
    return layers - 1 if site.layer is None and site.component != "embed" else site.layer or 0


def _entered(layer: int, wiring: Wiring) -> int:
    """The deepest layer not behind this one in front of which the residual stream can be read."""
    while layer and Site("resid_pre", layer) in wiring.refused:
        layer -= 1
    return layer


def _reaches(site: Site, columns: Sequence[int], readout: Sequence[int], layers: int) -> bool:
    """Whether a change can reach the logits that are wanted: in the last layer only attention moves between tokens."""
    if columns[0] > max(readout):
        return False
    moved = site.layer != layers - 1 if site.layer is not None else site.component == "embed"
    return moved or site.kind.order <= COMPONENTS["v"].order or bool(set(columns) & set(readout))


__all__ = ["Base", "Cell", "Reducer", "RowEdit", "RowSwap", "Swap", "Work", "differ_from", "entering_stream", "mixes"]
