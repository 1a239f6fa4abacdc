"""A first look at one fact in a model: what `interp-toolkit demo` shows.

Which heads look at the subject of "The capital of France is", and at which layers and positions the Eiffel Tower
turns into Paris.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from interp_toolkit.activations import ActivationCache, Activations
from interp_toolkit.circuits import patch_sweep
from interp_toolkit.model import Span
from interp_toolkit.model.positions import PositionsLike
from interp_toolkit.model.tokens import answer_token, token_string, tokenizer_for

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COMPONENTS = ("resid", "attn", "mlp")


@dataclass(frozen=True, kw_only=True)
class Showcase:
    """What the demonstration found.

    Attributes:
        prompt: the first prompt.
        answers: the most probable next tokens there, with their probabilities.
        heads: name of a head and how much of its attention goes from the last token to the subject, strongest first.
        subject: the subject of the first prompt.
        clean: the clean prompt.
        corrupt: the corrupt prompt.
        target: the clean answer's token.
        foil: the corrupt answer's token.
        effects: for each place, component and layer the normalised effect of patching clean into corrupt.
    """

    prompt: str
    answers: tuple[tuple[str, float], ...]
    heads: tuple[tuple[str, float], ...]
    subject: str
    clean: str
    corrupt: str
    target: str
    foil: str
    effects: dict[str, dict[str, tuple[float, ...]]]

    def strongest(self, place: str, component: str) -> tuple[int, float]:
        """The layer with the largest effect, and that effect."""
        values = [0.0 if math.isnan(v) else v for v in self.effects[place][component]]
        layer = max(range(len(values)), key=lambda n: abs(values[n]))
        return layer, values[layer]

    def sentence(self) -> str:
        """The finding in words, every number measured."""
        subject, last = self.effects
        layer, share = self.strongest(last, "attn")
        at_subject, at_last = self.effects[subject]["resid"], self.effects[last]["resid"]
        behind = min(layer + 1, len(at_last) - 1)
        return (
            f"Attention of layer {layer} is what brings the answer to {last}: put there alone, the clean run's output "
            f"restores {share:.0%} of {self.target!r} over {self.foil!r}. The residual stream at {last} carries "
            f"{at_last[layer]:.0%} in front of that layer and {at_last[behind]:.0%} behind it; at {subject} it "
            f"carries {at_subject[0]:.0%} at layer 0, {at_subject[layer]:.0%} at layer {layer} and "
            f"{at_subject[behind]:.0%} at layer {behind}."
        )


def showcase(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    note: Callable[[str], None] = lambda text: None,
) -> Showcase:
    """Look at one fact in a model.

    Args:
        model: a causal language model that knows where the Eiffel Tower is.
        tokenizer: needed when the model does not say where it comes from.
        note: called with a line before each step.

    Returns:
        Heads that look at the subject, and patching effects by place, component and layer.
    """
    tokenizer = tokenizer_for(model, tokenizer)
    prompt, subject = "The capital of France is", "France"
    note(f"reading activations of {prompt!r}")
    activations = ActivationCache(model, tokenizer).run(prompt)
    probabilities = activations.logits()[-1].float().softmax(-1).topk(3)
    where = activations.prompt.find(subject)[-1]
    note("patching layer by layer")
    clean, corrupt, answers = "The Eiffel Tower is in", "The Colosseum is in", (" Paris", " Rome")
    places: dict[str, PositionsLike] = {
        "the subject's last token": Span("Eiffel Tower", token=-1),
        "the last token": "last",
    }
    effects: dict[str, dict[str, tuple[float, ...]]] = {place: {} for place in places}
    for component in COMPONENTS:
        found = patch_sweep(
            model, clean, corrupt, answers=answers, component=component, positions=places, tokenizer=tokenizer
        )
        for number, place in enumerate(places):
            effects[place][component] = tuple(found.effect[:, number].tolist())
    target, foil = (token_string(tokenizer, answer_token(clean, answer, tokenizer)) for answer in answers)
    return Showcase(
        prompt=prompt,
        answers=tuple(
            (token_string(tokenizer, int(i)), float(p))
            for p, i in zip(probabilities.values, probabilities.indices, strict=True)
        ),
        heads=_lookers(activations, where),
        subject=subject,
        clean=clean,
        corrupt=corrupt,
        target=target,
        foil=foil,
        effects=effects,
    )


def _lookers(activations: Activations, where: int, number: int = 5) -> tuple[tuple[str, float], ...]:
    shares = torch.stack(
        [activations.attention_pattern(layer)[:, -1, where].float() for layer in range(activations.num_layers)]
    )
    best = shares.flatten().topk(number)
    return tuple(
        (f"L{int(i) // shares.shape[1]}H{int(i) % shares.shape[1]}", float(v))
        for v, i in zip(best.values, best.indices, strict=True)
    )


__all__ = ["Showcase", "showcase"]
