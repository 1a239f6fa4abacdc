"""Reading a store against plain tensors and independent readers of its files."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import pickle
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor
from torch.utils.data import DataLoader

from interp_toolkit.activations import ActivationStore, Corpus, extract, prepare_extraction
from interp_toolkit.activations.ledger import Ledger
from interp_toolkit.errors import CorruptStoreError, SiteError, StoreError, UnavailableSiteError, UnknownSiteError
from tiny import model_of, tokens

SITES = ["resid_post.0", "z.1", "mlp_post.2", "L0H3", "mlp_post.1.5"]
OPTIONS: dict[str, Any] = {"context_length": 32, "batch_tokens": 200, "shard_tokens": 100, "progress": False}
LABELS = ["odd", "even", None, 3, True, 1]


def records(count: int, first: int = 0) -> list[dict[str, Any]]:
    found = []
    for n in range(first, first + count):
        ids = tokens(1, 1 + n * 7 % 23, seed=n)[0].tolist()
        found.append({"input_ids": ids, "label": LABELS[n % len(LABELS)], "id": f"doc {n}"})
    return found


RECORDS = records(60)


def made(path: Path, dataset: Any = RECORDS, sites: Any = tuple(SITES), **options: Any) -> ActivationStore:
    return extract(model_of("llama"), dataset, sites=list(sites), path=path, **(OPTIONS | options))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    """A store of several shards."""
    return made(tmp_path_factory.mktemp("store") / "store")


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return made(tmp_path_factory.mktemp("half") / "store", dtype="bfloat16")


class Raw:
    """What a store holds, read with json and the library of safetensors alone."""

    def __init__(self, path: Path) -> None:
        self.path = path
        commits = [json.loads(p.read_text(encoding="utf-8"))["record"] for p in sorted((path / "commits").iterdir())]
        self.edges = [*(c["rows"][0] for c in commits), commits[-1]["rows"][1]]
        self.files = [[path / file["name"] for file in commit["files"]] for commit in commits]

    def array(self, which: int, name: str = "x") -> Tensor:
        parts = []
        for files in self.files:
            with safe_open(str(files[which]), framework="pt") as file:
                parts.append(file.get_tensor(name))
        return torch.cat(parts)

    def site(self, store: ActivationStore, site: str) -> Tensor:
        return self.array([str(s) for s in store.sites].index(str(site)) + 1)


@cache
def raw_of(path: Path) -> Raw:
    return Raw(path)


@cache
def plain(path: Path, site: str) -> Tensor:
    return raw_of(path).site(ActivationStore(path), site)


NAMES = ["resid_post.0", "z.1", "mlp_post.2", "z.0.3", "mlp_post.1.5"]


# --- the same as plain tensors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_files_are_those_that_safetensors_reads_and_hold_what_the_store_shows(
    name: str, store: ActivationStore
) -> None:
    x = plain(store.path, name)
    assert len(raw_of(store.path).files) > 5
    assert store[name].shape == tuple(x.shape)
    assert store[name].ndim == x.ndim
    assert store[name].dtype == x.dtype == torch.float32
    assert len(store[name]) == len(store) == store.rows == len(x) == sum(len(r["input_ids"]) for r in RECORDS)
    assert torch.equal(store[name][:], x)
    tokens_of = raw_of(store.path).array(0, "input_ids")
    assert torch.equal(store.tokens[:], tokens_of)
    assert tokens_of.tolist() == list(itertools.chain(*(r["input_ids"] for r in RECORDS)))


@pytest.mark.parametrize("name", ["resid_post.0", "z.1"])
def test_bfloat16_is_read_bit_by_bit(name: str, half: ActivationStore, store: ActivationStore) -> None:
    x = plain(half.path, name)
    assert half.dtype == x.dtype == torch.bfloat16
    assert torch.equal(x, store[name][:].bfloat16())
    rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    for asked in (slice(None), slice(5, 300), rows, [3, 3, 250], slice(None, None, 7)):
        found = half[name][asked]
        assert found.dtype == torch.bfloat16
        assert torch.equal(found, x[asked])


ROWS = sum(len(r["input_ids"]) for r in RECORDS)
EDGE = st.none() | st.integers(-ROWS - 5, ROWS + 5)
NUMBER = st.integers(-ROWS, ROWS - 1)


@settings(max_examples=120, deadline=None)
@given(
    name=st.sampled_from([*NAMES, "z.1.2", "mlp_post.2.7"]),
    asked=st.one_of(
        st.builds(slice, EDGE, EDGE, st.none() | st.sampled_from([1, 2, 3, 50, -1, -2, -77])),
        st.lists(NUMBER, max_size=40),
        st.builds(range, st.integers(0, ROWS), st.integers(0, ROWS), st.sampled_from([1, 2, 7])),
        NUMBER,
        st.integers(0, 2**32 - 1).map(lambda seed: np.random.default_rng(seed).random(ROWS) < 0.2),
        st.lists(NUMBER, max_size=9).map(lambda rows: np.asarray(rows, dtype=np.int32)),
        st.lists(st.integers(-ROWS, ROWS - 1), min_size=1, max_size=400).map(torch.tensor),
    ),
)
def test_rows_are_picked_as_from_a_plain_tensor(store: ActivationStore, name: str, asked: Any) -> None:
    whole, index = {"z.1.2": ("z.1", 2), "mlp_post.2.7": ("mlp_post.2", 7)}.get(name, (name, None))
    x = plain(store.path, whole) if index is None else plain(store.path, whole)[:, index]
    rows = np.asarray(asked, dtype=np.int64) if isinstance(asked, list | range | Tensor) else asked
    found = store[name][asked]
    assert found.dtype == x.dtype
    assert torch.equal(found, torch.from_numpy(np.array(x.numpy()[rows])))
    assert store[name].shape == tuple(x.shape)


@pytest.mark.parametrize("name", ["resid_post.0", "mlp_post.1.5", "z.1.3"])
def test_nothing_asked_is_nothing_found(name: str, store: ActivationStore) -> None:
    view = store[name]
    for asked in (slice(5, 5), slice(9, 3), [], np.zeros(store.rows, dtype=bool), torch.empty(0, dtype=torch.long)):
        assert view[asked].shape == (0, *view.shape[1:])
        assert view[asked].dtype == torch.float32


def test_a_number_may_be_a_tensor_or_of_numpy(store: ActivationStore, unchecked: None) -> None:
    x = plain(store.path, "resid_post.0")
    for number in (7, np.int64(7), torch.tensor(7), np.asarray(7), -ROWS + 7):
        assert torch.equal(store["resid_post.0"][number], x[7])
    mask = [False] * ROWS
    mask[3] = mask[200] = True
    assert torch.equal(store["resid_post.0"][mask], x[[3, 200]])
    assert torch.equal(store["resid_post.0"][torch.tensor(mask)], x[[3, 200]])


def test_a_view_is_gone_through_and_given_to_numpy(store: ActivationStore, half: ActivationStore) -> None:
    x = plain(store.path, "z.1")
    assert torch.equal(torch.stack(list(store["z.1"])), x)
    assert np.array_equal(np.asarray(store["z.1"]), x.numpy())
    assert np.asarray(store["z.1"], dtype=np.float64).dtype == np.float64
    assert np.array_equal(np.asarray(half["z.1"]), plain(half.path, "z.1").float().numpy())


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (ROWS, f"row {ROWS} was asked for, but there are {ROWS}, from 0"),
        ([0, -ROWS - 1], f"row -{ROWS + 1} was asked for"),
        ([1.0, 2.0], "by whole numbers, not by float64"),
        (torch.tensor([0.5]), "by whole numbers, not by float32"),
        ([[1, 2]], "not with 2 axes"),
        ([True, False], f"the mask has 2 entries, but there are {ROWS} rows"),
        ((5, 3), r"read by row only: .*not \(5, 3\)"),
        ((slice(0, 3), 2), "read by row only"),
    ],
)
def test_rows_that_are_not_there_are_refused(asked: Any, message: str, store: ActivationStore, unchecked: None) -> None:
    with pytest.raises(StoreError, match=message.replace(",", ",?")):
        store["resid_post.0"][asked]


def test_heads_and_neurons_are_read_from_the_whole_site(store: ActivationStore) -> None:
    assert torch.equal(store["L1H2"][:], plain(store.path, "z.1")[:, 2])
    assert torch.equal(store["z.1.0"][[5, 400, 7]], plain(store.path, "z.1")[[5, 400, 7], 0])
    assert torch.equal(store["neuron.2.47"][:], plain(store.path, "mlp_post.2")[:, 47])
    assert torch.equal(store["blocks.0.hook_resid_post"][3:9], plain(store.path, "resid_post.0")[3:9])
    assert torch.equal(store["resid_post.-3"][3:9], plain(store.path, "resid_post.0")[3:9])
    assert "L1H3" in store
    assert "L1H4" not in store
    assert "L0H2" not in store
    assert "nonsense" not in store
    assert 5 not in store


def test_a_store_without_rows_holds_its_sites_all_the_same(tmp_path: Path, store: ActivationStore) -> None:
    Ledger.create(tmp_path / "store", Ledger(store.path).configuration)
    empty = ActivationStore(tmp_path / "store")
    assert len(empty) == 0
    assert "resid_post.0" in empty
    assert "resid_post.1" not in empty


@pytest.mark.parametrize(
    ("site", "kind", "message"),
    [
        (
            "resid_post.1",
            UnavailableSiteError,
            "resid_post.1 is not in the store at .*, which holds z.0.3, resid_post.0, ",
        ),
        ("L1H4", UnavailableSiteError, "asks for number 4 of 4"),
        ("mlp_post.2.48", UnavailableSiteError, "number 48 of 48"),
        ("L0H2", UnavailableSiteError, "is not in the store"),
        ("resid_pst.0", UnknownSiteError, "did you mean"),
        ("resid_post.3", SiteError, "the model has 3 layers"),
        (slice(0, 3), StoreError, r"asked for a site first, as in store\['"),
        (3, StoreError, "asked for a site first"),
    ],
)
def test_sites_that_are_not_stored_are_refused(
    site: Any, kind: type[Exception], message: str, store: ActivationStore, unchecked: None
) -> None:
    with pytest.raises(kind, match=message):
        store[site]


# --- without copies -----------------------------------------------------------------------------------------------


def test_a_slice_of_one_shard_is_the_file_itself_and_the_file_never_changes(store: ActivationStore) -> None:
    edges = raw_of(store.path).edges
    view = ActivationStore(store.path)["resid_post.0"]
    first, last = edges[1], edges[2]
    shard = view[first:last]
    part, same = view[first + 3 : last], view[first + 3 : last - 1]
    assert part.data_ptr() == same.data_ptr() == shard.data_ptr() + 3 * 32 * 4
    across = view[first - 1 : last]
    assert not shard.data_ptr() - 32 * 4 <= across.data_ptr() < shard.data_ptr() + shard.nbytes
    head = ActivationStore(store.path)["L1H2"][first:last]
    assert head.stride() == (4 * 8, 1)
    before = {p: p.read_bytes() for p in store.path.rglob("*.safetensors")}
    shard.fill_(7.0)
    head.zero_()
    assert {p: p.read_bytes() for p in store.path.rglob("*.safetensors")} == before
    fresh = ActivationStore(store.path, verify="full")
    assert torch.equal(fresh["resid_post.0"][:], plain(store.path, "resid_post.0"))


def test_what_one_reader_writes_no_other_one_sees(store: ActivationStore, half: ActivationStore) -> None:
    for kind in (store, half):
        x = plain(kind.path, "z.1")
        opened = ActivationStore(kind.path)
        for batch in opened.batches("z.1", 64):
            batch.sub_(1.0)
        mine = opened["L1H2"][2:9].mul_(3)
        with torch.inference_mode():
            opened["z.1"][5:7].add_(1)
        assert torch.equal(mine[:3], x[2:5, 2] * 3)
        assert torch.equal(opened["z.1"][2:9], x[2:9])
        assert torch.equal(opened["z.1"][[2, 6, 8]], x[[2, 6, 8]])
        assert torch.equal(torch.cat(list(opened.batches("z.1", 64))), x)


def test_what_is_picked_is_a_copy(store: ActivationStore) -> None:
    fresh = ActivationStore(store.path)
    for asked in ([1, 2, 3], 5, slice(0, 50, 2), slice(0, None)):
        fresh["resid_post.0"][asked].fill_(7.0)
    assert torch.equal(fresh["resid_post.0"][:], plain(store.path, "resid_post.0"))


# --- documents ----------------------------------------------------------------------------------------------------


def row_table() -> list[tuple[int, int, int]]:
    return [(n, p, t) for n, record in enumerate(RECORDS) for p, t in enumerate(record["input_ids"])]


def test_documents_positions_and_labels_stand_beside_the_rows(store: ActivationStore) -> None:
    table = row_table()
    assert store.num_documents == 60
    assert store.documents(slice(None)).tolist() == [n for n, _, _ in table]
    assert store.sequences[:].tolist() == [n for n, _, _ in table]
    assert store.positions[:].tolist() == [p for _, p, _ in table]
    assert store.documents([400, 3, 3]).tolist() == [table[r][0] for r in (400, 3, 3)]
    assert int(store.documents(7)) == table[7][0]
    assert store.labels([400, 3], "id") == [RECORDS[table[r][0]]["id"] for r in (400, 3)]
    assert store.labels(7) == [RECORDS[table[7][0]]["label"]]
    assert store.columns == ("id", "label")
    assert store.column("label") == [r["label"] for r in RECORDS]
    store.column("label").clear()
    assert len(store.column("label")) == 60
    for n in (0, 17, 59):
        assert list(store.rows_of(n)) == [r for r, row in enumerate(table) if row[0] == n]
        assert store.tokens[store.rows_of(n)].tolist() == RECORDS[n]["input_ids"]


def test_rows_are_found_by_what_is_known_of_them(store: ActivationStore) -> None:
    table = row_table()

    def rows(keep: Any) -> list[int]:
        return [r for r, row in enumerate(table) if keep(*row)]

    token = table[100][2]
    assert store.where(token=token).tolist() == rows(lambda n, p, t: t == token)
    assert store.where(position=[0, 2]).tolist() == rows(lambda n, p, t: p in (0, 2))
    assert store.where(document=range(5, 9)).tolist() == rows(lambda n, p, t: 5 <= n < 9)
    assert store.where(sequence=torch.tensor([3])).tolist() == rows(lambda n, p, t: n == 3)
    assert store.where(label="odd", position=0).tolist() == rows(
        lambda n, p, t: RECORDS[n]["label"] == "odd" and p == 0
    )
    assert store.where(label=1).tolist() == rows(
        lambda n, p, t: RECORDS[n]["label"] is not True and RECORDS[n]["label"] == 1
    )
    assert store.where(label=True).tolist() == rows(lambda n, p, t: RECORDS[n]["label"] is True)
    assert store.where(label=None).tolist() == rows(lambda n, p, t: RECORDS[n]["label"] is None)
    assert store.where(label={"odd", 3}).tolist() == rows(lambda n, p, t: RECORDS[n]["label"] in ("odd", 3))
    assert store.where(label="absent").tolist() == store.where(token=[]).tolist() == []
    found = store["resid_post.0"][store.where(id="doc 11")]
    assert torch.equal(found, plain(store.path, "resid_post.0")[rows(lambda n, p, t: n == 11)])


def test_questions_that_mean_nothing_are_refused(store: ActivationStore) -> None:
    with pytest.raises(StoreError, match="documents have no 'kind', but id, label"):
        store.where(kind=3)
    with pytest.raises(StoreError, match="documents have no 'kind'"):
        store.labels([1], "kind")
    with pytest.raises(StoreError, match="where takes conditions, such as token=5"):
        store.where()
    with pytest.raises(StoreError, match=r"token= takes whole numbers, not \[' Paris'\]"):
        store.where(token=" Paris")
    for number in (60, -1):
        with pytest.raises(StoreError, match=f"there is no document {number}: there are 60, from 0"):
            store.rows_of(number)


# --- batches ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    """Twenty thousand rows, whose order a rank correlation can tell."""
    ids = tokens(640, 32, seed=5)
    path = tmp_path_factory.mktemp("large") / "store"
    return made(path, ids, ["embed"], shard_tokens=2048, batch_tokens=4096)


def gone_through(batches: Any) -> tuple[list[int], list[int], Tensor]:
    """Rows, sizes of batches, and activations."""
    found = list(batches)
    rows = [int(row) for numbers, _ in found for row in numbers]
    return rows, [len(numbers) for numbers, _ in found], torch.cat([x for _, x in found])


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(("size", "buffer"), [(64, 1 << 16), (100, 150), (7, 1), (1000, 10), (5, 100)])
def test_every_row_comes_once_in_batches(size: int, buffer: int, shuffle: bool, store: ActivationStore) -> None:
    x = plain(store.path, "z.1")
    options = {"shuffle": shuffle, "buffer": buffer, "with_rows": True}
    rows, sizes, found = gone_through(store.batches("z.1", size, **options))
    assert sorted(rows) == list(range(ROWS))
    assert (rows == list(range(ROWS))) is not shuffle
    assert sizes == [size] * (ROWS // size) + ([ROWS % size] if ROWS % size else [])
    assert torch.equal(found, x[rows])
    rows, sizes, found = (
        gone_through(store.batches("z.1", size, drop_last=True, **options)) if size < ROWS else ([], [], x)
    )
    assert len(set(rows)) == len(rows) == ROWS // size * size
    assert set(sizes) <= {size}


def test_the_seed_decides_the_order(large: ActivationStore) -> None:
    def order(**options: Any) -> list[int]:
        return gone_through(large.batches("embed", 256, shuffle=True, with_rows=True, **options))[0]

    assert order(seed=3) == order(seed=3)
    assert order(seed=3) != order(seed=4)
    plain_order = [int(t) for x in large.batches("embed", 256, shuffle=True, seed=3) for t in x[:, 0].view(torch.int32)]
    assert plain_order == large["embed"][order(seed=3)][:, 0].view(torch.int32).tolist()


@pytest.mark.parametrize("buffer", [1 << 16, 9000, 2000])
def test_rows_are_really_mixed(buffer: int, large: ActivationStore) -> None:
    rows, _, _ = gone_through(large.batches("embed", 256, shuffle=True, seed=1, buffer=buffer, with_rows=True))
    assert len(rows) == 640 * 32
    steps = np.abs(np.diff(rows))
    assert (steps == 1).mean() < 0.01  # neighbours in the file are not neighbours in a batch
    batches = np.asarray(rows[: len(rows) // 256 * 256]).reshape(-1, 256)
    documents = [len(np.unique(batch // 32)) for batch in batches]
    assert np.median(documents) > 100  # of at most 256
    if buffer >= 640 * 32:
        ranks = np.corrcoef(rows, np.arange(len(rows)))[0, 1]
        assert abs(ranks) < 5 / len(rows) ** 0.5


def test_only_the_rows_that_are_asked_for_come(store: ActivationStore) -> None:
    x = plain(store.path, "resid_post.0")
    wanted = store.where(label="even")
    for rows in (wanted, wanted.tolist(), wanted.numpy(), torch.isin(torch.arange(ROWS), wanted)):
        found, _, values = gone_through(store.batches("resid_post.0", 16, rows=rows, with_rows=True))
        assert found == wanted.tolist()
        assert torch.equal(values, x[wanted])
    found, _, values = gone_through(store.batches("resid_post.0", 16, rows=wanted, shuffle=True, with_rows=True))
    assert sorted(found) == wanted.tolist()
    assert found != wanted.tolist()
    assert torch.equal(values, x[found])
    assert gone_through(store.batches("resid_post.0", 3, rows=[9, 9, -1], with_rows=True))[0] == [9, 9, ROWS - 1]
    assert list(store.batches("resid_post.0", 16, rows=[])) == []


def test_several_sites_come_together(store: ActivationStore) -> None:
    for numbers, found in store.batches(["resid_post.0", "L1H2"], 50, shuffle=True, with_rows=True):
        assert list(found) == ["resid_post.0", "z.1.2"]
        assert torch.equal(found["resid_post.0"], plain(store.path, "resid_post.0")[numbers])
        assert torch.equal(found["z.1.2"], plain(store.path, "z.1")[numbers, 2])


def test_batches_that_cannot_be_are_refused_at_once(store: ActivationStore) -> None:
    with pytest.raises(StoreError, match="at least one row"):
        store.batches("z.1", 0)
    with pytest.raises(UnavailableSiteError):
        store.batches("z.0", 5)
    with pytest.raises(StoreError, match="no site was named"):
        store.batches([], 5)
    with pytest.raises(StoreError, match="was asked for"):
        store.batches("z.1", 5, rows=[ROWS])


# --- torch --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("workers", "context"), [(0, None), (2, "fork"), (2, "spawn")])
def test_a_loader_gives_every_row_once_whatever_its_workers(
    workers: int, context: str | None, store: ActivationStore
) -> None:
    x = plain(store.path, "resid_post.0")
    options: dict[str, Any] = {"num_workers": workers, "multiprocessing_context": context}
    batches = store.iterable("resid_post.0", 32, shuffle=True, with_rows=True)
    loader = DataLoader(batches, batch_size=None, **options)
    assert len(loader) == -(-ROWS // 32)
    rows, _, found = gone_through(loader)
    assert sorted(rows) == list(range(ROWS))
    assert torch.equal(found, x[rows])
    if context == "spawn":  # whose processes take long to begin
        return
    batches.set_epoch(1)
    again = gone_through(loader)[0]
    assert sorted(again) == sorted(rows)
    assert again != rows
    wanted = store.where(position=0)
    picked = DataLoader(store.dataset("resid_post.0", rows=wanted), batch_size=7, shuffle=False, **options)
    assert torch.equal(torch.cat(list(picked)), x[wanted])


def test_rows_are_picked_one_by_one_or_together(store: ActivationStore) -> None:
    x = plain(store.path, "z.1")
    rows = store.dataset("z.1")
    assert len(rows) == ROWS
    assert torch.equal(rows[-1], x[-1])
    both = store.dataset(["z.1", "resid_post.0"], rows=[5, 9])
    assert torch.equal(both[1]["z.1"], x[9])
    assert len(both) == 2
    with pytest.raises(IndexError):
        both[2]
    seen = torch.cat(list(DataLoader(rows, batch_size=64, shuffle=True, generator=torch.Generator().manual_seed(0))))
    assert torch.equal(seen.flatten(1).sum(1).sort().values, torch.stack(list(rows)).flatten(1).sum(1).sort().values)


@pytest.mark.parametrize("shuffle", [False, True])
def test_ranks_share_the_batches_out(shuffle: bool, store: ActivationStore) -> None:
    shares = [
        store.iterable("z.1", 32, shuffle=shuffle, seed=2, rank=rank, world=3, with_rows=True) for rank in range(3)
    ]
    found = [gone_through(share)[0] for share in shares]
    assert sorted(itertools.chain(*found)) == list(range(ROWS))
    assert [len(share) for share in shares] == [len(list(share)) for share in shares]
    with pytest.raises(StoreError, match="rank 3 of 3 does not exist"):
        store.iterable("z.1", 32, rank=3, world=3)


def test_a_store_goes_to_another_process(store: ActivationStore, tmp_path: Path) -> None:
    copy = pickle.loads(pickle.dumps(store))
    assert copy.path == store.path
    assert len(pickle.dumps(store)) < 1000
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert torch.equal(torch.tensor(pool.apply(_sum_of, (store,))), store["z.1"][:].sum())


def _sum_of(store: ActivationStore) -> float:
    return float(store["z.1"][:].sum())


# --- while others write -------------------------------------------------------------------------------------------


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[ActivationStore, Any]:
    """A store of which rank 1 of 2 has written its shards, and what writes those of rank 0."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    path = tmp_path / "begun"
    made(path, engine="rank")

    def finish() -> None:
        monkeypatch.setenv("RANK", "0")
        made(path, engine="rank")

    return ActivationStore(path), finish


