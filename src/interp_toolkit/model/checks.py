"""What has to hold in a model before its sites are used: see `verify`, which runs all of this.

Each check makes claims about tensors of a few forward passes. A claim that fails refuses the sites it names.
"""

from __future__ import annotations

from typing import Literal

import torch
from tqdm import tqdm

from interp_toolkit.model.edits import Edit
from interp_toolkit.model.heads import projection_bias
from interp_toolkit.model.proof import LENGTH, REFUSALS, Finding, Proof
from interp_toolkit.model.sites import Site
from interp_toolkit.model.tokens import encode

_STREAM = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
_SEQUENTIAL = {
    "attn_out": (("resid_mid", 0), ("resid_pre", 0)),
    "mlp_out": (("resid_post", 0), ("resid_mid", 0)),
    "resid_pre": (("resid_mid", 0), ("attn_out", 0)),
    "resid_mid": (("resid_post", 0), ("mlp_out", 0)),
    "resid_post": (("resid_pre", 1),),
}
_WITHOUT_MID = {
    "attn_out": (("resid_post", 0), ("resid_pre", 0), ("mlp_out", 0)),
    "mlp_out": (("resid_post", 0), ("resid_pre", 0), ("attn_out", 0)),
    "resid_pre": (("resid_post", 0), ("attn_out", 0), ("mlp_out", 0)),
    "resid_post": (("resid_pre", 1),),
}
"""For each site that is set: the first of these sites, without the others, has to equal what was set."""


def check_everything(proof: Proof) -> tuple[Finding, ...]:
    """Run every check; the sites that fail one are refused in the wiring."""
    with proof.evaluating():
        proof.read_everything()
        checks = (
            sublayers_add_up,
            heads_add_up,
            stream_edits_arrive,
            end_edits_arrive,
            head_edits_arrive,
            patterns_are_causal,
            attention_edits_arrive,
            score_edits_arrive,
            neuron_edits_arrive,
            resuming_changes_nothing,
            padding_changes_nothing,
        )
        for check in tqdm(checks, desc="verifying", disable=None, leave=False, delay=2):
            check(proof)
    return tuple(proof.findings)


def sublayers_add_up(proof: Proof) -> None:
    """The residual stream is what entered plus what the sublayers add; what leaves a block enters the next."""
    read = proof.base
    for layer in proof.layers:
        pre, post = (read.get(Site(f"resid_{p}", layer)) for p in ("pre", "post"))
        if pre is None or post is None:
            continue
        before = read.get(Site("resid_post", layer - 1)) if layer else None
        if before is not None:
            proof.claim("what leaves a block enters the next", [Site("resid_pre", layer)], pre, before)
        attn, mid, mlp = (read.get(Site(name, layer)) for name in ("attn_out", "resid_mid", "mlp_out"))
        if attn is None or mlp is None:
            continue
        if mid is None:
            both = [Site("attn_out", layer), Site("mlp_out", layer)]
            proof.claim(
                "resid_pre + attn_out + mlp_out = resid_post", both, post - pre, attn + mlp, post.abs() + pre.abs()
            )
            continue
        first, second = Site("attn_out", layer), Site("mlp_out", layer)
        middle = Site("resid_mid", layer)
        proof.claim("resid_pre + attn_out = resid_mid", [first, middle], mid - pre, attn, mid.abs() + pre.abs())
        proof.claim("resid_mid + mlp_out = resid_post", [second, middle], post - mid, mlp, post.abs() + mid.abs())


def heads_add_up(proof: Proof) -> None:
    """What the heads write, and the projection's bias, is what attention adds."""
    for site in proof.usable("head_out"):
        layer = site.layer or 0
        z, attn = proof.base.get(Site("z", layer)), proof.base.get(Site("attn_out", layer))
        if z is None or attn is None or Site("attn_out", layer) in proof.wiring.refused:
            proof.refuse("heads and bias sum to attn_out", (site,), "z or attn_out is not available")
            continue
        with torch.no_grad():
            bias = projection_bias(proof.wiring, layer, z)
        heads = proof.base[site]
        proof.claim("heads and bias sum to attn_out", [site], heads.sum(-2) + bias, attn, heads.abs().sum(-2))


