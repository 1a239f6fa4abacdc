"""Patching against plain hooks that are written here, and results that come back from files."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from interp_toolkit import Site, Span, activation_patch
from interp_toolkit.circuits import PatchResult
from interp_toolkit.errors import (
    AlignmentError,
    FileFormatError,
    InterpError,
    InterpWarning,
    PositionError,
    SiteError,
    TokenError,
    UnknownSiteError,
)
from tiny import VOCAB, model_of, tokens

CLEAN, CORRUPT = (row.tolist() for row in tokens(2, 7))
LENGTH, LAYER = 7, 1
ANY_PAIR = pytest.mark.filterwarnings("ignore:the clean prompt does not favour")
BOTH_WAYS = pytest.mark.parametrize("direction", ["denoise", "noise"])
pytestmark = ANY_PAIR


Change = Callable[[Tensor], Tensor]
Patch = tuple[nn.Module, str, Change]


def words() -> PreTrainedTokenizerFast:
    """A tokenizer for tiny models: token 5 is written w5."""
    inner = Tokenizer(WordLevel({f"w{n}": n for n in range(VOCAB)}, unk_token="w0"))
    inner.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="w0", pad_token="w0")


TOKENIZER = words()


def text(ids: Sequence[int]) -> str:
    return " ".join(f"w{i}" for i in ids)


@cache
def answers_of(name: str) -> tuple[int, int]:
    """The tokens for which the two prompts differ most, so that relative effects are well measured."""
    clean, corrupt = (logits_with(model_of(name), ids) for ids in (CLEAN, CORRUPT))
    order = (clean - corrupt).argsort().tolist()
    return order[-1], order[0]


def logits_with(model: nn.Module, ids: Sequence[int], *patches: Patch) -> Tensor:
    """The last position's logits while plain hooks change inputs or outputs."""
    handles = []
    for module, side, change in patches:
        if side == "input":

            def before(_: nn.Module, args: Any, kwargs: Any, change: Change = change) -> Any:
                if args:
                    return (change(args[0]), *args[1:]), kwargs
                return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

            handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        else:

            def behind(_: nn.Module, args: Any, out: Any, change: Change = change) -> Any:
                del args
                return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

            handles.append(module.register_forward_hook(behind))
    try:
        with torch.no_grad():
            return model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0, -1]
    finally:
        for handle in handles:
            handle.remove()


def seen(model: nn.Module, ids: Sequence[int], module: nn.Module, side: str) -> Tensor:
    kept: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        kept.append(x.detach().clone())
        return x

    logits_with(model, ids, (module, side, keep))
    return kept[0]


def moved(source: Tensor, where: Sequence[int], part: slice = slice(None)) -> Change:
    """Put the source's rows (and of these only some entries) into a tensor of [batch, pos, d]."""

    def change(x: Tensor) -> Tensor:
        new = x.clone()
        for n in where:
            new[:, n, part] = source[:, n, part]
        return new

    return change


def llama_places(model: nn.Module) -> dict[str, tuple[nn.Module, str, slice, dict[str, Any]]]:
    """For each case: where plain hooks patch, which entries, and what the library is asked."""
    block, everything = model.model.layers[LAYER], slice(None)
    attn, mlp = block.self_attn, block.mlp
    return {
        "resid": (block, "input", everything, {"patch_component": "resid"}),
        "resid_post": (block, "output", everything, {"patch_component": "resid_post"}),
        "attn": (attn, "output", everything, {"patch_component": "attn"}),
        "mlp": (mlp, "output", everything, {"patch_component": "mlp"}),
        "z": (attn.o_proj, "input", everything, {"patch_component": "z"}),
        "head": (attn.o_proj, "input", slice(16, 24), {"patch_component": "head", "head": 2}),
        # Rotary embedding turns by position alone, so patching in front of it is the same at one position.
        "q": (attn.q_proj, "output", everything, {"patch_component": "q"}),
        "q of a head": (attn.q_proj, "output", slice(8, 16), {"patch_component": "q", "head": 1}),
        "k": (attn.k_proj, "output", everything, {"patch_component": "k"}),
        "k of a kv head": (attn.k_proj, "output", slice(8, 16), {"patch_component": "k", "head": 1}),
        "v": (attn.v_proj, "output", everything, {"patch_component": "v"}),
        "v of a kv head": (attn.v_proj, "output", slice(0, 8), {"patch_component": "v", "head": 0}),
        "neurons": (mlp.down_proj, "input", everything, {"patch_component": "neuron"}),
        "neuron": (mlp.down_proj, "input", slice(17, 18), {"patch_component": "neuron", "neuron": 17}),
        "embed": (model.model.layers[0], "input", everything, {"patch_component": "embed", "patch_layer": None}),
        "final_norm": (
            model.model.norm,
            "output",
            everything,
            {"patch_component": "final_norm", "patch_layer": None},
        ),
    }


