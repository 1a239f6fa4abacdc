"""Linear probes against scikit-learn, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.covariance import ledoit_wolf
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier
from sklearn.metrics import r2_score
from sklearn.multioutput import MultiOutputClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator
from torch import Tensor

import tiny
from interp_toolkit.activations import ActivationStore, extract
from interp_toolkit.errors import FileFormatError, ProbeError
from interp_toolkit.probes.contrast import contrast_consistent
from interp_toolkit.probes.linear import LinearProbe


def data(rows: int = 200, width: int = 12, classes: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features of very different means and scales, and classes that some of them decide."""
    g = torch.Generator().manual_seed(seed)
    scale = torch.logspace(-1, 2, width, dtype=torch.float64)
    plain = torch.randn(rows, width, generator=g, dtype=torch.float64)
    w = torch.randn(width, classes, generator=g, dtype=torch.float64)
    y = (plain @ w + torch.randn(rows, classes, generator=g, dtype=torch.float64)).argmax(1)
    return plain * scale + 10 * scale, y


def close(a: Any, b: Any, tolerance: float = 1e-3) -> None:
    np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max())


# --- the same as scikit-learn ------------------------------------------------------------------------------------


@pytest.mark.parametrize("C", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("classes", [2, 3])
def test_standardised_logistic_regression_is_scikit_learns(classes: int, C: float) -> None:
    x, y = data(classes=classes)
    probe = LinearProbe(C=C).train(x, y)
    peer = make_pipeline(StandardScaler(), LogisticRegression(C=C, tol=1e-10, max_iter=10_000)).fit(x, y)
    close(probe.predict_proba(x).numpy(), peer.predict_proba(x), 1e-4)
    close(probe.decision_function(x).numpy(), peer.decision_function(x))
    close(probe.coef_ * x.std(0, correction=0).numpy(), peer[-1].coef_)
    assert probe.score(x, y) == pytest.approx(peer.score(x, y))


def test_class_and_row_weights_are_scikit_learns() -> None:
    x, y = data()
    y[:150] = 0
    rows = torch.rand(len(y), generator=torch.Generator().manual_seed(1)).double() + 0.5
    for weight in ("balanced", {0: 1.0, 1: 3.0}):
        probe = LinearProbe(standardize=False, class_weight=weight).fit(x, y, sample_weight=rows)
        peer = LogisticRegression(class_weight=weight, tol=1e-12, max_iter=100_000, solver="newton-cholesky")
        close(probe.coef_, peer.fit(x, y, sample_weight=rows).coef_)


def test_labels_are_each_a_regression_of_its_own() -> None:
    x, _ = data()
    table = torch.stack([x[:, 0] > x[:, 0].median(), x[:, 5] > x[:, 5].quantile(0.7)], 1).long()
    probe = LinearProbe(target="labels", standardize=False).train(x, table)
    peer = MultiOutputClassifier(LogisticRegression(tol=1e-12, max_iter=100_000, solver="newton-cholesky")).fit(
        x, table
    )
    close(probe.coef_, np.concatenate([e.coef_ for e in peer.estimators_]))
    assert probe.predict(x).shape == (200, 2)
    named = LinearProbe(target="labels").train(x, [{n for n, on in zip("ab", row, strict=True) if on} for row in table])
    assert named.classes_.tolist() == ["a", "b"]


@pytest.mark.parametrize("width", [12, 300])
def test_ridge_is_scikit_learns(width: int) -> None:
    x, y = data(width=width)
    numbers = x[:, :2] * 2 + 1
    probe = LinearProbe(kind="ridge", target="regression", C=0.1, standardize=False).train(x, numbers)
    peer = Ridge(alpha=10.0).fit(x, numbers)
    close(probe.coef_, peer.coef_, 1e-6)
    close(probe.predict(x).numpy(), peer.predict(x), 1e-6)
    assert probe.score(x, numbers) == pytest.approx(peer.score(x, numbers))
    classifier = LinearProbe(kind="ridge", C=0.1, standardize=False).train(x, y)
    close(classifier.decision_function(x).numpy(), RidgeClassifier(alpha=10.0).fit(x, y).decision_function(x), 1e-6)


@pytest.mark.parametrize("classes", [2, 3])
def test_discriminant_analysis_is_scikit_learns(classes: int) -> None:
    x, y = data(classes=classes)
    for shrinkage in (0.0, 0.3):
        probe = LinearProbe(kind="lda", shrinkage=shrinkage).train(x, y)
        peer = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage or None).fit(x, y)
        margins, wanted = probe.decision_function(x).numpy(), peer.decision_function(x)
        if classes > 2:  # what all classes share says nothing
            margins, wanted = (m - m.mean(1, keepdims=True) for m in (margins, wanted))
        close(margins, wanted, 1e-6)
        close(probe.predict_proba(x).numpy(), peer.predict_proba(x), 1e-6)


