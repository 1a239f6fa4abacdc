"""What commands that steer share: where a direction comes from, what is done with it, and what a model writes."""

from __future__ import annotations

import argparse
import math
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
_OPERATIONS = ("add", "ablate", "affine", "clamp")


@dataclass(frozen=True, kw_only=True)
class Texts:
    """What a direction is made from."""

    positive: list[str]
    negative: list[str]


def direction_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of commands that write along a direction."""
    model_options(parser)
    parser.add_argument("text", metavar="TEXT", help="the prompt that is continued")
    source_options(parser)
    parser.add_argument("--new-tokens", type=int, default=30, metavar="N", help="how many are written (default: 30)")
    parser.add_argument("--chat", action="store_true", help="put TEXT and texts into the model's chat format")
    parser.add_argument("-o", "--output", type=Path, metavar="PAGE", help="an HTML page to write")


def source_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where a direction comes from."""
    where = parser.add_argument_group("the direction")
    where.add_argument("--positive", type=Path, metavar="FILE", help="texts that show what is wanted, one on each line")
    where.add_argument("--negative", type=Path, metavar="FILE", help="texts that do not")
    where.add_argument("--vector", type=Path, metavar="FILE", help="a saved vector, in place of texts")
    where.add_argument("--method", choices=_METHODS, help="how it is found from texts (default: mean-difference)")
    where.add_argument("--site", metavar="NAME", help="where texts are read and steered (default: resid_post)")
    where.add_argument("--read", choices=["last", "all"], help="which tokens of texts are read (default: last)")
    where.add_argument("--save", type=Path, metavar="VECTOR", help="a safetensors file for the vector")


def operation_options(parser: argparse.ArgumentParser, *, positions: Sequence[str], layers: str, usual: str) -> None:
    """Add the options that say how one steers.

    Args:
        parser: of the command.
        positions: which there are to choose from.
        layers: the layers where none are given, in words.
        usual: the coefficients where none are given, in words.
    """
    parser.add_argument(
        "--layers",
        metavar="A:B",
        help=f"where, such as 10:13 (without layer 13) or 3,7 (default: {layers}, or those of the vector)",
    )
    parser.add_argument(
        "--coefficient",
        nargs="+",
        type=float,
        metavar="X",
        help=f"how much, in units of the activations' length (default: {usual}; for ablate 1, for affine 0 1)",
    )
    parser.add_argument("--operation", choices=_OPERATIONS, default="add", help="what is done (default: add)")
    parser.add_argument(
        "--scale", choices=["norm", "raw"], default="norm", help="raw: coefficients in units of the vector's own length"
    )
    parser.add_argument("--positions", choices=positions, default="all", help="which tokens are steered (default: all)")


# --- what was asked for -------------------------------------------------------------------------------------------


def check_direction(arguments: argparse.Namespace) -> None:
    """Refuse what cannot be written along a direction, before anything is read or loaded."""
    check_text(arguments.text)
    if arguments.vector is not None and arguments.save is not None and arguments.positive is arguments.negative is None:
        raise SteeringError("--save is for a vector that is made from texts, but --vector is made already")
    if arguments.new_tokens < 1:
        raise SteeringError(f"--new-tokens is 1 or more, not {arguments.new_tokens}")
    check_source(arguments)


def check_source(arguments: argparse.Namespace, read: Sequence[Path | None] = ()) -> None:
    """Refuse directions that cannot be had, and files that cannot be written.

    Args:
        arguments: of the command.
        read: what else is read.

    Raises:
        SteeringError, InterpError: for the first of them.
    """
    texts = {"--positive": arguments.positive, "--negative": arguments.negative}
    given = [option for option, path in texts.items() if path is not None]
    if bool(given) == (arguments.vector is not None):
        raise SteeringError("give --positive and --negative texts, or a --vector, and not both")
    if len(given) == 1:
        (missing,) = set(texts) - set(given)
        raise SteeringError(f"{given[0]} alone is one-sided: give {missing} too")
    if arguments.vector is not None:
        for option in _MAKING:
            if getattr(arguments, option) is not None:
                raise SteeringError(f"--{option} is for a vector that is made from texts, but --vector is made already")
    if arguments.site is not None:
        from interp_toolkit.steering.vector import SITES

        if arguments.site not in SITES:
            raise SteeringError(f"--site: one steers at {', '.join(SITES)}, not at {arguments.site!r}")
    check_written(
        {"-o": arguments.output, "--save": arguments.save},
        {"-o": (".html",), "--save": (".safetensors",)},
        read=[*texts.values(), arguments.vector, *read],
    )


