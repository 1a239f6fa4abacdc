"""Nonlinear probes on planted data: what they find, where they look, and that padding and storage change nothing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from interp_toolkit.activations import ActivationStore, extract
from interp_toolkit.errors import FileFormatError, ProbeError
from interp_toolkit.probes import trainer
from interp_toolkit.probes.networks import AttentionPool, MaxPool
from interp_toolkit.probes.nonlinear import AttentionProbe, MaxPoolProbe, MLPProbe, SequenceProbe
from interp_toolkit.probes.sources import RowSource
from tiny import model_of, tokens

POOLED: list[type[AttentionProbe] | type[MaxPoolProbe]] = [AttentionProbe, MaxPoolProbe]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def parameters(probe: Any) -> Tensor:
    return torch.cat([p.flatten() for p in probe.network_.parameters()])


def xor(rows: int = 600, seed: int = 0) -> tuple[Tensor, Tensor]:
    x = noise(rows, 6, seed=seed)
    return x, ((x[:, 0] > 0) ^ (x[:, 1] > 0)).long()


def planted(rows: int = 600, seed: int = 0) -> tuple[list[Tensor], Tensor, Tensor]:
    """Sequences of which one token, marked by feature 0, tells the class by the sign of feature 1."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, 17, (rows,), generator=generator)
    places = (torch.rand(rows, generator=generator) * lengths).long()
    y = torch.randint(0, 2, (rows,), generator=generator)
    parts = []
    for length, place, label in zip(lengths.tolist(), places.tolist(), y.tolist(), strict=True):
        x = torch.randn(length, 8, generator=generator)
        x[:, 1] *= 2  # distractors say more about nothing
        x[place, 0] += 6
        x[place, 1] = 2.0 if label else -2.0
        parts.append(x)
    return parts, places, y


def pad(parts: list[Tensor], *, left: bool = False, extra: int = 0, fill: float = 0.0) -> tuple[Tensor, Tensor]:
    longest = max(map(len, parts)) + extra
    x = torch.full((len(parts), longest, parts[0].shape[1]), fill, dtype=parts[0].dtype)
    mask = torch.zeros(len(parts), longest, dtype=torch.bool)
    for row, part in enumerate(parts):
        at = slice(longest - len(part), longest) if left else slice(0, len(part))
        x[row, at], mask[row, at] = part, True
    return x, mask


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    documents = [{"input_ids": tokens(1, 5 + n % 20, seed=n)[0].tolist()} for n in range(60)]
    path = tmp_path_factory.mktemp("probes") / "store"
    options: dict[str, Any] = {"context_length": 32, "batch_tokens": 200, "shard_tokens": 100, "progress": False}
    return extract(model_of("llama"), documents, sites=["resid_post.0"], path=path, **options)


# --- what they find -----------------------------------------------------------------------------------------------


def test_a_perceptron_learns_exclusive_or_and_a_linear_network_does_not() -> None:
    (x, y), (new, wanted) = xor(), xor(seed=1)
    probe = MLPProbe(input_dim=6, num_classes=2, learning_rate=0.01).train(activations=x, labels=y, epochs=50)
    linear = MLPProbe(hidden=(), learning_rate=0.01, epochs=15).train(activations=x, labels=y)
    assert probe.evaluate(new, wanted) > 0.9
    assert linear.evaluate(new, wanted) < 0.65


@pytest.mark.parametrize("seed", [0, 1])
def test_attention_finds_a_planted_token_among_distractors(seed: int) -> None:
    parts, _, y = planted()
    new, places, wanted = planted(seed=1)
    probe = AttentionProbe(heads=1, learning_rate=0.05, epochs=25, seed=seed).train(activations=parts, labels=y)
    assert probe.evaluate(new, wanted) > 0.97
    mass = probe.attention(new)[:, 0].gather(1, places[:, None])
    assert float(mass.mean()) > 0.9
    last_token = MLPProbe(learning_rate=0.01, epochs=15).train(torch.stack([x[-1] for x in parts]), y)
    assert last_token.evaluate(torch.stack([x[-1] for x in new]), wanted) < 0.75


