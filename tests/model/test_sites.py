"""Names of sites: read, printed back, and refused with the nearest ones."""

from __future__ import annotations

import pytest

from interp_toolkit.errors import SiteError, UnknownSiteError
from interp_toolkit.model import COMPONENTS, Site
from interp_toolkit.model.sites import SHORT_NAMES


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("embed", Site("embed")),
        ("resid_pre.6", Site("resid_pre", 6)),
        (" resid_pre.6 ", Site("resid_pre", 6)),
        ("resid_post.-1", Site("resid_post", -1)),
        ("z.5.1", Site("z", 5, 1)),
        ("L5H1", Site("z", 5, 1)),
        ("L5MLP", Site("mlp_out", 5)),
        ("a5.h1", Site("z", 5, 1)),
        ("m5", Site("mlp_out", 5)),
        ("mlp.8", Site("mlp_out", 8)),
        ("attn.3", Site("attn_out", 3)),
        ("resid.3", Site("resid_pre", 3)),
        ("head.3.2", Site("z", 3, 2)),
        ("neuron.3.70", Site("mlp_post", 3, 70)),
        ("result.3.2", Site("head_out", 3, 2)),
        ("blocks.6.hook_resid_pre", Site("resid_pre", 6)),
        ("blocks.6.hook_resid_mid", Site("resid_mid", 6)),
        ("blocks.16.hook_mlp_out", Site("mlp_out", 16)),
        ("blocks.6.attn.hook_z", Site("z", 6)),
        ("blocks.6.attn.hook_rot_q", Site("q", 6)),
        ("blocks.6.attn.hook_k", Site("k", 6)),
        ("blocks.6.attn.hook_attn_scores", Site("scores", 6)),
        ("blocks.6.attn.hook_pattern", Site("pattern", 6)),
        ("blocks.6.attn.hook_result", Site("head_out", 6)),
        ("blocks.6.mlp.hook_post", Site("mlp_post", 6)),
        ("layers_output[6]", Site("resid_post", 6)),
        ("layers_output[-1]", Site("resid_post", -1)),
        ("layers_input[6]", Site("resid_pre", 6)),
        ("attentions_output[6]", Site("attn_out", 6)),
        ("mlps_output[6]", Site("mlp_out", 6)),
    ],
)
def test_sites_are_read_from_every_naming(text: str, expected: Site) -> None:
    assert Site.parse(text) == expected
    assert Site.parse(expected) is expected


@pytest.mark.parametrize("name", COMPONENTS)
def test_every_site_prints_as_what_reads_it_back(name: str) -> None:
    kind = COMPONENTS[name]
    site = Site(name, 4 if kind.per_layer else None, 2 if kind.index_axis else None)
    assert Site.parse(str(site)) == site
    assert hash(Site.parse(str(site))) == hash(site)
    assert site.whole.index is None
    assert repr(site) == f"Site('{site}')"
    assert site.whole.axes == kind.axes
    assert len(site.axes) == len(kind.axes) - (kind.index_axis is not None)


def test_short_names_stand_for_components() -> None:
    assert all(Site(short, 1).component == name for short, name in SHORT_NAMES.items())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("resid_prre.3", "there is no site 'resid_prre.3': did you mean 'resid_pre'"),
        ("mlpout.3", "did you mean 'mlp_out'"),
        ("patern.3", "'pattern'"),
        ("xyzzy", "sites are embed, resid_pre, q, k, v"),
        ("", "there is no site ''"),
        ("resid_pre.3.x", "there is no site"),
        ("blocks.6.hook_mlp_in", "there is no site 'blocks.6.hook_mlp_in'"),
        ("hook_embed", "TransformerLens' hook_embed is the token embedding alone"),
        ("hook_pos_embed", "not a site of their own"),
    ],
)
def test_unknown_names_show_the_nearest(text: str, words: str) -> None:
    with pytest.raises(UnknownSiteError) as caught:
        Site.parse(text)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Site("resid_pre"), "'resid_pre' needs a layer: write it as 'resid_pre.0'"),
        (lambda: Site("embed", 0), "'embed' has no layers, but layer 0 was given"),
        (lambda: Site("resid_pre", 0, 1), "'resid_pre' has no heads or neurons to select from"),
        (lambda: Site("z", 0, -1), "counts from 0, but -1 was given"),
    ],
)
def test_parts_that_do_not_fit_are_refused(make: object, words: str) -> None:
    with pytest.raises(SiteError, match=words):
        make()  # type: ignore[operator]


def test_layers_count_from_the_end_and_must_exist() -> None:
    assert Site("resid_pre", -1).at_depth(12) == Site("resid_pre", 11)
    assert Site("embed").at_depth(12) == Site("embed")
    for layer in (12, -13):
        with pytest.raises(SiteError, match="the model has 12 layers: 0 to 11, or -12 to -1 from the end"):
            Site("resid_pre", layer).at_depth(12)


def test_sites_sort_in_the_order_of_a_forward_pass() -> None:
    names = ["embed", "resid_pre.0", "q.0", "pattern.0", "z.0", "attn_out.0", "resid_mid.0", "mlp_post.0", "mlp_out.0"]
    names += ["resid_post.0", "resid_pre.1", "resid_post.1", "final_norm", "logits"]
    sites = [Site.parse(name) for name in names]
    backwards = sites[::-1]
    assert sorted(backwards, key=lambda site: site.depth(2)) == sites
