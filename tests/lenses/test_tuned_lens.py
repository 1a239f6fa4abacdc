"""Tuned lenses: better than the logit lens on text they have not seen, and what they say recomputed by hand."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from interp_toolkit.errors import FileFormatError, InterpWarning, LensError
from interp_toolkit.lenses import Training, TunedLens, closed_form, logit_lens, tuning
from interp_toolkit.lenses.closed_form import PENALTIES, Moments, gathered
from interp_toolkit.lenses.unembedding import Unembedding
from interp_toolkit.model import run
from interp_toolkit.model.verify import verified
from tiny import model_of, tiny_model, tokens

IDS = [3, 1, 4, 1, 5, 9, 2, 6]
TEXTS = tokens(40, 12)
SHORT = Training(epochs=4, length=8, batch_tokens=96)


@functools.cache
def lens_of(name: str) -> TunedLens:
    return TunedLens.train(model_of(name), TEXTS, training=SHORT)


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "qwen3_moe"])
def test_it_is_closer_to_the_model_than_the_logit_lens_on_held_out_text(name: str) -> None:
    lens = lens_of(name)
    assert lens.kl.shape == lens.kl_plain.shape == (6, model_of(name).config.num_hidden_layers)
    assert (lens.kl.mean(0) < 0.95 * lens.kl_plain.mean(0)).all()
    assert lens.about["texts"] == {"trained on": 28, "stopped by": 6, "judged on": 6}


def test_what_is_said_of_held_out_text_is_what_reading_it_gives() -> None:
    model, lens = model_of("gpt2"), lens_of("gpt2")
    pieces = [row.split(8) for row in TEXTS]
    for told, read in ((lens.kl, lens.read), (lens.kl_plain, functools.partial(logit_lens, model))):
        every = torch.stack(
            [torch.cat([read(part.tolist()).kl[:-1] for part in text], dim=1).mean(1) for text in pieces]
        )
        for row in told:
            assert (every - row).abs().amax(-1).min() < 1e-5


def test_a_reading_is_the_translated_stream_through_the_models_own_head() -> None:
    model, lens = model_of("gpt2"), lens_of("gpt2")
    found = lens.read(IDS, (7, 8), top=3)
    with torch.no_grad():
        out = model(torch.tensor([IDS]), output_hidden_states=True)
        for depth in range(3):
            hidden = out.hidden_states[depth][0]
            moved = hidden + hidden @ lens.weight[depth].T + lens.bias[depth]
            logits = model.lm_head(model.transformer.ln_f(moved))
            best = logits.softmax(-1).topk(3)
            torch.testing.assert_close(found.top_probabilities[depth], best.values, atol=1e-5, rtol=1e-4)
            assert found.difference is not None
            torch.testing.assert_close(found.difference[depth], logits[:, 7] - logits[:, 8], atol=1e-4, rtol=1e-4)
    plain = logit_lens(model, IDS, (7, 8), top=3)
    torch.testing.assert_close(found.top_probabilities[-1], plain.top_probabilities[-1])
    assert found.kl[-1].abs().max() < 1e-6
    assert "Tuned lens" in found.plot().title
    assert found.positions == tuple(range(8))


def test_slopes_go_through_the_models_own_end() -> None:
    for name in ("gemma2", "granite"):
        model = model_of(name, dtype=torch.float64)
        end = Unembedding(verified(model))
        generator = torch.Generator().manual_seed(0)
        stream = torch.randn(3, model.config.hidden_size, dtype=torch.float64, generator=generator, requires_grad=True)
        step = torch.randn(3, model.config.hidden_size, dtype=torch.float64, generator=generator)
        (slope,) = torch.autograd.grad(end.logits(stream, grad=True)[:, 5].sum(), stream)

        above, below = (end.logits(stream.detach() + size * step)[:, 5].sum() for size in (1e-2, -1e-2))
        # Norms work in float32, so a difference is no better than that.
        assert float((above - below) / 2e-2) == pytest.approx(float((slope * step).sum()), rel=1e-3, abs=1e-4)


def test_the_model_is_as_it_was() -> None:
    model = tiny_model("llama")
    before = {name: p.clone() for name, p in model.named_parameters()}
    TunedLens.train(model, TEXTS[:8], training=Training(epochs=1))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None


def test_the_same_seed_gives_the_same_lens_also_without_room_for_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    model, settings = model_of("llama"), Training(epochs=2, seed=3)
    first = TunedLens.train(model, TEXTS[:20], training=settings)
    torch.manual_seed(99)
    monkeypatch.setattr(tuning, "_KEPT", 0)
    second = TunedLens.train(model, TEXTS[:20].tolist(), training=settings)
    for name in ("weight", "bias", "kl", "kl_plain"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    monkeypatch.setattr(tuning, "_AT_ONCE", 99 * 5)
    small = TunedLens.train(model, TEXTS[:20], training=settings)
    torch.testing.assert_close(small.kl, first.kl, atol=1e-3, rtol=1e-2)
    other = TunedLens.train(model, TEXTS[:20], training=Training(epochs=2, seed=4))
    assert not torch.equal(other.weight, first.weight)


def streams_of(model: Any, texts: torch.Tensor) -> list[np.ndarray]:
    """The residual stream of every depth and the end, in float64: one row for each token."""
    from interp_toolkit.lenses.logit_lens import depth_sites

    sites = depth_sites(model.config.num_hidden_layers)
    return [run(model, texts, read=site)[site].double().flatten(0, 1).numpy() for site in sites]


@pytest.mark.parametrize("penalty", PENALTIES)
def test_the_closed_form_is_ridge_regression(penalty: float) -> None:
    *streams, end = streams_of(model_of("gpt2"), TEXTS)
    mean, spread = (torch.from_numpy(np.stack([f(x, axis=0) for x in streams])) for f in (np.mean, np.std))
    pieces = torch.from_numpy(np.stack([*streams, end])).split(100, dim=1)  # in parts of different lengths
    found = gathered(iter(pieces), [0, 2], mean, spread).ridge(penalty)
    for depth, weight in zip((0, 2), found, strict=True):
        scaled = (streams[depth] - mean[depth].numpy()) / spread[depth].numpy()
        theirs = Ridge(alpha=penalty * len(scaled)).fit(scaled, end - streams[depth])
        np.testing.assert_allclose(weight.numpy(), theirs.coef_, atol=1e-10, rtol=1e-8)


def test_without_epochs_the_maps_are_ridge_regressions_on_the_texts_for_training() -> None:
    model, settings = model_of("gpt2"), Training(epochs=0, length=8)
    lens = TunedLens.train(model, TEXTS, training=settings)
    assert lens.about["epochs"] == [0, 0, 0]
    trains, _, judges = tuning._parts(list(TEXTS), settings)
    pieces = [piece for n in trains for piece in TEXTS[n].split(8)]
    *streams, end = (
        np.concatenate(parts) for parts in zip(*(streams_of(model, piece[None]) for piece in pieces), strict=True)
    )
    for depth, (x, penalty) in enumerate(zip(streams, lens.about["penalties"], strict=True)):
        scaled = (x - x.mean(0)) / x.std(0)
        theirs = Ridge(alpha=penalty * len(x)).fit(scaled, end - x)
        expected = x + theirs.predict(scaled)
        found = lens.translated(torch.from_numpy(np.stack(streams)))[depth].numpy()
        np.testing.assert_allclose(found, expected, atol=1e-3 * float(np.abs(expected).max()))
    # Its divergence on the texts that judge is that of the model's own readings, and smaller than the logit lens's.
    every = [torch.cat([lens.read(p.tolist()).kl[:-1] for p in TEXTS[n].split(8)], dim=1).mean(1) for n in judges]
    torch.testing.assert_close(lens.kl, torch.stack(every), atol=1e-4, rtol=1e-3)
    assert (lens.kl.mean(0) < lens.kl_plain.mean(0)).all()


def test_training_goes_on_from_the_closed_form_and_makes_it_better() -> None:
    model, texts = model_of("gpt2"), tokens(60, 12)
    start, trained = (
        TunedLens.train(model, texts, training=Training(epochs=n, length=12, learning_rate=0.1)) for n in (0, 4)
    )
    assert trained.about["penalties"] == start.about["penalties"]
    assert max(trained.about["epochs"]) > 0
    assert trained.kl.mean() < start.kl.mean()


def test_a_depth_that_never_gets_better_stays_as_it_began() -> None:
    model = model_of("llama")
    start = TunedLens.train(model, TEXTS[:12], training=Training(epochs=0))
    lens = TunedLens.train(model, TEXTS[:12], training=Training(epochs=9, learning_rate=1e4, patience=1))
    assert lens.about["epochs"] == [0, 0, 0]
    assert torch.equal(lens.weight, start.weight)
    assert torch.equal(lens.kl, start.kl)


def test_a_regression_that_is_worse_than_nothing_leaves_the_logit_lens(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama")
    honest = Moments.ridge
    monkeypatch.setattr(Moments, "ridge", lambda self, penalty: -99 * honest(self, penalty))
    lens = TunedLens.train(model, TEXTS[:12], training=Training(epochs=0))
    assert lens.about["penalties"] == [None, None, None]
    assert not lens.weight.any()
    torch.testing.assert_close(lens.kl, lens.kl_plain)
    torch.testing.assert_close(lens.read(IDS).top_probabilities, logit_lens(model, IDS).top_probabilities)


def test_moments_that_do_not_fit_together_and_fewer_tokens_to_choose_on_change_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, settings = model_of("llama"), Training(epochs=0)
    first = TunedLens.train(model, TEXTS[:20], training=settings)
    monkeypatch.setattr(closed_form, "_HELD", 1)
    second = TunedLens.train(model, TEXTS[:20], training=settings)
    torch.testing.assert_close(second.weight, first.weight)
    monkeypatch.setattr(tuning, "_CHOOSING", 5)
    third = TunedLens.train(model, TEXTS[:20], training=settings)
    torch.testing.assert_close(third.kl_plain, first.kl_plain)
    assert all(0.1 < float(a / b) < 10 for a, b in zip(third.kl.mean(0), first.kl.mean(0), strict=True))


def test_a_lens_is_saved_and_loaded_for_its_model(tmp_path: Path) -> None:
    lens, model = lens_of("gpt2"), model_of("gpt2")
    again = TunedLens.load(lens.save(tmp_path / "lens.safetensors"), model)
    for name in ("weight", "bias", "kl", "kl_plain"):
        assert torch.equal(getattr(again, name), getattr(lens, name))
    assert (again.about, again.provenance) == (dict(lens.about), lens.provenance)
    torch.testing.assert_close(again.read(IDS).kl, lens.read(IDS).kl)
    with pytest.raises(LensError, match=r"maps of shape \(3, 32, 32\); this model .* needs \(4, 40, 40\)"):
        TunedLens.load(tmp_path / "lens.safetensors", model_of("gemma2"))
    moved = replace(lens, provenance=replace(lens.provenance, model=f"someone/{lens.provenance.model}"))
    TunedLens.load(moved.save(tmp_path / "moved.safetensors"), model)  # a folder goes by the hub's name, too
    with pytest.warns(InterpWarning, match="was trained for GPT2LMHeadModel, and this model is LlamaForCausalLM"):
        TunedLens.load(tmp_path / "lens.safetensors", model_of("llama"))
    (tmp_path / "other").write_bytes(b"no tensors")
    with pytest.raises(FileFormatError, match="cannot be read as a tuned lens"):
        TunedLens.load(tmp_path / "other", model)
    with pytest.raises(FileNotFoundError):
        TunedLens.load(tmp_path / "nothing", model)


def test_a_lens_can_be_looked_at() -> None:
    lens = lens_of("gpt2")
    assert "it is smaller at 3 of 3 depths" in lens.summary()
    frame = lens.to_dataframe()
    assert frame["depth"].tolist() == ["embed", "0", "1"]
    assert (frame["kl_low"] <= frame["kl"]).all()
    assert [series.name for series in lens.plot().series] == ["tuned lens", "logit lens"]
    assert "<iframe" in lens._repr_html_()


def test_what_cannot_be_trained_is_refused(unchecked: None) -> None:
    model = model_of("gpt2")
    with pytest.raises(LensError, match="2 are too few"):
        TunedLens.train(model, [[1, 2], [3, 4]])
    texts: Any
    for texts in ("one text", [1, 2, 3], [], torch.tensor([1, 2])):
        with pytest.raises(LensError, match="several texts"):
            TunedLens.train(model, texts)
    with pytest.raises(LensError, match="patience is at least 1, not 0"):
        Training(patience=0)
    with pytest.raises(LensError, match="epochs are 0 or more, not -1"):
        Training(epochs=-1)
    with pytest.raises(LensError, match="at least two tokens"):
        Training(length=1)
    with pytest.raises(LensError, match="held_out is a share"):
        Training(held_out=1.0)