def test_a_spike_anywhere_is_detected_and_located() -> None:
    x = noise(500, 30, 8)
    y = torch.arange(500) % 2
    places = torch.randint(0, 30, (500,), generator=torch.Generator().manual_seed(1))
    x[y == 1, places[y == 1], 5] += 7
    probe = MaxPoolProbe(learning_rate=0.05, epochs=20).train(activations=x[:400], labels=y[:400])
    assert probe.evaluate(x[400:], y[400:]) > 0.97
    x[:, :, 5] = 0  # the spike is what it goes by
    assert probe.evaluate(x[400:], y[400:]) < 0.7


def test_scores_of_tokens_show_where_the_spike_is() -> None:
    x = noise(400, 20, 4)
    y = torch.arange(400) % 2
    x[y == 1, 7, 2] += 8
    probe = MaxPoolProbe(learning_rate=0.05, epochs=20).train(activations=x, labels=y)
    scores, readout = probe.token_scores(x[y == 1]), probe.network_.network.readout.weight[0]
    assert float((scores[:, readout.argmax()].argmax(-1) == 7).float().mean()) > 0.95


def test_a_window_asks_for_evidence_that_lasts() -> None:
    x = noise(800, 20, 4) * 0.3
    y = torch.arange(800) % 2
    x[y == 1, 8:12, 2] += 2
    x[y == 0, 3, 2] += 4  # one loud token means nothing
    windowed, single = (MaxPoolProbe(window=n, learning_rate=0.05, epochs=15).train(x[:600], y[:600]) for n in (4, 1))
    x[:, 3, 2] = 0.3 * noise(800, seed=3)
    assert windowed.evaluate(x[600:], y[600:]) > 0.95
    assert single.evaluate(x[600:], y[600:]) < 0.6  # it went by the loud token


@pytest.mark.parametrize("kind", [MLPProbe, *POOLED])
def test_several_classes_with_names_are_told_apart(kind: Any) -> None:
    names = np.array(["bird", "cat", "dog"])
    index = torch.arange(300) % 3
    x = noise(300, 4)
    x[torch.arange(300), index] += 6
    x = x if kind is MLPProbe else x[:, None].repeat(1, 3, 1)
    probe = kind(learning_rate=0.05, epochs=12).train(activations=x, labels=names[index].tolist())
    assert probe.classes_.tolist() == ["bird", "cat", "dog"]
    assert probe.evaluate(x, names[index]) > 0.95
    proba = probe.predict_proba(x)
    assert proba.shape == probe.decision_function(x).shape == (300, 3)
    torch.testing.assert_close(proba.sum(-1), torch.ones(300))
    assert (names[proba.argmax(-1)] == probe.predict(x)).all()


@pytest.mark.parametrize("kind", [MLPProbe, *POOLED])
def test_several_labels_at_once(kind: Any) -> None:
    x = noise(400, 5)
    table = (x[:, :3] > 0).long()
    x = x if kind is MLPProbe else x[:, None]
    probe = kind(target="labels", learning_rate=0.05, epochs=15).train(activations=x, labels=table)
    assert probe.evaluate(x, table) > 0.93
    assert torch.equal(probe.predict(x), (probe.predict_proba(x) > 0.5).long())


@pytest.mark.parametrize("kind", [MLPProbe, *POOLED])
def test_numbers_of_any_scale_are_predicted(kind: Any) -> None:
    x = noise(400, 5)
    y = torch.stack([3000 + 200 * x[:, 0], 1e-3 * x[:, 1]], 1)
    sequences = x if kind is MLPProbe else x[:, None]
    probe = kind(target="regression", learning_rate=0.05, epochs=20).train(activations=sequences, labels=y)
    assert probe.evaluate(sequences, y) > (0.95 if kind is not MaxPoolProbe else 0.9)
    assert probe.predict(sequences).shape == (400, 2)
    assert probe.history_.validation[-1] < 0.1  # in units of the variance
    one = kind(target="regression", epochs=1).train(activations=sequences, labels=y[:, 0])
    assert one.predict(sequences).shape == (400,)
    with pytest.raises(AttributeError, match="predicts numbers has no predict_proba"):
        one.predict_proba(sequences)


# --- pooling against loops ----------------------------------------------------------------------------------------


