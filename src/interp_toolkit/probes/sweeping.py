"""The work of a sweep: train, choose, measure, and compare."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from itertools import chain, islice

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp_toolkit.model.machine import free_memory
from interp_toolkit.probes.collecting import Material
from interp_toolkit.probes.controls import bag_of_words, control_task, online_code_length, permutations
from interp_toolkit.probes.features import Features, Readable
from interp_toolkit.probes.findings import Baseline, LayerScore, ProbeSweep
from interp_toolkit.probes.inputs import Targets
from interp_toolkit.probes.kinds import PENALIZED, Kind, fit_linear, standardizes
from interp_toolkit.probes.scoring import (
    Draws,
    Scores,
    association,
    gain,
    log_probabilities,
    loss,
    margins_of,
    plain_score,
    scores_of,
    selection_score,
    tempered,
)
from interp_toolkit.probes.solver import logistic
from interp_toolkit.probes.splits import Split
from interp_toolkit.probes.weighting import ClassWeight, pair_rows, row_weights

_AT_ONCE = 1 << 22
"""Rows times permutations times outputs that are trained at once: 16 MB a copy in float32."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Options of a sweep.

    Attributes:
        penalties: the strengths C that are tried.
        class_weight: `"balanced"`, or a weight for each class.
        permutations: of the labels, for the p-value of the chosen probe; 0 for none.
        seed: decides the split, the controls and the draws.
        level: of intervals.
        draws: of groups, for intervals.
        dtype: in which probes are computed: float32 or float64.
        device: where; that of the activations if not given.
    """

    penalties: tuple[float, ...]
    class_weight: ClassWeight | None = None
    permutations: int = 199
    seed: int = 0
    level: float = 0.95
    draws: int = 2000
    dtype: torch.dtype = torch.float32
    device: torch.device | str | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """What is known of each row.

    Attributes:
        targets: what is to be predicted.
        split: rows for training, validation and test.
        groups: the group of each row; its own where none were given.
        grouped: whether groups were given.
        texts: of each row.
        keys: what the control task gives a random label to.
        pairs: the pair of each row, for contrast-consistent search.
    """

    targets: Targets
    split: Split
    groups: Int[Tensor, " row"]
    grouped: bool
    texts: tuple[str, ...] | None
    keys: tuple[Hashable, ...] | None
    pairs: tuple[Hashable, ...] | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Fitted:
    """Probes of one kind at several layers, each with the penalty that validation chose."""

    kind: Kind
    weights: Float[Tensor, "layer output d"]
    bias: Float[Tensor, "layer output"]
    C: Float[Tensor, " layer"]
    converged: Bool[Tensor, " layer"]
    validation: Float[Tensor, " layer"]
    scores: Scores


def sweep(material: Material, rows: Rows, kinds: tuple[Kind, ...], settings: Settings, name: str) -> ProbeSweep:
    """Train and judge probes of several kinds at every layer."""
    work = _Sweep(material, rows, settings)
    fitted: list[Fitted] = []
    scores: list[LayerScore] = []
    for kind in kinds:
        fitted.append(work.fitted(kind, material.sources))
        scores += work.layer_scores(fitted[-1])
    layers = len(material.sources)
    # The best on validation; of equals the earlier layer, then the kind that was named first
    chosen = max(range(len(scores)), key=lambda n: (_known(scores[n].validation), -(n % layers), -n))
    best, layer = fitted[chosen // layers], chosen % layers
    bits, uniform = work.code_length(best, layer)
    parts = (rows.split.train, rows.split.validation, rows.split.test)
    weight = settings.class_weight
    return ProbeSweep(
        name=name,
        target=rows.targets.kind,
        classes=rows.targets.classes,
        where=material.where,
        scores=tuple(scores),
        chosen=chosen,
        baselines=tuple(work.baselines(best, layer)),
        p_value=work.p_value(best, layer),
        permutations=settings.permutations,
        code_length=bits,
        uniform_length=uniform,
        rows=(len(parts[0]), len(parts[1]), len(parts[2])),
        groups=tuple(len(rows.groups[part].unique()) for part in parts),  # type: ignore[arg-type]
        grouped=rows.grouped,
        level=settings.level,
        settings={
            "penalties": list(settings.penalties),
            "class_weight": weight if weight is None or isinstance(weight, str) else list(map(list, weight.items())),
            "seed": settings.seed,
            "draws": settings.draws,
            "dtype": str(settings.dtype).removeprefix("torch."),
        },
        provenance=material.provenance,
        weights=torch.cat([found.weights for found in fitted]).double().cpu(),
        bias=torch.cat([found.bias for found in fitted]).double().cpu(),
    )


def _known(value: float) -> float:
    return -math.inf if math.isnan(value) else value


class _Sweep:
    """Rows of all layers, and the trainings on them. Choices are made on validation rows, never on test rows."""

    def __init__(self, material: Material, rows: Rows, settings: Settings) -> None:
        self.material, self.rows, self.settings = material, rows, settings
        self.targets = rows.targets
        self.device = torch.device(settings.device or material.device or "cpu")
        self.train, self.validation, self.test = rows.split.train, rows.split.validation, rows.split.test
        self.draws = Draws(level=settings.level, number=settings.draws, seed=settings.seed)
        self._last: tuple[object, ...] = ()
        self._features: Features | None = None

    # --- training --------------------------------------------------------------------------------------------

    def features(self, sources: tuple[Readable, ...], rows: Tensor, kind: Kind, targets: Targets) -> Features:
        """Rows of some layers, standardised by themselves where the kind wants it; the last ones are kept."""
        weights = None
        if kind == "ridge" and self.settings.class_weight is not None:  # least squares centres by the same weights
            weights = row_weights(targets, self.settings.class_weight)
        asked = (sources, rows, standardizes(kind))
        kept = self._features
        if kept is not None and weights is None and all(a is b for a, b in zip(self._last, asked, strict=True)):
            return kept
        self._features = None  # before the next ones need its memory
        found = Features.prepared(
            sources,
            rows,
            (len(sources), len(rows), _width(sources[0])),
            dtype=self.settings.dtype,
            device=self.device,
            standardize=standardizes(kind),
            weights=weights,
            memory=free_memory(self.device) / 4,
        )
        if weights is None:
            self._features, self._last = found, asked
        return found

    def fit(
        self,
        sources: tuple[Readable, ...],
        kind: Kind,
        targets: Targets,
        rows: Int[Tensor, " train_row"],
        penalties: tuple[float, ...],
    ) -> tuple[
        Float[Tensor, "layer penalty output d"], Float[Tensor, "layer penalty output"], Bool[Tensor, "layer penalty"]
    ]:
        """Probes of every layer and penalty, for the targets of these rows."""
        pairs = None
        if kind == "contrast" and self.rows.pairs is not None:
            pairs = pair_rows([self.rows.pairs[row] for row in rows.tolist()], len(rows), self.settings.seed)
        found = fit_linear(
            self.features(sources, rows, kind, targets),
            targets,
            kind,
            penalties=torch.tensor(penalties),
            weights=row_weights(targets, self.settings.class_weight),
            pairs=pairs,
            seed=self.settings.seed,
        )
        return found.weights, found.bias, found.converged.cpu()

    def fitted(self, kind: Kind, sources: tuple[Readable, ...]) -> Fitted:
        """Probes of one kind, the penalty of each layer chosen on validation, measured on test."""
        penalties = self.settings.penalties if kind in PENALIZED else (1.0,)
        weights, bias, converged = self.fit(sources, kind, self.targets.select(self.train), self.train, penalties)
        judged = self.targets.select(self.validation)
        trial = margins_of(sources, self.validation, weights, bias)
        # Margins of least squares are no logits: a temperature makes their log loss comparable
        known = trial if kind == "logistic" else tempered(trial.flatten(0, 1), trial.flatten(0, 1), judged)
        place = loss(known.reshape(trial.shape), judged).argmin(1)
        n = torch.arange(len(place))
        weights, bias, trial = weights[n, place], bias[n, place], trial[n, place]
        margins = margins_of(sources, self.test, weights[:, None], bias[:, None])[:, 0]
        chosen = torch.tensor(penalties, dtype=torch.float64)[place]
        return Fitted(
            kind=kind,
            weights=weights,
            bias=bias,
            C=chosen if kind in PENALIZED else torch.full_like(chosen, math.nan),
            converged=converged[n, place],
            validation=selection_score(trial, judged),
            scores=self.measured(tempered(margins, trial, judged)),
        )

    def measured(self, margins: Float[Tensor, "layer test_row output"]) -> Scores:
        """Scores on test rows."""
        return scores_of(margins, self.targets.select(self.test), self.rows.groups[self.test], draws=self.draws)

    def layer_scores(self, found: Fitted) -> Iterator[LayerScore]:
        """What is told of each layer, with the controls that every layer has."""
        s, shuffled, control = found.scores, self.shuffled(found), self.control(found)
        for n, site in enumerate(self.material.names):
            yield LayerScore(
                kind=found.kind,
                layer=self.material.layers[n],
                site=site,
                C=float(found.C[n]),
                validation=float(found.validation[n]),
                accuracy=float(s.accuracy.mean[n]),
                accuracy_low=float(s.accuracy.low[n]),
                accuracy_high=float(s.accuracy.high[n]),
                auroc=float(s.auroc.mean[n]),
                auroc_low=float(s.auroc.low[n]),
                auroc_high=float(s.auroc.high[n]),
                recall_1=float(s.recall_1[n]),
                recall_5=float(s.recall_5[n]),
                calibration=float(s.calibration[n]),
                log_loss=float(s.log_loss[n]),
                shuffled=float(shuffled[n]),
                control=float(control[n]),
                converged=bool(found.converged[n]),
            )

    # --- controls --------------------------------------------------------------------------------------------

    def scored(
        self, found: Fitted, labels: Targets, train: Int[Tensor, " train_row"], test: Int[Tensor, " test_row"]
    ) -> Float[Tensor, " layer"]:
        """Accuracy or R² at every layer with other labels, of the penalties that were chosen for the real ones."""
        sources = self.material.sources
        penalties, place = _used(found.C)
        weights, bias, _ = self.fit(sources, found.kind, labels.select(train), train, penalties)
        n = torch.arange(len(place))
        margins = margins_of(sources, test, weights[n, place][:, None], bias[n, place][:, None])[:, 0]
        return plain_score(margins, labels.select(test))

    def shuffled(self, found: Fitted) -> Float[Tensor, " layer"]:
        """Accuracy on test rows after training on shuffled labels."""
        if found.kind == "contrast":  # trains without labels
            return torch.full_like(found.C, math.nan)
        order = torch.arange(len(self.targets))
        generator = torch.Generator().manual_seed(self.settings.seed)
        order[self.train] = self.train[torch.randperm(len(self.train), generator=generator)]
        return self.scored(found, self.targets.select(order), self.train, self.test)

    def control(self, found: Fitted) -> Float[Tensor, " layer"]:
        """Accuracy on a control task."""
        keys, index = self.rows.keys, self.targets.index
        task = None
        if keys is not None and index is not None and found.kind != "contrast":
            task = control_task(index, keys, self.train, self.test, seed=self.settings.seed)
        if task is None:
            return torch.full_like(found.C, math.nan)
        # Few keys need not have all classes
        present, renumbered = task.labels[task.train].unique(), torch.zeros(len(self.targets.classes), dtype=torch.long)
        renumbered[present] = torch.arange(len(present))
        classes = tuple(self.targets.classes[n] for n in present.tolist())
        labels = Targets(kind="classes", classes=classes, index=renumbered[task.labels])
        return self.scored(found, labels, task.train, task.test)

    def p_value(self, found: Fitted, layer: int) -> float:
        """How often labels that mean nothing do as well (Phipson & Smyth 2010: the labels themselves count too)."""
        number, parts = self.settings.permutations, [self.train, self.test]
        if not number:
            return math.nan
        labels = self.targets.tasks if self.targets.index is not None else self.targets.table
        assert labels is not None
        made = permutations(labels, self.rows.groups, parts, seed=self.settings.seed)
        orders = chain([torch.arange(len(labels))], islice(made, number))
        at_once = max(1, _AT_ONCE // (len(self.train) * self.targets.outputs))
        values: list[float] = []
        while some := [self.targets.select(order) for order in islice(orders, at_once)]:
            margins = self.permuted(found, layer, some)
            asked = [targets.select(self.test) for targets in some]
            values += [association(m, targets) for m, targets in zip(margins, asked, strict=True)]
        return sum(value >= values[0] - 1e-9 for value in values) / len(values)

    def permuted(self, found: Fitted, layer: int, several: list[Targets]) -> Float[Tensor, "task test_row output"]:
        """Margins of test rows, of one layer's probes for several labellings."""
        source = self.material.sources[layer : layer + 1]
        known = [targets.select(self.train) for targets in several]
        weight = self.settings.class_weight
        penalties, _ = _used(found.C[layer : layer + 1])
        if found.kind == "contrast":
            return self._turned(found, layer, known)
        if found.kind == "logistic":
            features = self.features(source, self.train, found.kind, known[0])
            weights, bias = _logistic(features, known, penalties, weight)
        elif found.kind == "ridge" and weight is None:
            wanted = Targets(kind="regression", classes=(), table=torch.cat([_aims(targets) for targets in known], 1))
            weights, bias, _ = self.fit(source, found.kind, wanted, self.train, penalties)
            weights, bias = (x.reshape(1, len(known), -1, *x.shape[3:]) for x in (weights, bias))
        else:
            fits = [self.fit(source, found.kind, targets, self.train, penalties) for targets in known]
            weights, bias = (torch.cat([fit[n][0] for fit in fits])[None] for n in (0, 1))
        return margins_of(source, self.test, weights, bias)[0]

    def _turned(self, found: Fitted, layer: int, known: list[Targets]) -> Float[Tensor, "task test_row output"]:
        """The same for contrast-consistent search: labels decide only which end of its direction is which."""
        place = slice(layer, layer + 1)
        source, weights, bias = self.material.sources[place], found.weights[place, None], found.bias[place, None]
        train, test = (margins_of(source, rows, weights, bias)[0, 0] for rows in (self.train, self.test))
        hits = torch.stack([plain_score(train[None], targets)[0] for targets in known])
        return torch.where(hits < 0.5, -1.0, 1.0)[:, None, None] * test

    def code_length(self, found: Fitted, layer: int) -> tuple[float, float]:
        """Bits for each label of the training rows, at one layer."""
        targets, groups = self.targets, self.rows.groups
        if targets.index is None or found.kind != "logistic":
            return math.nan, math.nan
        source = self.material.sources[layer : layer + 1]
        penalties, _ = _used(found.C[layer : layer + 1])
        lot = torch.rand(int(groups.max()) + 1, generator=torch.Generator().manual_seed(self.settings.seed))
        order = self.train[lot[groups[self.train]].argsort(stable=True)]

        def told(known: Tensor, new: Tensor) -> Tensor:
            weights, bias, _ = self.fit(source, found.kind, targets.select(known), known, penalties)
            return log_probabilities(margins_of(source, new, weights, bias)[0, 0])

        return online_code_length(told, targets.index, order, len(targets.classes), groups=groups)

    def baselines(self, best: Fitted, layer: int) -> Iterator[Baseline]:
        """What the majority, the words and the embedding reach, and how much the chosen probe gains on each."""
        kind: Kind = best.kind if best.kind in PENALIZED else "logistic"
        found = [("the mean" if self.targets.index is None else "the majority class", self.constant())]
        if self.rows.texts is not None:
            words = bag_of_words(self.rows.texts, self.train)
            found.append(("a bag of words", self.fitted(kind, (words,)).scores))
        if self.material.embedding is not None:
            found.append(("the embedding", self.fitted(kind, (self.material.embedding,)).scores))
        for name, scores in found:
            more = gain(best.scores, layer, scores, self.rows.groups[self.test], self.draws)
            yield Baseline(
                name=name,
                accuracy=float(scores.accuracy.mean[0]),
                low=float(scores.accuracy.low[0]),
                high=float(scores.accuracy.high[0]),
                auroc=float(scores.auroc.mean[0]),
                gain=float(more.mean[0]),
                gain_low=float(more.low[0]),
                gain_high=float(more.high[0]),
            )

    def constant(self) -> Scores:
        """The same answer for all test rows: as often as each class is in training, or the mean."""
        known = self.targets.select(self.train)
        if known.index is not None:
            shares = torch.bincount(known.index, minlength=len(known.classes)).double().log()
            answer = shares if len(shares) > 2 else shares[1:] - shares[:1]
        else:
            assert known.table is not None
            answer = known.table.mean(0)
        return self.measured(answer.expand(1, len(self.test), -1))


