"""What commands that steer share: where a direction comes from, and what a model writes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp_toolkit.cli.console import model_options, note
from interp_toolkit.cli.lens import check_text, check_written
from interp_toolkit.errors import SteeringError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from interp_toolkit.steering import SteeringVector

_METHODS = ("mean-difference", "paired-pca")
_MAKING = {"method": "mean-difference", "site": "resid_post", "read": "last"}
"""How a direction is made from texts, unless something else is asked for."""


@dataclass(frozen=True, kw_only=True)
class Texts:
    """What a direction is made from."""

    positive: list[str]
    negative: list[str]


def direction_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of every command with a direction."""
    model_options(parser)
    parser.add_argument("text", metavar="TEXT", help="the prompt that is continued")
    where = parser.add_argument_group("the direction")
    where.add_argument("--positive", type=Path, metavar="FILE", help="texts that show what is wanted, one on each line")
    where.add_argument("--negative", type=Path, metavar="FILE", help="texts that do not")
    where.add_argument("--vector", type=Path, metavar="FILE", help="a saved vector, in place of texts")
    where.add_argument("--method", choices=_METHODS, help="how it is found from texts (default: mean-difference)")
    where.add_argument("--site", metavar="NAME", help="where texts are read and steered (default: resid_post)")
    where.add_argument("--read", choices=["last", "all"], help="which tokens of texts are read (default: last)")
    where.add_argument("--save", type=Path, metavar="VECTOR", help="a safetensors file for the vector")
    parser.add_argument("--new-tokens", type=int, default=30, metavar="N", help="how many are written (default: 30)")
    parser.add_argument("--chat", action="store_true", help="put TEXT and texts into the model's chat format")
    parser.add_argument("-o", "--output", type=Path, metavar="PAGE", help="an HTML page to write")


# --- what was asked for -------------------------------------------------------------------------------------------


def check_direction(arguments: argparse.Namespace) -> None:
    """Refuse what cannot be, before anything is read or loaded."""
    check_text(arguments.text)
    texts = {"--positive": arguments.positive, "--negative": arguments.negative}
    given = [option for option, path in texts.items() if path is not None]
    if bool(given) == (arguments.vector is not None):
        raise SteeringError("give --positive and --negative texts, or a --vector, and not both")
    if len(given) == 1:
        (missing,) = set(texts) - set(given)
        raise SteeringError(f"{given[0]} alone is one-sided: give {missing} too")
    if arguments.vector is not None:
        for option in (*_MAKING, "save"):
            if getattr(arguments, option) is not None:
                raise SteeringError(f"--{option} is for a vector that is made from texts, but --vector is made already")
    if arguments.site is not None:
        from interp_toolkit.steering.vector import SITES

        if arguments.site not in SITES:
            raise SteeringError(f"--site: one steers at {', '.join(SITES)}, not at {arguments.site!r}")
    if arguments.new_tokens < 1:
        raise SteeringError(f"--new-tokens is 1 or more, not {arguments.new_tokens}")
    check_written(
        {"-o": arguments.output, "--save": arguments.save},
        {"-o": (".html",), "--save": (".safetensors",)},
        read=[*texts.values(), arguments.vector],
    )


def parsed_layers(text: str) -> slice | list[int]:
    """Layers from `5:15`, `3,7` or `4`."""
    try:
        if ":" in text:
            begin, end = (int(part) if part.strip() else None for part in text.split(":"))
            return slice(begin, end)
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise SteeringError(f"--layers {text!r} is no range such as 5:15 and no list such as 3,7") from error


