"""Plans in little memory and on bad input, and what they leave behind on a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from brute import LENGTH, SHARED, Brute, answers, check, off, prompts, swap, swaps_of
from interp_toolkit.errors import EditError, InterpError, PositionError, RunError, SiteError, TokenError
from interp_toolkit.model import Edit, Site, encode, run
from interp_toolkit.model.plan import Base, Cell, Swap, make_plan
from interp_toolkit.model.verify import verified
from tiny import model_of, tiny_model, tokens

# --- memory -----------------------------------------------------------------------------------------------------------


CELLS = swaps_of(0, ["resid_pre.0", "resid_pre.1", "z.1", "mlp_out.2", "k.2"], [3, 5, 8, None])


def test_little_memory_means_more_passes_and_the_same_numbers() -> None:
    model, bases = model_of("llama"), prompts()
    plenty = check(model, bases, CELLS)
    few = check(model, bases, CELLS, memory=150_000)
    one = check(model, bases, CELLS, memory=1)
    assert plenty.cost.passes < few.cost.passes < one.cost.passes == len(CELLS) - len(one.known)
    assert plenty.cost.memory > few.cost.memory > one.cost.memory


@contextmanager
def out_of_memory(model: Any, rows: int, layer: int = 1, words: str = "") -> Iterator[list[int]]:
    """A model whose block fails, half-way through, on more rows than this."""
    refused: list[int] = []

    def look(module: nn.Module, args: Any) -> None:
        if len(args[0]) > rows:
            refused.append(len(args[0]))
            raise (RuntimeError(words) if words else torch.OutOfMemoryError("no memory left"))

    handle = verified(model).blocks[layer].mlp.register_forward_pre_hook(look)
    try:
        yield refused
    finally:
        handle.remove()


def untouched(model: Any) -> bool:
    hooks = [h for m in model.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
    # Transformers leaves some of its own
    ours = [h for h in hooks if not str(h.__module__).startswith("transformers.")]
    return not ours and all("forward" not in m.__dict__ for m in model.modules())


@pytest.mark.parametrize("words", ["", "[enforce fail] can't allocate memory: you tried to allocate 9 bytes"])
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_out_of_memory_halves_a_pass_and_changes_no_number(rows: int, words: str) -> None:
    model, bases = tiny_model("llama"), prompts(3)
    expected = Brute(model, bases).logits(CELLS)
    plan = make_plan(model, bases, CELLS)
    with out_of_memory(model, rows, words=words) as refused:
        found = answers(plan)
    assert refused
    assert max(off(found, expected)) < 1e-4
    assert untouched(model)


def test_a_single_row_that_does_not_fit_is_an_error_and_leaves_nothing_behind() -> None:
    model, bases = tiny_model("llama"), prompts()
    before = run(model, bases[0].tokens, logits="all").logits
    for early in (True, False):  # in a base run, or in a cell
        execution = make_plan(model, bases, CELLS).run()
        if not early:
            execution._run_bases()
        with (
            out_of_memory(model, 0),
            pytest.raises(RunError, match=r"one run over \d+ tokens does not fit into memory: use a shorter prompt"),
        ):
            list(execution)
        assert untouched(model)
        assert torch.equal(run(model, bases[0].tokens, logits="all").logits, before)
        assert (
            max(
                off(
                    {n: x for a in execution for n, x in zip(a.cells, a.logits, strict=True)},
                    Brute(model, bases).logits(CELLS),
                )
            )
            < 1e-4
        )


@pytest.mark.parametrize("error", [RuntimeError("something else"), KeyboardInterrupt(), EditError("from a function")])
def test_other_errors_pass_through_and_leave_nothing_behind(error: BaseException) -> None:
    model, bases = tiny_model("llama"), prompts()

    def fail(x: Tensor) -> Tensor:
        raise error

    cells = [
        *CELLS,
        Cell(base=0, edits=(Edit.apply("pattern.1", fail),)),
        Cell(base=0, edits=(Edit.apply("z.1", fail),)),
    ]
    before = run(model, bases[0].tokens, logits="all").logits
    with pytest.raises(type(error)):
        answers(make_plan(model, bases, cells))
    assert untouched(model)
    assert torch.equal(run(model, bases[0].tokens, logits="all").logits, before)


def test_an_execution_that_is_left_half_way_leaves_nothing_behind() -> None:
    model = tiny_model("llama")
    for _ in make_plan(model, prompts(), CELLS, memory=1).run():
        assert untouched(model)
        break
    assert untouched(model)


def test_answers_need_no_gradient() -> None:
    plan = make_plan(model_of("phi"), prompts(), CELLS[:4], vocab=[[3], [4]], read="resid_post.2")
    for answer in plan.run():
        assert not any(x.requires_grad for x in [answer.logits, *answer.readings.values()])


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "error", "words"),
    [
        (Cell(base=2), RunError, "cell 0 names base run 2, but there are 2"),
        (Cell(base=-1), RunError, "names base run -1"),
        (Cell(base=0, swaps=(swap("z.0", 4, source=2),)), RunError, "a swap names base run 2, but there are 2"),
        (
            Cell(base=0, swaps=(swap("z.0", 4, LENGTH),)),
            PositionError,
            rf"\[4, {LENGTH}\] are outside of a prompt of 11",
        ),
        (Cell(base=0, swaps=(swap("z.0", -1),)), PositionError, r"\[-1\] are outside"),
        (Cell(base=0, swaps=(swap("z.3", 5),)), SiteError, "asks for layer 3, but the model has 3 layers"),
        (Cell(base=0, swaps=(swap("z.3", 0),)), SiteError, "asks for layer 3, but the model has 3 layers"),
        (Cell(base=0, swaps=(swap("z.0.9", 5),)), SiteError, "asks for head 9, but there are 4"),
        (Cell(base=0, swaps=(swap("logits", 10),)), EditError, "logits"),
        (Cell(base=0, edits=(Edit.add("logits", 1.0),)), EditError, "a planned run cannot edit its logits"),
        (Cell(base=0, edits=(Edit.add("z.0", 1.0, rows=[0]),)), EditError, "names rows, but a base run is one prompt"),
        (Cell(base=0, edits=(Edit.add("z.9", 1.0),)), SiteError, "layer 9"),
        (Cell(base=0, edits=(Edit.add("z.0", 1.0, positions=[11]),)), PositionError, "position 11 is outside"),
        (Cell(base=0, edits=(Edit.add("z.0", 1.0, positions="generated"),)), EditError, "never fires"),
        (Cell(base=0, edits=(Edit.add("z.0", 1.0, positions=slice(5, 5)),)), EditError, "never fires"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_cells_that_do_not_fit_are_refused_before_anything_runs(cell: Cell, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make_plan(model_of("llama"), prompts(), [cell])


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"logits": []}, RunError, "nothing to give"),
        ({"vocab": [[3]]}, RunError, "vocab names tokens for 1 base runs, but there are 2"),
        ({"vocab": [[3], [99]]}, TokenError, "token id 99 is outside of the model's vocabulary: 0 to 98"),
        ({"vocab": [[3], [-1]]}, TokenError, "token id -1"),
        ({"logits": [11]}, PositionError, "position 11 is outside"),
        ({"logits": slice(4, 4)}, RunError, "no token of the prompt .* is at the positions"),
        ({"read": "resid_pre.7"}, SiteError, "layer 7"),
        ({"read": "reside"}, SiteError, "there is no site 'reside'"),
        ({"read": "logits"}, RunError, "logits"),
    ],
    ids=str,
)
def test_wishes_that_cannot_be_met_are_refused(settings: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make_plan(model_of("llama"), prompts(), swaps_of(0, ["z.0"], [5]), **settings)


def test_a_swap_between_prompts_of_other_lengths_is_refused() -> None:
    with pytest.raises(RunError, match="a swap between prompts of 11 and 9 tokens: they must have as many"):
        make_plan(model_of("llama"), [*prompts(1), *prompts(1, 9)], swaps_of(0, ["z.0"], [5]))


def test_a_site_that_the_model_does_not_have_is_refused_with_the_reason() -> None:
    with pytest.raises(SiteError, match="attention and MLP run in parallel"):
        make_plan(model_of("gptj"), prompts(), [Cell(base=0, swaps=(Swap(site=Site("resid_mid", 0), source=1),))])


def test_nothing_to_read_in_a_cell_that_changes_nothing() -> None:
    with pytest.raises(RunError, match="cell 1 changes nothing, so there is nothing to read in it"):
        make_plan(model_of("llama"), prompts(), swaps_of(0, ["z.0"], [5, SHARED - 1]), read="resid_post.2")


def test_bases_are_needed_one_prompt_each_and_edits_that_fit() -> None:
    with pytest.raises(RunError, match="at least one base run"):
        make_plan(model_of("llama"), [], [])
    with pytest.raises(RunError, match="a base run is of one prompt, but 2 were given"):
        Base(tokens=encode(tokens(2)))
    with pytest.raises(InterpError, match="layer 5"):
        make_plan(model_of("llama"), [Base(tokens=prompts()[0].tokens, edits=(Edit.add("z.5", 1.0),))], [])


def test_base_runs_alone_can_be_planned_but_have_no_logits_if_none_were_asked_for() -> None:
    model, bases = model_of("llama"), prompts()
    execution = make_plan(model, bases, []).run()
    assert list(execution) == []
    found = torch.cat([execution.base_logits(n) for n in (0, 1)])
    expected = torch.cat([run(model, base.tokens, logits="last").logits[0] for base in bases])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(RunError, match="no logits were asked for"):
        make_plan(model, bases, CELLS[1:3], logits=[], read="resid_post.2").run().base_logits(0)
