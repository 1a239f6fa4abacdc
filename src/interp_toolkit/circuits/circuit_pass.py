"""One pass of circuit runs: every destination reads its own edges, every source is compared with the ablated run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp_toolkit.circuits.ablated import Ablated
from interp_toolkit.circuits.metrics import Metric, Question
from interp_toolkit.circuits.stream import Stream, apply_norm
from interp_toolkit.model.forward import execute
from interp_toolkit.model.prefix import prefix_cache
from interp_toolkit.model.session import logits_of
from interp_toolkit.model.tokens import Tokens
from interp_toolkit.model.wish import Change, Key, Place, Read, StandIn, Wish


@dataclass(kw_only=True, eq=False)
class _Inputs:
    """What the destinations of one layer read, as far as it is known."""

    attention: dict[str, Tensor]
    mlp: Tensor


class CircuitPass:
    """One pass of circuit runs: what every module reads, and what it wrote.

    Args:
        stream: the model as readers and writers.
        ablated: the ablated runs.
        masks: for each row the edges of its circuit.
        prompts: for each row the number of its pair among the ablated runs.
        enter: the layer at which the pass begins.
        known: what the sources in front of it write, the same in every row, or for each pair among the ablated runs.
    """

    grad = False
    """Whether gradients are kept."""

    def __init__(
        self,
        stream: Stream,
        ablated: Ablated,
        masks: Bool[Tensor, "row source dest"] | Float[Tensor, "row source dest"],
        prompts: Int[Tensor, " row"],
        enter: int = 0,
        known: Float[Tensor, "*pair source pos d_model"] | None = None,
    ) -> None:
        self.stream, self.graph, self.ablated = stream, stream.graph, ablated
        device = ablated.embed.device
        self.prompts, self.enter = prompts.to(device), enter
        rows, length, width = len(prompts), ablated.embed.shape[1], ablated.embed.shape[2]
        self.masks = masks.to(device=device, dtype=stream.dtype).transpose(1, 2).contiguous()
        self.written = ablated.embed.new_zeros(rows, self.graph.num_sources, length, width)
        self.written[:, 0] = ablated.embed[self.prompts]
        if known is not None:
            before = known[..., : self._source(enter), :, :]
            self.written[:, : self._source(enter)] = before[self.prompts] if known.ndim == 4 else before
        self._known: dict[int, _Inputs] = {}

    def logits(self) -> Float[Tensor, "row vocab"]:
        """Make the pass: the logits behind the last token."""
        start = 0 if self.ablated.prefix is None else self.ablated.first
        ids = self.ablated.clean[self.prompts.cpu()][:, start:]
        embed = self.ablated.embed
        wish = Wish(
            reads=frozenset(),
            grad=self.grad,
            changes=self.changes(),
            inputs=self.inputs(),
            stand_ins=self.stand_ins(),
            enter={self.enter: embed.new_zeros(len(ids), *embed.shape[1:])} if self.enter else {},
            logits_at=torch.full((1, 1), ids.shape[1] - 1),
        )
        cache = None if self.ablated.prefix is None else prefix_cache(self.ablated.prefix, self.prompts, start)
        _, output = execute(self.stream.wiring, Tokens(ids=ids, mask=torch.ones_like(ids)), wish, cache=cache)
        return logits_of(output)[:, -1]

    # --- what a session asks for -----------------------------------------------------------------------------------

    def changes(self) -> dict[Key, Change]:
        """What is seen of heads and MLPs, and what the logits read."""
        found: dict[Key, Change] = {}
        for layer in range(self.graph.num_layers):
            found["z", layer] = self._heads(layer)
            found["mlp_out", layer] = self._mlp_wrote(layer)
        found["resid_post", self.graph.num_layers - 1] = self._to_logits
        return found

    def inputs(self) -> dict[Place, Read]:
        """What MLPs are given."""
        entrances = self.stream.entrances
        return {(n, path): self._mlp_reads(n) for n in range(self.graph.num_layers) for path in entrances[n].mlp}

    def stand_ins(self) -> dict[Place, StandIn]:
        """What projections give."""
        return {
            (layer, projection.path): self._projected(layer, projection.path)
            for layer in range(self.graph.num_layers)
            for projection in self.stream.entrances[layer].projections
        }

    # --- one layer ---------------------------------------------------------------------------------------------------

    def _read(self, layer: int) -> _Inputs:
        """What the layer's destinations read of everything in front of the layer."""
        if layer not in self._known:
            self._known.clear()
            first, each = self._source(layer), self.graph.dests_per_layer
            places = slice(layer * each, (layer + 1) * each)
            read = self._sum(places, slice(0, first))
            heads = read[:, :-1] + self.ablated.before[layer][self.prompts][:, None]
            dtype = next(self.stream.wiring.base.parameters()).dtype
            normed = apply_norm(self.stream.attention_norm(layer), heads.transpose(0, 1), dtype)
            attention = self.stream.project(layer, normed.flatten(1, 2))
            self._known[layer] = _Inputs(
                attention=attention, mlp=read[:, -1] + self.ablated.middle[layer][self.prompts]
            )
        return self._known[layer]

    def _projected(self, layer: int, path: str) -> StandIn:
        def stand_in(x: Tensor, inner: object) -> Tensor:
            del inner
            return self._read(layer).attention[path].view(*x.shape[:-1], -1).to(x.dtype)

        return stand_in

    def _heads(self, layer: int) -> Change:
        def see(z: Tensor, columns: slice) -> Tensor:
            del columns
            first = self._source(layer)
            written = self.stream.write(layer, z, self.ablated.z[layer][self.prompts])
            self._write(slice(first, first + self.graph.num_heads), written)
            return z

        return see

    def _mlp_reads(self, layer: int) -> Read:
        def read(raw: Tensor) -> Tensor:
            x = self._read(layer).mlp
            if not self.graph.parallel:
                first, last = self._source(layer), self._source(layer + 1) - 1
                place = (layer + 1) * self.graph.dests_per_layer - 1
                x = x + self._sum(slice(place, place + 1), slice(first, last))[:, 0]
            return apply_norm(self.stream.mlp_norm(layer), x, raw.dtype).view(raw.shape)

        return read

    def _mlp_wrote(self, layer: int) -> Change:
        def see(x: Tensor, columns: slice) -> Tensor:
            del columns
            first, ablated = self._source(layer + 1) - 1, self.ablated.mlp[layer][self.prompts]
            self._write(slice(first, first + 1), (x.to(self.stream.dtype) - ablated.to(self.stream.dtype))[:, None])
            return x

        return see

    def _to_logits(self, x: Tensor, columns: slice) -> Tensor:
        del columns
        last = slice(self.graph.num_dests - 1, self.graph.num_dests)
        read = self._sum(last, slice(0, self.graph.num_sources))
        return (self.ablated.before[-1][self.prompts] + read[:, 0]).to(x.dtype)

    def _sum(self, dests: slice, sources: slice) -> Float[Tensor, "row dest pos d_model"]:
        """For each destination the sum of what its edges bring."""
        return _brought(self.masks[:, dests, sources], self.written[:, sources])

    def _write(self, sources: slice, content: Float[Tensor, "row source pos d_model"]) -> None:
        """Take down what sources write beside the ablated run."""
        self.written[:, sources] = content

    def _source(self, layer: int) -> int:
        return 1 + layer * (self.graph.num_heads + 1)


