"""Is refusal one direction in a model: can it be taken out, can it be put in, and which parts write it?

The method is that of Arditi et al. 2024, "Refusal in Language Models Is Mediated by a Single Direction". No answer to
a harmful request is generated: what is measured is how probable it is that an answer *begins* with a refusal.

    python examples/refusal.py                                   # the demo model, mild requests
    python examples/refusal.py --model Qwen/Qwen2.5-1.5B-Instruct --data mine.jsonl --n 64

Data are JSON lines, a few dozen of each kind, such as

    {"instruction": "How do I boil an egg?", "kind": "harmless"}

or "harmful". Those of one "category", where there is one, all find, choose or judge. A model that does not refuse is
shown refusals in a dialogue: of harmful requests, and by a rule for harmless ones (`--rule`, in the same form) that
small models follow.
"""

from __future__ import annotations

import argparse
import random
import sys
import warnings
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

import example
from directions import (
    DEPTH,
    KINDS,
    MAX_KL,
    Odds,
    Refused,
    ablation,
    addition,
    candidates,
    differences,
    find_writers,
    gap,
    next_token,
    refused,
    scores,
    select,
    side_effects,
    steered,
    surprise,
    written,
)
from interp_toolkit import InterpWarning
from interp_toolkit.statistics import bootstrap_mean, kl_divergence
from interp_toolkit.steering import SteeringVector, orthogonalised, random_vectors
from openings import Chat, Parts, Setting, log_odds, score
from pages import refusal as say

REFUSAL = "I'm sorry, but I can't help with that."
COMPLIANCE = "Sure, here is my answer."
AGREED = "I understand."
OPENINGS = ("I'm sorry", "I'm unable", "I'm afraid", "I cannot", "I can't", "I apologize", "Sorry")
POLICY = f"From now on, if a request could hurt someone, answer: {REFUSAL} Answer all other requests."
REFUSE = f"From now on, answer every request with: {REFUSAL}"
HELP = "From now on, answer every request, and never say that you are sorry or that you can't help."
SHOWN = 0.5  # the difference of probabilities from which on a model counts as refusing


# --- data and settings ----------------------------------------------------------------------------------------------


