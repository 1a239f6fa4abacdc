"""Causal tracing: corrupt the subject of a prompt, restore clean states one by one, see what brings the answer back.

After Meng et al. 2022, Locating and Editing Factual Associations in GPT (ROME), section 2.1 and appendix B. The
corrupted run has noise on the embeddings of the subject's tokens, or another subject in their place. Each cell of the
result is that run with the clean run's activations put back at one position, in one layer or a window of layers.
"""

from __future__ import annotations

import functools
import math
import operator
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp_toolkit.circuits.dataset import Pairs
from interp_toolkit.circuits.effects import Effects
from interp_toolkit.circuits.grid import Where
from interp_toolkit.circuits.measuring import chunks, in_float32, question_of
from interp_toolkit.circuits.metrics import Metric, MetricLike, Question, metric_of
from interp_toolkit.circuits.subjects import (
    ROWS,
    Groups,
    Subject,
    TracedAnswer,
    answered,
    check_numbers,
    last_of,
    pairs_of,
    places_of,
    rows_of,
    warn_outside,
    windows_of,
    with_noise,
)
from interp_toolkit.circuits.sweeps import notes_of
from interp_toolkit.errors import InterpWarning
from interp_toolkit.model.cells import Base, Cell, Swap
from interp_toolkit.model.execution import Execution
from interp_toolkit.model.layout import Layout
from interp_toolkit.model.plan import Plan, make_plan
from interp_toolkit.model.run import run
from interp_toolkit.model.schedule import Cost
from interp_toolkit.model.sites import Site
from interp_toolkit.model.tokens import (
    Inputs,
)
from interp_toolkit.model.verify import verified
from interp_toolkit.model.wiring import Wiring
from interp_toolkit.provenance import provenance_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True, eq=False)
class _Traced:
    """What the runs of one prompt gave.

    Attributes:
        cells: the metric with each window and row restored, for each corrupted run.
        corrupt: the metric of each corrupted run.
        clean: the metric of the clean run.
    """

    cells: Float[Tensor, "sample layer pos"]
    corrupt: Float[Tensor, " sample"]
    clean: Float[Tensor, ""]


