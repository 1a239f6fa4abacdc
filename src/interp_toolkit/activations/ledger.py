"""The records of a store: what it holds, how it was planned, and which shards are written.

```
store.json                       what it is a store of; written once
plan/0000.json                   created only if absent: name, size and xxh3-128 of the file with the plan
plan/<attempt>.safetensors
data/tokens/00000042-<attempt>.safetensors
data/s000/00000042-<attempt>.safetensors     one folder for each site
commits/00000042.json            created only if absent: size, xxh3-128, shape and type of each file of the shard
seals/0000.json                  rows and digest of everything up to this plan
attempts/<attempt>.json          who writes files of this name, so that what a dead one left can be removed
```

A file counts if a record names it; folders of data are never listed by readers. Names are made of integers and of
random hexadecimal digits only; whatever a user named stands inside of records.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp_toolkit.activations.configuration import FORMAT, Configuration
from interp_toolkit.activations.disk import (
    Chunk,
    canonical,
    discard,
    holds,
    make_folder,
    publish,
    read_record,
    record_bytes,
    sync_folder,
    write_new,
)
from interp_toolkit.activations.files import Array, header_of, size_of
from interp_toolkit.activations.planning import Plan, PlanFacts, Shard
from interp_toolkit.errors import CorruptStoreError, StoreError

TOKEN_ARRAYS = (("input_ids", "int32"), ("position", "int32"), ("sequence", "int64"), ("document", "int64"))
_FOLDERS = ("plan", "commits", "seals", "attempts", "data/tokens")


@dataclass(frozen=True, kw_only=True)
class Commit:
    """What is said of a shard that is written.

    Attributes:
        shard: its number.
        attempt: part of the names of its files.
        digests: xxh3-128 of its files: tokens first, then each site.
        environment: versions, device and number of threads of who made it.
        content: the whole record.
    """

    shard: int
    attempt: str
    digests: tuple[str, ...]
    environment: dict[str, Any]
    content: dict[str, Any]


class Ledger:
    """The records of a store in a folder.

    Args:
        path: the folder.

    Raises:
        StoreError: when there is no store.
        CorruptStoreError: when its records are damaged, or do not belong together.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / "store.json").is_file():
            what = "no store, but something else" if self.path.exists() else "nothing"
            raise StoreError(f"there is {what} at {self.path}: a store is a folder that holds store.json")
        for name in (*_FOLDERS, "data"):
            self._refuse_link(name)
        facts = read_record(self.path / "store.json")
        if facts.get("format") != FORMAT:
            raise StoreError(f"{self.path} is a store of the form {facts.get('format')!r}, not {FORMAT!r}")
        self.configuration = Configuration.from_json(_dict(facts.get("configuration"), "configuration"))
        self.fingerprint = self.configuration.fingerprint
        if facts.get("fingerprint") != self.fingerprint:
            raise CorruptStoreError(f"{self.path}: store.json does not fit its own fingerprint")
        for n in range(len(self.configuration.sites)):
            self._refuse_link(f"data/s{n:03d}")
        self.plans: list[Plan] = []
        self.refresh()

    def _refuse_link(self, name: str) -> None:
        if (self.path / name).is_symlink():
            raise CorruptStoreError(f"{self.path / name} is a link, and a store holds none")

    @classmethod
    def create(cls, path: str | Path, configuration: Configuration) -> Ledger:
        """Make a store, or open the one that is there if it is a store of the same.

        Raises:
            StoreError: when something else is there; the message says what differs.
        """
        folder = Path(path)
        cls.refuse_foreign(folder)
        for name in _FOLDERS:
            make_folder(folder / name)
        for n in range(len(configuration.sites)):
            make_folder(folder / f"data/s{n:03d}")
        facts = {
            "format": FORMAT,
            "fingerprint": configuration.fingerprint,
            "configuration": configuration.to_json(),
        }
        publish(folder / "store.json", record_bytes(facts))
        ledger = cls(folder)
        ledger.expect(configuration)
        return ledger

    @staticmethod
    def refuse_foreign(folder: Path) -> None:
        """Check that a store is at a path, or can be made there.

        Raises:
            StoreError: when something else is there.
        """
        if not folder.exists() or (folder / "store.json").exists():
            return
        # Begun by one that was killed before it wrote store.json, or that writes it right now
        begun = {"store.json", *(name.split("/")[0] for name in _FOLDERS)}
        if not folder.is_dir() or any(
            child.name not in begun and not child.name.startswith(".store.json.") for child in folder.iterdir()
        ):
            raise StoreError(f"{folder} holds something else: choose a path that is free")

    def expect(self, configuration: Configuration) -> None:
        """Check that this is the store of another configuration.

        Raises:
            StoreError: when it is not; the message says what differs.
        """
        if configuration.fingerprint != self.fingerprint:
            raise StoreError(
                f"{self.path} is a store of something else, and stays as it is: "
                f"{'; '.join(configuration.differences(self.configuration))}. Choose another path"
            )

    # --- plans -----------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Look for plans that were added."""
        while (record := self.path / f"plan/{len(self.plans):04d}.json").exists():
            facts = read_record(record)
            if facts.get("store") != self.fingerprint:
                raise CorruptStoreError(f"{record} belongs to another store")
            plan = PlanFacts.from_json(_dict(facts.get("plan"), "plan"))
            if plan.first != self.next_numbers:
                raise CorruptStoreError(f"{record} does not continue the plan before it")
            file = self.path / f"plan/{_attempt(plan.attempt)}.safetensors"
            self.plans.append(Plan(plan, file))

    @property
    def next_numbers(self) -> tuple[int, int, int, int]:
        """Numbers of the first shard, sequence, row and document of a plan that would be added."""
        if not self.plans:
            return (0, 0, 0, 0)
        last = self.plans[-1].facts
        a, b, c, d = (begin + count for begin, count in zip(last.first, last.count[:4], strict=True))
        return (a, b, c, d)

    def add_plan(self, plan: Plan) -> bool:
        """Publish a plan behind those that are there; False if someone else added one.

        Raises:
            OSError: as the file system has it; the file of the plan is gone then, if no record names it.
        """
        record = record_bytes({"store": self.fingerprint, "plan": plan.facts.to_json()})
        path = self.path / f"plan/{len(self.plans):04d}.json"
        try:
            sync_folder(self.path / "plan")
            added = publish(path, record)
        except BaseException:
            if not holds(path, record):
                discard(plan.path)
            raise
        self.refresh()
        return added

    def plan_of(self, shard: int) -> Plan:
        """The plan that has a shard."""
        for plan in self.plans:
            if shard in plan.shards:
                return plan
        raise StoreError(f"there is no shard {shard}: there are {self.num_shards}")

    @property
    def num_shards(self) -> int:
        """How many shards all plans have."""
        return self.next_numbers[0]

    @property
    def num_rows(self) -> int:
        """How many rows all plans have."""
        return self.next_numbers[2]

    # --- files -----------------------------------------------------------------------------------------------

    def arrays(self, rows: int) -> list[list[Array]]:
        """What the files of a shard of so many rows hold: tokens first, then each site."""
        return [self.arrays_of(which, rows) for which in range(len(self.configuration.sites) + 1)]

    def arrays_of(self, which: int, rows: int) -> list[Array]:
        """What one file of a shard of so many rows holds: 0 its tokens, then its sites."""
        if which == 0:
            return [Array(name, dtype, (rows,)) for name, dtype in TOKEN_ARRAYS]
        conf = self.configuration
        return [Array("x", conf.dtype, (rows, *conf.sites[which - 1].shape))]

    def file(self, shard: int, attempt: str, which: int) -> Path:
        """A file of a shard: 0 for its tokens, then its sites."""
        folder = "tokens" if which == 0 else f"s{which - 1:03d}"
        return self.path / f"data/{folder}/{shard:08d}-{attempt}.safetensors"

    # --- commits ---------------------------------------------------------------------------------------------

    def _record(self, shard: int) -> Path:
        return self.path / f"commits/{shard:08d}.json"

    def is_committed(self, shard: int) -> bool:
        """Whether a shard is written."""
        return self._record(shard).exists()

    def committed(self) -> list[int]:
        """The shards that are written."""
        return [shard for shard in self._numbers("commits") if shard < self.num_shards]

    def _numbers(self, folder: str) -> list[int]:
        """The numbers of the records in a folder."""
        try:
            names = [path.name for path in (self.path / folder).iterdir()]
        except OSError as error:
            raise CorruptStoreError(f"{self.path / folder} cannot be read: {error.strerror}") from error
        digits = "{8}" if folder == "commits" else "{4,}"
        found = (re.fullmatch(rf"([0-9]{digits})\.json", name) for name in names)
        return sorted(int(match[1]) for match in found if match)

    def commit(self, shard: int) -> Commit:
        """Read what is said of a shard.

        Raises:
            CorruptStoreError: when it is damaged, or says something that the plan does not.
        """
        path = self._record(shard)
        content = read_record(path)
        plan = self.plan_of(shard)
        part = plan.shard(shard)
        try:
            attempt = _attempt(content["attempt"])
            digests = tuple(_hex(file["xxh3_128"], 32) for file in content["files"])
            environment = _dict(content["environment"], "environment")
        except (KeyError, TypeError) as error:
            raise CorruptStoreError(f"{path} is damaged: {error!r}") from error
        if content != self._content(part, attempt, digests, environment):
            raise CorruptStoreError(f"{path} belongs to another store, plan or shard")
        return Commit(shard=shard, attempt=attempt, digests=digests, environment=environment, content=content)

    def _content(
        self, shard: Shard, attempt: str, digests: Sequence[str], environment: dict[str, Any]
    ) -> dict[str, Any]:
        files = self.arrays(len(shard.rows))
        if len(files) != len(digests):
            raise CorruptStoreError(f"shard {shard.number} has {len(digests)} files, but {len(files)} belong to it")
        return {
            "store": self.fingerprint,
            "plan": self.plan_of(shard.number).facts.digest,
            "shard": shard.number,
            "rows": [shard.rows.start, shard.rows.stop],
            "documents": [shard.documents.start, shard.documents.stop],
            "attempt": attempt,
            "files": [
                {
                    "name": str(self.file(shard.number, attempt, n).relative_to(self.path).as_posix()),
                    "bytes": size_of(arrays),
                    "xxh3_128": digest,
                    "arrays": [[a.name, a.dtype, list(a.shape)] for a in arrays],
                }
                for n, (arrays, digest) in enumerate(zip(files, digests, strict=True))
            ],
            "environment": environment,
        }

    def write(self, shard: Shard, parts: Sequence[Sequence[Chunk]], attempt: str, environment: dict[str, Any]) -> bool:
        """Write a shard and commit it.

        Args:
            shard: which one.
            parts: the data of its files, tokens first, then each site; each a list of arrays.
            attempt: whose files these are.
            environment: what is to be known of how they were made.

        Returns:
            Whether it is ours; False if someone else was first, and then nothing of ours is left.

        Raises:
            OSError: as the file system has it; nothing of ours is left then.
        """
        paths = [self.file(shard.number, attempt, n) for n in range(len(parts))]
        arrays = self.arrays(len(shard.rows))
        record, ours = b"", False
        try:
            digests = []
            for path, chunks, kind in zip(paths, parts, arrays, strict=True):
                size, digest = write_new(path, [header_of(kind), *chunks])
                if size != size_of(kind):
                    raise StoreError(f"{path} would have {size:,} bytes, but {size_of(kind):,} belong into it")
                digests.append(digest)
            for path in paths:
                sync_folder(path.parent)
            record = record_bytes(self._content(shard, attempt, digests, environment))
            ours = publish(self._record(shard.number), record)
        finally:
            # Publishing may have failed half-way, when the record was there already
            if not ours and not (record and holds(self._record(shard.number), record)):
                for path in paths:
                    discard(path)
        return ours

    # --- seals -----------------------------------------------------------------------------------------------

    def digest(self, plans: int) -> str:
        """The sha256 over all that the first plans hold: equal for stores that hold the same, whoever wrote them."""
        content = hashlib.sha256(canonical([self.fingerprint, [p.facts.digest for p in self.plans[:plans]]]))
        for plan in self.plans[:plans]:
            for shard in plan.shards:
                content.update(canonical([shard, list(self.commit(shard).digests)]))
        return content.hexdigest()

    def seal(self) -> str | None:
        """Close what is complete.

        Returns:
            The digest of the store; None while shards are missing.
        """
        done = set(self.committed())
        for number, plan in enumerate(self.plans):
            path = self._seal(number)
            if not path.exists():
                if not done.issuperset(plan.shards):
                    return None
                for name in ("plan", "commits"):  # who wrote them may have died before they were durable
                    sync_folder(self.path / name)
                publish(path, record_bytes(self._seal_content(number)))
        return self.sealed_digest()

    def _seal(self, number: int) -> Path:
        return self.path / f"seals/{number:04d}.json"

    def _seal_content(self, number: int) -> dict[str, Any]:
        plan = self.plans[number]
        return {
            "store": self.fingerprint,
            "plans": number + 1,
            "shards": plan.shards.stop,
            "rows": plan.rows.stop,
            "documents": plan.documents.stop,
            "digest": self.digest(number + 1),
        }

    def sealed_digest(self) -> str | None:
        """The digest as the last seal has it; None if the last plan is not sealed."""
        if not self.plans or not self._seal(len(self.plans) - 1).exists():
            return None
        content = read_record(self._seal(len(self.plans) - 1))
        plan = self.plans[-1]
        expected = {"store": self.fingerprint, "shards": plan.shards.stop, "rows": plan.rows.stop}
        if any(content.get(name) != value for name, value in expected.items()):
            raise CorruptStoreError(f"{self._seal(len(self.plans) - 1)} belongs to another store")
        return _hex(content.get("digest"), 64)

    def check_numbers(self) -> list[int]:
        """Look for records that no plan speaks of.

        Returns:
            The numbers of the seals.

        Raises:
            CorruptStoreError: when there are some, as where the record of a plan is missing.
        """
        plans, shards, seals = (self._numbers(folder) for folder in ("plan", "commits", "seals"))
        self.refresh()  # what was there before has its plan by now
        for what, numbers, end in (
            ("plan", plans, len(self.plans)),
            ("commits", shards, self.num_shards),
            ("seals", seals, len(self.plans)),
        ):
            if numbers and numbers[-1] >= end:
                raise CorruptStoreError(
                    f"{self.path / what} has a record with the number {numbers[-1]}, but there are {end} by the plans "
                    "that are there: the record of a plan is missing, or this one does not belong here"
                )
        return seals

    def check_seals(self) -> None:
        """Make every seal anew and compare.

        Raises:
            CorruptStoreError: when one says something else.
        """
        for number in self.check_numbers():
            if read_record(self._seal(number)) != self._seal_content(number):
                raise CorruptStoreError(f"{self._seal(number)} does not fit what the store holds")


def _attempt(value: Any) -> str:
    return _hex(value, 16)


def _hex(value: Any, length: int) -> str:
    if not isinstance(value, str) or re.fullmatch(f"[0-9a-f]{{{length}}}", value) is None:
        raise CorruptStoreError(f"{str(value)[:40]!r} is no number of {length} hexadecimal digits")
    return value


def _dict(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise CorruptStoreError(f"the {name} of a record is missing")
    return value


__all__ = ["TOKEN_ARRAYS", "Commit", "Ledger"]