def _logistic(
    features: Features, several: list[Targets], penalties: tuple[float, ...], class_weight: ClassWeight | None
) -> tuple[Float[Tensor, "layer task output d"], Float[Tensor, "layer task output"]]:
    """Logistic regressions of one penalty for several labellings of the same rows, in one descent."""
    found = logistic(
        features,
        torch.cat([targets.tasks for targets in several], 1),
        torch.tensor(penalties),
        classes=len(several[0].classes),
        row_weights=torch.stack([row_weights(targets, class_weight) for targets in several], 1),
    )
    weights, bias = found.weights[:, 0], found.bias[:, 0]
    return (weights, bias) if features.scaler is None else features.scaler.back(weights, bias)


def _aims(targets: Targets) -> Float[Tensor, "row output"]:
    """What least squares aims at: numbers as they are, classes as −1 and 1."""
    if targets.index is None:
        assert targets.table is not None
        return targets.table
    signs = 2 * torch.nn.functional.one_hot(targets.index, len(targets.classes)).double() - 1
    return signs[:, 1:] if targets.outputs == 1 else signs


def _width(source: Readable) -> int:
    return source[:1].flatten(1).shape[1]


def _used(penalties: Float[Tensor, " layer"]) -> tuple[tuple[float, ...], Int[Tensor, " layer"]]:
    """The different penalties of some layers, and which one each layer has."""
    used, place = penalties.nan_to_num(1.0).unique(return_inverse=True)
    return tuple(used.tolist()), place


__all__ = ["Fitted", "Rows", "Settings", "sweep"]
