"""Pictures of results about circuits, from what the results say of themselves."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING, Any, Literal

from interp_toolkit.circuits.circuit_words import UNLABELLED
from interp_toolkit.visualization.heatmaps import Heatmap
from interp_toolkit.visualization.lines import LineChart, Series

if TYPE_CHECKING:
    from interp_toolkit.circuits.evaluation import CircuitEvaluation
    from interp_toolkit.circuits.results import PatchResult
    from interp_toolkit.circuits.roles import RoleTable
    from interp_toolkit.circuits.scores import EdgeScores
    from interp_toolkit.circuits.stability import Stability
    from interp_toolkit.visualization.view import View

_MOST_PARTS = 60
_MOST_HEADS_WITH_TEXT = 12


def with_words(summary: str, view: View) -> str:
    """A view below a summary, for notebooks."""
    return f'<pre style="white-space: pre-wrap">{escape(summary)}</pre>{view._repr_html_()}'


def evaluation_chart(found: CircuitEvaluation) -> LineChart:
    """What is lost without each part; without parts, the faithfulness of all that was run."""
    if found.parts:
        drops = sorted(found.drops.items(), key=lambda item: -abs(item[1].value))[:_MOST_PARTS]
        drops.sort(key=lambda item: -item[1].value)
        fewer = (
            f" These are the {len(drops)} of {len(found.parts)} that matter most."
            if len(drops) < len(found.parts)
            else ""
        )
        return LineChart(
            x=[name for name, _ in drops],
            series=[_dots("lost without it", [drop for _, drop in drops])],
            title=f"What the circuit loses without each of its {found.removed or 'parts'}",
            caption=(
                f"In shares of the behaviour, with {found.level:.0%} intervals over prompts; below 0 the circuit does "
                f"more without it.{fewer}"
            ),
            x_name="taken out",
            y_name="faithfulness lost",
            references=[("nothing", 0.0)],
        )
    runs = [("circuit", found.faithfulness), ("all other edges", found.completeness)]
    if len(found.random):
        runs.append(("random circuits", found.random_faithfulness))
    return LineChart(
        x=[name for name, _ in runs],
        series=[_dots("faithfulness", [measured for _, measured in runs])],
        title=f"Faithfulness of a circuit of {found.edges:,} of {found.total:,} edges",
        caption=(
            f"Share of the model's {found.metric} that is kept: 1 is the whole model, 0 the empty circuit. Strokes are "
            f"{found.level:.0%} intervals over {len(found.model)} prompts."
        ),
        y_name="faithfulness",
        references=[("whole model", 1.0), ("empty circuit", 0.0)],
    )


def stability_chart(found: Stability) -> LineChart:
    """How many edges were chosen in at least so many of the draws."""
    draws = len(found.to_circuit)
    counts = (found.frequency[found.graph.valid].double() * draws).round()
    return LineChart(
        x=[n / draws for n in range(1, draws + 1)],
        series=[Series(name="edges", y=[float((counts >= n).sum()) for n in range(1, draws + 1)])],
        title="Edges that are chosen again when prompts are drawn again",
        caption=(
            f"Circuits of {found.edges:,} edges from {found.prompts} prompts drawn again, {draws} times. Where every "
            f"draw gives the same circuit, the line is flat at {found.edges:,}."
        ),
        x_name="in at least this share of the draws",
        y_name="edges",
        percent=True,
        references=[("edges of a circuit", float(found.edges))],
    )


def nodes_map(scores: EdgeScores, kind: Literal["sum", "max"]) -> Heatmap:
    """Layers by heads and MLP, coloured by |score| of the edges out of them."""
    graph = scores.graph
    values = scores.nodes(kind).detach().float().cpu()
    layers = values[1:].view(graph.num_layers, graph.sources_per_layer)
    which = "The sum" if kind == "sum" else "The largest"
    return Heatmap(
        values=layers.tolist(),
        rows=[str(layer) for layer in range(graph.num_layers)],
        columns=[*(f"H{head}" for head in range(graph.num_heads)), "MLP"],
        title=f"Nodes by the scores of their edges: {scores.method}",
        caption=(
            f"{which} of |score| on {scores.metric} over the edges out of each node; the embedding has "
            f"{float(values[0]):.3g}."
        ),
        row_name="layer",
        scale="sequential",
    )


def roles_map(table: RoleTable) -> Heatmap:
    """Layers by heads and MLP, coloured by how far the strongest test reaches its threshold."""
    roles = {(role.layer, "MLP" if role.head is None else f"H{role.head}"): role for role in table.roles}
    numbers = sorted({head for _, head in table.heads})
    columns = [*(f"H{head}" for head in numbers), *(["MLP"] if table.mlps else [])]
    layers = sorted({layer for layer, _ in roles})
    cells = [[roles.get((layer, column)) for column in columns] for layer in layers]
    reached = [
        [
            math.nan
            if role is None
            else table.reached((role.layer, role.head) if role.head is not None else role.layer)
            for role in row
        ]
        for row in cells
    ]
    labelled = [
        (r, c)
        for r, row in enumerate(cells)
        for c, role in enumerate(row)
        if role is not None and role.name != UNLABELLED
    ]
    names = [["" if role is None or role.name == UNLABELLED else role.name for role in row] for row in cells]
    return Heatmap(
        values=reached,
        rows=[str(layer) for layer in layers],
        columns=columns,
        title="Roles of heads and MLPs",
        caption="The largest score of each as a multiple of its threshold; those with a role, from 1 on, are outlined.",
        row_name="layer",
        notes=[["" if role is None else role.told() for role in row] for row in cells],
        texts=names if len(columns) <= _MOST_HEADS_WITH_TEXT else None,
        marked=labelled,
        scale="sequential",
        limit=max(2.0, _largest(reached)),
    )


def tokens_map(found: PatchResult) -> Heatmap:
    """The most probable tokens, without the patch and with it."""
    before, after = dict(found.top_before), dict(found.top_after)
    tokens = list(dict.fromkeys([found.target, *before, *after]))
    target = {found.target: found.probability_before}, {found.target: found.probability_after}
    values = [
        [(side | top).get(token, math.nan) for token in tokens]
        for side, top in zip(target, (before, after), strict=True)
    ]
    return Heatmap(
        values=values,
        rows=["before", "with the patch"],
        columns=tokens,
        title=f"What the model says, without and with the patch of {found.site}",
        caption=f"Probabilities of the next token; crossed out where a token is not among the first {len(before)}.",
        column_name="token",
        scale="sequential",
        limit=max(0.01, _largest(values)),
    )


def _largest(rows: list[list[float]]) -> float:
    return max((value for row in rows for value in row if math.isfinite(value)), default=0.0)


def _dots(name: str, measured: list[Any]) -> Series:
    """Points with their intervals, not joined."""
    values, low, high = ([float(getattr(m, part)) for m in measured] for part in ("value", "low", "high"))
    return Series(name=name, y=values, low=low, high=high, joined=False)


__all__ = ["evaluation_chart", "nodes_map", "roles_map", "stability_chart", "tokens_map", "with_words"]
