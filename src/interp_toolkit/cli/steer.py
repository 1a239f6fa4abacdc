"""The commands that push a model along a direction, and that take a direction out of it."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from interp_toolkit.cli.console import load, note, table
from interp_toolkit.cli.directions import (
    Texts,
    check_direction,
    check_vector,
    coefficients_of,
    continuation,
    counted,
    direction_options,
    direction_source,
    layers_of,
    listed,
    operation_options,
    parsed_layers,
    prompts_of,
    text_of,
    vector_of,
)
from interp_toolkit.errors import SteeringError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from interp_toolkit.steering import SteeringVector
    from interp_toolkit.visualization import LineChart
    from interp_toolkit.visualization.document import Part


def add_steer(steer: argparse.ArgumentParser) -> None:
    """Add the options of `steer`."""
    direction_options(steer)
    operation_options(
        steer,
        positions=["all", "prompt", "generated", "predicting"],
        layers="the middle layer",
        usual="-0.2 0.2",
    )
    steer.set_defaults(command=_steer)


def add_ablate_direction(ablate: argparse.ArgumentParser) -> None:
    """Add the options of `ablate-direction`."""
    direction_options(ablate)
    ablate.add_argument(
        "--layer",
        type=int,
        metavar="N",
        help="whose direction is taken out of all layers (default: the middle layer, or that of the vector)",
    )
    ablate.set_defaults(command=_ablate)


# --- steer --------------------------------------------------------------------------------------------------------


def _steer(arguments: argparse.Namespace) -> None:
    check_direction(arguments)
    coefficients = _coefficients(arguments)
    layers = None if arguments.layers is None else parsed_layers(arguments.layers)
    source = direction_source(arguments)
    if not isinstance(source, Texts):
        check_vector(arguments, source, layers_of(arguments, layers, source.num_layers))
    began = time.perf_counter()
    model, tokenizer = load(arguments)
    number = model.config.get_text_config().num_hidden_layers if isinstance(source, Texts) else source.num_layers
    steered = layers_of(arguments, layers, number)
    vector = vector_of(arguments, source, steered, model, tokenizer)
    prompt = prompts_of(arguments, [arguments.text], tokenizer)[0]
    plain, rows, surprises = _continued(arguments, model, tokenizer, vector, prompt, steered, coefficients)
    headers = ["coefficient", "continuation", "nats a token"]
    print(vector.summary() + "\n")
    print(table(headers, [plain, *rows]))
    print("\nNats a token: how surprised the model is, unsteered, by what was written.")
    chart = _surprise_chart(coefficients, surprises) if arguments.output else None
    title = f"Steering {arguments.model}: “{arguments.text}”"
    _finish(arguments, vector, title, (headers, [plain, *rows]), chart, began)


def _continued(
    arguments: argparse.Namespace,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    vector: SteeringVector,
    prompt: list[int],
    layers: list[int] | None,
    coefficients: Sequence[float],
) -> tuple[list[str], list[list[str]], list[float]]:
    """The plain continuation and the steered ones, with how surprising each of them is; the plain one's comes first."""
    from interp_toolkit.steering import steer

    note("writing")
    written = [continuation(model, prompt, arguments.new_tokens)]
    for coefficient in coefficients:
        with steer(
            model,
            vector,
            coefficient,
            operation=arguments.operation,
            layers=layers,
            positions=arguments.positions,
            scale=arguments.scale,
        ):
            written.append(continuation(model, prompt, arguments.new_tokens))
    surprises = [_surprise(model, prompt, new) for new in written]
    names = ["plain", *(f"{c:+g}" for c in coefficients)]
    plain, *rows = (
        [name, repr(text_of(tokenizer, new)), f"{surprise:.2f}"]
        for name, new, surprise in zip(names, written, surprises, strict=True)
    )
    return plain, rows, surprises


def _surprise(model: PreTrainedModel, prompt: list[int], new: list[int]) -> float:
    """The mean negative log-probability of what was written, in nats."""
    from interp_toolkit.model import run

    logits = run(model, [*prompt, *new], logits="all").logits
    shares = logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
    return -float(shares[range(len(new)), new].mean())


def _surprise_chart(coefficients: Sequence[float], surprises: Sequence[float]) -> LineChart:
    from interp_toolkit.visualization.lines import LineChart, Series

    points = sorted(zip(coefficients, surprises[1:], strict=True))
    return LineChart(
        x=[c for c, _ in points],
        series=[Series(name="steered", y=[y for _, y in points])],
        title="How surprising the continuation is to the plain model",
        caption="Where it rises steeply, the model no longer says another thing but falls apart.",
        x_name="coefficient",
        y_name="nats a token",
        references=[("plain", surprises[0])],
    )


# --- ablate-direction ---------------------------------------------------------------------------------------------


