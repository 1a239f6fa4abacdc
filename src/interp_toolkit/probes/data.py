"""Labelled texts that probes are trained and judged on: made in memory, or read from CSV, TSV and JSON Lines files."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import math
import operator
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import Tensor

from interp_toolkit.errors import ProbeError

if TYPE_CHECKING:
    from pandas import DataFrame

Label = str | int | float | tuple[str, ...]
"""Text, a whole number or true/false for a class; a float to be predicted; a tuple of names for several at once."""

_INTEGER = re.compile(r"[+-]?(0|[1-9]\d{0,17})", re.ASCII)
_FLOAT = re.compile(r"[+-]?(\d+\.\d*(e[+-]?\d+)?|\.\d+(e[+-]?\d+)?|\d+e[+-]?\d+|nan|inf)", re.ASCII | re.IGNORECASE)
_FIELDS = {"text": "texts", "label": "labels", "group": "groups", "span": "spans", "pair": "pairs"}
_SHOWN = 5
_Columns = dict[str, tuple[Any, ...] | None]


@dataclass(frozen=True, kw_only=True)
class ProbeData:
    """Texts, what a probe is to tell of each, and what must not be torn apart.

    `ProbeData.of` takes lists, arrays and columns of tables; `read_data` takes files. Rows are counted from 0.

    Args:
        name: of the data set.
        texts: what the model reads, one for each row.
        labels: one for each row, all of one type: text, whole numbers or true/false for classes, floats for numbers
            that are to be predicted, tuples of names where a row can have several labels or none.
        groups: rows of one group must stay on one side of a split: those of one template, entity or contrast pair.
        spans: the substring of each text that is meant, such as a word; its first occurrence, if there are several.
        pairs: the same id for two rows that are the same but for the concept. Partners have different labels and, if
            there are groups, one group. A row whose partner was left out keeps its id.
        source: where the data come from, in one sentence.

    Raises:
        ProbeError: for data that are not of this form; the message names the rows.

    Example:
        >>> data = ProbeData(name="plurals", texts=("a cat", "two cats"), labels=("singular", "plural"))
        >>> len(data), data.counts()
        (2, {'plural': 1, 'singular': 1})
    """

    name: str
    texts: tuple[str, ...]
    labels: tuple[Label, ...]
    groups: tuple[str, ...] | None = None
    spans: tuple[str, ...] | None = None
    pairs: tuple[str, ...] | None = None
    source: str = "Given by the caller."

    def __post_init__(self) -> None:
        _check(self._columns(), self.name)

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self.texts)

    @classmethod
    def of(
        cls,
        texts: Iterable[Any],
        labels: Iterable[Any],
        *,
        groups: Iterable[Any] | None = None,
        spans: Iterable[Any] | None = None,
        pairs: Iterable[Any] | None = None,
        name: str = "data",
        source: str = "Given by the caller.",
    ) -> ProbeData:
        """Data from lists, arrays, or columns of a table: `ProbeData.of(table["text"], table["label"])`.

        Args:
            texts: texts.
            labels: whole numbers among floats become floats, lists and sets of names become tuples.
            groups: any values; they are kept as text.
            spans: substrings of the texts.
            pairs: any values; they are kept as text.
            name: of the data set.
            source: where the data come from.

        Example:
            >>> ProbeData.of(["warm", "cold"], [21, 3.5], groups=[1, 2])
            ProbeData(name='data', texts=('warm', 'cold'), labels=(21.0, 3.5), groups=('1', '2'), ...)
        """
        given = zip(_FIELDS, (texts, labels, groups, spans, pairs), strict=True)
        columns: Any = _tidy({column: values for column, values in given if values is not None})
        _check(columns, name)
        return cls(name=name, source=source, **columns)

    def _columns(self) -> _Columns:
        return {field: getattr(self, field) for field in _FIELDS.values()}

    @property
    def kind(self) -> Literal["classes", "labels", "regression"]:
        """What the labels are."""
        first = self.labels[0]
        return "labels" if isinstance(first, tuple) else "regression" if isinstance(first, float) else "classes"

    @property
    def digest(self) -> str:
        """SHA-256 of texts, labels, groups, spans and pairs; name and source do not count."""
        return hashlib.sha256(json.dumps(self._columns()).encode()).hexdigest()

    def select(self, rows: Iterable[Any]) -> ProbeData:
        """Some of the rows, in the order given.

        Args:
            rows: their numbers, or a mask with true or false for each row.

        Raises:
            ProbeError: when a row does not exist or comes twice, or no row is left.

        Example:
            >>> ProbeData.of(["a", "b", "c"], [0, 1, 1]).select([2, 0]).texts
            ('c', 'a')
        """
        chosen = _chosen(rows, len(self))
        columns: Any = {
            field: None if values is None else tuple(values[row] for row in chosen)
            for field, values in self._columns().items()
        }
        return ProbeData(name=self.name, source=self.source, **columns)

    def counts(self) -> dict[str | int | float, int]:
        """How many rows have each label, in the order of the labels; of several labels each counts."""
        found = Counter(item for label in self.labels for item in (label if isinstance(label, tuple) else (label,)))
        return dict(sorted(found.items()))

    def partners(self) -> tuple[tuple[int, int], ...]:
        """The rows of each whole pair, in the order in which they stand."""
        return tuple((rows[0], rows[1]) for rows in _where(self.pairs or ()).values() if len(rows) == 2)

    def summary(self) -> str:
        """The data in words.

        Example:
            >>> ProbeData.of(["a", "b", "c"], ["yes", "no", "yes"], groups="uvv", name="answers").summary()
            "answers: 3 rows. Classes: 2 'yes', 1 'no'. 2 groups of 1 to 2 rows. Given by the caller."
        """
        said = [f"{self.name}: {_many(len(self), 'row')}.", self._said_of_labels()]
        if self.groups is not None:
            sizes = sorted(Counter(self.groups).values())
            least = "" if sizes[0] == sizes[-1] else f"{sizes[0]} to "
            said.append(f"{_many(len(sizes), 'group')} of {least}{_many(sizes[-1], 'row')}.")
        if self.pairs is not None:
            said.append(f"{_many(len(self.partners()), 'whole pair')}.")
        if self.spans is not None:
            said.append("A span is marked in each text.")
        if again := len(self) - len(set(zip(self.texts, self.spans or self.texts, strict=True))):
            said.append(f"{_many(again, 'row')} of the same text as an earlier one.")
        return " ".join([*said, self.source])

    def _said_of_labels(self) -> str:
        if self.kind == "regression":
            numbers = np.array(self.labels, dtype=np.float64)
            return f"Numbers from {numbers.min():g} to {numbers.max():g}, mean {numbers.mean():g}."
        common = sorted(self.counts().items(), key=lambda entry: -entry[1])
        shown = ", ".join(f"{number} {label!r}" for label, number in common[:_SHOWN])
        more = f" and {len(common) - _SHOWN} more" if len(common) > _SHOWN else ""
        without = f"; {_many(self.labels.count(()), 'row')} without any" if self.kind == "labels" else ""
        return f"{'Labels' if without else 'Classes'}: {shown or 'none'}{more}{without}."

    def to_dataframe(self) -> DataFrame:
        """A table with the columns `text` and `label`, and `group`, `span` and `pair` where they are known.

        Raises:
            ImportError: without pandas.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError('tables need pandas: pip install "interpretability-toolkit[probes]"') from error
        known = {column: getattr(self, field) for column, field in _FIELDS.items()}
        return pd.DataFrame({column: list(values) for column, values in known.items() if values is not None})