def gpt2_places(model: nn.Module) -> dict[str, tuple[nn.Module, str, slice, dict[str, Any]]]:
    block, everything = model.transformer.h[LAYER], slice(None)
    width = model.config.n_embd
    return {
        "resid": (block, "input", everything, {"patch_component": "blocks.1.hook_resid_pre", "patch_layer": None}),
        "attn": (block.attn, "output", everything, {"patch_component": "attn"}),
        "mlp": (block.mlp, "output", everything, {"patch_component": "mlp"}),
        "head": (block.attn.c_proj, "input", slice(8, 16), {"patch_component": "L1H1", "patch_layer": None}),
        "q": (block.attn.c_attn, "output", slice(0, width), {"patch_component": "q"}),
        "k": (block.attn.c_attn, "output", slice(width, 2 * width), {"patch_component": "k"}),
        "v": (block.attn.c_attn, "output", slice(2 * width, None), {"patch_component": "v"}),
        "neuron": (block.mlp.c_proj, "input", slice(3, 4), {"patch_component": "neuron", "neuron": 3}),
    }


def sandwich_places(model: nn.Module) -> dict[str, tuple[nn.Module, str, slice, dict[str, Any]]]:
    block, everything = model.model.layers[LAYER], slice(None)
    return {
        "attn": (block.post_attention_layernorm, "output", everything, {"patch_component": "attn"}),
        "mlp": (block.post_feedforward_layernorm, "output", everything, {"patch_component": "mlp"}),
        "head": (block.self_attn.o_proj, "input", slice(16, 32), {"patch_component": "head", "head": 1}),
        "v": (block.self_attn.v_proj, "output", everything, {"patch_component": "v"}),
    }


PLACES = {"llama": llama_places, "gpt2": gpt2_places, "gemma2": sandwich_places}
CASES = [
    (name, case)
    for name, cases in {
        "llama": [*llama_places(model_of("llama"))],
        "gpt2": [*gpt2_places(model_of("gpt2"))],
        "gemma2": [*sandwich_places(model_of("gemma2"))],
    }.items()
    for case in cases
]


def patched(name: str, direction: str, **how: Any) -> PatchResult:
    arguments = {"patch_layer": LAYER, "answers": answers_of(name), "tokenizer": TOKENIZER, **how}
    return activation_patch(model_of(name), CLEAN, CORRUPT, direction=direction, **arguments)


