"""A run does what it says, and the model is afterwards as it was before."""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from handmade import LAYOUT, Handmade
from interp_toolkit.errors import (
    RunError,
    SiteError,
    TokenError,
    UnavailableSiteError,
    UnknownSiteError,
    UnsupportedModelError,
)
from interp_toolkit.model import Edit, Layout, Site, editing, run, verify
from tiny import FAMILIES, VOCAB, model_of, padded, tiny_model, tokens

IDS = tokens(2, 6)


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=1e-5)


# --- stopping, positions, precision -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("site", "ran"), [("embed", 0), ("resid_pre.1", 1), ("q.1", 1), ("mlp_out.1", 1), ("resid_post.1", 2)]
)
def test_blocks_behind_the_deepest_reading_do_not_run(site: str, ran: int) -> None:
    model, finished = model_of("llama"), []
    verify(model)
    handles = [
        block.register_forward_hook(lambda *_, n=n: finished.append(n), always_call=False)
        for n, block in enumerate(model.model.layers)
    ]
    handles.append(model.lm_head.register_forward_hook(lambda *_: finished.append("lm_head")))
    try:
        result = run(model, IDS, read=[site, "embed"])
    finally:
        for handle in handles:
            handle.remove()
    with pytest.raises(RunError, match="no logits were asked for"):
        _ = result.logits
    # A hook of the caller that was there first may still see the block at whose output the run stops.
    assert finished == list(range(ran))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("spec", "chosen"),
    [
        ("last", [[3], [5], [4]]),
        (0, [[0]] * 3),
        ([1, 2], [[1, 2]] * 3),
        ([[0, 1], [4, 5], [2, 0]], [[0, 1], [4, 5], [2, 0]]),
    ],
)
def test_logits_are_given_where_they_are_asked(side: str, spec: Any, chosen: list[list[int]]) -> None:
    lengths = [4, 6, 5]
    ids, mask = padded(lengths, side)
    model, inputs = model_of("llama"), {"input_ids": ids, "attention_mask": mask}
    every = run(model, inputs, logits="all").logits
    assert every.shape == (3, 6, VOCAB)
    assert torch.equal(run(model, inputs).logits, every)
    found = run(model, inputs, logits=spec).logits
    for row, length in enumerate(lengths):
        start = 6 - length if side == "left" else 0
        close(found[row], every[row, [start + i for i in chosen[row]]])


@pytest.mark.parametrize("spec", [[-1, 0], [2, 0]], ids=str)
def test_logits_and_kept_readings_come_in_the_order_in_which_positions_are_asked(spec: list[int]) -> None:
    model = model_of("llama")
    every = run(model, IDS, read="resid_post.1", logits="all")
    asked = run(model, IDS, read="resid_post.1", logits=spec, keep=spec)
    close(asked.logits, every.logits[:, spec])
    close(asked["resid_post.1"], every["resid_post.1"][:, spec])


def test_logits_of_rows_that_differ_in_number_are_refused() -> None:
    ids, mask = padded([4, 6], "left")
    with pytest.raises(RunError, match="each row needs the same number, at least one"):
        run(model_of("llama"), {"input_ids": ids, "attention_mask": mask}, logits="prompt")


@pytest.mark.parametrize("side", ["left", "right"])
def test_keep_cuts_every_reading_to_its_positions(side: str) -> None:
    ids, mask = padded([4, 6, 5], side)
    model, inputs = model_of("llama"), {"input_ids": ids, "attention_mask": mask}
    every = run(model, inputs, read=["resid_post", "z", "k", "pattern"], logits="all")
    part = run(model, inputs, read=["resid_post", "z", "k", "pattern"], keep=[1, -1], logits="all")
    assert torch.equal(part.logits, every.logits)
    columns = torch.tensor([[3, 5], [1, 5], [2, 5]] if side == "left" else [[1, 3], [1, 5], [1, 4]])
    rows = torch.arange(3)[:, None]
    for site in every:
        expected = (
            every[site].transpose(1, 2)[rows, columns].transpose(1, 2)
            if site.component == "pattern"
            else every[site][rows, columns]
        )
        assert torch.equal(part[site], expected), site
    with pytest.raises(RunError, match=r"differ in number between the rows: \[4, 6, 5\]"):
        run(model, inputs, read="resid_post", keep="prompt")


