"""Making one store of several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from interp_toolkit.activations.attempts import attempt_in
from interp_toolkit.activations.computing import bytes_of, token_parts
from interp_toolkit.activations.disk import Chunk, hash_of
from interp_toolkit.activations.files import map_arrays, size_of
from interp_toolkit.activations.ledger import Ledger
from interp_toolkit.activations.writing import add_copy
from interp_toolkit.errors import CorruptStoreError, StoreError


def merge(sources: Sequence[Ledger], path: Path) -> None:
    """Copy stores of the same model, sites and options into one, in their order; call it again to go on.

    Raises:
        StoreError: when they do not fit together, one is not complete, or something else is at `path`.
        CorruptStoreError: when one is damaged.
    """
    if not sources:
        raise StoreError("there is no store to merge")
    for source in sources:
        source.expect(sources[0].configuration)
        if len(source.committed()) < source.num_shards or not source.num_shards:
            raise StoreError(f"{source.path} is not complete: finish its extraction first")
    ledger = Ledger.create(path, sources[0].configuration)
    wanted = [(source, plan) for source in sources for plan in source.plans]
    with attempt_in(ledger.path) as attempt:
        for number, (source, plan) in enumerate(wanted):
            if number == len(ledger.plans):
                plan.check()
                add_copy(ledger, plan)
            mine = ledger.plans[number]
            if mine.facts.digest != plan.facts.digest:
                raise StoreError(f"{path} is a store of other documents, and stays as it is: choose another path")
            for theirs, ours in zip(plan.shards, mine.shards, strict=True):
                if not ledger.is_committed(ours):
                    _copy(source, theirs, ledger, ours, attempt)
    ledger.seal()


def _copy(source: Ledger, theirs: int, ledger: Ledger, ours: int, attempt: str) -> None:
    """Copy a shard; only its numbers of sequences and documents change."""
    commit = source.commit(theirs)
    work = ledger.plan_of(ours).work(ours)
    parts: list[list[Chunk]] = [token_parts(work)]
    for n, kinds in enumerate(source.arrays(len(work.shard.rows))[1:], start=1):
        file = source.file(theirs, commit.attempt, n)
        if hash_of(file) != (size_of(kinds), commit.digests[n]):
            raise CorruptStoreError(f"{file} is damaged: its content is not what was written")
        parts.append([bytes_of(map_arrays(file, kinds)["x"])])
    ledger.write(work.shard, parts, attempt, commit.environment)


__all__ = ["merge"]
