"""Documents from whatever a user has: texts, files, a dataset, token ids.

Everything streams: no more than a few hundred documents are in memory, however many there are.
"""

from __future__ import annotations

import gzip
import itertools
import json
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from interp_toolkit.errors import StoreError, TokenError
from interp_toolkit.model.tokens import special_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_AT_ONCE = 256
_USUAL = ("id", "label")
_IDS = "input_ids"
_MASK = "attention_mask"

Documents = Any
"""A file, or an iterable of texts, of token ids, or of records (dictionaries) with one of them."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Documents, and how they become sequences.

    Args:
        source: a `.jsonl`, `.parquet` or `.txt` file (a document in each line; `.gz` too), a dataset of Hugging Face
            `datasets`, or any iterable of texts, of token ids, or of records with a text or `input_ids`.
        text: the field of a record that holds its text.
        columns: fields of the records that are stored with each document, such as `("label", "source")`; by default
            `id` and `label` where records have them.
        packing: `"whole"`: each document is a sequence of its own; `"packed"`: documents follow each other in
            sequences of the full length, and see what stands before them.
        long: what becomes of documents longer than a sequence: an `"error"`, `"split"` into several sequences that do
            not see each other, or `"truncate"`.
        separator: the token between packed documents; by default the tokenizer's end token. It is never stored.
        special_tokens: whether the tokenizer's special tokens are stored.
    """

    source: Documents
    text: str = "text"
    columns: Sequence[str] | None = None
    packing: Literal["whole", "packed"] = "whole"
    long: Literal["error", "split", "truncate"] = "error"
    separator: int | None = None
    special_tokens: bool = True


