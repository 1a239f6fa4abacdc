"""Linear probes: what a direction in activations says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from interp_toolkit.activations.access import SiteView
from interp_toolkit.errors import FileFormatError, ProbeError
from interp_toolkit.model.machine import free_memory
from interp_toolkit.probes.estimator import Estimator
from interp_toolkit.probes.features import Features
from interp_toolkit.probes.inputs import Target, Targets, is_positive
from interp_toolkit.probes.kinds import Kind, LinearFit, fit_linear, standardizes
from interp_toolkit.probes.saving import load_probe, save_probe
from interp_toolkit.probes.weighting import digest_of, pair_rows, row_weights

_WIDE = 50_000_000
"""So many numbers are computed in float64, more in float32."""


class LinearProbe(Estimator):
    """A linear probe on activations: scikit-learn's interface, its optimum, and any kind of linear direction.

    Nothing is checked before `train`. Trained attributes are arrays: `coef_` `[output, d]` and `intercept_` `[output]`
    for activations as they are, `classes_`, `n_features_in_`, `n_iter_`; one output for two classes.

    Args:
        input_dim: how many features there are; that of the data if not given.
        num_classes: how many classes there are; those of the data if not given.
        kind: `"logistic"` (L2 logistic regression), `"ridge"`, `"mean_difference"`, `"whitened_mean_difference"`,
            `"lda"` or `"contrast"` (contrast-consistent search, without labels but for the sign).
        target: `"classes"`, `"labels"` (any number of them at once) or `"regression"`.
        C: how little is penalised, as in scikit-learn; for ridge `alpha = 1 / C`.
        standardize: whether features get mean 0 and standard deviation 1 on the training rows; by default for
            logistic and ridge.
        fit_intercept: whether there is an intercept.
        class_weight: `"balanced"`, or a weight for each class.
        shrinkage: of the covariance, 0 to 1, for kinds that whiten; by Ledoit and Wolf if not given.
        tolerance: of the loss, as a share of it, for logistic.
        max_steps: Newton steps at most.
        dtype: in which it is computed; float64 unless the data are large.
        device: where; that of the data if not given.
        memory: bytes of features that may be held while training; what takes more is read in every pass. A quarter of
            what is free if not given.
        seed: for contrast-consistent search.

    Example:
        >>> x = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
        >>> y = (x[:, 3] > 0).long()
        >>> probe = LinearProbe(input_dim=16, num_classes=2)
        >>> _ = probe.train(activations=x, labels=y, epochs=50)
        >>> probe.evaluate(x, y) > 0.95, int(probe.direction.argmax())
        (True, 3)
    """

    def __init__(
        self,
        input_dim: int | None = None,
        num_classes: int | None = None,
        *,
        kind: Kind = "logistic",
        target: Target = "classes",
        C: float = 1.0,
        standardize: bool | None = None,
        fit_intercept: bool = True,
        class_weight: Literal["balanced"] | Mapping[Any, float] | None = None,
        shrinkage: float | None = None,
        tolerance: float | None = None,
        max_steps: int = 100,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        memory: float | None = None,
        seed: int = 0,
    ) -> None:
        self.input_dim = input_dim
        self.num_classes = num_classes
        self.kind = kind
        self.target = target
        self.C = C
        self.standardize = standardize
        self.fit_intercept = fit_intercept
        self.class_weight = class_weight
        self.shrinkage = shrinkage
        self.tolerance = tolerance
        self.max_steps = max_steps
        self.dtype = dtype
        self.device = device
        self.memory = memory
        self.seed = seed

    # --- training --------------------------------------------------------------------------------------------

    def train(
        self,
        activations: Any,
        labels: Any,
        *,
        epochs: int | None = None,
        sample_weight: Any = None,
        pairs: Any = None,
    ) -> LinearProbe:
        """Train the probe.

        Args:
            activations: `[row, d]` in any precision, on any device; or a site of an `ActivationStore`, which is read
                block by block where it does not fit in memory.
            labels: one class a row; for other targets see `read_targets`.
            epochs: Newton steps at most, in place of `max_steps`; each goes through the rows a few times.
            sample_weight: how much each row counts.
            pairs: for contrast-consistent search the name of each row's pair.

        Returns:
            The probe itself.

        Raises:
            ProbeError: for data from which nothing can be learned; the message names rows.
        """
        x, targets = self._check_training(activations, labels)
        self._check_parameters(self.max_steps if epochs is None else epochs)
        weights = row_weights(targets, self.class_weight, sample_weight)
        features = self._features(x, weights)
        fit = fit_linear(
            features,
            targets,
            self.kind,
            penalties=torch.tensor([float(self.C)], dtype=torch.float64),
            weights=weights,
            intercept=self.fit_intercept,
            shrinkage=self.shrinkage,
            pairs=None if pairs is None else pair_rows(pairs, len(x), self.seed),
            max_steps=self.max_steps if epochs is None else epochs,
            tolerance=self.tolerance,
            seed=self.seed,
        )
        self._learned(fit, targets, features, weights)
        self.digest_ = digest_of(x, targets)
        return self

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> LinearProbe:
        """Train the probe, as scikit-learn calls it."""
        return self.train(X, y, sample_weight=sample_weight)

    def _check_parameters(self, steps: int) -> None:
        """Refuse parameters with which nothing can be computed."""
        if not is_positive(self.C):
            raise ProbeError(f"C is a positive number, not {self.C!r}")
        if steps < 1:
            raise ProbeError(f"a probe is trained for at least one step, not {steps}")
        if self.shrinkage is not None and not 0 <= self.shrinkage <= 1:
            raise ProbeError(f"shrinkage is from 0 to 1, or None for that of Ledoit and Wolf, not {self.shrinkage!r}")
        if self.dtype not in (None, torch.float32, torch.float64):
            raise ProbeError(f"a probe is computed in float32 or float64, not {self.dtype}; its input may be any")

    def _features(self, x: Tensor | SiteView, weights: Tensor) -> Features:
        device = torch.device(self.device or (x.device if isinstance(x, Tensor) else "cpu"))
        rows, width = len(x), int(np.prod(x.shape[1:]))
        small = rows * width <= _WIDE and device.type != "mps"
        return Features.prepared(
            [x],
            None,
            (1, rows, width),
            dtype=self.dtype or (torch.float64 if small else torch.float32),
            device=device,
            standardize=standardizes(self.kind) if self.standardize is None else self.standardize,
            center=self.fit_intercept,
            weights=weights,
            memory=free_memory(device) / 4 if self.memory is None else self.memory,
        )

    def _learned(self, fit: LinearFit, targets: Targets, features: Features, weights: Tensor) -> None:
        weight, bias = fit.weights[0, 0].double(), fit.bias[0, 0].double()
        self.coef_ = weight.cpu().numpy()
        self.intercept_ = bias.cpu().numpy()
        self.n_features_in_ = features.shape[2]
        self.n_iter_ = fit.steps
        self.pattern_ = _pattern(fit, features, weights)
        self.single_ = targets.table is None or targets.table.shape[1] == 1
        if targets.kind != "regression":
            self.classes_ = np.asarray(targets.classes)

    def given(
        self, weights: Float[Tensor, "output d"], bias: Float[Tensor, " output"], classes: Sequence[Any]
    ) -> LinearProbe:
        """Take weights that were found elsewhere, such as in a sweep; what is not known then is the `pattern`.

        Args:
            weights: for activations as they are.
            bias: the intercepts.
            classes: in the order of outputs; two where there is one output, none for numbers.
        """
        self.coef_, self.intercept_ = weights.double().cpu().numpy(), bias.double().cpu().numpy()
        self.n_features_in_, self.n_iter_ = weights.shape[1], 0
        self.pattern_ = np.full_like(self.coef_, np.nan)
        self.single_, self.digest_ = len(weights) == 1, ""
        if self.target != "regression":
            self.classes_ = np.asarray(classes)
        return self

    def _lacks(self, method: str) -> str | None:
        """Least squares and plain means have margins that are no logits, so that a sigmoid would invent numbers."""
        if method == "predict_proba" and self.kind in ("ridge", "mean_difference"):
            return (
                f"a LinearProbe of kind {self.kind!r} has no probabilities, as its margins have no scale: use "
                "decision_function, or apply_temperature to margins with fit_temperature on rows held out"
            )
        return super()._lacks(method)

    # --- what it says ----------------------------------------------------------------------------------------

    def _margins(self, x: Float[Tensor, "row d"]) -> Float[Tensor, "row output"]:
        wide = x.dtype if x.dtype in (torch.float64, torch.float32) else torch.float32
        if x.device.type != "mps":
            wide = torch.float64
        weight, bias = (torch.from_numpy(a).to(device=x.device, dtype=wide) for a in (self.coef_, self.intercept_))
        return x.to(wide) @ weight.mT + bias

    @property
    def direction(self) -> Float[Tensor, "*class d"]:
        """The unit vector along which the margin of the second class grows fastest; of more outputs one each.

        It is for activations as they are: what standardised them is undone. The probe reads along it. What the
        concept adds to activations is rather `pattern`.

        Raises:
            ProbeError: before training, and when the direction is zero.
        """
        if not self.__sklearn_is_fitted__():
            raise ProbeError("this LinearProbe is not fitted yet, so that it has no direction: call train first")
        return _unit(torch.from_numpy(self.coef_))

    @property
    def pattern(self) -> Float[Tensor, "*class d"]:
        """The unit vector that activations move along when the margin grows (Haufe et al. 2014, equation 6).

        A direction also cancels what disturbs the reading; the pattern holds only what goes with the concept.
        """
        if not self.__sklearn_is_fitted__():
            raise ProbeError("this LinearProbe is not fitted yet, so that it has no pattern: call train first")
        if np.isnan(self.pattern_).any():
            raise ProbeError("this probe was made from given weights, so that its pattern is not known: train one")
        return _unit(torch.from_numpy(self.pattern_))

    # --- on disk ---------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write the probe as safetensors, with its parameters, classes and the digest of its data.

        Raises:
            ProbeError: before training.
        """
        if not self.__sklearn_is_fitted__():
            raise ProbeError("this LinearProbe is not fitted yet: there is nothing to save")
        arrays = {name: torch.from_numpy(vars(self)[f"{name}_"]) for name in ("coef", "intercept", "pattern")}
        return save_probe(self, path, arrays, {"n_iter": self.n_iter_, "single": self.single_, "digest": self.digest_})

    @classmethod
    def load(cls, path: str | Path) -> LinearProbe:
        """Read what `save` wrote.

        Raises:
            FileFormatError: when it is something else.
        """
        probe, arrays, about = load_probe(cls, path, ("coef", "intercept", "pattern"))
        coef, intercept, pattern = (arrays[name].double().numpy() for name in ("coef", "intercept", "pattern"))
        classes = about["classes"]
        if coef.ndim != 2 or intercept.shape != coef.shape[:1] or pattern.shape != coef.shape:
            raise FileFormatError(f"{path} is damaged: shapes {coef.shape}, {intercept.shape} and {pattern.shape}")
        needed = {"classes": max(2, len(coef)), "labels": len(coef), "regression": 0}.get(probe.target)
        if not isinstance(classes, list | None) or len(classes or ()) != needed:
            raise FileFormatError(f"{path} is damaged: {len(coef)} outputs for the classes {classes!r}")
        steps, single, digest = (about.get(name) for name in ("n_iter", "single", "digest"))
        if not isinstance(steps, int) or not isinstance(single, bool) or not isinstance(digest, str):
            raise FileFormatError(f"{path} is damaged: it does not say how the probe was made")
        probe.coef_, probe.intercept_, probe.pattern_ = coef, intercept, pattern
        probe.n_features_in_ = coef.shape[1]
        probe.n_iter_, probe.single_, probe.digest_ = steps, single, digest
        if classes is not None:
            probe.classes_ = np.asarray(classes)
        return probe


