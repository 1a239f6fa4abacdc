"""Hops: what travels along a path, from the output of some nodes to the inputs of others and through them.

A **message** is what a base run's components write differently: a sender's activation of the source run, or what a node
made of a changed input. Between two steps of a path all other heads and MLPs keep the base run's values, except those
that are recomputed. Where none is, the residual stream at a receiver is the base run's plus what the senders write
differently, so that one block is all that has to be run; otherwise the frozen nodes are set one by one.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp_toolkit.circuits.nodes import Port, Recomputed, behind, stream_of, written_at
from interp_toolkit.model.cells import Base, Cell
from interp_toolkit.model.edits import Edit
from interp_toolkit.model.heads import weight_by_head
from interp_toolkit.model.plan import make_plan
from interp_toolkit.model.run import run
from interp_toolkit.model.schedule import Cost
from interp_toolkit.model.sites import Site
from interp_toolkit.model.tokens import Tokens, encode
from interp_toolkit.model.wiring import Wiring


@dataclass(frozen=True, kw_only=True, eq=False)
class Sent:
    """What one site has in place of its base run's activation.

    Attributes:
        site: where.
        value: the activation, `[1, pos, ...]`; meaningless outside of the columns.
        columns: the positions at which it differs.
    """

    site: Site
    value: Float[Tensor, "one pos ..."]
    columns: tuple[int, ...]

    @property
    def edit(self) -> Edit:
        """The edit that puts it there."""
        return Edit.set(self.site, self.value, positions=list(self.columns))


Message = tuple[Sent, ...]
"""What some nodes write differently, in one prompt."""
Received = dict[Port, Sent]
"""What a message makes of the inputs of some nodes."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Recorded:
    """A base run and its source run.

    Attributes:
        tokens: of the base run.
        begin: the first position at which the two can differ.
        base: what was read in the base run, `[1, pos, ...]` for each whole site.
        source: the same of the source run.
    """

    tokens: Tokens
    begin: int
    base: Mapping[Site, Tensor]
    source: Mapping[Site, Tensor]

    @property
    def length(self) -> int:
        """How many tokens the prompts have."""
        return int(self.tokens.ids.shape[1])

    def sent(self, port: Port, columns: Sequence[int]) -> Sent | None:
        """A sender's activation of the source run at some positions, or None where nothing can differ."""
        where = tuple(c for c in columns if c >= self.begin)
        value = self.source[port.site.whole]
        if port.site.index is not None:
            value = value[:, :, port.site.index]
        return Sent(site=port.site, value=value, columns=where) if where else None


