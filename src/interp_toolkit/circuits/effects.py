"""Effects: what many edits did to a metric, for each prompt, with labels and error bars.

Sign convention, here and everywhere: a positive effect is **towards the clean answer**.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp_toolkit.activations.files import load_tensors, save_tensors
from interp_toolkit.circuits.results import Direction
from interp_toolkit.errors import FileFormatError, RunError
from interp_toolkit.provenance import Provenance
from interp_toolkit.statistics import Estimate, bootstrap_ratio

if TYPE_CHECKING:
    import pandas as pd

    from interp_toolkit.visualization import Heatmap

_FORMAT = "interp_toolkit.effects/1"
_TENSORS = ("values", "base", "clean", "corrupt")


@dataclass(frozen=True, kw_only=True, eq=False)
class Effects:
    """A labelled array of what edits did to a metric.

    Attributes:
        title: what was done, in a line.
        axes: names of the axes behind the prompts, such as `("layer", "pos")`.
        labels: for each axis the names of its entries.
        values: the metric of every edited run; NaN where the model has no such site.
        base: the metric of each prompt's unedited run, the one that was edited.
        clean: the metric of each clean run.
        corrupt: the metric of each corrupt run; NaN where there is none.
        metric: its name.
        unit: of the metric.
        larger_is_cleaner: whether a larger metric is towards the clean answer.
        direction: which run was edited: `"denoise"` the corrupt one, `"noise"` the clean one.
        approximate: whether the values come from a gradient instead of runs.
        notes: whatever else should be known: answers, settings, costs.
        provenance: model, layout and versions.
    """

    title: str
    axes: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]
    values: Float[Tensor, "prompt *cells"]
    base: Float[Tensor, " prompt"]
    clean: Float[Tensor, " prompt"]
    corrupt: Float[Tensor, " prompt"]
    metric: str
    unit: str
    larger_is_cleaner: bool
    direction: Direction
    approximate: bool = False
    notes: dict[str, Any] = field(default_factory=dict)
    provenance: Provenance = field(repr=False)

    def __post_init__(self) -> None:
        """Check that labels and values match."""
        wanted = (len(self.base), *map(len, self.labels))
        if tuple(self.values.shape) != wanted or len(self.axes) != len(self.labels):
            raise RunError(f"effects of shape {tuple(self.values.shape)} need {wanted}: prompts, then {self.axes}")

    # --- numbers ---------------------------------------------------------------------------------------------

    @property
    def sign(self) -> float:
        """By what a change of the metric is multiplied so that positive is towards the clean answer."""
        return 1.0 if self.larger_is_cleaner else -1.0

    @property
    def change(self) -> Float[Tensor, "prompt *cells"]:
        """What each edit changed in the metric, in its own unit; positive is towards the clean answer."""
        return (self.values - self.base.view(-1, *[1] * len(self.axes))) * self.sign

    @property
    def gap(self) -> Float[Tensor, " prompt"]:
        """Clean − corrupt, in the same unit and sign."""
        return (self.clean - self.corrupt) * self.sign

    @property
    def normalizable(self) -> bool:
        """Whether the prompts differ in the metric, on average, so that effects can be shares of that difference."""
        gap = self.gap
        return bool(torch.isfinite(gap).all()) and abs(float(gap.mean())) > 1e-6

    @property
    def effect(self) -> Float[Tensor, "*cells"]:
        """The mean change as a share of the mean of clean − corrupt, over the prompts that have a value.

        1 restores the clean answer, −1 destroys it, 0 does nothing. NaN where the prompts do not differ in the metric.
        """
        if not self.normalizable:
            return torch.full_like(self.mean, math.nan)
        change = self.change
        gap = self.gap.view(-1, *[1] * len(self.axes)) * ~change.isnan()
        return change.nansum(0) / gap.sum(0)

    @property
    def mean(self) -> Float[Tensor, "*cells"]:
        """The mean change over the prompts that have a value, in the metric's own unit."""
        return self.change.nanmean(0)

    def estimate(
        self, *, normalized: bool | None = None, level: float = 0.95, draws: int = 2000, seed: int = 0
    ) -> Estimate:
        """Mean, standard error and bootstrap interval over prompts.

        Args:
            normalized: as a share of clean − corrupt (mean change over mean difference), or in the metric's unit. By
                default the share where the prompts differ.
            level: of the interval.
            draws: bootstrap samples.
            seed: of the samples.
        """
        below = self.gap if self._share(normalized) else torch.ones_like(self.gap)
        change = self.change.flatten(1)
        known = ~change.isnan()
        found = bootstrap_ratio(change, below, level=level, draws=draws, seed=seed)
        parts = {name: getattr(found, name).clone() for name in ("mean", "standard_error", "low", "high")}
        # Where some prompts have no value, the others are what there is.
        for pattern in known.T.unique(dim=0):
            if pattern.any() and not pattern.all():
                cells = (known == pattern[:, None]).all(0)
                part = bootstrap_ratio(change[pattern][:, cells], below[pattern], level=level, draws=draws, seed=seed)
                for name, whole in parts.items():
                    whole[cells] = getattr(part, name)
        shaped = {name: whole.view(self.values.shape[1:]) for name, whole in parts.items()}
        return Estimate(**shaped, n=found.n, level=level)

    def strongest(self, number: int = 10) -> list[tuple[tuple[str, ...], float]]:
        """The cells with the largest mean effects in either direction, with their labels."""
        effects = self._shown(None).flatten()
        order = effects.abs().nan_to_num(-1.0).argsort(descending=True, stable=True)[:number]
        return [(self.label(int(n)), float(effects[n])) for n in order if not math.isnan(float(effects[n]))]

    def label(self, cell: int) -> tuple[str, ...]:
        """The labels of a cell, counted along the flattened axes."""
        index = []
        for names in reversed(self.labels):
            cell, here = divmod(cell, len(names))
            index.append(names[here])
        return tuple(reversed(index))

    def _share(self, normalized: bool | None) -> bool:
        if normalized and not self.normalizable:
            raise RunError(
                "the prompts do not differ in the metric, so effects cannot be shares of the difference: use "
                "normalized=False"
            )
        return self.normalizable if normalized is None else normalized

    def _shown(self, normalized: bool | None) -> Tensor:
        return self.effect if self._share(normalized) else self.mean

    # --- words and pictures ----------------------------------------------------------------------------------

    def summary(self, number: int = 5) -> str:
        """The result in words: what was done, and the strongest cells."""
        prompts, cells = len(self.base), self.values[0].numel()
        of = f", {self.notes['answers']}" if "answers" in self.notes else ""
        lines = [
            f"{self.title}: {cells:,} cells, {prompts} prompt{'' if prompts == 1 else 's'}.",
            f"Metric {self.metric}{of}: {self._runs()}.",
        ]
        if self.approximate:
            lines.append("Values are first-order estimates from a gradient; compare the strongest with exact ones.")
        share = self._share(None)
        estimate = self.estimate()
        found = self.strongest(number)
        if not found:
            return "\n".join([*lines, "No cell has a value."])
        lines.append("Strongest " + ("(share of the difference, + is towards clean):" if share else f"({self.unit}):"))
        flat = {names: n for n, names in enumerate(itertools.product(*self.labels))}
        for names, effect in found:
            n = flat[names]
            low, high = (float(x.flatten()[n]) for x in (estimate.low, estimate.high))
            interval = "" if math.isnan(low) else f"  [{_number(low, share)}, {_number(high, share)}]"
            lines.append(f"  {self._place(names)}: {_number(effect, share)}{interval}")
        return "\n".join(lines)

    def _runs(self) -> str:
        clean, corrupt = float(self.clean.mean()), float(self.corrupt.mean())
        return f"clean {clean:.3f}" + ("" if math.isnan(corrupt) else f", corrupt {corrupt:.3f}")

    def _place(self, names: Sequence[str]) -> str:
        return ", ".join(f"{axis} {name}" for axis, name in zip(self.axes, names, strict=True))

    def plot(self, *, normalized: bool | None = None, level: float = 0.95) -> Heatmap:
        """A heat map: layers from left to right, the other axis from top to bottom; `.save` writes HTML, SVG or PNG.

        With three axes, each cell shows the strongest entry along the last one.
        """
        from interp_toolkit.visualization import Heatmap

        share = self._share(normalized)
        shown, labels, axes = self._shown(share), list(self.labels), list(self.axes)
        estimate = self.estimate(normalized=share, level=level)
        low, high = estimate.low, estimate.high
        picked = ""
        while shown.ndim > 2:
            best = shown.abs().nan_to_num(-1.0).argmax(-1, keepdim=True)
            shown, low, high = (x.gather(-1, best)[..., 0] for x in (shown, low, high))
            picked = f" Each cell shows its strongest {axes.pop()}."
            labels.pop()
        if shown.ndim < 2:
            shown, low, high = (x.view(-1, 1) for x in (shown, low, high))
            labels, axes = [*labels, ("",)], [*axes, ""]
        turned = [x.T for x in (shown, low, high)]
        notes = [
            [_interval(float(a), float(b)) for a, b in zip(*rows, strict=True)]
            for rows in zip(*turned[1:], strict=True)
        ]
        unit = "share of clean − corrupt" if share else (self.unit or self.metric)
        over = "1 prompt" if len(self.base) == 1 else f"the mean of {len(self.base)} prompts"
        caption = f"Effect on {self.metric}, {unit}, {over}; positive is towards the clean answer.{picked}"
        return Heatmap(
            values=turned[0].tolist(),
            rows=list(labels[1]),
            columns=list(labels[0]),
            title=self.title,
            caption=caption,
            column_name=axes[0],
            row_name=axes[1],
            notes=notes,
        )

    def _repr_html_(self) -> str:
        return self.plot()._repr_html_()

    # --- data ------------------------------------------------------------------------------------------------

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each prompt and cell: labels, metric, change; needs pandas."""
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError('a data frame needs pandas: pip install "interpretability-toolkit[probes]"') from error

        prompts = [str(n) for n in range(len(self.base))]
        index = pd.MultiIndex.from_product([prompts, *self.labels], names=["prompt", *self.axes])
        columns = {"value": self.values.flatten().tolist(), "change": self.change.flatten().tolist()}
        return pd.DataFrame(columns, index=index).reset_index()

    def save(self, path: str | Path) -> Path:
        """Write it as safetensors."""
        about = {name: value for name, value in self.__dict__.items() if name not in (*_TENSORS, "provenance")}
        tensors = {name: getattr(self, name).contiguous().clone() for name in _TENSORS}
        return save_tensors(path, tensors, kind=_FORMAT, about=about, provenance=self.provenance)

    @classmethod
    def load(cls, path: str | Path) -> Effects:
        """Read what `save` wrote.

        Raises:
            FileFormatError: when it is something else.
        """
        tensors, about, provenance = load_tensors(path, kind=_FORMAT, what="saved effects")
        try:
            about["axes"] = tuple(about["axes"])
            about["labels"] = tuple(tuple(names) for names in about["labels"])
            return cls(**(about | tensors), provenance=provenance)
        except (ValueError, KeyError, TypeError, RunError) as error:
            raise FileFormatError(f"{path} cannot be read as saved effects: {error}") from error


def _number(value: float, share: bool) -> str:
    return f"{value:+.1%}" if share else f"{value:+.3f}"


def _interval(low: float, high: float) -> str:
    return "" if math.isnan(low) else f"95% interval {low:.2f} to {high:.2f}"


__all__ = ["Effects"]
