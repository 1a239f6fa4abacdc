"""Attention as data: read in every form, checked, scored, quantised; still pictures and files."""

from __future__ import annotations

import base64
import math
import re
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp_toolkit.visualization.attention import AttentionView, plot_attention
from interp_toolkit.visualization.attention_pictures import depth, pooled
from interp_toolkit.visualization.bitmaps import Bitmap
from interp_toolkit.visualization.patterns import STEPS, Matrix, over, quantised, repeats, scores_of

FRANCE = ["The", " capital", " of", " France", " is"]
HOSTILE = "</script><img src=x onerror=alert(1)>"


def pattern(*shape: int, sharp: float = 2.0, seed: int = 0) -> Matrix:
    """Causal softmax of noise."""
    length = shape[-1]
    noise = np.random.default_rng(seed).normal(size=shape) * sharp
    scores = np.where(np.tril(np.ones((length, length))) > 0, noise, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True), dtype=np.float32)


def unpacked(text: str, length: int) -> Matrix:
    """What a page reads of a causal pattern."""
    values = iter(zlib.decompress(base64.b64decode(text)))
    made = np.zeros((length, length), dtype=np.float32)
    for row in range(length):
        for column in range(row + 1):
            made[row, column] = (next(values) / STEPS) ** 2
    assert next(values, None) is None
    return made


def labels(view: AttentionView) -> list[str]:
    return [head.label for head in view.heads]


# --- forms --------------------------------------------------------------------------------------------------------


def test_one_matrix_is_one_head_as_promised() -> None:
    view = plot_attention(torch.from_numpy(pattern(5, 5)), tokens=FRANCE)
    assert (labels(view), view.tokens, view.causal, view.title) == ([""], tuple(FRANCE), True, "Attention")
    assert view.scores == {}
    assert view.data()["tokens"] == FRANCE


def test_every_form_of_the_same_pattern_gives_the_same_heads() -> None:
    whole = pattern(2, 3, 4, 4)
    forms: list[Any] = [
        whole,
        torch.from_numpy(whole),
        torch.from_numpy(whole).requires_grad_(),
        whole.tolist(),
        whole[:, None],
        [torch.from_numpy(layer) for layer in whole],
        tuple(torch.from_numpy(layer)[None] for layer in whole),
        dict(enumerate(whole)),
        {(layer, head): whole[layer, head] for layer in range(2) for head in range(3)},
    ]
    for form in forms:
        view = plot_attention(form)
        assert labels(view) == ["L0H0", "L0H1", "L0H2", "L1H0", "L1H1", "L1H2"]
        assert np.array_equal(np.stack(view.weights), whole.reshape(6, 4, 4))
    assert plot_attention(whole).tokens == ("0", "1", "2", "3")
    assert labels(plot_attention(whole[0])) == ["H0", "H1", "H2"]


def test_half_precision_tensors_are_read() -> None:
    for kind in (torch.bfloat16, torch.float16):
        exact = pattern(3, 40, 40)
        view = plot_attention(torch.from_numpy(exact).to(kind))
        assert np.abs(np.stack(view.weights) - exact).max() < 0.005


def test_layers_and_heads_are_chosen_by_number() -> None:
    whole = pattern(4, 3, 5, 5)
    assert labels(plot_attention(whole, layer=2)) == ["L2H0", "L2H1", "L2H2"]
    assert labels(plot_attention(whole, layer=[3, 1], head=0)) == ["L1H0", "L3H0"]
    assert labels(plot_attention(whole, layer=-1, head=[-1, 0])) == ["L3H0", "L3H2"]
    one = plot_attention(whole, layer=2, head=1)
    assert (labels(one), one.title) == (["L2H1"], "Attention of L2H1")
    assert np.array_equal(one.weights[0], whole[2, 1])
    assert labels(plot_attention({7: whole[0], 9: whole[1]}, layer=9, head=2)) == ["L9H2"]
    # A pattern that does not say which layer or head it is of is told
    assert labels(plot_attention(whole[0], layer=6)) == ["L6H0", "L6H1", "L6H2"]
    assert labels(plot_attention(whole[0, 0], layer=6, head=11)) == ["L6H11"]