@dataclass(frozen=True, kw_only=True, eq=False)
class _Change:
    """What a component adds to the residual stream beside the base run's."""

    at: tuple[int, int]
    value: Float[Tensor, "one pos d_model"]
    columns: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Hops:
    """Messages carried over base runs.

    Attributes:
        model: the model.
        wiring: what is known of it.
        records: the base runs. A message comes with the number of its own.
        recomputed: what is not frozen between steps.
        memory: bytes that passes may take, or None.
        costs: what was run so far.
    """

    model: nn.Module
    wiring: Wiring
    records: Sequence[Recorded]
    recomputed: Recomputed
    memory: int | None = None
    costs: list[Cost] = field(default_factory=list)

    @property
    def added(self) -> bool:
        """Whether what the senders write differently can be added to the residual stream."""
        return adds(self.recomputed, self.wiring)

    def receive(self, messages: Sequence[tuple[int, Message]], ports: Sequence[Port]) -> list[Received]:
        """What each message makes of the inputs of some nodes, each on its own.

        Args:
            messages: with the numbers of their base runs.
            ports: the nodes; those in front of a message's senders receive nothing.

        Returns:
            For each message, from the first position that changes on, what the nodes that it reaches receive.
        """
        found: list[Received] = [{} for _ in messages]
        changes = [self._changes(*message) for message in messages] if self.added else []
        for group in self._together(ports):
            stream = max((stream_of(port, self.wiring) for port in group), key=self._depth)
            cells, whose = [], []
            for n, (prompt, message) in enumerate(messages):
                if not any(self._reaches(message, port) for port in group):
                    continue
                edits = self._added(changes[n], stream) if changes else self._frozen(prompt, message, group)
                cells.append(Cell(base=prompt, edits=edits))
                whose.append(n)
            readings = self._read(cells, sorted({port.site.whole for port in group}, key=self._depth))
            for n, values in zip(whose, readings, strict=True):
                reached = [port for port in group if self._reaches(messages[n][1], port)]
                found[n] |= {port: self._part(port, values, messages[n][1]) for port in reached}
        return found

    def pass_on(self, received: Sequence[tuple[int, Mapping[Port, Sent]]]) -> list[Message]:
        """What nodes write when they are entered by what they received, all else being the base run's."""
        found = [[sent for port, sent in parts.items() if not port.inside] for _, parts in received]
        jobs: dict[int, list[tuple[int, tuple[int, ...], tuple[Sent, ...]]]] = {}
        for n, (_, parts) in enumerate(received):
            for layer, heads, entered in _by_heads(parts):
                jobs.setdefault(layer, []).append((n, heads, entered))
        for layer, every in jobs.items():
            site = Site("z", layer)
            cells = [Cell(base=received[n][0], edits=tuple(sent.edit for sent in entered)) for n, _, entered in every]
            for (n, heads, entered), values in zip(every, self._read(cells, [site]), strict=True):
                after = tuple(range(min(sent.columns[0] for sent in entered), values[site].shape[1]))
                found[n] += [
                    Sent(site=Site("z", layer, head), value=values[site][:, :, head], columns=after) for head in heads
                ]
        return [tuple(parts) for parts in found]

    def to_logits(self, prompt: int, message: Message) -> tuple[Edit, ...]:
        """The changes of a base run in which a message goes to the logits directly."""
        if not message:
            return ()
        end = Port(site=Site("logits"))
        if self.added:
            return self._added(self._changes(prompt, message), stream_of(end, self.wiring))
        return self._frozen(prompt, message, [end])

    # --- everything frozen: what the senders write differently is added to the residual stream ---------------------

    def _changes(self, prompt: int, message: Message) -> list[_Change]:
        base, layers = self.records[prompt].base, self.wiring.layout.num_layers
        found = []
        heads: dict[int, list[Sent]] = {}
        for sent in message:
            if sent.site.component == "z":
                heads.setdefault(sent.site.layer or 0, []).append(sent)
                continue
            wide = torch.promote_types(sent.value.dtype, torch.float32)
            value = sent.value.to(wide) - base[sent.site].to(wide)
            found.append(
                _Change(at=written_at(sent.site, layers), value=_only(value, sent.columns), columns=sent.columns)
            )
        for layer, parts in heads.items():
            columns = tuple(sorted({c for sent in parts for c in sent.columns}))
            value = _attention_change(self.wiring, layer, base[Site("z", layer)], parts)
            found.append(_Change(at=written_at(parts[0].site, layers), value=_only(value, columns), columns=columns))
        return found

    def _added(self, changes: Sequence[_Change], stream: Site) -> tuple[Edit, ...]:
        """The edit that adds to a residual stream what is written in front of it."""
        parts = [change for change in changes if change.at < self._depth(stream)]
        if not parts:
            return ()
        total = functools.reduce(operator.add, [part.value.to(parts[0].value.device) for part in parts])
        columns = sorted({c for part in parts for c in part.columns})
        return (Edit.add(stream, total, positions=columns),)

    # --- something recomputed: all else is set to what it is in the base run ---------------------------------------

    def _frozen(self, prompt: int, message: Message, ports: Sequence[Port]) -> tuple[Edit, ...]:
        """The base run's values at all that is frozen between senders and receivers, and what the senders write."""
        record = self.records[prompt]
        start = min(written_at(sent.site, self.wiring.layout.num_layers) for sent in message)
        end = max(self._depth(stream_of(port, self.wiring)) for port in ports)
        columns = list(range(min(sent.columns[0] for sent in message), record.length))
        found = []
        for layer in range(max(start[0], 0), self.wiring.layout.num_layers):
            sites = [*self._frozen_heads(layer), *([] if layer in self.recomputed.mlps else [Site("mlp_out", layer)])]
            for site in sites:
                if start <= written_at(site, self.wiring.layout.num_layers) < end:
                    value = record.base[site.whole]
                    value = value if site.index is None else value[:, :, site.index]
                    found.append(Edit.set(site, value, positions=columns))
        written = [sent for sent in message if written_at(sent.site, self.wiring.layout.num_layers) < end]
        return (*found, *(sent.edit for sent in written))

    def _frozen_heads(self, layer: int) -> list[Site]:
        every = range(self.wiring.layout.num_heads)
        frozen = [head for head in every if (layer, head) not in self.recomputed.heads]
        return [Site("z", layer)] if len(frozen) == len(every) else [Site("z", layer, head) for head in frozen]

    # --- runs ------------------------------------------------------------------------------------------------------

    def _together(self, ports: Sequence[Port]) -> list[list[Port]]:
        """Ports that can be read in one run: of one residual stream, or with other nodes frozen of any."""
        found: dict[Site | None, list[Port]] = {}
        for port in ports:
            # What is frozen cannot be read where it is frozen.
            alone = stream_of(port, self.wiring) if self.added else None if port.inside else port.site.whole
            found.setdefault(alone, []).append(port)
        return list(found.values())

    def _read(self, cells: Sequence[Cell], sites: Sequence[Site]) -> list[dict[Site, Tensor]]:
        """What is read in each cell, `[1, pos, ...]`."""
        found: list[dict[Site, Tensor]] = [{} for _ in cells]
        if not cells:
            return found
        bases = [Base(tokens=record.tokens) for record in self.records]
        plan = make_plan(
            self.model,
            bases,
            cells,
            read=sites,
            logits=[],
            memory=self.memory,
            layout=self.wiring.layout,
        )
        self.costs.append(plan.cost)
        for answer in plan.run():
            for row, cell in enumerate(answer.cells):
                found[cell] = {site: _padded(x[row : row + 1], answer.begin) for site, x in answer.readings.items()}
        return found

    def _part(self, port: Port, values: Mapping[Site, Tensor], message: Message) -> Sent:
        value = values[port.site.whole]
        first = min(sent.columns[0] for sent in message)
        return Sent(
            site=port.site,
            value=value if port.site.index is None else value[:, :, port.site.index],
            columns=tuple(range(first, value.shape[1])),
        )

    def _depth(self, site: Site) -> tuple[int, int]:
        return site.depth(self.wiring.layout.num_layers)

    def _reaches(self, message: Message, port: Port) -> bool:
        return any(behind(port, Port(site=sent.site), self.wiring) for sent in message)


