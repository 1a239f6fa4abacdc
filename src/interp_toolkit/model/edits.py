"""Edits: what changes at a site, for which positions and rows.

An `Edit` is frozen data, so that edits can be listed, batched and planned. `apply_edit` is the one place that carries
one out, on a tensor whose axes are those of the site.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp_toolkit.errors import EditError
from interp_toolkit.model.positions import Positions, PositionsLike, positions
from interp_toolkit.model.sites import Site

Operation = Literal["set", "add", "scale", "project_out", "apply"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Edit:
    """A change of one site. Make it with `Edit.set`, `add`, `scale`, `project_out` or `apply`.

    Attributes:
        site: where.
        operation: what is done.
        value: the operand: a tensor that broadcasts against the site, or a number.
        function: for `apply`: a function from the site's tensor to one of the same shape.
        positions: for which tokens; for `scores` and `pattern` these are the query positions.
        rows: for which rows of the batch; None means all.

    A `value` broadcasts from the right against the site's axes (`Site.axes`): a vector of `d_model` numbers, or
    a whole reading of another run, of which the same positions and rows are taken. Its position axis, if it has one
    longer than 1, counts columns of the batch, padding included.
    """

    site: Site
    operation: Operation
    value: Tensor | float | None = None
    function: Callable[[Tensor], Tensor] | None = None
    positions: Positions = field(default_factory=lambda: positions(None))
    rows: tuple[int, ...] | None = None

    @classmethod
    def set(
        cls,
        site: Site | str,
        value: Tensor | float,
        *,
        positions: PositionsLike = None,
        rows: Sequence[int] | None = None,
    ) -> Edit:
        """Replace the activation by `value`.

        Example:
            >>> Edit.set("L5H1", 0.0, positions="last")
            Edit(set z.5.1 at last)
        """
        return _make(cls, site, "set", value, positions, rows)

    @classmethod
    def add(
        cls,
        site: Site | str,
        value: Tensor | float,
        *,
        positions: PositionsLike = None,
        rows: Sequence[int] | None = None,
    ) -> Edit:
        """Add `value` to the activation; computed in float32 at least, and cast back."""
        return _make(cls, site, "add", value, positions, rows)

    @classmethod
    def scale(
        cls,
        site: Site | str,
        factor: Tensor | float,
        *,
        positions: PositionsLike = None,
        rows: Sequence[int] | None = None,
    ) -> Edit:
        """Multiply the activation by `factor`."""
        return _make(cls, site, "scale", factor, positions, rows)

    @classmethod
    def project_out(
        cls,
        site: Site | str,
        direction: Tensor,
        *,
        positions: PositionsLike = None,
        rows: Sequence[int] | None = None,
    ) -> Edit:
        """Remove the component along `direction` (any length but zero), or along the span of several rows of it.

        Args:
            site: where.
            direction: `[d]` or `[n, d]`, with `d` the last axis of the site.
            positions: for which tokens.
            rows: for which rows of the batch.

        Raises:
            EditError: when a direction is zero or not finite.
        """
        basis = torch.as_tensor(direction).detach()
        wide = (basis[None] if basis.ndim == 1 else basis).to(torch.float64)
        if not torch.isfinite(wide).all() or (wide.norm(dim=-1) == 0).any():
            raise EditError("project_out needs directions that are finite and not zero")
        q, r = torch.linalg.qr(wide.mT)
        independent = r.diagonal().abs() > 1e-9 * r.diagonal().abs().max()
        return _make(cls, site, "project_out", q[:, independent].mT, positions, rows)

    @classmethod
    def apply(
        cls,
        site: Site | str,
        function: Callable[[Tensor], Tensor],
        *,
        positions: PositionsLike = None,
        rows: Sequence[int] | None = None,
    ) -> Edit:
        """Replace the activation by `function(activation)`.

        The function sees a copy of the whole tensor of the site and returns one of the same shape; only the
        selected positions and rows of it are used.
        """
        if not callable(function):
            raise EditError(f"Edit.apply needs a function of a tensor, not {type(function).__name__}")
        return cls(
            site=Site.parse(site),
            operation="apply",
            function=function,
            positions=_positions(positions),
            rows=None if rows is None else tuple(rows),
        )

    def __repr__(self) -> str:
        """What it does, in a line."""
        where = {"Everywhere()": "all", "At(indices=(-1,))": "last"}.get(repr(self.positions), repr(self.positions))
        rows = "" if self.rows is None else f" rows {list(self.rows)}"
        return f"Edit({self.operation} {self.site} at {where}{rows})"


_positions = positions


def _make(
    cls: type[Edit],
    site: Site | str,
    operation: Operation,
    value: Tensor | float,
    where: PositionsLike,
    rows: Sequence[int] | None,
) -> Edit:
    if not isinstance(value, Tensor | int | float):
        raise EditError(f"the value of an edit is a tensor or a number, not {type(value).__name__}")
    return cls(
        site=Site.parse(site),
        operation=operation,
        value=value,
        positions=_positions(where),
        rows=None if rows is None else tuple(rows),
    )


def apply_edit(
    edit: Edit,
    x: Float[Tensor, "..."],
    selected: Bool[Tensor, "batch pos"],
    columns: slice,
    *,
    open_ended: bool = False,
) -> Float[Tensor, "..."]:
    """Carry out one edit, out of place.

    Args:
        edit: what to do.
        x: the activation, with the axes of the edit's whole site.
        selected: which rows and positions change.
        columns: which columns of the batch `x` holds; a value with a position axis is cut to them.
        open_ended: whether more columns may follow, so that a value may be longer than what was run so far.

    Returns:
        The new activation, in the shape and dtype of `x`.

    Raises:
        EditError: when the value does not fit, or a function returns something else than it was given.
    """
    dim = edit.site.kind.index_dim
    if edit.site.index is None or dim is None:
        return _edited(edit, x, selected, columns, open_ended)
    size = x.shape[dim]
    if edit.site.index >= size:
        raise EditError(f"{edit.site} asks for number {edit.site.index}, but there are {size}: 0 to {size - 1}")
    part = _edited(edit, x.select(dim, edit.site.index), selected, columns, open_ended)
    return x.select_scatter(part, dim, edit.site.index)


def _edited(edit: Edit, x: Tensor, selected: Tensor, columns: slice, open_ended: bool) -> Tensor:
    if edit.function is not None:
        # A copy, so that a function that works in place changes no other position.
        new = _checked(edit, edit.function(x.clone()), x)
    else:
        new = _operate(edit, x, _value(edit, x, columns, open_ended))
    if selected.all():
        # A copy, because some models add in place to what they are given, which must not reach the caller's tensor.
        return new.expand_as(x).clone()
    dim = edit.site.axes.index("pos")
    shape = [1] * x.ndim
    shape[0], shape[dim] = selected.shape
    return torch.where(selected.view(shape).to(x.device), new, x)


def _operate(edit: Edit, x: Tensor, value: Tensor) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    value = value.to(x.dtype if edit.operation == "set" else wide).to(x.device)
    match edit.operation:
        case "set":
            return value
        case "add":
            return (x.to(wide) + value).to(x.dtype)
        case "scale":
            return (x.to(wide) * value).to(x.dtype)
        case _:
            if value.shape[-1] != x.shape[-1]:
                raise EditError(
                    f"project_out at {edit.site}: the direction has {value.shape[-1]} entries, the site {x.shape[-1]}"
                )
            # Two small products, never the d x d projection.
            return (x.to(wide) - (x.to(wide) @ value.mT) @ value).to(x.dtype)


def _checked(edit: Edit, new: object, x: Tensor) -> Tensor:
    if not isinstance(new, Tensor):
        raise EditError(f"the function of the edit at {edit.site} returned {type(new).__name__}, not a tensor")
    if new.shape != x.shape:
        raise EditError(
            f"the function of the edit at {edit.site} returned shape {tuple(new.shape)}, but was given {tuple(x.shape)}"
        )
    return new.to(device=x.device, dtype=x.dtype)


def _value(edit: Edit, x: Tensor, columns: slice, open_ended: bool) -> Tensor:
    """The operand, cut to the columns at hand and known to fit."""
    value = torch.as_tensor(edit.value)
    if edit.operation == "project_out":
        return value
    axes = edit.site.axes
    dim = axes.index("pos") - len(axes)  # from the right, as broadcasting counts
    if value.ndim >= -dim and value.shape[dim] > 1:
        given = value.shape[dim]
        if given < columns.stop or (given > columns.stop and not open_ended):
            raise EditError(
                f"the value of {edit!r} has {given} positions, but the prompts have {columns.stop} (padding included)"
            )
        value = value.narrow(dim, columns.start, x.shape[dim])
    if not _broadcasts(value.shape, x.shape):
        raise EditError(
            f"the value of {edit!r} has shape {tuple(value.shape)}, which does not fit the site's shape "
            f"{tuple(x.shape)} ({', '.join(axes)})"
        )
    return value


def _broadcasts(given: torch.Size, wanted: torch.Size) -> bool:
    """Whether a shape broadcasts to another without making it larger."""
    return len(given) <= len(wanted) and all(
        a in (1, b) for a, b in zip(reversed(given), reversed(wanted), strict=False)
    )


__all__ = ["Edit", "Operation", "apply_edit"]
