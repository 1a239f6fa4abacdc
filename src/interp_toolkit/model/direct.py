"""Direct effects: what a vector adds to logits through the residual stream alone.

The final norm's scale is frozen at that run's own, so that effects are linear: those of the embedding, of all heads, of
all MLPs and of the biases add up to the logit. A soft cap behind the unembedding is left out.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp_toolkit.errors import CircuitError
from interp_toolkit.model.heads import head_outputs
from interp_toolkit.model.run import Run, run
from interp_toolkit.model.sites import Site
from interp_toolkit.model.tokens import Tokens
from interp_toolkit.model.wiring import Wiring

_WRITTEN = 1 << 23  # numbers of heads' outputs that are held at once
_ROWS = 64  # rows of an unembedding whose weights cannot be read, in a pass
_OFF = 0.05  # how far a norm may be from what it is taken for
_FACTOR_OFF = {torch.float64: 1e-6, torch.float32: 1e-4}  # the same for a factor behind the unembedding


class Direct:
    """Direct effects on logits: what a vector in the residual stream adds to them, the final norm's scale frozen.

    A LayerNorm or root-mean-square norm is a gain for each channel times one number for each position, perhaps after
    the mean is taken away. The gain shows on a probe, whether the mean is taken away as well, and the number follows
    from the run's own residual stream by least squares.

    Args:
        wiring: the model.
        tokens: any prompt, on which logits are compared with what the unembedding gives.
        dtype: in what precision to work.

    Attributes:
        end: the residual stream in front of the final norm.
        gain: the norm's gain for each channel.
        capped: whether logits are changed behind the unembedding, other than by a factor.

    Raises:
        CircuitError: when the final norm is of neither kind.
    """

    def __init__(self, wiring: Wiring, tokens: Tokens, *, dtype: torch.dtype = torch.float32) -> None:
        layout = wiring.layout
        self._unembed = wiring.top(layout.unembed)
        self._norm = None if layout.final_norm is None else wiring.top(layout.final_norm)
        self.dtype = dtype
        self.end = Site("resid_post", layout.num_layers - 1)
        found = run(wiring.model, tokens, read=self.end, logits="last", layout=layout)
        stream = found[self.end][:, -1]
        self._zero = torch.zeros_like(stream[:1])
        self._centred, self.gain = False, torch.ones_like(stream[0]).to(dtype)
        if self._norm is not None:
            self._look_at_norm(self._norm, stream)
        self._factor, self.capped = self._behind(stream, found)

    @torch.no_grad()
    def _look_at_norm(self, norm: nn.Module, stream: Float[Tensor, "n d_model"]) -> None:
        width = stream.shape[-1]
        probe = torch.ones_like(stream[:1])
        probe[:, 1::2] = -1.0
        if width % 2:
            probe[:, -3:] = torch.tensor([2.0, -1.0, -1.0]).to(probe)
        self._zero = norm(torch.zeros_like(probe))
        normed, moved = (norm(x).to(self.dtype) - self._zero.to(self.dtype) for x in (probe, probe + 1))
        self._centred = bool((moved - normed).norm() < _OFF * normed.norm())
        self.gain = (normed / probe.to(self.dtype))[0]
        raw, number = self._scaled(stream)
        given = (norm(stream) - self._zero).to(self.dtype)
        if not bool((raw * number - given).norm() <= _OFF * given.norm()):
            raise CircuitError(
                f"the final norm ({type(norm).__name__}) is neither a LayerNorm nor a root-mean-square norm, so its "
                "scale cannot be frozen and direct effects on logits are not known"
            )

    def _scaled(self, stream: Float[Tensor, "n d_model"]) -> tuple[Tensor, Tensor]:
        """The stream times the gain, and by what the norm multiplies that at each position."""
        wide = stream.to(self.dtype)
        if self._norm is None:
            return wide, torch.ones_like(wide[:, :1])
        raw = (wide - wide.mean(-1, keepdim=True) if self._centred else wide) * self.gain
        normed = self._norm(stream).to(self.dtype) - self._zero.to(self.dtype)
        return raw, (raw * normed).sum(-1, keepdim=True) / (raw * raw).sum(-1, keepdim=True).clamp_min(1e-30)

    @torch.no_grad()
    def _behind(self, stream: Float[Tensor, "n d_model"], found: Run) -> tuple[float, bool]:
        """By what logits are multiplied behind the unembedding, and whether they are changed otherwise."""
        plain = self._unembed(stream if self._norm is None else self._norm(stream)).to(self.dtype)
        logits = plain if found.asked_logits is None else found.asked_logits[:, -1].to(self.dtype)
        factor = float((plain * logits).sum() / (plain * plain).sum().clamp_min(1e-30))
        off = _FACTOR_OFF.get(stream.dtype, _OFF)
        capped = bool((factor * plain - logits).norm() > off * logits.norm())
        return (1.0 if capped else factor), capped

    @torch.no_grad()
    def logits(self, stream: Float[Tensor, "n d_model"]) -> Float[Tensor, "n vocab"]:
        """The logits that this residual stream gives, before a soft cap."""
        normed = stream if self._norm is None else self._norm(stream)
        given: Tensor = self._unembed(normed).to(self.dtype) * self._factor
        return given

    @torch.no_grad()
    def constant(self, ids: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """What the biases of the final norm and of the unembedding give to the logits of these tokens."""
        given: Tensor = self._unembed(self._zero)[0, ids.to(self._zero.device)].to(self.dtype) * self._factor
        return given

    def rows(self, ids: Int[Tensor, " n"]) -> Float[Tensor, "n d_model"]:
        """What the unembedding multiplies its input with to get the logits of these tokens."""
        weight = getattr(self._unembed, "weight", None)
        # Subclasses quantise or adapt their weights; offloaded weights are not here.
        if type(self._unembed) is nn.Linear and isinstance(weight, Tensor) and not weight.is_meta:
            return weight[ids.to(weight.device)].detach().to(self.gain)
        return torch.cat([self._rows_by_gradient(some) for some in ids.split(_ROWS)])

    def _rows_by_gradient(self, ids: Tensor) -> Tensor:
        with torch.enable_grad():
            like = next(p for p in self._unembed.parameters() if p.is_floating_point())
            inputs = torch.zeros(len(ids), len(self.gain), dtype=like.dtype, device=self.gain.device)
            inputs.requires_grad_()
            picked = self._unembed(inputs).gather(1, ids.to(inputs.device)[:, None]).sum()
            return torch.autograd.grad(picked, inputs)[0].to(self.dtype)

    @torch.no_grad()
    def slopes(
        self, stream: Float[Tensor, "n d_model"], rows: Float[Tensor, "n k d_model"]
    ) -> Float[Tensor, "n k d_model"]:
        """The gradients of logits, with the final norm's scale as it is at these positions.

        Args:
            stream: the residual stream in front of the final norm, in the model's own precision.
            rows: for each position some rows of the unembedding, or differences of them.
        """
        found = rows.to(self.gain) * self.gain * self._scaled(stream)[1][:, None]
        if self._centred:
            found = found - found.mean(-1, keepdim=True)
        return found * self._factor


@torch.no_grad()
def moved(
    wiring: Wiring,
    layer: int,
    parts: Float[Tensor, "n head d_head"],
    whole: Float[Tensor, "n head d_head"],
    slopes: Float[Tensor, "n k d_model"],
) -> Float[Tensor, "n head k"]:
    """The direct effects of parts of heads' outputs on logits.

    Args:
        wiring: the model.
        layer: of the heads.
        parts: of `z`, such as what comes from one position.
        whole: `z`; a norm behind the projection keeps the scale that it has there.
        slopes: the gradients of `k` logits.
    """
    at_once = max(1, _WRITTEN // (parts.shape[1] * wiring.layout.d_model))
    found = []
    for some, all_of, slope in zip(parts.split(at_once), whole.split(at_once), slopes.split(at_once), strict=True):
        written = outputs(wiring, layer, some, all_of)
        found.append(torch.einsum("nhd,nkd->nhk", written, slope.to(written.device)))
    return torch.cat(found)


def outputs(
    wiring: Wiring, layer: int, parts: Float[Tensor, "n head d_head"], whole: Float[Tensor, "n head d_head"]
) -> Float[Tensor, "n head d_model"]:
    """What parts of `z` add to the residual stream, in float32; a norm behind the projection keeps its scale."""
    written = head_outputs(wiring, layer, parts[:, None])[:, 0].float()
    if wiring.layout.attn_norm is None:
        return written
    projection = wiring.at(layer, wiring.layout.projection)
    own, real = (projection(x.flatten(-2)).float().norm(dim=-1)[:, None, None] for x in (parts, whole))
    kept: Tensor = written * own / real.clamp_min(1e-30)
    return kept


__all__ = ["Direct", "moved", "outputs"]
