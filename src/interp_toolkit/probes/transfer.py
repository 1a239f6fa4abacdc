"""Does a probe that was trained on one kind of data hold on another? Truth of cities, say, on truth of sums."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp_toolkit.errors import ProbeError
from interp_toolkit.model import Layout
from interp_toolkit.probes.collecting import collect
from interp_toolkit.probes.data import ProbeData
from interp_toolkit.probes.features import Readable
from interp_toolkit.probes.inputs import read_targets
from interp_toolkit.probes.kinds import Kind
from interp_toolkit.probes.linear import LinearProbe
from interp_toolkit.probes.pooling import Pooling
from interp_toolkit.probes.scoring import Draws, scores_of
from interp_toolkit.probes.splits import number_groups, split_rows
from interp_toolkit.visualization.heatmaps import Heatmap

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True, eq=False)
class Transfer:
    """Accuracy of probes trained on one set of data (rows) and tested on another (columns).

    Attributes:
        names: of the sets.
        accuracy: on held-out rows; on the diagonal of the same set.
        low: lower ends of the intervals.
        high: upper ends.
        auroc: area under the ROC curve; the mean over classes where there are more than two.
        cosine: between the directions of the probes; of their first ones where there are more.
        where: layer and tokens, in words.
        level: of the intervals.
        probes: of each set.
    """

    names: tuple[str, ...]
    accuracy: Float[Tensor, "train test"]
    low: Float[Tensor, "train test"]
    high: Float[Tensor, "train test"]
    auroc: Float[Tensor, "train test"]
    cosine: Float[Tensor, "train train"]
    where: str
    level: float
    probes: tuple[LinearProbe, ...] = field(repr=False)

    def summary(self) -> str:
        """The best and the worst transfer in words."""
        own = ", ".join(f"{name} {float(self.accuracy[n, n]):.2f}" for n, name in enumerate(self.names))
        pairs = itertools.permutations(range(len(self.names)), 2)
        off = [(float(self.accuracy[a, b]), a, b) for a, b in pairs]
        if not off:
            return f"At {self.where}, held-out accuracy is {own}; there is no other set to transfer to."
        (low, a, b), (high, c, d) = min(off), max(off)
        ends = float(self.low[a, b]), float(self.high[a, b])
        sure = "" if math.isnan(ends[0]) else f", {self.level:.0%} interval [{ends[0]:.2f}, {ends[1]:.2f}]"
        return (
            f"At {self.where}, held-out accuracy on a probe's own data is {own}. Between sets it is {high:.2f} at best "
            f"(from {self.names[c]} to {self.names[d]}) and {low:.2f} at worst (from {self.names[a]} to "
            f"{self.names[b]}{sure})."
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each pair of sets; needs pandas."""
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError('a data frame needs pandas: pip install "interpretability-toolkit[probes]"') from error
        pairs = itertools.product(range(len(self.names)), repeat=2)
        measured = ("accuracy", "low", "high", "auroc", "cosine")
        return pd.DataFrame(
            [
                {"train": self.names[a], "test": self.names[b]}
                | {name: float(getattr(self, name)[a, b]) for name in measured}
                for a, b in pairs
            ]
        )

    def plot(self) -> Heatmap:
        """Accuracy as a picture."""
        n = range(len(self.names))
        return Heatmap(
            values=self.accuracy.tolist(),
            rows=self.names,
            columns=self.names,
            title=f"Accuracy of probes on other data, at {self.where}",
            caption=f"On held-out rows of the set that is tested on; beside each value its {self.level:.0%} interval.",
            row_name="trained on",
            column_name="tested on",
            notes=[[f"[{float(self.low[a, b]):.2f}, {float(self.high[a, b]):.2f}]" for b in n] for a in n],
            limit=1.0,
            scale="sequential",
        )

    def _repr_html_(self) -> str:
        return self.plot()._repr_html_()


