"""Activations: numbers against independent computations, what is refused, still pictures."""

from __future__ import annotations

import base64
import json
import math
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score, roc_curve

from interp_toolkit.errors import UnavailableSiteError
from interp_toolkit.visualization.activation_words import short
from interp_toolkit.visualization.distributions import ActivationsView, plot_activations
from interp_toolkit.visualization.measuring import MEDIAN, SUMMARY, spread_of
from interp_toolkit.visualization.projections import principal_components, separation, strongest

HOSTILE = [
    "</script><img src=x onerror=alert(1)>",
    "<!--<script>",
    "\u2028",
    "\x00",
    "\ud800",
    "\u202etfel",
    "👩\u200d👧",
    "x" * 200,
    "",
]


def rows(layers: int = 3, number: int = 60, size: int = 10, seed: int = 0) -> NDArray[np.float32]:
    """Random activations, larger at later layers."""
    found = np.random.default_rng(seed).standard_normal((layers, number, size))
    return (found * np.arange(1, layers + 1)[:, None, None]).astype(np.float32)


def unpacked(part: dict[str, Any]) -> NDArray[Any]:
    """What `packed` packed."""
    return np.frombuffer(zlib.decompress(base64.b64decode(part["data"])), dtype=part["dtype"]).reshape(part["shape"])


class Run:
    """What a run leaves behind, as far as the view knows it: two prompts of 3 and 2 tokens, padded on the left."""

    num_layers = 4

    def __init__(self, kept: int | None = None) -> None:
        self.tokens = [["a", "b", "c"], ["d", "e"]]
        self.mask = torch.tensor([[True, True, True], [False, True, True]])
        self.kept = kept

    def residual_stream(self, layer: int) -> torch.Tensor:
        if layer == 1:
            raise UnavailableSiteError("resid_post.1 was not read")
        x = torch.arange(24.0).view(2, 3, 4) + 100 * layer
        if self.kept:
            return x[:, -self.kept :]
        return x.masked_fill(~self.mask[..., None], float("nan"))


# --- principal components ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(40, 12), (12, 40), (600, 300), (250, 800), (7, 1), (3, 3)])
def test_principal_components_are_those_of_scikit_learn(shape: tuple[int, int]) -> None:
    r = np.random.default_rng(1)
    x = r.standard_normal(shape) * np.linspace(1, 5, shape[1]) + 50
    number = min(3, min(shape) - (shape[0] <= shape[1]))
    found = principal_components(x, number)
    known = PCA(number, svd_solver="full").fit(x)
    np.testing.assert_allclose(found.shares, known.explained_variance_ratio_, rtol=1e-9)
    alike = np.abs(np.sum(found.directions * known.components_, axis=1))
    np.testing.assert_allclose(alike, 1, rtol=1e-7)
    signs = np.sign(np.sum(found.directions * known.components_, axis=1))
    np.testing.assert_allclose(found.scores(x), known.transform(x) * signs, atol=1e-5)


def test_the_largest_entry_of_a_component_is_positive_and_the_same_data_give_the_same_bytes() -> None:
    x = rows(1, 300, 250)[0]
    first, second = principal_components(x), principal_components(x.copy())
    assert all(row[np.argmax(np.abs(row))] > 0 for row in first.directions)
    assert first.directions.tobytes() == second.directions.tobytes()


def test_strongest_eigenvectors_are_exact_with_a_gap_and_without_one() -> None:
    r = np.random.default_rng(0)
    turned = np.linalg.qr(r.standard_normal((400, 400)))[0]
    for spectrum in (np.geomspace(1e6, 1, 400), np.linspace(1.0001, 1, 400), np.array([5.0, 5.0, 5.0, *[0.0] * 397])):
        square = (turned * spectrum) @ turned.T
        values, vectors = strongest((square + square.T) / 2, 3)
        np.testing.assert_allclose(values, np.sort(spectrum)[::-1][:3], rtol=1e-9)
        np.testing.assert_allclose(square @ vectors, vectors * values, atol=1e-7 * spectrum.max())


@pytest.mark.parametrize("x", [np.full((5, 4), 0.1), np.ones((1, 4)), np.zeros((3, 2))])
def test_rows_without_variance_have_no_components(x: NDArray[np.float64]) -> None:
    found = principal_components(x)
    assert not found.shares.any()
    assert not found.directions.any()
    assert not found.scores(x).any()


# --- separation ----------------------------------------------------------------------------------------------------

numbers = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=30).map(np.array)