def coefficients_of(arguments: argparse.Namespace, usual: Sequence[float]) -> tuple[float, ...]:
    """The coefficients that were asked for; where there are none, the usual ones for adding."""
    other = {"ablate": (1.0,), "affine": (0.0, 1.0)}
    found = tuple(arguments.coefficient or other.get(arguments.operation, usual))
    if wrong := [c for c in found if not math.isfinite(c)]:
        raise SteeringError(f"--coefficient is a number, not {wrong[0]}")
    if len(set(found)) < len(found):
        raise SteeringError(f"--coefficient holds a number twice: {' '.join(f'{c:g}' for c in found)}")
    return found


def check_vector(arguments: argparse.Namespace, vector: SteeringVector, layers: list[int] | None) -> None:
    """Refuse steering that a vector is not enough for."""
    missing = [layer for layer in layers or () if len(vector.layers) > 1 and layer not in vector.layers]
    if missing:
        raise SteeringError(f"--vector has no direction for layer {missing[0]}, but for {listed(vector.layers)}")
    known = vector.norms[list(layers or vector.layers)].isfinite().all()
    if arguments.operation in ("add", "clamp") and arguments.scale == "norm" and not bool(known):
        raise SteeringError("--vector does not know how long activations are there: give --scale raw")
    if arguments.operation == "affine" and not bool((vector.low + vector.high).isfinite().all()):
        raise SteeringError("--operation affine needs a vector made from texts, which knows where these lie")


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
    both = "a contrast needs both sides"
    found = Texts(
        positive=text_lines("--positive", arguments.positive, both),
        negative=text_lines("--negative", arguments.negative, both),
    )
    sizes = len(found.positive), len(found.negative)
    if arguments.method == "paired-pca" and (sizes[0] != sizes[1] or sizes[0] < 2):
        raise SteeringError(
            f"--method paired-pca needs two pairs of lines or more, but there are {sizes[0]} positive and {sizes[1]} "
            "negative texts"
        )
    return found


def text_lines(option: str, path: Path, why: str) -> list[str]:
    """The lines of a file that hold text.

    Args:
        option: that names the file.
        path: of the file.
        why: what an empty file would be no good for.

    Raises:
        SteeringError: when it cannot be read, or holds nothing.
    """
    return [line for _, line in numbered_lines(option, path, why)]


def numbered_lines(option: str, path: Path, why: str) -> list[tuple[int, str]]:
    """The same with their numbers in the file, from 1 on."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise SteeringError(f"{option} {path} cannot be read: {reason}") from error
    lines = [(n, line.rstrip("\r")) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines:
        raise SteeringError(f"{option} {path} holds no text: {why}")
    return lines


def listed(several: Sequence[int | str]) -> str:
    """Numbers or names with commas."""
    return ", ".join(map(str, several))


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
    from interp_toolkit.model import chat, encode

    if arguments.chat:
        return [chat(text, tokenizer=tokenizer).row() for text in texts]
    tokens = encode(texts, tokenizer=tokenizer)
    return [tokens.row(n) for n in range(len(texts))]


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
    "check_source",
    "check_vector",
    "coefficients_of",
    "continuation",
    "counted",
    "direction_options",
    "direction_source",
    "layers_of",
    "listed",
    "numbered_lines",
    "operation_options",
    "parsed_layers",
    "prompts_of",
    "source_options",
    "text_lines",
    "text_of",
    "vector_of",
]
