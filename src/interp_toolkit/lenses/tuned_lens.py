"""The tuned lens: a logit lens that first translates each depth's residual stream into that of the end."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp_toolkit.activations.files import load_tensors, save_tensors
from interp_toolkit.errors import FileFormatError, InterpWarning, LensError
from interp_toolkit.lenses.asking import Answers, asked
from interp_toolkit.lenses.logit_lens import LensResult, read_depths, streams
from interp_toolkit.lenses.tuning import Training, train_maps
from interp_toolkit.model.layout import Layout
from interp_toolkit.model.positions import PositionsLike
from interp_toolkit.model.tokens import Inputs, Tokens, encode, is_text, tokenizer_for
from interp_toolkit.model.verify import verified
from interp_toolkit.provenance import Provenance, provenance_of, same_name
from interp_toolkit.statistics import Estimate, bootstrap_mean

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedTokenizerBase

    from interp_toolkit.visualization import LineChart

_FORMAT = "interp_toolkit.tuned_lens/1"


@dataclass(frozen=True, kw_only=True, eq=False)
class TunedLens:
    """For each depth an affine map, behind which the model's own norm and unembedding read the residual stream.

    Make it with `TunedLens.train`, or `TunedLens.load` one that was saved.

    Attributes:
        model: the model it was trained for.
        layout: given for a model class of your own.
        weight: for each depth but the last; `weight @ stream + bias` is added to the stream.
        bias: see there.
        kl: on held-out texts, from what the model says to what the lens says, in nats, the mean over tokens.
        kl_plain: the same of the logit lens.
        about: how it was trained.
        provenance: model, layout and versions.
    """

    model: nn.Module = field(repr=False)
    layout: Layout | None = field(default=None, repr=False)
    weight: Float[Tensor, "depth d_model d_model"] = field(repr=False)
    bias: Float[Tensor, "depth d_model"] = field(repr=False)
    kl: Float[Tensor, "text depth"] = field(repr=False)
    kl_plain: Float[Tensor, "text depth"] = field(repr=False)
    about: Mapping[str, Any]
    provenance: Provenance = field(repr=False)

    @classmethod
    def train(
        cls,
        model: nn.Module,
        texts: Sequence[str] | Sequence[Sequence[int]] | Tensor,
        *,
        training: Training | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        layout: Layout | None = None,
    ) -> TunedLens:
        """Train a lens on text.

        Each depth begins at a ridge regression of the last residual stream on its own, which takes little more than
        the model's passes over the texts; with `Training(epochs=0)` that is all. A step of training costs one pass
        through the unembedding and back for every token and depth; the model itself runs once over the texts where
        their residual streams fit into two gigabytes. The same texts and seed give the same lens.

        Args:
            model: a causal language model, as it is.
            texts: at least four documents, as texts or token ids. Some are held out.
            training: how; see `Training`.
            tokenizer: for texts, when the model does not say where it comes from.
            layout: for a model class of your own.

        Raises:
            LensError: for too few texts, and settings that cannot be.
            TokenError: for what cannot be read as text.

        Example:
            >>> from transformers import GPT2Config, GPT2LMHeadModel
            >>> model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=11)).eval()
            >>> lens = TunedLens.train(model, [[1, 2, 3, 4]] * 8, training=Training(epochs=1))
            >>> lens.read([1, 2, 3]).depths
            ('embed', '0', '1')
        """
        training = training or Training()
        wiring = verified(model, layout)
        trained = train_maps(wiring, _documents(model, texts, tokenizer), training)
        names = ("trained on", "stopped by", "judged on")
        return cls(
            model=model,
            layout=layout,
            weight=trained.weight,
            bias=trained.bias,
            kl=trained.kl,
            kl_plain=trained.kl_plain,
            about={
                "training": asdict(training),
                "epochs": list(trained.epochs),
                "penalties": [p if math.isfinite(p) else None for p in trained.penalties],
                "texts": dict(zip(names, trained.texts, strict=True)),
            },
            provenance=provenance_of(model, wiring.layout),
        )

    @torch.no_grad()
    def read(
        self,
        prompt: Inputs,
        answers: Answers = None,
        *,
        positions: PositionsLike = "all",
        top: int = 5,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> LensResult:
        """Read what the residual stream says at each depth; see `logit_lens`."""
        question = asked(self.model, prompt, answers, positions=positions, tokenizer=tokenizer, layout=self.layout)
        stream = streams(question)
        moved = self.translated(stream[:-1])
        return read_depths(question, torch.cat([moved, stream[-1:]]), top, "tuned lens")

    def translated(self, stream: Float[Tensor, "depth pos d_model"]) -> Float[Tensor, "depth pos d_model"]:
        """The residual stream of all depths but the last, translated into that of the end."""
        wide = torch.promote_types(stream.dtype, torch.float32)
        x, weight, bias = stream.to(wide), self.weight.to(stream.device, wide), self.bias.to(stream.device, wide)
        return (x + x @ weight.mT + bias[:, None]).to(stream.dtype)

    @property
    def depths(self) -> tuple[str, ...]:
        """The depths that have a map."""
        return ("embed", *map(str, range(len(self.weight) - 1)))

    def estimates(self) -> tuple[Estimate, Estimate]:
        """The held-out divergence of this lens and of the logit lens by depth, with 95% intervals over texts."""
        return bootstrap_mean(self.kl), bootstrap_mean(self.kl_plain)

    def summary(self) -> str:
        """What was gained, in words."""
        own, plain = self.kl.mean(0), self.kl_plain.mean(0)
        texts = self.about["texts"]
        better = int((own < plain).sum())
        on = f"trained on {texts['trained on']} texts, stopped by {texts['stopped by']}, judged on {texts['judged on']}"
        first = (
            f"Tuned lens of {self.provenance.model}, {on}. Its divergence from what the model says (KL, nats a token) "
            f"is {float(own.mean()):.3f} on average over depths, that of the logit lens {float(plain.mean()):.3f}; it "
            f"is smaller at {better} of {len(own)} depths."
        )
        width = max(map(len, self.depths))
        lines = [
            f"  {depth:>{width}}  {a:7.3f}  (logit lens {b:7.3f})"
            for depth, a, b in zip(self.depths, own.tolist(), plain.tolist(), strict=True)
        ]
        return "\n".join([first, *lines])

    def to_dataframe(self) -> pd.DataFrame:
        """A row for each depth: divergence with its interval, of this lens and of the logit lens. Needs pandas."""
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError('a data frame needs pandas: pip install "interpretability-toolkit[probes]"') from error
        columns: dict[str, Any] = {"depth": self.depths, "epochs": self.about["epochs"]}
        for name, found in zip(("kl", "kl_logit_lens"), self.estimates(), strict=True):
            columns |= {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}
        return pd.DataFrame({k: v.tolist() if isinstance(v, Tensor) else v for k, v in columns.items()})

    def plot(self) -> LineChart:
        """The held-out divergence by depth, beside that of the logit lens; `.save` writes HTML, SVG, PNG or PDF."""
        from interp_toolkit.lenses.pictures import tuned_chart

        return tuned_chart(self)

    def _repr_html_(self) -> str:
        return self.plot()._repr_html_()

    def save(self, path: str | Path) -> Path:
        """Write the maps and how good they are as safetensors."""
        tensors = {"weight": self.weight, "bias": self.bias, "kl": self.kl, "kl_plain": self.kl_plain}
        return save_tensors(path, tensors, kind=_FORMAT, about=self.about, provenance=self.provenance)

    @classmethod
    def load(cls, path: str | Path, model: nn.Module, *, layout: Layout | None = None) -> TunedLens:
        """Read what `save` wrote, for the model that it was trained for.

        Raises:
            FileFormatError: when the file is something else, or damaged.
            LensError: when the model has other layers, or another width.
        """
        tensors, about, provenance = load_tensors(path, kind=_FORMAT, what="a tuned lens")
        shape = verified(model, layout).layout
        missing = sorted({"weight", "bias", "kl", "kl_plain"} - set(tensors))
        if missing or not {"training", "epochs", "texts"} <= set(about):
            raise FileFormatError(f"{path} is damaged: it has no {', '.join(missing) or 'account of its training'}")
        wanted, found = (shape.num_layers, shape.d_model, shape.d_model), tuple(tensors["weight"].shape)
        if found != wanted:
            raise LensError(
                f"the lens in {path} was trained for {provenance.model} and has maps of shape {found}; this model "
                f"({provenance_of(model, shape).model}) needs {wanted}"
            )
        here = provenance_of(model, shape)
        if not same_name(here.model, provenance.model) or here.model_type != provenance.model_type:
            warnings.warn(
                f"the lens in {path} was trained for {provenance.model}, and this model is {here.model}: where their "
                "weights differ, it does not say what this model would say",
                InterpWarning,
                stacklevel=2,
            )
        return cls(model=model, layout=layout, **tensors, about=about, provenance=provenance)


def _documents(model: nn.Module, texts: Any, tokenizer: PreTrainedTokenizerBase | None) -> list[Tensor]:
    """Texts as token ids, none of them empty."""
    if isinstance(texts, str):
        raise LensError("a tuned lens is trained on several texts: give a list of them")
    rows = list(texts) if not isinstance(texts, Tensor) else list(texts.unbind()) if texts.ndim == 2 else []
    if not rows or isinstance(rows[0], int):
        raise LensError("a tuned lens is trained on several texts: give a list of texts, or token ids for each")
    chosen = tokenizer_for(model, tokenizer) if is_text(rows) else tokenizer
    found: list[Tensor] = []
    for row in rows:
        tokens: Tokens = encode(row, tokenizer=chosen)
        found.append(torch.tensor(tokens.row()))
    return found


__all__ = ["TunedLens"]