def test_heads_that_share_a_key_value_head_say_so() -> None:
    assert labels(plot_attention(pattern(1, 6, 3, 3), groups=2))[1:4] == ["L0H1 · kv0", "L0H2 · kv0", "L0H3 · kv1"]
    assert labels(plot_attention(pattern(1, 6, 3, 3), groups=2, head=5)) == ["L0H5 · kv1"]
    assert labels(plot_attention(pattern(3, 3, 3), groups=[0, 0, 7])) == ["H0 · kv0", "H1 · kv0", "H2 · kv7"]


class FakeRun:
    """What `Activations` looks like from here."""

    def __init__(self, tokens: Any = None, missing: int = -1, values: bool = True) -> None:
        self.num_layers = 3
        self.tokens = tokens or FRANCE
        self.missing = missing
        self.with_values = values
        self.asked: list[int] = []

    def attention_pattern(self, layer: int) -> torch.Tensor:
        self.asked.append(layer)
        if layer == self.missing:
            raise ValueError("layer 1 has no attention")
        return torch.from_numpy(pattern(4, 5, 5, seed=layer))

    def values(self, layer: int) -> torch.Tensor:
        if not self.with_values:
            raise ValueError("v was not read")
        return torch.arange(5 * 2 * 3).reshape(5, 2, 3).float() + layer


def test_activations_bring_tokens_value_norms_and_groups() -> None:
    view = plot_attention(FakeRun())
    assert view.tokens == tuple(FRANCE)
    assert labels(view)[:4] == ["L0H0 · kv0", "L0H1 · kv0", "L0H2 · kv1", "L0H3 · kv1"]
    expected = [math.sqrt(sum((6 * pos + 3 + d + 2) ** 2 for d in range(3))) for pos in range(5)]
    assert view.norms[2 * 4 + 3] == pytest.approx(expected)
    assert plot_attention(FakeRun(values=False)).norms == ()


def test_layers_without_attention_are_left_out_and_unasked_ones_not_computed() -> None:
    assert {head.layer for head in plot_attention(FakeRun(missing=1)).heads} == {0, 2}
    run = FakeRun()
    plot_attention(run, layer=2, head=1)
    assert run.asked == [2]
    with pytest.raises(ValueError, match="no attention pattern can be shown: layer 1 has no attention"):
        plot_attention(FakeRun(missing=1), layer=1)


def test_the_demo_model_is_shown_from_its_activations(demo: Any) -> None:
    from interp_toolkit import ActivationCache

    model, _ = demo
    clean = ActivationCache(model).run("The capital of France is")
    corrupt = ActivationCache(model).run("The capital of Italy is")
    view = plot_attention(clean, layer=[0, 11], corrupt=corrupt)
    assert view.corrupt_tokens[3] == " Italy"
    assert (len(view.heads), view.causal) == (18, True)
    assert view.heads[-1].label == "L11H8 · kv2"
    assert torch.equal(torch.from_numpy(view.weights[10]), clean.attention_pattern(11, 1))
    norm = clean.values(11)[:, 0].norm(dim=-1)
    assert view.norms[10] == pytest.approx(norm.numpy())


# --- what is refused ----------------------------------------------------------------------------------------------

SUMS = np.array([[1.0, 0.0], [1.5, 0.5]])


