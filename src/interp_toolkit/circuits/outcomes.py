"""Outcomes: what edited runs of single prompts are measured by, at the last position or over the whole prompt."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp_toolkit.circuits.dataset import Pairs
from interp_toolkit.circuits.metrics import METRICS, Metric, MetricLike, Question, metric_of
from interp_toolkit.errors import InterpWarning, MetricError, TokenError
from interp_toolkit.model.cells import Base, Cell
from interp_toolkit.model.plan import Plan, make_plan
from interp_toolkit.model.wiring import Wiring

_AT_ONCE = 2**22  # logits that are worked on together


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What runs are measured by; get one with `outcome_of`.

    Attributes:
        name: what users call it.
        unit: of the number.
        larger_is_cleaner: whether the unedited run should have the larger number.
        metric: what is measured at the last position, or at each of them; None for the loss.
        everywhere: whether it is a mean over the whole prompt.
    """

    name: str
    unit: str
    larger_is_cleaner: bool
    metric: Metric | None
    everywhere: bool


def outcome_of(spec: MetricLike) -> Outcome:
    """The outcome that is meant.

    Besides the metrics of `metric_of`, which are measured at the last position:

    | name | number |
    |---|---|
    | `loss` | mean cross-entropy of every next token of the prompt, in nats |
    | `mean_kl` | KL(unedited run ‖ this run), mean over all positions |

    Raises:
        MetricError: for anything else.
    """
    if spec == "loss":
        return Outcome(name="loss", unit="nats", larger_is_cleaner=False, metric=None, everywhere=True)
    if spec == "mean_kl":
        return Outcome(name="mean_kl", unit="nats", larger_is_cleaner=False, metric=METRICS["kl"], everywhere=True)
    if isinstance(spec, str) and spec not in METRICS:
        raise MetricError(f"a metric is one of {', '.join(METRICS)}, loss, mean_kl, or a function, not {spec!r}")
    metric = metric_of(spec)
    return Outcome(
        name=metric.name,
        unit=metric.unit,
        larger_is_cleaner=metric.larger_is_cleaner,
        metric=metric,
        everywhere=False,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Graded:
    """What runs gave.

    Attributes:
        cells: of each edited run.
        clean: of each prompt's unedited run.
        wrong: numbers of the prompts that the unedited model does not answer rightly.
    """

    cells: Float[Tensor, "outcome cell"]
    clean: Float[Tensor, "outcome prompt"]
    wrong: tuple[int, ...] = ()


def plan_prompts(
    wiring: Wiring,
    prompts: Pairs,
    numbers: Sequence[int],
    others: Sequence[Base],
    cells: Sequence[Cell],
    outcomes: Sequence[Outcome],
    memory: int | None,
) -> Plan:
    """Plan edited runs of some prompts.

    Args:
        wiring: the model.
        prompts: all prompts; their clean side is run.
        numbers: which of them. The `n`-th of these is base run `n`.
        others: further base runs, to take activations from.
        cells: edited runs.
        outcomes: what will be measured.
        memory: bytes that passes may take.

    Raises:
        MetricError: for a metric that needs answers where there are none.
        TokenError: for the loss of a prompt of one token.
    """
    bases = [*(Base(tokens=prompts.clean[n]) for n in numbers), *others]
    size = wiring.shapes["logits"][-1]
    empty = torch.zeros(1).expand(size)
    needed = {
        outcome.metric.needs(_question(prompts, n, empty)) if outcome.metric and not outcome.everywhere else None
        for n in numbers
        for outcome in outcomes
    }
    everywhere = any(outcome.everywhere for outcome in outcomes)
    if any(outcome.metric is None for outcome in outcomes):
        short = [n for n in numbers if prompts.lengths[n] < 2]
        if short:
            raise TokenError(f"prompt {short[0]} has one token, so there is no next token to have a loss")
    whole = None in needed
    answers = [prompts.targets[n] + prompts.foils[n] for n in numbers]
    return make_plan(
        wiring.model,
        bases,
        cells,
        logits="all" if everywhere else "last",
        vocab=None if whole else [*answers, *[answers[0]] * len(others)],
        memory=memory,
        layout=wiring.layout,
    )


def grade(plan: Plan, prompts: Pairs, numbers: Sequence[int], outcomes: Sequence[Outcome]) -> Graded:
    """Carry out what `plan_prompts` planned.

    Raises:
        MetricError: when a metric gives no number.
    """
    runs = plan.run(progress=True)
    vocab = plan.schedule.task.vocab
    graders = []
    for at, number in enumerate(numbers):
        logits = runs.base_logits(at)
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        graders.append(_Grader(prompts, number, wide, None if vocab is None else vocab[at]))
    clean = torch.stack([grader.clean(outcomes) for grader in graders], dim=1)
    cells = torch.full((len(outcomes), len(plan.schedule.cells)), torch.nan, dtype=clean.dtype)
    for answer in runs:
        grader = graders[answer.base]
        for n, outcome in enumerate(outcomes):
            cells[n, list(answer.cells)] = grader.values(outcome, answer.logits).to(cells)
    return Graded(cells=cells, clean=clean, wrong=tuple(g.number for g in graders if not g.answered))


class _Grader:
    """What is known of one prompt.

    Args:
        prompts: all prompts.
        number: which of them.
        logits: of its unedited run, at the positions that are read.
        columns: the tokens whose logits the edited runs give; None for all.
    """

    def __init__(
        self, prompts: Pairs, number: int, logits: Float[Tensor, "pos vocab"], columns: tuple[int, ...] | None
    ) -> None:
        self.number, self.columns, self.logits = number, columns, logits
        self.ids = prompts.clean[number].ids[0]
        self.question = _question(prompts, number, logits[-1])
        self.everywhere: list[Question] = []

    @property
    def answered(self) -> bool:
        """Whether the unedited run prefers a target to every foil, if there are any."""
        targets, foils = self.question.targets, self.question.foils
        last = self.logits[-1]
        return not (targets and foils) or bool(last[list(targets)].max() > last[list(foils)].max())

    def clean(self, outcomes: Sequence[Outcome]) -> Float[Tensor, " outcome"]:
        """The unedited run."""
        logits = self.logits if self.columns is None else self.logits[:, list(self.columns)]
        return torch.stack([self.values(outcome, logits[None])[0].cpu() for outcome in outcomes])

    def values(self, outcome: Outcome, logits: Float[Tensor, "cell pos columns"]) -> Float[Tensor, " cell"]:
        """The number of each of some runs."""
        if outcome.metric is None:
            return self._loss(logits)
        if not outcome.everywhere:
            needed = outcome.metric.needs(self.question)
            last = logits[:, -1]
            cut = needed is not None and self.columns is None
            return outcome.metric.measure(last[:, list(needed or ())] if cut else last, self.question)
        every = [
            outcome.metric.measure(logits[:, n], Question(targets=(), foils=(), clean_logits=at, corrupt_logits=at))
            for n, at in enumerate(self.logits)
        ]
        return torch.stack(every).mean(0)

    def _loss(self, logits: Float[Tensor, "cell pos vocab"]) -> Float[Tensor, " cell"]:
        wide = torch.promote_types(logits.dtype, torch.float32)
        following = self.ids[1:].to(logits.device)
        rows = max(1, _AT_ONCE // (logits.shape[1] * logits.shape[2]))
        found = torch.cat(
            [
                nn.functional.cross_entropy(
                    part[:, :-1].to(wide).transpose(1, 2), following.expand(len(part), -1), reduction="none"
                ).mean(-1)
                for part in logits.split(rows)
            ]
        )
        if not bool(found.isfinite().all()):
            raise MetricError(f"the loss of prompt {self.number} is {float(found[~found.isfinite()][0])} in some run")
        return found


def _question(prompts: Pairs, number: int, logits: Tensor) -> Question:
    return Question(
        targets=prompts.targets[number], foils=prompts.foils[number], clean_logits=logits, corrupt_logits=logits
    )


def warn_of(wrong: Sequence[int], stacklevel: int = 4) -> None:
    """Warn of prompts that the unedited model does not answer rightly."""
    if wrong:
        which = f"{len(wrong)} prompts are" if len(wrong) > 1 else f"prompt {wrong[0]} is"
        warnings.warn(
            f"{which} not answered rightly by the model as it is (no target has a larger logit than every foil): it "
            "does not show the behaviour there, and what ablation does to it means little; leave such prompts out",
            InterpWarning,
            stacklevel=stacklevel,
        )


__all__ = ["Graded", "Outcome", "grade", "outcome_of", "plan_prompts", "warn_of"]
