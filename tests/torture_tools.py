"""What a store has to survive: deaths at any moment; with `torture_disk`, `torture_damage` and `torture_forgery` also
disks that fail, files that change, and writers that race.

`tests/activations/test_store_reliability.py` does a little of it, `benchmarks/torture.py` much. Whatever forks has to
run in a process without threads, so tests start `main` in one and read the figures that it prints.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import random
import shutil
import signal
import stat
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from interp_toolkit.activations import ActivationStore, extract
from interp_toolkit.activations.ledger import Ledger
from interp_toolkit.errors import StoreError
from tiny import tiny_model

SITES = ("resid_post.0", "L1H1")


@dataclass
class Figures:
    """Counts, and in words what should not have been."""

    counts: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def add(self, what: str, number: int = 1) -> None:
        self.counts[what] += number

    def wrong(self, what: str, note: str) -> None:
        self.counts[what] += 1
        self.notes.append(f"{what}: {note}")


# --- stores --------------------------------------------------------------------------------------------------------


@functools.cache
def model() -> Any:
    return tiny_model("gpt2")


def corpus(number: int, seed: int = 0) -> list[dict[str, Any]]:
    """Documents of a few tokens, some with two labels."""
    rng = random.Random(seed)
    return [
        {"input_ids": [rng.randrange(3, 99) for _ in range(rng.randrange(2, 20))], "label": f"label {rng.randrange(3)}"}
        for _ in range(number)
    ]


def extracted(path: Path, documents: list[dict[str, Any]], **options: Any) -> ActivationStore:
    return extract(model(), documents, sites=SITES, path=path, progress=False, **({"shard_tokens": 32} | options))


def contents(path: Path) -> dict[str, Any]:
    """All that a store says to someone who reads all of it."""
    return all_of(ActivationStore(path, verify="full"))


def all_of(store: ActivationStore) -> dict[str, Any]:
    everything = np.arange(store.rows)
    found: dict[str, Any] = {"rows": store.rows, "digest": store.digest, "complete": store.complete}
    found |= {f"column {name}": store.column(name) for name in store.columns}
    return found | arrays_of(store, everything)


def arrays_of(store: ActivationStore, rows: Any) -> dict[str, bytes]:
    found = {str(site): store[site][rows] for site in store.sites}
    found |= {"tokens": store.tokens[rows], "positions": store.positions[rows], "sequences": store.sequences[rows]}
    found["documents"] = store.documents(rows)
    return {name: x.contiguous().view(torch.uint8).numpy().tobytes() for name, x in found.items() if x.numel()}


def tree(folder: Path) -> dict[str, Any]:
    """What is in a folder: bytes of files, and where links lead to."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        name = path.relative_to(folder).as_posix()
        found[name] = path.read_bytes() if stat.S_ISREG(mode) else str(path.readlink()) if path.is_symlink() else mode
    return found


def named_files(path: Path) -> set[str]:
    """The files that belong to a store: records, and what they name."""
    ledger = Ledger(path)
    found = {"store.json"}
    for number, plan in enumerate(ledger.plans):
        found |= {f"plan/{number:04d}.json", f"plan/{plan.facts.attempt}.safetensors"}
        if (path / f"seals/{number:04d}.json").exists():
            found.add(f"seals/{number:04d}.json")
    for shard in ledger.committed():
        found.add(f"commits/{shard:08d}.json")
        found |= {file["name"] for file in ledger.commit(shard).content["files"]}
    return found


def orphans(path: Path) -> list[str]:
    named = named_files(path)
    return sorted(name for name, what in tree(path).items() if not isinstance(what, int) and name not in named)


