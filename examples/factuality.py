"""Which heads and MLPs carry a fact from its subject to the answer, and do several accounts of it agree?

    python examples/factuality.py                                    # countries and their capitals, the demo model
    python examples/factuality.py --model Qwen/Qwen3-8B --device cuda --n 96
    python examples/factuality.py --data facts.jsonl                 # facts of your own

Each row of a file of your own is a prompt, the same prompt about another subject, and the answers to both:

    {"clean": "The Louvre is in", "corrupt": "The Prado is in", "target": "Paris", "foil": "Madrid",
     "subject": "Louvre", "split": "train"}

The subject is a part of the clean prompt. Both prompts have as many tokens and differ in the subject alone, and each
answer is one token behind its prompt. Rows of the split "train" find, those of "test" judge; they share no answer.
"""

from __future__ import annotations

import argparse
import random
import sys
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import example
from interp_toolkit import Edit, circuits, run, tasks
from interp_toolkit.circuits.nodes import Node
from interp_toolkit.errors import InterpError, InterpWarning, PositionError, TokenError
from interp_toolkit.lenses import direct_logit_attribution
from interp_toolkit.model.tokens import encode
from interp_toolkit.probes import ProbeData, ProbeSweep, Transfer, probe_sweep, transfer_matrix
from interp_toolkit.probes.splits import split_rows
from interp_toolkit.statistics import bootstrap_mean, bootstrap_ratio, wilson
from interp_toolkit.visualization import Heatmap, LineChart, Series

FEWEST, GROUPS = 8, 10  # pairs that each step needs, and groups of statements that the probe needs
HALF, ALONE = 0.5, 0.9  # shares of an answer: where it is, and what one component may restore before it hides others
VERBS = (" is", " are", " was", " were")  # behind these "not" makes a negation
ENDS = ("last subject token", "last token")


@dataclass(frozen=True, kw_only=True, eq=False)
class Account:
    """What one method says of each head and MLP on each prompt, in nats: [prompt, component, part].

    Where importance is a sum of sizes, as that of a circuit's node over its edges, it has parts.
    """

    name: str
    measures: str
    values: Tensor

    @property
    def effect(self) -> Tensor:
        """Of each component, with its sign: above 0 is towards the right answer."""
        return self.values.mean(0).sum(-1)

    def sizes(self, weights: Tensor) -> Tensor:
        """How strong each component is, for several weights of the prompts: [weights, component]."""
        flat = self.values.flatten(1)
        return torch.cat([(w @ flat).view(self.values.shape[1:]).abs().sum(-1)[None] for w in weights])

    @property
    def size(self) -> Tensor:
        """How strong each component is over all prompts."""
        return self.values.mean(0).abs().sum(-1)


def capitals(tokenizer: PreTrainedTokenizerBase, n: int, seed: int) -> dict[str, tasks.Task]:
    """Countries and capitals. Splits share no country and no template; each clean prompt comes once."""
    found: dict[str, tasks.Task] = {}
    for split in tasks.words.SPLITS:
        try:  # of each clean prompt come several pairs, with other corrupt ones
            task = tasks.country_capital(tokenizer, n=8 * n, seed=seed, split=split)
        except TokenError as error:
            sys.exit(f"error: lower --n, as eight times as many pairs are drawn: {error}")
        first = {pair.clean_ids: pair for pair in reversed(task.pairs)}
        pairs = [replace(p, positions={**p.positions, "subject": p.positions["country"]}) for p in first.values()]
        found[split] = replace(task, pairs=tuple(pairs[::-1]))
    return found