def check(result: PatchResult, name: str, direction: str, expected: Tensor, where: Sequence[int]) -> None:
    model, (target, foil) = model_of(name), answers_of(name)
    clean, corrupt = (logits_with(model, ids) for ids in (CLEAN, CORRUPT))
    gaps = [float(x[target] - x[foil]) for x in (clean, corrupt, expected)]
    found = (result.clean_logit_diff, result.corrupt_logit_diff, result.patched_logit_diff)
    assert found == pytest.approx(gaps, abs=2e-5)
    base = gaps[1] if direction == "denoise" else gaps[0]
    assert result.logit_diff_change == pytest.approx(gaps[2] - base, abs=4e-5)
    assert result.normalized_effect == pytest.approx((gaps[2] - base) / (gaps[0] - gaps[1]), abs=1e-4)
    before = corrupt if direction == "denoise" else clean
    assert result.probability_before == pytest.approx(float(before.softmax(-1)[target]), rel=1e-3)
    assert result.probability_after == pytest.approx(float(expected.softmax(-1)[target]), rel=1e-3)
    for top, logits in ((result.top_before, before), (result.top_after, expected)):
        best = logits.softmax(-1).topk(5)
        assert [t for t, _ in top] == [f"w{i}" for i in best.indices.tolist()]
        assert [p for _, p in top] == pytest.approx(best.values.tolist(), rel=1e-3)
    assert result.positions == tuple(where)
    assert result.clean_tokens == tuple(f"w{i}" for i in CLEAN)
    assert result.corrupt_tokens == tuple(f"w{i}" for i in CORRUPT)
    assert (result.target, result.foil, result.foil_from) == (f"w{target}", f"w{foil}", "given")
    assert result.direction == direction


# --- every component ----------------------------------------------------------------------------------------------


@BOTH_WAYS
@pytest.mark.parametrize(("name", "case"), CASES)
def test_a_patch_is_what_plain_hooks_do(name: str, case: str, direction: str) -> None:
    model = model_of(name)
    module, side, part, how = PLACES[name](model)[case]
    source, base = (CLEAN, CORRUPT) if direction == "denoise" else (CORRUPT, CLEAN)
    value = seen(model, source, module, side)
    effects = []
    for where in (range(LENGTH), [4], [1, LENGTH - 1]):
        expected = logits_with(model, base, (module, side, moved(value, where, part)))
        asked = None if len(where) == LENGTH else where[0] if len(where) == 1 else [where[0], -1]
        result = patched(name, direction, positions=asked, **how)
        check(result, name, direction, expected, where)
        effects.append(abs(result.logit_diff_change))
    assert max(effects) > 1e-4  # otherwise nothing was tested


@BOTH_WAYS
@pytest.mark.parametrize("where", [None, [3, 5]])
def test_resid_mid_is_patched_between_the_sublayers(where: list[int] | None, direction: str) -> None:
    model = model_of("llama")
    block = model.model.layers[LAYER]
    source, base = (CLEAN, CORRUPT) if direction == "denoise" else (CORRUPT, CLEAN)
    mid = seen(model, source, block, "input") + seen(model, source, block.self_attn, "output")
    before = seen(model, base, block, "input")
    # What attention would have to add for the residual stream to be the source's
    expected = logits_with(model, base, (block.self_attn, "output", moved(mid - before, where or range(LENGTH))))
    result = patched("llama", direction, patch_component="resid_mid", positions=where)
    check(result, "llama", direction, expected, where or range(LENGTH))


@BOTH_WAYS
@pytest.mark.parametrize("component", ["pattern", "scores"])
@pytest.mark.parametrize(("head", "where"), [(None, None), (3, None), (1, [6]), (None, [2, 6])])
def test_patterns_and_scores_are_patched_by_query(
    component: str, head: int | None, where: list[int] | None, direction: str
) -> None:
    model, eager = model_of("llama"), model_of("llama", "eager")
    attn = model.model.layers[LAYER].self_attn
    source, base = (CLEAN, CORRUPT) if direction == "denoise" else (CORRUPT, CLEAN)
    with torch.no_grad():
        theirs, own = (
            eager(torch.tensor([ids]), output_attentions=True).attentions[LAYER][0].clone() for ids in (source, base)
        )
    for h in range(4) if head is None else [head]:
        own[h][where or range(LENGTH)] = theirs[h][where or range(LENGTH)]
    values = seen(model, base, attn.v_proj, "output")[0].unflatten(-1, (2, 8)).repeat_interleave(2, dim=1)
    z = torch.einsum("hqk,khd->qhd", own, values).flatten(-2)[None]
    expected = logits_with(model, base, (attn.o_proj, "input", lambda _: z))
    result = patched("llama", direction, patch_component=component, head=head, positions=where)
    check(result, "llama", direction, expected, where or range(LENGTH))


