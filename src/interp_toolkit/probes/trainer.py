"""One trainer for every probe that is trained by minibatches.

What it reads is a source: rows in memory, a site of an `ActivationStore` that is read batch by batch, or sequences of
different lengths. The order of rows depends on the seed and the lengths alone, so the same numbers give the same probe
wherever they lie. Random numbers come from generators of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from interp_toolkit.errors import ProbeError
from interp_toolkit.probes.inputs import Target
from interp_toolkit.probes.sources import Read, Rows, Source, blocks
from interp_toolkit.probes.splits import Column, split_rows

_PIECE, _MIXED = 1 << 13, 8
"""Rows that lie together are shuffled with those of so many other pieces, so that a store is read in long stretches."""
_BUCKETED = 32
"""Sequences of so many batches are sorted by length, so that little is padded."""
_TOGETHER = 1 << 22
"""Bytes of rows that are read at once for several batches, as each reading of a store costs something."""
_BATCHES, _SMALLEST = 16, 16
"""An epoch has so many batches at least, unless they would have fewer than so many rows."""


# --- settings and results -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How a network is trained.

    Attributes:
        epochs: passes over the rows at most.
        batch_size: rows of a batch at most. Few rows make smaller batches, down to 16 rows, so that an epoch has 16.
        learning_rate: of AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101).
        weight_decay: of AdamW, for all parameters but biases.
        patience: after so many epochs without a lower loss on held-out rows it stops; None for never.
        seed: of the order of rows and of dropout.
        progress: whether a progress bar is shown, where there is a terminal.

    Raises:
        ProbeError: for settings that train nothing.

    Example:
        >>> TrainingSettings(batch_size=256).rows_per_batch(1000)
        62
    """

    epochs: int = 50
    batch_size: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    patience: int | None = 10
    seed: int = 0
    progress: bool = False

    def __post_init__(self) -> None:
        whole = {"epochs": self.epochs, "batch_size": self.batch_size, "patience": self.patience}
        for name, value in whole.items():
            if value is not None and value < 1:
                raise ProbeError(f"{name} is at least 1, not {value}")
        if not (0 < self.learning_rate < math.inf and 0 <= self.weight_decay < math.inf):
            raise ProbeError(
                f"learning_rate is above zero and weight_decay not below, but they are {self.learning_rate} and "
                f"{self.weight_decay}"
            )

    def rows_per_batch(self, rows: int) -> int:
        """How many rows a batch has, when there are so many in all."""
        return min(self.batch_size, max(_SMALLEST, rows // _BATCHES))


@dataclass(frozen=True, kw_only=True)
class History:
    """How training went.

    Losses are means over rows: log loss in nats (summed over nothing; averaged over labels where there are several),
    or squared error in units of the variance, for a regression.

    Attributes:
        train: the loss of each epoch, taken while the weights changed.
        validation: that of held-out rows at the end of each epoch; empty without such rows.
        best_epoch: the epoch whose weights were kept, from 0: that of the lowest held-out loss, or the last one.
        stopped: because of `"patience"`, or because all `"epochs"` were done.
    """

    train: tuple[float, ...]
    validation: tuple[float, ...]
    best_epoch: int
    stopped: Literal["patience", "epochs"]


# --- what is wanted -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Objective:
    """What outputs should be, and how much each row counts.

    Attributes:
        kind: classes, labels or numbers.
        wanted: the class of each row, as whole numbers, for three classes or more; otherwise a number for each output.
        weights: how much each row, or each output of it, counts.
        unit: of the numbers that are wanted, for a regression: errors are measured in it.

    Example:
        >>> wanted = Objective(kind="classes", wanted=torch.tensor([[1.0], [0.0]]), weights=torch.ones(2, 1))
        >>> wanted(torch.zeros(1, 1), torch.tensor([1]))  # ln 2
        tensor([0.6931])
    """

    kind: Target
    wanted: Int[Tensor, " row"] | Float[Tensor, "row output"]
    weights: Float[Tensor, "row one_or_output"]
    unit: Float[Tensor, " output"] | None = None

    def to(self, like: Tensor) -> Objective:
        """The same where and as precisely as a tensor is."""
        wanted = self.wanted.to(like) if self.wanted.is_floating_point() else self.wanted.to(like.device)
        unit = None if self.unit is None else self.unit.to(like)
        return Objective(kind=self.kind, wanted=wanted, weights=self.weights.to(like), unit=unit)

    def __call__(self, outputs: Float[Tensor, "some output"], rows: Rows) -> Float[Tensor, " some"]:
        """The loss of each of some rows, times its weight."""
        picked = rows.to(outputs.device)
        wanted, weights = self.wanted[picked], self.weights[picked]
        if self.kind == "regression":
            missing = outputs - wanted
            losses = (missing if self.unit is None else missing / self.unit).square()
        elif wanted.ndim == 1:
            losses = F.cross_entropy(outputs, wanted, reduction="none")[:, None]
        else:
            losses = F.binary_cross_entropy_with_logits(outputs, wanted, reduction="none")
        return (weights * losses).mean(-1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """Rows of a source with what is wanted of them.

    Attributes:
        source: what is read.
        objective: about the rows of the source.
        rows: those that are used.
    """

    source: Source
    objective: Objective
    rows: Rows


def hold_out(
    classes: Int[Tensor, " row"], share: float, *, groups: Column | None = None, seed: int = 0
) -> tuple[Int[Tensor, " trained"], Int[Tensor, " held_out"]]:
    """Set rows aside for early stopping, at random and with the same share of every class.

    A class with a single row is trained on. Groups stay whole, as by `split_rows`.

    Args:
        classes: the class of each row.
        share: of the rows; 0 for none.
        groups: which group each row is of; without them each row is its own.
        seed: of the shuffle.

    Returns:
        The rows to train on and those held out, each in ascending order.

    Raises:
        ProbeError: for a share that is not from 0 to below 1, or groups that cannot be divided.

    Example:
        >>> [len(rows) for rows in hold_out(torch.tensor([0] * 20 + [1] * 10), 0.2)]
        [24, 6]
    """
    if not 0 <= share < 1:
        raise ProbeError(f"the share of held-out rows is from 0 to below 1, not {share}")
    if share == 0:
        return torch.arange(len(classes)), torch.empty(0, dtype=torch.long)
    if groups is not None:
        try:
            split = split_rows(classes, groups=groups, validation=share, test=0, seed=seed)
        except ProbeError as error:
            raise ProbeError(
                f"no rows can be held out for early stopping: {error}. With validation_share=0 none are, and all "
                "epochs are done; or pass validation=(X, y)"
            ) from error
        return split.train, split.validation
    generator = torch.Generator().manual_seed(seed)
    held = torch.zeros(len(classes), dtype=torch.bool)
    for members in (torch.nonzero(classes == n)[:, 0] for n in classes.unique()):
        number = min(len(members) - 1, max(1, round(share * len(members))))
        held[members[torch.randperm(len(members), generator=generator)[:number]]] = True
    return (~held).nonzero()[:, 0], held.nonzero()[:, 0]


# --- training -----------------------------------------------------------------------------------------------------


def fit_minibatch(
    network: nn.Module,
    train: Examples,
    *,
    validation: Examples | None = None,
    settings: TrainingSettings | None = None,
) -> History:
    """Train a network by AdamW, and leave it with the weights of its best epoch.

    It is computed in the precision and on the device of the network. The loss is the mean over a batch of the losses
    of rows, times their weights.

    Args:
        network: called as `network(x, mask, generator=...)`, with a generator for dropout in training and without one
            otherwise. It is changed in place, also when training is interrupted.
        train: what it is trained on.
        validation: held-out rows for early stopping; without them all epochs are done and the last weights are kept.
        settings: how; the defaults if not given.

    Returns:
        How it went.

    Raises:
        ProbeError: when the loss becomes infinite or NaN.

    Example:
        >>> from interp_toolkit.probes.networks import MLP
        >>> from interp_toolkit.probes.sources import RowSource
        >>> x = torch.linspace(-1, 1, 64)[:, None]
        >>> wanted = Objective(kind="regression", wanted=3 * x, weights=torch.ones(64, 1))
        >>> train = Examples(source=RowSource(x), objective=wanted, rows=torch.arange(64))
        >>> line = MLP(1, 1, hidden=())
        >>> history = fit_minibatch(line, train, settings=TrainingSettings(learning_rate=0.1))
        >>> history.stopped, round(line.layers[0].weight.item(), 2)
        ('epochs', 2.98)
    """
    from tqdm import tqdm

    settings = settings or TrainingSettings()
    descent = _Descent(network, train, settings)
    held = None if validation is None else descent.moved(validation)
    losses: tuple[list[float], list[float]] = ([], [])
    best, kept = 0, [p.detach().clone() for p in network.parameters()]
    stopped: Literal["patience", "epochs"] = "epochs"
    with tqdm(total=settings.epochs, unit=" epochs", disable=None if settings.progress else True, leave=False) as bar:
        for epoch in range(settings.epochs):
            losses[0].append(descent.epoch())
            if held is not None:
                losses[1].append(mean_loss(network, held))
            _refuse_divergence(losses, settings)
            bar.set_postfix_str(f"loss {losses[held is not None][-1]:.4g}", refresh=False)
            bar.update()
            if held is None or epoch == 0 or losses[1][-1] < losses[1][best]:
                best = epoch
                _copy(network.parameters(), kept)
            elif settings.patience is not None and epoch - best >= settings.patience:
                stopped = "patience"
                break
    _copy(kept, network.parameters())
    return History(train=tuple(losses[0]), validation=tuple(losses[1]), best_epoch=best, stopped=stopped)


@torch.no_grad()
def mean_loss(network: nn.Module, examples: Examples) -> float:
    """The mean loss over rows, by their weights, without dropout.

    Args:
        network: as for `fit_minibatch`.
        examples: which rows of what, with an objective where the outputs are.
    """
    like = next(network.parameters())
    total = like.new_zeros(())
    for rows, read in blocks(examples.source, examples.rows):
        total += examples.objective(network(*_like(read, like)), rows).sum()
    return float(total / _weight(examples))


@torch.no_grad()
def outputs_of(network: nn.Module, source: Source) -> Float[Tensor, "row output"]:
    """The outputs of all rows, computed in blocks.

    Args:
        network: as for `fit_minibatch`.
        source: what is read.
    """
    like = next(network.parameters())
    found = [network(*_like(read, like)) for _, read in blocks(source, torch.arange(len(source)))]
    return torch.cat(found)


class _Descent:
    """Training in epochs: the network, its optimizer, and where random numbers come from."""

    def __init__(self, network: nn.Module, train: Examples, settings: TrainingSettings) -> None:
        self.network = network
        self.like = next(network.parameters())
        self.train = self.moved(train)
        self.lengths = train.source.lengths
        self.size = settings.rows_per_batch(len(train.rows))
        self.order = torch.Generator().manual_seed(settings.seed)
        self.noise = torch.Generator(device=self.like.device).manual_seed(settings.seed)
        biases = [p for p in network.parameters() if p.ndim < 2]
        others = [p for p in network.parameters() if p.ndim >= 2]
        self.optimizer = torch.optim.AdamW(
            [{"params": others, "weight_decay": settings.weight_decay}, {"params": biases, "weight_decay": 0.0}],
            lr=settings.learning_rate,
            fused=self.like.device.type in ("cpu", "cuda"),
        )

    def moved(self, examples: Examples) -> Examples:
        """The same with the objective where the network is."""
        return Examples(source=examples.source, objective=examples.objective.to(self.like), rows=examples.rows)

    def epoch(self) -> float:
        """Go through all rows once.

        Returns:
            The mean loss meanwhile.
        """
        total = self.like.new_zeros(())
        for rows, read in self._batches():
            x, mask = _like(read, self.like)
            losses = self.train.objective(self.network(x, mask, generator=self.noise), rows)
            self.optimizer.zero_grad()
            losses.mean().backward()
            self.optimizer.step()
            total += losses.detach().sum()
        return float(total / _weight(self.train))

    def _batches(self) -> Iterator[tuple[Rows, Read]]:
        """The batches of an epoch; of rows, some are read together."""
        source = self.train.source
        batches = _batches(self.train.rows, self.lengths, self.size, self.order)
        if self.lengths is not None:
            yield from ((rows, source.read(rows)) for rows in batches)
            return
        together = max(1, _TOGETHER // (4 * self.size * source.width))
        for begin in range(0, len(batches), together):
            some = batches[begin : begin + together]
            x, _ = source.read(torch.cat(some))
            yield from ((rows, (part, None)) for rows, part in zip(some, x.split(self.size), strict=True))


def _like(read: Read, like: Tensor) -> Read:
    """What was read, where the network is and as precise."""
    x, mask = read
    return x.to(like), None if mask is None else mask.to(like.device)


def _weight(examples: Examples) -> Tensor:
    return examples.objective.weights[examples.rows.to(examples.objective.weights.device)].mean(-1).sum()


def _copy(values: Iterable[Tensor], places: Iterable[Tensor]) -> None:
    with torch.no_grad():
        for value, place in zip(values, places, strict=True):
            place.copy_(value)


def _refuse_divergence(losses: tuple[list[float], list[float]], settings: TrainingSettings) -> None:
    for name, found in zip(("training", "validation"), losses, strict=True):
        if found and not math.isfinite(found[-1]):
            raise ProbeError(
                f"the {name} loss is {found[-1]} in epoch {len(found) - 1}: training diverged. A smaller learning_rate "
                f"(it is {settings.learning_rate}) mends that; so may leaving out rows with extreme numbers"
            )


# --- the order of rows --------------------------------------------------------------------------------------------


def _batches(rows: Rows, lengths: Int[Tensor, " row"] | None, size: int, generator: torch.Generator) -> list[Tensor]:
    """The batches of an epoch. Those of sequences are of similar lengths, and come in random order all the same."""
    order = _shuffled(rows, generator)
    if lengths is None:
        return list(order.split(size))
    window = size * max(1, min(_BUCKETED, len(rows) // (4 * size)))
    batches: list[Tensor] = []
    for some in order.split(window):
        batches += some[lengths[some].argsort(stable=True)].split(size)
    return [batches[n] for n in torch.randperm(len(batches), generator=generator).tolist()]


def _shuffled(rows: Rows, generator: torch.Generator) -> Rows:
    """Rows in random order: all of them where they are few, else within pieces that come in random order."""
    pieces = rows.split(_PIECE)
    order = torch.randperm(len(pieces), generator=generator).tolist()
    mixed = []
    for begin in range(0, len(order), _MIXED):
        some = torch.cat([pieces[n] for n in order[begin : begin + _MIXED]])
        mixed.append(some[torch.randperm(len(some), generator=generator)])
    return torch.cat(mixed)


__all__ = [
    "Examples",
    "History",
    "Objective",
    "TrainingSettings",
    "fit_minibatch",
    "hold_out",
    "mean_loss",
    "outputs_of",
]
