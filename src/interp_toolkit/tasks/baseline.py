"""How well a model does a behaviour, before anyone asks how."""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from interp_toolkit.errors import InterpWarning, RunError, TokenError
from interp_toolkit.model.layout import layout_of
from interp_toolkit.model.run import run
from interp_toolkit.provenance import Provenance, provenance_of
from interp_toolkit.statistics import wilson
from interp_toolkit.tasks.task import MetricName, Task, TaskPair

if TYPE_CHECKING:
    from interp_toolkit.model import Layout
    from interp_toolkit.visualization.lines import LineChart

_UNITS: dict[MetricName, str] = {"logit_diff": "logit difference", "prob_diff": "probability difference"}


@dataclass(frozen=True, kw_only=True)
class Score:
    """How well a model does on some pairs.

    Pairs with the same clean prompt are not independent of each other, so the interval and the standard errors count
    distinct clean prompts instead of pairs.

    Attributes:
        pairs: how many pairs.
        prompts: how many distinct clean prompts among them.
        accuracy: share of clean prompts in which the target is preferred to the foil: the metric is above 0.
        interval: 95% Wilson interval of the accuracy.
        top: share of clean prompts whose most probable token of all is a target.
        clean_mean: mean of the metric over clean prompts.
        clean_error: its standard error; NaN for a single prompt.
        corrupt_mean: mean over corrupt prompts, for the same target and foil.
        corrupt_error: its standard error.
        clean_better: share of pairs in which the clean prompt has the larger metric.
    """

    pairs: int
    prompts: int
    accuracy: float
    interval: tuple[float, float]
    top: float
    clean_mean: float
    clean_error: float
    corrupt_mean: float
    corrupt_error: float
    clean_better: float


@dataclass(frozen=True, kw_only=True)
class Baseline(Score):
    """How well a model does a task, over all pairs and per template.

    Attributes:
        task: the name of the behaviour.
        split: the split.
        metric: `"logit_diff"` or `"prob_diff"`.
        templates: the score on each template.
        clean: the metric of each clean prompt, in the order of the pairs.
        corrupt: the metric of each corrupt prompt.
        dropped: pairs that had been left out of the task before.
        provenance: model, layout and versions.
    """

    task: str
    split: str
    metric: MetricName
    templates: dict[str, Score]
    clean: tuple[float, ...] = field(repr=False)
    corrupt: tuple[float, ...] = field(repr=False)
    dropped: int
    provenance: Provenance = field(repr=False)

    @property
    def does_it(self) -> bool:
        """Whether the model does the behaviour, beyond what guessing explains.

        The interval of the accuracy is above one half, and so is that of the share of pairs in which the clean prompt
        favours the target more than the corrupt one.
        """
        return self.interval[0] > 0.5 and wilson(self.clean_better * self.prompts, self.prompts)[0] > 0.5

    def summary(self) -> str:
        """The report in words."""
        name = self.provenance.model
        verb = "does" if self.does_it else "does not show"
        dropped = f" ({self.dropped} were dropped before)" if self.dropped else ""
        what = f"{self.split} split, {self.pairs} pairs, {self.prompts} distinct clean prompts{dropped}"
        clean, corrupt = _mean(self.clean_mean, self.clean_error), _mean(self.corrupt_mean, self.corrupt_error)
        lines = [
            f"{name} {verb} {self.task}: {what}",
            f"  accuracy {_percent(self)}; the answer is the most probable token of all in {self.top:.0%}",
            f"  {_UNITS[self.metric]} {clean} on clean, {corrupt} on corrupt prompts",
            f"  larger on the clean prompt in {self.clean_better:.0%} of pairs",
        ]
        if len(self.templates) > 1:
            lines += [f"  {_percent(score)} of {score.pairs}: {kind!r}" for kind, score in self.templates.items()]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """All numbers as plain data; None where there is no number."""
        facts: dict[str, Any] = _without_nan({**asdict(self), "does_it": self.does_it})
        return facts

    def plot(self) -> LineChart:
        """Accuracy with its interval, of all prompts and of each template."""
        from interp_toolkit.visualization.lines import LineChart, Series

        parts: dict[str, Score] = {"all": self}
        if len(self.templates) > 1:
            parts |= {f"{n}: {kind}": score for n, (kind, score) in enumerate(self.templates.items(), start=1)}
        scores = list(parts.values())
        low, high = ([score.interval[end] for score in scores] for end in (0, 1))
        accuracy = Series(name="accuracy", y=[score.accuracy for score in scores], low=low, high=high, joined=False)
        return LineChart(
            x=list(parts),
            series=[accuracy],
            title=f"How well the model does {self.task}",
            caption=f"{self.split} split, {self.prompts} distinct clean prompts, with 95% Wilson intervals.",
            x_name="template" if len(parts) > 1 else "",
            y_name="accuracy",
            references=[("guessing", 0.5)],
        )

    def _repr_html_(self) -> str:
        from html import escape

        return f'<pre style="white-space: pre-wrap">{escape(self.summary())}</pre>{self.plot()._repr_html_()}'