@pytest.mark.parametrize("classes", [2, 3])
def test_a_covariance_without_an_inverse_is_scikit_learns_too(classes: int) -> None:
    x, _ = data(rows=20, width=40)
    x[:, 3] = x[:, 4]
    y = torch.arange(20) % classes
    margins = LinearProbe(kind="lda", shrinkage=0.0).train(x, y).decision_function(x).numpy()
    wanted = LinearDiscriminantAnalysis(solver="lsqr").fit(x, y).decision_function(x)
    if classes > 2:
        margins, wanted = (m - m.mean(1, keepdims=True) for m in (margins, wanted))
    close(margins, wanted, 1e-6)


@pytest.mark.parametrize("width", [12, 120])
@pytest.mark.parametrize("intercept", [True, False])
def test_ridge_in_float32_keeps_its_digits(width: int, intercept: bool) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(80, width, generator=g) @ torch.diag(torch.logspace(0, -3, width)) + 3
    y = torch.randn(80, generator=g)
    probe = LinearProbe(
        kind="ridge", target="regression", C=1e4, standardize=False, fit_intercept=intercept, dtype=torch.float32
    ).train(x, y)
    peer = Ridge(alpha=1e-4, solver="svd", fit_intercept=intercept).fit(x.double(), y.double())

    def objective(weights: Any, bias: Any) -> float:
        return float(((y.numpy() - x.double().numpy() @ weights - bias) ** 2).sum() + 1e-4 * (weights**2).sum())

    assert objective(probe.coef_[0], probe.intercept_[0]) < (1 + 1e-4) * objective(peer.coef_, peer.intercept_)


def test_the_covariance_is_shrunk_as_ledoit_and_wolf_say() -> None:
    x, y = data(rows=30, width=20)
    means = torch.stack([x[y == k].mean(0) for k in (0, 1)])
    covariance, _ = ledoit_wolf((x - means[y]).numpy(), assume_centered=True)
    wanted = np.linalg.solve(covariance, (means[1] - means[0]).numpy())
    close(LinearProbe(kind="whitened_mean_difference").train(x, y).coef_[0], wanted, 1e-6)


def test_the_difference_of_means_has_its_threshold_in_the_middle() -> None:
    x, y = data()
    probe = LinearProbe(kind="mean_difference").train(x, y)
    means = torch.stack([x[y == k].mean(0) for k in (0, 1)])
    close(probe.coef_[0], (means[1] - means[0]).numpy(), 1e-9)
    assert float(probe.decision_function(means.mean(0, keepdim=True))) == pytest.approx(0, abs=1e-6)
    three = data(classes=3)
    nearest = torch.cdist(three[0], torch.stack([three[0][three[1] == k].mean(0) for k in range(3)])).argmin(1)
    assert (LinearProbe(kind="mean_difference").train(*three).predict(three[0]) == nearest).all()


