"""What heads and MLPs read from the residual stream, and what they write into it, edge by edge.

A destination (one head's queries, one group's keys or values) gets a residual stream of its own. It goes through the
block's norm, and only that head's rows of the projection are multiplied. Queries, keys and values are never split in
the forward pass of a model.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp_toolkit.circuits.graph_shape import Graph
from interp_toolkit.model.entrances import INPUTS, Entrance, entrances_of, linear_map
from interp_toolkit.model.heads import head_outputs, weight_by_head
from interp_toolkit.model.sites import Site
from interp_toolkit.model.wiring import Wiring


@dataclass(frozen=True, kw_only=True, eq=False)
class Stream:
    """A model's blocks as readers and writers of the residual stream.

    Attributes:
        wiring: the model.
        graph: its graph.
        entrances: how each block reads.
    """

    wiring: Wiring
    graph: Graph
    entrances: tuple[Entrance, ...]
    _maps: dict[tuple[int, str], tuple[Tensor, Tensor | None]] = field(default_factory=dict, repr=False)
    _writers: dict[int, Tensor] = field(default_factory=dict, repr=False)

    @property
    def layers(self) -> int:
        """How many blocks there are."""
        return self.graph.num_layers

    @property
    def dtype(self) -> torch.dtype:
        """In which sums over sources are made."""
        return torch.promote_types(next(self.wiring.base.parameters()).dtype, torch.float32)

    @property
    def frozen(self) -> tuple[str, ...]:
        """What of this model is not linear in the residual stream and therefore taken from the run itself, in words."""
        found = []
        if self.wiring.layout.attn_norm is not None:
            found.append(
                "the norm behind attention: its scale is that of the run, made by all heads of the layer, so that even "
                "edges into heads that lead nowhere, which circuits leave out, count a little"
            )
        mixed = sorted({name for entrance in self.entrances for name in entrance.mixed})
        if mixed:
            found.append(f"the norm over all heads' {' and '.join(mixed)}: its scale is that of the run")
        return tuple(found)

    # --- reading ---------------------------------------------------------------------------------------------

    def attention_norm(self, layer: int) -> nn.Module | None:
        """The norm in front of attention."""
        norm = self.entrances[layer].norm
        return None if norm is None else self.wiring.at(layer, norm)

    def mlp_norm(self, layer: int) -> nn.Module | None:
        """The norm in front of the MLP."""
        norm = self.entrances[layer].mlp_norm
        return None if norm is None else self.wiring.at(layer, norm)

    def project(
        self, layer: int, normed: Float[Tensor, "dest token d_model"]
    ) -> dict[str, Float[Tensor, "token columns"]]:
        """What each projection of a block gives when every head and group has an input of its own.

        Args:
            layer: the block.
            normed: for queries, keys and values of each head or group, in the order of the graph, the normed stream.
        """
        found = {}
        for projection in self.entrances[layer].projections:
            matrix, bias = self._map(layer, projection.path)
            out = normed.new_empty(normed.shape[1], len(matrix))
            for name, columns in projection.columns.items():
                part = torch.bmm(normed[self._places(name)], _rows(matrix, columns).transpose(1, 2))
                out[:, columns.flatten().to(out.device)] = part.transpose(0, 1).flatten(1)
            found[projection.path] = out if bias is None else out + bias
        return found

    def pull(
        self, layer: int, slopes: dict[str, Float[Tensor, "token columns"]]
    ) -> Float[Tensor, "dest token d_model"]:
        """Gradients at the outputs of a block's projections, pulled back to the normed stream of each destination."""
        parts: dict[str, Tensor] = {}
        for projection in self.entrances[layer].projections:
            matrix, _ = self._map(layer, projection.path)
            slope = slopes[projection.path]
            for name, columns in projection.columns.items():
                own = slope[:, columns.flatten().to(slope.device)].unflatten(1, columns.shape).transpose(0, 1)
                parts[name] = torch.bmm(own, _rows(matrix, columns).to(own.dtype))
        return torch.cat([parts[name] for name in INPUTS])

    def _places(self, name: str) -> slice:
        heads, groups = self.graph.num_heads, self.graph.num_groups
        begin = {"q": 0, "k": heads, "v": heads + groups}[name]
        return slice(begin, begin + (heads if name == "q" else groups))

    def _map(self, layer: int, path: str) -> tuple[Tensor, Tensor | None]:
        key = (layer, path)
        if key not in self._maps:
            like = next(self.wiring.base.parameters())
            self._maps[key] = linear_map(self.wiring.at(layer, path), self.wiring.layout.d_model, like)
        return self._maps[key]

    # --- writing ---------------------------------------------------------------------------------------------

    def write(
        self, layer: int, z: Float[Tensor, "row pos head d_head"], ablated: Float[Tensor, "row pos head d_head"]
    ) -> Float[Tensor, "row head pos d_model"]:
        """What each head adds to the residual stream, less what it adds when ablated."""
        layout = self.wiring.layout
        if layout.attn_norm is not None:
            # The norm behind the heads is not linear: its scale is that of each run itself.
            both = [head_outputs(self.wiring, layer, x.to(self._own)) for x in (z, ablated)]
            return (both[0].to(self.dtype) - both[1].to(self.dtype)).transpose(1, 2)
        difference = (z.to(self.dtype) - ablated.to(self.dtype)).to(self._own)
        rows, length, heads, _ = z.shape
        flat = difference.permute(2, 0, 1, 3).reshape(heads, rows * length, -1)
        written: Tensor = torch.bmm(flat, self._writer(layer)).to(self.dtype).unflatten(1, (rows, length))
        return written.transpose(0, 1) if layout.multiplier == 1.0 else written.transpose(0, 1) * layout.multiplier

    @property
    def _own(self) -> torch.dtype:
        return next(self.wiring.base.parameters()).dtype

    def _writer(self, layer: int) -> Float[Tensor, "head d_head d_model"]:
        projection = self.wiring.at(layer, self.wiring.layout.projection)
        weight = weight_by_head(projection, self.graph.num_heads)
        if weight is not None:
            cut: Tensor = weight.detach()
            return cut
        if layer not in self._writers:
            width = self.wiring.shapes["z"][2] * self.wiring.shapes["z"][3]
            matrix, _ = linear_map(projection, width, next(self.wiring.base.parameters()))
            self._writers[layer] = matrix.T.unflatten(0, (self.graph.num_heads, -1))
        return self._writers[layer]


