"""Steering at every layer and strength: what it does, what it costs, and what random directions do."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from interp_toolkit.errors import SteeringError
from interp_toolkit.model.layout import Layout
from interp_toolkit.model.positions import Generated, PerRow, Positions, PositionsLike, Span
from interp_toolkit.model.positions import positions as as_positions
from interp_toolkit.model.run import editing, run
from interp_toolkit.model.sites import Site
from interp_toolkit.model.tokens import Tokens
from interp_toolkit.model.verify import verified
from interp_toolkit.model.wiring import Wiring
from interp_toolkit.provenance import provenance_of
from interp_toolkit.steering.findings import SteeringSweep
from interp_toolkit.steering.measuring import Batch, Outputs, batches, measures, repeated, repetition
from interp_toolkit.steering.operations import (
    Gate,
    LayersLike,
    Operation,
    Predicting,
    Scale,
    directions_at,
    steering_edits,
)
from interp_toolkit.steering.trials import Case, Prepared, Trials, prepare
from interp_toolkit.steering.vector import SteeringVector, random_vectors

if TYPE_CHECKING:
    from interp_toolkit.model.edits import Edit

_ROOM = 1024  # tokens of one pass


@torch.no_grad()
def steering_sweep(
    model: nn.Module,
    vector: SteeringVector,
    trials: Trials,
    *,
    layers: LayersLike = None,
    coefficients: Sequence[int | float] = (-0.4, -0.2, -0.1, 0.1, 0.2, 0.4),
    operation: Operation = "add",
    positions: PositionsLike = "all",
    scale: Scale = "norm",
    plane: SteeringVector | None = None,
    when: Gate | None = None,
    random: int = 4,
    level: float = 0.95,
    seed: int = 0,
    tokenizer: Any = None,
    layout: Layout | None = None,
) -> SteeringSweep:
    """Steer at one layer after the other, as much as each coefficient says, and measure what happens.

    Every layer and coefficient is measured on the same texts, as are random directions of the same length. Passes
    enter at the layer that is steered.

    Args:
        model: the model that the vector is for.
        vector: where to.
        trials: what it is tried on.
        layers: which; those of the vector if not given.
        coefficients: how much; see `steering_edits` for this, and for operation, positions, scale, plane and when.
        operation: what is done.
        positions: for which tokens. What follows a target's prompt counts as generated; in neutral texts, with
            `"generated"` and `"predicting"`, everything behind the first token does.
        scale: the unit of coefficients.
        plane: for rotation the direction to turn from.
        when: only tokens for which this gate opens.
        random: how many random directions to compare with.
        level: of intervals, which are over questions or texts.
        seed: of random directions and intervals.
        tokenizer: needed for text when the model does not say where it comes from.
        layout: for a model class of your own.

    Raises:
        SteeringError: without anything to measure, or for positions that no question has.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> from interp_toolkit.steering import Question, given_vector
        >>> model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=11)).eval()
        >>> towards = (model.lm_head.weight[3] - model.lm_head.weight[4]).detach()
        >>> vector = given_vector(model, towards, layers=1, prompts=[[1, 2, 3]])
        >>> trials = Trials(questions=[Question(prompt=[1, 2], matching=3, other=4)], neutral=[[5, 6, 7]])
        >>> found = steering_sweep(model, vector, trials, coefficients=[-1.0, 1.0], random=1)
        >>> found.best(max_kl=None).coefficient
        1.0
    """
    wiring = verified(model, layout)
    where = Predicting() if isinstance(positions, str) and positions == "predicting" else as_positions(positions)
    if isinstance(where, Span | PerRow):
        raise SteeringError("a sweep runs over many texts: give positions that mean the same in all of them")
    if not coefficients or len(set(coefficients)) < len(coefficients):
        raise SteeringError(f"coefficients are different numbers, at least one, not {list(coefficients)}")
    prepared, asked = prepare(model, trials, tokenizer), None
    if trials.instruction is not None:
        effects = replace(trials, neutral=(), new_tokens=0)
        asked = prepare(model, effects, tokenizer, instruction=trials.instruction)
    numbers = [layer for layer, _ in directions_at(wiring, vector, _not_writers(layers))]
    several = [vector, *random_vectors(vector, random, seed=seed)]
    names = ("vector", *(f"random {n + 1}" for n in range(random)))
    make = partial(
        steering_edits, model, operation=operation, scale=scale, positions=where, plane=plane, when=when, layout=layout
    )
    edits = [
        [[make(vector=v, coefficient=float(c), layers=layer) for c in coefficients] for layer in numbers]
        for v in several
    ]
    trial = _Trial(wiring=wiring, edits=edits, where=where)
    before, values = trial.measured(prepared, trials.new_tokens)
    alone = _Trial(wiring=wiring, edits=[], where=where)
    prompted = {} if asked is None else alone.measured(asked, 0)[0]
    return SteeringSweep(
        layers=tuple(numbers),
        coefficients=tuple(float(c) for c in coefficients),
        names=names,
        before=before,
        values=values,
        prompted=prompted,
        about=f"{operation} at {vector.site}, {_words(positions)} tokens, {vector.method}",
        unit=_unit(vector, operation, scale),
        level=level,
        seed=seed,
        provenance=provenance_of(model, wiring.layout),
    )


def _not_writers(layers: LayersLike) -> LayersLike:
    if layers == "writers":
        raise SteeringError("a sweep goes layer by layer: give layers as numbers, or 'all'")
    return layers


def _words(positions: PositionsLike) -> str:
    return positions if isinstance(positions, str) else "all" if positions is None else repr(positions)


def _unit(vector: SteeringVector, operation: Operation, scale: Scale) -> str:
    """What coefficients are, in words."""
    match operation:
        case "ablate":
            return "share taken away"
        case "affine":
            return "from the negative examples' mean (0) to the positive examples' (1)"
        case "rotate":
            return "degrees"
    if scale == "norm":
        return "coefficient, in lengths of activations there"
    return "coefficient, in lengths of the vector" if operation == "add" else "coefficient"


# --- measuring ----------------------------------------------------------------------------------------------------

Measures = dict[str, Tensor]
Place = tuple[int, int, int]
"""Name, layer and coefficient, as numbers."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Trial:
    """Everything that is steered: edits by name, layer and coefficient."""

    wiring: Wiring
    edits: list[list[list[list[Edit]]]]
    where: Positions

    @property
    def cells(self) -> list[tuple[Place, list[Edit]]]:
        """The places of edits in results, with the edits."""
        return [
            ((n, m, k), edits)
            for n, by_layer in enumerate(self.edits)
            for m, by_coefficient in enumerate(by_layer)
            for k, edits in enumerate(by_coefficient)
        ]

    @property
    def shape(self) -> Place:
        """How many names, layers and coefficients there are."""
        first = self.edits[0] if self.edits else []
        return len(self.edits), len(first), len(first[0]) if first else 0

    def measured(self, prepared: Prepared, new_tokens: int) -> tuple[Measures, Measures]:
        """Measures of every text without steering and with it: `[text]` and `[text, name, layer, coefficient]`."""
        before: Measures = {}
        after: Measures = {}
        for cases in (prepared.questions, prepared.targets, prepared.neutral):
            for numbers, batch in batches(cases, padded=self.wiring.padding.get("right") is None):
                rows = torch.tensor(numbers)
                for place, found in self._batch(batch):
                    for name, x in found.items():
                        kept = before if place is None else after
                        shape = (len(cases),) if place is None else (len(cases), *self.shape)
                        table = kept.setdefault(name, torch.full(shape, torch.nan, dtype=torch.float64))
                        table[rows if place is None else (rows, *place)] = x
        if prepared.questions:
            groups = torch.tensor(prepared.groups)
            before["logit_diff"] = _grouped(before["logit_diff"], groups)
            if self.edits:
                after["logit_diff"] = _grouped(after["logit_diff"], groups)
        if new_tokens and prepared.neutral:
            before["repetition"], after["repetition"] = self._repetition(prepared.neutral, new_tokens)
        return before, after

    def _batch(self, batch: Batch) -> Iterator[tuple[Place | None, Measures]]:
        """Measures of some texts: without steering first, then cell by cell; several cells are rows of one pass."""
        model, layout = self.wiring.model, self.wiring.layout
        selected = self._selected(batch)
        by_entry: dict[int, list[tuple[Place, list[Edit]]]] = defaultdict(list)
        for place, edits in self.cells:
            by_entry[_entry(edits)].append((place, edits))
        last = Site("resid_post", layout.num_layers - 1)
        wanted = "last" if batch.kind == "question" else "all"
        streams = [Site("resid_pre", layer) for layer in by_entry] if selected.any() else []
        base = run(model, batch.tokens, read=[last, *streams], logits=wanted, layout=layout)
        plain = Outputs(logits=base.logits, stream=base[last])
        yield None, measures(batch, plain, plain, selected)
        room = max(1, _ROOM // batch.tokens.ids.numel())
        for entry, cells in by_entry.items():
            for begin in range(0, len(cells), room):
                some = cells[begin : begin + room]
                if not streams:
                    yield from ((place, measures(batch, plain, plain, selected)) for place, _ in some)
                    continue
                number, size = len(some), len(selected)
                edits = [
                    _placed(edit, self.where, selected, k, number) for k, (_, each) in enumerate(some) for edit in each
                ]
                start = (entry, base[Site("resid_pre", entry)].repeat(number, 1, 1))
                tokens = repeated(batch.tokens, number)
                found = run(model, tokens, read=last, edits=edits, logits=wanted, start=start, layout=layout)
                parts = zip(some, found.logits.split(size), found[last].split(size), strict=True)
                for (place, _), part, stream in parts:
                    yield place, measures(batch, Outputs(logits=part, stream=stream), plain, selected)

    def _selected(self, batch: Batch) -> Tensor:
        """Which tokens of each text are steered."""
        index = torch.where(batch.tokens.mask.bool(), torch.arange(batch.tokens.ids.shape[1]), -1)
        behind = batch.kind == "neutral" and isinstance(self.where, Generated | Predicting)
        lengths = torch.tensor([1 if behind else case.prompt for case in batch.cases])
        chosen = self.where.select(index, lengths)
        if batch.kind == "question" and self.edits and not bool(chosen.any(-1).all()):
            raise SteeringError(
                "no token of a question is steered at these positions, so that its answer cannot change: the answer is "
                "read from the prompt's last token; steer 'predicting' tokens, which includes it"
            )
        return chosen

    def _repetition(self, cases: Sequence[Case], new_tokens: int) -> tuple[Tensor, Tensor]:
        """The share of repeated runs of tokens in what is generated; for the vector only."""
        before = torch.full((len(cases),), torch.nan, dtype=torch.float64)
        after = torch.full((len(cases), *self.shape), torch.nan, dtype=torch.float64)
        cells = [(place, edits) for place, edits in self.cells if place[0] == 0]
        room = max(1, _ROOM // 64)  # texts that are generated side by side
        for numbers, batch in batches(cases, padded=self.wiring.padding.get("left") is None, side="left"):
            rows, size = torch.tensor(numbers), len(numbers)
            before[rows] = self._generated(batch.tokens, [], new_tokens)
            step = max(1, room // size)
            for begin in range(0, len(cells), step):
                some = cells[begin : begin + step]
                edits = [
                    replace(edit, rows=tuple(range(k * size, (k + 1) * size)))
                    for k, (_, each) in enumerate(some)
                    for edit in each
                ]
                found = self._generated(repeated(batch.tokens, len(some)), edits, new_tokens)
                for (place, _), x in zip(some, found.split(size), strict=True):
                    after[(rows, *place)] = x
        return before, after

    def _generated(self, tokens: Tokens, edits: list[Edit], new_tokens: int) -> Tensor:
        base: Any = self.wiring.base
        device = base.get_input_embeddings().weight.device
        ids, mask = tokens.ids.to(device), tokens.mask.to(device)
        filler = base.generation_config.pad_token_id or 0
        settings = {"max_new_tokens": new_tokens, "do_sample": False, "num_beams": 1, "pad_token_id": filler}
        with editing(self.wiring.model, edits, tokens=tokens, layout=self.wiring.layout):
            # A text that ends early would have fewer tokens to repeat.
            text = base.generate(ids, attention_mask=mask, eos_token_id=None, **settings)
        return torch.tensor([repetition(row) for row in text[:, ids.shape[1] :].tolist()], dtype=torch.float64)


def _placed(edit: Edit, where: Positions, selected: Tensor, k: int, number: int) -> Edit:
    """The edit at the tokens that are meant, in the rows of one cell; one that only looks stays where it is."""
    if edit.positions != where:
        return edit
    none: list[tuple[int, ...]] = [()] * len(selected)
    own = [tuple(int(n) for n in row.nonzero()[:, 0]) for row in selected]
    return replace(edit, positions=PerRow(tuple(none * k + own + none * (number - k - 1))))


def _entry(edits: Sequence[Edit]) -> int:
    return min(int(edit.site.layer or 0) for edit in edits)


def _grouped(values: Tensor, groups: Tensor) -> Tensor:
    """The mean over the questions of each group."""
    number = int(groups.max()) + 1
    total = values.new_zeros(number, *values.shape[1:]).index_add_(0, groups, values)
    counts = torch.bincount(groups, minlength=number).to(values)
    return total / counts.view(-1, *[1] * (values.ndim - 1))


__all__ = ["steering_sweep"]