def test_dtype_and_device_are_those_asked_for() -> None:
    result = run(
        model_of("llama"), IDS, read=["resid_post", "pattern"], dtype=torch.float16, device="cpu", logits="last"
    )
    assert {x.dtype for x in result.values()} == {torch.float16}
    assert result.logits.dtype == torch.float32


def test_readings_are_the_callers_own() -> None:
    model = model_of("llama")
    result = run(model, IDS, read=["embed", "resid_pre", "resid_post", "attn_out", "v", "z"], logits="all")
    assert all(not x.requires_grad and x.is_contiguous() for x in result.values())
    before = result.logits.clone()
    for x in result.values():
        x.zero_()
    assert torch.equal(run(model, IDS).logits, before)


def test_what_leaves_a_block_and_enters_the_next_is_kept_once() -> None:
    result = run(model_of("llama"), IDS, read=["embed", "resid_pre", "resid_post"])
    assert result["resid_pre.0"].data_ptr() == result["embed"].data_ptr()
    assert result["resid_pre.2"].data_ptr() == result["resid_post.1"].data_ptr()
    changed = run(model_of("llama"), IDS, read=["resid_pre", "resid_post"], edits=[Edit.add("resid_pre.2", 1.0)])
    close(changed["resid_pre.2"], changed["resid_post.1"] + 1)


def test_a_head_is_cut_out_of_its_site_and_unknown_readings_are_named() -> None:
    result = run(model_of("llama"), IDS, read=["L1H2", "k.1", "pattern.1"])
    assert result["z.1.2"].shape == (2, 6, 8)
    assert torch.equal(result["z.1.2"], result["z.1"][:, :, 2])
    assert torch.equal(result["pattern.1.3"], result["pattern.1"][:, 3])
    assert torch.equal(result["blocks.1.attn.hook_z"], result["z.1"])
    assert list(result) == [Site("k", 1), Site("pattern", 1), Site("z", 1)]
    with pytest.raises(UnknownSiteError, match=r"z\.0 was not read; this run has k\.1, pattern\.1, z\.1"):
        result["z.0"]


@pytest.mark.usefixtures("unchecked")
def test_a_residual_to_start_from_without_a_batch_is_refused() -> None:
    with pytest.raises(RunError, match=r"shape \[batch, pos, d_model\]"):
        run(model_of("llama"), IDS, start=(2, torch.zeros(6, 32)))


def test_a_run_is_a_mapping_from_sites_to_readings() -> None:
    result = run(model_of("llama"), IDS, read=["resid_post.0", "z.1"])
    assert isinstance(result, Mapping)
    assert list(result.keys()) == [Site("resid_post", 0), Site("z", 1)]
    assert len(result) == len(result.values()) == 2
    assert [reading.shape for _, reading in result.items()] == [(2, 6, 32), (2, 6, 4, 8)]
    assert "resid_post.0" in result
    assert Site("z", 1, 2) in result
    assert "z.0" not in result
    assert 3 not in result
    assert result.get("z.0") is None
    assert result.get("resid_post.0") is result["resid_post.0"]


def test_a_layer_counted_from_the_end_finds_its_reading() -> None:
    result = run(model_of("llama"), IDS, read="resid_post.-1")
    assert list(result) == [Site("resid_post", 2)]
    assert result["resid_post.-1"] is result["resid_post.2"]
    assert "resid_post.-1" in result


def test_starting_runs_only_the_blocks_from_there_on() -> None:
    model, entered = model_of("llama"), []
    residual = run(model, IDS, read="resid_pre.2")["resid_pre.2"]
    handles = [
        block.self_attn.register_forward_hook(lambda *_, n=n: entered.append(n))
        for n, block in enumerate(model.model.layers)
    ]
    try:
        found = run(model, IDS, start=(2, residual + 1), logits="last").logits
    finally:
        for handle in handles:
            handle.remove()
    assert entered == [2]
    close(found, run(model, IDS, edits=[Edit.add("resid_pre.2", 1.0)], logits="last").logits)
    with pytest.raises(RunError, match=r"starts at layer 2 never reaches resid_post\.0"):
        run(model, IDS, start=(2, residual), read="resid_post.0")
    with pytest.raises(RunError, match=r"has shape \(2, 5, 32\), the run needs \(2, 6, 32\)"):
        run(model, IDS, start=(2, residual[:, 1:]))
    with pytest.raises(SiteError, match="layer 3, but the model has 3 layers"):
        run(model, IDS, start=(3, residual))


