"""What a sweep of probes found: scores of every layer, baselines and controls, in words, tables and pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from interp_toolkit.activations.files import load_tensors, save_tensors
from interp_toolkit.errors import FileFormatError, ProbeError
from interp_toolkit.probes.inputs import Target
from interp_toolkit.probes.kinds import Kind
from interp_toolkit.probes.linear import LinearProbe
from interp_toolkit.provenance import Provenance
from interp_toolkit.visualization.document import Document, Paragraph, Table

if TYPE_CHECKING:
    import pandas as pd

    from interp_toolkit.visualization.lines import LineChart

_FORMAT = "interp_toolkit.probe_sweep/1"
_ALPHA = 0.05
_FEW = 10
"""Groups below which intervals from groups drawn again are clearly too narrow."""


@dataclass(frozen=True, kw_only=True)
class LayerScore:
    """The probe of one layer, on the test rows.

    Attributes:
        kind: of the probe.
        layer: its number.
        site: what was read.
        C: the penalty that was chosen on the validation rows; NaN for kinds without.
        validation: the score that layers are chosen by, on the validation rows: AUROC for two classes, accuracy for
            more, R² for numbers.
        accuracy: the share of test rows that is right; for numbers R².
        accuracy_low: lower end of its interval.
        accuracy_high: upper end.
        auroc: area under the ROC curve (mean over classes where there are more than two).
        auroc_low: lower end of its interval.
        auroc_high: upper end.
        recall_1: the share of the second class that is found at 1% false positives.
        recall_5: the same at 5%.
        calibration: expected calibration error, with a temperature fitted on the validation rows.
        log_loss: in nats per row; for numbers the mean squared error.
        shuffled: accuracy of the same probe trained on shuffled labels.
        control: accuracy on the control task; NaN where there is none.
        converged: whether the probe's minimum was reached.
    """

    kind: Kind
    layer: int
    site: str
    C: float
    validation: float
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    auroc: float
    auroc_low: float
    auroc_high: float
    recall_1: float
    recall_5: float
    calibration: float
    log_loss: float
    shuffled: float
    control: float
    converged: bool

    @property
    def selectivity(self) -> float:
        """Accuracy minus that on the control task (Hewitt & Liang 2019)."""
        return self.accuracy - self.control


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """What is reached without the layers.

    Attributes:
        name: what it is.
        accuracy: on the test rows; for numbers R².
        low: lower end of its interval.
        high: upper end.
        auroc: area under the ROC curve; NaN where there is none.
        gain: accuracy of the chosen probe minus this one's, on the same rows.
        gain_low: lower end of its interval.
        gain_high: upper end.
    """

    name: str
    accuracy: float
    low: float
    high: float
    auroc: float
    gain: float
    gain_low: float
    gain_high: float


@dataclass(frozen=True, kw_only=True, eq=False)
class ProbeSweep:
    """Probes of every layer, with what makes their scores believable. Made by `probe_sweep`.

    Attributes:
        name: what the labels are about.
        target: classes or regression.
        classes: the classes, in the order of outputs; none for numbers.
        where: which tokens count, in words.
        scores: of every kind and layer.
        chosen: the number of the one with the best validation score.
        baselines: what is reached without the layers.
        p_value: the share of permutations of the labels with which the chosen layer and penalty do as well, by AUROC,
            for numbers by the correlation; NaN without them.
        permutations: how many were made.
        code_length: bits for each label that the online code takes at the chosen layer.
        uniform_length: bits that it takes without activations.
        rows: numbers of rows in training, validation and test.
        groups: numbers of groups there; the same as rows where none were given.
        grouped: whether groups were given.
        level: of the intervals.
        settings: what else decided the result.
        provenance: what made the activations; None for arrays.
        weights: of every probe, for activations as they are.
        bias: its intercepts.
    """

    name: str
    target: Target
    classes: tuple[Any, ...]
    where: str
    scores: tuple[LayerScore, ...]
    chosen: int
    baselines: tuple[Baseline, ...]
    p_value: float
    permutations: int
    code_length: float
    uniform_length: float
    rows: tuple[int, int, int]
    groups: tuple[int, int, int]
    grouped: bool
    level: float
    settings: Mapping[str, Any] = field(default_factory=dict)
    provenance: Provenance | None = field(repr=False, default=None)
    weights: Float[Tensor, "score output d"] = field(repr=False)
    bias: Float[Tensor, "score output"] = field(repr=False)

    @property
    def best(self) -> LayerScore:
        """The kind and layer that validation chose."""
        return self.scores[self.chosen]

    def score(self, layer: int, kind: str | None = None) -> LayerScore:
        """The score of one layer.

        Raises:
            ProbeError: when that layer or kind was not swept.
        """
        return self.scores[self._place(layer, kind)]

    def probe(self, layer: int | None = None, kind: str | None = None) -> LinearProbe:
        """A trained probe: that of the chosen layer, or of another; its `direction` can steer or be ablated."""
        place = self.chosen if layer is None and kind is None else self._place(layer, kind)
        found = self.scores[place]
        probe = LinearProbe(kind=found.kind, target=self.target, C=1.0 if math.isnan(found.C) else found.C)
        return probe.given(self.weights[place], self.bias[place], self.classes)

    def _place(self, layer: int | None, kind: str | None) -> int:
        layer = self.best.layer if layer is None else layer
        kind = kind or self.best.kind
        found = [n for n, score in enumerate(self.scores) if (score.layer, score.kind) == (layer, kind)]
        if not found:
            kinds = sorted({score.kind for score in self.scores})
            layers = sorted({score.layer for score in self.scores})
            raise ProbeError(f"there is no {kind} probe of layer {layer}: swept were {kinds} at layers {layers}")
        return found[0]

    # --- in words --------------------------------------------------------------------------------------------

    @property
    def passes_controls(self) -> bool:
        """Whether the chosen probe is above every baseline and beyond what shuffled labels give.

        The interval of its gain over each baseline lies above zero, and the p-value is at most 5% (where it was made).
        Without any baseline nothing can be said, and it is not.
        """
        beyond = bool(self.baselines) and all(baseline.gain_low > 0 for baseline in self.baselines)
        return beyond and not self.p_value > _ALPHA

    def summary(self) -> str:
        """The finding in words, with its controls, and what it does not show."""
        best = self.best
        what = "R²" if self.target == "regression" else "accuracy"
        area = "" if math.isnan(best.auroc) else f", AUROC {_interval(best.auroc, best.auroc_low, best.auroc_high)}"
        scored = f"{what} {_interval(best.accuracy, best.accuracy_low, best.accuracy_high)}{area}"
        weak = [b for b in self.baselines if not b.gain_low > 0]
        if self.passes_controls:
            claim = f"“{self.name}” can be read off {best.site} ({self.where}): {scored}"
        else:
            reasons = [f"{b.name} ({_interval(b.accuracy, b.low, b.high)}) may do as well" for b in weak]
            if self.p_value > _ALPHA:
                reasons.append(f"shuffled labels may do as well (p = {self.p_value:.2f})")
            claim = (
                f"It is not shown that “{self.name}” can be read off. The best probe, at {best.site} ({self.where}), "
                f"reaches {scored}, but {', and '.join(reasons)}"
            )
            if "the majority class" in {b.name for b in weak} and best.auroc_low > 0.5:
                claim += ". AUROC is above chance all the same: accuracy hides that where a class is rare"
        sentences = [claim, self._comparison(), self._controls(), self._made()]
        return ". ".join(sentence for sentence in sentences if sentence) + "."

    def _comparison(self) -> str:
        parts = [
            f"{b.name} reaches {b.accuracy:.2f} ({b.gain:+.2f} {_range(b.gain_low, b.gain_high)})"
            for b in self.baselines
        ]
        text = f"For comparison (and the probe's gain): {', '.join(parts)}"
        if "a bag of words" not in {b.name for b in self.baselines}:
            text += ". What a bag of words reaches is not known, as there were no texts"
        return text

    def _controls(self) -> str:
        best = self.best
        parts = []
        if not math.isnan(best.shuffled):
            parts.append(f"trained on shuffled labels it reaches {best.shuffled:.2f}")
        if not math.isnan(best.control):
            parts.append(f"selectivity {best.selectivity:.2f} (control task {best.control:.2f})")
        elif self.target == "classes":
            parts.append("selectivity is not known, as nothing says which rows are about the same thing")
        if not math.isnan(self.p_value):
            parts.append(f"p = {self.p_value:.3f} by {self.permutations} permutations")
        if not math.isnan(self.code_length):
            parts.append(f"{self.code_length:.2f} bits a label (without activations {self.uniform_length:.2f})")
        text = ", ".join(parts)
        return text[:1].upper() + text[1:]

    def _made(self) -> str:
        train, validation, test = self.rows
        held = f" in {self.groups[2]} held-out groups" if self.grouped else ", each a group of its own"
        few = ", and too narrow with so few groups" if self.groups[2] < _FEW else ""
        return (
            f"Trained on {train} rows, layer and penalty chosen on {validation}, measured on {test} rows{held}; "
            f"intervals are {self.level:.0%}{few}. A probe shows what can be read off, not that the model uses it"
        )

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Headers and rows for people: every layer, then the baselines."""
        numbers = self.target == "regression"
        headers = ["layer", "kind", "R²" if numbers else "accuracy", "interval"]
        headers += [] if numbers else ["AUROC", "recall at 1% FPR", "calibration error"]
        headers += ["shuffled", "selectivity", "C"]
        lines = []
        for n, s in enumerate(self.scores):
            mark = " *" if n == self.chosen else ""
            shown = [f"{s.site}{mark}", s.kind, _number(s.accuracy), _range(s.accuracy_low, s.accuracy_high)]
            shown += [] if numbers else [_number(s.auroc), _number(s.recall_1), _number(s.calibration)]
            lines.append([*shown, _number(s.shuffled), _number(s.selectivity), "–" if math.isnan(s.C) else f"{s.C:g}"])
        for b in self.baselines:
            shown = [b.name, "baseline", _number(b.accuracy), _range(b.low, b.high)]
            shown += [] if numbers else [_number(b.auroc), "–", "–"]
            lines.append([*shown, "–", "–", "–"])
        return headers, lines

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each kind and layer, all scores as numbers; needs pandas."""
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError('a data frame needs pandas: pip install "interpretability-toolkit[probes]"') from error
        return pd.DataFrame(
            [{**asdict(s), "selectivity": s.selectivity, "chosen": n == self.chosen} for n, s in enumerate(self.scores)]
        )

    # --- to look at ------------------------------------------------------------------------------------------

    def plot(self) -> LineChart:
        """Scores by layer with intervals, controls and baselines; `.save` writes HTML, SVG, PNG or PDF."""
        from interp_toolkit.probes.pictures import sweep_chart

        return sweep_chart(self)

    def page(self) -> Document:
        """Everything on one self-contained page."""
        headers, rows = self.table()
        model = "given activations" if self.provenance is None else self.provenance.model
        classes = f"Classes: {', '.join(map(str, self.classes[:12]))}. " if self.classes else ""
        return Document(
            title=f"Probes for “{self.name}”",
            parts=(
                Paragraph(self.summary()),
                self.plot(),
                Table(title="Scores of every layer, and baselines", headers=headers, rows=rows),
                Paragraph(f"{classes}Model: {model}. Settings: {json.dumps(dict(self.settings), default=str)}."),
            ),
        )

    def _repr_html_(self) -> str:
        return f"<p>{escape(self.summary())}</p>{self.plot()._repr_html_()}"

    # --- on disk ---------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """All facts as plain data; NaN as null."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("weights", "bias", "provenance")}
        plain["scores"] = [asdict(s) for s in self.scores]
        plain["baselines"] = [asdict(b) for b in self.baselines]
        plain["settings"] = dict(self.settings)
        found: dict[str, Any] = json.loads(json.dumps(_without_nan(plain)))
        return found

    def save(self, path: str | Path) -> Path:
        """Write scores and probes as safetensors."""
        return save_tensors(
            path,
            {"weights": self.weights, "bias": self.bias},
            kind=_FORMAT,
            about=self.to_dict(),
            provenance=self.provenance or _of_arrays(),
        )

    @classmethod
    def load(cls, path: str | Path) -> ProbeSweep:
        """Read what `save` wrote.

        Raises:
            FileFormatError: when it is something else.
        """
        tensors, about, provenance = load_tensors(path, kind=_FORMAT, what="a sweep of probes")
        try:
            about["scores"] = tuple(LayerScore(**_with_nan(s)) for s in about["scores"])
            about["baselines"] = tuple(Baseline(**_with_nan(b)) for b in about["baselines"])
            about |= _with_nan({k: about[k] for k in ("p_value", "code_length", "uniform_length")})
            about |= {k: tuple(about[k]) for k in ("classes", "rows", "groups")}
            about["provenance"] = None if provenance.model == "arrays" else provenance
            found = cls(weights=tensors["weights"], bias=tensors["bias"], **about)
            wrong = found._contradiction()
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise FileFormatError(f"{path} is damaged: {type(error).__name__} {error}") from error
        if wrong:
            raise FileFormatError(f"{path} is damaged: {wrong}")
        return found

    def _contradiction(self) -> str:
        """What does not fit together in a file, if anything."""
        outputs = 1 if self.weights.ndim < 2 else self.weights.shape[1]
        expected = (len(self.scores), outputs)
        if self.weights.ndim != 3 or self.weights.shape[:2] != expected or self.bias.shape != expected:
            return f"{len(self.scores)} scores with weights {self.weights.shape} and intercepts {self.bias.shape}"
        if self.target != "regression" and outputs != (1 if len(self.classes) == 2 else len(self.classes)):
            return f"{len(self.classes)} classes, but {outputs} outputs"
        if not 0 <= self.chosen < len(self.scores):
            return f"probe {self.chosen} of {len(self.scores)} is the best"
        return ""


def _of_arrays() -> Provenance:
    return Provenance(model="arrays", revision=None, model_type="", layout="", dtype="", versions={})


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and math.isnan(value) else value


def _with_nan(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {key: math.nan if value is None else value for key, value in facts.items()}


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"


def _range(low: float, high: float) -> str:
    return "" if math.isnan(low) else f"[{low:.2f}, {high:.2f}]"


def _interval(value: float, low: float, high: float) -> str:
    return f"{_number(value)} {_range(low, high)}".rstrip()


__all__ = ["Baseline", "LayerScore", "ProbeSweep"]