def own_facts(path: Path, tokenizer: PreTrainedTokenizerBase) -> dict[str, tasks.Task]:
    """Facts of a file, each checked: prompts line up, and differ in nothing but the subject."""
    found: dict[str, list[int]] = {"train": [], "test": []}
    rows = example.read_rows(path, "clean", "corrupt", "target", "foil", "subject", "split")
    pairs = []
    for number, row in enumerate(rows):
        try:
            one = tasks.from_pairs(tokenizer, [row["clean"]], [row["corrupt"]], [(row["target"], row["foil"])]).pairs[0]
            subject = encode(row["clean"], tokenizer=tokenizer).find(row["subject"])
            if not set(one.positions["changed"]) <= set(subject) or subject[-1] == len(one) - 1:
                raise PositionError("prompts must differ in the subject alone, with a token or more behind it")
            found[row["split"]].append(number)
        except (InterpError, KeyError, TypeError) as error:
            sys.exit(f"error: {row['clean']!r} of {path} cannot be used: {error}")
        pairs.append(replace(one, positions={**one.positions, "subject": subject}))
    given = [{answer for n in part for answer in (rows[n]["target"], rows[n]["foil"])} for part in found.values()]
    if given[0] & given[1] or min(len(part) for part in found.values()) < FEWEST:
        sys.exit(f"error: {path} needs {FEWEST} rows or more of each split, train and test, that share no answer")
    about = {"seed": 0, "corruption": "own", "metric": "logit_diff", "tokenizer": ""}
    own = tasks.Task(name="facts", split="all", pairs=tuple(pairs), **about)  # type: ignore[arg-type]
    return {split: own.select(part) for split, part in found.items()}


def known_facts(
    page: example.Page, given: Mapping[str, tasks.Task], model: PreTrainedModel
) -> dict[str, tasks.Task] | None:
    """What the model knows, if it does: the target before the foil. The other pairs are dropped, and counted."""
    known: dict[str, tasks.Task] = {}
    rows, shown = [], True
    for split, task in given.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InterpWarning)  # that it does not know them stands on the page
            found = task.baseline(model)
        n, pair, right = len(task), task.pairs[0], [n for n, value in enumerate(found.clean) if value > 0]
        shown = shown and (split == "validation" or (found.does_it and len(right) >= FEWEST))
        known |= {split: task.select(right)} if right else {}
        row = {
            "split": f"{split}, {n} pairs",
            "such as": f"{pair.clean} →{pair.target_strings[0]}, not{pair.foil_strings[0]}",
        }
        for name, share, ends in (("before foil", found.accuracy, found.interval),
                                  ("before all", found.top, wilson(round(found.top * n), n))):  # fmt: skip
            row[f"target {name}"] = f"{share:.0%} [{100 * ends[0]:.0f}, {100 * ends[1]:.0f}]"
        row["difference"] = example.interval(bootstrap_mean(torch.tensor(found.clean)), digits=1)
        rows.append(row)
    page.table(rows)
    dropped = sum(len(t) for t in given.values()) - sum(len(t) for t in known.values())
    page.text(f"In brackets, 95% intervals over prompts. Dropped, as the target is not before the foil: {dropped}.")
    return known if shown else None


