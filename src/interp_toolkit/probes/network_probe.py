"""What probes that are networks share: how they are trained, saved and loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp_toolkit.errors import FileFormatError, ProbeError
from interp_toolkit.probes.estimator import Estimator, not_fitted
from interp_toolkit.probes.inputs import Targets, read_targets
from interp_toolkit.probes.networks import MLP, AttentionPool, MaxPool, Scaled
from interp_toolkit.probes.saving import load_probe, save_probe
from interp_toolkit.probes.sources import RowSource, Source, blocks, measure, tokens
from interp_toolkit.probes.trainer import (
    Examples,
    History,
    Objective,
    TrainingSettings,
    fit_minibatch,
    hold_out,
    outputs_of,
)
from interp_toolkit.probes.weighting import ClassWeight, digest_of, row_weights

_Probe = TypeVar("_Probe", bound="NetworkProbe")


class NetworkProbe(Estimator):
    """Base of probes that are networks, trained by minibatches.

    Trained attributes are `network_` (a torch module for activations as they are), `history_`, `classes_`,
    `n_features_in_`, `n_iter_` (epochs) and `digest_` (of the data).

    Activations are also taken as a source: `RowSource(store[site], rows)` trains on some rows of a store,
    `PaddedSource` and `RaggedSource` hold sequences.
    """

    learning_rate: float
    weight_decay: float
    batch_size: int
    epochs: int
    patience: int | None
    validation_share: float
    class_weight: ClassWeight | None
    seed: int
    device: torch.device | str | None

    network_: Scaled
    history_: History

    def _network(self, width: int, outputs: int, generator: torch.Generator) -> MLP | AttentionPool | MaxPool:
        raise NotImplementedError

    def _source(self, X: Any, mask: Any, width: int | None) -> Source:
        """What is read, with all its numbers checked."""
        raise NotImplementedError

    # --- training --------------------------------------------------------------------------------------------

    def train(
        self: _Probe,
        activations: Any,
        labels: Any,
        *,
        epochs: int | None = None,
        groups: Any = None,
        sample_weight: Any = None,
        mask: Any = None,
        validation: Sequence[Any] | None = None,
        progress: bool = False,
    ) -> _Probe:
        """Train the probe; an interruption leaves it as it was.

        Features are standardised by the rows, or real tokens, that it is trained on.

        Args:
            activations: what this kind of probe reads, in any precision, on any device. What lies in a store is read
                batch by batch.
            labels: one class a row; for other targets see `read_targets`.
            epochs: passes over the rows at most, in place of the parameter.
            groups: which group each row is of: a group is trained on or held out as a whole.
            sample_weight: how much each row counts; those with 0 are left out.
            mask: for sequences in one tensor the real positions `[row, pos]`; all if not given.
            validation: activations and labels for early stopping, and a mask if there is one, in place of held-out
                rows.
            progress: whether a progress bar is shown, where there is a terminal.

        Returns:
            The probe itself.

        Raises:
            ProbeError: for data from which nothing can be learned; the message names rows.
        """
        settings = TrainingSettings(
            epochs=self.epochs if epochs is None else epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            patience=self.patience,
            seed=self.seed,
            progress=progress,
        )
        source = self._source(activations, mask, self.input_dim)
        targets = self._check_targets(labels, len(source))
        weights = row_weights(targets, self.class_weight, sample_weight)
        rows, held = self._divided(targets, weights, groups, validation is None)
        network, objective = self._untrained(source, targets, weights / weights[rows].mean(), rows)
        held_out = Examples(source=source, objective=objective, rows=held) if len(held) else None
        if validation is not None:
            held_out = self._validation(validation, targets, objective, source.width)
        train = Examples(source=source, objective=objective, rows=rows)
        history = fit_minibatch(network, train, validation=held_out, settings=settings)
        self._learned(network, history, source.width, targets)
        self.digest_ = _digest(source, targets)
        return self

    def fit(
        self: _Probe, X: Any, y: Any = None, sample_weight: Any = None, *, groups: Any = None, mask: Any = None
    ) -> _Probe:
        """Train the probe, as scikit-learn calls it."""
        return self.train(X, y, sample_weight=sample_weight, groups=groups, mask=mask)

    def _divided(
        self, targets: Targets, weights: Tensor, groups: Any, hold: bool
    ) -> tuple[Int[Tensor, " trained"], Int[Tensor, " held_out"]]:
        """Rows that are trained on, and those that say when to stop."""
        used = weights.nonzero()[:, 0]
        classes = torch.zeros(len(targets), dtype=torch.long) if targets.index is None else targets.index
        names = None
        if groups is not None:
            every = list(groups.tolist() if isinstance(groups, Tensor | np.ndarray) else groups)
            if len(every) != len(targets):
                raise ProbeError(f"each row is of one group, but there are {len(every)} for {len(targets)} rows")
            names = [every[row] for row in used.tolist()]
        rows, held = hold_out(classes[used], self.validation_share if hold else 0.0, groups=names, seed=self.seed)
        return used[rows], used[held]

    def _untrained(
        self, source: Source, targets: Targets, weights: Float[Tensor, " row"], rows: Int[Tensor, " trained"]
    ) -> tuple[Scaled, Objective]:
        """A network with its first weights, and what is wanted of it."""
        like = source.read(rows[:1])[0]
        device = torch.device(self.device or like.device)
        dtype = torch.float64 if like.dtype == torch.float64 and device.type != "mps" else torch.float32
        mean, scale = measure(source, rows)
        centre, unit = torch.zeros(targets.outputs), torch.ones(targets.outputs)
        if targets.kind == "regression" and targets.table is not None:
            unit, centre = torch.std_mean(targets.table[rows], 0, correction=0)
            unit = torch.where(unit > 0, unit, 1.0)
        generator = torch.Generator().manual_seed(self.seed)
        network = self._network(source.width, targets.outputs, generator)
        scaled = Scaled(network, mean, scale, centre=centre, unit=unit).to(device=device, dtype=dtype)
        return scaled, _objective(targets, weights, unit)

    def _validation(self, given: Sequence[Any], targets: Targets, like: Objective, width: int) -> Examples:
        """Rows that were given for early stopping; each counts the same, or as its class does."""
        if len(given) not in (2, 3):
            raise ProbeError(
                f"validation is (activations, labels) or (activations, labels, mask), not {len(given)} things"
            )
        source = self._source(given[0], given[2] if len(given) == 3 else None, width)
        classes = None if targets.kind == "regression" else targets.classes
        wanted = read_targets(given[1], self.target, rows=len(source), classes=classes)
        if wanted.outputs != targets.outputs:
            raise ProbeError(f"validation has {wanted.outputs} numbers a row, but training {targets.outputs}")
        weights = torch.ones(len(wanted), dtype=torch.float64)
        if targets.index is not None and wanted.index is not None:
            per_class = torch.ones(len(targets.classes), dtype=torch.float64)
            per_class[targets.index] = row_weights(targets, self.class_weight)
            weights = per_class[wanted.index]
        objective = _objective(wanted, weights, like.unit)
        return Examples(source=source, objective=objective, rows=torch.arange(len(source)))

    def _learned(self, network: Scaled, history: History, width: int, targets: Targets) -> None:
        self.network_ = network.requires_grad_(False)
        self.history_ = history
        self.n_features_in_ = width
        self.n_iter_ = len(history.train)
        self.single_ = targets.table is None or targets.table.shape[1] == 1
        if targets.kind != "regression":
            self.classes_ = np.asarray(targets.classes)

    # --- predictions -----------------------------------------------------------------------------------------

    def _fitted_source(self, X: Any, mask: Any = None) -> Source:
        if not self.__sklearn_is_fitted__():
            raise not_fitted(type(self).__name__)
        return self._source(X, mask, self.n_features_in_)

    def _fitted_network(self) -> MLP | AttentionPool | MaxPool:
        if not self.__sklearn_is_fitted__():
            raise not_fitted(type(self).__name__)
        return self.network_.network

    def _all_margins(self, X: Any) -> Float[Tensor, "row output"]:
        source = self._fitted_source(X)
        return outputs_of(self.network_, source)

    # --- on disk ---------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write the probe as safetensors, with its parameters, classes, history and the digest of its data.

        Raises:
            ProbeError: before training.
        """
        if not self.__sklearn_is_fitted__():
            raise not_fitted(type(self).__name__)
        outputs = len(self.network_.centre)
        about = {"outputs": outputs, "single": self.single_, "digest": self.digest_, "history": asdict(self.history_)}
        tensors = {name: x.cpu() for name, x in self.network_.state_dict().items()}
        return save_probe(self, path, tensors, about)

    @classmethod
    def load(cls: type[_Probe], path: str | Path, *, device: torch.device | str = "cpu") -> _Probe:
        """Read what `save` wrote.

        Args:
            path: the file.
            device: where it computes from now on.

        Raises:
            FileFormatError: when it is something else.
        """
        probe, tensors, about = load_probe(cls, path, ("mean", "scale", "centre", "unit"))
        mean, centre = tensors["mean"], tensors["centre"]
        try:
            inner = probe._network(len(mean), len(centre), torch.Generator())
            network = Scaled(inner, mean, tensors["scale"], centre=centre, unit=tensors["unit"]).to(mean.dtype)
            network.load_state_dict(tensors)
            facts = about["history"]
            probe.history_ = History(
                train=tuple(facts["train"]),
                validation=tuple(facts["validation"]),
                best_epoch=facts["best_epoch"],
                stopped=facts["stopped"],
            )
            probe.single_, probe.digest_ = about["single"], about["digest"]
        except (KeyError, RuntimeError, TypeError, AttributeError, ProbeError) as error:
            raise FileFormatError(f"{path} is damaged: {type(error).__name__} {error}") from error
        probe.network_ = network.to(device).requires_grad_(False)
        probe.n_features_in_, probe.n_iter_ = len(mean), len(probe.history_.train)
        if about["classes"] is not None:
            probe.classes_ = np.asarray(about["classes"])
        return probe


# --- on the way ---------------------------------------------------------------------------------------------------


def _objective(targets: Targets, weights: Float[Tensor, " row"], unit: Tensor | None) -> Objective:
    """The loss for some targets: with one output for two classes."""
    wanted = targets.index if targets.table is None else targets.table
    assert wanted is not None
    if targets.index is not None and targets.outputs == 1:
        wanted = wanted[:, None].float()
    return Objective(kind=targets.kind, wanted=wanted, weights=weights[:, None], unit=unit)


def _digest(source: Source, targets: Targets) -> str:
    """The sha256 of what a probe was trained on; for rows the same as that of a linear probe."""
    if isinstance(source, RowSource) and source.rows is None:
        return digest_of(source.x, targets)
    lengths = None if source.lengths is None else source.lengths.tolist()
    found = hashlib.sha256(repr((lengths, source.width)).encode())
    for _, read in blocks(source, torch.arange(len(source))):
        found.update(tokens(read).float().cpu().numpy().tobytes())
    found.update(digest_of(torch.empty(0, 1), targets).encode())
    return found.hexdigest()


__all__ = ["NetworkProbe"]