def test_a_store_is_read_while_it_is_written(begun: tuple[ActivationStore, Any], store: ActivationStore) -> None:
    reader, finish = begun
    x = plain(store.path, "resid_post.0")
    edges = raw_of(store.path).edges
    there = torch.cat([torch.arange(edges[n], edges[n + 1]) for n in range(1, len(edges) - 1, 2)])
    assert not reader.complete
    assert reader.digest is None
    assert reader.rows == ROWS
    assert torch.equal(reader.available(), there)
    assert torch.equal(reader["resid_post.0"][reader.available()], x[there])
    assert reader.column("label") == store.column("label")
    for asked in (0, slice(None), [edges[1], 0], slice(edges[1] - 1, edges[1] + 1)):
        with pytest.raises(StoreError, match=r"rows 0 to .* not written yet.*refresh\(\).*available\(\)"):
            reader["resid_post.0"][asked]
    with pytest.raises(StoreError, match="not written yet"):
        reader.where(position=0)
    rows, _, found = gone_through(reader.batches("resid_post.0", 32, shuffle=True, with_rows=True))
    assert sorted(rows) == there.tolist()
    assert torch.equal(found, x[rows])
    assert f"{len(there)} of them there" in repr(reader)
    assert reader.info()["complete"] is False
    reader.verify()
    with pytest.raises(StoreError, match="is not complete: finish its extraction first"):
        ActivationStore.merge([reader], reader.path.parent / "merged")
    with pytest.raises(StoreError, match="not written yet"):
        reader.export(reader.path.parent / "rows.npz")
    assert not (reader.path.parent / "rows.npz").exists()

    finish()
    with pytest.raises(StoreError, match="not written yet"):
        reader["resid_post.0"][0]
    assert reader.refresh().complete
    assert torch.equal(reader["resid_post.0"][:], x)
    assert reader.digest == store.digest