@given(numbers, numbers)
@settings(max_examples=60, deadline=None)
def test_auc_and_overlap_are_those_of_scikit_learn(first: NDArray[np.float64], second: NDArray[np.float64]) -> None:
    found = separation(first, second)
    truth = [0] * len(first) + [1] * len(second)
    scores = np.concatenate([first, second])
    assert found is not None
    assert found.auc == pytest.approx(roc_auc_score(truth, scores))
    wrong, right, _ = roc_curve(truth, scores, drop_intermediate=False)
    assert found.overlap == pytest.approx(1 - np.abs(right - wrong).max())


def test_distance_is_cohens_d() -> None:
    first, second = np.array([1.0, 2.0, 3.0]), np.array([4.0, 6.0])
    pooled = math.sqrt((2 * np.var(first, ddof=1) + np.var(second, ddof=1)) / 3)
    found = separation(first, second)
    assert found is not None
    assert found.distance == pytest.approx((5 - 2) / pooled)
    assert separation(first, first[:0]) is None
    flat = separation(np.ones(3), np.ones(2))
    assert flat is not None
    assert (flat.auc, flat.overlap, flat.distance) == (0.5, 1.0, None)


# --- distributions -------------------------------------------------------------------------------------------------


def test_histograms_and_summaries_are_numpys() -> None:
    x, labels = rows(), np.arange(60) % 3
    found = plot_activations(x, labels=labels).measured
    for layer in range(3):
        for c in range(3):
            values = x[layer, labels == c].ravel()
            low, high = found.values.edges[layer]
            np.testing.assert_array_equal(found.values.counts[layer, c], np.histogram(values, 60, (low, high))[0])
            known = [values.mean(), values.std(), *np.quantile(values, [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1])]
            np.testing.assert_allclose(found.values.summary[layer, c], known, rtol=1e-5, atol=1e-6)
            lengths = np.linalg.norm(x[layer, labels == c].astype(np.float64), axis=1)
            assert found.norms.summary[layer, c, MEDIAN] == pytest.approx(np.median(lengths))
    # Nothing is lost: in the bins or outside
    assert found.values.counts.sum() + found.values.outside.sum() == x.size
    assert found.norms.counts.sum() + found.norms.outside.sum() == 180


def test_far_values_are_counted_outside_the_axis_and_stay_in_the_summary() -> None:
    values = np.concatenate([np.linspace(-1, 1, 100), [1e6]])
    edges, counts, outside, summary = spread_of([values], bins=10)
    assert edges[1] < 10
    assert counts.sum() == 100
    assert outside.tolist() == [[0, 1]]
    assert summary[0, SUMMARY.index("largest")] == 1e6


def test_norms_that_differ_much_have_a_logarithmic_axis() -> None:
    x = rows(1)[0]
    assert not plot_activations(x + 10).measured.norms.log
    x[0] *= 1000
    view = plot_activations(x)
    assert view.measured.norms.log
    assert "logarithmic" in view.data()["panels"][1]["note"]


def test_equal_values_have_an_axis() -> None:
    for value in (0.0, 3.0, -1e-12, 1e30):
        found = plot_activations(np.full((4, 3), value)).measured
        assert found.values.edges[0, 0] < found.values.edges[0, 1]
        assert found.values.counts.sum() == 12
        plot_activations(np.full((4, 3), value)).to_html()


# --- norms, outliers, projections ----------------------------------------------------------------------------------


def test_norms_by_position_are_medians_over_prompts() -> None:
    x = rows(2, 7, 4)
    tokens = [["a", "b", "c"], ["d", "e", "f", "g"]]
    by = plot_activations(x, tokens=tokens).measured.by_position
    assert by is not None
    lengths = np.linalg.norm(x, axis=2)
    assert by.columns == ("0", "1", "2", "3")
    assert by.numbers == (2, 2, 2, 1)
    assert by.tokens is None
    np.testing.assert_allclose(by.medians[:, 0], (lengths[:, 0] + lengths[:, 3]) / 2, rtol=1e-6)
    np.testing.assert_allclose(by.medians[:, 3], lengths[:, 6], rtol=1e-6)


def test_many_positions_are_put_together_behind_the_first_ones() -> None:
    view = plot_activations(np.ones((1000, 2)), tokens=["t"] * 1000)
    by = view.measured.by_position
    assert by is not None
    assert len(by.columns) <= 160
    assert by.columns[:9] == ("0", "1", "2", "3", "4", "5", "6", "7", "8–14")
    assert sum(by.numbers) == 1000
    assert "put together" in view.data()["panels"][1]["note"]


