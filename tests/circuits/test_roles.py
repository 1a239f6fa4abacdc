"""Roles of heads: scores against brute force and planted circuits, what is refused, and the demo model."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from scipy.stats import norm, ttest_1samp
from torch import Tensor

import tiny
from circuits import planted
from circuits.induction import INDUCTION, PREVIOUS_TOKEN, SILENT, induction_model
from handmade import LAYOUT, Handmade
from interp_toolkit import tasks
from interp_toolkit.circuits import role_scores
from interp_toolkit.circuits.circuit_words import UNLABELLED
from interp_toolkit.circuits.dataset import Pairs, prepare_pairs
from interp_toolkit.circuits.role_scores import _Means, repeats
from interp_toolkit.circuits.role_tests import HEAD_SCORES, ROLE_TESTS, THRESHOLDS
from interp_toolkit.circuits.roles import RoleTable, head_roles
from interp_toolkit.errors import CircuitError, FileFormatError, PositionError
from interp_toolkit.model.direct import Direct, moved
from interp_toolkit.model.heads import projection_bias
from interp_toolkit.model.layout import Layout
from interp_toolkit.model.run import run
from interp_toolkit.model.tokens import encode
from interp_toolkit.model.verify import verified

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def random_pairs(model: Any, length: int = 9, number: int = 4, seed: int = 1) -> Pairs:
    """Prompts whose answer is their third token, whose foil is their sixth, and whose subject is their fifth."""
    clean = tiny.tokens(number, length, seed)
    clean[:, 2] = torch.arange(number) + 80  # in no prompt twice, with its foil
    corrupt = clean.clone()
    corrupt[:, 4] = 79
    return prepare_pairs(model, clean, corrupt, [(int(row[2]), int(row[5])) for row in clean])


def pairs_of(circuit: Any) -> Pairs:
    answers = [(a, b) for a, b in circuit.answers.tolist()]
    return prepare_pairs(circuit.model, circuit.clean, circuit.corrupt, answers)


def named(table: RoleTable) -> dict[str, list[str]]:
    return {role.node: [role.name, *(name for name, _ in role.others)] for role in table.labelled}


# --- direct effects ----------------------------------------------------------------------------------------------

DIRECT = ["gpt2", "llama", "gpt_neox", "gemma", "cohere", "granite", "olmo2", "falcon", "gpt_bigcode", "nemotron"]


@pytest.mark.parametrize("name", DIRECT)
def test_direct_effects_of_the_whole_stream_are_the_logit_difference(name: str) -> None:
    model = tiny.model_of(name)
    direct = Direct(verified(model), encode(tiny.IDS[:1]))
    found = run(model, tiny.IDS, read=direct.end, logits="all")
    stream = found[direct.end].flatten(0, 1)
    pair = direct.rows(torch.tensor([7, 50]))
    rows = (pair[0] - pair[1]).expand(len(stream), 1, -1)
    slopes = direct.slopes(stream, rows)[:, 0]
    logits = found.logits.flatten(0, 1)
    # Beside what is linear in the stream there are the biases of norm and unembedding: the same at every position.
    rest = logits[:, 7] - logits[:, 50] - (slopes * stream).sum(-1)
    torch.testing.assert_close(rest, rest[:1].expand_as(rest), atol=2e-4, rtol=1e-3)
    assert not direct.capped


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "granite", "gpt_neox"])
def test_what_heads_move_from_all_positions_adds_up_to_what_attention_adds(name: str) -> None:
    model = tiny.model_of(name)
    wiring = verified(model)
    found = run(model, tiny.IDS, read=["pattern.1", "v.1", "z.1", "attn_out.1"])
    pattern, z = found["pattern.1"], found["z.1"][:, -1]
    values = found["v.1"].repeat_interleave(z.shape[1] // found["v.1"].shape[2], dim=2)
    slopes = torch.randn(len(z), 1, wiring.layout.d_model, generator=torch.Generator().manual_seed(0))
    total = torch.zeros(z.shape[:2])
    for place in range(tiny.IDS.shape[1]):
        part = pattern[:, :, -1, place, None] * values[:, place]
        total += moved(wiring, 1, part, z, slopes)[..., 0]
    torch.testing.assert_close(total, moved(wiring, 1, z, z, slopes)[..., 0], atol=1e-4, rtol=1e-3)
    bias = (projection_bias(wiring, 1, found["z.1"])[:, -1] * slopes[:, 0]).sum(-1)
    attention = (found["attn_out.1"][:, -1] * slopes[:, 0]).sum(-1)
    torch.testing.assert_close(total.sum(-1) + bias, attention, atol=1e-4, rtol=1e-3)


def test_unembedding_rows_that_cannot_be_read_come_from_gradients() -> None:
    model = tiny.model_of("llama")
    direct = Direct(verified(model), encode(tiny.IDS[:1]))
    ids = torch.tensor([3, 70, 98])
    torch.testing.assert_close(direct._rows_by_gradient(ids), direct.rows(ids))


def test_a_final_norm_of_another_kind_is_refused() -> None:
    model = tiny.tiny_model("llama")

    class Odd(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.tanh()

    model.model.norm = Odd()
    with pytest.raises(CircuitError, match=r"\(Odd\) is neither a LayerNorm nor"):
        head_roles(model)


# --- scores against brute force ----------------------------------------------------------------------------------


def test_scores_on_random_tokens_are_those_of_loops() -> None:
    model = tiny.model_of("gpt2")
    table = head_roles(model, [(2, 1)], mlps=[], seed=3)
    plain = [token for token in range(tiny.VOCAB) if token not in (tiny.PAD, tiny.BOS, tiny.EOS)]
    drawn = repeats(plain, [], 64, 3)
    patterns = {p: run(model, ids, read="pattern.2")["pattern.2.1"] for p, ids in drawn.ids.items()}
    every = torch.cat(list(patterns.values()))
    previous = torch.stack([every[:, t, t - 1].mean() - 1 / (t + 1) for t in range(2, drawn.shortest)]).mean()
    even = sum(1 / (t + 1) for t in range(2, drawn.shortest)) / (drawn.shortest - 2)
    assert table.score((2, 1), "previous_token") == pytest.approx(float(previous) / (1 - even), abs=1e-5)
    assert table.score((2, 1), "first_token") == pytest.approx(float(every[:, 1:, 0].mean()), abs=1e-5)
    for name, ahead in (("duplicate_token", 0), ("induction_attention", 1)):
        gains = []
        for period, own in patterns.items():
            others = torch.cat([other for p, other in patterns.items() if p != period])
            places = [(t, t - period + ahead) for t in range(period, 2 * period)]
            gains.append(sum(float(own[:, t, s].mean() - others[:, t, s].mean()) for t, s in places) / period)
        assert table.score((2, 1), name) == pytest.approx(sum(gains) / 3, abs=1e-5)


def test_positional_is_the_variance_that_other_sequences_explain() -> None:
    model = tiny.model_of("gpt2")
    table = head_roles(model, [(1, 0)], mlps=[])
    plain = [token for token in range(tiny.VOCAB) if token not in (tiny.PAD, tiny.BOS, tiny.EOS)]
    drawn = repeats(plain, [], 64, 0)
    every = torch.cat([run(model, ids, read="pattern.1")["pattern.1.0"] for ids in drawn.ids.values()])
    inside = missed = 0.0
    for t in range(2, drawn.shortest):
        rows = every[:, t, 1 : t + 1]
        rows = rows - rows.mean(-1, keepdim=True)
        for n in range(len(rows)):
            others = (rows.sum(0) - rows[n]) / (len(rows) - 1)
            inside, missed = inside + float(rows[n].square().sum()), missed + float((rows[n] - others).square().sum())
    assert table.score((1, 0), "positional") == pytest.approx(1 - missed / inside, abs=1e-4)


@torch.no_grad()
def test_scores_on_prompts_are_those_of_loops() -> None:
    model = tiny.model_of("llama")
    pairs = random_pairs(model)
    table = head_roles(model, [(1, 3)], mlps=[0], pairs=pairs)
    found: dict[str, list[float]] = {}
    for row, (target,), (foil,) in zip(pairs.clean, pairs.targets, pairs.foils, strict=True):
        read = run(model, row, read=["pattern.1", "v.1", "head_out.1", "mlp_out.0", "resid_post.2"])
        weight, end = model.lm_head.weight, read["resid_post.2"][0]
        scale = model.model.norm.weight / end.square().mean(-1, keepdim=True).sqrt()
        slopes = (weight[target] - weight[foil]) * scale
        out = model.model.layers[1].self_attn.o_proj.weight[:, 24:32]
        for name, place in (("answer", 2), ("subject", 4)):
            attention = read["pattern.1.3"][0, -1, place]
            written = attention * (out @ read["v.1"][0, place, 1])
            whole = read["head_out.1.3"][0, -1]
            found.setdefault(f"{name}_attention", []).append(float((attention - 1 / 9) / (1 - 1 / 9)))
            found.setdefault(f"{name}_effect", []).append(float(written @ slopes[-1]))
            found.setdefault(f"{name}_share", []).append(float(written @ whole / whole.square().sum()))
        first = read["pattern.1.3"][0, :, 0]
        found.setdefault("prompt_first_token", []).append(float(min(first[1:].mean(), first[-1])))
        found.setdefault("recall", []).append(float(read["mlp_out.0"][0, 4] @ slopes[4]))
    for name, values in found.items():
        node: Any = 0 if name == "recall" else (1, 3)
        if name != "answer_share":
            assert table.score(node, name) == pytest.approx(sum(values) / len(values), abs=2e-5), name


def test_certainty_is_the_normal_deviate_of_students_t() -> None:
    from scipy import stats

    model = tiny.model_of("llama")
    pairs = random_pairs(model, number=6)
    table = head_roles(model, [(2, 0)], mlps=[], pairs=pairs)
    effects = []
    for n in range(6):
        one = prepare_pairs(model, pairs.clean[n].ids, pairs.corrupt[n].ids, [(pairs.targets[n][0], pairs.foils[n][0])])
        alone = head_roles(model, [(2, 0)], mlps=[], pairs=one)
        effects.append(alone.score((2, 0), "answer_effect"))
        assert any("single prompt" in text for text in alone.notes["caveats"])
    p = stats.ttest_1samp(effects, 0.0).pvalue
    assert table.score((2, 0), "answer_effect") == pytest.approx(sum(effects) / 6, abs=1e-5)
    assert table.score((2, 0), "answer_certainty") == pytest.approx(stats.norm.isf(p / 2), rel=0.02)


def test_prompts_of_several_lengths_count_alike_and_small_passes_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model_of("llama")
    groups = [random_pairs(model, 9, 4), random_pairs(model, 7, 2, seed=5)]
    both = Pairs(
        clean=groups[0].clean + groups[1].clean,
        corrupt=groups[0].corrupt + groups[1].corrupt,
        targets=groups[0].targets + groups[1].targets,
        foils=groups[0].foils + groups[1].foils,
        single=False,
        tokenizer=None,
    )
    first, second, whole = (head_roles(model, pairs=pairs) for pairs in (*groups, both))
    columns = [HEAD_SCORES.index(n) for n in ("answer_attention", "answer_effect", "subject_share", "subject_effect")]
    mean = (4 * first.scores + 2 * second.scores)[:, columns] / 6
    torch.testing.assert_close(whole.scores[:, columns], mean, atol=1e-5, rtol=1e-4)
    monkeypatch.setattr(role_scores, "_BUDGET", 1)
    small = head_roles(model, pairs=both)
    torch.testing.assert_close(small.scores, whole.scores, atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(small.mlp_scores, whole.mlp_scores, atol=1e-5, rtol=1e-3)


def test_a_few_heads_get_the_scores_that_they_get_among_all() -> None:
    model = tiny.model_of("gpt_neox")
    pairs = random_pairs(model)
    every, some = head_roles(model, pairs=pairs), head_roles(model, [(2, 1), (0, 3)], mlps=[1], pairs=pairs)
    for n, head in enumerate(some.heads):
        torch.testing.assert_close(some.scores[n], every.scores[every.heads.index(head)], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(some.mlp_scores[0], every.mlp_scores[1], atol=1e-5, rtol=1e-4)
    assert [role.node for role in some.roles] == ["L2H1", "L0H3", "L1MLP"]


FAMILIES = ["gpt2", "llama", "gpt_neox", "gemma2", "gpt_bigcode", "gpt_oss", "falcon", "deepseek_v3", "bloom", "olmo2"]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_score_is_known_in_every_family_and_random_weights_give_heads_no_role(name: str) -> None:
    model = tiny.model_of(name)
    table = head_roles(model, pairs=random_pairs(model))
    assert bool(table.scores.isfinite().all())
    assert bool(table.mlp_scores.isfinite().all())
    assert [role for role in table.labelled if role.head is not None] == []
    assert any("soft cap" in text for text in table.notes["caveats"]) == (name == "gemma2")


def test_a_model_class_of_ones_own_is_tested_too() -> None:
    model = Handmade("matmul").eval()
    layout = Layout(**LAYOUT)
    clean = tiny.tokens(3, 9)
    corrupt = clean.clone()
    corrupt[:, 4] = 79
    pairs = prepare_pairs(model, clean, corrupt, [(int(row[2]), 95) for row in clean], layout=layout)
    table = head_roles(model, pairs=pairs, layout=layout)
    assert bool(table.scores.isfinite().all())
    assert table.notes["random"]["periods"] == [10, 13, 16]  # nothing says how many positions it takes


def test_bfloat16_gives_about_the_same() -> None:
    exact = tiny.model_of("llama")
    rough = copy.deepcopy(exact).to(torch.bfloat16)
    tables = [head_roles(model, pairs=random_pairs(model)) for model in (exact, rough)]
    columns = [n for n, name in enumerate(HEAD_SCORES) if name not in ("answer_certainty", "subject_share")]
    torch.testing.assert_close(tables[1].scores[:, columns], tables[0].scores[:, columns], atol=0.05, rtol=0.1)


# --- planted circuits --------------------------------------------------------------------------------------------


def test_planted_previous_token_and_induction_heads_are_found_and_no_others() -> None:
    circuit = planted.induction()
    table = head_roles(circuit.model)
    assert named(table) == {"L0H2": ["previous token", "positional"], "L1H1": ["induction"]}
    assert table.score((1, 1), "induction_copying") > 0.99
    assert table.score((1, 1), "induction_attention") > 0.8


def test_on_its_prompts_the_planted_induction_head_moves_the_answer() -> None:
    circuit = planted.induction()
    table = head_roles(circuit.model, pairs=pairs_of(circuit))
    assert sorted(named(table)["L1H1"]) == ["induction", "name mover"]
    logits = run(circuit.model, circuit.clean, logits="last").logits
    rows = torch.arange(len(circuit.clean))
    gap = logits[rows, -1, circuit.answers[:, 0]] - logits[rows, -1, circuit.answers[:, 1]]
    # Nothing else writes the answer, so that the head's direct effect is the whole difference.
    assert table.score((1, 1), "answer_effect") == pytest.approx(float(gap.mean()), rel=0.05)


def test_a_head_that_writes_the_opposite_is_a_negative_mover() -> None:
    circuit = planted.induction()
    model = copy.deepcopy(circuit.model)
    size = model.config.n_embd // model.config.n_head
    model.transformer.h[1].attn.c_proj.weight[size : 2 * size] *= -1
    table = head_roles(model, [(1, 1)], mlps=[], pairs=pairs_of(circuit))
    assert named(table) == {"L1H1": ["negative mover"]}
    assert table.score((1, 1), "induction_copying") < -0.99
    assert "answer effect -" in table.roles[0].test


def test_planted_heads_that_bring_the_subject_to_the_end_are_subject_trackers() -> None:
    circuit = planted.recall()
    # The subject stands at position 4 in every second prompt, at 6 in the others.
    places = [4 if number % 2 else 6 for number in range(len(circuit.clean))]
    table = head_roles(circuit.model, pairs=pairs_of(circuit), subject=places)
    assert {node for node, names in named(table).items() if "subject tracker" in names} == {"L2H2", "L2H3"}
    assert table.score((2, 2), "subject_effect") > 1
    assert set(table.skipped) == {"name mover", "negative mover"}


def test_a_head_that_looks_at_the_first_token_is_a_sink() -> None:
    model = copy.deepcopy(planted.induction().model)
    size, width = model.config.n_embd // model.config.n_head, model.config.n_embd
    attention = model.transformer.h[0].attn.c_attn
    query, key = (slice(start + size, start + size + 1) for start in (0, width))
    attention.weight[:, size : 2 * size] = 0  # queries of head 1: always the same
    attention.bias[query] = 20 * size**0.5
    attention.weight[:, key] = model.transformer.wpe.weight[0][:, None]
    table = head_roles(model, [(0, 1), (0, 0)])
    assert named(table) == {"L0H1": ["first token sink"]}
    assert table.score((0, 1), "first_token") > 0.95


def test_a_head_that_finds_the_same_token_again_is_a_duplicate_token_head() -> None:
    circuit = planted.induction()
    model = copy.deepcopy(circuit.model)
    size, width = model.config.n_embd // model.config.n_head, model.config.n_embd
    weight = model.transformer.h[0].attn.c_attn.weight
    # Queries and keys of head 1 are those that the induction head asks with: the token itself.
    asks = model.transformer.h[1].attn.c_attn.weight[:, size : 2 * size]
    weight[:, size : 2 * size] = asks * 3
    weight[:, width + size : width + 2 * size] = asks / 3
    table = head_roles(model, [(0, 1)], mlps=[])
    assert table.score((0, 1), "duplicate_token") > 0.4
    # Among tokens that are all different it attends to itself, which position explains.
    assert named(table) == {"L0H1": ["duplicate token", "positional"]}


def test_a_trained_model_has_the_heads_that_were_found_in_it_and_no_silent_ones() -> None:
    model = induction_model()
    table = head_roles(model, mlps=[])
    found = {role.node: role.name for role in table.labelled}
    assert found == dict.fromkeys(PREVIOUS_TOKEN, "previous token") | dict.fromkeys(INDUCTION, "induction")
    silent = {f"L{layer}H{head}" for layer, head in table.heads if table.score((layer, head), "written") < 0.1}
    assert silent == set(SILENT)
    # By its pattern alone it would be one.
    assert table.score((0, 3), "previous_token") > 0.5
    told = table.roles[table.heads.index((0, 3))].test
    assert told.startswith("nearest is previous token")
    assert "but it writes 0.0" in told


def test_a_model_as_it_is_initialised_has_no_roles() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            hidden_size=64, num_hidden_layers=4, num_attention_heads=8, intermediate_size=64, vocab_size=200
        )
        model = transformers.LlamaForCausalLM(config).eval()
    assert head_roles(model, pairs=random_pairs(model)).labelled == ()


# --- the table ---------------------------------------------------------------------------------------------------


def test_below_its_threshold_a_role_is_unlabelled_and_the_nearest_is_told() -> None:
    circuit = planted.induction()
    table = head_roles(circuit.model, [(1, 1)], mlps=[0], thresholds={"induction_attention": 0.99})
    role, inside = table.roles
    assert (role.name, role.others) == (UNLABELLED, ())
    assert role.test.startswith("nearest is induction: induction attention 0.9")
    assert "threshold 0.99" in role.test
    assert (inside.name, inside.test, inside.score) == (UNLABELLED, "not tested", 0.0)
    assert table.labelled == ()


def test_without_prompts_the_tests_that_need_them_are_skipped_and_named() -> None:
    table = head_roles(tiny.model_of("llama"))
    assert set(table.skipped) == {"name mover", "negative mover", "subject tracker", "recall"}
    assert "Not tested: name mover, negative mover, subject tracker, recall: there are no prompts" in table.summary()
    assert bool(table.mlp_scores.isnan().all())


def test_prompts_without_answers_are_said_to_have_none() -> None:
    model = tiny.model_of("llama")
    clean = tiny.tokens(3, 9)
    corrupt = clean.clone()
    corrupt[:, 4] = 79
    table = head_roles(model, [(0, 0)], mlps=[], pairs=prepare_pairs(model, clean, corrupt))
    assert set(table.skipped.values()) == {"the prompts have no answers"}
    assert table.score((0, 0), "prompt_first_token") > 0


def test_the_table_is_saved_and_read_back(tmp_path: Path) -> None:
    table = head_roles(tiny.model_of("llama"), [(0, 0), (2, 3)], pairs=random_pairs(tiny.model_of("llama")))
    loaded = RoleTable.load(table.save(tmp_path / "roles.json"))
    torch.testing.assert_close(loaded.scores, table.scores, equal_nan=True)
    torch.testing.assert_close(loaded.mlp_scores, table.mlp_scores, equal_nan=True)
    assert (loaded.roles, loaded.summary(), loaded.provenance) == (table.roles, table.summary(), table.provenance)
    without = head_roles(tiny.model_of("llama"), [], mlps=[1])
    assert RoleTable.load(without.save(tmp_path / "few.json")).scores.shape == (0, len(HEAD_SCORES))


@pytest.mark.parametrize("damage", ["format", "scores", "heads", "thresholds", "provenance"])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: str) -> None:
    path = head_roles(tiny.model_of("llama"), [(0, 0)]).save(tmp_path / "roles.json")
    facts = json.loads(path.read_text())
    facts[damage] = "nothing"
    path.write_text(json.dumps(facts))
    with pytest.raises(FileFormatError, match="table of roles"):
        RoleTable.load(path)


def test_the_data_frame_has_a_row_for_each_node() -> None:
    circuit = planted.induction()
    frame = head_roles(circuit.model, [(0, 2), (1, 1)], mlps=[0]).to_dataframe()
    assert list(frame["node"]) == ["L0H2", "L1H1", "L0MLP"]
    assert list(frame["role"]) == ["previous token", "induction", UNLABELLED]
    assert frame["others"][0] == "positional"
    assert {*HEAD_SCORES, "recall"} <= set(frame.columns)


# --- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": [(0, 0), (3, 1), (1, 4)]}, r"L3H1, L1H4 is not in this model: it has layers 0 to 2 with heads 0 to"),
        ({"mlps": [7]}, "L7MLP is not in this model"),
        ({"thresholds": {"induction": 0.3}}, "no threshold 'induction': there are previous_token"),
        ({"thresholds": {"recall": -1.0}}, "'recall' is a positive number, not -1.0"),
    ],
)
def test_what_is_not_there_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(CircuitError, match=message):
        head_roles(tiny.model_of("llama"), **options)


def test_a_vocabulary_too_small_for_random_tokens_is_refused() -> None:
    config = transformers.GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=11)
    with pytest.raises(CircuitError, match=r"need 14 different tokens and 28 positions, but the vocabulary has 11"):
        head_roles(transformers.GPT2LMHeadModel(config).eval())


def test_a_subject_that_is_not_there_is_refused(
    demo: tuple[PreTrainedModel, PreTrainedTokenizerBase],
) -> None:
    model = tiny.model_of("llama")
    pairs = random_pairs(model)
    with pytest.raises(PositionError, match="these pairs have no labels"):
        head_roles(model, pairs=pairs, subject="subject")
    with pytest.raises(PositionError, match="2 positions of subjects were given for 4 pairs"):
        head_roles(model, pairs=pairs, subject=[1, 2])
    with pytest.raises(PositionError, match="position 9 is outside of a prompt of 9 tokens"):
        head_roles(model, pairs=pairs, subject=[1, 2, 3, 9])
    with pytest.raises(PositionError, match="no label 'verb'"):
        head_roles(model, pairs=tasks.ioi(demo[1], n=2), subject="verb")


def test_one_score_of_a_node_that_is_not_in_the_table_is_refused() -> None:
    table = head_roles(tiny.model_of("llama"), [(0, 0)], mlps=[])
    with pytest.raises(CircuitError, match=r"\(1, 1\) is not in this table"):
        table.score((1, 1), "positional")
    with pytest.raises(CircuitError, match="there is no score 'luck'"):
        table.score((0, 0), "luck")


def test_every_threshold_is_for_a_score() -> None:
    assert set(THRESHOLDS) | {"subject_effect"} == {*HEAD_SCORES, "recall", "recall_certainty"}


# --- the demo model ----------------------------------------------------------------------------------------------


def test_heads_of_the_demo_model_have_plausible_roles_on_indirect_objects(
    demo: tuple[PreTrainedModel, PreTrainedTokenizerBase],
) -> None:
    model, tokenizer = demo
    expected = {
        (16, 0): "previous token",
        (14, 3): "duplicate token",
        (18, 6): "induction",
        (23, 0): "name mover",
        (24, 4): "negative mover",
        (20, 0): "subject tracker",
        (18, 8): "first token sink",
        (17, 4): UNLABELLED,  # attends as induction heads do, but what it moves says nothing to the logits
    }
    table = head_roles(model, list(expected), mlps=[], pairs=tasks.ioi(tokenizer, n=8), tokenizer=tokenizer)
    assert {head: role.name for head, role in zip(table.heads, table.roles, strict=True)} == expected
    assert table.score((17, 4), "induction_attention") > 0.6
    assert abs(table.score((17, 4), "induction_copying")) < 0.2


def test_a_subject_tracker_has_to_be_one_surely() -> None:
    test = next(one for one in ROLE_TESTS if one.role == "subject tracker")
    scores = {"subject_attention": 0.4, "subject_share": 0.71, "prompt_written": 1.0}
    assert test.reached({**scores, "subject_certainty": 2.8}, THRESHOLDS) < 1
    assert test.reached({**scores, "subject_certainty": 4.9}, THRESHOLDS) >= 1
    assert (
        test.reached({**scores, "subject_certainty": math.nan}, THRESHOLDS) >= 1
    )  # of a single prompt nothing is known


def test_how_surely_a_share_is_above_a_half_is_students_t() -> None:
    shares = torch.tensor([0.9, 0.6, 0.75, 0.5, 0.8]).double()
    means = _Means(("share",), (1,))
    means.add("share", 0, shares)
    found = ttest_1samp(shares.numpy(), 0.5)
    assert float(means.certainty("share", 0.5)) == pytest.approx(norm.isf(found.pvalue / 2), rel=0.02)
