"""Running the sequences of a shard through the model, and keeping the rows that were asked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from interp_toolkit.activations.configuration import Configuration, StoredSite
from interp_toolkit.activations.disk import Chunk
from interp_toolkit.activations.files import as_array, torch_type
from interp_toolkit.activations.ledger import TOKEN_ARRAYS
from interp_toolkit.activations.planning import Work
from interp_toolkit.errors import RunError, StoreError
from interp_toolkit.model.forward import execute, vocabulary_of
from interp_toolkit.model.machine import out_of_memory
from interp_toolkit.model.sites import Site
from interp_toolkit.model.tokens import Tokens
from interp_toolkit.model.wiring import Wiring
from interp_toolkit.model.wish import Wish

_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}

Tick = Callable[[int], object]


class Computer:
    """Computes shards.

    A forward pass ends behind the deepest site and never reaches the unembedding. Sequences are run up to their last
    token that is kept. Shorter ones of a pass are filled up on the right without a mask: in a causal model no token
    sees what comes behind it (`fills_up` proves it for the model at hand).

    Args:
        wiring: the model.
        configuration: what to compute.
    """

    def __init__(self, wiring: Wiring, configuration: Configuration) -> None:
        self.wiring = wiring
        self.configuration = configuration
        self._reads = frozenset(stored.site.whole for stored in configuration.sites)
        self._limit = configuration.batch_tokens
        self.tokens = 0

    @property
    def environment(self) -> dict[str, object]:
        """What else decides the last bits of what is computed."""
        device = next(self.wiring.base.parameters()).device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        versions = dict(sorted(self.configuration.provenance.versions.items()))
        found: dict[str, object] = {"device": name, "threads": torch.get_num_threads(), "versions": versions}
        if self._limit != self.configuration.batch_tokens:
            found["batch_tokens"] = self._limit
        return found

    def compute(self, work: Work, tick: Tick | None = None) -> list[list[Chunk]]:
        """The data of the files of a shard: of its tokens, then of each site.

        Args:
            work: the shard.
            tick: is told how many rows there are more.

        Raises:
            StoreError: when an activation is not finite, with the document that it comes from.
            RunError: when a single sequence does not fit into memory.
        """
        conf = self.configuration
        rows = len(work.shard.rows)
        device = next(self.wiring.base.parameters()).device
        kept = [
            torch.empty((rows, *stored.shape), dtype=torch_type(conf.dtype), device=device) for stored in conf.sites
        ]
        for sequences in work.batches(self._limit, padded=conf.padded):
            self._batch(work, sequences, kept, tick)
        _check_finite(work, conf, kept)
        parts: list[list[Chunk]] = [[bytes_of(as_array(x.cpu()))] for x in kept]
        return [token_parts(work), *parts]

    def _batch(self, work: Work, sequences: NDArray[np.int64], kept: list[Tensor], tick: Tick | None) -> None:
        starts, reach = work.starts[sequences], work.reach[sequences]
        longest = int(reach.max())
        try:
            self._run(work, sequences, longest, kept)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            if len(sequences) == 1:
                raise RunError(
                    f"one run over {longest} tokens does not fit into memory: use a shorter context_length"
                ) from error
            failed = True
        else:
            failed = False
        if not failed:
            if tick is not None:
                tick(sum(int(work.keep[a : a + n].sum()) for a, n in zip(starts, reach, strict=True)))
            self.tokens += int(reach.sum())
            return
        # Behind the handler, whose error holds on to what the pass had in memory.
        self._limit = max(1, min(self._limit, longest * len(sequences)) // 2)
        half = (len(sequences) + 1) // 2
        for part in (sequences[:half], sequences[half:]):
            self._batch(work, part, kept, tick)

    def _run(self, work: Work, sequences: NDArray[np.int64], longest: int, kept: list[Tensor]) -> None:
        starts, reach = work.starts[sequences], work.reach[sequences]
        column = np.arange(longest)
        real = column[None, :] < reach[:, None]
        index = np.minimum(starts[:, None] + column[None, :], len(work.ids) - 1)
        ids = np.where(real, work.ids[index], work.ids[starts][:, None])
        source = np.flatnonzero(real & work.keep[index])
        target = self._row_numbers(work)[index.reshape(-1)[source]]
        readings = self._readings(torch.from_numpy(ids.astype(np.int64)))
        device = kept[0].device
        take, put = torch.from_numpy(source).to(device), torch.from_numpy(target).to(device)
        for stored, x in zip(self.configuration.sites, kept, strict=True):
            flat = _part(stored, readings[stored.site.whole]).flatten(0, 1)
            rows = flat if len(source) == len(flat) else flat.index_select(0, take.to(flat.device))
            x.index_copy_(0, put, rows.to(device=device, dtype=x.dtype))

    def _row_numbers(self, work: Work) -> NDArray[np.int64]:
        """For each token of the shard the row that it becomes."""
        return np.cumsum(work.keep) - 1

    def _readings(self, ids: Tensor) -> dict[Site, Tensor]:
        wish = Wish(reads=self._reads, stop=True)
        session, _ = execute(self.wiring, Tokens(ids=ids, mask=torch.ones_like(ids)), wish)
        return {Site(*key): found[0] for key, found in session.readings.items()}

    def rate(self, work: Work, sequences: NDArray[np.int64]) -> float:
        """Tokens in a second, from one batch of a shard."""
        column = int(work.reach[sequences].max())
        ids = torch.from_numpy(np.resize(work.ids.astype(np.int64), (len(sequences), column)))
        began = time.perf_counter()
        readings = self._readings(ids)
        next(iter(readings.values())).flatten()[0].item()  # waits for the device
        return float(work.reach[sequences].sum() / (time.perf_counter() - began))

    def shapes(self) -> Iterator[tuple[Site, tuple[int, ...]]]:
        """Each site with the shape of its rows, found in a run."""
        readings = self._readings(torch.ones((1, 2), dtype=torch.long))
        for stored in self.configuration.sites:
            yield stored.site, tuple(_part(stored, readings[stored.site.whole]).shape[2:])

    def turns_at(self) -> int | None:
        """The length above which the model turns all positions of a sequence otherwise, if sequences get so long.

        LongRoPE (Phi-3) does: the numbers of each token then depend on how long its pass is.
        """
        config = getattr(self.wiring.base, "config", None)
        ropes = getattr(None if config is None else config.get_text_config(), "rope_parameters", None) or {}
        each = [ropes, *(value for value in ropes.values() if isinstance(value, dict))]
        ends = [rope.get("original_max_position_embeddings") for rope in each if rope.get("rope_type") == "longrope"]
        return min((end for end in ends if end and end < self.configuration.context_length), default=None)

    def fills_up(self) -> bool:
        """Whether sequences filled up on the right give the numbers that they give alone."""
        if self.turns_at() is not None:
            return False
        generator = torch.Generator().manual_seed(0)
        most = min(1000, vocabulary_of(self.wiring.base) or 2)
        long, short = (torch.randint(most, (1, n), generator=generator) for n in (7, 3))
        filled = torch.cat([short, short[:, :1].expand(1, 4)], dim=1)
        together, alone = self._readings(torch.cat([long, filled])), self._readings(short)
        for site, x in alone.items():
            error = (together[site][1:, :3] - x).abs().max()
            if not error <= _TOLERANCE.get(x.dtype, 1e-4) * x.abs().max().clamp_min(1e-6):
                return False
        return True


def token_parts(work: Work) -> list[Chunk]:
    """The data of the file with the tokens of a shard."""
    keep = work.keep
    arrays: list[NDArray[Any]] = [work.ids[keep], work.position[keep], work.sequence[keep], work.document[keep]]
    types = [np.dtype(dtype).newbyteorder("<") for _, dtype in TOKEN_ARRAYS]
    return [x.astype(dtype, copy=False).tobytes() for x, dtype in zip(arrays, types, strict=True)]


def bytes_of(array: NDArray[Any]) -> memoryview:
    """The memory of an array."""
    return memoryview(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type]  # arrays are buffers


def _part(stored: StoredSite, x: Tensor) -> Tensor:
    """One head of a site, or all of it; batch and position stay in front."""
    dim = stored.site.kind.index_dim
    return x if stored.site.index is None or dim is None else x.select(dim, stored.site.index)


def _check_finite(work: Work, configuration: Configuration, kept: list[Tensor]) -> None:
    for stored, x in zip(configuration.sites, kept, strict=True):
        if not x.numel() or all(bool(edge.isfinite()) for edge in torch.aminmax(x)):
            continue
        flat = x.reshape(len(x), -1)
        bad = ~flat.isfinite().all(dim=1)
        token = int(np.flatnonzero(work.keep)[int(bad.nonzero()[0, 0])])
        found = flat[bad][0]
        overflow = configuration.dtype == "float16" and not found.isnan().any()
        raise StoreError(
            f"document {work.document[token]} has an activation that is not finite at {stored.site}, position "
            f"{work.position[token]} of its sequence ({int(bad.sum())} of the {len(bad)} rows of shard "
            f"{work.shard.number} have some): "
            + (
                "it is too large for float16: store as dtype='bfloat16' or 'float32'"
                if overflow
                else "the model gives it; leave the document out, or run the model in another precision"
            )
        )


__all__ = ["Computer", "Tick", "bytes_of", "token_parts"]
