"""How much of what ablation does is done at the first token.

In most models the first token's activations are many times longer than all others and hardly depend on the word; other
tokens attend to it where there is nothing else to attend to (Sun et al. 2024, "Massive Activations in Large Language
Models"). A direction is ablated there too when it is taken from all that writes to the residual stream, and may do
more there than everywhere else, whatever the direction is meant to be.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp_toolkit.errors import SteeringError
from interp_toolkit.model.edits import Edit
from interp_toolkit.model.layout import Layout
from interp_toolkit.model.positions import positions as as_positions
from interp_toolkit.model.run import run
from interp_toolkit.model.sites import Site
from interp_toolkit.model.tokens import Inputs, Tokens, encode, is_text, tokenizer_for
from interp_toolkit.model.verify import verified
from interp_toolkit.model.wiring import Wiring
from interp_toolkit.statistics import kl_divergence
from interp_toolkit.steering.contrast import same_lengths
from interp_toolkit.steering.operations import writers
from interp_toolkit.steering.vector import SteeringVector

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LONG = 10.0  # times the others' length, from which on a first token is unlike the others
_MORE = 2.0  # times what ablation does at all other tokens


@dataclass(frozen=True, kw_only=True)
class FirstToken:
    """What ablation of a direction does at the first token, and what it does at all others.

    Attributes:
        longer: how many times as long as the others' median the first token's activations are, where that is most.
        layer: the layer behind which they are.
        share: of the first token's activation there, how much lies along the direction: |x·v| / |x|.
        share_others: the same of all other tokens, the median.
        kl: how far the next token's distribution moves behind all others, in nats, when the direction is ablated at
            the first token alone.
        kl_others: the same when it is ablated everywhere else.
    """

    longer: float
    layer: int
    share: float
    share_others: float
    kl: float
    kl_others: float

    @property
    def dominates(self) -> bool:
        """Whether the first token is unlike the others, and ablation there alone does twice what it does elsewhere."""
        return self.longer >= _LONG and self.kl > _MORE * self.kl_others

    def summary(self) -> str:
        """What was found, in words."""
        return (
            f"Behind layer {self.layer} the first token's activations are {self.longer:.3g} times as long as the "
            f"others'; {self.share:.1%} of that lies along the direction ({self.share_others:.1%} of the others'). To "
            f"ablate it there alone moves what the model says by {self.kl:.3f} nats a token (KL), everywhere else by "
            f"{self.kl_others:.3f}."
        )


@torch.no_grad()
def first_token(
    model: nn.Module,
    vector: SteeringVector | Float[Tensor, "*direction d_model"],
    prompts: Inputs | Tokens,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    layout: Layout | None = None,
) -> FirstToken:
    """Compare ablating a direction at the first token with ablating it at all others.

    The direction is taken from all that writes to the residual stream, as by `layers="writers"`.

    Args:
        model: a causal language model.
        vector: one direction of a vector for this model, or a tensor; see `orthogonalised`.
        prompts: of two tokens or more each.
        tokenizer: needed for text when the model does not say where it comes from.
        layout: for a model class of your own.

    Raises:
        SteeringError: for a prompt of one token, or a direction that does not fit.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=11)).eval()
        >>> first_token(model, torch.eye(8)[3], [[1, 2, 3]]).dominates
        False
    """
    wiring = verified(model, layout)
    tokens = encode(prompts, tokenizer=tokenizer_for(model, tokenizer) if is_text(prompts) else tokenizer)
    return first_token_of(wiring, tokens, span_of(model, vector, wiring, layout))


def first_token_of(wiring: Wiring, tokens: Tokens, basis: Float[Tensor, "direction d_model"]) -> FirstToken:
    """The same for prompts as tokens, and an orthonormal basis.

    Raises:
        SteeringError: for a prompt of one token.
    """
    if int(tokens.lengths.min()) < 2:
        raise SteeringError("to compare the first token with others, every prompt needs two tokens or more")
    edits = [Edit.project_out(site, basis) for site in writers(wiring)]
    streams = [Site("resid_post", layer) for layer in range(wiring.layout.num_layers)]
    # Behind each layer, for every first token and for every other: its length, and that of its part in the span.
    ends: list[list[Tensor]] = [[], []]
    moved: list[list[Tensor]] = [[], []]
    for _, part in same_lengths(tokens):
        found = run(wiring.model, part, read=streams, logits="all", layout=wiring.layout)
        plain = found.logits[:, 1:].float().log_softmax(-1)
        x = torch.stack([found[site] for site in streams]).double()
        lengths = torch.stack([x.norm(dim=-1), (x @ basis.to(x).mT).norm(dim=-1)]).cpu()
        for side, where in enumerate((slice(0, 1), slice(1, None))):
            ends[side].append(lengths[..., where].flatten(2))
            placed = [replace(edit, positions=as_positions(where)) for edit in edits]
            logits = run(wiring.model, part, edits=placed, logits="all", layout=wiring.layout).logits
            shares = logits[:, 1:].float().log_softmax(-1)
            moved[side].append(kl_divergence(plain, shares).flatten().cpu())
    first, others = (torch.cat(side, dim=-1).median(-1).values for side in ends)
    longer = first[0] / others[0]
    layer = int(longer.argmax())
    return FirstToken(
        longer=float(longer[layer]),
        layer=layer,
        share=float(first[1, layer] / first[0, layer]),
        share_others=float(others[1, layer] / others[0, layer]),
        kl=float(torch.cat(moved[0]).mean()),
        kl_others=float(torch.cat(moved[1]).mean()),
    )


def span_of(
    model: nn.Module, vector: SteeringVector | Tensor, wiring: Wiring, layout: Layout | None
) -> Float[Tensor, "direction d_model"]:
    """An orthonormal basis of the span of one direction or several, in float64.

    Raises:
        SteeringError: for directions that are zero, not finite or do not fit.
    """
    if isinstance(vector, SteeringVector):
        vector.check(model, layout)
        given = vector.direction
    else:
        given = vector
    rows = given.detach().cpu().double()
    rows = rows[None] if rows.ndim == 1 else rows
    width = wiring.layout.d_model
    if rows.ndim != 2 or rows.shape[1] != width or not len(rows):
        raise SteeringError(f"a direction has {width} entries, but shape {tuple(given.shape)} was given")
    if not bool(rows.isfinite().all()) or bool((rows.norm(dim=-1) == 0).any()):
        raise SteeringError("directions must be finite and not zero")
    _, sizes, axes = torch.linalg.svd(rows / rows.norm(dim=-1, keepdim=True), full_matrices=False)
    basis: Tensor = axes[sizes > 1e-9 * sizes[0]]
    return basis


__all__ = ["FirstToken", "first_token", "first_token_of", "span_of"]
