"""The floor of a sweep: the arithmetic that it cannot avoid, at the rate at which this machine multiplies matrices.

A patched cell leaves alone what comes before it: earlier layers, and earlier positions. What comes after it has to run.
So a cell in layer l costs (layers − l) blocks over the positions from the first patched one on, and cells before the
first token in which the prompts differ cost nothing. Both prompts run once without a patch, their common beginning only
once. Counted are the matrices of the blocks and attention itself; the unembedding is left out, because a logit
difference needs two of its rows.

Two savings are not counted, which together can take off about a tenth: cells of layer 0 at tokens that both prompts
share, and what the last block computes for other positions than the last one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from interp_toolkit import load_model


@dataclass(frozen=True, kw_only=True)
class Work:
    """The arithmetic of a model, in floating-point operations.

    Attributes:
        layers: how many blocks there are.
        heads: how many attention heads a block has.
        matrices: what the matrices of one block cost for one token.
        attention: what the attention of one block costs for one token and one key.
    """

    layers: int
    heads: int
    matrices: int
    attention: int

    def sweep(self, length: int, first: int, over: Sequence[str]) -> int:
        """The floor of one pair of prompts, both runs without a patch included.

        Args:
            length: how many tokens each prompt has.
            first: the first position at which they differ.
            over: `("layer", "pos")` for one position at a time, `("layer", "head")` for one head at all positions.
        """
        if tuple(over) == ("layer", "pos"):
            cells = sum(self._block(pos, length) for pos in range(first, length))
        elif tuple(over) == ("layer", "head"):
            cells = self.heads * self._block(first, length)
        else:
            raise ValueError(f"no floor is known for a sweep over {over}")
        depths = sum(self.layers - layer for layer in range(self.layers))
        return depths * cells + self.layers * (self._block(0, length) + self._block(first, length))

    def _block(self, start: int, stop: int) -> int:
        """One block for the positions from `start` to before `stop`; each attends to itself and to all before it."""
        return sum(self.matrices + self.attention * (pos + 1) for pos in range(start, stop))


def work_of(model: PreTrainedModel) -> Work:
    """Count a model of Llama's kind."""
    config = model.config
    width = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    return Work(
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        matrices=2 * sum(weight.numel() for weight in _weights(model)),
        attention=2 * 2 * width,
    )


def matrix_rate(model: PreTrainedModel, *, rows: Sequence[int] = (512, 2048), rounds: int = 5) -> float:
    """Floating-point operations per second in the matrices of a block, for many tokens at once: the best of several."""
    weights = _weights(model)
    best = 0.0
    for count in rows:
        inputs = {
            width: torch.randn(count, width, dtype=weights[0].dtype, device=weights[0].device)
            for width in {weight.shape[1] for weight in weights}
        }
        with torch.no_grad():
            for _ in range(rounds):
                began = time.perf_counter()
                for weight in weights:
                    F.linear(inputs[weight.shape[1]], weight)
                spent = time.perf_counter() - began
                best = max(best, 2 * count * sum(weight.numel() for weight in weights) / spent)
    return best


def _weights(model: PreTrainedModel) -> list[torch.Tensor]:
    """The matrices of one block; the blocks are alike."""
    block = model.get_decoder().layers[0]
    return [module.weight for module in block.modules() if isinstance(module, nn.Linear)]


def main() -> None:
    """Print the rate, and the floors of sweeps over one pair of prompts."""
    parser = argparse.ArgumentParser(description="The floor of sweeps on the demo model.")
    parser.add_argument("--length", type=int, default=14, help="tokens of a prompt (%(default)s)")
    parser.add_argument("--first", type=int, default=1, help="first position at which the prompts differ (%(default)s)")
    asked = parser.parse_args()
    torch.set_num_threads(2)
    model, _ = load_model("demo")
    work, rate = work_of(model), matrix_rate(model)
    print(f"{rate / 1e9:.1f} GFLOP/s with {torch.get_num_threads()} threads")
    print(f"{work.matrices / 1e6:.2f} MFLOP in the matrices of one block for one token")
    for over in (("layer", "pos"), ("layer", "head")):
        flops = work.sweep(asked.length, asked.first, over)
        print(f"{' × '.join(over):<12} {flops / 1e9:9.1f} GFLOP  {flops / rate:8.3f} s")


if __name__ == "__main__":
    main()