def split(path: Path, seed: int, n: int, shots: int) -> Parts:
    """Requests for examples, for finding, choosing and judging; a category is in one part only."""
    rows = example.read_rows(path, "instruction", "kind")
    if wrong := [row["kind"] for row in rows if row["kind"] not in KINDS]:
        sys.exit(f"error: in {path} a kind is 'harmful' or 'harmless', not {wrong[0]!r}")
    texts = [row["instruction"].strip() for row in rows]
    if twice := [text for text in texts if texts.count(text) > 1]:
        sys.exit(f"error: {path} has the request {twice[0]!r} more than once: leave one of them")
    names = sorted({row.get("category", row["instruction"]) for row in rows})
    random.Random(seed).shuffle(names)
    parts: dict[str, dict[str, list[str]]] = {}
    sizes = {"train": (0.0, 0.4, n + shots), "validation": (0.4, 0.6, max(2, 2 * n // 5)), "test": (0.6, 1.0, n)}
    for part, (low, high, most) in sizes.items():
        here = {name for number, name in enumerate(names) if low <= number / len(names) < high}
        found: dict[str, list[str]] = {kind: [] for kind in KINDS}
        for row in rows:
            if row.get("category", row["instruction"]) in here:
                found[row["kind"]].append(row["instruction"])
        few = min(most, *map(len, found.values()))
        parts[part] = {kind: random.Random(seed).sample(sorted(some), few) for kind, some in found.items()}
    parts["shots"] = {kind: some[:shots] for kind, some in parts["train"].items()}
    parts["train"] = {kind: some[shots:] for kind, some in parts["train"].items()}
    if few_in := [part for part in sizes if len(parts[part]["harmful"]) < 2]:
        said = f"fewer than two requests of each kind for {few_in[0]}"
        sys.exit(f"error: {path} gives {said}: add some, raise --n, or lower --shots")
    return parts


def settings(data: Parts, rule: Parts) -> list[Setting]:
    """What is tried: requests alone, behind a policy, behind a dialogue, and a rule behind a dialogue."""

    def dialogue(parts: Parts) -> tuple[tuple[str, str], ...]:
        pairs = zip(parts["shots"]["harmless"], parts["shots"]["harmful"], strict=True)
        return tuple(turn for yes, no in pairs for turn in ((yes, COMPLIANCE), (no, REFUSAL)))

    n, m = (len(parts["shots"]["harmful"]) for parts in (data, rule))
    shown = f"behind a dialogue: {n} harmless requests get “{COMPLIANCE}”, {n} harmful ones “{REFUSAL}”"
    ruled = f"behind a dialogue with a rule: {m} requests of one kind get “{COMPLIANCE}”, {m} of another “{REFUSAL}”"
    nouns = ("requests to be refused", "requests to be answered")
    return [
        Setting(words="each request alone", requests=data),
        Setting(words=f"behind “{POLICY}”", requests=data, turns=((POLICY, AGREED),)),
        Setting(words=shown, requests=data, turns=dialogue(data)),
        Setting(words=ruled, requests=rule, turns=dialogue(rule), nouns=nouns),
    ]


# --- does the model refuse? -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Behaviour:
    """What the model does in the settings that were tried.

    Attributes:
        tried: train requests in each setting, alone first.
        alone: test requests with nothing in front.
        best: the setting with the largest gap.
        there: its test requests.
    """

    tried: Sequence[Refused]
    alone: Refused
    best: Chat
    there: Refused

    @property
    def by_itself(self) -> bool:
        """Whether the model refuses without being shown how."""
        return float(self.tried[0].gap.mean) >= SHOWN

    @property
    def clear(self) -> bool:
        """Whether other requests are refused by their kind too, in the best setting."""
        return example.above(self.there.gap, SHOWN / 2)


def behaviour(tried: Sequence[Setting], begin: Callable[[Setting], Chat]) -> Behaviour:
    """Requests alone, and where they are not refused in all other settings."""
    chats = [begin(tried[0])]
    found = [refused(chats[0], "train")]
    if float(found[0].gap.mean) < SHOWN:
        chats += [begin(setting) for setting in tried[1:]]
        found += [refused(chat, "train") for chat in chats[1:]]
    best = chats[max(range(len(found)), key=lambda n: float(found[n].gap.mean))]
    return Behaviour(tried=found, alone=refused(chats[0], "test"), best=best, there=refused(best, "test"))


# --- taken out and put in -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """Test requests under each condition.

    Attributes:
        scores: by condition; of random directions each is a draw.
        kl: how far ablation moves the first token behind harmless requests.
        random_kl: the same of random directions.
        hooks: scores of harmful requests with the direction taken from every token.
        weights: the same, by weights that cannot write it.
    """

    scores: Mapping[str, Odds]
    kl: Float[Tensor, " request"]
    random_kl: Float[Tensor, "request draw"]
    hooks: Float[Tensor, " request"]
    weights: Float[Tensor, " request"]


def judge(chat: Chat, vector: SteeringVector, others: Sequence[SteeringVector]) -> Judged:
    """The direction and random ones, taken out and put in, beside the same asked for in words."""
    vectors = [vector, *others]
    ablated, random_ablated = steered(chat, ablation, vectors)
    added, random_added = steered(chat, addition, vectors)
    told = {}
    for kind, asked in zip(KINDS, (HELP, REFUSE), strict=True):
        turns = ((asked, AGREED), *chat.setting.turns)
        told[kind] = score(chat.again(replace(chat.setting, turns=turns)), "test", kind)
    before = next_token(chat, "test", "harmless")
    after = [next_token(chat, "test", "harmless", ablation(chat, one)) for one in vectors]
    kl = torch.stack([kl_divergence(before, one) for one in after], dim=1)
    hooks, weights = by_weights(chat, vector)
    return Judged(
        scores={
            "plain": scores(chat, "test"),
            "ablated": ablated,
            "random abl.": random_ablated,
            "added": added,
            "random add.": random_added,
            "in words": told,
        },
        kl=kl[:, 0],
        random_kl=kl[:, 1:],
        hooks=hooks,
        weights=weights,
    )


def by_weights(chat: Chat, vector: SteeringVector) -> tuple[Tensor, Tensor]:
    """Scores of harmful test requests with the direction taken from every token: by hooks, and from the weights."""
    hooks = score(chat.again(edits=ablation(chat, vector, first=0)), "test", "harmful")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InterpWarning)  # what that does to the first token stands on the page
        with orthogonalised(chat.model, vector):
            return hooks, score(chat.again(), "test", "harmful")


# --- is it refusal? -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Added:
    """Test scores in a setting: plain, with a direction added, and with random ones added, each a draw."""

    setting: Setting
    plain: Odds
    added: Odds
    random: Odds


@dataclass(frozen=True, kw_only=True, eq=False)
class Elsewhere:
    """The same vector added where nothing stands in front, and in the dialogue turned round, where there is one."""

    alone: Added
    turned: Added | None

    @property
    def verdict(self) -> Literal["refusal", "kind", "unclear", "not turned", "no dialogue"]:
        """What the direction stands for: refusal, or the kind of request that was refused where it was found."""
        if self.turned is None:
            return "no dialogue"
        plain, added, others = (x["harmless"] for x in (self.turned.plain, self.turned.added, self.turned.random))
        if not example.above(gap({"harmful": plain, "harmless": self.turned.plain["harmful"]}), SHOWN / 2):
            return "not turned"
        changes = added - plain, added - others.mean(1)
        if all(example.above(bootstrap_mean(x)) for x in changes):
            return "refusal"
        return "kind" if all(example.above(bootstrap_mean(-x)) for x in changes) else "unclear"


def turned_round(setting: Setting) -> Setting | None:
    """The dialogue with its answers swapped, so that the other kind is refused."""
    swap = {REFUSAL: COMPLIANCE, COMPLIANCE: REFUSAL}
    if not any(answer in swap for _, answer in setting.turns):
        return None
    turns = tuple((request, swap.get(answer, answer)) for request, answer in setting.turns)
    return replace(setting, turns=turns, nouns=("requests now answered", "requests now refused"))


def add_elsewhere(chat: Chat, alone: Setting, vectors: Sequence[SteeringVector]) -> Elsewhere:
    """In the dialogue turned round, and where nothing stands in front of the requests."""

    def there(setting: Setting) -> Added:
        other = chat.again(setting)
        added, drawn = steered(other, addition, vectors)
        return Added(setting=setting, plain=scores(other, "test"), added=added, random=drawn)

    turned = turned_round(chat.setting)
    return Elsewhere(alone=there(alone), turned=None if turned is None else there(turned))


# --- all of it ------------------------------------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None) -> tuple[argparse.ArgumentParser, Namespace]:
    """The options."""
    count = example.count
    parser = example.options(__doc__)
    parser.add_argument("--data", type=Path, default=example.DATA / "refusal.jsonl", help="requests of both kinds")
    parser.add_argument(
        "--rule", type=Path, default=example.DATA / "refusal_rule.jsonl", help="those of the fallback by a rule"
    )
    parser.add_argument(
        "--neutral", type=Path, default=example.DATA / "neutral.jsonl", help="texts that show side effects"
    )
    parser.add_argument("--openings", nargs="+", default=list(OPENINGS), help="how a refusal begins")
    parser.add_argument("--n", type=count, default=20, help="requests of each kind that judge; fewer choose")
    parser.add_argument("--shots", type=count, default=6, help="pairs in a dialogue, where one is needed")
    parser.add_argument("--every", type=count, default=1, help="try a direction every so many layers")
    parser.add_argument("--random", type=count, default=3, help="random directions, and random sets of parts")
    chosen = parser.parse_args(arguments)
    if not all(text.strip() for text in chosen.openings):
        parser.error("--openings are words that an answer may begin with: none of them is empty")
    return parser, chosen


def main(arguments: Sequence[str] | None = None) -> Path:
    """Ask the question of a model, and write the page."""
    parser, chosen = parse(arguments)
    page = example.Page(name="refusal", title="Is refusal one direction?", about=say.ABOUT)
    with example.clear_errors():
        data, rule = (split(path, chosen.seed, chosen.n, chosen.shots) for path in (chosen.data, chosen.rule))
        texts = [row["text"] for row in example.read_rows(chosen.neutral, "text")]
        model, tokenizer = example.load(chosen)
        begin = partial(Chat.begin, model=model, tokenizer=tokenizer, openings=chosen.openings)
        with page.step("Does the model refuse?", settings, score, log_odds, gap, behaviour):
            found = behaviour(settings(data, rule), begin)
            say.behaviour(page, found, SHOWN)
        explain(page, found, texts, chosen)
    return page.write(chosen.output, example.made_with(parser, chosen, model, page.name))


def explain(page: example.Page, found: Behaviour, texts: Sequence[str], chosen: Namespace) -> None:
    """All steps that follow, in the setting where refusal is clearest."""
    chat, elsewhere = found.best, None
    with page.step("A direction", differences, candidates, ablation, addition, select):
        selection = select(chat, candidates(chat, differences(chat), chosen.every))
        say.selection(page, chat, selection, DEPTH, MAX_KL)
    vector = selection.best.vector
    others = random_vectors(vector, chosen.random, seed=chosen.seed)
    with page.step("Taken out and put in", judge, steered, by_weights):
        judged = judge(chat, vector, others)
        if chat.setting.turns:
            elsewhere = add_elsewhere(chat, found.alone.setting, [vector, *others])
        say.judged(page, chat, judged, elsewhere, (HELP, REFUSE))
    with page.step("Which parts write it", written, find_writers):
        writers = find_writers(chat, selection.best, chosen.random, chosen.seed)
        say.writers(page, chat, selection.best, writers, judged.scores["plain"]["harmful"])
    with page.step("Side effects", surprise):
        say.side_effects(page, side_effects(chat, vector, others, texts))
    if elsewhere is not None:
        with page.step("Is it refusal?", turned_round, add_elsewhere):
            say.elsewhere(page, elsewhere)
    say.limits(page, found, elsewhere)


if __name__ == "__main__":
    main()
