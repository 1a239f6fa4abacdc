"""Tiny transformers whose weights are set by hand, so that the edges which matter are known.

The residual stream is made of named subspaces (which token this is, which token stood before, the answer, ...), turned
by a random rotation so that nothing lies along an axis. One subspace holds a large constant, so that norms divide by
about the same everywhere and constants can be read where a family has no biases. Circuit heads and MLPs read and write
exactly what they are for. Distractors read at random and write into a subspace that only other distractors read; mute
ones read as much and write nothing.

`induction`: a previous-token head and an induction head, in GPT-2. `grouped`: a lookup through query, key, value and
two MLPs, in Llama with grouped queries. `recall`: an MLP that knows the attribute of a subject and a relation, between
heads that bring the relation to the subject and the attribute to the end, one of them against the answer; in Llama with
grouped queries or in GPT-NeoX, whose attention and MLP are parallel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import torch
import transformers
from torch import Tensor, nn

BOS = 0
HEADS = 4
POSITIONS, PROMPTS, NOISE = 32, 8, 12
BALLAST = 15.0
THETA, FAST = 1e6, 6
ROTARY = {"rope_type": "default", "rope_theta": THETA}


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A model with a known circuit.

    Attributes:
        name: what it is called.
        family: a key of `brute_edges.NAMES`.
        model: the model, in eval mode and float64; whoever changes it copies it first.
        clean: the prompts: prompt pos.
        corrupt: their counterparts: prompt pos.
        answers: the target and the foil of each prompt: prompt 2.
        true_edges: the edges whose ablation with what the corrupt run gives changes the mean logit difference by more
            than `margin`, either way. That of any other edge changes it by less than `margin / 20`.
        negative: those of them that hold the answer down.
        margin: see `true_edges`.
        roles: what each node of the circuit is for.
    """

    name: str
    family: str
    model: Any = field(repr=False)
    clean: Tensor = field(repr=False)
    corrupt: Tensor = field(repr=False)
    answers: Tensor = field(repr=False)
    true_edges: frozenset[str]
    negative: frozenset[str] = frozenset()
    margin: float
    roles: dict[str, str]


