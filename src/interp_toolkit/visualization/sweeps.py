"""Charts of what the field measures: accuracy by layer, faithfulness against size, effect against strength."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from interp_toolkit.visualization.lines import LineChart, Series


@runtime_checkable
class Measured(Protocol):
    """A number with its interval."""

    @property
    def value(self) -> float:
        """The number."""

    @property
    def low(self) -> float:
        """The lower end of its interval."""

    @property
    def high(self) -> float:
        """The upper end."""


@runtime_checkable
class Curve(Protocol):
    """Faithfulness of circuits of several sizes, as `FaithfulnessCurve` has it."""

    @property
    def sizes(self) -> Sequence[float]:
        """Shares of all edges."""

    @property
    def method(self) -> str:
        """How edges were scored."""

    @property
    def metric(self) -> str:
        """What was measured."""

    @property
    def level(self) -> float:
        """Of the intervals."""

    @property
    def random(self) -> Any:
        """Measures of random circuits; empty if none were run."""

    def faithfulness(self, by: Any = ...) -> Sequence[Measured]:
        """For each size a number with its interval."""

    def random_faithfulness(self) -> Sequence[Measured]:
        """The same of random circuits."""


def plot_accuracy_by_layer(
    accuracy: Mapping[str, Any] | Sequence[int | float] | Any,
    *,
    layers: Sequence[int | str] | None = None,
    intervals: Mapping[str, tuple[Any, Any]] | tuple[Any, Any] | None = None,
    controls: Mapping[str, Any] | None = None,
    baselines: Mapping[str, int | float] | None = None,
    title: str = "Probe accuracy by layer",
    caption: str = "Accuracy on held-out data; bands are intervals.",
    y_name: str = "accuracy",
    marked: Sequence[tuple[int, int]] = (),
) -> LineChart:
    """How well probes do at each layer, with intervals, control tasks and chance.

    Args:
        accuracy: a number for each layer, or such numbers by kind of probe.
        layers: what the layers are called; 0, 1, 2 and so on if they are not given.
        intervals: lower and upper ends for each layer, by kind of probe if there are several.
        controls: what probes reach on control tasks, by name; drawn in grey.
        baselines: levels without the layers, such as `{"chance": 0.5}`.
        title: above the chart.
        caption: what it shows.
        y_name: the score.
        marked: chosen points, as (kind, layer) counted from 0.

    Raises:
        ValueError: when numbers and layers do not match.

    Example:
        >>> chart = plot_accuracy_by_layer([0.5, 0.8, 0.9], baselines={"chance": 0.5})
        >>> [series.name for series in chart.series], chart.references
        (['probe'], [('chance', 0.5)])
    """
    kinds = accuracy if isinstance(accuracy, Mapping) else {"probe": accuracy}
    ends = intervals if isinstance(intervals, Mapping) else {} if intervals is None else dict.fromkeys(kinds, intervals)
    series = [_with_ends(kind, values, ends.get(kind)) for kind, values in kinds.items()]
    series += [Series(name=name, y=values, grey=True) for name, values in (controls or {}).items()]
    names = list(range(len(series[0].y))) if layers is None else list(layers)
    return LineChart(
        x=names,
        series=series,
        title=title,
        caption=caption,
        x_name="layer",
        y_name=y_name,
        references=list((baselines or {}).items()),
        marked=marked,
    )


def plot_faithfulness(
    curve: Curve | Mapping[str, Curve],
    *,
    by: str = "absolute",
    title: str = "Faithfulness of circuits by size",
    caption: str | None = None,
) -> LineChart:
    """How much of a behaviour circuits of more and more edges carry, with intervals and random circuits.

    Args:
        curve: a curve, or curves of several methods by name.
        by: circuits chosen by `"absolute"` or `"signed"` scores.
        title: above the chart.
        caption: what it shows.

    Raises:
        ValueError: when there is no curve, or the sizes of several differ.
    """
    curves = dict(curve) if isinstance(curve, Mapping) else {curve.method: curve}
    sizes = {tuple(float(size) for size in found.sizes) for found in curves.values()}
    if len(sizes) != 1:
        raise ValueError(f"curves on one chart share their sizes, but these have {sorted(sizes)}")
    first = next(iter(curves.values()))
    series = [_series(name, found.faithfulness(by)) for name, found in curves.items()]
    if len(first.random):
        series.append(_series("random circuits", first.random_faithfulness(), grey=True))
    told = (
        f"Share of the model's {first.metric} that a circuit of so many edges keeps: 1 is the whole model, 0 the empty "
        f"circuit. Bands are {first.level:.0%} intervals over prompts; circuits are chosen by {by} scores."
    )
    [places] = sizes
    return LineChart(
        x=list(places),
        series=series,
        title=title,
        caption=told if caption is None else caption,
        x_name="share of all edges",
        y_name="faithfulness",
        log=len(places) > 1,
        percent=True,
        references=[("whole model", 1.0)],
    )


def plot_steering(
    coefficients: Sequence[int | float],
    effects: Mapping[str, Any],
    *,
    intervals: Mapping[str, tuple[Any, Any]] | None = None,
    baselines: Sequence[str] = (),
    title: str = "Steering",
    caption: str = "Bands are intervals over prompts.",
    x_name: str = "coefficient",
    y_name: str = "logit difference",
) -> LineChart:
    """What steering does at each strength, beside baselines such as random directions.

    Args:
        coefficients: strengths, increasing.
        effects: for each direction or layer a number at each strength.
        intervals: lower and upper ends, by the same names.
        baselines: which of them stay in the background, such as `["random directions"]`.
        title: above the chart.
        caption: what it shows.
        x_name: what the strengths are, with their unit.
        y_name: what is measured.

    Raises:
        ValueError: when numbers and strengths do not match.

    Example:
        >>> chart = plot_steering([-1, 0, 1], {"sentiment": [-2.0, 0.1, 1.9]})
        >>> chart.series[0].words(2)
        '1.900'
    """
    ends = intervals or {}
    series = [_with_ends(name, values, ends.get(name), grey=name in baselines) for name, values in effects.items()]
    return LineChart(x=list(coefficients), series=series, title=title, caption=caption, x_name=x_name, y_name=y_name)


def _with_ends(name: str, values: Any, ends: tuple[Any, Any] | None, *, grey: bool = False) -> Series:
    low, high = (None, None) if ends is None else ends
    return Series(name=name, y=values, low=low, high=high, grey=grey)


def _series(name: str, points: Sequence[Measured], *, grey: bool = False) -> Series:
    """A line through numbers with their intervals."""
    values, low, high = ([float(getattr(p, part)) for p in points] for part in ("value", "low", "high"))
    return Series(name=name, y=values, low=low, high=high, grey=grey)


__all__ = ["Curve", "Measured", "plot_accuracy_by_layer", "plot_faithfulness", "plot_steering"]
