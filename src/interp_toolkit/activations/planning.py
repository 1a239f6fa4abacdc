"""The plan of an extraction: every document cut into sequences, and sequences into shards, before anything is run.

A plan follows from the documents and the configuration alone. Shard n is a range of sequences, whoever computes it and
when, so any number of workers makes the same store. A store may have several plans, one behind the other: that is how
documents are added to it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from interp_toolkit.activations.disk import hash_of
from interp_toolkit.activations.files import Array, map_arrays
from interp_toolkit.errors import CorruptStoreError


@dataclass(frozen=True)
class Shard:
    """A range of sequences, which is computed and written at once.

    Attributes:
        number: in the store.
        sequences: numbers of its sequences in the store.
        rows: numbers of its rows in the store.
        documents: numbers of the documents that it has tokens of, in the store.
    """

    number: int
    sequences: range
    rows: range
    documents: range


@dataclass(frozen=True, kw_only=True)
class PlanFacts:
    """What is said of a plan in its record.

    Attributes:
        attempt: part of the name of its file.
        digest: xxh3-128 of its file, so of all it says.
        size: bytes of the file.
        arrays: what is in the file.
        columns: what is known of each document.
        first: numbers of its first shard, sequence, row and document in the store.
        count: how many shards, sequences, rows and documents it has, and how many tokens.
    """

    attempt: str
    digest: str
    size: int
    arrays: tuple[Array, ...]
    columns: tuple[str, ...]
    first: tuple[int, int, int, int]
    count: tuple[int, int, int, int, int]

    def to_json(self) -> dict[str, Any]:
        """The facts as JSON has them."""
        return {
            "attempt": self.attempt,
            "digest": self.digest,
            "size": self.size,
            "arrays": [[a.name, a.dtype, list(a.shape)] for a in self.arrays],
            "columns": list(self.columns),
            "first": list(self.first),
            "count": list(self.count),
        }

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> PlanFacts:
        """Read what `to_json` wrote.

        Raises:
            CorruptStoreError: when it is something else.
        """
        try:
            found = cls(
                attempt=facts["attempt"],
                digest=facts["digest"],
                size=facts["size"],
                arrays=tuple(Array(name, dtype, tuple(shape)) for name, dtype, shape in facts["arrays"]),
                columns=tuple(facts["columns"]),
                first=tuple(facts["first"]),
                count=tuple(facts["count"]),
            )
            numbers = [*found.first, *found.count, found.size, *(n for a in found.arrays for n in a.shape)]
            sound = all(type(n) is int and n >= 0 for n in numbers) and (len(found.first), len(found.count)) == (4, 5)
            sound = sound and all(isinstance(name, str) for name in found.columns)
            if not sound or found.arrays != tuple(arrays_of(found.count, found.columns, found.arrays)):
                raise ValueError("numbers do not fit together")
        except (LookupError, TypeError, ValueError) as error:
            raise CorruptStoreError(f"a plan does not say what it is: {error}") from error
        return found


def arrays_of(count: Sequence[int], columns: Sequence[str], given: Sequence[Array]) -> Iterator[Array]:
    """The arrays of a plan, as its numbers would have them; only the text of columns has a length of its own."""
    shards, sequences, _, docs, tokens = count
    yield Array("ids", "int32", (tokens,))
    yield Array("keep", "uint8", (tokens,))
    yield Array("document_ends", "int64", (docs,))
    yield Array("sequence_ends", "int64", (sequences,))
    yield Array("shard_ends", "int64", (shards,))
    yield Array("row_ends", "int64", (shards,))
    for n in range(len(columns)):
        yield Array(f"column.{n}.ends", "int64", (docs,))
        yield Array(f"column.{n}.text", "uint8", (given[7 + 2 * n].nbytes,))


class Plan:
    """One plan, read from its file: which tokens are run, and which rows they become.

    Numbers of shards, sequences, rows and documents are those of the whole store.
    """

    def __init__(self, facts: PlanFacts, path: Path) -> None:
        self.facts = facts
        self.path = path
        self._first_shard, self._first_sequence, self._first_row, self._first_document = facts.first
        self.num_shards, self.num_sequences, self.num_rows, self.num_documents, self.num_tokens = facts.count

    @functools.cached_property
    def _file(self) -> dict[str, NDArray[Any]]:
        self.check()
        found = map_arrays(self.path, self.facts.arrays)
        edges = {"document_ends": self.num_tokens, "sequence_ends": self.num_tokens, "shard_ends": self.num_sequences}
        for name, last in edges.items():
            ends = found[name]
            if not len(ends) or ends[0] < 1 or ends[-1] != last or (np.diff(ends) < 1).any():
                raise CorruptStoreError(f"{self.path} is damaged: its {name} are no ends")
        rows = found["row_ends"]
        if rows[0] < 0 or rows[-1] != self.num_rows or (np.diff(rows) < 0).any():
            raise CorruptStoreError(f"{self.path} is damaged: its row_ends are no ends")
        return found

    def check(self) -> None:
        """Read all of it and compare it with its digest.

        Raises:
            CorruptStoreError: when it is not what was written.
        """
        if hash_of(self.path) != (self.facts.size, self.facts.digest):
            raise CorruptStoreError(f"{self.path} is damaged: its content is not what was written")

    @property
    def shards(self) -> range:
        """Numbers of its shards."""
        return range(self._first_shard, self._first_shard + self.num_shards)

    @property
    def rows(self) -> range:
        """Numbers of its rows."""
        return range(self._first_row, self._first_row + self.num_rows)

    @property
    def documents(self) -> range:
        """Numbers of its documents."""
        return range(self._first_document, self._first_document + self.num_documents)

    @functools.cached_property
    def row_starts(self) -> NDArray[np.int64]:
        """The first row of each shard."""
        starts: NDArray[np.int64] = np.concatenate([[0], self._file["row_ends"][:-1]]) + self._first_row
        return starts

    @functools.cached_property
    def kept_before(self) -> NDArray[np.int64]:
        """For each document how many rows the plan's documents before it have; at the end how many there are."""
        starts = np.concatenate([[0], self._file["document_ends"][:-1]])
        kept = np.add.reduceat(self._file["keep"], starts, dtype=np.int64)
        found: NDArray[np.int64] = np.concatenate([[0], np.cumsum(kept)])
        return found

    def shard(self, number: int) -> Shard:
        """What one shard holds."""
        n = number - self._first_shard
        ends, file = self._file["shard_ends"], self._file
        begin, end = (int(ends[n - 1]) if n else 0), int(ends[n])
        first, last = self._tokens(begin, end)
        docs = np.searchsorted(file["document_ends"], [first, last - 1], side="right")
        rows = (int(file["row_ends"][n - 1]) if n else 0), int(file["row_ends"][n])
        return Shard(
            number,
            range(begin + self._first_sequence, end + self._first_sequence),
            range(rows[0] + self._first_row, rows[1] + self._first_row),
            range(int(docs[0]) + self._first_document, int(docs[1]) + 1 + self._first_document),
        )

    def _tokens(self, begin: int, end: int) -> tuple[int, int]:
        """The tokens of some of its sequences."""
        ends = self._file["sequence_ends"]
        return (int(ends[begin - 1]) if begin else 0), int(ends[end - 1])

    def work(self, number: int) -> Work:
        """The tokens of a shard."""
        shard, file = self.shard(number), self._file
        begin, end = (edge - self._first_sequence for edge in (shard.sequences.start, shard.sequences.stop))
        first, last = self._tokens(begin, end)
        ends = file["sequence_ends"][begin:end] - first
        starts = np.concatenate([[0], ends[:-1]])
        lengths = ends - starts
        document = np.searchsorted(file["document_ends"], np.arange(first, last), side="right")
        return Work(
            shard=shard,
            ids=file["ids"][first:last],
            keep=file["keep"][first:last].astype(bool),
            starts=starts,
            lengths=lengths,
            position=(np.arange(last - first) - np.repeat(starts, lengths)).astype(np.int32),
            sequence=np.repeat(np.arange(shard.sequences.start, shard.sequences.stop), lengths),
            document=document + self._first_document,
        )

    def column(self, name: str) -> list[Any]:
        """What is known of each of its documents under a name."""
        n = self.facts.columns.index(name)
        ends = self._file[f"column.{n}.ends"].tolist()
        text = self._file[f"column.{n}.text"].tobytes()
        try:
            return [json.loads(text[a:b]) for a, b in zip([0, *ends[:-1]], ends, strict=True)]
        except (ValueError, RecursionError) as error:
            raise CorruptStoreError(f"{self.path} is damaged: {error}") from error


