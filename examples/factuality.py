"""Which heads and MLPs carry a fact from its subject to the answer, and do several accounts of it agree?

    python examples/factuality.py                                    # countries and their capitals, the demo model
    python examples/factuality.py --model Qwen/Qwen3-8B --device cuda --n 96
    python examples/factuality.py --data facts.jsonl                 # facts of your own

Each row of a file of your own is a prompt, the same prompt about another subject, and the answers to both:

    {"clean": "The Louvre is in", "corrupt": "The Prado is in", "target": "Paris", "foil": "Madrid",
     "subject": "Louvre", "split": "train"}

The subject is a part of the clean prompt. Both prompts have as many tokens and differ in the subject alone, and each
answer is one token behind its prompt. Rows of the split "train" find, those of "test" judge: at least eight of each,
which share no answer.
"""

from __future__ import annotations

import argparse
import random
import warnings
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

import example
from accounts import Account, Components, agreement, with_itself
from facts import END, FEWEST, SUBJECT, capitals, own_facts
from interp_toolkit import Edit, InterpWarning, circuits, run, tasks
from interp_toolkit.circuits import Node
from interp_toolkit.lenses import direct_logit_attribution
from interp_toolkit.probes import ProbeData, ProbeSweep, Transfer, probe_sweep, split_rows, transfer_matrix
from interp_toolkit.statistics import Estimate, bootstrap_ratio
from pages import factuality as say

GROUPS = 10  # groups of statements that the probe needs
HALF = 0.5  # the share of an answer from which on it counts as being there
ALONE = 0.9  # the share from which on one component hides all others, as the embedding's neighbour does
RANDOM_SETS = 10  # of components
RANDOM = "random sets"
VERBS = (" is", " are", " was", " were")  # behind these, "not" makes a negation


# --- what the model knows -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Known:
    """What the model knows of one split.

    Attributes:
        given: the pairs.
        baseline: how it answers them.
        task: those whose target it prefers to the foil; None where there is none.
    """

    given: tasks.Task
    baseline: tasks.Baseline
    task: tasks.Task | None

    @property
    def shown(self) -> bool:
        """Whether it knows enough of them for anything to be explained."""
        return self.task is not None and self.baseline.does_it and len(self.task) >= FEWEST