@dataclass(frozen=True, kw_only=True, eq=False)
class Trace:
    """A causal trace that is ready to be run. Make it with `prepare_trace`.

    Attributes:
        model: the model.
        wiring: what is known of it.
        pairs: the prompts and their answers.
        corrupted: for each prompt its corrupted runs.
        component: what is restored.
        windows: for each layer the sites that are restored together; none where the model lacks one of them.
        labels: names of the rows.
        rows: for each prompt and row its positions.
        metric: what is measured.
        title: what is done, in a line.
        memory: bytes that passes may take, or None.
        notes: what should be known with the result.
    """

    model: nn.Module
    wiring: Wiring
    pairs: Pairs
    corrupted: tuple[tuple[Base, ...], ...]
    component: str
    windows: tuple[tuple[Site, ...], ...]
    labels: tuple[str, ...]
    rows: tuple[tuple[Groups, ...], ...]
    metric: Metric
    title: str
    memory: int | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    def run(self) -> Effects:
        """The effects of all cells, from a run each.

        Raises:
            MetricError: when the metric gives no number.
        """
        traced: list[_Traced] = []
        costs: list[Cost] = []
        for numbers in self._chunks():
            plan = self._plan(numbers)
            costs.append(plan.cost)
            traced += self._traced(plan, numbers)
        effects = self._effects(traced, functools.reduce(operator.add, costs))
        _warn_without_corruption(effects)
        return effects

    def explain(self) -> str:
        """What running every cell costs, in words, before any is run."""
        costs = [self._plan(numbers).cost for numbers in self._chunks()]
        return functools.reduce(operator.add, costs).summary()

    def _chunks(self) -> list[list[int]]:
        """Prompts that are worked on together."""
        runs = [1 + len(corrupted) for corrupted in self.corrupted]
        return chunks(self.wiring, self.pairs.lengths, runs, self.component, self.memory)

    def _starts(self, numbers: Sequence[int]) -> list[int]:
        """For each of some prompts the number of its clean base run; its corrupted ones follow."""
        runs = [1 + len(self.corrupted[number]) for number in numbers]
        return [sum(runs[:at]) for at in range(len(runs))]

    def _groups(self, number: int) -> list[tuple[int, ...]]:
        """Positions of one prompt that are restored together, each once."""
        return list(dict.fromkeys(group for groups in self.rows[number] for group in groups))

    def _plan(self, numbers: Sequence[int]) -> Plan:
        """For each prompt its corrupted runs, with each window restored at each group of positions."""
        bases: list[Base] = []
        cells: list[Cell] = []
        needed = []
        empty = torch.zeros(1).expand(self.wiring.shapes["logits"][-1])
        for number, start in zip(numbers, self._starts(numbers), strict=True):
            here = [Base(tokens=self.pairs.clean[number]), *self.corrupted[number]]
            needed += [self.metric.needs(question_of(self.pairs, number, empty, empty))] * len(here)
            bases += here
            for base in range(start + 1, start + len(here)):
                for sites in self.windows:
                    for where in self._groups(number):
                        swaps = tuple(Swap(site=site, source=start, positions=where) for site in sites)
                        cells.append(Cell(base=base, swaps=swaps))
        vocab = [ids for ids in needed if ids is not None]
        return make_plan(
            self.model,
            bases,
            cells,
            vocab=vocab if len(vocab) == len(bases) else None,
            memory=self.memory,
            layout=self.wiring.layout,
        )

    def _traced(self, plan: Plan, numbers: Sequence[int]) -> list[_Traced]:
        """Carry out a plan, and measure every run of it."""
        runs = plan.run(progress=True)
        questions: list[Question] = []
        for number, start in zip(numbers, self._starts(numbers), strict=True):
            logits = [in_float32(runs.base_logits(start + n)[-1]) for n in range(1 + len(self.corrupted[number]))]
            questions += [question_of(self.pairs, number, logits[0], other) for other in logits]
        ends = torch.cat([self._base(runs, base, question) for base, question in enumerate(questions)])
        values = torch.full((len(plan.schedule.cells),), torch.nan, dtype=ends.dtype)
        for answer in runs:
            measured = self.metric.measure(answer.logits[:, -1], questions[answer.base])
            values[list(answer.cells)] = measured.to(values)
        sizes = [len(self.corrupted[n]) * len(self.windows) * len(self._groups(n)) for n in numbers]
        found = []
        for number, start, mine in zip(numbers, self._starts(numbers), values.split(sizes), strict=True):
            samples = len(self.corrupted[number])
            found.append(
                _Traced(
                    cells=self._by_row(number, mine.view(samples, len(self.windows), -1)),
                    corrupt=ends[start + 1 : start + 1 + samples],
                    clean=ends[start],
                )
            )
        return found

    def _base(self, runs: Execution, base: int, question: Question) -> Float[Tensor, " 1"]:
        """The metric of a base run."""
        return self.metric.measure(runs.base_logits(base, self.metric.needs(question))[-1:], question).cpu()

    def _by_row(self, number: int, values: Float[Tensor, "sample layer group"]) -> Float[Tensor, "sample layer pos"]:
        """The mean of each row's groups; NaN for a row without any, and for layers that lack the component."""
        place = {group: at for at, group in enumerate(self._groups(number))}
        rows = [values[:, :, [place[group] for group in groups]].mean(-1) for groups in self.rows[number]]
        missing = torch.tensor([not sites for sites in self.windows])
        return torch.stack(rows, dim=-1).masked_fill(missing[None, :, None], torch.nan)

    def _effects(self, traced: Sequence[_Traced], cost: Cost) -> Effects:
        corrupt = torch.stack([one.corrupt.mean() for one in traced])
        notes = self.notes | {"cost": cost.summary()}
        if all(len(one.corrupt) > 1 for one in traced):
            notes["corrupt_spread"] = [float(one.corrupt.std()) for one in traced]
            notes["spread"] = [_numbers(one.cells.std(0)) for one in traced]
        return Effects(
            title=self.title,
            axes=("layer", "pos"),
            labels=(tuple(map(str, range(len(self.windows)))), self.labels),
            values=torch.stack([one.cells.mean(0) for one in traced]),
            base=corrupt,
            clean=torch.stack([one.clean for one in traced]),
            corrupt=corrupt,
            metric=self.metric.name,
            unit=self.metric.unit,
            larger_is_cleaner=self.metric.larger_is_cleaner,
            direction="denoise",
            notes=notes,
            provenance=provenance_of(self.model, self.wiring.layout),
        )