def test_gradients_reach_values_that_are_set() -> None:
    model = model_of("llama")
    vector = torch.zeros(32, requires_grad=True)
    logits = run(model, IDS, edits=[Edit.add("resid_post.0", vector)], logits="last", grad=True).logits
    (gradient,) = torch.autograd.grad(logits[..., 5].sum(), vector)
    assert gradient.abs().max() > 1e-3
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("option", [{"keep": "last"}, {"device": "cpu"}, {"dtype": torch.float64}], ids=str)
def test_readings_with_gradients_are_neither_cut_nor_moved(option: dict[str, Any]) -> None:
    with pytest.raises(RunError, match=r"with grad=True readings stay on the path to the output: cut or move them"):
        run(model_of("llama"), IDS, read="resid_pre.1", logits="all", grad=True, **option)


def test_gradients_that_are_asked_for_are_there_under_no_grad_too() -> None:
    model = model_of("llama")
    expected = run(model, IDS, read="resid_pre.1", logits="all", grad=True)
    (by_hand,) = torch.autograd.grad(expected.logits.square().sum(), expected["resid_pre.1"])
    with torch.no_grad():
        result = run(model, IDS, read="resid_pre.1", logits="all", grad=True)
        assert not torch.is_grad_enabled()
    (gradient,) = torch.autograd.grad(result.logits.square().sum(), result["resid_pre.1"])
    assert torch.equal(gradient, by_hand)


# --- nothing stays behind ---------------------------------------------------------------------------------------------

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_forward_hooks_with_kwargs")


def state(model: nn.Module) -> dict[str, Any]:
    """Everything that a run could leave behind."""
    attention = next(m for name, m in model.named_modules() if name.endswith(("attn", "self_attention")))
    space = inspect.unwrap(type(attention).forward).__globals__
    with torch.no_grad():
        logits = model(IDS, use_cache=False).logits
    return {
        "hooks": {(n, h): dict(getattr(m, h)) for n, m in model.named_modules() for h in HOOKS},
        "attributes": {n: sorted(m.__dict__) for n, m in model.named_modules()},
        "training": {n: m.training for n, m in model.named_modules()},
        "attention functions": id(space.get("ALL_ATTENTION_FUNCTIONS")),
        "implementation": model.config._attn_implementation,
        "config": model.config.to_dict(),
        "cache": model.config.use_cache,
        "modes": torch.overrides._get_current_function_mode_stack(),
        "gradients": torch.is_grad_enabled(),
        "logits": logits.tolist(),
    }


def raising(error: BaseException) -> Callable[[Tensor], Tensor]:
    def function(x: Tensor) -> Tensor:
        raise error

    return function


SITES = [
    "resid_pre.1",
    "q.1",
    "v.1",
    "scores.1",
    "pattern.1",
    "z.1",
    "head_out.1",
    "attn_out.1",
    "mlp_post.1",
    "logits",
]
MODELS = ["gpt2", "llama", "falcon", "bloom"]


@pytest.mark.parametrize("name", MODELS)
def test_nothing_stays_behind_after_a_run(name: str) -> None:
    model = model_of(name)
    before = state(model)
    run(model, IDS, read=["resid_post", "pattern", "head_out", "q"], edits=[Edit.scale("L0H0", 0.5)], logits="last")
    assert state(model) == before
    run(model, IDS, read=["pattern.1", "q.0"])  # stops early
    assert state(model) == before
    run(model, IDS, read="pattern", grad=True, logits="last")
    assert state(model) == before


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt("mine")], ids=["exception", "interrupt"])
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("name", MODELS)
def test_nothing_stays_behind_when_an_edit_raises(name: str, site: str, error: BaseException) -> None:
    model = model_of(name)
    before = state(model)
    with pytest.raises(type(error), match="mine"):
        run(model, IDS, edits=[Edit.apply(site, raising(error))], read=["pattern", "z"], logits="all")
    assert state(model) == before
    run(model, IDS, read="pattern")


