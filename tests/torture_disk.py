"""A disk that can be made to fail: at any call, in any way, or by losing what was not synchronised."""

from __future__ import annotations

import errno
import functools
import os
import random
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from interp_toolkit.errors import StoreError
from torture_tools import Figures, Reference, extracted, forked, named_files

Act = Callable[[int, str, Any, Callable[[], Any]], Any]
"""Gets the number of a call, its name, its arguments, and what does it."""


class Disk:
    """Stands between the library and the files in a folder: counts what changes them and remembers what is durable."""

    CALLS = ("open", "write", "fsync", "close", "link", "unlink", "mkdir")

    def __init__(self, folder: Path, act: Act) -> None:
        self.folder = folder
        self.act = act
        self.count = 0
        self.dirty: set[int] = set()
        self.pending: set[Path] = set()
        self._open: dict[int, Path] = {}
        self._lock = threading.RLock()
        self._busy = False

    @contextmanager
    def between(self) -> Iterator[Disk]:
        """Until the block ends."""
        kept = {name: getattr(os, name) for name in self.CALLS}
        try:
            for name, real in kept.items():
                setattr(os, name, functools.partial(self._call, name, real))
            yield self
        finally:
            for name, real in kept.items():
                setattr(os, name, real)

    def _call(self, name: str, real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with self._lock:
            subject = args[1] if name == "link" else args[0]
            ours = subject in self._open if isinstance(subject, int) else Path(subject).is_relative_to(self.folder)
            if self._busy or not ours:
                return real(*args, **kwargs)

            def do(*changed: Any) -> Any:
                result = real(*(changed or args), **kwargs)
                self._note(name, subject, result, *args)
                return result

            self.count += 1
            self._busy = True
            try:
                return self.act(self.count, name, args, do)
            finally:
                self._busy = False

    def _note(self, name: str, subject: Any, result: Any, *args: Any) -> None:
        match name:
            case "open":
                self._open[result] = Path(subject)
                if args[1] & os.O_CREAT:
                    self.pending.add(Path(subject))
                    self.dirty.add(os.fstat(result).st_ino)
            case "write":
                self.dirty.add(os.fstat(subject).st_ino)
            case "fsync":
                self.dirty.discard(os.fstat(subject).st_ino)
                self.pending = {path for path in self.pending if path.parent != self._open[subject]}
            case "close":
                del self._open[subject]
            case "link" | "mkdir":
                self.pending.add(Path(subject))
            case "unlink":
                self.pending.discard(Path(subject))

    def lose_power(self, rng: random.Random) -> None:
        """Leave on the disk what was synchronised, and anything at all of the rest."""
        share = rng.choice([1.0, 0.5])
        for path in self.folder.rglob("*"):
            if path.is_file() and path.stat().st_ino in self.dirty and rng.random() < share:
                size = path.stat().st_size
                path.write_bytes(rng.choice([b"", bytes(size), path.read_bytes()[: rng.randrange(size + 1)]]))
        for path in sorted(self.pending, reverse=True):
            if path.exists() and rng.random() < share:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def calls(folder: Path, reference: Reference) -> list[str]:
    """The calls of an extraction that can fail, in their order."""
    found: list[str] = []

    def act(count: int, name: str, args: Any, do: Callable[..., Any]) -> Any:
        found.append(name)
        return do()

    with Disk(folder, act).between():
        extracted(folder / "counted", reference.documents)
    return found


def _deadly(at: int, how: str, disk: list[Disk], rng: random.Random) -> Act:
    def act(count: int, name: str, args: Any, do: Callable[..., Any]) -> Any:
        if count != at:
            return do()
        if how == "half" and name == "write":
            do(args[0], args[1][: len(args[1]) // 2])
        else:
            do()
        if how == "power":
            disk[0].lose_power(rng)
        os.kill(os.getpid(), signal.SIGKILL)
        return None

    return act


def kill_at_calls(folder: Path, trials: int | None, seed: int, *, power: bool, documents: int = 8) -> Figures:
    """Kill an extraction behind every call that changes a file, in the middle of writes, or with loss of power.

    Args:
        folder: for the stores.
        trials: only so many of them, drawn at random; None means all.
        seed: draws them.
        power: whether what was not synchronised is lost, too.
        documents: how many are extracted.
    """
    figures, rng = Figures(), random.Random(seed)
    reference = Reference.of(folder, documents)
    every = []
    for at, name in enumerate(calls(folder, reference), start=1):
        every += [(at, "power")] * 2 if power else [(at, "after"), (at, "half")] if name == "write" else [(at, "after")]
    tempfile.tempdir = tempfile.mkdtemp()
    for at, how in every if trials is None else rng.sample(every, min(trials, len(every))):
        base = folder / "killed"
        base.mkdir()
        disk: list[Disk] = []
        disk.append(Disk(base, _deadly(at, how, disk, random.Random(rng.random()))))

        def job(disk: Disk = disk[0], path: Path = base / "store") -> None:
            with disk.between():
                extracted(path, reference.documents)

        _, status = os.waitpid(forked(job), 0)
        figures.add("power cuts" if power else "kills at calls", int(os.WIFSIGNALED(status)))
        noted = len(figures.notes)
        reference.look(base / "store", figures)
        _resume(base / "store", reference, figures)
        figures.notes[noted:] = [f"call {at}, {how}: {note}" for note in figures.notes[noted:]]
        shutil.rmtree(base)
    shutil.rmtree(tempfile.tempdir)
    tempfile.tempdir = None
    return figures


def _resume(path: Path, reference: Reference, figures: Figures) -> None:
    try:
        extracted(path, reference.documents)
    except (StoreError, OSError) as error:
        figures.wrong("not resumed", f"{type(error).__name__} {error}")
        return
    reference.finished(path, figures)


FAULTS = ("no space", "I/O error", "done, but an error", "half written")


def _faulty(at: int, how: str) -> Act:
    def act(count: int, name: str, args: Any, do: Callable[..., Any]) -> Any:
        if count != at:
            return do()
        if how == "done, but an error":
            result = do()
            if name == "open":
                os.close(result)
        elif how == "half written" and name == "write":
            do(args[0], args[1][: len(args[1]) // 2])
        number = errno.EIO if how in FAULTS[1:3] else errno.ENOSPC
        raise OSError(number, os.strerror(number))

    return act


def fail_at_calls(folder: Path, ways: int, seed: int, *, documents: int = 8) -> Figures:
    """Let every call that changes a file fail, each in so many ways; resume in the same process."""
    figures, rng = Figures(), random.Random(seed)
    reference = Reference.of(folder, documents)
    every = []
    for at, name in enumerate(calls(folder, reference), start=1):
        possible = FAULTS if name == "write" else FAULTS[2:3] if name == "close" else FAULTS[:3]
        every += [(at, how) for how in rng.sample(possible, min(ways, len(possible)))]
    for at, how in every:
        base = folder / "faulty"
        base.mkdir()
        path, noted = base / "store", len(figures.notes)
        figures.add("faults")
        try:
            with Disk(base, _faulty(at, how)).between():
                extracted(path, reference.documents)
        except (StoreError, OSError):
            figures.add("faults reported")
        reference.look(path, figures)
        before = _identity(path)
        _resume(path, reference, figures)
        after = _identity(path)
        figures.add("overwritten", sum(after.get(name) != what for name, what in before.items()))
        figures.notes[noted:] = [f"call {at}, {how}: {note}" for note in figures.notes[noted:]]
        shutil.rmtree(base)
    return figures


def _identity(path: Path) -> dict[str, tuple[int, bytes]]:
    if not (path / "store.json").exists():
        return {}
    return {name: ((path / name).stat().st_ino, (path / name).read_bytes()) for name in named_files(path)}


def write_in_pieces(folder: Path, seed: int) -> Figures:
    """Let every write take only a part of what it is given."""
    figures, rng = Figures(), random.Random(seed)
    reference = Reference.of(folder, 8)

    def act(count: int, name: str, args: Any, do: Callable[..., Any]) -> Any:
        if name != "write":
            return do()
        figures.add("short writes")
        return do(args[0], args[1][: rng.randrange(1, len(args[1]) + 1)])

    with Disk(folder, act).between():
        extracted(folder / "pieces", reference.documents)
    reference.finished(folder / "pieces", figures)
    return figures
