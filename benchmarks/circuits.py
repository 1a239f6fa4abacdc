"""How good and how fast circuit finding is on the demo model: prints its figures, judges nothing.

Quality, for six tasks: CMD and CPR of circuits found on training prompts and judged on test prompts that the model
does right; beside the reference algorithm of EAP-IG (five steps k/5 along the line) on the same prompts; how well
scores agree with exact ones on a random sample of edges. Speed: attribution against forward and backward passes, and
exact runs.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Sequence

import torch

from interp_toolkit import load_model, tasks
from interp_toolkit.circuits import EdgeScores, exact_scores
from interp_toolkit.circuits.attribution import ATTRIBUTIONS, attribute, difference
from interp_toolkit.circuits.curves import SIZES
from interp_toolkit.circuits.dataset import prepare_pairs
from interp_toolkit.circuits.exact import measured_edges
from interp_toolkit.circuits.faithfulness import curve
from interp_toolkit.circuits.graph import connected, random_edges
from interp_toolkit.circuits.metrics import metric_of
from interp_toolkit.circuits.slopes import GradientRun, edge_scores
from interp_toolkit.circuits.subgraph import CircuitRuns
from interp_toolkit.model import run

TASKS = ("ioi", "greater_than", "subject_verb_agreement", "gendered_pronoun", "country_capital", "docstring")


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=("quality", "exact", "speed"), help="default: everything")
    parser.add_argument("--tasks", default=",".join(TASKS), help="for quality, with commas between")
    parser.add_argument("--methods", default="eap,eap-ig,reference", help="for quality; 'all' for every attribution")
    parser.add_argument("--discovery", type=int, default=48, help="prompts that circuits are found on")
    parser.add_argument("--evaluation", type=int, default=64, help="prompts that they are judged on")
    parser.add_argument("--edges", type=int, default=500, help="sample for exact scores")
    options = parser.parse_args()
    wanted = options.only or ["quality", "exact", "speed"]
    model, tokenizer = load_model("demo")
    if "speed" in wanted:
        speed(model, tokenizer)
    if "exact" in wanted:
        agreement(model, tokenizer, options.edges)
    if "quality" in wanted:
        methods = (*ATTRIBUTIONS, "reference") if options.methods == "all" else options.methods.split(",")
        quality(model, tokenizer, options.tasks.split(","), methods, options.discovery, options.evaluation)


def runs_of(model: torch.nn.Module, tokenizer: object, task: tasks.Task) -> CircuitRuns:
    """A task ready to be run."""
    answers = list(zip(task.targets, task.foils, strict=True))
    pairs = prepare_pairs(model, task.clean, task.corrupt, answers, tokenizer=tokenizer)  # type: ignore[arg-type]
    return CircuitRuns(model, pairs, metric_of(task.metric))


def reference(runs: CircuitRuns, steps: int = 5) -> EdgeScores:
    """EAP-IG with its authors' steps: slopes at k/m of the way from the corrupt to the clean embedding, k = 1 to m."""
    base = attribute(runs, "eap", pairs=[0])
    total = torch.zeros_like(base.values, dtype=torch.float64)
    for batch in runs.batches(range(len(runs.pairs))):
        ablated = runs.ablated(batch)
        gradient = GradientRun(runs, ablated)
        ends = ablated.clean_embed - ablated.embed, ablated.clean_embed
        points = [gradient.at(torch.lerp(*ends, k / steps), weight=1 / steps) for k in range(1, steps + 1)]
        total += edge_scores(runs.stream, points, difference(ablated, gradient.clean_run())).double().sum(0)
    values = (total / len(runs.pairs)).float()
    return EdgeScores(
        graph=runs.graph,
        values=values,
        method="reference",
        metric=runs.metric.name,
        provenance=base.provenance,
    )


