"""Reading a site of a store by row: a slice, numbers, or a mask."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from interp_toolkit.activations.files import as_tensor, numpy_type, torch_type
from interp_toolkit.activations.gathering import gather
from interp_toolkit.activations.shards import Shards
from interp_toolkit.errors import StoreError
from interp_toolkit.model.sites import Site

Rows = int | slice | range | Sequence[int] | Sequence[bool] | NDArray[Any] | Tensor
"""How rows are asked for."""


_MOST_FILES = 2048
"""Files that are mapped at the same time, for one reading."""


class SiteView:
    """One array of a store, over all rows; nothing is read before it is asked for.

    `view[3]` is one row, `view[10:20]`, `view[[5, 1, 5]]` and `view[mask]` are several. A slice without a step that
    lies in one shard is the mapped file itself, without a copy; what one writes into it stays in memory.
    """

    def __init__(
        self, shards: Shards, which: int, name: str, site: Site | None, select: tuple[int, int] | None = None
    ) -> None:
        self.site = site
        self._shards = shards
        self._which = which
        self._name = name
        self._select = select
        self._kind = shards.kind(which, name)

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows, then what one row has."""
        shape = [len(self), *self._kind.shape[1:]]
        if self._select is not None:
            shape.pop(self._select[0])
        return tuple(shape)

    @property
    def dtype(self) -> torch.dtype:
        """The type of its numbers."""
        return torch_type(self._kind_name)

    @property
    def ndim(self) -> int:
        """How many axes it has."""
        return len(self.shape)

    @property
    def _kind_name(self) -> str:
        return self._kind.dtype

    def __len__(self) -> int:
        """How many rows it has."""
        return self._shards.total

    def __repr__(self) -> str:
        """Site, shape and type in a line."""
        return f"SiteView({self.site or self._name}, {list(self.shape)}, {self._kind_name})"

    def __getitem__(self, rows: Rows) -> Tensor:
        """Rows as a tensor.

        Raises:
            StoreError: for rows that there are not, or that are not written yet.
        """
        if isinstance(rows, tuple):
            raise StoreError(
                f"a site is read by row only: write view[rows] first, then [...] what you want, not {rows}"
            )
        if isinstance(rows, slice):
            return self._slice(rows)
        if isinstance(rows, Tensor | np.ndarray) and rows.ndim == 0 and rows.dtype not in (bool, torch.bool):
            return self[int(rows.item())]
        if isinstance(rows, int | np.integer):
            return self._tensor(self._gather(self.numbers([int(rows)])))[0]
        return self._tensor(self._gather(self.numbers(rows)))

    def __iter__(self) -> Iterator[Tensor]:
        """Each row."""
        return (self[row] for row in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """All rows for numpy, which knows no bfloat16 and gets float32 for it."""
        x = self[:]
        found = (x.float() if x.dtype == torch.bfloat16 else x).numpy()
        return np.array(found, dtype=dtype) if copy else np.asarray(found, dtype=dtype)

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        return as_tensor(array, self._kind_name)

    def numbers(self, rows: Rows) -> NDArray[np.int64]:
        """The numbers of the rows that are asked for.

        Raises:
            StoreError: for rows that there are not.
        """
        total = len(self)
        if isinstance(rows, slice):
            return np.arange(*rows.indices(total))
        if isinstance(rows, range):
            rows = np.arange(rows.start, rows.stop, rows.step)
        found = np.asarray(rows.cpu() if isinstance(rows, Tensor) else rows)
        if found.ndim != 1:
            raise StoreError(f"rows are asked for by a number, a slice, a list or a mask, not with {found.ndim} axes")
        if found.dtype == bool:
            if len(found) != total:
                raise StoreError(f"the mask has {len(found):,} entries, but there are {total:,} rows")
            return np.flatnonzero(found)
        if found.size and found.dtype.kind not in "iu":
            raise StoreError(f"rows are asked for by whole numbers, not by {found.dtype}")
        numbers: NDArray[np.int64] = found.astype(np.int64, copy=False)
        if numbers.size:
            least, most = int(numbers.min()), int(numbers.max())
            if least < -total or most >= total:
                wrong = least if least < -total else most
                raise StoreError(f"row {wrong:,} was asked for, but there are {total:,}, from 0")
            if least < 0:
                numbers = np.where(numbers < 0, numbers + total, numbers)
        return numbers

    def _array(self, shard: int) -> NDArray[Any]:
        array = self._shards.array(shard, self._which, self._name)
        if self._select is None:
            return array
        dim, index = self._select
        return array[(slice(None),) * dim + (index,)]

    def _empty(self, rows: int) -> NDArray[Any]:
        return np.empty((rows, *self.shape[1:]), dtype=numpy_type(self._kind.dtype))

    def _slice(self, rows: slice) -> Tensor:
        begin, end, step = rows.indices(len(self))
        if step != 1:
            return self._tensor(self._gather(np.arange(begin, end, step)))
        if end <= begin:
            return self._tensor(self._empty(0))
        starts = self._shards.starts
        first, last = self._shards.shard_of(begin), self._shards.shard_of(end - 1)
        if first == last:
            offset = int(starts[first])
            lent = self._shards.lend(first, self._which, self._name)
            lent = lent if self._select is None else lent.select(*self._select)
            return lent[begin - offset : end - offset]
        found = self._empty(end - begin)
        for shard in range(first, last + 1):
            a, b = max(begin, int(starts[shard])), min(end, int(starts[shard + 1]))
            if a < b:
                found[a - begin : b - begin] = self._array(shard)[a - int(starts[shard]) : b - int(starts[shard])]
        return self._tensor(found)

    def _gather(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        if not len(rows):
            return self._empty(0)
        shards = self._shards.shards_of(rows)
        used = np.flatnonzero(np.bincount(shards))
        if len(used) > _MOST_FILES:
            half = shards <= used[len(used) // 2]
            found = self._empty(len(rows))
            found[half], found[~half] = self._gather(rows[half]), self._gather(rows[~half])
            return found
        arrays = [self._array(shard) for shard in used.tolist()]
        return gather(arrays, used, self._shards.starts, shards, rows)


__all__ = ["Rows", "SiteView"]
