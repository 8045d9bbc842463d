"""Training sequences changed at random: transposed, stretched in time, with noise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from streamcell.models import ConfigError, SequenceData, Series, Standard, TrainConfig, train
from streamcell.models.training.augmentation import Augmentation
from streamcell.models.training.batches import shuffled


def ramps(lengths: list[int], noise_std: float = 1.0) -> SequenceData:
    """Sequences that rise from 0 to 1 in one feature and to 10 in another; at their end they are of class 1."""
    pieces = []
    for length in lengths:
        x = np.linspace(0, 1, length, dtype=np.float32)[:, None] * np.array([1, 10], np.float32)
        y = np.zeros((length, 3), np.float32)
        y[-1, 1] = 1
        pieces.append(Series(x, y))
    standard = Standard(np.zeros(2, np.float32), np.array([1, 10], np.float32) * np.float32(noise_std))
    return SequenceData(
        "ramps", pieces, pieces, pieces, "categorical_logits", input_standard=standard, stretchable=True
    )


def test_transposition_moves_input_and_target_together() -> None:
    keys = np.zeros((5, 88), np.float32)
    keys[np.arange(5), [40, 42, 44, 43, 41]] = 1
    pieces = [Series(keys[:-1], keys[1:])] * 50
    data = SequenceData("keys", pieces, pieces, pieces, distribution="bernoulli_logits", transposable=True)
    (batch,) = shuffled(
        data, batch_size=50, window=8, rng=np.random.default_rng(0), augmentation=Augmentation(transpose=3)
    )
    np.testing.assert_array_equal(batch.x[:, 1:], batch.y[:, :-1])
    assert set(batch.x[:, 0].argmax(-1).tolist()) == {37, 38, 39, 40, 41, 42, 43}


def test_transposition_leaves_classes_where_they_are() -> None:
    keys = np.zeros((4, 88), np.float32)
    keys[np.arange(4), [40, 42, 44, 43]] = 1
    classes = np.eye(4, dtype=np.float32)
    pieces = [Series(keys, classes)] * 50
    data = SequenceData("k", pieces, pieces, pieces, distribution="categorical_logits", transposable=True)
    (batch,) = shuffled(
        data, batch_size=50, window=8, rng=np.random.default_rng(0), augmentation=Augmentation(transpose=3)
    )
    assert set(batch.x[:, 0].argmax(-1).tolist()) == {37, 38, 39, 40, 41, 42, 43}
    assert all(torch.equal(y, torch.from_numpy(classes)) for y in batch.y)


def test_a_stretched_sequence_has_the_same_shape_and_one_target() -> None:
    data = ramps([20])
    rng = np.random.default_rng(0)
    augmentation = Augmentation(stretch=0.25)
    lengths = set()
    for _ in range(400):
        found = augmentation.of(data.train[0], data, rng)
        lengths.add(len(found))
        # A straight line stays straight from its first value to its last.
        np.testing.assert_allclose(found.x[:, 0], np.linspace(0, 1, len(found)), atol=1e-6)
        np.testing.assert_allclose(found.x[:, 1], 10 * found.x[:, 0], rtol=1e-5)
        assert found.x.dtype == np.float32
        assert found.y[-1].tolist() == [0, 1, 0]
        assert not found.y[:-1].any()
    assert lengths == set(range(16, 26))


def test_the_shortest_sequences_can_be_stretched() -> None:
    data = ramps([1, 2])
    rng = np.random.default_rng(0)
    for piece in data.train:
        for _ in range(50):
            found = Augmentation(stretch=3.0).of(piece, data, rng)
            assert len(found) >= 1
            assert np.isfinite(found.x).all()
            assert found.y[-1].tolist() == [0, 1, 0]


def test_noise_is_counted_in_the_inputs_deviations() -> None:
    data = ramps([5000], noise_std=3.0)
    found = Augmentation(noise=0.2).of(data.train[0], data, np.random.default_rng(0))
    added = found.x - data.train[0].x
    assert found.x.dtype == np.float32
    np.testing.assert_allclose(added.std(axis=0), [0.6, 6.0], rtol=0.05)
    np.testing.assert_allclose(added.mean(axis=0), 0, atol=0.3)
    np.testing.assert_array_equal(found.y, data.train[0].y)


def test_every_epoch_draws_anew_and_the_data_stays_as_it_is() -> None:
    data = ramps([9, 9, 9, 9])
    before = [piece.x.copy() for piece in data.train]
    augmentation = Augmentation(stretch=0.3, noise=0.1)
    (one,), (again,), (other,) = (
        shuffled(
            data, batch_size=4, window=16, rng=np.random.default_rng([1, epoch]), augmentation=augmentation
        )
        for epoch in (0, 0, 1)
    )
    assert torch.equal(one.x, again.x)
    assert one.x.shape != other.x.shape or not torch.equal(one.x, other.x)
    assert all(np.array_equal(piece.x, x) for piece, x in zip(data.train, before, strict=True))


def test_without_augmentation_no_random_number_is_drawn() -> None:
    """The order of batches, and so every weight, is what it was before there was augmentation."""
    data = ramps([5, 6, 7, 8])
    given, plain = np.random.default_rng(3), np.random.default_rng(3)
    shuffled(data, batch_size=2, window=8, rng=given, augmentation=Augmentation())
    plain.permutation(4)
    plain.permutation(2)
    assert given.random() == plain.random()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"transpose": 2}, "transpose needs piano keys; the data set is ramps"),
        ({"stretch": 0.1}, "stretch needs sequences with one target, at their end; the data set is ramps"),
        ({"noise": 0.1}, "noise needs standardised sequences; the data set is ramps"),
    ],
)
def test_what_does_not_fit_the_data_is_refused(setting: dict[str, float], message: str) -> None:
    data = replace(ramps([5]), input_standard=None, stretchable=False)
    Augmentation().check(data)
    with pytest.raises(ConfigError, match=message):
        Augmentation(**setting).check(data)
    whole = replace(ramps([5]), transposable=True)
    Augmentation(**setting).check(whole)


def test_a_run_that_cannot_be_augmented_leaves_no_folder(config: TrainConfig) -> None:
    with pytest.raises(ConfigError, match="stretch needs sequences with one target"):
        train(replace(config, stretch=0.2))
    assert not Path(config.out).exists()