def quality(
    model: torch.nn.Module,
    tokenizer: object,
    names: Sequence[str],
    methods: Sequence[str],
    discovery: int,
    evaluation: int,
) -> None:
    """CMD and CPR of each method on each task, and their means."""
    sizes = " ".join(f"{share:.1%}" for share in SIZES)
    print(f"\nQuality: CMD (smaller is better), CPR (larger), faithfulness f at {sizes} of the edges")
    found: dict[str, list[tuple[float, float]]] = {method: [] for method in methods}
    for name in names:
        make = getattr(tasks, name)
        train = make(tokenizer, n=discovery).filtered(model)
        test = make(tokenizer, n=2 * evaluation, split="test").filtered(model)
        test = test.select(range(min(evaluation, len(test))))
        here, there = (runs_of(model, tokenizer, task) for task in (train, test))
        print(f"{name}: {len(train)} prompts to find, {len(test)} to judge, metric {test.metric}", flush=True)
        for method in methods:
            began = time.perf_counter()
            scores = reference(here) if method == "reference" else attribute(here, method)
            took = time.perf_counter() - began
            judged = curve(there, scores, random=0)
            found[method].append((float(judged.cmd), float(judged.cpr)))
            print(f"  {method:18} CMD {judged.cmd}  CPR {judged.cpr}  ({took / len(train):.2f} s a prompt)", flush=True)
            for by in ("absolute", "signed"):
                shares = " ".join(f"{float(x):.2f}" for x in judged.faithfulness(by))
                print(f"  {'':18} f by {by} score {shares}", flush=True)
    for method, pairs in found.items():
        cmd, cpr = (sum(pair[n] for pair in pairs) / len(pairs) for n in (0, 1))
        print(f"mean over {len(pairs)} tasks, {method}: CMD {cmd:.4f}, CPR {cpr:.3f}")


def agreement(model: torch.nn.Module, tokenizer: object, sample: int) -> None:
    """Pearson correlation of |scores| with exact ones, on a random sample of edges."""
    runs = runs_of(model, tokenizer, tasks.ioi(tokenizer, n=8))  # type: ignore[arg-type]
    began = time.perf_counter()
    exact = exact_scores(runs, sample=sample, progress=False)
    took, mask = time.perf_counter() - began, measured_edges(exact)
    print(f"\nExact scores of {sample} random edges, ioi, 8 prompts: {took:.0f} s, {took / sample / 8:.3f} s a run")
    for method in ("eap", "clean-corrupt", "eap-ig", "conductance", "relp"):
        both = torch.stack([attribute(runs, method).values[mask], exact.values[mask]]).double()
        print(f"  {method:18} Pearson of |score| {float(both.abs().corrcoef()[0, 1]):.3f}", flush=True)


def speed(model: torch.nn.Module, tokenizer: object) -> None:
    """Seconds a prompt of attribution and of exact runs, beside plain passes."""
    print(f"\nSpeed, {torch.get_num_threads()} threads")
    for label in ("swap", "random"):
        task = tasks.ioi(tokenizer, n=48, corruption=label)  # type: ignore[arg-type]
        runs = runs_of(model, tokenizer, task)
        attribute(runs, "eap", pairs=range(8))
        length = sum(runs.pairs.lengths) / len(runs.pairs)
        first = sum(runs.parting(n) for n in range(len(runs.pairs))) / len(runs.pairs)
        plain, both = passes(model, runs)
        print(
            f"{label}: {length:.0f} tokens, prompts part at {first:.0f}; F {plain:.3f} s, F + B {both:.3f} s a prompt"
        )
        for method in ("eap", "eap-ig", "relp"):
            began = time.perf_counter()
            attribute(runs, method)
            took = (time.perf_counter() - began) / len(runs.pairs)
            slopes = 5 if method == "eap-ig" else 1
            ratio = took / (2 * plain + slopes * both)
            print(f"  {method}: {took:.3f} s a prompt, {ratio:.2f} of 2F + {slopes}(F + B)")
        for share in (0.005, 0.05, 1.0):
            masks = [
                connected(runs.graph, random_edges(runs.graph, int(share * runs.graph.num_edges), seed=n))
                for n in range(4)
            ]
            began = time.perf_counter()
            runs.measure(masks, pairs=range(16))
            print(f"  exact circuit run, {share:.1%} of the edges: {(time.perf_counter() - began) / 64:.3f} s a prompt")
    print(f"  most memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


def passes(model: torch.nn.Module, runs: CircuitRuns) -> tuple[float, float]:
    """Seconds a prompt of a forward pass, and of one with its backward pass to the embedding, in batches of 8."""
    ids = torch.cat([runs.pairs.clean[n].ids for n in range(8)])
    began = time.perf_counter()
    for _ in range(3):
        run(model, ids, logits="last")
    plain = (time.perf_counter() - began) / 24
    began = time.perf_counter()
    for _ in range(3):
        found = run(model, ids, read="embed", logits="last", grad=True)
        torch.autograd.grad(found.logits[:, -1, 0].sum(), found["embed"])
    return plain, (time.perf_counter() - began) / 24


if __name__ == "__main__":
    main()
