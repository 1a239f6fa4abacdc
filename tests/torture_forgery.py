"""Stores that were changed on purpose, behind checksums that fit: reading them may succeed, but never goes astray."""

from __future__ import annotations

import json
import random
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from interp_toolkit.activations.configuration import Configuration
from interp_toolkit.activations.disk import read_record, record_bytes
from interp_toolkit.activations.files import map_arrays
from interp_toolkit.activations.planning import PlanFacts
from interp_toolkit.errors import StoreError
from torture_damage import SLOW, Stores, counted
from torture_tools import Figures, contents, in_children

MEMORY = 256
"""Megabytes that reading a damaged store may take beyond what the process had."""


def any_json(rng: random.Random, depth: int = 3) -> Any:
    """Some JSON, with a liking for what is awkward."""
    plain: list[Any] = [None, True, False, 0, 1, -1, 3, 2**31, 2**63, -(2**63), 10**30, 10**400, 0.5, -0.0, 1e308]
    plain += [float("nan"), float("inf"), "", "x", "\0", "\ud800", "../..", "/etc/passwd", "é" * 40, "9" * 5000]
    plain += ["resid_post.0", "L0H1", "resid_post.-1", "٣", "0" * 16, "f" * 32, "float32", "sample:0.5:3", "all"]
    if depth == 0 or rng.random() < 0.6:
        return rng.choice(plain)
    if rng.random() < 0.5:
        return [any_json(rng, depth - 1) for _ in range(rng.randrange(4))]
    return {str(rng.choice(plain)): any_json(rng, depth - 1) for _ in range(rng.randrange(4))}