def trace(model: PreTrainedModel, task: tasks.Task, part: str) -> circuits.Effects:
    """Causal tracing: in the run with another subject, one clean activation is put back, at one token and layer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InterpWarning)  # the target is before the foil, if not before every token
        return circuits.causal_trace(
            model, task.clean, task.positions("subject"), answer=task.answers, corruption=task.corrupt, component=part,
            metric="logit_diff",
        )  # fmt: skip


def patching(model: PreTrainedModel, task: tasks.Task) -> Account:
    """Each head and MLP of the clean run put into the corrupt one, at all tokens, each in a run of its own."""
    pairs = task.clean, task.corrupt
    heads = circuits.patch_sweep(model, *pairs, answers=task.answers, component="head", over=("layer", "head"))
    mlps = circuits.patch_sweep(model, *pairs, answers=task.answers, component="mlp", over=("layer",))
    values = torch.cat([heads.change, mlps.change[..., None]], dim=-1).flatten(1)[..., None]
    measures = "what it does to the answer by all routes, put from the clean run into the corrupt one"
    return Account(name="patching", measures=measures, values=values.float())


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
            model, some.clean, some.corrupt, answers=some.answers, senders="mlps", positions=list(place),
            receivers="v", over=["sender"], recompute="mlps",
        )  # fmt: skip
        values[rows, :, -1] = written.change.float().nan_to_num(0.0)  # no head lies behind the last MLP
    measures = (
        "heads: what it brings from the subject to the end; MLPs: what heads move of what it writes at the subject"
    )
    return Account(name="paths", measures=measures, values=values.flatten(1)[..., None])


def direct(model: PreTrainedModel, task: tasks.Task) -> Account:
    """Direct logit attribution at the last token: each part on the clean prompt less that on the corrupt one."""
    names, values = circuits.graph_of(model).source_names[1:], []
    for pair, answers in zip(task.pairs, task.answers, strict=True):
        found = [direct_logit_attribution(model, list(ids), answers) for ids in (pair.clean_ids, pair.corrupt_ids)]
        clean, corrupt = (one.values[-1, [one.names.index(name) for name in names]] for one in found)
        values.append(clean - corrupt)
    measures = "what it writes into the answer's logits itself, at the last token"
    return Account(name="direct", measures=measures, values=torch.stack(values)[..., None].float())


def circuit(model: PreTrainedModel, task: tasks.Task, share: float, seed: int) -> tuple[circuits.Circuit, Account]:
    """The best edges of the model by EAP-IG; a component is worth the sum of |score| over its outgoing edges."""
    edges = max(1, round(share * circuits.graph_of(model).num_edges))
    finder = circuits.CircuitFinder(model, edges=edges, evaluation=0.0, random=0, seed=seed)
    found = finder.find_circuit(task.clean, task.corrupt, answers=task.answers, progress=False)
    kept = finder.found_
    if kept is None or kept.scores.prompts is None:
        raise RuntimeError("the scores of single prompts are needed")
    measures = "the summed size of what its edges are worth, estimated along the line between the two prompts"
    return found, Account(name="circuit", measures=measures, values=kept.scores.prompts[:, 1:].float())


def ranks(x: Tensor) -> Tensor:
    """The centred rank of each number in its row; equal ones share theirs."""
    ordered = x.sort(-1).values.contiguous()
    found = torch.searchsorted(ordered, x) + torch.searchsorted(ordered, x, right=True)
    return found - found.float().mean(-1, keepdim=True)


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's rank correlation, row by row."""
    return torch.cosine_similarity(ranks(a), ranks(b), dim=-1)


def halves(account: Account) -> float:
    """The rank correlation of an account on every other prompt with itself on those between: a ceiling."""
    even = (torch.arange(len(account.values)) % 2 == 0).float()
    first, second = account.sizes(torch.stack([even / even.sum(), (1 - even) / (1 - even).sum()]))
    return float(spearman(first, second))


def agreement(pair: tuple[Account, Account], names: Sequence[str], k: int, seed: int) -> tuple[float, int, str]:
    """Rank correlation and overlap of two accounts, and both in words; prompts are drawn again for both alike."""
    n = len(pair[0].values)
    drawn = torch.randint(n, (200, n), generator=torch.Generator().manual_seed(seed))
    weights = torch.nn.functional.one_hot(drawn, n).float().mean(1)
    value = float(spearman(pair[0].size, pair[1].size))
    low, high = spearman(*(account.sizes(weights) for account in pair)).quantile(torch.tensor([0.025, 0.975])).tolist()
    places = torch.stack([(-account.size).argsort(stable=True).argsort() for account in pair])
    both, either = (places < k).all(0), (places < k).any(0)
    alike = int((both & (pair[0].effect * pair[1].effect > 0)).sum())
    far = int(((places[0] - places[1]).abs() * either).argmax())
    how = "rank them much alike" if low > HALF else "rank them alike, loosely" if low > 0 else "are not shown to agree"
    return value, int(both.sum()), (
        f"- **{pair[0].name.capitalize()} and {pair[1].name}** {how}: ρ = {value:.2f} [{low:.2f}, {high:.2f}]. They "
        f"share {int(both.sum())} of their strongest {k} ({alike} with one sign; chance {k * k / len(names):.1f}), and "
        f"part most over {names[far]}: number {int(places[0, far]) + 1} and {int(places[1, far]) + 1}."
    )  # fmt: skip


