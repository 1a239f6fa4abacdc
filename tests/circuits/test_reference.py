"""Reference statistics against means that are taken prompt by prompt here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import tiny
from interp_toolkit import Site, run
from interp_toolkit.circuits.reference import Reference
from interp_toolkit.errors import FileFormatError, InterpWarning, PositionError, RunError, SiteError, TokenError

PROMPTS = [[5, 17, 8, 41, 23, 9, 60], [7, 33, 12], [9, 71, 30, 14, 6], [11, 52, 20, 7, 80], [44]]
LONGEST = 7


def wide(name: str) -> Any:
    return tiny.model_of(name, dtype=torch.float64)


def readings(model: Any, site: str) -> list[Tensor]:
    """The site in each prompt, run on its own: `[pos, ...]`."""
    return [run(model, [row], read=[site])[site][0] for row in PROMPTS]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "gpt_neox"])
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_means_are_those_of_the_real_tokens_of_each_prompt_on_its_own(name: str, batch_size: int) -> None:
    model = wide(name)
    sites = ["z.1", "mlp_out.0", "resid_pre.2", "mlp_post.1", "k.0"]
    found = Reference.gather(model, PROMPTS, sites=sites, batch_size=batch_size)
    for site in sites:
        each = readings(model, site)
        torch.testing.assert_close(found.mean(site), torch.cat(each).mean(0), rtol=0, atol=1e-10)
        by_position = torch.stack([torch.stack([x[p] for x in each if len(x) > p]).mean(0) for p in range(LONGEST)])
        torch.testing.assert_close(found.positional_mean(site, LONGEST), by_position, rtol=0, atol=1e-10)
    assert found.counts.tolist() == [5, 4, 4, 3, 3, 1, 1]
    assert (found.prompts, found.tokens) == (5, 21)


def test_a_head_and_a_neuron_are_cut_out_of_their_sites() -> None:
    found = Reference.gather(wide("llama"), PROMPTS, sites=["z", "mlp_post"])
    assert torch.equal(found.mean("L1H2"), found.mean("z.1")[2])
    assert torch.equal(found.mean("mlp_post.0.17"), found.mean("mlp_post.0")[17])
    assert torch.equal(found.positional_mean("L1H2", 4), found.positional_mean("z.1", 4)[:, 2])
    assert torch.equal(found.mean("z.-1"), found.mean("z.2"))


def test_a_component_means_every_layer() -> None:
    found = Reference.gather(wide("llama"), PROMPTS)
    assert {str(site) for site in found.means} == {f"{c}.{n}" for c in ("z", "attn_out", "mlp_out") for n in range(3)}


def test_padding_that_a_tokenizer_made_does_not_count() -> None:
    model = wide("llama")
    for side in ("left", "right"):
        ids, mask = tiny.padded([7, 3, 5], side)
        rows = [[int(i) for i in row[m.bool()]] for row, m in zip(ids, mask, strict=True)]
        padded = Reference.gather(model, {"input_ids": ids, "attention_mask": mask}, sites="z.1")
        plain = Reference.gather(model, rows, sites="z.1")
        assert torch.equal(padded.mean("z.1"), plain.mean("z.1"))


def test_means_without_positions_take_no_more_room_than_one_position() -> None:
    found = Reference.gather(wide("llama"), PROMPTS, sites="z", positional=False)
    full = Reference.gather(wide("llama"), PROMPTS, sites="z")
    assert not found.positional
    torch.testing.assert_close(found.mean("z.1"), full.mean("z.1"), rtol=0, atol=1e-12)
    with pytest.raises(RunError, match="positional=False"):
        found.positional_mean("z.1", 2)


def test_samples_are_prompts_drawn_by_the_seed_without_replacement() -> None:
    def bank(seed: int) -> tuple[tuple[int, ...], ...]:
        return Reference.gather(wide("llama"), PROMPTS, sites="z.0", samples=3, seed=seed).bank

    assert bank(0) == bank(0)
    assert len({bank(seed) for seed in range(6)}) > 1
    assert len(set(bank(0))) == 3
    assert set(bank(0)) <= {tuple(row) for row in PROMPTS}
    with pytest.raises(RunError, match=r"samples=6 prompts cannot be drawn from 5"):
        Reference.gather(wide("llama"), PROMPTS, sites="z.0", samples=6)


def test_a_saved_reference_comes_back(tmp_path: Path) -> None:
    model = wide("llama")
    found = Reference.gather(model, PROMPTS, sites=["z", "resid_post.1"], samples=2)
    back = Reference.load(found.save(tmp_path / "r.safetensors"), model=model)
    assert set(back.means) == set(found.means)
    for site in found.means:
        assert torch.equal(back.mean(site), found.mean(site))
        assert torch.equal(back.positional_mean(site, LONGEST), found.positional_mean(site, LONGEST))
    assert (back.bank, back.num_layers, back.provenance) == (found.bank, found.num_layers, found.provenance)
    assert torch.equal(back.counts, found.counts)
    assert back.summary() == found.summary()


def test_what_is_no_saved_reference_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    for content in (b"", b"not a file of tensors", b"\xff" * 64):
        path.write_bytes(content)
        with pytest.raises(FileFormatError, match=r"mine\.safetensors"):
            Reference.load(path)
    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(FileFormatError, match=r"mine\.safetensors holds 'something else'"):
        Reference.load(path)
    save_file({"x": torch.zeros(2)}, path, metadata={"format": "interp_toolkit.reference/1"})
    with pytest.raises(FileFormatError, match=r"mine\.safetensors is damaged"):
        Reference.load(path)
    with pytest.raises(FileNotFoundError):
        Reference.load(tmp_path / "nothing")


def test_a_reference_of_another_model_is_refused(tmp_path: Path) -> None:
    path = Reference.gather(wide("llama"), PROMPTS, sites="z").save(tmp_path / "r.safetensors")
    with pytest.raises(RunError, match=r"gathered from LlamaForCausalLM .*not laid out as GPT2LMHeadModel"):
        Reference.load(path, model=wide("gpt2"))


def test_a_reference_of_another_checkpoint_is_used_with_a_warning(tmp_path: Path) -> None:
    found = Reference.gather(wide("llama"), PROMPTS, sites="z")
    other = replace(found, provenance=replace(found.provenance, model="somebody/else"))
    path = other.save(tmp_path / "r.safetensors")
    with pytest.warns(InterpWarning, match="gathered from somebody/else, and is used for LlamaForCausalLM"):
        Reference.load(path, model=wide("llama"))


def test_what_was_not_gathered_is_named_with_what_was() -> None:
    found = Reference.gather(wide("llama"), PROMPTS, sites=["z.0", "z.1"])
    with pytest.raises(SiteError, match=r"no z\.2; of z it has layers \[0, 1\].*sites=\[\.\.\., 'z\.2'\]"):
        found.mean("L2H0")
    with pytest.raises(SiteError, match=r"no mlp_out\.0; it has z"):
        found.mean("mlp_out.0")
    with pytest.raises(SiteError, match="asks for number 9, but there are 4"):
        found.mean("L0H9")
    with pytest.raises(PositionError, match=r"a prompt has 9 tokens, but the longest of the reference has 7"):
        found.positional_mean("z.0", 9)


def test_what_cannot_be_gathered_is_refused() -> None:
    model = wide("llama")
    with pytest.raises(TokenError, match="no given prompt"):
        Reference.gather(model, [])
    with pytest.raises(SiteError, match=r"no mean over prompts is taken of pattern\.1"):
        Reference.gather(model, PROMPTS, sites=["z", "pattern.1"])
    with pytest.raises(SiteError, match="no site at all"):
        Reference.gather(model, PROMPTS, sites=[])
    with pytest.raises(SiteError, match="did you mean"):
        Reference.gather(model, PROMPTS, sites=["mpl_out"])
    with pytest.raises(RunError, match="at least one prompt, not 0"):
        Reference.gather(model, PROMPTS, sites="z", batch_size=0)


def test_means_of_a_model_in_half_precision_are_kept_in_float32() -> None:
    model = tiny.tiny_model("llama", dtype=torch.bfloat16)
    found = Reference.gather(model, PROMPTS, sites="z.1")
    each = torch.cat([run(model, [row], read=["z.1"])["z.1"][0] for row in PROMPTS])
    assert found.mean("z.1").dtype == torch.float32
    torch.testing.assert_close(found.mean("z.1"), each.float().mean(0), rtol=0, atol=2e-2)


def test_the_reference_says_what_it_holds() -> None:
    found = Reference.gather(wide("llama"), PROMPTS, sites=["z", "mlp_out"], samples=2)
    assert repr(found) == f"Reference({found.summary()})"
    for part in ("6 sites (z, mlp_out)", "21 tokens of 5 prompts", "2 prompts to resample from"):
        assert part in found.summary()
    assert Site("z", 1) in found.means