def test_contrast_consistent_search_finds_the_truth_without_labels() -> None:
    g = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 2, (80,), generator=g)
    direction = torch.randn(16, generator=g)
    noise = torch.randn(160, 16, generator=g) * 0.3
    signs = torch.cat([2 * truth - 1, 1 - 2 * truth])
    x = noise + signs[:, None] * direction
    y = (signs > 0).long()
    probe = LinearProbe(kind="contrast").train(x, y, pairs=[*range(80), *range(80)])
    assert probe.evaluate(x, y) > 0.98
    with pytest.raises(ProbeError, match="needs pairs"):
        LinearProbe(kind="contrast").train(x, y)
    with pytest.raises(ProbeError, match=r"pair 0 has rows \[0, 1\], but a pair has two|pair 'a' has rows"):
        LinearProbe(kind="contrast").train(x[:3], y[:3] * 0 + torch.tensor([0, 1, 0]), pairs=["a", "b", "b"])
    x[:, 2] = 5.0
    state = torch.get_rng_state()
    weights, bias, losses = contrast_consistent(x[None, :80], x[None, 80:])
    assert float(losses) < 0.05
    assert float(weights[0, 2]) == 0  # what does not vary has no part
    again = contrast_consistent(x[None, :80], x[None, 80:])
    assert torch.equal(weights, again[0])
    assert torch.equal(bias, again[1])
    assert torch.equal(state, torch.get_rng_state())


# --- what it says ------------------------------------------------------------------------------------------------


def test_the_direction_is_for_activations_as_they_are() -> None:
    x, y = data()
    probe = LinearProbe().train(x, y)
    point = x[:1].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(point @ torch.from_numpy(probe.coef_[0]), point, torch.ones(1))
    torch.testing.assert_close(probe.direction.double(), (gradient[0] / gradient[0].norm()), rtol=1e-5, atol=1e-6)
    moved = x + 1e3 * probe.direction.double()
    assert (probe.decision_function(moved) > probe.decision_function(x)).all()


def test_the_pattern_is_what_goes_with_the_concept_and_not_what_cancels_noise() -> None:
    # The concept is in feature 0, with noise that feature 1 has too: reading takes the difference, the pattern not.
    g = torch.Generator().manual_seed(0)
    noise = torch.randn(4000, generator=g) * 3
    y = torch.randint(0, 2, (4000,), generator=g)
    x = torch.stack([2.0 * y + noise, noise + 0.1 * torch.randn(4000, generator=g)], 1)
    probe = LinearProbe(C=100.0).train(x, y)
    assert float(probe.direction[1]) < -0.5
    pattern = probe.pattern / probe.pattern[0]
    assert abs(float(pattern[1])) < 0.1


@pytest.mark.parametrize("classes", [2, 3])
def test_the_pattern_is_the_covariance_of_activations_and_margins_over_that_of_margins(classes: int) -> None:
    x, y = data(classes=classes)
    rows = torch.rand(len(y), generator=torch.Generator().manual_seed(1)).double()
    probe = LinearProbe().fit(x, y, sample_weight=rows)
    covariance = np.cov(x.numpy().T, aweights=rows.numpy(), ddof=0)
    margins = np.linalg.pinv(probe.coef_ @ covariance @ probe.coef_.T, hermitian=True)
    wanted = (covariance @ probe.coef_.T @ margins).T
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    close(probe.pattern.numpy().reshape(wanted.shape), wanted, 1e-6)


def test_margins_that_are_no_logits_are_not_turned_into_probabilities() -> None:
    x, y = data()
    for kind in ("ridge", "mean_difference"):
        probe = LinearProbe(kind=kind).train(x, y)
        with pytest.raises(AttributeError, match=r"has no probabilities.*fit_temperature"):
            probe.predict_proba(x)
        assert probe.decision_function(x).shape == (200,)
    for kind in ("logistic", "lda", "whitened_mean_difference"):
        assert LinearProbe(kind=kind).train(x, y).predict_proba(x).shape == (200, 2)


