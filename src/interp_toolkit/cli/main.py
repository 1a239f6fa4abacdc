"""The command line: every command is a public function plus printing.

Results go to standard output, notes and errors to standard error. Wrong use and errors exit with 2.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp_toolkit.cli.circuit import add_circuit
from interp_toolkit.cli.console import load, model_options, note, table
from interp_toolkit.cli.explain import add_explain
from interp_toolkit.cli.lens import add_lens
from interp_toolkit.cli.probe import add_probe
from interp_toolkit.cli.steer import add_ablate_direction, add_steer
from interp_toolkit.cli.steer_sweep import add_steer_sweep
from interp_toolkit.cli.store import add_store
from interp_toolkit.errors import InterpError, InterpWarning, RunError

if TYPE_CHECKING:
    from interp_toolkit.circuits import Effects


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments; those of the process if they are not given.

    Returns:
        The exit code: 0, or 2 for wrong use and errors, or 130 when interrupted.
    """
    arguments = build_parser().parse_args(argv)
    with warnings.catch_warnings():
        warnings.showwarning = _one_line
        try:
            arguments.command(arguments)
        except (InterpError, OSError) as error:
            text = str(error).replace("align='right', 'left' or a map", "--align right or --align left")
            print(f"interp-toolkit: {text}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("interp-toolkit: interrupted", file=sys.stderr)
            return 130
    return 0


def _one_line(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
    if issubclass(category, InterpWarning):
        print(f"interp-toolkit: warning: {message}", file=sys.stderr)


# --- commands -----------------------------------------------------------------------------------------------------


def _demo(arguments: argparse.Namespace) -> None:
    from interp_toolkit.report import explain
    from interp_toolkit.showcase import showcase

    began = time.perf_counter()
    model, tokenizer = load(arguments)
    found = showcase(model, tokenizer, note=note)
    print(f"\n“{found.prompt}” continues with")
    print(table(["token", "probability"], [(repr(t), f"{p:.2f}") for t, p in found.answers]))
    print(f"\nHeads whose last position looks at {found.subject!r}")
    print(table(["head", "attention"], [(name, f"{share:.2f}") for name, share in found.heads]))
    for place, effects in found.effects.items():
        print(
            f"\nPatching “{found.clean}” into “{found.corrupt}” at {place}: share of the answer "
            f"{found.target!r} over {found.foil!r} that one layer brings back"
        )
        print(_by_layer(effects))
    print("\n" + found.sentence())
    report = explain(model, found.clean, found.corrupt, (found.target, found.foil), tokenizer=tokenizer, note=note)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    page = report.save(arguments.output)
    print(f"\nThe whole story, with pictures to explore: {page.resolve()}   ({time.perf_counter() - began:.0f} s)")


def _inspect(arguments: argparse.Namespace) -> None:
    from interp_toolkit.model import COMPONENTS, verify

    model, _ = load(arguments)
    note("verifying")
    report = verify(model)
    layout = report.layout
    facts = [
        ("family", layout.model_type),
        ("blocks", f"{layout.blocks} ({layout.num_layers})"),
        ("heads", str(layout.num_heads)),
        ("d_model", str(layout.d_model)),
        ("attention", f"{layout.attention} ({layout.attention_kind})"),
        ("attn_out", _times(layout.attn_out, layout.multiplier)),
        ("mlp_out", _times(layout.mlp_out, layout.multiplier)),
        ("resid_mid", f"input of {layout.mid}" if layout.mid else "none"),
        ("mlp_post", f"input of {layout.down}" if layout.down else "none"),
        ("final norm", layout.final_norm or "none"),
        ("unembedding", layout.unembed),
        ("fingerprint", layout.fingerprint),
    ]
    if layout.note:
        facts.append(("note", layout.note))
    print(table(["layout", ""], facts))
    answers = report.components()
    print()
    print(
        table(
            ["site", "axes", "what it is", "verified"],
            [(name, " ".join(kind.axes), kind.meaning, answers[name]) for name, kind in COMPONENTS.items()],
        )
    )
    failed = [finding for finding in report.findings if not finding.holds]
    held = len(report.findings) - len(failed)
    worst = max((f.error for f in report.findings if f.holds), default=0.0)
    print(f"\n{held} of {len(report.findings)} checks hold; the largest relative error among them is {worst:.1e}.")
    for side, reason in report.padding.items():
        print(f"padding on the {side}: {reason or 'works'}")


def _cache(arguments: argparse.Namespace) -> None:
    from interp_toolkit.activations import ActivationCache

    model, tokenizer = load(arguments)
    sites = None if arguments.sites is None else [n for part in arguments.sites for n in part.split(",") if n]
    if sites == []:
        raise RunError("--sites names no site: give some, such as resid_post pattern.5 L5H1, or leave it out")
    activations = ActivationCache(model, tokenizer, sites=sites).run(arguments.text)
    shapes: dict[str, list[Any]] = {}
    for site in activations.sites:
        shapes.setdefault(site.component, []).append(site)
    print(table(["token", ""], [(str(n), repr(t)) for n, t in enumerate(activations.tokens)]))
    print()
    print(
        table(
            ["site", "layers", "shape"],
            [(name, _span(found), str(tuple(activations[found[0]].shape))) for name, found in shapes.items()],
        )
    )
    if arguments.output:
        path = activations.save(arguments.output)
        print(f"\nsaved to {path} ({path.stat().st_size / 2**20:.1f} MiB)")


def _patch(arguments: argparse.Namespace) -> None:
    from interp_toolkit.circuits import activation_patch
    from interp_toolkit.model import Span

    if arguments.sweep:
        _sweep(arguments)
        return
    if arguments.order or arguments.metric or arguments.explain:
        raise RunError("--order, --metric and --explain are for sweeps: give --sweep layer,pos")
    model, tokenizer = load(arguments)
    where: Any = Span(arguments.span) if arguments.span else arguments.position
    answers = None if arguments.foil is None else (arguments.target, arguments.foil)
    result = activation_patch(
        model,
        arguments.clean,
        arguments.corrupt,
        arguments.target if answers is None else None,
        answers=answers,
        patch_component=arguments.component,
        patch_layer=arguments.layer,
        head=arguments.head,
        neuron=arguments.neuron,
        positions=where,
        direction=arguments.direction,
        align=arguments.align,
        tokenizer=tokenizer,
    )
    print(
        table(
            ["run", f"{result.target!r} − {result.foil!r}"],
            [
                ("clean", f"{result.clean_logit_diff:.3f}"),
                ("corrupt", f"{result.corrupt_logit_diff:.3f}"),
                ("patched", f"{result.patched_logit_diff:.3f}"),
                ("change", f"{result.logit_diff_change:+.3f}"),
            ],
        )
    )
    print()
    print(
        table(
            ["before the patch", "", "with the patch", ""],
            [
                (repr(a), f"{p:.3f}", repr(b), f"{q:.3f}")
                for (a, p), (b, q) in zip(result.top_before, result.top_after, strict=True)
            ],
        )
    )
    print("\n" + result.summary())
    if arguments.output:
        print(f"\nsaved to {result.save(arguments.output)}")


def _sweep(arguments: argparse.Namespace) -> None:
    from interp_toolkit.circuits import prepare_sweep
    from interp_toolkit.model import Span

    if arguments.align:
        raise RunError("a sweep compares position with position: use prompts of equal length, without --align")
    model, tokenizer = load(arguments)
    index = arguments.head if arguments.neuron is None else arguments.neuron
    where: Any = Span(arguments.span) if arguments.span else arguments.position
    sweep = prepare_sweep(
        model,
        arguments.clean,
        arguments.corrupt,
        answers=arguments.target if arguments.foil is None else (arguments.target, arguments.foil),
        component=arguments.component,
        over=tuple(axis.strip() for axis in arguments.sweep.split(",")),
        metric=arguments.metric or "logit_diff",
        direction=arguments.direction,
        positions=where,
        tokenizer=tokenizer,
        layers=None if arguments.layer is None else [arguments.layer],
        indices=None if index is None else [index],
    )
    if arguments.explain:
        print(sweep.explain())
        return
    began = time.perf_counter()
    effects = sweep.run(arguments.order or "exact")
    seconds = time.perf_counter() - began
    print(f"{effects.summary()}\n")
    if len(effects.axes) <= 2:
        print(_matrix(effects))
    print(f"\n{effects.values.numel():,} cells in {seconds:.1f} s")
    if arguments.output:
        save = effects.save if arguments.output.suffix == ".safetensors" else effects.plot().save
        print(f"saved to {save(arguments.output)}")


def _matrix(effects: Effects) -> str:
    """A sweep as a table: layers from top to bottom, in shares of clean − corrupt where they differ."""
    shown = effects.effect if effects.normalizable else effects.mean
    columns = effects.labels[1] if len(effects.labels) > 1 else ("effect",)
    values = shown.reshape(len(effects.labels[0]), -1).tolist()
    rows = [(name, *map(_share, line)) for name, line in zip(effects.labels[0], values, strict=True)]
    return table([effects.axes[0], *(repr(name)[1:-1] for name in columns)], rows)


# --- the parser ---------------------------------------------------------------------------------------------------


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    from interp_toolkit import __version__

    parser = argparse.ArgumentParser(
        prog="interp-toolkit",
        description="Look inside any Hugging Face causal language model, and intervene on it.",
    )
    parser.add_argument("--version", action="version", version=f"interp-toolkit {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    demo = commands.add_parser("demo", help="look at one fact in a small model, from start to finish")
    model_options(demo, positional=False)
    demo.add_argument("-o", "--output", type=Path, default=Path("interp-toolkit-demo.html"), help="where the page goes")
    demo.set_defaults(command=_demo)
    inspect = commands.add_parser("inspect", help="how a model is laid out, and which sites are verified")
    model_options(inspect)
    inspect.set_defaults(command=_inspect)
    cache = commands.add_parser("cache", help="run a model on a text and save its activations")
    model_options(cache)
    cache.add_argument("text", metavar="TEXT", help="the prompt")
    cache.add_argument("--sites", nargs="+", metavar="SITE", help="what to read, such as resid_post pattern.5 L5H1")
    cache.add_argument("-o", "--output", type=Path, metavar="FILE", help="a safetensors file to write")
    cache.set_defaults(command=_cache)
    _patch_options(commands.add_parser("patch", help="put an activation of one prompt's run into another's"))
    add_circuit(commands.add_parser("circuit", help="find the circuit of a behaviour, and judge it"))
    add_explain(commands.add_parser("explain", help="tell the whole story of one behaviour on one page"))
    add_probe(commands.add_parser("probe", help="train probes at every layer, with baselines and controls"))
    add_lens(commands.add_parser("lens", help="what the model would say at each depth, or who wrote what it says"))
    add_steer(commands.add_parser("steer", help="push a model along a direction while it writes"))
    add_steer_sweep(commands.add_parser("steer-sweep", help="what steering does, and costs, by layer and strength"))
    add_ablate_direction(
        commands.add_parser("ablate-direction", help="take a direction out of all that a model writes")
    )
    add_store(commands.add_parser("store", help="extract activations over a corpus, and look after what is stored"))
    return parser


def _patch_options(patch: argparse.ArgumentParser) -> None:
    model_options(patch)
    patch.add_argument("--clean", required=True, metavar="TEXT", help="the prompt that shows the behaviour")
    patch.add_argument("--corrupt", required=True, metavar="TEXT", help="the matched prompt that does not")
    patch.add_argument("--target", required=True, metavar="TOKEN", help="the clean answer, such as Paris")
    patch.add_argument(
        "--foil",
        metavar="TOKEN",
        help="the answer it is compared with; the corrupt prompt's best if not given",
    )
    patch.add_argument(
        "--component", default="resid", metavar="NAME", help="resid, attn, mlp, head, q, k, v, ... or L5H1"
    )
    patch.add_argument("--layer", type=int, metavar="N")
    patch.add_argument("--head", type=int, metavar="N")
    patch.add_argument("--neuron", type=int, metavar="N")
    where = patch.add_mutually_exclusive_group()
    where.add_argument(
        "--position", type=int, metavar="N", help="one position; negative counts from the end (default: all)"
    )
    where.add_argument("--span", metavar="TEXT", help="the tokens of this part of the prompt")
    patch.add_argument(
        "--direction",
        choices=["denoise", "noise"],
        default="denoise",
        help="clean into corrupt, or the reverse",
    )
    sweep = patch.add_argument_group("sweeps")
    sweep.add_argument(
        "--sweep", metavar="AXES", help="patch every cell of a grid, such as layer,pos or layer,head or layer,head,pos"
    )
    sweep.add_argument("--metric", help="logit_diff (default), log_prob, prob, kl, rank or accuracy")
    sweep.add_argument(
        "--order", choices=["exact", "gradient"], help="a run for each cell (default), or an estimate from a gradient"
    )
    sweep.add_argument("--explain", action="store_true", help="say what the sweep costs, and run nothing")
    patch.add_argument("--align", choices=["left", "right"], help="how prompts of different lengths line up")
    patch.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="a JSON file to write; for a sweep .html, .png, .svg or .safetensors",
    )
    patch.set_defaults(command=_patch)


# --- means --------------------------------------------------------------------------------------------------------


def _by_layer(effects: dict[str, tuple[float, ...]]) -> str:
    layers = range(len(next(iter(effects.values()))))
    rows = [
        (str(n), *(cell for values in effects.values() for cell in (_share(values[n]), _bar(values[n]))))
        for n in layers
    ]
    return table(["layer", *(cell for name in effects for cell in (name, ""))], rows)


def _share(value: float) -> str:
    return "–" if math.isnan(value) else f"{value + 0.0 if abs(value) >= 0.005 else 0.0:.2f}"


def _bar(value: float, width: int = 10) -> str:
    return "" if math.isnan(value) else ("█" if value > 0 else "░") * min(width, round(abs(value) * width))


def _times(path: str, multiplier: float) -> str:
    return f"output of {path}" + ("" if multiplier == 1.0 else f" × {multiplier:g}")


def _span(sites: Sequence[Any]) -> str:
    layers = [site.layer for site in sites if site.layer is not None]
    if not layers:
        return ""
    whole = layers == list(range(layers[0], layers[-1] + 1)) and len(layers) > 1
    return f"{layers[0]}-{layers[-1]}" if whole else ", ".join(map(str, layers))


__all__ = ["build_parser", "main"]
