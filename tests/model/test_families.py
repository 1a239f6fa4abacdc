"""Every site of every tiny family against sources that share no code with the library.

Expected refusals are written down here, so that the set of verified sites cannot shrink unnoticed.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from interp_toolkit.errors import RunError
from interp_toolkit.model import COMPONENTS, Edit, Run, Site, run, verify
from tiny import FAMILIES, model_of, padded, tokens

PARALLEL = {
    "codegen",
    "cohere",
    "falcon",
    "falcon_old",
    "falcon_one_norm",
    "gpt_neox",
    "gptj",
    "phi",
    "stablelm_parallel",
}
MIXTURE_LAYERS = {
    "deepseek_v3": [1, 2],
    "gpt_oss": [0, 1, 2, 3],
    "llama4_text": [1, 3],
    "mixtral": [0, 1, 2],
    "olmoe": [0, 1, 2],
    "qwen3_moe": [0, 2],
}
NO_LEFT_PADDING = {"llama4_text"}
# The norm between a sublayer and the residual stream.
NORM_BEHIND_ATTENTION = {
    "exaone4": "post_attention_layernorm",
    "gemma2": "post_attention_layernorm",
    "gemma3_text": "post_attention_layernorm",
    "glm4": "post_self_attn_layernorm",
    "olmo2": "post_attention_layernorm",
    "olmo3": "post_attention_layernorm",
}
NORM_BEHIND_MLP = dict.fromkeys(NORM_BEHIND_ATTENTION, "post_feedforward_layernorm") | {"glm4": "post_mlp_layernorm"}
MULTIPLIER = {"granite": 0.6, "minicpm3": 1.4 / 3**0.5}
ALIBI = {"bloom", "falcon_alibi", "mpt"}
SOFTCAP = {"gemma2": 2.0}
KEYS_REPEATED = {"falcon", "falcon_one_norm"}

CASES = [(name, how) for name, family in FAMILIES.items() for how in family.implementations]
EVERY = pytest.mark.parametrize(
    ("name", "implementation"),
    [
        pytest.param(name, how, marks=() if how == FAMILIES[name].implementations[0] else pytest.mark.slow)
        for name, how in CASES
    ],
)
LENGTHS = {"one": [9], "left": [9, 6, 3], "right": [9, 6, 3]}


def batch_of(shape: str) -> dict[str, Tensor]:
    if shape == "one":
        return {"input_ids": tokens(1)}
    ids, mask = padded(LENGTHS[shape], shape)
    return {"input_ids": ids, "attention_mask": mask}


def bare_call(name: str, implementation: str, inputs: dict[str, Tensor], **more: Any) -> Any:
    """The model called as a user would, with positions that start at the first real token."""
    model = model_of(name, implementation)
    arguments: dict[str, Any] = dict(inputs, use_cache=False, **more)
    mask = inputs.get("attention_mask")
    if mask is not None and name not in ALIBI - {"falcon_alibi"}:
        arguments["position_ids"] = (mask.cumsum(-1) - 1).clamp_min(0)
    with torch.no_grad():
        return model(**arguments)


@cache
def everything(name: str, implementation: str, shape: str) -> Run:
    return run(model_of(name, implementation), batch_of(shape), read=list(COMPONENTS_OF(name)), logits="all")


def COMPONENTS_OF(name: str) -> list[str]:  # noqa: N802 - a table that depends on the family
    gone = {"resid_mid"} if name in PARALLEL else set()
    if len(MIXTURE_LAYERS.get(name, [])) == model_of(name, FAMILIES[name].implementations[0]).config.num_hidden_layers:
        gone.add("mlp_post")
    return [component for component in COMPONENTS if component not in gone]


def shapes_of(name: str) -> list[str]:
    return [shape for shape in LENGTHS if not (shape == "left" and name in NO_LEFT_PADDING)]


def close(actual: Tensor, expected: Tensor, tolerance: float = 2e-4) -> None:
    size = float(expected.abs().max().clamp_min(1.0))
    torch.testing.assert_close(actual, expected, atol=tolerance * size, rtol=0)


def blocks_of(model: nn.Module) -> list[nn.Module]:
    number = model.config.num_hidden_layers
    found = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == number]
    return list(found[0])


def only(block: nn.Module, names: tuple[str, ...], inside: tuple[str, ...]) -> nn.Module:
    found = [m for path, m in block.named_modules() if path.split(".")[-1] in names and path.startswith(inside)]
    assert len(found) == 1, [path for path, _ in block.named_modules()]
    return found[0]


def output_projection(block: nn.Module) -> nn.Module:
    return only(block, ("o_proj", "c_proj", "out_proj", "dense"), ("self_attn", "attn", "attention", "self_attention"))


def down_projection(block: nn.Module) -> nn.Module:
    names = ("down_proj", "c_proj", "fc_out", "fc2", "dense_4h_to_h")
    return only(block, names, ("mlp", "ffn", "feed_forward", "fc2"))


def matrix(projection: nn.Module) -> Tensor:
    """In by out."""
    weight = projection.weight.detach()
    return weight if isinstance(projection, Conv1D) else weight.T


def real_positions(shape: str) -> Tensor:
    return batch_of(shape).get("attention_mask", torch.ones(1, 9)).bool()


def flat(x: Tensor, shape: str) -> Tensor:
    """The real tokens of a tensor that begins with batch and position."""
    return x[real_positions(shape)]


@EVERY
def test_the_verified_sites_are_exactly_these(name: str, implementation: str) -> None:
    model = model_of(name, implementation)
    found = verify(model)
    layers = range(model.config.num_hidden_layers)
    expected = {Site("resid_mid", layer) for layer in layers if name in PARALLEL}
    expected |= {Site("mlp_post", layer) for layer in MIXTURE_LAYERS.get(name, [])}
    assert set(found.refused) == expected
    assert {side for side, reason in found.padding.items() if reason} == (
        {"left"} if name in NO_LEFT_PADDING else set()
    )
    for site, reason in found.refused.items():
        assert ("parallel" if site.component == "resid_mid" else "mixture of experts") in reason
    assert all(finding.holds for finding in found.findings if finding.sites)


@EVERY
def test_readings_are_right_and_change_nothing(name: str, implementation: str) -> None:
    for shape in shapes_of(name):
        read = everything(name, implementation, shape)
        bare = bare_call(name, implementation, batch_of(shape), output_hidden_states=True)
        assert torch.equal(read.logits, bare.logits)
        assert torch.equal(read["logits"], bare.logits)
        states = bare.hidden_states
        close(flat(read["embed"], shape), flat(states[0], shape))
        close(flat(read["final_norm"], shape), flat(states[-1], shape))
        number = model_of(name, implementation).config.num_hidden_layers
        assert len(states) == number + 1
        for layer in range(number):
            close(flat(read[f"resid_pre.{layer}"], shape), flat(states[layer], shape))
            if layer + 1 < number:
                close(flat(read[f"resid_post.{layer}"], shape), flat(states[layer + 1], shape))


@EVERY
def test_patterns_are_those_of_eager_attention(name: str, implementation: str) -> None:
    if implementation == "sdpa" and not FAMILIES[name].implementations_agree:
        pytest.skip("the two implementations of this family compute different things")
    for shape in shapes_of(name):
        read = everything(name, implementation, shape)
        attentions = bare_call(name, "eager", batch_of(shape), output_attentions=True).attentions
        for layer, expected in enumerate(attentions):
            actual = read[f"pattern.{layer}"]
            close(flat(actual.transpose(1, 2), shape), flat(expected.transpose(1, 2), shape), 1e-5)


@EVERY
def test_z_is_pattern_times_values_and_scores_are_queries_times_keys(name: str, implementation: str) -> None:
    model = model_of(name, implementation)
    config = model.config
    for shape in shapes_of(name):
        read = everything(name, implementation, shape)
        for layer in range(config.num_hidden_layers):
            q, k, v, z = (read[f"{part}.{layer}"] for part in "qkvz")
            pattern, scores = read[f"pattern.{layer}"], read[f"scores.{layer}"]
            heads = config.num_attention_heads
            assert q.shape[2] == z.shape[2] == pattern.shape[1] == scores.shape[1] == heads
            assert k.shape[2] == v.shape[2] == kv_heads(name, config)
            k, v = (x.repeat_interleave(heads // x.shape[2], dim=2) for x in (k, v))
            close(flat(z, shape), flat(torch.einsum("bhqk,bkhd->bqhd", pattern, v), shape))
            products = torch.einsum("bqhd,bkhd->bhqk", q, k)
            check_scores(name, scores, products, flat_square(shape))


def flat_square(shape: str) -> Tensor:
    """Pairs of real query and real key, not later than it: batch query key."""
    real = real_positions(shape)
    return (real[:, :, None] & real[:, None, :]).tril()


def kv_heads(name: str, config: Any) -> int:
    if name in ("falcon_old", "gpt_bigcode"):
        return 1
    if name in KEYS_REPEATED:
        return int(config.num_attention_heads)
    return int(getattr(config, "num_key_value_heads", config.num_attention_heads))


def check_scores(name: str, scores: Tensor, products: Tensor, real: Tensor) -> None:
    allowed = real[:, None] & (scores > -1e4)
    assert allowed.any()
    if name in ALIBI:
        # What is left is linear in the key's position, the same for every row and query up to a constant.
        slopes = (scores - products / 8**0.5).diff(dim=-1)
        both = allowed[..., 1:] & allowed[..., :-1]
        for head in range(scores.shape[1]):
            found = slopes[:, head][both[:, head]]
            close(found, found[:1].expand_as(found), 1e-4)
        return
    if name == "gpt_oss":
        # Its own code subtracts each query's largest score, the sink's included, before the softmax.
        one_query = allowed.all(dim=1, keepdim=True)
        count = one_query.sum(-1, keepdim=True).clamp_min(1)
        scores, products = (
            x - torch.where(one_query, x, 0.0).sum(-1, keepdim=True) / count for x in (scores, products)
        )
    seen, raw = scores[allowed].double(), products[allowed].double()
    if name in SOFTCAP:
        seen = torch.atanh((seen / SOFTCAP[name]).clamp(-0.999999, 0.999999)) * SOFTCAP[name]
        inner = seen.abs() < 3 * SOFTCAP[name]
        seen, raw = seen[inner], raw[inner]
    factor = (seen @ raw) / (raw @ raw)
    assert 0 < factor <= 1
    close(seen, factor * raw, 1e-3 if name in SOFTCAP else 1e-4)


def test_scores_of_gpt_oss_are_products_less_one_number_for_each_query() -> None:
    result = run(model_of("gpt_oss", "eager"), tokens(2, 6), read=["q.1", "k.1", "scores.1"])
    keys = result["k.1"].repeat_interleave(2, dim=2)
    products = torch.einsum("bqhd,bkhd->bhqk", result["q.1"], keys) / 16**0.5
    shift = result["scores.1"] - products
    constant = shift[..., :1].expand_as(shift)
    seen = torch.ones(6, 6).tril().bool().expand_as(shift)
    close(shift[seen], constant[seen], 1e-5)
    assert (constant < 0).any()


@EVERY
def test_heads_and_neurons_add_up_to_what_the_sublayers_write(name: str, implementation: str) -> None:
    model = model_of(name, implementation)
    multiplier = MULTIPLIER.get(name, 1.0)
    for shape in shapes_of(name):
        read = everything(name, implementation, shape)
        for layer, block in enumerate(blocks_of(model)):
            pre, post, attn, mlp = (
                flat(read[f"{s}.{layer}"], shape) for s in ("resid_pre", "resid_post", "attn_out", "mlp_out")
            )
            close(pre + attn + mlp, post)
            if name not in PARALLEL:
                close(flat(read[f"resid_mid.{layer}"], shape), pre + attn)
            projection = output_projection(block)
            z, heads = flat(read[f"z.{layer}"], shape), flat(read[f"head_out.{layer}"], shape)
            parts = torch.einsum("phi,hid->phd", z, matrix(projection).unflatten(0, (z.shape[1], -1)))
            bias = 0.0 if projection.bias is None else projection.bias.detach()
            whole = parts.sum(1) + bias
            if name in NORM_BEHIND_ATTENTION:
                with torch.no_grad():
                    normed = block.get_submodule(NORM_BEHIND_ATTENTION[name])(whole)
                close(attn, normed)
                close(heads.sum(1), attn)
                scale = (normed / whole)[:, None, :]
                safe = whole.abs()[:, None, :] > 1e-2
                close(torch.where(safe, heads, 0.0), torch.where(safe, parts * scale, 0.0), 1e-3)
            else:
                close(attn, whole * multiplier)
                close(heads, parts * multiplier)
            if layer not in MIXTURE_LAYERS.get(name, []):
                with torch.no_grad():
                    out = down_projection(block)(flat(read[f"mlp_post.{layer}"], shape))
                    if name in NORM_BEHIND_MLP:
                        out = block.get_submodule(NORM_BEHIND_MLP[name])(out)
                close(mlp, out * multiplier)


@EVERY
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_are_single_runs(name: str, implementation: str, side: str) -> None:
    model = model_of(name, implementation)
    if side == "left" and name in NO_LEFT_PADDING:
        with pytest.raises(RunError, match="padded on the left give wrong results"):
            run(model, batch_of(side), read="resid_post.0")
        return
    batch, mask = everything(name, implementation, side), batch_of(side)["attention_mask"].bool()
    plain = tokens(3)
    for row, length in enumerate(LENGTHS[side]):
        if length == 9:
            continue
        alone = run(model, plain[row, :length], read=COMPONENTS_OF(name))
        for site, expected in alone.items():
            actual = batch[site][row]
            if site.component in ("scores", "pattern"):
                actual, single = actual[:, mask[row]][..., mask[row]], expected[0]
                seen = single > -1e4
                if name == "mpt" and site.component == "scores":
                    # Its position bias counts from the last column: a constant for each query.
                    actual, single = (x - x.diagonal(dim1=-2, dim2=-1)[..., None] for x in (actual, single))
                close(torch.where(seen, actual, 0.0), torch.where(seen, single, 0.0))
                assert torch.equal(actual > -1e4, seen)
            else:
                close(actual[mask[row]], expected[0])


@EVERY
def test_resuming_from_any_layer_gives_the_same_logits(name: str, implementation: str) -> None:
    model = model_of(name, implementation)
    for shape in shapes_of(name)[:2]:
        whole = everything(name, implementation, shape)
        for layer in range(model.config.num_hidden_layers):
            resumed = run(model, batch_of(shape), start=(layer, whole[f"resid_pre.{layer}"]), logits="all")
            torch.testing.assert_close(flat(resumed.logits, shape), flat(whole.logits, shape), atol=1e-5, rtol=0)


GRADIENTS = [
    ("gpt2", "z.1"),
    ("gpt2", "scores.1"),
    ("llama", "q.1"),
    ("llama", "pattern.1"),
    ("llama", "resid_mid.1"),
    ("llama", "mlp_post.0"),
    ("opt", "mlp_post.1"),
    ("opt", "mlp_out.1"),
    ("opt", "resid_mid.0"),
    ("granite", "attn_out.1"),
    ("granite", "mlp_out.0"),
    ("granite", "head_out.1"),
    ("falcon", "attn_out.1"),
    ("falcon", "mlp_out.1"),
    ("falcon", "resid_post.0"),
    ("falcon", "q.1"),
    ("gemma2", "pattern.1"),
    ("gemma2", "scores.0"),
    ("gemma2", "attn_out.1"),
    ("gemma2", "final_norm"),
    ("bloom", "q.1"),
    ("bloom", "pattern.1"),
    ("gemma2", "embed"),
    *((name, site) for name in ("llama", "gpt2", "bloom", "falcon") for site in ("k.1", "v.1")),
]


def double_model(name: str) -> nn.Module:
    return model_of(name, dtype=torch.float64)


@pytest.mark.parametrize(("name", "site"), GRADIENTS)
def test_gradients_are_finite_differences(name: str, site: str) -> None:
    model, ids = double_model(name), tokens(2, 5)
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(2, 5, 99, generator=generator, dtype=torch.float64)

    def value(edits: list[Edit]) -> float:
        return float((run(model, ids, edits=edits, logits="all").logits * weights).sum())

    result = run(model, ids, read=site, logits="all", grad=True)
    (gradient,) = torch.autograd.grad((result.logits * weights).sum(), result[site])
    direction = torch.randn(gradient.shape, generator=generator, dtype=torch.float64)
    if site.startswith("scores"):
        direction = direction.tril()
        gradient = gradient.tril()
    step = 1e-3  # root-mean-square norms compute in float32 in any model
    difference = (value([Edit.add(site, step * direction)]) - value([Edit.add(site, -step * direction)])) / (2 * step)
    expected = float((gradient * direction).sum())
    assert abs(expected) > 1e-3
    assert difference == pytest.approx(expected, rel=1e-2, abs=1e-3)