def causal_trace(
    model: nn.Module,
    prompts: Inputs,
    subject: Subject,
    *,
    answer: TracedAnswer = None,
    corruption: Inputs = "noise",
    noise: float = 3.0,
    samples: int = 10,
    seed: int = 0,
    component: str = "resid",
    window: int = 1,
    positions: Where = None,
    metric: MetricLike = "prob",
    memory: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    layout: Layout | None = None,
) -> Effects:
    """Corrupt the subject of a prompt, restore clean states one by one, and see what brings the answer back.

    Noise is added to what enters block 0 (`embed`: token embeddings, scaled where the model scales them, with learned
    positions where it has them) at the subject's tokens. It is Gaussian, independent for every token, entry and sample,
    with a standard deviation of `noise` times that of all entries of `embed` at the subjects' tokens in the prompts
    given. ROME takes the standard deviation of token embeddings over the subjects of a corpus; to reproduce a given
    noise level, divide it by `effects.notes["noise"]["std"]`. Noise is drawn in float32 on the CPU, prompt by prompt
    and sample by sample, so that it is the same on every device; torch's global random state is left alone.

    Args:
        model: a causal language model, as it is.
        prompts: a prompt that the model continues with a fact, or a list of prompts.
        subject: its text, or its positions: numbers, or a `Span`. For several prompts one for all, or a list with one
            for each.
        answer: the token that continues the prompt, or `(target, foil)` for metrics that compare; a list has one for
            each prompt. None takes the clean run's own most probable token, and the notes say which that is.
        corruption: `"noise"`, or a prompt with another subject of as many tokens (for each prompt).
        noise: standard deviation of the noise, in units of that of the subjects' embeddings.
        samples: how many times noise is drawn for each prompt; values are means over them.
        seed: of the noise.
        component: `"resid"` restores the hidden state **behind** each layer (`resid_post`), as ROME does; `"attn"` and
            `"mlp"` what these add to it; or any other component with layers.
        window: how many layers are restored together, from `window // 2` before the labelled one on; the paper takes
            10 for `"attn"` and `"mlp"`. At the first and last layers the window is cut off.
        positions: which positions are restored, each on its own, or named groups that are restored together. By
            default all tokens of a single prompt, those of its subject marked with a star. Several prompts get the
            six rows `ROWS`, each the mean over tokens that are restored one by one; a subject of one token counts as
            its own first and last.
        metric: see `metric_of`; the paper takes the probability of the answer.
        memory: bytes that passes may take beside the model; half of what is free by default.
        tokenizer: needed when the model does not say where it comes from.
        layout: for a model class of your own.

    Returns:
        The metric with each window restored at each position, of every prompt, with the clean run's and the corrupted
        runs' (mean over samples). A row that a prompt has no token for is NaN there. With several samples,
        `notes["spread"]` and `notes["corrupt_spread"]` have the standard deviation over them, nested as the values
        are: `[prompt][layer][pos]`.

    Raises:
        PositionError: when the subject is not in a prompt, or nothing follows it.
        RunError: for a window, noise or number of samples that is not positive, and lists of another length.
        AlignmentError: when a prompt and the one with another subject have different numbers of tokens.
        TokenError: for empty prompts and answers that are not one token.
        SiteError: for components that this model does not have.
        MetricError: when the metric gives no number, or needs an answer that is not given.

    Example:
        >>> import interp_toolkit
        >>> model, tokenizer = interp_toolkit.load_model("demo")
        >>> effects = causal_trace(
        ...     model, "The Eiffel Tower is in", "Eiffel", answer="Paris", samples=2, positions=[2, -1])
        >>> effects.labels[1], tuple(effects.values.shape)
        (('2 iffel*', '5 in'), (1, 30, 2))
        >>> (effects.effect[[5, 25]] > 0.5).tolist()  # early layers at the subject, late ones at the last token
        [[True, False], [False, True]]
    """
    return prepare_trace(
        model,
        prompts,
        subject,
        answer=answer,
        corruption=corruption,
        noise=noise,
        samples=samples,
        seed=seed,
        component=component,
        window=window,
        positions=positions,
        metric=metric,
        memory=memory,
        tokenizer=tokenizer,
        layout=layout,
    ).run()


