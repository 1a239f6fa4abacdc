"""The files of a store, mapped into memory when they are first used."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from interp_toolkit.activations.disk import hash_of
from interp_toolkit.activations.files import Array, as_tensor, map_arrays, size_of
from interp_toolkit.activations.ledger import Commit, Ledger
from interp_toolkit.errors import CorruptStoreError, StoreError

_MOST_MAPPED = 4096
"""Files mapped at once; systems allow about 65,000 for a process."""


class Shards:
    """Which row lies where.

    Args:
        ledger: the records.
        check_content: whether a file is read and compared with its checksum before it is used.
    """

    def __init__(self, ledger: Ledger, *, check_content: bool = False) -> None:
        self.ledger = ledger
        self.check_content = check_content
        self._commits: dict[int, Commit] = {}
        self._mapped: OrderedDict[tuple[int, int], dict[str, NDArray[np.generic]]] = OrderedDict()
        self._checked: set[tuple[int, int]] = set()
        self._lent: dict[tuple[int, int], dict[str, Tensor]] = {}
        self._lock = threading.Lock()
        self.refresh()

    def refresh(self) -> None:
        """Look for shards that were written since."""
        starts = [plan.row_starts for plan in self.ledger.plans]
        self.starts: NDArray[np.int64] = np.concatenate([*starts, [self.ledger.num_rows]]).astype(np.int64)
        self.total = int(self.starts[-1])
        self._edges: list[int] = self.starts.tolist()
        self._done = frozenset(self.ledger.committed())

    @property
    def complete(self) -> bool:
        """Whether every shard is there."""
        return bool(self.ledger.plans) and len(self._done) == self.ledger.num_shards

    def available(self) -> Iterator[range]:
        """The rows that are there, in ranges."""
        for shard in sorted(self._done):
            yield range(int(self.starts[shard]), int(self.starts[shard + 1]))

    def kind(self, which: int, name: str) -> Array:
        """Type and shape of an array over all rows."""
        return next(array for array in self.ledger.arrays_of(which, self.ledger.num_rows) if array.name == name)

    def shard_of(self, row: int) -> int:
        """The shard of one row."""
        return bisect_right(self._edges, row) - 1

    def shards_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The shard of each row."""
        found: NDArray[np.int64] = np.searchsorted(self.starts, rows, side="right") - 1
        return found

    def array(self, shard: int, which: int, name: str) -> NDArray[np.generic]:
        """An array of a shard.

        Raises:
            StoreError: when the shard is not written yet.
            CorruptStoreError: when its file is not what was written.
        """
        key = (shard, which)
        with self._lock:
            found = self._mapped.get(key)
            if found is None or any(x._version for x in self._lent.get(key, {}).values()):
                found = self._map(shard, which)
                self._mapped[key] = found
                self._lent.pop(key, None)
                if len(self._mapped) > _MOST_MAPPED:
                    self._lent.pop(self._mapped.popitem(last=False)[0], None)
            else:
                self._mapped.move_to_end(key)
        return found[name]

    def lend(self, shard: int, which: int, name: str) -> Tensor:
        """An array of a shard as a tensor over the mapped file.

        What somebody writes into it stays with him: torch counts writes, also those into parts of it, and the file is
        mapped anew for whoever asks next. (Writes behind torch's back, through `.data` or `.numpy()`, are not seen.)
        """
        known = self._lent.get((shard, which), {}).get(name)
        if known is not None and not known._version:
            return known
        array = self.array(shard, which, name)
        with self._lock, torch.inference_mode(False):
            lent = self._lent.setdefault((shard, which), {})
            if name not in lent:
                lent[name] = as_tensor(array, self.kind(which, name).dtype)
            return lent[name]

    def _map(self, shard: int, which: int) -> dict[str, NDArray[np.generic]]:
        commit = self.commit(shard)
        rows = int(self.starts[shard + 1] - self.starts[shard])
        kinds = self.ledger.arrays_of(which, rows)
        path = self.ledger.file(shard, commit.attempt, which)
        if self.check_content and (shard, which) not in self._checked:
            if hash_of(path) != (size_of(kinds), commit.digests[which]):
                raise CorruptStoreError(f"{path} is damaged: its content is not what was written")
            self._checked.add((shard, which))
        return map_arrays(path, kinds)

    def commit(self, shard: int) -> Commit:
        """What is said of a shard.

        Raises:
            StoreError: when it is not written yet.
        """
        if shard not in self._commits:
            if shard not in self._done:
                first, last = int(self.starts[shard]), int(self.starts[shard + 1]) - 1
                raise StoreError(
                    f"rows {first:,} to {last:,} (shard {shard}) are not written yet, or were not when the store was "
                    "opened: let the extraction finish, call refresh(), or read available() rows only"
                )
            self._commits[shard] = self.ledger.commit(shard)
        return self._commits[shard]


__all__ = ["Shards"]