def adds(recomputed: Recomputed, wiring: Wiring) -> bool:
    """Whether nothing is recomputed, and the model's residual stream was proved to be the sum that it should be."""
    needed = {"resid_pre", "head_out", "attn_out", *(() if wiring.layout.parallel else ("resid_mid",))}
    return recomputed.nothing and not any(site.component in needed for site in wiring.refused)


def record(wiring: Wiring, base: Tokens, source: Tokens, sites: Sequence[Site]) -> Recorded:
    """Run a prompt and its source once, and keep some sites."""
    both = encode(torch.cat([base.ids, source.ids]))
    readings = run(wiring.model, both, read=list(sites), layout=wiring.layout)
    unequal = (base.ids != source.ids)[0].nonzero()
    return Recorded(
        tokens=base,
        begin=int(unequal[0]) if len(unequal) else int(base.ids.shape[1]),
        base={site: x[:1] for site, x in readings.items()},
        source={site: x[1:] for site, x in readings.items()},
    )


def _by_heads(parts: Mapping[Port, Sent]) -> list[tuple[int, tuple[int, ...], tuple[Sent, ...]]]:
    """The heads that are entered by queries, keys or values: those with the same inputs together, with their layer."""
    inputs: dict[tuple[int, int], list[Sent]] = {}
    for port, sent in parts.items():
        for head in port.heads if port.inside else ():
            inputs.setdefault((port.site.layer or 0, head), []).append(sent)
    groups: dict[tuple[int, tuple[Site, ...]], list[int]] = {}
    for (layer, head), entered in inputs.items():
        groups.setdefault((layer, tuple(sent.site for sent in entered)), []).append(head)
    return [(layer, tuple(heads), tuple(inputs[layer, heads[0]])) for (layer, _), heads in groups.items()]


def _attention_change(
    wiring: Wiring, layer: int, base: Float[Tensor, "one pos head d_head"], parts: Sequence[Sent]
) -> Float[Tensor, "one pos d_model"]:
    """What some heads of a layer add to the residual stream beside the base run's, in float32 at least.

    Where a norm stands between heads and residual stream it sees all heads of the layer, the others as they are in the
    base run.
    """
    changed = base.clone()
    for sent in parts:
        at = list(sent.columns)
        if sent.site.index is None:
            changed[:, at] = sent.value[:, at]
        else:
            changed[:, at, sent.site.index] = sent.value[:, at]
    wide = torch.promote_types(base.dtype, torch.float32)
    layout = wiring.layout
    projection = wiring.at(layer, layout.projection)
    weight = weight_by_head(projection, layout.num_heads) if layout.attn_norm is None else None
    if weight is not None:
        heads = sorted({h for s in parts for h in (range(len(weight)) if s.site.index is None else [s.site.index])})
        difference = changed[:, :, heads].to(wide) - base[:, :, heads].to(wide)
        return torch.einsum("bphi,hid->bpd", difference, weight[heads].to(wide)) * layout.multiplier
    outputs: Tensor = projection(torch.cat([changed, base]).flatten(-2))
    if layout.attn_norm is not None:
        outputs = wiring.at(layer, layout.attn_norm)(outputs)
    after, before = outputs.to(wide).split(1)
    added: Tensor = (after - before) * layout.multiplier
    return added


def _only(value: Tensor, columns: Sequence[int]) -> Tensor:
    """A change with zeros outside of its columns."""
    kept = torch.zeros_like(value)
    kept[:, list(columns)] = value[:, list(columns)]
    return kept


def _padded(x: Tensor, begin: int) -> Tensor:
    """A reading with as many positions as the prompt; those that were not run are zeros that nothing looks at."""
    return x if not begin else torch.cat([x.new_zeros(1, begin, *x.shape[2:]), x], dim=1)


__all__ = [
    "Hops",
    "Message",
    "Received",
    "Recorded",
    "Sent",
    "adds",
    "record",
]