def transfer_matrix(
    model: Any,
    datasets: Sequence[ProbeData],
    *,
    layer: int,
    site: str = "resid_post",
    positions: Pooling = "last",
    kind: Kind = "logistic",
    C: float = 0.1,
    test: float = 0.25,
    seed: int = 0,
    level: float = 0.95,
    draws: int = 2000,
    tokenizer: Any = None,
    layout: Layout | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Transfer:
    """Train a probe on each set of data, and test each on all sets.

    A group that occurs in several sets, such as a city in statements and in their negations, is on one side in all.

    Args:
        model: which reads the texts.
        datasets: with the same classes.
        layer: whose activations are read.
        site: which of them.
        positions: which tokens count.
        kind: of probe.
        C: its penalty.
        test: share of rows that is held out.
        seed: of the split and the draws.
        level: of the intervals.
        draws: of groups, for intervals.
        tokenizer: of the model.
        layout: for a model class of your own.
        progress: is told how many texts of how many are done, for each set.

    Raises:
        ProbeError: for sets of other classes or of one name.
    """
    names = _comparable(datasets)
    held, groups = _split(datasets, test, seed)
    found = [
        collect(
            model,
            data.texts,
            site=site,
            layers=[layer],
            positions=positions,
            spans=data.spans,
            tokenizer=tokenizer,
            layout=layout,
            progress=progress,
        )
        for data in datasets
    ]
    if any(len(material.documents) != len(data) for material, data in zip(found, datasets, strict=True)):
        raise ProbeError("transfer needs one row for each text: positions='all' has more")
    sources = [material.sources[0] for material in found]
    probes = [_trained(x, out, data, kind, C, seed) for x, out, data in zip(sources, held, datasets, strict=True)]
    scores = []
    for x, out, data, group in zip(sources, held, datasets, groups, strict=True):
        rows = out.nonzero()[:, 0]
        margins = torch.stack([torch.as_tensor(_margins(probe, x[rows])) for probe in probes])
        asked = read_targets(data.labels).select(rows)
        scores.append(scores_of(margins, asked, group[rows], draws=Draws(level=level, number=draws, seed=seed)))
    directions = torch.stack([probe.direction.reshape(-1, probe.n_features_in_)[0] for probe in probes])
    return Transfer(
        names=names,
        accuracy=torch.stack([score.accuracy.mean for score in scores], 1),
        low=torch.stack([score.accuracy.low for score in scores], 1),
        high=torch.stack([score.accuracy.high for score in scores], 1),
        auroc=torch.stack([score.auroc.mean for score in scores], 1),
        cosine=directions @ directions.mT,
        where=f"{found[0].names[0]} ({found[0].where})",
        level=level,
        probes=tuple(probes),
    )


def _comparable(datasets: Sequence[ProbeData]) -> tuple[str, ...]:
    """The names of sets that can be compared."""
    names = tuple(data.name for data in datasets)
    if not datasets or len(set(names)) < len(names):
        raise ProbeError(f"transfer needs sets of data with different names, not {list(names)}")
    classes = sorted({str(label) for label in datasets[0].labels})
    for data in datasets:
        if (found := sorted({str(label) for label in data.labels})) != classes:
            raise ProbeError(f"sets need the same classes, but {names[0]} has {classes} and {data.name} {found}")
    return names


def _trained(x: Readable, out: Tensor, data: ProbeData, kind: Kind, C: float, seed: int) -> LinearProbe:
    """A probe of the rows that are not held out."""
    rows = (~out).nonzero()[:, 0]
    pairs = None if kind != "contrast" or data.pairs is None else [data.pairs[n] for n in rows.tolist()]
    return LinearProbe(kind=kind, C=C, seed=seed).train(x[rows], [data.labels[n] for n in rows.tolist()], pairs=pairs)


def _margins(probe: LinearProbe, x: Tensor) -> Float[Tensor, "row output"]:
    found: Tensor = probe.decision_function(x)
    return found[:, None] if found.ndim == 1 else found


def _split(datasets: Sequence[ProbeData], test: float, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """For each set which rows are held out, and the group of each row; groups of one name are one group."""
    labels = [f"{data.name}: {label}" for data in datasets for label in data.labels]
    groups = [
        data.groups[n] if data.groups is not None else f"{data.name} row {n}"
        for data in datasets
        for n in range(len(data))
    ]
    split = split_rows(labels, groups=groups, validation=0, test=test, seed=seed)
    held = torch.zeros(len(labels), dtype=torch.bool)
    held[split.test] = True
    numbers = number_groups(groups, len(groups))[0]
    sizes = [len(data) for data in datasets]
    return list(held.split(sizes)), list(numbers.split(sizes))


__all__ = ["Transfer", "transfer_matrix"]
