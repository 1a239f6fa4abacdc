"""Erasing a concept from activations, so that no linear probe can read it any more.

An `Eraser` is an affine map of low rank. `leace` makes the one that changes activations least; `projection` removes
given directions. `steering_edit` and `ablation_edit` put a direction into a model, or take it away there.
"""

from __future__ import annotations

import importlib.metadata
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from interp_toolkit.errors import FileFormatError, InterpWarning, ProbeError
from interp_toolkit.model.edits import Edit
from interp_toolkit.model.machine import free_memory
from interp_toolkit.model.positions import PositionsLike
from interp_toolkit.model.sites import Site
from interp_toolkit.probes.features import Features
from interp_toolkit.probes.inputs import Target, Targets, read_rows, read_targets

Control = Literal["isotropic", "activations"]
"""Where random directions come from: every direction alike, or more from those in which activations vary."""

_FORMAT = "interp_toolkit.eraser/1"
_NAMES = ("left", "right", "mean")
_NONE = 1e-8
"""A correlation so small is rounding."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Eraser:
    """The affine map `x -> x - left @ right @ (x - mean)`. Make it with `leace` or `projection`.

    It is a function of activations, so it can be used anywhere; `edit` puts it into a model.

    Attributes:
        left: what is taken away lies in the span of its columns.
        right: what reads how much of each column that is.
        mean: the activation that stays as it is.

    Example:
        >>> eraser = projection(torch.tensor([0.0, 2.0, 0.0]))
        >>> eraser, eraser(torch.tensor([1.0, 2.0, 3.0]))
        (Eraser(rank 1 of 3), tensor([1., 0., 3.]))
        >>> eraser.edit("resid_post.3")
        Edit(apply resid_post.3 at all)
    """

    left: Float[Tensor, "d k"]
    right: Float[Tensor, "k d"]
    mean: Float[Tensor, " d"]

    @property
    def rank(self) -> int:
        """How many dimensions are erased."""
        return self.left.shape[1]

    def __call__(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """Activations without the concept, in their own precision; computed in float32 at least.

        Raises:
            ProbeError: for another number of features.
        """
        if x.ndim == 0 or x.shape[-1] != len(self.mean):
            raise ProbeError(f"the eraser is for {len(self.mean)} features, but the activations are {tuple(x.shape)}")
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        left, right, mean = (part.to(wide.dtype).to(wide.device) for part in (self.left, self.right, self.mean))
        # Two small products, never the d x d projection.
        return (wide - ((wide - mean) @ right.mT) @ left.mT).to(x.dtype)

    def edit(self, site: Site | str, *, positions: PositionsLike = None, rows: Sequence[int] | None = None) -> Edit:
        """Erase at a site, in `run`, in `editing` and with it in `generate`.

        Args:
            site: where; its last axis has as many entries as the eraser has features.
            positions: for which tokens; all if not given.
            rows: for which rows of the batch.
        """
        return Edit.apply(site, self, positions=positions, rows=rows)

    def save(self, path: str | Path) -> Path:
        """Write the eraser as safetensors.

        Raises:
            FileNotFoundError: when there is no such folder.
        """
        target = Path(path)
        if not target.parent.is_dir():
            raise FileNotFoundError(f"{target} cannot be written: there is no folder {target.parent}")
        version = importlib.metadata.version("interpretability-toolkit")
        tensors = {name: vars(self)[name].cpu().clone(memory_format=torch.contiguous_format) for name in _NAMES}
        save_file(tensors, target, metadata={"format": _FORMAT, "version": version})
        return target

    @classmethod
    def load(cls, path: str | Path) -> Eraser:
        """Read what `save` wrote.

        Raises:
            FileFormatError: when it is something else, or damaged.
        """
        try:
            with safe_open(str(path), framework="pt") as file:
                kind = (file.metadata() or {}).get("format", "something else")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        except FileNotFoundError:
            raise
        except (SafetensorError, OSError) as error:
            raise FileFormatError(f"{path} cannot be read as an eraser: {error}") from error
        if kind != _FORMAT:
            raise FileFormatError(f"{path} holds {kind!r}, not an eraser")
        shapes = [tuple(tensors[name].shape) for name in _NAMES if name in tensors]
        d, k = shapes[0] if len(shapes) == len(_NAMES) and len(shapes[0]) == 2 else (0, 0)
        if shapes != [(d, k), (k, d), (d,)]:
            raise FileFormatError(f"{path} is damaged: left, right and mean have shapes {shapes}")
        return cls(**{name: tensors[name] for name in _NAMES})

    def __repr__(self) -> str:
        """How much it erases."""
        return f"Eraser(rank {self.rank} of {len(self.mean)})"


def projection(directions: Float[Tensor, "*direction d"], *, mean: Float[Tensor, " d"] | None = None) -> Eraser:
    """The eraser that removes given directions, for instance `probe.direction`.

    Activations get, along these directions, what `mean` has; 0 if it is not given.

    Args:
        directions: `[d]` or `[direction, d]`, of any length but zero; they need not be independent.
        mean: the activation that stays as it is, such as the mean of a data set.

    Raises:
        ProbeError: for directions that are zero or not finite.

    Example:
        >>> eraser = projection(torch.tensor([[1.0, 1.0, 0.0]]), mean=torch.tensor([3.0, 3.0, 3.0]))
        >>> eraser(torch.tensor([1.0, -1.0, 5.0])).round(decimals=3)
        tensor([4., 2., 5.])
    """
    wide = directions.detach().to(_wide(directions.device))
    wide = wide[None] if wide.ndim == 1 else wide
    if wide.ndim != 2 or not len(wide) or not bool(wide.isfinite().all()) or bool((wide.norm(dim=-1) == 0).any()):
        raise ProbeError(
            f"directions have shape [d] or [direction, d], are finite and not zero; these have shape "
            f"{tuple(directions.shape)}"
        )
    _, sizes, axes = torch.linalg.svd(wide / wide.norm(dim=-1, keepdim=True), full_matrices=False)
    basis = axes[sizes > _NONE * sizes[0]] if wide.dtype == torch.float64 else axes[sizes > 1e-5 * sizes[0]]
    middle = torch.zeros_like(wide[0]) if mean is None else mean.detach().to(wide)
    if middle.shape != wide.shape[1:]:
        raise ProbeError(f"the mean has shape {tuple(middle.shape)}, the directions have {wide.shape[1]} entries")
    return Eraser(left=basis.mT, right=basis, mean=middle)


def steering_edit(
    direction: Float[Tensor, " d"],
    site: Site | str,
    coefficient: float,
    *,
    scale: Literal["norm", "raw"] = "norm",
    norm: float | None = None,
    positions: PositionsLike = None,
    rows: Sequence[int] | None = None,
) -> Edit:
    """Add a direction at a site.

    Args:
        direction: where to; for instance `probe.direction` or `probe.pattern`.
        site: where.
        coefficient: how far.
        scale: `"norm"`: a coefficient of 1 moves by the length `norm`, whatever the length of the direction. `"raw"`:
            it adds the direction as it is.
        norm: what counts as 1: for instance the median length of activations there (not the mean, as the first token's
            is many times longer in most models), or the standard deviation of their projections on the direction.
        positions: for which tokens; all if not given.
        rows: for which rows of the batch.

    Raises:
        ProbeError: for a direction that is zero, not finite or more than one, or a scale without its norm.

    Example:
        >>> edit = steering_edit(torch.tensor([0.0, 2.0]), "resid_post.3", 0.5, norm=10.0, positions="last")
        >>> edit, edit.value.tolist()
        (Edit(add resid_post.3 at last), [0.0, 5.0])
    """
    if (scale == "norm") != (norm is not None):
        raise ProbeError(
            "scale='norm' needs norm=, the length that a coefficient of 1 moves by; scale='raw' adds the direction as "
            f"it is and takes none; these are {scale!r} and {norm!r}"
        )
    vector = one_direction(direction)
    length = 1.0 if norm is None else norm / float(vector.norm())
    return Edit.add(site, vector * (coefficient * length), positions=positions, rows=rows)


def ablation_edit(
    direction: Float[Tensor, "*direction d"],
    site: Site | str,
    *,
    mean: Float[Tensor, " d"] | None = None,
    positions: PositionsLike = None,
    rows: Sequence[int] | None = None,
) -> Edit:
    """Take away what activations have along a direction, or several.

    Args:
        direction: `[d]` or `[direction, d]`, of any length but zero.
        site: where.
        mean: what activations get along the direction instead: as much as this one has; nothing if not given. The
            mean of a data set keeps them where the model expects them.
        positions: for which tokens; all if not given.
        rows: for which rows of the batch.

    Raises:
        ProbeError: for directions that are zero or not finite.

    Example:
        >>> ablation_edit(torch.tensor([0.0, 2.0]), "resid_post.3")
        Edit(project_out resid_post.3 at all)
    """
    eraser = projection(direction, mean=mean)
    if mean is None:
        return Edit.project_out(site, eraser.right, positions=positions, rows=rows)
    return eraser.edit(site, positions=positions, rows=rows)


def one_direction(direction: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
    """A direction in full precision.

    Raises:
        ProbeError: when it is zero, not finite, or more than one.
    """
    wide = direction.detach().to(_wide(direction.device))
    if wide.ndim != 1 or not bool(wide.isfinite().all()) or not bool(wide.any()):
        raise ProbeError(
            f"a direction has shape [d], is finite and not zero; this one has shape {tuple(wide.shape)}. Of a probe "
            "with more classes take one: probe.direction[n]"
        )
    return wide


def random_directions(
    number: int, activations: Float[Tensor, "row d"], *, control: Control = "isotropic", seed: int = 0
) -> Float[Tensor, "direction d"]:
    """Random unit vectors, to compare a direction with.

    Args:
        number: how many.
        activations: as many entries have they; for `control="activations"` they vary like these.
        control: where they come from.
        seed: the same seed gives the same; no other random numbers are touched.

    Raises:
        ProbeError: when the activations are all the same, so that nothing can vary like them.
    """
    generator = torch.Generator().manual_seed(seed)
    rows, width = activations.shape
    if control == "isotropic":
        drawn = torch.randn(number, width, generator=generator, dtype=torch.float64)
    else:
        centered = activations.double().cpu() - activations.double().cpu().mean(0)
        if not bool(centered.any()):
            raise ProbeError(f"{rows} activations do not vary: random directions of control='activations' need several")
        drawn = torch.randn(number, rows, generator=generator, dtype=torch.float64) @ centered
    units: Tensor = drawn / drawn.norm(dim=-1, keepdim=True)
    return units


def leace(
    X: Any,
    y: Any,
    *,
    target: Target = "classes",
    method: Literal["leace", "orthogonal"] = "leace",
    shrinkage: float | None = 0.0,
    device: torch.device | str | None = None,
) -> Eraser:
    """Erase a concept from activations with as little change as possible.

    Least-squares concept erasure (LEACE; Belrose et al. 2023, arXiv:2306.03819, theorem 4.3): of all affine maps
    behind which all classes have the same mean, it is the one with the smallest mean square change of activations, by
    every inner product. Where all classes have the same mean, and only there, no linear probe has a smaller loss than
    the best constant (theorem 3.1). With `W` the square root of the pseudo-inverse of the covariance of activations,
    and `u` an orthonormal basis of the columns of `W` times the covariance of activations and labels, it is
    `x - W⁺ u uᵀ W (x - mean)`.

    It all holds for the rows that it is made from. On others the means differ by what so many rows leave unsure. With
    as many features as rows or more, these rows fit any labels, and the eraser says little about others: take more
    rows, or a shrunk covariance.

    Args:
        X: activations `[row, d]` in any precision, on any device; or a site of an `ActivationStore`, which is read
            block by block where it does not fit in memory.
        y: the concept: for each row a class, labels or numbers; see `target`.
        target: `"classes"`, `"labels"` (any number of them at once) or `"regression"` (numbers, of which every linear
            prediction is erased).
        method: `"leace"`, or `"orthogonal"`: the projection along the covariances of activations and labels. That
            one also makes means equal, but changes more.
        shrinkage: how far the covariance is drawn towards a sphere, from 0 to 1; by Ledoit and Wolf (2004) if None.
            Means become equal with any; only with 0 is the change the least on these rows.
        device: where it is computed; that of the data if not given.

    Returns:
        The eraser, of rank `classes - 1` at most, in float64 where the device has it.

    Raises:
        ProbeError: for data from which nothing can be erased; the message names rows.

    Example:
        >>> x = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
        >>> y = (x[:, 2] > 0).long()
        >>> erased = leace(x, y)(x)
        >>> bool((erased[y == 0].mean(0) - erased[y == 1].mean(0)).abs().max() < 1e-6)
        True
    """
    if method not in ("leace", "orthogonal"):
        raise ProbeError(f"a method is 'leace' or 'orthogonal', not {method!r}")
    if shrinkage is not None and not 0 <= shrinkage <= 1:
        raise ProbeError(f"shrinkage is from 0 to 1, or None for that of Ledoit and Wolf, not {shrinkage!r}")
    x = read_rows(X, who="the eraser")
    rows, width = len(x), math.prod(x.shape[1:])
    concept = _concept(read_targets(y, target, rows=rows))
    if method == "leace" and rows <= width and shrinkage == 0:
        warnings.warn(
            f"an eraser of {rows} rows with {width} features: so few rows fit any labels, so that on others the "
            "concept is hardly erased. Take more rows, or shrinkage=None",
            InterpWarning,
            stacklevel=2,
        )
    place = torch.device(device or (x.device if isinstance(x, Tensor) else "cpu"))
    features = Features.prepared(
        [x], None, (1, rows, width), dtype=_wide(place), device=place, standardize=False, memory=free_memory(place) / 4
    )
    assert features.scaler is not None
    mean = features.scaler.mean[0]
    cross, covariance = _moments(features, concept, shrinkage)
    if method == "orthogonal":
        size = covariance.trace().sqrt().clamp_min(torch.finfo(cross.dtype).tiny)
        axes = _columns(cross / size)
        return Eraser(left=axes, right=axes.mT, mean=mean)
    whiten, unwhiten = _roots(covariance)
    axes = _columns(whiten @ cross)
    return Eraser(left=unwhiten @ axes, right=axes.mT @ whiten, mean=mean)


def _wide(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def _concept(targets: Targets) -> Float[Tensor, "row label"]:
    """One column for each class, label or number, with mean 0 and variance 1."""
    if targets.table is None:
        assert targets.index is not None
        z = torch.nn.functional.one_hot(targets.index, len(targets.classes)).double()
    else:
        z = targets.table.double()
    centered = z - z.mean(0)
    size = centered.square().mean(0).sqrt()
    varies = size > 1e-12 * z.abs().amax(0)
    if not bool(varies.any()):
        raise ProbeError(
            "there is nothing to erase: every row has the same label"
            + (f", the class {targets.classes[0]!r}" if targets.kind == "classes" else "")
        )
    return centered[:, varies] / size[varies]


def _moments(
    features: Features, concept: Tensor, shrinkage: float | None
) -> tuple[Float[Tensor, "d label"], Float[Tensor, "d d"]]:
    """Covariance of activations and labels, and that of activations, drawn towards a sphere."""
    _, rows, width = features.shape
    z = concept.to(device=features.device, dtype=features.dtype) / rows
    cross = z.new_zeros(width, z.shape[1])
    square = z.new_zeros(width, width)
    fourth = z.new_zeros(())
    for at, (block,) in features.blocks():
        cross += block.mT @ z[at]
        square += block.mT @ block / rows
        fourth += block.square().sum(-1).square().sum() / rows
    sphere = square.diagonal().mean() * torch.eye(width, dtype=square.dtype, device=square.device)
    if shrinkage is None:
        # How far the covariance of so many rows is expected to be from the true one, over how far it is from the sphere
        error = (fourth - square.square().sum()) / rows
        spread = (square - sphere).square().sum().clamp_min(torch.finfo(square.dtype).tiny)
        share = (error / spread).clamp(0, 1)
    else:
        share = square.new_tensor(shrinkage)
    return cross, torch.lerp(square, sphere, share)


def _roots(covariance: Float[Tensor, "d d"]) -> tuple[Float[Tensor, "d d"], Float[Tensor, "d d"]]:
    """The square root of the pseudo-inverse of a covariance, and the pseudo-inverse of that."""
    values, axes = torch.linalg.eigh(covariance)
    least = values[-1] * len(values) * torch.finfo(values.dtype).eps  # as for torch.linalg.pinv
    kept = values > least
    values, axes = values[kept], axes[:, kept]
    return axes * values.rsqrt() @ axes.mT, axes * values.sqrt() @ axes.mT


def _columns(x: Float[Tensor, "d label"]) -> Float[Tensor, "d k"]:
    """An orthonormal basis of the span of columns, which are correlations; without those that are rounding."""
    axes, sizes, _ = torch.linalg.svd(x, full_matrices=False)
    least = _NONE if x.dtype == torch.float64 else 1e-3
    kept: Tensor = axes[:, sizes > least]
    return kept


__all__ = [
    "Control",
    "Eraser",
    "ablation_edit",
    "leace",
    "one_direction",
    "projection",
    "random_directions",
    "steering_edit",
]
