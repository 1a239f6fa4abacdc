"""Which shortcuts of planned runs hold on a model: tried, not assumed.

When a model is first planned for, a few edited runs are done plainly, one full pass each, and again with the
shortcuts. One that gives other numbers, or that the model's code cannot do, is switched off, and the plan says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from interp_toolkit.model.cells import Base, Cell, Swap
from interp_toolkit.model.edits import Edit
from interp_toolkit.model.execution import Execution
from interp_toolkit.model.proof import REFUSALS
from interp_toolkit.model.run import run
from interp_toolkit.model.schedule import Schedule, task_of
from interp_toolkit.model.shortcuts import NONE, Shortcuts, rows_of_unembedding
from interp_toolkit.model.sites import Site
from interp_toolkit.model.tokens import Tokens, encode
from interp_toolkit.model.wiring import Wiring

_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
_LENGTH, _SHARED = 9, 3


def shortcuts_of(wiring: Wiring) -> Shortcuts:
    """The shortcuts that hold on a model, found out when it is first asked for."""
    with wiring.lock:
        if wiring.base.training:
            return replace(NONE, reasons=dict.fromkeys(("resume", "join", "prefix", "readout"), "training mode"))
        if not isinstance(wiring.shortcuts, Shortcuts):
            wiring.shortcuts = _prove(wiring)
        return wiring.shortcuts


def _prove(wiring: Wiring) -> Shortcuts:
    reasons: dict[str, str] = {}
    trial = _Trial(wiring)
    everything = replace(NONE, resume=True, join=True, prefix=True)
    reason = trial.failure(everything)
    if reason is None:
        found = everything
    else:
        found = NONE
        steps = {
            "resume": replace(NONE, resume=True),
            "join": replace(NONE, resume=True, join=True),
            "prefix": replace(NONE, prefix=True),
        }
        for name, step in steps.items():
            tried = _both(found, step)
            reason = "rows cannot enter at a layer" if name == "join" and not found.resume else trial.failure(tried)
            if reason is None:
                found = tried
            else:
                reasons[name] = reason
    scale = trial.readout_scale()
    if scale is None:
        reasons["readout"] = "the logits are not a multiple of the normed residual stream times the unembedding"
    return replace(found, readout=scale, reasons=reasons)


def _both(first: Shortcuts, second: Shortcuts) -> Shortcuts:
    return replace(
        first,
        resume=first.resume or second.resume,
        join=first.join or second.join,
        prefix=first.prefix or second.prefix,
    )


class _Trial:
    """Edited runs done plainly, to compare with."""

    def __init__(self, wiring: Wiring) -> None:
        self.wiring = wiring
        generator = torch.Generator().manual_seed(0)
        size = wiring.shapes.get("logits", (50,))[-1]
        first, second = torch.randint(3, max(4, size), (2, _LENGTH), generator=generator)
        second[:_SHARED] = first[:_SHARED]
        second[-2] = first[-2]  # the same token in another context
        self.bases = [Base(tokens=encode(ids[None])) for ids in (first, second)]
        layers = wiring.layout.num_layers
        sites = [Site("resid_pre", n) for n in sorted({0, 1 % layers, layers // 2, layers - 1})]
        sites += [Site(name, layers // 2) for name in ("z", "mlp_out")]
        usable = [site for site in sites if site not in wiring.refused]
        swaps = [[Swap(site=site, source=1, positions=(p,))] for p in (_SHARED, _LENGTH - 2) for site in usable] + [
            [Swap(site=site, source=1)] for site in usable[-2:]
        ]
        there = [[replace(swap[0], source=0)] for swap in swaps[::3]]
        self.cells = [Cell(base=0, swaps=tuple(s)) for s in swaps] + [Cell(base=1, swaps=tuple(s)) for s in there]
        self.expected = torch.cat([self._plainly(0, [s[0] for s in swaps]), self._plainly(1, [s[0] for s in there])])

    def _plainly(self, base: int, swaps: Sequence[Swap]) -> Tensor:
        """The last logits of each cell, all in one full pass."""
        source = self.bases[1 - base].tokens
        read = run(self.wiring.model, source, read=[swap.site for swap in swaps], layout=self.wiring.layout)
        edits = [
            Edit.set(
                swap.site,
                read[swap.site],
                positions=None if swap.positions is None else list(swap.positions),
                rows=[row],
            )
            for row, swap in enumerate(swaps)
        ]
        batch = encode(self.bases[base].tokens.ids.expand(len(swaps), -1))
        return self._logits(batch, edits=edits)[:, -1]

    def _logits(self, tokens: Tokens, edits: Sequence[Edit] = ()) -> Tensor:
        return run(self.wiring.model, tokens, edits=edits, logits="all", layout=self.wiring.layout).logits

    def failure(self, shortcuts: Shortcuts) -> str | None:
        """Why these shortcuts do not hold, or None if they do."""
        found = torch.full_like(self.expected, float("nan"))
        try:
            for answer in Execution(Schedule(self.wiring, task_of(self.bases, self.cells), shortcuts, None)):
                found[list(answer.cells)] = answer.logits[:, -1]
        except REFUSALS as error:
            return f"{type(error).__name__}: {error}".splitlines()[0][:200]
        wide = [x.to("cpu", torch.float64) for x in (found, self.expected)]
        off = float((wide[0] - wide[1]).abs().max() / wide[1].std().clamp_min(1e-12))
        tolerance = _TOLERANCE.get(self.expected.dtype, 1e-4)
        return None if off <= tolerance else f"the numbers differ by {off:.1e} of the logits' spread"

    def readout_scale(self) -> float | None:
        """By what the unembedding's product must be multiplied to give the logits, or None if that is not enough."""
        unembed = self.wiring.top(self.wiring.layout.unembed)
        if type(unembed) is not nn.Linear or Site("final_norm") in self.wiring.refused or unembed.weight.is_meta:
            return None
        read = run(self.wiring.model, self.bases[0].tokens, read="final_norm", layout=self.wiring.layout)
        ids = tuple(range(0, unembed.weight.shape[0], max(1, unembed.weight.shape[0] // 64)))
        logits = self._logits(self.bases[0].tokens)
        actual = logits[0][:, list(ids)].to("cpu", torch.float64)
        product = rows_of_unembedding(self.wiring, read["final_norm"], ids, 1.0)[0].to("cpu", torch.float64)
        scale = float((product * actual).sum() / (product * product).sum())
        scale = 1.0 if abs(scale - 1) < 1e-3 else scale
        error = float((product * scale - actual).abs().max() / actual.std().clamp_min(1e-12))
        return scale if error <= _TOLERANCE.get(logits.dtype, 1e-4) else None


__all__ = ["shortcuts_of"]