def ask(model: PreTrainedModel, given: tasks.Task) -> Known:
    """Does the model prefer each target to its foil? The other pairs are dropped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InterpWarning)  # that it does not know them stands on the page
        baseline = given.baseline(model)
    right = [n for n, value in enumerate(baseline.clean) if value > 0]
    return Known(given=given, baseline=baseline, task=given.select(right) if right else None)


# --- causal tracing -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Traced:
    """What one clean activation restores in the run with another subject, by layer and token, for each kind of part."""

    resid: circuits.Effects
    mlp: circuits.Effects
    attn: circuits.Effects

    @staticmethod
    def share(effects: circuits.Effects, row: str) -> Float[Tensor, " layer"]:
        """Of the answer that restoring at one kind of token brings back, layer by layer."""
        return effects.effect[:, effects.labels[1].index(row)].nan_to_num(0.0)

    @property
    def leaves(self) -> int | None:
        """The layer up to which the subject holds the answer, half of it or more, behind every layer before."""
        there = (self.share(self.resid, SUBJECT) >= HALF).tolist()
        return next((n for n in reversed(range(len(there))) if all(there[: n + 1])), None)

    @property
    def arrives(self) -> int | None:
        """The layer from which on the last token holds it, behind every layer that follows."""
        there = (self.share(self.resid, END) >= HALF).tolist()
        return next((n for n in range(len(there)) if all(there[n:])), None)


def trace(model: PreTrainedModel, task: tasks.Task) -> Traced:
    """Causal tracing: in the run with another subject, one clean activation is put back, at one token and layer."""

    def restored(part: str) -> circuits.Effects:
        return circuits.causal_trace(
            model,
            task.clean,
            task.positions("subject"),
            answer=task.answers,
            corruption=task.corrupt,
            component=part,
            metric="logit_diff",
        )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InterpWarning)  # the target is before the foil, if not before every token
        return Traced(resid=restored("resid"), mlp=restored("mlp"), attn=restored("attn"))


# --- four accounts --------------------------------------------------------------------------------------------------


def patching(model: PreTrainedModel, task: tasks.Task) -> Account:
    """Each head and MLP of the clean run put into the corrupt one, at all tokens, each in a run of its own."""
    pairs = task.clean, task.corrupt
    heads = circuits.patch_sweep(model, *pairs, answers=task.answers, component="head", over=("layer", "head"))
    mlps = circuits.patch_sweep(model, *pairs, answers=task.answers, component="mlp", over=("layer",))
    values = torch.cat([heads.change, mlps.change[..., None]], dim=-1).flatten(1)
    return Account(name="patching", values=values[..., None].float())


def paths(model: PreTrainedModel, task: tasks.Task) -> Account:
    """Heads: subject → MLPs there → this head at the end. MLPs: this MLP at the subject → values of heads."""
    graph = circuits.graph_of(model)
    layers, heads = graph.num_layers, graph.num_heads
    ends = [Node(f"L{layer}H{head}", positions=-1) for layer in range(layers) for head in range(heads)]
    values = torch.zeros(len(task), layers, heads + 1)
    read = circuits.path_sweep(
        model, task.clean, task.corrupt, answers=task.answers, senders="embed", receivers=ends, recompute="mlps"
    )
    values[..., :-1] = read.change.view(len(task), layers, heads)
    places = [pair.positions["subject"] for pair in task.pairs]
    for place in sorted(set(places)):  # a sweep takes one list of positions for all of its prompts
        rows = [n for n, other in enumerate(places) if other == place]
        some = task.select(rows)
        written = circuits.path_sweep(
            model,
            some.clean,
            some.corrupt,
            answers=some.answers,
            senders="mlps",
            positions=list(place),
            receivers="v",
            over=["sender"],
            recompute="mlps",
        )
        values[rows, :, -1] = written.change.float()  # NaN for the last MLP, behind which no head lies
    return Account(name="paths", values=values.flatten(1)[..., None])


def direct(model: PreTrainedModel, task: tasks.Task) -> Account:
    """Direct logit attribution at the last token: each part on the clean prompt less that on the corrupt one."""
    names, values = circuits.graph_of(model).source_names[1:], []
    for pair, answers in zip(task.pairs, task.answers, strict=True):
        found = [direct_logit_attribution(model, list(ids), answers) for ids in (pair.clean_ids, pair.corrupt_ids)]
        clean, corrupt = (one.values[-1, [one.names.index(name) for name in names]] for one in found)
        values.append(clean - corrupt)
    return Account(name="direct", values=torch.stack(values)[..., None].float())


def circuit(model: PreTrainedModel, task: tasks.Task, share: float, seed: int) -> tuple[circuits.Circuit, Account]:
    """The best edges of the model by EAP-IG; a component is worth the sum of |score| over its outgoing edges."""
    edges = max(1, round(share * circuits.graph_of(model).num_edges))
    finder = circuits.CircuitFinder(model, edges=edges, evaluation=0.0, random=0, seed=seed)
    found = finder.find_circuit(task.clean, task.corrupt, answers=task.answers, progress=False)
    assert finder.found_ is not None
    assert finder.found_.scores.prompts is not None
    return found, Account(name="circuit", values=finder.found_.scores.prompts[:, 1:].float())


# --- on other facts -------------------------------------------------------------------------------------------------


def put_back(
    model: PreTrainedModel, task: tasks.Task, sets: Sequence[Sequence[str]]
) -> tuple[Float[Tensor, "set pair"], Float[Tensor, " pair"]]:
    """What each set of components, put into the corrupt run together, brings back; and all that there is to bring."""
    rows, (targets, foils) = torch.arange(len(task)), torch.tensor(task.answers).T
    clean = run(model, task.clean, read=sorted({name for some in sets for name in some}), logits="last")

    def favour(logits: Tensor) -> Tensor:
        last = logits[:, -1].float().cpu()
        return last[rows, targets] - last[rows, foils]

    edits = [[Edit.set(name, clean[name]) for name in some] for some in ([], *sets)]
    before, *after = [favour(run(model, task.corrupt, edits=one, logits="last").logits) for one in edits]
    return torch.stack(after) - before, favour(clean.logits) - before


def random_set(components: Components, like: Sequence[int], left_out: Sequence[int], draw: random.Random) -> list[int]:
    """As many MLPs and as many heads as another set has."""
    found: list[int] = []
    for mlps in (True, False):
        kind = components.of_kind(mlps=mlps)
        found += draw.sample([n for n in kind if n not in left_out], len(set(like) & set(kind)))
    return found


def on_other_facts(
    model: PreTrainedModel,
    task: tasks.Task,
    accounts: Mapping[str, Account],
    components: Components,
    left_out: Sequence[int],
    chosen: Namespace,
) -> dict[int, dict[str, Estimate]]:
    """The share of the answer that the strongest components of each account bring back together, for some numbers."""
    shares: dict[int, dict[str, Estimate]] = {}
    for number in sorted({max(1, chosen.strongest // 3), chosen.strongest}):
        sets = {name: [n for n in a.order if n not in left_out][:number] for name, a in accounts.items()}
        draw = random.Random(chosen.seed)
        drawn = [random_set(components, sets["patching"], left_out, draw) for _ in range(RANDOM_SETS)]
        named = [[components.names[n] for n in some] for some in (*sets.values(), *drawn)]
        back, gap = put_back(model, task, named)
        each = dict(zip(sets, back, strict=False)) | {RANDOM: back[len(sets) :].mean(0)}
        shares[number] = {name: bootstrap_ratio(x, gap, seed=chosen.seed) for name, x in each.items()}
    return shares


# --- can truth be read off? -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Truth:
    """A probe of true and false statements at every layer, and the best one on their negations.

    Attributes:
        statements: plain and negated.
        sweep: the probes.
        moved: the best layer's probe, tested on both kinds.
    """

    statements: Sequence[ProbeData]
    sweep: ProbeSweep
    moved: Transfer

    @property
    def begins(self) -> int | None:
        """The layer from which on all accuracies are above one half, intervals and all."""
        surely = [score.accuracy_low > HALF for score in self.sweep.scores]
        return next((n for n in range(len(surely)) if all(surely[n:])), None)

    @property
    def excess(self) -> Float[Tensor, " layer"]:
        """The accuracy beyond one half, layer by layer."""
        return torch.tensor([score.accuracy - HALF for score in self.sweep.scores]).clamp_min(0.0)


def statements(known: Sequence[tasks.Task], seed: int) -> list[ProbeData]:
    """Facts as true and false statements, plain and negated. A group is two facts with each other's answers."""
    pairs = [pair for task in known for pair in task.pairs if str(pair.clean).endswith(VERBS)]
    facts = list({pair.target_strings[0]: str(pair.clean) for pair in pairs}.items())
    random.Random(seed).shuffle(facts)
    groups = [dict(two) for two in zip(facts[::2], facts[1::2], strict=False)]
    rows = [(prompt, a, own == a, n) for n, two in enumerate(groups) for own, prompt in two.items() for a in two]
    found = []
    for name, word, truth in (("truth", "", True), ("truth of negations", " not", False)):
        texts = [f"{prompt}{word}{answer}." for prompt, answer, _, _ in rows]
        labels = [str(right == truth) for _, _, right, _ in rows]
        found.append(ProbeData.of(texts, labels, groups=[n for *_, n in rows], name=name))
    return found if len(groups) >= GROUPS else []


