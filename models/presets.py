"""Settings found to work, by data set; the command line and the demonstration start from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from .activations import choose
from .config import DATASETS, TrainConfig

# An LSTM on Bach's chorales in about a minute on two cores. docs/chorales.md says what it reaches.
CHORALES_DEMO = TrainConfig(
    model={"kind": "lstm", "hidden_size": 320, "num_layers": 1, "dropout": 0.45},
    out=Path("runs/chorales"),
    dataset="chorales",
    epochs=120,
    batch_size=8,
    window=32,
    learning_rate=1e-2,
    weight_decay=0.005,
    transpose=5,
    threads=2,
)

# One series: rows side by side give few steps an epoch, so there are more epochs, and early stopping.
CSV = TrainConfig(
    model={"kind": "lstm", "hidden_size": 64, "num_layers": 1, "dropout": 0.1},
    out=Path("runs/csv"),
    dataset="csv",
    epochs=100,
    batch_size=16,
    window=64,
    learning_rate=3e-3,
    weight_decay=0.01,
    patience=20,
    threads=2,
)

_PRESETS = {"chorales": CHORALES_DEMO, "csv": CSV}


def config(dataset: str, **given: Any) -> TrainConfig:
    """The preset of a data set, with `given` settings in place of its own.

    Raises:
        ConfigError: there is no such data set.
    """
    return replace(_PRESETS[choose("dataset", dataset, DATASETS)], **given)


def model(
    dataset: str, kind: str, *, hidden: int | None = None, layers: int = 1, dropout: float | None = None
) -> dict[str, Any]:
    """Settings of a model of any kind: the preset's sizes where none are given.

    Raises:
        ConfigError: there is no such data set.
    """
    preset = _PRESETS[choose("dataset", dataset, DATASETS)].model
    size = preset["hidden_size"] if hidden is None else hidden
    sizes = (
        {"hidden_sizes": [size] * layers} if kind == "mlp" else {"hidden_size": size, "num_layers": layers}
    )
    return {"kind": kind, **sizes, "dropout": preset["dropout"] if dropout is None else dropout}
