"""Parts of a logit against the model's own logit, by hand, and against what changes without them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from interp_toolkit.errors import LensError, RunError, TokenError, UnavailableSiteError
from interp_toolkit.lenses import direct_logit_attribution
from interp_toolkit.model import Edit, run
from tiny import FAMILIES, REPRESENTATIVES, model_of, tiny_model

IDS = [3, 1, 4, 1, 5, 9, 2, 6]
WAYS: tuple[Any, ...] = ("sublayer", "head", "neuron", "source token")
EXPERTS_ALONE = ("deepseek_v3", "gpt_oss", "mixtral", "olmoe", "qwen3_moe")  # the fused kernel has no float64
NO_NEURONS = ("gpt_oss", "mixtral", "olmoe")


def double(name: str) -> Any:
    if name not in EXPERTS_ALONE:
        return model_of(name, dtype=torch.float64)
    model = tiny_model(name, dtype=torch.float64)
    model.set_experts_implementation("eager")
    return model


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_parts_sum_to_the_true_logit_in_every_family(name: str) -> None:
    model = double(name)
    with torch.no_grad():
        logits = model(torch.tensor([IDS])).logits[0, [2, -1]]
    cap = getattr(model.config, "final_logit_softcapping", None)
    logits = logits if cap is None else cap * torch.atanh(logits / cap)
    layers, heads = model.config.num_hidden_layers, model.config.num_attention_heads
    for by in WAYS if name in REPRESENTATIVES else WAYS[2:]:
        if by == "neuron" and name in NO_NEURONS:
            with pytest.raises(UnavailableSiteError, match="neurons in every expert"):
                direct_logit_attribution(model, IDS, (7, 8), by=by)
            continue
        found = direct_logit_attribution(model, IDS, (7, 8), by=by, positions=[2, -1], strongest=5)
        torch.testing.assert_close(found.values.sum(-1), logits[:, 7] - logits[:, 8], atol=1e-6, rtol=0)
        torch.testing.assert_close(found.cumulative[:, -1], found.logit, atol=1e-6, rtol=0)
        assert found.capped == (cap is not None)
        if by in ("head", "source token"):
            assert found.heads.shape == (2, layers, heads)
    single = direct_logit_attribution(model, IDS, 7)
    torch.testing.assert_close(single.values.sum(-1), logits[1:, 7], atol=1e-6, rtol=0)


def test_a_soft_cap_behind_the_parts_gives_the_models_logit() -> None:
    model = double("gemma2")
    found = direct_logit_attribution(model, IDS, 7)
    cap = model.config.final_logit_softcapping
    with torch.no_grad():
        logit = model(torch.tensor([IDS])).logits[0, -1, 7]
    torch.testing.assert_close(cap * torch.tanh(found.values.sum() / cap), logit, atol=1e-6, rtol=0)
    assert "before the cap" in found.summary()


def test_embedding_heads_mlps_and_biases_are_those_of_a_calculation_by_hand() -> None:
    model = double("gpt2")
    given: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            given[f"{name} in"], given[name] = args[0][0, -1], (out[0] if isinstance(out, tuple) else out)[0, -1]

        return hook

    gpt = model.transformer
    watched = {f"{n}.{kind}": getattr(block, kind) for n, block in enumerate(gpt.h) for kind in ("attn", "mlp")}
    watched |= {f"{n}.projection": block.attn.c_proj for n, block in enumerate(gpt.h)} | {"end": gpt.ln_f}
    handles = [module.register_forward_hook(keep(name)) for name, module in watched.items() if "attn" not in name]
    try:
        with torch.no_grad():
            model(torch.tensor([IDS]))
    finally:
        for handle in handles:
            handle.remove()
    with torch.no_grad():
        end, norm = given["end in"], gpt.ln_f
        scale = (end.var(unbiased=False) + norm.eps).rsqrt()
        row = model.lm_head.weight[7] - model.lm_head.weight[8]

        def effect(vector: Tensor) -> Tensor:
            return (row * norm.weight * (vector - vector.mean()) * scale).sum()

        wanted = {"embedding": effect(gpt.wte.weight[IDS[-1]]), "position embedding": effect(gpt.wpe.weight[7])}
        for n, block in enumerate(gpt.h):
            z = given[f"{n}.projection in"].view(4, 8)
            for head in range(4):
                wanted[f"L{n}H{head}"] = effect(z[head] @ block.attn.c_proj.weight[8 * head : 8 * head + 8])
            wanted[f"L{n}attention bias"] = effect(block.attn.c_proj.bias)
            wanted[f"L{n}MLP"] = effect(given[f"{n}.mlp"])
        wanted["final bias"] = (row * norm.bias).sum()
    found = direct_logit_attribution(model, IDS, (7, 8))
    assert found.names == tuple(wanted)
    torch.testing.assert_close(found.values[0], torch.stack(list(wanted.values())), atol=1e-9, rtol=1e-9)


@contextmanager
def frozen(model: Any, norm: nn.Module) -> Iterator[None]:
    """The final norm with the scale that it has on these tokens, whatever it is given."""
    seen: list[Tensor] = []
    with norm.register_forward_hook(lambda module, args, out: seen.append(args[0].detach())), torch.no_grad():
        model(torch.tensor([IDS]))
    at, zero = seen[0].requires_grad_(), norm(torch.zeros_like(seen[0]))
    centred = at - at.mean(-1, keepdim=True) if isinstance(norm, nn.LayerNorm) else at
    factor = ((norm(at) - zero) / centred).detach()
    inner = norm.forward
    norm.forward = lambda x: (  # type: ignore[method-assign]
        (x - x.mean(-1, keepdim=True) if isinstance(norm, nn.LayerNorm) else x) * factor + zero
    ).detach()
    try:
        yield
    finally:
        norm.forward = inner  # type: ignore[method-assign]


def change(model: Any, norm: nn.Module, edit: Edit) -> float:
    """By how much an edit lowers the difference of two logits at the last position."""
    with frozen(model, norm):
        before, after = (run(model, IDS, edits=edits, logits="last").logits for edits in ([], [edit]))
    assert before is not None
    assert after is not None
    moved = (before - after)[0, 0]
    return float(moved[7] - moved[8])


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox"])
def test_a_neuron_of_the_last_layer_gives_what_is_missing_without_it(name: str) -> None:
    model = double(name)
    base = model.base_model
    norm = next(m for n, m in base.named_children() if n in ("norm", "ln_f", "final_layer_norm"))
    found = direct_logit_attribution(model, IDS, (7, 8), by="neuron", strongest=20)
    last = model.config.num_hidden_layers - 1
    own = [part.index for part in found.parts if part.kind == "neuron" and part.layer == last]
    assert own
    for n in own[:3]:
        value = float(found.values[0, found.names.index(f"L{last}N{n}")])
        assert change(model, norm, Edit.set(f"mlp_post.{last}.{n}", 0.0)) == pytest.approx(value, abs=2e-6)
        assert float(found.detail[last][0, n]) == value


def test_heads_and_what_they_move_from_tokens_are_what_is_missing_without_them() -> None:
    # Attention and MLP run side by side in this family, so the last heads act on the logits directly alone.
    model = double("gptj")
    norm = model.transformer.ln_f
    found = direct_logit_attribution(model, IDS, (7, 8), by="source token", strongest=60)
    for head in range(4):
        value = float(found.heads[0, 2, head])
        assert change(model, norm, Edit.set(f"z.2.{head}", 0.0, positions="last")) == pytest.approx(value, abs=1e-9)
    for source in (0, 3, 7):
        mask = torch.ones(8, dtype=torch.float64)
        mask[source] = 0.0
        edit = Edit.scale("pattern.2.1", mask, positions="last")
        assert change(model, norm, edit) == pytest.approx(float(found.detail[2][0, 1, source]), abs=1e-9)
    part = next(part for part in found.parts if part.kind == "source token")
    assert part.name == f"L{part.layer}H{part.index} from {part.source} '{IDS[part.source or 0]}'"
    plain = direct_logit_attribution(model, IDS, (7, 8))
    torch.testing.assert_close(found.heads, plain.heads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_other_precisions_sum_up_to_rounding(dtype: torch.dtype) -> None:
    found = direct_logit_attribution(model_of("llama", dtype=dtype), IDS, (7, 8), positions="all")
    assert found.gap < (1e-5 if dtype == torch.float32 else 0.1)
    assert found.values.dtype == torch.float32


def test_without_answers_the_models_best_token_is_parted() -> None:
    model = model_of("llama")
    best = int(run(model, IDS, logits="last").logits.argmax())  # type: ignore[union-attr]
    assert direct_logit_attribution(model, IDS).answers == (str(best),)


def test_a_result_says_what_it_found() -> None:
    found = direct_logit_attribution(model_of("gpt2"), IDS, (7, 8), by="neuron", strongest=4, positions=[3, -1])
    assert "logit('7') − logit('8')" in found.summary()
    assert found.table(top=2).splitlines()[2].endswith(f"{float(found.values[-1].sum()) - sum_of(found, 2):+9.4f}")
    frame = found.to_dataframe()
    assert len(frame) == 2 * len(found.parts)
    assert frame[frame["position"] == 7]["value"].sum() == pytest.approx(float(found.logit[1]), abs=1e-5)
    view = found.plot()
    assert list(view.columns) == ["attention", "MLP"]
    inside = [p.layer is not None and p.kind != "bias" for p in found.parts]
    assert sum(sum(row) for row in view.values) == pytest.approx(float(found.values[1, inside].sum()), abs=1e-5)
    assert any("N" in note for row in view.notes or [] for note in row)
    assert [series.y[-1] for series in found.plot_cumulative().series] == pytest.approx(found.logit.tolist(), abs=1e-5)
    assert "<iframe" in found._repr_html_()
    with pytest.raises(LensError, match="not parted by head"):
        _ = found.heads
    with pytest.raises(LensError, match="place 2 of the list"):
        found.plot(2)


def sum_of(found: Any, top: int) -> float:
    return float(found.values[-1, found.order()[:top]].sum())


def test_the_demo_model_brings_paris_from_france(demo: Any) -> None:
    model, tokenizer = demo
    prompt = "The capital of France is"
    found = direct_logit_attribution(model, prompt, (" Paris", " Rome"), by="source token", tokenizer=tokenizer)
    strongest = found.parts[found.order()[0]]
    assert strongest.kind == "source token"
    assert found.prompt[strongest.source or 0] == " France"
    assert found.gap < 1e-4


def test_what_cannot_be_parted_is_refused(unchecked: None) -> None:
    model = model_of("gpt2")
    ways: Any = "layer"
    with pytest.raises(LensError, match="by is one of 'sublayer', 'head'"):
        direct_logit_attribution(model, IDS, by=ways)
    with pytest.raises(LensError, match="strongest is 0"):
        direct_logit_attribution(model, IDS, strongest=0)
    with pytest.raises(TokenError, match="token id 99 is outside"):
        direct_logit_attribution(model, IDS, (7, 99))
    with pytest.raises(RunError, match="one prompt, not 2"):
        direct_logit_attribution(model, [IDS, IDS])


def test_norms_and_ends_that_are_not_linear_are_refused() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.tanh()

    odd = tiny_model("llama")
    odd.model.norm = Odd()
    with pytest.raises(LensError, match=r"\(Odd\) is neither a LayerNorm nor"):
        direct_logit_attribution(odd, IDS, (7, 8))
    folded = tiny_model("llama")
    inner = folded.forward

    def absolute(*args: Any, **kwargs: Any) -> Any:
        out = inner(*args, **kwargs)
        out.logits = out.logits.abs()
        return out

    folded.forward = absolute
    with pytest.raises(LensError, match="neither a factor nor a soft cap"):
        direct_logit_attribution(folded, IDS, (7, 8))
