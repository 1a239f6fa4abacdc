"""The layout of a model: which of its submodules is what.

`layout_of` fills a frozen `Layout` from Hugging Face's own contract (decoder, embeddings, text config) and the table of
families. A model that is none of these gets its `Layout` from its user; nothing else is needed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from torch import nn

from interp_toolkit.errors import UnsupportedModelError
from interp_toolkit.model.families import FAMILIES, Family

Owner = Literal["interface", "own"]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Which submodule of a causal language model is what.

    Paths of `blocks`, `final_norm` and `unembed` start at the model, all others at a block. Give one yourself for a
    model class of your own.

    Attributes:
        model_type: a name for people.
        blocks: the `ModuleList` of decoder blocks.
        num_layers: how many of them.
        num_heads: query heads of a block.
        d_model: width of the residual stream.
        attention: module that computes attention; with `"own"` attention, its forward contains the computation.
        projection: output projection of attention; its input is `z`.
        mlp: the MLP.
        down: down projection of the MLP; its input is `mlp_post`. None if there is none.
        attn_out: module whose output, times `multiplier`, is added to the residual stream for attention.
        mlp_out: the same for the MLP.
        mid: module whose input is the residual stream between the sublayers. None if they run in parallel.
        multiplier: what both outputs are multiplied by before they are added.
        final_norm: the last norm. None if the model has none.
        unembed: the unembedding.
        attention_kind: `"interface"` if attention goes through the registered attention functions of transformers,
            `"own"` if the module computes it itself.
        note: what is special about the family.
    """

    model_type: str
    blocks: str
    num_layers: int
    num_heads: int
    d_model: int
    attention: str
    projection: str
    mlp: str
    down: str | None
    attn_out: str
    mlp_out: str
    mid: str | None
    multiplier: float = 1.0
    final_norm: str | None = None
    unembed: str = "lm_head"
    attention_kind: Owner = "own"
    parallel: bool = False
    note: str = field(default="", compare=False)

    @property
    def attn_norm(self) -> str | None:
        """The norm between the output projection and the residual stream, where there is one."""
        return None if self.attn_out in (self.attention, self.projection) else self.attn_out

    @property
    def fingerprint(self) -> str:
        """A short digest that results carry, to say how the model was read."""
        facts = {key: value for key, value in asdict(self).items() if key != "note"}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def base_of(model: nn.Module) -> nn.Module:
    """The causal language model inside an adapter (PEFT), or the model itself.

    Raises:
        UnsupportedModelError: for compiled models, prompt-learning adapters, encoders and encoder-decoder models.
    """
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(
            f"expected a causal language model (AutoModelForCausalLM), not {model!r:.60}: load it first, as "
            "model, tokenizer = load_model(...)"
        )
    _refuse_compiled(model)
    unwrap = getattr(model, "get_base_model", None)
    if unwrap is not None:
        for name, adapter in getattr(model, "peft_config", {}).items():
            if getattr(adapter, "is_prompt_learning", False):
                raise UnsupportedModelError(
                    f"the adapter {name!r} ({type(adapter).__name__}) puts virtual tokens in front of the prompt, so "
                    "positions would not be those of the text; adapters on weights (LoRA and its kin) work"
                )
        base: nn.Module = unwrap()
        return base
    return model


def _refuse_compiled(model: nn.Module) -> None:
    compiled = hasattr(model, "_orig_mod") or any(
        m._compiled_call_impl is not None or hasattr(m.forward, "_torchdynamo_orig_callable") for m in model.modules()
    )
    if compiled:
        raise UnsupportedModelError(
            "the model is compiled: a compiled graph does not see readings and edits. Use the model from before "
            "torch.compile (compiled._orig_mod), or load it again"
        )


