"""Steering while a model is used: by its user, by `generate`, by a pipeline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import nn

from interp_toolkit.errors import SteeringError
from interp_toolkit.model.layout import Layout
from interp_toolkit.model.positions import PositionsLike
from interp_toolkit.model.run import SitesLike, Watched, editing
from interp_toolkit.model.tokens import Inputs, Tokens, encode, is_text, tokenizer_for
from interp_toolkit.steering.operations import Gate, LayersLike, Operation, Scale, steering_edits
from interp_toolkit.steering.vector import SteeringVector

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@contextmanager
def steer(
    model: nn.Module,
    vector: SteeringVector,
    coefficient: int | float = 1.0,
    *,
    operation: Operation = "add",
    layers: LayersLike = None,
    positions: PositionsLike = "all",
    scale: Scale = "norm",
    plane: SteeringVector | None = None,
    when: Gate | None = None,
    rows: Sequence[int] | None = None,
    prompts: Inputs | Tokens | None = None,
    read: SitesLike = (),
    tokenizer: PreTrainedTokenizerBase | None = None,
    layout: Layout | None = None,
) -> Iterator[Watched]:
    """Steer a model in this block: its forward passes, `model.generate`, pipelines.

    Positions count real tokens of each row, so that steering means the same with the key/value cache and without it,
    in a padded batch and alone. Blocks nest; they end with the model as it was, also after an error. Only the thread
    that enters the block is steered: where `generate` streams from a thread of its own, enter the block in there.

    Args:
        model: the model that the vector is for.
        vector: where to.
        coefficient: how much; see `steering_edits` for this and for what is not described here.
        operation: `"add"`, `"ablate"`, `"affine"`, `"clamp"` or `"rotate"`.
        layers: where; the vector's own layers if not given.
        positions: `"all"`, `"prompt"`, `"generated"`, `"predicting"` (the prompt's last token and all behind it),
            `"last"` (of the prompt), numbers, a slice, or a `Span`.
        scale: the unit of coefficients: `"norm"`, the length of activations there, or `"raw"`.
        plane: for rotation the direction to turn from.
        when: only tokens for which this gate opens.
        rows: for which prompts of the batch.
        prompts: what is going to be run, where positions need its text (`Span`), or where rows are named under beam
            search.
        read: sites to read, steered.
        tokenizer: for prompts as text.
        layout: for a model class of your own.

    Yields:
        What is read, complete when the block ends.

    Raises:
        SteeringError: for a vector that does not fit, or settings that mean nothing together.
        EditError: at the end of the block, when no token was at the positions.

    Example:
        >>> import torch
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> from interp_toolkit.steering import steering_vector
        >>> model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=11)).eval()
        >>> vector = steering_vector(model, [[1, 2], [1, 3]], [[1, 4], [1, 5]], layers=0)
        >>> with steer(model, vector, 0.5, positions="generated"):
        ...     found = model.generate(torch.tensor([[1, 2]]), max_new_tokens=3, do_sample=False, pad_token_id=0)
        >>> found.shape
        torch.Size([1, 5])
    """
    if rows is not None and not rows:
        raise SteeringError("no rows were given: leave rows= out to steer all of them")
    edits = steering_edits(
        model,
        vector,
        coefficient,
        operation=operation,
        layers=layers,
        positions=positions,
        scale=scale,
        plane=plane,
        when=when,
        rows=rows,
        layout=layout,
    )
    tokens = None
    if prompts is not None:
        tokens = encode(prompts, tokenizer=tokenizer_for(model, tokenizer) if is_text(prompts) else tokenizer)
    with editing(model, edits, read=read, tokens=tokens, layout=layout) as watched:
        yield watched


__all__ = ["steer"]
