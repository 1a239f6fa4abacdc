"""Trains the tiny induction model of `induction.py` and writes its weights; about half a minute on one core.

    PYTHONPATH=tests python tests/circuits/train_induction.py

Repeats have random lengths and begin anywhere, so that the model cannot do with looking back by a fixed distance.
"""

from __future__ import annotations

import math
import time

import torch
from safetensors.torch import save_file

from circuits.induction import WEIGHTS, empty_model, repeated

STEPS, ROWS, LENGTH, SEED, RATE, PRICE = 1000, 24, 49, 0, 4e-3, 0.04


def train() -> tuple[dict[str, torch.Tensor], list[float]]:
    """The weights, and the loss on the second half now and then."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    model = empty_model().train()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.8 / math.sqrt(parameter.shape[1]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.1)
    warm = 100
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / warm) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / STEPS))),
    )
    losses = []
    for step in range(STEPS):
        before, period = step * 5 % 8, 5 + step * 7 % 18
        ids = repeated(ROWS, period, before=before, length=LENGTH, seed=1000 + step)
        known = before + period  # the last position from which nothing can be known
        logits = model(ids).logits[:, known + 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, known + 2 :].flatten())
        # A price on every head's output, so that a head that is not needed goes: else all of a layer do the same.
        heads = [layer.self_attn.o_proj.weight.unflatten(1, (4, 16)) for layer in model.model.layers]
        price = PRICE * sum(head.norm(dim=(0, 2)).sum() for head in heads)
        optimizer.zero_grad()
        (loss + price).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            losses.append(float(loss.detach()))
    return {name: value.contiguous() for name, value in model.state_dict().items()}, losses


if __name__ == "__main__":
    began = time.monotonic()
    weights, losses = train()
    WEIGHTS.parent.mkdir(exist_ok=True)
    save_file(weights, WEIGHTS)
    print(f"{time.monotonic() - began:.0f} s, losses {[round(x, 4) for x in losses]}")  # noqa: T201 - a script