# --- more documents -----------------------------------------------------------------------------------------------


def test_documents_are_appended_behind_the_others(tmp_path: Path, store: ActivationStore) -> None:
    first, more = RECORDS[:40], RECORDS[40:]
    appended = made(tmp_path / "store", first)
    reader = ActivationStore(tmp_path / "store")
    digest = appended.digest
    appended = appended.append(model_of("llama"), more, progress=False)
    assert reader.rows < ROWS
    assert reader.refresh().rows == appended.rows == ROWS
    assert reader.labels(slice(None), "id") == store.labels(slice(None), "id")
    for name in NAMES:
        torch.testing.assert_close(appended[name][:], plain(store.path, name), atol=2e-5, rtol=0)
    assert appended.tokens[:].tolist() == store.tokens[:].tolist()
    assert appended.documents(slice(None)).tolist() == store.documents(slice(None)).tolist()
    assert appended.sequences[:].tolist() == store.sequences[:].tolist()
    assert list(appended.rows_of(59)) == list(store.rows_of(59))
    assert appended.where(label="odd").tolist() == store.where(label="odd").tolist()
    assert appended.num_documents == 60
    assert appended.digest not in (digest, None)
    appended.verify()
    again = made(tmp_path / "store", more, append=True)  # a resumed one finds that nothing is missing
    assert (again.rows, again.digest) == (ROWS, appended.digest)
    without = again.append(model_of("llama"), [[5, 6, 7]], progress=False)
    assert without.column("label") == [*(r["label"] for r in RECORDS), None]
    assert without.rows_of(60) == range(ROWS, ROWS + 3)


