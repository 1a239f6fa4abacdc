"""Pictures of what lenses find, from what the results say of themselves."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from interp_toolkit.visualization.document import Document, Paragraph, Table
from interp_toolkit.visualization.heatmaps import Heatmap
from interp_toolkit.visualization.lines import LineChart, Series

if TYPE_CHECKING:
    from interp_toolkit.lenses.attributed import LogitAttribution
    from interp_toolkit.lenses.patched import Patchscope, PatchscopeSweep
    from interp_toolkit.lenses.tuned_lens import TunedLens

_MOST_LINES = 6
_LISTED = 30


def parts_map(found: LogitAttribution, place: int) -> Heatmap:
    """Layers by heads and MLP, with biases and the strongest neurons or source tokens on hover."""
    parted = any(part.kind == "head" for part in found.parts)
    heads = found.heads.shape[-1] if parted else 1
    columns = [*(f"H{n}" for n in range(heads))] if parted else ["attention"]
    cells = [[math.nan] * heads + [math.nan] for _ in range(found.num_layers)]
    notes = [[""] * (heads + 1) for _ in range(found.num_layers)]
    rest = 0.0
    for part, value in zip(found.parts, found.values[place].tolist(), strict=True):
        if part.layer is None or part.kind == "bias":
            rest += value
            continue
        column = heads if part.kind in ("mlp", "neurons", "neuron") else 0
        column = part.index or 0 if part.kind in ("head", "source token") else column
        before = cells[part.layer][column]
        cells[part.layer][column] = value + (0.0 if math.isnan(before) else before)
        if part.kind in ("neuron", "source token"):
            notes[part.layer][column] += f"{part.name}: {value:+.3f}\n"
    return Heatmap(
        values=cells,
        rows=[str(layer) for layer in range(found.num_layers)],
        columns=[*columns, "MLP"],
        title=f"What each part gives to {found.what}",
        caption=(
            f"Direct effects behind {found.tokens[place]!r}; they and embedding and biases ({rest:+.3f}) sum to "
            f"{float(found.logit[place]):.3f}. Blue is for it, orange against it."
        ),
        row_name="layer",
        notes=[[note.rstrip("\n") for note in row] for row in notes],
    )


def cumulative_chart(found: LogitAttribution) -> LineChart:
    """The sum up to each layer, a line for each position."""
    sums = found.cumulative
    shown = range(len(found.positions))[-_MOST_LINES:]
    fewer = f" The last {_MOST_LINES} of {len(found.positions)} positions." if len(shown) < len(found.positions) else ""
    return LineChart(
        x=["embed", *map(str, range(found.num_layers))],
        series=[Series(name=f"{found.positions[p]} {found.tokens[p]}", y=sums[p].tolist()) for p in shown],
        title=f"{found.what} layer by layer",
        caption=(
            "The sum of what embedding, final biases and all layers so far give, with the scale of the final norm at "
            f"the end.{fewer}"
        ),
        x_name="layer",
        y_name="logit difference" if len(found.answers) > 1 else "logit",
        references=[("nothing", 0.0)],
    )


def attribution_page(found: LogitAttribution) -> Document:
    """Words, heat map, cumulative logit and the strongest parts."""
    strongest = found.order()[:_LISTED]
    return Document(
        title=f"Direct logit attribution: {found.what}",
        parts=(
            *(Paragraph(line) for line in found.summary().splitlines()),
            parts_map(found, len(found.positions) - 1),
            cumulative_chart(found),
            Table(
                title=f"The {len(strongest)} strongest of {len(found.parts):,} parts",
                headers=["part", "kind", "gives"],
                rows=[[found.names[n], found.parts[n].kind, f"{float(found.values[-1, n]):+.4f}"] for n in strongest],
            ),
        ),
    )


def tuned_chart(lens: TunedLens) -> LineChart:
    """The held-out divergence by depth, beside that of the logit lens."""
    own, plain = lens.estimates()
    several = len(lens.kl) > 1
    series = [
        Series(
            name=name,
            y=found.mean.tolist(),
            low=found.low.tolist() if several else None,
            high=found.high.tolist() if several else None,
            grey=name == "logit lens",
        )
        for name, found in (("tuned lens", own), ("logit lens", plain))
    ]
    texts = len(lens.kl)
    bands = "; bands are 95% intervals over texts" if several else ""
    return LineChart(
        x=list(lens.depths),
        series=series,
        title="How far each depth is from what the model says",
        caption=(
            f"KL divergence from the model's own distribution, in nats a token, on {texts} held-out "
            f"text{'s' if several else ''}{bands}. The last depth is the model itself and not shown."
        ),
        x_name="layer",
        y_name="KL in nats",
    )


def patchscope_map(found: Patchscope) -> Heatmap:
    """The most probable next tokens, with the patch and without."""
    both = [dict(found.plain_top), dict(found.top)]
    tokens = list(dict.fromkeys([*both[1], *both[0]]))
    values = [[side.get(token, math.nan) for token in tokens] for side in both]
    return Heatmap(
        values=values,
        rows=["plain", "patched"],
        columns=tokens,
        title=f"What the model says of {found.source} at {found.source_token!r}",
        caption=(
            f"Probabilities of the next token, without and with that activation at {found.target}, "
            f"{found.target_token!r}. With it the model goes on {found.text!r}, without it {found.plain_text!r}."
        ),
        column_name="token",
        scale="sequential",
        limit=max(0.01, *(value for row in values for value in row if math.isfinite(value))),
    )


def patchscope_sweep_map(found: PatchscopeSweep) -> Heatmap:
    """Source layers by target layers, with what the model says on hover."""
    followed = "each cell's best token" if found.answer is None else repr(found.answer)
    return Heatmap(
        values=found.probability.tolist(),
        rows=[str(layer) for layer in found.source_layers],
        columns=[str(layer) for layer in found.target_layers],
        title=f"What the model says of {found.source_token!r}, from layer to layer",
        caption=(
            f"{found.component} at {found.source_token!r}, put into the target prompt at {found.target_token!r}. "
            f"Colour is the probability of {followed}, {found.plain_probability:.2f} without a patch; on hover is what "
            "the model says."
        ),
        row_name="source layer",
        column_name="target layer",
        scale="sequential",
        limit=max(0.01, float(found.probability.max())),
        notes=[list(row) for row in found.texts],
    )


__all__ = [
    "attribution_page",
    "cumulative_chart",
    "parts_map",
    "patchscope_map",
    "patchscope_sweep_map",
    "tuned_chart",
]