def test_nothing_stays_behind_when_the_model_itself_fails() -> None:
    model = model_of("llama")
    before = state(model)
    handle = model.model.layers[1].mlp.register_forward_pre_hook(lambda *_: raising(OSError("broken"))(IDS))
    try:
        with pytest.raises(OSError, match="broken"):
            run(model, IDS, read=["pattern", "head_out"], logits="all")
    finally:
        handle.remove()
    assert state(model) == before

    def fail_in_a_block() -> None:
        with editing(model, [Edit.scale("L1H1", 0.5)], read="pattern"):
            model(IDS)
            raise RuntimeError("of mine")

    with pytest.raises(RuntimeError, match="of mine"):
        fail_in_a_block()
    assert state(model) == before


def test_blocks_that_are_left_in_another_order_than_they_were_entered_leave_nothing() -> None:
    model = model_of("llama")
    before = state(model)
    first, second = editing(model, read="resid_post.0"), editing(model, read="resid_post.0")
    watched_first, watched_second = first.__enter__(), second.__enter__()
    model(IDS)
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert torch.equal(watched_first["resid_post.0"], watched_second["resid_post.0"])
    assert state(model) == before


def test_a_forward_replaced_by_the_user_stays_replaced() -> None:
    model, calls = tiny_model("gpt2"), []
    inner = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return inner(*args, **kwargs)

    model.forward = forward
    run(model, IDS, read="pattern", logits="all")
    assert model.__dict__["forward"] is forward
    assert calls


# --- nested and concurrent --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("site", SITES)
def test_a_run_inside_an_edit_is_the_same_as_outside_and_leaves_the_outer_one_right(name: str, site: str) -> None:
    model = model_of(name)
    reads = ["resid_post", "pattern", "z", "k"]
    inner_edit, outer_edit = Edit.scale("resid_pre.1", 0.5), Edit.add("mlp_out.0", 0.3)
    alone = run(model, IDS, read=reads, edits=[inner_edit], logits="all")
    bare = run(model, IDS).logits
    expected = run(model, IDS, read=reads, edits=[outer_edit, Edit.scale(site, 0.5)], logits="all")
    inside: list[Any] = []

    def function(x: Tensor) -> Tensor:
        inside.append(run(model, IDS, read=reads, edits=[inner_edit], logits="all"))
        inside.append(model(IDS, use_cache=False).logits)
        return x * 0.5

    outer = run(model, IDS, read=reads, edits=[outer_edit, Edit.apply(site, function)], logits="all")
    assert len(inside) == 2
    assert torch.equal(inside[0].logits, alone.logits)
    assert all(torch.equal(inside[0][key], alone[key]) for key in alone)
    assert torch.equal(inside[1], bare)
    assert torch.equal(outer.logits, expected.logits)
    assert all(torch.equal(outer[key], expected[key]) for key in expected)


def test_editing_blocks_nest_and_both_act() -> None:
    model = model_of("llama")
    first, second = Edit.add("resid_post.0", 0.5), Edit.scale("L1H1", 0.0)
    expected = run(model, IDS, edits=[first, second]).logits
    with torch.no_grad(), editing(model, [first]):
        with editing(model, [second]):
            both = model(IDS, use_cache=False).logits
        one = model(IDS, use_cache=False).logits
    assert torch.equal(both, expected)
    assert torch.equal(one, run(model, IDS, edits=[first]).logits)


def test_other_models_of_the_class_are_untouched() -> None:
    model, other = model_of("llama"), tiny_model("llama", seed=1)
    verify(other)
    with torch.no_grad():
        expected = other(IDS, use_cache=False).logits
    found: list[Tensor] = []

    def function(x: Tensor) -> Tensor:
        found.append(other(IDS, use_cache=False).logits)
        return x * 0

    run(model, IDS, edits=[Edit.apply("pattern.1", function)], read="pattern")
    with torch.no_grad(), editing(model, [Edit.scale("v.1", 0.0)]):
        found.append(other(IDS, use_cache=False).logits)
        model(IDS)
    assert all(torch.equal(x, expected) for x in found)


