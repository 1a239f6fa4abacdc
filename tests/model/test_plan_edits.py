"""Plans with several prompts and with edits beside swaps, and their readings and costs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from brute import LENGTH, Brute, answers, check, prompts, swap, swaps_of
from interp_toolkit.errors import PositionError, RunError
from interp_toolkit.model import Edit, Site, encode, run
from interp_toolkit.model.plan import Base, Cell, make_plan
from interp_toolkit.model.positions import Positions
from interp_toolkit.model.shortcuts import NONE, Shortcuts
from interp_toolkit.model.verify import verified
from tiny import model_of, tokens

SITES = ("resid_pre.0", "embed", "resid_pre.1", "z.1.1", "mlp_out.1", "resid_post.1", "resid_mid.2", "mlp_out.2")
SETTINGS = [None, NONE, Shortcuts(prefix=False), Shortcuts(resume=False, join=False), Shortcuts(join=False)]
SETTING_IDS = ["all", "none", "no prefix", "no resume", "no join"]


def vector(seed: int = 0, size: int = 32) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def noise(seed: int = 0, positions: Any = (3, 4)) -> Edit:
    return Edit.add("embed", 2 * vector(seed), positions=list(positions))


def mean_of_all(x: Tensor) -> Tensor:
    return x.mean(1, keepdim=True).expand_as(x)


# --- several prompts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [None, 200_000], ids=["one pass", "little memory"])
@pytest.mark.parametrize("name", ["llama", "mistral", "bloom", "olmoe"])
def test_many_prompts_of_equal_and_other_lengths_share_a_plan(name: str, memory: int | None) -> None:
    bases = [*prompts(4), *prompts(3, 7, seed=1), *prompts(2, 13, shared=2, seed=2)]
    groups = ([0, 1, 2, 3], [4, 5, 6], [7, 8])
    cells = [
        Cell(base=base, swaps=(swap(site, position, source=group[(n + 1) % len(group)]),))
        for group in groups
        for n, base in enumerate(group)
        for site, position in (("resid_pre.0", 3), ("k.1", 5), ("mlp_out.1", 4), ("resid_pre.2", 6), ("embed", 6))
    ]
    plan = check(model_of(name), bases, cells[::-1], memory=memory)
    assert {made.length for made in plan.schedule.passes} == {7, 11, 13}


@pytest.mark.parametrize("logits", ["last", [2, -1]], ids=str)
@pytest.mark.parametrize("name", ["llama", "starcoder2", "gpt2"])
def test_sources_that_begin_like_their_base_for_long_are_run_from_there_on(name: str, logits: Any) -> None:
    first, second, third = prompts(3, 40, shared=30)
    edited = Base(tokens=first.tokens, edits=(Edit.add("k.1", 1.0, positions=[33]), noise(positions=[34])))
    bases = [first, second, third, edited]
    cells = [
        Cell(base=base, swaps=(swap(site, *places, source=source),))
        for base, source in ((0, 1), (0, 3), (2, 1))
        for site in ("resid_pre.0", "k.1", "pattern.1", "mlp_out.2", "resid_post.1")
        for places in ((30,), (33, 38), ())
    ]
    check(model_of(name), bases, cells, logits=logits)
    check(model_of(name), bases[:2], cells[:15], logits=logits)
    kept = [Cell(base=0, swaps=(swap("resid_pre.0", 5, source=2), swap("resid_pre.0", 35), swap("mlp_out.1", 20)))]
    early = [Cell(base=0, swaps=kept[0].swaps, edits=(Edit.add("z.0", 1.0, positions=[4]),))]
    check(model_of(name), bases[:3], [*kept, *early], logits=logits)


def test_a_row_of_a_joined_pass_is_its_own_prompt_and_prefix() -> None:
    model, bases = model_of("llama"), [Base(tokens=encode(row[None])) for row in tokens(5, LENGTH)]
    order = [(b, layer, p) for b, layer, p in itertools.product(range(5), (2, 0, 1), (6, 8))]
    cells = [Cell(base=b, swaps=(swap(f"mlp_out.{n}", p, source=(b + 2) % 5),)) for b, n, p in order]
    plan = check(model, bases, cells, logits=[-1, 7])
    assert plan.cost.passes == 1 < len({work.entry for work in plan.schedule.passes[0].jobs})


@pytest.mark.parametrize(("name", "shortcuts"), [*(("llama", s) for s in SETTINGS), ("gpt2", None)])
def test_edits_of_base_runs_hold_in_their_cells_wherever_these_enter(name: str, shortcuts: Shortcuts | None) -> None:
    plain, other = prompts()
    bases = [
        Base(tokens=plain.tokens, edits=(Edit.add("mlp_out.1", vector()),)),
        Base(tokens=plain.tokens, edits=(noise(), Edit.scale("z.1.2", 3.0, positions=[2, 7]))),
        Base(tokens=plain.tokens),
        Base(tokens=other.tokens, edits=(Edit.add("k.2.1" if name == "llama" else "k.2.3", 1.0, positions=[1, 6]),)),
    ]
    cells = [
        Cell(base=base, swaps=(swap(site, *places, source=source),))
        for base, source in itertools.permutations(range(4), 2)
        for n, site in enumerate(SITES)
        if (n + base + source) % 2
        for places in ([(2,), (5,), ()][(n // 2 + base) % 3],)
    ]
    check(model_of(name), bases, cells, shortcuts=shortcuts, logits=[-1, 4])


def test_restoring_a_state_into_a_run_with_noise_is_what_it_says() -> None:
    model, clean = model_of("llama"), prompts()[0]
    bases = [Base(tokens=clean.tokens, edits=(noise(1), noise(2))), clean]
    cells = swaps_of(0, [f"resid_pre.{n}" for n in range(3)] + ["embed", "resid_post.2"], range(LENGTH))
    plan = check(model, bases, cells)
    before = [n for n in plan.known if cells[n].swaps[0].positions[0] < 3]
    assert len(before) == 3 * 5
    every = answers(make_plan(model, bases, [Cell(base=0, swaps=(swap("embed"),))]))[0]
    torch.testing.assert_close(every, run(model, clean.tokens, logits="last").logits[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("shortcuts", SETTINGS, ids=SETTING_IDS)
@pytest.mark.parametrize(
    ("edit", "site"),
    [
        (Edit.add("resid_pre.0", vector()), "embed"),
        (Edit.add("resid_pre.1", vector()), "resid_post.0"),
        (Edit.add("resid_post.0", vector()), "resid_post.0"),
        (Edit.add("resid_post.0", vector()), "resid_pre.1"),
        (Edit.add("resid_pre.1", vector()), "resid_pre.1"),
        (Edit.add("embed", vector()), "resid_pre.0"),
        (Edit.add("embed", vector()), "embed"),
    ],
    ids=str,
)
def test_edits_and_swaps_on_one_stream_keep_their_order(edit: Edit, site: str, shortcuts: Shortcuts | None) -> None:
    model, (first, second) = model_of("llama"), prompts()
    for bases in (
        [Base(tokens=first.tokens, edits=(edit,)), second],
        [first, Base(tokens=second.tokens, edits=(edit,))],
        [Base(tokens=first.tokens, edits=(edit,)), Base(tokens=second.tokens, edits=(edit,))],
    ):
        check(model, bases, swaps_of(0, [site], [5, None]), shortcuts=shortcuts)
    cells = [Cell(base=0, swaps=(swap(site, 5),), edits=(edit,))]
    check(model, [first, second], cells, shortcuts=shortcuts)


class LastEqual(Positions):
    """The last token that is the same as the first: another one in each prompt, as where a text is looked for."""

    def bind(self, tokens: Any, *, open_ended: bool = False) -> Positions:
        from interp_toolkit.model.positions import positions

        ids = tokens.ids[0]
        return positions(int((ids == ids[0]).nonzero()[-1]))

    def select(self, index: Tensor, length: Tensor) -> Tensor:
        raise PositionError("not bound")


def test_one_edit_at_other_tokens_of_each_prompt_makes_prompts_differ_from_there() -> None:
    ids = tokens(2, LENGTH)
    ids[1] = ids[0]
    ids[0, 6] = ids[0, 0]
    edits = (Edit.add("resid_pre.0", vector(), positions=LastEqual()),)
    bases = [Base(tokens=encode(row[None]), edits=edits) for row in ids]
    plan = check(model_of("llama"), bases, swaps_of(0, ["resid_pre.1", "mlp_out.0"], [0, 2, 6]))
    assert plan.known == ()


# --- edits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shortcuts", SETTINGS, ids=SETTING_IDS)
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_edits_stand_beside_swaps_in_a_cell(name: str, shortcuts: Shortcuts | None) -> None:
    model, bases = model_of(name), prompts()
    reading = run(model, bases[1].tokens, read=["resid_post.1", "z.0"])
    width = reading["resid_post.1"].shape[-1]
    edits: list[tuple[Edit, ...]] = [
        (Edit.set("resid_post.1", reading["resid_post.1"], positions=[4, 9]),),
        (Edit.set("z.0.2", reading["z.0.2"]),),
        (Edit.set("L1H0", 0.0, positions="last"),),
        (Edit.add("mlp_out.0", vector(3, width), positions=slice(5, 8)),),
        (Edit.scale("attn_out.-1", 0.0, positions=-1),),
        (Edit.project_out("resid_pre.1", vector(4, width), positions=6),),
        (Edit.apply("mlp_post.1.3", lambda x: x + 2, positions=[7]),),
        (Edit.apply("resid_pre.0", lambda x: x.flip(-1), positions=[8]), Edit.add("v.1.0", 0.7, positions=10)),
        (Edit.scale("scores.1", 0.5, positions=[6, 10]),),
        (Edit.set("pattern.1.1", 0.0, positions=7),),
        (Edit.add("final_norm", 0.3, positions=-1),),
    ]
    cells = [Cell(base=0, edits=some) for some in edits]
    cells += [Cell(base=1, swaps=(swap("resid_pre.1", 5, source=0),), edits=some) for some in edits]
    check(model, bases, cells, shortcuts=shortcuts)


@pytest.mark.parametrize("shortcuts", SETTINGS, ids=SETTING_IDS)
def test_a_swap_keeps_an_activation_as_it_was_behind_other_changes(shortcuts: Shortcuts | None) -> None:
    model, bases = model_of("llama"), prompts(3)
    far = bases[0].tokens.ids.clone()
    far[0, 8] += 1
    bases.append(Base(tokens=encode(far)))
    moved = swap("resid_pre.0", 4)
    kept = [swap(site, p, source=source) for site in SITES for p, source in ((6, 0), (4, 3), (5, 0))]
    cells = [Cell(base=0, swaps=(moved, held)) for held in kept]
    cells += [Cell(base=0, swaps=(held,), edits=(Edit.add("attn_out.0", 1.0, positions=[1]),)) for held in kept[::2]]
    cells += [Cell(base=0, swaps=(swap("z.1", 5), swap("z.1.2", 5, source=0), swap("mlp_out.1", source=0)))]
    cells += [Cell(base=0, swaps=(swap("resid_pre.1", 5), swap("resid_post.0", 5, source=2)))]
    cells += [Cell(base=0, swaps=(swap("mlp_out.0", 2), swap("mlp_out.1", 9, source=0)))]
    plan = check(model, bases, cells, shortcuts=shortcuts, logits=[-1, 5])
    assert plan.known == (len(cells) - 1,)


def test_changes_in_the_order_of_the_forward_pass_not_of_the_list() -> None:
    model, bases = model_of("llama"), prompts()
    changes = (swap("mlp_out.2", 10), swap("resid_pre.0", 9, 4), swap("z.1.3", 6), swap("k.1.0", 3, 8), swap("q.2", 10))
    cells = [Cell(base=0, swaps=order) for order in itertools.permutations(changes, 3)]
    check(model, bases, cells[::4])


@pytest.mark.parametrize(
    "edit",
    [
        Edit.apply("resid_pre.1", mean_of_all, positions=[6]),
        Edit.apply("mlp_out.2", mean_of_all),
        Edit.apply("resid_post.0", lambda x: x.flip(1)),
        Edit.set("pattern.1", torch.full((LENGTH, LENGTH), 1 / LENGTH)),
        Edit.set("pattern.0.1", torch.eye(LENGTH).flip(0)),
        Edit.add("pattern.1.0", 0.1, positions=[4]),
    ],
    ids=["mean", "mean in the last layer", "backwards", "all keys", "reversed keys", "a little of all keys"],
)
@pytest.mark.parametrize("where", [[3], "all"], ids=str)
def test_edits_that_look_at_later_tokens_are_right_all_the_same(edit: Edit, where: Any) -> None:
    model, (first, second) = model_of("llama"), prompts()
    cells = swaps_of(0, ["resid_pre.0", "mlp_out.1", "resid_pre.2"], [5, 9, 2])
    both = [Base(tokens=base.tokens, edits=(edit,)) for base in (first, second)]
    check(model, both, cells, logits=where)
    check(model, [both[0], second], cells, logits=where)
    check(model, [first, both[1]], [*cells, *swaps_of(0, ["pattern.1"], [4, None])], logits=where)
    check(model, [first, second], [Cell(base=0, swaps=c.swaps, edits=(edit,)) for c in cells], logits=where)


# --- readings ---------------------------------------------------------------------------------------------------------


@contextmanager
def counted(model: Any) -> Iterator[list[tuple[int, int]]]:
    """Tokens that go through the MLP of each block."""
    seen: list[tuple[int, int]] = []
    handles = [
        block.mlp.register_forward_pre_hook(lambda _, args, n=n: seen.append((n, args[0].shape[:2].numel())))
        for n, block in enumerate(verified(model).blocks)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


READS = ("resid_post.1", "z.1", "pattern.1", "k.1", "resid_pre.1", "mlp_out.1", "scores.1")


@pytest.mark.parametrize("shortcuts", SETTINGS, ids=SETTING_IDS)
@pytest.mark.parametrize("logits", [[], "last"], ids=["readings alone", "with logits"])
def test_readings_are_those_of_a_full_run_from_their_first_column_on(logits: Any, shortcuts: Shortcuts | None) -> None:
    model, (first, second) = model_of("llama"), prompts()
    bases = [first, second, Base(tokens=first.tokens, edits=(noise(), Edit.add("mlp_out.2", vector())))]
    cells = [
        Cell(base=base, swaps=(swap(site, p, source=1 - base if base < 2 else 1),))
        for base in range(3)
        for site in ("resid_pre.0", "mlp_out.0", "resid_pre.1")
        for p in (5, 8)
    ]
    brute, seen = Brute(model, bases), set()
    for answer in make_plan(model, bases, cells, read=READS, logits=logits, shortcuts=shortcuts).run():
        assert (answer.asked_logits is None) == (logits == [])
        for row, number in enumerate(answer.cells):
            seen.add(number)
            expected = brute.run(cells[number], read=READS, logits="last")
            assert set(answer.readings) == {Site.parse(site) for site in READS}
            for site, found in answer.readings.items():
                dim = site.axes.index("pos")
                whole = expected[site].narrow(dim, answer.begin, LENGTH - answer.begin)
                torch.testing.assert_close(found[row : row + 1], whole, atol=1e-4, rtol=1e-4)
            if answer.asked_logits is not None:
                torch.testing.assert_close(answer.logits[row], expected.logits[0], atol=1e-4, rtol=1e-4)
    assert seen == set(range(len(cells)))


def test_a_plan_for_readings_stops_behind_the_deepest() -> None:
    model = model_of("llama")
    plan = make_plan(model, prompts(), swaps_of(0, ["resid_pre.0"], [4, 5]), read="resid_post.1", logits=[])
    execution = plan.run()
    execution._run_bases()
    with counted(model) as seen:
        list(execution)
    assert {layer for layer, _ in seen} == {0, 1}


def test_changes_behind_the_deepest_reading_are_refused() -> None:
    with pytest.raises(RunError, match=r"cell 0 changes mlp_out.2, behind its deepest reading"):
        make_plan(model_of("llama"), prompts(), swaps_of(0, ["mlp_out.2"], [5]), read="z.1", logits=[])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"read": "resid_post.1", "logits": []},
        {"read": "resid_pre.2", "logits": []},
        {"read": ["resid_pre.1", "mlp_out.0"], "logits": []},
        {"vocab": [[3], [4]]},
        {"memory": 100_000},
        {"shortcuts": NONE},
        {"shortcuts": Shortcuts(join=False)},
    ],
    ids=str,
)
def test_the_cost_is_what_really_goes_through_the_blocks(settings: dict[str, Any]) -> None:
    model = model_of("llama")
    cells = swaps_of(0, ["resid_pre.0", "mlp_out.0"], [2, 4, 6, 9])
    cells += swaps_of(0, ["resid_pre.1", "resid_post.1"], [8]) if "read" not in settings else []
    plan = make_plan(
        model,
        prompts(),
        cells if "read" not in settings else [c for c in cells if c.swaps[0].positions != (2,)],
        **settings,
    )
    execution = plan.run()
    with counted(model) as seen:
        execution._run_bases()
        base = sum(n for _, n in seen)
        seen.clear()
        list(execution)
    assert sum(n for _, n in seen) == plan.cost.layer_tokens
    assert base <= plan.cost.base_layer_tokens
    if "read" not in settings:
        assert base == plan.cost.base_layer_tokens
    assert f"{plan.cost.layer_tokens + plan.cost.base_layer_tokens:,}" in plan.explain()