@BOTH_WAYS
@pytest.mark.parametrize("head", [None, 1])
def test_head_outputs_are_patched_in_the_sum_of_heads(head: int | None, direction: str) -> None:
    model = model_of("llama")
    attn = model.model.layers[LAYER].self_attn
    source, base = (CLEAN, CORRUPT) if direction == "denoise" else (CORRUPT, CLEAN)
    theirs = seen(model, source, attn.o_proj, "input")
    part = slice(None) if head is None else slice(8 * head, 8 * head + 8)
    expected = logits_with(model, base, (attn.o_proj, "input", moved(theirs, [2, 5], part)))
    result = patched("llama", direction, patch_component="head_out", head=head, positions=[2, 5])
    check(result, "llama", direction, expected, [2, 5])


@BOTH_WAYS
def test_patched_logits_are_those_of_the_other_prompt(direction: str) -> None:
    result = patched("llama", direction, patch_component="logits", patch_layer=None)
    assert result.normalized_effect == pytest.approx(1 if direction == "denoise" else -1, abs=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "bloom", "gpt_neox", "mixtral", "granite"])
def test_the_whole_first_residual_stream_restores_or_destroys_everything(name: str) -> None:
    for direction, effect in (("denoise", 1), ("noise", -1)):
        result = patched(name, direction, patch_component="resid_pre", patch_layer=0)
        assert result.normalized_effect == pytest.approx(effect, abs=1e-4)
        gap = result.clean_logit_diff - result.corrupt_logit_diff
        assert result.logit_diff_change == pytest.approx(effect * gap, abs=1e-4)
        end = result.clean_logit_diff if direction == "denoise" else result.corrupt_logit_diff
        assert result.patched_logit_diff == pytest.approx(end, abs=1e-4)


def test_layers_count_from_the_end_too() -> None:
    for component, head in (("mlp", None), ("z", 1)):
        last = patched("llama", "denoise", patch_component=component, patch_layer=-1, head=head)
        assert last == patched("llama", "denoise", patch_component=component, patch_layer=2, head=head)


TARGET, FOIL = answers_of("llama")


# --- positions and alignment --------------------------------------------------------------------------------------


def by_text(clean: Sequence[int], corrupt: Sequence[int], direction: str = "denoise", **how: Any) -> PatchResult:
    arguments = {"patch_component": "mlp", "patch_layer": LAYER, "answers": (f"w{TARGET}", f"w{FOIL}"), **how}
    return activation_patch(
        model_of("llama"), text(clean), text(corrupt), direction=direction, tokenizer=TOKENIZER, **arguments
    )


def test_text_and_token_ids_give_the_same_result() -> None:
    assert by_text(CLEAN, CORRUPT) == patched("llama", "denoise", patch_component="mlp")


@BOTH_WAYS
def test_a_span_is_found_in_either_prompt(direction: str) -> None:
    by_number = by_text(CLEAN, CORRUPT, direction, positions=[2, 3])
    for prompt in (CLEAN, CORRUPT):
        assert by_text(CLEAN, CORRUPT, direction, positions=Span(text(prompt[2:4]))) == by_number
        last = by_text(CLEAN, CORRUPT, direction, positions=Span(text(prompt[2:4]), token=-1))
        assert last.positions == (3,)


def test_a_span_in_neither_prompt_names_both() -> None:
    with pytest.raises(PositionError) as caught:
        by_text(CLEAN, CORRUPT, positions=Span("w98 w98"))
    assert text(CLEAN) in str(caught.value)
    assert text(CORRUPT) in str(caught.value)


LONG = [*CLEAN[:3], 50, 51, *CLEAN[3:]]
ALIGNED = {
    "left": [(n, n) for n in range(7)],
    "right": [(n + 2, n) for n in range(7)],
    "map": [(0, 0), (1, 1), (2, 2), (6, 4), (8, 6)],
}


