"""Statistical tests of a circuit after Shi et al. 2024, "Hypothesis Testing the Circuit Hypothesis in LLMs".

s is the metric of a prompt, C the circuit, M the whole model, and δ(A, B) the mean over prompts of (s_A − s_B)².

- Equivalence. Null hypothesis: the chance that s_C > s_M is within ε = 0.1 of 1/2. Exact binomial p-value at 1/2 + ε,
  the worst case of the hypothesis. Rejected: C is not equivalent to M.
- Independence: what is left without C has an s that is independent of s_M. Hilbert-Schmidt criterion (Gretton et al.
  2007), p-value from permutations of prompts. Rejected: the rest still knows of the behaviour.
- Minimality, for every edge e of C: δ(C, C without e) is above δ(C⁺, C⁺ without a), where C⁺ is C with a random path
  more and a an edge of that path, in at least q = 90% of the draws. Exact binomial p-value, the smallest one times the
  number of edges (Bonferroni). Rejected: some edge does no more than one added at random.
- Sufficiency: C is nearer to M, by δ, than at most q = 90% of random circuits of its size; one that is as near is not
  beaten. Exact binomial p-value. Rejected: C is better than chance.

The first three speak for the circuit when they are *not* rejected, which few prompts make easy; the last one when it
is. Its answer needs 29 random circuits at least; the paper has 100. Equivalence and independence ask how s goes with
s_M, which says nothing where s_M is one number for all prompts (`kl`, a distance from M; an accuracy of 1): they are
then not done, and say so.

Unlike the paper's code: prompts on which C and M agree up to rounding are left out of the equivalence test (as in a
sign test) instead of counting as losses; the width of each HSIC kernel is the median distance within its own variable;
a permutation p-value counts the given order too, (1 + k) / (1 + permutations), so that it is never 0; random circuits
have exactly as many edges as C. Random circuits share the prompts, so that tests against them say nothing about other
prompts. The paper's test of partial necessity (random complements) is not done.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from interp_toolkit.errors import CircuitError

PERMUTATIONS = 1000
_ROUNDING = 1e-5  # of the spread of the values: what differs by less does not differ
_EPSILONS = 16  # of the largest value, by which runs of other batches differ at least
_EQUIVALENCE = "the chance that the circuit has a larger metric than the model is within {:g} of 1/2"
_INDEPENDENCE = "the metric without the circuit's edges is independent of the model's, over prompts"


@dataclass(frozen=True, kw_only=True)
class TestResult:
    """What a test gave.

    Attributes:
        name: of the test.
        hypothesis: the null hypothesis in words.
        statistic: what was counted or measured: a share, or the HSIC; None if the test was not done.
        p_value: the chance of something as far from the hypothesis, if it holds; None if the test was not done.
        cases: prompts, or random circuits.
        level: it is rejected below 1 − this.
        meaning: what the outcome says, in words, or why the test was not done.
    """

    __test__ = False  # pytest would take it for one of its own

    name: str
    hypothesis: str
    statistic: float | None
    p_value: float | None
    cases: int
    level: float
    meaning: str

    @property
    def rejected(self) -> bool:
        """Whether the null hypothesis is rejected; False if the test was not done."""
        return self.p_value is not None and self.p_value < 1 - self.level

    def __str__(self) -> str:
        if self.p_value is None:
            return f"{self.name}: not done: {self.meaning}"
        outcome = "rejected" if self.rejected else "not rejected"
        return f"{self.name}: p = {self.p_value:.3g} ({outcome}): {self.meaning}"


def distance(first: Float[Tensor, "*cells prompt"], second: Float[Tensor, "*other prompt"]) -> Float[Tensor, "*cells"]:
    """δ: the mean over prompts of the squared difference, as the paper's code has it."""
    return (first - second).double().square().mean(-1)


