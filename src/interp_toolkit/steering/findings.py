"""What a steering sweep found, in words, as a table, as a picture, and the setting to choose."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from interp_toolkit.errors import SteeringError
from interp_toolkit.provenance import Provenance
from interp_toolkit.statistics import Estimate, bootstrap_mean

if TYPE_CHECKING:
    from pandas import DataFrame

    from interp_toolkit.visualization.view import View

_WORDS = {
    "logit_diff": "logit difference",
    "log_prob": "mean log-probability of targets",
    "kl": "KL on neutral texts",
    "nll": "nats a token of neutral texts",
    "norm": "length of the residual stream",
    "repetition": "repetition",
}
_EFFECTS = ("logit_diff", "log_prob")
_BASE = {"kl": 0.0, "norm": 1.0}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A layer and a coefficient, and what they do.

    Attributes:
        layer: where.
        coefficient: how much.
        measure: what was looked at.
        effect: its mean change.
        low: lower end of the interval.
        high: upper end.
        kl: mean KL on neutral texts in nats, NaN where there were none.
        random: the mean change by random directions there, NaN where there were none.
        rule: how it was chosen, in words.
    """

    layer: int
    coefficient: float
    measure: str
    effect: float
    low: float
    high: float
    kl: float
    random: float
    rule: str


