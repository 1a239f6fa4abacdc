"""The trainer: against plain loops and torch's own layers, in memory and from a store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from interp_toolkit.activations import ActivationStore, extract
from interp_toolkit.errors import ProbeError
from interp_toolkit.probes.networks import MLP
from interp_toolkit.probes.sources import (
    PaddedSource,
    RaggedSource,
    RowSource,
    Source,
    blocks,
    check_source,
    measure,
    read_sequences,
)
from interp_toolkit.probes.trainer import (
    Examples,
    Objective,
    TrainingSettings,
    _batches,
    fit_minibatch,
    hold_out,
    mean_loss,
    outputs_of,
)
from tiny import model_of, tokens


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def parameters(network: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def objective(y: Tensor) -> Objective:
    return Objective(kind="classes", wanted=y[:, None].float(), weights=torch.ones(len(y), 1))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    """Rows in many shards."""
    documents = [{"input_ids": tokens(1, 5 + n % 20, seed=n)[0].tolist()} for n in range(60)]
    path = tmp_path_factory.mktemp("probes") / "store"
    options: dict[str, Any] = {"context_length": 32, "batch_tokens": 200, "shard_tokens": 100, "progress": False}
    return extract(model_of("llama"), documents, sites=["resid_post.0", "z.1"], path=path, **options)


# --- settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"batch_size": 0}, {"patience": 0}])
def test_settings_that_train_nothing_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ProbeError, match=f"{next(iter(wrong))} is at least 1, not 0"):
        TrainingSettings(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_a_learning_rate_is_a_positive_number(rate: float) -> None:
    with pytest.raises(ProbeError, match="learning_rate is above zero"):
        TrainingSettings(learning_rate=rate)


def test_few_rows_make_small_batches_and_never_larger_ones_than_asked() -> None:
    settings = TrainingSettings(batch_size=100)
    assert [settings.rows_per_batch(rows) for rows in (10, 300, 800, 10**6)] == [16, 18, 50, 100]
    assert TrainingSettings(batch_size=4).rows_per_batch(10) == 4


# --- held-out rows ------------------------------------------------------------------------------------------------


def test_held_out_rows_have_the_same_share_of_each_class() -> None:
    classes = torch.tensor([0] * 100 + [1] * 40 + [2] * 10)[torch.randperm(150)]
    rows, held = hold_out(classes, 0.2, seed=3)
    assert classes[held].bincount().tolist() == [20, 8, 2]
    assert torch.equal(torch.cat([rows, held]).sort().values, torch.arange(150))
    assert torch.equal(held, hold_out(classes, 0.2, seed=3)[1])
    assert not torch.equal(held, hold_out(classes, 0.2, seed=4)[1])


def test_a_class_with_one_row_is_trained_on() -> None:
    rows, held = hold_out(torch.tensor([0] * 9 + [1]), 0.3)
    assert 9 in rows.tolist()
    assert len(held) == 3


def test_groups_are_held_out_as_a_whole() -> None:
    groups = [f"prompt {n // 5}" for n in range(100)]
    classes = torch.tensor([0, 1, 0, 1, 1] * 20)
    rows, held = hold_out(classes, 0.2, groups=groups)
    assert not {groups[n] for n in rows.tolist()} & {groups[n] for n in held.tolist()}
    assert len(held) == 20


def test_groups_that_cannot_be_divided_say_what_to_do() -> None:
    with pytest.raises(ProbeError, match="With validation_share=0 none are"):
        hold_out(torch.tensor([0, 0, 1, 1]), 0.5, groups=["a", "a", "b", "b"])
    with pytest.raises(ProbeError, match="from 0 to below 1, not 1"):
        hold_out(torch.tensor([0, 1]), 1.0)


# --- sources ------------------------------------------------------------------------------------------------------


def test_mean_and_deviation_are_those_of_numpy_also_far_from_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    x = noise(1000, 3).double() * torch.tensor([1.0, 1e-3, 5.0]) + torch.tensor([1e4, 100.0, 0.0])
    monkeypatch.setattr("interp_toolkit.probes.sources._BLOCK", 12 * 64)
    mean, scale = measure(RowSource(x), torch.arange(1000))
    assert len(list(blocks(RowSource(x), torch.arange(1000)))) == 16
    torch.testing.assert_close(mean, torch.from_numpy(x.numpy().mean(0)), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(scale, torch.from_numpy(x.numpy().std(0)), rtol=1e-9, atol=0)


def test_only_real_tokens_are_measured_and_constants_stay_as_they_are() -> None:
    mask = torch.tensor([[True, False, True], [False, True, False]])
    x = torch.full((2, 3, 2), float("nan"))
    x[mask] = torch.tensor([[1.0, 0.1], [3.0, 0.1], [5.0, 0.1]])
    mean, scale = measure(PaddedSource(x, mask), torch.arange(2))
    torch.testing.assert_close(mean, torch.tensor([3.0, 0.1]).double())
    torch.testing.assert_close(scale, torch.tensor([(8 / 3) ** 0.5, 1.0]).double())


def test_sequences_are_padded_no_more_than_needed() -> None:
    parts = [noise(n, 4, seed=n) for n in (3, 7, 1, 5)]
    mask = torch.arange(7) >= 7 - torch.tensor([[3], [7], [1], [5]])
    padded = torch.full((4, 7, 4), float("nan"))
    padded[mask] = torch.cat(parts)
    for source in (RaggedSource(parts), PaddedSource(padded, mask)):
        x, real = source.read(torch.tensor([3, 0]))
        assert real is not None
        assert x.shape == (2, 5, 4)
        assert source.lengths.tolist() == [3, 7, 1, 5]
        assert torch.equal(x[0][real[0]], parts[3])
        assert torch.equal(x[1][real[1]], parts[0])


@pytest.mark.parametrize("size", [1, 4, 16, 300])
@pytest.mark.parametrize("sequences", [False, True])
def test_an_epoch_has_each_row_once_and_every_epoch_another_order(size: int, sequences: bool) -> None:
    rows = torch.arange(0, 600, 2)
    lengths = torch.randint(1, 50, (600,)) if sequences else None
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.cat(_batches(rows, lengths, size, generator)) for _ in range(2))
    assert torch.equal(first.sort().values, rows)
    assert torch.equal(second.sort().values, rows)
    assert not torch.equal(first, second)


def test_many_rows_are_shuffled_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("interp_toolkit.probes.trainer._PIECE", 10)
    order = torch.cat(_batches(torch.arange(1000), None, 7, torch.Generator().manual_seed(0)))
    assert torch.equal(order.sort().values, torch.arange(1000))
    assert len((order[:80] // 10).unique()) == 8  # eight pieces are mixed
    assert (order[1:] - order[:-1]).abs().float().mean() > 100


def test_sequences_of_a_batch_have_similar_lengths_but_batches_are_mixed() -> None:
    lengths = torch.randint(1, 1000, (3200,), generator=torch.Generator().manual_seed(0))
    batches = _batches(torch.arange(3200), lengths, 16, torch.Generator().manual_seed(0))
    padded = sum(len(rows) * int(lengths[rows].max()) for rows in batches)
    assert padded < 1.1 * int(lengths.sum())
    means = torch.stack([lengths[rows].float().mean() for rows in batches])
    assert torch.corrcoef(torch.stack([means[:-1], means[1:]]))[0, 1].abs() < 0.2


@pytest.mark.parametrize(
    ("X", "mask", "says"),
    [
        (torch.zeros(3, 4), None, r"\[row, pos, d\].*shape \(3, 4\).*LinearProbe and MLPProbe"),
        ([torch.zeros(2, 4), torch.zeros(2, 5)], None, r"row 1 has shape \(2, 5\)"),
        ([torch.zeros(2, 4), torch.zeros(2, 4).double()], None, "row 1 has .*float64"),
        ([torch.zeros(2, 4)], torch.ones(1, 2), "a list of sequences has no padding"),
        (torch.zeros(3, 4, 2), torch.ones(3, 5), r"shape \[row, pos\], here \(3, 4\), but this one has shape \(3, 5\)"),
        (torch.zeros(3, 4, 2), torch.full((3, 4), 2), "and other values"),
        ([["a"]], None, "tables of numbers"),
    ],
)
def test_what_is_no_sequence_is_refused(X: Any, mask: Any, says: str) -> None:
    with pytest.raises(ProbeError, match=says):
        read_sequences(X, mask)


def test_a_site_of_a_store_is_no_sequence(store: ActivationStore) -> None:
    with pytest.raises(ProbeError, match="rows_of"):
        read_sequences(store["resid_post.0"])


def test_rows_that_cannot_be_learned_from_are_named() -> None:
    x = torch.zeros(40, 3)
    x[[3, 17], 1] = torch.tensor([float("nan"), float("inf")])
    with pytest.raises(ProbeError, match="NaN or infinity in 2 of 40 rows: 3, 17"):
        check_source(RowSource(x))
    with pytest.raises(ProbeError, match="no token that is not padding: rows 1"):
        check_source(PaddedSource(torch.zeros(2, 2, 1), torch.tensor([[True, False], [False, False]])))
    with pytest.raises(ProbeError, match="X has 3 features, but the probe is expecting 4"):
        check_source(RowSource(torch.zeros(2, 3)), width=4)
    with pytest.raises(ProbeError, match="no activations"):
        check_source(RaggedSource([]))


# --- training -----------------------------------------------------------------------------------------------------


def test_one_step_is_that_of_a_plain_loop_with_adamw() -> None:
    x, y = noise(16, 3), (noise(16, seed=1) > 0).long()
    weights = torch.rand(16, 1, generator=torch.Generator().manual_seed(0))
    network, plain = MLP(3, 1, hidden=(5,)), MLP(3, 1, hidden=(5,))
    wanted = Objective(kind="classes", wanted=y[:, None].float(), weights=weights)
    train = Examples(source=RowSource(x), objective=wanted, rows=torch.arange(16))
    history = fit_minibatch(network, train, settings=TrainingSettings(epochs=3, learning_rate=0.1, weight_decay=0.5))
    matrices, biases = [layer.weight for layer in plain.layers], [layer.bias for layer in plain.layers]
    groups = [{"params": matrices, "weight_decay": 0.5}, {"params": biases, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.1, fused=False)
    losses = []
    for _ in range(3):
        p = torch.sigmoid(plain(x))[:, 0]
        each = -torch.where(y == 1, p, 1 - p).log() * weights[:, 0]
        losses.append(float(each.detach().sum() / weights.sum()))
        optimizer.zero_grad()
        each.mean().backward()
        optimizer.step()
    torch.testing.assert_close(parameters(network), parameters(plain), rtol=1e-5, atol=1e-6)
    assert history.train == pytest.approx(losses, rel=1e-5)
    assert (history.validation, history.best_epoch, history.stopped) == ((), 2, "epochs")


@pytest.mark.parametrize("kind", ["classes", "labels", "regression"])
def test_losses_are_those_written_out(kind: Any) -> None:
    outputs, weights = noise(6, 3).double(), torch.rand(6, 1).double()
    index, table = torch.tensor([0, 2, 1, 1, 0, 2]), (noise(6, 3, seed=1) > 0).double()
    unit = torch.tensor([1.0, 2.0, 4.0]).double() if kind == "regression" else None
    wanted = index if kind == "classes" else table
    rows = torch.tensor([4, 1, 5])
    found = Objective(kind=kind, wanted=wanted, weights=weights, unit=unit)(outputs[rows], rows)
    for place, row in enumerate(rows.tolist()):
        z, t = outputs[row], table[row]
        if kind == "classes":
            loss = -(z[index[row]].exp() / z.exp().sum()).log()
        elif kind == "labels":
            p = 1 / (1 + (-z).exp())
            loss = -(t * p.log() + (1 - t) * (1 - p).log()).mean()
        else:
            assert unit is not None
            loss = (((z - t) / unit) ** 2).mean()
        torch.testing.assert_close(found[place], loss * weights[row, 0])


def overfitting() -> tuple[Examples, Examples]:
    x, y = noise(60, 20), torch.arange(60) % 2  # nothing to learn
    both = objective(y)
    train = Examples(source=RowSource(x), objective=both, rows=torch.arange(40))
    return train, Examples(source=RowSource(x), objective=both, rows=torch.arange(40, 60))


def test_early_stopping_restores_the_best_epoch() -> None:
    train, held = overfitting()
    network = MLP(20, 1)
    settings = TrainingSettings(epochs=40, learning_rate=0.01, patience=4)
    history = fit_minibatch(network, train, validation=held, settings=settings)
    assert history.stopped == "patience"
    assert history.best_epoch == len(history.validation) - 5
    assert history.validation[history.best_epoch] == min(history.validation) < history.validation[-1]
    assert mean_loss(network, held) == pytest.approx(history.validation[history.best_epoch], rel=1e-6)
    again = MLP(20, 1)
    best = TrainingSettings(epochs=history.best_epoch + 1, learning_rate=0.01)
    fit_minibatch(again, train, settings=best)
    assert torch.equal(parameters(again), parameters(network))


def test_without_patience_all_epochs_are_done_and_the_best_is_kept() -> None:
    train, held = overfitting()
    network = MLP(20, 1)
    history = fit_minibatch(
        network, train, validation=held, settings=TrainingSettings(epochs=30, learning_rate=0.01, patience=None)
    )
    assert (len(history.train), history.stopped) == (30, "epochs")
    assert history.best_epoch < 29
    assert mean_loss(network, held) == pytest.approx(min(history.validation), rel=1e-6)


def test_divergence_is_an_error_that_says_what_to_change() -> None:
    x = noise(64, 4)
    wanted = Objective(kind="regression", wanted=1e30 * x[:, :1], weights=torch.ones(64, 1))
    train = Examples(source=RowSource(x), objective=wanted, rows=torch.arange(64))
    with pytest.raises(ProbeError, match=r"training loss is (inf|nan) in epoch 0.*smaller learning_rate \(it is 0.1\)"):
        fit_minibatch(MLP(4, 1), train, settings=TrainingSettings(learning_rate=0.1))


def test_the_seed_decides_and_global_random_numbers_are_not_touched() -> None:
    train, _ = overfitting()
    before = torch.get_rng_state()
    found = []
    for seed in (1, 1, 2):
        network = MLP(20, 1, dropout=0.3)
        fit_minibatch(network, train, settings=TrainingSettings(epochs=3, seed=seed))
        found.append(parameters(network))
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("site", ["resid_post.0", "z.1"])
def test_a_store_gives_the_same_probe_as_memory(store: ActivationStore, site: str) -> None:
    view = store[site]
    rows = torch.arange(1, store.rows, 2)
    held = view[rows].flatten(1).clone()
    y = (held[:, 0] > held[:, 1]).long()
    found = []
    for source in (RowSource(held), RowSource(view, rows)):
        network = MLP(held.shape[1], 1)
        train = Examples(source=source, objective=objective(y), rows=torch.arange(len(rows)))
        history = fit_minibatch(network, train, settings=TrainingSettings(epochs=3, learning_rate=0.01))
        found.append(
            (parameters(network), history, *measure(source, torch.arange(10, 50)), outputs_of(network, source))
        )
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=1e-6)
    assert found[0][1] == found[1][1]
    for one, other in zip(found[0][2:], found[1][2:], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


class Counted:
    """A source that notes how much is read."""

    def __init__(self, source: Source) -> None:
        self.source, self.reads = source, []

    reads: list[int]

    @property
    def width(self) -> int:
        return self.source.width

    @property
    def lengths(self) -> Tensor | None:
        return self.source.lengths

    def __len__(self) -> int:
        return len(self.source)

    def read(self, rows: Tensor) -> Any:
        self.reads.append(len(rows))
        return self.source.read(rows)


def test_training_reads_each_row_once_an_epoch_and_never_all_at_once() -> None:
    source = Counted(RowSource(noise(20_000, 64)))
    y = torch.arange(20_000) % 2
    train = Examples(source=source, objective=objective(y), rows=torch.arange(20_000))
    fit_minibatch(MLP(64, 1, hidden=(4,)), train, settings=TrainingSettings(epochs=2))
    assert sum(source.reads) == 40_000
    assert max(source.reads) * 64 * 4 <= 1 << 22


def test_outputs_do_not_depend_on_how_many_rows_are_read_together(monkeypatch: pytest.MonkeyPatch) -> None:
    network, source = MLP(6, 2), RowSource(noise(50, 6))
    whole = outputs_of(network, source)
    monkeypatch.setattr("interp_toolkit.probes.sources._BLOCK", 6 * 4 * 7)
    torch.testing.assert_close(outputs_of(network, source), whole)
    assert not whole.requires_grad


def test_a_progress_bar_is_shown_only_in_a_terminal(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    train, _ = overfitting()
    fit_minibatch(MLP(20, 1), train, settings=TrainingSettings(epochs=1, progress=True))
    assert capsys.readouterr() == ("", "")


# --- the perceptron -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "tanh"])
def test_a_perceptron_is_what_torch_makes_of_the_same_weights(activation: Any) -> None:
    bends: dict[str, torch.nn.Module] = {
        "relu": torch.nn.ReLU(),
        "gelu": torch.nn.GELU(),
        "silu": torch.nn.SiLU(),
        "tanh": torch.nn.Tanh(),
    }
    network = MLP(5, 2, hidden=(7, 3), activation=activation)
    layers: Sequence[torch.nn.Linear] = [torch.nn.Linear(n, m) for n, m in ((5, 7), (7, 3), (3, 2))]
    for layer, ours in zip(layers, network.layers, strict=True):
        layer.load_state_dict(ours.state_dict())
    bend = bends[activation]
    plain = torch.nn.Sequential(layers[0], bend, layers[1], bend, layers[2])
    x = noise(9, 5)
    torch.testing.assert_close(network(x), plain(x))


def test_dropout_leaves_out_its_share_in_training_alone_and_keeps_the_mean() -> None:
    network = MLP(1, 1, hidden=(20_000,), dropout=0.25)
    with torch.no_grad():
        network.layers[0].weight.fill_(1.0)
        network.layers[1].weight.fill_(1 / 20_000)
    x = torch.ones(1, 1)
    assert network(x).item() == pytest.approx(1.0, abs=1e-4)
    dropped = network(x, generator=torch.Generator().manual_seed(0)).item()
    assert dropped != pytest.approx(1.0, abs=1e-4)
    assert dropped == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("wrong", [{"hidden": (0,)}, {"dropout": 1.0}, {"dropout": -0.1}])
def test_a_perceptron_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ProbeError, match="hidden layers have a unit at least"):
        MLP(3, 1, **wrong)


@pytest.mark.usefixtures("unchecked")
def test_an_activation_that_there_is_not_is_refused() -> None:
    with pytest.raises(ProbeError, match="an activation is 'relu', 'gelu', 'silu', 'tanh', not 'sine'"):
        MLP(3, 1, activation="sine")  # type: ignore[arg-type]
