"""First-order estimates of patching: one backward pass for all cells of a pair (attribution patching)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from interp_toolkit.circuits.dataset import Pairs
from interp_toolkit.circuits.measuring import Measured, question_of
from interp_toolkit.circuits.metrics import Metric
from interp_toolkit.circuits.results import Direction
from interp_toolkit.errors import MetricError
from interp_toolkit.model.cells import Cell
from interp_toolkit.model.run import Run, run
from interp_toolkit.model.sites import Site
from interp_toolkit.model.wiring import Wiring


def estimate(
    wiring: Wiring,
    pairs: Pairs,
    numbers: Sequence[int],
    cells: Sequence[Cell],
    metric: Metric,
    direction: Direction,
) -> Measured:
    """Estimate the metric of cells that swap activations between the two runs of a pair.

    The estimate is `m(base) + Σ (source − base) · ∂m/∂x`, the gradient taken in the base run (Nanda 2023, "Attribution
    patching"). Cells refer to base runs as in `plan_pairs`.

    Raises:
        MetricError: for a metric without a gradient, such as a rank.
    """
    sites = sorted({swap.site.whole for cell in cells for swap in cell.swaps}, key=str)
    by_base: dict[int, list[int]] = {}
    for n, cell in enumerate(cells):
        by_base.setdefault(cell.base, []).append(n)
    found = torch.full((len(cells),), torch.nan)
    sides = []
    for at, number in enumerate(numbers):
        clean, corrupt = pairs.clean[number], pairs.corrupt[number]
        base, source = (corrupt, clean) if direction == "denoise" else (clean, corrupt)
        other = run(wiring.model, source, read=sites, logits="last", layout=wiring.layout)
        here = run(wiring.model, base, read=sites, logits="last", grad=True, layout=wiring.layout)
        logits = [_last(r) for r in ((other, here) if direction == "denoise" else (here, other))]
        value, both = _measured(metric, pairs, number, logits, here)
        sides.append(both)
        products = _products(sites, value, here, other, metric)
        which = 2 * at + (1 if direction == "denoise" else 0)
        for n in by_base.get(which, ()):
            change = sum(_share(products[swap.site.whole], swap.site, swap.positions) for swap in cells[n].swaps)
            found[n] = float(value.detach()) + change
    clean_values, corrupt_values = torch.stack(sides).unbind(1)
    return Measured(cells=found.to(clean_values), clean=clean_values, corrupt=corrupt_values)


def _last(found: Run) -> Tensor:
    return found.logits[0, -1]


def _measured(
    metric: Metric, pairs: Pairs, number: int, logits: Sequence[Tensor], here: Run
) -> tuple[Tensor, Float[Tensor, " side"]]:
    """The metric of the base run, with its graph, and of the clean and the corrupt run."""
    question = question_of(pairs, number, *(x.detach().float() for x in logits))
    ids = metric.needs(question)
    columns = list(range(question.vocab)) if ids is None else list(ids)
    both = metric.measure(torch.stack([x.detach()[columns] for x in logits]), question)
    return metric.measure(_last(here)[None, columns], question)[0], both.cpu()


def _products(
    sites: Sequence[Site], value: Tensor, here: Run, other: Run, metric: Metric
) -> dict[Site, npt.NDArray[np.floating[Any]]]:
    """For each site the difference times the gradient, summed within positions and heads, `[pos, index]`."""
    if not value.requires_grad:
        raise MetricError(f"{metric.name} has no gradient: use order='exact', or a metric such as 'logit_diff'")
    slopes = torch.autograd.grad(value, [here[site] for site in sites], allow_unused=True)
    found = {}
    for site, slope in zip(sites, slopes, strict=True):
        base = here[site].detach()
        wide = torch.promote_types(base.dtype, torch.float32)
        product = torch.zeros_like(base, dtype=wide)
        if slope is not None:
            product = (other[site].to(wide) - base.to(wide)).nan_to_num(0.0) * slope.to(wide)
        axes = list(site.axes)
        index = site.kind.index_axis
        keep = ["pos", index] if index else ["pos"]
        rest = [n for n, axis in enumerate(axes) if axis not in keep]
        summed = product.sum(rest)
        kept = [axis for axis in axes if axis in keep]
        by_position = summed if kept == keep else summed.T
        found[site] = by_position.reshape(base.shape[site.kind.position_dim], -1).cpu().numpy()
    return found


def _share(product: npt.NDArray[np.floating[Any]], site: Site, where: Sequence[int] | None) -> float:
    """What a swap contributes; numpy, because sweeps over neurons have a hundred thousand of them."""
    part = product if where is None else product[list(where)]
    return float(part.sum() if site.index is None else part[:, site.index].sum())


__all__ = ["estimate"]