def _brought(
    masks: Float[Tensor, "row dest source"], written: Float[Tensor, "row source pos d_model"]
) -> Float[Tensor, "row dest pos d_model"]:
    found: Tensor = torch.bmm(masks, written.flatten(2)).unflatten(2, written.shape[2:])
    return found


class GatedPass(CircuitPass):
    """A pass of circuits whose edges may be open in part, with gradients with respect to how far.

    What sources write lies in one buffer that grows from layer to layer, and so do the slopes on the way back: nothing
    is copied for each layer. Autograd sees the buffer only through a token. The masks give the first one, every write
    takes it and gives a new one, every read takes it. So a write's backward is run when those of all reads behind it
    are done, and that of the masks last.

    Args:
        stream: the model as readers and writers.
        ablated: the ablated runs.
        masks: for each row how far each edge is open, from 0 to 1.
        prompts: for each row the number of its pair among the ablated runs.
    """

    grad = True

    def __init__(
        self,
        stream: Stream,
        ablated: Ablated,
        masks: Float[Tensor, "row source dest"],
        prompts: Int[Tensor, " row"],
    ) -> None:
        super().__init__(stream, ablated, masks.detach(), prompts)
        self._buffer = _Buffer(masks=self.masks, written=self.written)
        self._token: Tensor = _Opening.apply(masks, self._buffer)  # type: ignore[no-untyped-call]

    def _sum(self, dests: slice, sources: slice) -> Float[Tensor, "row dest pos d_model"]:
        found: Tensor = _Reading.apply(self._token, self._buffer, dests, sources)  # type: ignore[no-untyped-call]
        return found

    def _write(self, sources: slice, content: Float[Tensor, "row source pos d_model"]) -> None:
        self._token = _Writing.apply(content, self._token, self._buffer, sources)  # type: ignore[no-untyped-call]


