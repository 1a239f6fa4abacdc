"""How edited runs are packed into few and short forward passes.

The unit of cost is the layer-token: one position of one row going through one block. A pass over columns `s..T` with
rows that enter at layers `e` costs `Σ (L − e)(T − s)` of them, and besides, every block that it enters costs as much as
`overhead` tokens (reading its weights, starting its kernels). Short tails cost few tokens but as many starts as
others, so neighbouring first positions share a pass where that is cheaper: the best grouping is found by dynamic
programming.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar, runtime_checkable


@runtime_checkable
class Job(Protocol):
    """One edited run: where its first change is."""

    @property
    def entry(self) -> int:
        """The layer in front of which it may enter."""

    @property
    def first(self) -> int:
        """The first column that it changes."""


J = TypeVar("J", bound=Job)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What packing must know of the model and the machine.

    Attributes:
        layers: number of blocks.
        join: whether rows may enter at different layers of one pass.
        prefix: whether the columns before the first change can be left out.
        overhead: what entering a block costs, in tokens.
        limit: most tokens (rows times columns) in one pass.
    """

    layers: int
    join: bool
    prefix: bool
    overhead: int
    limit: int


@dataclass(frozen=True, kw_only=True)
class Pass(Generic[J]):
    """One forward pass.

    Attributes:
        length: tokens of the prompts, prefix included.
        start: the first column that is run.
        jobs: its rows, by the layer at which they enter.
    """

    length: int
    start: int
    jobs: tuple[J, ...] = field(repr=False)

    @property
    def width(self) -> int:
        """How many columns are run."""
        return self.length - self.start

    def layer_tokens(self, layers: int) -> int:
        """What it costs."""
        return sum(layers - job.entry for job in self.jobs) * self.width


def pack(jobs: Sequence[J], length: int, shape: Shape) -> list[Pass[J]]:
    """The passes for jobs over prompts of one length, each within the limit of tokens."""
    if not jobs:
        return []
    batches = [list(jobs)] if shape.join else _by_entry(jobs)
    passes = []
    for batch in batches:
        for start, group in _groups(batch, length, shape):
            ordered = sorted(group, key=lambda job: job.entry)
            rows = max(1, shape.limit // (length - start))
            # Equal shares, so that no pass is left with a few rows.
            number = -(-len(ordered) // rows)
            bounds = [len(ordered) * n // number for n in range(number + 1)]
            passes += [
                Pass(length=length, start=start, jobs=tuple(ordered[a:b])) for a, b in itertools.pairwise(bounds)
            ]
    return passes


def _by_entry(jobs: Sequence[J]) -> list[list[J]]:
    found: dict[int, list[J]] = {}
    for job in jobs:
        found.setdefault(job.entry, []).append(job)
    return [found[entry] for entry in sorted(found)]


def _groups(jobs: Sequence[J], length: int, shape: Shape) -> list[tuple[int, list[J]]]:
    """Jobs that share a pass, with the column at which it starts."""
    if not shape.prefix:
        return [(0, list(jobs))]
    by_first: dict[int, list[J]] = {}
    for job in jobs:
        by_first.setdefault(job.first, []).append(job)
    starts = sorted(by_first)
    depth = [sum(shape.layers - job.entry for job in by_first[start]) for start in starts]
    rows = [len(by_first[start]) for start in starts]
    blocks = shape.layers - min(job.entry for job in jobs)
    # best[n]: the least cost of the first n starts; a group from i to j - 1 runs from column starts[i].
    best: list[tuple[float, int]] = [(0.0, 0)]
    for j in range(1, len(starts) + 1):
        options = []
        deep, wide = 0, 0
        for i in range(j - 1, -1, -1):
            deep, wide = deep + depth[i], wide + rows[i]
            width = length - starts[i]
            number = -(-wide * width // shape.limit)
            options.append((best[i][0] + deep * width + number * blocks * shape.overhead, i))
        best.append(min(options))
    groups: list[tuple[int, list[J]]] = []
    j = len(starts)
    while j:
        i = best[j][1]
        groups.append((starts[i], [job for start in starts[i:j] for job in by_first[start]]))
        j = i
    return groups[::-1]


__all__ = ["Job", "Pass", "Shape", "pack"]
