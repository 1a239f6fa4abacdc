"""How the maps of a tuned lens are found.

For each depth one affine map of the residual stream is trained so that what the model says of it comes close to what it
says at the end: the KL divergence from the model's own distribution, averaged over tokens (Belrose et al. 2023,
"Eliciting Latent Predictions from Transformers with the Tuned Lens", equation 8).

The map is trained in the stream's own units: it sees each channel centred and divided by its standard deviation, and
what it adds is in units of the stream's size at that depth. Otherwise the few channels that are a thousand times
larger than the others would decide how far a step goes. It begins at the ridge regression of the last residual stream
on that of its depth (see `closed_form`), whose penalty is chosen by divergence on text set apart for stopping. Nothing,
which is the logit lens, is among the choices, and each depth keeps the map that is best on that text; so it is never
worse there than the logit lens.

The first token counts as the others do, though it is a hundred times longer in many models. Left out, its own reading
falls apart, because no map has seen anything like it, and that of others gains next to nothing: it is about the same
vector in every text, and takes no more than one direction of the regression.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from interp_toolkit.errors import LensError
from interp_toolkit.lenses.closed_form import PENALTIES, gathered, held_together, precise
from interp_toolkit.lenses.logit_lens import depth_sites
from interp_toolkit.lenses.unembedding import Unembedding
from interp_toolkit.model.run import run
from interp_toolkit.model.tokens import Tokens
from interp_toolkit.model.wiring import Wiring
from interp_toolkit.statistics import kl_divergence

_KEPT = 2 << 30  # bytes of residual streams that are kept between epochs
_AT_ONCE = 1 << 24  # logits that are held at once
_CHOOSING = 256  # tokens at least, where there are so many, that choose among penalties
_RATE_LOSS = 0.5  # the learning rate's factor after an epoch that did not help


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a tuned lens is trained.

    Attributes:
        epochs: how often the text is seen at most; with 0, the maps are those of the closed form.
        learning_rate: of AdamW, for a stream of one channel; it is divided by the stream's width.
        weight_decay: towards the logit lens.
        batch_tokens: tokens of a step.
        patience: a depth stops after so many epochs without getting better on the text for stopping.
        length: texts are cut into pieces of at most so many tokens.
        held_out: share of the texts that is not trained on: one half decides when to stop, the other judges.
        seed: for the order of the pieces and for which texts are held out.
    """

    epochs: int = 10
    learning_rate: float = 0.5
    weight_decay: float = 1e-3
    batch_tokens: int = 256
    patience: int = 2
    length: int = 128
    held_out: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        if self.epochs < 0:
            raise LensError(f"epochs are 0 or more, not {self.epochs}")
        whole = {"batch_tokens": self.batch_tokens, "patience": self.patience}
        for name, value in whole.items():
            if value < 1:
                raise LensError(f"{name} is at least 1, not {value}")
        if self.length < 2:
            raise LensError(f"pieces of text have at least two tokens, not {self.length}")
        if not 0 < self.held_out < 1 or self.learning_rate <= 0 or self.weight_decay < 0:
            raise LensError(
                "held_out is a share between 0 and 1, the learning rate above 0 and the weight decay not below it, not "
                f"{self.held_out}, {self.learning_rate} and {self.weight_decay}"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """What training found.

    Attributes:
        weight: what is added to the stream is `weight @ stream + bias`.
        bias: see there.
        kl: on the texts that judge, from what the model says to what the lens says, in nats, the mean over tokens.
        kl_plain: the same of the logit lens.
        epochs: how many epochs each depth was trained until its best.
        penalties: of the ridge regression at which each depth began; infinite where it began as the logit lens.
        texts: how many texts trained, decided when to stop, and judged.
    """

    weight: Float[Tensor, "depth d_model d_model"]
    bias: Float[Tensor, "depth d_model"]
    kl: Float[Tensor, "text depth"]
    kl_plain: Float[Tensor, "text depth"]
    epochs: tuple[int, ...]
    penalties: tuple[float, ...]
    texts: tuple[int, int, int]


def train_maps(wiring: Wiring, texts: Sequence[Int[Tensor, " pos"]], training: Training) -> Trained:
    """Find the maps.

    Args:
        wiring: the model.
        texts: token ids, at least four.
        training: how.

    Raises:
        LensError: when there are too few texts.
    """
    parts = _parts(texts, training)
    sources = [_Source(wiring, [texts[n] for n in part], training.length) for part in parts]
    trainer = _Trainer(wiring, sources, training)
    trainer.start()
    if training.epochs:
        trainer.train()
    weight, bias = trainer.folded()
    return Trained(
        weight=weight.cpu(),
        bias=bias.cpu(),
        kl=trainer.judge(trainer.best),
        kl_plain=trainer.judge(None),
        epochs=tuple(trainer.epochs),
        penalties=tuple(trainer.penalties),
        texts=(len(parts[0]), len(parts[1]), len(parts[2])),
    )


def _parts(texts: Sequence[Tensor], training: Training) -> list[list[int]]:
    """Which texts train, which decide when to stop, and which judge."""
    half = max(1, round(training.held_out * len(texts) / 2))
    if len(texts) - 2 * half < 1:
        raise LensError(
            "a tuned lens needs texts to train on, to decide when to stop, and to judge: "
            f"{len(texts)} are too few with held_out={training.held_out}"
        )
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(training.seed)).tolist()
    return [sorted(part) for part in (order[2 * half :], order[:half], order[half : 2 * half])]


