"""Many workers: ranks that share out the shards among themselves, and actors on a Ray cluster.

Whoever works, the plan is the same, and every shard is committed once. The store has to lie where all of them can
write.
"""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from interp_toolkit.activations.attempts import attempt_in
from interp_toolkit.activations.ledger import Ledger
from interp_toolkit.activations.workers import Recipe, ShardWorker
from interp_toolkit.errors import InterpWarning, RunError, StoreError
from interp_toolkit.model.wiring import Wiring

# --- ranks --------------------------------------------------------------------------------------------------------

_TORCHRUN = ("RANK", "WORLD_SIZE")
_ARRAY = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT")
_SRUN = ("SLURM_PROCID", "SLURM_NTASKS")


def share_of_rank(shards: Sequence[int], environment: Mapping[str, str] | None = None) -> list[int]:
    """The shards that this process is to write: every n-th, as torchrun or Slurm count processes.

    Processes that torchrun starts in each task of a Slurm array are counted through the whole array.

    Args:
        shards: all of them.
        environment: variables; those of this process if none are given.

    Raises:
        RunError: when no variable says which process this is, or they contradict each other.

    Example:
        >>> share_of_rank(range(7), {"RANK": "1", "WORLD_SIZE": "3"})
        [1, 4]
    """
    known = os.environ if environment is None else environment
    levels = [names for names in (_ARRAY, _TORCHRUN) if known.keys() >= set(names)]
    if not levels and known.keys() >= set(_SRUN):
        levels = [_SRUN]
    if not levels:
        either = " or ".join(" and ".join(names) for names in (_TORCHRUN, _ARRAY, _SRUN))
        raise RunError(f"engine='rank' needs {either} in the environment, as torchrun and Slurm set them")
    rank, world = 0, 1
    for name, total in levels:
        inner, size = _number_of(known, name, total)
        rank, world = rank * size + inner, world * size
    return [shard for shard in shards if shard % world == rank]


def _number_of(known: Mapping[str, str], name: str, total: str) -> tuple[int, int]:
    """Which process this is, counted from 0, and of how many."""
    first, step = ("SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_STEP") if (name, total) == _ARRAY else ("", "")
    try:
        number, gap = divmod(int(known[name]) - int(known.get(first, "0")), int(known.get(step, "1")))
        size = int(known[total])
    except (ValueError, ZeroDivisionError) as error:
        raise RunError(f"{name} is {known[name]!r} and {total} is {known[total]!r}: both are numbers") from error
    if gap or not 0 <= number < size:
        raise RunError(f"{name} is {known[name]}, but {total} is {size}: number the tasks without gaps")
    return number, size


# --- Ray ----------------------------------------------------------------------------------------------------------

_AHEAD = 2
"""Shards that a worker has at once: one is computed, while the one before is written."""
_DEATHS = 5
"""Workers that may die of one shard."""
_PATIENCE = 120.0
"""Seconds without a worker after which a warning says so."""
_LAG = 90.0
"""Seconds until a network file system shows everywhere what was written."""


def run_on_ray(
    ledger: Ledger, wiring: Wiring, shards: Sequence[int], *, workers: int | None = None, progress: bool = True
) -> None:
    """Have the missing shards written by actors on a Ray cluster: the one that is connected, or one on this machine.

    In place of a worker that dies another one is started, wherever there is room, and its shards are given out again.

    Args:
        ledger: the store, at a path that every node sees.
        wiring: the model; workers load it from where it came from.
        shards: which to write.
        workers: how many; as many as the cluster has room for if it is not given. A worker takes a GPU for a model on
            one, and otherwise as many CPUs as torch has threads here.
        progress: show it.

    Raises:
        RunError: when workers cannot load the model, find no room, or die again and again.
        InterpError: what a worker raised.
        OSError: what a worker raised.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError('Ray is needed: pip install "interpretability-toolkit[distributed]"') from error
    from tqdm import tqdm

    missing = [shard for shard in shards if not ledger.is_committed(shard)]
    if not missing:
        return
    rows = {shard: len(ledger.plan_of(shard).shard(shard).rows) for shard in missing}
    began, tokens = time.perf_counter(), 0
    with attempt_in(ledger.path) as witness:
        recipe = Recipe.of(wiring, ledger, witness)
        with (
            _connected(ray),
            tqdm(
                total=sum(rows.values()), unit=" rows", unit_scale=True, disable=None if progress else True, leave=False
            ) as bar,
        ):

            def tick(shard: int, run: int) -> None:
                nonlocal tokens
                tokens += run
                bar.set_postfix_str(f"{tokens / (time.perf_counter() - began):,.0f} tokens/s", refresh=False)
                bar.update(rows[shard])

            resources, room = _room(ray, recipe)
            if (room if workers is None else workers) < 1:
                raise RunError(
                    f"{workers or 'no'} workers cannot work: the cluster has room for {room}, of {resources}"
                )
            actor = ray.remote(ShardWorker).options(max_concurrency=_AHEAD, **resources)
            size = min(room if workers is None else workers, len(missing))
            _Pool(lambda: actor.remote(recipe), size).run(missing, tick)
    _wait_until_seen(ledger, missing)


@contextmanager
def _connected(ray: Any) -> Iterator[None]:
    """Within a cluster: the caller's, or one that ends with the block."""
    if ray.is_initialized():
        yield
        return
    try:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        yield
    finally:
        ray.shutdown()