def test_attention_is_what_loops_say() -> None:
    parts = [noise(n, 5, seed=n).double() for n in (4, 1, 7)]
    pool = AttentionPool(5, 2, heads=3).double()
    with torch.no_grad():
        pool.queries.copy_(noise(3, 5, seed=9) * 3)
    x, mask = pad(parts, extra=2, fill=math.nan)
    attention, found = pool.attention(x, mask), pool(x, mask)
    for row, part in enumerate(parts):
        total = pool.bias.detach().clone()
        for head in range(3):
            raw = [math.exp(float(pool.queries[head].detach() @ token) / math.sqrt(5)) for token in part]
            for place, (weight, token) in enumerate(zip(raw, part, strict=True)):
                assert attention[row, head, place].item() == pytest.approx(weight / sum(raw), rel=1e-9)
                total += weight / sum(raw) * (pool.values[head].detach() @ token)
        torch.testing.assert_close(found[row].detach(), total)
    assert bool((attention.masked_select(~mask[:, None]) == 0).all())


@pytest.mark.parametrize("window", [1, 2, 3, 10])
@pytest.mark.parametrize("score", ["linear", "softplus"])
def test_max_pooling_is_what_loops_say_also_with_gaps_between_tokens(window: int, score: Any) -> None:
    x = noise(40, 9, 4).double()
    mask = torch.rand(40, 9, generator=torch.Generator().manual_seed(0)) < 0.5
    mask[:, 4] = True
    pool = MaxPool(4, 2, heads=3, window=window, score=score).double()
    found = pool(torch.where(mask[..., None], x, math.nan), mask)
    weight, bias = (p.detach() for p in (pool.tokens.weight, pool.tokens.bias))
    for row in range(40):
        real = [token for token, there in zip(x[row], mask[row].tolist(), strict=True) if there]
        highest = []
        for head in range(3):
            scores = [float(weight[head] @ token + bias[head]) for token in real]
            scores = [math.log1p(math.exp(s)) for s in scores] if score == "softplus" else scores
            size = min(window, len(scores))
            highest.append(max(sum(scores[n : n + size]) / size for n in range(len(scores) - size + 1)))
        wanted = pool.readout(torch.tensor(highest, dtype=torch.float64))
        torch.testing.assert_close(found[row], wanted)


@pytest.mark.parametrize(
    "pool", [AttentionPool(4, 2, heads=2), MaxPool(4, 2, heads=2), MaxPool(4, 2, heads=2, window=3, score="softplus")]
)
def test_gradients_are_those_of_finite_differences_and_finite_for_single_tokens(pool: Any) -> None:
    pool = pool.double()
    x, mask = pad([noise(n, 4, seed=n).double() for n in (1, 5, 3)], fill=math.nan)
    if isinstance(pool, AttentionPool):
        with torch.no_grad():
            pool.queries.copy_(noise(2, 4))
    names = [name for name, _ in pool.named_parameters()]

    def outputs(*values: Tensor) -> Any:
        return torch.func.functional_call(pool, dict(zip(names, values, strict=True)), (x, mask))

    assert torch.autograd.gradcheck(outputs, tuple(pool.parameters()))
    pool(x[:1], mask[:1]).sum().backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in pool.parameters())


@pytest.mark.parametrize("wrong", [{"heads": 0}, {"window": 0}])
def test_pooling_without_heads_or_window_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ProbeError, match="a head"):
        MaxPool(4, 1, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ProbeError, match="a head"):
        AttentionPool(4, 1, heads=0)


@pytest.mark.usefixtures("unchecked")
def test_a_token_score_that_there_is_not_is_refused() -> None:
    with pytest.raises(ProbeError, match="'linear' or 'softplus', not 'cubic'"):
        MaxPool(4, 1, score="cubic")  # type: ignore[arg-type]