def restored(model: PreTrainedModel, task: tasks.Task, sets: Sequence[Sequence[str]]) -> tuple[Tensor, Tensor]:
    """What each set of components, put into the corrupt run together, brings back; and all that there is to bring."""
    rows, (targets, foils) = torch.arange(len(task)), torch.tensor(task.answers).T
    clean = run(model, task.clean, read=sorted({name for some in sets for name in some}), logits="last")

    def favour(logits: Tensor | None) -> Tensor:
        last = torch.zeros(0) if logits is None else logits[:, -1].float().cpu()
        return last[rows, targets] - last[rows, foils]

    edits = [[Edit.set(name, clean[name]) for name in some] for some in ([], *sets)]
    before, *after = [favour(run(model, task.corrupt, edits=one, logits="last").logits) for one in edits]
    return torch.stack(after) - before, favour(clean.logits) - before


def statements(known: Sequence[tasks.Task], seed: int) -> list[ProbeData]:
    """Facts as true and false statements, plain and negated. A group is two facts with each other's answers."""
    pairs = [p for task in known for p in task.pairs if str(p.clean).endswith(VERBS)]
    facts = list({p.target_strings[0]: str(p.clean) for p in pairs}.items())
    random.Random(seed).shuffle(facts)
    groups = [dict(two) for two in zip(facts[::2], facts[1::2], strict=False)]
    rows = [(prompt, a, own == a, n) for n, two in enumerate(groups) for own, prompt in two.items() for a in two]
    if len(groups) < GROUPS:
        return []
    texts = [[f"{prompt}{word}{a}." for prompt, a, _, _ in rows] for word in ("", " not")]
    labels = [[str(right == sign) for _, _, right, _ in rows] for sign in (True, False)]
    named = zip(("truth", "truth of negations"), texts, labels, strict=True)
    return [ProbeData.of(x, y, groups=[n for *_, n in rows], name=name) for name, x, y in named]


def truth(model: PreTrainedModel, data: Sequence[ProbeData], seed: int) -> tuple[ProbeSweep, Transfer]:
    """Probes of truth at every layer, at the full stop, with their controls; and the best one on negations."""
    split = split_rows(data[0].labels, groups=data[0].groups, validation=0.2, test=0.4, seed=seed)
    found = probe_sweep(model, data[0], split=split, control=data[0].groups, seed=seed)
    return found, transfer_matrix(model, data, layer=found.best.layer, C=found.best.C, test=0.4, seed=seed)


@dataclass(frozen=True, kw_only=True, eq=False)
class Study:
    """What all steps share."""

    page: example.Page
    model: PreTrainedModel
    known: Mapping[str, tasks.Task]
    chosen: argparse.Namespace
    names: Sequence[str]


def at(found: circuits.Effects, row: str) -> Tensor:
    """What restoring at one kind of token does, layer by layer."""
    return found.effect[:, found.labels[1].index(row)].nan_to_num(0.0)


def traced(study: Study, traces: Mapping[str, circuits.Effects]) -> int | None:
    """Where the answer is, layer by layer; returns the layer from which on it is at the last token."""
    whole, lines = traces["resid"], []
    sure = whole.estimate()
    for row in ENDS:
        y, low, high = (x[:, whole.labels[1].index(row)] for x in (sure.mean, sure.low, sure.high))
        lines.append(Series(name=row, y=y, low=low, high=high))
    there = [[n for n, share in enumerate(at(whole, row).tolist()) if share >= HALF] for row in ENDS]
    left = f"the subject holds the answer up to layer {there[0][-1]}" if there[0] else "the subject never holds it"
    said = f"{left}, the end {f'from layer {there[1][0]} on' if there[1] else 'never'}"
    chart = LineChart(
        x=range(len(sure.mean)), series=lines, title=f"Tracing: {said}", x_name="layer", y_name="restored"
    )
    study.page.picture(chart, f"Share of the answer that the stream behind a layer restores: {said}.", name="trace")
    best = [(part, row, at(traces[part], row)) for part in ("mlp", "attn") for row in ENDS]
    parts = [
        f"{part.replace('mlp', 'MLP')} at the {row} {x.max():.0%} (layer {int(x.argmax())})" for part, row, x in best
    ]
    study.page.text(f"To hold is to restore half or more. Most that one sublayer restores: {', '.join(parts)}.")
    study.page.short(f"- Tracing: {said}. Most that one sublayer restores: {', '.join(parts)}.")
    return there[1][0] if there[1] else None