@BOTH_WAYS
@pytest.mark.parametrize("align", list(ALIGNED))
def test_prompts_of_other_lengths_are_patched_where_they_correspond(align: str, direction: str) -> None:
    model = model_of("llama")
    pairs = ALIGNED[align]
    mlp = model.model.layers[LAYER].mlp
    source, base = (LONG, CORRUPT) if direction == "denoise" else (CORRUPT, LONG)
    value = seen(model, source, mlp, "output")

    def change(x: Tensor) -> Tensor:
        new = x.clone()
        for long, short in pairs:
            a, b = (long, short) if direction == "denoise" else (short, long)
            new[:, b] = value[:, a]
        return new

    expected = logits_with(model, base, (mlp, "output", change))
    result = by_text(LONG, CORRUPT, direction, align=dict(pairs) if align == "map" else align)
    assert result.patched_logit_diff == pytest.approx(float(expected[TARGET] - expected[FOIL]), abs=2e-5)
    assert result.positions == tuple(p[1] if direction == "denoise" else p[0] for p in pairs)
    assert abs(result.logit_diff_change) > 1e-3


def test_unequal_lengths_show_both_token_lists_and_where_they_part() -> None:
    with pytest.raises(AlignmentError) as caught:
        by_text(LONG, CORRUPT)
    message = str(caught.value)
    differ = next(n for n, (a, b) in enumerate(zip(LONG, CORRUPT, strict=False)) if a != b)
    assert "9 tokens and the corrupt one 7" in message
    assert f"position {differ}" in message
    for ids in (LONG, CORRUPT):
        assert all(f"'w{i}'" in message for i in ids)
    assert "align='right'" in message


@pytest.mark.parametrize(
    ("align", "words"),
    [({0: 7}, "position 7"), ({9: 0}, "position 9"), ({-1: 0}, "position -1"), ("middle", "'middle'")],
)
@pytest.mark.usefixtures("unchecked")
def test_alignments_that_cannot_be_are_refused(align: Any, words: str) -> None:
    with pytest.raises(AlignmentError, match=words):
        by_text(LONG, CORRUPT, align=align)


def test_a_map_that_sends_two_positions_to_one_is_refused() -> None:
    with pytest.raises(AlignmentError):
        by_text(LONG, CORRUPT, align={2: 2, 3: 2})


def test_patterns_of_other_lengths_are_refused() -> None:
    with pytest.raises(AlignmentError, match="different keys"):
        by_text(LONG, CORRUPT, align="left", patch_component="pattern")


def test_positions_that_correspond_to_nothing_are_refused() -> None:
    with pytest.raises(PositionError, match=r"\[6\]"):
        by_text(LONG, CORRUPT, align={0: 0}, positions=-1)
    with pytest.raises(PositionError, match=r"position 7 .*7 tokens"):
        by_text(CLEAN, CORRUPT, positions=7)


# --- answers ------------------------------------------------------------------------------------------------------


def test_without_a_foil_the_corrupt_prompts_best_other_token_stands_in() -> None:
    corrupt = logits_with(model_of("llama"), CORRUPT)
    best, second = corrupt.topk(2).indices.tolist()
    result = by_text(CLEAN, CORRUPT, answers=None, target_token=f"w{TARGET}")
    assert (result.target, result.foil) == (f"w{TARGET}", f"w{best}")
    assert "corrupt prompt's own best token" in result.foil_from
    assert "corrupt prompt's own best token" in result.summary()
    same = by_text(CLEAN, CORRUPT, answers=None, target_token=best)
    assert (same.target, same.foil) == (f"w{best}", f"w{second}")


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ({}, "say what the clean answer is"),
        ({"target_token": "w1", "answers": ("w1", "w2")}, "say what the clean answer is"),
        ({"answers": ("w5", " w5")}, "same token"),
        ({"answers": ("w5", "w6", "w7")}, "3 were given"),
        ({"target_token": "w5 w6"}, "2 tokens"),
        ({"target_token": ""}, "empty"),
        ({"target_token": VOCAB}, f"0 to {VOCAB - 1}"),
    ],
)
def test_answers_that_are_none_are_refused(answers: dict[str, Any], words: str) -> None:
    with pytest.raises(TokenError, match=words):
        by_text(CLEAN, CORRUPT, **{"answers": None, **answers})