def read_truth(model: PreTrainedModel, data: Sequence[ProbeData], seed: int) -> Truth:
    """Probes at every layer, at the full stop, with their controls; and the best one on negations."""
    split = split_rows(data[0].labels, groups=data[0].groups, validation=0.2, test=0.4, seed=seed)
    found = probe_sweep(model, data[0], split=split, control=data[0].groups, seed=seed)
    moved = transfer_matrix(model, data, layer=found.best.layer, C=found.best.C, test=0.4, seed=seed)
    return Truth(statements=data, sweep=found, moved=moved)


# --- all of it ------------------------------------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None) -> tuple[argparse.ArgumentParser, Namespace]:
    """The options."""
    parser = example.options(__doc__)
    parser.add_argument("--data", type=Path, help="JSON lines with clean, corrupt, target, foil, subject and split")
    parser.add_argument("--n", type=example.count, default=16, help="pairs that accounts are made from, at most")
    parser.add_argument("--edges", type=float, default=0.005, help="size of the circuit, as a share of all edges")
    parser.add_argument(
        "--strongest", type=example.count, default=15, help="how many components of each account are compared"
    )
    parser.add_argument("--random", type=example.count, default=5, help="random circuits beside the one that is found")
    chosen = parser.parse_args(arguments)
    if not 0 < chosen.edges <= 1:
        parser.error(f"--edges is a share of all edges, above 0 and at most 1, not {chosen.edges:g}")
    return parser, chosen


