"""Probes at every layer, with what makes their scores believable.

Probes of all layers and penalties are trained on the training rows, the penalty of each layer and the layer are chosen
on the validation rows, and what is reported is measured on the test rows, of which no group was seen before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from interp_toolkit.activations import ActivationStore
from interp_toolkit.errors import ProbeError
from interp_toolkit.model import Layout
from interp_toolkit.probes.collecting import Material, collect
from interp_toolkit.probes.data import ProbeData
from interp_toolkit.probes.findings import ProbeSweep
from interp_toolkit.probes.inputs import Target, Targets, read_targets
from interp_toolkit.probes.kinds import KINDS, Kind
from interp_toolkit.probes.pooling import Pooling
from interp_toolkit.probes.splits import Column, Split, check_leakage, given_split, number_groups, split_rows
from interp_toolkit.probes.sweeping import Rows, Settings, sweep

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0, 1000.0)
"""The strengths C that are tried, on standardised features."""

_INNER = 0.25
"""Share of the training rows that choose, where a given split has no validation rows."""
_FEW = 20
"""Fewer groups than these are easily told apart: that a probe can do it says nothing about its power."""


def probe_sweep(
    source: Any,
    texts: Sequence[str] | ProbeData | None = None,
    labels: Any = None,
    *,
    groups: Column | None = None,
    layers: Iterable[int] | int | None = None,
    site: str = "resid_post",
    positions: Pooling = "last",
    kinds: Sequence[Kind] | Kind | None = None,
    target: Target | None = None,
    split: Split | None = None,
    control: Column | None = None,
    name: str | None = None,
    tokenizer: Any = None,
    layout: Layout | None = None,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> ProbeSweep:
    """Train probes at every layer, and judge them with baselines and controls.

    Args:
        source: a model, an `ActivationStore`, `Activations` of a batch, a tensor `[layer, row, d]`, or a mapping from
            names of layers to `[row, d]`.
        texts: what the model reads, or `ProbeData` with labels and groups, with the spans for `positions="span"` and
            the pairs for `kinds="contrast"`; with arrays optional, for the bag-of-words baseline.
        labels: one a text; of a store its column `label` if not given.
        groups: rows of one group stay on one side of the split: a template, an entity, a contrast pair. If not given,
            the pairs of `ProbeData`, or the groups of `split`.
        layers: which, negative ones from the end; all if not given.
        site: which activations of a layer.
        positions: which tokens count: `"last"`, `"mean"`, `"max"`, `"span"`, `"span_mean"`, a `Span`, or `"all"`, where
            each token is a row with its text's label, and a text is a group unless groups are given.
        kinds: of linear probes; the best is chosen on validation, with the layer. By default `"logistic"`, for
            regression `"ridge"`.
        target: `"classes"` or `"regression"`; what the `ProbeData` say, else classes.
        split: a split of your own, of texts or of rows; else 55% train, 20% validation, 25% test. Without validation
            rows a quarter of its training rows takes their place.
        control: what the control task gives a random label to, for each row; by default the token where rows are
            tokens, the span where it is read, else the group where there are at least 20.
        name: what the labels are about, for the summary.
        tokenizer: of the model.
        layout: for a model class of your own.
        progress: is told how many texts of how many are done.
        options: see `sweeping.Settings`: `penalties`, `class_weight`, `permutations`, `seed`, `level`, `draws`, `dtype`
            and `device`.

    Returns:
        Scores of every layer with all controls.

    Raises:
        ProbeError: for labels, groups or activations that cannot be used; the message names rows.

    Example:
        >>> x = torch.randn(3, 200, 8, generator=torch.Generator().manual_seed(0))
        >>> y = ["yes" if value > 0 else "no" for value in x[2, :, 0]]  # only the third layer knows
        >>> found = probe_sweep(x, labels=y, name="the sign", permutations=19)
        >>> found.best.layer, found.best.accuracy > 0.9, found.scores[0].accuracy < 0.7
        (2, True, True)
    """
    settings = _settings(options)
    data = _given(source, texts, labels, groups, name)
    target = target or data.target
    several = _kinds(kinds, target, data)
    if data.texts is not None:  # what is cheap to check comes before what takes long
        _check_early(data, target, split, settings.seed)
    material = collect(
        source,
        data.texts,
        site=site,
        layers=layers,
        positions=positions,
        spans=data.spans,
        tokenizer=tokenizer,
        layout=layout,
        progress=progress,
    )
    if positions not in ("span", "span_mean"):
        data = replace(data, spans=None)
    return sweep(material, _rows(material, data, target, split, control, settings), several, settings, data.name)


def _check_early(data: _Given, target: Target, split: Split | None, seed: int) -> None:
    """What can be said of labels and groups of texts before these are run."""
    assert data.texts is not None
    each = read_targets(data.labels, target, rows=len(data.texts))
    _refuse_one_class(each)
    if split is None and (data.groups is None or len(data.groups) == len(each)):
        split_rows(_names(each), groups=data.groups, seed=seed)


def _refuse_one_class(targets: Targets) -> None:
    if len(targets.classes) == 1:
        raise ProbeError(f"a probe tells classes apart, but all {len(targets)} rows are {targets.classes[0]!r}")


# --- what was given -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Given:
    """What a user said about texts or rows."""

    name: str
    target: Target
    labels: Any
    texts: tuple[str, ...] | None
    groups: Any
    spans: tuple[str, ...] | None = None
    pairs: tuple[str, ...] | None = None


def _given(source: Any, texts: Any, labels: Any, groups: Any, name: str | None) -> _Given:
    if isinstance(texts, str):
        raise ProbeError("texts are a list with one for each label, not a single text")
    if labels is None and isinstance(source, ActivationStore) and "label" in source.columns:
        labels = source.column("label")
    if not isinstance(texts, ProbeData):
        known = None if texts is None else tuple(texts)
        return _Given(name=name or "the label", target="classes", labels=labels, texts=known, groups=groups)
    return _Given(
        name=name or texts.name,
        target=texts.kind if labels is None else "classes",
        labels=texts.labels if labels is None else labels,
        texts=texts.texts,
        groups=next((given for given in (groups, texts.groups, texts.pairs) if given is not None), None),
        spans=texts.spans,
        pairs=texts.pairs,
    )


def _kinds(kinds: Any, target: Target, data: _Given) -> tuple[Kind, ...]:
    """The kinds of probes, if they can predict such labels."""
    if target not in ("classes", "regression"):
        raise ProbeError(f"a sweep predicts 'classes' or 'regression', not {target!r}: sweep several labels one by one")
    default = "ridge" if target == "regression" else "logistic"
    several = (default,) if kinds is None else (kinds,) if isinstance(kinds, str) else tuple(dict.fromkeys(kinds))
    if not several or set(several) - set(KINDS):
        raise ProbeError(f"kinds are {', '.join(map(repr, KINDS))}, not {several}")
    if target == "regression" and several != ("ridge",):
        raise ProbeError(f"numbers are predicted by kinds='ridge', not by {several}")
    if "contrast" in several and data.pairs is None:
        raise ProbeError("contrast-consistent search needs to know which rows are pairs: pass ProbeData with pairs")
    return several


def _settings(options: dict[str, Any]) -> Settings:
    """The options, if they are known and make sense."""
    known = Settings.__dataclass_fields__
    if strange := sorted(set(options) - set(known)):
        raise ProbeError(f"there is no option {strange[0]!r}; there are {', '.join(known)}")
    given = options.get("penalties", PENALTIES)
    penalties = tuple(float(C) for C in ([given] if isinstance(given, int | float) else given))
    if not penalties or not all(0 < C < float("inf") for C in penalties):
        raise ProbeError(f"penalties are strengths C above zero, not {penalties}")
    settings = Settings(**{**options, "penalties": penalties})
    if min(settings.permutations, settings.seed) < 0 or settings.draws < 2 or not 0 < settings.level < 1:
        raise ProbeError(
            f"permutations and seed are 0 or more, draws 2 or more, and a level is between 0 and 1, not "
            f"{settings.permutations}, {settings.seed}, {settings.draws} and {settings.level}"
        )
    if settings.dtype not in (torch.float32, torch.float64):
        raise ProbeError(f"probes are computed in float32 or float64, not in {settings.dtype}")
    return settings


# --- rows ---------------------------------------------------------------------------------------------------------


def _spread(given: Any, material: Material, what: str) -> list[Any] | None:
    """A value for each row, from one for each text or row."""
    if given is None:
        return None
    values = list(given.tolist() if isinstance(given, Tensor | np.ndarray) else given)
    documents = material.documents.tolist()
    if len(values) == material.count:
        return [values[n] for n in documents]
    if len(values) != len(documents):
        of = "" if len(documents) == material.count else f" of {material.count} texts"
        raise ProbeError(f"there are {len(documents)} rows{of}, but {len(values)} {what}")
    return values


def _rows(
    material: Material,
    data: _Given,
    target: Target,
    split: Split | None,
    control: Column | None,
    settings: Settings,
) -> Rows:
    """What is known of each row, and how rows are split."""
    documents = material.documents
    rows = len(documents)
    targets = read_targets(_spread(data.labels, material, "labels"), target)
    several = len(documents.unique()) < rows
    groups = _spread(data.groups, material, "groups")
    if groups is None and split is not None and len(split.group_names) < len(split.groups):
        groups = _spread(split.groups, material, "groups of the split")
    if groups is None and several:
        groups = documents.tolist()
    texts = _spread(data.texts or material.texts, material, "texts")
    tokens = material.tokens.tolist() if several and material.tokens is not None else None
    keys = _spread(control, material, "keys of the control task") or _spread(data.spans, material, "spans") or tokens
    if keys is None and groups is not None and len(set(groups)) >= _FEW:
        keys = groups
    pairs = _spread(data.pairs, material, "pairs")
    return Rows(
        targets=targets,
        split=_split(material, targets, groups, texts, split, settings.seed),
        groups=number_groups(groups or range(rows), rows)[0],
        grouped=groups is not None,
        texts=None if texts is None else tuple(texts),
        keys=None if keys is None else tuple(keys),
        pairs=None if pairs is None else tuple(pairs),
    )


def _split(
    material: Material,
    targets: Targets,
    groups: list[Any] | None,
    texts: list[str] | None,
    given: Split | None,
    seed: int,
) -> Split:
    """Rows for training, validation and test, each with every class."""
    names = _names(targets)
    _refuse_one_class(targets)
    if given is None:
        split = split_rows(names, groups=groups, seed=seed)
        check_leakage(split, groups=groups, texts=texts)
        return split
    of = torch.full((len(given.groups),), -1)
    for n, rows in enumerate((given.train, given.validation, given.test)):
        of[rows] = n
    place = torch.tensor(_spread(of, material, "rows of the split"))
    train, validation, test = ((place == n).nonzero()[:, 0] for n in range(3))
    split = given_split(names, train=train, validation=validation, test=test, groups=groups, texts=texts)
    if not len(validation):
        train, validation = _inner(train, names, groups, seed)
        split = replace(split, train=train, validation=validation)
    for part, rows in split.parts.items():
        counts = split.classes[rows].bincount(minlength=len(split.class_names))
        absent = [str(split.class_names[n]) for n in (counts == 0).nonzero()[:, 0].tolist()]
        if absent and split.class_names:
            raise ProbeError(f"no row of {part} is of class {', '.join(absent)}: every part needs every class")
    return split


def _inner(
    train: Int[Tensor, " row"], names: list[Any], groups: list[Any] | None, seed: int
) -> tuple[Int[Tensor, " train_row"], Int[Tensor, " validation_row"]]:
    """Training rows, of which some choose; whole groups if that is possible."""
    labels = [names[row] for row in train.tolist()]
    own = None if groups is None else [groups[row] for row in train.tolist()]
    try:
        found = split_rows(labels, groups=own, validation=_INNER, test=0, seed=seed)
    except ProbeError:
        if own is None:
            raise
        found = split_rows(labels, validation=_INNER, test=0, seed=seed)
    return train[found.train], train[found.validation]


def _names(targets: Targets) -> list[Any]:
    """The class of each row, or its number, by which rows are split."""
    if targets.index is not None:  # a class that is a float would be taken for a number that is measured
        names = [f"{name:g}" if isinstance(name, float) else name for name in targets.classes]
        return [names[n] for n in targets.index.tolist()]
    assert targets.table is not None
    return list(targets.table[:, 0].tolist())


__all__ = ["PENALTIES", "probe_sweep"]
