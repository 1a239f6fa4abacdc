"""Checking a store: every record against the others, and every file against its record."""

from __future__ import annotations

from interp_toolkit.activations.disk import hash_of
from interp_toolkit.activations.files import map_arrays, size_of
from interp_toolkit.activations.ledger import Ledger
from interp_toolkit.errors import CorruptStoreError


def check(ledger: Ledger, *, content: bool, progress: bool = False) -> None:
    """Check a store.

    Args:
        ledger: its records.
        content: whether to read every file.
        progress: show it.

    Raises:
        CorruptStoreError: at the first thing that is not what was written.
    """
    from tqdm import tqdm

    fresh = Ledger(ledger.path)
    for plan in fresh.plans:
        plan.check()
    shards = fresh.committed()
    total = sum(size_of(kinds) for shard in shards for kinds in fresh.arrays(_rows(fresh, shard)))
    with tqdm(total=total, unit="B", unit_scale=True, disable=None if progress else True, leave=False) as bar:
        for shard in shards:
            commit = fresh.commit(shard)
            for n, kinds in enumerate(fresh.arrays(_rows(fresh, shard))):
                path = fresh.file(shard, commit.attempt, n)
                map_arrays(path, kinds)
                if content and hash_of(path, bar.update) != (size_of(kinds), commit.digests[n]):
                    raise CorruptStoreError(f"{path} is damaged: its content is not what was written")
    fresh.check_seals()


def _rows(ledger: Ledger, shard: int) -> int:
    return len(ledger.plan_of(shard).shard(shard).rows)


__all__ = ["check"]
