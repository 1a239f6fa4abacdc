"""What a theorem says of LEACE holds to rounding, and erasers work in models as plain arithmetic does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.linalg import sqrtm
from sklearn.covariance import ledoit_wolf
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import log_loss
from torch import Tensor

from interp_toolkit.activations import ActivationStore, extract
from interp_toolkit.errors import EditError, FileFormatError, InterpWarning, ProbeError
from interp_toolkit.model import Edit, editing, encode, run
from interp_toolkit.probes.erasure import (
    Eraser,
    ablation_edit,
    leace,
    one_direction,
    projection,
    random_directions,
    steering_edit,
)
from interp_toolkit.probes.linear import LinearProbe
from tiny import IDS, model_of, padded, tiny_model, tokens

FAMILIES = ["gpt2", "llama"]  # the second has grouped queries
METHODS: Any = pytest.mark.parametrize("method", ["leace", "orthogonal"])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def classes(rows: int = 600, width: int = 12, number: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Correlated activations far from zero whose means depend on the class; classes are of unequal size."""
    y = (normal(rows, seed=seed).abs() * number / 2).long().clamp_max(number - 1)
    x = normal(rows, width, seed=seed + 1) @ normal(width, width, seed=seed + 2) + 20
    return x + 1.5 * normal(number, width, seed=seed + 3)[y], y


