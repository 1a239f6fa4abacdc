"""The checks that prove a layout: see `verify`, which runs them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from interp_toolkit.errors import InterpError, UnsupportedModelError
from interp_toolkit.model.edits import Edit
from interp_toolkit.model.forward import execute
from interp_toolkit.model.heads import head_outputs, projection_bias
from interp_toolkit.model.session import Wish, logits_of
from interp_toolkit.model.sites import COMPONENTS, Site
from interp_toolkit.model.tokens import Tokens, encode
from interp_toolkit.model.wiring import Wiring

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}
_BATCH, _LENGTH = 2, 7
_REFUSALS = (
    InterpError,
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
)
"""What foreign code may raise where a site does not work; NotImplementedError is a RuntimeError."""


_STREAM = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
_SEQUENTIAL = {
    "attn_out": (("resid_mid", 0), ("resid_pre", 0)),
    "mlp_out": (("resid_post", 0), ("resid_mid", 0)),
    "resid_pre": (("resid_mid", 0), ("attn_out", 0)),
    "resid_mid": (("resid_post", 0), ("mlp_out", 0)),
    "resid_post": (("resid_pre", 1),),
}
_PARALLEL = {
    "attn_out": (("resid_post", 0), ("resid_pre", 0), ("mlp_out", 0)),
    "mlp_out": (("resid_post", 0), ("resid_pre", 0), ("attn_out", 0)),
    "resid_pre": (("resid_post", 0), ("attn_out", 0), ("mlp_out", 0)),
    "resid_post": (("resid_pre", 1),),
}
"""For each site that is set: the first of these sites, without the others, has to equal what was set."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was checked.

    Attributes:
        claim: what should hold, in words.
        sites: the sites that depend on it.
        error: by how much it fails to hold, relative to what was compared; 0 is exact.
        holds: whether that is within the rounding of the model's precision.
    """

    claim: str
    sites: tuple[Site, ...]
    error: float
    holds: bool


class Proof:
    """The checks, in order; each refuses the sites that fail it."""

    def __init__(self, wiring: Wiring) -> None:
        self.wiring = wiring
        self.layers = range(wiring.layout.num_layers)
        self.findings: list[Finding] = []
        self.tokens = _sample(wiring)
        self.generator = torch.Generator().manual_seed(0)
        self.training = wiring.model.training

    def findings_of_all_checks(self) -> tuple[Finding, ...]:
        """Run every check; the sites that fail one are refused in the wiring."""
        wiring = self.wiring
        wiring.model.eval()
        try:
            self._read_everything()
            for check in (
                self._sublayers_add_up,
                self._heads_add_up,
                self._patterns_are_causal,
                self._stream_edits_arrive,
                self._attention_edits_arrive,
                self._neuron_edits_arrive,
                self._resuming_changes_nothing,
                self._padding_changes_nothing,
            ):
                check()
        finally:
            wiring.model.train(self.training)
        return tuple(self.findings)

    # --- means -----------------------------------------------------------------------------------------------

    def pass_(
        self,
        components: Iterable[str] = (),
        edits: Iterable[Edit] = (),
        tokens: Tokens | None = None,
        start: tuple[int, Tensor] | None = None,
        stop: bool = False,
    ) -> tuple[dict[Site, Tensor], Tensor]:
        """One forward pass: readings and logits; it may stop after the deepest reading, and then has no logits."""
        names = set(components)
        first = 0 if start is None else start[0]
        sites = [s for s in self.wiring.available() if s.component in names and (s.layer is None or s.layer >= first)]
        wish = Wish(reads=frozenset(sites), edits=tuple(edits), start=start, stop=stop and bool(sites))
        session, output = execute(self.wiring, tokens or self.tokens, wish)
        return {
            s: session.readings[(s.component, s.layer)][0] for s in sites if (s.component, s.layer) in session.readings
        }, torch.empty(0) if output is None else logits_of(output).detach()

    def claim(
        self, text: str, sites: Iterable[Site], actual: Tensor, expected: Tensor, noise: Tensor | None = None
    ) -> bool:
        """Compare vectors along the last axis and refuse the sites if they differ by more than rounding."""
        sites = tuple(sites)
        if actual.shape != expected.shape:
            return self._refuse(text, sites, float("inf"), f"shapes {tuple(actual.shape)} and {tuple(expected.shape)}")
        wide = [x.to("cpu", torch.float64) for x in (actual, expected)]
        size = wide[1].norm(dim=-1)
        unit = torch.finfo(actual.dtype).eps
        slack = 0.0 if noise is None else 8 * unit * noise.to("cpu", torch.float64).norm(dim=-1)
        allowed = _TOLERANCE.get(actual.dtype, 1e-2) * size.clamp_min(1e-2 * float(size.max()) + 1e-30) + slack
        gap = (wide[0] - wide[1]).norm(dim=-1)
        error = float((gap / size.clamp_min(1e-2 * float(size.max()) + 1e-30)).max())
        if bool((gap <= allowed).all()):
            self.findings.append(Finding(claim=text, sites=sites, error=error, holds=True))
            return True
        return self._refuse(text, sites, error, f"off by {error:.2g} (relative)")

    def _refuse(self, text: str, sites: tuple[Site, ...], error: float, detail: str) -> bool:
        self.findings.append(Finding(claim=text, sites=sites, error=error, holds=False))
        for site in sites:
            self.wiring.refused.setdefault(site, f"verification failed: {text}; {detail}")
        return False

    def like(self, x: Tensor) -> Tensor:
        """Random numbers of the size of a reading."""
        noise = torch.randn(x.shape, generator=self.generator)
        return (noise * x.float().std().clamp_min(1e-3).cpu()).to(device=x.device, dtype=x.dtype)

    def usable(self, component: str) -> list[Site]:
        """The sites of a component that are not refused so far."""
        return self.wiring.available(component)

    # --- checks ----------------------------------------------------------------------------------------------

    def _read_everything(self) -> None:
        wiring = self.wiring
        _, self.logits = self.pass_()
        wiring.returns = _block_returns(self)
        if not self._reads(tuple(COMPONENTS), None):
            for name in COMPONENTS:
                self._reads((name,), name)
        self.base, _ = self.pass_(COMPONENTS)
        for site in self.wiring.available():
            self._check_shape(site, self.base[site])

    def _reads(self, names: tuple[str, ...], blamed: str | None) -> bool:
        """Whether components can be read without a trace; refuse the blamed one if not."""
        sites = tuple(site for name in names for site in self.usable(name))
        problem = ""
        claim = "it can be read"
        try:
            found, logits = self.pass_(names)
        except _REFUSALS as error:
            problem = f"{type(error).__name__}: {error}"
        else:
            if any(site not in found for site in sites):
                sites = tuple(site for site in sites if site not in found)
                problem = "the model never came there"
            elif not torch.equal(logits, self.logits) and torch.equal(self.pass_()[1], self.logits):
                claim, problem = "reading it leaves the logits as they are", "they changed"
        if problem and blamed is not None:
            self._refuse(claim, sites, float("inf"), problem)
        return not problem

    def _check_shape(self, site: Site, x: Tensor) -> None:
        kind, layout = COMPONENTS[site.component], self.wiring.layout
        sizes = {
            "batch": _BATCH,
            "pos": _LENGTH,
            "key_pos": _LENGTH,
            "head": layout.num_heads,
            "d_model": layout.d_model,
        }
        right = x.ndim == len(kind.axes) and all(
            sizes.get(axis, size) == size for axis, size in zip(kind.axes, x.shape, strict=True)
        )
        if right:
            self.wiring.shapes.setdefault(site.component, tuple(x.shape))
        else:
            self._refuse("its axes are " + ", ".join(kind.axes), (site,), float("inf"), f"found {tuple(x.shape)}")

    def _sublayers_add_up(self) -> None:
        read = self.base
        for layer in self.layers:
            pre, post = (read[Site(f"resid_{p}", layer)] for p in ("pre", "post"))
            if layer:
                self.claim(
                    "what leaves a block enters the next",
                    [Site("resid_pre", layer)],
                    pre,
                    read[Site("resid_post", layer - 1)],
                )
            attn, mlp = (read.get(Site(name, layer)) for name in ("attn_out", "mlp_out"))
            if attn is None or mlp is None:
                continue
            if self.wiring.layout.mid is None:
                sites = [Site("attn_out", layer), Site("mlp_out", layer)]
                self.claim(
                    "resid_pre + attn_out + mlp_out = resid_post",
                    sites,
                    post - pre,
                    attn + mlp,
                    post.abs() + pre.abs(),
                )
                continue
            mid = read.get(Site("resid_mid", layer))
            if mid is None:
                continue
            self.claim(
                "resid_pre + attn_out = resid_mid",
                [Site("attn_out", layer), Site("resid_mid", layer)],
                mid - pre,
                attn,
                mid.abs() + pre.abs(),
            )
            self.claim(
                "resid_mid + mlp_out = resid_post",
                [Site("mlp_out", layer), Site("resid_mid", layer)],
                post - mid,
                mlp,
                post.abs() + mid.abs(),
            )

    def _heads_add_up(self) -> None:
        for site in self.usable("head_out"):
            layer = site.layer or 0
            z, attn = self.base.get(Site("z", layer)), self.base.get(Site("attn_out", layer))
            if z is None or attn is None or Site("attn_out", layer) in self.wiring.refused:
                self._refuse("heads and bias sum to attn_out", (site,), float("inf"), "z or attn_out is not available")
                continue
            with torch.no_grad():
                bias = projection_bias(self.wiring, layer, z)
            heads = self.base[site]
            self.claim(
                "heads and bias sum to attn_out",
                [site, Site("z", layer)],
                heads.sum(-2) + bias,
                attn,
                heads.abs().sum(-2),
            )

    def _patterns_are_causal(self) -> None:
        for site in self.usable("pattern"):
            pattern = self.base[site].float()
            sums = pattern.sum(-1, keepdim=True)
            self.claim(
                "each row of the pattern sums to one, or to less where there is a sink",
                [site],
                sums.clamp_max(1.0),
                sums,
            )
            ahead = pattern.triu(1).sum(-1, keepdim=True)
            self.claim("no position attends to a later one", [site], ahead + 1, torch.ones_like(ahead))
            scores = self.base.get(Site("scores", site.layer))
            if scores is not None and bool((sums > 0.999).all()):
                self.claim(
                    "softmax of scores = pattern",
                    [Site("scores", site.layer)],
                    torch.softmax(scores.float(), -1),
                    pattern,
                )

    def _set_all(self, component: str) -> tuple[list[Edit], dict[Site, Tensor]]:
        values = {site: self.like(self.base[site]) for site in self.usable(component)}
        return [Edit.set(site, value) for site, value in values.items()], values

    def _stream_edits_arrive(self) -> None:
        for component, parts in (_SEQUENTIAL if self.wiring.layout.mid else _PARALLEL).items():
            edits, values = self._set_all(component)
            if not edits:
                continue
            read, _ = self.pass_(_STREAM, edits, stop=True)
            for site, value in values.items():
                there = [Site(name, (site.layer or 0) + later) for name, later in parts if self._reached(site, later)]
                if len(there) == len(parts) and all(part in read for part in there):
                    left, noise = _without(read, there)
                    self.claim("setting it changes the residual stream to match", [site], left, value, noise)
        for component in ("embed", "final_norm"):
            self._end_edit_arrives(component)

    def _reached(self, site: Site, later: int) -> bool:
        return (site.layer or 0) + later in self.layers

    def _end_edit_arrives(self, component: str) -> None:
        for site in self.usable(component):
            value = self.like(self.base[site][:, :1])
            read, logits = self.pass_(["resid_pre"], [Edit.set(site, value)])
            if component == "embed":
                first = read[Site("resid_pre", 0)]
                self.claim("setting it changes what enters block 0", [site], first, value.expand_as(first))
            else:
                self.claim(
                    "the logits follow from it position by position",
                    [site],
                    logits,
                    logits[:, :1].expand_as(logits),
                )

    def _attention_edits_arrive(self) -> None:
        self._z_edits_arrive()
        v_sites = self.usable("v")
        read, _ = self.pass_(["z"], [Edit.set(site, 0.0) for site in v_sites], stop=True)
        for site in v_sites:
            z = read.get(Site("z", site.layer))
            if z is not None:
                self.claim("with all values zero, z is zero", [site], z + 1, torch.ones_like(z))
        eye = torch.eye(_LENGTH, device=self.logits.device)
        read, _ = self.pass_(["z", "v"], [Edit.set(site, eye) for site in self.usable("pattern")], stop=True)
        for site in self.usable("pattern"):
            z, v = read.get(Site("z", site.layer)), read.get(Site("v", site.layer))
            if z is not None and v is not None:
                groups = z.shape[2] // v.shape[2]
                self.claim(
                    "attending only to oneself, z is one's own value",
                    [site, Site("v", site.layer)],
                    z,
                    v.repeat_interleave(groups, 2),
                )
        self._score_edits_arrive(eye)
        keys, queries = self.usable("k"), self.usable("q")
        if keys and queries and self.usable("scores"):
            without_k, _ = self.pass_(["scores"], [Edit.set(site, 0.0) for site in keys], stop=True)
            without_q, _ = self.pass_(["scores"], [Edit.set(site, 0.0) for site in queries], stop=True)
            for layer in self.layers:
                a, b = without_k.get(Site("scores", layer)), without_q.get(Site("scores", layer))
                if a is not None and b is not None:
                    allowed = self.base[Site("scores", layer)] > -1e4
                    sites = [Site("q", layer), Site("k", layer)]
                    self.claim(
                        "scores are a product of queries and keys",
                        sites,
                        torch.where(allowed, a, 0.0) + 1,
                        torch.where(allowed, b, 0.0) + 1,
                    )
                    moved = (torch.where(allowed, a - self.base[Site("scores", layer)], 0.0)).abs().max()
                    if not float(moved):
                        self._refuse(
                            "setting it changes the scores",
                            tuple(sites),
                            float("inf"),
                            "they stayed the same",
                        )

    def _z_edits_arrive(self) -> None:
        edits, values = self._set_all("z")
        read, _ = self.pass_(["attn_out"], edits, stop=True)
        for site, value in values.items():
            attn = read.get(Site("attn_out", site.layer))
            if attn is not None:
                with torch.no_grad():
                    heads = head_outputs(self.wiring, site.layer or 0, value)
                    expected = heads.sum(-2) + projection_bias(self.wiring, site.layer or 0, value)
                self.claim(
                    "setting it changes attn_out by its projection",
                    [site, Site("head_out", site.layer)],
                    attn,
                    expected,
                    heads.abs().sum(-2),
                )
        sites = [s for s in self.usable("head_out") if s.layer == self.layers[-1]]
        for site in sites:
            read, _ = self.pass_(["attn_out"], [Edit.set(Site("head_out", site.layer, 0), 0.0)], stop=True)
            before, heads = self.base[Site("attn_out", site.layer)], self.base[site]
            self.claim(
                "a head set to zero is missing from attn_out",
                [site],
                read[Site("attn_out", site.layer)],
                before - heads[:, :, 0],
                before.abs() + heads.abs().sum(-2),
            )

    def _score_edits_arrive(self, eye: Tensor) -> None:
        only_self = torch.where(eye.bool(), 0.0, -1e4)
        read, _ = self.pass_(["pattern"], [Edit.set(site, only_self) for site in self.usable("scores")], stop=True)
        for site in self.usable("scores"):
            pattern = read.get(Site("pattern", site.layer))
            if pattern is not None:
                self.claim(
                    "scores set to oneself alone make such a pattern",
                    [site],
                    pattern,
                    pattern * eye.to(pattern.dtype),
                )

    def _neuron_edits_arrive(self) -> None:
        sites = self.usable("mlp_post")
        if not sites:
            return
        read, _ = self.pass_(["mlp_out"], [Edit.set(site, 0.0) for site in sites], stop=True)
        for site in sites:
            out = read.get(Site("mlp_out", site.layer))
            if out is None:
                continue
            self.claim(
                "with all neurons zero, mlp_out is the same everywhere",
                [site],
                out + 1,
                out[:1, :1].expand_as(out) + 1,
            )
            if torch.equal(out, self.base[Site("mlp_out", site.layer)]):
                self._refuse("setting it changes mlp_out", (site,), float("inf"), "it stayed the same")

    def _resuming_changes_nothing(self) -> None:
        layer = self.wiring.layout.num_layers // 2
        _, logits = self.pass_(start=(layer, self.base[Site("resid_pre", layer)]))
        self.claim(f"starting at layer {layer} from its own residual gives the same logits", (), logits, self.logits)

    def _padding_changes_nothing(self) -> None:
        if "attention_mask" not in self.wiring.accepts:
            for side in self.wiring.padding:
                self.wiring.padding[side] = "its forward takes no attention mask"
            return
        short = self.tokens.ids[1:, :4]
        alone, _ = self.pass_(["resid_post"], tokens=encode(short), stop=True)
        last = Site("resid_post", self.layers[-1])
        sides: tuple[tuple[Literal["left", "right"], slice], ...] = (
            ("left", slice(_LENGTH - 4, _LENGTH)),
            ("right", slice(0, 4)),
        )
        for side, columns in sides:
            rows = [self.tokens.ids[0].tolist(), short[0].tolist()]
            try:
                padded, _ = self.pass_(["resid_post"], tokens=encode(rows, padding_side=side), stop=True)
            except _REFUSALS as error:
                self.wiring.padding[side] = f"{type(error).__name__}: {error}"
                continue
            if not self.claim(f"padding on the {side} changes nothing", (), padded[last][1:, columns], alone[last]):
                self.wiring.padding[side] = "the model's own forward does not give the same results as without padding"


def _without(read: dict[Site, Tensor], parts: list[Site]) -> tuple[Tensor, Tensor]:
    """What is left of the first part without the others, and the size of what was subtracted."""
    left = read[parts[0]]
    noise = left.abs()
    for part in parts[1:]:
        left, noise = left - read[part], noise + read[part].abs()
    return left, noise


def _sample(wiring: Wiring) -> Tokens:
    unembed = wiring.top(wiring.layout.unembed)
    config = getattr(wiring.base, "config", None)
    vocab = getattr(config, "vocab_size", None) or getattr(unembed, "out_features", None) or 16
    generator = torch.Generator().manual_seed(1)
    low = min(3, vocab - 1)
    return encode(torch.randint(low, max(low + 1, vocab // 2), (_BATCH, _LENGTH), generator=generator))


def _block_returns(proof: Proof) -> int | None:
    """How many things a block returns as a tuple; None if it returns the residual stream itself."""
    seen: list[int | None] = []
    block = proof.wiring.blocks[0]
    handle = block.register_forward_hook(lambda m, a, out: seen.append(len(out) if isinstance(out, tuple) else None))
    try:
        proof.pass_()
    finally:
        handle.remove()
    if not seen:
        raise UnsupportedModelError(f"the blocks at {proof.wiring.layout.blocks!r} are not run by the model's forward")
    return seen[0]


__all__ = ["Finding", "Proof"]