def test_rows_that_want_gradients_are_trained_on_without() -> None:
    x, y = data()
    x.requires_grad_()
    probe = LinearProbe().train(x, y)
    assert probe.decision_function(x).requires_grad  # what the probe reads can be attributed


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_is_as_good_as_its_digits(dtype: torch.dtype) -> None:
    x, y = data()
    given = x.to(dtype)
    probe = LinearProbe().train(given, y)
    exact = LinearProbe().train(given.double(), y)
    close(probe.coef_, exact.coef_, 1e-6)
    assert probe.decision_function(given).device == given.device


def test_tensors_are_answered_with_tensors_and_arrays_with_arrays() -> None:
    x, y = data()
    probe = LinearProbe(12, 2).train(activations=x, labels=y, epochs=50)
    assert isinstance(probe.predict(x), Tensor)
    assert isinstance(probe.predict_proba(x.numpy()), np.ndarray)
    names = LinearProbe().train(x, ["yes" if label else "no" for label in y])
    assert set(names.predict(x)) == {"yes", "no"}
    assert names.evaluate(x, ["yes" if label else "no" for label in y]) > 0.8


def test_a_store_gives_what_memory_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model_of("llama")
    documents = [{"input_ids": [n % 40 + 1, n % 7 + 1, n % 11 + 1], "label": n % 2} for n in range(60)]
    extract(model, documents, sites="resid_post.0", path=tmp_path / "store", shard_tokens=48)
    store = ActivationStore.open(tmp_path / "store")
    labels = store.labels(slice(0, store.rows))
    memory = LinearProbe().train(store["resid_post.0"][:], labels)
    held = LinearProbe().train(store["resid_post.0"], labels)
    monkeypatch.setattr("interp_toolkit.probes.features._BLOCK", 4 * 64 * 32)
    streamed = LinearProbe(memory=0.0).train(store["resid_post.0"], labels)
    close(held.coef_, memory.coef_, 1e-9)
    close(streamed.coef_, memory.coef_, 1e-6)
    assert streamed.evaluate(store["resid_post.0"], labels) == memory.evaluate(store["resid_post.0"], labels)


# --- interface ---------------------------------------------------------------------------------------------------

NOT_OURS = {
    "check_dtype_object": "a ProbeError is a ValueError, also for objects among numbers",
    "check_do_not_raise_errors_in_init_or_set_params": "in tests the types of parameters are checked when they are set",
    "check_supervised_y_2d": "one column of labels is taken without a warning of scikit-learn's own class",
}


@pytest.mark.filterwarnings("ignore:Estimator LinearProbe does not inherit")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@pytest.mark.parametrize(
    "probe",
    [
        LinearProbe(),
        pytest.param(LinearProbe(kind="ridge"), marks=pytest.mark.slow),
        pytest.param(LinearProbe(kind="lda"), marks=pytest.mark.slow),
        pytest.param(LinearProbe(kind="mean_difference"), marks=pytest.mark.slow),
        LinearProbe(kind="ridge", target="regression"),
    ],
    ids=repr,
)
def test_it_is_an_estimator_as_scikit_learn_wants_them(probe: LinearProbe) -> None:
    without = dict(NOT_OURS)
    if probe.kind == "mean_difference":
        without["check_class_weight_classifiers"] = "how much a class counts does not move its mean"
    found = check_estimator(probe, on_skip=None, on_fail=None, expected_failed_checks=without)
    failed = [(check["check_name"], repr(check["exception"])[:300]) for check in found if check["status"] == "failed"]
    assert failed == []
    assert sum(check["status"] == "passed" for check in found) > 40