def test_token_ids_and_integer_answers_need_no_tokenizer() -> None:
    result = activation_patch(
        model_of("llama"), CLEAN, CORRUPT, answers=(TARGET, FOIL), patch_layer=LAYER, patch_component="mlp"
    )
    expected = patched("llama", "denoise", patch_component="mlp")
    assert result.logit_diff_change == pytest.approx(expected.logit_diff_change)


def test_identical_prompts_and_batches_are_refused() -> None:
    with pytest.raises(TokenError, match="are the same"):
        by_text(CLEAN, CLEAN)
    with pytest.raises(TokenError, match=r"one clean prompt .* 2 were given"):
        activation_patch(
            model_of("llama"), [CLEAN, CLEAN], CORRUPT, answers=(TARGET, FOIL), patch_layer=0, tokenizer=TOKENIZER
        )


@pytest.mark.filterwarnings("always")
def test_it_warns_where_the_clean_prompt_does_not_show_the_behaviour() -> None:
    with pytest.warns(InterpWarning, match=f"does not favour 'w{FOIL}' over 'w{TARGET}'"):
        by_text(CLEAN, CORRUPT, answers=(FOIL, TARGET))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        by_text(CLEAN, CORRUPT, answers=(TARGET, FOIL))


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ({"patch_component": "mpl"}, UnknownSiteError, "did you mean 'mlp'"),
        ({"patch_layer": 3}, SiteError, "0 to 2"),
        ({"patch_layer": None}, SiteError, "needs a layer"),
        ({"head": 1}, SiteError, "no heads"),
        ({"patch_component": "head", "head": 4}, SiteError, "0 to 3"),
        ({"patch_component": "k", "head": 2}, SiteError, "0 to 1"),
        ({"patch_component": "head", "head": 1, "neuron": 2}, InterpError, "not of both"),
        ({"patch_component": "L2H1"}, InterpError, "layer 2.*patch_layer=1"),
        ({"patch_component": "L1H1", "head": 2}, InterpError, "head"),
        ({"patch_component": "head", "neuron": 2}, InterpError, "neuron"),
        ({"direction": "noising"}, InterpError, "denoise.*noise.*'noising'"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_patched_is_refused_in_words(how: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        by_text(CLEAN, CORRUPT, **how)


@pytest.mark.usefixtures("unchecked")
def test_a_name_in_place_of_a_model_is_refused_in_words() -> None:
    with pytest.raises(InterpError, match="load_model"):
        activation_patch("demo", "a", "b", "c", patch_layer=0)  # type: ignore[arg-type]


# --- results ------------------------------------------------------------------------------------------------------


def test_a_result_is_saved_as_json_and_comes_back(tmp_path: Path) -> None:
    result = by_text(CLEAN, CORRUPT, answers=None, target_token=f"w{TARGET}", positions=[2, -1])
    path = result.save(tmp_path / "r.json")
    facts = json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert facts["logit_diff_change"] == result.logit_diff_change
    assert facts["normalized_effect"] == result.normalized_effect
    back = PatchResult.load(path)
    assert back == result
    assert back.summary() == result.summary()
    assert back.provenance.model_type == "llama"


@pytest.mark.parametrize("content", [b"[]", b"{}", b"not json", b"\xff\xfe", b'{"format": "other"}', b"null"])
def test_a_file_that_is_no_result_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=r"mine\.json"):
        PatchResult.load(path)


@pytest.mark.parametrize("change", ["less", "more", "positions"])
def test_a_damaged_result_is_refused_by_name(change: str, tmp_path: Path) -> None:
    path = by_text(CLEAN, CORRUPT).save(tmp_path / "mine.json")
    facts = json.loads(path.read_text(encoding="utf-8"))
    if change == "less":
        del facts["target"]
    elif change == "more":
        facts["colour"] = "blue"
    else:
        facts["positions"] = 3
    path.write_text(json.dumps(facts), encoding="utf-8")
    with pytest.raises(FileFormatError, match=r"mine\.json"):
        PatchResult.load(path)


def test_a_result_is_one_row_of_a_table() -> None:
    pytest.importorskip("pandas")
    result = by_text(CLEAN, CORRUPT)
    table = result.to_dataframe()
    assert len(table) == 1
    row = table.iloc[0]
    assert row["site"] == "mlp_out.1"
    assert row["logit_diff_change"] == pytest.approx(result.logit_diff_change)
    assert row["normalized_effect"] == pytest.approx(result.normalized_effect)


def test_the_summary_says_what_was_done_and_found() -> None:
    result = by_text(CLEAN, CORRUPT, "noise", positions=[2])
    words = result.summary()
    for part in (
        "mlp_out.1 of the corrupt run into the clean run",
        f"2 'w{CLEAN[2]}'",
        f"'w{TARGET}' − 'w{FOIL}'",
        f"{result.logit_diff_change:+.3f}",
        f"{result.normalized_effect:+.1%}",
        f"{result.probability_before:.3f}",
    ):
        assert part in words
    assert "at every position" in by_text(CLEAN, CORRUPT).summary()
    assert f"2 'w{CORRUPT[2]}'" in by_text(CLEAN, CORRUPT, positions=[2]).summary()
    assert result.summary() in result._repr_html_().replace("&#x27;", "'")


def test_the_summary_of_a_pair_without_a_difference_has_no_nan() -> None:
    from dataclasses import replace

    result = by_text(CLEAN, CORRUPT)
    flat = replace(result, clean_logit_diff=1.0, corrupt_logit_diff=1.0)
    assert math.isnan(flat.normalized_effect)
    assert "nan" not in flat.summary()


def test_a_result_survives_a_file_without_a_difference(tmp_path: Path) -> None:
    from dataclasses import replace

    flat = replace(by_text(CLEAN, CORRUPT), clean_logit_diff=1.0, corrupt_logit_diff=1.0)
    path = flat.save(tmp_path / "r.json")
    json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert PatchResult.load(path) == flat


# --- a real model -------------------------------------------------------------------------------------------------

EIFFEL, COLOSSEUM = "The Eiffel Tower is in", "The Colosseum is in"


def test_the_promised_call_runs_as_printed(demo: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> None:
    model, tokenizer = demo
    result = activation_patch(
        model=model,
        clean_input="The Eiffel Tower is in",
        corrupt_input="The Colosseum is in",
        target_token="Paris",
        patch_layer=8,
        patch_component="mlp",
    )
    clean, corrupt = (tokenizer(t)["input_ids"] for t in (EIFFEL, COLOSSEUM))
    (paris,), (rome,) = (tokenizer(t)["input_ids"] for t in (" Paris", " Rome"))
    mlp = model.model.layers[8].mlp
    value = seen(model, clean, mlp, "output")
    logits = [
        logits_with(model, clean),
        logits_with(model, corrupt),
        logits_with(model, corrupt, (mlp, "output", moved(value, range(len(clean))))),
    ]
    gaps = [float(x[paris] - x[rome]) for x in logits]
    assert (result.target, result.foil) == (" Paris", " Rome")
    assert (result.clean_logit_diff, result.corrupt_logit_diff) == pytest.approx(gaps[:2], abs=1e-3)
    assert result.logit_diff_change == pytest.approx(gaps[2] - gaps[1], abs=1e-3)
    assert result.logit_diff_change > 0.5
    assert result.top_before[0][0] == " Rome"
    assert result.site == str(Site("mlp_out", 8))


def test_an_answer_of_several_tokens_shows_them(demo: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> None:
    with pytest.raises(TokenError, match=r"'paris' is not one token.*\[' par', 'is'\]"):
        activation_patch(demo[0], EIFFEL, COLOSSEUM, "paris", patch_layer=8)
