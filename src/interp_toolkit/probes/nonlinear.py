"""Probes that are small networks: of one activation, or of those of a whole sequence.

A better score than that of a linear probe says that what is asked for can be computed from activations; it does not
say that the model represents it. Compare with control tasks (Hewitt & Liang 2019, arXiv:1909.03368).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp_toolkit.errors import ProbeError
from interp_toolkit.probes.inputs import Target, read_rows
from interp_toolkit.probes.network_probe import NetworkProbe
from interp_toolkit.probes.networks import MLP, Activation, AttentionPool, MaxPool, TokenScore
from interp_toolkit.probes.sources import PaddedSource, RaggedSource, RowSource, blocks, check_source, read_sequences
from interp_toolkit.probes.weighting import ClassWeight


class MLPProbe(NetworkProbe):
    """A multilayer perceptron on activations; see `NetworkProbe` for the rest.

    Nothing is checked before `train`. It is computed in float32, for float64 data in float64.

    Args:
        input_dim: how many features there are; that of the data if not given.
        num_classes: how many classes there are; those of the data if not given.
        hidden: the sizes of the hidden layers.
        activation: `"relu"`, `"gelu"`, `"silu"` or `"tanh"`.
        dropout: the share of hidden units that is left out in training.
        target: `"classes"`, `"labels"` (any number of them at once) or `"regression"`.
        learning_rate: for this and the next four see `TrainingSettings`.
        weight_decay: of AdamW.
        batch_size: rows of a batch at most.
        epochs: passes over the rows at most.
        patience: epochs without progress on held-out rows.
        validation_share: the share of rows held out for early stopping; with 0 all epochs are done.
        class_weight: `"balanced"`, or a weight for each class.
        seed: of first weights, held-out rows, batches and dropout.
        device: where it is computed; where the data lie if not given.

    Example:
        >>> x = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
        >>> y = (x[:, 0] * x[:, 1] > 0).long()
        >>> probe = MLPProbe(input_dim=2, num_classes=2, learning_rate=0.01)
        >>> probe.train(activations=x, labels=y, epochs=50).evaluate(x, y) > 0.95
        True
    """

    def __init__(
        self,
        input_dim: int | None = None,
        num_classes: int | None = None,
        *,
        hidden: Sequence[int] = (64,),
        activation: Activation = "relu",
        dropout: float = 0.0,
        target: Target = "classes",
        learning_rate: float = 1e-3,
        weight_decay: float = 0.01,
        batch_size: int = 256,
        epochs: int = 50,
        patience: int | None = 10,
        validation_share: float = 0.15,
        class_weight: ClassWeight | None = None,
        seed: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        self.input_dim = input_dim
        self.num_classes = num_classes
        self.hidden = hidden
        self.activation = activation
        self.dropout = dropout
        self.target = target
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.epochs = epochs
        self.patience = patience
        self.validation_share = validation_share
        self.class_weight = class_weight
        self.seed = seed
        self.device = device

    def _network(self, width: int, outputs: int, generator: torch.Generator) -> MLP:
        return MLP(
            width,
            outputs,
            hidden=self.hidden,
            activation=self.activation,
            dropout=self.dropout,
            generator=generator,
        )

    def _source(self, X: Any, mask: Any, width: int | None) -> RowSource:
        if mask is not None:
            raise ProbeError("an MLPProbe reads single activations [row, d], which have no mask")
        who = type(self).__name__
        if isinstance(X, RowSource):
            check_source(X, width=width, who=who)
            return X
        return RowSource(read_rows(X, width=width, who=who))


class SequenceProbe(NetworkProbe):
    """Base of probes of sequences.

    They read `[row, pos, d]` with a mask of the real positions, or a list with `[pos, d]` for each row, such as
    `[store[site][store.rows_of(n)] for n in documents]`. What stands in padding changes nothing.
    """

    def _source(self, X: Any, mask: Any, width: int | None) -> PaddedSource | RaggedSource:
        source = X if isinstance(X, PaddedSource | RaggedSource) else read_sequences(X, mask)
        check_source(source, width=width, who=type(self).__name__)
        return source

    def decision_function(self, X: Any, mask: Any = None) -> Any:
        """Margins of sequences; see `Estimator.decision_function`.

        Args:
            X: sequences.
            mask: the real positions `[row, pos]`; all if not given.
        """
        return _as_given(super().decision_function(self._fitted_source(X, mask)), X)

    def predict_proba(self, X: Any, mask: Any = None) -> Any:
        """Probabilities `[row, class]`; of several labels one column each, which do not sum to one.

        Args:
            X: sequences.
            mask: the real positions `[row, pos]`; all if not given.
        """
        return _as_given(super().predict_proba(self._fitted_source(X, mask)), X)

    def predict(self, X: Any, mask: Any = None) -> Any:
        """The class of each sequence, a table of zeros and ones for labels, or numbers.

        Args:
            X: sequences.
            mask: the real positions `[row, pos]`; all if not given.
        """
        return _as_given(super().predict(self._fitted_source(X, mask)), X)

    def evaluate(self, X: Any, y: Any, mask: Any = None) -> float:
        """The accuracy on other data: of labels over all of them, for regression R².

        Args:
            X: sequences.
            y: their labels.
            mask: the real positions `[row, pos]`; all if not given.
        """
        return self.score(X, y, mask=mask)

    def score(self, X: Any, y: Any, sample_weight: Any = None, *, mask: Any = None) -> float:
        """The same, as scikit-learn calls it."""
        return super().score(self._fitted_source(X, mask), y, sample_weight)

    def _by_token(
        self, X: Any, mask: Any, function: Callable[[Tensor, Tensor], Tensor], fill: float
    ) -> Float[Tensor, "row head pos"]:
        """What a function of standardised sequences says of each token, in the positions of `X`."""
        source = self._fitted_source(X, mask)
        if isinstance(source, PaddedSource):
            source = replace(source, trim=False)
        found = []
        for _, (x, real) in blocks(source, torch.arange(len(source))):
            assert real is not None
            like = self.network_.mean
            found.append(function(self.network_.standardized(x.to(like)), real.to(like.device)))
        longest = max(part.shape[-1] for part in found)
        return torch.cat([torch.nn.functional.pad(p, (0, longest - p.shape[-1]), value=fill) for p in found])


class AttentionProbe(SequenceProbe):
    """A probe that learns where in a sequence to look; see `AttentionPool`, and `NetworkProbe` for the rest.

    Nothing is checked before `train`. It is computed in float32, for float64 data in float64.

    Args:
        input_dim: how many features there are; that of the data if not given.
        num_classes: how many classes there are; those of the data if not given.
        heads: how many queries are learned.
        target: `"classes"`, `"labels"` (any number of them at once) or `"regression"`.
        learning_rate: for this and the next four see `TrainingSettings`.
        weight_decay: of AdamW.
        batch_size: sequences of a batch at most.
        epochs: passes over the sequences at most.
        patience: epochs without progress on held-out sequences.
        validation_share: the share of sequences held out for early stopping; with 0 all epochs are done.
        class_weight: `"balanced"`, or a weight for each class.
        seed: of first weights, held-out sequences and batches.
        device: where it is computed; where the data lie if not given.

    Example:
        >>> x = torch.randn(300, 6, 4, generator=torch.Generator().manual_seed(0))
        >>> y = (x[:, 2, 1] > 0).long()  # what counts stands at position 2, which feature 0 marks
        >>> x[:, :, 0] = torch.tensor([0.0, 0, 5, 0, 0, 0])
        >>> probe = AttentionProbe(heads=1, learning_rate=0.03).train(activations=x, labels=y)
        >>> probe.attention(x).mean((0, 1)).argmax().item()
        2
    """

    def __init__(
        self,
        input_dim: int | None = None,
        num_classes: int | None = None,
        *,
        heads: int = 4,
        target: Target = "classes",
        learning_rate: float = 5e-3,
        weight_decay: float = 0.01,
        batch_size: int = 256,
        epochs: int = 50,
        patience: int | None = 10,
        validation_share: float = 0.15,
        class_weight: ClassWeight | None = None,
        seed: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        self.input_dim = input_dim
        self.num_classes = num_classes
        self.heads = heads
        self.target = target
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.epochs = epochs
        self.patience = patience
        self.validation_share = validation_share
        self.class_weight = class_weight
        self.seed = seed
        self.device = device

    def _network(self, width: int, outputs: int, generator: torch.Generator) -> AttentionPool:
        return AttentionPool(width, outputs, heads=self.heads, generator=generator)

    def attention(self, X: Any, mask: Any = None) -> Float[Tensor, "row head pos"]:
        """Where each head looks: weights that sum to one over the tokens of a sequence, zero at padding.

        Args:
            X: sequences; those of a list are padded on the right to the longest.
            mask: the real positions `[row, pos]`; all if not given.

        Raises:
            ProbeError: before training, and for sequences that cannot be read.
        """
        pool = self._fitted_network()
        assert isinstance(pool, AttentionPool)
        return self._by_token(X, mask, pool.attention, 0.0)


class MaxPoolProbe(SequenceProbe):
    """A probe that fires when any token does; see `MaxPool`, and `NetworkProbe` for the rest.

    Nothing is checked before `train`. It is computed in float32, for float64 data in float64.

    Args:
        input_dim: how many features there are; that of the data if not given.
        num_classes: how many classes there are; those of the data if not given.
        heads: how many scores a token gets.
        token_score: `"linear"`, or `"softplus"` for scores that are never negative.
        window: over how many tokens scores are averaged before the maximum.
        target: `"classes"`, `"labels"` (any number of them at once) or `"regression"`.
        learning_rate: for this and the next four see `TrainingSettings`.
        weight_decay: of AdamW.
        batch_size: sequences of a batch at most.
        epochs: passes over the sequences at most.
        patience: epochs without progress on held-out sequences.
        validation_share: the share of sequences held out for early stopping; with 0 all epochs are done.
        class_weight: `"balanced"`, or a weight for each class.
        seed: of first weights, held-out sequences and batches.
        device: where it is computed; where the data lie if not given.

    Example:
        >>> x = torch.randn(200, 9, 4, generator=torch.Generator().manual_seed(0))
        >>> x[::2, 5, 3] += 8  # a spike in every other sequence
        >>> y = torch.arange(200) % 2
        >>> probe = MaxPoolProbe(learning_rate=0.03).train(activations=x, labels=y)
        >>> probe.evaluate(x, y) > 0.95
        True
    """

    def __init__(
        self,
        input_dim: int | None = None,
        num_classes: int | None = None,
        *,
        heads: int = 4,
        token_score: TokenScore = "linear",
        window: int = 1,
        target: Target = "classes",
        learning_rate: float = 5e-3,
        weight_decay: float = 0.01,
        batch_size: int = 256,
        epochs: int = 50,
        patience: int | None = 10,
        validation_share: float = 0.15,
        class_weight: ClassWeight | None = None,
        seed: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        self.input_dim = input_dim
        self.num_classes = num_classes
        self.heads = heads
        self.token_score = token_score
        self.window = window
        self.target = target
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.epochs = epochs
        self.patience = patience
        self.validation_share = validation_share
        self.class_weight = class_weight
        self.seed = seed
        self.device = device

    def _network(self, width: int, outputs: int, generator: torch.Generator) -> MaxPool:
        return MaxPool(
            width, outputs, heads=self.heads, score=self.token_score, window=self.window, generator=generator
        )

    def token_scores(self, X: Any, mask: Any = None) -> Float[Tensor, "row head pos"]:
        """What each head makes of each token, before any averaging; minus infinity at padding.

        Args:
            X: sequences; those of a list are padded on the right to the longest.
            mask: the real positions `[row, pos]`; all if not given.

        Raises:
            ProbeError: before training, and for sequences that cannot be read.
        """
        pool = self._fitted_network()
        assert isinstance(pool, MaxPool)
        return self._by_token(X, mask, pool.token_scores, -torch.inf)


def _as_given(found: Any, X: Any) -> Any:
    """A tensor for a tensor, unless it holds names."""
    if isinstance(X, Tensor) and isinstance(found, np.ndarray) and found.dtype.kind in "biuf":
        return torch.from_numpy(found).to(X.device)
    return found


__all__ = ["AttentionProbe", "MLPProbe", "MaxPoolProbe", "SequenceProbe"]