# --- padding ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("probe", [AttentionProbe(), MaxPoolProbe(), MaxPoolProbe(window=3, token_score="softplus")])
def test_padding_changes_nothing(probe: SequenceProbe) -> None:
    parts, _, y = planted(120)
    probe.train(parts, y, epochs=3)
    wanted = probe.decision_function(parts)
    for options in ({"fill": math.nan}, {"left": True, "fill": math.inf}, {"extra": 5, "fill": -1e30}, {"left": True}):
        x, mask = pad(parts, **options)  # type: ignore[arg-type]
        np.testing.assert_allclose(probe.decision_function(x, mask), wanted, rtol=0, atol=1e-6)
        np.testing.assert_allclose(probe.decision_function(x, mask.long()), wanted, rtol=0, atol=1e-6)
    x, mask = pad(parts, fill=math.nan)
    other = torch.where(mask[..., None], x, 7.0)
    assert torch.equal(probe.decision_function(x, mask), probe.decision_function(other, mask))
    alone = np.concatenate([probe.decision_function([part]) for part in parts])
    np.testing.assert_allclose(alone, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", POOLED)
def test_padded_and_ragged_sequences_train_the_same_probe(kind: Any) -> None:
    parts, _, y = planted(120)
    found = [kind(epochs=3).train(parts, y)]
    for left in (False, True):
        x, mask = pad(parts, left=left, extra=3, fill=math.nan)
        found.append(kind(epochs=3).train(x, y, mask=mask))
    for other in found[1:]:
        torch.testing.assert_close(parameters(found[0]), parameters(other), rtol=0, atol=1e-6)


def test_what_is_said_of_tokens_is_in_their_own_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    parts, _, y = planted(60)
    attention = AttentionProbe(epochs=2).train(parts, y)
    maxima = MaxPoolProbe(epochs=2).train(parts, y)
    x, mask = pad(parts, left=True, extra=2, fill=math.nan)
    for monkeyed in (False, True):
        if monkeyed:
            monkeypatch.setattr("interp_toolkit.probes.sources._BLOCK", 1)
        weights, ragged = attention.attention(x, mask), attention.attention(parts)
        assert weights.shape == (60, 4, x.shape[1])
        torch.testing.assert_close(weights.sum(-1), torch.ones(60, 4))
        assert bool((weights.masked_select(~mask[:, None]) == 0).all())
        scores = maxima.token_scores(x, mask)
        assert bool((scores.masked_select(~mask[:, None]) == -math.inf).all())
        assert bool(torch.isfinite(scores.masked_select(mask[:, None])).all())
        for row, part in enumerate(parts):
            torch.testing.assert_close(ragged[row, :, : len(part)], weights[row][:, mask[row]])


# --- training -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("probe", [MLPProbe(dropout=0.2, epochs=2), AttentionProbe(epochs=2), MaxPoolProbe(epochs=2)])
def test_the_seed_decides_the_weights_and_global_random_numbers_are_not_touched(probe: Any) -> None:
    x, y = xor(100)
    x = x if isinstance(probe, MLPProbe) else x[:, None]
    before = torch.get_rng_state()
    first = parameters(probe.train(x, y))
    assert torch.equal(parameters(probe.train(x, y)), first)
    assert not torch.allclose(parameters(probe.set_params(seed=1).train(x, y)), first)
    assert torch.equal(torch.get_rng_state(), before)


def test_only_rows_that_are_trained_on_standardise() -> None:
    x, y = xor(200)
    probe = MLPProbe(epochs=1).train(x[:150], y[:150], validation=(x[150:] + 100, y[150:]))
    torch.testing.assert_close(probe.network_.mean, x[:150].mean(0))
    torch.testing.assert_close(probe.network_.scale, x[:150].std(0, correction=0))
    rows, held = trainer.hold_out(y, 0.15)
    inside = MLPProbe(epochs=1).train(x, y)
    assert len(held) == 30
    torch.testing.assert_close(inside.network_.mean, x[rows].mean(0))


def test_given_validation_decides_when_to_stop() -> None:
    x, y = xor(300)
    probe = MLPProbe(learning_rate=0.05, patience=3)
    probe.train(x[:200], y[:200], validation=(x[200:], 1 - y[200:]))  # what is learned makes it worse
    assert (probe.history_.stopped, probe.history_.best_epoch) == ("patience", 0)
    assert probe.n_iter_ == 4
    probe = MLPProbe(validation_share=0.0, epochs=4).train(x, y)
    assert (probe.history_.validation, probe.history_.best_epoch) == ((), 3)


def test_a_group_is_never_trained_on_and_held_out() -> None:
    x, y = xor(200)
    groups = torch.arange(200) // 4
    x[:, 5] = groups.float()
    probe = MLPProbe(epochs=1).train(x, y, groups=groups, sample_weight=torch.arange(200) >= 8)
    kept = {round(float(n), 3) for n in (probe.network_.mean[5], probe.network_.scale[5])}
    _, held = trainer.hold_out(y[8:], 0.15, groups=groups[8:].tolist())
    rest = [n for n in range(8, 200) if n - 8 not in held.tolist()]
    assert {round(float(x[rest, 5].mean()), 3), round(float(x[rest, 5].std(correction=0)), 3)} == kept
    assert not set(groups[8:][held].tolist()) & set(groups[rest].tolist())
    with pytest.raises(ProbeError, match="there are 3 for 200 rows"):
        MLPProbe().train(x, y, groups=[1, 2, 3])


def test_rows_of_weight_zero_are_as_if_they_were_not_there() -> None:
    x, y = xor(200)
    worse = torch.cat([x, noise(50, 6, seed=5) * 1000])
    labels = torch.cat([y, 1 - y[:50]])
    weights = torch.cat([torch.ones(200), torch.zeros(50)])
    plain = MLPProbe(epochs=3).train(x, y)
    weighted = MLPProbe(epochs=3).train(worse, labels, sample_weight=weights)
    assert torch.equal(parameters(plain), parameters(weighted))


def test_balanced_classes_move_the_threshold_to_where_the_rare_one_counts() -> None:
    y = (torch.arange(1000) % 20 == 0).long()
    x = noise(1000, 3) + 1.2 * y[:, None]
    found = {
        w: MLPProbe(learning_rate=0.01, epochs=12, class_weight=w).train(x, y).predict(x) for w in (None, "balanced")
    }
    assert float(found[None].float().mean()) < 0.06
    assert float(found["balanced"][y == 1].float().mean()) > 0.8
    heavy = MLPProbe(learning_rate=0.01, epochs=12, class_weight={1: 1000.0}).train(x, y)
    assert heavy.predict(x).sum() > found["balanced"].sum()
    given = MLPProbe(class_weight="balanced", epochs=1).train(x, y, validation=(x, y))
    p = torch.from_numpy(np.asarray(given.predict_proba(x))).gather(1, y[:, None])[:, 0].double()
    wanted = -(p[y == 0].log().mean() + p[y == 1].log().mean()) / 2
    assert given.history_.validation[0] == pytest.approx(float(wanted), rel=1e-5)


def test_a_store_gives_the_same_probe_as_memory(store: ActivationStore) -> None:
    view = store["resid_post.0"]
    x = view[:].clone()
    y = (x[:, 0] > x[:, 1]).long()
    memory, streamed = (MLPProbe(epochs=3).train(data, y) for data in (x, view))
    torch.testing.assert_close(parameters(memory), parameters(streamed), rtol=0, atol=1e-6)
    assert memory.history_ == streamed.history_
    assert memory.digest_ == streamed.digest_
    np.testing.assert_allclose(streamed.decision_function(view), memory.decision_function(x), atol=1e-6)
    rows = torch.arange(0, len(x), 3)
    some = MLPProbe(epochs=3).train(RowSource(view, rows), y[rows])
    assert torch.equal(parameters(some), parameters(MLPProbe(epochs=3).train(x[rows], y[rows])))
    assert some.evaluate(RowSource(view, rows), y[rows]) == some.evaluate(x[rows], y[rows])


def test_sequences_come_from_a_store_without_being_copied(store: ActivationStore) -> None:
    view = store["resid_post.0"]
    parts = [view[slice(r.start, r.stop)] for r in map(store.rows_of, range(store.num_documents))]
    y = torch.arange(len(parts)) % 2
    streamed = AttentionProbe(epochs=2).train(parts, y)
    copied = AttentionProbe(epochs=2).train([part.clone() for part in parts], y)
    assert torch.equal(parameters(streamed), parameters(copied))
    assert streamed.digest_ == copied.digest_


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_activations_come_in_any_precision(dtype: torch.dtype) -> None:
    x, y = xor(300)
    probe = MLPProbe(learning_rate=0.02, epochs=25).train(x.to(dtype), y)
    assert probe.network_.mean.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert probe.evaluate(x, y) > 0.9
    parts, _, labels = planted(100)
    for kind in POOLED:
        kind(epochs=1).train([part.to(dtype) for part in parts], labels).predict(parts)


def test_half_precision_does_not_overflow_where_it_is_measured() -> None:
    x = noise(300, 4) * 2 + 3e4
    y = (x[:, 0] > 3e4).long()
    probe = MLPProbe(epochs=1).train(x.half(), y)
    torch.testing.assert_close(probe.network_.mean, x.half().double().mean(0).float())


@pytest.mark.parametrize("kind", [MLPProbe, AttentionProbe])
def test_an_interruption_leaves_the_probe_as_it_was(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = xor(100)
    x = x if kind is MLPProbe else x[:, None]
    new, trained = kind(), kind(epochs=1).train(x, y)
    before = parameters(trained).clone()

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "_refuse_divergence", interrupt)  # after the first epoch
    for probe in (new, trained):
        with pytest.raises(KeyboardInterrupt):
            probe.train(x, y)
    assert torch.equal(parameters(trained), before)
    with pytest.raises(ProbeError, match="is not fitted yet"):
        new.predict(x)


# --- what is refused ----------------------------------------------------------------------------------------------


def bad(**changes: Any) -> dict[str, Any]:
    x, y = xor(40)
    return {"activations": x, "labels": y} | changes


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (bad(activations=torch.zeros(40, 5)), "X has 5 features, but MLPProbe is expecting 6"),
        (bad(activations=torch.zeros(40)), r"\[row, d\], but these have shape \(40,\)"),
        (bad(activations=torch.full((40, 6), math.nan)), "NaN or infinity .* in 40 of 40 rows: 0, 1"),
        (bad(labels=torch.zeros(40, dtype=torch.long)), "one class only"),
        (bad(labels=torch.zeros(39, dtype=torch.long)), "40 rows of activations but 39 labels"),
        (bad(activations=torch.zeros(1, 6), labels=[1]), "one class only"),
        (bad(mask=torch.ones(40, 6)), "an MLPProbe reads single activations"),
        (bad(sample_weight=-torch.ones(40)), "not negative"),
        (bad(epochs=0), "epochs is at least 1, not 0"),
        (bad(validation=(torch.zeros(3, 5), [0, 1, 1])), "X has 5 features, but MLPProbe is expecting 6"),
        (bad(validation=(torch.zeros(3, 6), [0, 1, 7])), "row 2 has the label 7, but the classes are 0, 1"),
        (bad(validation=(torch.zeros(3, 6),)), "not 1 things"),
    ],
)
def test_bad_data_for_a_perceptron(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ProbeError, match=says):
        MLPProbe(input_dim=6).train(**given)


