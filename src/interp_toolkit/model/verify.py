"""Proof of a layout on the model itself.

When a model is first used, a few short forward passes prove what its layout claims: sublayer outputs add up to the
residual stream, heads sum to what attention adds, patterns are causal and sum to one, readings leave the logits bitwise
as they were, and each edit changes exactly what it should. A site that fails is refused by name with the reason; the
other sites go on working. Shape checks would not do: a wrong tensor usually has the right shape.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from interp_toolkit.errors import UnsupportedModelError
from interp_toolkit.model.checks import check_everything
from interp_toolkit.model.layout import Layout
from interp_toolkit.model.proof import Finding, Proof
from interp_toolkit.model.sites import COMPONENTS, Site
from interp_toolkit.model.wiring import Wiring, forget, wiring_of


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What verification found out about a model.

    Attributes:
        layout: what was proved.
        findings: everything that was checked.
        refused: sites that may not be used, with the reason.
        padding: for each side, why padding is refused there, or None if it works.
    """

    layout: Layout
    findings: tuple[Finding, ...]
    refused: dict[Site, str]
    padding: dict[str, str | None]

    def components(self) -> dict[str, str]:
        """For each component: `"yes"`, `"some layers"`, or the reason why not."""
        table = {}
        for name, kind in COMPONENTS.items():
            layers = range(self.layout.num_layers) if kind.per_layer else [None]
            reasons = [self.refused.get(Site(name, layer)) for layer in layers]
            refused = [reason for reason in reasons if reason is not None]
            table[name] = "yes" if not refused else (refused[0] if len(refused) == len(reasons) else "some layers")
        return table

    def summary(self) -> str:
        """The findings in words.

        Example:
            >>> from transformers import GPT2Config, GPT2LMHeadModel
            >>> model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=11)).eval()
            >>> print(verify(model).summary().splitlines()[0])
            gpt2: 16 of 16 kinds of site verified
        """
        table = self.components()
        usable = sum(answer in ("yes", "some layers") for answer in table.values())
        lines = [f"{self.layout.model_type}: {usable} of {len(table)} kinds of site verified"]
        lines += [f"  {name}: {answer}" for name, answer in table.items() if answer != "yes"]
        lines += [f"  padding on the {side}: {reason}" for side, reason in self.padding.items() if reason]
        return "\n".join(lines)


def verify(model: nn.Module, layout: Layout | None = None) -> Verification:
    """Prove the layout of a model, or give the proof made earlier.

    Raises:
        UnsupportedModelError: when the model is not a decoder that this library can look into.
    """
    proof = verified(model, layout).proof
    if not isinstance(proof, Verification):
        raise UnsupportedModelError("the model was not verified")
    return proof


def verified(model: nn.Module, layout: Layout | None = None) -> Wiring:
    """The wiring of a model whose layout is proved.

    Raises:
        UnsupportedModelError: when the model is not a decoder that this library can look into.
    """
    wiring = wiring_of(model, layout)
    if wiring.proof is None:
        with wiring.lock:
            if wiring.proof is None:
                try:
                    wiring.proof = _proved(wiring)
                except BaseException:
                    forget(model)
                    raise
    return wiring


def _proved(wiring: Wiring) -> Verification:
    findings = check_everything(Proof(wiring))
    return Verification(
        layout=wiring.layout, findings=findings, refused=dict(wiring.refused), padding=dict(wiring.padding)
    )


__all__ = ["Finding", "Verification", "verified", "verify"]