def stream_of(wiring: Wiring, graph: Graph) -> Stream:
    """The blocks of a model as readers and writers.

    Raises:
        UnavailableSiteError: for models whose heads cannot be told apart by what they read.
    """
    for layer in range(graph.num_layers):
        for component in ("z", "head_out", "attn_out", "mlp_out", "resid_pre"):
            wiring.check(Site(component, layer))
    return Stream(wiring=wiring, graph=graph, entrances=entrances_of(wiring))


def _rows(matrix: Float[Tensor, "out d_model"], columns: Tensor) -> Float[Tensor, "index width d_model"]:
    """Rows of a matrix by head: without a copy where they lie side by side."""
    first, total = int(columns[0, 0]), columns.numel()
    if bool((columns.flatten() == torch.arange(first, first + total)).all()):
        side_by_side: Tensor = matrix[first : first + total].unflatten(0, columns.shape)
        return side_by_side
    picked: Tensor = matrix[columns.flatten().to(matrix.device)].unflatten(0, columns.shape)
    return picked


def apply_norm(norm: nn.Module | None, x: Float[Tensor, "*axes d_model"], dtype: torch.dtype) -> Tensor:
    """A norm on a stream of any axes, in the model's own precision."""
    flat = x.reshape(1, -1, x.shape[-1]).to(dtype)
    return (flat if norm is None else norm(flat)).view(x.shape)


__all__ = ["Stream", "apply_norm", "stream_of"]
