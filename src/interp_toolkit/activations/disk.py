"""Every change that a store makes on disk, in one place: complete and durable, or not there at all.

Nothing is ever overwritten. A data file gets a name of its own and is synchronised before anything speaks of it; a
record appears under its name at once and whole, and only if no other is there.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import xxhash

from interp_toolkit.errors import CorruptStoreError, StoreError

Chunk = bytes | memoryview

_CHUNK = 1 << 22
_LARGEST_RECORD = 1 << 24
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS}
_FLAGS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)


def write_new(path: Path, chunks: Iterable[Chunk]) -> tuple[int, str]:
    """Create a file and write it down to the disk; what was written of it goes if that fails.

    Returns:
        Its size in bytes and the xxh3-128 of its content.

    Raises:
        OSError: as the file system has it, such as no space left.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, 0o644)
    except FileExistsError:
        raise
    except OSError:
        discard(path)  # it may have been made all the same
        raise
    try:
        try:
            size, digest = _write_all(descriptor, chunks)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except BaseException:
        discard(path)
        raise
    return size, digest


def copy_new(source: Path, target: Path) -> tuple[int, str]:
    """Copy a file under a new name, as `write_new` writes."""
    with source.open("rb") as file:
        return write_new(target, iter(lambda: file.read(_CHUNK), b""))


def _write_all(descriptor: int, chunks: Iterable[Chunk]) -> tuple[int, str]:
    size, digest = 0, xxhash.xxh3_128()
    for chunk in chunks:
        view = memoryview(chunk).cast("B")
        for begin in range(0, len(view), _CHUNK):
            part = view[begin : begin + _CHUNK]
            digest.update(part)
            size += len(part)
            while len(part):
                part = part[os.write(descriptor, part) :]
    return size, digest.hexdigest()


def publish(path: Path, data: bytes) -> bool:
    """Make a file appear, whole and durable, unless one of that name is there already.

    Returns:
        Whether what is there now is ours; False if someone else was first with something else.

    Raises:
        StoreError: where the file system has no hard links.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    write_new(draft, [data])
    try:
        os.link(draft, path)
    except FileExistsError:
        return holds(path, data)  # a network file system may answer so to our own call, sent twice
    except FileNotFoundError:  # someone else was first, and cleaned up
        if path.exists():
            return holds(path, data)
        raise
    except OSError as error:
        if error.errno in _NO_LINKS:
            raise StoreError(
                f"the file system of {path.parent} knows no hard links, by which a store commits what is written: "
                "put the store on another one"
            ) from error
        raise
    finally:
        discard(draft)
    sync_folder(path.parent)
    return True


def holds(path: Path, data: bytes) -> bool:
    """Whether a file is there and has this content; if in doubt, it has."""
    try:
        if not path.exists():
            return False
        with os.fdopen(open_regular(path), "rb", buffering=0) as file:
            return file.read(len(data) + 1) == data
    except (OSError, StoreError):
        return True


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    if os.name == "nt":  # folders cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY | _FLAGS)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, and make them durable."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def discard(path: Path) -> None:
    """Remove a file that nothing speaks of; it may be gone already, and may stay if it must."""
    with contextlib.suppress(OSError):
        path.unlink()


def open_regular(path: Path) -> int:
    """Open a file for reading; a link, a pipe or a folder in its place is refused.

    Raises:
        CorruptStoreError: when it is missing or no regular file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | _FLAGS | _NOFOLLOW | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        raise CorruptStoreError(f"{path} is missing") from None
    except OSError as error:
        raise CorruptStoreError(f"{path} cannot be opened: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CorruptStoreError(f"{path} is not a regular file")
    return descriptor


def hash_of(path: Path, tick: Callable[[int], object] | None = None) -> tuple[int, str]:
    """Size and xxh3-128 of a file.

    Args:
        path: the file.
        tick: is told how many bytes were read, again and again.
    """
    size, digest = 0, xxhash.xxh3_128()
    with os.fdopen(open_regular(path), "rb", buffering=0) as file:
        buffer = memoryview(bytearray(max(1, min(_CHUNK, os.fstat(file.fileno()).st_size))))
        while number := file.readinto(buffer):
            digest.update(buffer[:number])
            size += number
            if tick is not None:
                tick(number)
    return size, digest.hexdigest()


# --- records ------------------------------------------------------------------------------------------------------


def canonical(value: Any) -> bytes:
    """JSON in the one form that digests are made of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def record_bytes(content: dict[str, Any]) -> bytes:
    """A record as it stands on disk: one line of JSON with a checksum of its own.

    Raises:
        StoreError: when it is too large to be read again.
    """
    body = canonical(content)
    if len(body) > _LARGEST_RECORD - 64:
        raise StoreError(f"a record of {len(body):,} bytes is too large: store fewer sites in one store")
    return b'{"xxh3_128":"%s","record":%s}\n' % (xxhash.xxh3_128_hexdigest(body).encode(), body)


def read_record(path: Path) -> dict[str, Any]:
    """Read what `record_bytes` made.

    Raises:
        CorruptStoreError: when it is anything else, down to the last bit.
    """
    with os.fdopen(open_regular(path), "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if size > _LARGEST_RECORD:
            raise CorruptStoreError(f"{path} is damaged: {size:,} bytes are too many for a record")
        data = file.read()
    prefix, begin = b'{"xxh3_128":"', 13
    end = begin + 32
    body = data[end + 11 : -2]
    whole = data == prefix + data[begin:end] + b'","record":' + body + b"}\n"
    if not whole or xxhash.xxh3_128_hexdigest(body).encode() != data[begin:end]:
        raise CorruptStoreError(f"{path} is damaged: its checksum does not fit")
    try:
        content = json.loads(body)
        if canonical(content) != body:
            raise ValueError("it is not written as a record is")
    except (ValueError, RecursionError) as error:
        raise CorruptStoreError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise CorruptStoreError(f"{path} is damaged: it holds no record")
    return content


__all__ = [
    "Chunk",
    "canonical",
    "copy_new",
    "discard",
    "hash_of",
    "holds",
    "make_folder",
    "open_regular",
    "publish",
    "read_record",
    "record_bytes",
    "sync_folder",
    "write_new",
]
