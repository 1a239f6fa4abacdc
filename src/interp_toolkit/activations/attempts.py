"""Who writes: names for files of one process, and the removal of what dead ones left behind."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from interp_toolkit.activations.disk import discard, read_record, record_bytes, sync_folder, write_new
from interp_toolkit.activations.ledger import Ledger
from interp_toolkit.errors import StoreError


def begin_attempt(store: Path) -> str:
    """A name for files that this process is going to write into a store."""
    attempt = secrets.token_hex(8)
    facts = {"machine": _machine(), "process": os.getpid()}
    write_new(store / f"attempts/{attempt}.json", [record_bytes(facts)])
    sync_folder(store / "attempts")  # before any file of that name
    return attempt


def end_attempt(store: Path, attempt: str) -> None:
    """This process writes no more files of that name."""
    discard(store / f"attempts/{attempt}.json")


@contextmanager
def attempt_in(store: Path) -> Iterator[str]:
    """A name for files that this process writes into a store within the block; it ends whatever leads out of it."""
    attempt = begin_attempt(store)
    try:
        yield attempt
    finally:
        end_attempt(store, attempt)


def collect(ledger: Ledger) -> int:
    """Remove files that no record names, nor ever will.

    They belong to shards that someone else committed, or to processes of this machine that are gone.

    Returns:
        How many were removed.
    """
    attempts = ledger.path / "attempts"
    gone = {path.stem for path in attempts.iterdir() if _is_gone(path)}
    # Only now, when those that are gone cannot commit anything any more: what they did commit is among these.
    ledger.refresh()
    named = {shard: ledger.commit(shard).attempt for shard in ledger.committed()}
    plans = {plan.facts.attempt for plan in ledger.plans}
    removed = 0
    for path in _files(ledger.path):
        if _is_stale(path, gone, named, plans):
            discard(path)
            removed += 1
    complete = 0 < len(named) == ledger.num_shards
    copied = {path.stem for path in (ledger.path / "plan").glob("*.safetensors")} - plans
    for path in attempts.iterdir():
        # The file of a plan that is still to be published cannot be told from one that was left behind, but by this.
        if path.stem not in copied and (complete or path.stem in gone):
            discard(path)
    return removed


def _is_stale(path: Path, gone: set[str], named: dict[int, str], plans: set[str]) -> bool:
    draft = re.fullmatch(r"\.(.*\.json)\.[0-9a-f]{16}", path.name)
    if draft is not None:
        return (path.parent / draft[1]).exists()
    found = re.fullmatch(r"(?:(\d{8})-)?([0-9a-f]{16})\.safetensors", path.name)
    if found is None:
        return False
    attempt = found[2]
    if found[1] is None:
        return attempt not in plans and attempt in gone
    shard = int(found[1])
    return named[shard] != attempt if shard in named else attempt in gone


def _files(store: Path) -> Iterator[Path]:
    folders = [store, *(store / name for name in ("plan", "commits", "seals")), *sorted((store / "data").iterdir())]
    for folder in folders:
        if folder.is_dir() and not folder.is_symlink():
            yield from (path for path in folder.iterdir() if path.suffix != ".json" and not path.is_dir())


def _is_gone(record: Path) -> bool:
    """Whether the process of an attempt is known to run no more."""
    with suppress(StoreError, OSError):
        facts = read_record(record)
        return facts.get("machine") == _machine() and not _runs(facts.get("process"))
    return False


def _runs(process: Any) -> bool:
    if type(process) is not int or process <= 0 or os.name == "nt":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


@functools.cache
def _machine() -> str:
    """Where a process number means the same process: the machine, since it was started, and the name space."""
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
    with suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


__all__ = ["attempt_in", "begin_attempt", "collect", "end_attempt"]