def read_data(
    path: str | Path,
    *,
    text: str = "text",
    label: str = "label",
    group: str | None = "group",
    span: str | None = "span",
    pair: str | None = "pair",
    name: str | None = None,
) -> ProbeData:
    """Labelled texts of a file.

    CSV and TSV files have a header, are UTF-8 with or without a byte order mark, and may quote texts with line breaks.
    Their labels are text, unless all of them are whole numbers, which then are classes, or numbers, which then are to
    be predicted. Blanks around labels, groups and pairs do not count. In JSON Lines labels are what they are there.

    Args:
        path: a `.csv`, `.tsv`, `.jsonl` or `.ndjson` file; `.gz` too.
        text: the column or field of the texts.
        label: of the labels; in JSON Lines a list of names gives a row several.
        group: of the groups. This and the next two are used where the file has them; None leaves them out.
        span: of the substrings.
        pair: of the pairs.
        name: of the data set; by default that of the file.

    Raises:
        ProbeError: when the file cannot be read, lacks a column, or its rows are not of the form; the message names
            rows and lines.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "moods.csv"
        >>> path.write_text("text,label" + chr(10) + '"Oh, no.",sad')
        24
        >>> read_data(path).texts
        ('Oh, no.',)
    """
    path = Path(path)
    kind = Path(path.name.lower().removesuffix(".gz")).suffix
    if kind not in (".csv", ".tsv", ".jsonl", ".ndjson"):
        raise ProbeError(f"{path} is no .csv, .tsv, .jsonl or .ndjson file (nor one of these with .gz)")
    content = _content(path)
    quoted = kind in (".csv", ".tsv")
    header, lines, records = _of_csv(path, content, kind) if quoted else _of_json_lines(path, content)
    found = _found(path, header, dict(zip(_FIELDS, (text, label, group, span, pair), strict=True)))
    given: dict[str, list[Any]] = {column: [r.get(field) for r in records] for column, field in found.items()}
    if quoted:
        given["label"] = _typed([cell.strip() for cell in given["label"]])
    columns: Any = _tidy(given)
    _check(columns, str(path), lines)
    return ProbeData(name=name or re.sub(r"\.\w+(\.gz)?$", "", path.name), source=f"Read from {path}.", **columns)


