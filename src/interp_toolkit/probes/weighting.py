"""How much rows count, which of them are pairs, and what data these are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp_toolkit.activations.access import SiteView
from interp_toolkit.errors import ProbeError
from interp_toolkit.probes.inputs import Targets, is_positive

ClassWeight = Literal["balanced"] | Mapping[Any, float]
"""The same total for every class, or a weight for the rows of each."""


def row_weights(targets: Targets, class_weight: Any, sample_weight: Any = None) -> Float[Tensor, " row"]:
    """How much each row counts: its own weight times that of its class.

    Raises:
        ProbeError: for weights that do not fit or are negative.
    """
    own = sample_weights(len(targets), sample_weight)
    if targets.index is None:
        _refuse_one_sided(targets, own)
        if class_weight is not None:
            raise ProbeError("class_weight is for classes: for labels and regression give sample_weight")
        return own
    counts = torch.bincount(targets.index, own, minlength=len(targets.classes))
    without = [targets.classes[n] for n in (counts == 0).nonzero()[:, 0].tolist()]
    if without:
        raise ProbeError(f"all rows of class {without} have sample weight 0: leave them out")
    if class_weight is None:
        return own
    return own * _per_class(targets.classes, counts, class_weight)[targets.index]


def _refuse_one_sided(targets: Targets, own: Float[Tensor, " row"]) -> None:
    """Refuse labels that all rows have that count, or none."""
    if targets.kind == "labels":
        told = targets.tasks[own > 0].float().mean(0)
        wrong = [name for name, share in zip(targets.classes, told.tolist(), strict=True) if share in (0, 1)]
        if wrong:
            raise ProbeError(f"labels {wrong} have one class only among the rows whose sample weight is not 0")


def sample_weights(rows: int, sample_weight: Any) -> Float[Tensor, " row"]:
    """One weight for each row; 1 if not given.

    Raises:
        ProbeError: for weights that do not fit, or are no weights.
    """
    if sample_weight is None:
        return torch.ones(rows, dtype=torch.float64)
    given = np.asarray(sample_weight.detach().cpu() if isinstance(sample_weight, Tensor) else sample_weight)
    if given.shape not in ((), (rows,)):
        raise ProbeError(
            f"Sample weights must be 1D array or scalar: {rows} rows got sample_weight.shape == {given.shape}"
        )
    if given.dtype.kind not in "biufO":
        raise ProbeError(f"sample weights are numbers, not {given.dtype}")
    own = torch.from_numpy(given.astype(np.float64)).expand(rows).clone()
    if not bool(torch.isfinite(own).all()) or bool((own < 0).any()) or not bool((own > 0).any()):
        raise ProbeError("sample weights are finite, not negative, and not all zero")
    return own


def _per_class(classes: Sequence[Any], counts: Float[Tensor, " class"], class_weight: Any) -> Float[Tensor, " class"]:
    if class_weight == "balanced":
        return counts.sum() / (len(classes) * counts)
    if not isinstance(class_weight, Mapping):
        raise ProbeError(f"class_weight is 'balanced' or a weight for each class, not {class_weight!r}")
    strange = [name for name in class_weight if name not in classes]
    if strange:
        raise ProbeError(f"class_weight names {strange}, but the classes are {classes}")
    wrong = {name: x for name, x in class_weight.items() if not is_positive(x)}
    if wrong:
        raise ProbeError(f"the weight of a class is a positive number, but class_weight holds {wrong}")
    return torch.tensor([float(class_weight.get(name, 1.0)) for name in classes], dtype=torch.float64)


def pair_rows(pairs: Any, rows: int, seed: int) -> Int[Tensor, "pair side"]:
    """The rows of each pair, in random order, so that the order says nothing.

    Raises:
        ProbeError: when a pair does not have two rows.
    """
    names = list(pairs.tolist() if isinstance(pairs, Tensor | np.ndarray) else pairs)
    if len(names) != rows:
        raise ProbeError(f"there are {rows} rows, but {len(names)} names of pairs")
    found: dict[Any, list[int]] = {}
    for row, name in enumerate(names):
        found.setdefault(name, []).append(row)
    wrong = {name: several for name, several in found.items() if len(several) != 2}
    if wrong:
        name, several = next(iter(wrong.items()))
        raise ProbeError(f"pair {name!r} has rows {several}, but a pair has two; so it is for {len(wrong)} pairs")
    table = torch.tensor(list(found.values()))
    swap = torch.rand(len(table), generator=torch.Generator().manual_seed(seed)) < 0.5
    return torch.where(swap[:, None], table.flip(1), table)


def digest_of(x: Tensor | SiteView, targets: Targets) -> str:
    """The sha256 of the data a probe was trained on."""
    found = hashlib.sha256(repr((tuple(x.shape), targets.kind, targets.classes)).encode())
    for begin in range(0, len(x), 1 << 15):
        found.update(x[begin : begin + (1 << 15)].detach().float().cpu().contiguous().numpy().tobytes())
    labels = targets.table if targets.index is None else targets.index
    assert labels is not None
    found.update(labels.numpy().tobytes())
    return found.hexdigest()


__all__ = ["ClassWeight", "digest_of", "pair_rows", "row_weights", "sample_weights"]
