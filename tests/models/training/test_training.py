"""Training: what a run leaves behind, that it learns, and that an interrupted run ends as if it had not been."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from streamcell.models import (
    ConfigError,
    DivergedError,
    Report,
    RunError,
    SequenceData,
    Series,
    TrainConfig,
    bernoulli_nll,
    build,
    evaluate,
    load_data,
    load_run,
    presets,
    score,
    train,
)
from streamcell.models.data.digits import load_digits
from streamcell.models.training.batches import shuffled
from streamcell.models.training.evaluation import Score, persistence
from streamcell.models.training.trainer import Trainer, schedule


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small gain nothing from a second thread, and lose much where the cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def scales(pieces: int, seed: int) -> list[list[list[int]]]:
    """Pieces that walk up and down in two voices: simple enough to be learned in seconds."""
    rng = np.random.default_rng(seed)
    return [
        [[at, at + 7] for at in (55 + np.abs((np.arange(length) + start) % 10 - 5)).tolist()]
        for length, start in zip(rng.integers(8, 30, pieces), rng.integers(0, 10, pieces), strict=True)
    ]


@pytest.fixture(scope="module")
def music(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("music") / "scales.json"
    parts = {"train": scales(24, 1), "valid": scales(5, 2), "test": scales(5, 3)}
    path.write_text(json.dumps(parts))
    return path


@pytest.fixture
def config(music: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        model={"kind": "lstm", "hidden_size": 12, "num_layers": 2, "dropout": 0.2},
        out=tmp_path / "run",
        data=music,
        epochs=4,
        batch_size=6,
        window=7,
        learning_rate=0.02,
        transpose=3,
        threads=1,
    )


@pytest.fixture
def table(tmp_path: Path) -> Path:
    t = np.arange(1500)
    values = np.stack([1e3 + 50 * np.sin(t / 5), np.cos(t / 5), t % 7], axis=1)
    path = tmp_path / "wave.csv"
    np.savetxt(path, values, delimiter=",", header="wave,phase,week", comments="")
    return path


class Interrupt:
    """Presses Ctrl-C when an epoch has been reported."""

    def __init__(self, after: int) -> None:
        self.after = after

    def parsed(self, done: int, total: int) -> None: ...

    def epoch(self, report: Report) -> None:
        if report.row.epoch == self.after:
            raise KeyboardInterrupt


def weights(folder: Path) -> dict[str, Tensor]:
    return safetensors.torch.load_file(folder / "weights.safetensors")


def metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{name: value for name, value in row.items() if name != "elapsed_s"} for row in rows]


def test_a_run_leaves_its_folder_and_learns(config: TrainConfig) -> None:
    config = dataclasses.replace(config, epochs=15)
    result = train(config)
    folder = config.out
    assert sorted(path.name for path in folder.iterdir()) == [
        *("config.json", "loss.png", "metrics.csv", "weights.safetensors")
    ]
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    model, document = load_run(folder)
    assert not model.training
    assert document["format"] == "streamcell.run/1"
    assert document["name"] == "run"
    assert document["model"] == model.config
    assert document["model"]["distribution"] == "bernoulli_logits"
    assert document["training"]["seed"] == config.seed
    assert document["training"]["result"]["test_loss"] == result.test_loss
    assert document["data"]["splits"]["train"]["sequences"] == 24
    losses = [float(row["valid_loss"]) for row in metrics(folder)]
    assert len(losses) == result.epochs == 15
    assert min(losses) == result.valid_loss == losses[result.best_epoch - 1]
    assert result.stopped == "epochs"
    assert result.valid_loss < 0.3 * losses[0]
    # The weights kept are those of the best epoch, and the losses told are theirs.
    data = load_data(config)
    assert evaluate(model, data, "valid") == pytest.approx(result.valid_loss, rel=1e-6)
    assert evaluate(model, data, "test") == pytest.approx(result.test_loss, rel=1e-6)


def test_the_same_configuration_gives_the_same_weights(config: TrainConfig, tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    train(config)
    train(dataclasses.replace(config, out=tmp_path / "again"))
    torch.testing.assert_close(weights(config.out), weights(tmp_path / "again"), rtol=0, atol=0)
    train(dataclasses.replace(config, out=tmp_path / "other", seed=2))
    assert not torch.equal(weights(config.out)["head.weight"], weights(tmp_path / "other")["head.weight"])
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("after", [1, 3])
def test_an_interrupted_run_ends_as_if_it_had_not_been(
    config: TrainConfig, tmp_path: Path, after: int
) -> None:
    whole = train(config)
    broken = dataclasses.replace(config, out=tmp_path / "broken")
    with pytest.raises(KeyboardInterrupt):
        train(broken, progress=Interrupt(after))
    assert len(metrics(broken.out)) == after
    resumed = train(broken, resume=True)
    torch.testing.assert_close(weights(broken.out), weights(config.out), rtol=0, atol=0)
    assert metrics(broken.out) == metrics(config.out)
    assert (resumed.test_loss, resumed.best_epoch) == (whole.test_loss, whole.best_epoch)


def test_an_interrupted_run_can_be_used_already(config: TrainConfig) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(config, progress=Interrupt(2))
    model, document = load_run(config.out)
    assert model.kind == "lstm"
    assert "result" not in document["training"]


def test_a_run_is_neither_lost_nor_mixed_up(config: TrainConfig) -> None:
    with pytest.raises(RunError, match="holds nothing to resume"):
        train(config, resume=True)
    with pytest.raises(KeyboardInterrupt):
        train(config, progress=Interrupt(1))
    with pytest.raises(RunError, match="already holds a run"):
        train(config)
    with pytest.raises(RunError, match=r"started with other settings: learning_rate was 0.02, is 0.5"):
        train(dataclasses.replace(config, learning_rate=0.5), resume=True)
    assert train(config, overwrite=True).epochs == 4
    with pytest.raises(RunError, match=r"nothing to resume \(that run is finished\)"):
        train(config, resume=True)


def test_a_damaged_resume_point_is_refused(config: TrainConfig) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(config, progress=Interrupt(1))
    (config.out / "resume.safetensors").write_bytes(b"no tensors")
    with pytest.raises(RunError, match="is damaged"):
        train(config, resume=True)


def test_training_stops_when_it_no_longer_gets_better(config: TrainConfig) -> None:
    # So small a rate that nothing changes in float32: no epoch is better than the first.
    result = train(dataclasses.replace(config, epochs=50, learning_rate=1e-12, patience=3))
    assert (result.stopped, result.epochs, result.best_epoch) == ("patience", 4, 1)


def test_a_time_budget_ends_the_run_and_anneals_over_it(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A clock that goes on by 50 ms whenever it is looked at, whatever else the machine has to do.
    ticks = itertools.count()
    clock = SimpleNamespace(monotonic=lambda: next(ticks) * 0.05)
    monkeypatch.setattr("streamcell.models.training.train.time", clock)
    result = train(dataclasses.replace(config, minutes=0.1))
    assert result.stopped == "minutes"
    assert result.elapsed_s >= 5.9
    rates = [float(row["learning_rate"]) for row in metrics(config.out)]
    assert rates[-1] < 0.2 * max(rates)


def test_a_loss_that_explodes_is_an_error_not_a_model(config: TrainConfig) -> None:
    with pytest.raises(DivergedError, match="lower the learning rate"):
        train(dataclasses.replace(config, learning_rate=1e30, warmup=0.0, epochs=20))


@pytest.mark.parametrize("kind", ["mlp", "rnn", "gru", "lstm", "cnn", "tcn"])
def test_every_kind_forecasts_a_table_in_raw_units(kind: str, table: Path, tmp_path: Path) -> None:
    settings = presets.model("csv", kind, hidden=16, dropout=0.0)
    config = presets.config(
        "csv",
        model=settings,
        out=tmp_path / "run",
        data=table,
        targets=("wave",),
        epochs=60,
        window=16,
        threads=1,
    )
    result = train(config)
    model, document = load_run(config.out)
    assert document["data"]["targets"] == ["wave"]
    assert result.test_loss < 0.5 * document["training"]["result"]["persistence_test_loss"]
    (piece,) = load_data(config).test
    with torch.no_grad():
        y = model(torch.from_numpy(piece.x)[None])[0][0].numpy()
    # Raw units: the wave runs from 950 to 1050.
    assert np.abs(y - piece.y)[10:].mean() < 8


@pytest.mark.parametrize(("judged_by", "kept"), [("loss", 1), ("accuracy", 2)])
def test_weights_are_kept_by_what_the_data_is_judged_by(
    judged_by: str, kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([Score(0.5, 0.6), Score(0.7, 0.8), Score(0.6, 0.7), Score(0.1, 1.0)])
    monkeypatch.setattr("streamcell.models.training.train.score", lambda *given: next(scores))
    data = dataclasses.replace(load_digits(), judged_by=judged_by)
    monkeypatch.setattr("streamcell.models.training.train.load_data", lambda *given: data)
    config = presets.config("digits", out=tmp_path / "run", epochs=3)
    assert train(config).best_epoch == kept


def test_settings_out_of_range_are_refused_by_name(config: TrainConfig) -> None:
    for change, message in (
        ({"epochs": 0}, "epochs must be at least 1; got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"patience": -1}, "patience must not be negative"),
        ({"warmup": 1.0}, r"warmup must be in \[0, 1\)"),
        ({"minutes": 0.0}, "minutes must be above 0"),
        ({"schedule": "steps"}, "schedule must be one of cosine, linear, constant"),
        ({"dataset": "jazz"}, "dataset must be one of chorales, harmony, vowels, digits, g2p, csv"),
        ({"dataset": "csv", "data": None}, "needs a file"),
        ({"dataset": "vowels"}, "a data file can only be given for chorales or csv; the data set is vowels"),
        ({"targets": ("a",)}, "target columns can only be given for csv; the data set is chorales"),
        ({"stress": True}, "stress can only be given for g2p"),
        ({"reverse": True}, "reverse can only be given for g2p"),
        ({"device": "tpu"}, "device must be cpu, cuda or cuda:N; got 'tpu'"),
        ({"device": "cuda:99"}, "there is no device cuda:99"),
    ):
        with pytest.raises(ConfigError, match=message):
            train(dataclasses.replace(config, **change))
    assert not config.out.exists()


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, config: TrainConfig) -> None:
    with pytest.raises(RunError, match="is not a run folder"):
        load_run(tmp_path)
    (tmp_path / "config.json").write_text('{"format": "other"}')
    with pytest.raises(RunError, match=r"is not of format streamcell\.run/1"):
        load_run(tmp_path)
    train(dataclasses.replace(config, epochs=1))
    (config.out / "weights.safetensors").unlink()
    with pytest.raises(RunError, match="has no weights"):
        load_run(config.out)
    safetensors.torch.save_file({"w": torch.zeros(1)}, config.out / "weights.safetensors")
    with pytest.raises(RunError, match="does not fit the model"):
        load_run(config.out)


SMALL = {"input_size": 88, "hidden_size": 8, "output_size": 88}


def uneven(seed: int = 0) -> SequenceData:
    rng = np.random.default_rng(seed)

    def series(length: int) -> Series:
        keys = (rng.random((length + 1, 88)) < 0.05).astype(np.float32)
        return Series(keys[:-1], keys[1:])

    parts: dict[str, Any] = {name: [series(n) for n in (3, 17, 9, 5)] for name in ("train", "valid", "test")}
    return SequenceData("noise", **parts, distribution="bernoulli_logits")


def test_the_loss_is_the_mean_over_all_timesteps_of_whole_pieces() -> None:
    data = uneven()
    model = build({"kind": "gru", "input_size": 88, "hidden_size": 8, "output_size": 88, "dropout": 0.5})
    total = 0.0
    with torch.no_grad():
        for piece in data.test:
            p = torch.sigmoid(model.eval()(torch.from_numpy(piece.x)[None])[0][0].double()).numpy()
            total -= (piece.y * np.log(p) + (1 - piece.y) * np.log(1 - p)).sum()
    model.train()
    assert evaluate(model, data, "test") == pytest.approx(total / 34, rel=1e-6)
    assert model.training  # left as it was


def last_or_first(seed: int = 0, pieces: int = 60) -> SequenceData:
    """Of 4 to 12 noisy timesteps, which of three features was up at the first? Asked at the last."""
    rng = np.random.default_rng(seed)

    def series() -> Series:
        x = 0.1 * rng.standard_normal((int(rng.integers(4, 13)), 3)).astype(np.float32)
        y = np.zeros_like(x)
        y[-1, (at := int(rng.integers(3)))] = 1
        x[0, at] += 1
        return Series(x, y)

    parts: dict[str, Any] = {name: [series() for _ in range(pieces)] for name in ("train", "valid", "test")}
    return SequenceData("first", **parts, distribution="categorical_logits")


def test_cross_entropy_and_accuracy_count_the_timesteps_that_have_a_class() -> None:
    data = last_or_first()
    model = build({"kind": "gru", "input_size": 3, "hidden_size": 8, "output_size": 3}).eval()
    total, right = 0.0, 0
    with torch.no_grad():
        for piece in data.test:
            logits = model(torch.from_numpy(piece.x)[None])[0][0, -1].double().numpy()
            truth = piece.y[-1].argmax()
            total += np.log(np.exp(logits).sum()) - logits[truth]
            right += logits.argmax() == truth
    found = score(model, data, "test")
    assert found.loss == pytest.approx(total / 60, rel=1e-6)
    assert found.accuracy == right / 60
    assert score(build({**SMALL, "kind": "gru"}), uneven(), "test").accuracy is None


@pytest.mark.parametrize("kind", ["gru", "cnn", "tcn", "deep"])
def test_every_kind_learns_a_class_of_the_whole_sequence(kind: str) -> None:
    data = last_or_first()
    # What each needs to see twelve timesteps at the last.
    settings: dict[str, Any] = {
        "gru": {"kind": "gru", "hidden_size": 16},
        "cnn": {"kind": "cnn", "channels": [16, 16], "kernel_size": 7, "batch_norm": True},
        "tcn": {"kind": "tcn", "channels": [16, 16], "kernel_size": 4},
        "deep": {
            "kind": "lstm",
            "hidden_size": 16,
            "num_layers": 3,
            "residual": True,
            "layer_norm": True,
            "tie_layers": True,
        },
    }[kind]
    torch.manual_seed(0)
    model = build({**settings, "input_size": 3, "output_size": 3})
    config = TrainConfig(model={}, out=Path("unused"), batch_size=20, window=16, learning_rate=0.02)
    trainer = Trainer(config, data, model, lambda epochs, share: 0.5)
    losses = [trainer.epoch(index).train_loss for index in range(25)]
    assert losses[-1] < 0.2 < losses[0]
    found = score(model, data, "test").accuracy
    assert found is not None
    assert found > 0.8


@pytest.mark.parametrize("kind", ["gru", "tcn"])
def test_a_window_without_a_class_teaches_nothing_and_hands_on_its_state(kind: str) -> None:
    data = last_or_first()
    sizes = {"gru": {"hidden_size": 8}, "tcn": {"channels": [8]}}[kind]
    torch.manual_seed(0)
    model = build({"kind": kind, "input_size": 3, "output_size": 3, **sizes})
    config = TrainConfig(model={}, out=Path("unused"), batch_size=20, window=3, learning_rate=1e-12)
    trained = Trainer(config, data, model, lambda epochs, share: 0.5).epoch(0).train_loss
    assert trained == pytest.approx(evaluate(model, data, "train"), rel=1e-5)


def test_numpy_and_torch_count_the_same_nats() -> None:
    logits = np.random.default_rng(0).normal(size=(3, 5, 88), scale=20).astype(np.float32)
    target = np.random.default_rng(1).random((3, 5, 88)) < 0.1
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.from_numpy(logits).double(), torch.from_numpy(target).double(), reduction="none"
    ).sum(-1)
    np.testing.assert_allclose(bernoulli_nll(logits, target), expected.numpy(), rtol=1e-12)


def test_windows_carry_the_state_and_leave_ended_rows() -> None:
    data = uneven()
    (batch,) = shuffled(data, batch_size=4, window=4, semitones=0, rng=np.random.default_rng(0))
    assert batch.lengths.tolist() == [17, 9, 5, 3]
    windows = list(batch.windows(4))
    assert [w.x.shape[0] for w in windows] == [4, 3, 2, 1, 1]
    assert [w.counted("bernoulli_logits") for w in windows] == [15, 9, 5, 4, 1]
    # Without learning, windows with the state carried give the loss of the whole pieces.
    config = TrainConfig(
        model={"kind": "lstm", "hidden_size": 8},
        out=Path("unused"),
        batch_size=4,
        window=4,
        learning_rate=1e-12,
    )
    torch.manual_seed(0)
    model = build({"kind": "lstm", "input_size": 88, "hidden_size": 8, "output_size": 88})
    expected = evaluate(model, data, "train")
    assert Trainer(config, data, model, lambda epochs, share: 0.5).epoch(0).train_loss == pytest.approx(
        expected, 1e-5
    )


def test_a_series_is_cut_into_rows_in_order() -> None:
    steps = np.arange(100, dtype=np.float32)[:, None]
    one = [Series(steps[:-1], steps[1:])]
    data = SequenceData("csv", one, one, one, distribution="real", continuous=True)
    (batch,) = shuffled(data, batch_size=4, window=5, semitones=0, rng=np.random.default_rng(0))
    rows = batch.x[:, :, 0].numpy()
    assert rows.shape[0] == 4
    assert (np.diff(rows.flatten()) == 1).all()
    assert persistence(data, "test") is None  # no unit to count errors in


def test_transposition_moves_input_and_target_together() -> None:
    keys = np.zeros((5, 88), np.float32)
    keys[np.arange(5), [40, 42, 44, 43, 41]] = 1
    pieces = [Series(keys[:-1], keys[1:])] * 50
    data = SequenceData("keys", pieces, pieces, pieces, distribution="bernoulli_logits", transposable=True)
    (batch,) = shuffled(data, batch_size=50, window=8, semitones=3, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(batch.x[:, 1:], batch.y[:, :-1])
    assert set(batch.x[:, 0].argmax(-1).tolist()) == {37, 38, 39, 40, 41, 42, 43}


def test_transposition_leaves_classes_where_they_are() -> None:
    keys = np.zeros((4, 88), np.float32)
    keys[np.arange(4), [40, 42, 44, 43]] = 1
    classes = np.eye(4, dtype=np.float32)
    pieces = [Series(keys, classes)] * 50
    data = SequenceData("k", pieces, pieces, pieces, distribution="categorical_logits", transposable=True)
    (batch,) = shuffled(data, batch_size=50, window=8, semitones=3, rng=np.random.default_rng(0))
    assert set(batch.x[:, 0].argmax(-1).tolist()) == {37, 38, 39, 40, 41, 42, 43}
    assert all(torch.equal(y, torch.from_numpy(classes)) for y in batch.y)


def test_schedules_rise_then_fall() -> None:
    assert schedule("cosine", 0.1, 0.05) == pytest.approx(0.5)
    assert schedule("cosine", 0.0, 0.5) == pytest.approx(0.5)
    assert schedule("cosine", 0.1, 1.0) == pytest.approx(0.0)
    assert schedule("linear", 0.2, 0.6) == pytest.approx(0.5)
    assert schedule("constant", 0.1, 0.99) == 1.0