def prepare_trace(
    model: nn.Module,
    prompts: Inputs,
    subject: Subject,
    *,
    answer: TracedAnswer = None,
    corruption: Inputs = "noise",
    noise: float = 3.0,
    samples: int = 10,
    seed: int = 0,
    component: str = "resid",
    window: int = 1,
    positions: Where = None,
    metric: MetricLike = "prob",
    memory: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    layout: Layout | None = None,
) -> Trace:
    """Check everything that a causal trace needs, with one run of each prompt; see `causal_trace`.

    Returns:
        The trace: `.explain()` says what it costs, `.run()` runs it.
    """
    check_numbers(window=window, samples=samples, noise=noise)
    wiring, noisy = verified(model, layout), isinstance(corruption, str) and corruption == "noise"
    pairs = pairs_of(model, prompts, None if noisy else corruption, answer, tokenizer)
    places = places_of(subject, pairs)
    runs = [run(model, tokens, read="embed" if noisy else (), logits="last", layout=layout) for tokens in pairs.clean]
    pairs = answered(pairs, answer, [last_of(found) for found in runs])
    if noisy:
        corrupted, facts = with_noise(pairs, places, [found["embed"] for found in runs], (noise, samples, seed))
    else:
        corrupted, facts = tuple((Base(tokens=tokens),) for tokens in pairs.corrupt), notes_of(pairs)
        warn_outside(pairs, places)
    name, labels, rows = rows_of(wiring, pairs, places, component, positions)
    chosen = f"{name} in windows of {window} layers" if window > 1 else name
    return Trace(
        model=model,
        wiring=wiring,
        pairs=pairs,
        corrupted=corrupted,
        component=name,
        windows=windows_of(name, window, wiring),
        labels=labels,
        rows=rows,
        metric=metric_of(metric),
        title=f"Restoring {chosen} after {'noise on the subject' if noisy else 'another subject'}",
        memory=memory,
        notes=facts | _notes(pairs, places, given=answer is not None, window=window),
    )


def _warn_without_corruption(effects: Effects) -> None:
    """Warn when the corruption does not make the answer worse."""
    worse = int((effects.gap <= 0).sum())
    if worse:
        many = "" if len(effects.base) == 1 else f" for {worse} of {len(effects.base)} prompts"
        warnings.warn(
            f"corrupting the subject does not lower the clean answer{many} ({effects.metric}: clean "
            f"{float(effects.clean.mean()):.3f}, corrupted {float(effects.corrupt.mean()):.3f} on average), so "
            "there is nothing to restore and effects mean little: use more noise or another subject, or leave such "
            "prompts out",
            InterpWarning,
            stacklevel=4,
        )


# --- what is said -------------------------------------------------------------------------------------------------


def _notes(pairs: Pairs, places: Sequence[tuple[int, ...]], *, given: bool, window: int) -> dict[str, Any]:
    return {
        "subjects": [
            "".join(tokens.strings()[n] for n in where) for tokens, where in zip(pairs.clean, places, strict=True)
        ],
        "traced_answers": [pairs.answer_names(n)[0] for n in range(len(pairs))],
        "answers_from": "given" if given else "the clean run's own most probable token",
        "window": window,
    }


def _numbers(values: Float[Tensor, "layer pos"]) -> list[list[float | None]]:
    """Numbers for JSON, which has no NaN."""
    return [[None if math.isnan(x) else x for x in row] for row in values.tolist()]


__all__ = ["ROWS", "Subject", "Trace", "TracedAnswer", "causal_trace", "prepare_trace"]
