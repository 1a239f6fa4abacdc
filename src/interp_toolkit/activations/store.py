"""The activation store: activations of a corpus on disk, read as if they were in memory.

Files are mapped, not loaded: opening a store costs the same however large it is, and a slice that lies in one shard
is a view of the file. Other processes may write while one reads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from interp_toolkit.activations.access import Rows, SiteView
from interp_toolkit.activations.ledger import Commit, Ledger
from interp_toolkit.activations.shards import Shards
from interp_toolkit.errors import StoreError, UnavailableSiteError
from interp_toolkit.model.sites import Site
from interp_toolkit.provenance import Provenance

Verify = Literal["open", "first-read", "full"]


class ActivationStore:
    """Activations of a corpus, on disk.

    Rows are tokens, in the order of the corpus; row numbers never change. A store that is still being written has all
    its rows from the beginning, and reading one that is not there yet raises an error; `refresh()` looks for what
    others have written since.

    Args:
        path: the folder.
        verify: `"open"`: `store.json`, the plans and the numbers of all records are checked now; the record of a
            shard when it is first used, and then its files for their size and head. `"first-read"`: the content of a
            file too is checked when it is first used. `"full"`: everything now.

    Raises:
        StoreError: when there is no store.
        CorruptStoreError: when it is not what was written.

    Example:
        >>> import tempfile
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> from interp_toolkit.activations import extract
        >>> model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=11)).eval()
        >>> folder = tempfile.mkdtemp()
        >>> documents = [{"input_ids": [1, 2, 3], "label": "odd"}, {"input_ids": [4, 5], "label": "even"}]
        >>> _ = extract(model, documents, sites="resid_post", path=folder + "/store")
        >>> store = ActivationStore.open(folder + "/store")
        >>> store.rows, [str(site) for site in store.sites]
        (5, ['resid_post.0', 'resid_post.1'])
        >>> store["resid_post.1"][store.where(label="even")].shape
        torch.Size([2, 8])
        >>> [x.shape for x in store.batches("resid_post.1", 4, shuffle=True, seed=0)]
        [torch.Size([4, 8]), torch.Size([1, 8])]
    """

    def __init__(self, path: str | Path, *, verify: Verify = "open") -> None:
        if verify not in ("open", "first-read", "full"):
            raise StoreError(f"a store is verified 'open', 'first-read' or 'full', not {verify!r}")
        self._verify: Verify = verify
        self._ledger = Ledger(path)
        self._ledger.check_numbers()
        self._shards = Shards(self._ledger, check_content=verify != "open")
        self._columns: dict[str, list[Any]] = {}
        if verify == "full":
            self.verify("full")

    @classmethod
    def open(cls, path: str | Path, *, verify: Verify = "open") -> ActivationStore:
        """Open a store; see the class."""
        return cls(path, verify=verify)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens it itself."""
        return (_reopened, (str(self.path.absolute()), "open" if self._verify == "full" else self._verify))

    # --- what is there ---------------------------------------------------------------------------------------

    @property
    def path(self) -> Path:
        """The folder."""
        return self._ledger.path

    @property
    def sites(self) -> list[Site]:
        """What is stored, in the order of the forward pass."""
        return [stored.site for stored in self._ledger.configuration.sites]

    @property
    def rows(self) -> int:
        """How many rows it has when it is complete."""
        return self._ledger.num_rows

    def __len__(self) -> int:
        """How many rows it has when it is complete."""
        return self.rows

    @property
    def dtype(self) -> torch.dtype:
        """The type of stored activations."""
        return self[self.sites[0]].dtype

    @property
    def provenance(self) -> Provenance:
        """What made it."""
        return self._ledger.configuration.provenance

    @property
    def num_documents(self) -> int:
        """How many documents it has when it is complete."""
        return self._ledger.next_numbers[3]

    @property
    def complete(self) -> bool:
        """Whether every row is there."""
        return self._shards.complete

    @property
    def digest(self) -> str | None:
        """The sha256 over all content, equal for stores that hold the same; None while something is missing."""
        return self._ledger.sealed_digest()

    @property
    def nbytes(self) -> int:
        """Bytes of activations when it is complete."""
        return self.rows * self._ledger.configuration.row_bytes

    def refresh(self) -> ActivationStore:
        """Look for what others have written since it was opened."""
        self._ledger.refresh()
        self._shards.refresh()
        return self

    def available(self) -> Int[Tensor, " row"]:
        """The rows that are there."""
        ranges = [torch.arange(rows.start, rows.stop) for rows in self._shards.available()]
        return torch.cat(ranges) if ranges else torch.empty(0, dtype=torch.long)

    def __repr__(self) -> str:
        """Model, rows, sites and size in a line."""
        there = "" if self.complete else f", {len(self.available()):,} of them there"
        kinds = list(dict.fromkeys(site.component for site in self.sites))
        return (
            f"ActivationStore({str(self.path)!r}, {Path(self.provenance.model).name}, {self.rows:,} rows{there}, "
            f"{len(self.sites)} sites ({', '.join(kinds)}), {self.nbytes / 1e6:,.1f} MB)"
        )

    # --- reading ---------------------------------------------------------------------------------------------

    def __getitem__(self, site: Site | str) -> SiteView:
        """A site: a view with the shape `[row, ...]`, read by number, slice, numbers or mask.

        Args:
            site: in any spelling of `Site.parse`; a head or neuron of a site that is stored whole will do.

        Raises:
            UnknownSiteError: for a name that means nothing.
            UnavailableSiteError: for a site that is not stored.
        """
        if not isinstance(site, str | Site):
            raise StoreError(
                f"a store is asked for a site first, as in store[{str(self.sites[0])!r}][rows], not {site!r}"
            )
        asked = Site.parse(site).at_depth(self._ledger.configuration.num_layers)
        for n, stored in enumerate(self._ledger.configuration.sites):
            if stored.site == asked:
                return SiteView(self._shards, n + 1, "x", asked)
            if stored.site == asked.whole and asked.index is not None:
                dim = (asked.kind.index_dim or 0) - 1
                if asked.index >= stored.shape[dim - 1]:
                    raise UnavailableSiteError(f"{asked} asks for number {asked.index} of {stored.shape[dim - 1]}")
                return SiteView(self._shards, n + 1, "x", asked, select=(dim, asked.index))
        held = ", ".join(map(str, self.sites[:12])) + (", ..." if len(self.sites) > 12 else "")
        raise UnavailableSiteError(f"{asked} is not in the store at {self.path}, which holds {held}")

    def __contains__(self, site: object) -> bool:
        """Whether a site is stored."""
        if not isinstance(site, Site | str):
            return False
        try:
            self[site]
        except ValueError:
            return False
        return True

    def __iter__(self) -> Iterator[Site]:
        """The sites."""
        return iter(self.sites)

    @property
    def tokens(self) -> SiteView:
        """The token of each row, `int32[row]`."""
        return self._token_array("input_ids")

    @property
    def positions(self) -> SiteView:
        """The position of each row in its sequence."""
        return self._token_array("position")

    @property
    def sequences(self) -> SiteView:
        """The number of the sequence of each row."""
        return self._token_array("sequence")

    def _token_array(self, name: str) -> SiteView:
        return SiteView(self._shards, 0, name, None)

    # --- documents -------------------------------------------------------------------------------------------

    def documents(self, rows: Rows) -> Int[Tensor, "*row"]:
        """The number of the document of each of some rows."""
        return self._token_array("document")[rows]

    def rows_of(self, document: int) -> range:
        """The rows of a document.

        Raises:
            StoreError: when there is no such document.
        """
        for plan in self._ledger.plans:
            if document in plan.documents:
                n = document - plan.documents.start
                first, last = (int(plan.kept_before[k]) + plan.rows.start for k in (n, n + 1))
                return range(first, last)
        raise StoreError(f"there is no document {document}: there are {self.num_documents}, from 0")

    @property
    def columns(self) -> tuple[str, ...]:
        """What is known of documents, such as `label`."""
        return tuple(dict.fromkeys(name for plan in self._ledger.plans for name in plan.facts.columns))

    def column(self, name: str) -> list[Any]:
        """What is known of each document under a name; None for documents that were added without it.

        Raises:
            StoreError: when no document has it.
        """
        return list(self._column(name))

    def _column(self, name: str) -> list[Any]:
        """The same, kept in memory: labels are asked for batch by batch."""
        if name not in self.columns:
            raise StoreError(f"documents have no {name!r}, but {', '.join(self.columns) or 'nothing'}")
        found = self._columns.setdefault(name, [])
        for plan in self._ledger.plans:
            if len(found) == plan.documents.start:
                found += plan.column(name) if name in plan.facts.columns else [None] * plan.num_documents
        return found

    def labels(self, rows: Rows, name: str = "label") -> list[Any]:
        """What is known under a name of the documents of some rows."""
        column = self._column(name)
        return [column[document] for document in self.documents(rows).reshape(-1).tolist()]

    def where(self, **conditions: Any) -> Int[Tensor, " row"]:
        """The rows for which all conditions hold, ascending.

        Args:
            conditions: `token=`, `position=`, `sequence=` or `document=`, or a column such as `label=`; each a value,
                or several of them in a list, set, range or tensor.

        Raises:
            StoreError: for a column that documents do not have, or rows that are not there yet.
        """
        if not conditions:
            raise StoreError(f"where takes conditions, such as token=5 or {(self.columns or ('document',))[0]}=...")
        kept: NDArray[np.bool_] | None = None
        for name, value in conditions.items():
            values = _values(value)
            found = self._matches(name, values)
            kept = found if kept is None else kept & found
        return torch.from_numpy(np.flatnonzero(kept if kept is not None else []))

    def _matches(self, name: str, values: list[Any]) -> NDArray[np.bool_]:
        arrays = {"token": "input_ids", "position": "position", "sequence": "sequence", "document": "document"}
        if name in arrays:
            if any(isinstance(value, bool) or not isinstance(value, int | np.integer) for value in values):
                raise StoreError(
                    f"{name}= takes whole numbers, not {values!r:.80}: use a tokenizer to make ids of text"
                )
            whole = self._token_array(arrays[name])[:].numpy()
            return np.isin(whole, np.asarray(values, dtype=np.int64))
        column = self._column(name)
        right = np.asarray([any(_same(entry, value) for value in values) for entry in column], dtype=bool)
        counts = np.concatenate([np.diff(plan.kept_before) for plan in self._ledger.plans])
        return np.repeat(right, counts)

    # --- in batches ------------------------------------------------------------------------------------------

    def batches(
        self,
        site: Site | str | Sequence[Site | str],
        size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        rows: Rows | None = None,
        drop_last: bool = False,
        buffer: int = 1 << 16,
        with_rows: bool = False,
    ) -> Iterator[Any]:
        """Activations in batches, each row once.

        Args:
            site: one, or several that are read together.
            size: rows in a batch; the last one may be smaller.
            shuffle: mix the rows: pieces of 8,192 rows come in random order, and rows are drawn at random from a
                buffer of `buffer` rows, so that files are read in long pieces.
            seed: decides the order.
            rows: only these, such as those of `where`.
            drop_last: leave out a smaller last batch.
            buffer: how many rows are mixed in memory.
            with_rows: give the numbers of the rows too.

        Returns:
            An iterator of tensors `[size, ...]`; for several sites of dictionaries of them; with `with_rows` of pairs
            of the rows and that.
        """
        from interp_toolkit.activations.loading import Batches, row_tensor

        made = Batches(self, site, size, shuffle=shuffle, seed=seed, rows=rows, drop_last=drop_last, buffer=buffer)
        return ((row_tensor(numbers), x) if with_rows else x for numbers, x in made)

    def dataset(self, site: Site | str | Sequence[Site | str], *, rows: Rows | None = None) -> Any:
        """A torch `Dataset` of rows, for a `DataLoader` that picks them one by one or in batches."""
        from interp_toolkit.activations.loading import RowDataset

        return RowDataset(self, site, rows=rows)

    def iterable(self, site: Site | str | Sequence[Site | str], size: int, **options: Any) -> Any:
        """A torch `IterableDataset` of whole batches, shared out among the workers of a `DataLoader`.

        Use it with `DataLoader(..., batch_size=None)`; see `batches` for the options. `set_epoch` gives another order.
        """
        from interp_toolkit.activations.loading import BatchDataset

        return BatchDataset(self, site, size, **options)

    # --- keeping it whole ------------------------------------------------------------------------------------

    def verify(self, how: Literal["open", "full"] = "full", *, progress: bool = False) -> ActivationStore:
        """Check the store.

        Args:
            how: `"open"`: records, and size and head of every file; `"full"`: the content of every file, too.
            progress: show it.

        Raises:
            CorruptStoreError: at the first thing that is not what was written; the message names it.
        """
        from interp_toolkit.activations.verification import check

        check(self._ledger, content=how == "full", progress=progress)
        return self

    def append(self, model: Any, dataset: Any, **options: Any) -> ActivationStore:
        """Add documents: extract them with the model that made the store; see `extract` for the options."""
        from interp_toolkit.activations.extraction import extract

        conf = self._ledger.configuration
        given: dict[str, Any] = {
            "sites": [stored.site for stored in conf.sites],
            "context_length": conf.context_length,
            "positions": conf.positions,
            "dtype": conf.dtype,
        }
        return extract(model, dataset, path=self.path, append=True, **(given | options))

    @staticmethod
    def merge(stores: Sequence[ActivationStore | str | Path], path: str | Path) -> ActivationStore:
        """Make one store of several that hold the same sites of the same model; the documents follow each other."""
        from interp_toolkit.activations.merging import merge

        merge([store._ledger if isinstance(store, ActivationStore) else Ledger(store) for store in stores], Path(path))
        return ActivationStore(path)

    def export(
        self,
        path: str | Path,
        kind: Literal["parquet", "npz"] | None = None,
        *,
        sites: Sequence[Site | str] | None = None,
        rows: Rows | None = None,
    ) -> Path:
        """Write rows to a file that other tools read.

        Args:
            path: the file.
            kind: `"parquet"` (one line for each row; needs pyarrow) or `"npz"`; by default as the name ends.
            sites: which sites; all by default.
            rows: which rows; all by default.
        """
        from interp_toolkit.activations.exporting import export

        return export(self, Path(path), kind, sites=sites, rows=rows)

    def info(self) -> dict[str, Any]:
        """What there is to know of the store, as JSON has it."""
        conf = self._ledger.configuration
        commits: list[Commit] = [self._ledger.commit(shard) for shard in self._ledger.committed()]
        environments = {json.dumps(commit.environment, sort_keys=True) for commit in commits}
        return {
            "model": conf.provenance.model,
            "sites": {str(stored.site): list(stored.shape) for stored in conf.sites},
            "dtype": conf.dtype,
            "rows": self.rows,
            "documents": self.num_documents,
            "columns": list(self.columns),
            "shards": self._ledger.num_shards,
            "committed": len(commits),
            "complete": self.complete,
            "bytes": self.nbytes,
            "digest": self.digest,
            "fingerprint": self._ledger.fingerprint,
            "configuration": conf.to_json(),
            "environments": [json.loads(text) for text in sorted(environments)],
        }


def _reopened(path: str, verify: Verify) -> ActivationStore:
    return ActivationStore(path, verify=verify)


def _values(value: Any) -> list[Any]:
    if isinstance(value, Tensor | np.ndarray):
        return list(value.reshape(-1).tolist())
    return list(value) if isinstance(value, list | tuple | set | frozenset | range) else [value]


def _same(entry: Any, value: Any) -> bool:
    """True is not 1: a column of truth values and one of numbers are different things."""
    return bool(entry == value) and isinstance(entry, bool) == isinstance(value, bool)


__all__ = ["ActivationStore"]
