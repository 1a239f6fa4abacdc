"""Many workers: ranks that share out the shards among themselves, and actors on a Ray cluster.

Whoever works, the plan is the same, and every shard is committed once. The store has to lie where all of them can
write.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from interp_toolkit.activations.attempts import begin_attempt, end_attempt
from interp_toolkit.activations.computing import Computer
from interp_toolkit.activations.configuration import weights_fingerprint
from interp_toolkit.activations.ledger import Ledger
from interp_toolkit.errors import InterpError, ModelLoadError, RunError, StoreError
from interp_toolkit.model.demo import load_model
from interp_toolkit.model.verify import verified
from interp_toolkit.model.wiring import Wiring

_RANKS = (
    ("RANK", "WORLD_SIZE"),
    ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"),
    ("SLURM_PROCID", "SLURM_NTASKS"),
)


def share_of_rank(shards: Sequence[int], environment: Mapping[str, str] | None = None) -> list[int]:
    """The shards that this process is to write: every n-th, as torchrun or Slurm count processes.

    Raises:
        RunError: when no variable says which process this is.

    Example:
        >>> share_of_rank(range(7), {"RANK": "1", "WORLD_SIZE": "3"})
        [1, 4]
    """
    known = os.environ if environment is None else environment
    for name, total in _RANKS:
        if name not in known or total not in known:
            continue
        first = int(known.get("SLURM_ARRAY_TASK_MIN", "0")) if name == "SLURM_ARRAY_TASK_ID" else 0
        rank, world = int(known[name]) - first, int(known[total])
        if not 0 <= rank < world:
            raise RunError(f"{name} is {known[name]}, but {total} is {known[total]}: number the tasks without gaps")
        return [shard for shard in shards if shard % world == rank]
    names = " or ".join(f"{name} and {total}" for name, total in _RANKS)
    raise RunError(f"engine='rank' needs {names} in the environment, as torchrun and Slurm set them")


# --- Ray ----------------------------------------------------------------------------------------------------------


class ShardWorker:
    """A worker with a model of its own, which computes shards and commits them.

    Args:
        path: the store.
        model: where to load the model from.
        dtype: its precision.
        weights: the fingerprint that its weights have to have.
        device: where it runs.
        threads: with how many threads, as they decide the last bits.
    """

    def __init__(self, path: str, model: str, dtype: str, weights: str, device: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self.ledger = Ledger(path)
        loaded, _ = load_model(model, dtype=dtype, device=device)
        found = weights_fingerprint(verified(loaded).base)
        if found != weights:
            raise ModelLoadError(f"the model loaded from {model!r} has other weights than the one that was given")
        self._model = loaded
        self.computer = Computer(verified(loaded), self.ledger.configuration)

    def write(self, shard: int) -> tuple[int, bool]:
        """Compute and commit a shard, unless someone has; which one it was, and whether it is ours."""
        self.ledger.refresh()
        if self.ledger.is_committed(shard):
            return shard, False
        work = self.ledger.plan_of(shard).work(shard)
        attempt = begin_attempt(self.ledger.path)
        try:
            parts = self.computer.compute(work)
            return shard, self.ledger.write(work.shard, parts, attempt, self.computer.environment)
        finally:
            end_attempt(self.ledger.path, attempt)


def run_on_ray(
    ledger: Ledger, wiring: Wiring, shards: Sequence[int], *, workers: int | None = None, progress: bool = True
) -> None:
    """Have the missing shards written by actors on a Ray cluster: the one that is connected, or one on this machine.

    A worker that dies is started again, on another node if its own is gone, and its shard is given out again.

    Args:
        ledger: the store, at a path that every node sees.
        wiring: the model; workers load it from where it came from.
        shards: which to write.
        workers: how many; as many as the cluster has CPUs (or GPUs, for a model on one) if it is not given.
        progress: show it.

    Raises:
        RunError: when the model came from nowhere, or workers die again and again.
        InterpError: what a worker raised.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError('Ray is needed: pip install "interpretability-toolkit[distributed]"') from error

    missing = [shard for shard in shards if not ledger.is_committed(shard)]
    if not missing:
        return
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False)
    device = next(wiring.base.parameters()).device.type
    resources = {"num_gpus": 1} if device == "cuda" else {"num_cpus": 1}
    there = int(ray.cluster_resources().get("GPU" if device == "cuda" else "CPU", 0))
    if workers is None:
        workers = there
    if not workers >= 1:
        raise RunError(f"{workers} workers were asked for, and the cluster has room for {there}")
    actor = ray.remote(ShardWorker).options(max_restarts=-1, max_task_retries=0, **resources)
    arguments = _arguments(ledger, wiring.base, device)
    _Pool(actor, arguments, min(workers, len(missing))).run(missing, progress=progress)


def _arguments(ledger: Ledger, base: nn.Module, device: str) -> tuple[Any, ...]:
    conf = ledger.configuration
    name = conf.provenance.model
    where = Path(name)
    if not where.is_dir() and name == type(base).__name__:
        raise RunError(
            "the model does not say where it was loaded from, and Ray's workers load it themselves: save it with "
            "save_pretrained, and load it from there"
        )
    source = str(where.resolve()) if where.is_dir() else name
    path = str(ledger.path.resolve())
    return path, source, conf.provenance.dtype, conf.weights, device, torch.get_num_threads()


class _Pool:
    """Gives out shards to actors, one at a time to each."""

    def __init__(self, actor: Any, arguments: tuple[Any, ...], size: int) -> None:
        self._actors = [actor.remote(*arguments) for _ in range(size)]
        self._deaths = 0

    def run(self, shards: Sequence[int], *, progress: bool) -> None:
        import ray
        from ray.exceptions import RayActorError, RayTaskError
        from tqdm import tqdm

        todo = deque(shards)
        idle = list(self._actors)
        running: dict[Any, tuple[Any, int]] = {}
        bar = tqdm(total=len(shards), unit=" shards", disable=None if progress else True, leave=False)
        try:
            while todo or running:
                while idle and todo:
                    worker, shard = idle.pop(), todo.popleft()
                    running[worker.write.remote(shard)] = (worker, shard)
                done, _ = ray.wait(list(running), num_returns=1)
                worker, shard = running.pop(done[0])
                idle.append(worker)
                try:
                    ray.get(done[0])
                    bar.update(1)
                    self._deaths = 0
                except RayTaskError as error:
                    raise _cause(error) from error
                except RayActorError as error:
                    todo.append(shard)
                    self._count_death(error)
        finally:
            bar.close()
            for worker in self._actors:
                ray.kill(worker)

    def _count_death(self, error: Exception) -> None:
        self._deaths += 1
        if self._deaths > 5 * len(self._actors) + 5:
            raise RunError(f"workers die again and again, the last one with: {error}") from error


def _cause(error: Any) -> Exception:
    """What a worker raised, as it raised it."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, InterpError | OSError):
        return cause
    return StoreError(f"a worker failed: {error}")


__all__ = ["ShardWorker", "run_on_ray", "share_of_rank"]
