"""What all probes share: parameters as scikit-learn knows them, predictions from margins, and scores."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp_toolkit.activations.access import SiteView
from interp_toolkit.errors import ProbeError
from interp_toolkit.probes.inputs import Target, Targets, read_rows, read_targets
from interp_toolkit.probes.weighting import sample_weights

_BLOCK = 1 << 15
"""Rows that are predicted at once."""


class _OfClasses:
    """A method that some probes lack, such as those that predict numbers."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self.method = method
        self.__doc__ = method.__doc__

    def __get__(self, probe: Estimator | None, kind: type | None = None) -> Any:
        if probe is None:
            return self.method
        if why := probe._lacks(self.method.__name__):
            raise AttributeError(why)
        return types.MethodType(self.method, probe)


class Estimator:
    """Base of probes, with scikit-learn's interface but without needing it.

    What comes as a tensor is answered with a tensor on its device, all else with an array.
    """

    input_dim: int | None
    num_classes: int | None
    target: Target

    # --- parameters ------------------------------------------------------------------------------------------

    @classmethod
    def _parameters(cls) -> list[str]:
        return [name for name in inspect.signature(cls).parameters if name != "self"]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The parameters, as they were given.

        Args:
            deep: for scikit-learn; there are no estimators inside.
        """
        del deep
        return {name: getattr(self, name) for name in self._parameters()}

    def set_params(self, **parameters: Any) -> Estimator:
        """Change parameters.

        Raises:
            ProbeError: for a name that is none.
        """
        known = self._parameters()
        for name, value in parameters.items():
            if name not in known:
                raise ProbeError(f"{type(self).__name__} has no parameter {name!r}, but {', '.join(known)}")
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        """The parameters that are not the default ones."""
        defaults = {name: p.default for name, p in inspect.signature(type(self)).parameters.items()}
        changed = {k: v for k, v in self.get_params().items() if not _equal(v, defaults[k])}
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in changed.items())})"

    def __sklearn_is_fitted__(self) -> bool:
        """Whether it is trained."""
        return "n_features_in_" in vars(self)

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn wants to know of an estimator."""
        from sklearn.utils import ClassifierTags, InputTags, RegressorTags, Tags, TargetTags

        numbers = self.target == "regression"
        return Tags(
            estimator_type="regressor" if numbers else "classifier",
            target_tags=TargetTags(required=True, multi_output=numbers or self.target == "labels"),
            classifier_tags=None if numbers else ClassifierTags(multi_label=self.target == "labels"),
            regressor_tags=RegressorTags() if numbers else None,
            input_tags=InputTags(),
        )

    def _lacks(self, method: str) -> str | None:
        """Why there is no such method; None if there is."""
        if self.target == "regression":
            return f"a {type(self).__name__} that predicts numbers has no {method}"
        return None

    # --- training --------------------------------------------------------------------------------------------

    def _check_training(self, X: Any, y: Any) -> tuple[Tensor | SiteView, Targets]:
        """Rows and targets that can be trained on.

        Raises:
            ProbeError: when they do not fit each other.
        """
        x = read_rows(X, width=self.input_dim, who=type(self).__name__)
        return x, self._check_targets(y, len(x))

    def _check_targets(self, y: Any, rows: int) -> Targets:
        """Targets that can be learned.

        Raises:
            ProbeError: when they are not of as many rows, or have one class only.
        """
        targets = read_targets(y, self.target, rows=rows, number=self.num_classes)
        number = len(targets.classes)
        if targets.kind == "classes" and number < 2:
            raise ProbeError(
                f"a probe tells classes apart, but the labels have one class only: all {rows} rows are "
                f"{targets.classes[0]!r}"
            )
        if targets.kind != "regression" and self.num_classes is not None and number < self.num_classes:
            raise ProbeError(
                f"num_classes is {self.num_classes}, but {rows} rows have only {number} classes: {targets.classes}"
            )
        if targets.kind == "labels":
            constant = [name for name, n in zip(targets.classes, targets.tasks.sum(0), strict=True) if n in (0, rows)]
            if constant:
                raise ProbeError(f"labels {constant} have one class only: every row has them, or none")
        if rows < 2:
            raise ProbeError("a probe needs more than n_samples=1, which is 1 sample")
        return targets

    def _check_fitted(self, X: Any) -> Tensor | SiteView:
        """Rows that can be predicted.

        Raises:
            ProbeError: before training, and for rows of another width.
        """
        if not self.__sklearn_is_fitted__():
            raise not_fitted(type(self).__name__)
        return read_rows(X, width=vars(self)["n_features_in_"], who=type(self).__name__)

    # --- predictions -----------------------------------------------------------------------------------------

    def _margins(self, x: Float[Tensor, "row d"]) -> Float[Tensor, "row output"]:
        raise NotImplementedError

    def _probabilities(self, margins: Float[Tensor, "row output"]) -> Float[Tensor, "row class"]:
        """Probabilities from margins."""
        if self.target == "labels":
            return margins.sigmoid()
        if margins.shape[1] == 1:
            p = margins.sigmoid()
            return torch.cat([1 - p, p], 1)
        return margins.softmax(-1)

    def _all_margins(self, X: Any) -> Float[Tensor, "row output"]:
        x = self._check_fitted(X)
        blocks = [self._margins(x[n : n + _BLOCK].flatten(1)) for n in range(0, len(x), _BLOCK)]
        return torch.cat(blocks)

    @_OfClasses
    def decision_function(self, X: Any) -> Any:
        """Margins: positive means the second of two classes; one column for each of more classes or labels.

        Args:
            X: activations `[row, d]`.

        Returns:
            `[row]` for two classes, else `[row, output]`.
        """
        margins = self._all_margins(X)
        single = margins.shape[1] == 1 and self.target == "classes"
        return _like(margins[:, 0] if single else margins, X)

    @_OfClasses
    def predict_proba(self, X: Any) -> Any:
        """Probabilities `[row, class]`; of several labels one column each, which do not sum to one."""
        return _like(self._probabilities(self._all_margins(X)), X)

    def predict(self, X: Any) -> Any:
        """The class of each row, a table of zeros and ones for labels, or numbers.

        Classes that are names come as an array, also for a tensor.
        """
        margins = self._all_margins(X)
        if self.target == "regression":
            return _like(margins[:, 0] if margins.shape[1] == 1 and vars(self)["single_"] else margins, X)
        if self.target == "labels":
            return _like((margins > 0).long(), X)
        index = (margins[:, 0] > 0).long() if margins.shape[1] == 1 else margins.argmax(-1)
        classes = np.asarray(vars(self)["classes_"])
        if isinstance(X, Tensor) and classes.dtype.kind in "biu":
            return torch.as_tensor(classes)[index.cpu()].to(X.device)
        return classes[index.cpu().numpy()]

    def evaluate(self, X: Any, y: Any) -> float:
        """The accuracy on other data: of labels over all of them, for regression R².

        Args:
            X: activations `[row, d]`.
            y: their labels.

        Raises:
            ProbeError: when they do not fit, or hold a class that was not trained.
        """
        return self.score(X, y)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """The same, as scikit-learn calls it."""
        found = self.predict(X)
        known = None if self.target == "regression" else vars(self)["classes_"].tolist()
        targets = read_targets(y, self.target, rows=len(found), classes=known)
        weights = sample_weights(len(found), sample_weight)
        if targets.index is not None:
            hits = torch.as_tensor(read_targets(found, classes=known).index == targets.index)
            return float(weights @ hits.double() / weights.sum())
        assert targets.table is not None
        given = torch.as_tensor(found).cpu().double().reshape(targets.table.shape)
        wanted = targets.table.double()
        if self.target == "labels":
            return float(weights @ (given == wanted).double().mean(-1) / weights.sum())
        spread = weights @ (wanted - weights @ wanted / weights.sum()).square()
        missed = weights @ (wanted - given).square()
        constant = torch.where(missed > 0, 0.0, 1.0).double()  # as scikit-learn has it where nothing varies
        return float(torch.where(spread > 0, 1 - missed / spread, constant).mean())


def not_fitted(name: str) -> ProbeError:
    """The error of a probe that is asked before it is trained; scikit-learn's own where that is installed."""
    text = f"this {name} is not fitted yet: call train(activations=, labels=) first"
    try:
        from sklearn.exceptions import NotFittedError
    except ImportError:
        return ProbeError(text)
    kind = type("NotTrainedError", (ProbeError, NotFittedError), {})
    return kind(text)  # type: ignore[no-any-return]


def _like(x: Tensor, given: Any) -> Any:
    """A tensor for a tensor, else an array."""
    if isinstance(given, Tensor):
        return x.to(given.device)
    x = x.detach()
    return (x.float() if x.dtype in (torch.bfloat16, torch.float16) else x).cpu().numpy()


def _equal(a: Any, b: Any) -> bool:
    return a is b or (type(a) is type(b) and isinstance(a, str | int | float | bool) and a == b)


__all__ = ["Estimator", "not_fitted"]