def layout_of(model: nn.Module) -> Layout:
    """Find out which submodule is what, for any Hugging Face decoder.

    Raises:
        UnsupportedModelError: when the model is not a decoder with an unembedding, or its blocks, attention or MLP
            are not found; the message says which and what to do.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> layout_of(GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=11))).blocks
        'transformer.h'
    """
    base = base_of(model)
    config = _text_config(base)
    model_type = str(getattr(config, "model_type", type(base).__name__))
    family = FAMILIES.get(model_type, Family())
    blocks_path, blocks = _blocks(base, config)
    if "encoder" in blocks_path.split(".") and not getattr(config, "is_decoder", False):
        raise UnsupportedModelError(
            f"{type(base).__name__} is an encoder: every position attends to all, before and behind it. This library "
            "looks into decoder-only language models"
        )
    block = blocks[0]
    attention = _first(block, family.attention, "attention", model_type)
    projection = _first(block, tuple(f"{attention}.{p}" for p in family.projection), "output projection", model_type)
    mlp = _first(block, family.mlp, "MLP", model_type)
    parallel = family.parallel(config)
    multiplier = 1.0 if family.multiplier is None else float(getattr(block, family.multiplier))
    return Layout(
        model_type=model_type,
        blocks=blocks_path,
        num_layers=len(blocks),
        num_heads=int(config.num_attention_heads),
        d_model=int(config.hidden_size),
        attention=attention,
        projection=projection,
        mlp=mlp,
        down=_maybe_in_any(blocks, family.down),
        attn_out=family.attn_out or attention,
        mlp_out=family.mlp_out or mlp,
        mid=None if parallel else _maybe(block, family.mid),
        multiplier=multiplier,
        final_norm=_final_norm(base, blocks_path, family),
        unembed=_unembed(base),
        attention_kind=_owner(block.get_submodule(attention)),
        parallel=parallel,
        note=family.note,
    )


def _text_config(base: nn.Module) -> Any:
    config = getattr(base, "config", None)
    if config is None or not hasattr(config, "get_text_config"):
        raise UnsupportedModelError(
            f"{type(base).__name__} has no Hugging Face config: pass layout=Layout(...) that says which submodule "
            "is what"
        )
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(
            f"{type(base).__name__} is an encoder-decoder model; this library looks into decoder-only language models"
        )
    if not getattr(base, "can_generate", lambda: True)():
        raise UnsupportedModelError(
            f"{type(base).__name__} cannot generate: it is an encoder, or a model without an unembedding. Load a "
            "causal language model with AutoModelForCausalLM"
        )
    return config.get_text_config(decoder=True)


def _blocks(base: nn.Module, config: Any) -> tuple[str, nn.ModuleList]:
    number = getattr(config, "num_hidden_layers", None)
    lists = [(name, m) for name, m in base.named_modules() if isinstance(m, nn.ModuleList) and len(m) == number]
    if lists:
        depth = min(name.count(".") for name, _ in lists)
        shallowest = [(name, m) for name, m in lists if name.count(".") == depth]
        if len(shallowest) == 1:
            return shallowest[0]
    raise UnsupportedModelError(
        f"{type(base).__name__}: expected one list of {number} blocks, found {[name for name, _ in lists] or 'none'}: "
        "pass layout=Layout(...) that names it"
    )


def _first(block: nn.Module, paths: tuple[str, ...], what: str, model_type: str) -> str:
    found = _maybe(block, paths)
    if found is None:
        children = sorted(name for name, _ in block.named_children())
        raise UnsupportedModelError(
            f"{model_type}: no {what} found in its blocks (looked for {', '.join(paths)}; a block holds "
            f"{', '.join(children)}): pass layout=Layout(...) that names it"
        )
    return found


def _maybe(block: nn.Module, paths: tuple[str, ...]) -> str | None:
    names = {name for name, _ in block.named_modules()}
    return next((path for path in paths if path in names), None)


def _maybe_in_any(blocks: nn.ModuleList, paths: tuple[str, ...]) -> str | None:
    return next((found for block in blocks if (found := _maybe(block, paths)) is not None), None)


def _final_norm(base: nn.Module, blocks_path: str, family: Family) -> str | None:
    parent = blocks_path.rpartition(".")[0]
    decoder = base.get_submodule(parent)
    found = _maybe(decoder, family.final_norm)
    return None if found is None else ".".join(part for part in (parent, found) if part)


def _unembed(base: nn.Module) -> str:
    find: Callable[[], nn.Module | None] | None = getattr(base, "get_output_embeddings", None)
    head = None if find is None else find()
    names: list[str] = [] if head is None else [name for name, module in base.named_modules() if module is head]
    if not names:
        raise UnsupportedModelError(
            f"{type(base).__name__} has no unembedding: load it with AutoModelForCausalLM, or pass layout=Layout(...)"
        )
    return names[0]


def _owner(attention: nn.Module) -> Owner:
    """Whether the module asks transformers for its attention function."""
    import inspect

    code = inspect.unwrap(type(attention).forward).__code__
    return "interface" if "ALL_ATTENTION_FUNCTIONS" in code.co_names else "own"


def paths_of(layout: Layout) -> Iterator[tuple[str, str]]:
    """Every path of a layout that starts at a block, with what it is."""
    for what in ("attention", "projection", "mlp", "attn_out", "mlp_out", "mid"):
        path = getattr(layout, what)
        if path is not None:
            yield what, path


__all__ = ["Layout", "base_of", "layout_of"]