def one_hot(y: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(y).double()


def covariances(x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    x, z = x - x.mean(0), z - z.mean(0)
    return x.mT @ x / len(x), x.mT @ z / len(x)


def gap(x: Tensor, y: Tensor) -> float:
    means = torch.stack([x[y == k].mean(0) for k in y.unique()])
    return float((means - means[0]).abs().max())


# --- what the theorem says ----------------------------------------------------------------------------------------


@METHODS
@pytest.mark.parametrize("number", [2, 5])
def test_class_means_are_equal_behind_the_eraser(method: Any, number: int) -> None:
    x, y = classes(number=number)
    eraser = leace(x, y, method=method)
    assert gap(x, y) > 1
    assert gap(eraser(x), y) < 1e-8
    assert eraser.rank == number - 1


def test_it_is_the_formula_of_the_paper() -> None:
    x, y = classes()
    xx, xz = (c.numpy() for c in covariances(x, one_hot(y)))
    whiten = np.linalg.pinv(sqrtm(xx).real)
    seen = whiten @ xz
    expected = np.eye(12) - np.linalg.pinv(whiten) @ (seen @ np.linalg.pinv(seen)) @ whiten
    eraser = leace(x, y)
    found = torch.eye(12, dtype=torch.float64) - eraser.left @ eraser.right
    assert np.abs(found.numpy() - expected).max() < 1e-8
    assert torch.equal(eraser.mean, x.mean(0)) or float((eraser.mean - x.mean(0)).abs().max()) < 1e-12


@METHODS
def test_no_linear_probe_beats_the_constant_on_the_rows_it_is_made_from(method: Any) -> None:
    x, y = classes()
    erased = leace(x, y, method=method)(x)
    shares = one_hot(y).mean(0)
    constant = float(-(shares * shares.log()).sum())
    theirs = LogisticRegression(C=1e6, max_iter=2000).fit(erased.numpy(), y.numpy())
    assert log_loss(y, theirs.predict_proba(erased.numpy())) > constant - 1e-6
    assert set(theirs.predict(erased.numpy())) == {int(shares.argmax())}
    for kind in ("logistic", "mean_difference"):
        probe = LinearProbe(C=1e3, kind=kind).train(erased, y)
        assert np.abs(probe.coef_ @ (erased - erased.mean(0)).numpy().T).max() < 1e-3
    assert LinearProbe(C=1e3).train(erased, y).evaluate(erased, y) == pytest.approx(float(shares.max()))
    assert LinearProbe(C=1e3).train(x, y).evaluate(x, y) > float(shares.max()) + 0.1


def test_on_other_rows_a_probe_is_near_chance() -> None:
    x, y = classes(rows=8000, number=2)
    fit, rest = slice(0, 4000), slice(4000, None)
    eraser = leace(x[fit], y[fit])
    before = LinearProbe().train(x[fit], y[fit]).evaluate(x[rest], y[rest])
    after = LinearProbe().train(eraser(x[fit]), y[fit]).evaluate(eraser(x[rest]), y[rest])
    majority = float(one_hot(y[rest]).mean(0).max())
    assert before > majority + 0.05
    assert abs(after - majority) < 0.03


def test_no_other_eraser_tried_changes_activations_less_by_any_inner_product() -> None:
    x, y = classes()
    xx, xz = covariances(x, one_hot(y))
    ours = leace(x, y)(x) - x
    axes = torch.linalg.svd(xz, full_matrices=False)[0][:, :2]
    others = [leace(x, y, method="orthogonal")(x) - x]
    for seed in range(5):  # oblique projections that take away the same
        right = axes + 0.3 * normal(12, 2, seed=seed)
        others.append(-((x - x.mean(0)) @ right) @ torch.linalg.inv(axes.mT @ right) @ axes.mT)
    assert all(gap(x + other, y) < 1e-8 for other in others)
    products = [xx, torch.linalg.inv(xx), torch.eye(12, dtype=torch.float64)]
    products += [a @ a.mT for a in (normal(12, 12, seed=s) for s in (7, 8))]
    for product in products:
        size = [float(torch.einsum("ni,ij,nj->", d, product, d)) for d in (ours, *others)]
        assert all(size[0] <= other * (1 + 1e-9) for other in size[1:])


@METHODS
def test_erasing_twice_is_erasing_once_and_the_mean_stays(method: Any) -> None:
    x, y = classes()
    eraser = leace(x, y, method=method)
    once = eraser(x)
    torch.testing.assert_close(eraser(once), once, rtol=0, atol=1e-9)
    torch.testing.assert_close(once.mean(0), x.mean(0), rtol=0, atol=1e-10)
    torch.testing.assert_close(eraser(eraser.mean), eraser.mean, rtol=0, atol=1e-12)


def test_labels_and_numbers_become_uncorrelated() -> None:
    x, _ = classes()
    table = (x[:, :2] + normal(600, 2, seed=5) > 20).double()
    numbers = x[:, 3:4] * 1e-4 + 1e-3 * normal(600, 1, seed=6)
    for y, target in ((table, "labels"), (numbers, "regression"), (torch.cat([table, numbers], 1), "regression")):
        eraser = leace(x, y, target=target)
        assert eraser.rank == y.shape[1]
        erased = eraser(x)
        assert LinearRegression().fit(x.numpy(), y.numpy()).score(x.numpy(), y.numpy()) > 0.05
        assert LinearRegression().fit(erased.numpy(), y.numpy()).score(erased.numpy(), y.numpy()) < 1e-8


# --- data that are hard -------------------------------------------------------------------------------------------


def test_features_that_depend_on_each_other_are_no_trouble() -> None:
    x, y = classes()
    wide = torch.cat([x, x[:, :4] @ normal(4, 5), torch.full((600, 1), 3.0, dtype=torch.float64)], 1)
    eraser = leace(wide, y)
    assert gap(eraser(wide), y) < 1e-7
    # Where activations never go, nothing is read: the constant feature may be anything.
    outside = torch.zeros(18, dtype=torch.float64)
    outside[-1] = 5.0
    torch.testing.assert_close(eraser(wide + outside), eraser(wide) + outside, rtol=0, atol=1e-8)


def test_with_fewer_rows_than_features_means_are_equal_and_a_warning_says_what_it_is_worth() -> None:
    x, y = classes(rows=30, width=64, number=2)
    with pytest.warns(InterpWarning, match="30 rows with 64 features"):
        eraser = leace(x, y)
    assert gap(eraser(x), y) < 1e-8
    more, labels = classes(rows=2000, width=64, number=2)
    shrunk = leace(x, y, shrinkage=None)
    assert gap(shrunk(x), y) < 1e-8
    assert gap(more, labels) > 1


@pytest.mark.parametrize("share", [None, 0.3])
def test_a_shrunk_covariance_is_that_of_scikit_learn(share: float | None) -> None:
    x, y = classes(rows=40, width=12)
    centered = (x - x.mean(0)).numpy()
    covariance, found = ledoit_wolf(centered, assume_centered=True)
    assert 0 < found < 1
    if share is not None:
        plain = centered.T @ centered / len(x)
        covariance = (1 - share) * plain + share * np.trace(plain) / 12 * np.eye(12)
    xz = covariances(x, one_hot(y))[1].numpy()
    inverse = np.linalg.inv(covariance)
    expected = xz @ np.linalg.pinv(xz.T @ inverse @ xz) @ xz.T @ inverse
    eraser = leace(x, y, shrinkage=share)
    assert np.abs((eraser.left @ eraser.right).numpy() - expected).max() < 1e-8
    assert gap(eraser(x), y) < 1e-8


def test_one_feature_much_larger_than_all_others_does_not_hide_them() -> None:
    x, y = classes()
    scales = torch.ones(12, dtype=torch.float64)
    scales[4] = 1e5
    assert gap(leace(x * scales, y)(x * scales) / scales, y) < 1e-6


def test_without_any_relation_nothing_is_erased() -> None:
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    eraser = leace(x, [0, 0, 1, 1])
    assert eraser.rank == 0
    assert torch.equal(eraser(x), x)


def test_a_store_gives_the_same_eraser_as_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("gpt2")
    documents = [{"input_ids": tokens(1, 9, seed=n)[0].tolist()} for n in range(20)]
    extract(model, documents, path=tmp_path / "store", sites="resid_post.0", shard_tokens=50)
    view = ActivationStore.open(tmp_path / "store")["resid_post.0"]
    y = [n % 3 for n in range(len(view))]
    expected = leace(view[:], y)
    monkeypatch.setattr("interp_toolkit.probes.erasure.free_memory", lambda device: 0)
    monkeypatch.setattr("interp_toolkit.probes.features._BLOCK", 4 * 32 * 32)
    found = leace(view, y)
    assert torch.allclose(found.left @ found.right, expected.left @ expected.right, rtol=0, atol=1e-10)
    assert gap(found(view[:].double()), torch.tensor(y)) < 1e-8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_it_answers_in_the_precision_it_is_given_and_computes_in_a_wider_one(dtype: torch.dtype) -> None:
    x, y = classes()
    eraser, low = leace(x, y), x.to(dtype)
    found = eraser(low.reshape(20, 30, 12))
    assert found.dtype == dtype
    assert found.shape == (20, 30, 12)
    exact = eraser(low.double())
    assert float((found.reshape(600, 12).double() - exact).abs().max()) <= float(
        torch.finfo(dtype).eps * exact.abs().max() + 1e-4
    )
    again = leace(low, y)
    assert again.left.dtype == torch.float64


WRONG: list[tuple[Any, str]] = [
    (lambda: leace(normal(4, 2), [1, 1, 1, 1]), "nothing to erase: every row has the same label, the class 1"),
    (lambda: leace(normal(4, 2), [0, 1, 1]), "4 rows of activations but 3 labels"),
    (lambda: leace(normal(4, 2), [0, 1, 1, 0], method="half"), "a method is 'leace' or 'orthogonal'"),
    (lambda: leace(normal(4, 2), [0, 1, 1, 0], shrinkage=2.0), "shrinkage is from 0 to 1"),
    (lambda: leace(normal(4, 2) / 0, [0, 1, 1, 0]), "NaN or infinity"),
    (lambda: projection(torch.zeros(3)), "finite and not zero"),
    (lambda: projection(torch.zeros(0, 3)), "finite and not zero"),
    (lambda: projection(torch.ones(3), mean=torch.ones(2)), r"mean has shape \(2,\), the directions have 3"),
    (lambda: projection(torch.ones(3))(torch.ones(4)), r"for 3 features, but the activations are \(4,\)"),
    (lambda: steering_edit(torch.ones(3), "resid_post.0", 1.0), "scale='norm' needs norm="),
    (lambda: steering_edit(torch.ones(3), "resid_post.0", 1.0, scale="raw", norm=2.0), "takes none"),
    (lambda: steering_edit(torch.zeros(3), "resid_post.0", 1.0, scale="raw"), "finite and not zero"),
    (lambda: one_direction(torch.ones(2, 3)), r"take one: probe.direction\[n\]"),
    (lambda: random_directions(2, torch.ones(4, 3), control="activations"), "4 activations do not vary"),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("call", "message"), WRONG)
def test_what_makes_no_sense_is_said(call: Any, message: str) -> None:
    with pytest.raises(ProbeError, match=message):
        call()


# --- directions ---------------------------------------------------------------------------------------------------


def test_a_projection_takes_away_the_span_of_its_directions_whatever_their_length() -> None:
    rows = normal(3, 10) * torch.tensor([[1e-6], [1.0], [1e6]], dtype=torch.float64)
    rows = torch.cat([rows, rows.sum(0, keepdim=True)])
    eraser, x, mean = projection(rows), normal(50, 10, seed=3), normal(10, seed=4)
    assert eraser.rank == 3
    unit = rows[:3] / rows[:3].norm(dim=-1, keepdim=True)
    expected = x - x @ unit.mT @ torch.linalg.inv(unit @ unit.mT) @ unit
    torch.testing.assert_close(eraser(x), expected, rtol=0, atol=1e-8)
    kept = projection(rows, mean=mean)(x)
    torch.testing.assert_close(kept @ unit.mT, (mean @ unit.mT).expand(50, 3), rtol=0, atol=1e-8)
    torch.testing.assert_close(kept - eraser(x), (mean - eraser(mean)).expand(50, 10), rtol=0, atol=1e-8)


def test_the_direction_of_a_probe_can_be_projected_out() -> None:
    x, y = classes(number=3)
    probe = LinearProbe().train(x, y)
    erased = projection(probe.direction, mean=x.mean(0))(x)
    assert np.ptp(probe.coef_ @ erased.numpy().T, axis=1).max() < 1e-4


def test_random_directions_are_units_and_the_seed_decides() -> None:
    x = normal(500, 6) * torch.tensor([10.0, 1, 1, 1, 1, 1], dtype=torch.float64)
    state = torch.random.get_rng_state()
    plain, like = (random_directions(400, x, control=c, seed=3) for c in ("isotropic", "activations"))
    assert torch.equal(torch.random.get_rng_state(), state)
    for found in (plain, like):
        torch.testing.assert_close(found.norm(dim=-1), torch.ones(400, dtype=torch.float64))
    assert torch.equal(plain, random_directions(400, x, seed=3))
    assert not torch.equal(plain, random_directions(400, x, seed=4))
    assert float(plain.square().mean(0)[0]) == pytest.approx(1 / 6, abs=0.04)
    assert float(like.square().mean(0)[0]) > 0.7


# --- in models ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_an_eraser_in_a_model_is_plain_arithmetic_at_its_site(family: str) -> None:
    model = model_of(family)
    site = "resid_post.1"
    clean = run(model, IDS, read=[site])[site]
    eraser = leace(clean.flatten(0, 1), [n % 2 for n in range(18)], shrinkage=0.1)
    edited = run(model, IDS, read=[site], edits=[eraser.edit(site, positions=[2, -1], rows=[1])], logits="all")
    expected = clean.clone()
    expected[1, [2, -1]] = eraser(clean[1, [2, -1]])
    torch.testing.assert_close(edited[site], expected, rtol=1e-5, atol=1e-5)
    block = (model.transformer.h if family == "gpt2" else model.model.layers)[1]

    def hook(module: Any, args: Any, output: Any) -> Any:
        return expected if isinstance(output, Tensor) else (expected, *output[1:])

    handle = block.register_forward_hook(hook)
    try:
        with torch.no_grad():
            logits = model(IDS).logits
    finally:
        handle.remove()
    torch.testing.assert_close(edited.logits, logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_left_padded_batch_is_erased_as_single_prompts_are(family: str) -> None:
    model = model_of(family)
    ids, mask = padded([9, 5, 7])
    eraser = projection(normal(2, 32), mean=normal(32, seed=1))
    edit = eraser.edit("resid_post.0", positions=[1, -2])
    batch = run(model, {"input_ids": ids, "attention_mask": mask}, edits=[edit], logits="last").logits
    assert batch is not None
    for row in range(3):
        alone = run(model, ids[row][mask[row].bool()], edits=[edit], logits="last").logits
        torch.testing.assert_close(batch[row : row + 1], alone, rtol=1e-4, atol=1e-4)


def test_edits_of_directions_are_plain_arithmetic() -> None:
    model, site, direction, mean = model_of("llama"), "resid_post.1", normal(32), normal(32, seed=1)
    clean = run(model, IDS, read=[site])[site]
    unit = (direction / direction.norm()).float()
    along = (clean @ unit)[..., None] * unit
    expected: dict[Edit, Tensor] = {
        steering_edit(direction, site, -2.0, norm=3.0): clean - 6 * unit,
        steering_edit(direction, site, -2.0, scale="raw"): clean - 2 * direction.float(),
        ablation_edit(direction * 7, site): clean - along,
        ablation_edit(direction, site, mean=mean): clean - along + (mean.float() @ unit) * unit,
    }
    for edit, wanted in expected.items():
        torch.testing.assert_close(run(model, IDS, read=[site], edits=[edit])[site], wanted, rtol=1e-4, atol=1e-5)


def test_a_model_in_bfloat16_can_be_edited() -> None:
    model = tiny_model("llama", dtype=torch.bfloat16)
    clean = run(model, IDS, read=["resid_post.1"])["resid_post.1"]
    eraser = projection(normal(1, 32))
    found = run(model, IDS, read=["resid_post.1"], edits=[eraser.edit("resid_post.1")])["resid_post.1"]
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, eraser(clean))


@pytest.mark.parametrize("family", FAMILIES)
def test_generate_with_an_eraser_and_steering_is_the_same_with_and_without_cache(family: str) -> None:
    model, prompt = model_of(family), tokens(2, 5)
    edits = [
        projection(normal(3, 32)).edit("resid_post.0"),
        steering_edit(normal(32, seed=2), "resid_post.1", 1.0, norm=20.0),
    ]
    found = []
    for cached in (True, False):
        with editing(model, edits):
            found.append(model.generate(prompt, max_new_tokens=5, do_sample=False, use_cache=cached, pad_token_id=0))
    plain = model.generate(prompt, max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], plain)
    ids = prompt
    for _ in range(5):
        logits = run(model, encode(ids), edits=edits, logits="last").logits
        ids = torch.cat([ids, logits[:, -1].argmax(-1, keepdim=True)], 1)
    assert torch.equal(found[0], ids[:, : found[0].shape[1]])  # it may end early


def test_a_site_of_another_width_is_refused() -> None:
    with pytest.raises((ProbeError, EditError), match="for 5 features"):
        run(model_of("gpt2"), IDS, edits=[projection(torch.ones(5)).edit("resid_post.0")])


# --- on disk ------------------------------------------------------------------------------------------------------


def test_an_eraser_comes_back_from_disk_as_it_was(tmp_path: Path) -> None:
    x, y = classes()
    for n, eraser in enumerate((leace(x, y), leace(x, y, method="orthogonal"), projection(normal(12)))):
        back = Eraser.load(eraser.save(tmp_path / f"{n}.safetensors"))
        assert all(torch.equal(vars(back)[k], vars(eraser)[k]) for k in ("left", "right", "mean"))
        torch.testing.assert_close(back(x), eraser(x), rtol=0, atol=1e-12)
        assert repr(back) == repr(eraser)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(FileNotFoundError):
        Eraser.load(path)
    with pytest.raises(FileNotFoundError, match="no folder"):
        projection(torch.ones(2)).save(tmp_path / "none" / "file")
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(FileFormatError, match="cannot be read as an eraser"):
        Eraser.load(path)
    save_file({"left": torch.ones(2, 1)}, path)
    with pytest.raises(FileFormatError, match="'something else', not an eraser"):
        Eraser.load(path)
    shapes = {"left": torch.ones(2, 1), "right": torch.ones(2, 2), "mean": torch.ones(2)}
    save_file(shapes, path, metadata={"format": "interp_toolkit.eraser/1"})
    with pytest.raises(FileFormatError, match="damaged"):
        Eraser.load(path)
