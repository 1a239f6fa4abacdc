"""What a patchscope showed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from interp_toolkit.provenance import Provenance

if TYPE_CHECKING:
    import pandas as pd

    from interp_toolkit.visualization import Heatmap


@dataclass(frozen=True, kw_only=True)
class Patchscope:
    """What a model says of an activation that was put into another prompt.

    Attributes:
        source: the site where it was read.
        target: the site where it was set.
        source_token: the token at which it was read.
        source_position: its position.
        target_token: the token at which it was set.
        target_position: its position.
        source_tokens: the source prompt.
        target_tokens: the target prompt.
        generated: what the model goes on with, token by token.
        text: the same as text.
        plain_text: what it goes on with without the patch.
        top: the most probable next tokens with their probabilities.
        plain_top: the same without the patch.
        provenance: model, layout and versions.
    """

    source: str
    target: str
    source_token: str
    source_position: int
    target_token: str
    target_position: int
    source_tokens: tuple[str, ...]
    target_tokens: tuple[str, ...]
    generated: tuple[str, ...]
    text: str
    plain_text: str
    top: tuple[tuple[str, float], ...]
    plain_top: tuple[tuple[str, float], ...]
    provenance: Provenance = field(repr=False)

    def summary(self) -> str:
        """The result in words."""
        return (
            f"{self.source} at {self.source_position} {self.source_token!r}, put into {self.target} at "
            f"{self.target_position} {self.target_token!r}: the model says {self.text!r} (first token "
            f"{self.top[0][0]!r}, {self.top[0][1]:.2f}). Without the patch it says {self.plain_text!r} "
            f"({self.plain_top[0][0]!r}, {self.plain_top[0][1]:.2f})."
        )

    def to_dataframe(self) -> pd.DataFrame:
        """A row for each of the most probable next tokens, with the patch and without. Needs pandas."""
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError('a data frame needs pandas: pip install "interpretability-toolkit[probes]"') from error
        both = (("patched", self.top), ("plain", self.plain_top))
        return pd.DataFrame([{"run": run, "token": t, "probability": p} for run, top in both for t, p in top])

    def plot(self) -> Heatmap:
        """The most probable next tokens, with the patch and without."""
        from interp_toolkit.lenses.pictures import patchscope_map

        return patchscope_map(self)

    def _repr_html_(self) -> str:
        return self.plot()._repr_html_()


@dataclass(frozen=True, kw_only=True, eq=False)
class PatchscopeSweep:
    """Patchscopes from some layers to others.

    Attributes:
        component: of both sites.
        source_layers: where activations were read.
        target_layers: where they were set.
        answer: the token that is followed, or None where it is each cell's own best one.
        plain_probability: the answer's without a patch; without an answer that of the best token there.
        probability: of the answer, or of each cell's best token.
        first: each cell's most probable next token.
        texts: what is generated in each cell.
        source_token: the token at which activations were read.
        target_token: the token at which they were set.
        provenance: model, layout and versions.
    """

    component: str
    source_layers: tuple[int, ...]
    target_layers: tuple[int, ...]
    answer: str | None
    plain_probability: float
    probability: Float[Tensor, "source target"]
    first: tuple[tuple[str, ...], ...]
    texts: tuple[tuple[str, ...], ...]
    source_token: str
    target_token: str
    provenance: Provenance = field(repr=False)

    @property
    def best(self) -> tuple[int, int]:
        """The source and target layer with the highest probability."""
        row, column = divmod(int(self.probability.argmax()), len(self.target_layers))
        return self.source_layers[row], self.target_layers[column]

    def summary(self) -> str:
        """The result in words."""
        source, target = self.best
        text = self.texts[self.source_layers.index(source)][self.target_layers.index(target)]
        followed = "of the best next token" if self.answer is None else f"of {self.answer!r}"
        return (
            f"{self.component} at {self.source_token!r}, put from {len(self.source_layers)} layers into "
            f"{len(self.target_layers)} layers at {self.target_token!r}: the probability {followed} is highest from "
            f"layer {source} to layer {target}, {float(self.probability.max()):.2f} ({self.plain_probability:.2f} "
            f"without a patch). There the model says {text!r}."
        )

    def to_dataframe(self) -> pd.DataFrame:
        """A row for each pair of layers. Needs pandas."""
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError('a data frame needs pandas: pip install "interpretability-toolkit[probes]"') from error
        rows = [
            {
                "source_layer": source,
                "target_layer": target,
                "probability": float(self.probability[s, t]),
                "first": self.first[s][t],
                "text": self.texts[s][t],
            }
            for s, source in enumerate(self.source_layers)
            for t, target in enumerate(self.target_layers)
        ]
        return pd.DataFrame(rows)

    def plot(self) -> Heatmap:
        """Source layers by target layers, with what the model says on hover."""
        from interp_toolkit.lenses.pictures import patchscope_sweep_map

        return patchscope_sweep_map(self)

    def _repr_html_(self) -> str:
        return self.plot()._repr_html_()


__all__ = ["Patchscope", "PatchscopeSweep"]