def told(study: Study, accounts: Sequence[Account], found: circuits.Circuit, gap: float) -> None:
    """What each account measures, and what it says of the components that are strongest in all of them."""
    study.page.text("\n".join(f"- **{a.name.capitalize()}**: {a.measures}." for a in accounts))
    mean, rows = torch.stack([ranks(-a.size) for a in accounts]).mean(0), []
    for n in mean.argsort(stable=True)[:12].tolist():
        role = found.role_of(study.names[n])
        shares = {a.name: f"{a.effect[n] / gap:+.1%}" for a in accounts}
        rows.append({"component": study.names[n], **shares, "role": "not in it" if role is None else role.name})
    study.page.table(rows)
    study.page.text(
        f"Shares of the difference between clean and corrupt prompts ({gap:.1f} nats); + is towards the answer. The"
        f" best mean ranks of {len(mean)} components on {len(accounts[0].values)} pairs, all patched exactly. A "
        "circuit's scores are estimates, here added up with their signs; roles are those measured in the circuit."
    )


def compared(study: Study, accounts: Sequence[Account]) -> str:
    """Every pair of accounts; returns what they put first."""
    page, k, names = study.page, study.chosen.strongest, study.names
    found = {p: agreement(p, names, k, study.chosen.seed) for p in combinations(accounts, 2)}
    own = ", ".join(f"{halves(a):.2f} ({a.name})" for a in accounts)
    page.text("\n".join(words for _, _, words in found.values()))
    page.text(f"As a ceiling, each account on half of the prompts with itself on the others: ρ = {own}.")
    first = []
    for kind, mlp in (("heads", False), ("MLPs", True)):
        of = [n for n, name in enumerate(names) if name.endswith("MLP") == mlp]
        (best, votes), *_ = Counter(names[of[int(a.size[of].argmax())]] for a in accounts).most_common(1)
        first.append(f"{votes} of 4 put {best} first of {kind}")
    low, high = (pick(found, key=lambda p: found[p][0]) for pick in (min, max))
    ends = [f"{found[p][0]:.2f} ({p[0].name} and {p[1].name})" for p in (low, high)]
    shared = [n for _, n, _ in found.values()]
    page.short(
        f"- Four accounts: {', '.join(first)}. Rank correlations are from {ends[0]} to {ends[1]}, and two share "
        f"{min(shared)} to {max(shared)} of their strongest {k} (chance {k * k / len(names):.1f})."
    )
    return ", ".join(first)


