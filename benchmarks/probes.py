"""What training probes costs beside scikit-learn, and streaming from a store beside memory. Run with `make bench`.

Features are the demo model's residual stream at every token of sentences with singular and plural subjects: 30 layers,
4,000 rows of 576.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time

import numpy as np
import torch
from measure import interleaved
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from store import wide_store
from torch import Tensor

from interp_toolkit import load_model
from interp_toolkit.activations import ActivationStore
from interp_toolkit.probes import LinearProbe, MLPProbe, concept
from interp_toolkit.probes.collecting import collect
from interp_toolkit.probes.features import Features
from interp_toolkit.probes.inputs import read_targets
from interp_toolkit.probes.kinds import fit_linear

ROWS = 4000
PENALTIES = [10.0**n for n in range(-4, 4)]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=["sweep", "streaming"], action="append")
    parser.add_argument("--layers", type=int, default=3, help="how many of the 30 layers are fitted by both")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tolerance", type=float, default=1e-4, help="of scikit-learn's gradient; 1e-4 is its default")
    options = parser.parse_args()
    torch.set_num_threads(2)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    if not options.only or "sweep" in options.only:
        sweep(options.layers, options.tolerance)
    if not options.only or "streaming" in options.only:
        streaming(options.rounds)


# --- beside scikit-learn ------------------------------------------------------------------------------------------


def features() -> tuple[list[Tensor], list[str]]:
    """Residual streams of every layer, `[row, d]`, and whether the subject of each row's text is plural."""
    model, _ = load_model("demo")
    data = concept("number_agreement")
    material = collect(model, data.texts, positions="all")
    labels = [data.labels[n] for n in material.documents.tolist()]
    return [source[torch.arange(len(material.documents))].float() for source in material.sources], [
        str(x) for x in labels
    ]


def sweep(layers: int, tolerance: float) -> None:
    """One layer after the other, by us and by scikit-learn, with the losses and the accuracies that both reach."""
    sources, labels = features()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[:ROWS], order[ROWS:]
    if len(test) < 100:  # a text's tokens stand on both sides, which does not matter for speed
        test = order[:1000]
    targets = read_targets(labels)
    y = targets.index.numpy()
    picked = np.linspace(len(sources) - 1, 0, min(layers, len(sources))).round().astype(int)
    ours, peers, losses, accuracies, steps = [], [], [], [], []
    for layer in picked:
        x = sources[layer][train]
        began = time.perf_counter()
        held = Features.prepared(
            [x], None, (1, *x.shape), dtype=torch.float32, device=torch.device("cpu"), standardize=True, memory=2e9
        )
        fit = fit_linear(held, targets.select(train), penalties=torch.tensor(PENALTIES))
        ours.append(time.perf_counter() - began)
        began = time.perf_counter()
        scaler = StandardScaler().fit(x.numpy())
        plain = scaler.transform(x.numpy())
        found = [LogisticRegression(C=c, tol=tolerance, max_iter=10_000).fit(plain, y[train]) for c in PENALTIES]
        peers.append(time.perf_counter() - began)
        scale = torch.from_numpy(scaler.scale_)
        for n, (c, peer) in enumerate(zip(PENALTIES, found, strict=True)):
            weight, bias = fit.weights[0, n, 0] * scale, fit.bias[0, n, 0] + fit.weights[0, n, 0] @ scaler_mean(scaler)
            mine = loss(plain, y[train], weight, float(bias), c)
            other = loss(plain, y[train], torch.from_numpy(peer.coef_[0]).double(), float(peer.intercept_[0]), c)
            losses.append(mine / other - 1)
            margins = sources[layer][test].double() @ fit.weights[0, n, 0] + fit.bias[0, n, 0]
            right = ((margins > 0).numpy() == y[test]).mean()
            accuracies.append(right - peer.score(scaler.transform(sources[layer][test].numpy()), y[test]))
            steps.append(int(peer.n_iter_[0]))
    ratios = [b / a for a, b in zip(ours, peers, strict=True)]
    print(f"logistic regression, {len(picked)} layers x {len(PENALTIES)} penalties, {ROWS:,} rows x {x.shape[1]}")
    print(f"ours {sum(ours):.1f} s, scikit-learn {sum(peers):.1f} s: ratio {sum(peers) / sum(ours):.1f} (asked ≥ 10)")
    print(f"by layer: median {statistics.median(ratios):.1f}, range {min(ratios):.1f} to {max(ratios):.1f}")
    print(f"loss, ours over scikit-learn's: {min(losses):+.1e} to {max(losses):+.1e} (asked ≤ 1e-4)")
    worst = f"{min(accuracies):+.2%} to {max(accuracies):+.2%}"
    print(f"test accuracy, ours minus scikit-learn's: {worst} (asked within 0.2%)")
    print(f"scikit-learn's steps: median {statistics.median(steps)}, at most {max(steps)}\n")


def scaler_mean(scaler: StandardScaler) -> Tensor:
    """What was subtracted, in float64."""
    return torch.from_numpy(scaler.mean_).double()


def loss(x: np.ndarray, y: np.ndarray, weight: Tensor, bias: float, c: float) -> float:
    """The objective of scikit-learn, in float64."""
    margins = torch.from_numpy(x).double() @ weight + bias
    wanted = torch.from_numpy(y).double()
    each = torch.nn.functional.binary_cross_entropy_with_logits(margins, wanted, reduction="sum")
    return float(c * each + 0.5 * weight.square().sum())


# --- beside memory ------------------------------------------------------------------------------------------------


def streaming(rounds: int) -> None:
    """The same training from a store as from memory."""
    with tempfile.TemporaryDirectory() as folder:
        store: ActivationStore = wide_store(folder)
        site = store[store.sites[0]]
        held = site[:].clone()
        labels = (held[:, :8].float().sum(-1) > 0).long()
        rows = len(held)
        print(f"training on {rows:,} rows x {held.shape[1]}, {held.dtype!s}; median of {rounds} rounds (range)")
        for title, memory in (("held in float32", None), ("read anew in every pass", 0.0)):
            options = {"dtype": torch.float32, "max_steps": 3, "memory": memory}
            jobs = {
                f"logistic regression, {title}, from the store": (
                    lambda options=options: LinearProbe(**options).train(site, labels),
                    1.10,
                )
            }
            report(lambda options=options: LinearProbe(**options).train(held, labels), jobs, rounds)
        small = {"hidden": (64,), "seed": 0}
        jobs = {"MLP, one epoch, from the store": (lambda: MLPProbe(**small).train(site, labels, epochs=1), 1.10)}
        report(lambda: MLPProbe(**small).train(held, labels, epochs=1), jobs, rounds)


def report(reference: object, jobs: dict, rounds: int) -> None:
    """Print one comparison."""
    for timing in interleaved(reference, jobs, rounds=rounds, name="the same from memory"):
        print(timing.row())
    print()


if __name__ == "__main__":
    main()
