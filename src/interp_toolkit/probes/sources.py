"""What probes that are trained by minibatches read: rows, sites of a store, and sequences of different lengths.

A source gives activations by the numbers of rows, where they lie and as precise as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from interp_toolkit.activations.access import SiteView
from interp_toolkit.errors import ProbeError

Rows = Int[Tensor, " some"]
"""Numbers of rows."""

Read = tuple[Float[Tensor, "some *pos d"], Bool[Tensor, "some pos"] | None]
"""Activations, and for sequences which positions are real."""

_BLOCK = 1 << 25
"""Bytes that are read at once where order does not matter."""
_SHOWN = 8


@runtime_checkable
class Source(Protocol):
    """Rows, or sequences, that are read by number."""

    @property
    def width(self) -> int:
        """How many features a row or token has."""

    @property
    def lengths(self) -> Int[Tensor, " row"] | None:
        """How many tokens each sequence has; None for rows."""

    def __len__(self) -> int:
        """How many rows there are."""

    def read(self, rows: Rows) -> Read:
        """Some of them, where they lie and as precise as they are."""


@dataclass(frozen=True, eq=False)
class RowSource:
    """Rows of a tensor or of a site of a store.

    Attributes:
        x: `[row, d]`; what a row of a site has is flattened.
        rows: numbers of the rows that are meant, in order; all if not given.

    Example:
        >>> RowSource(torch.eye(3), torch.tensor([2, 0])).read(torch.tensor([0]))[0].tolist()
        [[0.0, 0.0, 1.0]]
    """

    x: Tensor | SiteView
    rows: Int[Tensor, " row"] | None = None

    @property
    def width(self) -> int:
        """How many features a row has."""
        return math.prod(self.x.shape[1:])

    @property
    def lengths(self) -> None:
        """None, as rows are no sequences."""
        return

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self.x if self.rows is None else self.rows)

    def read(self, rows: Rows) -> Read:
        """Some rows."""
        picked = rows if self.rows is None else self.rows[rows]
        x = self.x[picked] if isinstance(self.x, SiteView) else self.x.index_select(0, picked.to(self.x.device))
        return x.flatten(1), None


@dataclass(frozen=True, eq=False)
class PaddedSource:
    """Sequences in one tensor, with padding.

    Attributes:
        x: the activations.
        mask: the real positions.
        trim: whether positions that are padding in all rows that are read are left out.

    Example:
        >>> mask = torch.tensor([[True, False, False], [True, True, False]])
        >>> PaddedSource(torch.zeros(2, 3, 4), mask).read(torch.tensor([0, 1]))[0].shape
        torch.Size([2, 2, 4])
    """

    x: Float[Tensor, "row pos d"]
    mask: Bool[Tensor, "row pos"]
    trim: bool = True

    @property
    def width(self) -> int:
        """How many features a token has."""
        return self.x.shape[2]

    @property
    def lengths(self) -> Int[Tensor, " row"]:
        """How many tokens each sequence has."""
        return self.mask.sum(1).cpu()

    def __len__(self) -> int:
        """How many sequences there are."""
        return len(self.x)

    def read(self, rows: Rows) -> Read:
        """Some sequences."""
        picked = rows.to(self.x.device)
        mask = self.mask.index_select(0, picked)
        if not self.trim:
            return self.x.index_select(0, picked), mask
        used = mask.any(0).nonzero()[:, 0].tolist() or [0]
        kept = slice(used[0], used[-1] + 1)
        return self.x[:, kept].index_select(0, picked), mask[:, kept]


@dataclass(frozen=True, eq=False)
class RaggedSource:
    """Sequences of different lengths, which are padded batch by batch.

    Attributes:
        parts: the activations of each sequence, `[pos, d]`. Slices of a site of a store are not read before they are
            needed.

    Example:
        >>> x, mask = RaggedSource([torch.ones(2, 4), torch.ones(1, 4)]).read(torch.tensor([0, 1]))
        >>> x.shape, mask.tolist()
        (torch.Size([2, 2, 4]), [[True, True], [True, False]])
    """

    parts: Sequence[Tensor]

    @property
    def width(self) -> int:
        """How many features a token has."""
        return self.parts[0].shape[1] if self.parts else 0

    @property
    def lengths(self) -> Int[Tensor, " row"]:
        """How many tokens each sequence has."""
        return torch.tensor([len(part) for part in self.parts], dtype=torch.long)

    def __len__(self) -> int:
        """How many sequences there are."""
        return len(self.parts)

    def read(self, rows: Rows) -> Read:
        """Some sequences, padded to the longest of them."""
        parts = [self.parts[row] for row in rows.tolist()]
        lengths = torch.tensor([len(part) for part in parts])
        x = nn.utils.rnn.pad_sequence(parts, batch_first=True)
        return x, (torch.arange(x.shape[1]) < lengths[:, None]).to(x.device)


def blocks(source: Source, rows: Rows) -> Iterator[tuple[Rows, Read]]:
    """Rows in their order, as many at a time as memory takes well.

    Args:
        source: what is read.
        rows: which rows of it.

    Returns:
        For each block its rows, and what was read.
    """
    longest = 1 if source.lengths is None else int(source.lengths.max())
    size = max(1, _BLOCK // (4 * source.width * longest))
    return ((part, source.read(part)) for part in rows.split(size))


def tokens(read: Read) -> Float[Tensor, "token d"]:
    """What was read, without padding, as rows."""
    x, mask = read
    return x if mask is None else x[mask]


def measure(source: Source, rows: Rows) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
    """Mean and standard deviation of features over rows, or over the real tokens of sequences.

    Computed in one pass in float64: block by block, merged as by Chan, Golub & LeVeque (1979).

    Args:
        source: what is read.
        rows: which rows of it.

    Returns:
        The mean, and the standard deviation, which is 1 for a feature that does not vary.

    Example:
        >>> mean, scale = measure(RowSource(torch.tensor([[1.0, 5.0], [3.0, 5.0]])), torch.arange(2))
        >>> mean.tolist(), scale.tolist()
        ([2.0, 5.0], [1.0, 1.0])
    """
    count = 0
    mean = square = torch.zeros(source.width, dtype=torch.float64)
    for _, read in blocks(source, rows):
        x = tokens(read)
        x = (x.cpu() if x.device.type == "mps" else x).double()
        variance, centre = (found.cpu() for found in torch.var_mean(x, 0, correction=0))
        moved, total = centre - mean, count + len(x)
        mean = mean + moved * (len(x) / total)
        square = square + variance * len(x) + moved.square() * (count * len(x) / total)
        count = total
    scale = (square / count).sqrt()
    # A constant varies by rounding alone
    return mean, torch.where(scale > 8 * torch.finfo(torch.float32).eps * mean.abs(), scale, 1.0)


# --- reading what users give --------------------------------------------------------------------------------------


def read_sequences(X: Any, mask: Any = None) -> PaddedSource | RaggedSource:
    """Make sense of sequences of activations.

    Args:
        X: `[row, pos, d]` as a tensor or array, or a list with `[pos, d]` for each row.
        mask: for the former the real positions, as truth values or ones and zeros `[row, pos]`; all if not given.

    Raises:
        ProbeError: for other shapes; the message names rows.

    Example:
        >>> read_sequences([torch.zeros(3, 4), torch.zeros(5, 4)]).lengths.tolist()
        [3, 5]
    """
    if isinstance(X, list | tuple):
        if mask is not None:
            raise ProbeError("a mask is for sequences in one tensor [row, pos, d]; a list of sequences has no padding")
        parts = [_floats(part) for part in X]
        wrong = [
            n
            for n, x in enumerate(parts)
            if x.ndim != 2 or (x.shape[1], x.dtype) != (parts[0].shape[-1], parts[0].dtype)
        ]
        if wrong:
            raise ProbeError(
                f"a list of sequences has [pos, d] for each row, all of one width and type, but row {wrong[0]} has "
                f"shape {tuple(parts[wrong[0]].shape)} and {parts[wrong[0]].dtype} ({len(wrong)} such rows)"
            )
        return RaggedSource(parts)
    x = _floats(X)
    if x.ndim != 3:
        raise ProbeError(
            f"sequences have shape [row, pos, d], or are a list with [pos, d] for each row, but this has shape "
            f"{tuple(x.shape)}; for single activations there are LinearProbe and MLPProbe"
        )
    real = torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else torch.as_tensor(mask)
    if real.shape != x.shape[:2] or bool(((real != 0) & (real != 1)).any()):
        raise ProbeError(
            f"a mask has ones and zeros of shape [row, pos], here {tuple(x.shape[:2])}, but this one has shape "
            f"{tuple(real.shape)}" + ("" if real.shape != x.shape[:2] else " and other values")
        )
    return PaddedSource(x, real.to(device=x.device, dtype=torch.bool))


def _floats(x: Any) -> Tensor:
    """A tensor of floating-point numbers, in its own precision if it has any."""
    if isinstance(x, SiteView):
        raise ProbeError(
            "a site of a store has one row a token: for sequences pass a list, such as "
            "[store[site][store.rows_of(n)] for n in documents]"
        )
    try:
        found = x if isinstance(x, Tensor) else torch.as_tensor(np.asarray(x))
    except (TypeError, ValueError) as error:
        raise ProbeError(f"activations are tables of numbers: {error}") from error
    return found.detach() if found.is_floating_point() else found.float()


def check_source(source: Source, *, width: int | None = None, who: str = "the probe") -> None:
    """Refuse what cannot be learned from or predicted.

    Args:
        source: what is read, once.
        width: how many features there have to be.
        who: asks for them, for the message.

    Raises:
        ProbeError: without rows, for another width, sequences without tokens, and for NaN or infinite numbers; the
            message names rows.
    """
    if len(source) == 0 or source.width == 0:
        raise ProbeError(f"there are no activations: {len(source)} rows of {source.width} features")
    if width is not None and source.width != width:
        raise ProbeError(f"X has {source.width} features, but {who} is expecting {width} features as input")
    empty = [] if source.lengths is None else (source.lengths == 0).nonzero()[:, 0].tolist()
    if empty:
        raise ProbeError(
            f"{len(empty)} of {len(source)} sequences have no token that is not padding: rows {_few(empty)}"
        )
    bad: list[int] = []
    for rows, (x, mask) in blocks(source, torch.arange(len(source))):
        wrong = ~torch.isfinite(x).all(-1)
        wrong = wrong if mask is None else (wrong & mask).any(-1)
        bad += rows[wrong.cpu()].tolist()
    if bad:
        raise ProbeError(f"activations contain NaN or infinity in {len(bad)} of {len(source)} rows: {_few(bad)}")


def _few(rows: Sequence[int]) -> str:
    return ", ".join(map(str, rows[:_SHOWN])) + (", ..." if len(rows) > _SHOWN else "")


__all__ = [
    "PaddedSource",
    "RaggedSource",
    "Read",
    "RowSource",
    "Rows",
    "Source",
    "blocks",
    "check_source",
    "measure",
    "read_sequences",
    "tokens",
]