def patterns_are_causal(proof: Proof) -> None:
    """Patterns are softmaxes over what came before, and times the values they are z."""
    for site in proof.usable("pattern"):
        pattern = proof.base[site]
        sums = pattern.sum(-1, keepdim=True)
        text = "each row of the pattern sums to one, or to less where there is a sink"
        proof.claim(text, [site], sums.clamp_max(1.0), sums)
        ahead = pattern.triu(1).sum(-1, keepdim=True)
        proof.claim("no position attends to a later one", [site], ahead + 1, torch.ones_like(ahead))
        scores = proof.base.get(Site("scores", site.layer))
        if scores is not None and bool((sums > 0.99).all()):
            soft = torch.softmax(scores.float(), -1).to(pattern.dtype)
            proof.claim("softmax of scores = pattern", [Site("scores", site.layer)], soft, pattern)
        z, v = proof.base.get(Site("z", site.layer)), proof.base.get(Site("v", site.layer))
        trusted = Site("z", site.layer) not in proof.wiring.refused
        if trusted and z is not None and v is not None and z.shape[2] == pattern.shape[1]:
            values = v.repeat_interleave(z.shape[2] // v.shape[2], 2).transpose(1, 2)
            product = (pattern.to(values.dtype) @ values).transpose(1, 2)
            sites = [site, Site("scores", site.layer)]
            largest = values.abs().amax(2, keepdim=True).transpose(1, 2)
            proof.claim("pattern times values = z", sites, product, z, largest)


def stream_edits_arrive(proof: Proof) -> None:
    """What is set in the residual stream or added to it is what the next site sees."""
    sequential = all(site in proof.base for layer in proof.layers for site in [Site("resid_mid", layer)])
    for component, parts in (_SEQUENTIAL if sequential else _WITHOUT_MID).items():
        edits, values = proof.set_all(component)
        if not edits:
            continue
        read, _ = proof.pass_(_STREAM, edits, stop=True)
        for site, value in values.items():
            layer = site.layer or 0
            there = [Site(name, layer + later) for name, later in parts if layer + later in proof.layers]
            if len(there) == len(parts) and all(part in read for part in there):
                left = noise = read[there[0]]
                noise = noise.abs()
                for part in there[1:]:
                    left, noise = left - read[part], noise + read[part].abs()
                proof.claim("setting it changes the residual stream to match", [site], left, value, noise)


def end_edits_arrive(proof: Proof) -> None:
    """What is set at the embedding enters block 0; the logits follow from what is set at the final norm."""
    for site in proof.usable("embed"):
        value = proof.like(proof.base[site])
        read, _ = proof.pass_(["resid_pre"], [Edit.set(site, value)], stop=True)
        first = read.get(Site("resid_pre", 0))
        if first is not None:
            proof.claim("setting it changes what enters block 0", [site], first, value)
    for site in proof.usable("final_norm"):
        value = proof.like(proof.base[site][:, :1])
        _, logits = proof.pass_([], [Edit.set(site, value)])
        proof.claim("the logits follow from it alone", [site], logits, logits[:, :1].expand_as(logits))


def head_edits_arrive(proof: Proof) -> None:
    """What is set at z goes through the projection; a head's output that is set to zero is missing."""
    edits, values = proof.set_all("z")
    read, _ = proof.pass_(["attn_out"], edits, stop=True)
    layout = proof.wiring.layout
    for site, value in values.items():
        attn = read.get(Site("attn_out", site.layer))
        if attn is not None:
            with torch.no_grad():
                expected = proof.wiring.at(site.layer or 0, layout.projection)(value.flatten(-2))
                if layout.attn_norm is not None:
                    expected = proof.wiring.at(site.layer or 0, layout.attn_norm)(expected)
            proof.claim("setting it changes attn_out by its projection", [site], attn, expected * layout.multiplier)
    for site in proof.usable("head_out")[-1:]:
        read, _ = proof.pass_(["attn_out"], [Edit.set(Site("head_out", site.layer, 0), 0.0)], stop=True)
        before, heads = proof.base[Site("attn_out", site.layer)], proof.base[site]
        after = read[Site("attn_out", site.layer)]
        noise = before.abs() + heads.abs().sum(-2)
        proof.claim("a head set to zero is missing from attn_out", [site], after, before - heads[:, :, 0], noise)


def attention_edits_arrive(proof: Proof) -> None:
    """Values and patterns that are set decide z; queries and keys decide the scores."""
    values = proof.usable("v")
    read, _ = proof.pass_(["z"], [Edit.set(site, 0.0) for site in values], stop=True)
    for site in values:
        z = read.get(Site("z", site.layer))
        if z is not None:
            proof.claim("with all values zero, z is zero", [site], z + 1, torch.ones_like(z))
    eye = torch.eye(LENGTH, device=proof.logits.device)
    read, _ = proof.pass_(["z", "v"], [Edit.set(site, eye) for site in proof.usable("pattern")], stop=True)
    for site in proof.usable("pattern"):
        z, v = read.get(Site("z", site.layer)), read.get(Site("v", site.layer))
        if z is not None and v is not None:
            own = v.repeat_interleave(max(1, z.shape[2] // v.shape[2]), 2)
            sites = [site, Site("v", site.layer)]
            proof.claim("attending only to oneself, z is one's own value", sites, z, own)


def score_edits_arrive(proof: Proof) -> None:
    """Scores are a product of queries and keys, and decide the pattern."""
    eye = torch.eye(LENGTH, device=proof.logits.device)
    alone = torch.where(eye.bool(), 0.0, -1e4)
    read, _ = proof.pass_(["pattern"], [Edit.set(site, alone) for site in proof.usable("scores")], stop=True)
    for site in proof.usable("scores"):
        pattern = read.get(Site("pattern", site.layer))
        if pattern is not None:
            text = "scores set to oneself alone make such a pattern"
            proof.claim(text, [site], pattern, pattern * eye.to(pattern.dtype))
    keys, queries = proof.usable("k"), proof.usable("q")
    without_k, _ = proof.pass_(["scores"], [Edit.set(site, 0.0) for site in keys], stop=True)
    without_q, _ = proof.pass_(["scores"], [Edit.set(site, 0.0) for site in queries], stop=True)
    for site in proof.usable("scores"):
        sites = (Site("q", site.layer), Site("k", site.layer))
        if not all(s in proof.base for s in sites):
            continue
        base, a, b = proof.base[site], without_k[site], without_q[site]
        allowed = base > -1e4
        a, b, base = (torch.where(allowed, x, 0.0) for x in (a, b, base))
        proof.claim("scores are a product of queries and keys", sites, a + 1, b + 1)
        if torch.equal(a, base):
            proof.refuse("setting it changes the scores", sites, "they stayed the same")


def neuron_edits_arrive(proof: Proof) -> None:
    """`mlp_post` alone decides `mlp_out`, by a linear map (up to a norm behind it)."""
    sites = proof.usable("mlp_post")
    if not sites:
        return
    vectors = {site: proof.like(proof.base[site][:1, :1]) for site in sites}
    passes = [
        proof.pass_(["mlp_out"], [Edit.set(site, scale * vector) for site, vector in vectors.items()], stop=True)[0]
        for scale in (0.0, 1.0, 2.0)
    ]
    for site in sites:
        if Site("mlp_out", site.layer) not in passes[0]:
            continue
        zero, once, twice = (read[Site("mlp_out", site.layer)] for read in passes)
        same = once[:1, :1].expand_as(once)
        proof.claim("mlp_out follows from it alone", [site], once, same, once.abs())
        if torch.equal(once, proof.base[Site("mlp_out", site.layer)]):
            proof.refuse("setting it changes mlp_out", (site,), "it stayed the same")
        layout = proof.wiring.layout
        normed = layout.mlp_out not in (layout.mlp, layout.down)
        expected = once if normed else 2 * once - zero
        proof.claim("mlp_out is a linear map of it", [site], twice, expected, once.abs() + zero.abs())


def resuming_changes_nothing(proof: Proof) -> None:
    """A run that starts in the middle, from its own residual stream, ends the same."""
    layer = proof.wiring.layout.num_layers // 2
    if Site("resid_pre", layer) not in proof.base:
        return
    _, logits = proof.pass_(start=(layer, proof.base[Site("resid_pre", layer)]))
    proof.claim(f"starting at layer {layer} from its own residual gives the same logits", (), logits, proof.logits)


def padding_changes_nothing(proof: Proof) -> None:
    """A padded prompt gives what it gives alone, within what the company of another prompt changes anyway."""
    padding = proof.wiring.padding
    if "attention_mask" not in proof.wiring.accepts:
        padding.update(dict.fromkeys(padding, "its forward takes no attention mask"))
        return
    short = proof.tokens.ids[1:, :4]
    last = Site("resid_post", proof.layers[-1])
    if last not in proof.base:
        return
    alone = proof.pass_(["resid_post"], tokens=encode(short), stop=True)[0][last]
    beside = proof.pass_(["resid_post"], tokens=encode(proof.tokens.ids[:, :4]), stop=True)[0][last][1:]
    company = float((alone - beside).norm(dim=-1).max())
    rows = [proof.tokens.ids[0].tolist(), short[0].tolist()]
    sides: tuple[tuple[Literal["left", "right"], slice], ...] = (
        ("left", slice(LENGTH - 4, LENGTH)),
        ("right", slice(0, 4)),
    )
    for side, columns in sides:
        try:
            padded, _ = proof.pass_(["resid_post"], tokens=encode(rows, padding_side=side), stop=True)
        except REFUSALS as error:
            padding[side] = f"{type(error).__name__}: {error}"
            continue
        text = f"padding on the {side} changes nothing"
        if not proof.claim(text, (), padded[last][1:, columns], alone, slack=4 * company):
            padding[side] = "the model's own forward does not give the same results as without padding"


__all__ = ["check_everything"]
