"""What patches did: results that say what made them."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from interp_toolkit.errors import FileFormatError
from interp_toolkit.provenance import Provenance

if TYPE_CHECKING:
    import pandas as pd

    from interp_toolkit.visualization.heatmaps import Heatmap

Direction = Literal["denoise", "noise"]
"""`"denoise"` puts clean activations into the corrupt run, `"noise"` corrupt ones into the clean run."""

_FORMAT = "interp_toolkit.patch/1"


@dataclass(frozen=True, kw_only=True)
class PatchResult:
    """What one patch did.

    Logit differences are logit(target) − logit(foil) at the last position, in nats.

    Attributes:
        site: what was patched.
        positions: at which positions of the prompt that was patched into.
        direction: `"denoise"`: clean activation into the corrupt run; `"noise"`: corrupt activation into the clean run.
        target: the clean answer's token.
        foil: the token it is compared with.
        foil_from: `"given"`, or how it was chosen.
        clean_logit_diff: of the clean run.
        corrupt_logit_diff: of the corrupt run.
        patched_logit_diff: of the patched run.
        probability_before: of the target, in the run that was patched into.
        probability_after: of the target, with the patch.
        top_before: the most probable tokens there, with their probabilities.
        top_after: the same with the patch.
        clean_tokens: the clean prompt as people read it.
        corrupt_tokens: the corrupt prompt.
        provenance: model, layout and versions.
    """

    site: str
    positions: tuple[int, ...]
    direction: Direction
    target: str
    foil: str
    foil_from: str
    clean_logit_diff: float
    corrupt_logit_diff: float
    patched_logit_diff: float
    probability_before: float
    probability_after: float
    top_before: tuple[tuple[str, float], ...]
    top_after: tuple[tuple[str, float], ...]
    clean_tokens: tuple[str, ...]
    corrupt_tokens: tuple[str, ...]
    provenance: Provenance = field(repr=False)

    @property
    def logit_diff_change(self) -> float:
        """Patched minus unpatched logit difference; positive is towards the clean answer."""
        before = self.corrupt_logit_diff if self.direction == "denoise" else self.clean_logit_diff
        return self.patched_logit_diff - before

    @property
    def normalized_effect(self) -> float:
        """The change as a fraction of clean − corrupt: 1 restores the clean answer, −1 destroys it, 0 does nothing.

        NaN when the two prompts do not differ in the answer.
        """
        gap = self.clean_logit_diff - self.corrupt_logit_diff
        return self.logit_diff_change / gap if abs(gap) > 1e-6 else math.nan

    def summary(self) -> str:
        """The result in words."""
        source, base = ("clean", "corrupt") if self.direction == "denoise" else ("corrupt", "clean")
        before = self.patched_logit_diff - self.logit_diff_change
        tokens = self.corrupt_tokens if self.direction == "denoise" else self.clean_tokens
        where = (
            "at every position"
            if len(self.positions) == len(tokens)
            else "at " + ", ".join(f"{p} {tokens[p]!r}" for p in self.positions)
        )
        chosen = "" if self.foil_from == "given" else f" ({self.foil_from})"
        effect = self.normalized_effect
        share = f"{effect:+.1%} of the difference between them"
        if math.isnan(effect):
            share = "the two prompts do not differ in it"
        return (
            f"Putting {self.site} of the {source} run into the {base} run {where} changes the logit difference "
            f"{self.target!r} − {self.foil!r}{chosen} by {self.logit_diff_change:+.3f}, from {before:.3f} to "
            f"{self.patched_logit_diff:.3f} (clean {self.clean_logit_diff:.3f}, corrupt "
            f"{self.corrupt_logit_diff:.3f}): {share}. The probability of {self.target!r} goes from "
            f"{self.probability_before:.3f} to {self.probability_after:.3f}."
        )

    def to_dict(self) -> dict[str, Any]:
        """All facts as plain data, with the derived numbers."""
        return {
            "format": _FORMAT,
            **asdict(self),
            "logit_diff_change": self.logit_diff_change,
            "normalized_effect": None if math.isnan(self.normalized_effect) else self.normalized_effect,
        }

    def to_dataframe(self) -> pd.DataFrame:
        """One row of numbers; needs pandas."""
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError('a data frame needs pandas: pip install "interpretability-toolkit[probes]"') from error

        numbers = {k: v for k, v in self.to_dict().items() if isinstance(v, str | float | int) or v is None}
        return pd.DataFrame([numbers])

    def save(self, path: str | Path) -> Path:
        """Write the result as JSON."""
        target = Path(path)
        target.write_text(json.dumps(self.to_dict(), indent=1, ensure_ascii=False), encoding="utf-8")
        return target

    @classmethod
    def load(cls, path: str | Path) -> PatchResult:
        """Read what `save` wrote.

        Raises:
            FileFormatError: when it is something else.
        """
        try:
            facts = json.loads(Path(path).read_text(encoding="utf-8"))
            if facts.pop("format") != _FORMAT:
                raise FileFormatError(f"{path} is not a saved patch")
            facts.pop("logit_diff_change")
            facts.pop("normalized_effect")
            facts["provenance"] = Provenance(**facts["provenance"])
            for name in ("positions", "clean_tokens", "corrupt_tokens"):
                facts[name] = tuple(facts[name])
            for name in ("top_before", "top_after"):
                facts[name] = tuple((token, p) for token, p in facts[name])
            return cls(**facts)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FileFormatError(f"{path} cannot be read as a saved patch: {error}") from error

    def plot(self) -> Heatmap:
        """A heat map of the most probable tokens, without the patch and with it."""
        from interp_toolkit.circuits.pictures import tokens_map

        return tokens_map(self)

    def _repr_html_(self) -> str:
        from interp_toolkit.circuits.pictures import with_words

        return with_words(self.summary(), self.plot())


__all__ = ["Direction", "PatchResult"]