def measure(task: Task, model: nn.Module, *, batch_size: int = 32, layout: Layout | None = None) -> Baseline:
    """How well a model does a task; users call `task.baseline(model)`.

    Warns:
        InterpWarning: when the model does not do the behaviour.
    """
    clean, tops = _answered(task, model, "clean", batch_size, layout)
    corrupt, _ = _answered(task, model, "corrupt", batch_size, layout)
    kinds = {kind: [n for n, pair in enumerate(task.pairs) if pair.template == kind] for kind in sorted(task.templates)}
    rows = list(zip(task.pairs, clean, corrupt, tops, strict=True))
    report = Baseline(
        **vars(_score(rows)),
        task=task.name,
        split=task.split,
        metric=task.metric,
        templates={kind: _score([rows[n] for n in numbers]) for kind, numbers in kinds.items()},
        clean=tuple(clean),
        corrupt=tuple(corrupt),
        dropped=task.dropped,
        provenance=provenance_of(model, layout or layout_of(model)),
    )
    if not report.does_it:
        warnings.warn(_doubt(report), InterpWarning, stacklevel=3)
    return report


def right_ones(task: Task, model: nn.Module, *, batch_size: int = 32, layout: Layout | None = None) -> list[int]:
    """Numbers of the pairs whose clean prompt the model gets right; users call `task.filtered(model)`.

    Raises:
        RunError: when there are none.
    """
    values, _ = _answered(task, model, "clean", batch_size, layout)
    kept = [n for n, value in enumerate(values) if value > 0]
    if not kept:
        raise RunError(
            f"the model gets none of the {len(task)} clean prompts of {task.name!r} right: it does not do it"
        )
    return kept


def _answered(
    task: Task, model: nn.Module, side: str, batch_size: int, layout: Layout | None
) -> tuple[list[float], list[bool]]:
    """The metric of each pair's prompt, and whether a target is the most probable token."""
    if batch_size < 1:
        raise RunError(f"batch_size is how many prompts are run together, at least 1, not {batch_size}")
    users: dict[tuple[int, ...], list[int]] = defaultdict(list)  # a prompt that several pairs share is run once
    for number, pair in enumerate(task.pairs):
        users[pair.clean_ids if side == "clean" else pair.corrupt_ids].append(number)
    values, tops = [math.nan] * len(task), [False] * len(task)
    for prompts in _batches(list(users), batch_size):
        logits = run(model, [list(ids) for ids in prompts], logits="last", layout=layout).logits
        for ids, row in zip(prompts, logits[:, -1].float().cpu(), strict=True):
            best = int(row.argmax())
            for number in users[ids]:
                values[number] = _metric(row, task.pairs[number], task.metric)
                tops[number] = best in task.pairs[number].targets
    return values, tops


def _batches(prompts: Sequence[tuple[int, ...]], size: int) -> Iterator[list[tuple[int, ...]]]:
    """Prompts of one length at a time, so that none is padded."""
    for length in sorted({len(ids) for ids in prompts}):
        alike = [ids for ids in prompts if len(ids) == length]
        for begin in range(0, len(alike), size):
            yield alike[begin : begin + size]


def _metric(logits: Tensor, pair: TaskPair, metric: MetricName) -> float:
    if max(*pair.targets, *pair.foils) >= len(logits):
        raise TokenError(
            f"the model has {len(logits)} tokens, but an answer is token {max(*pair.targets, *pair.foils)}: the task "
            "was made for another tokenizer"
        )
    values = logits if metric == "logit_diff" else logits.softmax(-1)
    target, foil = values[list(pair.targets)], values[list(pair.foils)]
    difference = target.mean() - foil.mean() if metric == "logit_diff" else target.sum() - foil.sum()
    if not bool(difference.isfinite()):
        raise RunError(
            f"the answer to {pair.clean or pair.clean_ids!r} is {float(difference)}, no number: in half precision this "
            "is often an overflow; load the model in bfloat16 or float32"
        )
    return float(difference)


def _score(rows: Sequence[tuple[TaskPair, float, float, bool]]) -> Score:
    clean, corrupt = [row[1] for row in rows], [row[2] for row in rows]
    prompts = len({row[0].clean_ids for row in rows})
    accuracy = fmean(value > 0 for value in clean)
    return Score(
        pairs=len(rows),
        prompts=prompts,
        accuracy=accuracy,
        interval=wilson(accuracy * prompts, prompts),
        top=fmean(row[3] for row in rows),
        clean_mean=fmean(clean),
        clean_error=_error(clean, prompts),
        corrupt_mean=fmean(corrupt),
        corrupt_error=_error(corrupt, prompts),
        clean_better=fmean(a > b for a, b in zip(clean, corrupt, strict=True)),
    )


def _error(values: Sequence[float], prompts: int) -> float:
    return stdev(values) / math.sqrt(prompts) if prompts > 1 else math.nan


def _doubt(report: Baseline) -> str:
    low, high = report.interval
    if low <= 0.5:
        what = (
            f"it prefers the right answer in {report.accuracy:.0%} of {report.pairs} pairs (95% interval {low:.0%} to "
            f"{high:.0%} for {report.prompts} distinct prompts), which guessing could do"
        )
    else:
        what = (
            f"the clean prompt favours the answer more than the corrupt one in only {report.clean_better:.0%} of pairs"
        )
    more = "; with more pairs it may be clearer" if report.accuracy > 0.5 and report.prompts < 100 else ""
    return f"the model does not show {report.task!r}: {what}{more}. What is found on these prompts means little"


def _percent(score: Score) -> str:
    return f"{score.accuracy:.0%} ({score.interval[0]:.0%} to {score.interval[1]:.0%})"


def _mean(mean: float, error: float) -> str:
    return f"{mean:+.2f}" if math.isnan(error) else f"{mean:+.2f} ± {error:.2f}"


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_without_nan(item) for item in value)
    return None if isinstance(value, float) and math.isnan(value) else value


__all__ = ["Baseline", "Score", "measure", "right_ones"]
