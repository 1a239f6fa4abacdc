"""A circuit judged on prompts: is it faithful, complete, minimal, and better than chance?"""

from __future__ import annotations

import functools
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jaxtyping import Float
from torch import Tensor

from interp_toolkit.activations.files import load_tensors, save_tensors
from interp_toolkit.circuits.graph import path_of
from interp_toolkit.circuits.hypothesis_tests import TestResult
from interp_toolkit.circuits.judging import Interval, intervals, shares
from interp_toolkit.errors import CircuitError, FileFormatError
from interp_toolkit.provenance import Provenance
from interp_toolkit.statistics import wilson

if TYPE_CHECKING:
    import pandas as pd

    from interp_toolkit.visualization.lines import LineChart

_FORMAT = "interp_toolkit.circuit_evaluation/1"
_TENSORS = ("model", "ablated", "circuit", "complement", "random", "without", "prefers")
_OPTIONAL = ("prefers",)
_NOTHING = 1e-4  # of the behaviour: what changes by less does not change

Parts = Literal["edges", "nodes"]
"""What is taken out of a circuit to see whether it is needed."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CircuitEvaluation:
    """What a circuit, what is left without it, and random ones do on some prompts.

    Attributes:
        edges: of the circuit.
        connected: how many of them lie on a path from `embed` to `logits` (with means or zeros: to `logits`).
        total: edges of the whole model.
        model: m(M), the metric of the whole model on each prompt.
        ablated: m(∅), of the empty circuit.
        circuit: m(C).
        complement: of all edges but the circuit's.
        random: of random connected circuits of as many edges.
        prefers: 1 where the answer is preferred, for the model's and the circuit's runs; None where there are none.
        removed: what was taken out, `"edges"` or `"nodes"`; None if nothing was.
        parts: names of what was taken out.
        without: m(C) without each part.
        tests: statistical tests.
        method: how the circuit was found.
        metric: its name.
        unit: of the metric.
        larger_is_cleaner: whether a larger metric is towards the clean answer.
        ablation: what edges outside the circuit carry.
        level: of the intervals.
        seed: of random circuits and intervals.
        notes: whatever else should be known.
        provenance: model, layout and versions.
    """

    edges: int
    connected: int
    total: int
    model: Float[Tensor, " prompt"]
    ablated: Float[Tensor, " prompt"]
    circuit: Float[Tensor, " prompt"]
    complement: Float[Tensor, " prompt"]
    random: Float[Tensor, "draw prompt"]
    prefers: Float[Tensor, "2 prompt"] | None = None
    removed: Parts | None = None
    parts: tuple[str, ...] = ()
    without: Float[Tensor, "part prompt"]
    tests: tuple[TestResult, ...] = ()
    method: str = ""
    metric: str
    unit: str
    larger_is_cleaner: bool
    ablation: str
    level: float = 0.95
    seed: int = 0
    notes: dict[str, Any] = field(default_factory=dict)
    provenance: Provenance = field(repr=False)

    def __post_init__(self) -> None:
        """Check that everything is of the same prompts and parts."""
        wide = {x.shape[-1] for name in _TENSORS if (x := getattr(self, name)) is not None}
        if len(wide) > 1 or len(self.parts) != len(self.without):
            raise CircuitError(
                f"an evaluation is of the same prompts throughout and has a name for each part, but there are "
                f"{sorted(wide)} prompts, {len(self.parts)} names and {len(self.without)} parts"
            )

    def __repr__(self) -> str:
        return f"<CircuitEvaluation: {self.edges:,} edges, faithfulness {self.faithfulness}>"

    # --- numbers ---------------------------------------------------------------------------------------------

    @functools.cached_property
    def faithfulness(self) -> Interval:
        """(mean m(C) − mean m(∅)) / (mean m(M) − mean m(∅)): 1 does what the model does, 0 nothing of it."""
        return self._share(self.circuit)

    @functools.cached_property
    def completeness(self) -> Interval:
        """The faithfulness of all other edges: 0 where everything that matters is in the circuit."""
        return self._share(self.complement)

    @functools.cached_property
    def random_faithfulness(self) -> Interval:
        """The mean faithfulness of the random circuits, with an interval over prompts; NaN if none were run."""
        if not len(self.random):
            return Interval(value=math.nan, low=math.nan, high=math.nan, level=self.level, prompts=len(self.model))
        return self._share(self.random.mean(0))

    @functools.cached_property
    def random_each(self) -> tuple[float, ...]:
        """The faithfulness of each random circuit."""
        gap = float((self.model - self.ablated).mean())
        return tuple(((self.random - self.ablated).mean(-1) / gap).tolist())

    @functools.cached_property
    def random_as_faithful(self) -> float:
        """The share of random circuits whose faithfulness is at least as near to 1; NaN if none were run."""
        if not len(self.random):
            return math.nan
        own = abs(1 - self.faithfulness.value)
        return sum(abs(1 - value) <= own for value in self.random_each) / len(self.random_each)

    @functools.cached_property
    def accuracy(self) -> Interval:
        """The share of prompts on which the circuit prefers the answer, with a Wilson interval."""
        return self._preferred(1)

    @functools.cached_property
    def model_accuracy(self) -> Interval:
        """The same share for the whole model."""
        return self._preferred(0)

    @functools.cached_property
    def drops(self) -> dict[str, Interval]:
        """How much faithfulness is lost without each part; below 0 the circuit is better without it."""
        if not self.parts:
            return {}
        # The change itself is the share, so that what edges have in common does not widen the interval.
        change = (self.circuit - self.without).T + self.ablated[:, None]
        found = shares(change, self.model, self.ablated, level=self.level, seed=self.seed)
        return dict(zip(self.parts, intervals(found), strict=True))

    @property
    def needless(self) -> tuple[str, ...]:
        """Parts without which the circuit does the same, up to noise: the interval of their drop holds 0.

        Intervals are of each part alone: of many parts that matter a little, some are listed.
        """
        return tuple(name for name, drop in self.drops.items() if _zero(drop))

    @property
    def harmful(self) -> tuple[str, ...]:
        """Parts without which the circuit does more, beyond noise."""
        return tuple(name for name, drop in self.drops.items() if drop.high < 0 and not _zero(drop))

    def _share(self, values: Float[Tensor, " prompt"]) -> Interval:
        return intervals(shares(values, self.model, self.ablated, level=self.level, seed=self.seed))[0]

    def _preferred(self, run: int) -> Interval:
        n = len(self.model)
        if self.prefers is None:
            return Interval(value=math.nan, low=math.nan, high=math.nan, level=self.level, prompts=n)
        right = int(self.prefers[run].sum())
        low, high = wilson(right, n, self.level)
        return Interval(value=right / n, low=low, high=high, level=self.level, prompts=n)

    # --- words -----------------------------------------------------------------------------------------------

    def summary(self, number: int = 5) -> str:
        """The judgement in words.

        Args:
            number: how many parts are named.
        """
        loose = self.edges - self.connected
        means = [float(x.mean()) for x in (self.model, self.circuit, self.ablated)]
        no_path = path_of(self.ablation).replace("a ", "no ", 1)
        of = f"{self.edges:,} of {self.total:,} edges ({self.edges / self.total:.2%})"
        lines = [
            f"Circuit of {of}" + (f", {loose:,} of them on {no_path}" if loose else ""),
            f"Judged on {self.metric}, {len(self.model)} prompt{'' if len(self.model) == 1 else 's'}",
            f"Edges outside of it are ablated by {self.ablation}.",
            "Metric: model {:.3f}, circuit {:.3f}, without any edge {:.3f}".format(*means),
            f"Faithfulness: {self.faithfulness}; 1 does what the model does",
            f"Without the circuit: {self.completeness}; 0 means that nothing else carries the behaviour",
        ]
        if self.prefers is not None:
            lines.append(
                f"Prefers the answer: {self.accuracy.value:.1%} of prompts, model {self.model_accuracy.value:.1%}"
            )
        if len(self.random):
            low, high = min(self.random_each), max(self.random_each)
            lines.append(
                f"Random circuits of the same size: {self.random_faithfulness.value:z.3f}, {len(self.random)} of them "
                f"from {low:z.3f} to {high:z.3f}; {self.random_as_faithful:.0%} are as faithful"
            )
        lines += self._removed(number)
        if self.tests:
            lines += [f"Tests (Shi et al. 2024), at {1 - self.level:.2g}:", *(f"  {test}" for test in self.tests)]
        return "\n".join([*lines, *(f"Note: {text}" for text in self.notes.get("caveats", ()))])

    def _removed(self, number: int) -> list[str]:
        if not self.parts:
            return []
        most = sorted(self.drops.items(), key=lambda item: -item[1].value)[:number]
        shown = ", ".join(f"{name} {drop.value:+.3f}" for name, drop in most)
        lines = [f"Most is lost without: {shown}"]
        for names, words in ((self.needless, "No loss beyond noise without"), (self.harmful, "Better without")):
            if names:
                more = f", and {len(names) - number} more" if len(names) > number else ""
                lines.append(
                    f"{words} {len(names)} of {len(self.parts)} {self.removed}: {', '.join(names[:number])}{more}"
                )
        return lines if len(lines) > 1 else [*lines, f"Each of its {len(self.parts)} {self.removed} matters."]

    # --- data ------------------------------------------------------------------------------------------------

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each prompt: the metric of model, circuit and all others. Needs pandas."""
        pandas = _pandas()
        columns = {name: getattr(self, name).tolist() for name in ("model", "ablated", "circuit", "complement")}
        if len(self.random):
            columns["random"] = self.random.mean(0).tolist()
        if self.prefers is not None:
            columns |= {f"{name}_prefers": self.prefers[n].tolist() for n, name in enumerate(("model", "circuit"))}
        found: pd.DataFrame = pandas.DataFrame(columns)
        found.index.name = "prompt"
        return found.reset_index()

    def plot(self) -> LineChart:
        """What is lost without each part, or without parts the faithfulness of all that was run, with intervals."""
        from interp_toolkit.circuits.pictures import evaluation_chart

        return evaluation_chart(self)

    def _repr_html_(self) -> str:
        from interp_toolkit.circuits.pictures import with_words

        return with_words(self.summary(), self.plot())

    def parts_dataframe(self) -> pd.DataFrame:
        """One row for each part that was taken out: what is lost without it. Needs pandas."""
        rows = [
            {"part": name, "drop": drop.value, "low": drop.low, "high": drop.high} for name, drop in self.drops.items()
        ]
        found: pd.DataFrame = _pandas().DataFrame(rows, columns=["part", "drop", "low", "high"])
        return found

    def save(self, path: str | Path) -> Path:
        """Write it as safetensors."""
        names = [known.name for known in fields(self) if known.name not in (*_TENSORS, "provenance", "tests")]
        about = {name: getattr(self, name) for name in names} | {"tests": [asdict(test) for test in self.tests]}
        tensors = {name: x.contiguous().clone() for name in _TENSORS if (x := getattr(self, name)) is not None}
        return save_tensors(path, tensors, kind=_FORMAT, about=about, provenance=self.provenance)

    @classmethod
    def load(cls, path: str | Path) -> CircuitEvaluation:
        """Read what `save` wrote.

        Raises:
            FileFormatError: when it is something else, or damaged.
        """
        tensors, about, provenance = load_tensors(path, kind=_FORMAT, what="a saved evaluation of a circuit")
        try:
            about["tests"] = tuple(TestResult(**test) for test in about["tests"])
            about["parts"] = tuple(about["parts"])
            return cls(**(about | tensors), provenance=provenance)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise FileFormatError(f"{path} cannot be read as a saved evaluation of a circuit: {error}") from error


def _zero(drop: Interval) -> bool:
    """Whether a drop is none, up to noise; without an interval, up to rounding."""
    if math.isnan(drop.low):
        return abs(drop.value) <= _NOTHING
    return drop.low <= _NOTHING and drop.high >= -_NOTHING


def _pandas() -> Any:
    try:
        import pandas as pd
    except ImportError as error:
        raise ImportError('a data frame needs pandas: pip install "interpretability-toolkit[probes]"') from error
    return pd


__all__ = ["CircuitEvaluation", "Parts"]