@dataclass(frozen=True, eq=False, slots=True)
class Document:
    """One document, cut into tokens.

    Attributes:
        ids: its tokens.
        special: which of them the tokenizer added, or are special in it.
        columns: what else is known of it, by name.
        spans: spans of its tokens that are to be kept.
    """

    ids: NDArray[np.int64]
    special: NDArray[np.bool_]
    columns: dict[str, Any] = field(default_factory=dict)
    spans: tuple[tuple[int, int], ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How records become documents.

    Attributes:
        text: the field of a record that holds its text.
        columns: fields that are stored with each document; None for `id` and `label` where the first record has them.
        tokenizer: cuts text into tokens.
        vocabulary: how many tokens the model knows.
        spans: whether records name spans.
    """

    text: str = "text"
    columns: tuple[str, ...] | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    vocabulary: int | None = None
    spans: bool = False


def documents(source: Documents, reading: Reading) -> Iterator[Document]:
    """The documents of a source, in its order.

    Raises:
        StoreError: for a file that cannot be read, and records without text.
        TokenError: for text without a tokenizer, documents without tokens, and ids outside of the vocabulary.
    """
    number = 0
    records = iter(_records(source))
    columns = reading.columns
    while batch := list(itertools.islice(records, _AT_ONCE)):
        if columns is None:
            columns = tuple(name for name in _USUAL if isinstance(batch[0], Mapping) and name in batch[0])
        for document in _cut(batch, number, columns, reading):
            _check(document, number, reading)
            yield document
            number += 1
    if not number:
        raise StoreError("the dataset is empty: there is no document in it")


# --- where records come from --------------------------------------------------------------------------------------


def _records(source: Documents) -> Iterable[Any]:
    if isinstance(source, str | Path):
        return _of_file(Path(source), str(source))
    if isinstance(source, Mapping):
        if _IDS not in source:
            raise StoreError(f"a mapping is taken as an encoding with input_ids, but this one has {sorted(source)[:9]}")
        return _of_encoding(source)
    if isinstance(source, Tensor | np.ndarray):
        if source.ndim != 2:
            raise StoreError(f"token ids are of shape [document, pos], not {tuple(source.shape)}")
        return source
    if not isinstance(source, Iterable):
        raise StoreError(f"a dataset is a file or an iterable of texts, records or token ids, not {source!r}")
    return source


def _of_encoding(encoding: Mapping[str, Any]) -> Iterator[Any]:
    ids, mask = encoding[_IDS], encoding.get("attention_mask")
    if np.ndim(ids[0] if len(ids) else [0]) == 0:  # of a single text
        ids, mask = [ids], None if mask is None else [mask]
    for number, row in enumerate(ids):
        yield {_IDS: row} if mask is None else {_IDS: row, _MASK: mask[number]}


def _of_file(path: Path, name: str) -> Iterator[Any]:
    try:
        found = path.is_file()
    except OSError:  # a text may be too long for a name
        found = False
    if not found:
        raise StoreError(f"there is no file {name[:80]!r}; a single text is given as a list: [{name[:40]!r}]")
    suffixes = [s for s in path.suffixes if s != ".gz"]
    kind = suffixes[-1] if suffixes else ".txt"
    if kind == ".parquet":
        return _of_parquet(path)
    if kind in (".jsonl", ".ndjson", ".json"):
        return _of_json_lines(path)
    if kind == ".txt":
        return _lines(path)
    raise StoreError(f"{path} is no .jsonl, .parquet or .txt file (a document in each line), as far as its name says")


def _lines(path: Path) -> Iterator[str]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        try:
            for line in file:
                text = line.rstrip("\r\n")
                if text.strip():
                    yield text
        except (UnicodeDecodeError, EOFError, OSError, zlib.error) as error:
            raise StoreError(f"{path} cannot be read as text: {error}") from error


def _of_json_lines(path: Path) -> Iterator[Any]:
    for number, line in enumerate(_lines(path)):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise StoreError(f"{path}: document {number} is not one line of JSON: {error}") from error
        yield record


def _of_parquet(path: Path) -> Iterator[Any]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise ImportError('Parquet files need pyarrow: pip install "interpretability-toolkit[store]"') from error
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_AT_ONCE):
                yield from batch.to_pylist()
    except (ArrowException, OSError) as error:
        raise StoreError(f"{path} cannot be read as Parquet: {error}") from error


# --- from records to tokens ---------------------------------------------------------------------------------------


def _cut(batch: Sequence[Any], first: int, columns: tuple[str, ...], reading: Reading) -> Iterator[Document]:
    """Documents of records; texts are cut together, which is many times faster."""
    texts = {n: text for n, record in enumerate(batch) if (text := _text_of(record, first + n, reading)) is not None}
    encoded = dict(zip(texts, _encode(texts, first, reading), strict=True)) if texts else {}
    for n, record in enumerate(batch):
        ids, special, offsets = encoded[n] if n in encoded else _given(record, first + n, reading)
        known: dict[str, Any] = {}
        if isinstance(record, Mapping):
            missing = [name for name in columns if name not in record]
            if missing:
                raise StoreError(f"document {first + n} has no {', '.join(missing)}, but only {sorted(record)[:9]}")
            known = {name: _plain(record[name], name, first + n) for name in columns}
        elif columns:
            raise StoreError(f"document {first + n} is no record, so that it has no {', '.join(columns)}")
        spans = _spans_of(record, first + n, len(ids), offsets) if reading.spans else None
        yield Document(ids, special, known, spans)


def _text_of(record: Any, number: int, reading: Reading) -> str | None:
    if isinstance(record, Mapping):
        found_ids = record.get(_IDS, None) is not None
        if reading.text not in record and not found_ids:
            raise StoreError(
                f"document {number} has no {reading.text!r}, but {sorted(map(str, record))[:9]}: name the field of "
                "the text"
            )
        record = record.get(reading.text, None)
        if record is None and found_ids:
            return None
        if not isinstance(record, str):
            raise StoreError(f"document {number}: {reading.text!r} is no text, but {type(record).__name__}")
    return record if isinstance(record, str) else None


def _encode(texts: Mapping[int, str], first: int, reading: Reading) -> Iterator[tuple[Any, Any, Any]]:
    tokenizer = reading.tokenizer
    if tokenizer is None:
        raise TokenError("the dataset is text, but there is no tokenizer: pass tokenizer=, or token ids")
    if reading.spans and not tokenizer.is_fast:
        raise TokenError("spans of characters need a fast tokenizer, which says where each token lies in the text")
    encoded = tokenizer(
        list(texts.values()),
        padding=False,
        truncation=False,
        return_attention_mask=False,
        return_offsets_mapping=reading.spans,
        verbose=False,
    )
    bos = tokenizer.bos_token_id
    for n, ids in enumerate(encoded[_IDS]):
        row = np.asarray(ids, dtype=np.int64)
        if bos is not None and row[:2].tolist() == [bos, bos]:
            raise TokenError(
                f"document {first + list(texts)[n]} begins with the start token {tokenizer.bos_token!r}, and the "
                "tokenizer adds it too: leave it out of the text"
            )
        offsets = encoded["offset_mapping"][n] if reading.spans else None
        yield row, np.isin(row, special_ids(tokenizer)), offsets


def _given(record: Any, number: int, reading: Reading) -> tuple[Any, Any, Any]:
    row = _numbers(record[_IDS] if isinstance(record, Mapping) else record)
    if row is None:
        raise TokenError(f"document {number} is a text, a record or a list of token ids, not {record!r:.80}")
    if isinstance(record, Mapping) and record.get(_MASK) is not None:
        mask = _numbers(record[_MASK])
        if mask is None or mask.shape != row.shape or not np.isin(mask, (0, 1)).all():
            raise TokenError(f"document {number}: the attention mask is not a list of {len(row)} ones and zeros")
        if np.abs(np.diff(mask)).sum() > 1:
            raise TokenError(f"document {number}: the attention mask has holes, but padding is on one side only")
        row = row[mask == 1]
    return row, np.isin(row, special_ids(reading.tokenizer)), None


def _numbers(values: Any) -> NDArray[np.int64] | None:
    """A list of whole numbers, whatever it is made of; None if it is something else."""
    try:
        row = np.asarray(values.cpu() if isinstance(values, Tensor) else values)
    except ValueError:  # lists of different length
        return None
    return None if row.ndim != 1 or (row.size and row.dtype.kind not in "iu") else row.astype(np.int64)


def _plain(value: Any, name: str, number: int) -> Any:
    if isinstance(value, np.generic | Tensor) and value.ndim == 0:
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        raise StoreError(f"document {number}: {name!r} is {value}, not a number or null: use null where it is missing")
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise StoreError(
        f"document {number}: {name!r} is {type(value).__name__}, but columns hold text, numbers, true, false or null: "
        "leave it out, or name others with Corpus(columns=[...])"
    )


def _spans_of(record: Any, number: int, length: int, offsets: Any) -> tuple[tuple[int, int], ...]:
    """Spans of tokens; in a text they are given in characters, in token ids in tokens."""
    given = record.get("spans") if isinstance(record, Mapping) else None
    if given is None:
        raise StoreError(f"document {number} names no spans: give records with 'spans', such as [[4, 16]]")
    found = []
    for span in given:
        edges = _numbers(span)
        if edges is None or len(edges) != 2 or not 0 <= edges[0] < edges[1]:
            raise StoreError(f"document {number}: a span is where it begins and behind its end, not {span!r:.80}")
        begin, end = (int(edge) for edge in edges)
        if offsets is not None:
            inside = [n for n, (a, b) in enumerate(offsets) if a < end and b > begin and b > a]
            begin, end = (inside[0], inside[-1] + 1) if inside else (0, 0)
        if not 0 <= begin < end <= length:
            raise StoreError(f"document {number}: no token lies in the span {[int(edge) for edge in edges]}")
        found.append((begin, end))
    return tuple(found)


def _check(document: Document, number: int, reading: Reading) -> None:
    ids = document.ids
    name = f"document {number}" + "".join(f" ({key} {value!r})" for key, value in document.columns.items())
    if not len(ids):
        raise TokenError(f"{name} has no tokens: leave it out")
    least, most = int(ids.min()), int(ids.max())
    if least < 0 or most >= (reading.vocabulary or 2**31):
        wrong = least if least < 0 else most
        raise TokenError(f"{name}: token id {wrong} is outside of the model's vocabulary of {reading.vocabulary:,}")


__all__ = ["Corpus", "Document", "Documents", "Reading", "documents"]
