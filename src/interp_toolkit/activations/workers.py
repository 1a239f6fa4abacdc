"""A worker in another process or on another machine, which computes what the process that sends it there would."""

from __future__ import annotations

import platform
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from interp_toolkit.activations.attempts import attempt_in
from interp_toolkit.activations.computing import Computer
from interp_toolkit.activations.configuration import weights_fingerprint
from interp_toolkit.activations.disk import Chunk
from interp_toolkit.activations.ledger import Ledger
from interp_toolkit.activations.planning import Shard
from interp_toolkit.errors import ModelLoadError, RunError, StoreError
from interp_toolkit.model.demo import load_without_tokenizer
from interp_toolkit.model.layout import Layout
from interp_toolkit.model.verify import verified
from interp_toolkit.model.wiring import Wiring
from interp_toolkit.provenance import provenance_of


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a worker has to know to compute, down to the last bit, what the process would that sends it.

    Attributes:
        store: the folder of the store.
        witness: an attempt of that process, by which a worker knows that it sees the same folder.
        source: where the model is loaded from.
        options: how, as `load_without_tokenizer` takes them.
        weights: the fingerprint that its weights have to have.
        layout: which of its submodules is what.
        threads: how many threads compute.
        precision: of products of float32 matrices on a GPU.
    """

    store: str
    witness: str
    source: str
    options: dict[str, Any]
    weights: str
    layout: Layout
    threads: int
    precision: str

    @classmethod
    def of(cls, wiring: Wiring, ledger: Ledger, witness: str) -> Recipe:
        """The recipe of a model in this process.

        Raises:
            RunError: when a worker could not load the model.
        """
        base, provenance = wiring.base, ledger.configuration.provenance
        config = getattr(base, "config", None)
        name = str(getattr(config, "_name_or_path", "") or "")
        if not name:
            raise RunError(
                f"{type(base).__name__} does not say where it was loaded from, and Ray's workers load it themselves: "
                "save it with save_pretrained(folder), and extract with the model that from_pretrained(folder) gives"
            )
        devices = {parameter.device for parameter in base.parameters()}
        if len(devices) > 1:
            raise RunError(
                f"the model lies on several devices ({', '.join(sorted(map(str, devices)))}), and a Ray worker has "
                "one: use engine='rank', with a script that loads the model as this one did"
            )
        folder = Path(name).expanduser()
        options = {
            "dtype": provenance.dtype,
            "device": devices.pop().type,
            "revision": None if folder.is_dir() else provenance.revision,
            "trust_remote_code": type(base).__module__.startswith("transformers_modules"),
        }
        for kind in ("attn_implementation", "experts_implementation"):
            if (chosen := getattr(config, f"_{kind}", None)) is not None:
                options[kind] = chosen
        return cls(
            store=str(ledger.path.resolve()),
            witness=witness,
            source=str(folder.resolve()) if folder.is_dir() else name,
            options=options,
            weights=ledger.configuration.weights,
            layout=wiring.layout,
            threads=torch.get_num_threads(),
            precision=torch.get_float32_matmul_precision(),
        )


class ShardWorker:
    """A worker with a model of its own, which computes shards and commits them.

    It may be asked for several shards at once: one is computed, while those before it are written.

    Args:
        recipe: what it has to know.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        # One thread computes, always the same: libraries keep threads of their own for each that calls them.
        self._thread = ThreadPoolExecutor(max_workers=1)

    def load(self) -> None:
        """Load the model: not when the worker is made, where Ray would hide the class of an error.

        Raises:
            StoreError: when the store is not seen from here.
            ModelLoadError: when the model is not there, or has other weights.
        """
        self._thread.submit(self._load).result()

    def _load(self) -> None:
        recipe = self._recipe
        torch.set_num_threads(recipe.threads)
        torch.set_float32_matmul_precision(recipe.precision)
        self._ledger = _shared_ledger(recipe)
        self._model = load_without_tokenizer(recipe.source, **recipe.options)
        wiring = verified(self._model, recipe.layout)
        if weights_fingerprint(wiring.base) != recipe.weights:
            raise ModelLoadError(
                f"the model that is loaded from {recipe.source!r} has other weights than the one that was given: it "
                "was changed after it was loaded. Save it with save_pretrained(folder), and extract with the model "
                "that from_pretrained(folder) gives"
            )
        conf = self._ledger.configuration
        versions = provenance_of(self._model, recipe.layout).versions
        self._computer = Computer(wiring, conf.with_model(replace(conf.provenance, versions=versions)))

    def write(self, shard: int) -> int:
        """Compute and commit a shard, unless someone has.

        Returns:
            How many tokens were run for it.
        """
        if self._ledger.is_committed(shard):
            return 0
        with attempt_in(self._ledger.path) as attempt:
            work, parts, environment, tokens = self._thread.submit(self._compute, shard).result()
            self._ledger.write(work, parts, attempt, environment)
        return tokens

    def _compute(self, shard: int) -> tuple[Shard, list[list[Chunk]], dict[str, object], int]:
        work = self._ledger.plan_of(shard).work(shard)
        parts = self._computer.compute(work)
        return work.shard, parts, self._computer.environment, int(work.reach.sum())


def _shared_ledger(recipe: Recipe) -> Ledger:
    """The store, if it is the one that the sender of the recipe sees."""
    path = Path(recipe.store)
    if (path / "store.json").is_file():
        ledger = Ledger(path)
        complete = len(ledger.committed()) == ledger.num_shards  # what it does not need any more is removed then
        if complete or (path / f"attempts/{recipe.witness}.json").is_file():
            return ledger
    raise StoreError(
        f"a worker on {platform.node()} does not see the store at {path}: put it into a folder that all nodes share"
    )


__all__ = ["Recipe", "ShardWorker"]