def _check(columns: _Columns, name: str, lines: Sequence[int] | None = None) -> None:
    """Refuses columns that are no data; of a file it is known on which line each row stands."""
    known = {field: values for field, values in columns.items() if values is not None}
    if not known["texts"]:
        raise ProbeError(f"{name}: there are no rows")
    if len({len(values) for values in known.values()}) > 1:
        shown = ", ".join(f"{len(values)} {field}" for field, values in known.items())
        raise ProbeError(f"{name}: every row needs one of each, but there are {shown}")
    refuse = partial(_refuse, name, lines)
    for field, values in known.items():
        if field == "labels":
            continue
        other = [row for row, value in enumerate(values) if value is not None and not isinstance(value, str)]
        refuse(f"{field} are text, but not", other, shown=values)
        advice = ": leave such rows out" if field == "texts" else f": give {field} for all rows or for none"
        blank = [row for row, value in enumerate(values) if value is None or not value.strip()]
        refuse(f"{field} are empty or missing", blank, advice=advice)
    _check_labels(known["labels"], name, refuse)
    if spans := known.get("spans"):
        absent = [row for row, text in enumerate(known["texts"]) if spans[row] not in text]
        refuse("spans are not in their texts", absent, shown=tuple(zip(spans, known["texts"], strict=True)))
    for pair, rows in _where(known.get("pairs", ())).items():
        refuse(f"a pair is of two rows, but {pair!r} stands", rows if len(rows) > 2 else ())
        same = len(rows) == 2 and len({known["labels"][row] for row in rows}) == 1
        refuse(f"partners differ in their labels, but not those of pair {pair!r}", rows if same else ())
        apart = "groups" in known and len({known["groups"][row] for row in rows}) > 1
        refuse(f"partners are in one group, but not those of pair {pair!r}", rows if apart else ())


def _check_labels(labels: tuple[Any, ...], name: str, refuse: Callable[..., None]) -> None:
    missing = [row for row, label in enumerate(labels) if _missing(label) or label == ""]
    refuse("labels are empty, None or NaN", missing, advice=": leave such rows out")
    kinds = (str, bool, int, float, tuple)
    unknown = [row for row, label in enumerate(labels) if type(label) not in kinds]
    refuse("labels are text, whole numbers, true or false, floats or lists of names, but not", unknown, shown=labels)
    firsts = {kind: row for row, kind in reversed(list(enumerate(map(type, labels))))}
    if len(firsts) > 1:
        shown = ", ".join(f"{kind.__name__} ({labels[row]!r} in row {row})" for kind, row in firsts.items())
        raise ProbeError(f"{name}: labels are of one type, but these are of {len(firsts)}: {shown}")
    if float in firsts:
        refuse("labels are infinite", [row for row, label in enumerate(labels) if math.isinf(label)])
    if tuple in firsts:
        names = [{name for name in label if isinstance(name, str) and name} for label in labels]
        wrong = [row for row, label in enumerate(labels) if len(names[row]) < len(label)]
        refuse("several labels of a row are different names, but not", wrong, shown=labels)


def _refuse(
    name: str, lines: Sequence[int] | None, what: str, rows: Sequence[int], *, shown: Any = None, advice: str = ""
) -> None:
    """Refuses rows, if there are any; of the first it is shown what is there."""
    if not rows:
        return
    places = [f"{row} (line {lines[row]})" if lines else f"{row}" for row in rows[:_SHOWN]]
    more = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
    example = f": {shown[rows[0]]!r}" if shown else ""
    where = "row" if len(rows) == 1 else "rows"
    raise ProbeError(f"{name}: {what} in {where} {', '.join(places)}{more}{example}{advice}")


