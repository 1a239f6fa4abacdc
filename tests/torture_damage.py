"""Stores that were changed after they were written, by accident, anywhere; and writers that race."""

from __future__ import annotations

import os
import random
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp_toolkit.activations import ActivationStore
from interp_toolkit.activations.attempts import begin_attempt, collect, end_attempt
from interp_toolkit.activations.computing import token_parts
from interp_toolkit.activations.files import map_arrays
from interp_toolkit.activations.ledger import Ledger
from interp_toolkit.errors import StoreError
from torture_tools import Figures, all_of, contents, corpus, extracted, forked, in_children, orphans, tree

SLOW = 5.0
"""Seconds after which an error comes too late."""


@dataclass(frozen=True)
class Stores:
    """Small stores to be damaged.

    Attributes:
        folder: where they are.
        store: has two plans, five shards and two sites.
        foreign: of the same model, but other documents; and of other sites.
        content: what is read from the first.
        files: what it consists of.
    """

    folder: Path
    store: Path
    foreign: tuple[Path, ...]
    content: dict[str, Any]
    files: dict[str, Any]

    @classmethod
    def make(cls, folder: Path) -> Stores:
        store, other, narrow = (folder / name for name in ("store", "other", "narrow"))
        for path, seed in ((store, 0), (other, 1)):
            extracted(path, corpus(8, seed), dtype="bfloat16")
            extracted(path, corpus(4, seed + 2), dtype="bfloat16", append=True)
        extracted(narrow, corpus(8), dtype="float32")
        return cls(folder, store, (other, narrow), contents(store), tree(store))

    def copy(self) -> Path:
        """A fresh copy in a place that is always the same."""
        path = self.folder / "copy"
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(self.store, path, symlinks=True)
        return path

    def judge(self, path: Path) -> str:
        """What reading a changed store leads to."""
        began = time.perf_counter()
        opened = False
        try:
            store = ActivationStore(path, verify="full")
            opened = True
            outcome = self._compare(path, all_of(store))
        except StoreError as error:
            outcome = f"late ones: {error}" if opened else "detected"
        except Exception as error:  # noqa: BLE001 - what is counted here
            outcome = f"wrong errors: {type(error).__name__} {error}"
        seconds = time.perf_counter() - began
        return outcome if seconds < SLOW else f"slow ones: {seconds:.1f} s"

    def _compare(self, path: Path, found: dict[str, Any]) -> str:
        now = tree(path)
        touched = {name for name in now.keys() | self.files.keys() if now.get(name) != self.files.get(name)}
        if not touched:
            return "nothing changed"
        # A seal repeats what commits say: without it a store is one whose extraction is yet to be ended.
        unsealed = found | {"digest": self.content["digest"]} == self.content and found["digest"] in (
            None,
            self.content["digest"],
        )
        if unsealed and all(name.startswith("seals/") and name not in now for name in touched):
            return "no content: the seal is gone"
        return f"silent ones: {', '.join(sorted(touched))}"


# --- accidents -----------------------------------------------------------------------------------------------------

Change = Callable[[Path, Stores, random.Random], str | None]


def _place(data: bytearray, path: Path, rng: random.Random) -> int:
    """Somewhere in a file, more often behind its head, which is longer than all the rest of such small ones."""
    head = 8 + int.from_bytes(data[:8], "little") if path.suffix == ".safetensors" else 0
    return rng.randrange(head, len(data)) if head < len(data) and rng.random() < 0.7 else rng.randrange(len(data))