def main(arguments: Sequence[str] | None = None) -> Path:
    """Ask the question of a model, and write the page."""
    parser, chosen = parse(arguments)
    page = example.Page(name="factuality", title="Which components carry a fact?", about=say.ABOUT)
    with example.clear_errors():
        model, tokenizer = example.load(chosen)
        given = own_facts(chosen.data, tokenizer) if chosen.data else capitals(tokenizer, chosen.n, chosen.seed)
        with page.step("Does the model know the facts?", ask):
            known = {split: ask(model, task) for split, task in given.items()}
            say.known(page, known)
        if known["train"].shown and known["test"].shown:
            explain(page, model, {split: one.task for split, one in known.items() if one.task}, chosen)
        else:
            say.unknown(page)
    return page.write(chosen.output, example.made_with(parser, chosen, model, "factuality"))


def explain(page: example.Page, model: PreTrainedModel, known: Mapping[str, tasks.Task], chosen: Namespace) -> None:
    """All steps, on the facts that the model knows."""
    find, test = known["train"].select(range(min(chosen.n, len(known["train"])))), known["test"]
    graph = circuits.graph_of(model)
    components = Components(names=graph.source_names[1:], num_layers=graph.num_layers)
    chosen.strongest = min(chosen.strongest, len(components.names) // 2)
    with page.step("Where is the answer?", trace):
        traced = trace(model, find)
        say.traced(page, traced)
    with page.step("Four accounts of each head and MLP", patching, paths, direct, circuit):
        found, edges = circuit(model, find, chosen.edges, chosen.seed)
        accounts = {a.name: a for a in (patching(model, find), paths(model, find), direct(model, find), edges)}
        gap = float(traced.resid.gap.mean())
        say.accounts(page, accounts, components, found, gap)
    with page.step("Do they agree?", agreement, with_itself):
        agreements = [agreement(*two, chosen.strongest, chosen.seed) for two in combinations(accounts.values(), 2)]
        say.agreement(page, accounts, components, agreements, {n: with_itself(a) for n, a in accounts.items()}, chosen)
    with page.step("On facts that nothing was found on", put_back, on_other_facts):
        asked = test.clean, test.corrupt, test.answers
        verdict = circuits.evaluate_circuit(model, found, *asked, random=chosen.random, seed=chosen.seed)
        left_out = [n for n, effect in enumerate((accounts["patching"].effect / gap).tolist()) if effect >= ALONE]
        shares = on_other_facts(model, test, accounts, components, left_out, chosen)
        say.other_facts(page, verdict, shares, [components.names[n] for n in left_out], len(test))
    with page.step("Can truth be read off before the answer is there?", statements, read_truth):
        data = statements(list(known.values()), chosen.seed)
        truth = read_truth(model, data, chosen.seed) if data else None
        say.truth(page, truth, traced.arrives, components.by_layer(edges.size)[:, :-1].sum(-1))
    with page.step("All by layer"):
        say.by_layer(page, traced, accounts, components, truth)
    say.limits(page)


if __name__ == "__main__":
    main()