def judged(study: Study, accounts: Sequence[Account], found: circuits.Circuit, gap: float) -> None:
    """The circuit, and the strongest components of each account put together, on other facts, beside random ones."""
    page, task, names, seed = study.page, study.known["test"], study.names, study.chosen.seed
    asked = task.clean, task.corrupt, task.answers
    verdict = circuits.evaluate_circuit(study.model, found, *asked, random=study.chosen.random, seed=seed)
    page.printed(verdict.summary())
    alone, rows = [n for n, effect in enumerate((accounts[0].effect / gap).tolist()) if effect >= ALONE], []
    for k in (study.chosen.strongest // 3, study.chosen.strongest):
        order = [[n for n in (-a.size).argsort(stable=True).tolist() if n not in alone][:k] for a in accounts]
        draw, mlps = random.Random(seed), sum(names[n].endswith("MLP") for n in order[0])
        kinds = [
            [n for n, name in enumerate(names) if name.endswith("MLP") == mlp and n not in alone] for mlp in (1, 0)
        ]
        order += [draw.sample(kinds[0], mlps) + draw.sample(kinds[1], k - mlps) for _ in range(10)]
        back, gaps = restored(study.model, task, [[names[n] for n in some] for some in order])
        each = {a.name: back[n] for n, a in enumerate(accounts)} | {"ten random sets": back[4:].mean(0)}
        estimates = {name: bootstrap_ratio(x, gaps, seed=seed) for name, x in each.items()}
        rows.append({"strongest": k, **{name: example.interval(e, share=True) for name, e in estimates.items()}})
    page.table(rows)
    left = ", ".join(names[n] for n in alone) or "none"
    page.text(
        "Share of the answer that the strongest components of each account restore, put into the corrupt run together, "
        f"on {len(task)} pairs of other facts. Random sets have as many MLPs as that of patching. Left out, as each "
        f"restores {ALONE:.0%} alone on the first facts: {left}."
    )
    ends = ", ".join(f"{name} {share}" for name, share in rows[0].items() if name != "strongest")
    page.short(
        f"- On other facts, the circuit alone has faithfulness {verdict.faithfulness}, random ones of its size "
        f"{verdict.random_faithfulness.value:z.2f}. The strongest {rows[0]['strongest']} put together (without: "
        f"{left}) restore {ends}."
    )


def read_truth(study: Study, edges: Account, arrives: int | None) -> Tensor | None:
    """From which layer on truth can be read off, and whether that is before the answer comes to the end."""
    page, data = study.page, statements(list(study.known.values()), study.chosen.seed)
    if not data:
        page.text(f"No probe: fewer than {GROUPS} groups of statements, from prompts that end in{' or'.join(VERBS)}.")
        return None
    found, moved = truth(study.model, data, study.chosen.seed)
    surely = [score.accuracy_low > HALF for score in found.scores]
    first = next((n for n in range(len(surely)) if all(surely[n:])), None)
    heads = edges.size.view(len(surely), -1)[:, :-1].sum(-1).cumsum(0)
    said = (
        "Truth is not surely read off in the last layer"
        if first is None
        else f"Truth is read off from layer {first} on"
    )
    if first is not None and arrives is not None:
        said += f", {'before' if first < arrives else 'not before'} layer {arrives}, where the answer comes to the end"
    low, area, high = (x[0, 1].item() for x in (moved.low, moved.auroc, moved.high))
    turned = "the wrong way round" if high < HALF else "right" if low > HALF else "not shown to be right or wrong"
    page.picture(found.plot(), f"{said}: “{data[0].texts[0]}” against “{data[0].texts[1]}”.", name="probe")
    page.text(
        f"{said} (all intervals above one half). Half of the circuit's weight in heads lies up to "
        f"layer {int((heads < heads[-1] / 2).sum())}. On negated statements the probe is {turned}: accuracy "
        f"{moved.accuracy[0, 1]:.2f} [{low:.2f}, {high:.2f}], AUROC {area:.2f}; their own {moved.auroc[1, 1]:.2f}.",
        found.summary(),
    )
    page.short(f"- {said}. On negated statements the same probe is {turned} (AUROC {area:.2f}).")
    return torch.tensor([score.accuracy - HALF for score in found.scores]).clamp_min(0.0)


def by_layer(
    accounts: Sequence[Account], traces: Mapping[str, circuits.Effects], truth: Tensor | None, said: str
) -> Heatmap:
    """All of them by layer, each row as shares of its largest number."""
    layers = len(traces["resid"].labels[0])
    rows = {
        "traced MLP, subject": at(traces["mlp"], ENDS[0]),
        "traced attention, end": at(traces["attn"], ENDS[1]),
    }
    rows |= {f"{a.name}: heads": a.size.view(layers, -1)[:, :-1].sum(-1) for a in accounts}
    rows |= {f"{a.name}: MLP": a.size.view(layers, -1)[:, -1] for a in accounts}
    rows |= {} if truth is None else {"probe of truth": truth}
    values = [(row.abs() / row.abs().max().clamp_min(1e-9)).tolist() for row in rows.values()]
    return Heatmap(
        values=values, rows=list(rows), columns=list(map(str, range(layers))), title=f"Four accounts of a fact: {said}",
        caption="Sizes of effects by layer, each row as shares of its largest.", column_name="layer", limit=1,
        scale="sequential",
    )  # fmt: skip


def explain(study: Study) -> None:
    """All steps, on the facts that the model knows."""
    page, model, chosen, find = study.page, study.model, study.chosen, study.known["train"]
    find = find.select(range(min(chosen.n, len(find))))
    with page.step("Where is the answer?", trace):
        traces = {part: trace(model, find, part) for part in ("resid", "mlp", "attn")}
        arrives, gap = traced(study, traces), float(traces["resid"].gap.mean())
    with page.step("Four accounts of each head and MLP", patching, paths, direct, circuit):
        found, edges = circuit(model, find, chosen.edges, chosen.seed)
        accounts = [patching(model, find), paths(model, find), direct(model, find), edges]
        told(study, accounts, found, gap)
    with page.step("Do they agree?", agreement):
        said = compared(study, accounts)
    with page.step("On facts that nothing was found on", restored):
        judged(study, accounts, found, gap)
    with page.step("Can truth be read off before the answer is there?", statements, truth):
        readable = read_truth(study, edges, arrives)
    with page.step("All by layer"):
        page.picture(by_layer(accounts, traces, readable, said), f"{said}.")
    page.text(LIMITS, LARGER)


def main(arguments: Sequence[str] | None = None) -> Path:
    """Write the page."""
    parser = example.options("Which heads and MLPs carry a fact, and do four accounts of it agree?")
    parser.add_argument("--data", type=Path, help="JSON lines with clean, corrupt, target, foil, subject and split")
    parser.add_argument("--n", type=int, default=16, help="pairs that accounts are made from, at most")
    parser.add_argument("--edges", type=float, default=0.005, help="size of the circuit, as a share of all edges")
    parser.add_argument("--strongest", type=int, default=15, help="how many components of each account are compared")
    parser.add_argument("--random", type=int, default=5, help="random circuits beside the one that is found")
    chosen = parser.parse_args(arguments)
    model, tokenizer = example.load(chosen)
    given = own_facts(chosen.data, tokenizer) if chosen.data else capitals(tokenizer, chosen.n, chosen.seed)
    page = example.Page(name="factuality", title="Which components carry a fact?", about=ABOUT)
    with page.step("Does the model know the facts?"):
        known = known_facts(page, given, model)
    if known is None:
        page.short("The model is not shown to know these facts, so there is nothing to explain, and no more was run.")
    else:
        names = circuits.graph_of(model).source_names[1:]
        explain(Study(page=page, model=model, known=known, chosen=chosen, names=names))
    return page.write(chosen, example.made_with(parser, chosen, model, "factuality"))


ABOUT = """A prompt such as “The capital of France is” is answered from what the model has learned of its subject. Which
heads and MLPs bring that to the last token? Patching, paths, direct attribution and a circuit each give a number for
every head and MLP. They measure different things and need not agree; this page says where they do."""
LIMITS = """## What this does not show

- All accounts explain the *difference* between two subjects. What both prompts share, as that a capital is asked for,
  is outside of the question. Ranks are by size over heads and MLPs together; far down they are noise.
- Paths freeze what heads move among the subject's own tokens: MLPs alone are recomputed between subject and head.
- Sizes of a circuit's edges are added up, also where their signs differ: an MLP whose edges cancel ranks high.
- Prompts that share an answer are not independent, so intervals are too narrow.
- The probe reads the full stop behind an answer, the other accounts the token before one: being earlier or later is a
  hint. And it shows what can be read off, not that anything uses it."""
LARGER = """## On a larger model

`python examples/factuality.py --model Qwen/Qwen3-8B --device cuda --dtype bfloat16 --n 96 --random 30`.
Patching runs each head once for each prompt, which is most of the time: fewer pairs make it shorter. In bfloat16,
effects of a few hundredths of a nat are rounding. Facts of your own come with `--data`; the script's head says how."""


if __name__ == "__main__":
    main()