class _Source:
    """The residual streams of some texts, kept where there is room, else run again.

    Args:
        wiring: the model.
        texts: token ids.
        length: of a piece at most.
    """

    def __init__(self, wiring: Wiring, texts: Sequence[Tensor], length: int) -> None:
        self.wiring = wiring
        pieces = [(n, piece) for n, text in enumerate(texts) for piece in text.split(length)]
        self.pieces = [piece for _, piece in pieces]
        self.text_of = [n for n, _ in pieces]
        self.number = len(texts)
        self._sites = depth_sites(wiring.layout.num_layers)
        self._kept: dict[int, Tensor] = {}
        self._bytes = 0

    def stream(self, piece: int) -> Float[Tensor, "depth pos d_model"]:
        """The residual stream of a piece, in front of the first block and behind every block."""
        if piece in self._kept:
            return self._kept[piece]
        ids = self.pieces[piece][None]
        tokens = Tokens(ids=ids, mask=torch.ones_like(ids))
        found = run(self.wiring.model, tokens, read=self._sites, layout=self.wiring.layout)
        stream = torch.stack([found[site][0] for site in self._sites])
        size = stream.numel() * stream.element_size()
        if self._bytes + size <= _KEPT:
            self._kept[piece], self._bytes = stream, self._bytes + size
        return stream

    def streams(self) -> Iterator[Float[Tensor, "depth pos d_model"]]:
        """The streams of all pieces, in order."""
        return map(self.stream, range(len(self.pieces)))

    def batches(self, tokens: int, generator: torch.Generator) -> Iterator[Float[Tensor, "depth token d_model"]]:
        """All pieces in a new order, some at once."""
        held: list[Tensor] = []
        for piece in torch.randperm(len(self.pieces), generator=generator).tolist():
            held.append(self.stream(piece))
            if sum(x.shape[1] for x in held) >= tokens:
                yield torch.cat(held, dim=1)
                held = []
        if held:
            yield torch.cat(held, dim=1)


