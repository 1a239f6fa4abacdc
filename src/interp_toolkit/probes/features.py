"""Features of probes: rows of several layers, gone through in blocks, standardised on the way.

What fits in memory is held there once, in the precision in which it is computed. What does not, such as sites of an
`ActivationStore`, is read block by block in every pass.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp_toolkit.errors import ProbeError
from interp_toolkit.probes.spectrum import Spectrum

_BLOCK = 1 << 24
"""Bytes of one layer that are read at once."""
_SAMPLE = 8192
"""The spectrum is that of so many rows."""


@runtime_checkable
class Readable(Protocol):
    """Rows that can be read by a slice or by numbers: a tensor, or a site of an `ActivationStore`."""

    def __getitem__(self, rows: Any) -> Tensor:
        """Some rows."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scaler:
    """What standardises features.

    Attributes:
        mean: of each feature.
        scale: its standard deviation; 1 where it does not vary.
    """

    mean: Float[Tensor, "layer d"]
    scale: Float[Tensor, "layer d"]

    def __call__(self, x: Float[Tensor, "layer row d"]) -> Float[Tensor, "layer row d"]:
        """Standardised features."""
        return (x - self.mean[:, None].to(x)) / self.scale[:, None].to(x)

    def back(
        self, weights: Float[Tensor, "layer *problem d"], bias: Float[Tensor, "layer *problem"]
    ) -> tuple[Tensor, Tensor]:
        """Weights and intercepts for features that are not standardised."""
        shape = (len(weights), *[1] * (weights.ndim - 2), weights.shape[-1])
        # In the precision of the means: large ones would cost small precision all its digits
        raw = weights.to(self.mean) / self.scale.reshape(shape)
        return raw, bias.to(self.mean) - (raw * self.mean.reshape(shape)).sum(-1)