def test_a_probe_comes_back_from_disk_as_it_was(tmp_path: Path) -> None:
    x, y = data(classes=3)
    names = [["a", "b", "c"][n] for n in y]
    probe = LinearProbe(12, 3, C=0.5, class_weight={"a": 2.0}, dtype=torch.float64).train(x, names)
    again = LinearProbe.load(probe.save(tmp_path / "probe.safetensors"))
    assert repr(again) == repr(probe)
    assert again.get_params() == probe.get_params()
    assert again.digest_ == probe.digest_
    np.testing.assert_array_equal(again.predict_proba(x.numpy()), probe.predict_proba(x.numpy()))
    assert (again.predict(x) == probe.predict(x)).all()
    torch.testing.assert_close(again.pattern, probe.pattern)
    for damaged in (b"", b"\x00" * 64, (tmp_path / "probe.safetensors").read_bytes()[:100]):
        (tmp_path / "damaged").write_bytes(damaged)
        with pytest.raises(FileFormatError):
            LinearProbe.load(tmp_path / "damaged")
    with pytest.raises(ProbeError, match="nothing to save"):
        LinearProbe().save(tmp_path / "none")


@pytest.mark.parametrize(
    "parameters",
    [
        {"C": np.float32(0.5), "class_weight": {np.int64(0): np.float64(2.0)}},
        {"kind": "lda", "shrinkage": 0.25, "device": torch.device("cpu")},
        {"kind": "ridge", "standardize": False, "fit_intercept": False, "memory": 1e9, "dtype": torch.float32},
    ],
)
def test_every_parameter_comes_back(parameters: dict[str, Any], tmp_path: Path) -> None:
    x, y = data()
    probe = LinearProbe().set_params(**parameters).train(x, y)
    again = LinearProbe.load(probe.save(tmp_path / "probe"))
    assert again.get_params() == probe.get_params()
    np.testing.assert_array_equal(again.decision_function(x.numpy()), probe.decision_function(x.numpy()))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("parameters.dtype", {"dtype": "load"}),
        ("parameters.device", {"device": "nowhere"}),
        ("parameters.strange", 1),
        ("parameters.target", "regression"),
        ("parameters", [1, 2]),
        ("classes", None),
        ("classes", {"a": 1}),
        ("classes", ["a", "b", "c"]),
        ("n_iter", "many"),
        ("single", None),
        ("digest", 5),
        ("kind", "MLPProbe"),
    ],
)
def test_a_file_that_says_something_else_is_refused(path: str, value: Any, tmp_path: Path) -> None:
    x, y = data()
    with safe_open(str(LinearProbe().train(x, y).save(tmp_path / "good")), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in ("coef", "intercept", "pattern")}
        metadata = file.metadata()
    about = json.loads(metadata["about"])
    place = about
    *before, last = path.split(".")
    for name in before:
        place = place[name]
    place[last] = value
    save_file(tensors, tmp_path / "bad", metadata={**metadata, "about": json.dumps(about)})
    with pytest.raises(FileFormatError):
        LinearProbe.load(tmp_path / "bad")
    save_file({**tensors, "coef": torch.ones(3)}, tmp_path / "bad", metadata=metadata)
    with pytest.raises(FileFormatError, match="shapes"):
        LinearProbe.load(tmp_path / "bad")
    save_file(tensors, tmp_path / "bad", metadata={**metadata, "about": "[" * 100_000})
    with pytest.raises(FileFormatError):
        LinearProbe.load(tmp_path / "bad")


# --- what it refuses ---------------------------------------------------------------------------------------------


def refused(message: str, x: Any, y: Any, **options: Any) -> None:
    probe = LinearProbe().set_params(**options)
    with pytest.raises(ProbeError, match=message):
        probe.train(x, y)


