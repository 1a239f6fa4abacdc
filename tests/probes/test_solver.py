"""The batched solver against scikit-learn and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from interp_toolkit.probes.features import Features
from interp_toolkit.probes.solver import logistic
from interp_toolkit.probes.spectrum import Spectrum

PENALTIES = torch.tensor([1e-3, 0.1, 10.0])


def problem(
    rows: int = 120, width: int = 20, layers: int = 2, classes: int = 2, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Correlated features, centred, and classes that depend on them."""
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(layers, width, width, generator=g, dtype=torch.float64)
    x = torch.randn(layers, rows, width, generator=g, dtype=torch.float64) @ mix * 0.3
    w = torch.randn(width, classes, generator=g, dtype=torch.float64)
    noise = torch.randn(rows, classes, generator=g, dtype=torch.float64)
    return x - x.mean(1, keepdim=True), (x[0] @ w * 0.5 + noise).argmax(1)


def loss(x: Tensor, y: Tensor, w: Tensor, b: Tensor, c: float, weights: Tensor | None = None) -> Tensor:
    """The objective, written down once more."""
    z = x @ w.mT + b
    z = torch.cat([torch.zeros_like(z), z], -1) if z.shape[-1] == 1 else z
    each = torch.nn.functional.cross_entropy(z, y, reduction="none")
    return c * (each if weights is None else each * weights).sum() + 0.5 * w.square().sum()


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize(("rows", "width"), [(120, 20), (40, 60)])
def test_coefficients_are_those_of_scikit_learn(rows: int, width: int, classes: int) -> None:
    x, y = problem(rows, width, classes=classes)
    found = logistic(Features.of(x), y[:, None], PENALTIES, classes=classes)
    assert found.converged.all()
    for layer in range(len(x)):
        for n, c in enumerate(PENALTIES.tolist()):
            peer = LogisticRegression(C=c, tol=1e-12, max_iter=100_000).fit(x[layer].numpy(), y.numpy())
            scale = np.abs(peer.coef_).max()
            np.testing.assert_allclose(found.weights[layer, n, 0], peer.coef_, atol=2e-4 * scale)
            np.testing.assert_allclose(found.bias[layer, n, 0], peer.intercept_, atol=2e-4 * max(1, scale))


@pytest.mark.parametrize("classes", [2, 3])
def test_the_gradient_is_zero_at_the_minimum_and_the_loss_is_what_it_says(classes: int) -> None:
    x, y = problem(classes=classes, seed=3)
    found = logistic(Features.of(x), y[:, None], PENALTIES, classes=classes)
    for layer in range(len(x)):
        for n, c in enumerate(PENALTIES.tolist()):
            w = found.weights[layer, n, 0].clone().requires_grad_()
            b = found.bias[layer, n, 0].clone().requires_grad_()
            value = loss(x[layer], y, w, b, c)
            grads = torch.autograd.grad(value, (w, b))
            assert torch.isclose(value.detach(), found.losses[layer, n, 0], rtol=1e-9)
            assert max(float(g.abs().max()) for g in grads) < 1e-3 * c * len(y) ** 0.5


def test_float32_reaches_the_same_minimum_at_every_penalty() -> None:
    x, y = problem(200, 20, layers=1, classes=3, seed=1)
    penalties = torch.logspace(-4, 3, 4)
    exact = logistic(Features.of(x), y[:, None], penalties, classes=3)
    found = logistic(Features.of(x.float()), y[:, None], penalties, classes=3)
    assert found.converged.all()
    for layer in range(len(x)):
        for n, c in enumerate(penalties.tolist()):
            reached = loss(x[layer], y, found.weights[layer, n, 0].double(), found.bias[layer, n, 0].double(), c)
            assert float(reached / exact.losses[layer, n, 0] - 1) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [2, 3])
