"""An extraction that is planned: what it takes, and doing it."""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from interp_toolkit.activations.attempts import collect
from interp_toolkit.activations.computing import Computer
from interp_toolkit.activations.configuration import Configuration
from interp_toolkit.activations.corpus import Documents, Reading
from interp_toolkit.activations.ledger import Ledger
from interp_toolkit.activations.planning import Plan
from interp_toolkit.activations.spooling import make_plan
from interp_toolkit.activations.store import ActivationStore
from interp_toolkit.activations.writing import Writer, add_copy
from interp_toolkit.errors import StoreError
from interp_toolkit.model.wiring import Wiring

Engine = Literal["local", "rank", "ray"]


class Extraction:
    """An extraction that was prepared: `explain()` says what it takes, `run()` does it."""

    def __init__(
        self,
        wiring: Wiring,
        configuration: Configuration,
        path: Path,
        source: Documents,
        reading: Reading,
        *,
        append: bool,
    ) -> None:
        self.wiring = wiring
        self.configuration = configuration
        self.path = path
        self.append = append
        self._folder = Path(tempfile.mkdtemp(prefix="interp-toolkit-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._ledger = Ledger(path) if (path / "store.json").exists() else None
        self.plan = self._make_plan(source, reading)

    def _make_plan(self, source: Documents, reading: Reading) -> Plan:
        """The plan of the documents, as one of the store's if it is there already."""
        plans = [] if self._ledger is None else self._ledger.plans
        new = self._ledger.next_numbers if self._ledger is not None else (0, 0, 0, 0)
        plan = make_plan(
            source,
            reading,
            self.configuration,
            folder=self._folder,
            attempt=os.urandom(8).hex(),
            first=new,
        )
        for known in plans:
            if known.facts.digest == plan.facts.digest:
                return known
        if plans and not self.append:
            count = plan.facts.count
            raise StoreError(
                f"{self.path} is a store of other documents, and stays as it is: {self._ledger_count()} there, "
                f"{count[3]:,} documents with {count[4]:,} tokens here. Choose another path, or append=True to add them"
            )
        return plan

    def _ledger_count(self) -> str:
        counts = [plan.facts.count for plan in (self._ledger.plans if self._ledger is not None else [])]
        return " and ".join(f"{count[3]:,} documents with {count[4]:,} tokens" for count in counts)

    # --- what it takes ---------------------------------------------------------------------------------------

    @property
    def missing(self) -> list[int]:
        """Shards that are not written yet."""
        if self._ledger is None or self.plan not in self._ledger.plans:
            return list(self.plan.shards)
        return [shard for shard in self.plan.shards if not self._ledger.is_committed(shard)]

    @property
    def nbytes(self) -> int:
        """Bytes that are still to be written."""
        missing = self.missing
        rows = sum(len(self.plan.shard(shard).rows) for shard in missing)
        planned = self.plan.facts.size if self._ledger is None or self.plan not in self._ledger.plans else 0
        each = 4096 + 256 * len(self.configuration.sites)
        return rows * (self.configuration.row_bytes + 24) + len(missing) * each + planned

    def seconds(self, batches: int = 3) -> float:
        """About how long the rest takes on this machine, from a few batches."""
        computer = Computer(self.wiring, self.configuration)
        missing = self.missing
        if not missing:
            return 0.0
        half = len(missing) // 2
        found = (self.plan.work(shard) for shard in missing[half:] + missing[:half])
        work = next((work for work in found if len(work.shard.rows)), None)
        if work is None:
            return 0.0
        few = list(work.batches(self.configuration.batch_tokens, padded=self.configuration.padded))
        few = few[:: max(1, len(few) // batches)][:batches]
        rates = [computer.rate(work, sequences) for sequences in [few[0], *few]][1:]
        tokens = (
            sum(int(self.plan.work(shard).reach.sum()) for shard in missing[:50]) * len(missing) / len(missing[:50])
        )
        return float(tokens / statistics.median(rates))

    def explain(self) -> str:
        """What will be stored, how large it gets, and about how long it takes."""
        conf, count = self.configuration, self.plan.facts.count
        shards, sequences, rows, documents, tokens = count
        missing = len(self.missing)
        each = [f"  {stored.site} {list(stored.shape)}" for stored in conf.sites]
        if len(each) > 8:
            each = [*each[:4], f"  ... {len(each) - 5} more", each[-1]]
        lines = [
            f"documents: {documents:,}, {tokens:,} tokens in {sequences:,} sequences of up to {conf.context_length:,}",
            f"rows: {rows:,} ({conf.positions}), each {_size(conf.row_bytes)} in {conf.dtype}:",
            *each,
            f"shards: {shards:,}" + (f", {shards - missing:,} of them written already" if missing < shards else ""),
            f"to write: {_size(self.nbytes)}, and {_size(_free(self.path))} are free",
        ]
        if not conf.padded:
            lines.append("only sequences of one length share a pass: this model gives other numbers when filled up")
        lines.append(f"time: about {_duration(self.seconds())} with one worker like this one")
        return "\n".join(lines)

    # --- doing it --------------------------------------------------------------------------------------------

    def run(self, *, engine: Engine = "local", workers: int | None = None, progress: bool = True) -> ActivationStore:
        """Do what is missing; see `extract`."""
        if engine not in ("local", "rank", "ray"):
            raise StoreError(f"the engine is 'local', 'rank' or 'ray', not {engine!r}")
        needed, free = self.nbytes, _free(self.path)
        if needed > free:
            raise StoreError(
                f"the store would take {_size(needed)}, but only {_size(free)} are free at {self.path}: choose another "
                "disk, fewer sites, positions='sample:0.1' or dtype='bfloat16'"
            )
        ledger = self._published()
        match engine:
            case "local":
                work_off(ledger, self.wiring, self.configuration, self.plan.shards, progress=progress)
            case "rank":
                from interp_toolkit.activations.engines import share_of_rank

                shards = share_of_rank(self.plan.shards)
                work_off(ledger, self.wiring, self.configuration, shards, progress=progress)
            case "ray":
                from interp_toolkit.activations.engines import run_on_ray

                run_on_ray(ledger, self.wiring, self.plan.shards, workers=workers, progress=progress)
        if ledger.seal() is not None:
            collect(ledger)
        return ActivationStore(ledger.path)

    def _published(self) -> Ledger:
        """The store with the plan in it."""
        ledger = Ledger.create(self.path, self.configuration)
        collect(ledger)
        while self.plan.facts.digest not in {plan.facts.digest for plan in ledger.plans}:
            if ledger.next_numbers != self.plan.facts.first:
                raise StoreError(f"someone else added documents to {self.path} meanwhile: prepare the extraction again")
            add_copy(ledger, self.plan)
        self._ledger = ledger
        self.plan = next(plan for plan in ledger.plans if plan.facts.digest == self.plan.facts.digest)
        return ledger


def work_off(
    ledger: Ledger, wiring: Wiring, configuration: Configuration, shards: Iterable[int], *, progress: bool = True
) -> int:
    """Compute and commit those of some shards that nobody has written yet.

    Returns:
        How many were ours.
    """
    from tqdm import tqdm

    computer = Computer(wiring, configuration)
    shards = list(shards)
    missing = [shard for shard in shards if not ledger.is_committed(shard)]
    total = sum(len(ledger.plan_of(shard).shard(shard).rows) for shard in missing)
    began = time.perf_counter()
    with (
        tqdm(total=total, unit=" rows", unit_scale=True, disable=None if progress else True, leave=False) as bar,
        Writer(ledger) as writer,
    ):

        def tick(rows: int) -> None:
            rate = computer.tokens / (time.perf_counter() - began)
            bar.set_postfix_str(f"{rate:,.0f} tokens/s, {_size(writer.nbytes)} written", refresh=False)
            bar.update(rows)

        for shard in missing:
            if ledger.is_committed(shard):
                bar.update(len(ledger.plan_of(shard).shard(shard).rows))
                continue
            work = ledger.plan_of(shard).work(shard)
            writer.put(work.shard, computer.compute(work, tick), computer.environment)
    return writer.shards


def _free(path: Path) -> int:
    """Free bytes where a path is or would be."""
    for folder in (path.absolute(), *path.absolute().parents):
        if folder.exists():
            return shutil.disk_usage(folder).free
    raise StoreError(f"{path} cannot be: there is no folder above it")


def _size(number: int) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= factor:
            return f"{number / factor:.1f} {unit}"
    return f"{number} bytes"


def _duration(seconds: float) -> str:
    for unit, factor in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * factor:
            return f"{seconds / factor:.1f} {unit}"
    return f"{seconds:.0f} s"


__all__ = ["Engine", "Extraction", "work_off"]