def test_bad_data_is_refused_with_its_rows() -> None:
    x, y = data(rows=20)
    refused("X has 12 features, but LinearProbe is expecting 13", x, y, input_dim=13)
    broken = x.clone()
    broken[[3, 7], 2] = torch.nan
    broken[9, 0] = torch.inf
    refused(r"NaN or infinity .* in 3 of 20 rows: 3, 7, 9", broken, y)
    refused("one class only: all 20 rows are 0", x, torch.zeros(20).long())
    refused("20 rows of activations but 19 labels", x, y[:19])
    refused(r"Unknown label type: continuous. Row 0 has the label", x, x[:, 0])
    refused(r"missing \(None or NaN\) in rows 1", x, ["a", None] + ["b"] * 18)
    refused("all names or all whole numbers", x, ["a", 1] + ["b"] * 18)
    refused("num_classes is 5, but 20 rows have only 2 classes", x, y, num_classes=5)
    refused(r"num_classes is 2, but the labels have 3", x, torch.arange(20) % 3, num_classes=2)
    refused("shape .row, d., but these have shape", x[0], y)
    refused(
        r"labels \['0'\]|labels \[0\] have one class only",
        x,
        torch.stack([torch.ones(20), y.float()], 1),
        target="labels",
    )
    refused("C is a positive number", x, y, C=0.0)
    refused("C is a positive number", x, y, C="large")
    refused("at least one step", x, y, max_steps=0)
    refused("shrinkage is from 0 to 1", x, y, kind="lda", shrinkage=2.0)
    refused("computed in float32 or float64", x, y, dtype=torch.float16)
    refused(r"features \[0, 1, 2.* too large", x * 1e200, y)
    refused("weight of a class is a positive number", x, y, class_weight={0: 0.0})
    refused("weight of a class is a positive number", x, y, class_weight={0: "much"})
    refused("a linear probe is of kind", x, y, kind="svm")
    refused("numbers are predicted by kind='ridge'", x, x[:, 0], target="regression")
    refused("class_weight names", x, y, class_weight={"yes": 1.0})
    refused("class_weight is 'balanced' or", x, y, class_weight="even")
    with pytest.raises(ProbeError, match=r"sample_weight.shape == \(3,\)"):
        LinearProbe().fit(x, y, sample_weight=[1.0, 2.0, 3.0])
    with pytest.raises(ProbeError, match="not negative"):
        LinearProbe().fit(x, y, sample_weight=-torch.ones(20))
    with pytest.raises(ProbeError, match="sample weights are numbers"):
        LinearProbe().fit(x, y, sample_weight=["a"] * 20)
    table = torch.stack([torch.arange(20) % 2, (torch.arange(20) < 5).long()], 1)
    with pytest.raises(ProbeError, match=r"labels \[1\] have one class only among the rows whose"):
        LinearProbe(target="labels").fit(x, table, sample_weight=(torch.arange(20) >= 5).double())


def test_the_score_of_numbers_is_scikit_learns_also_where_they_are_constant() -> None:
    x, _ = data()
    numbers = x[:, :2] + 1
    probe = LinearProbe(kind="ridge", target="regression").train(x, numbers)
    rows = torch.rand(200, generator=torch.Generator().manual_seed(0)).double()
    wanted = r2_score(numbers, probe.predict(x), sample_weight=rows)
    assert probe.score(x, numbers, sample_weight=rows) == pytest.approx(wanted)
    assert probe.evaluate(x, torch.ones(200, 2)) == 0.0
    with pytest.raises(ProbeError, match=r"sample_weight.shape == \(2,\)"):
        probe.score(x, numbers, sample_weight=[1.0, 2.0])


def test_what_was_not_learned_is_not_predicted() -> None:
    x, y = data(rows=40)
    with pytest.raises(ProbeError, match="not fitted yet"):
        LinearProbe().predict(x)
    probe = LinearProbe().train(x, y)
    with pytest.raises(ProbeError, match="X has 3 features"):
        probe.predict(x[:, :3])
    with pytest.raises(ProbeError, match="row 0 has the label 7, but the classes are 0, 1"):
        probe.evaluate(x, y + 7)
    with pytest.raises(ProbeError, match="no parameter 'penalty'"):
        probe.set_params(penalty="l1")


def test_a_direction_that_says_nothing_is_refused() -> None:
    probe = LinearProbe().train(torch.ones(10, 3), torch.arange(10) % 2)
    with pytest.raises(ProbeError, match="direction is zero"):
        probe.direction  # noqa: B018 - asking is the test