def test_an_append_that_was_interrupted_goes_on(tmp_path: Path) -> None:
    whole = made(tmp_path / "whole", RECORDS[:20])
    whole = whole.append(model_of("llama"), RECORDS[20:], progress=False)
    path = tmp_path / "store"
    made(path, RECORDS[:20])
    calls: list[int] = []

    def stop(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    prepared = prepare_extraction(
        model_of("llama"),
        RECORDS[20:],
        sites=SITES,
        path=path,
        append=True,
        **{k: v for k, v in OPTIONS.items() if k != "progress"},
    )
    handle = model_of("llama").model.layers[0].register_forward_pre_hook(stop)
    try:
        with pytest.raises(KeyboardInterrupt):
            prepared.run(progress=False)
    finally:
        handle.remove()
    part = ActivationStore(path)
    assert 0 < len(part.available()) < part.rows == ROWS
    assert part.digest is None
    assert part.append(model_of("llama"), RECORDS[20:], progress=False).digest == whole.digest


def test_other_documents_without_append_are_refused(tmp_path: Path) -> None:
    made(tmp_path / "store", RECORDS[:5])
    with pytest.raises(StoreError, match=r"store of other documents.*append=True"):
        made(tmp_path / "store", RECORDS[5:9])
    with pytest.raises(StoreError, match="packing: whole there, packed here"):
        ActivationStore(tmp_path / "store").append(model_of("llama"), Corpus(source=RECORDS[5:9], packing="packed"))


def test_merged_stores_are_one_behind_the_other(tmp_path: Path, store: ActivationStore) -> None:
    parts = [made(tmp_path / "a", RECORDS[:25]), made(tmp_path / "b", RECORDS[25:])]
    merged = ActivationStore.merge([parts[0], tmp_path / "b"], tmp_path / "merged").verify("full")
    for name in NAMES:
        assert torch.equal(merged[name][:], torch.cat([part[name][:] for part in parts]))
    assert merged.labels(slice(None)) == store.labels(slice(None))
    assert merged.column("id") == store.column("id")
    assert merged.documents(slice(None)).tolist() == store.documents(slice(None)).tolist()
    assert merged.sequences[:].tolist() == store.sequences[:].tolist()
    assert merged.complete
    again = ActivationStore.merge(parts, tmp_path / "merged")
    assert again.digest == merged.digest
    appended = made(tmp_path / "c", RECORDS[:25]).append(model_of("llama"), RECORDS[25:], progress=False)
    assert appended.digest == merged.digest
    one = ActivationStore.merge([parts[0]], tmp_path / "one")
    assert one.digest == parts[0].digest


def test_what_does_not_fit_together_is_not_merged(tmp_path: Path) -> None:
    first = made(tmp_path / "a", RECORDS[:5])
    other = made(tmp_path / "b", RECORDS[:5], sites=["resid_post.0"])
    with pytest.raises(StoreError, match="sites: "):
        ActivationStore.merge([first, other], tmp_path / "merged")
    with pytest.raises(StoreError, match="there is no store to merge"):
        ActivationStore.merge([], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    third = made(tmp_path / "c", RECORDS[5:9])
    before = third.digest
    with pytest.raises(StoreError, match="other documents"):
        ActivationStore.merge([first], tmp_path / "c")
    assert ActivationStore(tmp_path / "c", verify="full").digest == before
    assert list((tmp_path / "c/attempts").iterdir()) == []


@pytest.mark.parametrize("folder", ["plan", "data/s000"])
def test_a_damaged_store_is_not_merged_and_its_attempt_ends(tmp_path: Path, folder: str) -> None:
    source = made(tmp_path / "a", RECORDS[:5])
    file = next((source.path / folder).glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CorruptStoreError, match="is damaged: its content"):
        ActivationStore.merge([source], tmp_path / "merged")
    assert list((tmp_path / "merged/attempts").iterdir()) == []


# --- other tools --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_exported_rows_are_read_by_numpy_and_pyarrow(
    precision: str, tmp_path: Path, store: ActivationStore, half: ActivationStore
) -> None:
    from pyarrow import parquet

    chosen = store if precision == "float32" else half
    rows = [7, 3, 400, -1]
    npz = chosen.export(tmp_path / "rows.npz", rows=rows)
    table = parquet.read_table(chosen.export(tmp_path / "rows.parquet", rows=rows)).to_pydict()
    with np.load(npz, allow_pickle=False) as arrays:
        found = {name: arrays[name] for name in arrays}
    assert set(found) == set(table) == {*NAMES, "token", "position", "sequence", "document", "id", "label"}
    for name in NAMES:
        expected = plain(chosen.path, name)[rows].float()
        assert found[name].dtype == np.float32
        assert np.array_equal(found[name], expected.numpy())
        assert np.array_equal(np.asarray(table[name], dtype=np.float32), expected.reshape(4, -1).numpy())
    for name, x in (("token", chosen.tokens), ("position", chosen.positions), ("sequence", chosen.sequences)):
        assert found[name].tolist() == table[name] == x[rows].tolist()
    assert found["document"].tolist() == table["document"] == chosen.documents(rows).tolist()
    assert found["id"].tolist() == table["id"] == chosen.labels(rows, "id")
    assert table["label"] == [None if v is None else str(v) for v in chosen.labels(rows)]


def test_everything_is_exported_unless_told_otherwise(tmp_path: Path, store: ActivationStore) -> None:
    from pyarrow import parquet

    path = store.export(tmp_path / "all.parquet", sites=["L1H2"])
    table = parquet.read_table(path)
    assert table.num_rows == ROWS
    assert [n for n in table.column_names if "." in n] == ["z.1.2"]
    assert np.array_equal(np.asarray(table["z.1.2"].to_pylist(), dtype=np.float32), store["L1H2"][:].numpy())
    empty = parquet.read_table(store.export(tmp_path / "none.parquet", rows=[]))
    assert (empty.num_rows, set(empty.column_names)) == (0, {*NAMES, *table.column_names} - {"z.1.2"})
    assert store.export(tmp_path / "odd.name", "npz", rows=[1]).is_file()


def test_any_name_of_a_column_is_exported(tmp_path: Path) -> None:
    data = [{"input_ids": [5, 6], "file": "ä.txt", "allow_pickle": 1, "self": None, "mixed": n} for n in (True, 2.5)]
    columns = ["file", "allow_pickle", "self", "mixed"]
    small = made(tmp_path / "store", Corpus(source=data, columns=columns), ["embed"])
    with np.load(small.export(tmp_path / "a.npz"), allow_pickle=False) as arrays:
        assert arrays["file"].tolist() == ["ä.txt"] * 4
        assert arrays["mixed"].tolist() == ["True", "True", "2.5", "2.5"]
    assert small.export(tmp_path / "a.parquet").is_file()
    clash = made(tmp_path / "clash", Corpus(source=[{"input_ids": [5], "embed": "x"}], columns=["embed"]), ["embed"])
    for kind in ("npz", "parquet"):
        with pytest.raises(StoreError, match="called as something else is, embed"):
            clash.export(tmp_path / f"b.{kind}")
        assert not (tmp_path / f"b.{kind}").exists()


def test_an_export_never_overwrites_and_leaves_no_halves(tmp_path: Path, store: ActivationStore) -> None:
    (tmp_path / "rows.npz").write_text("mine", encoding="utf-8")
    with pytest.raises(StoreError, match="is there already, and stays as it is"):
        store.export(tmp_path / "rows.npz")
    with pytest.raises(StoreError, match="exported as 'parquet' or 'npz', not as 'csv'"):
        store.export(tmp_path / "rows.csv")
    with pytest.raises(UnavailableSiteError):
        store.export(tmp_path / "other.npz", sites=["resid_post.1"])
    assert [p.name for p in tmp_path.iterdir()] == ["rows.npz"]
    assert (tmp_path / "rows.npz").read_text(encoding="utf-8") == "mine"


# --- what there is to know ----------------------------------------------------------------------------------------


def test_info_says_what_a_store_is_and_goes_into_json(store: ActivationStore) -> None:
    info = json.loads(json.dumps(store.info()))
    assert info["model"] == "LlamaForCausalLM"
    assert info["sites"] == {
        "z.0.3": [8],
        "resid_post.0": [32],
        "z.1": [4, 8],
        "mlp_post.1.5": [],
        "mlp_post.2": [48],
    }
    assert (info["dtype"], info["rows"], info["documents"]) == ("float32", ROWS, 60)
    assert info["shards"] == info["committed"] == len(raw_of(store.path).files)
    assert (info["complete"], info["digest"]) == (True, store.digest)
    assert info["bytes"] == store.nbytes == ROWS * (8 + 32 + 32 + 1 + 48) * 4
    assert info["configuration"]["positions"] == "all"
    assert info["environments"][0]["threads"] == torch.get_num_threads()
    assert f"{ROWS:,} rows, 5 sites (z, resid_post, mlp_post)" in repr(store)
    assert [str(site) for site in store] == list(info["sites"])
    assert store.provenance.model_type == "llama"
    assert "SiteView(z.1, [" in repr(store["z.1"])


def test_a_path_without_a_store_is_said_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"there is nothing at .*: a store is a folder that holds store.json"):
        ActivationStore.open(tmp_path / "absent")
    with pytest.raises(StoreError, match="no store, but something else"):
        ActivationStore.open(tmp_path)


