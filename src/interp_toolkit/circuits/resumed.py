"""Many circuits that differ from a first one only behind some layer: what lies in front of it is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp_toolkit.circuits.ablated import Ablated
from interp_toolkit.circuits.circuit_pass import CircuitPass, values_of
from interp_toolkit.circuits.subgraph import CircuitRuns
from interp_toolkit.model.machine import free_memory
from interp_toolkit.model.trial import shortcuts_of

_ROWS = 128  # of one pass


@dataclass(frozen=True, kw_only=True, eq=False)
class _Known:
    """The first circuit's run of some pairs: what every source writes in it."""

    ablated: Ablated
    written: Float[Tensor, "pair source pos d_model"]


class ResumedRuns:
    """Runs of circuits that share their first layers with the first circuit.

    Args:
        runs: the pairs, the metric and the model.
        numbers: of the pairs.
        start: the first circuit.
    """

    def __init__(self, runs: CircuitRuns, numbers: Sequence[int], start: Bool[Tensor, "source dest"]) -> None:
        self.runs, self.graph, self.numbers = runs, runs.graph, numbers
        self._resume = shortcuts_of(runs.wiring).resume
        self._known = []
        for batch in runs.batches(numbers):
            ablated = runs.ablated(batch)
            run = CircuitPass(runs.stream, ablated, start.expand(len(batch), -1, -1), torch.arange(len(batch)))
            run.logits()
            self._known.append(_Known(ablated=ablated, written=run.written))

    def means(self, masks: Sequence[Bool[Tensor, "source dest"]], layers: Sequence[int]) -> list[float]:
        """The mean of the metric over all pairs for each circuit.

        Args:
            masks: the circuits.
            layers: for each the first layer in which it has other edges than the first circuit.
        """
        total = torch.zeros(len(masks), dtype=torch.float64)
        for known in self._known:
            pairs = len(known.ablated.numbers)
            rows = [(c, p) for c in range(len(masks)) for p in range(pairs)]
            most = self._rows_at_once(known)
            for at in range(0, len(rows), most):
                part = rows[at : at + most]
                values = self._values(known, masks, part, min(layers[c] for c, _ in part))
                total.index_add_(0, torch.tensor([c for c, _ in part]), values.double().cpu())
        return [float(x) / len(self.numbers) for x in total]

    def _values(
        self, known: _Known, masks: Sequence[Tensor], rows: Sequence[tuple[int, int]], layer: int
    ) -> Float[Tensor, " row"]:
        enter = min(layer, self.graph.num_layers - 1) if self._resume else 0
        stacked = torch.stack([masks[c] for c, _ in rows])
        prompts = torch.tensor([p for _, p in rows])
        logits = CircuitPass(self.runs.stream, known.ablated, stacked, prompts, enter, known.written).logits()
        numbers = [known.ablated.numbers[p] for _, p in rows]
        return values_of(self.runs.metric, self.runs.questions, logits, numbers)

    def _rows_at_once(self, known: _Known) -> int:
        _, sources, length, width = known.written.shape
        each = 4 * (length * width * (sources + 3 * self.graph.dests_per_layer + 16) + self.graph.valid.numel())
        return max(1, min(_ROWS, free_memory(known.written.device) // 4 // each))


__all__ = ["ResumedRuns"]