def _room(ray: Any, recipe: Recipe) -> tuple[dict[str, int], int]:
    """What a worker takes, and how many of them the cluster has room for."""
    kind, each = ("GPU", 1) if recipe.options["device"] == "cuda" else ("CPU", recipe.threads)
    there = [int(node["Resources"].get(kind, 0)) for node in ray.nodes() if node["Alive"]]
    each = max(1, min(each, max(there, default=0)))
    return {f"num_{kind.lower()}s": each}, sum(number // each for number in there)


def _wait_until_seen(ledger: Ledger, shards: Sequence[int]) -> None:
    """Wait until all commits are seen from here too."""
    until = time.monotonic() + _LAG
    while unseen := set(shards).difference(ledger.committed()):
        if time.monotonic() > until:
            raise StoreError(
                f"workers committed {len(shards):,} shards, but {len(unseen):,} of them are not seen at {ledger.path} "
                "from here: call again when the file system shows them"
            )
        time.sleep(0.5)


@dataclass(eq=False)
class _Worker:
    """An actor, and the shards that it has."""

    actor: Any
    loaded: bool = False
    shards: list[int] = field(default_factory=list)


class _Pool:
    """Gives out shards to workers that have their model, and starts new ones for those that die.

    Args:
        start: makes an actor.
        size: how many.
    """

    def __init__(self, start: Callable[[], Any], size: int) -> None:
        self._start = start
        self._size = size
        self._workers: list[_Worker] = []
        self._running: dict[Any, tuple[_Worker, int | None]] = {}
        self._deaths: Counter[int | None] = Counter()
        self._todo: deque[int] = deque()
        self._warned = False

    def run(self, shards: Sequence[int], tick: Callable[[int, int], object]) -> None:
        """Have shards written.

        Args:
            shards: which.
            tick: is told each one that is done, and how many tokens were run for it.
        """
        self._todo.extend(shards)
        try:
            for _ in range(self._size):
                self._add()
            while self._todo or any(worker.shards for worker in self._workers):
                self._give_out()
                self._take_in(tick)
        finally:
            self._end()

    def _add(self) -> None:
        worker = _Worker(self._start())
        self._workers.append(worker)
        self._running[worker.actor.load.remote()] = (worker, None)

    def _give_out(self) -> None:
        """Only to workers that are there: one that waits for room would keep its shards from the others."""
        while self._todo and (free := [worker for worker in self._workers if self._takes_more(worker)]):
            worker = min(free, key=lambda one: len(one.shards))
            if worker.shards and self._deaths[self._todo[0]]:
                return
            shard = self._todo.popleft()
            worker.shards.append(shard)
            self._running[worker.actor.write.remote(shard)] = (worker, shard)

    def _takes_more(self, worker: _Worker) -> bool:
        """A shard of which a worker may have died is alone with its next one: others are not to die with it."""
        alone = any(self._deaths[shard] for shard in worker.shards)
        return worker.loaded and len(worker.shards) < _AHEAD and not alone

    def _take_in(self, tick: Callable[[int, int], object]) -> None:
        """Wait for a worker to be ready with something."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        ready, _ = ray.wait(list(self._running), num_returns=1, timeout=_PATIENCE)
        if not ready:
            self._warn_of_waiting(ray.available_resources())
            return
        worker, shard = self._running.pop(ready[0])
        try:
            tokens = ray.get(ready[0])
        except RayTaskError as error:
            raise _cause(error) from error
        except RayError as error:
            self._replace(worker, error)
            return
        if shard is None:
            worker.loaded = True
            self._deaths.pop(None, None)
        else:
            worker.shards.remove(shard)
            tick(shard, tokens)

    def _replace(self, worker: _Worker, error: Exception) -> None:
        """Give back the shards of a worker that is gone, and start another one."""
        import ray

        ray.kill(worker.actor)
        self._workers.remove(worker)
        self._running = {ref: given for ref, given in self._running.items() if given[0] is not worker}
        self._todo.extend(worker.shards)  # behind the others, so that a shard that kills workers stops none of them
        lost: list[int | None] = [*worker.shards] or [None]
        self._deaths.update(lost)
        if self._deaths[None] > _DEATHS * self._size:
            raise RunError(
                f"workers die again and again while they load the model, the last one with: {error}"
            ) from error
        for shard in worker.shards:
            if self._deaths[shard] >= _DEATHS:
                raise RunError(
                    f"{_DEATHS} workers died while they had shard {shard}, the last one with: {error}\nMemory may be "
                    "short: a shorter context_length, or fewer workers on a node, need less"
                ) from error
        self._add()

    def _warn_of_waiting(self, available: Mapping[str, float]) -> None:
        if self._warned or any(worker.loaded for worker in self._workers):
            return
        self._warned = True
        free = ", ".join(f"{available.get(kind, 0):g} {kind}s" for kind in ("CPU", "GPU"))
        warnings.warn(
            f"no worker is ready for {_PATIENCE:g} s: they load the model, or wait for room in the cluster, where "
            f"{free} are free",
            InterpWarning,
            stacklevel=2,
        )

    def _end(self) -> None:
        """Kill the workers, and wait until none of them writes any more."""
        import ray

        for worker in self._workers:
            ray.kill(worker.actor)
        if self._running:
            ray.wait(list(self._running), num_returns=len(self._running), timeout=10)


def _cause(error: Any) -> Exception:
    """What a worker raised, as it raised it."""
    cause = error.cause
    return cause if isinstance(cause, Exception) else RunError(f"a worker failed: {error}")


__all__ = ["run_on_ray", "share_of_rank"]
