"""Small data, and the configuration of a run on it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from streamcell.models import (
    TrainConfig,
)


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
