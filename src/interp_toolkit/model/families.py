"""What differs between model families: the only file with their names in it.

`layout_of` starts from the names that most decoders share (`Family()`), and applies the row of the model's type.
Nothing here is trusted: `verify` proves every entry on the model itself before it is used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Family:
    """How the decoder blocks of a family are wired.

    Paths are names of submodules inside a block; of several, the first that exists is taken.

    Attributes:
        attention: module that computes attention.
        projection: output projection, inside the attention module; its input is `z`.
        mlp: the MLP.
        down: down projection; its input is `mlp_post`. Blocks without one (mixtures of experts) have no `mlp_post`.
        attn_out: module whose output is what attention adds; None means the attention module itself.
        mlp_out: module whose output is what the MLP adds; None means the MLP itself.
        mid: module whose input is `resid_mid`.
        parallel: whether attention and MLP read the same residual stream, from the config.
        multiplier: attribute of a block by which both outputs are multiplied before they are added.
        final_norm: the last norm, inside the decoder.
        note: what a reader should know.
    """

    attention: tuple[str, ...] = ("self_attn", "attn", "attention", "self_attention")
    projection: tuple[str, ...] = ("o_proj", "c_proj", "out_proj", "dense", "wo")
    mlp: tuple[str, ...] = ("mlp", "ffn", "feed_forward", "block_sparse_moe")
    down: tuple[str, ...] = (
        "mlp.down_proj",
        "mlp.c_proj",
        "mlp.fc_out",
        "mlp.fc2",
        "mlp.dense_4h_to_h",
        "ffn.down_proj",
        "feed_forward.down_proj",
    )
    attn_out: str | None = None
    mlp_out: str | None = None
    mid: tuple[str, ...] = (
        "pre_feedforward_layernorm",
        "post_attention_layernorm",
        "ln_2",
        "norm_2",
        "feedforward_layernorm",
        "ffn_norm",
    )
    parallel: Callable[[Any], bool] = field(default=lambda config: False)
    multiplier: str | None = None
    final_norm: tuple[str, ...] = (
        "norm",
        "ln_f",
        "final_layer_norm",
        "final_layernorm",
        "norm_f",
        "final_norm",
    )
    note: str = ""


def _always(config: Any) -> bool:
    del config
    return True


def _if_asked(config: Any) -> bool:
    return bool(config.use_parallel_residual)


_SANDWICH = Family(
    attn_out="post_attention_layernorm",
    mlp_out="post_feedforward_layernorm",
    mid=("pre_feedforward_layernorm",),
    note="norms before and after each sublayer; `post_attention_layernorm` comes after attention here",
)
_POST_NORM = Family(
    attn_out="post_attention_layernorm",
    mlp_out="post_feedforward_layernorm",
    mid=("mlp",),
    note="each sublayer's output is normalised, its input is not",
)
_FLAT_MLP = Family(
    mlp=("fc2",),
    down=("fc2",),
    mid=("final_layer_norm",),
    final_norm=("final_layer_norm", "layer_norm"),
    note="a block has no MLP module: its two layers stand in the block itself",
)
_PARALLEL = Family(parallel=_always, note="attention and MLP run in parallel")

FAMILIES: dict[str, Family] = {
    "biogpt": _FLAT_MLP,
    "bloom": Family(
        attn_out="self_attention.dense",
        mlp_out="mlp.dense_4h_to_h",
        note="the residual is added inside the sublayers",
    ),
    "codegen": _PARALLEL,
    "cohere": _PARALLEL,
    "cohere2": _PARALLEL,
    "exaone4": _POST_NORM,
    "falcon": Family(
        parallel=lambda config: bool(config.new_decoder_architecture or config.parallel_attn),
        note="with the new decoder architecture, keys and values are repeated before attention: one per head",
    ),
    "flex_olmo": _POST_NORM,
    "gemma2": _SANDWICH,
    "gemma3_text": _SANDWICH,
    "glm4": Family(
        attn_out="post_self_attn_layernorm",
        mlp_out="post_mlp_layernorm",
        mid=("post_attention_layernorm",),
        note="norms before and after each sublayer",
    ),
    "gpt_neo": Family(attention=("attn.attention",)),
    "gpt_neox": Family(parallel=_if_asked, note="parallel or sequential, by the config"),
    "gpt_oss": Family(
        note="attention has sinks: rows of a pattern sum to less than one, scores are shifted by each query's maximum",
    ),
    "gptj": _PARALLEL,
    "granite": Family(multiplier="residual_multiplier", note="sublayer outputs are multiplied before they are added"),
    "minicpm3": Family(multiplier="residual_scale", note="sublayer outputs are multiplied before they are added"),
    "mpt": Family(mlp_out="ffn.down_proj", note="the MLP adds the residual inside"),
    "olmo2": _POST_NORM,
    "olmo3": _POST_NORM,
    "opt": _FLAT_MLP,
    "phi": _PARALLEL,
    "stablelm": Family(parallel=_if_asked, note="parallel or sequential, by the config"),
    "xglm": _FLAT_MLP,
}
"""The rows of the table, by `config.model_type`; all others are wired as `Family()` says."""


__all__ = ["FAMILIES", "Family"]