def test_the_loss_keeps_its_digits_where_all_rows_are_told_apart(dtype: torch.dtype, classes: int) -> None:
    c = 1e8
    # A feature and a row for each class: by symmetry W is a (1 - 1 / K) on the diagonal, and -a / K off it
    x = torch.eye(classes, dtype=dtype)
    found = logistic(Features.of(x), torch.arange(classes)[:, None], torch.tensor([c]), classes=classes)
    if classes == 2:  # margins are -a and a at weights -a and a
        a = brentq(lambda a: a - c / (1 + np.exp(a)), 0, 40)
        wanted = 2 * c * np.log1p(np.exp(-a)) + a * a
        at = found.weights[0, 0, 0, 0, 1]
    else:
        a = brentq(lambda a: a - c * classes / (np.exp(a) + classes - 1), 0, 40)
        wanted = classes * c * np.log1p((classes - 1) * np.exp(-a)) + 0.5 * a * a * (classes - 1)
        at = found.weights[0, 0, 0].diagonal().mean() * classes / (classes - 1)
    assert found.converged.all()
    assert float(at) == pytest.approx(a, rel=1e-4)
    assert float(found.losses) == pytest.approx(wanted, rel=1e-4 if dtype == torch.float32 else 1e-8)


@pytest.mark.parametrize("classes", [2, 4])
def test_a_massive_feature_that_is_not_centred_does_no_harm(classes: int) -> None:
    x, y = problem(300, 12, layers=1, classes=classes, seed=5)
    x[:, :, 3] = 3000 + 10 * x[:, :, 3]
    penalties = torch.tensor([1.0, 1e4])
    low = x.float()
    found = logistic(Features.of(low), y[:, None], penalties, classes=classes)
    assert found.converged.all()
    assert found.passes < 200
    centred = low.double() - low.double().mean(1, keepdim=True)
    for n, c in enumerate(penalties.tolist()):
        peer = LogisticRegression(C=c, tol=1e-12, max_iter=1000, solver="newton-cholesky")
        peer.fit(centred[0].numpy(), y.numpy())
        least = loss(centred[0], y, torch.from_numpy(peer.coef_), torch.from_numpy(peer.intercept_), c)
        reached = loss(low.double()[0], y, found.weights[0, n, 0].double(), found.bias[0, n, 0].double(), c)
        assert abs(float(reached / least) - 1) < 1e-4


def test_nearly_collinear_features_need_no_more_passes_in_float32() -> None:
    g = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(30, 30, generator=g, dtype=torch.float64)).Q
    x = torch.randn(400, 30, generator=g, dtype=torch.float64) @ torch.diag(torch.logspace(0, -8, 30).double()) @ turn
    x = (x - x.mean(0)) / x.std(0)
    y = (x @ torch.randn(30, 4, generator=g, dtype=torch.float64) + torch.randn(400, 4, generator=g)).argmax(1)
    passes = [
        logistic(Features.of(x.to(dtype)), y[:, None], torch.tensor([1.0, 1e8]), classes=4).passes
        for dtype in (torch.float32, torch.float64)
    ]
    assert passes[0] < 3 * passes[1]


def test_rows_of_very_different_curvature_get_a_preconditioner_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(400, 60, generator=g, dtype=torch.float64)
    y = (x[:, :3] + 0.02 * torch.randn(400, 3, generator=g)).argmax(1)
    x = x - x.mean(0)
    found = logistic(Features.of(x), y[:, None], torch.tensor([1e6]), classes=3)
    monkeypatch.setattr("interp_toolkit.probes.solver._LEADING", 0)
    plain = logistic(Features.of(x), y[:, None], torch.tensor([1e6]), classes=3)
    assert found.passes < 0.6 * plain.passes
    torch.testing.assert_close(found.losses, plain.losses, rtol=1e-9, atol=0)


@pytest.mark.parametrize("x", [torch.zeros(6, 3), torch.full((6, 3), 7.0), torch.eye(6)[:, :3] * 1e-20])
def test_features_that_say_nothing_give_the_shares_of_the_classes(x: Tensor) -> None:
    found = logistic(Features.of(x), torch.tensor([0, 0, 1, 1, 1, 1])[:, None], torch.tensor([1e-6, 1.0, 1e6]))
    assert found.converged.all()
    torch.testing.assert_close(found.bias[0, 0, 0], torch.tensor([2.0]).log(), rtol=1e-3, atol=0)
    assert torch.isfinite(found.weights).all()


