"""Tiny random decoder models of many families, built from configs without network.

Every parameter is drawn anew (`randomise`), so that norm weights, biases, attention sinks, routers and learned
multipliers all matter, and attention is far from uniform. Same name and seed: same weights, on any machine that
draws the same numbers from torch's CPU generator.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

VOCAB = 99
PAD, BOS, EOS = 0, 1, 2
FIRST_PLAIN_ID = 3
WINDOW = 4
BOTH = ("sdpa", "eager")
EAGER_ONLY = ("eager",)


@dataclass(frozen=True)
class Family:
    """How one tiny model is made: a config class of transformers by name, and its settings.

    `implementations` are the attention implementations of these two that the family can be loaded with, the one that
    it gets by default first. Bloom, CodeGen, GPT-J, GPT-Neo and MPT know one kind of attention only; Gemma 2 and
    gpt-oss refuse SDPA because of softcap and sinks. `implementations_agree` is false where they compute different
    things: transformers 5.23 adds Falcon's ALiBi bias twice in eager attention (also under SDPA as soon as
    `output_attentions` is asked for).
    """

    name: str
    config_class: str
    settings: Mapping[str, Any] = field(repr=False)
    implementations: tuple[str, ...] = BOTH
    implementations_agree: bool = True

    def config(self) -> PreTrainedConfig:
        """A fresh config: models may write into theirs."""
        return getattr(transformers, self.config_class)(**copy.deepcopy(dict(self.settings)))


def _families() -> dict[str, Family]:  # noqa: PLR0915 - a table
    found: dict[str, Family] = {}

    def add(
        name: str,
        config_class: str,
        *shared: Mapping[str, Any],
        only_eager: bool = False,
        agree: bool = True,
        **settings: Any,
    ) -> None:
        merged: dict[str, Any] = {"vocab_size": VOCAB, "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
        for part in shared:
            merged |= part
        merged |= settings
        found[name] = Family(
            name, f"{config_class}Config", MappingProxyType(merged), EAGER_ONLY if only_eager else BOTH, agree
        )

    gpt2_like = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_inner": 48, "n_positions": 64}
    heads = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
    }
    grouped = dict(heads, num_key_value_heads=2)
    sliding_full = {
        "num_hidden_layers": 4,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    }
    latent = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 12}

    add("gpt2", "GPT2", gpt2_like)
    add(
        "gpt_neo",
        "GPTNeo",
        only_eager=True,
        hidden_size=32,
        num_layers=4,
        num_heads=4,
        intermediate_size=48,
        attention_types=[[["global", "local"], 2]],
        window_size=WINDOW,
        max_position_embeddings=64,
    )
    add("gptj", "GPTJ", gpt2_like, only_eager=True, rotary_dim=4)
    add("codegen", "CodeGen", gpt2_like, only_eager=True, rotary_dim=4, n_ctx=64)
    add("gpt_neox", "GPTNeoX", heads)
    add("gpt_neox_sequential", "GPTNeoX", heads, use_parallel_residual=False)
    add("gpt_bigcode", "GPTBigCode", gpt2_like, multi_query=True)
    add("gpt_bigcode_multi_head", "GPTBigCode", gpt2_like, multi_query=False)
    add(
        "opt",
        "OPT",
        hidden_size=32,
        word_embed_proj_dim=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        ffn_dim=48,
        max_position_embeddings=64,
    )
    add("bloom", "Bloom", only_eager=True, hidden_size=32, n_layer=3, n_head=4)
    falcon = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "ffn_hidden_size": 48,
        "max_position_embeddings": 64,
    }
    add("falcon", "Falcon", falcon, new_decoder_architecture=True, num_kv_heads=2)
    add("falcon_one_norm", "Falcon", falcon, new_decoder_architecture=True, num_kv_heads=2, num_ln_in_parallel_attn=1)
    add("falcon_old", "Falcon", falcon, multi_query=True, parallel_attn=True)
    add("falcon_alibi", "Falcon", falcon, agree=False, alibi=True, multi_query=False, parallel_attn=False, bias=True)
    add("mpt", "Mpt", only_eager=True, d_model=32, n_heads=4, n_layers=3, expansion_ratio=2, max_seq_len=64)

    add("llama", "Llama", grouped)
    add("mistral", "Mistral", grouped, hidden_size=40, head_dim=16, sliding_window=WINDOW)
    add("mixtral", "Mixtral", grouped, num_local_experts=4, num_experts_per_tok=2)
    add("qwen2", "Qwen2", grouped)
    add(
        "qwen3",
        "Qwen3",
        grouped,
        hidden_size=40,
        head_dim=16,
        use_sliding_window=True,
        sliding_window=WINDOW,
        max_window_layers=2,
    )
    add(
        "qwen3_moe",
        "Qwen3Moe",
        grouped,
        head_dim=16,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
        mlp_only_layers=[1],
    )
    add("gemma", "Gemma", grouped, head_dim=16)
    add(
        "gemma2",
        "Gemma2",
        grouped,
        sliding_full,
        only_eager=True,
        hidden_size=40,
        head_dim=16,
        query_pre_attn_scalar=12,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0,
    )
    add("gemma3_text", "Gemma3Text", grouped, sliding_full, hidden_size=40, head_dim=16, query_pre_attn_scalar=12)
    add("phi", "Phi", grouped)
    add("phi3", "Phi3", grouped, sliding_window=WINDOW)
    add("cohere", "Cohere", grouped, logit_scale=0.25)
    add("olmo", "Olmo", grouped, clip_qkv=1.5)
    add("olmo2", "Olmo2", grouped)
    add("olmo3", "Olmo3", grouped, sliding_full)
    add("olmoe", "Olmoe", grouped, intermediate_size=24, num_experts=4, num_experts_per_tok=2)
    add("stablelm", "StableLm", grouped, use_qkv_bias=True)
    add("stablelm_parallel", "StableLm", grouped, use_parallel_residual=True, qk_layernorm=True)
    add("starcoder2", "Starcoder2", grouped, sliding_window=WINDOW)
    add(
        "granite",
        "Granite",
        grouped,
        residual_multiplier=0.6,
        attention_multiplier=0.5,
        embedding_multiplier=2.0,
        logits_scaling=1.7,
    )
    add("glm", "Glm", grouped, head_dim=16)
    add("glm4", "Glm4", grouped, head_dim=16)
    add("smollm3", "SmolLM3", grouped, num_hidden_layers=4, no_rope_layers=[1, 0, 1, 0])
    add(
        "gpt_oss",
        "GptOss",
        grouped,
        sliding_full,
        only_eager=True,
        head_dim=16,
        intermediate_size=24,
        num_local_experts=4,
        num_experts_per_tok=2,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 16,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
        },
    )
    add("nemotron", "Nemotron", grouped, head_dim=8)
    add("exaone4", "Exaone4", grouped, sliding_full)
    add("ernie4_5", "Ernie4_5", grouped, head_dim=16, use_bias=True)
    add("minicpm3", "MiniCPM3", heads, latent, num_key_value_heads=4, scale_emb=2, scale_depth=1.4, dim_model_base=16)
    add(
        "deepseek_v3",
        "DeepseekV3",
        heads,
        latent,
        num_key_value_heads=4,
        moe_intermediate_size=24,
        first_k_dense_replace=1,
        n_routed_experts=8,
        n_shared_experts=1,
        num_experts_per_tok=2,
        n_group=4,
        topk_group=2,
    )
    add(
        "llama4_text",
        "Llama4Text",
        grouped,
        num_hidden_layers=4,
        head_dim=8,
        intermediate_size=24,
        intermediate_size_mlp=48,
        num_local_experts=4,
        num_experts_per_tok=1,
        moe_layers=[1, 3],
        no_rope_layers=[1, 1, 1, 0],
        attention_chunk_size=WINDOW,
        floor_scale=WINDOW,
    )
    add("helium", "Helium", grouped, head_dim=8)
    add("seed_oss", "SeedOss", grouped, head_dim=16)
    add("arcee", "Arcee", grouped, head_dim=8)
    add(
        "apertus",
        "Apertus",
        grouped,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 16,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
        },
    )
    add("hunyuan_v1_dense", "HunYuanDenseV1", grouped, head_dim=16)
    return found


FAMILIES: dict[str, Family] = _families()
# One of each kind of wiring, for tests that are not about families.
REPRESENTATIVES = ("gpt2", "llama", "gpt_neox", "gemma2", "qwen3_moe", "falcon", "bloom", "olmo2")


def tiny_model(
    name: str,
    *,
    attn_implementation: str = "sdpa",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> PreTrainedModel:
    """The tiny model of a family, in eval mode, without touching torch's global random state.

    A family that cannot do SDPA gets its eager attention when "sdpa" is asked for (see `Family.implementations`).
    """
    family = FAMILIES[name]
    if attn_implementation == "sdpa" and "sdpa" not in family.implementations:
        attn_implementation = "eager"
    with torch.random.fork_rng(devices=[]):
        model = transformers.AutoModelForCausalLM.from_config(
            family.config(), attn_implementation=attn_implementation, dtype=dtype
        )
    randomise(model, seed)
    return model.eval()


def model_of(name: str, implementation: str = "sdpa", dtype: torch.dtype = torch.float32) -> Any:
    """The tiny model of a family, the same one each time: for tests that leave a model as they found it.

    All of them in one process together need its verification only once.
    """
    known = FAMILIES[name].implementations
    return _model_of(name, implementation if implementation in known else known[0], dtype)


@functools.cache
def _model_of(name: str, implementation: str, dtype: torch.dtype) -> Any:
    return tiny_model(name, attn_implementation=implementation, dtype=dtype)


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0) -> None:
    """Draws every parameter anew, in place; refuses a parameter that it has no rule for."""
    generator = torch.Generator().manual_seed(seed)
    done: set[int] = set()
    for path, module in model.named_modules():
        for name, tensor in [
            *module.named_parameters(recurse=False),
            *_learned_buffers(module),
        ]:
            if id(tensor) in done:  # tied
                continue
            done.add(id(tensor))
            noise = torch.randn(tensor.shape, generator=generator)
            tensor.copy_(_value(module, f"{path}.{name}", name, tensor.float(), noise))
    missed = [name for name, parameter in model.named_parameters() if id(parameter) not in done]
    if missed:
        raise AssertionError(f"not drawn anew: {missed}")


def _learned_buffers(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [(n, b) for n, b in module.named_buffers(recurse=False) if n == "e_score_correction_bias"]


def _value(module: nn.Module, path: str, name: str, old: Tensor, noise: Tensor) -> Tensor:
    if "bias" in name:
        return 0.1 * noise
    if "Norm" in type(module).__name__:
        return 0.2 * noise if _adds_one(module) else 1 + 0.2 * noise
    if isinstance(module, nn.Embedding):
        value = 0.5 * noise
        if module.padding_idx is not None:
            value[module.padding_idx] = 0
        return value
    if name == "sinks":
        return 0.5 + noise
    if name in ("alpha_p", "alpha_n"):  # learned shape of the xIELU activation
        return old + 0.3 * noise
    if noise.ndim == 2:
        fan_in = noise.shape[0] if isinstance(module, Conv1D) else noise.shape[1]
    elif noise.ndim == 3:  # experts: (expert, out, in) in some families, (expert, in, out) in others
        fan_in = (noise.shape[1] + noise.shape[2]) / 2
    else:
        raise AssertionError(f"no rule to draw {path} {tuple(noise.shape)} of {type(module).__name__}")
    return 1.2 / math.sqrt(fan_in) * noise


def _adds_one(norm: nn.Module) -> bool:
    """Whether this norm multiplies by (1 + weight): then a zero weight does not silence it."""
    weight, bias = norm.weight, getattr(norm, "bias", None)
    kept = [p.clone() for p in (weight, bias) if p is not None]
    for parameter in (weight, bias):
        if parameter is not None:
            parameter.zero_()
    probe = torch.linspace(-1, 1, weight.numel(), dtype=weight.dtype).reshape(1, *weight.shape)
    answer = bool(norm(probe).abs().max() > 0)
    for parameter, value in zip([p for p in (weight, bias) if p is not None], kept, strict=True):
        parameter.copy_(value)
    return answer


def tokens(batch: int, length: int = 9, seed: int = 0, vocab: int = VOCAB) -> Tensor:
    """Random token ids without padding, start and end tokens: batch pos."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(FIRST_PLAIN_ID, vocab, (batch, length), generator=generator)


def padded(
    batch_lengths: Sequence[int],
    side: str = "left",
    *,
    seed: int = 0,
    vocab: int = VOCAB,
) -> tuple[Tensor, Tensor]:
    """Random prompts of these lengths, padded to the longest: (input_ids, attention_mask).

    Row i without its padding is `tokens(len(batch_lengths), max(batch_lengths), seed)[i, :batch_lengths[i]]`.
    """
    if side not in ("left", "right"):
        raise ValueError(f"side is 'left' or 'right', not {side!r}")
    longest = max(batch_lengths)
    plain = tokens(len(batch_lengths), longest, seed, vocab)
    input_ids = torch.full_like(plain, PAD)
    mask = torch.zeros_like(plain)
    for row, length in enumerate(batch_lengths):
        place = slice(longest - length, None) if side == "left" else slice(length)
        input_ids[row, place] = plain[row, :length]
        mask[row, place] = 1
    return input_ids, mask


IDS = tokens(2)
