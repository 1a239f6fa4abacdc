"""One pass of circuit runs: every destination reads its own edges, every source is compared with the ablated run."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp_toolkit.circuits.ablated import Ablated
from interp_toolkit.circuits.stream import Stream, apply_norm
from interp_toolkit.model.wish import Change, Key, Place, Read, StandIn


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
        known: what the sources in front of it write, the same in every row.
    """

    def __init__(
        self,
        stream: Stream,
        ablated: Ablated,
        masks: Bool[Tensor, "row source dest"],
        prompts: Int[Tensor, " row"],
        enter: int = 0,
        known: Float[Tensor, "source pos d_model"] | None = None,
    ) -> None:
        self.stream, self.graph, self.ablated = stream, stream.graph, ablated
        device = ablated.embed.device
        self.prompts = prompts.to(device)
        rows, length, width = len(prompts), ablated.embed.shape[1], ablated.embed.shape[2]
        self.masks = masks.to(device=device, dtype=stream.dtype).transpose(1, 2).contiguous()
        self.written = ablated.embed.new_zeros(rows, self.graph.num_sources, length, width)
        self.written[:, 0] = ablated.embed[self.prompts]
        if known is not None:
            self.written[:, : self._source(enter)] = known[: self._source(enter)]
        self._known: dict[int, _Inputs] = {}

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
            read = self._sum(self.masks[:, places, :first], self.written[:, :first])
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
            self.written[:, first : first + self.graph.num_heads] = written
            return z

        return see

    def _mlp_reads(self, layer: int) -> Read:
        def read(raw: Tensor) -> Tensor:
            x = self._read(layer).mlp
            if not self.graph.parallel:
                first, last = self._source(layer), self._source(layer + 1) - 1
                place = (layer + 1) * self.graph.dests_per_layer - 1
                x = x + self._sum(self.masks[:, place : place + 1, first:last], self.written[:, first:last])[:, 0]
            return apply_norm(self.stream.mlp_norm(layer), x, raw.dtype).view(raw.shape)

        return read

    def _mlp_wrote(self, layer: int) -> Change:
        def see(x: Tensor, columns: slice) -> Tensor:
            del columns
            self.written[:, self._source(layer + 1) - 1] = x.to(self.stream.dtype) - self.ablated.mlp[layer][
                self.prompts
            ].to(self.stream.dtype)
            return x

        return see

    def _to_logits(self, x: Tensor, columns: slice) -> Tensor:
        del columns
        return (self.ablated.before[-1][self.prompts] + self._sum(self.masks[:, -1:], self.written)[:, 0]).to(x.dtype)

    def _sum(
        self, masks: Float[Tensor, "row dest source"], written: Float[Tensor, "row source pos d_model"]
    ) -> Float[Tensor, "row dest pos d_model"]:
        """For each destination the sum of what its edges bring."""
        return torch.bmm(masks, written.flatten(2)).unflatten(2, written.shape[2:])

    def _source(self, layer: int) -> int:
        return 1 + layer * (self.graph.num_heads + 1)


__all__ = ["CircuitPass"]
