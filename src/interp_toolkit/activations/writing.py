"""Writing into a store: a copy of a plan, and shards beside computing.

Shards wait in a queue that blocks when it is full and never drops anything.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from interp_toolkit.activations.attempts import attempt_in, begin_attempt, end_attempt
from interp_toolkit.activations.disk import Chunk, copy_new, discard
from interp_toolkit.activations.ledger import Ledger
from interp_toolkit.activations.planning import Plan, Shard

_WAITING = 2
"""One shard is written and one waits, while another is computed: three are in memory."""


def add_copy(ledger: Ledger, plan: Plan) -> None:
    """Copy a plan behind those of a store; nothing of it is left if someone else added one meanwhile."""
    with attempt_in(ledger.path) as attempt:
        facts = replace(plan.facts, attempt=attempt, first=ledger.next_numbers)
        copy = Plan(facts, ledger.path / f"plan/{attempt}.safetensors")
        copy_new(plan.path, copy.path)
        if not ledger.add_plan(copy):
            discard(copy.path)


class Writer:
    """Commits shards in a thread of its own, in the order in which they come.

    What goes wrong there is raised by the next `put`, or on leaving. What was computed before is written first,
    also when an error or an interruption leads out of the block.

    Args:
        ledger: the store.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.shards = 0
        self.nbytes = 0
        self._pending: deque[Future[None]] = deque()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store-writer")

    def __enter__(self) -> Writer:
        """Be ready to write."""
        self._attempt = begin_attempt(self.ledger.path)
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Wait until everything is written."""
        # If this wait is broken off, the attempt stays: the thread still writes, and what it leaves is to be removed.
        self._thread.shutdown(wait=True)
        end_attempt(self.ledger.path, self._attempt)
        errors = [error for future in self._pending if (error := future.exception()) is not None]
        if kind is None and errors:
            raise errors[0]

    def put(self, shard: Shard, parts: Sequence[Sequence[Chunk]], environment: dict[str, Any]) -> None:
        """Hand over a shard; waits while the queue is full.

        Raises:
            OSError: as the file system had it with an earlier one.
        """
        self._pending.append(self._thread.submit(self._write, shard, parts, environment))
        while len(self._pending) > _WAITING or (self._pending and self._pending[0].done()):
            self._pending.popleft().result()

    def _write(self, shard: Shard, parts: Sequence[Sequence[Chunk]], environment: dict[str, Any]) -> None:
        self.shards += self.ledger.write(shard, parts, self._attempt, environment)
        self.nbytes += sum(memoryview(chunk).nbytes for chunks in parts for chunk in chunks)


__all__ = ["Writer", "add_copy"]