def test_fewer_rows_than_classes_are_refused() -> None:
    with pytest.raises(ProbeError, match="num_classes is 5, but 3 rows have only 3 classes"):
        MLPProbe(num_classes=5).train(noise(3, 2), [0, 1, 2])


@pytest.mark.parametrize("kind", POOLED)
def test_bad_sequences(kind: Any) -> None:
    parts, _, y = planted(20)
    x, mask = pad(parts)
    probe = kind(input_dim=8)
    without = mask.clone()
    without[[4, 9]] = False
    with pytest.raises(ProbeError, match="no token that is not padding: rows 4, 9"):
        probe.train(x, y, mask=without)
    broken = x.clone()
    broken[6, 0, 3] = math.nan
    with pytest.raises(ProbeError, match="NaN or infinity in 1 of 20 rows: 6"):
        probe.train(broken, y, mask=mask)
    with pytest.raises(ProbeError, match=f"X has 5 features, but {kind.__name__} is expecting 8"):
        probe.train(x[..., :5], y, mask=mask)
    with pytest.raises(ProbeError, match="20 rows of activations but 19 labels"):
        probe.train(parts, y[:-1])
    with pytest.raises(ProbeError, match="no activations"):
        probe.train([], [])
    with pytest.raises(ProbeError, match="is not fitted yet"):
        probe.predict(parts)
    with pytest.raises(ProbeError, match="is not fitted yet"):
        (probe.attention if isinstance(probe, AttentionProbe) else probe.token_scores)(parts)
    probe.train(parts, y, epochs=1)
    with pytest.raises(ProbeError, match=f"X has 7 features, but {kind.__name__} is expecting 8"):
        probe.predict(x[..., :7], mask)