def test_damage_is_found_when_one_asked_for_it_to_be(tmp_path: Path, store: ActivationStore, unchecked: None) -> None:
    shutil.copytree(store.path, tmp_path / "store")
    victim = raw_of(tmp_path / "store").files[2][[str(s) for s in store.sites].index("z.1") + 1]
    data = bytearray(victim.read_bytes())
    data[-5] ^= 16
    victim.write_bytes(bytes(data))
    edge = raw_of(store.path).edges[2]
    message = f"{victim.name} is damaged: its content is not what was written"
    lazy = ActivationStore.open(tmp_path / "store")
    assert not torch.equal(lazy["z.1"][:], plain(store.path, "z.1"))
    lazy.verify("open")
    with pytest.raises(CorruptStoreError, match=message):
        lazy.verify()
    first = ActivationStore.open(tmp_path / "store", verify="first-read")
    assert torch.equal(first["z.1"][:edge], plain(store.path, "z.1")[:edge])
    assert torch.equal(first["resid_post.0"][:], plain(store.path, "resid_post.0"))
    with pytest.raises(CorruptStoreError, match=message):
        first["z.1"][edge]
    with pytest.raises(CorruptStoreError, match=message):
        ActivationStore.open(tmp_path / "store", verify="full")
    with pytest.raises(CorruptStoreError, match=message):
        ActivationStore.merge([lazy], tmp_path / "merged")
    with pytest.raises(StoreError, match="'open', 'first-read' or 'full', not 'never'"):
        ActivationStore.open(tmp_path / "store", verify="never")  # type: ignore[arg-type]
