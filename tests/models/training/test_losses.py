"""What training counts and feeds: losses, classes, windows that carry the state, transposition, schedules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from streamcell.models import (
    SequenceData,
    Series,
    TrainConfig,
    bernoulli_nll,
    build,
    evaluate,
    score,
)
from streamcell.models.training.batches import shuffled
from streamcell.models.training.speech_evaluation import Frames, count_frames, loudness_errors
from streamcell.models.training.trainer import Trainer, schedule

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
    (batch,) = shuffled(data, batch_size=4, window=4, rng=np.random.default_rng(0))
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
    (batch,) = shuffled(data, batch_size=4, window=5, rng=np.random.default_rng(0))
    rows = batch.x[:, :, 0].numpy()
    assert rows.shape[0] == 4
    assert (np.diff(rows.flatten()) == 1).all()


def test_schedules_rise_then_fall() -> None:
    assert schedule("cosine", 0.1, 0.05) == pytest.approx(0.5)
    assert schedule("cosine", 0.0, 0.5) == pytest.approx(0.5)
    assert schedule("cosine", 0.1, 1.0) == pytest.approx(0.0)
    assert schedule("linear", 0.2, 0.6) == pytest.approx(0.5)
    assert schedule("constant", 0.1, 0.99) == 1.0


def test_frames_are_counted_and_a_threshold_on_loudness_is_the_best() -> None:
    said, true = np.array([1, 1, 0, 0, 1], bool), np.array([1, 0, 1, 0, 0], bool)
    frames = count_frames([(said[:2], true[:2]), (said[2:], true[2:])])
    assert frames == Frames(speech=2, silence=3, missed=1, false=2)
    assert frames.error == pytest.approx(0.6)
    assert frames.f1 == pytest.approx(2 / 5)
    # Of loudness 1 to 6: above 2 only one timestep is wrong, and no threshold is better.
    x = np.arange(1, 7, dtype=np.float32)[:, None] ** 0.5
    y = np.array([0, 0, 1, 0, 1, 1], np.float32)[:, None]
    part = [Series(x, y)]
    data = SequenceData("d", part, part, part, "bernoulli_logits")
    assert loudness_errors(data, "train") == Frames(speech=3, silence=3, missed=0, false=1)
