"""Rows of a store in files that other tools read."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import Tensor

from interp_toolkit.activations.access import Rows
from interp_toolkit.errors import StoreError
from interp_toolkit.model.sites import Site

if TYPE_CHECKING:
    from interp_toolkit.activations.store import ActivationStore

_AT_ONCE = 1 << 13


def export(
    store: ActivationStore,
    path: Path,
    kind: Literal["parquet", "npz"] | None,
    *,
    sites: Sequence[Site | str] | None,
    rows: Rows | None,
) -> Path:
    """Write rows to a file; see `ActivationStore.export`.

    Parquet has a column for each site (a list of numbers; bfloat16 becomes float32), token, position, sequence and
    document, and one for each column of the documents. Npz has an array for each.
    """
    named = kind or path.suffix.removeprefix(".")
    if named not in ("parquet", "npz"):
        raise StoreError(f"rows are exported as 'parquet' or 'npz', not as {named!r}")
    if path.exists():
        raise StoreError(f"{path} is there already, and stays as it is: choose another name")
    chosen = [str(store[site].site) for site in (store.sites if sites is None else sites)]
    numbers = store.tokens.numbers(slice(None) if rows is None else rows)
    draft = path.with_name(f".{path.name}.draft")
    try:
        if named == "npz":
            _npz(store, draft, chosen, numbers)
        else:
            _parquet(store, draft, chosen, numbers)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path


class _Known:
    """What is known of rows beside their activations."""

    def __init__(self, store: ActivationStore, sites: Sequence[str]) -> None:
        taken = sorted({"token", "position", "sequence", "document", *sites} & set(store.columns))
        if taken:
            raise StoreError(f"documents have columns that are called as something else is, {', '.join(taken)}")
        self.store = store
        self.columns = {name: _uniform(store.column(name)) for name in store.columns}

    def of(self, rows: Any) -> dict[str, Any]:
        store = self.store
        documents = store.documents(rows).numpy()
        found: dict[str, Any] = {
            "token": store.tokens[rows].numpy(),
            "position": store.positions[rows].numpy(),
            "sequence": store.sequences[rows].numpy(),
            "document": documents,
        }
        return found | {name: [column[d] for d in documents.tolist()] for name, column in self.columns.items()}


def _uniform(values: list[Any]) -> list[Any]:
    """Values of one kind: as they are, or as text where kinds are mixed."""
    kinds = {type(value) for value in values if value is not None}
    if len(kinds) <= 1:
        return values
    if kinds == {int, float}:
        return [None if value is None else float(value) for value in values]
    return [None if value is None else str(value) for value in values]


def _npz(store: ActivationStore, path: Path, sites: Sequence[str], rows: Any) -> None:
    known = {name: np.asarray(values) for name, values in _Known(store, sites).of(rows).items()}
    objects = [name for name, values in known.items() if values.dtype == object]
    known |= {name: np.asarray([str(value) for value in known[name]]) for name in objects}  # nothing is pickled
    with zipfile.ZipFile(path, "w") as file:  # numpy's savez has no room for an array that is called "file"
        for name in (*sites, *known):
            array = known[name] if name in known else _floats(store[name][rows]).numpy()
            with file.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)


def _floats(x: Tensor) -> Tensor:
    """In a type that every tool reads."""
    return x.float() if x.element_size() == 2 else x


def _parquet(store: ActivationStore, path: Path, sites: Sequence[str], rows: Any) -> None:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError('Parquet files need pyarrow: pip install "interpretability-toolkit[store]"') from error

    known = _Known(store, sites)
    types = {name: pa.array(values).type for name, values in known.columns.items()}

    def tables() -> Iterator[Any]:
        for begin in range(0, max(1, len(rows)), _AT_ONCE):
            part = rows[begin : begin + _AT_ONCE]
            arrays = {}
            for site in sites:
                x = _floats(store[site][part])
                flat = (x.flatten(1) if x.ndim > 1 else x[:, None]).numpy()
                arrays[site] = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), flat.shape[1])
            yield pa.table(
                arrays | {name: pa.array(values, types.get(name)) for name, values in known.of(part).items()}
            )

    writer = None
    try:
        for table in tables():
            if writer is None:
                writer = parquet.ParquetWriter(path, table.schema)
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()


__all__ = ["export"]