def _bit(path: Path, stores: Stores, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        data[_place(data, path, rng)] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def _bytes(path: Path, stores: Stores, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    begin = _place(data, path, rng)
    part = data[begin : begin + rng.randrange(1, 64)]
    data[begin : begin + len(part)] = rng.randbytes(len(part))
    path.write_bytes(data)


def _truncated(path: Path, stores: Stores, rng: random.Random) -> None:
    os.truncate(path, rng.randrange(path.stat().st_size))


def _zeroed(path: Path, stores: Stores, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    length = _place(data, path, rng)
    path.write_bytes(data[:length] + bytes(len(data) - length))


def _appended(path: Path, stores: Stores, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes() + rng.choice([b"\n", b"\0", rng.randbytes(rng.randrange(1, 5000))]))


def _inserted(path: Path, stores: Stores, rng: random.Random) -> None:
    data = path.read_bytes()
    at = rng.randrange(len(data))
    path.write_bytes(data[:at] + rng.randbytes(rng.randrange(1, 9)) + data[at:])


def _deleted(path: Path, stores: Stores, rng: random.Random) -> None:
    path.unlink()


def _swapped(path: Path, stores: Stores, rng: random.Random) -> None:
    near = rng.random() < 0.8
    others = [
        p
        for p in (path.parent if near else stores.folder / "copy").rglob("*")
        if p.is_file() and p.suffix == path.suffix
    ]
    other = rng.choice(others)
    kept = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(kept)


def _repeated(path: Path, stores: Stores, rng: random.Random) -> None:
    path.write_bytes(rng.choice([p for p in path.parent.iterdir() if p.is_file()]).read_bytes())


def _foreign(path: Path, stores: Stores, rng: random.Random) -> None:
    folder = rng.choice(stores.foreign) / path.relative_to(stores.folder / "copy").parent
    path.write_bytes(rng.choice([p for p in folder.iterdir() if p.is_file()] or [path]).read_bytes())


def _link(path: Path, stores: Stores, rng: random.Random) -> None:
    target = stores.store / path.relative_to(stores.folder / "copy")
    path.unlink()
    path.symlink_to(rng.choice([target, os.path.relpath(target, path.parent)]))


def _broken_link(path: Path, stores: Stores, rng: random.Random) -> None:
    path.unlink()
    path.symlink_to(rng.choice(["nowhere", path.name]))


def _folder(path: Path, stores: Stores, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _pipe(path: Path, stores: Stores, rng: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def _no_folder(path: Path, stores: Stores, rng: random.Random) -> None:
    shutil.rmtree(path.parent)
    if rng.random() < 0.5:
        path.parent.touch()


def _linked_folder(path: Path, stores: Stores, rng: random.Random) -> None:
    shutil.rmtree(path.parent)
    path.parent.symlink_to(stores.store / path.parent.relative_to(stores.folder / "copy"))


def _added(path: Path, stores: Stores, rng: random.Random) -> None:
    """A record under a number that there is not, of this store or another one."""
    folder = rng.choice(["commits", "plan", "seals"])
    source = rng.choice([stores.store, *stores.foreign])
    record = rng.choice([p for p in (source / folder).iterdir() if p.suffix == ".json"])
    there = len([p for p in (stores.folder / "copy" / folder).iterdir() if p.suffix == ".json"])
    number = there + rng.choice([0, 0, 1, 5])
    (stores.folder / "copy" / folder / f"{number:0{8 if folder == 'commits' else 4}d}.json").write_bytes(
        record.read_bytes()
    )


MOST: tuple[Any, ...] = (_bit, _bytes, _truncated, _zeroed, _appended, _inserted, _swapped, _repeated, _foreign)
REST: tuple[Any, ...] = (_deleted, _link, _broken_link, _folder, _pipe, _no_folder, _linked_folder, _added)


def mutate(folder: Path, count: int, seed: int) -> Figures:
    """Change a store, so many times, each time from the beginning."""
    stores = Stores.make(folder)

    def trial(n: int) -> str:
        rng = random.Random(f"{seed} {n}")
        path = stores.copy()
        change = rng.choice(MOST * 2 + REST)
        file = path / rng.choice(sorted(name for name, what in stores.files.items() if isinstance(what, bytes)))
        if file.parent == path and change in (_no_folder, _linked_folder):
            change = _deleted
        change(file, stores, rng)
        return f"{stores.judge(path)} <{change.__name__} {file.relative_to(path)}, trial {n}>"

    return counted("mutations", in_children(trial, count))


def truncate_everywhere(folder: Path, step: int) -> Figures:
    """Cut every file of a store at every `step`-th byte."""
    stores = Stores.make(folder)
    every = [
        (name, size)
        for name, data in stores.files.items()
        if isinstance(data, bytes)
        for size in range(0, len(data), step)
    ]

    def trial(n: int) -> str:
        path = stores.copy()
        os.truncate(path / every[n][0], every[n][1])
        return f"{stores.judge(path)} <cut {every[n]}>"

    return counted("truncations", in_children(trial, len(every)))


def counted(what: str, outcomes: Any) -> Figures:
    figures = Figures()
    figures.counts.update({"silent ones": 0, "late ones": 0, "wrong errors": 0, "crashes": 0, "slow ones": 0})
    for outcome in outcomes:
        figures.add(what)
        kind = outcome.split(" <")[0].split(":")[0]
        figures.add(kind)
        if kind not in ("detected", "nothing changed", "no content", "read"):
            figures.notes.append(outcome)
    return figures


# --- races ---------------------------------------------------------------------------------------------------------


def race(folder: Path, writers: int, rounds: int, *, processes: bool) -> Figures:
    """Let many writers commit the same shard at once: one wins, and what the others wrote is gone."""
    figures = Figures()
    stores = Stores.make(folder)
    for number in range(rounds):
        ledger = _without_commits(stores)
        shard = ledger.plans[0].shards[number % ledger.plans[0].num_shards]
        begin = stores.folder / f"begin-{number}"
        job = _writer(ledger, stores, shard, begin)
        won = _in_processes(job, writers, begin) if processes else _in_threads(job, writers, begin, Ledger(ledger.path))
        figures.add("races")
        figures.add("winners", sum(won))
        if sum(won) != 1 or len(won) != writers:
            figures.wrong("not one winner", f"{sum(won)} of {len(won)} won")
        if ledger.committed() != [shard]:
            figures.wrong("bad commits", f"{ledger.committed()} are committed")
        if left := orphans(ledger.path):
            figures.add("orphans", len(left))
            figures.notes.append(f"orphans: {', '.join(left[:5])}")
        try:
            store = ActivationStore(ledger.path, verify="full")
            figures.add("rows", len(store.available()))
        except StoreError as error:
            figures.wrong("bad commits", str(error))
    return figures


def _without_commits(stores: Stores) -> Ledger:
    path = stores.copy()
    for folder in ("commits", "seals", "data/tokens", "data/s000", "data/s001"):
        for file in (path / folder).iterdir():
            file.unlink()
    return Ledger(path)


def _writer(ledger: Ledger, stores: Stores, shard: int, begin: Path) -> Callable[[], bool]:
    source = Ledger(stores.store)
    commit = source.commit(shard)
    work = source.plan_of(shard).work(shard)
    kinds = source.arrays(len(work.shard.rows))
    x = [bytes(map_arrays(source.file(shard, commit.attempt, n), kinds[n])["x"].tobytes()) for n in (1, 2)]

    def write() -> bool:
        attempt = begin_attempt(ledger.path)
        while not begin.exists():
            time.sleep(0.0005)
        won = ledger.write(work.shard, [token_parts(work), [x[0]], [x[1]]], attempt, {})
        end_attempt(ledger.path, attempt)
        return won

    return write


def _in_threads(job: Callable[[], bool], writers: int, begin: Path, ledger: Ledger) -> list[bool]:
    won: list[bool] = []
    threads = [threading.Thread(target=lambda: won.append(job())) for _ in range(writers)]
    for thread in threads:
        thread.start()
    begin.touch()
    while any(thread.is_alive() for thread in threads):
        collect(ledger)  # takes nothing from those who still write
    for thread in threads:
        thread.join()
    return won


def _in_processes(job: Callable[[], bool], writers: int, begin: Path) -> list[bool]:
    reader, writer = os.pipe()
    pids = [forked(lambda: os.write(writer, b"1" if job() else b"0")) for _ in range(writers)]
    os.close(writer)
    begin.touch()
    for pid in pids:
        os.waitpid(pid, 0)
    with os.fdopen(reader, "rb") as file:
        return [said == ord("1") for said in file.read()]