@pytest.mark.parametrize("same", [True, False], ids=["one model", "two models of a class"])
@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_threads_never_mix(name: str, same: bool) -> None:
    models = [tiny_model(name), tiny_model(name, seed=1)]
    pair = [models[0], models[0]] if same else models
    edits = [[Edit.scale("L1H1", 0.0)], [Edit.add("resid_pre.1", 0.5), Edit.scale("pattern.0.2", 0.5)]]
    reads = ["pattern", "z", "resid_post"]
    expected = [run(m, IDS, read=reads, edits=e, logits="all") for m, e in zip(pair, edits, strict=True)]
    wrong: list[Any] = []

    def work(n: int) -> None:
        try:
            for _ in range(15):
                result = run(pair[n], IDS, read=reads, edits=edits[n], logits="all")
                if not all(torch.equal(result[key], expected[n][key]) for key in result):
                    wrong.append(n)
                if not torch.equal(result.logits, expected[n].logits):
                    wrong.append(n)
        except BaseException as error:
            wrong.append(error)
            raise

    threads = [threading.Thread(target=work, args=(n,)) for n in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    assert not any(thread.is_alive() for thread in threads)


def test_a_bare_call_in_another_thread_is_not_edited() -> None:
    model, found = model_of("llama"), []
    with torch.no_grad():
        expected = model(IDS, use_cache=False).logits

    def call() -> None:
        with torch.no_grad():
            found.append(model(IDS, use_cache=False).logits)

    def function(x: Tensor) -> Tensor:
        thread = threading.Thread(target=call)
        thread.start()
        thread.join(30)
        return x * 0

    run(model, IDS, edits=[Edit.apply("z.1", function)], read="pattern", logits="all")
    assert torch.equal(found[0], expected)
    with torch.no_grad(), editing(model, [Edit.set("logits", 0.0), Edit.set("resid_pre.1", 0.0)]):
        function(IDS)
        assert not model(IDS).logits.any()
    assert torch.equal(found[1], expected)


# --- kinds of models --------------------------------------------------------------------------------------------------


def test_training_mode_warns() -> None:
    model = tiny_model("gpt2").train()
    with pytest.warns(UserWarning, match=r"training mode: dropout makes readings random.*call model.eval\(\)"):
        run(model, IDS)
    assert model.training
    assert all(m.training for m in model.modules())


def test_a_part_that_is_not_in_training_mode_stays_so() -> None:
    model = tiny_model("llama").train()
    model.model.layers[0].eval()
    before = {name: module.training for name, module in model.named_modules()}
    with pytest.warns(UserWarning, match="training mode"):
        run(model, IDS)
    assert {name: module.training for name, module in model.named_modules()} == before


@pytest.mark.parametrize("how", ["wrapper", "method", "block"])
def test_a_compiled_model_is_refused(how: str) -> None:
    model = tiny_model("gpt2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch, when it loads its compiler
        if how == "wrapper":
            model = torch.compile(model)
        else:
            (model if how == "method" else model.transformer.h[0]).compile()
    with pytest.raises(
        UnsupportedModelError, match=r"the model is compiled: .*Use the model from before torch.compile"
    ):
        run(model, IDS)


SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": VOCAB,
}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: transformers.BertForMaskedLM(transformers.BertConfig(**SMALL)),
            "BertForMaskedLM cannot generate: it is an encoder",
        ),
        (
            lambda: transformers.T5ForConditionalGeneration(
                transformers.T5Config(d_model=16, num_layers=2, num_heads=2, d_kv=8, d_ff=16, vocab_size=VOCAB)
            ),
            "T5ForConditionalGeneration is an encoder-decoder model; this library looks into decoder-only",
        ),
        (
            lambda: transformers.AutoModel.from_config(FAMILIES["llama"].config()),
            "LlamaModel cannot generate: .* without an unembedding",
        ),
        (lambda: nn.Linear(2, 2), r"Linear has no Hugging Face config: pass layout=Layout\(...\)"),
    ],
    ids=["encoder", "encoder-decoder", "headless", "something else"],
)
def test_what_is_no_causal_language_model_is_refused_in_clear_words(make: Callable[[], nn.Module], words: str) -> None:
    with pytest.raises(UnsupportedModelError, match=words):
        run(make(), IDS)


@pytest.mark.usefixtures("unchecked")
def test_a_name_in_place_of_a_model_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"expected a causal language model .*, not 'gpt2': load it first"):
        run("gpt2", IDS)


