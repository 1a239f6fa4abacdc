"""The store survives deaths, failing disks, damage, forgery and races; `make torture` does much more of the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from interp_toolkit.activations import ActivationStore, attempts
from interp_toolkit.activations.attempts import begin_attempt, collect
from interp_toolkit.activations.computing import token_parts
from interp_toolkit.activations.disk import (
    holds,
    make_folder,
    publish,
    read_record,
    record_bytes,
    sync_folder,
    write_new,
)
from interp_toolkit.activations.files import load_tensors, map_arrays
from interp_toolkit.activations.ledger import Ledger
from interp_toolkit.activations.planning import PlanFacts
from interp_toolkit.errors import CorruptStoreError, FileFormatError, StoreError
from torture_damage import race
from torture_disk import Disk, write_in_pieces
from torture_tools import contents, corpus, extracted, orphans

TESTS = Path(__file__).parents[1]


def in_a_clean_process(*jobs: Any) -> list[Any]:
    """The figures of jobs that fork, which a process full of other tests' threads had better not."""
    code = "import sys, torture_tools; torture_tools.main(sys.argv[1])"
    paths = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(jobs)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two shards; leave it as it is."""
    path = tmp_path_factory.mktemp("small") / "store"
    extracted(path, corpus(4))
    return path


@pytest.fixture
def empty(small: Path, tmp_path: Path) -> Ledger:
    """A store with the same plan, and nothing committed."""
    source = Ledger(small)
    ledger = Ledger.create(tmp_path / "empty", source.configuration)
    write_new(ledger.path / "plan" / source.plans[0].path.name, [source.plans[0].path.read_bytes()])
    ledger.add_plan(source.plans[0])
    return ledger


def parts_of(path: Path, shard: int = 0) -> tuple[Any, Any]:
    """A shard and its data."""
    ledger = Ledger(path)
    work = ledger.plan_of(shard).work(shard)
    kinds = ledger.arrays(len(work.shard.rows))
    files = [ledger.file(shard, ledger.commit(shard).attempt, n) for n in (1, 2)]
    return work.shard, [
        token_parts(work),
        *([map_arrays(file, kind)["x"].tobytes()] for file, kind in zip(files, kinds[1:], strict=True)),
    ]


def write(ledger: Ledger, small: Path, attempt: str) -> bool:
    shard, parts = parts_of(small)
    return ledger.write(shard, parts, attempt, {})


# --- deaths and failing disks --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kills", "trials"), [(16, 6), pytest.param(40, 12, marks=pytest.mark.slow)])
def test_a_killed_extraction_resumes_to_the_very_same_store(kills: int, trials: int) -> None:
    options = {"trials": trials, "seed": 1}
    figures = in_a_clean_process(
        ["torture_tools", "kill_at_random", {"kills": kills, "seed": 1}],
        ["torture_disk", "kill_at_calls", options | {"power": False}],
        ["torture_disk", "kill_at_calls", options | {"power": True}],
    )
    for counts, notes, _ in figures:
        assert notes == []
        assert set(counts) <= {"stores", "kills", "kills at calls", "power cuts"}
    assert figures[0][0]["kills"] >= kills
    assert [figures[1][0]["kills at calls"], figures[2][0]["power cuts"]] == [trials, trials]


def test_whatever_call_fails_the_extraction_resumes_and_nothing_is_overwritten() -> None:
    job = ["torture_disk", "fail_at_calls", {"ways": 1, "seed": 1, "documents": 1}]
    [[counts, notes, _]] = in_a_clean_process(job)
    assert notes == []
    assert counts["faults"] > 100
    assert counts["faults reported"] > 0.8 * counts["faults"]
    assert counts["overwritten"] == 0


def test_short_writes_change_nothing(tmp_path: Path) -> None:
    figures = write_in_pieces(tmp_path, 1)
    assert figures.notes == []
    assert figures.counts["short writes"] > 50


# --- damage, forgery, races ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mutations", "forgeries"), [(200, 60), pytest.param(500, 120, marks=pytest.mark.slow)])
def test_no_change_of_a_store_stays_silent_or_ends_in_anything_but_a_store_error(
    mutations: int, forgeries: int
) -> None:
    damage, forgery, racing = in_a_clean_process(
        ["torture_damage", "mutate", {"count": mutations, "seed": 1}],
        ["torture_forgery", "fuzz", {"count": forgeries, "seed": 1}],
        ["torture_damage", "race", {"writers": 50, "rounds": 1, "processes": True}],
    )
    assert damage[1] == forgery[1] == racing[1] == []
    assert damage[0]["mutations"] == mutations
    assert damage[0]["detected"] > 0.9 * mutations
    assert forgery[0]["forgeries"] == forgeries
    assert forgery[0]["detected"] > 0.75 * forgeries
    assert [racing[0][what] for what in ("races", "winners")] == [1, 1]


def test_of_fifty_threads_that_race_for_a_shard_one_wins(tmp_path: Path) -> None:
    figures = race(tmp_path, 50, 1, processes=False)
    assert figures.notes == []
    assert [figures.counts[what] for what in ("races", "winners")] == [1, 1]


@pytest.mark.parametrize("record", ["plan/0000.json", "commits/00000001.json", "store.json"])
def test_a_missing_record_is_noticed(small: Path, tmp_path: Path, record: str) -> None:
    path = tmp_path / "store"
    path.mkdir()
    subprocess.run(["cp", "-r", f"{small}/.", str(path)], check=True)
    assert contents(path) == contents(small)
    (path / record).unlink()
    with pytest.raises(StoreError):
        ActivationStore(path, verify="full")


def test_a_store_without_its_seal_reads_the_same(small: Path, tmp_path: Path) -> None:
    path = tmp_path / "store"
    path.mkdir()
    subprocess.run(["cp", "-r", f"{small}/.", str(path)], check=True)
    (path / "seals/0000.json").unlink()
    assert contents(path) == contents(small) | {"digest": None}
    assert Ledger(path).seal() == contents(small)["digest"]


def test_a_folder_of_data_that_is_a_link_is_refused(small: Path, tmp_path: Path) -> None:
    path = tmp_path / "store"
    path.mkdir()
    subprocess.run(["cp", "-r", f"{small}/.", str(path)], check=True)
    (path / "data/s001").rename(tmp_path / "elsewhere")
    (path / "data/s001").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CorruptStoreError, match="s001 is a link"):
        ActivationStore(path)


def test_every_byte_of_a_record_counts(small: Path, tmp_path: Path) -> None:
    data, path = (small / "commits/00000000.json").read_bytes(), tmp_path / "record.json"
    for place in range(len(data)):
        wrong = bytearray(data)
        wrong[place] ^= 1 << place % 8
        path.write_bytes(wrong)
        with pytest.raises(CorruptStoreError):
            read_record(path)
    path.write_bytes(data)
    assert read_record(path)["shard"] == 0


@pytest.mark.parametrize("body", ['{"a":NaN}', '{"a":1e999}', '{"a": 1}', '{"b":1,"a":1}', '{"a":1,"a":1}', "[1]"])
def test_a_record_in_another_form_is_refused_though_its_checksum_fits(tmp_path: Path, body: str) -> None:
    import xxhash

    path = tmp_path / "record.json"
    checksum = xxhash.xxh3_128_hexdigest(body.encode())
    path.write_text(f'{{"xxh3_128":"{checksum}","record":{body}}}\n')
    with pytest.raises(CorruptStoreError):
        read_record(path)
    path.unlink()
    path.write_bytes(record_bytes({"a": 1, "b": [0.1, None, "é"]}))
    assert read_record(path) == {"a": 1, "b": [0.1, None, "é"]}


def test_a_record_that_nobody_could_read_again_is_not_written() -> None:
    with pytest.raises(StoreError, match="too large"):
        record_bytes({"a": "x" * (1 << 24)})


def test_facts_of_a_plan_that_do_not_fit_together_are_refused(small: Path) -> None:
    facts = read_record(small / "plan/0000.json")["plan"]
    assert PlanFacts.from_json(facts).columns == ("label",)
    for wrong in ({"arrays": facts["arrays"][:6]}, {"columns": [["label"]]}, {"count": [1, 2, 3]}, {"first": None}):
        with pytest.raises(CorruptStoreError, match="plan"):
            PlanFacts.from_json(facts | wrong)


def test_a_saved_file_with_facts_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "saved.safetensors"
    facts = {"format": "kind", "about": "[" * 100_000 + "]" * 100_000, "provenance": "{}"}
    save_file({"x": torch.zeros(1)}, path, metadata=facts)
    with pytest.raises(FileFormatError, match="damaged"):
        load_tensors(path, kind="kind", what="a test")


# --- who comes first, and what is left of the others ---------------------------------------------------------------


def test_what_a_dying_writer_committed_meanwhile_is_not_collected(
    small: Path, empty: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    attempt = begin_attempt(empty.path)
    facts = read_record(empty.path / f"attempts/{attempt}.json") | {"process": ended.pid}
    (empty.path / f"attempts/{attempt}.json").write_bytes(record_bytes(facts))
    real, seen = attempts._is_gone, []

    def commits_and_dies(*record: Any) -> bool:
        if not seen:
            seen.append(write(Ledger(empty.path), small, attempt))
        return real(*record)

    monkeypatch.setattr(attempts, "_is_gone", commits_and_dies)
    collect(empty)
    assert seen == [True]
    assert len(ActivationStore(empty.path, verify="full").available()) > 0
    assert not (empty.path / f"attempts/{attempt}.json").exists()


def test_a_living_writer_keeps_its_name_in_a_store_without_plans(small: Path, tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path / "store", Ledger(small).configuration)
    attempt = begin_attempt(ledger.path)
    collect(ledger)
    assert (ledger.path / f"attempts/{attempt}.json").exists()


def test_a_plan_that_is_being_copied_into_a_complete_store_stays_until_its_writer_is_gone(
    small: Path, tmp_path: Path
) -> None:
    path = tmp_path / "store"
    path.mkdir()
    subprocess.run(["cp", "-r", f"{small}/.", str(path)], check=True)
    attempt = begin_attempt(path)
    write_new(path / f"plan/{attempt}.safetensors", [b"half a pl"])
    collect(Ledger(path))
    assert orphans(path) == [f"attempts/{attempt}.json", f"plan/{attempt}.safetensors"]
    facts = read_record(path / f"attempts/{attempt}.json") | {"process": 2**31 - 1}
    (path / f"attempts/{attempt}.json").write_bytes(record_bytes(facts))
    collect(Ledger(path))
    assert orphans(path) == []


def test_a_store_can_be_begun_while_another_process_begins_it(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = tmp_path / "store", Path.iterdir
    path.mkdir()

    def late(folder: Path) -> Any:
        monkeypatch.undo()
        Ledger.create(path, Ledger(small).configuration)
        return real(folder)

    monkeypatch.setattr(Path, "iterdir", late)
    assert Ledger.create(path, Ledger(small).configuration).plans == []


@pytest.mark.parametrize("error", [FileExistsError(17, "File exists"), OSError(5, "Input/output error")])
def test_a_commit_that_came_about_though_the_file_system_denied_it_keeps_its_files(
    small: Path, empty: Ledger, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    real = os.link

    def lost_reply(*args: Any) -> None:
        real(*args)
        raise error

    monkeypatch.setattr(os, "link", lost_reply)
    if isinstance(error, FileExistsError):
        assert write(empty, small, "0" * 16)
    else:
        with pytest.raises(OSError, match="Input/output"):
            write(empty, small, "0" * 16)
    monkeypatch.undo()
    assert not write(empty, small, "1" * 16)
    assert empty.commit(0).attempt == "0" * 16
    assert len(ActivationStore(empty.path, verify="full").available()) > 0
    assert orphans(empty.path) == []


def test_only_the_first_record_of_a_name_is_published(tmp_path: Path) -> None:
    path = tmp_path / "record"
    assert publish(path, b"first")
    assert not publish(path, b"second")
    assert path.read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["record"]
    assert holds(path, b"first")
    assert not holds(path, b"firs")
    assert not holds(path, b"second")
    assert not holds(tmp_path / "nothing", b"")


def test_what_is_written_is_durable_before_any_record_speaks_of_it(tmp_path: Path) -> None:
    records = []

    def act(count: int, name: str, args: Any, do: Any) -> Any:
        if name == "link":
            records.append(Path(args[1]).relative_to(path).as_posix())
            assert disk.dirty == set()
            assert disk.pending <= {Path(args[0])}
        return do()

    path, disk = tmp_path / "store", Disk(tmp_path, act)
    with disk.between():
        extracted(path, corpus(4))
    assert records == [
        "store.json",
        "plan/0000.json",
        "commits/00000000.json",
        "commits/00000001.json",
        "seals/0000.json",
    ]
    assert disk.pending == set()


def test_new_folders_are_durable_with_all_that_are_above_them(tmp_path: Path) -> None:
    disk = Disk(tmp_path, lambda count, name, args, do: do())
    with disk.between():
        make_folder(tmp_path / "a/b/c")
        make_folder(tmp_path / "a/b/d")
        assert disk.pending == set()
        (tmp_path / "a/e").mkdir()
        assert disk.pending == {tmp_path / "a/e"}
        sync_folder(tmp_path / "a")
        assert disk.pending == set()