def _ablate(arguments: argparse.Namespace) -> None:
    from interp_toolkit.steering import steer

    check_direction(arguments)
    source = direction_source(arguments)
    if not isinstance(source, Texts):
        source = _one(source, arguments.layer)
    began = time.perf_counter()
    model, tokenizer = load(arguments)
    chosen = None
    if isinstance(source, Texts):
        number = int(model.config.get_text_config().num_hidden_layers)
        chosen = [counted(arguments.layer, number, "--layer") if arguments.layer is not None else number // 2]
    vector = vector_of(arguments, source, chosen, model, tokenizer)
    prompt = prompts_of(arguments, [arguments.text], tokenizer)[0]
    note("writing")
    plain, before = continuation(model, prompt, arguments.new_tokens), _shares(model, prompt, vector, ablated=False)
    with steer(model, vector, operation="ablate", layers="writers"):
        ablated = continuation(model, prompt, arguments.new_tokens)
    after = _shares(model, prompt, vector, ablated=True)
    words = _at_first_token(model, prompt, vector)
    headers = ["run", "continuation", "nats a token"]
    rows = [
        [name, repr(text_of(tokenizer, new)), f"{_surprise(model, prompt, new):.2f}"]
        for name, new in (("plain", plain), ("without the direction", ablated))
    ]
    print(vector.summary() + "\n")
    print(table(headers, rows))
    print("\nHow much of the residual stream's length lies along the direction, behind each layer (median of tokens)")
    lengths = [(str(n), f"{a:.1%}", f"{b:.1%}") for n, (a, b) in enumerate(zip(before, after, strict=True))]
    print(table(["layer", "plain", "without"], lengths))
    print("\n" + words)
    chart = _share_chart(before, after) if arguments.output else None
    title = f"A direction taken out of {arguments.model}: “{arguments.text}”"
    _finish(arguments, vector, title, (headers, rows), chart, began, words)


def _shares(model: PreTrainedModel, prompt: list[int], vector: SteeringVector, *, ablated: bool) -> list[float]:
    """Behind each layer the median over tokens of |x·v| / |x|."""
    from interp_toolkit.model import run
    from interp_toolkit.steering import steering_edits

    edits = steering_edits(model, vector, operation="ablate", layers="writers") if ablated else []
    found = run(model, prompt, read="resid_post", edits=edits)
    v = vector.units[0]
    streams = [found[site][0].float() for site in sorted(found, key=lambda site: site.layer or 0)]
    return [float(((x @ v.to(x)).abs() / x.norm(dim=-1)).median()) for x in streams]


def _at_first_token(model: PreTrainedModel, prompt: list[int], vector: SteeringVector) -> str:
    """What of it is done at the first token, which cannot be spared where weights are changed."""
    from interp_toolkit.steering import first_token

    if len(prompt) < 2:
        return "The prompt has one token, so that nothing can be said of what is done at the first token alone."
    found = first_token(model, vector, [prompt])
    doubt = " So what is written shows the first token's change more than the direction's." if found.dominates else ""
    return found.summary() + doubt


def _share_chart(before: list[float], after: list[float]) -> LineChart:
    from interp_toolkit.visualization.lines import LineChart, Series

    return LineChart(
        x=[str(n) for n in range(len(before))],
        series=[Series(name="plain", y=before), Series(name="without the direction", y=after)],
        title="How much of the residual stream lies along the direction",
        caption="The median over the prompt's tokens of |x·v| / |x|, behind each layer.",
        x_name="layer",
        y_name="share of the length",
    )


# --- what was asked for -------------------------------------------------------------------------------------------


def _coefficients(arguments: argparse.Namespace) -> tuple[float, ...]:
    found = coefficients_of(arguments, (-0.2, 0.2))
    if arguments.positions == "generated" and arguments.new_tokens == 1:
        raise SteeringError("--positions generated leaves the first new token alone: give 2 --new-tokens or more")
    return found


def _one(vector: SteeringVector, layer: int | None) -> SteeringVector:
    """The one direction that is taken out."""
    if layer is not None:
        layer = counted(layer, vector.num_layers, "--layer")
        if layer not in vector.layers:
            raise SteeringError(f"--vector has no direction for layer {layer}, but for {listed(vector.layers)}")
        return vector.at(layer)
    if len(vector.layers) > 1:
        raise SteeringError(f"--vector has directions for layers {listed(vector.layers)}: choose one with --layer")
    return vector


# --- what was found -----------------------------------------------------------------------------------------------


def _finish(
    arguments: argparse.Namespace,
    vector: SteeringVector,
    title: str,
    written: tuple[list[str], list[list[str]]],
    chart: Part | None,
    began: float,
    told: str = "",
) -> None:
    """Write what was asked for, and say where it is."""
    print(f"\n{time.perf_counter() - began:.0f} s")
    if arguments.save:
        print(f"The vector: {vector.save(arguments.save).resolve()}")
    if arguments.output and chart is not None:
        from interp_toolkit.visualization.document import Document, Paragraph, Table

        lines = (f"The prompt: “{arguments.text}”", *vector.summary().splitlines(), *told.splitlines())
        words = [Paragraph(line) for line in lines]
        shown = Table(title="What the model writes", headers=written[0], rows=written[1])
        page = Document(title=title, parts=(*words, shown, chart))
        print(f"The page: {page.save(arguments.output).resolve()}")


__all__ = ["add_ablate_direction", "add_steer"]
