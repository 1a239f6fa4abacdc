"""What ablation does at the first token: measured with hooks of the test's own, and warned of where it does most."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from interp_toolkit.errors import InterpWarning, SteeringError
from interp_toolkit.model import run
from interp_toolkit.steering import FirstToken, first_token, given_vector, orthogonalise, orthogonalised
from steering.steered import vector_of
from tiny import model_of, tokens

HOTEL = "We ate at the hotel, and the food was"


def test_every_number_is_that_of_plain_passes() -> None:
    model, prompts = model_of("llama"), tokens(3, 6, seed=8)
    vector = vector_of("llama").at(1)
    found = first_token(model, vector, prompts)
    v = vector.units[0]
    with torch.no_grad():
        out = model(prompts, output_hidden_states=True)
    p = out.logits[:, 1:].log_softmax(-1)
    for where, kl in ((slice(0, 1), found.kl), (slice(1, None), found.kl_others)):
        q = ablated(model, prompts, v, where)[:, 1:].log_softmax(-1)
        assert kl == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-4)
    streams = [run(model, prompts, read="resid_post")[f"resid_post.{n}"] for n in range(3)]
    lengths = [x.norm(dim=-1) for x in streams]
    longer = [float(x[:, 0].median() / x[:, 1:].median()) for x in lengths]
    assert found.layer == max(range(3), key=longer.__getitem__)
    assert found.longer == pytest.approx(longer[found.layer], rel=1e-5)
    along = (streams[found.layer] @ v).abs()
    share = along[:, 0].median() / lengths[found.layer][:, 0].median()
    assert found.share == pytest.approx(float(share), rel=1e-4)
    assert not found.dominates  # no token of this model is unlike the others


def ablated(model: Any, prompts: Tensor, v: Tensor, where: slice) -> Tensor:
    """Logits with a direction taken from all that is written to the stream, by hooks on the model's own modules."""

    def take(_: Any, __: Any, output: Any) -> Any:
        x = (output[0] if isinstance(output, tuple) else output).clone()
        x[:, where] -= (x[:, where] @ v)[..., None] * v
        return (x, *output[1:]) if isinstance(output, tuple) else x

    parts = [model.model.embed_tokens]
    for block in model.model.layers:
        parts += [block.self_attn, block.mlp]
    handles = [part.register_forward_hook(take) for part in parts]
    try:
        with torch.no_grad():
            found: Tensor = model(prompts).logits
    finally:
        for handle in handles:
            handle.remove()
    return found


def test_prompts_of_different_lengths_count_token_by_token() -> None:
    model, v = model_of("gpt2"), torch.eye(32)[3]
    several = first_token(model, v, [[5, 6, 7], [8, 9, 10, 11, 12]])
    alone = [first_token(model, v, [row]) for row in ([5, 6, 7], [8, 9, 10, 11, 12])]
    assert several.kl == pytest.approx((2 * alone[0].kl + 4 * alone[1].kl) / 6, rel=1e-4)


def test_a_token_that_is_much_longer_may_do_most_of_it() -> None:
    known = {"layer": 3, "share": 0.1, "share_others": 0.05}
    assert FirstToken(longer=50.0, kl=0.3, kl_others=0.1, **known).dominates
    assert not FirstToken(longer=50.0, kl=0.15, kl_others=0.1, **known).dominates
    assert not FirstToken(longer=3.0, kl=0.3, kl_others=0.1, **known).dominates
    assert FirstToken(longer=50.0, kl=0.3, kl_others=0.1, **known).summary() == (
        "Behind layer 3 the first token's activations are 50 times as long as the others'; 10.0% of that lies along "
        "the direction (5.0% of the others'). To ablate it there alone moves what the model says by 0.300 nats a "
        "token (KL), everywhere else by 0.100."
    )


def test_the_demo_models_first_token_is_warned_of_and_can_be_spared(demo: tuple) -> None:
    model, _ = demo
    first = run(model, HOTEL, read="resid_post.20")["resid_post.20"][0, 0]
    sink = first / first.norm()
    v = torch.randn(576, generator=torch.Generator().manual_seed(0))
    v = v - (v @ sink) * sink
    loaded = v / v.norm() + 0.15 * sink
    found = first_token(model, loaded, HOTEL)
    assert found.dominates
    assert found.longer > 100
    spared = first_token(model, v, HOTEL)
    assert not spared.dominates
    assert spared.kl < 0.1 * found.kl
    vector, message = given_vector(model, loaded, layers=20), "through its first token more than through all the others"
    with pytest.warns(InterpWarning, match=message) as caught, orthogonalised(model, vector):
        pass
    assert re.search(r"positions=From\(1\)", str(caught[0].message))
    with orthogonalised(model, v):  # no warning
        pass


def test_a_copy_is_warned_of_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FirstToken, "dominates", property(lambda _: True))
    with pytest.warns(InterpWarning, match="through its first token"):
        orthogonalise(model_of("gpt2"), torch.eye(32)[3])


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(SteeringError, match="every prompt needs two tokens or more"):
        first_token(model_of("gpt2"), torch.eye(32)[3], [[5], [6]])
    with pytest.raises(SteeringError, match="a direction has 32 entries"):
        first_token(model_of("gpt2"), torch.ones(31), [[5, 6]])