# --- on disk ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("probe", "labels"),
    [
        (MLPProbe(hidden=(8, 4), activation="gelu", class_weight={"no": 2.0}), np.array(["no", "yes"])),
        (MLPProbe(target="regression"), np.array([0.5, 7.0])),
        (AttentionProbe(heads=2), np.array([3, 1])),
        (MaxPoolProbe(window=2, token_score="softplus", device="cpu"), np.array([True, False])),
    ],
)
def test_a_loaded_probe_predicts_the_same(probe: Any, labels: Any, tmp_path: Path) -> None:
    x, index = xor(60)
    x = x if isinstance(probe, MLPProbe) else x[:, None]
    with pytest.raises(ProbeError, match="is not fitted yet"):
        probe.save(tmp_path / "none")
    probe.train(x, labels[index.numpy()], epochs=2)
    loaded = type(probe).load(probe.save(tmp_path / "probe.safetensors"))
    assert loaded.get_params() == probe.get_params()
    assert (loaded.history_, loaded.digest_) == (probe.history_, probe.digest_)
    assert (loaded.n_features_in_, loaded.n_iter_) == (6, 2)
    assert np.array_equal(np.asarray(loaded.predict(x)), np.asarray(probe.predict(x)))
    if probe.target == "classes":
        assert torch.equal(loaded.decision_function(x), probe.decision_function(x))
        assert loaded.classes_.tolist() == probe.classes_.tolist()