def test_outlier_dimensions_are_multiples_of_the_median_magnitude() -> None:
    x = rows(3, 50, 20)
    x[:, :, 7] += 500
    x[:, 3, 11] = 9000  # one row only
    view = plot_activations(x)
    for layer in range(3):
        middle = np.median(np.abs(x[layer]))
        typical, largest = (view.measured.magnitudes[key][layer] for key in ("typical", "largest"))
        np.testing.assert_allclose(typical, np.median(np.abs(x[layer]), axis=0) / middle, rtol=1e-5)
        np.testing.assert_allclose(largest, np.abs(x[layer]).max(axis=0) / middle, rtol=1e-5)
    first, second = view.data()["outliers"]
    assert first["top"][0] == 7
    assert set(second["top"][:2]) == {7, 11}
    np.testing.assert_allclose(unpacked(first["ratios"]), view.measured.magnitudes["typical"], rtol=1e-3)
    assert "7 (3 of 3)" in view.data()["panels"][2]["note"]


def test_projections_are_on_the_unit_vector_for_one_direction_or_one_for_each_layer() -> None:
    x, labels = rows(), np.arange(60) % 2
    direction = np.arange(1.0, 11.0)
    for form in (direction, torch.tensor(direction), np.stack([direction] * 3), dict.fromkeys(range(3), direction)):
        found = plot_activations(x, labels=labels, direction=form).measured.projection
        assert found is not None
        known = x @ (direction / np.linalg.norm(direction))
        np.testing.assert_allclose(found.scores, known, rtol=1e-4, atol=1e-4)
        assert found.separations[1][0] is not None
        assert found.separations[1][0].auc == pytest.approx(roc_auc_score(labels, known[1]))


def test_each_of_several_classes_is_set_against_the_others() -> None:
    x, labels = rows(1), ["abc"[n % 3] for n in range(60)]
    view = plot_activations(x, labels=labels, direction=np.eye(10)[0])
    found = view.measured.projection
    assert found is not None
    assert [pair[1] for pair in found.against] == ["a", "b", "c"]
    known = roc_auc_score([label == "b" for label in labels], x[0, :, 0])
    assert found.separations[0][1] is not None
    assert found.separations[0][1].auc == pytest.approx(known)
    assert float(view.table().rows[1][-4]) == pytest.approx(known, abs=6e-4)


def test_rows_that_are_far_too_long_are_left_out_of_the_fit_and_that_is_said() -> None:
    x = rows(1)[0]
    far = x.copy()
    far[0] = 1e4
    view = plot_activations(far)
    assert view.measured.scatter.left_out == (1,)
    assert view.measured.scatter.apart[0].tolist() == [True] + [False] * 59
    np.testing.assert_allclose(
        view.measured.scatter.shares[0], PCA(3).fit(far[1:]).explained_variance_ratio_, rtol=1e-5
    )
    assert "1 row of a layer" in view.data()["panels"][-1]["note"]
    assert plot_activations(far, massive=math.inf).measured.scatter.left_out == (0,)
    levels = view.data()["pca"]["scores"]
    inner = view.measured.scatter.scores[0, 1:, 0]
    np.testing.assert_allclose(unpacked(levels["edges"])[0], [inner.min(), inner.max()], rtol=1e-5)


# --- what is taken -------------------------------------------------------------------------------------------------


def test_all_forms_of_the_same_numbers_give_the_same() -> None:
    x = rows(2, 8, 3)
    known = plot_activations(x).to_html()
    assert plot_activations(torch.tensor(x)).to_html() == known
    assert plot_activations(list(torch.tensor(x))).to_html() == known
    assert plot_activations(x.tolist()).to_html() == known
    assert plot_activations({0: x[0], 1: torch.tensor(x[1], requires_grad=True)}).to_html() == known
    assert plot_activations({1: x[1], 0: x[0], 9: x[0]}, layers=[0, 1]).to_html() == known


def test_half_precision_is_computed_in_float32() -> None:
    x = torch.full((600, 4), 200.0, dtype=torch.float16)  # whose squares overflow float16
    assert plot_activations(x).measured.norms.summary[0, 0, MEDIAN] == 400
    assert plot_activations(x.bfloat16()).measured.norms.summary[0, 0, MEDIAN] == 400


