"""What readings cost on the demo model, as ratios to the bare forward pass. Run with `make bench`."""

from __future__ import annotations

import platform
import sys

import torch
import transformers
from measure import interleaved

from interp_toolkit import ActivationCache, load_model, run, verify
from interp_toolkit.activations.cache import CHEAP
from interp_toolkit.model import encode


def main() -> None:
    """Print one table for each length of prompt, and the memory of a cache."""
    torch.set_num_threads(2)
    model, _ = load_model("demo")
    verify(model)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {torch.get_num_threads()} threads, ")
    print(f"{platform.machine()}, demo model, float32; median of 15 interleaved rounds (range)\n")
    for length in (14, 128):
        table(model, length)
    memory(model)


def table(model: transformers.PreTrainedModel, length: int) -> None:
    """Time the readings on one prompt of random tokens."""
    ids = torch.randint(100, 40_000, (1, length), generator=torch.Generator().manual_seed(0))
    tokens = encode(ids)
    cheap = [name for name in CHEAP if name != "logits"]
    residual = run(model, tokens, read="resid_pre.20")["resid_pre.20"]

    def bare() -> None:
        with torch.no_grad():
            model(input_ids=ids, use_cache=False)

    jobs = {
        "all residual streams": (lambda: run(model, tokens, read="resid_post", logits="all"), 1.05),
        "everything cheap (all layers)": (lambda: run(model, tokens, read=cheap, logits="all"), 1.15),
        "one layer's patterns": (lambda: run(model, tokens, read="pattern.15", logits="all"), 1.10),
        "all layers' patterns": (lambda: run(model, tokens, read="pattern", logits="all"), None),
        "stop behind layer 9 (10 of 30 layers)": (lambda: run(model, tokens, read="resid_post.9"), 0.40),
        "start at layer 20, last logits": (
            lambda: run(model, tokens, start=(20, residual), logits="last"),
            0.55,
        ),
    }
    print(f"prompt of {length} tokens")
    for timing in interleaved(bare, jobs):
        print("  " + timing.row())
    print()


def memory(model: transformers.PreTrainedModel) -> None:
    """Compare what a cache holds with the numbers it keeps."""
    length = 512
    ids = torch.randint(100, 40_000, (length,), generator=torch.Generator().manual_seed(0))
    activations = ActivationCache(model, sites="resid_post").run(ids)
    numbers = sum(activations[site].numel() for site in activations.sites)
    ratio = activations.nbytes / (4 * numbers)
    print(f"residual-only cache of {length} tokens: {activations.nbytes / 2**20:.1f} MiB, {ratio:.3f} of what is kept")


if __name__ == "__main__":
    sys.exit(main())
