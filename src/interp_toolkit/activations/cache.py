"""The activation cache: run a model on a prompt and look at anything inside it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from interp_toolkit.activations.reading import Activations
from interp_toolkit.errors import RunError
from interp_toolkit.model.forward import execute
from interp_toolkit.model.layout import Layout
from interp_toolkit.model.positions import PositionsLike, positions
from interp_toolkit.model.run import columns_of, editing, expand
from interp_toolkit.model.sites import Site
from interp_toolkit.model.tokens import Inputs, Tokens, encode, is_text, tokenizer_for
from interp_toolkit.model.verify import verified
from interp_toolkit.model.wish import Wish
from interp_toolkit.provenance import provenance_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHEAP = (
    "embed",
    "resid_pre",
    "resid_mid",
    "resid_post",
    "attn_out",
    "mlp_out",
    "q",
    "k",
    "v",
    "z",
    "mlp_post",
    "final_norm",
    "logits",
)
"""What a cache reads if it is not told: everything whose cost is a copy."""


class ActivationCache:
    """Runs a model and keeps what passes inside it.

    What costs what, relative to a plain forward pass:

    - the residual stream, sublayer outputs, queries, keys, values, `z`, neurons and logits cost a copy each, and are
      what `run` reads if `sites` is not given;
    - attention scores and patterns (`head * pos * pos` numbers a layer) and head outputs (`head` times a residual
      stream) are dear. They are computed when they are first asked for, from queries and keys or from `z`, with the
      model's own attention function and no further forward pass; name them in `sites` to have them computed in the run.

    Args:
        model: a causal language model, as it is.
        tokenizer: needed for text when the model does not say where it comes from.
        sites: what to read; a component without a layer means every layer. None reads what is cheap.
        layers: read only these layers; negative ones count from the end.
        stop_at: the first layer that need not run; what lies behind is not read, logits neither.
        positions: keep only these positions of each prompt (queries, in patterns).
        device: where to keep activations; the model's own device if it is not given.
        dtype: in what precision to keep them.
        layout: for a model class of your own.

    Raises:
        SiteError: for sites or layers that this model does not have.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=11)).eval()
        >>> activations = ActivationCache(model).run([1, 2, 3])
        >>> activations.residual_stream(layer=1).shape, activations.attention_pattern(layer=0, head=1).shape
        (torch.Size([3, 8]), torch.Size([3, 3]))
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase | None = None,
        sites: str | Site | Sequence[str | Site] | None = None,
        *,
        layers: Iterable[int] | int | None = None,
        stop_at: int | None = None,
        positions: PositionsLike = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        layout: Layout | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self._wiring = verified(model, layout)
        self._layout = layout
        self.sites = self._chosen(sites, layers, stop_at)
        self.positions = positions
        self.device = None if device is None else torch.device(device)
        self.dtype = dtype

    def run(self, inputs: Inputs | Tokens) -> Activations:
        """Run the model on a prompt or on several.

        Args:
            inputs: a text, a list of texts, token ids, or a tokenizer's encoding.

        Returns:
            The activations. One text, or one flat list of ids, gives results without a batch axis.

        Raises:
            TokenError: for prompts without tokens, or text without a tokenizer.
        """
        tokens = self._encode(inputs)
        wiring, keep = self._wiring, self._keep(tokens)
        logits = Site("logits") in self.sites
        wish = Wish(
            reads=frozenset(self.sites),
            keep=keep,
            device=self.device,
            dtype=self.dtype,
            stop=not logits,
            logits_at=None if keep is None else columns_of(keep, tokens),
            defer=keep is None,
            tokens=tokens,
        )
        session, _ = execute(wiring, tokens, wish)
        readings = {site: session.readings[(site.component, site.layer)][0] for site in self.sites}
        return Activations(
            readings=readings,
            tokens=tokens,
            provenance=provenance_of(self.model, wiring.layout),
            num_layers=wiring.layout.num_layers,
            keep=keep,
            wiring=wiring,
            squares=session.deferred,
        )

    def generate(self, inputs: Inputs | Tokens, **options: Any) -> Activations:
        """Let the model continue the prompts, and keep what passes inside it on the way.

        Args:
            inputs: as in `run`. Several prompts are padded on the left.
            options: for the model's `generate`, such as `max_new_tokens=20, do_sample=False`.

        Returns:
            The activations at the prompt's and the generated positions; the last generated token was never run, so
            it is not among them. Scores and patterns are there if they were named in `sites`; logits are at the last
            prompt position and behind it.

        Raises:
            RunError: for beam search, whose rows are not those of the prompts.
        """
        if options.get("num_beams", 1) != 1:
            raise RunError("beam search mixes rows, so activations would not be those of a prompt: use num_beams=1")
        prompt = self._encode(inputs, side="left")
        device = next(self.model.parameters()).device
        with editing(
            self.model,
            read=self.sites,
            keep=self.positions,
            device=self.device,
            dtype=self.dtype,
            tokens=prompt,
            layout=self._layout,
        ) as watched:
            given = {"input_ids": prompt.ids.to(device), "attention_mask": prompt.mask.to(device)}
            sequences = self.model.generate(**given, **options)  # type: ignore[operator]
        ids = getattr(sequences, "sequences", sequences)[:, :-1].cpu()
        return Activations(
            readings={site: watched[site] for site in self.sites},
            tokens=_continued(prompt, ids, _end_tokens(self.model, options)),
            provenance=provenance_of(self.model, self._wiring.layout),
            num_layers=self._wiring.layout.num_layers,
            keep=self._keep(prompt, open_ended=True),
            wiring=self._wiring,
        )

    def _chosen(
        self,
        sites: str | Site | Sequence[str | Site] | None,
        layers: Iterable[int] | int | None,
        stop_at: int | None,
    ) -> list[Site]:
        wiring = self._wiring
        number = wiring.layout.num_layers
        cheap = [site for name in CHEAP for site in wiring.available(name)]
        found = cheap if sites is None else expand(sites, wiring)
        if layers is not None:
            several = [layers] if isinstance(layers, int) else layers
            wanted = {Site("resid_pre", layer).at_depth(number).layer for layer in several}
            found = [site for site in found if site.layer is None or site.layer in wanted]
        if stop_at is not None:
            last = number if stop_at == number else Site("resid_pre", stop_at).at_depth(number).layer or 0
            found = [site for site in found if site.depth(number) < (last, 0) and site.component != "logits"]
        if not found:
            raise RunError("there is nothing to read: sites, layers and stop_at leave no site over")
        return sorted(found, key=lambda site: site.depth(number))

    def _encode(self, inputs: Inputs | Tokens, side: Any = None) -> Tokens:
        tokenizer = tokenizer_for(self.model, self.tokenizer) if is_text(inputs) else self.tokenizer
        return encode(inputs, tokenizer=tokenizer, padding_side=side)

    def _keep(self, tokens: Tokens, *, open_ended: bool = False) -> Any:
        return None if self.positions is None else positions(self.positions).bind(tokens, open_ended=open_ended)


def _end_tokens(model: nn.Module, options: dict[str, Any]) -> list[int]:
    """The end tokens that `generate` goes by: those asked for, else those of its configuration."""
    settings = options.get("generation_config") or getattr(model, "generation_config", None)
    ends = options["eos_token_id"] if "eos_token_id" in options else getattr(settings, "eos_token_id", None)
    return [] if ends is None else [int(end) for end in torch.as_tensor(ends).reshape(-1)]


def _continued(prompt: Tokens, ids: Tensor, ends: list[int]) -> Tokens:
    """Prompts and what was generated; what comes behind a row's end token is padding."""
    end = torch.isin(ids[:, prompt.ids.shape[1] :], torch.tensor(ends, dtype=ids.dtype)).long()
    real = end.cumsum(-1) - end == 0
    return replace(prompt, ids=ids, mask=torch.cat([prompt.mask, real.long()], dim=-1), texts=None, offsets=None)


__all__ = ["CHEAP", "ActivationCache"]