class Features:
    """Rows of one or several layers.

    Args:
        sources: for each layer what is read.
        rows: the numbers of the rows that are used, in order; None for all.
        shape: layers, rows and features.
        dtype: in which it is computed.
        device: where it is computed.
        scaler: what standardises; None leaves features as they are.
        held: all of it in memory, standardised.
    """

    def __init__(
        self,
        sources: Sequence[Readable],
        rows: Int[Tensor, " row"] | None,
        shape: tuple[int, int, int],
        *,
        dtype: torch.dtype,
        device: torch.device,
        scaler: Scaler | None = None,
        held: Float[Tensor, "layer row d"] | None = None,
    ) -> None:
        self.sources = sources
        self.rows = rows
        self.shape = shape
        self.dtype = dtype
        self.device = device
        self.scaler = scaler
        self.passes = 0
        self._held = held
        self._spectra: dict[bool, Spectrum] = {}

    @classmethod
    def of(cls, x: Float[Tensor, "*layer row d"]) -> Features:
        """Features as they are, of one layer or several."""
        held = x if x.ndim == 3 else x[None]
        layers, rows, width = held.shape
        return cls([], None, (layers, rows, width), dtype=held.dtype, device=held.device, held=held)

    @classmethod
    def prepared(
        cls,
        sources: Sequence[Readable],
        rows: Int[Tensor, " row"] | None,
        shape: tuple[int, int, int],
        *,
        dtype: torch.dtype,
        device: torch.device,
        standardize: bool,
        center: bool = True,
        weights: Float[Tensor, " row"] | None = None,
        memory: float,
    ) -> Features:
        """Features of chosen rows, standardised by these rows themselves.

        Args:
            sources: for each layer what is read.
            rows: which rows; None for all.
            shape: layers, rows and features.
            dtype: in which it is computed.
            device: where it is computed.
            standardize: whether features get mean 0 and standard deviation 1.
            center: whether they get at least mean 0, which an intercept makes up for and which is quicker.
            weights: how much each row counts for that.
            memory: bytes that may be held; what takes more is read in every pass.
        """
        found = cls(sources, rows, shape, dtype=dtype, device=device)
        size = math.prod(shape) * torch.finfo(dtype).bits // 8
        if size <= memory:
            found._held = torch.cat([block for _, block in found.blocks()], 1)
        if standardize or center:
            found.scaler = found._measured(weights, standardize)
            if found._held is not None:
                found._held = found.scaler(found._held)
        return found

    def _measured(self, weights: Tensor | None, standardize: bool) -> Scaler:
        """Mean and perhaps standard deviation; by two passes, as one would lose digits to large means."""
        layers, rows, width = self.shape
        wide = torch.float64 if self.device.type != "mps" else torch.float32
        share = torch.ones(rows, dtype=wide) if weights is None else weights.to(wide).cpu()
        share = (share / share.sum()).to(self.device)
        mean = torch.zeros(layers, width, dtype=wide, device=self.device)
        for at, block in self.blocks():
            mean += share[at] @ block.to(wide)
        if not standardize:
            _refuse_infinite(mean, self.dtype)
            return Scaler(mean=mean, scale=torch.ones_like(mean))
        variance = torch.zeros_like(mean)
        for at, block in self.blocks():
            variance += share[at] @ (block.to(wide) - mean[:, None]).square_()
        _refuse_infinite(variance, self.dtype)
        largest = torch.finfo(self.dtype).eps * mean.abs()  # a constant varies by rounding alone
        scale = variance.sqrt()
        return Scaler(mean=mean, scale=torch.where(scale > 8 * largest, scale, 1.0))

    # --- reading ---------------------------------------------------------------------------------------------

    def blocks(self) -> Iterator[tuple[slice, Float[Tensor, "layer some d"]]]:
        """Blocks of rows, of all layers."""
        _, rows, width = self.shape
        if self._held is not None:
            yield slice(0, rows), self._held
            return
        step = max(1, _BLOCK // (width * 4))
        for begin in range(0, rows, step):
            at = slice(begin, min(begin + step, rows))
            picked: Any = at if self.rows is None else self.rows[at]
            read = [source[picked].detach().to(device=self.device, dtype=self.dtype) for source in self.sources]
            block = torch.stack([x.flatten(1) for x in read])
            yield at, block if self.scaler is None else self.scaler(block)

    @cached_property
    def parts(self) -> list[Features]:
        """The same layers, as many at a time as are quickest: one by one for a CPU, together for a GPU."""
        layers = self.shape[0]
        return [self.layer(n) for n in range(layers)] if self.device.type == "cpu" and layers > 1 else [self]

    def layer(self, n: int) -> Features:
        """One layer alone."""
        scaler = self.scaler
        return Features(
            self.sources[n : n + 1],
            self.rows,
            (1, *self.shape[1:]),
            dtype=self.dtype,
            device=self.device,
            scaler=None if scaler is None else Scaler(mean=scaler.mean[n : n + 1], scale=scaler.scale[n : n + 1]),
            held=None if self._held is None else self._held[n : n + 1],
        )

    def spectrum(self, center: bool = True) -> Spectrum:
        """Principal directions, of a sample where there are many rows; about their mean, or about zero."""
        if center not in self._spectra:
            rows = self.shape[1]
            step = max(1, -(-rows // _SAMPLE))
            sample = [block[:, -at.start % step :: step] for at, block in self.blocks()]
            self._spectra[center] = Spectrum.of(sample[0] if len(sample) == 1 else torch.cat(sample, 1), center=center)
        return self._spectra[center]

    @property
    def held(self) -> bool:
        """Whether all of it is in memory."""
        return self._held is not None

    def leading(
        self, number: int, center: bool
    ) -> tuple[Float[Tensor, "layer d axis"], Float[Tensor, "layer row axis"]]:
        """The directions of largest variance, and the rows along them."""
        axes = self.spectrum(center).axes[..., -number:]
        return axes, torch.cat([block @ axes for _, block in self.blocks()], 1)

    # --- products --------------------------------------------------------------------------------------------

    def push(self, point: Float[Tensor, "layer problem output d1"]) -> Float[Tensor, "layer row problem output"]:
        """Margins of all rows: `x · w + b`, with the intercept last in each vector."""
        self.passes += 1
        parts = [_margins(block, point) for _, block in self.blocks()]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def pull(
        self, slopes: Float[Tensor, "layer row problem output"], intercept: bool
    ) -> Float[Tensor, "layer problem output d1"]:
        """The sum over rows of slopes times features, and of slopes for the intercept."""
        self.passes += 1
        parts = (_pulled(block, slopes[:, at], intercept) for at, block in self.blocks())
        return functools.reduce(torch.add, parts)

    def push_and_pull(
        self,
        point: Float[Tensor, "layer problem output d1"],
        bend: Callable[[Tensor, slice], Tensor],
        intercept: bool,
    ) -> tuple[Float[Tensor, "layer problem output d1"], Float[Tensor, "layer row problem output"]]:
        """Margins, changed row by row and pulled back, with one reading of the rows."""
        self.passes += 2
        margins: list[Tensor] = []

        def bent(at: slice, block: Tensor) -> Tensor:
            margins.append(_margins(block, point))
            return _pulled(block, bend(margins[-1], at), intercept)

        total = functools.reduce(torch.add, (bent(at, block) for at, block in self.blocks()))
        return total, margins[0] if len(margins) == 1 else torch.cat(margins, 1)


def _refuse_infinite(moment: Float[Tensor, "layer d"], dtype: torch.dtype) -> None:
    wrong = (~torch.isfinite(moment)).any(0).nonzero()[:, 0].tolist()
    if wrong:
        raise ProbeError(
            f"features {wrong[:8]} are too large to be computed with in {str(dtype).removeprefix('torch.')}: "
            "their mean or variance is infinite. Divide them by a constant"
        )


def _margins(block: Tensor, point: Tensor) -> Tensor:
    flat = point.flatten(1, 2)
    found: Tensor = block @ flat[..., :-1].mT + flat[:, None, :, -1]
    return found.reshape(*found.shape[:2], *point.shape[1:3])


def _pulled(block: Tensor, slopes: Tensor, intercept: bool) -> Tensor:
    flat = slopes.flatten(2)
    weights = flat.mT @ block
    bias = flat.sum(1) if intercept else flat.new_zeros(flat.shape[::2])
    pulled = torch.cat([weights, bias[..., None]], -1)
    return pulled.reshape(len(pulled), *slopes.shape[2:], -1)


__all__ = ["Features", "Readable", "Scaler"]