@dataclass(frozen=True, kw_only=True, eq=False)
class SteeringSweep:
    """What steering does at each layer and coefficient. Made by `steering_sweep`.

    Measures, each over its own texts: `"logit_diff"` (matching minus other answer, questions with swapped letters
    averaged), `"log_prob"` (mean over a target's tokens), `"kl"` (KL(unsteered ‖ steered) of the next token, nats),
    `"nll"` (nats a token; its exponential is the perplexity), `"norm"` (steered over unsteered length of the last
    residual stream), `"repetition"` (share of repeated runs of three generated tokens; for the vector only).

    Attributes:
        layers: which were steered, one at a time.
        coefficients: how much.
        names: the vector, and random directions of the same length.
        before: each measure without steering, by text.
        values: each measure with it.
        prompted: effects of the plain instruction without steering; empty if there was none.
        about: what was done, in words.
        unit: what coefficients are, in words.
        level: of intervals, which are over texts.
        seed: of random directions and intervals.
        provenance: model, layout and versions.
    """

    layers: tuple[int, ...]
    coefficients: tuple[float, ...]
    names: tuple[str, ...]
    before: dict[str, Tensor]
    values: dict[str, Tensor]
    prompted: dict[str, Tensor]
    about: str
    unit: str
    level: float = 0.95
    seed: int = 0
    provenance: Provenance = field(repr=False)

    @property
    def measures(self) -> tuple[str, ...]:
        """What was measured."""
        return tuple(self.values)

    # --- numbers ---------------------------------------------------------------------------------------------

    def change(self, measure: str | None = None) -> Float[Tensor, "text name layer coefficient"]:
        """How much a measure changed; KL is a change itself, and lengths are shares of those before.

        Raises:
            SteeringError: for what was not measured.
        """
        name = self._measure(measure)
        if name in _BASE:
            return self.values[name] - _BASE[name]
        return self.values[name] - self.before[name].view(-1, 1, 1, 1)

    def estimate(self, measure: str | None = None) -> Estimate:
        """The vector's mean change over texts, with its interval: `[layer, coefficient]`."""
        return bootstrap_mean(self.change(measure)[:, 0], level=self.level, seed=self.seed)

    def random(self, measure: str | None = None) -> Estimate:
        """The mean change over texts and random directions: `[layer, coefficient]`."""
        return bootstrap_mean(self._random(measure).mean(1), level=self.level, seed=self.seed)

    def beyond_random(self, measure: str | None = None) -> Estimate:
        """The vector's change minus the mean of the random ones, text by text: `[layer, coefficient]`."""
        found = self.change(measure)[:, 0] - self._random(measure).mean(1)
        return bootstrap_mean(found, level=self.level, seed=self.seed)

    def prompting(self, measure: str | None = None) -> Estimate:
        """The mean change by the plain instruction, with its interval.

        Raises:
            SteeringError: when there was none.
        """
        name = self._measure(measure)
        if name not in self.prompted:
            raise SteeringError(f"no instruction was tried, or not on {name}: give Trials(instruction=...)")
        return bootstrap_mean(self.prompted[name] - self.before[name], level=self.level, seed=self.seed)

    def perplexity(self) -> Float[Tensor, "layer coefficient"]:
        """The perplexity of neutral texts under the steered model.

        Raises:
            SteeringError: when there were none.
        """
        return self.values[self._measure("nll")][:, 0].mean(0).exp()

    def best(
        self, measure: str | None = None, *, max_kl: int | float | None = 0.1, towards: Literal["more", "less"] = "more"
    ) -> Setting:
        """The setting to choose: the largest mean effect whose mean KL on neutral texts is within a limit.

        Where effects are equal, the smaller coefficient. Chosen on these texts, it looks better on them than on others:
        judge it on texts that were kept back.

        Args:
            measure: what is looked at; the first effect that was measured if not given.
            max_kl: the limit in nats (0.1 as Arditi et al. 2024 choose refusal directions); None for no limit.
            towards: whether the measure should rise or fall.

        Raises:
            SteeringError: when no setting is within the limit, or there were no neutral texts to judge by.
        """
        name, sign = self._measure(measure), {"more": 1.0, "less": -1.0}[towards]
        found = self.estimate(name)
        kl = torch.full_like(found.mean, math.nan)
        allowed = torch.ones_like(found.mean, dtype=torch.bool)
        if "kl" in self.values:
            kl = self.values["kl"][:, 0].mean(0)
        if max_kl is not None:
            if "kl" not in self.values:
                raise SteeringError("there were no neutral texts to limit the KL on: give some, or max_kl=None")
            allowed = kl <= max_kl
        if not bool(allowed.any()):
            raise SteeringError(
                f"no setting has a KL of at most {max_kl} nats; the least is {float(kl.min()):.3g}: try smaller "
                "coefficients, or a higher limit"
            )
        places = [(m, k) for m in range(len(self.layers)) for k in range(len(self.coefficients)) if allowed[m, k]]
        m, k = max(places, key=lambda at: (sign * float(found.mean[at]), -abs(self.coefficients[at[1]])))
        limit = "" if max_kl is None else f" with a KL on neutral texts of at most {max_kl} nats"
        return Setting(
            layer=self.layers[m],
            coefficient=self.coefficients[k],
            measure=name,
            effect=float(found.mean[m, k]),
            low=float(found.low[m, k]),
            high=float(found.high[m, k]),
            kl=float(kl[m, k]),
            random=float(self.random(name).mean[m, k]) if self._compared else math.nan,
            rule=f"the largest mean {'rise' if sign > 0 else 'fall'} of the {_WORDS[name]}{limit}",
        )

    # --- words, tables, pictures -----------------------------------------------------------------------------

    def summary(self, *, max_kl: int | float | None = 0.1, towards: Literal["more", "less"] = "more") -> str:
        """What was found, in words, with the setting that `best` chooses."""
        texts = ", ".join(f"{len(self.before[name])} for {_WORDS[name]}" for name in self.measures)
        lines = [
            (
                f"Steering ({self.about}) at {_counted(len(self.layers), 'layer')} with "
                f"{_counted(len(self.coefficients), 'strength')}; texts: {texts}."
            )
        ]
        name = self._measure(None)
        lines.append(f"Without steering: {_WORDS[name]} {float(self.before[name].mean()):+.2f}.")
        if name in self.prompted:
            lines.append(f"The plain instruction changes it by {_shown(self.prompting(name), ())}.")
        limit = max_kl if "kl" in self.values else None
        if limit is not None and float(self.values["kl"][:, 0].mean(0).min()) > limit:
            return "\n".join([*lines, f"No setting keeps KL on neutral texts at or below {limit} nats."])
        chosen = self.best(max_kl=limit, towards=towards)
        at = self.layers.index(chosen.layer), self.coefficients.index(chosen.coefficient)
        said = f"Best is layer {chosen.layer}, {chosen.coefficient:g}: {_shown(self.estimate(name), at)}"
        if self._compared:
            said += f", random directions {_shown(self.random(name), at)}"
        lines.append(f"{said} ({chosen.rule}; chosen on these texts, so judge it on others).")
        costs = [f"{_WORDS[n]} {self._cost(n, at)}" for n in self.measures if n not in _EFFECTS]
        return "\n".join([*lines, *([f"There: {', '.join(costs)}."] if costs else [])])

    def to_dataframe(self) -> DataFrame:
        """A row for each direction, layer and coefficient: means, changes and intervals of every measure.

        Raises:
            ImportError: without pandas.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError('tables need pandas: pip install "interpretability-toolkit[probes]"') from error
        return pd.DataFrame(self._rows())

    def plot(self, measure: str | None = None, *, kind: Literal["map", "lines"] | None = None) -> View:
        """Mean changes: a heat map of layers by coefficients, or lines against the coefficient with intervals.

        Args:
            measure: what is shown; the first effect if not given.
            kind: `"map"` or `"lines"`; lines for one layer, else a map, if not given.
        """
        name = self._measure(measure)
        if kind == "map" or (kind is None and len(self.layers) > 1):
            return self._map(name)
        return self._lines(name)

    def _repr_html_(self) -> str:
        from html import escape

        return f'<pre style="white-space: pre-wrap">{escape(self.summary())}</pre>{self.plot()._repr_html_()}'

    # --- parts -----------------------------------------------------------------------------------------------

    @property
    def _compared(self) -> bool:
        return len(self.names) > 1

    def _random(self, measure: str | None) -> Tensor:
        if not self._compared:
            raise SteeringError("nothing random was run to compare with: give random=4")
        return self.change(measure)[:, 1:]

    def _measure(self, measure: str | None) -> str:
        name = next((n for n in _EFFECTS if n in self.values), None) if measure is None else measure
        if name is None or name not in self.values:
            raise SteeringError(f"{measure!r} was not measured; there are {', '.join(self.values)}")
        return name

    def _cost(self, name: str, at: tuple[int, int]) -> str:
        before, after = float(self.before[name].mean()), float(self.values[name][:, 0].mean(0)[at])
        if name == "nll":
            return f"{after:.3g} (perplexity {math.exp(before):.3g} before, {math.exp(after):.3g} steered)"
        return f"{after:.3g}" + ("" if name in _BASE else f" (before {before:.3g})")

    def _rows(self) -> list[dict[str, Any]]:
        found = {n: bootstrap_mean(self.change(n), level=self.level, seed=self.seed) for n in self.measures}
        rows = []
        for n, name in enumerate(self.names):
            for m, layer in enumerate(self.layers):
                for k, coefficient in enumerate(self.coefficients):
                    row: dict[str, Any] = {"name": name, "layer": layer, "coefficient": coefficient}
                    for measure, estimate in found.items():
                        row[measure] = float(self.values[measure].mean(0)[n, m, k])
                        for end in ("mean", "low", "high"):
                            key = "change" if end == "mean" else end
                            row[f"{measure}_{key}"] = float(getattr(estimate, end)[n, m, k])
                    if "nll" in self.values:
                        row["perplexity"] = math.exp(row["nll"])
                    rows.append(row)
        return rows

    def _map(self, name: str) -> View:
        from interp_toolkit.visualization.heatmaps import Heatmap

        found = self.estimate(name)
        notes = [
            [self._note(name, found, (m, k)) for k in range(len(self.coefficients))] for m in range(len(self.layers))
        ]
        return Heatmap(
            values=found.mean,
            rows=[str(layer) for layer in self.layers],
            columns=[f"{c:g}" for c in self.coefficients],
            title=f"Steering: change of {_WORDS[name]}",
            caption=f"{self.about}; {self.level:.0%} intervals over texts on hover.",
            row_name="layer",
            column_name=self.unit,
            notes=notes,
            scale="sequential" if name == "kl" else "diverging",
        )

    def _note(self, name: str, found: Estimate, at: tuple[int, int]) -> str:
        lines = [_shown(found, at)]
        if self._compared:
            lines.append(f"random {_shown(self.random(name), at)}")
        if "kl" in self.values and name != "kl":
            lines.append(f"KL {float(self.values['kl'][:, 0].mean(0)[at]):.3g}")
        return "\n".join(lines)

    def _lines(self, name: str) -> View:
        from interp_toolkit.visualization.sweeps import plot_steering

        order = sorted(range(len(self.coefficients)), key=self.coefficients.__getitem__)
        found = {f"layer {layer}": (self.estimate(name), m) for m, layer in enumerate(self.layers)}
        background = []
        if self._compared:
            mean = self.random(name)
            for m, layer in enumerate(self.layers):
                label = "random directions" if len(self.layers) == 1 else f"random, layer {layer}"
                found[label] = (mean, m)
                background.append(label)
        return plot_steering(
            [self.coefficients[k] for k in order],
            {label: e.mean[m, order].tolist() for label, (e, m) in found.items()},
            intervals={label: (e.low[m, order].tolist(), e.high[m, order].tolist()) for label, (e, m) in found.items()},
            baselines=background,
            title=f"Steering: change of {_WORDS[name]}",
            caption=f"{self.about}. Bands are {self.level:.0%} intervals over texts.",
            x_name=self.unit,
            y_name=f"change of {_WORDS[name]}",
        )


def _counted(number: int, name: str) -> str:
    return f"{number} {name}{'s' * (number != 1)}"


def _shown(found: Estimate, at: tuple[int, ...]) -> str:
    return f"{float(found.mean[at]):+.2f} [{float(found.low[at]):.2f}, {float(found.high[at]):.2f}]"


__all__ = ["Setting", "SteeringSweep"]