def test_separable_rows_and_weak_penalties_converge() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1, 50, 200, generator=g, dtype=torch.float64)
    y = (torch.rand(50, generator=g) < 0.5).long()
    found = logistic(Features.of(x - x.mean(1, keepdim=True)), y[:, None], torch.tensor([1e6]))
    assert found.converged.all()
    margins = (x - x.mean(1, keepdim=True))[0] @ found.weights[0, 0, 0, 0] + found.bias[0, 0, 0, 0]
    assert ((margins > 0).long() == y).all()


def test_several_labellings_at_once_are_as_each_alone() -> None:
    x, y = problem(layers=1, width=8, classes=3)
    tasks = torch.stack([y, y.flip(0), y.roll(7)], 1)
    together = logistic(Features.of(x), tasks, PENALTIES, classes=3)
    for n in range(3):
        alone = logistic(Features.of(x), tasks[:, n : n + 1], PENALTIES, classes=3)
        torch.testing.assert_close(together.weights[:, :, n], alone.weights[:, :, 0], rtol=1e-4, atol=1e-6)


def test_rows_of_weight_zero_are_left_out_and_double_weight_is_a_row_twice() -> None:
    x, y = problem(60, 5, layers=1)
    weights = torch.ones(60, dtype=torch.float64)
    weights[:10], weights[10:20] = 0, 2
    found = logistic(Features.of(x), y[:, None], PENALTIES, row_weights=weights[:, None])
    rows = torch.cat([torch.arange(10, 60), torch.arange(10, 20)])
    again = logistic(Features.of(x[:, rows]), y[rows, None], PENALTIES)
    torch.testing.assert_close(found.weights, again.weights, rtol=1e-5, atol=1e-7)


def test_without_an_intercept_there_is_none() -> None:
    x, y = problem(80, 6, layers=1)
    found = logistic(Features.of(x + 1), y[:, None], PENALTIES, intercept=False)
    assert (found.bias == 0).all()
    far = logistic(Features.of(x + 300), y[:, None], PENALTIES, intercept=False)
    assert far.converged.all()
    assert far.passes < 60
    peer = LogisticRegression(C=10.0, fit_intercept=False, tol=1e-12, max_iter=10_000).fit(
        (x[0] + 1).numpy(), y.numpy()
    )
    np.testing.assert_allclose(found.weights[0, 2, 0], peer.coef_, rtol=1e-4)


def test_blocks_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = problem(500, 12, layers=2)
    monkeypatch.setattr("interp_toolkit.probes.features._BLOCK", 12 * 4 * 64)  # 64 rows
    whole, read = (
        Features.prepared(
            list(x),
            None,
            (2, 500, 12),
            dtype=torch.float64,
            device=torch.device("cpu"),
            standardize=True,
            memory=memory,
        )
        for memory in (1e9, 0.0)
    )
    assert len(list(whole.blocks())) == 1
    assert len(list(read.blocks())) == 8
    found = [logistic(features, y[:, None], PENALTIES).weights for features in (whole, read)]
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("rows", "width"), [(50, 20), (20, 50), (1100, 1060)])
def test_the_spectrum_inverts_what_it_says(rows: int, width: int) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1, rows, width, generator=g, dtype=torch.float64) @ torch.diag(
        torch.logspace(0, -4, width).double()
    )
    spectrum = Spectrum.of(x)
    centered = x[0] - x[0].mean(0)
    covariance = centered.mT @ centered / rows
    vector = torch.cat([centered.mT @ torch.randn(rows, generator=g, dtype=torch.float64), torch.ones(1)])
    strength = torch.full((1, 1, 1, 1), 7.0, dtype=torch.float64)
    mean = torch.zeros(1, 1, width, dtype=torch.float64)
    found = spectrum.inverse(strength, mean)(vector.expand(1, 1, 1, -1))[0, 0, 0]
    wanted = torch.linalg.solve(torch.eye(width, dtype=torch.float64) + 7 * covariance, vector[:-1])
    tolerance = 1e-6 if min(rows, width) <= 1024 else 1e-2  # of many the small variances are lumped together
    assert float((found[:-1] - wanted).norm() / wanted.norm()) < tolerance
    assert abs(float(found[-1]) - 1 / 7) < 1e-12