def equivalence_and_independence(
    circuit: Float[Tensor, " prompt"],
    complement: Float[Tensor, " prompt"],
    model: Float[Tensor, " prompt"],
    ablated: Float[Tensor, " prompt"],
    *,
    level: float = 0.95,
) -> list[TestResult]:
    """The tests of equivalence and independence, where the model's metric differs between prompts.

    Args:
        circuit: the metric of each prompt in the circuit's run.
        complement: with all edges but the circuit's.
        model: in the model's run.
        ablated: without any edge: by its side is seen how large differences are.
        level: 1 − the p-value below which hypotheses are rejected.

    Example:
        >>> one, many = torch.ones(9), torch.arange(9.0)
        >>> [str(test)[:30] for test in equivalence_and_independence(many, many, one, one - 1)]
        ['equivalence: not done: the met', 'independence: not done: the me']
    """
    spread = float(model.max() - model.min())
    if spread > max(_rounding(model), _ROUNDING * float((model - ablated).abs().max())):
        return [equivalence_test(circuit, model, level=level), independence_test(complement, model, level=level)]
    reason = f"the metric is {float(model.mean()):z.4g} in the whole model, the same on all {len(model)} prompts"
    return [
        TestResult(
            name=name,
            hypothesis=hypothesis,
            statistic=None,
            p_value=None,
            cases=len(model),
            level=level,
            meaning=reason,
        )
        for name, hypothesis in (("equivalence", _EQUIVALENCE.format(0.1)), ("independence", _INDEPENDENCE))
    ]


# --- the four tests -----------------------------------------------------------------------------------------------


def equivalence_test(
    circuit: Float[Tensor, " prompt"], model: Float[Tensor, " prompt"], *, epsilon: float = 0.1, level: float = 0.95
) -> TestResult:
    """Whether circuit and model are better than each other equally often.

    Args:
        circuit: the metric of each prompt in the circuit's run.
        model: in the model's.
        epsilon: how far from 1/2 the chance may be.
        level: 1 − the p-value below which the hypothesis is rejected.

    Raises:
        CircuitError: for an epsilon that is not between 0 and 1/2.

    Example:
        >>> equivalence_test(torch.tensor([1.0, 3.0, 2.0, 5.0]), torch.tensor([2.0, 2.0, 3.0, 4.0])).p_value
        1.0
    """
    if not 0 <= epsilon < 0.5:
        raise CircuitError(f"epsilon is at least 0 and below 1/2, not {epsilon}")
    change = (circuit - model).double()
    differ = change.abs() > _rounding(torch.stack([circuit, model]))
    n, better = int(differ.sum()), int((change[differ] > 0).sum())
    far = abs(better - n / 2)
    chances = [_binomial(n, k, 0.5 + epsilon) for k in range(n + 1) if abs(k - n / 2) >= far - 1e-9]
    share = better / n if n else 0.5
    p_value = 1.0 if len(chances) == n + 1 else math.fsum(chances)
    meaning = f"the circuit has the larger metric on {better} of the {n} prompts on which the two differ, " + (
        "too one-sided for an equivalent of the model" if p_value < 1 - level else "as an equivalent of the model may"
    )
    return TestResult(
        name="equivalence",
        hypothesis=_EQUIVALENCE.format(epsilon),
        statistic=share,
        p_value=p_value,
        cases=n,
        level=level,
        meaning=meaning,
    )


