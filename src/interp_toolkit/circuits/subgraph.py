"""Exact runs of circuits: every head's queries, keys and values, and every MLP, read just the edges of a circuit.

A circuit run feeds each destination the residual stream of the ablated run plus, for every edge of the circuit, what
its source writes in this run beside the ablated one. Heads, MLPs and norms are the model's own. With all edges it is
the clean run, with none the ablated one. Many circuits and prompts share a pass as rows of its batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from interp_toolkit.circuits.ablated import Ablated, AblationKind, ablation_of
from interp_toolkit.circuits.circuit_pass import CircuitPass
from interp_toolkit.circuits.dataset import Pairs
from interp_toolkit.circuits.graph import graph_of
from interp_toolkit.circuits.graph_shape import Graph
from interp_toolkit.circuits.measuring import question_of
from interp_toolkit.circuits.metrics import Metric, Question
from interp_toolkit.circuits.reference import Reference
from interp_toolkit.circuits.stream import Stream, stream_of
from interp_toolkit.errors import CircuitError
from interp_toolkit.model.forward import execute
from interp_toolkit.model.layout import Layout
from interp_toolkit.model.machine import free_memory, out_of_memory
from interp_toolkit.model.prefix import prefix_cache
from interp_toolkit.model.run import run
from interp_toolkit.model.session import logits_of
from interp_toolkit.model.tokens import Tokens, encode
from interp_toolkit.model.trial import shortcuts_of
from interp_toolkit.model.verify import verified
from interp_toolkit.model.wish import Wish


class CircuitRuns:
    """Circuits run exactly over pairs of prompts.

    Args:
        model: a causal language model, as it is.
        pairs: the pairs, of `prepare_pairs`.
        metric: what is measured at the last position.
        graph: the graph of the model, if it is there already.
        ablation: what stands in for edges that are left out.
        reference: for means: the prompts that they are taken over; the corrupt prompts if it is not given.
        memory: bytes that runs may take; half of what is free if it is not given.
        layout: for a model class of your own.

    Raises:
        CircuitError: for an ablation that does not exist.
        UnavailableSiteError: for models whose heads cannot be told apart by what they read.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> from interp_toolkit.circuits.dataset import prepare_pairs
        >>> from interp_toolkit.circuits.metrics import metric_of
        >>> model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=11)).eval()
        >>> pairs = prepare_pairs(model, [[1, 2, 3]], [[1, 4, 3]], [(5, 6)])
        >>> runs = CircuitRuns(model, pairs, metric_of("logit_diff"))
        >>> full = runs.measure(runs.graph.valid[None])[0]
        >>> torch.allclose(full, runs.clean, atol=1e-5)
        True
    """

    def __init__(
        self,
        model: nn.Module,
        pairs: Pairs,
        metric: Metric,
        *,
        graph: Graph | None = None,
        ablation: AblationKind = "corrupt",
        reference: Reference | None = None,
        memory: int | None = None,
        layout: Layout | None = None,
    ) -> None:
        self.model, self.pairs, self.metric = model, pairs, metric
        self.wiring = verified(model, layout)
        self.graph = graph_of(model, layout) if graph is None else graph
        self.stream: Stream = stream_of(self.wiring, self.graph)
        self.ablation = ablation_of(self.stream, pairs, ablation, reference)
        self._memory = memory
        self._kept: dict[tuple[int, ...], Ablated] = {}
        self.questions, (self.clean, self.corrupt) = self._ends()

    @property
    def sign(self) -> float:
        """1 where a larger metric is cleaner, else −1."""
        return 1.0 if self.metric.larger_is_cleaner else -1.0

    # --- what is measured --------------------------------------------------------------------------------------

    def measure(
        self,
        masks: Bool[Tensor, "circuit source dest"] | Sequence[Tensor],
        *,
        pairs: Sequence[int] | None = None,
        base: Bool[Tensor, "source dest"] | None = None,
    ) -> Float[Tensor, "circuit pair"]:
        """The metric of each circuit on each pair's clean prompt.

        Args:
            masks: the edges of each circuit.
            pairs: numbers of the pairs to measure on; all if it is not given.
            base: a circuit that the others share their first layers with: it is run once, and each of the others from
                the first layer on in which it has other edges. The numbers are the same without it.

        Raises:
            CircuitError: for masks of another graph, and pairs that there are not or that are named twice.
        """
        stacked = masks if isinstance(masks, Tensor) else torch.stack(list(masks))
        self.check(stacked)
        numbers = self.numbers(pairs)
        found = torch.full((len(stacked), len(numbers)), torch.nan, dtype=self.clean.dtype)
        for group in self._groups(numbers):
            columns = [numbers.index(n) for n in group]
            found[:, columns] = self._measured(self.ablated(group), stacked, base).to(found)
        return found

    def numbers(self, pairs: Sequence[int] | None) -> list[int]:
        """The numbers of the pairs that are meant: all if None is given.

        Raises:
            CircuitError: for none, numbers that there are not, and any that is named twice.
        """
        found = list(range(len(self.pairs)) if pairs is None else pairs)
        if not found or not all(0 <= n < len(self.pairs) for n in found) or len(set(found)) < len(found):
            raise CircuitError(
                f"pairs are different numbers from 0 to {len(self.pairs) - 1}, at least one, not {found}"
            )
        return found

    def check(self, masks: Tensor) -> None:
        """Refuse masks that are not of this graph.

        Raises:
            CircuitError: naming the shapes.
        """
        wanted = (self.graph.num_sources, self.graph.num_dests)
        if masks.dtype != torch.bool or tuple(masks.shape[1:]) != wanted:
            raise CircuitError(
                f"circuits of this model are booleans of shape (circuits, {wanted[0]}, {wanted[1]}), one for each "
                f"source and destination, but these are {masks.dtype} of shape {tuple(masks.shape)}"
            )
        if bool((masks & ~self.graph.valid).any()):
            raise CircuitError("a circuit has an edge that does not exist: a source does not lie in front of it")

    def _measured(self, ablated: Ablated, masks: Tensor, base: Tensor | None) -> Float[Tensor, "circuit pair"]:
        """Rows go prompt by prompt through all circuits, those that begin at one layer together."""
        layers = self._begins(masks, base)
        found = torch.full((len(masks), len(ablated.numbers)), torch.nan, dtype=self.clean.dtype)
        most = self._rows_at_once(ablated)
        per_prompt = max(1, most // max(1, len(masks))) if base is None else 1
        for begin in range(0, len(ablated.numbers), per_prompt):
            prompts = range(begin, min(begin + per_prompt, len(ablated.numbers)))
            order = sorted(range(len(masks)), key=layers.__getitem__)
            rows = [(c, p) for p in prompts for c in order]
            known = None if base is None else self._written(ablated, base, begin)
            for at in range(0, len(rows), most):
                part = rows[at : at + most]
                enter = min(layers[c] for c, _ in part)
                for (c, p), value in zip(part, self._fitting(ablated, masks, part, enter, known), strict=True):
                    found[c, p] = value
        return found

    def _begins(self, masks: Tensor, base: Tensor | None) -> list[int]:
        """For each circuit the first layer in which its edges are not those of the base."""
        layers = self.graph.num_layers
        if base is None or not shortcuts_of(self.wiring).resume:
            return [0] * len(masks)
        other = (masks != base).any(1)[:, :-1].unflatten(1, (layers, -1)).any(2)
        first = torch.where(other.any(1), other.int().argmax(1), layers - 1)
        return [int(n) for n in first]

    def _written(self, ablated: Ablated, base: Tensor, prompt: int) -> Float[Tensor, "source pos d_model"]:
        """What every source writes in the base's run beside the ablated one."""
        _, run_ = self._pass(ablated, base[None], [(0, prompt)], 0, None)
        return run_.written[0]

    def _fitting(
        self, ablated: Ablated, masks: Tensor, rows: Sequence[tuple[int, int]], enter: int, known: Tensor | None
    ) -> list[float]:
        """The metric of some rows, cut in two as often as memory asks for."""
        try:
            logits, _ = self._pass(ablated, masks, rows, enter, known)
            return self._values(ablated, logits, rows)
        except RuntimeError as error:
            if not out_of_memory(error) or len(rows) == 1:
                raise
        halves = rows[: len(rows) // 2], rows[len(rows) // 2 :]
        return [value for half in halves for value in self._fitting(ablated, masks, half, enter, known)]

    def _values(self, ablated: Ablated, logits: Tensor, rows: Sequence[tuple[int, int]]) -> list[float]:
        found = [0.0] * len(rows)
        for pair in {p for _, p in rows}:
            places = [n for n, (_, p) in enumerate(rows) if p == pair]
            question = self.questions[ablated.numbers[pair]]
            needed = self.metric.needs(question)
            part = logits[places] if needed is None else logits[places][:, list(needed)]
            for n, value in zip(places, self.metric.measure(part, question).tolist(), strict=True):
                found[n] = value
        return found

    def _pass(
        self, ablated: Ablated, masks: Tensor, rows: Sequence[tuple[int, int]], enter: int, known: Tensor | None
    ) -> tuple[Float[Tensor, "row vocab"], CircuitPass]:
        """One pass of circuit runs: the last logits, and what was written.

        Args:
            ablated: the ablated runs.
            masks: circuits.
            rows: for each row the number of its circuit, and of its pair among those of `ablated`.
            enter: the layer to begin at.
            known: what the sources in front of it write.
        """
        circuits = torch.tensor([c for c, _ in rows], device=masks.device)
        prompts = torch.tensor([p for _, p in rows], device=ablated.embed.device)
        run_ = CircuitPass(self.stream, ablated, masks[circuits], prompts, enter, known)
        start = 0 if ablated.prefix is None else ablated.first
        ids = ablated.clean[prompts.cpu()][:, start:]
        entering = {enter: ablated.embed.new_zeros(len(rows), *ablated.embed.shape[1:])} if enter else {}
        wish = Wish(
            reads=frozenset(),
            changes=run_.changes(),
            inputs=run_.inputs(),
            stand_ins=run_.stand_ins(),
            enter=entering,
            logits_at=torch.full((1, 1), ids.shape[1] - 1),
        )
        cache = None if ablated.prefix is None else prefix_cache(ablated.prefix, prompts, start)
        _, output = execute(self.wiring, Tokens(ids=ids, mask=torch.ones_like(ids)), wish, cache=cache)
        return logits_of(output)[:, -1].detach(), run_

    def ablated(self, numbers: Sequence[int]) -> Ablated:
        """The ablated runs of some pairs of one length and, where they are interchanged, one first other token.

        They are kept for the next time, as long as all of them together take a quarter of the memory.
        """
        key = tuple(numbers)
        if key not in self._kept:
            made = self.ablation.ablated(key)
            if sum(known.size for known in self._kept.values()) + made.size > self._allowed() // 4:
                self._kept.clear()
            self._kept[key] = made
        return self._kept[key]

    # --- sizes ---------------------------------------------------------------------------------------------------

    def batches(self, numbers: Sequence[int]) -> list[list[int]]:
        """Pairs whose gradients are taken together."""
        layout, first = self.wiring.layout, next(self.wiring.base.parameters())
        each = 4 * layout.num_layers * (16 * layout.d_model + 4 * (self.wiring.shapes.get("mlp_post") or (0,))[-1])
        most = 256 if first.device.type == "cpu" else 8192
        tokens = max(1, min(most, self._allowed() // 4 // each))
        found = []
        for group in self._groups(numbers):
            length = self.pairs.lengths[group[0]] - self.parting(group[0])
            together = max(1, tokens // length)
            found += [group[n : n + together] for n in range(0, len(group), together)]
        return found

    def parting(self, number: int) -> int:
        """The first position at which runs of a pair can differ."""
        if self.ablation.kind != "corrupt":
            return 0
        other = (self.pairs.clean[number].ids != self.pairs.corrupt[number].ids)[0]
        return int(other.nonzero()[0])

    def _groups(self, numbers: Sequence[int]) -> list[list[int]]:
        """Pairs of one length whose prompts part at the same position, as many as memory allows to keep."""
        alike: dict[tuple[int, int], list[int]] = {}
        for number in numbers:
            alike.setdefault((self.pairs.lengths[number], self.parting(number)), []).append(number)
        found = []
        for (length, _), same in alike.items():
            each = 7 * self.graph.num_layers * length * self.wiring.layout.d_model * 4
            most = max(1, self._allowed() // 4 // each)
            found += [same[n : n + most] for n in range(0, len(same), most)]
        return found

    def _rows_at_once(self, ablated: Ablated) -> int:
        tokens = ablated.embed.shape[1] * self.wiring.layout.d_model * self.stream.dtype.itemsize
        each = tokens * (self.graph.num_sources + 3 * self.graph.dests_per_layer + 16)
        return max(1, min(64, self._allowed() // 2 // each))

    def _allowed(self) -> int:
        device = next(self.wiring.base.parameters()).device
        return free_memory(device) // 2 if self._memory is None else self._memory

    def _ends(self) -> tuple[list[Question], tuple[Tensor, Tensor]]:
        """What the metric must know of each pair, and its value in the clean and in the corrupt run."""
        questions: dict[int, Question] = {}
        values: dict[int, Tensor] = {}
        for group in self._groups(range(len(self.pairs))):
            for begin in range(0, len(group), 32):
                numbers = group[begin : begin + 32]
                sides = []
                for prompts in (self.pairs.clean, self.pairs.corrupt):
                    ids = encode(torch.cat([prompts[n].ids for n in numbers]))
                    logits = run(self.model, ids, logits="last", layout=self.wiring.layout).logits
                    sides.append(logits[:, -1])
                for row, number in enumerate(numbers):
                    wide = [side[row].to(self.stream.dtype) for side in sides]
                    question = question_of(self.pairs, number, *wide)
                    needed = self.metric.needs(question)
                    both = torch.stack(wide)
                    values[number] = self.metric.measure(both if needed is None else both[:, list(needed)], question)
                    questions[number] = question
        every = torch.stack([values[n] for n in range(len(self.pairs))]).cpu()
        return [questions[n] for n in range(len(self.pairs))], (every[:, 0], every[:, 1])


__all__ = ["CircuitRuns"]
