"""One forward pass under a session: what a model is called with, and how it may end early."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import torch
from torch import nn

from interp_toolkit.errors import InterpWarning, RunError, TokenError
from interp_toolkit.model.session import Session
from interp_toolkit.model.tokens import Tokens
from interp_toolkit.model.wiring import Wiring
from interp_toolkit.model.wish import StopForward, Wish


def execute(wiring: Wiring, tokens: Tokens, wish: Wish, *, cache: Any = None) -> tuple[Session, Any]:
    """Do one forward pass; the output is None if it stopped early.

    Args:
        wiring: the model.
        tokens: what is run; with a cache, what comes behind it.
        wish: what to read and change.
        cache: a key/value cache in the form of transformers.
    """
    base = wiring.base
    if base.training:
        warnings.warn(
            "the model is in training mode: dropout makes readings random and not add up; call model.eval()",
            InterpWarning,
            stacklevel=3,
        )
    wish.stop = wish.stop and not _offloaded(wiring)
    session = Session(wiring, wish)
    context = torch.enable_grad() if wish.grad else torch.no_grad()
    try:
        with session, context:
            return session, wiring.model(**model_inputs(wiring, tokens, cache))
    except StopForward:
        return session, None


def model_inputs(wiring: Wiring, tokens: Tokens, cache: Any = None) -> dict[str, Any]:
    """The arguments of a forward pass, as far as the model takes them.

    Padded prompts get position ids that start at each prompt's first token, so that padding does not shift them.

    Raises:
        RunError: when prompts are padded and the model cannot be told.
    """
    accepts = wiring.accepts
    device = _input_device(wiring.base)
    _check_vocabulary(wiring.base, tokens)
    ids, mask = tokens.ids.to(device), tokens.mask.to(device)
    name = "input_ids" if accepts & {"input_ids", "kwargs"} else _first_parameter(wiring.base)
    inputs: dict[str, Any] = {name: ids}
    if "use_cache" in accepts:
        inputs["use_cache"] = cache is not None
    if cache is not None:
        inputs["past_key_values"] = cache
    if not tokens.padded:
        return inputs
    if "attention_mask" not in accepts:
        raise RunError(
            f"{wiring.layout.model_type} takes no attention mask, so prompts of different lengths need one run each"
        )
    side = "left" if bool((tokens.mask[:, 0] == 0).any()) else "right"
    reason = wiring.padding.get(side)
    if reason is not None:
        raise RunError(
            f"prompts padded on the {side} give wrong results in this {wiring.layout.model_type} model: {reason}"
        )
    inputs["attention_mask"] = mask
    if "position_ids" in accepts:
        inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp_min(0)
    return inputs


def _input_device(base: nn.Module) -> torch.device:
    embeddings = getattr(base, "get_input_embeddings", None)
    module = base if embeddings is None else embeddings()
    return next((p.device for p in module.parameters() if p.device.type != "meta"), torch.device("cpu"))


def vocabulary_of(model: nn.Module) -> int | None:
    """How many tokens a model knows, if it says so."""
    embeddings = getattr(model, "get_input_embeddings", None)
    return None if embeddings is None else getattr(embeddings(), "num_embeddings", None)


def _check_vocabulary(base: nn.Module, tokens: Tokens) -> None:
    size = vocabulary_of(base)
    least, most = int(tokens.ids.min()), int(tokens.ids.max())
    if least < 0 or (size is not None and most >= size):
        wrong = least if least < 0 else most
        raise TokenError(f"token id {wrong} is outside of the model's vocabulary: 0 to {(size or most + 1) - 1}")


def _first_parameter(base: nn.Module) -> str:
    return list(inspect.signature(type(base).forward).parameters)[1]  # the first is the module itself


def _offloaded(wiring: Wiring) -> bool:
    """Whether weights are moved in and out by hooks that an early stop would leave half-way."""
    places = getattr(wiring.base, "hf_device_map", None) or {}
    return any(str(place) in ("cpu", "disk") for place in places.values()) and len(set(places.values())) > 1


__all__ = ["execute", "model_inputs", "vocabulary_of"]