def _unit(vectors: Tensor) -> Float[Tensor, "*class d"]:
    length = vectors.norm(dim=-1, keepdim=True)
    if bool((length == 0).any()):
        raise ProbeError("the probe's direction is zero: no feature says anything about the labels")
    found: Tensor = (vectors / length).float()
    return found.squeeze(0) if len(found) == 1 else found


def _pattern(fit: LinearFit, features: Features, weights: Tensor) -> NDArray[np.float64]:
    """Covariance of activations and margins, over that of the margins."""
    share = (weights / weights.sum()).to(device=features.device, dtype=features.dtype)
    scale = 1.0 if features.scaler is None else features.scaler.scale.to(features.dtype)
    inner = (fit.weights[:, 0].to(features.dtype) * scale)[:, None]
    point = torch.cat([inner, torch.zeros_like(inner[..., :1])], -1)
    margins = features.push(point)
    centered = margins - torch.einsum("r,lrpo->lpo", share, margins)[:, None]
    moved = features.pull(centered * share[None, :, None, None], False)[0, 0, :, :-1] * scale
    square = torch.einsum("r,rp,rq->pq", share, centered[0, :, 0], centered[0, :, 0])
    found: NDArray[np.float64] = (torch.linalg.pinv(square, hermitian=True) @ moved).double().cpu().numpy()
    return found


__all__ = ["LinearProbe"]