def changed(value: Any, rng: random.Random) -> Any:
    """A value with something in it replaced, removed, repeated, or a little different."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(sorted(value))
        if rng.random() < 0.1:
            return {k: v for k, v in value.items() if k != key}
        return value | {key: changed(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.9:
        at = rng.randrange(len(value))
        if rng.random() < 0.2:
            return rng.choice([value[:at], value[at:], value + value[at:], value[::-1], value * 40])
        return [*value[:at], changed(value[at], rng), *value[at + 1 :]]
    if type(value) is int and rng.random() < 0.5:
        return value + rng.choice([-1, 1, 64, -value, -2 * value, 2**31, 2**62])
    return any_json(rng)


def stamped(content: Any) -> bytes:
    """A record with a fitting checksum, whatever is in it."""
    try:
        return record_bytes(content)
    except ValueError:  # what JSON proper does not have
        body = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
        return b'{"xxh3_128":"%s","record":%s}\n' % (xxhash.xxh3_128_hexdigest(body).encode(), body)


def _restamp(path: Path, old: str, new: str) -> None:
    """Replace a digest in all records."""
    for record in path.rglob("*.json"):
        content = json.loads(record.read_bytes())["record"]
        record.write_bytes(stamped(_replaced(content, old, new)))


def _replaced(value: Any, old: str, new: str) -> Any:
    if isinstance(value, dict):
        return {key: _replaced(entry, old, new) for key, entry in value.items()}
    if isinstance(value, list):
        return [_replaced(entry, old, new) for entry in value]
    return new if value == old else value


def forge_record(path: Path, rng: random.Random) -> str:
    """Change what a record says, and make its checksum fit."""
    record = rng.choice(sorted(path.rglob("*.json")))
    content = read_record(record)
    record.write_bytes(stamped(changed(content, rng)))
    return record.relative_to(path).as_posix()


def forge_configuration(path: Path, rng: random.Random) -> str:
    """Change what the store is a store of, and make its fingerprint fit everywhere."""
    content = read_record(path / "store.json")
    old = content["fingerprint"]
    content["configuration"] = changed(content["configuration"], rng)
    try:
        content["fingerprint"] = Configuration.from_json(content["configuration"]).fingerprint
    except Exception:  # noqa: BLE001 - reading it will say so
        content["fingerprint"] = old
    (path / "store.json").write_bytes(stamped(content))
    _restamp(path, old, content["fingerprint"])
    return "the configuration"


def forge_plan(path: Path, rng: random.Random) -> str:
    """Change numbers in a plan, and make its size and digest fit everywhere."""
    record = rng.choice(sorted((path / "plan").glob("*.json")))
    facts = PlanFacts.from_json(read_record(record)["plan"])
    file = path / f"plan/{facts.attempt}.safetensors"
    arrays = {name: np.array(x) for name, x in map_arrays(file, facts.arrays).items()}
    name = rng.choice(sorted(name for name, x in arrays.items() if len(x)))
    array = arrays[name]
    top = int(np.iinfo(array.dtype).max)
    for _ in range(rng.choice([1, 1, 3])):
        at = rng.randrange(len(array))
        array[at] = rng.choice([0, 1, top, int(array[at]) // 2, min(int(array[at]) + 1, top), rng.randrange(300) % top])
    head = file.read_bytes()[: file.stat().st_size - sum(x.nbytes for x in arrays.values())]
    data = head + b"".join(x.tobytes() for x in arrays.values())
    file.write_bytes(data)
    _restamp(path, facts.digest, xxhash.xxh3_128_hexdigest(data))
    return f"{name} of a plan"


def forge_head(path: Path, rng: random.Random) -> str:
    """Change the head of a file of data, and make its checksum fit."""
    file = rng.choice(sorted((path / "data").rglob("*.safetensors")))
    data = bytearray(file.read_bytes())
    old = xxhash.xxh3_128_hexdigest(bytes(data))
    for _ in range(rng.randrange(1, 4)):
        at = rng.choice([rng.randrange(8), rng.randrange(120)])
        data[at] = rng.randrange(256)
    if rng.random() < 0.3:
        data[:8] = rng.choice([0, 1, 2**63, 2**64 - 1, 10**9]).to_bytes(8, "little")
    file.write_bytes(data)
    _restamp(path, old, xxhash.xxh3_128_hexdigest(bytes(data)))
    return file.relative_to(path).as_posix()


def raw_record(path: Path, rng: random.Random) -> str:
    """Put anything in the place of a record: noise, other JSON, deep JSON, large JSON."""
    record = rng.choice(sorted(path.rglob("*.json")))
    deep = rng.choice([500, 5000, 200_000])
    body = rng.choice(
        [
            rng.randbytes(rng.randrange(2000)),
            str(rng.randrange(10**9)).encode(),
            b"[" * deep + b"]" * deep,
            b'{"a":' * deep + b"1" + b"}" * deep,
            b"[" + b"[]," * 300_000 + b"[]]",
            b"1" * 100_000,
            b'"' + b"\\ud800" * 10_000 + b'"',
            b'{"format":NaN}',
        ]
    )
    whole = b'{"xxh3_128":"%s","record":%s}\n' % (xxhash.xxh3_128_hexdigest(body).encode(), body)
    record.write_bytes(rng.choice([body, whole, whole]))
    return record.relative_to(path).as_posix()


FORGERIES = (forge_record, forge_record, forge_configuration, forge_plan, forge_head, raw_record)


def fuzz(folder: Path, count: int, seed: int) -> Figures:
    """Forge a store, so many times; reading it raises a StoreError or gives something, soon and in little memory."""
    stores = Stores.make(folder)

    def trial(n: int) -> str:
        rng = random.Random(f"{seed} {n}")
        path = stores.copy()
        forge = rng.choice(FORGERIES)
        what = f"<{forge.__name__} {forge(path, rng)}, trial {n}>"
        before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        outcome = _read(path)
        seconds = time.perf_counter() - began
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
        if seconds > SLOW:
            outcome = f"slow ones: {seconds:.1f} s"
        if grown > MEMORY:
            outcome = f"large ones: {grown} MB"
        return f"{outcome} {what}"

    return counted("forgeries", in_children(trial, count))


def _read(path: Path) -> str:
    try:
        contents(path)
    except StoreError:
        return "detected"
    except Exception as error:  # noqa: BLE001 - what is counted here
        return f"wrong errors: {type(error).__name__} {str(error)[:200]}"
    return "read"