def test_a_run_brings_layers_tokens_and_positions_and_leaves_padding_out() -> None:
    view = plot_activations(Run(), labels=["x", "y"])
    sample = view.measured.sample
    assert sample.layers == ("0", "2", "3")
    assert sample.texts == ("a", "b", "c", "d", "e")
    assert sample.labels.tolist() == [0, 0, 0, 1, 1]
    assert sample.positions is not None
    assert sample.positions.tolist() == [0, 1, 2, 0, 1]
    assert view.measured.values.summary[0, 0, SUMMARY.index("largest")] == 11
    assert plot_activations(Run(), layers=[2]).measured.sample.layers == ("2",)
    with pytest.raises(UnavailableSiteError, match=r"resid_post\.1 was not read"):
        plot_activations(Run(), layers=[1])


def test_of_a_run_that_kept_some_positions_rows_are_known_by_their_prompts() -> None:
    sample = plot_activations(Run(kept=1), labels=[True, False]).measured.sample
    assert sample.texts == ("abc", "de")
    assert sample.positions is None
    assert sample.classes == ("false", "true")


def test_real_activations_of_the_demo_model(demo: Any) -> None:
    from interp_toolkit import ActivationCache

    run = ActivationCache(demo[0], sites=["resid_post"], layers=[0, 12, 29]).run(
        ["Paris is in France.", "Rome is in Spain, no?"]
    )
    view = plot_activations(run, labels=["true", "false"])
    assert view.measured.sample.layers == ("0", "12", "29")
    assert view.measured.sample.rows == int(run.mask.sum())
    by = view.measured.by_position
    assert by is not None
    assert by.medians[1, 0] > 10 * by.medians[1, 2]
    assert "position 0 is" in view.data()["panels"][1]["note"]


def test_labels_of_all_kinds_are_ordered_and_named() -> None:
    x = np.eye(3)
    for labels, names in (
        ([True, False, True], ("false", "true")),
        (np.array([2, 1, 10]), ("1", "2", "10")),
        (torch.tensor([0.0, 1.0, 1.0]), ("0", "1")),
        (["b", "a", "b"], ("a", "b")),
        (np.array(["b", "a", "b"]), ("a", "b")),
    ):
        assert plot_activations(x, labels=labels).measured.sample.classes == names


def test_beyond_eight_classes_the_smallest_are_put_together() -> None:
    labels = [n for n in range(12) for _ in range(13 - n)]
    view = plot_activations(np.eye(len(labels)), labels=labels)
    sample = view.measured.sample
    assert sample.classes == ("0", "1", "2", "3", "4", "5", "6", "5 others")
    assert int(sample.of_class(7).sum()) == sum(13 - n for n in range(7, 12))
    assert "smallest classes, put together" in view.caption


def test_only_some_of_many_rows_are_drawn_and_that_is_said() -> None:
    x = rows(1, 900, 3)[0]
    view = plot_activations(x, draw=100)
    again = plot_activations(x, draw=100)
    assert len(view.measured.drawn) == 100
    assert view.measured.drawn.tolist() == again.measured.drawn.tolist() == sorted(set(view.measured.drawn.tolist()))
    assert "100 of them, chosen by lot (seed 0)" in view.caption
    assert view.measured.norms.counts.sum() + view.measured.norms.outside.sum() == 900
    np.testing.assert_allclose(view.measured.scatter.shares[0], PCA(3).fit(x).explained_variance_ratio_, rtol=1e-5)


