"""What changes of activations did to the next token, against random changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jaxtyping import Float, Int
from torch import Tensor

from interp_toolkit.errors import ProbeError
from interp_toolkit.statistics import Estimate, bootstrap_mean

if TYPE_CHECKING:
    from pandas import DataFrame

    from interp_toolkit.visualization.lines import LineChart


@dataclass(frozen=True, kw_only=True, eq=False)
class Effect:
    """What changes of activations do to the next token, against random ones.

    Attributes:
        site: where activations were changed.
        positions: of which tokens, in words.
        about: what was done and measured, in words.
        names: the things that were done, the random ones last.
        measures: what was measured; `"kl"` is KL(unchanged run ‖ changed run) of the next token in nats.
        before: the measures without a change.
        after: the measures with it.
        level: of intervals, which are over prompts.
        seed: of what is random, and of the intervals.
    """

    site: str
    positions: str
    about: str
    names: tuple[str, ...]
    measures: tuple[str, ...]
    before: Float[Tensor, "prompt measure"]
    after: Float[Tensor, "prompt name *coefficient measure"]
    level: float = 0.95
    seed: int = 0

    @property
    def change(self) -> Float[Tensor, "prompt name *coefficient measure"]:
        """How much each measure changed."""
        return self.after - self.before.reshape(len(self.before), *[1] * (self.after.ndim - 2), -1)

    def estimate(self) -> Estimate:
        """The mean change over prompts with its interval: `[name, *coefficient, measure]`."""
        return bootstrap_mean(self.change, level=self.level, seed=self.seed)

    def random(self) -> Estimate:
        """The mean change over prompts and all that was random: `[*coefficient, measure]`."""
        return bootstrap_mean(self._random().mean(1), level=self.level, seed=self.seed)

    def beyond_random(self) -> Estimate:
        """The first change minus the mean of the random ones, prompt by prompt: `[*coefficient, measure]`."""
        return bootstrap_mean(self.change[:, 0] - self._random().mean(1), level=self.level, seed=self.seed)

    def beaten(self) -> Int[Tensor, "*coefficient measure"]:
        """How many of the random ones have a smaller mean change than the first, whatever its sign."""
        return (self._random().mean(0).abs() < self.change[:, 0].mean(0).abs()).sum(0)

    def summary(self) -> str:
        """The changes in words, against random ones."""
        before = ", ".join(f"{m} {float(x):.3g}" for m, x in zip(self.measures, self.before.mean(0), strict=True))
        lines = [f"{len(self.before)} prompts, {self.site}, {self.positions} tokens; {self.about}. Before: {before}."]
        found, control = self.estimate(), self.random() if self._controls else None
        for at, place in self._places()[: len(self._places()) // len(self.names)]:
            parts = [f"{name} {_shown(found, (*at, m))}" for m, name in enumerate(self.measures)]
            if control is not None:
                less = [f"less in {n} of {len(self._controls)}" for n in self.beaten()[at[1:]].tolist()]
                parts = [f"{p} (random {_shown(control, (*at[1:], m))}, {less[m]})" for m, p in enumerate(parts)]
            lines.append(f"{' times '.join(str(value) for value in place.values())}: {', '.join(parts)}")
        return "\n".join(lines)

    def plot(self, measure: str | None = None) -> LineChart:
        """Mean changes with intervals, beside random ones; `.save` writes HTML, SVG, PNG or PDF.

        Args:
            measure: what is shown; the first one if it is not given.

        Raises:
            ProbeError: for what was not measured.
        """
        from interp_toolkit.probes.pictures import effect_chart

        return effect_chart(self, self._measure(measure))

    def _measure(self, measure: str | None) -> int:
        if measure is not None and measure not in self.measures:
            raise ProbeError(f"{measure!r} was not measured; there are {', '.join(self.measures)}")
        return 0 if measure is None else self.measures.index(measure)

    def _repr_html_(self) -> str:
        from html import escape

        return f'<pre style="white-space: pre-wrap">{escape(self.summary())}</pre>{self.plot()._repr_html_()}'

    def to_dataframe(self) -> DataFrame:
        """Mean changes with their intervals, one row for each thing that was done.

        Raises:
            ImportError: without pandas.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError('tables need pandas: pip install "interpretability-toolkit[probes]"') from error
        return pd.DataFrame(self._rows())

    def to_dict(self) -> dict[str, Any]:
        """Settings and mean changes with intervals, as JSON has it."""
        settings = {name: value for name, value in vars(self).items() if not isinstance(value, Tensor | tuple)}
        settings |= {"prompts": len(self.before), "rows": self._rows()}
        return settings | {"before": dict(zip(self.measures, self.before.mean(0).tolist(), strict=True))}

    @property
    def _controls(self) -> list[int]:
        return [n for n, name in enumerate(self.names) if name.startswith("random")]

    def _random(self) -> Tensor:
        if not self._controls:
            raise ProbeError("nothing random was run to compare with: give random=8")
        return self.change[:, self._controls]

    def _rows(self) -> list[dict[str, Any]]:
        found = self.estimate()
        ends = {"": found.mean, "_low": found.low, "_high": found.high}
        cells = [(m, name, end) for m, name in enumerate(self.measures) for end in ends]
        places = self._places()
        return [{**what, **{name + e: float(ends[e][(*at, m)]) for m, name, e in cells}} for at, what in places]

    def _places(self) -> list[tuple[tuple[int, ...], dict[str, Any]]]:
        """Each thing that was done: its place in estimates, and what is said of it in a table."""
        return [((n,), {"name": name}) for n, name in enumerate(self.names)]


@dataclass(frozen=True, kw_only=True, eq=False)
class DirectionEffect(Effect):
    """What adding a direction does to the next token. Made by `direction_effect`; see `Effect`.

    Attributes:
        coefficients: how far activations were moved.
        unit: the length that a coefficient of 1 moves by.
    """

    coefficients: tuple[float, ...]
    unit: float

    def plot(self, measure: str | None = None) -> LineChart:
        """Mean changes against the coefficient, with intervals, beside random directions; see `Effect.plot`."""
        from interp_toolkit.probes.pictures import direction_chart

        return direction_chart(self, self._measure(measure))

    def _places(self) -> list[tuple[tuple[int, ...], dict[str, Any]]]:
        return [
            ((n, at), {"name": name, "coefficient": coefficient})
            for n, name in enumerate(self.names)
            for at, coefficient in enumerate(self.coefficients)
        ]


@dataclass(frozen=True, kw_only=True, eq=False)
class AmnesicEffect(Effect):
    """What erasing a concept does to the next token. Made by `amnesic`; see `Effect`.

    Attributes:
        rank: how many dimensions are erased.
    """

    rank: int


def _shown(found: Estimate, at: tuple[int, ...]) -> str:
    return f"{float(found.mean[at]):+.2f} [{float(found.low[at]):.2f}, {float(found.high[at]):.2f}]"


__all__ = ["AmnesicEffect", "DirectionEffect", "Effect"]
