"""Settings found to work, by data set; the command line and the demonstration start from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from streamcell.models.checks import choose

from .config import TrainConfig

# An LSTM on Bach's chorales in about a minute on two cores, with a plain head: the demos' model, with which README.md's
# and docs/benchmarks.md's figures were measured.
CHORALES_MINUTE = TrainConfig(
    model={"kind": "lstm", "hidden_size": 320, "num_layers": 1, "dropout": 0.45},
    out=Path("runs/chorales"),
    dataset="chorales",
    epochs=60,
    batch_size=8,
    window=32,
    learning_rate=1e-2,
    weight_decay=0.005,
    transpose=5,
    threads=2,
)

# The same with a head of four voices, in about two minutes. docs/chorales.md says what both reach.
CHORALES = replace(
    CHORALES_MINUTE,
    model={**CHORALES_MINUTE.model, "hidden_size": 256, "weight_drop": 0.3, "voices": 4},
    epochs=120,
    learning_rate=1.5e-2,
)

# One series: rows side by side give few steps an epoch, so there are more epochs, and early stopping. The base does the
# coarse work, so a small model is enough; larger ones learn a short series by heart. Sizes and rates were chosen on the
# validation parts of docs/forecasting.md's series.
CSV = TrainConfig(
    model={"kind": "gru", "hidden_size": 32, "num_layers": 1, "dropout": 0.1, "reset_after": True},
    out=Path("runs/csv"),
    dataset="csv",
    epochs=150,
    batch_size=16,
    window=64,
    learning_rate=5e-3,
    weight_decay=0.1,
    patience=30,
    threads=2,
    forecast="auto",
)

# One image is one timestep: nothing to carry, so windows do not matter.
DIGITS = TrainConfig(
    model={"kind": "mlp", "hidden_sizes": [128, 128], "dropout": 0.3, "batch_norm": True},
    out=Path("runs/digits"),
    dataset="digits",
    epochs=40,
    batch_size=32,
    window=1,
    learning_rate=3e-3,
    weight_decay=0.05,
    threads=1,
)

# An utterance is at most 29 timesteps long: the whole of it is one window. There are only 225, so training changes them
# in every epoch; docs/vowels.md says how that was chosen and what it reaches.
VOWELS = TrainConfig(
    model={"kind": "gru", "hidden_size": 64, "num_layers": 1, "dropout": 0.3, "reset_after": True},
    out=Path("runs/vowels"),
    dataset="vowels",
    epochs=60,
    batch_size=16,
    window=32,
    learning_rate=5e-3,
    weight_decay=0.01,
    stretch=0.1,
    noise=0.65,
    threads=1,
)

# Blocks of 10 ms: a clip is 400 timesteps long. docs/voice.md says what it reaches.
VOICE = TrainConfig(
    model={
        "kind": "gru",
        "hidden_size": 64,
        "num_layers": 1,
        "dropout": 0.2,
        "reset_after": True,
        "bands": 20,
    },
    out=Path("runs/voice"),
    dataset="voice",
    epochs=16,
    batch_size=16,
    window=100,
    learning_rate=5e-3,
    weight_decay=0.01,
    threads=1,
)

HARMONY = TrainConfig(
    model={"kind": "lstm", "hidden_size": 128, "num_layers": 1, "dropout": 0.3},
    out=Path("runs/harmony"),
    dataset="harmony",
    epochs=40,
    batch_size=8,
    window=32,
    learning_rate=5e-3,
    weight_decay=0.01,
    transpose=6,
    threads=1,
)

# A small encoder–decoder that trains in about twelve minutes on one core; docs/g2p.md says what it reaches.
G2P = TrainConfig(
    model={"kind": "seq2seq", "hidden_size": 256, "num_layers": 1, "embedding_size": 64, "dropout": 0.4},
    out=Path("runs/g2p"),
    dataset="g2p",
    epochs=20,
    batch_size=128,
    window=64,
    learning_rate=3e-3,
    weight_decay=0.01,
    reverse=True,
    threads=1,
)

# The size of the literature's encoder–decoder (Yao & Zweig 2015: two layers of 500 units); for a GPU.
G2P_LARGE = replace(
    G2P,
    model={**G2P.model, "hidden_size": 512, "num_layers": 2, "embedding_size": 128, "dropout": 0.5},
    epochs=40,
    learning_rate=2e-3,
)

_PRESETS = {
    "chorales": CHORALES,
    "csv": CSV,
    "digits": DIGITS,
    "vowels": VOWELS,
    "harmony": HARMONY,
    "voice": VOICE,
    "g2p": G2P,
}
# Layers of a kind whose number is not given.
_LAYERS = {"cnn": 3, "tcn": 4}
_CHANNELS = 64


def config(dataset: str, **given: Any) -> TrainConfig:
    """The preset of a data set, changed by the `given` settings.

    Raises:
        ConfigError: there is no such data set.
    """
    return replace(_PRESETS[choose("dataset", dataset, tuple(_PRESETS))], **given)


def model(
    dataset: str,
    kind: str | None = None,
    *,
    hidden: int | None = None,
    layers: int | None = None,
    dropout: float | None = None,
) -> dict[str, Any]:
    """Settings of a model of any kind; settings that are not given are the preset's.

    Raises:
        ConfigError: there is no such data set.
    """
    preset = _PRESETS[choose("dataset", dataset, tuple(_PRESETS))].model
    kind = kind or preset["kind"]
    own = kind == preset["kind"]
    settings = dict(preset) if own else {"kind": kind, "dropout": preset["dropout"]}
    if dropout is not None:
        settings["dropout"] = dropout
    sizes = preset.get("hidden_sizes") or [preset["hidden_size"]] * preset["num_layers"]
    count = layers or (len(sizes) if own else _LAYERS.get(kind, 1))
    if kind in ("cnn", "tcn"):
        return {**settings, "channels": [hidden or _CHANNELS] * count}
    size = hidden or sizes[0]
    if kind == "mlp":
        return {**settings, "hidden_sizes": [size] * count}
    return {**settings, "hidden_size": size, "num_layers": count}
