"""Making a plan: documents are written down as they come, so that memory does not grow with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from interp_toolkit.activations.configuration import Configuration
from interp_toolkit.activations.corpus import Document, Documents, Reading, documents
from interp_toolkit.activations.disk import canonical, discard, write_new
from interp_toolkit.activations.files import Array, header_of
from interp_toolkit.activations.planning import Plan, PlanFacts, arrays_of
from interp_toolkit.errors import StoreError

_SHARD_BYTES = 1 << 28
"""A shard is never larger than this, over all sites: several are in memory at once."""
_TEXT_CHUNK = 1 << 22


def make_plan(
    source: Documents,
    reading: Reading,
    configuration: Configuration,
    *,
    folder: Path,
    attempt: str,
    first: tuple[int, int, int, int] = (0, 0, 0, 0),
) -> Plan:
    """Cut documents into tokens, sequences and shards, and write all that down.

    Args:
        source: the documents.
        reading: how they become tokens.
        configuration: how tokens become sequences.
        folder: where the file goes.
        attempt: its name.
        first: numbers of the first shard, sequence, row and document.

    Raises:
        StoreError: for a dataset that is empty or of which nothing is kept, and documents that are too long.
        TokenError: for text without a tokenizer, documents without tokens, and ids outside of the vocabulary.
        OSError: as the file system has it.
    """
    spool = _Spool(folder, attempt, configuration)
    try:
        for number, document in enumerate(documents(source, reading)):
            spool.add(document, number)
        return spool.finish(first)
    finally:
        spool.remove()


class _Spool:
    """Writes what grows with the documents to files as they come, and puts these together at the end."""

    def __init__(self, folder: Path, attempt: str, configuration: Configuration) -> None:
        self.configuration = configuration
        self.folder = folder
        self.attempt = attempt
        self.columns: tuple[str, ...] | None = None
        self.tokens = self.documents = self.rows = 0
        self._text: list[int] = []
        self._sequences: list[NDArray[np.int64]] = []
        self._files: dict[str, IO[bytes]] = {}

    def _path(self, name: str) -> Path:
        return self.folder / f".{self.attempt}.{name}"

    def _write(self, name: str, data: bytes) -> None:
        if name not in self._files:
            self._files[name] = self._path(name).open("xb")
        self._files[name].write(data)

    def add(self, document: Document, number: int) -> None:
        """Add a document."""
        if self.columns is None:
            self.columns = tuple(document.columns)
            self._text = [0] * len(self.columns)
        conf = self.configuration
        ids = document.ids
        if conf.packing == "whole" and len(ids) > conf.context_length:
            if conf.long == "error":
                raise StoreError(
                    f"document {number} has {len(ids):,} tokens, but a sequence has at most {conf.context_length:,}: "
                    "use long='split' to cut such documents into several sequences, long='truncate' to keep their "
                    "beginning, or packing='packed'"
                )
            ids = ids[: conf.context_length] if conf.long == "truncate" else ids
        may = np.ones(len(ids), dtype=bool) if conf.special_tokens else ~document.special[: len(ids)]
        keep = conf.positions.keep(len(ids), document=number, spans=document.spans, may=may)
        if conf.packing == "packed" and conf.separator is not None:
            ids, keep = np.append(ids, conf.separator), np.append(keep, False)
        self.tokens += len(ids)
        self.rows += int(keep.sum())
        self.documents += 1
        self._write("ids", ids.astype("<i4").tobytes())
        self._write("keep", keep.astype(np.uint8).tobytes())
        self._write("document_ends", self.tokens.to_bytes(8, "little"))
        for n, name in enumerate(self.columns):
            text = canonical(document.columns[name])
            self._text[n] += len(text)
            self._write(f"column.{n}.text", text)
            self._write(f"column.{n}.ends", self._text[n].to_bytes(8, "little"))
        if conf.packing == "whole":
            ends = np.arange(self.tokens - len(ids), self.tokens, conf.context_length)[1:]
            self._write("sequence_ends", np.append(ends, self.tokens).astype("<i8").tobytes())

    def finish(self, first: tuple[int, int, int, int]) -> Plan:
        """Put the plan together."""
        if not self.rows:
            raise StoreError(
                f"of {self.documents:,} documents with {self.tokens:,} tokens nothing is kept: positions "
                f"{self.configuration.positions} leave no token"
            )
        if self.configuration.packing == "packed":
            ends = np.arange(0, self.tokens, self.configuration.context_length)[1:]
            self._write("sequence_ends", np.append(ends, self.tokens).astype("<i8").tobytes())
        for file in self._files.values():
            file.close()
        sequence_ends = np.fromfile(self._path("sequence_ends"), dtype="<i8")
        shard_ends, row_ends = self._shards(sequence_ends)
        self._write("shard_ends", shard_ends.tobytes())
        self._write("row_ends", row_ends.tobytes())
        for file in self._files.values():
            file.close()
        columns = self.columns or ()
        count = (len(shard_ends), len(sequence_ends), self.rows, self.documents, self.tokens)
        given = [Array("", "uint8", ())] * 6
        given += [Array("", "uint8", (size,)) for size in self._text for _ in range(2)]
        arrays = tuple(arrays_of(count, columns, given))
        path = self.folder / f"{self.attempt}.safetensors"
        size, digest = write_new(path, self._chunks(arrays))
        return Plan(
            PlanFacts(
                attempt=self.attempt,
                digest=digest,
                size=size,
                arrays=arrays,
                columns=columns,
                first=first,
                count=count,
            ),
            path,
        )

    def _chunks(self, arrays: Sequence[Array]) -> Iterator[bytes]:
        yield header_of(arrays)
        for array in arrays:
            with self._path(array.name).open("rb") as file:
                while part := file.read(_TEXT_CHUNK):
                    yield part

    def _shards(self, sequence_ends: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where shards end, in sequences and in rows: as many tokens as were asked, and rows that fit into memory."""
        conf = self.configuration
        keep = np.memmap(self._path("keep"), dtype=np.uint8, mode="r")
        rows = np.add.reduceat(keep, np.concatenate([[0], sequence_ends[:-1]]), dtype=np.int64)
        row_ends = np.cumsum(rows)
        most = max(1, _SHARD_BYTES // conf.row_bytes)
        shards, rows_of = [], []
        begin, tokens, kept = 0, 0, 0
        while begin < len(sequence_ends):
            by_tokens = int(np.searchsorted(sequence_ends, tokens + conf.shard_tokens, side="right"))
            by_rows = int(np.searchsorted(row_ends, kept + most, side="right"))
            begin = max(begin + 1, min(by_tokens, by_rows))
            tokens, kept = int(sequence_ends[begin - 1]), int(row_ends[begin - 1])
            shards.append(begin)
            rows_of.append(kept)
        return np.asarray(shards, dtype=np.int64), np.asarray(rows_of, dtype=np.int64)

    def remove(self) -> None:
        """Remove what is not the plan itself."""
        for name, file in self._files.items():
            file.close()
            discard(self._path(name))


__all__ = ["make_plan"]