@dataclass(eq=False)
class _Map:
    """The map of one depth as it is trained, and the units that it works in."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    spread: Tensor
    size: Tensor

    def __call__(self, stream: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_model"]:
        centred = (stream - self.mean) / self.spread
        moved: Tensor = stream + self.size * (centred @ self.weight.T + self.bias)
        return moved

    def kept(self) -> _Map:
        return _Map(self.weight.detach().clone(), self.bias.detach().clone(), self.mean, self.spread, self.size)

    def folded(self) -> tuple[Tensor, Tensor]:
        weight = self.size * self.weight / self.spread
        return weight, self.size * self.bias - weight @ self.mean


@dataclass(eq=False)
class _Trainer:
    """Trains the maps of all depths side by side, so that the model and its last logits are needed once a batch."""

    wiring: Wiring
    sources: list[_Source]
    training: Training
    mean: Tensor = field(init=False)
    spread: Tensor = field(init=False)
    maps: list[_Map] = field(default_factory=list)
    best: list[_Map] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    penalties: list[float] = field(default_factory=list)
    least: Tensor = field(default_factory=lambda: torch.zeros(0))

    def __post_init__(self) -> None:
        self.unembedding = Unembedding(self.wiring)
        self.generator = torch.Generator().manual_seed(self.training.seed)
        self.vocabulary = self._shares(self.sources[0].stream(0)[-1, :1]).shape[-1]
        self._begin()

    def _begin(self) -> None:
        """Maps that do nothing, in the units of the text for training."""
        train, width = self.sources[0], self.wiring.layout.d_model
        device = train.stream(0).device
        total = squares = torch.zeros(())
        for x in map(precise, train.streams()):
            total, squares = total.to(x) + x.sum(1), squares.to(x) + x.square().sum(1)
        number = sum(map(len, train.pieces))
        self.mean = total / number
        spread = (squares / number - self.mean.square()).clamp_min(0.0).sqrt()
        # A channel that never varies is left alone.
        self.spread = spread.clamp_min(1e-3 * spread.mean(-1, keepdim=True)).clamp_min(1e-12)
        for depth in range(len(self.mean) - 1):
            units = (self.mean[depth], self.spread[depth], self.spread[depth].median())
            made = _Map(*(x.float().to(device) for x in (torch.zeros(width, width), torch.zeros(width), *units)))
            self.maps.append(made)
            self.best.append(made.kept())
        self.epochs = [0] * len(self.maps)
        self.penalties = [math.inf] * len(self.maps)

    def start(self) -> None:
        """For each depth the ridge regression that is best on the text for stopping, or nothing if that is better."""
        judges, number = self.sources[1], len(self.maps)
        some = max(1, sum(map(len, judges.pieces)) // _CHOOSING)
        self.least = self._kl(judges, None).mean(0)
        for depths in held_together(number, self.wiring.layout.d_model):
            moments = gathered(self.sources[0].streams(), depths, self.mean, self.spread)
            least, chosen = torch.full((number,), math.inf), list(self.maps)
            for penalty in PENALTIES:
                for depth, weight in zip(depths, moments.ridge(penalty), strict=True):
                    self.maps[depth] = self._regressed(depth, weight)
                now = self._kl(judges, self.maps, depths, every=some).mean(0)
                for depth in depths:
                    if now[depth] < least[depth]:
                        least[depth], chosen[depth] = now[depth], self.maps[depth]
                        self.penalties[depth] = penalty
            now = self._kl(judges, chosen, depths).mean(0)
            for depth in depths:
                if now[depth] < self.least[depth]:
                    self.least[depth], self.best[depth] = now[depth], chosen[depth]
                else:
                    self.penalties[depth] = math.inf
        self.maps = [made.kept() for made in self.best]

    def _regressed(self, depth: int, weight: Float[Tensor, "d_model d_model"]) -> _Map:
        """A regression as a map, which works in units of the stream's size."""
        old = self.maps[depth]
        size = old.size.to(weight)
        bias = (self.mean[-1] - self.mean[depth]).to(weight) / size
        return _Map((weight / size).to(old.weight), bias.to(old.bias), old.mean, old.spread, old.size)

    def train(self) -> None:
        """Until no depth gets better."""
        rate = self.training.learning_rate / self.wiring.layout.d_model
        optimizers = []
        for made in self.maps:
            made.weight.requires_grad_()
            made.bias.requires_grad_()
            optimizers.append(
                torch.optim.AdamW([made.weight, made.bias], lr=rate, weight_decay=self.training.weight_decay)
            )
        least, waited = self.least, [0] * len(self.maps)
        for epoch in tqdm(range(self.training.epochs), desc="tuned lens", disable=None, leave=False, delay=2):
            live = [d for d, n in enumerate(waited) if n < self.training.patience]
            if not live:
                break
            for batch in self.sources[0].batches(self.training.batch_tokens, self.generator):
                self._step(batch, live, optimizers)
            now = self._kl(self.sources[1], self.maps, live).mean(0)
            for depth in live:
                if now[depth] < least[depth]:
                    least[depth], waited[depth] = now[depth], 0
                    self.best[depth], self.epochs[depth] = self.maps[depth].kept(), epoch + 1
                else:
                    waited[depth] += 1
                    for group in optimizers[depth].param_groups:
                        group["lr"] *= _RATE_LOSS

    def _step(
        self, batch: Float[Tensor, "depth token d_model"], live: list[int], optimizers: list[torch.optim.AdamW]
    ) -> None:
        for some in self._split(batch):
            target = self._shares(some[-1])
            for depths in self._together(live, some.shape[1]):
                parameters = [p for depth in depths for p in (self.maps[depth].weight, self.maps[depth].bias)]
                with torch.enable_grad():
                    kl = self._divergence(target, some, self.maps, depths, grad=True).sum() / batch.shape[1]
                    slopes = torch.autograd.grad(kl, parameters)
                for parameter, slope in zip(parameters, slopes, strict=True):
                    parameter.grad = slope if parameter.grad is None else parameter.grad + slope
        for depth in live:
            optimizers[depth].step()
            optimizers[depth].zero_grad()

    def _split(self, batch: Float[Tensor, "depth token d_model"]) -> Sequence[Tensor]:
        """A batch in parts whose logits fit."""
        parts: Sequence[Tensor] = batch.split(max(1, _AT_ONCE // self.vocabulary), dim=1)
        return parts

    def _shares(self, stream: Float[Tensor, "token d_model"], *, grad: bool = False) -> Float[Tensor, "token vocab"]:
        return self.unembedding.logits(stream, grad=grad).float().log_softmax(-1)

    def _together(self, depths: Sequence[int], tokens: int) -> list[list[int]]:
        """Depths whose logits fit together."""
        some = max(1, _AT_ONCE // (self.vocabulary * tokens))
        return [list(depths[n : n + some]) for n in range(0, len(depths), some)]

    def _divergence(
        self,
        target: Float[Tensor, "token vocab"],
        stream: Float[Tensor, "depth token d_model"],
        maps: list[_Map] | None,
        depths: list[int],
        *,
        grad: bool = False,
    ) -> Float[Tensor, "some token"]:
        """From what the model says to what some depths say, in nats; without maps, that of the logit lens."""
        plain = [stream[depth].float() for depth in depths]
        moved = plain if maps is None else [maps[depth](x) for depth, x in zip(depths, plain, strict=True)]
        found = self._shares(torch.cat(moved), grad=grad).unflatten(0, (len(depths), -1))
        return kl_divergence(target, found)

    @torch.no_grad()
    def _kl(self, source: _Source, maps: list[_Map] | None, live: list[int] | None = None, *, every: int = 1) -> Tensor:
        """For each text and depth the mean over its tokens, or some of them; without maps, that of the logit lens."""
        depths = range(len(self.maps)) if live is None else live
        sums, numbers = torch.zeros(source.number, len(self.maps)), torch.zeros(source.number, 1)
        seen = 0
        for piece, text in enumerate(source.text_of):
            whole = source.stream(piece)
            stream = whole[:, (every // 2 - seen) % every :: every]
            seen += whole.shape[1]
            numbers[text] += stream.shape[1]
            for some in self._split(stream):
                target = self._shares(some[-1])
                for together in self._together(depths, some.shape[1]):
                    sums[text, together] += self._divergence(target, some, maps, together).sum(-1).cpu()
        return sums / numbers.clamp_min(1)

    def judge(self, maps: list[_Map] | None) -> Float[Tensor, "text depth"]:
        """The divergence on the texts that judge."""
        return self._kl(self.sources[2], maps)

    def folded(self) -> tuple[Float[Tensor, "depth d_model d_model"], Float[Tensor, "depth d_model"]]:
        """The best maps in the stream's plain units."""
        weights, biases = zip(*(made.folded() for made in self.best), strict=True)
        return torch.stack(weights), torch.stack(biases)


__all__ = ["Trained", "Training", "train_maps"]