@pytest.mark.parametrize(
    ("given_pattern", "options", "message"),
    [
        (pattern(5, 5), {"tokens": ["a", "b"]}, "the pattern is over 5 positions, but there are 2 tokens"),
        (pattern(3, 5, 5), {"tokens": ["a"]}, "the pattern of H0 is over 5 positions, but there are 1 tokens"),
        (pattern(5, 5), {"tokens": "The capital"}, "tokens should be a list of texts"),
        (pattern(5, 5), {"tokens": [1, 2, 3, 4, 5]}, "tokens should be a list of texts"),
        (SUMS, {}, r"weights of row 1 of the pattern sum to 2, .* not transposed"),
        (pattern(3, 4, 4).swapaxes(1, 2), {}, "rows are queries, columns keys"),
        (np.array([[1.0, 0.0], [np.nan, 0.5]]), {}, "NaN or infinity in row 1: give the pattern after softmax"),
        (np.array([[1.0, -3.2], [0.5, 0.5]]), {}, r"negative weights, down to -3\.2: scores\?"),
        (pattern(4, 4)[1:], {}, r"has the shape \(3, 4\), .* keeps all positions"),
        (pattern(2, 2, 3, 4, 4), {}, r"shape \(2, 2, 3, 4, 4\) has 5 axes; .* take one from a batch first"),
        (np.ones(3), {}, r"shape \(3,\) has 1 axes; it may be \[pos, pos\]"),
        ({}, {}, "has no heads: there is nothing to show"),
        (np.zeros((0, 2, 3, 3)), {}, "has no heads: there is nothing to show"),
        (np.zeros((0, 0)), {}, r"has the shape \(0, 0\)"),
        ({"five": pattern(2, 3, 3)}, {}, r"of 'five' has the shape \(2, 3, 3\); a layer such as 5"),
        ({5: pattern(3, 3)}, {}, r"of 5 has the shape \(3, 3\); a layer such as 5 should have \[head, pos, pos\]"),
        ([[1.0], [0.5, 0.5]], {}, "a list cannot be read as an array of numbers"),
        (pattern(2, 2, 3, 3), {"layer": 40}, "layer=40 was asked for, but the pattern has layers 0 to 1"),
        (pattern(2, 2, 3, 3), {"head": []}, r"head=\[\] was asked for, but the pattern has heads 0 to 1"),
        ({3: pattern(2, 3, 3), 9: pattern(2, 3, 3)}, {"layer": 4}, r"the pattern has layers \[3, 9\]"),
        (pattern(2, 3, 3), {"layer": [1, 2]}, "the pattern has no axis of layers"),
        (pattern(2, 3, 3), {"groups": 3}, "2 heads cannot share 3 key/value heads evenly"),
        (pattern(2, 3, 3), {"groups": [0]}, "names the key/value heads of 1 heads, but the pattern has 2"),
        (pattern(3, 3), {"groups": 1}, "give head= as well"),
        (pattern(3, 3), {"corrupt_tokens": ["a", "b", "c"]}, "but no corrupt pattern"),
        (pattern(3, 3), {"corrupt": pattern(4, 4)}, "the corrupt pattern is over 4 positions, but there are 3 tokens"),
        (
            pattern(3, 3),
            {"corrupt": pattern(2, 3, 3)},
            "the corrupt pattern has no one matrix, which the clean one has",
        ),
        (
            pattern(3, 3),
            {"corrupt": pattern(3, 3), "corrupt_tokens": ["a"]},
            "clean prompt has 3 tokens and the corrupt one 1",
        ),
        (pattern(2, 3, 3), {"value_norms": np.ones((1, 3))}, "value_norms lacks head 1"),
        (pattern(3, 3), {"value_norms": -np.ones(3)}, "should be 3 numbers that are not negative"),
        (pattern(2, 3, 3), {"scores": {"effect": [1.0]}}, r"scores\['effect'\] lacks head 1"),
        (pattern(2, 3, 3), {"scores": {"effect": [1.0, math.nan]}}, r"scores\['effect'\] of head 1 should be a number"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_does_not_fit_is_refused_with_what_would(
    given_pattern: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        plot_attention(given_pattern, **options)


def test_several_prompts_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"there are 2 prompts; .* activations.of_prompt\(0\)"):
        plot_attention(FakeRun(tokens=[FRANCE, FRANCE]))


def test_rows_of_padding_and_rows_that_leave_weight_to_a_sink_are_fine() -> None:
    padded = pattern(6, 6) * 0.7
    padded[:2] = 0
    view = plot_attention([padded, padded])
    assert view.scores["entropy"][0] is not None
    assert plot_attention(np.zeros((1, 3, 3))).weights[0].sum() == 0


# --- numbers ------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.floats(0.1, 8), st.integers(0, 99))
def test_bytes_give_weights_back_within_what_is_stated(length: int, sharp: float, seed: int) -> None:
    exact = pattern(length, length, sharp=sharp, seed=seed)
    view = plot_attention(exact)
    back = unpacked(view.data()["patterns"][0], length)
    assert (np.abs(back - exact) <= np.sqrt(exact) / STEPS + 1 / (4 * STEPS**2) + 1e-7).all()
    assert ((back > 0) >= (exact > 6.3e-6)).all()


def test_patterns_that_look_ahead_are_sent_whole() -> None:
    both = np.full((4, 4), 0.25, dtype=np.float32)
    view = plot_attention(both)
    assert not view.causal
    assert len(zlib.decompress(base64.b64decode(view.data()["patterns"][0]))) == 16
    assert quantised(both, causal=False).tolist() == [STEPS // 2] * 16


def test_scores_are_those_of_plain_loops() -> None:
    tokens = list("abcabdacba")
    length = len(tokens)
    x = pattern(length, length, seed=3)
    entropy = sum(-sum(float(p) * math.log2(p) for p in row if p > 0) for row in x) / length
    before = sum(float(x[i, i - 1]) for i in range(1, length)) / (length - 1)
    first = sum(float(x[i, 0]) for i in range(1, length)) / (length - 1)
    same, after = [], []
    for i in range(length):
        places = [j for j in range(i) if tokens[j] == tokens[i]]
        if places:
            same.append(sum(float(x[i, j]) for j in places))
        if [j for j in places if j + 1 < i]:
            after.append(sum(float(x[i, j + 1]) for j in places if j + 1 < i))
    found = scores_of([x], tokens)
    assert found["entropy"][0] == pytest.approx(entropy, rel=1e-5)
    assert found["previous token"][0] == pytest.approx(before, rel=1e-5)
    assert found["first token"][0] == pytest.approx(first, rel=1e-5)
    assert found["same token"][0] == pytest.approx(sum(same) / len(same), rel=1e-5)
    assert found["induction"][0] == pytest.approx(sum(after) / len(after), rel=1e-5)


def test_what_cannot_be_scored_is_none() -> None:
    found = scores_of([pattern(4, 4)], list("abcd"))
    assert (found["same token"], found["induction"]) == ([None], [None])
    assert scores_of([pattern(1, 1)], ["a"])["previous token"] == [None]
    assert over(pattern(4, 4), repeats(["a", "a", "b", "c"], 1)) is None  # what follows the first a is the second


def test_tokens_that_look_alike_to_numpy_are_different() -> None:
    assert not repeats(["a", "a\0", "\ud800", "\ud801"], 0).any()


def test_scores_of_ones_own_are_sent_along_for_the_heads_that_are_shown() -> None:
    view = plot_attention(pattern(2, 3, 4, 4), layer=1, scores={"effect": [[0, 1, 2], [3, 4, 5]]})
    assert view.scores["effect"] == [3.0, 4.0, 5.0]
    assert view.data()["scores"][-1] == {"name": "effect", "values": [3.0, 4.0, 5.0]}


def test_value_norms_are_shares_of_the_largest_of_a_head() -> None:
    view = plot_attention(pattern(2, 3, 3), value_norms=[[1, 2, 4], [0, 0, 0]])
    packed = view.data()["norms"]
    values = np.frombuffer(zlib.decompress(base64.b64decode(packed["data"])), dtype="<u2").reshape(packed["shape"])
    assert values.tolist() == [[16384, 32768, 65535], [0, 0, 0]]


# --- pages and pictures -------------------------------------------------------------------------------------------


def test_a_page_of_a_small_model_is_small() -> None:
    tokens = [f" token{n % 40}" for n in range(128)]
    for sharp in (1.0, 2.0, 4.0):
        view = plot_attention(pattern(12, 12, 128, 128, sharp=sharp), tokens, groups=4)
        assert len(view.page().to_html()) <= 1.3e6


def test_nothing_of_a_token_or_title_is_markup() -> None:
    tokens = [HOSTILE, "<!--<script>", "\u2028", "\0", "\ud800", "\u202eabc", "", "x" * 200]
    view = plot_attention(
        pattern(2, 8, 8), tokens, title=HOSTILE, corrupt=pattern(2, 8, 8), corrupt_tokens=tokens[::-1]
    )
    for made in (view.to_html(), view.to_svg(), plot_attention(pattern(8, 8), tokens).to_html()):
        assert "<img" not in made
        assert "<!--" not in made
        made.encode()  # no lone surrogates


def test_still_pictures_have_every_token_and_the_weights_on_hover() -> None:
    svg = plot_attention(pattern(5, 5), FRANCE).to_svg()
    for token in FRANCE:
        assert svg.count(f">{token.strip()}<") >= 2
    assert len(re.findall('<g class="cell">', svg)) == 15
    assert "from  is (4)\nto The (0)\n0." in svg
    compared = plot_attention(
        pattern(5, 5), FRANCE, corrupt=pattern(5, 5, seed=1), corrupt_tokens=[*FRANCE[:3], " Italy", " is"]
    )
    assert len(re.findall('<g class="cell">', compared.to_svg())) == 45
    assert " France / Italy" in compared.to_svg()


@pytest.mark.parametrize("suffix", [".html", ".svg", ".png", ".pdf"])
def test_output_writes_a_file_and_gives_the_view(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"attention{suffix}"
    for weights in (pattern(5, 5), pattern(60, 60), pattern(2, 3, 5, 5)):
        assert isinstance(plot_attention(weights, output=path), AttentionView)
        start = {".html": b"<!DOCTYPE", ".svg": b"<svg", ".png": b"\x89PNG", ".pdf": b"%PDF"}[suffix]
        assert path.read_bytes().startswith(start)
        path.unlink()


def test_the_grid_of_heads_is_one_image_with_a_light_and_a_dark_form() -> None:
    pictures = plot_attention(pattern(2, 3, 5, 5)).picture()
    (image,) = pictures.pixels
    assert isinstance(image, Bitmap)
    assert image.shares.shape == (2 * 5 + 1, 3 * 5 + 2)
    assert np.isnan(image.shares[0, 1])  # no token looks ahead
    svg = image.to_svg()
    assert svg.count('href="data:image/png;base64,') == 2
    assert {label.text for label in pictures.labels} >= {"L0", "L1", "H0", "H1", "H2"}


def test_bitmaps_are_what_an_image_library_reads() -> None:
    import io

    from PIL import Image

    shares = np.array([[0.0, 1.0], [-1.0, np.nan]], dtype=np.float32)
    bitmap = Bitmap(x=0, y=0, width=2, height=2, shares=shares)
    pixels = np.asarray(Image.open(io.BytesIO(bitmap.png())).convert("RGBA"))
    assert pixels[0].tolist() == [[247, 247, 247, 255], [33, 102, 172, 255]]
    assert pixels[1, 0].tolist() == [199, 92, 18, 255]
    assert pixels[1, 1, 3] == 0


def test_cutting_down_keeps_what_is_furthest_from_zero() -> None:
    x = np.random.default_rng(0).normal(size=(10, 10)).astype(np.float32)
    small = pooled(x, 3)
    cuts = [0, 3, 6, 10]
    for i in range(3):
        for j in range(3):
            block = x[cuts[i] : cuts[i + 1], cuts[j] : cuts[j + 1]]
            assert small[i, j] == block.flat[np.abs(block).argmax()]
    assert depth(np.array([[-0.25]], dtype=np.float32)).tolist() == [[-0.5]]


def test_tables_name_the_largest_sources_and_the_scores() -> None:
    table = plot_attention([[1.0, 0.0], [0.25, 0.75]], ["a", "b"]).table()
    assert list(map(list, table.rows)) == [["0", "a", "a (0) 1.00", "", ""], ["1", "b", "b (1) 0.75", "a (0) 0.25", ""]]
    scores = plot_attention(pattern(2, 3, 4, 4)).table()
    assert scores.headers[:2] == ["head", "entropy"]
    assert [row[0] for row in scores.rows] == ["L0H0", "L0H1", "L0H2", "L1H0", "L1H1", "L1H2"]
    assert scores.rows[0][-1] == "n/a"


def test_anything_that_has_patterns_and_tokens_will_do() -> None:
    run = SimpleNamespace(
        num_layers=1,
        tokens=["a", "b"],
        attention_pattern=lambda layer: pattern(1, 2, 2),
        values=lambda layer: np.ones((2, 1, 3)),
    )
    assert labels(plot_attention(run)) == ["L0H0"]