@pytest.mark.parametrize(("ids", "wrong"), [([1, 500], 500), ([-1, 3], -1)], ids=str)
def test_ids_outside_of_the_vocabulary_are_refused(ids: list[int], wrong: int) -> None:
    with pytest.raises(TokenError, match=f"token id {wrong} is outside of the model's vocabulary: 0 to {VOCAB - 1}"):
        run(model_of("llama"), ids)


@pytest.mark.parametrize("name", ["llama", "qwen2", "mistral", "gemma2"])
def test_bfloat16_models_are_read_bitwise(name: str) -> None:
    model = tiny_model(name, dtype=torch.bfloat16)
    result = run(model, IDS, read=["resid_post", "z", "head_out", "attn_out", "q"], logits="all")
    with torch.no_grad():
        bare = model(IDS, use_cache=False, output_hidden_states=True)
    assert torch.equal(result.logits, bare.logits)
    assert torch.equal(result["resid_post.0"], bare.hidden_states[1])
    assert {x.dtype for x in result.values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("name", "targets"), [("gpt2", ["c_attn", "c_proj"]), ("llama", ["q_proj", "v_proj", "o_proj", "down_proj"])]
)
def test_adapters_are_seen_as_part_of_the_model(name: str, targets: list[str]) -> None:
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(target_modules=targets, r=2, init_lora_weights=False, fan_in_fan_out=name == "gpt2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(tiny_model(name), settings).eval()
    result = run(model, IDS, read=["head_out", "attn_out", "z", "resid_pre", "resid_post", "mlp_out"], logits="all")
    with torch.no_grad():
        assert torch.equal(result.logits, model(IDS, use_cache=False).logits)
        merged = model.merge_and_unload()
    assert (result.logits - model_of(name)(IDS).logits).abs().max() > 1e-2
    again = run(merged, IDS, read=["head_out", "attn_out", "z"], logits="all")
    for site in again:
        close(result[site], again[site], 1e-4)
    edit = [Edit.set("head_out.1.2", 0.0)]
    close(run(model, IDS, edits=edit).logits, run(merged, IDS, edits=[Edit.set("L1H2", 0.0)]).logits, 1e-4)


def test_prompt_tuning_is_refused_with_the_reason() -> None:
    peft = pytest.importorskip("peft")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(
            tiny_model("gpt2"), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
        )
    with pytest.raises(UnsupportedModelError, match="virtual tokens in front of the prompt"):
        run(model, IDS)


class Int8Linear(nn.Module):
    """Weights kept as eight-bit integers with one scale a row."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("weight", (linear.weight.detach() / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.scale, self.bias)


def test_a_quantised_model_works_head_outputs_included() -> None:
    model = tiny_model("llama")
    for layer in model.model.layers:
        for parent in (layer.self_attn, layer.mlp):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(parent, name, Int8Linear(child))
    assert not verify(model).refused
    result = run(model, IDS, read=["head_out", "attn_out"], logits="all")
    with torch.no_grad():
        assert torch.equal(result.logits, model(IDS, use_cache=False).logits)
    close(result["head_out.1"].sum(2), result["attn_out.1"])
    assert not torch.equal(result.logits, run(model_of("llama"), IDS).logits)


def test_a_dispatched_model_works_and_keeps_its_hooks() -> None:
    accelerate = pytest.importorskip("accelerate")
    model = accelerate.dispatch_model(tiny_model("llama"), {"": "cpu"}, force_hooks=True)
    expected = run(model_of("llama"), IDS, read=["head_out", "pattern"], logits="all")
    before = {name: sorted(m.__dict__) for name, m in model.named_modules()}
    found = run(model, IDS, read=["head_out", "pattern"], logits="all")
    run(model, IDS, read="z.0")
    assert all(torch.equal(found[site], expected[site]) for site in expected)
    assert torch.equal(found.logits, expected.logits)
    assert {name: sorted(m.__dict__) for name, m in model.named_modules()} == before


def offloaded(model: nn.Module) -> nn.Module:
    """The model with its weights kept elsewhere, and brought only while a module runs."""
    accelerate = pytest.importorskip("accelerate")
    return accelerate.cpu_offload(model, execution_device=torch.device("cpu"))


def test_an_offloaded_model_works_head_outputs_included() -> None:
    expected = run(model_of("llama"), IDS, read=["head_out", "attn_out"], logits="all")
    found = run(offloaded(tiny_model("llama")), IDS, read=["head_out", "attn_out"], logits="all")
    assert torch.equal(found.logits, expected.logits)
    for site in expected:
        close(found[site], expected[site])


def test_head_outputs_of_a_model_that_was_offloaded_after_its_verification_are_real() -> None:
    model = tiny_model("llama")
    verify(model)
    found = run(offloaded(model), IDS, read="head_out.1")["head_out.1"]
    close(found, run(model_of("llama"), IDS, read="head_out.1")["head_out.1"])


# --- a model class of one's own ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["matmul", "sdpa", "bmm"])
def test_a_model_class_of_ones_own_works_through_a_layout(kind: str) -> None:
    model = Handmade(kind).eval()
    found = verify(model, Layout(**LAYOUT))
    assert {name for name, answer in found.components().items() if answer != "yes"} == {"final_norm"}
    reads = [name for name, answer in found.components().items() if answer == "yes"]
    result = run(model, IDS, read=reads)
    with torch.no_grad():
        assert torch.equal(result.logits, model(IDS))
        close(result["attn_out.1"], model.layers[1].attn(result["resid_pre.1"]))
        q, k, v = (part.view(2, 6, 4, 4) for part in model.layers[1].attn.qkv(result["resid_pre.1"]).chunk(3, -1))
        close(result["mlp_post.0"], model.layers[0].mlp[:2](result["resid_mid.0"]))
    close(result["q.1"], q)
    close(result["k.1"], k)
    close(result["v.1"], v)
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / 2
    pattern = scores.masked_fill(~torch.ones(6, 6).bool().tril(), -torch.inf).softmax(-1)
    close(result["pattern.1"], pattern)
    close(result["z.1"], torch.einsum("bhqk,bkhd->bqhd", pattern, v))
    close(run(model, IDS, edits=[Edit.set("pattern.1", torch.eye(6))], read="z.1")["z.1"], v)
    with pytest.raises(
        UnavailableSiteError, match=r"final_norm is not available in this handmade model: the model has no final norm"
    ):
        run(model, IDS, read="final_norm")
    with pytest.raises(
        RunError, match="handmade takes no attention mask, so prompts of different lengths need one run each"
    ):
        run(model, [[3, 4, 5], [6, 7]])


class TakesTokens(Handmade):
    """Its token ids go by another name than in transformers."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens)


def test_the_parameter_of_a_forward_may_have_any_name() -> None:
    layout = Layout(**LAYOUT)
    found = run(TakesTokens("sdpa").eval(), IDS, layout=layout, read="z.1", logits="all")
    expected = run(Handmade("sdpa").eval(), IDS, layout=layout, read="z.1", logits="all")
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found["z.1"], expected["z.1"])


