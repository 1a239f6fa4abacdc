"""Patchscopes against loops with plain hooks and no cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from interp_toolkit.errors import LensError, PositionError, SiteError
from interp_toolkit.lenses import Patchscope, patchscope, patchscope_sweep, patchscopes
from interp_toolkit.model import run
from tiny import model_of

SOURCE, TARGET = [3, 1, 4, 1, 5], [9, 2, 6, 5, 3, 5, 8]
NEW = 4


def by_hand(model: Any, vector: Tensor, layer: int, position: int) -> list[int]:
    """Greedy tokens with a vector set behind a block, every pass over the whole text."""
    blocks = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))

    def put(module: Any, args: Any, out: Any) -> Any:
        hidden = (out[0] if isinstance(out, tuple) else out).clone()
        hidden[:, position] = vector
        return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

    ids, new = list(TARGET), []
    with blocks[layer].register_forward_hook(put), torch.no_grad():
        for _ in range(NEW):
            new.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
            ids.append(new[-1])
    return new


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "gpt_neox", "olmo2"])
@pytest.mark.parametrize(("layer", "to"), [(0, 2), (2, 0), (1, 1)])
def test_a_vector_goes_from_any_layer_to_any_layer(
    name: str, layer: int, to: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(name)
    monkeypatch.setattr(model.generation_config, "eos_token_id", None)
    vector = run(model, SOURCE, read=f"resid_post.{layer}")[f"resid_post.{layer}"][0, 2]
    found = patchscope(
        model,
        SOURCE,
        f"resid_post.{layer}",
        TARGET,
        f"resid_post.{to}",
        source_position=2,
        target_position=4,
        max_new_tokens=NEW,
    )
    assert [int(token) for token in found.generated] == by_hand(model, vector, to, 4)
    assert (found.source_token, found.target_token) == ("4", "3")
    assert found.source_position == 2


def test_a_vector_put_where_it_comes_from_changes_nothing() -> None:
    found = patchscope(model_of("llama"), TARGET, "resid_post.1", TARGET, max_new_tokens=NEW)
    assert found.text == found.plain_text
    assert found.top == found.plain_top
    assert isinstance(found, Patchscope)


def test_a_sweep_is_its_cells_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama")
    found = patchscope_sweep(model, SOURCE, TARGET, answer=7, target_position=3, max_new_tokens=NEW)
    assert found.probability.shape == (3, 3)
    for s in range(3):
        for t in range(3):
            cell = patchscope(
                model, SOURCE, f"resid_post.{s}", TARGET, f"resid_post.{t}", target_position=3, max_new_tokens=NEW
            )
            assert found.texts[s][t] == cell.text
            assert found.first[s][t] == cell.top[0][0]
    monkeypatch.setattr(patchscopes, "_AT_ONCE", 25)
    small = patchscope_sweep(
        model, SOURCE, TARGET, answer=7, target_position=3, max_new_tokens=NEW, source_layers=[2, 0], target_layers=[-1]
    )
    assert (small.source_layers, small.target_layers) == ((2, 0), (2,))
    torch.testing.assert_close(small.probability[:, 0], found.probability[[2, 0], 2])
    assert small.texts == ((found.texts[2][2],), (found.texts[0][2],))
    plain = run(model, TARGET, logits="last").logits
    assert plain is not None
    assert found.plain_probability == pytest.approx(float(plain[0, 0].softmax(-1)[7]), abs=1e-6)
    best = patchscope_sweep(model, SOURCE, TARGET, target_layers=[0], max_new_tokens=1)
    assert float(best.probability.min()) > 0
    assert "best next token" in best.summary()


def test_results_can_be_looked_at() -> None:
    model = model_of("gpt2")
    one = patchscope(model, SOURCE, "resid_pre.1", TARGET, "mlp_out.0", max_new_tokens=2)
    assert "put into mlp_out.0 at 6 '8'" in one.summary()
    assert len(one.to_dataframe()) == 10
    assert "<iframe" in one._repr_html_()
    sweep = patchscope_sweep(model, SOURCE, TARGET, answer=5, max_new_tokens=2)
    assert sweep.best in [(s, t) for s in range(3) for t in range(3)]
    assert len(sweep.to_dataframe()) == 9
    assert sweep.plot().notes == [list(row) for row in sweep.texts]
    assert "<iframe" in sweep._repr_html_()


def test_a_mapping_changes_vectors_on_their_way(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama")
    monkeypatch.setattr(model.generation_config, "eos_token_id", None)
    zeroed = patchscope(model, SOURCE, "resid_post.1", TARGET, mapping=lambda x: 0 * x, max_new_tokens=NEW)
    assert [int(t) for t in zeroed.generated] == by_hand(model, torch.zeros(32), 1, 6)
    with pytest.raises(LensError, match=r"shape \(1, 32\) and gave \(1, 1\)"):
        patchscope(model, SOURCE, "resid_post.1", TARGET, mapping=lambda x: x[:, :1])


def test_generation_ends_where_the_model_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama")
    first = patchscope(model, SOURCE, "resid_post.1", TARGET, max_new_tokens=1).generated[0]
    monkeypatch.setattr(model.generation_config, "eos_token_id", [int(first), 98])
    assert patchscope(model, SOURCE, "resid_post.1", TARGET, max_new_tokens=NEW).generated == (first,)


def test_the_demo_model_repeats_what_it_is_shown(demo: Any) -> None:
    model, tokenizer = demo
    found = patchscope(
        model,
        "The Eiffel Tower stands in Paris",
        "resid_post.8",
        target="resid_post.2",
        max_new_tokens=2,
        tokenizer=tokenizer,
    )
    assert found.target_token == "?"
    assert "Paris" in found.text
    assert "Paris" not in found.plain_text


def test_what_cannot_be_patched_is_refused() -> None:
    model = model_of("gpt2")
    with pytest.raises(LensError, match="source position means 2 positions"):
        patchscope(model, SOURCE, "resid_post.0", TARGET, source_position=[0, 1])
    with pytest.raises(SiteError, match="a vector of the residual stream's width"):
        patchscope(model, SOURCE, "z.0", TARGET)
    with pytest.raises(SiteError, match="read resid_post of the last layer"):
        patchscope(model, SOURCE, "final_norm", TARGET)
    with pytest.raises(SiteError, match="layer 7"):
        patchscope(model, SOURCE, "resid_post.7", TARGET)
    with pytest.raises(PositionError):
        patchscope(model, SOURCE, "resid_post.0", TARGET, target_position=12)
    with pytest.raises(LensError, match="at least one token is generated"):
        patchscope(model, SOURCE, "resid_post.0", TARGET, max_new_tokens=0)
    with pytest.raises(LensError, match="list of layers is empty"):
        patchscope_sweep(model, SOURCE, TARGET, source_layers=[])
    with pytest.raises(LensError, match="outside of the vocabulary"):
        patchscope_sweep(model, SOURCE, TARGET, answer=99)