def layers_of(arguments: argparse.Namespace, layers: slice | list[int] | None, number: int) -> list[int] | None:
    """The layers that are meant, counted from 0; None for those of a vector."""
    if layers is None:
        return None if arguments.vector is not None else [number // 2]
    if isinstance(layers, slice):
        if not (found := list(range(number))[layers]):
            raise SteeringError(f"--layers {arguments.layers!r} holds no layer of 0 to {number - 1}")
        return found
    return [counted(layer, number, "--layers") for layer in layers]


def counted(layer: int, number: int, option: str) -> int:
    """A layer counted from 0, or a refusal."""
    if not -number <= layer < number:
        raise SteeringError(f"{option} names layer {layer}, but the model has {number} layers: 0 to {number - 1}")
    return layer % number


def direction_source(arguments: argparse.Namespace) -> Texts | SteeringVector:
    """Texts, or a vector, from their files."""
    if arguments.vector is not None:
        from interp_toolkit.steering import SteeringVector

        return SteeringVector.load(arguments.vector)
    found = Texts(positive=_lines("--positive", arguments.positive), negative=_lines("--negative", arguments.negative))
    sizes = len(found.positive), len(found.negative)
    if arguments.method == "paired-pca" and (sizes[0] != sizes[1] or sizes[0] < 2):
        raise SteeringError(
            f"--method paired-pca needs two pairs of lines or more, but there are {sizes[0]} positive and {sizes[1]} "
            "negative texts"
        )
    return found


def _lines(option: str, path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise SteeringError(f"{option} {path} cannot be read: {reason}") from error
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        raise SteeringError(f"{option} {path} holds no text: a contrast needs both sides")
    return [line.rstrip("\r") for line in lines]


def listed(layers: Sequence[int]) -> str:
    """Numbers with commas."""
    return ", ".join(map(str, layers))


# --- the model's side ---------------------------------------------------------------------------------------------


def vector_of(
    arguments: argparse.Namespace,
    source: Texts | SteeringVector,
    layers: list[int] | None,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> SteeringVector:
    """The vector, made from texts or as it was saved, for this model."""
    from interp_toolkit.steering import steering_vector

    if not isinstance(source, Texts):
        try:
            source.check(model)
        except SteeringError as error:
            raise SteeringError(f"--vector {arguments.vector}: {str(error).partition('; if it fits')[0]}") from error
        return source
    note(f"reading {len(source.positive) + len(source.negative)} texts")
    asked: dict[str, Any] = {name: getattr(arguments, name) or usual for name, usual in _MAKING.items()}
    return steering_vector(
        model,
        prompts_of(arguments, source.positive, tokenizer),
        prompts_of(arguments, source.negative, tokenizer),
        method=asked["method"],
        layers=layers,
        site=asked["site"],
        positions=asked["read"],
        notes=f"{arguments.positive.name} against {arguments.negative.name}",
    )


def prompts_of(arguments: argparse.Namespace, texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of texts, as they are or in the model's chat format."""
    from interp_toolkit.model import encode

    if not arguments.chat:
        tokens = encode(texts, tokenizer=tokenizer)
        return [tokens.row(n) for n in range(len(texts))]
    if not tokenizer.chat_template:
        raise SteeringError(f"--chat: the tokenizer of {arguments.model} has no chat template")
    encodings: list[Any] = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=True, return_dict=True
        )
        for text in texts
    ]
    return [list(encoding["input_ids"]) for encoding in encodings]


def continuation(model: PreTrainedModel, prompt: list[int], new: int) -> list[int]:
    """What the model writes behind a prompt, always its most probable token."""
    import torch

    room = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if room is not None and len(prompt) + new > room:
        raise SteeringError(f"the prompt's {len(prompt)} tokens and {new} new ones are more than the model's {room}")
    ids = torch.tensor([prompt], device=model.device)
    ends = model.generation_config.eos_token_id
    pad = ends[0] if isinstance(ends, list) else ends
    generate: Any = model.generate
    found: torch.Tensor = generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        pad_token_id=0 if pad is None else pad,
    )
    return found[0, len(prompt) :].tolist()


def text_of(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """Tokens as text, without those that stand for none."""
    return str(tokenizer.decode(ids, skip_special_tokens=True))


__all__ = [
    "Texts",
    "check_direction",
    "continuation",
    "counted",
    "direction_options",
    "direction_source",
    "layers_of",
    "listed",
    "parsed_layers",
    "prompts_of",
    "text_of",
    "vector_of",
]