class Builder:
    """Writes weights in terms of named subspaces.

    Args:
        family: `gpt2`, `llama` or `gpt_neox`.
        layers: how many.
        d_model: width of the residual stream.
        inner: neurons of each MLP.
        vocab: number of tokens.
        subspaces: sizes by name; there are "noise" and "ballast" too.
        seed: for the rotation and the distractors.
    """

    def __init__(
        self, family: str, *, layers: int, d_model: int, inner: int, vocab: int, subspaces: dict[str, int], seed: int
    ) -> None:
        self.family, self.layers, self.d_model, self.inner = family, layers, d_model, inner
        self.generator = torch.Generator().manual_seed(seed)
        self.model = _empty(family, layers, d_model, inner, vocab)
        self.body = self.model.get_submodule({"llama": "model", "gpt2": "transformer"}.get(family, family))
        self.blocks = self.body.h if family == "gpt2" else self.body.layers
        self.groups = HEADS // 2 if family == "llama" else HEADS
        self.head_dim = int(getattr(self.model.config, "head_dim", None) or d_model // HEADS)
        # Layer norms take the mean away, so the direction of all ones is left unused for them.
        self.width = d_model - (family != "llama")
        self.spaces: dict[str, slice] = {}
        at = 0
        for name, size in (subspaces | {"noise": NOISE, "ballast": 1}).items():
            self.spaces[name] = slice(at, at + size)
            at += size
        assert at <= self.width, (at, self.width)
        rows = self.random(d_model, d_model)
        if family != "llama":
            rows[0] = 1
        self.turn = torch.linalg.qr(rows.T).Q.T[d_model - self.width :]  # width d_model
        self.embedding = self.random(vocab, self.width) * 0
        self.embedding[:, self.spaces["ballast"]] = BALLAST
        self.unembedding = torch.zeros_like(self.embedding)

    def random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def reading(self, size: int, *reads: tuple[str, int, Tensor | float]) -> Tensor:
        """A map from the residual stream: width size.

        Args:
            size: of what comes out.
            *reads: a subspace, the first coordinate that it goes to, and what it is multiplied by: a matrix
                (subspace out), or a number for the unit matrix. The ballast counts as 1.
        """
        matrix = torch.zeros(self.width, size, dtype=torch.float64)
        for name, at, factor in reads:
            place = self.spaces[name]
            block = factor if isinstance(factor, Tensor) else factor * torch.eye(place.stop - place.start)
            matrix[place, at : at + block.shape[1]] += block / BALLAST if name == "ballast" else block
        return matrix

    def writing(self, size: int, *writes: tuple[str, int, Tensor | float]) -> Tensor:
        """A map into the residual stream: as `reading`, the other way round."""
        matrix = torch.zeros(size, self.width, dtype=torch.float64)
        for name, at, factor in writes:
            place = self.spaces[name]
            block = factor if isinstance(factor, Tensor) else factor * torch.eye(place.stop - place.start)
            matrix[at : at + block.shape[0], place] += block
        return matrix

    @property
    def steady(self) -> list[int]:
        """Coordinates of queries and keys that rotary embedding leaves alone, or turns by very little."""
        half = self.head_dim // 2
        if self.family == "gpt_neox":
            return list(range(self.head_dim // 4, self.head_dim))
        first = 0 if self.family == "gpt2" else FAST
        return [*range(first, half), *range(half + first, self.head_dim)]

    def match(self, layer: int, head: int, query: Tensor, key: Tensor) -> None:
        """Makes a head attend with the scores query * key, each given as width number."""
        for kind, index, matrix in (("q", head, query * self.head_dim**0.5), ("k", self.group(head), key)):
            full = torch.zeros(self.width, self.head_dim, dtype=torch.float64)
            full[:, self.steady[: matrix.shape[1]]] = matrix
            self.project(layer, kind, index, full)

    def look_back(self, layer: int, head: int, strength: float) -> None:
        """Makes a head of Llama attend to the token before, by its fastest rotary frequencies."""
        query, key = (torch.zeros(1, self.head_dim, dtype=torch.float64) for _ in "qk")
        angle = THETA ** (-torch.arange(3) * 2 / self.head_dim)
        half = self.head_dim // 2
        key[0, :3], query[0, :3], query[0, half : half + 3] = 1, angle.cos().double(), -angle.sin().double()
        query *= strength * self.head_dim**0.5
        self.project(layer, "q", head, self.reading(self.head_dim, ("ballast", 0, query)))
        self.project(layer, "k", self.group(head), self.reading(self.head_dim, ("ballast", 0, key)))

    def move(self, layer: int, head: int, source: str, target: str, factor: float = 1.0, *, only: Any = None) -> None:
        """Makes a head carry a subspace of where it attends to, or some coordinates of it, into another."""
        place = self.spaces[source]
        number = place.stop - place.start
        block = torch.eye(number, dtype=torch.float64)
        block = block if only is None else block[:, only]
        self.project(layer, "v", self.group(head), self.reading(self.head_dim, (source, 0, block)))
        out = factor * torch.eye(block.shape[1], dtype=torch.float64)
        self.put_out(layer, head, self.writing(self.head_dim, (target, 0, out)))

    def group(self, head: int) -> int:
        return head // (HEADS // self.groups)

    def attention(self, layer: int) -> Any:
        name = {"gpt2": "attn", "gpt_neox": "attention", "llama": "self_attn"}[self.family]
        return self.blocks[layer].get_submodule(name)

    def project(self, layer: int, kind: str, index: int, matrix: Tensor) -> None:
        """Sets what a head's queries, or a group's keys or values, are read by: width head_dim."""
        attention, size = self.attention(layer), self.head_dim
        weight = self.turn.T @ matrix
        if self.family == "gpt2":
            at = ("qkv".index(kind) * HEADS + index) * size
            attention.c_attn.weight[:, at : at + size] = weight
        elif self.family == "gpt_neox":
            at = (3 * index + "qkv".index(kind)) * size
            attention.query_key_value.weight[at : at + size] = weight.T
        else:
            getattr(attention, f"{kind}_proj").weight[index * size : (index + 1) * size] = weight.T

    def put_out(self, layer: int, head: int, matrix: Tensor) -> None:
        """Sets what a head writes: head_dim width."""
        weight, rows = matrix @ self.turn, slice(head * self.head_dim, (head + 1) * self.head_dim)
        if self.family == "gpt2":
            self.attention(layer).c_proj.weight[rows] = weight
        else:
            name = "dense" if self.family == "gpt_neox" else "o_proj"
            self.attention(layer).get_submodule(name).weight[:, rows] = weight.T

    def mlp(self, layer: int, read: Tensor, write: Tensor) -> None:
        """Sets an MLP: width neuron, neuron width. In Llama these are the gates; what they let through is 1."""
        mlp = self.blocks[layer].mlp
        first, last, missing = self.turn.T @ read, write @ self.turn, self.inner - read.shape[1]
        first, last = (nn.functional.pad(first, (0, missing)), nn.functional.pad(last, (0, 0, 0, missing)))
        if self.family == "gpt2":
            mlp.c_fc.weight[:], mlp.c_proj.weight[:] = first, last
        elif self.family == "gpt_neox":
            mlp.dense_h_to_4h.weight[:], mlp.dense_4h_to_h.weight[:] = first.T, last.T
        else:
            ones = self.reading(self.inner, ("ballast", 0, torch.ones(1, self.inner, dtype=torch.float64)))
            mlp.gate_proj.weight[:], mlp.up_proj.weight[:], mlp.down_proj.weight[:] = (
                first.T,
                (self.turn.T @ ones).T,
                last.T,
            )

    def rewrite(self, layer: int, source: str, target: str, order: Sequence[int], strength: float = 10.0) -> None:
        """Makes an MLP write coordinate order[i] of a subspace where coordinate i of another is well above 0."""
        number = len(order)
        bias = torch.full((1, number), -0.3 * strength, dtype=torch.float64)
        write = torch.eye(number, dtype=torch.float64)[list(order)] / (0.7 * strength)
        self.mlp(
            layer,
            self.reading(number, (source, 0, strength), ("ballast", 0, bias)),
            self.writing(number, (target, 0, write)),
        )

    def distract(self, *, mute: Sequence[tuple[int, int | None]]) -> None:
        """Makes every head and MLP read at random and write noise, or nothing (layer and head, None for the MLP)."""
        for layer in range(self.layers):
            for head in range(HEADS):
                for kind, index in (("q", head), ("k", self.group(head)), ("v", self.group(head))):
                    self.project(layer, kind, index, self.busy(self.head_dim))
                self.put_out(layer, head, self.noisy(self.head_dim, 0.0 if (layer, head) in mute else 0.3))
            self.mlp(layer, self.busy(self.inner), self.noisy(self.inner, 0.0 if (layer, None) in mute else 0.3))

    def busy(self, size: int) -> Tensor:
        """Reads everything at random, the ballast as if it were as small as the rest."""
        matrix = 0.7 * self.random(self.width, size)
        matrix[self.spaces["ballast"]] /= BALLAST
        return matrix

    def noisy(self, size: int, scale: float) -> Tensor:
        """Writes noise."""
        return self.writing(size, ("noise", 0, scale / size**0.5 * self.random(size, NOISE)))

    def finish(self, jitter: float = 0.002) -> Any:
        """The model, with all else set, and a little noise on every matrix."""
        scale = (BALLAST**2 + 3) ** 0.5 / self.d_model**0.5  # what norms divide by, given back
        for name, parameter in self.model.named_parameters():
            if parameter.ndim == 2:
                parameter.add_(jitter / self.d_model**0.5 * self.random(*parameter.shape))
            else:
                parameter.fill_(0 if name.endswith("bias") else scale)
        embedding = self.model.get_input_embeddings().weight
        embedding.copy_(self.embedding @ self.turn)
        self.model.get_output_embeddings().weight.copy_(self.unembedding @ self.turn)
        return self.model.eval()


def _empty(family: str, layers: int, d_model: int, inner: int, vocab: int) -> Any:
    ids = {"vocab_size": vocab, "pad_token_id": None, "bos_token_id": BOS, "eos_token_id": None}
    common = ids | {"tie_word_embeddings": False, "hidden_size": d_model, "num_hidden_layers": layers}
    common |= {"num_attention_heads": HEADS, "intermediate_size": inner, "max_position_embeddings": POSITIONS}
    config: Any
    if family == "gpt2":
        sizes = {"n_embd": d_model, "n_layer": layers, "n_head": HEADS, "n_inner": inner, "n_positions": POSITIONS}
        config = transformers.GPT2Config(**ids, **sizes, tie_word_embeddings=False)
    elif family == "gpt_neox":
        config = transformers.GPTNeoXConfig(**common, rope_parameters=ROTARY | {"partial_rotary_factor": 0.25})
    else:
        settings = {"num_key_value_heads": HEADS // 2, "head_dim": 32, "rope_parameters": ROTARY}
        config = transformers.LlamaConfig(**common, **settings)
    with torch.random.fork_rng(devices=[]):
        return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float64).requires_grad_(False)


def _shuffled(generator: torch.Generator, number: int) -> list[int]:
    return [int(i) for i in torch.randperm(number, generator=generator)]


@cache
def induction(sharpness: float = 6.0) -> Planted:
    """`... A B ... C D ... A` is followed by B: GPT-2, two layers.

    Args:
        sharpness: the score of the induction head's match; where it is large, attention is saturated, and gradients at
            the clean prompt hardly see what its query and keys are made of.
    """
    vocab = 20
    make = Builder(
        "gpt2",
        layers=2,
        d_model=128,
        inner=24,
        vocab=vocab,
        subspaces={"token": vocab, "position": POSITIONS, "previous": vocab, "out": vocab},
        seed=0,
    )
    make.distract(mute=[(0, 3), (1, 0), (1, None)])
    make.embedding[:, make.spaces["token"]] = torch.eye(vocab, dtype=torch.float64)
    make.unembedding[:, make.spaces["out"]] = 6 * torch.eye(vocab, dtype=torch.float64)
    one_back = 7.0 * torch.eye(POSITIONS, dtype=torch.float64).roll(-1, 1)
    size = make.head_dim
    make.match(0, 2, make.reading(size, ("position", 0, one_back)), make.reading(size, ("position", 0, 1.0)))
    make.move(0, 2, "token", "previous")
    make.match(1, 1, make.reading(vocab, ("token", 0, sharpness)), make.reading(vocab, ("previous", 0, 1.0)))
    make.move(1, 1, "token", "out")
    model = make.finish()
    place = torch.zeros(POSITIONS, make.width, dtype=torch.float64)
    place[:, make.spaces["position"]] = torch.eye(POSITIONS, dtype=torch.float64)
    model.transformer.wpe.weight.copy_(place @ make.turn)
    clean, corrupt, answers = _lookups(vocab, range(vocab), range(vocab))
    return Planted(
        name=f"induction with sharpness {sharpness:g}",
        family="gpt2",
        model=model,
        clean=clean,
        corrupt=corrupt,
        answers=answers,
        true_edges=frozenset(["embed->L0H2.v", "L0H2->L1H1.k", "embed->L1H1.q", "embed->L1H1.v", "L1H1->logits"]),
        margin=2.0,
        roles={"L0H2": "previous token", "L1H1": "induction"},
    )


@cache
def grouped() -> Planted:
    """`... A B ... C D ... X` is followed by f(B) where X asks for A: Llama with grouped queries, two layers."""
    vocab = 20
    make = Builder(
        "llama",
        layers=2,
        d_model=120,
        inner=24,
        vocab=vocab,
        subspaces=dict.fromkeys(("token", "previous", "asked", "found", "out"), vocab),
        seed=1,
    )
    make.distract(mute=[(0, 3), (1, 1)])
    make.embedding[:, make.spaces["token"]] = torch.eye(vocab, dtype=torch.float64)
    make.unembedding[:, make.spaces["out"]] = 6 * torch.eye(vocab, dtype=torch.float64)
    asks, follows = (_shuffled(torch.Generator().manual_seed(seed), vocab) for seed in (0, 1))
    make.look_back(0, 1, 12.0)
    make.move(0, 1, "token", "previous")
    make.rewrite(0, "token", "asked", asks)
    make.match(1, 2, make.reading(vocab, ("asked", 0, 6.0)), make.reading(vocab, ("previous", 0, 1.0)))
    make.move(1, 2, "token", "found")
    make.rewrite(1, "found", "out", follows)
    clean, corrupt, answers = _lookups(vocab, [asks.index(token) for token in range(vocab)], follows)
    return Planted(
        name="grouped",
        family="llama",
        model=make.finish(),
        clean=clean,
        corrupt=corrupt,
        answers=answers,
        true_edges=frozenset(
            [
                "embed->L0KV0.v",
                "embed->L0MLP",
                "L0H1->L1KV1.k",
                "L0MLP->L1H2.q",
                "embed->L1KV1.v",
                "L1H2->L1MLP",
                "L1MLP->logits",
            ]
        ),
        margin=2.0,
        roles={"L0H1": "previous token", "L0MLP": "asks", "L1H2": "induction", "L1MLP": "answers"},
    )


def _lookups(vocab: int, asking: Sequence[int], answering: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Prompts with two pairs of tokens and a last one that asks for the first of a pair.

    Args:
        vocab: number of tokens.
        asking: which token asks for a token.
        answering: which token answers for a token.
    """
    generator = torch.Generator().manual_seed(7)
    clean, corrupt, answers = [], [], []
    while len(clean) < PROMPTS:
        tokens = [token for token in _shuffled(generator, vocab) if token != BOS]
        rows = []
        for first, second, third, fourth, *fill in (tokens[:7], tokens[7:14]):
            pairs = (
                [first, second, fill[0], third, fourth] if len(clean) % 2 else [third, fourth, fill[0], first, second]
            )
            rows.append([BOS, fill[1], *pairs, fill[2], asking[first]])
        # What asks must not itself be the first of a pair, or be asked for by accident.
        if any(row[-1] in row[:-1] for row in rows) and list(asking) != list(range(vocab)):
            continue
        clean.append(rows[0])
        corrupt.append(rows[1])
        answers.append([answering[tokens[1]], answering[tokens[3]]])
    return torch.tensor(clean), torch.tensor(corrupt), torch.tensor(answers)


RELATIONS, SUBJECTS = 3, 4
END, FIRST_RELATION, FIRST_SUBJECT, FIRST_ATTRIBUTE, FIRST_FILLER = 1, 2, 5, 9, 21


@cache
def recall(family: str = "llama") -> Planted:
    """A relation, later a subject, at last a token that asks for that attribute of the subject: four layers."""
    vocab, attributes = FIRST_FILLER + 4, RELATIONS * SUBJECTS
    make = Builder(
        family,
        layers=4,
        d_model=96,
        inner=24,
        vocab=vocab,
        subspaces={"token": vocab, "relation": RELATIONS} | dict.fromkeys(("attribute", "answer", "out"), attributes),
        seed=2,
    )
    make.distract(mute=[(0, 3), (1, 1), (2, None), (3, 3)])
    make.embedding[:, make.spaces["token"]] = torch.eye(vocab, dtype=torch.float64)
    make.unembedding[FIRST_ATTRIBUTE:FIRST_FILLER, make.spaces["out"]] = 5 * torch.eye(attributes).double()

    def flags(*tokens: Sequence[int]) -> Tensor:
        matrix = torch.zeros(vocab, len(tokens), dtype=torch.float64)
        for column, some in enumerate(tokens):
            matrix[list(some), column] = 1
        return matrix

    relations, subjects = range(FIRST_RELATION, FIRST_SUBJECT), range(FIRST_SUBJECT, FIRST_ATTRIBUTE)
    # Whoever looks for nothing looks at the first token: the second coordinate of queries and keys.
    rest = ("ballast", 1, torch.full((1, 1), 4.0, dtype=torch.float64))
    first = ("token", 1, flags([BOS]))
    make.match(
        0,
        0,
        make.reading(2, ("token", 0, 8 * flags(subjects)), rest),
        make.reading(2, ("token", 0, flags(relations)), first),
    )
    make.move(0, 0, "token", "relation", only=list(relations))
    make.mlp(1, *_knowledge(make))
    end = make.reading(2, ("token", 0, 8 * flags([END])), rest)
    known = torch.ones(attributes, 1, dtype=torch.float64)
    for head, target, factor in ((2, "out", 0.4), (3, "answer", 1.0)):
        make.match(2, head, end, make.reading(2, ("attribute", 0, known), first))
        make.move(2, head, "attribute", target, factor)
    make.match(3, 1, end, make.reading(2, ("token", 0, flags([END])), first))
    make.move(3, 1, "answer", "out", -0.4)
    make.rewrite(3, "answer", "out", range(attributes))
    clean, corrupt, answers = _questions()
    unit = {"llama": ("L0KV0", ["L2KV1"], "L3KV0")}.get(family, ("L0H0", ["L2H2", "L2H3"], "L3H1"))
    return Planted(
        name=f"recall in {family}",
        family=family,
        model=make.finish(),
        clean=clean,
        corrupt=corrupt,
        answers=answers,
        true_edges=frozenset(
            [
                *("embed->L0H0.q", f"embed->{unit[0]}.k", f"embed->{unit[0]}.v", "embed->L1MLP", "L0H0->L1MLP"),
                *(f"L1MLP->{name}.{kind}" for name in unit[1] for kind in "kv"),
                *("L2H2->logits", "L2H3->L3MLP", "L3MLP->logits", f"L2H3->{unit[2]}.v", "L3H1->logits"),
            ]
        ),
        negative=frozenset([f"L2H3->{unit[2]}.v", "L3H1->logits"]),
        margin=2.5 if family == "llama" else 1.5,
        roles={
            "L0H0": "brings the relation to the subject",
            "L1MLP": "knows the attribute",
            "L2H2": "brings the attribute to the logits",
            "L2H3": "brings the attribute to the end",
            "L3MLP": "says the attribute",
            "L3H1": "speaks against it",
        },
    )


def _knowledge(make: Builder) -> tuple[Tensor, Tensor]:
    """A neuron for each subject and relation, which is on where both are."""
    number, strength = RELATIONS * SUBJECTS, 10.0
    both = torch.eye(number, dtype=torch.float64).reshape(SUBJECTS, RELATIONS, number)
    token = torch.zeros(make.embedding.shape[0], number, dtype=torch.float64)
    token[FIRST_SUBJECT:FIRST_ATTRIBUTE] = strength * both.sum(1)
    bias = torch.full((1, number), -1.4 * strength, dtype=torch.float64)
    read = make.reading(number, ("token", 0, token), ("relation", 0, strength * both.sum(0)), ("ballast", 0, bias))
    return read, make.writing(number, ("attribute", 0, torch.eye(number).double() / (0.55 * strength)))


def _questions() -> tuple[Tensor, Tensor, Tensor]:
    """Prompts whose counterparts have another relation and another subject, at other positions."""
    generator = torch.Generator().manual_seed(11)
    rows: list[list[list[int]]] = [[], []]
    answers = []
    for number in range(PROMPTS):
        subjects, relations = _shuffled(generator, SUBJECTS), _shuffled(generator, RELATIONS)
        places = [(1, 4), (2, 5)] if number % 2 else [(3, 6), (2, 5)]
        for which, (before, behind) in enumerate(places):
            row = [BOS, *(FIRST_FILLER + i % 4 for i in _shuffled(generator, 7)), END]
            row[before], row[behind] = FIRST_RELATION + relations[which], FIRST_SUBJECT + subjects[which]
            rows[which].append(row)
        answers.append([FIRST_ATTRIBUTE + subjects[i] * RELATIONS + relations[i] for i in (0, 1)])
    return torch.tensor(rows[0]), torch.tensor(rows[1]), torch.tensor(answers)


PLANTED: dict[str, Callable[[], Planted]] = {
    "induction": induction,
    "induction-saturated": partial(induction, 14.0),
    "grouped": grouped,
    "recall-llama": partial(recall, "llama"),
    "recall-gpt_neox": partial(recall, "gpt_neox"),
}