@dataclass(frozen=True, eq=False)
class Work:
    """What a worker has to know of a shard.

    Attributes:
        shard: which one.
        ids: its tokens.
        keep: which of them become rows.
        starts: where each of its sequences starts among them.
        lengths: of each of its sequences.
        position: of each token in its sequence.
        sequence: of each token.
        document: of each token.
    """

    shard: Shard
    ids: NDArray[np.int32]
    keep: NDArray[np.bool_]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    position: NDArray[np.int32]
    sequence: NDArray[np.int64]
    document: NDArray[np.int64]

    def batches(self, tokens: int, *, padded: bool) -> Iterator[NDArray[np.int64]]:
        """Sequences that share a pass, by their number in the shard: long ones first.

        Args:
            tokens: how many tokens a pass may have, with padding; one sequence always may.
            padded: whether sequences of different length may share a pass.
        """
        reach = self.reach
        order = np.argsort(-reach, kind="stable")
        order = order[reach[order] > 0]
        begin = 0
        while begin < len(order):
            longest = int(reach[order[begin]])
            end = begin + max(1, tokens // longest)
            if not padded:
                end = min(end, begin + int((reach[order[begin:]] == longest).sum()))
            yield order[begin:end]
            begin = end

    @functools.cached_property
    def reach(self) -> NDArray[np.int64]:
        """How many tokens of each sequence have to be run: up to the last one that is kept."""
        found = np.zeros(len(self.lengths), dtype=np.int64)
        kept = np.flatnonzero(self.keep)
        inside = np.searchsorted(self.starts, kept, side="right") - 1
        np.maximum.at(found, inside, kept - self.starts[inside] + 1)
        return found


__all__ = ["Plan", "PlanFacts", "Shard", "Work", "arrays_of"]
