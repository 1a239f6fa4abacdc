"""What is said about activations: captions, notes and the table."""

from __future__ import annotations

import math

import numpy as np

from interp_toolkit.visualization.document import Table
from interp_toolkit.visualization.measuring import LIMITS, SUMMARY, Measured, standing_out


def short(value: float | None) -> str:
    """A number in about three digits.

    Example:
        >>> short(0.12345), short(-1234.5), short(3.2e-7), short(None)
        ('0.123', '−1,234', '3.2e−07', '–')
    """
    if value is None or math.isnan(value):
        return "–"
    size = abs(value)
    plain = value == 0 or 1e-3 <= size < 1e5
    text = (f"{value:,.0f}" if size >= 100 else f"{value:.3g}") if plain else f"{value:.3g}"
    return text.replace("-", "−")


def caption_of(measured: Measured) -> str:
    """How many rows there are, of what, and what was left out."""
    sample = measured.sample
    layers = f"{len(sample.layers)} layers" if len(sample.layers) > 1 else f"layer {sample.layers[0]}"
    said = [f"{counted(sample.rows, 'row')} of {counted(measured.dimensions, 'dimension')} at {layers}."]
    if len(sample.classes) > 1:
        numbers = [f"{name}: {int(sample.of_class(n).sum()):,}" for n, name in enumerate(sample.classes)]
        said.append(f"Rows by class: {', '.join(numbers)}.")
    if sample.folded:
        said.append(f"“{len(sample.folded)} others” are the smallest classes, put together.")
    if len(measured.drawn) < sample.rows:
        said.append(
            f"All numbers are over all rows; drawn one by one are {len(measured.drawn):,} of them, chosen by lot "
            "(seed 0)."
        )
    return " ".join(said)


def counted(number: int, what: str) -> str:
    """A number and what is counted.

    Example:
        >>> counted(1, "row"), counted(2000, "row")
        ('1 row', '2,000 rows')
    """
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def note_of(kind: str, measured: Measured) -> str:
    """What a panel shows and how it was computed, in some sentences."""
    match kind:
        case "distribution":
            return (
                "Heights are the share of a class in each bin, so that classes of different size can be compared. Axes "
                "end at the extremes, or four quartile ranges beyond the quartiles; what lies outside is counted."
            )
        case "norms":
            return _norms_note(measured)
        case "outliers":
            return _outliers_note(measured)
        case "projection":
            return _projection_note(measured)
        case _:
            return _scatter_note(measured)


def _norms_note(measured: Measured) -> str:
    scale = "The scale is logarithmic. " if measured.norms.log else ""
    by = measured.by_position
    if by is None:
        return f"Length (L2 norm) of each row: median of a class, with the middle half of its rows. {scale}".strip()
    first = np.median(by.medians[:, 0] / np.median(by.medians, axis=1))
    said = "Length (L2 norm) of activations, the median over rows of a position. Colours are logarithmic. "
    if by.columns[0] == "0" and first > 2:
        said += (
            f"At the median layer, position 0 is {short(float(first))} times as long as the median position, as the "
            "first token is in most models. "
        )
    together = any("–" in name for name in by.columns)
    return said + ("Later positions are put together, as the labels say." if together else "").strip()


def _outliers_note(measured: Measured) -> str:
    layers = len(measured.sample.layers)
    said = "Magnitude of each dimension, in multiples of the median magnitude of its layer; the scale is logarithmic. "
    ratios = measured.magnitudes["typical"]
    strong = [(d, int((ratios[:, d] >= LIMITS["typical"]).sum())) for d in standing_out(measured, "typical")]
    strong = [(d, n) for d, n in strong if n]
    if not strong:
        return said + f"In no dimension is the median row at {LIMITS['typical']:g} times the median or more."
    named = ", ".join(f"{d} ({n} of {layers})" if layers > 1 else f"{d}" for d, n in strong[:5])
    where = "dimensions, with the number of layers where they do" if layers > 1 else "dimensions"
    return said + f"The median row reaches {LIMITS['typical']:g} times the median in these {where}: {named}."


def _projection_note(measured: Measured) -> str:
    said = "Position of each row along the direction’s unit vector, in units of the activations. "
    found = measured.projection
    if found is None or not found.against:
        return said + "There is one class: nothing to separate."
    low, high = found.against[0]
    pair = (
        f"a row of “{high}” lies above one of “{low}”" if len(found.against) == 1 else "a class lies above the others"
    )
    return said + (
        f"ROC AUC: how often {pair}; ½ is chance, below it the order is reversed. Overlap: one minus the "
        "largest distance of the cumulative distributions, 1 if they are equal; neither depends on bins or a chosen "
        "threshold. If the direction was fitted on these rows, both flatter it."
    )


def _scatter_note(measured: Measured) -> str:
    said = "Principal components of the centred rows, layer by layer; the sign makes the largest entry positive."
    most = max(measured.scatter.left_out)
    if most:
        said += (
            f" Up to {counted(most, 'row')} of a layer, many times as long as the median, would take the first "
            "component for themselves: they were left out of the fit and are drawn hollow at the edge."
        )
    return said


def table_of(measured: Measured, title: str) -> Table:
    """All that is said in numbers, a line for each layer and class."""
    sample, found = measured.sample, measured.projection
    chosen = [SUMMARY.index(name) for name in ("mean", "standard deviation", "5%", "median", "95%")]
    names = [SUMMARY[n] for n in chosen]
    headers = ["layer", "class", "rows", *(f"value: {n}" for n in names), *(f"norm: {n}" for n in names)]
    spreads = [measured.values, measured.norms]
    if found is not None:
        spreads.append(found.spread)
        headers += [*(f"projection: {n}" for n in names), "ROC AUC", "overlap"]
    headers += ["explained by PC 1, 2", "strongest dimension (times median)"]
    rows = []
    for layer, name in enumerate(sample.layers):
        top = int(np.argmax(measured.magnitudes["typical"][layer]))
        ratio = short(float(measured.magnitudes["typical"][layer, top]))
        shares = ", ".join(f"{share:.1%}" for share in measured.scatter.shares[layer, :2])
        for number, group in enumerate(sample.classes):
            cells = [short(float(s.summary[layer, number, n])) for s in spreads for n in chosen]
            apart = [] if found is None else _separated(measured, layer, number)
            count = f"{int(sample.of_class(number).sum()):,}"
            rows.append([name, group, count, *cells, *apart, shares, f"{top} ({ratio})"])
    return Table(title=title, headers=headers, rows=rows)


def _separated(measured: Measured, layer: int, number: int) -> list[str]:
    """AUC and overlap of a class, for the table."""
    found = measured.projection
    assert found is not None
    pairs = found.separations[layer]
    # Two classes have one comparison, of the second with the first
    pair = pairs[number - (len(pairs) == 1)] if pairs and number >= (len(pairs) == 1) else None
    return ["–", "–"] if pair is None else [f"{pair.auc:.3f}", f"{pair.overlap:.3f}"]


__all__ = ["caption_of", "counted", "note_of", "short", "table_of"]
