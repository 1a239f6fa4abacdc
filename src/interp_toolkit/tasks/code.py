"""Behaviours of code: the parameter that a docstring comes to next."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from interp_toolkit.tasks.drafts import Draft
from interp_toolkit.tasks.request import Corruption, Request
from interp_toolkit.tasks.task import Task
from interp_toolkit.tasks.words import Split, share, table, words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def docstring(
    tokenizer: PreTrainedTokenizerBase,
    *,
    n: int = 100,
    seed: int = 0,
    split: Split = "train",
    corruption: Corruption = "swap",
    same_length: bool = True,
) -> Task:
    """The next parameter in the docstring of a Python function (after Heimersheim and Janiak 2023).

    A function takes `A`, `B`, `C` and `D`, its docstring has described `A` and `B`, and ends in ":param" → `C`, not
    `D`. Labels of positions: `A_def` to `D_def` in the head of the function, `A_doc` and `B_doc` in the docstring,
    `end`. In the test split there is no `B`.

    Args:
        tokenizer: for which pairs are made.
        n: how many pairs.
        seed: of the random choice.
        split: `"train"`, `"validation"` or `"test"`: they share no template and no word that is filled in.
        corruption: `"swap"`: `C` and `D` change places in the head, so the answer turns over. `"random"`: the head has
            other parameters, so neither answer has a ground.
        same_length: whether all prompts have one number of tokens.

    Raises:
        TokenError: when the tokenizer does not allow as many pairs.

    Example:
        >>> from interp_toolkit import load_model
        >>> pair = docstring(load_model("demo")[1], n=1).pairs[0]
        >>> pair.entities["C_def"] == pair.corrupt_entities["D_def"] == pair.target_strings[0].strip()
        True
        >>> pair.clean.splitlines()[-1]
        '    :param'
    """
    ask = Request(
        name="docstring",
        tokenizer=tokenizer,
        n=n,
        seed=seed,
        split=split,
        corruption=corruption,
        same_length=same_length,
    )
    return ask.task(_docstrings(ask))


def _docstrings(ask: Request) -> Iterator[Draft]:
    rng, listed = ask.random, table("docstring")
    functions, nouns = (share(words(listed["words"][kind]), ask.split) for kind in ("functions", "nouns"))
    parameters = ask.known(share(words(listed["words"]["parameters"]), ask.split), what="parameters", least=8)
    templates = listed["templates"][ask.split]
    while True:  # far too many combinations to list
        names = rng.sample(parameters, 8)
        heads = dict(zip(("A_def", "B_def", "C_def", "D_def"), names[:4], strict=True))
        clean = {"function": rng.choice(functions), **heads, "A_doc": names[0], "B_doc": names[1]}
        clean.update(zip(("w1", "w2", "w3", "w4", "w5", "w6"), rng.sample(nouns, 6), strict=True))
        changed = (
            {"C_def": names[3], "D_def": names[2]}
            if ask.corruption == "swap"
            else dict(zip(heads, names[4:], strict=True))
        )
        template = rng.choice(templates)
        used = [slot for slot in clean if f"{{{slot}}}" in template]
        yield Draft(
            template=template,
            clean={slot: clean[slot] for slot in used},
            corrupt={slot: changed.get(slot, clean[slot]) for slot in used},
            targets=(f" {names[2]}",),
            foils=(f" {names[3]}",),
        )


__all__ = ["docstring"]