def independence_test(
    complement: Float[Tensor, " prompt"],
    model: Float[Tensor, " prompt"],
    *,
    level: float = 0.95,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> TestResult:
    """Whether what is left without the circuit knows anything of how the model does on a prompt.

    Args:
        complement: the metric of each prompt with all edges but the circuit's.
        model: in the model's run.
        level: 1 − the p-value below which the hypothesis is rejected.
        permutations: of the prompts.
        seed: of the permutations.

    Example:
        >>> values = torch.arange(20.0)
        >>> independence_test(values, values).rejected
        True
    """
    first, second = _centred_kernel(complement), _centred_kernel(model)
    n = len(model)
    observed = float((first * second).sum())
    generator = torch.Generator().manual_seed(seed)
    as_large = 0
    for _ in range(permutations):
        order = torch.randperm(n, generator=generator)
        as_large += float((first * second[order][:, order]).sum()) >= observed * (1 - 1e-9)
    p_value = (1 + as_large) / (1 + permutations)
    return TestResult(
        name="independence",
        hypothesis=_INDEPENDENCE,
        statistic=observed / max(1, n - 1) ** 2,
        p_value=p_value,
        cases=n,
        level=level,
        meaning="what is left without the circuit still follows how the model does on a prompt"
        if p_value < 1 - level
        else "what is left without the circuit is not seen to follow the model",
    )


def minimality_test(
    parts: Float[Tensor, " part"],
    added: Float[Tensor, " draw"],
    *,
    names: Sequence[str] = (),
    quantile: float = 0.9,
    level: float = 0.95,
) -> TestResult:
    """Whether every edge does more than an edge that was added at random.

    Args:
        parts: δ(C, C without an edge), for each of its edges.
        added: δ(C with a random path, the same without one edge of the path), for each random path.
        names: of the edges, for the words.
        quantile: in what share of the draws an edge should do more.
        level: 1 − the p-value below which the hypothesis is rejected.

    Raises:
        CircuitError: without an edge or a draw.

    Example:
        >>> minimality_test(torch.tensor([5.0, 0.0]), torch.ones(50)).rejected
        True
    """
    _check_counts(len(parts), len(added), quantile)
    more = (parts[:, None] > added).sum(1)
    each = [_at_most(len(added), int(k), quantile) for k in more]
    needless = [n for n, p in enumerate(each) if p * len(parts) < 1 - level]
    shown = ", ".join(names[n] for n in needless[:3]) if names else ""
    meaning = (
        f"{len(needless)} of {len(parts)} edges do less than they should beside {len(added)} edges added at random"
    )
    return TestResult(
        name="minimality",
        hypothesis=f"each edge does more than an edge added at random, in at least {quantile:.0%} of the draws",
        statistic=float(more.min()) / len(added),
        p_value=min(1.0, min(each) * len(parts)),
        cases=len(added),
        level=level,
        meaning=meaning + (f": {shown}" + (", ..." if len(needless) > 3 else "") if needless and shown else ""),
    )


def sufficiency_test(
    circuit: float, random: Float[Tensor, " circuit"], *, quantile: float = 0.9, level: float = 0.95
) -> TestResult:
    """Whether the circuit is nearer to the model than random circuits of its size; as near is not nearer.

    Args:
        circuit: δ(C, M).
        random: δ(R, M) for each random circuit R.
        quantile: how many of all random circuits it should beat.
        level: 1 − the p-value below which the hypothesis is rejected.

    Raises:
        CircuitError: without a random circuit.

    Example:
        >>> sufficiency_test(0.1, torch.ones(100)).rejected, sufficiency_test(0.1, torch.ones(10)).rejected
        (True, False)
    """
    _check_counts(1, len(random), quantile)
    n, beaten = len(random), int((random > circuit * (1 + _ROUNDING)).sum())
    p_value = min(1.0, math.fsum(_binomial(n, k, quantile) for k in range(beaten, n + 1)))
    few = quantile**n >= 1 - level
    return TestResult(
        name="sufficiency",
        hypothesis=f"the circuit is nearer to the model than at most {quantile:.0%} of random circuits of its size",
        statistic=beaten / n,
        p_value=p_value,
        cases=n,
        level=level,
        meaning=f"it is nearer to the model than {beaten} of {n} random circuits of its size"
        + (", which are too few to decide" if few else ""),
    )


def _rounding(values: Float[Tensor, "*cells"]) -> float:
    """By how much values may differ from rounding alone."""
    spread, largest = float(values.max() - values.min()), float(values.abs().max())
    return max(_ROUNDING * spread, _EPSILONS * torch.finfo(values.dtype).eps * largest)


# --- chances ------------------------------------------------------------------------------------------------------


def _check_counts(parts: int, draws: int, quantile: float) -> None:
    if not parts or not draws or not 0 < quantile < 1:
        raise CircuitError(
            f"a comparison with random circuits needs one of them, a part of the circuit, and a share between 0 and 1, "
            f"not {draws}, {parts} and {quantile}"
        )


def _binomial(n: int, k: int, p: float) -> float:
    """The chance of k of n cases; by logarithms, which do not overflow."""
    ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(ways + k * math.log(p) + (n - k) * math.log1p(-p))


def _at_most(n: int, k: int, p: float) -> float:
    """The chance of at most k of n cases."""
    return min(1.0, math.fsum(_binomial(n, i, p) for i in range(k + 1)))


def _centred_kernel(values: Float[Tensor, " prompt"]) -> Float[Tensor, "prompt prompt"]:
    """The Gaussian kernel of some numbers, as wide as their median distance, with means of rows and columns of zero."""
    x = values.double()
    apart = (x[:, None] - x).abs()
    different = apart[apart > _rounding(values)]
    if not len(different):
        return torch.zeros_like(apart)
    kernel = torch.exp(-(apart**2) / (2 * different.median() ** 2))
    return kernel - kernel.mean(0) - kernel.mean(1)[:, None] + kernel.mean()


__all__ = [
    "PERMUTATIONS",
    "TestResult",
    "distance",
    "equivalence_and_independence",
    "equivalence_test",
    "independence_test",
    "minimality_test",
    "sufficiency_test",
]