@pytest.mark.parametrize(
    ("activations", "options", "error", "words"),
    [
        ([[1.0, math.nan]], {}, ValueError, r"activations: NaN at \[0, 1\], 1 such"),
        ({3: [[1.0], [math.inf]]}, {}, ValueError, r"layer 3: an infinite value at \[1, 0\]"),
        ([1.0, 2.0], {}, ValueError, r"\[row, d\] or \[layer, row, d\], not of shape \[2\]"),
        ([["a"]], {}, TypeError, "real numbers, not <U1"),
        ([[1.0 + 2j]], {}, TypeError, "real numbers, not complex"),
        ([[1.0], [1.0, 2.0]], {}, ValueError, "rows of different lengths"),
        ({0: np.eye(2), 1: np.eye(3)}, {}, ValueError, "every layer needs the same rows"),
        (np.zeros((0, 3)), {}, ValueError, "at least one of each"),
        ({}, {}, ValueError, "were asked for"),
        ({0: np.eye(2)}, {"layers": [5]}, ValueError, r"layers \[5\] were asked for, but there are \[0\]"),
        (np.eye(2), {"layers": [5, 6]}, ValueError, r"names the 1 layer\(s\) of an array, but there are 2"),
        (np.eye(2), {"labels": [1]}, ValueError, "2 rows need as many labels, but there are 1"),
        (np.eye(2), {"labels": [0.5, 1.0]}, ValueError, "that of row 0 is 0.5; cut numbers into classes"),
        (np.eye(2), {"labels": ["a", None]}, ValueError, "that of row 1 is None"),
        (np.eye(2), {"texts": ["a"]}, ValueError, "2 rows need as many texts, but there are 1"),
        (np.eye(2), {"tokens": ["a"]}, ValueError, "2 rows need as many tokens, but there are 1"),
        (
            np.eye(2),
            {"direction": [1.0]},
            ValueError,
            r"a direction is \[2\] for every layer, or \[1, 2\], not of shape \[1\]",
        ),
        (np.eye(2), {"direction": [0.0, 0.0]}, ValueError, "direction of layer 0 is zero"),
        (np.eye(2), {"direction": [math.nan, 0.0]}, ValueError, "direction: NaN"),
        (
            np.eye(2),
            {"direction": {7: [1.0, 0.0]}},
            ValueError,
            r"no direction for layer\(s\) \['0'\]; there are for \['7'\]",
        ),
        (np.eye(2), {"kind": "projection"}, ValueError, "needs direction="),
        (np.eye(2), {"layer": 4}, ValueError, "layer 4 is not among"),
    ],
)
def test_what_cannot_be_shown_is_refused_with_what_was_found(
    activations: Any, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        plot_activations(activations, **options)


def test_an_unknown_panel_is_refused(unchecked: None) -> None:
    with pytest.raises(ValueError, match="kind is one of distribution, norms"):
        plot_activations(np.eye(2), kind="violin")  # type: ignore[arg-type]


# --- what comes out ------------------------------------------------------------------------------------------------


def everything(**options: Any) -> ActivationsView:
    """A view with all panels and hostile texts."""
    x = rows(2, len(HOSTILE), 6)
    return plot_activations(x, labels=HOSTILE, texts=HOSTILE, direction=np.ones(6), title=HOSTILE[0], **options)


def test_hostile_texts_are_data_and_nothing_else() -> None:
    page = everything().page().to_html()
    assert page.count("<img") == 0
    assert page.count("</script>") == 2
    assert "\ud800" not in page
    json.dumps(everything().data(), allow_nan=False)


def test_files_of_all_kinds(tmp_path: Any) -> None:
    view = everything()
    for kind in ("svg", "html", "png", "pdf"):
        path = tmp_path / f"a.{kind}"
        assert plot_activations(np.eye(3), output=path).save(path).stat().st_size > 1000
        assert view.save(tmp_path / f"b.{kind}").stat().st_size > 1000
    assert "pca" in repr(view)


@pytest.mark.parametrize("kind", ["distribution", "norms", "outliers", "projection", "pca"])
def test_each_panel_alone_fits_a_page_of_600_pixels(kind: Any) -> None:
    view = plot_activations(rows(30), labels=[n % 2 for n in range(60)], direction=np.ones(10), kind=kind)
    picture = view.picture()
    assert view.kinds == (kind,)
    assert picture.width <= 700
    assert all(label.right <= picture.width + 1 for label in picture.labels)
    assert all(0 <= label.y <= picture.height for label in picture.labels)
    assert kind in view.data()["panels"][0]["kind"]


def test_one_row_one_class_one_dimension() -> None:
    view = plot_activations([[2.0]], direction=[1.0], tokens=["x"])
    assert view.data()["projection"]["separations"] == [[]]
    assert "There is one class: nothing to separate." in view.data()["panels"][3]["note"]
    assert len(view.table().rows) == 1
    view.to_html()


def test_the_view_does_not_hold_the_activations() -> None:
    assert plot_activations(rows()).measured.sample.matrices == ()


def test_thirty_layers_of_two_thousand_rows_make_a_page_of_at_most_three_megabytes() -> None:
    r = np.random.default_rng(0)
    x = r.standard_normal((2000, 576)).astype(np.float32) * np.geomspace(30, 1, 576).astype(np.float32)
    texts = [f"The city of number {n} is in country {n * 7919 % 1000}, as everybody knows." for n in range(2000)]
    view = plot_activations(
        {n: x[r.permutation(2000)] * (n + 1) for n in range(30)},
        labels=np.arange(2000) % 2,
        texts=texts,
        direction=x[0],
    )
    assert len(view.page().to_html()) < 3_000_000


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (1234.6, "1,235"), (-0.0123, "−0.0123"), (1e6, "1e+06"), (math.nan, "–")]
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert short(value) == text