def test_a_layout_without_a_middle_says_why_there_is_none() -> None:
    model = Handmade("matmul").eval()
    found = verify(model, Layout(**{**LAYOUT, "mid": None}))
    assert found.components()["resid_mid"] == "the layout names no module that reads it"
    assert found.components()["attn_out"] == "yes"
    with pytest.raises(UnavailableSiteError, match="the layout names no module that reads it"):
        run(model, IDS, read="resid_mid.0")


def test_a_layout_is_needed_and_must_name_what_is_there() -> None:
    with pytest.raises(UnsupportedModelError, match=r"pass layout=Layout\(...\) that says which submodule is what"):
        run(Handmade("sdpa"), IDS)
    with pytest.raises(
        UnsupportedModelError, match=r"names modules that are not there: mlp='ffn'; a block holds attn, attn.proj"
    ):
        run(Handmade("sdpa"), IDS, layout=Layout(**{**LAYOUT, "mlp": "ffn"}))
    with pytest.raises(UnsupportedModelError, match="'layers' holds 3 blocks, but the model has no such list"):
        run(Handmade("sdpa"), IDS, layout=Layout(**{**LAYOUT, "num_layers": 3}))
    with pytest.raises(TokenError, match="pass tokenizer="):
        run(Handmade("sdpa").eval(), "text", layout=Layout(**LAYOUT))