def _where(ids: Sequence[str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for row, item in enumerate(ids):
        found.setdefault(item, []).append(row)
    return found


def _chosen(rows: Iterable[Any], length: int) -> list[int]:
    asked = rows.tolist() if isinstance(rows, np.ndarray | Tensor) else list(rows)
    if asked and all(isinstance(row, bool | np.bool_) for row in asked):
        if len(asked) != length:
            raise ProbeError(f"a mask has a value for each of {length} rows, but this one has {len(asked)}")
        asked = [row for row, chosen in enumerate(asked) if chosen]
    try:
        numbers = [operator.index(row) for row in asked]
    except TypeError as error:
        raise ProbeError(f"rows are chosen by whole numbers or by a mask: {error}") from error
    if outside := [row for row in numbers if not 0 <= row < length]:
        raise ProbeError(f"there is no row {outside[0]}: the {length} rows are counted from 0 to {length - 1}")
    if twice := [row for row, number in Counter(numbers).items() if number > 1]:
        raise ProbeError(f"row {twice[0]} is chosen more than once: choose each row once")
    return numbers


def _tidy(given: Mapping[str, Iterable[Any]]) -> _Columns:
    """Columns of plain values; what is wrong with these is for the check to say."""
    labels = [_plain(label) for label in given["label"]]
    if {type(label) for label in labels} == {int, float}:
        labels = [float(label) for label in labels]
    columns: _Columns = dict.fromkeys(_FIELDS.values())
    for column in ("group", "span", "pair"):
        if column in given:
            values = (None if _missing(item) else str(item) for item in given[column])
            columns[_FIELDS[column]] = tuple(item.strip() if item and column != "span" else item for item in values)
    return columns | {"texts": tuple(given["text"]), "labels": tuple(labels)}


def _plain(label: Any) -> Any:
    label = label.tolist() if isinstance(label, np.generic | np.ndarray) else label
    label = sorted(label) if isinstance(label, set | frozenset) else label
    return tuple(label) if isinstance(label, list) else label


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value)) or type(value).__name__ == "NAType"


def _content(path: Path) -> str:
    raw = b""
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if path.suffix.lower() == ".gz" else raw
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ProbeError(f"{path} is not UTF-8: {error.reason} on line {line}; save it as UTF-8") from error
    except (OSError, EOFError, zlib.error) as error:
        raise ProbeError(f"{path} cannot be read: {error}") from error


def _of_csv(path: Path, content: str, kind: str) -> tuple[list[str], list[int], list[dict[str, Any]]]:
    """The header; for each row the line on which it begins, and its cells."""
    usual = csv.field_size_limit(max(len(content), 1))  # a text may be longer than 128 KiB
    reader = csv.reader(io.StringIO(content, newline=""), delimiter="\t" if kind == ".tsv" else ",", strict=True)
    header: list[str] = []
    lines: list[int] = []
    records: list[dict[str, Any]] = []
    line = 1
    try:
        for cells in reader:
            if cells and not header:
                header = [cell.strip() for cell in cells]
            elif cells and len(cells) != len(header):
                raise ProbeError(
                    f"{path}: row {len(records)} (line {line}) has {_many(len(cells), 'cell')}, but the header has "
                    f"{len(header)}; quote texts that hold separators, quotes or line breaks"
                )
            elif cells:
                lines.append(line)
                records.append(dict(zip(header, cells, strict=True)))
            line = reader.line_num + 1
    except csv.Error as error:
        raise ProbeError(f"{path}: row {len(records)} (line {line}) cannot be read: {error}") from error
    finally:
        csv.field_size_limit(usual)
    return header, lines, records


def _typed(cells: list[str]) -> list[Any]:
    """Labels of a text file: whole numbers or floats if all of them are, else text."""
    if all(_INTEGER.fullmatch(cell) for cell in cells):
        return [int(cell) for cell in cells]
    if all(_INTEGER.fullmatch(cell) or _FLOAT.fullmatch(cell) for cell in cells):
        return [float(cell) for cell in cells]
    return cells


def _of_json_lines(path: Path, content: str) -> tuple[list[str], list[int], list[dict[str, Any]]]:
    """All fields; for each row its line, and its record."""
    lines: list[int] = []
    records: list[dict[str, Any]] = []
    for line, written in enumerate(content.split("\n"), start=1):
        if not written.strip():
            continue
        place = f"{path}: row {len(records)} (line {line})"
        try:
            record = json.loads(written)
        except (ValueError, RecursionError) as error:
            raise ProbeError(f"{place} is not one line of JSON: {error}") from error
        if not isinstance(record, dict):
            raise ProbeError(f"{place} is no object with fields, such as {{...}}, but {written.strip()[:60]}")
        lines.append(line)
        records.append(record)
    return list(dict.fromkeys(field for record in records for field in record)), lines, records


def _found(path: Path, header: Sequence[str], names: Mapping[str, str | None]) -> dict[str, str]:
    """The columns that are there, of those that are asked for or usual."""
    asked = {column: name for column, name in names.items() if name is not None}
    for column, name in asked.items():
        if header.count(name) > 1:
            raise ProbeError(f"{path}: {header.count(name)} columns are named {name!r}: rename all but one")
        if name in header or (name == column and column not in ("text", "label")):
            continue
        near = get_close_matches(name.lower(), [field.lower() for field in header])
        meant = " or ".join(repr(field) for field in header if field.lower() in near)
        shown = (", ".join(map(repr, header)) or "none") + (f"; did you mean {meant}?" if meant else "")
        raise ProbeError(f"{path}: there is no column {name!r}: the columns are {shown}")
    return {column: name for column, name in asked.items() if name in header}


def _many(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


__all__ = ["Label", "ProbeData", "read_data"]
