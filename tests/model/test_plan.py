"""Plans give the same numbers as one full forward pass per cell, in every family and with every shortcut."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from brute import LENGTH, SHARED, Brute, answers, check, off, prompts, swap, swaps_of, usable
from handmade import LAYOUT, Handmade
from interp_toolkit.model import Layout, Site, encode, run
from interp_toolkit.model.plan import Base, Cell, make_plan
from interp_toolkit.model.shortcuts import NONE, Shortcuts
from interp_toolkit.model.trial import shortcuts_of
from interp_toolkit.model.verify import verified
from tiny import FAMILIES, model_of, tiny_model, tokens

COMPONENTS = (
    *("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z", "q", "k", "v"),
    *("pattern", "scores", "head_out", "mlp_post"),
)
PLACES: tuple[tuple[int, ...], ...] = ((), (SHARED,), (4, 7, 8), (LENGTH - 1,), (1, 6), (5,))
EVERY = [(name, implementation) for name, family in FAMILIES.items() for implementation in family.implementations]
FIRST = {name: family.implementations[0] for name, family in FAMILIES.items()}
IN_FLOAT64 = [
    *("gpt2", "gpt_neox", "gpt_bigcode", "opt", "bloom", "falcon", "mpt", "mistral", "gemma2", "cohere", "granite"),
    *("glm4", "minicpm3"),
]
SEVERAL = ("llama", "gpt2", "gemma2", "qwen3_moe", "bloom")


def mixed_cells(model: Any, turn: int = 0) -> list[Cell]:
    """Swaps of all kinds: each component at two of the first, middle and last layer, at places in turn."""
    number = verified(model).layout.num_layers
    layers = (0, number // 2, number - 1)
    sites = [
        site
        for n, component in enumerate(COMPONENTS)
        for k in (0, 1)
        for site in usable(model, [component], layers[(n + k + turn) % 3])
    ]
    sites += [Site(name) for name in ("embed", "final_norm") if Site(name) not in verified(model).refused]
    places = itertools.cycle(PLACES)
    cells = [Cell(base=n % 2, swaps=(swap(s, *next(places), source=1 - n % 2),)) for n, s in enumerate(sites)]
    several = Cell(
        base=0, swaps=(swap("resid_pre.1", 4), swap("mlp_out.-1", 9, 10), swap("z.0.1", 6), swap("embed", 8))
    )
    return [*cells, several]


# --- every family -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "implementation"),
    [pytest.param(n, kind, marks=() if kind == FIRST[n] else pytest.mark.slow) for n, kind in EVERY],
)
def test_swaps_of_every_kind_give_the_numbers_of_one_full_pass_each(name: str, implementation: str) -> None:
    model = model_of(name, implementation)
    turn = EVERY.index((name, implementation))
    default = implementation == FIRST[name]
    plan = check(model, prompts(), mixed_cells(model, turn)[turn % 2 :: 2 if default else 6])
    assert plan.cost.passes <= len(plan.schedule.cells) / 2
    assert set(plan.cost.shortcuts) >= {"resume", "prefix"}


@pytest.mark.parametrize("name", IN_FLOAT64)
def test_in_double_precision_they_differ_by_rounding_only(name: str) -> None:
    model = model_of(name, dtype=torch.float64)
    cells = mixed_cells(model)[::2]
    found = answers(make_plan(model, prompts(), cells))
    errors = off(found, Brute(model, prompts()).logits(cells))
    # Where patterns are changed, a layer's rows go through eager attention, whose softmax is in single precision.
    squares = [any(s.site.component in ("scores", "pattern") for s in cell.swaps) for cell in cells]
    assert max(e for e, square in zip(errors, squares, strict=True) if not square) < 1e-10
    assert max(errors) < 1e-5


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma2"])
def test_in_bfloat16_they_differ_as_little_as_its_rounding(name: str) -> None:
    model = model_of(name, dtype=torch.bfloat16)
    check(model, prompts(), mixed_cells(model)[::3], tolerance=0.1)


@pytest.mark.parametrize("name", ["mistral", "gemma3_text", "gpt_oss", "llama4_text", "gpt_neo"])
def test_prompts_much_longer_than_the_sliding_window_are_right(name: str) -> None:
    bases = prompts(length=17, shared=6)
    check(model_of(name), bases, swaps_of(0, ["resid_pre.0", "k.1", "pattern.2", "mlp_out.2"], [6, 8, 12, 16, None]))


def blocks_of(model: Any) -> nn.ModuleList:
    return verified(model).blocks


@pytest.mark.parametrize(("name", "mlp"), [("llama", "mlp"), ("gpt2", "mlp"), ("gpt_neox_sequential", "mlp")])
def test_a_plan_equals_hooks_written_by_hand(name: str, mlp: str) -> None:
    model = model_of(name)
    bases = prompts()
    ids = [base.tokens.ids for base in bases]
    blocks, kept = blocks_of(model), {}

    def keep(key: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            kept[key] = output.clone()

        return hook

    def put_in(layer: int, position: int) -> Any:
        def hook(module: nn.Module, args: Any) -> Any:
            x = args[0].clone()
            x[:, position] = kept[f"pre{layer}"][:, position]
            return (x, *args[1:])

        return hook

    def put_out(layer: int, position: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            new = output.clone()
            new[:, position] = kept[f"mlp{layer}"][:, position]
            return new

        return hook

    with torch.no_grad():
        handles = [
            blocks[layer].register_forward_pre_hook(lambda _, args, n=layer: kept.update({f"pre{n}": args[0].clone()}))
            for layer in range(3)
        ]
        handles += [blocks[layer].get_submodule(mlp).register_forward_hook(keep(f"mlp{layer}")) for layer in range(3)]
        model(ids[1])
        for handle in handles:
            handle.remove()
        cells, expected = [], []
        for layer, position in itertools.product(range(3), (2, 3, 6, 10)):
            for site, module, hook in (
                ("resid_pre", blocks[layer], put_in(layer, position)),
                ("mlp_out", blocks[layer].get_submodule(mlp), put_out(layer, position)),
            ):
                before = site == "resid_pre"
                handle = (module.register_forward_pre_hook if before else module.register_forward_hook)(hook)
                expected.append(model(ids[0]).logits[0, -1:])
                handle.remove()
                cells.append(Cell(base=0, swaps=(swap(f"{site}.{layer}", position),)))
    plan = make_plan(model, bases, cells)
    assert not plan.cost.off
    assert max(off(answers(plan), expected)) < 1e-5


# --- shortcuts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("readout", [False, True], ids=["logits", "rows of the unembedding"])
@pytest.mark.parametrize(("resume", "join", "prefix"), list(itertools.product([False, True], repeat=3)))
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if number > 2 else ()) for number, name in enumerate(SEVERAL)]
)
def test_shortcuts_change_no_number(name: str, resume: bool, join: bool, prefix: bool, readout: bool) -> None:
    model = model_of(name)
    proved = shortcuts_of(verified(model))
    chosen = Shortcuts(
        resume=resume, join=join and proved.join, prefix=prefix, readout=proved.readout if readout else None
    )
    cells = mixed_cells(model)[::8]
    vocab = [[5, 8], [9, 4]] if readout else None
    plan = make_plan(model, prompts(), cells, shortcuts=chosen, vocab=vocab)
    expected = Brute(model, prompts()).logits(cells)
    if vocab is not None:
        expected = [x[:, vocab[cell.base]] for x, cell in zip(expected, cells, strict=True)]
    assert max(off(answers(plan), expected)) < 1e-4
    off_now = plan.cost.off
    assert ("resume" in off_now, "prefix" in off_now) == (not resume, not prefix)


def test_each_shortcut_saves_work() -> None:
    model, bases = model_of("llama"), prompts(length=48)
    cells = swaps_of(0, ["resid_pre.0", "resid_pre.1", "resid_pre.2"], range(SHARED, 48))
    everything = make_plan(model, bases, cells).cost
    none = make_plan(model, bases, cells, shortcuts=NONE).cost
    assert everything.layer_tokens < none.layer_tokens / 2.5
    for name in ("resume", "prefix"):
        fewer = make_plan(model, bases, cells, shortcuts=Shortcuts(**{name: False})).cost
        assert 1.2 * everything.layer_tokens < fewer.layer_tokens < none.layer_tokens
    assert make_plan(model, bases, cells, shortcuts=Shortcuts(join=False)).cost.passes > everything.passes
    assert none.layer_tokens == 3 * 48 * (len(cells) - none.known)
    assert none.naive_layer_tokens == 3 * 48 * (len(cells) + 2)


@pytest.mark.parametrize(
    ("name", "implementation"), [("bloom", "eager"), ("gpt_bigcode", "sdpa"), ("falcon_alibi", "eager")]
)
def test_a_model_that_cannot_join_rows_is_planned_without_and_told_why(name: str, implementation: str) -> None:
    plan = make_plan(model_of(name, implementation), prompts(), swaps_of(0, ["resid_pre.0", "resid_pre.1"], [4, 5]))
    assert "join" in plan.cost.off
    assert "shortcuts: resume, prefix, readout\n  without join: RuntimeError: " in plan.explain()


@pytest.mark.parametrize("kind", ["matmul", "sdpa"])
def test_a_model_class_without_a_cache_is_planned_without_prefix_and_told_why(kind: str) -> None:
    model, layout = Handmade(kind).eval(), Layout(**LAYOUT)
    cells = swaps_of(0, ["resid_pre.0", "resid_pre.1", "z.1.2", "v.1", "mlp_post.0"], [2, 4, 9, None])
    plan = check(model, prompts(), cells, layout=layout)
    assert plan.cost.shortcuts == ("resume", "join")
    assert "\n  without prefix: TypeError: " in plan.explain()


@pytest.mark.parametrize(
    ("attribute", "wrong"),
    [
        ("_joined", lambda self, known, new: new),
        ("get_seq_length", lambda self, *args: 0),
    ],
    ids=["no prefix", "no length"],
)
def test_a_cache_that_does_not_hold_is_found_out(attribute: str, wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from interp_toolkit.model import prefix

    model = tiny_model("llama")
    with monkeypatch.context() as patch:
        patch.setattr(prefix._Prefix, attribute, wrong)
        plan = make_plan(model, prompts(), swaps_of(0, ["resid_pre.1"], [4]))
    assert plan.cost.shortcuts == ("resume", "join", "readout")
    assert f"without prefix: {plan.cost.off['prefix']}" in plan.explain()
    check(model, prompts(), swaps_of(0, ["resid_pre.1", "v.0"], [4, 6]))


def test_a_model_in_training_mode_takes_no_shortcut() -> None:
    model = tiny_model("llama").train()
    with pytest.warns(UserWarning, match="training mode"):
        plan = check(model, prompts(), swaps_of(0, ["resid_pre.1"], [4, 6]))
    assert plan.cost.off == dict.fromkeys(("resume", "join", "prefix", "readout"), "training mode")


class ReadsIdsAgain(nn.Module):
    """An MLP whose output depends on the ids that the model was given, as with per-layer embeddings."""

    def __init__(self, inner: nn.Module, model: Any) -> None:
        super().__init__()
        self.inner = inner
        self.given: list[Tensor] = []
        self.table = nn.Embedding(*model.get_input_embeddings().weight.shape)
        model.register_forward_pre_hook(self.see, with_kwargs=True)

    def see(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self.given = [kwargs["input_ids"] if "input_ids" in kwargs else args[0]]

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + self.table(self.given[0][:, -x.shape[1] :])


def test_rows_of_several_prompts_join_only_where_no_block_looks_at_the_ids_again() -> None:
    model = tiny_model("llama")
    torch.manual_seed(0)
    model.model.layers[2].mlp = ReadsIdsAgain(model.model.layers[2].mlp, model)
    cells = [
        Cell(base=b, swaps=(swap(s, p, source=1 - b),)) for b in (0, 1) for s in ("resid_pre.0", "v.1") for p in (4, 9)
    ]
    check(model.eval(), prompts(), cells)


# --- cells that are known ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_cells_called_known_equal_their_base_and_no_other_cell_is(name: str) -> None:
    model = model_of(name)
    number = verified(model).layout.num_layers
    names = [c for c in COMPONENTS if Site(c, 0) not in verified(model).refused and c != "mlp_post"]
    sites = [Site(c, layer) for c in names for layer in range(number)] + [Site("embed"), Site("final_norm")]
    cells = swaps_of(0, sites, [1, SHARED, 6, LENGTH - 1])
    plan = make_plan(model, prompts(), cells)
    expected = Brute(model, prompts()).logits(cells)
    plain = run(model, prompts()[0].tokens, logits="last").logits[0]
    moved = [float((x - plain).abs().max()) for x in expected]
    assert {n for n in plan.known if moved[n] > 1e-5} == set()
    missed = [cells[n].swaps[0] for n in range(len(cells)) if n not in plan.known and moved[n] < 1e-5]
    # Queries of the last layer matter only where logits are asked for, but they are run.
    assert {s.site for s in missed} <= {Site("q", number - 1)}
    assert len(plan.known) > len(cells) / 4


def test_known_cells_are_not_run_and_answered_with_the_base() -> None:
    model = model_of("llama")
    cells = [
        *swaps_of(0, ["resid_pre.0", "embed", "pattern.1", "mlp_out.2"], range(SHARED)),
        Cell(base=0, swaps=(swap("mlp_out.2", 5, 9),)),
        Cell(base=0, swaps=(swap("final_norm", 5),)),
        Cell(base=0, swaps=(swap("resid_pre.1", 4, source=0),)),
        Cell(base=0),
    ]
    plan = make_plan(model, prompts(), cells)
    assert plan.known == tuple(range(len(cells)))
    assert plan.cost.passes == plan.cost.layer_tokens == 0
    base = run(model, prompts()[0].tokens, logits="last").logits[0]
    execution = plan.run()
    for answer in execution:
        torch.testing.assert_close(answer.logits, base.expand(len(answer.cells), -1, -1), atol=1e-5, rtol=0)
        assert torch.equal(answer.logits[0], execution.base_logits(0))


def test_a_change_in_the_last_layer_is_run_where_attention_carries_it_to_the_readout() -> None:
    model = model_of("llama")
    plan = check(model, prompts(), swaps_of(0, ["resid_pre.2", "k.2", "v.2"], [5]))
    assert plan.known == ()
    plan = check(model, prompts(), swaps_of(0, ["resid_pre.0", "k.2", "mlp_out.2", "mlp_out.1"], [4, 5, 6]), logits=[4])
    assert [plan.schedule.cells[n].swaps[0].positions for n in plan.known] == [(5,), (6,)] * 4


# --- logits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shortcuts", [None, NONE], ids=["proved", "none"])
@pytest.mark.parametrize("where", ["all", [-2, -1], [0, 3], [9, 4, 0], slice(2, None, 3), [5]], ids=str)
def test_logits_of_several_positions_come_as_asked(where: Any, shortcuts: Shortcuts | None) -> None:
    model = model_of("llama")
    cells = mixed_cells(model)[::3]
    check(model, prompts(), cells, logits=where, shortcuts=shortcuts)


def test_positions_before_the_first_change_are_those_of_the_base() -> None:
    model, bases = model_of("mistral"), prompts()
    cells = swaps_of(0, ["resid_pre.0", "z.1"], [5, 8])
    found = answers(make_plan(model, bases, cells, logits="all"))
    base = run(model, bases[0].tokens, logits="all").logits[0]
    for n, cell in enumerate(cells):
        first = cell.swaps[0].positions[0]
        torch.testing.assert_close(found[n][:first], base[:first], atol=1e-5, rtol=0)
        assert (found[n][first] - base[first]).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["llama", "granite", "cohere", "gemma2", "phi", "gptj", "gpt2", "mpt"])
def test_logits_of_some_tokens_are_columns_of_the_full_logits(name: str) -> None:
    model, bases = model_of(name), prompts(3)
    cells = [
        Cell(base=b, swaps=(swap(s, p, source=(b + 1) % 3),))
        for b in range(3)
        for s in ("resid_pre.1", "mlp_out.0", "final_norm")
        for p in (1, 5, 10)
    ]
    vocab = [[7, 3, 98], [5], [4, 4]]
    plan = make_plan(model, bases, cells, vocab=vocab, logits=[0, -1])
    assert ("readout" in plan.cost.off) == (name == "gemma2")
    expected = [
        x[:, vocab[cell.base]] for x, cell in zip(Brute(model, bases).logits(cells, [0, -1]), cells, strict=True)
    ]
    assert max(off(answers(plan), expected)) < 1e-4
    execution = plan.run()
    full = run(model, bases[0].tokens, logits=[0, -1]).logits[0]
    torch.testing.assert_close(execution.base_logits(0, [7, 3]), full[:, [7, 3]], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(execution.base_logits(0), full, atol=1e-5, rtol=1e-4)


def test_the_same_execution_can_be_gone_through_twice() -> None:
    execution = make_plan(model_of("llama"), prompts(), swaps_of(0, ["resid_pre.1", "z.0"], [4, 9])).run()
    first, second = ([(a.cells, a.logits) for a in execution] for _ in range(2))
    assert len(first) == len(second) > 0
    assert all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in zip(first, second, strict=True))


def test_ids_of_a_padded_prompt_are_taken_without_padding() -> None:
    model, ids = model_of("llama"), tokens(2, 8)
    mask = torch.tensor([[0] * 2 + [1] * 8])
    padded = encode({"input_ids": torch.cat([torch.zeros(1, 2).long(), ids[:1]], 1), "attention_mask": mask})
    bases = [Base(tokens=padded), Base(tokens=encode(ids[1:]))]
    assert [len(base) for base in bases] == [8, 8]
    cells = swaps_of(0, ["resid_pre.1"], [0, 5])
    plain = [Base(tokens=encode(row[None])) for row in ids]
    assert max(off(answers(make_plan(model, bases, cells)), Brute(model, plain).logits(cells))) < 1e-5
