"""Activations to look at: distributions, norms, outlier dimensions, projections and principal components."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from interp_toolkit.visualization.activation_pictures import drawn_panels
from interp_toolkit.visualization.activation_words import caption_of, note_of, table_of
from interp_toolkit.visualization.bundle import packed
from interp_toolkit.visualization.document import Table, shortened, visible
from interp_toolkit.visualization.measuring import (
    LIMITS,
    SUMMARY,
    Measured,
    Projection,
    Scatter,
    Spread,
    measure,
    standing_out,
)
from interp_toolkit.visualization.pictures import Picture
from interp_toolkit.visualization.samples import read_sample
from interp_toolkit.visualization.view import View

Kind = Literal["distribution", "norms", "outliers", "projection", "pca"]
_TITLES: dict[str, str] = {
    "distribution": "Distribution",
    "norms": "Norms",
    "outliers": "Outliers",
    "projection": "Projection",
    "pca": "PCA",
}
_LONGEST_TEXT = 240


@dataclass(frozen=True, kw_only=True)
class ActivationsView(View):
    """Activations in one or more panels, with a slider for the layer. Made by `plot_activations`.

    Attributes:
        title: above it.
        caption: what it shows.
        measured: everything that was computed.
        kinds: the panels.
        start: the number of the layer that is shown first, and in the still scatter plot.
    """

    title: str
    caption: str = ""
    measured: Measured
    kinds: tuple[str, ...]
    start: int

    @property
    def modules(self) -> Sequence[str]:
        """See `View.modules`."""
        return ("distributions.js",)

    def data(self) -> dict[str, Any]:
        """See `View.data`."""
        found, sample = self.measured, self.measured.sample
        data: dict[str, Any] = {
            "title": visible(self.title),
            "layers": [visible(name) for name in sample.layers],
            "classes": [
                {"name": visible(shortened(name, 60)), "rows": int(sample.of_class(n).sum())}
                for n, name in enumerate(sample.classes)
            ],
            "panels": [{"kind": k, "title": _TITLES[k], "note": visible(note_of(k, found))} for k in self.kinds],
            "start": self.start,
            "summary": list(SUMMARY),
            "dimensions": found.dimensions,
            "values": _spread_data(found.values),
            "norms": _spread_data(found.norms),
        }
        if "norms" in self.kinds and found.by_position is not None:
            by = found.by_position
            data["positions"] = {
                "columns": list(by.columns),
                "tokens": None if by.tokens is None else [visible(shortened(t, 40)) for t in by.tokens],
                "numbers": list(by.numbers),
                "medians": packed(by.medians.astype(np.float32)),
            }
        if "outliers" in self.kinds:
            data["outliers"] = [
                {"key": key, "limit": limit, "ratios": _ratios(found.magnitudes[key]), "top": standing_out(found, key)}
                for key, limit in LIMITS.items()
            ]
        if "projection" in self.kinds and found.projection is not None:
            data["projection"] = _projection_data(found.projection, found.drawn)
        if "pca" in self.kinds:
            data["pca"] = _scatter_data(found.scatter)
        if {"pca", "projection"} & set(self.kinds):
            data["rows"] = self._rows()
        return data

    def _rows(self) -> dict[str, Any]:
        """What is known of the rows that are drawn one by one."""
        sample, drawn = self.measured.sample, self.measured.drawn
        texts = None
        if sample.texts is not None:
            known = [visible(shortened(sample.texts[row], _LONGEST_TEXT)) for row in drawn]
            texts = packed(np.frombuffer(json.dumps(known).encode(), dtype=np.uint8))
        return {
            "numbers": packed(drawn.astype(np.int32)),
            "classes": packed(sample.labels[drawn]),
            "positions": None if sample.positions is None else packed(sample.positions[drawn]),
            "texts": texts,
        }

    def picture(self, *, titled: bool = True) -> Picture:
        """See `View.picture`."""
        return drawn_panels(self.measured, self.kinds, title=self.title, titled=titled, layer=self.start)

    def table(self) -> Table:
        """See `View.table`."""
        return table_of(self.measured, self.title)

    def __repr__(self) -> str:
        """What it shows, in a line."""
        sample = self.measured.sample
        size = f"{len(sample.layers)} layer(s), {sample.rows} rows"
        return f"ActivationsView({self.title!r}, {size}, {', '.join(self.kinds)})"


def plot_activations(
    activations: Any,
    *,
    labels: Any = None,
    tokens: Sequence[str] | Sequence[Sequence[str]] | None = None,
    texts: Sequence[str] | None = None,
    layers: Sequence[int | str] | None = None,
    direction: Any = None,
    kind: Kind | Sequence[Kind] | None = None,
    title: str = "Activations",
    caption: str = "",
    layer: int | str | None = None,
    output: str | Path | None = None,
    draw: int = 5000,
    massive: float = 10.0,
) -> ActivationsView:
    """Show activations: how they spread per layer and class, how long they are, what stands out, where rows lie.

    Arrays, tensors (also bfloat16) and lists are taken. Statistics are over all rows.

    Args:
        activations: `[row, d]` for one layer; `[layer, row, d]`; a mapping from layers to `[row, d]`; or what
            `ActivationCache.run` returned, whose rows are the tokens of its prompts.
        labels: the class of each row: whole numbers, true/false or text. For a run of several prompts also one for each
            prompt. Beyond eight classes the smallest are put together.
        tokens: when rows are tokens: those of one prompt, or a list for each prompt, one behind the other. Then norms
            are shown by position, too.
        texts: what is shown of each row on hover.
        layers: for an array of layers their names; otherwise which layers are shown.
        direction: such as a probe's or steering vector, `[d]`, or one for each layer as `[layer, d]` or a mapping. Rows
            are projected on it, and how far it separates the classes is said.
        kind: a panel or several: `"distribution"`, `"norms"`, `"outliers"`, `"projection"`, `"pca"`. All that the data
            allow, if it is not given.
        title: above it.
        caption: below it; by default the number of rows, classes and what was left out.
        layer: the one that is shown first; by default two thirds of the way up.
        output: a file to write, see `View.save`.
        draw: at most so many rows are drawn one by one; which, is drawn by lot with a fixed seed.
        massive: rows whose norm is more than so many times the median of their layer, as that of the first token often
            is, are left out when principal components are computed, and drawn at the edge.

    Returns:
        A view that shows itself in a notebook; `save` writes it.

    Raises:
        ValueError: for shapes, labels or texts that do not fit, for NaN and infinity (saying where), for
            `kind="projection"` without a direction.
        TypeError: for what holds no real numbers.

    Example:
        >>> view = plot_activations([[0.0, 1.0], [1.0, 3.0], [4.0, 2.0]], labels=["a", "b", "b"], direction=[1.0, 0.0])
        >>> view
        ActivationsView('Activations', 1 layer(s), 3 rows, distribution, norms, outliers, projection, pca)
        >>> view.measured.projection.separations[0][0].auc
        1.0
    """
    kinds = _kinds(kind, direction)
    sample = read_sample(activations, labels=labels, tokens=tokens, texts=texts, layers=layers)
    if layer is not None and str(layer) not in sample.layers:
        raise ValueError(f"layer {layer} is not among those that are shown: {', '.join(sample.layers)}")
    measured = measure(sample, direction=direction if "projection" in kinds else None, draw=draw, massive=massive)
    view = ActivationsView(
        title=title,
        caption=caption or caption_of(measured),
        measured=measured,
        kinds=kinds,
        start=round(2 / 3 * (len(sample.layers) - 1)) if layer is None else sample.layers.index(str(layer)),
    )
    if output is not None:
        view.save(output)
    return view


def _kinds(kind: Kind | Sequence[Kind] | None, direction: Any) -> tuple[str, ...]:
    """The panels that are shown."""
    known = get_args(Kind)
    if kind is None:
        return tuple(k for k in known if k != "projection" or direction is not None)
    asked = (kind,) if isinstance(kind, str) else tuple(kind)
    wrong = [k for k in asked if k not in known]
    if wrong or not asked:
        raise ValueError(f"kind is one of {', '.join(known)}, or several of them, not {kind!r}")
    if "projection" in asked and direction is None:
        raise ValueError(
            'kind="projection" needs direction=, such as a probe\'s or a steering vector, [d] or [layer, d]'
        )
    return asked


def _spread_data(spread: Spread) -> dict[str, Any]:
    return {
        "log": spread.log,
        "bins": spread.counts.shape[-1],
        "edges": packed(spread.edges.astype(np.float32)),
        "counts": packed(spread.counts),
        "outside": packed(spread.outside),
        "summary": packed(spread.summary.astype(np.float32)),
    }


def _ratios(values: NDArray[np.float32]) -> dict[str, Any]:
    """Rounded to about three digits, in which they compress well."""
    rounded = (values.view(np.int32) + (1 << 11)) & ~np.int32((1 << 12) - 1)
    return packed(rounded.astype(np.int32).view(np.float32))


def _levels(values: NDArray[np.float64], shown: NDArray[np.bool_]) -> dict[str, Any]:
    """Numbers `[group, row]` in 65,536 steps between the extremes of those that `shown` marks; others at the edges."""
    low = np.min(values, axis=1, where=shown, initial=np.inf)
    high = np.max(values, axis=1, where=shown, initial=-np.inf)
    reach = np.where(high > low, high - low, 1.0)
    steps = np.clip((values - low[:, None]) / reach[:, None], 0, 1) * 65535
    edges = np.stack([low, low + reach], axis=1).astype(np.float32)
    return {"edges": packed(edges), "steps": packed(np.rint(steps).astype(np.uint16))}


def _projection_data(found: Projection, drawn: NDArray[np.int64]) -> dict[str, Any]:
    scores = found.scores[:, drawn]
    return {
        "spread": _spread_data(found.spread),
        "scores": _levels(scores, np.ones_like(scores, dtype=np.bool_)),
        "against": [[visible(name) for name in pair] for pair in found.against],
        "separations": [
            [None if s is None else {"auc": s.auc, "overlap": s.overlap, "distance": s.distance} for s in layer]
            for layer in found.separations
        ],
    }


def _scatter_data(found: Scatter) -> dict[str, Any]:
    layers, rows, components = found.scores.shape
    values = np.moveaxis(found.scores, 2, 1).reshape(layers * components, rows)
    return {
        "components": components,
        "scores": _levels(values, np.repeat(~found.apart, components, axis=0)),
        "shares": [[float(share) for share in layer] for layer in found.shares],
        "apart": packed(found.apart.astype(np.uint8)) if found.apart.any() else None,
        "leftOut": list(found.left_out),
    }


__all__ = ["ActivationsView", "Kind", "plot_activations"]
