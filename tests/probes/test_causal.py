"""Effects of directions and erasers are those of one run at a time, and those that were planted."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest
import torch
from torch import Tensor

from interp_toolkit.errors import MetricError, PositionError, ProbeError, TokenError
from interp_toolkit.model import Edit, encode, run
from interp_toolkit.probes.causal import AmnesicEffect, DirectionEffect, amnesic, direction_effect
from interp_toolkit.probes.erasure import Eraser, leace, projection, random_directions
from interp_toolkit.statistics import bootstrap_mean
from tiny import VOCAB, model_of, padded, tiny_model, tokens

FAMILIES = ["gpt2", "llama"]  # the second has grouped queries
LENGTHS = [6, 9, 4, 9]
IDS, MASK = padded(LENGTHS)
PROMPTS = [IDS[n][MASK[n].bool()].tolist() for n in range(len(LENGTHS))]
PAIRS: list[Any] = [(5, 6), (7, 8), (9, 5), (20, 30)]
SITE = "resid_post.1"


def vector(seed: int = 0, width: int = 32) -> Tensor:
    return torch.randn(width, generator=torch.Generator().manual_seed(seed))


def unit(x: Tensor) -> Tensor:
    return x.double() / x.double().norm()


def alone(model: Any, n: int, edit: Edit | None) -> Tensor:
    """Next-token logits of one prompt in a run of its own."""
    logits = run(model, PROMPTS[n], edits=[] if edit is None else [edit], logits="last").logits
    return logits[0, -1].double()


def kl(first: Tensor, second: Tensor) -> float:
    p, q = first.softmax(-1), second.softmax(-1)
    return float((p * (p.log() - q.log())).sum())


@functools.cache
def steered(family: str, positions: str) -> DirectionEffect:
    return direction_effect(
        model_of(family),
        PROMPTS,
        vector(),
        SITE,
        answers=PAIRS,
        pattern=vector(1),
        coefficients=(-1.0, 0.0, 2.0),
        positions=positions,
        random=3,
        seed=5,
    )


# --- against one run at a time ------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", ["last", "all"])
@pytest.mark.parametrize("family", FAMILIES)
def test_many_rows_in_a_pass_give_what_one_run_at_a_time_gives(family: str, positions: str) -> None:
    model, found = model_of(family), steered(family, positions)
    states = [run(model, row, read=SITE)[SITE][0] for row in PROMPTS]
    states = [x[-1:] if positions == "last" else x for x in states]
    length = float(torch.cat(states).norm(dim=-1).median())
    assert found.unit == pytest.approx(length, rel=1e-5)
    drawn = random_directions(3, torch.zeros(1, 32), seed=5)
    directions = [unit(vector()), unit(vector(1)), *drawn]
    assert found.names == ("direction", "pattern", "random 1", "random 2", "random 3")
    for n, (yes, no) in enumerate(PAIRS):
        clean = alone(model, n, None)
        assert float(found.before[n, 0]) == pytest.approx(float(clean[yes] - clean[no]), abs=1e-4)
        for d, direction in enumerate(directions):
            for c, coefficient in enumerate(found.coefficients):
                logits = alone(model, n, Edit.add(SITE, direction * length * coefficient, positions=positions))
                change = (logits[yes] - logits[no]) - (clean[yes] - clean[no])
                assert float(found.change[n, d, c, 0]) == pytest.approx(float(change), abs=1e-3)
                assert float(found.change[n, d, c, 1]) == pytest.approx(kl(clean, logits), abs=1e-4)
    assert float(found.change[:, :, 1].abs().max()) < 1e-4  # a coefficient of 0
    assert float(found.change[:, :, 2, 0].abs().max()) > 0.1


@pytest.mark.parametrize("choice", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_erasing_many_subspaces_gives_what_one_run_at_a_time_gives(family: str, choice: bool) -> None:
    model = model_of(family)
    eraser = projection(torch.stack([vector(), vector(1)]), mean=vector(2))
    answers: Any = PAIRS if choice else [pair[0] for pair in PAIRS]
    found = amnesic(model, PROMPTS, eraser, SITE, answers=answers, random=2, seed=5)
    drawn = random_directions(4, torch.zeros(1, 32), seed=5)
    erasers = [eraser, projection(drawn[:2], mean=vector(2)), projection(drawn[2:], mean=vector(2))]
    assert found.names == ("eraser", "random 1", "random 2")
    assert found.rank == 2
    for n, (yes, no) in enumerate(PAIRS):
        state, clean = run(model, PROMPTS[n], read=SITE)[SITE][0].double(), alone(model, n, None)
        for e, each in enumerate(erasers):
            logits = alone(model, n, each.edit(SITE))
            rest = logits[no] if choice else torch.cat([logits[:yes], logits[yes + 1 :]]).max()
            moved = ((each(state) - state).norm(dim=-1) / state.norm(dim=-1)).mean()
            expected = [moved, float(logits[yes] > rest), logits.log_softmax(-1)[yes]]
            expected += [logits[yes] - rest] if choice else []
            wanted = torch.tensor([float(x) for x in [*expected, kl(clean, logits)]], dtype=torch.float64)
            torch.testing.assert_close(found.after[n, e], wanted, rtol=1e-4, atol=1e-4)
    assert found.measures == ("moved", "accuracy", "log_prob", *["logit_diff"] * choice, "kl")
    torch.testing.assert_close(found.before[:, [0, -1]], torch.zeros(4, 2, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_left_padded_batch_gives_what_its_prompts_give(family: str) -> None:
    padded_batch = {"input_ids": IDS, "attention_mask": MASK}
    wheres: list[Any] = [[1, -2], [[0], [1, 2], [3], [8]]]
    for where in wheres:
        found, plain = (
            direction_effect(model_of(family), p, vector(), SITE, answers=(5, 6), positions=where, random=1)
            for p in (padded_batch, PROMPTS)
        )
        torch.testing.assert_close(found.after, plain.after, rtol=1e-4, atol=1e-4)
        rows = where if isinstance(where[0], list) else [where] * len(PROMPTS)
        states = [run(model_of(family), p, read=SITE)[SITE][0][row] for p, row in zip(PROMPTS, rows, strict=True)]
        assert found.unit == pytest.approx(float(torch.cat(states).norm(dim=-1).median()), rel=1e-4)


def test_more_prompts_than_are_run_at_once_come_in_their_order() -> None:
    model, prompts = model_of("gpt2"), [tokens(1, 3 + n % 4, seed=n)[0].tolist() for n in range(19)]
    many = direction_effect(model, prompts, vector(), SITE, answers=(5, 6), scale="raw", random=1)
    for n in (0, 15, 16, 18):
        one = direction_effect(model, [prompts[n]], vector(), SITE, answers=(5, 6), scale="raw", random=1)
        torch.testing.assert_close(many.after[n : n + 1], one.after, rtol=1e-4, atol=1e-4)


def test_a_model_in_bfloat16_gives_about_the_same() -> None:
    half, whole = tiny_model("llama", dtype=torch.bfloat16), model_of("llama")
    found, exact = (
        direction_effect(m, PROMPTS, vector(), SITE, answers=PAIRS, coefficients=(-1.0, 1.0), random=1)
        for m in (half, whole)
    )
    assert found.after.dtype == torch.float64
    assert float((found.change - exact.change).abs().max()) < 0.1 + 0.05 * float(exact.change.abs().max())
    erased = amnesic(half, PROMPTS, projection(vector()), SITE, answers=PAIRS, random=1)
    assert bool(erased.after.isfinite().all())


# --- what was planted ---------------------------------------------------------------------------------------------


def planted() -> tuple[Any, Tensor]:
    """A model whose logits of tokens 5 and 6 differ along a known direction by 3 for each unit of length."""
    model, direction = tiny_model("llama"), unit(vector(9)).float()
    with torch.no_grad():
        model.lm_head.weight[5] = model.lm_head.weight[6] + 3 * direction
    return model, direction


def test_a_planted_direction_changes_the_logit_difference_by_the_planted_amount() -> None:
    model, direction = planted()
    found = direction_effect(
        model, PROMPTS, direction, "final_norm", answers=(5, 6), coefficients=(-2.0, 1.0, 4.0), scale="raw", random=20
    )
    expected = torch.tensor([-6.0, 3.0, 12.0], dtype=torch.float64).expand(4, 3)
    torch.testing.assert_close(found.change[:, 0, :, 0], expected, rtol=1e-4, atol=1e-4)
    assert found.unit == pytest.approx(1.0)
    assert found.beaten()[:, 0].tolist() == [20, 20, 20]
    cosines = random_directions(20, torch.zeros(1, 32)) @ direction.double()
    torch.testing.assert_close(found.change[0, 1:, 1, 0], 3 * cosines, rtol=1e-3, atol=1e-4)


def test_units_are_the_spread_along_the_direction_or_its_own_length() -> None:
    model, direction = planted()
    state = torch.cat([run(model, row, read="final_norm")["final_norm"][0, -1:] for row in PROMPTS])
    spread = direction_effect(model, PROMPTS, 7 * direction, "final_norm", answers=(5, 6), scale="std", random=0)
    assert spread.unit == pytest.approx(float((state @ direction).std(correction=0)), rel=1e-4)
    assert direction_effect(
        model, PROMPTS, 7 * direction, "final_norm", answers=(5, 6), scale="raw", random=0
    ).unit == pytest.approx(7)


def test_erasing_what_the_answer_depends_on_takes_the_choice_away_and_random_subspaces_do_not() -> None:
    model, direction = planted()
    prompts = [row.tolist() for row in tokens(40, 6, seed=3)]
    state = torch.cat([run(model, row, read="final_norm")["final_norm"][0, -1:] for row in prompts])
    right = [(5, 6) if along > 0 else (6, 5) for along in (state @ direction).tolist()]
    found = amnesic(model, prompts, projection(direction), "final_norm", answers=right, positions="last", random=4)
    accuracy, difference = (found.measures.index(name) for name in ("accuracy", "logit_diff"))
    assert found.before[:, accuracy].tolist() == [1.0] * 40
    assert float(found.after[:, 0, difference].abs().max()) < 1e-4
    assert float(found.beyond_random().high[difference]) < 0
    assert int(found.beaten()[difference]) == 4
    y = [a == 5 for a, _ in right]
    least = leace(state, y, shrinkage=None)
    assert amnesic(model, prompts, least, "final_norm", answers=right, positions="last", random=0).rank == 1


# --- results ------------------------------------------------------------------------------------------------------


def test_intervals_are_those_of_prompts_drawn_again() -> None:
    found = steered("gpt2", "last")
    change = found.after - found.before[:, None, None]
    expected = bootstrap_mean(change, level=0.95, seed=5)
    for name in ("mean", "low", "high"):
        assert torch.equal(getattr(found.estimate(), name), getattr(expected, name))
    pooled = bootstrap_mean(change[:, 2:].mean(1), level=0.95, seed=5)
    assert torch.equal(found.random().low, pooled.low)
    paired = bootstrap_mean(change[:, 0] - change[:, 2:].mean(1), level=0.95, seed=5)
    assert torch.equal(found.beyond_random().high, paired.high)
    size = change.mean(0).abs()
    assert found.beaten().tolist() == [
        [sum(bool(size[r, c, m] < size[0, c, m]) for r in (2, 3, 4)) for m in (0, 1)] for c in range(3)
    ]


def test_results_can_be_read_written_and_tabled() -> None:
    found = steered("gpt2", "last")
    text = found.summary()
    assert text.splitlines()[0].startswith(f"4 prompts, {SITE}, last tokens; a coefficient of 1 is the median length")
    mean, low = (float(x[0, 2, 0]) for x in (found.estimate().mean, found.estimate().low))
    assert f"direction times 2.0: logit_diff {mean:+.2f} [{low:.2f}, " in text
    table = found.to_dataframe()
    assert len(table) == 5 * 3
    row = table[(table["name"] == "pattern") & (table["coefficient"] == 2.0)].iloc[0]
    assert row["logit_diff"] == pytest.approx(float(found.estimate().mean[1, 2, 0]))
    back = json.loads(json.dumps(found.to_dict()))
    assert back["prompts"] == 4
    assert back["rows"][5]["kl_high"] == pytest.approx(float(found.estimate().high[1, 2, 1]))
    assert back["unit"] == found.unit
    erased = amnesic(model_of("gpt2"), PROMPTS, projection(vector()), SITE, answers=PAIRS, random=2)
    assert isinstance(erased, AmnesicEffect)
    assert "eraser: moved +" in erased.summary()
    assert "of 2)" in erased.summary()
    assert list(erased.to_dataframe()["name"]) == ["eraser", "random 1", "random 2"]
    assert json.loads(json.dumps(erased.to_dict()))["rank"] == 1


def test_controls_can_be_given_and_left_out() -> None:
    model, own = model_of("gpt2"), torch.stack([vector(3), vector(4)])
    found = direction_effect(model, PROMPTS, vector(), SITE, answers=(5, 6), coefficients=(1.0,), random=own)
    expected = direction_effect(model, PROMPTS, vector(4), SITE, answers=(5, 6), coefficients=(1.0,), random=0)
    torch.testing.assert_close(found.after[:, 2], expected.after[:, 0], rtol=1e-4, atol=1e-4)
    assert "random" not in expected.summary()
    with pytest.raises(ProbeError, match="nothing random"):
        expected.random()
    erasers = [projection(vector(3))]
    given = amnesic(model, PROMPTS, projection(vector()), SITE, answers=5, random=erasers)
    plain = amnesic(model, PROMPTS, erasers[0], SITE, answers=5, random=0)
    torch.testing.assert_close(given.after[:, 1], plain.after[:, 0], rtol=1e-4, atol=1e-4)


def test_the_seed_decides_what_is_random() -> None:
    model = model_of("gpt2")
    state = torch.random.get_rng_state()
    one, two, other = (
        direction_effect(model, PROMPTS, vector(), SITE, answers=(5, 6), random=2, seed=s).after for s in (1, 1, 2)
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(one, two)
    assert not torch.equal(one[:, 1:], other[:, 1:])


def test_a_metric_of_ones_own_is_a_function_of_logits() -> None:
    def entropy(logits: Tensor) -> Tensor:
        return torch.distributions.Categorical(logits=logits).entropy()

    model = model_of("gpt2")
    found = direction_effect(model, PROMPTS, vector(), SITE, metric=entropy, coefficients=(1.0,), random=0)
    assert found.measures == ("entropy", "kl")
    edited = Edit.add(SITE, unit(vector()) * found.unit, positions="last")
    assert float(found.after[1, 0, 0, 0]) == pytest.approx(float(entropy(alone(model, 1, edited))), abs=1e-4)


def test_the_model_is_left_as_it_was() -> None:
    model = model_of("llama")
    before = [alone(model, n, None) for n in range(4)]
    hooks = [[*m._forward_hooks, *m._forward_pre_hooks] for m in model.modules()]  # transformers leaves some of its own
    steered("llama", "last")
    assert all(torch.equal(x, alone(model, n, None)) for n, x in enumerate(before))
    assert [[*m._forward_hooks, *m._forward_pre_hooks] for m in model.modules()] == hooks


def effect(**wish: Any) -> Any:
    settings = {"prompts": PROMPTS, "direction": vector(), "site": SITE, "answers": (5, 6), "random": 1} | wish
    return direction_effect(model_of("gpt2"), **settings)


def erasure(**wish: Any) -> Any:
    settings = {"prompts": PROMPTS, "eraser": projection(vector()), "site": SITE, "answers": 5, "random": 1} | wish
    return amnesic(model_of("gpt2"), **settings)


WRONG: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    (effect, {"answers": None}, ProbeError, "either answers or a metric"),
    (effect, {"metric": torch.sum}, ProbeError, "either answers or a metric"),
    (effect, {"coefficients": ()}, ProbeError, "at least one coefficient"),
    (effect, {"direction": vector(width=31)}, ProbeError, "31 entries, but activations at resid_post.1 have 32"),
    (effect, {"direction": torch.zeros(32)}, ProbeError, "finite and not zero"),
    (effect, {"site": "z.1"}, ProbeError, "no vector for each token: it has the axes batch, pos, head, d_head"),
    (effect, {"site": "logits"}, ProbeError, "no vector for each token"),
    (effect, {"scale": "metres"}, ProbeError, "scale is norm, std, raw"),
    (effect, {"prompts": PROMPTS[:1], "scale": "std"}, ProbeError, "whichever is not 0"),
    (effect, {"answers": 5}, TokenError, "answers are a tuple of two tokens for all prompts"),
    (effect, {"answers": [(5, 6)] * 3}, TokenError, "or a list with 4 of these"),
    (effect, {"answers": (5, VOCAB)}, TokenError, f"ids below {VOCAB}"),
    (effect, {"answers": (5, 5)}, TokenError, "different tokens"),
    (effect, {"positions": "generated"}, PositionError, "no token of prompt 0 is at the positions 'generated'"),
    (effect, {"answers": None, "metric": lambda x: x}, MetricError, "a finite number for each of"),
    (effect, {"answers": None, "metric": lambda x: x[:, 0] / 0}, MetricError, "a finite number for each of"),
    (erasure, {"answers": [(5, 6), 5, 5, 5]}, TokenError, "a token or a tuple of two"),
    (erasure, {"eraser": projection(vector(width=31))}, ProbeError, "31 features"),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("call", "wish", "error", "message"), WRONG)
def test_what_makes_no_sense_is_said(call: Any, wish: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(**wish)


def test_a_head_can_be_steered_and_erased() -> None:
    model, direction = model_of("llama"), vector(width=8)
    found = direction_effect(model, PROMPTS, direction, "z.1.2", answers=(5, 6), coefficients=(1.0,), random=0)
    edit = Edit.add("z.1.2", unit(direction) * found.unit, positions="last")
    logits = alone(model, 3, edit)
    assert float(found.after[3, 0, 0, 0]) == pytest.approx(float(logits[5] - logits[6]), abs=1e-4)
    erased = amnesic(model, PROMPTS, projection(direction), "z.1.2", answers=5, random=1)
    assert isinstance(erased, AmnesicEffect)
    assert bool(erased.after.isfinite().all())


def test_encoded_prompts_are_taken_as_they_are() -> None:
    model = model_of("gpt2")
    given = direction_effect(model, encode(PROMPTS), vector(), SITE, answers=(5, 6), random=0)
    plain = direction_effect(model, PROMPTS, vector(), SITE, answers=(5, 6), random=0)
    assert torch.equal(given.after, plain.after)
    assert isinstance(projection(vector()), Eraser)
