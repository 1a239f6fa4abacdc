"""Going through a store in batches, and as torch datasets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from interp_toolkit.activations.access import Rows
from interp_toolkit.errors import StoreError
from interp_toolkit.model.sites import Site

if TYPE_CHECKING:
    from interp_toolkit.activations.store import ActivationStore

Sites = Site | str | Sequence[Site | str]

Numbers = range | NDArray[np.int64]
"""Numbers of rows."""

_PIECE = 1 << 13
"""Rows that lie together and are read together, when rows are mixed."""


class Batches:
    """Activations in batches; see `ActivationStore.batches`.

    Going through it again gives the same batches. `share` is the part of the batches that is ours: `(1, 4)` gives
    every fourth batch, from the second one on.
    """

    def __init__(
        self,
        store: ActivationStore,
        site: Sites,
        size: int,
        *,
        shuffle: bool = False,
        seed: int | Sequence[int] = 0,
        rows: Rows | None = None,
        drop_last: bool = False,
        buffer: int = 1 << 16,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        if size < 1 or buffer < 1:
            raise StoreError(f"a batch has at least one row, and so has the buffer, but {size} and {buffer} were asked")
        self._reader = _Reader(store, site)
        self.size = size
        self.shuffle = shuffle
        self.seed = seed
        self.drop_last = drop_last
        self.buffer = max(buffer, size)
        self.share = share
        self.rows = None if rows is None else _numbers(store, rows)
        if self.rows is None and not store.complete:
            self.rows = store.available().numpy()
        self.total = store.rows if self.rows is None else len(self.rows)

    def __len__(self) -> int:
        """How many batches there are, over all shares."""
        return self.total // self.size if self.drop_last else -(-self.total // self.size)

    def __iter__(self) -> Iterator[tuple[Numbers, Any]]:
        """Rows and activations of each batch."""
        return self._mixed() if self.shuffle else self._in_order()

    def _in_order(self) -> Iterator[tuple[Numbers, Any]]:
        mine, shares = self.share
        for n in range(mine, len(self), shares):
            begin, end = n * self.size, min((n + 1) * self.size, self.total)
            if self.rows is None:
                yield range(begin, end), self._reader.slice(begin, end)
            else:
                rows = self.rows[begin:end]
                yield rows, self._reader.rows(rows)

    def _mixed(self) -> Iterator[tuple[Numbers, Any]]:
        """Fill a buffer from pieces in random order, give out half of it at random, fill it again."""
        generator = np.random.default_rng(self.seed)
        mine, shares = self.share
        count = 0
        for rows in self._orders(generator):
            for begin in range(0, len(rows), self.size):
                part = rows[begin : begin + self.size]
                if len(part) < self.size and self.drop_last:
                    return
                if count % shares == mine:
                    yield part, self._reader.rows(part)
                count += 1

    def _orders(self, generator: np.random.Generator) -> Iterator[NDArray[np.int64]]:
        """Row numbers in the order in which they are given out, in pieces of whole batches but for the last one."""
        pieces = generator.permutation(np.arange(0, self.total, _PIECE)).tolist()
        held: list[NDArray[np.int64]] = []
        count = 0
        for number, begin in enumerate(pieces):
            held.append(np.arange(begin, min(begin + _PIECE, self.total)))
            count += len(held[-1])
            last = number == len(pieces) - 1
            if count < self.buffer and not last:
                continue
            mixed = np.concatenate(held)
            generator.shuffle(mixed)
            given = count if last else max(self.size, count // 2 // self.size * self.size)
            out, rest = mixed[:given], mixed[given:]
            held, count = [rest], len(rest)
            yield out if self.rows is None else self.rows[out]


class _Reader:
    """Reads one site as a tensor, several as a dictionary."""

    def __init__(self, store: ActivationStore, site: Sites) -> None:
        self._single = isinstance(site, Site | str)
        names = [site] if isinstance(site, Site | str) else list(site)
        if not names:
            raise StoreError("no site was named")
        self._views = {str(store[name].site): store[name] for name in names}

    def slice(self, begin: int, end: int) -> Any:
        return self._shown({name: view[begin:end] for name, view in self._views.items()})

    def rows(self, rows: NDArray[np.int64]) -> Any:
        return self._shown({name: view[rows] for name, view in self._views.items()})

    def _shown(self, found: dict[str, Tensor]) -> Any:
        return next(iter(found.values())) if self._single else found


def _numbers(store: ActivationStore, rows: Rows) -> NDArray[np.int64]:
    """Rows as numbers; they may be asked for in any way in which a site is read."""
    found: NDArray[np.int64] = store.tokens.numbers(rows)
    return found


class RowDataset(Dataset[Any]):
    """Rows of a store for a `DataLoader` that picks them; see `ActivationStore.dataset`."""

    def __init__(self, store: ActivationStore, site: Sites, *, rows: Rows | None = None) -> None:
        self.store = store
        self.site = site
        self.rows = None if rows is None else _numbers(store, rows)
        self._reader = _Reader(store, site)

    def __len__(self) -> int:
        """How many rows there are."""
        return self.store.rows if self.rows is None else len(self.rows)

    def __getitem__(self, index: int) -> Any:
        """One row."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Any]:
        """Several rows, read at once."""
        if any(not -len(self) <= index < len(self) for index in indices):
            raise IndexError(f"there are {len(self)} rows")
        picked = np.asarray(indices, dtype=np.int64)
        found = self._reader.rows(picked if self.rows is None else self.rows[picked])
        if isinstance(found, dict):
            return [{name: x[n] for name, x in found.items()} for n in range(len(indices))]
        return list(found.unbind(0))

    def __getstate__(self) -> dict[str, Any]:
        """Another process opens the store itself."""
        return {"store": self.store, "site": self.site, "rows": self.rows}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Open it."""
        self.__dict__.update(state)
        self._reader = _Reader(self.store, self.site)


class BatchDataset(IterableDataset[Any]):
    """Whole batches for a `DataLoader(..., batch_size=None)`, shared out among its workers and among ranks.

    Args:
        store: the store.
        site: what to read.
        size: rows in a batch.
        options: see `ActivationStore.batches`.
        rank: our number among `world` processes that train together; each gets other batches.
        world: how many there are.
    """

    def __init__(
        self, store: ActivationStore, site: Sites, size: int, *, rank: int = 0, world: int = 1, **options: Any
    ) -> None:
        if not 0 <= rank < world:
            raise StoreError(f"rank {rank} of {world} does not exist")
        self.store = store
        self.site = site
        self.size = size
        self.rank, self.world = rank, world
        self.with_rows = bool(options.pop("with_rows", False))
        self.options = options
        self.epoch = 0
        self._made()

    def set_epoch(self, epoch: int) -> None:
        """Mix the rows in another order."""
        self.epoch = epoch

    def _made(self, share: tuple[int, int] = (0, 1)) -> Batches:
        options = dict(self.options)
        if self.epoch:
            options["seed"] = [options.get("seed", 0), self.epoch]
        return Batches(self.store, self.site, self.size, share=share, **options)

    def __len__(self) -> int:
        """How many batches this rank gets."""
        return len(range(self.rank, len(self._made()), self.world))

    def __iter__(self) -> Iterator[Any]:
        """The batches of this worker of this rank."""
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        share = (self.rank + self.world * worker, self.world * workers)
        for rows, x in self._made(share):
            yield (row_tensor(rows), x) if self.with_rows else x


def row_tensor(rows: Numbers) -> Tensor:
    """Numbers of rows as a tensor."""
    return torch.arange(rows.start, rows.stop) if isinstance(rows, range) else torch.from_numpy(rows)


__all__ = ["BatchDataset", "Batches", "RowDataset", "Sites", "row_tensor"]
