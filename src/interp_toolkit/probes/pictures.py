"""Pictures of results about probes, from what the results say of themselves."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from interp_toolkit.visualization.lines import LineChart, Series
from interp_toolkit.visualization.sweeps import plot_accuracy_by_layer, plot_steering

if TYPE_CHECKING:
    from interp_toolkit.probes.effects import DirectionEffect, Effect
    from interp_toolkit.probes.findings import ProbeSweep

_FEW_PROMPTS = 2


def sweep_chart(found: ProbeSweep) -> LineChart:
    """Scores by layer with intervals, beside shuffled labels, control tasks and baselines."""
    kinds = list(dict.fromkeys(score.kind for score in found.scores))
    layers = sorted({score.layer for score in found.scores})
    rows = {kind: [found.score(layer, kind) for layer in layers] for kind in kinds}
    own = rows[found.best.kind]
    controls = {"shuffled labels": [s.shuffled for s in own], "control task": [s.control for s in own]}
    what = "R²" if found.target == "regression" else "Accuracy"
    return plot_accuracy_by_layer(
        {kind: [s.accuracy for s in scores] for kind, scores in rows.items()},
        layers=layers,
        intervals={kind: ([s.accuracy_low for s in of], [s.accuracy_high for s in of]) for kind, of in rows.items()},
        controls={name: values for name, values in controls.items() if not all(map(math.isnan, values))},
        baselines={baseline.name: baseline.accuracy for baseline in found.baselines},
        title=f"{what} by layer: probes for “{found.name}”, at {found.where}",
        caption=(
            f"On held-out rows, with {found.level:.0%} intervals. The ring is what validation chose. Grey: the same "
            f"{found.best.kind} probe trained on shuffled labels and on a control task; dashed: what is reached "
            "without the layers."
        ),
        y_name=what if found.target == "regression" else what.lower(),
        marked=[(kinds.index(found.best.kind), layers.index(found.best.layer))],
    )


def direction_chart(found: DirectionEffect, measure: int) -> LineChart:
    """Mean changes against the coefficient, the random directions together in grey."""
    order = sorted({c: n for n, c in enumerate(found.coefficients)}.items())
    places = [n for _, n in order]
    estimate = found.estimate()
    own = [n for n, name in enumerate(found.names) if not name.startswith("random")]
    parts = (estimate.mean, estimate.low, estimate.high)
    lines: dict[str, list[Any]] = {found.names[n]: [part[n, places, measure] for part in parts] for n in own}
    baselines = []
    if len(own) < len(found.names):
        control = found.random()
        baselines = [f"{len(found.names) - len(own)} random directions"]
        lines[baselines[0]] = [part[places, measure] for part in (control.mean, control.low, control.high)]
    return plot_steering(
        [float(c) for c, _ in order],
        {name: values[0] for name, values in lines.items()},
        intervals={name: (values[1], values[2]) for name, values in lines.items()},
        baselines=baselines,
        title=f"Adding a direction at {found.site}: change of {found.measures[measure]}",
        caption=f"{_over(found)}; {found.about}.",
        y_name=f"change of {found.measures[measure]}",
    )


def effect_chart(found: Effect, measure: int) -> LineChart:
    """Mean changes of everything that was done."""
    estimate = found.estimate()
    mean, low, high = (part[:, measure].tolist() for part in (estimate.mean, estimate.low, estimate.high))
    return LineChart(
        x=list(found.names),
        series=[Series(name=f"change of {found.measures[measure]}", y=mean, low=low, high=high, joined=False)],
        title=f"Changes at {found.site}: {found.measures[measure]}",
        caption=f"{_over(found)}; {found.about}.",
        y_name=f"change of {found.measures[measure]}",
        references=[("no change", 0.0)],
    )


def _over(found: Effect) -> str:
    """What the numbers are of."""
    prompts = len(found.before)
    several = f", with {found.level:.0%} intervals" if prompts >= _FEW_PROMPTS else ""
    return f"Mean over {prompts} prompt{'' if prompts == 1 else 's'}{several}"


__all__ = ["direction_chart", "effect_chart", "sweep_chart"]
