"""Which roles there are, the scores that each takes, and their thresholds.

Each test gives scores; a role holds where each of its scores reaches its threshold, and is never guessed. `A[t, s]` is
attention from position `t` to `s`, averaged over what is measured; random tokens are `r_1 … r_p, r_1 … r_p, …`, drawn
anew for each of 24 sequences, with three periods `p`.

| Score | What it is | Threshold |
|---|---|---|
| `previous_token` | `(A[t, t-1] − e) / (1 − e)` on random tokens, `e` the same for even attention \
(Voita et al. 2019) | 0.4 |
| `duplicate_token` | `A[t, t-p]` in the second copy, minus that at the same places of sequences with another period \
(Wang et al. 2022) | 0.25 |
| `induction_attention` | `A[t, t-p+1]` there, minus the same (Olsson et al. 2022) | 0.25 |
| `induction_copying` | what a head moves from `t-p+1`, `A[t, t-p+1] v W_O`, raises the logit of the token there above \
those of the other tokens: share of them it is above minus share below (Olsson et al. 2022) | 0.3 |
| `positional` | R² of attention by its mean over the other sequences, on random tokens, behind the first token and \
as far as it differs from even attention | 0.7 |
| `first_token` | `A[t, 0]` on random tokens (Xiao et al. 2023) | 0.7 |
| `prompt_first_token` | the same on prompts, at all positions or the last, whichever is less | 0.7 |
| `written` | `‖z W_O‖` on random tokens, beside the head of its layer that writes most: what is below is silent, \
wherever it looks, and has no role measured there but that of a sink | 0.1 |
| `prompt_written` | the same at the last position of prompts; for subject trackers | 0.1 |
| `answer_attention` | `A[end, s]` to earlier occurrences of the answer, 0 for even attention (Wang et al. 2022) | 0.2 |
| `answer_effect` | direct effect of what is moved from there on the answer's logit minus the foil's, in nats | 0.1 |
| `answer_certainty` | how surely that is not 0: Student's t over prompts, as a normal deviate | 3 |
| `subject_attention` | `A[end, s]` to the last token of the subject, 0 for even attention | 0.3 |
| `subject_share` | share of what the head writes at the end that is moved from there | 0.7 |
| `subject_certainty` | how surely that share is above a half, as above | 3 |
| `subject_effect` | its direct effect on the answer's logit minus the foil's, in nats; for information | none |
| `recall` | direct effect of what an MLP writes at the subject's last token on the answer's logit minus the foil's, \
in nats (Geva et al. 2023) | 0.3 |
| `recall_certainty` | how surely that is not 0, as above | 3 |

Thresholds lie above what weights without meaning give together and below what heads with these roles have. In
SmolLM2-135M with its weights shuffled, the most that any of 270 heads reached was, in the order of the table without
what is written, `subject_certainty`, `subject_effect` and MLPs: 0.07, 0.02, 0.01, 0.09, 0.28, 0.14, 0.49 (prompts of 5
tokens), 0.12, 0.04, 3.2, 0.42 (these too), 0.57. With its own weights it is 0.87, 0.74, 0.85, 0.97, 0.99, 0.97, 1.0,
0.73, 1.5, 9.2, 0.92, 1.0. MLPs reached 0.40 with shuffled weights, at a certainty of 1.9, and 3.3 with the model's own.
Prompts were 32 each of the tasks `ioi`, `induction` and `country_capital`, and of `gendered_pronoun` for the last
figure. Heads with a role that is measured on random tokens write at least 0.33 of their layer's most; heads that are
silent in a small model, trained to have some, wrote up to 0.07.

A single score can be beyond its threshold by chance where prompts are short, few or all of one form: in other shuffles
`subject_attention` and `subject_share` reached 0.40 and 0.70 in one head with 16 prompts, and more with two, at a
certainty of 2.8 at most. In four shuffles no head had a role on 2 and 16 prompts of `ioi`, and on 4, 16 and 32 of
`country_capital`. With a single prompt certainty is not known, and up to 24 of 270 heads had one.

Sources: Voita et al. 2019 (arXiv 1905.09418), Olsson et al. 2022 (2209.11895), Wang et al. 2022 (2211.00593), Geva et
al. 2023 (2304.14767), Xiao et al. 2023 (2309.17453).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from interp_toolkit.circuits.role_scores import PROMPT_SCORES, RANDOM_SCORES
from interp_toolkit.errors import CircuitError

HEAD_SCORES = (*RANDOM_SCORES, *PROMPT_SCORES)
"""The scores of a head, in the order of the columns of `RoleTable.scores`."""
THRESHOLDS: Mapping[str, float] = {
    "previous_token": 0.4,
    "duplicate_token": 0.25,
    "induction_attention": 0.25,
    "induction_copying": 0.3,
    "positional": 0.7,
    "first_token": 0.7,
    "written": 0.1,
    "prompt_written": 0.1,
    "prompt_first_token": 0.7,
    "answer_attention": 0.2,
    "answer_effect": 0.1,
    "answer_certainty": 3.0,
    "subject_attention": 0.3,
    "subject_share": 0.7,
    "subject_certainty": 3.0,
    "recall": 0.3,
    "recall_certainty": 3.0,
}
"""What each score has to reach."""


@dataclass(frozen=True, kw_only=True)
class RoleTest:
    """A role and the scores that it takes.

    Attributes:
        role: its name.
        score: the score that is shown for it.
        besides: further scores that have to reach their thresholds.
        sign: -1 where an effect has to be negative.
        known: scores that need not be known: the test goes without them.
        below: a score that must stay below its threshold.
        shown: a further score that is told.
        wrote: the score that says whether a head writes anything there, where that has to be; else None.
        where: what is measured on, in words.
    """

    role: str
    score: str
    besides: tuple[str, ...] = ()
    sign: float = 1.0
    known: tuple[str, ...] = ()
    below: str | None = None
    shown: str | None = None
    wrote: str | None = None
    where: str = "random tokens"

    def reached(self, scores: Mapping[str, float], thresholds: Mapping[str, float]) -> float:
        """How many times its threshold the weakest score is; the role holds from 1 on. NaN where it is not known."""
        ratios = []
        for name in (self.score, *self.besides):
            value = scores[name] * (self.sign if name.endswith("effect") else 1.0)
            if not (name in self.known and math.isnan(value)):
                ratios.append(value / thresholds[name])
        if any(map(math.isnan, ratios)):
            return math.nan
        if self.wrote is not None and not scores[self.wrote] >= thresholds[self.wrote]:
            return min(*ratios, math.nextafter(1.0, 0.0))  # just not: it looks there, but moves nothing
        if self.below is not None and not scores[self.below] < thresholds[self.below]:
            return 0.0
        return min(ratios)

    def words(self, scores: Mapping[str, float], thresholds: Mapping[str, float]) -> str:
        """The scores with what they have to reach."""
        shown = []
        for name in (self.score, *self.besides):
            if not math.isnan(scores[name]):
                least = thresholds[name] * (self.sign if name.endswith("effect") else 1.0)
                shown.append(f"{name.replace('_', ' ')} {scores[name]:.2f}, threshold {least:g}")
        if self.wrote is not None and scores[self.wrote] < thresholds[self.wrote]:
            shown.append(f"but it writes {scores[self.wrote]:.2f} of what a head of its layer does")
        if self.shown is not None and not math.isnan(scores[self.shown]):
            shown.append(f"{self.shown.replace('_', ' ')} {scores[self.shown]:.2f}")
        return f"{'; '.join(shown)}; on {self.where}"


_MOVED = ("answer_effect", "answer_certainty")
ROLE_TESTS = (
    RoleTest(role="previous token", score="previous_token", wrote="written"),
    RoleTest(role="duplicate token", score="duplicate_token", wrote="written", where="repeated random tokens"),
    RoleTest(
        role="induction",
        score="induction_attention",
        besides=("induction_copying",),
        wrote="written",
        where="repeated random tokens",
    ),
    RoleTest(
        role="name mover",
        score="answer_attention",
        besides=_MOVED,
        known=("answer_certainty",),
        where="the prompts",
    ),
    RoleTest(
        role="negative mover",
        score="answer_attention",
        besides=_MOVED,
        sign=-1.0,
        known=("answer_certainty",),
        where="the prompts",
    ),
    RoleTest(
        role="subject tracker",
        score="subject_attention",
        besides=("subject_share", "subject_certainty"),
        known=("subject_certainty",),
        wrote="prompt_written",
        shown="subject_effect",
        where="the prompts",
    ),
    RoleTest(role="positional", score="positional", below="first_token", wrote="written"),
    RoleTest(
        role="first token sink",
        score="first_token",
        besides=("prompt_first_token",),
        known=("prompt_first_token",),
        where="random tokens and the prompts",
    ),
)
"""The roles that a head can have."""
MLP_TESTS = (
    RoleTest(
        role="recall",
        score="recall",
        besides=("recall_certainty",),
        known=("recall_certainty",),
        where="the prompts",
    ),
)
"""The roles that an MLP can have."""


def checked(thresholds: dict[str, float]) -> dict[str, float]:
    """Thresholds that exist and mean something.

    Raises:
        CircuitError: for others.
    """
    unknown = [name for name in thresholds if name not in THRESHOLDS]
    wrong = [name for name, value in thresholds.items() if not (math.isfinite(value) and value > 0)]
    if unknown:
        raise CircuitError(f"there is no threshold {unknown[0]!r}: there are {', '.join(THRESHOLDS)}")
    if wrong:
        raise CircuitError(f"the threshold {wrong[0]!r} is a positive number, not {thresholds[wrong[0]]}")
    return thresholds


__all__ = ["HEAD_SCORES", "MLP_TESTS", "ROLE_TESTS", "THRESHOLDS", "RoleTest", "checked"]
