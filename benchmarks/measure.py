"""Interleaved timing: what is compared runs in turn, so that a machine's drift hits both alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds of one job over several rounds.

    Attributes:
        name: of the job.
        seconds: one number a round.
        ratios: to the reference job of the same round.
        limit: the ratio that is asked for, or None.
    """

    name: str
    seconds: tuple[float, ...]
    ratios: tuple[float, ...]
    limit: float | None = None

    def row(self) -> str:
        """A line of the table."""
        asked = "" if self.limit is None else f"  asked ≤ {self.limit:.2f}"
        low, high = min(self.ratios), max(self.ratios)
        return (
            f"{self.name:<52} {1e3 * statistics.median(self.seconds):8.1f} ms  ratio "
            f"{statistics.median(self.ratios):5.3f}  ({low:.3f}-{high:.3f}){asked}"
        )


def interleaved(
    reference: Callable[[], object],
    jobs: Mapping[str, tuple[Callable[[], object], float | None]],
    *,
    rounds: int = 15,
    name: str = "bare forward pass",
    ready: Callable[[], object] | None = None,
) -> list[Timing]:
    """Time jobs against a reference, in turn, after one round of warming up.

    Each job of a round is divided by the mean of the reference before and after it. `ready` is called before every
    timing, such as to empty the processor's caches.
    """
    seconds: dict[str, list[float]] = {title: [] for title in jobs}
    ratios: dict[str, list[float]] = {title: [] for title in jobs}
    bare: list[float] = []
    for count in range(rounds + 1):
        for title, (job, _) in jobs.items():
            before, spent, after = _timed(reference, ready), _timed(job, ready), _timed(reference, ready)
            if count:
                bare += [before, after]
                seconds[title].append(spent)
                ratios[title].append(2 * spent / (before + after))
    first = Timing(name=name, seconds=tuple(bare), ratios=(1.0,))
    rest = [
        Timing(name=title, seconds=tuple(seconds[title]), ratios=tuple(ratios[title]), limit=limit)
        for title, (_, limit) in jobs.items()
    ]
    return [first, *rest]


def _timed(job: Callable[[], object], ready: Callable[[], object] | None) -> float:
    if ready is not None:
        ready()
    began = time.perf_counter()
    job()
    return time.perf_counter() - began
