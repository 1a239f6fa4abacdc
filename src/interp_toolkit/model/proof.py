"""The means of a proof: short forward passes, claims about what they read, and sites refused where a claim fails."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from interp_toolkit.errors import InterpError, UnsupportedModelError
from interp_toolkit.model.edits import Edit
from interp_toolkit.model.forward import execute
from interp_toolkit.model.session import logits_of
from interp_toolkit.model.sites import COMPONENTS, Site
from interp_toolkit.model.tokens import Tokens, encode
from interp_toolkit.model.wiring import Wiring
from interp_toolkit.model.wish import Wish

_TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}
BATCH, LENGTH = 2, 7
REFUSALS = (
    InterpError,
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
)
"""What foreign code may raise where a site does not work; NotImplementedError is a RuntimeError."""


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
    """What is known of a model so far, and the means to find out more.

    Args:
        wiring: the model; its sites are refused as claims fail.
    """

    def __init__(self, wiring: Wiring) -> None:
        self.wiring = wiring
        self.layers = range(wiring.layout.num_layers)
        self.findings: list[Finding] = []
        self.tokens = _sample(wiring)
        self.generator = torch.Generator().manual_seed(0)
        self.logits = torch.empty(0)
        self.base: dict[Site, Tensor] = {}

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Without dropout; each module gets its own mode back."""
        modes = {module: module.training for module in self.wiring.model.modules()}
        self.wiring.model.eval()
        try:
            yield
        finally:
            for module, training in modes.items():
                module.training = training

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
        enter = {} if start is None else {first: start[1].clone()}
        wish = Wish(reads=frozenset(sites), edits=tuple(edits), enter=enter, stop=stop and bool(sites))
        session, output = execute(self.wiring, tokens or self.tokens, wish)
        return {
            s: session.readings[(s.component, s.layer)][0] for s in sites if (s.component, s.layer) in session.readings
        }, torch.empty(0) if output is None else logits_of(output).detach()

    def claim(
        self,
        text: str,
        sites: Iterable[Site],
        actual: Tensor,
        expected: Tensor,
        noise: Tensor | None = None,
        *,
        slack: float = 0.0,
    ) -> bool:
        """Compare vectors along the last axis and refuse the sites if they differ by more than rounding.

        Args:
            text: what should hold.
            sites: what depends on it.
            actual: vectors.
            expected: vectors.
            noise: magnitudes whose rounding is in the vectors, as where a large number was subtracted.
            slack: a length by which vectors may differ besides.

        Returns:
            Whether it holds.
        """
        sites = tuple(sites)
        if actual.shape != expected.shape:
            return self.refuse(text, sites, f"shapes {tuple(actual.shape)} and {tuple(expected.shape)}")
        wide = [x.to("cpu", torch.float64) for x in (actual, expected)]
        size = wide[1].norm(dim=-1)
        unit = torch.finfo(actual.dtype).eps
        rounding = 0.0 if noise is None else 8 * unit * noise.to("cpu", torch.float64).norm(dim=-1)
        size = size.clamp_min(1e-2 * float(size.max()) + 1e-30)
        allowed = _TOLERANCE.get(actual.dtype, 1e-2) * size + rounding + slack
        gap = (wide[0] - wide[1]).norm(dim=-1)
        error = float((gap / size).max())
        if bool((gap <= allowed).all()):
            self.findings.append(Finding(claim=text, sites=sites, error=error, holds=True))
            return True
        return self.refuse(text, sites, f"off by {error:.2g} (relative)", error)

    def refuse(self, text: str, sites: tuple[Site, ...], detail: str, error: float = math.inf) -> bool:
        """Take a claim for failed and refuse its sites; the first reason stays."""
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

    def set_all(self, component: str) -> tuple[list[Edit], dict[Site, Tensor]]:
        """Edits that set a component to random numbers in every layer, and the numbers."""
        values = {site: self.like(self.base[site]) for site in self.usable(component)}
        return [Edit.set(site, value) for site, value in values.items()], values

    def read_everything(self) -> None:
        """Read every site once, as what later passes are compared with; refuse those that cannot be read."""
        wiring = self.wiring
        try:
            _, self.logits = self.pass_()
        except REFUSALS as error:
            raise UnsupportedModelError(
                f"the model's own forward fails on {BATCH} prompts of {LENGTH} tokens: {type(error).__name__}: {error}"
            ) from error
        wiring.returns = _block_returns(self)
        if not self._reads(tuple(COMPONENTS), None):
            for name in COMPONENTS:
                self._reads((name,), name)
        self.base, _ = self.pass_(COMPONENTS)
        for site in self.wiring.available():
            self._check_shape(site, self.base[site])
        self._check_heads()
        self.base = {site: x for site, x in self.base.items() if site not in self.wiring.refused}

    def _reads(self, names: tuple[str, ...], blamed: str | None) -> bool:
        """Whether components can be read without a trace; refuse the blamed one if not."""
        sites = tuple(site for name in names for site in self.usable(name))
        problem = ""
        claim = "it can be read"
        try:
            found, logits = self.pass_(names)
        except REFUSALS as error:
            problem = f"{type(error).__name__}: {error}"
        else:
            if any(site not in found for site in sites):
                sites = tuple(site for site in sites if site not in found)
                problem = "the model never came there"
            elif not torch.equal(logits, self.logits) and torch.equal(self.pass_()[1], self.logits):
                claim, problem = "reading it leaves the logits as they are", "they changed"
        if problem and blamed is not None:
            self.refuse(claim, sites, problem)
        return not problem

    def _check_shape(self, site: Site, x: Tensor) -> None:
        kind, layout = COMPONENTS[site.component], self.wiring.layout
        sizes = {
            "batch": BATCH,
            "pos": LENGTH,
            "key_pos": LENGTH,
            "d_model": layout.d_model,
        }
        right = x.ndim == len(kind.axes) and all(
            sizes.get(axis, size) == size for axis, size in zip(kind.axes, x.shape, strict=True)
        )
        if right:
            self.wiring.shapes.setdefault(site.component, tuple(x.shape))
        else:
            self.refuse("its axes are " + ", ".join(kind.axes), (site,), f"found {tuple(x.shape)}")

    def _check_heads(self) -> None:
        """The attention itself shows how many heads there are."""
        for site in self.usable("q"):
            found, claimed = self.base[site].shape[2], self.wiring.layout.num_heads
            if found != claimed:
                sites = tuple(Site(name, site.layer) for name in ("z", "head_out", "q", "scores", "pattern"))
                detail = f"the layout says {claimed}, attention has {found}"
                self.refuse("the layout's number of heads is that of attention", sites, detail)


def _sample(wiring: Wiring) -> Tokens:
    unembed = wiring.top(wiring.layout.unembed)
    config = getattr(wiring.base, "config", None)
    vocab = getattr(config, "vocab_size", None) or getattr(unembed, "out_features", None) or 16
    generator = torch.Generator().manual_seed(1)
    low = min(3, vocab - 1)
    return encode(torch.randint(low, max(low + 1, vocab // 2), (BATCH, LENGTH), generator=generator))


def _block_returns(proof: Proof) -> int | None:
    """How many things a block returns as a tuple; None if it returns the residual stream itself."""
    seen: list[int | None] = []
    block = proof.wiring.blocks[0]
    handle = block.register_forward_hook(
        lambda m, a, out: seen.append(len(out) if isinstance(out, tuple | list) else None)
    )
    try:
        proof.pass_()
    finally:
        handle.remove()
    if not seen:
        raise UnsupportedModelError(f"the blocks at {proof.wiring.layout.blocks!r} are not run by the model's forward")
    return seen[0]


__all__ = ["BATCH", "LENGTH", "REFUSALS", "Finding", "Proof"]