def test_a_file_that_is_no_such_probe_is_refused(tmp_path: Path) -> None:
    x, y = xor(60)
    path = MLPProbe(epochs=1).train(x, y).save(tmp_path / "probe")
    with pytest.raises(FileFormatError, match="holds a MLPProbe, not a AttentionProbe"):
        AttentionProbe.load(path)
    tensors = load_file(path)
    save_file(tensors, tmp_path / "bare")
    with pytest.raises(FileFormatError, match="not a probe"):
        MLPProbe.load(tmp_path / "bare")
    (tmp_path / "cut").write_bytes(path.read_bytes()[:-9])
    with pytest.raises(FileFormatError, match="cannot be read as a probe"):
        MLPProbe.load(tmp_path / "cut")
    text = path.read_bytes()
    (tmp_path / "other").write_bytes(text.replace(rb"hidden\": [64]", rb"hidden\": [63]"))
    with pytest.raises(FileFormatError, match="is damaged: RuntimeError"):
        MLPProbe.load(tmp_path / "other")


# --- scikit-learn -------------------------------------------------------------------------------------------------

EXPECTED = {
    "check_sample_weight_equivalence_on_dense_data": "batches, held-out rows and first weights depend on how many rows "
    "there are, as in every network that is trained by minibatches",
    "check_supervised_y_2d": "a column of labels is taken as it is, without scikit-learn's own kind of warning",
    "check_dtype_object": "rows of dictionaries are refused with a ProbeError, which is no TypeError",
}


@pytest.mark.usefixtures("unchecked")  # scikit-learn passes wrong types on purpose
@pytest.mark.filterwarnings("ignore:Estimator MLPProbe does not inherit")  # it is no dependency
@pytest.mark.parametrize("target", ["classes", "regression"])
def test_a_perceptron_is_an_estimator_of_scikit_learn(target: Any) -> None:
    from sklearn.utils.estimator_checks import check_estimator

    probe = MLPProbe(target=target, learning_rate=0.05, hidden=(8,), epochs=8)
    done = check_estimator(probe, expected_failed_checks=EXPECTED, on_fail=None, on_skip=None)
    assert {d["check_name"]: d["exception"] for d in done if d["status"] == "failed"} == {}
    assert sum(d["status"] == "passed" for d in done) > 50


def test_probes_work_in_pipelines_and_grids() -> None:
    from sklearn.base import clone
    from sklearn.model_selection import GridSearchCV

    x, y = xor(200)
    search = GridSearchCV(MLPProbe(learning_rate=0.05, epochs=8), {"hidden": [(), (32,)]}, cv=2)
    search.fit(x.numpy(), y.numpy())
    assert search.best_params_ == {"hidden": (32,)}
    probe = AttentionProbe(heads=3)
    assert clone(probe).get_params() == probe.get_params()
    assert repr(probe) == "AttentionProbe(heads=3)"


def test_a_trained_network_is_a_plain_module_without_gradients() -> None:
    x, y = xor(60)
    probe = MLPProbe(epochs=1).train(x, y)
    assert not any(p.requires_grad for p in probe.network_.parameters())
    torch.testing.assert_close(probe.network_(x)[:, 0], probe.decision_function(x))
    point = x[:1].clone().requires_grad_()
    probe.network_(point).sum().backward()  # for steering and attributions
    assert point.grad is not None
    assert float(point.grad.norm()) > 0
