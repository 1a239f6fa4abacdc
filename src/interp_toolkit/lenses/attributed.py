"""What a logit is the sum of: the result of direct logit attribution."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from interp_toolkit.errors import LensError
from interp_toolkit.provenance import Provenance

if TYPE_CHECKING:
    import pandas as pd

    from interp_toolkit.visualization import Document, Heatmap, LineChart

_SHOWN = 10
_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class Part:
    """One of the parts of a logit.

    Attributes:
        kind: `"embedding"`, `"position embedding"`, `"attention"`, `"head"`, `"mlp"`, `"neurons"` (of one MLP),
            `"neuron"`, `"source token"` (what a head moves from one token) or `"bias"`.
        name: as people read it, such as `"L5H1"`.
        layer: its layer; None for embeddings and the biases of final norm and unembedding.
        index: the head or neuron.
        source: the position that a head moves something from.
    """

    kind: str
    name: str
    layer: int | None = None
    index: int | None = None
    source: int | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class LogitAttribution:
    """A logit, or the difference of two, and the parts that sum to it.

    Attributes:
        by: how finely it is parted.
        parts: what it is the sum of.
        values: what each part gives at each position.
        logit: what they sum to; before the cap where the model has a soft cap.
        answers: target, or target and foil.
        positions: where the logit is read.
        tokens: the prompt's tokens there.
        prompt: all tokens of the prompt.
        capped: whether the model changes its logits behind the unembedding.
        notes: what a reader should know.
        detail: for each layer every neuron, `[pos, d_mlp]`, or every pair of head and token that it attends to,
            `[pos, head, source]`; empty unless parted that finely.
        num_layers: of the model.
        provenance: model, layout and versions.
    """

    by: str
    parts: tuple[Part, ...]
    values: Float[Tensor, "pos part"]
    logit: Float[Tensor, " pos"]
    answers: tuple[str, ...]
    positions: tuple[int, ...]
    tokens: tuple[str, ...]
    prompt: tuple[str, ...]
    capped: bool
    notes: tuple[str, ...]
    detail: Mapping[int, Tensor] = field(repr=False)
    num_layers: int
    provenance: Provenance = field(repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """The parts' names."""
        return tuple(part.name for part in self.parts)

    @property
    def what(self) -> str:
        """What is parted, in words."""
        named = " − ".join(f"logit({answer!r})" for answer in self.answers)
        return f"{named} before the cap" if self.capped else named

    @property
    def gap(self) -> float:
        """By how much the parts miss the logit at most: rounding."""
        return float((self.values.sum(-1) - self.logit).abs().max())

    @property
    def cumulative(self) -> Float[Tensor, "pos depth"]:
        """The sum of everything up to each depth: the embedding and the final biases first, then layer by layer."""
        depths = [0 if part.layer is None else part.layer + 1 for part in self.parts]
        steps = self.values.new_zeros(len(self.values), self.num_layers + 1)
        return steps.index_add(1, torch.tensor(depths), self.values).cumsum(-1)

    @property
    def heads(self) -> Float[Tensor, "pos layer head"]:
        """What each head gives, with all tokens that it attends to.

        Raises:
            LensError: when attention was not parted by head.
        """
        numbers = [part.index or 0 for part in self.parts if part.kind == "head"]
        if not numbers:
            raise LensError(f"attention is not parted by head here (by={self.by!r}): use by='head'")
        found = self.values.new_zeros(len(self.values), self.num_layers, max(numbers) + 1)
        for n, part in enumerate(self.parts):
            if part.kind == "head":
                found[:, part.layer, part.index] = self.values[:, n]
        for layer, detail in self.detail.items():
            found[:, layer] = detail.sum(-1)
        return found

    def order(self, position: int = -1) -> list[int]:
        """The parts' numbers, those with the largest values first, whatever their sign."""
        return self.values[self._place(position)].abs().argsort(descending=True, stable=True).tolist()

    def table(self, top: int = _SHOWN, position: int = -1) -> str:
        """The strongest parts at a position of the list, with the rest, as text."""
        place = self._place(position)
        chosen = self.order(position)[:top]
        rows = [(self.names[n], float(self.values[place, n])) for n in chosen]
        others = float(self.values[place].sum()) - sum(value for _, value in rows)
        left = len(self.parts) - len(chosen)
        rows += [(f"{left} other parts", others)] if left else []
        rows.append(("sum", float(self.values[place].sum())))
        rows.append((self.what, float(self.logit[place])))
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value:+9.4f}" for name, value in rows)

    def summary(self) -> str:
        """The last position in words."""
        values, names = self.values[-1], self.names
        order = [n for n in self.order() if not self.parts[n].name.endswith((", other neurons", ", other tokens"))]
        up = [f"{names[n]} ({float(values[n]):+.2f})" for n in order if values[n] > 0][:_NAMED]
        down = [f"{names[n]} ({float(values[n]):+.2f})" for n in order if values[n] < 0][:_NAMED]
        kinds: dict[str, float] = {}
        for part, value in zip(self.parts, values.tolist(), strict=True):
            kind = _FAMILY.get(part.kind, part.kind)
            kinds[kind] = kinds.get(kind, 0.0) + value
        shares = ", ".join(f"{kind} {value:+.3f}" for kind, value in kinds.items())
        meaning = (
            "These are direct effects, with the final norm's scale as it is; what parts do through later layers is in "
            "the shares of those."
        )
        lines = [
            f"Behind {self.tokens[-1]!r}, {self.what} is {float(self.logit[-1]):.3f}: {shares}.",
            f"Most for it: {', '.join(up) or 'nothing'}. Most against it: {', '.join(down) or 'nothing'}.",
            meaning,
        ]
        lines += [f"Note: {note}." for note in self._notes()]
        return "\n".join(lines)

    def to_dataframe(self) -> pd.DataFrame:
        """A row for each position and part; needs pandas."""
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError('a data frame needs pandas: pip install "interpretability-toolkit[probes]"') from error
        rows = [
            {
                "position": position,
                "token": self.tokens[p],
                "part": part.name,
                "kind": part.kind,
                "layer": part.layer,
                "index": part.index,
                "source": part.source,
                "value": float(self.values[p, n]),
            }
            for p, position in enumerate(self.positions)
            for n, part in enumerate(self.parts)
        ]
        return pd.DataFrame(rows).astype(dict.fromkeys(("layer", "index", "source"), "Int64"))

    def plot(self, position: int = -1) -> Heatmap:
        """Layers by heads and MLP, at a position of the list; `.save` writes HTML, SVG, PNG or PDF."""
        from interp_toolkit.lenses.pictures import parts_map

        return parts_map(self, self._place(position))

    def plot_cumulative(self) -> LineChart:
        """The sum up to each layer, a line for each position."""
        from interp_toolkit.lenses.pictures import cumulative_chart

        return cumulative_chart(self)

    def page(self) -> Document:
        """Everything on one self-contained page."""
        from interp_toolkit.lenses.pictures import attribution_page

        return attribution_page(self)

    def _repr_html_(self) -> str:
        return self.page()._repr_html_()

    def _notes(self) -> list[str]:
        """Notes, those of many layers together."""
        if len(self.notes) <= _NAMED:
            return list(self.notes)
        return [*self.notes[:_NAMED], f"{len(self.notes) - _NAMED} more in `notes`"]

    def _place(self, position: int) -> int:
        if not -len(self.positions) <= position < len(self.positions):
            raise LensError(
                f"place {position} of the list of positions was asked, but {len(self.positions)} were read: "
                f"{list(self.positions)}"
            )
        return position % len(self.positions)


_FAMILY = {
    "head": "attention",
    "source token": "attention",
    "mlp": "MLPs",
    "neurons": "MLPs",
    "neuron": "MLPs",
    "bias": "biases",
}


__all__ = ["LogitAttribution", "Part"]