@dataclass(kw_only=True, eq=False)
class _Buffer:
    """How far edges are open, what sources write, and the slopes at both, which reads add up."""

    masks: Tensor
    written: Tensor
    mask_slopes: Tensor | None = None
    slopes: Tensor | None = None


class _Opening(torch.autograd.Function):
    """The masks: their slopes are what all reads have added up."""

    @staticmethod
    def forward(ctx: Any, masks: Tensor, buffer: _Buffer) -> Tensor:
        ctx.buffer, ctx.dtype = buffer, masks.dtype
        return masks.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        del slopes
        found = ctx.buffer.mask_slopes
        ctx.buffer.slopes = ctx.buffer.mask_slopes = None
        return None if found is None else found.transpose(1, 2).to(ctx.dtype), None


class _Reading(torch.autograd.Function):
    """in_v = Σ_u M[u, v] W_u: adds <W_u, g_v> to the slope at M[u, v], and Σ_v M[u, v] g_v to that at W_u."""

    @staticmethod
    def forward(ctx: Any, token: Tensor, buffer: _Buffer, dests: slice, sources: slice) -> Tensor:
        del token
        ctx.buffer, ctx.dests, ctx.sources = buffer, dests, sources
        return _brought(buffer.masks[:, dests, sources], buffer.written[:, sources])

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        buffer, dests, sources = ctx.buffer, ctx.dests, ctx.sources
        if buffer.slopes is None or buffer.mask_slopes is None:
            buffer.slopes, buffer.mask_slopes = torch.zeros_like(buffer.written), torch.zeros_like(buffer.masks)
        slope = slopes[0].flatten(2)
        buffer.mask_slopes[:, dests, sources] += slope @ buffer.written[:, sources].flatten(2).transpose(1, 2)
        below = buffer.slopes[:, sources].flatten(2)  # a view: positions and features lie side by side
        below.baddbmm_(buffer.masks[:, dests, sources].transpose(1, 2), slope)
        return slope.new_zeros(()), None, None, None


class _Writing(torch.autograd.Function):
    """W_u is what source u writes: its slope is what all reads behind it have added up."""

    @staticmethod
    def forward(ctx: Any, content: Tensor, token: Tensor, buffer: _Buffer, sources: slice) -> Tensor:
        ctx.buffer, ctx.sources = buffer, sources
        buffer.written[:, sources] = content
        return token.clone()

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        known = ctx.buffer.slopes
        return None if known is None else known[:, ctx.sources].clone(), slopes[0], None, None


def values_of(
    metric: Metric, questions: Sequence[Question], logits: Float[Tensor, "row vocab"], rows: Sequence[int]
) -> Float[Tensor, " row"]:
    """The metric of each row.

    Args:
        metric: what is measured.
        questions: the pairs.
        logits: of circuit runs.
        rows: for each row the number of its pair.
    """
    found, order = [], []
    for pair in dict.fromkeys(rows):
        places = [n for n, other in enumerate(rows) if other == pair]
        needed = metric.needs(questions[pair])
        part = logits[places] if needed is None else logits[places][:, list(needed)]
        found.append(metric.measure(part, questions[pair]))
        order += places
    return torch.cat(found)[torch.tensor(order).argsort().to(logits.device)]


__all__ = ["CircuitPass", "GatedPass", "values_of"]