@dataclass(frozen=True)
class Reference:
    """An undisturbed extraction."""

    documents: list[dict[str, Any]]
    content: dict[str, Any]
    seconds: float

    @classmethod
    def of(cls, folder: Path, number: int) -> Reference:
        documents = corpus(number)
        extracted(folder / "first", documents)  # the model is verified once
        began = time.perf_counter()
        extracted(folder / "reference", documents)
        seconds = time.perf_counter() - began
        return cls(documents, contents(folder / "reference"), seconds)

    def look(self, path: Path, figures: Figures) -> None:
        """What is committed has to be right, however far the extraction came."""
        if not (path / "store.json").exists():
            return
        try:
            store = ActivationStore(path, verify="full")
            rows = store.available().numpy()
            there = arrays_of(store, rows)
        except (StoreError, OSError) as error:
            figures.wrong("bad commits", str(error))
            return
        for name, data in there.items():
            whole = np.frombuffer(self.content[name], dtype=np.uint8).reshape(self.content["rows"], -1)
            found = np.frombuffer(data, dtype=np.uint8).reshape(len(rows), -1)
            different = int((whole[rows] != found).any(axis=1).sum())
            if different:
                figures.add("rows lost or doubled", different)
                figures.notes.append(f"{different} rows of {name} are different")

    def finished(self, path: Path, figures: Figures) -> None:
        """Sealed, equal to this one, and nothing else in the folder."""
        try:
            found = contents(path)
        except (StoreError, OSError) as error:
            figures.wrong("bad commits", str(error))
            return
        if found["digest"] != self.content["digest"]:
            figures.wrong("digests different", f"{found['digest']}, not {self.content['digest']}")
        if found != self.content:
            figures.wrong("rows lost or doubled", f"{found['rows']} rows, not {self.content['rows']} or other ones")
        if left := orphans(path):
            figures.add("orphans", len(left))
            figures.notes.append(f"orphans: {', '.join(left)}")


# --- children ------------------------------------------------------------------------------------------------------


def forked(job: Callable[[], object]) -> int:
    """Start a process that does a job and ends."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        job()
        status = 0
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        sys.stderr.flush()
        os._exit(status)


def in_children(trial: Callable[[int], str], count: int) -> Iterator[str]:
    """What trials say, each done in a process of its own kind: one that dies is counted and followed by another."""
    done = 0
    while done < count:
        reader, writer = os.pipe()

        def job(first: int = done, out: int = writer) -> None:
            for n in range(first, count):
                signal.alarm(60)
                os.write(out, (json.dumps(trial(n)) + "\n").encode())

        pid = forked(job)
        os.close(writer)
        with os.fdopen(reader, encoding="utf-8") as lines:
            for line in lines:
                done += 1
                yield json.loads(line)
        _, status = os.waitpid(pid, 0)
        if status:
            done += 1
            yield f"crashes: trial {done - 1} ended its process with status {status}"


# --- deaths --------------------------------------------------------------------------------------------------------


def kill_at_random(folder: Path, kills: int, seed: int, *, documents: int = 30) -> Figures:
    """Kill extractions until so many have died; in every fourth store three processes write at once."""
    figures, rng = Figures(), random.Random(seed)
    reference = Reference.of(folder, documents)
    tempfile.tempdir = str(folder)  # what dies leaves its plan there
    while figures.counts["kills"] < kills:
        figures.add("stores")
        path = folder / f"store-{figures.counts['stores']}"
        workers = 1 if figures.counts["stores"] % 4 else 3
        while not _survived(path, reference, workers, rng, figures):
            reference.look(path, figures)
        if workers > 1:
            extracted(path, reference.documents)
        reference.finished(path, figures)
        shutil.rmtree(path)
    tempfile.tempdir = None
    return figures


def _survived(path: Path, reference: Reference, workers: int, rng: random.Random, figures: Figures) -> bool:
    pids = [forked(lambda: extracted(path, reference.documents)) for _ in range(workers)]
    finished = False
    for pid in pids:
        time.sleep(rng.uniform(0, rng.choice([0.5, 1.0, 2.0]) * reference.seconds))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            figures.add("kills")
        elif status:
            figures.wrong("failures", f"a process ended with status {status}")
        else:
            finished = True
    return finished


def main(jobs: str) -> None:
    """Do what is asked for in JSON, and print the figures: `[[module, function, options], ...]`."""
    torch.set_num_threads(1)
    found = []
    for module, function, options in json.loads(jobs):
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            figures = getattr(importlib.import_module(module), function)(Path(folder), **options)
            found.append([figures.counts, figures.notes, time.perf_counter() - began])
    sys.stdout.write(json.dumps(found))
